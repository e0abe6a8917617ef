//! What every engine must do, run over each of them. An engine that passes can stand behind the same controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::{
    Guard, Item, KEPT_CHANGES, MAX_KEY_BYTES, MAX_OPS, MAX_TXN_BYTES, MemoryStore, Op, Outcome, RedbStore, Store,
    StoreError, Watch, WatchEvent,
};

type Shared = Arc<dyn Store>;

/// Runs each rule over a fresh store of each engine.
macro_rules! rules {
    ($($rule:ident),* $(,)?) => {
        mod memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                super::$rule(Arc::new(MemoryStore::new())).await;
            })*
        }
        mod redb {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let dir = tempfile::tempdir().unwrap();
                super::$rule(Arc::new(RedbStore::open(&dir.path().join("store.redb")).unwrap())).await;
            })*
        }
    };
}

rules! {
    of_16_writers_that_race_for_a_key_one_wins_each_round,
    a_transaction_happens_as_a_whole_or_not_at_all,
    a_key_that_was_made_again_is_another_key,
    what_changes_nothing_uses_up_no_revision,
    transactions_over_a_limit_are_refused_and_change_nothing,
    a_list_is_sorted_and_stays_within_its_prefix,
    a_watch_sees_every_change_once_in_order_under_load,
    a_watch_resumes_after_the_revision_it_saw_last,
    a_watch_whose_place_is_gone_says_so_and_ends,
    a_watch_ends_when_the_store_is_closed,
    a_random_history_is_the_one_of_the_model,
}

async fn put(store: &Shared, key: &str, value: &str) -> u64 {
    committed(store.txn(vec![], vec![Op::put(key, value.to_owned())]).await)
}

fn committed(outcome: Result<Outcome, StoreError>) -> u64 {
    match outcome {
        Ok(Outcome::Committed(revision)) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

fn refused(outcome: Result<Outcome, StoreError>) -> bool {
    matches!(outcome, Ok(Outcome::Refused { .. }))
}

async fn next(watch: &mut Watch) -> Option<WatchEvent> {
    tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .expect("the watch says something in time")
}

async fn of_16_writers_that_race_for_a_key_one_wins_each_round(store: Shared) {
    const ROUNDS: u64 = 20;
    let writers = (0..16).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut wins = 0;
            for round in 0..ROUNDS {
                loop {
                    let (guard, count) = match store.get("counter").await.unwrap() {
                        None => (Guard::absent("counter"), 0),
                        Some(item) => {
                            let count = std::str::from_utf8(&item.value).unwrap().parse::<u64>().unwrap();
                            (Guard::modified("counter", item.modified), count)
                        }
                    };
                    let op = Op::put("counter", (count + 1).to_string());
                    if !refused(store.txn(vec![guard], vec![op]).await) {
                        wins += 1;
                        break;
                    }
                }
                assert_eq!(wins, round + 1);
            }
            wins
        })
    });
    let wins: u64 = futures::future::join_all(writers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .sum();
    let item = store.get("counter").await.unwrap().unwrap();
    assert_eq!(item.value, Bytes::from(wins.to_string()), "an update was lost");
    assert_eq!(item.modified, 16 * ROUNDS);
    assert_eq!(item.created, 1);
}

async fn a_transaction_happens_as_a_whole_or_not_at_all(store: Shared) {
    let first = put(&store, "a", "1").await;
    let guards = vec![Guard::modified("a", first), Guard::absent("a")];
    assert!(refused(
        store.txn(guards, vec![Op::put("b", "2"), Op::delete("a")]).await
    ));
    assert_eq!(store.list("").await.unwrap().items.len(), 1);
    assert_eq!(store.list("").await.unwrap().revision, first);
    let ops = vec![Op::put("b", "2"), Op::put("c", "3"), Op::delete("a")];
    let second = committed(store.txn(vec![Guard::modified("a", first)], ops).await);
    let listing = store.list("").await.unwrap();
    assert_eq!(
        listing.items.iter().map(|i| (&*i.key, i.created)).collect::<Vec<_>>(),
        [("b", second), ("c", second)]
    );
    // The changes of one transaction come together.
    let mut watch = store.watch("", first);
    let mut seen = 0;
    while !matches!(next(&mut watch).await, Some(WatchEvent::Progress { revision }) if revision == second) {
        seen += 1;
    }
    assert_eq!(seen, 3);
}

async fn a_key_that_was_made_again_is_another_key(store: Shared) {
    let made = put(&store, "a", "1").await;
    let written = put(&store, "a", "2").await;
    assert!(!refused(
        store
            .txn(vec![Guard::created("a", made)], vec![Op::put("a", "3")])
            .await
    ));
    assert!(refused(
        store
            .txn(vec![Guard::modified("a", written)], vec![Op::put("a", "4")])
            .await
    ));
    committed(store.txn(vec![], vec![Op::delete("a")]).await);
    assert!(
        refused(
            store
                .txn(vec![Guard::created("a", made)], vec![Op::put("b", "1")])
                .await
        ),
        "it is gone"
    );
    let again = put(&store, "a", "1").await;
    assert!(
        refused(
            store
                .txn(vec![Guard::created("a", made)], vec![Op::put("b", "1")])
                .await
        ),
        "it is another"
    );
    assert!(!refused(
        store
            .txn(vec![Guard::created("a", again)], vec![Op::put("b", "1")])
            .await
    ));
}

