//! `wasi:keyvalue` for guests, both drafts that are in use (0.2.0-draft here, 0.2.0-draft2 in `draft2`): store, atomics
//! and batch over [`KeyValue`] stores.
//!
//! A guest opens a store by the name that its service file grants; the empty name is `default`. What a store is made of is
//! not known here.

mod draft2;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};

pub use self::memory::MemoryKeyValue;
use crate::keyvalue::{self, KeyValue, KeyValueError, Write};

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "wasi:keyvalue/imports@0.2.0-draft",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store@0.2.0-draft.error" => super::Error },
    });
}

use bindings::wasi::keyvalue0_2_0_draft::{atomics, batch, store};

/// Cursors that one open bucket remembers.
const MAX_CURSORS: usize = 4_096;
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

/// Links both drafts; `view` finds the store's grants. The same for both engines.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> KeyValueView<'_>,
) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasKeyValue>(linker, view)?;
    atomics::add_to_linker::<_, HasKeyValue>(linker, view)?;
    batch::add_to_linker::<_, HasKeyValue>(linker, view)?;
    draft2::add_to_linker(linker, view)
}

struct HasKeyValue;

impl HasData for HasKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// An open store.
pub struct Bucket {
    store: Arc<dyn KeyValue>,
    /// The cursor of 0.2.0-draft is a number, ours a key: number n stands for the n-th key here, from 1.
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

/// What both drafts do alike.
impl KeyValueView<'_> {
    fn open_store(&mut self, identifier: &str) -> Result<Resource<Bucket>, Error> {
        let name = if identifier.is_empty() {
            DEFAULT_STORE
        } else {
            identifier
        };
        let store = self.stores.get(name).ok_or(Error::NoSuchStore)?.clone();
        Ok(self.table.push(Bucket {
            store,
            cursors: Vec::new(),
        })?)
    }

    fn store(&self, bucket: &Resource<Bucket>) -> Result<Arc<dyn KeyValue>, Error> {
        Ok(Arc::clone(&self.table.get(bucket)?.store))
    }

    async fn get_one(&mut self, bucket: &Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Error> {
        keyvalue::check_key(&key)?;
        Ok(self.store(bucket)?.get(vec![key]).await?.pop().flatten())
    }

    async fn get_all(&mut self, bucket: &Resource<Bucket>, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        keyvalue::check_keys(keys)?;
        Ok(self.store(bucket)?.get(keys.to_vec()).await?)
    }

    async fn write(&mut self, bucket: &Resource<Bucket>, writes: Vec<Write>) -> Result<(), Error> {
        keyvalue::check_writes(&writes)?;
        Ok(self.store(bucket)?.write(writes).await?)
    }

    async fn is_there(&mut self, bucket: &Resource<Bucket>, key: String) -> Result<bool, Error> {
        keyvalue::check_key(&key)?;
        Ok(self.store(bucket)?.exists(key).await?)
    }

    async fn add(&mut self, bucket: &Resource<Bucket>, key: String, delta: i64) -> Result<i64, Error> {
        keyvalue::check_key(&key)?;
        Ok(self.store(bucket)?.increment(key, delta).await?)
    }
}

impl store::Host for KeyValueView<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        self.open_store(&identifier)
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        Ok(match error {
            Error::NoSuchStore => store::Error::NoSuchStore,
            Error::Other(text) => store::Error::Other(text),
        })
    }
}

