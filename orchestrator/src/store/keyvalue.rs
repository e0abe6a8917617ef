//! `wasi:keyvalue` for guests: one file of this node, apart from the desired state, so that no guest can fill or slow it.
//!
//! A write that was answered is on disk: synced, so that it outlives `kill -9` and a loss of power. One thread writes; what
//! comes while it syncs goes into its next transaction together, so that the number of syncs does not grow with the number
//! of writers. A write is seen by others at once, a moment before it is answered; when the disk refuses it, its writer
//! gets an error and it is gone again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ::redb::{Database, ReadableDatabase, TableDefinition};
use bytes::Bytes;
use narae_runtime::keyvalue::{ENTRY_BYTES, KEYS_PER_PAGE, MAX_BATCH_BYTES, Page, Write, check_writes};
use narae_runtime::{KeyValue, KeyValueError, Task};
use tokio::sync::oneshot;

use super::file::{DataFile, OpenError, Opener, guarded, on_file};
use super::redis::RedisServers;
use crate::model::ServiceName;
use crate::model::service::{KeyValueBackend, KeyValueStore};

/// By `service/store` and key.
const VALUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("values");
/// Size of each `service/store`, as its quota counts it.
const SIZES: TableDefinition<'_, &str, u64> = TableDefinition::new("sizes");
const SCHEMA: u64 = 1;
const CACHE_BYTES: usize = 16 << 20;
/// Written but not on disk yet, over all services. Reached only when the disk cannot keep up.
const UNWRITTEN_BYTES: usize = 32 << 20;
/// After the disk refused a write, the next one is tried so much later: a full disk is not hammered.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// The key-value stores of this node. Dropping it writes what is left.
pub struct KeyValues {
    shared: Arc<Shared>,
    redis: RedisServers,
    flusher: Option<JoinHandle<()>>,
}

struct Shared {
    file: DataFile,
    /// Absent after the disk failed, until it could be opened again.
    db: RwLock<Option<Arc<Database>>>,
    spaces: Mutex<BTreeMap<String, Arc<Space>>>,
    unwritten: AtomicUsize,
    /// One flush or deletion at a time.
    writing: Mutex<()>,
    state: Mutex<Flushing>,
    changed: Condvar,
}

#[derive(Default)]
struct Flushing {
    dirty: bool,
    stop: bool,
}

/// One store of one service, shared by its replicas.
struct Space {
    name: String,
    quota_bytes: AtomicU64,
    state: Mutex<SpaceState>,
}

type Writes = BTreeMap<String, Option<Bytes>>;
type Waiter = oneshot::Sender<Result<(), KeyValueError>>;

#[derive(Default)]
struct SpaceState {
    /// Newer than `flushing`, which is newer than the file. `None`: deleted.
    dirty: Writes,
    flushing: Arc<Writes>,
    /// Those who wait until what is dirty is on disk.
    waiting: Vec<Waiter>,
    /// With all that is written, on disk or not.
    size_bytes: u64,
    /// On disk.
    synced_bytes: u64,
    /// Its service was deleted: holds nothing, takes nothing.
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: impl std::fmt::Display) -> KeyValueError {
    KeyValueError::Store(error.to_string())
}

