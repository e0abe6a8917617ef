//! Reads a document by a table of keys: every value in its unit or a problem with its place, defaults filled in. Knows the form of
//! keys, not one key by name.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::checks::{Check, Wrong};
use super::codes::Code;
use super::diagnostic::{Problem, Source, quoted};
use super::fields::{Field, Fields, Item, Value};
use super::keys::{Key, Kind, Status, Table, quoted_list};
use super::outside::{default_of, nearest};
use super::quantity::{count, integer, milli, no_unit, quantity, within_milli};
use super::units::show_size;

/// Larger texts are refused before they are parsed.
pub const MAX_TEXT: usize = 256 << 10;
/// Larger texts with broken syntax are not searched for more mistakes.
const MAX_RECOVERED: usize = 64 << 10;
/// More mistakes than anyone reads in one go.
const MAX_PROBLEMS: usize = 100;

/// Collects mistakes of one text, bounded.
pub struct Reader {
    pub source: Source,
    problems: Vec<Problem>,
    more: usize,
    /// Lines (byte ranges) whose syntax is broken: what is read there means nothing.
    broken: Vec<Range<usize>>,
    /// The whole file's keys, for keys that were written in the wrong table.
    root: Option<&'static Table>,
}

/// Reads `text` by `table`. The problems are in the order of the text.
pub fn read(source: &Source, table: &'static Table) -> (Fields, Reader) {
    let mut reader = Reader::new(source.clone(), Some(table));
    let text = source.text.clone();
    if text.len() > MAX_TEXT {
        reader.push(
            Problem::new(
                Code::FileTooLarge,
                format!(
                    "the file is {} bytes, more than the {} allowed",
                    text.len(),
                    show_size(MAX_TEXT as u64)
                ),
            )
            .at(source, 0..0)
            .help("a service file holds settings only; a module is named by its path"),
        );
        return (Fields::default(), reader);
    }
    // Going on after a mistake keeps every further one in memory: only for texts of a size that people write.
    let (document, errors) = if text.len() <= MAX_RECOVERED {
        DeTable::parse_recoverable(&text)
    } else {
        match DeTable::parse(&text) {
            Ok(document) => (document, Vec::new()),
            Err(error) => (toml::Spanned::new(0..0, DeTable::new()), vec![error]),
        }
    };
    for error in errors.iter().take(MAX_PROBLEMS) {
        reader.syntax(error.message(), error.span());
    }
    reader.more += errors.len().saturating_sub(MAX_PROBLEMS);
    let fields = reader.table(table, document.get_ref(), 0..first_line(&text), "");
    (fields, reader)
}

fn first_line(text: &str) -> usize {
    text.find('\n').unwrap_or(text.len())
}

