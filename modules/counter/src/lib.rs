//! State in memory: how many requests this instance has seen.
//!
//! The number tells whether the host reuses an instance, and that nobody else shares its memory.

use core::sync::atomic::{AtomicU64, Ordering};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

static SEEN: AtomicU64 = AtomicU64::new(0);

struct Counter;

impl Guest for Counter {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        kit::respond(out, 200, format!("{seen}\n"));
    }
}

wasip2::http::proxy::export!(Counter);
