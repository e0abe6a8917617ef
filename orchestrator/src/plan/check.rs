//! What no plan may do: the laws, checked after every step of a simulation and cheap enough to check anywhere else.
//! Judges a plan by what was seen and what is wanted; knows nothing of how the planners think.
//!
//! L1 a service with serving replicas is never planned down to none while a revision changes. L2 replicas stay within
//! wanted and surge. L3 when the world is settled the plan is empty. L4 no one acts on what is not theirs. L5 once faults
//! stop, all settles (L3 and L5 are judged by who runs the world, over several plans). L6 a refused revision is not
//! started (a rollout that recreates is free of L1). L7 time alone stops nothing. And: out of the routes first, stopped after the last
//! request; autoscale within its bounds.

pub mod schedule;

mod ejection;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::fleet::wanted_replicas;
use super::node::is_leaving;
use super::rolling::Room;
use super::{Assignment, Desired, DesiredService, FleetAction, FleetView, Group, NodeAction, NodeView, Plan};
use crate::model::{Millis, Phase, Replica, ReplicaId, Revision, RevisionNumber, RevisionState, ServiceName};

/// A law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Law {
    /// Never down to none while a revision changes.
    L1,
    /// Within wanted and surge.
    L2,
    /// Settled means an empty plan.
    L3,
    /// Only what is one's own, named, once.
    L4,
    /// All settles.
    L5,
    /// Nothing refused is started.
    L6,
    /// Time alone stops nothing.
    L7,
    /// Drained before it is stopped.
    Drain,
    /// Admitted only when ready; proved only when it served.
    Proof,
    /// One time of a schedule is acted on once at most.
    Once,
    /// However many times were missed, one is caught up at most.
    CatchUp,
    /// Never before its time, never at one that is none, never while it is paused or its service is stopped.
    Time,
    /// Autoscale stays in its bounds, goes down only as the load and the steps allow, and comes to rest under a steady load.
    Scale,
    /// Ejected: a share, never all, for its failures only, and not for ever.
    Ejection,
    /// Shares of the requests as the rollout's step allows.
    Split,
    /// A step is held to its end.
    Step,
    /// A failed gate refuses at once.
    Gate,
}

