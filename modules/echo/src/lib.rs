//! Streaming in both directions at once: the request body comes back as it arrives.
//!
//! The answer begins before the request ends. Nothing is collected: a client that does not read
//! stops its own upload. Trailers come back too.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam, Trailers,
};

struct Echo;

impl Guest for Echo {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let headers = Fields::new();
        // HTTP/1.1 sends trailers only if the head has announced them.
        for name in ["content-type", "trailer"] {
            let values = request.headers().get(name);
            // A value that came in as a header may go out as one.
            let _ = headers.set(name, &values);
        }
        let response = OutgoingResponse::new(headers);
        let outgoing = response.body().expect("the body is taken once");
        ResponseOutparam::set(out, Ok(response));

        let incoming = request.consume().expect("the body is taken once");
        let from = incoming.stream().expect("the stream is taken once");
        let to = outgoing.write().expect("the stream is taken once");
        let moved = kit::pump(&from, &to);
        drop((from, to));
        // A request that broke off must not look like a whole answer: no `finish` then.
        if moved.is_ok() {
            let _ = OutgoingBody::finish(outgoing, trailers(incoming));
        }
    }
}

fn trailers(body: IncomingBody) -> Option<Trailers> {
    let future = IncomingBody::finish(body);
    future.subscribe().block();
    let received = future.get()?.ok()?.ok()??;
    // Received fields are immutable and belong to the request; the answer gets its own.
    Some(received.clone())
}

wasip2::http::proxy::export!(Echo);
