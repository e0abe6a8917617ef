//! Floor 2, the data path: from an accepted socket to a guest and back.
//!
//! `listen` accepts, `connection` keeps the deadlines, `guard` refuses what is not understood, `routes` and `pick` choose, `walk`
//! calls, `body` and `answer` carry the bytes, `status` is the one table from failure to status. Nothing here knows TOML, the store,
//! a planner or how a guest is walled in: the route table is handed in whole, and a guest is an
//! [`Instance`](narae_runtime::Instance).

mod answer;
mod body;
mod connection;
mod framing;
mod guard;
mod listen;
mod pick;
mod pin;
mod request_id;
mod routes;
mod service;
mod share;
mod status;
mod transport;
mod upstream;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use narae_runtime::CallError;

pub use body::Pace;
pub use guard::{Refusal, Target, strip};
pub use listen::{Server, ServerOptions, TlsOptions};
pub use pick::ReplicaSet;
pub use routes::Table;
pub use service::{Service, ServiceTraffic};
pub use status::{Reason, X_NARAE_ERROR, answer};
pub use upstream::{Lease, Upstream};
pub use walk::{Choice, Failure, dispatch};

/// Told about calls that went wrong. Called on the data path: must not block.
pub trait Observer: Send + Sync {
    /// A guest gave no answer, or (`after_head`) failed while its answer was being sent.
    fn call_failed(&self, service: &Service, upstream: &Upstream, error: &CallError, after_head: bool);
    /// A trap, the `consecutive`-th in a row on this upstream.
    fn trap_run(&self, upstream: &Upstream, consecutive: u32);
    /// A failure of any kind, the `consecutive`-th in a row on this upstream.
    fn failure_run(&self, _upstream: &Upstream, _consecutive: u32) {}
    /// A request that reached no replica: no route, no room, or refused by the guard (then without a service).
    fn refused(&self, _service: Option<&Service>, _reason: Reason) {}
}

/// Counts the calls of one upstream. Atomics only.
pub trait Counters: Send + Sync {
    /// A call begins.
    fn started(&self);
    /// The last byte of a guest's answer was handed on.
    fn finished(&self, status: u16, elapsed: std::time::Duration);
    /// The call ended in any other way.
    fn failed(&self, reason: Reason);
}

/// Choices of the data path that hold for every service.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Give way once between a guest's answer and its write while the thread has other requests to serve, so that writes come in
    /// batches. With a single connection nothing changes.
    pub late_write: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { late_write: true }
    }
}

/// Shared state of the data path: the route table and who is told about failures.
pub struct Balancer {
    table: ArcSwap<Table>,
    observer: Arc<dyn Observer>,
    options: Options,
    /// Where this node speaks TLS; 0: nowhere.
    https_port: AtomicU16,
    panics: AtomicU64,
    refusals: [AtomicU64; Reason::ALL.len()],
}

impl Balancer {
    /// With an empty table: every request gets 404.
    pub fn new(observer: Arc<dyn Observer>, options: Options) -> Arc<Self> {
        Arc::new(Self {
            table: ArcSwap::from_pointee(Table::default()),
            observer,
            options,
            https_port: AtomicU16::new(0),
            panics: AtomicU64::new(0),
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// Swaps the whole table. A request sees the old one or the new one.
    pub fn publish(&self, table: Table) {
        self.table.store(Arc::new(table));
    }

    fn https_port(&self) -> Option<u16> {
        Some(self.https_port.load(Ordering::Relaxed)).filter(|port| *port != 0)
    }

    /// Panics caught in connection tasks since the start. Each is a bug.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Requests that reached no replica, by reason; reasons that never occurred are left out.
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let counted = Reason::ALL
            .iter()
            .zip(&self.refusals)
            .map(|(r, n)| (*r, n.load(Ordering::Relaxed)));
        counted.filter(|(_, n)| *n > 0).collect()
    }

    pub fn refuse(&self, service: Option<&Service>, reason: Reason) {
        self.refusals[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.observer.refused(service, reason);
    }

    fn caught_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }
}
