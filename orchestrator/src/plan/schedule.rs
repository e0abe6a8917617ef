//! The schedules of all services: what is due, missed, prepared ahead, over. Decides by two clocks that it is handed: the
//! wall clock says what time it is, the monotonic one how long something lasts. Performs nothing.
//!
//! A time is written down as done with before anything is done about it, and a time that was acted on is never acted on
//! again: a request is sent at most once for one time (and as often again as `retries` says). The wall clock is looked at
//! anew every [`LOOK`] at the latest, so a step of it is noticed; however many times it jumped over, one is caught up, or none.

mod effects;

pub use effects::{begins, expired, finished, fired, held, passed, scheduled, set_paused, what};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::status::going_to;
use super::{Desired, DesiredService, Note, Plan, words};
use crate::model::calendar::{MOST_MISSED, Times, between, plus};
use crate::model::schedule::{CatchUp, Cause, Outcome, Overlap, Schedule, ScheduleState, Skew, What};
use crate::model::time::millis;
use crate::model::{
    JobRun, Millis, Phase, Replica, ReplicaId, Revision, RevisionNumber, RunId, RunState, ServiceName, ServiceRecord,
    Timestamp,
};

/// Compiled and linked so long before it is due: enough for a large module.
pub const LEAD: Duration = Duration::from_secs(30);
/// Later than this a time was missed: a busy machine, or a restart of the daemon, is on time still.
pub const GRACE: Duration = Duration::from_secs(10);
/// While a schedule waits the wall clock is looked at so often.
pub const LOOK: Duration = Duration::from_secs(30);
/// A clock put back further was wrong before: the schedule begins anew instead of waiting until that time comes again.
pub const BACK: Duration = Duration::from_secs(24 * 3600);
/// A burst that does not serve whole after so long is told as it is.
pub const BURST_WAIT: Duration = Duration::from_secs(60);
/// With `overlap = "allow"` no more than this many of one schedule.
pub const RUNNING_OF_ONE: usize = 16;
/// And of all schedules of the node.
pub const RUNNING_OF_ALL: usize = 256;

/// Why a run is ended for the next one.
pub const REPLACED: &str = "the next one was due, and overlap is \"replace\"";

/// A schedule: its service and its name.
pub type Key = (ServiceName, String);

/// What the planner sees beside the store. The shell keeps it, and [`observe`] what follows from looking.
#[derive(Clone, Debug, Default)]
pub struct ScheduleView {
    /// Requests and runs that were begun and whose end is not written down yet.
    pub running: BTreeMap<Key, Vec<Begun>>,
    /// Schedules of replicas whose replicas are not all there yet.
    pub bursts: BTreeMap<Key, Burst>,
    /// Prepared ahead, and until when that is kept.
    pub prepared: BTreeMap<(ServiceName, RevisionNumber), Millis>,
    /// Spreads jitter; any number.
    pub seed: u64,
    memo: BTreeMap<Key, Memo>,
    ends: BTreeMap<Key, (Timestamp, Millis)>,
    /// Since when runs that schedules began are open.
    open: BTreeMap<(ServiceName, RunId), Millis>,
}

/// Which entry of the history something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Begun {
    pub due: Timestamp,
    pub at: Timestamp,
}

/// Replicas that a schedule asked for.
#[derive(Clone, Debug)]
pub struct Burst {
    pub begun: Begun,
    /// When it was due, as the monotonic clock counts.
    pub due: Millis,
    pub wanted: u32,
    /// Those that served before: they were not made for this.
    pub before: BTreeSet<ReplicaId>,
}

/// What was worked out once and holds while the schedule and `handled` are the same.
#[derive(Clone, Debug)]
struct Memo {
    times: Option<Arc<Times>>,
    of: ScheduleKey,
    handled: Timestamp,
    next: Option<Timestamp>,
}

type ScheduleKey = (crate::model::schedule::When, String);

