//! Rules that hold where rollouts, autoscale, schedules and ejection meet.

use super::*;
use crate::model::service::{Autoscale, Gates, Rollout, Step, Strategy};
use crate::plan::world::Clients;

fn name() -> crate::model::ServiceName {
    service_name("hello")
}

fn canary(rollout: &mut Rollout) {
    rollout.strategy = Strategy::Canary;
    rollout.steps = vec![Step {
        weight: 50,
        hold: Duration::from_secs(60),
    }];
}

/// Scaled to eight by what its clients do.
fn scaled_to_eight(min: u32, edit: impl FnOnce(&mut crate::model::ServiceSpec)) -> World {
    let mut world = World::new(1);
    world.deploy("hello", Guest::default(), |spec| {
        spec.replicas = replica_count(min);
        spec.limits.concurrency = 10;
        spec.autoscale = Some(Autoscale {
            min,
            max: 20,
            target: Amount::Percent(100),
            ..Autoscale::default()
        });
        edit(spec);
    });
    world.advance_secs(2);
    let busy = Clients {
        in_flight: 80,
        ..Clients::default()
    };
    world.load("hello", busy).advance_secs(2);
    assert_eq!(world.serving("hello").len(), 8);
    world
}

#[test]
fn a_lone_canary_whose_calls_all_fail_stays_where_its_gates_see_it() {
    let failing = Guest {
        fails: true,
        ..Guest::default()
    };
    for stable in [1, 2, 4] {
        let mut world = World::with_serving("hello", Guest::default(), stable);
        world.deploy("hello", failing.clone(), |spec| {
            canary(&mut spec.rollout);
            spec.rollout.gates = Some(Gates::DEFAULT);
        });
        world.advance_secs(50);
        assert_eq!(world.refusal("hello"), Some(Why::Gate), "{stable} stable");
        lawful(&world);
    }
}

#[test]
fn the_only_stable_replica_is_not_ejected_for_the_canary_to_get_everything() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.deploy("hello", Guest::default(), |spec| canary(&mut spec.rollout));
    world.advance_secs(5).failing(1);
    assert_eq!(world.serving("hello"), [1, 2]);
    assert!(world.replicas().iter().all(|r| r.ejected_until.is_none()));
    lawful(&world);
}

#[test]
fn a_file_without_autoscale_takes_nothing_from_the_scaled_revision_before_it_serves() {
    for strategy in [Strategy::Rolling, Strategy::Canary] {
        let mut world = scaled_to_eight(1, |_| {});
        let slow = Guest {
            starts_in: ms(5_000),
            ..Guest::default()
        };
        world.deploy("hello", slow, |spec| {
            canary(&mut spec.rollout);
            spec.rollout.strategy = strategy;
            spec.autoscale = None;
            spec.replicas = replica_count(3);
        });
        world.advance_secs(4);
        assert_eq!(world.serving("hello"), [1; 8], "{strategy:?}");
        let more = Clients {
            in_flight: 200,
            ..Clients::default()
        };
        world.load("hello", more).advance(ms(500));
        assert_eq!(world.serving("hello"), [1; 20], "the stable one goes on by its own");
        world.advance_secs(100);
        assert_eq!(world.serving("hello"), [2; 3]);
        lawful(&world);
    }
}

#[test]
fn a_service_that_begins_with_none_and_is_scaled_takes_a_canary_by_its_steps() {
    let mut world = scaled_to_eight(0, |_| {});
    world.deploy("hello", Guest::default(), |spec| canary(&mut spec.rollout));
    world.advance_secs(10);
    assert_eq!(world.serving("hello"), [1, 1, 1, 1, 1, 1, 1, 1, 2]);
    assert_eq!(world.view.assigned.services[&name()].split[&RevisionNumber(2)], 50);
    lawful(&world);
}

#[test]
fn a_canary_of_a_service_asleep_wakes_what_it_is_compared_with() {
    let mut world = scaled_to_eight(0, |_| {});
    world.load("hello", Clients::default()).advance_secs(3_600);
    assert!(world.serving("hello").is_empty());
    world.deploy("hello", Guest::default(), |spec| canary(&mut spec.rollout));
    world.advance_secs(10);
    assert_eq!(world.serving("hello"), [1, 2]);
    world.advance_secs(100);
    assert_eq!(world.stable("hello"), Some(2));
    lawful(&world);
}

