//! The fleet planner: which revision runs in how many replicas, and what is proved or refused. Writes assignments, never
//! touches a replica. Knows no node's means; on one machine the node planner reads what it writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::node::is_leaving;
use super::rolling::{self, Have, Room, Share};
use super::rollout::{self, Held, Looked};
use super::scale;
use super::trial::{self, Verdict};
use super::words;
use super::{
    Assigned, Assignment, Desired, DesiredService, FleetAction, FleetView, Group, Note, Plan, Progress, depends,
};
use crate::model::service::Step;
use crate::model::{
    Millis, Phase, Replica, ReplicaCount, Revision, RevisionNumber, RevisionState, ServiceName, ServiceRecord, Why,
};

/// Replicas that `record` wants of `revision`: what a schedule in force says, else what `scale` said under it or a newer one, else
/// what its file says. With `[autoscale]` that is where it begins, `autoscaled` where it is now, and a schedule's number its floor. A
/// command has none.
pub fn wanted_replicas(record: &ServiceRecord, revision: &Revision, autoscaled: Option<u32>) -> u32 {
    if revision.spec.is_job() {
        return 0;
    }
    let (first, scheduled) = (first_replicas(record, revision), super::schedule::scheduled(record));
    match &revision.spec.autoscale {
        Some(autoscale) if !turned_off(record, revision) => {
            let (min, max) = scale::bounds(record, autoscale);
            let count = autoscaled.unwrap_or(first).clamp(min, max);
            count.max(scheduled.unwrap_or(0))
        }
        _ => scheduled.unwrap_or(first),
    }
}

/// The count before any load: what `scale` said, else what the file says.
pub(crate) fn first_replicas(record: &ServiceRecord, revision: &Revision) -> u32 {
    by_hand(record, revision).unwrap_or(revision.spec.replicas).get()
}

/// `scale NAME 0` by hand holds against autoscale too, until another number is given.
pub(crate) fn turned_off(record: &ServiceRecord, revision: &Revision) -> bool {
    by_hand(record, revision).is_some_and(|n| n.get() == 0)
}

fn by_hand(record: &ServiceRecord, revision: &Revision) -> Option<ReplicaCount> {
    let holds = record.scaled_under.is_none_or(|newest| revision.number <= newest);
    record.scaled.filter(|_| holds)
}

/// Whether the wanted revision has still to prove itself.
pub fn on_trial(service: &DesiredService) -> bool {
    let record = &service.record;
    record.stable != Some(record.wanted)
        && service.revisions.get(&record.wanted).is_some_and(|r| !is_refused(r))
        && !record.stopped
        && !record.deleting
}

/// Brings `view.progress` and `view.empty` up to date with what `view.replicas` shows. The shell calls it before each
/// [`fleet`]; both only remember since when something holds. The clock of a rollout does not run while the service wants
/// no replica or has none (stopped, scaled to none, waiting for a dependency), nor while a first start is under way: compiling a
/// large module takes its time, within a limit of its own.
pub fn observe(desired: &Desired, view: &mut FleetView, now: Millis) {
    scale::observe(desired, view, now);
    let mut serving: BTreeMap<(&ServiceName, RevisionNumber), u32> = BTreeMap::new();
    let mut there: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut preparing: BTreeSet<(&ServiceName, RevisionNumber)> = BTreeSet::new();
    for replica in &view.replicas {
        there.insert(&replica.service);
        if matches!(replica.phase, Phase::Starting { .. }) && replica.last_death.is_none() {
            preparing.insert((&replica.service, replica.revision));
        }
        if is_serving(replica) {
            *serving.entry((&replica.service, replica.revision)).or_default() += 1;
        }
    }
    let mut progress = BTreeMap::new();
    let mut empty = BTreeMap::new();
    let mut stages = BTreeMap::new();
    for (name, service) in desired.services.iter().filter(|(_, s)| !s.is_job()) {
        let wanted = service.record.wanted;
        let wants = service
            .revisions
            .get(&wanted)
            .map_or(0, |r| wanted_replicas(&service.record, r, view.autoscaled(name)));
        let active = !service.record.stopped && !service.record.deleting && wants > 0;
        if active && !there.contains(name) {
            empty.insert(name.clone(), view.empty.get(name).copied().unwrap_or(now));
        }
        if on_trial(service) {
            let serving = serving.get(&(name, wanted)).copied().unwrap_or(0);
            let mut p = view
                .progress
                .get(name)
                .copied()
                .filter(|p| p.revision == wanted)
                .unwrap_or(Progress {
                    revision: wanted,
                    since: now,
                    moved: now,
                    serving: 0,
                    waited: false,
                });
            let assigned = view.assigned.services.get(name);
            let told = assigned.and_then(|a| a.groups.get(&wanted)).map_or(0, |g| g.replicas);
            let by_choice = told == 0 || serving >= told && is_patient(service);
            if serving > p.serving
                || !active
                || !there.contains(name)
                || preparing.contains(&(name, wanted))
                || by_choice
                || p.waited
            {
                p.moved = now;
            }
            p.waited = by_choice;
            if let Some(stage) = rollout::stage(service, assigned, serving, view.stages.get(name), now) {
                stages.insert(name.clone(), stage);
            }
            p.serving = p.serving.max(serving);
            progress.insert(name.clone(), p);
        }
    }
    view.measures.retain(|name, m| stages.get(name) == Some(&m.stage));
    let mut looked = std::mem::take(&mut view.looked);
    for (name, measures) in &view.measures {
        let last = looked.remove(name);
        view.looked.insert(name.clone(), Looked::at(measures, last, now));
    }
    view.stages = stages;
    view.progress = progress;
    view.empty = empty;
}

