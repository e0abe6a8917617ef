//! Where desired state lives: one trait, so that one machine (redb) and a fleet (a consensus store) are the same code.
//!
//! Knows keys, bytes, revisions and guards. It refuses to know what a service is (that is [`records`]) and it holds no
//! lock and elects nobody: both can be built above it from `txn`.

#[cfg(test)]
mod conformance;
mod feed;
mod file;
pub mod keyvalue;
pub mod memory;
pub mod records;
pub mod redb;
pub mod redis;
pub mod volumes;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use narae_runtime::Task;

pub use self::redb::RedbStore;
pub use file::OpenError;
pub(crate) use file::sync_directory_of;
pub use keyvalue::KeyValues;
pub use memory::MemoryStore;
pub use records::{Deployed, NewRevision, Records, RecordsError};
pub use volumes::Volumes;

/// Most operations of one transaction, and most guards: the limit of the engines a fleet uses, kept everywhere so that a
/// program that breaks it breaks on a laptop.
pub const MAX_OPS: usize = 100;
/// Most bytes of one transaction: all keys and values of its guards and operations.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// Most bytes of one key.
pub const MAX_KEY_BYTES: usize = 512;
/// Changes that a watch can go back.
pub const KEPT_CHANGES: usize = 10_000;
/// Bytes (keys and values) of those changes: whichever bound is met first.
pub const KEPT_BYTES: usize = 8 << 20;

/// A key-value store with one global, growing revision and guarded transactions.
///
/// Every transaction that changes something gets the next revision; all its changes carry it. Acknowledged means that it
/// survives a power cut. A future that is dropped may or may not have taken effect.
pub trait Store: Send + Sync {
    /// The item under this key.
    fn get<'a>(&'a self, key: &'a str) -> Task<'a, Result<Option<Item>, StoreError>>;
    /// All items whose key starts with `prefix`, in the order of keys, from one snapshot.
    fn list<'a>(&'a self, prefix: &'a str) -> Task<'a, Result<Listing, StoreError>>;
    /// If all guards hold, all operations happen; else none. Operations that change nothing use up no revision.
    fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Task<'_, Result<Outcome, StoreError>>;
    /// Changes under `prefix` of revisions greater than `after`, in order and without a gap, for as long as the store is
    /// open. With `after` from [`Listing::revision`] nothing between the two is missed. Never slows a writer.
    fn watch(&self, prefix: &str, after: u64) -> Watch;
    /// How it is.
    fn status(&self) -> Status;
}

/// What [`Store::watch`] gives. Ends after [`WatchEvent::Compacted`], or when the store is closed.
pub type Watch = Pin<Box<dyn Stream<Item = WatchEvent> + Send>>;

/// One key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key: Arc<str>,
    pub value: Bytes,
    /// Revision that made the key; another one after it was deleted and made again.
    pub created: u64,
    /// Revision that wrote the value last.
    pub modified: u64,
}

/// Items of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub items: Vec<Item>,
    /// The store's revision when the items were read.
    pub revision: u64,
}

/// What must hold for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// There is no such key.
    Absent { key: String },
    /// The key's value was written last by this revision.
    Modified { key: String, revision: u64 },
    /// The key was made by this revision: it was not deleted in between.
    Created { key: String, revision: u64 },
}

impl Guard {
    pub fn absent(key: impl Into<String>) -> Self {
        Self::Absent { key: key.into() }
    }

    pub fn modified(key: impl Into<String>, revision: u64) -> Self {
        Self::Modified {
            key: key.into(),
            revision,
        }
    }

    pub fn created(key: impl Into<String>, revision: u64) -> Self {
        Self::Created {
            key: key.into(),
            revision,
        }
    }

    /// The key it looks at.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::Modified { key, .. } | Self::Created { key, .. } => key,
        }
    }

    /// Whether it holds for what is under its key: `(created, modified)`.
    fn holds(&self, found: Option<(u64, u64)>) -> bool {
        match (self, found) {
            (Self::Absent { .. }, found) => found.is_none(),
            (Self::Modified { revision, .. }, Some((_, modified))) => modified == *revision,
            (Self::Created { revision, .. }, Some((created, _))) => created == *revision,
            (Self::Modified { .. } | Self::Created { .. }, None) => false,
        }
    }
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

impl Op {
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// The key it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a refused transaction changed nothing"]
pub enum Outcome {
    /// Synced; the revision it got (the current one when it changed nothing).
    Committed(u64),
    /// A guard does not hold, nothing was changed: the first such guard's key.
    Refused { key: String },
}

/// What a watch sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Put(Item),
    Delete {
        key: Arc<str>,
        revision: u64,
    },
    /// Everything up to and including this revision was delivered: the place to resume from. Comes after each batch.
    Progress {
        revision: u64,
    },
    /// Changes up to this revision are gone and some of them were not delivered: list again and compare.
    Compacted {
        revision: u64,
    },
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `redb` or `memory`.
    pub engine: &'static str,
    pub revision: u64,
    pub keys: usize,
    /// Keys and values.
    pub bytes: u64,
    /// The oldest revision a watch can resume after.
    pub compacted: u64,
    /// Why writes fail now, if the last one did.
    pub trouble: Option<String>,
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was changed.
    #[error("transaction has {found} {what}, more than the {limit} allowed")]
    TooLarge {
        what: &'static str,
        found: usize,
        limit: usize,
    },
    /// The same key twice in one transaction; nothing was changed.
    #[error("transaction changes the key `{key}` twice")]
    DuplicateKey { key: String },
    /// An empty key, or one over 512 bytes; nothing was changed.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, not {found}")]
    KeyLength { found: usize },
    /// No space on the device. Reads go on, and the next write after space was made works again.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The device failed. Whether the transaction happened is known after the next read.
    #[error("the disk failed: {0}")]
    Io(String),
    /// What is on disk is not what was written.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Limits of one transaction, the same for every engine.
fn check(guards: &[Guard], ops: &[Op]) -> Result<(), StoreError> {
    for (what, found) in [("operations", ops.len()), ("guards", guards.len())] {
        if found > MAX_OPS {
            return Err(StoreError::TooLarge {
                what,
                found,
                limit: MAX_OPS,
            });
        }
    }
    let keys = || guards.iter().map(Guard::key).chain(ops.iter().map(Op::key));
    if let Some(key) = keys().find(|key| key.is_empty() || key.len() > MAX_KEY_BYTES) {
        return Err(StoreError::KeyLength { found: key.len() });
    }
    let found = guards.iter().map(|g| g.key().len()).sum::<usize>() + ops.iter().map(Op::bytes).sum::<usize>();
    if found > MAX_TXN_BYTES {
        return Err(StoreError::TooLarge {
            what: "bytes",
            found,
            limit: MAX_TXN_BYTES,
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    match ops.iter().map(Op::key).find(|key| !seen.insert(*key)) {
        Some(key) => Err(StoreError::DuplicateKey { key: key.to_owned() }),
        None => Ok(()),
    }
}
