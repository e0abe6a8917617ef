//! A world in virtual time: desired state, replicas and guests that behave as scripted. Performs what the planners decide,
//! as the shells do, and judges every plan by the laws. For tests, transcripts and simulation; touches nothing real.

pub mod clock;
mod guest;
pub mod jobs;
mod load;
mod renew;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

pub use guest::{Guest, ms, replica_count, service_name, spec};
pub use load::Clients;
use narae_runtime::{Digest, Kind};
pub use rollout::Figures;

use super::check::{self, Breach, Law};
use super::{
    Assignment, Desired, DesiredService, FleetAction, FleetView, NodeAction, NodeView, Note, Plan, ReplicaIdSeed,
    facts, fleet, node, status, words,
};
use crate::model::record::Refusal;
use crate::model::{
    Death, Millis, Phase, Probing, Replica, ReplicaId, Revision, RevisionNumber, RevisionState, ServiceName,
    ServiceRecord, ServiceSpec, Why,
};

type FleetPlanner = Box<dyn Fn(&Desired, &FleetView, Millis) -> Plan<FleetAction>>;
type Observer = Box<dyn Fn(&Desired, &mut FleetView, Millis)>;
type NodePlanner = Box<dyn Fn(&Assignment, &NodeView, Millis) -> Plan<NodeAction>>;

/// The world. Fields that a test may set are public.
pub struct World {
    pub now: Millis,
    pub desired: Desired,
    pub view: FleetView,
    pub guests: BTreeMap<(ServiceName, RevisionNumber), Guest>,
    /// So many replicas fit into memory.
    pub memory: Option<u32>,
    /// Since then no request comes to what gates measure.
    pub quiet_from: Option<Millis>,
    /// What happened, one line each; only while `tracing`.
    pub trace: Vec<String>,
    pub tracing: bool,
    /// Laws that were broken so far.
    pub breaches: Vec<Breach>,
    /// Rounds of planning so far.
    pub rounds: u64,
    /// The planners; a test puts a broken one in to see that the laws catch it.
    pub fleet: FleetPlanner,
    pub node: NodePlanner,
    /// The wall clock and the schedules.
    pub clock: clock::Clockwork,
    /// What brings the view up to date before each plan.
    pub observer: Observer,
    loads: load::Loads,
    seed: ReplicaIdSeed,
    agenda: BTreeMap<(Millis, u64), Event>,
    events: u64,
    wake_at: Option<Millis>,
    notes: BTreeSet<String>,
}

/// What will happen by itself, to one life of a replica.
#[derive(Clone, Debug)]
struct Event {
    replica: ReplicaId,
    life: u64,
    what: Happens,
}

#[derive(Clone, Debug)]
enum Happens {
    StartEnds,
    ProbeEnds,
    LivenessEnds,
    FailsInARow,
    Dies(Death),
    TrapsInARow,
    StopEnds,
}

/// More rounds than this without time going on: the planners do not come to rest.
const ROUNDS: u32 = 200;
const PROBE: Duration = Duration::from_millis(1);
const STOP: Duration = Duration::from_millis(1);
const TRAFFIC: Duration = Duration::from_millis(50);

impl Default for World {
    fn default() -> Self {
        Self::new(1)
    }
}

