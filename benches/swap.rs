//! What clients feel of live swaps: the longest wait and the p99 at 1,000 requests per second, with and without revisions that come
//! and go.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a bench says what failed by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times are small"
)]

mod common;

use std::time::Instant;

use common::node::Node;
use common::{load, median, number, rounds};
use narae_orchestrator::load::{Load, Seen, Shot};
use serde_json::{Value, json};

const FILE: &str = "replicas = 2\n[rollout]\nmin_healthy_time = \"20ms\"";

fn main() {
    let rate = number("NARAE_BENCH_RATE", 1000.0) as u32;
    let swaps = number("NARAE_SWAPS", 20.0) as u32;
    let node = Node::start();
    // Both are compiled before anybody measures.
    node.deploy("app", "version-v2", FILE);
    node.deploy("app", "version-v1", FILE);
    let mut all: [Vec<Seen>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..rounds() {
        let since = Instant::now();
        let swapped = under(&node, rate, |node| {
            for n in 0..swaps {
                node.deploy("app", if n % 2 == 0 { "version-v2" } else { "version-v1" }, FILE);
            }
        });
        let took = since.elapsed();
        // As long, with a client of the same kind that changes nothing: its process costs the same cores.
        let quiet = under(&node, rate, |node| {
            let since = Instant::now();
            while since.elapsed() < took {
                node.ok(&["status", "app"]);
            }
        });
        all[0].push(quiet);
        all[1].push(swapped);
    }
    println!(
        "{:<14}{:>9}{:>7}{:>10}{:>10}{:>12}{:>7}",
        "", "sent", "lost", "p50 ms", "p99 ms", "longest ms", "load"
    );
    let mut lines = Vec::new();
    for (name, seen) in ["no swaps", "swaps"].into_iter().zip(&all) {
        let of = |what: fn(&Seen) -> f64| median(seen.iter().map(what));
        let (p50, p99, longest) = (
            of(|s| s.quantile_ms(0.5)),
            of(|s| s.quantile_ms(0.99)),
            of(Seen::max_ms),
        );
        let (sent, lost) = (
            seen.iter().map(|s| s.sent).sum::<u64>(),
            seen.iter().map(|s| s.lost).sum::<u64>(),
        );
        println!(
            "{name:<14}{sent:>9}{lost:>7}{p50:>10.2}{p99:>10.2}{longest:>12.2}{:>7.1}",
            load()
        );
        lines.push(json!({
            "what": name, "requests_per_second": rate, "swaps_per_round": swaps, "sent": sent, "lost": lost,
            "p50_ms": p50, "p99_ms": p99, "longest_ms": longest, "load_average": load(),
        }));
    }
    common::save("swap", &Value::from(lines));
}

fn under(node: &Node, rate: u32, work: impl FnOnce(&Node)) -> Seen {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let url: http::Uri = format!("http://{}/", node.http).parse().unwrap();
    let shot = Shot {
        host: Some("app.test".into()),
        ..Shot::get(url)
    };
    let load = runtime.block_on(async { Load::start(vec![shot], rate) });
    work(node);
    runtime.block_on(load.finish())
}
