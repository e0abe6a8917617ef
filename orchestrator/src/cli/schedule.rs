//! Verbs on schedules: what comes when, how it went, and by hand.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::session::{Format, Session, now};
use super::source;
use super::table::{Text, or_dash, render, state};
use super::units::{age, age_of, printable};
use crate::model::calendar::{self, Times};
use crate::model::schedule::When;
use crate::model::views::{FiringView, List, ScheduleView};
use crate::model::{ServiceName, Timestamp};
use crate::plan::{schedule as plan, words};

/// `narae schedule …`.
#[derive(Clone, Debug, Subcommand)]
pub enum ScheduleVerb {
    /// List schedules, with the next time of each
    List(ListArgs),
    /// Print the next times, as the zone's clock shows them and in UTC; of a service, or of a file without a daemon
    Next(NextArgs),
    /// Do now what a schedule says
    Run(OneArgs),
    /// Let its times pass until it is resumed
    Pause(OneArgs),
    /// Go on; what passed meanwhile is not caught up
    Resume(OneArgs),
    /// Show how it went, the oldest first
    History(HistoryArgs),
}

#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only of this service
    pub name: Option<ServiceName>,
}

#[derive(Clone, Debug, Args)]
pub struct NextArgs {
    /// A service, or a service file: what ends in .toml or has a slash in it
    #[arg(value_name = "NAME|FILE")]
    pub name: PathBuf,
    /// Only this one
    pub schedule: Option<String>,
    /// How many
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub n: u32,
}

#[derive(Clone, Debug, Args)]
pub struct OneArgs {
    pub name: ServiceName,
    pub schedule: String,
}

#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    pub name: ServiceName,
    /// Only of this one
    pub schedule: Option<String>,
}

/// Runs a verb of the group.
///
/// # Errors
/// No such service or schedule, or the daemon is gone.
pub async fn schedule(session: &Session, verb: ScheduleVerb) -> Result<Exit, Failure> {
    match verb {
        ScheduleVerb::List(args) => list(session, args).await,
        ScheduleVerb::Next(args) => next(session, args).await,
        ScheduleVerb::Run(args) => {
            let view = act(session, &args, "run").await?;
            done(session, &view, &format!("{} of {} was begun", view.name, view.service))?;
            session.next(&format!("narae schedule history {} {}", view.service, view.name));
            Ok(Exit::Done)
        }
        ScheduleVerb::Pause(args) => {
            let view = act(session, &args, "pause").await?;
            done(session, &view, &format!("{} of {} is paused", view.name, view.service))?;
            session.next(&format!("narae schedule resume {} {}", view.service, view.name));
            Ok(Exit::Done)
        }
        ScheduleVerb::Resume(args) => {
            let view = act(session, &args, "resume").await?;
            done(session, &view, &format!("{} of {} goes on", view.name, view.service))?;
            session.next(&format!("narae schedule next {} {}", view.service, view.name));
            Ok(Exit::Done)
        }
        ScheduleVerb::History(args) => history(session, args).await,
    }
}

fn path(name: &ServiceName, schedule: &str, part: &str) -> String {
    let schedule = super::client::escape(schedule, b"-");
    format!("/v1/services/{name}/schedules/{schedule}/{part}")
}

async fn act(session: &Session, args: &OneArgs, verb: &str) -> Result<ScheduleView, Failure> {
    let client = session.client().await?;
    let path = path(&args.name, &args.schedule, verb);
    client.json(Method::POST, &path, Some(&json!({}))).await
}

fn done(session: &Session, view: &ScheduleView, said: &str) -> Result<(), Failure> {
    match session.format {
        Format::Json | Format::JsonLines => session.json(view),
        Format::Name => session.print(&format!("{}\n", view.name)),
        Format::Table | Format::Wide => session.print(&format!("{said}\n")),
    }
}

