//! The times that are promised, measured: neighbours of a spinning guest, a deadline, a death, a crash-loop, a hung replica.
//!
//! They hold for a release build: `.ci/run` runs this file against one with `NARAE_STRICT=1`. Against a dev build the same
//! tests only see that nothing is far off. Whatever another program on the machine could falsify is measured in several rounds,
//! and compared with the quiet state of the same run.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bound on another process is measured by the clock"
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{BOUND, Node};
use serde_json::Value;

/// Ten milliseconds: a guest that computes lets others on at each.
const TICK: Duration = Duration::from_millis(10);

/// One at a time: two that measure disturb each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The promise where it is promised, else so much that only a wait without end is over it.
fn bound(promised: Duration) -> Duration {
    if common::strict() {
        promised
    } else {
        (promised * 20).max(Duration::from_secs(4))
    }
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all[all.len() / 2]
}

/// What other programs on the machine add is in some rounds and not in others; what is ours is in all: the second best.
fn usual(mut rounds: Vec<Duration>) -> Duration {
    rounds.sort_unstable();
    rounds[1]
}

fn events(node: &Node, service: &str) -> Vec<Value> {
    let text = node.ok(&["events", "--service", service, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn item(node: &Node, service: &str) -> Value {
    let list = node.json(&["list", "--all", "-o", "json"]);
    let items = list["items"].as_array().unwrap();
    items.iter().find(|i| i["name"] == service).unwrap().clone()
}

/// When it was, in milliseconds of its day.
fn at(event: &Value) -> i64 {
    let time = event["at"].as_str().unwrap().split('T').nth(1).unwrap();
    let part = |n: usize| {
        let text = time.trim_end_matches('Z').split([':', '.']).nth(n).unwrap_or("0");
        text.parse::<i64>().unwrap()
    };
    ((part(0) * 60 + part(1)) * 60 + part(2)) * 1000 + part(3)
}

/// Passes the time; there is nothing to wait for but the clock.
fn pass(time: Duration) {
    let began = Instant::now();
    common::until("time passes", || began.elapsed() >= time);
}

/// A guest that computes without a pause until its client leaves.
fn spin(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.http).unwrap();
    stream
        .write_all(b"GET /?ms=25000 HTTP/1.1\r\nhost: spin.test\r\n\r\n")
        .unwrap();
    node.until("it spins", |n| item(n, "spin")["in_flight"] == 1);
    stream
}

/// Connections that are kept: so many that some are on each data thread.
struct Kept(Vec<TcpStream>);

impl Kept {
    fn open(node: &Node) -> Self {
        let open = |_| {
            let stream = TcpStream::connect(node.http).unwrap();
            stream.set_read_timeout(Some(BOUND)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        Self((0..8).map(open).collect())
    }

    /// The 99th percentile of `hello`'s answers.
    fn p99(&mut self) -> Duration {
        let mut all = Vec::new();
        for _ in 0..40 {
            for stream in &mut self.0 {
                let began = Instant::now();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                let mut piece = [0; 4096];
                while !answer.ends_with(b"hello from narae\n") {
                    let n = stream.read(&mut piece).unwrap();
                    assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
                    answer.extend_from_slice(&piece[..n]);
                }
                all.push(began.elapsed());
            }
        }
        all.sort_unstable();
        all[all.len() * 99 / 100]
    }
}

/// The slowest but one of twenty of these.
fn slowest(mut ask: impl FnMut()) -> Duration {
    let mut all: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            ask();
            began.elapsed()
        })
        .collect();
    all.sort_unstable();
    all[18]
}

const SPIN: &str = "[limits]\ncpu_time = \"30s\"\n[probes.startup]\npath = \"/?ms=1\"";

#[test]
fn while_a_guest_spins_its_neighbours_wait_two_ticks_more_and_new_connections_and_the_admin_door_fifty_milliseconds() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("spin", "spin", SPIN);
    node.deploy("hello", "hello", "replicas = 2");
    let mut kept = Kept::open(&node);
    let (mut neighbours, mut connections, mut doors) = (Vec::new(), Vec::new(), Vec::new());
    let hello = || assert_eq!(node.get("/hello").status, 200);
    let door = || assert_eq!(node.api("GET", "/v1/services", b"").unwrap().status, 200);
    for _ in 0..6 {
        let quiet = (kept.p99(), slowest(hello), slowest(door));
        let stop = spin(&node);
        let busy = (kept.p99(), slowest(hello), slowest(door));
        drop(stop);
        node.until("it spins no more", |n| item(n, "spin")["in_flight"] == 0);
        neighbours.push(busy.0.saturating_sub(quiet.0));
        connections.push(busy.1.saturating_sub(quiet.1));
        doors.push(busy.2.saturating_sub(quiet.2));
    }
    let (neighbours, connections, doors) = (usual(neighbours), usual(connections), usual(doors));
    assert!(neighbours <= bound(TICK * 2), "neighbours wait {neighbours:?} more");
    let most = bound(Duration::from_millis(50));
    assert!(connections <= most, "a new connection waits {connections:?} more");
    assert!(doors <= most, "the admin door takes {doors:?} more");
}

#[test]
fn a_guest_in_a_loop_is_interrupted_within_a_tenth_of_a_second_of_its_deadline() {
    let _alone = alone();
    let node = Node::start();
    node.deploy(
        "spin",
        "spin",
        &format!(
            "{}\ntimeout = \"300ms\"\n[probes.startup]\npath = \"/?ms=1\"",
            SPIN.lines().take(2).collect::<Vec<_>>().join("\n")
        ),
    );
    node.deploy("hello", "hello", "");
    let timed = |target: &str, status: u16| {
        let began = Instant::now();
        assert_eq!(node.get(target).status, status, "{target}");
        began.elapsed()
    };
    let past = (0..9).map(|_| {
        let quiet = timed("/hello", 200);
        timed("/spin", 504)
            .saturating_sub(quiet)
            .saturating_sub(Duration::from_millis(300))
    });
    let past = median(past.collect());
    assert!(past <= bound(Duration::from_millis(100)), "{past:?} past the deadline");
}

#[test]
fn a_trapped_replica_serves_again_within_fifty_milliseconds_of_its_death() {
    let _alone = alone();
    let node = Node::start();
    let healed = (0..7).map(|n| {
        let name = format!("crash{n}");
        node.deploy(&name, "crash", "");
        for _ in 0..5 {
            assert_eq!(node.get(&format!("/{name}/trap")).status, 500);
        }
        node.until("it serves again", |n| {
            events(n, &name).iter().filter(|e| e["kind"] == "serving").count() == 2
        });
        let events = events(&node, &name);
        let died = events.iter().find(|e| e["kind"] == "died").unwrap();
        let serving = events.iter().rfind(|e| e["kind"] == "serving").unwrap();
        (at(serving) - at(died)).rem_euclid(86_400_000)
    });
    let healed = median(healed.collect());
    let most = i64::try_from(bound(Duration::from_millis(50)).as_millis()).unwrap();
    assert!((10..=most).contains(&healed), "after {healed} ms");
}

/// Processor time of every thread of the daemon.
fn cpu(node: &Node) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(of).sum())
}

