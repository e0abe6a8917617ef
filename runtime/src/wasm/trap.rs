//! wasmtime's errors as reports for people. Names and messages come from the guest: everything is made printable and
//! bounded here.

use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi_http::FieldMapError;

use super::store::{Exceeded, Meter};
use crate::error::{Limit, TrapReport};

/// Bytes of a reason or a frame.
const TEXT_BYTES: usize = 512;
/// Frames of a backtrace.
const FRAMES: usize = 64;

/// What happened to a guest, told from the error and from what its meter saw.
pub fn report(error: &wasmtime::Error, meter: &Meter) -> TrapReport {
    let limit = limit(error, meter);
    let reason = match error.downcast_ref::<Exceeded>() {
        Some(exceeded) => exceeded.to_string(),
        None => error.root_cause().to_string(),
    };
    let backtrace = error.downcast_ref::<WasmBacktrace>().map(frames).unwrap_or_default();
    TrapReport {
        reason: printable(&reason).into(),
        limit,
        backtrace: backtrace.into(),
    }
}

/// True where nothing of the guest failed: the pool has no slot, or the address space no room.
pub fn is_shortage(error: &wasmtime::Error) -> bool {
    error.is::<PoolConcurrencyLimitError>()
        || error.chain().any(|cause| {
            cause.is::<PoolConcurrencyLimitError>()
                || cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::OutOfMemory)
                || cause
                    .downcast_ref::<rustix::io::Errno>()
                    .is_some_and(|e| *e == rustix::io::Errno::NOMEM)
        })
}

fn limit(error: &wasmtime::Error, meter: &Meter) -> Option<Limit> {
    if let Some(Exceeded(limit)) = error.downcast_ref() {
        return Some(*limit);
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::StackOverflow) {
        return Some(Limit::Stack);
    }
    if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
        return Some(Limit::Resources);
    }
    if let Some(FieldMapError::TotalSizeTooBig | FieldMapError::TooManyFields) = error.downcast_ref() {
        return Some(Limit::Headers);
    }
    // A toolchain's allocator aborts after a refused growth: that is the limit's work. Anything else that happens to a
    // guest which was refused memory once is its own.
    match trap {
        Some(Trap::UnreachableCodeReached) | None => meter.refused(),
        Some(_) => None,
    }
}

/// The frames as wasmtime prints them, because only its printer demangles: `  0: 0x1f - module!function`.
fn frames(backtrace: &WasmBacktrace) -> Vec<String> {
    let text = backtrace.to_string();
    let names = text.lines().filter_map(|line| {
        let (index, rest) = line.trim_start().split_once(": ")?;
        index.parse::<u32>().ok()?;
        let rest = rest.trim_start();
        Some(
            rest.strip_prefix("0x")
                .and_then(|r| r.split_once(" - "))
                .map_or(rest, |(_, name)| name),
        )
    });
    names.take(FRAMES).map(printable).collect()
}

/// Control characters and everything outside plain text become `\u{..}` escapes; the rest is cut.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT_BYTES));
    for c in text.chars() {
        let before = out.len();
        if c.is_control() || is_confusing(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        if out.len() > TEXT_BYTES {
            out.truncate(before);
            break;
        }
    }
    out
}

/// Invisible characters and those that turn the direction of text around.
const fn is_confusing(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_cannot_paint_a_terminal() {
        assert_eq!(
            printable("a\x1b[31mb\u{9b}c\u{202e}d\r\n"),
            "a\\u{1b}[31mb\\u{9b}c\\u{202e}d\\u{d}\\u{a}"
        );
    }

    #[test]
    fn text_is_cut_at_a_character() {
        let cut = printable(&"é".repeat(1000));
        assert!(cut.len() <= TEXT_BYTES && cut.chars().all(|c| c == 'é'));
    }
}
