//! Floor 1: decisions. State and `now` in, actions and notes out; total, synchronous, without clock, randomness or ids of
//! their own. The shells (`controller`, `agent`) observe, call these, act, and sleep until `wake_at` or a signal.
//!
//! One turn of the shells: [`fleet::observe`], [`fleet::fleet`], perform its actions in order (store first, then the
//! assignment), [`node::node`], perform its actions in order, and again until both are empty; then sleep. Whatever was done
//! or seen goes into a replica's record through [`facts`], at once and before any task runs: an action is decided again as
//! long as its effect is not in the record. [`world::World`] is exactly this loop, in virtual time.

pub mod capabilities;
pub mod check;
pub mod check_jobs;
mod depends;
mod eject;
pub mod facts;
pub mod fleet;
pub mod gates;
pub mod heal;
mod health;
pub mod hold;
pub mod job;
pub mod node;
mod rolling;
pub mod rollout;
pub mod scale;
pub mod schedule;
pub mod status;
#[cfg(test)]
mod tests;
mod trial;
pub mod words;
pub mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::schedule::{ScheduleState, Schedules};
use crate::model::{
    Death, JobRun, Millis, Probing, Replica, ReplicaId, Revision, RevisionNumber, RunId, ServiceName, ServiceRecord,
    Why,
};

/// What a planner decided, why, and when to ask again at the latest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan<A> {
    pub actions: Vec<A>,
    pub notes: Vec<Note>,
    pub wake_at: Option<Millis>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Self {
            actions: Vec::new(),
            notes: Vec::new(),
            wake_at: None,
        }
    }
}

impl<A> Plan<A> {
    /// Ask again at `at` at the latest.
    pub(crate) fn wake(&mut self, at: Millis) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// Why something is done, or waited for. Shown by `status` and `rollout status`, read by tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    pub service: ServiceName,
    pub revision: Option<RevisionNumber>,
    pub replica: Option<ReplicaId>,
    /// One printable sentence: `waiting 10 ms before restart 1 of r3`.
    pub text: String,
}

/// What should be: the store's records, read in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Desired {
    pub services: BTreeMap<ServiceName, DesiredService>,
    /// What is kept of each schedule.
    pub schedules: Schedules,
    /// Runs of command services: all that are open, and the newest that have ended.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub runs: BTreeMap<ServiceName, BTreeMap<RunId, Arc<JobRun>>>,
}

