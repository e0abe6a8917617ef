//! A client's request body on its way to a guest: counted, paced, and drained when nobody wants the rest. Knows no route.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use narae_runtime::{Body, BodyError};
use tokio::time::{Instant, Sleep};

use super::connection::Conn;
use super::status::Reason;

/// A peer that sends this little per frame, for this many frames, is not sending a body but an attack on whoever keeps frames.
const MIN_FRAME_BYTES: u64 = 8;
const FREE_FRAMES: u64 = 1 << 16;
/// Trailer fields of a request.
const MAX_TRAILERS: usize = 32;
/// Unread rest of a body that is read and thrown away so that the connection can be used again, in bytes …
const DRAIN_BYTES: u64 = 256 << 10;
/// … and for how long.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How slow a body may come. Time counts only while the guest waits for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Without any byte at the start.
    pub first: Duration,
    /// Each byte buys so much time; 240 B/s.
    pub bytes_per_second: u32,
    /// Never more than this at once: the longest pause.
    pub idle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            bytes_per_second: 240,
            idle: Duration::from_secs(30),
        }
    }
}

/// Credit of time: waiting spends it, bytes earn it.
#[derive(Clone, Copy, Debug)]
struct Credit(Duration);

impl Credit {
    fn spend(&mut self, waited: Duration) {
        self.0 = self.0.saturating_sub(waited);
    }

    fn earn(&mut self, bytes: u64, pace: &Pace) {
        let us = bytes.saturating_mul(1_000_000) / u64::from(pace.bytes_per_second.max(1));
        self.0 = (self.0 + Duration::from_micros(us)).min(pace.idle);
    }
}

/// What went wrong with a body, for the walk that has not answered yet.
#[derive(Default)]
pub struct Upload {
    trouble: AtomicU8,
}

impl Upload {
    pub fn trouble(&self) -> Option<Reason> {
        match self.trouble.load(Ordering::Acquire) {
            0 => None,
            n => Reason::ALL.get(usize::from(n) - 1).copied(),
        }
    }

    fn set(&self, reason: Reason) {
        self.trouble.store(reason as u8 + 1, Ordering::Release);
    }
}

/// The body a guest reads.
pub struct ClientBody {
    incoming: Option<Incoming>,
    upload: Arc<Upload>,
    limit: u64,
    received: u64,
    frames: u64,
    pace: Pace,
    credit: Credit,
    waiting_since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    rest: Rest,
}

/// What to do with a body that nobody reads to its end.
#[derive(Clone)]
pub enum Rest {
    /// HTTP/2: the stream is reset by hyper, the connection goes on.
    Reset,
    /// HTTP/1: read on for a bounded while, or tell the connection that it ends with unread bytes.
    Drain(Arc<Conn>),
    /// HTTP/1, and the client waits for `100 Continue`: it must not be asked for a body that nobody wants.
    Unasked(Arc<Conn>),
}

impl Rest {
    fn unread(&self) {
        if let Self::Drain(conn) | Self::Unasked(conn) = self {
            conn.ends_unread();
        }
    }
}

impl ClientBody {
    pub fn new(incoming: Incoming, limit: u64, pace: Pace, rest: Rest, upload: Arc<Upload>) -> Self {
        let credit = Credit(pace.first);
        Self {
            incoming: Some(incoming),
            upload,
            limit,
            received: 0,
            frames: 0,
            pace,
            credit,
            waiting_since: None,
            alarm: None,
            rest,
        }
    }

    fn stop(&mut self, reason: Reason, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.set(reason);
        self.incoming = None;
        self.rest.unread();
        Poll::Ready(Some(Err(error)))
    }

    /// Out of time? Arms the alarm on the first wait.
    fn stalled(&mut self, cx: &mut Context<'_>) -> bool {
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            let until = now + self.credit.0;
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(until),
                None => self.alarm = Some(Box::pin(tokio::time::sleep_until(until))),
            }
        }
        self.alarm
            .as_mut()
            .is_some_and(|alarm| alarm.as_mut().poll(cx).is_ready())
    }
}

