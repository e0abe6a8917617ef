//! Every limit of a service file and of a node, with the real binary: what goes over it is refused cleanly, told and
//! counted, and afterwards everything is as before.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bound on another process is measured by the clock"
)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{BOUND, Node, Reply, request};
use narae_runtime::Digest;
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn events(node: &Node, service: &str) -> Vec<Value> {
    let text = node.ok(&["events", "--service", service, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An event names this service, its revision and this limit.
fn told(node: &Node, service: &str, limit: &str) -> bool {
    let events = events(node, service);
    events
        .iter()
        .any(|e| e["kind"] == "limit" && e["limit"] == limit && e["revision"] == 1)
}

fn item(node: &Node, service: &str) -> Value {
    let list = node.json(&["list", "--all", "-o", "json"]);
    let items = list["items"].as_array().unwrap();
    items.iter().find(|i| i["name"] == service).unwrap().clone()
}

/// Asks from a thread of its own.
fn ask(node: &Node, service: &str, path: &str) -> JoinHandle<(Reply, Duration)> {
    let (to, host, path) = (node.http, format!("{service}.test"), path.to_owned());
    std::thread::spawn(move || {
        let began = Instant::now();
        let reply = request(to, "GET", &path, &[("host", &host)], b"");
        (reply, began.elapsed())
    })
}

/// What `slow` and `spin` need to prove themselves under tight limits.
const QUICK_PROBE: &str = "[probes.startup]\npath = \"/?ms=1\"\n";

#[test]
fn memory_over_the_limit_is_refused_to_the_guest_and_the_next_request_starts_afresh() {
    let node = Node::start();
    node.deploy("greedy", "greedy", "[limits]\nmemory = \"32MiB\"");
    assert_eq!(node.get("/greedy/?mib=24").status, 200);
    let reply = node.get("/greedy/?mib=64");
    assert_eq!(reply.status, 507, "growth fails in the guest: {}", reply.text());
    let got: u64 = reply.text().split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!((24..32).contains(&got), "{got} MiB of 32");
    let reply = node.get("/greedy/bomb");
    assert_eq!((reply.status, reply.header("x-narae-error")), (500, Some("limit")));
    assert!(told(&node, "greedy", "memory"));
    assert_eq!(node.get("/greedy/?mib=24").status, 200);
    assert_eq!(item(&node, "greedy")["state"], "healthy");
}

/// Runs a core module whose `_start` is this, as a command; its exit code and what was said.
fn run(declared: &str, start: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("(module {declared} (memory (export \"memory\") 1) (func (export \"_start\") {start}))");
    let wasm = dir.path().join("limit.wasm");
    std::fs::write(&wasm, wat::parse_str(text).unwrap()).unwrap();
    let output = Command::new(common::binary())
        .args(["run", wasm.to_str().unwrap()])
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_table_grows_to_its_limit_and_no_further() {
    let grow = |by: u32| {
        format!("(if (i32.eq (table.grow (ref.null func) (i32.const {by})) (i32.const -1)) (then unreachable))")
    };
    let (code, said) = run("(table 1 funcref)", &grow(9_000));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run("(table 1 funcref)", &grow(20_000));
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("unreachable") || said.contains("tables"), "{said}");
    let (code, said) = run("(table 30000000 funcref)", "nop");
    assert!(matches!(code, Some(1 | 9 | 125)), "{code:?} {said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_head_that_does_not_come_in_time_is_504_and_a_stream_that_moves_has_no_end() {
    let node = Node::start();
    let more = format!("[limits]\ntimeout = \"300ms\"\n{QUICK_PROBE}");
    node.deploy("slow", "slow", &more);
    let began = Instant::now();
    let reply = node.get("/slow/?ms=60000");
    assert_eq!((reply.status, reply.header("x-narae-error")), (504, Some("timeout")));
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(10));
    assert!(told(&node, "slow", "timeout"));
    let reply = node.get("/slow/stream?n=8&ms=100");
    assert_eq!((reply.status, reply.whole), (200, true), "its head was in time");
    assert!(reply.text().ends_with("tick 8\n"));
    for _ in 0..8 {
        assert_eq!(node.get("/slow/?ms=60000").status, 504);
    }
    assert_eq!(item(&node, "slow")["restarts"], 0, "slowness is no death");
}

#[test]
fn an_answer_that_http_does_not_allow_is_502_and_half_an_answer_never_ends_cleanly() {
    let node = Node::start();
    node.deploy("crash", "crash", "");
    for target in ["/crash/noresponse", "/crash/status?code=101"] {
        let reply = node.get(target);
        assert!(matches!(reply.status, 500 | 502), "{target}: {reply:?}");
        assert!(reply.whole, "{target}");
    }
    assert_eq!(
        node.get("/crash/noresponse").header("x-narae-error"),
        Some("bad-answer")
    );
    for (target, body) in [("/crash/half", "half of"), ("/crash/half?length=100", "half of")] {
        let reply = node.get(target);
        assert_eq!((reply.status, reply.whole), (200, false), "{target}: {reply:?}");
        assert_eq!(reply.text(), body, "{target}: what was there is not kept back");
    }
    // HTTP/1.0 knows no chunks, so that only a reset tells the end of a body from its breaking off.
    let mut stream = TcpStream::connect(node.http).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
        .write_all(b"GET /half HTTP/1.0\r\nhost: crash.test\r\n\r\n")
        .unwrap();
    let end = stream.read_to_end(&mut Vec::new());
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let all = events(&node, "crash");
    assert!(
        all.iter().any(|e| e["message"].as_str().unwrap().contains("aborted")),
        "a failure after the head is told"
    );
}

#[test]
fn a_head_of_a_guest_is_bounded_and_cannot_split_the_answer() {
    let node = Node::start();
    node.deploy("crash", "crash", "");
    let head = |value: &str| node.get(&format!("/crash/head?name=x-own&value={value}"));
    assert_eq!(head("fine").header("x-own"), Some("fine"));
    // The client's own request is bounded to 8 KiB, so a large head is made of what fits there.
    let large = head(&"a".repeat(7_500));
    assert!(
        large.whole && matches!(large.status, 200 | 500 | 502),
        "{}",
        large.status
    );
    for split in ["a%0d%0aset-cookie:%20b", "a%0aset-cookie:%20b", "a%00b"] {
        let reply = head(split);
        assert!(matches!(reply.status, 500 | 502), "{split}: {reply:?}");
        assert!(reply.header("set-cookie").is_none(), "{split}: {reply:?}");
    }
    for name in [
        "connection",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "keep-alive",
    ] {
        let reply = node.get(&format!("/crash/head?name={name}&value=chunked"));
        assert!(
            matches!(reply.status, 500 | 502) || reply.whole,
            "{name}: framing is the host's: {reply:?}"
        );
    }
    assert_eq!(node.get("/crash").status, 200);
}

#[test]
fn a_flood_of_log_lines_is_bounded_and_counted_and_escapes_are_made_visible() {
    let node = Node::start();
    node.deploy("crash", "crash", "[logs]\nrate = \"50/s\"\nkeep = \"64KiB\"");
    let before = node.resident();
    assert_eq!(node.get("/crash/log?lines=20000&bytes=200").status, 200);
    node.until("the surplus is told", |n| {
        n.ok(&["logs", "crash"]).contains("lines dropped")
    });
    let kept = node.ok(&["logs", "crash", "-n", "100000"]);
    assert!(kept.len() < 256 << 10, "{} bytes", kept.len());
    assert!(kept.lines().count() < 1_000, "{} lines", kept.lines().count());
    let grown = node.resident().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB", grown / MIB);
    node.until("the escapes arrive", |n| {
        // The rate may still be spent.
        n.get("/crash/escape");
        n.ok(&["logs", "crash"]).contains("\\x1b[31mred")
    });
    let text = node.ok(&["logs", "crash"]);
    assert!(
        text.bytes()
            .all(|b| b == b'\n' || b == b'\t' || (b >= 0x20 && b != 0x7f)),
        "no control byte reaches a terminal"
    );
    assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
}

#[test]
fn over_the_queue_503_comes_at_once_and_after_the_burst_all_is_as_before() {
    let node = Node::start();
    let more = format!("[limits]\nconcurrency = 2\nqueue = 3\nqueue_wait = \"30s\"\n{QUICK_PROBE}");
    node.deploy("slow", "slow", &more);
    let running: Vec<_> = (0..2).map(|_| ask(&node, "slow", "/?ms=3000")).collect();
    node.until("both run", |n| item(n, "slow")["in_flight"] == 2);
    let waiting: Vec<_> = (0..3).map(|_| ask(&node, "slow", "/?ms=1")).collect();
    node.until("three wait", |n| item(n, "slow")["queued"] == 3);
    for _ in 0..20 {
        let began = Instant::now();
        let reply = node.get("/slow/?ms=1");
        assert_eq!((reply.status, reply.header("x-narae-error")), (503, Some("queue-full")));
        assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "at once: {:?}",
            began.elapsed()
        );
    }
    for asked in running.into_iter().chain(waiting) {
        assert_eq!(asked.join().unwrap().0.status, 200, "those in line are served");
    }
    for _ in 0..10 {
        assert_eq!(node.get("/slow/?ms=1").status, 200);
    }
    assert_eq!(
        (&item(&node, "slow")["in_flight"], &item(&node, "slow")["queued"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn waiting_in_the_queue_ends_after_queue_wait() {
    let node = Node::start();
    let more = format!("[limits]\nconcurrency = 1\nqueue = 3\nqueue_wait = \"200ms\"\n{QUICK_PROBE}");
    node.deploy("slow", "slow", &more);
    let running = ask(&node, "slow", "/?ms=2500");
    node.until("it runs", |n| item(n, "slow")["in_flight"] == 1);
    let (reply, took) = ask(&node, "slow", "/?ms=1").join().unwrap();
    assert_eq!((reply.status, reply.header("x-narae-error")), (503, Some("queue-wait")));
    assert!(reply.header("retry-after").is_some());
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert_eq!(running.join().unwrap().0.status, 200);
}

#[test]
fn clients_that_leave_give_their_places_back() {
    let node = Node::start();
    let more = format!("[limits]\nconcurrency = 4\nqueue = 8\nqueue_wait = \"30s\"\ntimeout = \"120s\"\n{QUICK_PROBE}");
    node.deploy("slow", "slow", &more);
    // Waits that end after the test's own bound: only leaving can free their places.
    for round in 0..3 {
        let clients: Vec<TcpStream> = (0..40)
            .map(|_| {
                let mut stream = TcpStream::connect(node.http).unwrap();
                stream
                    .write_all(b"GET /?ms=100000 HTTP/1.1\r\nhost: slow.test\r\n\r\n")
                    .unwrap();
                stream
            })
            .collect();
        node.until("every place is taken", |n| {
            let item = item(n, "slow");
            item["in_flight"] == 4 && item["queued"] == 8
        });
        assert_eq!(node.get("/slow/?ms=1").status, 503, "round {round}");
        drop(clients);
        node.until("a normal request works again", |n| n.get("/slow/?ms=1").status == 200);
        node.until("nothing is left in flight", |n| {
            let item = item(n, "slow");
            item["in_flight"] == 0 && item["queued"] == 0
        });
    }
    // A body that nobody reads any more, too.
    let mut streams: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(node.http).unwrap();
            stream
                .write_all(b"GET /stream?n=100000&ms=20 HTTP/1.1\r\nhost: slow.test\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    for stream in &mut streams {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    }
    drop(streams);
    node.until("their places are free", |n| item(n, "slow")["in_flight"] == 0);
    assert_eq!(node.get("/slow/?ms=1").status, 200);
}

#[test]
fn twenty_greedy_services_stay_within_the_budget_and_the_others_are_served() {
    let node = Node::start_with_config("[engine]\nmemory_budget = \"512MiB\"\n");
    node.deploy("hello", "hello", "");
    for n in 0..20 {
        node.deploy(&format!("g{n}"), "greedy", "");
    }
    let before = node.resident();
    let holding: Vec<_> = (0..60)
        .map(|n| ask(&node, &format!("g{}", n % 20), "/hold?mib=60&ms=4000"))
        .collect();
    let budget = || {
        let list = node.json(&["list", "-o", "json"]);
        let items = list["items"].as_array().unwrap().clone();
        items.iter().map(|i| i["memory_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    node.until("the budget is nearly spent", |_| budget() > 400 * MIB);
    let mut worst = 0;
    let mut asked = 0;
    while !holding.iter().all(JoinHandle::is_finished) {
        assert_eq!(
            node.get("/hello").status,
            200,
            "who holds little is served: {}",
            budget() / MIB
        );
        worst = worst.max(node.resident());
        asked += 1;
    }
    assert!(asked > 3, "{asked}");
    let grown = worst.saturating_sub(before);
    assert!(grown < 700 * MIB, "{} MiB over {}", grown / MIB, before / MIB);
    let mut seen = [0; 3];
    for reply in holding {
        let (reply, _) = reply.join().unwrap();
        match reply.status {
            200 => seen[0] += 1,
            // Growth failed in the guest, which said so.
            507 => seen[1] += 1,
            503 => {
                seen[2] += 1;
                assert_eq!(reply.header("x-narae-error"), Some("out-of-memory"));
                assert!(reply.header("retry-after").is_some());
            }
            _ => panic!("{reply:?}"),
        }
    }
    assert!(seen[1] + seen[2] > 0, "{seen:?}");
    for n in 0..20 {
        let reply = node.get(&format!("/g{n}/?mib=60"));
        assert_eq!(reply.status, 200, "afterwards all is well: g{n}: {}", reply.text());
    }
    assert_eq!(budget(), 0, "all was given back");
}

#[test]
fn under_little_address_space_the_node_starts_and_says_how() {
    for (kib, modes) in [
        (8 << 20, &["pooling", "on-demand"][..]),
        (2 << 20, &["pooling", "on-demand"][..]),
    ] {
        let limited = |command: Command| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("ulimit -v {kib}; exec \"$@\""), "sh"])
                .arg(command.get_program())
                .args(command.get_args());
            shell
        };
        let node = Node::start_under(limited, &[]);
        node.deploy("hello", "hello", "");
        node.deploy("p3", "hello-p3", "");
        assert_eq!(node.get("/hello").text(), "hello from narae\n", "{kib} KiB");
        assert_eq!(node.get("/p3").text(), "hello from narae 0.3\n", "{kib} KiB");
        let mut heard = Vec::new();
        while let Ok(line) = node.said.recv_timeout(Duration::from_secs(5)) {
            let found = line.contains("allocator");
            heard.push(line);
            if found {
                break;
            }
        }
        let line = heard.last().cloned().unwrap_or_default();
        assert!(modes.iter().any(|m| line.contains(m)), "{kib} KiB: {heard:?}");
    }
}

/// A small server that counts who reaches it: `/redirect` leads to `/`, `/hang` never answers.
struct Outside {
    at: SocketAddr,
    reached: Arc<AtomicUsize>,
}

impl Outside {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let reached = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reached);
        std::thread::spawn(move || {
            let mut hung = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                    head.push(byte[0]);
                }
                let answer = if head.starts_with(b"GET /hang") {
                    hung.push(stream);
                    continue;
                } else if head.starts_with(b"GET /redirect") {
                    format!(
                        "HTTP/1.1 302 Found\r\nlocation: http://{at}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    )
                } else {
                    "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\noutside".to_owned()
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { at, reached }
    }
}

#[test]
fn a_guest_reaches_what_is_listed_and_nothing_else() {
    let outside = Outside::start();
    let (at, port) = (outside.at, outside.at.port());
    let node = Node::start();
    node.deploy("none", "fetch", "");
    node.deploy(
        "listed",
        "fetch",
        &format!("[outbound]\nallow = [\"http://{at}\"]\ntimeout = \"500ms\""),
    );
    node.deploy(
        "name",
        "fetch",
        &format!("[outbound]\nallow = [\"http://localhost:{port}\"]"),
    );
    node.deploy(
        "open",
        "fetch",
        &format!("[outbound]\nallow = [\"http://localhost:{port}\"]\nprivate = true"),
    );
    let fetch = |service: &str, url: &str| node.get(&format!("/{service}/?url={url}"));
    let reached = || outside.reached.load(Ordering::SeqCst);

    let admin = node.http.port();
    let closed = [
        ("none", format!("http://{at}/")),
        ("none", format!("http://localhost:{port}/")),
        ("listed", format!("http://localhost:{port}/")),
        ("listed", format!("http://127.0.0.1:{admin}/")),
        ("listed", format!("http://127.1:{port}/")),
        ("listed", format!("http://2130706433:{port}/")),
        ("listed", format!("http://0177.0.0.1:{port}/")),
        ("listed", format!("http://0.0.0.0:{port}/")),
        ("listed", format!("http://[::1]:{port}/")),
        ("listed", format!("http://[::ffff:127.0.0.1]:{port}/")),
        ("listed", "http://169.254.169.254/latest/meta-data/".to_owned()),
        ("listed", format!("https://{at}/")),
        // A name that leads to loopback is as closed as loopback.
        ("name", format!("http://localhost:{port}/")),
        ("name", format!("http://{at}/")),
        ("open", format!("http://127.0.0.1:{port}/")),
    ];
    for (service, url) in closed {
        let reply = fetch(service, &url);
        assert_eq!(reply.status, 502, "{service} {url}: {}", reply.text());
        let text = reply.text();
        assert!(
            text.contains("Denied") || text.contains("Prohibited") || text.contains("URI"),
            "{service} {url}: {text}"
        );
    }
    assert_eq!(reached(), 0);
    assert_eq!(fetch("listed", &format!("http://{at}/")).text(), "outside");
    assert_eq!(fetch("open", &format!("http://localhost:{port}/")).text(), "outside");
    assert_eq!(reached(), 2);
    assert_eq!(
        fetch("listed", &format!("http://{at}/redirect")).status,
        302,
        "the guest's to follow"
    );
    assert_eq!(reached(), 3, "the host follows nothing");
    let began = Instant::now();
    let reply = fetch("listed", &format!("http://{at}/hang"));
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("Timeout"), "{}", reply.text());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_guest_sees_nothing_of_the_host() {
    let bare = |mut command: Command| {
        command.env("NARAE_TEST_SECRET", "hunter2");
        command
    };
    let node = Node::start_under(bare, &[]);
    node.deploy("peek", "peek", "");
    node.deploy("config", "config", "[env]\nOWN = \"yes\"");
    let seen = node.get("/peek").text();
    assert!(seen.starts_with("env=0 ") && seen.contains("preopens=0"), "{seen}");
    assert!(!seen.contains("connected") && !seen.contains("resolved"), "{seen}");
    assert_eq!(node.get("/config/env/OWN").text().trim(), "yes");
    for name in ["NARAE_TEST_SECRET", "PATH", "HOME", "NARAE_HOST"] {
        assert_eq!(node.get(&format!("/config/env/{name}")).status, 404, "{name}");
    }
    let own = node.ok(&["inspect", "config", "-o", "json"]);
    assert!(!own.contains("hunter2"));
}

/// One request over the admin socket; the answer's status and text. `length` is announced, `body` is sent.
fn upload(node: &Node, digest: &str, length: u64, body: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    let head = format!(
        "PUT /v1/modules/{digest} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    // It may be refused before it is sent whole.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text)
}

fn put(node: &Node, body: &[u8]) -> (u16, String) {
    upload(node, &Digest::of(body).to_string(), body.len() as u64, body)
}

#[test]
fn hostile_uploads_are_refused_in_bounded_time_and_memory() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let good = std::fs::read(common::module("crash")).unwrap();
    let imports: String = (0..20_000)
        .map(|n| format!(r#"(import "wasi_snapshot_preview1" "f{n}" (func))"#))
        .collect();
    let imports = wat::parse_str(format!(r#"(module {imports} (func (export "_start")))"#)).unwrap();
    let zeros = vec![0; 32 << 20];
    let mut header = b"\0asm\x0d\0\x01\0".to_vec();
    header.resize(8 << 20, 0xff);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"(component)".to_vec()),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".repeat(1000)),
        (
            "ELF",
            std::fs::read("/bin/sh").unwrap_or_else(|_| b"\x7fELF\x02\x01\x01".to_vec()),
        ),
        ("script", b"#!/bin/sh\nrm -rf /\n".to_vec()),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("cut by one", good[..good.len() - 1].to_vec()),
        ("another version", b"\0asm\x02\0\0\0".to_vec()),
        ("20,000 imports", imports),
        ("zeros", zeros),
        ("a header and noise", header),
    ];
    let before = node.resident();
    let mut worst = before;
    for (what, body) in &cases {
        let began = Instant::now();
        let (status, text) = put(&node, body);
        assert!((400..500).contains(&status), "{what}: {status} {text}");
        assert!(text.contains("\"code\""), "{what}: {text}");
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{what}: {:?}",
            began.elapsed()
        );
        worst = worst.max(node.resident());
    }
    // Announced without end: refused, or at least not waited for with memory.
    for length in [10_u64 << 30, u64::MAX / 2] {
        let (status, text) = upload(&node, &Digest::of(b"x").to_string(), length, b"\0asm");
        assert_eq!(status, 413, "{text}");
    }
    let (status, text) = upload(&node, &Digest::of(b"x").to_string(), good.len() as u64, &good);
    assert_eq!(status, 400, "another digest than it has: {text}");
    for path in [
        "..%2f..%2fetc%2fpasswd",
        "sha256:../../../etc/passwd",
        "sha256:00",
        "%00",
    ] {
        let (status, text) = upload(&node, path, 4, b"\0asm");
        assert!((400..500).contains(&status), "{path}: {status} {text}");
    }
    worst = worst.max(node.resident());
    let grown = worst - before;
    assert!(grown < 300 * MIB, "{} MiB", grown / MIB);
    assert_eq!(node.get("/hello").status, 200);
    let listed = node.json(&["module", "list", "-o", "json"]);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "nothing of it was kept");
}

#[test]
fn mutants_of_a_real_guest_are_refused_or_contained() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let good = std::fs::read(common::module("hello")).unwrap();
    for seed in 0..20_u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut mutant = good.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(8..mutant.len());
            mutant[at] = random.u8(..);
        }
        let name = format!("m{seed}");
        std::fs::write(node.dir.path().join(format!("{name}.wasm")), &mutant).unwrap();
        std::fs::write(
            node.dir.path().join(format!("{name}.toml")),
            format!(
                "name = \"{name}\"\nmodule = \"{name}.wasm\"\n[[route]]\nhost = \"{name}.test\"\n\
                 [limits]\nstart_time = \"500ms\"\ncpu_time = \"200ms\"\n[probes.startup]\nfailures = 3\ninterval = \"10ms\"\n"
            ),
        )
        .unwrap();
        let began = Instant::now();
        let output = node.narae(&["deploy", &format!("{name}.toml")]);
        let code = output.status.code();
        let text = String::from_utf8_lossy(&output.stderr);
        // A byte of a string or of a custom section changes nothing that matters.
        assert!(matches!(code, Some(0 | 1 | 9)), "seed {seed}: {code:?} {text}");
        assert!(!text.contains("panicked"), "seed {seed}: {text}");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "seed {seed}: {:?}",
            began.elapsed()
        );
        assert_eq!(node.get("/hello").status, 200, "seed {seed}");
    }
}

#[test]
fn a_large_upload_by_many_at_once_does_not_fill_the_memory() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let before = node.resident();
    let mut body = b"\0asm\x0d\0\x01\0".to_vec();
    body.resize(60 << 20, 0);
    let body = Arc::new(body);
    let digest = Digest::of(b"not it").to_string();
    let socket = node.socket();
    let uploads: Vec<_> = (0..12)
        .map(|_| {
            let (socket, body, digest) = (socket.clone(), Arc::clone(&body), digest.clone());
            std::thread::spawn(move || {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.set_read_timeout(Some(BOUND)).unwrap();
                stream.set_write_timeout(Some(BOUND)).unwrap();
                let head = format!(
                    "PUT /v1/modules/{digest} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                String::from_utf8_lossy(&answer).into_owned()
            })
        })
        .collect();
    let mut worst = before;
    while !uploads.iter().all(JoinHandle::is_finished) {
        worst = worst.max(node.resident());
        assert_eq!(node.get("/hello").status, 200);
    }
    for upload in uploads {
        let answer = upload.join().unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 503"),
            "{answer}"
        );
    }
    let grown = worst - before;
    assert!(grown < 300 * MIB, "{} MiB", grown / MIB);
}
