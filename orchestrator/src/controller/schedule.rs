//! The schedules' shell: looks at both clocks, asks `plan::schedule`, writes down, then does. A request that a schedule sends runs
//! in a task of its own on the guests' runtime; this file owns those tasks and ends them. When something is due is not decided
//! here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt as _;
use narae_runtime::{Body, Request};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::Controller;
use crate::agent::Agent;
use crate::model::calendar::{between, plus};
use crate::model::schedule::{Cause, Hold, Outcome, Overlap, Schedule, ScheduleState, Skew, What};
use crate::model::service::HostPattern;
use crate::model::{EventKind, Millis, Phase, Revision, RevisionNumber, ServiceName, Timestamp};
use crate::plan::schedule::{self, Begun, Burst, Ended, Key, ScheduleAction, ScheduleView};
use crate::plan::{Desired, Note, Plan};
use crate::proxy::Choice;
use crate::store::{Records, RecordsError};

/// Guests and their logs can tell a schedule from a client.
const USER_AGENT: &str = "narae-schedule";
const X_SCHEDULE: &str = "x-narae-schedule";
const X_DUE: &str = "x-narae-due";
const X_ATTEMPT: &str = "x-narae-attempt";
/// Before the second try; doubled before each further one.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// What the shell holds between two looks.
#[derive(Default)]
pub struct Scheduler {
    view: Mutex<ScheduleView>,
    /// Ended, and not written down yet.
    ended: Mutex<Vec<(Key, Begun, Ended)>>,
    calls: Mutex<BTreeMap<(Key, Begun), AbortHandle>>,
}

/// Why `schedule run` did nothing.
#[derive(Debug)]
pub enum NotFired {
    NoSchedule,
    /// The one before is not done, and overlap is "forbid".
    Busy,
    /// So many are not done already, whatever overlap says.
    Full,
    Stopped,
    Records(RecordsError),
}

impl From<RecordsError> for NotFired {
    fn from(error: RecordsError) -> Self {
        Self::Records(error)
    }
}

/// What one look came to.
#[derive(Default)]
pub(super) struct Looked {
    pub wake_at: Option<Millis>,
    pub wrote: bool,
    pub failed: Option<RecordsError>,
    pub notes: Vec<Note>,
}

impl Scheduler {
    pub fn new(seed: u64) -> Self {
        let scheduler = Self::default();
        scheduler.view().seed = seed;
        scheduler
    }

    fn view(&self) -> MutexGuard<'_, ScheduleView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<(Key, Begun), AbortHandle>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self, key: Key, begun: Begun, ended: Ended) {
        self.calls().remove(&(key.clone(), begun));
        let mut list = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((key, begun, ended));
    }

    /// Ends the requests of these services that are under way: none goes on into what comes after.
    pub(super) fn end_calls(&self, of: impl Fn(&ServiceName) -> bool, why: &str, at: Timestamp) -> bool {
        let mut over = Vec::new();
        self.calls().retain(|(key, begun), call| {
            let ends = of(&key.0);
            if ends {
                call.abort();
                over.push((key.clone(), *begun));
            }
            !ends
        });
        let any = !over.is_empty();
        for (key, begun) in over {
            self.ends(key, begun, Ended::failed(at, why.into(), 0));
        }
        any
    }

    /// Room for one more of a schedule, taken in one step: two at once never both find it. What it takes is given back when the
    /// claim is dropped, unless it was kept.
    fn claim(
        self: &Arc<Self>,
        key: &Key,
        schedule: &Schedule,
        begun: Begun,
        wake: &Arc<Notify>,
    ) -> Result<Claim, NotFired> {
        let mut view = self.view();
        let running = view.running.get(key).map_or(&[][..], Vec::as_slice);
        has_room(schedule, running.len())?;
        let mut begun = begun;
        while running.contains(&begun) {
            let by_hand = begun.due == begun.at;
            begun.at.0 += 1;
            begun.due = if by_hand { begun.at } else { begun.due };
        }
        if schedule::takes_time(schedule) {
            view.running.entry(key.clone()).or_default().push(begun);
        }
        drop(view);
        Ok(Claim {
            scheduler: Arc::clone(self),
            wake: Arc::clone(wake),
            key: key.clone(),
            begun,
            kept: false,
        })
    }

    fn forget_begun(&self, key: &Key, begun: Begun) {
        let mut view = self.view();
        if view.bursts.get(key).is_some_and(|b| b.begun == begun) {
            view.bursts.remove(key);
        }
        if let Some(running) = view.running.get_mut(key) {
            running.retain(|b| *b != begun);
            if running.is_empty() {
                view.running.remove(key);
            }
        }
    }

    /// Ends every request that is under way.
    pub(super) fn stop(&self) {
        for (_, call) in std::mem::take(&mut *self.calls()) {
            call.abort();
        }
    }
}

