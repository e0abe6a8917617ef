//! Rollouts by steps: which share of the requests the new revision gets, with how many replicas, and when the next step is
//! taken. Canary and blue-green are one course: a blue-green rollout has a single step of all requests, held while the
//! old revision stays warm. The stable revision stays whole until the last step was held. Numbers only; writes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::fleet::{on_trial, turned_off, wanted_replicas};
use super::gates::{self, Measures};
use super::rolling::{Have, Share};
use super::{Assigned, DesiredService, words};
use crate::model::service::{Step, Strategy};
use crate::model::{Millis, Revision, RevisionNumber, RevisionState, ServiceRecord};

/// While gates are open, someone looks at the figures so often: a failing one is acted upon well within a second.
pub(crate) const LOOK: Duration = Duration::from_millis(200);
/// As long as no request comes, so often.
pub(crate) const QUIET_LOOK: Duration = Duration::from_secs(1);

/// Where a rollout by steps is, as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub strategy: Strategy,
    /// Steps that were held to their end, of `steps`.
    pub step: u32,
    pub steps: u32,
    /// Thousandths of the requests that the new revision gets at this step; all of them after the last.
    pub weight: u32,
    /// Of the step before.
    pub before: u32,
    /// None after the last step, and when someone promoted it.
    pub hold: Option<Duration>,
    pub paused: bool,
}

/// A step that is being held, or a trial that is being measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    pub revision: RevisionNumber,
    pub step: u32,
    /// The new revision gets the requests of this step since then.
    pub since: Millis,
}

/// The course of the wanted revision, if it is on trial, its strategy goes by steps, and there is an older one to go from.
pub fn by_steps(service: &DesiredService) -> Option<Course> {
    let record = &service.record;
    let stable = record.stable.filter(|n| *n != record.wanted);
    let before = stable.and_then(|n| service.revisions.get(&n))?;
    // What autoscale has at zero is woken for a trial.
    let scales = before.spec.autoscale.is_some() && !turned_off(record, before);
    let wants = scales || wanted_replicas(record, before, None) > 0;
    let fit = !matches!(before.state, RevisionState::Refused(_)) && wants;
    let wanted = service
        .revisions
        .get(&record.wanted)
        .filter(|_| fit && on_trial(service))?;
    course(record, wanted)
}

fn course(record: &ServiceRecord, revision: &Revision) -> Option<Course> {
    let rollout = &revision.spec.rollout;
    let steps = rollout.steps();
    if steps.is_empty() {
        return None;
    }
    let count = words::count(steps.len());
    let at = record.rollout.filter(|r| r.revision == revision.number);
    let at = at.unwrap_or(crate::model::RolloutRecord::of(revision.number));
    let weight = |n: u32| {
        let step = usize::try_from(n).ok().and_then(|n| steps.get(n));
        step.map_or(Step::WHOLE, |s| rollout.weight(*s))
    };
    let step = at.step.min(count);
    let held = usize::try_from(step).ok().and_then(|n| steps.get(n));
    let hold = held.filter(|_| !at.promoted).map(|s| s.hold);
    Some(Course {
        strategy: rollout.strategy,
        step,
        steps: count,
        weight: if hold.is_some() { weight(step) } else { Step::WHOLE },
        before: if step == 0 { 0 } else { weight(step - 1) },
        hold,
        paused: at.paused && !at.promoted,
    })
}

/// Whether someone has paused the rollout of the wanted revision.
pub fn is_paused(record: &ServiceRecord) -> bool {
    record
        .rollout
        .is_some_and(|r| r.revision == record.wanted && r.paused && !r.promoted)
}

/// Whether the old ones must be gone before `base` starts: it says so, or it is gone back to from one that says so.
/// `there`: revisions of which something is left.
pub(crate) fn recreates(
    service: &DesiredService,
    base: &Revision,
    on_trial: bool,
    there: impl IntoIterator<Item = RevisionNumber>,
) -> bool {
    let says = |r: &Revision| r.spec.rollout.strategy == Strategy::Recreate;
    let left = |n: RevisionNumber| n != base.number && service.revisions.get(&n).is_some_and(|r| says(r));
    says(base) || !on_trial && there.into_iter().any(left)
}

