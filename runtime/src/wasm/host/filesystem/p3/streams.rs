//! The streams of 0.3 over a file and a directory: one piece under way at a time, done by jobs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::channel::oneshot;
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::DirectoryEntry as Entry02;
use wasmtime_wasi::p3::bindings::filesystem::types::{DirectoryEntry, ErrorCode};

use super::super::streams::{read, write};
use super::super::{PIECE_BYTES, run};
use super::{At, Handle, Listing, Permits, words};
use crate::backend::Task;

/// How a stream ended, told once; that it was dropped is no error.
struct Ending(Option<oneshot::Sender<Result<(), ErrorCode>>>);

impl Ending {
    fn end(&mut self, how: Result<(), ErrorCode>) -> Poll<wasmtime::Result<StreamResult>> {
        if let Some(result) = self.0.take() {
            let _ = result.send(how);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }

    fn failed(&mut self, error: &io::Error) -> Poll<wasmtime::Result<StreamResult>> {
        self.end(Err(ErrorCode::from(error)))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.end(Ok(()));
    }
}

/// A file's bytes for a guest.
pub struct Input {
    handle: Arc<Handle>,
    offset: u64,
    reading: Option<Task<'static, io::Result<Bytes>>>,
    ending: Ending,
    _permits: Permits,
}

impl Input {
    pub const fn new(
        handle: Arc<Handle>,
        offset: u64,
        result: oneshot::Sender<Result<(), ErrorCode>>,
        permits: Permits,
    ) -> Self {
        Self {
            handle,
            offset,
            reading: None,
            ending: Ending(Some(result)),
            _permits: permits,
        }
    }
}

impl<D> StreamProducer<D> for Input {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _: StoreContextMut<'a, D>,
        mut destination: Destination<'a, u8, BytesMut>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let me = &mut *self;
        let (handle, offset) = (&me.handle, me.offset);
        let reading = me
            .reading
            .get_or_insert_with(|| Box::pin(read(Arc::clone(handle), offset, PIECE_BYTES)));
        let read = match reading.as_mut().poll(cx) {
            // It goes on; what it reads is for the next call.
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read,
        };
        me.reading = None;
        match read {
            Ok(bytes) if bytes.is_empty() => me.ending.end(Ok(())),
            Ok(bytes) => {
                me.offset += bytes.len() as u64;
                destination.set_buffer(bytes.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(error) => me.ending.failed(&error),
        }
    }
}

/// A guest's bytes for a file.
pub struct Output {
    handle: Arc<Handle>,
    at: At,
    writing: Option<Task<'static, io::Result<usize>>>,
    ending: Ending,
    _permits: Permits,
}

impl Output {
    pub const fn new(
        handle: Arc<Handle>,
        at: At,
        result: oneshot::Sender<Result<(), ErrorCode>>,
        permits: Permits,
    ) -> Self {
        Self {
            handle,
            at,
            writing: None,
            ending: Ending(Some(result)),
            _permits: permits,
        }
    }
}

impl<D> StreamConsumer<D> for Output {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let me = &mut *self;
        let mut source = source.as_direct(store);
        if me.writing.is_none() {
            let bytes = source.remaining();
            if bytes.is_empty() {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE_BYTES)]);
            me.writing = Some(Box::pin(write(Arc::clone(&me.handle), piece, me.at)));
        }
        let Some(writing) = &mut me.writing else {
            return Poll::Pending;
        };
        // A write that has begun cannot be taken back, so a guest that cancels waits for it too.
        let Poll::Ready(written) = writing.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        me.writing = None;
        match written {
            Ok(n) => {
                source.mark_read(n);
                if let At::Offset(offset) = &mut me.at {
                    *offset = offset.saturating_add(n as u64);
                }
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Err(error) => me.ending.failed(&error),
        }
    }
}

/// A listing, and the next name in it.
type Next = (Option<Listing>, FsResult<Option<Entry02>>);

/// The names in a directory.
pub struct Entries {
    handle: Arc<Handle>,
    permits: Option<Permits>,
    listing: Option<Listing>,
    next: Option<Task<'static, Next>>,
    ending: Ending,
}

impl Entries {
    pub const fn new(handle: Arc<Handle>, result: oneshot::Sender<Result<(), ErrorCode>>, permits: Permits) -> Self {
        Self {
            handle,
            permits: Some(permits),
            listing: None,
            next: None,
            ending: Ending(Some(result)),
        }
    }

    fn begin(&mut self) -> Task<'static, Next> {
        let handle = Arc::clone(&self.handle);
        let (listing, permits) = (self.listing.take(), self.permits.take());
        Box::pin(async move {
            let opened = match (listing, permits) {
                (None, Some(permits)) => {
                    let volume = Arc::clone(&handle.mount.volume);
                    match run(&volume, move || Listing::open(&handle, permits)).await {
                        Ok(opened) => opened.map(Some),
                        Err(error) => Err(error.into()),
                    }
                }
                (listing, _) => Ok(listing),
            };
            match opened {
                Ok(Some(mut listing)) => {
                    let next = listing.next().await;
                    (Some(listing), next)
                }
                Ok(None) => (None, Ok(None)),
                Err(error) => (None, Err(error)),
            }
        })
    }
}

impl<D> StreamProducer<D> for Entries {
    type Item = DirectoryEntry;
    type Buffer = Option<DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, DirectoryEntry, Option<DirectoryEntry>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let me = &mut *self;
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut next = match me.next.take() {
            Some(next) => next,
            None => me.begin(),
        };
        let Poll::Ready((listing, entry)) = next.as_mut().poll(cx) else {
            me.next = Some(next);
            return if finish {
                Poll::Ready(Ok(StreamResult::Cancelled))
            } else {
                Poll::Pending
            };
        };
        me.listing = listing;
        match entry {
            Ok(Some(entry)) => {
                destination.set_buffer(Some(DirectoryEntry {
                    type_: words::descriptor_type(entry.type_),
                    name: entry.name,
                }));
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Ok(None) => me.ending.end(Ok(())),
            Err(error) => {
                let code = error.downcast().map_or(ErrorCode::Io, words::error_code);
                me.ending.end(Err(code))
            }
        }
    }
}
