//! What every bench needs: cores, rounds, medians, a table and a JSON file. Knows no server and no protocol.
#![allow(dead_code, reason = "each bench uses its own part of this")]

pub mod client;
#[path = "../../tests/common/mod.rs"]
pub mod node;
pub mod servers;

use std::path::Path;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

/// `NARAE_BENCH_ROUNDS`: how often the candidates take turns.
pub fn rounds() -> usize {
    number("NARAE_BENCH_ROUNDS", 5.0) as usize
}

/// `NARAE_BENCH_SECONDS`: how long one turn lasts.
pub fn turn() -> Duration {
    Duration::from_secs_f64(number("NARAE_BENCH_SECONDS", 2.0))
}

pub fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What was asked for on the command line (`cargo bench --bench NAME -- a b`); nothing: everything.
pub fn wanted(group: &str) -> bool {
    let asked: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    asked.is_empty() || asked.iter().any(|a| a == group)
}

/// Keeps this thread, and what it starts from now on, on one core.
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

/// On every core again.
pub fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU.min(512)).for_each(|core| set.set(core));
    let _ = sched_setaffinity(None, &set);
}

pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Medians of `rounds` turns of each candidate, A B C then C B A, so that what the neighbours do hits all alike.
pub fn alternate<T>(candidates: usize, rounds: usize, mut turn: impl FnMut(usize) -> T) -> Vec<Vec<T>> {
    let mut seen: Vec<Vec<T>> = (0..candidates).map(|_| Vec::new()).collect();
    for round in 0..rounds {
        let forth: Vec<usize> = (0..candidates).collect();
        let back: Vec<usize> = forth.iter().rev().copied().collect();
        for at in if round % 2 == 0 { forth } else { back } {
            seen[at].push(turn(at));
        }
    }
    seen
}

/// Median time of one `step` in microseconds, over `batches` batches of `size`.
pub fn time(batches: usize, size: u32, mut step: impl FnMut()) -> f64 {
    (0..size / 4 + 1).for_each(|_| step());
    median((0..batches).map(|_| {
        let since = std::time::Instant::now();
        (0..size).for_each(|_| step());
        since.elapsed().as_secs_f64() * 1e6 / f64::from(size)
    }))
}

/// Writes `target/bench/NAME.json`.
pub fn save(name: &str, value: &serde_json::Value) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name).with_extension("json");
    std::fs::write(&path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    println!("\nwritten: {}", path.display());
}
