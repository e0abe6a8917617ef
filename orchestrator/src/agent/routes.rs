//! The routes that follow from what is assigned and what serves: a whole table, published when it differs from the last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Agent, State};
use crate::model::{Phase, Revision, RevisionNumber, ServiceName};
use crate::plan::Assigned;
use crate::proxy::{Service, ServiceTraffic, Table};

impl Agent {
    /// Makes the balancer's services and routes those of the assignment.
    pub(super) fn publish(&self) {
        let mut state = self.lock();
        let mut wanted = Vec::new();
        let speakers: Vec<(ServiceName, Arc<Revision>)> = {
            let serving = serving(&state);
            let assigned = state.assigned.services.iter();
            let speak =
                |(name, assigned): (&ServiceName, _)| Some((name.clone(), speaker(assigned, serving.get(name))?));
            assigned.filter_map(speak).collect()
        };
        for (name, revision) in speakers {
            let traffic = ServiceTraffic::from(&revision.spec);
            match state.services.get(&name) {
                Some(service) => service.configure(traffic),
                None => {
                    state.services.insert(name.clone(), Service::new(name.clone(), traffic));
                }
            }
            wanted.extend(revision.spec.routes.iter().map(|r| (r.clone(), name.clone())));
        }
        let used: BTreeSet<ServiceName> = state.slots.values().map(|s| s.facts.service.clone()).collect();
        let State { services, assigned, .. } = &mut *state;
        services.retain(|name, _| assigned.services.contains_key(name) || used.contains(name));
        let digests = state.slots.values().map(|s| s.revision.digest).collect();
        if wanted != state.published {
            let entries = wanted
                .iter()
                .filter_map(|(route, name)| Some((route.clone(), Arc::clone(state.services.get(name)?))))
                .collect();
            self.tools.balancer.publish(Table::build(entries));
            state.published = wanted;
        }
        drop(state);
        self.drop_unused_code(&digests);
    }
}

/// Which revisions serve, by service.
fn serving(state: &State) -> BTreeMap<&ServiceName, BTreeSet<RevisionNumber>> {
    let mut serving: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for slot in state
        .slots
        .values()
        .filter(|s| matches!(s.facts.phase, Phase::Serving { .. }))
    {
        serving
            .entry(&slot.facts.service)
            .or_default()
            .insert(slot.facts.revision);
    }
    serving
}

/// The revision whose routes and traffic settings hold now: the newest that serves; before that, the oldest assigned.
fn speaker(assigned: &Assigned, serving: Option<&BTreeSet<RevisionNumber>>) -> Option<Arc<Revision>> {
    let serves = |number: &RevisionNumber| serving.is_some_and(|s| s.contains(number));
    let newest = assigned.groups.iter().rev().find(|(number, _)| serves(number));
    newest
        .or_else(|| assigned.groups.iter().next())
        .map(|(_, group)| Arc::clone(&group.revision))
}
