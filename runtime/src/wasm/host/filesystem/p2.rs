//! `wasi:filesystem` 0.2: each call is one job. Those that change a volume are in [`changes`]; the others are wasmtime-wasi's.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode, Host,
    HostDescriptor, HostDirectoryEntryStream, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult};

use super::changes::{self, At};
use super::list::Listing;
use super::streams::{Reader, Writer};
use super::{Desk, FilesView, Handle, now, run};

type Fd = Resource<Descriptor>;

/// One of wasmtime-wasi's own calls, as a job.
macro_rules! job {
    ($handle:expr, |$view:ident, $fd:ident| $call:expr) => {{
        let handle: Arc<Handle> = $handle;
        let volume = Arc::clone(&handle.mount.volume);
        let done = run(&volume, move || {
            let mut desk = Desk::new();
            let $fd = desk.put(&handle.descriptor)?;
            let mut $view = desk.view();
            now($call)
        });
        done.await?
    }};
}

/// One of ours.
macro_rules! change {
    ($handle:expr, |$name:ident| $call:expr) => {{
        let $name: Arc<Handle> = $handle;
        let volume = Arc::clone(&$name.mount.volume);
        run(&volume, move || $call).await?
    }};
}

impl FilesView<'_> {
    fn fd(&self, fd: &Fd) -> FsResult<Arc<Handle>> {
        self.handle(fd).map_err(FsError::trap)
    }

    /// `now` by the guest's own clock.
    fn time(&self, time: NewTimestamp) -> NewTimestamp {
        match time {
            NewTimestamp::Now => NewTimestamp::Timestamp(datetime(self.outside.wall_now())),
            other => other,
        }
    }

    fn writer(&mut self, fd: &Fd, at: At) -> FsResult<Resource<DynOutputStream>> {
        let handle = self.fd(fd)?;
        changes::may_write(&handle)?;
        let writer: DynOutputStream = Box::new(Writer::new(handle, at, self.may_stream()?));
        Ok(self.table.push(writer)?)
    }
}

fn datetime(time: Duration) -> Datetime {
    Datetime {
        seconds: time.as_secs(),
        nanoseconds: time.subsec_nanos(),
    }
}

impl preopens::Host for FilesView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Fd, String)>> {
        self.directories()
    }
}

impl Host for FilesView<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<std::io::Error>().map(ErrorCode::from))
    }
}

