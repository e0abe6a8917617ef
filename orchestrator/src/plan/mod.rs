//! Floor 1: decisions. State and `now` in, actions and notes out; total, synchronous, without clock, randomness or ids of
//! their own. The shells (`controller`, `agent`) observe, call these, act, and sleep until `wake_at` or a signal.
//!
//! One turn of the shells: [`fleet::observe`], [`fleet::fleet`], perform its actions in order (store first, then the
//! assignment), [`node::node`], perform its actions in order, and again until both are empty; then sleep. Whatever was done
//! or seen goes into a replica's record through [`facts`], at once and before any task runs: an action is decided again as
//! long as its effect is not in the record. [`world::World`] is exactly this loop, in virtual time.

pub mod check;
mod depends;
pub mod facts;
pub mod fleet;
pub mod heal;
mod health;
pub mod node;
mod rolling;
pub mod status;
#[cfg(test)]
mod tests;
mod trial;
pub mod words;
pub mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::model::{
    Death, Millis, Probing, Replica, ReplicaId, Revision, RevisionNumber, ServiceName, ServiceRecord, Why,
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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesiredService {
    pub record: ServiceRecord,
    /// The wanted and the stable revision, and each that still has replicas.
    pub revisions: BTreeMap<RevisionNumber, Arc<Revision>>,
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
    /// What the node was told last.
    pub assigned: Assignment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub revision: RevisionNumber,
    pub since: Millis,
    pub moved: Millis,
    /// Most new replicas that served at once so far.
    pub serving: u32,
}

/// What one node should run. On a single machine the fleet planner writes it and the node planner reads it, in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Assignment {
    /// A service that is absent must not run here: drain and forget its replicas.
    pub services: BTreeMap<ServiceName, Assigned>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assigned {
    /// Replicas by revision; zero or absent: drain them.
    pub groups: BTreeMap<RevisionNumber, Group>,
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
