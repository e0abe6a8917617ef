//! The `wasm` wall: wasmtime in this process.
//!
//! A replica is a pre-linked component, its permits and its shelf of idle instances. Nothing here compiles: that is
//! behind [`Compile`], because compiling is not serving.

mod ambient;
mod aside;
mod call;
mod command;
mod fate;
mod head;
pub mod host;
mod program;
mod replica;
mod shelf;
mod store;
mod trap;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use wasmtime::component::Component;
use wasmtime_wasi_http::WasiHttpHooks;

pub use self::aside::computing;
use self::host::outside::Outside;
pub use self::host::stdio::{Input, Output, Stdio};
use self::program::{Linkers, Pre, Program, engine_kind};
use self::replica::{Handle, Replica};
use self::store::Parts;
use crate::artifact::{Artifact, Digest};
use crate::backend::{Backend, Feature, Instance, Prepared, Spent, Task};
use crate::budget::Budget;
use crate::engine::{Allocation, Allocator, EngineKind, Engines, MEMORY_RESERVATION, Machine};
use crate::error::{CallError, PrepareError, StartError};
use crate::guest::{Grants, Guest};

/// WASI imports of a component that no host interface answers. Interfaces of others may be of types alone, which need no
/// answer: they are left to linking, as are a core module's functions.
pub fn missing_imports(artifact: &Artifact) -> Vec<String> {
    let kind = engine_kind(artifact.kind);
    let wanted = artifact
        .imports
        .iter()
        .filter(|_| artifact.kind != crate::artifact::Kind::CommandCore);
    wanted
        .filter(|name| name.starts_with("wasi:") && !program::is_offered(name, kind))
        .cloned()
        .collect()
}

/// Turns an artifact into a component of this engine. Elsewhere, and cached: never on the threads that serve.
pub trait Compile: Send + Sync {
    /// The engine was made from [`crate::engine::base_config`] of this kind. A compiled artifact that the engine refuses
    /// to *load* (its memory or tables fit into no slot of the pool) is a [`PrepareError::Link`]: the backend then asks
    /// again with an engine that allocates on demand.
    fn compile<'a>(
        &'a self,
        artifact: &'a Artifact,
        kind: EngineKind,
        engine: &'a wasmtime::Engine,
    ) -> Task<'a, Result<Component, PrepareError>>;
}

/// Compiles in this process: for tests, and for tools that compile one file and end.
pub struct CompileHere;

impl Compile for CompileHere {
    fn compile<'a>(
        &'a self,
        artifact: &'a Artifact,
        _: EngineKind,
        engine: &'a wasmtime::Engine,
    ) -> Task<'a, Result<Component, PrepareError>> {
        Box::pin(async move {
            Component::new(engine, &artifact.bytes).map_err(|e| {
                let words = trap::printable(&format!("{e:#}"));
                if crate::compile::fits_no_slot(&e) {
                    PrepareError::Link(words)
                } else {
                    PrepareError::Compile(words)
                }
            })
        })
    }
}

/// Makes the outbound HTTP of one store; called for each replica of a guest that is granted any.
pub type MakeOutbound = Arc<dyn Fn(&Grants) -> Box<dyn Fn() -> Box<dyn WasiHttpHooks> + Send + Sync> + Send + Sync>;

/// How a [`WasmBackend`] is made.
pub struct WasmOptions {
    pub allocator: Allocator,
    /// Memory of all guests together, in bytes.
    pub memory_budget_bytes: u64,
    pub compile: Arc<dyn Compile>,
    /// `None`: every outbound call is denied, whatever a guest is granted.
    pub outbound: Option<MakeOutbound>,
}

/// What all replicas share.
struct Shared {
    me: Weak<Self>,
    engines: Engines,
    linkers: Linkers,
    budget: Arc<Budget>,
    compile: Arc<dyn Compile>,
    outbound: Option<MakeOutbound>,
    outside: Arc<dyn Outside>,
    programs: Mutex<HashMap<Digest, Slot>>,
    replicas: Mutex<Vec<Weak<Replica>>>,
}

/// One digest: whoever holds the lock makes it, the others wait and take it.
type Slot = Arc<tokio::sync::Mutex<Weak<Program>>>;

