//! What is written while a revision is on trial: steps, and what people ask for. Each is one guarded transaction.

use super::{Deployed, Held, Records, RecordsError, Txn};
use crate::model::rollout::RolloutRecord;
use crate::model::{Refusal, Revision, RevisionNumber, RevisionState, ServiceName, ServiceRecord, Timestamp, Why};
use crate::store::Guard;

impl Records {
    /// So many steps were held to their end. Nothing is written when another revision is wanted by now.
    pub async fn step(
        &self,
        name: &ServiceName,
        revision: RevisionNumber,
        step: u32,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.update(name, at, |record| {
            if record.wanted == revision {
                let now = at_of(record);
                record.rollout = Some(RolloutRecord {
                    step: step.max(now.step),
                    ..now
                });
            }
            Ok::<_, RecordsError>(())
        })
        .await
    }

    /// No further step is taken, or steps are taken again.
    pub async fn set_paused(
        &self,
        name: &ServiceName,
        paused: bool,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.on_trial(name, at, |now| now.paused = paused).await
    }

    /// The steps that are left are passed over, and so are the gates.
    pub async fn promote(&self, name: &ServiceName, at: Timestamp) -> Result<ServiceRecord, RecordsError> {
        self.on_trial(name, at, |now| (now.promoted, now.paused) = (true, false))
            .await
    }

    async fn on_trial(
        &self,
        name: &ServiceName,
        at: Timestamp,
        edit: impl Fn(&mut RolloutRecord),
    ) -> Result<ServiceRecord, RecordsError> {
        let trial = self.trial(name).await?;
        self.update(name, at, |record| {
            if record.wanted != trial || record.stable == Some(trial) {
                return Err(no_rollout(record));
            }
            let mut now = at_of(record);
            edit(&mut now);
            record.rollout = Some(now);
            Ok(())
        })
        .await
    }

    /// The revision on trial.
    async fn trial(&self, name: &ServiceName) -> Result<RevisionNumber, RecordsError> {
        let record = self.service(name).await?;
        if record.deleting {
            return Err(RecordsError::Deleting(name.clone()));
        }
        let wanted = self.revision(name, record.wanted).await?;
        if record.stable == Some(wanted.number) || wanted.state != RevisionState::Pending {
            return Err(no_rollout(&record));
        }
        Ok(wanted.number)
    }

    /// The revision on trial is refused and the stable one wanted again, as `detail` says. Starts nothing: what serves of the
    /// stable revision gets all requests.
    pub async fn abort(&self, name: &ServiceName, detail: &str, at: Timestamp) -> Result<Deployed, RecordsError> {
        for _ in 0..super::TRIES {
            let trial = self.trial(name).await?;
            let Held { mut record, modified } = self.held(name).await?;
            let revision = self.revision(name, trial).await?;
            let on_trial = record.wanted == trial && revision.state == RevisionState::Pending;
            let Some(stable) = record.stable.filter(|stable| on_trial && *stable != trial) else {
                return Err(no_rollout(&record));
            };
            record.wanted = stable;
            record.changed_at = at;
            let mut txn = Txn {
                guards: vec![Guard::modified(super::service_key(name), modified)],
                ops: vec![],
            };
            txn.put_service(&record);
            txn.put_revision(&Revision {
                state: RevisionState::Refused(Refusal {
                    why: Why::Asked,
                    detail: detail.to_owned(),
                    at,
                }),
                ..(*revision).clone()
            });
            if self.commit(txn).await? {
                return Ok(Deployed {
                    revision: stable,
                    changed: true,
                    previous: Some(trial),
                });
            }
        }
        Err(RecordsError::Contended(name.clone()))
    }
}

/// How far the rollout of the wanted revision is.
fn at_of(record: &ServiceRecord) -> RolloutRecord {
    let at = record.rollout.filter(|r| r.revision == record.wanted);
    at.unwrap_or(RolloutRecord::of(record.wanted))
}

fn no_rollout(record: &ServiceRecord) -> RecordsError {
    RecordsError::NoRollout {
        service: record.name.clone(),
        wanted: record.wanted,
        stable: record.stable,
    }
}