impl World {
    /// Empty. `seed` drives jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            now: Millis(0),
            desired: Desired::default(),
            view: FleetView::default(),
            guests: BTreeMap::new(),
            memory: None,
            quiet_from: None,
            trace: Vec::new(),
            tracing: false,
            breaches: Vec::new(),
            rounds: 0,
            fleet: Box::new(fleet::fleet),
            node: Box::new(node::node),
            clock: clock::Clockwork::default(),
            observer: Box::new(fleet::observe),
            loads: load::Loads::default(),
            seed: ReplicaIdSeed {
                first: 1,
                jitter_seed: seed,
            },
            agenda: BTreeMap::new(),
            events: 0,
            wake_at: None,
            notes: BTreeSet::new(),
        }
    }

    /// One service whose first revision has proved itself.
    pub fn with_serving(name: &str, guest: Guest, replicas: u32) -> Self {
        let mut world = Self::default();
        world.deploy(name, guest, |spec| spec.replicas = replica_count(replicas));
        world.advance(Duration::from_secs(2));
        world
    }

    // What people ask for.

    /// A further revision, from the newest one's file (or the defaults) changed by `edit`.
    pub fn deploy(&mut self, name: &str, guest: Guest, edit: impl FnOnce(&mut ServiceSpec)) -> &mut Self {
        let newest = self
            .desired
            .services
            .get(&service_name(name))
            .and_then(|s| s.revisions.values().next_back());
        let mut spec = newest.map_or_else(|| spec(name), |r| r.spec.clone());
        edit(&mut spec);
        self.put(spec, guest, "deploy".into())
    }

    /// A further revision that is as revision `to` was.
    pub fn undo(&mut self, name: &str, to: u64) -> &mut Self {
        let (name, to) = (service_name(name), RevisionNumber(to));
        let old = self
            .desired
            .services
            .get(&name)
            .and_then(|s| s.revisions.get(&to))
            .map(|r| r.spec.clone());
        let guest = self.guests.get(&(name, to)).cloned().unwrap_or_default();
        match old {
            Some(spec) => self.put(spec, guest, format!("undo to {to}")),
            None => self,
        }
    }

    fn put(&mut self, spec: ServiceSpec, guest: Guest, cause: String) -> &mut Self {
        let (name, at) = (spec.name.clone(), self.wall());
        self.steady_from_now(&name);
        let service = self
            .desired
            .services
            .entry(name.clone())
            .or_insert_with(|| DesiredService {
                record: ServiceRecord {
                    name: name.clone(),
                    wanted: RevisionNumber(0),
                    stable: None,
                    next_revision: RevisionNumber(1),
                    scaled: None,
                    scaled_under: None,
                    scheduled: Vec::new(),
                    scalings: 0,
                    rollout: None,
                    stopped: false,
                    generation: 0,
                    deleting: false,
                    grace_ms: None,
                    created_at: at,
                    changed_at: at,
                },
                revisions: BTreeMap::new(),
            });
        let record = &mut service.record;
        if let Some(before) = service.revisions.get_mut(&record.wanted)
            && before.state == RevisionState::Pending
        {
            Arc::make_mut(before).state = RevisionState::Superseded { at };
        }
        let number = record.next_revision;
        record.next_revision.0 += 1;
        (record.wanted, record.stopped, record.deleting) = (number, false, false);
        let digest = Digest::of(&[]);
        let source = String::new();
        let state = RevisionState::Pending;
        let revision = Revision {
            service: name.clone(),
            number,
            digest,
            kind: Kind::Http02,
            spec,
            source,
            created_at: at,
            cause,
            state,
            secrets: BTreeMap::new(),
            accepted: None,
            renewed: false,
        };
        service.revisions.insert(number, Arc::new(revision));
        self.guests.insert((name, number), guest);
        self.settle()
    }

    pub fn scale(&mut self, name: &str, replicas: u32) -> &mut Self {
        self.record(name, |r| {
            r.scaled = Some(replica_count(replicas));
            r.scaled_under = Some(r.wanted);
            r.scheduled.clear();
            r.scalings += 1;
        })
    }

    pub fn restart(&mut self, name: &str) -> &mut Self {
        self.record(name, |r| r.generation += 1)
    }

    pub fn stop(&mut self, name: &str) -> &mut Self {
        self.record(name, |r| r.stopped = true)
    }

    pub fn start(&mut self, name: &str) -> &mut Self {
        self.record(name, |r| r.stopped = false)
    }

    pub fn delete(&mut self, name: &str) -> &mut Self {
        self.record(name, |r| r.deleting = true)
    }

    /// Any change of a service's record.
    pub fn record(&mut self, name: &str, edit: impl FnOnce(&mut ServiceRecord)) -> &mut Self {
        self.steady_from_now(&service_name(name));
        if let Some(service) = self.desired.services.get_mut(&service_name(name)) {
            edit(&mut service.record);
        }
        self.settle()
    }

    // What befalls it.

    /// The replica dies now.
    pub fn kill(&mut self, id: u64, death: Death) -> &mut Self {
        self.died(ReplicaId(id), death);
        self.settle()
    }

    /// Its calls have failed as often in a row as its file allows.
    pub fn failing(&mut self, id: u64) -> &mut Self {
        self.happens(ReplicaId(id), Happens::FailsInARow);
        self.settle()
    }

    /// So many requests are in flight in the replica.
    pub fn busy(&mut self, id: u64, in_flight: u64) -> &mut Self {
        if let Some(r) = self.replica_mut(ReplicaId(id)) {
            r.in_flight = in_flight;
        }
        self.settle()
    }

    /// These replicas are there, however they came to be.
    pub fn put_replicas(&mut self, mut replicas: Vec<Replica>) -> &mut Self {
        replicas.sort_by_key(|r| r.id);
        self.seed.first = replicas
            .last()
            .map_or(self.seed.first, |r| self.seed.first.max(r.id.0.saturating_add(1)));
        self.view.replicas = replicas;
        self.settle()
    }

    /// All guests of a revision behave like this from now on; those in the routes too.
    pub fn behave(&mut self, name: &str, revision: u64, guest: Guest) -> &mut Self {
        self.guests
            .insert((service_name(name), RevisionNumber(revision)), guest);
        self
    }

    /// The process ends and starts again: no replica is left, and nothing that was remembered beside the store.
    pub fn reboot(&mut self) -> &mut Self {
        self.say(|| "the process starts again".into());
        self.view = FleetView::default();
        self.agenda.clear();
        self.reboot_clock();
        self.settle()
    }

    /// Time goes on without anyone looking.
    pub fn leap(&mut self, by: Duration) -> &mut Self {
        self.now = self.now.plus(by);
        self.clock.done.caught_up.clear();
        self.deliver();
        self.settle()
    }

    /// Time goes on; everything that is due happens when it is due. Not further than to planners that find no rest.
    pub fn advance(&mut self, by: Duration) -> &mut Self {
        let until = self.now.plus(by);
        while self.breaches.iter().all(|b| b.law != Law::L5) {
            let event = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = [event, self.wake_at]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= until);
            let Some(next) = next else { break };
            if next <= self.now && event.is_none_or(|at| at > self.now) {
                self.breach(
                    Law::L3,
                    format!("asks to be woken at {} ms, now is {} ms", next.0, self.now.0),
                );
                self.wake_at = None;
                continue;
            }
            self.now = self.now.max(next);
            self.deliver();
            self.settle();
        }
        self.now = until;
        self
    }

    pub fn advance_secs(&mut self, secs: u64) -> &mut Self {
        self.advance(Duration::from_secs(secs))
    }

    /// Whether nothing is under way or awaited, probes apart.
    pub fn settled(&self) -> bool {
        self.wake_at.is_none() && self.agenda.is_empty()
    }

    // What one sees.

    pub fn replicas(&self) -> &[Replica] {
        &self.view.replicas
    }

    /// Revisions in the routes, one for each replica, sorted.
    pub fn serving(&self, name: &str) -> Vec<u64> {
        let serves = |r: &&Replica| r.service.as_str() == name && matches!(r.phase, Phase::Serving { .. });
        let mut found: Vec<u64> = self.view.replicas.iter().filter(serves).map(|r| r.revision.0).collect();
        found.sort_unstable();
        found
    }

    /// Why the newest refused revision was refused.
    pub fn refusal(&self, name: &str) -> Option<Why> {
        self.desired
            .services
            .get(&service_name(name))?
            .revisions
            .values()
            .rev()
            .find_map(|r| match &r.state {
                RevisionState::Refused(refusal) => Some(refusal.why),
                _ => None,
            })
    }

    pub fn stable(&self, name: &str) -> Option<u64> {
        self.desired
            .services
            .get(&service_name(name))?
            .record
            .stable
            .map(|n| n.0)
    }

    /// `healthy 3/3`, `degraded 2/3: reason`.
    pub fn state(&self, name: &str) -> String {
        let Some(service) = self.desired.services.get(&service_name(name)) else {
            return "gone".into();
        };
        let s = status::state(
            service,
            self.view.autoscaled(&service.record.name),
            &self.view.replicas,
            self.now,
        );
        let mut text = format!("{} {}/{}", s.state.as_str(), s.serving, s.wanted);
        if s.extra > 0 {
            let _ = write!(text, " (+{})", s.extra);
        }
        if let Some(reason) = s.reason {
            let _ = write!(text, ": {reason}");
        }
        text
    }

    // How it goes on.

    /// Plans and acts until there is nothing more to do at this moment.
    pub fn settle(&mut self) -> &mut Self {
        for _ in 0..ROUNDS {
            self.rounds += 1;
            let (scheduled, look_at) = self.clockwork();
            self.observe();
            self.measure();
            let plan = (self.fleet)(&self.desired, &self.view, self.now);
            self.breaches
                .extend(check::fleet_breaches(&self.desired, &self.view, &plan, self.now));
            let mut idle = plan.actions.is_empty() && !scheduled;
            let mut wake = [plan.wake_at, look_at].into_iter().flatten().min();
            let mut notes = plan.notes;
            for action in plan.actions {
                self.act_fleet(action);
            }
            let view = NodeView {
                replicas: std::mem::take(&mut self.view.replicas),
                next_id: self.seed,
            };
            let plan = (self.node)(&self.view.assigned, &view, self.now);
            self.breaches
                .extend(check::node_breaches(&self.view.assigned, &view, &plan, self.now));
            self.view.replicas = view.replicas;
            idle &= plan.actions.is_empty();
            wake = [wake, plan.wake_at].into_iter().flatten().min();
            notes.extend(plan.notes);
            for action in plan.actions {
                self.act_node(action);
            }
            self.take_note(&notes);
            if idle {
                self.wake_at = [wake, self.tick()].into_iter().flatten().min();
                return self;
            }
        }
        self.breach(Law::L5, format!("no rest after {ROUNDS} rounds at {} ms", self.now.0));
        self.wake_at = None;
        self
    }

    fn act_fleet(&mut self, action: FleetAction) {
        let at = self.wall();
        match action {
            FleetAction::Prove { service, revision } => {
                self.say(|| format!("prove {service}/{revision}"));
                if let Some(s) = self.desired.services.get_mut(&service) {
                    s.record.stable = Some(revision);
                    if let Some(r) = s.revisions.get_mut(&revision) {
                        Arc::make_mut(r).state = RevisionState::Proved { at };
                    }
                }
            }
            FleetAction::Refuse {
                service,
                revision,
                why,
                detail,
                back_to,
            } => {
                self.say(|| {
                    let back = back_to.map_or_else(|| "no way back".into(), |n| format!("back to {n}"));
                    format!("refuse {service}/{revision} ({}): {detail}; {back}", words::why(why))
                });
                if let Some(s) = self.desired.services.get_mut(&service) {
                    if let Some(r) = s.revisions.get_mut(&revision) {
                        Arc::make_mut(r).state = RevisionState::Refused(Refusal { why, detail, at });
                    }
                    s.record.wanted = back_to.unwrap_or(s.record.wanted);
                }
            }
            FleetAction::Step {
                service,
                revision,
                step,
            } => self.act_step(&service, revision, step),
            FleetAction::Forget { service } => {
                self.say(|| format!("forget {service}"));
                self.desired.services.remove(&service);
                self.desired.schedules.remove(&service);
            }
            FleetAction::Assign { assignment } => {
                if self.tracing {
                    self.say_assignment(&assignment);
                }
                self.view.assigned = assignment;
            }
        }
    }

    fn act_node(&mut self, action: NodeAction) {
        let now = self.now;
        let id = check::named(&action);
        match action {
            NodeAction::Create {
                service,
                revision,
                generation,
                ..
            } => {
                self.say(|| format!("create {id} of {service}/{revision}"));
                self.seed.first = self.seed.first.max(id.0.saturating_add(1));
                self.view
                    .replicas
                    .push(facts::created(id, service, revision, generation, now));
                self.start_task(id);
            }
            NodeAction::Restart { .. } => {
                self.say(|| format!("restart {id}"));
                self.edit(id, |r| facts::restarting(r, now));
                self.start_task(id);
            }
            NodeAction::Probe { probe, .. } => {
                self.edit(id, |r| facts::probing(r, probe, now));
                let ends = match probe {
                    Probing::Liveness => Happens::LivenessEnds,
                    _ => Happens::ProbeEnds,
                };
                self.later(id, PROBE, ends);
            }
            NodeAction::Ready { .. } => {
                let revision = self.revision_of(id);
                let readiness = revision.as_ref().and_then(|r| r.spec.readiness.as_ref());
                self.edit(id, |r| facts::ready(r, readiness, now));
            }
            NodeAction::Admit { .. } => {
                self.say(|| format!("admit {id}"));
                self.edit(id, |r| facts::admitted(r, now));
                let guest = self.guest_of(id);
                if let Some((life, death)) = guest.dies {
                    self.later(id, life, Happens::Dies(death));
                }
                self.traffic(id);
            }
            NodeAction::Withdraw { .. } => {
                self.say(|| format!("withdraw {id}"));
                self.edit(id, |r| facts::withdrawn(r, now));
            }
            NodeAction::Eject { until, .. } => {
                self.say(|| format!("eject {id} until {} ms", until.0));
                self.edit(id, |r| facts::ejected(r, until, now));
            }
            NodeAction::Return { .. } => {
                self.say(|| format!("return {id}"));
                self.edit(id, |r| facts::returned(r, now));
                self.traffic(id);
            }
            NodeAction::Drain { until, .. } => {
                self.say(|| format!("drain {id} until {} ms", until.0));
                self.edit(id, |r| facts::draining(r, until, now));
            }
            NodeAction::Stop { .. } => {
                self.say(|| format!("stop {id}"));
                self.edit(id, |r| facts::stopping(r, now));
                self.later(id, STOP, Happens::StopEnds);
            }
            NodeAction::Kill { death, .. } => {
                self.say(|| format!("kill {id}"));
                self.died(id, death);
            }
            NodeAction::Forget { .. } => {
                self.say(|| format!("forget {id}"));
                self.view.replicas.retain(|r| r.id != id);
                self.agenda.retain(|_, e| e.replica != id);
            }
            NodeAction::CrashLoop { .. } => {
                self.say(|| format!("crash-loop {id}"));
                self.edit(id, |r| r.crash_loop = true);
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            let event = entry.remove();
            let alive = self
                .replica(event.replica)
                .is_some_and(|r| r.restarts_total == event.life);
            if alive {
                self.happens(event.replica, event.what);
            }
        }
    }

    fn happens(&mut self, id: ReplicaId, what: Happens) {
        let (now, guest) = (self.now, self.guest_of(id));
        let Some(phase) = self.replica(id).map(|r| r.phase.clone()) else {
            return;
        };
        match what {
            Happens::StartEnds if matches!(phase, Phase::Starting { .. }) => {
                let full = self.memory.is_some_and(|most| self.in_memory() >= most);
                match guest.start {
                    _ if full => self.died(id, Death::NoMemory),
                    Ok(()) => {
                        self.say(|| format!("{id} started"));
                        self.edit(id, |r| facts::started(r, now));
                    }
                    Err(death) => self.died(id, death),
                }
            }
            Happens::ProbeEnds => {
                let revision = self.revision_of(id);
                let readiness = revision.as_ref().and_then(|r| r.spec.readiness.as_ref());
                let fine = if matches!(phase, Phase::Started { .. }) {
                    guest.answers
                } else {
                    guest.ready
                };
                let outcome = if fine { Ok(()) } else { Err("status 503".into()) };
                self.edit(id, |r| facts::probed(r, outcome, readiness, now));
            }
            Happens::Dies(death) if matches!(phase, Phase::Serving { .. } | Phase::Idle { .. }) => self.died(id, death),
            Happens::LivenessEnds => {
                let outcome = if guest.alive { Ok(()) } else { Err("status 500".into()) };
                self.edit(id, |r| facts::lived(r, Some(outcome)));
            }
            Happens::FailsInARow if matches!(phase, Phase::Serving { .. }) => {
                let limit = self.revision_of(id).map_or(0, |r| r.spec.traffic.consecutive_failures);
                self.edit(id, |r| {
                    if r.ejected_until.is_none() {
                        r.consecutive_failures = limit;
                    }
                });
            }
            Happens::TrapsInARow if matches!(phase, Phase::Serving { .. }) => {
                let limit = self.revision_of(id).map_or(0, |r| r.spec.traffic.consecutive_failures);
                self.edit(id, |r| r.consecutive_traps = limit);
            }
            Happens::StopEnds if matches!(phase, Phase::Stopping { .. }) => {
                self.say(|| format!("{id} stopped"));
                self.edit(id, |r| facts::stopped(r, now));
            }
            _ => {}
        }
    }

    fn died(&mut self, id: ReplicaId, death: Death) {
        let (now, restart) = (
            self.now,
            self.revision_of(id).map(|r| r.spec.restart.clone()).unwrap_or_default(),
        );
        if self.replica(id).is_some_and(|r| !matches!(r.phase, Phase::Dead { .. })) {
            self.say(|| format!("{id} died: {}", words::death(&death)));
            self.edit(id, |r| facts::died(r, death, &restart, now));
        }
    }

    /// What the balancer will count, once it is in the routes.
    fn traffic(&mut self, id: ReplicaId) {
        let guest = self.guest_of(id);
        if guest.traps {
            self.later(id, TRAFFIC, Happens::TrapsInARow);
        }
        if guest.fails {
            self.later(id, TRAFFIC, Happens::FailsInARow);
        }
    }

    fn start_task(&mut self, id: ReplicaId) {
        let takes = self.guest_of(id).starts_in;
        self.later(id, takes, Happens::StartEnds);
    }

    fn later(&mut self, replica: ReplicaId, wait: Duration, what: Happens) {
        let Some(life) = self.replica(replica).map(|r| r.restarts_total) else {
            return;
        };
        self.events += 1;
        self.agenda
            .insert((self.now.plus(wait), self.events), Event { replica, life, what });
    }

    fn in_memory(&self) -> u32 {
        let held = |r: &&Replica| !matches!(r.phase, Phase::Starting { .. } | Phase::Dead { .. });
        words::count(self.view.replicas.iter().filter(held).count())
    }

    fn replica(&self, id: ReplicaId) -> Option<&Replica> {
        self.view
            .replicas
            .binary_search_by_key(&id, |r| r.id)
            .ok()
            .map(|at| &self.view.replicas[at])
    }

    fn replica_mut(&mut self, id: ReplicaId) -> Option<&mut Replica> {
        self.view
            .replicas
            .binary_search_by_key(&id, |r| r.id)
            .ok()
            .map(|at| &mut self.view.replicas[at])
    }

    fn edit(&mut self, id: ReplicaId, edit: impl FnOnce(&mut Replica)) {
        if let Some(replica) = self.replica_mut(id) {
            edit(replica);
        }
    }

    fn guest_of(&self, id: ReplicaId) -> Guest {
        self.replica(id)
            .and_then(|r| self.guests.get(&(r.service.clone(), r.revision)).cloned())
            .unwrap_or_default()
    }

    fn revision_of(&self, id: ReplicaId) -> Option<Arc<Revision>> {
        let replica = self.replica(id)?;
        self.desired
            .services
            .get(&replica.service)?
            .revisions
            .get(&replica.revision)
            .cloned()
    }

    fn breach(&mut self, law: Law, text: String) {
        self.breaches.push(Breach {
            law,
            service: None,
            replica: None,
            text,
        });
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if self.tracing {
            self.trace.push(format!("{:>6} ms  {}", self.now.0, text()));
        }
    }

    fn say_assignment(&mut self, new: &Assignment) {
        let names: BTreeSet<_> = new
            .services
            .keys()
            .chain(self.view.assigned.services.keys())
            .cloned()
            .collect();
        for name in names {
            if new.services.get(&name) == self.view.assigned.services.get(&name) {
                continue;
            }
            let split = new
                .services
                .get(&name)
                .map_or_else(String::new, |a| rollout::split_words(&a.split));
            let groups: Vec<String> = new.services.get(&name).map_or_else(Vec::new, |assigned| {
                let one = |(number, group): (&RevisionNumber, &super::Group)| {
                    let trial = if group.on_trial { " on trial" } else { "" };
                    let retiring = if group.retiring { " retiring" } else { "" };
                    format!("{} of revision {number}{trial}{retiring}", group.replicas)
                };
                assigned.groups.iter().map(one).collect()
            });
            let said = if groups.is_empty() {
                "nothing".into()
            } else {
                groups.join(", ")
            };
            self.say(|| format!("assign {name}: {said}{split}"));
        }
    }

    /// Notes are told when they are new.
    fn take_note(&mut self, notes: &[Note]) {
        if !self.tracing {
            return;
        }
        let now: BTreeSet<String> = notes.iter().map(|n| format!("{}: {}", n.service, n.text)).collect();
        for text in now.difference(&std::mem::take(&mut self.notes)) {
            self.say(|| format!("  ({text})"));
        }
        self.notes = now;
    }
}
