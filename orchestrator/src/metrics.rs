//! What is counted, and its OpenMetrics text. The request path touches atomics only: names are looked up when a replica
//! is made, never when a request comes. Labels are services and live revisions, so they are bounded by what is deployed.

mod encode;
mod histogram;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

pub use histogram::{Counts, Histogram};

use crate::model::{Millis, RevisionNumber, ServiceName};
use crate::proxy::{Counters, Reason};

/// The window of [`ServiceRates`]: a minute, in so many snapshots of so long.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);
const SNAPSHOTS: usize = 13;

/// Errors by reason.
#[derive(Debug)]
struct Errors([AtomicU64; Reason::ALL.len()]);

impl Default for Errors {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Errors {
    fn add(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }
}

/// Phases of replicas, as labels.
pub const PHASES: [&str; 7] = ["starting", "started", "idle", "serving", "draining", "stopping", "dead"];

/// Counters of one revision.
#[derive(Debug, Default)]
pub struct RevisionMetrics {
    /// By the first digit of the status, less one.
    classes: [AtomicU64; 5],
    errors: Errors,
    duration: Histogram,
    in_flight: AtomicI64,
    cpu_ns: AtomicU64,
    memory_bytes: AtomicU64,
    restarts: AtomicU64,
    ejections: AtomicU64,
    /// In the order of [`PHASES`].
    replicas: [AtomicU64; PHASES.len()],
    history: Mutex<VecDeque<(Millis, Counts)>>,
}

impl Counters for RevisionMetrics {
    fn started(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    fn finished(&self, status: u16, elapsed: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.answered_with(status);
        self.duration.observe(elapsed);
    }

    fn failed(&self, reason: Reason) {
        self.in_flight.fetch_sub(1, Relaxed);
        if reason != Reason::ClientGone {
            self.answered_with(reason.status().as_u16());
        }
        self.errors.add(reason);
    }
}

impl RevisionMetrics {
    fn answered_with(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, self.classes.len()) - 1;
        self.classes[class].fetch_add(1, Relaxed);
    }

    /// Restarts of the replicas there are.
    pub fn set_restarts(&self, n: u64) {
        self.restarts.store(n, Relaxed);
    }

    /// A replica was taken out of the routes for its failures.
    pub fn ejected(&self) {
        self.ejections.fetch_add(1, Relaxed);
    }

    /// Processor time beyond what was told before.
    pub fn add_cpu(&self, ns: u64) {
        self.cpu_ns.fetch_add(ns, Relaxed);
    }

    /// Memory of all replicas now.
    pub fn set_memory(&self, bytes: u64) {
        self.memory_bytes.store(bytes, Relaxed);
    }

    /// Replicas now, in the order of [`PHASES`].
    pub fn set_replicas(&self, by_phase: [u64; PHASES.len()]) {
        for (gauge, n) in self.replicas.iter().zip(by_phase) {
            gauge.store(n, Relaxed);
        }
    }

    pub fn in_flight(&self) -> u64 {
        // A reader may see the end of a request before its start.
        self.in_flight.load(Relaxed).max(0).cast_unsigned()
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Relaxed)
    }

    pub fn restarts(&self) -> u64 {
        self.restarts.load(Relaxed)
    }

    /// What a gate judges by. Calls that reached no guest are no figure of its revision.
    fn standing(&self) -> Standing {
        let unseen = self.errors.get(Reason::Busy) + self.errors.get(Reason::Gone);
        Standing {
            requests: self.answered().saturating_sub(unseen),
            errors: self.classes[4].load(Relaxed).saturating_sub(unseen),
            traps: self.errors.get(Reason::Trap) + self.errors.get(Reason::Limit),
            durations: self.duration.counts(),
        }
    }

    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.classes.iter().map(|class| class.load(Relaxed)).sum()
    }

    /// Calls begun so far.
    fn begun(&self) -> u64 {
        self.answered() + self.errors.get(Reason::ClientGone) + self.in_flight()
    }

    fn snapshot(&self, now: Millis) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.back().is_none_or(|(at, _)| now.since(*at) >= SNAPSHOT_EVERY) {
            history.push_back((now, self.duration.counts()));
            if history.len() > SNAPSHOTS {
                history.pop_front();
            }
        }
    }

    /// What happened in the window, and how long it is.
    fn lately(&self, now: Millis) -> Option<(Duration, Counts)> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, old) = history.front()?;
        Some((now.since(*at), self.duration.counts().since(old)))
    }
}

/// Where the counters of a revision stand.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Ended requests, but those whose client left.
    pub requests: u64,
    /// Answered with 500 or above, or failed.
    pub errors: u64,
    /// Trapped, by a limit or by itself.
    pub traps: u64,
    pub durations: Counts,
}

/// Counters of one service that belong to no revision: requests that found no replica.
#[derive(Debug, Default)]
pub struct ServiceMetrics {
    errors: Errors,
    queued: AtomicI64,
    wanted: AtomicU64,
    /// What the files of each volume cost, in bytes.
    volumes: Mutex<BTreeMap<String, u64>>,
}

impl ServiceMetrics {
    /// Requests waiting for a replica with room.
    pub fn set_waiting(&self, n: u64) {
        self.queued.store(i64::try_from(n).unwrap_or(i64::MAX), Relaxed);
    }

    /// Replicas that are wanted now, of all revisions.
    pub fn set_wanted(&self, n: u64) {
        self.wanted.store(n, Relaxed);
    }

    /// What the files of each open volume cost, in bytes.
    pub fn set_volumes(&self, used: BTreeMap<String, u64>) {
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = used;
    }

    /// A request ended before a revision was chosen.
    pub fn failed(&self, reason: Reason) {
        self.errors.add(reason);
    }

