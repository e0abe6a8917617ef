//! Start order: a service's first replicas wait for the services it depends on. Only order, never a condition to live:
//! the wait is bounded, and nothing that runs is ever stopped for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Desired;
use crate::model::{ServiceName, ServiceSpec};

/// A dependency that never serves holds nobody up for longer.
pub const WAIT: Duration = Duration::from_secs(30);

/// Services that stand in a circle of `depends_on`, or between two circles. Dependencies among them are not waited for.
/// Found by taking away, again and again, what depends on nothing and what nothing depends on. Linear in the file.
pub(crate) fn circles(desired: &Desired) -> BTreeSet<&ServiceName> {
    let mut edges: BTreeMap<&ServiceName, Edges<'_>> = BTreeMap::new();
    for (name, service) in &desired.services {
        let Some(revision) = service.revisions.get(&service.record.wanted) else {
            continue;
        };
        let known: BTreeSet<_> = revision
            .spec
            .depends_on
            .iter()
            .filter(|on| desired.services.contains_key(*on))
            .collect();
        for on in known {
            edges.entry(name).or_default().out.push(on);
            edges.entry(on).or_default().into.push(name);
        }
    }
    let mut degrees: BTreeMap<_, _> = edges
        .iter()
        .map(|(name, e)| (*name, (e.out.len(), e.into.len())))
        .collect();
    let mut ends: Vec<&ServiceName> = degrees
        .iter()
        .filter(|(_, d)| d.0 == 0 || d.1 == 0)
        .map(|(n, _)| *n)
        .collect();
    while let Some(end) = ends.pop() {
        let (Some(_), Some(edges)) = (degrees.remove(end), edges.get(end)) else {
            continue;
        };
        for name in &edges.out {
            if let Some(degree) = degrees.get_mut(name) {
                degree.1 -= 1;
                if degree.1 == 0 {
                    ends.push(name);
                }
            }
        }
        for name in &edges.into {
            if let Some(degree) = degrees.get_mut(name) {
                degree.0 -= 1;
                if degree.0 == 0 {
                    ends.push(name);
                }
            }
        }
    }
    degrees.into_keys().collect()
}

/// Who a service depends on, and who depends on it.
#[derive(Default)]
struct Edges<'a> {
    out: Vec<&'a ServiceName>,
    into: Vec<&'a ServiceName>,
}

/// Those of `spec.depends_on` that `unready` says should be waited for.
pub(crate) fn waits_for(spec: &ServiceSpec, unready: impl Fn(&ServiceName) -> bool) -> Vec<&ServiceName> {
    spec.depends_on
        .iter()
        .filter(|on| **on != spec.name && unready(on))
        .collect()
}
