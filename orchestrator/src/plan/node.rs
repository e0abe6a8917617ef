//! The node planner: makes this node's assignment true. Start, probe, admit, drain, stop, heal. Knows groups and replicas;
//! nothing of services' history, other nodes or rollouts beyond "new generation beside old".

use std::collections::{BTreeMap, BTreeSet};

use super::eject;
use super::heal::{self, Heal};
use super::health::{self, Health};
use super::rolling::{self, Have, Room};
use super::words::{self, count};
use super::{Assigned, Assignment, Group, NodeAction, NodeView, Note, Plan};
use crate::model::service::Traffic;
use crate::model::{Death, Millis, Phase, Probing, Replica, ReplicaId, RevisionNumber, ServiceName};

/// What this node should do now. Linear in services and replicas. Within a service, admitting comes before draining.
pub fn node(assigned: &Assignment, view: &NodeView, now: Millis) -> Plan<NodeAction> {
    let mut by_service: BTreeMap<&ServiceName, Vec<&Replica>> = BTreeMap::new();
    for name in assigned.services.keys() {
        by_service.insert(name, Vec::new());
    }
    for replica in &view.replicas {
        by_service.entry(&replica.service).or_default().push(replica);
    }
    let mut planner = Planner {
        plan: Plan::default(),
        later: Vec::new(),
        outliers: BTreeSet::new(),
        next: view.next_id.first,
        seed: view.next_id.jitter_seed,
        now,
    };
    for (name, mut replicas) in by_service {
        replicas.sort_by_key(|r| r.id);
        planner.service(name, assigned.services.get(name), &replicas);
        planner.plan.actions.append(&mut planner.later);
    }
    planner.plan
}

struct Planner {
    plan: Plan<NodeAction>,
    /// What comes after the admitting of the same service.
    later: Vec<NodeAction>,
    /// Those of the service at hand that are ejected or come back by this plan.
    outliers: BTreeSet<ReplicaId>,
    next: u64,
    seed: u64,
    now: Millis,
}

/// The replicas of one revision, parted.
struct Part<'a> {
    revision: RevisionNumber,
    group: Option<&'a Group>,
    /// They stay.
    stay: Vec<&'a Replica>,
    /// They must leave.
    surplus: Vec<&'a Replica>,
    /// They are leaving, or are gone.
    leaving: Vec<&'a Replica>,
    create: u32,
}

impl Planner {
    fn service(&mut self, name: &ServiceName, assigned: Option<&Assigned>, replicas: &[&Replica]) {
        let mut parts: BTreeMap<RevisionNumber, Part<'_>> = BTreeMap::new();
        for (number, group) in assigned.iter().flat_map(|a| &a.groups) {
            parts.insert(*number, Part::of(*number, Some(group)));
        }
        for replica in replicas {
            let part = parts
                .entry(replica.revision)
                .or_insert_with(|| Part::of(replica.revision, None));
            if is_leaving(replica) {
                part.leaving.push(replica)
            } else {
                part.stay.push(replica)
            }
        }
        for part in parts.values_mut() {
            part.split(&mut self.plan, self.now);
        }
        self.keep_one_serving(name, &mut parts);
        self.judge_outliers(name, &parts);
        for part in parts.values() {
            self.carry_out(name, part);
        }
    }

    /// Law L1 at the node: a newer assignment may rest on a replica that has died since. As long as the service is
    /// wanted, the last one that serves stays until another does.
    fn keep_one_serving(&mut self, name: &ServiceName, parts: &mut BTreeMap<RevisionNumber, Part<'_>>) {
        let wanted = parts.values().any(|p| p.group.is_some_and(|g| g.replicas > 0));
        let now = self.now;
        let lives =
            |group: Option<&Group>, r: &Replica| is_serving(r) && group.is_none_or(|g| !health::doomed(g, r, now));
        if !wanted || parts.values().any(|p| p.stay.iter().any(|r| lives(p.group, r))) {
            return;
        }
        for part in parts.values_mut().rev() {
            let Some(at) = part.surplus.iter().position(|r| lives(part.group, r)) else {
                continue;
            };
            let kept = part.surplus.remove(at);
            self.note(
                name,
                kept,
                format!("{} is the last that serves: it stays until another does", kept.id),
            );
            part.stay.push(kept);
            return;
        }
    }

