//! Services: deploy, look, scale, restart, stop, undo, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use narae_runtime::Digest;
use serde::Deserialize;

use super::answer::{Body, Query, Refused};
use super::{Api, observe};
use crate::agent::Observed;
use crate::config::{self, Code, Problem, Severity, Source};
use crate::events::Occurrence;
use crate::model::record::{Revision, RevisionState, ServiceRecord};
use crate::model::service::{HostPattern, Route, World};
use crate::model::views::{
    DeployAnswer, DeployRequest, List, ReplicaView, RevisionView, RolloutView, ServiceStatus, ServiceView,
};
use crate::model::{EventKind, Millis, Phase, ReplicaCount, RevisionNumber, ServiceName, ServiceSpec};
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
    Ok(Json(List::of(
        desired
            .services
            .values()
            .map(|s| view(&api, s, &api.agent.observe(&s.record.name), now))
            .collect(),
    )))
}

pub async fn deploy(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
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
    let (desired, _) = api.records.load().await?;
    let others: Vec<(ServiceName, &ServiceSpec)> = desired
        .services
        .iter()
        .filter(|(other, service)| **other != spec.name && !service.record.deleting)
        .filter_map(|(other, service)| Some((other.clone(), &service.revisions.get(&service.record.wanted)?.spec)))
        .collect();
    let crossed: Vec<Problem> = config::cross_at(
        &spec,
        &others,
        api.settings.memory_budget_bytes,
        Some(&Source::new(file, &request.toml)),
    );
    let errors: Vec<Problem> = crossed.into_iter().filter(|p| p.severity == Severity::Error).collect();
    if !errors.is_empty() {
        return Err(Refused::problems(&errors));
    }
    let current = desired.services.get(&spec.name);
    precondition(current, &request, &spec.name)?;
    let service = spec.name.clone();
    let new = NewRevision {
        spec,
        source: request.toml.clone(),
        digest,
        kind: module.kind,
        cause: request.cause.clone().unwrap_or_else(|| "deploy".into()),
    };
    if request.dry_run {
        return Ok(Json(foretold(current, &service, &new)));
    }
    let deployed = api.records.deploy(new, request.if_revision, api.clock.wall()).await?;
    // Revisions that never prove themselves must not pile up either; a trim that is lost comes with the next one.
    if let Err(error) = api.records.trim(&service).await {
        tracing::warn!(service = %service, error = crate::agent::report(&error), "old revisions were not trimmed");
    }
    Ok(Json(told(&api, &service, &deployed)))
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
        let help = Some("`narae module inspect` lists what a module imports".to_owned());
        return Err(Refused::with_help(
            StatusCode::BAD_REQUEST,
            Code::ImportNotOffered,
            text,
            help,
        ));
    }
    if !module.kind.is_http() {
        let help = Some("`narae run` executes a command to its end; jobs are not supported yet".to_owned());
        let text = "the module is a command, and only world `http` can be deployed: not supported yet";
        return Err(Refused::with_help(
            StatusCode::BAD_REQUEST,
            Code::CommandNotDeployable,
            text,
            help,
        ));
    }
    if spec.world == World::Command {
        let text = "the file says world = \"command\", the module serves http";
        return Err(Refused::new(StatusCode::BAD_REQUEST, Code::WorldMismatch, text));
    }
    Ok(())
}

pub async fn remove(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<StatusCode, Refused> {
    let name = name_of(&name)?;
    api.records.delete(&name, api.clock.wall()).await?;
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
    let before = wanted_replicas(&service);
    let spec = service
        .revisions
        .get(&service.record.wanted)
        .ok_or_else(|| Refused::no_service(name.as_str()))?;
    // Counted inside the write: of two that add one at once, both count.
    let set = |record: &mut ServiceRecord| {
        let now = crate::plan::fleet::wanted_replicas(record, spec);
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
        record.scaled = Some(count);
        record.scaled_under = Some(record.wanted);
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

/// What takes no setting takes none in silence either.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

pub async fn restart(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ServiceView> {
    let name = name_of(&name)?;
    api.records.restart(&name, api.clock.wall()).await?;
    edited(&api, &name, EventKind::Restarting, "restart was asked for".into()).await
}

pub async fn start(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ServiceView> {
    let name = name_of(&name)?;
    api.records.set_stopped(&name, false, api.clock.wall()).await?;
    edited(&api, &name, EventKind::Started, "start was asked for".into()).await
}

pub async fn stop(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<ServiceView> {
    let name = name_of(&name)?;
    api.records.set_stopped(&name, true, api.clock.wall()).await?;
    edited(&api, &name, EventKind::Stopped, "stop was asked for".into()).await
}

/// A change of a service's record was written: told, and seen by the planner.
async fn edited(api: &Arc<Api>, name: &ServiceName, kind: EventKind, text: String) -> Answer<ServiceView> {
    api.events.record(kind, Some(name), Occurrence::new(text));
    api.controller.wake.notify_one();
    let service = find(api, name.as_str()).await?;
    Ok(Json(view(
        api,
        &service,
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
    let deployed = api
        .records
        .undo(&name, undo.to.map(RevisionNumber), api.clock.wall())
        .await?;
    Ok(Json(told(&api, &name, &deployed)))
}

pub async fn status(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<ServiceStatus> {
    let service = find(&api, &name).await?;
    let now = api.clock.monotonic();
    let name = &service.record.name;
    let observed = api.agent.observe(name);
    Ok(Json(ServiceStatus {
        schema: 1,
        replicas: observed.iter().map(|o| replica(o, now)).collect(),
        rollout: Some(rollout_view(&api, &service, &observed)),
        events: observe::last_events(&api, name, STATUS_LINES),
        logs: observe::last_logs(&api, name, STATUS_LINES),
        service: view(&api, &service, &observed, now),
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

pub async fn rollout(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<RolloutView> {
    let service = find(&api, &name).await?;
    let observed = api.agent.observe(&service.record.name);
    Ok(Json(rollout_view(&api, &service, &observed)))
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
        reason,
        created_at: revision.created_at.rfc3339(),
    }
}

fn rollout_view(api: &Api, service: &DesiredService, observed: &[Observed]) -> RolloutView {
    let rollout = state_of::rollout(service, observed.iter().map(|o| &o.facts));
    let notes = api.agent.notes(&service.record.name);
    RolloutView {
        schema: 1,
        service: service.record.name.to_string(),
        from: rollout.from.map(|r| r.0),
        to: rollout.to.0,
        state: rollout.state.into(),
        reason: rollout.reason,
        notes: crate::controller::notes_of(&notes),
        old_serving: rollout.old_serving,
        new_serving: rollout.new_serving,
        wanted: rollout.wanted,
    }
}

fn view(api: &Api, service: &DesiredService, observed: &[Observed], now: Millis) -> ServiceView {
    let state = state_of::state(service, observed.iter().map(|o| &o.facts), now);
    let record = &service.record;
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
        replicas_wanted: wanted_replicas(service),
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
    }
}

/// What `scale` said, else what the wanted revision's file says.
fn wanted_replicas(service: &DesiredService) -> u32 {
    let revision = service.revisions.get(&service.record.wanted);
    revision.map_or(0, |r| crate::plan::fleet::wanted_replicas(&service.record, r))
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
        reason: match &facts.phase {
            Phase::Dead { death, .. } => Some(words::death(death)),
            _ => facts.last_death.as_ref().map(|(_, death)| words::death(death)),
        },
    }
}