/// wasmtime in this process.
pub struct WasmBackend {
    shared: Arc<Shared>,
}

impl WasmBackend {
    /// Makes the 0.2 engine, its pool and the epoch thread. The 0.3 engine is made when the first such component comes.
    pub fn new(options: WasmOptions) -> Result<Arc<Self>, PrepareError> {
        Self::with_outside(options, host::outside::real())
    }

    /// The same, for guests whose time and randomness are this.
    pub fn with_outside(options: WasmOptions, outside: Arc<dyn Outside>) -> Result<Arc<Self>, PrepareError> {
        let machine = Machine::here(options.memory_budget_bytes);
        let engines = Engines::new(machine, options.allocator)?;
        let shared = Arc::new_cyclic(|me: &Weak<Shared>| Shared {
            me: me.clone(),
            engines,
            linkers: Linkers::default(),
            budget: Budget::new(options.memory_budget_bytes),
            compile: options.compile,
            outbound: options.outbound,
            outside,
            programs: Mutex::default(),
            replicas: Mutex::default(),
        });
        let weak = Arc::downgrade(&shared);
        shared.engines.each_second(move |now| {
            if let Some(shared) = weak.upgrade() {
                shared.sweep(now);
            }
        });
        Ok(Arc::new(Self { shared }))
    }

    /// How instances of the 0.2 engine get their memory, and why.
    pub fn allocation(&self) -> &Allocation {
        self.shared
            .engines
            .allocation(EngineKind::V02)
            .expect("the 0.2 engine is made with the backend")
    }

    /// The same of the 0.3 engine; `None` while no 0.3 component came.
    pub fn allocation_03(&self) -> Option<&Allocation> {
        self.shared.engines.allocation(EngineKind::V03)
    }

    /// Memory that guests have now and may have together, in bytes.
    pub fn memory(&self) -> (u64, u64) {
        (self.shared.budget.used(), self.shared.budget.limit())
    }

    /// Runs a command to its end and returns its exit code. `cpu_time` and `timeout` of [`Duration::MAX`](std::time::Duration::MAX)
    /// mean none.
    pub fn run(&self, guest: Guest, stdio: Stdio) -> Task<'_, Result<i32, CallError>> {
        Box::pin(command::run(&self.shared, guest, stdio, Spent::default()))
    }
}

impl Backend for WasmBackend {
    fn name(&self) -> &'static str {
        "wasm"
    }

    fn probe(&self) -> Vec<Feature> {
        let says = |name, detail: String| Feature {
            name,
            available: true,
            detail,
        };
        vec![
            says(
                "memory",
                format!("{} MiB for all guests", self.shared.budget.limit() >> 20),
            ),
            says("cpu_time", "thread clock, looked at every 10 ms".to_owned()),
            says("allocator", self.allocation().to_string()),
        ]
    }

    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> Task<'a, Result<Prepared, PrepareError>> {
        Box::pin(async move {
            let program = self.shared.program(artifact).await?;
            Ok(Prepared {
                digest: artifact.digest,
                kind: artifact.kind,
                inner: program,
            })
        })
    }

    fn start(&self, guest: Guest) -> Task<'_, Result<Arc<dyn Instance>, StartError>> {
        Box::pin(async move {
            let kind = guest.prepared.kind;
            if !kind.is_http() {
                return Err(StartError::Unsupported(
                    "a command is run to its end, not started".to_owned(),
                ));
            }
            let (parts, pre) = self.shared.parts(&guest).await?;
            let replica = Replica::new(Arc::clone(&self.shared), parts, guest.limits, pre);
            let mut started = replica.start().await;
            if matches!(started, Err(StartError::OutOfMemory)) && self.shared.shed() {
                started = replica.start().await;
            }
            started?;
            self.shared
                .replicas
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::downgrade(&replica));
            Ok(Arc::new(Handle(replica)) as Arc<dyn Instance>)
        })
    }

    fn run_command(&self, guest: Guest, spent: Spent) -> Task<'_, Result<i32, CallError>> {
        Box::pin(command::run(&self.shared, guest, Stdio::log(), spent))
    }
}

