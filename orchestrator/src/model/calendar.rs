//! When a schedule is due: arithmetic on the zone data inside the binary. Knows no clock: every question brings its moment.
//!
//! Where a zone's clock jumps, `at` and every `cron` whose hours are written out run at the end of a gap when their time lies
//! in it, and once, at the first of the two, when it comes twice. A `cron` whose hours are `*` (or `*/n`) goes by elapsed
//! time: through both halves of a repeated hour, and over a gap.

use std::sync::LazyLock;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Year};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Zoned};

use super::schedule::{Schedule, When};
use super::time::{Timestamp, millis};

/// The zones inside the binary: the same answer on every machine, whatever is installed there.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// More steps than the second-by-second times of the longest repeated hour.
const STEPS: u32 = 20_000;
/// No more missed times are counted.
pub const MOST_MISSED: u32 = 1_000;

/// The zone of this name, upper and lower case alike.
pub fn zone(name: &str) -> Option<TimeZone> {
    if name.eq_ignore_ascii_case("utc") {
        return Some(TimeZone::UTC);
    }
    ZONES.get(name).ok()
}

/// Every name there is.
pub fn zone_names() -> Vec<String> {
    ZONES.available().map(|name| name.as_str().to_owned()).collect()
}

/// A cron expression of 5 fields, of 6 with seconds first, or a nickname (`@daily`).
///
/// # Errors
/// One sentence that says what is wrong.
pub fn cron(text: &str) -> Result<Cron, String> {
    let fields = text.split_whitespace().count();
    let nickname = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"]
        .iter()
        .any(|n| text.trim().eq_ignore_ascii_case(n));
    if !nickname && !matches!(fields, 5 | 6) {
        return Err(format!("it has {fields} fields, not 5 or 6"));
    }
    let parser = CronParser::builder().year(Year::Disallowed).build();
    parser.parse(text.trim()).map_err(|error| error.to_string())
}

/// Whether some day has such a time: croner takes 31 February.
pub fn fires(cron: &Cron) -> bool {
    // The calendar repeats every 400 years; where the search begins does not matter.
    let from = jiff::civil::date(2000, 1, 1).at(0, 0, 0, 0);
    from.to_zoned(TimeZone::UTC).is_ok_and(|from| {
        cron.find_next_occurrence(&from, true)
            .is_ok_and(|found| found.year() < 2400)
    })
}

/// Where `at` lies in its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Once,
    /// Never there: the clock jumps over it. The moment the gap ends.
    Gap(Timestamp),
    /// There twice. The first.
    Fold(Timestamp),
}

/// The moment that a zone's clock shows `civil`.
pub fn place(zone: &TimeZone, civil: jiff::civil::DateTime) -> Option<(Timestamp, Place)> {
    let ambiguous = zone.to_ambiguous_zoned(civil);
    let (at, place): (Timestamp, fn(Timestamp) -> Place) = match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => (stamp(&ambiguous.unambiguous().ok()?), |_| Place::Once),
        AmbiguousOffset::Fold { .. } => (stamp(&ambiguous.earlier().ok()?), Place::Fold),
        // Read with the offset after the gap it lies before the gap's end: the next change of offset is that end.
        AmbiguousOffset::Gap { .. } => {
            let before = ambiguous.earlier().ok()?;
            let end = zone.following(before.timestamp()).next()?.timestamp();
            (Timestamp(end.as_millisecond()), Place::Gap)
        }
    };
    Some((at, place(at)))
}

fn stamp(at: &Zoned) -> Timestamp {
    Timestamp(at.timestamp().as_millisecond())
}

/// The times of one schedule, parsed once.
#[derive(Clone, Debug)]
pub struct Times {
    zone: TimeZone,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    At(Timestamp),
    /// Milliseconds, at least 1.
    Every(i64),
    /// By the times that the zone's clock shows.
    Clock(Box<Cron>),
    /// By elapsed time.
    Elapsed(Box<Cron>),
}

