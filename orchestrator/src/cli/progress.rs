//! How far a change is, on standard error: a line that moves on a terminal, one plain line for each change elsewhere, JSON
//! for machines. Knows no daemon.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::args::ProgressMode;
use super::session::{Session, say};
use super::units::printable;

/// One state of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub schema: u32,
    pub service: String,
    pub revision: Option<u64>,
    /// `uploading`, `running`, `done`, `refused`, `stopping`, …
    pub state: String,
    pub new_serving: u32,
    pub old_serving: u32,
    pub wanted: u32,
    pub note: Option<String>,
}

impl Step {
    /// A step without counts.
    pub fn of(service: &str, state: &str, note: Option<String>) -> Self {
        Self {
            schema: 1,
            service: service.to_owned(),
            revision: None,
            state: state.to_owned(),
            new_serving: 0,
            old_serving: 0,
            wanted: 0,
            note,
        }
    }

    /// The step as one line for people.
    pub fn line(&self) -> String {
        let mut out = self.service.clone();
        if let Some(revision) = self.revision {
            out.push_str(&format!(" revision {revision}"));
        }
        out.push_str(&format!(": {}", self.state));
        if self.wanted > 0 {
            out.push_str(&format!(", {}/{} serving", self.new_serving, self.wanted));
            if self.old_serving > 0 {
                out.push_str(&format!(", {} old", self.old_serving));
            }
        }
        if let Some(note) = &self.note {
            out.push_str(&format!(" ({})", printable(note)));
        }
        out
    }
}

/// Shows steps; says nothing twice.
#[derive(Debug)]
pub struct Progress {
    how: How,
    last: Option<Step>,
}

#[derive(Debug)]
enum How {
    Bar(ProgressBar),
    Plain,
    Json,
    Nothing,
}

impl Progress {
    pub fn of(session: &Session) -> Self {
        let how = match session.progress_mode() {
            _ if session.globals.quiet => How::Nothing,
            ProgressMode::Auto => How::Bar(spinner()),
            ProgressMode::Plain => How::Plain,
            ProgressMode::Json => How::Json,
            ProgressMode::None => How::Nothing,
        };
        Self { how, last: None }
    }

    /// Shows a step unless it is the one that stands there.
    pub fn show(&mut self, step: Step) {
        if self.last.as_ref() == Some(&step) {
            return;
        }
        match &self.how {
            How::Bar(bar) => bar.set_message(step.line()),
            How::Plain => say(&step.line()),
            How::Json => say(&serde_json::to_string(&step).unwrap_or_default()),
            How::Nothing => {}
        }
        self.last = Some(step);
    }

    /// Takes the moving line away.
    pub fn clear(&self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_without_control_characters() {
        let mut step = Step::of("hello", "running", Some("waiting\u{1b}[2J".into()));
        assert_eq!(step.line(), "hello: running (waiting\\u{1b}[2J)");
        step = Step {
            revision: Some(2),
            new_serving: 1,
            old_serving: 3,
            wanted: 3,
            note: None,
            ..step
        };
        assert_eq!(step.line(), "hello revision 2: running, 1/3 serving, 3 old");
    }
}