#[test]
fn a_crash_loop_costs_less_than_a_hundredth_of_a_core() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.deploy(
        "crash",
        "crash",
        "[restart]\ngive_up = { restarts = 3, within = \"5m\" }",
    );
    let share = |over: Duration| {
        let (began, before) = (Instant::now(), cpu(&node));
        pass(over);
        (cpu(&node) - before).as_secs_f64() / began.elapsed().as_secs_f64()
    };
    let quiet = share(Duration::from_secs(3));
    node.until("it is in crash-loop", |n| {
        n.get("/crash/trap");
        item(n, "crash")["state"] == "crash-loop"
    });
    let looping = share(Duration::from_secs(3));
    let more = looping - quiet;
    let most = if common::strict() { 0.01 } else { 0.2 };
    assert!(more < most, "{looping:.4} of a core, {quiet:.4} when quiet");
}

/// What a replica waits for before it answers anything: answers, or hangs.
fn dependency() -> (std::net::SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let hangs = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&hangs);
    std::thread::spawn(move || {
        let mut hung = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(BOUND));
            let _ = stream.read(&mut [0; 4096]);
            if now.load(Ordering::SeqCst) {
                hung.push(stream);
            } else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        }
    });
    (at, hangs)
}

/// With the documented defaults: two misses of a probe every 500 ms.
#[test]
fn a_hung_replica_is_out_of_the_routes_within_two_seconds_and_back_when_it_answers() {
    let _alone = alone();
    let (upstream, hangs) = dependency();
    let node = Node::start();
    let path = format!("/?url=http://{upstream}/");
    node.deploy(
        "app",
        "fetch",
        &format!("[outbound]\nallow = [\"http://{upstream}\"]\n[probes.readiness]\npath = \"{path}\"\n"),
    );
    let noticed = (0..3).map(|_| {
        hangs.store(true, Ordering::SeqCst);
        let began = Instant::now();
        node.until("it is out of the routes", |n| {
            events(n, "app")
                .iter()
                .rfind(|e| e["kind"] == "unready" || e["kind"] == "serving")
                .unwrap()["kind"]
                == "unready"
        });
        let noticed = began.elapsed();
        let reply = node.get("/app");
        assert_eq!((reply.status, reply.header("x-narae-error")), (503, Some("no-replica")));
        hangs.store(false, Ordering::SeqCst);
        node.until("it is in the routes again", |n| n.get("/app").status == 400);
        noticed
    });
    let noticed = median(noticed.collect());
    assert!(noticed <= bound(Duration::from_secs(2)), "noticed after {noticed:?}");
}
