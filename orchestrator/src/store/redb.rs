//! The store of one machine: one file, one writer thread that syncs many transactions at once, and a copy in memory that
//! readers use, so that reading never waits for a disk and goes on while it fails.
//!
//! Files are tables `kv` (values, each with a checksum), `log` (the last changes, for watches that resume) and `meta`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use ::redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use bytes::Bytes;
use narae_runtime::{Digest, Task};
use tokio::sync::{mpsc, oneshot};

use super::feed::{Change, Commit, Feed};
use super::file::{DataFile, META, OpenError, Opener, guarded, on_file};
use super::memory::{Snapshot, changes};
use super::{Guard, Item, Listing, Op, Outcome, Status, Store, StoreError, Watch, check};

const KV: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kv");
/// By revision and place in its transaction.
const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
const REVISION: &str = "revision";
const SCHEMA: u64 = 1;
/// The copy in memory serves readers, so the engine's own cache only has to hold what a commit touches.
const CACHE_BYTES: usize = 4 << 20;
/// Transactions of one sync; and their bytes.
const BATCH_TXNS: usize = 128;
const BATCH_BYTES: usize = 8 << 20;
/// Transactions that wait for their turn; a further caller waits before it gets in.
const QUEUE: usize = 256;
const CHECKSUM_BYTES: usize = 16;

/// [`Store`] in a redb file. Dropping it waits for the transactions that are under way.
pub struct RedbStore {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    snapshot: RwLock<Snapshot>,
    feed: Feed,
    trouble: Mutex<Option<String>>,
}

struct Request {
    guards: Vec<Guard>,
    ops: Vec<Op>,
    bytes: usize,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
}

