//! One form for every refusal: a status and `{"schema":1,"errors":[…]}` with all mistakes, each with its stable code.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::config::{Code, Problem};
use crate::model::views::{ProblemView, Problems};
use crate::store::RecordsError;

/// A refused request: what the client gets instead of an answer.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub errors: Vec<ProblemView>,
}

impl Refused {
    /// One problem that belongs to no file.
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self::with_help(status, code, message, None)
    }

    pub fn with_help(status: StatusCode, code: Code, message: impl Into<String>, help: Option<String>) -> Self {
        let message = message.into();
        let mut rendered = format!("error: {message}");
        if let Some(help) = &help {
            rendered.push_str(&format!("\n  = help: {help}"));
        }
        let code = code.as_str().to_owned();
        let view = ProblemView {
            code,
            message,
            file: None,
            line: None,
            column: None,
            help,
            rendered,
        };
        Self {
            status,
            errors: vec![view],
        }
    }

    /// All mistakes of a file.
    pub fn problems(problems: &[Problem]) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            errors: problems.iter().map(Problem::to_view).collect(),
        }
    }

    pub fn no_service(name: &str) -> Self {
        let help = Some("`narae list` shows the services there are".to_owned());
        Self::with_help(
            StatusCode::NOT_FOUND,
            Code::UnknownService,
            format!("no service `{}`", name.escape_debug()),
            help,
        )
    }

    pub fn no_revision(name: &str, revision: u64) -> Self {
        let help = Some(format!("`narae rollout history {name}` shows the kept ones"));
        Self::with_help(
            StatusCode::NOT_FOUND,
            Code::UnknownRevision,
            format!("service `{name}` has no revision {revision}"),
            help,
        )
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadBody, message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(Problems {
                schema: 1,
                errors: self.errors,
            }),
        )
            .into_response()
    }
}

impl From<RecordsError> for Refused {
    fn from(error: RecordsError) -> Self {
        match &error {
            RecordsError::NoService(name) => Self::no_service(name.as_str()),
            RecordsError::NoRevision(name, number) => Self::no_revision(name.as_str(), number.0),
            RecordsError::NothingToUndo(_) => {
                Self::new(StatusCode::NOT_FOUND, Code::UnknownRevision, error.to_string())
            }
            RecordsError::NoRollout { service, .. } => {
                let help = Some(format!("`narae rollout status {service}` shows where it stands"));
                Self::with_help(StatusCode::CONFLICT, Code::NoRollout, error.to_string(), help)
            }
            RecordsError::KindChanges(name) => {
                let help = Some(format!("give the file another name, or `narae delete {name}` first"));
                Self::with_help(StatusCode::CONFLICT, Code::KindChanges, error.to_string(), help)
            }
            RecordsError::NoSchedule(name, _) => {
                let help = Some(format!("`narae schedule list {name}` shows those there are"));
                Self::with_help(StatusCode::NOT_FOUND, Code::UnknownSchedule, error.to_string(), help)
            }
            RecordsError::NoRun(name, _) => {
                let help = Some(format!("`narae status {name}` lists the kept runs"));
                Self::with_help(StatusCode::NOT_FOUND, Code::UnknownRun, error.to_string(), help)
            }
            RecordsError::Stopped(name) => {
                let help = Some(format!("`narae start {name}` takes the stop back"));
                Self::with_help(StatusCode::CONFLICT, Code::RunRefused, error.to_string(), help)
            }
            RecordsError::TooManyRuns(name) => {
                let help = Some(format!("wait for one to end, or end them with `narae stop {name}`"));
                Self::with_help(StatusCode::CONFLICT, Code::RunRefused, error.to_string(), help)
            }
            RecordsError::ArgsTooLong(_) => Self::new(StatusCode::BAD_REQUEST, Code::BadBody, error.to_string()),
            RecordsError::Changed { .. } => {
                let help = Some("look again, then deploy without the precondition or with the new number".to_owned());
                Self::with_help(
                    StatusCode::PRECONDITION_FAILED,
                    Code::PreconditionFailed,
                    error.to_string(),
                    help,
                )
            }
            RecordsError::Deleting(_) => {
                let help = Some("wait until it is gone, then deploy it anew".to_owned());
                Self::with_help(StatusCode::CONFLICT, Code::BadRequest, error.to_string(), help)
            }
            _ => {
                let text = crate::agent::report(&error);
                tracing::error!(error = text, "desired state could not be read or written");
                let help = Some("nothing was changed; what runs goes on".to_owned());
                let text = format!("cannot use desired state: {text}");
                Self::with_help(StatusCode::SERVICE_UNAVAILABLE, Code::Internal, text, help)
            }
        }
    }
}

/// The longest a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The whole body, at most `limit` bytes: one that is announced as longer is refused before it is read.
pub async fn whole_body(request: axum::extract::Request, limit: usize, code: Code) -> Result<bytes::Bytes, Refused> {
    let too_large = || {
        let text = format!("the body is longer than {limit} bytes");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, code, text)
    };
    let body = request.into_body();
    if http_body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error))
            if std::error::Error::source(&error).is_some_and(|e| e.is::<http_body_util::LengthLimitError>()) =>
        {
            Err(too_large())
        }
        Ok(Err(error)) => {
            let text = format!("cannot read the body: {}", crate::agent::report(&error));
            Err(Refused::new(StatusCode::BAD_REQUEST, code, text))
        }
        Err(_) => {
            let text = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, code, text))
        }
    }
}

/// A JSON body whose mistakes are told in our form, with the path of the field.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: axum::extract::Request, _: &S) -> Result<Self, Refused> {
        let bytes = whole_body(request, super::BODY_LIMIT, Code::BadBody).await?;
        let bytes = if bytes.is_empty() {
            bytes::Bytes::from_static(b"{}")
        } else {
            bytes
        };
        serde_json::from_slice(&bytes).map(Body).map_err(|e| {
            let text = format!("the body is not what was expected: {e}");
            Refused::new(StatusCode::BAD_REQUEST, Code::BadBody, text)
        })
    }
}

/// A query whose mistakes are told in our form.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Refused> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|e| Refused::bad_request(e.body_text()))
    }
}

pub async fn no_such_path() -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        Code::BadRequest,
        "no such path; /v1/openapi.json lists them",
    )
}

pub async fn no_such_method() -> Refused {
    Refused::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Code::BadRequest,
        "this path does not take that method; /v1/openapi.json lists them",
    )
}
