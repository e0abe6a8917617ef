//! Load in the simulation: clients that come and leave, services that are scaled by it, and autoscalers that are wrong on purpose.

use fastrand::Rng;
use narae_orchestrator::model::Millis;
use narae_orchestrator::model::service::{Amount, Autoscale, ScaleMetric, ScaleStep};
use narae_orchestrator::plan::check::Law;
use narae_orchestrator::plan::world::{Clients, World, ms};
use narae_orchestrator::plan::{fleet, scale};

use super::mutants::{Mutant, edit_groups};

/// A service's clients come, or leave.
pub fn step(world: &mut World, rng: &mut Rng, name: &str) -> String {
    let most = [0, 0, 3, 40, 600][rng.usize(..5)];
    let clients = Clients {
        in_flight: rng.u64(..=most),
        queued: if rng.bool() { 0 } else { rng.u64(..=most) },
        rps: rng.u64(..=most),
        cpu: rng.u64(..=most),
    };
    world.load(name, clients);
    format!("load {name} {clients:?}")
}

/// Autoscale with windows short enough to come to rest in a simulation.
pub fn autoscale(rng: &mut Rng) -> Autoscale {
    let (metric, target) = [
        (ScaleMetric::Concurrency, Amount::Percent(70)),
        (ScaleMetric::Rps, Amount::Count(50)),
        (ScaleMetric::Cpu, Amount::Percent(70)),
        (ScaleMetric::Queue, Amount::Count(5)),
    ][rng.usize(..4)];
    let mut step = || ScaleStep {
        step: [Amount::Percent(100), Amount::Percent(25), Amount::Count(1)][rng.usize(..3)],
        window: ms([500, 3_000, 10_000][rng.usize(..3)]),
    };
    let (up, down) = (step(), step());
    let min = rng.u32(..3);
    Autoscale {
        min,
        max: min.max(1) + rng.u32(..5),
        metric,
        target,
        panic_window: ms([100, 6_000][rng.usize(..2)]),
        up,
        down,
        idle: ms([1_000, 30_000][rng.usize(..2)]),
    }
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "scales beyond the most",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                if let (Some((_, autoscale)), 1) = (scale::autoscaled(service), assigned.groups.len()) {
                    let most = autoscale.max;
                    assigned.groups.values_mut().for_each(|g| g.replicas *= most + 1);
                }
            });
        },
    },
    Mutant {
        name: "scales to zero though there is a minimum",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                if scale::autoscaled(service).is_some_and(|(_, a)| a.min > 0) {
                    assigned.groups.values_mut().for_each(|g| g.replicas = 0);
                }
            });
        },
    },
    Mutant {
        name: "scales down whatever the load is",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_scaling(w, |s, _| {
                if s.count > s.min.max(1) {
                    (s.count, s.cause) = (s.count - 1, scale::Cause::Fell);
                }
            });
        },
    },
    Mutant {
        name: "scales to zero with requests there",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_scaling(w, |s, now| {
                if s.min == 0 && now.0 % 7 == 0 {
                    (s.count, s.cause) = (0, scale::Cause::Idle);
                }
            });
        },
    },
    Mutant {
        name: "goes down without steps",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_scaling(w, |s, _| {
                if s.cause == scale::Cause::Fell {
                    s.count = s.min.max(1);
                }
            });
        },
    },
    Mutant {
        name: "turns back and forth under a steady load",
        laws: &[Law::Scale],
        put_in: |w| {
            edit_scaling(w, |s, now| {
                let up = now.0 / 1_000 % 2 == 0;
                (s.count, s.cause) = if up {
                    (s.max, scale::Cause::Grew)
                } else {
                    (s.max.saturating_sub(1).max(s.min), scale::Cause::Fell)
                };
            });
        },
    },
];

/// The true observer, what it says of each autoscaled service changed by `edit`.
fn edit_scaling(world: &mut World, edit: fn(&mut scale::Scaling, Millis)) {
    world.observer = Box::new(move |desired, view, now| {
        fleet::observe(desired, view, now);
        view.scaling.values_mut().for_each(|s| edit(s, now));
    });
}
