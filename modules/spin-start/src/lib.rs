//! A module that never ends its own instantiation.
//!
//! A revision like this must never become ready, and the host must live on.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

/// A core module that exports this name has it called while the component is instantiated, before
/// any request.
#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    let mut turns: u64 = 0;
    loop {
        turns = core::hint::black_box(turns.wrapping_add(1));
    }
}

struct NeverReached;

impl Guest for NeverReached {
    fn handle(_request: IncomingRequest, _out: ResponseOutparam) {}
}

wasip2::http::proxy::export!(NeverReached);
