//! What guests print: a bounded ring in memory for each service, and followers that never slow a guest.
//!
//! A guest's bytes are untrusted: they are rate-limited before anything is done with them, made printable before they are
//! kept, and what is dropped is counted and told. Nothing here touches a disk.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use futures::{Stream, StreamExt, future};
use narae_runtime::{Level, LogSink, Stream as Output};
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::clock::Clock;
use crate::model::service::{LogLevel, Logs as Settings};
use crate::model::views::LogView;
use crate::model::{Millis, ReplicaId, RevisionNumber, ServiceName, Timestamp};

/// Bytes of one line after it was made printable.
const LINE_BYTES: usize = 16 << 10;
/// What an entry takes beside its text.
const ENTRY_BYTES: u64 = 128;
/// Lines that a follower may be behind before it loses some.
const FOLLOWER_LINES: usize = 1024;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Grows by one within a service.
    pub seq: u64,
    pub at: Timestamp,
    pub revision: RevisionNumber,
    pub replica: ReplicaId,
    pub stream: Output,
    pub level: LogLevel,
    /// Printable, without its newline.
    pub line: Arc<str>,
}

impl LogEntry {
    /// As the API and `-o json` show it.
    pub fn view(&self, service: &ServiceName) -> LogView {
        let stream = match self.stream {
            Output::Stdout => "stdout",
            Output::Stderr => "stderr",
            Output::Log => "log",
        };
        let level = match self.level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        };
        LogView {
            at: self.at.rfc3339(),
            service: service.to_string(),
            revision: self.revision.0,
            replica: self.replica.to_string(),
            stream: stream.to_owned(),
            level: level.to_owned(),
            line: self.line.to_string(),
        }
    }
}

/// Which lines. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// The last so many of those that match.
    pub tail: Option<usize>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    pub revision: Option<RevisionNumber>,
    pub replica: Option<ReplicaId>,
    /// This level or a graver one.
    pub level: Option<LogLevel>,
    /// Lines that contain exactly this text; no pattern.
    pub grep: Option<String>,
}

impl LogQuery {
    fn matches(&self, entry: &LogEntry) -> bool {
        self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
            && self.revision.is_none_or(|revision| entry.revision == revision)
            && self.replica.is_none_or(|replica| entry.replica == replica)
            && self.level.is_none_or(|level| entry.level >= level)
            && self.grep.as_ref().is_none_or(|text| entry.line.contains(&**text))
    }
}

/// What a follower gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed<T> {
    New(T),
    /// The follower was too slow for so many; they may still be in the ring.
    Missed(u64),
}

/// A stream of what a broadcast sends from now on.
pub(crate) fn follow<T: Clone + Send + 'static>(
    receiver: broadcast::Receiver<T>,
    matches: impl Fn(&T) -> bool + Send + 'static,
) -> impl Stream<Item = Followed<T>> + Send + 'static {
    BroadcastStream::new(receiver).filter_map(move |item| {
        future::ready(match item {
            Ok(item) => matches(&item).then_some(Followed::New(item)),
            Err(BroadcastStreamRecvError::Lagged(n)) => Some(Followed::Missed(n)),
        })
    })
}

/// The logs of all services of this node.
pub struct Logs {
    rings: DashMap<ServiceName, Arc<LogRing>>,
    clock: Clock,
}

impl Logs {
    pub fn new(clock: Clock) -> Self {
        Self {
            rings: DashMap::new(),
            clock,
        }
    }

    /// The service's ring, made when there is none, with these settings from now on.
    pub fn ring(&self, service: &ServiceName, settings: &Settings) -> Arc<LogRing> {
        let ring = self
            .rings
            .entry(service.clone())
            .or_insert_with(|| Arc::new(LogRing::new(self.clock.clone())))
            .clone();
        ring.configure(settings);
        ring
    }

    pub fn find(&self, service: &ServiceName) -> Option<Arc<LogRing>> {
        self.rings.get(service).map(|ring| ring.clone())
    }

    /// Drops the service's lines; followers end when its last replica is gone.
    pub fn forget(&self, service: &ServiceName) {
        self.rings.remove(service);
    }
}

