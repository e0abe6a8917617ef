//! The one HTTP vocabulary between the balancer and a wall: `http` messages with our [`Body`].

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::error::CallError;

/// A request on its way to a guest: origin-form URI, exactly one valid `host` header, hop-by-hop headers removed.
pub type Request = ::http::Request<Body>;
/// A guest's answer. Its head is checked (framing headers, status) before it gets this type.
pub type Response = ::http::Response<Body>;

type Frames = dyn http_body::Body<Data = Bytes, Error = BodyError> + Send;

/// A message body. Small bodies that are already there are not boxed.
#[derive(Default)]
pub enum Body {
    /// No body at all.
    #[default]
    Empty,
    /// One piece, its length known; taken when it was sent.
    Full(Option<Bytes>),
    /// Frames that come as they are made. Dropping it cancels whoever makes them.
    Stream(Pin<Box<Frames>>),
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The request body went over `limits.body` (bytes).
    #[error("request body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    /// The client was slower than the minimum rate, or idle for too long.
    #[error("request body stalled")]
    Stalled,
    /// The peer left, or its connection broke.
    #[error("connection closed before the end of the body")]
    Closed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The guest failed after its head was sent: the stream must be aborted, never ended cleanly.
    #[error("guest failed while its answer was being sent")]
    Guest(#[source] CallError),
}

impl Body {
    /// A body of one piece; an empty piece is [`Body::Empty`].
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            Self::Empty
        } else {
            Self::Full(Some(bytes))
        }
    }

    /// A streamed body.
    pub fn stream(frames: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Stream(Box::pin(frames))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Stream(frames) => frames.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Full(None) => true,
            Self::Full(Some(_)) => false,
            Self::Stream(frames) => frames.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Full(None) => SizeHint::with_exact(0),
            Self::Full(Some(b)) => SizeHint::with_exact(b.len() as u64),
            Self::Stream(frames) => frames.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Body::Empty",
            Self::Full(_) => "Body::Full",
            Self::Stream(_) => "Body::Stream",
        })
    }
}
