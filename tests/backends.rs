//! One suite over every wall: whatever a guest does, and whatever is done to it, a backend keeps these promises.
//!
//! Written against `Backend` and `Instance` alone; a wall joins by being made in [`backend`].

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use narae_runtime::{
    Allocator, Artifact, Backend, Body, BodyError, CallError, CompileHere, Digest, Exit, Grants, Guest, Instance, Kind,
    Limit, Limits, LogSink, Request, Response, StartError, Stream, WasmBackend, WasmOptions,
};

const MIB: u64 = 1 << 20;
/// Longer than anything here takes, shorter than anybody waits.
const BOUND: Duration = Duration::from_secs(60);

/// The wall under test, with this much memory for all its guests.
fn backend(memory_budget_bytes: u64) -> Arc<dyn Backend> {
    let options = WasmOptions {
        allocator: Allocator::Auto,
        memory_budget_bytes,
        compile: Arc::new(CompileHere),
        outbound: None,
    };
    WasmBackend::new(options).expect("an engine")
}

fn artifact(name: &str, kind: Kind) -> Artifact {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("modules/prebuilt")
        .join(name)
        .with_extension("wasm");
    let bytes = Bytes::from(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    Artifact {
        digest: Digest::of(&bytes),
        kind,
        imports: Vec::new(),
        exports: Vec::new(),
        bytes,
    }
}

#[derive(Default)]
struct Kept(Mutex<Vec<(Stream, Vec<u8>)>>);

impl LogSink for Kept {
    fn line(&self, stream: Stream, line: &[u8]) {
        self.0.lock().unwrap().push((stream, line.to_vec()));
    }
}

/// One guest behind the wall, and what it logged.
struct Served {
    instance: Arc<dyn Instance>,
    logs: Arc<Kept>,
    // The wall stands as long as its guest.
    _backend: Arc<dyn Backend>,
}

async fn guest(backend: &dyn Backend, name: &str, limits: Limits, grants: Grants) -> (Guest, Arc<Kept>) {
    let kind = if name.ends_with("-p3") {
        Kind::Http03
    } else {
        Kind::Http02
    };
    let prepared = backend.prepare(&artifact(name, kind)).await.expect("prepares");
    let logs = Arc::new(Kept::default());
    (
        Guest {
            prepared,
            label: name.into(),
            limits,
            grants,
            logs: logs.clone(),
        },
        logs,
    )
}

async fn start_in(backend: &Arc<dyn Backend>, name: &str, limits: Limits) -> Result<Served, StartError> {
    let (guest, logs) = guest(&**backend, name, limits, Grants::default()).await;
    let instance = backend.start(guest).await?;
    Ok(Served {
        instance,
        logs,
        _backend: Arc::clone(backend),
    })
}

async fn start(name: &str, limits: Limits) -> Served {
    start_in(&backend(1024 * MIB), name, limits).await.expect("starts")
}

fn get(path: &str) -> Request {
    http::Request::get(path)
        .header("host", "guest.test")
        .body(Body::Empty)
        .unwrap()
}

impl Served {
    async fn call(&self, request: Request) -> Result<Response, CallError> {
        tokio::time::timeout(BOUND, self.instance.call(request))
            .await
            .expect("answers within the bound")
    }

    async fn get(&self, path: &str) -> Result<Response, CallError> {
        self.call(get(path)).await
    }

    async fn text(&self, path: &str) -> (u16, String) {
        read(self.get(path).await.unwrap_or_else(|e| panic!("{path}: {e:?}"))).await
    }

    async fn trap(&self, path: &str) -> narae_runtime::TrapReport {
        match self.get(path).await {
            Err(CallError::Trap(report)) => report,
            other => panic!("{path}: expected a trap, got {other:?}"),
        }
    }
}

impl Served {
    /// Waits until so many instances are idle: a guest may still be on its way back when its answer is out.
    async fn idle(&self, count: u64) {
        let reached = async {
            while self.instance.usage().idle_instances != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, reached)
            .await
            .expect("so many idle instances");
    }
}

async fn read(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let bytes = tokio::time::timeout(BOUND, response.into_body().collect())
        .await
        .expect("ends within the bound");
    (
        status,
        String::from_utf8(bytes.expect("a whole body").to_bytes().to_vec()).unwrap(),
    )
}

const PLENTY: Limits = Limits {
    memory_bytes: 128 * MIB,
    timeout: Duration::from_secs(30),
    cpu_time: Duration::from_secs(30),
    start_time: Duration::from_secs(30),
    concurrency: 64,
    queue: 128,
    queue_wait: Duration::from_secs(1),
    body_bytes: 10 * MIB,
    requests_per_instance: None,
    requests_at_once: None,
    idle_instances: 8,
};

// Answers.

#[tokio::test]
async fn a_guest_answers_and_the_answer_comes_whole() {
    let hello = start("hello", PLENTY).await;
    let response = hello.get("/").await.unwrap();
    assert!(matches!(response.body(), Body::Full(Some(_))), "{:?}", response.body());
    let (status, text) = read(response).await;
    assert_eq!(status, 200);
    assert!(text.to_lowercase().contains("hello"), "{text}");
}

#[tokio::test]
async fn many_calls_in_one_turn_of_a_task_are_all_answered() {
    // Tokio lets a task do 128 things in one turn; what comes after must not look unfinished.
    let hello = start("hello", PLENTY).await;
    for _ in 0..300 {
        assert_eq!(hello.text("/").await.0, 200);
    }
}

#[tokio::test]
async fn a_guest_built_on_std_needs_no_grant() {
    assert_eq!(start("std-hello", PLENTY).await.text("/").await.0, 200);
}

#[tokio::test]
async fn each_request_meets_a_fresh_instance_unless_reuse_is_chosen() {
    let fresh = start("counter", PLENTY).await;
    assert_eq!(fresh.text("/").await, fresh.text("/").await);
    assert_eq!(fresh.instance.usage().idle_instances, 0);

    let reused = start(
        "counter",
        Limits {
            requests_per_instance: Some(2),
            ..PLENTY
        },
    )
    .await;
    let first = reused.text("/").await;
    reused.idle(1).await;
    let (second, third) = (reused.text("/").await, reused.text("/").await);
    assert_ne!(first, second, "one instance serves two requests");
    assert_eq!(first, third, "and not a third");
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let echo = start("echo", PLENTY).await;
    let (mut send, frames) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(4);
    let mut say = |text: &'static str| {
        send.try_send(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
            .unwrap()
    };
    let request = http::Request::post("/")
        .header("host", "guest.test")
        .body(Body::stream(StreamBody::new(frames)));
    let mut body = echo.call(request.unwrap()).await.unwrap().into_body();
    say("ping");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    // The first part came back before the second was sent.
    assert!(seen.starts_with(b"ping"));
    say("pong");
    send.close_channel();
    while let Some(frame) = body.frame().await {
        seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert!(seen.ends_with(b"pong"));
}

#[tokio::test]
async fn a_large_body_goes_through_unchanged() {
    let echo = start("echo", PLENTY).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let request = http::Request::post("/")
        .header("host", "guest.test")
        .body(Body::full(sent.clone()))
        .unwrap();
    let got = echo
        .call(request)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert!(got == sent, "{} bytes came back of {}", got.len(), sent.len());
}

#[tokio::test]
async fn a_guest_that_waits_streams_as_it_goes() {
    let slow = start("slow", PLENTY).await;
    let response = slow.get("/stream?n=3&ms=5").await.unwrap();
    assert!(matches!(response.body(), Body::Stream(_)));
    assert_eq!(read(response).await.0, 200);
}

// Failures.

#[tokio::test]
async fn a_trap_ends_its_request_with_a_backtrace_and_the_replica_goes_on() {
    let crash = start("crash", PLENTY).await;
    let report = crash.trap("/trap").await;
    assert!(report.reason.contains("unreachable"), "{report:?}");
    assert_eq!(report.limit, None);
    let at = |name: &str| {
        report
            .backtrace
            .iter()
            .position(|frame| frame.contains(name))
            .expect(name)
    };
    assert!(at("look_inside") < at("lift_the_lid") && at("lift_the_lid") < at("open_the_box"));
    assert_eq!(crash.text("/").await.0, 200);
    assert_eq!(crash.instance.usage().traps, 1);
}

#[tokio::test]
async fn a_panic_is_a_trap_and_its_message_is_in_the_log() {
    let crash = start("crash", PLENTY).await;
    crash.trap("/panic").await;
    let logs = crash.logs.0.lock().unwrap();
    assert!(
        logs.iter()
            .any(|(s, line)| *s == Stream::Stderr && line.ends_with(b"panicked on purpose")),
        "{logs:?}"
    );
}

#[tokio::test]
async fn a_guest_that_leaves_is_an_error_of_that_request_only() {
    let crash = start("crash", PLENTY).await;
    assert!(crash.get("/exit").await.is_err());
    assert!(matches!(crash.get("/noresponse").await, Err(CallError::BadAnswer(_))));
    assert_eq!(crash.text("/").await.0, 200);
}

#[tokio::test]
async fn recursion_without_end_meets_the_stack_limit() {
    let crash = start("crash", PLENTY).await;
    assert_eq!(crash.trap("/overflow").await.limit, Some(Limit::Stack));
    assert_eq!(crash.text("/").await.0, 200);
}

#[tokio::test]
async fn a_guest_that_dies_after_its_head_never_ends_its_body_cleanly() {
    let crash = start("crash", PLENTY).await;
    for path in ["/half", "/half?length=100"] {
        let body = crash.get(path).await.unwrap().into_body();
        let ended = tokio::time::timeout(BOUND, body.collect()).await.unwrap();
        assert!(
            matches!(ended, Err(BodyError::Guest(CallError::Trap(_)))),
            "{path}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_http_does_not_allow_is_refused() {
    let crash = start("crash", PLENTY).await;
    for path in [
        "/status?code=100",
        "/status?code=101",
        "/head?name=content-length&value=3",
    ] {
        match crash.get(path).await {
            Err(CallError::BadAnswer(_)) => {}
            Ok(response) => {
                let (status, body) = read(response).await;
                assert!(body.starts_with("refused"), "{path}: {status} {body}");
            }
            Err(e) => panic!("{path}: {e:?}"),
        }
    }
    for name in [
        "connection",
        "transfer-encoding",
        "te",
        "upgrade",
        "proxy-connection",
        "keep-alive",
    ] {
        let response = crash.get(&format!("/head?name={name}&value=close")).await.unwrap();
        assert!(!response.headers().contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn an_endless_loop_ends_at_its_processor_time_and_its_neighbour_is_served_meanwhile() {
    let wall = backend(1024 * MIB);
    let spin = start_in(
        &wall,
        "spin",
        Limits {
            cpu_time: Duration::from_millis(300),
            ..PLENTY
        },
    )
    .await
    .unwrap();
    let hello = start_in(&wall, "hello", PLENTY).await.unwrap();
    // One thread: the neighbour is served only if the loop lets go of it.
    let spinning = spin.instance.call(get("/"));
    let neighbour = async {
        for _ in 0..20 {
            assert_eq!(hello.text("/").await.0, 200);
            tokio::task::yield_now().await;
        }
    };
    let spinning = tokio::spawn(spinning);
    neighbour.await;
    assert!(!spinning.is_finished(), "the neighbour was served while the loop ran");
    match tokio::time::timeout(BOUND, spinning).await.unwrap().unwrap() {
        Err(CallError::Trap(report)) => {
            assert_eq!(report.limit, Some(Limit::CpuTime));
            assert!(!report.backtrace.is_empty());
        }
        other => panic!("{other:?}"),
    }
    assert!(spin.instance.usage().cpu_ns >= 300_000_000);
}

#[tokio::test]
async fn a_loop_of_host_calls_ends_like_any_other() {
    let spin = start(
        "spin",
        Limits {
            cpu_time: Duration::from_millis(100),
            ..PLENTY
        },
    )
    .await;
    assert_eq!(spin.trap("/host").await.limit, Some(Limit::CpuTime));
}

#[tokio::test]
async fn a_guest_that_sleeps_over_its_time_is_cut_without_processor_time() {
    let slow = start(
        "slow",
        Limits {
            timeout: Duration::from_millis(50),
            ..PLENTY
        },
    )
    .await;
    let cut = slow.get("/?ms=100000").await;
    assert!(matches!(cut, Err(CallError::Timeout(Limit::Timeout))), "{cut:?}");
    assert_eq!(slow.text("/?ms=1").await.0, 200);
}

#[tokio::test]
async fn memory_over_the_limit_is_refused_to_a_polite_guest_and_ends_a_rude_one() {
    let greedy = start(
        "greedy",
        Limits {
            memory_bytes: 32 * MIB,
            ..PLENTY
        },
    )
    .await;
    assert_eq!(greedy.text("/?mib=8").await.0, 200);
    assert_eq!(greedy.text("/?mib=64").await.0, 507);
    assert_eq!(greedy.trap("/bomb").await.limit, Some(Limit::Memory));
    assert_eq!(greedy.text("/?mib=8").await.0, 200);
    assert_eq!(
        greedy.instance.usage().memory_bytes,
        0,
        "nothing is held between requests"
    );
}

#[tokio::test]
async fn a_guest_may_have_more_memory_than_a_slot_of_the_pool() {
    let greedy = start(
        "greedy",
        Limits {
            memory_bytes: 512 * MIB,
            ..PLENTY
        },
    )
    .await;
    assert_eq!(greedy.text("/?mib=300").await.0, 200);
}

#[tokio::test]
async fn all_guests_together_stay_within_the_budget_and_the_others_are_served() {
    let wall = backend(64 * MIB);
    let greedy = start_in(&wall, "greedy", PLENTY).await.unwrap();
    let hello = start_in(&wall, "hello", PLENTY).await.unwrap();
    let held = greedy.get("/hold?mib=48&ms=100000");
    tokio::pin!(held);
    // Runs until the guest holds what it wanted and sleeps.
    let slept = tokio::time::timeout(Duration::from_millis(500), &mut held).await;
    assert!(slept.is_err(), "{slept:?}");
    assert_eq!(greedy.text("/?mib=32").await.0, 507, "the budget is spent");
    assert_eq!(greedy.trap("/bomb").await.limit, Some(Limit::MemoryBudget));
    assert_eq!(hello.text("/").await.0, 200);
}

#[tokio::test]
async fn without_room_for_an_instance_nothing_of_the_guest_runs() {
    let wall = backend(2 * MIB);
    let one = start_in(&wall, "slow", PLENTY).await.unwrap();
    let waiting = one.get("/?ms=100000");
    tokio::pin!(waiting);
    let slept = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(slept.is_err(), "{slept:?}");
    let refused = one.get("/?ms=1").await;
    assert!(matches!(refused, Err(CallError::OutOfMemory)), "{refused:?}");
    assert!(matches!(
        start_in(&wall, "hello", PLENTY).await.err(),
        Some(StartError::OutOfMemory)
    ));
}

#[tokio::test]
async fn a_start_that_traps_or_never_ends_is_an_error_of_the_start() {
    let wall = backend(1024 * MIB);
    match start_in(&wall, "crash-start", PLENTY).await.err() {
        Some(StartError::Trap(report)) => assert!(!report.backtrace.is_empty(), "{report:?}"),
        other => panic!("{other:?}"),
    }
    let short = Limits {
        start_time: Duration::from_millis(100),
        ..PLENTY
    };
    match start_in(&wall, "spin-start", short).await.err() {
        Some(StartError::Trap(report)) => assert_eq!(report.limit, Some(Limit::StartTime)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_flood_of_log_lines_arrives_in_bounded_pieces() {
    let crash = start("crash", PLENTY).await;
    assert_eq!(crash.text("/log?lines=300&bytes=20000").await.0, 200);
    let logs = crash.logs.0.lock().unwrap();
    assert_eq!(logs.iter().map(|(_, line)| line.len()).sum::<usize>(), 300 * 20000);
    assert!(logs.iter().all(|(_, line)| line.len() <= 8 << 10));
}

// Borders.

#[tokio::test]
async fn a_guest_cannot_see_the_host() {
    let (status, seen) = start("peek", PLENTY).await.text("/").await;
    assert_eq!(status, 200, "{seen}");
    for secret in ["PATH", "HOME", "CARGO", "/etc", "/proc"] {
        assert!(!seen.contains(secret), "{seen}");
    }
}

#[tokio::test]
async fn a_guest_sees_what_it_is_granted_and_no_more() {
    let wall = backend(1024 * MIB);
    let grants = Grants {
        env: vec![("GREETING".to_owned(), "hi".to_owned())],
        config: vec![("currency".to_owned(), "KRW".to_owned())],
        ..Grants::default()
    };
    let Ok(prepared) = wall.prepare(&artifact("config", Kind::Http02)).await else {
        return;
    };
    let logs = Arc::new(Kept::default());
    let guest = Guest {
        prepared,
        label: "config".into(),
        limits: PLENTY,
        grants,
        logs: logs.clone(),
    };
    let config = Served {
        instance: wall.start(guest).await.unwrap(),
        logs,
        _backend: wall,
    };
    assert!(config.text("/config/currency").await.1.contains("KRW"));
    assert!(config.text("/env/GREETING").await.1.contains("hi"));
    assert_eq!(config.text("/env/PATH").await.0, 404);
}

// Concurrency and the end.

#[tokio::test]
async fn over_its_concurrency_a_replica_is_busy_and_a_client_that_leaves_gives_its_place_back() {
    let slow = start(
        "slow",
        Limits {
            concurrency: 1,
            ..PLENTY
        },
    )
    .await;
    let waiting = slow.instance.call(get("/?ms=100000"));
    assert!(matches!(slow.get("/?ms=1").await, Err(CallError::Busy)));
    drop(waiting);
    assert_eq!(slow.text("/?ms=1").await.0, 200);
    assert_eq!(slow.instance.usage().in_flight, 0);
}

#[tokio::test]
async fn a_stop_waits_for_calls_in_flight_and_refuses_new_ones() {
    let slow = start("slow", PLENTY).await;
    let call = tokio::spawn(slow.instance.call(get("/?ms=100")));
    tokio::task::yield_now().await;
    let stop = slow.instance.stop(BOUND);
    assert!(matches!(slow.get("/?ms=1").await, Err(CallError::Gone)));
    let exited = slow.instance.exited();
    let (ended, (), exit) = tokio::time::timeout(BOUND, async { tokio::join!(call, stop, exited) })
        .await
        .unwrap();
    assert_eq!(read(ended.unwrap().unwrap()).await.0, 200);
    assert_eq!(exit, Exit::Stopped);
}

#[tokio::test]
async fn a_stop_without_patience_ends_calls_and_bodies_in_flight() {
    let slow = start("slow", PLENTY).await;
    let call = tokio::spawn(slow.instance.call(get("/?ms=100000")));
    let body = slow.get("/stream?n=100&ms=100000").await.unwrap().into_body();
    let body = tokio::spawn(body.collect());
    tokio::task::yield_now().await;
    tokio::time::timeout(BOUND, slow.instance.stop(Duration::ZERO))
        .await
        .unwrap();
    assert!(matches!(call.await.unwrap(), Err(CallError::Stopped)));
    assert!(matches!(body.await.unwrap(), Err(BodyError::Guest(CallError::Stopped))));
    assert_eq!(slow.instance.usage().in_flight, 0);
    // Stopping what is stopped is nothing.
    tokio::time::timeout(BOUND, slow.instance.stop(Duration::ZERO))
        .await
        .unwrap();
}

// WASI 0.3.

#[tokio::test]
async fn a_guest_of_wasi_0_3_answers_and_echoes() {
    let hello = start("hello-p3", PLENTY).await;
    assert_eq!(hello.text("/").await.0, 200);
    let request = http::Request::post("/")
        .header("host", "guest.test")
        .body(Body::full("back again"))
        .unwrap();
    assert_eq!(read(hello.call(request).await.unwrap()).await.1, "back again");
}

#[tokio::test]
async fn an_instance_of_0_3_serves_many_requests_and_several_at_once() {
    let hello = start("hello-p3", PLENTY).await;
    let calls = (0..40).map(|_| hello.text("/?ms=20"));
    for (status, _) in futures::future::join_all(calls).await {
        assert_eq!(status, 200);
    }
    let made = hello.instance.usage().instances_made;
    assert!(
        (2..=12).contains(&made),
        "one to prove the start, the rest with up to 16 at once: {made}"
    );
    assert_eq!(hello.instance.usage().in_flight, 0);
}

#[tokio::test]
async fn a_trap_of_a_0_3_instance_ends_its_requests_and_the_replica_goes_on() {
    let hello = start("hello-p3", PLENTY).await;
    let report = hello.trap("/trap").await;
    assert!(
        report.reason.contains("unreachable") && !report.backtrace.is_empty(),
        "{report:?}"
    );
    assert_eq!(hello.text("/").await.0, 200);
    assert_eq!(hello.instance.usage().traps, 1);
}

#[tokio::test]
async fn a_0_3_guest_is_cut_at_its_time_and_its_client_may_leave() {
    let hello = start(
        "hello-p3",
        Limits {
            timeout: Duration::from_millis(50),
            concurrency: 1,
            ..PLENTY
        },
    )
    .await;
    let cut = hello.get("/?ms=100000").await;
    assert!(matches!(cut, Err(CallError::Timeout(Limit::Timeout))), "{cut:?}");
    let left = hello.instance.call(get("/?ms=100000"));
    assert!(tokio::time::timeout(Duration::from_millis(5), left).await.is_err());
    assert_eq!(hello.text("/").await.0, 200);
}

#[tokio::test]
async fn a_0_3_guest_is_stopped_with_requests_in_flight() {
    let hello = start("hello-p3", PLENTY).await;
    let call = tokio::spawn(hello.instance.call(get("/?ms=100000")));
    tokio::task::yield_now().await;
    tokio::time::timeout(BOUND, hello.instance.stop(Duration::ZERO))
        .await
        .unwrap();
    assert!(matches!(call.await.unwrap(), Err(CallError::Stopped | CallError::Gone)));
    assert!(matches!(hello.get("/").await, Err(CallError::Gone)));
}

// Reuse of 0.2 instances.

#[tokio::test]
async fn a_reused_instance_that_fails_is_thrown_away() {
    let crash = start(
        "crash",
        Limits {
            requests_per_instance: Some(100),
            ..PLENTY
        },
    )
    .await;
    assert_eq!(crash.text("/").await.0, 200);
    crash.idle(1).await;
    crash.trap("/trap").await;
    assert_eq!(crash.instance.usage().idle_instances, 0);
    assert_eq!(crash.text("/").await.0, 200);
}

#[tokio::test]
async fn idle_instances_are_bounded() {
    let slow = start(
        "slow",
        Limits {
            requests_per_instance: Some(100),
            idle_instances: 2,
            ..PLENTY
        },
    )
    .await;
    futures::future::join_all((0..8).map(|_| slow.text("/?ms=5"))).await;
    slow.idle(2).await;
}
