//! What a `wasi:keyvalue` store is to the host: six calls, their bounds and what they refuse. What a store is made of, and
//! whether it outlives the process, is its maker's business.

use crate::backend::Task;

/// Bytes of one key.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Bytes of one value.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Keys of one page of a listing.
pub const KEYS_PER_PAGE: usize = 1_000;
/// Keys of one batch.
pub const MAX_BATCH_KEYS: usize = 10_000;
/// Bytes of all keys and values that one batch takes, or brings back.
pub const MAX_BATCH_BYTES: usize = 8 << 20;
/// What an entry takes beside its key and value, counted into the quota: many empty ones are not free.
pub const ENTRY_BYTES: usize = 32;

/// One key and its new value; `None` deletes it.
pub type Write = (String, Option<Vec<u8>>);

/// Keys in order, and the one to go on after if there are more.
pub type Page = (Vec<String>, Option<String>);

/// A store. When a call that writes returns, what it wrote is as durable as the store is: the one on this node's disk is
/// synced by then. Every future may be dropped half-way; what it asked for then was done or was not.
pub trait KeyValue: Send + Sync {
    /// The values of these keys, in their order.
    fn get(&self, keys: Vec<String>) -> Task<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>>;
    /// All of them or none. Of a key that is there twice the last counts.
    fn write(&self, writes: Vec<Write>) -> Task<'_, Result<(), KeyValueError>>;
    fn exists(&self, key: String) -> Task<'_, Result<bool, KeyValueError>>;
    /// Adds to a number kept as decimal text (absent counts as 0) in one step and returns the new value.
    fn increment(&self, key: String, delta: i64) -> Task<'_, Result<i64, KeyValueError>>;
    /// Sets the value if the present one is `expected`, in one step. False: it is another, and nothing was done.
    fn swap(&self, key: String, expected: Option<Vec<u8>>, value: Vec<u8>) -> Task<'_, Result<bool, KeyValueError>>;
    /// Keys after this one in order, at most [`KEYS_PER_PAGE`], and where to go on if there are more.
    fn keys(&self, after: Option<String>) -> Task<'_, Result<Page, KeyValueError>>;
}

/// What a store can refuse. The words are shown to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The write would pass the store's quota (bytes).
    #[error("store is full: its size is {quota_bytes} bytes")]
    Full { quota_bytes: u64 },
    /// `increment` on something that is not a number, or beyond what a number can be.
    #[error("value is not a number")]
    NotANumber,
    /// Key over 1 KiB or value over 1 MiB.
    #[error("key or value too large")]
    TooLarge,
    /// A batch over its bounds.
    #[error("more than {MAX_BATCH_KEYS} keys or {MAX_BATCH_BYTES} bytes in one call")]
    TooMany,
    /// No answer in time, or nobody there. Whether a write was done is not known.
    #[error("store is not reachable: {0}")]
    Unreachable(String),
    /// The store behind it failed.
    #[error("store failed: {0}")]
    Store(String),
}

/// What an entry counts into the quota.
pub fn cost(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len() + ENTRY_BYTES) as u64
}

/// Refuses what no store takes.
pub fn check_key(key: &str) -> Result<(), KeyValueError> {
    if key.len() > MAX_KEY_BYTES {
        return Err(KeyValueError::TooLarge);
    }
    Ok(())
}

/// The same for a batch of keys.
pub fn check_keys(keys: &[String]) -> Result<(), KeyValueError> {
    if keys.len() > MAX_BATCH_KEYS {
        return Err(KeyValueError::TooMany);
    }
    keys.iter().try_for_each(|key| check_key(key))
}

/// The same for a batch of writes, all of them before the first is done.
pub fn check_writes(writes: &[Write]) -> Result<(), KeyValueError> {
    if writes.len() > MAX_BATCH_KEYS {
        return Err(KeyValueError::TooMany);
    }
    let mut total = 0;
    for (key, value) in writes {
        check_key(key)?;
        let size = value.as_ref().map_or(0, Vec::len);
        if size > MAX_VALUE_BYTES {
            return Err(KeyValueError::TooLarge);
        }
        total += key.len() + size;
    }
    if total > MAX_BATCH_BYTES {
        return Err(KeyValueError::TooMany);
    }
    Ok(())
}

/// The number that a value is, and the sum: the same reading in every store.
pub fn add(value: Option<&[u8]>, delta: i64) -> Result<i64, KeyValueError> {
    let now: i64 = match value {
        None => 0,
        Some(value) => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(KeyValueError::NotANumber)?,
    };
    now.checked_add(delta).ok_or(KeyValueError::NotANumber)
}