/// What the leader's shell does. Each is written down before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum ScheduleAction {
    /// Seen for the first time, or it means other times than before, or the clock was put back by more than [`BACK`]: times
    /// up to `at` are none of its business.
    Begin {
        service: ServiceName,
        schedule: Schedule,
        at: Timestamp,
    },
    /// Compile and link now what will be needed soon.
    Prepare {
        service: ServiceName,
        revision: RevisionNumber,
        until: Millis,
    },
    /// Do what it says. `missed`: earlier times that nobody saw come. `replaces`: what was begun before is ended.
    Fire {
        service: ServiceName,
        schedule: Schedule,
        revision: RevisionNumber,
        due: Timestamp,
        at: Timestamp,
        cause: Cause,
        missed: u32,
        replaces: bool,
    },
    /// Its time came and nothing is done.
    Pass {
        service: ServiceName,
        schedule: Schedule,
        due: Timestamp,
        at: Timestamp,
        outcome: Outcome,
        detail: String,
        times: u32,
    },
    /// Its number of replicas does not hold any more.
    Expire {
        service: ServiceName,
        schedule: String,
        due: Timestamp,
    },
    /// What was begun has ended.
    Finish {
        service: ServiceName,
        schedule: String,
        begun: Begun,
        ended: Ended,
    },
    /// A run took longer than `timeout`.
    Cancel {
        service: ServiceName,
        run: RunId,
        reason: String,
    },
    /// The revision in force does not have it: times until one has it again are none of its business.
    Leave { service: ServiceName, schedule: String },
    /// No kept revision has it any more.
    Forget { service: ServiceName, schedule: String },
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    pub at: Timestamp,
    pub outcome: Outcome,
    pub detail: String,
    pub attempts: u32,
    pub skew: Option<Skew>,
}

impl Ended {
    pub fn failed(at: Timestamp, detail: String, attempts: u32) -> Self {
        Self {
            at,
            outcome: Outcome::Failed,
            detail,
            attempts,
            skew: None,
        }
    }
}

/// Runs that this schedule began and that are to end by themselves.
pub fn open_runs(desired: &Desired, (service, schedule): &Key) -> Vec<RunId> {
    let state = desired.state_of(service, schedule);
    let open = state
        .into_iter()
        .flat_map(|s| &s.history)
        .filter(|f| f.outcome == Outcome::Running);
    open.filter_map(|f| run_of(desired, service, schedule, Begun { due: f.due, at: f.at }))
        .filter(|run| run.is_open() && run.cancel.is_none())
        .map(|run| run.id)
        .collect()
}

/// The revision whose schedules are in force: the wanted one, or the stable one when that was refused.
pub fn in_force(service: &DesiredService) -> Option<&Revision> {
    going_to(service)
}

/// When a schedule fires next, jitter apart: None when never, or while it is paused or its service is stopped.
pub fn next_of(
    service: &DesiredService,
    schedule: &Schedule,
    state: Option<&ScheduleState>,
    wall: Timestamp,
) -> Option<Timestamp> {
    if service.record.stopped || service.record.deleting || state.is_some_and(|s| s.paused) {
        return None;
    }
    let after = state
        .filter(|s| s.is_of(schedule))
        .map_or(wall, |s| s.handled.max(wall));
    Times::of(schedule)?
        .next(after)
        .filter(|due| state.and_then(|s| s.fired) != Some(*due))
}

/// What a run that a schedule begins has as its cause: the one way back from the run to the entry of the history.
pub fn run_cause(schedule: &str, begun: Begun) -> String {
    format!("schedule {schedule}, due {}", begun.due.rfc3339())
}

fn run_of<'a>(desired: &'a Desired, service: &ServiceName, schedule: &str, begun: Begun) -> Option<&'a Arc<JobRun>> {
    let runs = desired.runs.get(service)?;
    let cause = run_cause(schedule, begun);
    runs.values().rev().find(|run| run.cause == cause)
}

