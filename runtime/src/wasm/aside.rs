//! Whether a guest on this thread computes and has only stepped aside for its neighbours. Who would yield to write in batches
//! then does not: the yield would cost a whole turn of that guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

thread_local! {
    static ASIDE: Arc<AtomicUsize> = Arc::default();
}

/// Held while a guest lets others on; dropped with it.
pub(super) struct Aside(Arc<AtomicUsize>);

impl Aside {
    pub(super) fn step() -> Self {
        let count = ASIDE.with(Arc::clone);
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A guest of this thread waits to compute on.
pub fn computing() -> bool {
    ASIDE.with(|count| count.load(Ordering::Relaxed) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_steps_aside_is_seen_on_its_own_thread_until_it_is_back_or_gone() {
        assert!(!computing());
        let (one, two) = (Aside::step(), Aside::step());
        drop(one);
        assert!(computing());
        std::thread::spawn(|| assert!(!computing()))
            .join()
            .expect("another thread sees none");
        drop(two);
        assert!(!computing());
    }
}
