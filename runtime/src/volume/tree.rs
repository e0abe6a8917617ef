//! Walks over a volume's directory from outside: counting it, and emptying it. Never follows a link, holds one directory open
//! at a time however deep they are nested, and does not recurse: what guests make may be as deep as their quota is large.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};

use super::{ENTRY_BYTES, content_bytes};

/// More than the largest quota can hold.
const MAX_ENTRIES: u64 = 32 << 20;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// One directory on the way down: those in it that are still to be entered.
struct Level {
    waiting: Vec<CString>,
    /// As its parent calls it; the root has no name.
    name: Option<CString>,
}

/// What all of it costs, the root itself excepted.
pub fn measure(root: &File) -> io::Result<u64> {
    let mut linked = HashSet::new();
    let (mut used, mut entries) = (0_u64, 0_u64);
    walk(
        root,
        |at, name| {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
            }
            let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            used = used.saturating_add(ENTRY_BYTES);
            // A file of several names has its content once.
            if kind == FileType::RegularFile && (stat.st_nlink < 2 || linked.insert(stat.st_ino)) {
                used = used.saturating_add(content_bytes(u64::try_from(stat.st_size).unwrap_or(0)));
            }
            Ok(kind == FileType::Directory)
        },
        |_, _| Ok(()),
    )?;
    Ok(used)
}

/// Removes everything in it.
///
/// # Errors
/// Something cannot be removed; the rest may be gone.
pub fn clear(root: &File) -> io::Result<()> {
    walk(
        root,
        |at, name| {
            match unlinkat(at, name, AtFlags::empty()) {
                Ok(()) => return Ok(false),
                // Linux says the first of a directory, POSIX the second.
                Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
            let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        },
        |at, name| Ok(unlinkat(at, name, AtFlags::REMOVEDIR)?),
    )
}

/// `each` sees every name in its directory and says which to enter; `left` sees those after they were.
fn walk(
    root: &File,
    mut each: impl FnMut(&OwnedFd, &CString) -> io::Result<bool>,
    mut left: impl FnMut(&OwnedFd, &CString) -> io::Result<()>,
) -> io::Result<()> {
    let mut list = |at: &OwnedFd| -> io::Result<Vec<CString>> {
        // Names first: a directory that is changed while it is read may skip some.
        let mut names = Vec::new();
        for entry in Dir::read_from(at)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        let mut waiting = Vec::new();
        for name in names {
            if each(at, &name)? {
                waiting.push(name);
            }
        }
        Ok(waiting)
    };
    let mut at = openat(root.as_fd(), c".", DIRECTORY, Mode::empty())?;
    let mut levels = vec![Level {
        waiting: list(&at)?,
        name: None,
    }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.waiting.pop() {
            at = openat(&at, &name, DIRECTORY, Mode::empty())?;
            let waiting = list(&at)?;
            levels.push(Level {
                waiting,
                name: Some(name),
            });
        } else if let Some(Level { name: Some(name), .. }) = levels.pop() {
            at = openat(&at, c"..", DIRECTORY, Mode::empty())?;
            left(&at, &name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(dir: &tempfile::TempDir) -> File {
        File::open(dir.path()).unwrap()
    }

    #[test]
    fn everything_is_counted_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let big = tempfile::tempdir().unwrap();
        std::fs::write(big.path().join("big"), vec![0; 1 << 20]).unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), vec![0; 5000]).unwrap();
        std::fs::hard_link(dir.path().join("a/b/file"), dir.path().join("again")).unwrap();
        symlink(big.path(), dir.path().join("out")).unwrap();
        symlink("..", dir.path().join("up")).unwrap();
        // Two directories, two names of one file, two links; two pieces of content.
        assert_eq!(measure(&open(&dir)).unwrap(), 8 * ENTRY_BYTES);
    }

    #[test]
    fn a_hole_counts_as_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("hole")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert_eq!(measure(&open(&dir)).unwrap(), (1 << 30) + ENTRY_BYTES);
    }

    #[test]
    fn directories_deeper_than_any_path_are_counted_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mut at = OwnedFd::from(open(&dir));
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"deeper", Mode::RWXU).unwrap();
            at = openat(&at, c"deeper", DIRECTORY, Mode::empty()).unwrap();
        }
        assert_eq!(measure(&open(&dir)).unwrap(), 3000 * ENTRY_BYTES);
        clear(&open(&dir)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn clearing_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("keep"), "x").unwrap();
        symlink(other.path(), dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        clear(&open(&dir)).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(other.path().join("keep").exists());
    }
}
