//! What a newcomer meets: commands that must not hang, and messages that must not mislead.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::process::{Command, Output, Stdio};

use common::{Node, binary};

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_service_of_no_replicas_is_deployed_at_once() {
    let node = Node::start();
    let file = node.file("idle", "hello", "replicas = 0");
    let output = node.narae(&["deploy", &file, "--timeout", "20s"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("wants no replicas"), "{}", said(&output));
    assert_eq!(node.narae(&["status", "idle"]).status.code(), Some(3));
    node.ok(&["scale", "idle", "1"]);
    assert_eq!(node.get("/idle").status, 200);
}

#[test]
fn nothing_is_waited_for_while_a_service_is_stopped() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.ok(&["stop", "hello"]);
    let output = node.narae(&["scale", "hello", "2", "--timeout", "20s"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("narae start hello"), "{}", said(&output));
    let output = node.narae(&["restart", "hello", "--timeout", "20s"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    node.ok(&["start", "hello"]);
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["replicas_serving"], 2);
}

#[test]
fn a_dry_run_says_whether_anything_would_change() {
    let node = Node::start();
    let file = node.file("hello", "hello", "");
    let first = node.ok(&["deploy", &file, "--dry-run"]);
    assert!(first.contains("would become revision 1"), "{first}");
    node.ok(&["deploy", &file]);
    let same = node.ok(&["deploy", &file, "--dry-run"]);
    assert!(same.contains("nothing would change, revision 1"), "{same}");
    let other = node.ok(&["deploy", &file, "--dry-run", "--set", "env.A=b"]);
    assert!(other.contains("would become revision 2"), "{other}");
}

#[test]
fn a_module_s_mistake_is_placed_where_the_file_names_it() {
    let node = Node::start();
    for (module, text, word) in [("gone.wasm", None, "gone.wasm"), ("text.wasm", Some("hello"), "text")] {
        if let Some(text) = text {
            std::fs::write(node.dir.path().join(module), text).unwrap();
        }
        std::fs::write(
            node.dir.path().join("bad.toml"),
            format!("name = \"bad\"\nmodule = \"{module}\"\n"),
        )
        .unwrap();
        let output = node.narae(&["deploy", "bad.toml"]);
        assert_eq!(output.status.code(), Some(9));
        let said = said(&output);
        assert!(said.contains("bad.toml:2:10") && said.contains(word), "{said}");
    }
    std::fs::write(
        node.dir.path().join("ok.toml"),
        "name = \"ok\"\nmodule = \"gone.wasm\"\n",
    )
    .unwrap();
    let output = node.narae(&["deploy", "ok.toml", "--set", "limits.memroy=1MiB"]);
    assert!(said(&output).contains("ok.toml (with --set):"), "{}", said(&output));
}

#[test]
fn a_start_that_fails_says_why_by_code_and_leaves_no_socket() {
    let node = Node::start();
    let other = tempfile::Builder::new().prefix("narae-").tempdir().unwrap();
    let serve = |dir: &std::path::Path, listen: &str| {
        Command::new(binary())
            .args(["serve", "--listen", listen, "--data-dir"])
            .arg(dir)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let taken = serve(other.path(), &node.http.to_string());
    assert_eq!(taken.status.code(), Some(1));
    assert!(said(&taken).contains("E0504"), "{}", said(&taken));
    assert!(!other.path().join("admin.sock").exists());
    let twice = serve(&node.dir.path().join("data"), "127.0.0.1:0");
    assert_eq!(twice.status.code(), Some(1));
    assert!(said(&twice).contains("E0505"), "{}", said(&twice));
    node.ok(&["list"]);
    std::fs::write(other.path().join("state.redb"), "no database").unwrap();
    let damaged = serve(other.path(), "127.0.0.1:0");
    assert_eq!(damaged.status.code(), Some(1));
    assert!(said(&damaged).contains("E0506"), "{}", said(&damaged));
}

#[test]
fn a_call_without_an_answer_names_the_reason_once() {
    let node = Node::start();
    node.deploy("crash", "crash", "");
    let output = node.narae(&["call", "crash", "/trap"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("crash gave no answer: the service failed (500 trap)"),
        "{}",
        said(&output)
    );
}