/// A law that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Breach {
    pub law: Law,
    pub service: Option<ServiceName>,
    pub replica: Option<ReplicaId>,
    pub text: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.law)?;
        if let Some(service) = &self.service {
            write!(f, " {service}")?;
        }
        if let Some(replica) = self.replica {
            write!(f, " {replica}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Laws that a plan of the fleet breaks.
pub fn fleet_breaches(desired: &Desired, before: &FleetView, plan: &Plan<FleetAction>, now: Millis) -> Vec<Breach> {
    let mut found = Found::default();
    let mut refused: BTreeMap<&ServiceName, (RevisionNumber, Option<RevisionNumber>)> = BTreeMap::new();
    let mut replicas: BTreeMap<&ServiceName, Vec<&Replica>> = BTreeMap::new();
    for replica in &before.replicas {
        replicas.entry(&replica.service).or_default().push(replica);
    }
    let of = |name: &ServiceName| replicas.get(name).map_or(&[][..], Vec::as_slice);
    for action in &plan.actions {
        match action {
            FleetAction::Refuse {
                service,
                revision,
                back_to,
                ..
            } => {
                refused.insert(service, (*revision, *back_to));
                let on_trial = desired.services.get(service).is_some_and(super::fleet::on_trial);
                found.unless(on_trial, Law::L4, service, || {
                    format!("revision {revision} is refused, but not on trial")
                });
            }
            FleetAction::Prove { service, revision } => {
                let known = (desired.services.get(service), before.autoscaled(service));
                found.proof(known, service, *revision, of(service), now);
            }
            FleetAction::Step {
                service,
                revision,
                step,
            } => {
                found.step(service, desired.services.get(service), (*revision, *step), before, now);
            }
            FleetAction::Forget { service } => {
                let ok = of(service).is_empty() && desired.services.get(service).is_some_and(|s| s.record.deleting);
                found.unless(ok, Law::L4, service, || {
                    "forgotten while wanted or while it has replicas".into()
                });
            }
            FleetAction::Assign { .. } => {}
        }
    }
    let assignment = plan.actions.iter().find_map(|a| match a {
        FleetAction::Assign { assignment } => Some(assignment),
        _ => None,
    });
    let assignment = assignment.unwrap_or(&before.assigned);
    for name in assignment.services.keys() {
        found.unless(desired.services.contains_key(name), Law::L4, name, || {
            "assigned, but there is no such service".into()
        });
    }
    for (name, service) in &desired.services {
        let taken_back = refused.contains_key(name);
        found.gate(name, service, before, taken_back);
        if let Some(assigned) = assignment.services.get(name) {
            found.split(name, service, assigned, of(name), taken_back);
        }
        let groups = assignment.services.get(name).map(|a| &a.groups);
        let groups: Vec<_> = groups.into_iter().flatten().collect();
        let autoscaled = before.autoscaled(name);
        found.groups(
            (name, autoscaled),
            service,
            &groups,
            of(name),
            refused.get(name).copied(),
        );
        // What this very plan refuses has lost its share already.
        if !refused.contains_key(name) {
            found.bounds(name, service, &groups, of(name));
        }
    }
    found.0
}

/// Laws that a plan of the node breaks.
pub fn node_breaches(assigned: &Assignment, before: &NodeView, plan: &Plan<NodeAction>, now: Millis) -> Vec<Breach> {
    let mut found = Found::default();
    let known: BTreeMap<ReplicaId, &Replica> = before.replicas.iter().map(|r| (r.id, r)).collect();
    let mut next = before.next_id.first;
    let mut acted: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut passed: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut gone: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut created: BTreeMap<(&ServiceName, RevisionNumber), u32> = BTreeMap::new();
    let group = |service: &ServiceName, revision| assigned.services.get(service).and_then(|a| a.groups.get(&revision));
    for action in &plan.actions {
        let id = named(action);
        if let NodeAction::Create { service, revision, .. } = action {
            found.unless(id.0 == next && !known.contains_key(&id), Law::L4, service, || {
                format!("{id} is no fresh id")
            });
            next = next.saturating_add(1);
            *created.entry((service, *revision)).or_default() += 1;
            found.may_start(service, id, group(service, *revision));
            continue;
        }
        let Some(replica) = known.get(&id) else {
            found.0.push(Breach {
                law: Law::L4,
                service: None,
                replica: Some(id),
                text: "not of this node".into(),
            });
            continue;
        };
        let group = group(&replica.service, replica.revision);
        let after_ready = passed.contains(&id) && matches!(action, NodeAction::Admit { .. } | NodeAction::Probe { .. });
        let twice = !matches!(action, NodeAction::CrashLoop { .. }) && !acted.insert(id) && !after_ready;
        found.replica(!twice, Law::L4, replica, || "two actions in one plan".into());
        if matches!(action, NodeAction::Ready { .. }) {
            passed.insert(id);
        }
        if matches!(
            action,
            NodeAction::Drain { .. } | NodeAction::Stop { .. } | NodeAction::Forget { .. }
        ) {
            gone.insert(id);
        }
        found.action(action, replica, group, passed.contains(&id), now);
    }
    found.counts(assigned, before, &created, &gone);
    ejection::breaches(&mut found, assigned, before, plan, now);
    found.0
}

/// The replica that an action names.
pub fn named(action: &NodeAction) -> ReplicaId {
    match action {
        NodeAction::Create { replica, .. }
        | NodeAction::Restart { replica }
        | NodeAction::Probe { replica, .. }
        | NodeAction::Ready { replica }
        | NodeAction::Admit { replica }
        | NodeAction::Withdraw { replica }
        | NodeAction::Eject { replica, .. }
        | NodeAction::Return { replica }
        | NodeAction::Drain { replica, .. }
        | NodeAction::Stop { replica }
        | NodeAction::Kill { replica, .. }
        | NodeAction::Forget { replica }
        | NodeAction::CrashLoop { replica } => *replica,
    }
}

/// It traps every call, or its liveness probe has failed as often as its file allows.
fn taken_for_dead(replica: &Replica, group: Option<&Group>) -> bool {
    group.is_some_and(|g| {
        let spec = &g.revision.spec;
        let lives = spec.liveness.as_ref().map_or(u32::MAX, |p| p.failures.max(1));
        replica.consecutive_traps >= spec.traffic.consecutive_failures.max(1) || replica.live.failures >= lives
    })
}

#[derive(Default)]
struct Found(Vec<Breach>);

impl Found {
    fn unless(&mut self, ok: bool, law: Law, service: &ServiceName, text: impl FnOnce() -> String) {
        if !ok {
            self.0.push(Breach {
                law,
                service: Some(service.clone()),
                replica: None,
                text: text(),
            });
        }
    }

    fn replica(&mut self, ok: bool, law: Law, replica: &Replica, text: impl FnOnce() -> String) {
        if !ok {
            let (service, replica) = (Some(replica.service.clone()), Some(replica.id));
            self.0.push(Breach {
                law,
                service,
                replica,
                text: text(),
            });
        }
    }

    /// A revision is proved by all wanted replicas having served for `min_healthy`, alone in the routes.
    fn proof(
        &mut self,
        (service, autoscaled): (Option<&DesiredService>, Option<u32>),
        name: &ServiceName,
        number: RevisionNumber,
        replicas: &[&Replica],
        now: Millis,
    ) {
        let revision = service.and_then(|s| Some((s, s.revisions.get(&number).filter(|_| number == s.record.wanted)?)));
        let Some((service, revision)) = revision else {
            return self.unless(false, Law::L4, name, || {
                format!("revision {number} is proved, but not wanted")
            });
        };
        self.proof_by_steps(name, service);
        let min_healthy = revision.spec.rollout.min_healthy;
        let healthy = |r: &&&Replica| matches!(r.phase, Phase::Serving { since } if now >= since.plus(min_healthy));
        let healthy = replicas.iter().filter(|r| r.revision == number).filter(healthy).count();
        let wanted = wanted_replicas(&service.record, revision, autoscaled);
        let older = replicas
            .iter()
            .any(|r| r.revision != number && matches!(r.phase, Phase::Serving { .. }));
        self.unless(
            wanted > 0 && healthy >= to_usize(wanted) && !older,
            Law::Proof,
            name,
            || format!("revision {number} is proved with {healthy} of {wanted} healthy"),
        );
    }

    /// L1, L2, L4, L6 of what a service is assigned.
    fn groups(
        &mut self,
        (name, autoscaled): (&ServiceName, Option<u32>),
        service: &DesiredService,
        groups: &[(&RevisionNumber, &Group)],
        replicas: &[&Replica],
        refused: Option<(RevisionNumber, Option<RevisionNumber>)>,
    ) {
        let record = &service.record;
        let off = record.stopped || record.deleting;
        let is_refused = |number: RevisionNumber| {
            refused.is_some_and(|(n, _)| n == number)
                || service
                    .revisions
                    .get(&number)
                    .is_some_and(|r| matches!(r.state, RevisionState::Refused(_)))
        };
        for (number, group) in groups {
            let own = group.revision.service == *name && group.revision.number == **number;
            self.unless(own, Law::L4, name, || format!("revision {number} is not its own"));
            let started = group.replicas > 0 && !group.retiring;
            self.unless(!(started && is_refused(**number)), Law::L6, name, || {
                format!("revision {number} was refused")
            });
        }
        let total: u32 = groups
            .iter()
            .fold(0, |sum, (_, g)| sum.saturating_add(g.replicas).saturating_add(g.surge));
        if off {
            self.unless(total == 0, Law::L2, name, || {
                format!("{total} replicas of a service that is off")
            });
            return;
        }
        // While a revision changes, the larger of the two counts.
        let of = |n: Option<RevisionNumber>| n.and_then(|n| service.revisions.get(&n));
        let count = |r: &Revision| wanted_replicas(record, r, autoscaled);
        let (wanted, stable) = (of(Some(record.wanted)), of(record.stable));
        let most = wanted
            .map_or(0, |r| count(r))
            .max(stable.map_or(0, |r| count(r).max(1)));
        let surge = |r: &Revision| Room::of(&r.spec.rollout, count(r), most).surge;
        let surge = wanted.map_or(0, |r| surge(r)).max(stable.map_or(0, |r| surge(r)));
        let by_steps = wanted.filter(|r| !r.spec.rollout.steps().is_empty()).map_or(0, |r| {
            super::rollout::beside(count(r), stable.map_or(0, |s| count(s).max(1)))
        });
        self.unless(
            wanted.is_none() || total <= most.saturating_add(surge).max(by_steps),
            Law::L2,
            name,
            || format!("{total} replicas, wanted {most} and {surge} beyond"),
        );
        let goal = if is_refused(record.wanted) {
            stable.filter(|s| !is_refused(s.number))
        } else {
            wanted
        };
        let mut serving: BTreeMap<RevisionNumber, u32> = BTreeMap::new();
        for replica in replicas.iter().filter(|r| matches!(r.phase, Phase::Serving { .. })) {
            *serving.entry(replica.revision).or_default() += 1;
        }
        // What recreates has agreed to a gap, as long as it serves nothing itself.
        let there = || replicas.iter().map(|r| r.revision);
        let trial = goal.is_some_and(|r| record.stable != Some(r.number));
        let gap =
            |r: &Revision| !serving.contains_key(&r.number) && super::rollout::recreates(service, r, trial, there());
        if goal.is_none_or(|r| count(r) == 0 || gap(r)) {
            return;
        }
        let kept: u32 = groups
            .iter()
            .map(|(n, g)| g.replicas.min(serving.get(n).copied().unwrap_or(0)))
            .sum();
        self.unless(serving.is_empty() || kept > 0, Law::L1, name, || {
            format!("{} serve, none is kept", serving.values().sum::<u32>())
        });
    }

    /// An autoscaled service that is at rest runs within its bounds, and none only where `min` is 0.
    fn bounds(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        groups: &[(&RevisionNumber, &Group)],
        replicas: &[&Replica],
    ) {
        let record = &service.record;
        let Some((revision, autoscale)) = super::scale::autoscaled(service) else {
            return;
        };
        let off = super::fleet::turned_off(record, revision);
        let [(number, group)] = groups else { return };
        // The file on trial may want none.
        let other = super::fleet::on_trial(service) && revision.number != record.wanted;
        if off || other || **number != revision.number || group.retiring {
            return;
        }
        let (min, max) = super::scale::bounds(record, autoscale);
        // Before its dependencies serve it has none yet.
        let waits = group.replicas == 0 && replicas.is_empty() && !revision.spec.depends_on.is_empty();
        self.unless(waits || (min..=max).contains(&group.replicas), Law::Scale, name, || {
            format!("{} replicas, bounds are {min}..{max}", group.replicas)
        });
    }

    /// L6 and L4 of a start.
    fn may_start(&mut self, service: &ServiceName, id: ReplicaId, group: Option<&Group>) {
        let Some(group) = group else {
            return self.unless(false, Law::L4, service, || format!("{id} is started, but not assigned"));
        };
        self.unless(!group.retiring, Law::L6, service, || {
            format!("{id} is started, but its revision retires")
        });
        let refused = matches!(group.revision.state, RevisionState::Refused(_));
        self.unless(!refused, Law::L6, service, || {
            format!("{id} is started, but its revision was refused")
        });
    }

    /// One action on one replica of this node.
    fn action(&mut self, action: &NodeAction, replica: &Replica, group: Option<&Group>, passed: bool, now: Millis) {
        let phase = &replica.phase;
        match action {
            NodeAction::Restart { .. } => {
                self.replica(matches!(phase, Phase::Dead { .. }), Law::L4, replica, || {
                    "restarted, but not dead".into()
                });
                self.may_start(&replica.service, replica.id, group);
            }
            NodeAction::Stop { .. } => {
                let ok = match phase {
                    Phase::Draining { since, until } => {
                        let grace = group.and_then(|g| g.grace).map_or(*until, |grace| since.plus(grace));
                        replica.in_flight == 0 || now >= grace.min(*until)
                    }
                    Phase::Idle { .. } => replica.in_flight == 0,
                    Phase::Starting { .. } | Phase::Started { .. } => true,
                    _ => false,
                };
                self.replica(ok, Law::Drain, replica, || {
                    format!("stopped while {}", super::words::phase(phase))
                });
            }
            NodeAction::Ready { .. } => {
                let ok = matches!(phase, Phase::Started { .. })
                    && replica.probed_at.is_some()
                    && replica.probe_failures == 0;
                self.replica(ok, Law::Proof, replica, || {
                    "ready without a passed startup probe".into()
                });
            }
            NodeAction::Admit { .. } => {
                let probe = group.is_some_and(|g| g.revision.spec.readiness.is_some());
                let ready = replica.probed_at.is_some() && replica.probe_failures == 0;
                let ok = matches!(phase, Phase::Idle { .. }) && (ready || !probe) || passed && !probe;
                self.replica(ok, Law::Proof, replica, || "admitted, but not ready".into());
            }
            NodeAction::Withdraw { .. } => {
                let failures = group
                    .and_then(|g| g.revision.spec.readiness.as_ref())
                    .map_or(u32::MAX, |p| p.failures.max(1));
                let ok = replica.probe_failures >= failures;
                self.replica(ok, Law::L7, replica, || "withdrawn without failed probes".into());
            }
            NodeAction::Kill { .. } => {
                let spec = group.map(|g| &g.revision.spec);
                let probes = spec.map_or(u32::MAX, |s| s.startup.failures.max(1));
                let ok = taken_for_dead(replica, group)
                    || matches!(phase, Phase::Started { .. }) && replica.probe_failures >= probes;
                self.replica(ok, Law::L7, replica, || "killed without a cause".into());
            }
            NodeAction::Forget { .. } => {
                self.replica(matches!(phase, Phase::Dead { .. }), Law::L4, replica, || {
                    "forgotten, but it lives".into()
                });
            }
            _ => {}
        }
    }

    /// L1, L2 and L7 over all actions of a node's plan: `gone` are drained, stopped or forgotten.
    fn counts(
        &mut self,
        assigned: &Assignment,
        before: &NodeView,
        created: &BTreeMap<(&ServiceName, RevisionNumber), u32>,
        gone: &BTreeSet<ReplicaId>,
    ) {
        let mut lives: BTreeMap<(&ServiceName, RevisionNumber), Live> = BTreeMap::new();
        for (key, n) in created {
            lives.entry(*key).or_default().created = *n;
        }
        for replica in before.replicas.iter().filter(|r| !is_leaving(r)) {
            let live = lives.entry((&replica.service, replica.revision)).or_default();
            let group = assigned
                .services
                .get(&replica.service)
                .and_then(|a| a.groups.get(&replica.revision));
            // What is taken for dead is not the plan's to keep.
            let dead = taken_for_dead(replica, group);
            let serving = u32::from(matches!(replica.phase, Phase::Serving { .. }) && !dead);
            live.serving_before += serving;
            live.before += 1;
            live.old_generation |= group.is_some_and(|g| replica.generation < g.generation);
            if gone.contains(&replica.id) {
                live.gone += 1;
            } else {
                live.serving += serving;
            }
        }
        let mut serving: BTreeMap<&ServiceName, (u32, u32)> = BTreeMap::new();
        for ((name, _), live) in &lives {
            let sum = serving.entry(name).or_default();
            *sum = (sum.0 + live.serving_before, sum.1 + live.serving);
        }
        for (name, (was, stays)) in &serving {
            let wanted = assigned
                .services
                .get(*name)
                .is_some_and(|a| a.groups.values().any(|g| g.replicas > 0));
            self.unless(!wanted || *was == 0 || *stays > 0, Law::L1, name, || {
                format!("{was} serve, none is kept")
            });
        }
        for ((name, number), live) in &lives {
            let group = assigned.services.get(*name).and_then(|a| a.groups.get(number));
            let limit = group.map_or(0, |g| g.replicas.saturating_add(g.surge));
            let after = live.before + live.created - live.gone;
            // The last that serves may stay beyond the numbers.
            let last = u32::from(live.serving > 0 && serving.get(name).is_some_and(|s| s.1 == 1));
            self.unless(after <= limit.saturating_add(last), Law::L2, name, || {
                format!("{after} of revision {number}, at most {limit} are assigned")
            });
            // Taken out of the routes only for what takes its place or is surplus.
            let least = group.map_or(0, |g| g.replicas.saturating_sub(g.unavailable.max(1)));
            let shrunk = live.serving < live.serving_before && !live.old_generation;
            self.unless(
                !shrunk || live.serving >= least.min(live.serving_before),
                Law::L7,
                name,
                || {
                    format!(
                        "{} of revision {number} serve after the plan, {least} are assigned",
                        live.serving
                    )
                },
            );
        }
    }
}

#[derive(Default)]
struct Live {
    before: u32,
    created: u32,
    gone: u32,
    serving_before: u32,
    serving: u32,
    old_generation: bool,
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
