//! Runs of a command service: what was asked for, and what its attempts came to. Records that the store keeps; what is under
//! way right now is known to the node alone.

use serde::{Deserialize, Serialize};

use super::ids::{ReplicaId, RevisionNumber, ServiceName};
use super::time::Timestamp;

/// A service's runs are numbered 1, 2, 3, …; a number is never used twice while the service exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

/// One run of one revision, key `runs/<service>/<id>`: written when it begins, at each attempt's end, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRun {
    pub id: RunId,
    pub service: ServiceName,
    pub revision: RevisionNumber,
    /// `deploy`, `restart`, `schedule nightly`.
    pub cause: String,
    /// Instead of the file's `args`.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    pub state: RunState,
    /// It was asked to end, and why: its attempts are killed, then it is cancelled.
    #[serde(default)]
    pub cancel: Option<String>,
    /// Attempts that ended with code 0.
    pub succeeded: u32,
    /// Attempts that ended otherwise; those killed by us and those lost with the daemon are not among them.
    pub failed: u32,
    /// How often the daemon ended while this run was open.
    #[serde(default)]
    pub interruptions: u32,
    /// How long it had been open, without the time that the daemon was down, when it was written last.
    #[serde(default)]
    pub ran_ms: u64,
    /// The newest attempts, the oldest first, at most [`Self::ATTEMPTS`].
    pub attempts: Vec<Attempt>,
    pub created_at: Timestamp,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

impl JobRun {
    /// So many attempts are kept with their details; the counts are of all.
    pub const ATTEMPTS: usize = 20;

    pub fn is_open(&self) -> bool {
        self.state == RunState::Open
    }

    /// A run that has just begun.
    pub fn begun(
        (id, service, revision): (RunId, ServiceName, RevisionNumber),
        cause: String,
        args: Option<Vec<String>>,
        at: Timestamp,
    ) -> Self {
        Self {
            id,
            service,
            revision,
            cause,
            args,
            state: RunState::Open,
            cancel: None,
            succeeded: 0,
            failed: 0,
            interruptions: 0,
            ran_ms: 0,
            attempts: Vec::new(),
            created_at: at,
            ended_at: None,
        }
    }

    /// An attempt has ended, when the run had been open for `ran_ms`.
    pub fn count(&mut self, attempt: Attempt, ran_ms: u64) {
        self.succeeded = self.succeeded.saturating_add(u32::from(attempt.exit.is_success()));
        self.failed = self.failed.saturating_add(u32::from(attempt.exit.is_failure()));
        self.ran_ms = self.ran_ms.max(ran_ms);
        let surplus = (self.attempts.len() + 1).saturating_sub(Self::ATTEMPTS);
        self.attempts.drain(..surplus);
        self.attempts.push(attempt);
    }

    /// The exit code of the newest attempt that had one.
    pub fn last_code(&self) -> Option<i32> {
        self.attempts.iter().rev().find_map(|a| match a.exit {
            AttemptExit::Exited { code } => Some(code),
            _ => None,
        })
    }
}

/// How a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Attempts are under way, or wait for their back-off.
    Open,
    /// As many attempts as `job.completions` ended with code 0.
    Succeeded,
    /// More attempts than `job.retries` failed; one printable sentence.
    Failed { reason: String },
    /// `job.timeout` passed.
    TimedOut,
    /// It was asked to end.
    Cancelled { reason: String },
}

/// One attempt that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its lines in `logs` have this id.
    pub replica: ReplicaId,
    pub exit: AttemptExit,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    /// Processor time.
    pub cpu_ms: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exit", rename_all = "snake_case")]
pub enum AttemptExit {
    /// By itself.
    Exited { code: i32 },
    /// A trap; one printable sentence.
    Trapped { reason: String },
    /// The module could not be read, compiled or linked.
    CannotPrepare { reason: String },
    /// No memory in the node's budget.
    NoMemory,
    /// Its own processor time limit.
    Limit { limit: String },
    /// By us: the run was cancelled, failed or timed out.
    Killed,
}

impl AttemptExit {
    pub fn is_success(&self) -> bool {
        *self == Self::Exited { code: 0 }
    }

    /// Counts against `job.retries`.
    pub fn is_failure(&self) -> bool {
        !self.is_success() && *self != Self::Killed
    }
}
