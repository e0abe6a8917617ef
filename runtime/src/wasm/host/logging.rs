//! `wasi:logging` 0.1.0-draft: a guest's own log lines with their level, into the same sink as its streams and under the
//! same bounds. What a level means is the sink's business.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};

use super::stdio::LINE_BYTES;
use crate::guest::{Level, LogSink};

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "wasi:logging/imports@0.1.0-draft",
        imports: { default: trappable },
    });
}

use bindings::wasi::logging::logging;

/// Bytes of a context that are kept.
const CONTEXT_BYTES: usize = 128;

/// Where one store's lines go.
pub struct Logging<'a>(pub &'a Arc<dyn LogSink>);

struct HasLogging;

impl HasData for HasLogging {
    type Data<'a> = Logging<'a>;
}

/// Links the interface; `view` finds the store's sink. The same for both engines and both worlds.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> Logging<'_>,
) -> wasmtime::Result<()> {
    logging::add_to_linker::<_, HasLogging>(linker, view)
}

impl logging::Host for Logging<'_> {
    fn log(&mut self, level: logging::Level, context: String, message: String) -> wasmtime::Result<()> {
        let level = match level {
            logging::Level::Trace => Level::Trace,
            logging::Level::Debug => Level::Debug,
            logging::Level::Info => Level::Info,
            logging::Level::Warn => Level::Warn,
            logging::Level::Error => Level::Error,
            logging::Level::Critical => Level::Critical,
        };
        for line in lines(&context, &message) {
            self.0.log(level, &line);
        }
        Ok(())
    }
}

/// Each line of the message with its context before it, cut at what a sink takes.
fn lines<'a>(context: &'a str, message: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    let context = &context[..context.floor_char_boundary(CONTEXT_BYTES)];
    let prefix = if context.is_empty() {
        String::new()
    } else {
        format!("{context}: ")
    };
    let message = message.strip_suffix('\n').unwrap_or(message);
    message.split('\n').flat_map(move |line| {
        let room = LINE_BYTES - prefix.len();
        let bytes = line.as_bytes();
        // An empty line is a line.
        let pieces = bytes.chunks(room).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let pieces = if pieces.is_empty() { vec![Vec::new()] } else { pieces };
        let prefix = prefix.clone().into_bytes();
        pieces
            .into_iter()
            .map(move |piece| [prefix.as_slice(), &piece].concat())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(context: &str, message: &str) -> Vec<String> {
        lines(context, message)
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .collect()
    }

    #[test]
    fn each_line_has_its_context_before_it() {
        assert_eq!(shown("db", "a\nb\n"), ["db: a", "db: b"]);
        assert_eq!(shown("", "a"), ["a"]);
        assert_eq!(shown("db", ""), ["db: "]);
    }

    #[test]
    fn long_contexts_and_messages_are_bounded() {
        let long = shown(&"é".repeat(1000), &"x".repeat(20_000));
        assert!(long.len() == 3 && long.iter().all(|line| line.len() <= LINE_BYTES));
        assert!(long[0].starts_with(&format!("{}: x", "é".repeat(CONTEXT_BYTES / 2))));
    }
}
