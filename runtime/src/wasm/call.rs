//! One request of a 0.2 guest. The caller's own future drives the guest until its head, the response body drives it from
//! there: no task, no channel, no wake-up between them. Dropping either ends the guest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::ambient::Ambient;
use super::head::{self, Inbound, bad};
use super::program::Pre;
use super::replica::{Permit, Replica};
use super::store::{self, Exceeded, Meter, StoreData};
use super::trap;
use crate::error::{CallError, Limit, StartError};
use crate::http::{Body, BodyError, Request, Response};

/// A body up to this size whose guest is done with it goes out in one piece.
const WHOLE_BYTES: usize = 64 << 10;

/// An instance ready for a request.
pub struct Live {
    pub store: Store<StoreData>,
    proxy: Proxy,
}

/// Instantiates this replica's guest under `start_time` and the memory budget. The meter is given out before, so that
/// who drives the future can charge it.
async fn instantiate(replica: &Replica, store: Store<StoreData>) -> (Store<StoreData>, wasmtime::Result<Proxy>) {
    let mut store = store;
    let made = match &replica.pre {
        Pre::Http02(pre) => pre.instantiate_async(&mut store).await,
        _ => Err(wasmtime::format_err!("not a wasi:http 0.2 guest")),
    };
    (store, made)
}

/// The first instance of a replica: proves that it can be made. Kept where instances are reused.
pub async fn start(replica: &Arc<Replica>) -> Result<(), StartError> {
    let store = store::make(replica.pre.engine(), &replica.parts, None);
    let meter = Arc::clone(&store.data().meter);
    meter.allow(Limit::StartTime, replica.limits.start_time);
    let (store, made) = Metered {
        meter: &meter,
        guest: std::pin::pin!(instantiate(replica, store)),
    }
    .await;
    match made {
        Ok(proxy) => {
            replica.put_back(Live { store, proxy }, 0);
            started(replica, Ok(()), &meter)
        }
        Err(e) => started(replica, Err(e), &meter),
    }
}

/// Counts an instantiation and says why it failed.
pub fn started(replica: &Replica, made: wasmtime::Result<()>, meter: &Meter) -> Result<(), StartError> {
    match made {
        Ok(()) => {
            replica.count_made();
            Ok(())
        }
        Err(e) if is_short(&e, meter) => Err(StartError::OutOfMemory),
        Err(e) => {
            replica.count_trap();
            Err(StartError::Trap(trap::report(&e, meter)))
        }
    }
}

/// Charges the meter while the guest has the thread.
pub struct Metered<'a, F> {
    pub meter: &'a Meter,
    pub guest: Pin<&'a mut F>,
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.meter.enter();
        let polled = self.guest.as_mut().poll(cx);
        self.meter.leave();
        polled
    }
}

/// Serves one request.
pub async fn call(permit: Permit, request: Request) -> Result<Response, CallError> {
    let mut run = Run::new(permit, request);
    let (parts, body) = std::future::poll_fn(|cx| run.poll_head(cx)).await?.into_parts();
    Answer::of(run, parts, body)
}

/// How a guest's run ended.
enum Ended {
    /// No instance could be made; nothing of the guest ran.
    Short,
    /// Instantiation or the handler failed.
    Failed(wasmtime::Error),
    /// The request could not be given to the guest.
    Refused(Arc<str>),
    /// The handler returned.
    Returned(Live),
}

/// Makes an instance and serves the request with it.
async fn fresh(replica: Arc<Replica>, mut store: Store<StoreData>, request: Request) -> Ended {
    let meter = Arc::clone(&store.data().meter);
    let began = replica.shared.engines.ticks();
    let mut made;
    (store, made) = instantiate(&replica, store).await;
    if made.as_ref().is_err_and(|e| is_short(e, &meter)) && replica.shared.shed() {
        // Idle instances held what this one needs.
        drop(store);
        store = store::again(replica.pre.engine(), &replica.parts, &meter);
        (store, made) = instantiate(&replica, store).await;
    }
    match made {
        Ok(proxy) => {
            replica.count_made();
            if replica.shared.engines.ticks() != began {
                // The thread's clock is asked only if it can matter: less than a tick is not worth a system call.
                meter.settle();
            }
            meter.allow(Limit::CpuTime, replica.limits.cpu_time);
            // The permit beside this future holds the replica while the guest runs.
            drop((replica, meter));
            handle(Live { store, proxy }, request).await
        }
        Err(e) if is_short(&e, &meter) => Ended::Short,
        Err(e) => Ended::Failed(e),
    }
}

