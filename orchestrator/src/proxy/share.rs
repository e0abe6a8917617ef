//! Who holds the connections. Below four fifths of the limit nobody is asked; above it, idle connections of an address that holds more
//! than a tenth close first, so that one client cannot keep the others out by doing nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::connection::Conn;

/// A look over all connections costs as much as there are: at most one in so long.
const PAUSE: Duration = Duration::from_millis(20);

type ByAddress = HashMap<IpAddr, HashMap<u64, Weak<Conn>>>;

/// All open connections of a server by address. Locked once when a connection opens and once when it closes.
pub struct Shares {
    max: usize,
    born: Instant,
    looked: AtomicU64,
    next: AtomicU64,
    open: Mutex<ByAddress>,
}

impl Shares {
    pub fn new(max: usize, now: Instant) -> Self {
        Self {
            max,
            born: now,
            looked: AtomicU64::new(0),
            next: AtomicU64::new(0),
            open: Mutex::default(),
        }
    }

    /// A number for a new connection.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection opened. `open`: how many there are now.
    pub fn enter(&self, address: IpAddr, number: u64, conn: &Arc<Conn>, open: usize, now: Instant) {
        self.lock()
            .entry(address)
            .or_default()
            .insert(number, Arc::downgrade(conn));
        let ms = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        let looked = self.looked.load(Ordering::Relaxed);
        if open > self.enough() && ms.saturating_sub(looked) >= PAUSE.as_millis().try_into().unwrap_or(0) {
            self.looked.store(ms, Ordering::Relaxed);
            self.relieve(open);
        }
    }

    /// Connections below which nobody is asked to close.
    fn enough(&self) -> usize {
        self.max * 4 / 5
    }

    pub fn leave(&self, address: IpAddr, number: u64) {
        let mut open = self.lock();
        if let Some(of_address) = open.get_mut(&address) {
            of_address.remove(&number);
            if of_address.is_empty() {
                open.remove(&address);
            }
        }
    }

    /// Asks idle connections of the greedy to close, until four fifths of the limit are left.
    pub fn relieve(&self, open: usize) {
        let surplus = open.saturating_sub(self.enough());
        let mut idle = Vec::new();
        for of_address in self.lock().values() {
            let mut above = excess(of_address.len(), self.max).min(surplus - idle.len());
            for conn in of_address.values().filter_map(Weak::upgrade) {
                if above > 0 && conn.is_idle() {
                    above -= 1;
                    idle.push(conn);
                }
            }
        }
        // Outside the lock: one of these may be the last handle of its connection, and closing takes the lock.
        for conn in idle {
            conn.evict();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ByAddress> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many connections over its share an address holds.
fn excess(held: usize, max: usize) -> usize {
    held.saturating_sub(max.div_ceil(10).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_nobodys_excess() {
        assert_eq!(excess(10, 100), 0);
        assert_eq!(excess(11, 100), 1);
        assert_eq!(excess(1, 3), 0);
    }
}
