//! Verbs that look at services: list, status, inspect.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::client::Client;
use super::codes;
use super::deploy::SpecText;
use super::exit::Exit;
use super::jobs;
use super::observe;
use super::report::Failure;
use super::session::{Format, Session, now};
use super::table::{Text, or_dash, pairs, render, state};
use super::units::{age, age_of, latency, short, size};
use crate::model::ServiceName;
use crate::model::views::{List, ReplicaView, RevisionView, ServiceStatus, ServiceView};

/// `list --watch` looks again after this.
const WATCH: Duration = Duration::from_secs(1);
/// Said in place of an empty table.
const EMPTY: &str = "no services yet; try `narae run app.wasm`, or `narae deploy FILE`";

/// `narae list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Also services that are being deleted
    #[arg(short, long)]
    pub all: bool,
    /// Print it again every second
    #[arg(long)]
    pub watch: bool,
    /// What to order by
    #[arg(long, value_name = "COLUMN", default_value = "name")]
    pub sort: Sort,
    /// Only services with state=STATE, name=NAME or label.KEY=VALUE; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = filter)]
    pub filter: Vec<Filter>,
}

/// `narae status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    pub name: ServiceName,
}

/// `narae inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    pub name: ServiceName,
    /// A revision other than the wanted one
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Only the service file, as it was sent
    #[arg(long, conflicts_with = "effective")]
    pub spec: bool,
    /// Only the service file, with every default filled in
    #[arg(long)]
    pub effective: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    Name,
    State,
    Age,
    Rps,
    P99,
    Mem,
    Replicas,
    Restarts,
}

/// One condition of `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    State(String),
    Name(String),
    Label(String, String),
}

fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, as state=failed")?;
    let value = value.to_owned();
    match key {
        "state" => Ok(Filter::State(value)),
        "name" => Ok(Filter::Name(value)),
        _ => match key.strip_prefix("label.") {
            Some(label) if !label.is_empty() => Ok(Filter::Label(label.to_owned(), value)),
            _ => Err(format!(
                "`{key}` is no key to filter by; keys are state, name and label.KEY"
            )),
        },
    }
}

impl Filter {
    fn takes(&self, service: &ServiceView) -> bool {
        match self {
            Self::State(state) => service.state == *state,
            Self::Name(name) => service.name == *name,
            Self::Label(key, value) => service.labels.get(key) == Some(value),
        }
    }
}

/// The URL path of a service's part.
pub fn path(name: &ServiceName, part: &str) -> String {
    format!("/v1/services/{name}/{part}")
}

/// Lists services.
///
/// # Errors
/// The daemon is gone.
pub async fn list(session: &Session, args: ListArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    if !args.watch {
        return show_list(session, &client, &args).await.map(|()| Exit::Done);
    }
    let clear = std::io::IsTerminal::is_terminal(&std::io::stdout()) && !session.format.is_json();
    loop {
        if clear {
            session.raw(b"\x1b[H\x1b[J")?;
        }
        show_list(session, &client, &args).await?;
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
    }
}

async fn show_list(session: &Session, client: &Client, args: &ListArgs) -> Result<(), Failure> {
    let all: List<ServiceView> = client.get("/v1/services").await?;
    let none = all.items.is_empty();
    let items = pick(all.items, args);
    let empty = if none {
        EMPTY
    } else {
        "no service fits; `narae list -a` shows all"
    };
    if session.globals.quiet && !session.format.is_json() {
        return items.iter().try_for_each(|s| session.print(&format!("{}\n", s.name)));
    }
    let at = now();
    session.items(
        &items,
        empty,
        |s| s.name.clone(),
        |items, wide| list_table(items, wide, at),
    )
}

fn pick(mut items: Vec<ServiceView>, args: &ListArgs) -> Vec<ServiceView> {
    items.retain(|s| (args.all || s.state != "deleting") && args.filter.iter().all(|f| f.takes(s)));
    // Large first, absent last.
    let down = |a: Option<f64>, b: Option<f64>| b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0));
    items.sort_by(|a, b| a.name.cmp(&b.name));
    match args.sort {
        Sort::Name => {}
        Sort::State => items.sort_by(|a, b| a.state.cmp(&b.state)),
        Sort::Age => items.sort_by(|a, b| b.created_at.cmp(&a.created_at)),
        Sort::Rps => items.sort_by(|a, b| down(Some(a.requests_per_second), Some(b.requests_per_second))),
        Sort::P99 => items.sort_by(|a, b| down(a.p99_ms, b.p99_ms)),
        Sort::Mem => items.sort_by_key(|s| std::cmp::Reverse(s.memory_bytes)),
        Sort::Replicas => items.sort_by_key(|s| std::cmp::Reverse(s.replicas_serving)),
        Sort::Restarts => items.sort_by_key(|s| std::cmp::Reverse(s.restarts)),
    }
    items
}

