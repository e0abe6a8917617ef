//! Performing the node planner's actions, one function for each. Facts are changed before the task that makes them true
//! is spawned, so that the next look at the node never sees a replica that is being started as absent.

use std::sync::Arc;

use super::{Agent, Slot, State};
use crate::crashes::{Crash, CrashKind};
use crate::events::Occurrence;
use crate::model::{Death, EventKind, Millis, Phase, Probing, Replica, ReplicaId, RevisionNumber, ServiceName};
use crate::plan::{NodeAction, facts, words};
use crate::proxy::Upstream;

impl Agent {
    pub(super) fn act(self: &Arc<Self>, action: NodeAction, now: Millis) {
        match action {
            NodeAction::Create {
                replica,
                service,
                revision,
                generation,
            } => {
                self.create(replica, &service, revision, generation, now);
            }
            NodeAction::Restart { replica } => self.restart(replica, now),
            NodeAction::Probe { replica, probe } => self.probe(replica, probe, now),
            NodeAction::Ready { replica } => self.change(replica, |slot| {
                facts::ready(&mut slot.facts, slot.revision.spec.readiness.as_ref(), now);
            }),
            NodeAction::Admit { replica } => self.admit(replica, now),
            NodeAction::Withdraw { replica } => {
                self.leave_routes(replica, |facts| facts::withdrawn(facts, now));
                self.note_event(
                    replica,
                    EventKind::Unready,
                    "readiness probe failed: out of the routes".into(),
                );
            }
            NodeAction::Eject { replica, until } => self.eject(replica, until, now),
            NodeAction::Return { replica } => self.take_back(replica, now),
            NodeAction::Drain { replica, until } => self.drain(replica, until, now),
            NodeAction::Stop { replica } => self.stop(replica, now),
            NodeAction::Kill { replica, death } => self.kill(replica, death),
            NodeAction::Forget { replica } => self.forget(replica),
            NodeAction::CrashLoop { replica } => {
                self.change(replica, |slot| slot.facts.crash_loop = true);
                let text = "crash-loop: too many deaths, trying again slowly".into();
                self.note_event(replica, EventKind::CrashLoop, text);
            }
        }
    }

    fn create(
        self: &Arc<Self>,
        id: ReplicaId,
        service: &ServiceName,
        number: RevisionNumber,
        generation: u64,
        now: Millis,
    ) {
        let revision = {
            let state = self.lock();
            state
                .assigned
                .services
                .get(service)
                .and_then(|a| a.groups.get(&number))
                .map(|g| Arc::clone(&g.revision))
        };
        let Some(revision) = revision else { return };
        let facts = facts::created(id, service.clone(), number, generation, now);
        {
            let mut state = self.lock();
            state.next_id = state.next_id.max(id.0 + 1);
            let slot = Slot {
                facts,
                revision: Arc::clone(&revision),
                instance: None,
                upstream: None,
                life: 0,
                cpu_counted_ns: 0,
                cpu_seen_ns: 0,
            };
            state.slots.insert(id, slot);
        }
        self.start_task(id, revision, 0);
    }

