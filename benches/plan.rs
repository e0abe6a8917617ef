//! What planning costs: 10,000 replicas of 1,000 services, at rest, with one change, and from nothing.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a bench says what failed by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times are small"
)]

mod common;

use std::sync::Arc;

use narae_orchestrator::model::{Death, Millis, Phase, Replica, ReplicaId, RevisionNumber, RevisionState, ServiceName};
use narae_orchestrator::plan::world::{Guest, World};
use narae_orchestrator::plan::{Assignment, Desired, FleetAction, FleetView, NodeView, ReplicaIdSeed, fleet, node};
use serde_json::{Value, json};

/// One service that serves, so many times over.
fn many(services: u64, replicas: u32) -> (Desired, Vec<Replica>, Millis) {
    let world = World::with_serving("one", Guest::default(), replicas);
    let (pattern, seeds) = (world.desired.services.values().next().unwrap(), world.replicas());
    let (mut desired, mut all) = (Desired::default(), Vec::new());
    for n in 0..services {
        let name: ServiceName = format!("s{n:05}").parse().unwrap();
        let mut service = pattern.clone();
        service.record.name = name.clone();
        for revision in service.revisions.values_mut() {
            let revision = Arc::make_mut(revision);
            revision.service = name.clone();
            revision.spec.name = name.clone();
        }
        desired.services.insert(name.clone(), service);
        all.extend(seeds.iter().map(|seed| Replica {
            id: ReplicaId(n * seeds.len() as u64 + seed.id.0),
            service: name.clone(),
            ..seed.clone()
        }));
    }
    (desired, all, world.now)
}

fn assigned(desired: &Desired, replicas: &[Replica], now: Millis) -> Assignment {
    let mut view = FleetView {
        replicas: replicas.to_vec(),
        ..FleetView::default()
    };
    fleet::observe(desired, &mut view, now);
    let actions = fleet::fleet(desired, &view, now).actions;
    let told = actions.into_iter().find_map(|action| match action {
        FleetAction::Assign { assignment } => Some(assignment),
        _ => None,
    });
    told.expect("a node that knows nothing is told something")
}

fn main() {
    common::pin(1);
    let mut lines = Vec::new();
    let mut say = |name: &str, actions: usize, us: f64| {
        println!(
            "{name:<58}{actions:>7} actions {:>9.3} ms   load {:.1}",
            us / 1e3,
            common::load()
        );
        lines.push(json!({"what": name, "actions": actions, "milliseconds": us / 1e3, "load_average": common::load()}));
    };
    for services in [100, 1_000] {
        let (desired, replicas, now) = many(services, 10);
        let count = replicas.len();
        let told = assigned(&desired, &replicas, now);
        let mut view = FleetView {
            replicas: replicas.clone(),
            assigned: told.clone(),
            ..FleetView::default()
        };
        fleet::observe(&desired, &mut view, now);
        let here = NodeView {
            replicas,
            next_id: ReplicaIdSeed {
                first: 1 << 40,
                jitter_seed: 1,
            },
        };

        let us = common::time(10, 10, || drop(fleet::fleet(&desired, &view, now)));
        say(
            &format!("fleet, {count} replicas at rest"),
            fleet::fleet(&desired, &view, now).actions.len(),
            us,
        );
        let us = common::time(10, 10, || drop(node::node(&told, &here, now)));
        say(
            &format!("node, {count} replicas at rest"),
            node::node(&told, &here, now).actions.len(),
            us,
        );

        // One service has a new revision; one replica has died.
        let mut changed = desired.clone();
        let service = changed.services.values_mut().next().unwrap();
        let mut new = (**service.revisions.values().next().unwrap()).clone();
        (new.number, new.state) = (RevisionNumber(2), RevisionState::Pending);
        service.record.wanted = RevisionNumber(2);
        service.revisions.insert(RevisionNumber(2), Arc::new(new));
        let us = common::time(10, 10, || drop(fleet::fleet(&changed, &view, now)));
        say(
            &format!("fleet, {count} replicas, one new revision"),
            fleet::fleet(&changed, &view, now).actions.len(),
            us,
        );
        let mut one_dead = here.clone();
        one_dead.replicas[0].phase = Phase::Dead {
            at: Millis(0),
            death: Death::Exited { code: 1 },
        };
        let us = common::time(10, 10, || drop(node::node(&told, &one_dead, now)));
        say(
            &format!("node, {count} replicas, one of them dead"),
            node::node(&told, &one_dead, now).actions.len(),
            us,
        );

        // Everything at once.
        let nothing = FleetView::default();
        let us = common::time(10, 5, || drop(fleet::fleet(&desired, &nothing, now)));
        say(
            &format!("fleet, {count} replicas to assign"),
            fleet::fleet(&desired, &nothing, now).actions.len(),
            us,
        );
        let empty = NodeView {
            replicas: Vec::new(),
            ..here.clone()
        };
        let us = common::time(10, 5, || drop(node::node(&told, &empty, now)));
        say(
            &format!("node, {count} replicas to create"),
            node::node(&told, &empty, now).actions.len(),
            us,
        );
    }
    common::save("plan", &Value::from(lines));
}
