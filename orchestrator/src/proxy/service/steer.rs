//! Requests that are not like the others: which replicas one may go to, and who of those who wait is next when not all of them can
//! go everywhere. Knows no HTTP, and nothing of a service without shares and pins comes here.

use std::sync::atomic::Ordering;

use super::{Service, among};
use crate::model::{ReplicaId, RevisionNumber};
use crate::proxy::pick::{ReplicaSet, choose, pick};
use crate::proxy::pin::Wish;
use crate::proxy::upstream::Lease;

/// The place for a request that is not like the others: what it asked for, if that serves and has room; else what its roll says.
/// A second try, and a set in which no share is there, go wherever there is room: a split never costs an answer.
pub(super) fn steered(set: &ReplicaSet, wish: Wish, except: Option<ReplicaId>) -> Option<usize> {
    if let Some(asked) = wish.revision {
        let room = |i: usize| {
            let fits = set[i].revision == asked && except != Some(set[i].id);
            set[i].room().filter(|_| fits)
        };
        if let Some(at) = pick(set.len(), room, |n| fastrand::usize(..n)) {
            return Some(at);
        }
    }
    let Some((places, other)) = set.places(wish.roll) else {
        return among(set, 0..set.len(), except);
    };
    among(set, places, except)
        .or_else(|| among(set, other?, except))
        .or_else(|| except.and_then(|_| among(set, 0..set.len(), except)))
}

/// Whether replicas of `revision` would do for a first try.
fn reaches(set: &ReplicaSet, wish: Wish, revision: RevisionNumber) -> bool {
    if wish.revision == Some(revision) {
        return true;
    }
    let is_of = |places: std::ops::Range<usize>| set[places.start].revision == revision;
    set.places(wish.roll)
        .is_none_or(|(places, other)| is_of(places) || other.is_some_and(is_of))
}

/// Wishes with the same of this go to the same replicas: the revision asked for, if it is there, and the share.
type Part = (Option<RevisionNumber>, Option<usize>);

impl Service {
    /// A slot at once, though others wait, if none of them could take it.
    pub(super) fn lease_beside(&self, wish: Wish) -> Option<Lease> {
        let lease = self.pick(wish, None)?;
        let set = self.replicas.load();
        let revision = lease.upstream().revision;
        let wanted = self
            .lock()
            .iter()
            .any(|(other, sender)| !sender.is_closed() && reaches(&set, *other, revision));
        // Given back, it goes to the one who waits for it.
        (!wanted).then_some(lease)
    }

