//! A service file as a [`ServiceSpec`]: what the keys mean together. The keys themselves are in `service_keys`.

use std::collections::BTreeMap;
use std::ops::Range;

use narae_runtime::Limits;

use super::autoscale;
use super::codes::Code;
use super::diagnostic::{Problem, Severity, Source};
use super::fields::Fields;
use super::jobs;
use super::read::{self, Reader};
use super::rollout;
use super::service_keys::SERVICE;
use super::volumes;
use super::{hosts, network};
use crate::model::service::{
    Amount, HostPattern, LivenessProbe, LogLevel, Logs, ReadinessProbe, Restart, RestartPolicy, Route, StartupProbe,
    Traffic, World,
};
use crate::model::{ReplicaCount, ServiceName, ServiceSpec};

/// A service file without mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    pub spec: ServiceSpec,
    /// In order of the file.
    pub warnings: Vec<Problem>,
}

/// Reads a service file. `file_name` is for messages only.
///
/// # Errors
/// Every mistake of the file (and its warnings), in the order of the file.
pub fn service(text: &str, file_name: &str) -> Result<Checked, Vec<Problem>> {
    service_of(text, file_name, None)
}

/// [`service`], for a module that is known: with world `auto` the file means what the module is.
///
/// # Errors
/// As [`service`].
pub fn service_of(text: &str, file_name: &str, module: Option<World>) -> Result<Checked, Vec<Problem>> {
    let source = Source::new(file_name, text);
    let (fields, mut reader) = read::read(&source, &SERVICE);
    let world = match fields.text("world") {
        "http" => World::Http,
        "command" => World::Command,
        _ if module == Some(World::Command) => World::Command,
        _ => World::Auto,
    };
    let routes = routes(&fields, &mut reader);
    dependencies(&fields, &mut reader);
    stores(&fields, &mut reader);
    network::check(&fields, &mut reader);
    super::secrets::mistakes(&fields, &mut reader);
    volumes::check(&fields, &mut reader);
    contradictions(&fields, &mut reader);
    rollout::contradictions(&fields, &mut reader);
    autoscale::check(&fields, &mut reader);
    let runs = if world == World::Auto {
        module.unwrap_or(world)
    } else {
        world
    };
    jobs::contradictions(&fields, runs, &mut reader);
    super::schedule::check(&fields, runs, &mut reader);
    let spec = build(&fields, world, routes);
    let problems = reader.finish();
    match spec {
        Some(spec) if problems.iter().all(|p| p.severity == Severity::Warning) => Ok(Checked {
            spec,
            warnings: problems,
        }),
        Some(_) => Err(problems),
        None if problems.is_empty() => Err(vec![
            Problem::new(Code::Syntax, "the service file could not be read").at(&source, 0..0),
        ]),
        None => Err(problems),
    }
}

fn routes(fields: &Fields, reader: &mut Reader) -> Vec<Route> {
    let short = fields
        .list("routes")
        .iter()
        .map(|i| (Route::of(HostPattern::Any, i.text.clone()), i.span.clone()));
    let long = fields.tables("route").iter().map(|t| {
        let host = t
            .opt_text("host")
            .and_then(|h| hosts::host_pattern(h).ok())
            .unwrap_or(HostPattern::Any);
        (
            Route {
                methods: t.list("methods").iter().map(|i| i.text.clone()).collect(),
                headers: t.map("headers"),
                query: t.map("query"),
                strip: t.bool("strip"),
                https_redirect: t.bool("https_redirect"),
                ..Route::of(host, t.text("path"))
            },
            t.span("path"),
        )
    });
    // By host and path: a file may hold thousands, few of them alike.
    type Alike = Vec<(Route, Range<usize>)>;
    let mut seen: BTreeMap<(HostPattern, String), Alike> = BTreeMap::new();
    let mut out = Vec::new();
    for (route, span) in short.chain(long) {
        let alike = seen.entry((route.host.clone(), route.path.clone())).or_default();
        match alike.iter().find(|(r, _)| r.clashes(&route)).map(|(_, span)| span) {
            // Lines are counted from the start of the text: only for problems that are shown.
            Some(first) if !reader.full() => {
                let source = reader.source.clone();
                let here = Problem::new(
                    Code::DuplicateRoute,
                    format!("route `{}` is there twice", show_route(&route)),
                );
                let line = here.clone().at(&source, first.clone()).position().map_or(0, |p| p.0);
                let help = format!("remove one of the two; the first is on line {line}");
                reader.push(here.at(&source, span).label("the same host and path again").help(help));
            }
            Some(_) => {}
            None => {
                alike.push((route.clone(), span));
                out.push(route);
            }
        }
    }
    out
}

