//! Every way a guest can go wrong, one path each; `/` is well.
//!
//! The module keeps its function names, so that a backtrace can be read.
//!
//! - `/trap`, `/panic`, `/overflow`, `/exit`: the instance dies before it answers.
//! - `/half` dies in the middle of its body (`?length=N` promises N bytes first).
//! - `/noresponse` returns and never answers.
//! - `/status?code=N`, `/head?name=..&value=..`: answers that the host may refuse.
//! - `/log?lines=N&bytes=B`, `/escape`: much output, and output that would paint a terminal.

use core::hint::black_box;
use wasip2::cli::{exit, stderr, stdout};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// ANSI colour, a title change, bell, backspace, carriage return, NUL, DEL, a C1 control, and
/// bytes that are no UTF-8.
const ESCAPES: &[u8] = b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x08 \r over \0 \x7f \xc2\x9b31m \xff\xfe end\n";

struct Crash;

impl Guest for Crash {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        // `std` has no standard error on every target this is built for.
        std::panic::set_hook(Box::new(|info| {
            let _ = kit::write_all(&stderr::get_stderr(), format!("{info}\n").as_bytes());
        }));
        let target = kit::Target::of(&request);
        match target.path.as_str() {
            "/" => kit::respond(out, 200, "ok\n"),
            "/trap" => open_the_box(),
            "/panic" => panic!("panicked on purpose"),
            "/overflow" => {
                kit::respond(out, 200, format!("{}\n", dig_deeper(0)));
            }
            "/exit" => exit::exit(Err(())),
            "/half" => half(out, &target),
            "/noresponse" => drop(out),
            "/status" => status(out, &target),
            "/head" => extra_header(out, &target),
            "/log" => log(out, &target),
            "/escape" => {
                let _ = kit::write_all(&stdout::get_stdout(), ESCAPES);
                kit::respond(out, 200, "escaped\n");
            }
            _ => kit::respond(out, 404, "no such crash\n"),
        }
    }
}

// Three named frames for the backtrace of `/trap`.

#[inline(never)]
fn open_the_box() {
    black_box(lift_the_lid)(1);
    black_box(());
}

#[inline(never)]
fn lift_the_lid(depth: u32) {
    black_box(look_inside)(depth + 1);
    black_box(());
}

#[inline(never)]
fn look_inside(depth: u32) {
    if black_box(depth) > 0 {
        core::arch::wasm32::unreachable();
    }
}

/// Calls itself for ever, and not as the last thing it does, so that it cannot become a loop.
#[inline(never)]
fn dig_deeper(depth: u64) -> u64 {
    if black_box(false) {
        return depth;
    }
    dig_deeper(depth + 1).rotate_left(1) ^ depth
}

fn half(out: ResponseOutparam, target: &kit::Target) {
    let length = target.text("length").unwrap_or_default();
    let mut headers = vec![("content-type", "text/plain")];
    if !length.is_empty() {
        headers.push(("content-length", &length));
    }
    let body = kit::head(out, 200, &headers);
    let stream = body.write().expect("the stream is taken once");
    let _ = kit::write_all(&stream, b"half of");
    let _ = stream.blocking_flush();
    // Long enough for the half to leave the host before the instance dies.
    kit::sleep_ms(50);
    open_the_box();
}

fn status(out: ResponseOutparam, target: &kit::Target) {
    let code = target.number("code").and_then(|n| u16::try_from(n).ok());
    let response = OutgoingResponse::new(Fields::new());
    match code.map(|code| response.set_status_code(code)) {
        Some(Ok(())) => answer(out, response, "status\n"),
        _ => kit::respond(out, 500, "refused: status code\n"),
    }
}

fn extra_header(out: ResponseOutparam, target: &kit::Target) {
    let name = target.text("name").unwrap_or_default();
    let value = target.bytes("value").unwrap_or_default();
    let headers = Fields::new();
    match headers.append(&name, &value) {
        Ok(()) => answer(out, OutgoingResponse::new(headers), "sent\n"),
        Err(why) => kit::respond(out, 500, format!("refused: {why:?}\n")),
    }
}

fn answer(out: ResponseOutparam, response: OutgoingResponse, text: &str) {
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let _ = kit::write(&body, text.as_bytes());
    let _ = OutgoingBody::finish(body, None);
}

fn log(out: ResponseOutparam, target: &kit::Target) {
    let lines = target.number("lines").unwrap_or(1);
    let bytes = target.number("bytes").unwrap_or(80);
    let width = usize::try_from(bytes).unwrap_or(80);
    let stdout = stdout::get_stdout();
    for i in 1..=lines {
        let mut line = format!("line {i} ").into_bytes();
        line.resize(width, b'x');
        line.push(b'\n');
        if kit::write_all(&stdout, &line).is_err() {
            break;
        }
    }
    let _ = stdout.blocking_flush();
    kit::respond(out, 200, format!("logged {lines}\n"));
}

wasip2::http::proxy::export!(Crash);
