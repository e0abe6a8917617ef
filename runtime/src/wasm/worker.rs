//! The 0.3 way: one instance serves many requests, several at once, driven by a task of its own.
//!
//! wasmtime-wasi-http's `handler` has such a worker, and this one follows it; its own task is what lets us charge each
//! poll of the guest to the thread's clock, see a client leave, and tell every request why its worker died. A worker
//! takes requests from the replica's queue, runs while there is work, and ends when it has served enough, was idle for
//! a second, or the replica stops.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, Stream as _};
use http_body_util::BodyExt as _;
use tokio::sync::{Notify, oneshot};
use wasmtime::component::Accessor;
use wasmtime::{AsContextMut as _, Store};
use wasmtime_wasi_http::handler::{Prepared, Proxy};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{WasiBody, WasiHttpView as _};

use super::ambient::Ambient;
use super::call::{self, Metered};
use super::fate::{Answer, Fate};
use super::head::{self, Inbound, bad};
use super::program::Pre;
use super::replica::{Permit, Replica};
use super::shelf::{self, SHARDS};
use super::store::{self, Exceeded, Meter, StoreData};
use super::trap;
use crate::error::{CallError, Limit, StartError};
use crate::http::{Request, Response};

/// Ticks after which an idle worker ends: one second.
const IDLE_TICKS: u64 = 100;
/// Ticks that a worker may be late in ending a request that ran out of its time, before it is ended itself.
const LATE_TICKS: u64 = 50;
/// How often a worker that sleeps looks at the clock.
const GLANCE: Duration = Duration::from_millis(250);

/// The workers of one replica. A worker belongs to the runtime of the request that it was made for, so each thread has
/// a lane of its own: a request never waits for another core to wake up.
pub struct Workers {
    replica: Weak<Replica>,
    lanes: [Lane; SHARDS],
    idle: AtomicU64,
    uses: u32,
    at_once: usize,
    most_idle: u64,
}

/// Requests that wait, and the workers that may take them.
#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<Job>>,
    pushed: Notify,
    /// Workers that would take a request now.
    available: AtomicUsize,
    /// Workers that have not had their first turn.
    starting: AtomicUsize,
}

/// One request on its way to a worker.
struct Job {
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Result<http::Response<WasiBody>, CallError>>,
    /// Ends when nobody waits for the answer any more.
    gone: oneshot::Receiver<()>,
    /// The worker that took it.
    taken: Arc<OnceLock<Arc<Fate>>>,
}

impl Workers {
    pub fn new(replica: Weak<Replica>, limits: &crate::guest::Limits, uses: u32) -> Self {
        Self {
            replica,
            lanes: Default::default(),
            idle: AtomicU64::new(0),
            uses,
            at_once: limits.requests_at_once.unwrap_or(16).max(1) as usize,
            most_idle: u64::from(limits.idle_instances),
        }
    }

    /// Workers that wait for work.
    pub fn idle(&self) -> u64 {
        self.idle.load(Ordering::Relaxed)
    }

    /// Proves that an instance can be made. It is not kept: a worker belongs to the runtime of its requests.
    pub async fn start(&self) -> Result<(), StartError> {
        let Some(replica) = self.replica.upgrade() else {
            return Ok(());
        };
        let store = store::make(replica.pre.engine(), &replica.parts, None);
        let meter = Arc::clone(&store.data().meter);
        meter.allow(Limit::StartTime, replica.limits.start_time);
        let (_store, made) = Metered {
            meter: &meter,
            guest: pin!(instantiate(&replica, store)),
        }
        .await;
        call::started(&replica, made.map(drop), &meter)
    }

    /// Gives a request to a worker of this thread that has room or is about to, or to a new one.
    fn push(&self, job: Job) {
        let at = shelf::shard();
        let lane = &self.lanes[at];
        let mut queue = lane.lock();
        // A burst that meets no worker must not make one for each request.
        let coming = lane.starting.load(Ordering::Relaxed) * (self.at_once - 1);
        if lane.available.load(Ordering::Relaxed) == 0 && queue.len() >= coming {
            drop(queue);
            return self.spawn(at, Some(job));
        }
        queue.push_back(job);
        drop(queue);
        lane.pushed.notify_one();
        // The last one may have become busy before the push. One that becomes so after it sees the queue.
        self.rescue(at);
    }