    /// Who leaves the routes for its failures and who comes back; they have their action, and are not tended in this plan.
    fn judge_outliers(&mut self, name: &ServiceName, parts: &BTreeMap<RevisionNumber, Part<'_>>) {
        let stay: Vec<(&Group, &Replica)> = parts
            .values()
            .filter_map(|part| Some((part.group?, &part.stay)))
            .flat_map(|(group, stay)| stay.iter().map(move |r| (group, *r)))
            .collect();
        let outliers = eject::outliers(&stay, self.now);
        self.outliers.clear();
        if let Some(wake) = outliers.wake {
            self.plan.wake(wake);
        }
        for replica in outliers.back {
            self.outliers.insert(replica);
            self.plan.actions.push(NodeAction::Return { replica });
        }
        for (replica, until) in outliers.eject {
            self.outliers.insert(replica);
            self.later.push(NodeAction::Eject { replica, until });
        }
        for (_, replica) in &stay {
            if outliers.spared.contains(&replica.id) {
                let text = format!(
                    "{} of {name} keeps failing, but too many others are ejected or none else serves: it stays",
                    replica.id
                );
                self.note(name, replica, text);
            }
        }
    }

    fn carry_out(&mut self, name: &ServiceName, part: &Part<'_>) {
        for replica in &part.stay {
            if let Some(group) = part.group {
                self.tend(group, replica);
            }
        }
        if let Some(group) = part.group {
            for _ in 0..part.create {
                self.later.push(NodeAction::Create {
                    replica: ReplicaId(self.next),
                    service: name.clone(),
                    revision: part.revision,
                    generation: group.generation,
                });
                self.next = self.next.saturating_add(1);
            }
        }
        for replica in &part.surplus {
            self.leave(part.group, replica);
        }
        for replica in &part.leaving {
            self.see_off(part.group, replica);
        }
    }

    /// One that stays.
    fn tend(&mut self, group: &Group, replica: &Replica) {
        let id = replica.id;
        if self.outliers.contains(&id) {
            return;
        }
        if matches!(replica.phase, Phase::Idle { .. } | Phase::Serving { .. }) {
            match health::liveness(group, replica, self.now) {
                Health::Quiet(until) => {
                    if let Some(until) = until {
                        self.plan.wake(until);
                    }
                }
                Health::Kill(death) => return self.kill(replica, death),
                // The rest of it is seen to in the next plan, at once.
                _ => {
                    let probe = Probing::Liveness;
                    self.later.push(NodeAction::Probe { replica: id, probe });
                    return;
                }
            }
        }
        let health = match &replica.phase {
            Phase::Starting { .. } | Phase::Draining { .. } | Phase::Stopping { .. } => return,
            Phase::Started { .. } => health::startup(group, replica, self.now),
            Phase::Idle { .. } => health::routed(group, replica, false, self.now),
            Phase::Serving { .. } => health::routed(group, replica, true, self.now),
            Phase::Dead { at, death } => return self.heal(group, replica, *at, death),
        };
        match health {
            Health::Quiet(until) => {
                if let Some(until) = until {
                    self.plan.wake(until);
                }
            }
            Health::Probe(probe) => self.later.push(NodeAction::Probe { replica: id, probe }),
            Health::Passed => {
                self.plan.actions.push(NodeAction::Ready { replica: id });
                if group.revision.spec.readiness.is_none() {
                    self.plan.actions.push(NodeAction::Admit { replica: id });
                } else {
                    self.later.push(NodeAction::Probe {
                        replica: id,
                        probe: Probing::Readiness,
                    });
                }
            }
            Health::Admit => self.plan.actions.push(NodeAction::Admit { replica: id }),
            Health::Withdraw => {
                let said = replica.probe_error.as_deref().unwrap_or("no answer");
                self.note(&replica.service, replica, format!("{id} is not ready: {said}"));
                self.later.push(NodeAction::Withdraw { replica: id });
            }
            Health::Kill(death) => self.kill(replica, death),
        }
    }

