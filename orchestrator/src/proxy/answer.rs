//! A guest's answer on its way to a client: its head checked once more, its body tied to the lease. Knows no connection beyond the
//! guard that says when it is done with.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Method, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use narae_runtime::{Body, BodyError, CallError};

use super::Balancer;
use super::guard::{digits, hop_by_hop, strip};
use super::request_id::X_REQUEST_ID;
use super::status::{Reason, X_NARAE_ERROR};
use super::upstream::Lease;

/// Most fields and bytes of a head that a guest may make; its own limit is the runtime's, this is the net behind it.
const MAX_FIELDS: usize = 256;
const MAX_HEAD: usize = 128 << 10;

/// What follows a guest's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing, whatever the guest would send: HEAD, 204, 205, 304.
    Bodyless,
    /// The guest's body, of this length if it said one.
    Body(Option<u64>),
}

/// Checks and cleans a head: a status of 200 to 599, at most one `content-length` that agrees with the body, no hop-by-hop field, at
/// most one `date`. `Err` says what was wrong.
pub fn check(method: &Method, head: &mut http::response::Parts, body: &Body) -> Result<Shape, &'static str> {
    if !(200..=599).contains(&head.status.as_u16()) {
        return Err("its status is not one of 200 to 599");
    }
    if head.headers.len() > MAX_FIELDS {
        return Err("it has too many header fields");
    }
    let (mut bytes, mut dates, mut hops, mut length) = (0, 0, false, None);
    for (name, value) in &head.headers {
        bytes += name.as_str().len() + value.len() + 4;
        match name.as_str() {
            "content-length" => {
                let number = digits(value.as_bytes()).ok_or("its content-length is not a number")?;
                if length.replace(number).is_some() {
                    return Err("it has more than one content-length");
                }
            }
            "date" => dates += 1,
            "x-narae-error" => hops = true,
            name if hop_by_hop(name) => hops = true,
            _ => {}
        }
    }
    if bytes > MAX_HEAD {
        return Err("its header section is too large");
    }
    if hops {
        strip(&mut head.headers);
        head.headers.remove(X_NARAE_ERROR);
    }
    if dates > 1 {
        head.headers.remove(DATE);
    }
    head.extensions.clear();
    let status = head.status;
    if *method == Method::HEAD
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        )
    {
        if status == StatusCode::NO_CONTENT || status == StatusCode::RESET_CONTENT {
            head.headers.remove(CONTENT_LENGTH);
        }
        return Ok(Shape::Bodyless);
    }
    if length.is_some_and(|said| body.size_hint().exact().is_some_and(|exact| exact != said)) {
        return Err("its content-length is not the length of its body");
    }
    Ok(Shape::Body(length))
}

/// Gives an answer its request id, whatever the guest said.
pub fn tag(headers: &mut http::HeaderMap, id: HeaderValue) {
    headers.insert(X_REQUEST_ID, id);
}

/// Where the balancer is reached from: a connection, or itself.
pub trait Home {
    fn balancer(&self) -> &Balancer;
    /// The answer ended at `at`, so that nobody needs to look at the clock again.
    fn ended(&mut self, _at: Instant) {}
}

impl Home for Arc<Balancer> {
    fn balancer(&self) -> &Balancer {
        self
    }
}

/// The body of a guest's answer. Holds the lease until its last byte was handed on or it is dropped.
pub struct Leased<H: Home> {
    body: Body,
    /// Bytes still due by `content-length`.
    left: Option<u64>,
    /// Longest piece handed on at once, and what is left of a longer one.
    most: usize,
    rest: Bytes,
    lease: Option<Lease>,
    home: H,
}

impl<H: Home> Leased<H> {
    /// `most`: in bytes. HTTP/2 keeps what it was given until the client opens its window, so it is given little.
    pub fn new(body: Body, shape: Shape, most: usize, lease: Lease, home: H) -> Self {
        let (body, left) = match shape {
            Shape::Bodyless => (Body::Empty, None),
            Shape::Body(left) => (body, left),
        };
        Self {
            body,
            left,
            most,
            rest: Bytes::new(),
            lease: Some(lease),
            home,
        }
    }

