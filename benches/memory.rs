//! What a node costs while nobody asks: its memory alone and with 1,000 idle services, and its time from start to first answer with
//! 50 services whose code is cached.

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
use serde_json::{Value, json};

const MIB: f64 = 1048576.0;

fn main() {
    let mut lines = Vec::new();
    let mut say = |name: &str, value: f64, unit: &str| {
        println!("{name:<52}{value:>10.1} {unit}   load {:.1}", load());
        lines.push(json!({"what": name, "value": value, "unit": unit, "load_average": load()}));
    };

    let idle: Vec<_> = (0..rounds())
        .map(|_| Node::start())
        .map(|node| node.resident() as f64 / MIB)
        .collect();
    say("idle daemon, resident", median(idle), "MiB");

    let services = number("NARAE_BENCH_SERVICES", 1000.0) as usize;
    let node = Node::start();
    let before = node.resident() as f64 / MIB;
    let since = Instant::now();
    deploy(&node, services);
    say(
        &format!("{services} services deployed in"),
        since.elapsed().as_secs_f64(),
        "s",
    );
    let after = node.resident() as f64 / MIB;
    say(&format!("daemon with {services} idle services, resident"), after, "MiB");
    say("one idle service", (after - before) * 1024.0 / services as f64, "KiB");
    drop(node);

    start(&mut say);
    common::save("memory", &Value::from(lines));
}

/// The module is uploaded once; the other services are made through the API, and nobody waits for each by itself.
fn deploy(node: &Node, services: usize) {
    node.deploy("s0", "hello", "");
    let modules = node.json(&["module", "list", "-o", "json"]);
    let digest = modules["items"][0]["digest"]
        .as_str()
        .expect("a module was uploaded")
        .to_owned();
    for n in 1..services {
        let name = format!("s{n}");
        let toml = format!("name = \"{name}\"\nmodule = \"hello.wasm\"\n[[route]]\nhost = \"{name}.test\"\n");
        let body = json!({"toml": toml, "digest": digest}).to_string();
        let answer = node
            .api("PUT", &format!("/v1/services/{name}"), body.as_bytes())
            .expect("an answer");
        assert!((200..300).contains(&answer.status), "{}", answer.text());
    }
    let last = format!("/s{}", services - 1);
    node.until("every service serves", |node| {
        node.get(&last).status == 200
            && (0..services)
                .step_by(7)
                .all(|n| node.get(&format!("/s{n}")).status == 200)
    });
}

/// The same data again and again: nothing is compiled.
fn start(say: &mut impl FnMut(&str, f64, &str)) {
    let mut node = Node::start();
    let guests = ["hello", "version-v1", "version-v2", "echo", "greedy"];
    let few: Vec<_> = (0..50).map(|n| (format!("s{n}"), guests[n % guests.len()])).collect();
    for (name, guest) in &few {
        node.deploy(name, guest, "");
    }
    node.deploy("first", "hello", "");
    let mut took = Vec::new();
    for _ in 0..rounds() {
        let (_, dir) = node.terminate();
        let since = Instant::now();
        node = Node::again(dir, &[]);
        assert_eq!(node.get("/first/").status, 200);
        took.push(since.elapsed().as_secs_f64() * 1e3);
    }
    say("start to first answer, 50 services, code cached", median(took), "ms");
}
