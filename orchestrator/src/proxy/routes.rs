//! Which service answers for a host and a path. Built whole, never edited. Knows no replica.

use std::collections::HashMap;
use std::sync::Arc;

use super::service::Service;
use crate::model::service::{HostPattern, Route};

/// The route table: host exact before one-label wildcard before any; in each the longest path prefix on whole segments. A host
/// whose routes do not match the path falls through to the next kind.
#[derive(Default)]
pub struct Table {
    exact: HashMap<String, Paths>,
    one_label: HashMap<String, Paths>,
    any: Paths,
}

/// The routes of one host. Looking up costs as many probes as the deepest route has segments, however long the request's path is.
#[derive(Default)]
struct Paths {
    by_prefix: HashMap<String, Arc<Service>>,
    root: Option<Arc<Service>>,
    deepest: usize,
}

impl Table {
    /// Of two equal routes the first wins; a border above refuses them.
    pub fn build(routes: Vec<(Route, Arc<Service>)>) -> Self {
        let mut table = Self::default();
        for (route, service) in routes {
            let paths = match route.host {
                HostPattern::Any => &mut table.any,
                HostPattern::Exact(host) => table.exact.entry(host).or_default(),
                HostPattern::OneLabel(suffix) => table.one_label.entry(suffix).or_default(),
            };
            paths.insert(route.path, service);
        }
        table
    }

    /// `host` in lower case without port, `path` without query.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Service>> {
        let exact = || self.exact.get(host)?.find(path);
        let one_label = || {
            let (label, suffix) = host.split_once('.')?;
            self.one_label.get(suffix).filter(|_| !label.is_empty())?.find(path)
        };
        let named = if self.exact.is_empty() { None } else { exact() };
        let named = if named.is_none() && !self.one_label.is_empty() {
            one_label()
        } else {
            named
        };
        named.or_else(|| self.any.find(path))
    }
}

impl Paths {
    fn insert(&mut self, path: String, service: Arc<Service>) {
        let path = path.strip_suffix('/').map_or(path.as_str(), |p| p);
        if path.is_empty() {
            self.root.get_or_insert(service);
            return;
        }
        self.deepest = self.deepest.max(path.matches('/').count());
        self.by_prefix.entry(path.to_owned()).or_insert(service);
    }

    fn find(&self, path: &str) -> Option<&Arc<Service>> {
        if self.deepest > 0 {
            // Where the prefix of `deepest` whole segments ends; from there shorter, one segment at a time.
            let slashes = path.bytes().enumerate().skip(1).filter(|(_, b)| *b == b'/');
            let mut end = slashes.map(|(at, _)| at).nth(self.deepest - 1).unwrap_or(path.len());
            while end > 0 {
                if let Some(service) = self.by_prefix.get(&path[..end]) {
                    return Some(service);
                }
                end = path[..end].rfind('/').unwrap_or(0);
            }
        }
        self.root.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::service::ServiceTraffic;

    fn table(routes: &[(&str, &str, &str)]) -> Table {
        let built = routes.iter().map(|(host, path, name)| {
            let host = match *host {
                "" => HostPattern::Any,
                h if h.starts_with("*.") => HostPattern::OneLabel(h[2..].to_owned()),
                h => HostPattern::Exact(h.to_owned()),
            };
            let service = Service::new(name.parse().unwrap(), ServiceTraffic::default());
            (
                Route {
                    host,
                    path: (*path).to_owned(),
                },
                service,
            )
        });
        Table::build(built.collect())
    }

    fn found<'a>(table: &'a Table, host: &str, path: &str) -> &'a str {
        table.find(host, path).map_or("-", |s| s.name().as_str())
    }

    #[test]
    fn an_empty_table_answers_for_nothing() {
        assert_eq!(found(&Table::default(), "a", "/"), "-");
    }

    #[test]
    fn the_longest_prefix_on_whole_segments_wins() {
        let t = table(&[
            ("", "/", "root"),
            ("", "/api", "api"),
            ("", "/api/v1", "v1"),
            ("", "/a/b/c/d", "deep"),
        ]);
        for (path, want) in [
            ("/", "root"),
            ("/api", "api"),
            ("/api/", "api"),
            ("/apix", "root"),
            ("/ap", "root"),
            ("/api/v1", "v1"),
            ("/api/v1/x/y/z/w/v", "v1"),
            ("/api/v10", "api"),
            ("/api/x/v1", "api"),
            ("/api//v1", "api"),
            ("//api", "root"),
            ("/a/b/c", "root"),
            ("/a/b/c/d", "deep"),
            ("/a/b/c/d/e", "deep"),
            ("/a/b/c/dd", "root"),
            ("/API", "root"),
            ("/%61pi", "root"),
            ("/api/../x", "api"),
        ] {
            assert_eq!(found(&t, "h", path), want, "{path}");
        }
    }

    #[test]
    fn without_a_root_route_other_paths_have_no_service() {
        let t = table(&[("", "/hello", "hello")]);
        assert_eq!(found(&t, "h", "/hello/x"), "hello");
        for path in ["/", "/hell", "/hellos", "/x/hello", "/x"] {
            assert_eq!(found(&t, "h", path), "-", "{path}");
        }
    }

    #[test]
    fn an_exact_host_wins_over_a_wildcard_and_that_over_any() {
        let t = table(&[
            ("a.test", "/x", "exact"),
            ("*.test", "/", "wild"),
            ("", "/", "any"),
            ("", "/only", "only"),
        ]);
        assert_eq!(found(&t, "a.test", "/x"), "exact");
        assert_eq!(found(&t, "a.test", "/y"), "wild");
        assert_eq!(found(&t, "b.test", "/x"), "wild");
        assert_eq!(found(&t, "b.a.test", "/x"), "any");
        assert_eq!(found(&t, "test", "/x"), "any");
        assert_eq!(found(&t, "other", "/only/1"), "only");
        assert_eq!(found(&t, "a.test", "/only"), "wild");
    }

    #[test]
    fn of_two_equal_routes_the_first_wins() {
        let t = table(&[
            ("", "/a", "one"),
            ("", "/a", "two"),
            ("", "/", "three"),
            ("", "/", "four"),
        ]);
        assert_eq!(found(&t, "h", "/a"), "one");
        assert_eq!(found(&t, "h", "/"), "three");
    }
}
