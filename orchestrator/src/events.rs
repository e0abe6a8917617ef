//! What happened on this node: the last events, and followers. Bounded in number, in bytes and, for each service and
//! kind, in rate: a storm of traps neither pushes everything else out nor costs the processor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use tokio::sync::broadcast;

use crate::clock::Clock;
use crate::logs::{Followed, follow, printable};
use crate::model::views::EventView;
use crate::model::{Event, EventKind, Millis, ReplicaId, RevisionNumber, ServiceName, Timestamp};

/// Events that are kept.
pub const KEPT_EVENTS: usize = 10_000;
/// And their bytes: backtraces are long.
const KEPT_BYTES: usize = 8 << 20;
/// Of one kind and service within one window; the rest is counted.
const PER_WINDOW: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);
const MESSAGE_BYTES: usize = 1024;
const FRAMES: usize = 64;
const FRAME_BYTES: usize = 256;
/// What an event takes beside its texts.
const EVENT_BYTES: usize = 192;
const FOLLOWER_EVENTS: usize = 1024;

/// Something that happened, before it has a number and a time.
#[derive(Clone, Debug, Default)]
pub struct Occurrence {
    pub revision: Option<RevisionNumber>,
    pub replica: Option<ReplicaId>,
    /// One sentence; made printable here.
    pub message: String,
    /// The limit that was hit.
    pub limit: Option<String>,
    /// Wasm frames, innermost first.
    pub backtrace: Vec<String>,
}

impl Occurrence {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    pub fn revision(self, revision: RevisionNumber) -> Self {
        Self {
            revision: Some(revision),
            ..self
        }
    }

    pub fn replica(self, replica: ReplicaId) -> Self {
        Self {
            replica: Some(replica),
            ..self
        }
    }

    pub fn limit(self, limit: impl Into<String>) -> Self {
        Self {
            limit: Some(limit.into()),
            ..self
        }
    }

    pub fn backtrace(self, backtrace: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            backtrace: backtrace.into_iter().take(FRAMES).map(Into::into).collect(),
            ..self
        }
    }
}

/// Which events. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// The last so many of those that match.
    pub tail: Option<usize>,
    /// Later ones than this number.
    pub after: Option<u64>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    pub service: Option<ServiceName>,
    pub revision: Option<RevisionNumber>,
    pub replica: Option<ReplicaId>,
    pub kind: Option<EventKind>,
}

impl EventQuery {
    fn matches(&self, event: &Event) -> bool {
        self.after.is_none_or(|after| event.seq > after)
            && self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at < until)
            && self
                .service
                .as_ref()
                .is_none_or(|service| event.service.as_ref() == Some(service))
            && self.revision.is_none_or(|revision| event.revision == Some(revision))
            && self.replica.is_none_or(|replica| event.replica == Some(replica))
            && self.kind.is_none_or(|kind| event.kind == kind)
    }
}

/// The events of this node.
pub struct Events {
    clock: Clock,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<Event>>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    last_seq: u64,
    /// When the windows were looked through.
    swept_at: Millis,
    /// By service and the kind's number in [`kind_name`]'s table.
    windows: BTreeMap<(Option<ServiceName>, &'static str), Window>,
}

struct Window {
    kind: EventKind,
    since: Millis,
    kept: u32,
    surplus: u64,
}

impl Events {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            ring: Mutex::default(),
            live: broadcast::Sender::new(FOLLOWER_EVENTS),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the event, or counts it when there were 100 of its kind and service within this second or so.
    pub fn record(&self, kind: EventKind, service: Option<&ServiceName>, occurrence: Occurrence) {
        self.record_with(kind, service, || occurrence);
    }

    /// As [`Self::record`], for places where storms come from: `describe` runs only for an event that is kept.
    pub fn record_with(&self, kind: EventKind, service: Option<&ServiceName>, describe: impl FnOnce() -> Occurrence) {
        let now = self.clock.monotonic();
        let mut ring = self.ring();
        if now.since(ring.swept_at) >= WINDOW {
            self.close_windows(&mut ring, now);
        }
        let window = ring.windows.entry((service.cloned(), kind_name(kind)));
        let window = window.or_insert(Window {
            kind,
            since: now,
            kept: 0,
            surplus: 0,
        });
        if window.kept >= PER_WINDOW {
            window.surplus += 1;
            return;
        }
        window.kept += 1;
        self.push(&mut ring, kind, service.cloned(), describe());
    }

    /// Tells the surplus of windows that ended. Called by the shell each second, and by whatever reads or records.
    pub fn tick(&self) {
        self.close_windows(&mut self.ring(), self.clock.monotonic());
    }