/// The last lines of one service.
pub struct LogRing {
    clock: Clock,
    inner: Mutex<Inner>,
    live: broadcast::Sender<Arc<LogEntry>>,
}

struct Inner {
    entries: VecDeque<Arc<LogEntry>>,
    bytes: u64,
    next_seq: u64,
    settings: Settings,
    /// Thousandths of a line that may be taken now: at most one second's worth.
    budget_milli: u64,
    filled_at: Millis,
    /// Lines not kept since the last report, and where the last of them came from.
    dropped: u64,
    dropped_total: u64,
    dropped_from: (RevisionNumber, ReplicaId),
}

impl LogRing {
    fn new(clock: Clock) -> Self {
        let settings = Settings::default();
        let inner = Inner {
            entries: VecDeque::new(),
            bytes: 0,
            next_seq: 1,
            budget_milli: u64::from(settings.lines_per_second) * 1000,
            settings,
            filled_at: clock.monotonic(),
            dropped: 0,
            dropped_total: 0,
            dropped_from: (RevisionNumber(0), ReplicaId(0)),
        };
        Self {
            clock,
            inner: Mutex::new(inner),
            live: broadcast::Sender::new(FOLLOWER_LINES),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self, settings: &Settings) {
        let mut inner = self.inner();
        if inner.settings.lines_per_second != settings.lines_per_second {
            inner.budget_milli = u64::from(settings.lines_per_second) * 1000;
        }
        inner.settings = settings.clone();
        inner.trim();
    }

    /// Where one replica's output goes.
    pub fn sink(self: &Arc<Self>, revision: RevisionNumber, replica: ReplicaId) -> Arc<dyn LogSink> {
        Arc::new(Sink {
            ring: self.clone(),
            revision,
            replica,
        })
    }

    /// Matching lines, the oldest first.
    pub fn query(&self, query: &LogQuery) -> Vec<Arc<LogEntry>> {
        let mut inner = self.inner();
        self.report_dropped(&mut inner);
        inner.query(query)
    }

    /// Matching lines that are there, and those that come: none in between is missed.
    pub fn follow(
        &self,
        query: LogQuery,
    ) -> (
        Vec<Arc<LogEntry>>,
        impl Stream<Item = Followed<Arc<LogEntry>>> + Send + 'static,
    ) {
        let mut inner = self.inner();
        self.report_dropped(&mut inner);
        let receiver = self.live.subscribe();
        let entries = inner.query(&query);
        drop(inner);
        (entries, follow(receiver, move |entry| query.matches(entry)))
    }

    /// Lines that the rate limit dropped since the start.
    pub fn dropped_total(&self) -> u64 {
        self.inner().dropped_total
    }

    /// `level` is guessed from the line where the guest has not said it.
    fn line(&self, revision: RevisionNumber, replica: ReplicaId, stream: Output, level: Option<LogLevel>, line: &[u8]) {
        let mut inner = self.inner();
        if !inner.take(self.clock.monotonic()) {
            inner.dropped += 1;
            inner.dropped_total += 1;
            inner.dropped_from = (revision, replica);
            return;
        }
        let level = level.unwrap_or_else(|| guess_level(line));
        if level < inner.settings.level {
            return;
        }
        self.flush_dropped(&mut inner);
        self.push(&mut inner, revision, replica, stream, level, printable(line).into());
    }

    /// For readers: the report of a flood that ended in silence.
    fn report_dropped(&self, inner: &mut Inner) {
        if inner.dropped > 0 && inner.take(self.clock.monotonic()) {
            self.flush_dropped(inner);
        }
    }

    fn flush_dropped(&self, inner: &mut Inner) {
        if inner.dropped > 0 {
            let n = std::mem::take(&mut inner.dropped);
            let line = format!("narae: {n} {} dropped", if n == 1 { "line" } else { "lines" });
            let (revision, replica) = inner.dropped_from;
            self.push(inner, revision, replica, Output::Stderr, LogLevel::Warn, line.into());
        }
    }

    fn push(
        &self,
        inner: &mut Inner,
        revision: RevisionNumber,
        replica: ReplicaId,
        stream: Output,
        level: LogLevel,
        line: Arc<str>,
    ) {
        let entry = LogEntry {
            seq: inner.next_seq,
            at: self.clock.wall(),
            revision,
            replica,
            stream,
            level,
            line,
        };
        let entry = Arc::new(entry);
        inner.next_seq += 1;
        inner.bytes += size(&entry);
        inner.entries.push_back(entry.clone());
        inner.trim();
        // Nobody listens: not an error.
        let _ = self.live.send(entry);
    }
}

fn size(entry: &LogEntry) -> u64 {
    entry.line.len() as u64 + ENTRY_BYTES
}

impl Inner {
    /// Takes one line from the budget, which fills with time.
    fn take(&mut self, now: Millis) -> bool {
        let rate = u64::from(self.settings.lines_per_second);
        let passed_ms = crate::model::time::millis(now.since(self.filled_at));
        self.budget_milli = self
            .budget_milli
            .saturating_add(passed_ms.saturating_mul(rate))
            .min(rate * 1000);
        self.filled_at = now;
        let room = self.budget_milli >= 1000;
        if room {
            self.budget_milli -= 1000;
        }
        room
    }