impl http_body::Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        let frame = match Pin::new(incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if this.stalled(cx) => return this.stop(Reason::BodyStalled, BodyError::Stalled),
            Poll::Pending => return Poll::Pending,
        };
        if let Some(since) = this.waiting_since.take() {
            this.credit.spend(since.elapsed());
        }
        let frame = match frame {
            None => {
                this.incoming = None;
                return Poll::Ready(None);
            }
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return this.stop(Reason::BodyBroken, BodyError::Closed(error.into())),
        };
        this.frames += 1;
        if let Some(data) = frame.data_ref() {
            this.received = this.received.saturating_add(data.len() as u64);
            this.credit.earn(data.len() as u64, &this.pace);
            if this.received > this.limit {
                let limit = this.limit;
                return this.stop(Reason::BodyTooLarge, BodyError::TooLarge { limit });
            }
        }
        let crumbs = this.frames > FREE_FRAMES + this.received / MIN_FRAME_BYTES;
        let trailers = frame.trailers_ref().is_some_and(|t| t.len() > MAX_TRAILERS);
        if crumbs || trailers {
            let what = if crumbs {
                "body in too small pieces"
            } else {
                "too many trailers"
            };
            return this.stop(Reason::BodyBroken, BodyError::Closed(what.into()));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            discard(incoming, &self.rest);
        }
    }
}

/// Gets rid of what is left of a body. In HTTP/1 a short rest is read by a task of its own, so that the connection can carry the next
/// request; else the connection is told that it ends with unread bytes (hyper closes it then).
pub fn discard(incoming: Incoming, rest: &Rest) {
    if incoming.is_end_stream() || matches!(rest, Rest::Reset) {
        return;
    }
    let short = incoming.size_hint().lower() <= DRAIN_BYTES;
    match (rest, tokio::runtime::Handle::try_current()) {
        (Rest::Drain(conn), Ok(runtime)) if short => {
            let conn = Arc::clone(conn);
            runtime.spawn(async move {
                if !matches!(tokio::time::timeout(DRAIN_TIME, drain(incoming)).await, Ok(true)) {
                    conn.ends_unread();
                }
            });
        }
        _ => rest.unread(),
    }
}

/// True when the end was reached.
async fn drain(mut incoming: Incoming) -> bool {
    let mut left = DRAIN_BYTES;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let Ok(frame) = frame else { return false };
        let bytes = frame.data_ref().map_or(0, |d| d.len() as u64);
        // Small frames cost as much as larger ones.
        let Some(rest) = left.checked_sub(bytes.max(64)) else {
            return false;
        };
        left = rest;
    }
    true
}

/// A body that comes back if the one it was given to drops it untouched: for the retry of a call that never reached a guest.
pub struct Recoverable {
    body: Option<Body>,
    slot: Arc<Mutex<Option<Body>>>,
    touched: bool,
}

impl Recoverable {
    pub fn split(body: Body) -> (Body, Arc<Mutex<Option<Body>>>) {
        let slot = Arc::default();
        (
            Body::stream(Self {
                body: Some(body),
                slot: Arc::clone(&slot),
                touched: false,
            }),
            slot,
        )
    }
}

impl http_body::Body for Recoverable {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.touched = true;
        let frame = match &mut self.body {
            Some(body) => ready!(Pin::new(body).poll_frame(cx)),
            None => None,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for Recoverable {
    fn drop(&mut self) {
        if !self.touched {
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn bytes_buy_time_and_waiting_spends_it() {
        let pace = Pace::default();
        let mut credit = Credit(pace.first);
        credit.spend(Duration::from_secs(4));
        assert_eq!(credit.0, Duration::from_secs(1));
        credit.earn(480, &pace);
        assert_eq!(credit.0, Duration::from_secs(3));
        credit.earn(10 << 20, &pace);
        assert_eq!(credit.0, pace.idle, "a fast start does not buy an hour of silence");
        credit.spend(Duration::from_secs(31));
        assert_eq!(credit.0, Duration::ZERO);
    }

    #[tokio::test]
    async fn an_untouched_body_comes_back_and_a_touched_one_does_not() {
        let (body, slot) = Recoverable::split(Body::full("abc"));
        drop(body);
        assert_eq!(
            { slot.lock().unwrap().take() }
                .unwrap()
                .collect()
                .await
                .unwrap()
                .to_bytes(),
            "abc"
        );
        let (mut body, slot) = Recoverable::split(Body::full("abc"));
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(slot.lock().unwrap().is_none());
    }
}
