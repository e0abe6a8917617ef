//! Seeded worlds: whatever people ask for and whatever befalls the replicas, no plan breaks a law, and once the faults stop
//! all settles. `NARAE_SEEDS=20000 cargo test --test simulate` plays more worlds, `NARAE_SEED=17` one of them, in words.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use narae_orchestrator::model::service::{Amount, ReadinessProbe, RestartPolicy};
use narae_orchestrator::model::{
    Death, Millis, Phase, Probing, Replica, ReplicaId, RevisionNumber, RevisionState, ServiceSpec,
};
use narae_orchestrator::plan::check::{Breach, Law};
use narae_orchestrator::plan::status::{self, State};
use narae_orchestrator::plan::world::{Guest, World, ms, replica_count, service_name};
use narae_orchestrator::plan::{Assigned, FleetAction, Group, NodeAction, facts, fleet, node};

const NAMES: [&str; 3] = ["back", "front", "shop"];
const STEPS: u32 = 200;

#[test]
fn no_plan_breaks_a_law_and_all_settles_once_the_faults_stop() {
    if let Some(seed) = number("NARAE_SEED") {
        let (trace, breaches) = play(seed, STEPS, true, &|_| {});
        println!("{trace}");
        assert!(breaches.is_empty(), "seed {seed}: {}", breaches[0]);
        return;
    }
    let seeds = number("NARAE_SEEDS").unwrap_or(600);
    let lanes = std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap());
    let seen = std::thread::scope(|scope| {
        let lane = |lane| scope.spawn(move || play_all((lane..seeds).step_by(usize::try_from(lanes).unwrap())));
        let lanes: Vec<_> = (0..lanes).map(lane).collect();
        lanes.into_iter().fold(Seen::default(), |seen, lane| match lane.join() {
            Ok(more) => seen.and(&more),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    println!("{seen:?}");
    // A simulation in which nothing happens proves nothing.
    assert!(
        seen.proved > 0 && seen.refused > 0 && seen.crash_loops > 0 && seen.healthy > 0,
        "{seen:?}"
    );
}

#[test]
fn from_any_state_whatsoever_no_plan_breaks_a_law() {
    let mut tried = 0;
    for seed in 0..1_000 {
        let mut rng = Rng::with_seed(seed);
        let mut world = World::new(seed);
        for _ in 0..rng.u32(1..12) {
            step(&mut world, &mut rng);
        }
        let replicas = (1..rng.u64(2..12))
            .map(|id| replica(id, &world, &mut rng))
            .collect::<Option<Vec<_>>>();
        world.breaches.clear();
        let Some(replicas) = replicas else { continue };
        tried += replicas.len();
        world.put_replicas(replicas);
        assert!(world.breaches.is_empty(), "seed {seed}: {}", world.breaches[0]);
        world.leap(ms(rng.u64(..100_000)));
        assert!(world.breaches.is_empty(), "seed {seed}: {}", world.breaches[0]);
    }
    assert!(tried > 2_000, "only {tried} replicas were tried");
}

/// Some replica of some revision, in some state.
fn replica(id: u64, world: &World, rng: &mut Rng) -> Option<Replica> {
    let service = rng.choice(world.desired.services.values())?;
    let revision = rng.choice(service.revisions.keys())?;
    let mut r = facts::created(
        ReplicaId(id),
        service.record.name.clone(),
        *revision,
        rng.u64(..3),
        world.now,
    );
    let (since, until) = (Millis(rng.u64(..=world.now.0)), Millis(rng.u64(..world.now.0 + 40_000)));
    let death = match rng.u32(..7) {
        0 => Death::StartTrapped { reason: String::new() },
        1 => Death::CannotPrepare { reason: String::new() },
        2 => Death::NoMemory,
        3 => Death::StartupProbe { last: String::new() },
        4 => Death::Traps { reason: String::new() },
        5 => Death::Exited { code: rng.i32(..2) },
        _ => Death::Stopped,
    };
    r.phase = match rng.u32(..8) {
        0 => Phase::Starting { since },
        1 => Phase::Started { since },
        2 => Phase::Idle { since },
        3 => Phase::Draining { since, until },
        4 => Phase::Stopping { since },
        5 => Phase::Dead {
            at: since,
            death: death.clone(),
        },
        _ => Phase::Serving { since },
    };
    r.last_death = rng.bool().then_some((since, death));
    r.deaths = (0..rng.usize(..12))
        .map(|n| Millis(since.0.saturating_sub(100) + n as u64))
        .collect();
    (r.restarts, r.restarts_total) = (rng.u32(..100), rng.u64(..));
    (r.start_failures, r.probe_failures, r.consecutive_traps) = (rng.u32(..5), rng.u32(..50), rng.u32(..7));
    (r.ready, r.crash_loop, r.in_flight) = (rng.bool(), rng.bool(), rng.u64(..3));
    r.probed_at = rng.bool().then_some(since);
    r.probing = [None, Some(Probing::Startup), Some(Probing::Readiness)][rng.usize(..3)];
    Some(r)
}

/// Panics at the first breach, with the way there.
fn play_all(seeds: impl Iterator<Item = u64>) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let (_, breaches) = play_and_look(seed, STEPS, false, &|_| {}, &mut seen);
        if let Some(first) = breaches.first() {
            let (trace, _) = play(seed, STEPS, true, &|_| {});
            let lines: Vec<&str> = trace.lines().collect();
            panic!(
                "NARAE_SEED={seed} breaks {first}\n{}",
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
        }
    }
    seen
}

/// A planner that is wrong on purpose, and the laws that may catch it.
struct Mutant {
    name: &'static str,
    laws: &'static [Law],
    put_in: fn(&mut World),
}

#[test]
fn every_broken_planner_is_caught_by_a_law() {
    let mut missed = String::new();
    for mutant in MUTANTS {
        let caught = (0..200).any(|seed| {
            let (_, breaches) = play(seed, STEPS, false, &mutant.put_in);
            breaches.iter().any(|b| mutant.laws.contains(&b.law))
        });
        if !caught {
            writeln!(missed, "{}: none of {:?}", mutant.name, mutant.laws).unwrap();
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "never drains",
        laws: &[Law::L2],
        put_in: |w| edit_node(w, |a| !matches!(a, NodeAction::Drain { .. })),
    },
    Mutant {
        name: "stops without draining",
        laws: &[Law::Drain],
        put_in: |w| {
            edit_node(w, |a| {
                if let NodeAction::Drain { replica, .. } = a {
                    *a = NodeAction::Stop { replica: *replica };
                }
                true
            });
        },
    },
    Mutant {
        name: "never restarts",
        laws: &[Law::L5],
        put_in: |w| edit_node(w, |a| !matches!(a, NodeAction::Restart { .. })),
    },
    Mutant {
        name: "creates twice",
        laws: &[Law::L2],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                let mut next = view.next_id.first;
                let created: Vec<_> = plan
                    .actions
                    .iter()
                    .filter(|a| matches!(a, NodeAction::Create { .. }))
                    .cloned()
                    .collect();
                plan.actions.extend(created);
                for action in &mut plan.actions {
                    if let NodeAction::Create { replica, .. } = action {
                        *replica = ReplicaId(next);
                        next += 1;
                    }
                }
                plan
            });
        },
    },
    Mutant {
        name: "stops a replica of another node",
        laws: &[Law::L4],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                if !plan.actions.is_empty() {
                    plan.actions.push(NodeAction::Stop {
                        replica: ReplicaId(1_000_000),
                    });
                }
                plan
            });
        },
    },
    Mutant {
        name: "admits what has not answered",
        laws: &[Law::Proof],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                for action in &mut plan.actions {
                    if let NodeAction::Probe { replica, .. } = action {
                        *action = NodeAction::Admit { replica: *replica };
                    }
                }
                plan
            });
        },
    },
    Mutant {
        name: "kills what has run for a day",
        laws: &[Law::L7],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                let old = |r: &&narae_orchestrator::model::Replica| matches!(r.phase, Phase::Serving { since } if now.since(since) >= Duration::from_secs(3_600));
                let kill = |id| NodeAction::Kill {
                    replica: id,
                    death: Death::Exited { code: 0 },
                };
                plan.actions
                    .extend(view.replicas.iter().filter(old).map(|r| kill(r.id)));
                plan
            });
        },
    },
    Mutant {
        name: "asks to be woken at once, always",
        laws: &[Law::L3],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                plan.wake_at = Some(now);
                plan
            });
        },
    },
    Mutant {
        name: "starts a refused revision",
        laws: &[Law::L6],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                for revision in service.revisions.values() {
                    if matches!(revision.state, RevisionState::Refused(_)) {
                        assigned.groups.insert(revision.number, whole(revision, 1));
                    }
                }
            });
        },
    },
    Mutant {
        name: "goes beyond the surge",
        laws: &[Law::L2],
        put_in: |w| {
            edit_groups(w, |_, _, assigned| {
                if assigned.groups.values().filter(|g| g.replicas > 0).count() > 1 {
                    assigned.groups.values_mut().for_each(|g| g.replicas *= 3);
                }
            });
        },
    },
    Mutant {
        name: "stops the old before the new serves",
        laws: &[Law::L1],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                for (number, group) in &mut assigned.groups {
                    if *number != service.record.wanted {
                        group.replicas = 0;
                    }
                }
            });
        },
    },
    Mutant {
        name: "proves on the first sight",
        laws: &[Law::Proof],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut plan = fleet::fleet(desired, view, now);
                for (name, service) in &desired.services {
                    let revision = service.record.wanted;
                    if fleet::on_trial(service)
                        && !plan
                            .actions
                            .iter()
                            .any(|a| matches!(a, FleetAction::Refuse { .. } | FleetAction::Prove { .. }))
                    {
                        plan.actions.push(FleetAction::Prove {
                            service: name.clone(),
                            revision,
                        });
                    }
                }
                plan
            });
        },
    },
    Mutant {
        name: "never refuses",
        laws: &[Law::L5],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut plan = fleet::fleet(desired, view, now);
                plan.actions.retain(|a| !matches!(a, FleetAction::Refuse { .. }));
                plan
            });
        },
    },
    Mutant {
        name: "forgets a service that still has replicas",
        laws: &[Law::L4],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut plan = fleet::fleet(desired, view, now);
                for (name, service) in &desired.services {
                    let again = FleetAction::Forget { service: name.clone() };
                    if service.record.deleting && !plan.actions.contains(&again) {
                        plan.actions.push(again);
                    }
                }
                plan
            });
        },
    },
];

