//! Services: deploy, look, scale, restart, stop, undo, delete.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use narae_runtime::Digest;
use serde::Deserialize;

use super::answer::{Body, Query, Refused};
use super::capabilities::{self, Caller};
use super::{Api, observe, rollout, runs, secrets};
use crate::agent::Observed;
use crate::config::{self, Code, Problem, Severity, Source};
use crate::events::Occurrence;
use crate::model::record::{Revision, RevisionState, ServiceRecord};
use crate::model::service::{HostPattern, Route, Strategy, World};
use crate::model::views::{
    AutoscaleView, DeployAnswer, DeployRequest, List, ReplicaView, RevisionView, ServiceStatus, ServiceView,
};
use crate::model::{EventKind, JobRun, Millis, Phase, ReplicaCount, RevisionNumber, RunId, ServiceName, ServiceSpec};
use crate::plan::{DesiredService, status as state_of, words};
use crate::store::records::runs_already;
use crate::store::{Deployed, NewRevision, RecordsError};

type Answer<T> = Result<Json<T>, Refused>;

/// How many log lines and events `status` shows, as systemctl does.
const STATUS_LINES: usize = 10;

pub(super) fn name_of(text: &str) -> Result<ServiceName, Refused> {
    text.parse().map_err(|_| Refused::no_service(text))
}

/// The service as the store has it now, not as the loop last read it.
pub(super) async fn find(api: &Api, name: &str) -> Result<DesiredService, Refused> {
    let name = name_of(name)?;
    let (desired, _) = api.records.load().await?;
    desired
        .services
        .get(&name)
        .cloned()
        .ok_or_else(|| Refused::no_service(name.as_str()))
}

pub async fn list(State(api): State<Arc<Api>>) -> Answer<List<ServiceView>> {
    let (desired, _) = api.records.load().await?;
    let now = api.clock.monotonic();
    let views = desired.services.values().map(|s| {
        let runs = desired.runs.get(&s.record.name);
        view(&api, s, runs, &api.agent.observe(&s.record.name), now)
    });
    Ok(Json(List::of(views.collect())))
}

pub async fn deploy(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Option<Extension<Caller>>,
    Body(request): Body<DeployRequest>,
) -> Answer<DeployAnswer> {
    let file = request.file.as_deref().unwrap_or("request.toml");
    let checked = config::service(&request.toml, file).map_err(|p| Refused::problems(&p))?;
    let spec = checked.spec;
    if spec.name.as_str() != name {
        let text = format!("the path names `{}`, the file `{}`", name.escape_debug(), spec.name);
        return Err(Refused::new(StatusCode::BAD_REQUEST, Code::NameMismatch, text));
    }
    let digest: Digest = request
        .digest
        .parse()
        .map_err(|e| Refused::bad_request(format!("digest: {e}")))?;
    let module = api.modules.inspected(&api.blobs, digest).await?;
    fits(&spec, digest, &module)?;
    // With world `auto` the module decides what the file may say.
    let world = if module.kind.is_http() {
        World::Http
    } else {
        World::Command
    };
    let mut spec = match spec.world {
        World::Auto => {
            let checked = config::service_of(&request.toml, file, Some(world));
            checked.map_err(|p| Refused::problems(&p))?.spec
        }
        _ => spec,
    };
    if let Some(strategy) = &request.strategy {
        spec.rollout.strategy = Strategy::of(strategy)
            .ok_or_else(|| Refused::bad_request("`strategy` is one of rolling, canary, blue-green, recreate"))?;
    }
    let _changing = api.secrets.changing().await;
    let (desired, _) = api.records.load().await?;
    let others: Vec<(ServiceName, &ServiceSpec)> = desired
        .services
        .iter()
        .filter(|(other, service)| **other != spec.name && !service.record.deleting)
        .filter_map(|(other, service)| Some((other.clone(), &service.revisions.get(&service.record.wanted)?.spec)))
        .collect();
    let source = Source::new(file, &request.toml);
    let crossed: Vec<Problem> = config::cross_at(&spec, &others, api.settings.memory_budget_bytes, Some(&source));
    let errors: Vec<Problem> = crossed.into_iter().filter(|p| p.severity == Severity::Error).collect();
    if !errors.is_empty() {
        return Err(Refused::problems(&errors));
    }
    let current = desired.services.get(&spec.name);
    precondition(current, &request, &spec.name)?;
    let service = spec.name.clone();
    let pins = secrets::current(&api, &spec, &source).await?;
    let wish = capabilities::wish(&api, current, &spec, &module).await;
    let caller = caller.map_or(Caller::Unknown, |Extension(caller)| caller);
    let accepted = wish.settle(&spec, file, request.accept, caller)?;
    let new = NewRevision {
        spec,
        source: request.toml.clone(),
        digest,
        kind: module.kind,
        cause: request.cause.clone().unwrap_or_else(|| "deploy".into()),
        secrets: pins,
        accepted: accepted.clone(),
    };
    let told_of = |answer: DeployAnswer| {
        Json(DeployAnswer {
            capabilities: if answer.changed { wish.views() } else { Vec::new() },
            accepted_by: accepted.as_ref().filter(|_| !request.dry_run).map(|a| a.by.clone()),
            ..answer
        })
    };
    if request.dry_run {
        return Ok(told_of(foretold(current, &service, &new)));
    }
    let deployed = api.records.deploy(new, request.if_revision, api.clock.wall()).await?;
    // Revisions that never prove themselves must not pile up either; a trim that is lost comes with the next one.
    if let Err(error) = api.records.trim(&service).await {
        tracing::warn!(service = %service, error = crate::agent::report(&error), "old revisions were not trimmed");
    }
    secrets::trim(&api).await;
    let answer = told(&api, &service, &deployed);
    if let Some(accepted) = accepted.as_ref().filter(|_| deployed.changed) {
        let text = format!("{} accepted: {}", accepted.by, accepted.what.join(", "));
        let occurrence = Occurrence::new(text).revision(deployed.revision);
        api.events.record(EventKind::Accepted, Some(&service), occurrence);
    }
    Ok(told_of(answer))
}

