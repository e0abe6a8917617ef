//! One accepted socket: HTTP/1 or 2 by its first bytes, under deadlines that cost a busy connection no timer. Knows no route.
//!
//! hyper's own deadlines are not used: its automatic builder has none for a silent connection or half an HTTP/2 preface, and its head
//! deadline is also its keep-alive. Here each connection has one lazy timer; what is due is read from a few plain facts when it fires.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures::task::AtomicWaker;
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use super::answer::Pulls;
use super::body::Pace;
use super::guard::{MAX_FIELDS, MAX_HEAD};
use super::listen::{Closing, ServerOptions};
use super::share::Shares;
use super::status::Reason;
use super::transport::Transport;
use super::walk::walk;
use super::{Balancer, framing};

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper's buffer per connection; the head's own limit is 32 KiB.
const MAX_BUFFER: usize = 64 << 10;
/// A connection that ends with unread bytes is read for so much and so long, or the kernel's reset would eat our last answer.
const LINGER_BYTES: u64 = 1 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);
/// After a GOAWAY for idleness.
const GOAWAY_TIME: Duration = Duration::from_secs(5);

/// The facts of one connection, shared by its socket, its requests and its deadline. One task writes them, or tasks of one thread.
pub struct Conn {
    pub(super) balancer: Arc<Balancer>,
    options: Arc<ServerOptions>,
    born: Instant,
    peer: HeaderValue,
    secure: bool,
    /// Connections of this thread.
    neighbours: Arc<AtomicUsize>,
    shares: Arc<Shares>,
    address: IpAddr,
    number: u64,
    /// Asked to close because it is idle and its address holds too many.
    evicted: AtomicBool,
    task: AtomicWaker,
    http2: AtomicBool,
    /// Requests not yet fully answered.
    busy: AtomicU32,
    /// When `busy` fell to 0 lately, in ms since `born`.
    idle_since: AtomicU64,
    /// HTTP/1: bytes of a head have come, and no request of them yet.
    head_open: AtomicBool,
    head_since: AtomicU64,
    /// Bytes wait to be written and the socket takes none.
    write_blocked: AtomicBool,
    write_since: AtomicU64,
    /// Ends with bytes that nobody read.
    unread: AtomicBool,
    /// An answer was cut: where the end of the connection would pass for its end, reset instead.
    aborted: AtomicBool,
    /// What the raw bytes tell about request heads (HTTP/1).
    framing: Mutex<framing::Verdicts>,
    /// HTTP/2: the watch of the stream that is being spawned.
    handoff: Mutex<Option<Arc<Pulls>>>,
    /// Held until the socket is closed.
    _slot: tokio::sync::OwnedSemaphorePermit,
}

/// "Not set" for the times above.
const UNSET: u64 = u64::MAX;

impl Conn {
    pub(super) fn new(
        balancer: Arc<Balancer>,
        options: Arc<ServerOptions>,
        address: IpAddr,
        secure: bool,
        neighbours: Arc<AtomicUsize>,
        shares: Arc<Shares>,
        slot: tokio::sync::OwnedSemaphorePermit,
    ) -> Arc<Self> {
        neighbours.fetch_add(1, Ordering::Relaxed);
        let address = address.to_canonical();
        let peer = HeaderValue::from_str(&address.to_string());
        let number = shares.number();
        Arc::new(Self {
            balancer,
            options,
            born: now(),
            peer: peer.unwrap_or(HeaderValue::from_static("unknown")),
            secure,
            neighbours,
            shares,
            address,
            number,
            evicted: AtomicBool::new(false),
            task: AtomicWaker::new(),
            http2: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_open: AtomicBool::new(true),
            head_since: AtomicU64::new(0),
            write_blocked: AtomicBool::new(false),
            write_since: AtomicU64::new(UNSET),
            unread: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            framing: Mutex::default(),
            handoff: Mutex::default(),
            _slot: slot,
        })
    }