    /// Makes a worker for a queue that nobody will look at.
    fn rescue(&self, at: usize) {
        let lane = &self.lanes[at];
        let workers = lane.available.load(Ordering::Relaxed) + lane.starting.load(Ordering::Relaxed);
        if workers == 0 && !lane.lock().is_empty() {
            self.spawn(at, None);
        }
    }

    fn spawn(&self, at: usize, job: Option<Job>) {
        if let Some(replica) = self.replica.upgrade() {
            // Also reached from a drop at a runtime's end, where nothing can be spawned any more.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                self.lanes[at].starting.fetch_add(1, Ordering::Relaxed);
                runtime.spawn(run(replica, at, job));
            }
        }
    }
}

impl Lane {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pop(&self) -> Job {
        let mut pushed = pin!(self.pushed.notified());
        loop {
            pushed.as_mut().enable();
            if let Some(job) = self.lock().pop_front() {
                return job;
            }
            pushed.as_mut().await;
            pushed.set(self.pushed.notified());
        }
    }
}

/// Serves one request.
pub async fn call(permit: Permit, request: Request) -> Result<Response, CallError> {
    let replica = Arc::clone(&permit.0);
    let Some(workers) = &replica.workers else {
        return Err(CallError::Gone);
    };
    let is_head = request.method() == http::Method::HEAD;
    let (answer, answered) = oneshot::channel();
    let (here, gone) = oneshot::channel::<()>();
    let taken = Arc::new(OnceLock::new());
    let request = with_authority(request.map(|body| Inbound(body).boxed_unsync()));
    workers.push(Job {
        request,
        answer,
        gone,
        taken: Arc::clone(&taken),
    });
    let answered = tokio::select! {
        biased;
        answered = answered => answered,
        () = tokio::time::sleep(replica.limits.timeout) => return Err(CallError::Timeout(Limit::Timeout)),
        () = replica.cancel.cancelled() => {
            // One that no worker took never ran.
            return Err(if taken.get().is_some() { CallError::Stopped } else { CallError::Gone });
        }
    };
    drop(here);
    let (mut parts, body) = match answered {
        Ok(answer) => answer?.into_parts(),
        // The worker died, or there was none to take it.
        Err(_) => {
            let Some(fate) = taken.get() else {
                return Err(CallError::Gone);
            };
            return Err(std::future::poll_fn(|cx| fate.poll(cx))
                .await
                .unwrap_or(CallError::Stopped));
        }
    };
    let Some(fate) = taken.get() else {
        return Err(CallError::Stopped);
    };
    let length = head::check(&mut parts)?;
    let left = length.filter(|_| !is_head && parts.status != http::StatusCode::NOT_MODIFIED);
    let answer = Answer::new(body, left, Arc::clone(fate), permit);
    Ok(Response::from_parts(parts, answer.into_body().await?))
}

/// 0.3 guests read the authority from the URI, where an HTTP/1.1 request has it in `host`.
fn with_authority(request: http::Request<WasiBody>) -> http::Request<WasiBody> {
    let (mut parts, body) = request.into_parts();
    let host = parts
        .headers
        .get(http::header::HOST)
        .and_then(|host| host.to_str().ok()?.parse().ok());
    if let (None, Some(authority)) = (parts.uri.authority(), host) {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        let path = uri.path_and_query.clone();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(authority);
        uri.path_and_query
            .get_or_insert(http::uri::PathAndQuery::from_static("/"));
        parts.uri = http::Uri::from_parts(uri).unwrap_or_else(|_| path.map(http::Uri::from).unwrap_or_default());
    }
    http::Request::from_parts(parts, body)
}

