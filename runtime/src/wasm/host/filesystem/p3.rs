//! `wasi:filesystem` 0.3: the calls of 0.2 in the other track's words, and its streams.

mod streams;
mod words;

use std::sync::Arc;

use futures::channel::oneshot;
use wasmtime::component::{Access, Accessor, FutureReader, Resource, StreamReader};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types as p2;
use wasmtime_wasi::p2::{FsError, FsResult};
use wasmtime_wasi::p3::bindings::filesystem::preopens;
use wasmtime_wasi::p3::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, Host, HostDescriptor,
    HostDescriptorWithStore, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};

use self::streams::{Entries, Input, Output};
use super::changes::{self, At};
use super::list::Listing;
use super::{Desk, Files, FilesView, Handle, Permits, now, run};

type Fd = Resource<Descriptor>;
type Ended = FutureReader<Result<(), ErrorCode>>;

fn handle<U: 'static>(store: &Accessor<U, Files>, fd: &Fd) -> FilesystemResult<Arc<Handle>> {
    store
        .with(|mut store| store.get().handle(fd))
        .map_err(FilesystemError::trap)
}

/// An error of 0.2 in the words of 0.3.
fn said(error: FsError) -> FilesystemError {
    match error.downcast() {
        Ok(code) => words::error_code(code).into(),
        Err(trap) => FilesystemError::trap(trap),
    }
}

/// Does it as a job.
async fn job<R: Send + 'static>(
    handle: Arc<Handle>,
    work: impl FnOnce(&Handle) -> FsResult<R> + Send + 'static,
) -> FilesystemResult<R> {
    let volume = Arc::clone(&handle.mount.volume);
    let done = run(&volume, move || work(&handle)).await;
    done.map_err(FsError::from).and_then(|done| done).map_err(said)
}

/// One of wasmtime-wasi's own calls of 0.2, as a job.
macro_rules! own {
    ($store:expr, $fd:expr, |$view:ident, $at:ident| $call:expr) => {{
        use p2::HostDescriptor as _;
        job(handle($store, &$fd)?, move |handle| {
            let mut desk = Desk::new();
            let $at = desk.put(&handle.descriptor)?;
            let mut $view = desk.view();
            now($call)
        })
        .await
    }};
}

/// `now` by the guest's own clock.
fn time<U: 'static>(store: &Accessor<U, Files>, time: NewTimestamp) -> FilesystemResult<p2::NewTimestamp> {
    let wall = store.with(|mut store| store.get().outside.wall_now());
    Ok(words::new_timestamp(time, wall)?)
}

fn may_stream(view: &mut FilesView<'_>) -> Result<Permits, ErrorCode> {
    view.may_stream().map_err(|_| ErrorCode::Busy)
}

/// Reads a guest's stream into a file, or throws it away and says why.
fn write_stream<U: 'static>(
    mut store: Access<'_, U, Files>,
    fd: &Fd,
    mut data: StreamReader<u8>,
    at: At,
) -> wasmtime::Result<Ended> {
    let (result, ended) = oneshot::channel();
    let mut view = store.get();
    let handle = view.handle(fd)?;
    let may = changes::may_write(&handle).map_err(words::error_code);
    match may.and_then(|()| may_stream(&mut view)) {
        Ok(permits) => data.pipe(&mut store, Output::new(handle, at, result, permits))?,
        Err(code) => {
            data.close(&mut store)?;
            let _ = result.send(Err(code));
        }
    }
    FutureReader::new(&mut store, ended)
}

impl preopens::Host for FilesView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Fd, String)>> {
        self.directories()
    }
}

impl Host for FilesView<'_> {
    fn convert_error_code(&mut self, error: FilesystemError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl HostDescriptor for FilesView<'_> {
    fn drop(&mut self, fd: Fd) -> wasmtime::Result<()> {
        self.close(&fd)
    }
}

