//! The planners' rules, one name each, told in virtual time (`world.rs`). Longer stories are in `tests/scenarios`.

use std::sync::Arc;
use std::time::Duration;

use super::world::{Guest, World, ms, replica_count, service_name, spec};
use super::{Assigned, Assignment, Desired, FleetAction, FleetView, Group, NodeAction, NodeView, ReplicaIdSeed};
use super::{facts, fleet, node, status};
use crate::model::service::{Amount, ReadinessProbe, RestartPolicy};
use crate::model::{Death, Millis, Phase, Replica, ReplicaId, RevisionNumber, Why};

mod meetings;

fn trap() -> Death {
    Death::Traps {
        reason: "5 calls in a row trapped".into(),
    }
}

fn lawful(world: &World) {
    assert!(world.breaches.is_empty(), "{}", world.breaches[0]);
}

#[test]
fn a_revision_that_never_gets_ready_is_refused_and_the_old_one_keeps_serving() {
    let mut world = World::with_serving("hello", Guest::default(), 3);
    world.deploy("hello", Guest::never_ready(), |_| {}).advance_secs(60);
    assert_eq!(world.serving("hello"), [1, 1, 1]);
    assert_eq!(world.refusal("hello"), Some(Why::NeverReady));
    lawful(&world);
}

#[test]
fn a_start_that_traps_three_times_refuses_the_revision_in_a_tenth_of_a_second() {
    let mut world = World::with_serving("hello", Guest::default(), 2);
    world
        .deploy("hello", Guest::trapping_at_start(), |_| {})
        .advance(ms(100));
    assert_eq!(
        (world.refusal("hello"), world.serving("hello")),
        (Some(Why::StartTrapped), vec![1, 1])
    );
    lawful(&world);
}

#[test]
fn a_refused_revision_is_started_by_nobody_until_someone_deploys() {
    let mut world = World::new(1);
    world
        .deploy("hello", Guest::trapping_at_start(), |_| {})
        .advance_secs(1);
    world.behave("hello", 1, Guest::default());
    for _ in 0..3 {
        world
            .reboot()
            .restart("hello")
            .scale("hello", 3)
            .stop("hello")
            .start("hello")
            .advance_secs(600);
        assert!(world.replicas().is_empty());
    }
    world.deploy("hello", Guest::default(), |_| {}).advance_secs(2);
    assert_eq!(world.state("hello"), "healthy 1/1");
    lawful(&world);
}

#[test]
fn new_replicas_that_die_while_serving_bring_the_old_revision_back_even_after_it_has_left() {
    let mut world = World::with_serving("hello", Guest::default(), 2);
    world.deploy("hello", Guest::default(), |_| {}).advance(ms(1_006));
    assert_eq!(world.stable("hello"), Some(2), "new beside old, then proved");
    // Now with an old one that hangs in its drain: proved all the same, it is out of the routes.
    let ids: Vec<u64> = world.replicas().iter().map(|r| r.id.0).collect();
    world
        .busy(ids[0], 1)
        .deploy("hello", Guest::default(), |_| {})
        .advance(ms(900));
    let new = world
        .replicas()
        .iter()
        .find(|r| r.revision == RevisionNumber(3))
        .map(|r| r.id.0)
        .unwrap();
    world.kill(new, trap()).advance_secs(2);
    assert_eq!(world.refusal("hello"), Some(Why::Died));
    assert_eq!(world.serving("hello"), [2, 2]);
    lawful(&world);
}

#[test]
fn one_of_one_is_never_missing_while_its_revision_changes() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.deploy("hello", Guest::default(), |s| {
        s.rollout.max_surge = Amount::Count(0);
        s.rollout.max_unavailable = Amount::Count(1);
    });
    for _ in 0..3_000 {
        world.advance(ms(1));
        assert!(!world.serving("hello").is_empty());
    }
    assert_eq!(world.stable("hello"), Some(2));
    lawful(&world);
}

