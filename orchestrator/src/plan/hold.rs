//! Whether requests of a service without a replica in the routes wait for one, and how long. Only where one is expected: a service
//! that is scaled to zero, starts or heals. What is stopped, crash-loops, is not ready or waits longer answers 503 at once.

use std::time::Duration;

use super::heal::{self, Heal};
use super::{Assigned, Group};
use crate::model::{Death, Millis, Phase, Replica, ServiceSpec};

/// The longest wait of a request that finds no replica; none: it gets 503 at once. As long as one serves this says what holds in
/// the moment it is gone. `replicas`: those of this service.
pub fn hold<'a>(
    assigned: &Assigned,
    replicas: impl IntoIterator<Item = &'a Replica>,
    seed: u64,
    now: Millis,
) -> Option<Duration> {
    let newest = assigned.groups.values().next_back()?;
    let wait = wait(&newest.revision.spec);
    if wait.is_zero() {
        return None;
    }
    let expected = |replica: &Replica| {
        let group = assigned.groups.get(&replica.revision);
        group.is_some_and(|g| g.replicas > 0 && comes(g, replica, wait, seed, now))
    };
    (assigned.asleep || replicas.into_iter().any(expected)).then_some(wait)
}

/// `limits.queue_wait`; a service that may be scaled to zero has at least the time of a start, as long as `limits.timeout` allows.
pub fn wait(spec: &ServiceSpec) -> Duration {
    let limits = &spec.limits;
    if spec.autoscale.as_ref().is_none_or(|a| a.min > 0) {
        return limits.queue_wait;
    }
    let probe = spec.startup.interval.saturating_mul(spec.startup.failures.max(1));
    limits
        .queue_wait
        .max(limits.start_time.saturating_add(probe).min(limits.timeout))
}

/// It serves, or will soon if all goes well.
fn comes(group: &Group, replica: &Replica, wait: Duration, seed: u64, now: Millis) -> bool {
    if matches!(replica.phase, Phase::Serving { .. }) {
        return true;
    }
    if group.retiring || heal::crash_looping(&group.revision.spec.restart, replica) {
        return false;
    }
    match &replica.phase {
        Phase::Starting { .. } => true,
        Phase::Started { .. } | Phase::Idle { .. } => replica.probe_failures == 0,
        Phase::Dead { death, .. } if *death == Death::Stopped => false,
        Phase::Dead { at, death } => match heal::heal(group, replica, *at, death, seed, now) {
            Heal::Restart => true,
            Heal::Wait { until, .. } => until.since(now) <= wait,
            Heal::Stay(_) => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::service::Autoscale;
    use crate::model::{Revision, RevisionNumber};
    use crate::plan::facts;
    use crate::plan::world::{Guest, World, ms, service_name};

    fn world(edit: impl FnOnce(&mut ServiceSpec)) -> World {
        let mut world = World::default();
        world.deploy("hello", Guest::default(), |spec| {
            spec.autoscale = None;
            edit(spec);
        });
        world.advance_secs(2);
        world
    }

    fn held(world: &World) -> Option<Duration> {
        let assigned = world.view.assigned.services.get(&service_name("hello"))?;
        hold(assigned, world.replicas(), 1, world.now)
    }

    #[test]
    fn requests_wait_while_a_replica_heals_and_no_longer_than_the_queue_allows() {
        let mut world = world(|_| {});
        assert_eq!(held(&world), Some(ms(1_000)));
        world.kill(1, Death::Traps { reason: String::new() });
        assert_eq!(held(&world), Some(ms(1_000)));
        world.advance_secs(1);
        assert_eq!(world.serving("hello"), [1]);
    }

    #[test]
    fn a_back_off_that_is_longer_than_the_wait_is_told_at_once() {
        let mut world = world(|spec| spec.restart.initial = ms(5_000));
        world.kill(1, Death::Exited { code: 1 });
        assert_eq!(held(&world), None);
        world.advance(ms(4_500));
        assert_eq!(held(&world), Some(ms(1_000)), "soon enough now");
    }

    #[test]
    fn a_service_that_crash_loops_is_stopped_or_is_scaled_to_none_answers_at_once() {
        let mut looping = world(|spec| spec.restart.give_up_restarts = 1);
        looping.kill(1, Death::Exited { code: 1 });
        assert_eq!(held(&looping), None);
        let mut stopped = world(|_| {});
        assert_eq!(held(stopped.stop("hello")), None);
        assert!(held(stopped.start("hello")).is_some());
        assert_eq!(held(stopped.scale("hello", 0)), None);
    }

    #[test]
    fn one_that_is_not_ready_is_not_waited_for() {
        let mut world = world(|_| {});
        let revision: Arc<Revision> =
            Arc::clone(&world.desired.services[&service_name("hello")].revisions[&RevisionNumber(1)]);
        let replica = &mut world.view.replicas[0];
        facts::withdrawn(replica, Millis(5));
        replica.probe_failures = 2;
        assert!(revision.spec.readiness.is_none());
        assert_eq!(held(&world), None);
    }

    #[test]
    fn a_service_scaled_to_zero_by_autoscale_has_the_time_of_a_start() {
        let mut world = world(|spec| {
            spec.autoscale = Some(Autoscale {
                min: 0,
                idle: ms(500),
                ..Autoscale::default()
            });
        });
        world.advance_secs(2);
        assert!(world.serving("hello").is_empty(), "{}", world.state("hello"));
        assert_eq!(held(&world), Some(ms(18_000)), "a start of 10 s and a probe of 8 s");
        assert_eq!(held(world.scale("hello", 0)), None, "by hand it is off");
    }
}
