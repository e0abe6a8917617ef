//! What the data path reports: failed calls become events, a run of traps wakes the planner.

use std::sync::Arc;

use narae_runtime::CallError;
use tokio::sync::Notify;

use crate::crashes::{Crash, CrashKind, Crashes};
use crate::events::{Events, Occurrence};
use crate::metrics::Metrics;
use crate::model::EventKind;
use crate::proxy::{Observer, Reason, Service, Upstream};

/// The balancer's observer.
pub struct Watch {
    events: Arc<Events>,
    metrics: Arc<Metrics>,
    crashes: Arc<Crashes>,
    wake: Arc<Notify>,
}

impl Watch {
    pub fn new(events: Arc<Events>, metrics: Arc<Metrics>, crashes: Arc<Crashes>, wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            events,
            metrics,
            crashes,
            wake,
        })
    }
}

impl Observer for Watch {
    fn call_failed(&self, service: &Service, upstream: &Upstream, error: &CallError, after_head: bool) {
        let (kind, limit, backtrace) = match error {
            CallError::Trap(report) => {
                let kind = if report.limit.is_some() {
                    EventKind::Limit
                } else {
                    EventKind::Trap
                };
                (kind, report.limit, &*report.backtrace)
            }
            CallError::Timeout(limit) => (EventKind::Limit, Some(*limit), &[][..]),
            CallError::OutOfMemory => (EventKind::Limit, Some(narae_runtime::Limit::MemoryBudget), &[][..]),
            CallError::BadAnswer(_) => (EventKind::Trap, None, &[][..]),
            CallError::Busy | CallError::Gone | CallError::Stopped => return,
        };
        if let CallError::Trap(report) = error {
            self.crashes.record(service.name(), CrashKind::Call, || Crash {
                kind: CrashKind::Call,
                service: service.name().clone(),
                revision: upstream.revision,
                replica: upstream.id,
                reason: report.reason.to_string(),
                limit: report.limit.map(|limit| limit.name()),
                backtrace: report.backtrace.to_vec(),
            });
        }
        // Described only if it is kept: a trap storm must not cost more than its answers.
        self.events.record_with(kind, Some(service.name()), || {
            let mut message = error.to_string();
            if after_head {
                message.push_str(" (after its head was sent: the answer was aborted)");
            }
            let occurrence = Occurrence::new(message)
                .revision(upstream.revision)
                .replica(upstream.id);
            let occurrence = if let Some(limit) = limit {
                occurrence.limit(limit.name())
            } else {
                occurrence
            };
            occurrence.backtrace(backtrace.iter().cloned())
        });
    }

    fn refused(&self, service: Option<&Service>, reason: Reason) {
        if let Some(service) = service {
            self.metrics.service(service.name()).failed(reason);
        }
    }

    fn trap_run(&self, upstream: &Upstream, consecutive: u32) {
        // Below the limit there is nothing to decide: a client that makes traps must not make plans.
        if consecutive >= upstream.failure_limit() {
            self.wake.notify_one();
        }
    }

    fn failure_run(&self, upstream: &Upstream, consecutive: u32) {
        // Once in a run: one that is spared (it is alone, or others are out) is judged again whenever there is a plan.
        if consecutive == upstream.failure_limit() {
            self.wake.notify_one();
        }
    }
}