/// The true node planner, each action changed by `edit` and kept if it says so.
fn edit_node(world: &mut World, edit: fn(&mut NodeAction) -> bool) {
    world.node = Box::new(move |assigned, view, now| {
        let mut plan = node::node(assigned, view, now);
        plan.actions.retain_mut(edit);
        plan
    });
}

/// The true fleet planner, each service's assignment changed by `edit`.
fn edit_groups(world: &mut World, edit: fn(&narae_orchestrator::plan::DesiredService, &str, &mut Assigned)) {
    world.fleet = Box::new(move |desired, view, now| {
        let mut plan = fleet::fleet(desired, view, now);
        let mut assignment = view.assigned.clone();
        plan.actions.retain(|action| match action {
            FleetAction::Assign { assignment: new } => {
                assignment = new.clone();
                false
            }
            _ => true,
        });
        for (name, service) in &desired.services {
            if let Some(assigned) = assignment.services.get_mut(name) {
                edit(service, name.as_str(), assigned);
            }
        }
        if assignment != view.assigned {
            plan.actions.push(FleetAction::Assign { assignment });
        }
        plan
    });
}

fn whole(revision: &std::sync::Arc<narae_orchestrator::model::Revision>, replicas: u32) -> Group {
    Group {
        replicas,
        generation: 0,
        on_trial: false,
        retiring: false,
        surge: 0,
        unavailable: 0,
        revision: revision.clone(),
    }
}

