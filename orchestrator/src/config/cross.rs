//! What is wrong with a service beside the others of the node: routes taken, memory beyond the budget, dependencies that are not
//! there or go in a circle. Found before anything changes.

use std::collections::{BTreeMap, BTreeSet};

use super::codes::Code;
use super::diagnostic::{Problem, Source};
use super::places::{Places, Step};
use super::service::show_route;
use super::units::show_size;
use crate::model::service::{HostPattern, Route};
use crate::model::{ServiceName, ServiceSpec};

/// Findings about `new` among `others` (an entry with its own name is what it replaces and is not looked at). `budget_bytes`: of all
/// guests together; 0: not known. Warnings are in the list too: see [`Problem::severity`].
pub fn cross(new: &ServiceSpec, others: &[(ServiceName, &ServiceSpec)], budget_bytes: u64) -> Vec<Problem> {
    cross_at(new, others, budget_bytes, None)
}

/// [`cross`] with places in the new service's file.
pub fn cross_at(
    new: &ServiceSpec,
    others: &[(ServiceName, &ServiceSpec)],
    budget_bytes: u64,
    source: Option<&Source>,
) -> Vec<Problem> {
    let others: BTreeMap<&ServiceName, &ServiceSpec> = others
        .iter()
        .filter(|(n, _)| *n != new.name)
        .map(|(n, s)| (n, *s))
        .collect();
    let places = source.map(Places::of);
    let at = |problem: Problem, steps: &[Step<'_>]| match (source, &places) {
        (Some(source), Some(places)) => problem.at(source, places.find(steps)),
        _ => problem,
    };
    let mut out = Vec::new();
    let mut taken: BTreeMap<(&HostPattern, &str), Vec<(&Route, &ServiceName)>> = BTreeMap::new();
    for (name, spec) in &others {
        for route in &spec.routes {
            taken.entry((&route.host, &route.path)).or_default().push((route, name));
        }
    }
    let conflicts = new.routes.iter().filter_map(|route| {
        let alike = taken.get(&(&route.host, route.path.as_str()))?;
        let (_, name) = alike.iter().find(|(other, _)| other.clashes(route))?;
        Some((route, *name))
    });
    for (route, name) in conflicts.take(MAX_FINDINGS) {
        out.push(at(
            Problem::new(
                Code::RouteTaken,
                format!("route `{}` belongs to service `{name}`", show_route(route)),
            )
            .label("taken")
            .help(format!("choose another host or path, or delete `{name}` first")),
            &[Step::Route(route)],
        ));
    }
    out.extend(memory(new, budget_bytes).map(|p| at(p, &[Step::Key("limits"), Step::Key("memory")])));
    for dependency in new
        .depends_on
        .iter()
        .filter(|d| !others.contains_key(d))
        .take(MAX_FINDINGS)
    {
        let near = super::outside::nearest(dependency.as_str(), others.keys().map(|n| n.as_str()));
        let help = near.map_or_else(
            || "deploy it too; until then the order means nothing".to_owned(),
            |n| format!("did you mean `{n}`?"),
        );
        out.push(at(
            Problem::warning(
                Code::UnknownDependency,
                format!("`{dependency}` in depends_on is no service of this node"),
            )
            .label("not deployed")
            .help(help),
            &[Step::Key("depends_on"), Step::Item(dependency.as_str())],
        ));
    }
    for callee in new.outbound.services.iter().take(MAX_FINDINGS) {
        let known = callee == new.name.as_str() || others.keys().any(|name| name.as_str() == callee);
        if !known {
            out.push(at(
                unknown_callee(callee, &others),
                &[
                    Step::Key("outbound"),
                    Step::Key("allow"),
                    Step::Item(&format!("service:{callee}")),
                ],
            ));
        }
    }
    if let Some(cycle) = cycle(new, &others) {
        let first = cycle.get(1).map_or("", |n| n.as_str()).to_owned();
        let names: Vec<&str> = cycle.iter().map(|n| n.as_str()).collect();
        out.push(at(
            Problem::new(
                Code::DependencyCycle,
                format!("dependencies go in a circle: {}", names.join(" -> ")),
            )
            .label("leads back to this service")
            .help("remove one of these from depends_on: a start needs a first one"),
            &[Step::Key("depends_on"), Step::Item(&first)],
        ));
    }
    out
}

