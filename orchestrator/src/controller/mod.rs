//! Floor 3: the leader's shell, and the loop that drives both planners. Observes the store and the node, asks `plan::fleet`,
//! writes what it decided, lets the agent do its part, and sleeps until something changed or `wake_at`.

mod forget;
mod jobs;
mod measure;
mod schedule;
mod unwritten;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::clock::Clock;
use crate::events::{Events, Occurrence};
use crate::model::{EventKind, Millis, ServiceName, ServiceRecord};
use crate::plan::gates::Measures;
use crate::plan::rollout::Stage;
use crate::plan::scale::{Cause, Scaling};
use crate::plan::{Desired, FleetAction, FleetView, Note, Plan, words};
use crate::store::{Records, RecordsError};

pub use forget::Remove;
pub use schedule::{NotFired, Scheduler};

/// After a write that the store did not take (disk full, changed underneath) the loop comes again so soon.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Actions follow from actions (started, then admitted); past this many turns at once others get the thread.
const TURNS_AT_ONCE: usize = 64;

/// The leader's shell.
pub struct Controller {
    pub records: Arc<Records>,
    pub agent: Arc<Agent>,
    pub events: Arc<Events>,
    pub clock: Clock,
    pub wake: Arc<Notify>,
    /// The last desired state read, for readers that need no snapshot of their own.
    desired: Mutex<Arc<Desired>>,
    view: Mutex<FleetView>,
    gauge: Mutex<measure::Gauge>,
    read: AtomicBool,
    /// The runs that were open at the start were told to the agent.
    found_runs: AtomicBool,
    on_forget: Remove,
    scheduler: Arc<Scheduler>,
    unwritten: Mutex<unwritten::Unwritten>,
}

impl Controller {
    pub fn new(
        records: Arc<Records>,
        agent: Arc<Agent>,
        events: Arc<Events>,
        clock: Clock,
        wake: Arc<Notify>,
        on_forget: Remove,
    ) -> Arc<Self> {
        let desired = Mutex::default();
        let read = AtomicBool::new(false);
        Arc::new(Self {
            records,
            agent,
            events,
            clock,
            wake,
            desired,
            view: Mutex::default(),
            gauge: Mutex::default(),
            read,
            found_runs: AtomicBool::new(false),
            on_forget,
            scheduler: Arc::new(Scheduler::new(fastrand::u64(..))),
            unwritten: Mutex::default(),
        })
    }