    fn restart(self: &Arc<Self>, id: ReplicaId, now: Millis) {
        let started = {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&id) else { return };
            facts::restarting(&mut slot.facts, now);
            slot.upstream = None;
            slot.life += 1;
            slot.cpu_counted_ns = 0;
            slot.cpu_seen_ns = 0;
            (Arc::clone(&slot.revision), slot.life, slot.facts.restarts_total)
        };
        self.note_event(id, EventKind::Restarting, format!("restart {}", started.2));
        self.start_task(id, started.0, started.1);
    }

    fn admit(&self, id: ReplicaId, now: Millis) {
        let mut state = self.lock();
        let State { slots, services, .. } = &mut *state;
        let Some(slot) = slots.get_mut(&id) else { return };
        let (Some(instance), Some(service)) = (&slot.instance, services.get(&slot.facts.service)) else {
            return;
        };
        let upstream = slot.upstream.get_or_insert_with(|| {
            let counters = self.tools.metrics.revision(&slot.facts.service, slot.facts.revision);
            let spec = &slot.revision.spec;
            let upstream = Upstream::new(
                id,
                slot.facts.revision,
                Arc::clone(instance),
                spec.limits.concurrency,
                counters,
            );
            upstream.set_failure_limit(spec.traffic.consecutive_failures);
            upstream
        });
        service.admit(Arc::clone(upstream));
        facts::admitted(&mut slot.facts, now);
        drop(state);
        self.note_event(id, EventKind::Serving, "serving".into());
    }

    fn eject(&self, id: ReplicaId, until: Millis, now: Millis) {
        let left = words::duration(until.since(now));
        let failures = self
            .lock()
            .slots
            .get(&id)
            .map_or(0, |s| s.observe().consecutive_failures);
        self.leave_routes(id, |facts| facts::ejected(facts, until, now));
        let of = self
            .lock()
            .slots
            .get(&id)
            .map(|s| (s.facts.service.clone(), s.facts.revision, s.upstream.clone()));
        if let Some((service, revision, upstream)) = of {
            self.tools.metrics.revision(&service, revision).ejected();
            upstream.inspect(|u| u.forgive());
        }
        let text = format!("ejected for {left}: {failures} calls in a row failed");
        self.note_event(id, EventKind::Ejected, text);
    }

    fn take_back(&self, id: ReplicaId, now: Millis) {
        let mut state = self.lock();
        let State { slots, services, .. } = &mut *state;
        let Some(slot) = slots.get_mut(&id) else { return };
        if let (Some(upstream), Some(service)) = (&slot.upstream, services.get(&slot.facts.service)) {
            upstream.forgive();
            service.admit(Arc::clone(upstream));
        }
        facts::returned(&mut slot.facts, now);
        drop(state);
        self.note_event(id, EventKind::Serving, "serving again after its ejection".into());
    }

    fn leave_routes(&self, id: ReplicaId, record: impl FnOnce(&mut Replica)) {
        let mut state = self.lock();
        let State { slots, services, .. } = &mut *state;
        let Some(slot) = slots.get_mut(&id) else { return };
        if let Some(service) = services.get(&slot.facts.service) {
            service.remove(id);
        }
        record(&mut slot.facts);
    }

    fn drain(&self, id: ReplicaId, until: Millis, now: Millis) {
        self.leave_routes(id, |facts| facts::draining(facts, until, now));
        let upstream = self.lock().slots.get(&id).and_then(|s| s.upstream.clone());
        self.note_event(id, EventKind::Draining, "draining".into());
        if let Some(upstream) = upstream {
            let wake = Arc::clone(&self.tools.wake);
            let left = self.tools.clock.until(until);
            tokio::spawn(async move {
                // The planner comes by itself at `until`: this task only brings the end forward, and ends then.
                let _ = tokio::time::timeout(left, upstream.idle()).await;
                wake.notify_one();
            });
        }
    }

    fn stop(self: &Arc<Self>, id: ReplicaId, now: Millis) {
        self.leave_routes(id, |facts| facts::stopping(facts, now));
        let taken = self.lock().slots.get_mut(&id).map(|slot| {
            self.count_cpu(slot);
            (slot.instance.take(), slot.life)
        });
        let Some((instance, life)) = taken else { return };
        let agent = Arc::clone(self);
        self.tools.guests.spawn(async move {
            if let Some(instance) = instance {
                instance.stop(std::time::Duration::ZERO).await;
            }
            agent.die(id, life, Death::Stopped);
            agent.tools.wake.notify_one();
        });
    }

    fn kill(self: &Arc<Self>, id: ReplicaId, death: Death) {
        self.leave_routes(id, |_| {});
        let taken = self.lock().slots.get_mut(&id).map(|slot| {
            // Calls that trap must not end those beside them: they have the drain's time, while the replica lives anew.
            let grace = match death {
                Death::Traps { .. } => slot.revision.spec.traffic.drain,
                _ => std::time::Duration::ZERO,
            };
            self.count_cpu(slot);
            (slot.instance.take(), slot.life, grace)
        });
        let Some((instance, life, grace)) = taken else { return };
        self.die(id, life, death);
        if let Some(instance) = instance {
            self.tools.guests.spawn(async move { instance.stop(grace).await });
        }
    }

    /// The metrics read an instance's processor time now and then: what is left of it when it goes is counted here.
    fn count_cpu(&self, slot: &mut Slot) {
        let metrics = self.tools.metrics.revision(&slot.facts.service, slot.facts.revision);
        metrics.add_cpu(slot.uncounted_cpu());
    }

    /// Records a death of this life; one that belongs to an older life is none.
    pub(super) fn die(&self, id: ReplicaId, life: u64, death: Death) {
        let at = self.tools.clock.monotonic();
        let text = words::death(&death);
        {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&id) else { return };
            if slot.life != life || matches!(slot.facts.phase, Phase::Dead { .. }) {
                return;
            }
            slot.instance = None;
            slot.upstream = None;
            facts::died(&mut slot.facts, death.clone(), &slot.revision.spec.restart, at);
        }
        let kind = if death == Death::Stopped {
            EventKind::Stopped
        } else {
            EventKind::Died
        };
        if kind == EventKind::Died {
            self.report_death(id, &death);
        }
        self.note_event(id, kind, text);
    }

    fn report_death(&self, id: ReplicaId, death: &Death) {
        let of = self
            .lock()
            .slots
            .get(&id)
            .map(|s| (s.facts.service.clone(), s.facts.revision));
        let Some((service, revision)) = of else { return };
        self.tools.crashes.record(&service, CrashKind::Death, || Crash {
            kind: CrashKind::Death,
            service: service.clone(),
            revision,
            replica: id,
            reason: words::death(death),
            limit: matches!(death, Death::NoMemory).then(|| narae_runtime::Limit::MemoryBudget.name()),
            backtrace: Vec::new(),
        });
    }

    fn forget(&self, id: ReplicaId) {
        self.lock().slots.remove(&id);
    }

    fn probe(self: &Arc<Self>, id: ReplicaId, probe: Probing, now: Millis) {
        let found = {
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&id) else { return };
            let Some(instance) = slot.instance.clone() else { return };
            facts::probing(&mut slot.facts, probe, now);
            (instance, Arc::clone(&slot.revision), slot.life)
        };
        self.probe_task(id, probe, found);
    }

    fn change(&self, id: ReplicaId, edit: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.lock().slots.get_mut(&id) {
            edit(slot);
        }
    }

    pub(super) fn note_event(&self, id: ReplicaId, kind: EventKind, text: String) {
        let of = self
            .lock()
            .slots
            .get(&id)
            .map(|s| (s.facts.service.clone(), s.facts.revision));
        if let Some((service, revision)) = of {
            self.tools.events.record(
                kind,
                Some(&service),
                Occurrence::new(text).revision(revision).replica(id),
            );
        }
    }
}