/// With all new replicas serving that were asked for, this rollout waits by its own choice: it holds a step, or is paused.
fn is_patient(service: &DesiredService) -> bool {
    let record = &service.record;
    rollout::is_paused(record) || rollout::by_steps(service).is_some()
}

/// What should run, and what is now known about revisions. Linear in services and replicas.
pub fn fleet(desired: &Desired, view: &FleetView, now: Millis) -> Plan<FleetAction> {
    let mut by_service: BTreeMap<&ServiceName, Vec<&Replica>> = BTreeMap::new();
    for replica in &view.replicas {
        by_service.entry(&replica.service).or_default().push(replica);
    }
    for replicas in by_service.values_mut() {
        replicas.sort_by_key(|r| r.id);
    }
    let mut planner = Planner {
        desired,
        view,
        by_service,
        circles: None,
        plan: Plan::default(),
        now,
    };
    let mut assignment = Assignment::default();
    for (name, service) in desired.services.iter().filter(|(_, s)| !s.is_job()) {
        let mut assigned = planner.service(name, service);
        assigned.asleep = planner.scaled(name, service);
        if !assigned.groups.is_empty() {
            assignment.services.insert(name.clone(), assigned);
        }
    }
    if assignment != view.assigned {
        planner.plan.actions.push(FleetAction::Assign { assignment });
    }
    planner.plan
}

type Groups = BTreeMap<RevisionNumber, Group>;
type Split = BTreeMap<RevisionNumber, u32>;

/// Requests go to whoever serves.
fn alike(groups: Groups) -> Assigned {
    Assigned {
        groups,
        split: Split::new(),
        asleep: false,
    }
}

struct Planner<'a> {
    desired: &'a Desired,
    view: &'a FleetView,
    by_service: BTreeMap<&'a ServiceName, Vec<&'a Replica>>,
    /// Found when the first service waits for another.
    circles: Option<BTreeSet<&'a ServiceName>>,
    plan: Plan<FleetAction>,
    now: Millis,
}

/// Replicas of one revision that are not leaving.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    live: u32,
    serving: u32,
}

impl<'a> Planner<'a> {
    fn service(&mut self, name: &'a ServiceName, service: &'a DesiredService) -> Assigned {
        let replicas = self.by_service.get(name).cloned().unwrap_or_default();
        let record = &service.record;
        let mut tallies: BTreeMap<RevisionNumber, Tally> = BTreeMap::new();
        for replica in &replicas {
            let tally = tallies.entry(replica.revision).or_default();
            tally.live += u32::from(!is_leaving(replica));
            tally.serving += u32::from(is_serving(replica));
        }
        // What has replicas and no share below is drained by its own file's drain time.
        let mut groups: Groups = tallies
            .keys()
            .filter_map(|number| Some((*number, group(record, service.revisions.get(number)?, 0))))
            .collect();
        if record.deleting {
            if replicas.is_empty() {
                self.plan.actions.push(FleetAction::Forget { service: name.clone() });
            }
            return alike(groups);
        }
        if record.stopped {
            return alike(keep_routes(groups, record, service));
        }
        let Some(wanted) = service.revisions.get(&record.wanted) else {
            self.note(
                name,
                record.wanted,
                format!("revision {} is not in the store: nothing changes", record.wanted),
            );
            return self
                .view
                .assigned
                .services
                .get(name)
                .map_or_else(|| alike(groups), Assigned::clone);
        };
        let refused = is_refused(wanted) || self.judge(name, service, wanted, &replicas);
        let stable = record
            .stable
            .filter(|number| !(refused && *number == record.wanted))
            .and_then(|number| service.revisions.get(&number))
            .filter(|revision| !is_refused(revision));
        let Some(base) = (if refused { stable } else { Some(wanted) }) else {
            keep_superseded(&mut groups, service, self.view.autoscaled(name), &tallies);
            return alike(groups);
        };
        let goal = self.wanted(name, record, base);
        if goal == 0 || self.waits(name, base, &replicas) {
            return alike(keep_routes(groups, record, service));
        }
        let split = self.share(
            name,
            service,
            Goal { base, stable, goal },
            &tallies,
            &replicas,
            &mut groups,
        );
        Assigned {
            groups,
            split,
            asleep: false,
        }
    }