fn unknown_callee(callee: &str, others: &BTreeMap<&ServiceName, &ServiceSpec>) -> Problem {
    let near = super::outside::nearest(callee, others.keys().map(|n| n.as_str()));
    Problem::warning(
        Code::UnknownCallee,
        format!("`service:{callee}` in outbound.allow is no service of this node"),
    )
    .label("not deployed")
    .help(near.map_or_else(
        || format!("deploy it too; until then http://{callee}.internal is refused"),
        |near| format!("did you mean `service:{near}`?"),
    ))
}

/// One instance beyond the budget can never run; all warm ones beyond it will be refused under load.
fn memory(new: &ServiceSpec, budget_bytes: u64) -> Option<Problem> {
    let one = new.limits.memory_bytes;
    if budget_bytes == 0 {
        return None;
    }
    if one > budget_bytes {
        return Some(
            Problem::new(
                Code::OverBudget,
                format!(
                    "one instance may use {}, more than the {} all guests of this node have",
                    show_size(one),
                    show_size(budget_bytes)
                ),
            )
            .label("beyond the node's memory budget")
            .help("lower `limits.memory`, or raise `engine.memory_budget` of the node"),
        );
    }
    // Of a command, attempts at once; of others replicas, the most that load may ask for.
    let count = match &new.job {
        Some(job) => job.parallelism.min(job.completions),
        None => new.autoscale.as_ref().map_or(new.replicas.get(), |a| a.max),
    };
    let all = u128::from(one) * u128::from(count);
    if new.is_job() {
        return (all > u128::from(budget_bytes)).then(|| {
            Problem::warning(
                Code::OverBudget,
                format!(
                    "{count} attempts of {} may need more than the {} all guests of this node have",
                    show_size(one),
                    show_size(budget_bytes)
                ),
            )
            .label("attempts beyond the budget fail")
            .help("lower `limits.memory` or `job.parallelism`, or raise `engine.memory_budget` of the node")
        });
    }
    (all > u128::from(budget_bytes)).then(|| {
        Problem::warning(
            Code::OverBudget,
            format!(
                "{count} replicas of {} may need more than the {} all guests of this node have",
                show_size(one),
                show_size(budget_bytes)
            ),
        )
        .label("requests beyond the budget get 503")
        .help("lower `limits.memory` or `replicas`, or raise `engine.memory_budget` of the node")
    })
}

/// A way from `new` over dependencies back to it, `new` at both ends.
fn cycle(new: &ServiceSpec, others: &BTreeMap<&ServiceName, &ServiceSpec>) -> Option<Vec<ServiceName>> {
    let mut from: BTreeMap<&ServiceName, &ServiceName> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<&ServiceName> = Vec::new();
    for d in &new.depends_on {
        from.entry(d).or_insert(&new.name);
        next.push(d);
    }
    while let Some(name) = next.pop() {
        if !seen.insert(name) {
            continue;
        }
        for d in others.get(name).map_or(&[][..], |spec| &spec.depends_on) {
            if *d == new.name {
                let mut way = vec![new.name.clone(), name.clone()];
                let mut at = name;
                while let Some(before) = from.get(at).filter(|b| **b != &new.name) {
                    way.push((*before).clone());
                    at = before;
                }
                way.push(new.name.clone());
                way.reverse();
                return Some(way);
            }
            from.entry(d).or_insert(name);
            next.push(d);
        }
    }
    None
}

/// More of one kind than anyone reads in one go.
const MAX_FINDINGS: usize = 50;

#[cfg(test)]
#[path = "tests/cross.rs"]
mod tests;