/// Brings what the view remembers up to date: the next time of each schedule, and when the holds end by the monotonic clock. The
/// shell calls it before each [`schedules`].
pub fn observe(desired: &Desired, view: &mut ScheduleView, now: Millis, wall: Timestamp) {
    let (mut memo, mut ends, mut open) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, runs) in &desired.runs {
        for run in runs.values().filter(|run| run.is_open()) {
            let key = (name.clone(), run.id);
            let since = view.open.get(&key).copied().unwrap_or(now);
            open.insert(key, since);
        }
    }
    // What the store has as a run is known from there.
    for ((service, schedule), begun) in &mut view.running {
        begun.retain(|begun| run_of(desired, service, schedule, *begun).is_none());
    }
    view.running.retain(|_, begun| !begun.is_empty());
    for (name, service) in &desired.services {
        for hold in &service.record.scheduled {
            let Some(until) = hold.until else { continue };
            let key = (name.clone(), hold.schedule.clone());
            let known = view.ends.get(&key).copied().filter(|(due, _)| *due == hold.due);
            // A clock that is wrong now makes it no longer than the file says.
            let left = between(wall, until).min(between(hold.due, until));
            ends.insert(key, known.unwrap_or((hold.due, now.plus(left))));
        }
        let Some(revision) = in_force(service) else { continue };
        for schedule in &revision.spec.schedules {
            let Some(state) = desired.state_of(name, &schedule.name) else {
                continue;
            };
            let key = (name.clone(), schedule.name.clone());
            let of = (schedule.when.clone(), schedule.timezone.clone());
            let known = view.memo.remove(&key).filter(|m| m.of == of);
            let fresh = match known {
                Some(known) if known.handled == state.handled => known,
                known => {
                    let times = known.map_or_else(|| Times::of(schedule).map(Arc::new), |m| m.times);
                    let next = times.as_ref().and_then(|t| t.next(state.handled));
                    let handled = state.handled;
                    Memo {
                        times,
                        of,
                        handled,
                        next,
                    }
                }
            };
            memo.insert(key, fresh);
        }
    }
    (view.memo, view.ends, view.open) = (memo, ends, open);
    // One that is not in the store is not written yet, or will not be any more.
    view.bursts.retain(|(name, schedule), burst| {
        let listed = |s: &Arc<ScheduleState>| s.running(burst.begun.due, burst.begun.at).is_some();
        let states = desired
            .schedules
            .get(name)
            .filter(|_| desired.services.contains_key(name));
        let state = states.and_then(|states| states.get(schedule));
        state.is_some_and(|s| listed(s) || now < burst.due.plus(BURST_WAIT))
    });
    view.prepared.retain(|(name, number), until| {
        let there = desired
            .services
            .get(name)
            .is_some_and(|s| s.revisions.contains_key(number));
        there && now < *until
    });
}

/// What is due. Linear in schedules and replicas.
pub fn schedules(
    desired: &Desired,
    view: &ScheduleView,
    replicas: &[Replica],
    now: Millis,
    wall: Timestamp,
) -> Plan<ScheduleAction> {
    let running = view.running.values().map(Vec::len).sum();
    let mut planner = Planner {
        desired,
        view,
        replicas,
        now,
        wall,
        running,
        plan: Plan::default(),
    };
    for (name, service) in &desired.services {
        if !service.record.deleting {
            planner.service(name, service);
        }
    }
    planner.bursts();
    planner.plan
}

struct Planner<'a> {
    desired: &'a Desired,
    view: &'a ScheduleView,
    replicas: &'a [Replica],
    now: Millis,
    wall: Timestamp,
    /// Of all schedules, with those that this plan begins.
    running: usize,
    plan: Plan<ScheduleAction>,
}

