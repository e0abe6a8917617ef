//! The wasmtime engines: one configuration per kind of component, an allocator fitted to the machine, one epoch ticker.
//!
//! Everything that changes compiled code is in [`base_config`] and depends on the kind alone, so that code compiled by
//! the compiler child loads here. How instances get their memory is decided apart, by the pure [`fit`]. This file
//! knows no guest and no limit of a service.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

use crate::error::PrepareError;

/// Which of the two engines a component runs in. Nothing of one is ever used in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// WASI 0.2: concurrency support off, a third faster.
    V02,
    /// WASI 0.3: component-model async.
    V03,
}

impl EngineKind {
    /// `0.2` or `0.3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V02 => "0.2",
            Self::V03 => "0.3",
        }
    }
}

/// Address space set aside for one linear memory, and the largest memory a pooled instance may have: the default of
/// `limits.memory`. Part of the compiled code's contract, so it is the same on every machine.
pub const MEMORY_RESERVATION: u64 = 128 << 20;

/// One turn of the epoch: the longest time a guest holds a thread before its neighbours go on.
pub const TICK: Duration = Duration::from_millis(10);

/// Native stack that wasm frames may use.
const WASM_STACK: usize = 512 << 10;
/// The fiber's whole stack: the rest is for host functions, which are deep in unoptimised builds.
const FIBER_STACK: usize = 2 << 20;
/// Room a memory gets that outgrew its reservation (on demand only), so that it does not move at each growth.
const GROWTH_RESERVATION: u64 = 64 << 20;

/// Everything that affects compiled code. The compiler child uses the very same function, so
/// `Engine::precompile_compatibility_hash` agrees between child and server.
///
/// Bounds checks are explicit (no guard pages, no signals): growing a heap or reusing a slot then needs no `mprotect`,
/// which is what made fresh instances scale over cores, and a memory takes 128 MiB of address space instead of 8 GiB.
pub fn base_config(kind: EngineKind) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .signals_based_traps(false)
        .memory_guard_size(0)
        .guard_before_linear_memory(false)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_reservation_for_growth(GROWTH_RESERVATION)
        .memory_init_cow(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(FIBER_STACK)
        // Names come from the name section. Parsing DWARF is work done for a guest in the host, so it stays off, also
        // when an environment variable asks for it.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(NonZeroUsize::new(64))
        // What no supported toolchain needs is not there to be attacked.
        .gc_support(false)
        .wasm_gc(false)
        .wasm_exceptions(false)
        .wasm_function_references(false)
        .wasm_threads(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_component_model(true);
    match kind {
        EngineKind::V02 => {
            config.wasm_component_model_async(false);
            config.concurrency_support(false);
        }
        EngineKind::V03 => {
            config.wasm_component_model_async(true);
        }
    }
    config
}

/// How `engine.allocator` of the node file reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocator {
    /// Pooling where the machine has room for it.
    #[default]
    Auto,
    /// Pooling, or an error.
    Pooling,
    /// A mapping per memory, made and thrown away with it.
    OnDemand,
}

/// The facts about a machine that decide how instances get their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of address space still free under the process's limit; `None` without a limit.
    pub address_space: Option<u64>,
    /// Memory that all guests may use together, in bytes.
    pub memory_budget: u64,
    /// `vm.max_map_count`.
    pub max_map_count: u64,
    /// The kernel knows `PAGEMAP_SCAN`.
    pub pagemap_scan: bool,
}

impl Machine {
    /// This machine, as seen now.
    pub fn here(memory_budget: u64) -> Self {
        let used = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|s| s.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |pages| pages.saturating_mul(rustix::param::page_size() as u64));
        let address_space = rustix::process::getrlimit(rustix::process::Resource::As)
            .current
            .map(|limit| limit.saturating_sub(used));
        let max_map_count = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|s| s.trim().parse().ok())
            .unwrap_or(DEFAULT_MAX_MAP_COUNT);
        let pagemap_scan = PoolingAllocationConfig::is_pagemap_scan_available();
        Self {
            address_space,
            memory_budget,
            max_map_count,
            pagemap_scan,
        }
    }
}

