//! Looking: health, node, metrics, logs, events, configuration.

use std::sync::Arc;

use axum::Json;
use axum::body::Body as AxumBody;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use narae_runtime::Kind;
use serde::{Deserialize, Serialize};

use super::answer::{Query, Refused};
use super::{Api, services};
use crate::events::{self, EventQuery};
use crate::logs::{Followed, LogQuery};
use crate::model::service::LogLevel;
use crate::model::views::{EventView, LogView, NodeView};
use crate::model::{Phase, ReplicaId, RevisionNumber, ServiceName, Timestamp};

pub async fn healthz() -> &'static str {
    "ok\n"
}

pub async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    api.agent.measure();
    api.metrics
        .node()
        .set_memory(api.settings.memory_budget_bytes, api.settings.memory_used());
    let (compiled, loaded) = api.settings.code();
    api.metrics.node().set_code(compiled, loaded);
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        api.metrics.encode(),
    )
}

pub async fn node(State(api): State<Arc<Api>>) -> Json<NodeView> {
    let settings = &api.settings;
    let replicas = api.agent.replicas();
    let serving = replicas
        .iter()
        .filter(|r| matches!(r.phase, Phase::Serving { .. }))
        .count();
    Json(NodeView {
        schema: 1,
        name: settings.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        http: settings
            .http
            .get()
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect(),
        admin: settings.admin.map(|a| a.to_string()),
        allocator: settings.allocator.clone(),
        memory_budget_bytes: settings.memory_budget_bytes,
        memory_used_bytes: settings.memory_used(),
        uptime_ms: api.clock.monotonic().0,
        services: api.controller.desired().services.len() as u64,
        replicas_serving: serving as u64,
    })
}

/// `http-0.2`, `command-core`, …
pub fn kind_name(kind: Kind) -> String {
    match kind {
        Kind::Http02 => "http-0.2",
        Kind::Http03 => "http-0.3",
        Kind::Command02 => "command-0.2",
        Kind::Command03 => "command-0.3",
        Kind::CommandCore => "command-core",
    }
    .into()
}

#[derive(Deserialize)]
pub struct LogsQuery {
    tail: Option<usize>,
    since_ms: Option<i64>,
    until_ms: Option<i64>,
    replica: Option<String>,
    revision: Option<u64>,
    level: Option<LogLevel>,
    grep: Option<String>,
    #[serde(default)]
    follow: bool,
}

pub async fn logs(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Query(q): Query<LogsQuery>,
) -> Result<Response, Refused> {
    let service = services::find(&api, &name).await?;
    let replica = q.replica.map(|r| r.parse::<ReplicaId>()).transpose();
    let query = LogQuery {
        tail: q.tail,
        since: q.since_ms.map(Timestamp),
        until: q.until_ms.map(Timestamp),
        replica: replica.map_err(|_| Refused::bad_request("replica: expected something like r17"))?,
        revision: q.revision.map(RevisionNumber),
        level: q.level,
        grep: q.grep,
    };
    let name = service.record.name;
    let Some(ring) = api.logs.find(&name) else {
        return Ok(lines(futures::stream::empty::<LogView>()));
    };
    if q.follow {
        let (past, live) = ring.follow(query);
        let all = futures::stream::iter(past).chain(live.filter_map(|f| std::future::ready(item(f))));
        Ok(lines(all.map(move |entry| entry.view(&name))))
    } else {
        let found: Vec<LogView> = ring.query(&query).iter().map(|e| e.view(&name)).collect();
        Ok(lines(futures::stream::iter(found)))
    }
}

/// A follower that was too slow misses what it missed; it is not cut off.
fn item<T>(followed: Followed<T>) -> Option<T> {
    match followed {
        Followed::New(item) => Some(item),
        Followed::Missed(_) => None,
    }
}

#[derive(Deserialize)]
pub struct EventsQuery {
    since_ms: Option<i64>,
    service: Option<String>,
    kind: Option<crate::model::EventKind>,
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

pub async fn event_lines(State(api): State<Arc<Api>>, Query(q): Query<EventsQuery>) -> Result<Response, Refused> {
    let service = q.service.as_deref().map(services::name_of).transpose()?;
    let since = q.since_ms.map(Timestamp);
    let query = EventQuery {
        since,
        service,
        kind: q.kind,
        tail: q.tail,
        ..EventQuery::default()
    };
    if q.follow {
        let (past, live) = api.events.follow(query);
        let all = futures::stream::iter(past).chain(live.filter_map(|f| std::future::ready(item(f))));
        Ok(lines(all.map(|e| events::view(&e))))
    } else {
        let found: Vec<EventView> = api.events.query(&query).iter().map(|e| events::view(e)).collect();
        Ok(lines(futures::stream::iter(found)))
    }
}

pub fn last_events(api: &Api, service: &ServiceName, count: usize) -> Vec<EventView> {
    let query = EventQuery {
        service: Some(service.clone()),
        tail: Some(count),
        ..EventQuery::default()
    };
    api.events.query(&query).iter().map(|e| events::view(e)).collect()
}

pub fn last_logs(api: &Api, service: &ServiceName, count: usize) -> Vec<LogView> {
    let query = LogQuery {
        tail: Some(count),
        ..LogQuery::default()
    };
    let found = api
        .logs
        .find(service)
        .map(|ring| ring.query(&query))
        .unwrap_or_default();
    found.iter().map(|e| e.view(service)).collect()
}

/// JSON Lines, as they come.
fn lines<T: Serialize + 'static>(items: impl futures::Stream<Item = T> + Send + 'static) -> Response {
    let text = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    });
    (
        [(header::CONTENT_TYPE, "application/jsonl")],
        AxumBody::from_stream(text),
    )
        .into_response()
}

#[derive(Serialize)]
pub struct ConfigAnswer {
    schema: u32,
    toml: String,
    origins: Vec<OriginView>,
}

#[derive(Serialize)]
pub struct OriginView {
    key: String,
    value: String,
    from: String,
}

pub async fn config(State(api): State<Arc<Api>>) -> Json<ConfigAnswer> {
    let (toml, origins) = api.settings.show();
    let origins = origins
        .into_iter()
        .map(|o| OriginView {
            key: o.key,
            value: o.value,
            from: o.from,
        })
        .collect();
    Json(ConfigAnswer {
        schema: 1,
        toml,
        origins,
    })
}

#[derive(Serialize)]
pub struct Reloaded {
    schema: u32,
    changed: Vec<String>,
    needs_restart: Vec<String>,
}

pub async fn reload(State(api): State<Arc<Api>>) -> Result<Json<Reloaded>, Refused> {
    let (changed, needs_restart) = api.settings.reload().map_err(|p| Refused::problems(&p))?;
    Ok(Json(Reloaded {
        schema: 1,
        changed,
        needs_restart,
    }))
}