/// True where nothing of the guest failed: the node had no room for an instance.
fn is_short(error: &wasmtime::Error, meter: &Meter) -> bool {
    trap::is_shortage(error) || meter.refused() == Some(Limit::MemoryBudget)
}

/// Gives the request to the guest's handler and waits until that returns.
async fn handle(mut live: Live, request: Request) -> Ended {
    let Live { store, proxy } = &mut live;
    let https = request.uri().scheme() == Some(&http::uri::Scheme::HTTPS);
    let scheme = if https { Scheme::Https } else { Scheme::Http };
    let meter = Arc::clone(&store.data().meter);
    store.data_mut().take_on(Ambient::of(&request), false);
    let mut view = store.data_mut().http();
    let given = view
        .new_incoming_request(scheme, request.map(Inbound))
        .and_then(|request| {
            let out = view.new_response_outparam_from_callback(move |head| meter.set_head(head))?;
            Ok((request, out))
        });
    let (request, out) = match given {
        Ok(given) => given,
        Err(e) => return Ended::Refused(trap::printable(&e.to_string()).into()),
    };
    match proxy
        .wasi_http_incoming_handler()
        .call_handle(store, request, out)
        .await
    {
        Ok(()) => Ended::Returned(live),
        Err(e) => Ended::Failed(e),
    }
}

/// A guest on its way through one request.
struct Run {
    guest: Pin<Box<dyn Future<Output = Ended> + Send>>,
    meter: Arc<Meter>,
    waits: Option<Waits>,
    /// Set once the handler returned.
    returned: Option<Live>,
    /// Requests this instance has served, with this one.
    served: u32,
    is_head: bool,
    has_head: bool,
    permit: Permit,
}

impl Run {
    fn new(permit: Permit, request: Request) -> Self {
        let replica = &permit.0;
        let is_head = request.method() == http::Method::HEAD;
        let (meter, served, guest): (_, _, Pin<Box<dyn Future<Output = Ended> + Send>>) = match replica.warm() {
            Some((mut live, served)) => {
                live.store.set_epoch_deadline(1);
                let meter = Arc::clone(&live.store.data().meter);
                meter.allow(Limit::CpuTime, replica.limits.cpu_time);
                // What an earlier request left behind is not an answer to this one.
                drop(meter.take_head());
                (meter, served + 1, Box::pin(handle(live, request)))
            }
            None => {
                let store = store::make(replica.pre.engine(), &replica.parts, None);
                let meter = Arc::clone(&store.data().meter);
                meter.allow(Limit::StartTime, replica.limits.start_time);
                (meter, 1, Box::pin(fresh(Arc::clone(replica), store, request)))
            }
        };
        Self {
            guest,
            meter,
            waits: None,
            returned: None,
            served,
            is_head,
            has_head: false,
            permit,
        }
    }

