//! Facts as words for people: durations, deaths, counts. Knows no planner.

use std::time::Duration;

use crate::model::time::millis;
use crate::model::{Death, Phase, Why};

/// `10 ms`, `1.5 s`, `60 s`, `5 min`.
pub fn duration(d: Duration) -> String {
    let ms = millis(d);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..300_000 if ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        1_000..300_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ if ms.is_multiple_of(60_000) => format!("{} min", ms / 60_000),
        _ => format!("{} s", ms / 1_000),
    }
}

/// A fragment that follows "died: ".
pub fn death(death: &Death) -> String {
    match death {
        Death::StartTrapped { reason } => format!("its start trapped: {reason}"),
        Death::CannotPrepare { reason } => format!("it cannot be prepared: {reason}"),
        Death::NoMemory => "no memory left in the node's budget".into(),
        Death::StartupProbe { last } => format!("its startup probe ran out: {last}"),
        Death::Traps { reason } => reason.clone(),
        Death::Exited { code } => format!("it ended by itself with code {code}"),
        Death::Stopped => "it was stopped".into(),
    }
}

/// The phase as views and logs name it.
pub fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Starting { .. } => "starting",
        Phase::Started { .. } => "started",
        Phase::Idle { .. } => "idle",
        Phase::Serving { .. } => "serving",
        Phase::Draining { .. } => "draining",
        Phase::Stopping { .. } => "stopping",
        Phase::Dead { .. } => "dead",
    }
}

/// Why a revision was refused, in the fewest words.
pub fn why(why: Why) -> &'static str {
    match why {
        Why::StartTrapped => "start trapped",
        Why::NeverReady => "never ready",
        Why::NoProgress => "no progress",
        Why::Died => "died while serving",
        Why::CannotPrepare => "cannot be prepared",
        Why::Asked => "asked for",
    }
}

/// `1 replica`, `3 replicas`.
pub fn many(n: impl Into<u64>, one: &str) -> String {
    let n = n.into();
    if n == 1 {
        format!("1 {one}")
    } else {
        format!("{n} {one}s")
    }
}

/// A length as a count.
pub(crate) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_the_largest_unit_that_stays_exact() {
        let said = [0, 10, 1_000, 1_500, 60_000, 300_000, 301_500].map(|ms| duration(Duration::from_millis(ms)));
        assert_eq!(said, ["0 ms", "10 ms", "1 s", "1.5 s", "60 s", "5 min", "301 s"]);
    }
}
