//! Outbound HTTP of a guest: allowed by name, checked by address, bounded in time and number.
//!
//! [`policy`] decides in plain functions; `connect` makes a connection to an address that was checked, so a name that
//! resolves to something else a moment later gains nothing. Redirects are the guest's own business. Calls to services of
//! this node take another way (`inside`), and credentials are added when the guest has let go of its request.

mod connect;
mod inside;
pub mod policy;

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_rustls::{ConfigBuilderExt, DefaultServerNameResolver, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use self::connect::{ConnectError, Connector};
use super::outside::{self, Outside};
use crate::backend::Task;
use crate::guest::{Credential, Grants, Neighbours, Outbound};
use crate::wasm::store::{BODY_PIECE_BYTES, BODY_PIECES};

/// Idle connections kept for one origin, and for how long: shorter than the usual server's 60 s, so that reuse rarely
/// meets a closing one.
const IDLE_CONNECTIONS: usize = 16;
const IDLE: Duration = Duration::from_secs(30);
/// Bytes of an answer's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<()>> + Send>)>;

/// The outbound side of one replica: its permits and its connections. Each store holds a clone.
#[derive(Clone)]
pub struct OutboundClient(Arc<Inner>);

struct Inner {
    policy: Arc<Outbound>,
    outside: Arc<dyn Outside>,
    calls: Arc<Semaphore>,
    neighbours: Option<Arc<dyn Neighbours>>,
    credentials: Vec<Credential>,
    /// Made by the first allowed call: most replicas make none.
    client: OnceLock<Client<HttpsConnector<Connector>, WasiBody>>,
}

impl OutboundClient {
    /// A client under this policy. Nothing is opened before the first allowed call.
    pub fn new(policy: Outbound, outside: Arc<dyn Outside>) -> Self {
        Self::of(
            &Grants {
                outbound: policy,
                ..Grants::default()
            },
            outside,
        )
    }

    /// The same with the ways to other services and the credentials of these grants.
    pub fn of(grants: &Grants, outside: Arc<dyn Outside>) -> Self {
        let policy = grants.outbound.clone();
        let calls = usize::try_from(policy.concurrent)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            policy: Arc::new(policy),
            outside,
            calls: Arc::new(Semaphore::new(calls)),
            neighbours: grants.neighbours.clone(),
            credentials: grants.credentials.clone(),
            client: OnceLock::new(),
        }))
    }

    /// Calls running now, their bodies included.
    pub fn in_flight(&self) -> u64 {
        let all = usize::try_from(self.0.policy.concurrent)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        all.saturating_sub(self.0.calls.available_permits()) as u64
    }

    /// Sends one request. `Ok` once its head is there; the body then keeps the call's permit.
    pub async fn send(
        &self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<Response<WasiBody>> {
        let times = Times::of(&self.0.policy, options);
        let outside = &self.0.outside;
        let by = outside::deadline(outside, times.head);
        if let Some(name) = policy::neighbour(&self.0.policy, request.uri()) {
            let neighbours = self.0.neighbours.as_deref().ok_or(Error::HttpRequestDenied)?;
            let permit = self.permit(by).await?;
            let answer = outside::until(outside, by, inside::call(neighbours, &name, request)).await;
            let answer = answer.ok_or(Error::HttpResponseTimeout)??;
            return Ok(answer.map(|body| self.guarded(body, inside::error_of, times.frame, permit)));
        }
        let mut request = admit(&self.0.policy, request)?;
        self.sign(&mut request);
        let permit = self.permit(by).await?;
        let connection = capture_connection(&mut request);
        match outside::until(outside, by, self.client().request(request)).await {
            Some(Ok(response)) => Ok(
                response.map(|incoming| self.guarded(incoming, |error| hyper_error_of(&error), times.frame, permit))
            ),
            Some(Err(error)) => Err(error_of(&error)),
            None if connection.connection_metadata().is_some() => Err(Error::HttpResponseTimeout),
            None => Err(Error::ConnectionTimeout),
        }
    }

    /// The body of an answer, each frame under its time, with the call's permit.
    fn guarded<B>(
        &self,
        body: B,
        error: fn(B::Error) -> Error,
        frame: Duration,
        permit: OwnedSemaphorePermit,
    ) -> WasiBody
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        GuardedBody::new(body, error, frame, permit, Arc::clone(&self.0.outside)).boxed_unsync()
    }

    async fn permit(&self, by: u64) -> Result<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        match outside::until(&self.0.outside, by, self.0.calls.clone().acquire_owned()).await {
            Some(Ok(permit)) => Ok(permit),
            _ => Err(Error::ConnectionLimitReached),
        }
    }

    /// Adds the credentials of the host that is called; what the guest wrote there itself goes.
    fn sign(&self, request: &mut Request<WasiBody>) {
        if self.0.credentials.is_empty() {
            return;
        }
        let host = policy::host_of(request.uri());
        for credential in &self.0.credentials {
            if host.as_ref() == Some(&credential.host) {
                let headers = request.headers_mut();
                headers.insert(credential.header.clone(), credential.value.clone());
            }
        }
    }

    fn client(&self) -> &Client<HttpsConnector<Connector>, WasiBody> {
        self.0.client.get_or_init(|| {
            let connector = Connector::new(self.0.policy.clone(), self.0.outside.clone());
            let connector =
                HttpsConnector::new(connector, tls(), false, Arc::new(DefaultServerNameResolver::default()));
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .http1_max_buf_size(MAX_HEAD_BYTES)
                .build(connector)
        })
    }
}

