//! A store that forgets at the end of the process: for tests, for `--dev`, and as the model the others are compared with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narae_runtime::Task;

use super::feed::{Change, Commit, Feed};
use super::{Guard, Item, Listing, Op, Outcome, Status, Store, StoreError, Watch, check};

/// Items by key, and the revision they are of.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub items: BTreeMap<Arc<str>, Item>,
    pub revision: u64,
    /// Keys and values.
    pub bytes: u64,
}

impl Snapshot {
    pub(super) fn list(&self, prefix: &str) -> Listing {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let items = self
            .items
            .range::<str, _>(from)
            .take_while(|(key, _)| key.starts_with(prefix));
        Listing {
            items: items.map(|(_, item)| item.clone()).collect(),
            revision: self.revision,
        }
    }

    pub(super) fn versions(&self, key: &str) -> Option<(u64, u64)> {
        self.items.get(key).map(|item| (item.created, item.modified))
    }

    pub(super) fn insert(&mut self, item: Item) {
        self.bytes += size(&item);
        let old = self.items.insert(item.key.clone(), item);
        self.bytes -= old.as_ref().map_or(0, size);
    }

    pub(super) fn apply(&mut self, commit: &Commit) {
        for change in &commit.changes {
            match change {
                Change::Put(item) => self.insert(item.clone()),
                Change::Delete(key) => self.bytes -= self.items.remove(key).as_ref().map_or(0, size),
            }
        }
        self.revision = commit.revision;
    }
}

fn size(item: &Item) -> u64 {
    (item.key.len() + item.value.len()) as u64
}

/// The changes that these operations make at `revision`, when `versions` tells what is there.
pub(super) fn changes<E>(
    ops: Vec<Op>,
    revision: u64,
    mut versions: impl FnMut(&str) -> Result<Option<(u64, u64)>, E>,
) -> Result<Vec<Change>, E> {
    let change = |op| {
        Ok(match op {
            Op::Put { key, value } => {
                let created = versions(&key)?.map_or(revision, |(created, _)| created);
                Some(Change::Put(Item {
                    key: key.into(),
                    value,
                    created,
                    modified: revision,
                }))
            }
            Op::Delete { key } => versions(&key)?.map(|_| Change::Delete(key.into())),
        })
    };
    ops.into_iter().map(change).filter_map(Result::transpose).collect()
}

/// [`Store`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    snapshot: Mutex<Snapshot>,
    feed: Feed,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            snapshot: Mutex::default(),
            feed: Feed::after(0),
        }
    }

    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, guards: &[Guard], ops: Vec<Op>) -> Result<Outcome, StoreError> {
        check(guards, &ops)?;
        let mut snapshot = self.snapshot();
        if let Some(guard) = guards.iter().find(|guard| !guard.holds(snapshot.versions(guard.key()))) {
            return Ok(Outcome::Refused {
                key: guard.key().to_owned(),
            });
        }
        let revision = snapshot.revision + 1;
        let changes = changes(ops, revision, |key| Ok::<_, StoreError>(snapshot.versions(key)))?;
        if !changes.is_empty() {
            let commit = Commit { revision, changes };
            snapshot.apply(&commit);
            // Under the lock, so that the log has the order of the revisions.
            self.feed.append([commit]);
        }
        Ok(Outcome::Committed(snapshot.revision))
    }
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> Task<'a, Result<Option<Item>, StoreError>> {
        Box::pin(async move { Ok(self.snapshot().items.get(key).cloned()) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Task<'a, Result<Listing, StoreError>> {
        Box::pin(async move { Ok(self.snapshot().list(prefix)) })
    }

    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Task<'_, Result<Outcome, StoreError>> {
        Box::pin(async move { self.commit(&guards, ops) })
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.feed.watch(prefix, after)
    }

    fn status(&self) -> Status {
        let snapshot = self.snapshot();
        Status {
            engine: "memory",
            revision: snapshot.revision,
            keys: snapshot.items.len(),
            bytes: snapshot.bytes,
            compacted: self.feed.compacted(),
            trouble: None,
        }
    }
}
