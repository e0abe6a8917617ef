//! A database file of this node: locked, private, made whole or not at all, and never taken for empty when it is damaged.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, DatabaseError, TableDefinition};

/// Facts about the file itself.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Its layout's number in [`META`].
const SCHEMA: &str = "schema";

/// Why a store could not be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another store of this one) has it.
    #[error("`{}` is in use by another narae: stop it, or choose another data directory", path.display())]
    Locked { path: PathBuf },
    #[error("cannot {what} `{}`", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file is there, but not as it was written.
    #[error(
        "`{}` is damaged ({detail}): put a copy from a backup in its place, or move it away to start with nothing",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },
    /// A newer narae wrote it.
    #[error("`{}` has schema {found}, this narae reads {known}: use the version that wrote it", path.display())]
    Schema { path: PathBuf, found: u64, known: u64 },
}

/// How a database is made from an open file; tests put a failing disk in between.
pub(super) type Opener = Box<dyn Fn(&mut Builder, File) -> Result<Database, DatabaseError> + Send + Sync>;

pub(super) fn on_file() -> Opener {
    Box::new(|builder, file| builder.create_with_backend(FileBackend::new(file)?))
}

/// The place of a database; holds the lock that keeps others away, also between two openings.
pub(super) struct DataFile {
    path: PathBuf,
    schema: u64,
    cache_bytes: usize,
    /// Verify every page when it is opened.
    verify: bool,
    opener: Opener,
    _lock: File,
}

impl DataFile {
    /// Takes the lock of `path`, whose directory exists.
    pub(super) fn lock(
        path: &Path,
        schema: u64,
        cache_bytes: usize,
        verify: bool,
        opener: Opener,
    ) -> Result<Self, OpenError> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = private(true).open(&lock).map_err(io_error("open the lock of", path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.into() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", path)(source)),
        }
        Ok(Self {
            path: path.into(),
            schema,
            cache_bytes,
            verify,
            opener,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the database, making it first when there is none. A file that is there but empty is damaged: ours never are.
    pub(super) fn open_or_create(&self) -> Result<Database, OpenError> {
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create()?,
            Err(source) => return Err(io_error("look at", &self.path)(source)),
            Ok(_) => {}
        }
        self.open(self.verify)
    }

    /// Opens it again after its disk failed. Never makes it.
    pub(super) fn reopen(&self) -> Result<Database, OpenError> {
        self.open(false)
    }

    /// Beside its place first: a process that dies here leaves nothing that could be taken for the store.
    fn create(&self) -> Result<(), OpenError> {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let failed = |what| io_error(what, &self.path);
        let file = private(true).truncate(true).open(&beside).map_err(failed("create"))?;
        let db = self.database(file)?;
        let init = || -> Result<(), ::redb::Error> {
            let txn = db.begin_write()?;
            txn.open_table(META)?.insert(SCHEMA, self.schema)?;
            txn.commit()?;
            Ok(())
        };
        init().map_err(|error| self.database_error(&error))?;
        db.close().map_err(|error| self.database_error(&error.into()))?;
        fs::rename(&beside, &self.path).map_err(failed("create"))?;
        sync_directory_of(&self.path).map_err(failed("sync the directory of"))
    }

    fn open(&self, verify: bool) -> Result<Database, OpenError> {
        let failed = |what| io_error(what, &self.path);
        let file = private(false).open(&self.path).map_err(failed("open"))?;
        let meta = file.metadata().map_err(failed("look at"))?;
        if !meta.is_file() {
            return Err(self.corrupt("it is not a regular file"));
        }
        if meta.len() == 0 {
            return Err(self.corrupt("it is empty"));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .map_err(failed("make private"))?;
        }
        let mut builder = Database::builder();
        builder
            .set_cache_size(self.cache_bytes)
            .set_check_integrity_on_open(verify);
        let db = self.database_with(&mut builder, file)?;
        let found = guarded(|| {
            let txn = ::redb::ReadableDatabase::begin_read(&db)?;
            Ok(txn.open_table(META)?.get(SCHEMA)?.map(|schema| schema.value()))
        });
        match found.map_err(|error| self.database_error(&error))? {
            Some(found) if found == self.schema => Ok(db),
            Some(found) => Err(OpenError::Schema {
                path: self.path.clone(),
                found,
                known: self.schema,
            }),
            None => Err(self.corrupt("it has no schema number")),
        }
    }

    fn database(&self, file: File) -> Result<Database, OpenError> {
        self.database_with(Database::builder().set_cache_size(self.cache_bytes), file)
    }

    fn database_with(&self, builder: &mut Builder, file: File) -> Result<Database, OpenError> {
        guarded(|| Ok((self.opener)(builder, file)?)).map_err(|error| self.database_error(&error))
    }

    pub(super) fn corrupt(&self, detail: impl Into<String>) -> OpenError {
        OpenError::Corrupt {
            path: self.path.clone(),
            detail: detail.into(),
        }
    }

    pub(super) fn database_error(&self, error: &::redb::Error) -> OpenError {
        use ::redb::Error;
        match error {
            Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => OpenError::Locked {
                path: self.path.clone(),
            },
            // Not a database, or one cut short.
            Error::Io(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                self.corrupt(error.to_string())
            }
            Error::Io(source) => OpenError::Io {
                what: "read",
                path: self.path.clone(),
                source: source.raw_os_error().map_or_else(
                    || io::Error::new(source.kind(), source.to_string()),
                    io::Error::from_raw_os_error,
                ),
            },
            error => self.corrupt(error.to_string()),
        }
    }
}

/// Runs database code on a file that may be damaged: there, its assertions are findings and not bugs.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, ::redb::Error>) -> Result<T, ::redb::Error> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("its structure makes no sense");
        Err(::redb::Error::Corrupted(text.to_owned()))
    })
}

/// Readable and writable by this user only, no link followed, not inherited.
fn private(create: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("open flags are small");
    options
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(no_follow);
    options
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        what,
        path: path.into(),
        source,
    }
}

/// Makes a rename in the file's directory survive a power cut.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
pub(super) mod failing {
    //! A disk that fails when told to.

    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use ::redb::StorageBackend;
    use ::redb::backends::FileBackend;

    use super::Opener;

    #[derive(Clone, Debug, Default)]
    pub(crate) struct FailingDisk {
        full: Arc<AtomicBool>,
        fails_to_sync: Arc<AtomicBool>,
    }

    impl FailingDisk {
        pub(crate) fn opener(&self) -> Opener {
            let disk = self.clone();
            Box::new(move |builder, file| {
                builder.create_with_backend(OnDisk {
                    file: FileBackend::new(file)?,
                    disk: disk.clone(),
                })
            })
        }

        pub(crate) fn full(&self, full: bool) {
            self.full.store(full, Ordering::SeqCst);
        }

        pub(crate) fn fail_next_sync(&self) {
            self.fails_to_sync.store(true, Ordering::SeqCst);
        }

        fn space(&self) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                Err(io::Error::from_raw_os_error(28))
            } else {
                Ok(())
            }
        }
    }

    #[derive(Debug)]
    struct OnDisk {
        file: FileBackend,
        disk: FailingDisk,
    }

    impl StorageBackend for OnDisk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.disk.space()?;
            self.file.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            if self.disk.fails_to_sync.swap(false, Ordering::SeqCst) {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.file.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.disk.space()?;
            self.file.write(offset, data)
        }
        fn close(&self) -> io::Result<()> {
            self.file.close()
        }
    }
}
