//! Secrets and capabilities, with the real binary: what a guest is given, what nobody ever sees, and what stops a deploy.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Node, Reply, request};
use http::{StatusCode, Uri};
use narae_orchestrator::load::{Load, Shot};

/// A value that stands nowhere by chance.
const VALUE: &str = "zq-Correct-Horse-Battery-91";

/// `narae` with this on its standard input.
fn fed(node: &Node, args: &[&str], input: &[u8]) -> Output {
    let mut command = node.command(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn set(node: &Node, name: &str, value: &str) -> serde_json::Value {
    let output = fed(node, &["secret", "set", name, "-o", "json"], value.as_bytes());
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{err}")
}

fn ended(node: &Node, args: &[&str]) -> (i32, String) {
    let output = node.narae(args);
    (output.status.code().unwrap(), text(&output))
}

/// Reads the secret `db` as its variable DB.
const READS_DB: &str = "[rollout]\nmin_healthy_time = \"20ms\"\n[secrets]\nDB = \"db\"";

fn items(node: &Node, args: &[&str]) -> Vec<serde_json::Value> {
    node.json(args)["items"].as_array().unwrap().clone()
}

#[test]
fn a_guest_finds_a_secret_in_its_environment() {
    let node = Node::start();
    set(&node, "db", &format!("{VALUE}\n"));
    std::fs::write(node.dir.path().join("pem"), "two\nlines\n").unwrap();
    node.ok(&["secret", "set", "certificate", "--from-file", "pem"]);
    node.deploy(
        "app",
        "config",
        "[env]\nPLAIN = \"plain\"\n[secrets]\nDB = \"db\"\nCERT = \"certificate\"\nAGAIN = \"db\"",
    );
    for (variable, value) in [
        ("DB", VALUE),
        ("CERT", "two\nlines"),
        ("AGAIN", VALUE),
        ("PLAIN", "plain"),
    ] {
        let reply = node.get(&format!("/app/env/{variable}"));
        assert_eq!((reply.status, reply.text()), (200, format!("{value}\n")), "{variable}");
    }
    let listed = items(&node, &["secret", "list", "-o", "json"]);
    assert_eq!(listed[1]["name"], "db");
    assert_eq!(listed[1]["version"], 1);
    assert_eq!(listed[1]["used_by"], serde_json::json!(["app@1"]));
    assert_eq!(listed[1]["readable"], true);
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w.eq_ignore_ascii_case(needle))
}

/// Fails when a file below `dir` has one of these in it.
fn nowhere_below(dir: &Path, needles: &[Vec<u8>]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            nowhere_below(&path, needles);
        } else if let Ok(bytes) = std::fs::read(&path) {
            for needle in needles {
                assert!(!holds(&bytes, needle), "{} has it", path.display());
            }
        }
    }
}