impl Desired {
    /// What is kept of this schedule.
    pub fn state_of(&self, service: &ServiceName, schedule: &str) -> Option<&ScheduleState> {
        self.schedules.get(service)?.get(schedule).map(|state| &**state)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesiredService {
    pub record: ServiceRecord,
    /// The wanted and the stable revision, and each that still has replicas.
    pub revisions: BTreeMap<RevisionNumber, Arc<Revision>>,
}

impl DesiredService {
    /// It is run to its end instead of serving: the planners of replicas leave it alone.
    pub fn is_job(&self) -> bool {
        self.revisions
            .get(&self.record.wanted)
            .is_some_and(|revision| revision.spec.is_job())
    }
}

/// What is, seen from the leader: every replica of the node(s), and when each rollout began and last moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FleetView {
    pub replicas: Vec<Replica>,
    /// For each service whose wanted revision is on trial: when it was first seen, and when the set of serving new
    /// replicas last grew. Kept by [`fleet::observe`], which the shell calls before each plan.
    pub progress: BTreeMap<ServiceName, Progress>,
    /// Since when a service that wants replicas has none; [`fleet::observe`] keeps it. Bounds the wait for `depends_on`.
    pub empty: BTreeMap<ServiceName, Millis>,
    /// What the data path says of the autoscaled services now; the shell samples it before each [`fleet::observe`].
    pub loads: BTreeMap<ServiceName, scale::Load>,
    /// How far each autoscaled service is scaled, kept by [`fleet::observe`].
    pub scaling: BTreeMap<ServiceName, scale::Scaling>,
    /// What the node was told last.
    pub assigned: Assignment,
    /// The step that each rollout holds, or the trial that is measured; [`fleet::observe`] keeps it.
    pub stages: BTreeMap<ServiceName, rollout::Stage>,
    /// What the shell measured since those stages began; of a service without gates nothing.
    pub measures: BTreeMap<ServiceName, gates::Measures>,
    /// How many requests that were at the look before; [`fleet::observe`] keeps it.
    pub looked: BTreeMap<ServiceName, rollout::Looked>,
}

impl FleetView {
    /// The count that autoscale has found for this service.
    pub fn autoscaled(&self, name: &ServiceName) -> Option<u32> {
        self.scaling.get(name).map(|s| s.count)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub revision: RevisionNumber,
    pub since: Millis,
    pub moved: Millis,
    /// Most new replicas that served at once so far.
    pub serving: u32,
    /// At the last look it waited by its own choice: nobody looked while it did.
    pub waited: bool,
}

/// What one node should run. On a single machine the fleet planner writes it and the node planner reads it, in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// A service that is absent must not run here: drain and forget its replicas.
    pub services: BTreeMap<ServiceName, Assigned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assigned {
    /// Thousandths of the requests by revision, a thousand in all; empty: all replicas that serve are alike.
    pub split: BTreeMap<RevisionNumber, u32>,
    /// Replicas by revision; zero or absent: drain them.
    pub groups: BTreeMap<RevisionNumber, Group>,
    /// Scaled to zero by autoscale: requests are held until a replica serves.
    pub asleep: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub replicas: u32,
    /// Replicas of an older generation are replaced, new beside old.
    pub generation: u64,
    /// Not yet proved: a death is evidence against the revision, not a reason to wait for back-off.
    pub on_trial: bool,
    /// Keep what serves, up to `replicas`, until others serve: none is created, restarted or admitted.
    pub retiring: bool,
    /// Beyond `replicas`, while an older generation is replaced.
    pub surge: u32,
    /// Below `replicas`, while an older generation is replaced. With `surge` 0 too, the replacing waits.
    pub unavailable: u32,
    /// Of what leaves, instead of the file's `traffic.drain`: somebody asked for it.
    pub grace: Option<Duration>,
    pub revision: Arc<Revision>,
}

/// What is, seen from one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeView {
    pub replicas: Vec<Replica>,
    /// Ids for replicas that this plan creates: this one, the next, …
    pub next_id: ReplicaIdSeed,
}

/// First free replica id, and a seed for jitter: randomness is an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaIdSeed {
    pub first: u64,
    pub jitter_seed: u64,
}

/// What the leader's shell does: writes to the store, or a new assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum FleetAction {
    /// `revision` proved itself: it becomes `stable`.
    Prove {
        service: ServiceName,
        revision: RevisionNumber,
    },
    /// `revision` is refused; `back_to` becomes wanted again (none: nothing to go back to, or auto_rollback is off).
    Refuse {
        service: ServiceName,
        revision: RevisionNumber,
        why: Why,
        detail: String,
        back_to: Option<RevisionNumber>,
    },
    /// So many steps of the rollout of `revision` were held to their end.
    Step {
        service: ServiceName,
        revision: RevisionNumber,
        step: u32,
    },
    /// A deleted service whose last replica is gone.
    Forget { service: ServiceName },
    /// Tell the node.
    Assign { assignment: Assignment },
}

/// What the node's shell does. Each names its replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum NodeAction {
    /// A new replica, marked `Starting` before its start task runs.
    Create {
        replica: ReplicaId,
        service: ServiceName,
        revision: RevisionNumber,
        generation: u64,
    },
    /// Start a dead one again.
    Restart { replica: ReplicaId },
    /// Send one probe; the shell marks it `probing` and records the outcome.
    Probe { replica: ReplicaId, probe: Probing },
    /// The startup probe passed.
    Ready { replica: ReplicaId },
    /// Put it into the routes.
    Admit { replica: ReplicaId },
    /// Unready: out of the routes, not stopped.
    Withdraw { replica: ReplicaId },
    /// An outlier: out of the routes for its failures, back at `until` at the latest.
    Eject { replica: ReplicaId, until: Millis },
    /// Ejected long enough, or needed: into the routes again.
    Return { replica: ReplicaId },
    /// Out of the routes for good; stop when nothing is in flight, or at `until`.
    Drain { replica: ReplicaId, until: Millis },
    /// Stop it now.
    Stop { replica: ReplicaId },
    /// It is dead though it runs (probe ran out, traps in a row): out of the routes, end it, `Phase::Dead`.
    Kill { replica: ReplicaId, death: Death },
    /// Dead and not wanted: drop its record.
    Forget { replica: ReplicaId },
    /// It reached crash-loop now: an event.
    CrashLoop { replica: ReplicaId },
}
