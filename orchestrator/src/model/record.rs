//! What the store keeps: desired state and the history of revisions.

use std::collections::BTreeMap;

use narae_runtime::{Digest, Kind};
use serde::{Deserialize, Serialize};

use super::ids::{ReplicaCount, RevisionNumber, ServiceName};
use super::rollout::RolloutRecord;
use super::service::ServiceSpec;
use super::time::Timestamp;

/// Desired state of one service, key `services/<name>`. One `wanted` and one `stable` revision; no deployment object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub name: ServiceName,
    /// The revision that should serve.
    pub wanted: RevisionNumber,
    /// The last revision that proved itself; keeps serving until `wanted` has, and is what a refusal goes back to.
    pub stable: Option<RevisionNumber>,
    /// The number the next revision gets.
    pub next_revision: RevisionNumber,
    /// Set by `scale`; wins over the file's `replicas` until the next deploy.
    pub scaled: Option<ReplicaCount>,
    /// The newest revision that `scaled` holds for: a newer one begins with its own file's count, and what serves meanwhile
    /// (or again, after a refusal) keeps the number it was scaled to. None: it holds for all.
    #[serde(default)]
    pub scaled_under: Option<RevisionNumber>,
    /// Schedules of replicas that are in force, the newest last: its number holds, over `scaled` and the file. `scale` ends them.
    #[serde(default)]
    pub scheduled: Vec<super::schedule::Hold>,
    /// Counts `scale`s by hand: an autoscaled service goes on from each.
    #[serde(default)]
    pub scalings: u64,
    /// How far the rollout of `wanted` is; none: at its beginning.
    #[serde(default)]
    pub rollout: Option<RolloutRecord>,
    /// `stop` was asked for: no replica runs, the routes answer 503.
    pub stopped: bool,
    /// Counts `restart`s: replicas of an older generation are replaced, new beside old.
    pub generation: u64,
    /// `delete` was asked for: drained, then forgotten.
    pub deleting: bool,
    /// `--grace` of the last `stop`, `restart` or `delete`: requests in flight get so long instead of the file's `traffic.drain`.
    /// What is asked for next takes it back.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    pub created_at: Timestamp,
    pub changed_at: Timestamp,
}

/// One immutable revision, key `revisions/<name>/<n>`; only `state` ever changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub service: ServiceName,
    pub number: RevisionNumber,
    pub digest: Digest,
    pub kind: Kind,
    pub spec: ServiceSpec,
    /// The TOML as it was sent.
    pub source: String,
    pub created_at: Timestamp,
    /// `deploy`, `undo to 3`, …
    pub cause: String,
    pub state: RevisionState,
    /// The version of each secret that its guests are given, chosen when the revision was made.
    #[serde(default)]
    pub secrets: BTreeMap<String, u64>,
    /// What it wanted beyond the one before, and who let it through; none: nothing, or nobody was asked.
    #[serde(default)]
    pub accepted: Option<Accepted>,
    /// Made because a secret changed, of one that was deployed before: of a command it begins no run.
    #[serde(default)]
    pub renewed: bool,
}

impl Revision {
    /// The same again, as one that is yet to prove itself. What was to begin with this one begins with that one, and nothing else.
    #[must_use]
    pub fn again(&self, number: RevisionNumber, cause: String, at: Timestamp) -> Self {
        Self {
            number,
            cause,
            created_at: at,
            state: RevisionState::Pending,
            accepted: None,
            renewed: self.renewed || self.state != RevisionState::Pending,
            ..self.clone()
        }
    }
}

/// `--accept`: a person's word that a revision may have what the one before had not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// `uid 1000 (ana)`, `the admin token`.
    pub by: String,
    /// As it was shown: `outbound https://payments.example.test`.
    pub what: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RevisionState {
    /// Being rolled out, or waiting for it.
    Pending,
    /// Proved itself; `stable` of its service, or was once.
    Proved { at: Timestamp },
    /// Never tried again by itself.
    Refused(Refusal),
    /// Another revision was deployed before this one was proved.
    Superseded { at: Timestamp },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub why: Why,
    /// One printable sentence for people.
    pub detail: String,
    pub at: Timestamp,
}

/// Why a revision was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Why {
    /// Its start trapped three times.
    StartTrapped,
    /// The startup probe ran out.
    NeverReady,
    /// No progress within `rollout.progress_deadline`.
    NoProgress,
    /// New replicas died after they were serving, before the revision was proved.
    Died,
    /// It could not be compiled or linked.
    CannotPrepare,
    /// Someone asked: `rollout abort`, `undo`.
    Asked,
    /// A gate failed: errors, traps, time or processor time.
    Gate,
}
