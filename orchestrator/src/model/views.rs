//! The JSON contract of the API and of `-o json`: snake_case, durations in milliseconds (`_ms`), bytes as numbers, times
//! RFC 3339 UTC. A field is never renamed inside one major version.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every list: `{"schema":1,"items":[…]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    pub schema: u32,
    pub items: Vec<T>,
}

impl<T> List<T> {
    pub fn of(items: Vec<T>) -> Self {
        Self { schema: 1, items }
    }
}

/// One line of `narae list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    pub name: String,
    /// The wanted revision.
    pub revision: u64,
    pub stable: Option<u64>,
    /// `healthy`, `starting`, `rolling`, `degraded`, `crash-loop`, `failed`, `stopped`, `deleting`.
    pub state: String,
    /// Why, when the state is not healthy: one sentence.
    pub reason: Option<String>,
    pub replicas_wanted: u32,
    pub replicas_serving: u32,
    /// Replicas beyond `replicas_serving` of any revision that are starting or draining.
    pub replicas_extra: u32,
    pub routes: Vec<String>,
    /// Over the last minute.
    pub requests_per_second: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub memory_bytes: u64,
    pub in_flight: u64,
    pub queued: u64,
    pub restarts: u64,
    pub created_at: String,
    pub changed_at: String,
    pub labels: std::collections::BTreeMap<String, String>,
}

/// `narae status NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub schema: u32,
    #[serde(flatten)]
    pub service: ServiceView,
    pub replicas: Vec<ReplicaView>,
    pub rollout: Option<RolloutView>,
    pub events: Vec<EventView>,
    pub logs: Vec<LogView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaView {
    pub id: String,
    pub revision: u64,
    /// `starting`, `started`, `idle`, `serving`, `draining`, `stopping`, `dead`.
    pub phase: String,
    pub since_ms: u64,
    pub in_flight: u64,
    pub restarts: u64,
    pub calls: u64,
    pub traps: u64,
    pub cpu_ms: u64,
    pub memory_bytes: u64,
    pub idle_instances: u64,
    /// Why it is dead, or died last: one sentence.
    pub reason: Option<String>,
}

/// `narae rollout status NAME`: the last change of revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutView {
    pub schema: u32,
    pub service: String,
    pub from: Option<u64>,
    pub to: u64,
    /// `running`, `done`, `refused`.
    pub state: String,
    pub reason: Option<String>,
    /// What the planner says now, newest last.
    pub notes: Vec<String>,
    pub old_serving: u32,
    pub new_serving: u32,
    pub wanted: u32,
}

/// One line of `narae rollout history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionView {
    pub revision: u64,
    pub digest: String,
    pub kind: String,
    /// `pending`, `proved`, `refused`, `superseded`.
    pub state: String,
    pub stable: bool,
    pub wanted: bool,
    pub cause: String,
    pub reason: Option<String>,
    pub created_at: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    pub seq: u64,
    pub at: String,
    pub kind: String,
    pub service: Option<String>,
    pub revision: Option<u64>,
    pub replica: Option<String>,
    pub message: String,
    pub limit: Option<String>,
    pub backtrace: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogView {
    pub at: String,
    pub service: String,
    pub revision: u64,
    pub replica: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub level: String,
    /// Escapes and control bytes made visible.
    pub line: String,
}

/// One stored module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModuleView {
    pub digest: String,
    pub size_bytes: u64,
    pub kind: String,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// `service@revision` that refer to it.
    pub used_by: Vec<String>,
}

/// `GET /v1/node`, `narae version` of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    pub schema: u32,
    pub name: String,
    pub version: String,
    pub http: Vec<String>,
    pub admin: Option<String>,
    /// `pooling` or `on-demand`, and why.
    pub allocator: String,
    pub memory_budget_bytes: u64,
    pub memory_used_bytes: u64,
    pub uptime_ms: u64,
    pub services: u64,
    pub replicas_serving: u64,
}

/// One mistake of a file, also the body of a 4xx answer: `{"schema":1,"errors":[…]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProblemView {
    /// `E0042`.
    pub code: String,
    pub message: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub column: Option<u32>,
    pub help: Option<String>,
    /// The message as it is printed, without colour.
    pub rendered: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problems {
    pub schema: u32,
    pub errors: Vec<ProblemView>,
}

/// `PUT /v1/services/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeployRequest {
    /// The service file as text.
    pub toml: String,
    /// Its name in messages.
    #[serde(default)]
    pub file: Option<String>,
    /// Digest of the module, uploaded before.
    pub digest: String,
    /// Fails with 412 unless the service's wanted revision is this one; 0: the service must not exist.
    #[serde(default)]
    pub if_revision: Option<u64>,
    /// Check everything, change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Shown in the history.
    #[serde(default)]
    pub cause: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeployAnswer {
    pub schema: u32,
    pub service: String,
    pub revision: u64,
    /// False: the same module and file are already wanted.
    pub changed: bool,
    pub previous: Option<u64>,
}