fn list_table(items: &[ServiceView], wide: bool, at: jiff::Timestamp) -> String {
    let mut headings = vec![
        "SERVICE", "REV>", "REPLICAS", "STATE", "ROUTES", "RPS", "P99", "MEM", "AGE",
    ];
    if wide {
        headings.extend([
            "STABLE>",
            "P50",
            "IN-FLIGHT>",
            "QUEUED>",
            "RESTARTS>",
            "LABELS",
            "REASON",
        ]);
    }
    let rows = items.iter().map(|s| {
        let idle = s.replicas_serving == 0;
        let mut row: Vec<Text> = vec![
            s.name.clone().into(),
            s.revision.to_string().into(),
            replicas(s).into(),
            state(&s.state),
            or_dash(Some(routes(s, at))),
            or_dash((!idle).then(|| short(s.requests_per_second))),
            or_dash(s.p99_ms.map(latency)),
            or_dash((!idle).then(|| size(s.memory_bytes))),
            age_of(&s.created_at, at).into(),
        ];
        if wide {
            let labels: Vec<String> = s.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            row.extend([
                or_dash(s.stable.map(|n| n.to_string())),
                or_dash(s.p50_ms.map(latency)),
                s.in_flight.to_string().into(),
                s.queued.to_string().into(),
                s.restarts.to_string().into(),
                or_dash(Some(labels.join(","))),
                or_dash(s.reason.clone()),
            ]);
        }
        row
    });
    render(&headings, rows.collect())
}

/// Its routes; of one without replicas, when that changes.
fn routes(s: &ServiceView, at: jiff::Timestamp) -> String {
    match &s.next_schedule {
        Some(next) if s.state == "scheduled" => {
            format!("next {}", super::schedule::short(&next.at, &next.timezone, at))
        }
        _ => s.routes.join(","),
    }
}

/// `4/4 (+2)`: serving of wanted, and those beyond.
fn replicas(s: &ServiceView) -> String {
    let extra = if s.replicas_extra > 0 {
        format!(" (+{})", s.replicas_extra)
    } else {
        String::new()
    };
    format!("{}/{}{extra}", s.replicas_serving, s.replicas_wanted)
}

/// Shows one service: exit 3 when it is not healthy.
///
/// # Errors
/// No such service (4), or the daemon is gone.
pub async fn status(session: &Session, args: StatusArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let status: ServiceStatus = client.get(&path(&args.name, "status")).await?;
    match session.format {
        Format::Json | Format::JsonLines => session.json(&status)?,
        Format::Name => session.print(&format!("{}\n", status.service.name))?,
        Format::Table | Format::Wide => session.print(&status_text(&status, session.format == Format::Wide, now()))?,
    }
    Ok(verdict(&status.service))
}

fn verdict(service: &ServiceView) -> Exit {
    if service.state == "healthy" || jobs::is_well(&service.state) {
        Exit::Done
    } else {
        Exit::NotHealthy
    }
}

