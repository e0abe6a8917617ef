//! Crash reports: why a guest failed, in a file, so that it can be read after everything else is gone. Bounded in number, bytes
//! and how many a minute, because a crash-loop must not write a disk to death; what is not written is counted. Knows guests
//! and their output, no environment, configuration or secret of a service.
//!
//! A report is made where the failure is seen and written by a thread of its own: a slow or full disk loses the report, and
//! never more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::clock::Clock;
use crate::logs::{LogQuery, Logs};
use crate::model::views::CrashView;
use crate::model::{Millis, ReplicaId, RevisionNumber, ServiceName, Timestamp};

/// So many are kept …
const KEPT: usize = 64;
/// … and so many bytes in all; the oldest go.
const KEPT_BYTES: u64 = 16 << 20;
/// A file over this is not one of ours.
const FILE_BYTES: u64 = 256 << 10;
/// The last lines of the replica's output in a report, and the bytes of each at most.
const LINES: usize = 20;
const LINE_BYTES: usize = 2 << 10;
/// Frames of a backtrace.
const FRAMES: usize = 64;
/// Reports a minute: of single traps of one service, of its deaths, and of the whole node.
const TRAPS_A_MINUTE: u32 = 5;
const DEATHS_A_MINUTE: u32 = 10;
const ALL_A_MINUTE: u32 = 60;
/// Reports that wait for the disk.
const WAITING: usize = 32;
/// Services whose rates and replicas whose last traps are remembered.
const REMEMBERED: usize = 4096;

/// A failure as it was seen.
#[derive(Clone, Debug)]
pub struct Crash {
    pub kind: CrashKind,
    pub service: ServiceName,
    pub revision: RevisionNumber,
    pub replica: ReplicaId,
    /// One printable sentence.
    pub reason: String,
    pub limit: Option<&'static str>,
    /// Innermost first.
    pub backtrace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// One call trapped or hit a limit; the replica lives on.
    Call,
    /// The replica died.
    Death,
}

/// What is known of a revision and a replica beside the failure.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub digest: Option<String>,
    pub restarts: u64,
}

type Describe = Box<dyn Fn(&ServiceName, RevisionNumber, ReplicaId) -> Context + Send + Sync>;

/// The reports of one node.
pub struct Crashes {
    dir: PathBuf,
    clock: Clock,
    sender: SyncSender<(Crash, Timestamp, u64)>,
    seen: Mutex<Seen>,
    describe: Arc<OnceLock<Describe>>,
    lost: Arc<AtomicU64>,
}

/// What was seen lately.
#[derive(Default)]
struct Seen {
    /// The minute the counts are of.
    minute: u64,
    all: u32,
    services: BTreeMap<ServiceName, Counted>,
    /// The last trap of a replica: why it is dead a moment later.
    traps: BTreeMap<(ServiceName, ReplicaId), Crash>,
}

#[derive(Clone, Copy, Default)]
struct Counted {
    calls: u32,
    deaths: u32,
    /// Not written since the last that was.
    skipped: u64,
}

impl Crashes {
    /// Opens `<data_dir>/crashes` and starts its writer, which ends with the last handle. A directory that cannot be made
    /// loses reports, not the start.
    pub fn open(data_dir: &Path, clock: Clock, logs: Arc<Logs>) -> Arc<Self> {
        let dir = data_dir.join("crashes");
        if let Err(error) = make_dir(&dir) {
            tracing::error!(error = %error, dir = %dir.display(), "crash reports cannot be kept");
        }
        let (sender, waiting) = sync_channel(WAITING);
        let (describe, lost) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
        let writer = Writer {
            dir: dir.clone(),
            logs,
            describe: Arc::clone(&describe),
            lost: Arc::clone(&lost),
            next: newest(&dir) + 1,
        };
        let spawned = std::thread::Builder::new()
            .name("narae-crashes".into())
            .spawn(move || writer.run(&waiting));
        if let Err(error) = spawned {
            tracing::error!(error = %error, "crash reports cannot be written");
        }
        Arc::new(Self {
            dir,
            clock,
            sender,
            seen: Mutex::default(),
            describe,
            lost,
        })
    }