    /// Waiting now.
    pub fn waiting(&self) -> u64 {
        self.queued.load(Relaxed).max(0).cast_unsigned()
    }
}

/// Counters of the node.
#[derive(Debug, Default)]
pub struct NodeMetrics {
    /// Open client connections.
    connections: AtomicU64,
    data_path_panics: AtomicU64,
    refusals: Mutex<Vec<(Reason, u64)>>,
    memory_budget_bytes: AtomicU64,
    memory_used_bytes: AtomicU64,
    panics: AtomicU64,
    compiled: AtomicU64,
    loaded: AtomicU64,
}

impl NodeMetrics {
    /// What the data path counted by itself: open connections, panics caught there, and requests that reached no replica.
    pub fn set_data_path(&self, connections: u64, panics: u64, refusals: Vec<(Reason, u64)>) {
        self.connections.store(connections, Relaxed);
        self.data_path_panics.store(panics, Relaxed);
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner) = refusals;
    }

    /// A task panicked and was caught.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// `engine.memory_budget`, and what guests use of it now.
    pub fn set_memory(&self, budget_bytes: u64, used_bytes: u64) {
        self.memory_budget_bytes.store(budget_bytes, Relaxed);
        self.memory_used_bytes.store(used_bytes, Relaxed);
    }

    /// Modules compiled so far, and those whose compiled code was kept from before.
    pub fn set_code(&self, compiled: u64, loaded: u64) {
        self.compiled.store(compiled, Relaxed);
        self.loaded.store(loaded, Relaxed);
    }
}

/// A service over the last minute (the time since its first request, if that is shorter).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServiceRates {
    pub requests_per_second: f64,
    /// Milliseconds, within 10 %; `None` without requests.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub in_flight: u64,
    pub queued: u64,
    pub memory_bytes: u64,
    pub restarts: u64,
}

#[derive(Debug, Default)]
struct Service {
    own: Arc<ServiceMetrics>,
    revisions: BTreeMap<RevisionNumber, Arc<RevisionMetrics>>,
}

type Services = BTreeMap<ServiceName, Service>;

/// All counters of this process.
#[derive(Debug)]
pub struct Metrics {
    node: Arc<NodeMetrics>,
    services: Arc<RwLock<Services>>,
    registry: prometheus_client::registry::Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let (node, services) = (Arc::<NodeMetrics>::default(), Arc::<RwLock<Services>>::default());
        let registry = encode::registry(node.clone(), services.clone());
        Self {
            node,
            services,
            registry,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Services> {
        self.services.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn node(&self) -> &Arc<NodeMetrics> {
        &self.node
    }

    /// Whether anything is counted for this service.
    pub fn knows(&self, service: &ServiceName) -> bool {
        self.read().contains_key(service)
    }

    /// The service's own counters. Takes a lock: keep what it returns.
    pub fn service(&self, service: &ServiceName) -> Arc<ServiceMetrics> {
        if let Some(found) = self.read().get(service) {
            return found.own.clone();
        }
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        services.entry(service.clone()).or_default().own.clone()
    }

    /// The revision's counters. Takes a lock: keep what it returns.
    pub fn revision(&self, service: &ServiceName, revision: RevisionNumber) -> Arc<RevisionMetrics> {
        if let Some(found) = self
            .read()
            .get(service)
            .and_then(|service| service.revisions.get(&revision))
        {
            return found.clone();
        }
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        services
            .entry(service.clone())
            .or_default()
            .revisions
            .entry(revision)
            .or_default()
            .clone()
    }

    /// Calls begun so far, for each revision that is counted.
    pub fn begun(&self, service: &ServiceName) -> Vec<(RevisionNumber, u64)> {
        let services = self.read();
        let revisions = services.get(service).map(|s| s.revisions.iter());
        revisions.into_iter().flatten().map(|(n, r)| (*n, r.begun())).collect()
    }

    /// Where the revision's counters stand; zeros for one that is not known.
    pub fn standing(&self, service: &ServiceName, revision: RevisionNumber) -> Standing {
        let services = self.read();
        let found = services.get(service).and_then(|s| s.revisions.get(&revision));
        found.map_or_else(Standing::default, |metrics| metrics.standing())
    }

    /// Drops all revisions of the service but these; requests that still run count on unseen.
    pub fn keep(&self, service: &ServiceName, live: &[RevisionNumber]) {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(service) = services.get_mut(service) {
            service.revisions.retain(|revision, _| live.contains(revision));
        }
    }

    /// Drops a deleted service.
    pub fn forget(&self, service: &ServiceName) {
        self.services
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(service);
    }

    /// Remembers where the counters stand; called about once a second.
    pub fn tick(&self, now: Millis) {
        for service in self.read().values() {
            for revision in service.revisions.values() {
                revision.snapshot(now);
            }
        }
    }

    /// The last minute of a service; zeros for one that is not known.
    pub fn rates(&self, service: &ServiceName, now: Millis) -> ServiceRates {
        let services = self.read();
        let Some(service) = services.get(service) else {
            return ServiceRates::default();
        };
        let mut rates = ServiceRates {
            queued: service.own.waiting(),
            ..ServiceRates::default()
        };
        let mut counts = Counts::default();
        for revision in service.revisions.values() {
            rates.in_flight += revision.in_flight();
            rates.memory_bytes += revision.memory_bytes();
            rates.restarts += revision.restarts();
            if let Some((window, lately)) = revision.lately(now) {
                // A window of a moment would show a burst as a rate.
                rates.requests_per_second += lately.total() as f64 / window.as_secs_f64().max(1.0);
                counts.add(&lately);
            }
        }
        rates.p50_ms = counts.quantile_ms(0.50);
        rates.p99_ms = counts.quantile_ms(0.99);
        rates
    }

    /// The OpenMetrics text, ending with `# EOF`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests;
