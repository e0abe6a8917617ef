//! When things are due: zones, gaps and folds by example, and by the thousand.

use jiff::civil::DateTime;
use proptest::prelude::*;

use super::*;
use crate::model::schedule::{CatchUp, Overlap, What};

const ZONES: [&str; 5] = [
    "Europe/Berlin",
    "America/New_York",
    "Asia/Seoul",
    "Australia/Lord_Howe",
    "UTC",
];

fn schedule(when: When, zone: &str) -> Schedule {
    Schedule {
        name: "s".into(),
        when,
        timezone: zone.into(),
        what: What::Run { args: vec![] },
        timeout: Duration::from_secs(300),
        overlap: Overlap::Forbid,
        catch_up: CatchUp::Skip,
        jitter: Duration::ZERO,
        retries: 0,
        history: 20,
    }
}

fn cron_in(text: &str, zone: &str) -> Times {
    Times::of(&schedule(When::Cron(text.into()), zone)).unwrap()
}

fn at_in(text: &str, zone: &str) -> Option<Timestamp> {
    Times::of(&schedule(When::At(text.parse().unwrap()), zone))
        .unwrap()
        .next(Timestamp(0))
}

fn utc(text: &str) -> Timestamp {
    Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
}

/// The next so many times, in UTC.
fn nexts(times: &Times, after: &str, n: usize) -> Vec<String> {
    let mut at = utc(after);
    let mut out = Vec::new();
    while out.len() < n
        && let Some(next) = times.next(at)
    {
        out.push(next.rfc3339().replace(":00.000Z", "Z"));
        at = next;
    }
    out
}

#[test]
fn midnight_is_the_zone_s_midnight() {
    assert_eq!(
        at_in("2026-12-01T00:00:00", "Asia/Seoul"),
        Some(utc("2026-11-30T15:00:00Z"))
    );
    assert_eq!(
        nexts(&cron_in("0 0 1 * *", "Asia/Seoul"), "2026-11-24T00:00:00Z", 2),
        ["2026-11-30T15:00Z", "2026-12-31T15:00Z"]
    );
}

#[test]
fn a_time_in_a_gap_runs_at_the_moment_the_gap_ends() {
    // Berlin 2027-03-28: 02:00 becomes 03:00, which is 01:00Z.
    for text in ["2027-03-28T02:00:00", "2027-03-28T02:30:00", "2027-03-28T02:59:59"] {
        assert_eq!(
            at_in(text, "Europe/Berlin"),
            Some(utc("2027-03-28T01:00:00Z")),
            "{text}"
        );
    }
    let nightly = cron_in("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        nexts(&nightly, "2027-03-26T12:00:00Z", 3),
        ["2027-03-27T01:30Z", "2027-03-28T01:00Z", "2027-03-29T00:30Z"]
    );
    // Two times in one gap are one moment.
    let twice = cron_in("15,45 2 * * *", "Europe/Berlin");
    assert_eq!(
        nexts(&twice, "2027-03-27T12:00:00Z", 3),
        ["2027-03-28T01:00Z", "2027-03-29T00:15Z", "2027-03-29T00:45Z"]
    );
    // Lord Howe jumps half an hour: 2026-10-04 02:00 becomes 02:30, which is 15:30Z.
    assert_eq!(
        at_in("2026-10-04T02:10:00", "Australia/Lord_Howe"),
        Some(utc("2026-10-03T15:30:00Z"))
    );
}

#[test]
fn a_time_that_comes_twice_runs_once_at_the_first() {
    // Berlin 2026-10-25: 03:00 becomes 02:00 again; 02:30 is 00:30Z and 01:30Z.
    assert_eq!(
        at_in("2026-10-25T02:30:00", "Europe/Berlin"),
        Some(utc("2026-10-25T00:30:00Z"))
    );
    for text in ["30 2 * * *", "30 2,14 * * *", "30 1-2 * * *"] {
        let times = cron_in(text, "Europe/Berlin");
        let twice: Vec<_> = nexts(&times, "2026-10-24T20:00:00Z", 6)
            .into_iter()
            .filter(|t| t == "2026-10-25T00:30Z" || t == "2026-10-25T01:30Z")
            .collect();
        assert_eq!(twice, ["2026-10-25T00:30Z"], "{text}");
    }
}

#[test]
fn a_cron_of_every_hour_goes_by_elapsed_time() {
    let hourly = cron_in("0 * * * *", "Europe/Berlin");
    assert_eq!(
        nexts(&hourly, "2026-10-24T23:30:00Z", 4),
        [
            "2026-10-25T00:00Z",
            "2026-10-25T01:00Z",
            "2026-10-25T02:00Z",
            "2026-10-25T03:00Z"
        ]
    );
    assert_eq!(
        nexts(&hourly, "2027-03-27T23:30:00Z", 3),
        ["2027-03-28T00:00Z", "2027-03-28T01:00Z", "2027-03-28T02:00Z"]
    );
}

#[test]
fn a_cron_that_no_day_has_is_known_and_one_of_a_leap_day_is_not_mistaken_for_it() {
    for never in ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
        assert!(!fires(&cron(never).unwrap()), "{never}");
    }
    for some in [
        "0 0 29 2 *",
        "0 0 L 2 *",
        "0 0 31 * *",
        "* * * * * *",
        "@daily",
        "0 9 * * MON-FRI",
    ] {
        assert!(fires(&cron(some).unwrap()), "{some}");
    }
    for no in [
        "",
        "* * *",
        "* * * * * * *",
        "61 * * * *",
        "hello",
        "@reboot",
        "0 0 0 * *",
    ] {
        assert!(cron(no).is_err(), "{no}");
    }
}

