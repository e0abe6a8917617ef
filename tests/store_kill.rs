//! What was acknowledged survives `kill -9` at any moment, and nothing is there that nobody wrote.
//!
//! The test runs itself again as a writer that prints each key after its acknowledgement, kills it, opens the store and
//! compares. `NARAE_KILLS` sets the rounds.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use narae_orchestrator::store::{KeyValues, Op, Outcome, RedbStore, Store};

const WRITER: &str = "NARAE_KILL_WRITER";
const WRITERS: u64 = 4;

#[test]
fn nothing_acknowledged_is_lost_over_kills() {
    if let Ok(path) = std::env::var(WRITER) {
        return write_for_ever(Path::new(&path));
    }
    let rounds = std::env::var("NARAE_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let mut acknowledged = BTreeMap::<String, u64>::new();
    let mut total = 0;
    for round in 0..rounds {
        // Some are killed while they open or make the file.
        let lines = if round % 5 == 0 { 0 } else { random.usize(1..120) };
        let delay = Duration::from_micros(random.u64(0..20_000));
        for (key, value) in killed_after("nothing_acknowledged_is_lost_over_kills", &path, lines, delay) {
            total += 1;
            acknowledged.insert(key, value);
        }
        // What was found counts as acknowledged from now on: it was read.
        acknowledged = verify(&path, &acknowledged, round);
    }
    println!("{total} acknowledged writes over {rounds} kills");
    assert!(total > rounds);
}

#[test]
fn what_a_guest_was_told_is_written_is_there_after_a_kill() {
    let service = "hello".parse().unwrap();
    if let Ok(path) = std::env::var(WRITER) {
        let values = KeyValues::open(Path::new(&path)).unwrap();
        let store = values.store(&service, "default", 64 << 20).unwrap();
        loop {
            let n = wait(store.increment("n".into(), 1)).unwrap();
            wait(store.write(vec![(format!("k{n}"), Some(vec![0; 5000]))])).unwrap();
            let mut out = std::io::stdout().lock();
            let _ = write!(out, "\nack n {n} end\n");
            let _ = out.flush();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyvalue.redb");
    let mut known = 0;
    let mut told = std::collections::BTreeSet::new();
    for round in 0..8 {
        let delay = Duration::from_micros(fastrand::u64(0..20_000));
        let test = "what_a_guest_was_told_is_written_is_there_after_a_kill";
        let seen = killed_after(test, &path, fastrand::usize(0..20), delay);
        let acknowledged = seen.last().map_or(known, |(_, n)| *n);
        let values = KeyValues::open(&path).unwrap();
        let store = values.store(&service, "default", 64 << 20).unwrap();
        let text = wait(store.get(vec!["n".into()]))
            .unwrap()
            .pop()
            .flatten()
            .unwrap_or(b"0".to_vec());
        let found = std::str::from_utf8(&text).unwrap().parse().unwrap();
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "round {round}: {found}, not {acknowledged}"
        );
        // A number that was counted when the kill came has no value of its own.
        told.extend(seen.iter().map(|(_, n)| *n));
        for n in &told {
            assert!(wait(store.exists(format!("k{n}"))).unwrap(), "round {round}: k{n}");
        }
        known = found;
    }
    assert!(known > 0);
}

fn wait<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(task)
}

/// What a writer had acknowledged when it was killed, `delay` after its line number `lines`.
fn killed_after(test: &str, path: &Path, lines: usize, delay: Duration) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(WRITER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut seen: Vec<_> = out
        .by_ref()
        .filter(|line| line.starts_with("ack "))
        .take(lines)
        .collect();
    #[expect(clippy::disallowed_methods, reason = "the moment of the kill is to be any moment")]
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    // What it still wrote into the pipe was acknowledged, too. A line that was cut off was not.
    seen.extend(out);
    seen.iter()
        .filter_map(|line| {
            let mut words = line.split(' ').skip_while(|word| *word != "ack").skip(1);
            match (words.next(), words.next(), words.next()) {
                (Some(key), Some(value), Some("end")) => Some((key.to_owned(), value.parse().ok()?)),
                _ => None,
            }
        })
        .collect()
}

fn verify(path: &Path, acknowledged: &BTreeMap<String, u64>, round: usize) -> BTreeMap<String, u64> {
    let store = RedbStore::open(path).unwrap_or_else(|error| panic!("round {round}: {error}"));
    let listing = block_on(store.list("")).unwrap();
    let found: BTreeMap<_, _> = listing
        .items
        .iter()
        .map(|item| {
            (
                item.key.to_string(),
                std::str::from_utf8(&item.value).unwrap().parse::<u64>().unwrap(),
            )
        })
        .collect();
    for (key, value) in acknowledged {
        let found = found.get(key).copied();
        assert!(
            found.is_some_and(|found| found >= *value),
            "round {round}: {key} is {found:?}, {value} was acknowledged"
        );
    }
    for (key, value) in &found {
        // At most one write of each writer is under way when it is killed, so a value is at most one beyond what it said.
        let writer = key.split_once('/').unwrap().1;
        let known = acknowledged.get(&format!("a/{writer}")).copied().unwrap_or(0);
        assert!(
            *value <= known + 1,
            "round {round}: nobody wrote {value} to {key}, {known} was acknowledged"
        );
        // Both keys of a transaction, or none.
        let twin = format!("{}/{writer}", if key.starts_with("a/") { "b" } else { "a" });
        assert_eq!(found.get(&twin), Some(value), "round {round}: half a transaction");
    }
    found
}

/// Four writers, each counting up a pair of keys in one transaction.
fn write_for_ever(path: &Path) {
    let store = Arc::new(RedbStore::open(path).unwrap());
    block_on(async {
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            async move {
                let key = format!("a/{writer}");
                let known = store.get(&key).await.unwrap();
                let mut value = known.map_or(0, |item| std::str::from_utf8(&item.value).unwrap().parse().unwrap());
                loop {
                    value += 1_u64;
                    let ops = ["a", "b"].map(|prefix| Op::put(format!("{prefix}/{writer}"), value.to_string()));
                    let outcome = store.txn(vec![], ops.to_vec()).await.unwrap();
                    assert!(matches!(outcome, Outcome::Committed(_)));
                    let mut out = std::io::stdout().lock();
                    let _ = write!(out, "\nack {key} {value} end\n");
                    let _ = out.flush();
                }
            }
        });
        futures::future::join_all(writers).await
    });
}

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(task)
}
