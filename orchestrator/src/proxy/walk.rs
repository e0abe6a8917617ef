//! The walk of one request: guard, route, lease, call, answer. Holds no lock over an await and knows no socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::header::{EXPECT, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use narae_runtime::{Body, BodyError, CallError, Limit, Request, Response};

use super::answer::{self, Home, Leased, Pulls, Shape};
use super::body::{ClientBody, Recoverable, Rest, Upload, discard};
use super::connection::{Busy, Conn};
use super::routes::Asked;
use super::service::Service;
use super::status::{self, Reason};
use super::upstream::{Lease, Upstream};
use super::{Balancer, guard, request_id};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The instance keeps `limits.timeout` itself and knows better why; this is the net behind it, so it waits a little longer.
const TIMEOUT_SLACK: std::time::Duration = std::time::Duration::from_millis(100);

/// One frame of HTTP/2's default size: what a client that opens no window can make us keep per stream.
const HTTP2_PIECE: usize = 16 << 10;

/// The body of every answer.
pub enum Answer {
    /// Ours.
    Own(
        Option<Bytes>,
        #[expect(dead_code, reason = "dropped with the answer: that is its use")] Busy,
    ),
    /// A guest's.
    Guest {
        body: Leased<Busy>,
        pulls: Option<Arc<Pulls>>,
    },
}

