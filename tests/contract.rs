//! The JSON that scripts read, as committed snapshots: a field that is renamed, lost or of another type shows here.
//! Times, ids and measures are replaced by what they are.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use common::Node;
use serde_json::Value;

/// What differs from run to run, by the name of its field.
const VOLATILE: &[&str] = &[
    "at",
    "created_at",
    "changed_at",
    "since_ms",
    "requests_per_second",
    "p50_ms",
    "p99_ms",
    "memory_bytes",
    "cpu_ms",
    "calls",
    "idle_instances",
    "seq",
    "size_bytes",
    "digest",
];

/// The value with everything volatile replaced by its type; a field that may be null says so.
fn steady(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if VOLATILE.contains(&key.as_str()) {
                        let kind = match (key.as_str(), &*value) {
                            ("p50_ms" | "p99_ms", Value::Null | Value::Number(_)) => {
                                "<milliseconds or null>".to_owned()
                            }
                            (_, Value::Number(_)) => "<number>".into(),
                            (_, Value::String(text)) if text.parse::<jiff_like::Time>().is_ok() => "<time>".into(),
                            (_, Value::String(text)) if text.starts_with("sha256:") && text.len() == 71 => {
                                "<digest>".into()
                            }
                            (_, other) => panic!("{key} is {other}"),
                        };
                        *value = Value::String(kind);
                    } else {
                        walk(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

/// RFC 3339 in UTC, which is all that the contract allows.
mod jiff_like {
    pub struct Time;

    impl std::str::FromStr for Time {
        type Err = ();

        fn from_str(text: &str) -> Result<Self, ()> {
            let bytes = text.as_bytes();
            let fits = bytes.len() >= 20
                && bytes.ends_with(b"Z")
                && bytes[4] == b'-'
                && bytes[10] == b'T'
                && bytes[13] == b':'
                && text[..19].bytes().filter(u8::is_ascii_digit).count() == 14;
            fits.then_some(Self).ok_or(())
        }
    }
}

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings
}

fn node() -> Node {
    let node = Node::start();
    let more = "replicas = 1\nlabels = { team = \"shop\" }\n[limits]\nmemory = \"64MiB\"\n[rollout]\nmin_healthy_time = \"20ms\"\n";
    node.deploy("hello", "version-v1", more);
    node
}

#[test]
fn the_json_of_a_service_is_what_scripts_were_promised() {
    let node = node();
    node.until("its request is counted", |n| n.get("/hello").status == 200);
    settings().bind(|| {
        insta::assert_json_snapshot!("list", steady(node.json(&["list", "-o", "json"])));
        let mut status = steady(node.json(&["status", "hello", "-o", "json"]));
        // How many things happened is not the form; each of them is told in `event`.
        status["events"] = Value::Array(vec![status["events"][0].clone()]);
        insta::assert_json_snapshot!("status", status);
        insta::assert_json_snapshot!("inspect", steady(node.json(&["inspect", "hello", "-o", "json"])));
        insta::assert_snapshot!("inspect_effective", node.ok(&["inspect", "hello", "--effective"]));
        insta::assert_json_snapshot!("module_list", steady(node.json(&["module", "list", "-o", "json"])));
        let rollout = steady(node.json(&["rollout", "status", "hello", "-o", "json"]));
        insta::assert_json_snapshot!("rollout_status", rollout);
        insta::assert_json_snapshot!(
            "empty_list",
            node.json(&["list", "-o", "json", "--filter", "state=failed"])
        );
    });
}

#[test]
fn the_history_tells_of_a_refused_revision_and_why() {
    let node = node();
    let broken = node.file(
        "hello",
        "version-broken",
        "[probes.startup]\ninterval = \"20ms\"\nfailures = 2",
    );
    assert_eq!(node.narae(&["deploy", &broken]).status.code(), Some(8));
    let mut history = steady(node.json(&["rollout", "history", "hello", "-o", "json"]));
    for item in history["items"].as_array_mut().unwrap() {
        if let Some(reason) = item["reason"].as_str() {
            // Which of the replicas it was is chance.
            let text: Vec<&str> = reason
                .split(' ')
                .map(|w| {
                    if w.starts_with('r') && w[1..].parse::<u32>().is_ok() {
                        "<replica>"
                    } else {
                        w
                    }
                })
                .collect();
            item["reason"] = Value::String(text.join(" "));
        }
    }
    settings().bind(|| insta::assert_json_snapshot!("rollout_history", history));
}

#[test]
fn a_deploy_and_an_event_are_one_object_each() {
    let node = Node::start();
    let file = node.file("hello", "version-v1", "[rollout]\nmin_healthy_time = \"20ms\"");
    let deployed = node.json(&["deploy", &file, "-o", "json"]);
    let lines = node.ok(&["events", "--service", "hello", "--kind", "proved", "--json"]);
    assert_eq!(lines.lines().count(), 1, "one event, one line: {lines}");
    let event = steady(serde_json::from_str(&lines).unwrap());
    settings().bind(|| {
        insta::assert_json_snapshot!("deploy", deployed);
        insta::assert_json_snapshot!("event", event);
    });
    for line in node.ok(&["events", "--json"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["kind"].is_string() && event["seq"].is_u64(), "{line}");
    }
}

#[test]
fn mistakes_of_a_file_have_a_form_for_machines() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("bad.toml"),
        "name = \"hello\"\nmodule = \"m.wasm\"\n[limits]\nmemroy = \"64MiB\"\ntimeout = 5\n",
    )
    .unwrap();
    let output = std::process::Command::new(common::binary())
        .args(["config", "check", "bad.toml", "--json"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(9));
    let text = [output.stdout, output.stderr]
        .into_iter()
        .find(|t| t.starts_with(b"{"))
        .expect("JSON");
    let problems: Value = serde_json::from_slice(&text).unwrap();
    settings().bind(|| insta::assert_json_snapshot!("config_check", problems));
}
