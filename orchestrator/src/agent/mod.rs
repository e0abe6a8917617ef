//! Floor 3: the node's shell. Observes its replicas, asks `plan::node`, performs the actions. It knows no policy: why a
//! replica starts, leaves the routes or stops is decided in `plan`.

mod act;
mod jobs;
mod load;
pub mod neighbours;
mod replica;
mod routes;
mod standing;

pub use jobs::{Running, Start};
pub use replica::report;
pub use standing::Figures;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narae_runtime::{Backend, Digest, Instance, Prepared, Usage};
use tokio::sync::{Notify, OnceCell};

use crate::artifacts::Artifacts;
use crate::clock::Clock;
use crate::crashes::{Context, Crashes};
use crate::events::Events;
use crate::logs::Logs;
use crate::metrics::{Metrics, PHASES};
use crate::model::{Millis, Replica, ReplicaId, Revision, RevisionNumber, ServiceName};
use crate::plan::{Assignment, Group, NodeView, Note, Plan, ReplicaIdSeed, facts};
use crate::proxy::{Balancer, Service, Upstream};
use crate::secrets::Secrets;
use crate::store::keyvalue::KeyValues;
use crate::store::volumes::Volumes;

/// What the agent acts with.
#[derive(Clone)]
pub struct Tools {
    pub backend: Arc<dyn Backend>,
    pub blobs: Artifacts,
    pub keyvalues: Arc<KeyValues>,
    pub secrets: Arc<Secrets>,
    pub volumes: Arc<Volumes>,
    pub logs: Arc<Logs>,
    pub events: Arc<Events>,
    pub metrics: Arc<Metrics>,
    pub crashes: Arc<Crashes>,
    pub balancer: Arc<Balancer>,
    /// Where guests are started and probed: never the control runtime, which a spinning guest must not delay.
    pub guests: tokio::runtime::Handle,
    pub clock: Clock,
    /// Woken whenever a fact changed; carries no hint of which.
    pub wake: Arc<Notify>,
}

/// The node's shell.
pub struct Agent {
    tools: Tools,
    state: Mutex<State>,
    prepared: Mutex<BTreeMap<Digest, Arc<OnceCell<Prepared>>>>,
    jobs: jobs::Jobs,
    /// Code that is kept though no replica runs it: a schedule will.
    kept: Mutex<std::collections::BTreeSet<Digest>>,
    /// How services call each other.
    inside: Arc<neighbours::Inside>,
}

#[derive(Default)]
struct State {
    slots: BTreeMap<ReplicaId, Slot>,
    services: BTreeMap<ServiceName, Arc<Service>>,
    assigned: Assignment,
    published: Vec<(crate::model::service::Route, ServiceName)>,
    next_id: u64,
    jitter_seed: u64,
    notes: Vec<Note>,
    /// What the autoscaled services have used so far.
    used: BTreeMap<ServiceName, load::Used>,
}

/// One replica: its facts, and the things behind them.
struct Slot {
    facts: Replica,
    revision: Arc<Revision>,
    instance: Option<Arc<dyn Instance>>,
    upstream: Option<Arc<Upstream>>,
    /// Passed by `start_task`; a result of an older start is not for this life.
    life: u64,
    /// Processor time that the metrics have already.
    cpu_counted_ns: u64,
    /// And what the autoscaler has.
    cpu_seen_ns: u64,
}

/// One replica for `status`: facts and usage.
#[derive(Clone)]
pub struct Observed {
    pub facts: Replica,
    pub usage: Usage,
}

