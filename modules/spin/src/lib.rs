//! A guest that never lets go of the processor. The host must be able to stop it, and must serve
//! others meanwhile.
//!
//! `/` spins without a single host call, `/host` spins calling the host all the time, and `/?ms=N`
//! spins N ms by the clock and then answers.

use core::hint::black_box;
use wasip2::clocks::monotonic_clock;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::random::random;

struct Spin;

impl Guest for Spin {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        match (target.path.as_str(), target.number("ms")) {
            ("/host", _) => loop {
                black_box(random::get_random_u64());
            },
            (_, None) => {
                let mut turns: u64 = 0;
                loop {
                    turns = black_box(turns.wrapping_add(1));
                }
            }
            (_, Some(ms)) => {
                let end = monotonic_clock::now().saturating_add(ms.saturating_mul(1_000_000));
                while monotonic_clock::now() < end {
                    (0..1000).for_each(|turn| {
                        black_box(turn);
                    });
                }
                kit::respond(out, 200, format!("spun {ms} ms\n"));
            }
        }
    }
}

wasip2::http::proxy::export!(Spin);