impl Controller {
    /// The schedules' part of a turn. `fresh`: `desired` was read in this turn; on an older state nothing is begun, because what was
    /// begun since would be begun twice.
    pub(super) async fn schedules(&self, desired: &Desired, fresh: bool, now: Millis) -> Looked {
        let mut looked = Looked::default();
        self.end_calls_of_stopped(desired);
        self.write_ends(&mut looked).await;
        if looked.wrote || !fresh {
            // What was read is not what there is any more.
            return looked;
        }
        let wall = self.clock.wall();
        let replicas = self.agent.replicas();
        let plan = {
            let mut view = self.scheduler.view();
            schedule::observe(desired, &mut view, now, wall);
            let plan = schedule::schedules(desired, &view, &replicas, now, wall);
            let kept = |(name, number): &(ServiceName, RevisionNumber)| {
                Some(desired.services.get(name)?.revisions.get(number)?.digest)
            };
            self.agent.keep_code(view.prepared.keys().filter_map(kept).collect());
            plan
        };
        let Plan {
            actions,
            notes,
            wake_at,
        } = plan;
        (looked.notes, looked.wake_at) = (notes, wake_at);
        for action in actions {
            match self.perform_schedule(desired, action, now).await {
                Ok(wrote) => looked.wrote |= wrote,
                Err(error) => looked.failed = Some(error),
            }
        }
        looked
    }

    /// What is under way when a service is stopped is drained as any request; when nothing of it runs any more, that is over.
    fn end_calls_of_stopped(&self, desired: &Desired) {
        if self.scheduler.calls().is_empty() {
            return;
        }
        let replicas = self.agent.replicas();
        let over = |name: &ServiceName| {
            let record = desired.services.get(name).map(|s| &s.record);
            record.is_some_and(|r| r.stopped || r.deleting) && replicas.iter().all(|r| r.service != *name)
        };
        let why = "the service was stopped or deleted";
        self.scheduler.end_calls(over, why, self.clock.wall());
    }

