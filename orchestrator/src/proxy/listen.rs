//! The sockets: a thread and a runtime per core, each with its own listening socket on the same address. Knows nothing of HTTP.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Balancer;
use super::body::Pace;
use super::connection::{Conn, now, run};
use super::share::Shares;

/// After an accept failed for want of descriptors or memory: 20 tries a second cost nothing, and it is back within 50 ms.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks for idle connections while every slot is taken.
const FULL_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 1024;

/// A second set of addresses, where clients speak TLS.
#[derive(Clone)]
pub struct TlsOptions {
    pub listen: Vec<SocketAddr>,
    pub config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsOptions")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// How a server listens.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Data threads; 0: one per core.
    pub threads: usize,
    /// Open connections of all threads; more wait in the kernel's backlog. 0: a quarter of the descriptor limit.
    pub max_connections: usize,
    pub tls: Option<TlsOptions>,
    /// First byte and head of a request; the TLS handshake before it.
    pub header_timeout: Duration,
    /// Idle between requests.
    pub keep_alive: Duration,
    /// Bytes wait to be written and the client takes none.
    pub write_idle: Duration,
    /// Request bodies.
    pub body_pace: Pace,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            max_connections: 0,
            tls: None,
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            write_idle: Duration::from_secs(30),
            body_pace: Pace::default(),
        }
    }
}

/// Whether the server is ending, for its connections.
#[derive(Default)]
pub struct Closing {
    flag: AtomicBool,
    token: CancellationToken,
}

impl Closing {
    /// Cheap: asked at every poll.
    pub fn is_closed(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    pub async fn closed(&self) {
        self.token.cancelled().await;
    }

    /// `None` when the server ends first; what is ready at once is taken all the same.
    pub async fn unless_closed<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            out = future => Some(out),
            () = self.token.cancelled() => None,
        }
    }

    fn close(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.token.cancel();
    }
}

/// The data threads. Dropping it ends them and every connection at once; [`Server::drain`] first for a polite end.
pub struct Server {
    addresses: Vec<SocketAddr>,
    tls_addresses: Vec<SocketAddr>,
    handles: Vec<tokio::runtime::Handle>,
    closing: Arc<Closing>,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
    acceptors: TaskTracker,
    /// Open connections by thread.
    open: Vec<Arc<AtomicUsize>>,
    max_connections: u32,
}

impl Server {
    /// Listens on every address (port 0: one that is free) and serves `balancer`'s routes there.
    ///
    /// # Errors
    /// An address cannot be bound (`AddrInUse`: also when this program holds it already), or a thread or its runtime cannot be made.
    pub fn start(addresses: &[SocketAddr], balancer: Arc<Balancer>, options: ServerOptions) -> io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { cores() } else { options.threads };
        let max = if options.max_connections == 0 {
            quarter_of_descriptors()
        } else {
            options.max_connections
        };
        let max = u32::try_from(max).unwrap_or(u32::MAX).clamp(1, 1 << 28);

        let mut sockets: Vec<Vec<Door>> = (0..threads).map(|_| Vec::new()).collect();
        let bound = bind_all(addresses, &mut sockets, None)?;
        let tls_bound = match &options.tls {
            Some(tls) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
                bind_all(&tls.listen, &mut sockets, Some(&acceptor))?
            }
            None => Vec::new(),
        };
        let https = tls_bound.first().map_or(0, SocketAddr::port);
        balancer.https_port.store(https, Ordering::Relaxed);
        let mut server = Self {
            addresses: bound,
            tls_addresses: tls_bound,
            handles: Vec::new(),
            closing: Arc::default(),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(max as usize)),
            acceptors: TaskTracker::new(),
            open: (0..threads).map(|_| Arc::default()).collect(),
            max_connections: max,
        };
        let options = Arc::new(options);
        let shares = Arc::new(Shares::new(max as usize, now()));
        for (n, listeners) in sockets.into_iter().enumerate() {
            let shared = Shared {
                balancer: Arc::clone(&balancer),
                options: Arc::clone(&options),
                closing: Arc::clone(&server.closing),
                slots: Arc::clone(&server.slots),
                acceptors: server.acceptors.clone(),
                open: server.open.clone(),
                shares: Arc::clone(&shares),
                thread: n,
            };
            let stop = server.stop.clone();
            let (ready, started) = mpsc::sync_channel(1);
            std::thread::Builder::new()
                .name(format!("narae-data-{n}"))
                .spawn(move || data_thread(listeners, &shared, &stop, &ready))?;
            let handle = started
                .recv()
                .map_err(|_| io::Error::other("data thread ended at its start"))??;
            server.handles.push(handle);
        }
        Ok(server)
    }

    /// Where it listens, ports filled in.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it speaks TLS, ports filled in.
    pub fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls_addresses
    }

    /// A data runtime, for guest work that does not come from a socket.
    ///
    /// # Panics
    /// Never: a server has at least one data thread.
    pub fn handle(&self) -> &tokio::runtime::Handle {
        &self.handles[fastrand::usize(..self.handles.len())]
    }

    /// Open connections now.
    pub fn connections(&self) -> usize {
        sum(&self.open)
    }

    /// Stops accepting, asks every connection to end after the requests it has begun, and waits for that. True when all ended within
    /// `grace`; the rest goes when the server is dropped.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.closing.close();
        self.acceptors.close();
        let ended = async {
            self.acceptors.wait().await;
            self.slots.acquire_many(self.max_connections).await.is_ok()
        };
        tokio::time::timeout(grace, ended).await.unwrap_or(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.close();
        self.stop.cancel();
    }
}

