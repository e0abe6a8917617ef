//! A checked service: what a service file means, with every default filled in. `config` makes it; nothing else may.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use narae_runtime::{Digest, Limits, Outbound};
use serde::{Deserialize, Serialize};

use super::ids::{ReplicaCount, ServiceName};
pub use super::rollout::{Compare, Gates, Pin, Step, Strategy};

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
    /// Environment variable of the guest by the name of the secret that fills it.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    pub limits: Limits,
    pub routes: Vec<Route>,
    pub traffic: Traffic,
    pub startup: StartupProbe,
    pub readiness: Option<ReadinessProbe>,
    #[serde(default)]
    pub liveness: Option<LivenessProbe>,
    pub restart: Restart,
    pub rollout: Rollout,
    /// Replicas by load; `replicas` is the first count only.
    #[serde(default)]
    pub autoscale: Option<Autoscale>,
    pub keyvalue: Vec<KeyValueStore>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    pub outbound: Outbound,
    pub logs: Logs,
    #[serde(default)]
    pub schedules: Vec<super::schedule::Schedule>,
    /// What a run of it is: there for world `command`, and only then.
    #[serde(default)]
    pub job: Option<Job>,
}

impl ServiceSpec {
    /// It is run to its end instead of serving: no replica of it ever exists.
    pub fn is_job(&self) -> bool {
        self.world == World::Command
    }

    /// A schedule begins its runs, not a deploy.
    pub fn is_scheduled(&self) -> bool {
        !self.schedules.is_empty()
    }
}

/// `[job]`: what one run of a command is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// So many attempts must end with code 0.
    pub completions: u32,
    /// Attempts at once, at most.
    pub parallelism: u32,
    /// Failed attempts that a run survives, all together.
    pub retries: u32,
    /// Wall clock of a whole run, and processor time of one attempt.
    pub timeout: Duration,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            completions: 1,
            parallelism: 1,
            retries: 3,
            timeout: Duration::from_secs(600),
        }
    }
}

impl ServiceSpec {
    /// Every secret the file names, whatever for: a revision pins a version of each.
    pub fn secret_names(&self) -> BTreeSet<&str> {
        let credentials = self.outbound.credentials.iter().map(|c| c.secret.as_str());
        let passwords = self.keyvalue.iter().filter_map(|store| store.password.as_deref());
        let variables = self.secrets.values().map(String::as_str);
        variables.chain(credentials).chain(passwords).collect()
    }
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

/// One way in: host and path prefix, and what else a request must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    pub host: HostPattern,
    /// Starts with `/`, no trailing `/` except for the root itself; matches on whole segments.
    pub path: String,
    /// Only these; empty: all.
    #[serde(default)]
    pub methods: BTreeSet<String>,
    /// Each with exactly this value; names in lower case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Parameters of the query, each with exactly this value.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// The guest does not see `path`.
    #[serde(default)]
    pub strip: bool,
    /// Plain HTTP is sent to HTTPS, where the node has it.
    #[serde(default)]
    pub https_redirect: bool,
}

impl Route {
    /// Every request for this host below this path.
    pub fn of(host: HostPattern, path: impl Into<String>) -> Self {
        Self {
            host,
            path: path.into(),
            methods: BTreeSet::new(),
            headers: BTreeMap::new(),
            query: BTreeMap::new(),
            strip: false,
            https_redirect: false,
        }
    }

    /// Whether some request fits both and nothing says which of them goes first.
    pub fn clashes(&self, other: &Self) -> bool {
        let alike = self.host == other.host && self.path == other.path;
        let asks_alike = self.headers == other.headers && self.query == other.query;
        let both_all = self.methods.is_empty() && other.methods.is_empty();
        alike && asks_alike && (both_all || !self.methods.is_disjoint(&other.methods))
    }
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
    /// So many traps in a row make a replica dead, so many failures in a row eject it.
    pub consecutive_failures: u32,
    /// How long the first ejection lasts; the n-th in a row n times as long.
    #[serde(default = "Traffic::eject")]
    pub eject: Duration,
    /// Of the serving replicas so many may be ejected at once, shares rounded down. Never all of them.
    #[serde(default = "Traffic::max_ejected")]
    pub max_ejected: Amount,
    /// For requests in flight when a replica leaves.
    pub drain: Duration,
    /// A request may ask for a revision.
    #[serde(default)]
    pub pin: Option<Pin>,
}

