//! Requests per second of narae, of a native hyper server with the same bytes, of the bare runtime and of `wasmtime serve`: in one
//! run, taking turns, as ratios. Groups: `hello close large echo p3 paced cores`.

#![allow(clippy::disallowed_methods, reason = "a bench measures by the clock")]
#![allow(clippy::unwrap_used, reason = "a bench says what failed by panicking")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times are small"
)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::client::{Load, Pace, Seen, request};
use common::node::Node;
use common::servers::{Server, processor, serve_if_asked};
use common::{alternate, load, median, pin, rounds, turn, unpin, wanted};
use serde_json::{Value, json};

/// Fits no machine's patience: an instance that is reused stays.
const REUSED: u32 = 1_000_000;

/// One server in one case.
struct Candidate {
    name: &'static str,
    pid: u32,
    to: SocketAddr,
    request: Arc<[u8]>,
}

/// What a candidate did, as medians.
struct Row {
    name: &'static str,
    per_second: f64,
    processor_us: f64,
    p50_us: f64,
    p99_us: f64,
    errors: u64,
    load: f64,
    spread: f64,
}

fn measure(candidates: &[Candidate], connections: usize, pace: impl Fn(usize) -> Pace) -> Vec<Row> {
    let one = |at: usize, turn| {
        let candidate = &candidates[at];
        let (to, request, pace) = (candidate.to, Arc::clone(&candidate.request), pace(at));
        let before = processor(candidate.pid);
        let seen = Load {
            to,
            request,
            connections,
            pace,
        }
        .run(turn);
        let used = processor(candidate.pid) - before;
        (seen, used, load())
    };
    for at in 0..candidates.len() {
        let _warm = one(at, turn() / 4);
    }
    let seen = alternate(candidates.len(), rounds(), |at| one(at, turn()));
    let of = |at: usize, what: fn(&Seen) -> f64| median(seen[at].iter().map(|(seen, ..)| what(seen)));
    let rows = candidates.iter().enumerate().map(|(at, candidate)| {
        let each: Vec<f64> = seen[at].iter().map(|(seen, ..)| seen.per_second).collect();
        let per_second = median(each.iter().copied());
        let (least, most) = each
            .iter()
            .fold((f64::MAX, 0.0_f64), |(a, b), n| (a.min(*n), b.max(*n)));
        Row {
            name: candidate.name,
            per_second,
            processor_us: median(
                seen[at]
                    .iter()
                    .map(|(seen, used, _)| used * 1e6 / (seen.per_second * turn().as_secs_f64()).max(1.0)),
            ),
            p50_us: of(at, |seen| seen.p50_us),
            p99_us: of(at, |seen| seen.p99_us),
            errors: seen[at].iter().map(|(seen, ..)| seen.errors).sum(),
            load: median(seen[at].iter().map(|(.., load)| *load)),
            spread: (most - least) / per_second,
        }
    });
    rows.collect()
}

/// Ratios are to the first row.
fn report(title: &str, rows: &[Row], all: &mut Vec<Value>) {
    let base = &rows[0];
    println!("\n{title}");
    println!(
        "{:<18}{:>11}{:>8}{:>10}{:>8}{:>9}{:>9}{:>8}{:>8}{:>6}",
        "", "requests/s", "ratio", "cpu us", "ratio", "p50 us", "p99 us", "errors", "spread", "load"
    );
    for row in rows {
        println!(
            "{:<18}{:>11.0}{:>8.2}{:>10.1}{:>8.2}{:>9.0}{:>9.0}{:>8}{:>7.0}%{:>6.1}",
            row.name,
            row.per_second,
            row.per_second / base.per_second,
            row.processor_us,
            base.processor_us / row.processor_us,
            row.p50_us,
            row.p99_us,
            row.errors,
            row.spread * 100.0,
            row.load,
        );
        all.push(json!({
            "case": title, "server": row.name, "requests_per_second": row.per_second, "of": base.name,
            "ratio": row.per_second / base.per_second, "processor_us": row.processor_us,
            "processor_ratio": base.processor_us / row.processor_us, "p50_us": row.p50_us, "p99_us": row.p99_us,
            "errors": row.errors, "spread": row.spread, "load_average": row.load,
        }));
    }
}

/// `wasmtime serve` with this guest, fresh and reused; none where it is not installed.
fn wasmtimes(guest: &str) -> Vec<(&'static str, Server)> {
    let how = [("wasmtime, fresh", None), ("wasmtime, reused", Some(REUSED))];
    how.into_iter()
        .filter_map(|(name, reuse)| Some((name, Server::wasmtime(guest, reuse)?)))
        .collect()
}

