//! One replica as the balancer sees it, and the lease that counts a request in flight there. Knows no connection and no route.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use narae_runtime::{CallError, Instance};
use tokio::sync::Notify;

use super::service::Service;
use super::status::Reason;
use super::{Counters, Observer};
use crate::model::{ReplicaId, RevisionNumber};

/// Out of the routes: no new lease. Closing and leasing are one atomic word, so that after `remove` the count only falls.
const CLOSED: u64 = 1 << 32;
/// Someone waits for idleness.
const WAITED: u64 = 1 << 33;
const COUNT: u64 = CLOSED - 1;

/// One replica: its instance, its slots and what is in flight there.
pub struct Upstream {
    pub id: ReplicaId,
    pub revision: RevisionNumber,
    instance: Arc<dyn Instance>,
    concurrency: u32,
    failure_limit: AtomicU32,
    counters: Arc<dyn Counters>,
    state: AtomicU64,
    traps: AtomicU32,
    failures: AtomicU32,
    became_idle: Notify,
    home: OnceLock<Home>,
}

/// The service an upstream was admitted to.
struct Home {
    service: Weak<Service>,
    /// Requests waiting there, reachable without an upgrade: read once per request.
    waiting: Arc<AtomicUsize>,
}

impl Upstream {
    /// `concurrency`: requests at once, at least 1.
    pub fn new(
        id: ReplicaId,
        revision: RevisionNumber,
        instance: Arc<dyn Instance>,
        concurrency: u32,
        counters: Arc<dyn Counters>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            revision,
            instance,
            concurrency: concurrency.max(1),
            failure_limit: AtomicU32::new(1),
            counters,
            state: AtomicU64::new(0),
            traps: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            became_idle: Notify::new(),
            home: OnceLock::new(),
        })
    }

    /// So many traps or failures in a row are for somebody to decide about (`traffic.outlier.consecutive_failures`); 1 unless it
    /// was set.
    pub fn failure_limit(&self) -> u32 {
        self.failure_limit.load(Ordering::Relaxed)
    }

    pub fn set_failure_limit(&self, limit: u32) {
        self.failure_limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// Calls in a row that reached the guest and failed: traps, timeouts, no proper answer, 5xx. A good answer ends the run.
    pub fn consecutive_failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The run of failures is over: something was done about it.
    pub fn forgive(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, observer: &dyn Observer) {
        let run = self.failures.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        observer.failure_run(self, run);
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u64 {
        self.state.load(Ordering::Acquire) & COUNT
    }

    /// Calls in a row that trapped. A call that ended well sets it to 0 as long as it is below the limit; one that the client gave up does not count.
    pub fn consecutive_traps(&self) -> u32 {
        self.traps.load(Ordering::Relaxed)
    }

    pub fn instance(&self) -> &Arc<dyn Instance> {
        &self.instance
    }

    /// Resolves when nothing is in flight. After `Service::remove` it stays so.
    pub async fn idle(&self) {
        loop {
            let idle = self.became_idle.notified();
            let mut idle = std::pin::pin!(idle);
            idle.as_mut().enable();
            if self.state.fetch_or(WAITED, Ordering::AcqRel) & COUNT == 0 {
                return;
            }
            idle.await;
        }
    }

    /// A slot, or `None` when all are taken or the upstream is out of the routes.
    pub fn lease(self: &Arc<Self>) -> Option<Lease> {
        let more = |state: u64| (self.room_in(state).is_some()).then_some(state + 1);
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Lease {
            upstream: Arc::clone(self),
            call: Call::Unused,
            freed: false,
        })
    }

    /// As [`Self::lease`], for who asks for this very replica: also out of the routes, unless it is being drained.
    pub(super) fn lease_by_name(self: &Arc<Self>) -> Option<Lease> {
        let more = |state: u64| {
            let free = state & WAITED == 0 && state & COUNT < u64::from(self.concurrency);
            free.then_some(state + 1)
        };
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .ok()?;
        Some(Lease {
            upstream: Arc::clone(self),
            call: Call::Unused,
            freed: false,
        })
    }

    /// Requests in flight, or `None` when it cannot take one more.
    pub(super) fn room(&self) -> Option<u32> {
        self.room_in(self.state.load(Ordering::Relaxed))
    }

    fn room_in(&self, state: u64) -> Option<u32> {
        let count = u32::try_from(state & COUNT).unwrap_or(u32::MAX);
        (state & CLOSED == 0 && count < self.concurrency).then_some(count)
    }

    pub(super) fn open(&self, service: &Arc<Service>, waiting: &Arc<AtomicUsize>) {
        self.home.get_or_init(|| Home {
            service: Arc::downgrade(service),
            waiting: Arc::clone(waiting),
        });
        self.state.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) fn service(&self) -> Option<Arc<Service>> {
        self.home.get()?.service.upgrade()
    }

    fn release(&self) {
        // SeqCst: pairs with the queue, which makes its entry visible before it looks for room.
        let before = self.state.fetch_sub(1, Ordering::SeqCst);
        if before & COUNT == 1 && before & WAITED != 0 {
            self.state.fetch_and(!WAITED, Ordering::AcqRel);
            self.became_idle.notify_waiters();
        }
        let Some(home) = self.home.get() else { return };
        if home.waiting.load(Ordering::SeqCst) > 0
            && let Some(service) = home.service.upgrade()
        {
            service.hand_out();
        }
    }
}

/// One request in flight at one upstream. Dropping it gives the slot back, wakes who waits for one or for idleness, and records a
/// call that was begun and not concluded as given up by the client.
pub struct Lease {
    upstream: Arc<Upstream>,
    call: Call,
    /// The slot went back before the answer was written.
    freed: bool,
}

