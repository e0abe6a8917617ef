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
    ("delete", "/v1/services/{name}", "drain and forget", None, None),
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
        "replace every replica, new beside old",
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
        "drain all replicas; routes answer 503",
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
        "get",
        "/v1/services/{name}/revisions",
        "the kept revisions",
        None,
        Some("RevisionList"),
    ),
    (
        "post",
        "/v1/services/{name}/undo",
        "{\"to\": n}: back to a kept revision",
        None,
        Some("DeployAnswer"),
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
        "/v1/events",
        "JSON Lines; ?follow=true&service=&kind=&since_ms=",
        None,
        Some("EventView"),
    ),
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
                "DeployRequest": schema::<views::DeployRequest>(),
                "DeployAnswer": schema::<views::DeployAnswer>(),
                "EventView": schema::<views::EventView>(),
                "LogView": schema::<views::LogView>(),
                "ModuleView": schema::<views::ModuleView>(),
                "ModuleList": schema::<views::List<views::ModuleView>>(),
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
