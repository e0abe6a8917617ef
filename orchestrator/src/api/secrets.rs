//! Secrets: set, listed, deleted; and the versions that a new revision pins. Values come in and never go out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};

use super::Api;
use super::answer::{Refused, whole_body};
use super::capabilities::Caller;
use crate::config::{self, Code, Problem, Source};
use crate::events::Occurrence;
use crate::model::views::{List, SecretAnswer, SecretRollout, SecretView};
use crate::model::{EventKind, Redacted, Revision, ServiceName, ServiceSpec};
use crate::plan::Desired;
use crate::secrets::{MAX_VALUE_BYTES, SecretsError, is_name};

impl From<SecretsError> for Refused {
    fn from(error: SecretsError) -> Self {
        let text = crate::agent::report(&error);
        match &error {
            SecretsError::NoSecret(name) => unknown(name),
            SecretsError::BadName(_) => Self::with_help(
                StatusCode::BAD_REQUEST,
                Code::BadSecretName,
                text,
                Some("for example `orders-db-password`".into()),
            ),
            SecretsError::BadSize(_) => Self::new(StatusCode::BAD_REQUEST, Code::SecretRefused, text),
            SecretsError::NotText => Self::with_help(
                StatusCode::BAD_REQUEST,
                Code::SecretRefused,
                text,
                Some("keep it as base64, and let the guest decode it".into()),
            ),
            SecretsError::TooMany | SecretsError::TooLarge => Self::with_help(
                StatusCode::CONFLICT,
                Code::SecretRefused,
                text,
                Some("delete what nobody uses: `narae secret list`".into()),
            ),
            SecretsError::Key(_) | SecretsError::Sealed { .. } | SecretsError::NoVersion { .. } => Self::with_help(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::SecretsKey,
                text,
                Some("put the right `secrets.key` back and restart the daemon".into()),
            ),
            _ => {
                tracing::error!(error = text, "secrets could not be read or written");
                Self::with_help(
                    StatusCode::SERVICE_UNAVAILABLE,
                    Code::Internal,
                    format!("cannot use the secrets: {text}"),
                    Some("what runs goes on".into()),
                )
            }
        }
    }
}

fn unknown(name: &str) -> Refused {
    let help = if is_name(name) {
        format!("`narae secret set {name}` makes it, `narae secret list` shows those there are")
    } else {
        "`narae secret list` shows those there are".to_owned()
    };
    let text = format!("no secret `{}`", name.escape_debug());
    Refused::with_help(StatusCode::NOT_FOUND, Code::UnknownSecret, text, Some(help))
}

pub async fn set(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Json<SecretAnswer>, Refused> {
    let bytes = whole_body(request, MAX_VALUE_BYTES, Code::SecretRefused).await?;
    let text = String::from_utf8(bytes.into()).map_err(|error| {
        crate::model::redacted::wipe(&mut error.into_bytes());
        SecretsError::NotText
    })?;
    let value = Redacted::new(text);
    let _changing = api.secrets.changing().await;
    let (desired, _) = api.records.load().await?;
    let used = pins(&desired).filter(|(n, _)| **n == name).map(|(_, v)| *v).max();
    let set = api
        .secrets
        .set(&name, &value, used.unwrap_or(0), api.clock.wall())
        .await?;
    if set.changed {
        let text = format!("{} set secret {name}, version {}", who(caller), set.version);
        api.events.record(EventKind::Secret, None, Occurrence::new(text));
    }
    let services = renew(&api, &desired, &name, set.version).await?;
    trim(&api).await;
    Ok(Json(SecretAnswer {
        schema: 1,
        name,
        version: set.version,
        changed: set.changed,
        services,
    }))
}

fn who(caller: Option<Extension<Caller>>) -> String {
    caller.map_or(Caller::Unknown, |Extension(caller)| caller).name()
}

/// A new revision of every service whose wanted one reads another version. One that fails keeps no other from it; the same
/// value set again goes on with those that are missing.
async fn renew(api: &Api, desired: &Desired, name: &str, version: u64) -> Result<Vec<SecretRollout>, Refused> {
    let mut renewed = Vec::new();
    let mut failed: Vec<(ServiceName, String)> = Vec::new();
    for service in desired.services.keys() {
        match api.records.renew(service, name, version, api.clock.wall()).await {
            Ok(Some(deployed)) => {
                let number = deployed.revision;
                let text = format!("revision {number} is wanted: secret {name} changed");
                let occurrence = Occurrence::new(text).revision(number);
                api.events.record(EventKind::Deployed, Some(service), occurrence);
                renewed.push(SecretRollout {
                    service: service.to_string(),
                    revision: number.0,
                });
            }
            Ok(None) => {}
            Err(error) => failed.push((service.clone(), crate::agent::report(&error))),
        }
    }
    if !renewed.is_empty() {
        api.controller.wake.notify_one();
    }
    let Some((service, error)) = failed.first() else {
        return Ok(renewed);
    };
    let text = format!(
        "secret {name} is set to version {version}, but {} of its services still run with the old one: {service}: {error}",
        failed.len()
    );
    let help = Some("set the same value again: it goes on with those".to_owned());
    Err(Refused::with_help(
        StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal,
        text,
        help,
    ))
}

pub async fn list(State(api): State<Arc<Api>>) -> Result<Json<List<SecretView>>, Refused> {
    let (desired, _) = api.records.load().await?;
    let mut newest = BTreeMap::new();
    for version in api.secrets.list().await? {
        newest.insert(version.name.clone(), version);
    }
    let view = |version: crate::secrets::Version| SecretView {
        used_by: users(&desired, &version.name),
        name: version.name,
        version: version.version,
        changed_at: version.at.rfc3339(),
        readable: version.ours,
    };
    Ok(Json(List::of(newest.into_values().map(view).collect())))
}

pub async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    caller: Option<Extension<Caller>>,
) -> Result<StatusCode, Refused> {
    let _changing = api.secrets.changing().await;
    let (desired, _) = api.records.load().await?;
    let users = users(&desired, &name);
    if api.secrets.current(&name).await?.is_none() {
        return Err(unknown(&name));
    }
    if !users.is_empty() {
        let text = format!("secret `{name}` is used by {}", users.join(", "));
        let help = "deploy those without it, or delete them, first".to_owned();
        return Err(Refused::with_help(
            StatusCode::CONFLICT,
            Code::SecretInUse,
            text,
            Some(help),
        ));
    }
    api.secrets.delete(&name).await?;
    let text = format!("{} deleted secret {name}", who(caller));
    api.events.record(EventKind::Secret, None, Occurrence::new(text));
    Ok(StatusCode::NO_CONTENT)
}

