//! The body of one replica: its permits, its counters, its shelf of idle instances and its end.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::program::Pre;
use super::shelf::Shelf;
use super::store::Parts;
use super::{Shared, call, worker};
use crate::backend::{Exit, Instance, Task, Usage};
use crate::cpu::{CpuCounts, CpuTimes};
use crate::error::{CallError, StartError};
use crate::guest::Limits;
use crate::http::{Request, Response};

/// Ticks after which an idle instance is thrown away: one minute.
const IDLE_TICKS: u64 = 60 * 100;
/// Failures in a row of instances on their second or later request, after which the guest gets a fresh instance each
/// time: some toolchains make instances that answer once.
const REUSE_FAILURES: u32 = 3;
/// How long cancelled calls may take to notice.
const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// One replica of a wasm guest.
pub struct Replica {
    pub(super) shared: Arc<Shared>,
    pub(super) parts: Arc<Parts>,
    pub(super) limits: Limits,
    pub(super) pre: Pre,
    pub(super) shelf: Shelf<call::Live>,
    /// The workers of a 0.3 guest.
    pub(super) workers: Option<worker::Workers>,
    /// Requests one instance serves.
    pub(super) uses: u32,
    /// Ends every call in flight.
    pub(super) cancel: CancellationToken,
    pub(super) calls: AtomicU64,
    pub(super) traps: AtomicU64,
    pub(super) made: AtomicU64,
    /// Processor time of single calls.
    pub(super) cpu_times: CpuTimes,
    in_flight: AtomicU64,
    reuse_failures: AtomicU32,
    stopping: AtomicBool,
    idle: Notify,
    gone: CancellationToken,
}

impl Replica {
    pub(super) fn new(shared: Arc<Shared>, parts: Arc<Parts>, limits: Limits, pre: Pre) -> Arc<Self> {
        let uses = limits
            .requests_per_instance
            .unwrap_or(if pre.is_03() { 128 } else { 1 })
            .max(1);
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            workers: pre.is_03().then(|| worker::Workers::new(me.clone(), &limits, uses)),
            shelf: Shelf::new(limits.idle_instances),
            shared,
            parts,
            limits,
            pre,
            uses,
            cancel: CancellationToken::new(),
            calls: AtomicU64::new(0),
            traps: AtomicU64::new(0),
            made: AtomicU64::new(0),
            cpu_times: CpuTimes::default(),
            in_flight: AtomicU64::new(0),
            reuse_failures: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            idle: Notify::new(),
            gone: CancellationToken::new(),
        })
    }

    /// Proves that an instance can be made.
    pub(super) async fn start(self: &Arc<Self>) -> Result<(), StartError> {
        match &self.workers {
            Some(workers) => workers.start().await,
            None => call::start(self).await,
        }
    }

    /// A place among the calls at once, given back when the permit drops.
    /// `reserve`: beyond those of traffic.
    fn enter(self: Arc<Self>, reserve: u64) -> Result<Permit, CallError> {
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        let full = before >= u64::from(self.limits.concurrency) + reserve;
        let permit = Permit(self);
        if permit.0.stopping.load(Ordering::Acquire) {
            return Err(CallError::Gone);
        }
        if full {
            return Err(CallError::Busy);
        }
        permit.0.calls.fetch_add(1, Ordering::Relaxed);
        Ok(permit)
    }

    /// An instance that is still warm, with the requests it served.
    pub(super) fn warm(&self) -> Option<(call::Live, u32)> {
        self.reuses().then(|| self.shelf.take()).flatten()
    }

    /// Whether instances serve more than one request.
    pub(super) fn reuses(&self) -> bool {
        self.uses > 1 && self.reuse_failures.load(Ordering::Relaxed) < REUSE_FAILURES
    }

    /// Puts an instance back that ended its request well, or throws it away.
    pub(super) fn put_back(&self, live: call::Live, served: u32) {
        if served > 1 {
            self.reuse_failures.store(0, Ordering::Relaxed);
        }
        if served < self.uses && self.reuses() && !self.stopping.load(Ordering::Relaxed) {
            drop(self.shelf.put(live, served, self.shared.engines.ticks()));
        }
    }

    pub(super) fn count_made(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_trap(&self) {
        self.traps.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance failed on its `served`th request.
    pub(super) fn failed(&self, served: u32) {
        if served > 1 && self.reuse_failures.fetch_add(1, Ordering::Relaxed) + 1 == REUSE_FAILURES {
            tracing::warn!(
                guest = &*self.parts.label,
                "instances keep failing on later requests; each request gets a fresh one from now on"
            );
        }
    }

    /// Called about once a second.
    pub(super) fn sweep(&self, now: u64) {
        self.shelf.trim(now.saturating_sub(IDLE_TICKS));
    }

    /// Gives up what only saves time, because memory is short.
    pub(super) fn shed(&self) -> bool {
        self.shelf.trim(u64::MAX) > 0
    }

    async fn end(self: Arc<Self>, grace: Duration) {
        self.stopping.store(true, Ordering::Release);
        // A grace of months is "as long as it takes"; tokio's timer knows it is far away.
        if tokio::time::timeout(grace, self.drained()).await.is_err() {
            self.cancel.cancel();
            let _ = tokio::time::timeout(CANCEL_GRACE, self.drained()).await;
        }
        self.cancel.cancel();
        self.shed();
        self.gone.cancel();
    }

    async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the count is looked at: the last permit may drop in between.
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.gone.cancel();
    }
}