/// `api.example.test/v1`, `/v1`.
pub fn show_route(route: &Route) -> String {
    format!("{}{}", hosts::show_host(&route.host), route.path)
}

fn dependencies(fields: &Fields, reader: &mut Reader) {
    let mut seen = std::collections::BTreeSet::new();
    for item in fields.list("depends_on") {
        let problem = if fields.opt_text("name") == Some(&item.text) {
            Problem::new(Code::BadDependency, format!("`{}` depends on itself", item.text))
                .label("its own name")
                .help("remove it")
        } else if !seen.insert(&item.text) {
            Problem::new(Code::BadDependency, format!("`{}` is in depends_on twice", item.text))
                .label("again")
                .help("remove one of the two")
        } else {
            continue;
        };
        reader.push(problem.at(&reader.source.clone(), item.span.clone()));
    }
}

fn stores(fields: &Fields, reader: &mut Reader) {
    let mut seen = std::collections::BTreeSet::new();
    for table in fields.tables("keyvalue") {
        if !seen.insert(table.text("name")) {
            let problem = Problem::new(
                Code::BadStoreName,
                format!("store `{}` is there twice", table.text("name")),
            )
            .label("the same name again")
            .help("give each [[keyvalue]] its own `name`");
            reader.push(problem.at(&reader.source.clone(), table.span("name")));
        }
    }
}

/// Settings that are fine alone and wrong together.
fn contradictions(fields: &Fields, reader: &mut Reader) {
    let source = reader.source.clone();
    let backoff = fields.sub("restart").sub("backoff");
    if backoff.duration("initial") > backoff.duration("max") {
        reader.push(
            Problem::new(
                Code::Contradiction,
                "`initial` in [restart.backoff] is longer than `max`",
            )
            .at(
                &source,
                backoff.span(if backoff.given("initial") { "initial" } else { "max" }),
            )
            .label("the first wait is the shortest")
            .help("make `initial` at most `max`"),
        );
    }
    let rollout = fields.sub("rollout");
    let zero = |key: &str| matches!(rollout.amount(key), Amount::Count(0) | Amount::Percent(0));
    if zero("max_surge") && zero("max_unavailable") && rollout.given("max_surge") {
        reader.push(
            Problem::new(
                Code::Contradiction,
                "`max_surge` and `max_unavailable` in [rollout] are both zero",
            )
            .at(&source, rollout.span("max_surge"))
            .label("no replica could ever be replaced")
            .help("write `max_surge = 1`, or `max_unavailable = 1`"),
        );
    }
    let limits = fields.sub("limits");
    if limits.given("cpu_time") && limits.duration("cpu_time") > limits.duration("timeout") {
        reader.push(
            Problem::warning(Code::NeverReached, "`cpu_time` in [limits] is longer than `timeout`")
                .at(&source, limits.span("cpu_time"))
                .label("the timeout comes first")
                .help("make `cpu_time` shorter than `timeout`"),
        );
    }
    let unreachable =
        fields.tables("route").is_empty() && fields.list("routes").is_empty() && fields.text("world") == "http";
    if unreachable {
        reader.push(
            Problem::warning(
                Code::NeverReached,
                "a service of world http without a route gets no request",
            )
            .at(&source, fields.span("world"))
            .label("no `routes` and no [[route]]")
            .help("add `routes = [\"/\"]`, or reach it with `narae call`"),
        );
    }
}

