//! A world's wall clock and its schedules: performs what `plan::schedule` decides as the controller does, and judges it. The clock can
//! be put forward and back; the monotonic time of the world goes on as it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{World, service_name};
use crate::model::calendar::{between, plus};
use crate::model::schedule::{Cause, Firing, Hold, Outcome, Overlap, Schedule, ScheduleState, What, When};
use crate::model::{Millis, Phase, Replica, ServiceName, Timestamp};
use crate::plan::check::schedule::{Done, schedule_breaches};
use crate::plan::schedule::{self, Begun, Burst, Ended, Key, ScheduleAction, ScheduleView};
use crate::plan::{Desired, Plan};

type Planner = Box<dyn Fn(&Desired, &ScheduleView, &[Replica], Millis, Timestamp) -> Plan<ScheduleAction>>;

/// The wall clock, and what the schedules' shell holds.
pub struct Clockwork {
    /// The planner; a test puts a broken one in.
    pub planner: Planner,
    pub view: ScheduleView,
    pub done: Done,
    /// How long requests of a service's schedules take; half a second unless said otherwise.
    pub takes: BTreeMap<ServiceName, Duration>,
    /// What the wall clock is ahead of the world's own time, in milliseconds.
    ahead_ms: i64,
    calls: Vec<(Millis, Key, Begun)>,
}

impl Default for Clockwork {
    fn default() -> Self {
        Self {
            planner: Box::new(schedule::schedules),
            view: ScheduleView::default(),
            done: Done::default(),
            takes: BTreeMap::new(),
            ahead_ms: 0,
            calls: Vec::new(),
        }
    }
}

impl World {
    /// What the wall clock shows.
    pub fn wall(&self) -> Timestamp {
        let since = i64::try_from(self.now.0).unwrap_or(i64::MAX);
        Timestamp(self.clock.ahead_ms.saturating_add(since))
    }

    /// The wall clock shows this now.
    pub fn set_clock(&mut self, wall: Timestamp) -> &mut Self {
        self.put_clock(wall.0 - self.wall().0)
    }

    /// The wall clock is put forward by so many milliseconds (back, when negative).
    pub fn put_clock(&mut self, by_ms: i64) -> &mut Self {
        self.clock.ahead_ms = self.clock.ahead_ms.saturating_add(by_ms);
        self.clock.done.caught_up.clear();
        let wall = self.wall();
        self.say(|| format!("the clock shows {}", wall.rfc3339()));
        self
    }

    pub fn pause_schedule(&mut self, service: &str, schedule: &str, paused: bool) -> &mut Self {
        let wall = self.wall();
        self.edit_schedule(&(service_name(service), schedule.into()), |state| {
            schedule::set_paused(state, paused, wall);
        });
        self.settle()
    }

    /// Requests of its schedules take so long from now on.
    pub fn takes(&mut self, service: &str, time: Duration) -> &mut Self {
        self.clock.takes.insert(service_name(service), time);
        self
    }

    /// The entries of a schedule's history.
    pub fn history(&self, service: &str, schedule: &str) -> &[Firing] {
        let state = self.desired.state_of(&service_name(service), schedule);
        state.map_or(&[][..], |state| &state.history)
    }

    pub(super) fn reboot_clock(&mut self) {
        let seed = self.clock.view.seed;
        self.clock.view = ScheduleView::default();
        self.clock.view.seed = seed;
        self.clock.calls.clear();
        self.clock.done.caught_up.clear();
    }

    /// One look of the schedules' shell: whether it did something, and when it wants to look again.
    pub(super) fn clockwork(&mut self) -> (bool, Option<Millis>) {
        let (now, wall) = (self.now, self.wall());
        let calls = std::mem::take(&mut self.clock.calls);
        let (over, left): (Vec<_>, _) = calls.into_iter().partition(|(at, ..)| *at <= now);
        self.clock.calls = left;
        for (_, key, begun) in over {
            let ended = Ended {
                outcome: Outcome::Done,
                ..Ended::failed(wall, "status 200".into(), 1)
            };
            self.finish(&key, begun, ended);
        }
        schedule::observe(&self.desired, &mut self.clock.view, now, wall);
        let plan = (self.clock.planner)(&self.desired, &self.clock.view, &self.view.replicas, now, wall);
        let found = schedule_breaches(&self.desired, &plan, &mut self.clock.done, wall);
        self.breaches.extend(found);
        let acted = !plan.actions.is_empty();
        for action in plan.actions {
            self.act_schedule(action);
        }
        let call = self.clock.calls.iter().map(|(at, ..)| *at).min();
        (acted, [plan.wake_at, call].into_iter().flatten().min())
    }