    fn trim(&mut self) {
        while self.bytes > self.settings.keep_bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= size(&oldest);
        }
    }

    fn query(&self, query: &LogQuery) -> Vec<Arc<LogEntry>> {
        let newest_first = self.entries.iter().rev().filter(|entry| query.matches(entry));
        let mut found: Vec<_> = newest_first.take(query.tail.unwrap_or(usize::MAX)).cloned().collect();
        found.reverse();
        found
    }
}

struct Sink {
    ring: Arc<LogRing>,
    revision: RevisionNumber,
    replica: ReplicaId,
}

impl LogSink for Sink {
    fn line(&self, stream: Output, line: &[u8]) {
        self.ring.line(self.revision, self.replica, stream, None, line);
    }

    fn log(&self, level: Level, line: &[u8]) {
        let level = match level {
            Level::Trace | Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error | Level::Critical => LogLevel::Error,
        };
        self.ring
            .line(self.revision, self.replica, Output::Log, Some(level), line);
    }
}

/// Text that does nothing to a terminal: control characters, direction marks and bytes that are no UTF-8 become visible
/// (`\x1b`, `\u{202e}`), tabs stay. At most 16 KiB.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().min(LINE_BYTES));
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Writing to a String cannot fail.
            let _ = match c {
                '\t' => out.write_char(c),
                _ if c.is_control() => write!(out, "\\x{:02x}", u32::from(c)),
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                    write!(out, "{}", c.escape_unicode())
                }
                _ => out.write_char(c),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
        if out.len() > LINE_BYTES {
            out.truncate(out.floor_char_boundary(LINE_BYTES));
            out.push('…');
            break;
        }
    }
    out
}

/// From one of the first three words (`2026-11-24T05:30:31Z WARN …`, `[error] …`), from `"level"` of a JSON line, or from
/// the words of a Rust panic; else `info`, on both streams: many programs print everything to stderr.
fn guess_level(line: &[u8]) -> LogLevel {
    if line.first() == Some(&b'{') {
        return level_of_json(line).unwrap_or_default();
    }
    let head = &line[..line.len().min(128)];
    if head.starts_with(b"thread '") && head.windows(11).any(|words| words == b"panicked at") {
        return LogLevel::Error;
    }
    let words = head
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .take(3);
    words
        .filter_map(|word| level_of_word(std::str::from_utf8(word).ok()?))
        .next()
        .unwrap_or_default()
}

fn level_of_word(word: &str) -> Option<LogLevel> {
    let word = word.trim_matches(|c: char| !c.is_ascii_alphabetic());
    let is = |names: &[&str]| names.iter().any(|name| word.eq_ignore_ascii_case(name));
    if is(&["error", "fatal", "critical", "panic"]) {
        Some(LogLevel::Error)
    } else if is(&["warn", "warning"]) {
        Some(LogLevel::Warn)
    } else if is(&["info", "notice"]) {
        Some(LogLevel::Info)
    } else if is(&["debug", "trace"]) {
        Some(LogLevel::Debug)
    } else {
        None
    }
}

