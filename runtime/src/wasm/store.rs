//! What one store holds: a guest's view of the host, its limits, and the meter that both the guest's callbacks and the
//! future driving it can reach. Making one is on the path of every fresh request, so what a guest may never use is made
//! when it first asks.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderName;
use wasmtime::component::ResourceTable;
use wasmtime::{Engine, ResourceLimiter, Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

use super::ambient::{Ambient, Serving};
use super::host::clocks::{ClocksHost, ClocksView};
use super::host::filesystem::{FilesHost, FilesView, Mount, OpenFiles};
use super::host::keyvalue::KeyValueCtx;
use super::host::outside::{self, Outside};
use super::host::sockets::{TcpGrants, TcpState};
use super::host::stdio::Stdio;
use crate::budget::{Budget, Share};
use crate::error::Limit;
use crate::guest::{Grants, LogSink};

/// Elements of one table.
const TABLE_ELEMENTS: usize = 10_000;
/// What a table may start with: large toolchains (Python, C# debug builds) link more functions than a guest may add.
const TABLE_START_ELEMENTS: usize = 65_536;
/// Entries of the resource table: requests, streams, fields, pollables.
const RESOURCES: usize = 10_000;
/// Bytes that one host call may copy out of the guest; they are the host's memory while the call runs.
const HOST_CALL_BYTES: usize = 16 << 20;
/// Random bytes for one call.
const RANDOM_BYTES: u64 = 1 << 20;
/// Bytes of one header section, counted with their overhead in memory: 32 KiB on the wire fit.
const FIELD_BYTES: usize = 128 << 10;
/// Pieces and bytes of a response body that wait for their reader: one poll of the guest can fill them all.
pub const BODY_PIECES: usize = 16;
pub const BODY_PIECE_BYTES: usize = 64 << 10;

/// A guest that has had the thread for less goes on when the epoch turns.
const SHORT_TURN_NS: u64 = 2_000_000;

/// Makes the outbound side of a guest's HTTP for one store; `None` denies every call.
pub type MakeHooks = Arc<dyn Fn() -> Box<dyn WasiHttpHooks> + Send + Sync>;

/// What all stores of one replica share.
pub struct Parts {
    pub label: Arc<str>,
    pub grants: Grants,
    pub config: WasiConfigVariables,
    pub key_values: KeyValueCtx,
    pub mounts: Vec<Arc<Mount>>,
    /// `None`: no TCP at all.
    pub tcp: Option<TcpGrants>,
    pub logs: Arc<dyn LogSink>,
    pub hooks: Option<MakeHooks>,
    pub memory_bytes: u64,
    pub budget: Arc<Budget>,
    pub outside: Arc<dyn Outside>,
    /// Linear memory of all stores of the replica.
    pub held: Arc<AtomicU64>,
    /// Processor time of all stores of the replica, in nanoseconds.
    pub cpu_ns: Arc<AtomicU64>,
}

/// A limit that ended a guest, as an error inside wasmtime's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{0}` reached")]
pub struct Exceeded(pub Limit);

/// What a 0.2 guest handed to its `response-outparam`.
pub type Head = Result<http::Response<HyperOutgoingBody>, ErrorCode>;

/// Reachable from inside the guest's callbacks and from the future that drives it.
pub struct Meter {
    /// Processor time spent of the present allowance.
    used_ns: AtomicU64,
    /// The present allowance.
    allowed_ns: AtomicU64,
    /// The thread's clock when the guest last got the thread; 0 while it has none.
    mark_ns: AtomicU64,
    /// What the allowance is: [`Limit::CpuTime`] or [`Limit::StartTime`].
    starting: AtomicU8,
    /// A growth that was refused last, so that an abort after it can be explained.
    refused: AtomicU8,
    head: Mutex<Option<Head>>,
    total_ns: Arc<AtomicU64>,
}

impl Meter {
    fn new(total_ns: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            used_ns: AtomicU64::new(0),
            allowed_ns: AtomicU64::new(u64::MAX),
            mark_ns: AtomicU64::new(0),
            starting: AtomicU8::new(0),
            refused: AtomicU8::new(0),
            head: Mutex::new(None),
            total_ns,
        })
    }

    /// A new allowance, nothing of it spent. The zero duration allows nothing; [`Duration::MAX`] everything.
    pub fn allow(&self, limit: Limit, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.starting
            .store(u8::from(limit == Limit::StartTime), Ordering::Relaxed);
        self.used_ns.store(0, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
        self.allowed_ns.store(time, Ordering::Relaxed);
    }

    /// Charges what a running guest has spent so far, so that it does not count against the next allowance.
    pub fn settle(&self) {
        if self.mark_ns.load(Ordering::Relaxed) != 0 {
            self.charge();
        }
    }

    /// Lets the allowance grow to what was spent and `time` more: a worker takes on one more request.
    pub fn allow_until(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = self.used_ns.load(Ordering::Relaxed).saturating_add(time);
        self.starting.store(0, Ordering::Relaxed);
        self.allowed_ns.store(until, Ordering::Relaxed);
    }

    /// The guest gets the thread.
    pub fn enter(&self) {
        self.mark_ns.store(thread_ns(), Ordering::Relaxed);
    }

    /// The guest gives the thread back.
    pub fn leave(&self) {
        if self.mark_ns.load(Ordering::Relaxed) != 0 {
            self.charge();
            self.mark_ns.store(0, Ordering::Relaxed);
        }
    }

    /// Charges the time since the mark and sets it again. Returns that time.
    fn charge(&self) -> u64 {
        let now = thread_ns();
        let spent = now.saturating_sub(self.mark_ns.swap(now, Ordering::Relaxed));
        self.used_ns.fetch_add(spent, Ordering::Relaxed);
        self.total_ns.fetch_add(spent, Ordering::Relaxed);
        spent
    }

    /// Processor time spent of the present allowance, in nanoseconds.
    pub fn used_ns(&self) -> u64 {
        self.used_ns.load(Ordering::Relaxed)
    }

    /// The limit that is spent, if it is.
    pub fn spent(&self) -> Option<Limit> {
        let over = self.used_ns.load(Ordering::Relaxed) > self.allowed_ns.load(Ordering::Relaxed);
        over.then(|| {
            if self.starting.load(Ordering::Relaxed) == 1 {
                Limit::StartTime
            } else {
                Limit::CpuTime
            }
        })
    }

    /// The growth that was refused since the allowance was given.
    pub fn refused(&self) -> Option<Limit> {
        match self.refused.load(Ordering::Relaxed) {
            1 => Some(Limit::Memory),
            2 => Some(Limit::MemoryBudget),
            3 => Some(Limit::Tables),
            _ => None,
        }
    }

    fn refuse(&self, limit: Limit) {
        let code = match limit {
            Limit::Memory => 1,
            Limit::MemoryBudget => 2,
            _ => 3,
        };
        self.refused.store(code, Ordering::Relaxed);
    }

    /// The guest's answer, once.
    pub fn take_head(&self) -> Option<Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Called by the guest's `response-outparam`.
    pub fn set_head(&self, head: Head) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }
}

