//! Rollouts by strategy, end to end: who is answered by which revision, what a bad one costs, and how fast one is back.

#![allow(clippy::disallowed_methods, reason = "a test measures by the clock")]
#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Node, Reply, request};
use serde_json::Value;

/// One load at a time: two of them on a small machine measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clients that ask for one path over and over.
struct Clients {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Asked>>>,
}

#[derive(Clone, Debug)]
struct Asked {
    /// When the answer was there.
    at: Instant,
    status: u16,
    text: String,
}

impl Clients {
    fn start(to: SocketAddr, path: &'static str, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut asked = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let Reply { status, body, .. } = request(to, "GET", path, &[("host", "app.test")], b"");
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let at = Instant::now();
                    asked.push(Asked { at, status, text });
                }
                asked
            })
        };
        let clients = (0..count).map(client).collect();
        Self { stop, clients }
    }

    /// All answers in their order.
    fn finish(self) -> Vec<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: Vec<Asked> = self.clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
        all.sort_by_key(|a| a.at);
        all
    }
}

fn rollout(node: &Node) -> Value {
    node.json(&["rollout", "status", "app", "-o", "json"])
}

/// The share of a revision, in percent.
fn share(view: &Value, revision: u64) -> f64 {
    let split = view["split"].as_array().unwrap();
    let found = split.iter().find(|s| s["revision"] == revision);
    found.map_or(0.0, |s| s["percent"].as_f64().unwrap())
}

fn stable(node: &Node) -> Value {
    node.json(&["list", "-o", "json"])["items"][0]["stable"].clone()
}

fn events(node: &Node, kind: &str) -> Vec<Value> {
    let text = node.ok(&["events", "--service", "app", "--kind", kind, "--json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A deploy that is not waited for.
fn begin(node: &Node, guest: &str, more: &str) {
    let file = node.file("app", guest, more);
    node.ok(&["deploy", &file, "--no-wait"]);
}

const QUICK: &str = "replicas = 2\n[limits]\nqueue = 10000\nqueue_wait = \"60s\"\ntimeout = \"60s\"\n[rollout]\nmin_healthy_time = \"20ms\"\n";

fn with(rollout: &str) -> String {
    format!("{QUICK}{rollout}\n")
}

fn all_well(asked: &[Asked]) {
    let bad: Vec<_> = asked.iter().filter(|a| a.status != 200).take(5).collect();
    assert!(bad.is_empty() && !asked.is_empty(), "of {}: {bad:?}", asked.len());
}

#[test]
fn a_canary_climbs_its_steps_and_loses_nothing() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let clients = Clients::start(node.http, "/", 4);
    let steps = "strategy = \"canary\"\nsteps = [{ weight = \"20%\", hold = \"700ms\" }, { weight = \"60%\", hold = \"700ms\" }]";
    node.deploy("app", "version-v2", &with(steps));
    let asked = clients.finish();
    all_well(&asked);
    assert_eq!(stable(&node), 2);
    let texts: Vec<&str> = asked.iter().map(|a| a.text.as_str()).collect();
    let first = texts.iter().position(|t| *t == "v2\n").unwrap();
    let last = texts.iter().rposition(|t| *t == "v1\n").unwrap();
    assert!(first < last, "both answered for a while");
    let new = texts[first..=last].iter().filter(|t| **t == "v2\n").count();
    let both = last - first + 1;
    // A fifth, then more than a half: together well between.
    assert!(new * 10 > both && new * 10 < both * 9, "{new} of {both}");
    assert_eq!(events(&node, "rollout").len(), 2, "each step is told");
    assert!(texts[texts.len() - 1] == "v2\n");
}

#[test]
fn a_bad_canary_fails_no_request_beyond_its_share_and_is_gone_within_a_second_of_the_evidence() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    // It passes its probe and answers this path with 500.
    let clients = Clients::start(node.http, "/status?code=500", 6);
    let canary = "strategy = \"canary\"\nsteps = [{ weight = \"5%\", hold = \"10m\" }]\ngates = { min_requests = 20 }";
    let file = node.file("app", "crash", &with(canary));
    let output = node.narae(&["deploy", &file]);
    node.until("the stable one answers on", |n| n.get("/app/").text() == "v1\n");
    let asked = clients.finish();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(
        said.contains("error rate 100 %") && said.contains("beyond the 0 % of revision 1"),
        "{said}"
    );
    let failed: Vec<&Asked> = asked.iter().filter(|a| a.status != 200).collect();
    assert!(failed.len() >= 20, "{} failed", failed.len());
    let took = failed[failed.len() - 1].at - failed[19].at;
    let within = asked
        .iter()
        .filter(|a| a.at >= failed[0].at && a.at <= failed[failed.len() - 1].at)
        .count();
    eprintln!(
        "{} of {within} failed, the last {} ms after the evidence",
        failed.len(),
        took.as_millis()
    );
    assert!(took < Duration::from_secs(1), "{took:?} after the evidence");
    // 5 % of them, and what chance adds: five deviations.
    let expected = within as f64 * 0.05;
    assert!(
        (failed.len() as f64) < expected + 5.0 * expected.sqrt() + 3.0,
        "{} of {within}",
        failed.len()
    );
    let history = node.json(&["rollout", "history", "app", "-o", "json"]);
    let refused = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["revision"] == 2)
        .unwrap();
    assert_eq!(refused["state"], "refused");
    assert!(
        refused["reason"].as_str().unwrap().contains("requests"),
        "the figures are stored"
    );
}

