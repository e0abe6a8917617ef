//! Against a real `redis-server` that the test starts and ends itself. Where there is none, the tests say so and pass.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use narae_runtime::wasm::host::keyvalue::MemoryKeyValue;

use super::*;

const QUOTA: u64 = 64 << 10;

/// A server on a port of its own.
struct Redis {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    /// `None`, loudly, where the program is missing.
    fn start(more: &[&str]) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let dir = tempfile::tempdir().unwrap();
        let child = run(port, dir.path(), more);
        if child.is_none() {
            eprintln!(
                "SKIPPED: no `redis-server` on this machine; the Redis backend was NOT tested (apt-get install redis-server)"
            );
        }
        Some(Self {
            child: child?,
            port,
            dir,
        })
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn store(&self, name: &str, quota: u64) -> Arc<dyn KeyValue> {
        let service = "hello".parse().unwrap();
        RedisServers::default()
            .store(&self.url(), None, &service, name, quota)
            .unwrap()
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(port: u16, dir: &std::path::Path, more: &[&str]) -> Option<Child> {
    let port = port.to_string();
    Command::new("redis-server")
        .args([
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
        ])
        .args(["--appendfsync", "always", "--dir"])
        .arg(dir)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the server answers.
async fn answering(store: &Arc<dyn KeyValue>) {
    let up = async {
        while store.exists("x".into()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), up).await.unwrap();
}

fn one(key: &str, value: &[u8]) -> Vec<Write> {
    vec![(key.to_owned(), Some(value.to_vec()))]
}

#[tokio::test]
async fn a_store_on_redis_answers_as_one_in_memory() {
    let Some(redis) = Redis::start(&[]) else { return };
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..8 {
        let quota = 1200;
        let store = redis.store(&format!("round-{round}"), quota);
        answering(&store).await;
        let model = MemoryKeyValue::new(quota);
        for step in 0..150 {
            let key = format!("k{}", random.u8(0..12));
            let value = random.u16(0..300).to_string().repeat(random.usize(0..7)).into_bytes();
            let at = format!("seed {seed}, round {round}, step {step}");
            match random.u8(0..6) {
                0..3 => {
                    let writes: Vec<Write> = (0..random.usize(1..6))
                        .map(|_| {
                            let there = random.u8(0..3) > 0;
                            (format!("k{}", random.u8(0..12)), there.then(|| value.clone()))
                        })
                        .collect();
                    assert_eq!(store.write(writes.clone()).await, model.write(writes).await, "{at}");
                }
                3 => {
                    let by = random.i64(-500..500);
                    assert_eq!(
                        store.increment(key.clone(), by).await,
                        model.increment(key.clone(), by).await,
                        "{at}"
                    );
                }
                4 => {
                    let expected = match random.u8(0..3) {
                        0 => None,
                        1 => Some(value.clone()),
                        _ => model.get(vec![key.clone()]).await.unwrap().pop().flatten(),
                    };
                    let swapped = store.swap(key.clone(), expected.clone(), value.clone()).await;
                    assert_eq!(swapped, model.swap(key, expected, value).await, "{at}");
                }
                _ => assert_eq!(store.keys(None).await, model.keys(None).await, "{at}"),
            }
            let all: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
            assert_eq!(store.get(all.clone()).await, model.get(all).await, "{at}");
        }
    }
}

#[tokio::test]
async fn numbers_are_whole_64_bits_and_nothing_else() {
    let Some(redis) = Redis::start(&[]) else { return };
    let store = redis.store("default", QUOTA);
    answering(&store).await;
    assert_eq!(store.increment("n".into(), i64::MAX - 1).await, Ok(i64::MAX - 1));
    assert_eq!(store.increment("n".into(), 1).await, Ok(i64::MAX));
    assert_eq!(store.increment("n".into(), 1).await, Err(KeyValueError::NotANumber));
    store.write(one("t", b"seven")).await.unwrap();
    assert_eq!(store.increment("t".into(), 1).await, Err(KeyValueError::NotANumber));
    assert_eq!(store.increment("m".into(), i64::MIN).await, Ok(i64::MIN));
}

#[tokio::test]
async fn keys_come_in_order_over_their_pages_and_stores_do_not_see_each_other() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (store, other) = (redis.store("a", 10 << 20), redis.store("b", QUOTA));
    answering(&store).await;
    let mut expected: Vec<String> = (0..2500).map(|n| format!("k{n} {{}} é")).collect();
    store
        .write(expected.iter().map(|k| (k.clone(), Some(vec![0; 10]))).collect())
        .await
        .unwrap();
    expected.sort_unstable();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (keys, next) = store.keys(after).await.unwrap();
        assert!(keys.len() <= KEYS_PER_PAGE);
        found.extend(keys);
        after = next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
    assert_eq!(other.keys(None).await, Ok((vec![], None)));
    store
        .write(expected.into_iter().map(|k| (k, None)).collect())
        .await
        .unwrap();
    assert_eq!(store.keys(None).await, Ok((vec![], None)));
}

#[tokio::test]
async fn a_batch_over_its_bytes_is_refused_before_it_is_brought_here() {
    let Some(redis) = Redis::start(&[]) else { return };
    let store = redis.store("default", 64 << 20);
    answering(&store).await;
    let keys: Vec<String> = (0..9).map(|n| format!("k{n}")).collect();
    for key in &keys {
        store.write(one(key, &vec![7; 1 << 20])).await.unwrap();
    }
    assert_eq!(store.get(keys.clone()).await, Err(KeyValueError::TooMany));
    assert_eq!(store.get(keys[..8].to_vec()).await.unwrap().len(), 8);
}

#[tokio::test]
async fn the_quota_holds_and_no_swap_is_lost_whoever_writes_at_once() {
    let Some(redis) = Redis::start(&[]) else { return };
    let quota = 20_000;
    let first = redis.store("default", quota);
    answering(&first).await;
    let tasks: Vec<_> = (0..6_u64)
        .map(|task| {
            // Each with a connection of its own, as other nodes have.
            let store = redis.store("default", quota);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(task);
                for _ in 0..40 {
                    let key = format!("k{}", random.u8(0..24));
                    let done = store.write(one(&key, &vec![0; random.usize(0..1500)])).await;
                    assert!(matches!(done, Ok(()) | Err(KeyValueError::Full { .. })), "{done:?}");
                    loop {
                        let now = store.get(vec!["count".into()]).await.unwrap().pop().flatten();
                        let n: u32 = now
                            .as_ref()
                            .map_or(0, |now| std::str::from_utf8(now).unwrap().parse().unwrap());
                        match store.swap("count".into(), now, (n + 1).to_string().into_bytes()).await {
                            Ok(true) => break,
                            Ok(false) => {}
                            Err(KeyValueError::Full { .. }) => {
                                store
                                    .write(vec![(key.clone(), None), (format!("k{}", random.u8(0..24)), None)])
                                    .await
                                    .unwrap();
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(first.get(vec!["count".into()]).await.unwrap(), [Some(b"240".to_vec())]);
    let (keys, _) = first.keys(None).await.unwrap();
    let values = first.get(keys.clone()).await.unwrap();
    let size: u64 = keys
        .iter()
        .zip(&values)
        .map(|(key, value)| narae_runtime::keyvalue::cost(key, value.as_deref().unwrap()))
        .sum();
    assert!(size <= quota, "{size}");
}

#[tokio::test]
async fn a_dead_server_costs_a_deadline_and_comes_back_by_itself() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let store = redis.store("default", QUOTA);
    answering(&store).await;
    store.write(one("k", b"v")).await.unwrap();
    redis.stop();
    let failing = async {
        for _ in 0..5 {
            let error = store.get(vec!["k".into()]).await.unwrap_err();
            assert!(matches!(error, KeyValueError::Unreachable(_)), "{error}");
        }
    };
    tokio::time::timeout(CALL * 5, failing).await.unwrap();
    redis.child = run(redis.port, redis.dir.path(), &[]).unwrap();
    answering(&store).await;
    assert_eq!(store.get(vec!["k".into()]).await.unwrap(), [Some(b"v".to_vec())]);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_costs_the_deadline_of_a_call() {
    // The backlog of the kernel accepts; nobody reads.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    let service = "hello".parse().unwrap();
    let store = RedisServers::default()
        .store(&url, None, &service, "default", QUOTA)
        .unwrap();
    let asked = tokio::time::timeout(CALL * 2, store.get(vec!["k".into()])).await;
    assert!(matches!(asked, Ok(Err(KeyValueError::Unreachable(_)))), "{asked:?}");
}

#[tokio::test]
async fn a_password_is_given_to_the_server_and_told_to_nobody() {
    let Some(redis) = Redis::start(&["--requirepass", "hunter2"]) else {
        return;
    };
    let service: ServiceName = "hello".parse().unwrap();
    let servers = RedisServers::default();
    let right = servers
        .store(&redis.url(), Some("hunter2"), &service, "default", QUOTA)
        .unwrap();
    answering(&right).await;
    for password in [None, Some("hunter3")] {
        let wrong = servers
            .store(&redis.url(), password, &service, "default", QUOTA)
            .unwrap();
        let error = wrong.get(vec!["k".into()]).await.unwrap_err().to_string();
        assert!(!error.contains("hunter"), "{error}");
    }
    right.write(one("k", b"v")).await.unwrap();
}

#[test]
fn waits_between_connections_grow_to_a_bound_and_differ() {
    assert_eq!(back_off(0, 1.0), BACK_OFF);
    assert_eq!(back_off(0, 0.0), BACK_OFF / 2);
    assert_eq!(back_off(40, 1.0), MAX_BACK_OFF);
    assert!(back_off(3, 0.5) > back_off(2, 0.5));
}