async fn instantiate(replica: &Replica, mut store: Store<StoreData>) -> (Store<StoreData>, wasmtime::Result<Proxy>) {
    let made = match &replica.pre {
        Pre::Http03(pre) => pre.instantiate_async(&mut store).await.map(Proxy::P3),
        _ => Err(wasmtime::format_err!("not a wasi:http 0.3 guest")),
    };
    (store, made)
}

/// What a worker is doing, and since which tick.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Waiting for work.
    Idle,
    /// Requests have not all been answered; since the last one came.
    Requests,
    /// All were answered, and the guest goes on.
    After,
}

/// One instance and its task.
struct Worker<'a> {
    replica: &'a Replica,
    workers: &'a Workers,
    at: usize,
    fate: &'a Arc<Fate>,
    meter: &'a Meter,
    proxy: &'a Proxy,
    available: bool,
    idle: bool,
    doing: &'a Mutex<(Doing, u64)>,
    /// The guest waits for something outside, so that it may take on more. A request is taken to be bound to the
    /// processor until its guest first waits.
    may_take_more: &'a AtomicBool,
    /// Requests that ended in this turn.
    answered: &'a AtomicU32,
}

/// A worker before its first turn.
struct Starting<'a> {
    lane: &'a Lane,
    ended: bool,
}

impl Starting<'_> {
    /// True if no other worker is starting.
    fn end(&mut self) -> bool {
        self.ended = true;
        self.lane.starting.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end();
        }
    }
}

/// A worker from its first instant to its last.
async fn run(replica: Arc<Replica>, at: usize, job: Option<Job>) {
    let Some(workers) = &replica.workers else { return };
    let lane = &workers.lanes[at];
    let mut starting = Starting { lane, ended: false };
    let fate = Arc::new(Fate::default());
    if let Some(job) = &job {
        let _ = job.taken.set(Arc::clone(&fate));
    }
    let store = store::make(replica.pre.engine(), &replica.parts, None);
    let meter = Arc::clone(&store.data().meter);
    meter.allow(Limit::StartTime, replica.limits.start_time);
    let (mut store, made) = Metered {
        meter: &meter,
        guest: pin!(instantiate(&replica, store)),
    }
    .await;
    let proxy = match made {
        Ok(proxy) => proxy,
        Err(e) => {
            let error = match call::started(&replica, Err(e), &meter) {
                Err(StartError::Trap(report)) => CallError::Trap(report),
                _ => CallError::OutOfMemory,
            };
            // Nobody else is left to take what waits.
            let last = starting.end() && lane.available.load(Ordering::Relaxed) == 0;
            let waiting = if last {
                std::mem::take(&mut *lane.lock())
            } else {
                VecDeque::new()
            };
            for job in job.into_iter().chain(waiting) {
                let _ = job.answer.send(Err(error.clone()));
            }
            return;
        }
    };
    replica.count_made();
    let doing = Mutex::new((Doing::Idle, replica.shared.engines.ticks()));
    let may_take_more = AtomicBool::new(true);
    let (answered, mut charged) = (AtomicU32::new(0), meter.used_ns());
    let worker = Worker {
        replica: &replica,
        workers,
        at,
        fate: &fate,
        meter: &meter,
        proxy: &proxy,
        available: false,
        idle: false,
        doing: &doing,
        may_take_more: &may_take_more,
        answered: &answered,
    };
    let mut guest = pin!(store.run_concurrent(async move |accessor| worker.drive(accessor, job).await));
    let mut cancel = pin!(replica.cancel.cancelled());
    let mut glance = pin!(tokio::time::sleep(GLANCE));
    std::future::poll_fn(|cx| {
        fate.running.store(true, Ordering::Release);
        let polled = step(guest.as_mut(), &meter, &may_take_more, cx);
        // Requests of one instance share its time: what was spent since the last answers is theirs in equal parts.
        let calls = answered.swap(0, Ordering::Relaxed);
        if calls > 0 {
            let used = meter.used_ns();
            let spent = used.saturating_sub(std::mem::replace(&mut charged, used));
            replica.cpu_times.record_many(spent / u64::from(calls), calls);
        }
        let ended = match polled {
            Poll::Ready(Ok(Ok(()))) => Poll::Ready(None),
            Poll::Ready(Ok(Err(e)) | Err(e)) => {
                replica.count_trap();
                Poll::Ready(Some(CallError::Trap(trap::report(&e, &meter))))
            }
            Poll::Pending if cancel.as_mut().poll(cx).is_ready() => Poll::Ready(Some(CallError::Stopped)),
            Poll::Pending => look(&replica, &fate, &meter, &doing, glance.as_mut(), cx),
        };
        if let Poll::Ready(Some(error)) = &ended {
            let _ = fate.failed.set(error.clone());
        }
        fate.running.store(false, Ordering::Release);
        if !starting.ended {
            starting.end();
            workers.rescue(at);
        }
        ended.map(drop)
    })
    .await;
}