/// The kernel's own default.
const DEFAULT_MAX_MAP_COUNT: u64 = 65_530;
/// Below this many slots a pool refuses work that the machine could do.
const MIN_SLOTS: u64 = 16;
/// Above this many the start gets slower (4 us each) and nobody gets faster.
const MAX_SLOTS: u64 = 1024;
/// Mappings that one used slot costs: memory, its image, tables, stack and its guard (measured: six).
const MAPS_PER_SLOT: u64 = 6;
/// The least memory worth a slot.
const BYTES_PER_SLOT: u64 = 1 << 20;
/// Tables that the pool holds for each slot: a component has a main module and its adapters.
const TABLES_PER_SLOT: u64 = 4;
/// Core instances for each slot.
const CORE_INSTANCES_PER_SLOT: u64 = 8;
/// Elements of one pooled table; a C# debug build has over 10,000 from the start.
const TABLE_ELEMENTS: u64 = 20_000;
/// Address space of one slot.
const SLOT_ADDRESS_BYTES: u64 =
    MEMORY_RESERVATION + FIBER_STACK as u64 + 4096 + TABLES_PER_SLOT * (TABLE_ELEMENTS * 8 + 4096);

/// How instances of one engine get their memory, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Slots set aside at the start and reused.
    Pooling {
        slots: u32,
        pagemap_scan: bool,
        why: String,
    },
    /// A mapping per memory.
    OnDemand { why: String },
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pooling { slots, why, .. } => write!(f, "pooling, {slots} slots ({why})"),
            Self::OnDemand { why } => write!(f, "on-demand ({why})"),
        }
    }
}

/// Fits the allocator to the machine. `share` is the part of the machine that this engine may take, in percent: both
/// engines live in one address space and under one count of mappings.
pub fn fit(machine: &Machine, wish: Allocator, share: u64) -> Allocation {
    if wish == Allocator::OnDemand {
        return Allocation::OnDemand {
            why: "chosen".to_owned(),
        };
    }
    let part = |whole: u64| whole / 100 * share;
    let (mut slots, mut why) = (MAX_SLOTS, "enough for any load");
    let by_memory = (part(machine.memory_budget) / BYTES_PER_SLOT).max(MIN_SLOTS);
    let by_maps = part(machine.max_map_count) / MAPS_PER_SLOT;
    let by_address = machine
        .address_space
        .map_or(u64::MAX, |free| part(free) / SLOT_ADDRESS_BYTES);
    for (bound, reason) in [
        (by_memory, "by the memory budget"),
        (by_maps, "by vm.max_map_count"),
        (by_address, "by the address space"),
    ] {
        if bound < slots {
            (slots, why) = (bound, reason);
        }
    }
    if slots < MIN_SLOTS && wish == Allocator::Auto {
        return Allocation::OnDemand {
            why: format!("room for {slots} slots only, {why}"),
        };
    }
    let slots = u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
    Allocation::Pooling {
        slots,
        pagemap_scan: machine.pagemap_scan,
        why: why.to_owned(),
    }
}

/// Makes an engine with this allocation.
fn engine(kind: EngineKind, allocation: &Allocation) -> Result<Engine, PrepareError> {
    let mut config = base_config(kind);
    if let Allocation::Pooling {
        slots, pagemap_scan, ..
    } = allocation
    {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(*slots, *pagemap_scan)));
    }
    Engine::new(&config).map_err(|e| PrepareError::Engine(format!("{e:#}")))
}

fn pool(slots: u32, pagemap_scan: bool) -> PoolingAllocationConfig {
    let times = |n: u64| u32::try_from(u64::from(slots) * n).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(times(CORE_INSTANCES_PER_SLOT))
        .total_memories(slots)
        .total_tables(times(TABLES_PER_SLOT))
        .total_stacks(slots)
        .max_memory_size(usize::try_from(MEMORY_RESERVATION).unwrap_or(usize::MAX))
        .max_tables_per_module(10)
        .table_elements(usize::try_from(TABLE_ELEMENTS).unwrap_or(usize::MAX))
        // With the scan only the pages that were written are reset; without it every kept page is, used or not
        // (measured: 1 MiB kept without the scan is three times slower than with it).
        .linear_memory_keep_resident(if pagemap_scan { 2 << 20 } else { 64 << 10 })
        .table_keep_resident(64 << 10)
        .pagemap_scan(if pagemap_scan { Enabled::Yes } else { Enabled::No });
    pool
}

