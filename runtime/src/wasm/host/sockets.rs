//! `wasi:sockets` for guests with `tcp://` grants: connections to exactly what is listed, and names looked up through our
//! own layer. The sockets themselves are wasmtime-wasi's; what is replaced here are the functions that cost something
//! or reach out: making a socket, connect, the lookup of names, and the end of a socket, which gives back what it held. In
//! 0.3 the streams of a socket outlive it: then what it held goes with the last of them. No listening, no binding, no UDP.
//!
//! A name is looked up by us, its addresses are checked and remembered for this instance, and a connection is checked
//! against the address that it goes to: a name that leads elsewhere a moment later gains nothing.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use wasmtime::component::{
    Access, Accessor, FutureConsumer, FutureReader, Linker, Resource, ResourceType, Source, StreamReader,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::p2;
use wasmtime_wasi::p2::bindings::sockets::network::{self as net02, ErrorCode};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::{DynPollable, Pollable};
use wasmtime_wasi::p3::bindings::sockets::types::{self as net03, HostTcpSocketWithStore as _};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSockets, WasiSocketsView as _};

use super::filesystem::share_of_descriptors;
use super::outbound::policy;
use super::outside::Outside;
use crate::guest::Outbound;
use crate::wasm::store::StoreData;

const TCP_02: &str = "wasi:sockets/tcp@0.2.12";
const CREATE_02: &str = "wasi:sockets/tcp-create-socket@0.2.12";
const LOOKUP_02: &str = "wasi:sockets/ip-name-lookup@0.2.12";
const TYPES_03: &str = "wasi:sockets/types@0.3.0";
const LOOKUP_03: &str = "wasi:sockets/ip-name-lookup@0.3.0";

/// Addresses of names that one instance remembers; the oldest go first.
const MAX_RESOLVED: usize = 64;
/// Sockets that one instance may have, connected or not: as many as its replica may have connections, within these.
const LEAST_SOCKETS: usize = 64;
const MOST_SOCKETS: usize = 256;
/// All guests together may have one of so many descriptors of this process for sockets.
const SOCKET_SHARE: u64 = 8;

/// What one replica may connect to, and how often at once.
#[derive(Clone)]
pub struct TcpGrants(Arc<Inner>);

struct Inner {
    policy: Outbound,
    outside: Arc<dyn Outside>,
    connections: Arc<Semaphore>,
}

impl TcpGrants {
    /// `None` where nothing is granted.
    pub fn of(policy: &Outbound, outside: &Arc<dyn Outside>) -> Option<Self> {
        let most = usize::try_from(policy.concurrent).unwrap_or(usize::MAX);
        policy::grants_tcp(policy).then(|| {
            Self(Arc::new(Inner {
                policy: policy.clone(),
                outside: Arc::clone(outside),
                connections: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            }))
        })
    }

    /// Until a connection stands, or a name is looked up.
    fn timeout(&self) -> Duration {
        self.0.policy.timeout
    }

    /// Addresses with the ports that `allow` lets this name through to; errors tell the guest why there are none.
    async fn look_up(&self, name: &str) -> Result<Vec<SocketAddr>, NoAddress> {
        let policy = &self.0.policy;
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut targets = policy::tcp_targets(policy, name).peekable();
        let Some(first) = targets.peek() else {
            return Err(NoAddress::Denied);
        };
        let deadline = Instant::now() + self.timeout();
        let looked_up = self.0.outside.resolve(name.to_owned(), first.port);
        let found = timeout_at(deadline, looked_up)
            .await
            .map_err(|_| NoAddress::TryAgain)?
            .map_err(|_: io::Error| NoAddress::Unknown)?;
        let mut open = Vec::new();
        for target in targets {
            let allowed = found.iter().map(SocketAddr::ip);
            let allowed = allowed.filter(|ip| policy::address_allowed(policy, target, *ip));
            open.extend(allowed.map(|ip| SocketAddr::new(ip.to_canonical(), target.port)));
        }
        if open.is_empty() {
            return Err(if found.is_empty() {
                NoAddress::Unknown
            } else {
                NoAddress::Denied
            });
        }
        Ok(open)
    }
}

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoAddress {
    /// Not granted, or only closed addresses.
    Denied,
    Unknown,
    TryAgain,
}