    /// Lets the guest run. Ready once, when its handler returned or failed.
    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.meter.enter();
        let polled = self.guest.as_mut().poll(cx);
        self.meter.leave();
        if polled.is_ready() {
            self.permit.0.cpu_times.record(self.meter.used_ns());
        }
        Poll::Ready(match polled {
            Poll::Ready(Ended::Returned(live)) => {
                self.returned = Some(live);
                Ok(())
            }
            Poll::Ready(Ended::Short) => Err(CallError::OutOfMemory),
            Poll::Ready(Ended::Refused(why)) => Err(CallError::BadAnswer(why)),
            Poll::Ready(Ended::Failed(e)) => Err(self.failed(&e)),
            Poll::Pending => match self.meter.spent() {
                Some(limit) => {
                    self.permit.0.cpu_times.record(self.meter.used_ns());
                    Err(self.failed(&Exceeded(limit).into()))
                }
                None => return Poll::Pending,
            },
        })
    }

    fn failed(&self, error: &wasmtime::Error) -> CallError {
        let replica = &self.permit.0;
        replica.count_trap();
        replica.failed(self.served);
        CallError::Trap(trap::report(error, &self.meter))
    }

    /// The clock outside the guest, and the replica's end. Made when a guest first waits: most never do.
    fn poll_waits(&mut self, cx: &mut Context<'_>) -> Poll<CallError> {
        let replica = &self.permit.0;
        let timeout = (!self.has_head).then_some(replica.limits.timeout);
        let waits = self.waits.get_or_insert_with(|| Waits::new(timeout, replica));
        let ended = ready!(waits.poll(cx));
        if matches!(ended, CallError::Timeout(_)) {
            replica.failed(self.served);
        }
        Poll::Ready(ended)
    }

    /// Runs the guest until it has given its head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<http::Response<HyperOutgoingBody>, CallError>> {
        let polled = self.poll_guest(cx)?;
        // (A guest that trapped right after its head has sent nothing yet: the client gets a clean error from above.)
        let Some(head) = self.meter.take_head() else {
            return match polled {
                Poll::Ready(()) => Poll::Ready(Err(bad("the guest returned without an answer"))),
                Poll::Pending => self.poll_waits(cx).map(Err),
            };
        };
        // The head is there: only the replica's end counts from now on.
        self.has_head = true;
        self.waits = None;
        Poll::Ready(head.map_err(|code| bad(trap::printable(&format!("the guest answered with an error: {code:?}")))))
    }

    /// The body went out whole: the instance may serve again, once its handler has returned.
    fn settle(mut self) {
        if let Some(live) = self.returned.take() {
            return self.permit.0.put_back(live, self.served);
        }
        // Work after the answer, as the guest's log or a call that it still owes. It keeps its permit and its limits.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let timeout = self.permit.0.limits.timeout;
        runtime.spawn(async move {
            let rest = std::future::poll_fn(|cx| match self.poll_guest(cx) {
                Poll::Pending => self.poll_waits(cx).map(Err),
                done => done,
            });
            if let Ok(Ok(())) = tokio::time::timeout(timeout, rest).await
                && let Some(live) = self.returned.take()
            {
                self.permit.0.put_back(live, self.served);
            }
        });
    }
}

