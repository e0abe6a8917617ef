//! The job planner: what becomes of the runs of command services. Attempts start, are killed, are written down; runs end.
//! Beside the two planners of replicas, because a command has none: it reads the same desired state and is driven by the same
//! loop. Knows no processes and no clock.
//!
//! What is decided here rests on the record alone. An attempt that has ended blocks its place until the record says so, so that a
//! store that takes nothing begins nothing twice; what was under way when the process ended was never recorded and is
//! started again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::heal;
use super::status::{ServiceState, State};
use super::words;
use super::{Desired, DesiredService, Note, Plan, ReplicaIdSeed};
use crate::model::job::AttemptExit;
use crate::model::service::Job;
use crate::model::time::millis;
use crate::model::{
    JobRun, Millis, ReplicaId, Revision, RevisionNumber, RevisionState, RunId, RunState, ServiceName, Why,
};

/// A run that the daemon's end has cut off so often is not begun again: it may be what ends the daemon.
pub const INTERRUPTIONS: u32 = 10;

/// What is, seen from one node: kept by the shell, never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobsView {
    pub runs: BTreeMap<ServiceName, BTreeMap<RunId, Underway>>,
    /// Revisions that have yet to prove that they can be run.
    pub prepared: BTreeMap<ServiceName, (RevisionNumber, Preparation)>,
    /// Runs that were open when this process started.
    pub found: BTreeSet<(ServiceName, RunId)>,
    /// Ids for attempts that this plan starts: this one, the next, …
    pub next_id: ReplicaIdSeed,
}

/// Compiling and linking a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Preparation {
    UnderWay,
    Done,
    /// Why it cannot be: one printable sentence.
    Failed(String),
}

/// An open run of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Underway {
    /// When this process took it up.
    pub opened: Millis,
    /// How long it had been open in earlier processes.
    pub before_ms: u64,
    /// When an attempt failed last.
    pub failed_at: Option<Millis>,
    pub attempts: BTreeMap<ReplicaId, Attempt>,
}

impl Underway {
    /// How long the run has been open.
    pub fn ran_ms(&self, now: Millis) -> u64 {
        self.before_ms.saturating_add(millis(now.since(self.opened)))
    }
}

/// One attempt of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    pub since: Millis,
    pub phase: AttemptPhase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum AttemptPhase {
    Running,
    /// It was told to end.
    Killing,
    /// Not yet written down.
    Ended(AttemptExit),
}

impl Attempt {
    fn lives(&self) -> bool {
        !matches!(self.phase, AttemptPhase::Ended(_))
    }
}

/// What the shell does. Each names its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum JobAction {
    /// Compile and link, and remember the outcome.
    Prepare {
        service: ServiceName,
        revision: RevisionNumber,
    },
    /// The first run of a new revision that no schedule starts; open ones of older revisions are asked to end.
    Begin {
        service: ServiceName,
        revision: RevisionNumber,
    },
    /// It can be run: it becomes `stable`.
    Prove {
        service: ServiceName,
        revision: RevisionNumber,
    },
    Refuse {
        service: ServiceName,
        revision: RevisionNumber,
        why: Why,
        detail: String,
        back_to: Option<RevisionNumber>,
    },
    /// A deleted service of which nothing runs.
    Forget { service: ServiceName },
    /// Take up an open run. `lost`: an earlier process had it, and what was under way of it is gone; this is written down
    /// before anything of it starts again.
    Open {
        service: ServiceName,
        run: RunId,
        lost: bool,
    },
    Start {
        service: ServiceName,
        run: RunId,
        attempt: ReplicaId,
    },
    Kill {
        service: ServiceName,
        run: RunId,
        attempt: ReplicaId,
    },
    /// Write down an attempt that has ended.
    Record {
        service: ServiceName,
        run: RunId,
        attempt: ReplicaId,
        ran_ms: u64,
    },
    /// Nothing of it runs, and it is over.
    Finish {
        service: ServiceName,
        run: RunId,
        state: RunState,
        ran_ms: u64,
    },
    /// Its record is gone or closed, and nothing of it runs: no longer under way.
    Drop { service: ServiceName, run: RunId },
}

/// What a run of `revision` is.
pub fn job(revision: &Revision) -> Job {
    revision.spec.job.clone().unwrap_or_default()
}

/// The revision whose runs begin now: the wanted one, or the stable one when that was refused.
pub fn runnable(service: &DesiredService) -> Option<RevisionNumber> {
    let record = &service.record;
    let usable = |number: &RevisionNumber| {
        let revision = service.revisions.get(number);
        revision.is_some_and(|r| r.spec.is_job() && !matches!(r.state, RevisionState::Refused(_)))
    };
    Some(record.wanted)
        .filter(usable)
        .or_else(|| record.stable.filter(usable))
}