/// What happened in all worlds together.
#[derive(Debug, Default)]
struct Seen {
    proved: u32,
    refused: u32,
    crash_loops: u32,
    healthy: u32,
    rounds: u64,
}

impl Seen {
    fn and(self, more: &Self) -> Self {
        Self {
            proved: self.proved + more.proved,
            refused: self.refused + more.refused,
            crash_loops: self.crash_loops + more.crash_loops,
            healthy: self.healthy + more.healthy,
            rounds: self.rounds + more.rounds,
        }
    }
}

fn play(seed: u64, steps: u32, tracing: bool, put_in: &dyn Fn(&mut World)) -> (String, Vec<Breach>) {
    play_and_look(seed, steps, tracing, put_in, &mut Seen::default())
}

/// One world from its beginning to its rest. Ends at the first breach.
fn play_and_look(
    seed: u64,
    steps: u32,
    tracing: bool,
    put_in: &dyn Fn(&mut World),
    seen: &mut Seen,
) -> (String, Vec<Breach>) {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(seed);
    world.tracing = tracing;
    put_in(&mut world);
    let mut trace = String::new();
    for _ in 0..steps {
        let did = step(&mut world, &mut rng);
        if tracing {
            writeln!(trace, "> {did}").unwrap();
            for line in world.trace.drain(..) {
                writeln!(trace, "{line}").unwrap();
            }
        }
        seen.crash_loops += u32::from(world.replicas().iter().any(|r| r.crash_loop));
        if !world.breaches.is_empty() {
            return (trace, world.breaches);
        }
    }
    let mut breaches = rest(&mut world);
    seen.rounds += world.rounds;
    for line in world.trace.drain(..) {
        writeln!(trace, "{line}").unwrap();
    }
    for service in world.desired.services.values() {
        let states = service.revisions.values().map(|r| &r.state);
        seen.proved += u32::from(states.clone().any(|s| matches!(s, RevisionState::Proved { .. })));
        seen.refused += u32::from(states.clone().any(|s| matches!(s, RevisionState::Refused(_))));
        seen.healthy += u32::from(status::state(service, world.replicas(), world.now).state == State::Healthy);
    }
    breaches.append(&mut world.breaches);
    (trace, breaches)
}