fn status_text(status: &ServiceStatus, wide: bool, at: jiff::Timestamp) -> String {
    let s = &status.service;
    let mut top: Vec<(&str, Text)> = vec![("service", s.name.clone().into()), ("state", state(&s.state))];
    if let Some(reason) = &s.reason {
        top.push(("reason", reason.clone().into()));
    }
    let stable = match s.stable {
        Some(stable) if stable != s.revision => format!("{} (stable: {stable})", s.revision),
        _ => s.revision.to_string(),
    };
    top.push(("revision", stable.into()));
    top.push(("replicas", replicas(s).into()));
    if let Some(next) = &s.next_schedule {
        let local = super::schedule::local(&next.at, &next.timezone);
        top.push(("next", format!("{} at {local}", next.schedule).into()));
    }
    if let Some(autoscale) = &s.autoscale {
        top.push((
            "autoscale",
            format!("{}; {}", autoscale.summary, autoscale.cause).into(),
        ));
    }
    if !is_job(status) {
        traffic(s, &mut top);
    }
    top.push(("memory", size(s.memory_bytes).into()));
    top.push((
        "age",
        format!(
            "{}, changed {} ago",
            age_of(&s.created_at, at),
            age_of(&s.changed_at, at)
        )
        .into(),
    ));
    let mut out = pairs(&top);
    if let Some(rollout) = status.rollout.as_ref().filter(|r| r.state != "done") {
        out.push_str(&format!("\n{}", super::rollout::summary(rollout)));
    }
    if !status.replicas.is_empty() {
        out.push('\n');
        out.push_str(&replica_table(&status.replicas, wide));
    }
    if !status.runs.is_empty() {
        out.push('\n');
        out.push_str(&jobs::tables(&status.runs, at));
    }
    if !status.events.is_empty() {
        out.push_str("\nlast events\n");
        out.extend(
            last(&status.events)
                .iter()
                .map(|e| format!("  {}\n", observe::event_line(e))),
        );
    }
    if !status.logs.is_empty() {
        out.push_str("\nlast log lines\n");
        out.extend(
            last(&status.logs)
                .iter()
                .map(|l| format!("  {}\n", observe::log_line(l, true))),
        );
    }
    out
}

/// Routes and rates, of what answers requests.
fn traffic(s: &ServiceView, top: &mut Vec<(&str, Text)>) {
    top.push(("routes", or_dash(Some(s.routes.join(", ")))));
    let p50 = s.p50_ms.map_or_else(|| "-".into(), latency);
    let p99 = s.p99_ms.map_or_else(|| "-".into(), latency);
    let traffic = format!(
        "{}/s, p50 {p50}, p99 {p99}, {} in flight, {} queued",
        short(s.requests_per_second),
        s.in_flight,
        s.queued
    );
    top.push(("traffic", traffic.into()));
}

/// It has runs, or a state that only a command has.
fn is_job(status: &ServiceStatus) -> bool {
    !status.runs.is_empty() || jobs::is_well(&status.service.state)
}

/// Ten, as systemctl does.
fn last<T>(items: &[T]) -> &[T] {
    &items[items.len().saturating_sub(10)..]
}

fn replica_table(replicas: &[ReplicaView], wide: bool) -> String {
    let mut headings = vec![
        "REPLICA",
        "REV>",
        "PHASE",
        "SINCE",
        "IN-FLIGHT>",
        "CALLS>",
        "TRAPS>",
        "RESTARTS>",
        "CPU",
        "MEM",
    ];
    if wide {
        headings.push("IDLE>");
    }
    headings.push("REASON");
    let rows = replicas.iter().map(|r| {
        let mut row: Vec<Text> = vec![
            r.id.clone().into(),
            r.revision.to_string().into(),
            state(if r.ejected { "ejected" } else { &r.phase }),
            age(Duration::from_millis(r.since_ms)).into(),
            r.in_flight.to_string().into(),
            r.calls.to_string().into(),
            r.traps.to_string().into(),
            r.restarts.to_string().into(),
            cpu(r.cpu_ms).into(),
            size(r.memory_bytes).into(),
        ];
        if wide {
            row.push(r.idle_instances.to_string().into());
        }
        row.push(or_dash(r.reason.clone()));
        row
    });
    render(&headings, rows.collect())
}

/// Processor time: `840ms`, then as an age.
fn cpu(ms: u64) -> String {
    if ms < 1_000 {
        format!("{ms}ms")
    } else {
        age(Duration::from_millis(ms))
    }
}

