//! Commands as jobs: the real binary, from a service file to an exit code, over retries, limits and the daemon's death.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::Node;
use serde_json::Value;

/// Writes a job's file beside its module and returns its path.
fn file(node: &Node, name: &str, guest: &str, more: &str) -> String {
    let wasm = node.dir.path().join(format!("{guest}.wasm"));
    if !wasm.exists() {
        std::fs::copy(common::module(guest), &wasm).unwrap();
    }
    let path = node.dir.path().join(format!("{name}.toml"));
    std::fs::write(&path, format!("name = \"{name}\"\nmodule = \"{guest}.wasm\"\n{more}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Short waits between failed attempts.
const FAST: &str = "[restart]\nbackoff = { initial = \"10ms\" }\n";

/// Exit code of a deploy, and what it said.
fn deploy(node: &Node, file: &str, flags: &[&str]) -> (i32, String) {
    let output = node.narae(&[&["deploy", file], flags].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

fn runs(node: &Node, name: &str) -> Vec<Value> {
    let reply = node.api("GET", &format!("/v1/services/{name}/runs"), b"").unwrap();
    let body: Value = serde_json::from_str(&reply.text()).unwrap();
    body["items"].as_array().unwrap().clone()
}

fn last(node: &Node, name: &str) -> Value {
    runs(node, name).pop().unwrap()
}

fn state(node: &Node, name: &str) -> String {
    let all = node.json(&["list", "-o", "json"]);
    let items = all["items"].as_array().unwrap();
    let one = items.iter().find(|s| s["name"] == name).unwrap();
    one["state"].as_str().unwrap().to_owned()
}

fn logs(node: &Node, name: &str) -> String {
    node.ok(&["logs", name])
}

#[test]
fn a_deployed_command_runs_once_and_its_output_exit_code_and_history_are_kept() {
    for guest in ["report", "report-p1", "report-p3"] {
        let node = Node::start();
        let file = file(&node, "job", guest, "args = [\"--month\", \"11\"]");
        let (code, said) = deploy(&node, &file, &[]);
        assert_eq!(code, 0, "{guest}: {said}");
        assert!(said.contains("job revision 1 ran and succeeded"), "{guest}: {said}");
        assert_eq!(state(&node, "job"), "succeeded");
        let run = last(&node, "job");
        assert_eq!(run["state"], "succeeded", "{guest}: {run}");
        assert_eq!(run["cause"], "deploy");
        assert_eq!(run["last_code"], 0);
        assert_eq!(runs(&node, "job").len(), 1, "it runs once");
        if guest != "report-p3" {
            let text = logs(&node, "job");
            assert!(
                text.contains("--month") && text.contains("report done"),
                "{guest}: {text}"
            );
            let replica = run["attempts"][0]["replica"].as_str().unwrap();
            assert!(
                node.ok(&["logs", "job", "--replica", replica]).contains("11"),
                "{guest}"
            );
        }
        let status = node.narae(&["status", "job"]);
        assert_eq!(status.status.code(), Some(0), "a job that succeeded is well");
        let text = String::from_utf8(status.stdout).unwrap();
        assert!(
            text.contains("succeeded") && text.contains("attempts of run 1"),
            "{text}"
        );
        // The same file again changes nothing and runs nothing.
        let (code, said) = deploy(&node, &file, &[]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(runs(&node, "job").len(), 1);
    }
}

#[test]
fn five_completions_two_at_a_time_are_five_attempts_and_never_three_at_once() {
    let node = Node::start();
    let more = "args = [\"0\", \"300\"]\n[job]\ncompletions = 5\nparallelism = 2\n[[keyvalue]]\nname = \"default\"";
    let file = file(&node, "job", "flaky", more);
    let (code, said) = deploy(&node, &file, &["--no-wait"]);
    assert_eq!(code, 0, "{said}");
    let mut most = 0;
    node.until("the run ends", |node| {
        let Some(run) = runs(node, "job").pop() else {
            return false;
        };
        let living = run["attempts"].as_array().unwrap().iter();
        let living = living.filter(|a| a["state"] == "running").count();
        assert!(living <= 2, "{run}");
        most = most.max(living);
        run["state"] != "running"
    });
    let run = last(&node, "job");
    assert_eq!(
        (&run["state"], &run["succeeded"], &run["failed"]),
        (&"succeeded".into(), &5.into(), &0.into()),
        "{run}"
    );
    assert_eq!(run["attempts"].as_array().unwrap().len(), 5);
    assert_eq!(most, 2, "two at once were seen");
    assert_eq!(logs(&node, "job").matches("done").count(), 5);
}

#[test]
fn an_attempt_that_fails_is_tried_again_until_it_succeeds() {
    let node = Node::start();
    let more = format!("args = [\"2\"]\n[job]\nretries = 2\n[[keyvalue]]\nname = \"default\"\n{FAST}");
    let file = file(&node, "job", "flaky", &more);
    let (code, said) = deploy(&node, &file, &[]);
    assert_eq!(code, 0, "{said}");
    let run = last(&node, "job");
    assert_eq!((&run["succeeded"], &run["failed"]), (&1.into(), &2.into()), "{run}");
    let text = logs(&node, "job");
    assert!(
        text.contains("try 1") && text.contains("try 2") && text.contains("try 3"),
        "{text}"
    );
}

#[test]
fn when_the_retries_are_used_up_the_run_has_failed_with_the_last_exit_code() {
    let node = Node::start();
    let more = format!("args = [\"--exit\", \"7\"]\n[job]\nretries = 1\n{FAST}");
    let file = file(&node, "job", "report-p1", &more);
    let (code, said) = deploy(&node, &file, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("2 attempts failed, the last ended with code 7"), "{said}");
    assert!(said.contains("E0645"), "{said}");
    let run = last(&node, "job");
    assert_eq!(
        (&run["state"], &run["failed"], &run["last_code"]),
        (&"failed".into(), &2.into(), &7.into())
    );
    assert_eq!(state(&node, "job"), "failed");
    assert_eq!(node.narae(&["status", "job"]).status.code(), Some(3));
    // Nothing tries again by itself; by hand it does, and its code is told.
    let again = node.narae(&["restart", "job"]);
    assert_eq!(again.status.code(), Some(1));
    let all = runs(&node, "job");
    assert_eq!(all.len(), 2);
    assert_eq!(all[1]["cause"], "restart");
}

#[test]
fn a_command_that_never_ends_is_ended_at_its_time_limit_and_others_go_on() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let more = "args = [\"--spin\"]\n[job]\ntimeout = \"1500ms\"\nparallelism = 4\ncompletions = 4";
    let file = file(&node, "job", "report", more);
    let (code, said) = deploy(&node, &file, &["--no-wait"]);
    assert_eq!(code, 0, "{said}");
    node.until("it spins", |node| state(node, "job") == "running");
    // Four that spin on two processors: requests and the API are answered all the same.
    for _ in 0..20 {
        assert_eq!(node.get("/hello/").status, 200);
    }
    node.until("the time limit", |node| {
        runs(node, "job").last().is_some_and(|r| r["state"] != "running")
    });
    let run = last(&node, "job");
    assert_eq!(run["state"], "timed-out", "{run}");
    assert_eq!(state(&node, "job"), "failed");
    let killed = run["attempts"].as_array().unwrap().iter();
    assert!(
        killed.clone().all(|a| a["state"] == "killed" || a["state"] == "failed"),
        "{run}"
    );
    let cpu: u64 = killed.map(|a| a["cpu_ms"].as_u64().unwrap()).sum();
    assert!(cpu > 0, "its processor time is told: {run}");
}

#[test]
fn a_run_that_is_waited_for_too_long_goes_on_and_ends_7() {
    let node = Node::start();
    let file = file(&node, "job", "report", "args = [\"--spin\"]");
    let (code, said) = deploy(&node, &file, &["--timeout", "1s"]);
    assert_eq!(code, 7, "{said}");
    node.until("it runs on", |node| state(node, "job") == "running");
}

#[test]
fn stop_and_cancel_end_what_runs_at_once_and_start_runs_it_again() {
    let node = Node::start();
    let file = file(&node, "job", "report", "args = [\"--spin\"]");
    deploy(&node, &file, &["--no-wait"]);
    let runs_now = |node: &Node| {
        let run = runs(node, "job").pop();
        run.is_some_and(|r| {
            r["attempts"]
                .as_array()
                .unwrap()
                .iter()
                .any(|a| a["state"] == "running")
        })
    };
    node.until("it spins", runs_now);
    let stopped = node.ok(&["stop", "job"]);
    assert!(stopped.contains("stopped"), "{stopped}");
    let run = last(&node, "job");
    assert_eq!(run["state"], "cancelled", "{run}");
    assert_eq!(run["attempts"][0]["state"], "killed");
    let refused = node.api("POST", "/v1/services/job/runs", b"{}").unwrap();
    assert_eq!(refused.status, 409, "{}", refused.text());
    node.ok(&["start", "job", "--no-wait"]);
    node.until("it spins again", runs_now);
    let id = last(&node, "job")["id"].as_u64().unwrap();
    assert_eq!(id, 2);
    let gone = node.api("DELETE", &format!("/v1/services/job/runs/{id}"), b"").unwrap();
    assert_eq!(gone.status, 202, "{}", gone.text());
    node.until("it is cancelled", |node| last(node, "job")["state"] == "cancelled");
    assert_eq!(state(&node, "job"), "cancelled");
    let unknown = node.api("DELETE", "/v1/services/job/runs/99", b"").unwrap();
    assert_eq!(unknown.status, 404);
    node.ok(&["-y", "delete", "job"]);
    assert_eq!(node.narae(&["status", "job"]).status.code(), Some(4));
    // A name that is used again counts from one.
    deploy(&node, &file, &["--no-wait"]);
    node.until("it spins", runs_now);
    assert_eq!(last(&node, "job")["id"], 1);
    node.ok(&["-y", "delete", "job"]);
}

#[test]
fn a_run_goes_on_after_the_daemon_was_killed_in_its_middle() {
    let node = Node::start();
    let more = "args = [\"0\", \"400\"]\n[job]\ncompletions = 6\nparallelism = 2\n[[keyvalue]]\nname = \"default\"";
    let file = file(&node, "job", "flaky", more);
    deploy(&node, &file, &["--no-wait"]);
    node.until("two have succeeded", |node| {
        runs(node, "job")
            .pop()
            .is_some_and(|r| r["succeeded"].as_u64().unwrap() >= 2)
    });
    let before = last(&node, "job")["succeeded"].as_u64().unwrap();
    let node = node.kill_and_restart();
    let found = last(&node, "job");
    assert!(
        found["succeeded"].as_u64().unwrap() >= before,
        "what was written down stays: {found}"
    );
    node.until("the run ends", |node| last(node, "job")["state"] != "running");
    let run = last(&node, "job");
    assert_eq!(
        (&run["state"], &run["succeeded"], &run["interruptions"]),
        (&"succeeded".into(), &6.into(), &1.into())
    );
    assert_eq!(runs(&node, "job").len(), 1, "it is the same run");
}

#[test]
fn a_command_that_prints_much_keeps_its_newest_output_and_tells_what_it_dropped() {
    let node = Node::start();
    let args = (0..400).map(|n| format!("\"line {n}\"")).collect::<Vec<_>>().join(", ");
    let file = file(
        &node,
        "job",
        "report",
        &format!("args = [{args}]\n[logs]\nrate = \"100/s\""),
    );
    let (code, said) = deploy(&node, &file, &[]);
    assert_eq!(code, 0, "{said}");
    let text = node.ok(&["logs", "job", "-n", "1000"]);
    assert!(
        text.contains("line 0") && text.lines().count() < 400,
        "{}",
        text.lines().count()
    );
    assert!(
        text.contains("dropped") || text.contains("lines"),
        "the surplus is told: {text}"
    );
}

#[test]
fn a_trap_is_a_failed_attempt_whose_event_has_the_backtrace() {
    let node = Node::start();
    std::fs::write(
        node.dir.path().join("trap.wat"),
        r#"(module (func $deep unreachable) (func (export "_start") call $deep) (memory (export "memory") 1))"#,
    )
    .unwrap();
    let path = node.dir.path().join("job.toml");
    std::fs::write(&path, "name = \"job\"\nmodule = \"trap.wat\"\n[job]\nretries = 0\n").unwrap();
    let (code, said) = deploy(&node, path.to_str().unwrap(), &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("trapped") && said.contains("unreachable"), "{said}");
    let events = node.ok(&["events", "--service", "job", "--json"]);
    let trap = events.lines().find(|l| l.contains("\"trap\"")).unwrap();
    let trap: Value = serde_json::from_str(trap).unwrap();
    assert!(!trap["backtrace"].as_array().unwrap().is_empty(), "{trap}");
}

#[test]
fn a_run_by_hand_may_have_arguments_of_its_own_and_twenty_runs_are_kept() {
    let node = Node::start();
    let file = file(&node, "job", "report", "args = [\"from the file\"]");
    deploy(&node, &file, &[]);
    let begun = node
        .api("POST", "/v1/services/job/runs", br#"{"args": ["by hand"]}"#)
        .unwrap();
    assert_eq!(begun.status, 201, "{}", begun.text());
    node.until("it ends", |node| last(node, "job")["state"] == "succeeded");
    assert!(logs(&node, "job").contains("by hand"));
    for _ in 0..22 {
        node.ok(&["restart", "job", "-q"]);
    }
    let kept = runs(&node, "job");
    assert_eq!(kept.len(), 20);
    assert_eq!(kept[19]["id"], 24, "the newest is kept, and numbers go on");
    let bad = node
        .api("POST", "/v1/services/job/runs", br#"{"arguments": []}"#)
        .unwrap();
    assert_eq!(bad.status, 400);
}

#[test]
fn a_new_revision_takes_the_place_of_the_old_ones_run() {
    let node = Node::start();
    let old = file(&node, "job", "report", "args = [\"--spin\"]");
    deploy(&node, &old, &["--no-wait"]);
    node.until("it spins", |node| state(node, "job") == "running");
    let new = file(&node, "job", "report", "args = [\"fine\"]");
    let (code, said) = deploy(&node, &new, &[]);
    assert_eq!(code, 0, "{said}");
    node.until("the old one has ended", |node| {
        runs(node, "job").iter().all(|r| r["state"] != "running")
    });
    let all = runs(&node, "job");
    assert_eq!(
        (&all[0]["state"], &all[1]["state"]),
        (&"cancelled".into(), &"succeeded".into())
    );
    assert!(
        all[0]["reason"].as_str().unwrap().contains("revision 2 took its place"),
        "{}",
        all[0]
    );
}

#[test]
fn what_means_nothing_to_a_command_is_refused_with_its_place_before_anything_runs() {
    let node = Node::start();
    let more = "replicas = 3\nroutes = [\"/\"]\n[limits]\ncpu_time = \"1s\"\n[probes.readiness]\npath = \"/ready\"";
    for world in ["", "world = \"command\"\n"] {
        let file = file(&node, "job", "report", &format!("{world}{more}"));
        let (code, said) = deploy(&node, &file, &[]);
        assert_eq!(code, 9, "{said}");
        for key in ["`replicas`", "`routes`", "`limits.cpu_time`", "`probes`"] {
            assert!(said.contains(key), "{key}: {said}");
        }
        assert!(said.contains("job.toml:") && said.contains("E0155"), "{said}");
    }
    // The daemon says the same to who does not ask the command line.
    let file = file(&node, "web", "hello", "[job]\nretries = 1");
    let (code, said) = deploy(&node, &file, &[]);
    assert_eq!(code, 9, "{said}");
    assert!(said.contains("[job] is for world"), "{said}");
    assert_eq!(node.json(&["list", "-o", "json"])["items"], serde_json::json!([]));
}

#[test]
fn a_service_and_a_job_do_not_turn_into_each_other_and_neither_has_the_others_verbs() {
    let node = Node::start();
    node.deploy("web", "hello", "");
    let job = file(&node, "web", "report", "");
    let (code, said) = deploy(&node, &job, &["--accept"]);
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("E0156"), "{said}");
    assert_eq!(node.get("/web/").status, 200);
    let none = node.api("GET", "/v1/services/web/runs", b"").unwrap();
    assert_eq!(none.status, 400, "{}", none.text());
    let job = file(&node, "job", "report", "");
    deploy(&node, &job, &[]);
    let scaled = node.narae(&["scale", "job", "3"]);
    assert_eq!(
        scaled.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&scaled.stderr)
    );
    assert_eq!(
        node.json(&["status", "job", "-o", "json"])["runs"][0]["state"],
        "succeeded"
    );
}

#[test]
fn a_daemon_that_is_told_to_stop_ends_what_spins_and_the_next_one_goes_on() {
    let node = Node::start();
    let file = file(&node, "job", "report", "args = [\"--spin\"]");
    deploy(&node, &file, &["--no-wait"]);
    node.until("it spins", |node| state(node, "job") == "running");
    // Waits for the end: a guest that spins would hold it up for ever.
    let (status, dir) = node.terminate();
    assert!(status.success(), "{status:?}");
    let node = Node::again(dir, &[]);
    node.until("it spins again", |node| {
        let run = last(node, "job");
        run["attempts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|a| a["state"] == "running")
    });
    assert_eq!(last(&node, "job")["interruptions"], 1);
}

#[test]
fn a_command_that_takes_too_much_memory_fails_alone_and_its_limit_is_told() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let more = "args = [\"--mib\", \"64\"]\n[limits]\nmemory = \"8MiB\"\n[job]\nretries = 0";
    let file = file(&node, "job", "report", more);
    let (code, said) = deploy(&node, &file, &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("`memory`"), "{said}");
    assert_eq!(node.get("/hello/").status, 200);
    let events = node.ok(&["events", "--service", "job", "--kind", "limit", "--json"]);
    assert!(events.contains("\"limit\":\"memory\""), "{events}");
}
