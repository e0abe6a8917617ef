//! The trial of a revision that has not proved itself: what counts as evidence against it. Knows neither what is done
//! about it nor how many replicas there should be.

use super::words;
use super::{Group, Progress};
use crate::model::service::RestartPolicy;
use crate::model::{Death, Millis, Phase, Replica, Revision, Why};

/// So many starts in a row that trap refuse the revision.
pub(crate) const START_FAILURES: u32 = 3;

/// What this replica says against its revision. Deaths before `since` (when the trial began) are not heard.
pub(crate) fn evidence(revision: &Revision, replica: &Replica, since: Millis) -> Option<(Why, String)> {
    let (at, death) = match (&replica.phase, &replica.last_death) {
        (Phase::Dead { at, death }, _) if *death != Death::Stopped => (*at, death),
        (_, Some((at, death))) => (*at, death),
        _ => return None,
    };
    if at < since {
        return None;
    }
    let id = replica.id;
    match death {
        Death::StartTrapped { reason } => (replica.start_failures >= START_FAILURES).then(|| {
            (
                Why::StartTrapped,
                format!(
                    "the start of {id} trapped {} times in a row: {reason}",
                    replica.start_failures
                ),
            )
        }),
        Death::CannotPrepare { reason } => Some((Why::CannotPrepare, format!("it cannot be prepared: {reason}"))),
        Death::StartupProbe { last } => Some((
            Why::NeverReady,
            format!(
                "the startup probe of {id} failed {} times in a row: {last}",
                revision.spec.startup.failures
            ),
        )),
        Death::Exited { code: 0 } if revision.spec.restart.policy != RestartPolicy::Always => None,
        Death::Traps { .. } | Death::Liveness { .. } | Death::Exited { .. } => Some((
            Why::Died,
            format!("{id} died before the revision was proved: {}", words::death(death)),
        )),
        Death::NoMemory | Death::Stopped => None,
    }
}

/// Whether the revision is refused now, and else when time alone would refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Refused(Why, String),
    Open { until: Option<Millis> },
}

/// The verdict on `revision` from its replicas (`of_it`), its progress, and the group the node was `told`. `patient`: with all of
/// those serving, it is not the revision that is waited for (a step is held, someone paused).
pub(crate) fn verdict<'a>(
    revision: &Revision,
    of_it: impl Iterator<Item = &'a Replica> + Clone,
    progress: Option<&Progress>,
    told: Option<&Group>,
    patient: bool,
    now: Millis,
) -> Verdict {
    let progress = progress.filter(|p| p.revision == revision.number);
    let since = progress.map_or(Millis(0), |p| p.since);
    if let Some((why, detail)) = of_it.clone().find_map(|r| evidence(revision, r, since)) {
        return Verdict::Refused(why, detail);
    }
    let Some(progress) = progress else {
        return Verdict::Open { until: None };
    };
    let serving = words::count(
        of_it
            .clone()
            .filter(|r| matches!(r.phase, Phase::Serving { .. }))
            .count(),
    );
    let told = told.map_or(0, |g| g.replicas);
    let rollout = &revision.spec.rollout;
    // All that it was told to run serves: only time is missing, and `min_healthy` may be longer than the deadline.
    let patience = if told > 0 && serving >= told {
        rollout.min_healthy
    } else {
        std::time::Duration::ZERO
    };
    if patient && told > 0 && serving >= told {
        return Verdict::Open { until: None };
    }
    let until = progress.moved.plus(rollout.progress_deadline).plus(patience);
    if now < until {
        return Verdict::Open { until: Some(until) };
    }
    let mut detail = format!(
        "no further replica became healthy within {}: {serving} of {told} serve",
        words::duration(rollout.progress_deadline)
    );
    let last = of_it
        .filter_map(|r| r.last_death.as_ref().map(|(at, death)| (*at, r.id, death)))
        .max_by_key(|l| (l.0, l.1));
    if let Some((_, id, death)) = last {
        detail.push_str(&format!("; {id} died last: {}", words::death(death)));
    }
    Verdict::Refused(Why::NoProgress, detail)
}
