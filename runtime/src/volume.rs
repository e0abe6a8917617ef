//! A directory that guests share, and the account of what is in it. Every change is paid for before it is made, under one
//! lock for each volume, so that no number of replicas and requests at once can hold more than the quota.
//!
//! One price for everything: a file, directory or link costs 4 KiB, and a file's content its apparent size in whole pieces of
//! 4 KiB. Holes cost as bytes do, and the number of files is bounded with the bytes. What the disk is asked for is never more.
//! Where the directory lies and which service it belongs to is not known here.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

mod tree;

pub use tree::clear;

/// What a file, directory or link costs for itself, and the piece that content is counted in.
pub const ENTRY_BYTES: u64 = 4096;
/// File operations of one volume under way at once: a slow disk holds so many threads, not all.
const JOBS: usize = 8;

/// Content of this size, in whole pieces.
pub fn content_bytes(size: u64) -> u64 {
    size.checked_next_multiple_of(ENTRY_BYTES).unwrap_or(u64::MAX)
}

/// A directory and its account, shared by all guests that may use it.
pub struct Volume {
    root: File,
    account: Mutex<Account>,
    /// One change at a time. Held over the disk's work, so only threads made for waiting take it.
    changes: Mutex<()>,
    jobs: Arc<Semaphore>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("used_bytes", &self.used_bytes())
            .finish()
    }
}

impl Volume {
    /// Takes an open directory and measures what is in it. Looks at every file: not for threads that serve.
    ///
    /// # Errors
    /// The directory cannot be read, or holds more than any quota allows.
    pub fn open(root: File) -> io::Result<Arc<Self>> {
        let used_bytes = tree::measure(&root)?;
        Ok(Arc::new(Self {
            root,
            account: Mutex::new(Account {
                used_bytes,
                open: HashMap::new(),
            }),
            changes: Mutex::default(),
            jobs: Arc::new(Semaphore::new(JOBS)),
        }))
    }

    /// What its files cost now, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.account().used_bytes
    }

    pub(crate) const fn root(&self) -> &File {
        &self.root
    }

    pub(crate) fn jobs(&self) -> Arc<Semaphore> {
        Arc::clone(&self.jobs)
    }

    pub(crate) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a change: nobody else's comes between its looks at the directory and its own.
    pub(crate) fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volume as one guest may use it.
#[derive(Clone, Debug)]
pub struct VolumeGrant {
    pub volume: Arc<Volume>,
    /// Where the guest finds it: absolute.
    pub guest_path: String,
    /// The quota: changes of this guest may not take the volume beyond it.
    pub size_bytes: u64,
    pub read_only: bool,
}

/// No room for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Which file, whatever it is called.
pub type FileId = u64;

/// What a volume holds.
#[derive(Debug, Default)]
pub struct Account {
    used_bytes: u64,
    /// Files that some guest has open.
    open: HashMap<FileId, Open>,
}

#[derive(Debug)]
struct Open {
    handles: usize,
    /// It has no name any more: so much is given back when the last handle closes.
    nameless_bytes: Option<u64>,
}

impl Account {
    /// Pays for a change before it is made. Nothing more is always free, also beyond a quota that was made smaller.
    pub fn take(&mut self, bytes: u64, quota_bytes: u64) -> Result<(), Full> {
        let after = self.used_bytes.checked_add(bytes).filter(|after| *after <= quota_bytes);
        match after {
            _ if bytes == 0 => Ok(()),
            Some(after) => {
                self.used_bytes = after;
                Ok(())
            }
            None => Err(Full),
        }
    }

    /// Takes back what was paid for and is not, or no longer, there.
    pub fn give(&mut self, bytes: u64) {
        self.used_bytes = self.used_bytes.saturating_sub(bytes);
    }

    /// A guest has one more handle of this file.
    pub fn opened(&mut self, file: FileId) {
        let open = self.open.entry(file).or_insert(Open {
            handles: 0,
            nameless_bytes: None,
        });
        open.handles += 1;
    }

    /// A handle is gone. A file without a name goes with its last one.
    pub fn closed(&mut self, file: FileId) {
        let Some(open) = self.open.get_mut(&file) else { return };
        open.handles = open.handles.saturating_sub(1);
        if open.handles == 0 {
            let nameless = open.nameless_bytes.unwrap_or(0);
            self.open.remove(&file);
            self.give(nameless);
        }
    }

    /// A file lost its last name. What it holds stays on the disk as long as somebody has it open.
    pub fn unnamed(&mut self, file: FileId, content_bytes: u64) {
        match self.open.get_mut(&file) {
            Some(open) => open.nameless_bytes = Some(content_bytes),
            None => self.give(content_bytes),
        }
    }

    /// An open file has this much content now.
    pub fn resized(&mut self, file: FileId, content_bytes: u64) {
        if let Some(nameless) = self.open.get_mut(&file).and_then(|open| open.nameless_bytes.as_mut()) {
            *nameless = content_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_in_whole_pieces() {
        assert_eq!(content_bytes(0), 0);
        assert_eq!(content_bytes(1), 4096);
        assert_eq!(content_bytes(4096), 4096);
        assert_eq!(content_bytes(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut account = Account::default();
        assert_eq!(account.take(6000, 10_000), Ok(()));
        assert_eq!(account.take(4001, 10_000), Err(Full));
        assert_eq!(account.take(u64::MAX, u64::MAX), Err(Full));
        assert_eq!(account.take(4000, 10_000), Ok(()));
        assert_eq!(
            account.take(0, 5_000),
            Ok(()),
            "nothing more is free, whatever the quota is now"
        );
        account.give(1);
        assert_eq!(account.take(2, 10_000), Err(Full));
    }

    #[test]
    fn a_file_without_a_name_is_paid_for_until_its_last_handle_closes() {
        let mut account = Account::default();
        account.take(8192, 10_000).unwrap();
        account.opened(7);
        account.opened(7);
        account.unnamed(7, 4096);
        assert_eq!(account.used_bytes, 8192);
        account.take(1000, 10_000).unwrap();
        account.resized(7, 5096);
        account.closed(7);
        assert_eq!(account.used_bytes, 9192);
        account.closed(7);
        assert_eq!(account.used_bytes, 4096);
        account.closed(7);
        assert_eq!(account.used_bytes, 4096);
    }

    #[test]
    fn a_file_that_nobody_has_open_is_given_back_with_its_name() {
        let mut account = Account::default();
        account.take(4096, 10_000).unwrap();
        account.unnamed(7, 4096);
        assert_eq!(account.used_bytes, 0);
        assert!(account.open.is_empty());
    }
}
