//! Schedules: what there is and when it comes, how it went, and by hand: run, pause, resume.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::Api;
use super::answer::{Body, Query, Refused};
use super::services::{Nothing, find};
use crate::config::Code;
use crate::controller::NotFired;
use crate::events::Occurrence;
use crate::model::calendar::Times;
use crate::model::schedule::{Firing, Outcome, Schedule, ScheduleState, When};
use crate::model::views::{FiringView, List, NextView, ScheduleView};
use crate::model::{EventKind, Timestamp};
use crate::plan::{Desired, DesiredService, schedule as plan, words};
use crate::store::RecordsError;

type Answer<T> = Result<Json<T>, Refused>;

/// Times to come that one answer tells.
const MOST_NEXT: u32 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[serde(default)]
    next: Option<u32>,
}

pub async fn all(State(api): State<Arc<Api>>, Query(query): Query<ListQuery>) -> Answer<List<ScheduleView>> {
    let (desired, _) = api.records.load().await?;
    let wall = api.clock.wall();
    let of = |s: &DesiredService| views(&desired, s, wall, query.next);
    Ok(Json(List::of(desired.services.values().flat_map(of).collect())))
}

pub async fn list(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer<List<ScheduleView>> {
    let service = find(&api, &name).await?;
    let (desired, _) = api.records.load().await?;
    let items = views(&desired, &service, api.clock.wall(), query.next);
    Ok(Json(List::of(items)))
}

pub async fn history(
    State(api): State<Arc<Api>>,
    Path((name, schedule)): Path<(String, String)>,
) -> Answer<List<FiringView>> {
    let (service, schedule) = known(&api, &name, &schedule).await?;
    let (desired, _) = api.records.load().await?;
    let state = desired.state_of(&service.record.name, &schedule.name);
    let entries = state.map_or(&[][..], |s| &s.history);
    Ok(Json(List::of(
        entries.iter().map(|f| firing(&schedule.name, f)).collect(),
    )))
}

pub async fn run(
    State(api): State<Arc<Api>>,
    Path((name, schedule)): Path<(String, String)>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ScheduleView> {
    let (service, schedule) = known(&api, &name, &schedule).await?;
    let service = &service.record.name;
    match api.controller.fire_by_hand(service, &schedule.name).await {
        Ok(()) => {}
        Err(NotFired::NoSchedule) => return Err(unknown(service.as_str(), &schedule.name)),
        Err(NotFired::Busy) => {
            let text = format!(
                "the last of schedule `{}` is not done, and overlap is \"forbid\"",
                schedule.name
            );
            return Err(Refused::new(StatusCode::CONFLICT, Code::BadRequest, text));
        }
        Err(NotFired::Full) => {
            let text = format!("too many of schedule `{}` are not done", schedule.name);
            return Err(Refused::new(StatusCode::CONFLICT, Code::BadRequest, text));
        }
        Err(NotFired::Stopped) => {
            let help = Some(format!("`narae start {service}` starts it"));
            let text = format!("service `{service}` is stopped");
            return Err(Refused::with_help(StatusCode::CONFLICT, Code::BadRequest, text, help));
        }
        Err(NotFired::Records(error)) => return Err(error.into()),
    }
    one(&api, &name, &schedule.name).await
}

pub async fn pause(
    state: State<Arc<Api>>,
    Path(path): Path<(String, String)>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ScheduleView> {
    set_paused(state, path, true).await
}

pub async fn resume(
    state: State<Arc<Api>>,
    Path(path): Path<(String, String)>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ScheduleView> {
    set_paused(state, path, false).await
}

async fn set_paused(
    State(api): State<Arc<Api>>,
    (name, schedule): (String, String),
    paused: bool,
) -> Answer<ScheduleView> {
    let (service, schedule) = known(&api, &name, &schedule).await?;
    let service = &service.record.name;
    let wall = api.clock.wall();
    let change = |state: &mut ScheduleState| plan::set_paused(state, paused, wall);
    let edited = api
        .records
        .edit_schedule(service, &schedule.name, None, wall, change)
        .await;
    if matches!(edited, Err(RecordsError::NoSchedule(..))) {
        // Deployed a moment ago, and not looked at yet.
        api.records.begin_schedule(service, &schedule, wall).await?;
        api.records
            .edit_schedule(service, &schedule.name, None, wall, change)
            .await?;
    } else {
        edited?;
    }
    let word = if paused { "paused" } else { "resumed" };
    let text = format!("schedule {}: {word}", schedule.name);
    api.events
        .record(EventKind::Schedule, Some(service), Occurrence::new(text));
    api.controller.wake.notify_one();
    one(&api, &name, &schedule.name).await
}

async fn known(api: &Api, name: &str, schedule: &str) -> Result<(DesiredService, Schedule), Refused> {
    let service = find(api, name).await?;
    let spec = plan::in_force(&service)
        .and_then(|r| r.spec.schedules.iter().find(|s| s.name == schedule))
        .cloned();
    let spec = spec.ok_or_else(|| unknown(name, schedule))?;
    Ok((service, spec))
}

fn unknown(service: &str, schedule: &str) -> Refused {
    let text = format!("service `{service}` has no schedule `{}`", schedule.escape_debug());
    let help = Some(format!("`narae schedule list {service}` shows those there are"));
    Refused::with_help(StatusCode::NOT_FOUND, Code::UnknownSchedule, text, help)
}

async fn one(api: &Api, name: &str, schedule: &str) -> Answer<ScheduleView> {
    let service = find(api, name).await?;
    let (desired, _) = api.records.load().await?;
    let views = views(&desired, &service, api.clock.wall(), None);
    let found = views.into_iter().find(|v| v.name == schedule);
    found.map(Json).ok_or_else(|| unknown(name, schedule))
}

fn views(desired: &Desired, service: &DesiredService, wall: Timestamp, next: Option<u32>) -> Vec<ScheduleView> {
    let name = &service.record.name;
    let specs = plan::in_force(service).map_or(&[][..], |r| &r.spec.schedules);
    let next = next.unwrap_or(1).min(MOST_NEXT);
    specs
        .iter()
        .map(|s| view(service, s, desired.state_of(name, &s.name), wall, next))
        .collect()
}

fn view(
    service: &DesiredService,
    schedule: &Schedule,
    state: Option<&ScheduleState>,
    wall: Timestamp,
    next: u32,
) -> ScheduleView {
    let record = &service.record;
    let mut times = Vec::new();
    let mut at = plan::next_of(service, schedule, state, wall);
    let calendar = Times::of(schedule);
    while let Some(due) = at
        && times.len() < next as usize
    {
        times.push(due.rfc3339());
        at = calendar.as_ref().and_then(|c| c.next(due));
    }
    let hold = record.scheduled.iter().find(|h| h.schedule == schedule.name);
    let running = state.is_some_and(|s| s.history.iter().any(|f| f.outcome == Outcome::Running));
    let word = match () {
        () if state.is_some_and(|s| s.paused) => "paused",
        () if record.stopped || record.deleting => "stopped",
        () if running => "running",
        () if hold.is_some() => "in-force",
        () if times.is_empty() && next > 0 => "over",
        () => "waiting",
    };
    ScheduleView {
        service: record.name.to_string(),
        name: schedule.name.clone(),
        state: word.into(),
        when: match &schedule.when {
            When::At(civil) => format!("at {civil}"),
            When::Cron(cron) => format!("cron {cron}"),
            When::Every(period) => format!("every {}", words::duration(*period)),
        },
        timezone: schedule.timezone.clone(),
        what: plan::what(schedule),
        next: times,
        in_force_until: hold.and_then(|h| h.until).map(Timestamp::rfc3339),
        last: state.and_then(|s| s.history.last()).map(|f| firing(&schedule.name, f)),
    }
}

fn firing(schedule: &str, f: &Firing) -> FiringView {
    FiringView {
        schedule: schedule.to_owned(),
        due_at: f.due.rfc3339(),
        at: f.at.rfc3339(),
        ended_at: f.ended_at.map(Timestamp::rfc3339),
        cause: f.cause.as_str().into(),
        outcome: f.outcome.as_str().into(),
        detail: f.detail.clone(),
        attempts: f.attempts,
        times: f.times,
        skew_min_ms: f.skew.map(|s| s.min_ms),
        skew_median_ms: f.skew.map(|s| s.median_ms),
        skew_max_ms: f.skew.map(|s| s.max_ms),
    }
}

/// The first time to come of a service's schedules.
pub(super) fn next(desired: &Desired, service: &DesiredService, wall: Timestamp) -> Option<NextView> {
    let name = &service.record.name;
    let specs = plan::in_force(service).map_or(&[][..], |r| &r.spec.schedules);
    let times = specs.iter().filter_map(|s| {
        let state = desired.state_of(name, &s.name);
        Some((plan::next_of(service, s, state, wall)?, s))
    });
    let (at, schedule) = times.min_by_key(|(at, _)| *at)?;
    Some(NextView {
        schedule: schedule.name.clone(),
        at: at.rfc3339(),
        timezone: schedule.timezone.clone(),
    })
}
