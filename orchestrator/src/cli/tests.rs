//! The verbs against a daemon of a few lines: what is sent, in which order, and which exit code comes of the answers.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use clap::Parser as _;
use serde_json::{Value, json};

use super::args::Cli;
use super::exit::Exit;
use super::report::Failure;
use super::session::Session;

/// A module that inspection accepts.
const HELLO: &[u8] = include_bytes!("../../../modules/prebuilt/hello.wasm");

/// Status and body, in order.
type Answers = VecDeque<(u16, Value)>;

/// Answers by `METHOD /path`, each list in order, its last for ever; keeps what was asked.
#[derive(Clone, Default)]
struct Daemon {
    asked: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<BTreeMap<String, Answers>>>,
}

impl Daemon {
    fn on(self, what: &str, status: u16, body: Value) -> Self {
        self.answers
            .lock()
            .unwrap()
            .entry(what.to_owned())
            .or_default()
            .push_back((status, body));
        self
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn count(&self, what: &str) -> usize {
        self.asked().iter().filter(|a| a.starts_with(what)).count()
    }
}

async fn answer(State(daemon): State<Daemon>, method: Method, uri: Uri, _body: Bytes) -> Response {
    daemon.asked.lock().unwrap().push(format!("{method} {uri}"));
    let key = format!("{method} {}", uri.path());
    let mut answers = daemon.answers.lock().unwrap();
    let Some(list) = answers.get_mut(&key) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let next = if list.len() > 1 {
        list.pop_front()
    } else {
        list.front().cloned()
    };
    let (status, body) = next.unwrap();
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

/// Runs one command line against the daemon, in `dir`.
async fn narae(daemon: &Daemon, dir: &Path, line: &str) -> Result<Exit, Failure> {
    let socket = dir.join("admin.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let app = Router::new().fallback(answer).with_state(daemon.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let host = format!("unix:{}", socket.display());
    let line = line.replace("DIR", &dir.display().to_string());
    let words = ["narae", "--host", &host, "-q", "--no-input"]
        .into_iter()
        .map(str::to_owned);
    let cli = Cli::parse_from(words.chain(line.split_whitespace().map(str::to_owned)));
    let session = Session::new(cli.globals).unwrap();
    let ended = super::verb(&session, cli.verb).await;
    server.abort();
    ended
}

async fn exit(daemon: &Daemon, dir: &Path, line: &str) -> u8 {
    narae(daemon, dir, line)
        .await
        .unwrap_or_else(|failure| failure.exit)
        .code()
}

fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.wasm"), HELLO).unwrap();
    std::fs::write(
        dir.path().join("hello.toml"),
        "name = \"hello\"\nmodule = \"m.wasm\"\nroutes = [\"/\"]\n",
    )
    .unwrap();
    dir
}

fn module() -> String {
    format!("/v1/modules/{}", narae_runtime::Digest::of(HELLO))
}

fn deployed(revision: u64, previous: Option<u64>) -> Value {
    json!({ "schema": 1, "service": "hello", "revision": revision, "changed": true, "previous": previous })
}

fn rollout(from: Option<u64>, to: u64, state: &str) -> Value {
    json!({ "schema": 1, "service": "hello", "from": from, "to": to, "state": state, "reason": null, "notes": ["n"],
            "old_serving": 1, "new_serving": u32::from(state == "done"), "wanted": 1 })
}

fn problem(code: &str) -> Value {
    json!({ "schema": 1, "errors": [{ "code": code, "message": "no", "file": null, "line": null, "column": null,
            "help": null, "rendered": "error: no\n" }] })
}

fn service(state: &str, wanted: u32, serving: u32) -> Value {
    json!({ "name": "hello", "revision": 1, "stable": 1, "state": state, "reason": null, "replicas_wanted": wanted,
            "replicas_serving": serving, "replicas_extra": 0, "routes": ["/"], "requests_per_second": 0.0,
            "p50_ms": null, "p99_ms": null, "memory_bytes": 0, "in_flight": 0, "queued": 0, "restarts": 0,
            "created_at": "2026-11-24T04:50:00.000Z", "changed_at": "2026-11-24T04:50:00.000Z", "labels": {} })
}

fn status(service: Value, replicas: &[(&str, &str)]) -> Value {
    let replicas: Vec<Value> = replicas
        .iter()
        .map(|(id, phase)| {
            json!({ "id": id, "revision": 1, "phase": phase, "since_ms": 0, "in_flight": 0, "restarts": 0, "calls": 0,
                    "traps": 0, "cpu_ms": 0, "memory_bytes": 0, "idle_instances": 0, "reason": null })
        })
        .collect();
    let mut all = json!({ "schema": 1, "replicas": replicas, "rollout": null, "events": [], "logs": [] });
    all.as_object_mut()
        .unwrap()
        .extend(service.as_object().unwrap().clone());
    all
}

const PUT: &str = "PUT /v1/services/hello";
const ROLLOUT: &str = "GET /v1/services/hello/rollout";
const STATUS: &str = "GET /v1/services/hello/status";

#[tokio::test]
async fn a_deploy_uploads_what_is_unknown_and_ends_0_when_the_revision_serves() {
    let dir = files();
    let daemon = Daemon::default()
        .on(&format!("PUT {}", module()), 201, json!({}))
        .on(PUT, 200, deployed(2, Some(1)))
        .on(ROLLOUT, 200, rollout(None, 1, "done"))
        .on(ROLLOUT, 200, rollout(Some(1), 2, "running"))
        .on(ROLLOUT, 200, rollout(Some(1), 2, "done"));
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml").await, 0);
    let asked = daemon.asked();
    assert_eq!(
        asked[..3],
        [
            format!("HEAD {}", module()),
            format!("PUT {}", module()),
            PUT.to_owned()
        ]
    );
    assert_eq!(daemon.count(ROLLOUT), 3);
}

#[tokio::test]
async fn a_known_module_is_not_sent_again() {
    let dir = files();
    let daemon = Daemon::default()
        .on(&format!("HEAD {}", module()), 200, json!({}))
        .on(PUT, 200, deployed(1, None));
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml --no-wait").await, 0);
    assert_eq!(daemon.asked(), [format!("HEAD {}", module()), PUT.to_owned()]);
}

#[tokio::test]
async fn a_refused_revision_ends_8_and_a_refused_first_one_1() {
    let dir = files();
    let base = || Daemon::default().on(&format!("HEAD {}", module()), 200, json!({}));
    let daemon = base()
        .on(PUT, 200, deployed(2, Some(1)))
        .on(ROLLOUT, 200, rollout(Some(1), 2, "refused"));
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml").await, 8);
    let daemon = base()
        .on(PUT, 200, deployed(1, None))
        .on(ROLLOUT, 200, rollout(None, 1, "refused"));
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml").await, 1);
}

#[tokio::test]
async fn a_deploy_that_takes_too_long_ends_7() {
    let dir = files();
    let daemon = Daemon::default()
        .on(&format!("HEAD {}", module()), 200, json!({}))
        .on(PUT, 200, deployed(2, Some(1)))
        .on(ROLLOUT, 200, rollout(Some(1), 2, "running"));
    assert_eq!(
        exit(&daemon, dir.path(), "deploy DIR/hello.toml --timeout 20ms").await,
        7
    );
}

#[tokio::test]
async fn what_the_daemon_refuses_ends_with_the_documented_code() {
    let dir = files();
    for (status, code) in [(400, 9), (403, 6), (412, 11), (500, 1), (404, 1)] {
        let daemon =
            Daemon::default()
                .on(&format!("HEAD {}", module()), 200, json!({}))
                .on(PUT, status, problem("E0042"));
        assert_eq!(
            exit(&daemon, dir.path(), "deploy DIR/hello.toml").await,
            code,
            "{status}"
        );
        assert_eq!(daemon.count(ROLLOUT), 0);
    }
}

#[tokio::test]
async fn an_invalid_file_ends_9_and_no_daemon_is_asked() {
    let dir = files();
    std::fs::write(dir.path().join("bad.toml"), "name = 3").unwrap();
    let daemon = Daemon::default();
    let failure = narae(&daemon, dir.path(), "deploy DIR").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Invalid);
    assert!(daemon.asked().is_empty());
}

#[tokio::test]
async fn with_several_files_nothing_is_changed_when_one_is_refused() {
    let dir = files();
    std::fs::write(dir.path().join("other.toml"), "name = \"other\"\nmodule = \"m.wasm\"\n").unwrap();
    let daemon = Daemon::default()
        .on(&format!("HEAD {}", module()), 200, json!({}))
        .on(PUT, 200, deployed(1, None))
        .on("PUT /v1/services/other", 400, problem("E0042"));
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR").await, 9);
    assert_eq!(
        (daemon.count(PUT), daemon.count("PUT /v1/services/other")),
        (1, 1),
        "each was only asked about"
    );
}

#[tokio::test]
async fn prune_deletes_what_no_file_describes_and_only_with_yes() {
    let dir = files();
    let mut old = service("healthy", 1, 1);
    old["name"] = json!("old");
    let base = || {
        Daemon::default()
            .on(&format!("HEAD {}", module()), 200, json!({}))
            .on(PUT, 200, deployed(1, None))
            .on(ROLLOUT, 200, rollout(None, 1, "done"))
            .on(
                "GET /v1/services",
                200,
                json!({ "schema": 1, "items": [service("healthy", 1, 1), old] }),
            )
            .on("DELETE /v1/services/old", 202, json!({}))
            .on("GET /v1/services/old/status", 200, status(old.clone(), &[]))
            .on("GET /v1/services/old/status", 404, problem("E0500"))
    };
    let daemon = base();
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR --prune").await, 2);
    assert_eq!(
        (daemon.count("DELETE"), daemon.count(PUT)),
        (0, 0),
        "asked before anything is changed"
    );
    let daemon = base();
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR --prune -y").await, 0);
    assert_eq!(daemon.count("DELETE /v1/services/old"), 1);
    assert_eq!(
        daemon.asked().last().unwrap(),
        "GET /v1/services/old/status",
        "and seen to go"
    );
    assert_eq!(exit(&base(), dir.path(), "deploy DIR/hello.toml --prune -y").await, 2);
}

#[tokio::test]
async fn status_ends_3_when_not_healthy_and_4_when_unknown() {
    let dir = files();
    let of = |state: &str| Daemon::default().on(STATUS, 200, status(service(state, 1, 1), &[]));
    assert_eq!(exit(&of("healthy"), dir.path(), "status hello").await, 0);
    assert_eq!(exit(&of("degraded"), dir.path(), "status hello").await, 3);
    assert_eq!(exit(&Daemon::default(), dir.path(), "status hello").await, 4);
}

#[tokio::test]
async fn diff_ends_10_only_when_asked_to() {
    let dir = files();
    let spec = |toml: &str| json!({ "schema": 1, "revision": 1, "toml": toml });
    let same = std::fs::read_to_string(dir.path().join("hello.toml")).unwrap();
    let digest = module().split('/').next_back().unwrap().to_owned();
    let revisions = json!({ "schema": 1, "items": [{ "revision": 1, "digest": digest, "kind": "http02",
        "state": "proved", "stable": true, "wanted": true, "cause": "deploy", "reason": null,
        "created_at": "2026-11-24T04:50:00.000Z" }] });
    let modules = json!({ "schema": 1, "items": [] });
    let with = |toml: &str| {
        Daemon::default()
            .on("GET /v1/services/hello/spec", 200, spec(toml))
            .on("GET /v1/services/hello/revisions", 200, revisions.clone())
            .on("GET /v1/modules", 200, modules.clone())
    };
    let other = same.replace("[\"/\"]", "[\"/x\"]");
    assert_eq!(
        exit(&with(&same), dir.path(), "diff DIR/hello.toml --exit-code").await,
        0
    );
    assert_eq!(
        exit(&with(&other), dir.path(), "diff DIR/hello.toml --exit-code").await,
        10
    );
    assert_eq!(exit(&with(&other), dir.path(), "diff DIR/hello.toml").await, 0);
    assert_eq!(
        exit(&Daemon::default(), dir.path(), "diff DIR/hello.toml --exit-code").await,
        10
    );
}

#[tokio::test]
async fn scale_waits_until_so_many_serve() {
    let dir = files();
    let daemon = Daemon::default()
        .on("POST /v1/services/hello/scale", 200, service("rolling", 3, 1))
        .on(STATUS, 200, status(service("rolling", 3, 1), &[]))
        .on(STATUS, 200, status(service("healthy", 3, 3), &[]));
    assert_eq!(exit(&daemon, dir.path(), "scale hello +2").await, 0);
    assert_eq!(daemon.count(STATUS), 2);
}

#[tokio::test]
async fn restart_waits_for_fresh_replicas_and_not_for_old_ones_that_still_serve() {
    let dir = files();
    let daemon = Daemon::default()
        .on("POST /v1/services/hello/restart", 200, service("healthy", 1, 1))
        .on(STATUS, 200, status(service("healthy", 1, 1), &[("r1", "serving")]))
        .on(STATUS, 200, status(service("healthy", 1, 1), &[("r1", "serving")]))
        .on(
            STATUS,
            200,
            status(service("rolling", 1, 2), &[("r1", "serving"), ("r2", "serving")]),
        )
        .on(
            STATUS,
            200,
            status(service("healthy", 1, 1), &[("r1", "draining"), ("r2", "serving")]),
        );
    assert_eq!(exit(&daemon, dir.path(), "restart hello").await, 0);
    assert_eq!(daemon.count(STATUS), 4);
}

#[tokio::test]
async fn delete_asks_first_and_waits_until_the_name_is_unknown() {
    let dir = files();
    let daemon = Daemon::default()
        .on(STATUS, 200, status(service("healthy", 1, 1), &[]))
        .on(STATUS, 404, problem("E0500"))
        .on("DELETE /v1/services/hello", 202, json!({}));
    assert_eq!(exit(&daemon, dir.path(), "delete hello").await, 2);
    assert_eq!(daemon.count("DELETE"), 0);
    let daemon = Daemon::default()
        .on(STATUS, 200, status(service("healthy", 1, 1), &[]))
        .on(STATUS, 404, problem("E0500"))
        .on("DELETE /v1/services/hello", 202, json!({}));
    assert_eq!(exit(&daemon, dir.path(), "delete hello -y").await, 0);
    assert_eq!(daemon.count("DELETE /v1/services/hello"), 1);
    assert_eq!(exit(&Daemon::default(), dir.path(), "delete hello -y").await, 4);
}

#[tokio::test]
async fn an_undo_is_followed_as_a_deploy_is() {
    let dir = files();
    let undo = "POST /v1/services/hello/undo";
    let daemon = Daemon::default()
        .on(undo, 200, deployed(3, Some(2)))
        .on(ROLLOUT, 200, rollout(Some(1), 2, "done"))
        .on(ROLLOUT, 200, rollout(Some(2), 3, "done"));
    assert_eq!(exit(&daemon, dir.path(), "rollback hello --to 1").await, 0);
    // The stable one, while another was on trial: over when all requests go there.
    let split = |old: f64| json!([{ "revision": 1, "percent": old, "serving": 1 }, { "revision": 2, "percent": 100.0 - old, "serving": 1 }]);
    let seen = |old: f64| {
        let mut view = json!(rollout(Some(1), 2, "refused"));
        view["split"] = split(old);
        view
    };
    let daemon = Daemon::default()
        .on(undo, 200, deployed(1, Some(2)))
        .on(ROLLOUT, 200, seen(0.0))
        .on(ROLLOUT, 200, seen(100.0));
    assert_eq!(exit(&daemon, dir.path(), "rollout undo hello").await, 0);
    let daemon = Daemon::default().on(undo, 404, problem("E0501"));
    assert_eq!(exit(&daemon, dir.path(), "rollout undo hello --to 9").await, 4);
}

#[tokio::test]
async fn a_call_that_reached_no_replica_is_a_failure_of_the_daemon() {
    let dir = files();
    assert_eq!(exit(&Daemon::default(), dir.path(), "call hello /x").await, 4);
    let daemon = Daemon::default().on("GET /v1/services/hello/call/x", 503, problem("E0502"));
    assert_eq!(exit(&daemon, dir.path(), "call hello /x").await, 1);
}

#[tokio::test]
async fn a_revision_that_wants_more_ends_12_and_a_directory_changes_nothing() {
    let dir = files();
    let wants = json!({ "schema": 1, "errors": [{ "code": "E0183", "message": "`hello` wants more than revision 1: secret db",
        "file": "hello.toml", "line": null, "column": null, "help": null, "rendered": "error: wants more" }] });
    let daemon =
        Daemon::default()
            .on(&format!("HEAD {}", module()), 200, json!({}))
            .on("PUT /v1/services/hello", 409, wants);
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml").await, 12);
    assert_eq!(exit(&daemon, dir.path(), "deploy DIR/hello.toml --dry-run").await, 12);
}

#[tokio::test]
async fn a_secrets_value_is_no_argument_and_nothing_is_sent() {
    let dir = files();
    let daemon = Daemon::default();
    for line in [
        "secret set db hunter2",
        "secret set db --from-file DIR/hello.toml hunter2",
    ] {
        let failure = narae(&daemon, dir.path(), line).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
    assert_eq!(
        exit(&daemon, dir.path(), "secret set Not_A_Name --from-file DIR/hello.toml").await,
        2
    );
    assert_eq!(
        exit(&daemon, dir.path(), "secret set db --from-file DIR/nothing").await,
        1
    );
    assert_eq!(daemon.asked(), [""; 0]);
}

#[tokio::test]
async fn a_secret_that_is_used_or_not_there_is_not_deleted() {
    let dir = files();
    let refused = |code: &str| {
        json!({ "schema": 1, "errors": [{ "code": code, "message": "no", "file": null,
        "line": null, "column": null, "help": null, "rendered": "error: no" }] })
    };
    let daemon = Daemon::default().on("DELETE /v1/secrets/db", 409, refused("E0184"));
    assert_eq!(exit(&daemon, dir.path(), "secret delete db -y").await, 1);
    let daemon = Daemon::default().on("DELETE /v1/secrets/db", 404, refused("E0182"));
    assert_eq!(exit(&daemon, dir.path(), "secret delete db -y").await, 4);
    assert_eq!(exit(&daemon, dir.path(), "secret delete db").await, 2, "nobody to ask");
}