    fn act_schedule(&mut self, action: ScheduleAction) {
        match action {
            ScheduleAction::Begin { service, schedule, at } => self.begin_schedule(&service, &schedule, at),
            ScheduleAction::Prepare {
                service,
                revision,
                until,
            } => {
                self.say(|| format!("prepare {service}/{revision}"));
                self.clock.view.prepared.insert((service, revision), until);
            }
            ScheduleAction::Fire {
                service,
                schedule,
                due,
                at,
                cause,
                missed,
                replaces,
                ..
            } => {
                let key = (service, schedule.name.clone());
                self.fire(&key, &schedule, Begun { due, at }, cause, (missed, replaces));
            }
            ScheduleAction::Pass {
                service,
                schedule,
                due,
                at,
                outcome,
                detail,
                times,
            } => {
                self.say(|| {
                    let (n, due) = (words(times), due.rfc3339());
                    let word = outcome.as_str();
                    format!("schedule {service}/{}: {word}{n}, due {due}: {detail}", schedule.name)
                });
                let entry = Firing {
                    outcome,
                    times,
                    ended_at: Some(at),
                    ..schedule::begins(Begun { due, at }, Cause::Due, detail)
                };
                self.edit_schedule(&(service, schedule.name.clone()), |state| {
                    schedule::passed(state, &schedule, entry);
                });
            }
            ScheduleAction::Expire { service, schedule, due } => {
                self.say(|| format!("schedule {service}/{schedule}: its number does not hold any more"));
                if let Some(s) = self.desired.services.get_mut(&service) {
                    schedule::expired(&mut s.record, &schedule, due);
                }
            }
            ScheduleAction::Finish {
                service,
                schedule,
                begun,
                ended,
            } => self.finish(&(service, schedule), begun, ended),
            ScheduleAction::Leave { service, schedule } => {
                self.edit_schedule(&(service, schedule), |state| state.gone = true);
            }
            ScheduleAction::Cancel { .. } => {}
            ScheduleAction::Forget { service, schedule } => {
                if let Some(states) = self.desired.schedules.get_mut(&service) {
                    states.remove(&schedule);
                }
            }
        }
    }

    fn begin_schedule(&mut self, service: &ServiceName, schedule: &Schedule, at: Timestamp) {
        let key: Key = (service.clone(), schedule.name.clone());
        let states = self.desired.schedules.entry(service.clone()).or_default();
        if !states.contains_key(&schedule.name) {
            // Of a service that was deleted in between: nothing is known any more.
            self.clock.done.fired.remove(&key);
        }
        let state = states
            .entry(schedule.name.clone())
            .or_insert_with(|| Arc::new(ScheduleState::new(service.clone(), schedule, at)));
        let state = Arc::make_mut(state);
        if at < state.handled || !state.is_of(schedule) {
            // The clock was wrong before, or other times are meant: what happened then is another count.
            self.clock.done.fired.remove(&key);
        }
        state.gone = false;
        (state.handled, state.when, state.timezone) = (at, schedule.when.clone(), schedule.timezone.clone());
        self.say(|| format!("schedule {service}/{} begins", schedule.name));
    }

    fn fire(&mut self, key: &Key, schedule: &Schedule, begun: Begun, cause: Cause, (missed, replaces): (u32, bool)) {
        let (service, name) = key;
        self.say(|| {
            let missed = if missed == 0 {
                String::new()
            } else {
                format!(", {missed} missed before it")
            };
            let (what, due) = (schedule::what(schedule), begun.due.rfc3339());
            format!(
                "schedule {service}/{name}: {what} ({}), due {due}{missed}",
                cause.as_str()
            )
        });
        let now = self.now;
        if replaces {
            let before: Vec<Begun> = self.clock.calls.iter().filter(|c| c.1 == *key).map(|c| c.2).collect();
            self.clock.calls.retain(|c| c.1 != *key);
            for before in before {
                let ended = Ended {
                    outcome: Outcome::Replaced,
                    ..Ended::failed(begun.at, schedule::REPLACED.into(), 0)
                };
                self.finish(key, before, ended);
            }
        }
        let entry = schedule::begins(begun, cause, schedule::what(schedule));
        self.edit_schedule(key, |state| schedule::fired(state, schedule, entry, missed));
        let What::Replicas { replicas, hold } = &schedule.what else {
            let takes = self.clock.takes.get(service).copied();
            let takes = takes.unwrap_or(Duration::from_millis(500));
            self.clock.view.running.entry(key.clone()).or_default().push(begun);
            self.clock.calls.push((now.plus(takes), key.clone(), begun));
            return;
        };
        let serves = |r: &&Replica| r.service == *service && matches!(r.phase, Phase::Serving { .. });
        let before = self.view.replicas.iter().filter(serves).map(|r| r.id).collect();
        let late = crate::model::time::millis(between(begun.due, begun.at));
        let burst = Burst {
            begun,
            due: Millis(now.0.saturating_sub(late)),
            wanted: replicas.get(),
            before,
        };
        self.clock.view.bursts.insert(key.clone(), burst);
        let hold = Hold {
            schedule: name.clone(),
            replicas: *replicas,
            due: begun.due,
            until: hold.map(|hold| plus(begun.due, hold)),
        };
        if let Some(s) = self.desired.services.get_mut(service) {
            schedule::held(&mut s.record, hold);
        }
    }

    fn finish(&mut self, key: &Key, begun: Begun, ended: Ended) {
        let (service, name) = key;
        self.say(|| {
            format!(
                "schedule {service}/{name}: {}: {}",
                ended.outcome.as_str(),
                ended.detail
            )
        });
        self.edit_schedule(key, |state| {
            schedule::finished(state, begun, ended);
        });
        let view = &mut self.clock.view;
        view.bursts.retain(|k, b| k != key || b.begun != begun);
        if let Some(running) = view.running.get_mut(key) {
            running.retain(|b| *b != begun);
        }
    }

    fn edit_schedule(&mut self, (service, name): &Key, edit: impl FnOnce(&mut ScheduleState)) {
        let states = self.desired.schedules.get_mut(service);
        if let Some(state) = states.and_then(|s| s.get_mut(name)) {
            edit(Arc::make_mut(state));
        }
    }
}

fn words(times: u32) -> String {
    if times == 1 {
        String::new()
    } else {
        format!(" {times} times")
    }
}

/// A schedule of this name, in UTC, with every default.
pub fn schedule(name: &str, when: When, what: What) -> Schedule {
    Schedule {
        name: name.into(),
        when,
        timezone: "UTC".into(),
        what,
        timeout: Duration::from_secs(300),
        overlap: Overlap::default(),
        catch_up: Default::default(),
        jitter: Duration::ZERO,
        retries: 0,
        history: 20,
    }
}
