//! Modules on disk, named by their digest: written beside their place, synced, renamed; read only as what their name says.
//!
//! Knows bytes and digests, not what a module means. Everything here blocks on the disk: async callers use
//! [`Artifacts::put_stream`] and [`Artifacts::read`], or a blocking thread.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use narae_runtime::Digest;

use crate::store::sync_directory_of;

/// Largest module.
pub const MAX_BYTES: u64 = 64 << 20;
/// Bytes of a stream that are written at once.
const CHUNK: usize = 256 << 10;

/// How a module was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Put {
    Stored,
    AlreadyThere,
    /// The bytes have another digest than was announced; nothing was kept.
    Mismatch {
        found: Digest,
    },
}

/// One stored module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
}

/// Why a module could not be put or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactsError {
    #[error("module is larger than the {MAX_BYTES} bytes allowed")]
    TooLarge,
    /// What is on disk is not what its name says; it was moved away, so that a new upload can take its place.
    #[error("module {digest} is damaged on disk; it was moved to `{}`: upload it again", moved_to.display())]
    Damaged { digest: Digest, moved_to: PathBuf },
    #[error("cannot {what} `{}`", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The sender broke off.
    #[error("the upload broke off: {0}")]
    Sender(String),
}

/// The store of modules. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// `<data_dir>/blobs`.
    root: Arc<Path>,
    uploads: Arc<AtomicU64>,
}

impl Artifacts {
    /// Opens `<data_dir>/blobs`, makes what is missing, and sweeps uploads that a dead process left. One process at a
    /// time: the store's lock sees to that.
    pub fn open(data_dir: &Path) -> Result<Self, ArtifactsError> {
        let root = data_dir.join("blobs");
        let this = Self {
            root: root.into(),
            uploads: Arc::default(),
        };
        for dir in [this.root.join("sha256"), this.temporary(), this.root.join("damaged")] {
            make_dir(&dir)?;
        }
        for entry in read_dir(&this.temporary())? {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed("sweep", &path))?;
        }
        Ok(this)
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("sha256").join(&hex[..2]).join(hex)
    }

    /// Begins an upload; nothing is visible until [`Upload::finish`].
    pub fn begin(&self, expected: Digest) -> Result<Upload, ArtifactsError> {
        let n = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.temporary().join(format!("{}.{n}", expected.hex()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed("create", &path))?;
        let hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        Ok(Upload {
            artifacts: self.clone(),
            expected,
            file,
            path,
            hash,
            size: 0,
        })
    }

    /// Puts a module that is in memory.
    pub fn put(&self, bytes: &[u8], expected: Digest) -> Result<Put, ArtifactsError> {
        let mut upload = self.begin(expected)?;
        upload.write(bytes)?;
        upload.finish()
    }

    /// Puts a module as it arrives; the disk is used on blocking threads. Dropping the future throws the upload away.
    pub async fn put_stream<E: std::fmt::Display>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>>,
        expected: Digest,
    ) -> Result<Put, ArtifactsError> {
        let this = self.clone();
        let mut upload = blocking(move || this.begin(expected)).await?;
        let mut body = std::pin::pin!(body);
        let mut piece = Vec::new();
        loop {
            let next = body
                .next()
                .await
                .transpose()
                .map_err(|error| ArtifactsError::Sender(error.to_string()))?;
            let last = next.is_none();
            // Pieces of one byte cost as much as large ones: collected first.
            piece.extend_from_slice(&next.unwrap_or_default());
            if piece.len() >= CHUNK || last {
                let full = std::mem::take(&mut piece);
                upload = blocking(move || upload.write(&full).map(|()| upload)).await?;
            }
            if last {
                return blocking(move || upload.finish()).await;
            }
        }
    }

    /// The module's bytes, verified again; `None` when there is no such module.
    pub fn get(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactsError> {
        let path = self.path(digest);
        let moved_to = self.root.join("damaged").join(digest.hex());
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("open flags are small");
        let file = match OpenOptions::new().read(true).custom_flags(no_follow).open(&path) {
            Ok(file) => file,
            // Found damaged before: that is the reason until it is put again, not that it was never there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && moved_to.exists() => {
                return Err(ArtifactsError::Damaged { digest, moved_to });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("open", &path)(source)),
        };
        let size = file.metadata().map_err(failed("look at", &path))?.len();
        let mut bytes = Vec::with_capacity(usize::try_from(size.min(MAX_BYTES)).unwrap_or_default());
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read", &path))?;
        if Digest::of(&bytes) == digest {
            return Ok(Some(bytes.into()));
        }
        fs::rename(&path, &moved_to).map_err(failed("move away the damaged", &path))?;
        Err(ArtifactsError::Damaged { digest, moved_to })
    }

    /// [`Self::get`] on a blocking thread.
    pub async fn read(&self, digest: Digest) -> Result<Option<Bytes>, ArtifactsError> {
        let this = self.clone();
        blocking(move || this.get(digest)).await
    }

    /// Whether it is there. What it holds is verified when it is read.
    pub fn has(&self, digest: Digest) -> Result<bool, ArtifactsError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(meta.is_file()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("look at", &path)(source)),
        }
    }

    /// All modules, by digest. Files that have no digest for a name are not ours and not listed.
    pub fn list(&self) -> Result<Vec<Blob>, ArtifactsError> {
        let mut blobs = Vec::new();
        self.each(|digest, meta, _| {
            blobs.push(Blob {
                digest,
                size_bytes: meta.len(),
            });
            Ok(())
        })?;
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }

    fn each(
        &self,
        mut visit: impl FnMut(Digest, &fs::Metadata, &Path) -> Result<(), ArtifactsError>,
    ) -> Result<(), ArtifactsError> {
        for dir in read_dir(&self.root.join("sha256"))? {
            for entry in read_dir(&dir.path())? {
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
                let Some(digest) = digest.filter(|digest| self.path(*digest) == entry.path()) else {
                    continue;
                };
                match entry.metadata() {
                    Ok(meta) if meta.is_file() => visit(digest, &meta, &entry.path())?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes one module; false when it is not there. Whether it is used is the caller's knowledge.
    pub fn remove(&self, digest: Digest) -> Result<bool, ArtifactsError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("remove", &path)(source)),
        }
    }

    /// Removes the modules that are not `used` and that `may` go, which is asked just before. Returns what was removed.
    pub fn prune(
        &self,
        used: &BTreeSet<Digest>,
        mut may: impl FnMut(Digest) -> bool,
    ) -> Result<Vec<Blob>, ArtifactsError> {
        let mut removed = Vec::new();
        self.each(|digest, meta, path| {
            if !used.contains(&digest) && may(digest) {
                fs::remove_file(path).map_err(failed("remove", path))?;
                removed.push(Blob {
                    digest,
                    size_bytes: meta.len(),
                });
            }
            Ok(())
        })?;
        Ok(removed)
    }
}