/// Tells of a new revision and wakes the planner.
fn told(api: &Api, service: &ServiceName, deployed: &Deployed) -> DeployAnswer {
    let Deployed {
        revision,
        changed,
        previous,
    } = *deployed;
    if changed {
        let text = format!("revision {revision} is wanted");
        api.events.record(
            EventKind::Deployed,
            Some(service),
            Occurrence::new(text).revision(revision),
        );
        api.controller.wake.notify_one();
    }
    answer(service, revision, changed, previous)
}

/// What a deploy would answer.
fn foretold(current: Option<&DesiredService>, service: &ServiceName, new: &NewRevision) -> DeployAnswer {
    let Some(current) = current else {
        return answer(service, RevisionNumber(1), true, None);
    };
    let record = &current.record;
    let wanted = current.revisions.get(&record.wanted);
    if wanted.is_some_and(|wanted| runs_already(record, wanted, new)) {
        return answer(service, record.wanted, false, Some(record.wanted));
    }
    answer(service, record.next_revision, true, Some(record.wanted))
}

fn precondition(current: Option<&DesiredService>, request: &DeployRequest, name: &ServiceName) -> Result<(), Refused> {
    let found = current.map(|s| s.record.wanted);
    let fits = request
        .if_revision
        .is_none_or(|expected| expected == found.map_or(0, |r| r.0));
    if fits {
        Ok(())
    } else {
        Err(RecordsError::Changed {
            service: name.clone(),
            found,
        }
        .into())
    }
}

fn answer(
    service: &ServiceName,
    revision: RevisionNumber,
    changed: bool,
    previous: Option<RevisionNumber>,
) -> DeployAnswer {
    DeployAnswer {
        schema: 1,
        service: service.to_string(),
        revision: revision.0,
        changed,
        previous: previous.map(|r| r.0),
        capabilities: Vec::new(),
        accepted_by: None,
    }
}

