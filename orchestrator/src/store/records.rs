//! Services and revisions in a [`Store`]: which keys they have, and which changes belong into one transaction.
//!
//! Decides nothing about rollouts: it writes what a planner or a person decided, or says that something changed underneath.
//! Times come from the caller.

mod judge;
mod renew;
mod rollout;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use narae_runtime::{Digest, Kind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Guard, Item, MAX_OPS, Op, Outcome, Store, StoreError, Watch};
use crate::model::record::Accepted;
use crate::model::rollout::RolloutRecord;
use crate::model::{
    ReplicaCount, Revision, RevisionNumber, RevisionState, RunId, ServiceName, ServiceRecord, ServiceSpec, Timestamp,
};
use crate::plan::{Desired, DesiredService};

pub mod runs;
mod schedules;

const SERVICES: &str = "services/";
const REVISIONS: &str = "revisions/";
/// Shape of the JSON around every body.
const SCHEMA: u32 = 1;
/// Tries of a read-change-write before it gives up: each lost race means that another writer got on.
const TRIES: u32 = 32;

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    #[error("no service `{0}`")]
    NoService(ServiceName),
    #[error("service `{0}` has no revision {1}")]
    NoRevision(ServiceName, RevisionNumber),
    /// `undo` without a number, and nothing to go back to.
    #[error("service `{0}` has no earlier revision that proved itself")]
    NothingToUndo(ServiceName),
    /// The precondition of a deploy: what is wanted now.
    #[error("service `{service}` changed underneath: {}", match .found {
        Some(found) => format!("its revision is {found}"),
        None => "it does not exist".to_owned(),
    })]
    Changed {
        service: ServiceName,
        found: Option<RevisionNumber>,
    },
    #[error("service `{0}` is being deleted")]
    Deleting(ServiceName),
    /// A command cannot become a service, nor the other way round.
    #[error("service `{0}` cannot become another kind of thing")]
    KindChanges(ServiceName),
    /// Nothing is kept of it (yet).
    #[error("service `{0}` has no schedule `{1}`")]
    NoSchedule(ServiceName, String),
    #[error("service `{0}` has no run {1}")]
    NoRun(ServiceName, RunId),
    /// A run cannot begin.
    #[error("service `{0}` is stopped")]
    Stopped(ServiceName),
    #[error("service `{0}` has {n} runs open already", n = runs::OPEN_RUNS)]
    TooManyRuns(ServiceName),
    #[error("the arguments of a run of `{0}` are longer than {n} bytes", n = runs::ARGS_BYTES)]
    ArgsTooLong(ServiceName),
    /// Nothing is on trial, or there is nothing to go back to.
    #[error("service `{service}` has no rollout under way{}", match .stable {
        Some(stable) if stable == .wanted => format!(": revision {wanted} is stable"),
        Some(stable) => format!(": revision {wanted} was refused, {stable} is stable"),
        None => format!(" that has a revision to go back to: {wanted} is the first"),
    })]
    NoRollout {
        service: ServiceName,
        wanted: RevisionNumber,
        stable: Option<RevisionNumber>,
    },
    /// Other writers were faster, too many times in a row.
    #[error("service `{0}` changes too fast")]
    Contended(ServiceName),
    /// What is under this key is not what belongs there.
    #[error("record `{key}` makes no sense: {detail}")]
    Broken { key: String, detail: String },
    /// The data of a deleted service is still there, so its record stays.
    #[error("data of service `{0}` cannot be removed: {1}")]
    DataStays(ServiceName, String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a deploy brings. The number is given by the store.
#[derive(Clone, Debug)]
pub struct NewRevision {
    pub digest: Digest,
    pub kind: Kind,
    pub spec: ServiceSpec,
    /// The TOML as it was sent.
    pub source: String,
    /// `deploy`, `undo to 3`.
    pub cause: String,
    /// The version of each secret that the spec names.
    pub secrets: BTreeMap<String, u64>,
    /// What a person let through.
    pub accepted: Option<Accepted>,
}

/// What a deploy did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    pub revision: RevisionNumber,
    /// False: the same module and file were already wanted and running.
    pub changed: bool,
    /// Wanted before.
    pub previous: Option<RevisionNumber>,
}

