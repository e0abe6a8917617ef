//! One node configuration from several places: system file, user file, project file, `NARAE_*` variables, flags; the later wins,
//! key by key. Callers read the files and the environment; this only decides.

use std::collections::BTreeMap;

use serde::Serialize;

use super::codes::Code;
use super::diagnostic::{Problem, Severity, Source};
use super::fields::{Field, Fields, Value};
use super::keys::{Key, Kind, Table};
use super::node_keys::{self, NODE, variable};
use super::outside::{from_text, nearest};
use super::print::node_entries;
use super::read;
use crate::model::NodeConfig;

/// Where one value came from, for `config show --origin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `http.listen`.
    pub key: String,
    /// As TOML.
    pub value: String,
    /// `default`, `node.toml:3`, `NARAE_HTTP_LISTEN`, `flag`.
    pub from: String,
}

/// A file's name and its text.
pub type Layer<'a> = Option<(&'a str, &'a str)>;

/// Puts the layers together. `flags` are keys with texts (`http.listen`, `0.0.0.0:80,[::]:80`), as variables are: lists are separated
/// by commas. Variables that belong to no key of the node file are not looked at.
///
/// # Errors
/// Every mistake of every layer; those of variables and flags name the variable or flag.
pub fn layers(
    system: Layer<'_>,
    user: Layer<'_>,
    project: Layer<'_>,
    env: &BTreeMap<String, String>,
    flags: &[(String, String)],
) -> Result<(NodeConfig, Vec<Origin>), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut merged = defaults();
    let mut from: BTreeMap<String, String> = BTreeMap::new();
    for (name, text) in [system, user, project].into_iter().flatten() {
        let source = Source::new(name, text);
        let (fields, mut reader) = read::read(&source, &NODE);
        super::node::meaning(&fields, &mut reader);
        let found = reader.finish();
        problems.extend(found.into_iter().filter(|p| p.severity == Severity::Error));
        overlay(&mut merged, fields, &NODE, "", &mut |path, span| {
            let line = Problem::new(Code::Syntax, "")
                .at(&source, span)
                .position()
                .map_or(1, |p| p.0);
            from.insert(path.to_owned(), format!("{name}:{line}"));
        });
    }
    for (path, key) in node_keys::values() {
        let variable = variable(&path);
        let written = env.get(&variable).map(|text| (variable.clone(), text));
        let flagged = flags
            .iter()
            .rev()
            .find(|(k, _)| *k == path)
            .map(|(_, text)| (format!("flag for {path}"), text));
        for (name, text) in written.into_iter().chain(flagged) {
            match from_text(key, text, &name) {
                Ok(value) => {
                    put(&mut merged, &path, value);
                    from.insert(
                        path.clone(),
                        if name.starts_with("flag") { "flag".into() } else { name },
                    );
                }
                Err(found) => problems.extend(found.into_iter().map(|p| named(p, &name))),
            }
        }
    }
    problems.extend(refused(env, flags));
    if !problems.is_empty() {
        return Err(problems);
    }
    let config = super::node::build(&merged);
    if let Some(clash) = clash(&config) {
        return Err(vec![clash]);
    }
    let origins = origins(&config, &from);
    Ok((config, origins))
}

/// Layers that are fine alone and wrong together.
fn clash(config: &NodeConfig) -> Option<Problem> {
    if let Some((table, key, problem)) = super::node::tls_problem(config) {
        let message = format!("{table}.{key}: {}", problem.message);
        return Some(Problem { message, ..problem });
    }
    let admin = config.admin.listen.filter(|a| a.port() != 0)?;
    config.http.listen.contains(&admin).then(|| {
        Problem::new(
            Code::DuplicateAddress,
            format!("`{admin}` is both http.listen and admin.listen"),
        )
        .help(
            "give the admin listener a port of its own; `narae config show --origin` tells where each value came from",
        )
    })
}

/// Variables and flags of keys whose feature comes later, and flags of no key.
fn refused(env: &BTreeMap<String, String>, flags: &[(String, String)]) -> Vec<Problem> {
    let mut out = Vec::new();
    for path in node_keys::later() {
        let name = variable(&path);
        let prefix = format!("{name}_");
        for found in env.keys().filter(|k| **k == name || k.starts_with(&prefix)) {
            out.push(
                Problem::new(
                    Code::NotSupportedYet,
                    format!("variable `{found}`: `{path}` is not supported yet"),
                )
                .help("unset the variable"),
            );
        }
    }
    for (key, _) in flags {
        if !node_keys::values().any(|(path, _)| path == *key) {
            let known: Vec<String> = node_keys::values().map(|(path, _)| path).collect();
            let near = nearest(key, known.iter().map(String::as_str));
            let problem = Problem::new(Code::UnknownKey, format!("unknown key `{key}` of the node file"));
            out.push(match near {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem,
            });
        }
    }
    out
}

/// A problem of a text that is in no file.
fn named(problem: Problem, name: &str) -> Problem {
    let what = if name.starts_with("NARAE_") {
        format!("variable `{name}`")
    } else {
        name.to_owned()
    };
    let mut out = Problem::new(problem.code, format!("{what}: {}", problem.message));
    out.help = match problem.label {
        Some(label) if problem.help.is_none() => Some(label),
        _ => problem.help,
    };
    out
}

fn defaults() -> Fields {
    read::read(&Source::new("default", ""), &NODE).0
}

/// Every value that `over` was given, into `base`; `note` hears its path and place.
fn overlay(
    base: &mut Fields,
    over: Fields,
    table: &'static Table,
    prefix: &str,
    note: &mut dyn FnMut(&str, std::ops::Range<usize>),
) {
    for (name, field) in over.entries {
        if !field.given {
            continue;
        }
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        match (field, table.get(name).map(|k: &Key| &k.kind)) {
            (
                Field {
                    value: Value::Table(inner),
                    ..
                },
                Some(Kind::Table(below)),
            ) => {
                if let Some(Field {
                    value: Value::Table(into),
                    ..
                }) = base.entries.get_mut(name)
                {
                    overlay(into, inner, below, &path, note);
                }
            }
            (field, _) => {
                note(&path, field.span.clone());
                base.entries.insert(name, field);
            }
        }
    }
}

fn put(base: &mut Fields, path: &str, value: Value) {
    let Some((name, key)) = node_keys::values().find(|(p, _)| p == path) else {
        return;
    };
    let mut fields = base;
    let mut tables: Vec<&str> = name.split('.').collect();
    tables.pop();
    for table in tables {
        match fields.entries.get_mut(table) {
            Some(Field {
                value: Value::Table(inner),
                ..
            }) => fields = inner,
            _ => return,
        }
    }
    fields.entries.insert(
        key.name,
        Field {
            value,
            span: 0..0,
            given: true,
        },
    );
}

fn origins(config: &NodeConfig, from: &BTreeMap<String, String>) -> Vec<Origin> {
    node_entries(config)
        .into_iter()
        .map(|entry| {
            let key = entry.key();
            let from = from
                .iter()
                .find(|(path, _)| entry.under(path))
                .map_or("default", |(_, from)| from);
            Origin {
                key,
                value: entry.value.to_string().trim().to_owned(),
                from: super::diagnostic::visible(from),
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "tests/layers.rs"]
mod tests;
