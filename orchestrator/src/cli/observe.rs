//! Verbs that watch: logs, events, metrics. Streams are JSON Lines for machines and one line each for people.

use clap::{Args, ValueEnum};

use super::client::{Lines, with_query};
use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::service;
use super::session::{Session, now};
use super::units::{parse_moment, printable};
use crate::model::views::{EventView, LogView};
use crate::model::{EventKind, ReplicaId, ServiceName};

/// `narae logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    pub name: ServiceName,
    /// Go on with new lines until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<u64>,
    /// Only lines since: a duration back from now (10m), or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Only lines until
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// Only of this replica
    #[arg(long, value_name = "ID")]
    pub replica: Option<ReplicaId>,
    /// Only of this revision
    #[arg(long, value_name = "N")]
    pub revision: Option<u64>,
    /// Only of this level or above
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// Only lines that hold this
    #[arg(long, value_name = "PATTERN")]
    pub grep: Option<String>,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

fn kind(text: &str) -> Result<EventKind, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

fn kind_word(kind: EventKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// `narae events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Go on with new events until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Only events since: a duration back from now (10m), or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,
    /// Only of this kind, as trap or rolled-back
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub kind: Option<EventKind>,
}

/// Prints what guests wrote.
///
/// # Errors
/// No such service, a time that is none, or the daemon is gone.
pub async fn logs(session: &Session, args: LogsArgs) -> Result<Exit, Failure> {
    let filtered = args.since.is_some()
        || args.until.is_some()
        || args.replica.is_some()
        || args.revision.is_some()
        || args.level.is_some()
        || args.grep.is_some();
    let query = [
        ("tail", args.tail.map(|n| n.to_string())),
        ("since_ms", moment(args.since.as_deref())?),
        ("until_ms", moment(args.until.as_deref())?),
        ("replica", args.replica.map(|r| r.to_string())),
        ("revision", args.revision.map(|n| n.to_string())),
        ("level", args.level.map(|l| l.name().to_owned())),
        ("grep", args.grep),
        ("follow", args.follow.then(|| "true".to_owned())),
    ];
    let client = session.client().await?;
    let lines = client
        .lines(&with_query(&service::path(&args.name, "logs"), &query))
        .await?;
    let empty = match filtered {
        true => format!("no line of {} fits", args.name),
        false => format!("{} has written nothing yet", args.name),
    };
    let stamps = args.timestamps;
    pour(session, lines, args.follow, &empty, move |line: &LogView| {
        log_line(line, stamps)
    })
    .await
}

/// Prints what happened.
///
/// # Errors
/// A time that is none, or the daemon is gone.
pub async fn events(session: &Session, args: EventsArgs) -> Result<Exit, Failure> {
    let query = [
        ("follow", args.follow.then(|| "true".to_owned())),
        ("since_ms", moment(args.since.as_deref())?),
        ("service", args.service.map(|s| s.to_string())),
        ("kind", args.kind.map(kind_word)),
    ];
    let client = session.client().await?;
    let lines = client.lines(&with_query("/v1/events", &query)).await?;
    pour(session, lines, args.follow, "nothing has happened yet", event_lines).await
}

/// Prints a stream until its end, or until interrupted.
async fn pour<T>(
    session: &Session,
    mut lines: Lines,
    follow: bool,
    empty: &str,
    show: impl Fn(&T) -> String,
) -> Result<Exit, Failure>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut none = true;
    loop {
        let next = tokio::select! {
            next = lines.next::<T>() => next?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        let Some(item) = next else { break };
        none = false;
        if session.format.is_json() {
            session.json_line(&item)?;
        } else {
            session.print(&format!("{}\n", show(&item)))?;
        }
    }
    if none && !follow && !session.format.is_json() {
        session.note(empty);
    }
    Ok(Exit::Done)
}