    fn close_windows(&self, ring: &mut Ring, now: Millis) {
        ring.swept_at = now;
        let over = |window: &Window| now.since(window.since) >= WINDOW;
        let mut surplus = Vec::new();
        ring.windows.retain(|(service, _), window| {
            if over(window) && window.surplus > 0 {
                surplus.push((window.kind, service.clone(), window.surplus));
            }
            !over(window)
        });
        for (kind, service, n) in surplus {
            self.push(
                ring,
                kind,
                service,
                Occurrence::new(format!("{n} more of this kind were not kept")),
            );
        }
    }

    fn push(&self, ring: &mut Ring, kind: EventKind, service: Option<ServiceName>, occurrence: Occurrence) {
        ring.last_seq += 1;
        let frames = occurrence.backtrace.into_iter().take(FRAMES);
        let event = Arc::new(Event {
            seq: ring.last_seq,
            at: self.clock.wall(),
            kind,
            service,
            revision: occurrence.revision,
            replica: occurrence.replica,
            message: text(&occurrence.message, MESSAGE_BYTES),
            limit: occurrence.limit.map(|limit| text(&limit, FRAME_BYTES)),
            backtrace: frames.map(|frame| text(&frame, FRAME_BYTES)).collect(),
        });
        ring.bytes += size(&event);
        ring.events.push_back(event.clone());
        while ring.events.len() > KEPT_EVENTS || ring.bytes > KEPT_BYTES {
            let Some(oldest) = ring.events.pop_front() else { break };
            ring.bytes -= size(&oldest);
        }
        // Nobody listens: not an error.
        let _ = self.live.send(event);
    }

    /// Matching events, the oldest first.
    pub fn query(&self, query: &EventQuery) -> Vec<Arc<Event>> {
        let mut ring = self.ring();
        self.close_windows(&mut ring, self.clock.monotonic());
        ring.query(query)
    }