#[test]
fn one_that_recreates_and_still_serves_is_not_taken_down_by_a_rollback() {
    let recreate = |spec: &mut crate::model::ServiceSpec| {
        spec.replicas = replica_count(2);
        spec.rollout.strategy = Strategy::Recreate;
    };
    let mut world = World::new(1);
    world.deploy("hello", Guest::default(), recreate).advance_secs(2);
    let dying = Guest::dying_after(ms(300));
    world.deploy("hello", dying, |spec| canary(&mut spec.rollout));
    for _ in 0..500 {
        world.advance(ms(10));
        assert!(world.serving("hello").contains(&1), "{}", world.state("hello"));
    }
    assert_eq!(
        (world.refusal("hello"), world.serving("hello")),
        (Some(Why::Died), vec![1, 1])
    );
    // On trial one that recreates still waits for the old ones, and comes whole.
    world.deploy("hello", Guest::default(), recreate).advance_secs(3);
    assert_eq!((world.stable("hello"), world.serving("hello")), (Some(3), vec![3, 3]));
    lawful(&world);
}

#[test]
fn a_burst_after_the_switch_scales_the_new_revision_and_leaves_the_old_warm_as_it_is() {
    let mut world = scaled_to_eight(1, |_| {});
    world.deploy("hello", Guest::default(), |spec| {
        spec.rollout.strategy = Strategy::BlueGreen
    });
    world.advance_secs(5);
    let count = |world: &World, of: u64| world.serving("hello").iter().filter(|n| **n == of).count();
    assert_eq!((count(&world, 1), count(&world, 2)), (8, 8));
    assert_eq!(world.view.assigned.services[&name()].split[&RevisionNumber(2)], 1_000);
    let burst = Clients {
        in_flight: 180,
        ..Clients::default()
    };
    world.load("hello", burst).advance_secs(2);
    assert_eq!((count(&world, 1), count(&world, 2)), (8, 18));
    let warm = world.replicas().iter().find(|r| r.revision.0 == 1).unwrap().id.0;
    world.kill(warm, trap()).advance_secs(2);
    assert_eq!(count(&world, 1), 8, "what dies meanwhile is replaced");
    lawful(&world);
}

#[test]
fn without_requests_a_trial_is_looked_at_once_a_second() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.deploy("hello", Guest::default(), |spec| {
        spec.rollout.min_healthy = Duration::from_secs(3_600);
        spec.rollout.gates = Some(Gates::DEFAULT);
    });
    world.advance_secs(5);
    let looks = |world: &mut World, secs| {
        let before = world.rounds;
        world.advance_secs(secs);
        world.rounds - before
    };
    assert!(
        (40..=60).contains(&looks(&mut world, 10)),
        "with requests five times a second"
    );
    world.quiet_from = Some(world.now);
    world.advance_secs(3);
    assert!((8..=12).contains(&looks(&mut world, 10)));
    world.quiet_from = None;
    world.advance_secs(2);
    assert!((40..=60).contains(&looks(&mut world, 10)));
}

#[test]
fn what_a_schedule_holds_up_is_not_asleep() {
    let mut world = World::new(1);
    world.deploy("hello", Guest::default(), |spec| {
        spec.autoscale = Some(Autoscale {
            min: 0,
            idle: ms(500),
            ..Autoscale::default()
        });
    });
    world.advance_secs(5);
    assert!(world.view.assigned.services[&name()].asleep);
    let mut desired = world.desired.clone();
    desired.services.get_mut(&name()).unwrap().record.scheduled = vec![crate::model::schedule::Hold {
        schedule: "night".into(),
        replicas: replica_count(2),
        due: crate::model::Timestamp(0),
        until: None,
    }];
    let plan = fleet::fleet(&desired, &world.view, world.now);
    let Some(FleetAction::Assign { assignment }) = plan.actions.first() else {
        panic!("{plan:?}")
    };
    let assigned = &assignment.services[&name()];
    assert_eq!(
        (assigned.groups[&RevisionNumber(1)].replicas, assigned.asleep),
        (2, false)
    );
}
