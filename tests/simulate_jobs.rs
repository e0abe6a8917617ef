//! Seeded worlds of runs: whatever people ask for, however attempts end, whenever the store refuses or the process ends, no plan
//! breaks a law, and once the faults stop every run ends. `NARAE_SEEDS=20000 cargo test --test simulate_jobs` plays more
//! worlds, `NARAE_SEED=17` one of them, in words.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use narae_orchestrator::model::job::AttemptExit;
use narae_orchestrator::model::service::Job;
use narae_orchestrator::model::{JobRun, ReplicaId, RunState};
use narae_orchestrator::plan::check::{Breach, Law};
use narae_orchestrator::plan::job::{self, AttemptPhase, JobAction};
use narae_orchestrator::plan::world::jobs::{Command, JobPlanner, JobWorld};
use narae_orchestrator::plan::world::ms;

const NAMES: [&str; 2] = ["backup", "report"];
const STEPS: u32 = 60;

#[derive(Debug, Default)]
struct Seen {
    succeeded: u32,
    failed: u32,
    timed_out: u32,
    cancelled: u32,
    interrupted: u32,
}

#[test]
fn no_plan_of_runs_breaks_a_law_and_every_run_ends_once_the_faults_stop() {
    if let Some(seed) = number("NARAE_SEED") {
        let (world, breaches) = play(seed, true, None);
        println!("{}", world.trace.join("\n"));
        assert!(breaches.is_empty(), "seed {seed}: {}", breaches[0]);
        return;
    }
    let mut seen = Seen::default();
    for seed in 0..number("NARAE_SEEDS").unwrap_or(600) {
        let (world, breaches) = play(seed, false, None);
        assert!(breaches.is_empty(), "NARAE_SEED={seed}: {}", breaches[0]);
        for run in world.desired.runs.values().flat_map(|runs| runs.values()) {
            match run.state {
                RunState::Succeeded => seen.succeeded += 1,
                RunState::Failed { .. } => seen.failed += 1,
                RunState::TimedOut => seen.timed_out += 1,
                RunState::Cancelled { .. } => seen.cancelled += 1,
                RunState::Open => unreachable!("judged above"),
            }
            seen.interrupted += u32::from(run.interruptions > 0);
        }
    }
    println!("{seen:?}");
    // A simulation in which nothing happens proves nothing.
    let all = [
        seen.succeeded,
        seen.failed,
        seen.timed_out,
        seen.cancelled,
        seen.interrupted,
    ];
    assert!(all.iter().all(|n| *n > 0), "{seen:?}");
}

