//! Guests made of closures.

use std::sync::Arc;
use std::time::Duration;

use narae_runtime::{Body, CallError, Exit, Instance, Request, Response, Task, Usage};

use crate::model::{ReplicaId, RevisionNumber};
use crate::proxy::{Counters, Reason, Upstream};

type Answerer = dyn Fn(Request) -> Task<'static, Result<Response, CallError>> + Send + Sync;

pub struct Fake(Box<Answerer>);

impl Instance for Fake {
    fn call(&self, request: Request) -> Task<'static, Result<Response, CallError>> {
        (self.0)(request)
    }

    fn exited(&self) -> Task<'static, Exit> {
        Box::pin(std::future::pending())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn stop(&self, _: Duration) -> Task<'static, ()> {
        Box::pin(async {})
    }
}

pub fn guest<F>(answer: impl Fn(Request) -> F + Send + Sync + 'static) -> Arc<dyn Instance>
where
    F: Future<Output = Result<Response, CallError>> + Send + 'static,
{
    Arc::new(Fake(Box::new(move |request| Box::pin(answer(request)))))
}

pub fn hello() -> Arc<dyn Instance> {
    guest(|_| async { Ok(Response::new(Body::full("hello\n"))) })
}

pub struct Uncounted;

impl Counters for Uncounted {
    fn started(&self) {}
    fn finished(&self, _: u16, _: Duration) {}
    fn failed(&self, _: Reason) {}
}

pub fn upstream(id: u64, concurrency: u32, instance: Arc<dyn Instance>) -> Arc<Upstream> {
    upstream_of(1, id, concurrency, instance)
}

pub fn upstream_of(revision: u64, id: u64, concurrency: u32, instance: Arc<dyn Instance>) -> Arc<Upstream> {
    Upstream::new(
        ReplicaId(id),
        RevisionNumber(revision),
        instance,
        concurrency,
        Arc::new(Uncounted),
    )
}
