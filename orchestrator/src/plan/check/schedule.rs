//! What no plan of the schedules may do. One time is acted on once at most; a jump of the clock or a time without anyone looking
//! is caught up once at most; nothing happens before its time, at a time that is none, or while it is paused.

use std::collections::{BTreeMap, BTreeSet};

use super::{Breach, Law};
use crate::model::Timestamp;
use crate::model::calendar::Times;
use crate::model::schedule::{CatchUp, Cause};
use crate::plan::schedule::{Key, ScheduleAction};
use crate::plan::{Desired, Plan};

/// What was done so far, kept by whoever runs the world.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Times that were acted on.
    pub fired: BTreeMap<Key, BTreeSet<Timestamp>>,
    /// Caught up since the clock last jumped, the process started, or nobody looked for a while.
    pub caught_up: BTreeMap<Key, u32>,
}

/// Laws that a plan of the schedules breaks; what it does is added to `done`.
pub fn schedule_breaches(
    desired: &Desired,
    plan: &Plan<ScheduleAction>,
    done: &mut Done,
    wall: Timestamp,
) -> Vec<Breach> {
    let mut found = Vec::new();
    for action in &plan.actions {
        let ScheduleAction::Fire {
            service,
            schedule,
            due,
            cause,
            ..
        } = action
        else {
            continue;
        };
        let key: Key = (service.clone(), schedule.name.clone());
        let mut breach = |law, text: String| {
            found.push(Breach {
                law,
                service: Some(service.clone()),
                replica: None,
                text: format!("schedule {}, due {}: {text}", schedule.name, due.rfc3339()),
            });
        };
        if !done.fired.entry(key.clone()).or_default().insert(*due) {
            breach(Law::Once, "acted on twice".into());
        }
        if *cause == Cause::CatchUp {
            let times = done.caught_up.entry(key).or_default();
            *times += 1;
            if *times > 1 {
                breach(Law::CatchUp, format!("caught up {times} times for one jump"));
            }
            if schedule.catch_up == CatchUp::Skip {
                breach(Law::CatchUp, "caught up, though catch_up is \"skip\"".into());
            }
        }
        if *due > wall {
            breach(Law::Time, format!("acted on at {}", wall.rfc3339()));
        }
        let next = Times::of(schedule).and_then(|t| t.next(Timestamp(due.0 - 1)));
        if next != Some(*due) {
            breach(Law::Time, "it is none of its times".into());
        }
        let state = desired.state_of(service, &schedule.name);
        let record = desired.services.get(service).map(|s| &s.record);
        if state.is_none_or(|s| s.paused) || record.is_none_or(|r| r.stopped || r.deleting) {
            breach(Law::Time, "it is paused, or its service is stopped".into());
        }
    }
    found
}
