//! What is written down: what a firing, a time that passes, an end and a pause do to what is kept of a schedule, and to the
//! number of replicas of its service. Plain changes of values; whoever stores them makes each in one transaction.

use super::{Begun, Ended, takes_time};
use crate::model::schedule::{Cause, Firing, Hold, Outcome, Schedule, ScheduleState, What};
use crate::model::{ServiceRecord, Timestamp};
use crate::plan::words;

/// What the newest schedule in force says.
pub fn scheduled(record: &ServiceRecord) -> Option<u32> {
    record.scheduled.last().map(|hold| hold.replicas.get())
}

/// The record while `hold` is in force too, as the newest. One without an end leaves nothing to go back to.
pub fn held(record: &mut ServiceRecord, hold: Hold) {
    if hold.until.is_none() {
        record.scheduled.clear();
    }
    record.scheduled.retain(|h| h.schedule != hold.schedule);
    record.scheduled.push(hold);
}

/// The hold of one firing ends; what it covered is in force again.
pub fn expired(record: &mut ServiceRecord, schedule: &str, due: Timestamp) {
    record.scheduled.retain(|h| h.schedule != schedule || h.due != due);
}

/// The entry with which a firing begins.
pub fn begins(begun: Begun, cause: Cause, detail: String) -> Firing {
    Firing {
        due: begun.due,
        at: begun.at,
        cause,
        outcome: Outcome::Running,
        detail,
        attempts: 0,
        times: 1,
        ended_at: None,
        skew: None,
    }
}

/// What a firing does to what is kept of its schedule: before anything else is done.
pub fn fired(state: &mut ScheduleState, schedule: &Schedule, entry: Firing, missed: u32) {
    if missed > 0 {
        let before = Firing {
            outcome: Outcome::Missed,
            detail: "nobody looked when it was due; one later time stands for all".into(),
            times: missed,
            ended_at: Some(entry.at),
            ..entry.clone()
        };
        state.note(before, schedule.history);
    }
    if !takes_time(schedule) {
        // Its number takes the place of the last one's.
        for before in state.history.iter_mut().filter(|f| f.outcome == Outcome::Running) {
            before.outcome = Outcome::Replaced;
            before.ended_at = Some(entry.at);
        }
    }
    if entry.cause != Cause::ByHand {
        state.handled = state.handled.max(entry.due);
        state.fired = state.fired.max(Some(entry.due));
    }
    state.note(entry, schedule.history);
}

/// What a time that passes does to it.
pub fn passed(state: &mut ScheduleState, schedule: &Schedule, entry: Firing) {
    state.handled = state.handled.max(entry.due);
    state.note(entry, schedule.history);
}

/// What `pause` and `resume` do to it: times that pass while it is paused are done with.
pub fn set_paused(state: &mut ScheduleState, paused: bool, wall: Timestamp) {
    if state.paused && !paused {
        state.handled = state.handled.max(wall);
    }
    state.paused = paused;
}

/// What an end does to it. False: there is no such entry any more.
pub fn finished(state: &mut ScheduleState, begun: Begun, ended: Ended) -> bool {
    let Some(at) = state.running(begun.due, begun.at) else {
        return false;
    };
    let entry = &mut state.history[at];
    entry.outcome = ended.outcome;
    entry.detail = ended.detail;
    entry.attempts = ended.attempts;
    entry.ended_at = Some(ended.at);
    entry.skew = ended.skew.or(entry.skew);
    true
}

/// What a schedule does, in few words: `100 replicas for 120 min`, `POST /tasks/report`.
pub fn what(schedule: &Schedule) -> String {
    match &schedule.what {
        What::Replicas { replicas, hold } => {
            let most = words::many(replicas.get(), "replica");
            hold.map_or_else(|| most.clone(), |hold| format!("{most} for {}", words::duration(hold)))
        }
        What::Request { method, path } => format!("{method} {path}"),
        What::Run { args } if args.is_empty() => "a run".into(),
        What::Run { args } => format!("a run of {}", args.join(" ")),
    }
}
