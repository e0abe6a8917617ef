//! What no plan of runs may do, by the names of [`super::check`]: L2 never more attempts under way than `job.parallelism`, never more
//! successes than `job.completions`. L4 only what is there is acted on, once, and nothing runs for who does not want it. L6 a
//! run that has ended, was asked to end or has used up its retries starts nothing. Judges a plan by what was seen; knows nothing of how
//! the planner thinks.

use std::collections::BTreeSet;

use super::Plan;
use super::check::{Breach, Law};
use super::job::{AttemptPhase, JobAction, JobsView, Underway, job};
use super::{Desired, DesiredService};
use crate::model::time::millis;
use crate::model::{JobRun, Millis, ReplicaId, RevisionState, RunId, RunState, ServiceName};

/// Laws that a plan of runs breaks.
pub fn job_breaches(desired: &Desired, before: &JobsView, plan: &Plan<JobAction>, now: Millis) -> Vec<Breach> {
    let mut judge = Judge {
        desired,
        before,
        now,
        found: Vec::new(),
        started: BTreeSet::new(),
        done: Vec::new(),
    };
    for action in &plan.actions {
        judge.action(action);
    }
    for (name, service) in desired.services.iter().filter(|(_, s)| s.is_job()) {
        for run in desired.runs.get(name).into_iter().flat_map(|runs| runs.values()) {
            judge.crowd(name, service, run);
        }
    }
    judge.found
}

struct Judge<'a> {
    desired: &'a Desired,
    before: &'a JobsView,
    now: Millis,
    found: Vec<Breach>,
    /// Attempts that this plan starts.
    started: BTreeSet<(&'a ServiceName, RunId, ReplicaId)>,
    done: Vec<JobAction>,
}

impl<'a> Judge<'a> {
    fn breach(&mut self, law: Law, service: &ServiceName, replica: Option<ReplicaId>, text: &str) {
        self.found.push(Breach {
            law,
            service: Some(service.clone()),
            replica,
            text: text.to_owned(),
        });
    }

    fn unless(&mut self, holds: bool, law: Law, service: &ServiceName, text: &str) {
        if !holds {
            self.breach(law, service, None, text);
        }
    }

