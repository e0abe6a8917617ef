//! Rollouts by steps in a world: what people ask for while one is under way, and the figures that its guests would show.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{World, ms, service_name};
use crate::model::record::Refusal;
use crate::model::rollout::RolloutRecord;
use crate::model::time::millis;
use crate::model::{Phase, Replica, RevisionNumber, RevisionState, ServiceName, Why};
use crate::plan::gates::{Measure, Measures};
use crate::plan::{fleet, words};

/// What requests to a guest would show, of a hundred requests a second in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Thousandths that fail.
    pub errors: u32,
    /// Thousandths that trap.
    pub traps: u32,
    pub p99: Duration,
    pub cpu: Duration,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            errors: 0,
            traps: 0,
            p99: ms(10),
            cpu: Duration::from_micros(100),
        }
    }
}

const REQUESTS_PER_SECOND: u64 = 100;

impl Figures {
    /// Over `time` with so many thousandths of the requests.
    fn over(self, time: Duration, share: u32) -> Measure {
        let requests = millis(time).saturating_mul(REQUESTS_PER_SECOND) / 1_000 * u64::from(share) / 1_000;
        let part = |permille: u32| requests.saturating_mul(u64::from(permille)) / 1_000;
        Measure {
            requests,
            errors: part(self.errors.max(self.traps)),
            traps: part(self.traps),
            p99: (requests > 0).then_some(self.p99),
            cpu: (requests > 0).then_some(self.cpu),
        }
    }
}

/// `; 5 % to revision 2, 95 % to revision 1`.
pub(super) fn split_words(split: &BTreeMap<RevisionNumber, u32>) -> String {
    let shares: Vec<String> = split
        .iter()
        .map(|(number, share)| format!("{} to revision {number}", words::share(*share)))
        .collect();
    if shares.is_empty() {
        String::new()
    } else {
        format!("; {}", shares.join(", "))
    }
}

impl World {
    /// No further step is taken.
    pub fn pause(&mut self, name: &str) -> &mut Self {
        self.rollout(name, |r| r.paused = true)
    }

    pub fn resume(&mut self, name: &str) -> &mut Self {
        self.rollout(name, |r| r.paused = false)
    }

    /// Steps and gates are passed over.
    pub fn promote(&mut self, name: &str) -> &mut Self {
        self.rollout(name, |r| (r.promoted, r.paused) = (true, false))
    }

    /// Back to the stable revision at once.
    pub fn abort(&mut self, name: &str) -> &mut Self {
        let at = self.wall();
        let Some(service) = self.desired.services.get_mut(&service_name(name)) else {
            return self;
        };
        if let (true, Some(stable)) = (fleet::on_trial(service), service.record.stable) {
            let detail = "aborted by request".into();
            if let Some(revision) = service.revisions.get_mut(&service.record.wanted) {
                Arc::make_mut(revision).state = RevisionState::Refused(Refusal {
                    why: Why::Asked,
                    detail,
                    at,
                });
            }
            service.record.wanted = stable;
        }
        self.settle()
    }

    fn rollout(&mut self, name: &str, edit: impl FnOnce(&mut RolloutRecord)) -> &mut Self {
        let under_way = self
            .desired
            .services
            .get(&service_name(name))
            .is_some_and(fleet::on_trial);
        if !under_way {
            return self.settle();
        }
        self.record(name, |record| {
            let at = record.rollout.filter(|r| r.revision == record.wanted);
            let mut at = at.unwrap_or(RolloutRecord::of(record.wanted));
            edit(&mut at);
            record.rollout = Some(at);
        })
    }

    pub(super) fn act_step(&mut self, service: &ServiceName, revision: RevisionNumber, step: u32) {
        self.say(|| format!("step {step} of {service}/{revision} is over"));
        if let Some(s) = self.desired.services.get_mut(service) {
            let at = s.record.rollout.filter(|r| r.revision == revision);
            s.record.rollout = Some(RolloutRecord {
                step,
                ..at.unwrap_or(RolloutRecord::of(revision))
            });
        }
    }

    /// The figures of each stage, as the shell would have counted them.
    pub(super) fn measure(&mut self) {
        let figures = |name: &ServiceName, revision: RevisionNumber| {
            let guest = self.guests.get(&(name.clone(), revision));
            guest.map_or_else(Figures::default, |g| Figures {
                errors: if g.fails { 1_000 } else { g.figures.errors },
                ..g.figures
            })
        };
        let mut measures = BTreeMap::new();
        for (name, stage) in &self.view.stages {
            let split = self.view.assigned.services.get(name).map(|a| &a.split);
            let stable = self.desired.services.get(name).and_then(|s| s.record.stable);
            // Ejected ones get no request.
            let is_out = |revision: RevisionNumber| {
                let serves = |r: &&Replica| matches!(r.phase, Phase::Serving { .. });
                let of_it = |r: &&Replica| r.service == *name && r.revision == revision;
                let mut serving = self.view.replicas.iter().filter(of_it).filter(serves).peekable();
                serving.peek().is_some() && serving.all(|r| r.ejected_until.is_some())
            };
            let share = |revision: RevisionNumber| match split {
                _ if is_out(revision) => 0,
                Some(split) if !split.is_empty() => split.get(&revision).copied().unwrap_or(0),
                _ => 500,
            };
            let time = self.quiet_from.unwrap_or(self.now).since(stage.since);
            let of = |revision| figures(name, revision).over(time, share(revision));
            measures.insert(
                name.clone(),
                Measures {
                    stage: *stage,
                    new: of(stage.revision),
                    stable: stable.map(of).unwrap_or_default(),
                },
            );
        }
        self.view.measures = measures;
    }
}
