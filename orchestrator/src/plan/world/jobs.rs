//! A world of runs in virtual time: desired state, attempts that end as scripted, a store that may refuse, a process that may end.
//! Performs what the job planner decides as the shell does, and judges every plan by the laws. For tests, transcripts and
//! simulation; touches nothing real.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::{Digest, Kind};

use super::super::check::{Breach, Law};
use super::super::check_jobs::job_breaches;
use super::super::job::{self, Attempt, AttemptPhase, JobAction, JobsView, Preparation, Underway};
use super::super::{Desired, DesiredService, Plan, ReplicaIdSeed, words};
use super::{ms, service_name, spec};
use crate::model::job::{Attempt as Ended, AttemptExit};
use crate::model::record::Refusal;
use crate::model::service::{Job, World};
use crate::model::{
    JobRun, Millis, ReplicaId, Revision, RevisionNumber, RevisionState, RunId, RunState, ServiceName, ServiceRecord,
    Timestamp,
};

/// The planner, or a broken one.
pub type JobPlanner = Box<dyn Fn(&Desired, &JobsView, Millis) -> Plan<JobAction>>;

/// How the attempts of a revision behave.
#[derive(Clone, Debug)]
pub struct Command {
    /// How long one takes; `None`: for ever.
    pub takes: Option<Duration>,
    /// Its exit codes in order; the last one again and again.
    pub codes: Vec<i32>,
    /// It can be compiled and linked.
    pub compiles: bool,
}

impl Default for Command {
    fn default() -> Self {
        Self {
            takes: Some(ms(100)),
            codes: vec![0],
            compiles: true,
        }
    }
}

/// The world. Fields that a test may set are public.
pub struct JobWorld {
    pub now: Millis,
    pub desired: Desired,
    pub view: JobsView,
    pub commands: BTreeMap<(ServiceName, RevisionNumber), Command>,
    /// The store takes writes.
    pub store: bool,
    pub trace: Vec<String>,
    pub tracing: bool,
    pub breaches: Vec<Breach>,
    pub planner: JobPlanner,
    /// How often each run has ended.
    pub endings: BTreeMap<(ServiceName, RunId), u32>,
    agenda: BTreeMap<(Millis, u64), Happens>,
    events: u64,
    /// Attempts begun of each revision.
    tries: BTreeMap<(ServiceName, RevisionNumber), usize>,
    wake_at: Option<Millis>,
    notes: BTreeSet<String>,
}

#[derive(Clone, Debug)]
enum Happens {
    Prepared(ServiceName, RevisionNumber),
    Ends(ServiceName, RunId, ReplicaId, AttemptExit),
}

/// More rounds than this without time going on: the planner does not come to rest.
const ROUNDS: u32 = 200;
/// The shell comes again so soon when the store took nothing.
const RETRY: Duration = Duration::from_millis(250);
const PREPARING: Duration = Duration::from_millis(20);
const KILLING: Duration = Duration::from_millis(1);

impl JobWorld {
    /// Empty. `seed` drives jitter.
    pub fn new(seed: u64) -> Self {
        let next_id = ReplicaIdSeed {
            first: 1,
            jitter_seed: seed,
        };
        Self {
            now: Millis(0),
            desired: Desired::default(),
            view: JobsView {
                next_id,
                ..JobsView::default()
            },
            commands: BTreeMap::new(),
            store: true,
            trace: Vec::new(),
            tracing: false,
            breaches: Vec::new(),
            planner: Box::new(job::jobs),
            endings: BTreeMap::new(),
            agenda: BTreeMap::new(),
            events: 0,
            tries: BTreeMap::new(),
            wake_at: None,
            notes: BTreeSet::new(),
        }
    }

    // What people ask for.

