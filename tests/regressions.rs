//! First-day disasters of projects of this kind, and our own bugs: each a rule, each a test with the real binary.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bound on another process is measured by the clock"
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use common::{BOUND, Node};
use narae_orchestrator::load::{Load, Shot};
use serde_json::Value;

fn events(node: &Node, service: &str) -> Vec<Value> {
    let text = node.ok(&["events", "--service", service, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn item(node: &Node, service: &str) -> Value {
    let list = node.json(&["list", "--all", "-o", "json"]);
    let items = list["items"].as_array().unwrap();
    items.iter().find(|i| i["name"] == service).unwrap().clone()
}

/// Sends these bytes, then reads until the server closes. Our side stays open: one that closes has left, and is not answered.
fn exchange(node: &Node, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(node.http).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// wadm: what was deleted was started over and over.
#[test]
fn a_service_deleted_in_a_crash_loop_is_gone_and_is_not_started_again() {
    let node = Node::start();
    node.deploy(
        "crash",
        "crash",
        "[restart]\nbackoff = { initial = \"10ms\", max = \"200ms\" }\ngive_up = { restarts = 2, within = \"5m\" }",
    );
    node.until("it is in crash-loop", |n| {
        n.get("/crash/trap");
        item(n, "crash")["state"] == "crash-loop"
    });
    node.ok(&["delete", "crash", "-y"]);
    node.until("its record is gone", |n| {
        n.narae(&["status", "crash"]).status.code() == Some(4)
    });
    let starts = |n: &Node| events(n, "crash").iter().filter(|e| e["kind"] == "started").count();
    let before = starts(&node);
    // Longer than several of its back-offs, measured by other work that the node does.
    let began = Instant::now();
    node.until("a second has passed", |n| {
        assert_eq!(n.get("/crash").status, 404);
        began.elapsed() > Duration::from_secs(1)
    });
    assert_eq!(starts(&node), before);
}

/// wasmCloud: a change of configuration stopped the old before the new was there.
#[test]
fn a_change_of_configuration_alone_starts_the_new_beside_the_old() {
    let node = Node::start();
    let more = |n: u32| format!("[config]\nn = \"{n}\"\n[rollout]\nmin_healthy_time = \"20ms\"");
    node.deploy("app", "config", &more(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let url: http::Uri = format!("http://{}/config/n", node.http).parse().unwrap();
    let shot = Shot {
        host: Some("app.test".into()),
        ..Shot::get(url)
    };
    let shots = vec![shot.clone(), shot.on_new_connection()];
    let load = runtime.block_on(async { Load::start(shots, 100) });
    for n in 1..=8 {
        node.deploy("app", "config", &more(n));
        assert_eq!(node.get("/app/config/n").text().trim(), n.to_string());
    }
    let seen = runtime.block_on(load.finish());
    assert_eq!((seen.lost, &seen.examples), (0, &Vec::new()), "of {}", seen.sent);
}

/// What a replica's readiness depends on: answers 200, 503 or nothing at all.
fn dependency() -> (std::net::SocketAddr, Arc<AtomicU8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mode = Arc::new(AtomicU8::new(WELL));
    let now = Arc::clone(&mode);
    std::thread::spawn(move || {
        let mut hung = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let status = match now.load(Ordering::SeqCst) {
                WELL => "200 OK",
                SICK => "503 Service Unavailable",
                _ => {
                    hung.push(stream);
                    continue;
                }
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (at, mode)
}

const WELL: u8 = 0;
const SICK: u8 = 1;
const HUNG: u8 = 2;

/// traefik: a failing health check still received traffic.
#[test]
fn a_replica_whose_readiness_fails_or_hangs_gets_no_traffic_until_it_is_ready_again() {
    let (at, mode) = dependency();
    let node = Node::start();
    let more = format!(
        "[outbound]\nallow = [\"http://{at}\"]\n\
         [probes.readiness]\npath = \"/?url=http://{at}/\"\ninterval = \"200ms\"\ntimeout = \"300ms\"\nfailures = 2\n"
    );
    node.deploy("app", "fetch", &more);
    assert_eq!(node.get("/app").status, 400, "it answers");
    for (state, word) in [(SICK, "503"), (HUNG, "no answer")] {
        mode.store(state, Ordering::SeqCst);
        let began = Instant::now();
        node.until("it is out of the routes", |n| n.get("/app").status == 503);
        // Two seconds are promised; a busy machine and a debug build get more.
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{word}: {:?}",
            began.elapsed()
        );
        let reply = node.get("/app");
        assert_eq!((reply.status, reply.header("x-narae-error")), (503, Some("no-replica")));
        assert!(reply.header("retry-after").is_some());
        assert_eq!(node.narae(&["status", "app"]).status.code(), Some(3));
        let reason = item(&node, "app")["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(word), "{reason}");
        let status = node.narae(&["status", "app", "-o", "json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let replica = status["replicas"][0]["id"].as_str().unwrap();
        let said = node.narae(&["call", "app", "/", "--replica", replica]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        assert!(said.contains("wanted: "), "a person reaches it by its name: {said}");
        mode.store(WELL, Ordering::SeqCst);
        node.until("it is in the routes again", |n| n.get("/app").status == 400);
    }
    assert_eq!(
        events(&node, "app").iter().filter(|e| e["kind"] == "unready").count(),
        2
    );
    assert_eq!(item(&node, "app")["restarts"], 0, "unready is not dead");
}

/// Pingora: a body that nobody read was taken for the next request. pingap: test the product, not the library.
#[test]
fn after_an_early_answer_a_connection_is_in_step_or_closed() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    for size in [10, 100 << 10, 4 << 20] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: nowhere.test\r\n\r\n";
        let mut bytes = format!("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: {size}\r\n\r\n").into_bytes();
        let end = bytes.len() + size;
        while bytes.len() + smuggled.len() <= end {
            bytes.extend_from_slice(smuggled.as_bytes());
        }
        bytes.resize(end, b'x');
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\nhost: hello.test\r\nconnection: close\r\n\r\n");
        let answer = exchange(&node, &bytes);
        let good = answer.matches("hello from narae").count();
        assert!(
            good == 2 || (good == 1 && size > 10) || (good == 0 && size > 1 << 20),
            "{size}: {answer}"
        );
        assert_eq!(
            answer.matches("no-route").count(),
            0,
            "{size}: a body became a request: {answer}"
        );
    }
}

/// Pingora: bytes after an Upgrade went through before any 101, and bodies of HTTP/1.0 had no end.
#[test]
fn an_upgrade_is_not_taken_and_http_1_0_has_no_chunks() {
    let node = Node::start();
    node.deploy("echo", "echo", "");
    let answer = exchange(
        &node,
        b"GET / HTTP/1.1\r\nhost: echo.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x05hello",
    );
    assert!(!answer.contains(" 101 "), "{answer}");
    assert!(!answer.contains("\x05hello"), "nothing of it reaches a guest: {answer}");
    let answer = exchange(
        &node,
        b"POST / HTTP/1.0\r\nhost: echo.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    assert!(
        answer.starts_with("HTTP/1.0 400") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    let answer = exchange(
        &node,
        b"POST / HTTP/1.0\r\nhost: echo.test\r\ncontent-length: 5\r\n\r\nhello",
    );
    assert!(
        answer.ends_with("\r\n\r\nhello"),
        "no chunks, and closed at its end: {answer}"
    );
    let answer = exchange(
        &node,
        b"POST / HTTP/1.0\r\nhost: echo.test\r\n\r\nGET / HTTP/1.0\r\nhost: echo.test\r\n\r\n",
    );
    assert_eq!(
        answer.matches("HTTP/1.").count(),
        1,
        "one request, no second one in its body: {answer}"
    );
}

/// traefik: one bad entry stopped the whole new configuration; and the wrong answer was given until all was loaded.
#[test]
fn one_unusable_module_stops_no_other_service_and_nothing_is_answered_before_state_is_loaded() {
    let node = Node::start();
    for n in 0..4 {
        node.deploy(&format!("hello{n}"), "hello", "");
    }
    node.deploy("broken", "echo", "");
    let digest = node.json(&["module", "list", "-o", "json"])["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["used_by"].to_string().contains("broken"))
        .unwrap()["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let blob = node
        .dir
        .path()
        .join("data/blobs/sha256")
        .join(&digest[..2])
        .join(&digest);
    std::fs::write(&blob, b"half a modu").unwrap();
    let node = node.kill_and_restart();
    for n in 0..4 {
        let reply = node.get(&format!("/hello{n}"));
        assert_eq!(reply.status, 200, "the first answer is the right one: {}", reply.text());
    }
    assert_eq!(node.get("/broken").status, 503, "known, but not served");
    node.until("it says why", |n| {
        let reason = item(n, "broken")["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("module") || reason.contains("prepared")
    });
    assert_eq!(node.narae(&["status", "broken"]).status.code(), Some(3));
    // The same file again changes no revision: it brings the module back, and nobody waits for a back-off.
    let file = node.file("broken", "echo", "");
    let said = node.ok(&["deploy", &file]);
    assert!(said.contains("nothing changed"), "{said}");
    assert_eq!(node.get("/broken").status, 200);
}

/// wasmcloud-otp: losing the store took the host with it. traefik: out of disk cut the state in half.
#[test]
fn without_room_on_the_disk_changes_are_refused_serving_goes_on_and_room_is_noticed() {
    // A file size limit stands for a full disk; the signal that comes with it must be ignored, as a full disk sends none.
    let deaf = |command: Command| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        shell
    };
    let node = Node::start_under(deaf, &[]);
    node.deploy("hello", "hello", "");
    node.deploy("crash", "crash", "");
    let size = |bytes: Option<u64>| {
        let pid = rustix::process::Pid::from_raw(i32::try_from(node.pid()).unwrap()).unwrap();
        let limit = rustix::process::Rlimit {
            current: bytes,
            maximum: None,
        };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    };
    size(Some(4096));
    let file = node.file("second", "echo", "");
    let output = node.narae(&["deploy", &file]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let scaled = node.narae(&["scale", "hello", "3"]);
    assert_eq!(node.get("/hello").status, 200, "what runs goes on");
    assert!(node.narae(&["list"]).status.success(), "and is seen");
    for _ in 0..5 {
        assert_eq!(node.get("/crash/trap").status, 500);
    }
    node.until("a replica that dies is healed without the store", |n| {
        let events = events(n, "crash");
        let count = |kind| events.iter().filter(|e| e["kind"] == kind).count();
        (count("died"), count("serving")) == (1, 2)
    });
    assert_eq!(node.get("/crash").status, 200);
    size(None);
    node.until("it works again without a restart", |n| {
        n.narae(&["deploy", &file]).status.success()
    });
    assert_eq!(node.get("/second").status, 200);
    node.ok(&["scale", "hello", "2"]);
    let node = node.kill_and_restart();
    assert_eq!(node.get("/hello").status, 200, "{scaled:?}");
    assert_eq!(node.get("/second").status, 200);
    assert_eq!(item(&node, "hello")["replicas_wanted"], 2);
}

/// wasmCloud: a deploy said OK and nothing ran.
#[test]
fn a_deploy_says_ok_only_when_the_new_revision_has_answered() {
    let node = Node::start();
    // Its every answer is an error: instantiated, and still not healthy.
    let file = node.file(
        "app",
        "version-broken",
        "[probes.startup]\ninterval = \"10ms\"\nfailures = 3",
    );
    let output = node.narae(&["deploy", &file]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(item(&node, "app")["state"], "failed");
}

/// Ours: processor time between the last look and a replica's death was in no metric.
#[test]
fn processor_time_of_a_replica_that_died_stays_in_the_metrics() {
    let node = Node::start();
    node.deploy(
        "spin",
        "spin",
        "[limits]\ncpu_time = \"200ms\"\n[probes.startup]\npath = \"/?ms=1\"",
    );
    for _ in 0..5 {
        assert_eq!(node.get("/spin").status, 500);
    }
    node.until("it died", |n| events(n, "spin").iter().any(|e| e["kind"] == "died"));
    let text = node.ok(&["metrics"]);
    let line = text
        .lines()
        .find(|l| l.starts_with("narae_cpu_seconds_total{service=\"spin\""))
        .unwrap();
    let seconds: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(seconds >= 0.9, "{line}");
}

/// It waits instead of computing, so no processor time runs out: the wall clock ends it.
#[test]
fn a_start_that_waits_is_refused_and_holds_nothing_up() {
    let node = Node::start();
    node.deploy("other", "hello", "");
    let wat = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/sleepy.wat");
    std::fs::copy(wat, node.dir.path().join("sleepy.wat")).unwrap();
    let file = node.dir.path().join("sleepy.toml");
    std::fs::write(
        &file,
        "name = \"sleepy\"\nmodule = \"sleepy.wat\"\n[limits]\nstart_time = \"100ms\"\n",
    )
    .unwrap();
    let output = node.narae(&["deploy", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the start did not end within"), "{said}");
    assert_eq!(node.get("/other").status, 200);
}

/// A guest that has the request may have done half of it: nobody but the client may decide to send it again.
#[test]
fn a_request_cut_off_by_the_end_of_a_drain_is_not_played_again() {
    let node = Node::start();
    let more = "replicas = 2\n[traffic]\ndrain = \"100ms\"\n[probes.startup]\npath = \"/?ms=1\"";
    node.deploy("slow", "slow", more);
    let to = node.http;
    let call = std::thread::spawn(move || {
        let started = Instant::now();
        let reply = common::request(to, "POST", "/?ms=20000", &[("host", "slow.test")], b"once");
        (reply, started.elapsed())
    });
    node.until("it is in flight", |_| item(&node, "slow")["in_flight"] == 1);
    node.ok(&["restart", "slow"]);
    let (reply, took) = call.join().unwrap();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Each refused release is a revision, too, and pins its module.
#[test]
fn revisions_that_never_prove_themselves_do_not_pile_up() {
    let node = Node::start();
    node.deploy("app", "version-v1", "[rollout]\nkeep_revisions = 3");
    for n in 0..6 {
        let file = node.file(
            "app",
            "crash-start",
            &format!("[rollout]\nkeep_revisions = 3\n[env]\nTRY = \"{n}\""),
        );
        assert_eq!(node.narae(&["deploy", &file]).status.code(), Some(8));
    }
    let history = node.json(&["rollout", "history", "app", "-o", "json"]);
    let kept = history["items"].as_array().unwrap().len();
    assert!(kept <= 4, "{kept} revisions are kept: {history}");
}

/// Ours: a comment in the file was a new revision, with a rollout.
#[test]
fn a_file_that_says_the_same_in_other_words_makes_no_revision() {
    let node = Node::start();
    node.deploy("hello", "hello", "replicas = 1");
    let file = node.file("hello", "hello", "");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("# the same\n{text}")).unwrap();
    let answer = node.json(&["deploy", &file, "-o", "json"]);
    let answer = &answer["items"][0];
    assert_eq!(
        (&answer["revision"], &answer["changed"]),
        (&1.into(), &false.into()),
        "{answer}"
    );
    assert_eq!(item(&node, "hello")["revision"], 1);
}

/// Ours: `--grace` was refused, and the API took `grace_ms` and forgot it.
#[test]
fn a_grace_that_was_asked_for_holds_instead_of_the_files_drain() {
    let node = Node::start();
    let more = "[limits]\ntimeout = \"60s\"\n[probes.startup]\npath = \"/?ms=1\"";
    for (verb, service) in [("restart", "one"), ("stop", "two"), ("delete", "three")] {
        node.deploy(service, "slow", more);
        let (to, host) = (node.http, format!("{service}.test"));
        let call = std::thread::spawn(move || common::request(to, "GET", "/?ms=50000", &[("host", &host)], b"").status);
        node.until("it is in flight", |n| item(n, service)["in_flight"] == 1);
        let began = Instant::now();
        node.ok(&[verb, service, "--grace", "200ms", "-y"]);
        assert_eq!(call.join().unwrap(), 503, "{verb}");
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{verb}: {:?}",
            began.elapsed()
        );
    }
    let answer = node.api("DELETE", "/v1/services/one?grace=5s", b"").unwrap();
    assert_eq!(
        answer.status,
        400,
        "what is not understood is not ignored: {}",
        answer.text()
    );
}

/// Ours: nobody noticed that a variable with a slip of the finger did nothing.
#[test]
fn a_mistyped_variable_is_told_once() {
    let output = Command::new(common::binary())
        .args(["help", "E0042"])
        .env("NARAE_LISTN", "127.0.0.1:0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("NARAE_LISTN").count(), 1, "{said}");
    assert!(said.contains("did you mean `NARAE_LISTEN`?"), "{said}");
    assert!(output.status.success());
}

/// Ours: the data threads share their port, and two daemons that started at once could share it, too.
#[test]
fn of_daemons_that_start_at_once_on_one_port_one_serves() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |dir: &tempfile::TempDir| {
        Command::new(common::binary())
            .args(["serve", "--listen", &port.to_string(), "--data-dir"])
            .arg(dir.path().join("data"))
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut daemons: Vec<_> = dirs.iter().map(start).collect();
    common::until("all but one have ended", || {
        let ended = daemons.iter_mut().filter_map(|d| d.try_wait().unwrap());
        ended.count() == 3
    });
    common::until("that one serves", || {
        TcpStream::connect(port).is_ok_and(|mut stream| {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).is_ok() && answer.contains(" 404 ")
        })
    });
    let running = |d: &mut std::process::Child| d.try_wait().unwrap().is_none();
    let serving = daemons.iter_mut().map(running).filter(|running| *running).count();
    for daemon in &mut daemons {
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
    assert_eq!(serving, 1);
}
