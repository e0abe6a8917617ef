//! How a service is, in one word and one sentence: derived from what is wanted and what is there, kept nowhere.

use super::DesiredService;
use super::fleet::{on_trial, turned_off, wanted_replicas};
use super::heal;
use super::node::is_leaving;
use super::{rollout as by_steps, words};
use crate::model::service::RestartPolicy;
use crate::model::{Millis, Phase, Replica, Revision, RevisionNumber, RevisionState};

/// The word of `narae list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Healthy,
    Starting,
    Rolling,
    Degraded,
    CrashLoop,
    Failed,
    Stopped,
    /// No replicas or runs now, and schedules that go on.
    Scheduled,
    Deleting,
    /// A run of a command is open.
    Running,
    /// Its last run succeeded.
    Succeeded,
    /// Its last run was asked to end.
    Cancelled,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Starting => "starting",
            Self::Rolling => "rolling",
            Self::Degraded => "degraded",
            Self::CrashLoop => "crash-loop",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Scheduled => "scheduled",
            Self::Deleting => "deleting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A service's state and the numbers behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceState {
    pub state: State,
    /// Why, when it is not healthy: one sentence.
    pub reason: Option<String>,
    /// Replicas wanted now.
    pub wanted: u32,
    /// Replicas of any revision in the routes, at most `wanted`.
    pub serving: u32,
    /// Others that live: starting, surplus, draining.
    pub extra: u32,
}

/// How `service` is, given what autoscale wants of it and its `replicas` (others are ignored).
pub fn state<'a>(
    service: &DesiredService,
    autoscaled: Option<u32>,
    replicas: impl IntoIterator<Item = &'a Replica>,
    now: Millis,
) -> ServiceState {
    let record = &service.record;
    let mut replicas: Vec<&Replica> = replicas.into_iter().filter(|r| r.service == record.name).collect();
    replicas.sort_by_key(|r| r.id);
    let serving = words::count(replicas.iter().filter(|r| is_serving(r)).count());
    let living = words::count(
        replicas
            .iter()
            .filter(|r| !matches!(r.phase, Phase::Dead { .. }))
            .count(),
    );
    let base = going_to(service);
    let wanted = base.map_or(0, |r| wanted_replicas(record, r, autoscaled));
    let wanted = if record.stopped || record.deleting { 0 } else { wanted };
    let counted = serving.min(wanted);
    let (state, reason) = word(service, base, &replicas, wanted, now);
    ServiceState {
        state,
        reason,
        wanted,
        serving: counted,
        extra: living - counted,
    }
}

/// The revision that should serve: the wanted one, or the stable one when that was refused.
pub(super) fn going_to(service: &DesiredService) -> Option<&Revision> {
    let usable = |n: RevisionNumber| {
        service
            .revisions
            .get(&n)
            .map(|r| &**r)
            .filter(|r| !matches!(r.state, RevisionState::Refused(_)))
    };
    usable(service.record.wanted).or_else(|| service.record.stable.and_then(usable))
}

fn word(
    service: &DesiredService,
    base: Option<&Revision>,
    replicas: &[&Replica],
    wanted: u32,
    now: Millis,
) -> (State, Option<String>) {
    let record = &service.record;
    let left = words::many(words::count(replicas.len()), "replica");
    if record.deleting {
        return (State::Deleting, Some(format!("{left} left to drain")));
    }
    if record.stopped {
        let reason = if replicas.is_empty() {
            "stopped by request".into()
        } else {
            format!("{left} left to drain")
        };
        return (State::Stopped, Some(reason));
    }
    let refused = refusal(service, record.wanted);
    let Some(base) = base else {
        let reason = refused.unwrap_or_else(|| format!("revision {} is not in the store", record.wanted));
        return (State::Failed, Some(reason));
    };
    if wanted == 0 && replicas.is_empty() && !base.spec.schedules.is_empty() {
        return (
            State::Scheduled,
            Some("no replicas until a schedule or `scale` wants some".into()),
        );
    }
    if wanted == 0 {
        return match (&base.spec.autoscale, turned_off(record, base)) {
            (Some(_), false) => (
                State::Healthy,
                Some("scaled to zero: the next request starts a replica".into()),
            ),
            _ => (State::Stopped, Some("scaled to no replicas".into())),
        };
    }
    let mine: Vec<&Replica> = replicas
        .iter()
        .copied()
        .filter(|r| r.revision == base.number && !is_leaving(r))
        .collect();
    let serving = words::count(mine.iter().filter(|r| is_serving(r)).count());
    let others = replicas.iter().any(|r| r.revision != base.number && !is_leaving(r));
    let so_far = format!(
        "{serving} of {} of revision {} serving",
        words::many(wanted, "replica"),
        base.number
    );
    if on_trial(service) && base.number == record.wanted {
        let state = if record.stable.is_some() || others {
            State::Rolling
        } else {
            State::Starting
        };
        let trouble = mine
            .iter()
            .find_map(|r| trouble(r))
            .map_or_else(String::new, |why| format!("; {why}"));
        let course = by_steps::by_steps(service).filter(|_| state == State::Rolling);
        let step = course.map_or_else(String::new, |course| format!("{}; ", course.at()));
        return (state, Some(step + &so_far + &trouble));
    }
    if let Some(looping) = mine.iter().find(|r| crash_loops(base, r, now)) {
        let every = words::duration(base.spec.restart.max);
        let why =
            trouble(looping).unwrap_or_else(|| format!("{} serves again, for less than a minute so far", looping.id));
        let times = words::many(looping.restarts_total, "restart");
        return (
            State::CrashLoop,
            Some(format!("{why} ({times}, now tried every {every})")),
        );
    }
    if let Some(refused) = refused {
        return (
            State::Degraded,
            Some(format!("{refused}; revision {} keeps serving", base.number)),
        );
    }
    if others {
        return (State::Rolling, Some(so_far));
    }
    if serving >= wanted {
        let old = mine.iter().filter(|r| r.generation < record.generation).count();
        return if old == 0 {
            (State::Healthy, None)
        } else {
            (
                State::Rolling,
                Some(format!(
                    "restart: {} left to replace",
                    words::many(words::count(old), "replica")
                )),
            )
        };
    }
    let never = base.spec.restart.policy == RestartPolicy::Never;
    let dead = mine.iter().all(|r| matches!(r.phase, Phase::Dead { .. }));
    match mine.iter().find_map(|r| trouble(r)) {
        Some(why) if serving == 0 && dead && never => (State::Failed, Some(why)),
        Some(why) => (State::Degraded, Some(format!("{so_far}; {why}"))),
        None => (State::Starting, Some(so_far)),
    }
}

