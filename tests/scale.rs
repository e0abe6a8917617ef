//! Replicas by load: to zero and back with the first request held, one to many under a burst, healing under load. None of it loses
//! a request that the limits allow.

#![allow(clippy::disallowed_methods, reason = "a test measures by the clock")]
#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Node, Reply, request};

/// One request to the service `app`, on a connection of its own.
fn ask(to: SocketAddr, path: &str) -> Reply {
    request(to, "GET", path, &[("host", "app.test")], b"")
}

/// So many clients at once, with one request each.
fn clients(to: SocketAddr, path: &str, n: usize) -> Vec<Reply> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|_| scope.spawn(|| ask(to, path))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn lost_nothing(replies: &[Reply]) {
    let lost: Vec<_> = replies.iter().filter(|r| r.status != 200 || !r.whole).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost, the first: {:?}",
        lost.len(),
        replies.len(),
        lost[0]
    );
}

/// What the events say of changes of the count.
fn changes(node: &Node) -> Vec<String> {
    let text = node.ok(&["events", "-o", "json", "--kind", "scaled"]);
    let events = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    events.map(|e| e["message"].as_str().unwrap().to_owned()).collect()
}

fn item(node: &Node) -> serde_json::Value {
    node.json(&["list", "-o", "json"])["items"][0].clone()
}

fn is_asleep(node: &Node) -> bool {
    let item = item(node);
    item["replicas_wanted"] == 0 && item["replicas_serving"] == 0 && item["replicas_extra"] == 0
}

const SLEEPY: &str = "[autoscale]\nmin = 0\nidle = \"300ms\"\npanic_window = \"100ms\"\n[rollout]\nmin_healthy_time = \"20ms\"\n\
    [limits]\nqueue = 1000\ntimeout = \"60s\"\nstart_time = \"30s\"";

#[test]
fn a_service_without_requests_is_scaled_to_zero_and_the_next_ones_are_held_and_answered() {
    let node = Node::start();
    node.deploy("app", "version-v1", SLEEPY);
    for round in 0..5 {
        node.until("it sleeps", is_asleep);
        // Nobody who only looks wakes it.
        let status = node.json(&["status", "app", "-o", "json"]);
        assert_eq!(
            (&status["state"], &status["autoscale"]["wanted"]),
            (&"healthy".into(), &0.into())
        );
        assert!(is_asleep(&node));
        let started = Instant::now();
        let replies = clients(node.http, "/", if round == 0 { 1 } else { 60 });
        eprintln!("{} answered after {} ms", replies.len(), started.elapsed().as_millis());
        lost_nothing(&replies);
    }
    let text = node.ok(&["status", "app"]);
    assert!(text.contains("autoscale: "), "{text}");
    let said = changes(&node);
    assert!(
        said.iter()
            .any(|m| m.starts_with("autoscale: from 1 to 0 replicas: no request came")),
        "{said:?}"
    );
    assert!(
        said.iter()
            .any(|m| m.starts_with("autoscale: from 0 to 1 replicas: a burst")),
        "{said:?}"
    );
    assert!(
        node.ok(&["metrics"])
            .contains("narae_replicas_wanted{service=\"app\"} ")
    );
}

#[test]
fn a_call_from_inside_wakes_it_and_a_new_revision_proves_itself_before_it_sleeps() {
    let node = Node::start();
    node.deploy("app", "version-v1", SLEEPY);
    node.until("it sleeps", is_asleep);
    assert_eq!(node.ok(&["call", "app", "/"]), "v1\n");
    node.until("it sleeps again", is_asleep);
    node.deploy("app", "version-v2", SLEEPY);
    assert_eq!(item(&node)["stable"], 2);
    node.until("the new one sleeps too", is_asleep);
    assert_eq!(node.get("/app/").text(), "v2\n");
}