/// One call in flight.
pub(super) struct Permit(pub(super) Arc<Replica>);

impl Permit {
    /// A second hold on the same place, for the time both live.
    pub(super) fn again(other: &Self) -> Self {
        other.0.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&other.0))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let last = self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.0.stopping.load(Ordering::Acquire) {
            self.0.idle.notify_waiters();
        }
    }
}

/// What the node holds of a replica. Dropping it ends the replica as `stop` without grace does.
pub(super) struct Handle(pub(super) Arc<Replica>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.cancel.cancel();
        self.0.shed();
        self.0.gone.cancel();
    }
}

/// Probes of one replica at once: one of each kind.
const PROBES: u64 = 2;

impl Handle {
    fn call_within(&self, reserve: u64, request: Request) -> Task<'static, Result<Response, CallError>> {
        match Arc::clone(&self.0).enter(reserve) {
            Err(refused) => Box::pin(std::future::ready(Err(refused))),
            Ok(permit) if permit.0.workers.is_some() => Box::pin(worker::call(permit, request)),
            Ok(permit) => Box::pin(call::call(permit, request)),
        }
    }
}

impl Instance for Handle {
    fn call(&self, request: Request) -> Task<'static, Result<Response, CallError>> {
        self.call_within(0, request)
    }

    fn probe(&self, request: Request) -> Task<'static, Result<Response, CallError>> {
        self.call_within(PROBES, request)
    }

    fn exited(&self) -> Task<'static, Exit> {
        let gone = self.0.gone.clone().cancelled_owned();
        Box::pin(async move {
            gone.await;
            Exit::Stopped
        })
    }

    fn usage(&self) -> Usage {
        let replica = &*self.0;
        Usage {
            memory_bytes: replica.parts.held.load(Ordering::Relaxed),
            cpu_ns: replica.parts.cpu_ns.load(Ordering::Relaxed),
            calls: replica.calls.load(Ordering::Relaxed),
            traps: replica.traps.load(Ordering::Relaxed),
            in_flight: replica.in_flight.load(Ordering::Relaxed),
            idle_instances: replica.shelf.len() as u64 + replica.workers.as_ref().map_or(0, worker::Workers::idle),
            instances_made: replica.made.load(Ordering::Relaxed),
        }
    }

    fn cpu_times(&self) -> CpuCounts {
        self.0.cpu_times.counts()
    }

    fn stop(&self, grace: Duration) -> Task<'static, ()> {
        // At once, not when the task is first polled.
        self.0.stopping.store(true, Ordering::Release);
        Box::pin(Arc::clone(&self.0).end(grace))
    }
}
