//! A store that lives as long as the process: for commands run by hand, and the model that the others are compared with.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use crate::backend::Task;
use crate::keyvalue::{self, KEYS_PER_PAGE, KeyValue, KeyValueError, MAX_BATCH_BYTES, Page, Write, cost};

/// Entries in a map.
pub struct MemoryKeyValue {
    quota_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Vec<u8>>,
    /// What [`cost`] counts.
    bytes: u64,
}

impl MemoryKeyValue {
    /// An empty store that refuses to grow over `quota_bytes`.
    pub fn new(quota_bytes: u64) -> Self {
        Self {
            quota_bytes,
            state: Mutex::default(),
        }
    }

    /// Bytes counted into the quota now.
    pub fn used_bytes(&self) -> u64 {
        self.with(|state| state.bytes)
    }

    /// No call panics while it holds the lock, and a state is whole between calls: poison tells nothing.
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn write(&mut self, writes: Vec<Write>, quota_bytes: u64) -> Result<(), KeyValueError> {
        keyvalue::check_writes(&writes)?;
        let writes: BTreeMap<String, Option<Vec<u8>>> = writes.into_iter().collect();
        let mut bytes = self.bytes;
        for (key, value) in &writes {
            bytes -= self.entries.get(key).map_or(0, |old| cost(key, old));
            bytes += value.as_ref().map_or(0, |new| cost(key, new));
        }
        if bytes > quota_bytes && bytes > self.bytes {
            return Err(KeyValueError::Full { quota_bytes });
        }
        self.bytes = bytes;
        for (key, value) in writes {
            match value {
                Some(value) => self.entries.insert(key, value),
                None => self.entries.remove(&key),
            };
        }
        Ok(())
    }
}

fn ready<T: Send + 'static>(value: T) -> Task<'static, T> {
    Box::pin(std::future::ready(value))
}

impl KeyValue for MemoryKeyValue {
    fn get(&self, keys: Vec<String>) -> Task<'_, Result<Vec<Option<Vec<u8>>>, KeyValueError>> {
        let found: Vec<_> = self.with(|state| keys.iter().map(|key| state.entries.get(key).cloned()).collect());
        let total: usize = found.iter().flatten().map(Vec::len).sum();
        ready(if total > MAX_BATCH_BYTES {
            Err(KeyValueError::TooMany)
        } else {
            Ok(found)
        })
    }

    fn write(&self, writes: Vec<Write>) -> Task<'_, Result<(), KeyValueError>> {
        ready(self.with(|state| state.write(writes, self.quota_bytes)))
    }

    fn exists(&self, key: String) -> Task<'_, Result<bool, KeyValueError>> {
        ready(Ok(self.with(|state| state.entries.contains_key(&key))))
    }

    fn increment(&self, key: String, delta: i64) -> Task<'_, Result<i64, KeyValueError>> {
        ready(self.with(|state| {
            let sum = keyvalue::add(state.entries.get(&key).map(Vec::as_slice), delta)?;
            state.write(vec![(key, Some(sum.to_string().into_bytes()))], self.quota_bytes)?;
            Ok(sum)
        }))
    }

    fn swap(&self, key: String, expected: Option<Vec<u8>>, value: Vec<u8>) -> Task<'_, Result<bool, KeyValueError>> {
        ready(self.with(|state| {
            if state.entries.get(&key) != expected.as_ref() {
                return Ok(false);
            }
            state.write(vec![(key, Some(value))], self.quota_bytes)?;
            Ok(true)
        }))
    }

    fn keys(&self, after: Option<String>) -> Task<'_, Result<Page, KeyValueError>> {
        ready(Ok(self.with(|state| {
            let after = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = state
                .entries
                .range::<str, _>((after, Bound::Unbounded))
                .map(|(key, _)| key);
            let keys: Vec<String> = rest.by_ref().take(KEYS_PER_PAGE).cloned().collect();
            let next = rest.next().and_then(|_| keys.last().cloned());
            (keys, next)
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, bytes: usize) -> Vec<Write> {
        vec![(key.to_owned(), Some(vec![0; bytes]))]
    }

    #[tokio::test]
    async fn a_full_store_refuses_and_keeps_what_it_has() {
        let store = MemoryKeyValue::new(1_000);
        let full = KeyValueError::Full { quota_bytes: 1_000 };
        store.write(set("a", 500)).await.unwrap();
        assert_eq!(store.write(set("b", 500)).await, Err(full.clone()));
        assert_eq!(
            store.get(vec!["a".into()]).await.unwrap()[0].as_ref().unwrap().len(),
            500
        );
        store.write(set("a", 960)).await.unwrap();
        assert_eq!(store.increment("number-of-visits".into(), 1).await, Err(full.clone()));
        assert_eq!(
            store.swap("number-of-visits".into(), None, vec![0; 90]).await,
            Err(full)
        );
        store.write(vec![("a".into(), None), ("a".into(), None)]).await.unwrap();
        assert_eq!(store.used_bytes(), 0);
        store.increment("n".into(), 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_swap_needs_the_value_that_it_expects() {
        let store = MemoryKeyValue::new(1_000);
        let swap = |old: Option<&str>, new: &str| store.swap("k".into(), old.map(Into::into), new.into());
        assert_eq!(swap(Some("a"), "b").await, Ok(false));
        assert_eq!(swap(None, "a").await, Ok(true));
        assert_eq!(swap(None, "b").await, Ok(false));
        assert_eq!(swap(Some("a"), "b").await, Ok(true));
    }
}
