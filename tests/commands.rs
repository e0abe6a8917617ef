//! Commands: run to their end behind the wasm wall, with their streams and their exit code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::wasm::{Input, Output};
use narae_runtime::{
    Allocator, Artifact, Backend as _, CallError, CompileHere, Digest, Grants, Guest, Kind, Limit, Limits, LogSink,
    PrepareError, StartError, Stdio, Stream, WasmBackend, WasmOptions,
};
use tokio::io::AsyncReadExt as _;

struct NoLog;

impl LogSink for NoLog {
    fn line(&self, _: Stream, _: &[u8]) {}
}

/// A command without limits in time, as `narae run` starts it.
fn unlimited() -> Limits {
    Limits {
        timeout: Duration::MAX,
        cpu_time: Duration::MAX,
        ..Limits::default()
    }
}

fn backend() -> Arc<WasmBackend> {
    let options = WasmOptions {
        allocator: Allocator::Auto,
        memory_budget_bytes: 512 << 20,
        compile: Arc::new(CompileHere),
        outbound: None,
    };
    WasmBackend::new(options).unwrap()
}

fn artifact(kind: Kind, bytes: Vec<u8>) -> Artifact {
    Artifact {
        digest: Digest::of(&bytes),
        kind,
        imports: Vec::new(),
        exports: Vec::new(),
        bytes: bytes.into(),
    }
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("modules/prebuilt")
            .join(name),
    )
    .unwrap()
}

/// A command that does nothing, with these things beside its `run`.
fn nothing(imports: &str, beside: &str) -> Vec<u8> {
    let text = format!(
        r#"(component {imports}
            (core module $m {beside} (func (export "run") (result i32) i32.const 0))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    );
    wat::parse_str(text).unwrap()
}

/// Runs it; returns how it ended and what it printed.
async fn run(
    name: &str,
    kind: Kind,
    args: &[&str],
    input: &'static [u8],
    limits: Limits,
) -> (Result<i32, CallError>, String) {
    run_bytes(file(name), kind, args, input, limits).await
}

async fn run_bytes(
    bytes: Vec<u8>,
    kind: Kind,
    args: &[&str],
    input: &'static [u8],
    limits: Limits,
) -> (Result<i32, CallError>, String) {
    let backend = backend();
    let prepared = backend.prepare(&artifact(kind, bytes)).await.unwrap();
    let grants = Grants {
        args: args.iter().map(ToString::to_string).collect(),
        env: vec![("REPORT_NAME".to_owned(), "night".to_owned())],
        ..Grants::default()
    };
    let guest = Guest {
        prepared,
        label: "report".into(),
        limits,
        grants,
        logs: Arc::new(NoLog),
    };
    let (out, mut printed) = tokio::io::duplex(1 << 20);
    let stdio = Stdio {
        stdin: Input::From(Box::new(input)),
        stdout: Output::To(Box::new(out)),
        stderr: Output::Log,
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), backend.run(guest, stdio))
        .await
        .expect("ends");
    let mut text = String::new();
    printed.read_to_string(&mut text).await.unwrap();
    (ended, text)
}

#[tokio::test]
async fn a_command_gets_its_arguments_and_its_environment_and_ends_with_its_code() {
    let (ended, printed) = run("report.wasm", Kind::Command02, &["--exit", "0", "x"], b"", unlimited()).await;
    assert_eq!(ended.unwrap(), 0);
    assert_eq!(printed, "--exit\n0\nx\nREPORT_NAME=night\n");
    let (ended, _) = run("report.wasm", Kind::Command02, &["--exit", "7"], b"", unlimited()).await;
    assert_ne!(ended.unwrap(), 0);
}

#[tokio::test]
async fn a_command_reads_what_it_is_given() {
    let (ended, printed) = run(
        "report.wasm",
        Kind::Command02,
        &["--read"],
        b"from outside\n",
        unlimited(),
    )
    .await;
    assert_eq!(ended.unwrap(), 0);
    assert!(printed.contains("from outside\n"), "{printed}");
}