/// What should be done about runs. Linear in services, runs and attempts.
pub fn jobs(desired: &Desired, view: &JobsView, now: Millis) -> Plan<JobAction> {
    let mut planner = Planner {
        view,
        now,
        plan: Plan::default(),
        next: view.next_id.first,
    };
    static NO_RUNS: BTreeMap<RunId, Arc<JobRun>> = BTreeMap::new();
    for (name, service) in desired.services.iter().filter(|(_, s)| s.is_job()) {
        let runs = desired.runs.get(name).unwrap_or(&NO_RUNS);
        if planner.service(name, service, runs) {
            continue;
        }
        // A run that took the place of another begins when that has ended: the two never work side by side.
        let mut ending = false;
        for run in runs.values().filter(|run| run.is_open()) {
            planner.run(name, service, run, ending);
            ending |= run.cancel.is_some() && planner.lives(name, run.id);
        }
    }
    // What runs without an open record is nobody's wish any more.
    for (name, under_way) in &view.runs {
        let open = |id: &RunId| {
            let is_job = desired.services.get(name).is_some_and(DesiredService::is_job);
            is_job
                && desired
                    .runs
                    .get(name)
                    .and_then(|runs| runs.get(id))
                    .is_some_and(|r| r.is_open())
        };
        for (id, under_way) in under_way.iter().filter(|(id, _)| !open(id)) {
            if !planner.kill(name, *id, under_way) {
                planner.act(JobAction::Drop {
                    service: name.clone(),
                    run: *id,
                });
            }
        }
    }
    planner.plan
}

struct Planner<'a> {
    view: &'a JobsView,
    now: Millis,
    plan: Plan<JobAction>,
    next: u64,
}

