//! What can fail, by operation: preparing an artifact, starting a replica, calling it.

use std::sync::Arc;

/// A limit of [`crate::Limits`] (or of the node) that a guest ran into. `Display` is the key of the service file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// `limits.memory`: linear memory of one instance.
    Memory,
    /// `limits.timeout`: wall clock until the response head.
    Timeout,
    /// `limits.cpu_time`: processor time of one request.
    CpuTime,
    /// `limits.start_time`: processor time of instantiation and start functions.
    StartTime,
    /// Elements of one table (10,000).
    Tables,
    /// Entries of the instance's resource table.
    Resources,
    /// Size of a header section made by the guest.
    Headers,
    /// `limits.concurrency` and the queue behind it.
    Concurrency,
    /// `engine.memory_budget`: the sum over all guests of the node.
    MemoryBudget,
    /// Native stack of the guest.
    Stack,
}

impl Limit {
    /// The name people meet in events and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Timeout => "timeout",
            Self::CpuTime => "cpu_time",
            Self::StartTime => "start_time",
            Self::Tables => "tables",
            Self::Resources => "resources",
            Self::Headers => "headers",
            Self::Concurrency => "concurrency",
            Self::MemoryBudget => "memory_budget",
            Self::Stack => "stack",
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A trap: what the guest did, which limit (if one) made us stop it, and where in the wasm it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrapReport {
    /// Short reason, printable, at most 512 bytes: `wasm trap: unreachable instruction executed`.
    pub reason: Arc<str>,
    /// Set when the trap is the enforcement of a limit.
    pub limit: Option<Limit>,
    /// Wasm frames, innermost first, at most 64, each `module!function` made printable.
    pub backtrace: Arc<[String]>,
}

impl std::fmt::Display for TrapReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Why a call got no answer. Which status the client gets is the balancer's table, not this crate's business.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The guest trapped, or was trapped by a limit. The instance is gone, the replica stays.
    #[error("guest trapped: {0}")]
    Trap(TrapReport),
    /// A deadline outside the guest ran out.
    #[error("time limit `{0}` reached")]
    Timeout(Limit),
    /// No memory within the node's budget for a new instance; nothing was run. Safe to try again later.
    #[error("no memory left in the node's budget")]
    OutOfMemory,
    /// `concurrency` calls are already running; nothing was run. Safe to try elsewhere.
    #[error("all slots of the replica are taken")]
    Busy,
    /// The replica is stopped or stopping; nothing was run. Safe to try elsewhere.
    #[error("replica is gone")]
    Gone,
    /// The replica was stopped while the guest had the request: it may have done part of its work.
    #[error("replica was stopped during the call")]
    Stopped,
    /// The guest returned without an answer, answered with an error code, or its head is not one HTTP allows.
    #[error("guest gave no valid answer: {0}")]
    BadAnswer(Arc<str>),
}

impl CallError {
    /// True when no guest code saw the request, so that any method may be tried once on another replica.
    pub const fn never_reached_guest(&self) -> bool {
        matches!(self, Self::OutOfMemory | Self::Busy | Self::Gone)
    }
}

/// Why an artifact cannot be run by a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The compiler child refused the bytes; its own words, printable and bounded.
    #[error("cannot compile module: {0}")]
    Compile(String),
    /// The compiler child ran over its deadline or its memory.
    #[error("compiling went over {what} ({limit})")]
    CompileLimit { what: &'static str, limit: String },
    /// The compiler child could not be started or spoken to.
    #[error("cannot run the compiler")]
    Child(#[source] std::io::Error),
    /// The artifact imports something this host does not have: the interface names.
    #[error("imports {}, which this host does not offer", .0.join(", "))]
    Imports(Vec<String>),
    /// Linking failed for another reason.
    #[error("cannot link module: {0}")]
    Link(String),
    /// The compiled-code cache cannot be used.
    #[error("cannot use the compiled-code cache")]
    Cache(#[source] std::io::Error),
    /// The engine cannot be made on this machine.
    #[error("cannot make an engine: {0}")]
    Engine(String),
}

/// Why a replica did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Instantiation or a start function trapped (also by `start_time` or `memory`).
    #[error("start trapped: {0}")]
    Trap(TrapReport),
    /// The node's memory budget has no room for one instance now.
    #[error("no memory left in the node's budget")]
    OutOfMemory,
    /// The guest asks for what this backend cannot give (world, prepared by another backend).
    #[error("cannot start: {0}")]
    Unsupported(String),
}