    /// Known to its server from now on. `open`: connections of all threads.
    pub(super) fn enter(self: &Arc<Self>, open: usize) {
        self.shares.enter(self.address, self.number, self, open, self.born);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// The client's address, as a field value.
    pub(super) fn peer(&self) -> &HeaderValue {
        &self.peer
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// `https` or `http`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub(super) fn pace(&self) -> Pace {
        self.options.body_pace
    }

    /// Other connections on this thread.
    pub(super) fn has_neighbours(&self) -> bool {
        self.neighbours.load(Ordering::Relaxed) > 1
    }

    pub(super) fn ends_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    pub(super) fn aborts(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// What the raw bytes of the request that was just parsed are refused for. Called once per request, in order.
    pub(super) fn framing(&self) -> Option<Reason> {
        if self.http2.load(Ordering::Relaxed) {
            return None;
        }
        let bad = self.framing.lock().unwrap_or_else(PoisonError::into_inner).next();
        bad.then_some(Reason::BadFraming)
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// What is due when, from the facts as they are now. Looks at the clock only when a new wait begins.
    fn due(&self) -> Option<(Instant, Due)> {
        let since = |cell: &AtomicU64| match cell.load(Ordering::Relaxed) {
            UNSET => {
                let ms = self.ms(now());
                cell.store(ms, Ordering::Relaxed);
                ms
            }
            ms => ms,
        };
        let options = &self.options;
        let (from, wait, due) = if self.write_blocked.load(Ordering::Relaxed) {
            (since(&self.write_since), options.write_idle, Due::Cut)
        } else if self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        } else if self.head_open.load(Ordering::Relaxed) {
            (since(&self.head_since), options.header_timeout, Due::Cut)
        } else {
            (self.idle_since.load(Ordering::Relaxed), options.keep_alive, Due::Close)
        };
        Some((self.born + Duration::from_millis(from) + wait, due))
    }

    fn began(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_open.store(false, Ordering::Relaxed);
        self.head_since.store(UNSET, Ordering::Relaxed);
    }

    fn ended(&self, at: Instant) {
        self.idle_since.store(self.ms(at), Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.shares.leave(self.address, self.number);
        self.neighbours.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happens when a deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The peer is slow: end it.
    Cut,
    /// It is idle: end it politely.
    Close,
}

/// One request of a connection that is not fully answered.
pub struct Busy {
    conn: Arc<Conn>,
    end: Option<Instant>,
}

impl Busy {
    pub(super) fn begin(conn: Arc<Conn>) -> Self {
        conn.began();
        Self { conn, end: None }
    }

    pub(super) fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// When the answer ended, if someone has looked at the clock for it.
    pub(super) fn set_end(&mut self, at: Instant) {
        self.end = Some(at);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.conn.ended(self.end.unwrap_or_else(now));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the data path keeps the deadlines of its connections"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Counts a panic of the task it lives in.
pub struct PanicCounter(pub Arc<Balancer>);

impl Drop for PanicCounter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.caught_panic();
        }
    }
}

/// Serves one socket to its end.
pub async fn run(stream: TcpStream, tls: Option<TlsAcceptor>, conn: Arc<Conn>, closing: Arc<Closing>) {
    let _panics = PanicCounter(Arc::clone(&conn.balancer));
    let opening = tokio::time::timeout(conn.options.header_timeout, open(stream, tls));
    let Ok(Some((stream, prefix, is_http2))) = closing.unless_closed(opening).await.unwrap_or(Ok(None)) else {
        return;
    };
    let io = TokioIo::new(Io {
        stream: Some(stream),
        prefix,
        conn: Arc::clone(&conn),
        scanner: framing::Scanner::default(),
    });
    if is_http2 {
        conn.http2.store(true, Ordering::Relaxed);
        conn.head_open.store(false, Ordering::Relaxed);
        conn.idle_since.store(conn.ms(now()), Ordering::Relaxed);
        let service = service_fn(|request| {
            let pulls = Arc::new(Pulls::default());
            *conn.handoff.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pulls));
            walk(Arc::clone(&conn), Some(pulls), request)
        });
        drive(http2_builder(&conn).serve_connection(io, service), &conn, &closing).await;
    } else {
        let service = service_fn(|request| walk(Arc::clone(&conn), None, request));
        drive(http1_builder().serve_connection(io, service), &conn, &closing).await;
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_headers(MAX_FIELDS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER);
    builder
}

fn http2_builder(conn: &Arc<Conn>) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams(Arc::clone(conn)));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(1 << 20)
        .max_header_list_size(16 << 10)
        .max_send_buf_size(64 << 10)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .keep_alive_interval(conn.options.keep_alive / 2)
        .keep_alive_timeout(conn.options.header_timeout);
    builder
}

