//! By the clock, with the real binary: replicas at a moment and back, requests, pauses, history, and a restart in between.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "what is due soon is written from the clock, and a bound on another process is measured by it"
)]

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::Node;
use narae_orchestrator::model::Timestamp;
use serde_json::Value;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// A time of the clock in UTC, so many milliseconds from now; to the millisecond.
fn soon(ms: i64) -> String {
    Timestamp(now_ms() + ms).rfc3339().trim_end_matches('Z').to_owned()
}

fn history(node: &Node, service: &str) -> Vec<Value> {
    let list = node.json(&["schedule", "history", service, "-o", "json"]);
    list["items"].as_array().unwrap().clone()
}

fn with_outcome(entries: &[Value], outcome: &str) -> Vec<Value> {
    entries.iter().filter(|e| e["outcome"] == outcome).cloned().collect()
}

fn serving(node: &Node, service: &str) -> u64 {
    let list = node.json(&["list", "--all", "-o", "json"]);
    let items = list["items"].as_array().unwrap();
    items.iter().find(|i| i["name"] == service).unwrap()["replicas_serving"]
        .as_u64()
        .unwrap()
}

fn state(node: &Node, service: &str) -> String {
    let list = node.json(&["list", "--all", "-o", "json"]);
    let items = list["items"].as_array().unwrap();
    let found = items.iter().find(|i| i["name"] == service).unwrap();
    found["state"].as_str().unwrap().to_owned()
}

/// Times are distinct: none was acted on twice.
fn assert_once_each(entries: &[Value]) {
    let mut due: Vec<&str> = entries
        .iter()
        .filter(|e| e["cause"] != "by-hand" && !matches!(e["outcome"].as_str().unwrap(), "missed" | "skipped"))
        .map(|e| e["due_at"].as_str().unwrap())
        .collect();
    let all = due.len();
    due.dedup();
    assert_eq!(due.len(), all, "{entries:#?}");
}

#[test]
fn at_a_moment_a_hundred_replicas_serve_and_go_again_and_each_tells_how_late_it_was() {
    let node = Node::start();
    // Compiled before, so that the burst is about replicas; the schedule would prepare it else.
    node.deploy("warm", "hello", "");
    node.ok(&["delete", "warm", "-y"]);
    let at = soon(4_000);
    let file = node.file(
        "launch",
        "hello",
        &format!("replicas = 0\n[[schedule]]\nname = \"day\"\nat = \"{at}\"\nreplicas = 100\nfor = \"6s\"\n"),
    );
    let said = node.ok(&["deploy", &file]);
    assert!(said.contains("runs by its schedule"), "{said}");
    assert_eq!(
        (state(&node, "launch").as_str(), serving(&node, "launch")),
        ("scheduled", 0)
    );
    let table = node.ok(&["list"]);
    assert!(table.contains("next ") && table.contains("UTC"), "{table}");
    let coming = node.json(&["schedule", "next", "launch", "-o", "json"]);
    assert_eq!(coming["items"][0]["at"], format!("{at}Z"));

    node.until("the burst is told", |node| {
        !with_outcome(&history(node, "launch"), "done").is_empty()
    });
    let entries = history(&node, "launch");
    let [entry] = entries.as_slice() else {
        panic!("{entries:#?}")
    };
    assert_eq!(
        (entry["due_at"].as_str(), entry["cause"].as_str()),
        (Some(&*format!("{at}Z")), Some("due"))
    );
    let (min, median, max) = (&entry["skew_min_ms"], &entry["skew_median_ms"], &entry["skew_max_ms"]);
    println!("100 replicas: skew min {min} ms, median {median} ms, max {max} ms");
    assert!(max.as_u64().unwrap() < 5_000, "{entry:#}");
    assert!(min.as_u64() <= median.as_u64() && median.as_u64() <= max.as_u64());
    assert_eq!(serving(&node, "launch"), 100);
    assert_eq!(node.get("/launch/").status, 200);

    node.until("it went back to none", |node| {
        state(node, "launch") == "stopped" || serving(node, "launch") == 0
    });
    node.until("nothing is left", |node| state(node, "launch") == "scheduled");
    assert_eq!(node.get("/launch/").status, 503);
    assert_eq!(history(&node, "launch").len(), 1, "it fired once");
}