impl Planner<'_> {
    fn act(&mut self, action: JobAction) {
        self.plan.actions.push(action);
    }

    fn note(&mut self, service: &ServiceName, revision: RevisionNumber, text: String) {
        self.plan.notes.push(Note {
            service: service.clone(),
            revision: Some(revision),
            replica: None,
            text,
        });
    }

    fn under_way(&self, service: &ServiceName, run: RunId) -> Option<&Underway> {
        self.view.runs.get(service)?.get(&run)
    }

    /// What becomes of the wanted revision, and of a service that is deleted. True: it is forgotten, with its runs.
    fn service(&mut self, name: &ServiceName, service: &DesiredService, runs: &BTreeMap<RunId, Arc<JobRun>>) -> bool {
        let record = &service.record;
        if record.deleting {
            let under_way = self.view.runs.get(name);
            let idle = under_way.is_none_or(|runs| runs.values().all(|u| u.attempts.values().all(|a| !a.lives())));
            if idle {
                self.act(JobAction::Forget { service: name.clone() });
            }
            return idle;
        }
        let Some(wanted) = service.revisions.get(&record.wanted) else {
            return false;
        };
        if wanted.state != RevisionState::Pending || record.stopped {
            return false;
        }
        let (service_name, revision) = (name.clone(), record.wanted);
        let preparation = self.view.prepared.get(name).filter(|(number, _)| *number == revision);
        match preparation.map(|(_, preparation)| preparation) {
            None => {
                self.note(name, revision, format!("revision {revision} is to be compiled"));
                self.act(JobAction::Prepare {
                    service: service_name,
                    revision,
                });
            }
            Some(Preparation::UnderWay) => {
                self.note(name, revision, format!("revision {revision} is being compiled"));
            }
            Some(Preparation::Failed(why)) => {
                self.note(name, revision, format!("revision {revision} is refused: {why}"));
                self.act(JobAction::Refuse {
                    service: service_name,
                    revision,
                    why: Why::CannotPrepare,
                    detail: why.clone(),
                    back_to: record.stable.filter(|_| wanted.spec.rollout.auto_rollback),
                });
            }
            // First the run, then the proof: a process that ends in between finds the run and begins no second one.
            Some(Preparation::Done)
                if !wanted.renewed
                    && !wanted.spec.is_scheduled()
                    && runs.values().all(|run| run.revision != revision) =>
            {
                self.act(JobAction::Begin {
                    service: service_name,
                    revision,
                });
            }
            Some(Preparation::Done) => self.act(JobAction::Prove {
                service: service_name,
                revision,
            }),
        }
        false
    }

    fn lives(&self, service: &ServiceName, run: RunId) -> bool {
        let under_way = self.under_way(service, run);
        under_way.is_some_and(|u| u.attempts.values().any(Attempt::lives))
    }

    /// `waits`: nothing of it starts now, because an older one is being ended.
    fn run(&mut self, name: &ServiceName, service: &DesiredService, run: &JobRun, waits: bool) {
        let Some(under_way) = self.under_way(name, run.id).cloned() else {
            let lost = self.view.found.contains(&(name.clone(), run.id));
            return self.act(JobAction::Open {
                service: name.clone(),
                run: run.id,
                lost,
            });
        };
        let ran_ms = under_way.ran_ms(self.now);
        for (attempt, _) in under_way.attempts.iter().filter(|(_, a)| !a.lives()) {
            self.act(JobAction::Record {
                service: name.clone(),
                run: run.id,
                attempt: *attempt,
                ran_ms,
            });
        }
        let revision = service.revisions.get(&run.revision);
        match verdict(service, run, revision.map(|r| job(r)).as_ref(), ran_ms) {
            Some(state) => {
                if !self.kill(name, run.id, &under_way) && under_way.attempts.is_empty() {
                    self.act(JobAction::Finish {
                        service: name.clone(),
                        run: run.id,
                        state,
                        ran_ms,
                    });
                }
            }
            None => {
                if let Some(revision) = revision {
                    self.go_on(name, run, revision, &under_way, waits);
                }
            }
        }
    }

    /// Tells what still lives to end. True: something does.
    fn kill(&mut self, name: &ServiceName, run: RunId, under_way: &Underway) -> bool {
        let mut living = false;
        for (id, attempt) in &under_way.attempts {
            living |= attempt.lives();
            if attempt.phase == AttemptPhase::Running {
                self.act(JobAction::Kill {
                    service: name.clone(),
                    run,
                    attempt: *id,
                });
            }
        }
        living
    }

    /// Attempts for the places that are free, after the back-off.
    fn go_on(&mut self, name: &ServiceName, run: &JobRun, revision: &Revision, under_way: &Underway, waits: bool) {
        let job = job(revision);
        self.plan.wake(
            under_way.opened.plus(
                job.timeout
                    .saturating_sub(std::time::Duration::from_millis(under_way.before_ms)),
            ),
        );
        let busy = words::count(under_way.attempts.len());
        let free = job
            .parallelism
            .min(job.completions.saturating_sub(run.succeeded))
            .saturating_sub(busy);
        if free == 0 || waits {
            return;
        }
        if let Some(failed_at) = under_way.failed_at {
            let delay = heal::backoff(
                &revision.spec.restart,
                run.failed,
                run.id.0,
                self.view.next_id.jitter_seed,
            );
            let until = failed_at.plus(delay);
            if self.now < until {
                self.plan.wake(until);
                let text = format!(
                    "run {}: waiting {} after {}",
                    run.id,
                    words::duration(delay),
                    words::many(run.failed, "failed attempt")
                );
                return self.note(name, run.revision, text);
            }
        }
        for _ in 0..free {
            self.act(JobAction::Start {
                service: name.clone(),
                run: run.id,
                attempt: ReplicaId(self.next),
            });
            self.next = self.next.saturating_add(1);
        }
    }
}

/// How the run ends, if it does.
fn verdict(service: &DesiredService, run: &JobRun, job: Option<&Job>, ran_ms: u64) -> Option<RunState> {
    let record = &service.record;
    let failed = |reason: String| Some(RunState::Failed { reason });
    let Some(job) = job else {
        return failed(format!("revision {} is not kept any more", run.revision));
    };
    if run.succeeded >= job.completions {
        return Some(RunState::Succeeded);
    }
    let asked = run.cancel.clone();
    let asked = asked.or_else(|| record.deleting.then(|| "the service is being deleted".to_owned()));
    if let Some(reason) = asked.or_else(|| record.stopped.then(|| "the service was stopped".to_owned())) {
        return Some(RunState::Cancelled { reason });
    }
    if run.failed > job.retries {
        let last = run.attempts.iter().rev().find(|a| a.exit.is_failure());
        let why = last.map_or_else(String::new, |a| format!(", the last {}", exit(&a.exit)));
        return failed(format!("{} failed{why}", words::many(run.failed, "attempt")));
    }
    if ran_ms >= millis(job.timeout) {
        return Some(RunState::TimedOut);
    }
    if run.interruptions > INTERRUPTIONS {
        return failed(format!("the daemon ended {} times while it ran", run.interruptions));
    }
    None
}

