//! The two clocks as values: whoever needs the time is handed one, and only the shells make the real one.

use std::sync::Arc;

use crate::model::{Millis, Timestamp};

/// Reads the wall clock (for records and people) and the monotonic clock (for decisions). Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    monotonic: Arc<dyn Fn() -> Millis + Send + Sync>,
}

impl Clock {
    /// A clock made of these two functions.
    pub fn new(
        wall: impl Fn() -> Timestamp + Send + Sync + 'static,
        monotonic: impl Fn() -> Millis + Send + Sync + 'static,
    ) -> Self {
        Self {
            wall: Arc::new(wall),
            monotonic: Arc::new(monotonic),
        }
    }

    /// This machine's clocks; monotonic time starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place where the real clocks are read")]
    pub fn system() -> Self {
        let start = std::time::Instant::now();
        Self::new(
            || {
                let since = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            },
            move || Millis::default().plus(start.elapsed()),
        )
    }

    pub fn wall(&self) -> Timestamp {
        (self.wall)()
    }

    pub fn monotonic(&self) -> Millis {
        (self.monotonic)()
    }

    /// How long it is until then; zero when it has passed.
    pub fn until(&self, at: Millis) -> std::time::Duration {
        at.since(self.monotonic())
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Clock;
    use crate::model::{Millis, Timestamp};

    /// A clock that moves when told to.
    #[derive(Clone, Default)]
    pub(crate) struct Hand(Arc<AtomicU64>);

    impl Hand {
        pub(crate) fn clock(&self) -> Clock {
            let (wall, monotonic) = (self.0.clone(), self.0.clone());
            Clock::new(
                move || Timestamp(i64::try_from(wall.load(Ordering::SeqCst)).unwrap()),
                move || Millis(monotonic.load(Ordering::SeqCst)),
            )
        }

        pub(crate) fn advance_ms(&self, ms: u64) {
            self.0.fetch_add(ms, Ordering::SeqCst);
        }
    }
}
