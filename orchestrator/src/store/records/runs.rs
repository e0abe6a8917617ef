//! Runs of command services in the store: begun, written after each attempt, ended, and the oldest let go. Decides nothing: when
//! a run begins or ends is `plan::job`'s business, a person's or a schedule's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Guard, Held, Item, MAX_OPS, Op, Records, RecordsError, TRIES, Txn, body, broken, encode, service_key};
use crate::model::job::Attempt;
use crate::model::{JobRun, RevisionNumber, RunId, RunState, ServiceName, Timestamp};

const RUNS: &str = "runs/";
/// Ended runs that a service keeps.
pub const KEPT_RUNS: usize = 20;
/// Runs of one service that may be open at once: more means that something begins them and nothing ends them.
pub const OPEN_RUNS: usize = 20;
/// Arguments of one run, all together: they are written with every attempt.
pub const ARGS_BYTES: usize = 16 << 10;

/// Runs of the last `load`, by key, with the store revision that wrote each.
pub(super) type ParsedRuns = Mutex<BTreeMap<Arc<str>, (u64, Arc<JobRun>)>>;

/// Every run of every service, the oldest first.
pub type Runs = BTreeMap<ServiceName, BTreeMap<RunId, Arc<JobRun>>>;

impl Records {
    /// Begins a run of `revision`: the control loop starts its attempts. `args`: instead of the file's.
    ///
    /// # Errors
    /// The service or the revision is not there, it is stopped or being deleted, or too many of its runs are open.
    pub async fn begin_run(
        &self,
        service: &ServiceName,
        revision: RevisionNumber,
        args: Option<Vec<String>>,
        cause: &str,
        at: Timestamp,
    ) -> Result<RunId, RecordsError> {
        self.begin_run_and(service, revision, args, cause, None, at).await
    }

    /// [`Self::begin_run`], and in the same transaction what is open is asked to end for `replace`.
    pub async fn begin_run_and(
        &self,
        service: &ServiceName,
        revision: RevisionNumber,
        args: Option<Vec<String>>,
        cause: &str,
        replace: Option<&str>,
        at: Timestamp,
    ) -> Result<RunId, RecordsError> {
        let bytes: usize = args.iter().flatten().map(String::len).sum();
        if bytes > ARGS_BYTES {
            return Err(RecordsError::ArgsTooLong(service.clone()));
        }
        for _ in 0..TRIES {
            let Held { record, modified } = self.held(service).await?;
            if record.deleting {
                return Err(RecordsError::Deleting(service.clone()));
            }
            if record.stopped {
                return Err(RecordsError::Stopped(service.clone()));
            }
            self.revision(service, revision).await?;
            let items = self.store.list(&format!("{RUNS}{service}/")).await?.items;
            let runs = self.parse_runs(&items)?;
            let open = || runs.iter().zip(&items).filter(|(run, _)| run.is_open());
            if open()
                .filter(|(run, _)| run.cancel.is_none() && replace.is_none())
                .count()
                >= OPEN_RUNS
            {
                return Err(RecordsError::TooManyRuns(service.clone()));
            }
            let id = RunId(runs.last().map_or(1, |run| run.id.0 + 1));
            let key = (id, service.clone(), revision);
            let run = JobRun::begun(key, cause.to_owned(), args.clone(), at);
            let mut txn = Txn {
                guards: vec![
                    Guard::modified(service_key(service), modified),
                    Guard::absent(run_key(service, id)),
                ],
                ops: vec![Op::put(run_key(service, id), encode(&run))],
            };
            for (run, item) in open().filter(|(run, _)| run.cancel.is_none()) {
                if let Some(reason) = replace {
                    txn.guards.push(Guard::modified(&*item.key, item.modified));
                    let asked = JobRun {
                        cancel: Some(reason.to_owned()),
                        ..(**run).clone()
                    };
                    txn.ops.push(Op::put(&*item.key, encode(&asked)));
                }
            }
            if self.commit(txn).await? {
                return Ok(id);
            }
        }
        Err(RecordsError::Contended(service.clone()))
    }

    /// Every run that is kept, the oldest first.
    pub async fn runs(&self, service: &ServiceName) -> Result<Vec<Arc<JobRun>>, RecordsError> {
        self.held(service).await?;
        let items = self.store.list(&format!("{RUNS}{service}/")).await?.items;
        self.parse_runs(&items)
    }

    /// Those that have not ended.
    pub async fn open_runs(&self, service: &ServiceName) -> Result<Vec<Arc<JobRun>>, RecordsError> {
        let mut runs = self.runs(service).await?;
        runs.retain(|run| run.is_open());
        Ok(runs)
    }

    /// Asks a run to end; one that has ended stays as it is.
    pub async fn cancel_run(
        &self,
        service: &ServiceName,
        id: RunId,
        at: Timestamp,
    ) -> Result<Arc<JobRun>, RecordsError> {
        self.cancel_run_for(service, id, "it was asked to end", at).await
    }

    /// [`Self::cancel_run`] with a reason of one printable sentence. The first reason stays.
    pub async fn cancel_run_for(
        &self,
        service: &ServiceName,
        id: RunId,
        reason: &str,
        _at: Timestamp,
    ) -> Result<Arc<JobRun>, RecordsError> {
        self.change_run(service, id, |run| {
            run.cancel.get_or_insert_with(|| reason.to_owned());
        })
        .await
    }