fn level_of_json(line: &[u8]) -> Option<LogLevel> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Level<'a> {
        #[serde(borrow)]
        Word(std::borrow::Cow<'a, str>),
        /// 10 trace, 20 debug, 30 info, 40 warn, 50 error, 60 fatal.
        Number(u32),
    }
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow, alias = "severity", alias = "lvl")]
        level: Level<'a>,
    }
    match serde_json::from_slice::<Line<'_>>(line).ok()?.level {
        Level::Word(word) => level_of_word(&word),
        Level::Number(n) => Some(match n {
            0..30 => LogLevel::Debug,
            30..40 => LogLevel::Info,
            40..50 => LogLevel::Warn,
            _ => LogLevel::Error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::Hand;

    fn ring(settings: Settings) -> (Hand, Arc<LogRing>, Arc<dyn LogSink>) {
        let hand = Hand::default();
        let ring = Logs::new(hand.clock()).ring(&"hello".parse().unwrap(), &settings);
        let sink = ring.sink(RevisionNumber(1), ReplicaId(7));
        (hand, ring, sink)
    }

    fn lines(ring: &LogRing) -> Vec<String> {
        ring.query(&LogQuery::default())
            .iter()
            .map(|entry| entry.line.to_string())
            .collect()
    }

    #[test]
    fn a_level_that_the_guest_gave_is_not_guessed() {
        let logs = Logs::new(Clock::system());
        let ring = logs.ring(&"s".parse().unwrap(), &Settings::default());
        let sink = ring.sink(RevisionNumber(1), ReplicaId(1));
        sink.log(Level::Warn, b"all good");
        sink.log(Level::Debug, b"ERROR not shown");
        sink.log(Level::Critical, b"db: gone");
        let found = ring.query(&LogQuery::default());
        let shown: Vec<_> = found.iter().map(|e| (e.stream, e.level, &*e.line)).collect();
        assert_eq!(
            shown,
            [
                (Output::Log, LogLevel::Warn, "all good"),
                (Output::Log, LogLevel::Error, "db: gone")
            ]
        );
    }

    #[test]
    fn a_flood_is_cut_counted_and_told_when_there_is_room_again() {
        let (hand, ring, sink) = ring(Settings {
            lines_per_second: 10,
            ..Settings::default()
        });
        for n in 0..1000 {
            sink.line(Output::Stdout, format!("line {n}").as_bytes());
        }
        assert_eq!(lines(&ring).len(), 10);
        assert_eq!(ring.dropped_total(), 990);
        hand.advance_ms(1000);
        sink.line(Output::Stdout, b"after");
        let lines = lines(&ring);
        assert_eq!(lines[10..], ["narae: 990 lines dropped", "after"]);
    }

    #[test]
    fn a_flood_that_ends_in_silence_is_told_to_the_next_reader() {
        let (hand, ring, sink) = ring(Settings {
            lines_per_second: 1,
            ..Settings::default()
        });
        sink.line(Output::Stdout, b"one");
        sink.line(Output::Stdout, b"two");
        hand.advance_ms(5000);
        assert_eq!(lines(&ring), ["one", "narae: 1 line dropped"]);
        assert_eq!(lines(&ring).len(), 2);
    }

    #[test]
    fn memory_stays_within_keep_whatever_is_printed() {
        let (hand, ring, sink) = ring(Settings {
            lines_per_second: 1_000_000,
            keep_bytes: 64 << 10,
            ..Settings::default()
        });
        for n in 0..2000 {
            hand.advance_ms(1);
            sink.line(Output::Stdout, &vec![if n % 2 == 0 { b'x' } else { 0xff }; 8192]);
            sink.line(Output::Stdout, b"");
        }
        let inner = ring.inner();
        assert!(inner.bytes <= 64 << 10);
        assert_eq!(inner.bytes, inner.entries.iter().map(|entry| size(entry)).sum::<u64>());
    }

    #[test]
    fn escapes_and_bytes_that_are_no_text_become_visible() {
        assert_eq!(
            printable(b"\x1b[31mred\x1b[0m\x07\r\x00"),
            "\\x1b[31mred\\x1b[0m\\x07\\x0d\\x00"
        );
        assert_eq!(printable(b"a\xff\xc3(\xf0\x9f"), "a\\xff\\xc3(\\xf0\\x9f");
        assert_eq!(
            printable("\u{202e}나래\u{9b}\t\u{7f}".as_bytes()),
            "\\u{202e}나래\\x9b\t\\x7f"
        );
        assert!(printable(&[0xff; 100_000]).len() <= LINE_BYTES + 3);
        assert!(printable("나".repeat(100_000).as_bytes()).len() <= LINE_BYTES + 3);
    }

    #[test]
    fn levels_are_read_from_the_line() {
        for (line, level) in [
            ("plain", LogLevel::Info),
            ("", LogLevel::Info),
            ("ERROR no", LogLevel::Error),
            ("[warn] hm", LogLevel::Warn),
            ("2026-11-24T05:30:31Z  DEBUG x: y", LogLevel::Debug),
            ("an error of mine is the fifth word", LogLevel::Error),
            ("all is well, no error here", LogLevel::Info),
            (r#"{"msg":"x","level":"WARN"}"#, LogLevel::Warn),
            (r#"{"level":50}"#, LogLevel::Error),
            (r#"{"level":{}}"#, LogLevel::Info),
            ("{ not json", LogLevel::Info),
            ("thread 'main' (1) panicked at src/main.rs:1", LogLevel::Error),
        ] {
            assert_eq!(guess_level(line.as_bytes()), level, "{line}");
        }
        let deep = "{\"level\":".repeat(50_000);
        assert_eq!(guess_level(deep.as_bytes()), LogLevel::Info);
    }

    #[test]
    fn lines_below_the_services_level_are_not_kept() {
        let (_, ring, sink) = ring(Settings {
            level: LogLevel::Warn,
            ..Settings::default()
        });
        sink.line(Output::Stdout, b"INFO a");
        sink.line(Output::Stderr, b"ERROR b");
        assert_eq!(lines(&ring), ["ERROR b"]);
    }

    #[test]
    fn a_query_takes_the_last_lines_of_those_that_match() {
        let (hand, ring, sink) = ring(Settings::default());
        let other = ring.sink(RevisionNumber(2), ReplicaId(8));
        for n in 0..10 {
            sink.line(Output::Stdout, format!("WARN a{n}").as_bytes());
            other.line(Output::Stdout, format!("INFO b{n}").as_bytes());
            hand.advance_ms(10);
        }
        let found = |query: LogQuery| {
            ring.query(&query)
                .iter()
                .map(|e| e.line[5..].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found(LogQuery {
                tail: Some(2),
                replica: Some(ReplicaId(7)),
                ..Default::default()
            }),
            ["a8", "a9"]
        );
        assert_eq!(
            found(LogQuery {
                tail: Some(1),
                revision: Some(RevisionNumber(2)),
                ..Default::default()
            }),
            ["b9"]
        );
        assert_eq!(
            found(LogQuery {
                tail: Some(1),
                level: Some(LogLevel::Warn),
                ..Default::default()
            }),
            ["a9"]
        );
        assert_eq!(
            found(LogQuery {
                grep: Some("b3".to_owned()),
                ..Default::default()
            }),
            ["b3"]
        );
        let range = LogQuery {
            since: Some(Timestamp(20)),
            until: Some(Timestamp(30)),
            ..Default::default()
        };
        assert_eq!(found(range), ["a2", "b2"]);
    }

    #[tokio::test]
    async fn a_follower_sees_every_new_line_and_a_slow_one_is_told_what_it_missed() {
        let (_, ring, sink) = ring(Settings {
            lines_per_second: 1_000_000,
            ..Settings::default()
        });
        sink.line(Output::Stdout, b"before");
        let (there, mut coming) = ring.follow(LogQuery::default());
        assert_eq!(there.len(), 1);
        sink.line(Output::Stdout, b"now");
        assert!(matches!(coming.next().await, Some(Followed::New(entry)) if &*entry.line == "now"));
        for _ in 0..FOLLOWER_LINES + 10 {
            sink.line(Output::Stdout, b"flood");
        }
        assert_eq!(coming.next().await, Some(Followed::Missed(10)));
        assert!(matches!(coming.next().await, Some(Followed::New(_))));
        drop((ring, sink));
        assert_eq!(coming.count().await, FOLLOWER_LINES - 1, "it ends with the service");
    }
}
