//! What a service may be given: configuration, a key-value store, an environment, arguments.
//!
//! - `/config` all values as `k=v` lines, `/config/KEY` one of them.
//! - `/kv/KEY` GET, PUT (the body is the value), DELETE; `/incr/KEY` adds one and answers the sum.
//! - `/env/NAME` an environment variable, `/args` the arguments, one per line.
//!
//! What is not there is a 404; what the host refuses is a 502 with its reason.

mod bindings {
    wit_bindgen::generate!({ world: "config", path: "wit", generate_all });
}

use bindings::wasi::config::store as config;
use bindings::wasi::keyvalue::{atomics, store};
use wasip2::cli::environment;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

/// The bucket that every host knows; `?bucket=NAME` asks for another.
const BUCKET: &str = "";

type Answer = Result<Option<Vec<u8>>, String>;

struct Config;

impl Guest for Config {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match answer(&request) {
            Ok(Some(body)) => kit::respond(out, 200, body),
            Ok(None) => kit::respond(out, 404, "not found\n"),
            Err(why) => kit::respond(out, 502, format!("refused: {why}\n")),
        }
    }
}

fn answer(request: &IncomingRequest) -> Answer {
    let target = kit::Target::of(request);
    let path = target.path.strip_prefix('/').unwrap_or(&target.path);
    let (area, key) = path.split_once('/').unwrap_or((path, ""));
    let key = String::from_utf8_lossy(&kit::percent_decode(key)).into_owned();
    let bucket = || {
        let name = target.text("bucket").unwrap_or_else(|| BUCKET.to_owned());
        store::open(&name).map_err(debug)
    };
    match area {
        "config" if key.is_empty() => {
            let all = config::get_all().map_err(debug)?;
            Ok(Some(lines(all.iter().map(|(key, value)| format!("{key}={value}")))))
        }
        "config" => Ok(config::get(&key).map_err(debug)?.map(line)),
        "kv" => key_value(request, &bucket()?, &key),
        "incr" => {
            let sum = atomics::increment(&bucket()?, &key, 1).map_err(debug)?;
            Ok(Some(line(sum.to_string())))
        }
        "env" => {
            let all = environment::get_environment();
            Ok(all
                .into_iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| line(value)))
        }
        "args" => Ok(Some(lines(environment::get_arguments().into_iter()))),
        _ => Ok(None),
    }
}

fn key_value(request: &IncomingRequest, bucket: &store::Bucket, key: &str) -> Answer {
    match request.method() {
        Method::Get => Ok(bucket.get(key).map_err(debug)?.map(|mut value| {
            value.push(b'\n');
            value
        })),
        Method::Put | Method::Post => {
            let mut value = Vec::new();
            kit::for_each_chunk(request, |chunk| value.extend_from_slice(chunk));
            bucket.set(key, &value).map_err(debug)?;
            Ok(Some(line("stored".to_owned())))
        }
        Method::Delete => {
            bucket.delete(key).map_err(debug)?;
            Ok(Some(line("deleted".to_owned())))
        }
        _ => Ok(None),
    }
}

fn line(text: String) -> Vec<u8> {
    (text + "\n").into_bytes()
}

fn lines(all: impl Iterator<Item = String>) -> Vec<u8> {
    all.flat_map(line).collect()
}

fn debug(error: impl core::fmt::Debug) -> String {
    format!("{error:?}")
}

wasip2::http::proxy::export!(Config);
