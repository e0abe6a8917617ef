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
    /// `healthy`, `starting`, `rolling`, `degraded`, `crash-loop`, `failed`, `stopped`, `scheduled`, `deleting`; of a command
    /// `starting`, `running`, `succeeded`, `failed`, `cancelled`, `scheduled`, `stopped`, `deleting`.
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
    /// The first time to come of its schedules.
    #[serde(default)]
    pub next_schedule: Option<NextView>,
    /// Of a service with `[autoscale]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<AutoscaleView>,
}

/// How far the load has scaled a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AutoscaleView {
    pub min: u32,
    pub max: u32,
    pub wanted: u32,
    /// `concurrency`, `rps`, `cpu`, `queue`.
    pub metric: String,
    /// Of one replica now, in the metric's unit (`cpu`: percent of a processor).
    pub load: f64,
    pub target: f64,
    /// Why the number was changed last.
    pub cause: String,
    /// `12 of 2..20, concurrency 8.1 of 44.8 per replica`.
    pub summary: String,
}

/// The first time to come of a service's schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NextView {
    pub schedule: String,
    pub at: String,
    /// The zone whose clock the schedule means.
    pub timezone: String,
}

/// One line of `narae schedule list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleView {
    pub service: String,
    pub name: String,
    /// `waiting`, `running`, `in-force` (its number of replicas holds), `paused`, `stopped` (its service is), `over`.
    pub state: String,
    /// `at 2026-12-01T00:00:00`, `cron 0 2 * * *`, `every 15 min`.
    pub when: String,
    pub timezone: String,
    /// `100 replicas for 120 min`, `POST /tasks/report`.
    pub what: String,
    /// Times to come.
    pub next: Vec<String>,
    /// When its number of replicas ends to hold.
    pub in_force_until: Option<String>,
    pub last: Option<FiringView>,
}

/// One line of `narae schedule history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FiringView {
    pub schedule: String,
    pub due_at: String,
    pub at: String,
    pub ended_at: Option<String>,
    /// `due`, `catch-up`, `by-hand`.
    pub cause: String,
    /// `running`, `done`, `failed`, `missed`, `skipped`, `replaced`, `interrupted`.
    pub outcome: String,
    pub detail: String,
    /// Tries of a request.
    pub attempts: u32,
    /// Times that were missed or skipped in a row.
    pub times: u32,
    /// After it was due: replicas until they served, a request until it was sent.
    pub skew_min_ms: Option<u64>,
    pub skew_median_ms: Option<u64>,
    pub skew_max_ms: Option<u64>,
}

/// `narae status NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    pub schema: u32,
    #[serde(flatten)]
    pub service: ServiceView,
    pub replicas: Vec<ReplicaView>,
    /// Of a command: the kept runs, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunView>,
    pub rollout: Option<RolloutView>,
    pub events: Vec<EventView>,
    pub logs: Vec<LogView>,
}

/// One run of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    pub id: u64,
    pub revision: u64,
    /// `deploy`, `restart`, `schedule nightly`.
    pub cause: String,
    /// Instead of the file's `args`.
    pub args: Option<Vec<String>>,
    /// `running`, `succeeded`, `failed`, `timed-out`, `cancelled`.
    pub state: String,
    /// Why it did not succeed, or is being ended: one sentence.
    pub reason: Option<String>,
    /// Attempts that must succeed; none when its revision is not kept any more.
    pub completions: Option<u32>,
    pub succeeded: u32,
    pub failed: u32,
    /// How often the daemon ended while it was open.
    pub interruptions: u32,
    /// The exit code of the newest attempt that had one.
    pub last_code: Option<i32>,
    /// The newest, the oldest first; those under way last.
    pub attempts: Vec<AttemptView>,
    pub created_at: String,
    pub ended_at: Option<String>,
}

/// One attempt of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptView {
    /// Its lines in `logs` have this id.
    pub replica: String,
    /// `running`, `stopping`, `ended` (not yet written down), `succeeded`, `failed`, `killed`.
    pub state: String,
    /// Of `wasi:cli/exit`.
    pub code: Option<i32>,
    /// How it ended, when that was no success: one sentence.
    pub reason: Option<String>,
    /// Of one that has ended.
    pub started_at: Option<String>,
    pub ran_ms: u64,
    pub cpu_ms: u64,
    pub memory_bytes: u64,
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
    /// It serves, but is out of the routes for a time because its calls kept failing.
    #[serde(default)]
    pub ejected: bool,
    /// Why it is dead, or died last: one sentence.
    pub reason: Option<String>,
}