/// Shows everything about a service, or the file of a revision.
///
/// # Errors
/// No such service or revision (4), or the daemon is gone.
pub async fn inspect(session: &Session, args: InspectArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let spec = SpecText::fetch(&client, args.name.as_str(), args.revision, args.effective).await?;
    if args.spec || args.effective {
        match session.format {
            Format::Json | Format::JsonLines => session.json(&spec)?,
            _ => session.print(&ended(&spec.toml))?,
        }
        return Ok(Exit::Done);
    }
    let status: ServiceStatus = client.get(&path(&args.name, "status")).await?;
    let revisions: List<RevisionView> = client.get(&path(&args.name, "revisions")).await?;
    let Some(revision) = revisions.items.into_iter().find(|r| r.revision == spec.revision) else {
        return Err(Failure::new(
            Exit::Unknown,
            codes::UNKNOWN_REVISION,
            format!("{} has no revision {}", args.name, spec.revision),
        )
        .help(format!("see `narae rollout history {}`", args.name)));
    };
    if session.format.is_json() {
        session.json(&json!({ "schema": 1, "service": status.service, "revision": revision, "toml": spec.toml }))?;
        return Ok(Exit::Done);
    }
    session.print(&inspect_text(&status.service, &revision, &spec, now()))?;
    Ok(Exit::Done)
}

fn inspect_text(s: &ServiceView, r: &RevisionView, spec: &SpecText, at: jiff::Timestamp) -> String {
    let mut top: Vec<(&str, Text)> = vec![
        ("service", s.name.clone().into()),
        ("state", state(&s.state)),
        ("wanted", s.revision.to_string().into()),
        ("stable", or_dash(s.stable.map(|n| n.to_string()))),
        ("revision", r.revision.to_string().into()),
        ("module", r.digest.clone().into()),
        ("kind", r.kind.clone().into()),
        ("proof", state(&r.state)),
    ];
    if let Some(reason) = &r.reason {
        top.push(("reason", reason.clone().into()));
    }
    top.push(("cause", r.cause.clone().into()));
    top.push((
        "created",
        format!("{} ({} ago)", r.created_at, age_of(&r.created_at, at)).into(),
    ));
    format!("{}\n{}", pairs(&top), ended(&spec.toml))
}

