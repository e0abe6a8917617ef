//! Waiting without burning: `/?ms=N` answers after N ms (1000 unless told), `/stream?n=N&ms=M`
//! sends its head at once and then N lines, M ms apart.
//!
//! All waits are one host call, so a thousand sleeping instances cost no processor.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, OutgoingBody, ResponseOutparam};

struct Slow;

impl Guest for Slow {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        let ms = target.number("ms").unwrap_or(1000);
        if target.path == "/stream" {
            return stream(out, target.number("n").unwrap_or(10), ms);
        }
        kit::sleep_ms(ms);
        kit::respond(out, 200, format!("slept {ms} ms\n"));
    }
}

fn stream(out: ResponseOutparam, lines: u64, ms: u64) {
    let body = kit::head(out, 200, &[("content-type", "text/plain")]);
    let stream = body.write().expect("the stream is taken once");
    for i in 1..=lines {
        kit::sleep_ms(ms);
        // The reader left: stop, and leave the body unfinished.
        if kit::write_all(&stream, format!("tick {i}\n").as_bytes()).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

wasip2::http::proxy::export!(Slow);