/// Why a replica does not serve, if that is a fault.
pub fn trouble(replica: &Replica) -> Option<String> {
    match (&replica.phase, &replica.last_death) {
        (Phase::Dead { death, .. }, _) => Some(format!("{} died: {}", replica.id, words::death(death))),
        (Phase::Started { .. } | Phase::Idle { .. }, _) if replica.probe_failures > 0 => {
            let said = replica.probe_error.as_deref().unwrap_or("no answer");
            Some(format!("{} is not ready: {said}", replica.id))
        }
        (Phase::Starting { .. } | Phase::Started { .. }, Some((_, death))) => {
            Some(format!("{} starts again; it died: {}", replica.id, words::death(death)))
        }
        _ => None,
    }
}

fn crash_loops(revision: &Revision, replica: &Replica, now: Millis) -> bool {
    heal::crash_looping(&revision.spec.restart, replica) && !super::facts::healthy(replica, now)
}

fn refusal(service: &DesiredService, number: RevisionNumber) -> Option<String> {
    why_refused(service, number).map(|why| format!("revision {number} was refused: {why}"))
}

fn why_refused(service: &DesiredService, number: RevisionNumber) -> Option<&str> {
    match &service.revisions.get(&number)?.state {
        RevisionState::Refused(r) => Some(&r.detail),
        _ => None,
    }
}

/// The last change of revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutState {
    /// What served before; none for a first revision.
    pub from: Option<RevisionNumber>,
    pub to: RevisionNumber,
    /// `running`, `done` or `refused`.
    pub state: &'static str,
    pub reason: Option<String>,
    pub old_serving: u32,
    pub new_serving: u32,
    /// Replicas of `to` in the end.
    pub wanted: u32,
}

/// How far the last change of revision is. Sees as much of the past as `service.revisions` holds.
pub fn rollout<'a>(
    service: &DesiredService,
    autoscaled: Option<u32>,
    replicas: impl IntoIterator<Item = &'a Replica>,
) -> RolloutState {
    let record = &service.record;
    // After a rollback the newest revision is the refused one, and wanted is what it went back to.
    let newest = service
        .revisions
        .range(record.wanted..)
        .next_back()
        .map(|(n, r)| (*n, r));
    let undone = newest.filter(|(n, r)| *n > record.wanted && matches!(r.state, RevisionState::Refused(_)));
    let to = undone.map_or(record.wanted, |(n, _)| n);
    let from = if undone.is_some() {
        Some(record.wanted)
    } else if record.stable == Some(to) {
        let proved = |r: &Revision| matches!(r.state, RevisionState::Proved { .. });
        service
            .revisions
            .range(..to)
            .rev()
            .find(|(_, r)| proved(r))
            .map(|(n, _)| *n)
    } else {
        record.stable
    };
    let (mut old_serving, mut new_serving, mut others) = (0, 0, false);
    for replica in replicas.into_iter().filter(|r| r.service == record.name) {
        let serving = u32::from(is_serving(replica));
        if replica.revision == to {
            new_serving += serving;
        } else {
            old_serving += serving;
            others |= !is_leaving(replica);
        }
    }
    let reason = why_refused(service, to).map(str::to_owned);
    let wanted = service
        .revisions
        .get(&to)
        .map_or(0, |r| wanted_replicas(record, r, autoscaled));
    // No replicas are wanted: nothing is left to come, though it has proved nothing yet.
    let idle = (wanted == 0 && !service.is_job()) || record.stopped;
    let state = match &reason {
        Some(_) => "refused",
        None if (on_trial(service) && !idle) || others => "running",
        None => "done",
    };
    RolloutState {
        from,
        to,
        state,
        reason,
        old_serving,
        new_serving,
        wanted,
    }
}

fn is_serving(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Serving { .. })
}