/// The typed view of a store. Cheap to clone.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn Store>,
    /// Revisions of the last `load`: they are large, immutable but for their state, and read at every wake-up.
    parsed: Arc<Mutex<Parsed>>,
    /// The last `load`, good while the store's revision is the same: the planner asks at every wake-up.
    loaded: Loaded,
    parsed_runs: Arc<runs::ParsedRuns>,
    parsed_schedules: Arc<schedules::ParsedSchedules>,
}

type Loaded = Arc<Mutex<Option<(Arc<Desired>, u64)>>>;

/// By key, with the store revision that wrote it.
type Parsed = BTreeMap<Arc<str>, (u64, Arc<Revision>)>;

/// Around every value.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    schema: u32,
    body: T,
}

/// A service with the store revision that wrote it.
struct Held {
    record: ServiceRecord,
    modified: u64,
}

impl Records {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            parsed: Arc::default(),
            loaded: Arc::default(),
            parsed_runs: Arc::default(),
            parsed_schedules: Arc::default(),
        }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Everything that should be, and the store's revision it is of: what [`Self::watch`] goes on after. Holds of each
    /// service the wanted and the stable revision. One record that makes no sense fails it as a whole, because a service
    /// left out would be taken for one that must not run.
    pub async fn load(&self) -> Result<(Arc<Desired>, u64), RecordsError> {
        let now = self.store.status().revision;
        let last = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((desired, revision)) = last.filter(|(_, revision)| *revision == now) {
            return Ok((desired, revision));
        }
        let listing = self.store.list("").await?;
        let mut parsed = BTreeMap::new();
        let mut desired = Desired::default();
        for item in listing.items.iter().filter(|item| item.key.starts_with(SERVICES)) {
            let record: ServiceRecord = body(item)?;
            if item.key[SERVICES.len()..] != *record.name.as_str() {
                return Err(broken(&item.key, "it names another service"));
            }
            // All that are kept: replicas of a superseded one may still run, and a refused one says why.
            let prefix = format!("{REVISIONS}{}/", record.name);
            let from = listing.items.partition_point(|item| *item.key < *prefix);
            let mut revisions = BTreeMap::new();
            for item in listing.items[from..]
                .iter()
                .take_while(|item| item.key.starts_with(&prefix))
            {
                let revision = self.parse(item)?;
                parsed.insert(item.key.clone(), (item.modified, revision.clone()));
                revisions.insert(revision.number, revision);
            }
            for number in std::iter::once(record.wanted).chain(record.stable) {
                if !revisions.contains_key(&number) {
                    return Err(broken(
                        &revision_key(&record.name, number),
                        "its service wants it, but it is not there",
                    ));
                }
            }
            desired
                .services
                .insert(record.name.clone(), DesiredService { record, revisions });
        }
        *self.parsed.lock().unwrap_or_else(PoisonError::into_inner) = parsed;
        desired.runs = self.load_runs(&listing.items)?;
        desired.schedules = self.load_schedules(&listing.items)?;
        let desired = Arc::new(desired);
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some((desired.clone(), listing.revision));
        Ok((desired, listing.revision))
    }

    fn parse(&self, item: &Item) -> Result<Arc<Revision>, RecordsError> {
        let parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        match parsed.get(&item.key) {
            Some((modified, revision)) if *modified == item.modified => Ok(revision.clone()),
            _ => body(item).map(Arc::new),
        }
    }

    /// Changes of any record after this store revision. What changed does not matter: load again.
    pub fn watch(&self, after: u64) -> Watch {
        self.store.watch("", after)
    }

    /// One service.
    pub async fn service(&self, name: &ServiceName) -> Result<ServiceRecord, RecordsError> {
        Ok(self.held(name).await?.record)
    }

    /// One revision.
    pub async fn revision(&self, name: &ServiceName, number: RevisionNumber) -> Result<Arc<Revision>, RecordsError> {
        match self.store.get(&revision_key(name, number)).await? {
            Some(item) => self.parse(&item),
            None => Err(RecordsError::NoRevision(name.clone(), number)),
        }
    }

    /// All revisions that are kept, the oldest first.
    pub async fn history(&self, name: &ServiceName) -> Result<Vec<Arc<Revision>>, RecordsError> {
        self.held(name).await?;
        self.revisions(name).await
    }

    async fn revisions(&self, name: &ServiceName) -> Result<Vec<Arc<Revision>>, RecordsError> {
        let listing = self.store.list(&format!("{REVISIONS}{name}/")).await?;
        listing.items.iter().map(|item| self.parse(item)).collect()
    }

    /// Every module that a kept revision refers to, with `service` and revision.
    pub async fn modules(&self) -> Result<BTreeMap<Digest, Vec<(ServiceName, RevisionNumber)>>, RecordsError> {
        let mut used = BTreeMap::<_, Vec<_>>::new();
        for item in &self.store.list(REVISIONS).await?.items {
            let revision = self.parse(item)?;
            used.entry(revision.digest)
                .or_default()
                .push((revision.service.clone(), revision.number));
        }
        Ok(used)
    }

    /// Makes a new revision the wanted one, with its service if there is none. Undoes `scale` and `stop`. A wanted
    /// revision that had not proved itself becomes superseded. With `if_revision` it happens only when that revision is
    /// wanted (0: when there is no such service).
    pub async fn deploy(
        &self,
        new: NewRevision,
        if_revision: Option<u64>,
        at: Timestamp,
    ) -> Result<Deployed, RecordsError> {
        self.deploy_as(new, if_revision, false, at).await
    }

    /// `at_once`: without the steps of its strategy.
    async fn deploy_as(
        &self,
        new: NewRevision,
        if_revision: Option<u64>,
        at_once: bool,
        at: Timestamp,
    ) -> Result<Deployed, RecordsError> {
        let name = new.spec.name.clone();
        for _ in 0..TRIES {
            let held = self.find(&name).await?;
            let found = held.as_ref().map(|held| held.record.wanted);
            if if_revision.is_some_and(|expected| expected != found.map_or(0, |number| number.0)) {
                return Err(RecordsError::Changed { service: name, found });
            }
            let mut txn = Txn::default();
            let record = match held {
                None => {
                    txn.guards.push(Guard::absent(service_key(&name)));
                    first_record(&name, at)
                }
                Some(held) if held.record.deleting => return Err(RecordsError::Deleting(name)),
                Some(held) => {
                    txn.guards.push(Guard::modified(service_key(&name), held.modified));
                    let wanted = self.revision(&name, held.record.wanted).await?;
                    if wanted.spec.is_job() != new.spec.is_job() {
                        return Err(RecordsError::KindChanges(name));
                    }
                    if runs_already(&held.record, &wanted, &new) {
                        let revision = held.record.wanted;
                        return Ok(Deployed {
                            revision,
                            changed: false,
                            previous: Some(revision),
                        });
                    }
                    if wanted.state == RevisionState::Pending {
                        txn.put_revision(&Revision {
                            state: RevisionState::Superseded { at },
                            ..(*wanted).clone()
                        });
                    }
                    held.record
                }
            };
            let number = record.next_revision;
            let next_revision = RevisionNumber(number.0 + 1);
            txn.guards.push(Guard::absent(revision_key(&name, number)));
            txn.put_service(&ServiceRecord {
                wanted: number,
                next_revision,
                rollout: at_once.then_some(RolloutRecord {
                    promoted: true,
                    ..RolloutRecord::of(number)
                }),
                stopped: false,
                grace_ms: None,
                changed_at: at,
                ..record
            });
            txn.put_revision(&Revision {
                service: name.clone(),
                number,
                digest: new.digest,
                kind: new.kind,
                spec: new.spec.clone(),
                source: new.source.clone(),
                created_at: at,
                cause: new.cause.clone(),
                state: RevisionState::Pending,
                secrets: new.secrets.clone(),
                accepted: new.accepted.clone(),
                renewed: false,
            });
            if self.commit(txn).await? {
                return Ok(Deployed {
                    revision: number,
                    changed: true,
                    previous: found,
                });
            }
        }
        Err(RecordsError::Contended(name))
    }

    /// Going back while a revision is on trial: to the stable one that still serves, which is aborting, and nothing has to
    /// start. None when nothing is on trial, or another revision than the stable one is asked for.
    pub async fn undo_trial(
        &self,
        name: &ServiceName,
        to: Option<RevisionNumber>,
        at: Timestamp,
    ) -> Result<Option<Deployed>, RecordsError> {
        let ServiceRecord { wanted, stable, .. } = self.held(name).await?.record;
        let on_trial = stable != Some(wanted) && self.revision(name, wanted).await?.state == RevisionState::Pending;
        let Some(back) = stable.filter(|stable| on_trial && to.is_none_or(|to| to == *stable)) else {
            return Ok(None);
        };
        let why = format!("undone by request, back to {back}");
        self.abort(name, &why, at).await.map(Some)
    }

    /// What an undo goes back to, and what is wanted now: number `to`, or the last one before the wanted that proved itself.
    pub async fn undo_target(
        &self,
        name: &ServiceName,
        to: Option<RevisionNumber>,
    ) -> Result<(Arc<Revision>, RevisionNumber), RecordsError> {
        let wanted = self.held(name).await?.record.wanted;
        let old = match to {
            Some(number) => self.revision(name, number).await?,
            None => {
                let proved = |r: &Arc<Revision>| matches!(r.state, RevisionState::Proved { .. }) && r.number < wanted;
                let last = self.revisions(name).await?.into_iter().rfind(proved);
                last.ok_or_else(|| RecordsError::NothingToUndo(name.clone()))?
            }
        };
        Ok((old, wanted))
    }

    /// [`Self::undo_trial`], else an earlier revision's module and file as a new revision, with the versions of its secrets and
    /// without steps: who goes back wants to be there.
    pub async fn undo(
        &self,
        name: &ServiceName,
        to: Option<RevisionNumber>,
        at: Timestamp,
    ) -> Result<Deployed, RecordsError> {
        if let Some(back) = self.undo_trial(name, to, at).await? {
            return Ok(back);
        }
        let (old, wanted) = self.undo_target(name, to).await?;
        self.deploy_again(&old, wanted, old.secrets.clone(), at).await
    }

    /// `old` as a new revision that pins these versions, while `wanted` is wanted.
    pub async fn deploy_again(
        &self,
        old: &Revision,
        wanted: RevisionNumber,
        secrets: BTreeMap<String, u64>,
        at: Timestamp,
    ) -> Result<Deployed, RecordsError> {
        let new = NewRevision {
            digest: old.digest,
            kind: old.kind,
            spec: old.spec.clone(),
            source: old.source.clone(),
            cause: format!("undo to {}", old.number),
            // What it ran with: an undo of a changed secret brings the old value back.
            secrets,
            accepted: None,
        };
        self.deploy_as(new, Some(wanted.0), true, at).await
    }

    /// Reads the service, lets `change` edit it, and writes it if nobody else did in between; else again. `change` may
    /// refuse with an error of its own.
    pub async fn update<E: From<RecordsError>>(
        &self,
        name: &ServiceName,
        at: Timestamp,
        change: impl Fn(&mut ServiceRecord) -> Result<(), E>,
    ) -> Result<ServiceRecord, E> {
        for _ in 0..TRIES {
            let Held { record: old, modified } = self.held(name).await?;
            let mut record = old.clone();
            change(&mut record)?;
            if record == old {
                return Ok(record);
            }
            record.changed_at = at;
            let mut txn = Txn {
                guards: vec![Guard::modified(service_key(name), modified)],
                ops: vec![],
            };
            txn.put_service(&record);
            if self.commit(txn).await? {
                return Ok(record);
            }
        }
        Err(RecordsError::Contended(name.clone()).into())
    }

    /// As [`Self::update`], for services that are not being deleted.
    async fn change(
        &self,
        name: &ServiceName,
        at: Timestamp,
        change: impl Fn(&mut ServiceRecord),
    ) -> Result<ServiceRecord, RecordsError> {
        self.update(name, at, |record| {
            if record.deleting {
                return Err(RecordsError::Deleting(record.name.clone()));
            }
            change(record);
            Ok(())
        })
        .await
    }

    /// `scale`: wins over the file until the next deploy.
    pub async fn scale(
        &self,
        name: &ServiceName,
        replicas: ReplicaCount,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.change(name, at, |record| {
            record.scaled = Some(replicas);
            record.scaled_under = Some(record.wanted);
            record.scheduled.clear();
            record.scalings += 1;
            record.grace_ms = None;
        })
        .await
    }

    /// `stop` and `start`. `grace_ms`: of requests in flight, else the file's drain.
    pub async fn set_stopped(
        &self,
        name: &ServiceName,
        stopped: bool,
        grace_ms: Option<u64>,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.change(name, at, |record| {
            record.stopped = stopped;
            record.grace_ms = grace_ms;
        })
        .await
    }

    /// `restart`: every replica is replaced, new beside old.
    pub async fn restart(
        &self,
        name: &ServiceName,
        grace_ms: Option<u64>,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.change(name, at, |record| {
            record.generation += 1;
            record.grace_ms = grace_ms;
        })
        .await
    }

    /// `delete`: drained first; [`Self::forget`] ends it.
    pub async fn delete(
        &self,
        name: &ServiceName,
        grace_ms: Option<u64>,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.update(name, at, |record| {
            record.deleting = true;
            record.grace_ms = grace_ms;
            Ok::<_, RecordsError>(())
        })
        .await
    }

    /// Removes a deleted service and all its revisions; one that is not there is gone already.
    pub async fn forget(&self, name: &ServiceName) -> Result<(), RecordsError> {
        for _ in 0..TRIES {
            let Some(Held { record, modified }) = self.find(name).await? else {
                return Ok(());
            };
            if !record.deleting {
                return Err(RecordsError::Changed {
                    service: name.clone(),
                    found: Some(record.wanted),
                });
            }
            let keys = self.store.list(&format!("{REVISIONS}{name}/")).await?.items;
            // The service goes with the last of its revisions, so that a forgetting that was cut short can go on.
            let mut ops: Vec<_> = keys.iter().map(|item| Op::delete(&*item.key)).collect();
            ops.extend(self.schedule_keys(name).await?.iter().map(|key| Op::delete(&**key)));
            ops.extend(self.run_keys(name).await?.iter().map(|key| Op::delete(&**key)));
            ops.push(Op::delete(service_key(name)));
            let guard = Guard::modified(service_key(name), modified);
            let mut done = true;
            for ops in ops.chunks(MAX_OPS) {
                done &= self
                    .commit(Txn {
                        guards: vec![guard.clone()],
                        ops: ops.to_vec(),
                    })
                    .await?;
            }
            if done {
                return Ok(());
            }
        }
        Err(RecordsError::Contended(name.clone()))
    }

    /// Removes the oldest revisions beyond the `keep_revisions` of the wanted one; never the wanted or the stable one.
    /// Returns how many.
    pub async fn trim(&self, name: &ServiceName) -> Result<usize, RecordsError> {
        let Held { record, modified } = self.held(name).await?;
        let wanted = self.revision(name, record.wanted).await?;
        let keep = wanted.spec.rollout.keep_revisions.max(1) as usize;
        let listing = self.store.list(&format!("{REVISIONS}{name}/")).await?;
        let open = if wanted.spec.is_job() {
            self.open_runs(name).await?
        } else {
            Vec::new()
        };
        let protected: Vec<_> = record
            .stable
            .into_iter()
            .chain([record.wanted])
            .chain(open.iter().map(|run| run.revision))
            .map(|number| revision_key(name, number))
            .collect();
        let surplus = listing.items.len().saturating_sub(keep);
        let old = listing
            .items
            .iter()
            .filter(|item| protected.iter().all(|key| **key != *item.key));
        let ops: Vec<_> = old
            .take(surplus.min(MAX_OPS))
            .map(|item| Op::delete(&*item.key))
            .collect();
        let removed = ops.len();
        let guards = vec![Guard::modified(service_key(name), modified)];
        // Lost the race: the next one that proves itself trims.
        Ok(if removed > 0 && self.commit(Txn { guards, ops }).await? {
            removed
        } else {
            0
        })
    }

    async fn find(&self, name: &ServiceName) -> Result<Option<Held>, RecordsError> {
        let item = self.store.get(&service_key(name)).await?;
        item.map(|item| {
            Ok(Held {
                record: body(&item)?,
                modified: item.modified,
            })
        })
        .transpose()
    }

    async fn held(&self, name: &ServiceName) -> Result<Held, RecordsError> {
        self.find(name)
            .await?
            .ok_or_else(|| RecordsError::NoService(name.clone()))
    }

    async fn commit(&self, txn: Txn) -> Result<bool, RecordsError> {
        Ok(matches!(
            self.store.txn(txn.guards, txn.ops).await?,
            Outcome::Committed(_)
        ))
    }
}

