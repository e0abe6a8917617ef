//! What went wrong, in the one form people meet: a message, where, and the shortest repair; and with which exit code the
//! program ends. Knows no verb and no socket.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::exit::Exit;
use super::units::printable;
use crate::model::views::ProblemView;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const BOLD: Style = Style::new().bold();
const MARGIN: Style = AnsiColor::Blue.on_default().bold();

/// One finding: the fields for scripts, and the text for people (with colour codes; the stream removes them where they
/// are not wanted).
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Boxed: a report is the error of many functions.
    pub view: Box<ProblemView>,
    pub styled: String,
}

impl Report {
    /// A finding of the command line itself. `code` is one of [`super::codes`].
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self::make("error", ERROR, code, message.into())
    }

    /// Something worth saying that stops nothing.
    pub fn warning(code: &str, message: impl Into<String>) -> Self {
        Self::make("warning", WARNING, code, message.into())
    }

    fn make(level: &str, style: Style, code: &str, message: String) -> Self {
        let message = printable(&message).into_owned();
        let styled = format!("{style}{level}{style:#}{BOLD}: {message}{BOLD:#}");
        let rendered = format!("{level}: {message}");
        let code = code.into();
        let view = ProblemView {
            code,
            message,
            file: None,
            line: None,
            column: None,
            help: None,
            rendered,
        };
        Self {
            view: Box::new(view),
            styled,
        }
    }

    /// The file it is about. The first one counts; a second one is where the first was named.
    #[must_use]
    pub fn file(self, file: impl Into<String>) -> Self {
        self.place(file.into(), None)
    }

    /// The file, line and column it is about, from 1.
    #[must_use]
    pub fn at(self, file: impl Into<String>, line: u32, column: u32) -> Self {
        self.place(file.into(), Some((line, column)))
    }

    fn place(mut self, file: String, at: Option<(u32, u32)>) -> Self {
        let file = printable(&file).into_owned();
        if self.view.file.is_some() {
            return self.line("note", &format!("named in {file}"));
        }
        let shown = at.map_or_else(|| file.clone(), |(line, column)| format!("{file}:{line}:{column}"));
        let _ = write!(self.view.rendered, "\n --> {shown}");
        let _ = write!(self.styled, "\n{MARGIN} -->{MARGIN:#} {shown}");
        self.view.file = Some(file);
        (self.view.line, self.view.column) = (at.map(|a| a.0), at.map(|a| a.1));
        self
    }

    fn line(mut self, title: &str, text: &str) -> Self {
        let _ = write!(self.view.rendered, "\n  = {title}: {text}");
        let _ = write!(self.styled, "\n{MARGIN}  = {MARGIN:#}{BOLD}{title}{BOLD:#}: {text}");
        self
    }

    /// The shortest repair.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        let help = printable(&help.into()).into_owned();
        self = self.line("help", &help);
        self.view.help = Some(help);
        self
    }

    /// What the daemon, or a check that made no colour, said.
    pub fn of_view(view: ProblemView) -> Self {
        if view.rendered.is_empty() {
            let bare = Self::new(&view.code, view.message);
            let bare = match (view.file, view.line, view.column) {
                (Some(file), Some(line), Some(column)) => bare.at(file, line, column),
                (Some(file), _, _) => bare.file(file),
                (None, _, _) => bare,
            };
            return match view.help {
                Some(help) => bare.help(help),
                None => bare,
            };
        }
        Self {
            styled: printable_lines(&view.rendered),
            view: Box::new(view),
        }
    }
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// Why a verb ends otherwise than well. No reports: it has been said already.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub exit: Exit,
    pub reports: Vec<Report>,
}

impl Failure {
    pub fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            reports: vec![Report::new(code, message)],
        }
    }

    /// Everything has been said; only the number is left.
    pub const fn silent(exit: Exit) -> Self {
        Self {
            exit,
            reports: Vec::new(),
        }
    }

    pub fn of(exit: Exit, reports: Vec<Report>) -> Self {
        Self { exit, reports }
    }

    /// Adds the shortest repair to the last report.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(last) = self.reports.pop() {
            self.reports.push(last.help(help));
        }
        self
    }

    /// Adds the file to the last report.
    #[must_use]
    pub fn file(mut self, file: impl Into<String>) -> Self {
        if let Some(last) = self.reports.pop() {
            self.reports.push(last.file(file));
        }
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let messages: Vec<&str> = self.reports.iter().map(|r| r.view.message.as_str()).collect();
        f.write_str(&messages.join("; "))
    }
}

impl From<std::io::Error> for Failure {
    /// Of writing a result: a reader that left early (`| head`) is no failure.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::silent(Exit::Done);
        }
        Self::new(
            Exit::Failed,
            super::codes::WRITE,
            format!("cannot write the result: {}", super::units::io_words(&error)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_where_and_how_to_repair() {
        let report = Report::new("E0501", "cannot reach the daemon")
            .file("a.toml")
            .help("start it with `narae serve`");
        insta::assert_snapshot!(report.view.rendered, @r"
        error: cannot reach the daemon
         --> a.toml
          = help: start it with `narae serve`
        ");
        assert!(report.styled.contains("\u{1b}["));
    }

    #[test]
    fn a_second_file_is_where_the_first_was_named() {
        let report = Report::new("E0310", "does not assemble")
            .at("a.wat", 2, 4)
            .file("a.toml");
        assert_eq!(
            (report.view.file.as_deref(), report.view.line, report.view.column),
            (Some("a.wat"), Some(2), Some(4))
        );
        assert!(
            report
                .view
                .rendered
                .ends_with(" --> a.wat:2:4\n  = note: named in a.toml")
        );
    }

    #[test]
    fn a_problem_without_a_printed_form_gets_one() {
        let bare = Report::new("E0042", "no").at("a.toml", 1, 2).help("yes");
        let sent = ProblemView {
            rendered: String::new(),
            ..(*bare.view).clone()
        };
        assert_eq!(Report::of_view(sent), bare);
    }

    #[test]
    fn escapes_in_a_message_are_made_visible() {
        let report = Report::new("E0501", "bad \u{1b}[31mname");
        assert!(!report.view.rendered.contains('\u{1b}'));
        let sent = ProblemView {
            rendered: "error: \u{1b}]0;title\u{7}".into(),
            ..*report.view
        };
        assert!(!Report::of_view(sent).styled.contains('\u{1b}'));
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure::silent(Exit::Done));
    }
}
