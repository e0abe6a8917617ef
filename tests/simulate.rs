//! Seeded worlds: whatever people ask for and whatever befalls the replicas, no plan breaks a law, and once the faults stop
//! all settles. `NARAE_SEEDS=20000 cargo test --test simulate` plays more worlds, `NARAE_SEED=17` one of them, in words.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "simulate/clock.rs"]
mod clock;
#[path = "simulate/load.rs"]
mod load;
#[path = "simulate/mutants.rs"]
mod mutants;
#[path = "simulate/rollout.rs"]
mod rollout;

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use narae_orchestrator::model::service::{Amount, LivenessProbe, ReadinessProbe, RestartPolicy};
use narae_orchestrator::model::{
    Death, Millis, Phase, Probing, Replica, ReplicaId, RevisionNumber, RevisionState, ServiceSpec,
};
use narae_orchestrator::plan::check::{Breach, Law};
use narae_orchestrator::plan::facts;
use narae_orchestrator::plan::status::{self, State};
use narae_orchestrator::plan::world::{Guest, World, ms, replica_count, service_name};

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
    let seeds = number("NARAE_SEEDS").unwrap_or(3_000);
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
        world.tracing = true;
        let none = |world: &World| {
            let trace = world.trace.join("\n");
            assert!(world.breaches.is_empty(), "seed {seed}: {}\n{trace}", world.breaches[0]);
        };
        none(world.put_replicas(replicas));
        none(world.leap(ms(rng.u64(..100_000))));
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
    outlier(&mut r, world, rng);
    (r.ready, r.crash_loop, r.in_flight) = (rng.bool(), rng.bool(), rng.u64(..3));
    r.probed_at = rng.bool().then_some(since);
    r.probe_sent = rng.bool().then_some(since);
    r.probing = [None, Some(Probing::Startup), Some(Probing::Readiness)][rng.usize(..3)];
    Some(r)
}

/// What the balancer and the liveness probes may have said of it.
fn outlier(r: &mut Replica, world: &World, rng: &mut Rng) {
    r.consecutive_failures = rng.u32(..8);
    r.ejections = rng.u32(..9);
    if matches!(r.phase, Phase::Serving { .. }) && rng.u32(..3) == 0 {
        r.ejected_until = Some(Millis(rng.u64(..world.now.0 + 40_000)));
    }
    r.live.failures = rng.u32(..4);
    r.live.sent = rng.bool().then_some(world.now);
    r.live.asking = rng.bool();
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
        seen.healthy += u32::from(
            status::state(
                service,
                world.view.autoscaled(&service.record.name),
                world.replicas(),
                world.now,
            )
            .state
                == State::Healthy,
        );
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
        replica.consecutive_failures = 0;
    }
    world.calm();
    for service in world.desired.services.values_mut() {
        if let Some(at) = &mut service.record.rollout {
            at.paused = false;
        }
    }
    // The wait for a dependency, the longest deadline and a retry in crash-loop take 30 s each; a rollout of four less.
    world.advance_secs(150);
    let mut breaches = Vec::new();
    let mut probes = false;
    for (name, service) in &world.desired.services {
        let s = status::state(service, world.view.autoscaled(name), world.replicas(), world.now);
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
            State::Healthy | State::Stopped | State::Scheduled | State::Failed => true,
            State::Running | State::Succeeded | State::Cancelled => true,
            State::Degraded | State::CrashLoop => !always || !able || s.serving == s.wanted,
            State::Starting | State::Rolling | State::Deleting => !always,
        };
        let probed = |r: &std::sync::Arc<narae_orchestrator::model::Revision>| {
            r.spec.readiness.is_some() || r.spec.liveness.is_some()
        };
        probes |= service.revisions.values().any(probed);
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
    if rng.u32(..20) == 0 {
        return load::step(world, rng, name);
    }
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
        62..67 => rollout::rollout_step(world, name, rng),
        67..69 => {
            let by = Duration::from_secs(rng.u64(1..100_000));
            world.leap(by);
            format!("leap {by:?}")
        }
        69..73 => {
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
    let guest = match rng.u32(..14) {
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
        6 => Guest {
            fails: true,
            ..Guest::default()
        },
        7 => Guest {
            alive: false,
            ..Guest::default()
        },
        _ => Guest::default(),
    };
    Guest {
        starts_in: ms(rng.u64(1..100)),
        figures: rollout::figures(rng),
        ..guest
    }
}

fn edit(spec: &mut ServiceSpec, rng: &mut Rng) {
    rollout::edit_rollout(spec, rng);
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
    spec.autoscale = (rng.u32(..3) == 0).then(|| load::autoscale(rng));
    spec.limits.concurrency = [1, 10, 64][rng.usize(..3)];
    heals(spec, rng);
    spec.depends_on.clear();
    if rng.u32(..3) == 0 {
        spec.depends_on.push(service_name(NAMES[rng.usize(..NAMES.len())]));
    }
}

/// Liveness and ejection.
fn heals(spec: &mut ServiceSpec, rng: &mut Rng) {
    spec.traffic.eject = ms([100, 1_000, 2_000][rng.usize(..3)]);
    spec.traffic.max_ejected = if rng.bool() {
        Amount::Percent([0, 34, 50, 100][rng.usize(..4)])
    } else {
        Amount::Count(rng.u32(..3))
    };
    spec.liveness = (rng.u32(..4) == 0).then(|| LivenessProbe {
        path: "/healthz".into(),
        interval: ms([200, 2_000][rng.usize(..2)]),
        timeout: ms(200),
        failures: rng.u32(..3),
    });
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
