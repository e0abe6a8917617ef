//! `wasi:sockets` for guests with `tcp://` grants: connections to exactly what is listed, and names looked up through our
//! own layer. The sockets themselves are wasmtime-wasi's; what is replaced here are the functions that reach out: connect,
//! the lookup of names, and the end of a socket, which gives its permit back. No listening, no binding, no UDP.
//!
//! A name is looked up by us, its addresses are checked and remembered for this instance, and a connection is checked
//! against the address that it goes to: a name that leads elsewhere a moment later gains nothing.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::p2;
use wasmtime_wasi::p2::bindings::sockets::network::{self as net02, ErrorCode};
use wasmtime_wasi::p2::bindings::sockets::tcp::HostTcpSocket as _;
use wasmtime_wasi::p2::{DynPollable, Pollable};
use wasmtime_wasi::p3::bindings::sockets::types::{self as net03, HostTcpSocketWithStore as _};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSockets, WasiSocketsView as _};

use super::outbound::policy;
use super::outside::Outside;
use crate::guest::Outbound;
use crate::wasm::store::StoreData;

const TCP_02: &str = "wasi:sockets/tcp@0.2.12";
const LOOKUP_02: &str = "wasi:sockets/ip-name-lookup@0.2.12";
const TYPES_03: &str = "wasi:sockets/types@0.3.0";
const LOOKUP_03: &str = "wasi:sockets/ip-name-lookup@0.3.0";

/// Addresses of names that one instance remembers; the oldest go first.
const MAX_RESOLVED: usize = 64;

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
    /// By the socket's place in the resource table.
    permits: HashMap<u32, OwnedSemaphorePermit>,
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
        data.tcp.permits.remove(&rep);
        p2::bindings::sockets::tcp::HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep))
    })?;
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

/// Connects before it returns: under our own deadline, and with a permit that the socket keeps. The guest's `finish-connect`
/// finds the connection standing.
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
    let deadline = Instant::now() + grants.timeout();
    let Some(permit) = permit(&grants, deadline).await else {
        return Ok(Err(ErrorCode::NewSocketLimit));
    };
    let rep = socket.rep();
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
    data.tcp.permits.insert(rep, permit);
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

/// Replaces what reaches out in 0.3. After `wasmtime_wasi::p3::add_to_linker`.
pub fn add_03(linker: &mut Linker<StoreData>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES_03)?;
    types.func_wrap_concurrent("[method]tcp-socket.connect", |accessor, params| {
        Box::pin(async move {
            let (socket, address): (Resource<wasmtime_wasi::sockets::TcpSocket>, net03::IpSocketAddress) = params;
            Ok((connect_03(accessor, socket, address).await?,))
        })
    })?;
    types.resource(
        "tcp-socket",
        ResourceType::host::<wasmtime_wasi::sockets::TcpSocket>(),
        |mut store, rep| {
            let data = store.data_mut();
            data.tcp.permits.remove(&rep);
            net03::HostTcpSocket::drop(&mut data.sockets(), Resource::new_own(rep))
        },
    )?;
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

async fn connect_03(
    accessor: &Accessor<StoreData>,
    socket: Resource<wasmtime_wasi::sockets::TcpSocket>,
    address: net03::IpSocketAddress,
) -> wasmtime::Result<Result<(), net03::ErrorCode>> {
    let rep = socket.rep();
    let to = SocketAddr::from(address);
    let granted = accessor.with(|mut access| {
        let data = access.get();
        let grants = data.parts.tcp.clone()?;
        let allowed = policy::tcp_listed(&grants.0.policy, to) || remembered(&data.tcp.resolved, to);
        allowed.then_some(grants)
    });
    let Some(grants) = granted else {
        return Ok(Err(net03::ErrorCode::AccessDenied));
    };
    let deadline = Instant::now() + grants.timeout();
    let Some(permit) = permit(&grants, deadline).await else {
        return Ok(Err(net03::ErrorCode::Other(Some("too many connections".into()))));
    };
    let sockets = accessor.with_getter::<WasiSockets>(StoreData::sockets);
    match timeout_at(deadline, WasiSockets::connect(&sockets, socket, address)).await {
        Ok(Ok(())) => {
            accessor.with(|mut access| access.get().tcp.permits.insert(rep, permit));
            Ok(Ok(()))
        }
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
            (LOOKUP_02, "resolve-addresses"),
            (LOOKUP_02, "[method]resolve-address-stream.resolve-next-address"),
            (LOOKUP_02, "[method]resolve-address-stream.subscribe"),
            (TYPES_03, "[method]tcp-socket.connect"),
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
}
