//! Guests under a clock that only this file moves: what they read and what they wait for pass the one narrow layer.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use narae_runtime::guest::{Outbound, Target};
use narae_runtime::wasm::host::outbound::OutboundClient;
use narae_runtime::wasm::host::outside::{Outside, Wire};
use narae_runtime::{
    Allocator, Artifact, Backend as _, Body, CompileHere, Digest, Grants, Guest, Kind, Limits, LogSink, Stdio, Stream,
    Task, WasmBackend, WasmOptions,
};
use tokio::sync::watch;

const HOUR_NS: u64 = 3_600_000_000_000;
/// Longer than anything here takes, shorter than the guests would sleep.
const BOUND: Duration = Duration::from_secs(60);

/// A clock that stands until it is moved, and tells what it was asked to wait for.
struct Fake {
    now: watch::Sender<u64>,
    asked: watch::Sender<Vec<u64>>,
}

impl Fake {
    fn at(now: u64) -> Arc<Self> {
        Arc::new(Self {
            now: watch::Sender::new(now),
            asked: watch::Sender::new(Vec::new()),
        })
    }

    /// Waits until somebody sleeps, and returns until when.
    async fn sleeper(&self) -> u64 {
        let mut asked = self.asked.subscribe();
        let asked = tokio::time::timeout(BOUND, asked.wait_for(|asked| !asked.is_empty()));
        asked.await.expect("a guest sleeps").unwrap()[0]
    }

    fn move_to(&self, now: u64) {
        self.now.send_replace(now);
    }
}

impl Outside for Fake {
    fn monotonic_now(&self) -> u64 {
        *self.now.borrow()
    }
    fn monotonic_resolution(&self) -> u64 {
        1
    }
    fn sleep_until(&self, when: u64) -> Task<'static, ()> {
        self.asked.send_modify(|asked| asked.push(when));
        let mut now = self.now.subscribe();
        Box::pin(async move {
            now.wait_for(|now| *now >= when).await.unwrap();
        })
    }
    fn wall_now(&self) -> Duration {
        Duration::ZERO
    }
    fn wall_resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }
    fn secure_random(&self, out: &mut [u8]) {
        out.fill(7);
    }
    fn insecure_seed(&self) -> u128 {
        7
    }
    fn resolve(&self, _: String, _: u16) -> Task<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn connect(&self, _: SocketAddr) -> Task<'static, io::Result<Box<dyn Wire>>> {
        // Nobody answers.
        Box::pin(std::future::pending())
    }
}

struct NoLog;

impl LogSink for NoLog {
    fn line(&self, _: Stream, _: &[u8]) {}
}

async fn guest(outside: &Arc<Fake>, kind: Kind, bytes: Vec<u8>) -> (Arc<WasmBackend>, Guest) {
    let options = WasmOptions {
        allocator: Allocator::OnDemand,
        memory_budget_bytes: 512 << 20,
        compile: Arc::new(CompileHere),
        outbound: None,
    };
    let outside: Arc<dyn Outside> = outside.clone();
    let backend = WasmBackend::with_outside(options, outside).unwrap();
    let artifact = Artifact {
        digest: Digest::of(&bytes),
        kind,
        imports: Vec::new(),
        exports: Vec::new(),
        bytes: bytes.into(),
    };
    let bytes = artifact.component_bytes().unwrap().into_owned();
    let artifact = Artifact {
        bytes: bytes.into(),
        ..artifact
    };
    let guest = Guest {
        prepared: backend.prepare(&artifact).await.unwrap(),
        label: "sleeper".into(),
        limits: Limits::default(),
        grants: Grants::default(),
        logs: Arc::new(NoLog),
    };
    (backend, guest)
}

fn prebuilt(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../modules/prebuilt/{name}.wasm"))).unwrap()
}

/// A service that is asked to sleep for an hour answers when the clock says that the hour is over.
async fn serves_an_hour_later(kind: Kind, module: &str) -> String {
    let outside = Fake::at(HOUR_NS);
    let (backend, guest) = guest(&outside, kind, prebuilt(module)).await;
    let instance = backend.start(guest).await.unwrap();
    let request = http::Request::get("/?ms=3600000")
        .header("host", "guest.test")
        .body(Body::Empty)
        .unwrap();
    let mut call = tokio::spawn(instance.call(request));
    assert_eq!(outside.sleeper().await, 2 * HOUR_NS);
    outside.move_to(2 * HOUR_NS - 1);
    tokio::task::yield_now().await;
    assert!(futures::poll!(&mut call).is_pending(), "a nanosecond is missing");
    outside.move_to(2 * HOUR_NS);
    let answer = tokio::time::timeout(BOUND, call)
        .await
        .expect("answers")
        .unwrap()
        .unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_sleep_of_0_2_ends_when_the_clock_says_so() {
    assert_eq!(serves_an_hour_later(Kind::Http02, "slow").await, "slept 3600000 ms\n");
}

#[tokio::test]
async fn a_sleep_of_0_3_ends_when_the_clock_says_so() {
    let said = serves_an_hour_later(Kind::Http03, "hello-p3").await;
    assert_eq!(said, "hello from narae 0.3\n");
}

#[tokio::test]
async fn a_sleep_in_a_start_function_ends_when_the_clock_says_so() {
    let outside = Fake::at(0);
    let text = include_str!("../../tests/guests/sleepy.wat");
    let (backend, guest) = guest(&outside, Kind::Http02, wat::parse_str(text).unwrap()).await;
    let (started, ()) = tokio::join!(backend.start(guest), async {
        assert_eq!(outside.sleeper().await, HOUR_NS);
        outside.move_to(HOUR_NS);
    });
    assert!(started.is_ok());
}

#[tokio::test]
async fn a_sleep_of_preview_1_ends_when_the_clock_says_so() {
    // poll_oneoff with one relative subscription of an hour on the monotonic clock.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 3600000000000))
            (if (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)) (then unreachable))))"#;
    let outside = Fake::at(5);
    let (backend, guest) = guest(&outside, Kind::CommandCore, wat::parse_str(text).unwrap()).await;
    let (ended, ()) = tokio::join!(backend.run(guest, Stdio::log()), async {
        assert_eq!(outside.sleeper().await, HOUR_NS + 5);
        outside.move_to(HOUR_NS + 5);
    });
    assert_eq!(ended.unwrap(), 0);
}

#[tokio::test]
async fn an_outbound_call_times_out_when_the_clock_says_so() {
    let outside = Fake::at(0);
    let policy = Outbound {
        allow: vec![Target {
            scheme: "http".into(),
            host: "10.0.0.1".into(),
            port: 80,
        }],
        timeout: Duration::from_secs(3600),
        ..Outbound::default()
    };
    let client = OutboundClient::new(policy, outside.clone());
    let body = http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync();
    let request = http::Request::get("http://10.0.0.1/").body(body).unwrap();
    let mut call = std::pin::pin!(client.send(request, None));
    assert!(futures::poll!(&mut call).is_pending());
    assert_eq!(outside.sleeper().await, HOUR_NS);
    outside.move_to(HOUR_NS);
    let ended = tokio::time::timeout(BOUND, call).await.expect("ends");
    assert!(
        matches!(ended, Err(wasmtime_wasi_http::Error::ConnectionTimeout)),
        "it has no answer"
    );
}