/// One turn of the guest, charged to its meter.
fn step<T>(
    mut guest: Pin<&mut impl Future<Output = T>>,
    meter: &Meter,
    more: &AtomicBool,
    cx: &mut Context<'_>,
) -> Poll<T> {
    meter.enter();
    let mut polled = guest.as_mut().poll(cx);
    // It waits for something outside; once more, so that it can ask for another request.
    if polled.is_pending() && !more.swap(true, Ordering::Relaxed) {
        polled = guest.poll(cx);
    }
    meter.leave();
    polled
}

/// Looks at the clock: has this worker been idle, silent or busy for too long?
fn look(
    replica: &Replica,
    fate: &Fate,
    meter: &Meter,
    doing: &Mutex<(Doing, u64)>,
    mut glance: Pin<&mut tokio::time::Sleep>,
    cx: &mut Context<'_>,
) -> Poll<Option<CallError>> {
    if let Some(limit) = meter.spent() {
        replica.count_trap();
        return Poll::Ready(Some(CallError::Trap(trap::report(&Exceeded(limit).into(), meter))));
    }
    while glance.as_mut().poll(cx).is_ready() {
        let later = glance.deadline() + GLANCE;
        glance.as_mut().reset(later);
    }
    let now = replica.shared.engines.ticks();
    let mut doing = doing.lock().unwrap_or_else(PoisonError::into_inner);
    let (what, since) = *doing;
    let waited = now.saturating_sub(since);
    let timeout = u64::try_from(replica.limits.timeout.as_millis() / 10).unwrap_or(u64::MAX);
    match what {
        Doing::Idle if waited > IDLE_TICKS => Poll::Ready(None),
        Doing::Requests if waited > timeout.saturating_add(LATE_TICKS) => {
            Poll::Ready(Some(CallError::Timeout(Limit::Timeout)))
        }
        // Bodies that move have no limit in time.
        Doing::After if fate.bodies.load(Ordering::Relaxed) > 0 => {
            doing.1 = now;
            Poll::Pending
        }
        Doing::After if waited > timeout => Poll::Ready(None),
        _ => Poll::Pending,
    }
}