impl KeyValues {
    /// Opens the file, or makes it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, on_file())
    }

    fn open_with(path: &Path, opener: Opener) -> Result<Self, OpenError> {
        let file = DataFile::lock(path, SCHEMA, CACHE_BYTES, false, opener)?;
        let db = file.open_or_create()?;
        let tables = || -> Result<(), ::redb::Error> {
            let txn = db.begin_write()?;
            txn.open_table(VALUES)?;
            txn.open_table(SIZES)?;
            Ok(txn.commit()?)
        };
        guarded(tables).map_err(|error| file.database_error(&error))?;
        let shared = Arc::new(Shared {
            file,
            db: RwLock::new(Some(Arc::new(db))),
            spaces: Mutex::default(),
            unwritten: AtomicUsize::new(0),
            writing: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let flusher = shared.clone();
        let flusher = std::thread::Builder::new()
            .name("narae-keyvalue".into())
            .spawn(move || flusher.run())
            .map_err(|source| OpenError::Io {
                what: "start the writer of",
                path: path.into(),
                source,
            })?;
        Ok(Self {
            shared,
            redis: RedisServers::default(),
            flusher: Some(flusher),
        })
    }

    /// The store as the service file says, here or on a server. `password` is the server's.
    pub fn open_store(
        &self,
        service: &ServiceName,
        store: &KeyValueStore,
        password: Option<&str>,
    ) -> Result<Arc<dyn KeyValue>, KeyValueError> {
        match &store.backend {
            KeyValueBackend::Embedded => self.store(service, &store.name, store.size_bytes),
            KeyValueBackend::Redis(url) => self.redis.store(url, password, service, &store.name, store.size_bytes),
        }
    }

    /// The service's store of this name, with this quota from now on. All callers share one.
    pub fn store(
        &self,
        service: &ServiceName,
        name: &str,
        quota_bytes: u64,
    ) -> Result<Arc<dyn KeyValue>, KeyValueError> {
        let name = format!("{service}/{name}");
        let mut spaces = lock(&self.shared.spaces);
        let space = match spaces.get(&name) {
            Some(space) => space.clone(),
            None => {
                let size_bytes = self.shared.size_of(&name)?;
                let state = Mutex::new(SpaceState {
                    size_bytes,
                    synced_bytes: size_bytes,
                    ..SpaceState::default()
                });
                let space = Arc::new(Space {
                    name: name.clone(),
                    quota_bytes: quota_bytes.into(),
                    state,
                });
                spaces.insert(name, space.clone());
                space
            }
        };
        space.quota_bytes.store(quota_bytes, Ordering::Relaxed);
        Ok(Arc::new(Handle {
            shared: self.shared.clone(),
            space,
        }))
    }

    /// Removes all stores of a service that are kept here (a server's data is its operator's), on disk when it returns. Replicas that still run see them empty and cannot write.
    pub fn delete_service(&self, service: &ServiceName) -> Result<(), KeyValueError> {
        let _writing = lock(&self.shared.writing);
        let prefix = format!("{service}/");
        lock(&self.shared.spaces).retain(|name, space| {
            if !name.starts_with(&prefix) {
                return true;
            }
            let mut state = lock(&space.state);
            self.shared
                .unwritten
                .fetch_sub(unwritten(&state.dirty), Ordering::Relaxed);
            for waiter in std::mem::take(&mut state.waiting) {
                let _ = waiter.send(Err(deleted()));
            }
            *state = SpaceState {
                closed: true,
                ..SpaceState::default()
            };
            false
        });
        // `0` follows `/`: everything in between begins with the prefix.
        let end = format!("{service}0");
        self.shared.write(|txn| {
            txn.open_table(VALUES)?
                .retain_in((&*prefix, "")..(&*end, ""), |_, _| false)?;
            txn.open_table(SIZES)?.retain_in(&*prefix..&*end, |_, _| false)?;
            Ok(())
        })
    }

    /// Writes everything now; on disk when it returns.
    pub fn flush(&self) -> Result<(), KeyValueError> {
        self.shared.flush()
    }
}

impl Drop for KeyValues {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        if let Some(flusher) = self.flusher.take() {
            // A flusher that panicked has told so itself.
            let _ = flusher.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let (mut stop, mut failing) = (false, false);
        while !stop {
            let waiting = |state: &mut Flushing| !state.dirty && !state.stop;
            let mut state = self
                .changed
                .wait_while(lock(&self.state), waiting)
                .unwrap_or_else(PoisonError::into_inner);
            state.dirty = false;
            stop = state.stop;
            drop(state);
            let flushed = self.flush();
            if let Err(error) = &flushed {
                // Told once: every writer is told by itself.
                if !failing {
                    let path = self.file.path().display();
                    tracing::error!(%path, %error, "cannot write guests' key-value stores");
                }
                let state = lock(&self.state);
                drop(
                    self.changed
                        .wait_timeout_while(state, AFTER_FAILURE, |state| !state.stop),
                );
            }
            failing = flushed.is_err();
        }
    }

    /// One transaction with all that is unwritten. When it fails, nothing of it is there.
    fn flush(&self) -> Result<(), KeyValueError> {
        let _writing = lock(&self.writing);
        let spaces: Vec<_> = lock(&self.spaces).values().cloned().collect();
        let mut taken = Vec::new();
        for space in spaces {
            let mut state = lock(&space.state);
            if !state.dirty.is_empty() {
                state.flushing = Arc::new(std::mem::take(&mut state.dirty));
                let waiting = std::mem::take(&mut state.waiting);
                taken.push((space.clone(), state.flushing.clone(), state.size_bytes, waiting));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let written = self.write(|txn| {
            let (mut values, mut sizes) = (txn.open_table(VALUES)?, txn.open_table(SIZES)?);
            for (space, writes, size_bytes, _) in &taken {
                for (key, value) in &**writes {
                    let place = (&*space.name, &**key);
                    match value {
                        Some(value) => values.insert(place, &**value)?,
                        None => values.remove(place)?,
                    };
                }
                sizes.insert(&*space.name, size_bytes)?;
            }
            Ok(())
        });
        for (space, writes, size_bytes, mut waiting) in taken {
            let mut state = lock(&space.state);
            state.flushing = Arc::default();
            let mut done = unwritten(&writes);
            if written.is_ok() {
                state.synced_bytes = size_bytes;
            } else if !state.closed {
                // What came in between was computed from what is gone now, so it goes with it.
                done += unwritten(&std::mem::take(&mut state.dirty));
                waiting.append(&mut state.waiting);
                // A commit that failed may be on disk all the same.
                state.synced_bytes = self.size_of(&space.name).unwrap_or(state.synced_bytes);
                state.size_bytes = state.synced_bytes;
            }
            self.unwritten.fetch_sub(done, Ordering::Relaxed);
            drop(state);
            for waiter in waiting {
                // One who left in between needs no answer.
                let _ = waiter.send(written.clone());
            }
        }
        written
    }

    fn size_of(&self, space: &str) -> Result<u64, KeyValueError> {
        self.read(|db| {
            let sizes = db.begin_read()?.open_table(SIZES)?;
            Ok(sizes.get(space)?.map_or(0, |size| size.value()))
        })
    }

    fn database(&self) -> Option<Arc<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, ::redb::Error>) -> Result<T, KeyValueError> {
        let db = match self.database() {
            Some(db) => db,
            None => {
                // Whoever asks first after a failure tries the disk again; the others do not wait for that.
                let _writing = self.writing.try_lock().map_err(|_| failed("its disk failed"))?;
                self.reopen()?;
                self.database().ok_or_else(|| failed("its disk failed"))?
            }
        };
        guarded(|| read(&db)).map_err(failed)
    }

    /// One synced transaction. When the disk fails the file is opened anew, now or at the next try.
    fn write(
        &self,
        write: impl FnOnce(&::redb::WriteTransaction) -> Result<(), ::redb::Error>,
    ) -> Result<(), KeyValueError> {
        if self.database().is_none() {
            self.reopen()?;
        }
        let written = self.read(|db| {
            let mut txn = db.begin_write()?;
            // The file may be large: it must open at once after a crash.
            txn.set_quick_repair(true);
            write(&txn)?;
            Ok(txn.commit()?)
        });
        if written.is_err() {
            *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
            let _ = self.reopen();
        }
        written
    }

    fn reopen(&self) -> Result<(), KeyValueError> {
        let db = self.file.reopen().map_err(failed)?;
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(db));
        Ok(())
    }
}

/// What a write holds in memory until it is on disk; of one that is not a deletion, what it counts into the quota.
fn cost(key: &str, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + ENTRY_BYTES
}

fn unwritten(writes: &Writes) -> usize {
    writes.iter().map(|(key, value)| cost(key, value.as_ref())).sum()
}

fn deleted() -> KeyValueError {
    failed("its service was deleted")
}

struct Handle {
    shared: Arc<Shared>,
    space: Arc<Space>,
}

impl Handle {
    /// The value as every reader sees it.
    fn find(&self, state: &SpaceState, key: &str) -> Result<Option<Bytes>, KeyValueError> {
        if state.closed {
            return Ok(None);
        }
        if let Some(value) = state.dirty.get(key).or_else(|| state.flushing.get(key)) {
            return Ok(value.clone());
        }
        self.shared.read(|db| {
            let value = db.begin_read()?.open_table(VALUES)?.get((&*self.space.name, key))?;
            Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
        })
    }

    /// All or nothing, seen at once; [`synced`] answers when it is on disk. `None`: there was nothing to do.
    fn put(&self, state: &mut SpaceState, writes: Writes) -> Result<Option<Synced>, KeyValueError> {
        if state.closed {
            return Err(deleted());
        }
        let counted = |key: &str, value: &Option<Bytes>| match value {
            Some(value) => cost(key, Some(value)) as u64,
            None => 0,
        };
        let mut size_bytes = state.size_bytes;
        let mut changes = Vec::with_capacity(writes.len());
        for (key, value) in writes {
            let old = self.find(state, &key)?;
            // A deletion that is not on disk yet is asked for again, so that its answer waits for the disk too.
            let pending = state.dirty.contains_key(&key) || state.flushing.contains_key(&key);
            if old.is_none() && value.is_none() && !pending {
                continue;
            }
            size_bytes = size_bytes.saturating_sub(counted(&key, &old)) + counted(&key, &value);
            changes.push((key, value));
        }
        if changes.is_empty() {
            return Ok(None);
        }
        let quota_bytes = self.space.quota_bytes.load(Ordering::Relaxed);
        if size_bytes > quota_bytes && size_bytes > state.size_bytes {
            return Err(KeyValueError::Full { quota_bytes });
        }
        let new = changes.iter().map(|(key, value)| cost(key, value.as_ref())).sum();
        if self.shared.unwritten.fetch_add(new, Ordering::Relaxed) + new > UNWRITTEN_BYTES {
            self.shared.unwritten.fetch_sub(new, Ordering::Relaxed);
            return Err(failed("too much waits to be written to disk"));
        }
        for (key, value) in changes {
            if let Some(replaced) = state.dirty.get(&key) {
                self.shared
                    .unwritten
                    .fetch_sub(cost(&key, replaced.as_ref()), Ordering::Relaxed);
            }
            state.dirty.insert(key, value);
        }
        state.size_bytes = size_bytes;
        let (waiter, synced) = oneshot::channel();
        // Those who left while the disk was slow are not kept.
        if state.waiting.len() >= 64 && state.waiting.len().is_power_of_two() {
            state.waiting.retain(|waiter| !waiter.is_closed());
        }
        state.waiting.push(waiter);
        let mut flushing = lock(&self.shared.state);
        if !flushing.dirty {
            flushing.dirty = true;
            self.shared.changed.notify_all();
        }
        Ok(Some(synced))
    }

    fn read_all(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, KeyValueError> {
        let state = lock(&self.space.state);
        let (mut found, mut total) = (Vec::with_capacity(keys.len()), 0);
        for key in keys {
            let value = self.find(&state, key)?;
            total += value.as_ref().map_or(0, Bytes::len);
            if total > MAX_BATCH_BYTES {
                return Err(KeyValueError::TooMany);
            }
            found.push(value.map(Into::into));
        }
        Ok(found)
    }

    fn write_all(&self, writes: Vec<Write>) -> Result<Option<Synced>, KeyValueError> {
        check_writes(&writes)?;
        let writes = writes.into_iter().map(|(key, value)| (key, value.map(Bytes::from)));
        self.put(&mut lock(&self.space.state), writes.collect())
    }

    fn add(&self, key: String, delta: i64) -> Result<(i64, Option<Synced>), KeyValueError> {
        let mut state = lock(&self.space.state);
        let old = self.find(&state, &key)?;
        let new = narae_runtime::keyvalue::add(old.as_deref(), delta)?;
        let value = Some(Bytes::from(new.to_string()));
        Ok((new, self.put(&mut state, Writes::from([(key, value)]))?))
    }

    fn compare_and_set(
        &self,
        key: String,
        expected: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<Option<Option<Synced>>, KeyValueError> {
        let mut state = lock(&self.space.state);
        if self.find(&state, &key)?.as_deref() != expected {
            return Ok(None);
        }
        let writes = Writes::from([(key, Some(Bytes::from(value)))]);
        Ok(Some(self.put(&mut state, writes)?))
    }

    fn list(&self, cursor: Option<&str>) -> Result<Page, KeyValueError> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let state = lock(&self.space.state);
        if state.closed {
            return Ok((Vec::new(), None));
        }
        let mut unwritten = BTreeMap::new();
        for writes in [&*state.flushing, &state.dirty] {
            let later = writes.range::<str, _>((from, Bound::Unbounded));
            unwritten.extend(later.map(|(key, value)| (key.clone(), value.is_some())));
        }
        // The file is read with the lock held, so that no flush moves entries from one to the other in between.
        let mut keys = self.shared.read(|db| {
            let table = db.begin_read()?.open_table(VALUES)?;
            let name = &*self.space.name;
            let from = match cursor {
                Some(cursor) => Bound::Excluded((name, cursor)),
                None => Bound::Included((name, "")),
            };
            let mut keys = Vec::new();
            for entry in table.range::<(&str, &str)>((from, Bound::Unbounded))? {
                let (place, _) = entry?;
                let (space, key) = place.value();
                if space != name || keys.len() > KEYS_PER_PAGE {
                    break;
                }
                while let Some((first, there)) = unwritten.first_key_value().filter(|(first, _)| &***first < key) {
                    if *there {
                        keys.push(first.clone());
                    }
                    unwritten.pop_first();
                }
                if unwritten.remove(key).unwrap_or(true) {
                    keys.push(key.to_owned());
                }
            }
            Ok(keys)
        })?;
        drop(state);
        if keys.len() <= KEYS_PER_PAGE {
            keys.extend(unwritten.into_iter().filter(|(_, there)| *there).map(|(key, _)| key));
        }
        let more = keys.len() > KEYS_PER_PAGE;
        keys.truncate(KEYS_PER_PAGE);
        let next = keys.last().filter(|_| more).cloned();
        Ok((keys, next))
    }
}

type Synced = oneshot::Receiver<Result<(), KeyValueError>>;

/// Waits until the write is on disk.
async fn synced(write: Option<Synced>) -> Result<(), KeyValueError> {
    match write {
        None => Ok(()),
        Some(write) => write.await.unwrap_or_else(|_| Err(failed("the node is stopping"))),
    }
}

impl KeyValue for Handle {
    fn get(&self, keys: Vec<String>) -> Task<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        Box::pin(async move { self.read_all(&keys) })
    }

    fn write(&self, writes: Vec<Write>) -> Task<'_, Result<(), KeyValueError>> {
        Box::pin(async move { synced(self.write_all(writes)?).await })
    }

    fn exists(&self, key: String) -> Task<'_, Result<bool, KeyValueError>> {
        Box::pin(async move { Ok(self.find(&lock(&self.space.state), &key)?.is_some()) })
    }

    fn increment(&self, key: String, delta: i64) -> Task<'_, Result<i64, KeyValueError>> {
        Box::pin(async move {
            let (sum, write) = self.add(key, delta)?;
            synced(write).await?;
            Ok(sum)
        })
    }

    fn swap(&self, key: String, expected: Option<Vec<u8>>, value: Vec<u8>) -> Task<'_, Result<bool, KeyValueError>> {
        Box::pin(async move {
            let Some(write) = self.compare_and_set(key, expected.as_deref(), value)? else {
                return Ok(false);
            };
            synced(write).await?;
            Ok(true)
        })
    }

    fn keys(&self, after: Option<String>) -> Task<'_, Result<Page, KeyValueError>> {
        Box::pin(async move { self.list(after.as_deref()) })
    }
}

#[cfg(test)]
mod tests;
