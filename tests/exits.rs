//! Every documented exit code that exists, by a command that ends with it. 12 comes with capabilities.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::process::{Command, Stdio};

use common::{Node, binary, module};

fn code(node: &Node, args: &[&str]) -> i32 {
    let output = node.narae(args);
    let code = output.status.code();
    eprintln!("{args:?}: {code:?} {}", String::from_utf8_lossy(&output.stderr));
    code.expect("it was not killed")
}

#[test]
fn each_way_a_verb_ends_has_its_number() {
    let node = Node::start_with(&["--admin", "127.0.0.1:0"]);
    let good = node.file("app", "version-v1", "");
    assert_eq!(code(&node, &["deploy", &good]), 0);
    assert_eq!(code(&node, &["diff", &good, "--exit-code"]), 0, "no difference");
    assert_eq!(code(&node, &["list"]), 0);
    assert_eq!(code(&node, &["status", "app"]), 0);

    let bad = node.file("bad", "crash-start", "");
    assert_eq!(code(&node, &["deploy", &bad]), 1, "a refused first revision");
    assert_eq!(code(&node, &["top"]), 1, "not supported yet");
    assert_eq!(code(&node, &["scale", "app", "99999"]), 2, "no number of replicas");

    assert_eq!(code(&node, &["lsit"]), 2);
    assert_eq!(code(&node, &["status"]), 2);
    assert_eq!(code(&node, &["delete", "app"]), 2, "nobody to ask: say -y");

    assert_eq!(code(&node, &["status", "bad"]), 3);
    node.ok(&["stop", "app"]);
    assert_eq!(code(&node, &["status", "app"]), 3);
    node.ok(&["start", "app"]);

    for args in [
        ["status", "nobody"].as_slice(),
        &["logs", "nobody"],
        &["inspect", "app", "--revision", "99"],
        &["rollout", "undo", "app", "--to", "99"],
        &["delete", "nobody", "-y"],
        &["call", "nobody", "/"],
    ] {
        assert_eq!(code(&node, args), 4, "{args:?}");
    }

    let about: serde_json::Value = serde_json::from_slice(&node.api("GET", "/v1/node", b"").unwrap().body).unwrap();
    let door = format!("http://{}", about["admin"].as_str().unwrap());
    let token = node.dir.path().join("data/admin.token");
    let token = token.to_str().unwrap();
    std::fs::write(node.dir.path().join("wrong"), "0".repeat(64)).unwrap();
    assert_eq!(code(&node, &["--host", &door, "--token-file", "wrong", "list"]), 6);
    assert_eq!(code(&node, &["--host", &door, "--token-file", token, "list"]), 0);
    assert_eq!(code(&node, &["--host", &door, "list"]), 6, "no token at all");

    let slow = node.file("slow", "version-v1", "[rollout]\nmin_healthy_time = \"30s\"");
    assert_eq!(code(&node, &["deploy", &slow, "--timeout", "200ms"]), 7);
    assert_eq!(node.get("/slow").status, 200, "the work goes on");

    let broken = node.file(
        "app",
        "version-broken",
        "[probes.startup]\ninterval = \"20ms\"\nfailures = 2",
    );
    assert_eq!(code(&node, &["deploy", &broken]), 8);
    assert_eq!(node.get("/app").text(), "v1\n");

    std::fs::write(node.dir.path().join("no.toml"), "name = 3\n").unwrap();
    for args in [
        ["deploy", "no.toml"].as_slice(),
        &["config", "check", "no.toml"],
        &["deploy", "absent.toml"],
    ] {
        assert_eq!(code(&node, args), 9, "{args:?}");
    }

    let more = node.file("app", "version-v1", "replicas = 2");
    assert_eq!(code(&node, &["diff", &more, "--exit-code"]), 10);
    assert_eq!(code(&node, &["diff", &more]), 0);

    assert_eq!(code(&node, &["deploy", &more, "--if-revision", "77"]), 11);
    assert_eq!(
        code(&node, &["deploy", &more, "--if-revision", "0"]),
        11,
        "it is there already"
    );
}

#[test]
fn without_a_daemon_it_is_5_for_every_verb_that_needs_one() {
    for args in [
        ["list"].as_slice(),
        &["status", "x"],
        &["metrics"],
        &["events"],
        &["module", "list"],
        &["stop", "x"],
    ] {
        let output = Command::new(binary())
            .args(["--host", "unix:/nonexistent/narae.sock"])
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(5), "{args:?}");
    }
}

/// A command that ends with `exit-with-code` 42.
const CODED: &str = r#"(component
  (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core module $m
    (import "" "exit" (func $exit (param i32)))
    (func (export "run") (result i32) (call $exit (i32.const 42)) (i32.const 0)))
  (core instance $i (instantiate $m (with "" (instance (export "exit" (func $exit))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.12" (instance $command)))"#;

fn run(args: &[&str]) -> Option<i32> {
    Command::new(binary())
        .arg("run")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .unwrap()
        .status
        .code()
}

#[test]
fn a_command_ends_with_its_own_code_and_125_is_ours() {
    let path = |name: &str| module(name).to_str().unwrap().to_owned();
    assert_eq!(run(&[&path("report"), "--", "a", "b"]), Some(0));
    assert_eq!(
        run(&[&path("report"), "--", "--exit", "3"]),
        Some(1),
        "`exit` can only say that it failed"
    );
    // `proc_exit` of preview 1 is led past the adapter, which knows success and failure only.
    assert_eq!(run(&[&path("report-p1"), "--", "--exit", "42"]), Some(42));
    let dir = tempfile::tempdir().unwrap();
    let coded = dir.path().join("coded.wat");
    std::fs::write(&coded, CODED).unwrap();
    assert_eq!(run(&[coded.to_str().unwrap()]), Some(42), "a code of its own");
    assert_eq!(run(&["/nonexistent.wasm"]), Some(125));
    assert_eq!(run(&["Cargo.toml"]), Some(125), "no wasm");
    assert_eq!(run(&[]), Some(2));
}

#[test]
fn the_keyboard_detaches_from_a_deploy_with_130_and_undoes_nothing() {
    let node = Node::start();
    let file = node.file("app", "version-v1", "[rollout]\nmin_healthy_time = \"60s\"");
    let mut child = node
        .command(&["deploy", &file])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    node.until("it serves", |n| n.get("/app").status == 200);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(node.get("/app").text(), "v1\n");
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["revision"], 1);
}
