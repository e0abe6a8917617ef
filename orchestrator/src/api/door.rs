//! The two doors of the admin API: a Unix socket (mode 0660, the file's owner and group are the permission) and, when
//! configured, TCP on loopback with a token. Both under deadlines and a connection cap, so that the API itself can not be
//! used to exhaust the daemon.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::IntoResponse;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::Refused;
use super::auth::{Token, Verdict, host_is_ours, origin_is_ours};
use super::capabilities::Caller;
use crate::clock::Clock;
use crate::config::Code;

/// Connections at once on each door.
const CONNECTIONS: usize = 256;
/// For the head of a request, and between two pieces of its body; also how long a connection may sit idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes wait to be written and the client takes none. A follower of logs or events that just has nothing to hear is not cut by it.
const WRITE_IDLE: Duration = Duration::from_secs(30);
/// Linux's `sun_path` less its end.
const SOCKET_PATH_BYTES: usize = 107;

/// Both doors, bound but not yet open.
pub struct Door {
    socket: UnixListener,
    path: SocketFile,
    tcp: Option<(TcpListener, SocketAddr)>,
}

/// The socket's name in the file system, taken away with its owner: a start that fails later leaves none behind.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Door {
    /// Binds the socket (an old file without a daemon behind it is replaced) and, with an address, the TCP listener.
    pub async fn bind(path: &Path, tcp: Option<SocketAddr>) -> std::io::Result<Self> {
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            let text = format!(
                "socket path is {} bytes, more than {SOCKET_PATH_BYTES}",
                path.as_os_str().len()
            );
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidFilename, text));
        }
        if path.exists() {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::ResourceBusy,
                    "another narae runs on this data directory",
                ));
            }
            std::fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        let tcp = match tcp {
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|e| std::io::Error::new(e.kind(), format!("admin.listen {address}: {e}")))?;
                let address = listener.local_addr()?;
                Some((listener, address))
            }
            None => None,
        };
        Ok(Self {
            socket,
            path: file,
            tcp,
        })
    }

    /// Where the TCP door is, if there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `stop`, then takes the socket file away.
    pub async fn serve(self, router: Router, token: Arc<Token>, clock: Clock, stop: CancellationToken) {
        // Each door has its own: strangers on TCP never lock the socket's owner out.
        let slots = || Arc::new(Semaphore::new(CONNECTIONS));
        let socket = accept(self.socket, router.clone(), slots(), stop.clone());
        let tcp = async {
            if let Some((listener, address)) = self.tcp {
                accept(
                    listener,
                    guarded(router, token, clock, address.port()),
                    slots(),
                    stop.clone(),
                )
                .await;
            }
        };
        tokio::join!(socket, tcp);
        drop(self.path);
    }
}

/// What both listeners do.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;

    /// Who is at the other end.
    fn caller(stream: &Self::Stream) -> Caller;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    fn caller(stream: &Self::Stream) -> Caller {
        stream
            .peer_cred()
            .map_or(Caller::Unknown, |peer| Caller::Uid(peer.uid()))
    }

    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    /// The door's guard lets nobody in without the token.
    fn caller(_: &Self::Stream) -> Caller {
        Caller::Token
    }

    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

async fn accept<A: Accept>(listener: A, router: Router, slots: Arc<Semaphore>, stop: CancellationToken) {
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.next() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let caller = A::caller(&stream);
                drop(tokio::spawn(connection(
                    stream,
                    caller,
                    router.clone(),
                    stop.clone(),
                    slot,
                    WRITE_IDLE,
                )));
            }
            // Out of descriptors: a pause, so that this does not spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    caller: Caller,
    router: Router,
    stop: CancellationToken,
    slot: tokio::sync::OwnedSemaphorePermit,
    write_idle: Duration,
) {
    let slot = Arc::new(slot);
    let held = Arc::clone(&slot);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (router, held) = (router.clone(), Arc::clone(&held));
        async move {
            let mut request = request;
            request.extensions_mut().insert(caller);
            let only_reads = matches!(*request.method(), Method::GET | Method::HEAD);
            let answer = router.oneshot(request.map(|body| axum::body::Body::new(Paced::new(body))));
            if only_reads {
                return answer.await;
            }
            // A client that leaves does not stop a change half-way. The slot is taken until the change has ended.
            let change = tokio::spawn(async move {
                let answered = answer.await;
                drop(held);
                answered
            });
            change
                .await
                .unwrap_or_else(|_| Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response()))
        }
    });
    let stream = Written::new(stream, write_idle);
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(100)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(served);
    tokio::select! {
        result = &mut served => {
            if let Err(error) = result {
                tracing::debug!(error = %error, "admin connection ended");
            }
        }
        // Followers never end by themselves; what is being answered gets a moment.
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(1), served).await;
        }
    }
    drop(slot);
}