/// `None` only when a problem was reported.
fn build(f: &Fields, world: World, routes: Vec<Route>) -> Option<ServiceSpec> {
    let texts = |key: &str| f.list(key).iter().map(|i| i.text.clone()).collect::<Vec<_>>();
    Some(ServiceSpec {
        name: f.text("name").parse().ok()?,
        description: f.opt_text("description").map(str::to_owned),
        module: f.text("module").to_owned(),
        digest: match f.opt_text("digest") {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        },
        world,
        args: texts("args"),
        replicas: ReplicaCount::new(f.count("replicas"))?,
        depends_on: f
            .list("depends_on")
            .iter()
            .map(|i| i.text.parse::<ServiceName>().ok())
            .collect::<Option<_>>()?,
        labels: f.map("labels"),
        env: f.map("env"),
        config: f.map("config"),
        secrets: f.map("secrets"),
        limits: limits(f.sub("limits")),
        routes,
        traffic: traffic(f.sub("traffic")),
        startup: startup(f.sub("probes").sub("startup")),
        readiness: f
            .sub("probes")
            .given("readiness")
            .then(|| readiness(f.sub("probes").sub("readiness"))),
        liveness: f
            .sub("probes")
            .given("liveness")
            .then(|| liveness(f.sub("probes").sub("liveness"))),
        restart: jobs::restart(restart(f.sub("restart")), f, world),
        rollout: rollout::rollout(f.sub("rollout")),
        autoscale: f.given("autoscale").then(|| autoscale::build(f.sub("autoscale"))),
        keyvalue: f.tables("keyvalue").iter().map(network::store).collect(),
        volumes: volumes::build(f),
        outbound: network::outbound(f.sub("outbound")),
        logs: logs(f.sub("logs")),
        schedules: super::schedule::schedules(f)?,
        job: (world == World::Command).then(|| jobs::job(f.sub("job"))),
    })
}

fn limits(f: &Fields) -> Limits {
    Limits {
        memory_bytes: f.bytes("memory"),
        timeout: f.duration("timeout"),
        cpu_time: f.duration("cpu_time"),
        start_time: f.duration("start_time"),
        concurrency: f.count("concurrency"),
        queue: f.count("queue"),
        queue_wait: f.duration("queue_wait"),
        body_bytes: f.bytes("body"),
        requests_per_instance: f.opt_count("requests_per_instance"),
        requests_at_once: f.opt_count("requests_at_once"),
        idle_instances: f.count("idle_instances"),
    }
}

fn traffic(f: &Fields) -> Traffic {
    Traffic {
        retry_attempts: f.sub("retries").count("attempts"),
        consecutive_failures: f.sub("outlier").count("consecutive_failures"),
        eject: f.sub("outlier").duration("eject"),
        max_ejected: f.sub("outlier").amount("max_ejected"),
        drain: f.duration("drain"),
        pin: rollout::pin(f),
    }
}

fn startup(f: &Fields) -> StartupProbe {
    StartupProbe {
        path: f.opt_text("path").map(str::to_owned),
        interval: f.duration("interval"),
        timeout: f.duration("timeout"),
        failures: f.count("failures"),
    }
}

fn readiness(f: &Fields) -> ReadinessProbe {
    ReadinessProbe {
        path: f.text("path").to_owned(),
        interval: f.duration("interval"),
        timeout: f.duration("timeout"),
        failures: f.count("failures"),
    }
}

fn liveness(f: &Fields) -> LivenessProbe {
    LivenessProbe {
        path: f.text("path").to_owned(),
        interval: f.duration("interval"),
        timeout: f.duration("timeout"),
        failures: f.count("failures"),
    }
}

fn restart(f: &Fields) -> Restart {
    let (backoff, give_up) = (f.sub("backoff"), f.sub("give_up"));
    Restart {
        policy: match f.text("policy") {
            "on-failure" => RestartPolicy::OnFailure,
            "never" => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        },
        initial: backoff.duration("initial"),
        max: backoff.duration("max"),
        factor_milli: backoff.count("factor"),
        jitter: backoff.bool("jitter"),
        give_up_restarts: give_up.count("restarts"),
        give_up_within: give_up.duration("within"),
    }
}

fn logs(f: &Fields) -> Logs {
    Logs {
        level: match f.text("level") {
            "debug" => LogLevel::Debug,
            "warn" => LogLevel::Warn,
            "error" => LogLevel::Error,
            _ => LogLevel::Info,
        },
        lines_per_second: f.count("rate"),
        keep_bytes: f.bytes("keep"),
    }
}

#[cfg(test)]
#[path = "tests/service.rs"]
pub(in crate::config) mod tests;
