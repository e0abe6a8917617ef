//! The rules of `schema`, one test each.

use super::*;

/// Checks the few words of JSON Schema that the generated schemas use.
fn fails(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        if !any.iter().any(|s| fails(s, value, at).is_empty()) {
            out.push(format!("{at}: none of anyOf"));
        }
        return out;
    }
    if schema
        .get("enum")
        .and_then(Value::as_array)
        .is_some_and(|e| !e.contains(value))
    {
        out.push(format!("{at}: {value} is no choice"));
    }
    if schema.get("const").is_some_and(|c| c != value) {
        out.push(format!("{at}: {value} is not the constant"));
    }
    let is = match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !is {
        out.push(format!("{at}: {value} is of the wrong type"));
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let property = schema.get("properties").and_then(|p| p.get(name));
        match (property, schema.get("additionalProperties")) {
            (Some(property), _) => out.extend(fails(property, inner, &format!("{at}.{name}"))),
            (None, Some(Value::Object(more))) => {
                out.extend(fails(&Value::Object(more.clone()), inner, &format!("{at}.{name}")))
            }
            (None, _) => out.push(format!("{at}.{name}: not in the schema")),
        }
    }
    for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
        out.extend(fails(&schema["items"], inner, &format!("{at}[{i}]")));
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            out.push(format!("{at}: {name} is missing"));
        }
    }
    out
}

fn json(toml: &str) -> Value {
    serde_json::to_value(toml.parse::<toml::Table>().unwrap()).unwrap()
}

#[test]
fn the_full_example_is_in_the_schema() {
    let example = json(crate::config::service::tests::FULL);
    assert_eq!(fails(&schema(Which::Service), &example, ""), Vec::<String>::new());
    assert!(!fails(&schema(Which::Service), &json("name = \"a\"\nmemroy = 1"), "").is_empty());
}

#[test]
fn every_default_fits_its_own_key() {
    fn walk(schema: &Value, at: &str) {
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let at = format!("{at}.{name}");
            if let Some(default) = property.get("default") {
                assert_eq!(fails(property, default, &at), Vec::<String>::new());
            }
            walk(property, &at);
            if let Some(items) = property.get("items") {
                walk(items, &at);
            }
        }
    }
    walk(&schema(Which::Service), "");
    walk(&schema(Which::Node), "");
}

#[test]
fn an_effective_file_is_in_the_schema() {
    let spec = crate::config::service(crate::config::service::tests::FULL, "x")
        .unwrap()
        .spec;
    assert_eq!(
        fails(&schema(Which::Service), &json(&crate::config::effective(&spec)), ""),
        Vec::<String>::new()
    );
    let node = crate::config::effective_node(&crate::model::NodeConfig::default());
    assert_eq!(fails(&schema(Which::Node), &json(&node), ""), Vec::<String>::new());
}

#[test]
fn the_schema_is_a_contract() {
    insta::assert_json_snapshot!("schema_service", schema(Which::Service));
    insta::assert_json_snapshot!("schema_node", schema(Which::Node));
}