/// One for the process: the roots are the same for every guest.
fn tls() -> Arc<rustls::ClientConfig> {
    static TLS: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has suites for TLS 1.2 and 1.3")
            .with_webpki_roots()
            .with_no_client_auth();
        Arc::new(config)
    });
    TLS.clone()
}

/// The request as it goes out, if the policy lets it: `Host` is what is connected to, whatever the guest wrote.
fn admit(policy: &Outbound, mut request: Request<WasiBody>) -> Result<Request<WasiBody>> {
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    if policy::target(policy, request.uri()).is_none() {
        return Err(Error::HttpRequestDenied);
    }
    if request.method() == http::Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Error::HttpRequestUriInvalid)?;
    request.headers_mut().insert(HOST, host);
    *request.version_mut() = http::Version::HTTP_11;
    if request.uri().path_and_query().is_none() {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)?;
    }
    Ok(request)
}

/// The policy's time, or less if the guest asks for less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    /// Until the answer's head.
    head: Duration,
    /// Until each further frame.
    frame: Duration,
}

impl Times {
    fn of(policy: &Outbound, options: Option<RequestOptions>) -> Self {
        let options = options.unwrap_or_default();
        // The guest's two times for the head are one after the other.
        let asked = options
            .first_byte_timeout
            .map(|t| t.saturating_add(options.connect_timeout.unwrap_or_default()));
        Self {
            head: policy.timeout.min(asked.unwrap_or(Duration::MAX)),
            frame: policy
                .timeout
                .min(options.between_bytes_timeout.unwrap_or(Duration::MAX)),
        }
    }
}

/// Outbound HTTP for a backend: one client for each replica that was granted any, cloned into each of its stores.
pub fn maker(outside: Arc<dyn Outside>) -> crate::wasm::MakeOutbound {
    Arc::new(move |grants| {
        let client = OutboundClient::of(grants, Arc::clone(&outside));
        Box::new(move || Box::new(client.clone()) as Box<dyn WasiHttpHooks>)
    })
}

impl WasiHttpHooks for OutboundClient {
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_PIECES
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PIECE_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PIECE_BYTES
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        // What became of the answer in the guest: our connection ends with the body, nothing waits for this.
        _processed: Box<dyn Future<Output = Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let client = self.clone();
        Box::new(async move {
            let response = client.send(request, options).await?;
            // The connection is driven by the pool's own task.
            Ok((
                response,
                Box::new(std::future::ready(Ok(()))) as Box<dyn Future<Output = Result<()>> + Send>,
            ))
        })
    }
}

/// An answer's body: each frame within its time; the permit goes with its last one, or when the guest drops it.
struct GuardedBody<B: Body> {
    incoming: B,
    /// What a broken body is in the interface's words.
    error: fn(B::Error) -> Error,
    frame: Duration,
    /// Armed only while somebody waits.
    waiting: Option<Task<'static, ()>>,
    permit: Option<OwnedSemaphorePermit>,
    outside: Arc<dyn Outside>,
}

impl<B: Body> GuardedBody<B> {
    fn new(
        incoming: B,
        error: fn(B::Error) -> Error,
        frame: Duration,
        permit: OwnedSemaphorePermit,
        outside: Arc<dyn Outside>,
    ) -> Self {
        Self {
            incoming,
            error,
            frame,
            waiting: None,
            permit: Some(permit),
            outside,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.permit.is_none() {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame.map(|frame| frame.map_err(this.error)),
            Poll::Pending => {
                let (outside, wait) = (&this.outside, this.frame);
                let sleep = this
                    .waiting
                    .get_or_insert_with(|| outside.sleep_until(outside::deadline(outside, wait)));
                ready!(sleep.as_mut().poll(cx));
                Some(Err(Error::ConnectionReadTimeout))
            }
        };
        this.waiting = None;
        if !matches!(frame, Some(Ok(_))) {
            this.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.permit.is_none() || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The cause of a failed call in the interface's words.
fn error_of(error: &hyper_util::client::legacy::Error) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return error.to_wasi();
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return hyper_error_of(error);
        }
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            let inner = error.get_ref();
            if let Some(error) = inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
                return tls_error_of(error);
            }
            if inner.is_none() {
                return connect::io_error_of(error);
            }
            cause = inner.map(|e| e as &(dyn StdError + 'static));
            continue;
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return tls_error_of(error);
        }
        cause = error.source();
    }
    if error.is_connect() {
        Error::ConnectionRefused
    } else {
        Error::HttpProtocolError
    }
}

fn tls_error_of(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Error::TlsCertificateError,
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: alert.as_str().map(Into::into),
        },
        _ => Error::TlsProtocolError,
    }
}

fn hyper_error_of(error: &hyper::Error) -> Error {
    // The guest's own body failed: say what it said.
    if let Some(Error::HttpRequestBodySize(size)) = error.source().and_then(|e| e.downcast_ref::<Error>()) {
        return Error::HttpRequestBodySize(*size);
    }
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_timeout() {
        Error::HttpResponseTimeout
    } else if error.is_incomplete_message() || error.is_body_write_aborted() {
        Error::HttpResponseIncomplete
    } else if error.is_canceled() || error.is_closed() {
        Error::ConnectionTerminated
    } else if let Some(error) = error.source().and_then(|e| e.downcast_ref::<std::io::Error>()) {
        match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(error) => tls_error_of(error),
            None if error.kind() == std::io::ErrorKind::UnexpectedEof => Error::HttpResponseIncomplete,
            None => Error::ConnectionTerminated,
        }
    } else {
        Error::HttpProtocolError
    }
}

#[cfg(test)]
mod tests;
