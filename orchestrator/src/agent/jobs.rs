//! The node's side of runs: attempts are tasks that end by recording a fact. Decides nothing (`plan::job` does) and writes
//! nothing down (the controller does).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use narae_runtime::{CallError, Digest, Limit, Spent, Usage};
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::crashes::{Crash, CrashKind};
use crate::events::Occurrence;
use crate::model::job::{Attempt as Ended, AttemptExit};
use crate::model::{EventKind, JobRun, Millis, ReplicaId, Revision, RevisionNumber, RunId, ServiceName, Timestamp};
use crate::plan::ReplicaIdSeed;
use crate::plan::job::{self, Attempt, AttemptPhase, JobsView, Preparation, Underway};

/// Commands compute as long as they may: so many threads, apart from those that start and probe replicas.
const THREADS: usize = 2;

/// What the node knows about runs.
#[derive(Default)]
pub(super) struct Jobs {
    state: Mutex<State>,
    /// Made for the first attempt.
    threads: OnceLock<Threads>,
}

#[derive(Default)]
struct State {
    view: JobsView,
    handles: BTreeMap<ReplicaId, Handle>,
    /// Code that is needed again soon.
    opened: BTreeMap<(ServiceName, RunId), Digest>,
    preparing: BTreeMap<ServiceName, Digest>,
}

/// One attempt: what ends it, and what it used.
struct Handle {
    service: ServiceName,
    run: RunId,
    revision: RevisionNumber,
    stop: CancellationToken,
    spent: Spent,
    /// Processor time that the metrics have already.
    counted_ns: u64,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
}

impl Handle {
    fn cpu_ns(&self) -> u64 {
        self.spent.cpu_ns.load(Ordering::Relaxed)
    }

    fn uncounted_cpu(&mut self) -> u64 {
        let now = self.cpu_ns();
        now.saturating_sub(std::mem::replace(&mut self.counted_ns, now))
    }
}

