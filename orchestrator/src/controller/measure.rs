//! The figures of each rollout that has gates: the new and the stable revision over the same time, since the present stage began.
//! Counts and subtracts; what they mean is decided in `plan::gates`.

use std::collections::BTreeMap;
use std::time::Duration;

use narae_runtime::CpuCounts;

use crate::agent::{Agent, Figures};
use crate::model::{RevisionNumber, ServiceName};
use crate::plan::gates::{Measure, Measures};
use crate::plan::rollout::Stage;
use crate::plan::{Desired, FleetView};

/// Where the figures stood when a stage began.
#[derive(Debug)]
struct Baseline {
    stage: Stage,
    new: Figures,
    stable: Figures,
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub struct Gauge {
    baselines: BTreeMap<ServiceName, Baseline>,
}

impl Gauge {
    /// Fills `view.measures` for the stages that have gates, and forgets stages that are over. Costs nothing without any.
    pub fn measure(&mut self, desired: &Desired, view: &mut FleetView, agent: &Agent) {
        self.baselines.retain(|name, b| view.stages.get(name) == Some(&b.stage));
        for (name, stage) in &view.stages {
            let Some(service) = desired.services.get(name) else {
                continue;
            };
            let gated = service.revisions.get(&stage.revision);
            if gated.is_none_or(|r| r.spec.rollout.gates.is_none()) {
                continue;
            }
            let stable = service.record.stable;
            let figures = |revision: RevisionNumber| agent.figures(name, revision);
            let new_now = figures(stage.revision);
            let stable_now = stable.map(figures).unwrap_or_default();
            let since = self.baselines.entry(name.clone()).or_insert_with(|| Baseline {
                stage: *stage,
                new: new_now.clone(),
                stable: stable_now.clone(),
            });
            let measures = Measures {
                stage: *stage,
                new: difference(new_now, &since.new),
                stable: difference(stable_now, &since.stable),
            };
            view.measures.insert(name.clone(), measures);
        }
    }
}

fn difference(now: Figures, then: &Figures) -> Measure {
    let durations = now.calls.durations.since(&then.calls.durations);
    let mut cpu = CpuCounts::default();
    for (replica, counts) in now.cpu {
        let earlier = then.cpu.get(&replica).cloned().unwrap_or_default();
        cpu.add(&counts.since(&earlier));
    }
    Measure {
        requests: now.calls.requests.saturating_sub(then.calls.requests),
        errors: now.calls.errors.saturating_sub(then.calls.errors),
        traps: now.calls.traps.saturating_sub(then.calls.traps),
        p99: durations.quantile_ms(0.99).map(|ms| Duration::from_secs_f64(ms / 1e3)),
        cpu: cpu.median(),
    }
}