    /// True: `wanted` is refused by this plan.
    fn judge(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        wanted: &Revision,
        replicas: &[&Replica],
    ) -> bool {
        let record = &service.record;
        if !on_trial(service) || self.wanted(name, record, wanted) == 0 {
            return false;
        }
        let number = wanted.number;
        let told = self
            .view
            .assigned
            .services
            .get(name)
            .and_then(|a| a.groups.get(&number));
        let of_it = replicas.iter().copied().filter(|r| r.revision == number);
        let patient = is_patient(service);
        let verdict = match trial::verdict(wanted, of_it, self.view.progress.get(name), told, patient, self.now) {
            Verdict::Open { until } => self.held(name, service, wanted, until),
            refused => refused,
        };
        match verdict {
            Verdict::Open { until } => {
                if let Some(until) = until {
                    self.plan.wake(until);
                }
                false
            }
            Verdict::Refused(why, detail) => {
                let back_to = record.stable.filter(|_| wanted.spec.rollout.auto_rollback);
                self.note(name, number, format!("revision {number} is refused: {detail}"));
                self.plan.actions.push(FleetAction::Refuse {
                    service: name.clone(),
                    revision: number,
                    why,
                    detail,
                    back_to,
                });
                true
            }
        }
    }

    /// Start order: the first replicas wait for dependencies, at most [`depends::WAIT`].
    fn waits(&mut self, name: &'a ServiceName, base: &'a Revision, replicas: &[&Replica]) -> bool {
        let told = self
            .view
            .assigned
            .services
            .get(name)
            .is_some_and(|a| a.groups.values().any(|g| g.replicas > 0));
        if base.spec.depends_on.is_empty() || !replicas.is_empty() || told {
            return false;
        }
        let until = self
            .view
            .empty
            .get(name)
            .copied()
            .unwrap_or(self.now)
            .plus(depends::WAIT);
        if self.now >= until {
            return false;
        }
        let desired = self.desired;
        let circles = self.circles.get_or_insert_with(|| depends::circles(desired));
        let in_circle = circles.contains(name);
        let waits_for = depends::waits_for(&base.spec, |on| {
            desired
                .services
                .get(on)
                .is_some_and(|s| can_serve(s, self.view.autoscaled(on)))
                && !(in_circle && circles.contains(on))
                && !self
                    .by_service
                    .get(on)
                    .is_some_and(|of_it| of_it.iter().any(|r| is_serving(r)))
        });
        if waits_for.is_empty() {
            return false;
        }
        let names: Vec<&str> = waits_for.iter().map(|n| n.as_str()).collect();
        let text = format!(
            "waiting at most {} for {} to serve first",
            words::duration(depends::WAIT),
            names.join(", ")
        );
        self.plan.wake(until);
        self.note(name, base.number, text);
        true
    }