impl Traffic {
    fn eject() -> Duration {
        Duration::from_secs(10)
    }

    fn max_ejected() -> Amount {
        Amount::Percent(50)
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            retry_attempts: 1,
            consecutive_failures: 5,
            eject: Self::eject(),
            max_ejected: Self::max_ejected(),
            drain: Duration::from_secs(30),
            pin: None,
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

/// Alive or to be restarted. 200 to 399 counts as alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivenessProbe {
    pub path: String,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many failures in a row and the replica is dead.
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
    /// `backoff.initial` of a job: what a command calls needs longer to come back than a replica to start.
    pub const JOB_INITIAL: Duration = Duration::from_secs(1);
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
    #[serde(default)]
    pub strategy: Strategy,
    /// Of a canary, or the one of a blue-green rollout; empty: the defaults of the strategy.
    #[serde(default)]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub gates: Option<Gates>,
    /// Percent of the wanted replicas, rounded up, at least 1 with `max_unavailable` 0.
    pub max_surge: Amount,
    pub max_unavailable: Amount,
    /// A new replica counts after serving so long.
    pub min_healthy: Duration,
    /// No progress for so long refuses the revision.
    pub progress_deadline: Duration,
    pub auto_rollback: bool,
    /// What happens to a revision that wants more than the one before.
    #[serde(default)]
    pub capabilities: Wanting,
    pub keep_revisions: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: Strategy::Rolling,
            steps: Vec::new(),
            gates: None,
            max_surge: Amount::Percent(100),
            max_unavailable: Amount::Count(0),
            min_healthy: Duration::from_secs(1),
            progress_deadline: Duration::from_secs(60),
            auto_rollback: true,
            capabilities: Wanting::Ask,
            keep_revisions: 20,
        }
    }
}

/// `rollout.capabilities`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanting {
    /// It stops until a person accepts it.
    #[default]
    Ask,
    Allow,
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

/// How many replicas the load asks for, within bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscale {
    /// 0: scaled to zero after `idle` without a request.
    pub min: u32,
    pub max: u32,
    pub metric: ScaleMetric,
    /// Of one replica: a share of `limits.concurrency` or of a processor, requests per second, or waiting requests.
    pub target: Amount,
    /// A load of twice the target is answered at once, and nothing is taken away for so long.
    pub panic_window: Duration,
    pub up: ScaleStep,
    pub down: ScaleStep,
    pub idle: Duration,
}

/// What the load of a service is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleMetric {
    /// Requests in flight and waiting; target in percent of `limits.concurrency`.
    #[default]
    Concurrency,
    /// Requests per second; a number.
    Rps,
    /// Processor time per time; target in percent of one processor.
    Cpu,
    /// Requests waiting beside those in flight; a number.
    Queue,
}

impl ScaleMetric {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Rps => "rps",
            Self::Cpu => "cpu",
            Self::Queue => "queue",
        }
    }
}

/// At most so many replicas of change in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleStep {
    pub step: Amount,
    pub window: Duration,
}

impl Default for Autoscale {
    fn default() -> Self {
        Self {
            min: 2,
            max: 20,
            metric: ScaleMetric::Concurrency,
            target: Amount::Percent(70),
            panic_window: Duration::from_secs(6),
            up: ScaleStep {
                step: Amount::Percent(100),
                window: Duration::from_secs(6),
            },
            down: ScaleStep {
                step: Amount::Percent(25),
                window: Duration::from_secs(60),
            },
            idle: Duration::from_secs(300),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValueStore {
    pub name: String,
    #[serde(default)]
    pub backend: KeyValueBackend,
    /// The secret that is the password of the backend.
    #[serde(default)]
    pub password: Option<String>,
    pub size_bytes: u64,
}

/// `[[volume]]`: a directory of the service, shared by its replicas on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// A DNS label; also its directory's name on the node.
    pub name: String,
    /// Where the guest finds it: absolute, no trailing `/`, not inside another.
    pub mount: String,
    /// Quota.
    pub size_bytes: u64,
    pub read_only: bool,
}

/// Where a store is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyValueBackend {
    /// A file of this node.
    #[default]
    Embedded,
    /// `redis://[user@]host:port/db`, never with a password.
    Redis(String),
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