/// Versions that no kept revision pins go. One that is left over goes with the next change.
pub(super) async fn trim(api: &Api) {
    let trimmed = async {
        let (desired, _) = api.records.load().await.map_err(|e| crate::agent::report(&e))?;
        let pinned: BTreeSet<_> = pins(&desired).map(|(name, version)| (name.clone(), *version)).collect();
        api.secrets.trim(&pinned).await.map_err(|e| crate::agent::report(&e))
    };
    if let Err(error) = trimmed.await {
        tracing::warn!(error, "old versions of secrets were not removed");
    }
}

/// What every kept revision pins.
fn pins(desired: &Desired) -> impl Iterator<Item = (&String, &u64)> {
    let revisions = desired.services.values().flat_map(|s| s.revisions.values());
    revisions.flat_map(|r| &r.secrets)
}

/// `service@revision` of the wanted and the stable revisions that read it.
fn users(desired: &Desired, name: &str) -> Vec<String> {
    let mut users = Vec::new();
    for (service, held) in &desired.services {
        let record = &held.record;
        let numbers: BTreeSet<_> = record.stable.into_iter().chain([record.wanted]).collect();
        let reads = numbers
            .into_iter()
            .filter(|n| held.revisions.get(n).is_some_and(|r| r.secrets.contains_key(name)));
        users.extend(reads.map(|n| format!("{service}@{n}")));
    }
    users
}

/// The current version of each secret that the file names. Called with [`crate::secrets::Secrets::changing`] held.
///
/// # Errors
/// Every one that is not there, with its place in the file.
pub(super) async fn current(api: &Api, spec: &ServiceSpec, source: &Source) -> Result<BTreeMap<String, u64>, Refused> {
    let mut pins = BTreeMap::new();
    let mut missing: Vec<Problem> = Vec::new();
    for name in spec.secret_names() {
        match api.secrets.current(name).await? {
            Some(version) => {
                // One that does not open is told now, not by a rollout that fails.
                api.secrets.value(name, version).await?;
                pins.insert(name.to_owned(), version);
            }
            None => missing.push(config::missing_secret(spec, name, source)),
        }
    }
    if missing.is_empty() {
        Ok(pins)
    } else {
        Err(Refused::problems(&missing))
    }
}

/// What an undo to `old` pins: what it ran with; of a secret that was deleted and set again since, the current version.
///
/// # Errors
/// One of its secrets is gone.
pub(super) async fn kept(api: &Api, old: &Revision) -> Result<BTreeMap<String, u64>, Refused> {
    let stored: BTreeSet<_> = api
        .secrets
        .list()
        .await?
        .into_iter()
        .map(|v| (v.name, v.version))
        .collect();
    let mut pins = BTreeMap::new();
    for (name, version) in &old.secrets {
        let version = if stored.contains(&(name.clone(), *version)) {
            *version
        } else {
            api.secrets.current(name).await?.ok_or_else(|| unknown(name))?
        };
        pins.insert(name.clone(), version);
    }
    Ok(pins)
}
