//! `wasi:filesystem` in both tracks over [`Volume`]s: paths are resolved by wasmtime-wasi (beneath the volume, whatever links
//! say), and everything that may make a volume larger is paid for first.
//!
//! No call waits for a disk on a thread that serves: each is a job for a thread that may wait, bounded for each volume
//! and for the process. A job that has begun ends, also when its guest does not wait any more, so an account never
//! differs from what was done. A guest without a volume sees no directory at all.

mod changes;
mod list;
mod p2;
mod p3;
mod streams;

use std::io;
use std::sync::{Arc, LazyLock};

use futures::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, Dir, OpenMode, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wasmtime_wasi::p2::{FsError, FsResult};
use wasmtime_wasi::{FsPerms, WasiCtx};

use super::outside::Outside;
use crate::volume::{FileId, Volume, VolumeGrant};

/// File operations under way in the process.
const JOBS: usize = 64;
/// Files, directories and streams that one instance may have open.
pub const OPEN_PER_INSTANCE: usize = 256;
/// All guests together may have one of so many descriptors of this process.
const OPEN_SHARE: u64 = 4;
/// Bytes of one read or write.
const PIECE_BYTES: usize = 64 << 10;

/// A volume as the guests of one replica have it: made with the replica, shared by its stores.
pub struct Mount {
    volume: Arc<Volume>,
    quota_bytes: u64,
    guest_path: String,
    root: Descriptor,
}

impl Mount {
    /// # Errors
    /// No descriptor is left.
    pub fn new(grant: &VolumeGrant) -> io::Result<Arc<Self>> {
        let (perms, mode) = if grant.read_only {
            (FsPerms::ReadOnly, OpenMode::READ)
        } else {
            (FsPerms::ReadWrite, OpenMode::READ | OpenMode::WRITE)
        };
        // Blocking: only jobs touch it.
        let root = Dir::new(grant.volume.root().try_clone()?, perms, mode, true);
        Ok(Arc::new(Self {
            volume: Arc::clone(&grant.volume),
            quota_bytes: grant.size_bytes,
            guest_path: grant.guest_path.clone(),
            root: Descriptor::Dir(root),
        }))
    }
}

/// What one store has open; `None` until it first looks.
pub type OpenFiles = Option<Arc<Semaphore>>;

/// A store's files for one host call.
pub struct FilesView<'a> {
    pub mounts: &'a [Arc<Mount>],
    pub open: &'a mut OpenFiles,
    pub outside: &'a Arc<dyn Outside>,
    pub table: &'a mut ResourceTable,
}

/// A store that may have files.
pub trait FilesHost: Send + 'static {
    fn files(&mut self) -> FilesView<'_>;
}

struct Files;

impl HasData for Files {
    type Data<'a> = FilesView<'a>;
}

/// Links the interfaces of 0.2. Whoever linked others before must allow shadowing.
pub fn add_to_linker_02<T: FilesHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
    types::add_to_linker::<_, Files>(linker, T::files)?;
    preopens::add_to_linker::<_, Files>(linker, T::files)
}

/// Links the interfaces of 0.3.
pub fn add_to_linker_03<T: FilesHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p3::bindings::filesystem::{preopens, types};
    types::add_to_linker::<_, Files>(linker, T::files)?;
    preopens::add_to_linker::<_, Files>(linker, T::files)
}

/// What stands behind a guest's descriptor. The guest's table holds one, each stream and job another.
struct Handle {
    mount: Arc<Mount>,
    descriptor: Descriptor,
    /// Of a file: which.
    file: Option<FileId>,
    _permits: Option<Permits>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            self.mount.volume.account().closed(file);
        }
    }
}

/// Permission to have something open, in its instance and in the process.
struct Permits {
    _instance: OwnedSemaphorePermit,
    _process: Option<OwnedSemaphorePermit>,
}