/// What the file says must be what the module is.
fn fits(spec: &ServiceSpec, digest: Digest, module: &super::modules::Inspected) -> Result<(), Refused> {
    if let Some(pinned) = spec.digest
        && pinned != digest
    {
        let text = format!("the file pins {pinned}, the module is {digest}");
        return Err(Refused::new(StatusCode::BAD_REQUEST, Code::DigestMismatch, text));
    }
    if !module.missing.is_empty() {
        let text = format!(
            "the module imports {}, which this node does not offer",
            module.missing.join(", ")
        );
        let help = Some(crate::config::not_offered_help(&module.missing).to_owned());
        return Err(Refused::with_help(
            StatusCode::BAD_REQUEST,
            Code::ImportNotOffered,
            text,
            help,
        ));
    }
    let text = match (spec.world, module.kind.is_http()) {
        (World::Command, true) => "the file says world = \"command\", the module serves http",
        (World::Http, false) => "the file says world = \"http\", the module is a command",
        _ => return Ok(()),
    };
    Err(Refused::new(StatusCode::BAD_REQUEST, Code::WorldMismatch, text))
}

/// Of the requests in flight, instead of the file's `traffic.drain`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grace {
    #[serde(default)]
    grace_ms: Option<u64>,
}

/// As for `traffic.drain` in a file.
const MOST_GRACE_MS: u64 = 3_600_000;

impl Grace {
    fn checked(&self) -> Result<Option<u64>, Refused> {
        match self.grace_ms {
            Some(ms) if ms > MOST_GRACE_MS => Err(Refused::bad_request("`grace_ms` is at most 3600000, an hour")),
            given => Ok(given),
        }
    }
}

pub async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Query(grace): Query<Grace>,
) -> Result<StatusCode, Refused> {
    let name = name_of(&name)?;
    api.records.delete(&name, grace.checked()?, api.clock.wall()).await?;
    api.events
        .record(EventKind::Deleted, Some(&name), Occurrence::new("delete was asked for"));
    api.controller.wake.notify_one();
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    replicas: Option<u32>,
    delta: Option<i64>,
}

pub async fn scale(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(scale): Body<Scale>,
) -> Answer<ServiceView> {
    let service = find(&api, &name).await?;
    let name = &service.record.name;
    if service.is_job() {
        let text = format!("service `{name}` is a command and has no replicas");
        let help = Some("`job.parallelism` says how many attempts of a run are under way at once".to_owned());
        return Err(Refused::with_help(
            StatusCode::BAD_REQUEST,
            Code::NotForThisWorld,
            text,
            help,
        ));
    }
    let autoscaled = api.controller.scaling(&service.record).map(|s| s.count);
    let before = wanted_replicas(&service, autoscaled);
    let spec = service
        .revisions
        .get(&service.record.wanted)
        .ok_or_else(|| Refused::no_service(name.as_str()))?;
    // Counted inside the write: of two that add one at once, both count.
    let set = |record: &mut ServiceRecord| {
        let autoscaled = api.controller.scaling(record).map(|s| s.count);
        let now = crate::plan::fleet::wanted_replicas(record, spec, autoscaled);
        let count = match (scale.replicas, scale.delta) {
            (Some(n), None) => Some(n),
            (None, Some(delta)) => u32::try_from(i64::from(now).saturating_add(delta).max(0)).ok(),
            _ => return Err(Refused::bad_request("give either `replicas` or `delta`")),
        };
        let count = count
            .and_then(ReplicaCount::new)
            .ok_or_else(|| Refused::bad_request(format!("a service has 0 to {} replicas", ReplicaCount::MAX)))?;
        if record.deleting {
            return Err(RecordsError::Deleting(record.name.clone()).into());
        }
        within_bounds(record, &spec.spec, count)?;
        record.scaled = Some(count);
        record.scaled_under = Some(record.wanted);
        record.scheduled.clear();
        record.scalings += 1;
        record.grace_ms = None;
        Ok(())
    };
    let record = api.records.update(name, api.clock.wall(), set).await?;
    let after = record.scaled.map_or(before, ReplicaCount::get);
    edited(
        &api,
        name,
        EventKind::Scaled,
        format!("from {before} to {after} replicas"),
    )
    .await
}

/// An autoscaled service goes on from a number within its bounds; 0 turns it off.
fn within_bounds(record: &ServiceRecord, spec: &ServiceSpec, count: ReplicaCount) -> Result<(), Refused> {
    let Some(autoscale) = &spec.autoscale else {
        return Ok(());
    };
    let (min, max) = crate::plan::scale::bounds(record, autoscale);
    if count.get() == 0 || (min..=max).contains(&count.get()) {
        return Ok(());
    }
    let text = format!(
        "[autoscale] keeps this service within {min} and {max} replicas, not {}",
        count.get()
    );
    let help = format!("give {min} to {max}, or 0 to turn it off; to change the bounds, deploy the file again");
    Err(Refused::with_help(
        StatusCode::BAD_REQUEST,
        Code::OutsideAutoscale,
        text,
        Some(help),
    ))
}

