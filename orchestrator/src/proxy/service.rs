//! One service on the data path: its replicas, its numbers and its waiting queue. Knows no HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, oneshot};

use super::pick::{ReplicaSet, pick};
use super::pin::{Pins, Wish};
use super::status::Reason;
use super::upstream::{Lease, Upstream};
use crate::model::service::{Pin, ServiceSpec, Traffic};
use crate::model::{Millis, ReplicaId, RevisionNumber, ServiceName};

mod steer;

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
    /// A replica is expected: requests that find none wait for one, at most so long.
    pub hold: Option<Duration>,
    /// The planner wants to know when a request queues.
    pub wakes: bool,
    /// A request may ask for a revision.
    pub pin: Option<Pin>,
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
            hold: None,
            wakes: false,
            pin: None,
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
            hold: None,
            wakes: spec.autoscale.is_some(),
            pin: spec.traffic.pin.clone(),
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
    /// Some requests are not like the others: shares or pins are in force. All that a service without them pays for.
    steers: AtomicBool,
    pins: ArcSwapOption<Pins>,
    /// First come, first served. Locked only when no replica has room, and never over an await.
    queue: Mutex<VecDeque<(Wish, oneshot::Sender<Lease>)>>,
    waiting: Arc<AtomicUsize>,
    /// 0: requests that find no replica are turned away.
    hold_us: AtomicU64,
    wakes: AtomicBool,
    waker: Waker,
}

/// Tells the planner that a request queues: once, until it has looked.
#[derive(Default)]
struct Waker {
    planner: OnceLock<Arc<Notify>>,
    told: AtomicBool,
    armed_at_ms: AtomicU64,
}