async fn what_changes_nothing_uses_up_no_revision(store: Shared) {
    let first = put(&store, "a", "1").await;
    assert_eq!(committed(store.txn(vec![], vec![Op::delete("never")]).await), first);
    assert_eq!(committed(store.txn(vec![Guard::absent("never")], vec![]).await), first);
    assert_eq!(put(&store, "a", "1").await, first + 1, "the same value is a change");
}

async fn transactions_over_a_limit_are_refused_and_change_nothing(store: Shared) {
    let ops = (0..=MAX_OPS).map(|n| Op::put(n.to_string(), "x")).collect();
    assert!(matches!(
        store.txn(vec![], ops).await,
        Err(StoreError::TooLarge { what: "operations", .. })
    ));
    let guards = (0..=MAX_OPS).map(|n| Guard::absent(n.to_string())).collect();
    assert!(matches!(
        store.txn(guards, vec![]).await,
        Err(StoreError::TooLarge { what: "guards", .. })
    ));
    let big = || vec![0_u8; MAX_TXN_BYTES];
    assert!(matches!(
        store.txn(vec![], vec![Op::put("a", big())]).await,
        Err(StoreError::TooLarge { .. })
    ));
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    assert!(matches!(
        store.txn(vec![], vec![Op::put(long, "x")]).await,
        Err(StoreError::KeyLength { .. })
    ));
    assert!(matches!(
        store.txn(vec![], vec![Op::put("", "x")]).await,
        Err(StoreError::KeyLength { found: 0 })
    ));
    let twice = vec![Op::put("a", "x"), Op::delete("a")];
    assert!(matches!(
        store.txn(vec![], twice).await,
        Err(StoreError::DuplicateKey { .. })
    ));
    assert_eq!(store.status().revision, 0);
    // The largest that is allowed.
    let mut largest = big();
    largest.truncate(MAX_TXN_BYTES - 1);
    committed(store.txn(vec![], vec![Op::put("a", largest)]).await);
    let ops = (0..MAX_OPS).map(|n| Op::put(n.to_string(), "x")).collect();
    committed(store.txn(vec![], ops).await);
}

async fn a_list_is_sorted_and_stays_within_its_prefix(store: Shared) {
    for key in ["b/2", "b0", "b/10", "b/", "a", "b", "c"] {
        put(&store, key, key).await;
    }
    let keys = |prefix: &'static str| {
        let store = store.clone();
        async move {
            store
                .list(prefix)
                .await
                .unwrap()
                .items
                .into_iter()
                .map(|item| item.key.to_string())
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(keys("b/").await, ["b/", "b/10", "b/2"]);
    assert_eq!(keys("").await, ["a", "b", "b/", "b/10", "b/2", "b0", "c"]);
    assert_eq!(keys("zzz").await, [""; 0]);
}

async fn a_watch_sees_every_change_once_in_order_under_load(store: Shared) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 100;
    let mut watch = store.watch("w/", 0);
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..WRITES {
                let ops = vec![
                    Op::put(format!("w/{writer}"), n.to_string()),
                    Op::put(format!("other/{writer}"), "x"),
                ];
                committed(store.txn(vec![], ops).await);
            }
        })
    });
    let writers = tokio::spawn(futures::future::join_all(writers));
    let mut last = 0;
    let mut counts = BTreeMap::<String, u64>::new();
    while last < WRITERS * WRITES {
        match next(&mut watch).await.unwrap() {
            WatchEvent::Put(item) => {
                assert_eq!(item.modified, last + 1, "a gap, or out of order");
                last = item.modified;
                let count = counts.entry(item.key.to_string()).or_default();
                assert_eq!(item.value, Bytes::from(count.to_string()));
                *count += 1;
            }
            WatchEvent::Progress { revision } => assert_eq!(revision, last),
            other => panic!("unexpected {other:?}"),
        }
    }
    for writer in writers.await.unwrap() {
        writer.unwrap();
    }
}

async fn a_watch_resumes_after_the_revision_it_saw_last(store: Shared) {
    let first = put(&store, "a", "1").await;
    let second = put(&store, "a", "2").await;
    let third = committed(store.txn(vec![], vec![Op::delete("a")]).await);
    let mut watch = store.watch("a", first);
    let Some(WatchEvent::Put(item)) = next(&mut watch).await else {
        panic!("the second write")
    };
    assert_eq!((item.created, item.modified), (first, second));
    assert_eq!(
        next(&mut watch).await,
        Some(WatchEvent::Delete {
            key: "a".into(),
            revision: third
        })
    );
    assert_eq!(next(&mut watch).await, Some(WatchEvent::Progress { revision: third }));
    // From a listing: nothing is missed and nothing comes twice.
    let listing = store.list("").await.unwrap();
    let mut watch = store.watch("", listing.revision);
    let fourth = put(&store, "b", "1").await;
    assert!(matches!(next(&mut watch).await, Some(WatchEvent::Put(item)) if item.modified == fourth));
}

