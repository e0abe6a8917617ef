//! A model back as TOML with nothing hidden: what `inspect --effective` and `config show` print. It parses back to the same model.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use super::hosts::show_host;
use super::keys::show_milli;
use super::network::show_allowed;
use super::units::{show_duration, show_size};
use crate::model::ServiceSpec;
use crate::model::node::{Allocator, Budget, NodeConfig};
use crate::model::service::{Amount, KeyValueBackend, LogLevel, RestartPolicy, Strategy, Wanting, World};

/// One key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// From the top: `["limits", "memory"]`.
    pub path: Vec<String>,
    pub value: Value,
}

impl Entry {
    /// `limits.memory`, quoted where TOML needs it.
    pub fn key(&self) -> String {
        self.path
            .iter()
            .map(|p| toml_edit::Key::new(p).to_string())
            .collect::<Vec<_>>()
            .join(".")
    }

    /// Is it `path` or below it?
    pub fn under(&self, path: &str) -> bool {
        let key = self.key();
        key.strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

fn entry(path: &str, value: impl Into<Value>) -> Entry {
    Entry {
        path: path.split('.').map(str::to_owned).collect(),
        value: value.into(),
    }
}

fn array<T: Into<Value>>(items: impl IntoIterator<Item = T>) -> Value {
    Value::Array(items.into_iter().collect::<Array>())
}

/// Every key of a service in the order it is printed. Keys without a value (an absent description) are not there.
pub fn entries(spec: &ServiceSpec) -> Vec<Entry> {
    let mut out = vec![entry("name", spec.name.as_str())];
    out.extend(spec.description.iter().map(|d| entry("description", d.as_str())));
    out.push(entry("module", spec.module.as_str()));
    out.extend(spec.digest.iter().map(|d| entry("digest", d.to_string())));
    out.push(entry("backend", "wasm"));
    out.push(entry(
        "world",
        match spec.world {
            World::Auto => "auto",
            World::Http => "http",
            World::Command => "command",
        },
    ));
    out.push(entry("args", array(&spec.args)));
    out.push(entry("replicas", i64::from(spec.replicas.get())));
    out.push(entry("depends_on", array(spec.depends_on.iter().map(|n| n.as_str()))));
    for (table, map) in [
        ("labels", &spec.labels),
        ("env", &spec.env),
        ("config", &spec.config),
        ("secrets", &spec.secrets),
    ] {
        out.extend(map.iter().map(|(k, v)| Entry {
            path: vec![table.into(), k.clone()],
            value: v.as_str().into(),
        }));
    }
    limits(spec, &mut out);
    out.push(entry(
        "route",
        array(spec.routes.iter().map(|route| {
            let mut table = InlineTable::new();
            let host = show_host(&route.host);
            if !host.is_empty() {
                table.insert("host", host.into());
            }
            table.insert("path", route.path.as_str().into());
            if !route.methods.is_empty() {
                table.insert("methods", array(&route.methods));
            }
            for (key, map) in [("headers", &route.headers), ("query", &route.query)] {
                if !map.is_empty() {
                    table.insert(
                        key,
                        Value::InlineTable(map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()),
                    );
                }
            }
            table.insert("strip", route.strip.into());
            table.insert("tls", "off".into());
            table.insert("https_redirect", route.https_redirect.into());
            table
        })),
    ));
    traffic_and_probes(spec, &mut out);
    restart_and_rollout(spec, &mut out);
    autoscale(spec, &mut out);
    out.push(entry(
        "keyvalue",
        array(spec.keyvalue.iter().map(|store| {
            let mut table = InlineTable::new();
            table.insert("name", store.name.as_str().into());
            table.insert(
                "backend",
                match &store.backend {
                    KeyValueBackend::Embedded => "embedded".into(),
                    KeyValueBackend::Redis(url) => url.as_str().into(),
                },
            );
            if let Some(secret) = &store.password {
                table.insert("password", secret.as_str().into());
            }
            table.insert("size", show_size(store.size_bytes).into());
            table
        })),
    ));
    out.push(volumes(spec));
    out.push(entry("outbound.allow", array(show_allowed(&spec.outbound))));
    out.push(entry("outbound.private", spec.outbound.private));
    out.push(entry("outbound.timeout", show_duration(spec.outbound.timeout)));
    out.push(entry("outbound.concurrent", i64::from(spec.outbound.concurrent)));
    out.push(entry(
        "outbound.credentials",
        array(spec.outbound.credentials.iter().map(|credential| {
            let mut table = InlineTable::new();
            table.insert("host", credential.host.as_str().into());
            table.insert("header", credential.header.as_str().into());
            table.insert("secret", credential.secret.as_str().into());
            table
        })),
    ));
    out.push(entry(
        "logs.level",
        match spec.logs.level {
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        },
    ));
    out.push(entry("logs.rate", format!("{}/s", spec.logs.lines_per_second)));
    out.push(entry("logs.keep", show_size(spec.logs.keep_bytes)));
    out.push(entry(
        "schedule",
        array(spec.schedules.iter().map(super::schedule::printed)),
    ));
    if let Some(job) = &spec.job {
        out.push(entry("job.completions", i64::from(job.completions)));
        out.push(entry("job.parallelism", i64::from(job.parallelism)));
        out.push(entry("job.retries", i64::from(job.retries)));
        out.push(entry("job.timeout", show_duration(job.timeout)));
        out.retain(|entry| !super::jobs::is_for_http(&entry.key()));
    }
    out
}

fn volumes(spec: &ServiceSpec) -> Entry {
    let tables = spec.volumes.iter().map(|volume| {
        let mut table = InlineTable::new();
        table.insert("name", volume.name.as_str().into());
        table.insert("mount", volume.mount.as_str().into());
        table.insert("size", show_size(volume.size_bytes).into());
        table.insert("read_only", volume.read_only.into());
        table
    });
    entry("volume", array(tables))
}

fn limits(spec: &ServiceSpec, out: &mut Vec<Entry>) {
    let l = &spec.limits;
    out.push(entry("limits.memory", show_size(l.memory_bytes)));
    out.push(entry("limits.timeout", show_duration(l.timeout)));
    out.push(entry("limits.cpu_time", show_duration(l.cpu_time)));
    out.push(entry("limits.start_time", show_duration(l.start_time)));
    out.push(entry("limits.concurrency", i64::from(l.concurrency)));
    out.push(entry("limits.queue", i64::from(l.queue)));
    out.push(entry("limits.queue_wait", show_duration(l.queue_wait)));
    out.push(entry("limits.body", show_size(l.body_bytes)));
    out.extend(
        l.requests_per_instance
            .map(|n| entry("limits.requests_per_instance", i64::from(n))),
    );
    out.extend(
        l.requests_at_once
            .map(|n| entry("limits.requests_at_once", i64::from(n))),
    );
    out.push(entry("limits.idle_instances", i64::from(l.idle_instances)));
}

fn traffic_and_probes(spec: &ServiceSpec, out: &mut Vec<Entry>) {
    out.push(entry("traffic.balance", "least-request"));
    out.push(entry("traffic.drain", show_duration(spec.traffic.drain)));
    super::rollout::print_pin(spec, &mut |path, value| out.push(entry(path, value)));
    out.push(entry(
        "traffic.retries.attempts",
        i64::from(spec.traffic.retry_attempts),
    ));
    out.push(entry(
        "traffic.outlier.consecutive_failures",
        i64::from(spec.traffic.consecutive_failures),
    ));
    out.push(entry("traffic.outlier.eject", show_duration(spec.traffic.eject)));
    out.push(entry("traffic.outlier.max_ejected", amount(spec.traffic.max_ejected)));
    let startup = &spec.startup;
    out.extend(startup.path.iter().map(|p| entry("probes.startup.path", p.as_str())));
    out.push(entry("probes.startup.interval", show_duration(startup.interval)));
    out.push(entry("probes.startup.timeout", show_duration(startup.timeout)));
    out.push(entry("probes.startup.failures", i64::from(startup.failures)));
    if let Some(readiness) = &spec.readiness {
        out.push(entry("probes.readiness.path", readiness.path.as_str()));
        out.push(entry("probes.readiness.interval", show_duration(readiness.interval)));
        out.push(entry("probes.readiness.timeout", show_duration(readiness.timeout)));
        out.push(entry("probes.readiness.failures", i64::from(readiness.failures)));
    }
    if let Some(liveness) = &spec.liveness {
        out.push(entry("probes.liveness.path", liveness.path.as_str()));
        out.push(entry("probes.liveness.interval", show_duration(liveness.interval)));
        out.push(entry("probes.liveness.timeout", show_duration(liveness.timeout)));
        out.push(entry("probes.liveness.failures", i64::from(liveness.failures)));
    }
}

fn amount(a: Amount) -> Value {
    match a {
        Amount::Count(n) => i64::from(n).into(),
        Amount::Percent(p) => format!("{p}%").into(),
    }
}

fn restart_and_rollout(spec: &ServiceSpec, out: &mut Vec<Entry>) {
    let restart = &spec.restart;
    out.push(entry(
        "restart.policy",
        match restart.policy {
            RestartPolicy::Always => "always",
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::Never => "never",
        },
    ));
    out.push(entry("restart.backoff.initial", show_duration(restart.initial)));
    out.push(entry("restart.backoff.max", show_duration(restart.max)));
    out.push(entry("restart.backoff.factor", milli(restart.factor_milli)));
    out.push(entry("restart.backoff.jitter", restart.jitter));
    out.push(entry("restart.give_up.restarts", i64::from(restart.give_up_restarts)));
    out.push(entry("restart.give_up.within", show_duration(restart.give_up_within)));
    let rollout = &spec.rollout;
    super::rollout::print(&spec.rollout, &mut |path, value| out.push(entry(path, value)));
    if rollout.strategy != Strategy::Recreate {
        out.push(entry("rollout.max_surge", amount(rollout.max_surge)));
        out.push(entry("rollout.max_unavailable", amount(rollout.max_unavailable)));
    }
    out.push(entry("rollout.min_healthy_time", show_duration(rollout.min_healthy)));
    out.push(entry(
        "rollout.progress_deadline",
        show_duration(rollout.progress_deadline),
    ));
    out.push(entry("rollout.auto_rollback", rollout.auto_rollback));
    out.push(entry(
        "rollout.capabilities",
        match rollout.capabilities {
            Wanting::Ask => "ask",
            Wanting::Allow => "allow",
        },
    ));
    out.push(entry("rollout.keep_revisions", i64::from(rollout.keep_revisions)));
}

fn autoscale(spec: &ServiceSpec, out: &mut Vec<Entry>) {
    let Some(a) = &spec.autoscale else { return };
    out.push(entry("autoscale.min", i64::from(a.min)));
    out.push(entry("autoscale.max", i64::from(a.max)));
    out.push(entry("autoscale.metric", a.metric.as_str()));
    out.push(entry("autoscale.target", amount(a.target)));
    out.push(entry("autoscale.panic_window", show_duration(a.panic_window)));
    out.push(entry("autoscale.up.step", amount(a.up.step)));
    out.push(entry("autoscale.up.window", show_duration(a.up.window)));
    out.push(entry("autoscale.down.step", amount(a.down.step)));
    out.push(entry("autoscale.down.window", show_duration(a.down.window)));
    // Read back it would warn where it means nothing.
    if a.min == 0 {
        out.push(entry("autoscale.idle", show_duration(a.idle)));
    }
}

/// A number of thousandths, written by its digits.
fn milli(n: u32) -> Value {
    show_milli(u64::from(n))
        .parse()
        .unwrap_or_else(|_| i64::from(n / 1000).into())
}

/// Every key of a node file in the order it is printed.
pub fn node_entries(config: &NodeConfig) -> Vec<Entry> {
    let mut out = Vec::new();
    out.extend(config.name.iter().map(|n| entry("node.name", n.as_str())));
    out.extend(config.data_dir.iter().map(|d| entry("node.data_dir", d.as_str())));
    out.extend(config.labels.iter().map(|(k, v)| Entry {
        path: vec!["node".into(), "labels".into(), k.clone()],
        value: v.as_str().into(),
    }));
    out.push(entry(
        "http.listen",
        array(config.http.listen.iter().map(ToString::to_string)),
    ));
    out.push(entry(
        "http.tls_listen",
        array(config.http.tls_listen.iter().map(ToString::to_string)),
    ));
    out.extend(
        config
            .http
            .max_connections
            .map(|n| entry("http.max_connections", i64::from(n))),
    );
    out.push(entry("http.header_timeout", show_duration(config.http.header_timeout)));
    out.push(entry("http.trusted_proxies", Value::Array(Array::new())));
    out.push(entry("http.access_log", "off"));
    out.push(entry("admin.socket", config.admin.socket.as_str()));
    out.push(entry(
        "admin.listen",
        config.admin.listen.map_or(String::new(), |a| a.to_string()),
    ));
    out.push(entry("admin.dashboard", false));
    out.push(entry("tls.mode", config.tls.mode.as_str()));
    let files = [
        ("tls.cert_file", &config.tls.cert_file),
        ("tls.key_file", &config.tls.key_file),
    ];
    out.extend(
        files
            .into_iter()
            .filter_map(|(key, file)| Some(entry(key, file.as_deref()?))),
    );
    let engine = &config.engine;
    out.push(entry("engine.profile", "auto"));
    out.push(entry(
        "engine.allocator",
        match engine.allocator {
            Allocator::Auto => "auto",
            Allocator::Pooling => "pooling",
            Allocator::OnDemand => "on-demand",
        },
    ));
    out.push(entry("engine.compiler", "cranelift"));
    out.push(entry("engine.compile_memory", show_size(engine.compile_memory_bytes)));
    out.push(entry("engine.compile_timeout", show_duration(engine.compile_timeout)));
    out.push(entry(
        "engine.memory_budget",
        match engine.memory_budget {
            Budget::Bytes(n) => show_size(n),
            Budget::Percent(p) => format!("{p}%"),
        },
    ));
    out.push(entry("engine.cache_size", show_size(engine.cache_size_bytes)));
    out.push(entry("policy.require_signature", false));
    out.push(entry("policy.allow_backends", array(["wasm"])));
    out.push(entry("policy.limits", "enforce"));
    out.push(entry("logs.target", "stderr"));
    out.push(entry("metrics.listen", ""));
    out.push(entry("metrics.otlp", ""));
    out
}

/// The whole service file, every default filled in. Reads back as the same spec.
pub fn effective(spec: &ServiceSpec) -> String {
    let mut doc = document(entries(spec));
    if !spec.is_job() && (spec.limits.requests_per_instance.is_none() || spec.limits.requests_at_once.is_none()) {
        let note = "# requests_per_instance, requests_at_once: 1 and 1 for wasi:http 0.2, 128 and 16 for 0.3\n";
        if let Some(mut key) = doc
            .get_mut("limits")
            .and_then(Item::as_table_mut)
            .and_then(|t| t.key_mut("idle_instances"))
        {
            key.leaf_decor_mut().set_prefix(note);
        }
    }
    text_of(&doc)
}

/// The whole node file, every default filled in. Reads back as the same configuration.
pub fn effective_node(config: &NodeConfig) -> String {
    text_of(&document(node_entries(config)))
}

fn text_of(doc: &DocumentMut) -> String {
    doc.to_string().trim_start().to_owned()
}

fn document(entries: Vec<Entry>) -> DocumentMut {
    let mut doc = DocumentMut::new();
    for Entry { path, value } in entries {
        let Some((last, tables)) = path.split_last() else {
            continue;
        };
        // A name is either a table or a value in the key tables, never both.
        if let Some(table) = descend(doc.as_table_mut(), tables) {
            table.insert(last, item(value));
        }
    }
    doc
}

fn descend<'t>(table: &'t mut Table, path: &[String]) -> Option<&'t mut Table> {
    let Some((name, rest)) = path.split_first() else {
        return Some(table);
    };
    let inner = table.entry(name).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    descend(inner.as_table_mut()?, rest)
}

/// Arrays of tables under their own headers.
fn item(value: Value) -> Item {
    match value {
        Value::Array(array) if !array.is_empty() && array.iter().all(Value::is_inline_table) => {
            let mut tables = ArrayOfTables::new();
            for value in array {
                if let Value::InlineTable(inline) = value {
                    let mut table = inline.into_table();
                    table.fmt();
                    tables.push(table);
                }
            }
            Item::ArrayOfTables(tables)
        }
        other => Item::Value(other),
    }
}

#[cfg(test)]
#[path = "tests/print.rs"]
mod tests;