impl Planner<'_> {
    fn service(&mut self, name: &ServiceName, service: &DesiredService) {
        let revision = in_force(service);
        let specs = revision.map_or(&[][..], |r| &r.spec.schedules);
        self.holds(name, &service.record, specs);
        if let Some(states) = self.desired.schedules.get(name) {
            for state in states.values() {
                self.leftovers(name, service, state);
            }
        }
        let Some(revision) = revision else { return };
        for schedule in specs {
            match self.desired.state_of(name, &schedule.name) {
                Some(state) if state.is_of(schedule) && plus(self.wall, BACK) >= state.handled => {
                    if !state.paused {
                        self.schedule(name, service, revision, schedule, state);
                    }
                }
                _ => self.plan.actions.push(ScheduleAction::Begin {
                    service: name.clone(),
                    schedule: schedule.clone(),
                    at: self.wall,
                }),
            }
        }
    }

    fn holds(&mut self, name: &ServiceName, record: &ServiceRecord, specs: &[Schedule]) {
        for hold in &record.scheduled {
            let meant = specs
                .iter()
                .any(|s| s.name == hold.schedule && matches!(s.what, What::Replicas { .. }));
            let key = (name.clone(), hold.schedule.clone());
            let end = self.view.ends.get(&key).filter(|(due, _)| *due == hold.due);
            match end {
                _ if !meant => {}
                Some((_, end)) if self.now < *end => {
                    self.plan.wake(*end);
                    continue;
                }
                Some(_) => {}
                None => continue,
            }
            self.plan.actions.push(ScheduleAction::Expire {
                service: name.clone(),
                schedule: hold.schedule.clone(),
                due: hold.due,
            });
        }
    }

    /// What an earlier process began and nobody drives any more; and schedules that no file has.
    fn leftovers(&mut self, name: &ServiceName, service: &DesiredService, state: &ScheduleState) {
        let key = (name.clone(), state.name.clone());
        let open = state.history.iter().filter(|f| f.outcome == Outcome::Running);
        for entry in open {
            let begun = Begun {
                due: entry.due,
                at: entry.at,
            };
            let driven = self.view.running.get(&key).is_some_and(|r| r.contains(&begun))
                || self.view.bursts.get(&key).is_some_and(|b| b.begun == begun);
            if driven {
                continue;
            }
            if let Some(run) = run_of(self.desired, name, &state.name, begun) {
                self.run(name, service, &state.name, begun, run);
            } else {
                self.plan.actions.push(ScheduleAction::Finish {
                    service: name.clone(),
                    schedule: state.name.clone(),
                    begun,
                    ended: Ended {
                        at: self.wall,
                        outcome: Outcome::Interrupted,
                        detail: "the daemon ended before it was known how it went".into(),
                        attempts: entry.attempts,
                        skew: entry.skew,
                    },
                });
            }
        }
        let named = |r: &Arc<Revision>| r.spec.schedules.iter().any(|s| s.name == state.name);
        let meant = in_force(service).is_some_and(|r| r.spec.schedules.iter().any(|s| s.name == state.name));
        if !meant && !state.gone && service.revisions.values().any(named) {
            self.plan.actions.push(ScheduleAction::Leave {
                service: name.clone(),
                schedule: state.name.clone(),
            });
        }
        if !service.revisions.values().any(named) {
            self.plan.actions.push(ScheduleAction::Forget {
                service: name.clone(),
                schedule: state.name.clone(),
            });
        }
    }

    /// A run that a schedule began: written down when it has ended, ended when it takes too long.
    fn run(&mut self, name: &ServiceName, service: &DesiredService, schedule: &str, begun: Begun, run: &JobRun) {
        let (outcome, detail) = match &run.state {
            RunState::Open => {
                let timeout = in_force(service)
                    .and_then(|r| r.spec.schedules.iter().find(|s| s.name == schedule))
                    .map(|s| s.timeout);
                let since = self.view.open.get(&(name.clone(), run.id)).copied().unwrap_or(self.now);
                let Some(timeout) = timeout.filter(|_| run.cancel.is_none()) else {
                    return;
                };
                let until = since.plus(timeout);
                if self.now < until {
                    self.plan.wake(until);
                } else {
                    self.plan.actions.push(ScheduleAction::Cancel {
                        service: name.clone(),
                        run: run.id,
                        reason: format!(
                            "it took longer than the {} of schedule {schedule}",
                            words::duration(timeout)
                        ),
                    });
                }
                return;
            }
            RunState::Succeeded => (Outcome::Done, format!("run {} succeeded", run.id)),
            RunState::Failed { reason } => (Outcome::Failed, format!("run {} failed: {reason}", run.id)),
            RunState::TimedOut => (Outcome::Failed, format!("run {} took longer than job.timeout", run.id)),
            RunState::Cancelled { reason } if reason == REPLACED => {
                (Outcome::Replaced, format!("run {} was ended: {reason}", run.id))
            }
            RunState::Cancelled { reason } => (Outcome::Failed, format!("run {} was ended: {reason}", run.id)),
        };
        self.plan.actions.push(ScheduleAction::Finish {
            service: name.clone(),
            schedule: schedule.to_owned(),
            begun,
            ended: Ended {
                at: run.ended_at.unwrap_or(self.wall),
                outcome,
                detail,
                attempts: words::count(run.attempts.len()),
                skew: None,
            },
        });
    }

    /// Of one schedule: begun and not ended, by this process or as a run in the store.
    fn running(&self, key: &Key) -> usize {
        self.view.running.get(key).map_or(0, Vec::len) + open_runs(self.desired, key).len()
    }

    /// `otherwise`: by another count. Those that are being replaced count too until they have ended.
    fn is_full(&self, key: &Key, state: &ScheduleState, otherwise: bool) -> bool {
        let begun = self.view.running.get(key).map_or(0, Vec::len);
        otherwise || begun.max(state.open()) >= RUNNING_OF_ONE
    }

    fn schedule(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        revision: &Revision,
        schedule: &Schedule,
        state: &ScheduleState,
    ) {
        let key = (name.clone(), schedule.name.clone());
        let memo = self.view.memo.get(&key).filter(|m| m.handled == state.handled);
        let Some(Memo {
            times: Some(times),
            next,
            ..
        }) = memo
        else {
            return;
        };
        let Some(first) = *next else {
            let never = state.history.is_empty() && state.fired.is_none();
            if never && matches!(schedule.when, crate::model::schedule::When::At(_)) {
                self.note(
                    name,
                    format!("schedule {}: its time is past, it never fires", schedule.name),
                );
            }
            return;
        };
        let fires_at = plus(first, self.jitter(&key, schedule, first));
        if self.wall < fires_at {
            self.wait(name, service, revision, schedule, (first, fires_at));
            return;
        }
        // Those whose jitter is over for certain; the last of them stands for all.
        let over = Timestamp(self.wall.0.saturating_sub(whole_ms(schedule.jitter)));
        let (mut due, mut count) = times.last(state.handled, over).unwrap_or((first, 1));
        // And those after it whose jitter happens to be over too.
        while let Some(next) = times.next(due).filter(|next| *next <= self.wall)
            && plus(next, self.jitter(&key, schedule, next)) <= self.wall
            && count < MOST_MISSED
        {
            (due, count) = (next, count + 1);
        }
        let on_time = between(due, self.wall) <= GRACE.saturating_add(schedule.jitter);
        let missed = count - 1;
        let pass = |outcome, detail: String, times| ScheduleAction::Pass {
            service: name.clone(),
            schedule: schedule.clone(),
            due,
            at: self.wall,
            outcome,
            detail,
            times,
        };
        let again = state.fired == Some(due);
        let running = self.running(&key);
        let full = self.running >= RUNNING_OF_ALL || running >= RUNNING_OF_ONE;
        let action = if again {
            let detail = "it was acted on before the clock was put back";
            pass(Outcome::Skipped, detail.into(), count)
        } else if service.record.stopped {
            pass(Outcome::Skipped, "the service is stopped".into(), count)
        } else if !on_time && schedule.catch_up == CatchUp::Skip {
            let detail = "nobody looked when it was due, and catch_up is \"skip\"";
            pass(Outcome::Missed, detail.into(), count)
        } else if is_over(schedule, due, self.wall) {
            pass(Outcome::Missed, "the time it was for is over".into(), count)
        } else if takes_time(schedule) && running > 0 && schedule.overlap == Overlap::Forbid {
            let detail = "the one before was not done, and overlap is \"forbid\"";
            pass(Outcome::Skipped, detail.into(), count)
        } else if takes_time(schedule) && self.is_full(&key, state, full && schedule.overlap != Overlap::Replace) {
            pass(Outcome::Skipped, "too many are not done yet".into(), count)
        } else {
            self.running += usize::from(takes_time(schedule));
            ScheduleAction::Fire {
                service: name.clone(),
                schedule: schedule.clone(),
                revision: revision.number,
                due,
                at: self.wall,
                cause: if on_time { Cause::Due } else { Cause::CatchUp },
                missed,
                replaces: running > 0 && schedule.overlap == Overlap::Replace,
            }
        };
        if let ScheduleAction::Pass { detail, .. } = &action {
            self.note(name, format!("schedule {}: {detail}", schedule.name));
        }
        self.plan.actions.push(action);
    }

    /// Asks to be woken when it is due, a while before to prepare, and now and then to look at the clock.
    fn wait(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        revision: &Revision,
        schedule: &Schedule,
        (due, fires_at): (Timestamp, Timestamp),
    ) {
        let left = between(self.wall, fires_at);
        self.plan.wake(self.now.plus(left.min(LOOK)));
        let needed = match &schedule.what {
            What::Replicas { replicas, .. } => replicas.get() > 0,
            What::Request { .. } | What::Run { .. } => true,
        };
        let to_due = between(self.wall, due);
        if !needed || service.record.stopped {
            return;
        }
        if to_due > LEAD {
            self.plan.wake(self.now.plus(to_due.saturating_sub(LEAD).min(LOOK)));
            return;
        }
        let key = (name.clone(), revision.number);
        let there = self
            .replicas
            .iter()
            .any(|r| r.service == *name && r.revision == revision.number);
        let already = |a: &ScheduleAction| matches!(a, ScheduleAction::Prepare { service, revision: r, .. } if service == name && *r == revision.number);
        if !there && !self.view.prepared.contains_key(&key) && !self.plan.actions.iter().any(already) {
            self.plan.actions.push(ScheduleAction::Prepare {
                service: name.clone(),
                revision: revision.number,
                until: self.now.plus(left.saturating_add(LEAD)),
            });
        }
    }

    /// A burst is done when as many serve as were asked for; or it is told as it is.
    fn bursts(&mut self) {
        for ((name, schedule), burst) in &self.view.bursts {
            let state = self.desired.state_of(name, schedule);
            // Not written yet, or not read yet.
            if state.is_none_or(|s| s.running(burst.begun.due, burst.begun.at).is_none()) {
                continue;
            }
            let record = self.desired.services.get(name).map(|s| &s.record);
            let newest = record.and_then(|r| r.scheduled.last());
            if newest.is_none_or(|hold| hold.schedule != *schedule || hold.due != burst.begun.due) {
                let ended = Ended {
                    outcome: Outcome::Replaced,
                    ..Ended::failed(self.wall, "another number of replicas holds now".into(), 0)
                };
                self.finish(name, schedule, burst.begun, ended);
                continue;
            }
            let serving = self.replicas.iter().filter(|r| r.service == *name);
            let since = |r: &Replica| match r.phase {
                Phase::Serving { since } => Some((r.id, since)),
                _ => None,
            };
            let serving: Vec<(ReplicaId, Millis)> = serving.filter_map(since).collect();
            let whole = words::count(serving.len()) >= burst.wanted;
            let given_up = burst.due.plus(BURST_WAIT);
            if !whole && self.now < given_up {
                self.plan.wake(given_up);
                continue;
            }
            let made = serving.iter().filter(|(id, _)| !burst.before.contains(id));
            let skew = skew(made.map(|(_, since)| millis(since.since(burst.due))).collect());
            let ended = Ended {
                at: self.wall,
                outcome: if whole { Outcome::Done } else { Outcome::Failed },
                detail: burst_words(words::count(serving.len()), burst.wanted, skew),
                attempts: 0,
                skew,
            };
            self.finish(name, schedule, burst.begun, ended);
        }
    }

    fn finish(&mut self, service: &ServiceName, schedule: &str, begun: Begun, ended: Ended) {
        self.plan.actions.push(ScheduleAction::Finish {
            service: service.clone(),
            schedule: schedule.to_owned(),
            begun,
            ended,
        });
    }

    /// The same for one time of one schedule, however often it is asked.
    fn jitter(&self, (service, schedule): &Key, spec: &Schedule, due: Timestamp) -> Duration {
        let most = millis(spec.jitter);
        if most == 0 {
            return Duration::ZERO;
        }
        let bytes = service
            .as_str()
            .bytes()
            .chain(schedule.bytes())
            .chain(due.0.to_le_bytes());
        // FNV-1a, then one round of mixing: all that is asked of it is to spread.
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325 ^ self.view.seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mixed = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Duration::from_millis((mixed >> 11) % most.saturating_add(1))
    }

    fn note(&mut self, service: &ServiceName, text: String) {
        self.plan.notes.push(Note {
            service: service.clone(),
            revision: None,
            replica: None,
            text,
        });
    }
}