impl Shared {
    /// The program of this artifact, made once for all that hold it.
    async fn program(&self, artifact: &Artifact) -> Result<Arc<Program>, PrepareError> {
        let slot = {
            let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds any more is nobody's: bounded by the programs in use and one sweep.
            if programs.len() >= 64 {
                programs.retain(|_, slot| slot.try_lock().map_or(true, |held| held.strong_count() > 0));
            }
            Arc::clone(programs.entry(artifact.digest).or_default())
        };
        let mut held = slot.lock().await;
        if let Some(program) = held.upgrade() {
            return Ok(program);
        }
        let large = tokio::sync::OnceCell::new();
        let pooled = match self.pre(artifact, false).await {
            Ok(pre) => Some(pre),
            Err(first @ PrepareError::Link(_)) => match self.pre(artifact, true).await {
                Ok(pre) => {
                    large.set(pre).unwrap_or_default();
                    None
                }
                Err(_) => return Err(first),
            },
            Err(e) => return Err(e),
        };
        let program = Arc::new(Program {
            home: self.me.clone(),
            artifact: artifact.clone(),
            pooled,
            large,
        });
        *held = Arc::downgrade(&program);
        Ok(program)
    }

    /// Compiles and links for one engine.
    async fn pre(&self, artifact: &Artifact, large: bool) -> Result<Pre, PrepareError> {
        let kind = engine_kind(artifact.kind);
        let engine = self.engines.get(kind, large)?;
        let component = self.compile.compile(artifact, kind, &engine).await?;
        self.linkers.link(artifact, &component, large)
    }

    /// What the stores of this guest share, and the form of its program that fits its memory limit.
    async fn parts(&self, guest: &Guest) -> Result<(Arc<Parts>, Pre), StartError> {
        let program = Arc::clone(&guest.prepared.inner)
            .downcast::<Program>()
            .ok()
            // Also another one of this kind: its code belongs to other engines.
            .filter(|program| std::ptr::eq(program.home.as_ptr(), self))
            .ok_or_else(|| StartError::Unsupported("prepared by another backend".to_owned()))?;
        let fits = guest.limits.memory_bytes <= MEMORY_RESERVATION;
        let pre = match &program.pooled {
            Some(pre) if fits => pre.clone(),
            _ => {
                let made = program
                    .large
                    .get_or_try_init(|| self.pre(&program.artifact, true))
                    .await;
                made.map_err(|e| StartError::Unsupported(e.to_string()))?.clone()
            }
        };
        let outbound = &guest.grants.outbound;
        let hooks = self
            .outbound
            .as_ref()
            .filter(|_| !(outbound.allow.is_empty() && outbound.services.is_empty()))
            .map(|make| Arc::from(make(&guest.grants)));
        let mounts = guest
            .grants
            .volumes
            .iter()
            .map(host::filesystem::Mount::new)
            .collect::<Result<_, _>>();
        let parts = Parts {
            label: Arc::clone(&guest.label),
            config: guest.grants.config.iter().cloned().collect(),
            mounts: mounts.map_err(|e| StartError::Unsupported(format!("cannot open a volume: {e}")))?,
            key_values: host::keyvalue::KeyValueCtx::new(guest.grants.key_values.clone()),
            tcp: host::sockets::TcpGrants::of(outbound, &host::outside::real()),
            grants: guest.grants.clone(),
            logs: Arc::clone(&guest.logs),
            hooks,
            memory_bytes: guest.limits.memory_bytes,
            budget: Arc::clone(&self.budget),
            outside: Arc::clone(&self.outside),
            held: Arc::default(),
            cpu_ns: Arc::default(),
        };
        Ok((Arc::new(parts), pre))
    }

    fn sweep(&self, now: u64) {
        for replica in self.living() {
            replica.sweep(now);
        }
    }

    /// Gives up all idle instances, because memory is short. True if there were any.
    fn shed(&self) -> bool {
        self.living().iter().filter(|replica| replica.shed()).count() > 0
    }

    fn living(&self) -> Vec<Arc<Replica>> {
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.retain(|replica| replica.strong_count() > 0);
        replicas.iter().filter_map(Weak::upgrade).collect()
    }
}
