//! From a file to an answer, with the real binary: deploy, look, change, undo, delete.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use common::{Node, request};

#[test]
fn five_lines_of_toml_serve_a_component() {
    let node = Node::start();
    let file = node.file("hello", "hello", "replicas = 3");
    let said = node.ok(&["deploy", &file]);
    assert!(said.contains("hello"), "{said}");
    let reply = node.get("/hello");
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from narae\n"));
    let list = node.json(&["list", "-o", "json"]);
    assert_eq!(list["schema"], 1);
    assert_eq!(list["items"][0]["name"], "hello");
    assert_eq!(list["items"][0]["state"], "healthy");
    assert_eq!(list["items"][0]["replicas_serving"], 3);
}

#[test]
fn a_std_build_and_a_0_3_component_deploy_with_no_grant_at_all() {
    let node = Node::start();
    node.deploy("std", "std-hello", "");
    node.deploy("p3", "hello-p3", "");
    assert_eq!(node.get("/std").status, 200);
    assert_eq!(node.get("/p3").text(), "hello from narae 0.3\n");
    node.until("the guest's line is in the log", |n| {
        n.ok(&["logs", "std", "-n", "5"]).lines().count() > 0
    });
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_and_nothing_is_deployed() {
    let node = Node::start();
    std::fs::copy(common::module("hello"), node.dir.path().join("hello.wasm")).unwrap();
    let path = node.dir.path().join("bad.toml");
    std::fs::write(
        &path,
        "name = \"Bad\"\nmodule = \"hello.wasm\"\nreplicas = 20000\n[limits]\nmemroy = \"64MiB\"\ntimeout = 5\n",
    )
    .unwrap();
    let output = node.narae(&["deploy", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(9));
    let text = String::from_utf8(output.stderr).unwrap();
    for part in [
        "memroy",
        "did you mean `memory`",
        "bad.toml:5:1",
        "replicas",
        "timeout",
        "name",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    assert_eq!(node.json(&["list", "-o", "json"])["items"], serde_json::json!([]));
}

#[test]
fn what_is_no_http_component_is_refused_by_name() {
    let node = Node::start();
    for (guest, word) in [("report", "command"), ("report-p1", "command")] {
        let file = node.file(guest, guest, "");
        let output = node.narae(&["deploy", &file]);
        assert_ne!(output.status.code(), Some(0));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(word),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    std::fs::write(node.dir.path().join("text.wasm"), "hello, not wasm").unwrap();
    std::fs::write(
        node.dir.path().join("text.toml"),
        "name = \"text\"\nmodule = \"text.wasm\"\nroutes = [\"/\"]\n",
    )
    .unwrap();
    let output = node.narae(&["deploy", "text.toml"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("not a wasm binary"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_refused_first_revision_ends_1_and_a_broken_release_ends_8_with_the_old_one_serving() {
    let node = Node::start();
    let first = node.file("bad", "crash-start", "");
    assert_eq!(node.narae(&["deploy", &first]).status.code(), Some(1));
    let status = node.narae(&["status", "bad", "-o", "json"]);
    assert_eq!(status.status.code(), Some(3), "exists, but is not healthy");

    node.deploy("app", "version-v1", "");
    let broken = node.file(
        "app",
        "version-broken",
        "[probes.startup]\npath = \"/\"\ninterval = \"20ms\"\nfailures = 3",
    );
    let output = node.narae(&["deploy", &broken]);
    assert_eq!(
        output.status.code(),
        Some(8),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(node.get("/app").text(), "v1\n");
    let history = node.json(&["rollout", "history", "app", "-o", "json"]);
    let refused = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["revision"] == 2)
        .unwrap();
    assert_eq!(refused["state"], "refused");
    assert!(!refused["reason"].as_str().unwrap().is_empty(), "the reason is stored");
}

#[test]
fn undo_goes_back_to_any_kept_revision_even_with_the_file_gone() {
    let node = Node::start();
    node.deploy("app", "version-v1", "");
    node.deploy("app", "version-v2", "");
    assert_eq!(node.get("/app").text(), "v2\n");
    std::fs::remove_file(node.dir.path().join("version-v1.wasm")).unwrap();
    node.ok(&["rollout", "undo", "app"]);
    node.until("v1 serves again", |n| n.get("/app").text() == "v1\n");
    node.ok(&["rollback", "app", "--to", "2"]);
    node.until("v2 serves again", |n| n.get("/app").text() == "v2\n");
    assert_eq!(
        node.narae(&["rollout", "undo", "app", "--to", "77"]).status.code(),
        Some(4)
    );
}

#[test]
fn scale_stop_start_restart_and_delete_do_what_they_say() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.ok(&["scale", "hello", "4"]);
    node.until("four serve", |n| {
        n.json(&["list", "-o", "json"])["items"][0]["replicas_serving"] == 4
    });
    node.ok(&["scale", "hello", "-3"]);
    node.until("one serves", |n| {
        n.json(&["list", "-o", "json"])["items"][0]["replicas_serving"] == 1
    });
    node.ok(&["restart", "hello"]);
    assert_eq!(node.get("/hello").status, 200, "new beside old");
    node.ok(&["stop", "hello"]);
    node.until("a stopped service answers 503", |n| n.get("/hello").status == 503);
    assert_eq!(node.narae(&["status", "hello"]).status.code(), Some(3));
    node.ok(&["start", "hello"]);
    node.until("it serves again", |n| n.get("/hello").status == 200);
    node.ok(&["delete", "hello", "-y"]);
    node.until("it is gone", |n| n.get("/hello").status == 404);
    node.until("its record too", |n| {
        n.narae(&["status", "hello"]).status.code() == Some(4)
    });
}

#[test]
fn deploying_the_same_again_changes_nothing() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.deploy("hello", "hello", "");
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["revision"], 1);
}

#[test]
fn diff_tells_what_would_change_and_dry_run_changes_nothing() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let file = node.file("hello", "hello", "replicas = 5");
    let output = node.narae(&["diff", &file, "--exit-code"]);
    assert_eq!(output.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&output.stdout).contains("replicas"));
    node.ok(&["deploy", &file, "--dry-run"]);
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["revision"], 1);
}

#[test]
fn two_services_cannot_take_the_same_route() {
    let node = Node::start();
    node.deploy("one", "hello", "routes = [\"/same\"]");
    let file = node.file("two", "hello", "routes = [\"/same\"]");
    let output = node.narae(&["deploy", &file]);
    assert_eq!(
        output.status.code(),
        Some(9),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("one"));
}

#[test]
fn the_longest_path_wins_on_whole_segments_and_hosts_come_first() {
    let node = Node::start();
    node.deploy("root", "version-v1", "routes = [\"/\"]");
    node.deploy("deep", "version-v2", "routes = [\"/api\"]");
    node.deploy("host", "hello", "[[route]]\nhost = \"api.test\"\n");
    assert_eq!(node.get_path("/apix").text(), "v1\n");
    assert_eq!(node.get_path("/api/x").text(), "v2\n");
    let reply = common::raw(
        node.http,
        b"GET /api HTTP/1.1\r\nhost: API.test:80\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(reply.text(), "hello from narae\n");
}

#[test]
fn call_reaches_a_service_without_a_route_through_the_admin_socket() {
    let node = Node::start();
    let file = node.dir.path().join("inner.toml");
    std::fs::copy(common::module("echo"), node.dir.path().join("echo.wasm")).unwrap();
    std::fs::write(&file, "name = \"inner\"\nmodule = \"echo.wasm\"\n").unwrap();
    node.ok(&["deploy", file.to_str().unwrap()]);
    assert_eq!(
        node.ok(&["call", "inner", "/", "-X", "POST", "-d", "over the socket"]),
        "over the socket"
    );
}

#[test]
fn configuration_environment_and_key_values_reach_the_guest() {
    let node = Node::start();
    let more =
        "replicas = 2\n[env]\nLEVEL = \"high\"\n[config]\ncurrency = \"KRW\"\n[[keyvalue]]\nname = \"default\"\n";
    node.deploy("config", "config", more);
    assert_eq!(node.get("/config/config/currency").text().trim(), "KRW");
    assert_eq!(node.get("/config/env/LEVEL").text().trim(), "high");
    assert_eq!(node.get("/config/env/HOME").status, 404, "nothing is inherited");
    for n in 1..=4 {
        assert_eq!(
            node.get("/config/incr/visits").text().trim(),
            n.to_string(),
            "shared by the replicas"
        );
    }
}

#[test]
fn bodies_stream_both_ways_and_an_oversized_one_gets_413_before_it_is_read() {
    let node = Node::start();
    node.deploy("echo", "echo", "[limits]\nbody = \"1MiB\"");
    let body = vec![b'z'; 1 << 20];
    let reply = request(node.http, "POST", "/", &[("host", "echo.test")], &body);
    assert_eq!((reply.status, reply.body == body, reply.whole), (200, true, true));
    let reply = common::raw(
        node.http,
        b"POST / HTTP/1.1\r\nhost: echo.test\r\nconnection: close\r\ncontent-length: 10000000000\r\n\r\n",
    );
    assert_eq!(reply.status, 413);
}

#[test]
fn verbs_that_are_not_built_yet_are_refused_by_name() {
    let node = Node::start();
    for verb in [
        vec!["top"],
        vec!["cluster", "init"],
        vec!["node", "list"],
        vec!["doctor"],
    ] {
        let output = node.narae(&verb);
        assert_eq!(output.status.code(), Some(1), "{verb:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("not supported yet"),
            "{verb:?}"
        );
    }
}

#[test]
fn without_a_daemon_the_exit_code_is_5_and_the_way_out_is_told() {
    let output = std::process::Command::new(common::binary())
        .args(["--host", "unix:/nonexistent/narae.sock", "list"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("narae serve"));
}

#[test]
fn a_directory_is_an_application_all_of_it_or_nothing_and_prune_takes_the_rest_away() {
    let node = Node::start();
    node.deploy("old", "hello", "");
    let app = node.dir.path().join("shop");
    std::fs::create_dir(&app).unwrap();
    std::fs::copy(common::module("hello"), app.join("hello.wasm")).unwrap();
    let write = |name: &str, more: &str| {
        let text = format!("name = \"{name}\"\nmodule = \"hello.wasm\"\n{more}\n[[route]]\nhost = \"{name}.test\"\n");
        std::fs::write(app.join(format!("{name}.toml")), text).unwrap();
    };
    write("front", "depends_on = [\"back\"]");
    write("back", "");
    write("wrong", "replicas = \"many\"");
    assert_eq!(node.narae(&["deploy", "shop"]).status.code(), Some(9));
    assert_eq!(names(&node), ["old"], "one mistake, and none is deployed");

    std::fs::remove_file(app.join("wrong.toml")).unwrap();
    node.ok(&["deploy", "shop"]);
    assert_eq!(names(&node), ["back", "front", "old"]);
    assert_eq!(node.get("/front").status, 200);
    write("front", "replicas = 2");
    assert_eq!(
        node.narae(&["deploy", "shop", "--prune"]).status.code(),
        Some(2),
        "nobody to ask"
    );
    let front = node.json(&["status", "front", "-o", "json"]);
    assert_eq!(front["revision"], 1, "a question without an answer changes nothing");
    node.ok(&["deploy", "shop", "--prune", "-y"]);
    assert_eq!(
        names(&node),
        ["back", "front"],
        "what no file describes is gone when it ends"
    );
}

fn names(node: &Node) -> Vec<String> {
    let list = node.json(&["list", "-o", "json", "-a"]);
    let items = list["items"].as_array().unwrap();
    items.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_file_from_standard_input_takes_values_from_the_command_line() {
    use std::io::Write;
    let node = Node::start();
    std::fs::copy(common::module("hello"), node.dir.path().join("hello.wasm")).unwrap();
    let mut child = node
        .command(&["deploy", "-", "--set", "replicas=2", "--set", "limits.memory=64MiB"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let text = b"name = \"hello\"\nmodule = \"hello.wasm\"\nroutes = [\"/\"]\n";
    child.stdin.take().unwrap().write_all(text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["replicas_serving"], 2);
    assert!(
        node.ok(&["inspect", "hello", "--effective"])
            .contains("memory = \"64MiB\"")
    );
}

#[test]
fn an_empty_node_explains_itself_and_a_path_that_nobody_has_is_a_404() {
    let node = Node::start();
    let output = node.narae(&["list"]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("no services yet"), "{said}");
    assert_eq!(node.get_path("/").status, 404);
}

#[test]
fn a_stopped_service_is_still_stopped_after_a_restart_of_the_daemon_and_keeps_its_route() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.ok(&["stop", "hello"]);
    let node = node.kill_and_restart();
    let reply = node.get("/hello");
    assert_eq!(reply.status, 503, "it is there, and does not run: {}", reply.text());
    let other = node.file("thief", "hello", "[[route]]\nhost = \"hello.test\"");
    assert_eq!(
        node.narae(&["deploy", &other]).status.code(),
        Some(9),
        "the route is taken"
    );
    node.ok(&["start", "hello"]);
    assert_eq!(node.get("/hello").status, 200);
}
