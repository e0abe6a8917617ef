//! What an observation does to a replica's record. The shell calls one of these for each thing that it did or saw, so
//! that "restarts", "deaths" and "ready" mean the same everywhere. Decides nothing.

use crate::model::service::{ReadinessProbe, Restart};
use crate::model::{Death, Live, Millis, Phase, Probing, Replica, ReplicaId, RevisionNumber, ServiceName};

/// A new replica, marked before its start task runs.
pub fn created(id: ReplicaId, service: ServiceName, revision: RevisionNumber, generation: u64, now: Millis) -> Replica {
    Replica {
        id,
        service,
        revision,
        generation,
        phase: Phase::Starting { since: now },
        restarts: 0,
        restarts_total: 0,
        deaths: Vec::new(),
        last_death: None,
        start_failures: 0,
        probe_failures: 0,
        probe_error: None,
        crash_loop: false,
        probed_at: None,
        probe_sent: None,
        probing: None,
        ready: false,
        in_flight: 0,
        consecutive_traps: 0,
        consecutive_failures: 0,
        ejected_until: None,
        ejections: 0,
        live: Live::default(),
    }
}

/// A dead one is started again; marked before its start task runs.
pub fn restarting(replica: &mut Replica, now: Millis) {
    replica.phase = Phase::Starting { since: now };
    replica.restarts_total += 1;
    forget_probes(replica);
    replica.consecutive_traps = 0;
    replica.ejections = 0;
    back(replica);
}

/// Its start task succeeded. Ignored when it is no longer starting (stopped meanwhile).
pub fn started(replica: &mut Replica, now: Millis) {
    if matches!(replica.phase, Phase::Starting { .. }) {
        replica.phase = Phase::Started { since: now };
        replica.start_failures = 0;
        replica.consecutive_traps = 0;
        forget_probes(replica);
    }
}

/// A probe was sent.
pub fn probing(replica: &mut Replica, probe: Probing, now: Millis) {
    if probe == Probing::Liveness {
        replica.live.asking = true;
        replica.live.sent = Some(now);
        return;
    }
    replica.probing = Some(probe);
    replica.probe_sent = Some(now);
}

/// A probe ended. Ignored when none is under way (a late answer).
pub fn probed(replica: &mut Replica, outcome: Result<(), String>, readiness: Option<&ReadinessProbe>, now: Millis) {
    let Some(probe) = replica.probing.take() else { return };
    replica.probed_at = Some(now);
    match outcome {
        Ok(()) => {
            replica.probe_failures = 0;
            replica.probe_error = None;
        }
        Err(said) => {
            replica.probe_failures = replica.probe_failures.saturating_add(1);
            replica.probe_error = Some(said);
        }
    }
    if probe == Probing::Readiness {
        let allowed = readiness.map_or(1, |p| p.failures.max(1));
        replica.ready = replica.probe_failures == 0 || (replica.ready && replica.probe_failures < allowed);
    }
}

/// A liveness probe ended. `None`: it could not be asked (no room just then), which says nothing.
pub fn lived(replica: &mut Replica, outcome: Option<Result<(), String>>) {
    if !std::mem::take(&mut replica.live.asking) {
        return;
    }
    match outcome {
        None => {}
        Some(Ok(())) => (replica.live.failures, replica.live.error) = (0, None),
        Some(Err(said)) => {
            replica.live.failures = replica.live.failures.saturating_add(1);
            replica.live.error = Some(said);
        }
    }
}

/// Out of the routes for its failures, while it goes on serving what it has.
pub fn ejected(replica: &mut Replica, until: Millis, now: Millis) {
    if healthy(replica, now) {
        replica.ejections = 0;
    }
    replica.ejections = replica.ejections.saturating_add(1);
    replica.ejected_until = Some(until);
    replica.consecutive_failures = 0;
}

/// In the routes again. It serves from now on, so that a minute without failures forgives its past.
pub fn returned(replica: &mut Replica, now: Millis) {
    back(replica);
    if matches!(replica.phase, Phase::Serving { .. }) {
        replica.phase = Phase::Serving { since: now };
    }
}

fn back(replica: &mut Replica) {
    replica.ejected_until = None;
    replica.consecutive_failures = 0;
}

/// Its startup probe passed (`NodeAction::Ready`). With a readiness probe it is ready only once that has passed.
pub fn ready(replica: &mut Replica, readiness: Option<&ReadinessProbe>, now: Millis) {
    replica.phase = Phase::Idle { since: now };
    forget_probes(replica);
    replica.ready = readiness.is_none();
    replica.live.sent = Some(now);
}

/// It is in the routes.
pub fn admitted(replica: &mut Replica, now: Millis) {
    replica.phase = Phase::Serving { since: now };
}

/// It is out of the routes, but lives on.
pub fn withdrawn(replica: &mut Replica, now: Millis) {
    replica.phase = Phase::Idle { since: now };
    back(replica);
}

