//! Time as a value. Decisions use [`Millis`], records that people read use [`Timestamp`]; only the shells look at a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Monotonic milliseconds since the process started. Never persisted, never compared across processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    pub const fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(millis(d)))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Whole milliseconds of a duration, saturating.
#[expect(
    clippy::cast_possible_truncation,
    reason = "compared with the largest u64 in the same line; try_from is not const"
)]
pub const fn millis(d: Duration) -> u64 {
    let ms = d.as_millis();
    if ms > u64::MAX as u128 { u64::MAX } else { ms as u64 }
}

/// Wall-clock milliseconds since 1970, UTC. For records and people only: no decision may depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Of RFC 3339, with any offset.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|t| Self(t.as_millisecond()))
    }

    /// RFC 3339 in UTC with milliseconds: `2026-11-24T05:30:31.000Z`.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0).map_or_else(|_| self.0.to_string(), |t| format!("{t:.3}"))
    }
}
