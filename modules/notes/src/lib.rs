//! State that several writers change at once, with the draft that Spin's guests use, and a log line for each change.
//!
//! - `/append/KEY` adds the body and a newline to a value by compare-and-swap, trying again as long as others are faster.
//! - `/add/KEY?by=N` adds N, which may be negative, and answers the sum.
//! - `/many?keys=A,B` GET answers `KEY=VALUE` lines of those that are there, PUT gives all of them the body, DELETE removes them.
//! - `/keys` every key, over all pages, one per line.
//!
//! `?bucket=NAME` opens another store. What the host refuses is a 502 with its reason.

mod bindings {
    wit_bindgen::generate!({ world: "notes", path: "wit", generate_all });
}

use bindings::wasi::keyvalue::{atomics, batch, store};
use bindings::wasi::logging::logging::{Level, log};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, Method, ResponseOutparam};

struct Notes;

impl Guest for Notes {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match answer(&request) {
            Ok(Some(body)) => kit::respond(out, 200, body),
            Ok(None) => kit::respond(out, 404, "not found\n"),
            Err(why) => {
                log(Level::Error, "notes", &why);
                kit::respond(out, 502, format!("refused: {why}\n"));
            }
        }
    }
}

fn answer(request: &IncomingRequest) -> Result<Option<String>, String> {
    let target = kit::Target::of(request);
    let path = target.path.strip_prefix('/').unwrap_or(&target.path);
    let (area, key) = path.split_once('/').unwrap_or((path, ""));
    let bucket = store::open(&target.text("bucket").unwrap_or_default()).map_err(debug)?;
    match area {
        "append" => append(&bucket, key, &body(request)).map(Some),
        "add" => {
            let by = target.text("by").and_then(|by| by.parse().ok()).unwrap_or(1);
            let sum = atomics::increment(&bucket, key, by).map_err(debug)?;
            Ok(Some(format!("{sum}\n")))
        }
        "many" => {
            let keys = target.text("keys").unwrap_or_default();
            let keys: Vec<String> = keys.split(',').map(str::to_owned).collect();
            many(request, &bucket, &keys).map(Some)
        }
        "keys" => every_key(&bucket).map(Some),
        _ => Ok(None),
    }
}

fn append(bucket: &store::Bucket, key: &str, more: &[u8]) -> Result<String, String> {
    let mut cas = atomics::Cas::new(bucket, key).map_err(debug)?;
    let mut tries = 1;
    loop {
        let mut value = cas.current().map_err(debug)?.unwrap_or_default();
        value.extend_from_slice(more);
        value.push(b'\n');
        match atomics::swap(cas, &value) {
            Ok(()) => break,
            Err(atomics::CasError::CasFailed(newer)) => cas = newer,
            Err(atomics::CasError::StoreError(error)) => return Err(debug(error)),
        }
        tries += 1;
    }
    log(Level::Debug, "notes", &format!("{key} took {tries}"));
    Ok(format!("{tries}\n"))
}

fn many(request: &IncomingRequest, bucket: &store::Bucket, keys: &[String]) -> Result<String, String> {
    match request.method() {
        Method::Put | Method::Post => {
            let body = body(request);
            let pairs: Vec<_> = keys.iter().map(|key| (key.clone(), body.clone())).collect();
            batch::set_many(bucket, &pairs).map_err(debug)?;
            log(Level::Info, "notes", &format!("{} set", pairs.len()));
            Ok(format!("{}\n", pairs.len()))
        }
        Method::Delete => {
            batch::delete_many(bucket, keys).map_err(debug)?;
            log(Level::Warn, "notes", &format!("{} deleted", keys.len()));
            Ok(format!("{}\n", keys.len()))
        }
        _ => {
            let found = batch::get_many(bucket, keys).map_err(debug)?;
            let there = found.into_iter().filter_map(|(key, value)| Some((key, value?)));
            Ok(there
                .map(|(key, value)| format!("{key}={}\n", String::from_utf8_lossy(&value)))
                .collect())
        }
    }
}

fn every_key(bucket: &store::Bucket) -> Result<String, String> {
    let mut all = String::new();
    let mut cursor = None;
    loop {
        let page = bucket.list_keys(cursor.as_deref()).map_err(debug)?;
        for key in page.keys {
            all.push_str(&key);
            all.push('\n');
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

fn body(request: &IncomingRequest) -> Vec<u8> {
    let mut body = Vec::new();
    kit::for_each_chunk(request, |chunk| body.extend_from_slice(chunk));
    body
}

fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

wasip2::http::proxy::export!(Notes);