async fn list(session: &Session, args: ListArgs) -> Result<Exit, Failure> {
    let path = match &args.name {
        Some(name) => format!("/v1/services/{name}/schedules"),
        None => "/v1/schedules".into(),
    };
    let list: List<ScheduleView> = session.client().await?.get(&path).await?;
    session.items(
        &list.items,
        "no schedules; a [[schedule]] in a service file makes one",
        |s| format!("{}/{}", s.service, s.name),
        |items, wide| list_table(items, wide, now()),
    )?;
    Ok(Exit::Done)
}

fn list_table(items: &[ScheduleView], wide: bool, at: jiff::Timestamp) -> String {
    let mut headings = vec!["SERVICE", "SCHEDULE", "STATE", "NEXT", "IN", "WHEN", "WHAT", "LAST"];
    if wide {
        headings.extend(["ZONE", "UNTIL", "LAST-AT"]);
    }
    let rows = items.iter().map(|s| {
        let next = s.next.first();
        let mut row: Vec<Text> = vec![
            s.service.clone().into(),
            s.name.clone().into(),
            state(&s.state),
            or_dash(next.map(|n| local(n, &s.timezone))),
            or_dash(next.and_then(|n| until(n, at))),
            s.when.clone().into(),
            printable(&s.what).into_owned().into(),
            s.last.as_ref().map_or_else(|| or_dash(None), |l| state(&l.outcome)),
        ];
        if wide {
            row.extend([
                s.timezone.clone().into(),
                or_dash(s.in_force_until.as_ref().map(|u| local(u, &s.timezone))),
                or_dash(s.last.as_ref().map(|l| local(&l.at, &s.timezone))),
            ]);
        }
        row
    });
    render(&headings, rows.collect())
}

/// `2026-12-01 02:00:00 KST`.
pub fn local(at: &str, zone: &str) -> String {
    match (at.parse::<jiff::Timestamp>(), calendar::zone(zone)) {
        (Ok(at), Some(zone)) => calendar::show(&zone, Timestamp(at.as_millisecond())),
        _ => at.to_owned(),
    }
}

/// `02:00 KST`, with its day when that is not within a day.
pub fn short(at: &str, zone: &str, now: jiff::Timestamp) -> String {
    let (Ok(at), Some(zone)) = (at.parse::<jiff::Timestamp>(), calendar::zone(zone)) else {
        return at.to_owned();
    };
    let soon = at.duration_since(now).as_hours() < 24;
    let form = if soon { "%H:%M %Z" } else { "%Y-%m-%d %H:%M %Z" };
    at.to_zoned(zone).strftime(form).to_string()
}

fn until(at: &str, now: jiff::Timestamp) -> Option<String> {
    let left = at.parse::<jiff::Timestamp>().ok()?.duration_since(now);
    std::time::Duration::try_from(left).ok().map(age)
}

/// One time to come.
#[derive(Clone, Debug, serde::Serialize)]
struct Coming {
    service: String,
    schedule: String,
    at: String,
    timezone: String,
    local: String,
}

async fn next(session: &Session, args: NextArgs) -> Result<Exit, Failure> {
    let typed = args.name.to_string_lossy();
    let is_file = typed.contains('/') || typed.ends_with(".toml");
    let coming = if is_file {
        from_file(session, &args.name, args.n)?
    } else {
        let name: ServiceName = typed
            .parse()
            .map_err(|e| Failure::new(Exit::Usage, codes::VALUE, format!("`{}`: {e}", printable(&typed))))?;
        let path = format!("/v1/services/{name}/schedules?next={}", args.n);
        let list: List<ScheduleView> = session.client().await?.get(&path).await?;
        let times = |s: ScheduleView| {
            s.next
                .clone()
                .into_iter()
                .map(move |at| coming(&s.service, &s.name, at, &s.timezone))
        };
        list.items.into_iter().flat_map(times).collect()
    };
    let coming: Vec<Coming> = coming
        .into_iter()
        .filter(|c| args.schedule.as_ref().is_none_or(|wanted| *wanted == c.schedule))
        .collect();
    let at = now();
    session.items(
        &coming,
        "no time to come: there is no such schedule, it is over, paused, or its service is stopped",
        |c| c.at.clone(),
        |items, _| {
            let rows = items.iter().map(|c| {
                vec![
                    c.schedule.clone().into(),
                    c.local.clone().into(),
                    c.at.clone().into(),
                    or_dash(until(&c.at, at)),
                ]
            });
            render(&["SCHEDULE", "LOCAL", "UTC", "IN"], rows.collect())
        },
    )?;
    Ok(Exit::Done)
}

