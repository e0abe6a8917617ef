//! Healing in full, with the real binary: liveness, ejection, hung replicas, and the reports that are left of what died.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bound on another process is measured by the clock"
)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Node;
use narae_orchestrator::load::{Load, Shot};
use serde_json::Value;

fn events(node: &Node, service: &str) -> Vec<Value> {
    let text = node.ok(&["events", "--service", service, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn count(node: &Node, service: &str, kind: &str) -> usize {
    events(node, service).iter().filter(|e| e["kind"] == kind).count()
}

fn status(node: &Node, service: &str) -> Value {
    serde_json::from_slice(&node.narae(&["status", service, "-o", "json"]).stdout).unwrap()
}

fn crashes(node: &Node) -> Vec<Value> {
    node.json(&["crash", "list", "-o", "json"])["items"]
        .as_array()
        .unwrap()
        .clone()
}

/// What a guest asks before it answers: says yes or no.
fn dependency() -> (std::net::SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let well = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&well);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let status = if now.load(Ordering::SeqCst) { "200 OK" } else { "503 No" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (at, well)
}

#[test]
fn a_replica_that_fails_its_liveness_probe_is_killed_with_the_reason_and_heals() {
    let (at, well) = dependency();
    let node = Node::start();
    node.deploy(
        "app",
        "fetch",
        &format!(
            "[outbound]\nallow = [\"http://{at}\"]\n[probes.liveness]\npath = \"/?url=http://{at}/\"\n\
             interval = \"100ms\"\nfailures = 3\n"
        ),
    );
    well.store(false, Ordering::SeqCst);
    node.until("it died", |n| count(n, "app", "died") > 0);
    well.store(true, Ordering::SeqCst);
    node.until("it serves again", |n| status(n, "app")["state"] == "healthy");
    let events = events(&node, "app");
    let died = events.iter().find(|e| e["kind"] == "died").unwrap();
    let said = died["message"].as_str().unwrap();
    assert!(said.contains("liveness") && said.contains("503"), "{said}");
    let reason = status(&node, "app")["replicas"][0]["reason"].to_string();
    assert!(reason.contains("liveness"), "the last death is kept: {reason}");
    node.until("a report is left", |n| {
        crashes(n)
            .iter()
            .any(|c| c["kind"] == "death" && c["reason"].to_string().contains("liveness"))
    });
}

/// All slots are taken by requests that take their time; the probe has one of its own.
#[test]
fn traffic_does_not_starve_a_liveness_probe() {
    let node = Node::start();
    node.deploy(
        "slow",
        "slow",
        "[limits]\nconcurrency = 2\n[probes.startup]\npath = \"/?ms=1\"\n\
         [probes.liveness]\npath = \"/?ms=1\"\ninterval = \"20ms\"\ntimeout = \"10s\"\nfailures = 1",
    );
    // Two clients without a pause, until the test has seen enough: how long that takes is the machine's business.
    let enough = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answered = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let (to, enough) = (node.http, std::sync::Arc::clone(&enough));
            let answered = std::sync::Arc::clone(&answered);
            std::thread::spawn(move || {
                while !enough.load(std::sync::atomic::Ordering::Relaxed) {
                    let reply = common::request(to, "GET", "/?ms=1500", &[("host", "slow.test")], b"");
                    assert_eq!(reply.status, 200);
                    answered.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            })
        })
        .collect();
    let calls = |n: &Node| status(n, "slow")["replicas"][0]["calls"].as_u64().unwrap();
    node.until("all slots are taken", |n| status(n, "slow")["in_flight"] == 2);
    let before = calls(&node);
    // What is not traffic is a probe: those answered since then, and two that are under way.
    node.until("it is probed meanwhile", |n| {
        let all = calls(n) - before;
        all >= answered.load(std::sync::atomic::Ordering::SeqCst) + 2 + 5
    });
    enough.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in busy {
        client.join().unwrap();
    }
    assert_eq!(count(&node, "slow", "died"), 0);
}

#[test]
fn a_replica_whose_calls_keep_failing_is_out_of_the_routes_within_a_second_and_comes_back() {
    let node = Node::start();
    node.deploy(
        "crash",
        "crash",
        "replicas = 2\n[traffic]\noutlier = { eject = \"3s\" }",
    );
    let replicas = status(&node, "crash")["replicas"].clone();
    let bad = replicas[0]["id"].as_str().unwrap().to_owned();
    for _ in 0..5 {
        node.narae(&["call", "crash", "/status?code=500", "--replica", &bad]);
    }
    let began = Instant::now();
    let ejected = |n: &Node| status(n, "crash")["replicas"][0]["ejected"] == true;
    node.until("it is ejected", ejected);
    // A second is promised; a busy machine and a debug build get more.
    let most = if common::strict() { 1 } else { 3 };
    assert!(began.elapsed() < Duration::from_secs(most), "{:?}", began.elapsed());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let shot = Shot {
        host: Some("crash.test".into()),
        ..Shot::get(format!("http://{}/", node.http).parse().unwrap())
    };
    let calls = |n: &Node| status(n, "crash")["replicas"][0]["calls"].as_u64().unwrap();
    let before = calls(&node);
    let load = runtime.block_on(async { Load::start(vec![shot.clone(), shot.on_new_connection()], 50) });
    common::until("a load is served", || load.good() >= 40);
    if ejected(&node) {
        assert_eq!(calls(&node), before, "none of it went there");
    }
    node.until("it is back", |n| !ejected(n));
    let goal = load.good() + 20;
    common::until("and the load goes on", || load.good() >= goal);
    let seen = runtime.block_on(load.finish());
    assert_eq!((seen.lost, &seen.examples), (0, &Vec::new()), "of {}", seen.sent);
    assert_eq!(count(&node, "crash", "ejected"), 1);
    assert_eq!(count(&node, "crash", "died"), 0, "an outlier is not dead");
    let metrics = node.ok(&["metrics"]);
    assert!(
        metrics.contains("narae_ejections_total{service=\"crash\",revision=\"1\"} 1"),
        "{metrics}"
    );
}

#[test]
fn a_replica_alone_is_never_ejected_and_of_two_that_both_fail_one_stays() {
    let node = Node::start();
    node.deploy("alone", "crash", "");
    node.deploy("both", "crash", "replicas = 2");
    for service in ["alone", "both"] {
        for _ in 0..40 {
            assert_eq!(
                node.get(&format!("/{service}/status?code=500")).status,
                500,
                "somebody answers"
            );
        }
        assert_eq!(node.get(&format!("/{service}")).status, 200);
    }
    assert_eq!(count(&node, "alone", "ejected"), 0);
    assert_eq!(count(&node, "both", "ejected"), 1);
}

#[test]
fn what_trapped_and_died_is_in_a_report_with_names_that_outlives_the_daemon_and_holds_no_environment() {
    let node = Node::start();
    node.deploy(
        "crash",
        "crash",
        "[env]\nPASSWORD = \"hunter2\"\n[config]\nkey = \"hunter2\"",
    );
    assert_eq!(crashes(&node), [] as [Value; 0]);
    assert_eq!(node.get("/crash/log?lines=3").status, 200);
    for _ in 0..5 {
        assert_eq!(node.get("/crash/trap").status, 500);
    }
    node.until("its death is reported", |n| {
        crashes(n).iter().any(|c| c["kind"] == "death")
    });
    let all = crashes(&node);
    let death = all.iter().find(|c| c["kind"] == "death").unwrap();
    assert!(
        death["reason"].as_str().unwrap().contains("5 calls in a row trapped"),
        "{death}"
    );
    let frames = |c: &Value| c["backtrace"].to_string();
    assert!(frames(death).contains("look_inside"), "{death}");
    assert_eq!(
        death["digest"],
        node.json(&["module", "list", "-o", "json"])["items"][0]["digest"]
    );
    assert!(!death["log"].as_array().unwrap().is_empty(), "{death}");
    let call = all.iter().find(|c| c["kind"] == "call").unwrap();
    assert!(
        frames(call).contains("look_inside") && call["limit"].is_null(),
        "{call}"
    );
    // As a person reads it.
    let id = death["id"].as_str().unwrap().to_owned();
    let shown = node.ok(&["crash", "show", &id]);
    for word in ["look_inside", "5 calls in a row", "last output", "revision: 1"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert_eq!(node.narae(&["crash", "show", "c999"]).status.code(), Some(4));
    assert_eq!(node.narae(&["crash", "show", "../../node.key"]).status.code(), Some(4));
    // More in the same minute are counted and not written.
    for _ in 0..30 {
        node.get("/crash/trap");
    }
    let written = crashes(&node).iter().filter(|c| c["kind"] == "call").count();
    assert!(written <= 10, "{written}");
    let dir = node.dir.path().join("data/crashes");
    for file in std::fs::read_dir(&dir).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
    let node = node.kill_and_restart();
    assert!(
        crashes(&node).iter().any(|c| c["id"] == id.as_str()),
        "reports outlive the daemon"
    );
    assert_eq!(
        node.json(&["crash", "show", &id, "-o", "json"])["reason"],
        death["reason"]
    );
}

#[test]
fn a_start_that_traps_leaves_its_frames_in_the_report() {
    let node = Node::start();
    let file = node.file("bad", "crash-start", "");
    assert_eq!(node.narae(&["deploy", &file]).status.code(), Some(1));
    node.until("it is reported", |n| !crashes(n).is_empty());
    let report = &crashes(&node)[0];
    assert!(
        report["reason"].as_str().unwrap().contains("its start trapped"),
        "{report}"
    );
    assert!(!report["backtrace"].as_array().unwrap().is_empty(), "{report}");
}
