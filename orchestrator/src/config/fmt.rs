//! `config fmt`: one way to space and to order a file. Comments and values stay as they were written; doing it twice changes nothing.

use toml_edit::{DocumentMut, Item, Table, Value};

use super::codes::Code;
use super::diagnostic::{Problem, Source};
use super::read::MAX_TEXT;

/// The text with one space around `=`, no space before a key, one empty line between tables, no trailing space, and a newline at
/// the end. Keys keep their order.
///
/// # Errors
/// Text that is not TOML.
pub fn fmt(text: &str) -> Result<String, Vec<Problem>> {
    let mut doc = parse(text, "")?;
    table(doc.as_table_mut());
    Ok(tidy(&doc.to_string(), text))
}

/// Text to an editable document.
pub(super) fn parse(text: &str, name: &str) -> Result<DocumentMut, Vec<Problem>> {
    let source = Source::new(name, text);
    if text.len() > MAX_TEXT {
        return Err(vec![
            Problem::new(Code::FileTooLarge, "the file is too large").at(&source, 0..0),
        ]);
    }
    text.parse::<DocumentMut>().map_err(|error| {
        let problem = Problem::new(Code::Syntax, format!("this is not TOML: {}", error.message())).label("not TOML");
        vec![problem.at(&source, error.span().unwrap_or(0..0))]
    })
}

fn table(of: &mut Table) {
    for (mut key, item) in of.iter_mut() {
        if let Item::Value(value) = item {
            let prefix = flush(key.leaf_decor().prefix().and_then(|p| p.as_str()));
            key.leaf_decor_mut().set_prefix(prefix);
            key.leaf_decor_mut().set_suffix(" ");
            spaced(value);
        }
        match item {
            Item::Table(inner) if inner.is_dotted() => dotted(inner),
            Item::Table(inner) => apart(inner),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(apart),
            Item::Value(_) | Item::None => {}
        }
    }
}

/// An empty line before the header, or before the comment that belongs to it.
fn apart(of: &mut Table) {
    let prefix = flush(of.decor().prefix().and_then(|p| p.as_str()));
    let prefix = if prefix.starts_with('\n') {
        prefix
    } else {
        format!("\n{prefix}")
    };
    of.decor_mut().set_prefix(prefix);
    table(of);
}

/// Keys of `a.b = 1` keep the spaces inside their path.
fn dotted(of: &mut Table) {
    for (_, item) in of.iter_mut() {
        match item {
            Item::Value(value) => spaced(value),
            Item::Table(inner) => dotted(inner),
            Item::ArrayOfTables(_) | Item::None => {}
        }
    }
}

/// Comments and empty lines before a key are kept, their indentation is not.
fn flush(prefix: Option<&str>) -> String {
    prefix
        .unwrap_or_default()
        .split('\n')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join("\n")
}

/// One space before the value; a comment after it keeps its place.
fn spaced(value: &mut Value) {
    value.decor_mut().set_prefix(" ");
    if let Value::InlineTable(inline) = value
        && !inline.to_string().contains(['\n', '#'])
    {
        inline.fmt();
        inline.decor_mut().set_prefix(" ");
    }
}

/// Whole lines: no trailing space outside texts, at most one empty line in a row, one before a table, a newline at the end.
fn tidy(formatted: &str, before: &str) -> String {
    let mut out = String::with_capacity(formatted.len());
    let mut empty = 0;
    for line in formatted.lines() {
        let line = line.trim_end();
        empty = if line.is_empty() { empty + 1 } else { 0 };
        if empty > 1 || (line.is_empty() && out.is_empty()) {
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    let out = if out.trim().is_empty() {
        String::new()
    } else {
        format!("{}\n", out.trim_end())
    };
    // Lines inside a text of several lines are content: only a result that means the same is a format.
    if same(&out, before) { out } else { formatted.to_owned() }
}

fn same(a: &str, b: &str) -> bool {
    matches!((a.parse::<toml::Table>(), b.parse::<toml::Table>()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
#[path = "tests/fmt.rs"]
mod tests;