impl HostDescriptor for FilesView<'_> {
    fn read_via_stream(&mut self, fd: Fd, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let handle = self.fd(&fd)?;
        if matches!(handle.descriptor, Descriptor::Dir(_)) {
            return Err(ErrorCode::IsDirectory.into());
        }
        let reader: DynInputStream = Box::new(Reader::new(handle, offset, self.may_stream()?));
        Ok(self.table.push(reader)?)
    }

    fn write_via_stream(&mut self, fd: Fd, offset: u64) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&fd, At::Offset(offset))
    }

    fn append_via_stream(&mut self, fd: Fd) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&fd, At::End)
    }

    async fn advise(&mut self, fd: Fd, offset: u64, length: u64, advice: Advice) -> FsResult<()> {
        job!(self.fd(&fd)?, |view, fd| view.advise(fd, offset, length, advice))
    }

    async fn sync_data(&mut self, fd: Fd) -> FsResult<()> {
        job!(self.fd(&fd)?, |view, fd| view.sync_data(fd))
    }

    async fn get_flags(&mut self, fd: Fd) -> FsResult<DescriptorFlags> {
        job!(self.fd(&fd)?, |view, fd| view.get_flags(fd))
    }

    async fn get_type(&mut self, fd: Fd) -> FsResult<DescriptorType> {
        job!(self.fd(&fd)?, |view, fd| view.get_type(fd))
    }

    async fn set_size(&mut self, fd: Fd, size: u64) -> FsResult<()> {
        change!(self.fd(&fd)?, |file| changes::set_size(&file, size))
    }

    async fn set_times(&mut self, fd: Fd, access: NewTimestamp, modification: NewTimestamp) -> FsResult<()> {
        let (access, modification) = (self.time(access), self.time(modification));
        job!(self.fd(&fd)?, |view, fd| view.set_times(fd, access, modification))
    }

    async fn read(&mut self, fd: Fd, length: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        job!(self.fd(&fd)?, |view, fd| view.read(fd, length, offset))
    }

    async fn write(&mut self, fd: Fd, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        let written = change!(self.fd(&fd)?, |file| changes::write(&file, &bytes, At::Offset(offset)))?;
        Ok(written as u64)
    }

    async fn read_directory(&mut self, fd: Fd) -> FsResult<Resource<DirectoryEntryStream>> {
        let handle = self.fd(&fd)?;
        let permits = self.may_open()?;
        let listing = change!(handle, |dir| Listing::open(&dir, permits))?;
        let listing = self.table.push(listing)?;
        Ok(Resource::new_own(listing.rep()))
    }

    async fn sync(&mut self, fd: Fd) -> FsResult<()> {
        job!(self.fd(&fd)?, |view, fd| view.sync(fd))
    }

    async fn create_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        change!(self.fd(&fd)?, |dir| changes::create_directory(&dir, path))
    }

    async fn stat(&mut self, fd: Fd) -> FsResult<DescriptorStat> {
        job!(self.fd(&fd)?, |view, fd| view.stat(fd))
    }

    async fn stat_at(&mut self, fd: Fd, flags: PathFlags, path: String) -> FsResult<DescriptorStat> {
        job!(self.fd(&fd)?, |view, fd| view.stat_at(fd, flags, path))
    }

    async fn set_times_at(
        &mut self,
        fd: Fd,
        flags: PathFlags,
        path: String,
        access: NewTimestamp,
        modification: NewTimestamp,
    ) -> FsResult<()> {
        let (access, modification) = (self.time(access), self.time(modification));
        job!(self.fd(&fd)?, |view, fd| view.set_times_at(
            fd,
            flags,
            path,
            access,
            modification
        ))
    }

    async fn link_at(&mut self, fd: Fd, flags: PathFlags, old: String, to: Fd, new: String) -> FsResult<()> {
        let to = self.fd(&to)?;
        change!(self.fd(&fd)?, |from| changes::link(&from, flags, old, &to, new))
    }

    async fn open_at(
        &mut self,
        fd: Fd,
        follow: PathFlags,
        path: String,
        how: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Fd> {
        let permits = self.may_open()?;
        let opened = change!(self.fd(&fd)?, |dir| changes::open(
            &dir, follow, &path, how, flags, permits
        ))?;
        self.push(opened).map_err(FsError::trap)
    }

    async fn readlink_at(&mut self, fd: Fd, path: String) -> FsResult<String> {
        job!(self.fd(&fd)?, |view, fd| view.readlink_at(fd, path))
    }

    async fn remove_directory_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        change!(self.fd(&fd)?, |dir| changes::remove_directory(&dir, path))
    }

    async fn rename_at(&mut self, fd: Fd, old: String, to: Fd, new: String) -> FsResult<()> {
        let to = self.fd(&to)?;
        change!(self.fd(&fd)?, |from| changes::rename(&from, old, &to, new))
    }

    async fn symlink_at(&mut self, fd: Fd, target: String, path: String) -> FsResult<()> {
        change!(self.fd(&fd)?, |dir| changes::symlink(&dir, target, path))
    }

    async fn unlink_file_at(&mut self, fd: Fd, path: String) -> FsResult<()> {
        change!(self.fd(&fd)?, |dir| changes::unlink(&dir, path))
    }

    async fn is_same_object(&mut self, a: Fd, b: Fd) -> wasmtime::Result<bool> {
        let (a, b) = (self.handle(&a)?, self.handle(&b)?);
        let volume = Arc::clone(&a.mount.volume);
        let same = run(&volume, move || {
            let hash = |handle: &Handle| -> FsResult<(u64, u64)> {
                let mut desk = Desk::new();
                let fd = desk.put(&handle.descriptor)?;
                let hash = now(desk.view().metadata_hash(fd))?;
                Ok((hash.lower, hash.upper))
            };
            matches!((hash(&a), hash(&b)), (Ok(a), Ok(b)) if a == b)
        });
        Ok(same.await?)
    }

    async fn metadata_hash(&mut self, fd: Fd) -> FsResult<MetadataHashValue> {
        job!(self.fd(&fd)?, |view, fd| view.metadata_hash(fd))
    }

    async fn metadata_hash_at(&mut self, fd: Fd, flags: PathFlags, path: String) -> FsResult<MetadataHashValue> {
        job!(self.fd(&fd)?, |view, fd| view.metadata_hash_at(fd, flags, path))
    }

    fn drop(&mut self, fd: Fd) -> wasmtime::Result<()> {
        self.close(&fd)
    }
}

impl HostDirectoryEntryStream for FilesView<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<DirectoryEntryStream>,
    ) -> FsResult<Option<DirectoryEntry>> {
        let listing = Resource::<Listing>::new_borrow(stream.rep());
        self.table.get_mut(&listing)?.next().await
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Listing>::new_own(stream.rep()))?;
        Ok(())
    }
}
