//! The one table from what went wrong to what the client sees. Knows no guest, no service and no connection.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use narae_runtime::CallError;

/// Names the reason of an answer that no guest gave.
pub const X_NARAE_ERROR: HeaderName = HeaderName::from_static("x-narae-error");

/// Why a request got no guest's answer, or not all of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// No route for this host and path.
    NoRoute,
    /// The service has no replica in the routes.
    NoReplica,
    /// `limits.queue` requests are waiting already.
    QueueFull,
    /// Waited `limits.queue_wait` for a replica with room.
    QueueWait,
    /// The guest trapped.
    Trap,
    /// The guest was trapped by a limit.
    Limit,
    /// The guest sent no head in time.
    Timeout,
    /// The node's memory budget has no room.
    OutOfMemory,
    /// Every slot of the replica was taken.
    Busy,
    /// The replica stopped in that moment.
    Gone,
    /// The guest's answer is not one HTTP allows, or there was none.
    BadAnswer,
    /// Request body over `limits.body`.
    BodyTooLarge,
    /// Request body slower than the minimum rate.
    BodyStalled,
    /// Request body malformed, cut off or in absurdly small pieces.
    BodyBroken,
    /// The client left before the end of the answer.
    ClientGone,
    /// Not exactly one valid host.
    BadHost,
    /// Neither origin-form nor `OPTIONS *`.
    BadTarget,
    /// CONNECT.
    Connect,
    /// Ambiguous or unknown framing.
    BadFraming,
    /// Request target over 8 KiB.
    UriTooLong,
    /// Header section over 32 KiB or 100 fields.
    HeadTooLarge,
    /// A call between services that came through too many others.
    LoopDetected,
}