/// A broken planner, the law that must catch it.
type Mutation = (&'static str, Law, fn(JobPlanner) -> JobPlanner);

#[test]
fn every_broken_planner_of_runs_is_caught_by_a_law() {
    let mutations: &[Mutation] = &[
        ("one attempt too many", Law::L2, |plan| {
            edit(plan, |action, out| {
                if let JobAction::Start { service, run, attempt } = &action {
                    let attempt = ReplicaId(attempt.0 + 1_000);
                    let (service, run) = (service.clone(), *run);
                    out.push(JobAction::Start { service, run, attempt });
                }
                out.push(action);
            })
        }),
        ("an attempt starts twice", Law::L4, |plan| {
            edit(plan, |action, out| {
                if matches!(action, JobAction::Start { .. }) {
                    out.push(action.clone());
                }
                out.push(action);
            })
        }),
        ("kills what has ended", Law::L4, |plan| {
            edit(plan, |action, out| {
                out.push(match action {
                    JobAction::Record {
                        service, run, attempt, ..
                    } => JobAction::Kill { service, run, attempt },
                    other => other,
                });
            })
        }),
        ("never writes an attempt down", Law::L5, |plan| {
            edit(plan, |action, out| {
                if !matches!(action, JobAction::Record { .. }) {
                    out.push(action);
                }
            })
        }),
        ("never kills", Law::L5, |plan| {
            edit(plan, |action, out| {
                if !matches!(action, JobAction::Kill { .. }) {
                    out.push(action);
                }
            })
        }),
        ("ends a run without killing what runs", Law::L6, |plan| {
            edit(plan, |action, out| {
                out.push(match action {
                    JobAction::Kill { service, run, .. } => JobAction::Finish {
                        service,
                        run,
                        state: RunState::TimedOut,
                        ran_ms: 0,
                    },
                    other => other,
                });
            })
        }),
        ("calls everything a success", Law::Proof, |plan| {
            edit(plan, |action, out| {
                out.push(match action {
                    JobAction::Finish {
                        service, run, ran_ms, ..
                    } => JobAction::Finish {
                        service,
                        run,
                        state: RunState::Succeeded,
                        ran_ms,
                    },
                    other => other,
                });
            })
        }),
        ("begins the first run again and again", Law::L4, |plan| {
            edit(plan, |action, out| {
                out.push(match action {
                    JobAction::Prove { service, revision } => JobAction::Begin { service, revision },
                    other => other,
                });
            })
        }),
        ("forgets a service whose attempts run", Law::L4, |plan| {
            edit(plan, |action, out| {
                if let JobAction::Kill { service, .. } = &action {
                    out.push(JobAction::Forget {
                        service: service.clone(),
                    });
                }
                out.push(action);
            })
        }),
        ("does not hear that a run is cancelled", Law::L6, |_| {
            Box::new(|desired, view, now| {
                let mut deaf = desired.clone();
                deaf_runs(&mut deaf, |run| run.cancel = None);
                job::jobs(&deaf, view, now)
            })
        }),
        ("does not count failures", Law::L6, |_| {
            Box::new(|desired, view, now| {
                let mut blind = desired.clone();
                deaf_runs(&mut blind, |run| run.failed = 0);
                job::jobs(&blind, view, now)
            })
        }),
        ("forgets the time limit", Law::L6, |_| {
            Box::new(|desired, view, now| {
                let mut view = view.clone();
                for under_way in view.runs.values_mut().flat_map(|runs| runs.values_mut()) {
                    (under_way.opened, under_way.before_ms) = (now, 0);
                }
                job::jobs(desired, &view, now)
            })
        }),
        ("takes what has ended for a free place", Law::L2, |_| {
            Box::new(|desired, view, now| {
                let mut view = view.clone();
                for under_way in view.runs.values_mut().flat_map(|runs| runs.values_mut()) {
                    under_way
                        .attempts
                        .retain(|_, a| !matches!(a.phase, AttemptPhase::Ended(_)));
                }
                job::jobs(desired, &view, now)
            })
        }),
    ];
    for (name, law, broken) in mutations {
        let caught = (0..300).find_map(|seed| {
            let (_, breaches) = play(seed, false, Some(*broken));
            breaches.into_iter().find(|b| b.law == *law)
        });
        assert!(caught.is_some(), "no world of 300 caught the planner that {name}");
    }
}

#[test]
fn an_attempt_that_ended_while_the_store_was_down_is_counted_once() {
    let mut world = JobWorld::new(1);
    world.deploy("backup", Job::default(), Command::default());
    world.advance(ms(60));
    world.store = false;
    world.advance(Duration::from_secs(5));
    assert_eq!(world.run("backup", 1).unwrap().succeeded, 0);
    assert!(
        world.open_runs().len() == 1 && world.view.next_id.first == 2,
        "nothing is begun again meanwhile"
    );
    world.store = true;
    world.advance(Duration::from_secs(1));
    let run = world.run("backup", 1).unwrap();
    assert_eq!((run.succeeded, &run.state), (1, &RunState::Succeeded));
    assert_eq!(run.attempts[0].exit, AttemptExit::Exited { code: 0 });
}

#[test]
fn a_run_that_ends_the_daemon_every_time_is_given_up() {
    let mut world = JobWorld::new(1);
    let command = Command {
        takes: None,
        ..Command::default()
    };
    world.deploy("backup", Job::default(), command).advance(ms(60));
    for _ in 0..job::INTERRUPTIONS + 1 {
        world.advance(ms(10)).reboot();
    }
    let run = world.run("backup", 1).unwrap();
    assert!(
        matches!(&run.state, RunState::Failed { reason } if reason.contains("ended 11 times")),
        "{run:?}"
    );
}

fn deaf_runs(desired: &mut narae_orchestrator::plan::Desired, edit: fn(&mut JobRun)) {
    for run in desired.runs.values_mut().flat_map(|runs| runs.values_mut()) {
        edit(Arc::make_mut(run));
    }
}

fn edit(plan: JobPlanner, edit: fn(JobAction, &mut Vec<JobAction>)) -> JobPlanner {
    Box::new(move |desired, view, now| {
        let mut planned = plan(desired, view, now);
        let mut out = Vec::new();
        for action in std::mem::take(&mut planned.actions) {
            edit(action, &mut out);
        }
        planned.actions = out;
        planned
    })
}

fn play(seed: u64, tracing: bool, broken: Option<fn(JobPlanner) -> JobPlanner>) -> (JobWorld, Vec<Breach>) {
    let mut rng = Rng::with_seed(seed);
    let mut world = JobWorld::new(seed);
    world.tracing = tracing;
    if let Some(broken) = broken {
        world.planner = broken(Box::new(job::jobs));
    }
    for _ in 0..STEPS {
        step(&mut world, &mut rng);
        if !world.breaches.is_empty() {
            let breaches = std::mem::take(&mut world.breaches);
            return (world, breaches);
        }
    }
    rest(&mut world);
    let breaches = std::mem::take(&mut world.breaches);
    (world, breaches)
}

/// The faults stop: every run ends within its own time, each once, and then there is nothing to do.
fn rest(world: &mut JobWorld) {
    world.store = true;
    world.settle();
    // Longer than any `job.timeout` and back-off of these worlds.
    world.advance(Duration::from_secs(600));
    let mut found = Vec::new();
    if let Some(run) = world.open_runs().first() {
        found.push(format!("run {} of {} has not ended: {run:?}", run.id, run.service));
    }
    if !world.settled()
        || !(world.planner)(&world.desired, &world.view, world.now)
            .actions
            .is_empty()
    {
        found.push("there is still something to do".into());
    }
    if let Some(((name, run), times)) = world.endings.iter().find(|(_, times)| **times != 1) {
        found.push(format!("run {run} of {name} ended {times} times"));
    }
    if !world.view.runs.is_empty() {
        found.push("something is under way for no run".into());
    }
    world.breaches.extend(found.into_iter().map(|text| Breach {
        law: Law::L5,
        service: None,
        replica: None,
        text,
    }));
}

fn step(world: &mut JobWorld, rng: &mut Rng) {
    let name = NAMES[rng.usize(..NAMES.len())];
    match rng.u32(..20) {
        0..3 => drop(world.deploy(name, any_job(rng), any_command(rng))),
        3..6 => drop(world.begin(name, "by hand")),
        6 => {
            let id = rng.u64(1..6);
            world.cancel(name, id);
        }
        7 => drop(world.record(name, |r| r.stopped = true)),
        8 => drop(world.record(name, |r| r.stopped = false)),
        9 if rng.bool() => drop(world.record(name, |r| r.deleting = true)),
        10 => drop(world.reboot()),
        11 => {
            world.store = !world.store;
            world.settle();
        }
        _ => drop(world.advance(ms(rng.u64(..3_000)))),
    }
}

fn any_job(rng: &mut Rng) -> Job {
    Job {
        completions: rng.u32(1..6),
        parallelism: rng.u32(1..4),
        retries: rng.u32(..4),
        timeout: ms(rng.u64(500..60_000)),
    }
}

fn any_command(rng: &mut Rng) -> Command {
    Command {
        takes: (rng.u32(..6) > 0).then(|| ms(rng.u64(1..2_000))),
        codes: (0..rng.u32(1..5)).map(|_| rng.i32(-2..3).max(0)).collect(),
        compiles: rng.u32(..8) > 0,
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