#[test]
fn traps_and_processor_time_are_gates_too() {
    let _alone = alone();
    let node = Node::start();
    for (guest, path, gates, said) in [
        (
            "crash",
            "/trap",
            "error_rate = \"100%\", min_requests = 20",
            "trap rate",
        ),
        (
            "spin",
            "/?ms=3",
            "error_rate = \"100%\", traps = \"100%\", cpu = \"+100%\", min_requests = 20",
            "processor time",
        ),
    ] {
        node.deploy("app", "version-v1", QUICK);
        let clients = Clients::start(node.http, path, 4);
        let more = format!(
            "{QUICK}strategy = \"canary\"\nsteps = [{{ weight = \"20%\", hold = \"10m\" }}]\ngates = {{ {gates} }}\n\
             [traffic]\noutlier = {{ consecutive_failures = 1000 }}\n[probes.startup]\npath = \"/?ms=1\""
        );
        let file = node.file("app", guest, &more);
        let output = node.narae(&["deploy", &file]);
        clients.finish();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(8), "{text}");
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_blue_green_rollout_switches_at_once_and_its_undo_takes_milliseconds() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let clients = Clients::start(node.http, "/", 2);
    begin(
        &node,
        "version-v2",
        &with("strategy = \"blue-green\"\nsteps = [{ hold = \"10m\" }]"),
    );
    node.until("it is switched", |n| share(&rollout(n), 2) == 100.0);
    let view = rollout(&node);
    assert_eq!(
        (&view["state"], &view["strategy"]),
        (&"running".into(), &"blue-green".into())
    );
    assert_eq!(
        (&view["old_serving"], &view["new_serving"]),
        (&2.into(), &2.into()),
        "the old stay warm"
    );
    assert!(view["hold_left_ms"].as_u64().unwrap() > 0);
    for _ in 0..20 {
        assert_eq!(node.get("/app/").text(), "v2\n");
    }
    let started = events(&node, "started").len();
    let since = Instant::now();
    let reply = node.api("POST", "/v1/services/app/undo", b"{}").unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    node.until("the first answer of the old", |n| n.get("/app/").text() == "v1\n");
    let took = since.elapsed();
    eprintln!("undone in {} us", took.as_micros());
    assert!(took < Duration::from_millis(500), "{took:?}");
    let asked = clients.finish();
    all_well(&asked);
    let last_v2 = asked.iter().rposition(|a| a.text == "v2\n").unwrap();
    let late = asked[last_v2].at.saturating_duration_since(since + took);
    assert!(late < Duration::from_millis(500), "{late:?}");
    assert_eq!(events(&node, "started").len(), started, "nothing had to start");
    let answer: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((&answer["revision"], &answer["previous"]), (&1.into(), &2.into()));
    node.until("it is over", |n| rollout(n)["state"] == "refused");
}