/// A deploy of `new` would change nothing. What counts is what the file says, not how: a comment makes no revision.
/// A refused revision that is deployed again is a new try, and one that lives beside a `scale` or `stop` ends those.
pub fn runs_already(record: &ServiceRecord, wanted: &Revision, new: &NewRevision) -> bool {
    record
        .scaled
        .is_none_or(|_| record.scaled_under.is_some_and(|under| under < record.wanted))
        && !record.stopped
        && wanted.digest == new.digest
        && wanted.spec == new.spec
        && wanted.secrets == new.secrets
        && !matches!(wanted.state, RevisionState::Refused(_))
}

fn first_record(name: &ServiceName, at: Timestamp) -> ServiceRecord {
    ServiceRecord {
        name: name.clone(),
        wanted: RevisionNumber(1),
        stable: None,
        next_revision: RevisionNumber(1),
        scaled: None,
        scaled_under: None,
        scheduled: Vec::new(),
        scalings: 0,
        rollout: None,
        stopped: false,
        generation: 0,
        deleting: false,
        grace_ms: None,
        created_at: at,
        changed_at: at,
    }
}

#[derive(Default)]
struct Txn {
    guards: Vec<Guard>,
    ops: Vec<Op>,
}

impl Txn {
    fn put_service(&mut self, record: &ServiceRecord) {
        self.ops.push(Op::put(service_key(&record.name), encode(record)));
    }

    fn put_revision(&mut self, revision: &Revision) {
        self.ops.push(Op::put(
            revision_key(&revision.service, revision.number),
            encode(revision),
        ));
    }
}

fn service_key(name: &ServiceName) -> String {
    format!("{SERVICES}{name}")
}

/// Padded, so that the order of keys is the order of numbers.
fn revision_key(name: &ServiceName, number: RevisionNumber) -> String {
    format!("{REVISIONS}{name}/{:020}", number.0)
}

fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(&Envelope { schema: SCHEMA, body }).expect("records have string keys and no failing fields")
}

fn body<T: DeserializeOwned>(item: &Item) -> Result<T, RecordsError> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let schema: Schema = serde_json::from_slice(&item.value).map_err(|error| broken(&item.key, error))?;
    if schema.schema != SCHEMA {
        let detail = format!("it has schema {}, this narae reads {SCHEMA}", schema.schema);
        return Err(broken(&item.key, detail));
    }
    let envelope: Envelope<T> = serde_json::from_slice(&item.value).map_err(|error| broken(&item.key, error))?;
    Ok(envelope.body)
}

fn broken(key: &str, detail: impl std::fmt::Display) -> RecordsError {
    RecordsError::Broken {
        key: key.to_owned(),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
