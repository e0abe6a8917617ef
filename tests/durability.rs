//! What is acknowledged stays, what is damaged is refused by name, and a daemon that comes back serves again.
//!
//! `NARAE_KILLS` sets the rounds of the kill test. Not here: the wall clock cannot be stepped under a running process
//! without privileges that a test must not need; all deadlines are monotonic, which `tests/tidy.rs` holds the planner to.

#![allow(clippy::disallowed_methods, reason = "a test measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Node, module, refused, request, socket_request, until};
use narae_runtime::Digest;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Uploads a module and returns its digest.
fn upload(socket: &Path, bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    let reply = socket_request(socket, "PUT", &format!("/v1/modules/{digest}"), bytes).expect("the daemon answers");
    assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    digest
}

fn put(socket: &Path, name: &str, digest: &str, more: &str) -> Option<common::Reply> {
    let toml = format!("name = \"{name}\"\nmodule = \"m.wasm\"\n[[route]]\nhost = \"{name}.test\"\n{more}\n");
    let body = json!({ "toml": toml, "digest": digest }).to_string();
    socket_request(socket, "PUT", &format!("/v1/services/{name}"), body.as_bytes())
}

/// The same component under another digest: a custom section is added, which means nothing.
fn stamped(name: &str, stamp: u8) -> Vec<u8> {
    let mut bytes = std::fs::read(module(name)).unwrap();
    bytes.extend_from_slice(&[0, 3, 1, b's', stamp]);
    bytes
}

fn metric(node: &Node, name: &str) -> u64 {
    let text = node.ok(&["metrics"]);
    let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The file of a stored module.
fn blob(node_dir: &Path, bytes: &[u8]) -> PathBuf {
    let hex = Digest::of(bytes).hex();
    node_dir.join("data/blobs/sha256").join(&hex[..2]).join(hex)
}

// ---- kill -9 ----

/// What one service is, as far as its writer was told.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    /// Of the last deploy; none: the service is not there.
    stamp: Option<u64>,
    replicas: u64,
}

#[derive(Clone, Debug)]
enum Change {
    Deploy(u64),
    Scale(u64),
    Delete,
}

impl Known {
    fn after(&self, change: &Change) -> Self {
        match change {
            Change::Deploy(stamp) => Self {
                stamp: Some(*stamp),
                replicas: 1,
            },
            Change::Scale(replicas) => Self {
                stamp: self.stamp,
                replicas: *replicas,
            },
            Change::Delete => Self {
                stamp: None,
                replicas: 0,
            },
        }
    }
}

/// One writer's service: acknowledged, and what was asked for last without an answer.
#[derive(Clone, Debug)]
struct Wish {
    known: Known,
    asked: Option<Change>,
    acknowledged: u64,
    next: u64,
}

fn ask(socket: &Path, name: &str, digest: &str, change: &Change) -> Option<u16> {
    let path = format!("/v1/services/{name}");
    let reply = match change {
        Change::Deploy(stamp) => put(socket, name, digest, &format!("[env]\nSTAMP = \"{stamp}\"")),
        Change::Scale(replicas) => {
            let body = json!({ "replicas": replicas }).to_string();
            socket_request(socket, "POST", &format!("{path}/scale"), body.as_bytes())
        }
        Change::Delete => socket_request(socket, "DELETE", &path, b""),
    };
    reply.map(|r| r.status)
}

/// Asks for one change after the other until nobody answers.
fn write_until_killed(socket: &Path, name: &str, digest: &str, wish: &Mutex<Wish>, mut random: fastrand::Rng) {
    loop {
        let change = {
            let mut wish = wish.lock().unwrap();
            let change = match (wish.known.stamp, random.u8(..10)) {
                (None, _) | (_, 0..5) => {
                    wish.next += 1;
                    Change::Deploy(wish.next)
                }
                (_, 5..9) => Change::Scale(random.u64(1..3)),
                _ => Change::Delete,
            };
            wish.asked = Some(change.clone());
            change
        };
        let Some(status) = ask(socket, name, digest, &change) else {
            return;
        };
        let mut wish = wish.lock().unwrap();
        wish.asked = None;
        match status {
            200..300 => {
                wish.known = wish.known.after(&change);
                wish.acknowledged += 1;
            }
            // Still going: it cannot be deployed anew yet. Nothing was changed.
            409 => {}
            other => panic!("{name}: {change:?} got {other}"),
        }
    }
}