    /// The numbers of a service that wants `goal` replicas of `base`.
    fn share(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        Goal { base, stable, goal }: Goal<'_>,
        tallies: &BTreeMap<RevisionNumber, Tally>,
        replicas: &[&Replica],
        groups: &mut Groups,
    ) -> Split {
        let record = &service.record;
        let of = |number: &RevisionNumber| tallies.get(number).copied().unwrap_or_default();
        let stable = stable.filter(|s| s.number != base.number);
        let old: Vec<_> = tallies
            .iter()
            .filter(|(n, t)| **n != base.number && t.live > 0)
            .map(|(n, _)| *n)
            .collect();
        let on_trial = on_trial(service) && base.number == record.wanted;
        if !on_trial && old.is_empty() {
            let room = Room::of(&base.spec.rollout, goal, goal);
            let whole = Group {
                surge: room.surge,
                unavailable: room.unavailable,
                ..group(record, base, goal)
            };
            groups.insert(base.number, whole);
            return Split::new();
        }
        // Gone back to, what serves beside the others goes on; on trial it came when they had gone.
        let serves = of(&base.number).serving > 0;
        let recreates =
            (on_trial || !serves) && rollout::recreates(service, base, on_trial, replicas.iter().map(|r| r.revision));
        if recreates && !serves && replicas.iter().any(|r| r.revision != base.number) {
            let none = group(record, base, 0);
            groups.insert(base.number, Group { on_trial, ..none });
            let left = replicas.iter().filter(|r| r.revision != base.number).count();
            let left = words::many(words::count(left), "older replica");
            self.note(
                name,
                base.number,
                format!("recreate: {left} left to drain before revision {} starts", base.number),
            );
            return Split::new();
        }
        let counted = self.counted(base, replicas);
        // Whatever its file says, the last that serves is kept.
        let before = stable.map_or(0, |s| {
            self.wanted(name, record, s).max(u32::from(of(&s.number).serving > 0))
        });
        let course = rollout::by_steps(service).filter(|_| on_trial);
        let assigned = self.view.assigned.services.get(name);
        let told = rollout::told(assigned, base.number);
        // Once it has no requests any more, the load is not its own: it stays warm as it is.
        let switched = course.is_some_and(|c| c.weight == Step::WHOLE && told == Some(Step::WHOLE));
        let warm = stable
            .and_then(|s| assigned?.groups.get(&s.number))
            .filter(|_| switched);
        let before = warm.map_or(before, |g| before.min(g.replicas.max(1)));
        let room = Room::of(&base.spec.rollout, goal, goal.max(before));
        let is_stable = |n: &RevisionNumber| stable.is_some_and(|s| s.number == *n);
        let retiring_serving = old.iter().filter(|n| !is_stable(n)).map(|n| of(n).serving).sum();
        let have = Have {
            new: of(&base.number).live,
            counted,
            stable_serving: stable.map_or(0, |s| of(&s.number).serving),
            retiring_serving,
        };
        let paused = on_trial && rollout::is_paused(record);
        let mut share = match &course {
            Some(course) => course.share(goal, before, have),
            None if recreates => Share {
                new: goal,
                ..Share::default()
            },
            None => rolling::step(goal, before, room, have),
        };
        // A pause keeps what there is; where nothing older serves there is nothing to keep.
        if paused && course.is_none() && !recreates && (before > 0 || retiring_serving > 0) {
            share = rolling::halt(share, goal.max(before), before, have);
        }
        groups.insert(
            base.number,
            Group {
                on_trial,
                ..group(record, base, share.new)
            },
        );
        if let Some(stable) = stable.filter(|s| share.stable > 0 || groups.contains_key(&s.number)) {
            groups.insert(stable.number, group(record, stable, share.stable));
        }
        let mut left = share.retiring;
        for number in old.iter().rev().filter(|n| !is_stable(n)) {
            let keep = of(number).serving.min(left);
            if let Some(revision) = service.revisions.get(number) {
                groups.insert(
                    *number,
                    Group {
                        retiring: true,
                        ..group(record, revision, keep)
                    },
                );
                left -= keep;
            }
        }
        let weight = course.map(|c| c.in_force(goal, counted, of(&base.number).serving, told));
        let ended = course.is_none_or(|c| c.is_last()) && !paused;
        if on_trial && counted >= goal && old.is_empty() && ended {
            self.plan.actions.push(FleetAction::Prove {
                service: name.clone(),
                revision: base.number,
            });
        } else if let (Some(course), Some(weight)) = (course, weight) {
            let asked = course.replicas(goal);
            self.note(
                name,
                base.number,
                course.words(base.number, weight, (counted.min(asked), asked)),
            );
        } else {
            let old_serving = have.stable_serving + have.retiring_serving;
            let mut text = format!(
                "{counted} of {} of revision {} healthy",
                words::many(goal, "replica"),
                base.number
            );
            if old_serving > 0 {
                text.push_str(&format!(", {old_serving} older still serving"));
            }
            if paused {
                text.push_str("; paused");
            }
            self.note(name, base.number, text);
        }
        match (weight, stable) {
            (Some(weight), Some(stable)) => rollout::split(
                (base.number, of(&base.number).serving),
                (stable.number, of(&stable.number).serving),
                weight,
            ),
            _ => Split::new(),
        }
    }

    /// What the stage of `wanted` says beside its replicas, which say nothing against it before `until`. A step that was held
    /// to its end is an action.
    fn held(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        wanted: &Revision,
        until: Option<Millis>,
    ) -> Verdict {
        let Some(stage) = self.view.stages.get(name).filter(|s| s.revision == wanted.number) else {
            return Verdict::Open { until };
        };
        match rollout::held(
            service,
            wanted,
            stage,
            (self.view.measures.get(name), self.view.looked.get(name)),
            self.now,
        ) {
            Held::Failed(figures) => Verdict::Refused(Why::Gate, figures),
            Held::Over => {
                self.plan.actions.push(FleetAction::Step {
                    service: name.clone(),
                    revision: wanted.number,
                    step: stage.step + 1,
                });
                Verdict::Open { until }
            }
            Held::Open { until: look } => Verdict::Open {
                until: [until, look].into_iter().flatten().min(),
            },
        }
    }

