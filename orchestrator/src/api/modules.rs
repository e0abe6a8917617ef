//! Modules: uploaded by digest, inspected once, listed, pruned. Binary only: text and archives are refused by their bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use dashmap::DashMap;
use narae_runtime::{Artifact, ArtifactError, Digest, Kind};
use tokio::sync::Semaphore;

use super::answer::{Refused, whole_body};
use super::{Api, observe};
use crate::artifacts::{Artifacts, ArtifactsError, Blob, Put};
use crate::config::Code;
use crate::events::Occurrence;
use crate::model::views::{List, ModuleView};
use crate::model::{EventKind, Millis};

/// The artifact limit and some room, so that the reason for a refusal is ours and not the framework's.
pub const UPLOAD_LIMIT: usize = (64 << 20) + 1024;

/// Uploads that are read at once; the others wait, unread, so that many large ones do not fill the memory.
const UPLOADS: usize = 2;

/// A module that was uploaded (or found) so lately may be on its way into a deploy.
const UPLOAD_GRACE: Duration = Duration::from_secs(60);

/// What inspection found, kept by digest so that a module is read once.
pub struct Modules {
    known: DashMap<Digest, Arc<Inspected>>,
    /// Who may hold a body in memory.
    uploads: Semaphore,
    lately: Arc<Lately>,
}

/// Which modules were uploaded or found lately, by the monotonic clock: a step of the wall clock must not make a fresh upload
/// old. What was there before this process counts from its start.
struct Lately {
    since: Millis,
    /// Held while a prune decides and removes, so that one found in that moment is not lost. Taken on blocking threads only.
    touched: Mutex<BTreeMap<Digest, Millis>>,
}

impl Lately {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Millis>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, digest: Digest, now: Millis) {
        self.lock().insert(digest, now);
    }

    /// Removes what is neither used nor young.
    fn prune(&self, blobs: &Artifacts, used: &BTreeSet<Digest>, now: Millis) -> Result<Vec<Blob>, ArtifactsError> {
        let mut touched = self.lock();
        let young = |at: Millis| now.since(at) < UPLOAD_GRACE;
        touched.retain(|_, at| young(*at));
        blobs.prune(used, |digest| {
            !young(touched.get(&digest).copied().unwrap_or(self.since))
        })
    }
}

impl Modules {
    /// For a process that starts now.
    pub fn new(now: Millis) -> Self {
        Self {
            known: DashMap::new(),
            uploads: Semaphore::new(UPLOADS),
            lately: Arc::new(Lately {
                since: now,
                touched: Mutex::default(),
            }),
        }
    }
}

/// A stored module's nature.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub kind: Kind,
    pub size_bytes: u64,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// Imports that no host interface answers.
    pub missing: Vec<String>,
}

impl Modules {
    /// Inspection of a stored module; the blob's digest is verified again when it is read.
    pub async fn inspected(&self, blobs: &Artifacts, digest: Digest) -> Result<Arc<Inspected>, Refused> {
        if let Some(known) = self.known.get(&digest) {
            return Ok(Arc::clone(&known));
        }
        let bytes = stored(blobs, digest).await?;
        let artifact = inspect(bytes).await?;
        Ok(self.keep(&artifact))
    }

    fn keep(&self, artifact: &Artifact) -> Arc<Inspected> {
        let inspected = Arc::new(Inspected {
            kind: artifact.kind,
            size_bytes: artifact.bytes.len() as u64,
            imports: artifact.imports.clone(),
            exports: artifact.exports.clone(),
            missing: narae_runtime::wasm::missing_imports(artifact),
        });
        self.known.insert(artifact.digest, Arc::clone(&inspected));
        inspected
    }
}

/// Validation of a large module takes a while: never on the control thread.
async fn inspect(bytes: Bytes) -> Result<Artifact, Refused> {
    let read = tokio::task::spawn_blocking(move || Artifact::read(bytes)).await;
    let read = read.map_err(|_| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::ModuleMalformed,
            "inspecting the module failed",
        )
    })?;
    read.map_err(|error| {
        let code = code_of(&error);
        let status = match error {
            ArtifactError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Refused::new(status, code, error.to_string())
    })
}