impl Agent {
    /// `jitter_seed` spreads back-offs; any number will do.
    pub fn new(tools: Tools, jitter_seed: u64) -> Arc<Self> {
        let state = State {
            next_id: 1,
            jitter_seed,
            ..State::default()
        };
        Arc::new(Self {
            inside: neighbours::Inside::new(Arc::clone(&tools.balancer)),
            tools,
            state: Mutex::new(state),
            prepared: Mutex::default(),
            jobs: jobs::Jobs::default(),
            kept: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Facts of every replica, in flight counts as of now.
    pub fn replicas(&self) -> Vec<Replica> {
        self.lock().slots.values().map(Slot::observe).collect()
    }

    /// Facts and usage of one service's replicas.
    pub fn observe(&self, service: &ServiceName) -> Vec<Observed> {
        let state = self.lock();
        let mine = state.slots.values().filter(|s| s.facts.service == *service);
        mine.map(|s| Observed {
            facts: s.observe(),
            usage: s.usage(),
        })
        .collect()
    }

    /// Brings what is read rather than counted up to date in the metrics: processor time, memory, replicas by phase.
    pub fn measure(&self) {
        let mut state = self.lock();
        let mut sums: BTreeMap<(ServiceName, RevisionNumber), Sum> = BTreeMap::new();
        for slot in state.slots.values_mut() {
            let usage = slot.usage();
            let sum = sums
                .entry((slot.facts.service.clone(), slot.facts.revision))
                .or_default();
            sum.cpu_ns += slot.uncounted_cpu();
            sum.memory_bytes += usage.memory_bytes;
            sum.restarts += slot.facts.restarts_total;
            let phase = crate::plan::words::phase(&slot.facts.phase);
            if let Some(n) = PHASES.iter().position(|p| *p == phase) {
                sum.phases[n] += 1;
            }
        }
        let services = state.services.clone();
        let wanted =
            |groups: &BTreeMap<RevisionNumber, Group>| groups.values().map(|g| u64::from(g.replicas)).sum::<u64>();
        let assigned = state.assigned.services.iter();
        let wanted: BTreeMap<_, _> = assigned.map(|(name, a)| (name.clone(), wanted(&a.groups))).collect();
        drop(state);
        for (key, (cpu_ns, memory_bytes)) in self.jobs.measure() {
            let sum = sums.entry(key).or_default();
            sum.cpu_ns += cpu_ns;
            sum.memory_bytes += memory_bytes;
        }
        for ((service, revision), sum) in &sums {
            let metrics = self.tools.metrics.revision(service, *revision);
            metrics.add_cpu(sum.cpu_ns);
            metrics.set_memory(sum.memory_bytes);
            metrics.set_replicas(sum.phases);
            metrics.set_restarts(sum.restarts);
        }
        for (name, service) in &services {
            if !self.tools.metrics.knows(name) {
                continue;
            }
            let live: Vec<RevisionNumber> = sums.keys().filter(|(s, _)| s == name).map(|(_, r)| *r).collect();
            self.tools.metrics.keep(name, &live);
            let metrics = self.tools.metrics.service(name);
            metrics.set_waiting(service.queued());
            metrics.set_volumes(self.tools.volumes.used(name));
            metrics.set_wanted(wanted.get(name).copied().unwrap_or(0));
        }
    }

    /// What the planners said last about this service.
    pub fn notes(&self, service: &ServiceName) -> Vec<Note> {
        self.lock()
            .notes
            .iter()
            .filter(|n| n.service == *service)
            .cloned()
            .collect()
    }

    /// The balancer's side of a service, to call it from inside.
    pub fn service(&self, name: &ServiceName) -> Option<Arc<Service>> {
        self.lock().services.get(name).cloned()
    }

    /// The running replica with this id, or the first of this revision.
    pub fn upstream(&self, service: &ServiceName, want: &Want) -> Option<Arc<Upstream>> {
        let state = self.lock();
        let fits = |s: &&Slot| {
            s.facts.service == *service
                && want.replica.is_none_or(|r| r == s.facts.id)
                && want.revision.is_none_or(|r| r == s.facts.revision)
        };
        state.slots.values().filter(fits).find_map(|s| s.upstream.clone())
    }

    /// What a crash report says of a replica beside its failure.
    pub fn context(&self, service: &ServiceName, revision: RevisionNumber, replica: ReplicaId) -> Context {
        if let Some(digest) = self.attempt_digest(service, replica) {
            let digest = Some(digest.to_string());
            return Context { digest, restarts: 0 };
        }
        let state = self.lock();
        let slot = state.slots.get(&replica).filter(|s| s.facts.service == *service);
        Context {
            digest: slot
                .filter(|s| s.facts.revision == revision)
                .map(|s| s.revision.digest.to_string()),
            restarts: slot.map_or(0, |s| s.facts.restarts_total),
        }
    }

    /// A module was stored: replicas that died because it could not be used are tried at once. True when there are any.
    pub fn module_came(&self, digest: Digest) -> bool {
        let mut state = self.lock();
        let mut any = false;
        for slot in state.slots.values_mut().filter(|s| s.revision.digest == digest) {
            any |= facts::preparable(&mut slot.facts);
        }
        any
    }

    /// Thousandths of the requests by revision, as told last; empty: all that serve are alike.
    pub fn split(&self, service: &ServiceName) -> BTreeMap<RevisionNumber, u32> {
        let state = self.lock();
        let assigned = state.assigned.services.get(service);
        assigned.map(|a| a.split.clone()).unwrap_or_default()
    }

    /// What it was told last.
    pub fn assigned(&self) -> Assignment {
        self.lock().assigned.clone()
    }

    /// One turn: observe, plan, act. Returns when to come again at the latest, and whether anything was done.
    pub fn step(
        self: &Arc<Self>,
        assignment: Assignment,
        fleet_notes: Vec<Note>,
        now: Millis,
    ) -> (Option<Millis>, bool) {
        let plan = {
            let mut state = self.lock();
            state.assigned = assignment;
            let view = NodeView {
                replicas: state.slots.values().map(Slot::observe).collect(),
                next_id: ReplicaIdSeed {
                    first: state.next_id,
                    jitter_seed: state.jitter_seed,
                },
            };
            let Plan {
                actions,
                notes,
                wake_at,
            } = crate::plan::node::node(&state.assigned, &view, now);
            state.notes = fleet_notes;
            state.notes.extend(notes);
            (actions, wake_at)
        };
        let (actions, wake_at) = plan;
        let acted = !actions.is_empty();
        for action in actions {
            self.act(action, now);
        }
        self.publish(now);
        (wake_at, acted)
    }

    /// Take everything out of the routes and stop it, when the process ends: drain first, each service its own time.
    pub async fn shut_down(&self, grace: std::time::Duration) {
        self.end_attempts();
        let stops: Vec<_> = {
            let mut state = self.lock();
            state
                .slots
                .values_mut()
                .filter_map(|s| s.instance.take())
                .map(|i| i.stop(grace))
                .collect()
        };
        futures::future::join_all(stops).await;
    }

    /// The balancer, to call a service from inside.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.tools.balancer
    }

    /// Where guests run that no connection drives.
    pub fn guests(&self) -> &tokio::runtime::Handle {
        &self.tools.guests
    }
}

/// What one revision's replicas add up to.
#[derive(Default)]
struct Sum {
    cpu_ns: u64,
    memory_bytes: u64,
    restarts: u64,
    phases: [u64; PHASES.len()],
}

/// Which replica an inside call is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want {
    pub replica: Option<ReplicaId>,
    pub revision: Option<RevisionNumber>,
}

impl Slot {
    fn observe(&self) -> Replica {
        let mut facts = self.facts.clone();
        if let Some(upstream) = &self.upstream {
            facts.in_flight = upstream.in_flight();
            facts.consecutive_traps = upstream.consecutive_traps();
            facts.consecutive_failures = upstream.consecutive_failures();
        }
        facts
    }

    /// Processor time since it was asked last, in nanoseconds.
    fn uncounted_cpu(&mut self) -> u64 {
        let now = self.usage().cpu_ns;
        now.saturating_sub(std::mem::replace(&mut self.cpu_counted_ns, now))
    }

    fn usage(&self) -> Usage {
        self.instance.as_ref().map(|i| i.usage()).unwrap_or_default()
    }
}