#[tokio::test]
async fn a_command_that_never_ends_is_ended_by_the_limit_it_was_given() {
    let cpu = Limits {
        cpu_time: Duration::from_millis(100),
        ..unlimited()
    };
    match run("report.wasm", Kind::Command02, &["--spin"], b"", cpu).await.0 {
        Err(CallError::Trap(report)) => assert_eq!(report.limit, Some(Limit::CpuTime)),
        other => panic!("{other:?}"),
    }
    let wall = Limits {
        timeout: Duration::from_millis(100),
        ..unlimited()
    };
    let (ended, _) = run("report.wasm", Kind::Command02, &["--spin"], b"", wall).await;
    assert!(matches!(ended, Err(CallError::Timeout(Limit::Timeout))), "{ended:?}");
}

#[tokio::test]
async fn a_command_over_its_memory_is_ended() {
    let little = Limits {
        memory_bytes: 16 << 20,
        ..unlimited()
    };
    match run("report.wasm", Kind::Command02, &["--mib", "64"], b"", little)
        .await
        .0
    {
        Err(CallError::Trap(report)) => assert_eq!(report.limit, Some(Limit::Memory)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_of_wasi_0_3_runs_to_its_end() {
    assert_eq!(
        run("report-p3.wasm", Kind::Command03, &[], b"", unlimited())
            .await
            .0
            .unwrap(),
        0
    );
    assert_eq!(
        run("report-p3.wasm", Kind::Command03, &["--fail"], b"", unlimited())
            .await
            .0
            .unwrap(),
        1
    );
    let (ended, _) = run("report-p3.wasm", Kind::Command03, &["--ms", "20"], b"", unlimited()).await;
    assert_eq!(ended.unwrap(), 0);
}

#[tokio::test]
async fn a_guest_that_starts_larger_than_a_slot_of_the_pool_runs_if_its_limit_allows() {
    let huge = nothing("", "(memory 3200)");
    let roomy = Limits {
        memory_bytes: 256 << 20,
        ..unlimited()
    };
    assert_eq!(
        run_bytes(huge.clone(), Kind::Command02, &[], b"", roomy)
            .await
            .0
            .unwrap(),
        0
    );
    match run_bytes(huge, Kind::Command02, &[], b"", unlimited()).await.0 {
        Err(CallError::Trap(report)) => assert_eq!(report.limit, Some(Limit::Memory)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_table_over_the_limit_is_refused() {
    let many = nothing("", "(table 1000000 funcref)");
    match run_bytes(many, Kind::Command02, &[], b"", unlimited()).await.0 {
        Err(CallError::Trap(report)) => assert_eq!(report.limit, Some(Limit::Tables)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_this_host_does_not_offer_is_refused_by_name() {
    let wants = r#"(import "evil:corp/root@1.0.0" (instance (export "f" (func))))"#;
    match backend()
        .prepare(&artifact(Kind::Command02, nothing(wants, "")))
        .await
        .err()
    {
        Some(PrepareError::Imports(names)) => assert_eq!(names, ["evil:corp/root@1.0.0"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_is_no_component_is_refused_and_not_run() {
    for bytes in [&b""[..], b"\0asm", b"hello", &[0; 100]] {
        let refused = backend().prepare(&artifact(Kind::Http02, bytes.to_vec())).await.err();
        assert!(matches!(refused, Some(PrepareError::Compile(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_service_is_not_a_command_and_a_command_is_not_started() {
    let (ended, _) = run("hello.wasm", Kind::Http02, &[], b"", unlimited()).await;
    assert!(
        matches!(ended, Err(CallError::Trap(_) | CallError::BadAnswer(_))),
        "{ended:?}"
    );
    let backend = backend();
    let prepared = backend
        .prepare(&artifact(Kind::Command02, file("report.wasm")))
        .await
        .unwrap();
    let guest = Guest {
        prepared,
        label: "report".into(),
        limits: unlimited(),
        grants: Grants::default(),
        logs: Arc::new(NoLog),
    };
    assert!(matches!(
        backend.start(guest.clone()).await.err(),
        Some(StartError::Unsupported(_))
    ));
    // Nor does one backend run what another prepared.
    let other = self::backend();
    assert!(other.run(guest, Stdio::log()).await.is_err());
}
