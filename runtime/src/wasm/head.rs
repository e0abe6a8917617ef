//! The border between a guest's HTTP and ours: a request's errors on the way in, an answer's head on the way out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName};
use http_body::{Frame, SizeHint};
use wasmtime_wasi_http::Error;

use crate::error::CallError;
use crate::http::{Body, BodyError};

/// A request body as wasi:http wants it: our errors become its error codes.
pub struct Inbound(pub Body);

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(|e| match e {
            BodyError::TooLarge { limit } => Error::HttpRequestBodySize(Some(limit)),
            BodyError::Stalled => Error::ConnectionReadTimeout,
            BodyError::Closed(_) => Error::ConnectionTerminated,
            BodyError::Guest(_) => Error::HttpProtocolError,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// An answer that HTTP does not allow.
pub fn bad(why: impl Into<Arc<str>>) -> CallError {
    CallError::BadAnswer(why.into())
}

/// Checks an answer's head: refuses statuses that are no final answer and a length that is no number, takes away the
/// headers that belong to the connection (RFC 9110, section 7.6.1). Returns the length it promises.
pub fn check(parts: &mut http::response::Parts) -> Result<Option<u64>, CallError> {
    if parts.status.as_u16() < 200 {
        return Err(bad(format!("status {} is not a final answer", parts.status.as_u16())));
    }
    strip(&mut parts.headers);
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(bad("more than one content-length"));
    }
    let text = first.as_bytes();
    let number = std::str::from_utf8(text)
        .ok()
        .filter(|_| text.iter().all(u8::is_ascii_digit));
    number
        .and_then(|n| n.parse().ok())
        .map(Some)
        .ok_or_else(|| bad("content-length is not a number"))
}

/// Takes away what belongs to one connection. Looks at what is there, which is little, instead of asking for each name.
pub fn strip(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)) {
        let name = name.clone();
        headers.remove(name);
    }
}

/// `trailer` stays: it announces fields of the message, and HTTP/1.1 sends none that were not announced.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE].contains(name)
        || name == "keep-alive"
        || name.as_str().starts_with("proxy-")
        || name == "http2-settings"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> http::response::Parts {
        let mut answer = http::Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        answer.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_interim_status_is_no_answer() {
        for status in [100, 101, 103, 199] {
            assert!(check(&mut head(status, &[])).is_err(), "{status}");
        }
        for status in [200, 204, 404, 599, 999] {
            assert!(check(&mut head(status, &[])).is_ok(), "{status}");
        }
    }

    #[test]
    fn headers_of_the_connection_do_not_leave_the_guest() {
        let mut parts = head(
            200,
            &[
                ("connection", "close"),
                ("keep-alive", "1"),
                ("proxy-authenticate", "x"),
                ("te", "trailers"),
                ("trailer", "x"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("x-kept", "1"),
            ],
        );
        assert_eq!(check(&mut parts).unwrap(), None);
        assert_eq!(parts.headers.len(), 2);
        assert!(parts.headers.contains_key("trailer") && parts.headers.contains_key("x-kept"));
    }

    #[test]
    fn a_length_is_one_number_or_the_answer_is_refused() {
        assert_eq!(check(&mut head(200, &[("content-length", "12")])).unwrap(), Some(12));
        for bad in ["+1", "-1", "", "1 2", "99999999999999999999999"] {
            assert!(check(&mut head(200, &[("content-length", bad)])).is_err(), "{bad:?}");
        }
        assert!(check(&mut head(200, &[("content-length", "1"), ("content-length", "1")])).is_err());
    }
}