#[test]
fn a_value_is_nowhere_but_in_the_guest() {
    let node = Node::start_with(&["--admin", "127.0.0.1:0"]);
    set(&node, "db", VALUE);
    node.deploy("app", "config", READS_DB);
    assert_eq!(node.get("/app/env/DB").text(), format!("{VALUE}\n"));
    // Things that go wrong tell more than things that go well.
    let refused = fed(&node, &["secret", "set", "other"], format!("{VALUE}\0").as_bytes());
    assert_eq!(refused.status.code(), Some(1));
    assert!(!text(&refused).contains(VALUE));
    let refused = node
        .api("PUT", "/v1/secrets/db", format!("{VALUE}\0").as_bytes())
        .unwrap();
    assert!(refused.status == 400 && !refused.text().contains(VALUE));
    let refused = node.api("PUT", "/v1/secrets/Not%20One", VALUE.as_bytes()).unwrap();
    assert!(refused.status == 400 && !refused.text().contains(VALUE));
    assert_eq!(
        node.ok(&["rollout", "undo", "app", "--to", "1"]).matches(VALUE).count(),
        0
    );
    set(&node, "db", &format!("{VALUE}-2"));
    node.until("the changed secret is served", |n| {
        n.get("/app/env/DB").text().contains("-2")
    });

    let mut answers = String::new();
    for path in [
        "/metrics",
        "/v1/openapi.json",
        "/v1/node",
        "/v1/services",
        "/v1/services/app/status",
        "/v1/services/app/spec",
        "/v1/services/app/spec?effective=true",
        "/v1/services/app/spec?revision=1&effective=true",
        "/v1/services/app/rollout",
        "/v1/services/app/revisions",
        "/v1/services/app/logs",
        "/v1/events",
        "/v1/modules",
        "/v1/secrets",
        "/v1/secrets/db",
        "/v1/config",
    ] {
        answers += &node.api("GET", path, b"").unwrap().text();
    }
    assert_eq!(
        node.api("GET", "/v1/secrets/db", b"").unwrap().status,
        405,
        "no road leads out"
    );
    for args in [
        ["inspect", "app"].as_slice(),
        &["inspect", "app", "--spec", "-o", "json"],
        &["inspect", "app", "--effective"],
        &["status", "app", "-o", "json"],
        &["events"],
        &["logs", "app"],
        &["secret", "list", "-o", "wide"],
        &["config", "show", "--origin"],
        &["-vv", "list"],
    ] {
        answers += &text(&node.narae(args));
    }
    assert!(answers.contains("orders") || answers.contains("app"));
    assert!(!answers.contains(VALUE));
    for file in ["environ", "cmdline", "comm"] {
        let bytes = std::fs::read(format!("/proc/{}/{file}", node.pid())).unwrap();
        assert!(!holds(&bytes, VALUE.as_bytes()), "{file}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(
        core.split_whitespace().nth(4),
        Some("0"),
        "no core file with it either: {core}"
    );

    let hex: String = VALUE.bytes().map(|b| format!("{b:02x}")).collect();
    let numbers: Vec<String> = VALUE.bytes().map(|b| b.to_string()).collect();
    let needles = [
        VALUE.as_bytes().to_vec(),
        hex.into_bytes(),
        numbers.join(",").into_bytes(),
    ];
    nowhere_below(&node.dir.path().join("data"), &needles);
    let said: Vec<String> = node.said.try_iter().collect();
    assert!(!said.join("\n").contains(VALUE));
    let (_, dir) = node.terminate();
    nowhere_below(&dir.path().join("data"), &needles);
}

#[test]
fn a_guest_that_prints_its_secret_prints_stars() {
    let node = Node::start();
    // `crash` writes `line 1 xxxx…`.
    set(&node, "x", &"x".repeat(40));
    node.deploy("app", "crash", "[secrets]\nX = \"x\"");
    node.get("/app/log?lines=3&bytes=47");
    node.until("the lines are there", |n| n.ok(&["logs", "app"]).contains("line 3"));
    let logs = node.ok(&["logs", "app"]);
    assert!(logs.contains("line 1 ***") && !logs.contains("xxxx"), "{logs}");
}

#[test]
fn a_changed_secret_is_rolled_out_and_no_request_is_lost() {
    let node = Node::start();
    set(&node, "db", "value-one");
    let quick = "replicas = 2\n[rollout]\nmin_healthy_time = \"20ms\"\n[limits]\nqueue = 10000\nqueue_wait = \"60s\"\n\
        timeout = \"60s\"\n[secrets]\nDB = \"db\"";
    node.deploy("app", "config", quick);
    node.deploy("other", "hello", "");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let url: Uri = format!("http://{}/env/DB", node.http).parse().unwrap();
    let either = |status: StatusCode, body: &[u8]| {
        status == StatusCode::OK && [&b"value-one\n"[..], b"value-two\n"].contains(&body)
    };
    let shot = Shot {
        host: Some("app.test".into()),
        ..Shot::get(url)
    };
    let shots = vec![
        shot.clone().expecting(either),
        shot.on_new_connection().expecting(either),
    ];
    let load = runtime.block_on(async { Load::start(shots, 50) });
    for n in 0..6 {
        let value = if n % 2 == 0 { "value-two" } else { "value-one" };
        let answer = set(&node, "db", value);
        assert_eq!(
            answer["services"],
            serde_json::json!([{ "service": "app", "revision": n + 2 }])
        );
        node.until("the new value is served and proved", |n| {
            let history = items(n, &["rollout", "history", "app", "-o", "json"]);
            history.iter().any(|r| r["stable"] == true && r["wanted"] == true)
                && n.get("/app/env/DB").text() == format!("{value}\n")
        });
    }
    let seen = runtime.block_on(load.finish());
    assert_eq!((seen.lost, &seen.examples), (0, &Vec::new()), "of {}", seen.sent);
    assert!(seen.sent > 0);

    let history = items(&node, &["rollout", "history", "app", "-o", "json"]);
    let causes: Vec<_> = history.iter().map(|r| r["cause"].as_str().unwrap()).collect();
    assert_eq!(
        causes.iter().filter(|c| **c == "secret db changed").count(),
        6,
        "{causes:?}"
    );
    assert_eq!(items(&node, &["rollout", "history", "other", "-o", "json"]).len(), 1);

    // The same value again changes nothing; an undo brings the old value back, a deploy of the file the current one.
    let again = set(&node, "db", "value-one");
    assert_eq!(
        (again["changed"].clone(), again["services"].clone()),
        (false.into(), serde_json::json!([]))
    );
    node.ok(&["rollout", "undo", "app"]);
    assert_eq!(node.get("/app/env/DB").text(), "value-two\n");
    node.deploy("app", "config", quick);
    assert_eq!(node.get("/app/env/DB").text(), "value-one\n");
}

#[test]
fn a_changed_secret_starts_no_stopped_service() {
    let node = Node::start();
    set(&node, "db", "value-one");
    node.deploy("app", "config", READS_DB);
    node.ok(&["stop", "app"]);
    set(&node, "db", "value-two");
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["state"], "stopped");
    node.ok(&["start", "app"]);
    node.until("it serves the new value", |n| {
        n.get("/app/env/DB").text() == "value-two\n"
    });
}