    /// Who knows more about a replica; asked by the writer, never on the request path.
    pub fn ask(&self, describe: impl Fn(&ServiceName, RevisionNumber, ReplicaId) -> Context + Send + Sync + 'static) {
        let _ = self.describe.set(Box::new(describe));
    }

    /// Reports that were lost to the disk or came too fast for it.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes a failure in, if the minute has room for it: `make` is called only then. Does not block.
    pub fn record(&self, service: &ServiceName, kind: CrashKind, make: impl FnOnce() -> Crash) {
        let now = self.clock.monotonic();
        let Some(skipped) = self.lock().take(service, kind, now) else {
            return;
        };
        let mut crash = make();
        match kind {
            CrashKind::Call => self.remember(crash.clone()),
            CrashKind::Death => {
                let last = self.lock().traps.remove(&(service.clone(), crash.replica));
                if let Some(last) = last
                    && crash.backtrace.is_empty()
                {
                    crash.limit = crash.limit.or(last.limit);
                    crash.reason = format!("{}; the last: {}", crash.reason, last.reason);
                    crash.backtrace = last.backtrace;
                }
            }
        }
        if self.sender.try_send((crash, self.clock.wall(), skipped)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps where a replica trapped, for the report of its death a moment later.
    pub fn remember(&self, trap: Crash) {
        let mut seen = self.lock();
        if seen.traps.len() >= REMEMBERED {
            seen.traps.clear();
        }
        seen.traps.insert((trap.service.clone(), trap.replica), trap);
    }

    /// All that are kept, the newest first. Reads the disk.
    pub fn list(&self) -> Vec<CrashView> {
        let mut all: Vec<CrashView> = files(&self.dir).iter().filter_map(|f| read(&f.path)).collect();
        all.reverse();
        all
    }

    /// One report. Reads the disk.
    pub fn find(&self, id: &str) -> Option<CrashView> {
        let number = number(id)?;
        read(&self.dir.join(format!("c{number}.json")))
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// `None`: not now, and counted. Else how many of the service were not written since the last that was.
    fn take(&mut self, service: &ServiceName, kind: CrashKind, now: Millis) -> Option<u64> {
        let minute = now.0 / 60_000;
        if minute != self.minute {
            (self.minute, self.all) = (minute, 0);
            self.services.retain(|_, of| of.skipped > 0);
            for of in self.services.values_mut() {
                (of.calls, of.deaths) = (0, 0);
            }
        }
        if !self.services.contains_key(service) && self.services.len() >= REMEMBERED {
            return None;
        }
        let of = self.services.entry(service.clone()).or_default();
        let (count, most) = match kind {
            CrashKind::Call => (&mut of.calls, TRAPS_A_MINUTE),
            CrashKind::Death => (&mut of.deaths, DEATHS_A_MINUTE),
        };
        if *count >= most || self.all >= ALL_A_MINUTE {
            of.skipped += 1;
            return None;
        }
        *count += 1;
        self.all += 1;
        Some(std::mem::take(&mut of.skipped))
    }
}

/// Writes what comes, one after the other.
struct Writer {
    dir: PathBuf,
    logs: Arc<Logs>,
    describe: Arc<OnceLock<Describe>>,
    lost: Arc<AtomicU64>,
    next: u64,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<(Crash, Timestamp, u64)>) {
        while let Ok((crash, at, skipped)) = waiting.recv() {
            let mut view = self.view(crash, at, skipped);
            match self.write(&mut view) {
                Ok(()) => self.next += 1,
                Err(error) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(error = %error, service = view.service, "a crash report was not written");
                }
            }
        }
    }

    fn view(&self, crash: Crash, at: Timestamp, skipped: u64) -> CrashView {
        let context = self
            .describe
            .get()
            .map(|describe| describe(&crash.service, crash.revision, crash.replica))
            .unwrap_or_default();
        let query = LogQuery {
            tail: Some(LINES),
            replica: Some(crash.replica),
            ..LogQuery::default()
        };
        let lines = self.logs.find(&crash.service).map(|ring| ring.query(&query));
        CrashView {
            schema: 1,
            id: format!("c{}", self.next),
            at: at.rfc3339(),
            kind: match crash.kind {
                CrashKind::Call => "call",
                CrashKind::Death => "death",
            }
            .into(),
            service: crash.service.to_string(),
            revision: crash.revision.0,
            replica: crash.replica.to_string(),
            digest: context.digest,
            reason: crash.reason,
            limit: crash.limit.map(str::to_owned),
            backtrace: crash.backtrace.into_iter().take(FRAMES).collect(),
            log: lines.unwrap_or_default().iter().map(|e| cut(&e.line)).collect(),
            restarts: context.restarts,
            not_written: skipped,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn write(&self, view: &mut CrashView) -> std::io::Result<()> {
        let bytes = fit(view)?;
        make_dir(&self.dir)?;
        prune(&self.dir, KEPT - 1, KEPT_BYTES.saturating_sub(bytes.len() as u64));
        let path = self.dir.join(format!("{}.json", view.id));
        crate::secret_file::write(&path, &bytes).inspect_err(|_| {
            let _ = std::fs::remove_file(self.dir.join(format!(".{}.json.new", view.id)));
        })
    }
}

/// The report as it is written: without its oldest lines, then its outermost frames, when it is too large to be read again.
fn fit(view: &mut CrashView) -> serde_json::Result<Vec<u8>> {
    loop {
        let bytes = serde_json::to_vec(view)?;
        if bytes.len() as u64 <= FILE_BYTES {
            return Ok(bytes);
        }
        if !view.log.is_empty() {
            view.log.remove(0);
        } else if view.backtrace.pop().is_none() {
            view.reason = cut(&view.reason);
            return serde_json::to_vec(view);
        }
    }
}

fn cut(line: &str) -> String {
    let end = (0..=LINE_BYTES.min(line.len()))
        .rev()
        .find(|at| line.is_char_boundary(*at));
    line[..end.unwrap_or(0)].to_owned()
}

struct Found {
    number: u64,
    path: PathBuf,
    bytes: u64,
}

/// `c17` of a person, whatever else was typed.
fn number(id: &str) -> Option<u64> {
    let digits = id.strip_prefix('c')?;
    (digits.len() <= 19 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// The report files, the oldest first.
fn files(dir: &Path) -> Vec<Found> {
    let of = |entry: std::fs::DirEntry| {
        let number = number(entry.file_name().to_str()?.strip_suffix(".json")?)?;
        let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let (path, bytes) = (entry.path(), meta.len());
        Some(Found { number, path, bytes })
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<Found> = entries.filter_map(of).collect();
    all.sort_by_key(|f| f.number);
    all
}

fn newest(dir: &Path) -> u64 {
    files(dir).last().map_or(0, |f| f.number)
}

/// Removes the oldest until so many of so many bytes are left.
fn prune(dir: &Path, most: usize, most_bytes: u64) {
    let all = files(dir);
    let (mut count, mut bytes) = (all.len(), all.iter().map(|f| f.bytes).sum::<u64>());
    for file in &all {
        if count <= most && bytes <= most_bytes {
            return;
        }
        if std::fs::remove_file(&file.path).is_ok() {
            count -= 1;
            bytes -= file.bytes;
        }
    }
}

/// `None`: it is not there, or makes no sense.
fn read(path: &Path) -> Option<CrashView> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > FILE_BYTES {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::Hand;

    fn crash(replica: u64, kind: CrashKind) -> Crash {
        Crash {
            kind,
            service: "hello".parse().unwrap(),
            revision: RevisionNumber(1),
            replica: ReplicaId(replica),
            reason: "unreachable".into(),
            limit: None,
            backtrace: vec!["hello!handle".into()],
        }
    }

    fn open(dir: &Path, hand: &Hand) -> Arc<Crashes> {
        Crashes::open(dir, hand.clock(), Arc::new(Logs::new(hand.clock())))
    }

    fn add(crashes: &Crashes, n: u64, kind: CrashKind) {
        crashes.record(&"hello".parse().unwrap(), kind, || crash(n, kind));
    }

    /// The writer is another thread: looks until it is so.
    fn until(crashes: &Crashes, check: impl Fn(&[CrashView]) -> bool) -> Vec<CrashView> {
        for _ in 0..10_000 {
            let all = crashes.list();
            if check(&all) {
                return all;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        panic!("never: {:?}", crashes.list());
    }

    #[test]
    fn a_minute_has_room_for_a_few_and_the_next_report_says_how_many_were_not_written() {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        let crashes = open(dir.path(), &hand);
        for n in 0..50 {
            add(&crashes, n, CrashKind::Call);
        }
        until(&crashes, |all| all.len() == 5);
        add(&crashes, 50, CrashKind::Death);
        until(&crashes, |all| all.len() == 6 && all[0].not_written == 45);
        hand.advance_ms(60_000);
        add(&crashes, 51, CrashKind::Call);
        let all = until(&crashes, |all| all.len() == 7);
        assert_eq!((all[0].id.as_str(), all[0].not_written), ("c7", 0));
    }

    #[test]
    fn a_death_carries_the_trap_before_it() {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        let crashes = open(dir.path(), &hand);
        add(&crashes, 1, CrashKind::Call);
        crashes.record(&"hello".parse().unwrap(), CrashKind::Death, || Crash {
            reason: "5 calls in a row trapped".into(),
            backtrace: Vec::new(),
            ..crash(1, CrashKind::Death)
        });
        let all = until(&crashes, |all| all.len() == 2);
        assert_eq!(all[0].reason, "5 calls in a row trapped; the last: unreachable");
        assert_eq!(all[0].backtrace, ["hello!handle"]);
    }

    #[test]
    fn the_oldest_go_numbers_go_on_after_a_start_and_strange_files_are_left_alone() {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        let crashes = open(dir.path(), &hand);
        let strange = dir.path().join("crashes/notes.txt");
        std::fs::write(&strange, "mine").unwrap();
        for n in 0..70_u64 {
            hand.advance_ms(60_000);
            add(&crashes, n, CrashKind::Call);
            let id = format!("c{}", n + 1);
            until(&crashes, |all| all.first().is_some_and(|c| c.id == id));
        }
        assert_eq!(crashes.list().len(), KEPT);
        assert!(crashes.find("c6").is_none() && crashes.find("c7").is_some());
        let again = open(dir.path(), &hand);
        add(&again, 1, CrashKind::Death);
        until(&again, |all| all[0].id == "c71");
        assert!(strange.exists());
        for id in ["", "c", "7", "c-1", "../c7", "c7.json", "c99999999999999999999"] {
            assert!(again.find(id).is_none(), "{id}");
        }
    }

    #[test]
    fn a_report_of_much_strange_output_is_written_so_that_it_can_be_read() {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        let logs = Arc::new(Logs::new(hand.clock()));
        let crashes = Crashes::open(dir.path(), hand.clock(), logs);
        add(&crashes, 1, CrashKind::Call);
        let mut view = until(&crashes, |all| all.len() == 1).remove(0);
        view.log = (0..LINES)
            .map(|n| format!("{n}{}", "\u{1}".repeat(LINE_BYTES)))
            .collect();
        view.backtrace = vec!["a frame of a long name".repeat(30); FRAMES];
        let written = fit(&mut view).unwrap();
        assert!(written.len() as u64 <= FILE_BYTES && view.backtrace.len() == FRAMES);
        assert!(view.log.len() > 10 && view.log.last().unwrap().starts_with("19"));
        view.backtrace = vec!["x".repeat(1 << 20); 2];
        view.reason = "x".repeat(1 << 20);
        assert!(fit(&mut view).unwrap().len() as u64 <= FILE_BYTES);
    }

    #[test]
    fn a_disk_that_takes_nothing_loses_the_report_and_nothing_else() {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        std::fs::write(dir.path().join("crashes"), "in the way").unwrap();
        let crashes = open(dir.path(), &hand);
        add(&crashes, 1, CrashKind::Call);
        for _ in 0..10_000 {
            if crashes.lost() == 1 {
                break;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        assert_eq!((crashes.lost(), crashes.list().len()), (1, 0));
        std::fs::remove_file(dir.path().join("crashes")).unwrap();
        add(&crashes, 1, CrashKind::Call);
        until(&crashes, |all| all.len() == 1);
    }
}