#[test]
fn a_service_scaled_to_none_is_neither_proved_nor_refused_and_begins_its_trial_when_it_runs() {
    let mut world = World::new(1);
    world
        .deploy("hello", Guest::default(), |s| s.replicas = replica_count(0))
        .advance_secs(3_600);
    assert_eq!((world.stable("hello"), world.refusal("hello")), (None, None));
    world.scale("hello", 1).advance_secs(2);
    assert_eq!(world.stable("hello"), Some(1));
    lawful(&world);
}

#[test]
fn what_was_scaled_keeps_its_number_until_a_newer_revision_has_proved_itself_and_after_it_was_refused() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.scale("hello", 5).advance_secs(1);
    world
        .deploy("hello", Guest::trapping_under_traffic(), |_| {})
        .advance_secs(5);
    assert_eq!(
        (world.refusal("hello"), world.state("hello").as_str()),
        (Some(Why::Died), "healthy 5/5")
    );
    world.deploy("hello", Guest::default(), |_| {}).advance(ms(500));
    assert_eq!(world.serving("hello"), [1, 1, 1, 1, 1, 3]);
    world.advance_secs(5);
    assert_eq!(world.state("hello"), "healthy 1/1");
    lawful(&world);
}

#[test]
fn a_dead_proved_replica_serves_again_within_fifty_milliseconds() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.kill(1, trap()).advance(ms(50));
    assert_eq!(world.serving("hello"), [1]);
    lawful(&world);
}

#[test]
fn a_lack_of_memory_neither_refuses_nor_crash_loops_and_ends_soon_after_there_is_room() {
    let mut world = World::new(1);
    world.memory = Some(0);
    world.deploy("hello", Guest::default(), |_| {}).advance_secs(50);
    assert_eq!(world.refusal("hello"), None);
    assert!(world.replicas().iter().all(|r| !r.crash_loop));
    world.memory = None;
    world.advance_secs(3);
    assert_eq!(world.state("hello"), "healthy 1/1");
    lawful(&world);
}

#[test]
fn with_a_readiness_probe_nothing_is_admitted_before_it_has_passed_once() {
    let mut world = World::new(1);
    let probe = ReadinessProbe {
        path: "/ready".into(),
        interval: ms(500),
        timeout: ms(500),
        failures: 2,
    };
    world
        .deploy(
            "hello",
            Guest {
                ready: false,
                ..Guest::default()
            },
            |s| s.readiness = Some(probe),
        )
        .advance_secs(30);
    assert!(world.serving("hello").is_empty());
    world.behave("hello", 1, Guest::default()).advance_secs(2);
    assert_eq!(world.state("hello"), "healthy 1/1");
    lawful(&world);
}

#[test]
fn a_restart_during_a_rollout_waits_for_its_end_and_then_replaces_every_older_replica() {
    let mut world = World::with_serving("hello", Guest::default(), 3);
    world
        .deploy("hello", Guest::default(), |s| s.rollout.max_surge = Amount::Count(1))
        .advance(ms(500));
    world.restart("hello").advance_secs(20);
    assert_eq!(world.state("hello"), "healthy 3/3");
    assert!(
        world
            .replicas()
            .iter()
            .all(|r| r.generation == 1 && r.revision == RevisionNumber(2))
    );
    lawful(&world);
}

#[test]
fn a_policy_of_never_leaves_the_dead_but_still_replaces_them_on_request() {
    let mut world = World::new(1);
    world
        .deploy("hello", Guest::default(), |s| s.restart.policy = RestartPolicy::Never)
        .advance_secs(2);
    world.kill(1, trap()).advance_secs(600);
    assert_eq!(world.state("hello"), "failed 0/1: r1 died: 5 calls in a row trapped");
    world.restart("hello").advance_secs(2);
    assert_eq!(world.state("hello"), "healthy 1/1");
    lawful(&world);
}

#[test]
fn one_that_serves_is_drained_to_the_end_of_its_time_and_not_a_millisecond_longer() {
    let mut world = World::with_serving("hello", Guest::default(), 1);
    world.busy(1, 1).stop("hello").advance(ms(29_999));
    assert!(matches!(world.replicas()[0].phase, Phase::Draining { .. }));
    world.advance(ms(1));
    assert!(matches!(world.replicas()[0].phase, Phase::Stopping { .. }));
    lawful(&world);
}