#[test]
fn a_blue_green_rollout_that_holds_ends_with_the_old_gone() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let clients = Clients::start(node.http, "/", 2);
    node.deploy(
        "app",
        "version-v2",
        &with("strategy = \"blue-green\"\nsteps = [{ hold = \"300ms\" }]"),
    );
    node.until("the old are gone", |n| rollout(n)["old_serving"] == 0);
    let asked = clients.finish();
    all_well(&asked);
    let switched = asked.iter().position(|a| a.text == "v2\n").unwrap();
    // Two clients: an answer that was under way may come in after.
    let back = asked[switched..].iter().filter(|a| a.text == "v1\n").count();
    assert!(back <= 2, "one switch, not a mixture: {back}");
    assert_eq!(stable(&node), 2);
}

#[test]
fn what_recreates_never_runs_twice_at_once() {
    let _alone = alone();
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let clients = Clients::start(node.http, "/", 2);
    node.deploy("app", "version-v2", &with("strategy = \"recreate\""));
    let asked = clients.finish();
    assert!(
        asked.iter().all(|a| matches!(a.status, 200 | 503)),
        "told to come back in the gap"
    );
    let switched = asked.iter().position(|a| a.text == "v2\n").unwrap();
    assert!(asked[switched..].iter().all(|a| a.text != "v1\n"));
    let gone = events(&node, "stopped")
        .into_iter()
        .filter(|e| e["revision"] == 1)
        .map(|e| e["seq"].as_u64());
    let made = events(&node, "started")
        .into_iter()
        .filter(|e| e["revision"] == 2)
        .map(|e| e["seq"].as_u64());
    assert!(
        gone.max().unwrap() < made.min().unwrap(),
        "the last old one is gone before the first new one starts"
    );
}

#[test]
fn a_request_may_ask_for_a_revision_where_the_service_allows_it() {
    let node = Node::start();
    let pin = "[traffic.pin]\nheader = \"x-narae-revision\"\ncookie = \"narae-revision\"\n";
    let more = |rollout: &str| format!("{}{pin}", with(rollout));
    node.deploy("app", "version-v1", &more(""));
    begin(
        &node,
        "version-v2",
        &more("strategy = \"canary\"\nsteps = [{ weight = \"0.1%\", hold = \"10m\" }]"),
    );
    node.until("the canary is held", |n| rollout(n)["hold_left_ms"].is_u64());
    let ask = |name: &str, value: &str| {
        let headers = [("host", "app.test"), (name, value)];
        let reply = request(node.http, "GET", "/", &headers, b"");
        assert_eq!(reply.status, 200);
        reply.text()
    };
    for _ in 0..10 {
        assert_eq!(ask("x-narae-revision", "2"), "v2\n");
        assert_eq!(ask("cookie", "a=b; narae-revision=2"), "v2\n");
        assert_eq!(ask("x-narae-revision", "1"), "v1\n");
    }
    // Nothing that is not there: as usual, and that is v1 for 999 of 1000.
    let usual = ["77", "x", ""]
        .into_iter()
        .flat_map(|value| (0..10).map(move |_| value));
    let v1 = usual.filter(|value| ask("x-narae-revision", value) == "v1\n").count();
    assert!(v1 >= 28, "{v1} of 30");
    // A service that does not allow it looks at no such header.
    node.ok(&["rollout", "abort", "app"]);
    node.deploy("app", "version-v1", QUICK);
    assert_eq!(ask("x-narae-revision", "2"), "v1\n");
}