    /// A further revision.
    pub fn deploy(&mut self, name: &str, job: Job, command: Command) -> &mut Self {
        let (service, at) = (service_name(name), self.wall());
        let entry = self.desired.services.entry(service.clone());
        let held = entry.or_insert_with(|| DesiredService {
            record: ServiceRecord {
                name: service.clone(),
                wanted: RevisionNumber(0),
                stable: None,
                next_revision: RevisionNumber(1),
                scaled: None,
                scaled_under: None,
                scheduled: Vec::new(),
                scalings: 0,
                rollout: None,
                grace_ms: None,
                stopped: false,
                generation: 0,
                deleting: false,
                created_at: at,
                changed_at: at,
            },
            revisions: BTreeMap::new(),
        });
        if held.record.deleting {
            return self;
        }
        if let Some(before) = held.revisions.get_mut(&held.record.wanted)
            && before.state == RevisionState::Pending
        {
            Arc::make_mut(before).state = RevisionState::Superseded { at };
        }
        let number = held.record.next_revision;
        held.record.next_revision.0 += 1;
        (held.record.wanted, held.record.stopped) = (number, false);
        let mut spec = spec(name);
        spec.world = World::Command;
        spec.restart.initial = Duration::from_secs(1);
        spec.job = Some(job);
        let revision = Revision {
            service: service.clone(),
            number,
            digest: Digest::of(&[]),
            kind: Kind::CommandCore,
            spec,
            source: String::new(),
            created_at: at,
            cause: "deploy".into(),
            state: RevisionState::Pending,
            secrets: BTreeMap::new(),
            accepted: None,
            renewed: false,
        };
        held.revisions.insert(number, Arc::new(revision));
        self.commands.insert((service, number), command);
        self.settle()
    }

    /// The wanted revision again, with another version of a secret: as the store does it.
    pub fn change_secret(&mut self, name: &str) -> &mut Self {
        let (service, at) = (service_name(name), self.wall());
        let Some(held) = self.desired.services.get_mut(&service).filter(|s| !s.record.deleting) else {
            return self;
        };
        let wanted = Arc::clone(&held.revisions[&held.record.wanted]);
        let number = held.record.next_revision;
        held.record.next_revision.0 += 1;
        if wanted.state == RevisionState::Pending {
            let state = RevisionState::Superseded { at };
            let before = Revision {
                state,
                ..(*wanted).clone()
            };
            held.revisions.insert(wanted.number, Arc::new(before));
        }
        held.record.wanted = number;
        let renewed = wanted.again(number, "secret db changed".into(), at);
        held.revisions.insert(number, Arc::new(renewed));
        let command = self.commands.get(&(service.clone(), wanted.number)).cloned();
        self.commands.insert((service, number), command.unwrap_or_default());
        self.settle()
    }

    /// A further run, as by hand or by a schedule.
    pub fn begin(&mut self, name: &str, cause: &str) -> &mut Self {
        let service = service_name(name);
        let held = self.desired.services.get(&service);
        let held = held.filter(|s| self.store && !s.record.stopped && !s.record.deleting);
        if let Some(revision) = held.and_then(job::runnable) {
            self.put_run(&service, revision, cause);
        }
        self.settle()
    }

    /// Asks a run to end.
    pub fn cancel(&mut self, name: &str, run: u64) -> &mut Self {
        self.edit(&service_name(name), RunId(run), |run| {
            run.cancel.get_or_insert_with(|| "it was asked to end".into());
        });
        self.settle()
    }

    /// Any change of a service's record.
    pub fn record(&mut self, name: &str, edit: impl FnOnce(&mut ServiceRecord)) -> &mut Self {
        if let Some(service) = self.desired.services.get_mut(&service_name(name)) {
            edit(&mut service.record);
        }
        self.settle()
    }

    // What befalls it.

    /// The process ends and starts again: what was under way is gone.
    pub fn reboot(&mut self) -> &mut Self {
        self.say(|| "the process starts again".into());
        let open = self
            .desired
            .runs
            .values()
            .flat_map(BTreeMap::values)
            .filter(|run| run.is_open());
        self.view = JobsView {
            found: open.map(|run| (run.service.clone(), run.id)).collect(),
            next_id: self.view.next_id,
            ..JobsView::default()
        };
        self.agenda.clear();
        self.settle()
    }