/// Of one instance.
#[derive(Default)]
pub struct TcpState {
    /// Where granted names led to.
    resolved: Arc<Mutex<Vec<SocketAddr>>>,
    /// For one more socket; made with the first.
    sockets: Option<Arc<Semaphore>>,
    /// By the socket's place in the resource table.
    held: HashMap<u32, Arc<Held>>,
}

/// What a socket holds until it and its streams are gone.
struct Held {
    _instance: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
    /// From its first attempt on, also when that came to nothing.
    connection: OnceLock<OwnedSemaphorePermit>,
}

type Checked = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

impl TcpState {
    /// Asked by wasmtime-wasi right before each system call that reaches out.
    pub fn check(&self, grants: &TcpGrants) -> impl Fn(SocketAddr, SocketAddrUse) -> Checked + Send + Sync + 'static {
        let (grants, resolved) = (grants.clone(), Arc::clone(&self.resolved));
        move |address, what| {
            let allowed = match what {
                SocketAddrUse::TcpConnect => {
                    policy::tcp_listed(&grants.0.policy, address) || remembered(&resolved, address)
                }
                // Every connect binds to some port of any address first.
                SocketAddrUse::TcpBind => address.ip().is_unspecified() && address.port() == 0,
                _ => false,
            };
            Box::pin(std::future::ready(allowed))
        }
    }

    /// Permission for one more socket, which is a descriptor from its first moment on.
    fn place(&mut self, grants: &TcpGrants) -> Option<Arc<Held>> {
        static PROCESS: LazyLock<Arc<Semaphore>> =
            LazyLock::new(|| Arc::new(Semaphore::new(share_of_descriptors(SOCKET_SHARE))));
        let most = usize::try_from(grants.0.policy.concurrent).unwrap_or(usize::MAX);
        let mine = self
            .sockets
            .get_or_insert_with(|| Arc::new(Semaphore::new(most.clamp(LEAST_SOCKETS, MOST_SOCKETS))));
        Some(Arc::new(Held {
            _instance: Arc::clone(mine).try_acquire_owned().ok()?,
            _process: Arc::clone(&PROCESS).try_acquire_owned().ok()?,
            connection: OnceLock::new(),
        }))
    }

    /// What a socket holds that has not tried to connect yet.
    fn unconnected(&self, socket: u32) -> Option<Arc<Held>> {
        let held = self.held.get(&socket)?;
        held.connection.get().is_none().then(|| Arc::clone(held))
    }

    fn remember(&self, addresses: &[SocketAddr]) {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved.retain(|known| !addresses.contains(known));
        resolved.extend(addresses);
        let surplus = resolved.len().saturating_sub(MAX_RESOLVED);
        resolved.drain(..surplus);
    }
}

fn remembered(resolved: &Mutex<Vec<SocketAddr>>, address: SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let resolved = resolved.lock().unwrap_or_else(PoisonError::into_inner);
    resolved.contains(&address)
}

/// A place among the connections, waited for until the deadline.
async fn permit(grants: &TcpGrants, deadline: Instant) -> Option<OwnedSemaphorePermit> {
    let place = Arc::clone(&grants.0.connections).acquire_owned();
    timeout_at(deadline, place).await.ok()?.ok()
}