impl Reader {
    pub(super) fn new(source: Source, root: Option<&'static Table>) -> Self {
        Self {
            source,
            problems: Vec::new(),
            more: 0,
            broken: Vec::new(),
            root,
        }
    }

    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem)
        } else {
            self.more += 1
        }
    }

    /// All problems, errors and warnings, in the order of the text.
    pub fn finish(mut self) -> Vec<Problem> {
        self.problems
            .sort_by_key(|p| (p.span.as_ref().map_or(0, |s| s.start), p.code));
        self.problems.dedup();
        if self.more > 0 {
            self.problems
                .push(Problem::new(Code::TooMany, format!("and {} more problems", self.more)).at(&self.source, 0..0));
        }
        self.problems
    }

    /// No further problem will be kept: no need to find words for it.
    pub fn full(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS
    }

    pub fn failed(&self) -> bool {
        self.problems
            .iter()
            .any(|p| p.severity == super::diagnostic::Severity::Error)
    }

    fn syntax(&mut self, message: &str, span: Option<Range<usize>>) {
        let text = &self.source.text;
        let span = span.unwrap_or(0..0);
        let start = text[..text.floor_char_boundary(span.start)]
            .rfind('\n')
            .map_or(0, |i| i + 1);
        let end = text[text.floor_char_boundary(span.end.max(span.start))..]
            .find('\n')
            .map_or(text.len(), |i| span.end.max(span.start) + i);
        // The first mistake of a line explains the rest of it.
        if self.broken.iter().any(|b| b.start == start) {
            return;
        }
        self.broken.push(start..end);
        let problem = if message.contains("duplicate key") {
            let key = quoted(text.get(span.clone()).unwrap_or_default());
            Problem::new(Code::DuplicateKey, format!("{key} is set twice"))
                .label("set here again")
                .help("keep one of the two; tables of one name are one table")
        } else if message.contains("recurs") {
            Problem::new(Code::Syntax, "nested too deeply")
                .label("too deep")
                .help("a service file nests three tables at most")
        } else {
            Problem::new(Code::Syntax, format!("this is not TOML: {message}"))
                .label("not TOML")
                .help("a line is `key = value`, `[table]` or `# comment`; texts stand in double quotes")
        };
        self.push(problem.at(&self.source.clone(), span));
    }

    /// `path`: the table's, empty for the file itself.
    pub(super) fn table(
        &mut self,
        table: &'static Table,
        found: &DeTable<'_>,
        span: Range<usize>,
        path: &str,
    ) -> Fields {
        let mut fields = Fields {
            entries: BTreeMap::new(),
            span,
            refused: Vec::new(),
        };
        for (name, value) in found {
            match table.get(name.get_ref()) {
                None => self.unknown(table, name, path),
                Some(key) if key.status == Status::Later => self.later(key, name.span(), path),
                Some(key) => {
                    let inner = if path.is_empty() {
                        key.name.to_owned()
                    } else {
                        format!("{path}.{}", key.name)
                    };
                    if let Some(read) = self.value(
                        &key.kind,
                        value,
                        &Place {
                            key: key.name,
                            path,
                            inner: &inner,
                        },
                    ) {
                        fields.entries.insert(
                            key.name,
                            Field {
                                value: read,
                                span: value.span(),
                                given: true,
                            },
                        );
                    } else {
                        fields.refused.push(key.name);
                    }
                }
            }
        }
        for key in table.keys.iter().filter(|k| k.status == Status::Now) {
            if found.contains_key(key.name) {
                continue;
            }
            if key.required && self.broken.is_empty() {
                let place = if path.is_empty() {
                    "the service file".to_owned()
                } else {
                    bracketed(path)
                };
                let problem = Problem::new(Code::MissingKey, format!("{place} has no `{}`", key.name))
                    .label(format!("`{}` is missing", key.name))
                    .help(format!("add `{} = {}`: {}", key.name, key.kind.example(), key.doc));
                self.push(problem.at(&self.source.clone(), fields.span.clone()));
            }
            if let Some(value) = default_of(key) {
                fields.entries.insert(
                    key.name,
                    Field {
                        value,
                        span: 0..0,
                        given: false,
                    },
                );
            }
        }
        fields
    }

    fn unknown(&mut self, table: &'static Table, name: &Spanned<std::borrow::Cow<'_, str>>, path: &str) {
        if self.in_broken(name.span().start) || self.problems.len() >= MAX_PROBLEMS {
            self.more += usize::from(self.problems.len() >= MAX_PROBLEMS);
            return;
        }
        let key = name.get_ref();
        let place = if path.is_empty() {
            String::new()
        } else {
            format!(" in {}", bracketed(path))
        };
        let allowed = table.allowed().collect::<Vec<_>>().join(", ");
        let near = nearest(key, table.keys.iter().map(|k| k.name));
        let elsewhere = self
            .root
            .filter(|_| !path.is_empty())
            .and_then(|root| root.get(key))
            .filter(|k| k.status == Status::Now);
        let help = match (near, elsewhere) {
            (_, Some(k)) => format!(
                "`{}` belongs above the first [table] of the file; allowed here: {allowed}",
                k.name
            ),
            (Some(near), None) => format!("did you mean `{near}`? allowed here: {allowed}"),
            (None, None) => format!("allowed here: {allowed}"),
        };
        let label = if path.is_empty() {
            "not a setting"
        } else {
            "not a setting of this table"
        };
        let problem = Problem::new(Code::UnknownKey, format!("unknown key {}{place}", quoted(key)))
            .label(label)
            .help(help);
        self.push(problem.at(&self.source.clone(), name.span()));
    }

    fn later(&mut self, key: &Key, span: Range<usize>, path: &str) {
        let place = if path.is_empty() {
            String::new()
        } else {
            format!(" in {}", bracketed(path))
        };
        let problem = Problem::new(
            Code::NotSupportedYet,
            format!("`{}`{place} is not supported yet", key.name),
        )
        .label("not supported yet")
        .help(format!("remove it until a version of narae has it: {}", key.doc));
        self.push(problem.at(&self.source.clone(), span));
    }

    fn in_broken(&self, at: usize) -> bool {
        self.broken.iter().any(|b| b.contains(&at))
    }

    pub(super) fn value(
        &mut self,
        kind: &'static Kind,
        found: &Spanned<DeValue<'_>>,
        place: &Place<'_>,
    ) -> Option<Value> {
        let span = found.span();
        if self.in_broken(span.start) {
            return None;
        }
        match (kind, found.get_ref()) {
            (Kind::Table(table), DeValue::Table(t)) => Some(Value::Table(self.table(table, t, span, place.inner))),
            (Kind::Tables(table), DeValue::Array(items)) => {
                let mut out = Vec::new();
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(t) => out.push(self.table(table, t, item.span(), &format!("[{}]", place.inner))),
                        other => self.wrong_type(kind, other, item.span(), place),
                    }
                }
                Some(Value::Tables(out))
            }
            (Kind::Map { key, value }, DeValue::Table(t)) => Some(self.map(key, value, t, place)),
            (Kind::List(check), DeValue::Array(items)) => {
                let mut out = Vec::new();
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::String(text) => {
                            if let Some(text) = self.checked(check, text, item.span(), &place.subject()) {
                                out.push(Item {
                                    text,
                                    span: item.span(),
                                });
                            }
                        }
                        other => self.wrong_type(kind, other, item.span(), place),
                    }
                }
                Some(Value::List(out))
            }
            (Kind::Choices { now, later }, DeValue::Array(items)) => {
                let mut out = Vec::new();
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::String(text) => {
                            if let Some(text) = self.choice(now, later, text, item.span(), place) {
                                out.push(Item {
                                    text,
                                    span: item.span(),
                                });
                            }
                        }
                        other => self.wrong_type(kind, other, item.span(), place),
                    }
                }
                Some(Value::List(out))
            }
            (Kind::Empty, DeValue::Array(items)) => {
                if !items.is_empty() {
                    self.refuse(
                        span,
                        Problem::new(
                            Code::NotSupportedYet,
                            format!("{} with entries is not supported yet", place.subject()),
                        )
                        .label("not supported yet")
                        .help(format!("write `{} = []`", place.key)),
                    );
                }
                Some(Value::List(Vec::new()))
            }
            (_, scalar) => self.scalar(kind, scalar, span, place),
        }
    }

    fn scalar(
        &mut self,
        kind: &'static Kind,
        found: &DeValue<'_>,
        span: Range<usize>,
        place: &Place<'_>,
    ) -> Option<Value> {
        let outcome = match (kind, found) {
            (Kind::Text(check), DeValue::String(text)) => {
                return self.checked(check, text, span, &place.subject()).map(Value::Text);
            }
            (Kind::Choice { now, later }, DeValue::String(text)) => {
                return self.choice(now, later, text, span, place).map(Value::Text);
            }
            (Kind::Bool, DeValue::Boolean(b)) => return Some(Value::Bool(*b)),
            (Kind::Only(only), DeValue::Boolean(b)) => {
                if b != only {
                    self.refuse(
                        span,
                        Problem::new(
                            Code::NotSupportedYet,
                            format!("`{} = {b}` is not supported yet", place.key),
                        )
                        .label("not supported yet")
                        .help(format!("write `{} = {only}`", place.key)),
                    );
                }
                return Some(Value::Bool(*only));
            }
            (Kind::Count { .. }, DeValue::Integer(n)) => count(kind, integer(n), n.as_str().starts_with('-')),
            (Kind::Milli { min, max }, DeValue::Integer(n)) => {
                within_milli(integer(n).and_then(|n| n.checked_mul(1000)), *min, *max)
            }
            (Kind::Milli { min, max }, DeValue::Float(f)) => within_milli(milli(f.as_str()), *min, *max),
            (Kind::Amount { .. }, DeValue::Integer(n)) => count(kind, integer(n), n.as_str().starts_with('-')),
            (
                Kind::Duration { .. } | Kind::Size { .. } | Kind::Rate | Kind::Amount { .. } | Kind::Budget { .. },
                DeValue::String(text),
            ) => quantity(kind, text),
            (Kind::Duration { .. } | Kind::Size { .. } | Kind::Rate | Kind::Budget { .. }, DeValue::Integer(n)) => {
                Err(no_unit(kind, &n.to_string()))
            }
            (Kind::Duration { .. } | Kind::Size { .. } | Kind::Rate | Kind::Budget { .. }, DeValue::Float(f)) => {
                Err(no_unit(kind, f.as_str()))
            }
            (_, other) => {
                self.wrong_type(kind, other, span, place);
                return None;
            }
        };
        match outcome {
            Ok(value) => Some(value),
            Err(flaw) => {
                let shown = shown(found);
                let message = match flaw.code {
                    Code::NeedsUnit => format!("{} needs a unit, {shown} has none", place.subject()),
                    Code::OutOfRange => format!("{} is out of range: {shown}", place.subject()),
                    _ => format!("{} must be {}, not {shown}", place.subject(), flaw.expected),
                };
                let units = if flaw.units.is_empty() {
                    String::new()
                } else {
                    format!("; units: {}", flaw.units)
                };
                let help = format!("write `{} = {}`{units}", place.key, flaw.example);
                self.refuse(span, Problem::new(flaw.code, message).label(flaw.label).help(help));
                None
            }
        }
    }

    fn refuse(&mut self, span: Range<usize>, problem: Problem) {
        self.push(problem.at(&self.source.clone(), span));
    }

    fn map(&mut self, key: &'static Check, value: &'static Check, found: &DeTable<'_>, place: &Place<'_>) -> Value {
        let mut out = BTreeMap::new();
        let table = bracketed(place.inner);
        for (written, item) in found {
            if self.in_broken(written.span().start) {
                continue;
            }
            let subject = format!("{} in {table}", quoted(written.get_ref()));
            let name = self.checked(key, written.get_ref(), written.span(), &subject);
            match item.get_ref() {
                DeValue::String(text) => {
                    if let (Some(name), Some(text)) = (name, self.checked(value, text, item.span(), &subject)) {
                        out.insert(name, text);
                    }
                }
                other => {
                    let known = self
                        .root
                        .and_then(|root| root.get(written.get_ref()))
                        .filter(|k| k.status == Status::Now);
                    let help = match other {
                        _ if known.is_some() => {
                            format!(
                                "if the setting `{}` is meant, move it above the first [table] of the file",
                                written.get_ref()
                            )
                        }
                        DeValue::Table(_) | DeValue::Array(_) => {
                            format!("{table} holds texts only; a key that is no text belongs to another table")
                        }
                        scalar => format!("write it in quotes: \"{}\"", plain(scalar)),
                    };
                    let problem = Problem::new(Code::WrongType, format!("{subject} is {}, not a text", article(other)))
                        .label("must be a text in quotes")
                        .help(help);
                    self.refuse(item.span(), problem);
                }
            }
        }
        Value::Map(out)
    }

    /// A text in its normal form.
    fn checked(&mut self, check: &'static Check, text: &str, span: Range<usize>, subject: &str) -> Option<String> {
        match (check.run)(text) {
            Ok(text) => Some(text),
            Err(Wrong {
                code,
                message,
                label,
                help,
            }) => {
                let shown = if code == Code::NotSupportedYet || text.is_empty() {
                    String::new()
                } else {
                    format!(": {}", quoted(text))
                };
                let mut problem = Problem::new(code, format!("{subject} {message}{shown}")).label(label);
                problem.help = help;
                self.refuse(span, problem);
                None
            }
        }
    }

    fn choice(
        &mut self,
        now: &'static [&'static str],
        later: &'static [&'static str],
        text: &str,
        span: Range<usize>,
        place: &Place<'_>,
    ) -> Option<String> {
        if now.contains(&text) {
            return Some(text.to_owned());
        }
        let known = |l: &&str| text == *l || text.strip_prefix(*l).is_some_and(|rest| rest.starts_with("://"));
        let problem = if later.iter().any(known) {
            Problem::new(
                Code::NotSupportedYet,
                format!("{} as {} is not supported yet", place.subject(), quoted(text)),
            )
            .label("not supported yet")
            .help(format!("supported now: {}", quoted_list(now)))
        } else {
            let near = nearest(text, now.iter().copied()).map_or(String::new(), |n| format!("did you mean \"{n}\"? "));
            Problem::new(
                Code::NotAChoice,
                format!("{} cannot be {}", place.subject(), quoted(text)),
            )
            .label("not one of the choices")
            .help(format!("{near}choices: {}", quoted_list(now)))
        };
        self.refuse(span, problem);
        None
    }

    fn wrong_type(&mut self, kind: &'static Kind, found: &DeValue<'_>, span: Range<usize>, place: &Place<'_>) {
        let mut help = format!("write `{} = {}`", place.key, kind.example());
        match (kind, found) {
            (
                Kind::Text(_),
                scalar @ (DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_)),
            ) => {
                help = format!("write `{} = \"{}\"`, in quotes", place.key, plain(scalar));
            }
            (Kind::Count { .. }, DeValue::String(text))
                if !text.is_empty() && text.len() < 20 && text.bytes().all(|b| b.is_ascii_digit()) =>
            {
                help = format!("write `{} = {text}`, without quotes", place.key);
            }
            (Kind::Bool | Kind::Only(_), DeValue::String(text)) if matches!(text.as_ref(), "true" | "false") => {
                help = format!("write `{} = {text}`, without quotes", place.key);
            }
            (Kind::List(_) | Kind::Choices { .. }, DeValue::String(text)) if text.len() < 60 => {
                help = format!("write `{} = [\"{text}\"]`", place.key);
            }
            (Kind::Choice { now, .. }, _) => {
                help = format!("write `{} = \"{}\"`", place.key, now.first().unwrap_or(&""))
            }
            (Kind::Tables(_), DeValue::Table(_)) => {
                help = format!("write the header with two brackets: [[{}]]", place.inner)
            }
            (Kind::Table(_) | Kind::Map { .. }, DeValue::Array(_)) => {
                help = format!("write the header with one bracket: [{}]", place.inner)
            }
            (Kind::Table(_) | Kind::Map { .. }, _) => help = format!("write a table: [{}]", place.inner),
            _ => {}
        }
        let expected = kind.expected();
        let problem = Problem::new(
            Code::WrongType,
            format!("{} is {}, not {expected}", place.subject(), article(found)),
        )
        .label(format!("expected {expected}"))
        .help(help);
        self.refuse(span, problem);
    }
}