    /// The desired state as the loop last read it.
    pub fn desired(&self) -> Arc<Desired> {
        Arc::clone(&self.desired.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The store was read at least once.
    pub fn has_read(&self) -> bool {
        self.read.load(Ordering::Acquire)
    }

    /// Runs until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wake_at = self.turns().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = until(&self.clock, wake_at) => {}
            }
        }
        self.scheduler.stop();
    }

    /// Turns until nothing more is to be done at once.
    async fn turns(&self) -> Option<Millis> {
        for _ in 0..TURNS_AT_ONCE {
            let (wake_at, acted) = self.turn().await;
            if !acted {
                return wake_at;
            }
            tokio::task::yield_now().await;
        }
        Some(self.clock.monotonic())
    }

    /// One look, plan and act of both planners. What the store does not take is told and tried again; it never keeps the node
    /// from healing, draining and admitting what it has.
    async fn turn(&self) -> (Option<Millis>, bool) {
        let again = self.write_again().await;
        let mut wrote = matches!(again, Ok(true));
        let mut failed = again.err();
        let mut fresh = true;
        let desired = match self.records.load().await {
            Ok((desired, _)) => {
                *self.desired.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&desired);
                self.read.store(true, Ordering::Release);
                desired
            }
            Err(error) => {
                fresh = false;
                failed = Some(error);
                self.desired()
            }
        };
        let desired = self.planned(desired);
        let now = self.clock.monotonic();
        let scheduled = self.schedules(&desired, fresh, now).await;
        failed = failed.or(scheduled.failed);
        let view = self.look(&desired, now);
        let Plan {
            actions,
            mut notes,
            wake_at,
        } = crate::plan::fleet::fleet(&desired, &view, now);
        notes.extend(scheduled.notes);
        let mut assignment = view.assigned;
        wrote |= scheduled.wrote;
        for action in actions {
            match action {
                // Without a desired state that was ever read there is nothing to assign.
                // What was told may begin a step of a rollout: the next look sees it.
                FleetAction::Assign { assignment: new } if self.has_read() => {
                    assignment = new;
                    wrote = true;
                }
                FleetAction::Assign { .. } => {}
                other => match self.write_or_keep(other).await {
                    Ok(written) => wrote |= written,
                    Err(error) => failed = Some(error),
                },
            }
        }
        // A write that failed is one service's trouble; only what was not read is everybody's.
        let jobs = if fresh {
            Some(self.jobs(&desired, now).await)
        } else {
            None
        };
        let mut acted_on_jobs = false;
        let mut wake_at = wake_at;
        if let Some(turn) = jobs {
            notes.extend(turn.notes);
            wake_at = earliest(wake_at, turn.wake_at);
            acted_on_jobs = turn.acted;
            failed = failed.or(turn.failed);
        }
        let (node_wake, acted) = self.agent.step(assignment, notes, now);
        let mut wake_at = earliest(earliest(wake_at, node_wake), scheduled.wake_at);
        if let Some(error) = failed {
            tracing::error!(
                error = crate::agent::report(&error),
                "cannot use desired state; trying again"
            );
            wake_at = earliest(wake_at, Some(now.plus(RETRY_AFTER)));
        }
        (wake_at, wrote || acted || acted_on_jobs)
    }

    /// What the fleet planner sees: since when things hold is remembered from the last look.
    fn look(&self, desired: &Desired, now: Millis) -> FleetView {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.replicas = self.agent.replicas();
        view.assigned = self.agent.assigned();
        view.loads = self.agent.loads(desired, now);
        let before: Vec<_> = view.scaling.iter().map(|(name, s)| (name.clone(), s.count)).collect();
        crate::plan::fleet::observe(desired, &mut view, now);
        for (name, was) in before {
            if let Some(scaling) = view
                .scaling
                .get(&name)
                .filter(|s| s.count != was && s.cause != Cause::ByHand)
            {
                let cause = scaling.cause.as_str();
                let text = format!(
                    "autoscale: from {was} to {} replicas: {cause}; {}",
                    scaling.count,
                    scaling.load_text()
                );
                self.event(EventKind::Scaled, &name, None, text);
            }
        }
        let mut gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        gauge.measure(desired, &mut view, &self.agent);
        view.clone()
    }

    /// How far the load has scaled a service; none without `[autoscale]`, or as long as a `scale` by hand was not seen.
    pub fn scaling(&self, record: &ServiceRecord) -> Option<Scaling> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let known = view.scaling.get(&record.name);
        known.filter(|s| s.scalings == record.scalings).cloned()
    }

    /// The stage that the rollout of a service is in, and its figures, as the loop last saw them.
    pub fn stage(&self, service: &ServiceName) -> Option<(Stage, Option<Measures>)> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = view.stages.get(service)?;
        Some((*stage, view.measures.get(service).cloned()))
    }

    /// Whether it was written: what does not hold any more is not.
    async fn write(&self, action: FleetAction) -> Result<bool, RecordsError> {
        let at = self.clock.wall();
        match action {
            FleetAction::Prove { service, revision } => {
                if !self.records.prove(&service, revision, at).await? {
                    return Ok(false);
                }
                let text = format!("revision {revision} proved itself and is stable");
                self.event(EventKind::Proved, &service, Some(revision), text);
            }
            FleetAction::Refuse {
                service,
                revision,
                why,
                detail,
                back_to,
            } => {
                let refused = self
                    .records
                    .refuse(&service, revision, why, detail.clone(), back_to, at);
                if !refused.await? {
                    return Ok(false);
                }
                let text = format!("revision {revision} refused ({}): {detail}", words::why(why));
                self.event(EventKind::Refused, &service, Some(revision), text);
                if let Some(back) = back_to {
                    let text = format!("rolled back from revision {revision} to {back}: {detail}");
                    self.event(EventKind::RolledBack, &service, Some(back), text);
                }
                self.records.trim(&service).await?;
            }
            FleetAction::Step {
                service,
                revision,
                step,
            } => {
                self.records.step(&service, revision, step, at).await?;
                let text = format!("step {step} of the rollout of revision {revision} was held to its end");
                self.event(EventKind::Rollout, &service, Some(revision), text);
            }
            FleetAction::Forget { service } => {
                // A request that a schedule sends must not reach a later service of this name.
                self.scheduler
                    .end_calls(|name| *name == service, "the service was deleted", at);
                forget::forget(&self.records, &self.on_forget, &service).await?;
                self.event(EventKind::Deleted, &service, None, "deleted".into());
            }
            FleetAction::Assign { .. } => {}
        }
        Ok(true)
    }

    fn event(
        &self,
        kind: EventKind,
        service: &ServiceName,
        revision: Option<crate::model::RevisionNumber>,
        text: String,
    ) {
        self.events.record(
            kind,
            Some(service),
            Occurrence {
                revision,
                ..Occurrence::new(text)
            },
        );
    }
}

fn earliest(a: Option<Millis>, b: Option<Millis>) -> Option<Millis> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

async fn until(clock: &Clock, at: Option<Millis>) {
    match at {
        Some(at) => tokio::time::sleep(clock.until(at)).await,
        None => std::future::pending().await,
    }
}

/// Notes of one service, newest last.
pub fn notes_of(notes: &[Note]) -> Vec<String> {
    notes.iter().map(|n| n.text.clone()).collect()
}
