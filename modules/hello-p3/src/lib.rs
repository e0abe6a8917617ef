//! WASI 0.3: the handler is an async function, and bodies are typed streams.
//!
//! Any path is greeted, after `?ms=N` milliseconds if asked. A POST gets its own body back as it
//! arrives, trailers too. `/count` counts the requests of this instance, which may have many under
//! way at a time, and `/trap` traps under all of them.

use core::sync::atomic::{AtomicU64, Ordering};
use wasip3::clocks::monotonic_clock;
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use wasip3::{spawn_local, wit_future, wit_stream};

static SEEN: AtomicU64 = AtomicU64::new(0);

struct Hello;

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if let Some(ms) = number(query, "ms") {
            monotonic_clock::wait_for(ms.saturating_mul(1_000_000)).await;
        }
        match path {
            "/trap" => core::arch::wasm32::unreachable(),
            "/count" => Ok(text(format!("{seen}\n"))),
            _ if matches!(request.get_method(), Method::Post) => Ok(echo(request)),
            _ => Ok(text("hello from narae 0.3\n".to_owned())),
        }
    }
}

fn number(query: &str, name: &str) -> Option<u64> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name)?.1.parse().ok()
}

fn text(body: String) -> Response {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let _ = headers.append("content-length", body.len().to_string().as_bytes());
    let (mut writer, reader) = wit_stream::new();
    // The writer is dropped at once, which sends the default: no trailers.
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(reader), trailers);
    // The host reads the body only after it has the response, so the write must outlive `handle`.
    spawn_local(async move {
        writer.write_all(body.into_bytes()).await;
    });
    response
}

/// The request's own stream becomes the answer's: the bytes never enter this module.
fn echo(request: Request) -> Response {
    let headers = Fields::new();
    let content_type = request.get_headers().get("content-type");
    let _ = headers.set("content-type", &content_type);
    let (_, outcome) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, outcome);
    let (response, _sent) = Response::new(headers, Some(body), trailers);
    response
}

wasip3::http::service::export!(Hello);
