//! The OpenAPI 3.1 document, made from one table of the routes and the JSON schemas of the views.

use axum::Json;
use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::model::views;

/// Method, path, summary, name of the request's schema, name of the answer's.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    Option<&'static str>,
);

/// Every route of `super::router`.
pub const ROUTES: &[Row] = &[
    (
        "get",
        "/healthz",
        "200 while the daemon lives; needs no token",
        None,
        None,
    ),
    ("get", "/metrics", "OpenMetrics text", None, None),
    ("get", "/v1/metrics", "OpenMetrics text", None, None),
    ("get", "/v1/openapi.json", "this document", None, None),
    (
        "get",
        "/v1/node",
        "the node: addresses, allocator, memory",
        None,
        Some("NodeView"),
    ),
    ("get", "/v1/services", "all services", None, Some("ServiceList")),
    (
        "put",
        "/v1/services/{name}",
        "deploy: checked, committed and synced before the answer",
        Some("DeployRequest"),
        Some("DeployAnswer"),
    ),
    (
        "delete",
        "/v1/services/{name}",
        "drain and forget; ?grace_ms=N instead of the file's drain",
        None,
        None,
    ),
    (
        "get",
        "/v1/services/{name}/status",
        "one service with replicas, events and logs",
        None,
        Some("ServiceStatus"),
    ),
    (
        "get",
        "/v1/services/{name}/spec",
        "the service file; ?revision=N&effective=true",
        None,
        None,
    ),
    (
        "post",
        "/v1/services/{name}/scale",
        "{\"replicas\": n} or {\"delta\": n}",
        None,
        Some("ServiceView"),
    ),
    (
        "post",
        "/v1/services/{name}/restart",
        "replace every replica, new beside old; {\"grace_ms\": n} or {}",
        None,
        Some("ServiceView"),
    ),
    (
        "post",
        "/v1/services/{name}/start",
        "undo stop",
        None,
        Some("ServiceView"),
    ),
    (
        "post",
        "/v1/services/{name}/stop",
        "drain all replicas; routes answer 503; {\"grace_ms\": n} or {}",
        None,
        Some("ServiceView"),
    ),
    (
        "get",
        "/v1/services/{name}/rollout",
        "the last change of revision",
        None,
        Some("RolloutView"),
    ),
    (
        "post",
        "/v1/services/{name}/rollout/{verb}",
        "pause, resume, promote or abort the rollout that is under way",
        None,
        Some("RolloutView"),
    ),
    (
        "get",
        "/v1/services/{name}/revisions",
        "the kept revisions",
        None,
        Some("RevisionList"),
    ),
    (
        "post",
        "/v1/services/{name}/undo",
        "{\"to\": n}: back to a kept revision; to the stable one at once, while another is on trial",
        None,
        Some("DeployAnswer"),
    ),
    (
        "get",
        "/v1/services/{name}/runs",
        "the kept runs of a command",
        None,
        Some("RunList"),
    ),
    (
        "post",
        "/v1/services/{name}/runs",
        "begin a run; {\"args\": […]} instead of the file's",
        None,
        Some("RunView"),
    ),
    (
        "delete",
        "/v1/services/{name}/runs/{id}",
        "end a run: its attempts are killed",
        None,
        None,
    ),
    (
        "get",
        "/v1/services/{name}/logs",
        "JSON Lines; ?follow=true&tail=&since_ms=&level=&grep=…",
        None,
        Some("LogView"),
    ),
    (
        "get",
        "/v1/services/{name}/call/{path}",
        "a request into the service, any method",
        None,
        None,
    ),
    (
        "get",
        "/v1/schedules",
        "schedules of all services; ?next=N times to come",
        None,
        Some("ScheduleList"),
    ),
    (
        "get",
        "/v1/services/{name}/schedules",
        "schedules of one service; ?next=N times to come",
        None,
        Some("ScheduleList"),
    ),
    (
        "get",
        "/v1/services/{name}/schedules/{schedule}/history",
        "how it went, the oldest first",
        None,
        Some("FiringList"),
    ),
    (
        "post",
        "/v1/services/{name}/schedules/{schedule}/run",
        "do now what it says",
        None,
        Some("ScheduleView"),
    ),
    (
        "post",
        "/v1/services/{name}/schedules/{schedule}/pause",
        "its times pass until it is resumed",
        None,
        Some("ScheduleView"),
    ),
    (
        "post",
        "/v1/services/{name}/schedules/{schedule}/resume",
        "what passed meanwhile is not caught up",
        None,
        Some("ScheduleView"),
    ),
    (
        "get",
        "/v1/events",
        "JSON Lines; ?follow=true&service=&kind=&since_ms=",
        None,
        Some("EventView"),
    ),
    (
        "get",
        "/v1/crashes",
        "crash reports, the newest first; ?service=",
        None,
        Some("CrashList"),
    ),
    ("get", "/v1/crashes/{id}", "one crash report", None, Some("CrashView")),
    ("get", "/v1/modules", "stored modules", None, Some("ModuleList")),
    (
        "post",
        "/v1/modules/prune",
        "remove modules no kept revision refers to",
        None,
        None,
    ),
    ("head", "/v1/modules/{digest}", "200 if stored", None, None),
    ("get", "/v1/modules/{digest}", "its bytes", None, None),
    (
        "put",
        "/v1/modules/{digest}",
        "upload: the wasm binary as the body",
        None,
        Some("ModuleView"),
    ),
    (
        "get",
        "/v1/secrets",
        "names, versions and users of secrets; never a value",
        None,
        Some("SecretList"),
    ),
    (
        "put",
        "/v1/secrets/{name}",
        "the value as the body, text of 1 byte to 64 KiB; services that read it get a new revision",
        None,
        Some("SecretAnswer"),
    ),
    (
        "delete",
        "/v1/secrets/{name}",
        "refused while a wanted or stable revision reads it",
        None,
        None,
    ),
    (
        "get",
        "/v1/config",
        "the node's configuration and where each value came from",
        None,
        None,
    ),
    ("post", "/v1/config/reload", "read the node file again", None, None),
];

