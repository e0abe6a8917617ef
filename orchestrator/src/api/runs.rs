//! Runs of a command service: listed, begun by hand, asked to end. What a run does then is `plan::job`'s business.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::Api;
use super::answer::{Body, Refused};
use super::services::find;
use crate::agent::Running;
use crate::config::Code;
use crate::model::job::AttemptExit;
use crate::model::views::{AttemptView, List, RunView};
use crate::model::{EventKind, JobRun, Millis, RunId, ServiceName};
use crate::plan::{DesiredService, job};

type Answer<T> = Result<Json<T>, Refused>;

pub async fn list(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<List<RunView>> {
    let service = job_of(&api, &name).await?;
    Ok(Json(List::of(views(&api, &service, api.clock.monotonic()).await?)))
}

/// `POST …/runs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// Instead of the file's.
    #[serde(default)]
    args: Option<Vec<String>>,
}

pub async fn begin(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(body): Body<Begin>,
) -> Result<(StatusCode, Json<RunView>), Refused> {
    if body.args.iter().flatten().any(|arg| arg.contains('\0')) {
        return Err(Refused::bad_request(
            "no program can be given an argument with a zero byte",
        ));
    }
    let service = job_of(&api, &name).await?;
    let id = start(&api, &service, body.args, "run", None).await?;
    let all = views(&api, &service, api.clock.monotonic()).await?;
    let begun = all.into_iter().find(|run| run.id == id.0);
    let begun = begun.ok_or_else(|| no_run(&service.record.name, &id.to_string()))?;
    Ok((StatusCode::CREATED, Json(begun)))
}

pub async fn cancel(
    State(api): State<Arc<Api>>,
    Path((name, id)): Path<(String, String)>,
) -> Result<StatusCode, Refused> {
    let service = job_of(&api, &name).await?;
    let name = &service.record.name;
    let id = id.parse().map(RunId).map_err(|_| no_run(name, &id))?;
    api.records.cancel_run(name, id, api.clock.wall()).await?;
    api.controller.wake.notify_one();
    Ok(StatusCode::ACCEPTED)
}

/// Begins a run of the revision that should run, and wakes the planner.
pub(super) async fn start(
    api: &Api,
    service: &DesiredService,
    args: Option<Vec<String>>,
    cause: &str,
    replace: Option<&str>,
) -> Result<RunId, Refused> {
    let name = &service.record.name;
    let revision = job::runnable(service).ok_or_else(|| {
        Refused::with_help(
            StatusCode::CONFLICT,
            Code::RunRefused,
            format!("service `{name}` has no revision that can be run"),
            Some(format!("`narae rollout status {name}` tells why it was refused")),
        )
    })?;
    let id = api
        .records
        .begin_run_and(name, revision, args, cause, replace, api.clock.wall())
        .await?;
    let text = format!("run {id} began: {cause}");
    api.controller.run_event(name, revision, EventKind::RunBegan, text);
    api.controller.wake.notify_one();
    Ok(id)
}

/// The kept runs of a service as people see them, the oldest first.
pub(super) async fn views(api: &Api, service: &DesiredService, now: Millis) -> Result<Vec<RunView>, Refused> {
    let name = &service.record.name;
    // Before the store: an attempt that ends in between is seen once or not yet, never as gone.
    let running = api.agent.attempts(name);
    let runs = api.records.runs(name).await?;
    Ok(runs.iter().map(|run| view(service, run, &running, now)).collect())
}

async fn job_of(api: &Api, name: &str) -> Result<DesiredService, Refused> {
    let service = find(api, name).await?;
    if service.is_job() {
        return Ok(service);
    }
    let text = format!("service `{}` answers requests and has no runs", service.record.name);
    Err(Refused::new(StatusCode::BAD_REQUEST, Code::NotForThisWorld, text))
}

fn no_run(name: &ServiceName, id: &str) -> Refused {
    let help = Some(format!("`narae status {name}` lists the kept runs"));
    let text = format!("service `{name}` has no run {}", id.escape_debug());
    Refused::with_help(StatusCode::NOT_FOUND, Code::UnknownRun, text, help)
}

fn view(service: &DesiredService, run: &JobRun, running: &[Running], now: Millis) -> RunView {
    let job = service.revisions.get(&run.revision).map(|r| job::job(r));
    let done = run.attempts.iter().map(|attempt| AttemptView {
        replica: attempt.replica.to_string(),
        state: word(&attempt.exit).into(),
        code: match attempt.exit {
            AttemptExit::Exited { code } => Some(code),
            _ => None,
        },
        reason: (!attempt.exit.is_success()).then(|| job::exit(&attempt.exit)),
        started_at: Some(attempt.started_at.rfc3339()),
        ran_ms: u64::try_from(attempt.ended_at.0.saturating_sub(attempt.started_at.0)).unwrap_or(0),
        cpu_ms: attempt.cpu_ms,
        memory_bytes: 0,
    });
    let recorded = |id| run.attempts.iter().any(|a| a.replica == id);
    let living = running
        .iter()
        .filter(|a| a.run == run.id && run.is_open() && !(a.phase == "ended" && recorded(a.id)));
    let living = living.map(|attempt| AttemptView {
        replica: attempt.id.to_string(),
        state: attempt.phase.into(),
        code: None,
        reason: None,
        started_at: None,
        ran_ms: crate::model::time::millis(now.since(attempt.since)),
        cpu_ms: attempt.usage.cpu_ns / 1_000_000,
        memory_bytes: attempt.usage.memory_bytes,
    });
    RunView {
        id: run.id.0,
        revision: run.revision.0,
        cause: run.cause.clone(),
        args: run.args.clone(),
        state: job::word(&run.state).into(),
        reason: job::reason(run).or_else(|| run.cancel.clone()),
        completions: job.map(|j| j.completions),
        succeeded: run.succeeded,
        failed: run.failed,
        interruptions: run.interruptions,
        last_code: run.last_code(),
        attempts: done.chain(living).collect(),
        created_at: run.created_at.rfc3339(),
        ended_at: run.ended_at.map(|at| at.rfc3339()),
    }
}

const fn word(exit: &AttemptExit) -> &'static str {
    match exit {
        AttemptExit::Exited { code: 0 } => "succeeded",
        AttemptExit::Killed => "killed",
        _ => "failed",
    }
}