/// Processor time of this thread: a guest that was descheduled is innocent.
fn thread_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    // One more, because 0 says "no mark".
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) + 1
}

/// Refuses growth over the guest's limits and the node's budget.
struct Limiter {
    share: Share,
    memory: u64,
    memory_limit: u64,
    pending: u64,
    meter: Arc<Meter>,
}

impl Limiter {
    fn refuse(&mut self, limit: Limit) -> wasmtime::Result<bool> {
        self.meter.refuse(limit);
        Ok(false)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.pending = 0;
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        if self.memory.saturating_add(more) > self.memory_limit {
            return self.refuse(Limit::Memory);
        }
        if !self.share.grow(more) {
            return self.refuse(Limit::MemoryBudget);
        }
        self.memory += more;
        self.pending = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        let more = std::mem::take(&mut self.pending);
        self.share.shrink(more);
        self.memory -= more;
        if more > 0 {
            self.meter.refuse(Limit::MemoryBudget);
        }
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let most = if current == 0 {
            TABLE_START_ELEMENTS
        } else {
            TABLE_ELEMENTS
        };
        if desired > most {
            return self.refuse(Limit::Tables);
        }
        if !self.share.grow(desired.saturating_sub(current) as u64 * 8) {
            return self.refuse(Limit::MemoryBudget);
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        256
    }

    fn tables(&self) -> usize {
        64
    }

    fn memories(&self) -> usize {
        16
    }
}

/// The host as one store's guest sees it.
pub struct StoreData {
    pub table: ResourceTable,
    pub meter: Arc<Meter>,
    pub parts: Arc<Parts>,
    limiter: Limiter,
    wasi: Option<Box<WasiCtx>>,
    stdio: Option<Stdio>,
    http: WasiHttpCtx,
    hooks: Hooks,
    open_files: OpenFiles,
    /// Connections and resolved names of this instance.
    pub tcp: TcpState,
}

impl StoreData {
    fn new(parts: &Arc<Parts>, stdio: Option<Stdio>, meter: Arc<Meter>) -> Self {
        let share = Share::new(Arc::clone(&parts.budget), Arc::clone(&parts.held));
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELD_BYTES);
        Self {
            table,
            limiter: Limiter {
                share,
                memory: 0,
                memory_limit: parts.memory_bytes,
                pending: 0,
                meter: Arc::clone(&meter),
            },
            meter,
            wasi: None,
            stdio,
            http,
            hooks: Hooks {
                outbound: parts.hooks.as_ref().map(|make| make()),
                serving: Serving::default(),
            },
            tcp: TcpState::default(),
            open_files: None,
            parts: Arc::clone(parts),
        }
    }
}

