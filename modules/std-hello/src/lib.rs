//! A service written as any Rust program: `println!`, the environment, the clock of `std`.
//!
//! `std` imports much of WASI whether it is used or not. Such a module must deploy with no grant at
//! all: what it was not given, it finds empty.

use std::time::Instant;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

struct StdHello;

impl Guest for StdHello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let begun = Instant::now();
        let target = kit::Target::of(&request);
        println!("std-hello: request for {}", target.path);
        let name = std::env::var("NAME").unwrap_or_else(|_| "narae".to_owned());
        let body = format!("hello from std, {name}\n");
        eprintln!("std-hello: answered in {:?}", begun.elapsed());
        kit::respond(out, 200, body);
    }
}

wasip2::http::proxy::export!(StdHello);
