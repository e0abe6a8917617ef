//! The rules of `service`, one test each.

use super::*;
use crate::config::{render_all, visible};
use crate::model::service::{KeyValueBackend, KeyValueStore};
use proptest::prelude::*;
use std::time::Duration;

#[path = "service_values.rs"]
mod values;

pub const SMALL: &str = "name   = \"hello\"\nmodule = \"hello.wasm\"\nroutes = [\"/\"]\n";

/// The reference's full example with the keys that are due now.
pub const FULL: &str = r#"#:schema ./service.schema.json
name        = "orders"
description = "order intake"
module      = "orders.wasm"
digest      = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
backend     = "wasm"
world       = "auto"
args        = ["--mode", "intake"]
replicas    = 4
depends_on  = ["inventory"]
labels      = { team = "shop" }
routes      = ["/short"]

[env]
LOG_LEVEL = "info"

[config]
currency = "KRW"

[secrets]
DB_PASSWORD = "orders-db-password"

[limits]
memory       = "96MiB"
timeout      = "10s"
cpu_time     = "500ms"
start_time   = "10s"
concurrency  = 32
queue        = 128
queue_wait   = "1s"
body         = "8MiB"
requests_per_instance = 1
requests_at_once = 1
idle_instances = 8

[[route]]
host        = "api.example.test"
path        = "/v1/orders"
tls         = "off"
methods = ["GET", "POST"]
headers = { x-beta = "1" }
query = { v = "2" }
strip = true
https_redirect = true

[traffic]
balance   = "least-request"
retries   = { attempts = 1 }
outlier   = { consecutive_failures = 5, eject = "10s", max_ejected = "50%" }
pin       = { header = "x-narae-revision", cookie = "narae-revision" }
drain     = "15s"

[probes.startup]
path = "/healthz"
interval = "200ms"
timeout = "1s"
failures = 40
[probes.readiness]
path = "/ready"
interval = "500ms"
timeout = "500ms"
failures = 2

[probes.liveness]
path = "/healthz"
interval = "10s"
failures = 3
[restart]
policy  = "always"
backoff = { initial = "10ms", max = "30s", factor = 2.0, jitter = true }
give_up = { restarts = 10, within = "5m" }

[autoscale]
min     = 0
max     = 20
metric  = "concurrency"
panic_window = "6s"
target  = "70%"
up      = { step = "100%", window = "6s" }
down    = { step = "25%", window = "60s" }
idle    = "5m"

[rollout]
strategy      = "canary"
steps         = [{ weight = "5%", hold = "30s" }, { weight = "25%", hold = "30s" }]
capabilities  = "allow"
max_surge     = "50%"
max_unavailable = 0
min_healthy_time = "5s"
progress_deadline = "5m"
auto_rollback = true
gates         = { error_rate = "1%", traps = "0.1%", p99 = "250ms", cpu = "+20%", min_requests = 100, compare = "stable" }
keep_revisions = 20

[[keyvalue]]
name      = "default"
backend   = "embedded"
size      = "64MiB"

[[keyvalue]]
name      = "shared"
backend   = "redis://10.20.0.6:6379/0"
password  = "redis-password"
size      = "1GiB"

[[volume]]
name      = "cache"
mount     = "/data"
size      = "32MiB"
read_only = false

[outbound]
allow    = ["https://payments.example.test", "http://*.example.test:8080", "http://10.20.0.5", "tcp://10.20.0.5:5432", "service:inventory"]
private  = false
timeout  = "5s"
concurrent = 64
credentials = [{ host = "payments.example.test", header = "authorization", secret = "payments-token" }]

[logs]
level    = "info"
rate     = "200/s"
keep     = "4MiB"

[[schedule]]
name      = "launch-day"
at        = "2126-12-01T00:00:00"
timezone  = "Asia/Seoul"
replicas  = 100
for       = "2h"

[[schedule]]
name      = "nightly-report"
cron      = "0 2 * * *"
request   = { method = "POST", path = "/tasks/report" }
timeout   = "5m"
overlap   = "forbid"
catch_up  = "once"
jitter    = "30s"
retries   = 3
history   = 20

[[schedule]]
name      = "tick"
every     = "15m"
request   = { path = "/tick" }
"#;

const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

pub(in crate::config) fn good(text: &str) -> ServiceSpec {
    match service(text, "a.toml") {
        Ok(checked) => checked.spec,
        Err(problems) => panic!("{text}\n{}", render_all(&problems, false)),
    }
}

pub(in crate::config) fn bad(text: &str) -> Vec<Problem> {
    match service(text, "a.toml") {
        Ok(checked) => panic!("{text}\nwas accepted as {:?}", checked.spec),
        Err(problems) => problems,
    }
}

