//! The rules of `node`, one test each.

use super::*;
use crate::config::{effective_node, render_all};
use crate::model::node::Budget;

fn good(text: &str) -> NodeConfig {
    node(text, "node.toml")
        .unwrap_or_else(|p| panic!("{}", render_all(&p, false)))
        .config
}

fn codes(text: &str) -> Vec<Code> {
    node(text, "node.toml").unwrap_err().iter().map(|p| p.code).collect()
}

#[test]
fn an_empty_file_gives_every_default() {
    let config = good("");
    assert_eq!(config.http.listen, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.http.header_timeout.as_secs(), 10);
    assert_eq!(
        (config.admin.socket.as_str(), config.admin.listen),
        ("admin.sock", None)
    );
    assert_eq!(config.engine.memory_budget, Budget::Percent(50));
    assert_eq!(config.engine.compile_memory_bytes, 1 << 30);
    assert_eq!(config.engine.compile_timeout.as_secs(), 60);
    assert_eq!(config.engine.cache_size_bytes, 256 << 20);
    assert_eq!(
        (config.name, config.data_dir, config.http.max_connections),
        (None, None, None)
    );
}

#[test]
fn everything_due_now_is_read() {
    let text = r#"
[node]
name = "Edge-Seoul-01"
labels = { site = "seoul" }
data_dir = "state"
[http]
listen = ["0.0.0.0:80", "[::]:80"]
max_connections = 4096
header_timeout = "5s"
trusted_proxies = []
access_log = "off"
[admin]
socket = "a.sock"
listen = "127.0.0.1:7070"
dashboard = false
[tls]
mode = "off"
[engine]
profile = "auto"
allocator = "on-demand"
compiler = "cranelift"
compile_memory = "1GiB"
compile_timeout = "30s"
memory_budget = "512MiB"
cache_size = "1GB"
[policy]
require_signature = false
allow_backends = ["wasm"]
limits = "enforce"
[logs]
target = "stderr"
[metrics]
listen = ""
otlp = ""
"#;
    let config = good(text);
    assert_eq!(config.name.as_deref(), Some("edge-seoul-01"));
    assert_eq!(config.http.listen.len(), 2);
    assert_eq!(config.admin.listen, Some("127.0.0.1:7070".parse().unwrap()));
    assert_eq!(config.engine.memory_budget, Budget::Bytes(512 << 20));
    assert_eq!(config.engine.allocator, Allocator::OnDemand);
    assert_eq!(good(&effective_node(&config)), config);
}

#[test]
fn tls_needs_a_certificate_and_a_certificate_needs_its_key() {
    assert_eq!(codes("[http]\ntls_listen = [\"0.0.0.0:443\"]"), [Code::Contradiction]);
    assert_eq!(codes("[tls]\nmode = \"file\""), [Code::MissingKey]);
    assert_eq!(
        codes("[tls]\nmode = \"file\"\ncert_file = \"c.pem\""),
        [Code::MissingKey]
    );
    let both = "[http]\nlisten = [\"0.0.0.0:80\"]\ntls_listen = [\"0.0.0.0:80\"]\n[tls]\nmode = \"internal\"";
    assert_eq!(codes(both), [Code::DuplicateAddress]);
    let config =
        good("[http]\ntls_listen = [\"[::]:443\"]\n[tls]\nmode = \"file\"\ncert_file = \"c\"\nkey_file = \"k\"");
    assert_eq!(config.tls.mode, TlsMode::File);
    assert_eq!(good(&effective_node(&config)), config);
}

#[test]
fn what_comes_later_is_refused_by_name() {
    for text in [
        "[http]\ntrusted_proxies = [\"10.0.0.1\"]",
        "[http]\naccess_log = \"all\"",
        "[admin]\ndashboard = true",
        "[tls]\nmode = \"acme\"",
        "[tls]\nemail = \"a@b.test\"",
        "[engine]\nprofile = \"tiny\"",
        "[engine]\ncompiler = \"none\"",
        "[policy]\nrequire_signature = true",
        "[policy]\ntrusted_keys = []",
        "[policy]\nallow_backends = [\"wasm\", \"namespace\"]",
        "[policy]\nlimits = \"best-effort\"",
        "[logs]\ntarget = \"journal\"",
        "[metrics]\nlisten = \"127.0.0.1:9090\"",
        "[metrics]\notlp = \"http://x\"",
        "[cluster]\nrole = \"server\"",
    ] {
        assert_eq!(codes(text), [Code::NotSupportedYet], "{text}");
        assert!(
            node(text, "n").unwrap_err()[0]
                .message
                .ends_with("is not supported yet"),
            "{text}"
        );
    }
}

