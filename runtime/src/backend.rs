//! The two traits every wall implements: a [`Backend`] builds walls, an [`Instance`] is one guest behind one.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::artifact::{Artifact, Digest, Kind};
use crate::cpu::CpuCounts;
use crate::error::{CallError, PrepareError, StartError};
use crate::guest::Guest;
use crate::http::{Request, Response};

/// A boxed future that may move between threads.
pub type Task<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Builds walls.
pub trait Backend: Send + Sync {
    /// `wasm` or `namespace`.
    fn name(&self) -> &'static str;
    /// What this node can enforce, and why not.
    fn probe(&self) -> Vec<Feature>;
    /// Compile and link once; idempotent and cached by digest.
    fn prepare<'a>(&'a self, artifact: &'a Artifact) -> Task<'a, Result<Prepared, PrepareError>>;
    /// Start many. Returns once the guest was instantiated and its start functions have run within `start_time`.
    fn start(&self, guest: Guest) -> Task<'_, Result<Arc<dyn Instance>, StartError>>;
    /// Runs a command to its end, its output into the guest's log, and returns its exit code. `cpu_time` and `timeout` are of
    /// the whole run; [`Duration::MAX`] means none. Dropping the future ends the guest at its next yield. `spent` is kept up
    /// to date meanwhile.
    fn run_command(&self, guest: Guest, spent: Spent) -> Task<'_, Result<i32, CallError>>;
}

/// What a command uses, while it runs and afterwards.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    /// Processor time, in nanoseconds.
    pub cpu_ns: Arc<AtomicU64>,
    /// Linear memory now, in bytes.
    pub memory_bytes: Arc<AtomicU64>,
}

/// One guest behind its wall: the body of one replica.
pub trait Instance: Send + Sync {
    /// Serve one request. The returned future and then the response body drive the guest: dropping either cancels it.
    fn call(&self, request: Request) -> Task<'static, Result<Response, CallError>>;
    /// As [`Self::call`], for who asks whether the guest is well: has a place of its own, which traffic cannot take.
    fn probe(&self, request: Request) -> Task<'static, Result<Response, CallError>> {
        self.call(request)
    }
    /// Resolves once, when the guest is gone.
    fn exited(&self) -> Task<'static, Exit>;
    /// Counted since the start.
    fn usage(&self) -> Usage;
    /// Its calls by the processor time each took; empty where a wall cannot tell.
    fn cpu_times(&self) -> CpuCounts {
        CpuCounts::default()
    }
    /// Refuse new calls, wait for those in flight at most `grace`, then end them. Idempotent.
    fn stop(&self, grace: Duration) -> Task<'static, ()>;
}

/// An artifact that a backend has compiled and linked. Cheap to clone.
#[derive(Clone)]
pub struct Prepared {
    pub digest: Digest,
    pub kind: Kind,
    /// The backend's own form; only the backend that made it can open it.
    pub inner: Arc<dyn Any + Send + Sync>,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It was stopped by us.
    Stopped,
    /// A command ended with this code.
    Code(i32),
}

/// What a guest used since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Linear memory of all its instances now, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    pub calls: u64,
    pub traps: u64,
    /// Calls running now.
    pub in_flight: u64,
    /// Instances kept warm now.
    pub idle_instances: u64,
    /// Instances made since the start.
    pub instances_made: u64,
}

/// One thing a node can or cannot enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub available: bool,
    /// Why not, or how.
    pub detail: String,
}