async fn a_watch_whose_place_is_gone_says_so_and_ends(store: Shared) {
    let mut slow = store.watch("", 0);
    let txns = (KEPT_CHANGES / MAX_OPS + 2) as u64;
    for txn in 0..txns {
        let ops = (0..MAX_OPS).map(|n| Op::put(n.to_string(), txn.to_string())).collect();
        committed(store.txn(vec![], ops).await);
    }
    assert_eq!(next(&mut slow).await, Some(WatchEvent::Compacted { revision: 2 }));
    assert_eq!(next(&mut slow).await, None);
    assert_eq!(store.status().compacted, 2);
    // The oldest place that is still there.
    let mut watch = store.watch("", 2);
    assert!(matches!(next(&mut watch).await, Some(WatchEvent::Put(item)) if item.modified == 3));
}

async fn a_watch_ends_when_the_store_is_closed(store: Shared) {
    put(&store, "a", "1").await;
    let mut watch = store.watch("", 0);
    drop(store);
    assert!(matches!(next(&mut watch).await, Some(WatchEvent::Put(_))));
    assert!(matches!(next(&mut watch).await, Some(WatchEvent::Progress { .. })));
    assert_eq!(next(&mut watch).await, None);
}

/// The plainest store there is, to compare with.
#[derive(Default)]
struct Model {
    items: BTreeMap<String, (u64, u64, Bytes)>,
    revision: u64,
}

impl Model {
    fn txn(&mut self, guards: &[Guard], ops: &[Op]) -> Option<u64> {
        let holds = |guard: &Guard| match guard {
            Guard::Absent { key } => !self.items.contains_key(key),
            Guard::Modified { key, revision } => self.items.get(key).is_some_and(|item| item.1 == *revision),
            Guard::Created { key, revision } => self.items.get(key).is_some_and(|item| item.0 == *revision),
        };
        if !guards.iter().all(holds) {
            return None;
        }
        let revision = self.revision + 1;
        let mut changed = false;
        for op in ops {
            match op {
                Op::Put { key, value } => {
                    let created = self.items.get(key).map_or(revision, |item| item.0);
                    self.items.insert(key.clone(), (created, revision, value.clone()));
                    changed = true;
                }
                Op::Delete { key } => changed |= self.items.remove(key).is_some(),
            }
        }
        self.revision += u64::from(changed);
        Some(self.revision)
    }
}

async fn a_random_history_is_the_one_of_the_model(store: Shared) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = Model::default();
    let mut watch = store.watch("", 0);
    for _ in 0..400 {
        let key = |random: &mut fastrand::Rng| format!("k{}", random.u8(0..6));
        let guards: Vec<_> = (0..random.usize(0..3))
            .map(|_| {
                let key = key(&mut random);
                let known = model.items.get(&key).map_or((0, 0), |item| (item.0, item.1));
                match random.u8(0..6) {
                    0 => Guard::absent(key),
                    1 => Guard::modified(key, random.u64(0..=model.revision)),
                    2 | 3 => Guard::modified(key, known.1),
                    _ => Guard::created(key, known.0),
                }
            })
            .collect();
        let mut ops = Vec::<Op>::new();
        for _ in 0..random.usize(0..4) {
            let key = key(&mut random);
            if ops.iter().all(|op| op.key() != key) {
                ops.push(if random.u8(0..3) == 0 {
                    Op::delete(key)
                } else {
                    Op::put(key, random.u64(..).to_string())
                });
            }
        }
        let expected = model.txn(&guards, &ops);
        match store.txn(guards, ops).await.unwrap() {
            Outcome::Committed(revision) => assert_eq!(Some(revision), expected, "seed {seed}"),
            Outcome::Refused { .. } => assert_eq!(None, expected, "seed {seed}"),
        }
    }
    let listing = store.list("").await.unwrap();
    let expected = model.items.iter().map(|(key, (created, modified, value))| Item {
        key: key.as_str().into(),
        value: value.clone(),
        created: *created,
        modified: *modified,
    });
    assert_eq!(listing.items, expected.collect::<Vec<_>>(), "seed {seed}");
    assert_eq!(listing.revision, model.revision);
    // What the watch saw, applied, is the state as well.
    let mut seen = BTreeMap::new();
    loop {
        match next(&mut watch).await.unwrap() {
            WatchEvent::Put(item) => drop(seen.insert(item.key.clone(), item)),
            WatchEvent::Delete { key, .. } => assert!(seen.remove(&key).is_some(), "seed {seed}"),
            WatchEvent::Progress { revision } if revision == model.revision => break,
            WatchEvent::Progress { .. } => {}
            WatchEvent::Compacted { .. } => panic!("nothing was dropped"),
        }
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), listing.items, "seed {seed}");
}
