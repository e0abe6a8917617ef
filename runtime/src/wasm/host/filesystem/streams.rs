//! The streams of 0.2 over a file: one piece under way at a time, read and written by jobs.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::changes::{self, At};
use super::{Handle, PIECE_BYTES, Permits, run};

/// What a guest that only waits for data is read.
const READ_AHEAD_BYTES: usize = 4096;

/// At most so many bytes from here; none at the end of the file.
fn read_at(handle: &Handle, offset: u64, most: usize) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt as _;
    let Descriptor::File(file) = &handle.descriptor else {
        return Err(rustix::io::Errno::ISDIR.into());
    };
    let mut bytes = vec![0; most.min(PIECE_BYTES)];
    loop {
        match file.file.read_at(&mut bytes, offset) {
            Ok(n) => {
                bytes.truncate(n);
                return Ok(bytes.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub async fn read(handle: Arc<Handle>, offset: u64, most: usize) -> io::Result<Bytes> {
    let volume = Arc::clone(&handle.mount.volume);
    run(&volume, move || read_at(&handle, offset, most)).await?
}

pub async fn write(handle: Arc<Handle>, bytes: Bytes, at: At) -> io::Result<usize> {
    let volume = Arc::clone(&handle.mount.volume);
    run(&volume, move || write_all(&handle, &bytes, at)).await?
}

/// A stream that took bytes has written all of them or failed.
fn write_all(handle: &Handle, bytes: &[u8], at: At) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        let at = match at {
            At::Offset(offset) => At::Offset(offset.saturating_add(written as u64)),
            At::End => At::End,
        };
        written += changes::write(handle, &bytes[written..], at)?;
    }
    Ok(written)
}

pub struct Reader {
    handle: Arc<Handle>,
    offset: u64,
    state: Reading,
    _permits: Permits,
}

enum Reading {
    Idle,
    Waiting(AbortOnDropJoinHandle<io::Result<Bytes>>),
    Read(io::Result<Bytes>),
    Ended,
}

impl Reader {
    pub const fn new(handle: Arc<Handle>, offset: u64, permits: Permits) -> Self {
        Self {
            handle,
            offset,
            state: Reading::Idle,
            _permits: permits,
        }
    }

    fn begin(&mut self, most: usize) {
        let reading = read(Arc::clone(&self.handle), self.offset, most);
        self.state = Reading::Waiting(spawn(reading));
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        if matches!(self.state, Reading::Idle) {
            self.begin(READ_AHEAD_BYTES);
        }
        if let Reading::Waiting(reading) = &mut self.state {
            self.state = Reading::Read(reading.await);
        }
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match std::mem::replace(&mut self.state, Reading::Ended) {
            Reading::Ended => Err(StreamError::Closed),
            Reading::Read(Err(error)) => Err(StreamError::LastOperationFailed(error.into())),
            Reading::Read(Ok(bytes)) if bytes.is_empty() => Err(StreamError::Closed),
            Reading::Read(Ok(mut bytes)) => {
                let now = bytes.split_to(size.min(bytes.len()));
                self.offset += now.len() as u64;
                self.state = if bytes.is_empty() {
                    Reading::Idle
                } else {
                    Reading::Read(Ok(bytes))
                };
                Ok(now)
            }
            waiting @ Reading::Waiting(_) => {
                self.state = waiting;
                Ok(Bytes::new())
            }
            Reading::Idle => {
                self.state = Reading::Idle;
                if size > 0 {
                    self.begin(size);
                }
                Ok(Bytes::new())
            }
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size > 0 && matches!(self.state, Reading::Idle) {
            self.state = Reading::Read(read(Arc::clone(&self.handle), self.offset, size).await);
        } else if size > 0 {
            self.ready().await;
        }
        self.read(size)
    }

    async fn cancel(&mut self) {
        self.state = Reading::Ended;
    }
}

pub struct Writer {
    handle: Arc<Handle>,
    at: At,
    state: Writing,
    _permits: Permits,
}

enum Writing {
    Idle,
    Waiting(AbortOnDropJoinHandle<io::Result<usize>>),
    Failed(io::Error),
    Ended,
}

impl Writer {
    pub const fn new(handle: Arc<Handle>, at: At, permits: Permits) -> Self {
        Self {
            handle,
            at,
            state: Writing::Idle,
            _permits: permits,
        }
    }

    fn written(&mut self, done: io::Result<usize>) {
        self.state = match done {
            Ok(n) => {
                if let At::Offset(offset) = &mut self.at {
                    *offset = offset.saturating_add(n as u64);
                }
                Writing::Idle
            }
            Err(error) => Writing::Failed(error),
        };
    }

    /// The last error, once; then the stream is closed.
    fn settled(&mut self) -> StreamResult<()> {
        match std::mem::replace(&mut self.state, Writing::Ended) {
            Writing::Failed(error) => Err(StreamError::LastOperationFailed(error.into())),
            Writing::Ended => Err(StreamError::Closed),
            other => {
                self.state = other;
                Ok(())
            }
        }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        if let Writing::Waiting(writing) = &mut self.state {
            let done = writing.await;
            self.written(done);
        }
    }
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.settled()?;
        if bytes.len() > PIECE_BYTES || matches!(self.state, Writing::Waiting(_)) {
            return Err(StreamError::trap("more was written than check-write allowed"));
        }
        self.state = Writing::Waiting(spawn(write(Arc::clone(&self.handle), bytes, self.at)));
        Ok(())
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.ready().await;
        self.settled()?;
        let done = write(Arc::clone(&self.handle), bytes, self.at).await;
        self.written(done);
        self.settled()
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.settled()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.settled()?;
        Ok(match self.state {
            Writing::Idle => PIECE_BYTES,
            _ => 0,
        })
    }

    /// What was taken is written, also when the guest does not look.
    async fn cancel(&mut self) {
        self.ready().await;
        self.state = Writing::Ended;
    }
}