/// The stable code of what is wrong with an artifact.
pub fn code_of(error: &ArtifactError) -> Code {
    match error {
        ArtifactError::NotWasm { .. } => Code::NotWasm,
        ArtifactError::TooLarge { .. } | ArtifactError::TooMany { .. } => Code::ModuleTooLarge,
        ArtifactError::Unsupported { .. } => Code::UnsupportedExports,
        _ => Code::ModuleMalformed,
    }
}

async fn stored(blobs: &Artifacts, digest: Digest) -> Result<Bytes, Refused> {
    let read = blobs.read(digest).await.map_err(|e| unusable(digest, &e))?;
    read.ok_or_else(|| {
        let help = Some("upload it first: PUT /v1/modules/{digest}".to_owned());
        Refused::with_help(
            StatusCode::NOT_FOUND,
            Code::UnknownModule,
            format!("no module {digest} is stored"),
            help,
        )
    })
}

fn unusable(digest: Digest, error: &ArtifactsError) -> Refused {
    let text = format!("module {digest} cannot be used: {}", crate::agent::report(error));
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, Code::Internal, text)
}

fn digest_of(text: &str) -> Result<Digest, Refused> {
    text.parse().map_err(|e| Refused::bad_request(format!("digest: {e}")))
}

pub async fn upload(
    State(api): State<Arc<Api>>,
    Path(digest): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<ModuleView>), Refused> {
    let wanted = digest_of(&digest)?;
    // Never closed: an error would only mean that nothing is counted.
    let _place = api.modules.uploads.acquire().await;
    let body = whole_body(request, UPLOAD_LIMIT, Code::ModuleTooLarge).await?;
    let artifact = inspect(body).await?;
    if artifact.digest != wanted {
        let text = format!("the body is {}, the path says {wanted}", artifact.digest);
        return Err(Refused::new(StatusCode::BAD_REQUEST, Code::DigestMismatch, text));
    }
    let (blobs, bytes, now) = (api.blobs.clone(), artifact.bytes.clone(), api.clock.monotonic());
    let lately = Arc::clone(&api.modules.lately);
    let put = tokio::task::spawn_blocking(move || {
        lately.touch(wanted, now);
        blobs.put(&bytes, wanted)
    })
    .await;
    let put = put.map_err(|_| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Internal,
            "the upload broke down",
        )
    })?;
    let stored = put.map_err(|e| unusable(wanted, &e))?;
    let inspected = api.modules.keep(&artifact);
    let status = if matches!(stored, Put::Stored) {
        // Replicas that died for want of it need not wait for their back-off.
        if api.agent.module_came(wanted) {
            api.controller.wake.notify_one();
        }
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(view(wanted, &inspected, Vec::new()))))
}