    fn run(&self, service: &ServiceName, run: RunId) -> Option<&'a JobRun> {
        self.desired.runs.get(service)?.get(&run).map(|run| &**run)
    }

    fn under_way(&self, service: &ServiceName, run: RunId) -> Option<&'a Underway> {
        self.before.runs.get(service)?.get(&run)
    }

    fn phase(&self, service: &ServiceName, run: RunId, attempt: ReplicaId) -> Option<&'a AttemptPhase> {
        let attempt = self.under_way(service, run)?.attempts.get(&attempt)?;
        Some(&attempt.phase)
    }

    fn action(&mut self, action: &'a JobAction) {
        let once = !self.done.contains(action);
        match action {
            JobAction::Open { service, run, .. } => {
                let fits =
                    self.run(service, *run).is_some_and(JobRun::is_open) && self.under_way(service, *run).is_none();
                self.unless(
                    once && fits,
                    Law::L4,
                    service,
                    "a run is taken up that is not open, or twice",
                );
            }
            JobAction::Start { service, run, attempt } => self.start(service, *run, *attempt),
            JobAction::Kill { service, run, attempt } => {
                let fits = self.phase(service, *run, *attempt) == Some(&AttemptPhase::Running);
                self.unless(once && fits, Law::L4, service, "what does not run is killed, or twice");
            }
            JobAction::Record {
                service, run, attempt, ..
            } => {
                let fits = matches!(self.phase(service, *run, *attempt), Some(AttemptPhase::Ended(_)));
                self.unless(
                    once && fits,
                    Law::L4,
                    service,
                    "what has not ended is written down, or twice",
                );
            }
            JobAction::Finish {
                service, run, state, ..
            } => self.finish(service, *run, state, once),
            JobAction::Drop { service, run } => {
                let idle = self.under_way(service, *run).is_some_and(|u| lives(u) == 0);
                let open = self.run(service, *run).is_some_and(JobRun::is_open);
                self.unless(
                    once && idle && !open,
                    Law::L4,
                    service,
                    "a run is dropped while it is open or something of it runs",
                );
            }
            JobAction::Forget { service } => {
                let idle = self
                    .before
                    .runs
                    .get(service)
                    .is_none_or(|runs| runs.values().all(|u| lives(u) == 0));
                let deleting = self.desired.services.get(service).is_some_and(|s| s.record.deleting);
                self.unless(
                    once && idle && deleting,
                    Law::L4,
                    service,
                    "forgotten while wanted or while something runs",
                );
            }
            JobAction::Begin { service, revision } => {
                let runs = self
                    .desired
                    .runs
                    .get(service)
                    .into_iter()
                    .flat_map(|runs| runs.values());
                let first = runs.into_iter().all(|run| run.revision != *revision);
                let pending = self.pending(service, *revision);
                self.unless(
                    once && first && pending,
                    Law::L4,
                    service,
                    "a run begins that nobody asked for",
                );
            }
            JobAction::Prepare { service, revision }
            | JobAction::Prove { service, revision }
            | JobAction::Refuse { service, revision, .. } => {
                let pending = self.pending(service, *revision);
                self.unless(
                    once && pending,
                    Law::L4,
                    service,
                    "a revision is judged that is not on trial",
                );
            }
        }
        self.done.push(action.clone());
    }

    fn pending(&self, service: &ServiceName, revision: crate::model::RevisionNumber) -> bool {
        self.desired.services.get(service).is_some_and(|s| {
            let wanted = s.revisions.get(&s.record.wanted);
            wanted.is_some_and(|r| r.number == revision && r.state == RevisionState::Pending)
                && !s.record.deleting
                && !s.record.stopped
        })
    }

    fn start(&mut self, service: &'a ServiceName, run: RunId, attempt: ReplicaId) {
        let fresh = attempt.0 >= self.before.next_id.first && self.started.insert((service, run, attempt));
        self.unless(fresh, Law::L4, service, "an attempt has the id of another");
        let (Some(record), Some(under_way), Some(s)) = (
            self.run(service, run),
            self.under_way(service, run),
            self.desired.services.get(service),
        ) else {
            return self.breach(
                Law::L4,
                service,
                Some(attempt),
                "an attempt of no run that is under way",
            );
        };
        let Some(job) = s.revisions.get(&record.revision).map(|r| job(r)) else {
            return self.breach(Law::L6, service, Some(attempt), "an attempt of a revision that is gone");
        };
        let wanted = record.is_open() && record.cancel.is_none() && !s.record.stopped && !s.record.deleting;
        self.unless(wanted, Law::L6, service, "an attempt of a run that is over starts");
        self.unless(
            record.failed <= job.retries,
            Law::L6,
            service,
            "an attempt starts after the retries are used up",
        );
        let late = under_way.ran_ms(self.now) >= millis(job.timeout);
        self.unless(!late, Law::L6, service, "an attempt starts past the time limit");
    }

    fn finish(&mut self, service: &ServiceName, run: RunId, state: &RunState, once: bool) {
        let open = self.run(service, run).is_some_and(JobRun::is_open);
        let idle = self.under_way(service, run).is_some_and(|u| u.attempts.is_empty());
        self.unless(
            once && open && idle,
            Law::L6,
            service,
            "a run ends while something of it is under way, or twice",
        );
        let known = self.desired.services.get(service).and_then(|s| {
            let record = self.run(service, run)?;
            Some((record, s.revisions.get(&record.revision).map(|r| job(r))?))
        });
        if let Some((record, job)) = known {
            let enough = record.succeeded >= job.completions;
            let truth = enough == (*state == RunState::Succeeded);
            self.unless(
                truth,
                Law::Proof,
                service,
                "a run succeeds that has not, or fails that has",
            );
        }
    }

    /// Attempts under way after the plan, and successes that could come of them.
    fn crowd(&mut self, name: &'a ServiceName, service: &DesiredService, run: &JobRun) {
        let under_way = self.under_way(name, run.id);
        let held = under_way.map_or(0, |u| u.attempts.len());
        let started = self
            .started
            .iter()
            .filter(|(s, id, _)| *s == name && *id == run.id)
            .count();
        let Some(job) = service.revisions.get(&run.revision).map(|r| job(r)) else {
            return;
        };
        let parallelism = usize::try_from(job.parallelism).unwrap_or(usize::MAX);
        let completions = usize::try_from(job.completions).unwrap_or(usize::MAX);
        let succeeded = usize::try_from(run.succeeded).unwrap_or(usize::MAX);
        self.unless(
            held + started <= parallelism,
            Law::L2,
            name,
            "more attempts are under way than job.parallelism",
        );
        self.unless(
            succeeded.saturating_add(held + started) <= completions.max(held),
            Law::L2,
            name,
            "more attempts are under way than job.completions are left",
        );
        self.unless(
            run.succeeded <= job.completions,
            Law::L2,
            name,
            "more successes than job.completions",
        );
    }
}

fn lives(under_way: &Underway) -> usize {
    let living = |a: &&super::job::Attempt| !matches!(a.phase, AttemptPhase::Ended(_));
    under_way.attempts.values().filter(living).count()
}