/// A connection that ends when its client takes nothing of what waits for it for so long.
struct Written<S> {
    stream: S,
    idle: Duration,
    /// Runs while a write waits.
    until: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> Written<S> {
    fn new(stream: S, idle: Duration) -> Self {
        let until = None;
        Self { stream, idle, until }
    }

    fn judged<T>(&mut self, cx: &mut Context<'_>, polled: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if polled.is_ready() {
            self.until = None;
            return polled;
        }
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.idle)));
        until
            .as_mut()
            .poll(cx)
            .map(|()| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Written<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Written<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judged(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judged(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        // Flushing what was written whole says nothing of a write that waits.
        if polled.is_ready() {
            polled
        } else {
            self.judged(cx, polled)
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request body that is given up when nothing of it comes for [`HEAD_TIMEOUT`].
struct Paced {
    body: hyper::body::Incoming,
    until: Pin<Box<tokio::time::Sleep>>,
}

impl Paced {
    fn new(body: hyper::body::Incoming) -> Self {
        Self {
            body,
            until: Box::pin(tokio::time::sleep(HEAD_TIMEOUT)),
        }
    }
}

impl hyper::body::Body for Paced {
    type Data = bytes::Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let next = tokio::time::Instant::now() + HEAD_TIMEOUT;
            self.until.as_mut().reset(next);
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        self.until
            .as_mut()
            .poll(cx)
            .map(|()| Some(Err("the body stopped coming".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// The TCP door's guard: our own host and origin, and the token (health needs none).
fn guarded(router: Router, token: Arc<Token>, clock: Clock, port: u16) -> Router {
    router.layer(axum::middleware::from_fn(
        move |request: axum::extract::Request, next: axum::middleware::Next| {
            let (token, clock) = (Arc::clone(&token), clock.clone());
            async move {
                let headers = request.headers();
                let text = |name| {
                    headers
                        .get(name)
                        .and_then(|v: &axum::http::HeaderValue| v.to_str().ok())
                };
                if !host_is_ours(text(header::HOST), port) || !origin_is_ours(text(header::ORIGIN), port) {
                    let text = "this door answers to loopback names only, and to no other site's pages";
                    return Refused::new(StatusCode::FORBIDDEN, Code::Unauthorized, text).into_response();
                }
                if request.uri().path() == "/healthz" {
                    return next.run(request).await;
                }
                let given = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
                let verdict = token.judge(given, clock.monotonic());
                match verdict {
                    Verdict::Right => next.run(request).await,
                    Verdict::Wrong => {
                        let help = Some("the token is in the file `admin.token` of the data directory".to_owned());
                        Refused::with_help(
                            StatusCode::UNAUTHORIZED,
                            Code::Unauthorized,
                            "a valid bearer token is needed here",
                            help,
                        )
                        .into_response()
                    }
                    Verdict::TooMany => {
                        let refused = Refused::new(
                            StatusCode::TOO_MANY_REQUESTS,
                            Code::TooManyGuesses,
                            "too many wrong tokens",
                        );
                        ([(header::RETRY_AFTER, "1")], refused).into_response()
                    }
                }
            }
        },
    ))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const IDLE: Duration = Duration::from_millis(40);

    /// An answer larger than the pipe, and lines that come slower than a write may wait.
    fn answers() -> Router {
        let lines = || async {
            let lines = futures::stream::unfold(0, |n| async move {
                tokio::time::sleep(IDLE * 3).await;
                (n < 3).then(|| (Ok::<_, std::io::Error>("line\n"), n + 1))
            });
            axum::body::Body::from_stream(lines)
        };
        Router::new()
            .route("/large", axum::routing::get(|| async { "x".repeat(1 << 20) }))
            .route("/lines", axum::routing::get(lines))
    }

    async fn ask(path: &str) -> (tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
        let (mut client, server) = tokio::io::duplex(1024);
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let (stop, caller) = (CancellationToken::new(), Caller::Token);
        let served = tokio::spawn(connection(server, caller, answers(), stop, slot, IDLE));
        let head = format!("GET {path} HTTP/1.1\r\nhost: narae\r\nconnection: close\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        (client, served)
    }

    #[tokio::test]
    async fn a_change_whose_client_leaves_is_made_and_holds_its_slot_until_then() {
        let (go, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let change = {
            let (go, began) = (Arc::clone(&go), Arc::clone(&began));
            move || async move {
                began.add_permits(1);
                let _ = go.acquire().await;
                began.add_permits(1);
            }
        };
        let router = Router::new().route("/change", axum::routing::post(change));
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        let (mut client, server) = tokio::io::duplex(1024);
        let (stop, caller) = (CancellationToken::new(), Caller::Token);
        let served = tokio::spawn(connection(server, caller, router, stop, slot, IDLE));
        let head = b"POST /change HTTP/1.1\r\nhost: narae\r\ncontent-length: 0\r\n\r\n";
        client.write_all(head).await.unwrap();
        began.acquire().await.unwrap().forget();
        drop(client);
        served.await.unwrap();
        assert_eq!(slots.available_permits(), 0, "the change goes on");
        go.add_permits(1);
        began.acquire().await.unwrap().forget();
        let bound = Duration::from_secs(30);
        drop(
            tokio::time::timeout(bound, slots.acquire())
                .await
                .expect("it ends")
                .unwrap(),
        );
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut() {
        let (client, served) = ask("/large").await;
        let bound = Duration::from_secs(30);
        tokio::time::timeout(bound, served).await.expect("it ends").unwrap();
        drop(client);
    }

    #[tokio::test]
    async fn a_stream_that_has_nothing_to_say_is_not_cut() {
        let (mut client, _served) = ask("/lines").await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.matches("line\n").count(), 3, "{answer}");
    }
}
