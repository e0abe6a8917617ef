//! One replica of this node as its planner sees it: facts that the shell observed, never wishes.

use serde::{Deserialize, Serialize};

use super::ids::{ReplicaId, RevisionNumber, ServiceName};
use super::time::Millis;

/// A replica keeps its id over restarts: it is a slot that is made alive again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub id: ReplicaId,
    pub service: ServiceName,
    pub revision: RevisionNumber,
    /// `ServiceRecord::generation` it was created under.
    pub generation: u64,
    pub phase: Phase,
    /// Deaths since the last reset (60 s healthy); drives back-off.
    pub restarts: u32,
    /// Restarts since it was created; for people.
    pub restarts_total: u64,
    /// When it died lately, oldest first, at most `give_up_restarts` of them; drives crash-loop.
    pub deaths: Vec<Millis>,
    /// The last death, kept while it lives again.
    pub last_death: Option<(Millis, Death)>,
    /// Consecutive starts that failed (trap at start); a start that succeeds resets it.
    pub start_failures: u32,
    /// Consecutive failures of the probe that is due in this phase.
    pub probe_failures: u32,
    /// What the last failed probe said, printable; gone when a probe passes.
    pub probe_error: Option<String>,
    /// It reached crash-loop (an event was written); a reset takes it back.
    pub crash_loop: bool,
    /// When the last probe ended.
    pub probed_at: Option<Millis>,
    /// When the last probe was sent; its interval counts from here, so that slow answers do not stretch it.
    pub probe_sent: Option<Millis>,
    /// A probe is under way.
    pub probing: Option<Probing>,
    /// What the last readiness probes say; true when there is no readiness probe.
    pub ready: bool,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Traps in a row, as the balancer counted.
    pub consecutive_traps: u32,
    /// Calls in a row that reached the guest and failed (trap, timeout, no proper answer, 5xx), as the balancer counted.
    #[serde(default)]
    pub consecutive_failures: u32,
    /// Out of the routes for its failures until then, though it serves.
    #[serde(default)]
    pub ejected_until: Option<Millis>,
    /// Ejections in a row: each lasts longer.
    #[serde(default)]
    pub ejections: u32,
    #[serde(default)]
    pub live: Live,
}

/// What the liveness probes said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// When the last one was sent, or when it first could have been.
    pub sent: Option<Millis>,
    /// One is under way.
    pub asking: bool,
    /// Failures in a row.
    pub failures: u32,
    /// What the last failure said, printable.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probing {
    Startup,
    Readiness,
    Liveness,
}

/// Where a replica is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Its start task runs (compile, link, instantiate).
    Starting { since: Millis },
    /// Instantiated; the startup probe has not passed yet. Not in the routes.
    Started { since: Millis },
    /// Startup passed, but not in the routes (not admitted yet, or not ready).
    Idle { since: Millis },
    /// In the routes.
    Serving { since: Millis },
    /// Out of the routes, finishing what is in flight until `until`.
    Draining { since: Millis, until: Millis },
    /// Its stop task runs.
    Stopping { since: Millis },
    /// Not running. Restarted by back-off or forgotten.
    Dead { at: Millis, death: Death },
}

/// Why a replica died or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "death", rename_all = "snake_case")]
pub enum Death {
    /// Instantiation or a start function trapped; the reason, printable.
    StartTrapped { reason: String },
    /// Could not be compiled or linked.
    CannotPrepare { reason: String },
    /// No memory in the node's budget for one instance: says nothing about the revision.
    NoMemory,
    /// The startup probe ran out of tries.
    StartupProbe { last: String },
    /// The liveness probe failed so many times in a row.
    Liveness { last: String },
    /// `outlier.consecutive_failures` traps in a row.
    Traps { reason: String },
    /// It ended by itself.
    Exited { code: i32 },
    /// It was stopped by us.
    Stopped,
}