/// The faults stop. Within a bounded time every service is as it should be, and no plan wants more (L5, L3).
fn rest(world: &mut World) -> Vec<Breach> {
    world.memory = None;
    for guest in world.guests.values_mut() {
        // What cannot start stays so: a refusal is one way of coming to rest.
        *guest = Guest {
            start: guest.start.clone(),
            answers: guest.answers,
            ..Guest::default()
        };
    }
    for replica in &mut world.view.replicas {
        replica.in_flight = 0;
        replica.consecutive_traps = 0;
    }
    // The wait for a dependency, the longest deadline and a retry in crash-loop take 30 s each; a rollout of four less.
    world.advance_secs(150);
    let mut breaches = Vec::new();
    let mut probes = false;
    for (name, service) in &world.desired.services {
        let s = status::state(service, world.replicas(), world.now);
        let always = service
            .revisions
            .values()
            .all(|r| r.spec.restart.policy == RestartPolicy::Always);
        let starts = |n: RevisionNumber| {
            world
                .guests
                .get(&(name.clone(), n))
                .is_none_or(|g| g.start.is_ok() && g.answers)
        };
        let able = service.record.stable.is_none_or(starts);
        let fine = match s.state {
            State::Healthy | State::Stopped | State::Failed => true,
            State::Degraded | State::CrashLoop => !always || !able || s.serving == s.wanted,
            State::Starting | State::Rolling | State::Deleting => !always,
        };
        probes |= service.revisions.values().any(|r| r.spec.readiness.is_some());
        probes |= !always || !able;
        if !fine {
            let text = format!("does not settle: {}", world.state(name.as_str()));
            breaches.push(Breach {
                law: Law::L5,
                service: Some(name.clone()),
                replica: None,
                text,
            });
        }
    }
    if !probes && breaches.is_empty() && !world.settled() {
        let text = format!("settled, but something is awaited at {} ms", world.now.0);
        breaches.push(Breach {
            law: Law::L3,
            service: None,
            replica: None,
            text,
        });
    }
    breaches
}