/// A queue that comes and goes wakes the planner at most once in so long.
const WAKE_GAP: Duration = Duration::from_millis(20);

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
            steers: AtomicBool::new(false),
            pins: ArcSwapOption::empty(),
            queue: Mutex::default(),
            waiting: Arc::default(),
            hold_us: AtomicU64::new(0),
            wakes: AtomicBool::new(false),
            waker: Waker::default(),
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
        self.wakes.store(traffic.wakes, Ordering::Relaxed);
        self.hold_us.store(traffic.hold.map_or(0, us), Ordering::SeqCst);
        if traffic.hold.is_none() {
            self.turn_away_in_vain();
        }
        let pins = traffic.pin.as_ref().and_then(Pins::of);
        if pins.as_ref() != self.pins.load().as_deref() {
            self.pins.store(pins.map(Arc::new));
        }
        self.steer();
    }

    /// Who is woken when a request queues in a service that wants it ([`ServiceTraffic::wakes`]). The first call counts.
    pub fn wake_when_queued(&self, planner: Arc<Notify>) {
        self.waker.planner.get_or_init(|| planner);
    }

    /// The planner has looked: the next request that queues wakes it again.
    pub fn wake_again(&self, now: Millis) {
        let armed_at = self.waker.armed_at_ms.load(Ordering::Relaxed);
        if now.since(Millis(armed_at)) >= WAKE_GAP {
            self.waker.armed_at_ms.store(now.0, Ordering::Relaxed);
            self.waker.told.store(false, Ordering::SeqCst);
        }
    }

    fn wake(&self) {
        if self.wakes.load(Ordering::Relaxed)
            && let Some(planner) = self.waker.planner.get()
            && !self.waker.told.swap(true, Ordering::SeqCst)
        {
            planner.notify_one();
        }
    }

    /// Thousandths of the requests by revision, from the next request on; empty: all replicas that serve are alike.
    pub fn set_split(&self, split: &BTreeMap<RevisionNumber, u32>) {
        let shares: Arc<[(RevisionNumber, u32)]> = split.iter().map(|(n, share)| (*n, *share)).collect();
        if *self.replicas.load().shares() != shares {
            self.replicas
                .rcu(|set| ReplicaSet::of(set.to_vec(), Arc::clone(&shares)));
            self.steer();
            self.hand_out();
        }
    }

    fn steer(&self) {
        let steers = !self.replicas.load().shares().is_empty() || self.pins.load().is_some();
        self.steers.store(steers, Ordering::Release);
    }

    /// What this request asks for, and its roll.
    pub(super) fn wish(&self, headers: &http::HeaderMap) -> Wish {
        if !self.steers.load(Ordering::Relaxed) {
            return Wish::default();
        }
        let pins = self.pins.load();
        Wish {
            roll: fastrand::u32(..1000),
            revision: pins.as_deref().and_then(|pins| pins.asked(headers)),
        }
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
            ReplicaSet::of(
                others.chain([Arc::clone(&upstream)]).collect(),
                Arc::clone(set.shares()),
            )
        });
        self.hand_out();
    }

    /// Out of the routes. When this returns, no new request goes there: wait for [`Upstream::idle`], then stop it.
    pub fn remove(&self, id: ReplicaId) -> Option<Arc<Upstream>> {
        let before = self.replicas.rcu(|set| {
            let others = set.iter().filter(|u| u.id != id).cloned().collect();
            ReplicaSet::of(others, Arc::clone(set.shares()))
        });
        let removed = before.iter().find(|u| u.id == id).cloned();
        if let Some(upstream) = &removed {
            upstream.close();
        }
        self.turn_away_in_vain();
        removed
    }

    /// Nobody can serve those who wait, and nobody is expected: let them know now.
    fn turn_away_in_vain(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 && self.is_vain() {
            let mut queue = self.lock();
            // Who came since may have found a replica.
            if self.is_vain() {
                let turned_away = std::mem::take(&mut *queue);
                self.waiting.store(0, Ordering::SeqCst);
                drop(queue);
                drop(turned_away);
            }
        }
    }

    fn is_vain(&self) -> bool {
        self.hold_us.load(Ordering::SeqCst) == 0 && self.replicas.load().is_empty()
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

    /// What a request body may be.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_micros(self.timeout_us.load(Ordering::Relaxed))
    }

    /// A call that never reached a guest may be tried on another replica, if there is one.
    pub(super) fn may_retry(&self) -> bool {
        self.retry_attempts.load(Ordering::Relaxed) > 0 && self.replicas.load().len() > 1
    }

    /// A slot at once, if a replica other than `except` has room that nobody waits for. A second try (`except`) has waited: it
    /// takes what there is.
    pub(super) fn try_lease(&self, wish: Wish, except: Option<ReplicaId>) -> Option<Lease> {
        if except.is_some() || self.waiting.load(Ordering::Relaxed) == 0 {
            self.pick(wish, except)
        } else if self.steers.load(Ordering::Relaxed) {
            self.lease_beside(wish)
        } else {
            None
        }
    }

    fn pick(&self, wish: Wish, except: Option<ReplicaId>) -> Option<Lease> {
        // A slot may be taken between look and lease, and a replica may leave: look again, a bounded number of times.
        for _ in 0..4 {
            let set = self.replicas.load();
            let at = if set.is_split() || wish.revision.is_some() {
                steer::steered(&set, wish, except)?
            } else {
                among(&set, 0..set.len(), except)?
            };
            if let Some(lease) = set[at].lease() {
                return Some(lease);
            }
        }
        None
    }

    /// A slot, at once or after at most `queue_wait` in the queue; as long as `hold` says where a replica is expected. Dropping the
    /// future leaves the queue.
    pub(super) async fn wait_for_lease(&self, wish: Wish) -> Result<Lease, Reason> {
        if self.is_vain() {
            return Err(Reason::NoReplica);
        }
        let wait = if self.replicas.load().is_empty() {
            self.hold_us.load(Ordering::Relaxed)
        } else {
            self.queue_wait_us.load(Ordering::Relaxed)
        };
        let limit = self.queue_limit.load(Ordering::Relaxed) as usize;
        let mut place = {
            let mut queue = self.lock();
            if queue.len() >= limit {
                return Err(Reason::QueueFull);
            }
            let (sender, receiver) = oneshot::channel();
            queue.push_back((wish, sender));
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
        // As may the last replica have left, or hope with it.
        self.turn_away_in_vain();
        self.wake();
        match tokio::time::timeout(Duration::from_micros(wait), &mut place.receiver).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) => Err(Reason::NoReplica),
            Err(_) => Err(Reason::QueueWait),
        }
    }

    /// Gives free slots to those who wait, in their order.
    pub(super) fn hand_out(&self) {
        let mut spare = None;
        while self.waiting.load(Ordering::SeqCst) > 0 {
            if self.steers.load(Ordering::Acquire) {
                return self.hand_out_steered();
            }
            let Some(lease) = spare.take().or_else(|| self.pick(Wish::default(), None)) else {
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
                Some((_, first)) => first.send(lease).err(),
                None => Some(lease),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Wish, oneshot::Sender<Lease>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two random ones of these places, the idler of them.
fn among(set: &ReplicaSet, places: Range<usize>, except: Option<ReplicaId>) -> Option<usize> {
    let first = places.start;
    let room = |i: usize| set[first + i].room().filter(|_| except != Some(set[first + i].id));
    pick(places.len(), room, |n| fastrand::usize(..n)).map(|i| first + i)
}

/// A place in the queue, given up on drop.
struct Place<'a> {
    service: &'a Service,
    receiver: oneshot::Receiver<Lease>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        let left = {
            let mut queue = self.service.lock();
            let before = queue.len();
            queue.retain(|(_, sender)| !sender.is_closed());
            self.service.waiting.store(queue.len(), Ordering::SeqCst);
            queue.len() < before
        };
        // A slot that was kept for it is for the next in line.
        if left {
            self.service.hand_out();
        }
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
        assert_eq!(
            service(9).wait_for_lease(Wish::default()).await.err(),
            Some(Reason::NoReplica)
        );
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_their_order() {
        let service = service(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let taken = service.try_lease(Wish::default(), None).unwrap();
        assert!(service.try_lease(Wish::default(), None).is_none());
        let mut first = std::pin::pin!(service.wait_for_lease(Wish::default()));
        let mut second = std::pin::pin!(service.wait_for_lease(Wish::default()));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert_eq!(service.queued(), 2);
        assert_eq!(
            service.wait_for_lease(Wish::default()).await.err(),
            Some(Reason::QueueFull)
        );
        drop(taken);
        assert!(
            service.try_lease(Wish::default(), None).is_none(),
            "nobody overtakes the queue"
        );
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
            let taken = service.try_lease(Wish::default(), None).unwrap();
            {
                let mut leaver = std::pin::pin!(service.wait_for_lease(Wish::default()));
                assert!(futures::poll!(leaver.as_mut()).is_pending());
                if served_before_leaving {
                    drop(taken);
                }
            }
            assert_eq!(service.queued(), 0);
        }
        assert_eq!(service.in_flight(), 0);
        assert!(service.try_lease(Wish::default(), None).is_some());
    }

    #[tokio::test]
    async fn when_one_leaves_the_next_is_looked_after() {
        let service = service(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let taken = service.try_lease(Wish::default(), None).unwrap();
        let mut leaver = Box::pin(service.wait_for_lease(Wish::default()));
        assert!(futures::poll!(leaver.as_mut()).is_pending());
        // The slot came free while the one who leaves was the first, and nobody looked.
        let (sender, mut next) = oneshot::channel();
        service.lock().push_back((Wish::default(), sender));
        let waiting = service.waiting.swap(0, Ordering::SeqCst);
        drop(taken);
        service.waiting.store(waiting + 1, Ordering::SeqCst);
        drop(leaver);
        assert!(next.try_recv().is_ok());
        assert_eq!(service.queued(), 0);
    }

    #[tokio::test]
    async fn a_second_try_does_not_stand_behind_those_who_wait() {
        let service = service(2);
        for id in 1..=2 {
            service.admit(fake::upstream(id, 1, fake::hello()));
        }
        let (sender, _waits) = oneshot::channel();
        service.lock().push_back((Wish::default(), sender));
        service.waiting.store(1, Ordering::SeqCst);
        assert!(service.try_lease(Wish::default(), None).is_none());
        let second = service.try_lease(Wish::default(), Some(ReplicaId(1))).unwrap();
        assert_eq!(second.upstream().id, ReplicaId(2));
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
        let taken = service.try_lease(Wish::default(), None).unwrap();
        assert_eq!(
            service.wait_for_lease(Wish::default()).await.err(),
            Some(Reason::QueueWait)
        );
        assert_eq!(service.queued(), 0);
        drop(taken);
        assert!(service.try_lease(Wish::default(), None).is_some());
    }

    #[tokio::test]
    async fn a_new_replica_serves_those_who_wait_and_the_last_to_leave_turns_them_away() {
        let service = service(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let _taken = service.try_lease(Wish::default(), None).unwrap();
        let mut first = std::pin::pin!(service.wait_for_lease(Wish::default()));
        let mut second = std::pin::pin!(service.wait_for_lease(Wish::default()));
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

    fn holding(queue: u32) -> Arc<Service> {
        let service = service(queue);
        service.configure(hold(queue, Duration::from_secs(3600)));
        service
    }

    fn hold(queue: u32, wait: Duration) -> ServiceTraffic {
        ServiceTraffic {
            queue,
            hold: Some(wait),
            wakes: true,
            ..ServiceTraffic::default()
        }
    }

    #[tokio::test]
    async fn who_comes_while_a_replica_is_expected_waits_for_it_up_to_the_queue() {
        let service = holding(2);
        let mut first = std::pin::pin!(service.wait_for_lease(Wish::default()));
        let mut second = std::pin::pin!(service.wait_for_lease(Wish::default()));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert_eq!(
            service.wait_for_lease(Wish::default()).await.err(),
            Some(Reason::QueueFull)
        );
        service.admit(fake::upstream(1, 1, fake::hello()));
        drop(first.await.unwrap());
        second.await.unwrap();
    }

    #[tokio::test]
    async fn the_last_to_leave_turns_nobody_away_while_another_is_expected() {
        let service = holding(2);
        service.admit(fake::upstream(1, 1, fake::hello()));
        let taken = service.try_lease(Wish::default(), None).unwrap();
        let mut waits = std::pin::pin!(service.wait_for_lease(Wish::default()));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        service.remove(ReplicaId(1)).unwrap();
        drop(taken);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        service.admit(fake::upstream(2, 1, fake::hello()));
        assert_eq!(waits.await.unwrap().upstream().id, ReplicaId(2));
    }

    #[tokio::test]
    async fn when_nothing_is_expected_any_more_those_who_wait_are_told() {
        let service = holding(2);
        let mut waits = std::pin::pin!(service.wait_for_lease(Wish::default()));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        service.configure(ServiceTraffic::default());
        assert_eq!(waits.await.err(), Some(Reason::NoReplica));
        assert_eq!(
            service.wait_for_lease(Wish::default()).await.err(),
            Some(Reason::NoReplica)
        );
        assert_eq!(service.queued(), 0);
    }

    #[tokio::test]
    async fn a_hold_ends_in_time() {
        let service = holding(2);
        service.configure(hold(2, Duration::from_millis(5)));
        assert_eq!(
            service.wait_for_lease(Wish::default()).await.err(),
            Some(Reason::QueueWait)
        );
        assert_eq!(service.queued(), 0);
    }

    #[tokio::test]
    async fn the_planner_is_woken_once_until_it_has_looked() {
        let (service, planner) = (holding(9), Arc::new(Notify::new()));
        service.wake_when_queued(Arc::clone(&planner));
        let woken = || futures::FutureExt::now_or_never(planner.notified()).is_some();
        let mut waits = Vec::new();
        for (now, again, wakes) in [(0, false, true), (1, false, false), (5, true, false), (30, true, true)] {
            if again {
                service.wake_again(Millis(now));
            }
            let mut one = Box::pin(service.wait_for_lease(Wish::default()));
            assert!(futures::poll!(one.as_mut()).is_pending());
            waits.push(one);
            assert_eq!(woken(), wakes, "at {now} ms");
        }
    }

    #[test]
    fn a_removed_replica_gets_no_request_and_can_come_back() {
        let service = service(0);
        let upstream = fake::upstream(1, 1, fake::hello());
        service.admit(Arc::clone(&upstream));
        assert!(service.remove(ReplicaId(2)).is_none());
        let stale = service.upstreams();
        assert!(Arc::ptr_eq(&service.remove(ReplicaId(1)).unwrap(), &upstream));
        assert!(service.try_lease(Wish::default(), None).is_none());
        assert!(
            stale[0].lease().is_none(),
            "one who still holds the old set gets no lease either"
        );
        service.admit(upstream);
        assert!(service.try_lease(Wish::default(), None).is_some());
    }

    fn of(revision: u64, id: u64) -> Arc<Upstream> {
        fake::upstream_of(revision, id, 1, fake::hello())
    }

    fn rolled(roll: u32) -> Wish {
        Wish { roll, revision: None }
    }

    fn revision(lease: Option<Lease>) -> Option<u64> {
        lease.map(|lease| lease.upstream().revision.0)
    }

    fn canary() -> Arc<Service> {
        let service = service(9);
        service.admit(of(2, 3));
        service.admit(of(1, 1));
        service.admit(of(1, 2));
        service.set_split(&[(RevisionNumber(1), 900), (RevisionNumber(2), 100)].into());
        service
    }

    #[test]
    fn each_request_is_judged_by_its_own_roll() {
        let service = canary();
        for (roll, expected) in [(0, 1), (899, 1), (900, 2), (999, 2)] {
            assert_eq!(
                revision(service.try_lease(rolled(roll), None)),
                Some(expected),
                "{roll}"
            );
        }
        service.set_split(&BTreeMap::new());
        assert!(!service.steers.load(Ordering::Relaxed));
    }

    #[test]
    fn a_full_canary_costs_nothing_and_a_full_stable_one_gives_it_no_more() {
        let service = canary();
        let taken = service.try_lease(rolled(950), None).unwrap();
        assert_eq!(revision(service.try_lease(rolled(950), None)), Some(1));
        drop(taken);
        let _taken = [
            service.try_lease(rolled(0), None).unwrap(),
            service.try_lease(rolled(0), None).unwrap(),
        ];
        assert!(service.try_lease(rolled(0), None).is_none(), "it waits instead");
        assert_eq!(revision(service.try_lease(rolled(950), None)), Some(2));
    }

    #[test]
    fn a_share_whose_replicas_are_gone_falls_to_whoever_serves() {
        let service = canary();
        service.remove(ReplicaId(1));
        service.remove(ReplicaId(2));
        assert_eq!(revision(service.try_lease(rolled(0), None)), Some(2));
        service.set_split(&[(RevisionNumber(7), 1000)].into());
        assert_eq!(revision(service.try_lease(rolled(0), None)), Some(2));
        let only = service.try_lease(rolled(0), Some(ReplicaId(3)));
        assert!(only.is_none(), "a second try is for another replica");
    }

    #[tokio::test]
    async fn one_who_waits_keeps_its_roll() {
        let service = canary();
        let taken = [
            service.try_lease(rolled(0), None).unwrap(),
            service.try_lease(rolled(0), None).unwrap(),
        ];
        let mut waits = std::pin::pin!(service.wait_for_lease(rolled(0)));
        for _ in 0..20 {
            service.hand_out();
            assert!(
                futures::poll!(waits.as_mut()).is_pending(),
                "the canary has room and is not for it"
            );
        }
        drop(taken);
        assert_eq!(waits.await.unwrap().upstream().revision, RevisionNumber(1));
    }

    #[test]
    fn what_is_asked_for_is_given_if_it_serves() {
        let service = canary();
        let asks = |n| Wish {
            roll: 0,
            revision: Some(RevisionNumber(n)),
        };
        assert_eq!(revision(service.try_lease(asks(2), None)), Some(2));
        assert_eq!(
            revision(service.try_lease(asks(8), None)),
            Some(1),
            "not kept: as usual"
        );
        let _taken = service.try_lease(asks(2), None).unwrap();
        assert_eq!(revision(service.try_lease(asks(2), None)), Some(1), "full: as usual");
    }
}
