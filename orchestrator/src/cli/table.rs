//! Tables without borders, as `list` and its kin print them. Pure: rows in, text out; colour codes are removed by the
//! stream where they are not wanted, and every colour has a word beside it.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::units::printable;

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    pub tone: Tone,
}

/// What the colour says again after the word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
}

impl<T: Into<String>> From<T> for Text {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            tone: Tone::Plain,
        }
    }
}

/// The word of a state, in its colour.
pub fn state(word: &str) -> Text {
    let tone = match word {
        "healthy" | "serving" | "done" | "proved" | "succeeded" => Tone::Good,
        "crash-loop" | "failed" | "timed-out" | "missed" | "interrupted" | "refused" | "dead" => Tone::Bad,
        "starting" | "started" | "idle" | "rolling" | "running" | "degraded" | "draining" | "stopping" | "deleting"
        | "pending" => Tone::Warn,
        _ => Tone::Plain,
    };
    Text {
        text: word.to_owned(),
        tone,
    }
}

/// A number or text that may be absent.
pub fn or_dash(text: Option<String>) -> Text {
    text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".into()).into()
}

/// Numbers, aligned right; named in the heading by a trailing `>`, which is not printed.
pub fn render(headings: &[&str], rows: Vec<Vec<Text>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .enforce_styling();
    table.style_text_only();
    table.set_header(headings.iter().map(|h| Cell::new(h.trim_end_matches('>'))));
    for row in rows {
        table.add_row(row.into_iter().map(cell));
    }
    for (at, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(at) {
            column.set_padding((0, 2));
            if heading.ends_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut out = String::new();
    for line in table.lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn cell(text: Text) -> Cell {
    let cell = Cell::new(printable(&text.text));
    match text.tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
    }
}

/// Names and values, one pair a line, values in one column.
pub fn pairs(pairs: &[(&str, Text)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in pairs {
        let style = match value.tone {
            Tone::Plain => anstyle::Style::new(),
            Tone::Good => anstyle::AnsiColor::Green.on_default(),
            Tone::Warn => anstyle::AnsiColor::Yellow.on_default(),
            Tone::Bad => anstyle::AnsiColor::Red.on_default().bold(),
        };
        out.push_str(&format!("{name:>width$}: {style}{}{style:#}\n", printable(&value.text)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_table_has_no_borders_and_no_trailing_spaces() {
        let rows = vec![
            vec!["hello".into(), "7".into(), state("healthy")],
            vec!["a-much-longer-name".into(), "12".into(), state("failed")],
        ];
        let out = render(&["SERVICE", "REV>", "STATE"], rows);
        assert!(out.contains("\u{1b}["));
        insta::assert_snapshot!(plain(&out), @r"
        SERVICE             REV  STATE
        hello                 7  healthy
        a-much-longer-name   12  failed
        ");
        assert!(plain(&out).lines().all(|l| l.trim_end() == l));
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal() {
        let out = render(&["A"], vec![vec!["x\u{1b}[2Jy\nz".into()]]);
        assert!(plain(&out).contains("x\\u{1b}[2Jy\\nz"), "{out}");
    }

    #[test]
    fn pairs_stand_in_two_columns() {
        insta::assert_snapshot!(plain(&pairs(&[("state", state("healthy")), ("routes", "/".into())])), @r"
         state: healthy
        routes: /
        ");
    }
}
