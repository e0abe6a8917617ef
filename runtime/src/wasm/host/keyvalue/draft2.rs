//! `wasi:keyvalue` 0.2.0-draft2: compare-and-swap, signed numbers and cursors as text, over the same stores.

use std::sync::Arc;

use wasmtime::component::{Linker, Resource};

use super::{Bucket, Error, HasKeyValue, KeyValueView};
use crate::keyvalue::{self, KeyValue};

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "wasi:keyvalue/imports@0.2.0-draft2",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::wasm::host::keyvalue::Bucket,
            "wasi:keyvalue/atomics.cas": super::Cas,
        },
        trappable_error_type: {
            "wasi:keyvalue/store@0.2.0-draft2.error" => crate::wasm::host::keyvalue::Error,
        },
    });
}

use bindings::wasi::keyvalue0_2_0_draft2::{atomics, batch, store};

/// A value as it was, to be replaced if it still is that. Values are compared, not versions: one that was changed and
/// changed back in between is the same.
pub struct Cas {
    bucket: Arc<dyn KeyValue>,
    key: String,
    seen: Option<Vec<u8>>,
}

pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> KeyValueView<'_>,
) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasKeyValue>(linker, view)?;
    atomics::add_to_linker::<_, HasKeyValue>(linker, view)?;
    batch::add_to_linker::<_, HasKeyValue>(linker, view)
}

fn words(error: Error) -> store::Error {
    match error {
        Error::NoSuchStore => store::Error::NoSuchStore,
        Error::Other(text) => store::Error::Other(text),
    }
}

impl store::Host for KeyValueView<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, Error> {
        self.open_store(&identifier)
    }

    fn convert_error(&mut self, error: Error) -> wasmtime::Result<store::Error> {
        Ok(words(error))
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

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<String>,
    ) -> Result<store::KeyResponse, Error> {
        // The cursor is the last key of the page before: it needs no memory here and stays good over restarts.
        let after = cursor.filter(|cursor| !cursor.is_empty());
        after.as_deref().map_or(Ok(()), keyvalue::check_key)?;
        let (keys, cursor) = self.store(&bucket)?.keys(after).await?;
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::HostCas for KeyValueView<'_> {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Resource<Cas>, Error> {
        let seen = self.get_one(&bucket, key.clone()).await?;
        let bucket = self.store(&bucket)?;
        Ok(self.table.push(Cas { bucket, key, seen })?)
    }

    async fn current(&mut self, cas: Resource<Cas>) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.table.get(&cas)?.seen.clone())
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl KeyValueView<'_> {
    /// A new handle when another value was there.
    async fn try_swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<Option<Resource<Cas>>, Error> {
        let Cas { bucket, key, seen } = self.table.delete(cas)?;
        keyvalue::check_writes(&[(key.clone(), Some(value.clone()))])?;
        if bucket.swap(key.clone(), seen, value).await? {
            return Ok(None);
        }
        let seen = bucket.get(vec![key.clone()]).await?.pop().flatten();
        Ok(Some(self.table.push(Cas { bucket, key, seen })?))
    }
}

impl atomics::Host for KeyValueView<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Result<i64, Error> {
        self.add(&bucket, key, delta).await
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), atomics::CasError>> {
        Ok(match self.try_swap(cas, value).await {
            Ok(None) => Ok(()),
            Ok(Some(newer)) => Err(atomics::CasError::CasFailed(newer)),
            Err(error) => Err(atomics::CasError::StoreError(words(error))),
        })
    }
}

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, Error> {
        let found = self.get_all(&bucket, &keys).await?;
        Ok(keys.into_iter().zip(found).collect())
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
