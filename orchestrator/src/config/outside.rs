//! Values that are in no file: the defaults of the key table, environment variables, flags; and texts as TOML.

use toml::de::{DeTable, DeValue};

use super::codes::Code;
use super::diagnostic::{Problem, Source, quoted};
use super::fields::Value;
use super::keys::{Key, Kind};
use super::read::{Place, Reader};

/// The default of a key, read as a file's value would be; tables have theirs from their keys.
pub fn default_of(key: &'static Key) -> Option<Value> {
    let source = Source::new("default", key.default.unwrap_or_default());
    let mut reader = Reader::new(source, None);
    match &key.kind {
        Kind::Table(table) => Some(Value::Table(reader.table(table, &DeTable::new(), 0..0, ""))),
        Kind::Tables(_) => Some(Value::Tables(Vec::new())),
        kind => {
            let value = DeValue::parse(key.default?).ok()?;
            reader.value(
                kind,
                &value,
                &Place {
                    key: key.name,
                    path: "",
                    inner: key.name,
                },
            )
        }
    }
}

/// A value from a text outside any file (environment, flag): lists are separated by commas.
pub fn from_text(key: &'static Key, text: &str, name: &str) -> Result<Value, Vec<Problem>> {
    let toml = match &key.kind {
        Kind::List(_) | Kind::Choices { .. } | Kind::Empty => {
            let items: Vec<String> = text
                .split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(basic_string)
                .collect();
            format!("[{}]", items.join(", "))
        }
        Kind::Map { .. } => {
            let pairs = text.split(',').map(str::trim).filter(|t| !t.is_empty());
            let items: Vec<String> = pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    format!("{} = {}", basic_string(name), basic_string(value))
                })
                .collect();
            format!("{{{}}}", items.join(", "))
        }
        Kind::Bool | Kind::Only(_) | Kind::Count { .. } | Kind::Milli { .. } if bare(text) => text.to_owned(),
        Kind::Amount { .. } if bare(text) => text.to_owned(),
        _ => basic_string(text),
    };
    let source = Source::new(name, text);
    let mut reader = Reader::new(source, None);
    let value = DeValue::parse(&toml).ok().and_then(|v| {
        reader.value(
            &key.kind,
            &v,
            &Place {
                key: key.name,
                path: "",
                inner: key.name,
            },
        )
    });
    match value {
        Some(value) if !reader.failed() => Ok(value),
        _ => {
            let mut problems = reader.finish();
            if problems.is_empty() {
                problems.push(Problem::new(
                    Code::BadVariable,
                    format!("{} is not {}", quoted(text), key.kind.expected()),
                ));
            }
            Err(problems)
        }
    }
}

fn bare(text: &str) -> bool {
    matches!(text, "true" | "false")
        || (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-'))
}

/// A text as a TOML basic string on one line.
pub fn basic_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The nearest of `names` that a slip of the finger could have meant.
pub fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if typed.len() > 40 {
        return None;
    }
    let lower = typed.to_lowercase().replace('-', "_");
    names
        .map(|name| (strsim::osa_distance(&lower, &name.replace('-', "_")), name))
        .filter(|(distance, name)| *distance <= (name.len().max(3) / 3).min(3))
        .min()
        .map(|(_, name)| name)
}
