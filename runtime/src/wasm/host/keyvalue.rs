//! `wasi:keyvalue` 0.2.0-draft (store, atomics, batch) over our own [`KeyValue`] stores, and the store in memory.
//!
//! A guest opens a store by the name that its service file grants; the empty name is `default`. What a store is made of,
//! and whether it outlives the process, is not known here.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};

use crate::guest::{KeyValue, KeyValueError};

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "wasi:keyvalue/imports",
        imports: { default: trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::Error },
    });
}

use bindings::wasi::keyvalue::{atomics, batch, store};

/// Bytes of one key.
pub const MAX_KEY_BYTES: usize = 1 << 10;
/// Bytes of one value.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Keys of one page of a listing.
const PAGE: usize = 1_000;
/// Bytes of all values that one `get-many` brings back.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Keys of one batch call.
const MAX_BATCH_KEYS: usize = 10_000;
/// Cursors that one open bucket remembers.
const MAX_CURSORS: usize = 4_096;
/// What an entry takes beside its key and value, counted into the quota.
const ENTRY_BYTES: u64 = 64;
/// The name that the empty identifier stands for.
const DEFAULT_STORE: &str = "default";

/// The stores that one guest may open, shared by all its stores.
#[derive(Clone, Default)]
pub struct KeyValueCtx(Arc<BTreeMap<String, Arc<dyn KeyValue>>>);

impl KeyValueCtx {
    /// From [`crate::Grants::key_values`].
    pub fn new(stores: BTreeMap<String, Arc<dyn KeyValue>>) -> Self {
        Self(Arc::new(stores))
    }

    /// What the linked functions work on; buckets live in the store's own table.
    pub fn view<'a>(&'a self, table: &'a mut ResourceTable) -> KeyValueView<'a> {
        KeyValueView { stores: &self.0, table }
    }
}

/// A borrow of the two for one host call.
pub struct KeyValueView<'a> {
    stores: &'a BTreeMap<String, Arc<dyn KeyValue>>,
    table: &'a mut ResourceTable,
}

/// Links store, atomics and batch; `view` finds the store's grants. The same for both engines.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> KeyValueView<'_>,
) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasKeyValue>(linker, view)?;
    atomics::add_to_linker::<_, HasKeyValue>(linker, view)?;
    batch::add_to_linker::<_, HasKeyValue>(linker, view)
}

struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// An open store.
pub struct Bucket {
    store: Arc<dyn KeyValue>,
    /// The interface's cursor is a number, ours a key: number n stands for the n-th key here, from 1.
    cursors: Vec<String>,
}

/// What a call answers instead.
#[derive(Debug)]
pub enum Error {
    NoSuchStore,
    Other(String),
}

impl From<ResourceTableError> for Error {
    fn from(error: ResourceTableError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<KeyValueError> for Error {
    fn from(error: KeyValueError) -> Self {
        Self::Other(error.to_string())
    }
}

fn check_key(key: &str) -> Result<(), KeyValueError> {
    if key.len() > MAX_KEY_BYTES {
        Err(KeyValueError::TooLarge)
    } else {
        Ok(())
    }
}

fn check(key: &str, value: &[u8]) -> Result<(), KeyValueError> {
    check_key(key)?;
    if value.len() > MAX_VALUE_BYTES {
        Err(KeyValueError::TooLarge)
    } else {
        Ok(())
    }
}

fn check_batch(keys: usize) -> Result<(), Error> {
    if keys > MAX_BATCH_KEYS {
        Err(Error::Other(format!("more than {MAX_BATCH_KEYS} keys in one call")))
    } else {
        Ok(())
    }
}

impl store::Host for KeyValueView<'_> {
    fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        let name = if identifier.is_empty() {
            DEFAULT_STORE
        } else {
            &identifier
        };
        let store = self.stores.get(name).ok_or(Error::NoSuchStore)?.clone();
        Ok(self.table.push(Bucket {
            store,
            cursors: Vec::new(),
        })?)
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        Ok(match error {
            Error::NoSuchStore => store::Error::NoSuchStore,
            Error::Other(text) => store::Error::Other(text),
        })
    }
}