pub(in crate::config) fn codes(text: &str) -> Vec<Code> {
    bad(text).iter().map(|p| p.code).collect()
}

/// `key = value` lines after a good head give exactly this one code.
fn each(code: Code, lines: &[&str]) {
    for line in lines {
        assert_eq!(
            codes(&format!("{HEAD}{line}\n")),
            [code],
            "{line}\n{}",
            render_all(&bad(&format!("{HEAD}{line}\n")), false)
        );
    }
}

#[test]
fn the_smallest_file_is_three_lines() {
    let spec = good(SMALL);
    assert_eq!(spec.name.as_str(), "hello");
    assert_eq!(spec.routes, [Route::of(HostPattern::Any, "/")]);
    assert_eq!(spec.limits, Limits::default());
}

#[test]
fn the_full_file_is_read_to_the_last_key() {
    let spec = good(FULL);
    assert_eq!(spec.replicas.get(), 4);
    assert_eq!(spec.limits.memory_bytes, 96 << 20);
    assert_eq!(spec.limits.cpu_time, Duration::from_millis(500));
    assert_eq!(
        (spec.limits.requests_per_instance, spec.limits.requests_at_once),
        (Some(1), Some(1))
    );
    assert_eq!(spec.routes.len(), 2);
    assert_eq!(spec.routes[1].host, HostPattern::Exact("api.example.test".into()));
    assert_eq!(spec.traffic.drain, Duration::from_secs(15));
    assert_eq!(spec.readiness.as_ref().map(|r| r.failures), Some(2));
    assert_eq!(spec.rollout.max_surge, Amount::Percent(50));
    assert_eq!(spec.outbound.allow.len(), 4);
    assert_eq!(spec.outbound.services, ["inventory"]);
    assert_eq!(spec.outbound.credentials[0].secret, "payments-token");
    assert_eq!(
        spec.secret_names().into_iter().collect::<Vec<_>>(),
        ["orders-db-password", "payments-token", "redis-password"]
    );
    assert_eq!(
        (spec.outbound.allow[1].host.as_str(), spec.outbound.allow[1].port),
        ("*.example.test", 8080)
    );
    let default = KeyValueStore {
        name: "default".into(),
        backend: KeyValueBackend::Embedded,
        password: None,
        size_bytes: 64 << 20,
    };
    let shared = KeyValueStore {
        name: "shared".into(),
        backend: KeyValueBackend::Redis("redis://10.20.0.6:6379/0".into()),
        password: Some("redis-password".into()),
        size_bytes: 1 << 30,
    };
    assert_eq!(spec.keyvalue, [default, shared]);
    assert_eq!(spec.env["LOG_LEVEL"], "info");
    assert_eq!(spec.secrets["DB_PASSWORD"], "orders-db-password");
    assert_eq!(spec.rollout.capabilities, crate::model::service::Wanting::Allow);
    assert!(spec.digest.is_some());
}

#[test]
fn a_present_table_takes_its_own_defaults() {
    let readiness = good(&format!("{HEAD}[probes.readiness]\n")).readiness.unwrap();
    assert_eq!(
        (readiness.path.as_str(), readiness.interval, readiness.failures),
        ("/ready", Duration::from_millis(500), 2)
    );
    assert_eq!(good(&format!("{HEAD}[[keyvalue]]\n")).keyvalue[0].name, "default");
    assert_eq!(good(&format!("{HEAD}[[route]]\n")).routes[0].path, "/");
    assert_eq!(
        good(&format!("{HEAD}[restart]\nbackoff = {{ max = \"5s\" }}\n"))
            .restart
            .initial,
        Duration::from_millis(10)
    );
}

#[test]
fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
    let text = "module = 7\nreplicas = \"4\"\nroutes = [\"x\", \"/a?b\"]\nmemroy = 1\n\n[limits]\ntimeout = 30\nmemory = \"1KiB\"\n\n[placement]\nA = \"b\"\n";
    let seen: Vec<(Code, u32)> = bad(text).iter().map(|p| (p.code, p.position().unwrap().0)).collect();
    assert_eq!(
        seen,
        [
            (Code::MissingKey, 1),
            (Code::WrongType, 1),
            (Code::WrongType, 2),
            (Code::BadPath, 3),
            (Code::BadPath, 3),
            (Code::UnknownKey, 4),
            (Code::NeedsUnit, 7),
            (Code::OutOfRange, 8),
            (Code::NotSupportedYet, 10),
        ]
    );
}