/// The transport, the bytes read from it so far, and whether the peer speaks HTTP/2. `None`: it left, or its handshake failed.
async fn open(mut stream: TcpStream, tls: Option<TlsAcceptor>) -> Option<(Transport, Bytes, bool)> {
    match tls {
        // Boxed: a plain connection does not pay for what a handshake needs.
        Some(tls) => {
            let stream = Box::new(Box::pin(tls.accept(stream)).await.ok()?);
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some((Transport::Tls(stream), Bytes::new(), is_http2))
        }
        None => {
            let (prefix, is_http2) = sniff(&mut stream).await?;
            Some((Transport::Plain(stream), prefix, is_http2))
        }
    }
}

/// The first bytes, and whether they are the HTTP/2 preface. `None`: the peer left.
async fn sniff(stream: &mut TcpStream) -> Option<(Bytes, bool)> {
    stream.readable().await.ok()?;
    let mut bytes = BytesMut::with_capacity(2048);
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let seen = bytes.len().min(PREFACE.len());
        if bytes[..seen] != PREFACE[..seen] {
            return Some((bytes.freeze(), false));
        }
        if seen == PREFACE.len() {
            return Some((bytes.freeze(), true));
        }
    }
}

/// Polls a connection to its end, under its deadlines, and asks it to end when the server does.
async fn drive<C>(connection: C, conn: &Conn, closing: &Closing)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = std::pin::pin!(connection);
    let mut closed = std::pin::pin!(closing.closed());
    let mut alarm: Pin<&mut Sleep> = std::pin::pin!(tokio::time::sleep(conn.options.keep_alive));
    let (mut armed, mut registered, mut asked) = (None, false, false);
    let mut give_up: Option<Instant> = None;
    std::future::poll_fn(|cx| {
        // Before the answer is written if one is due, so that it says so; else after a last look for a request on its way.
        if closing.is_closed() && !asked && conn.busy.load(Ordering::Relaxed) > 0 {
            asked = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            if result.is_err() {
                conn.ends_unread();
            }
            return Poll::Ready(());
        }
        if !asked && (closing.is_closed() || (!registered && register(closed.as_mut(), cx).is_ready())) {
            asked = true;
            connection.as_mut().graceful_shutdown();
            // What ends at once (an idle connection) says so when it is polled again.
            cx.waker().wake_by_ref();
        }
        if !registered {
            registered = true;
            conn.task.register(cx.waker());
        }
        if conn.evicted.load(Ordering::Relaxed) && conn.is_idle() {
            return Poll::Ready(());
        }
        loop {
            let due = match give_up {
                Some(at) => Some((at, Due::Cut)),
                None => conn.due(),
            };
            let Some((at, due)) = due else { return Poll::Pending };
            let rung = armed.is_some() && alarm.is_elapsed();
            if !rung && armed.is_some_and(|armed| armed <= at) {
                return Poll::Pending;
            }
            if at > now() {
                alarm.as_mut().reset(at.into());
                armed = Some(at);
                if register(alarm.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if due == Due::Cut {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
            give_up = Some(now() + GOAWAY_TIME);
        }
    })
    .await;
}

/// Polls once so that the task is woken later. Outside tokio's budget: a task that has used it up would be told `Pending` without being
/// registered, and would not ask again.
fn register<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    std::pin::pin!(tokio::task::unconstrained(future)).poll(cx)
}

/// Spawns the streams of one HTTP/2 connection, each under a watch.
#[derive(Clone)]
struct Streams(Arc<Conn>);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let pulls = self.0.handoff.lock().unwrap_or_else(PoisonError::into_inner).take();
        let panics = PanicCounter(Arc::clone(&self.0.balancer));
        let wait = self.0.options.write_idle;
        tokio::spawn(async move {
            let _panics = panics;
            match pulls {
                Some(pulls) => watch(stream, &pulls, wait).await,
                None => stream.await,
            }
        });
    }
}