fn ended(text: &str) -> String {
    if text.ends_with('\n') {
        text.to_owned()
    } else {
        format!("{text}\n")
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::views::{EventView, LogView, RolloutView};

    pub fn sample(name: &str, state: &str) -> ServiceView {
        ServiceView {
            name: name.into(),
            revision: 7,
            stable: Some(7),
            state: state.into(),
            reason: None,
            replicas_wanted: 3,
            replicas_serving: 3,
            replicas_extra: 0,
            routes: vec!["/hello".into()],
            requests_per_second: 812.0,
            p50_ms: Some(0.9),
            p99_ms: Some(2.1),
            memory_bytes: 6_081_740,
            in_flight: 2,
            queued: 0,
            restarts: 0,
            created_at: "2026-11-22T01:00:00.000Z".into(),
            changed_at: "2026-11-24T04:50:00.000Z".into(),
            labels: [("team".to_owned(), "shop".to_owned())].into(),
            next_schedule: None,
            autoscale: None,
        }
    }

    pub fn at() -> jiff::Timestamp {
        "2026-11-24T05:00:00Z".parse().unwrap()
    }

    fn samples() -> Vec<ServiceView> {
        let orders = ServiceView {
            revision: 12,
            stable: Some(11),
            replicas_wanted: 4,
            replicas_serving: 4,
            replicas_extra: 2,
            routes: vec!["api.test/v1".into()],
            requests_per_second: 96.4,
            p99_ms: Some(18.0),
            memory_bytes: 42_991_616,
            created_at: "2026-11-24T04:54:00.000Z".into(),
            reason: Some("revision 12 is being rolled out".into()),
            ..sample("orders", "rolling")
        };
        let report = ServiceView {
            stable: None,
            replicas_wanted: 0,
            replicas_serving: 0,
            routes: vec![],
            requests_per_second: 0.0,
            p50_ms: None,
            p99_ms: None,
            labels: Default::default(),
            ..sample("report", "stopped")
        };
        vec![orders, report, sample("hello", "healthy")]
    }

    fn status_sample() -> ServiceStatus {
        ServiceStatus {
            schema: 1,
            service: ServiceView {
                reason: Some("r3 is in crash-loop".into()),
                ..sample("hello", "degraded")
            },
            runs: vec![],
            replicas: vec![ReplicaView {
                id: "r3".into(),
                revision: 7,
                phase: "serving".into(),
                since_ms: 192_000,
                in_flight: 1,
                restarts: 2,
                calls: 9_000,
                traps: 1,
                cpu_ms: 840,
                memory_bytes: 2_097_152,
                idle_instances: 4,
                ejected: false,
                reason: Some("start trapped: unreachable".into()),
            }],
            rollout: Some(RolloutView {
                schema: 1,
                service: "hello".into(),
                from: Some(6),
                to: 7,
                state: "done".into(),
                reason: None,
                notes: vec![],
                old_serving: 0,
                new_serving: 3,
                wanted: 3,
                ..RolloutView::default()
            }),
            events: vec![EventView {
                seq: 4,
                at: "2026-11-24T04:59:31.250Z".into(),
                kind: "trap".into(),
                service: Some("hello".into()),
                revision: Some(7),
                replica: Some("r3".into()),
                message: "wasm trap: unreachable".into(),
                limit: None,
                backtrace: vec!["hello!crash".into()],
            }],
            logs: vec![LogView {
                at: "2026-11-24T04:59:31.000Z".into(),
                service: "hello".into(),
                revision: 7,
                replica: "r3".into(),
                stream: "stderr".into(),
                level: "error".into(),
                line: "about to \u{1b}[2Jcrash".into(),
            }],
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn args(sort: Sort, filter: Vec<Filter>) -> ListArgs {
        ListArgs {
            all: false,
            watch: false,
            sort,
            filter,
        }
    }

    #[test]
    fn the_list_is_a_table_without_borders() {
        let items = pick(samples(), &args(Sort::Name, vec![]));
        insta::assert_snapshot!("list_table", plain(&list_table(&items, false, at())));
        insta::assert_snapshot!("list_wide", plain(&list_table(&items, true, at())));
    }

    #[test]
    fn the_list_as_json_is_a_contract() {
        insta::assert_json_snapshot!("list_json", List::of(samples()));
    }

    #[test]
    fn the_status_as_json_is_a_contract() {
        insta::assert_json_snapshot!("status_json", status_sample());
    }

    #[test]
    fn the_status_shows_why_and_the_last_words() {
        insta::assert_snapshot!("status_text", plain(&status_text(&status_sample(), false, at())));
    }

    #[test]
    fn only_healthy_ends_0() {
        assert_eq!(verdict(&sample("a", "healthy")), Exit::Done);
        for state in [
            "starting",
            "rolling",
            "degraded",
            "crash-loop",
            "failed",
            "stopped",
            "deleting",
            "?",
        ] {
            assert_eq!(verdict(&sample("a", state)), Exit::NotHealthy, "{state}");
        }
    }

    #[test]
    fn filters_and_orders_are_as_named() {
        let names = |args: &ListArgs| pick(samples(), args).into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(&args(Sort::Rps, vec![])), ["hello", "orders", "report"]);
        assert_eq!(names(&args(Sort::P99, vec![])), ["orders", "hello", "report"]);
        assert_eq!(names(&args(Sort::Age, vec![])), ["orders", "hello", "report"]);
        assert_eq!(
            names(&args(Sort::Name, vec![filter("state=stopped").unwrap()])),
            ["report"]
        );
        assert_eq!(
            names(&args(Sort::Name, vec![filter("label.team=shop").unwrap()])),
            ["hello", "orders"]
        );
        assert!(filter("failed").is_err() && filter("colour=red").is_err());
    }

    #[test]
    fn a_service_that_is_being_deleted_is_shown_with_all() {
        let items = vec![sample("gone", "deleting")];
        assert!(pick(items.clone(), &args(Sort::Name, vec![])).is_empty());
        assert_eq!(
            pick(
                items,
                &ListArgs {
                    all: true,
                    ..args(Sort::Name, vec![])
                }
            )
            .len(),
            1
        );
    }

    #[test]
    fn a_revision_is_shown_with_its_file() {
        let revision = RevisionView {
            revision: 7,
            digest: format!("sha256:{}", "ab".repeat(32)),
            kind: "http02".into(),
            state: "proved".into(),
            stable: true,
            wanted: true,
            cause: "deploy".into(),
            accepted_by: None,
            reason: None,
            created_at: "2026-11-24T04:50:00.000Z".into(),
        };
        let spec = SpecText {
            schema: 1,
            revision: 7,
            toml: "name = \"hello\"".into(),
        };
        insta::assert_snapshot!(
            "inspect_text",
            plain(&inspect_text(&sample("hello", "healthy"), &revision, &spec, at()))
        );
    }
}
