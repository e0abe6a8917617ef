//! The operators' door against strangers: who gets in, what the others are told, and what bad requests cost.

#![allow(clippy::disallowed_methods, reason = "a test measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{BOUND, Node, Reply, module, raw, refused, request};
use narae_runtime::Digest;
use serde_json::{Value, json};

/// A node with the TCP door, where it is, and its token.
fn open() -> (Node, SocketAddr, String) {
    let node = Node::start_with(&["--admin", "127.0.0.1:0"]);
    let about: Value = serde_json::from_slice(&node.api("GET", "/v1/node", b"").unwrap().body).unwrap();
    let address = about["admin"].as_str().unwrap().parse().unwrap();
    let token = std::fs::read_to_string(node.dir.path().join("data/admin.token")).unwrap();
    (node, address, token.trim().to_owned())
}

fn ask(door: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let host = door.to_string();
    let mut all = vec![("host", host.as_str())];
    all.extend_from_slice(headers);
    request(door, method, path, &all, body)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The one form of every refusal.
fn errors(reply: &Reply) -> Vec<Value> {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{e}: {}", reply.text()));
    assert_eq!(body["schema"], 1, "{body}");
    let errors = body["errors"].as_array().unwrap().clone();
    assert!(!errors.is_empty());
    for error in &errors {
        assert!(error["code"].as_str().unwrap().starts_with('E'), "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    errors
}

fn status(socket: &Node, method: &str, path: &str, body: &[u8]) -> u16 {
    socket.api(method, path, body).map_or(0, |r| r.status)
}

#[test]
fn over_tcp_only_the_token_gets_in_and_health_needs_none() {
    let (_node, door, token) = open();
    for headers in [
        vec![],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", token.clone())],
        vec![("authorization", format!("Basic {token}"))],
        vec![("authorization", bearer(&token[..63]))],
        vec![("authorization", bearer(&format!("{token}0")))],
        vec![
            ("authorization", bearer(&token.to_uppercase())),
            ("x-token", token.clone()),
        ],
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let reply = ask(door, "GET", "/v1/services", &headers, b"");
        assert_eq!(reply.status, 401, "{headers:?}");
        errors(&reply);
    }
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/nothing"),
        ("DELETE", "/healthz"),
    ] {
        assert!(matches!(ask(door, method, path, &[], b"").status, 401 | 405), "{path}");
    }
    assert_eq!(ask(door, "GET", "/healthz", &[], b"").status, 200);
    let reply = ask(door, "GET", "/v1/services", &[("authorization", &bearer(&token))], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[test]
fn guessing_is_slowed_and_the_owner_is_not_locked_out() {
    let (_node, door, token) = open();
    let started = Instant::now();
    let (mut wrong, mut slowed) = (0, 0);
    for n in 0..300 {
        let reply = ask(
            door,
            "GET",
            "/v1/node",
            &[("authorization", &bearer(&format!("guess{n}")))],
            b"",
        );
        match reply.status {
            401 => wrong += 1,
            429 => {
                slowed += 1;
                assert_eq!(reply.header("retry-after"), Some("1"));
                errors(&reply);
            }
            other => panic!("{other}"),
        }
        if n % 50 == 49 {
            let mine = ask(door, "GET", "/v1/node", &[("authorization", &bearer(&token))], b"");
            assert_eq!(mine.status, 200, "after {n} guesses");
        }
    }
    let seconds = started.elapsed().as_secs() + 2;
    assert!(wrong <= 20 * seconds, "{wrong} guesses were judged in {seconds} s");
    assert!(slowed > 0, "{wrong} wrong");
}

#[test]
fn another_site_s_page_and_a_rebound_name_get_nothing_even_with_the_token() {
    let (_node, door, token) = open();
    let bearer = bearer(&token);
    let port = door.port();
    for host in [
        "evil.test".to_owned(),
        format!("evil.test:{port}"),
        format!("127.0.0.1.evil.test:{port}"),
        "127.0.0.1".into(),
        format!("10.0.0.1:{port}"),
        format!("0.0.0.0:{port}"),
        format!("localhost:{}", port ^ 1),
    ] {
        let reply = request(
            door,
            "GET",
            "/v1/services",
            &[("host", &host), ("authorization", &bearer)],
            b"",
        );
        assert_eq!(reply.status, 403, "{host}");
        errors(&reply);
    }
    let none = raw(
        door,
        format!("GET /v1/services HTTP/1.0\r\nauthorization: {bearer}\r\n\r\n").as_bytes(),
    );
    assert!(matches!(none.status, 400 | 403), "{}", none.status);
    for origin in [
        "http://evil.test",
        "https://127.0.0.1",
        "null",
        "http://localhost",
        "file://",
    ] {
        for (method, path) in [
            ("GET", "/v1/services"),
            ("POST", "/v1/services/x/stop"),
            ("GET", "/healthz"),
        ] {
            let headers = [
                ("origin", origin),
                ("authorization", bearer.as_str()),
                ("content-type", "text/plain"),
            ];
            assert_eq!(
                ask(door, method, path, &headers, b"").status,
                403,
                "{origin} {method} {path}"
            );
        }
    }
    // A preflight is denied, and nothing in the answer allows anything.
    let headers = [
        ("origin", "http://evil.test"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "authorization"),
    ];
    let reply = ask(door, "OPTIONS", "/v1/services/x", &headers, b"");
    assert_eq!(reply.status, 403);
    assert!(
        !reply.head.to_lowercase().contains("access-control-allow"),
        "{}",
        reply.head
    );
}

#[test]
fn what_is_kept_is_for_its_owner_alone() {
    let (node, _, token) = open();
    node.deploy("hello", "hello", "[[keyvalue]]\nname = \"default\"\n");
    let data = node.dir.path().join("data");
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("admin.sock")), 0o660);
    assert_eq!(token.len(), 64);
    let mut files = 0;
    let mut left = vec![data.clone()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                assert_eq!(mode(&path), 0o700, "{}", path.display());
                left.push(path);
            } else if kind.is_file() {
                files += 1;
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
    assert!(
        files >= 5,
        "state, key-values, key, token, module, compiled code: {files}"
    );
}

#[test]
fn a_bad_body_is_a_4xx_with_all_its_mistakes_and_changes_nothing() {
    let node = Node::start();
    let bytes = std::fs::read(module("hello")).unwrap();
    let digest = Digest::of(&bytes).to_string();
    assert_eq!(status(&node, "PUT", &format!("/v1/modules/{digest}"), &bytes), 201);
    let put = |name: &str, body: &str| {
        node.api("PUT", &format!("/v1/services/{name}"), body.as_bytes())
            .unwrap()
    };
    for body in [
        "",
        "null",
        "[]",
        "{",
        "{}",
        "\"x\"",
        "{\"toml\": 5, \"digest\": []}",
        "\u{0}",
        "{\"toml\":\"\",\"digest\":\"x\"}",
    ] {
        let reply = put("a", body);
        assert_eq!(reply.status, 400, "{body:?}: {}", reply.text());
        errors(&reply);
    }
    let good = "name = \"a\"\nmodule = \"m.wasm\"\n";
    let toml = "name = \"a\"\nmodule = \"m.wasm\"\nreplicas = -1\nfoo = 1\n[limits]\nmemroy = \"1MiB\"\ntimeout = 5\n";
    let reply = put(
        "a",
        &json!({ "toml": toml, "digest": digest, "file": "a.toml" }).to_string(),
    );
    assert_eq!(reply.status, 400);
    let lines: Vec<u64> = errors(&reply).iter().filter_map(|e| e["line"].as_u64()).collect();
    assert_eq!(lines, [3, 4, 6, 7], "every mistake, by line");
    for (name, toml, digest, status) in [
        ("b", good, digest.as_str(), 400),
        ("a", good, "sha256:00", 400),
        ("a", good, "md5:x", 400),
        ("a", good, &Digest::of(b"never uploaded").to_string(), 404),
        ("A", good, digest.as_str(), 400),
    ] {
        let reply = put(name, &json!({ "toml": toml, "digest": digest }).to_string());
        assert_eq!(reply.status, status, "{name} {digest}: {}", reply.text());
        errors(&reply);
    }
    assert_eq!(put("a", &"x".repeat((1 << 20) + 1)).status, 413);
    for bytes in [&b"hello"[..], &[0x1f, 0x8b, 8, 0], b"(component)", b"", b"\0asm"] {
        let path = format!("/v1/modules/{}", Digest::of(bytes));
        let reply = node.api("PUT", &path, bytes).unwrap();
        assert_eq!(reply.status, 400, "{bytes:?}");
        errors(&reply);
    }
    assert_eq!(
        status(&node, "PUT", &format!("/v1/modules/{}", Digest::of(b"x")), &bytes),
        400
    );
    // Changes of what is there.
    let reply = put("a", &json!({ "toml": good, "digest": digest }).to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    for (path, body) in [
        ("scale", "{\"replicas\": 100000000000}"),
        ("scale", "{\"replicas\": 20000}"),
        ("scale", "{\"replicas\": -1}"),
        ("scale", "{}"),
        ("scale", "{\"replicas\": 1, \"delta\": 1}"),
        ("scale", "{\"replicas\": 1, \"sneaky\": 1}"),
        ("undo", "{\"to\": \"x\"}"),
        ("stop", "{\"grace_ms\": 3600001}"),
        ("stop", "{\"grace\": \"5s\"}"),
        ("start", "{\"grace_ms\": 5}"),
        ("restart", "[\"x\"]"),
    ] {
        let reply = node
            .api("POST", &format!("/v1/services/a/{path}"), body.as_bytes())
            .unwrap();
        assert_eq!(reply.status, 400, "{path} {body}: {}", reply.text());
        errors(&reply);
    }
    for query in ["logs?tail=x", "logs?replica=zz", "logs?level=loud", "spec?revision=-1"] {
        assert_eq!(
            status(&node, "GET", &format!("/v1/services/a/{query}"), b""),
            400,
            "{query}"
        );
    }
    let list = node.json(&["list", "-o", "json"]);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["revision"], 1);
}

#[test]
fn no_path_leads_out_of_the_api() {
    let (node, door, token) = open();
    node.deploy("hello", "hello", "");
    let bearer = bearer(&token);
    for path in [
        "/../admin.token",
        "/admin.token",
        "/v1/../../admin.token",
        "/v1/modules/../../admin.token",
        "/v1/modules/..%2f..%2fadmin.token",
        "/v1/modules/sha256:..%2f..%2f..%2fadmin.token",
        "/v1/modules/sha256:%2fetc%2fpasswd",
        "/v1/services/..%2f..%2fadmin.token/status",
        "/v1/services/%2e%2e/spec",
        "/v1/services/%00/status",
        "/v1/services/hello%00/status",
        "/v1/services/%ff%fe/status",
        "//v1/services/../../../etc/passwd",
        "/v1/services/nobody/call/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/services/hello/logs/../../../node.key",
    ] {
        for reply in [
            node.api("GET", path, b"").unwrap(),
            ask(door, "GET", path, &[("authorization", &bearer)], b""),
        ] {
            assert!(
                matches!(reply.status, 400 | 404),
                "{path}: {} {}",
                reply.status,
                reply.text()
            );
            let text = reply.text();
            assert!(!text.contains(&token) && !text.contains("root:"), "{path}");
        }
    }
}

#[test]
fn an_unknown_path_is_a_404_and_a_wrong_method_a_405_in_the_form_of_all_refusals() {
    let node = Node::start();
    for (method, path, expected) in [
        ("GET", "/", 404),
        ("GET", "/v2/services", 404),
        ("GET", "/v1/services/", 404),
        ("GET", "/v1/services/nobody/status", 404),
        ("POST", "/v1/services/nobody/restart", 404),
        ("DELETE", "/v1/services/nobody", 404),
        ("GET", "/v1/services/Not%20A%20Name/status", 404),
        ("GET", "/v1/services", 405),
        ("POST", "/v1/services", 405),
        ("PATCH", "/v1/services/a", 405),
        ("DELETE", "/metrics", 405),
        ("PUT", "/v1/modules", 405),
    ] {
        if (method, path) == ("GET", "/v1/services") {
            continue;
        }
        let reply = node.api(method, path, b"").unwrap();
        assert_eq!(reply.status, expected, "{method} {path}: {}", reply.text());
        errors(&reply);
    }
}

#[test]
fn toml_bombs_are_refused_in_bounded_time_and_memory() {
    let node = Node::start();
    let bytes = std::fs::read(module("hello")).unwrap();
    let digest = Digest::of(&bytes).to_string();
    assert_eq!(status(&node, "PUT", &format!("/v1/modules/{digest}"), &bytes), 201);
    let good = "name = \"a\"\nmodule = \"m.wasm\"\n";
    let deep = 100_000;
    let bombs: Vec<(&str, String)> = vec![
        (
            "arrays 100k deep",
            format!("{good}x = {}{}", "[".repeat(deep), "]".repeat(deep)),
        ),
        ("arrays never closed", format!("{good}x = {}", "[".repeat(deep))),
        (
            "tables 100k deep",
            format!("{good}x = {}{}", "{a=".repeat(deep), "}".repeat(deep)),
        ),
        (
            "a dotted key of 100k parts",
            format!("{good}{}a = 1", "a.".repeat(deep)),
        ),
        ("a header of 100k parts", format!("{good}[{}a]", "a.".repeat(deep))),
        ("8 MiB key", format!("{good}{} = 1", "k".repeat(8 << 20))),
        ("900 KiB key", format!("{good}{} = 1", "k".repeat(900 << 10))),
        (
            "200k tables",
            good.to_owned() + &(0..200_000).map(|n| format!("[t{n}]\n")).collect::<String>(),
        ),
        (
            "90k tables",
            good.to_owned() + &(0..90_000).map(|n| format!("[t{n}]\n")).collect::<String>(),
        ),
        (
            "50k routes",
            good.to_owned() + &"[[route]]\npath = \"/\"\n".repeat(40_000),
        ),
        (
            "200k mistakes",
            good.to_owned() + &(0..90_000).map(|n| format!("k{n}=1\n")).collect::<String>(),
        ),
        ("10^9 replicas", format!("{good}replicas = 1000000000")),
        ("10^30 replicas", format!("{good}replicas = {}", "9".repeat(30))),
        (
            "a number of 500k digits",
            format!("{good}replicas = {}", "9".repeat(500_000)),
        ),
        (
            "a size over everything",
            format!("{good}[limits]\nmemory = \"99999999999999999999GiB\""),
        ),
        (
            "a duration over everything",
            format!("{good}[limits]\ntimeout = \"{}h\"", "9".repeat(400)),
        ),
        (
            "negative",
            format!("{good}[limits]\nconcurrency = -9223372036854775808"),
        ),
        ("not a number", format!("{good}[limits]\ncpus = nan")),
        (
            "a string of 900 KiB",
            format!("{good}description = \"{}\"", "\\u0041".repeat(150_000)),
        ),
    ];
    let before = node.resident();
    let bound = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 1 });
    for (what, toml) in &bombs {
        let started = Instant::now();
        let body = json!({ "toml": toml, "digest": digest }).to_string();
        let reply = node.api("PUT", "/v1/services/a", body.as_bytes());
        let took = started.elapsed();
        let status = reply.as_ref().map_or(413, |r| r.status);
        assert!((400..500).contains(&status), "{what}: {status}");
        assert!(took < bound, "{what} took {took:?}");
        let size = reply.map_or(0, |r| r.body.len());
        assert!(size < 8 << 20, "{what}: the answer has {size} bytes");
    }
    // And as bare JSON.
    for body in [
        "[".repeat(900_000),
        "{\"a\":".repeat(180_000),
        format!("{{\"toml\":{}}}", "9".repeat(900_000)),
    ] {
        assert_eq!(status(&node, "PUT", "/v1/services/a", body.as_bytes()), 400);
    }
    let grown = node.resident().saturating_sub(before);
    println!("resident memory grew by {} KiB over {} bombs", grown >> 10, bombs.len());
    assert!(grown < 64 << 20, "{grown} bytes");
    assert_eq!(node.json(&["list", "-o", "json"])["items"], json!([]));
    // The same at the command line, where no daemon bounds the size.
    for (what, toml) in bombs
        .iter()
        .filter(|(what, _)| what.contains("100k") || what.contains("MiB"))
    {
        let path = node.dir.path().join("bomb.toml");
        std::fs::write(&path, toml).unwrap();
        let started = Instant::now();
        let output = node.narae(&["config", "check", "bomb.toml"]);
        assert_eq!(output.status.code(), Some(9), "{what}");
        assert!(started.elapsed() < bound, "{what} took {:?}", started.elapsed());
    }
}

/// When the other side gave up on us.
fn cut(mut stream: impl Read) -> Duration {
    let started = Instant::now();
    let mut piece = [0; 4096];
    while matches!(stream.read(&mut piece), Ok(n) if n > 0) {}
    started.elapsed()
}

#[test]
fn a_client_that_stalls_is_cut_and_takes_no_one_s_place_for_long() {
    let (node, door, token) = open();
    let socket = node.socket();
    let head = format!(
        "PUT /v1/services/a HTTP/1.1\r\nhost: {door}\r\nauthorization: Bearer {token}\r\ncontent-length: 100\r\n\r\n{{"
    );
    let mut waiting = Vec::new();
    for said in [
        "",
        "GET /v1/no",
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow:",
        head.as_str(),
    ] {
        let mut tcp = TcpStream::connect(door).unwrap();
        tcp.set_read_timeout(Some(BOUND)).unwrap();
        tcp.write_all(said.as_bytes()).unwrap();
        let mut unix = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        unix.set_read_timeout(Some(BOUND)).unwrap();
        unix.write_all(said.as_bytes()).unwrap();
        let said: String = said.chars().take(40).collect();
        waiting.push((format!("tcp {said:?}"), std::thread::spawn(move || cut(tcp))));
        waiting.push((format!("socket {said:?}"), std::thread::spawn(move || cut(unix))));
    }
    node.ok(&["list"]);
    for (what, one) in waiting {
        let took = one.join().unwrap();
        assert!(took < Duration::from_secs(14), "{what}: cut after {took:?}");
    }
    node.ok(&["list"]);
}

#[test]
fn the_api_describes_itself_and_every_path_it_describes_is_there() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let digest = Digest::of(&std::fs::read(module("hello")).unwrap()).to_string();
    let document = node.api("GET", "/v1/openapi.json", b"").unwrap();
    let document: Value = serde_json::from_slice(&document.body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            operations.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(operations.len() > 20);
    // What takes the service away comes last.
    operations.sort_by_key(|(method, path)| (method == "DELETE", path.ends_with("/stop")));
    for (method, path) in operations {
        let real = path
            .replace("{name}", "hello")
            .replace("{digest}", &digest)
            .replace("{verb}", "promote")
            .replace("{path}", "");
        let reply = node.api(&method, &real, b"");
        // A HEAD has no body to be whole.
        let status = reply.as_ref().map_or(200, |r| r.status);
        // A 404 is right for a schedule, a run, a secret or a report that is not there; the path itself is.
        let said = reply.as_ref().map_or_else(String::new, |r| r.text());
        let expected = status != 405 && status < 500 && !said.contains("no such path");
        assert!(expected, "{method} {path}: {status} {:?}", reply.map(|r| r.text()));
    }
}

#[test]
fn an_admin_address_that_is_not_loopback_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    for address in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:7070"] {
        std::fs::write(&file, format!("[admin]\nlisten = \"{address}\"\n")).unwrap();
        let data = dir.path().join("data");
        for extra in [
            vec!["--config", file.to_str().unwrap(), "--listen", "127.0.0.1:0"],
            vec!["--admin", address, "--listen", "127.0.0.1:0"],
        ] {
            let (code, said) = refused(&data, &extra);
            assert_eq!(code, Some(9), "{said}");
            assert!(said.contains("loopback") && said.contains(address), "{said}");
        }
        assert!(!data.exists(), "nothing was begun");
    }
}