pub async fn known(State(api): State<Arc<Api>>, Path(digest): Path<String>) -> Result<StatusCode, Refused> {
    let digest = digest_of(&digest)?;
    // One that is there counts as just uploaded: a prune leaves it for the deploy that relies on it.
    let (lately, now) = (Arc::clone(&api.modules.lately), api.clock.monotonic());
    let there = on_disk(&api, move |blobs| {
        lately.touch(digest, now);
        blobs.has(digest)
    })
    .await?;
    Ok(if there { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

pub async fn download(State(api): State<Arc<Api>>, Path(digest): Path<String>) -> Result<Bytes, Refused> {
    let digest = digest_of(&digest)?;
    stored(&api.blobs, digest).await
}

pub async fn list(State(api): State<Arc<Api>>) -> Result<Json<List<ModuleView>>, Refused> {
    let users = users(&api).await?;
    let mut items = Vec::new();
    let blobs = on_disk(&api, |blobs| blobs.list()).await?;
    for digest in blobs.into_iter().map(|b| b.digest) {
        let used_by = users.get(&digest).cloned().unwrap_or_default();
        match api.modules.inspected(&api.blobs, digest).await {
            Ok(inspected) => items.push(view(digest, &inspected, used_by)),
            // One unreadable blob never hides the others.
            Err(refused) => tracing::warn!(%digest, problems = refused.errors.len(), "module cannot be read"),
        }
    }
    Ok(Json(List::of(items)))
}

#[derive(serde::Serialize)]
pub struct Pruned {
    schema: u32,
    removed: Vec<String>,
    freed_bytes: u64,
}

pub async fn prune(State(api): State<Arc<Api>>) -> Result<Json<Pruned>, Refused> {
    let used: BTreeSet<Digest> = users(&api).await?.into_keys().collect();
    let (lately, now) = (Arc::clone(&api.modules.lately), api.clock.monotonic());
    let removed = on_disk(&api, move |blobs| lately.prune(&blobs, &used, now)).await?;
    for blob in &removed {
        api.modules.known.remove(&blob.digest);
    }
    api.events.record(
        EventKind::Node,
        None,
        Occurrence::new(format!("pruned {} modules", removed.len())),
    );
    Ok(Json(Pruned {
        schema: 1,
        removed: removed.iter().map(|b| b.digest.to_string()).collect(),
        freed_bytes: removed.iter().map(|b| b.size_bytes).sum(),
    }))
}

/// Disk work, off the control runtime: a slow disk must delay no timer and no planner.
async fn on_disk<T: Send + 'static>(
    api: &Api,
    work: impl FnOnce(Artifacts) -> Result<T, ArtifactsError> + Send + 'static,
) -> Result<T, Refused> {
    let blobs = api.blobs.clone();
    let refused = |text: String| Refused::new(StatusCode::SERVICE_UNAVAILABLE, Code::Internal, text);
    let done = tokio::task::spawn_blocking(move || work(blobs))
        .await
        .map_err(|e| refused(e.to_string()))?;
    done.map_err(|e| refused(crate::agent::report(&e)))
}

/// `service@revision` by digest, of every kept revision.
async fn users(api: &Api) -> Result<BTreeMap<Digest, Vec<String>>, Refused> {
    let users = api.records.modules().await?;
    let named = |(name, number)| format!("{name}@{number}");
    Ok(users
        .into_iter()
        .map(|(digest, by)| (digest, by.into_iter().map(named).collect()))
        .collect())
}

fn view(digest: Digest, inspected: &Inspected, used_by: Vec<String>) -> ModuleView {
    ModuleView {
        digest: digest.to_string(),
        size_bytes: inspected.size_bytes,
        kind: observe::kind_name(inspected.kind),
        imports: inspected.imports.clone(),
        exports: inspected.exports.clone(),
        used_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prune_spares_what_came_or_was_found_within_a_minute_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Artifacts::open(dir.path()).unwrap();
        let [old, fresh, found] = [b"a", b"b", b"c"].map(|bytes| {
            assert_eq!(blobs.put(bytes, Digest::of(bytes)).unwrap(), Put::Stored);
            Digest::of(bytes)
        });
        let modules = Modules::new(Millis(5_000));
        let removed = |now| -> Vec<Digest> {
            let removed = modules.lately.prune(&blobs, &BTreeSet::new(), Millis(now)).unwrap();
            removed.into_iter().map(|b| b.digest).collect()
        };
        assert_eq!(removed(64_999), [], "what was there counts from the start");
        modules.lately.touch(fresh, Millis(64_000));
        modules.lately.touch(found, Millis(30_000));
        assert_eq!(removed(65_000), [old]);
        assert_eq!(removed(90_000), [found]);
        assert_eq!(removed(123_999), []);
        assert_eq!(removed(124_000), [fresh]);
        assert!(modules.lately.lock().is_empty(), "nothing is remembered for ever");
    }
}