#[test]
fn a_request_is_sent_each_second_by_its_own_name_and_never_while_it_is_paused() {
    let node = Node::start();
    node.deploy(
        "tick",
        "echo",
        "[[schedule]]\nname = \"beat\"\nevery = \"1s\"\nrequest = { method = \"POST\", path = \"/beat?x=1\" }\n",
    );
    node.until("three beats", |node| {
        with_outcome(&history(node, "tick"), "done").len() >= 3
    });
    let entries = history(&node, "tick");
    assert_once_each(&entries);
    for entry in with_outcome(&entries, "done") {
        assert_eq!(
            (&entry["detail"], &entry["attempts"]),
            (&"status 200".into(), &1.into())
        );
        assert!(entry["due_at"].as_str().unwrap().ends_with(".000Z"), "{entry}");
    }
    let said = node.ok(&["schedule", "pause", "tick", "beat"]);
    assert!(said.contains("is paused"), "{said}");
    node.until("none is under way", |node| {
        with_outcome(&history(node, "tick"), "running").is_empty()
    });
    let before = history(&node, "tick");
    assert_eq!(
        node.json(&["schedule", "next", "tick", "-o", "json"])["items"],
        Value::Array(vec![])
    );
    // By hand it is done all the same; when that is written down, its own times have passed.
    let paused = now_ms();
    node.until("one of its times has passed", |_| now_ms() > paused + 1_500);
    node.ok(&["schedule", "run", "tick", "beat"]);
    node.until("it was done by hand", |node| {
        history(node, "tick")
            .iter()
            .any(|e| e["cause"] == "by-hand" && e["outcome"] == "done")
    });
    assert_eq!(history(&node, "tick").len(), before.len() + 1);
    node.ok(&["schedule", "resume", "tick", "beat"]);
    node.until("it goes on", |node| history(node, "tick").len() >= before.len() + 3);
    let entries = history(&node, "tick");
    assert_once_each(&entries);
    assert_eq!(with_outcome(&entries, "missed").len(), 0, "{entries:#?}");
}

