//! What a 0.3 request sees of the worker that took it: how it fares, and the body that it makes.
//!
//! A worker that dies closes its bodies as one that finished does. Which it was is known when its turn is over, so a body
//! never ends before that.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use wasmtime_wasi_http::WasiBody;

use super::head::{self, bad};
use super::replica::Permit;
use super::{call, trap};
use crate::error::CallError;
use crate::http::{Body, BodyError};

/// What the requests of a worker see of it.
#[derive(Default)]
pub struct Fate {
    /// The guest has a thread now, so that what it just closed may still turn out to be a failure.
    pub running: AtomicBool,
    pub failed: OnceLock<CallError>,
    /// Answers whose bodies are on their way.
    pub bodies: AtomicUsize,
}

impl Fate {
    /// How it stands with the worker, once its present turn is over.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<Option<CallError>> {
        if let Some(error) = self.failed.get() {
            return Poll::Ready(Some(error.clone()));
        }
        if self.running.load(Ordering::Acquire) {
            // On another thread, for a tick at most.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.failed.get().cloned())
    }
}

/// A 0.3 guest's body; ends badly if its worker does.
pub struct Answer {
    body: WasiBody,
    /// Taken from the guest before the head went out.
    early: VecDeque<Frame<Bytes>>,
    left: Option<u64>,
    fate: Arc<Fate>,
    cut: bool,
    done: bool,
    _permit: Permit,
}

impl Answer {
    pub fn new(body: WasiBody, left: Option<u64>, fate: Arc<Fate>, permit: Permit) -> Self {
        fate.bodies.fetch_add(1, Ordering::Relaxed);
        Self {
            body,
            early: VecDeque::new(),
            left,
            fate,
            cut: false,
            done: false,
            _permit: permit,
        }
    }

    /// The body as ours: whole, if the guest made it in the same turn as its head.
    pub async fn into_body(mut self) -> Result<Body, CallError> {
        for _ in 0..2 {
            match std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll_guest(cx))).await {
                Poll::Ready(Some(Ok(frame))) => self.early.push_back(frame),
                Poll::Ready(Some(Err(BodyError::Guest(e)))) => return Err(e),
                Poll::Ready(Some(Err(e))) => return Err(bad(e.to_string())),
                Poll::Ready(None) => break,
                Poll::Pending if self.left == Some(0) => break,
                Poll::Pending => return Ok(Body::stream(self)),
            }
        }
        let whole = (self.done || self.left == Some(0)) && self.early.iter().all(Frame::is_data);
        match (whole, self.early.len()) {
            (true, 0) => Ok(Body::Empty),
            (true, 1) => {
                let frame = self.early.pop_front().and_then(|frame| frame.into_data().ok());
                Ok(Body::full(frame.unwrap_or_default()))
            }
            _ => Ok(Body::stream(self)),
        }
    }

    fn fail(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.done = true;
        Poll::Ready(Some(Err(BodyError::Guest(error))))
    }
}

impl Answer {
    /// What the guest makes next.
    fn poll_guest(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        if !self.cut {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(mut frame)) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        head::strip(trailers);
                    }
                    if let (Some(left), Some(data)) = (self.left, frame.data_ref()) {
                        match left.checked_sub(data.len() as u64) {
                            Some(rest) => self.left = Some(rest),
                            None => return self.fail(call::wrong_length()),
                        }
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(e)) => {
                    let error = self.fate.failed.get().cloned();
                    let said = || bad(trap::printable(&format!("the guest gave up its body: {e}")));
                    return self.fail(error.unwrap_or_else(said));
                }
                // A worker that dies closes its bodies too; which it was shows when its turn is over.
                None => self.cut = true,
            }
        }
        match std::task::ready!(self.fate.poll(cx)) {
            Some(error) => self.fail(error),
            None if self.left.is_some_and(|left| left > 0) => self.fail(call::wrong_length()),
            None => {
                self.done = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.fate.bodies.fetch_sub(1, Ordering::Relaxed);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.early.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.poll_guest(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.early.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let early: u64 = self
            .early
            .iter()
            .filter_map(|frame| Some(frame.data_ref()?.len() as u64))
            .sum();
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + early))
    }
}