/// The engines of one backend, made when they are first needed, and the clock that drives their epochs.
pub struct Engines {
    machine: Machine,
    wish: Allocator,
    v02: OnceLock<(Engine, Allocation)>,
    v03: OnceLock<(Engine, Allocation)>,
    /// On demand, for guests whose memory or tables do not fit into a slot of the pool.
    large: [OnceLock<Engine>; 2],
    making: Mutex<()>,
    ticker: Arc<Ticker>,
}

impl Engines {
    /// Makes the 0.2 engine at once, so that a machine without room is known at the start.
    pub fn new(machine: Machine, wish: Allocator) -> Result<Self, PrepareError> {
        let engines = Self {
            machine,
            wish,
            v02: OnceLock::new(),
            v03: OnceLock::new(),
            large: [OnceLock::new(), OnceLock::new()],
            making: Mutex::new(()),
            ticker: Ticker::start()?,
        };
        engines.pooled(EngineKind::V02)?;
        Ok(engines)
    }

    /// The engine of this kind; `large` for guests that do not fit into a slot.
    pub fn get(&self, kind: EngineKind, large: bool) -> Result<Engine, PrepareError> {
        let (engine, allocation) = self.pooled(kind)?;
        if !large || matches!(allocation, Allocation::OnDemand { .. }) {
            return Ok(engine.clone());
        }
        let cell = &self.large[match kind {
            EngineKind::V02 => 0,
            EngineKind::V03 => 1,
        }];
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = cell.get() {
            return Ok(engine.clone());
        }
        let made = self::engine(kind, &Allocation::OnDemand { why: String::new() })?;
        self.ticker.add(&made);
        Ok(cell.get_or_init(|| made).clone())
    }

    /// What was chosen for this kind; `None` while that engine was never needed.
    pub fn allocation(&self, kind: EngineKind) -> Option<&Allocation> {
        self.cell(kind).get().map(|(_, allocation)| allocation)
    }

    /// Turns of the epoch since the start: a clock of [`TICK`] that costs one load to read.
    pub fn ticks(&self) -> u64 {
        self.ticker.ticks.load(Ordering::Relaxed)
    }

    /// Has this called about once a second, on the ticker's thread, for as long as the engines live.
    pub fn each_second(&self, sweep: impl Fn(u64) + Send + 'static) {
        *self.ticker.sweep.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(sweep));
    }

    const fn cell(&self, kind: EngineKind) -> &OnceLock<(Engine, Allocation)> {
        match kind {
            EngineKind::V02 => &self.v02,
            EngineKind::V03 => &self.v03,
        }
    }

    fn pooled(&self, kind: EngineKind) -> Result<&(Engine, Allocation), PrepareError> {
        let cell = self.cell(kind);
        if let Some(made) = cell.get() {
            return Ok(made);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = cell.get() {
            return Ok(made);
        }
        // The 0.2 engine is there from the start; the 0.3 one comes later and takes half of what was left to it.
        let share = match kind {
            EngineKind::V02 => 50,
            EngineKind::V03 => 25,
        };
        let mut allocation = fit(&self.machine, self.wish, share);
        let engine = match engine(kind, &allocation) {
            Err(e) if self.wish == Allocator::Auto && matches!(allocation, Allocation::Pooling { .. }) => {
                allocation = Allocation::OnDemand {
                    why: format!("no pool: {e}"),
                };
                self::engine(kind, &allocation)?
            }
            other => other?,
        };
        self.ticker.add(&engine);
        Ok(cell.get_or_init(|| (engine, allocation)))
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.ticker.stop();
    }
}

type Sweep = Box<dyn Fn(u64) + Send>;

/// The one thread that turns the epochs of all engines.
struct Ticker {
    engines: Mutex<Vec<Engine>>,
    ticks: AtomicU64,
    sweep: Mutex<Option<Sweep>>,
    stopped: Mutex<bool>,
    stop: std::sync::Condvar,
}

