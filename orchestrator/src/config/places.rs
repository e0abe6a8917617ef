//! Where something stands in a file that was read before: for findings that are made later, with more knowledge than the file.

use std::ops::Range;

use toml::de::{DeArray, DeTable, DeValue};

use super::diagnostic::Source;
use super::hosts::host_pattern;
use crate::model::service::{HostPattern, Route};

/// The value under a path of keys (`["limits", "memory"]`) as far as the path leads; the start of the text where it leads nowhere.
pub fn place_of(source: &Source, path: &[&str]) -> Range<usize> {
    let steps: Vec<Step<'_>> = path.iter().map(|key| Step::Key(key)).collect();
    Places::of(source).find(&steps)
}

/// One step into a document.
pub(super) enum Step<'a> {
    Key(&'a str),
    /// A text of the array.
    Item(&'a str),
    /// An entry of `routes`, or a `[[route]]`.
    Route(&'a Route),
}

/// A file parsed once, for the places of findings.
pub(super) struct Places<'i>(Option<DeTable<'i>>);

impl<'i> Places<'i> {
    pub fn of(source: &'i Source) -> Self {
        Self(DeTable::parse(&source.text).ok().map(toml::Spanned::into_inner))
    }

    /// The place as far as the steps lead; the start of the text where they lead nowhere.
    pub fn find(&self, steps: &[Step<'_>]) -> Range<usize> {
        let mut place = 0..0;
        let mut table = self.0.as_ref();
        let mut array = None;
        for step in steps {
            let found = match step {
                Step::Key(key) => table.and_then(|t| t.get(*key)),
                Step::Item(wanted) => {
                    array.and_then(|a: &DeArray<'_>| a.iter().find(|i| i.get_ref().as_str() == Some(*wanted)))
                }
                Step::Route(route) => table.and_then(|t| find_route(t, route)),
            };
            let Some(found) = found else { break };
            place = found.span();
            table = found.get_ref().as_table();
            array = found.get_ref().as_array();
        }
        place
    }
}

fn find_route<'t, 'i>(file: &'t DeTable<'i>, route: &Route) -> Option<&'t toml::Spanned<DeValue<'i>>> {
    let items = |key: &str| {
        file.get(key)
            .and_then(|v| v.get_ref().as_array())
            .into_iter()
            .flat_map(|a| a.iter())
    };
    let same_path = |text: &str| text == route.path || text.strip_suffix('/') == Some(&route.path);
    let short = || items("routes").find(|item| item.get_ref().as_str().is_some_and(same_path));
    let long = || {
        items("route").find_map(|item| {
            let (host, path) = (item.get_ref().get("host"), item.get_ref().get("path"));
            let host = host
                .and_then(|h| h.get_ref().as_str())
                .map_or(Some(HostPattern::Any), |h| host_pattern(h).ok());
            let text = path.and_then(|p| p.get_ref().as_str()).unwrap_or("/");
            (host.as_ref() == Some(&route.host) && same_path(text)).then(|| path.unwrap_or(item))
        })
    };
    if route.host == HostPattern::Any {
        short().or_else(long)
    } else {
        long()
    }
}
