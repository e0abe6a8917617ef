//! Which replica takes the next request: two random ones, the idler of them. Pure: randomness and loads are arguments.

use std::sync::Arc;

use super::upstream::Upstream;

/// The replicas in the routes of one service. Immutable; swapped whole.
#[derive(Default)]
pub struct ReplicaSet {
    upstreams: Box<[Arc<Upstream>]>,
}

impl ReplicaSet {
    pub fn of(upstreams: Vec<Arc<Upstream>>) -> Self {
        Self {
            upstreams: upstreams.into(),
        }
    }
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

    proptest! {
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
