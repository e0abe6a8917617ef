//! The end of a deleted service: its data first, its record last, so that what is cut off in between goes on with the next
//! look, and a later service of that name begins with nothing. Does not know what data there is.

use crate::model::ServiceName;
use crate::store::{Records, RecordsError};

/// Removes what a deleted service kept beside its records, of which nothing runs any more; as often as it is asked. The error
/// is one printable sentence.
pub type Remove = Box<dyn Fn(&ServiceName) -> Result<(), String> + Send + Sync>;

/// # Errors
/// The data cannot be removed, or the store cannot be written: the record stays, and this is to be done again.
pub(super) async fn forget(records: &Records, remove: &Remove, service: &ServiceName) -> Result<(), RecordsError> {
    remove(service).map_err(|why| RecordsError::DataStays(service.clone(), why))?;
    records.forget(service).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::model::Timestamp;
    use crate::store::{MemoryStore, NewRevision};

    #[tokio::test]
    async fn the_record_of_a_deleted_service_stays_until_its_data_is_removed() {
        let records = Records::new(Arc::new(MemoryStore::default()));
        let file = "name = \"a\"\nmodule = \"a.wasm\"\n";
        let new = NewRevision {
            digest: narae_runtime::Digest::of(b"a"),
            kind: narae_runtime::Kind::Http02,
            spec: crate::config::service(file, "a.toml").unwrap().spec,
            source: file.into(),
            cause: "deploy".into(),
            secrets: std::collections::BTreeMap::new(),
            accepted: None,
        };
        let name: ServiceName = "a".parse().unwrap();
        records.deploy(new, None, Timestamp(1)).await.unwrap();
        records.delete(&name, None, Timestamp(2)).await.unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let times = Arc::clone(&asked);
        let remove: Remove = Box::new(move |_| match times.fetch_add(1, Ordering::Relaxed) {
            0 => Err("the disk fails".into()),
            _ => Ok(()),
        });
        let failed = forget(&records, &remove, &name).await.unwrap_err();
        assert_eq!(
            failed.to_string(),
            "data of service `a` cannot be removed: the disk fails"
        );
        assert!(records.service(&name).await.unwrap().deleting, "it is tried again");
        forget(&records, &remove, &name).await.unwrap();
        assert!(matches!(records.service(&name).await, Err(RecordsError::NoService(_))));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