    async fn write_ends(&self, looked: &mut Looked) {
        let ended = std::mem::take(&mut *self.scheduler.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for (key, begun, end) in ended {
            match self.finish(&key, begun, end.clone()).await {
                Ok(()) => looked.wrote = true,
                Err(error) => {
                    looked.failed = Some(error);
                    self.scheduler.ends(key, begun, end);
                }
            }
        }
    }

    /// True: the store was written.
    async fn perform_schedule(
        &self,
        desired: &Desired,
        action: ScheduleAction,
        now: Millis,
    ) -> Result<bool, RecordsError> {
        match action {
            ScheduleAction::Begin { service, schedule, at } => {
                self.records.begin_schedule(&service, &schedule, at).await?;
            }
            ScheduleAction::Prepare {
                service,
                revision,
                until,
            } => {
                let found = desired.services.get(&service).and_then(|s| s.revisions.get(&revision));
                if let Some(found) = found {
                    self.scheduler.view().prepared.insert((service, revision), until);
                    self.agent.prepare_ahead(Arc::clone(found));
                }
                return Ok(false);
            }
            ScheduleAction::Fire {
                service,
                schedule,
                revision,
                due,
                at,
                cause,
                missed,
                replaces,
            } => {
                let found = desired.services.get(&service).and_then(|s| s.revisions.get(&revision));
                let Some(revision) = found else { return Ok(false) };
                let key: Key = (service.clone(), schedule.name.clone());
                let begun = Begun { due, at };
                // One by hand came in between: what becomes of this one is decided anew.
                let Ok(claim) = self.scheduler.claim(&key, &schedule, begun, &self.wake) else {
                    return Ok(true);
                };
                let fire = Fire {
                    service,
                    schedule,
                    revision: Arc::clone(revision),
                    begun: claim.begun,
                    cause,
                    missed,
                    replaces,
                };
                self.fire(desired, fire, claim, now).await?;
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
                let entry = crate::model::schedule::Firing {
                    outcome,
                    times,
                    ended_at: Some(at),
                    ..schedule::begins(Begun { due, at }, Cause::Due, detail.clone())
                };
                let change = |state: &mut _| schedule::passed(state, &schedule, entry.clone());
                self.records
                    .edit_schedule(&service, &schedule.name, None, at, change)
                    .await?;
                let text = format!("schedule {}: {}: {detail}", schedule.name, outcome.as_str());
                self.event(EventKind::Schedule, &service, None, text);
            }
            ScheduleAction::Expire { service, schedule, due } => {
                let at = self.clock.wall();
                self.records.expire_schedule(&service, &schedule, due, at).await?;
                let text = format!("schedule {schedule}: its number of replicas does not hold any more");
                self.event(EventKind::Schedule, &service, None, text);
            }
            ScheduleAction::Finish {
                service,
                schedule,
                begun,
                ended,
            } => self.finish(&(service, schedule), begun, ended).await?,
            ScheduleAction::Cancel { service, run, reason } => {
                let at = self.clock.wall();
                self.records.cancel_run_for(&service, run, &reason, at).await?;
            }
            ScheduleAction::Leave { service, schedule } => {
                let at = self.clock.wall();
                self.records
                    .edit_schedule(&service, &schedule, None, at, |state| state.gone = true)
                    .await?;
            }
            ScheduleAction::Forget { service, schedule } => {
                self.records.forget_schedule(&service, &schedule).await?;
            }
        }
        Ok(true)
    }

    /// `schedule run`: now, whether its time has come or not.
    pub async fn fire_by_hand(&self, service: &ServiceName, name: &str) -> Result<(), NotFired> {
        let (desired, _) = self.records.load().await?;
        let found = desired.services.get(service);
        let found = found.ok_or_else(|| RecordsError::NoService(service.clone()))?;
        if found.record.deleting {
            return Err(RecordsError::Deleting(service.clone()).into());
        }
        let revision = schedule::in_force(found).ok_or(NotFired::NoSchedule)?;
        let spec = revision.spec.schedules.iter().find(|s| s.name == name);
        let spec = spec.ok_or(NotFired::NoSchedule)?;
        if found.record.stopped {
            return Err(NotFired::Stopped);
        }
        let at = self.clock.wall();
        if desired.state_of(service, name).is_none() {
            self.records.begin_schedule(service, spec, at).await?;
        }
        let key: Key = (service.clone(), name.to_owned());
        let claim = self.scheduler.claim(&key, spec, Begun { due: at, at }, &self.wake)?;
        // Read after the claim: what was begun before and is not seen there is in the store by now.
        let (desired, _) = self.records.load().await?;
        let running = desired.state_of(service, name).map_or(0, ScheduleState::open);
        has_room(spec, running)?;
        let revision = found.revisions.get(&revision.number).ok_or(NotFired::NoSchedule)?;
        let fire = Fire {
            service: service.clone(),
            schedule: spec.clone(),
            revision: Arc::clone(revision),
            begun: claim.begun,
            cause: Cause::ByHand,
            missed: 0,
            replaces: running > 0 && schedule::takes_time(spec) && spec.overlap == Overlap::Replace,
        };
        self.fire(&desired, fire, claim, self.clock.monotonic()).await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Written down first, then done: what is cut off in between is not done at all.
    async fn fire(&self, desired: &Desired, fire: Fire, mut claim: Claim, now: Millis) -> Result<(), RecordsError> {
        let Fire {
            service,
            schedule,
            begun,
            ..
        } = &fire;
        let key: Key = (service.clone(), schedule.name.clone());
        let hold = self.expect_end(&key, &fire, now);
        if fire.replaces {
            self.end_those_before(desired, &key, *begun).await?;
        }
        let entry = schedule::begins(*begun, fire.cause, schedule::what(schedule));
        let change = |state: &mut _| schedule::fired(state, schedule, entry.clone(), fire.missed);
        self.records
            .edit_schedule(service, &schedule.name, hold.as_ref(), begun.at, change)
            .await?;
        let late = between(begun.due, begun.at);
        let why = match fire.cause {
            Cause::Due => format!("{} ms after it was due", late.as_millis()),
            Cause::CatchUp => format!("caught up, due at {}", begun.due.rfc3339()),
            Cause::ByHand => "by hand".into(),
        };
        let text = format!("schedule {}: {}, {why}", schedule.name, schedule::what(schedule));
        self.event(EventKind::Schedule, service, Some(fire.revision.number), text);
        match &schedule.what {
            What::Replicas { .. } => claim.kept = true,
            What::Request { .. } => {
                claim.kept = true;
                self.send(key, fire);
            }
            What::Run { args } => {
                let args = (!args.is_empty()).then(|| args.clone());
                let cause = schedule::run_cause(&schedule.name, *begun);
                let number = fire.revision.number;
                let run = self.records.begin_run(service, number, args, &cause, begun.at).await;
                claim.kept = true;
                if let Err(error) = run {
                    let detail = crate::agent::report(&error);
                    let ended = Ended::failed(self.clock.wall(), detail, 0);
                    self.scheduler.ends(key, *begun, ended);
                    self.wake.notify_one();
                }
            }
        }
        Ok(())
    }

    /// Known before it is written, so that no look takes it for a leftover of an earlier process.
    fn expect_end(&self, key: &Key, fire: &Fire, now: Millis) -> Option<Hold> {
        let begun = fire.begun;
        let What::Replicas { replicas, hold } = &fire.schedule.what else {
            return None;
        };
        let serves = |r: &crate::model::Replica| r.service == key.0 && matches!(r.phase, Phase::Serving { .. });
        let before = self.agent.replicas().into_iter().filter(serves).map(|r| r.id).collect();
        let late = between(begun.due, begun.at);
        let burst = Burst {
            begun,
            due: Millis(now.0.saturating_sub(crate::model::time::millis(late))),
            wanted: replicas.get(),
            before,
        };
        self.scheduler.view().bursts.insert(key.clone(), burst);
        Some(Hold {
            schedule: key.1.clone(),
            replicas: *replicas,
            due: begun.due,
            until: hold.map(|hold| plus(begun.due, hold)),
        })
    }

    async fn finish(&self, key: &Key, begun: Begun, ended: Ended) -> Result<(), RecordsError> {
        let change = |state: &mut _| {
            schedule::finished(state, begun, ended.clone());
        };
        match self.records.edit_schedule(&key.0, &key.1, None, ended.at, change).await {
            // Deleted meanwhile: there is nothing to write it into.
            Ok(_) | Err(RecordsError::NoSchedule(..)) => {}
            Err(error) => return Err(error),
        }
        self.scheduler.forget_begun(key, begun);
        let text = format!("schedule {}: {}: {}", key.1, ended.outcome.as_str(), ended.detail);
        self.event(EventKind::Schedule, &key.0, None, text);
        Ok(())
    }

    /// The next one takes the place of those that are not done.
    async fn end_those_before(&self, desired: &Desired, key: &Key, next: Begun) -> Result<(), RecordsError> {
        let before: Vec<_> = {
            let calls = self.scheduler.calls();
            calls
                .iter()
                .filter(|((k, begun), _)| k == key && *begun != next)
                .map(|((_, begun), call)| (*begun, call.clone()))
                .collect()
        };
        for (begun, call) in before {
            call.abort();
            let ended = Ended {
                outcome: Outcome::Replaced,
                ..Ended::failed(next.at, schedule::REPLACED.into(), 0)
            };
            self.scheduler.ends(key.clone(), begun, ended);
        }
        for run in schedule::open_runs(desired, key) {
            self.records
                .cancel_run_for(&key.0, run, schedule::REPLACED, next.at)
                .await?;
        }
        Ok(())
    }

    /// Sends a request in a task of its own; how it ended is written down by the loop.
    fn send(&self, key: Key, fire: Fire) {
        let (begun, clock) = (fire.begun, self.clock.clone());
        let (agent, wake) = (Arc::clone(&self.agent), Arc::clone(&self.wake));
        let scheduler = Arc::clone(&self.scheduler);
        let (owned, records) = (key.clone(), Arc::clone(&self.records));
        let task = self.agent.guests().spawn(async move {
            // In a task of its own: a bug there is a failure that is told.
            let late = millis_between(begun.due, clock.wall());
            let sending = tokio::spawn(async move { send(&agent, &records, &fire).await });
            let aborts = sending.abort_handle();
            let guard = AbortOnDrop(aborts);
            let (result, attempts) = sending
                .await
                .unwrap_or_else(|_| (Err("the task broke down: a bug in narae".into()), 0));
            drop(guard);
            let (outcome, detail) = match result {
                Ok(said) => (Outcome::Done, said),
                Err(why) => (Outcome::Failed, why),
            };
            let skew = Skew {
                min_ms: late,
                median_ms: late,
                max_ms: late,
            };
            let ended = Ended {
                at: clock.wall(),
                outcome,
                detail,
                attempts,
                skew: Some(skew),
            };
            scheduler.ends(owned, begun, ended);
            wake.notify_one();
        });
        // One that has ended already took itself out, or will find itself here and do so at the next `stop`.
        let handle = task.abort_handle();
        if !handle.is_finished() {
            self.scheduler.calls().insert((key.clone(), begun), handle.clone());
            if handle.is_finished() {
                self.scheduler.calls().remove(&(key, begun));
            }
        }
    }
}

/// One thing to do.
struct Fire {
    service: ServiceName,
    schedule: Schedule,
    revision: Arc<Revision>,
    begun: Begun,
    cause: Cause,
    missed: u32,
    replaces: bool,
}

/// Its service is the one it was begun for, works, and its file says the same still.
fn in_force(desired: &Desired, fire: &Fire) -> bool {
    let service = desired.services.get(&fire.service);
    let service = service.filter(|s| !s.record.stopped && !s.record.deleting);
    let service = service.filter(|s| s.record.created_at <= fire.revision.created_at);
    let same = |s: &Schedule| s.name == fire.schedule.name && s.what == fire.schedule.what;
    service
        .and_then(schedule::in_force)
        .is_some_and(|r| r.spec.schedules.iter().any(same))
}

/// One more beside so many that are not done.
fn has_room(schedule: &Schedule, running: usize) -> Result<(), NotFired> {
    if !schedule::takes_time(schedule) || running == 0 {
        Ok(())
    } else if schedule.overlap == Overlap::Forbid {
        Err(NotFired::Busy)
    } else if running >= schedule::RUNNING_OF_ONE {
        Err(NotFired::Full)
    } else {
        Ok(())
    }
}

/// One that is being begun; see [`Scheduler::claim`].
struct Claim {
    scheduler: Arc<Scheduler>,
    wake: Arc<Notify>,
    key: Key,
    begun: Begun,
    kept: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            self.scheduler.forget_begun(&self.key, self.begun);
            self.wake.notify_one();
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn millis_between(earlier: Timestamp, later: Timestamp) -> u64 {
    crate::model::time::millis(between(earlier, later))
}

/// All tries of one request: how it ended in one sentence, and how many there were.
async fn send(agent: &Agent, records: &Records, fire: &Fire) -> (Result<String, String>, u32) {
    let (schedule, mut wait) = (&fire.schedule, RETRY_AFTER);
    let mut attempt = 0;
    loop {
        if let Ok((desired, _)) = records.load().await
            && !in_force(&desired, fire)
        {
            return (Err("the schedule is not in force any more".into()), attempt);
        }
        attempt += 1;
        let tried = tokio::time::timeout(schedule.timeout, try_once(agent, fire, attempt)).await;
        let why = match tried {
            Ok(Ok(said)) => return (Ok(said), attempt),
            Ok(Err(why)) => why,
            Err(_) => format!(
                "no whole answer within {}",
                crate::plan::words::duration(schedule.timeout)
            ),
        };
        if attempt > schedule.retries {
            return (Err(why), attempt);
        }
        // Between half of it and all: many that failed together come apart.
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        wait = (wait * 2).min(RETRY_MOST);
    }
}

/// 200 to 399 is success, once the whole answer has come.
async fn try_once(agent: &Agent, fire: &Fire, attempt: u32) -> Result<String, String> {
    let service = agent.service(&fire.service).ok_or("the service has no replica now")?;
    let request = request(fire, attempt).map_err(|e| format!("cannot make the request: {e}"))?;
    let response = crate::proxy::dispatch(agent.balancer(), &service, Choice::Any, request)
        .await
        .map_err(|failure| failure.to_string())?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|e| format!("status {status}, and its body broke off: {}", crate::agent::report(&e)))?;
    }
    if (200..400).contains(&status) {
        Ok(format!("status {status}"))
    } else {
        Err(format!("status {status}"))
    }
}

fn request(fire: &Fire, attempt: u32) -> Result<Request, http::Error> {
    let What::Request { method, path } = &fire.schedule.what else {
        return Ok(Request::new(Body::Empty));
    };
    let host = fire
        .revision
        .spec
        .routes
        .first()
        .map_or("localhost", |route| match &route.host {
            HostPattern::Exact(host) => host,
            _ => "localhost",
        });
    http::Request::builder()
        .method(method.as_str())
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, USER_AGENT)
        .header(X_SCHEDULE, &fire.schedule.name)
        .header(X_DUE, fire.begun.due.rfc3339())
        .header(X_ATTEMPT, attempt)
        .body(Body::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(overlap: Overlap) -> Schedule {
        let what = What::Request {
            method: "POST".into(),
            path: "/".into(),
        };
        Schedule {
            overlap,
            ..crate::plan::world::clock::schedule("beat", crate::model::schedule::When::Every(RETRY_MOST), what)
        }
    }

    #[test]
    fn of_two_at_once_one_is_refused_and_what_was_given_up_leaves_room() {
        let (scheduler, wake) = (Arc::new(Scheduler::default()), Arc::default());
        let key: Key = ("a".parse().unwrap(), "beat".into());
        let begun = Begun {
            due: Timestamp(1),
            at: Timestamp(1),
        };
        let claim = |overlap| scheduler.claim(&key, &request(overlap), begun, &wake);
        let first = claim(Overlap::Forbid).unwrap();
        assert!(matches!(claim(Overlap::Forbid), Err(NotFired::Busy)));
        drop(first);
        let mut second = claim(Overlap::Forbid).unwrap();
        second.kept = true;
        drop(second);
        assert!(matches!(claim(Overlap::Forbid), Err(NotFired::Busy)), "it is under way");
        let more: Vec<Claim> = std::iter::from_fn(|| claim(Overlap::Allow).ok()).collect();
        assert_eq!(more.len(), schedule::RUNNING_OF_ONE - 1);
        assert!(matches!(claim(Overlap::Replace), Err(NotFired::Full)));
        assert!(more.iter().all(|c| c.begun != begun), "each is told from the others");
        drop(more);
        assert_eq!(scheduler.view().running[&key], [begun]);
    }

    #[tokio::test]
    async fn the_requests_of_a_service_end_with_it_and_those_of_others_go_on() {
        let scheduler = Scheduler::default();
        let begun = Begun {
            due: Timestamp(1),
            at: Timestamp(1),
        };
        let begin = |service: &str| {
            let task = tokio::spawn(std::future::pending::<()>());
            let key: Key = (service.parse().unwrap(), "beat".into());
            scheduler.calls().insert((key, begun), task.abort_handle());
            task
        };
        let (gone, stays) = (begin("a"), begin("b"));
        assert!(scheduler.end_calls(|name| name.as_str() == "a", "it was deleted", Timestamp(2)));
        assert!(gone.await.unwrap_err().is_cancelled());
        assert!(!stays.is_finished());
        let ended = scheduler.ended.lock().unwrap();
        assert_eq!((ended.len(), &*ended[0].2.detail), (1, "it was deleted"));
        assert_eq!(scheduler.calls().len(), 1);
    }
}
