//! The rules of `[[schedule]]`, one test each: what is read, what is refused and where, and that it is printed back as it was.

use proptest::prelude::*;

use super::super::{Severity, effective, service};
use super::*;

const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\nroutes = [\"/\"]\n";

fn file(schedule: &str) -> String {
    format!("{HEAD}[[schedule]]\nname = \"s\"\n{schedule}\n")
}

/// Codes and places of what is wrong.
fn wrong(schedule: &str) -> Vec<(Code, u32, u32)> {
    let found = service(&file(schedule), "a.toml").map_or_else(|p| p, |c| c.warnings);
    found
        .iter()
        .map(|p| {
            let (line, column) = p.position().unwrap();
            (p.code, line, column)
        })
        .collect()
}

fn good(schedule: &str) -> Schedule {
    let checked = service(&file(schedule), "a.toml").unwrap_or_else(|p| panic!("{p:?}"));
    checked.spec.schedules[0].clone()
}

#[test]
fn the_schedules_of_the_reference_are_read() {
    let launch = good("at = \"2126-12-01T00:00:00\"\ntimezone = \"Asia/Seoul\"\nreplicas = 100\nfor = \"2h\"");
    assert_eq!(
        launch.what,
        What::Replicas {
            replicas: ReplicaCount::new(100).unwrap(),
            hold: Some(std::time::Duration::from_secs(7_200)),
        }
    );
    let nightly = good(
        "cron = \"0 2 * * *\"\nrequest = { method = \"POST\", path = \"/tasks/report\" }\ntimeout = \"5m\"\noverlap = \"forbid\"\n\
         catch_up = \"once\"\njitter = \"30s\"\nretries = 3\nhistory = 20",
    );
    assert_eq!(nightly.when, When::Cron("0 2 * * *".into()));
    assert_eq!((nightly.retries, nightly.catch_up), (3, CatchUp::Once));
    let small = good("every = \"15m\"\nrequest = { path = \"/tick?x=1\" }");
    assert_eq!((small.retries, small.history, small.timezone.as_str()), (0, 20, "UTC"));
    assert_eq!(
        small.what,
        What::Request {
            method: "POST".into(),
            path: "/tick?x=1".into()
        }
    );
}

#[test]
fn a_cron_that_never_fires_is_refused_at_its_place() {
    assert_eq!(
        wrong("cron = \"0 0 31 2 *\"\nreplicas = 2"),
        [(Code::CronNeverFires, 6, 8)]
    );
    assert_eq!(wrong("cron = \"0 0 29 2 *\"\nreplicas = 2"), []);
}

#[test]
fn every_mistake_is_told_with_its_place() {
    for (text, expected) in [
        ("every = \"1m\"", vec![(Code::ScheduleIncomplete, 4, 1)]),
        ("replicas = 2", vec![(Code::ScheduleIncomplete, 4, 1)]),
        (
            "every = \"1m\"\ncron = \"* * * * *\"\nreplicas = 1",
            vec![(Code::ScheduleIncomplete, 6, 9)],
        ),
        (
            "every = \"1m\"\nreplicas = 1\nrequest = { path = \"/\" }",
            vec![(Code::ScheduleIncomplete, 8, 11)],
        ),
        ("cron = \"* * *\"\nreplicas = 1", vec![(Code::BadCron, 6, 8)]),
        ("cron = 5\nreplicas = 1", vec![(Code::WrongType, 6, 8)]),
        (
            "cron = \"0 2 * * *\"\ntimezone = \"Asia/Soul\"\nreplicas = 1",
            vec![(Code::UnknownZone, 7, 12)],
        ),
        ("at = \"tomorrow\"\nreplicas = 1", vec![(Code::BadTime, 6, 6)]),
        ("at = \"2126-12-01\"\nreplicas = 1", vec![(Code::BadTime, 6, 6)]),
        (
            "at = \"2126-12-01T00:00:00Z\"\nreplicas = 1",
            vec![(Code::BadTime, 6, 6)],
        ),
        ("every = \"500ms\"\nreplicas = 1", vec![(Code::OutOfRange, 6, 9)]),
        (
            "every = \"1m\"\nrequest = { path = \"tick\" }",
            vec![(Code::BadPath, 7, 20)],
        ),
        (
            "every = \"1m\"\nrequest = { method = \"POST\" }",
            vec![(Code::MissingKey, 7, 11)],
        ),
        (
            "every = \"1m\"\nrequest = { path = \"/\" }\nfor = \"1h\"",
            vec![(Code::Contradiction, 8, 7)],
        ),
        (
            "every = \"1m\"\nreplicas = 3\nretries = 1",
            vec![(Code::Contradiction, 8, 11)],
        ),
        (
            "every = \"1m\"\njitter = \"1m\"\nreplicas = 3",
            vec![(Code::Contradiction, 7, 10)],
        ),
        (
            "every = \"1m\"\nreplicas = 3\nhistory = 0",
            vec![(Code::OutOfRange, 8, 11)],
        ),
    ] {
        assert_eq!(wrong(text), expected, "{text}");
    }
}

#[test]
fn a_zone_is_guessed_by_spelling_and_by_city() {
    for (typed, near) in [
        ("Asia/Soul", "Asia/Seoul"),
        ("Seoul", "Asia/Seoul"),
        ("europe/berln", "Europe/Berlin"),
        ("New_York", "America/New_York"),
    ] {
        let found = service(
            &file(&format!("every = \"1m\"\ntimezone = \"{typed}\"\nreplicas = 1")),
            "a.toml",
        )
        .unwrap_err();
        let help = found[0].help.clone().unwrap_or_default();
        assert!(help.contains(near), "{typed}: {help}");
    }
}

#[test]
fn two_schedules_of_one_name_are_refused() {
    let text = file("every = \"1m\"\nreplicas = 1\n[[schedule]]\nname = \"s\"\nevery = \"2m\"\nreplicas = 2");
    let found = service(&text, "a.toml").unwrap_err();
    assert_eq!(
        found.iter().map(|p| p.code).collect::<Vec<_>>(),
        [Code::DuplicateSchedule]
    );
}

#[test]
fn what_does_not_fit_the_world_is_refused() {
    for (world, key) in [
        ("http", "args = []"),
        ("command", "request = { path = \"/\" }"),
        ("command", "replicas = 3"),
    ] {
        let text = format!(
            "name = \"a\"\nmodule = \"a.wasm\"\nworld = \"{world}\"\n[[schedule]]\nname = \"s\"\nevery = \"1m\"\n{key}\n"
        );
        let found = service(&text, "a.toml").unwrap_err();
        assert!(
            found.iter().any(|p| p.code == Code::ScheduleWorld),
            "{world} {key}: {found:?}"
        );
    }
}

#[test]
fn a_time_that_the_clock_skips_or_shows_twice_is_a_warning_that_says_when_it_runs() {
    for (at, said) in [
        ("2126-03-31T02:30:00", "2126-03-31 03:00:00 CEST"),
        ("2126-10-27T02:30:00", "2126-10-27 02:30:00 CEST"),
    ] {
        let checked = service(
            &file(&format!("at = \"{at}\"\ntimezone = \"Europe/Berlin\"\nreplicas = 2")),
            "a.toml",
        )
        .unwrap();
        let [warning] = checked.warnings.as_slice() else {
            panic!("{:?}", checked.warnings)
        };
        assert_eq!(
            (warning.code, warning.severity),
            (Code::ScheduleClock, Severity::Warning)
        );
        let help = warning.help.clone().unwrap_or_default();
        assert!(help.contains(said), "{help}");
    }
}

#[test]
fn a_time_that_is_past_is_a_warning_for_whoever_knows_the_time() {
    let spec = service(&file("at = \"2026-12-01T00:00:00\"\nreplicas = 2"), "a.toml")
        .unwrap()
        .spec;
    let at = |text: &str| Timestamp(text.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    assert_eq!(past(&spec, None, at("2026-11-30T00:00:00Z")), []);
    assert_eq!(
        past(&spec, None, at("2026-12-02T00:00:00Z"))[0].code,
        Code::SchedulePast
    );
}

#[test]
fn what_is_printed_with_every_default_reads_back_as_the_same() {
    for text in [
        "at = \"2126-12-01T00:00\"\ntimezone = \"asia/seoul\"\nreplicas = 100\nfor = \"2h\"",
        "cron = \" 0 2 * * * \"\nrequest = { path = \"/x\" }\noverlap = \"replace\"\nretries = 3\njitter = \"3s\"",
        "every = \"1h\"\nreplicas = 0\ncatch_up = \"once\"",
    ] {
        let spec = service(&file(text), "a.toml").unwrap().spec;
        let printed = effective(&spec);
        assert_eq!(service(&printed, "b.toml").unwrap().spec, spec, "{printed}");
    }
}

proptest! {
    #[test]
    fn no_schedule_panics(at in ".{0,30}", cron in "[0-9*/,L# -]{0,20}", zone in ".{0,20}", every in "[0-9a-z]{0,8}") {
        let text = format!(
            "[[schedule]]\nname = \"s\"\nat = {at:?}\ncron = {cron:?}\ntimezone = {zone:?}\nevery = {every:?}\nreplicas = 1\n"
        );
        let _ = service(&format!("{HEAD}{text}"), "a.toml");
    }
}