/// What ends a guest that waits.
struct Waits {
    timer: Option<Pin<Box<Sleep>>>,
    cancel: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Waits {
    fn new(timeout: Option<Duration>, replica: &Replica) -> Self {
        Self {
            timer: timeout.map(|after| Box::pin(tokio::time::sleep(after))),
            cancel: Box::pin(replica.cancel.clone().cancelled_owned()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CallError> {
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(CallError::Timeout(Limit::Timeout));
        }
        self.cancel.as_mut().poll(cx).map(|()| CallError::Stopped)
    }
}

/// Whether more of a body can come.
enum End {
    /// The guest has neither finished nor dropped it.
    Open,
    Clean,
    Failed(CallError),
    /// The failure was told.
    Told,
}

/// A guest's body, and the guest that makes it.
struct Answer {
    run: Option<Run>,
    body: HyperOutgoingBody,
    /// Taken from the guest, not yet from us.
    frames: VecDeque<Frame<Bytes>>,
    end: End,
    /// Bytes that its head still promises.
    left: Option<u64>,
    /// Stays until the last byte is out, also when the instance serves others by then.
    permit: Option<Permit>,
}

impl Answer {
    /// The answer as ours: whole if everything is there and small, else a stream.
    fn of(run: Run, mut parts: http::response::Parts, body: HyperOutgoingBody) -> Result<Response, CallError> {
        let length = head::check(&mut parts)?;
        let has_body = !run.is_head && parts.status != http::StatusCode::NOT_MODIFIED;
        let left = length.filter(|_| has_body);
        let mut answer = Self {
            run: Some(run),
            body,
            frames: VecDeque::new(),
            end: End::Open,
            left,
            permit: None,
        };
        answer.drain();
        match answer.end {
            End::Failed(e) => return Err(e),
            End::Clean => match (answer.whole()?, answer.run.take()) {
                (Some(whole), Some(run)) => {
                    run.settle();
                    return Ok(Response::from_parts(parts, Body::full(whole)));
                }
                (_, run) => {
                    answer.run = run;
                    answer.release();
                }
            },
            End::Open | End::Told => {}
        }
        Ok(Response::from_parts(parts, Body::stream(answer)))
    }

    /// All bytes in one piece, if there are few and no trailers.
    fn whole(&mut self) -> Result<Option<Bytes>, CallError> {
        let mut size = 0;
        for frame in &self.frames {
            match frame.data_ref() {
                Some(data) => size += data.len(),
                None => return Ok(None),
            }
        }
        if self.left.is_some_and(|left| left != size as u64) {
            return Err(wrong_length());
        }
        if size > WHOLE_BYTES {
            return Ok(None);
        }
        let mut pieces = self.frames.drain(..).filter_map(|frame| frame.into_data().ok());
        let first = pieces.next().unwrap_or_default();
        if first.len() == size {
            return Ok(Some(first));
        }
        let mut all = BytesMut::with_capacity(size);
        all.extend_from_slice(&first);
        pieces.for_each(|piece| all.extend_from_slice(&piece));
        Ok(Some(all.freeze()))
    }

    /// Takes what the guest has made so far. Only the guest fills the body and only we run the guest, so nobody needs to
    /// be woken.
    fn drain(&mut self) {
        let mut nobody = Context::from_waker(Waker::noop());
        while let End::Open = self.end {
            // Unconstrained: where tokio thinks that this task has done enough it says "pending" for a body that is there.
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            match std::pin::pin!(tokio::task::unconstrained(frame)).poll(&mut nobody) {
                Poll::Ready(Some(Ok(frame))) => self.frames.push_back(frame),
                Poll::Ready(Some(Err(e))) => {
                    self.end = End::Failed(bad(trap::printable(&format!("the guest gave up its body: {e}"))));
                }
                Poll::Ready(None) => self.end = End::Clean,
                Poll::Pending if self.run.as_ref().is_some_and(|run| run.returned.is_some()) => {
                    self.end = End::Failed(bad("the guest left its body unfinished"));
                }
                Poll::Pending => return,
            }
        }
    }

    /// Nothing more comes from the guest: let it go, keep the permit.
    fn release(&mut self) {
        if let Some(run) = self.run.take() {
            self.permit = Some(Permit::again(&run.permit));
            run.settle();
        }
    }

    fn fail(&mut self, error: CallError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.end = End::Told;
        self.run = None;
        self.frames.clear();
        Poll::Ready(Some(Err(BodyError::Guest(error))))
    }

    /// Counts a frame against the promised length and prepares its trailers.
    fn give(&mut self, mut frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(trailers) = frame.trailers_mut() {
            head::strip(trailers);
        }
        if let (Some(left), Some(data)) = (self.left, frame.data_ref()) {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => self.left = Some(rest),
                None => return self.fail(wrong_length()),
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

pub fn wrong_length() -> CallError {
    bad("the body is not as long as content-length says")
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.frames.pop_front() {
                return this.give(frame);
            }
            match std::mem::replace(&mut this.end, End::Told) {
                End::Told => return Poll::Ready(None),
                End::Failed(e) => return this.fail(e),
                End::Clean => {
                    this.release();
                    if this.left.is_some_and(|left| left > 0) {
                        return this.fail(wrong_length());
                    }
                    return Poll::Ready(None);
                }
                End::Open => this.end = End::Open,
            }
            // What was made before the guest runs again comes first: a reader that is slow holds the guest back.
            this.drain();
            if !this.frames.is_empty() || !matches!(this.end, End::Open) {
                continue;
            }
            let Some(run) = &mut this.run else {
                return Poll::Ready(None);
            };
            let polled = run.poll_guest(cx);
            let waited = if polled.is_pending() {
                run.poll_waits(cx)
            } else {
                Poll::Pending
            };
            if let Poll::Ready(Err(e)) = polled {
                return this.fail(e);
            }
            this.drain();
            if polled.is_pending() && this.frames.is_empty() && matches!(this.end, End::Open) {
                return match waited {
                    Poll::Ready(e) => this.fail(e),
                    Poll::Pending => Poll::Pending,
                };
            }
            if matches!(this.end, End::Clean) {
                this.release();
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && matches!(self.end, End::Clean) && self.left.is_none_or(|left| left == 0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
