//! What every verb is handed: the shared flags, decided once, and the only ways to write. Results go to standard output,
//! everything else to standard error.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use super::args::{Globals, ProgressMode};
use super::client::Client;
use super::codes;
use super::exit::Exit;
use super::report::{Failure, Report};
use crate::model::views::{List, Problems};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Table,
    /// A table with more columns.
    Wide,
    /// One document.
    Json,
    /// One line for each item.
    JsonLines,
    /// Names only.
    Name,
}

impl Format {
    /// Of `-o` and `--json`.
    ///
    /// # Errors
    /// The text is none of the formats.
    pub fn of(globals: &Globals) -> Result<Self, Failure> {
        if globals.json {
            return Ok(Self::Json);
        }
        match globals.output.as_deref() {
            None | Some("table" | "") => Ok(Self::Table),
            Some("wide") => Ok(Self::Wide),
            Some("json") => Ok(Self::Json),
            Some("jsonl") => Ok(Self::JsonLines),
            Some("name") => Ok(Self::Name),
            Some(other) => Err(
                Failure::new(Exit::Usage, codes::VALUE, format!("`{other}` is no output format"))
                    .help("formats are table, wide, json, jsonl and name"),
            ),
        }
    }

    /// For machines.
    pub const fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::JsonLines)
    }
}

/// One call of the program.
#[derive(Clone, Debug)]
pub struct Session {
    pub globals: Globals,
    pub format: Format,
}

impl Session {
    /// # Errors
    /// A shared flag has a value that means nothing.
    pub fn new(globals: Globals) -> Result<Self, Failure> {
        Ok(Self {
            format: Format::of(&globals)?,
            globals,
        })
    }

    /// The daemon, found.
    ///
    /// # Errors
    /// None answers.
    pub async fn client(&self) -> Result<Client, Failure> {
        Client::find(&self.globals).await
    }

    /// Writes a result as it is (colour codes are removed where they are not wanted).
    ///
    /// # Errors
    /// Standard output refuses it.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Writes bytes that are not ours to look at.
    ///
    /// # Errors
    /// Standard output refuses them.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    }

    /// Writes one JSON document, or one line of JSON with `-o jsonl`.
    ///
    /// # Errors
    /// Standard output refuses it.
    pub fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::JsonLines => serde_json::to_string(value),
            _ => serde_json::to_string_pretty(value),
        };
        self.print(&(text.map_err(|e| std::io::Error::other(e.to_string()))? + "\n"))
    }

    /// Writes one line of a stream.
    ///
    /// # Errors
    /// Standard output refuses it.
    pub fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.print(&(serde_json::to_string(value).map_err(|e| std::io::Error::other(e.to_string()))? + "\n"))
    }

    /// Writes a list in the format asked for. `empty` explains a table without rows.
    ///
    /// # Errors
    /// Standard output refuses it.
    pub fn items<T: Serialize + Clone>(
        &self,
        items: &[T],
        empty: &str,
        name: impl Fn(&T) -> String,
        table: impl FnOnce(&[T], bool) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(&List::of(items.to_vec())),
            Format::JsonLines => items.iter().try_for_each(|item| self.json_line(item)),
            Format::Name => items.iter().try_for_each(|item| self.print(&(name(item) + "\n"))),
            Format::Table | Format::Wide if items.is_empty() => {
                self.note(empty);
                Ok(())
            }
            format => self.print(&table(items, format == Format::Wide)),
        }
    }

    /// Something people should know and scripts need not; not with `-q`.
    pub fn note(&self, text: &str) {
        if !self.globals.quiet {
            say(text);
        }
    }

    /// The one most useful next command, after a change.
    pub fn next(&self, command: &str) {
        if !self.globals.quiet && !self.format.is_json() {
            say(&format!("next: {command}"));
        }
    }

    /// What is being done, with `-v`.
    pub fn detail(&self, text: &str) {
        if self.globals.verbose > 0 {
            say(text);
        }
    }

    /// Tells what is wrong: people read the form of the reference, scripts (`-o json`) get the fields.
    pub fn tell(&self, reports: &[Report]) {
        tell(reports, self.format.is_json());
    }

    /// Asks before something is destroyed.
    ///
    /// # Errors
    /// The answer is no, or there is nobody to ask.
    pub fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.globals.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if self.globals.no_input || !stdin.is_terminal() {
            return Err(Failure::new(
                Exit::Usage,
                codes::CONFIRM,
                format!("{question} nobody can be asked here"),
            )
            .help("add `-y` to say yes"));
        }
        let mut err = anstream::stderr().lock();
        let _ = write!(err, "{question} [y/N] ");
        let _ = err.flush();
        let mut answer = String::new();
        let read = stdin.read_line(&mut answer).unwrap_or(0);
        if read > 0 && matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        say("nothing was changed");
        Err(Failure::silent(Exit::Failed))
    }

    /// How progress is shown.
    pub fn progress_mode(&self) -> ProgressMode {
        match self.globals.progress {
            ProgressMode::Auto if std::io::stderr().is_terminal() => ProgressMode::Auto,
            ProgressMode::Auto => ProgressMode::Plain,
            other => other,
        }
    }
}

/// One line to standard error. That it cannot be written is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Reports to standard error, as text or as one JSON document.
pub fn tell(reports: &[Report], json: bool) {
    if reports.is_empty() {
        return;
    }
    let mut err = anstream::stderr().lock();
    if json {
        let problems = Problems {
            schema: 1,
            errors: reports.iter().map(|r| (*r.view).clone()).collect(),
        };
        let _ = writeln!(err, "{}", serde_json::to_string(&problems).unwrap_or_default());
        return;
    }
    for report in reports {
        let _ = writeln!(err, "{}\n", report.styled.trim_end());
    }
    let codes: std::collections::BTreeSet<&str> = reports.iter().map(|r| r.view.code.as_str()).collect();
    let codes: Vec<&str> = codes.into_iter().filter(|code| !code.is_empty()).collect();
    let _ = match codes.as_slice() {
        [] => Ok(()),
        [code] => writeln!(err, "more: `narae help {code}`"),
        many => writeln!(err, "more: `narae help CODE` for {}", many.join(", ")),
    };
}

/// Now, for ages and `--since`: the command line is a shell and may look.
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_format_is_a_bad_command_line() {
        let globals = Globals {
            output: Some("yaml".into()),
            ..Globals::default()
        };
        assert_eq!(Format::of(&globals).unwrap_err().exit, Exit::Usage);
        let globals = Globals {
            json: true,
            ..Globals::default()
        };
        assert_eq!(Format::of(&globals), Ok(Format::Json));
    }

    #[test]
    fn nothing_is_destroyed_where_nobody_can_be_asked() {
        let session = Session::new(Globals {
            no_input: true,
            ..Globals::default()
        })
        .unwrap();
        let failure = session.confirm("delete hello?").unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let session = Session::new(Globals {
            no_input: true,
            yes: true,
            ..Globals::default()
        })
        .unwrap();
        assert!(session.confirm("delete hello?").is_ok());
    }
}
