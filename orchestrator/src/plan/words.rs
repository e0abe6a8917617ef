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

/// A short time: `121 us`, `300 ms`, `1.5 s`.
pub fn fine(d: Duration) -> String {
    match d.as_micros() {
        us @ 0..1_000 => format!("{us} us"),
        us @ 1_000..100_000 if us % 1_000 >= 100 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => duration(d),
    }
}

/// Thousandths: `5 %`, `0.5 %`.
pub fn share(permille: u32) -> String {
    if permille.is_multiple_of(10) {
        format!("{} %", permille / 10)
    } else {
        format!("{}.{} %", permille / 10, permille % 10)
    }
}

/// A fragment that follows "died: ".
pub fn death(death: &Death) -> String {
    match death {
        Death::StartTrapped { reason } => format!("its start trapped: {reason}"),
        Death::CannotPrepare { reason } => format!("it cannot be prepared: {reason}"),
        Death::NoMemory => "no memory left in the node's budget".into(),
        Death::StartupProbe { last } => format!("its startup probe ran out: {last}"),
        Death::Liveness { last } => format!("its liveness probe failed: {last}"),
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
        Why::Gate => "gate failed",
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

/// Thousandths with one decimal: `8.1`.
pub fn tenths(milli: u64) -> String {
    format!("{}.{}", milli / 1_000, milli % 1_000 / 100)
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
