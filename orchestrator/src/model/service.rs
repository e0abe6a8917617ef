//! A checked service: what a service file means, with every default filled in. `config` makes it; nothing else may.

use std::collections::BTreeMap;
use std::time::Duration;

use narae_runtime::{Digest, Limits, Outbound};
use serde::{Deserialize, Serialize};

use super::ids::{ReplicaCount, ServiceName};

/// Everything a service file says. Immutable once it is part of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub description: Option<String>,
    /// As written: a path relative to the file. The daemon never opens it.
    pub module: String,
    /// Pinned by the file; the uploaded module must have it.
    pub digest: Option<Digest>,
    pub world: World,
    pub args: Vec<String>,
    pub replicas: ReplicaCount,
    /// Start order only.
    pub depends_on: Vec<ServiceName>,
    pub labels: BTreeMap<String, String>,
    pub env: BTreeMap<String, String>,
    /// Read by the guest through `wasi:config`.
    pub config: BTreeMap<String, String>,
    pub limits: Limits,
    pub routes: Vec<Route>,
    pub traffic: Traffic,
    pub startup: StartupProbe,
    pub readiness: Option<ReadinessProbe>,
    pub restart: Restart,
    pub rollout: Rollout,
    pub keyvalue: Vec<KeyValueStore>,
    pub outbound: Outbound,
    pub logs: Logs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// Read from the artifact.
    #[default]
    Auto,
    Http,
    Command,
}

/// One way in: host and path prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    pub host: HostPattern,
    /// Starts with `/`, no trailing `/` except for the root itself; matches on whole segments.
    pub path: String,
}

/// Lower case, without port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPattern {
    Any,
    /// Exactly this host.
    Exact(String),
    /// `*.example.test`: exactly one label before this suffix (kept without `*.`).
    OneLabel(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Tries on another replica for calls that never reached a guest: 0 or 1.
    pub retry_attempts: u32,
    /// So many traps in a row make a replica dead.
    pub consecutive_failures: u32,
    /// For requests in flight when a replica leaves.
    pub drain: Duration,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            retry_attempts: 1,
            consecutive_failures: 5,
            drain: Duration::from_secs(30),
        }
    }
}

/// Passed once, after the start. Without `path`: one in-process GET of the first route's path with user-agent
/// `narae-probe`, an answer below 500 counts; without a route, one successful instantiation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupProbe {
    /// With a path, 200 to 399 counts.
    pub path: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many failures in a row and the start has failed.
    pub failures: u32,
}

impl Default for StartupProbe {
    fn default() -> Self {
        Self {
            path: None,
            interval: Duration::from_millis(200),
            timeout: Duration::from_secs(1),
            failures: 40,
        }
    }
}

/// In the routes or out of them. 200 to 399 counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessProbe {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    pub failures: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    Always,
    /// Restart what died by a failure, not what ended by itself with success.
    OnFailure,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    pub policy: RestartPolicy,
    pub initial: Duration,
    pub max: Duration,
    /// In thousandths: 2000 doubles.
    pub factor_milli: u32,
    pub jitter: bool,
    /// So many deaths …
    pub give_up_restarts: u32,
    /// … within this time: state crash-loop, an event, and slow retries at `max`.
    pub give_up_within: Duration,
}

impl Restart {
    /// Back-off starts anew after so long healthy.
    pub const RESET_AFTER: Duration = Duration::from_secs(60);
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Always,
            initial: Duration::from_millis(10),
            max: Duration::from_secs(30),
            factor_milli: 2000,
            jitter: true,
            give_up_restarts: 10,
            give_up_within: Duration::from_secs(300),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Percent of the wanted replicas, rounded up, at least 1 with `max_unavailable` 0.
    pub max_surge: Amount,
    pub max_unavailable: Amount,
    /// A new replica counts after serving so long.
    pub min_healthy: Duration,
    /// No progress for so long refuses the revision.
    pub progress_deadline: Duration,
    pub auto_rollback: bool,
    pub keep_revisions: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: Amount::Percent(100),
            max_unavailable: Amount::Count(0),
            min_healthy: Duration::from_secs(1),
            progress_deadline: Duration::from_secs(60),
            auto_rollback: true,
            keep_revisions: 20,
        }
    }
}

/// A number of replicas, or a share of the wanted ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    Count(u32),
    Percent(u32),
}

impl Amount {
    /// Replicas for `wanted`, shares rounded up.
    pub fn of(self, wanted: u32) -> u32 {
        match self {
            Self::Count(n) => n,
            Self::Percent(p) => u32::try_from((u64::from(wanted) * u64::from(p)).div_ceil(100)).unwrap_or(u32::MAX),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValueStore {
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    pub level: LogLevel,
    /// Lines per second; the surplus is counted and reported.
    pub lines_per_second: u32,
    /// Ring in memory.
    pub keep_bytes: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            level: LogLevel::Info,
            lines_per_second: 200,
            keep_bytes: 4 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}