/// What the daemon says the service is.
fn found(node: &Node, name: &str) -> Known {
    let gone = Known {
        stamp: None,
        replicas: 0,
    };
    let list = node.api("GET", "/v1/services", b"").unwrap();
    let list: Value = serde_json::from_slice(&list.body).unwrap();
    let item = list["items"].as_array().unwrap().iter().find(|s| s["name"] == name);
    let Some(item) = item.filter(|s| s["state"] != "deleting") else {
        return gone;
    };
    let Some(spec) = node.api("GET", &format!("/v1/services/{name}/spec"), b"") else {
        return gone;
    };
    let spec: Value = serde_json::from_slice(&spec.body).unwrap();
    let toml = spec["toml"].as_str().unwrap();
    let stamp = toml
        .split("STAMP = \"")
        .nth(1)
        .and_then(|t| t.split('"').next()?.parse().ok());
    Known {
        stamp,
        replicas: item["replicas_wanted"].as_u64().unwrap(),
    }
}

#[test]
fn kill_9_at_any_moment_loses_nothing_acknowledged_and_leaves_no_ghost() {
    let rounds: u32 = std::env::var("NARAE_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut node = Node::start();
    node.deploy("steady", "hello", "");
    let digest = upload(&node.socket(), &std::fs::read(module("version-v1")).unwrap());
    let names = ["one", "two", "three", "four"];
    let start = Wish {
        known: Known {
            stamp: None,
            replicas: 0,
        },
        asked: None,
        acknowledged: 0,
        next: 0,
    };
    let wishes: Vec<_> = names.iter().map(|_| Arc::new(Mutex::new(start.clone()))).collect();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let writers: Vec<_> = names
            .iter()
            .zip(&wishes)
            .map(|(name, wish)| {
                let (socket, name, digest, wish) = (node.socket(), *name, digest.clone(), Arc::clone(wish));
                let random = random.fork();
                std::thread::spawn(move || write_until_killed(&socket, name, &digest, &wish, random))
            })
            .collect();
        std::thread::park_timeout(Duration::from_micros(random.u64(0..250_000)));
        node.kill();
        for writer in writers {
            writer.join().unwrap();
        }
        node = node.kill_and_restart();
        slowest = slowest.max(node.ready_after);
        // At once: the listener opens when the services of the last run serve.
        assert_eq!(node.get("/steady").status, 200, "round {round}");
        for (name, wish) in names.iter().zip(&wishes) {
            let mut wish = wish.lock().unwrap();
            let now = found(&node, name);
            let maybe = wish.asked.take().map(|change| wish.known.after(&change));
            assert!(
                now == wish.known || Some(&now) == maybe.as_ref(),
                "round {round}, {name}: found {now:?}, acknowledged {:?}, unanswered {maybe:?}",
                wish.known
            );
            wish.known = now;
        }
        let list = node.json(&["list", "-o", "json"]);
        for item in list["items"].as_array().unwrap() {
            let name = item["name"].as_str().unwrap();
            assert!(name == "steady" || names.contains(&name), "a ghost: {name}");
        }
    }
    let acknowledged: u64 = wishes.iter().map(|w| w.lock().unwrap().acknowledged).sum();
    println!("{acknowledged} acknowledged changes over {rounds} kills; slowest start {slowest:?}");
    assert!(acknowledged > u64::from(rounds));
    // And they become true: every service that is wanted serves.
    for (name, wish) in names.iter().zip(&wishes) {
        if wish.lock().unwrap().known.stamp.is_some() {
            until(&format!("{name} serves"), || {
                node.get(&format!("/{name}")).status == 200
            });
        }
    }
}

