//! Three revisions of one service, to roll out over one another: v1, v2 (feature `v2`) and one
//! that answers everything with 500 (feature `broken`).
//!
//! `?ms=N` delays the answer, `?size=N` makes it N bytes long. A request body is read to its end
//! and its length reported as `x-received`, so that a lost or cut request shows.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

const BROKEN: bool = cfg!(feature = "broken");
const NAME: &str = if BROKEN {
    "broken"
} else if cfg!(feature = "v2") {
    "v2"
} else {
    "v1"
};

struct Version;

impl Guest for Version {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        if BROKEN {
            return kit::respond_with(out, 500, &[("x-version", NAME)], "broken\n");
        }
        let target = kit::Target::of(&request);
        let mut received = 0;
        kit::for_each_chunk(&request, |chunk| received += chunk.len() as u64);
        if let Some(ms) = target.number("ms") {
            kit::sleep_ms(ms);
        }
        let headers = [("x-version", NAME), ("x-received", &received.to_string())];
        kit::respond_with(out, 200, &headers, body(target.number("size")));
    }
}

/// The version's line, padded or cut to `size` bytes.
fn body(size: Option<u64>) -> Vec<u8> {
    let mut body = format!("{NAME}\n").into_bytes();
    if let Some(size) = size.and_then(|n| usize::try_from(n).ok()) {
        body.resize(size, b'.');
        if size > NAME.len() + 1 {
            body[size - 1] = b'\n';
        }
    }
    body
}

wasip2::http::proxy::export!(Version);