#[test]
fn keys_of_later_features_are_refused_by_name() {
    for line in [
        "program = \"./x\"",
        "rootfs = \"./r\"",
        "signature = { key = \"k\" }",
        "backend = \"namespace\"",
        "[limits]\npids = 3",
        "[limits]\ncpus = 1.0",
        "[limits]\ntmp = \"1MiB\"",
        "[limits]\nopen_files = 3",
        "[[route]]\ntls = \"acme\"",
        "[[route]]\ncompression = true",
        "[traffic]\nbalance = \"hash\"",
        "[traffic]\nhash_on = \"client-ip\"",
        "[traffic]\nsticky = { cookie = \"c\" }",
        "[traffic]\nmirror = { service = \"b\" }",
        "[traffic]\nstop_grace = \"1s\"",
        "[traffic]\nretries = { budget = \"20%\" }",
        "[rate_limit]\nrate = \"200/s\"",
        "[placement]\nstrategy = \"spread\"",
    ] {
        let problems = bad(&format!("{HEAD}{line}\n"));
        assert_eq!(
            problems.iter().map(|p| p.code).collect::<Vec<_>>(),
            [Code::NotSupportedYet],
            "{line}"
        );
        assert!(
            problems[0].message.contains("not supported yet"),
            "{line}: {}",
            problems[0].message
        );
    }
    for module in ["https://x/a.wasm", "HTTP://x/a.wasm", "oci://r/a:1"] {
        assert_eq!(
            codes(&format!("name = \"a\"\nmodule = \"{module}\"\n")),
            [Code::NotSupportedYet],
            "{module}"
        );
    }
}

#[test]
fn an_unknown_key_names_the_nearest_and_all_that_are_allowed() {
    let problem = &bad(&format!("{HEAD}[limits]\nmemroy = \"64MiB\"\n"))[0];
    assert_eq!(problem.code, Code::UnknownKey);
    assert_eq!(problem.message, "unknown key `memroy` in [limits]");
    let help = problem.help.as_deref().unwrap();
    assert!(
        help.starts_with("did you mean `memory`? allowed here: memory, timeout, cpu_time,"),
        "{help}"
    );
    assert!(!help.contains("pids"), "later keys are not offered: {help}");
    each(
        Code::UnknownKey,
        &[
            "memroy = 1",
            "Name = \"b\"",
            "\"\" = 1",
            "[limit]\nmemory = 1",
            "[probes.x]",
            "[traffic.retries]\nx = 1",
            "[[keyvalue]]\nx = 1",
            "x.y.z = 1",
            "[[x]]",
        ],
    );
}

#[test]
fn a_key_of_the_file_below_a_table_is_told_where_it_belongs() {
    let problem = &bad(&format!("{HEAD}[limits]\nmemory = \"1MiB\"\nroutes = [\"/\"]\n"))[0];
    assert!(
        problem
            .help
            .as_deref()
            .unwrap()
            .starts_with("`routes` belongs above the first [table]"),
        "{problem:?}"
    );
    let problem = &bad(&format!("{HEAD}[env]\nreplicas = 3\n"))[0];
    assert_eq!(
        problem.help.as_deref(),
        Some("if the setting `replicas` is meant, move it above the first [table] of the file")
    );
}

#[test]
fn types_that_do_not_fit_say_what_is_there_and_what_was_expected() {
    each(
        Code::WrongType,
        &[
            "replicas = \"4\"",
            "replicas = 4.0",
            "replicas = true",
            "replicas = [4]",
            "replicas = 2026-01-01",
            "description = 1",
            "args = \"x\"",
            "args = [1]",
            "args = [[\"x\"]]",
            "routes = \"/\"",
            "routes = { a = 1 }",
            "limits = \"x\"",
            "limits = []",
            "[[limits]]\nmemory = \"1MiB\"",
            "env = \"A=B\"",
            "env = [\"A=B\"]",
            "[env]\nPORT = 8080",
            "[env]\nA = [1]",
            "[env.A]\nB = \"c\"",
            "[route]\npath = \"/\"",
            "route = [1]",
            "[outbound]\nprivate = \"yes\"",
            "[outbound]\nprivate = 1",
            "[restart]\nbackoff = \"10ms\"",
            "[restart.backoff]\nfactor = \"2\"",
            "[limits]\ntimeout = true",
            "[limits]\nmemory = []",
            "[rollout]\nmax_surge = 1.5",
            "[restart]\npolicy = true",
            "world = 1",
        ],
    );
}

#[test]
fn a_number_without_its_unit_is_shown_with_it() {
    each(
        Code::NeedsUnit,
        &[
            "[limits]\ntimeout = 30",
            "[limits]\ntimeout = \"30\"",
            "[limits]\ntimeout = 1.5",
            "[limits]\nmemory = 64",
            "[limits]\nmemory = \"64\"",
            "[logs]\nrate = 200",
            "[logs]\nrate = \"200\"",
            "[logs]\nkeep = 4",
        ],
    );
    assert_eq!(
        bad(&format!("{HEAD}[limits]\ntimeout = 45\n"))[0].help.as_deref(),
        Some("write `timeout = \"45s\"`; units: h, m, s, ms, as in \"1h30m\"")
    );
}

