//! One service on the data path: its replicas, its numbers and its waiting queue. Knows no HTTP.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;

use super::pick::{ReplicaSet, pick};
use super::status::Reason;
use super::upstream::{Lease, Upstream};
use crate::model::service::{ServiceSpec, Traffic};
use crate::model::{ReplicaId, ServiceName};

/// What the balancer needs of a service file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// Waiting requests before 503.
    pub queue: u32,
    pub queue_wait: Duration,
    /// Request body, in bytes.
    pub body_bytes: u64,
    /// Until the response head.
    pub timeout: Duration,
    /// 0 or 1.
    pub retry_attempts: u32,
}

impl Default for ServiceTraffic {
    fn default() -> Self {
        let limits = narae_runtime::Limits::default();
        Self {
            queue: limits.queue,
            queue_wait: limits.queue_wait,
            body_bytes: limits.body_bytes,
            timeout: limits.timeout,
            retry_attempts: Traffic::default().retry_attempts,
        }
    }
}

impl From<&ServiceSpec> for ServiceTraffic {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            queue: spec.limits.queue,
            queue_wait: spec.limits.queue_wait,
            body_bytes: spec.limits.body_bytes,
            timeout: spec.limits.timeout,
            retry_attempts: spec.traffic.retry_attempts,
        }
    }
}

/// One per service, whatever its revisions.
pub struct Service {
    name: ServiceName,
    replicas: ArcSwap<ReplicaSet>,
    queue_limit: AtomicU32,
    queue_wait_us: AtomicU64,
    body_bytes: AtomicU64,
    timeout_us: AtomicU64,
    retry_attempts: AtomicU32,
    /// First come, first served. Locked only when no replica has room, and never over an await.
    queue: Mutex<VecDeque<oneshot::Sender<Lease>>>,
    waiting: Arc<AtomicUsize>,
}

impl Service {
    /// Without replicas: every request gets 503.
    pub fn new(name: ServiceName, traffic: ServiceTraffic) -> Arc<Self> {
        let service = Self {
            name,
            replicas: ArcSwap::default(),
            queue_limit: AtomicU32::new(0),
            queue_wait_us: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            timeout_us: AtomicU64::new(0),
            retry_attempts: AtomicU32::new(0),
            queue: Mutex::default(),
            waiting: Arc::default(),
        };
        service.configure(traffic);
        Arc::new(service)
    }

    /// Holds from the next request on.
    pub fn configure(&self, traffic: ServiceTraffic) {
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.queue_limit.store(traffic.queue, Ordering::Relaxed);
        self.queue_wait_us.store(us(traffic.queue_wait), Ordering::Relaxed);
        self.body_bytes.store(traffic.body_bytes, Ordering::Relaxed);
        self.timeout_us.store(us(traffic.timeout), Ordering::Relaxed);
        self.retry_attempts.store(traffic.retry_attempts, Ordering::Relaxed);
    }

    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Into the routes, in one swap. Admitting the same replica again (it was removed before, or not) is fine; an upstream belongs
    /// to one service for its life.
    pub fn admit(self: &Arc<Self>, upstream: Arc<Upstream>) {
        upstream.open(self, &self.waiting);
        self.replicas.rcu(|set| {
            let others = set.iter().filter(|u| u.id != upstream.id).cloned();
            ReplicaSet::of(others.chain([Arc::clone(&upstream)]).collect())
        });
        self.hand_out();
    }

    /// Out of the routes. When this returns, no new request goes there: wait for [`Upstream::idle`], then stop it.
    pub fn remove(&self, id: ReplicaId) -> Option<Arc<Upstream>> {
        let before = self
            .replicas
            .rcu(|set| ReplicaSet::of(set.iter().filter(|u| u.id != id).cloned().collect()));
        let removed = before.iter().find(|u| u.id == id).cloned();
        if let Some(upstream) = &removed {
            upstream.close();
        }
        if self.waiting.load(Ordering::SeqCst) > 0 && self.replicas.load().is_empty() {
            // Nobody can serve those who wait: let them know now.
            self.lock().clear();
            self.waiting.store(0, Ordering::SeqCst);
        }
        removed
    }

    /// Those in the routes now.
    pub fn upstreams(&self) -> Arc<ReplicaSet> {
        self.replicas.load_full()
    }