impl Ticker {
    fn start() -> Result<Arc<Self>, PrepareError> {
        let ticker = Arc::new(Self {
            engines: Mutex::default(),
            ticks: AtomicU64::new(0),
            sweep: Mutex::default(),
            stopped: Mutex::new(false),
            stop: std::sync::Condvar::new(),
        });
        let run = Arc::clone(&ticker);
        std::thread::Builder::new()
            .name("narae-epoch".to_owned())
            .stack_size(256 << 10)
            .spawn(move || run.run())
            .map_err(|e| PrepareError::Engine(format!("cannot start the epoch thread: {e}")))?;
        Ok(ticker)
    }

    fn add(&self, engine: &Engine) {
        self.engines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(engine.clone());
    }

    fn run(&self) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            stopped = self
                .stop
                .wait_timeout(stopped, TICK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            for engine in self.engines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                engine.increment_epoch();
            }
            let ticks = self.ticks.fetch_add(1, Ordering::Relaxed) + 1;
            if ticks.is_multiple_of(100)
                && let Some(sweep) = &*self.sweep.lock().unwrap_or_else(PoisonError::into_inner)
            {
                sweep(ticks);
            }
        }
    }

    fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Machine = Machine {
        address_space: None,
        memory_budget: 4 << 30,
        max_map_count: 65_530,
        pagemap_scan: true,
    };

    fn slots(machine: Machine, wish: Allocator) -> Option<u32> {
        match fit(&machine, wish, 50) {
            Allocation::Pooling { slots, .. } => Some(slots),
            Allocation::OnDemand { .. } => None,
        }
    }

    #[test]
    fn a_roomy_machine_gets_the_full_pool() {
        assert_eq!(slots(ROOMY, Allocator::Auto), Some(1024));
    }

    #[test]
    fn eight_gib_of_address_space_hold_a_small_pool_and_two_hold_none() {
        let of = |gib: u64| Machine {
            address_space: Some(gib << 30),
            ..ROOMY
        };
        let eight = slots(of(8), Allocator::Auto).expect("a pool");
        assert!((16..=32).contains(&eight), "{eight}");
        assert_eq!(slots(of(2), Allocator::Auto), None);
        assert_eq!(
            fit(&of(2), Allocator::Auto, 50).to_string(),
            "on-demand (room for 7 slots only, by the address space)"
        );
    }

    #[test]
    fn a_pool_that_was_asked_for_is_made_as_small_as_it_must_be() {
        let tight = Machine {
            address_space: Some(2 << 30),
            ..ROOMY
        };
        assert_eq!(slots(tight, Allocator::Pooling), Some(7));
    }

    #[test]
    fn the_pool_never_takes_more_mappings_than_its_share() {
        let few = Machine {
            max_map_count: 1200,
            ..ROOMY
        };
        assert_eq!(slots(few, Allocator::Auto), Some(100));
    }

    #[test]
    fn a_small_budget_makes_a_small_pool_but_never_an_unusable_one() {
        assert_eq!(
            slots(
                Machine {
                    memory_budget: 64 << 20,
                    ..ROOMY
                },
                Allocator::Auto
            ),
            Some(31)
        );
        assert_eq!(
            slots(
                Machine {
                    memory_budget: 1 << 20,
                    ..ROOMY
                },
                Allocator::Auto
            ),
            Some(16)
        );
    }

    #[test]
    fn on_demand_is_honoured_anywhere() {
        assert_eq!(fit(&ROOMY, Allocator::OnDemand, 50).to_string(), "on-demand (chosen)");
    }

    #[test]
    fn allocation_does_not_change_the_compatibility_hash_and_the_kind_does() {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let hash = |engine: &Engine| {
            let mut hasher = DefaultHasher::new();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let bare = Engine::new(&base_config(EngineKind::V02)).unwrap();
        let pooled = engine(EngineKind::V02, &fit(&ROOMY, Allocator::Pooling, 1)).unwrap();
        let other = Engine::new(&base_config(EngineKind::V03)).unwrap();
        assert_eq!(hash(&bare), hash(&pooled));
        assert_ne!(hash(&bare), hash(&other));
    }
}