    fn wanted(&self, name: &ServiceName, record: &ServiceRecord, revision: &Revision) -> u32 {
        wanted_replicas(record, revision, self.view.autoscaled(name))
    }

    /// What autoscale says of a service, and when it must be looked at again. True: it is scaled to zero for want of requests.
    fn scaled(&mut self, name: &ServiceName, service: &DesiredService) -> bool {
        let (Some(scaling), Some((revision, _))) = (self.view.scaling.get(name), scale::autoscaled(service)) else {
            return false;
        };
        if let Some(at) = scaling.look_again {
            self.plan.wake(at);
        }
        if turned_off(&service.record, revision) {
            return false;
        }
        self.note(name, revision.number, format!("autoscale: {}", scaling.text()));
        scaling.count == 0 && self.wanted(name, &service.record, revision) == 0
    }

    /// Replicas of `revision` that have served for `min_healthy`; asks to be woken when the next one has.
    fn counted(&mut self, revision: &Revision, replicas: &[&Replica]) -> u32 {
        let mut n = 0;
        for replica in replicas.iter().filter(|r| r.revision == revision.number) {
            if let Phase::Serving { since } = replica.phase {
                let at = since.plus(revision.spec.rollout.min_healthy);
                if self.now >= at { n += 1 } else { self.plan.wake(at) }
            }
        }
        n
    }

    fn note(&mut self, name: &ServiceName, revision: RevisionNumber, text: String) {
        self.plan.notes.push(Note {
            service: name.clone(),
            revision: Some(revision),
            replica: None,
            text,
        });
    }
}

/// Where a service is going.
struct Goal<'a> {
    base: &'a Arc<Revision>,
    stable: Option<&'a Arc<Revision>>,
    goal: u32,
}

/// The wanted revision is refused and there is nothing to go back to: it gets none. What an earlier revision that never
/// proved itself still serves is not taken away.
fn keep_superseded(
    groups: &mut Groups,
    service: &DesiredService,
    autoscaled: Option<u32>,
    tallies: &BTreeMap<RevisionNumber, Tally>,
) {
    let record = &service.record;
    let mut left = service
        .revisions
        .get(&record.wanted)
        .map_or(0, |r| wanted_replicas(record, r, autoscaled));
    for (number, tally) in tallies.iter().rev().filter(|(n, _)| **n != record.wanted) {
        if let Some(revision) = service.revisions.get(number).filter(|r| !is_refused(r)) {
            let keep = tally.serving.min(left);
            left -= keep;
            groups.insert(
                *number,
                Group {
                    retiring: keep > 0,
                    ..group(record, revision, keep)
                },
            );
        }
    }
}

/// A service that runs nothing on purpose keeps its routes: its clients are told to come back (503), not that it never
/// was (404).
fn keep_routes(mut groups: Groups, record: &ServiceRecord, service: &DesiredService) -> Groups {
    let known = record.stable.and_then(|number| service.revisions.get(&number));
    if let Some(revision) = known.or_else(|| service.revisions.get(&record.wanted))
        && groups.is_empty()
    {
        groups.insert(revision.number, group(record, revision, 0));
    }
    groups
}

fn group(record: &ServiceRecord, revision: &Arc<Revision>, replicas: u32) -> Group {
    Group {
        replicas,
        generation: record.generation,
        on_trial: false,
        retiring: false,
        surge: 0,
        unavailable: 0,
        grace: record.grace_ms.map(std::time::Duration::from_millis),
        revision: revision.clone(),
    }
}

/// Worth waiting for: it is meant to run and has a revision that may.
fn can_serve(service: &DesiredService, autoscaled: Option<u32>) -> bool {
    let record = &service.record;
    let revision = |n: &RevisionNumber| {
        service
            .revisions
            .get(n)
            .filter(|r| !is_refused(r) && wanted_replicas(record, r, autoscaled) > 0)
    };
    !record.stopped
        && !record.deleting
        && (revision(&record.wanted).is_some() || record.stable.as_ref().and_then(revision).is_some())
}

fn is_refused(revision: &Revision) -> bool {
    matches!(revision.state, RevisionState::Refused(_))
}

fn is_serving(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Serving { .. })
}
