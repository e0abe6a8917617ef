//! A revision again, with another version of one of its secrets: what a changed secret means for the services that read it.

use super::*;

impl Records {
    /// Makes the wanted revision again, as a new one that pins `version` of the secret. Unlike a deploy it ends neither `scale` nor
    /// `stop`: nobody asked for more than the new value. None: the wanted revision does not read the secret, pins this version
    /// already, or the service is being deleted.
    ///
    /// # Errors
    /// There is no such service, or the store cannot be written.
    pub async fn renew(
        &self,
        name: &ServiceName,
        secret: &str,
        version: u64,
        at: Timestamp,
    ) -> Result<Option<Deployed>, RecordsError> {
        for _ in 0..TRIES {
            let Held { record, modified } = self.held(name).await?;
            let wanted = self.revision(name, record.wanted).await?;
            if record.deleting || wanted.secrets.get(secret).is_none_or(|pinned| *pinned == version) {
                return Ok(None);
            }
            let number = record.next_revision;
            let mut txn = Txn {
                guards: vec![
                    Guard::modified(service_key(name), modified),
                    Guard::absent(revision_key(name, number)),
                ],
                ops: vec![],
            };
            if wanted.state == RevisionState::Pending {
                txn.put_revision(&Revision {
                    state: RevisionState::Superseded { at },
                    ..(*wanted).clone()
                });
            }
            // What it was scaled to holds for the new one too.
            let holds = record.scaled_under.is_some_and(|newest| newest >= record.wanted);
            txn.put_service(&ServiceRecord {
                wanted: number,
                next_revision: RevisionNumber(number.0 + 1),
                scaled_under: if holds { Some(number) } else { record.scaled_under },
                changed_at: at,
                ..record.clone()
            });
            let mut secrets = wanted.secrets.clone();
            secrets.insert(secret.to_owned(), version);
            let cause = format!("secret {secret} changed");
            txn.put_revision(&Revision {
                secrets,
                ..wanted.again(number, cause, at)
            });
            if self.commit(txn).await? {
                return Ok(Some(Deployed {
                    revision: number,
                    changed: true,
                    previous: Some(record.wanted),
                }));
            }
        }
        Err(RecordsError::Contended(name.clone()))
    }
}
