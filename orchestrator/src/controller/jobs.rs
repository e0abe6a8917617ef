//! Performs what `plan::job` decides: the store first, then the node, so that nothing is begun that a restart would not know of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Controller;
use crate::agent::Start;
use crate::model::{EventKind, JobRun, Millis, RevisionNumber, RevisionState, RunId, RunState, ServiceName};
use crate::plan::job::{self, JobAction};
use crate::plan::{Desired, FleetAction, Note, Plan};
use crate::store::RecordsError;

/// What one turn of the job planner came to.
pub(super) struct JobTurn {
    pub wake_at: Option<Millis>,
    pub acted: bool,
    pub notes: Vec<Note>,
    /// What the store did not take: it is decided again.
    pub failed: Option<RecordsError>,
}

impl Controller {
    /// One look, plan and act. `desired` was read in this turn: on an older state nothing is started, because what was written
    /// since would be begun twice.
    pub(super) async fn jobs(&self, desired: &Desired, now: Millis) -> JobTurn {
        if !self.found_runs.swap(true, std::sync::atomic::Ordering::AcqRel) {
            let open = desired.runs.values().flat_map(BTreeMap::values).filter(|r| r.is_open());
            self.agent.found_runs(open.map(|r| (r.service.clone(), r.id)).collect());
        }
        let pending: BTreeMap<&ServiceName, RevisionNumber> = desired
            .services
            .iter()
            .filter(|(_, s)| s.is_job())
            .filter_map(|(name, s)| {
                let wanted = s.revisions.get(&s.record.wanted)?;
                (wanted.state == RevisionState::Pending).then_some((name, wanted.number))
            })
            .collect();
        self.agent.keep_prepared(&pending);
        let Plan {
            actions,
            notes,
            wake_at,
        } = job::jobs(desired, &self.agent.jobs_view(), now);
        let mut turn = JobTurn {
            wake_at,
            acted: false,
            notes,
            failed: None,
        };
        for action in actions {
            match self.perform_job(desired, action, now).await {
                Ok(()) => turn.acted = true,
                Err(error) => turn.failed = Some(error),
            }
        }
        turn
    }

    async fn perform_job(&self, desired: &Desired, action: JobAction, now: Millis) -> Result<(), RecordsError> {
        let at = self.clock.wall();
        match action {
            JobAction::Prepare { service, revision } => {
                if let Some(revision) = desired.services.get(&service).and_then(|s| s.revisions.get(&revision)) {
                    self.agent.prepare_job(Arc::clone(revision));
                }
            }
            JobAction::Begin { service, revision } => {
                let cause = desired
                    .services
                    .get(&service)
                    .and_then(|s| s.revisions.get(&revision))
                    .map_or("deploy", |r| &r.cause);
                let instead = format!("revision {revision} took its place");
                let begun = self
                    .records
                    .begin_run_and(&service, revision, None, cause, Some(&instead), at);
                let run = begun.await?;
                self.run_event(
                    &service,
                    revision,
                    EventKind::RunBegan,
                    format!("run {run} began: {cause}"),
                );
            }
            JobAction::Prove { service, revision } => {
                self.write(FleetAction::Prove { service, revision }).await?;
            }
            JobAction::Refuse {
                service,
                revision,
                why,
                detail,
                back_to,
            } => {
                self.write_or_keep(FleetAction::Refuse {
                    service,
                    revision,
                    why,
                    detail,
                    back_to,
                })
                .await?;
            }
            JobAction::Forget { service } => {
                self.write(FleetAction::Forget { service }).await?;
            }
            JobAction::Open { service, run, lost } => {
                let Some(mut found) = record(desired, &service, run) else {
                    return Ok(());
                };
                if lost {
                    found = self.records.adopt_run(&service, run).await?;
                }
                let revision = desired
                    .services
                    .get(&service)
                    .and_then(|s| s.revisions.get(&found.revision));
                self.agent.open_run(&found, revision.map(|r| r.digest), now);
            }
            JobAction::Start { service, run, attempt } => {
                let Some(run) = record(desired, &service, run) else {
                    return Ok(());
                };
                let revisions = desired.services.get(&service).map(|s| &s.revisions);
                if let Some(revision) = revisions.and_then(|r| r.get(&run.revision)) {
                    let revision = Arc::clone(revision);
                    self.agent.start_attempt(Start { run, revision, attempt }, now);
                }
            }
            JobAction::Kill { service, run, attempt } => self.agent.kill_attempt(&service, run, attempt),
            JobAction::Record {
                service,
                run,
                attempt,
                ran_ms,
            } => {
                if let Some(ended) = self.agent.ended_attempt(&service, run, attempt) {
                    self.records.end_attempt(&service, run, ended, ran_ms).await?;
                }
                self.agent.recorded_attempt(&service, run, attempt);
            }
            JobAction::Finish {
                service,
                run,
                state,
                ran_ms,
            } => {
                let ended = self.records.end_run(&service, run, state, ran_ms, at).await?;
                self.agent.close_run(&service, run);
                self.run_event(&service, ended.revision, EventKind::RunEnded, ending(&ended));
            }
            JobAction::Drop { service, run } => self.agent.close_run(&service, run),
        }
        Ok(())
    }

    /// Tells of a run.
    pub fn run_event(&self, service: &ServiceName, revision: RevisionNumber, kind: EventKind, text: String) {
        self.event(kind, service, Some(revision), text);
    }
}

fn record(desired: &Desired, service: &ServiceName, run: RunId) -> Option<Arc<JobRun>> {
    desired.runs.get(service)?.get(&run).cloned()
}

/// `run 3 failed: 4 attempts failed, the last ended with code 3`.
fn ending(run: &JobRun) -> String {
    let word = match run.state {
        RunState::TimedOut => "was ended",
        RunState::Cancelled { .. } => "was cancelled",
        _ => job::word(&run.state),
    };
    match job::reason(run) {
        Some(why) => format!("run {} {word}: {why}", run.id),
        None => format!("run {} {word}", run.id),
    }
}
