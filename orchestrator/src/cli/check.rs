//! Service files as a set: each checked by itself and beside the others, every mistake of all of them at once. Asks no daemon
//! and reads no module.

use std::collections::BTreeMap;

use super::codes;
use super::report::Report;
use super::seams;
use super::session::Session;
use super::source::Source;
use crate::model::{ServiceName, ServiceSpec};

/// A file without mistakes, its text with the values of `--set` in it.
#[derive(Clone, Debug)]
pub struct Good {
    pub source: Source,
    pub spec: ServiceSpec,
}

/// Checks files; the good ones, and every mistake of the others. Warnings are told at once.
pub fn services(session: &Session, sources: Vec<Source>, set: &[(String, String)]) -> (Vec<Good>, Vec<Report>) {
    let mut good: Vec<Good> = Vec::new();
    let mut reports = Vec::new();
    let mut seen: BTreeMap<ServiceName, String> = BTreeMap::new();
    for source in sources {
        match alone(session, source, set) {
            Ok(one) => {
                let before: Vec<(ServiceName, &ServiceSpec)> =
                    good.iter().map(|g| (g.spec.name.clone(), &g.spec)).collect();
                reports.extend(seams::beside(&one.spec, &before, &one.source.text, &one.source.name));
                if let Some(first) = seen.insert(one.spec.name.clone(), one.source.name.clone()) {
                    reports.push(
                        Report::new(codes::TWICE, format!("service `{}` is also in {first}", one.spec.name))
                            .file(one.source.name.clone())
                            .help("a service has one file"),
                    );
                }
                good.push(one);
            }
            Err(found) => reports.extend(found),
        }
    }
    (good, reports)
}

/// A file's name in messages. With `--set` its lines are not quite those on disk, and the message must not point there.
pub fn shown(name: &str, set: &[(String, String)]) -> String {
    if set.is_empty() {
        name.to_owned()
    } else {
        format!("{name} (with --set)")
    }
}

fn alone(session: &Session, source: Source, set: &[(String, String)]) -> Result<Good, Vec<Report>> {
    let text = match set {
        [] => source.text,
        set => seams::set(&source.text, &source.name, set)?,
    };
    let checked = seams::check_service(&text, &shown(&source.name, set))?;
    session.tell(&checked.warnings);
    Ok(Good {
        source: Source { text, ..source },
        spec: checked.spec,
    })
}