/// Everything that serves, on the first core; this thread goes to the second.
struct Field {
    node: Node,
    hyper: Server,
    direct: Vec<(&'static str, Server)>,
    wasmtime: Vec<(&'static str, Server)>,
    wasmtime_p3: Option<Server>,
}

impl Field {
    fn start() -> Self {
        pin(0);
        let node = Node::start();
        // Room for every connection at once: what is measured is the path, not the queue.
        let fresh = "[limits]\nconcurrency = 512\n";
        let reused = format!("{fresh}requests_per_instance = {REUSED}\n");
        for (name, guest, more) in [
            ("hello", "hello", fresh),
            ("hello-reused", "hello", &reused),
            ("version", "version-v1", fresh),
            ("version-reused", "version-v1", &reused),
            ("echo", "echo", fresh),
            ("echo-reused", "echo", &reused),
            ("p3", "hello-p3", fresh),
        ] {
            node.deploy(name, guest, more);
        }
        let direct = [("runtime, fresh", "1"), ("runtime, reused", "1000000")];
        let field = Self {
            node,
            hyper: Server::own("hyper", "-"),
            direct: direct.map(|(name, uses)| (name, Server::own("direct", uses))).into(),
            wasmtime: wasmtimes("hello"),
            wasmtime_p3: Server::wasmtime("hello-p3", None),
        };
        pin(1);
        field
    }

    fn narae(&self, name: &'static str, service: &str, path: &str, close: bool, body: usize) -> Candidate {
        Candidate {
            name,
            pid: self.node.pid(),
            to: self.node.http,
            request: request(&format!("{service}.test"), path, close, body),
        }
    }

    fn other(name: &'static str, server: &Server, path: &str, close: bool, body: usize) -> Candidate {
        Candidate {
            name,
            pid: server.pid(),
            to: server.at,
            request: request("hello.test", path, close, body),
        }
    }

    fn hello(&self, close: bool) -> Vec<Candidate> {
        let mut all = vec![
            Self::other("native hyper", &self.hyper, "/", close, 0),
            self.narae("narae, fresh", "hello", "/", close, 0),
            self.narae("narae, reused", "hello-reused", "/", close, 0),
        ];
        let others = self.direct.iter().chain(&self.wasmtime);
        all.extend(others.map(|(name, server)| Self::other(name, server, "/", close, 0)));
        all
    }
}

fn main() {
    serve_if_asked();
    let mut all = Vec::new();
    let single = ["hello", "close", "large", "echo", "p3", "paced"];
    if single.iter().any(|group| wanted(group)) {
        one_core(&Field::start(), &mut all);
    }
    if wanted("cores") {
        two_cores(&mut all);
    }
    common::save("http", &json!(all));
}

fn one_core(field: &Field, all: &mut Vec<Value>) {
    let keep = |_| Pace::KeepAlive;
    if wanted("hello") {
        for connections in [64, 1, 16, 256] {
            let rows = measure(&field.hello(false), connections, keep);
            report(&format!("hello, {connections} keep-alive connections"), &rows, all);
        }
    }
    if wanted("close") {
        let rows = measure(&field.hello(true), 16, |_| Pace::Close);
        report("hello, a new connection for each request, 16 at once", &rows, all);
    }
    for (group, title, path, body, service, guest) in [
        (
            "large",
            "answer of 64 KiB, 16 connections",
            "/?size=65536",
            0,
            ["version", "version-reused"],
            "version-v1",
        ),
        (
            "echo",
            "echo of 1 MiB, 4 connections",
            "/",
            1 << 20,
            ["echo", "echo-reused"],
            "echo",
        ),
    ] {
        if wanted(group) {
            pin(0);
            let wasmtime = wasmtimes(guest);
            pin(1);
            let mut candidates = vec![
                Field::other("native hyper", &field.hyper, path, false, body),
                field.narae("narae, fresh", service[0], path, false, body),
                field.narae("narae, reused", service[1], path, false, body),
            ];
            candidates.extend(
                wasmtime
                    .iter()
                    .map(|(name, server)| Field::other(name, server, path, false, body)),
            );
            let rows = measure(&candidates, if body > 0 { 4 } else { 16 }, keep);
            report(title, &rows, all);
        }
    }
    if wanted("p3") {
        let mut candidates = vec![field.narae("narae 0.3", "p3", "/", false, 0)];
        if let Some(server) = &field.wasmtime_p3 {
            candidates.insert(0, Field::other("wasmtime 0.3", server, "/", false, 0));
        }
        report(
            "hello of WASI 0.3, 64 connections",
            &measure(&candidates, 64, keep),
            all,
        );
    }
    if wanted("paced") {
        for (title, service) in [("fresh", "hello"), ("reused", "hello-reused")] {
            let candidates = [
                Field::other("native hyper", &field.hyper, "/", false, 0),
                field.narae("narae", service, "/", false, 0),
            ];
            let most = measure(&candidates[1..], 64, keep)[0].per_second;
            let rows = measure(&candidates, 64, |_| Pace::Rate(most / 2.0));
            let title = format!(
                "hello, {title}, both at half of narae's most ({:.0}/s), 64 connections",
                most / 2.0
            );
            report(&title, &rows, all);
        }
    }
}

/// A guest that grows its heap, fresh for each request: one data thread against one per core, the client on the same cores.
fn two_cores(all: &mut Vec<Value>) {
    pin(0);
    let one = Node::start();
    one.deploy("greedy", "greedy", "");
    unpin();
    let two = Node::start();
    two.deploy("greedy", "greedy", "");
    let of = |name, node: &Node| Candidate {
        name,
        pid: node.pid(),
        to: node.http,
        request: request("greedy.test", "/once", false, 0),
    };
    let rows = measure(&[of("one core", &one), of("two cores", &two)], 64, |_| Pace::KeepAlive);
    report(
        "a heap that grows, fresh, 64 connections, client on the same two cores",
        &rows,
        all,
    );
}