#[test]
fn fifty_services_serve_again_after_a_kill_and_nothing_is_compiled() {
    const SERVICES: u8 = 50;
    const MODULES: u8 = 10;
    let node = Node::start();
    let digests: Vec<String> = (0..MODULES)
        .map(|n| {
            upload(
                &node.socket(),
                &stamped(if n % 2 == 0 { "hello" } else { "version-v1" }, n),
            )
        })
        .collect();
    for n in 0..SERVICES {
        let digest = &digests[usize::from(n % MODULES)];
        let reply = put(
            &node.socket(),
            &format!("s{n}"),
            digest,
            "[rollout]\nmin_healthy_time = \"1ms\"",
        )
        .unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    node.until("all are proved", |n| {
        let list = n.json(&["list", "-o", "json"]);
        let healthy = |s: &&Value| s["state"] == "healthy" && s["stable"] == 1;
        list["items"].as_array().unwrap().iter().filter(healthy).count() == usize::from(SERVICES)
    });
    assert_eq!(metric(&node, "narae_modules_compiled_total"), u64::from(MODULES));

    let node = node.kill_and_restart();
    for n in 0..SERVICES {
        assert_eq!(
            node.get(&format!("/s{n}")).status,
            200,
            "s{n}, as soon as the port is open"
        );
    }
    println!(
        "{SERVICES} services serve {} ms after the start of the process",
        node.ready_after.as_millis()
    );
    assert_eq!(metric(&node, "narae_modules_compiled_total"), 0);
    assert_eq!(metric(&node, "narae_modules_loaded_total"), u64::from(MODULES));
    let bound = if cfg!(debug_assertions) { 10 } else { 3 };
    assert!(node.ready_after < Duration::from_secs(bound), "{:?}", node.ready_after);
}

// ---- damage ----

#[test]
fn a_damaged_store_is_refused_by_name_and_never_taken_for_an_empty_one() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.deploy("app", "version-v1", "");
    let (status, dir) = node.terminate();
    assert_eq!(status.code(), Some(0));
    let store = dir.path().join("data/state.redb");
    let whole = std::fs::read(&store).unwrap();
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        ("emptied".into(), Vec::new()),
        ("cut in half".into(), whole[..whole.len() / 2].to_vec()),
        ("zeroed".into(), vec![0; whole.len()]),
    ];
    // Bytes that mean something: those around the service's name, the header, and some anywhere.
    let named = whole.windows(5).position(|w| w == b"hello").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let somewhere = (0..6).map(|_| random.usize(..whole.len()));
    for at in [0, 9, named, named + 40].into_iter().chain(somewhere) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        damages.push((format!("byte {at} flipped"), bytes));
    }
    let mut dir = Some(dir);
    let mut refusals = 0;
    for (what, bytes) in damages {
        let here = dir.take().unwrap();
        std::fs::write(&store, &bytes).unwrap();
        // A byte that nothing reads is no damage: then both services are there.
        let data = here.path().join("data");
        match probe(&data) {
            Ok(mut node) => {
                let names = list(&node.socket);
                assert_eq!(names, ["app", "hello"], "{what}");
                node.child.kill().unwrap();
                node.child.wait().unwrap();
            }
            Err((code, said)) => {
                refusals += 1;
                assert_eq!(code, Some(1), "{what}: {said}");
                assert!(
                    said.contains("state.redb") && said.contains("damaged"),
                    "{what}: {said}"
                );
                assert!(!said.contains("panicked"), "{what}: {said}");
                assert_eq!(
                    std::fs::read(&store).unwrap(),
                    bytes,
                    "{what}: what is left is left as it is"
                );
            }
        }
        dir = Some(here);
    }
    assert!(refusals >= 5, "{refusals} refusals");
    // The last good copy is all it takes.
    std::fs::write(&store, &whole).unwrap();
    let node = Node::again(dir.take().unwrap(), &[]);
    assert_eq!(node.get("/hello").status, 200);
}

struct Probe {
    child: std::process::Child,
    socket: PathBuf,
}