#[test]
fn every_weekday_is_met_by_its_name() {
    let names = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];
    for (n, name) in names.iter().enumerate() {
        for zone in ZONES {
            let times = cron_in(&format!("30 12 * * {name}"), zone);
            let mut at = utc("2026-01-01T00:00:00Z");
            for _ in 0..60 {
                at = times.next(at).unwrap();
                let shown = times.zoned(at).unwrap();
                let day = usize::try_from(shown.weekday().to_monday_zero_offset()).unwrap();
                assert_eq!(day, n, "{name} in {zone}");
                assert_eq!((shown.hour(), shown.minute()), (12, 30));
            }
        }
    }
}

#[test]
fn a_period_is_counted_from_1970() {
    let times = Times::of(&schedule(When::Every(Duration::from_secs(900)), "Asia/Seoul")).unwrap();
    assert_eq!(
        nexts(&times, "2026-11-24T08:59:59Z", 2),
        ["2026-11-24T09:00Z", "2026-11-24T09:15Z"]
    );
    assert_eq!(times.next(Timestamp(-1)), Some(Timestamp(0)));
}

#[test]
fn a_zone_nobody_knows_is_none_and_names_are_taken_in_any_case() {
    assert!(zone("Asia/Soul").is_none() && zone("+09:00").is_none() && zone("").is_none());
    assert_eq!(zone("asia/seoul").unwrap().iana_name(), Some("Asia/Seoul"));
    assert!(zone_names().len() > 400);
}

const CRONS: [&str; 14] = [
    "0 2 * * *",
    "30 2 * * *",
    "15,45 2 * * *",
    "0 0 1 * *",
    "0 0 L * *",
    "59 23 * * SUN",
    "*/7 * * * *",
    "0 */3 * * *",
    "30 1-3 * * *",
    "0 0 29 2 *",
    "5 0,12 * * MON-FRI",
    "0 9 * * MON#1",
    "*/20 30 2 * * *",
    "0 0 0 * * *",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_next_time_is_later_and_nothing_lies_between(
        cron in prop::sample::select(&CRONS[..]),
        zone in prop::sample::select(&ZONES[..]),
        after in 1_700_000_000_000_i64..1_900_000_000_000,
        look in 0.0_f64..1.0,
    ) {
        let times = cron_in(cron, zone);
        let after = Timestamp(after);
        let next = times.next(after).unwrap();
        prop_assert!(next > after);
        // From any moment before it, it is the next one.
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "some moment between the two")]
        let between = Timestamp(after.0 + ((next.0 - after.0 - 1) as f64 * look) as i64);
        prop_assert_eq!(times.next(between), Some(next));
        prop_assert_eq!(times.next(Timestamp(next.0 - 1)), Some(next));
    }

    #[test]
    fn the_next_time_is_shown_by_the_zone_s_clock_unless_that_jumps(
        hour in 0_i8..24, minute in 0_i8..60,
        zone in prop::sample::select(&ZONES[..]),
        after in 1_700_000_000_000_i64..1_900_000_000_000,
    ) {
        let times = cron_in(&format!("{minute} {hour} * * *"), zone);
        let next = times.next(Timestamp(after)).unwrap();
        let shown = times.zoned(next).unwrap().datetime();
        let (_, kind) = place(times.zone(), shown.date().at(hour, minute, 0, 0)).unwrap();
        match kind {
            Place::Gap(end) => prop_assert_eq!(next, end),
            Place::Once => prop_assert_eq!((shown.hour(), shown.minute(), shown.second()), (hour, minute, 0)),
            Place::Fold(first) => prop_assert_eq!(next, first),
        }
        // One on each day.
        prop_assert!(next.0 - after <= 25 * 3_600_000 + 1);
    }

    #[test]
    fn the_last_time_and_the_count_are_those_of_going_through_them_all(
        cron in prop::sample::select(&CRONS[..]),
        zone in prop::sample::select(&ZONES[..]),
        from in 1_700_000_000_000_i64..1_900_000_000_000,
        hours in 0_i64..100,
    ) {
        let times = cron_in(cron, zone);
        let (from, until) = (Timestamp(from), Timestamp(from + hours * 3_600_000));
        let (mut at, mut count, mut last) = (from, 0_u32, None);
        while let Some(next) = times.next(at).filter(|n| *n <= until) {
            (at, last) = (next, Some(next));
            count += 1;
        }
        prop_assert_eq!(times.last(from, until), last.map(|l| (l, count.min(MOST_MISSED))));
    }

    #[test]
    fn at_is_one_moment_and_never_twice(
        day in 0_i64..2_000, minute in 0_i64..1_440,
        zone in prop::sample::select(&ZONES[..]),
    ) {
        let civil: DateTime = "2024-01-01T00:00:00".parse().unwrap();
        let civil = civil.checked_add(jiff::Span::new().days(day).minutes(minute)).unwrap();
        let times = Times::of(&schedule(When::At(civil), zone)).unwrap();
        let at = times.next(Timestamp(0)).unwrap();
        prop_assert_eq!(times.next(at), None);
        prop_assert_eq!(times.last(Timestamp(0), at), Some((at, 1)));
        let shown = times.zoned(at).unwrap().datetime();
        prop_assert!(shown >= civil, "{shown} for {civil}");
    }

    #[test]
    fn no_text_panics(text in ".{0,40}", zone_name in ".{0,20}") {
        let _ = zone(&zone_name);
        if let Ok(cron) = cron(&text) {
            let _ = fires(&cron);
        }
    }
}