    /// Gives free slots to those who wait, in their order; who waits for a full revision keeps nobody from another. One pass.
    pub(super) fn hand_out_steered(&self) {
        let mut served = Vec::new();
        {
            let mut queue = self.lock();
            let set = self.replicas.load();
            let mut here: Vec<RevisionNumber> = set.iter().map(|u| u.revision).collect();
            here.sort_unstable();
            here.dedup();
            let mut full: Vec<Part> = Vec::new();
            let mut kept = 0;
            for _ in 0..queue.len() {
                let Some((wish, sender)) = queue.pop_front() else { break };
                if sender.is_closed() {
                    continue;
                }
                let asked = wish.revision.filter(|asked| here.binary_search(asked).is_ok());
                let part = (asked, choose(set.parts(), wish.roll));
                let lease = if full.contains(&part) {
                    None
                } else {
                    self.pick(wish, None)
                };
                if let Some(lease) = lease {
                    served.push((sender, lease));
                    continue;
                }
                queue.push_back((wish, sender));
                kept += 1;
                if !full.contains(&part) {
                    full.push(part);
                    if set.iter().all(|u| u.room().is_none()) {
                        break;
                    }
                }
            }
            // Those who were passed over are still the first.
            queue.rotate_right(kept);
            self.waiting.store(queue.len(), Ordering::SeqCst);
        }
        // One who left in between gives the slot back for the next in line.
        for (sender, lease) in served {
            drop(sender.send(lease));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::proxy::service::ServiceTraffic;
    use crate::proxy::status::Reason;
    use crate::proxy::tests::fake;

    const STABLE: Wish = rolled(0);
    const CANARY: Wish = rolled(950);

    const fn rolled(roll: u32) -> Wish {
        Wish { roll, revision: None }
    }

    fn asks(revision: u64) -> Wish {
        Wish {
            roll: 0,
            revision: Some(RevisionNumber(revision)),
        }
    }

    /// One slot of revision 1, which has nine tenths, and one of revision 2.
    fn canary(queue: u32) -> Arc<Service> {
        let traffic = ServiceTraffic {
            queue,
            queue_wait: Duration::from_secs(3600),
            ..ServiceTraffic::default()
        };
        let service = Service::new("s".parse().unwrap(), traffic);
        for revision in 1..=2 {
            service.admit(fake::upstream_of(revision, revision, 1, fake::hello()));
        }
        service.set_split(&[(RevisionNumber(1), 900), (RevisionNumber(2), 100)].into());
        service
    }

    fn revision(lease: &Lease) -> u64 {
        lease.upstream().revision.0
    }

    #[tokio::test]
    async fn who_waits_for_a_full_revision_keeps_nobody_from_an_idle_one() {
        for wish in [CANARY, asks(2)] {
            let service = canary(1);
            let taken = service.try_lease(STABLE, None).unwrap();
            let mut waits = std::pin::pin!(service.wait_for_lease(STABLE));
            assert!(futures::poll!(waits.as_mut()).is_pending());
            let at_once = service.try_lease(wish, None).expect("the canary is idle");
            assert_eq!(revision(&at_once), 2);
            assert!(service.try_lease(STABLE, None).is_none());
            let refused = service.wait_for_lease(STABLE).await.err();
            assert_eq!(refused, Some(Reason::QueueFull));
            drop(taken);
            assert_eq!(revision(&waits.await.unwrap()), 1);
        }
    }

    #[tokio::test]
    async fn the_first_who_can_be_served_is_served_and_the_order_stays() {
        let service = canary(9);
        let stable = service.try_lease(STABLE, None).unwrap();
        let canary = service.try_lease(CANARY, None).unwrap();
        let mut waits: Vec<_> = [STABLE, STABLE, CANARY, STABLE, asks(2), asks(9)]
            .map(|wish| Box::pin(service.wait_for_lease(wish)))
            .into();
        for wait in &mut waits {
            assert!(futures::poll!(wait.as_mut()).is_pending());
        }
        drop(canary);
        let third = waits.remove(2).await.unwrap();
        assert_eq!((revision(&third), service.queued()), (2, 5));
        drop(third);
        let asked = waits.remove(3).await.unwrap();
        assert_eq!((revision(&asked), service.queued()), (2, 4));
        let mut lease = stable;
        for mut next in waits {
            assert!(futures::poll!(next.as_mut()).is_pending());
            drop(lease);
            lease = next.await.unwrap();
            assert_eq!(revision(&lease), 1, "in the order they came");
        }
        assert_eq!(service.queued(), 0);
    }

    #[tokio::test]
    async fn nobody_overtakes_one_who_could_take_the_slot() {
        let service = canary(9);
        let taken = (
            service.try_lease(STABLE, None).unwrap(),
            service.try_lease(CANARY, None).unwrap(),
        );
        let mut waits = std::pin::pin!(service.wait_for_lease(CANARY));
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(taken.0);
        assert!(service.try_lease(STABLE, None).is_none());
        assert_eq!(revision(&waits.await.unwrap()), 1, "a full canary costs nothing");
    }

    #[tokio::test]
    async fn one_who_left_does_not_keep_the_slot() {
        let service = canary(9);
        let taken = service.try_lease(STABLE, None).unwrap();
        {
            let mut leaver = std::pin::pin!(service.wait_for_lease(STABLE));
            assert!(futures::poll!(leaver.as_mut()).is_pending());
            drop(taken);
        }
        assert_eq!((service.queued(), service.in_flight()), (0, 0));
    }
}