impl<U: 'static> HostDescriptorWithStore<U> for Files {
    fn read_via_stream(
        mut store: Access<'_, U, Self>,
        fd: Fd,
        offset: u64,
    ) -> wasmtime::Result<(StreamReader<u8>, Ended)> {
        let (result, ended) = oneshot::channel();
        let mut view = store.get();
        let handle = view.handle(&fd)?;
        let may = match handle.descriptor {
            Descriptor::Dir(_) => Err(ErrorCode::IsDirectory),
            Descriptor::File(_) => may_stream(&mut view),
        };
        let stream = match may {
            Ok(permits) => StreamReader::new(&mut store, Input::new(handle, offset, result, permits))?,
            Err(code) => {
                let _ = result.send(Err(code));
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok((stream, FutureReader::new(&mut store, ended)?))
    }

    fn write_via_stream(
        store: Access<'_, U, Self>,
        fd: Fd,
        data: StreamReader<u8>,
        offset: u64,
    ) -> wasmtime::Result<Ended> {
        write_stream(store, &fd, data, At::Offset(offset))
    }

    fn append_via_stream(store: Access<'_, U, Self>, fd: Fd, data: StreamReader<u8>) -> wasmtime::Result<Ended> {
        write_stream(store, &fd, data, At::End)
    }

    fn read_directory(
        mut store: Access<'_, U, Self>,
        fd: Fd,
    ) -> wasmtime::Result<(StreamReader<DirectoryEntry>, Ended)> {
        let (result, ended) = oneshot::channel();
        let mut view = store.get();
        let handle = view.handle(&fd)?;
        let stream = match view.may_open() {
            Ok(permits) => StreamReader::new(&mut store, Entries::new(handle, result, permits))?,
            Err(_) => {
                let _ = result.send(Err(ErrorCode::Busy));
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok((stream, FutureReader::new(&mut store, ended)?))
    }

    async fn advise(
        store: &Accessor<U, Self>,
        fd: Fd,
        offset: u64,
        length: u64,
        advice: Advice,
    ) -> FilesystemResult<()> {
        let advice = words::advice(advice);
        own!(store, fd, |view, fd| view.advise(fd, offset, length, advice))
    }

    async fn sync_data(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<()> {
        own!(store, fd, |view, fd| view.sync_data(fd))
    }

    async fn get_flags(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<DescriptorFlags> {
        let flags = own!(store, fd, |view, fd| view.get_flags(fd))?;
        Ok(words::descriptor_flags_from(flags))
    }

    async fn get_type(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<DescriptorType> {
        let kind = own!(store, fd, |view, fd| view.get_type(fd))?;
        Ok(words::descriptor_type(kind))
    }

    async fn set_size(store: &Accessor<U, Self>, fd: Fd, size: u64) -> FilesystemResult<()> {
        job(handle(store, &fd)?, move |file| changes::set_size(file, size)).await
    }

    async fn set_times(
        store: &Accessor<U, Self>,
        fd: Fd,
        access: NewTimestamp,
        modification: NewTimestamp,
    ) -> FilesystemResult<()> {
        let (access, modification) = (time(store, access)?, time(store, modification)?);
        own!(store, fd, |view, fd| view.set_times(fd, access, modification))
    }

    async fn sync(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<()> {
        own!(store, fd, |view, fd| view.sync(fd))
    }

    async fn create_directory_at(store: &Accessor<U, Self>, fd: Fd, path: String) -> FilesystemResult<()> {
        job(handle(store, &fd)?, move |dir| changes::create_directory(dir, path)).await
    }

    async fn stat(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<DescriptorStat> {
        let stat = own!(store, fd, |view, fd| view.stat(fd))?;
        Ok(words::stat(stat))
    }

    async fn stat_at(
        store: &Accessor<U, Self>,
        fd: Fd,
        flags: PathFlags,
        path: String,
    ) -> FilesystemResult<DescriptorStat> {
        let flags = words::path_flags(flags);
        let stat = own!(store, fd, |view, fd| view.stat_at(fd, flags, path))?;
        Ok(words::stat(stat))
    }

    async fn set_times_at(
        store: &Accessor<U, Self>,
        fd: Fd,
        flags: PathFlags,
        path: String,
        access: NewTimestamp,
        modification: NewTimestamp,
    ) -> FilesystemResult<()> {
        let (access, modification) = (time(store, access)?, time(store, modification)?);
        let flags = words::path_flags(flags);
        own!(store, fd, |view, fd| view.set_times_at(
            fd,
            flags,
            path,
            access,
            modification
        ))
    }

    async fn link_at(
        store: &Accessor<U, Self>,
        fd: Fd,
        flags: PathFlags,
        old: String,
        to: Fd,
        new: String,
    ) -> FilesystemResult<()> {
        let (to, flags) = (handle(store, &to)?, words::path_flags(flags));
        job(handle(store, &fd)?, move |from| {
            changes::link(from, flags, old, &to, new)
        })
        .await
    }

    async fn open_at(
        store: &Accessor<U, Self>,
        fd: Fd,
        follow: PathFlags,
        path: String,
        how: OpenFlags,
        flags: DescriptorFlags,
    ) -> FilesystemResult<Fd> {
        let permits = store.with(|mut store| store.get().may_open()).map_err(said)?;
        let (follow, how, flags) = (
            words::path_flags(follow),
            words::open_flags(how),
            words::descriptor_flags(flags),
        );
        let open = move |dir: &Handle| changes::open(dir, follow, &path, how, flags, permits);
        let opened = job(handle(store, &fd)?, open).await?;
        store
            .with(|mut store| store.get().push(opened))
            .map_err(FilesystemError::trap)
    }

    async fn readlink_at(store: &Accessor<U, Self>, fd: Fd, path: String) -> FilesystemResult<String> {
        own!(store, fd, |view, fd| view.readlink_at(fd, path))
    }

    async fn remove_directory_at(store: &Accessor<U, Self>, fd: Fd, path: String) -> FilesystemResult<()> {
        job(handle(store, &fd)?, move |dir| changes::remove_directory(dir, path)).await
    }

    async fn rename_at(store: &Accessor<U, Self>, fd: Fd, old: String, to: Fd, new: String) -> FilesystemResult<()> {
        let to = handle(store, &to)?;
        job(handle(store, &fd)?, move |from| changes::rename(from, old, &to, new)).await
    }

    async fn symlink_at(store: &Accessor<U, Self>, fd: Fd, target: String, path: String) -> FilesystemResult<()> {
        job(handle(store, &fd)?, move |dir| changes::symlink(dir, target, path)).await
    }

    async fn unlink_file_at(store: &Accessor<U, Self>, fd: Fd, path: String) -> FilesystemResult<()> {
        job(handle(store, &fd)?, move |dir| changes::unlink(dir, path)).await
    }

    async fn is_same_object(store: &Accessor<U, Self>, a: Fd, b: Fd) -> wasmtime::Result<bool> {
        let hash =
            async |fd: Fd| own!(store, fd, |view, fd| view.metadata_hash(fd)).map(|hash| (hash.lower, hash.upper));
        match (hash(a).await, hash(b).await) {
            (Ok(a), Ok(b)) => Ok(a == b),
            _ => Ok(false),
        }
    }

    async fn metadata_hash(store: &Accessor<U, Self>, fd: Fd) -> FilesystemResult<MetadataHashValue> {
        let hash = own!(store, fd, |view, fd| view.metadata_hash(fd))?;
        Ok(words::metadata_hash(&hash))
    }

    async fn metadata_hash_at(
        store: &Accessor<U, Self>,
        fd: Fd,
        flags: PathFlags,
        path: String,
    ) -> FilesystemResult<MetadataHashValue> {
        let flags = words::path_flags(flags);
        let hash = own!(store, fd, |view, fd| view.metadata_hash_at(fd, flags, path))?;
        Ok(words::metadata_hash(&hash))
    }
}
