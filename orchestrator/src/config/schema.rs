//! The JSON Schema (draft 2020-12) of both files, made from the tables of keys; editors read it through the `#:schema` line.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Status, Table};
use super::node_keys::NODE;
use super::service_keys::SERVICE;

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Service,
    Node,
}

/// The schema. Keys whose feature comes later are not in it.
pub fn schema(which: Which) -> Value {
    let (table, title) = match which {
        Which::Service => (&SERVICE, "narae service file"),
        Which::Node => (&NODE, "narae node file"),
    };
    let mut out = object(table);
    out.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    out.insert("title".into(), title.into());
    // Readers expect the dialect first.
    out.sort_keys_first(&["$schema", "title"]);
    Value::Object(out)
}

trait First {
    fn sort_keys_first(&mut self, first: &[&str]);
}

impl First for Map<String, Value> {
    fn sort_keys_first(&mut self, first: &[&str]) {
        let mut sorted = Self::new();
        for key in first {
            if let Some(value) = self.remove(*key) {
                sorted.insert((*key).into(), value);
            }
        }
        sorted.extend(std::mem::take(self));
        *self = sorted;
    }
}

fn object(table: &'static Table) -> Map<String, Value> {
    let now = || table.keys.iter().filter(|k| k.status == Status::Now);
    let properties: Map<String, Value> = now().map(|k| (k.name.to_owned(), property(k))).collect();
    let required: Vec<&str> = now().filter(|k| k.required).map(|k| k.name).collect();
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    out.insert("properties".into(), properties.into());
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    out.insert("additionalProperties".into(), false.into());
    out
}

fn property(key: &'static Key) -> Value {
    let mut out = match kind(&key.kind) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    out.insert("description".into(), key.doc.into());
    if let Some(default) = key.default.and_then(json_of) {
        out.insert("default".into(), default);
    }
    Value::Object(out)
}

const DURATION: &str = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
const SIZE: &str = "^[0-9]+(\\.[0-9]{1,9})? ?(B|KiB|MiB|GiB|KB|MB|GB)$";
const PERCENT: &str = "^[0-9]+%$";

fn kind(kind: &'static Kind) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match kind {
        Kind::Text(check) => match check.pattern {
            Some(pattern) => text(pattern),
            None => json!({ "type": "string" }),
        },
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Only(value) => json!({ "const": value }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Milli { min, max } => json!({ "type": "number", "minimum": min / 1000, "maximum": max / 1000 }),
        Kind::Duration { .. } => json!({ "type": "string", "pattern": DURATION, "minLength": 2 }),
        Kind::Size { .. } => text(SIZE),
        Kind::Rate => text("^[0-9]+/[sm]$"),
        Kind::Amount { max, .. } => {
            json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": max }, text(PERCENT)] })
        }
        Kind::Budget { .. } => json!({ "anyOf": [text(SIZE), text(PERCENT)] }),
        Kind::Choice { now, .. } => json!({ "enum": now }),
        Kind::List(check) => json!({ "type": "array", "items": match check.pattern {
            Some(pattern) => text(pattern),
            None => json!({ "type": "string" }),
        } }),
        Kind::Empty => json!({ "type": "array", "maxItems": 0 }),
        Kind::Choices { now, .. } => json!({ "type": "array", "items": { "enum": now } }),
        Kind::Map { key, .. } => {
            let names = key.pattern.map_or(json!({}), |p| json!({ "pattern": p }));
            json!({ "type": "object", "propertyNames": names, "additionalProperties": { "type": "string" } })
        }
        Kind::Table(table) => Value::Object(object(table)),
        Kind::Tables(table) => json!({ "type": "array", "items": object(table) }),
        Kind::Any => json!({}),
    }
}

/// A default of the table as JSON.
fn json_of(toml: &str) -> Option<Value> {
    let table = format!("v = {toml}").parse::<toml::Table>().ok()?;
    serde_json::to_value(table.get("v")?).ok()
}

#[cfg(test)]
#[path = "tests/schema.rs"]
mod tests;