impl store::HostBucket for KeyValueView<'_> {
    fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Error> {
        check_key(&key)?;
        Ok(self.table.get(&bucket)?.store.get(&key)?)
    }

    fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<(), Error> {
        check(&key, &value)?;
        Ok(self.table.get(&bucket)?.store.set(&key, &value)?)
    }

    fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Error> {
        check_key(&key)?;
        Ok(self.table.get(&bucket)?.store.delete(&key)?)
    }

    fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Error> {
        check_key(&key)?;
        Ok(self.table.get(&bucket)?.store.exists(&key)?)
    }

    fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Result<store::KeyResponse, Error> {
        let bucket = self.table.get_mut(&bucket)?;
        let after = match cursor {
            None | Some(0) => None,
            Some(n) => {
                let known = usize::try_from(n - 1).ok().and_then(|at| bucket.cursors.get(at));
                Some(known.ok_or_else(|| Error::Other("unknown cursor".into()))?.as_str())
            }
        };
        let (keys, next) = bucket.store.keys(after)?;
        let cursor = next.map(|next| bucket.remember(next)).transpose()?;
        Ok(store::KeyResponse { keys, cursor })
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl Bucket {
    fn remember(&mut self, key: String) -> Result<u64, Error> {
        let at = match self.cursors.iter().rposition(|known| *known == key) {
            Some(at) => at,
            None if self.cursors.len() >= MAX_CURSORS => {
                return Err(Error::Other("too many cursors; open the store again".into()));
            }
            None => {
                self.cursors.push(key);
                self.cursors.len() - 1
            }
        };
        Ok(at as u64 + 1)
    }
}

impl atomics::Host for KeyValueView<'_> {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<u64, Error> {
        check_key(&key)?;
        let delta = i64::try_from(delta).map_err(|_| Error::Other("increment is too large".into()))?;
        let sum = self.table.get(&bucket)?.store.increment(&key, delta)?;
        u64::try_from(sum).map_err(|_| Error::Other("value is negative".into()))
    }
}

impl batch::Host for KeyValueView<'_> {
    fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        check_batch(keys.len())?;
        let bucket = self.table.get(&bucket)?;
        let mut total = 0;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            check_key(&key)?;
            let value = bucket.store.get(&key)?;
            total += value.as_ref().map_or(0, Vec::len);
            if total > MAX_BATCH_BYTES {
                return Err(Error::Other(format!("more than {MAX_BATCH_BYTES} bytes in one answer")));
            }
            found.push(value.map(|value| (key, value)));
        }
        Ok(found)
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, key_values: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        check_batch(key_values.len())?;
        let bucket = self.table.get(&bucket)?;
        // All are looked at before the first is written.
        key_values.iter().try_for_each(|(key, value)| check(key, value))?;
        Ok(key_values
            .iter()
            .try_for_each(|(key, value)| bucket.store.set(key, value))?)
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Error> {
        check_batch(keys.len())?;
        let bucket = self.table.get(&bucket)?;
        keys.iter().try_for_each(|key| check_key(key))?;
        Ok(keys.iter().try_for_each(|key| bucket.store.delete(key))?)
    }
}

/// A store that lives as long as the process.
pub struct MemoryKeyValue {
    quota_bytes: u64,
    state: Mutex<MemoryState>,
}

#[derive(Default)]
struct MemoryState {
    entries: BTreeMap<String, Vec<u8>>,
    /// Keys, values and [`ENTRY_BYTES`] of each.
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
    fn with<T>(&self, f: impl FnOnce(&mut MemoryState) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MemoryState {
    fn set(&mut self, key: &str, value: &[u8], quota_bytes: u64) -> Result<(), KeyValueError> {
        check(key, value)?;
        let old = self.entries.get(key).map_or(0, |old| weight(key, old));
        let bytes = self.bytes - old + weight(key, value);
        if bytes > quota_bytes {
            return Err(KeyValueError::Full { quota_bytes });
        }
        self.bytes = bytes;
        self.entries.insert(key.to_owned(), value.to_vec());
        Ok(())
    }
}

fn weight(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + ENTRY_BYTES
}

impl KeyValue for MemoryKeyValue {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.with(|state| state.entries.get(key).cloned()))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), KeyValueError> {
        self.with(|state| state.set(key, value, self.quota_bytes))
    }

    fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        self.with(|state| {
            if let Some(value) = state.entries.remove(key) {
                state.bytes -= weight(key, &value);
            }
        });
        Ok(())
    }

    fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        Ok(self.with(|state| state.entries.contains_key(key)))
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        self.with(|state| {
            let now = match state.entries.get(key) {
                None => 0,
                Some(value) => std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse::<i64>().ok())
                    .ok_or(KeyValueError::NotANumber)?,
            };
            let sum = now.checked_add(delta).ok_or(KeyValueError::NotANumber)?;
            state.set(key, sum.to_string().as_bytes(), self.quota_bytes)?;
            Ok(sum)
        })
    }

    fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), KeyValueError> {
        self.with(|state| {
            let after = cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = state
                .entries
                .range::<str, _>((after, Bound::Unbounded))
                .map(|(key, _)| key);
            let keys: Vec<String> = rest.by_ref().take(PAGE).cloned().collect();
            let next = rest.next().and_then(|_| keys.last().cloned());
            Ok((keys, next))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atomics::Host as _;
    use batch::Host as _;
    use store::{Host as _, HostBucket as _};

    fn granted(names: &[&str]) -> KeyValueCtx {
        KeyValueCtx::new(
            names
                .iter()
                .map(|n| ((*n).into(), Arc::new(MemoryKeyValue::new(1 << 20)) as _))
                .collect(),
        )
    }

    fn borrow(bucket: &Resource<Bucket>) -> Resource<Bucket> {
        Resource::new_borrow(bucket.rep())
    }

    #[test]
    fn a_store_that_was_not_granted_is_not_there() {
        let mut table = ResourceTable::new();
        assert!(matches!(
            granted(&[]).view(&mut table).open(String::new()),
            Err(Error::NoSuchStore)
        ));
        assert!(matches!(
            granted(&["a"]).view(&mut table).open("b".into()),
            Err(Error::NoSuchStore)
        ));
        assert!(granted(&["a"]).view(&mut table).open("a".into()).is_ok());
        assert!(granted(&["default"]).view(&mut table).open(String::new()).is_ok());
    }

    #[test]
    fn what_one_instance_sets_another_reads() {
        let ctx = granted(&["default"]);
        let (mut one, mut two) = (ResourceTable::new(), ResourceTable::new());
        let bucket = ctx.view(&mut one).open(String::new()).unwrap();
        ctx.view(&mut one)
            .set(borrow(&bucket), "k".into(), b"v".to_vec())
            .unwrap();
        let bucket = ctx.view(&mut two).open(String::new()).unwrap();
        assert_eq!(
            ctx.view(&mut two).get(borrow(&bucket), "k".into()).unwrap(),
            Some(b"v".to_vec())
        );
        ctx.view(&mut two).delete(borrow(&bucket), "k".into()).unwrap();
        assert!(!ctx.view(&mut two).exists(borrow(&bucket), "k".into()).unwrap());
    }

    #[test]
    fn keys_and_values_over_their_size_are_refused_in_every_call() {
        let ctx = granted(&["default"]);
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).unwrap();
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        let mut view = ctx.view(&mut table);
        assert!(view.get(borrow(&bucket), long.clone()).is_err());
        assert!(view.set(borrow(&bucket), long.clone(), vec![]).is_err());
        assert!(
            view.set(borrow(&bucket), "k".into(), vec![0; MAX_VALUE_BYTES + 1])
                .is_err()
        );
        assert!(view.delete(borrow(&bucket), long.clone()).is_err());
        assert!(view.exists(borrow(&bucket), long.clone()).is_err());
        assert!(view.increment(borrow(&bucket), long.clone(), 1).is_err());
        assert!(view.get_many(borrow(&bucket), vec!["k".into(), long.clone()]).is_err());
        assert!(
            view.set_many(borrow(&bucket), vec![("a".into(), vec![]), (long.clone(), vec![])])
                .is_err()
        );
        assert!(view.delete_many(borrow(&bucket), vec![long]).is_err());
        assert!(
            !view.exists(borrow(&bucket), "a".into()).unwrap(),
            "a batch with a bad key writes nothing"
        );
        assert!(
            view.get_many(borrow(&bucket), vec!["k".into(); MAX_BATCH_KEYS + 1])
                .is_err()
        );
    }

    #[test]
    fn a_full_store_refuses_and_keeps_what_it_has() {
        let store = MemoryKeyValue::new(1_000);
        store.set("a", &[0; 500]).unwrap();
        assert_eq!(
            store.set("b", &[0; 500]),
            Err(KeyValueError::Full { quota_bytes: 1_000 })
        );
        assert_eq!(store.get("a").unwrap().unwrap().len(), 500);
        store.set("a", &[0; 900]).unwrap();
        assert_eq!(store.increment("n", 1), Err(KeyValueError::Full { quota_bytes: 1_000 }));
        store.delete("a").unwrap();
        store.delete("a").unwrap();
        assert_eq!(store.used_bytes(), 0);
        store.increment("n", 1).unwrap();
    }

    #[test]
    fn increment_counts_from_nothing_and_refuses_what_is_no_number() {
        let ctx = granted(&["default"]);
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).unwrap();
        let mut view = ctx.view(&mut table);
        assert_eq!(view.increment(borrow(&bucket), "n".into(), 5).unwrap(), 5);
        assert_eq!(view.increment(borrow(&bucket), "n".into(), 2).unwrap(), 7);
        assert!(view.increment(borrow(&bucket), "n".into(), u64::MAX).is_err());
        assert!(
            view.increment(borrow(&bucket), "n".into(), i64::MAX as u64).is_err(),
            "an overflow"
        );
        view.set(borrow(&bucket), "n".into(), b"seven".to_vec()).unwrap();
        assert!(view.increment(borrow(&bucket), "n".into(), 1).is_err());
    }

    #[test]
    fn a_listing_gives_each_key_once_in_order_over_its_pages() {
        let store = Arc::new(MemoryKeyValue::new(10 << 20));
        let expected: Vec<String> = (0..2_500).map(|n| format!("{n:05}")).collect();
        for key in &expected {
            store.set(key, b"").unwrap();
        }
        let ctx = KeyValueCtx::new(BTreeMap::from([("default".into(), store as _)]));
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).unwrap();
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = ctx.view(&mut table).list_keys(borrow(&bucket), cursor).unwrap();
            assert!(page.keys.len() <= PAGE);
            found.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, expected);
        assert!(ctx.view(&mut table).list_keys(borrow(&bucket), Some(u64::MAX)).is_err());
    }
}