    /// A new process found it open: what was under way of it is lost.
    pub async fn adopt_run(&self, service: &ServiceName, id: RunId) -> Result<Arc<JobRun>, RecordsError> {
        self.change_run(service, id, |run| run.interruptions += 1).await
    }

    /// Writes down an attempt that has ended. `ran_ms`: how long its run has been open.
    pub async fn end_attempt(
        &self,
        service: &ServiceName,
        id: RunId,
        attempt: Attempt,
        ran_ms: u64,
    ) -> Result<Arc<JobRun>, RecordsError> {
        self.change_run(service, id, |run| run.count(attempt.clone(), ran_ms))
            .await
    }

    /// The run has ended; the oldest ended ones beyond [`KEPT_RUNS`] go.
    pub async fn end_run(
        &self,
        service: &ServiceName,
        id: RunId,
        state: RunState,
        ran_ms: u64,
        at: Timestamp,
    ) -> Result<Arc<JobRun>, RecordsError> {
        let run = self
            .change_run(service, id, |run| {
                run.state = state.clone();
                run.ran_ms = run.ran_ms.max(ran_ms);
                run.ended_at = Some(at);
            })
            .await?;
        self.trim_runs(service).await?;
        Ok(run)
    }

    async fn trim_runs(&self, service: &ServiceName) -> Result<(), RecordsError> {
        let items = self.store.list(&format!("{RUNS}{service}/")).await?.items;
        let runs = self.parse_runs(&items)?;
        // The newest stays whatever it is: its number is what the next one counts on from.
        let newest = items.len().saturating_sub(1);
        let ended: Vec<_> = runs
            .iter()
            .zip(&items)
            .enumerate()
            .filter(|(n, (run, _))| !run.is_open() && *n != newest)
            .map(|(_, (_, item))| item)
            .collect();
        let surplus = (ended.len() + 1)
            .saturating_sub(KEPT_RUNS)
            .min(MAX_OPS)
            .min(ended.len());
        let txn = Txn {
            guards: Vec::new(),
            ops: ended[..surplus].iter().map(|item| Op::delete(&*item.key)).collect(),
        };
        if surplus > 0 {
            self.commit(txn).await?;
        }
        Ok(())
    }

    /// Reads the run, lets `change` edit it, and writes it if nobody else did in between; else again. One that has ended is
    /// not changed any more.
    async fn change_run(
        &self,
        service: &ServiceName,
        id: RunId,
        change: impl Fn(&mut JobRun),
    ) -> Result<Arc<JobRun>, RecordsError> {
        for _ in 0..TRIES {
            let item = self.store.get(&run_key(service, id)).await?;
            let item = item.ok_or_else(|| RecordsError::NoRun(service.clone(), id))?;
            let old: JobRun = body(&item)?;
            let mut run = old.clone();
            if run.is_open() {
                change(&mut run);
            }
            if run == old {
                return Ok(Arc::new(old));
            }
            let txn = Txn {
                guards: vec![Guard::modified(&*item.key, item.modified)],
                ops: vec![Op::put(&*item.key, encode(&run))],
            };
            if self.commit(txn).await? {
                return Ok(Arc::new(run));
            }
        }
        Err(RecordsError::Contended(service.clone()))
    }

    fn parse_runs(&self, items: &[Item]) -> Result<Vec<Arc<JobRun>>, RecordsError> {
        let parsed = self.parsed_runs.lock().unwrap_or_else(PoisonError::into_inner);
        let parse = |item: &Item| match parsed.get(&item.key) {
            Some((modified, run)) if *modified == item.modified => Ok(Arc::clone(run)),
            _ => body::<JobRun>(item).and_then(|run| {
                if *item.key == *run_key(&run.service, run.id) {
                    Ok(Arc::new(run))
                } else {
                    Err(broken(&item.key, "it names another run"))
                }
            }),
        };
        items.iter().map(parse).collect()
    }

    /// The runs among all items of a snapshot.
    pub(super) fn load_runs(&self, items: &[Item]) -> Result<Runs, RecordsError> {
        let from = items.partition_point(|item| *item.key < *RUNS);
        let until = from + items[from..].partition_point(|item| item.key.starts_with(RUNS));
        let runs = self.parse_runs(&items[from..until])?;
        let mut parsed = BTreeMap::new();
        let mut by_service = Runs::new();
        for (item, run) in items[from..until].iter().zip(runs) {
            parsed.insert(Arc::clone(&item.key), (item.modified, Arc::clone(&run)));
            by_service.entry(run.service.clone()).or_default().insert(run.id, run);
        }
        *self.parsed_runs.lock().unwrap_or_else(PoisonError::into_inner) = parsed;
        Ok(by_service)
    }

    /// Keys of every run of a service that is being forgotten.
    pub(super) async fn run_keys(&self, service: &ServiceName) -> Result<Vec<Arc<str>>, RecordsError> {
        let items = self.store.list(&format!("{RUNS}{service}/")).await?.items;
        Ok(items.into_iter().map(|item| item.key).collect())
    }
}

/// Padded, so that the order of keys is the order of numbers.
fn run_key(service: &ServiceName, id: RunId) -> String {
    format!("{RUNS}{service}/{:020}", id.0)
}

#[cfg(test)]
#[path = "runs_tests.rs"]
mod tests;
