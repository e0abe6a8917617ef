//! The rules of `layers`, one test each.

use super::*;
use crate::model::node::Budget;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn flags(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn from<'a>(origins: &'a [Origin], key: &str) -> &'a str {
    &origins
        .iter()
        .find(|o| o.key == key)
        .unwrap_or_else(|| panic!("no {key}"))
        .from
}

#[test]
fn nothing_at_all_is_the_default_and_says_so() {
    let (config, origins) = layers(None, None, None, &env(&[]), &[]).unwrap();
    assert_eq!(config, NodeConfig::default());
    assert!(origins.iter().all(|o| o.from == "default"), "{origins:?}");
}

#[test]
fn the_later_layer_wins_key_by_key() {
    let system = "[http]\nlisten = [\"127.0.0.1:1\"]\nheader_timeout = \"1s\"\n[node]\nname = \"sys\"\n[engine]\ncompile_timeout = \"5s\"\n";
    let user = "[http]\n\nlisten = [\"127.0.0.1:2\"]\n";
    let project = "[engine]\nmemory_budget = \"10%\"\n";
    let vars = env(&[
        ("NARAE_ENGINE_MEMORY_BUDGET", "1GiB"),
        ("NARAE_HTTP_MAX_CONNECTIONS", "9"),
        ("NARAE_HOST", "unix:x"),
        ("PATH", "/"),
    ]);
    let over = flags(&[("http.listen", "127.0.0.1:3, [::1]:3")]);
    let (config, origins) = layers(
        Some(("/etc/n.toml", system)),
        Some(("u.toml", user)),
        Some(("p.toml", project)),
        &vars,
        &over,
    )
    .unwrap();
    assert_eq!(
        config.http.listen,
        ["127.0.0.1:3".parse().unwrap(), "[::1]:3".parse().unwrap()]
    );
    assert_eq!(config.engine.memory_budget, Budget::Bytes(1 << 30));
    assert_eq!(from(&origins, "http.listen"), "flag");
    assert_eq!(from(&origins, "http.header_timeout"), "/etc/n.toml:3");
    assert_eq!(from(&origins, "http.max_connections"), "NARAE_HTTP_MAX_CONNECTIONS");
    assert_eq!(from(&origins, "engine.memory_budget"), "NARAE_ENGINE_MEMORY_BUDGET");
    assert_eq!(from(&origins, "engine.compile_timeout"), "/etc/n.toml:7");
    assert_eq!(from(&origins, "engine.cache_size"), "default");
    assert_eq!(from(&origins, "node.name"), "/etc/n.toml:5");
    let (_, origins) = layers(None, Some(("u.toml", user)), None, &env(&[]), &[]).unwrap();
    assert_eq!(from(&origins, "http.listen"), "u.toml:3");
}

#[test]
fn a_bad_variable_is_named() {
    for (name, value, code) in [
        ("NARAE_HTTP_LISTEN", "8080", Code::BadAddress),
        ("NARAE_HTTP_MAX_CONNECTIONS", "many", Code::WrongType),
        ("NARAE_HTTP_MAX_CONNECTIONS", "0", Code::OutOfRange),
        ("NARAE_HTTP_HEADER_TIMEOUT", "10", Code::NeedsUnit),
        ("NARAE_ADMIN_LISTEN", "0.0.0.0:1", Code::AdminNotLoopback),
        ("NARAE_ADMIN_DASHBOARD", "true", Code::NotSupportedYet),
        ("NARAE_ENGINE_ALLOCATOR", "pool", Code::NotAChoice),
        ("NARAE_TLS_MODE", "acme", Code::NotSupportedYet),
        ("NARAE_TLS_EMAIL", "a@b", Code::NotSupportedYet),
        ("NARAE_CLUSTER_ROLE", "server", Code::NotSupportedYet),
        ("NARAE_NODE_DATA_DIR", "", Code::BadNodePath),
    ] {
        let problems = layers(None, None, None, &env(&[(name, value)]), &[]).unwrap_err();
        assert_eq!(
            problems.iter().map(|p| p.code).collect::<Vec<_>>(),
            [code],
            "{name}={value}: {problems:?}"
        );
        assert!(problems[0].message.contains(name), "{}", problems[0].message);
        assert_eq!(problems[0].file, "");
    }
}

#[test]
fn every_layer_tells_its_mistakes_at_once() {
    let problems = layers(
        Some(("a.toml", "x = 1")),
        Some(("b.toml", "= ")),
        None,
        &env(&[("NARAE_HTTP_LISTEN", "x")]),
        &flags(&[("htp.listen", "1")]),
    )
    .unwrap_err();
    let files: Vec<&str> = problems.iter().map(|p| p.file.as_str()).collect();
    assert_eq!(files, ["a.toml", "b.toml", "", ""]);
}

#[test]
fn labels_from_a_variable_are_pairs() {
    let (config, origins) = layers(
        None,
        None,
        None,
        &env(&[("NARAE_NODE_LABELS", "site=seoul, rack=7")]),
        &[],
    )
    .unwrap();
    assert_eq!(config.labels["site"], "seoul");
    assert_eq!(config.labels["rack"], "7");
    assert_eq!(from(&origins, "node.labels.site"), "NARAE_NODE_LABELS");
}

#[test]
fn layers_that_clash_only_together_are_refused() {
    let vars = env(&[("NARAE_ADMIN_LISTEN", "127.0.0.1:8080")]);
    assert_eq!(
        layers(None, None, None, &vars, &[]).unwrap_err()[0].code,
        Code::DuplicateAddress
    );
}

#[test]
fn every_value_key_has_a_variable_of_its_own() {
    let names: std::collections::BTreeSet<String> = node_keys::values().map(|(p, _)| variable(&p)).collect();
    assert_eq!(names.len(), node_keys::values().count());
    assert!(names.contains("NARAE_HTTP_LISTEN") && names.contains("NARAE_ENGINE_MEMORY_BUDGET"));
}

proptest::proptest! {
    #[test]
    fn no_variable_panics(text in ".{0,80}") {
        for (path, _) in node_keys::values() {
            let _ = layers(None, None, None, &env(&[(&variable(&path), &text)]), &[]);
        }
    }
}