struct Shared {
    balancer: Arc<Balancer>,
    options: Arc<ServerOptions>,
    closing: Arc<Closing>,
    slots: Arc<Semaphore>,
    acceptors: TaskTracker,
    open: Vec<Arc<AtomicUsize>>,
    shares: Arc<Shares>,
    thread: usize,
}

type Ready = mpsc::SyncSender<io::Result<tokio::runtime::Handle>>;

/// One listening socket of one thread.
type Door = (StdListener, Option<TlsAcceptor>);

/// A socket on each address for each thread; the addresses with their ports.
fn bind_all(
    addresses: &[SocketAddr],
    sockets: &mut [Vec<Door>],
    tls: Option<&TlsAcceptor>,
) -> io::Result<Vec<SocketAddr>> {
    let mut bound = Vec::new();
    for address in addresses {
        let first = listener(*address, false)?;
        // Sharing is for our own threads. The first listens alone, which the kernel grants to one process only, also when
        // two start in the same instant, and shares from then on.
        sockopt::set_socket_reuseport(&first, true)?;
        let actual = first.local_addr()?;
        bound.push(actual);
        let mut first = Some(first);
        for of_thread in &mut *sockets {
            let socket = first.take().map_or_else(|| listener(actual, true), Ok)?;
            of_thread.push((socket, tls.cloned()));
        }
    }
    Ok(bound)
}

fn data_thread(listeners: Vec<Door>, shared: &Shared, stop: &CancellationToken, ready: &Ready) {
    let started = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| {
            let _inside = runtime.enter();
            let listeners = listeners
                .into_iter()
                .map(|(listener, tls)| Ok((TcpListener::from_std(listener)?, tls)))
                .collect::<io::Result<Vec<_>>>()?;
            Ok((runtime, listeners))
        });
    let (runtime, listeners) = match started {
        Ok(started) => started,
        Err(error) => {
            // The starter has gone only if it failed itself.
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(runtime.handle().clone()));
    runtime.block_on(async {
        let accepting = listeners
            .into_iter()
            .map(|(listener, tls)| accept(listener, tls, shared));
        tokio::select! {
            _ = futures::future::join_all(accepting) => stop.cancelled().await,
            () = stop.cancelled() => {}
        }
    });
}

/// Accepts until the server ends; then takes what the kernel has accepted already, so that a drain refuses nobody.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: &Shared) {
    let _accepting = shared.acceptors.token();
    // Closed before the token is given up: after a drain the address is free.
    let listener = listener;
    loop {
        let Some(slot) = shared.closing.unless_closed(slot(shared)).await else {
            return;
        };
        let accepted = match shared.closing.unless_closed(listener.accept()).await {
            Some(accepted) => accepted,
            None => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (balancer, options) = (Arc::clone(&shared.balancer), Arc::clone(&shared.options));
                let (mine, shares) = (Arc::clone(&shared.open[shared.thread]), Arc::clone(&shared.shares));
                let conn = Conn::new(balancer, options, peer.ip(), tls.is_some(), mine, shares, slot);
                conn.enter(sum(&shared.open));
                tokio::spawn(run(stream, tls.clone(), conn, Arc::clone(&shared.closing)));
            }
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                drop(slot);
                shared.closing.unless_closed(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
}

/// A place for one more connection. While there is none, the idle ones of the greedy are asked to go.
async fn slot(shared: &Shared) -> OwnedSemaphorePermit {
    loop {
        match tokio::time::timeout(FULL_PAUSE, Arc::clone(&shared.slots).acquire_owned()).await {
            Ok(Ok(slot)) => return slot,
            Ok(Err(_closed)) => std::future::pending().await,
            Err(_elapsed) => shared.shares.relieve(sum(&shared.open)),
        }
    }
}

fn sum(counts: &[Arc<AtomicUsize>]) -> usize {
    counts.iter().map(|n| n.load(Ordering::Relaxed)).sum()
}

/// The connection broke before it was accepted: the next one is not concerned.
fn of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A listening socket; `shared`: with those of the other threads on the same address. Accepted sockets inherit no-delay and keep-alive.
fn listener(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn quarter_of_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    usize::try_from(limit.current.unwrap_or(1 << 16) / 4).unwrap_or(1 << 14)
}