/// Replaces what reaches out in 0.2. After `wasmtime_wasi::p2::add_to_linker_async`.
pub fn add_02(linker: &mut Linker<StoreData>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut tcp = linker.instance(TCP_02)?;
    tcp.func_wrap_async("[method]tcp-socket.start-connect", |store, params| {
        Box::new(async move {
            let (socket, network, address): (Resource<p2::TcpSocket>, Resource<p2::Network>, net02::IpSocketAddress) =
                params;
            Ok((start_connect(store, socket, network, address).await?,))
        })
    })?;
    tcp.resource("tcp-socket", ResourceType::host::<p2::TcpSocket>(), |mut store, rep| {
        let data = store.data_mut();
        p2::bindings::sockets::tcp::HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep))?;
        data.tcp.held.remove(&rep);
        Ok(())
    })?;
    linker.instance(CREATE_02)?.func_wrap(
        "create-tcp-socket",
        |mut store: StoreContextMut<'_, StoreData>, (family,): (net02::IpAddressFamily,)| {
            Ok((create_02(store.data_mut(), family)?,))
        },
    )?;
    let mut lookup = linker.instance(LOOKUP_02)?;
    lookup.func_wrap_async("resolve-addresses", |store, params| {
        Box::new(async move {
            let (network, name): (Resource<p2::Network>, String) = params;
            Ok((resolve_02(store, network, name).await?,))
        })
    })?;
    lookup.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: StoreContextMut<'_, StoreData>, (stream,): (Resource<Addresses>,)| {
            let next = store.data_mut().table.get_mut(&stream)?.0.next();
            Ok((Ok::<_, ErrorCode>(next.map(net02::IpAddress::from)),))
        },
    )?;
    lookup.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: StoreContextMut<'_, StoreData>, (stream,): (Resource<Addresses>,)| {
            let pollable: Resource<DynPollable> = p2::subscribe(&mut store.data_mut().table, stream)?;
            Ok((pollable,))
        },
    )?;
    lookup.resource(
        "resolve-address-stream",
        ResourceType::host::<Addresses>(),
        |mut store, rep| {
            store.data_mut().table.delete(Resource::<Addresses>::new_own(rep))?;
            Ok(())
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What a lookup found; always ready.
struct Addresses(std::vec::IntoIter<IpAddr>);

#[wasmtime_wasi::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {}
}

fn create_02(
    data: &mut StoreData,
    family: net02::IpAddressFamily,
) -> wasmtime::Result<Result<Resource<p2::TcpSocket>, ErrorCode>> {
    let Some(grants) = data.parts.tcp.clone() else {
        return Ok(Err(ErrorCode::AccessDenied));
    };
    let Some(held) = data.tcp.place(&grants) else {
        return Ok(Err(ErrorCode::NewSocketLimit));
    };
    match data.sockets().create_tcp_socket(family) {
        Ok(socket) => {
            data.tcp.held.insert(socket.rep(), held);
            Ok(Ok(socket))
        }
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

/// Connects before it returns: under our own deadline, and with a permit that the socket keeps, whatever comes of it. The
/// guest's `finish-connect` finds the connection standing.
async fn start_connect(
    mut store: StoreContextMut<'_, StoreData>,
    socket: Resource<p2::TcpSocket>,
    network: Resource<p2::Network>,
    address: net02::IpSocketAddress,
) -> wasmtime::Result<Result<(), ErrorCode>> {
    let data = store.data_mut();
    let Some(grants) = data.parts.tcp.clone() else {
        return Ok(Err(ErrorCode::AccessDenied));
    };
    let to = SocketAddr::from(address);
    if !policy::tcp_listed(&grants.0.policy, to) && !remembered(&data.tcp.resolved, to) {
        return Ok(Err(ErrorCode::AccessDenied));
    }
    let rep = socket.rep();
    let Some(held) = data.tcp.unconnected(rep) else {
        return Ok(Err(ErrorCode::InvalidState));
    };
    let deadline = Instant::now() + grants.timeout();
    let Some(permit) = permit(&grants, deadline).await else {
        return Ok(Err(ErrorCode::NewSocketLimit));
    };
    let _ = held.connection.set(permit);
    let started = data
        .sockets()
        .start_connect(Resource::new_borrow(rep), network, address);
    if let Err(error) = started {
        return Ok(Err(error.downcast()?));
    }
    let connecting = data.table.get_mut(&Resource::<p2::TcpSocket>::new_borrow(rep))?;
    if timeout_at(deadline, connecting.ready()).await.is_err() {
        return Ok(Err(ErrorCode::Timeout));
    }
    Ok(Ok(()))
}

async fn resolve_02(
    mut store: StoreContextMut<'_, StoreData>,
    network: Resource<p2::Network>,
    name: String,
) -> wasmtime::Result<Result<Resource<Addresses>, ErrorCode>> {
    let data = store.data_mut();
    data.table.get(&network)?;
    let found = match (literal(&name), data.parts.tcp.clone()) {
        (Some(ip), _) => vec![ip],
        (None, None) => return Ok(Err(ErrorCode::AccessDenied)),
        (None, Some(grants)) => match grants.look_up(&name).await {
            Ok(found) => {
                data.tcp.remember(&found);
                addresses(&found)
            }
            Err(NoAddress::Denied) => return Ok(Err(ErrorCode::AccessDenied)),
            Err(NoAddress::Unknown) => return Ok(Err(ErrorCode::NameUnresolvable)),
            Err(NoAddress::TryAgain) => return Ok(Err(ErrorCode::TemporaryResolverFailure)),
        },
    };
    Ok(Ok(data.table.push(Addresses(found.into_iter()))?))
}

/// An address is no name: nothing is looked up, and connecting is another question.
fn literal(name: &str) -> Option<IpAddr> {
    name.trim_matches(['[', ']']).parse().ok()
}

/// Each once, in order.
fn addresses(found: &[SocketAddr]) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for address in found {
        if !ips.contains(&address.ip()) {
            ips.push(address.ip());
        }
    }
    ips
}

type Socket03 = wasmtime_wasi::sockets::TcpSocket;

/// How a stream of a connection ended.
type End = Result<(), net03::ErrorCode>;
type Ended = FutureReader<End>;

/// Replaces what reaches out in 0.3. After `wasmtime_wasi::p3::add_to_linker`.
pub fn add_03(linker: &mut Linker<StoreData>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES_03)?;
    types.func_wrap_concurrent("[method]tcp-socket.connect", |accessor, params| {
        Box::pin(async move {
            let (socket, address): (Resource<Socket03>, net03::IpSocketAddress) = params;
            Ok((connect_03(accessor, socket, address).await?,))
        })
    })?;
    types.resource("tcp-socket", ResourceType::host::<Socket03>(), |mut store, rep| {
        let data = store.data_mut();
        net03::HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep))?;
        data.tcp.held.remove(&rep);
        Ok(())
    })?;
    types.func_wrap(
        "[static]tcp-socket.create",
        |mut store: StoreContextMut<'_, StoreData>, (family,): (net03::IpAddressFamily,)| {
            Ok((create_03(store.data_mut(), family)?,))
        },
    )?;
    types.func_wrap("[method]tcp-socket.send", |store, params| {
        let (socket, data): (Resource<Socket03>, StreamReader<u8>) = params;
        Ok((send_03(store, socket, data)?,))
    })?;
    types.func_wrap("[method]tcp-socket.receive", |store, params| {
        let (socket,): (Resource<Socket03>,) = params;
        Ok((receive_03(store, socket)?,))
    })?;
    let mut lookup = linker.instance(LOOKUP_03)?;
    lookup.func_wrap_concurrent("resolve-addresses", |accessor, params| {
        Box::pin(async move {
            let (name,): (String,) = params;
            Ok((resolve_03(accessor, name).await,))
        })
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

fn create_03(
    data: &mut StoreData,
    family: net03::IpAddressFamily,
) -> wasmtime::Result<Result<Resource<Socket03>, net03::ErrorCode>> {
    let Some(grants) = data.parts.tcp.clone() else {
        return Ok(Err(net03::ErrorCode::AccessDenied));
    };
    let Some(held) = data.tcp.place(&grants) else {
        return Ok(Err(net03::ErrorCode::Other(Some("too many sockets".into()))));
    };
    match net03::HostTcpSocket::create(&mut data.sockets(), family) {
        Ok(socket) => {
            data.tcp.held.insert(socket.rep(), held);
            Ok(Ok(socket))
        }
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

fn send_03(
    mut store: StoreContextMut<'_, StoreData>,
    socket: Resource<Socket03>,
    data: StreamReader<u8>,
) -> wasmtime::Result<Ended> {
    let held = store.data().tcp.held.get(&socket.rep()).cloned();
    let sockets = Access::<_, WasiSockets>::new(store.as_context_mut(), StoreData::sockets);
    let ended = WasiSockets::send(sockets, socket, data)?;
    keep_until(store, ended, held)
}

fn receive_03(
    mut store: StoreContextMut<'_, StoreData>,
    socket: Resource<Socket03>,
) -> wasmtime::Result<(StreamReader<u8>, Ended)> {
    let held = store.data().tcp.held.get(&socket.rep()).cloned();
    let sockets = Access::<_, WasiSockets>::new(store.as_context_mut(), StoreData::sockets);
    let (stream, ended) = WasiSockets::receive(sockets, socket)?;
    Ok((stream, keep_until(store, ended, held)?))
}

/// Keeps what the socket holds until its stream says how it ended, and passes that on. A stream that is dropped says so too.
fn keep_until(
    mut store: StoreContextMut<'_, StoreData>,
    ended: Ended,
    held: Option<Arc<Held>>,
) -> wasmtime::Result<Ended> {
    let (tell, told) = oneshot::channel();
    ended.pipe(&mut store, Keep(Some((tell, held))))?;
    FutureReader::new(store, async move { wasmtime::error::Ok(told.await.unwrap_or(Ok(()))) })
}

struct Keep(Option<(oneshot::Sender<End>, Option<Arc<Held>>)>);

impl FutureConsumer<StoreData> for Keep {
    type Item = End;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        store: StoreContextMut<'_, StoreData>,
        mut source: Source<'_, Self::Item>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut end = None;
        source.read(store, &mut end)?;
        if let (Some((tell, held)), Some(end)) = (self.0.take(), end) {
            drop(held);
            let _ = tell.send(end);
        }
        Poll::Ready(Ok(()))
    }
}

async fn connect_03(
    accessor: &Accessor<StoreData>,
    socket: Resource<Socket03>,
    address: net03::IpSocketAddress,
) -> wasmtime::Result<Result<(), net03::ErrorCode>> {
    let rep = socket.rep();
    let to = SocketAddr::from(address);
    let granted = accessor.with(|mut access| {
        let data = access.get();
        let grants = data.parts.tcp.clone()?;
        let allowed = policy::tcp_listed(&grants.0.policy, to) || remembered(&data.tcp.resolved, to);
        allowed.then(|| (grants, data.tcp.unconnected(rep)))
    });
    let Some((grants, held)) = granted else {
        return Ok(Err(net03::ErrorCode::AccessDenied));
    };
    let Some(held) = held else {
        return Ok(Err(net03::ErrorCode::InvalidState));
    };
    let deadline = Instant::now() + grants.timeout();
    let Some(permit) = permit(&grants, deadline).await else {
        return Ok(Err(net03::ErrorCode::Other(Some("too many connections".into()))));
    };
    let _ = held.connection.set(permit);
    let sockets = accessor.with_getter::<WasiSockets>(StoreData::sockets);
    match timeout_at(deadline, WasiSockets::connect(&sockets, socket, address)).await {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(error)) => Ok(Err(error.downcast()?)),
        Err(_) => Ok(Err(net03::ErrorCode::Timeout)),
    }
}

async fn resolve_03(
    accessor: &Accessor<StoreData>,
    name: String,
) -> Result<Vec<net03::IpAddress>, wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::ErrorCode> {
    use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::ErrorCode;
    if let Some(ip) = literal(&name) {
        return Ok(vec![ip.into()]);
    }
    let grants = accessor.with(|mut access| access.get().parts.tcp.clone());
    let Some(grants) = grants else {
        return Err(ErrorCode::AccessDenied);
    };
    let found = grants.look_up(&name).await.map_err(|why| match why {
        NoAddress::Denied => ErrorCode::AccessDenied,
        NoAddress::Unknown => ErrorCode::NameUnresolvable,
        NoAddress::TryAgain => ErrorCode::TemporaryResolverFailure,
    })?;
    accessor.with(|mut access| access.get().tcp.remember(&found));
    Ok(addresses(&found).into_iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::guest::Target;

    fn granted(targets: &[(&str, u16)], private: bool) -> TcpGrants {
        let allow = targets.iter().map(|(host, port)| Target {
            scheme: "tcp".into(),
            host: (*host).into(),
            port: *port,
        });
        let policy = Outbound {
            allow: allow.collect(),
            private,
            ..Outbound::default()
        };
        TcpGrants::of(&policy, &super::super::outside::real()).unwrap()
    }

    /// A function that is shadowed under a name that wasmtime-wasi does not have would leave its own in place.
    #[test]
    fn what_is_replaced_was_there() {
        let engine = wasmtime::Engine::new(&crate::engine::base_config(EngineKind::V03)).unwrap();
        let mut linker = Linker::<StoreData>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
        wasmtime_wasi::p3::add_to_linker(&mut linker).unwrap();
        for (instance, name) in [
            (TCP_02, "[method]tcp-socket.start-connect"),
            (CREATE_02, "create-tcp-socket"),
            (LOOKUP_02, "resolve-addresses"),
            (LOOKUP_02, "[method]resolve-address-stream.resolve-next-address"),
            (LOOKUP_02, "[method]resolve-address-stream.subscribe"),
            (TYPES_03, "[static]tcp-socket.create"),
            (TYPES_03, "[method]tcp-socket.connect"),
            (TYPES_03, "[method]tcp-socket.send"),
            (TYPES_03, "[method]tcp-socket.receive"),
            (LOOKUP_03, "resolve-addresses"),
        ] {
            let twice = linker.instance(instance).unwrap().func_wrap(name, |_, (): ()| Ok(()));
            assert!(twice.is_err(), "{instance} has no {name}");
        }
        for (instance, name) in [
            (TCP_02, "tcp-socket"),
            (LOOKUP_02, "resolve-address-stream"),
            (TYPES_03, "tcp-socket"),
        ] {
            let ty = ResourceType::host::<Addresses>();
            let twice = linker.instance(instance).unwrap().resource(name, ty, |_, _| Ok(()));
            assert!(twice.is_err(), "{instance} has no {name}");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_only_when_it_is_granted_and_leads_to_no_closed_address() {
        let closed = granted(&[("localhost", 5432)], false);
        assert_eq!(closed.look_up("localhost").await, Err(NoAddress::Denied));
        assert_eq!(closed.look_up("example.test").await, Err(NoAddress::Denied));
        let open = granted(&[("localhost", 5432), ("localhost", 6379)], true);
        let found = open.look_up("LOCALHOST.").await.unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback()) && found.iter().any(|a| a.port() == 6379));
    }

    #[tokio::test]
    async fn a_connection_goes_to_what_is_listed_or_was_looked_up_on_its_port() {
        let grants = granted(&[("10.20.0.5", 5432), ("db.test", 6379)], false);
        let state = TcpState::default();
        let check = state.check(&grants);
        let connect = |to: &str| check(to.parse().unwrap(), SocketAddrUse::TcpConnect);
        assert!(connect("10.20.0.5:5432").await);
        assert!(!connect("10.20.0.5:6379").await);
        assert!(!connect("93.184.216.34:6379").await);
        state.remember(&["93.184.216.34:6379".parse().unwrap()]);
        assert!(connect("93.184.216.34:6379").await && connect("[::ffff:93.184.216.34]:6379").await);
        assert!(!connect("93.184.216.34:5432").await);
        assert!(!check("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpListen).await);
        assert!(!check("127.0.0.1:80".parse().unwrap(), SocketAddrUse::TcpBind).await);
        for n in 0..=u16::try_from(MAX_RESOLVED).unwrap() {
            state.remember(&[SocketAddr::new("93.184.216.35".parse().unwrap(), n)]);
        }
        assert!(!connect("93.184.216.34:6379").await, "the oldest is forgotten");
    }

    struct Silent;

    impl crate::guest::LogSink for Silent {
        fn line(&self, _: crate::guest::Stream, _: &[u8]) {}
    }

    fn store(tcp: Option<TcpGrants>) -> wasmtime::Store<StoreData> {
        let engine = wasmtime::Engine::new(&crate::engine::base_config(EngineKind::V03)).unwrap();
        let parts = crate::wasm::store::Parts {
            label: "test".into(),
            grants: crate::guest::Grants::default(),
            config: std::iter::empty::<(String, String)>().collect(),
            key_values: crate::wasm::host::keyvalue::KeyValueCtx::new(std::collections::BTreeMap::new()),
            mounts: Vec::new(),
            tcp,
            logs: Arc::new(Silent),
            hooks: None,
            memory_bytes: 1 << 20,
            budget: crate::budget::Budget::new(1 << 30),
            outside: super::super::outside::real(),
            held: Arc::default(),
            cpu_ns: Arc::default(),
        };
        crate::wasm::store::make(&engine, &Arc::new(parts), None)
    }

    #[tokio::test]
    async fn sockets_are_counted_from_their_first_moment_on_and_none_is_made_without_a_grant() {
        let mut none = store(None);
        let refused = create_02(none.data_mut(), net02::IpAddressFamily::Ipv4).unwrap();
        assert_eq!(refused.unwrap_err(), ErrorCode::AccessDenied);
        let refused = create_03(none.data_mut(), net03::IpAddressFamily::Ipv4).unwrap();
        assert!(matches!(refused, Err(net03::ErrorCode::AccessDenied)));

        let mut some = store(Some(granted(&[("127.0.0.1", 1)], false)));
        let data = some.data_mut();
        let mut made: Vec<_> = (0..LEAST_SOCKETS)
            .map(|_| create_02(data, net02::IpAddressFamily::Ipv4).unwrap().unwrap())
            .collect();
        let refused = create_02(data, net02::IpAddressFamily::Ipv4).unwrap();
        assert_eq!(refused.unwrap_err(), ErrorCode::NewSocketLimit);
        assert!(create_03(data, net03::IpAddressFamily::Ipv4).unwrap().is_err());
        data.tcp.held.remove(&made.pop().unwrap().rep());
        create_03(data, net03::IpAddressFamily::Ipv4).unwrap().unwrap();
    }

    #[tokio::test]
    async fn in_02_an_attempt_that_ran_out_of_time_keeps_its_permit_as_long_as_its_socket() {
        use wasmtime_wasi::p2::bindings::sockets::instance_network::Host as _;
        use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        // Full after one: the next one waits.
        rustix::net::listen(&listener, 0).unwrap();
        let _first = std::net::TcpStream::connect(to).unwrap();
        let mut policy = granted(&[("127.0.0.1", to.port())], false).0.policy.clone();
        policy.timeout = Duration::from_millis(100);
        let grants = TcpGrants::of(&policy, &super::super::outside::real()).unwrap();
        let permits = Arc::clone(&grants.0.connections);
        let all = permits.available_permits();
        let mut store = store(Some(grants));
        let data = store.data_mut();
        let rep = create_02(data, net02::IpAddressFamily::Ipv4).unwrap().unwrap().rep();
        let network = data.sockets().instance_network().unwrap().rep();
        for why in [ErrorCode::Timeout, ErrorCode::InvalidState] {
            let (socket, network) = (Resource::new_borrow(rep), Resource::new_borrow(network));
            let started = start_connect(store.as_context_mut(), socket, network, to.into()).await;
            assert_eq!(started.unwrap().unwrap_err(), why);
            assert_eq!(permits.available_permits(), all - 1);
        }
        let data = store.data_mut();
        HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep)).unwrap();
        data.tcp.held.remove(&rep);
        assert_eq!(permits.available_permits(), all);
    }

    #[tokio::test]
    async fn in_03_a_permit_is_held_until_the_last_stream_is_gone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let grants = granted(&[("127.0.0.1", to.port())], false);
        let permits = Arc::clone(&grants.0.connections);
        let all = permits.available_permits();
        let mut store = store(Some(grants));
        let done = store.run_concurrent(async |accessor: &Accessor<StoreData>| {
            let family = net03::IpAddressFamily::Ipv4;
            let rep = accessor.with(|mut a| create_03(a.get(), family).unwrap().unwrap().rep());
            let connected = connect_03(accessor, Resource::new_borrow(rep), to.into())
                .await
                .unwrap();
            assert!(connected.is_ok(), "{connected:?}");
            let again = connect_03(accessor, Resource::new_borrow(rep), to.into())
                .await
                .unwrap();
            assert!(matches!(again, Err(net03::ErrorCode::InvalidState)));
            let (mut stream, mut ended) = accessor.with(|mut a| {
                let got = receive_03(a.as_context_mut(), Resource::new_borrow(rep)).unwrap();
                let data = a.get();
                net03::HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep)).unwrap();
                data.tcp.held.remove(&rep);
                got
            });
            assert_eq!(permits.available_permits(), all - 1, "the stream still holds it");
            accessor.with(|mut a| {
                stream.close(a.as_context_mut()).unwrap();
                ended.close(a.as_context_mut()).unwrap();
            });
            let back = async {
                while permits.available_permits() < all {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), back).await.is_ok()
        });
        assert!(done.await.unwrap());
    }
}
