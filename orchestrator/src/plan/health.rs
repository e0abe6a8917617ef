//! Probes: when one is due and what its failures mean. Sends none; which request a probe makes is the shell's business.

use std::time::Duration;

use super::Group;
use crate::model::{Death, Millis, Probing, Replica};

/// What is due for a replica that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing before then (or before something happens).
    Quiet(Option<Millis>),
    Probe(Probing),
    /// The startup probe passed.
    Passed,
    /// The routes may have it.
    Admit,
    /// The routes must not have it.
    Withdraw,
    Kill(Death),
}

/// A started replica: probe until one passes or `failures` in a row have failed.
pub(crate) fn startup(group: &Group, replica: &Replica, now: Millis) -> Health {
    let probe = &group.revision.spec.startup;
    if replica.probing.is_some() {
        Health::Quiet(None)
    } else if replica.probed_at.is_some() && replica.probe_failures == 0 {
        Health::Passed
    } else if replica.probe_failures >= probe.failures.max(1) {
        Health::Kill(Death::StartupProbe {
            last: replica.probe_error.clone().unwrap_or_else(|| "no answer".into()),
        })
    } else {
        due(replica, probe.interval, Probing::Startup, now)
    }
}

/// A replica that has passed its startup probe, in the routes (`serving`) or not. `failures` misses in a row take it out,
/// one success puts it in; without a readiness probe it belongs in. One that traps every call is dead.
pub(crate) fn routed(group: &Group, replica: &Replica, serving: bool, now: Millis) -> Health {
    let spec = &group.revision.spec;
    if replica.consecutive_traps >= spec.traffic.consecutive_failures.max(1) {
        return Health::Kill(Death::Traps {
            reason: format!("{} calls in a row trapped", replica.consecutive_traps),
        });
    }
    let Some(probe) = &spec.readiness else {
        return if serving { Health::Quiet(None) } else { Health::Admit };
    };
    let passed = replica.probed_at.is_some() && replica.probe_failures == 0;
    if serving && replica.probe_failures >= probe.failures.max(1) {
        Health::Withdraw
    } else if !serving && passed {
        Health::Admit
    } else if replica.probing.is_some() {
        Health::Quiet(None)
    } else {
        due(replica, probe.interval, Probing::Readiness, now)
    }
}

/// Taken for dead though it is in the routes: whatever else a plan does with it, it is not lost by that.
pub(crate) fn doomed(group: &Group, replica: &Replica, now: Millis) -> bool {
    [routed(group, replica, true, now), liveness(group, replica, now)]
        .iter()
        .any(|health| matches!(health, Health::Kill(_)))
}

/// Whether a replica that has passed its startup probe still lives, by its liveness probe.
pub(crate) fn liveness(group: &Group, replica: &Replica, now: Millis) -> Health {
    let (Some(probe), live) = (&group.revision.spec.liveness, &replica.live) else {
        return Health::Quiet(None);
    };
    if live.failures >= probe.failures.max(1) {
        let last = live.error.clone().unwrap_or_else(|| "no answer".into());
        return Health::Kill(Death::Liveness { last });
    }
    match live.sent.map(|at| at.plus(probe.interval)) {
        _ if live.asking => Health::Quiet(None),
        Some(at) if now < at => Health::Quiet(Some(at)),
        _ => Health::Probe(Probing::Liveness),
    }
}

/// It is about to leave the routes for a reason of its own.
pub(crate) fn leaves(group: &Group, replica: &Replica, now: Millis) -> bool {
    match liveness(group, replica, now) {
        Health::Kill(_) => true,
        // It is asked first; the rest comes with the next plan.
        Health::Probe(_) => false,
        _ => matches!(routed(group, replica, true, now), Health::Kill(_) | Health::Withdraw),
    }
}

fn due(replica: &Replica, interval: Duration, probe: Probing, now: Millis) -> Health {
    match replica.probe_sent.map(|at| at.plus(interval)) {
        Some(at) if now < at => Health::Quiet(Some(at)),
        _ => Health::Probe(probe),
    }
}