/// Which key, for messages.
pub(super) struct Place<'a> {
    pub key: &'static str,
    /// The table it is in.
    pub path: &'a str,
    /// Its own path.
    pub inner: &'a str,
}

impl Place<'_> {
    /// `` `memory` in [limits] ``.
    fn subject(&self) -> String {
        if self.path.is_empty() {
            format!("`{}`", self.key)
        } else {
            format!("`{}` in {}", self.key, bracketed(self.path))
        }
    }
}

/// `[limits]`, `[[route]]`.
fn bracketed(path: &str) -> String {
    format!("[{path}]")
}

/// `a number`, `a text`, with the value where it is short.
fn article(found: &DeValue<'_>) -> String {
    match found {
        DeValue::String(text) => format!("the text {}", quoted(text)),
        DeValue::Integer(n) => format!("the number {}", quoted(&n.to_string())),
        DeValue::Float(f) => format!("the number {}", quoted(f.as_str())),
        DeValue::Boolean(b) => format!("`{b}`"),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn shown(found: &DeValue<'_>) -> String {
    quoted(&plain(found))
}

fn plain(found: &DeValue<'_>) -> String {
    let text = match found {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(n) => n.to_string(),
        DeValue::Float(f) => f.to_string(),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => d.to_string(),
        DeValue::Array(_) => "[…]".into(),
        DeValue::Table(_) => "{…}".into(),
    };
    text.chars().take(60).collect()
}
