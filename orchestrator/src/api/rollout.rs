//! The rollout of a service: where it stands, and what people ask for while it is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::answer::{Body, Refused};
use super::services::{Nothing, find, name_of};
use super::{Api, answer};
use crate::agent::Observed;
use crate::events::Occurrence;
use crate::model::service::Step;
use crate::model::time::millis;
use crate::model::views::{FiguresView, GatesView, RolloutView, ShareView};
use crate::model::{EventKind, Phase, RevisionNumber, ServiceName};
use crate::plan::gates::Measure;
use crate::plan::{DesiredService, rollout, status};

type Answer<T> = Result<Json<T>, Refused>;

pub async fn show(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer<RolloutView> {
    let service = find(&api, &name).await?;
    let observed = api.agent.observe(&service.record.name);
    Ok(Json(view(&api, &service, &observed)))
}

/// `pause`, `resume`, `promote`, `abort`.
pub async fn change(
    State(api): State<Arc<Api>>,
    Path((name, verb)): Path<(String, String)>,
    Body(Nothing {}): Body<Nothing>,
) -> Answer<RolloutView> {
    let name = name_of(&name)?;
    let at = api.clock.wall();
    let said = match verb.as_str() {
        "pause" => api.records.set_paused(&name, true, at).await.map(|_| "paused"),
        "resume" => api.records.set_paused(&name, false, at).await.map(|_| "resumed"),
        "promote" => api
            .records
            .promote(&name, at)
            .await
            .map(|_| "promoted: no further step and no gate"),
        "abort" => return abort(&api, &name).await,
        _ => return Err(answer::no_such_path().await),
    }?;
    told(&api, &name, EventKind::Rollout, None, format!("the rollout was {said}"));
    show(State(api), Path(name.to_string())).await
}

async fn abort(api: &Arc<Api>, name: &ServiceName) -> Answer<RolloutView> {
    let detail = "aborted by request";
    let back = api.records.abort(name, detail, api.clock.wall()).await?;
    told_back(api, name, back.previous, back.revision, detail);
    show(State(Arc::clone(api)), Path(name.to_string())).await
}

/// Someone went back to the stable revision.
pub(super) fn told_back(api: &Api, name: &ServiceName, from: Option<RevisionNumber>, to: RevisionNumber, why: &str) {
    let from = from.map_or_else(String::new, |n| format!(" from revision {n}"));
    told(
        api,
        name,
        EventKind::RolledBack,
        Some(to),
        format!("rolled back{from} to {to}: {why}"),
    );
}

fn told(api: &Api, name: &ServiceName, kind: EventKind, revision: Option<RevisionNumber>, text: String) {
    let occurrence = Occurrence {
        revision,
        ..Occurrence::new(text)
    };
    api.events.record(kind, Some(name), occurrence);
    api.controller.wake.notify_one();
}

pub(super) fn view(api: &Api, service: &DesiredService, observed: &[Observed]) -> RolloutView {
    let name = &service.record.name;
    let autoscaled = api.controller.scaling(&service.record).map(|s| s.count);
    let state = status::rollout(service, autoscaled, observed.iter().map(|o| &o.facts));
    let notes = api.agent.notes(name);
    let strategy = service.revisions.get(&state.to).map(|r| r.spec.rollout.strategy);
    let course = rollout::by_steps(service);
    let stage = api
        .controller
        .stage(name)
        .filter(|(stage, _)| stage.revision == state.to);
    let left = stage.as_ref().and_then(|(stage, _)| {
        let end = stage.since.plus(course?.hold?);
        Some(millis(end.since(api.clock.monotonic())))
    });
    let gates = service
        .revisions
        .get(&state.to)
        .and_then(|r| r.spec.rollout.gates)
        .zip(stage.and_then(|(_, measures)| measures));
    RolloutView {
        schema: 1,
        service: name.to_string(),
        from: state.from.map(|r| r.0),
        to: state.to.0,
        state: state.state.into(),
        reason: state.reason,
        notes: crate::controller::notes_of(&notes),
        old_serving: state.old_serving,
        new_serving: state.new_serving,
        wanted: state.wanted,
        strategy: strategy.map_or("", |s| s.as_str()).into(),
        step: course.filter(|c| !c.is_last()).map(|c| c.step + 1),
        steps: course.map_or(0, |c| c.steps),
        paused: rollout::is_paused(&service.record),
        hold_left_ms: left,
        split: shares(api, name, observed),
        gates: gates.map(|(gates, m)| GatesView {
            min_requests: gates.min_requests.into(),
            new: figures(&m.new),
            stable: figures(&m.stable),
        }),
    }
}

fn figures(m: &Measure) -> FiguresView {
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    FiguresView {
        requests: m.requests,
        errors: m.errors,
        traps: m.traps,
        p99_ms: m.p99.map(ms),
        cpu_ms: m.cpu.map(ms),
    }
}

/// Of each revision that serves; where all are alike, by their replicas.
fn shares(api: &Api, name: &ServiceName, observed: &[Observed]) -> Vec<ShareView> {
    let mut serving: BTreeMap<RevisionNumber, u32> = BTreeMap::new();
    for o in observed
        .iter()
        .filter(|o| matches!(o.facts.phase, Phase::Serving { .. }))
    {
        *serving.entry(o.facts.revision).or_default() += 1;
    }
    let split = api.agent.split(name);
    let here: u32 = split
        .iter()
        .filter(|(n, _)| serving.contains_key(n))
        .map(|(_, s)| s)
        .sum();
    let all: u32 = serving.values().sum();
    let percent = |part: u32, of: u32| f64::from(part * Step::WHOLE / of.max(1)) / 10.0;
    serving
        .iter()
        .map(|(number, serving)| ShareView {
            revision: number.0,
            percent: match here {
                0 => percent(*serving, all),
                _ => percent(split.get(number).copied().unwrap_or(0), here),
            },
            serving: *serving,
        })
        .collect()
}
