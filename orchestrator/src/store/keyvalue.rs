//! `wasi:keyvalue` for guests: one file of this node, apart from the desired state, so that no guest can fill or slow it.
//!
//! A write is visible to every replica at once and on disk within about 100 ms, or at a clean stop: the data path never
//! waits for a sync. Until then it is held in memory, which is bounded. `kill -9` may lose the last 100 ms, never more, and
//! never a part of what one flush wrote.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ::redb::{Database, ReadableDatabase, TableDefinition};
use bytes::Bytes;
use narae_runtime::{KeyValue, KeyValueError};

use super::file::{DataFile, OpenError, Opener, guarded, on_file};
use crate::model::ServiceName;

/// By `service/store` and key.
const VALUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("values");
/// Size of each `service/store`, as its quota counts it.
const SIZES: TableDefinition<'_, &str, u64> = TableDefinition::new("sizes");
const SCHEMA: u64 = 1;
const CACHE_BYTES: usize = 16 << 20;
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Written but not on disk yet, over all services. Reached only when the disk fails or cannot keep up.
const UNWRITTEN_BYTES: usize = 16 << 20;
const KEY_BYTES: usize = 1 << 10;
const VALUE_BYTES: usize = 1 << 20;
const KEYS_PER_PAGE: usize = 1000;
/// What an entry takes beside key and value, so that many empty ones are not free.
const ENTRY_BYTES: usize = 32;

/// The key-value stores of this node. Dropping it writes what is left.
pub struct KeyValues {
    shared: Arc<Shared>,
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

#[derive(Default)]
struct SpaceState {
    /// Newer than `flushing`, which is newer than the file. `None`: deleted.
    dirty: Writes,
    flushing: Arc<Writes>,
    size_bytes: u64,
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
            flusher: Some(flusher),
        })
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
                let size_bytes = self.shared.read(|db| {
                    Ok(db
                        .begin_read()?
                        .open_table(SIZES)?
                        .get(&*name)?
                        .map_or(0, |size| size.value()))
                })?;
                let state = Mutex::new(SpaceState {
                    size_bytes,
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

    /// Removes all stores of a service, on disk when it returns. Replicas that still run see them empty and cannot write.
    pub fn delete_service(&self, service: &ServiceName) -> Result<(), KeyValueError> {
        let _writing = lock(&self.shared.writing);
        let prefix = format!("{service}/");
        lock(&self.shared.spaces).retain(|name, space| {
            if !name.starts_with(&prefix) {
                return true;
            }
            let mut state = lock(&space.state);
            let unwritten = state.dirty.iter().map(|(key, value)| cost(key, value.as_ref())).sum();
            self.shared.unwritten.fetch_sub(unwritten, Ordering::Relaxed);
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
            let state = self
                .changed
                .wait_while(lock(&self.state), waiting)
                .unwrap_or_else(PoisonError::into_inner);
            // Collects what comes in a while.
            let (mut state, _) = self
                .changed
                .wait_timeout_while(state, FLUSH_EVERY, |state| !state.stop)
                .unwrap_or_else(PoisonError::into_inner);
            state.dirty = false;
            stop = state.stop;
            drop(state);
            let flushed = self.flush();
            if let Err(error) = &flushed {
                lock(&self.state).dirty = true;
                // Tried ten times a second, told once.
                if !failing {
                    let path = self.file.path().display();
                    tracing::error!(%path, %error, "cannot write guests' key-value stores");
                }
            }
            failing = flushed.is_err();
        }
    }

    fn flush(&self) -> Result<(), KeyValueError> {
        let _writing = lock(&self.writing);
        let spaces: Vec<_> = lock(&self.spaces).values().cloned().collect();
        let mut taken = Vec::new();
        for space in spaces {
            let mut state = lock(&space.state);
            if !state.dirty.is_empty() {
                state.flushing = Arc::new(std::mem::take(&mut state.dirty));
                taken.push((space.clone(), state.flushing.clone(), state.size_bytes));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let written = self.write(|txn| {
            let (mut values, mut sizes) = (txn.open_table(VALUES)?, txn.open_table(SIZES)?);
            for (space, writes, size_bytes) in &taken {
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
        for (space, writes, _) in taken {
            let mut state = lock(&space.state);
            state.flushing = Arc::default();
            let mut done = 0;
            if written.is_ok() || state.closed {
                done = writes.iter().map(|(key, value)| cost(key, value.as_ref())).sum();
            } else {
                // Back under what was written in between.
                for (key, value) in &*writes {
                    if state.dirty.contains_key(key) {
                        done += cost(key, value.as_ref());
                    } else {
                        state.dirty.insert(key.clone(), value.clone());
                    }
                }
            }
            self.unwritten.fetch_sub(done, Ordering::Relaxed);
        }
        written
    }

    fn database(&self) -> Option<Arc<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, ::redb::Error>) -> Result<T, KeyValueError> {
        let db = self.database().ok_or_else(|| failed("its disk failed"))?;
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

fn cost(key: &str, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + ENTRY_BYTES
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

    fn put(&self, state: &mut SpaceState, key: &str, value: Option<Bytes>) -> Result<(), KeyValueError> {
        if state.closed {
            return Err(failed("its service was deleted"));
        }
        let old = self.find(state, key)?;
        if old.is_none() && value.is_none() {
            return Ok(());
        }
        let counted = |value: Option<&Bytes>| value.map_or(0, |value| cost(key, Some(value)) as u64);
        let size_bytes = state.size_bytes.saturating_sub(counted(old.as_ref())) + counted(value.as_ref());
        let quota_bytes = self.space.quota_bytes.load(Ordering::Relaxed);
        if size_bytes > quota_bytes && size_bytes > state.size_bytes {
            return Err(KeyValueError::Full { quota_bytes });
        }
        let new = cost(key, value.as_ref());
        if self.shared.unwritten.fetch_add(new, Ordering::Relaxed) + new > UNWRITTEN_BYTES {
            self.shared.unwritten.fetch_sub(new, Ordering::Relaxed);
            return Err(failed("too much waits to be written to disk"));
        }
        if let Some(replaced) = state.dirty.insert(key.to_owned(), value) {
            self.shared
                .unwritten
                .fetch_sub(cost(key, replaced.as_ref()), Ordering::Relaxed);
        }
        state.size_bytes = size_bytes;
        let mut flushing = lock(&self.shared.state);
        if !flushing.dirty {
            flushing.dirty = true;
            self.shared.changed.notify_all();
        }
        Ok(())
    }
}

impl KeyValue for Handle {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.find(&lock(&self.space.state), key)?.map(Into::into))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), KeyValueError> {
        if key.len() > KEY_BYTES || value.len() > VALUE_BYTES {
            return Err(KeyValueError::TooLarge);
        }
        self.put(&mut lock(&self.space.state), key, Some(Bytes::copy_from_slice(value)))
    }

    fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        if key.len() > KEY_BYTES {
            return Ok(());
        }
        self.put(&mut lock(&self.space.state), key, None)
    }

    fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.find(&lock(&self.space.state), key)?.is_some())
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        if key.len() > KEY_BYTES {
            return Err(KeyValueError::TooLarge);
        }
        let mut state = lock(&self.space.state);
        let old = match self.find(&state, key)? {
            None => 0,
            Some(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(KeyValueError::NotANumber)?,
        };
        let new = i64::checked_add(old, delta).ok_or(KeyValueError::NotANumber)?;
        self.put(&mut state, key, Some(Bytes::from(new.to_string())))?;
        Ok(new)
    }

    fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), KeyValueError> {
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

#[cfg(test)]
mod tests;