impl Reason {
    /// In declaration order, so that `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 22] = [
        Self::NoRoute,
        Self::NoReplica,
        Self::QueueFull,
        Self::QueueWait,
        Self::Trap,
        Self::Limit,
        Self::Timeout,
        Self::OutOfMemory,
        Self::Busy,
        Self::Gone,
        Self::BadAnswer,
        Self::BodyTooLarge,
        Self::BodyStalled,
        Self::BodyBroken,
        Self::ClientGone,
        Self::BadHost,
        Self::BadTarget,
        Self::Connect,
        Self::BadFraming,
        Self::UriTooLong,
        Self::HeadTooLarge,
        Self::LoopDetected,
    ];

    /// Which reason a failed call has.
    pub const fn of(error: &CallError) -> Self {
        match error {
            CallError::Trap(report) if report.limit.is_some() => Self::Limit,
            CallError::Trap(_) => Self::Trap,
            CallError::Timeout(_) => Self::Timeout,
            CallError::OutOfMemory => Self::OutOfMemory,
            CallError::Busy => Self::Busy,
            CallError::Gone | CallError::Stopped => Self::Gone,
            CallError::BadAnswer(_) => Self::BadAnswer,
        }
    }

    /// Status, name in `x-narae-error` and metrics, and one sentence for people. The sentence tells a client nothing about the guest.
    const fn row(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::NoRoute => (
                StatusCode::NOT_FOUND,
                "no-route",
                "no service answers for this host and path",
            ),
            Self::NoReplica => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no-replica",
                "no replica of the service is serving",
            ),
            Self::QueueFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "queue-full",
                "too many requests are waiting",
            ),
            Self::QueueWait => (
                StatusCode::SERVICE_UNAVAILABLE,
                "queue-wait",
                "no replica became free in time",
            ),
            Self::Trap => (StatusCode::INTERNAL_SERVER_ERROR, "trap", "the service failed"),
            Self::Limit => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "limit",
                "the service went over one of its limits",
            ),
            Self::Timeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "the service did not answer in time",
            ),
            Self::OutOfMemory => (
                StatusCode::SERVICE_UNAVAILABLE,
                "out-of-memory",
                "no memory for another instance now",
            ),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "every replica of the service is busy",
            ),
            Self::Gone => (StatusCode::SERVICE_UNAVAILABLE, "gone", "the replica stopped"),
            Self::BadAnswer => (
                StatusCode::BAD_GATEWAY,
                "bad-answer",
                "the service gave no valid answer",
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "the request body is too large",
            ),
            Self::BodyStalled => (
                StatusCode::REQUEST_TIMEOUT,
                "body-stalled",
                "the request body came too slowly",
            ),
            Self::BodyBroken => (
                StatusCode::BAD_REQUEST,
                "body-broken",
                "the request body cannot be read",
            ),
            Self::ClientGone => (StatusCode::BAD_REQUEST, "client-gone", "the client left"),
            Self::BadHost => (StatusCode::BAD_REQUEST, "bad-host", "exactly one valid host is needed"),
            Self::BadTarget => (
                StatusCode::BAD_REQUEST,
                "bad-target",
                "the request target must start with `/`",
            ),
            Self::Connect => (StatusCode::METHOD_NOT_ALLOWED, "connect", "CONNECT is not allowed"),
            Self::BadFraming => (
                StatusCode::BAD_REQUEST,
                "bad-framing",
                "the length of the request is ambiguous",
            ),
            Self::UriTooLong => (
                StatusCode::URI_TOO_LONG,
                "uri-too-long",
                "the request target is too long",
            ),
            Self::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head-too-large",
                "the header section is too large",
            ),
            Self::LoopDetected => (
                StatusCode::LOOP_DETECTED,
                "loop-detected",
                "services call each other in a loop",
            ),
        }
    }

    pub const fn status(self) -> StatusCode {
        self.row().0
    }

    /// Bounded set of labels: kebab-case.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Worth trying again in a second: nothing is wrong with the request.
    pub fn passes(self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    /// The connection must not carry another request: where this one ends is unknown or not worth waiting for.
    pub const fn closes(self) -> bool {
        matches!(
            self,
            Self::BadHost
                | Self::BadTarget
                | Self::Connect
                | Self::BadFraming
                | Self::UriTooLong
                | Self::HeadTooLarge
                | Self::BodyTooLarge
                | Self::BodyStalled
                | Self::BodyBroken
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The answer for `reason`, without a request id. `may_close`: HTTP/1, where `connection: close` has a meaning.
pub fn answer(reason: Reason, may_close: bool) -> Response<Bytes> {
    let (status, name, text) = reason.row();
    let mut response = Response::new(Bytes::from(format!("{} {text}\n", status.as_u16())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_NARAE_ERROR, HeaderValue::from_static(name));
    if reason.passes() {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if reason == Reason::Connect {
        headers.insert(
            http::header::ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    if may_close && reason.closes() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The client should ask again there, with the same method and body.
pub fn redirect(location: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(b"308 served over https only\n"));
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(LOCATION, location);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use narae_runtime::{Limit, TrapReport};

    use super::*;

    fn trap(limit: Option<Limit>) -> CallError {
        CallError::Trap(TrapReport {
            reason: "unreachable".into(),
            limit,
            backtrace: Arc::new([]),
        })
    }

    #[test]
    fn every_reason_stands_at_its_own_place_and_has_its_own_name() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn each_call_error_has_its_status() {
        let table = [
            (trap(None), 500, "trap"),
            (trap(Some(Limit::Memory)), 500, "limit"),
            (trap(Some(Limit::CpuTime)), 500, "limit"),
            (CallError::Timeout(Limit::Timeout), 504, "timeout"),
            (CallError::OutOfMemory, 503, "out-of-memory"),
            (CallError::Busy, 503, "busy"),
            (CallError::Gone, 503, "gone"),
            (CallError::BadAnswer("x".into()), 502, "bad-answer"),
        ];
        for (error, status, name) in table {
            let reason = Reason::of(&error);
            assert_eq!((reason.status().as_u16(), reason.name()), (status, name));
            assert_eq!(reason.passes(), error.never_reached_guest());
        }
    }

    #[test]
    fn only_a_503_says_when_to_come_back() {
        for reason in Reason::ALL {
            let answer = answer(reason, true);
            assert_eq!(
                answer.headers().contains_key(RETRY_AFTER),
                answer.status() == 503,
                "{reason}"
            );
            assert_eq!(answer.headers()[X_NARAE_ERROR], reason.name());
        }
    }

    #[test]
    fn connection_close_is_said_only_in_http1() {
        assert!(answer(Reason::BodyTooLarge, true).headers().contains_key(CONNECTION));
        assert!(!answer(Reason::BodyTooLarge, false).headers().contains_key(CONNECTION));
        assert!(!answer(Reason::NoRoute, true).headers().contains_key(CONNECTION));
    }
}
