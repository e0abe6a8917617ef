//! A call to another service of this node, `http://NAME.internal/…`: no socket, no name lookup, no TLS. Who answers, and
//! how requests wait for them, is behind [`Neighbours`].

use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use wasmtime_wasi_http::{Error, Result, WasiBody};

use crate::guest::Neighbours;
use crate::http::{Body, BodyError};
use crate::wasm::ambient::Ambient;

/// Asks the neighbour. The future drives it: dropping it ends the call.
pub(super) async fn call(
    neighbours: &dyn Neighbours,
    name: &str,
    request: Request<WasiBody>,
) -> Result<Response<Body>> {
    let mut request = inner(request)?;
    let ambient = request.extensions_mut().remove::<Ambient>().unwrap_or_default();
    ambient.name(request.headers_mut());
    let hops = ambient.hops.saturating_add(1);
    let call = neighbours.call(name, hops, request).ok_or(Error::ConnectionRefused)?;
    Ok(call.await)
}

/// The request as a service gets it from the balancer: origin-form, one host.
fn inner(request: Request<WasiBody>) -> Result<Request<Body>> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let authority = parts.uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Error::HttpRequestUriInvalid)?;
    parts.headers.insert(header::HOST, host);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse::<Uri>().map_err(|_| Error::HttpRequestUriInvalid)?;
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() {
        Body::Empty
    } else {
        Body::stream(body.map_err(|error| BodyError::Closed(Box::new(error))))
    };
    Ok(Request::from_parts(parts, body))
}

/// A neighbour's broken answer in the interface's words.
pub(super) fn error_of(_: BodyError) -> Error {
    Error::HttpResponseIncomplete
}