/// One request of a connection. `pulls`: HTTP/2 only.
#[expect(
    clippy::disallowed_methods,
    reason = "the first of two looks of the data path at the clock"
)]
pub async fn walk(
    conn: Arc<Conn>,
    pulls: Option<Arc<Pulls>>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Answer>, Infallible> {
    let since = Instant::now();
    let busy = Busy::begin(conn);
    let (mut parts, incoming) = request.into_parts();
    let id = request_id::take_or_make(&parts.headers);
    let http1 = parts.version != Version::HTTP_2;
    let rest = rest(&busy, http1, parts.headers.contains_key(EXPECT));
    let method = parts.method.clone();
    let own = |reason, id, busy| Ok(own(reason, id, busy, http1, method == Method::HEAD));

    let Routed {
        service,
        hop_by_hop,
        strip,
    } = match route(&busy, &parts, &incoming) {
        Ok(Ok(found)) => found,
        Ok(Err(elsewhere)) => {
            discard(incoming, &rest);
            let mut response = status::redirect(elsewhere);
            answer::tag(response.headers_mut(), id);
            return Ok(response.map(|text| Answer::Own((method != Method::HEAD).then_some(text), busy)));
        }
        Err((service, reason)) => {
            busy.conn().balancer.refuse(service.as_deref(), reason);
            if reason.closes() {
                busy.conn().ends_unread()
            } else {
                discard(incoming, &rest)
            }
            return own(reason, id, busy);
        }
    };
    let (body, upload) = if incoming.is_end_stream() {
        (Body::Empty, None)
    } else {
        let upload = Arc::new(Upload::default());
        let body = ClientBody::new(
            incoming,
            service.body_bytes(),
            busy.conn().pace(),
            rest,
            Arc::clone(&upload),
        );
        (Body::stream(body), Some(upload))
    };
    prepare(&mut parts, hop_by_hop, strip, busy.conn(), &id);

    let balancer = &busy.conn().balancer;
    let called = deliver(
        balancer,
        &service,
        http::Request::from_parts(parts, body),
        since,
        upload.as_deref(),
    )
    .await;
    let (response, mut lease) = match called {
        Ok(answered) => answered,
        Err(failure) => return own(failure.reason, id, busy),
    };
    if upload.is_none() && matches!(response.body(), Body::Empty | Body::Full(_)) {
        lease.free();
    }
    if balancer.options.late_write && busy.conn().has_neighbours() && !narae_runtime::wasm::computing() {
        tokio::task::yield_now().await;
    }
    // A body that was refused half-way says more than what the guest made of it.
    if let Some(reason) = upload.and_then(|u| u.trouble()) {
        lease.give_up(reason);
        return own(reason, id, busy);
    }
    let (mut head, body) = response.into_parts();
    let shape = match checked(balancer, &method, &mut head, &body, &mut lease) {
        Ok(shape) => shape,
        Err(_) => return own(Reason::BadAnswer, id, busy),
    };
    answer::tag(&mut head.headers, id);
    head.version = Version::HTTP_11;
    let most = if http1 { usize::MAX } else { HTTP2_PIECE };
    if let Some(pulls) = &pulls {
        pulls.pulled(true);
    }
    Ok(http::Response::from_parts(
        head,
        Answer::Guest {
            body: Leased::new(body, shape, most, lease, busy),
            pulls,
        },
    ))
}

type Refused = (Option<Arc<Service>>, Reason);

/// Where a request goes.
struct Routed {
    service: Arc<Service>,
    /// There are fields to strip.
    hop_by_hop: bool,
    /// So many bytes of the path are not for the guest.
    strip: usize,
}

/// Guard and routes: the service, or the place where the client should ask instead.
fn route(
    busy: &Busy,
    parts: &http::request::Parts,
    incoming: &Incoming,
) -> Result<Result<Routed, HeaderValue>, Refused> {
    if let Some(reason) = busy.conn().framing() {
        return Err((None, reason));
    }
    let target = guard::check(parts.version, &parts.method, &parts.uri, &parts.headers)
        .map_err(|refusal| (None, refusal.reason))?;
    let balancer = &busy.conn().balancer;
    let table = balancer.table.load();
    let asked = Asked {
        host: &target.host,
        path: target.path,
        query: parts.uri.query(),
        method: &parts.method,
        headers: &parts.headers,
    };
    let entry = table.find(asked).ok_or((None, Reason::NoRoute))?;
    if entry.https_redirect
        && !busy.conn().is_secure()
        && let Some(port) = balancer.https_port()
        && let Some(elsewhere) = secure_uri(&target.host, port, &parts.uri)
    {
        return Ok(Err(elsewhere));
    }
    let service = Arc::clone(&entry.service);
    let length = target.length.or(incoming.size_hint().exact()).unwrap_or(0);
    if length > service.body_bytes() {
        return Err((Some(service), Reason::BodyTooLarge));
    }
    Ok(Ok(Routed {
        service,
        hop_by_hop: target.hop_by_hop,
        strip: entry.strip,
    }))
}

/// The same target under https.
fn secure_uri(host: &str, port: u16, uri: &Uri) -> Option<HeaderValue> {
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    HeaderValue::from_str(&format!("https://{host}{port}{path}")).ok()
}

fn rest(busy: &Busy, http1: bool, expects: bool) -> Rest {
    match (http1, expects) {
        (false, _) => Rest::Reset,
        (true, false) => Rest::Drain(Arc::clone(busy.conn())),
        (true, true) => Rest::Unasked(Arc::clone(busy.conn())),
    }
}

/// The head as a guest gets it: origin-form, one host, nothing hop-by-hop, and what we know about the client.
fn prepare(parts: &mut http::request::Parts, hop_by_hop: bool, strip: usize, conn: &Conn, id: &HeaderValue) {
    if hop_by_hop {
        guard::strip_request(&mut parts.headers);
    }
    if parts.version == Version::HTTP_2 {
        if let Some(authority) = parts.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        if let Some(path) = parts.uri.path_and_query().cloned() {
            parts.uri = Uri::from(path);
        }
    }
    parts.headers.remove(X_FORWARDED_PREFIX);
    if strip > 0 {
        strip_prefix(parts, strip);
    }
    parts.extensions.clear();
    let host = parts.headers.get(HOST).cloned();
    parts.headers.insert(X_FORWARDED_FOR, conn.peer().clone());
    parts
        .headers
        .insert(X_FORWARDED_PROTO, HeaderValue::from_static(conn.scheme()));
    if let Some(host) = host {
        parts.headers.insert(X_FORWARDED_HOST, host);
    }
    parts.headers.insert(request_id::X_REQUEST_ID, id.clone());
}

/// The path without its first `strip` bytes, which end on a whole segment; the guest finds them in `x-forwarded-prefix`.
fn strip_prefix(parts: &mut http::request::Parts, strip: usize) {
    let Some(whole) = parts.uri.path_and_query().map(|p| p.as_str()) else {
        return;
    };
    let (Some(prefix), Some(left)) = (whole.get(..strip), whole.get(strip..)) else {
        return;
    };
    let left = if left.starts_with('/') {
        left.to_owned()
    } else {
        format!("/{left}")
    };
    let prefix = HeaderValue::from_str(prefix);
    if let (Ok(prefix), Ok(uri)) = (prefix, left.parse()) {
        parts.headers.insert(X_FORWARDED_PREFIX, prefix);
        parts.uri = uri;
    }
}

fn own(reason: Reason, id: HeaderValue, busy: Busy, http1: bool, head: bool) -> http::Response<Answer> {
    let mut response = status::answer(reason, http1);
    answer::tag(response.headers_mut(), id);
    response.map(|text| Answer::Own((!head).then_some(text), busy))
}

/// Why a call gave no answer.
#[derive(Clone, Debug)]
pub struct Failure {
    pub reason: Reason,
    /// The guest's or the replica's own reason, when it came that far.
    pub error: Option<CallError>,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { reason, error: None }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{error}"),
            None => write!(f, "{}", self.reason),
        }
    }
}