impl Course {
    /// Nothing is held any more: all requests, then the proof.
    pub fn is_last(&self) -> bool {
        self.hold.is_none()
    }

    /// New replicas for this step, of `goal` in the end.
    pub fn replicas(&self, goal: u32) -> u32 {
        let share = (u64::from(goal) * u64::from(self.weight)).div_ceil(u64::from(Step::WHOLE));
        u32::try_from(share).unwrap_or(u32::MAX).clamp(1, goal.max(1))
    }

    /// Thousandths for the new revision now. `told`: what it has been given; it keeps that until those of this step are ready.
    pub(crate) fn in_force(&self, goal: u32, counted: u32, serving: u32, told: Option<u32>) -> u32 {
        if serving == 0 {
            0
        } else if counted >= self.replicas(goal) || told == Some(self.weight) {
            self.weight
        } else {
            told.unwrap_or(self.before).min(self.weight)
        }
    }

    /// How many replicas there should be. The stable revision stays whole until nothing is held and all new ones serve; what
    /// neither is new nor stable fills in only where stable ones are missing.
    pub(crate) fn share(&self, goal: u32, before: u32, have: Have) -> Share {
        if self.is_last() && have.counted >= goal {
            return Share {
                new: goal,
                stable: 0,
                retiring: 0,
            };
        }
        let mut retiring = have.retiring_serving.min(before.saturating_sub(have.stable_serving));
        if self.is_last() {
            // Nothing is held any more: what stands in for the stable one goes as the new ones prove themselves, or they had no room.
            retiring = retiring.saturating_sub(have.counted);
        }
        let room = beside(goal, before).saturating_sub(before).saturating_sub(retiring);
        Share {
            new: self.replicas(goal).min(room),
            stable: before,
            retiring,
        }
    }

    /// `canary step 1 of 3 (5 %)`, in the fewest words.
    pub fn at(&self) -> String {
        let mut text = match (self.strategy, self.hold) {
            (Strategy::BlueGreen, Some(_)) => "blue-green".to_owned(),
            (_, Some(_)) => format!(
                "canary step {} of {} ({})",
                self.step + 1,
                self.steps,
                words::share(self.weight)
            ),
            (_, None) => "all steps passed".to_owned(),
        };
        if self.paused {
            text.push_str(", paused");
        }
        text
    }

    /// Where it is, in one line without times that pass.
    pub fn words(&self, revision: RevisionNumber, in_force: u32, told: (u32, u32)) -> String {
        let mut text = match (self.strategy, self.hold) {
            (Strategy::BlueGreen, Some(hold)) if in_force == self.weight => {
                format!(
                    "blue-green: switched to revision {revision}, the old stays warm for {}",
                    words::duration(hold)
                )
            }
            (Strategy::BlueGreen, Some(_)) => {
                format!(
                    "blue-green: {} of {} ready for the switch",
                    told.0,
                    words::many(told.1, "replica")
                )
            }
            (_, Some(hold)) if in_force == self.weight => format!(
                "canary step {} of {}: {} of the requests to revision {revision} for {}",
                self.step + 1,
                self.steps,
                words::share(self.weight),
                words::duration(hold)
            ),
            (_, Some(_)) => format!(
                "canary step {} of {}: {} of {} ready for {}",
                self.step + 1,
                self.steps,
                told.0,
                words::many(told.1, "replica"),
                words::share(self.weight)
            ),
            (_, None) => format!(
                "all steps passed: {} of {} of revision {revision} healthy",
                told.0,
                words::many(told.1, "replica")
            ),
        };
        if self.paused {
            text.push_str("; paused");
        }
        text
    }
}

/// Replicas that a rollout by steps may have at once: the stable ones and, beside them, the new ones or what still serves in
/// place of stable ones, and one more, so that the new revision is never kept out.
pub(crate) fn beside(goal: u32, before: u32) -> u32 {
    before.saturating_add(goal.max(before)).saturating_add(1)
}