impl RedbStore {
    /// Opens the store at `path`, or makes it when there is no such file. Verifies every page and every value; blocks
    /// for as long as that takes.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, on_file())
    }

    pub(super) fn open_with(path: &Path, opener: Opener) -> Result<Self, OpenError> {
        let file = DataFile::lock(path, SCHEMA, CACHE_BYTES, true, opener)?;
        let db = file.open_or_create()?;
        let Loaded { snapshot, commits } = load(&db, &file)?;
        let feed = Feed::after(commits.first().map_or(snapshot.revision, |first| first.revision - 1));
        feed.append(commits);
        let shared = Arc::new(Shared {
            snapshot: RwLock::new(snapshot),
            feed,
            trouble: Mutex::default(),
        });
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            file,
            db: Some(db),
            shared: shared.clone(),
        };
        let writer = std::thread::Builder::new()
            .name("narae-store".into())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Io {
                what: "start the writer of",
                path: path.into(),
                source,
            })?;
        Ok(Self {
            shared,
            requests: Some(requests),
            writer: Some(writer),
        })
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has told so itself.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows synced commits to readers and watches.
    fn publish(&self, commits: Vec<Commit>) {
        let mut snapshot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        for commit in &commits {
            snapshot.apply(commit);
        }
        drop(snapshot);
        self.feed.append(commits);
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> Task<'a, Result<Option<Item>, StoreError>> {
        Box::pin(async move { Ok(self.shared.read().items.get(key).cloned()) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Task<'a, Result<Listing, StoreError>> {
        Box::pin(async move { Ok(self.shared.read().list(prefix)) })
    }

    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Task<'_, Result<Outcome, StoreError>> {
        Box::pin(async move {
            check(&guards, &ops)?;
            let bytes = ops.iter().map(Op::bytes).sum();
            let (reply, answer) = oneshot::channel();
            let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
            let request = Request {
                guards,
                ops,
                bytes,
                reply,
            };
            requests.send(request).await.map_err(|_| StoreError::Closed)?;
            answer.await.map_err(|_| StoreError::Closed)?
        })
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.shared.feed.watch(prefix, after)
    }

    fn status(&self) -> Status {
        let snapshot = self.shared.read();
        Status {
            engine: "redb",
            revision: snapshot.revision,
            keys: snapshot.items.len(),
            bytes: snapshot.bytes,
            compacted: self.shared.feed.compacted(),
            trouble: self
                .shared
                .trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// Owns the file; the only one that writes.
struct Writer {
    file: DataFile,
    /// Absent after the disk failed, until it could be opened again.
    db: Option<Database>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.bytes;
            let mut batch = vec![first];
            while batch.len() < BATCH_TXNS && bytes < BATCH_BYTES {
                let Ok(request) = queue.try_recv() else { break };
                bytes += request.bytes;
                batch.push(request);
            }
            self.commit(batch);
        }
    }

    /// Acknowledges after the sync. On a failure the engine refuses everything until it is opened anew, which is done at
    /// once: so the state that readers see is again the one on disk, whichever way the failed commit went.
    fn commit(&mut self, batch: Vec<Request>) {
        let (requests, replies): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|request| ((request.guards, request.ops), request.reply))
            .unzip();
        let compacted = self.shared.feed.compacted();
        let written = self.database().and_then(|db| write(db, requests, compacted));
        match written {
            Ok((outcomes, commits)) => {
                self.shared.publish(commits);
                self.shared.set_trouble(None);
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    let _ = reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(path = %self.file.path().display(), %error, "cannot write to the store");
                self.db = None;
                self.shared.set_trouble(Some(error.to_string()));
                let _ = self.database();
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.db.is_none() {
            let db = self.reopen()?;
            self.db = Some(db);
        }
        self.db.as_ref().ok_or(StoreError::Closed)
    }

    fn reopen(&self) -> Result<Database, StoreError> {
        let open = || {
            let db = self.file.reopen()?;
            let loaded = load(&db, &self.file)?;
            Ok((db, loaded))
        };
        let (db, loaded) = open().map_err(|error: OpenError| match error {
            OpenError::Io { source, .. } => io_error(&source),
            error => StoreError::Corrupt(error.to_string()),
        })?;
        let shown = self.shared.read().revision;
        if loaded.snapshot.revision < shown {
            let found = loaded.snapshot.revision;
            return Err(StoreError::Corrupt(format!(
                "it is at revision {found}, but {shown} was synced"
            )));
        }
        // Commits whose sync failed, and which are there all the same.
        self.shared.publish(
            loaded
                .commits
                .into_iter()
                .filter(|commit| commit.revision > shown)
                .collect(),
        );
        Ok(db)
    }
}

type Written = (Vec<Outcome>, Vec<Commit>);

/// All these transactions, one after the other, in one commit of the engine.
fn write(db: &Database, requests: Vec<(Vec<Guard>, Vec<Op>)>, compacted: u64) -> Result<Written, StoreError> {
    let mut damaged = None;
    let run = || -> Result<Written, ::redb::Error> {
        let txn = db.begin_write()?;
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut commits = Vec::new();
        {
            let mut kv = txn.open_table(KV)?;
            let mut revision = txn
                .open_table(META)?
                .get(REVISION)?
                .map_or(0, |revision| revision.value());
            for (guards, ops) in requests {
                let mut refused = None;
                for guard in &guards {
                    if !guard.holds(versions(&kv, guard.key(), &mut damaged)?) {
                        refused = Some(guard.key().to_owned());
                        break;
                    }
                }
                if let Some(key) = refused {
                    outcomes.push(Outcome::Refused { key });
                    continue;
                }
                let changes = changes(ops, revision + 1, |key| versions(&kv, key, &mut damaged))?;
                if !changes.is_empty() {
                    revision += 1;
                    for change in &changes {
                        match change {
                            Change::Put(item) => kv.insert(&*item.key, &*encode(item))?,
                            Change::Delete(key) => kv.remove(&**key)?,
                        };
                    }
                    commits.push(Commit { revision, changes });
                }
                outcomes.push(Outcome::Committed(revision));
            }
            if !commits.is_empty() {
                txn.open_table(META)?.insert(REVISION, revision)?;
                let mut log = txn.open_table(LOG)?;
                for commit in &commits {
                    for (place, change) in (0..).zip(&commit.changes) {
                        log.insert((commit.revision, place), &*encode_change(commit.revision, change))?;
                    }
                }
                while log.first()?.is_some_and(|(key, _)| key.value().0 <= compacted) {
                    log.pop_first()?;
                }
            }
        }
        if commits.is_empty() {
            txn.abort()?
        } else {
            txn.commit()?
        }
        Ok((outcomes, commits))
    };
    let written = guarded(run);
    if let Some(key) = damaged {
        return Err(StoreError::Corrupt(format!(
            "the value of key `{key}` is not the one that was written"
        )));
    }
    written.map_err(|error| match error {
        ::redb::Error::Io(error) => io_error(&error),
        ::redb::Error::Corrupted(detail) => StoreError::Corrupt(detail),
        error => StoreError::Io(error.to_string()),
    })
}

fn io_error(error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

fn versions(
    kv: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
    damaged: &mut Option<String>,
) -> Result<Option<(u64, u64)>, ::redb::Error> {
    let Some(value) = kv.get(key)? else { return Ok(None) };
    match decode(key, value.value()) {
        Some(item) => Ok(Some((item.created, item.modified))),
        None => {
            *damaged = Some(key.to_owned());
            Err(::redb::Error::Corrupted("checksum".to_owned()))
        }
    }
}

struct Loaded {
    snapshot: Snapshot,
    commits: Vec<Commit>,
}

/// Reads everything and verifies every value.
fn load(db: &Database, file: &DataFile) -> Result<Loaded, OpenError> {
    let mut damaged = None;
    let read = || -> Result<Option<Loaded>, ::redb::Error> {
        let txn = db.begin_read()?;
        let mut snapshot = Snapshot {
            revision: txn
                .open_table(META)?
                .get(REVISION)?
                .map_or(0, |revision| revision.value()),
            ..Snapshot::default()
        };
        let mut commits = BTreeMap::<u64, Vec<Change>>::new();
        // The first transaction makes these tables.
        if snapshot.revision > 0 {
            for entry in txn.open_table(KV)?.iter()? {
                let (key, value) = entry?;
                let Some(item) = decode(key.value(), value.value()).filter(|i| i.modified <= snapshot.revision) else {
                    damaged = Some(format!(
                        "the value of key `{}` is not the one that was written",
                        key.value()
                    ));
                    return Ok(None);
                };
                snapshot.insert(item);
            }
            for entry in txn.open_table(LOG)?.iter()? {
                let (key, value) = entry?;
                let (revision, _) = key.value();
                let Some(change) = decode_change(revision, value.value()) else {
                    damaged = Some(format!(
                        "the log of revision {revision} is not the one that was written"
                    ));
                    return Ok(None);
                };
                commits.entry(revision).or_default().push(change);
            }
        }
        let commits = commits
            .into_iter()
            .map(|(revision, changes)| Commit { revision, changes })
            .collect();
        Ok(Some(Loaded { snapshot, commits }))
    };
    let loaded = guarded(read).map_err(|error| file.database_error(&error))?;
    loaded.ok_or_else(|| file.corrupt(damaged.unwrap_or_default()))
}

/// Checksum, created, modified, value.
fn encode(item: &Item) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHECKSUM_BYTES + 16 + item.value.len());
    out.extend([0; CHECKSUM_BYTES]);
    out.extend(item.created.to_le_bytes());
    out.extend(item.modified.to_le_bytes());
    out.extend(&item.value);
    seal(item.key.as_bytes(), out)
}

fn decode(key: &str, sealed: &[u8]) -> Option<Item> {
    let rest = unseal(key.as_bytes(), sealed)?;
    let (created, rest) = rest.split_first_chunk()?;
    let (modified, value) = rest.split_first_chunk()?;
    Some(Item {
        key: key.into(),
        value: Bytes::copy_from_slice(value),
        created: u64::from_le_bytes(*created),
        modified: u64::from_le_bytes(*modified),
    })
}

/// Checksum, created (0: deleted), length of the key, key, value.
fn encode_change(revision: u64, change: &Change) -> Vec<u8> {
    let (created, value) = match change {
        Change::Put(item) => (item.created, &item.value[..]),
        Change::Delete(_) => (0, &[][..]),
    };
    let key = change.key().as_bytes();
    let mut out = Vec::with_capacity(CHECKSUM_BYTES + 12 + key.len() + value.len());
    out.extend([0; CHECKSUM_BYTES]);
    out.extend(created.to_le_bytes());
    out.extend(
        u32::try_from(key.len())
            .expect("keys are at most 512 bytes")
            .to_le_bytes(),
    );
    out.extend(key);
    out.extend(value);
    seal(&revision.to_le_bytes(), out)
}

fn decode_change(revision: u64, sealed: &[u8]) -> Option<Change> {
    let rest = unseal(&revision.to_le_bytes(), sealed)?;
    let (created, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let key: Arc<str> = std::str::from_utf8(key).ok()?.into();
    Some(match u64::from_le_bytes(*created) {
        0 => Change::Delete(key),
        created => Change::Put(Item {
            key,
            value: Bytes::copy_from_slice(value),
            created,
            modified: revision,
        }),
    })
}

/// Fills in the checksum of what follows it, bound to the place where it is kept.
fn seal(place: &[u8], mut sealed: Vec<u8>) -> Vec<u8> {
    let sum = checksum(place, &sealed[CHECKSUM_BYTES..]);
    sealed[..CHECKSUM_BYTES].copy_from_slice(&sum);
    sealed
}

fn unseal<'a>(place: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, rest) = sealed.split_first_chunk::<CHECKSUM_BYTES>()?;
    (*sum == checksum(place, rest)).then_some(rest)
}

fn checksum(place: &[u8], rest: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut all = Vec::with_capacity(8 + place.len() + rest.len());
    all.extend((place.len() as u64).to_le_bytes());
    all.extend(place);
    all.extend(rest);
    let digest = Digest::of(&all);
    *digest.as_bytes().first_chunk().expect("a digest has 32 bytes")
}

#[cfg(test)]
mod tests;