    fn kill(&mut self, replica: &Replica, death: Death) {
        let id = replica.id;
        let text = format!("{id} is taken for dead: {}", words::death(&death));
        self.note(&replica.service, replica, text);
        self.later.push(NodeAction::Kill { replica: id, death });
    }

    fn heal(&mut self, group: &Group, replica: &Replica, at: Millis, death: &Death) {
        let id = replica.id;
        let restart = &group.revision.spec.restart;
        if !group.on_trial && !replica.crash_loop && heal::reached_crash_loop(restart, replica) {
            self.later.push(NodeAction::CrashLoop { replica: id });
        }
        match heal::heal(group, replica, at, death, self.seed, self.now) {
            Heal::Restart => self.later.push(NodeAction::Restart { replica: id }),
            Heal::Wait { until, delay } => {
                self.plan.wake(until);
                let looping = if heal::crash_looping(restart, replica) {
                    " (crash-loop)"
                } else {
                    ""
                };
                let text = format!(
                    "waiting {} before restart {} of {id}{looping}: {}",
                    words::duration(delay),
                    replica.restarts,
                    words::death(death)
                );
                self.note(&replica.service, replica, text);
            }
            Heal::Stay(why) => {
                self.note(
                    &replica.service,
                    replica,
                    format!("{id} stays dead, {why}: {}", words::death(death)),
                );
            }
        }
    }

    /// One that must leave: out of the routes first, stopped after its last request.
    fn leave(&mut self, group: Option<&Group>, replica: &Replica) {
        let id = replica.id;
        let of_file = |g: &Group| g.grace.unwrap_or(g.revision.spec.traffic.drain);
        let drain = group.map_or(Traffic::default().drain, of_file);
        match replica.phase {
            Phase::Dead { .. } => self.later.push(NodeAction::Forget { replica: id }),
            Phase::Serving { .. } => self.later.push(NodeAction::Drain {
                replica: id,
                until: self.now.plus(drain),
            }),
            Phase::Idle { .. } if replica.in_flight > 0 => {
                self.later.push(NodeAction::Drain {
                    replica: id,
                    until: self.now.plus(drain),
                });
            }
            Phase::Starting { .. } | Phase::Started { .. } | Phase::Idle { .. } => {
                self.later.push(NodeAction::Stop { replica: id });
            }
            Phase::Draining { .. } | Phase::Stopping { .. } => {}
        }
    }

    /// One that is leaving already. A grace that was asked for meanwhile can only bring its end forward.
    fn see_off(&mut self, group: Option<&Group>, replica: &Replica) {
        let until = match replica.phase {
            Phase::Draining { since, until } => group
                .and_then(|g| g.grace)
                .map_or(until, |grace| until.min(since.plus(grace))),
            _ => self.now,
        };
        match replica.phase {
            Phase::Draining { .. } if replica.in_flight == 0 || self.now >= until => {
                self.later.push(NodeAction::Stop { replica: replica.id });
            }
            Phase::Draining { since, .. } => {
                self.plan.wake(until);
                let text = format!(
                    "{} drains for at most {}",
                    replica.id,
                    words::duration(until.since(since))
                );
                self.note(&replica.service, replica, text);
            }
            Phase::Dead { .. } => self.later.push(NodeAction::Forget { replica: replica.id }),
            _ => {}
        }
    }

