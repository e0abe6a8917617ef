//! Verbs on revisions: how the last change went, which ones are kept, and back to one of them.

use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::client::Client;
use super::deploy::{WAIT, wait_for};
use super::draw;
use super::exit::Exit;
use super::follow;
use super::progress::Progress;
use super::report::Failure;
use super::service;
use super::session::{Format, Session, now};
use super::table::{or_dash, pairs, render, state};
use super::units::{age_of, parse_duration, printable};
use crate::model::ServiceName;
use crate::model::views::{DeployAnswer, List, RevisionView, RolloutView};

/// `narae rollout …`.
#[derive(Clone, Debug, Subcommand)]
pub enum RolloutVerb {
    /// Show how far the last change of revision is
    Status(StatusArgs),
    /// List the revisions that are kept
    History(NameArgs),
    /// Go back to the revision before, or to any that is kept
    Undo(UndoArgs),
    /// Take no further step until it is resumed
    Pause(NameArgs),
    /// Take steps again
    Resume(NameArgs),
    /// Pass over the steps and gates that are left
    Promote(NameArgs),
    /// Refuse the revision on trial: back to the stable one at once
    Abort(NameArgs),
}

/// `narae rollout status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    pub name: ServiceName,
    /// Draw the traffic split until the rollout ends
    #[arg(long)]
    pub watch: bool,
}

#[derive(Clone, Debug, Args)]
pub struct NameArgs {
    pub name: ServiceName,
}

/// `narae rollout undo`, `narae rollback`.
#[derive(Clone, Debug, Args)]
pub struct UndoArgs {
    pub name: ServiceName,
    /// The revision to go back to; the stable one before when absent
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,
    /// Do not wait until it is healthy
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = WAIT, value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Runs a verb of the group.
///
/// # Errors
/// No such service or revision, or as `deploy`.
pub async fn rollout(session: &Session, verb: RolloutVerb) -> Result<Exit, Failure> {
    match verb {
        RolloutVerb::Status(args) if args.watch => watch(session, &args.name).await,
        RolloutVerb::Status(args) => status(session, &args.name).await,
        RolloutVerb::Pause(args) => change(session, &args.name, "pause").await,
        RolloutVerb::Resume(args) => change(session, &args.name, "resume").await,
        RolloutVerb::Promote(args) => change(session, &args.name, "promote").await,
        RolloutVerb::Abort(args) => change(session, &args.name, "abort").await,
        RolloutVerb::History(args) => history(session, &args.name).await,
        RolloutVerb::Undo(args) => undo(session, args).await,
    }
}

async fn status(session: &Session, name: &ServiceName) -> Result<Exit, Failure> {
    let view: RolloutView = session.client().await?.get(&service::path(name, "rollout")).await?;
    match session.format {
        Format::Json | Format::JsonLines => session.json(&view)?,
        Format::Name => session.print(&format!("{}\n", view.service))?,
        Format::Table | Format::Wide => session.print(&summary(&view))?,
    }
    Ok(Exit::Done)
}

/// Asks something of the rollout that is under way.
async fn change(session: &Session, name: &ServiceName, verb: &str) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let path = service::path(name, &format!("rollout/{verb}"));
    let view: RolloutView = client.json(Method::POST, &path, Some(&json!({}))).await?;
    match session.format {
        Format::Json | Format::JsonLines => session.json(&view)?,
        Format::Name => session.print(&format!("{}\n", view.service))?,
        Format::Table | Format::Wide => session.print(&format!("{}\n", draw::line(&view)))?,
    }
    session.next(&match verb {
        "pause" => format!("narae rollout resume {name}"),
        "abort" => format!("narae rollout history {name}"),
        _ => format!("narae rollout status {name} --watch"),
    });
    Ok(Exit::Done)
}

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_millis(250);

/// Draws the split until the rollout ends: in place on a terminal, else one line (or JSON object) for each change.
async fn watch(session: &Session, name: &ServiceName) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let path = service::path(name, "rollout");
    let json = session.format.is_json();
    let in_place = !json && std::io::IsTerminal::is_terminal(&std::io::stdout());
    let (mut course, mut last, mut drawn) = (draw::Course::default(), None::<RolloutView>, 0);
    loop {
        let view: RolloutView = client.get(&path).await?;
        course.see(&view);
        if in_place {
            let lines = draw::frame(&view, &course);
            if drawn > 0 {
                session.raw(format!("\x1b[{drawn}A\x1b[J").as_bytes())?;
            }
            drawn = lines.len();
            session.print(&format!("{}\n", lines.join("\n")))?;
        } else if !last.as_ref().is_some_and(|last| draw::same(last, &view)) {
            if json {
                session.json_line(&view)?;
            } else {
                session.print(&format!("{}\n", draw::line(&view)))?;
            }
        }
        match view.state.as_str() {
            "running" => {}
            "refused" => {
                return Ok(if view.from.is_some() {
                    Exit::RolledBack
                } else {
                    Exit::Failed
                });
            }
            _ => return Ok(Exit::Done),
        }
        last = Some(view);
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
    }
}

/// Waits until all requests go to this revision again: it served all the while.
async fn swung_back(
    client: &Client,
    answer: &DeployAnswer,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let path = format!("/v1/services/{}/rollout", answer.service);
    let again = format!("narae rollout status {}", answer.service);
    let look = async |_: &mut Progress| {
        let view: RolloutView = client.get(&path).await?;
        let all = view
            .split
            .iter()
            .all(|s| s.revision == answer.revision || s.percent == 0.0);
        Ok((all && !view.split.is_empty()).then_some(()))
    };
    follow::until(limit, &again, look, progress).await
}

