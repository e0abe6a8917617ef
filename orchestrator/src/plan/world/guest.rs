//! What a world is made of: scripted guests, and the values that a test writes by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rollout::Figures;
use crate::model::service::{Logs, Restart, Rollout, StartupProbe, Traffic, World};
use crate::model::{Death, ReplicaCount, ServiceName, ServiceSpec};

/// How the replicas of a revision behave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What its start task ends in.
    pub start: Result<(), Death>,
    /// How long its start task takes.
    pub starts_in: Duration,
    /// Whether it passes its startup probe.
    pub answers: bool,
    /// Whether it passes its readiness probe.
    pub ready: bool,
    /// It dies so long after it came into the routes.
    pub dies: Option<(Duration, Death)>,
    /// Every call traps: the balancer counts traps in a row soon after it serves.
    pub traps: bool,
    /// Its calls fail without a trap: the balancer counts failures in a row soon after it serves.
    pub fails: bool,
    /// Whether it passes its liveness probe.
    pub alive: bool,
    /// What the gates measure of it.
    pub figures: Figures,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            start: Ok(()),
            starts_in: Duration::from_millis(5),
            answers: true,
            ready: true,
            dies: None,
            traps: false,
            fails: false,
            alive: true,
            figures: Figures::default(),
        }
    }
}

impl Guest {
    pub fn trapping_at_start() -> Self {
        Self {
            start: Err(Death::StartTrapped {
                reason: "unreachable".into(),
            }),
            ..Self::default()
        }
    }

    pub fn never_ready() -> Self {
        Self {
            answers: false,
            ..Self::default()
        }
    }

    pub fn dying_after(life: Duration) -> Self {
        Self {
            dies: Some((life, Death::Exited { code: 1 })),
            ..Self::default()
        }
    }

    pub fn trapping_under_traffic() -> Self {
        Self {
            traps: true,
            ..Self::default()
        }
    }
}

/// A service file with every default, named `name`.
pub fn spec(name: &str) -> ServiceSpec {
    ServiceSpec {
        name: service_name(name),
        description: None,
        module: format!("{name}.wasm"),
        digest: None,
        world: World::Auto,
        args: Vec::new(),
        replicas: ReplicaCount::ONE,
        depends_on: Vec::new(),
        labels: BTreeMap::new(),
        env: BTreeMap::new(),
        config: BTreeMap::new(),
        secrets: BTreeMap::new(),
        limits: Default::default(),
        routes: Vec::new(),
        traffic: Traffic::default(),
        startup: StartupProbe::default(),
        readiness: None,
        liveness: None,
        restart: Restart::default(),
        rollout: Rollout::default(),
        autoscale: None,
        keyvalue: Vec::new(),
        volumes: Vec::new(),
        outbound: Default::default(),
        logs: Logs::default(),
        schedules: Vec::new(),
        job: None,
    }
}

/// A name that a test wrote.
pub fn service_name(name: &str) -> ServiceName {
    name.parse().expect("worlds are made with well-formed service names")
}

/// A number of replicas that a test wrote, at most [`ReplicaCount::MAX`].
pub fn replica_count(n: u32) -> ReplicaCount {
    ReplicaCount::new(n.min(ReplicaCount::MAX)).expect("it is at most the maximum")
}

/// Milliseconds as a duration that a test wrote.
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
