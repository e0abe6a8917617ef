//! Rollouts by steps in the simulated worlds: random strategies, gates and figures, what people ask for meanwhile, and planners that
//! are wrong on purpose.

use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use narae_orchestrator::model::service::{Compare, Gates, Step, Strategy};
use narae_orchestrator::model::{RevisionNumber, ServiceSpec};
use narae_orchestrator::plan::check::Law;
use narae_orchestrator::plan::world::{Figures, World, ms};
use narae_orchestrator::plan::{FleetAction, fleet};

use super::mutants::{Mutant, edit_groups};
use super::{STEPS, play};

/// What someone asks of a rollout that is under way; anything else changes nothing.
pub fn rollout_step(world: &mut World, name: &str, rng: &mut Rng) -> String {
    match rng.u32(..4) {
        0 => {
            world.pause(name);
            format!("pause {name}")
        }
        1 => {
            world.resume(name);
            format!("resume {name}")
        }
        2 => {
            world.promote(name);
            format!("promote {name}")
        }
        _ => {
            world.abort(name);
            format!("abort {name}")
        }
    }
}

pub fn edit_rollout(spec: &mut ServiceSpec, rng: &mut Rng) {
    let rollout = &mut spec.rollout;
    rollout.strategy = Strategy::ALL[rng.usize(..Strategy::ALL.len())];
    let mut weight = 0;
    rollout.steps = (0..rng.u32(1..4))
        .map(|_| {
            weight += rng.u32(1..334);
            let hold = ms([0, 50, 500, 4_000][rng.usize(..4)]);
            Step { weight, hold }
        })
        .collect();
    rollout.gates = rng.bool().then(|| Gates {
        min_requests: [1, 20, 200][rng.usize(..3)],
        p99: rng.bool().then_some(ms(100)),
        cpu: rng.bool().then_some(200),
        compare: if rng.bool() { Compare::Stable } else { Compare::None },
        ..Gates::DEFAULT
    });
}

pub fn figures(rng: &mut Rng) -> Figures {
    match rng.u32(..8) {
        0 => Figures {
            errors: rng.u32(..1_000),
            ..Figures::default()
        },
        1 => Figures {
            traps: rng.u32(..100),
            ..Figures::default()
        },
        2 => Figures {
            p99: ms(rng.u64(..1_000)),
            cpu: Duration::from_micros(rng.u64(..1_000)),
            ..Figures::default()
        },
        _ => Figures::default(),
    }
}

/// A rollout planner that is wrong on purpose is caught by the laws of rollouts.
const ROLLOUT_MUTANTS: &[Mutant] = &[
    Mutant {
        name: "gives the new revision all requests at once",
        laws: &[Law::Split],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                if assigned.split.len() == 2 {
                    assigned.split = [(service.record.wanted, 1_000)].into();
                }
            });
        },
    },
    Mutant {
        name: "leaves it to chance who gets how many requests",
        laws: &[Law::Split],
        put_in: |w| edit_groups(w, |_, _, assigned| assigned.split.clear()),
    },
    Mutant {
        name: "loses a thousandth of the requests",
        laws: &[Law::Split],
        put_in: |w| edit_groups(w, |_, _, assigned| assigned.split.values_mut().for_each(|n| *n -= 1)),
    },
    Mutant {
        name: "sends requests to a revision that does not serve",
        laws: &[Law::Split],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                if !assigned.split.is_empty() {
                    assigned.split = [(RevisionNumber(service.record.next_revision.0), 1_000)].into();
                }
            });
        },
    },
    Mutant {
        name: "takes a step before the hold is over",
        laws: &[Law::Step],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut plan = fleet::fleet(desired, view, now);
                for (name, stage) in &view.stages {
                    plan.actions.push(FleetAction::Step {
                        service: name.clone(),
                        revision: stage.revision,
                        step: stage.step + 1,
                    });
                }
                plan
            });
        },
    },
    Mutant {
        name: "takes a step though it is paused",
        laws: &[Law::Step],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut blind = desired.clone();
                for service in blind.services.values_mut() {
                    if let Some(at) = &mut service.record.rollout {
                        at.paused = false;
                    }
                }
                fleet::fleet(&blind, view, now)
            });
        },
    },
    Mutant {
        name: "does not look at the figures",
        laws: &[Law::Gate],
        put_in: |w| {
            w.fleet = Box::new(|desired, view, now| {
                let mut blind = view.clone();
                for m in blind.measures.values_mut() {
                    m.new = m.stable;
                }
                fleet::fleet(desired, &blind, now)
            });
        },
    },
    Mutant {
        name: "takes the old ones away within a hold",
        laws: &[Law::L1, Law::L7, Law::Split, Law::Step],
        put_in: |w| {
            edit_groups(w, |service, _, assigned| {
                if let Some(stable) = service.record.stable.filter(|_| !assigned.split.is_empty()) {
                    assigned.groups.remove(&stable);
                }
            });
        },
    },
];

#[test]
fn every_broken_rollout_is_caught_by_a_law() {
    let mut missed = String::new();
    for mutant in ROLLOUT_MUTANTS {
        let caught = (0..300).any(|seed| {
            let (_, breaches) = play(seed, STEPS, false, &mutant.put_in);
            breaches.iter().any(|b| mutant.laws.contains(&b.law))
        });
        if !caught {
            writeln!(missed, "{}: none of {:?}", mutant.name, mutant.laws).unwrap();
        }
    }
    assert!(missed.is_empty(), "{missed}");
}