    /// Matching events that are there, and those that come: none in between is missed.
    pub fn follow(
        &self,
        query: EventQuery,
    ) -> (
        Vec<Arc<Event>>,
        impl Stream<Item = Followed<Arc<Event>>> + Send + 'static,
    ) {
        let ring = self.ring();
        let receiver = self.live.subscribe();
        let events = ring.query(&query);
        drop(ring);
        (events, follow(receiver, move |event| query.matches(event)))
    }
}

impl Ring {
    fn query(&self, query: &EventQuery) -> Vec<Arc<Event>> {
        let newest_first = self.events.iter().rev().filter(|event| query.matches(event));
        let mut found: Vec<_> = newest_first.take(query.tail.unwrap_or(usize::MAX)).cloned().collect();
        found.reverse();
        found
    }
}

fn text(text: &str, bytes: usize) -> String {
    let mut text = printable(&text.as_bytes()[..text.len().min(bytes)]);
    text.truncate(text.floor_char_boundary(bytes));
    text
}

fn size(event: &Event) -> usize {
    let frames = event
        .backtrace
        .iter()
        .map(|frame| frame.len() + size_of::<String>())
        .sum::<usize>();
    EVENT_BYTES + event.message.len() + frames
}

/// The event as the API and `-o json` show it.
pub fn view(event: &Event) -> EventView {
    EventView {
        seq: event.seq,
        at: event.at.rfc3339(),
        kind: kind_name(event.kind).to_owned(),
        service: event.service.as_ref().map(ToString::to_string),
        revision: event.revision.map(|revision| revision.0),
        replica: event.replica.map(|replica| replica.to_string()),
        message: event.message.clone(),
        limit: event.limit.clone(),
        backtrace: event.backtrace.clone(),
    }
}

/// All kinds with their names, as they are typed after `--kind`.
pub const KINDS: &[(EventKind, &str)] = &[
    (EventKind::Deployed, "deployed"),
    (EventKind::Accepted, "accepted"),
    (EventKind::Started, "started"),
    (EventKind::Serving, "serving"),
    (EventKind::Unready, "unready"),
    (EventKind::Ejected, "ejected"),
    (EventKind::Draining, "draining"),
    (EventKind::Stopped, "stopped"),
    (EventKind::Died, "died"),
    (EventKind::Restarting, "restarting"),
    (EventKind::CrashLoop, "crash-loop"),
    (EventKind::Trap, "trap"),
    (EventKind::Limit, "limit"),
    (EventKind::Proved, "proved"),
    (EventKind::Refused, "refused"),
    (EventKind::RolledBack, "rolled-back"),
    (EventKind::Rollout, "rollout"),
    (EventKind::Scaled, "scaled"),
    (EventKind::Deleted, "deleted"),
    (EventKind::Config, "config"),
    (EventKind::Secret, "secret"),
    (EventKind::Node, "node"),
    (EventKind::RunBegan, "run-began"),
    (EventKind::AttemptEnded, "attempt-ended"),
    (EventKind::RunEnded, "run-ended"),
    (EventKind::Schedule, "schedule"),
];

/// `crash-loop`.
pub fn kind_name(kind: EventKind) -> &'static str {
    KINDS
        .iter()
        .find(|(other, _)| *other == kind)
        .map_or("other", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::clock::fake::Hand;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_storm_of_one_kind_is_summed_up_and_leaves_the_others_alone() {
        let hand = Hand::default();
        let events = Events::new(hand.clock());
        let (hello, other) = (name("hello"), name("other"));
        events.record(EventKind::Deployed, Some(&hello), Occurrence::new("revision 1"));
        let mut described = 0;
        for _ in 0..50_000 {
            events.record_with(EventKind::Trap, Some(&hello), || {
                described += 1;
                Occurrence::new("trap")
            });
        }
        assert_eq!(described, 100, "what is not kept is not described either");
        events.record(EventKind::Trap, Some(&other), Occurrence::new("another service's"));
        hand.advance_ms(1000);
        let all = events.query(&EventQuery::default());
        assert_eq!(all.len(), 103);
        assert_eq!(all[0].kind, EventKind::Deployed);
        assert_eq!(all[102].message, "49900 more of this kind were not kept");
        assert_eq!(
            (all[102].kind, all[102].service.as_ref()),
            (EventKind::Trap, Some(&hello))
        );
        assert!(
            events.ring().windows.is_empty(),
            "nothing is kept for services that are quiet"
        );
    }

    #[test]
    fn the_ring_is_bounded_in_number_and_in_bytes() {
        let hand = Hand::default();
        let events = Events::new(hand.clock());
        for n in 0..KEPT_EVENTS + 500 {
            hand.advance_ms(20);
            events.record(EventKind::Node, None, Occurrence::new(n.to_string()));
        }
        let all = events.query(&EventQuery::default());
        assert_eq!(all.len(), KEPT_EVENTS);
        assert_eq!(all[0].seq, 501);
        for _ in 0..800 {
            hand.advance_ms(20);
            let long = Occurrence::new("m".repeat(100_000)).backtrace((0..1000).map(|_| "f".repeat(1000)));
            events.record(EventKind::Trap, None, long);
        }
        assert!(events.ring().bytes <= KEPT_BYTES);
        let last = events.query(&EventQuery {
            tail: Some(1),
            ..Default::default()
        });
        assert_eq!(
            (last[0].message.len(), last[0].backtrace.len()),
            (MESSAGE_BYTES, FRAMES)
        );
    }

    #[test]
    fn texts_of_guests_are_made_printable() {
        let events = Events::new(Hand::default().clock());
        events.record(
            EventKind::Trap,
            None,
            Occurrence::new("\x1b[2J나래").backtrace(["a\nb"]),
        );
        let all = events.query(&EventQuery::default());
        assert_eq!((&*all[0].message, &*all[0].backtrace[0]), ("\\x1b[2J나래", "a\\x0ab"));
    }

    #[test]
    fn every_kind_has_the_name_it_is_stored_by() {
        for (kind, name) in KINDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), *name);
        }
    }

    #[test]
    fn a_query_takes_the_last_of_those_that_match() {
        let hand = Hand::default();
        let events = Events::new(hand.clock());
        for n in 1..=6 {
            let service = name(if n % 2 == 0 { "even" } else { "odd" });
            let occurrence = Occurrence::new(n.to_string())
                .revision(RevisionNumber(n))
                .replica(ReplicaId(n));
            events.record(EventKind::Scaled, Some(&service), occurrence);
            hand.advance_ms(10);
        }
        let found = |query: EventQuery| events.query(&query).iter().map(|e| e.seq).collect::<Vec<_>>();
        assert_eq!(
            found(EventQuery {
                service: Some(name("odd")),
                tail: Some(2),
                ..Default::default()
            }),
            [3, 5]
        );
        assert_eq!(
            found(EventQuery {
                after: Some(4),
                ..Default::default()
            }),
            [5, 6]
        );
        assert_eq!(
            found(EventQuery {
                replica: Some(ReplicaId(2)),
                ..Default::default()
            }),
            [2]
        );
        assert_eq!(
            found(EventQuery {
                kind: Some(EventKind::Trap),
                ..Default::default()
            }),
            [0; 0]
        );
        let range = EventQuery {
            since: Some(Timestamp(10)),
            until: Some(Timestamp(30)),
            ..Default::default()
        };
        assert_eq!(found(range), [2, 3]);
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_between_what_is_there_and_what_comes() {
        let events = Events::new(Hand::default().clock());
        events.record(EventKind::Node, None, Occurrence::new("a"));
        let (there, mut coming) = events.follow(EventQuery {
            kind: Some(EventKind::Node),
            ..Default::default()
        });
        events.record(EventKind::Config, None, Occurrence::new("not asked for"));
        events.record(EventKind::Node, None, Occurrence::new("b"));
        assert_eq!(there.len(), 1);
        assert!(matches!(coming.next().await, Some(Followed::New(event)) if event.message == "b"));
    }
}