/// Shares of the requests: `weight` thousandths for `new`, the rest for `stable`. Empty while not both serve: then whoever
/// serves is asked, whatever its revision.
pub(crate) fn split(
    new: (RevisionNumber, u32),
    stable: (RevisionNumber, u32),
    weight: u32,
) -> BTreeMap<RevisionNumber, u32> {
    if stable.1 == 0 {
        return BTreeMap::new();
    }
    let weight = if new.1 == 0 { 0 } else { weight };
    [(new.0, weight), (stable.0, Step::WHOLE.saturating_sub(weight))]
        .into_iter()
        .filter(|(_, share)| *share > 0)
        .collect()
}

/// The share that `assigned` gives to `revision`; none where nothing was told.
pub(crate) fn told(assigned: Option<&Assigned>, revision: RevisionNumber) -> Option<u32> {
    let split = &assigned?.split;
    (!split.is_empty()).then(|| split.get(&revision).copied().unwrap_or(0))
}

/// The stage of the wanted revision, which is on trial: remembered since when its present step is in force.
pub(crate) fn stage(
    service: &DesiredService,
    assigned: Option<&Assigned>,
    serving: u32,
    last: Option<&Stage>,
    now: Millis,
) -> Option<Stage> {
    let record = &service.record;
    let revision = service.revisions.get(&record.wanted)?;
    let step = match by_steps(service) {
        Some(course) => {
            // Where the stable one serves nothing, the new one has all requests already.
            let alone = assigned.is_some_and(|a| a.split.is_empty()) && serving > 0;
            let holds = alone || told(assigned, record.wanted) == Some(course.weight);
            (holds && !course.is_last()).then_some(course.step)
        }
        None => (revision.spec.rollout.gates.is_some() && serving > 0).then_some(0),
    }?;
    let since = last
        .filter(|s| s.revision == record.wanted && s.step == step)
        .map_or(now, |s| s.since);
    Some(Stage {
        revision: record.wanted,
        step,
        since,
    })
}

/// Requests that a stage had when it was looked at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    pub requests: u64,
    /// Since when it is this number.
    pub since: Millis,
}

impl Looked {
    /// The number that `measures` shows is new now, or it is the last one still.
    pub(crate) fn at(measures: &Measures, last: Option<Self>, now: Millis) -> Self {
        let requests = measures.requests();
        last.filter(|l| l.requests == requests)
            .unwrap_or(Self { requests, since: now })
    }
}

/// What a stage asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A gate failed: the figures.
    Failed(String),
    /// It was held to its end.
    Over,
    /// Look again then.
    Open { until: Option<Millis> },
}

