//! The table of what the clients saw.

use crate::load::Seen;

/// One phase.
pub struct Row {
    pub what: &'static str,
    pub seen: Seen,
}

impl Row {
    pub fn of(what: &'static str, seen: Seen) -> Self {
        Self { what, seen }
    }
}

/// Counts and times in milliseconds, from when each request was due.
pub fn lines(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<16}{:>8}{:>8}{:>6}{:>9}{:>9}{:>9}",
        "WHAT", "SENT", "GOOD", "LOST", "P50 MS", "P99 MS", "MAX MS"
    )];
    for Row { what, seen } in rows {
        lines.push(format!(
            "{what:<16}{:>8}{:>8}{:>6}{:>9.1}{:>9.1}{:>9.1}",
            seen.sent,
            seen.good,
            seen.lost,
            seen.quantile_ms(0.5),
            seen.quantile_ms(0.99),
            seen.max_ms()
        ));
    }
    lines
}