/// A module that is arriving. Dropping it throws it away.
pub struct Upload {
    artifacts: Artifacts,
    expected: Digest,
    file: File,
    path: PathBuf,
    hash: aws_lc_rs::digest::Context,
    size: u64,
}

impl Upload {
    /// The next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactsError> {
        self.size += bytes.len() as u64;
        if self.size > MAX_BYTES {
            return Err(ArtifactsError::TooLarge);
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    /// Verifies, syncs and shows it.
    pub fn finish(self) -> Result<Put, ArtifactsError> {
        let hash = self.hash.clone().finish();
        let found = Digest::from_bytes(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"));
        if found != self.expected {
            return Ok(Put::Mismatch { found });
        }
        match self.artifacts.get(found) {
            Ok(Some(_)) => {
                return Ok(Put::AlreadyThere);
            }
            Ok(None) | Err(ArtifactsError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let path = self.artifacts.path(found);
        if let Some(dir) = path.parent() {
            make_dir(dir)?;
        }
        self.file.sync_all().map_err(failed("sync", &self.path))?;
        fs::rename(&self.path, &path).map_err(failed("store", &path))?;
        sync_directory_of(&path).map_err(failed("sync the directory of", &path))?;
        Ok(Put::Stored)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Gone after a rename; else a leftover that the next start sweeps if this fails.
        let _ = fs::remove_file(&self.path);
    }
}

fn make_dir(path: &Path) -> Result<(), ArtifactsError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))?;
    sync_directory_of(path).map_err(failed("sync the directory of", path))
}

fn read_dir(path: &Path) -> Result<Vec<fs::DirEntry>, ArtifactsError> {
    fs::read_dir(path)
        .and_then(Iterator::collect)
        .map_err(failed("list", path))
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ArtifactsError + 'a {
    move |source| ArtifactsError::Io {
        what,
        path: path.into(),
        source,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactsError> + Send + 'static,
) -> Result<T, ArtifactsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ArtifactsError::Sender(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