#[test]
fn a_request_that_fails_is_tried_again_as_often_as_the_file_says_and_then_told() {
    let node = Node::start();
    node.deploy(
        "report",
        "crash",
        "[traffic]\noutlier = { consecutive_failures = 100 }\n[[schedule]]\nname = \"nightly\"\ncron = \"0 0 1 1 *\"\n\
         request = { method = \"GET\", path = \"/trap\" }\nretries = 1\n",
    );
    node.ok(&["schedule", "run", "report", "nightly"]);
    node.until("it failed", |node| {
        !with_outcome(&history(node, "report"), "failed").is_empty()
    });
    let entries = history(&node, "report");
    assert_eq!((entries.len(), &entries[0]["attempts"]), (1, &2.into()), "{entries:#?}");
    assert!(entries[0]["detail"].as_str().unwrap().contains("trap"), "{entries:#?}");
    let wrong = node.narae(&["schedule", "run", "report", "nigthly"]);
    assert_eq!(wrong.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no schedule"));
}

#[test]
fn a_second_of_a_schedule_waits_for_none_that_is_not_done() {
    let node = Node::start();
    node.deploy(
        "slow",
        "slow",
        "[limits]\ntimeout = \"20s\"\n[[schedule]]\nname = \"beat\"\nevery = \"1s\"\nrequest = { method = \"GET\", path = \"/?ms=3000\" }\n",
    );
    node.until("some were skipped, and one was done", |node| {
        let entries = history(node, "slow");
        !with_outcome(&entries, "skipped").is_empty() && !with_outcome(&entries, "done").is_empty()
    });
    let entries = history(&node, "slow");
    assert_once_each(&entries);
    assert!(with_outcome(&entries, "running").len() <= 1, "{entries:#?}");
    assert!(
        with_outcome(&entries, "skipped")[0]["detail"]
            .as_str()
            .unwrap()
            .contains("forbid")
    );
}

#[test]
fn a_daemon_that_is_killed_in_between_does_nothing_twice_and_catches_up_once() {
    let node = Node::start();
    let at = soon(3_000);
    node.deploy(
        "hold",
        "hello",
        &format!(
            "[[schedule]]\nname = \"day\"\nat = \"{at}\"\nreplicas = 4\n\
             [[schedule]]\nname = \"beat\"\nevery = \"1s\"\nrequest = {{ method = \"GET\", path = \"/\" }}\nhistory = 100\n"
        ),
    );
    let day = |node: &Node| {
        let list = node.json(&["schedule", "history", "hold", "day", "-o", "json"]);
        list["items"].as_array().unwrap().clone()
    };
    node.until("four serve", |node| with_outcome(&day(node), "done").len() == 1);
    let node = node.kill_and_restart();
    node.until("four serve again", |node| serving(node, "hold") == 4);
    assert_eq!(day(&node).len(), 1, "{:#?}", day(&node));
    let beats = |node: &Node| {
        let list = node.json(&["schedule", "history", "hold", "beat", "-o", "json"]);
        list["items"].as_array().unwrap().clone()
    };
    let before = beats(&node).len();
    node.until("it beats again", |node| beats(node).len() >= before + 2);
    let entries = beats(&node);
    assert_once_each(&entries);
    assert!(with_outcome(&entries, "running").len() <= 1, "{entries:#?}");
    // `scale` by hand ends what the schedule holds.
    node.ok(&["scale", "hold", "2"]);
    node.until("two serve", |node| serving(node, "hold") == 2);
    let list = node.json(&["schedule", "list", "hold", "-o", "json"]);
    assert_eq!(list["items"][0]["state"], "over", "{list:#}");
}

#[test]
fn a_command_is_run_by_its_schedule_and_its_end_is_told() {
    let node = Node::start();
    let wasm = node.dir.path().join("report.wasm");
    std::fs::copy(common::module("report"), &wasm).unwrap();
    let file = node.dir.path().join("nightly.toml");
    std::fs::write(
        &file,
        "name = \"nightly\"\nmodule = \"report.wasm\"\nworld = \"command\"\n[job]\nretries = 0\n\
         [[schedule]]\nname = \"good\"\nevery = \"1s\"\nargs = [\"--exit\", \"0\"]\n\
         [[schedule]]\nname = \"bad\"\ncron = \"0 0 1 1 *\"\nargs = [\"--exit\", \"1\"]\n",
    )
    .unwrap();
    node.ok(&["deploy", file.to_str().unwrap()]);
    node.until("two runs succeeded", |node| {
        with_outcome(&history(node, "nightly"), "done").len() >= 2
    });
    node.ok(&["schedule", "run", "nightly", "bad"]);
    node.until("one failed", |node| {
        !with_outcome(&history(node, "nightly"), "failed").is_empty()
    });
    let entries = history(&node, "nightly");
    assert_once_each(&entries);
    let bad = &with_outcome(&entries, "failed")[0];
    assert_eq!((&bad["schedule"], &bad["cause"]), (&"bad".into(), &"by-hand".into()));
    assert!(bad["detail"].as_str().unwrap().contains("failed"), "{bad:#}");
    let table = node.ok(&["schedule", "list", "nightly"]);
    assert!(table.contains("a run of --exit 0"), "{table}");
}

#[test]
fn a_file_tells_its_next_times_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    std::fs::write(
        &file,
        "name = \"a\"\nmodule = \"a.wasm\"\nroutes = [\"/\"]\n[[schedule]]\nname = \"nightly\"\ncron = \"30 2 * * *\"\n\
         timezone = \"Asia/Seoul\"\nreplicas = 2\nfor = \"1h\"\n",
    )
    .unwrap();
    let output = std::process::Command::new(common::binary())
        .args(["schedule", "next", file.to_str().unwrap(), "-n", "3"])
        .env("NO_COLOR", "1")
        .env("NARAE_HOST", "unix:/nowhere")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("02:30:00 KST").count(), 3, "{text}");
    assert_eq!(text.matches("T17:30:00.000Z").count(), 3, "{text}");
}