#[test]
fn the_admin_listener_stays_on_loopback() {
    for address in [
        "0.0.0.0:7070",
        "[::]:7070",
        "192.168.0.1:7070",
        "8.8.8.8:7070",
        "[::ffff:10.0.0.1]:7070",
    ] {
        assert_eq!(
            codes(&format!("[admin]\nlisten = \"{address}\"")),
            [Code::AdminNotLoopback],
            "{address}"
        );
    }
    for address in ["127.0.0.1:7070", "127.9.9.9:0", "[::1]:7070"] {
        good(&format!("[admin]\nlisten = \"{address}\""));
    }
}

#[test]
fn addresses_without_port_names_and_doubles_are_refused() {
    for address in [
        "127.0.0.1",
        "localhost:80",
        ":80",
        "80",
        "",
        "1.2.3.4:99999",
        "[::1]",
        "::1:80",
    ] {
        assert_eq!(
            codes(&format!("[http]\nlisten = [\"{address}\"]")),
            [Code::BadAddress],
            "{address}"
        );
    }
    assert_eq!(
        codes("[http]\nlisten = [\"127.0.0.1:80\", \"127.0.0.1:80\"]"),
        [Code::DuplicateAddress]
    );
    assert_eq!(
        codes("[http]\nlisten = [\"127.0.0.1:80\"]\n[admin]\nlisten = \"127.0.0.1:80\""),
        [Code::DuplicateAddress]
    );
}

#[test]
fn a_budget_is_a_size_or_a_percentage() {
    for (text, budget) in [
        ("1%", Budget::Percent(1)),
        ("100%", Budget::Percent(100)),
        ("1.5GiB", Budget::Bytes(3 << 29)),
    ] {
        assert_eq!(
            good(&format!("[engine]\nmemory_budget = \"{text}\""))
                .engine
                .memory_budget,
            budget
        );
    }
    for (text, code) in [
        ("\"0%\"", Code::OutOfRange),
        ("\"101%\"", Code::OutOfRange),
        ("\"1MiB\"", Code::OutOfRange),
        ("\"half\"", Code::BadSize),
        ("\"50\"", Code::NeedsUnit),
        ("50", Code::NeedsUnit),
        ("0.5", Code::NeedsUnit),
        ("true", Code::WrongType),
    ] {
        assert_eq!(codes(&format!("[engine]\nmemory_budget = {text}")), [code], "{text}");
    }
    assert_eq!(Budget::Percent(50).of(u64::MAX), u64::MAX / 2);
}

#[test]
fn a_service_file_given_as_node_file_names_every_key() {
    assert_eq!(
        codes("name = \"a\"\nmodule = \"a.wasm\"\n"),
        [Code::UnknownKey, Code::UnknownKey]
    );
}

#[test]
fn a_reload_applies_live_keys_and_names_those_that_need_a_restart() {
    let old = good("");
    assert_eq!(changes(&old, &old), (vec![], vec![]));
    let new = good(
        "[node]\nlabels = { a = \"b\" }\n[http]\nlisten = [\"127.0.0.1:81\"]\nmax_connections = 9\n[engine]\nmemory_budget = \"40%\"\ncache_size = \"1GiB\"\n",
    );
    let (live, restart) = changes(&old, &new);
    assert_eq!(live, ["node.labels"]);
    assert_eq!(
        restart,
        [
            "http.listen",
            "http.max_connections",
            "engine.memory_budget",
            "engine.cache_size"
        ]
    );
    assert_eq!(changes(&new, &old), (live, restart));
}
