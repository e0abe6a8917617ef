//! Calling out: `/?url=URL` gets it and answers with the same status and body, streamed.
//!
//! `&method=POST` uses another method, `&echo=1` forwards the request body. A call that fails, or
//! that the host does not allow, is a 502 with the error code.
//!
//! Both bodies move at once: a server that answers while it still reads would wait for ever on a
//! proxy that sends first and listens afterwards.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingRequest, IncomingResponse, Method, OutgoingBody,
    OutgoingRequest, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::poll::{self, Pollable};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

struct Fetch;

impl Guest for Fetch {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        let Some(outgoing) = target.text("url").and_then(|url| aim(&url, &target)) else {
            return kit::respond(out, 400, "wanted: /?url=http://host/path\n");
        };
        let body = outgoing.body().expect("the body is taken once");
        let future = match outgoing_handler::handle(outgoing, None) {
            Ok(future) => future,
            Err(code) => return fail(out, &code),
        };
        if target.number("echo").is_some() {
            let from = request.consume().expect("the body is taken once");
            exchange(future, Some(Pipe::new(from, body)), out);
        } else {
            let _ = OutgoingBody::finish(body, None);
            exchange(future, None, out);
        }
    }
}

fn fail(out: ResponseOutparam, code: &ErrorCode) {
    kit::respond(out, 502, format!("fetch failed: {code:?}\n"));
}

/// The request that a URL stands for; `None` if it is no URL that HTTP can get.
fn aim(url: &str, target: &kit::Target) -> Option<OutgoingRequest> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let method = match target.text("method").as_deref() {
        None | Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("POST") => Method::Post,
        Some("PUT") => Method::Put,
        Some("DELETE") => Method::Delete,
        Some(other) => Method::Other(other.to_owned()),
    };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).ok()?;
    request.set_authority(Some(authority)).ok()?;
    request.set_path_with_query(Some(&path)).ok()?;
    request.set_method(&method).ok()?;
    Some(request)
}

/// Sends what there is to send and relays the answer, whichever can go on. It ends with the answer.
fn exchange(future: FutureIncomingResponse, mut upload: Option<Pipe>, out: ResponseOutparam) {
    let mut out = Some(out);
    let mut download: Option<Pipe> = None;
    loop {
        let mut waits = Vec::new();
        if let Some(pipe) = upload.take() {
            upload = pipe.step(&mut waits);
        }
        if let Some(pipe) = download.take() {
            download = pipe.step(&mut waits);
            if download.is_none() {
                return;
            }
        } else if let Some(answer) = future.get() {
            let out = out.take().expect("the answer comes once");
            match answer.expect("the answer is taken once") {
                Ok(response) => download = Some(relay(response, out)),
                Err(code) => return fail(out, &code),
            }
            continue;
        } else {
            waits.push(future.subscribe());
        }
        let waits: Vec<&Pollable> = waits.iter().collect();
        poll::poll(&waits);
    }
}

/// Answers with the head of `response`; its body is still to be moved.
fn relay(response: IncomingResponse, out: ResponseOutparam) -> Pipe {
    let headers = Fields::new();
    let content_type = response.headers().get("content-type");
    let _ = headers.set("content-type", &content_type);
    let answer = OutgoingResponse::new(headers);
    let _ = answer.set_status_code(response.status());
    let body = answer.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(answer));
    Pipe::new(response.consume().expect("the body is taken once"), body)
}

/// One body on its way. The order of the fields is the order they must be dropped in: a stream
/// before its body.
struct Pipe {
    from: InputStream,
    to: OutputStream,
    source: IncomingBody,
    sink: OutgoingBody,
}

impl Pipe {
    fn new(source: IncomingBody, sink: OutgoingBody) -> Self {
        let from = source.stream().expect("the stream is taken once");
        let to = sink.write().expect("the stream is taken once");
        Self { from, to, source, sink }
    }

    /// Moves what can be moved now and adds what to wait for next. `None` once it is over: a body
    /// that broke off is dropped unfinished, so that it does not look whole.
    fn step(self, waits: &mut Vec<Pollable>) -> Option<Self> {
        let moved = match self.to.check_write() {
            Ok(0) => {
                waits.push(self.to.subscribe());
                return Some(self);
            }
            Ok(room) => self.to.splice(&self.from, room),
            Err(_) => return None,
        };
        match moved {
            Ok(_) => {
                waits.push(self.from.subscribe());
                Some(self)
            }
            Err(StreamError::Closed) => {
                let Self { from, to, source, sink } = self;
                drop((from, to, source));
                let _ = OutgoingBody::finish(sink, None);
                None
            }
            Err(StreamError::LastOperationFailed(_)) => None,
        }
    }
}

wasip2::http::proxy::export!(Fetch);
