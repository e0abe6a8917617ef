//! What happened, for people and for `events`.

use serde::{Deserialize, Serialize};

use super::ids::{ReplicaId, RevisionNumber, ServiceName};
use super::time::Timestamp;

/// One event. `seq` grows by one; gaps mean that the ring dropped old ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub seq: u64,
    pub at: Timestamp,
    pub kind: EventKind,
    pub service: Option<ServiceName>,
    pub revision: Option<RevisionNumber>,
    pub replica: Option<ReplicaId>,
    /// One printable sentence.
    pub message: String,
    /// The limit that was hit, if one was: `memory`, `cpu_time`, …
    pub limit: Option<String>,
    /// Wasm frames of a trap, innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backtrace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    Deployed,
    /// Somebody let a revision through that wants more than the last one.
    Accepted,
    Started,
    Serving,
    Unready,
    Ejected,
    Draining,
    Stopped,
    Died,
    Restarting,
    CrashLoop,
    Trap,
    Limit,
    Proved,
    Refused,
    RolledBack,
    /// A rollout took a step, was paused, resumed, promoted.
    Rollout,
    Scaled,
    Deleted,
    Config,
    Secret,
    Node,
    /// A run of a command.
    RunBegan,
    AttemptEnded,
    RunEnded,
    Schedule,
}
