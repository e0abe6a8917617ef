//! A guest's standard streams: lines into a [`LogSink`], or the streams of whoever runs a command.
//!
//! Splitting is bounded: a line longer than 8 KiB is handed on in pieces, so a flood without a newline holds no more.
//! What the lines mean, how many are kept and how they are shown is the sink's business.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::{AsyncStdinStream, AsyncStdoutStream, IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::guest::{LogSink, Stream};

/// Longest piece of a line that a sink is given.
pub(super) const LINE_BYTES: usize = 8 << 10;
/// Bytes a guest may write in one call.
const WRITE_BYTES: usize = 64 << 10;

/// Where a command's standard input comes from.
pub enum Input {
    /// Ends at once.
    Empty,
    /// This process's own.
    Inherit,
    /// Anything that can be read.
    From(Box<dyn AsyncRead + Send + Sync + Unpin>),
}

/// Where a command's output goes.
pub enum Output {
    /// Lines into the guest's log sink.
    Log,
    /// This process's own stream.
    Inherit,
    /// Anything that can be written.
    To(Box<dyn AsyncWrite + Send + Sync + Unpin>),
}

/// The three standard streams of a command.
pub struct Stdio {
    pub stdin: Input,
    pub stdout: Output,
    pub stderr: Output,
}

impl Stdio {
    /// This process's own three streams.
    pub const fn inherit() -> Self {
        Self {
            stdin: Input::Inherit,
            stdout: Output::Inherit,
            stderr: Output::Inherit,
        }
    }

    /// No input; output into the guest's log sink.
    pub const fn log() -> Self {
        Self {
            stdin: Input::Empty,
            stdout: Output::Log,
            stderr: Output::Log,
        }
    }

    /// Hands the streams to a guest's context.
    pub(in crate::wasm) fn give(self, wasi: &mut WasiCtxBuilder, logs: &Arc<dyn LogSink>) {
        match self.stdin {
            Input::Empty => {}
            Input::Inherit => {
                wasi.inherit_stdin();
            }
            Input::From(read) => {
                wasi.stdin(AsyncStdinStream::new(read));
            }
        }
        match self.stdout {
            Output::Log => {
                wasi.stdout(Lines::new(logs, Stream::Stdout));
            }
            Output::Inherit => {
                wasi.inherit_stdout();
            }
            Output::To(write) => {
                wasi.stdout(AsyncStdoutStream::new(WRITE_BYTES, write));
            }
        }
        match self.stderr {
            Output::Log => {
                wasi.stderr(Lines::new(logs, Stream::Stderr));
            }
            Output::Inherit => {
                wasi.inherit_stderr();
            }
            Output::To(write) => {
                wasi.stderr(AsyncStdoutStream::new(WRITE_BYTES, write));
            }
        }
    }
}

/// Cuts a stream of bytes into lines. All handles of one guest's stream share it; the rest goes out when it drops.
struct Splitter {
    sink: Arc<dyn LogSink>,
    stream: Stream,
    rest: Vec<u8>,
}

impl Splitter {
    fn write(&mut self, mut bytes: &[u8]) {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            self.piece(&bytes[..at]);
            let line = std::mem::take(&mut self.rest);
            self.sink.line(self.stream, &line);
            // The buffer is kept for the next line.
            self.rest = line;
            self.rest.clear();
            bytes = &bytes[at + 1..];
        }
        self.piece(bytes);
    }

    /// Adds to the unfinished line; what is full goes out.
    fn piece(&mut self, mut bytes: &[u8]) {
        while self.rest.len() + bytes.len() > LINE_BYTES {
            let (head, tail) = bytes.split_at(LINE_BYTES - self.rest.len());
            self.rest.extend_from_slice(head);
            self.sink.line(self.stream, &self.rest);
            self.rest.clear();
            bytes = tail;
        }
        self.rest.extend_from_slice(bytes);
    }
}

impl Drop for Splitter {
    fn drop(&mut self) {
        if !self.rest.is_empty() {
            self.sink.line(self.stream, &self.rest);
        }
    }
}

/// A guest's output stream that ends in its log.
#[derive(Clone)]
struct Lines(Arc<Mutex<Splitter>>);

impl Lines {
    fn new(sink: &Arc<dyn LogSink>, stream: Stream) -> Self {
        Self(Arc::new(Mutex::new(Splitter {
            sink: Arc::clone(sink),
            stream,
            rest: Vec::new(),
        })))
    }

    fn take(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Lines {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Vec<u8>>>);

    impl LogSink for Kept {
        fn line(&self, _: Stream, line: &[u8]) {
            self.0.lock().unwrap().push(line.to_vec());
        }
    }

    fn lines(writes: &[&[u8]]) -> Vec<Vec<u8>> {
        let kept = Arc::new(Kept::default());
        let sink: Arc<dyn LogSink> = kept.clone();
        let mut stream = Lines::new(&sink, Stream::Stdout);
        for bytes in writes {
            stream.write(Bytes::copy_from_slice(bytes)).unwrap();
        }
        drop(stream);
        std::mem::take(&mut *kept.0.lock().unwrap())
    }

    #[test]
    fn lines_are_cut_at_newlines_wherever_the_writes_end() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), [&b"a"[..], b"bc", b"", b"d"]);
    }

    #[test]
    fn a_flood_without_a_newline_arrives_in_pieces_of_eight_kib() {
        let flood = vec![b'x'; 3 * LINE_BYTES + 5];
        let sizes: Vec<_> = lines(&[&flood, b"\n"]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [LINE_BYTES, LINE_BYTES, LINE_BYTES, 5]);
    }

    #[test]
    fn nothing_written_is_no_line() {
        assert!(lines(&[]).is_empty());
    }
}
