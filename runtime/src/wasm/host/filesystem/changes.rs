//! What makes a volume larger or smaller, each with its price. Every function here runs in a job, holds the volume's lock from
//! its first look to its last, and leaves an account that says what is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, HostDescriptor as _, OpenFlags, PathFlags,
};

use super::{Desk, Handle, Mount, Permits, now};
use crate::volume::{ENTRY_BYTES, FileId, content_bytes};

/// The largest size that a file system can be asked for.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// Where a write goes.
#[derive(Clone, Copy, Debug)]
pub enum At {
    Offset(u64),
    End,
}

impl Mount {
    fn take(&self, bytes: u64) -> io::Result<()> {
        let taken = self.volume.account().take(bytes, self.quota_bytes);
        taken.map_err(|_| rustix::io::Errno::NOSPC.into())
    }

    fn give(&self, bytes: u64) {
        self.volume.account().give(bytes);
    }

    /// Pays for one more name, makes it, and takes the price back if that failed.
    fn name<R>(&self, make: impl FnOnce() -> FsResult<R>) -> FsResult<R> {
        self.take(ENTRY_BYTES)?;
        make().inspect_err(|_| self.give(ENTRY_BYTES))
    }
}

/// A name in a directory: what it means and which file that is.
struct Named {
    stat: DescriptorStat,
    file: FileId,
}

impl Named {
    /// The name is gone.
    fn removed(&self, mount: &Mount) {
        let mut account = mount.volume.account();
        account.give(ENTRY_BYTES);
        if self.stat.type_ == DescriptorType::RegularFile && self.stat.link_count < 2 {
            account.unnamed(self.file, content_bytes(self.stat.size));
        }
    }
}

/// A directory on a desk.
struct Place<'a> {
    desk: &'a mut Desk,
    dir: Resource<Descriptor>,
}

impl Place<'_> {
    fn dir(&self) -> Resource<Descriptor> {
        Resource::new_borrow(self.dir.rep())
    }

    fn look(&mut self, flags: PathFlags, path: &str) -> FsResult<DescriptorStat> {
        let dir = self.dir();
        now(self.desk.view().stat_at(dir, flags, path.to_owned()))
    }

    /// The name itself, not what a link of that name leads to.
    fn named(&mut self, path: &str) -> Option<Named> {
        let stat = self.look(PathFlags::empty(), path).ok()?;
        let dir = self.dir();
        let hash = now(self
            .desk
            .view()
            .metadata_hash_at(dir, PathFlags::empty(), path.to_owned()))
        .ok()?;
        Some(Named { stat, file: hash.lower })
    }
}

fn on<'a>(desk: &'a mut Desk, handle: &Handle) -> FsResult<Place<'a>> {
    let dir = desk.put(&handle.descriptor)?;
    Ok(Place { desk, dir })
}

/// Opens, and makes or empties the file first if asked.
pub fn open(
    handle: &Handle,
    follow: PathFlags,
    path: &str,
    mut how: OpenFlags,
    mut flags: DescriptorFlags,
    permits: Permits,
) -> FsResult<Handle> {
    let makes = how.intersects(OpenFlags::CREATE | OpenFlags::EXCLUSIVE);
    if how.contains(OpenFlags::DIRECTORY) && (makes || how.contains(OpenFlags::TRUNCATE)) {
        return Err(ErrorCode::Invalid.into());
    }
    let mount = &*handle.mount;
    let _change = mount.volume.change();
    let mut desk = Desk::new();
    let mut at = on(&mut desk, handle)?;
    let there = at.look(follow, path);
    let is_new = match &there {
        // A pipe would wait for its other end, a device is no file: whoever put it there did not mean it for a guest.
        Ok(stat) if !is_plain(stat.type_) => return Err(ErrorCode::NotPermitted.into()),
        Ok(_) => false,
        Err(error) => matches!(error.downcast_ref(), Some(ErrorCode::NoEntry)),
    };
    // What would make or empty a file opens it for writing, there or not.
    if how.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE) {
        flags |= DescriptorFlags::WRITE;
    }
    let empties = how.contains(OpenFlags::TRUNCATE);
    how &= !OpenFlags::TRUNCATE;
    if !is_new && !how.contains(OpenFlags::EXCLUSIVE) {
        how &= !OpenFlags::CREATE;
    }
    let dir = at.dir();
    let open = || now(at.desk.view().open_at(dir, follow, path.to_owned(), how, flags));
    let opened = if how.contains(OpenFlags::CREATE) && matches!(handle.descriptor, Descriptor::Dir(_)) {
        mount.name(open)?
    } else {
        open()?
    };
    let opened = desk.table.delete(opened)?;
    let made = |descriptor, file| Handle {
        mount: Arc::clone(&handle.mount),
        descriptor,
        file,
        _permits: Some(permits),
    };
    let Descriptor::File(file) = &opened else {
        return Ok(made(opened, None));
    };
    if empties && !is_new {
        let before = length(&file.file)?;
        file.file.set_len(0)?;
        mount.give(content_bytes(before));
    }
    let resource = desk.put(&opened)?;
    let id = now(desk.view().metadata_hash(resource))?.lower;
    mount.volume.account().opened(id);
    Ok(made(opened, Some(id)))
}

