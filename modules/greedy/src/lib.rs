//! A guest that takes memory, politely and not.
//!
//! - `/?mib=N` grows by N MiB and touches each page; 507 and how many MiB it got if refused.
//! - `/hold?mib=N&ms=M` the same, and waits M ms before it answers.
//! - `/bomb` allocates until the allocator gives up, which is a trap.
//! - `/once` fills a fresh 1 MiB vector: the price of a heap that grows.

use core::arch::wasm32::{memory_grow, memory_size};
use core::hint::black_box;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

const MIB: usize = 1 << 20;
const PAGE: usize = 64 * 1024;

struct Greedy;

impl Guest for Greedy {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        match target.path.as_str() {
            "/bomb" => bomb(),
            "/once" => {
                black_box(vec![1_u8; MIB]);
                kit::respond(out, 200, "once\n");
            }
            path => {
                let grown = grow(target.number("mib").unwrap_or(1));
                if path == "/hold" {
                    kit::sleep_ms(target.number("ms").unwrap_or(1000));
                }
                match grown {
                    Ok(mib) => kit::respond(out, 200, format!("grown {mib} MiB\n")),
                    Err(mib) => kit::respond(out, 507, format!("refused at {mib} MiB\n")),
                }
            }
        }
    }
}

/// Grows by `mib` MiB, one at a time. The error is how many there were before the refusal.
///
/// `memory.grow` is asked directly: the allocator would abort where this can still answer.
fn grow(mib: u64) -> Result<u64, u64> {
    for done in 0..mib {
        if memory_grow::<0>(MIB / PAGE) == usize::MAX {
            return Err(done);
        }
        let end = memory_size::<0>() * PAGE;
        for page in (end - MIB..end).step_by(4096) {
            // SAFETY: the memory was just grown to `end`, and nobody else knows of the new pages.
            unsafe { core::ptr::with_exposed_provenance_mut::<u8>(page).write_volatile(1) };
        }
    }
    Ok(mib)
}

fn bomb() -> ! {
    let mut held = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; MIB]));
    }
}

wasip2::http::proxy::export!(Greedy);
