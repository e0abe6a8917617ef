//! The names in a directory, a batch at a time: a directory of a million files is never held whole.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};

use super::{Handle, Permits, run};
use crate::volume::Volume;

/// Names that are read in one job.
const BATCH: usize = 256;

pub struct Listing {
    volume: Arc<Volume>,
    /// `None` while a job has it, and after the end.
    rest: Option<Rest>,
    ready: VecDeque<DirectoryEntry>,
}

struct Rest {
    dir: Dir,
    _permits: Permits,
}

impl Listing {
    /// In a job.
    pub fn open(handle: &Handle, permits: Permits) -> FsResult<Self> {
        let Descriptor::Dir(dir) = &handle.descriptor else {
            return Err(ErrorCode::NotDirectory.into());
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd: OwnedFd = openat(dir.dir.as_fd(), c".", flags, Mode::empty()).map_err(io::Error::from)?;
        let dir = Dir::new(fd).map_err(io::Error::from)?;
        Ok(Self {
            volume: Arc::clone(&handle.mount.volume),
            rest: Some(Rest { dir, _permits: permits }),
            ready: VecDeque::new(),
        })
    }

    /// The next name; `None` after the last.
    pub async fn next(&mut self) -> FsResult<Option<DirectoryEntry>> {
        if let Some(entry) = self.ready.pop_front() {
            return Ok(Some(entry));
        }
        let Some(rest) = self.rest.take() else { return Ok(None) };
        let (rest, entries) = run(&self.volume, move || batch(rest)).await?;
        self.rest = rest;
        self.ready = entries?;
        Ok(self.ready.pop_front())
    }
}

/// The next names, and what is left; nothing is left after an error.
fn batch(mut rest: Rest) -> (Option<Rest>, FsResult<VecDeque<DirectoryEntry>>) {
    let mut entries = VecDeque::new();
    while entries.len() < BATCH {
        match rest.dir.read() {
            None => return (None, Ok(entries)),
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(Ok(entry)) => {
                let Ok(name) = entry.file_name().to_str() else {
                    return (None, Err(ErrorCode::IllegalByteSequence.into()));
                };
                let kind = match entry.file_type() {
                    FileType::Unknown => kind_of(&rest.dir, entry.file_name()),
                    known => known,
                };
                entries.push_back(DirectoryEntry {
                    type_: descriptor_type(kind),
                    name: name.to_owned(),
                });
            }
            Some(Err(error)) => return (None, Err(io::Error::from(error).into())),
        }
    }
    (Some(rest), Ok(entries))
}

/// Some file systems do not keep the kind with the name.
fn kind_of(dir: &Dir, name: &std::ffi::CStr) -> FileType {
    let stat = dir.fd().and_then(|fd| statat(fd, name, AtFlags::SYMLINK_NOFOLLOW));
    stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
}

const fn descriptor_type(kind: FileType) -> DescriptorType {
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    }
}