#[test]
fn a_rollout_is_paused_resumed_promoted_and_aborted() {
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let nothing = node.narae(&["rollout", "pause", "app"]);
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(
        !nothing.status.success() && said.contains("E0134") && said.contains("revision 1 is stable"),
        "{said}"
    );
    let steps =
        "strategy = \"canary\"\nsteps = [{ weight = \"10%\", hold = \"300ms\" }, { weight = \"50%\", hold = \"10m\" }]";
    begin(&node, "version-v2", &with(steps));
    let paused = node.ok(&["rollout", "pause", "app"]);
    assert!(paused.contains("paused"), "{paused}");
    node.until("the first step is in force", |n| share(&rollout(n), 2) == 10.0);
    // Its hold passes and nothing is taken from it.
    node.until("the hold is over", |n| rollout(n)["hold_left_ms"] == 0);
    let view = rollout(&node);
    assert_eq!(
        (&view["paused"], &view["step"], share(&view, 2)),
        (&true.into(), &1.into(), 10.0)
    );
    node.ok(&["rollout", "resume", "app"]);
    node.until("the second step", |n| share(&rollout(n), 2) == 50.0);
    let mut watch = node
        .command(&["rollout", "status", "app", "--watch", "-o", "jsonl"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    node.ok(&["rollout", "promote", "app"]);
    node.until("it is stable", |n| stable(n) == 2);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut watch.stdout.take().unwrap(), &mut text).unwrap();
    let views: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(views.last().unwrap()["state"], "done");
    begin(&node, "version-v1", &with("strategy = \"canary\""));
    node.until("the canary serves", |n| rollout(n)["hold_left_ms"].is_u64());
    node.ok(&["rollout", "abort", "app"]);
    node.until("all to the old", |n| share(&rollout(n), 2) == 100.0);
    assert_eq!(node.get("/app/").text(), "v2\n");
    let refused = rollout(&node);
    assert_eq!(
        (&refused["state"], &refused["reason"]),
        (&"refused".into(), &"aborted by request".into())
    );
    let watched = node.narae(&["rollout", "status", "app", "--watch"]);
    assert_eq!(watched.status.code(), Some(8));
}

#[test]
fn a_deploy_may_name_another_strategy_and_a_restart_goes_on_where_it_was() {
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let file = node.file("app", "version-v2", QUICK);
    let wrong = node.narae(&["deploy", &file, "--strategy", "fast"]);
    assert_eq!(wrong.status.code(), Some(2));
    node.ok(&["deploy", &file, "--strategy", "canary", "--no-wait"]);
    node.until("5 %", |n| share(&rollout(n), 2) == 5.0);
    node.ok(&["rollout", "abort", "app"]);
    let steps =
        "strategy = \"canary\"\nsteps = [{ weight = \"10%\", hold = \"50ms\" }, { weight = \"50%\", hold = \"10m\" }]";
    begin(&node, "version-v2", &with(steps));
    node.until("the second step", |n| share(&rollout(n), 3) == 50.0);
    let node = node.kill_and_restart();
    node.until("the second step again", |n| share(&rollout(n), 3) == 50.0);
    assert_eq!(rollout(&node)["step"], 2);
    assert_eq!(stable(&node), 1);
}

#[test]
fn going_back_while_nothing_is_on_trial_takes_no_steps() {
    let node = Node::start();
    let slow = with("strategy = \"canary\"\nsteps = [{ weight = \"10%\", hold = \"10m\" }]");
    node.deploy("app", "version-v1", &slow);
    begin(&node, "version-v2", &slow);
    node.ok(&["rollout", "promote", "app"]);
    node.until("it is stable", |n| stable(n) == 2);
    node.ok(&["rollout", "undo", "app", "--timeout", "1m"]);
    assert_eq!(node.get("/app/").text(), "v1\n");
    assert_eq!(stable(&node), 3);
}
