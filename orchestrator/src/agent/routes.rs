//! The routes that follow from what is assigned and what serves: a whole table, published when it differs from the last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Agent, State};
use crate::model::{Millis, Phase, Replica, Revision, RevisionNumber, ServiceName};
use crate::plan::Assigned;
use crate::plan::hold::hold;
use crate::proxy::{Service, ServiceTraffic, Table};

impl Agent {
    /// Makes the balancer's services and routes those of the assignment.
    pub(super) fn publish(&self, now: Millis) {
        let mut state = self.lock();
        let mut wanted = Vec::new();
        let speakers: Vec<(ServiceName, Arc<Revision>)> = {
            let serving = serving(&state);
            let assigned = state.assigned.services.iter();
            let speak =
                |(name, assigned): (&ServiceName, _)| Some((name.clone(), speaker(assigned, serving.get(name))?));
            assigned.filter_map(speak).collect()
        };
        let mut held = holds(&state, now);
        for (name, revision) in speakers {
            let traffic = ServiceTraffic {
                hold: held.remove(&name),
                ..ServiceTraffic::from(&revision.spec)
            };
            match state.services.get(&name) {
                Some(service) => service.configure(traffic),
                None => {
                    let service = Service::new(name.clone(), traffic);
                    service.wake_when_queued(Arc::clone(&self.tools.wake));
                    state.services.insert(name.clone(), service);
                }
            }
            wanted.extend(revision.spec.routes.iter().map(|r| (r.clone(), name.clone())));
        }
        let used: BTreeSet<ServiceName> = state.slots.values().map(|s| s.facts.service.clone()).collect();
        let State {
            services,
            assigned,
            slots,
            ..
        } = &mut *state;
        services.retain(|name, _| assigned.services.contains_key(name) || used.contains(name));
        self.inside.publish(services);
        // What is scaled to zero is to start again in no time.
        let asleep = assigned.services.values().filter(|a| a.asleep);
        let asleep = asleep.flat_map(|a| a.groups.values().map(|g| g.revision.digest));
        let digests = slots.values().map(|s| s.revision.digest);
        let digests = digests.chain(asleep).chain(self.jobs.digests()).collect();
        if wanted != state.published {
            let entries = wanted
                .iter()
                .filter_map(|(route, name)| Some((route.clone(), Arc::clone(state.services.get(name)?))))
                .collect();
            self.tools.balancer.publish(Table::build(entries));
            state.published = wanted;
        }
        for (name, assigned) in &state.assigned.services {
            if let Some(service) = state.services.get(name) {
                service.set_split(&assigned.split);
            }
        }
        drop(state);
        self.drop_unused_code(&digests);
    }
}

/// How long requests wait in services that expect a replica.
fn holds(state: &State, now: Millis) -> BTreeMap<ServiceName, std::time::Duration> {
    let mut replicas: BTreeMap<&ServiceName, Vec<&Replica>> = BTreeMap::new();
    for slot in state.slots.values() {
        replicas.entry(&slot.facts.service).or_default().push(&slot.facts);
    }
    let hold = |(name, assigned): (&ServiceName, &Assigned)| {
        let mine = replicas.remove(name).unwrap_or_default();
        Some((name.clone(), hold(assigned, mine, state.jitter_seed, now)?))
    };
    state.assigned.services.iter().filter_map(hold).collect()
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

/// The revision whose routes and traffic settings hold now: the one with most of the requests, the newest that serves where all are
/// alike; before that, the oldest assigned.
fn speaker(assigned: &Assigned, serving: Option<&BTreeSet<RevisionNumber>>) -> Option<Arc<Revision>> {
    let serves = |number: &RevisionNumber| serving.is_some_and(|s| s.contains(number));
    let shares = assigned.split.iter().filter(|(number, _)| serves(number));
    if let Some((number, _)) = shares.max_by_key(|(number, share)| (**share, **number))
        && let Some(group) = assigned.groups.get(number)
    {
        return Some(Arc::clone(&group.revision));
    }
    let newest = assigned.groups.iter().rev().find(|(number, _)| serves(number));
    newest
        .or_else(|| assigned.groups.iter().next())
        .map(|(_, group)| Arc::clone(&group.revision))
}
