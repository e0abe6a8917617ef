//! Planners that are wrong on purpose, each caught by the law that it breaks.

use std::fmt::Write as _;
use std::time::Duration;

use narae_orchestrator::model::{Death, Phase, Replica, ReplicaId, RevisionState};
use narae_orchestrator::plan::check::Law;
use narae_orchestrator::plan::world::World;
use narae_orchestrator::plan::{Assigned, FleetAction, Group, NodeAction, fleet, node};

use super::{STEPS, load, play};

/// A planner that is wrong on purpose, and the laws that may catch it.
pub struct Mutant {
    pub name: &'static str,
    pub laws: &'static [Law],
    pub put_in: fn(&mut World),
}

#[test]
fn every_broken_planner_is_caught_by_a_law() {
    let mut missed = String::new();
    for mutant in MUTANTS.iter().chain(load::MUTANTS) {
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
        name: "ejects all that fail",
        laws: &[Law::Ejection],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                let acted: Vec<_> = plan
                    .actions
                    .iter()
                    .map(narae_orchestrator::plan::check::named)
                    .collect();
                let failing = |r: &&Replica| {
                    matches!(r.phase, Phase::Serving { .. })
                        && r.consecutive_failures >= 5
                        && r.ejected_until.is_none()
                        && !acted.contains(&r.id)
                };
                let eject = |r: &Replica| NodeAction::Eject {
                    replica: r.id,
                    until: now.plus(Duration::from_secs(10)),
                };
                plan.actions.extend(view.replicas.iter().filter(failing).map(eject));
                plan
            });
        },
    },
    Mutant {
        name: "ejects the last of a revision because another one serves",
        laws: &[Law::Ejection],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                let acted: Vec<_> = plan
                    .actions
                    .iter()
                    .map(narae_orchestrator::plan::check::named)
                    .collect();
                let serves = |r: &&Replica| matches!(r.phase, Phase::Serving { .. });
                let others = |of: &Replica| {
                    let mut others = view.replicas.iter().filter(serves);
                    others.any(|r| r.service == of.service && r.revision != of.revision && r.ejected_until.is_none())
                };
                let failing = |r: &&Replica| {
                    r.consecutive_failures >= 5 && r.ejected_until.is_none() && others(r) && !acted.contains(&r.id)
                };
                let found = view.replicas.iter().filter(serves).find(failing);
                plan.actions.extend(found.map(|r| NodeAction::Eject {
                    replica: r.id,
                    until: now.plus(Duration::from_secs(10)),
                }));
                plan
            });
        },
    },
    Mutant {
        name: "never takes an ejected one back",
        laws: &[Law::Ejection],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                plan.actions.retain(|a| !matches!(a, NodeAction::Return { .. }));
                plan
            });
        },
    },
    Mutant {
        name: "kills at the first failed liveness probe",
        laws: &[Law::L7],
        put_in: |w| {
            w.node = Box::new(|assigned, view, now| {
                let mut plan = node::node(assigned, view, now);
                let acted: Vec<_> = plan
                    .actions
                    .iter()
                    .map(narae_orchestrator::plan::check::named)
                    .collect();
                let once = |r: &&Replica| {
                    r.live.failures == 1 && matches!(r.phase, Phase::Serving { .. }) && !acted.contains(&r.id)
                };
                let kill = |r: &Replica| NodeAction::Kill {
                    replica: r.id,
                    death: Death::Liveness { last: String::new() },
                };
                plan.actions.extend(view.replicas.iter().filter(once).map(kill));
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
pub fn edit_node(world: &mut World, edit: fn(&mut NodeAction) -> bool) {
    world.node = Box::new(move |assigned, view, now| {
        let mut plan = node::node(assigned, view, now);
        plan.actions.retain_mut(edit);
        plan
    });
}

/// The true fleet planner, each service's assignment changed by `edit`.
pub fn edit_groups(world: &mut World, edit: fn(&narae_orchestrator::plan::DesiredService, &str, &mut Assigned)) {
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
        grace: None,
        replicas,
        generation: 0,
        on_trial: false,
        retiring: false,
        surge: 0,
        unavailable: 0,
        revision: revision.clone(),
    }
}
