//! What the lessons share: reading a request target, answering, waiting, moving bytes.
//!
//! Not a lesson itself, and it knows no lesson. Only calls that each lesson would otherwise repeat
//! line by line belong here; what a lesson is about stays in its own file.

use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

/// The largest piece moved at once: big enough to be cheap, small enough to be no burden to hold.
const CHUNK: u64 = 64 * 1024;

/// A request target, split at the `?`.
pub struct Target {
    pub path: String,
    query: String,
}

impl Target {
    pub fn of(request: &IncomingRequest) -> Self {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Self {
            path: path.to_owned(),
            query: query.to_owned(),
        }
    }

    /// The value of a query parameter, percent-decoded; any bytes may come out.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decode(value))
        })
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.bytes(name)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

/// Undoes percent-encoding. A `%` that no two hex digits follow stays as it is.
pub fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Answers with plain text and its length.
pub fn respond(out: ResponseOutparam, status: u16, body: impl AsRef<[u8]>) {
    respond_with(out, status, &[], body);
}

/// [`respond`], with more headers.
pub fn respond_with(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) {
    let bytes = body.as_ref();
    let length = bytes.len().to_string();
    let mut all = vec![("content-type", "text/plain"), ("content-length", length.as_str())];
    all.extend_from_slice(headers);
    let body = head(out, status, &all);
    if write(&body, bytes).is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}

/// Sends the head and hands back the body to write. A body dropped before `finish` tells the host
/// that the answer broke off.
pub fn head(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        fields
            .append(name, value.as_bytes())
            .expect("the lessons use no forbidden header");
    }
    let response = OutgoingResponse::new(fields);
    response
        .set_status_code(status)
        .expect("the lessons use valid status codes");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    body
}

/// Writes all of `bytes` as the body, waiting whenever the host has no room.
pub fn write(body: &OutgoingBody, bytes: &[u8]) -> Result<(), StreamError> {
    let stream = body.write().expect("the stream is taken once");
    write_all(&stream, bytes)
}

/// Writes all of `bytes`, waiting whenever the host has no room.
pub fn write_all(stream: &OutputStream, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = stream.check_write()?.min(CHUNK) as usize;
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        stream.write(now)?;
        bytes = later;
    }
    Ok(())
}

/// Moves everything from one stream to the other. The host moves a piece only when `to` has room
/// for it, so a slow reader holds the writer back and nothing is collected.
pub fn pump(from: &InputStream, to: &OutputStream) -> Result<(), StreamError> {
    loop {
        match to.blocking_splice(from, CHUNK) {
            Ok(_) => {}
            Err(StreamError::Closed) => return Ok(()),
            Err(failed) => return Err(failed),
        }
    }
}

/// Hands each piece of the request body to `each`. A body that breaks off ends early.
pub fn for_each_chunk(request: &IncomingRequest, mut each: impl FnMut(&[u8])) {
    let body: IncomingBody = request.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    while let Ok(chunk) = stream.blocking_read(CHUNK) {
        each(&chunk);
    }
}

/// Waits on the monotonic clock.
pub fn sleep_ms(ms: u64) {
    monotonic_clock::subscribe_duration(ms.saturating_mul(1_000_000)).block();
}