    /// Requests waiting for a replica with room.
    pub fn queued(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed) as u64
    }

    /// Requests in flight over all replicas in the routes.
    pub fn in_flight(&self) -> u64 {
        self.replicas.load().iter().map(|u| u.in_flight()).sum()
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_micros(self.timeout_us.load(Ordering::Relaxed))
    }

    /// A call that never reached a guest may be tried on another replica, if there is one.
    pub(super) fn may_retry(&self) -> bool {
        self.retry_attempts.load(Ordering::Relaxed) > 0 && self.replicas.load().len() > 1
    }

    /// A slot at once, if nobody is waiting and a replica other than `except` has room.
    pub(super) fn try_lease(&self, except: Option<ReplicaId>) -> Option<Lease> {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            None
        } else {
            self.pick(except)
        }
    }

    fn pick(&self, except: Option<ReplicaId>) -> Option<Lease> {
        // A slot may be taken between look and lease, and a replica may leave: look again, a bounded number of times.
        for _ in 0..4 {
            let set = self.replicas.load();
            let room = |i: usize| set[i].room().filter(|_| except != Some(set[i].id));
            let at = pick(set.len(), room, |n| fastrand::usize(..n))?;
            if let Some(lease) = set[at].lease() {
                return Some(lease);
            }
        }
        None
    }

    /// A slot, at once or after at most `queue_wait` in the queue. Dropping the future leaves the queue.
    pub(super) async fn wait_for_lease(&self) -> Result<Lease, Reason> {
        if self.replicas.load().is_empty() {
            return Err(Reason::NoReplica);
        }
        let limit = self.queue_limit.load(Ordering::Relaxed) as usize;
        let mut place = {
            let mut queue = self.lock();
            if queue.len() >= limit {
                return Err(Reason::QueueFull);
            }
            let (sender, receiver) = oneshot::channel();
            queue.push_back(sender);
            self.waiting.store(queue.len(), Ordering::SeqCst);
            Place {
                service: self,
                receiver,
            }
        };
        // A slot may have come free between the failed look and the entry. The fence pairs with `Upstream::release`: either that sees
        // this entry, or this look sees that slot.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.hand_out();
        let wait = Duration::from_micros(self.queue_wait_us.load(Ordering::Relaxed));
        match tokio::time::timeout(wait, &mut place.receiver).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) => Err(Reason::NoReplica),
            Err(_) => Err(Reason::QueueWait),
        }
    }

    /// Gives free slots to those who wait, in their order.
    pub(super) fn hand_out(&self) {
        let mut spare = None;
        while self.waiting.load(Ordering::SeqCst) > 0 {
            let Some(lease) = spare.take().or_else(|| self.pick(None)) else {
                return;
            };
            let first = {
                let mut queue = self.lock();
                let first = queue.pop_front();
                self.waiting.store(queue.len(), Ordering::SeqCst);
                first
            };
            // One who left in between gives the slot back for the next in line.
            spare = match first {
                Some(first) => first.send(lease).err(),
                None => Some(lease),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Lease>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, given up on drop.
struct Place<'a> {
    service: &'a Service,
    receiver: oneshot::Receiver<Lease>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        let mut queue = self.service.lock();
        queue.retain(|sender| !sender.is_closed());
        self.service.waiting.store(queue.len(), Ordering::SeqCst);
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::tests::fake;

    fn service(queue: u32) -> Arc<Service> {
        let wait = Duration::from_secs(3600);
        Service::new(
            "s".parse().unwrap(),
            ServiceTraffic {
                queue,
                queue_wait: wait,
                ..ServiceTraffic::default()
            },
        )
    }

    #[tokio::test]
    async fn a_service_without_replicas_says_so_at_once() {
        assert_eq!(service(9).wait_for_lease().await.err(), Some(Reason::NoReplica));
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_their_order() {
        let service = service(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let taken = service.try_lease(None).unwrap();
        assert!(service.try_lease(None).is_none());
        let mut first = std::pin::pin!(service.wait_for_lease());
        let mut second = std::pin::pin!(service.wait_for_lease());
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert_eq!(service.queued(), 2);
        assert_eq!(service.wait_for_lease().await.err(), Some(Reason::QueueFull));
        drop(taken);
        assert!(service.try_lease(None).is_none(), "nobody overtakes the queue");
        let lease = first.await.unwrap();
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(lease);
        second.await.unwrap();
        assert_eq!((service.queued(), service.in_flight()), (0, 0));
    }

    #[tokio::test]
    async fn one_who_leaves_gives_back_place_and_slot() {
        let service = service(1);
        service.admit(fake::upstream(1, 1, fake::hello()));
        for served_before_leaving in [false, true] {
            let taken = service.try_lease(None).unwrap();
            {
                let mut leaver = std::pin::pin!(service.wait_for_lease());
                assert!(futures::poll!(leaver.as_mut()).is_pending());
                if served_before_leaving {
                    drop(taken);
                }
            }
            assert_eq!(service.queued(), 0);
        }
        assert_eq!(service.in_flight(), 0);
        assert!(service.try_lease(None).is_some());
    }

    #[tokio::test]
    async fn waiting_ends_after_queue_wait() {
        let service = service(1);
        let queue_wait = Duration::from_millis(5);
        service.configure(ServiceTraffic {
            queue_wait,
            ..ServiceTraffic::default()
        });
        service.admit(fake::upstream(1, 1, fake::hello()));
        let taken = service.try_lease(None).unwrap();
        assert_eq!(service.wait_for_lease().await.err(), Some(Reason::QueueWait));
        assert_eq!(service.queued(), 0);
        drop(taken);
        assert!(service.try_lease(None).is_some());
    }

    #[tokio::test]
    async fn a_new_replica_serves_those_who_wait_and_the_last_to_leave_turns_them_away() {
        let service = service(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let _taken = service.try_lease(None).unwrap();
        let mut first = std::pin::pin!(service.wait_for_lease());
        let mut second = std::pin::pin!(service.wait_for_lease());
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(futures::poll!(second.as_mut()).is_pending());
        service.admit(fake::upstream(2, 1, fake::hello()));
        let lease = first.await.unwrap();
        assert_eq!(lease.upstream().id, ReplicaId(2));
        service.remove(ReplicaId(1)).unwrap();
        assert!(futures::poll!(second.as_mut()).is_pending());
        service.remove(ReplicaId(2)).unwrap();
        assert_eq!(second.await.err(), Some(Reason::NoReplica));
    }

    #[test]
    fn a_removed_replica_gets_no_request_and_can_come_back() {
        let service = service(0);
        let upstream = fake::upstream(1, 1, fake::hello());
        service.admit(Arc::clone(&upstream));
        assert!(service.remove(ReplicaId(2)).is_none());
        let stale = service.upstreams();
        assert!(Arc::ptr_eq(&service.remove(ReplicaId(1)).unwrap(), &upstream));
        assert!(service.try_lease(None).is_none());
        assert!(
            stale[0].lease().is_none(),
            "one who still holds the old set gets no lease either"
        );
        service.admit(upstream);
        assert!(service.try_lease(None).is_some());
    }
}
