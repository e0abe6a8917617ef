//! What a `[[schedule]]` says, and what is kept about each: when it was due last, whether it is paused, how it went. Plain
//! data; when a time comes is in [`super::calendar`], what is done then in `plan::schedule`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{ReplicaCount, ServiceName};
use super::time::Timestamp;

/// One `[[schedule]]` of a service file, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Unique in its service; `[a-z0-9-]`, 1 to 63.
    pub name: String,
    pub when: When,
    /// IANA name; the clock that `at` and `cron` mean.
    pub timezone: String,
    pub what: What,
    /// Of one try of a request, or of a run.
    pub timeout: Duration,
    pub overlap: Overlap,
    pub catch_up: CatchUp,
    /// Each time begins up to so much later.
    pub jitter: Duration,
    /// Further tries of a request that failed.
    pub retries: u32,
    /// Entries of the history that are kept, 1 to 100.
    pub history: u32,
}

/// When it is due.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Once, at this time of the zone's clock.
    At(jiff::civil::DateTime),
    /// 5 fields, or 6 with seconds first.
    Cron(String),
    /// At the multiples of this period since 1970-01-01T00:00:00Z.
    Every(Duration),
}

/// What is done then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// So many replicas, for so long; without `hold` until the next schedule of replicas, or `scale`.
    Replicas {
        replicas: ReplicaCount,
        hold: Option<Duration>,
    },
    /// One request into the service, through the balancer.
    Request { method: String, path: String },
    /// One run of a command.
    Run { args: Vec<String> },
}

/// What happens at a time when the last one is not done yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// The new one is skipped.
    #[default]
    Forbid,
    /// Both go on.
    Allow,
    /// The old one is ended.
    Replace,
}

/// What happens to times that nobody saw come: the node was down, or its clock was put forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatchUp {
    #[default]
    Skip,
    /// However many were missed: once, as soon as possible.
    Once,
}

/// A schedule of replicas that is in force, part of the service's record; the newest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub schedule: String,
    pub replicas: ReplicaCount,
    /// When it was due.
    pub due: Timestamp,
    /// None: until the next one.
    pub until: Option<Timestamp>,
}

/// What the store keeps of one schedule, key `schedules/<service>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    pub service: ServiceName,
    pub name: String,
    /// What `handled` is of: a schedule that means other times begins anew.
    pub when: When,
    pub timezone: String,
    /// Times up to and including this one are done with. In the beginning, when the schedule was first seen.
    pub handled: Timestamp,
    /// The latest time that was acted on, ever: it is not acted on again, whatever the clock says.
    #[serde(default)]
    pub fired: Option<Timestamp>,
    #[serde(default)]
    pub paused: bool,
    /// The revision in force does not have it: when one has it again, it begins anew.
    #[serde(default)]
    pub gone: bool,
    /// The oldest first.
    #[serde(default)]
    pub history: Vec<Firing>,
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    pub due: Timestamp,
    pub at: Timestamp,
    pub cause: Cause,
    pub outcome: Outcome,
    /// One printable sentence.
    pub detail: String,
    /// Tries of a request.
    #[serde(default)]
    pub attempts: u32,
    /// Times that this entry stands for: more than one for those missed or skipped in a row.
    #[serde(default = "one")]
    pub times: u32,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// How late it was: of each replica until it served, of a request until it was sent.
    #[serde(default)]
    pub skew: Option<Skew>,
}

const fn one() -> u32 {
    1
}

/// Lateness over all replicas of a burst (of one request: three times the same), in milliseconds after it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skew {
    pub min_ms: u64,
    pub median_ms: u64,
    pub max_ms: u64,
}

/// Why it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its time came.
    Due,
    /// Its time had been missed.
    CatchUp,
    /// `schedule run`.
    ByHand,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Begun: written down before anything is done.
    Running,
    Done,
    Failed,
    /// Its time came while nobody looked.
    Missed,
    /// Its time came and it was not done, on purpose.
    Skipped,
    /// A newer one took its place.
    Replaced,
    /// The process ended before it was known how it went.
    Interrupted,
}

/// All states of a store, by service and name.
pub type Schedules = BTreeMap<ServiceName, BTreeMap<String, Arc<ScheduleState>>>;

impl Overlap {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forbid => "forbid",
            Self::Allow => "allow",
            Self::Replace => "replace",
        }
    }
}

impl CatchUp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
        }
    }
}

impl Cause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::CatchUp => "catch-up",
            Self::ByHand => "by-hand",
        }
    }
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Missed => "missed",
            Self::Skipped => "skipped",
            Self::Replaced => "replaced",
            Self::Interrupted => "interrupted",
        }
    }
}

impl ScheduleState {
    /// Nothing is known yet: times up to `at` are none of its business.
    pub fn new(service: ServiceName, schedule: &Schedule, at: Timestamp) -> Self {
        Self {
            service,
            name: schedule.name.clone(),
            when: schedule.when.clone(),
            timezone: schedule.timezone.clone(),
            handled: at,
            fired: None,
            paused: false,
            gone: false,
            history: Vec::new(),
        }
    }

    /// Whether its times are those of `schedule`, and were all along.
    pub fn is_of(&self, schedule: &Schedule) -> bool {
        !self.gone && self.when == schedule.when && self.timezone == schedule.timezone
    }

    /// Writes one entry down, at most `keep` in all, beside those that are not done: only they tell that something is under
    /// way. One of a row of missed or skipped times joins the last.
    pub fn note(&mut self, entry: Firing, keep: u32) {
        match self.history.last_mut() {
            Some(last)
                if matches!(entry.outcome, Outcome::Missed | Outcome::Skipped)
                    && last.outcome == entry.outcome
                    && last.cause == entry.cause
                    && last.detail == entry.detail =>
            {
                last.times = last.times.saturating_add(entry.times);
                (last.due, last.at) = (entry.due, entry.at);
            }
            _ => self.history.push(entry),
        }
        let keep = usize::try_from(keep.clamp(1, 100)).unwrap_or(100);
        let mut surplus = self.history.len().saturating_sub(keep);
        let (mut at, last) = (0, self.history.len().saturating_sub(1));
        self.history.retain(|entry| {
            let goes = surplus > 0 && at < last && entry.outcome != Outcome::Running;
            surplus -= usize::from(goes);
            at += 1;
            !goes
        });
    }

    /// How many were begun and have not ended.
    pub fn open(&self) -> usize {
        self.history.iter().filter(|f| f.outcome == Outcome::Running).count()
    }

    /// The entry of a time that was begun and has not ended.
    pub fn running(&self, due: Timestamp, at: Timestamp) -> Option<usize> {
        self.history
            .iter()
            .rposition(|f| f.due == due && f.at == at && f.outcome == Outcome::Running)
    }
}