    pub fn advance(&mut self, by: Duration) -> &mut Self {
        let until = self.now.plus(by);
        while self.breaches.iter().all(|b| b.law != Law::L5) {
            let event = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let next = [event, self.wake_at].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= until) else {
                break;
            };
            if next <= self.now && event.is_none_or(|at| at > self.now) {
                self.breach(Law::L3, "asks to be woken at once, again and again".into());
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

    // What one sees.

    /// Nothing is under way or awaited.
    pub fn settled(&self) -> bool {
        self.wake_at.is_none() && self.agenda.is_empty()
    }

    pub fn run(&self, name: &str, run: u64) -> Option<&JobRun> {
        let runs = self.desired.runs.get(&service_name(name))?;
        runs.get(&RunId(run)).map(|run| &**run)
    }

    /// `running 1/2: run 1: 0 of 5 attempts succeeded`.
    pub fn state(&self, name: &str) -> String {
        let name = service_name(name);
        let Some(service) = self.desired.services.get(&name) else {
            return "gone".into();
        };
        let under_way = self.view.runs.get(&name).into_iter().flatten();
        let living = under_way
            .flat_map(|(_, u)| u.attempts.values())
            .filter(|a| !matches!(a.phase, AttemptPhase::Ended(_)));
        let none = BTreeMap::new();
        let runs = self.desired.runs.get(&name).unwrap_or(&none);
        let state = job::state(service, runs, words::count(living.count()));
        let reason = state.reason.map_or_else(String::new, |r| format!(": {r}"));
        format!("{} {}/{}{reason}", state.state.as_str(), state.serving, state.wanted)
    }

    // How it goes on.

    /// Plans and acts until there is nothing more to do at this moment.
    pub fn settle(&mut self) -> &mut Self {
        for _ in 0..ROUNDS {
            self.keep_prepared();
            let plan = (self.planner)(&self.desired, &self.view, self.now);
            self.breaches
                .extend(job_breaches(&self.desired, &self.view, &plan, self.now));
            let idle = plan.actions.is_empty();
            let mut refused = false;
            for action in plan.actions {
                refused |= !self.act(action);
            }
            let now: BTreeSet<String> = plan
                .notes
                .iter()
                .map(|n| format!("{}: {}", n.service, n.text))
                .collect();
            for text in now.difference(&std::mem::take(&mut self.notes)) {
                self.say(|| format!("  ({text})"));
            }
            self.notes = now;
            if idle || refused {
                let again = refused.then(|| self.now.plus(RETRY));
                self.wake_at = [plan.wake_at, again].into_iter().flatten().min();
                return self;
            }
        }
        self.breach(Law::L5, format!("no rest after {ROUNDS} rounds at {} ms", self.now.0));
        self.wake_at = None;
        self
    }

    fn keep_prepared(&mut self) {
        let services = &self.desired.services;
        self.view.prepared.retain(|name, (number, _)| {
            services.get(name).is_some_and(|s| {
                s.record.wanted == *number
                    && s.revisions
                        .get(number)
                        .is_some_and(|r| r.state == RevisionState::Pending)
            })
        });
    }

    /// False: the store did not take it.
    fn act(&mut self, action: JobAction) -> bool {
        let at = self.wall();
        match action {
            JobAction::Prepare { service, revision } => {
                self.say(|| format!("prepare {service}/{revision}"));
                self.view
                    .prepared
                    .insert(service.clone(), (revision, Preparation::UnderWay));
                self.later(PREPARING, Happens::Prepared(service, revision));
            }
            JobAction::Kill { service, run, attempt } => {
                self.say(|| format!("kill {attempt} of {service} run {run}"));
                if let Some(attempt) = self.attempt(&service, run, attempt) {
                    attempt.phase = AttemptPhase::Killing;
                }
                self.later(KILLING, Happens::Ends(service, run, attempt, AttemptExit::Killed));
            }
            JobAction::Start { service, run, attempt } => self.start(service, run, attempt),
            JobAction::Drop { service, run } => self.close(&service, run),
            JobAction::Open {
                service,
                run,
                lost: false,
            } => self.open(&service, run),
            // The rest is written first.
            _ if !self.store => return false,
            JobAction::Open { service, run, .. } => {
                self.edit(&service, run, |run| run.interruptions += 1);
                self.say(|| format!("take up {service} run {run}"));
                self.open(&service, run);
            }
            JobAction::Begin { service, revision } => {
                let open = self.desired.runs.get(&service).into_iter().flatten();
                let open: Vec<RunId> = open.filter(|(_, run)| run.is_open()).map(|(id, _)| *id).collect();
                for id in open {
                    self.edit(&service, id, |run| {
                        run.cancel
                            .get_or_insert_with(|| format!("revision {revision} took its place"));
                    });
                }
                self.put_run(&service, revision, "deploy");
            }
            JobAction::Prove { service, revision } => {
                self.say(|| format!("prove {service}/{revision}"));
                if let Some(s) = self.desired.services.get_mut(&service) {
                    s.record.stable = Some(revision);
                    if let Some(r) = s.revisions.get_mut(&revision) {
                        Arc::make_mut(r).state = RevisionState::Proved { at };
                    }
                }
            }
            JobAction::Refuse {
                service,
                revision,
                why,
                detail,
                back_to,
            } => {
                self.say(|| format!("refuse {service}/{revision}: {detail}"));
                if let Some(s) = self.desired.services.get_mut(&service) {
                    if let Some(r) = s.revisions.get_mut(&revision) {
                        Arc::make_mut(r).state = RevisionState::Refused(Refusal { why, detail, at });
                    }
                    s.record.wanted = back_to.unwrap_or(s.record.wanted);
                }
            }
            JobAction::Forget { service } => {
                self.say(|| format!("forget {service}"));
                self.desired.services.remove(&service);
                self.desired.runs.remove(&service);
                self.endings.retain(|(name, _), _| *name != service);
            }
            JobAction::Record {
                service,
                run,
                attempt,
                ran_ms,
            } => self.write_down(&service, run, attempt, ran_ms),
            JobAction::Finish {
                service,
                run,
                state,
                ran_ms,
            } => {
                self.edit(&service, run, |run| {
                    (run.state, run.ended_at, run.ran_ms) = (state, Some(at), ran_ms);
                });
                let ended = self.desired.runs.get(&service).and_then(|runs| runs.get(&run)).cloned();
                let why = ended.as_ref().and_then(|run| job::reason(run));
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                let word = ended.map_or("gone", |run| job::word(&run.state));
                self.say(|| format!("{service} run {run} {word}{why}"));
                *self.endings.entry((service.clone(), run)).or_default() += 1;
                self.close(&service, run);
            }
        }
        true
    }

    fn put_run(&mut self, service: &ServiceName, revision: RevisionNumber, cause: &str) {
        let at = self.wall();
        let runs = self.desired.runs.entry(service.clone()).or_default();
        let id = RunId(runs.keys().next_back().map_or(1, |id| id.0 + 1));
        let run = JobRun::begun((id, service.clone(), revision), cause.into(), None, at);
        runs.insert(id, Arc::new(run));
        self.say(|| format!("{service} run {id} of revision {revision} begins: {cause}"));
    }

    fn open(&mut self, service: &ServiceName, run: RunId) {
        let before_ms = self
            .desired
            .runs
            .get(service)
            .and_then(|runs| runs.get(&run))
            .map_or(0, |r| r.ran_ms);
        self.view.found.remove(&(service.clone(), run));
        let runs = self.view.runs.entry(service.clone()).or_default();
        runs.entry(run).or_insert(Underway {
            opened: self.now,
            before_ms,
            failed_at: None,
            attempts: BTreeMap::new(),
        });
    }

    fn close(&mut self, service: &ServiceName, run: RunId) {
        if let Some(runs) = self.view.runs.get_mut(service) {
            runs.remove(&run);
        }
        self.view.runs.retain(|_, runs| !runs.is_empty());
    }

    fn start(&mut self, service: ServiceName, run: RunId, id: ReplicaId) {
        self.view.next_id.first = self.view.next_id.first.max(id.0 + 1);
        let revision = self
            .desired
            .runs
            .get(&service)
            .and_then(|runs| Some(runs.get(&run)?.revision));
        let Some(revision) = revision else { return };
        let command = self
            .commands
            .get(&(service.clone(), revision))
            .cloned()
            .unwrap_or_default();
        let tries = self.tries.entry((service.clone(), revision)).or_default();
        let code = command.codes.get(*tries).or(command.codes.last()).copied().unwrap_or(0);
        *tries += 1;
        let since = self.now;
        if let Some(under_way) = self.view.runs.get_mut(&service).and_then(|runs| runs.get_mut(&run)) {
            let phase = AttemptPhase::Running;
            under_way.attempts.insert(id, Attempt { since, phase });
        }
        self.say(|| format!("start {id} of {service} run {run}"));
        if let Some(takes) = command.takes {
            self.later(takes, Happens::Ends(service, run, id, AttemptExit::Exited { code }));
        }
    }

    fn write_down(&mut self, service: &ServiceName, run: RunId, id: ReplicaId, ran_ms: u64) {
        let at = self.wall();
        let Some(AttemptPhase::Ended(exit)) = self.attempt(service, run, id).map(|a| a.phase.clone()) else {
            return;
        };
        let ended = Ended {
            replica: id,
            exit,
            started_at: at,
            ended_at: at,
            cpu_ms: 0,
        };
        self.edit(service, run, |run| run.count(ended, ran_ms));
        if let Some(under_way) = self.view.runs.get_mut(service).and_then(|runs| runs.get_mut(&run)) {
            under_way.attempts.remove(&id);
        }
    }

    fn attempt(&mut self, service: &ServiceName, run: RunId, id: ReplicaId) -> Option<&mut Attempt> {
        self.view.runs.get_mut(service)?.get_mut(&run)?.attempts.get_mut(&id)
    }

    fn edit(&mut self, service: &ServiceName, run: RunId, edit: impl FnOnce(&mut JobRun)) {
        let run = self.desired.runs.get_mut(service).and_then(|runs| runs.get_mut(&run));
        if let Some(run) = run.filter(|run| run.is_open()) {
            edit(Arc::make_mut(run));
        }
    }

    fn deliver(&mut self) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            match entry.remove() {
                Happens::Prepared(service, revision) => {
                    let command = self.commands.get(&(service.clone(), revision));
                    let fine = command.is_none_or(|c| c.compiles);
                    if let Some((number, preparation)) = self.view.prepared.get_mut(&service)
                        && *number == revision
                    {
                        *preparation = match fine {
                            true => Preparation::Done,
                            false => Preparation::Failed("it does not compile".into()),
                        };
                    }
                }
                Happens::Ends(service, run, id, exit) => {
                    let now = self.now;
                    let under_way = self.view.runs.get_mut(&service).and_then(|runs| runs.get_mut(&run));
                    let Some(under_way) = under_way else { continue };
                    let Some(attempt) = under_way.attempts.get_mut(&id) else {
                        continue;
                    };
                    if matches!(attempt.phase, AttemptPhase::Ended(_)) {
                        continue;
                    }
                    if exit.is_failure() {
                        under_way.failed_at = Some(now);
                    }
                    let text = format!("{id} {}", job::exit(&exit));
                    attempt.phase = AttemptPhase::Ended(exit);
                    self.say(|| text);
                }
            }
        }
    }

    fn later(&mut self, wait: Duration, what: Happens) {
        self.events += 1;
        self.agenda.insert((self.now.plus(wait), self.events), what);
    }

    fn wall(&self) -> Timestamp {
        Timestamp(i64::try_from(self.now.0).unwrap_or(i64::MAX))
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

    /// How each open and ended run is, for who looks at the end.
    pub fn open_runs(&self) -> Vec<&JobRun> {
        let runs = self.desired.runs.values().flat_map(BTreeMap::values);
        runs.filter(|run| run.state == RunState::Open)
            .map(|run| &**run)
            .collect()
    }
}
