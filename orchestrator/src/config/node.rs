//! A node file as a [`NodeConfig`], and which of its keys a reload applies without a restart.

use super::codes::Code;
use super::diagnostic::{Problem, Severity, Source};
use super::fields::Fields;
use super::node_keys::{self, NODE};
use super::read::{self, Reader};
use crate::model::node::{AdminConfig, Allocator, EngineConfig, HttpConfig, NodeConfig, TlsConfig, TlsMode};

/// A node file without mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedNode {
    pub config: NodeConfig,
    /// In order of the file.
    pub warnings: Vec<Problem>,
}

/// Reads a node file. `file_name` is for messages only.
///
/// # Errors
/// Every mistake of the file (and its warnings), in the order of the file.
pub fn node(text: &str, file_name: &str) -> Result<CheckedNode, Vec<Problem>> {
    let (fields, mut reader) = read::read(&Source::new(file_name, text), &NODE);
    meaning(&fields, &mut reader);
    if !reader.failed()
        && let Some((table, key, problem)) = tls_problem(&build(&fields))
    {
        let span = fields.sub(table).span(key);
        reader.push(problem.at(&reader.source.clone(), span));
    }
    let problems = reader.finish();
    if problems.iter().any(|p| p.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(CheckedNode {
        config: build(&fields),
        warnings: problems,
    })
}

/// What the keys of one file mean together.
pub(super) fn meaning(fields: &Fields, reader: &mut Reader) {
    let mut seen = std::collections::BTreeSet::new();
    let http = fields.sub("http");
    for item in http.list("listen").iter().chain(http.list("tls_listen")) {
        if !seen.insert(&item.text) {
            let problem = Problem::new(Code::DuplicateAddress, format!("`{}` is listened on twice", item.text))
                .label("the same address again")
                .help("remove one of the two");
            reader.push(problem.at(&reader.source.clone(), item.span.clone()));
        }
    }
    if http.given("listen") && http.list("listen").is_empty() && !reader.failed() {
        let problem = Problem::warning(
            Code::NeverReached,
            "`listen` in [http] is empty: no service can be reached",
        )
        .label("no address")
        .help("write `listen = [\"127.0.0.1:8080\"]`, or leave it out");
        reader.push(problem.at(&reader.source.clone(), http.span("listen")));
    }
    let admin = fields.sub("admin");
    let listen = admin.text("listen");
    if !listen.is_empty() && !listen.ends_with(":0") && seen.iter().any(|l| *l == listen) {
        let problem = Problem::new(
            Code::DuplicateAddress,
            format!("`{listen}` is the address of the services too"),
        )
        .label("also in http.listen")
        .help("give the admin listener a port of its own");
        reader.push(problem.at(&reader.source.clone(), admin.span("listen")));
    }
}

/// What the keys about TLS lack for each other: table and key to point at. Of all layers together: a variable may bring what a file lacks.
pub(super) fn tls_problem(config: &NodeConfig) -> Option<(&'static str, &'static str, Problem)> {
    let tls = &config.tls;
    if tls.mode == TlsMode::Off && !config.http.tls_listen.is_empty() {
        let problem = Problem::new(
            Code::Contradiction,
            "`tls_listen` needs certificates, and tls.mode is \"off\"",
        )
        .label("no certificate to show there")
        .help("write `[tls]` with `mode = \"internal\"`, or `mode = \"file\"` with cert_file and key_file");
        return Some(("http", "tls_listen", problem));
    }
    let lacks = |key: &str| {
        Problem::new(Code::MissingKey, format!("mode \"file\" needs `{key}`"))
            .label("which file?")
            .help(format!("write `{key} = \"/etc/narae/…pem\"` in [tls]"))
    };
    match tls.mode {
        TlsMode::File if tls.cert_file.is_none() => Some(("tls", "mode", lacks("cert_file"))),
        TlsMode::File if tls.key_file.is_none() => Some(("tls", "mode", lacks("key_file"))),
        _ => None,
    }
}

/// Of fields without mistakes.
pub(super) fn build(f: &Fields) -> NodeConfig {
    let (node, http, admin, engine) = (f.sub("node"), f.sub("http"), f.sub("admin"), f.sub("engine"));
    let tls = f.sub("tls");
    NodeConfig {
        name: node.opt_text("name").map(str::to_owned),
        labels: node.map("labels"),
        data_dir: node.opt_text("data_dir").map(str::to_owned),
        http: HttpConfig {
            listen: http.list("listen").iter().filter_map(|i| i.text.parse().ok()).collect(),
            tls_listen: http
                .list("tls_listen")
                .iter()
                .filter_map(|i| i.text.parse().ok())
                .collect(),
            max_connections: http.opt_count("max_connections"),
            header_timeout: http.duration("header_timeout"),
        },
        admin: AdminConfig {
            socket: admin.text("socket").to_owned(),
            listen: admin.text("listen").parse().ok(),
        },
        tls: TlsConfig {
            mode: match tls.text("mode") {
                "file" => TlsMode::File,
                "internal" => TlsMode::Internal,
                _ => TlsMode::Off,
            },
            cert_file: tls.opt_text("cert_file").map(str::to_owned),
            key_file: tls.opt_text("key_file").map(str::to_owned),
        },
        engine: EngineConfig {
            allocator: match engine.text("allocator") {
                "pooling" => Allocator::Pooling,
                "on-demand" => Allocator::OnDemand,
                _ => Allocator::Auto,
            },
            compile_memory_bytes: engine.bytes("compile_memory"),
            compile_timeout: engine.duration("compile_timeout"),
            memory_budget: engine.budget("memory_budget"),
            cache_size_bytes: engine.bytes("cache_size"),
        },
    }
}

impl Default for NodeConfig {
    /// What runs without any file.
    fn default() -> Self {
        let (fields, _) = read::read(&Source::new("default", ""), &NODE);
        build(&fields)
    }
}

/// Which keys differ: those a reload applies at once, and those that need a restart. In the order of the table.
pub fn changes(old: &NodeConfig, new: &NodeConfig) -> (Vec<String>, Vec<String>) {
    let (old, new) = (super::print::node_entries(old), super::print::node_entries(new));
    let (mut live, mut restart) = (Vec::new(), Vec::new());
    for (path, key) in node_keys::values() {
        let of = |entries: &[super::print::Entry]| -> Vec<String> {
            entries
                .iter()
                .filter(|e| e.under(&path))
                .map(|e| format!("{}={}", e.key(), e.value))
                .collect()
        };
        if of(&old) != of(&new) {
            if key.live { live.push(path) } else { restart.push(path) }
        }
    }
    (live, restart)
}

#[cfg(test)]
#[path = "tests/node.rs"]
mod tests;