    fn note(&mut self, service: &ServiceName, replica: &Replica, text: String) {
        let (revision, replica) = (Some(replica.revision), Some(replica.id));
        self.plan.notes.push(Note {
            service: service.clone(),
            revision,
            replica,
            text,
        });
    }
}

impl<'a> Part<'a> {
    fn of(revision: RevisionNumber, group: Option<&'a Group>) -> Self {
        Self {
            revision,
            group,
            stay: Vec::new(),
            surplus: Vec::new(),
            leaving: Vec::new(),
            create: 0,
        }
    }

    /// Who stays and how many are created, by the group's numbers.
    fn split(&mut self, plan: &mut Plan<NodeAction>, now: Millis) {
        let Some(group) = self.group else {
            self.surplus = std::mem::take(&mut self.stay);
            return;
        };
        if group.retiring {
            let (serving, rest) = std::mem::take(&mut self.stay).into_iter().partition(|r| is_serving(r));
            (self.stay, self.surplus) = (serving, rest);
            self.surplus
                .append(&mut shed(&mut self.stay, group.replicas, group, now));
            return;
        }
        let (mut new, mut old): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stay)
            .into_iter()
            .partition(|r| r.generation >= group.generation);
        let mut goal = group.replicas;
        if !old.is_empty() {
            let min_healthy = group.revision.spec.rollout.min_healthy;
            let share = rolling::step(
                group.replicas,
                group.replicas,
                Room {
                    surge: group.surge,
                    unavailable: group.unavailable,
                },
                Have {
                    new: count(new.len()),
                    counted: counted(new.iter().copied(), min_healthy, plan, now),
                    stable_serving: count(old.iter().filter(|r| is_serving(r)).count()),
                    retiring_serving: 0,
                },
            );
            // An old one that does not serve is worth nothing: its slot goes to a new one at once.
            let keep = share.stable.min(count(old.iter().filter(|r| is_serving(r)).count()));
            self.surplus.append(&mut shed(&mut old, keep, group, now));
            goal = goal.min(goal.saturating_add(group.surge).saturating_sub(keep));
        }
        self.surplus.append(&mut shed(&mut new, goal, group, now));
        self.create = goal.saturating_sub(count(new.len()));
        self.stay = old;
        self.stay.append(&mut new);
        self.stay.sort_by_key(|r| r.id);
    }
}

/// Removes the surplus over `keep` from `replicas`: first what does not serve or is taken for dead, the least far on
/// first, then the newest.
fn shed<'a>(replicas: &mut Vec<&'a Replica>, keep: u32, group: &Group, now: Millis) -> Vec<&'a Replica> {
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    if replicas.len() <= keep {
        return Vec::new();
    }
    replicas.sort_by_key(|r| {
        let far = match r.phase {
            Phase::Serving { .. } if health::doomed(group, r, now) => 4,
            Phase::Serving { .. } if r.ejected_until.is_none() => 0,
            Phase::Serving { .. } | Phase::Idle { .. } => 1,
            Phase::Started { .. } => 2,
            Phase::Starting { .. } => 3,
            _ => 4,
        };
        (far, r.id)
    });
    replicas.split_off(keep)
}

/// How many have served for `min_healthy`; asks to be woken when the next one has.
fn counted<'a>(
    replicas: impl Iterator<Item = &'a Replica>,
    min_healthy: std::time::Duration,
    plan: &mut Plan<NodeAction>,
    now: Millis,
) -> u32 {
    let mut n = 0;
    for replica in replicas {
        if let Phase::Serving { since } = replica.phase {
            let at = since.plus(min_healthy);
            if now >= at { n += 1 } else { plan.wake(at) }
        }
    }
    n
}

fn is_serving(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Serving { .. })
}

/// On its way out, or stopped by us: no slot of any group.
pub(crate) fn is_leaving(replica: &Replica) -> bool {
    matches!(
        replica.phase,
        Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Dead {
                death: Death::Stopped,
                ..
            }
    )
}