#[test]
fn a_revision_that_is_missing_in_the_store_changes_nothing() {
    let mut world = World::with_serving("hello", Guest::default(), 2);
    world
        .record("hello", |r| r.wanted = RevisionNumber(9))
        .advance_secs(600);
    assert_eq!(world.serving("hello"), [1, 1]);
}

#[test]
fn the_last_serving_replica_outlives_an_assignment_that_rested_on_one_that_died() {
    let world = World::with_serving("hello", Guest::default(), 1);
    let revision = world.desired.services[&service_name("hello")].revisions[&RevisionNumber(1)].clone();
    let mut newer = (*revision).clone();
    newer.number = RevisionNumber(2);
    let group = |revision, replicas| Group {
        replicas,
        generation: 0,
        on_trial: false,
        retiring: false,
        surge: 0,
        unavailable: 0,
        grace: None,
        revision,
    };
    let groups = [
        (RevisionNumber(1), group(revision, 0)),
        (RevisionNumber(2), group(Arc::new(newer), 1)),
    ];
    let assigned = Assignment {
        services: [(
            service_name("hello"),
            Assigned {
                groups: groups.into(),
                asleep: false,
                split: [].into(),
            },
        )]
        .into(),
    };
    let view = NodeView {
        replicas: world.replicas().to_vec(),
        next_id: ReplicaIdSeed {
            first: 2,
            jitter_seed: 1,
        },
    };
    let plan = node::node(&assigned, &view, world.now);
    assert_eq!(
        plan.actions,
        [NodeAction::Create {
            replica: ReplicaId(2),
            service: service_name("hello"),
            revision: RevisionNumber(2),
            generation: 0
        }]
    );
    assert_eq!(
        plan.notes[0].text,
        "r1 is the last that serves: it stays until another does"
    );
}

#[test]
fn a_replica_of_a_service_that_is_not_assigned_is_drained_and_forgotten() {
    let world = World::with_serving("hello", Guest::default(), 1);
    let view = NodeView {
        replicas: world.replicas().to_vec(),
        next_id: ReplicaIdSeed::default(),
    };
    let plan = node::node(&Assignment::default(), &view, Millis(5_000));
    assert_eq!(
        plan.actions,
        [NodeAction::Drain {
            replica: ReplicaId(1),
            until: Millis(35_000)
        }]
    );
}

#[test]
fn the_same_input_gives_the_same_plan_in_whatever_order_it_comes() {
    let mut world = World::with_serving("hello", Guest::default(), 4);
    world.deploy("hello", Guest::default(), |_| {});
    let mut view = world.view.clone();
    view.assigned = Assignment::default();
    let one = fleet::fleet(&world.desired, &view, world.now);
    view.replicas.reverse();
    assert_eq!(fleet::fleet(&world.desired, &view, world.now), one);
    let FleetAction::Assign { assignment } = &one.actions[0] else {
        panic!("{one:?}")
    };
    let mut view = NodeView {
        replicas: view.replicas,
        next_id: ReplicaIdSeed {
            first: 9,
            jitter_seed: 1,
        },
    };
    let one = node::node(assignment, &view, world.now);
    view.replicas.reverse();
    assert_eq!(node::node(assignment, &view, world.now), one);
}

#[test]
fn dependencies_among_services_in_a_circle_are_not_waited_for_but_those_outside_are() {
    let mut world = World::new(1);
    for (name, on) in [("a", vec!["b"]), ("b", vec!["a", "base"]), ("base", vec![])] {
        let mut file = spec(name);
        file.depends_on = on.into_iter().map(service_name).collect();
        world.deploy(
            name,
            Guest {
                starts_in: ms(300),
                ..Guest::default()
            },
            |s| *s = file,
        );
    }
    world.advance_secs(5).reboot();
    let started = |w: &World| -> Vec<String> { w.replicas().iter().map(|r| r.service.to_string()).collect() };
    assert_eq!(started(&world), ["a", "base"]);
    world.advance(ms(400));
    assert_eq!(started(&world), ["a", "base", "b"]);
    lawful(&world);
}