impl std::error::Error for Failure {}

/// Lease and call; a call that never reached a guest is tried once on another replica, whatever its method, if its body is untouched.
async fn deliver(
    balancer: &Balancer,
    service: &Arc<Service>,
    request: Request,
    since: Instant,
    upload: Option<&Upload>,
) -> Result<(Response, Lease), Failure> {
    let wish = service.wish(request.headers());
    let (mut request, mut kept) = if service.may_retry() {
        Kept::of(request)
    } else {
        (request, None)
    };
    let mut tried: Option<(crate::model::ReplicaId, Failure)> = None;
    loop {
        let mut lease = match (service.try_lease(wish, tried.as_ref().map(|(id, _)| *id)), tried) {
            (Some(lease), _) => lease,
            (None, Some((_, failure))) => return Err(failure),
            (None, None) => match service.wait_for_lease(wish).await {
                Ok(lease) => lease,
                Err(reason) => {
                    balancer.refuse(Some(service), reason);
                    return Err(reason.into());
                }
            },
        };
        lease.begin(since, true);
        let error = match call(&lease, request, since, service.timeout()).await {
            Ok(response) => {
                lease.head(response.status().as_u16());
                return Ok((response, lease));
            }
            Err(error) => error,
        };
        if let Some(reason) = upload.and_then(Upload::trouble) {
            lease.give_up(reason);
            return Err(Failure {
                reason,
                error: Some(error),
            });
        }
        let failure = Failure {
            reason: Reason::of(&error),
            error: Some(error.clone()),
        };
        match kept
            .take()
            .filter(|_| error.never_reached_guest())
            .and_then(Kept::restore)
        {
            Some(again) => {
                lease.give_up(failure.reason);
                tried = Some((lease.upstream().id, failure));
                request = again;
            }
            None => {
                lease.fail(&*balancer.observer, &error, false);
                return Err(failure);
            }
        }
    }
}

/// One call under the deadline. A guest that answers without waiting costs no timer.
async fn call(
    lease: &Lease,
    request: Request,
    since: Instant,
    timeout: std::time::Duration,
) -> Result<Response, CallError> {
    let mut call = lease.instance().call(request);
    let first = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
    if let Poll::Ready(answered) = first {
        return answered;
    }
    let Some(deadline) = since.checked_add(timeout.saturating_add(TIMEOUT_SLACK)) else {
        return call.await;
    };
    tokio::time::timeout_at(deadline.into(), call)
        .await
        .unwrap_or(Err(CallError::Timeout(Limit::Timeout)))
}

/// What is needed to send a request again.
struct Kept {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    extensions: http::Extensions,
    body: KeptBody,
}

enum KeptBody {
    Empty,
    Full(Bytes),
    Slot(Arc<Mutex<Option<Body>>>),
}

impl Kept {
    /// Costs a copy of the head: done only where there is another replica to try.
    fn of(request: Request) -> (Request, Option<Self>) {
        let (parts, body) = request.into_parts();
        let (body, kept) = match body {
            Body::Empty | Body::Full(None) => (Body::Empty, KeptBody::Empty),
            Body::Full(Some(bytes)) => (Body::Full(Some(bytes.clone())), KeptBody::Full(bytes)),
            stream @ Body::Stream(_) => {
                let (body, slot) = Recoverable::split(stream);
                (body, KeptBody::Slot(slot))
            }
        };
        let head = Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            headers: parts.headers.clone(),
            extensions: parts.extensions.clone(),
            body: kept,
        };
        (http::Request::from_parts(parts, body), Some(head))
    }

    /// `None` when someone has read from the body.
    fn restore(self) -> Option<Request> {
        let body = match self.body {
            KeptBody::Empty => Body::Empty,
            KeptBody::Full(bytes) => Body::Full(Some(bytes)),
            KeptBody::Slot(slot) => slot.lock().unwrap_or_else(PoisonError::into_inner).take()?,
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        *request.extensions_mut() = self.extensions;
        Some(request)
    }
}

