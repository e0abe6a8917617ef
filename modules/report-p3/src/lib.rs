//! The `report` command for WASI 0.3: an async `run`, and standard output as a stream it fills.
//!
//! Prints its arguments one per line, `REPORT_NAME` if it is set, and `report done` on standard
//! error. `--fail` ends with a failure, `--ms N` waits N ms first.

use wasip3::cli::types::ErrorCode;
use wasip3::cli::{environment, stderr, stdout};
use wasip3::clocks::monotonic_clock;
use wasip3::exports::cli::run::Guest;
use wasip3::wit_bindgen::{FutureReader, StreamReader};
use wasip3::{spawn_local, wit_stream};

struct Report;

impl Guest for Report {
    async fn run() -> Result<(), ()> {
        let arguments: Vec<String> = environment::get_arguments().into_iter().skip(1).collect();
        if let Some(at) = arguments.iter().position(|a| a == "--ms") {
            let ms: u64 = arguments.get(at + 1).and_then(|n| n.parse().ok()).unwrap_or(1);
            monotonic_clock::wait_for(ms.saturating_mul(1_000_000)).await;
        }
        let mut text: String = arguments.iter().map(|a| format!("{a}\n")).collect();
        let variables = environment::get_environment();
        if let Some((name, value)) = variables.iter().find(|(name, _)| name == "REPORT_NAME") {
            text += &format!("{name}={value}\n");
        }
        print(stdout::write_via_stream, text).await?;
        print(stderr::write_via_stream, "report done\n".to_owned()).await?;
        if arguments.iter().any(|a| a == "--fail") {
            return Err(());
        }
        Ok(())
    }
}

type Sink = fn(StreamReader<u8>) -> FutureReader<Result<(), ErrorCode>>;

async fn print(sink: Sink, text: String) -> Result<(), ()> {
    let (mut writer, reader) = wit_stream::new();
    let done = sink(reader);
    spawn_local(async move {
        writer.write_all(text.into_bytes()).await;
    });
    done.await.map_err(drop)
}

wasip3::cli::command::export!(Report);
