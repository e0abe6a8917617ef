//! `--set KEY=VALUE`: one value of a document replaced, the rest of the text untouched.

use toml_edit::{DocumentMut, Item, TableLike, Value};

use super::codes::Code;
use super::diagnostic::Problem;
use super::keys::{Kind, Table};
use super::service_keys::SERVICE;

/// A document's text with every assignment made, in order. A key is a path (`limits.memory`, `env.LOG_LEVEL`); a value is TOML, or
/// any other text as a string (`--set limits.memory=64MiB`, `--set replicas=3`).
///
/// # Errors
/// Every assignment that cannot be made, and text that is not TOML. Whether the result is a good service file is for `service` to say.
pub fn set(text: &str, assignments: &[(String, String)]) -> Result<String, Vec<Problem>> {
    let mut doc = super::fmt::parse(text, "")?;
    let mut problems = Vec::new();
    for (key, value) in assignments {
        if let Err(problem) = assign(&mut doc, key, value) {
            problems.push(*problem);
        }
    }
    if problems.is_empty() {
        Ok(doc.to_string())
    } else {
        Err(problems)
    }
}

fn bad(key: &str, what: &str, help: &str) -> Box<Problem> {
    Box::new(
        Problem::new(
            Code::BadAssignment,
            format!("cannot set {}: {what}", super::diagnostic::quoted(key)),
        )
        .help(help),
    )
}

fn assign(doc: &mut DocumentMut, key: &str, text: &str) -> Result<(), Box<Problem>> {
    let path = toml_edit::Key::parse(key).map_err(|_| {
        bad(
            key,
            "not a key",
            "write --set KEY=VALUE with a key such as limits.memory; quote odd names: env.\"A.B\"",
        )
    })?;
    let Some((last, tables)) = path.split_last() else {
        return Err(bad(key, "no key", "write --set KEY=VALUE"));
    };
    if tables.len() > 8 {
        return Err(bad(
            key,
            "nested too deeply",
            "a service file nests three tables at most",
        ));
    }
    let kind = kind_of(&path.iter().map(|k| k.get()).collect::<Vec<_>>());
    let mut table: &mut dyn TableLike = doc.as_table_mut();
    for name in tables {
        if table.get(name).is_none_or(Item::is_none) {
            let mut inner = toml_edit::Table::new();
            inner.set_implicit(true);
            table.insert(name, Item::Table(inner));
        }
        table = table.get_mut(name).and_then(Item::as_table_like_mut).ok_or_else(|| {
            bad(
                key,
                &format!("`{}` is not a table", super::diagnostic::visible(name)),
                "lists of tables are changed in the file",
            )
        })?;
    }
    let mut value = value_of(text, kind);
    match table.get_mut(last) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        Some(item @ Item::None) => *item = Item::Value(value),
        Some(Item::Table(_) | Item::ArrayOfTables(_)) => {
            return Err(bad(key, "it is a table", "set one of its keys: limits.memory=64MiB"));
        }
        None => {
            table.insert(last, Item::Value(value));
        }
    }
    Ok(())
}

/// TOML where it is TOML of the right kind, else a string.
fn value_of(text: &str, kind: Option<&'static Kind>) -> Value {
    let string = matches!(kind, Some(Kind::Text(_) | Kind::Choice { .. } | Kind::Map { .. }));
    let list = matches!(kind, Some(Kind::List(_)));
    match text.trim().parse::<Value>() {
        Ok(mut value) if !string || value.is_str() => {
            value.decor_mut().clear();
            value
        }
        _ if list && !text.trim_start().starts_with('[') => {
            Value::Array(text.split(',').map(str::trim).filter(|t| !t.is_empty()).collect())
        }
        _ => Value::from(text),
    }
}

/// What a service file keeps under this path; names of maps have the kind of their values.
fn kind_of(path: &[&str]) -> Option<&'static Kind> {
    let mut table: &'static Table = &SERVICE;
    for (i, name) in path.iter().enumerate() {
        let kind = &table.get(name)?.kind;
        match kind {
            Kind::Table(inner) | Kind::Tables(inner) if i + 1 < path.len() => table = inner,
            kind => return Some(kind),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\nname = \"a\" # keep\nmodule = \"a.wasm\"\n\n[limits]\nmemory = \"64MiB\" # little\n";

    fn with(pairs: &[(&str, &str)]) -> Result<String, Vec<Problem>> {
        set(
            FILE,
            &pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_value_is_replaced_and_the_comments_stay() {
        assert_eq!(
            with(&[("limits.memory", "1GiB")]).unwrap(),
            FILE.replace("64MiB", "1GiB")
        );
    }

    #[test]
    fn keys_and_tables_that_were_absent_are_added() {
        let text = with(&[
            ("replicas", "3"),
            ("env.LOG_LEVEL", "debug"),
            ("traffic.retries.attempts", "0"),
        ])
        .unwrap();
        let spec = crate::config::service(&text, "a").unwrap().spec;
        assert_eq!((spec.replicas.get(), spec.traffic.retry_attempts), (3, 0));
        assert_eq!(spec.env.get("LOG_LEVEL").map(String::as_str), Some("debug"));
    }

    #[test]
    fn texts_need_no_quotes_and_lists_no_brackets() {
        let text = with(&[
            ("env.PORT", "8080"),
            ("env.ON", "true"),
            ("routes", "/a, /b"),
            ("args", "[\"x,y\"]"),
            ("description", "1.5"),
        ])
        .unwrap();
        let spec = crate::config::service(&text, "a").unwrap().spec;
        assert_eq!((spec.env["PORT"].as_str(), spec.env["ON"].as_str()), ("8080", "true"));
        assert_eq!(
            (spec.routes.len(), spec.args, spec.description.as_deref()),
            (2, vec!["x,y".to_owned()], Some("1.5"))
        );
    }

    #[test]
    fn every_impossible_assignment_is_named() {
        let problems = with(&[
            ("", "1"),
            ("a b", "1"),
            ("name.x", "1"),
            ("limits", "1"),
            ("a.b.c.d.e.f.g.h.i.j.k", "1"),
        ])
        .unwrap_err();
        assert_eq!(problems.len(), 5);
        assert!(problems.iter().all(|p| p.code == Code::BadAssignment), "{problems:?}");
        assert_eq!(set("= broken", &[]).unwrap_err()[0].code, Code::Syntax);
    }
}