/// Starts a node that may refuse: running, or its exit code and words.
fn probe(data: &Path) -> Result<Probe, (Option<i32>, String)> {
    use std::io::Read;
    let mut child = std::process::Command::new(common::binary())
        .args(["serve", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let socket = data.join("admin.sock");
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            return Err((status.code(), said));
        }
        if socket_request(&socket, "GET", "/healthz", b"").is_some_and(|r| r.status == 200) {
            return Ok(Probe { child, socket });
        }
        assert!(started.elapsed() < common::BOUND, "neither started nor refused");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn list(socket: &Path) -> Vec<String> {
    let reply = socket_request(socket, "GET", "/v1/services", b"").unwrap();
    let list: Value = serde_json::from_slice(&reply.body).unwrap();
    let items = list["items"].as_array().unwrap();
    items.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_damaged_module_is_refused_by_its_checksum_and_the_others_serve() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    node.deploy("app", "version-v1", "");
    node.deploy("cut", "echo", "");
    let (_, dir) = node.terminate();
    let flipped = std::fs::read(module("version-v1")).unwrap();
    let at = blob(dir.path(), &flipped);
    let mut bytes = flipped.clone();
    bytes[flipped.len() / 2] ^= 1;
    std::fs::write(&at, &bytes).unwrap();
    // Half written: what a crash of another program, or of a disk, leaves.
    let half = std::fs::read(module("echo")).unwrap();
    std::fs::write(blob(dir.path(), &half), &half[..half.len() / 2]).unwrap();

    let node = Node::again(dir, &[]);
    assert_eq!(node.get("/hello").status, 200);
    for name in ["app", "cut"] {
        assert_eq!(node.get(&format!("/{name}")).status, 503, "{name}");
        let status = node.narae(&["status", name]);
        assert_eq!(status.status.code(), Some(3));
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(said.contains("damaged on disk"), "{said}");
    }
    // Deploying the file again brings the bytes back, and nobody waits for the next slow try.
    let file = node.file("app", "version-v1", "");
    node.ok(&["deploy", &file]);
    assert_eq!(node.get("/app").text(), "v1\n");
}

#[test]
fn an_upload_that_breaks_off_or_lies_leaves_nothing() {
    use std::io::Write;
    let node = Node::start();
    let bytes = std::fs::read(module("hello")).unwrap();
    let digest = Digest::of(&bytes);
    let mut stream = std::os::unix::net::UnixStream::connect(node.socket()).unwrap();
    let head = format!(
        "PUT /v1/modules/{digest} HTTP/1.1\r\nhost: narae\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&bytes[..bytes.len() / 2]).unwrap();
    drop(stream);
    let other = Digest::of(b"something else");
    let lie = node.api("PUT", &format!("/v1/modules/{other}"), &bytes).unwrap();
    assert_eq!(lie.status, 400, "{}", lie.text());
    assert_eq!(node.json(&["module", "list", "-o", "json"])["items"], json!([]));
    assert!(!blob(node.dir.path(), &bytes).exists());
}

#[test]
fn half_a_service_file_is_refused_and_the_old_revision_stays() {
    let node = Node::start();
    node.deploy("app", "version-v1", "");
    let file = node.file("app", "version-v2", "");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 9]).unwrap();
    assert_eq!(node.narae(&["deploy", &file]).status.code(), Some(9));
    assert_eq!(node.get("/app").text(), "v1\n");
    assert_eq!(node.json(&["list", "-o", "json"])["items"][0]["revision"], 1);
}

#[test]
fn with_the_module_files_gone_a_restart_and_an_undo_still_work() {
    let node = Node::start();
    node.deploy("app", "version-v1", "");
    node.deploy("app", "version-v2", "");
    for file in ["version-v1.wasm", "version-v2.wasm", "app.toml"] {
        std::fs::remove_file(node.dir.path().join(file)).unwrap();
    }
    let node = node.kill_and_restart();
    assert_eq!(node.get("/app").text(), "v2\n");
    node.ok(&["restart", "app"]);
    assert_eq!(node.get("/app").text(), "v2\n");
    node.ok(&["rollout", "undo", "app"]);
    assert_eq!(node.get("/app").text(), "v1\n");
}

// ---- the disk ----

/// A small file system of our own, taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs"])
            .arg(at)
            .output();
        mounted.ok().filter(|o| o.status.success()).map(|_| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_is_an_error_that_leaves_serving_alone_and_passes() {
    let dir = tempfile::Builder::new().prefix("narae-").tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let Some(_disk) = SmallDisk::mount(&data) else {
        eprintln!(
            "SKIPPED: a_full_disk_is_an_error_that_leaves_serving_alone_and_passes needs the right to mount a tmpfs"
        );
        return;
    };
    let node = Node::again(dir, &[]);
    node.deploy("app", "version-v1", "");
    fill(&data.join("ballast"));
    let file = node.file("app", "version-v2", "");
    let output = node.narae(&["deploy", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left"), "{said}");
    // Writes of the record, again and again: whichever of them fails says so, and none brings the daemon down.
    let mut refused = 0;
    for n in 0..60 {
        let body = json!({ "replicas": 1 + n % 3 }).to_string();
        let reply = node.api("POST", "/v1/services/app/scale", body.as_bytes()).unwrap();
        assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        refused += u32::from(reply.status == 503);
        assert_eq!(node.get("/app").text(), "v1\n", "serving goes on");
    }
    println!("{refused} of 60 writes refused on the full disk");
    std::fs::remove_file(data.join("ballast")).unwrap();
    node.ok(&["deploy", &file]);
    assert_eq!(node.get("/app").text(), "v2\n", "it recovers without a restart");
    node.ok(&["scale", "app", "2"]);
}

/// To the last byte.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

// ---- start, stop, reload ----

#[test]
fn a_second_daemon_on_the_same_data_or_port_is_refused_and_the_first_goes_on() {
    let node = Node::start();
    node.deploy("hello", "hello", "");
    let data = node.dir.path().join("data");
    let (code, said) = refused(&data, &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another narae"), "{said}");
    // Even when it cannot find the first one's socket.
    std::fs::rename(data.join("admin.sock"), data.join("hidden.sock")).unwrap();
    let (code, said) = refused(&data, &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("in use by another narae"), "{said}");
    std::fs::rename(data.join("hidden.sock"), data.join("admin.sock")).unwrap();

    let other = tempfile::tempdir().unwrap();
    let (code, said) = refused(other.path(), &["--listen", &node.http.to_string()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&node.http.to_string()), "{said}");
    assert_eq!(node.get("/hello").status, 200);
    node.ok(&["list"]);
}

#[test]
fn told_to_stop_it_answers_what_it_has_begun_refuses_what_is_new_and_ends_0() {
    let mut node = Node::start();
    node.deploy("app", "version-v1", "");
    let http = node.http;
    let waiting: Vec<_> = (0..5)
        .map(|_| std::thread::spawn(move || request(http, "GET", "/?ms=1500", &[("host", "app.test")], b"")))
        .collect();
    node.until("five are in flight", |n| {
        n.json(&["list", "-o", "json"])["items"][0]["in_flight"] == 5
    });
    node.signal(Signal::TERM);
    until("new connections are refused", || {
        std::net::TcpStream::connect(http).is_err()
    });
    assert!(node.ended().is_none(), "it waits for what is in flight");
    for one in waiting {
        let reply = one.join().unwrap();
        assert_eq!((reply.status, reply.text().as_str(), reply.whole), (200, "v1\n", true));
    }
    let mut ended = None;
    until("it ends", || {
        ended = node.ended();
        ended.is_some()
    });
    assert_eq!(ended.unwrap().code(), Some(0));
    assert!(!node.socket().exists(), "the socket is taken away");
}

#[test]
fn a_reload_names_the_keys_that_need_a_restart_and_a_bad_file_changes_nothing() {
    let node = Node::start_with_config("[node]\nname = \"here\"\n");
    node.deploy("hello", "hello", "");
    let file = node.dir.path().join("node.toml");
    std::fs::write(
        &file,
        "[node]\nname = \"here\"\nlabels = { site = \"seoul\" }\n[engine]\nmemory_budget = \"300MiB\"\n",
    )
    .unwrap();
    let said = node.ok(&["config", "reload", "-o", "json"]);
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["changed"], json!(["node.labels"]), "{said}");
    assert_eq!(answer["needs_restart"], json!(["engine.memory_budget"]), "{said}");
    let before = node.ok(&["config", "show"]);

    std::fs::write(
        &file,
        "[node]\nname = \"here\"\n[engine]\nmemory_budgte = \"1MiB\"\nallocator = \"magic\"\n",
    )
    .unwrap();
    let output = node.narae(&["config", "reload"]);
    assert_eq!(output.status.code(), Some(9));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("memory_budgte") && said.contains("magic"),
        "every mistake: {said}"
    );
    assert_eq!(node.ok(&["config", "show"]), before);
    assert_eq!(node.get("/hello").status, 200);

    // The same by signal; the answer is in the daemon's own words.
    node.signal(Signal::HUP);
    heard(&node, "memory_budgte");
    std::fs::write(&file, "[node]\nname = \"here\"\n[engine]\nmemory_budget = \"200MiB\"\n").unwrap();
    node.signal(Signal::HUP);
    heard(&node, "needs a restart: engine.memory_budget");
    assert_eq!(node.get("/hello").status, 200);
}

fn heard(node: &Node, words: &str) {
    loop {
        let line = node
            .said
            .recv_timeout(common::BOUND)
            .unwrap_or_else(|_| panic!("never said: {words}"));
        if line.contains(words) {
            return;
        }
    }
}

#[test]
fn what_guests_stored_is_there_after_the_daemon_was_told_to_stop() {
    let node = Node::start();
    let more = "[[keyvalue]]\nname = \"default\"\n";
    node.deploy("config", "config", more);
    let mut seen = BTreeMap::new();
    for n in 1..=3_u64 {
        seen.insert(n, node.get("/config/incr/visits").text().trim().to_owned());
    }
    assert_eq!(seen[&3], "3");
    let (status, dir) = node.terminate();
    assert_eq!(status.code(), Some(0));
    let node = Node::again(dir, &[]);
    assert_eq!(node.get("/config/incr/visits").text().trim(), "4");
}