impl StoreData {
    /// The instance takes on a request, beside others or not: what its own calls inherit.
    pub fn take_on(&mut self, request: Ambient, beside_others: bool) {
        self.hooks.serving.take_on(request, beside_others);
    }

    /// A request that it had taken on, with so many hops, was answered.
    pub fn answered(&mut self, hops: u32) {
        self.hooks.serving.answered(hops);
    }
}

/// A store for one instance of this replica's guest.
pub fn make(engine: &Engine, parts: &Arc<Parts>, stdio: Option<Stdio>) -> Store<StoreData> {
    with(
        engine,
        StoreData::new(parts, stdio, Meter::new(Arc::clone(&parts.cpu_ns))),
    )
}

/// Another store for a guest whose first one could not be filled, under the same meter.
pub fn again(engine: &Engine, parts: &Arc<Parts>, meter: &Arc<Meter>) -> Store<StoreData> {
    meter.refused.store(0, Ordering::Relaxed);
    with(engine, StoreData::new(parts, None, Arc::clone(meter)))
}

fn with(engine: &Engine, data: StoreData) -> Store<StoreData> {
    let mut store = Store::new(engine, data);
    store.limiter(|data| &mut data.limiter);
    store.set_hostcall_fuel(HOST_CALL_BYTES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(tick);
    store
}

/// The epoch turned while the guest ran: end it, or let the neighbours on this thread go on.
fn tick(store: StoreContextMut<'_, StoreData>) -> wasmtime::Result<UpdateDeadline> {
    let meter = &store.data().meter;
    let spent_ns = meter.charge();
    if let Some(limit) = meter.spent() {
        return Err(Exceeded(limit).into());
    }
    if spent_ns < SHORT_TURN_NS {
        // The epoch turned while the guest waited, not while it ran.
        return Ok(UpdateDeadline::Continue(1));
    }
    let meter = Arc::clone(meter);
    let aside = async move {
        // Tokio's own yield lets the reactor run before the guest comes back; a plain wake-up would starve it for up to
        // 61 turns.
        meter.leave();
        let aside = super::aside::Aside::step();
        tokio::task::yield_now().await;
        drop(aside);
        meter.enter();
    };
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(aside)))
}

impl WasiView for StoreData {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self
            .wasi
            .get_or_insert_with(|| Box::new(context(&self.parts, &self.tcp, self.stdio.take())));
        WasiCtxView {
            ctx,
            table: &mut self.table,
        }
    }
}

impl ClocksHost for StoreData {
    fn clocks(&mut self) -> ClocksView<'_> {
        ClocksView {
            outside: &self.parts.outside,
            table: &mut self.table,
        }
    }
}

impl FilesHost for StoreData {
    fn files(&mut self) -> FilesView<'_> {
        FilesView {
            mounts: &self.parts.mounts,
            open: &mut self.open_files,
            outside: &self.parts.outside,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for StoreData {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// Nothing inherited, nothing granted but what the service file says.
fn context(parts: &Parts, tcp: &TcpState, stdio: Option<Stdio>) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    // Names are looked up by our own interface, whatever this says.
    wasi.allow_tcp(parts.tcp.is_some())
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(RANDOM_BYTES);
    if let Some(grants) = &parts.tcp {
        wasi.socket_addr_check(tcp.check(grants));
    }
    outside::furnish(&mut wasi, &parts.outside);
    wasi.envs(&parts.grants.env).arg(&*parts.label).args(&parts.grants.args);
    stdio.unwrap_or(Stdio::log()).give(&mut wasi, &parts.logs);
    wasi.build()
}

/// Names that a guest may neither send nor see.
pub fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name)
}

/// What belongs to every guest's HTTP, around the outbound calls of those that were granted some.
struct Hooks {
    outbound: Option<Box<dyn WasiHttpHooks>>,
    serving: Serving,
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::new(is_forbidden)
    }

    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        processed: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<
        dyn Future<
                Output = wasmtime_wasi_http::Result<(
                    http::Response<WasiBody>,
                    Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
                )>,
            > + Send,
    > {
        request.extensions_mut().insert(self.serving.now().clone());
        match &mut self.outbound {
            Some(outbound) => outbound.send_request(request, options, processed),
            None => Box::new(std::future::ready(Err(wasmtime_wasi_http::Error::HttpRequestDenied))),
        }
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_PIECES
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PIECE_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PIECE_BYTES
    }
}