/// A runtime must not be dropped inside another: it is let go in the background.
struct Threads(Option<tokio::runtime::Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// One attempt under way, for `status`.
#[derive(Clone, Debug)]
pub struct Running {
    pub id: ReplicaId,
    pub run: RunId,
    pub revision: RevisionNumber,
    pub since: Millis,
    /// `running`, `stopping`, `ended`.
    pub phase: &'static str,
    pub usage: Usage,
}

/// What one attempt is to do.
pub struct Start {
    pub run: Arc<JobRun>,
    pub revision: Arc<Revision>,
    pub attempt: ReplicaId,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Digests whose compiled code is kept.
    pub(super) fn digests(&self) -> Vec<Digest> {
        let state = self.lock();
        state.opened.values().chain(state.preparing.values()).copied().collect()
    }

    /// Processor time not told yet and memory now, by revision.
    pub(super) fn measure(&self) -> BTreeMap<(ServiceName, RevisionNumber), (u64, u64)> {
        let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for handle in self.lock().handles.values_mut() {
            let sum = sums.entry((handle.service.clone(), handle.revision)).or_default();
            sum.0 += handle.uncounted_cpu();
            sum.1 += handle.spent.memory_bytes.load(Ordering::Relaxed);
        }
        sums
    }
}

impl Agent {
    /// What is under way.
    pub fn jobs_view(&self) -> JobsView {
        let (first, jitter_seed) = {
            let state = self.lock();
            (state.next_id, state.jitter_seed)
        };
        JobsView {
            next_id: ReplicaIdSeed { first, jitter_seed },
            ..self.jobs.lock().view.clone()
        }
    }

    /// Runs that were open when this process started: told once.
    pub fn found_runs(&self, found: BTreeSet<(ServiceName, RunId)>) {
        self.jobs.lock().view.found = found;
    }

    /// Attempts of a service that are under way.
    pub fn attempts(&self, service: &ServiceName) -> Vec<Running> {
        let state = self.jobs.lock();
        let runs = state.view.runs.get(service).into_iter().flatten();
        let attempts = runs.flat_map(|(run, under_way)| under_way.attempts.iter().map(move |(id, a)| (*run, *id, a)));
        attempts
            .filter_map(|(run, id, attempt)| {
                let handle = state.handles.get(&id)?;
                Some(Running {
                    id,
                    run,
                    revision: handle.revision,
                    since: attempt.since,
                    phase: match attempt.phase {
                        AttemptPhase::Running => "running",
                        AttemptPhase::Killing => "stopping",
                        AttemptPhase::Ended(_) => "ended",
                    },
                    usage: Usage {
                        cpu_ns: handle.cpu_ns(),
                        memory_bytes: handle.spent.memory_bytes.load(Ordering::Relaxed),
                        ..Usage::default()
                    },
                })
            })
            .collect()
    }

    /// Forgets what it knows about preparing anything but these.
    pub fn keep_prepared(&self, pending: &BTreeMap<&ServiceName, RevisionNumber>) {
        let mut state = self.jobs.lock();
        state
            .view
            .prepared
            .retain(|name, (number, _)| pending.get(name) == Some(number));
        state.preparing.retain(|name, _| pending.contains_key(name));
    }

    /// Compiles and links a revision, and remembers whether it could.
    pub fn prepare_job(self: &Arc<Self>, revision: Arc<Revision>) {
        {
            let mut state = self.jobs.lock();
            let (service, number) = (revision.service.clone(), revision.number);
            state.preparing.insert(service.clone(), revision.digest);
            state.view.prepared.insert(service, (number, Preparation::UnderWay));
        }
        let agent = Arc::clone(self);
        self.tools.guests.spawn(async move {
            let preparing = Arc::clone(&agent);
            let mine = Arc::clone(&revision);
            let prepared = tokio::spawn(async move { preparing.prepared(&mine).await.map(drop) }).await;
            let prepared = prepared.unwrap_or_else(|_| {
                agent.tools.metrics.node().panicked();
                Err("the task that prepares it panicked: a bug in narae".into())
            });
            let outcome = prepared.map_or_else(Preparation::Failed, |()| Preparation::Done);
            let mut state = agent.jobs.lock();
            if let Some((number, preparation)) = state.view.prepared.get_mut(&revision.service)
                && *number == revision.number
            {
                *preparation = outcome;
            }
            drop(state);
            agent.tools.wake.notify_one();
        });
    }

    /// Takes up an open run.
    pub fn open_run(&self, run: &JobRun, digest: Option<Digest>, now: Millis) {
        let mut state = self.jobs.lock();
        let key = (run.service.clone(), run.id);
        state.view.found.remove(&key);
        if let Some(digest) = digest {
            state.opened.insert(key, digest);
        }
        let under_way = Underway {
            opened: now,
            before_ms: run.ran_ms,
            failed_at: None,
            attempts: BTreeMap::new(),
        };
        let runs = state.view.runs.entry(run.service.clone()).or_default();
        runs.entry(run.id).or_insert(under_way);
    }

    /// Nothing of it is under way any more.
    pub fn close_run(&self, service: &ServiceName, run: RunId) {
        let mut state = self.jobs.lock();
        state.opened.remove(&(service.clone(), run));
        let under_way = state.view.runs.get_mut(service).and_then(|runs| runs.remove(&run));
        for id in under_way.iter().flat_map(|u| u.attempts.keys()) {
            state.handles.remove(id);
        }
        state.view.runs.retain(|_, runs| !runs.is_empty());
    }

    /// Starts one attempt.
    pub fn start_attempt(self: &Arc<Self>, start: Start, now: Millis) {
        let Start { run, revision, attempt } = start;
        {
            let mut state = self.lock();
            state.next_id = state.next_id.max(attempt.0.saturating_add(1));
        }
        let (stop, spent) = (CancellationToken::new(), Spent::default());
        {
            let mut state = self.jobs.lock();
            let runs = state.view.runs.get_mut(&run.service);
            let Some(under_way) = runs.and_then(|runs| runs.get_mut(&run.id)) else {
                return;
            };
            let phase = AttemptPhase::Running;
            under_way.attempts.insert(attempt, Attempt { since: now, phase });
            let handle = Handle {
                service: run.service.clone(),
                run: run.id,
                revision: revision.number,
                stop: stop.clone(),
                spent: spent.clone(),
                counted_ns: 0,
                started_at: self.tools.clock.wall(),
                ended_at: None,
            };
            state.handles.insert(attempt, handle);
        }
        let agent = Arc::clone(self);
        let threads = self.jobs.threads.get_or_init(|| Threads(threads().ok()));
        let guests = threads.0.as_ref().map_or(&self.tools.guests, |t| t.handle());
        guests.spawn(async move {
            let running = Arc::clone(&agent);
            let (of, args) = (Arc::clone(&revision), run.args.clone());
            let task = tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => AttemptExit::Killed,
                    exit = running.attempt(attempt, &of, args, spent) => exit,
                }
            });
            let exit = task.await.unwrap_or_else(|_| {
                agent.tools.metrics.node().panicked();
                AttemptExit::Trapped {
                    reason: "the attempt's task panicked: a bug in narae".into(),
                }
            });
            agent.attempt_ended(&run, attempt, exit);
            agent.tools.wake.notify_one();
        });
    }

    /// Runs the command to its end.
    async fn attempt(
        &self,
        id: ReplicaId,
        revision: &Revision,
        args: Option<Vec<String>>,
        spent: Spent,
    ) -> AttemptExit {
        let cannot = |reason| AttemptExit::CannotPrepare { reason };
        let prepared = match self.prepared(revision).await {
            Ok(prepared) => prepared,
            Err(reason) => return cannot(reason),
        };
        let mut guest = match self.guest(id, revision, prepared).await {
            Ok(guest) => guest,
            Err(death) => return cannot(crate::plan::words::death(&death)),
        };
        if let Some(args) = args {
            guest.grants.args = args;
        }
        // The run's time is the planner's business; a command that computes all of it ends here too.
        guest.limits.cpu_time = job::job(revision).timeout;
        guest.limits.timeout = Duration::MAX;
        let ended = self.tools.backend.run_command(guest, spent).await;
        if let Err(error) = &ended {
            self.report_attempt(id, revision, error);
        }
        match ended {
            Ok(code) => AttemptExit::Exited { code },
            Err(CallError::Trap(report)) => {
                self.note_attempt_trap(id, revision, &report);
                match report.limit {
                    Some(limit) => AttemptExit::Limit {
                        limit: limit.name().to_owned(),
                    },
                    None => AttemptExit::Trapped {
                        reason: report.reason.to_string(),
                    },
                }
            }
            Err(CallError::Timeout(limit)) => AttemptExit::Limit {
                limit: limit.name().to_owned(),
            },
            Err(CallError::OutOfMemory) => AttemptExit::NoMemory,
            Err(other) => cannot(other.to_string()),
        }
    }

    /// What an attempt runs, as long as it is not written down.
    pub(super) fn attempt_digest(&self, service: &ServiceName, id: ReplicaId) -> Option<Digest> {
        let state = self.jobs.lock();
        let run = state.handles.get(&id).filter(|h| h.service == *service)?.run;
        state.opened.get(&(service.clone(), run)).copied()
    }

    /// A crash report, of what an attempt did itself.
    fn report_attempt(&self, id: ReplicaId, revision: &Revision, error: &CallError) {
        let (reason, limit, backtrace) = match error {
            CallError::Trap(report) => (report.reason.to_string(), report.limit, &*report.backtrace),
            CallError::Timeout(limit) => (error.to_string(), Some(*limit), &[][..]),
            CallError::OutOfMemory => (error.to_string(), Some(Limit::MemoryBudget), &[][..]),
            _ => return,
        };
        let (kind, service) = (CrashKind::Death, &revision.service);
        self.tools.crashes.record(service, kind, || Crash {
            kind,
            service: service.clone(),
            revision: revision.number,
            replica: id,
            reason,
            limit: limit.map(|limit| limit.name()),
            backtrace: backtrace.to_vec(),
        });
    }

    fn note_attempt_trap(&self, id: ReplicaId, revision: &Revision, report: &narae_runtime::TrapReport) {
        let kind = report.limit.map_or(EventKind::Trap, |_| EventKind::Limit);
        self.tools.events.record_with(kind, Some(&revision.service), || {
            let occurrence = Occurrence {
                limit: report.limit.map(|limit| limit.name().to_owned()),
                ..Occurrence::new(format!("the command trapped: {report}"))
            };
            occurrence
                .revision(revision.number)
                .replica(id)
                .backtrace(report.backtrace.iter().cloned())
        });
    }

    fn attempt_ended(&self, run: &JobRun, id: ReplicaId, exit: AttemptExit) {
        let (now, wall) = (self.tools.clock.monotonic(), self.tools.clock.wall());
        let text = format!("run {}: attempt {}", run.id, job::exit(&exit));
        {
            let mut state = self.jobs.lock();
            if let Some(handle) = state.handles.get_mut(&id) {
                handle.ended_at = Some(wall);
                let spent = handle.uncounted_cpu();
                self.tools.metrics.revision(&run.service, run.revision).add_cpu(spent);
            }
            let runs = state.view.runs.get_mut(&run.service);
            let Some(under_way) = runs.and_then(|runs| runs.get_mut(&run.id)) else {
                return;
            };
            if exit.is_failure() {
                under_way.failed_at = Some(now);
            }
            if let Some(attempt) = under_way.attempts.get_mut(&id) {
                attempt.phase = AttemptPhase::Ended(exit);
            }
        }
        self.tools.events.record(
            EventKind::AttemptEnded,
            Some(&run.service),
            Occurrence::new(text).revision(run.revision).replica(id),
        );
    }

    /// Tells an attempt to end.
    pub fn kill_attempt(&self, service: &ServiceName, run: RunId, id: ReplicaId) {
        let mut state = self.jobs.lock();
        if let Some(handle) = state.handles.get(&id) {
            handle.stop.cancel();
        }
        let runs = state.view.runs.get_mut(service);
        let attempt = runs.and_then(|runs| runs.get_mut(&run)?.attempts.get_mut(&id));
        if let Some(attempt) = attempt.filter(|a| a.phase == AttemptPhase::Running) {
            attempt.phase = AttemptPhase::Killing;
        }
    }

    /// An attempt that has ended, as it is written down.
    pub fn ended_attempt(&self, service: &ServiceName, run: RunId, id: ReplicaId) -> Option<Ended> {
        let state = self.jobs.lock();
        let handle = state.handles.get(&id)?;
        let attempt = state.view.runs.get(service)?.get(&run)?.attempts.get(&id)?;
        let AttemptPhase::Ended(exit) = &attempt.phase else {
            return None;
        };
        Some(Ended {
            replica: id,
            exit: exit.clone(),
            started_at: handle.started_at,
            ended_at: handle.ended_at.unwrap_or(handle.started_at),
            cpu_ms: handle.cpu_ns() / 1_000_000,
        })
    }

    /// It is written down: its place is free.
    pub fn recorded_attempt(&self, service: &ServiceName, run: RunId, id: ReplicaId) {
        let mut state = self.jobs.lock();
        state.handles.remove(&id);
        let runs = state.view.runs.get_mut(service);
        if let Some(under_way) = runs.and_then(|runs| runs.get_mut(&run)) {
            under_way.attempts.remove(&id);
        }
    }

    /// Ends every attempt, when the process ends: what was under way starts again with the next one.
    pub(super) fn end_attempts(&self) {
        for handle in self.jobs.lock().handles.values() {
            tracing::debug!(service = %handle.service, run = handle.run.0, "an attempt is ended with the process");
            handle.stop.cancel();
        }
    }
}

fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("narae-jobs")
        .enable_all()
        .build()
}
