//! The least a service can be: one answer for every path.
//!
//! It uses no more of the host than it must (no flush, no wait), so it is also the module to
//! measure the host's own overhead with.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

const BODY: &[u8] = b"hello from narae\n";
/// Written out, so that no number is formatted while a request waits.
const LENGTH: &[u8] = b"17";
const _: () = assert!(BODY.len() == 17);

struct Hello;

impl Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let headers = Fields::new();
        let _ = headers.append("content-type", b"text/plain");
        let _ = headers.append("content-length", LENGTH);
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(out, Ok(response));

        let stream = body.write().expect("the stream is taken once");
        // Asking for the permit makes the write legal; a fresh body always has room for one line.
        if stream.check_write().is_ok_and(|room| room >= BODY.len() as u64) {
            let _ = stream.write(BODY);
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

wasip2::http::proxy::export!(Hello);
