//! Verbs on crash reports: list, show. Formats and asks; what a report holds is the daemon's.

use clap::Subcommand;

use super::client::with_query;
use super::exit::Exit;
use super::report::Failure;
use super::session::{Format, Session};
use super::table::{Text, pairs, render};
use crate::model::ServiceName;
use crate::model::views::{CrashView, List};

/// `narae crash …`.
#[derive(Clone, Debug, Subcommand)]
pub enum CrashVerb {
    /// List the crash reports that are kept, the newest first
    List {
        /// Of this service only
        #[arg(long, value_name = "NAME")]
        service: Option<ServiceName>,
    },
    /// Show one report: why it died, where it was, what it wrote last
    Show {
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Runs a verb of the group.
///
/// # Errors
/// No such report (4), or the daemon is gone.
pub async fn crash(session: &Session, verb: CrashVerb) -> Result<Exit, Failure> {
    match verb {
        CrashVerb::List { service } => list(session, service).await,
        CrashVerb::Show { id } => show(session, &id).await,
    }
}

async fn list(session: &Session, service: Option<ServiceName>) -> Result<Exit, Failure> {
    let query = [("service", service.map(|s| s.to_string()))];
    let list: List<CrashView> = session.client().await?.get(&with_query("/v1/crashes", &query)).await?;
    let empty = "no crash reports: nothing has trapped or died";
    session.items(&list.items, empty, |c| c.id.clone(), table)?;
    if let Some(newest) = list.items.first() {
        session.next(&format!("narae crash show {}", newest.id));
    }
    Ok(Exit::Done)
}

fn table(items: &[CrashView], wide: bool) -> String {
    let rows = items.iter().map(|c| {
        let reason: String = c.reason.chars().take(if wide { usize::MAX } else { 60 }).collect();
        vec![
            c.id.clone().into(),
            c.at.clone().into(),
            c.service.clone().into(),
            c.revision.to_string().into(),
            c.replica.clone().into(),
            c.kind.clone().into(),
            reason.into(),
        ]
    });
    render(
        &["ID", "AT", "SERVICE", "REV>", "REPLICA", "KIND", "REASON"],
        rows.collect(),
    )
}

async fn show(session: &Session, id: &str) -> Result<Exit, Failure> {
    let safe = id.bytes().all(|b| b.is_ascii_alphanumeric()) && !id.is_empty();
    let asked = if safe { id } else { "none" };
    let view: CrashView = session.client().await?.get(&format!("/v1/crashes/{asked}")).await?;
    match session.format {
        Format::Json | Format::JsonLines => session.json(&view)?,
        Format::Name => session.print(&format!("{}\n", view.id))?,
        Format::Table | Format::Wide => session.print(&text(&view))?,
    }
    Ok(Exit::Done)
}

fn text(c: &CrashView) -> String {
    let mut rows: Vec<(&str, Text)> = vec![
        ("id", c.id.clone().into()),
        ("at", c.at.clone().into()),
        ("service", c.service.clone().into()),
        ("revision", c.revision.to_string().into()),
        ("replica", c.replica.clone().into()),
        ("kind", c.kind.clone().into()),
        ("reason", c.reason.clone().into()),
    ];
    rows.extend(c.limit.iter().map(|l| ("limit", l.clone().into())));
    rows.extend(c.digest.iter().map(|d| ("module", d.clone().into())));
    rows.push(("restarts", c.restarts.to_string().into()));
    rows.push(("narae", c.version.clone().into()));
    if c.not_written > 0 {
        rows.push(("before it", format!("{} more were not written", c.not_written).into()));
    }
    let mut out = pairs(&rows);
    for (title, lines) in [("backtrace, innermost first", &c.backtrace), ("last output", &c.log)] {
        if !lines.is_empty() {
            out.push_str(&format!("\n{title}:\n"));
            for line in lines {
                out.push_str(&format!("  {line}\n"));
            }
        }
    }
    out
}