/// A request or a run; a number of replicas is said at once.
pub fn takes_time(schedule: &Schedule) -> bool {
    !matches!(schedule.what, What::Replicas { .. })
}

/// Replicas for a time that has ended before anyone looked.
fn is_over(schedule: &Schedule, due: Timestamp, wall: Timestamp) -> bool {
    match schedule.what {
        What::Replicas { hold: Some(hold), .. } => plus(due, hold) <= wall,
        _ => false,
    }
}

fn whole_ms(d: Duration) -> i64 {
    i64::try_from(millis(d)).unwrap_or(i64::MAX)
}

/// Lateness of many, in milliseconds.
pub fn skew(mut late_ms: Vec<u64>) -> Option<Skew> {
    late_ms.sort_unstable();
    Some(Skew {
        min_ms: *late_ms.first()?,
        median_ms: late_ms[late_ms.len() / 2],
        max_ms: *late_ms.last()?,
    })
}

fn burst_words(serving: u32, wanted: u32, skew: Option<Skew>) -> String {
    let late = skew.map_or_else(String::new, |s| {
        format!(
            ", {} to {} ms after it was due, half within {} ms",
            s.min_ms, s.max_ms, s.median_ms
        )
    });
    if serving >= wanted {
        format!("{} serving{late}", words::many(wanted, "replica"))
    } else {
        format!("{serving} of {} serving{late}", words::many(wanted, "replica"))
    }
}

#[cfg(test)]
#[path = "schedule/tests.rs"]
mod tests;
