//! What the data path says of the autoscaled services: requests there, and requests and processor time so far. Counts; decides
//! nothing.

use std::collections::BTreeMap;

use super::Agent;
use crate::model::{Millis, RevisionNumber, ServiceName};
use crate::plan::Desired;
use crate::plan::scale::{self, Load};

/// Sums that only grow, though replicas and revisions go.
#[derive(Default)]
pub(super) struct Used {
    requests: u64,
    cpu_ns: u64,
    /// Requests begun in each revision when it was asked last.
    begun: BTreeMap<RevisionNumber, u64>,
}

impl Agent {
    /// The load of each service with `[autoscale]`, as of now. From here on a request that queues there wakes the planner again.
    pub fn loads(&self, desired: &Desired, now: Millis) -> BTreeMap<ServiceName, Load> {
        let scaled = desired.services.iter().filter(|(_, s)| scale::autoscaled(s).is_some());
        let names: Vec<&ServiceName> = scaled.map(|(name, _)| name).collect();
        let mut state = self.lock();
        state.used.retain(|name, _| names.binary_search(&name).is_ok());
        if names.is_empty() {
            return BTreeMap::new();
        }
        let mut cpu: BTreeMap<ServiceName, u64> = BTreeMap::new();
        for slot in state.slots.values_mut() {
            if names.binary_search(&&slot.facts.service).is_ok() {
                let used = slot.usage().cpu_ns;
                let more = used.saturating_sub(std::mem::replace(&mut slot.cpu_seen_ns, used));
                *cpu.entry(slot.facts.service.clone()).or_default() += more;
            }
        }
        let mut loads = BTreeMap::new();
        for name in names {
            let service = state.services.get(name).cloned();
            let used = state.used.entry(name.clone()).or_default();
            used.cpu_ns += cpu.get(name).copied().unwrap_or(0);
            let begun: BTreeMap<_, _> = self.tools.metrics.begun(name).into_iter().collect();
            for (revision, n) in &begun {
                used.requests += n.saturating_sub(used.begun.get(revision).copied().unwrap_or(0));
            }
            used.begun = begun;
            let (queued, in_flight) = service.map_or((0, 0), |s| {
                s.wake_again(now);
                (s.queued(), s.in_flight())
            });
            let load = Load {
                in_flight,
                queued,
                requests: used.requests,
                cpu_ns: used.cpu_ns,
            };
            loads.insert(name.clone(), load);
        }
        loads
    }

    /// Wakes the planner.
    pub fn wake(&self) {
        self.tools.wake.notify_one();
    }

    /// An autoscaled service has had a request since the planner looked: its load is to be seen.
    pub fn has_unseen_load(&self) -> bool {
        let state = self.lock();
        state.used.iter().any(|(name, used)| {
            let begun = self.tools.metrics.begun(name);
            let more = begun.iter().any(|(r, n)| *n > used.begun.get(r).copied().unwrap_or(0));
            more || state.services.get(name).is_some_and(|s| s.queued() > 0)
        })
    }
}
