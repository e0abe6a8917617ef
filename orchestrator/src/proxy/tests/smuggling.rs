//! Requests that two readers could read in two ways, byte by byte. None may reach a guest as two, or at all.

use std::sync::atomic::{AtomicU32, Ordering};

use http_body_util::BodyExt;
use narae_runtime::{Body, Response};

use super::*;

/// Appended to each case: must never be answered by the guest.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

const REFUSED: &[&str] = &[
    // Length and encoding together, in both orders and spellings.
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: CHUNKED\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
    // Two lengths.
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n",
    // No length.
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"0\"\r\n\r\n",
    // Encodings other than exactly one `chunked`.
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Names and lines that are none.
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\n Host: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
    // Bare LF.
    "POST / HTTP/1.1\nHost: a\n\n",
    "POST / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\n\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Request lines.
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET /\r\n\r\n",
    "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    // Hosts.
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a:0x50\r\n\r\n",
];

/// Bodies that break in the middle: the request may have reached the guest, what follows must not.
const BROKEN_BODIES: &[&str] = &[
    "0x0\r\n\r\n",
    "+0\r\n\r\n",
    "-1\r\n\r\n",
    "G\r\n\r\n",
    "0\n\n",
    "1\nZ\r\n0\r\n\r\n",
    "1\r\nZZ\r\n0\r\n\r\n",
    "1\r\nZ0\r\n\r\n",
    "1;\nZ\r\n0\r\n\r\n",
    "fffffffffffffffff\r\n\r\n",
    " 0\r\n\r\n",
    "\r\n0\r\n\r\n",
    "0;a=\"\n\"\r\n\r\n",
];

fn world() -> (World, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let guest = fake::guest(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let path = request.uri().path().to_owned();
            drop(request.into_body().collect().await);
            Ok(Response::new(Body::full(format!("guest saw {path}"))))
        }
    });
    (World::of(vec![guest]), calls)
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_end_their_connection() {
    let (world, calls) = world();
    for case in REFUSED {
        let got = world.raw(format!("{case}{SMUGGLED}")).await;
        assert!(
            got.is_empty()
                || got.starts_with("HTTP/1.1 4")
                || got.starts_with("HTTP/1.0 4")
                || got.starts_with("HTTP/1.1 505"),
            "{case:?}: {got}"
        );
        assert_eq!(
            got.matches("HTTP/1.").count(),
            usize::from(!got.is_empty()),
            "{case:?}: {got}"
        );
        assert_eq!(calls.load(Ordering::SeqCst), 0, "{case:?}: {got}");
    }
    world.settled().await;
}

#[tokio::test]
async fn nothing_after_a_broken_body_is_a_request() {
    let (world, _) = world();
    for case in BROKEN_BODIES {
        let got = world
            .raw(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{case}{SMUGGLED}"
            ))
            .await;
        assert!(!got.contains("smuggled"), "{case:?}: {got}");
    }
    world.settled().await;
}

#[tokio::test]
async fn plain_requests_in_one_write_are_all_answered() {
    let (world, calls) = world();
    let got = world
        .raw(format!(
            "\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\r\n\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \
             chunked\r\n\r\n1 \r\nZ\r\n0\r\nx: y\r\n\r\n{SMUGGLED}GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        ))
        .await;
    for path in ["/1", "/2", "/smuggled", "/4"] {
        assert!(got.contains(&format!("guest saw {path}")), "{got}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}
