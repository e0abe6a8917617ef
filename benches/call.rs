//! What a call, an instance and a replica cost by themselves, on one thread and without a socket: the runtime alone, and what the
//! balancer adds to it.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a bench says what failed by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times are small"
)]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::servers::{guest, instance};
use common::{median, number, pin};
use http_body_util::BodyExt;
use narae_orchestrator::metrics::Metrics;
use narae_orchestrator::model::{ReplicaId, RevisionNumber, ServiceName};
use narae_orchestrator::proxy::{Balancer, Choice, Observer, Options, Service, ServiceTraffic, Upstream, dispatch};
use narae_runtime::{Backend, Body, CallError, Request, Response};
use serde_json::{Value, json};

struct Deaf;

impl Observer for Deaf {
    fn call_failed(&self, _: &Service, _: &Upstream, _: &CallError, _: bool) {}
    fn trap_run(&self, _: &Upstream, _: u32) {}
}

fn get() -> Request {
    http::Request::get("/")
        .header("host", "hello.test")
        .body(Body::Empty)
        .unwrap()
}

async fn read(answer: Response) {
    let body = answer.into_body().collect().await.expect("a whole body");
    assert_eq!(body.to_bytes().len(), 17);
}

/// Median time of one step of each kind in microseconds; the kinds take turns.
async fn time<const N: usize>(size: u32, mut step: impl AsyncFnMut(usize)) -> [f64; N] {
    let batches = number("NARAE_BENCH_ROUNDS", 15.0) as usize;
    let mut seen = [const { Vec::new() }; N];
    for batch in 0..=batches {
        for (kind, seen) in seen.iter_mut().enumerate() {
            let since = Instant::now();
            for _ in 0..size {
                step(kind).await;
            }
            if batch > 0 {
                seen.push(since.elapsed().as_secs_f64() * 1e6 / f64::from(size));
            }
        }
    }
    seen.map(median)
}

fn main() {
    pin(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let lines = runtime.block_on(async {
        let mut lines = Vec::new();
        let mut say = |name: &str, us: f64| {
            println!("{name:<52}{us:>10.2} us   load {:.1}", common::load());
            lines.push(json!({"what": name, "microseconds": us, "load_average": common::load()}));
        };
        calls("fresh", 1, &mut say).await;
        calls("reused", 1_000_000, &mut say).await;
        replica(&mut say).await;
        lines
    });
    common::save("call", &Value::from(lines));
}

async fn calls(kind: &str, uses: u32, say: &mut impl FnMut(&str, f64)) {
    let (_backend, instance) = instance("hello", uses).await;
    let name: ServiceName = "hello".parse().unwrap();
    let balancer = Balancer::new(Arc::new(Deaf), Options::default());
    let service = Service::new(name.clone(), ServiceTraffic::default());
    let counters = Metrics::new().revision(&name, RevisionNumber(1));
    service.admit(Upstream::new(
        ReplicaId(1),
        RevisionNumber(1),
        Arc::clone(&instance),
        64,
        counters,
    ));
    let [alone, balanced] = time(2000, async |kind| match kind {
        0 => read(instance.call(get()).await.expect("an answer")).await,
        _ => {
            read(
                dispatch(&balancer, &service, Choice::Any, get())
                    .await
                    .expect("an answer"),
            )
            .await
        }
    })
    .await;
    say(&format!("hello, {kind} instance: the runtime alone"), alone);
    say(&format!("hello, {kind} instance: through the balancer"), balanced);
    say(
        &format!("hello, {kind} instance: the balancer's part"),
        balanced - alone,
    );
}

async fn replica(say: &mut impl FnMut(&str, f64)) {
    let (backend, guest) = guest("hello", 1).await;
    let [us] = time(200, async |_| drop(backend.start(guest.clone()).await.expect("starts"))).await;
    say("a new replica of a warm revision, and its end", us);
}
