//! Crash reports: listed and read. They are files; read on a blocking thread.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::Api;
use super::answer::{Query, Refused};
use crate::config::Code;
use crate::crashes::Crashes;
use crate::model::views::{CrashView, List};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    #[serde(default)]
    service: Option<String>,
}

pub async fn list(State(api): State<Arc<Api>>, Query(which): Query<Which>) -> Result<Json<List<CrashView>>, Refused> {
    let mut all = on_disk(&api, |crashes| crashes.list()).await?;
    all.retain(|c| which.service.as_ref().is_none_or(|service| *service == c.service));
    Ok(Json(List::of(all)))
}

pub async fn show(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Json<CrashView>, Refused> {
    let wanted = id.clone();
    let found = on_disk(&api, move |crashes| crashes.find(&wanted)).await?;
    found.map(Json).ok_or_else(|| {
        let help = Some("`narae crash list` shows the reports there are; the oldest go".to_owned());
        let text = format!("no crash report `{}`", id.escape_debug());
        Refused::with_help(StatusCode::NOT_FOUND, Code::UnknownCrash, text, help)
    })
}

async fn on_disk<T: Send + 'static>(
    api: &Api,
    work: impl FnOnce(&Crashes) -> T + Send + 'static,
) -> Result<T, Refused> {
    let crashes = Arc::clone(&api.crashes);
    let done = tokio::task::spawn_blocking(move || work(&crashes)).await;
    done.map_err(|e| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, e.to_string()))
}