impl FilesView<'_> {
    fn directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let mut directories = Vec::with_capacity(self.mounts.len());
        for mount in self.mounts {
            let handle = Handle {
                mount: Arc::clone(mount),
                descriptor: mount.root.clone(),
                file: None,
                _permits: None,
            };
            directories.push((self.push(handle)?, mount.guest_path.clone()));
        }
        Ok(directories)
    }

    /// The guest's descriptor is a number; what is behind it is ours.
    fn push(&mut self, handle: Handle) -> wasmtime::Result<Resource<Descriptor>> {
        Ok(Resource::new_own(self.table.push(Arc::new(handle))?.rep()))
    }

    fn handle(&self, descriptor: &Resource<Descriptor>) -> wasmtime::Result<Arc<Handle>> {
        let resource = Resource::<Arc<Handle>>::new_borrow(descriptor.rep());
        Ok(Arc::clone(self.table.get(&resource)?))
    }

    fn close(&mut self, descriptor: &Resource<Descriptor>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Arc<Handle>>::new_own(descriptor.rep()))?;
        Ok(())
    }

    fn semaphore(&mut self) -> &Arc<Semaphore> {
        self.open
            .get_or_insert_with(|| Arc::new(Semaphore::new(OPEN_PER_INSTANCE)))
    }

    /// To have one more file or directory open.
    fn may_open(&mut self) -> FsResult<Permits> {
        static PROCESS: LazyLock<Arc<Semaphore>> =
            LazyLock::new(|| Arc::new(Semaphore::new(share_of_descriptors(OPEN_SHARE))));
        let instance = Arc::clone(self.semaphore()).try_acquire_owned();
        let process = Arc::clone(&PROCESS).try_acquire_owned();
        match (instance, process) {
            (Ok(instance), Ok(process)) => Ok(Permits {
                _instance: instance,
                _process: Some(process),
            }),
            _ => Err(ErrorCode::Busy.into()),
        }
    }

    /// To have one more stream, which holds a piece of a file in memory.
    fn may_stream(&mut self) -> FsResult<Permits> {
        let instance = Arc::clone(self.semaphore()).try_acquire_owned();
        let instance = instance.map_err(|_| FsError::from(ErrorCode::Busy))?;
        Ok(Permits {
            _instance: instance,
            _process: None,
        })
    }
}

/// One of `parts` equal parts of the descriptors that this process may have, as permits.
pub(super) fn share_of_descriptors(parts: u64) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(u64::MAX) / parts)
        .unwrap_or(usize::MAX)
        .clamp(64, Semaphore::MAX_PERMITS)
}

/// Does `job` on a thread that may wait. Once begun it ends, whoever still waits for it.
async fn run<R: Send + 'static>(volume: &Volume, job: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
    static PROCESS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(JOBS)));
    // The semaphores are never closed.
    let mine = volume.jobs().acquire_owned().await.map_err(io::Error::other)?;
    let process = Arc::clone(&PROCESS).acquire_owned().await.map_err(io::Error::other)?;
    let job = move || {
        let done = job();
        drop((mine, process));
        done
    };
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)
}

/// wasmtime-wasi's own file system for one job: it works on the job's thread, at once.
struct Desk {
    table: ResourceTable,
    files: WasiFilesystemCtx,
}

impl Desk {
    fn new() -> Self {
        static FILES: LazyLock<WasiFilesystemCtx> = LazyLock::new(|| {
            let mut wasi = WasiCtx::builder();
            wasi.allow_blocking_current_thread(true);
            wasi.build().filesystem().clone()
        });
        Self {
            table: ResourceTable::new(),
            files: FILES.clone(),
        }
    }

    fn put(&mut self, descriptor: &Descriptor) -> FsResult<Resource<Descriptor>> {
        Ok(self.table.push(descriptor.clone())?)
    }

    fn view(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView {
            ctx: &mut self.files,
            table: &mut self.table,
        }
    }
}

/// The result of a future that waits for nothing.
fn now<R>(done: impl Future<Output = FsResult<R>>) -> FsResult<R> {
    done.now_or_never().unwrap_or_else(|| Err(ErrorCode::Io.into()))
}
