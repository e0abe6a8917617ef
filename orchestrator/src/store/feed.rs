//! The last changes, in order, and the watches that read them. A watch is a position in this log: it holds no queue, so
//! a slow one costs nothing and misses nothing until its place was dropped from the log.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use futures::stream;
use tokio::sync::watch;

use super::{Item, KEPT_BYTES, KEPT_CHANGES, Watch, WatchEvent};

/// Commits that one look at the log takes: bounds the time the log is locked and what a watch holds.
const COMMITS_PER_LOOK: usize = 256;

/// One change of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put(Item),
    Delete(Arc<str>),
}

impl Change {
    pub(super) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete(key) => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put(item) => item.key.len() + item.value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

/// All changes of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub revision: u64,
    pub changes: Vec<Change>,
}

impl Commit {
    pub(super) fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

#[derive(Debug, Default)]
struct Log {
    commits: VecDeque<Arc<Commit>>,
    changes: usize,
    bytes: usize,
    /// The newest revision that was dropped.
    compacted: u64,
}

/// The log and its readers' alarm. Dropping it ends every watch.
#[derive(Debug)]
pub(super) struct Feed {
    log: Arc<RwLock<Log>>,
    /// The newest revision in the log.
    newest: watch::Sender<u64>,
}

impl Feed {
    /// A log that starts after this revision.
    pub(super) fn after(compacted: u64) -> Self {
        let log = Log {
            compacted,
            ..Log::default()
        };
        Self {
            log: Arc::new(RwLock::new(log)),
            newest: watch::Sender::new(compacted),
        }
    }

    /// Appends commits of growing revisions and wakes the watches. Returns the revision up to which the log was dropped.
    pub(super) fn append(&self, commits: impl IntoIterator<Item = Commit>) -> u64 {
        let mut log = self.log.write().unwrap_or_else(PoisonError::into_inner);
        let mut newest = None;
        for commit in commits {
            newest = Some(commit.revision);
            log.changes += commit.changes.len();
            log.bytes += commit.bytes();
            log.commits.push_back(Arc::new(commit));
        }
        while log.changes > KEPT_CHANGES || log.bytes > KEPT_BYTES {
            let Some(oldest) = log.commits.pop_front() else { break };
            log.changes -= oldest.changes.len();
            log.bytes -= oldest.bytes();
            log.compacted = oldest.revision;
        }
        let compacted = log.compacted;
        drop(log);
        if let Some(newest) = newest {
            self.newest.send_replace(newest);
        }
        compacted
    }

    pub(super) fn compacted(&self) -> u64 {
        self.log.read().unwrap_or_else(PoisonError::into_inner).compacted
    }

    pub(super) fn watch(&self, prefix: &str, after: u64) -> Watch {
        let reader = Reader {
            log: self.log.clone(),
            newest: self.newest.subscribe(),
            prefix: prefix.into(),
            position: after,
            ready: VecDeque::new(),
            ended: false,
        };
        Box::pin(stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((event, reader))
        }))
    }
}

struct Reader {
    log: Arc<RwLock<Log>>,
    newest: watch::Receiver<u64>,
    prefix: Box<str>,
    position: u64,
    ready: VecDeque<WatchEvent>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            // Seen first, read second: a commit that comes in between wakes us once more for nothing, never too seldom.
            self.newest.borrow_and_update();
            let commits = match self.look() {
                Ok(commits) => commits,
                Err(compacted) => {
                    self.ended = true;
                    return Some(WatchEvent::Compacted { revision: compacted });
                }
            };
            let Some(last) = commits.last() else {
                // An error: the store was closed.
                self.newest.changed().await.ok()?;
                continue;
            };
            self.position = last.revision;
            for commit in &commits {
                let mine = commit
                    .changes
                    .iter()
                    .filter(|change| change.key().starts_with(&*self.prefix));
                self.ready.extend(mine.map(|change| match change {
                    Change::Put(item) => WatchEvent::Put(item.clone()),
                    Change::Delete(key) => WatchEvent::Delete {
                        key: key.clone(),
                        revision: commit.revision,
                    },
                }));
            }
            self.ready.push_back(WatchEvent::Progress {
                revision: self.position,
            });
        }
    }

    fn look(&self) -> Result<Vec<Arc<Commit>>, u64> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        if self.position < log.compacted {
            return Err(log.compacted);
        }
        let first = log.commits.partition_point(|commit| commit.revision <= self.position);
        Ok(log.commits.range(first..).take(COMMITS_PER_LOOK).cloned().collect())
    }
}