impl<'a> Worker<'a> {
    /// Runs inside the instance's event loop: takes requests, starts them, waits for their answers.
    async fn drive(mut self, accessor: &Accessor<StoreData>, first: Option<Job>) -> wasmtime::Result<()> {
        let Proxy::P3(guest) = self.proxy else { return Ok(()) };
        let func = *guest.wasi_http_handler().func_handle().func();
        let mut running = pin!(FuturesUnordered::new());
        let (mut taken, mut may_take) = (0_u32, true);
        if let Some(job) = first {
            taken += 1;
            running.push(self.begin(accessor, job, 1));
        }
        let workers = self.workers;
        let lane = &workers.lanes[self.at];
        let mut incoming = pin!(futures::stream::unfold(lane, |lane| async move {
            Some((lane.pop().await, lane))
        }));
        std::future::poll_fn(|cx| {
            loop {
                match running.as_mut().poll_next(cx) {
                    Poll::Ready(Some(Ok(answered))) => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        if running.is_empty() {
                            self.now(Doing::After);
                        }
                        // Its client left before the answer. The guest cannot be told to stop, so this instance takes no
                        // more and ends with what it still serves.
                        may_take &= answered;
                    }
                    Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(e)),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                let ready = accessor.poll_ready_for_concurrent_call(func, cx).is_ready();
                may_take &= taken < workers.uses;
                let room = running.is_empty()
                    || (running.len() < workers.at_once && self.may_take_more.load(Ordering::Relaxed));
                self.set_available(may_take && ready && room);
                if self.available
                    && let Poll::Ready(Some(job)) = incoming.as_mut().poll_next(cx)
                {
                    taken += 1;
                    let _ = job.taken.set(Arc::clone(self.fate));
                    self.set_idle(false);
                    running.push(self.begin(accessor, job, running.len() + 1));
                    continue;
                }
                if !running.is_empty() {
                    return Poll::Pending;
                }
                let abandoned = !may_take && taken < workers.uses && self.fate.bodies.load(Ordering::Relaxed) == 0;
                if abandoned {
                    return Poll::Ready(Ok(()));
                }
                if accessor.poll_no_interesting_tasks(cx).is_pending() {
                    return Poll::Pending;
                }
                if !(may_take && ready && self.set_idle(true)) {
                    return Poll::Ready(Ok(()));
                }
                return Poll::Pending;
            }
        })
        .await
    }

    /// Starts a request in the guest. Resolves with whether it was answered, or with what killed the instance.
    fn begin<'b>(
        &self,
        accessor: &'b Accessor<StoreData>,
        job: Job,
        at_once: usize,
    ) -> impl Future<Output = wasmtime::Result<bool>> + use<'a, 'b> {
        self.may_take_more.store(false, Ordering::Relaxed);
        self.now(Doing::Requests);
        let most = u32::try_from(at_once).unwrap_or(u32::MAX);
        self.meter
            .allow_until(self.replica.limits.cpu_time.saturating_mul(most));
        let Job {
            request,
            answer,
            gone,
            taken: _,
        } = job;
        let (send, mut sent) = futures::channel::oneshot::channel();
        let proxy = self.proxy;
        let ambient = Ambient::of(&request);
        let hops = ambient.hops;
        let prepared = accessor.with(|mut access| {
            access.as_context_mut().data_mut().take_on(ambient, at_once > 1);
            Prepared::new(access.as_context_mut(), proxy, request, StoreData::http, send)
        });
        async move {
            let gone = async move {
                let _ = gone.await;
            };
            if !prepared?.run(accessor, gone).await? {
                return Ok(false);
            }
            accessor.with(|mut access| access.as_context_mut().data_mut().answered(hops));
            let answered = match sent.try_recv() {
                Ok(Some(Ok(response))) => Ok(response),
                Ok(Some(Err(e))) => match e.downcast_ref::<ErrorCode>() {
                    Some(code) => Err(bad(trap::printable(&format!(
                        "the guest answered with an error: {code:?}"
                    )))),
                    None => return Err(e),
                },
                Ok(None) | Err(_) => Err(bad("the guest returned without an answer")),
            };
            let _ = answer.send(answered);
            Ok(true)
        }
    }

    fn now(&self, doing: Doing) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = (doing, self.replica.shared.engines.ticks());
    }

    /// False where enough others are idle already.
    fn set_idle(&mut self, idle: bool) -> bool {
        if self.idle == idle {
            return true;
        }
        if idle {
            if self.workers.idle.fetch_add(1, Ordering::Relaxed) >= self.workers.most_idle {
                self.workers.idle.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
            self.now(Doing::Idle);
        } else {
            self.workers.idle.fetch_sub(1, Ordering::Relaxed);
        }
        self.idle = idle;
        true
    }

    fn set_available(&mut self, available: bool) {
        if available == self.available {
            return;
        }
        self.available = available;
        if available {
            self.workers.lanes[self.at].available.fetch_add(1, Ordering::Relaxed);
        } else {
            self.workers.lanes[self.at].available.fetch_sub(1, Ordering::Relaxed);
            // If it was the last one, what came in the meantime needs a worker of its own.
            self.workers.rescue(self.at);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.set_available(false);
        self.set_idle(false);
    }
}
