//! A job that gets there in the end: it fails a few times, and remembers in the key-value store how often it has been tried.
//!
//! `flaky FAILURES [MS]` prints `try N` and fails while N is at most FAILURES; before that it waits MS milliseconds.

mod bindings {
    wit_bindgen::generate!({ world: "flaky", path: "wit", generate_all });
}

use std::process::ExitCode;
use std::time::Duration;

use bindings::wasi::keyvalue::{atomics, store};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap_or(0));
    let failures = arguments.next().unwrap_or(0);
    let wait = arguments.next().unwrap_or(0);
    let bucket = match store::open("") {
        Ok(bucket) => bucket,
        Err(why) => {
            eprintln!("no key-value store: {why:?}");
            return ExitCode::from(2);
        }
    };
    let tried = match atomics::increment(&bucket, "tries", 1) {
        Ok(tried) => tried,
        Err(why) => {
            eprintln!("cannot count: {why:?}");
            return ExitCode::from(2);
        }
    };
    println!("try {tried}");
    std::thread::sleep(Duration::from_millis(wait));
    if tried <= failures {
        eprintln!("not yet");
        return ExitCode::FAILURE;
    }
    println!("done");
    ExitCode::SUCCESS
}
