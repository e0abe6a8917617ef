//! One sum over the memory of all guests of the node. It knows bytes, not whose they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below this, a part that is kept back would hold no instance.
const RESERVED_FROM: u64 = 256 << 20;

/// Memory that all guests may have together. The last eighth is for owners that hold little, so that guests that eat
/// all they can get do not keep the others from making an instance.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    /// What an owner that holds more than `little` may bring the sum to.
    open: u64,
    little: u64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        let reserve = if limit < RESERVED_FROM { 0 } else { limit / 8 };
        Arc::new(Self {
            limit,
            open: limit - reserve,
            little: reserve / 16,
            used: AtomicU64::new(0),
        })
    }

    /// Bytes there are in all.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` for an owner that holds `held` already, if they are there. Never lets the sum pass the limit,
    /// whoever else is taking.
    fn take(&self, bytes: u64, held: u64) -> bool {
        let limit = if held.saturating_add(bytes) <= self.little {
            self.limit
        } else {
            self.open
        };
        if bytes > limit {
            return false;
        }
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.checked_add(bytes).is_some_and(|after| after <= limit);
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one store holds of a budget; given back when it drops. `owner` counts the same bytes for one replica.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    owner: Arc<AtomicU64>,
    held: u64,
}

impl Share {
    /// Holds nothing yet.
    pub const fn new(budget: Arc<Budget>, owner: Arc<AtomicU64>) -> Self {
        Self { budget, owner, held: 0 }
    }

    /// Bytes held.
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Takes more; false, and nothing changes, where the budget is spent.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let taken = self.budget.take(bytes, self.owner.load(Ordering::Relaxed));
        if taken {
            self.held += bytes;
            self.owner.fetch_add(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Gives some back.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.held);
        self.held -= bytes;
        self.budget.give(bytes);
        self.owner.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give(self.held);
        self.owner.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_costs_nothing() {
        let budget = Budget::new(100);
        let owner = Arc::new(AtomicU64::new(0));
        let mut a = Share::new(Arc::clone(&budget), Arc::clone(&owner));
        let mut b = Share::new(Arc::clone(&budget), owner);
        assert!(a.grow(60));
        assert!(!b.grow(41));
        assert!(!b.grow(u64::MAX));
        assert!(b.grow(40));
        assert_eq!((budget.used(), a.held(), b.held()), (100, 60, 40));
    }

    #[test]
    fn owners_that_hold_much_leave_the_last_part_to_those_that_hold_little() {
        const MIB: u64 = 1 << 20;
        let budget = Budget::new(512 * MIB);
        let share = || Share::new(Arc::clone(&budget), Arc::new(AtomicU64::new(0)));
        let mut greedy: Vec<Share> = (0..20).map(|_| share()).collect();
        while greedy.iter_mut().filter(|s| s.held() < 60 * MIB).any(|s| s.grow(MIB)) {}
        let mut hello = share();
        assert!((0..3).all(|_| hello.grow(MIB)), "{} of 512 MiB", budget.used() / MIB);
        assert!(greedy.iter_mut().all(|s| !s.grow(4 * MIB)));
        assert!(budget.used() <= budget.limit());
    }

    #[test]
    fn a_share_is_given_back_when_its_store_drops() {
        let budget = Budget::new(100);
        let owner = Arc::new(AtomicU64::new(0));
        let mut share = Share::new(Arc::clone(&budget), Arc::clone(&owner));
        assert!(share.grow(70));
        assert_eq!(owner.load(Ordering::Relaxed), 70);
        drop(share);
        assert_eq!((budget.used(), owner.load(Ordering::Relaxed)), (0, 0));
    }
}
