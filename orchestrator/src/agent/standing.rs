//! Where the figures of a revision stand, for the gates: what the metrics count, and the processor time of single calls.

use std::collections::BTreeMap;

use narae_runtime::CpuCounts;

use super::Agent;
use crate::metrics::Standing;
use crate::model::{ReplicaId, RevisionNumber, ServiceName};

/// One revision's figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub calls: Standing,
    /// By replica and life: one that died takes its counts with it.
    pub cpu: BTreeMap<(ReplicaId, u64), CpuCounts>,
}

impl Agent {
    /// Of a revision that serves nothing: zeros.
    pub fn figures(&self, service: &ServiceName, revision: RevisionNumber) -> Figures {
        let calls = self.tools.metrics.standing(service, revision);
        let instances: Vec<_> = {
            let state = self.lock();
            let mine = state
                .slots
                .iter()
                .filter(|(_, s)| s.facts.service == *service && s.facts.revision == revision);
            mine.filter_map(|(id, s)| Some(((*id, s.life), s.instance.clone()?)))
                .collect()
        };
        let cpu = instances.into_iter().map(|(key, i)| (key, i.cpu_times())).collect();
        Figures { calls, cpu }
    }
}
