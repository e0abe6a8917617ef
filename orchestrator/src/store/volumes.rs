//! The directories behind `[[volume]]`: `volumes/SERVICE/NAME` in the data directory, one account for each, shared by the
//! replicas of its service. Made when a replica first needs it, removed with its service. What is in them is the guests' business.
//!
//! Every step from the data directory down is opened without following links, so a directory that somebody replaced by a link
//! is refused, not followed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use narae_runtime::volume::{Volume, clear};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, fchmod, fsync, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::model::ServiceName;

/// In the data directory.
const FOLDER: &str = "volumes";
/// No service's name begins so: what was removed and is not gone yet.
const REMOVED: &str = ".removed-";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What can go wrong with a volume, by operation.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("`{}` is not a directory: a link or a file is in its place", path.display())]
    NotADirectory { path: PathBuf },
    #[error("cannot {what} `{}`", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Made once; whoever holds the lock makes it, the others wait and take it.
type Slot = Arc<Mutex<Option<Arc<Volume>>>>;

/// The volumes of this node.
pub struct Volumes {
    data_dir: OwnedFd,
    /// For messages.
    path: PathBuf,
    open: Mutex<BTreeMap<ServiceName, BTreeMap<String, Slot>>>,
    removed: AtomicU64,
}

impl Volumes {
    /// Over a data directory that exists. What an earlier run had no time to remove goes now, in the background.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(data_dir: &Path) -> io::Result<Self> {
        let volumes = Self {
            data_dir: File::open(data_dir)?.into(),
            path: data_dir.join(FOLDER),
            open: Mutex::default(),
            removed: AtomicU64::new(0),
        };
        if let Ok(folder) = openat(&volumes.data_dir, FOLDER, DIRECTORY, Mode::empty()) {
            let mut left: Vec<String> = Vec::new();
            for entry in Dir::read_from(&folder)?.flatten() {
                left.extend(
                    entry
                        .file_name()
                        .to_str()
                        .ok()
                        .filter(|name| name.starts_with(REMOVED))
                        .map(str::to_owned),
                );
            }
            if !left.is_empty() {
                remove_later(folder, left);
            }
        }
        Ok(volumes)
    }

    /// This volume of this service: its directory made (0700) and measured if need be. All callers share one. Looks at every
    /// file of it the first time: not for threads that serve.
    ///
    /// # Errors
    /// Something else is in its place, or the disk fails.
    pub fn open(&self, service: &ServiceName, name: &str) -> Result<Arc<Volume>, VolumeError> {
        let slot = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = open.entry(service.clone()).or_default();
            Arc::clone(mine.entry(name.to_owned()).or_default())
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(volume) = &*slot {
            return Ok(Arc::clone(volume));
        }
        let path = self.path.join(service.as_str()).join(name);
        let mut at = enter(&self.data_dir, FOLDER, &self.path)?;
        at = enter(&at, service.as_str(), &path)?;
        at = enter(&at, name, &path)?;
        let failed = |what| move |source| VolumeError::Io { what, path, source };
        let volume = Volume::open(at.into()).map_err(failed("measure"))?;
        *slot = Some(Arc::clone(&volume));
        Ok(volume)
    }

    /// What each open volume of a service holds, in bytes.
    pub fn used(&self, service: &ServiceName) -> BTreeMap<String, u64> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.get(service).into_iter().flatten();
        // One that is being measured is not open yet.
        let used = mine.filter_map(|(name, slot)| {
            let volume = slot.try_lock().ok()?.clone()?;
            Some((name.clone(), volume.used_bytes()))
        });
        used.collect()
    }

    /// Takes all volumes of a service away at once; their files go in the background.
    ///
    /// # Errors
    /// The disk fails.
    pub fn delete_service(&self, service: &ServiceName) -> Result<(), VolumeError> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(service);
        let failed = |source: Errno| VolumeError::Io {
            what: "remove",
            path: self.path.join(service.as_str()),
            source: source.into(),
        };
        let folder = match openat(&self.data_dir, FOLDER, DIRECTORY, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        loop {
            let gone = format!("{REMOVED}{service}-{}", self.removed.fetch_add(1, Ordering::Relaxed));
            match renameat(&folder, service.as_str(), &folder, &gone) {
                Ok(()) => {
                    // Before the service is forgotten: a later one of its name must not find them.
                    let synced = fsync(&folder).map_err(failed);
                    remove_later(folder, vec![gone]);
                    return synced;
                }
                Err(Errno::NOENT) => return Ok(()),
                // The name of one that another run left.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The directory of this name below, made if it is not there; never through a link.
fn enter(below: &impl AsFd, name: &str, path: &Path) -> Result<OwnedFd, VolumeError> {
    let failed = |what| {
        move |source: Errno| VolumeError::Io {
            what,
            path: path.into(),
            source: source.into(),
        }
    };
    match mkdirat(below, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed("make")(error)),
    }
    match openat(below, name, DIRECTORY, Mode::empty()) {
        Ok(fd) => {
            fchmod(&fd, Mode::RWXU).map_err(failed("protect"))?;
            Ok(fd)
        }
        Err(Errno::LOOP | Errno::NOTDIR) => Err(VolumeError::NotADirectory { path: path.into() }),
        Err(error) => Err(failed("open")(error)),
    }
}

/// Removes these and all that is in them, on a thread of its own. What does not go now goes at the next start.
fn remove_later(folder: OwnedFd, names: Vec<String>) {
    let remove = move || {
        for name in names {
            let removed = openat(&folder, name.as_str(), DIRECTORY, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|fd| clear(&fd.into()))
                .and_then(|()| Ok(unlinkat(&folder, name.as_str(), AtFlags::REMOVEDIR)?));
            if let Err(error) = removed {
                tracing::warn!(%name, %error, "volumes of a deleted service were not removed yet");
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("narae-remove".into()).spawn(remove) {
        tracing::warn!(%error, "volumes of a deleted service were not removed yet");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_volume_is_made_for_its_service_alone_and_shared_by_all_who_ask() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path()).unwrap();
        let one = volumes.open(&name("shop"), "cache").unwrap();
        assert!(Arc::ptr_eq(&one, &volumes.open(&name("shop"), "cache").unwrap()));
        assert!(!Arc::ptr_eq(&one, &volumes.open(&name("shop"), "other").unwrap()));
        assert!(!Arc::ptr_eq(&one, &volumes.open(&name("blog"), "cache").unwrap()));
        for path in ["volumes", "volumes/shop", "volumes/shop/cache"] {
            let mode = std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{path}");
        }
    }

    #[test]
    fn what_an_earlier_run_wrote_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("volumes/shop/cache")).unwrap();
        std::fs::write(dir.path().join("volumes/shop/cache/file"), [0; 5000]).unwrap();
        let volumes = Volumes::new(dir.path()).unwrap();
        assert_eq!(volumes.open(&name("shop"), "cache").unwrap().used_bytes(), 3 * 4096);
    }

    #[test]
    fn a_link_or_a_file_in_place_of_a_directory_is_refused_at_every_step() {
        for place in ["volumes", "volumes/shop", "volumes/shop/cache"] {
            for is_link in [true, false] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("data").join(place);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
                if is_link {
                    symlink(dir.path().join("elsewhere"), &path).unwrap();
                } else {
                    std::fs::write(&path, "").unwrap();
                }
                let volumes = Volumes::new(&dir.path().join("data")).unwrap();
                let refused = volumes.open(&name("shop"), "cache").unwrap_err();
                assert!(
                    matches!(refused, VolumeError::NotADirectory { .. }),
                    "{place}: {refused}"
                );
                assert_eq!(std::fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 0);
            }
        }
    }

    #[test]
    fn a_deleted_service_leaves_nothing_and_a_new_one_of_its_name_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path()).unwrap();
        let old = volumes.open(&name("shop"), "cache").unwrap();
        std::fs::write(dir.path().join("volumes/shop/cache/file"), "x").unwrap();
        volumes.open(&name("blog"), "cache").unwrap();
        volumes.delete_service(&name("shop")).unwrap();
        volumes.delete_service(&name("never-there")).unwrap();
        let new = volumes.open(&name("shop"), "cache").unwrap();
        assert!(!Arc::ptr_eq(&old, &new));
        assert!(!dir.path().join("volumes/shop/cache/file").exists());
        assert!(dir.path().join("volumes/blog/cache").exists());
    }

    #[test]
    fn what_was_not_removed_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("volumes/.removed-shop-0");
        std::fs::create_dir_all(left.join("cache/deep")).unwrap();
        drop(Volumes::new(dir.path()).unwrap());
        // The thread ends by itself; nothing tells when.
        #[expect(clippy::disallowed_methods, reason = "a bound for a thread that nobody can join")]
        let begun = std::time::Instant::now();
        while left.exists() {
            assert!(begun.elapsed().as_secs() < 30, "still there");
            std::thread::yield_now();
        }
    }
}