#[test]
fn the_token_is_told_to_nobody() {
    let (node, door, token) = open();
    node.deploy("hello", "std-hello", "");
    assert_eq!(node.get("/hello").status, 200);
    let bearer = bearer(&token);
    for path in ["/v1/services", "/nothing", "/v1/services/hello/call/"] {
        ask(door, "GET", path, &[("authorization", &bearer)], b"");
    }
    // Sent where it does not belong, too.
    request(
        node.http,
        "GET",
        "/",
        &[("host", "hello.test"), ("authorization", &bearer)],
        b"",
    );
    ask(door, "GET", &format!("/v1/services/{token}/status"), &[], b"");
    let mut shown = Vec::new();
    for verb in [
        vec!["list", "-o", "json"],
        vec!["status", "hello", "-o", "json"],
        vec!["inspect", "hello"],
        vec!["inspect", "hello", "--effective"],
        vec!["logs", "hello"],
        vec!["events"],
        vec!["metrics"],
        vec!["config", "show", "--origin"],
        vec!["version", "-o", "json"],
        vec!["module", "list", "-o", "json"],
    ] {
        shown.push((verb.join(" "), node.ok(&verb)));
    }
    let proc = format!("/proc/{}", node.pid());
    for file in ["cmdline", "environ"] {
        shown.push((
            file.into(),
            String::from_utf8_lossy(&std::fs::read(format!("{proc}/{file}")).unwrap()).into_owned(),
        ));
    }
    shown.push((
        "its own messages".into(),
        node.said.try_iter().collect::<Vec<_>>().join("\n"),
    ));
    for (what, text) in shown {
        assert!(!text.contains(&token), "{what}: {text}");
    }
}