#[test]
fn quantities_of_the_wrong_form_are_refused() {
    each(
        Code::BadDuration,
        &[
            "[limits]\ntimeout = \"\"",
            "[limits]\ntimeout = \"fast\"",
            "[limits]\ntimeout = \"-1s\"",
            "[limits]\ntimeout = \"1.5s\"",
            "[traffic]\ndrain = \"1d\"",
        ],
    );
    each(
        Code::BadSize,
        &[
            "[limits]\nmemory = \"\"",
            "[limits]\nmemory = \"64m\"",
            "[limits]\nmemory = \"lots\"",
            "[limits]\nbody = \"-1MiB\"",
        ],
    );
    each(
        Code::BadRate,
        &[
            "[logs]\nrate = \"\"",
            "[logs]\nrate = \"9/h\"",
            "[logs]\nrate = \"90/m\"",
            "[logs]\nrate = \"0/s\"",
            "[logs]\nrate = \"30/m\"",
        ],
    );
    each(
        Code::BadPercent,
        &[
            "[rollout]\nmax_surge = \"\"",
            "[rollout]\nmax_surge = \"50\"",
            "[rollout]\nmax_surge = \"half\"",
            "[rollout]\nmax_surge = \"5.5%\"",
        ],
    );
    assert_eq!(
        good(&format!("{HEAD}[logs]\nrate = \"120/m\"\n")).logs.lines_per_second,
        2
    );
}

#[test]
fn values_that_cannot_work_are_out_of_range() {
    each(
        Code::OutOfRange,
        &[
            "replicas = 10001",
            "replicas = -1",
            "replicas = 1000000000",
            "replicas = 99999999999999999999999",
            "[limits]\nmemory = \"63KiB\"",
            "[limits]\nmemory = \"0B\"",
            "[limits]\nmemory = \"5GiB\"",
            "[limits]\ntimeout = \"0s\"",
            "[limits]\ntimeout = \"0ms\"",
            "[limits]\ntimeout = \"25h\"",
            "[limits]\ntimeout = \"99999999999999999999h\"",
            "[limits]\ncpu_time = \"0s\"",
            "[limits]\nstart_time = \"0s\"",
            "[limits]\nconcurrency = 0",
            "[limits]\nqueue = -1",
            "[limits]\nrequests_per_instance = 0",
            "[limits]\nrequests_at_once = 0",
            "[limits]\nidle_instances = 99999999",
            "[traffic]\nretries = { attempts = 2 }",
            "[traffic]\noutlier = { consecutive_failures = 0 }",
            "[probes.startup]\nfailures = 0",
            "[probes.readiness]\ninterval = \"0s\"",
            "[restart]\ngive_up = { restarts = 0 }",
            "[restart]\nbackoff = { factor = 0.5 }",
            "[restart]\nbackoff = { factor = 1.0001 }",
            "[restart]\nbackoff = { factor = inf }",
            "[restart]\nbackoff = { factor = nan }",
            "[restart]\nbackoff = { factor = 1e300 }",
            "[rollout]\nmax_surge = \"1001%\"",
            "[rollout]\nmax_surge = -1",
            "[rollout]\nkeep_revisions = 0",
            "[outbound]\nconcurrent = 0",
            "[outbound]\ntimeout = \"0s\"",
            "[[keyvalue]]\nsize = \"1B\"",
        ],
    );
    assert_eq!(good(&format!("{HEAD}replicas = 10_000\n")).replicas.get(), 10_000);
    assert_eq!(good(&format!("{HEAD}replicas = 0x10\n")).replicas.get(), 16);
    assert_eq!(good(&format!("{HEAD}replicas = +3\n")).replicas.get(), 3);
    assert_eq!(
        good(&format!("{HEAD}[restart]\nbackoff = {{ factor = 3 }}\n"))
            .restart
            .factor_milli,
        3000
    );
    assert_eq!(
        good(&format!("{HEAD}[restart]\nbackoff = {{ factor = 1.25 }}\n"))
            .restart
            .factor_milli,
        1250
    );
}

#[test]
fn words_that_are_no_choice_are_refused_with_the_choices() {
    each(
        Code::NotAChoice,
        &[
            "world = \"htp\"",
            "backend = \"\"",
            "[restart]\npolicy = \"on_failure\"",
            "[logs]\nlevel = \"INFO\"",
            "[rollout]\nstrategy = \"fast\"",
            "[traffic]\nbalance = \"random\"",
        ],
    );
    assert_eq!(
        bad(&format!("{HEAD}[restart]\npolicy = \"on_failure\"\n"))[0]
            .help
            .as_deref(),
        Some("did you mean \"on-failure\"? choices: \"always\", \"on-failure\", \"never\"")
    );
}