fn coming(service: &str, schedule: &str, at: String, zone: &str) -> Coming {
    Coming {
        service: service.to_owned(),
        schedule: schedule.to_owned(),
        local: local(&at, zone),
        timezone: zone.to_owned(),
        at,
    }
}

/// Without a daemon: when the file's schedules would be due from now on.
fn from_file(session: &Session, file: &Path, n: u32) -> Result<Vec<Coming>, Failure> {
    let failed = |reports| Failure {
        exit: Exit::Invalid,
        reports,
    };
    let read = source::service_file(file).map_err(|report| failed(vec![report]))?;
    let checked = super::seams::check_service(&read.text, &read.name).map_err(failed)?;
    session.tell(&checked.warnings);
    let wall = Timestamp(now().as_millisecond());
    let mut out = Vec::new();
    for schedule in &checked.spec.schedules {
        let Some(times) = Times::of(schedule) else { continue };
        let mut at = times.next(wall);
        for _ in 0..n {
            let Some(due) = at else { break };
            out.push(coming(
                checked.spec.name.as_str(),
                &schedule.name,
                due.rfc3339(),
                &schedule.timezone,
            ));
            at = times.next(due);
        }
        if matches!(schedule.when, When::At(_)) && times.next(wall).is_none() {
            session.note(&format!(
                "{}: its time is past ({})",
                schedule.name,
                plan::what(schedule)
            ));
        }
    }
    Ok(out)
}

async fn history(session: &Session, args: HistoryArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let names = match args.schedule {
        Some(name) => vec![name],
        None => {
            let path = format!("/v1/services/{}/schedules", args.name);
            let list: List<ScheduleView> = client.get(&path).await?;
            list.items.into_iter().map(|s| s.name).collect()
        }
    };
    let mut items = Vec::new();
    for name in &names {
        let list: List<FiringView> = client.get(&path(&args.name, name, "history")).await?;
        items.extend(list.items);
    }
    items.sort_by(|a, b| a.at.cmp(&b.at));
    let at = now();
    session.items(
        &items,
        "nothing yet: none of its times has come",
        |f| f.due_at.clone(),
        |items, wide| history_table(items, wide, at),
    )?;
    Ok(Exit::Done)
}

fn history_table(items: &[FiringView], wide: bool, at: jiff::Timestamp) -> String {
    let mut headings = vec!["SCHEDULE", "DUE", "CAUSE", "OUTCOME", "SKEW", "TOOK", "AGE", "DETAIL"];
    if wide {
        headings.extend(["TRIES>", "TIMES>"]);
    }
    let rows = items.iter().map(|f| {
        let times = if f.times > 1 {
            format!(" ({} times)", f.times)
        } else {
            String::new()
        };
        let skew = match (f.skew_min_ms, f.skew_median_ms, f.skew_max_ms) {
            (Some(min), Some(median), Some(max)) if min != max => Some(format!("{min}/{median}/{max}ms")),
            (_, _, Some(max)) => Some(format!("{max}ms")),
            _ => None,
        };
        let mut row: Vec<Text> = vec![
            f.schedule.clone().into(),
            f.due_at.clone().into(),
            f.cause.clone().into(),
            state(&f.outcome),
            or_dash(skew),
            or_dash(took(f)),
            age_of(&f.at, at).into(),
            format!("{}{times}", printable(&f.detail)).into(),
        ];
        if wide {
            row.extend([f.attempts.to_string().into(), f.times.to_string().into()]);
        }
        row
    });
    render(&headings, rows.collect())
}

fn took(f: &FiringView) -> Option<String> {
    let (from, to): (jiff::Timestamp, jiff::Timestamp) = (f.at.parse().ok()?, f.ended_at.as_ref()?.parse().ok()?);
    std::time::Duration::try_from(to.duration_since(from))
        .ok()
        .map(words::duration)
}