/// It is out of the routes for good.
pub fn draining(replica: &mut Replica, until: Millis, now: Millis) {
    replica.phase = Phase::Draining { since: now, until };
    replica.probing = None;
    back(replica);
}

/// Its stop task runs.
pub fn stopping(replica: &mut Replica, now: Millis) {
    replica.phase = Phase::Stopping { since: now };
    replica.probing = None;
    back(replica);
}

/// It is gone because we stopped it.
pub fn stopped(replica: &mut Replica, now: Millis) {
    replica.phase = Phase::Dead {
        at: now,
        death: Death::Stopped,
    };
    replica.probing = None;
    replica.in_flight = 0;
}

/// It died (or was killed). Back-off starts anew after [`Restart::RESET_AFTER`] in the routes. A lack of memory drives
/// back-off but not crash-loop: it says nothing about the guest. One that was leaving anyway counts as stopped.
pub fn died(replica: &mut Replica, death: Death, restart: &Restart, now: Millis) {
    if matches!(replica.phase, Phase::Dead { .. }) {
        return;
    }
    if matches!(replica.phase, Phase::Draining { .. } | Phase::Stopping { .. }) {
        return stopped(replica, now);
    }
    if healthy(replica, now) {
        replica.restarts = 0;
        replica.deaths.clear();
        replica.crash_loop = false;
    }
    replica.restarts = replica.restarts.saturating_add(1);
    if death != Death::NoMemory {
        replica.deaths.push(now);
        let keep = usize::try_from(restart.give_up_restarts.max(1)).unwrap_or(usize::MAX);
        let surplus = replica.deaths.len().saturating_sub(keep);
        replica.deaths.drain(..surplus);
    }
    if matches!(death, Death::StartTrapped { .. }) {
        replica.start_failures = replica.start_failures.saturating_add(1);
    }
    back(replica);
    replica.last_death = Some((now, death.clone()));
    replica.phase = Phase::Dead { at: now, death };
    replica.probing = None;
    replica.in_flight = 0;
}

/// What kept it from being prepared is gone: its back-off starts anew. False when it did not wait for that.
pub fn preparable(replica: &mut Replica) -> bool {
    let waits = matches!(
        replica.phase,
        Phase::Dead {
            death: Death::CannotPrepare { .. },
            ..
        }
    );
    if waits {
        replica.restarts = 0;
        replica.deaths.clear();
        replica.crash_loop = false;
    }
    waits
}

/// In the routes for so long that its past is forgiven.
pub fn healthy(replica: &Replica, now: Millis) -> bool {
    matches!(replica.phase, Phase::Serving { since } if now.since(since) >= Restart::RESET_AFTER)
}

fn forget_probes(replica: &mut Replica) {
    replica.probe_failures = 0;
    replica.probe_error = None;
    replica.probed_at = None;
    replica.probe_sent = None;
    replica.probing = None;
    replica.ready = false;
    replica.live = Live::default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica() -> Replica {
        created(ReplicaId(1), "hello".parse().unwrap(), RevisionNumber(1), 0, Millis(0))
    }

    fn trap() -> Death {
        Death::StartTrapped {
            reason: "unreachable".into(),
        }
    }

    #[test]
    fn deaths_count_until_it_served_for_a_minute() {
        let (mut r, restart) = (replica(), Restart::default());
        died(&mut r, trap(), &restart, Millis(5));
        restarting(&mut r, Millis(15));
        died(&mut r, trap(), &restart, Millis(20));
        assert_eq!((r.restarts, r.start_failures, r.deaths.len()), (2, 2, 2));
        restarting(&mut r, Millis(40));
        started(&mut r, Millis(41));
        admitted(&mut r, Millis(42));
        assert_eq!((r.restarts, r.start_failures), (2, 0));
        died(&mut r, Death::Exited { code: 1 }, &restart, Millis(60_042));
        assert_eq!((r.restarts, r.deaths.len(), r.restarts_total), (1, 1, 2));
    }

    #[test]
    fn a_lack_of_memory_is_no_step_towards_crash_loop() {
        let mut r = replica();
        died(&mut r, Death::NoMemory, &Restart::default(), Millis(5));
        assert_eq!((r.restarts, r.deaths.len()), (1, 0));
    }

    #[test]
    fn one_that_dies_while_it_leaves_counts_as_stopped() {
        let mut r = replica();
        draining(&mut r, Millis(30_000), Millis(1));
        died(&mut r, trap(), &Restart::default(), Millis(5));
        assert_eq!(
            r.phase,
            Phase::Dead {
                at: Millis(5),
                death: Death::Stopped
            }
        );
        assert_eq!(r.restarts, 0);
    }

    #[test]
    fn a_late_probe_answer_changes_nothing() {
        let mut r = replica();
        let before = r.clone();
        probed(&mut r, Ok(()), None, Millis(9));
        assert_eq!(r, before);
    }
}