/// `narae rollout status NAME`: the last change of revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// `rolling`, `canary`, `blue-green`, `recreate`.
    #[serde(default)]
    pub strategy: String,
    /// The step that is prepared or held, from 1; none after the last, and for strategies without steps.
    #[serde(default)]
    pub step: Option<u32>,
    #[serde(default)]
    pub steps: u32,
    #[serde(default)]
    pub paused: bool,
    /// Of the step that is held.
    #[serde(default)]
    pub hold_left_ms: Option<u64>,
    /// Who gets which share of the requests now.
    #[serde(default)]
    pub split: Vec<ShareView>,
    /// What was measured since the step began, while gates are open.
    #[serde(default)]
    pub gates: Option<GatesView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShareView {
    pub revision: u64,
    /// Of the requests.
    pub percent: f64,
    /// Replicas in the routes.
    pub serving: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GatesView {
    /// Fewer say nothing.
    pub min_requests: u64,
    pub new: FiguresView,
    pub stable: FiguresView,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FiguresView {
    pub requests: u64,
    /// Answered with 500 or above, or failed.
    pub errors: u64,
    pub traps: u64,
    pub p99_ms: Option<f64>,
    /// Processor time of a request, the median.
    pub cpu_ms: Option<f64>,
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
    /// Who let through that it wants more than the one before.
    #[serde(default)]
    pub accepted_by: Option<String>,
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

/// One crash report: a call that trapped or hit a limit, or the death of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CrashView {
    pub schema: u32,
    /// `c17`: grows by one, also over restarts of the daemon.
    pub id: String,
    pub at: String,
    /// `call` or `death`.
    pub kind: String,
    pub service: String,
    pub revision: u64,
    pub replica: String,
    /// Of the module, if it was still known.
    pub digest: Option<String>,
    pub reason: String,
    pub limit: Option<String>,
    /// Wasm frames with their names, innermost first.
    pub backtrace: Vec<String>,
    /// The last lines that the replica wrote.
    pub log: Vec<String>,
    /// Of this replica until then.
    pub restarts: u64,
    /// Reports of this service that were not written since the one before: too many came in a minute.
    pub not_written: u64,
    /// Of narae.
    pub version: String,
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
    /// The revision may want more than the last one; without it, 409 and the list.
    #[serde(default)]
    pub accept: bool,
    /// In place of the file's `rollout.strategy`, for this deploy.
    #[serde(default)]
    pub strategy: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeployAnswer {
    pub schema: u32,
    pub service: String,
    pub revision: u64,
    /// False: the same module and file are already wanted.
    pub changed: bool,
    pub previous: Option<u64>,
    /// What the revision wants beyond the last one, and what it does without; of a first deploy everything.
    #[serde(default)]
    pub capabilities: Vec<CapabilityView>,
    /// Who let it through, where somebody had to.
    #[serde(default)]
    pub accepted_by: Option<String>,
}

/// One difference in what a revision may touch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapabilityView {
    /// `added`, `removed`.
    pub change: String,
    /// `interface`, `outbound`, `secret`, `volume`, `keyvalue`, `rule`.
    pub kind: String,
    pub name: String,
    /// It is one that a revision after the first is asked about.
    pub asks: bool,
}

/// One secret, without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    pub name: String,
    pub version: u64,
    pub changed_at: String,
    /// `service@revision` of the wanted and stable revisions that read it.
    pub used_by: Vec<String>,
    /// False: another key than this node's sealed it.
    pub readable: bool,
}

/// `PUT /v1/secrets/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretAnswer {
    pub schema: u32,
    pub name: String,
    pub version: u64,
    /// False: it had this value already.
    pub changed: bool,
    /// The revisions that were made because of it.
    pub services: Vec<SecretRollout>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRollout {
    pub service: String,
    pub revision: u64,
}