/// Ends a stream whose bytes wait for the client's window for `wait`, with no byte taken. A body that waits for its guest is left alone.
async fn watch(stream: impl Future<Output = ()>, pulls: &Pulls, wait: Duration) {
    let mut stream = std::pin::pin!(stream);
    let mut alarm: Option<(u32, Pin<Box<Sleep>>)> = None;
    std::future::poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let seen = pulls.get();
        if !Pulls::blocked(seen) {
            alarm = None;
            return Poll::Pending;
        }
        match &mut alarm {
            Some((then, alarm)) if *then == seen => alarm.as_mut().poll(cx),
            _ => {
                let (_, alarm) = alarm.insert((seen, Box::pin(tokio::time::sleep(wait))));
                alarm.as_mut().poll(cx)
            }
        }
    })
    .await;
}

/// The socket as hyper sees it: first the sniffed bytes, and notes for the deadlines.
struct Io {
    /// `None` only while dropping.
    stream: Option<Transport>,
    prefix: Bytes,
    conn: Arc<Conn>,
    scanner: framing::Scanner,
}

impl Io {
    fn stream(&mut self) -> Pin<&mut Transport> {
        Pin::new(self.stream.as_mut().expect("the stream is there until drop"))
    }

    fn came(&mut self, bytes: &[u8]) {
        let conn = &self.conn;
        if bytes.is_empty() || conn.http2.load(Ordering::Relaxed) {
            return;
        }
        if conn.busy.load(Ordering::Relaxed) == 0 {
            conn.head_open.store(true, Ordering::Relaxed);
        }
        self.scanner
            .read(bytes, &mut conn.framing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        let blocked = written.is_pending();
        if !blocked {
            self.conn.write_since.store(UNSET, Ordering::Relaxed);
        }
        self.conn.write_blocked.store(blocked, Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.prefix.is_empty() {
            match this.stream().poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        } else {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..n]);
            this.prefix.advance(n);
            if this.prefix.is_empty() {
                this.prefix = Bytes::new();
            }
        }
        this.came(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = self.stream().poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = self.stream().poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.conn.secure {
            return Poll::Ready(Ok(())); // a socket keeps nothing back
        }
        let flushed = self.stream().poll_flush(cx);
        self.wrote(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        if self.conn.aborted.load(Ordering::Relaxed) {
            // A reset, not an end: RFC 9112 section 8 lets an HTTP/1.0 body end with its connection.
            let reset = rustix::net::sockopt::set_socket_linger(stream.tcp(), Some(Duration::ZERO));
            drop((reset, stream));
        } else if self.conn.unread.load(Ordering::Relaxed) {
            let conn = Arc::clone(&self.conn);
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    let lingered = tokio::time::timeout(LINGER_TIME, linger(stream)).await;
                    drop((lingered, conn));
                });
            }
        }
    }
}

/// Says that no more comes, then reads what is on its way, so that the peer gets our last answer instead of a reset.
async fn linger(mut stream: Transport) {
    use tokio::io::AsyncWriteExt;
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut left = LINGER_BYTES;
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        match left.checked_sub(n as u64) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection costs its task, hyper's buffers and little else: 8 KiB is the bar for all of it.
    #[tokio::test]
    async fn a_connection_task_is_small() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (balancer, options) = (crate::proxy::tests::balancer(), Arc::default());
        let slot = Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let shares = Arc::new(Shares::new(1, now()));
        let conn = Conn::new(
            balancer,
            options,
            IpAddr::from([127, 0, 0, 1]),
            false,
            Arc::default(),
            shares,
            slot,
        );
        let task = run(stream, None, conn, Arc::default());
        assert!(
            std::mem::size_of_val(&task) <= 4096,
            "{} bytes",
            std::mem::size_of_val(&task)
        );
    }
}