enum Call {
    Unused,
    Running { since: Instant, status: u16, counted: bool },
    Done,
}

impl Lease {
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    pub fn instance(&self) -> &Arc<dyn Instance> {
        &self.upstream.instance
    }

    /// A call begins. `counted`: in metrics and trap runs (probes are not).
    pub(super) fn begin(&mut self, now: Instant, counted: bool) {
        if counted {
            self.upstream.counters.started();
        }
        self.call = Call::Running {
            since: now,
            status: 0,
            counted,
        };
    }

    /// Gives the slot back while the rest of the lease goes on: the guest is done and its whole answer is in our hands, only the
    /// client has not got it yet. Waiting for slow clients is not the guest's work.
    pub(super) fn free(&mut self) {
        if !std::mem::replace(&mut self.freed, true) {
            self.upstream.release();
        }
    }

    /// The head came.
    pub(super) fn head(&mut self, code: u16) {
        if let Call::Running { status, .. } = &mut self.call {
            *status = code;
        }
    }

    /// The whole answer was handed on.
    pub(super) fn finish(&mut self, observer: &dyn Observer, now: Instant) {
        if let Call::Running {
            since,
            status,
            counted: true,
        } = std::mem::replace(&mut self.call, Call::Done)
        {
            // A run that has reached the limit stands: one good answer before anybody has looked does not bring the dead back.
            let traps = self.upstream.traps.load(Ordering::Relaxed);
            if traps != 0 && traps < self.upstream.failure_limit() {
                self.upstream.traps.store(0, Ordering::Relaxed);
            }
            if status >= 500 {
                self.upstream.failed(observer);
            } else if self.upstream.failures.load(Ordering::Relaxed) != 0 {
                self.upstream.failures.store(0, Ordering::Relaxed);
            }
            self.upstream
                .counters
                .finished(status, now.checked_duration_since(since).unwrap_or(Duration::ZERO));
        }
    }

    /// The guest gave no answer, or failed after its head. Counts trap runs and tells the observer.
    pub(super) fn fail(&mut self, observer: &dyn Observer, error: &CallError, after_head: bool) {
        let Call::Running { counted: true, .. } = std::mem::replace(&mut self.call, Call::Done) else {
            return;
        };
        self.upstream.counters.failed(Reason::of(error));
        if let Some(service) = self.upstream.service() {
            observer.call_failed(&service, &self.upstream, error, after_head);
        }
        if matches!(error, CallError::Trap(_)) {
            let run = self.upstream.traps.fetch_add(1, Ordering::AcqRel).saturating_add(1);
            observer.trap_run(&self.upstream, run);
        }
        // A lack of memory on the node says nothing about the guest.
        if matches!(
            error,
            CallError::Trap(_) | CallError::Timeout(_) | CallError::BadAnswer(_)
        ) {
            self.upstream.failed(observer);
        }
    }

    /// The call ended for a reason that is not the guest's.
    pub(super) fn give_up(&mut self, reason: Reason) {
        if let Call::Running { counted: true, .. } = std::mem::replace(&mut self.call, Call::Done) {
            self.upstream.counters.failed(reason);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_up(Reason::ClientGone);
        self.free();
    }
}

#[cfg(test)]
mod tests {
    use crate::proxy::tests::fake;

    #[test]
    fn a_slot_is_leased_once_and_comes_back_on_drop() {
        let upstream = fake::upstream(1, 2, fake::hello());
        let (a, b) = (upstream.lease().unwrap(), upstream.lease().unwrap());
        assert!(upstream.lease().is_none());
        assert_eq!(upstream.in_flight(), 2);
        drop(a);
        assert!(upstream.lease().is_some());
        drop(b);
        assert_eq!(upstream.in_flight(), 0);
    }

    #[test]
    fn a_slot_that_was_given_back_early_is_not_given_back_twice() {
        let upstream = fake::upstream(1, 2, fake::hello());
        let (mut a, b) = (upstream.lease().unwrap(), upstream.lease().unwrap());
        a.free();
        assert_eq!(upstream.in_flight(), 1);
        drop(a);
        assert_eq!(upstream.in_flight(), 1);
        drop(b);
        assert_eq!(upstream.in_flight(), 0);
    }

    #[test]
    fn a_closed_upstream_gives_no_lease_though_it_has_room() {
        let upstream = fake::upstream(1, 2, fake::hello());
        upstream.close();
        assert!(upstream.lease().is_none());
        assert_eq!(upstream.room(), None);
    }

    #[tokio::test]
    async fn out_of_the_routes_a_replica_is_reached_by_name_until_it_drains() {
        let upstream = fake::upstream(1, 1, fake::hello());
        upstream.close();
        let lease = upstream.lease_by_name().unwrap();
        assert!(upstream.lease_by_name().is_none(), "its slots are counted");
        let mut idle = std::pin::pin!(upstream.idle());
        assert!(futures::poll!(idle.as_mut()).is_pending());
        drop(lease);
        idle.await;
        assert_eq!(upstream.in_flight(), 0);
    }

    #[tokio::test]
    async fn idle_resolves_when_the_last_lease_drops() {
        let upstream = fake::upstream(1, 2, fake::hello());
        upstream.idle().await;
        let (a, b) = (upstream.lease().unwrap(), upstream.lease().unwrap());
        let mut idle = std::pin::pin!(upstream.idle());
        assert!(futures::poll!(idle.as_mut()).is_pending());
        drop(a);
        assert!(futures::poll!(idle.as_mut()).is_pending());
        drop(b);
        idle.await;
    }
}
