//! The connector under the pool: resolve, check every address, connect to one that passed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;
use wasmtime_wasi_http::Error;

use super::policy;
use crate::guest::Outbound;
use crate::wasm::host::outside::{self, Outside, Wire};

/// Addresses of one name that are tried.
const MAX_TRIED: u32 = 4;

#[derive(Clone)]
pub(super) struct Connector {
    policy: Arc<Outbound>,
    outside: Arc<dyn Outside>,
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("not an allowed target")]
    Denied,
    #[error("every address of the host is closed")]
    Prohibited,
    #[error("cannot resolve the host")]
    Resolve(#[source] io::Error),
    #[error("host has no address")]
    NoAddress,
    #[error("cannot connect")]
    Connect(#[source] io::Error),
}

impl ConnectError {
    pub(super) fn to_wasi(&self) -> Error {
        match self {
            Self::Denied => Error::HttpRequestDenied,
            Self::Prohibited => Error::DestinationIpProhibited,
            // The resolver's text names files and servers of this machine; the guest learns the fact.
            Self::Resolve(_) => Error::DnsError {
                rcode: None,
                info_code: None,
            },
            Self::NoAddress => Error::DestinationNotFound,
            Self::Connect(error) => io_error_of(error),
        }
    }
}

pub(super) fn io_error_of(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Error::ConnectionTerminated,
        _ => Error::ConnectionRefused,
    }
}

impl Connector {
    pub(super) fn new(policy: Arc<Outbound>, outside: Arc<dyn Outside>) -> Self {
        Self { policy, outside }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, ConnectError> {
        let target = policy::target(&self.policy, &uri).ok_or(ConnectError::Denied)?;
        let (Some(host), Some(port)) = (policy::host_of(&uri), policy::port_of(&uri)) else {
            return Err(ConnectError::Denied);
        };
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.outside.resolve(host, port).await.map_err(ConnectError::Resolve)?,
        };
        if found.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let allowed = |address: &SocketAddr| policy::address_allowed(&self.policy, target, address.ip());
        // The port is ours, whatever a resolver answered.
        let open: Vec<SocketAddr> = found
            .into_iter()
            .filter(allowed)
            .map(|a| SocketAddr::new(a.ip(), port))
            .collect();
        let tries = u32::try_from(open.len()).unwrap_or(MAX_TRIED).clamp(1, MAX_TRIED);
        // One address that does not answer leaves time for the next.
        let each = self.policy.timeout / tries;
        let mut last = ConnectError::Prohibited;
        for address in open.into_iter().take(MAX_TRIED as usize) {
            match outside::within(&self.outside, each, self.outside.connect(address)).await {
                Some(Ok(wire)) => return Ok(Stream(TokioIo::new(wire))),
                Some(Err(error)) => last = ConnectError::Connect(error),
                None => last = ConnectError::Connect(io::ErrorKind::TimedOut.into()),
            }
        }
        Err(last)
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// What the pool holds.
pub(super) struct Stream(TokioIo<Box<dyn Wire>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
}