pub async fn document() -> Json<Value> {
    Json(openapi())
}

fn openapi() -> Value {
    let mut paths = serde_json::Map::new();
    for (method, path, summary, request, answer) in ROUTES {
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "default": { "description": "a refusal with all mistakes", "content": content("Problems") },
                "200": { "description": "done" },
            },
        });
        if let Some(schema) = answer {
            operation["responses"]["200"]["content"] = content(schema);
        }
        if let Some(schema) = request {
            operation["requestBody"] = json!({ "required": true, "content": content(schema) });
        }
        let parameters: Vec<_> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        if !parameters.is_empty() {
            operation["parameters"] = json!(parameters);
        }
        let entry = paths.entry(*path).or_insert_with(|| json!({}));
        entry[*method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "narae admin API", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "paths": paths,
        "components": {
            "schemas": {
                "NodeView": schema::<views::NodeView>(),
                "ServiceView": schema::<views::ServiceView>(),
                "ServiceList": schema::<views::List<views::ServiceView>>(),
                "ServiceStatus": schema::<views::ServiceStatus>(),
                "RolloutView": schema::<views::RolloutView>(),
                "RevisionList": schema::<views::List<views::RevisionView>>(),
                "RunView": schema::<views::RunView>(),
                "RunList": schema::<views::List<views::RunView>>(),
                "DeployRequest": schema::<views::DeployRequest>(),
                "DeployAnswer": schema::<views::DeployAnswer>(),
                "ScheduleView": schema::<views::ScheduleView>(),
                "ScheduleList": schema::<views::List<views::ScheduleView>>(),
                "FiringList": schema::<views::List<views::FiringView>>(),
                "EventView": schema::<views::EventView>(),
                "LogView": schema::<views::LogView>(),
                "CrashView": schema::<views::CrashView>(),
                "CrashList": schema::<views::List<views::CrashView>>(),
                "ModuleView": schema::<views::ModuleView>(),
                "ModuleList": schema::<views::List<views::ModuleView>>(),
                "SecretList": schema::<views::List<views::SecretView>>(),
                "SecretAnswer": schema::<views::SecretAnswer>(),
                "Problems": schema::<views::Problems>(),
            },
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{ "token": [] }],
    })
}

fn content(schema: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

fn schema<T: JsonSchema>() -> Value {
    // Inlined, so that every `$ref` of the document points into `components`.
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_document_has_a_schema() {
        let document = openapi();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
        assert_eq!(
            document["paths"].as_object().unwrap().len(),
            ROUTES
                .iter()
                .map(|r| r.1)
                .collect::<std::collections::BTreeSet<_>>()
                .len()
        );
    }
}
