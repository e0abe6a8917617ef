//! What is decided about schedules, rule by rule, in a world whose clock can be put anywhere.

use proptest::prelude::*;

use super::*;
use crate::model::calendar;
use crate::model::schedule::{Firing, Hold, When};
use crate::plan::world::{Guest, World, clock, replica_count, service_name};

fn utc(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

fn replicas(name: &str, at: &str, n: u32, hold_secs: Option<u64>) -> Schedule {
    let what = What::Replicas {
        replicas: replica_count(n),
        hold: hold_secs.map(Duration::from_secs),
    };
    clock::schedule(name, When::At(at.parse().unwrap()), what)
}

fn beat(every_secs: u64) -> Schedule {
    let what = What::Request {
        method: "POST".into(),
        path: "/".into(),
    };
    clock::schedule("beat", When::Every(Duration::from_secs(every_secs)), what)
}

/// A service with these schedules, at noon.
fn world(schedules: Vec<Schedule>) -> World {
    let mut world = World::new(7);
    world.set_clock(utc("2026-11-30T12:00:00Z"));
    world.deploy("a", Guest::default(), |spec| spec.schedules = schedules);
    world.advance_secs(2);
    world
}

fn outcomes(world: &World, schedule: &str) -> Vec<(Cause, Outcome, u32)> {
    let entries = world.history("a", schedule);
    entries.iter().map(|f| (f.cause, f.outcome, f.times)).collect()
}

#[test]
fn the_newest_number_holds_and_at_its_end_the_one_before() {
    let mut world = world(vec![
        replicas("long", "2026-11-30T12:01:00", 2, Some(3_600)),
        replicas("short", "2026-11-30T12:02:00", 4, Some(60)),
    ]);
    let count = |world: &mut World, secs| world.advance_secs(secs).serving("a").len();
    assert_eq!(count(&mut world, 59), 2);
    assert_eq!(count(&mut world, 60), 4);
    assert_eq!(count(&mut world, 60), 2);
    assert_eq!(count(&mut world, 3_600), 1);
    assert_eq!(world.breaches, []);
}

#[test]
fn one_without_an_end_holds_until_the_next_and_leaves_nothing_to_go_back_to() {
    let mut world = world(vec![
        replicas("first", "2026-11-30T12:01:00", 2, Some(7_200)),
        replicas("ever", "2026-11-30T12:02:00", 3, None),
        replicas("last", "2026-11-30T12:10:00", 4, Some(60)),
    ]);
    world.advance_secs(200);
    assert_eq!(world.serving("a").len(), 3);
    world.advance_secs(420);
    assert_eq!(world.serving("a").len(), 4);
    world.advance_secs(86_400);
    assert_eq!(world.serving("a").len(), 3, "it holds for ever");
}

#[test]
fn a_restart_within_the_grace_is_on_time_and_a_later_one_is_not() {
    for (down_secs, expected) in [
        (8, (Cause::Due, Outcome::Done, 1)),
        (30, (Cause::Due, Outcome::Missed, 1)),
    ] {
        let mut world = world(vec![beat(60)]);
        world.advance_secs(57);
        world.leap(Duration::from_secs(1 + down_secs)).advance_secs(2);
        assert_eq!(outcomes(&world, "beat"), [expected], "down for {down_secs} s");
    }
}

#[test]
fn what_was_begun_by_a_process_that_ended_is_told_as_interrupted_and_not_begun_again() {
    let mut world = world(vec![beat(60)]);
    world.takes("a", Duration::from_secs(30)).advance_secs(60);
    assert_eq!(outcomes(&world, "beat"), [(Cause::Due, Outcome::Running, 1)]);
    world.reboot().advance_secs(10);
    assert_eq!(outcomes(&world, "beat"), [(Cause::Due, Outcome::Interrupted, 1)]);
}

#[test]
fn a_schedule_that_means_other_times_begins_anew_and_keeps_its_history_and_its_pause() {
    let mut world = world(vec![beat(60)]);
    world.advance_secs(60).pause_schedule("a", "beat", true);
    world.deploy("a", Guest::default(), |spec| spec.schedules = vec![beat(7)]);
    let state = world.desired.state_of(&service_name("a"), "beat").unwrap();
    assert_eq!((state.handled, state.paused), (world.wall(), true));
    assert_eq!(outcomes(&world, "beat"), [(Cause::Due, Outcome::Done, 1)]);
}

#[test]
fn what_no_revision_names_any_more_is_forgotten() {
    let mut world = world(vec![beat(60)]);
    let name = service_name("a");
    world.deploy("a", Guest::default(), |spec| spec.schedules.clear());
    world.advance_secs(2);
    assert!(
        world.desired.state_of(&name, "beat").is_some(),
        "an undo may bring it back"
    );
    let service = world.desired.services.get_mut(&name).unwrap();
    service.revisions.remove(&RevisionNumber(1));
    world.settle();
    assert!(world.desired.state_of(&name, "beat").is_none());
}

#[test]
fn a_time_that_is_past_when_it_is_deployed_never_comes_and_is_told() {
    let mut world = World::new(1);
    world.tracing = true;
    world.set_clock(utc("2026-11-30T12:00:00Z"));
    world.deploy("a", Guest::default(), |spec| {
        spec.schedules = vec![replicas("late", "2026-11-30T11:00:00", 3, None)];
    });
    world.advance_secs(86_400);
    assert_eq!(world.serving("a"), [1]);
    assert_eq!(outcomes(&world, "late"), []);
}

#[test]
fn the_history_is_bounded_and_times_missed_in_a_row_are_one_entry() {
    let mut state = ScheduleState::new(service_name("a"), &beat(1), Timestamp(0));
    let entry = |n: i64, outcome| Firing {
        outcome,
        ..begins(
            Begun {
                due: Timestamp(n),
                at: Timestamp(n),
            },
            Cause::Due,
            "x".into(),
        )
    };
    for n in 0..500 {
        state.note(entry(n, Outcome::Missed), 20);
    }
    assert_eq!((state.history.len(), state.history[0].times), (1, 500));
    for n in 0..500 {
        state.note(entry(n, Outcome::Done), 20);
    }
    assert_eq!((state.history.len(), state.history[0].due), (20, Timestamp(480)));
}

#[test]
fn what_is_not_done_stays_in_the_shortest_history_and_forbids_the_next() {
    let mut schedule = beat(60);
    schedule.history = 1;
    let mut world = world(vec![schedule]);
    world.takes("a", Duration::from_secs(590)).advance_secs(330);
    let found = outcomes(&world, "beat");
    assert_eq!(
        found,
        [(Cause::Due, Outcome::Running, 1), (Cause::Due, Outcome::Skipped, 4)]
    );
    world.advance_secs(320);
    assert_eq!(outcomes(&world, "beat")[0], (Cause::Due, Outcome::Done, 1));
    world.advance_secs(60);
    assert_eq!(outcomes(&world, "beat").last().unwrap().1, Outcome::Running);
}

#[test]
fn no_more_than_sixteen_of_one_schedule_are_begun_and_none_is_lost() {
    let mut schedule = beat(10);
    (schedule.history, schedule.overlap) = (1, Overlap::Allow);
    let mut world = world(vec![schedule]);
    world.takes("a", Duration::from_secs(3_600)).advance_secs(600);
    let state = world.desired.state_of(&service_name("a"), "beat").unwrap();
    assert_eq!(
        (state.open(), state.history.len()),
        (RUNNING_OF_ONE, RUNNING_OF_ONE + 1)
    );
}

#[test]
fn a_burst_of_a_service_that_is_gone_or_that_was_never_written_is_forgotten() {
    let mut world = world(vec![replicas("day", "2026-11-30T12:01:00", 3, Some(600))]);
    let burst = |due| Burst {
        begun: Begun {
            due: Timestamp(1),
            at: Timestamp(1),
        },
        due,
        wanted: 3,
        before: BTreeSet::new(),
    };
    let (now, wall) = (world.now, world.wall());
    let key = |service: &str| (service_name(service), "day".to_owned());
    let mut view = ScheduleView::default();
    view.bursts.insert(key("a"), burst(now));
    view.bursts.insert(key("b"), burst(now));
    observe(&world.desired, &mut view, now, wall);
    assert_eq!(
        view.bursts.keys().collect::<Vec<_>>(),
        [&key("a")],
        "it may be written yet"
    );
    let later = now.plus(BURST_WAIT);
    observe(&world.desired, &mut view, later, wall);
    assert!(view.bursts.is_empty());
    world.advance_secs(60);
    let state = world.clock.view.bursts.clone();
    world.advance_secs(600);
    assert!(state.len() <= 1 && world.clock.view.bursts.is_empty());
}

#[test]
fn a_hold_ends_by_the_monotonic_clock_whatever_the_wall_clock_does() {
    for step_ms in [-86_400_000, 86_400_000] {
        let mut world = world(vec![replicas("day", "2026-11-30T12:01:00", 3, Some(600))]);
        world.advance_secs(60).put_clock(step_ms).settle();
        world.advance_secs(590);
        assert_eq!(world.serving("a").len(), 3, "{step_ms}");
        world.advance_secs(60);
        assert_eq!(world.serving("a").len(), 1, "{step_ms}");
    }
}

#[test]
fn a_clock_that_is_far_back_makes_no_hold_longer_than_the_file_says() {
    let mut world = world(vec![replicas("day", "2026-11-30T12:01:00", 3, Some(600))]);
    world.advance_secs(60).put_clock(-30 * 86_400_000).reboot();
    world.advance_secs(601);
    assert_eq!(world.serving("a").len(), 1);
}

#[test]
fn lateness_is_told_by_its_least_its_middle_and_its_most() {
    assert_eq!(skew(vec![]), None);
    let skew = skew(vec![30, 10, 20, 90]).unwrap();
    assert_eq!((skew.min_ms, skew.median_ms, skew.max_ms), (10, 30, 90));
}

#[test]
fn a_record_of_the_version_before_is_read() {
    let hold: Hold = serde_json::from_str(r#"{"schedule":"a","replicas":3,"due":5,"until":null}"#).unwrap();
    assert_eq!(hold.until, None);
    let text = r#"{"service":"a","name":"b","when":{"every":{"secs":1,"nanos":0}},"timezone":"UTC","handled":5}"#;
    let state: ScheduleState = serde_json::from_str(text).unwrap();
    assert_eq!((state.fired, state.paused, state.history.len()), (None, false, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_time_with_jitter_comes_once_and_never_later_than_the_jitter(
        seed: u64, jitter_secs in 0_u64..50, minutes in 1_u64..20,
    ) {
        let mut schedule = beat(60);
        schedule.jitter = Duration::from_secs(jitter_secs);
        schedule.history = 100;
        let mut world = World::new(1);
        world.clock.view.seed = seed;
        world.set_clock(utc("2026-11-30T12:00:00Z"));
        world.deploy("a", Guest::default(), |spec| spec.schedules = vec![schedule]);
        world.advance_secs(minutes * 60 + 59);
        let entries = world.history("a", "beat");
        prop_assert!(entries.len() as u64 >= minutes);
        for (n, entry) in entries.iter().enumerate() {
            prop_assert_eq!(entry.due.0, utc("2026-11-30T12:01:00Z").0 + i64::try_from(n).unwrap() * 60_000);
            prop_assert!(calendar::between(entry.due, entry.at) <= Duration::from_secs(jitter_secs));
        }
        prop_assert!(world.breaches.is_empty());
    }
}