/// The OpenMetrics text.
///
/// # Errors
/// The daemon is gone.
pub async fn metrics(session: &Session) -> Result<Exit, Failure> {
    let text = session.client().await?.text("/v1/metrics").await?;
    session.print(&text)?;
    Ok(Exit::Done)
}

fn moment(text: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let at = parse_moment(text, now())
        .map_err(|why| Failure::new(Exit::Usage, codes::VALUE, format!("`{}`: {why}", printable(text))))?;
    Ok(Some(at.to_string()))
}

/// `r17 | line`.
pub fn log_line(line: &LogView, stamps: bool) -> String {
    let mark = if line.stream == "stderr" {
        anstyle::AnsiColor::Yellow
    } else {
        anstyle::AnsiColor::Cyan
    }
    .on_default();
    let stamp = if stamps {
        format!("{} ", printable(&line.at))
    } else {
        String::new()
    };
    format!(
        "{stamp}{mark}{}{mark:#} | {}",
        printable(&line.replica),
        printable(&line.line)
    )
}

/// `time kind service@revision/replica message`.
pub fn event_line(event: &EventView) -> String {
    let mut subject = event.service.clone().unwrap_or_else(|| "node".into());
    if let Some(revision) = event.revision {
        subject.push_str(&format!("@{revision}"));
    }
    if let Some(replica) = &event.replica {
        subject.push_str(&format!("/{replica}"));
    }
    let limit = event.limit.as_ref().map_or(String::new(), |l| format!(" (limit: {l})"));
    let style = match event.kind.as_str() {
        "trap" | "limit" | "died" | "refused" | "crash-loop" | "rolled-back" => anstyle::AnsiColor::Red.on_default(),
        "proved" | "serving" => anstyle::AnsiColor::Green.on_default(),
        _ => anstyle::Style::new(),
    };
    format!(
        "{} {style}{}{style:#} {} {}{}",
        printable(&event.at),
        printable(&event.kind),
        printable(&subject),
        printable(&event.message),
        printable(&limit)
    )
}

/// The line, and the wasm frames below it.
fn event_lines(event: &EventView) -> String {
    event.backtrace.iter().fold(event_line(event), |out, frame| {
        format!("{out}\n    at {}", printable(frame))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> EventView {
        EventView {
            seq: 1,
            at: "2026-11-24T05:30:31.000Z".into(),
            kind: "limit".into(),
            service: Some("hello".into()),
            revision: Some(2),
            replica: Some("r3".into()),
            message: "over its memory\u{1b}[2J".into(),
            limit: Some("memory".into()),
            backtrace: vec!["hello!grow".into()],
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_event_is_one_line_and_its_frames() {
        insta::assert_snapshot!(plain(&event_lines(&event())), @r"
        2026-11-24T05:30:31.000Z limit hello@2/r3 over its memory\u{1b}[2J (limit: memory)
            at hello!grow
        ");
        let node = EventView {
            service: None,
            revision: None,
            replica: None,
            limit: None,
            backtrace: vec![],
            ..event()
        };
        assert!(plain(&event_line(&node)).contains(" limit node over"));
    }

    #[test]
    fn an_event_as_json_is_a_contract() {
        insta::assert_json_snapshot!("event_json", event());
    }

    #[test]
    fn a_log_line_names_its_replica() {
        let line = LogView {
            at: "2026-11-24T05:30:31.000Z".into(),
            service: "hello".into(),
            revision: 2,
            replica: "r3".into(),
            stream: "stdout".into(),
            level: "info".into(),
            line: "ready".into(),
        };
        assert_eq!(plain(&log_line(&line, false)), "r3 | ready");
        assert_eq!(plain(&log_line(&line, true)), "2026-11-24T05:30:31.000Z r3 | ready");
        insta::assert_json_snapshot!("log_json", line);
    }

    #[test]
    fn a_time_that_is_none_is_a_bad_command_line() {
        assert_eq!(moment(Some("noon")).unwrap_err().exit, Exit::Usage);
        assert_eq!(moment(None), Ok(None));
    }
}
