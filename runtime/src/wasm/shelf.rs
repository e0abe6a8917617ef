//! The idle instances of one replica, for guests whose instances serve more than one request.
//!
//! Kept in shards, one per thread as far as there are enough, so that a core finds what it used last. There is no timer
//! for each instance: who sweeps says what time it is.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Shards: more threads than this share.
pub const SHARDS: usize = 8;

/// An idle thing, how often it served and since when it waits.
struct Idle<T> {
    thing: T,
    served: u32,
    since: u64,
}

/// Idle instances; `T` is the instance.
pub struct Shelf<T> {
    shards: [Mutex<Vec<Idle<T>>>; SHARDS],
    count: AtomicUsize,
    most: usize,
}

impl<T> Shelf<T> {
    /// A shelf for at most `most` instances.
    pub fn new(most: u32) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(Vec::new())),
            count: AtomicUsize::new(0),
            most: most as usize,
        }
    }

    /// Instances waiting now.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The instance this thread put back last, or another's; with the number of requests it has served.
    pub fn take(&self) -> Option<(T, u32)> {
        if self.len() == 0 {
            return None;
        }
        let own = shard();
        for i in 0..SHARDS {
            let mut shard = self.shards[(own + i) % SHARDS]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(idle) = shard.pop() {
                self.count.fetch_sub(1, Ordering::Relaxed);
                return Some((idle.thing, idle.served));
            }
        }
        None
    }

    /// Puts one back; a full shelf returns it to be thrown away by the caller, outside any lock.
    pub fn put(&self, thing: T, served: u32, now: u64) -> Option<T> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Some(thing);
        }
        let idle = Idle {
            thing,
            served,
            since: now,
        };
        self.shards[shard()]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(idle);
        None
    }

    /// Throws away what has waited since before `before`. Returns how many.
    pub fn trim(&self, before: u64) -> usize {
        let mut gone = 0;
        for shard in &self.shards {
            // The longest waiting are at the front. Dropped outside the lock: giving a slot back takes its time.
            let old: Vec<_> = {
                let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                let keep = shard
                    .iter()
                    .position(|idle| idle.since >= before)
                    .unwrap_or(shard.len());
                shard.drain(..keep).collect()
            };
            self.count.fetch_sub(old.len(), Ordering::Relaxed);
            gone += old.len();
        }
        gone
    }
}

/// The shard of this thread.
pub fn shard() -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) as usize % SHARDS;
    }
    MINE.with(|mine| *mine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_put_back_is_the_first_one_taken() {
        let shelf = Shelf::new(4);
        assert!(shelf.put("old", 1, 0).is_none());
        assert!(shelf.put("warm", 2, 0).is_none());
        assert_eq!(shelf.take(), Some(("warm", 2)));
        assert_eq!(shelf.take(), Some(("old", 1)));
        assert_eq!(shelf.take(), None);
    }

    #[test]
    fn a_full_shelf_gives_it_back() {
        let shelf = Shelf::new(1);
        assert_eq!(shelf.put(1, 0, 0), None);
        assert_eq!(shelf.put(2, 0, 0), Some(2));
        assert_eq!(shelf.len(), 1);
    }

    #[test]
    fn another_threads_instance_is_found() {
        let shelf = std::sync::Arc::new(Shelf::new(4));
        let other = std::sync::Arc::clone(&shelf);
        std::thread::spawn(move || other.put(7, 0, 0)).join().unwrap();
        assert_eq!(shelf.take(), Some((7, 0)));
    }

    #[test]
    fn only_what_waited_too_long_is_trimmed() {
        let shelf = Shelf::new(4);
        shelf.put(1, 0, 10);
        shelf.put(2, 0, 20);
        assert_eq!(shelf.trim(15), 1);
        assert_eq!((shelf.len(), shelf.take()), (1, Some((2, 0))));
    }
}
