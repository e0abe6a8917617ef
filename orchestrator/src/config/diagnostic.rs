//! One mistake, and how it is shown: in a terminal, in a log, in JSON. Knows nothing of TOML or of any key.
//!
//! Everything shown is printable: control characters of the input are made visible before they reach a terminal.

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::codes::Code;
use crate::model::views::ProblemView;

/// A text and the name it has in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: Arc<str>,
    pub text: Arc<str>,
}

impl Source {
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    #[default]
    Error,
    Warning,
}

/// A mistake, or something worth a warning. Made with [`Problem::new`] and the `with` methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub code: Code,
    /// What is there, in one printable line.
    pub message: String,
    /// The file's name in messages; empty when no file is to blame.
    pub file: String,
    /// The file's text, for the snippet.
    pub source: Option<Arc<str>>,
    /// Bytes of the text.
    pub span: Option<Range<usize>>,
    /// Beside the marks: what was expected there.
    pub label: Option<String>,
    /// The shortest repair.
    pub help: Option<String>,
}

impl Problem {
    pub fn new(code: Code, message: impl AsRef<str>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: visible(message.as_ref()),
            file: String::new(),
            source: None,
            span: None,
            label: None,
            help: None,
        }
    }

    pub fn warning(code: Code, message: impl AsRef<str>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::new(code, message)
        }
    }

    /// Where it is.
    #[must_use]
    pub fn at(mut self, source: &Source, span: Range<usize>) -> Self {
        self.file = source.name.to_string();
        self.source = Some(source.text.clone());
        self.span = Some(span);
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl AsRef<str>) -> Self {
        self.label = Some(visible(label.as_ref()));
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl AsRef<str>) -> Self {
        self.help = Some(visible(help.as_ref()));
        self
    }

    /// Line and column, 1-based, in characters.
    pub fn position(&self) -> Option<(u32, u32)> {
        let (text, span) = (self.source.as_deref()?, self.span.as_ref()?);
        let before = &text[..floor_boundary(text, span.start)];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        Some((
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        ))
    }

    /// The lines people read, without a newline at the end. `colour`: with ANSI escapes.
    pub fn render(&self, colour: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.term_width(TERM_WIDTH);
        let mut group = annotate_snippets::Group::with_title(level.primary_title(self.message.as_str()));
        if let Some(place) = self.place() {
            let mark = AnnotationKind::Primary.span(place.span).label(self.label.as_deref());
            let path = (!self.file.is_empty()).then(|| visible(&self.file));
            group = group.element(
                Snippet::source(place.line)
                    .path(path)
                    .line_start(place.number)
                    .annotation(mark),
            );
        } else if !self.file.is_empty() {
            group = group.element(annotate_snippets::Origin::path(visible(&self.file)));
        } else {
            // Without a place the renderer would draw an empty margin between the title and the help.
            let mut out = renderer.render(&[group]);
            if let Some(help) = &self.help {
                let _ = write!(out, "\n  = help: {help}");
            }
            return out;
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }

    /// The same as fields, for `--json` and the API.
    pub fn to_view(&self) -> ProblemView {
        let position = self.position();
        ProblemView {
            code: self.code.to_string(),
            message: self.message.clone(),
            file: (!self.file.is_empty()).then(|| visible(&self.file)),
            line: position.map(|p| p.0),
            column: position.map(|p| p.1),
            help: self.help.clone(),
            rendered: self.render(false),
        }
    }

    /// The first line of the span as it may be printed, and the span inside it.
    fn place(&self) -> Option<Place> {
        let (text, span) = (self.source.as_deref()?, self.span.clone()?);
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let end = end.min(line_end);
        let number = text[..line_start].bytes().filter(|b| *b == b'\n').count() + 1;
        let whole = text[line_start..line_end]
            .strip_suffix('\r')
            .unwrap_or(&text[line_start..line_end]);
        let (start, end) = (
            (start - line_start).min(whole.len()),
            (end - line_start).min(whole.len()),
        );
        // The mark must not be wider than a terminal, and one long line must not be rendered whole for every mistake.
        let end = floor_boundary(whole, end.min(start.saturating_add(MAX_MARK)));
        let shown_end = floor_boundary(whole, whole.len().min(end.saturating_add(MAX_MARK)));
        let mut line = one_to_one(&whole[..start]);
        let from = line.len();
        line += &one_to_one(&whole[start..end]);
        let to = line.len();
        line += &one_to_one(&whole[end..shown_end]);
        Some(Place {
            line,
            span: from..to,
            number,
        })
    }
}

struct Place {
    line: String,
    span: Range<usize>,
    number: usize,
}

/// A little under the widest terminal people use, so that snippets do not wrap.
const TERM_WIDTH: usize = 120;
const MAX_MARK: usize = 200;

/// All of them, a blank line between, and the [`footer`]. Ends with a newline unless empty.
pub fn render_all(problems: &[Problem], colour: bool) -> String {
    let mut out = String::new();
    for problem in problems {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &problem.render(colour);
        out.push('\n');
    }
    if let Some(footer) = footer(problems) {
        let _ = write!(out, "\n{footer}\n");
    }
    out
}

/// Which chapters of the offline help tell more: ``more: `narae help E0042` ``.
pub fn footer(problems: &[Problem]) -> Option<String> {
    let codes: std::collections::BTreeSet<&str> = problems.iter().map(|p| p.code.as_str()).collect();
    match codes.len() {
        0 => None,
        1 => codes.first().map(|code| format!("more: `narae help {code}`")),
        _ => Some(format!(
            "more: `narae help CODE` for {}",
            codes.into_iter().collect::<Vec<_>>().join(", ")
        )),
    }
}

/// The text with control, direction and zero-width characters as escapes: `\n`, `\u{1b}`.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

/// [`visible`] and at most 60 characters, for quoting input inside a message.
pub fn quoted(text: &str) -> String {
    let short: Cow<'_, str> = match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    };
    format!("`{}`", visible(&short))
}

/// Hidden characters replaced one to one, so that columns stay true.
fn one_to_one(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c != '\t' && hidden(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Moves the cursor, the direction or nothing at all: not for terminals.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The nearest character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}