impl Times {
    /// None: a rule or a zone that this version does not understand; it has no times.
    pub fn of(schedule: &Schedule) -> Option<Self> {
        let zone = zone(&schedule.timezone)?;
        let rule = match &schedule.when {
            When::At(civil) => Rule::At(place(&zone, *civil)?.0),
            When::Every(period) => Rule::Every(i64::try_from(millis(*period)).ok().filter(|ms| *ms > 0)?),
            When::Cron(text) => {
                let cron = cron(text).ok()?;
                if cron.pattern.hours.from_wildcard {
                    Rule::Elapsed(Box::new(cron))
                } else {
                    Rule::Clock(Box::new(cron))
                }
            }
        };
        Some(Self { zone, rule })
    }

    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first time strictly after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::At(at) => (*at > after).then_some(*at),
            Rule::Every(ms) => {
                let n = after.0.div_euclid(*ms).checked_add(1)?;
                n.checked_mul(*ms).map(Timestamp)
            }
            Rule::Elapsed(cron) => {
                let start = self.zoned(after)?;
                let found = cron.find_next_occurrence(&start, false).ok()?;
                Some(stamp(&found)).filter(|found| *found > after)
            }
            Rule::Clock(cron) => self.next_by_clock(cron, after),
        }
    }

    /// Searches the zone's clock as if it never jumped, then asks when it shows what was found.
    fn next_by_clock(&self, cron: &Cron, after: Timestamp) -> Option<Timestamp> {
        let mut civil = self.zoned(after)?.datetime();
        for _ in 0..STEPS {
            let found = cron
                .find_next_occurrence(&civil.to_zoned(TimeZone::UTC).ok()?, false)
                .ok()?;
            let (at, _) = place(&self.zone, found.datetime())?;
            if at > after {
                return Some(at);
            }
            civil = found.datetime();
        }
        None
    }

    fn zoned(&self, at: Timestamp) -> Option<Zoned> {
        let second = jiff::Timestamp::from_second(at.0.div_euclid(1000)).ok()?;
        Some(second.to_zoned(self.zone.clone()))
    }

    /// The last time after `from` and not after `until`, and how many there were (at most [`MOST_MISSED`]).
    pub fn last(&self, from: Timestamp, until: Timestamp) -> Option<(Timestamp, u32)> {
        if from >= until {
            return None;
        }
        match &self.rule {
            Rule::At(at) => (*at > from && *at <= until).then_some((*at, 1)),
            Rule::Every(ms) => {
                let (before, last) = (from.0.div_euclid(*ms), until.0.div_euclid(*ms));
                let count = last.checked_sub(before).filter(|n| *n > 0)?;
                let count = u32::try_from(count).unwrap_or(MOST_MISSED).min(MOST_MISSED);
                last.checked_mul(*ms).map(|at| (Timestamp(at), count))
            }
            Rule::Clock(_) | Rule::Elapsed(_) => self.last_of_many(from, until),
        }
    }

    /// Looks back in growing steps, so that neither seconds over years nor years without a time take long.
    fn last_of_many(&self, from: Timestamp, until: Timestamp) -> Option<(Timestamp, u32)> {
        const MINUTE: i64 = 60_000;
        const LOOKS: [i64; 6] = [
            MINUTE,
            60 * MINUTE,
            1_440 * MINUTE,
            40 * 1_440 * MINUTE,
            1_500 * 1_440 * MINUTE,
            i64::MAX,
        ];
        for look in LOOKS {
            let start = from.max(Timestamp(until.0.saturating_sub(look)));
            let mut found = None;
            let mut at = start;
            while let Some(next) = self.next(at).filter(|next| *next <= until) {
                (found, at) = (Some(next), next);
            }
            match found {
                Some(last) => return Some((last, self.count(from, last))),
                None if start == from => return None,
                None => {}
            }
        }
        None
    }

    fn count(&self, from: Timestamp, last: Timestamp) -> u32 {
        let (mut at, mut count) = (from, 0);
        while count < MOST_MISSED
            && let Some(next) = self.next(at).filter(|next| *next <= last)
        {
            (at, count) = (next, count + 1);
        }
        count.max(1)
    }

    /// How the zone's clock shows a moment: `2026-12-01 02:00:00 KST`.
    pub fn show(&self, at: Timestamp) -> String {
        show(&self.zone, at)
    }
}

/// How a zone's clock shows a moment: `2026-12-01 02:00:00 KST`.
pub fn show(zone: &TimeZone, at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(
        |_| at.0.to_string(),
        |t| t.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
    )
}

/// `at` plus `by`, as far as time is counted.
pub fn plus(at: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp(at.0.saturating_add(by))
}

/// From `earlier` to `later`; zero when it is the other way round.
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(later.0.saturating_sub(earlier.0)).unwrap_or(0))
}

#[cfg(test)]
#[path = "calendar/tests.rs"]
mod tests;
