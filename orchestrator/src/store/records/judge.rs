//! How a trial ended, written down once: a revision that is not on trial any more stays what it is.

use super::{Held, Records, RecordsError, TRIES, Txn, service_key};
use crate::model::{Refusal, Revision, RevisionNumber, RevisionState, ServiceName, ServiceRecord, Timestamp, Why};
use crate::store::Guard;

impl Records {
    /// The revision proved itself: it is the stable one. Old revisions beyond `keep_revisions` go. False: nothing was written,
    /// because it is not on trial or another one is wanted.
    pub async fn prove(&self, name: &ServiceName, number: RevisionNumber, at: Timestamp) -> Result<bool, RecordsError> {
        let proved = |record: &mut ServiceRecord| {
            record.stable = Some(number);
            record.wanted == number
        };
        let written = self
            .judge(name, number, RevisionState::Proved { at }, at, proved)
            .await?;
        if written {
            self.trim(name).await?;
        }
        Ok(written)
    }

    /// The revision is refused; `back_to` is wanted again, if there is one. False: nothing was written, because it is not on trial.
    pub async fn refuse(
        &self,
        name: &ServiceName,
        number: RevisionNumber,
        why: Why,
        detail: String,
        back_to: Option<RevisionNumber>,
        at: Timestamp,
    ) -> Result<bool, RecordsError> {
        if let Some(back_to) = back_to {
            // A service that wants a revision that is not there could not be loaded again.
            self.revision(name, back_to).await?;
        }
        let state = RevisionState::Refused(Refusal { why, detail, at });
        self.judge(name, number, state, at, |record| {
            // Someone may have deployed a newer one in between: that stays wanted.
            if record.wanted == number {
                record.wanted = back_to.unwrap_or(number);
            }
            true
        })
        .await
    }

    /// `change` says whether the verdict still holds.
    async fn judge(
        &self,
        name: &ServiceName,
        number: RevisionNumber,
        state: RevisionState,
        at: Timestamp,
        change: impl Fn(&mut ServiceRecord) -> bool,
    ) -> Result<bool, RecordsError> {
        for _ in 0..TRIES {
            let Held { mut record, modified } = self.held(name).await?;
            let revision = self.revision(name, number).await?;
            if revision.state != RevisionState::Pending || !change(&mut record) {
                return Ok(false);
            }
            record.changed_at = at;
            let mut txn = Txn {
                guards: vec![Guard::modified(service_key(name), modified)],
                ops: vec![],
            };
            txn.put_service(&record);
            txn.put_revision(&Revision {
                state: state.clone(),
                ..(*revision).clone()
            });
            if self.commit(txn).await? {
                return Ok(true);
            }
        }
        Err(RecordsError::Contended(name.clone()))
    }
}