fn checked(
    balancer: &Balancer,
    method: &Method,
    head: &mut http::response::Parts,
    body: &Body,
    lease: &mut Lease,
) -> Result<Shape, CallError> {
    answer::check(method, head, body).map_err(|what| {
        let error = CallError::BadAnswer(what.into());
        lease.fail(&*balancer.observer, &error, false);
        error
    })
}

/// Who answers a call made inside this process.
#[derive(Clone)]
pub enum Choice {
    /// As a client's request: picked, queued, retried, counted.
    Any,
    /// This replica, counted; `busy` when it has no room.
    Upstream(Arc<Upstream>),
    /// This replica, whether it is in the routes or not (but not once it was removed), neither counted nor part of a trap run.
    Probe(Arc<Upstream>),
}

/// A call from inside this process: `narae call`, probes. The request needs a URI in origin-form; host and id are added when absent.
/// The answer's body holds the lease. Errors tell the reason and, when there is one, the call's own error.
#[expect(clippy::disallowed_methods, reason = "the data path measures its calls")]
pub async fn dispatch(
    balancer: &Arc<Balancer>,
    service: &Arc<Service>,
    choice: Choice,
    mut request: Request,
) -> Result<Response, Failure> {
    let since = Instant::now();
    let method = request.method().clone();
    let headers = request.headers_mut();
    if !headers.contains_key(HOST) {
        headers.insert(
            HOST,
            HeaderValue::from_str(service.name().as_str()).map_err(|_| Reason::BadHost)?,
        );
    }
    let id = request_id::take_or_make(headers);
    headers.insert(request_id::X_REQUEST_ID, id.clone());
    let (response, mut lease) = match choice {
        Choice::Any => deliver(balancer, service, request, since, None).await?,
        Choice::Upstream(upstream) => direct(balancer, service, &upstream, request, since, true).await?,
        Choice::Probe(upstream) => direct(balancer, service, &upstream, request, since, false).await?,
    };
    let (mut head, body) = response.into_parts();
    let shape = checked(balancer, &method, &mut head, &body, &mut lease).map_err(|error| Failure {
        reason: Reason::BadAnswer,
        error: Some(error),
    })?;
    answer::tag(&mut head.headers, id);
    Ok(http::Response::from_parts(
        head,
        Body::stream(Leased::new(body, shape, usize::MAX, lease, Arc::clone(balancer))),
    ))
}

async fn direct(
    balancer: &Balancer,
    service: &Arc<Service>,
    upstream: &Arc<Upstream>,
    request: Request,
    since: Instant,
    counted: bool,
) -> Result<(Response, Lease), Failure> {
    let mut lease = upstream.lease_by_name().ok_or(Reason::Busy)?;
    lease.begin(since, counted);
    match call(&lease, request, since, service.timeout()).await {
        Ok(response) => {
            lease.head(response.status().as_u16());
            Ok((response, lease))
        }
        Err(error) => {
            lease.fail(&*balancer.observer, &error, false);
            Err(Failure {
                reason: Reason::of(&error),
                error: Some(error),
            })
        }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(text, _) => Poll::Ready(text.take().map(|t| Ok(Frame::data(t)))),
            Self::Guest { body, pulls } => {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                if let Some(pulls) = pulls {
                    pulls.pulled(matches!(frame, Poll::Ready(Some(_))));
                }
                if let Poll::Ready(Some(Err(_))) = &frame {
                    body.home().conn().aborts();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text, _) => text.is_none(),
            Self::Guest { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text, _) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Self::Guest { body, .. } => body.size_hint(),
        }
    }
}

impl Home for Busy {
    fn balancer(&self) -> &Balancer {
        &self.conn().balancer
    }

    fn ended(&mut self, at: Instant) {
        self.set_end(at);
    }
}