/// A fragment that follows "attempt": `ended with code 3`.
pub fn exit(exit: &AttemptExit) -> String {
    match exit {
        AttemptExit::Exited { code } => format!("ended with code {code}"),
        AttemptExit::Trapped { reason } => format!("trapped: {reason}"),
        AttemptExit::CannotPrepare { reason } => format!("cannot be prepared: {reason}"),
        AttemptExit::NoMemory => "found no memory left in the node's budget".into(),
        AttemptExit::Limit { limit } => format!("ran over its limit `{limit}`"),
        AttemptExit::Killed => "was ended".into(),
    }
}

/// The state of a run in one word.
pub const fn word(state: &RunState) -> &'static str {
    match state {
        RunState::Open => "running",
        RunState::Succeeded => "succeeded",
        RunState::Failed { .. } => "failed",
        RunState::TimedOut => "timed-out",
        RunState::Cancelled { .. } => "cancelled",
    }
}

/// Why a run ended as it did, when that was no success.
pub fn reason(run: &JobRun) -> Option<String> {
    match &run.state {
        RunState::Open | RunState::Succeeded => None,
        RunState::Failed { reason } => Some(reason.clone()),
        RunState::TimedOut => Some("its time limit `job.timeout` was reached".into()),
        RunState::Cancelled { reason } => Some(reason.clone()),
    }
}

/// How a command service is: as many replicas as attempts may be under way, those under way serving.
pub fn state(service: &DesiredService, runs: &BTreeMap<RunId, Arc<JobRun>>, under_way: u32) -> ServiceState {
    let record = &service.record;
    let answer = |state, reason| ServiceState {
        state,
        reason,
        wanted: 0,
        serving: 0,
        extra: under_way,
    };
    let left = || format!("{} left to end", words::many(under_way, "attempt"));
    if record.deleting {
        return answer(State::Deleting, Some(left()));
    }
    if record.stopped {
        let reason = if under_way > 0 {
            left()
        } else {
            "stopped by request".into()
        };
        return answer(State::Stopped, Some(reason));
    }
    let open: Vec<&Arc<JobRun>> = runs.values().filter(|run| run.is_open()).collect();
    if let Some(newest) = open.last() {
        let of = |run: &JobRun| service.revisions.get(&run.revision).map(|r| job(r)).unwrap_or_default();
        let places = |run: &&Arc<JobRun>| {
            let job = of(run);
            job.parallelism.min(job.completions.saturating_sub(run.succeeded))
        };
        let wanted = open.iter().map(places).fold(0, u32::saturating_add);
        let serving = under_way.min(wanted);
        return ServiceState {
            state: State::Running,
            reason: Some(progress(newest, &of(newest))),
            wanted,
            serving,
            extra: under_way - serving,
        };
    }
    let wanted = service.revisions.get(&record.wanted);
    let refused = wanted.and_then(|r| match &r.state {
        RevisionState::Refused(refusal) => Some(refusal.detail.clone()),
        _ => None,
    });
    if let (Some(why), None) = (&refused, record.stable) {
        let why = format!("revision {} was refused: {why}", record.wanted);
        return answer(State::Failed, Some(why));
    }
    if wanted.is_some_and(|r| r.state == RevisionState::Pending) {
        return answer(
            State::Starting,
            Some(format!("revision {} is being compiled", record.wanted)),
        );
    }
    let last = runs.values().next_back();
    let said = last.and_then(|run| Some(format!("run {}: {}", run.id, reason(run)?)));
    if wanted.is_some_and(|r| r.spec.is_scheduled()) {
        return answer(State::Scheduled, said);
    }
    match last.map(|run| &run.state) {
        Some(RunState::Succeeded | RunState::Open) => answer(State::Succeeded, None),
        Some(RunState::Cancelled { .. }) => answer(State::Cancelled, said),
        Some(RunState::Failed { .. } | RunState::TimedOut) => answer(State::Failed, said),
        None => answer(State::Starting, Some("no run has begun".into())),
    }
}

/// `run 3: 2 of 5 attempts succeeded, 1 failed`.
pub fn progress(run: &JobRun, job: &Job) -> String {
    let mut text = format!(
        "run {}: {} of {} succeeded",
        run.id,
        run.succeeded,
        words::many(job.completions, "attempt")
    );
    if run.failed > 0 {
        text.push_str(&format!(", {} failed", run.failed));
    }
    if let Some(why) = &run.cancel {
        text.push_str(&format!("; ending, because {why}"));
    }
    text
}

#[cfg(test)]
#[path = "job/tests.rs"]
mod tests;