impl store::HostBucket for KeyValueView<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Option<Vec<u8>>, Error> {
        self.get_one(&bucket, key).await
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<(), Error> {
        self.write(&bucket, vec![(key, Some(value))]).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), Error> {
        self.write(&bucket, vec![(key, None)]).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<bool, Error> {
        self.is_there(&bucket, key).await
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Result<store::KeyResponse, Error> {
        let after = match cursor {
            None | Some(0) => None,
            Some(n) => {
                let cursors = &self.table.get(&bucket)?.cursors;
                let known = usize::try_from(n - 1).ok().and_then(|at| cursors.get(at));
                Some(known.ok_or_else(|| Error::Other("unknown cursor".into()))?.clone())
            }
        };
        let (keys, next) = self.store(&bucket)?.keys(after).await?;
        let bucket = self.table.get_mut(&bucket)?;
        let cursor = next.map(|next| bucket.remember(next)).transpose()?;
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
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
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Result<u64, Error> {
        let delta = i64::try_from(delta).map_err(|_| Error::Other("increment is too large".into()))?;
        let sum = self.add(&bucket, key, delta).await?;
        u64::try_from(sum).map_err(|_| Error::Other("value is negative".into()))
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<(String, Vec<u8>)>>, Error> {
        let found = self.get_all(&bucket, &keys).await?;
        let pairs = keys.into_iter().zip(found);
        Ok(pairs.map(|(key, value)| value.map(|value| (key, value))).collect())
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, key_values: Vec<(String, Vec<u8>)>) -> Result<(), Error> {
        let writes = key_values.into_iter().map(|(key, value)| (key, Some(value)));
        self.write(&bucket, writes.collect()).await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<(), Error> {
        let writes = keys.into_iter().map(|key| (key, None));
        self.write(&bucket, writes.collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyvalue::{KEYS_PER_PAGE, MAX_BATCH_KEYS, MAX_KEY_BYTES, MAX_VALUE_BYTES};
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

    #[tokio::test]
    async fn a_store_that_was_not_granted_is_not_there() {
        let mut table = ResourceTable::new();
        assert!(matches!(
            granted(&[]).view(&mut table).open(String::new()).await,
            Err(Error::NoSuchStore)
        ));
        assert!(matches!(
            granted(&["a"]).view(&mut table).open("b".into()).await,
            Err(Error::NoSuchStore)
        ));
        assert!(granted(&["a"]).view(&mut table).open("a".into()).await.is_ok());
        assert!(granted(&["default"]).view(&mut table).open(String::new()).await.is_ok());
    }

    #[tokio::test]
    async fn what_one_instance_sets_another_reads() {
        let ctx = granted(&["default"]);
        let (mut one, mut two) = (ResourceTable::new(), ResourceTable::new());
        let bucket = ctx.view(&mut one).open(String::new()).await.unwrap();
        ctx.view(&mut one)
            .set(borrow(&bucket), "k".into(), b"v".to_vec())
            .await
            .unwrap();
        let bucket = ctx.view(&mut two).open(String::new()).await.unwrap();
        assert_eq!(
            ctx.view(&mut two).get(borrow(&bucket), "k".into()).await.unwrap(),
            Some(b"v".to_vec())
        );
        ctx.view(&mut two).delete(borrow(&bucket), "k".into()).await.unwrap();
        assert!(!ctx.view(&mut two).exists(borrow(&bucket), "k".into()).await.unwrap());
    }

    #[tokio::test]
    async fn keys_and_values_over_their_size_are_refused_in_every_call() {
        let ctx = granted(&["default"]);
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).await.unwrap();
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        let mut view = ctx.view(&mut table);
        assert!(view.get(borrow(&bucket), long.clone()).await.is_err());
        assert!(view.set(borrow(&bucket), long.clone(), vec![]).await.is_err());
        assert!(
            view.set(borrow(&bucket), "k".into(), vec![0; MAX_VALUE_BYTES + 1])
                .await
                .is_err()
        );
        assert!(view.delete(borrow(&bucket), long.clone()).await.is_err());
        assert!(view.exists(borrow(&bucket), long.clone()).await.is_err());
        assert!(view.increment(borrow(&bucket), long.clone(), 1).await.is_err());
        assert!(
            view.get_many(borrow(&bucket), vec!["k".into(), long.clone()])
                .await
                .is_err()
        );
        assert!(
            view.set_many(borrow(&bucket), vec![("a".into(), vec![]), (long.clone(), vec![])])
                .await
                .is_err()
        );
        assert!(view.delete_many(borrow(&bucket), vec![long]).await.is_err());
        assert!(
            !view.exists(borrow(&bucket), "a".into()).await.unwrap(),
            "a batch with a bad key writes nothing"
        );
        assert!(
            view.get_many(borrow(&bucket), vec!["k".into(); MAX_BATCH_KEYS + 1])
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn increment_counts_from_nothing_and_refuses_what_is_no_number() {
        let ctx = granted(&["default"]);
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).await.unwrap();
        let mut view = ctx.view(&mut table);
        assert_eq!(view.increment(borrow(&bucket), "n".into(), 5).await.unwrap(), 5);
        assert_eq!(view.increment(borrow(&bucket), "n".into(), 2).await.unwrap(), 7);
        assert!(view.increment(borrow(&bucket), "n".into(), u64::MAX).await.is_err());
        assert!(
            view.increment(borrow(&bucket), "n".into(), i64::MAX as u64)
                .await
                .is_err(),
            "an overflow"
        );
        view.set(borrow(&bucket), "n".into(), b"seven".to_vec()).await.unwrap();
        assert!(view.increment(borrow(&bucket), "n".into(), 1).await.is_err());
    }

    #[tokio::test]
    async fn a_listing_gives_each_key_once_in_order_over_its_pages() {
        let store = Arc::new(MemoryKeyValue::new(10 << 20));
        let expected: Vec<String> = (0..2_500).map(|n| format!("{n:05}")).collect();
        let writes = expected.iter().map(|key| (key.clone(), Some(vec![])));
        store.write(writes.collect()).await.unwrap();
        let ctx = KeyValueCtx::new(BTreeMap::from([("default".into(), store as _)]));
        let mut table = ResourceTable::new();
        let bucket = ctx.view(&mut table).open(String::new()).await.unwrap();
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = ctx.view(&mut table).list_keys(borrow(&bucket), cursor).await.unwrap();
            assert!(page.keys.len() <= KEYS_PER_PAGE);
            found.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, expected);
        assert!(
            ctx.view(&mut table)
                .list_keys(borrow(&bucket), Some(u64::MAX))
                .await
                .is_err()
        );
    }
}
