//! Laws of rollouts by steps: who gets which share of the requests, when a step may be taken, and that a failed gate is
//! acted upon at once.

use std::collections::BTreeMap;

use super::{Found, Law};
use crate::model::service::Step;
use crate::model::{Millis, Phase, Replica, RevisionNumber, ServiceName};
use crate::plan::fleet::on_trial;
use crate::plan::rollout;
use crate::plan::{Assigned, DesiredService, FleetView, gates};

impl Found {
    /// Shares are a thousand in all or none; only revisions that serve get one while others do; the new revision never gets more
    /// than its step allows as long as the stable one serves.
    pub(super) fn split(
        &mut self,
        name: &ServiceName,
        service: &DesiredService,
        assigned: &Assigned,
        replicas: &[&Replica],
        refused: bool,
    ) {
        let mut serving: BTreeMap<RevisionNumber, u32> = BTreeMap::new();
        for replica in replicas.iter().filter(|r| matches!(r.phase, Phase::Serving { .. })) {
            *serving.entry(replica.revision).or_default() += 1;
        }
        let split = &assigned.split;
        let sum: u64 = split.values().map(|n| u64::from(*n)).sum();
        self.unless(
            split.is_empty() || sum == u64::from(Step::WHOLE),
            Law::Split,
            name,
            || format!("the shares are {sum} thousandths in all"),
        );
        for (number, share) in split.iter().filter(|(_, share)| **share > 0) {
            let idle = !serving.contains_key(number) && !serving.is_empty();
            self.unless(!idle, Law::Split, name, || {
                format!("revision {number} gets {share} thousandths and serves nothing, others serve")
            });
        }
        let Some(course) = rollout::by_steps(service).filter(|_| !refused) else {
            return;
        };
        let (wanted, stable) = (service.record.wanted, service.record.stable);
        let runs =
            |n: RevisionNumber| serving.contains_key(&n) && assigned.groups.get(&n).is_some_and(|g| g.replicas > 0);
        if !runs(wanted) || !stable.is_some_and(runs) {
            return;
        }
        let share = split.get(&wanted).copied().unwrap_or(0);
        self.unless(!split.is_empty() && share <= course.weight, Law::Split, name, || {
            format!(
                "revision {wanted} gets {share} thousandths of {}, {} allowed",
                sum, course.weight
            )
        });
    }

    /// A step is taken when the one before was held to its end, by nobody's leave but time's, and with open gates.
    pub(super) fn step(
        &mut self,
        name: &ServiceName,
        service: Option<&DesiredService>,
        (revision, step): (RevisionNumber, u32),
        view: &FleetView,
        now: Millis,
    ) {
        let service = service.filter(|s| s.record.wanted == revision && on_trial(s));
        let Some((service, course)) = service.and_then(|s| Some((s, rollout::by_steps(s)?))) else {
            return self.unless(false, Law::Step, name, || {
                format!("revision {revision} takes a step, but is not on trial by steps")
            });
        };
        let stage = view.stages.get(name);
        let held = stage.is_some_and(|s| {
            s.revision == revision && s.step == course.step && course.hold.is_some_and(|hold| now >= s.since.plus(hold))
        });
        self.unless(
            held && step == course.step + 1 && !course.paused && !gate_fails(service, view, name),
            Law::Step,
            name,
            || format!("step {step} is taken, the one before was not held to its end"),
        );
    }

    /// What goes by steps is proved after the last one, and not while someone has paused it.
    pub(super) fn proof_by_steps(&mut self, name: &ServiceName, service: &DesiredService) {
        let last = rollout::by_steps(service).is_none_or(|c| c.is_last());
        self.unless(last && !rollout::is_paused(&service.record), Law::Step, name, || {
            "proved, with steps still to take".into()
        });
    }

    /// Figures that fail a gate refuse the revision in the same plan.
    pub(super) fn gate(&mut self, name: &ServiceName, service: &DesiredService, view: &FleetView, refused: bool) {
        let stands = on_trial(service) && !refused && !service.record.rollout.is_some_and(|r| r.promoted);
        self.unless(!(stands && gate_fails(service, view, name)), Law::Gate, name, || {
            "a gate fails and the revision stays".into()
        });
    }
}

fn gate_fails(service: &DesiredService, view: &FleetView, name: &ServiceName) -> bool {
    let record = &service.record;
    let gates = service
        .revisions
        .get(&record.wanted)
        .filter(|r| crate::plan::fleet::wanted_replicas(record, r, view.autoscaled(name)) > 0)
        .and_then(|r| r.spec.rollout.gates);
    let (Some(gates), Some(m)) = (gates, view.measures.get(name)) else {
        return false;
    };
    view.stages.get(name) == Some(&m.stage)
        && gates::judge(&gates, &m.new, record.stable.map(|n| (n, &m.stable))).is_some()
}
