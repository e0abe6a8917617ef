//! Seeded worlds with a wall clock that jumps: whatever the clock, people and faults do, no time of a schedule is acted on twice, a
//! jump is caught up once at most, nothing happens early or while it is paused, and no service is stopped by it.

use std::time::Duration;

use fastrand::Rng;
use narae_orchestrator::model::schedule::{CatchUp, Cause, Outcome, Overlap, Schedule, What, When};
use narae_orchestrator::model::{Death, Timestamp};
use narae_orchestrator::plan::check::{Breach, Law};
use narae_orchestrator::plan::schedule::{self as plan, ScheduleAction};
use narae_orchestrator::plan::world::{Guest, World, clock, replica_count, service_name};

use super::number;

const STEPS: u32 = 60;
const NAMES: [&str; 2] = ["shop", "tick"];
const SCHEDULES: [&str; 3] = ["day", "hour", "minute"];

#[test]
fn whatever_the_clock_does_no_schedule_breaks_a_law() {
    let seeds = number("NARAE_SEEDS").unwrap_or(300);
    let mut seen = Seen::default();
    for seed in 0..seeds {
        let breaches = play(seed, &|_| {}, &mut seen);
        assert!(breaches.is_empty(), "seed {seed}: {}", breaches[0]);
    }
    println!("{seen:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(
        seen.due > 0 && seen.caught_up > 0 && seen.missed > 0 && seen.skipped > 0 && seen.replaced > 0,
        "{seen:?}"
    );
}

type PutIn = fn(&mut World);

#[test]
fn every_broken_planner_of_schedules_is_caught_by_a_law() {
    let mutants: [(&str, Law, PutIn); 5] = [
        ("acts again on what it acted on", Law::Once, |w| {
            edit(w, |desired, actions, _| {
                for states in desired.schedules.values() {
                    for state in states.values() {
                        if let Some(due) = state.fired {
                            push(desired, actions, state, due, Cause::Due);
                        }
                    }
                }
            });
        }),
        ("catches up each of many", Law::CatchUp, |w| {
            edit(w, |_, actions, _| {
                let again: Vec<_> = actions
                    .iter()
                    .filter(|a| {
                        matches!(
                            a,
                            ScheduleAction::Fire {
                                missed: 1..,
                                cause: Cause::CatchUp,
                                ..
                            }
                        )
                    })
                    .cloned()
                    .collect();
                actions.extend(again);
            });
        }),
        ("catches up what says skip", Law::CatchUp, |w| {
            edit(w, |desired, actions, wall| {
                let passed: Vec<_> = actions
                    .iter()
                    .filter_map(|a| match a {
                        ScheduleAction::Pass {
                            service,
                            schedule,
                            due,
                            outcome: Outcome::Missed,
                            ..
                        } => Some((desired.state_of(service, &schedule.name)?, *due)),
                        _ => None,
                    })
                    .collect();
                for (state, due) in passed {
                    if due <= wall {
                        push(desired, actions, state, due, Cause::CatchUp);
                    }
                }
            });
        }),
        ("acts while it is paused", Law::Time, |w| {
            edit(w, |desired, actions, wall| {
                for state in desired.schedules.values().flat_map(|s| s.values()) {
                    if state.paused && state.handled < wall {
                        push(desired, actions, state, state.handled, Cause::Due);
                    }
                }
            });
        }),
        ("acts a minute early", Law::Time, |w| {
            edit(w, |_, actions, _| {
                for action in actions {
                    if let ScheduleAction::Fire { due, .. } = action {
                        due.0 += 60_000;
                    }
                }
            });
        }),
    ];
    for (name, law, put_in) in mutants {
        let caught = (0..200).any(|seed| {
            let breaches = play(seed, &put_in, &mut Seen::default());
            breaches.iter().any(|b| b.law == law)
        });
        assert!(caught, "{name}: not caught by {law:?}");
    }
}

type Edit = fn(&narae_orchestrator::plan::Desired, &mut Vec<ScheduleAction>, Timestamp);

/// The true planner, its actions changed by `edit`.
fn edit(world: &mut World, edit: Edit) {
    world.clock.planner = Box::new(move |desired, view, replicas, now, wall| {
        let mut made = plan::schedules(desired, view, replicas, now, wall);
        edit(desired, &mut made.actions, wall);
        made
    });
}

fn push(
    desired: &narae_orchestrator::plan::Desired,
    actions: &mut Vec<ScheduleAction>,
    state: &narae_orchestrator::model::schedule::ScheduleState,
    due: Timestamp,
    cause: Cause,
) {
    let Some(service) = desired.services.get(&state.service) else {
        return;
    };
    let Some(revision) = plan::in_force(service) else {
        return;
    };
    let Some(schedule) = revision.spec.schedules.iter().find(|s| s.name == state.name) else {
        return;
    };
    actions.push(ScheduleAction::Fire {
        service: state.service.clone(),
        schedule: schedule.clone(),
        revision: revision.number,
        due,
        at: due,
        cause,
        missed: 0,
        replaces: false,
    });
}

