//! Which replica takes the next request: the revision by its share, where shares were given, and then two random replicas, the
//! idler of them. Pure: randomness and loads are arguments.

use std::ops::Range;
use std::sync::Arc;

use super::upstream::Upstream;
use crate::model::RevisionNumber;

/// The replicas in the routes of one service, and which share of the requests each revision gets. Immutable; swapped whole.
#[derive(Default)]
pub struct ReplicaSet {
    /// With shares: in the order of their revisions.
    upstreams: Box<[Arc<Upstream>]>,
    /// As they were given, also for revisions that are not here; empty: all replicas are alike.
    shares: Arc<[(RevisionNumber, u32)]>,
    /// Revisions that are here and have a share.
    parts: Box<[Part]>,
}

/// One revision of a set: its share and its places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub share: u32,
    pub places: Range<usize>,
}

impl ReplicaSet {
    pub fn of(mut upstreams: Vec<Arc<Upstream>>, shares: Arc<[(RevisionNumber, u32)]>) -> Self {
        let mut parts = Vec::new();
        if !shares.is_empty() {
            upstreams.sort_by_key(|u| u.revision);
            for (revision, share) in shares.iter().filter(|(_, share)| *share > 0) {
                let start = upstreams.partition_point(|u| u.revision < *revision);
                let end = upstreams.partition_point(|u| u.revision <= *revision);
                if start < end {
                    let (share, places) = (*share, start..end);
                    parts.push(Part { share, places });
                }
            }
        }
        Self {
            upstreams: upstreams.into(),
            shares,
            parts: parts.into(),
        }
    }

    /// The shares it was made with.
    pub fn shares(&self) -> &Arc<[(RevisionNumber, u32)]> {
        &self.shares
    }

    /// Whether requests are judged one by one.
    pub(super) fn is_split(&self) -> bool {
        !self.parts.is_empty()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The places a request with this roll (below 1000) is for: those of its revision; and where it may go when none of them has
    /// room. `None`: any.
    pub(super) fn places(&self, roll: u32) -> Option<(Range<usize>, Option<Range<usize>>)> {
        let at = choose(&self.parts, roll)?;
        // A full canary costs its requests nothing: the others take them. Not the other way round.
        let largest = self.parts.iter().max_by_key(|p| p.share)?;
        let other = (*largest != self.parts[at]).then(|| largest.places.clone());
        Some((self.parts[at].places.clone(), other))
    }
}

/// Which of `parts` a roll below 1000 falls to. Shares of revisions that are not here fall to the others, in proportion.
pub(super) fn choose(parts: &[Part], roll: u32) -> Option<usize> {
    let total: u64 = parts.iter().map(|p| u64::from(p.share)).sum();
    let point = u64::from(roll.min(999)) * total / 1000;
    let mut below = 0;
    for (at, part) in parts.iter().enumerate() {
        below += u64::from(part.share);
        if point < below {
            return Some(at);
        }
    }
    None
}

impl std::ops::Deref for ReplicaSet {
    type Target = [Arc<Upstream>];

    fn deref(&self) -> &Self::Target {
        &self.upstreams
    }
}

/// Index of the replica to use, of `count`. `room(i)`: requests in flight at `i`, or `None` when it cannot take one. `random(n)`: a
/// number below `n`. When both of two are full, each other one is looked at once, from a random place: a free slot is always found.
pub fn pick(
    count: usize,
    room: impl Fn(usize) -> Option<u32>,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    if count <= 1 {
        return (count == 1 && room(0).is_some()).then_some(0);
    }
    let first = random(count);
    let second = (first + 1 + random(count - 1)) % count;
    match (room(first), room(second)) {
        (Some(a), Some(b)) => Some(if b < a { second } else { first }),
        (Some(_), None) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => (0..count).map(|i| (first + i) % count).find(|i| room(*i).is_some()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_replica_is_picked_of_none() {
        assert_eq!(pick(0, |_| Some(0), |_| 0), None);
        assert_eq!(pick(1, |_| None, |_| 0), None);
        assert_eq!(pick(1, |_| Some(9), |_| 0), Some(0));
    }

    #[test]
    fn of_two_the_idler_one_is_picked() {
        let loads = [5, 3];
        for first in 0..2 {
            assert_eq!(pick(2, |i| Some(loads[i]), |n| first.min(n - 1)), Some(1));
        }
    }

    #[test]
    fn load_spreads_evenly() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut loads = [0_u32; 10];
        for _ in 0..1000 {
            let at = pick(loads.len(), |i| Some(loads[i]), |n| random.usize(..n)).unwrap();
            loads[at] += 1;
        }
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least <= 4, "{loads:?}");
    }

    fn parts(shares: &[u32]) -> Vec<Part> {
        let part = |(at, share): (usize, &u32)| Part {
            share: *share,
            places: at..at + 1,
        };
        shares.iter().enumerate().map(part).collect()
    }

    #[test]
    fn every_roll_falls_to_the_revision_of_its_share() {
        let split = parts(&[950, 50]);
        let canary = (0..1000).filter(|roll| choose(&split, *roll) == Some(1)).count();
        assert_eq!(canary, 50, "exactly five of a hundred");
        assert_eq!(choose(&split, 0), Some(0));
        assert_eq!(choose(&split, 5000), Some(1), "a roll out of bounds is the last");
        assert_eq!(choose(&[], 7), None);
    }

    #[test]
    fn the_share_of_a_revision_that_is_not_there_falls_to_the_others() {
        assert!((0..1000).all(|roll| choose(&parts(&[50]), roll) == Some(0)));
        let half = (0..1000)
            .filter(|roll| choose(&parts(&[50, 50]), *roll) == Some(0))
            .count();
        assert_eq!(half, 500);
    }

    proptest! {
        #[test]
        fn any_shares_are_kept_to_a_thousandth(shares in proptest::collection::vec(1_u32..1000, 1..5)) {
            let total: u32 = shares.iter().sum();
            let split = parts(&shares);
            for (at, share) in shares.iter().enumerate() {
                let got = (0..1000).filter(|roll| choose(&split, *roll) == Some(at)).count();
                let due = f64::from(*share) * 1000.0 / f64::from(total);
                prop_assert!((got as f64 - due).abs() <= 1.0, "{got} of {due}");
            }
        }

        #[test]
        fn a_free_slot_is_always_found_and_a_full_replica_never_picked(
            loads in proptest::collection::vec(proptest::option::of(0_u32..9), 0..40), seed: u64,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let picked = pick(loads.len(), |i| loads[i], |n| random.usize(..n));
            prop_assert_eq!(picked.is_some(), loads.iter().any(Option::is_some));
            if let Some(at) = picked {
                prop_assert!(loads[at].is_some());
            }
        }
    }
}