/// Judges a stage of `revision`: its gates first, then its time.
pub(crate) fn held(
    service: &DesiredService,
    revision: &Revision,
    stage: &Stage,
    (measures, looked): (Option<&Measures>, Option<&Looked>),
    now: Millis,
) -> Held {
    let record = &service.record;
    let course = by_steps(service);
    let promoted = record
        .rollout
        .is_some_and(|r| r.revision == revision.number && r.promoted);
    let gates = revision.spec.rollout.gates.as_ref().filter(|_| !promoted);
    let measured = measures.filter(|m| m.stage == *stage);
    if let (Some(gates), Some(m)) = (gates, measured)
        && let Some(failed) = gates::judge(gates, &m.new, record.stable.map(|n| (n, &m.stable)))
    {
        return Held::Failed(failed);
    }
    let quiet = measured
        .zip(looked)
        .is_some_and(|(m, l)| m.requests() == l.requests && now >= l.since.plus(LOOK));
    let look = gates.map(|_| now.plus(if quiet { QUIET_LOOK } else { LOOK }));
    let hold = course.filter(|c| !c.paused).and_then(|c| c.hold);
    let Some(hold) = hold else {
        return Held::Open { until: look };
    };
    let end = stage.since.plus(hold);
    // The last figures of a hold are waited for: a hold shorter than a look would pass unseen.
    let unseen = gates.is_some() && measured.is_none();
    if now >= end && !unseen {
        return Held::Over;
    }
    let until = [Some(end).filter(|end| *end > now), look].into_iter().flatten().min();
    Held::Open { until }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rollout::RolloutRecord;
    use crate::plan::world::{Guest, World, service_name};

    fn trial(strategy: Strategy, weights: &[u32], at: RolloutRecord) -> Option<Course> {
        let mut world = World::with_serving("hello", Guest::default(), 4);
        world.deploy("hello", Guest::default(), |spec| {
            spec.rollout.strategy = strategy;
            spec.rollout.steps = weights
                .iter()
                .map(|w| Step {
                    weight: *w,
                    hold: Duration::from_secs(9),
                })
                .collect();
        });
        let service = &world.desired.services[&service_name("hello")];
        let record = ServiceRecord {
            rollout: Some(at),
            ..service.record.clone()
        };
        course(&record, &service.revisions[&RevisionNumber(2)])
    }

    fn at(step: u32) -> RolloutRecord {
        RolloutRecord {
            step,
            ..RolloutRecord::of(RevisionNumber(2))
        }
    }

    #[test]
    fn a_canary_climbs_its_weights_and_then_takes_all() {
        let climbed: Vec<_> = (0..4)
            .map(|n| trial(Strategy::Canary, &[50, 250], at(n)).unwrap())
            .map(|c| (c.weight, c.before, c.hold.is_some(), c.replicas(4)))
            .collect();
        assert_eq!(
            climbed,
            [
                (50, 0, true, 1),
                (250, 50, true, 1),
                (1000, 250, false, 4),
                (1000, 250, false, 4)
            ]
        );
    }

    #[test]
    fn a_blue_green_rollout_is_one_step_of_everything() {
        let before = trial(Strategy::BlueGreen, &[], at(0)).unwrap();
        assert_eq!(
            (before.weight, before.before, before.replicas(4), before.is_last()),
            (1000, 0, 4, false)
        );
        assert!(trial(Strategy::BlueGreen, &[], at(1)).unwrap().is_last());
        assert_eq!(trial(Strategy::Rolling, &[], at(0)), None);
        assert_eq!(trial(Strategy::Recreate, &[], at(0)), None);
    }

    #[test]
    fn promoted_means_no_step_and_a_record_of_another_revision_means_nothing() {
        let promoted = RolloutRecord {
            promoted: true,
            paused: true,
            ..at(0)
        };
        let course = trial(Strategy::Canary, &[50], promoted).unwrap();
        assert!(course.is_last() && !course.paused && course.weight == 1000);
        let others = RolloutRecord::of(RevisionNumber(1));
        let other = RolloutRecord { step: 9, ..others };
        assert_eq!(trial(Strategy::Canary, &[50], other).unwrap().step, 0);
    }

    #[test]
    fn the_weight_waits_for_its_replicas_and_then_stays() {
        let course = trial(Strategy::Canary, &[50, 500], at(1)).unwrap();
        assert_eq!(course.in_force(4, 1, 1, Some(50)), 50, "two are needed for a half");
        assert_eq!(course.in_force(4, 1, 1, None), 50);
        assert_eq!(course.in_force(4, 2, 2, Some(50)), 500);
        assert_eq!(course.in_force(4, 0, 1, Some(500)), 500);
        assert_eq!(course.in_force(4, 0, 0, Some(500)), 0);
    }

    #[test]
    fn the_stable_one_stays_whole_until_all_new_ones_serve_after_the_last_step() {
        let have = |new, counted| Have {
            new,
            counted,
            stable_serving: 4,
            retiring_serving: 0,
        };
        let share = |n, have| {
            let s = trial(Strategy::Canary, &[50, 500], at(n)).unwrap().share(4, 4, have);
            (s.new, s.stable)
        };
        assert_eq!(share(0, have(0, 0)), (1, 4));
        assert_eq!(share(1, have(1, 1)), (2, 4));
        assert_eq!(share(2, have(2, 2)), (4, 4));
        assert_eq!(share(2, have(4, 4)), (4, 0));
    }

    #[test]
    fn shares_are_a_thousand_or_nothing() {
        let (new, old) = (RevisionNumber(2), RevisionNumber(1));
        for weight in [0, 1, 50, 999, 1000] {
            for (n, o) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let split = split((new, n), (old, o), weight);
                assert!(split.is_empty() == (o == 0), "{weight} {n} {o}");
                assert!(split.is_empty() || split.values().sum::<u32>() == 1000);
                assert!(n > 0 || !split.contains_key(&new));
            }
        }
    }
}