#[derive(Debug, Default)]
struct Seen {
    due: usize,
    caught_up: usize,
    missed: usize,
    skipped: usize,
    replaced: usize,
}

fn play(seed: u64, put_in: &dyn Fn(&mut World), seen: &mut Seen) -> Vec<Breach> {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(seed);
    world.clock.view.seed = seed;
    put_in(&mut world);
    world.put_clock(1_790_000_000_000);
    for _ in 0..STEPS {
        step(&mut world, &mut rng);
        if !world.breaches.is_empty() {
            return world.breaches;
        }
    }
    for (service, schedule) in NAMES.iter().flat_map(|n| SCHEDULES.map(|s| (*n, s))) {
        for entry in world.history(service, schedule) {
            seen.due += usize::from(entry.cause == Cause::Due && entry.outcome == Outcome::Done);
            seen.caught_up += usize::from(entry.cause == Cause::CatchUp);
            seen.missed += usize::from(entry.outcome == Outcome::Missed);
            seen.skipped += usize::from(entry.outcome == Outcome::Skipped);
            seen.replaced += usize::from(entry.outcome == Outcome::Replaced);
        }
    }
    world.breaches
}

fn step(world: &mut World, rng: &mut Rng) {
    let name = NAMES[rng.usize(..NAMES.len())];
    let schedule = SCHEDULES[rng.usize(..SCHEDULES.len())];
    match rng.u32(..20) {
        0..=3 => {
            let mut schedules: Vec<Schedule> = Vec::new();
            for name in SCHEDULES {
                if rng.u32(..4) > 0 {
                    schedules.push(some_schedule(name, world.wall(), rng));
                }
            }
            let replicas = replica_count(rng.u32(..4));
            world.deploy(name, Guest::default(), |spec| {
                spec.replicas = replicas;
                spec.schedules = schedules;
            });
        }
        // A day forward, hours back: never back so far that it counts as a clock that was wrong before.
        4 => drop(world.put_clock(rng.i64(0..26 * 3_600_000)).settle()),
        5 => drop(world.put_clock(-rng.i64(0..5 * 3_600_000)).settle()),
        6 => drop(world.reboot()),
        7 => drop(world.leap(Duration::from_secs(rng.u64(..100_000)))),
        8 => drop(world.pause_schedule(name, schedule, true)),
        9 => drop(world.pause_schedule(name, schedule, false)),
        10 => drop(world.scale(name, rng.u32(..4))),
        11 => drop(if rng.bool() {
            world.stop(name)
        } else {
            world.start(name)
        }),
        12 if rng.u32(..4) == 0 => drop(world.delete(name)),
        13 => drop(world.kill(rng.u64(1..10), Death::Exited { code: 1 })),
        14 => drop(world.takes(name, Duration::from_secs(rng.u64(..200)))),
        _ => drop(world.advance(Duration::from_secs(rng.u64(..6_000)))),
    }
}

fn some_schedule(name: &str, wall: Timestamp, rng: &mut Rng) -> Schedule {
    let when = match name {
        "day" if rng.bool() => {
            let at = jiff_civil(wall.0 + rng.i64(-3_600_000..40_000_000));
            When::At(at)
        }
        "day" => When::Cron("30 2 * * *".into()),
        "hour" => When::Cron("0,20 * * * *".into()),
        _ => When::Every(Duration::from_secs(rng.u64(30..400))),
    };
    let what = if name == "minute" || rng.u32(..3) == 0 {
        What::Request {
            method: "POST".into(),
            path: "/".into(),
        }
    } else {
        What::Replicas {
            replicas: replica_count(rng.u32(..6)),
            hold: rng.bool().then(|| Duration::from_secs(rng.u64(1..9_000))),
        }
    };
    let jitter = if name == "minute" {
        rng.u64(..25)
    } else {
        rng.u64(..2) * 60
    };
    Schedule {
        timezone: ["UTC", "Asia/Seoul", "Europe/Berlin"][rng.usize(..3)].into(),
        overlap: [Overlap::Forbid, Overlap::Allow, Overlap::Replace][rng.usize(..3)],
        catch_up: if rng.bool() { CatchUp::Once } else { CatchUp::Skip },
        jitter: Duration::from_secs(jitter),
        ..clock::schedule(name, when, what)
    }
}

/// What a clock in UTC shows then, without a dependency of its own.
fn jiff_civil<T: serde::de::DeserializeOwned>(ms: i64) -> T {
    let text = Timestamp(ms).rfc3339();
    serde_json::from_value(text.trim_end_matches('Z').into()).expect("a time of a clock")
}

#[test]
fn a_service_without_schedules_is_untouched_by_any_step_of_the_clock() {
    let mut world = World::with_serving("hello", Guest::default(), 3);
    for by in [86_400_000, -3_600_000, 400 * 86_400_000, -2_000 * 86_400_000] {
        world.put_clock(by).settle().advance_secs(600);
        assert_eq!(world.serving("hello"), [1, 1, 1]);
    }
    assert!(world.breaches.is_empty());
    assert!(world.desired.services.contains_key(&service_name("hello")));
}