/// One thing that someone asks for, or that befalls someone.
fn step(world: &mut World, rng: &mut Rng) -> String {
    let name = NAMES[rng.usize(..NAMES.len())];
    let some = |rng: &mut Rng, world: &World| {
        let ids: Vec<u64> = world.replicas().iter().map(|r| r.id.0).collect();
        rng.choice(ids)
    };
    match rng.u32(..100) {
        0..12 => {
            let guest = guest(rng);
            let said = format!("deploy {name} {guest:?}");
            let mut draw = rng.fork();
            world.deploy(name, guest, |spec| edit(spec, &mut draw));
            said
        }
        12..15 => {
            let newest = world
                .desired
                .services
                .get(&service_name(name))
                .map_or(0, |s| s.record.next_revision.0 - 1);
            let to = rng.u64(0..=newest);
            world.undo(name, to);
            format!("undo {name} {to}")
        }
        15..23 => {
            let n = rng.u32(..6);
            world.scale(name, n);
            format!("scale {name} {n}")
        }
        23..28 => {
            world.restart(name);
            format!("restart {name}")
        }
        28..31 => {
            world.stop(name);
            format!("stop {name}")
        }
        31..36 => {
            world.start(name);
            format!("start {name}")
        }
        36..38 => {
            world.delete(name);
            format!("delete {name}")
        }
        38..50 => {
            let Some(id) = some(rng, world) else {
                return "nobody to kill".into();
            };
            let death = match rng.u32(..4) {
                0 => Death::Exited { code: 0 },
                1 => Death::NoMemory,
                2 => Death::Exited { code: 1 },
                _ => Death::Traps {
                    reason: "5 calls in a row trapped".into(),
                },
            };
            let said = format!("kill r{id} {death:?}");
            world.kill(id, death);
            said
        }
        50..58 => {
            let Some(id) = some(rng, world) else {
                return "nobody to call".into();
            };
            let n = rng.u64(..3);
            world.busy(id, n);
            format!("busy r{id} {n}")
        }
        58..61 => {
            world.memory = rng.bool().then(|| rng.u32(1..8));
            format!("memory {:?}", world.memory)
        }
        61..62 => {
            world.reboot();
            "reboot".into()
        }
        62..64 => {
            let by = Duration::from_secs(rng.u64(1..100_000));
            world.leap(by);
            format!("leap {by:?}")
        }
        64..68 => {
            let key = (service_name(name), RevisionNumber(rng.u64(1..4)));
            let guest = guest(rng);
            let said = format!("guest {name} {} {guest:?}", key.1);
            world.behave(name, key.1.0, guest);
            said
        }
        _ => {
            let most = [20, 200, 2_000, 8_000][rng.usize(..4)];
            let by = ms(rng.u64(1..most));
            world.advance(by);
            format!("advance {by:?}")
        }
    }
}

fn guest(rng: &mut Rng) -> Guest {
    let guest = match rng.u32(..12) {
        0 => Guest::trapping_at_start(),
        1 => Guest::never_ready(),
        2 => Guest::dying_after(ms(rng.u64(1..3_000))),
        3 => Guest::trapping_under_traffic(),
        4 => Guest {
            start: Err(Death::CannotPrepare {
                reason: "unknown import".into(),
            }),
            ..Guest::default()
        },
        5 => Guest {
            ready: false,
            ..Guest::default()
        },
        _ => Guest::default(),
    };
    Guest {
        starts_in: ms(rng.u64(1..100)),
        ..guest
    }
}

fn edit(spec: &mut ServiceSpec, rng: &mut Rng) {
    spec.replicas = replica_count(rng.u32(..5));
    spec.rollout.max_surge = if rng.bool() {
        Amount::Percent(rng.u32(..150))
    } else {
        Amount::Count(rng.u32(..3))
    };
    spec.rollout.max_unavailable = Amount::Count(rng.u32(..3));
    spec.rollout.min_healthy = ms([0, 100, 1_000, 3_000][rng.usize(..4)]);
    spec.rollout.progress_deadline = ms([1_000, 5_000, 30_000][rng.usize(..3)]);
    spec.rollout.auto_rollback = rng.u32(..5) > 0;
    spec.traffic.drain = ms([0, 100, 5_000][rng.usize(..3)]);
    spec.startup.failures = rng.u32(..20);
    spec.restart.give_up_restarts = rng.u32(..6);
    spec.restart.jitter = rng.bool();
    spec.restart.policy = match rng.u32(..10) {
        0 => RestartPolicy::Never,
        1 => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    };
    let interval = ms([500, 5_000][rng.usize(..2)]);
    spec.readiness = (rng.u32(..5) == 0).then(|| ReadinessProbe {
        path: "/ready".into(),
        interval,
        timeout: interval,
        failures: rng.u32(..3),
    });
    spec.depends_on.clear();
    if rng.u32(..3) == 0 {
        spec.depends_on.push(service_name(NAMES[rng.usize(..NAMES.len())]));
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