/// What takes no setting takes none in silence either.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

pub async fn restart(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(grace): Body<Grace>,
) -> Answer<ServiceView> {
    let service = find(&api, &name).await?;
    let (name, grace_ms) = (service.record.name.clone(), grace.checked()?);
    if service.is_job() {
        runs::start(&api, &service, None, "restart", Some("restart was asked for")).await?;
    } else {
        api.records.restart(&name, grace_ms, api.clock.wall()).await?;
    }
    edited(&api, &name, EventKind::Restarting, "restart was asked for".into()).await
}

pub async fn start(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ServiceView> {
    let service = find(&api, &name).await?;
    let name = service.record.name.clone();
    api.records.set_stopped(&name, false, None, api.clock.wall()).await?;
    if runs_on_start(&api, &service).await? {
        runs::start(&api, &service, None, "start", Some("start was asked for")).await?;
    }
    edited(&api, &name, EventKind::Started, "start was asked for".into()).await
}

/// A job that no schedule begins is run by `start`, unless it runs already. One that has yet to be prepared begins by itself.
async fn runs_on_start(api: &Api, service: &DesiredService) -> Result<bool, Refused> {
    let record = &service.record;
    let wanted = service.revisions.get(&record.wanted).filter(|r| r.spec.is_job());
    let Some(wanted) = wanted.filter(|r| !r.spec.is_scheduled() && r.state != RevisionState::Pending) else {
        return Ok(false);
    };
    Ok(record.stopped || api.records.open_runs(&wanted.service).await?.is_empty())
}

pub async fn stop(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(grace): Body<Grace>,
) -> Answer<ServiceView> {
    let name = name_of(&name)?;
    let grace_ms = grace.checked()?;
    api.records.set_stopped(&name, true, grace_ms, api.clock.wall()).await?;
    edited(&api, &name, EventKind::Stopped, "stop was asked for".into()).await
}

/// A change of a service's record was written: told, and seen by the planner.
async fn edited(api: &Arc<Api>, name: &ServiceName, kind: EventKind, text: String) -> Answer<ServiceView> {
    api.events.record(kind, Some(name), Occurrence::new(text));
    api.controller.wake.notify_one();
    let (desired, _) = api.records.load().await?;
    let service = desired.services.get(name);
    let service = service.ok_or_else(|| Refused::no_service(name.as_str()))?;
    Ok(Json(view(
        api,
        service,
        desired.runs.get(name),
        &api.agent.observe(name),
        api.clock.monotonic(),
    )))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    #[serde(default)]
    to: Option<u64>,
}

pub async fn undo(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(undo): Body<Undo>,
) -> Answer<DeployAnswer> {
    let name = name_of(&name)?;
    let (to, at) = (undo.to.map(RevisionNumber), api.clock.wall());
    let _changing = api.secrets.changing().await;
    if let Some(Deployed {
        revision,
        changed,
        previous,
    }) = api.records.undo_trial(&name, to, at).await?
    {
        rollout::told_back(&api, &name, previous, revision, "undone by request");
        return Ok(Json(answer(&name, revision, changed, previous)));
    }
    let (old, wanted) = api.records.undo_target(&name, to).await?;
    let pins = secrets::kept(&api, &old).await?;
    let deployed = api.records.deploy_again(&old, wanted, pins, at).await?;
    Ok(Json(told(&api, &name, &deployed)))
}

pub async fn status(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<ServiceStatus> {
    let service = find(&api, &name).await?;
    let (desired, _) = api.records.load().await?;
    let now = api.clock.monotonic();
    let name = &service.record.name;
    let observed = api.agent.observe(name);
    Ok(Json(ServiceStatus {
        schema: 1,
        replicas: observed.iter().map(|o| replica(o, now)).collect(),
        rollout: Some(rollout::view(&api, &service, &observed)),
        events: observe::last_events(&api, name, STATUS_LINES),
        logs: observe::last_logs(&api, name, STATUS_LINES),
        runs: if service.is_job() {
            runs::views(&api, &service, now).await?
        } else {
            Vec::new()
        },
        service: view(&api, &service, desired.runs.get(name), &observed, now),
    }))
}

#[derive(Deserialize)]
pub struct SpecQuery {
    revision: Option<u64>,
    #[serde(default)]
    effective: bool,
}

#[derive(serde::Serialize)]
pub struct SpecAnswer {
    schema: u32,
    revision: u64,
    toml: String,
}

pub async fn spec(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<SpecQuery>,
) -> Answer<SpecAnswer> {
    let service = find(&api, &name).await?;
    let number = query.revision.map_or(service.record.wanted, RevisionNumber);
    let history = api.records.history(&service.record.name).await?;
    let revision = history
        .iter()
        .find(|r| r.number == number)
        .ok_or_else(|| Refused::no_revision(service.record.name.as_str(), number.0))?;
    let toml = if query.effective {
        config::effective(&revision.spec)
    } else {
        revision.source.clone()
    };
    Ok(Json(SpecAnswer {
        schema: 1,
        revision: number.0,
        toml,
    }))
}

pub async fn revisions(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<List<RevisionView>> {
    let service = find(&api, &name).await?;
    let history = api.records.history(&service.record.name).await?;
    Ok(Json(List::of(
        history.iter().map(|r| revision_view(r, &service.record)).collect(),
    )))
}

fn revision_view(revision: &Revision, record: &ServiceRecord) -> RevisionView {
    let (state, reason) = match &revision.state {
        RevisionState::Pending => ("pending", None),
        RevisionState::Proved { .. } => ("proved", None),
        RevisionState::Refused(refusal) => ("refused", Some(refusal.detail.clone())),
        RevisionState::Superseded { .. } => ("superseded", None),
    };
    RevisionView {
        revision: revision.number.0,
        digest: revision.digest.to_string(),
        kind: observe::kind_name(revision.kind),
        state: state.into(),
        stable: record.stable == Some(revision.number),
        wanted: record.wanted == revision.number,
        cause: revision.cause.clone(),
        accepted_by: revision.accepted.as_ref().map(|a| a.by.clone()),
        reason,
        created_at: revision.created_at.rfc3339(),
    }
}

type Runs = std::collections::BTreeMap<RunId, Arc<JobRun>>;

fn view(api: &Api, service: &DesiredService, runs: Option<&Runs>, observed: &[Observed], now: Millis) -> ServiceView {
    let scaling = api.controller.scaling(&service.record);
    let autoscaled = scaling.as_ref().map(|s| s.count);
    let state = state_of::state(service, autoscaled, observed.iter().map(|o| &o.facts), now);
    let record = &service.record;
    if service.is_job() {
        return job_view(api, service, runs);
    }
    let spec = service.revisions.get(&record.wanted).map(|r| &r.spec);
    let rates = api.metrics.rates(&record.name, now);
    let serving = observed
        .iter()
        .filter(|o| matches!(o.facts.phase, Phase::Serving { .. }))
        .count();
    let alive = observed
        .iter()
        .filter(|o| !matches!(o.facts.phase, Phase::Dead { .. }))
        .count();
    ServiceView {
        name: record.name.to_string(),
        revision: record.wanted.0,
        stable: record.stable.map(|r| r.0),
        state: state.state.as_str().into(),
        reason: state.reason,
        replicas_wanted: wanted_replicas(service, autoscaled),
        replicas_serving: u32::try_from(serving).unwrap_or(u32::MAX),
        replicas_extra: u32::try_from(alive - serving).unwrap_or(u32::MAX),
        routes: spec.map(|s| s.routes.iter().map(route).collect()).unwrap_or_default(),
        requests_per_second: rates.requests_per_second,
        p50_ms: rates.p50_ms,
        p99_ms: rates.p99_ms,
        memory_bytes: observed.iter().map(|o| o.usage.memory_bytes).sum(),
        in_flight: observed.iter().map(|o| o.facts.in_flight).sum(),
        queued: api.agent.service(&record.name).map_or(0, |s| s.queued()),
        restarts: observed.iter().map(|o| o.facts.restarts_total).sum(),
        created_at: record.created_at.rfc3339(),
        changed_at: record.changed_at.rfc3339(),
        labels: spec.map(|s| s.labels.clone()).unwrap_or_default(),
        next_schedule: super::schedules::next(&api.controller.desired(), service, api.clock.wall()),
        autoscale: scaling
            .filter(|_| !matches!(state.state, state_of::State::Stopped))
            .map(|s| AutoscaleView {
                min: s.min,
                max: s.max,
                wanted: s.count,
                metric: s.metric.as_str().into(),
                load: tenths(s.load_milli),
                target: tenths(s.target_milli),
                cause: s.cause.as_str().into(),
                summary: s.text(),
            }),
    }
}

/// A command: attempts under way in the place of replicas, and no traffic.
fn job_view(api: &Api, service: &DesiredService, runs: Option<&Runs>) -> ServiceView {
    static NONE: Runs = Runs::new();
    let record = &service.record;
    let attempts = api.agent.attempts(&record.name);
    let living = attempts.iter().filter(|a| a.phase != "ended").count();
    let under_way = u32::try_from(living).unwrap_or(u32::MAX);
    let state = crate::plan::job::state(service, runs.unwrap_or(&NONE), under_way);
    let spec = service.revisions.get(&record.wanted).map(|r| &r.spec);
    ServiceView {
        name: record.name.to_string(),
        revision: record.wanted.0,
        stable: record.stable.map(|r| r.0),
        state: state.state.as_str().into(),
        reason: state.reason,
        replicas_wanted: state.wanted,
        replicas_serving: state.serving,
        replicas_extra: state.extra,
        routes: Vec::new(),
        requests_per_second: 0.0,
        p50_ms: None,
        p99_ms: None,
        memory_bytes: attempts.iter().map(|a| a.usage.memory_bytes).sum(),
        in_flight: 0,
        queued: 0,
        restarts: 0,
        created_at: record.created_at.rfc3339(),
        changed_at: record.changed_at.rfc3339(),
        labels: spec.map(|s| s.labels.clone()).unwrap_or_default(),
        next_schedule: super::schedules::next(&api.controller.desired(), service, api.clock.wall()),
        autoscale: None,
    }
}

/// What `scale` said, else what the wanted revision's file says.
fn wanted_replicas(service: &DesiredService, autoscaled: Option<u32>) -> u32 {
    let revision = service.revisions.get(&service.record.wanted);
    revision.map_or(0, |r| {
        crate::plan::fleet::wanted_replicas(&service.record, r, autoscaled)
    })
}

/// Thousandths as a number with one decimal.
fn tenths(milli: u64) -> f64 {
    u32::try_from(milli / 100).map_or(f64::from(u32::MAX), f64::from) / 10.0
}

/// `api.test/v1`, `/hello`.
fn route(route: &Route) -> String {
    match &route.host {
        HostPattern::Any => route.path.clone(),
        HostPattern::Exact(host) => format!("{host}{}", route.path),
        HostPattern::OneLabel(suffix) => format!("*.{suffix}{}", route.path),
    }
}

fn replica(observed: &Observed, now: Millis) -> ReplicaView {
    let Observed { facts, usage } = observed;
    let since = match &facts.phase {
        Phase::Starting { since }
        | Phase::Started { since }
        | Phase::Idle { since }
        | Phase::Serving { since }
        | Phase::Draining { since, .. }
        | Phase::Stopping { since } => since,
        Phase::Dead { at, .. } => at,
    };
    ReplicaView {
        id: facts.id.to_string(),
        revision: facts.revision.0,
        phase: words::phase(&facts.phase).into(),
        since_ms: crate::model::time::millis(now.since(*since)),
        in_flight: facts.in_flight,
        restarts: facts.restarts_total,
        calls: usage.calls,
        traps: usage.traps,
        cpu_ms: usage.cpu_ns / 1_000_000,
        memory_bytes: usage.memory_bytes,
        idle_instances: usage.idle_instances,
        ejected: facts.ejected_until.is_some(),
        reason: match &facts.phase {
            Phase::Dead { death, .. } => Some(words::death(death)),
            _ => facts.last_death.as_ref().map(|(_, death)| words::death(death)),
        },
    }
}
