//! `narae call`: a request into a service through the admin door, past the routes, to a chosen replica or revision.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Response;

use super::answer::Refused;
use super::{Api, services};
use narae_runtime::BodyError;

use crate::agent::Want;
use crate::config::Code;
use crate::model::{ReplicaId, RevisionNumber};
use crate::proxy::Choice;

const REPLICA: HeaderName = HeaderName::from_static("x-narae-replica");
const REVISION: HeaderName = HeaderName::from_static("x-narae-revision");

pub async fn call_root(
    state: State<Arc<Api>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    call(state, Path((name, String::new())), request).await
}

pub async fn call(
    State(api): State<Arc<Api>>,
    Path((name, _)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Refused> {
    let service = services::find(&api, &name).await?;
    let name = &service.record.name;
    let want = Want {
        replica: number(&request, &REPLICA)?.map(ReplicaId),
        revision: number(&request, &REVISION)?.map(RevisionNumber),
    };
    let picked = want.replica.is_some() || want.revision.is_some();
    let Some(balanced) = api.agent.service(name) else {
        return Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::BadRequest,
            format!("service `{name}` has no replica now"),
        ));
    };
    let choice = if picked {
        let found = api.agent.upstream(name, &want);
        Choice::Upstream(found.ok_or_else(|| {
            Refused::new(
                StatusCode::NOT_FOUND,
                Code::BadRequest,
                format!("no such replica of `{name}` runs"),
            )
        })?)
    } else {
        Choice::Any
    };
    let limit = service
        .revisions
        .get(&service.record.wanted)
        .map_or(0, |r| r.spec.limits.body_bytes);
    let request = inner(request, name.as_str(), limit)?;
    // On the guests' runtime: a guest that spins must not hold up the control runtime.
    let balancer = Arc::clone(api.agent.balancer());
    let dispatched = api
        .agent
        .guests()
        .spawn(async move { crate::proxy::dispatch(&balancer, &balanced, choice, request).await });
    let response = dispatched.await.map_err(|_| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::BadRequest,
            "the call broke down",
        )
    })?;
    Ok(match response {
        Ok(mut response) => {
            // Who answered; an answer without it is the daemon's own.
            if let Some(id) = response.extensions().get::<ReplicaId>().copied()
                && let Ok(value) = id.to_string().parse()
            {
                response.headers_mut().insert(REPLICA, value);
            }
            response.map(axum::body::Body::new)
        }
        Err(failure) => crate::proxy::answer(failure.reason, false).map(axum::body::Body::from),
    })
}

/// The request as the guest shall see it: the path below `…/call`, no admin credentials.
fn inner(request: Request, name: &str, limit: u64) -> Result<narae_runtime::Request, Refused> {
    use http_body_util::BodyExt;
    let (mut parts, body) = request.into_parts();
    let prefix = format!("/v1/services/{name}/call");
    let below = parts
        .uri
        .path_and_query()
        .and_then(|p| p.as_str().strip_prefix(&prefix))
        .ok_or_else(|| Refused::bad_request("the service's name is written as it is, without percent-encoding"))?;
    parts.uri = below
        .parse()
        .map_err(|_| Refused::bad_request("the path below `call` is not a path"))?;
    crate::proxy::strip(&mut parts.headers);
    for name in [header::AUTHORIZATION, REPLICA, REVISION] {
        parts.headers.remove(name);
    }
    parts
        .headers
        .entry(header::HOST)
        .or_insert(header::HeaderValue::from_static("localhost"));
    let empty = hyper::body::Body::is_end_stream(&body);
    let body = if empty {
        narae_runtime::Body::Empty
    } else {
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let limited = http_body_util::Limited::new(body, most);
        narae_runtime::Body::stream(limited.map_err(move |e| {
            if e.is::<http_body_util::LengthLimitError>() {
                BodyError::TooLarge { limit }
            } else {
                BodyError::Closed(e)
            }
        }))
    };
    Ok(narae_runtime::Request::from_parts(parts, body))
}

fn number(request: &Request, name: &HeaderName) -> Result<Option<u64>, Refused> {
    let Some(value) = request.headers().get(name) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let number = text.strip_prefix('r').unwrap_or(text).parse();
    number
        .map(Some)
        .map_err(|_| Refused::bad_request(format!("{name} is not a number")))
}