/// The change of revision, with what the planner says.
pub fn summary(view: &RolloutView) -> String {
    let from = view.from.map_or_else(|| "nothing".into(), |n| n.to_string());
    let mut top = vec![
        (
            "rollout",
            format!("{}: revision {from} -> {}", view.service, view.to).into(),
        ),
        ("state", state(&view.state)),
        (
            "serving",
            format!("{} new, {} old, of {}", view.new_serving, view.old_serving, view.wanted).into(),
        ),
    ];
    if view.steps > 0 && view.state == "running" {
        top.push(("split", draw::line(view).into()));
    }
    if let Some(reason) = &view.reason {
        top.push(("reason", reason.clone().into()));
    }
    let mut out = pairs(&top);
    for note in &view.notes {
        out.push_str(&format!("  {}\n", printable(note)));
    }
    out
}

async fn history(session: &Session, name: &ServiceName) -> Result<Exit, Failure> {
    let list: List<RevisionView> = session.client().await?.get(&service::path(name, "revisions")).await?;
    let at = now();
    session.items(
        &list.items,
        "no revisions yet",
        |r| r.revision.to_string(),
        |items, wide| history_table(items, wide, at),
    )?;
    if list.items.len() > 1 && !session.format.is_json() {
        session.next(&format!("narae rollout undo {name} --to N"));
    }
    Ok(Exit::Done)
}

fn history_table(items: &[RevisionView], wide: bool, at: jiff::Timestamp) -> String {
    let rows = items.iter().map(|r| {
        let marks: Vec<&str> = [(r.wanted, "wanted"), (r.stable, "stable")]
            .iter()
            .filter(|m| m.0)
            .map(|m| m.1)
            .collect();
        // `sha256:` and 12 digits tell twenty revisions apart.
        let digest = if wide {
            r.digest.clone()
        } else {
            r.digest.chars().take(19).collect()
        };
        vec![
            r.revision.to_string().into(),
            state(&r.state),
            or_dash(Some(marks.join(","))),
            digest.into(),
            r.kind.clone().into(),
            r.cause.clone().into(),
            age_of(&r.created_at, at).into(),
            or_dash(r.reason.clone()),
        ]
    });
    render(
        &["REV>", "STATE", "NOW", "MODULE", "KIND", "CAUSE", "AGE", "REASON"],
        rows.collect(),
    )
}

/// Goes back to a revision.
///
/// # Errors
/// No such service or revision, or as `deploy`.
pub async fn undo(session: &Session, args: UndoArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let path = service::path(&args.name, "undo");
    let answer: DeployAnswer = client
        .json(Method::POST, &path, Some(&json!({ "to": args.to })))
        .await?;
    let mut ended = "is being rolled out";
    let warm = answer.previous.is_some_and(|from| from > answer.revision);
    if warm {
        if !args.no_wait {
            swung_back(&client, &answer, args.timeout, &mut Progress::of(session)).await?;
        }
        ended = "serves all requests again";
    } else if !args.no_wait {
        wait_for(session, &client, &answer, args.timeout).await?;
        ended = "is healthy";
    }
    match session.format {
        Format::Json | Format::JsonLines => session.json(&answer)?,
        Format::Name => session.print(&format!("{}\n", answer.service))?,
        _ if !answer.changed => {
            session.print(&format!(
                "{}: nothing changed, revision {} is wanted already\n",
                answer.service, answer.revision
            ))?;
        }
        _ => session.print(&format!("{} revision {} {ended}\n", answer.service, answer.revision))?,
    }
    session.next(&format!("narae rollout history {}", args.name));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> RolloutView {
        RolloutView {
            schema: 1,
            service: "hello".into(),
            from: Some(1),
            to: 2,
            state: "refused".into(),
            reason: Some("start trapped three times".into()),
            notes: vec!["waiting 10 ms before restart 1 of r3".into()],
            old_serving: 3,
            new_serving: 0,
            wanted: 3,
            ..RolloutView::default()
        }
    }

    fn revisions() -> Vec<RevisionView> {
        let one = RevisionView {
            revision: 1,
            digest: format!("sha256:{}", "ab".repeat(32)),
            kind: "http02".into(),
            state: "proved".into(),
            stable: true,
            wanted: true,
            cause: "deploy".into(),
            accepted_by: None,
            reason: None,
            created_at: "2026-11-24T04:50:00.000Z".into(),
        };
        let two = RevisionView {
            revision: 2,
            state: "refused".into(),
            stable: false,
            wanted: false,
            reason: Some("start trapped three times".into()),
            ..one.clone()
        };
        vec![two, one]
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_rollout_says_where_it_stands_and_why() {
        insta::assert_snapshot!("rollout_text", plain(&summary(&view())));
        insta::assert_json_snapshot!("rollout_json", view());
    }

    #[test]
    fn the_history_shows_what_serves_and_what_was_refused() {
        let at = "2026-11-24T05:00:00Z".parse().unwrap();
        insta::assert_snapshot!("history_table", plain(&history_table(&revisions(), false, at)));
        insta::assert_json_snapshot!("history_json", List::of(revisions()));
    }
}