#[test]
fn whatever_changes_at_once_every_revision_finds_the_versions_it_pins() {
    let node = Node::start();
    set(&node, "db", "value-0");
    // Few revisions are kept: versions go while others are chosen.
    let with = |more: &str| {
        format!("[rollout]\nmin_healthy_time = \"20ms\"\nkeep_revisions = 2\ncapabilities = \"allow\"\n{more}")
    };
    let reading = node.file("app", "config", &with("[secrets]\nDB = \"db\""));
    let toml = std::fs::read_to_string(&reading).unwrap();
    let bare = node.dir.path().join("bare.toml");
    std::fs::write(&bare, toml.replace("DB = \"db\"", "")).unwrap();
    let bare = bare.to_str().unwrap();
    node.ok(&["deploy", &reading]);
    // A node is one thread's own; its socket is everybody's.
    let socket = node.socket();
    let client = |args: &[&str]| {
        let mut command = Command::new(common::binary());
        command
            .args(args)
            .env("NARAE_HOST", format!("unix:{}", socket.display()));
        command.stdin(Stdio::null()).output().unwrap()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..60 {
                let value = format!("value-{n}");
                let reply = common::socket_request(&socket, "PUT", "/v1/secrets/db", value.as_bytes()).unwrap();
                assert_eq!(reply.status, 200, "{}", reply.text());
            }
        });
        scope.spawn(|| {
            for n in 0..8 {
                let file = if n % 2 == 0 { bare } else { &reading };
                let output = client(&["deploy", file, "--accept", "--no-wait"]);
                assert!(output.status.success(), "{}", text(&output));
            }
        });
        scope.spawn(|| {
            for _ in 0..8 {
                // Nothing to go back to, or changed underneath: both are answers.
                let output = client(&["rollout", "undo", "app", "--no-wait"]);
                let code = output.status.code().unwrap();
                assert!([0, 4, 11].contains(&code), "{code} {}", text(&output));
            }
        });
    });
    let events = node.ok(&["events", "--json"]);
    assert!(
        !events.contains("any more") && !events.contains("cannot be opened"),
        "{events}"
    );
    node.ok(&["deploy", &reading, "--accept"]);
    set(&node, "db", "the-last");
    node.until("the last value is served", |n| {
        n.get("/app/env/DB").text() == "the-last\n"
    });
}