    pub fn home(&self) -> &H {
        &self.home
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the second and last look of the data path at the clock"
    )]
    fn finish(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            let now = Instant::now();
            self.home.ended(now);
            lease.finish(&*self.home.balancer().observer, now);
        }
    }

    /// The guest failed after its head: count it, and make sure that the end is not a clean one.
    fn abort(&mut self, error: BodyError) -> BodyError {
        (self.body, self.rest) = (Body::Empty, Bytes::new());
        if let Some(mut lease) = self.lease.take() {
            match &error {
                BodyError::Guest(cause) => lease.fail(&*self.home.balancer().observer, cause, true),
                // It passes on what the client's own body did, as an echo does.
                _ => lease.give_up(Reason::BodyBroken),
            }
        }
        error
    }

    fn hand_on(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ends_well() {
            self.finish();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn ends_well(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream() && self.left.unwrap_or(0) == 0
    }
}

impl<H: Home + Unpin> http_body::Body for Leased<H> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let wrong = |what: &'static str| BodyError::Guest(CallError::BadAnswer(what.into()));
        if !this.rest.is_empty() {
            let piece = this.rest.split_to(this.most.min(this.rest.len()));
            return this.hand_on(Frame::data(piece));
        }
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(this.abort(error)))),
            Poll::Ready(None) if this.left.unwrap_or(0) > 0 => {
                this.left = None;
                return Poll::Ready(Some(Err(
                    this.abort(wrong("its body is shorter than its content-length"))
                )));
            }
            Poll::Ready(None) => {
                this.finish();
                return Poll::Ready(None);
            }
        };
        if let (Some(left), Some(data)) = (&mut this.left, frame.data_ref()) {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => {
                    return Poll::Ready(Some(Err(
                        this.abort(wrong("its body is longer than its content-length"))
                    )));
                }
            }
        }
        match frame.into_data() {
            Ok(mut data) if data.len() > this.most => {
                let piece = data.split_to(this.most);
                this.rest = data;
                this.hand_on(Frame::data(piece))
            }
            Ok(data) => this.hand_on(Frame::data(data)),
            Err(other) => this.hand_on(other),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ends_well()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left + self.rest.len() as u64),
            None if self.rest.is_empty() => self.body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

impl<H: Home> Drop for Leased<H> {
    fn drop(&mut self) {
        if self.ends_well() {
            self.finish();
        }
    }
}

/// How often a body was pulled and whether the puller now has bytes that wait for the client. Read by the watch over an HTTP/2 stream.
#[derive(Default)]
pub struct Pulls(AtomicU32);

impl Pulls {
    const BLOCKED: u32 = 1;

    /// Changes with every pull; its lowest bit: bytes wait to be sent.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn blocked(seen: u32) -> bool {
        seen & Self::BLOCKED != 0
    }

    pub fn pulled(&self, bytes_wait: bool) {
        let next = (self.get() & !Self::BLOCKED).wrapping_add(2) | u32::from(bytes_wait);
        self.0.store(next, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(
        method: Method,
        status: u16,
        fields: &[(&'static str, &str)],
        body: Body,
    ) -> Result<(Shape, Vec<String>), &'static str> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (mut head, body) = response.body(body).unwrap().into_parts();
        let shape = check(&method, &mut head, &body)?;
        Ok((shape, head.headers.keys().map(|k| k.as_str().to_owned()).collect()))
    }

    #[test]
    fn informational_and_invented_statuses_are_no_answers() {
        for status in [100, 101, 103, 199, 600, 999] {
            assert!(checked(Method::GET, status, &[], Body::Empty).is_err(), "{status}");
        }
    }

    #[test]
    fn content_length_must_be_one_number_that_is_true() {
        let get = |fields: &[(&'static str, &str)]| checked(Method::GET, 200, fields, Body::full("abc"));
        assert_eq!(get(&[("content-length", "3")]).unwrap().0, Shape::Body(Some(3)));
        assert_eq!(get(&[]).unwrap().0, Shape::Body(None));
        for fields in [
            &[("content-length", "4")][..],
            &[("content-length", "2")],
            &[("content-length", "x")],
            &[("content-length", "3"), ("content-length", "3")],
        ] {
            assert!(get(fields).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn head_and_empty_statuses_have_no_body() {
        let length = [("content-length", "9")];
        let head = checked(Method::HEAD, 200, &length, Body::full("abc")).unwrap();
        assert_eq!(head, (Shape::Bodyless, vec!["content-length".to_owned()]));
        assert_eq!(checked(Method::GET, 304, &length, Body::Empty).unwrap(), head);
        assert_eq!(
            checked(Method::GET, 204, &length, Body::full("abc")).unwrap(),
            (Shape::Bodyless, vec![])
        );
    }

    #[test]
    fn hop_by_hop_fields_and_our_own_never_come_from_a_guest() {
        let fields = [
            ("connection", "x-a"),
            ("x-a", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-narae-error", "trap"),
            ("x-b", "2"),
            ("date", "1"),
            ("date", "2"),
        ];
        assert_eq!(checked(Method::GET, 200, &fields, Body::Empty).unwrap().1, ["x-b"]);
    }

    #[test]
    fn a_pull_is_seen_as_a_change() {
        let pulls = Pulls::default();
        let mut seen = vec![pulls.get()];
        for bytes_wait in [true, true, false, true] {
            pulls.pulled(bytes_wait);
            assert_eq!(Pulls::blocked(pulls.get()), bytes_wait);
            seen.push(pulls.get());
        }
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }
}