#[test]
fn the_rollout_says_where_it_came_from_and_how_far_it_is() {
    let mut world = World::with_serving("hello", Guest::default(), 2);
    let name = service_name("hello");
    let look = |w: &World| {
        let s = status::rollout(&w.desired.services[&name], None, w.replicas());
        (s.from.map(|n| n.0), s.to.0, s.state, s.old_serving, s.new_serving)
    };
    assert_eq!(look(&world), (None, 1, "done", 0, 2));
    world.deploy("hello", Guest::default(), |_| {}).advance(ms(100));
    assert_eq!(look(&world), (Some(1), 2, "running", 2, 2));
    world.advance_secs(2);
    assert_eq!(look(&world), (Some(1), 2, "done", 0, 2));
    world
        .deploy("hello", Guest::trapping_at_start(), |_| {})
        .advance_secs(2);
    assert_eq!(look(&world), (Some(2), 3, "refused", 2, 0));
}

#[test]
fn ten_thousand_replicas_that_all_serve_need_nothing() {
    let mut world = World::new(1);
    for service in 0..100 {
        world.deploy(&format!("s{service}"), Guest::default(), |_| {});
    }
    world.advance_secs(2);
    let mut desired: Desired = world.desired.clone();
    for service in desired.services.values_mut() {
        service.record.scaled = Some(replica_count(100));
    }
    let serving = |n: u64| -> Replica {
        let mut r = facts::created(
            ReplicaId(n),
            service_name(&format!("s{}", n % 100)),
            RevisionNumber(1),
            0,
            Millis(0),
        );
        facts::admitted(&mut r, Millis(0));
        r
    };
    let mut view = FleetView {
        replicas: (0..10_000).map(serving).collect(),
        ..FleetView::default()
    };
    let now = Millis(120_000);
    fleet::observe(&desired, &mut view, now);
    let plan = fleet::fleet(&desired, &view, now);
    let [FleetAction::Assign { assignment }] = &plan.actions[..] else {
        panic!("{:?}", plan.actions.len())
    };
    let (assignment, next_id) = (
        assignment.clone(),
        ReplicaIdSeed {
            first: 10_000,
            jitter_seed: 1,
        },
    );
    let replicas = view.replicas.clone();
    assert_eq!(
        node::node(&assignment, &NodeView { replicas, next_id }, now),
        super::Plan::default()
    );
    view.assigned = assignment;
    assert_eq!(fleet::fleet(&desired, &view, now), super::Plan::default());
}

#[test]
fn a_leap_of_a_day_stops_nothing() {
    let mut world = World::with_serving("hello", Guest::default(), 2);
    let before: Vec<Replica> = world.replicas().to_vec();
    world.leap(Duration::from_secs(86_400)).advance_secs(60);
    assert_eq!(world.replicas(), before);
    lawful(&world);
}

/// Records carry wall-clock times for people. No decision looks at them, so a step of the clock changes none (law L7).
#[test]
fn a_step_of_the_wall_clock_changes_no_decision() {
    let day_ms = 86_400_000;
    for step_ms in [day_ms, -day_ms, 3_600_000, -3_600_000, i64::MIN / 2] {
        let story = |stepped: bool| {
            let mut world = World::with_serving("hello", Guest::default(), 3);
            world
                .deploy("hello", Guest::trapping_at_start(), |_| {})
                .advance(ms(30));
            if stepped {
                step_records(&mut world, step_ms);
            }
            world.advance_secs(5);
            world.deploy("hello", Guest::default(), |_| {}).advance(ms(500));
            if stepped {
                step_records(&mut world, step_ms);
            }
            world.kill(1, trap()).advance_secs(90);
            lawful(&world);
            (world.replicas().to_vec(), world.state("hello"), world.stable("hello"))
        };
        assert_eq!(story(true), story(false), "{step_ms} ms");
    }
}

fn step_records(world: &mut World, by_ms: i64) {
    for service in world.desired.services.values_mut() {
        service.record.created_at.0 = service.record.created_at.0.saturating_add(by_ms);
        service.record.changed_at.0 = service.record.changed_at.0.saturating_add(by_ms);
        for revision in service.revisions.values_mut() {
            let revision = Arc::make_mut(revision);
            revision.created_at.0 = revision.created_at.0.saturating_add(by_ms);
        }
    }
}