#[test]
fn one_replica_becomes_many_under_a_burst_and_loses_no_request() {
    let node = Node::start();
    let limits = "[limits]\nconcurrency = 4\nqueue = 10000\nqueue_wait = \"60s\"\ntimeout = \"60s\"";
    node.deploy("app", "slow", &format!("[autoscale]\nmin = 1\nmax = 100\n{limits}"));
    assert_eq!(item(&node)["replicas_serving"], 1);
    let started = Instant::now();
    let replies = clients(node.http, "/?ms=500", 400);
    let took = started.elapsed();
    lost_nothing(&replies);
    let item = item(&node);
    eprintln!(
        "400 of half a second each after {} ms, {}",
        took.as_millis(),
        item["autoscale"]["summary"]
    );
    // One replica alone has four of them at once.
    assert!(took < Duration::from_secs(40), "{took:?}");
    assert_eq!(item["replicas_wanted"], 100);
    let changes = changes(&node);
    assert!(changes.len() <= 20, "{changes:?}");
}

#[test]
fn requests_wait_while_the_only_replica_heals() {
    let node = Node::start();
    let more =
        "[limits]\nqueue = 10000\nqueue_wait = \"60s\"\ntimeout = \"60s\"\n[restart]\ngive_up = { restarts = 1000 }";
    node.deploy("app", "crash", more);
    for death in 1..=5 {
        // A good answer between them would begin the run anew: first the traps, then everybody at once.
        for _ in 0..5 {
            assert_eq!(ask(node.http, "/trap").status, 500);
        }
        lost_nothing(&clients(node.http, "/", 50));
        node.until("it was started again", |n| item(n)["restarts"] == death);
    }
}

#[test]
fn what_is_stopped_scaled_to_none_by_hand_or_crash_loops_answers_at_once() {
    let node = Node::start();
    let limits = "[limits]\nqueue_wait = \"60s\"";
    node.deploy("app", "version-v1", &format!("[autoscale]\nmin = 0\n{limits}"));
    let at_once = |what: &str| {
        let started = Instant::now();
        let reply = node.get("/app/");
        assert_eq!(
            (reply.status, reply.header("x-narae-error")),
            (503, Some("no-replica")),
            "{what}"
        );
        assert!(
            reply.header("retry-after").is_some() && started.elapsed() < Duration::from_secs(30),
            "{what}"
        );
    };
    node.ok(&["scale", "app", "0"]);
    at_once("scaled to none by hand");
    node.ok(&["scale", "app", "1"]);
    assert_eq!(node.get("/app/").status, 200);
    node.ok(&["stop", "app"]);
    at_once("stopped");
    node.ok(&["start", "app"]);
    node.deploy(
        "app",
        "crash",
        &format!("[restart]\ngive_up = {{ restarts = 1, within = \"5m\" }}\n{limits}"),
    );
    for _ in 0..5 {
        assert_eq!(node.get("/app/trap").status, 500);
    }
    node.until("it crash-loops", |n| item(n)["state"] == "crash-loop");
    at_once("in crash-loop");
}

#[test]
fn by_hand_a_number_within_the_bounds_is_where_the_load_goes_on_from() {
    let node = Node::start();
    node.deploy("app", "version-v1", "[autoscale]\nmin = 2\nmax = 6");
    let wanted = |n: u32| {
        let item = item(&node);
        assert_eq!(
            (&item["replicas_wanted"], &item["replicas_serving"]),
            (&n.into(), &n.into())
        );
    };
    wanted(2);
    for (text, n) in [("5", 5), ("+1", 6), ("-3", 3), ("0", 0), ("2", 2)] {
        node.ok(&["scale", "app", text]);
        wanted(n);
    }
    for text in ["1", "7", "+5", "-1"] {
        let output = node.narae(&["scale", "app", text]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("within 2 and 6"),
            "{text}: {said}"
        );
        wanted(2);
    }
    // A deploy goes on from there; what is kept on the disk is the number by hand, not what the load made of it.
    node.ok(&["scale", "app", "4"]);
    node.deploy("app", "version-v2", "[autoscale]\nmin = 2\nmax = 6");
    wanted(4);
    let node = node.kill_and_restart();
    node.until("it serves again", |n| item(n)["replicas_serving"] == 2);
}