#[test]
fn a_deploy_that_names_a_secret_the_node_does_not_have_changes_nothing() {
    let node = Node::start();
    let file = node.file("app", "config", "[secrets]\nDB = \"orders-db\"\nB = \"other\"");
    for args in [["deploy", &file].as_slice(), &["deploy", &file, "--dry-run"]] {
        let (code, said) = ended(&node, args);
        assert_eq!(code, 9, "{said}");
        for part in [
            "app.toml:7:6",
            "no secret `orders-db`",
            "narae secret set orders-db",
            "no secret `other`",
            "E0182",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    assert!(items(&node, &["list", "-o", "json"]).is_empty());
    set(&node, "orders-db", "x");
    set(&node, "other", "y");
    node.ok(&["deploy", &file]);
    assert_eq!(node.get("/app/env/DB").text(), "x\n");
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start();
    set(&node, "db", "value-one");
    node.deploy("app", "config", READS_DB);
    set(&node, "db", "value-two");
    let node = node.kill_and_restart();
    node.until("it serves what was set last", |n| {
        n.get("/app/env/DB").text() == "value-two\n"
    });
    assert_eq!(items(&node, &["secret", "list", "-o", "json"])[0]["version"], 2);
    let key = node.dir.path().join("data/secrets.key");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_node_with_another_key_serves_what_needs_none_and_says_what_is_wrong() {
    let node = Node::start();
    set(&node, "db", "value-one");
    node.deploy("app", "config", READS_DB);
    node.deploy("plain", "hello", "");
    let (_, dir) = node.terminate();
    let key = dir.path().join("data/secrets.key");
    let right = std::fs::read(&key).unwrap();
    std::fs::write(&key, [7; 32]).unwrap();
    let node = Node::again(dir, &[]);
    assert_eq!(node.get("/plain").status, 200);
    node.until("the reason is told", |n| {
        let (_, said) = ended(n, &["status", "app"]);
        said.contains("secret `db` version 1 cannot be opened") && said.contains("secrets.key")
    });
    assert_eq!(items(&node, &["secret", "list", "-o", "json"])[0]["readable"], false);

    // The right file again, and everything is as it was.
    let (_, dir) = node.terminate();
    std::fs::write(&key, &right).unwrap();
    let node = Node::again(dir, &[]);
    node.until("it serves again", |n| n.get("/app/env/DB").text() == "value-one\n");

    // Or the value again, under the key there is.
    let (_, dir) = node.terminate();
    std::fs::remove_file(&key).unwrap();
    let node = Node::again(dir, &[]);
    set(&node, "db", "value-one");
    node.until("it serves the value set anew", |n| {
        n.get("/app/env/DB").text() == "value-one\n"
    });
    let (_, dir) = node.terminate();

    // What is no key is never overwritten.
    std::fs::write(&key, b"short").unwrap();
    let node = Node::again(dir, &[]);
    assert_eq!(node.get("/plain").status, 200);
    let refused = fed(&node, &["secret", "set", "new"], b"x");
    assert!(
        refused.status.code() == Some(1) && text(&refused).contains("E0186"),
        "{}",
        text(&refused)
    );
    assert_eq!(std::fs::read(&key).unwrap(), b"short");
}

#[test]
fn a_secret_that_is_used_is_not_deleted_and_one_that_is_gone_stops_an_undo() {
    let node = Node::start();
    set(&node, "db", "value-one");
    node.deploy("app", "config", READS_DB);
    let (code, said) = ended(&node, &["secret", "delete", "db", "-y"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("used by app@1") && said.contains("E0184"), "{said}");
    node.deploy("app", "config", "[rollout]\nmin_healthy_time = \"20ms\"");
    node.ok(&["secret", "delete", "db", "-y"]);
    assert_eq!(ended(&node, &["secret", "delete", "db", "-y"]).0, 4);
    let (code, said) = ended(&node, &["rollout", "undo", "app", "--to", "1"]);
    assert!(code == 4 && said.contains("narae secret set db"), "{code} {said}");
    assert_eq!(node.get("/app/env/DB").status, 404);
    // A number never means two values: revision 1 pinned version 1.
    assert_eq!(set(&node, "db", "another")["version"], 2);
    node.ok(&["rollout", "undo", "app", "--to", "1"]);
    assert_eq!(node.get("/app/env/DB").text(), "another\n");
}

#[test]
fn the_api_takes_a_value_of_1_to_65536_bytes_of_text_under_a_name() {
    let node = Node::start();
    let put = |name: &str, value: &[u8]| node.api("PUT", &format!("/v1/secrets/{name}"), value).unwrap();
    let code = |reply: &Reply| {
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    };
    let refused = |reply: Reply| (reply.status, code(&reply));
    assert_eq!(refused(put("db", b"")), (400, "E0185".into()));
    assert_eq!(refused(put("db", b"a\0b")), (400, "E0185".into()));
    assert_eq!(refused(put("db", b"\xff\xfe")), (400, "E0185".into()));
    assert_eq!(refused(put("db", &vec![b'x'; 65537])), (413, "E0185".into()));
    for name in ["UPPER", "a.b", "a%2Fb", "%00", "-a"] {
        assert_eq!(refused(put(name, b"x")), (400, "E0180".into()), "{name}");
    }
    assert_eq!(put("db", &vec![b'x'; 65536]).status, 200);
    assert_eq!(node.api("DELETE", "/v1/secrets/a%2Fb", b"").unwrap().status, 404);
    assert_eq!(items(&node, &["secret", "list", "-o", "json"]).len(), 1);
}

const QUICK: &str = "[rollout]\nmin_healthy_time = \"20ms\"\n";

fn wanting(more: &str) -> String {
    format!("{QUICK}{more}")
}

#[test]
fn a_revision_that_wants_more_stops_until_somebody_accepts_it() {
    let node = Node::start();
    // A first deploy never asks.
    node.deploy(
        "app",
        "version-v1",
        &wanting("[outbound]\nallow = [\"https://a.example.test\"]"),
    );
    let more =
        wanting("[outbound]\nallow = [\"https://a.example.test\", \"https://b.example.test:8443\"]\n[[keyvalue]]\n");
    let file = node.file("app", "version-v1", &more);
    for args in [
        ["deploy", &file].as_slice(),
        &["deploy", &file, "--dry-run"],
        &["deploy", &file, "-o", "json"],
        &["deploy", &file, "--no-wait"],
    ] {
        let (code, said) = ended(&node, args);
        assert_eq!(code, 12, "{said}");
        for part in [
            "wants more than revision 1",
            "outbound https://b.example.test:8443",
            "keyvalue default",
            "--accept",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!said.contains("a.example.test,"), "what it had is not asked: {said}");
    }
    assert_eq!(
        items(&node, &["rollout", "history", "app", "-o", "json"]).len(),
        1,
        "nothing was changed"
    );

    let diff = node.json(&["diff", &file, "-o", "json"]);
    let names: Vec<_> = diff["items"][0]["capabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["https://b.example.test:8443", "default"]);
    assert!(
        node.ok(&["deploy", &file, "--dry-run", "--accept"])
            .contains("+ keyvalue default")
    );

    let said = node.ok(&["deploy", &file, "--accept"]);
    assert!(
        said.contains("+ outbound https://b.example.test:8443") && said.contains("accepted by uid "),
        "{said}"
    );
    let events = node.ok(&["events", "--kind", "accepted", "--json"]);
    let event: serde_json::Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(
        (event["service"].as_str(), event["revision"].as_u64()),
        (Some("app"), Some(2))
    );
    let message = event["message"].as_str().unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert!(message.starts_with(&format!("uid {uid}")), "{message}");
    assert!(
        message.contains("accepted: outbound https://b.example.test:8443, keyvalue default"),
        "{message}"
    );
    let history = items(&node, &["rollout", "history", "app", "-o", "json"]);
    let newest = history.iter().find(|r| r["revision"] == 2).unwrap();
    assert!(newest["accepted_by"].as_str().unwrap().starts_with("uid "), "{newest}");

    // The same again asks nothing; less asks nothing; an undo to what was accepted once asks nothing.
    node.ok(&["deploy", &file]);
    node.deploy("app", "version-v2", QUICK);
    node.ok(&["rollout", "undo", "app", "--to", "2"]);
    assert_eq!(ended(&node, &["deploy", &file]).0, 0);
    // What was given up is asked again.
    node.deploy("app", "version-v2", QUICK);
    let file = node.file("app", "version-v1", &more);
    assert_eq!(ended(&node, &["deploy", &file]).0, 12);
}

#[test]
fn a_module_that_imports_more_stops_and_one_that_reads_the_clock_does_not() {
    let node = Node::start();
    node.deploy("app", "hello", QUICK);
    node.deploy("app", "slow", QUICK);
    let file = node.file("app", "fetch", QUICK);
    let (code, said) = ended(&node, &["deploy", &file]);
    assert!(
        code == 12 && said.contains("interface wasi:http/outgoing-handler 0.2"),
        "{code} {said}"
    );
    node.ok(&["deploy", &file, "--accept"]);
}

#[test]
fn a_new_secret_is_a_wish_and_a_changed_one_is_not() {
    let node = Node::start();
    set(&node, "db", "value-one");
    node.deploy("app", "config", QUICK);
    let file = node.file("app", "config", READS_DB);
    let (code, said) = ended(&node, &["deploy", &file]);
    assert!(code == 12 && said.contains("+ secret db"), "{code} {said}");
    node.ok(&["deploy", &file, "--accept"]);
    set(&node, "db", "value-two");
    node.until("the changed secret is served", |n| {
        n.get("/app/env/DB").text() == "value-two\n"
    });
}

#[test]
fn a_file_cannot_switch_the_question_off_and_want_more_in_one_step() {
    let node = Node::start();
    node.deploy("app", "version-v1", QUICK);
    let allow = "[rollout]\nmin_healthy_time = \"20ms\"\ncapabilities = \"allow\"\n";
    let more = "[outbound]\nallow = [\"https://a.example.test\"]\n";
    let file = node.file("app", "version-v1", &format!("{allow}{more}"));
    let (code, said) = ended(&node, &["deploy", &file]);
    assert!(
        code == 12 && said.contains("outbound https://a.example.test"),
        "{code} {said}"
    );
    let file = node.file("app", "version-v1", allow);
    let (code, said) = ended(&node, &["deploy", &file]);
    assert!(
        code == 12 && said.contains("rule later revisions do not ask"),
        "{code} {said}"
    );
    node.ok(&["deploy", &file, "--accept"]);
    // From now on the rule holds.
    node.deploy("app", "version-v1", &format!("{allow}{more}"));
    // Until a file wants to be asked again.
    let file = node.file("app", "version-v1", &wanting(&format!("{more}[[keyvalue]]\n")));
    assert_eq!(ended(&node, &["deploy", &file]).0, 12);
}

#[test]
fn of_a_directory_nothing_is_changed_while_one_file_wants_more() {
    let node = Node::start();
    let dir = node.dir.path().join("all");
    std::fs::create_dir(&dir).unwrap();
    for guest in ["version-v1", "version-v2"] {
        std::fs::copy(common::module(guest), dir.join(format!("{guest}.wasm"))).unwrap();
    }
    let write = |name: &str, guest: &str, more: &str| {
        let toml =
            format!("name = \"{name}\"\nmodule = \"{guest}.wasm\"\n[[route]]\nhost = \"{name}.test\"\n{QUICK}{more}");
        std::fs::write(dir.join(format!("{name}.toml")), toml).unwrap();
    };
    write("a", "version-v1", "");
    write("b", "version-v1", "");
    node.ok(&["deploy", "all"]);
    write("a", "version-v2", "");
    write("b", "version-v2", "[outbound]\nallow = [\"https://a.example.test\"]\n");
    let (code, said) = ended(&node, &["deploy", "all"]);
    assert!(
        code == 12 && said.contains("`b` wants more") && !said.contains("`a` wants"),
        "{code} {said}"
    );
    assert_eq!(node.get("/a").text(), "v1\n");
    node.ok(&["deploy", "all", "--accept"]);
    assert_eq!(
        (node.get("/a").text(), node.get("/b").text()),
        ("v2\n".into(), "v2\n".into())
    );
}

#[test]
fn over_tcp_the_token_is_who_accepted() {
    let node = Node::start_with(&["--admin", "127.0.0.1:0"]);
    node.deploy("app", "version-v1", QUICK);
    let file = node.file("app", "version-v1", &wanting("[[keyvalue]]\n"));
    let about: serde_json::Value = serde_json::from_slice(&node.api("GET", "/v1/node", b"").unwrap().body).unwrap();
    let door = format!("http://{}", about["admin"].as_str().unwrap());
    let token = node.dir.path().join("data/admin.token");
    node.ok(&[
        "--host",
        &door,
        "--token-file",
        token.to_str().unwrap(),
        "deploy",
        &file,
        "--accept",
    ]);
    assert!(
        node.ok(&["events", "--kind", "accepted"])
            .contains("the admin token accepted: keyvalue default")
    );
    // Without the token nobody learns which secrets there are.
    let address = about["admin"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        request(address, "GET", "/v1/secrets", &[("host", "localhost")], b"").status,
        403
    );
    let host = format!("localhost:{}", door.rsplit(':').next().unwrap());
    assert_eq!(
        request(address, "GET", "/v1/secrets", &[("host", &host)], b"").status,
        401
    );
}

#[test]
fn module_inspect_says_what_each_import_needs_and_what_a_file_grants() {
    let node = Node::start();
    let file = node.file("app", "fetch", "[outbound]\nallow = [\"https://a.example.test\"]\n");
    let wasm = node.dir.path().join("fetch.wasm");
    let said = node.ok(&["module", "inspect", wasm.to_str().unwrap()]);
    assert!(said.contains("(needs [outbound] allow)"), "{said}");
    let said = node.ok(&["module", "inspect", wasm.to_str().unwrap(), "--for", &file]);
    assert!(said.contains("[outbound] allow: granted by"), "{said}");
    let bare = node.file("bare", "config", "");
    let config = node.dir.path().join("config.wasm");
    let json = node.json(&[
        "module",
        "inspect",
        config.to_str().unwrap(),
        "--for",
        &bare,
        "-o",
        "json",
    ]);
    let needs = json["needs"].as_array().unwrap();
    assert!(
        needs
            .iter()
            .any(|n| n["grant"] == "[[keyvalue]]" && n["state"] == "missing"),
        "{json}"
    );
    node.deploy("app", "fetch", "");
    let digest = json["digest"].as_str().unwrap();
    assert_eq!(ended(&node, &["module", "inspect", digest]).0, 4, "not stored");
    let stored = items(&node, &["module", "list", "-o", "json"]);
    let said = node.ok(&["module", "inspect", stored[0]["digest"].as_str().unwrap()]);
    assert!(said.contains("(needs [outbound] allow)"), "{said}");
}