fn is_plain(kind: DescriptorType) -> bool {
    matches!(
        kind,
        DescriptorType::RegularFile | DescriptorType::Directory | DescriptorType::SymbolicLink
    )
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// The file behind a handle, if the guest may change it.
fn writable(handle: &Handle) -> Result<&File, ErrorCode> {
    match &handle.descriptor {
        Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor),
        Descriptor::File(file) if file.perms.write_not_permitted() => Err(ErrorCode::NotPermitted),
        Descriptor::File(file) => Ok(&file.file),
    }
}

/// The same as an error of a stream.
pub fn may_write(handle: &Handle) -> Result<(), ErrorCode> {
    writable(handle).map(drop)
}

/// Gives a file up to `size` of content: pays, does it, and settles by what is there then.
fn grow<R>(
    handle: &Handle,
    file: &File,
    before: u64,
    size: u64,
    change: impl FnOnce() -> io::Result<R>,
) -> io::Result<R> {
    let mount = &*handle.mount;
    let (had, wants) = (content_bytes(before), content_bytes(size));
    mount.take(wants.saturating_sub(had))?;
    let done = change();
    let paid = had.max(wants);
    let has = length(file).map_or(paid, content_bytes);
    let mut account = mount.volume.account();
    account.give(paid.saturating_sub(has));
    if let Some(id) = handle.file {
        account.resized(id, has);
    }
    done
}

/// Writes all of it, or as much as the disk takes, or nothing if the volume has no room for all. Returns how much.
pub fn write(handle: &Handle, bytes: &[u8], at: At) -> io::Result<usize> {
    let file = writable(handle).map_err(|code| match code {
        ErrorCode::NotPermitted => rustix::io::Errno::PERM,
        _ => rustix::io::Errno::BADF,
    })?;
    let _change = handle.mount.volume.change();
    let before = length(file)?;
    let start = match at {
        At::Offset(offset) => offset,
        At::End => before,
    };
    let end = start
        .checked_add(bytes.len() as u64)
        .filter(|end| *end <= MAX_FILE_BYTES)
        .ok_or(rustix::io::Errno::FBIG)?;
    if bytes.is_empty() {
        return Ok(0);
    }
    grow(handle, file, before, end.max(before), || {
        let mut written = 0;
        while written < bytes.len() {
            match file.write_at(&bytes[written..], start + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The next write says why.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    })
}

/// Cuts a file or lengthens it with a hole, which costs as much as bytes.
pub fn set_size(handle: &Handle, size: u64) -> FsResult<()> {
    let file = writable(handle)?;
    if size > MAX_FILE_BYTES {
        return Err(ErrorCode::FileTooLarge.into());
    }
    let _change = handle.mount.volume.change();
    let before = length(file)?;
    Ok(grow(handle, file, before, size, || file.set_len(size))?)
}

pub fn create_directory(handle: &Handle, path: String) -> FsResult<()> {
    let _change = handle.mount.volume.change();
    let mut desk = Desk::new();
    let at = on(&mut desk, handle)?;
    let dir = at.dir();
    handle.mount.name(|| now(at.desk.view().create_directory_at(dir, path)))
}

pub fn symlink(handle: &Handle, target: String, path: String) -> FsResult<()> {
    let _change = handle.mount.volume.change();
    let mut desk = Desk::new();
    let at = on(&mut desk, handle)?;
    let dir = at.dir();
    handle.mount.name(|| now(at.desk.view().symlink_at(dir, target, path)))
}

pub fn remove_directory(handle: &Handle, path: String) -> FsResult<()> {
    let _change = handle.mount.volume.change();
    let mut desk = Desk::new();
    let at = on(&mut desk, handle)?;
    let dir = at.dir();
    now(at.desk.view().remove_directory_at(dir, path))?;
    handle.mount.give(ENTRY_BYTES);
    Ok(())
}

pub fn unlink(handle: &Handle, path: String) -> FsResult<()> {
    let _change = handle.mount.volume.change();
    let mut desk = Desk::new();
    let mut at = on(&mut desk, handle)?;
    let named = at.named(&path);
    let dir = at.dir();
    now(at.desk.view().unlink_file_at(dir, path))?;
    if let Some(named) = named {
        named.removed(&handle.mount);
    }
    Ok(())
}

pub fn link(from: &Handle, follow: PathFlags, old: String, to: &Handle, new: String) -> FsResult<()> {
    same_volume(from, to)?;
    let _change = from.mount.volume.change();
    let mut desk = Desk::new();
    let (dir, into) = (desk.put(&from.descriptor)?, desk.put(&to.descriptor)?);
    to.mount.name(|| now(desk.view().link_at(dir, follow, old, into, new)))
}

/// What had the new name is gone, and given back.
pub fn rename(from: &Handle, old: String, to: &Handle, new: String) -> FsResult<()> {
    same_volume(from, to)?;
    let _change = from.mount.volume.change();
    let mut desk = Desk::new();
    let moved = on(&mut desk, from)?.named(&old);
    let replaced = on(&mut desk, to)?.named(&new);
    let (dir, into) = (desk.put(&from.descriptor)?, desk.put(&to.descriptor)?);
    now(desk.view().rename_at(dir, old, into, new))?;
    // Two names of one file stay two names.
    if let Some(replaced) = replaced.filter(|replaced| moved.is_some_and(|moved| moved.file != replaced.file)) {
        replaced.removed(&to.mount);
    }
    Ok(())
}

/// What has a price in one volume cannot go to another.
fn same_volume(from: &Handle, to: &Handle) -> Result<(), ErrorCode> {
    if std::ptr::eq(&*from.mount.volume, &*to.mount.volume) {
        Ok(())
    } else {
        Err(ErrorCode::CrossDevice)
    }
}
