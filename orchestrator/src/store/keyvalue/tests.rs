//! Guests' key-value stores on a real disk.

use super::super::file::failing::FailingDisk;
use super::*;

const QUOTA: u64 = 1 << 20;

fn name() -> ServiceName {
    "hello".parse().unwrap()
}

struct Node {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    values: Option<KeyValues>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyvalue.redb");
        let values = Some(KeyValues::open(&path).unwrap());
        Self {
            _dir: dir,
            path,
            values,
        }
    }

    fn values(&self) -> &KeyValues {
        self.values.as_ref().unwrap()
    }

    fn store(&self) -> Arc<dyn KeyValue> {
        self.values().store(&name(), "default", QUOTA).unwrap()
    }

    fn restart(&mut self) {
        self.values = None;
        self.values = Some(KeyValues::open(&self.path).unwrap());
    }
}

#[test]
fn a_write_is_seen_at_once_by_every_replica_and_after_a_restart() {
    let mut node = Node::new();
    let (a, b) = (node.store(), node.store());
    a.set("k", b"v").unwrap();
    assert_eq!(b.get("k").unwrap().unwrap(), b"v");
    node.values().flush().unwrap();
    assert_eq!(b.get("k").unwrap().unwrap(), b"v");
    a.set("gone", b"x").unwrap();
    a.delete("gone").unwrap();
    a.delete("never").unwrap();
    a.set("last", b"moment").unwrap();
    drop((a, b));
    node.restart();
    let store = node.store();
    assert_eq!(store.get("k").unwrap().unwrap(), b"v");
    assert_eq!(store.get("last").unwrap().unwrap(), b"moment");
    assert!(!store.exists("gone").unwrap());
}

#[test]
fn services_and_stores_do_not_see_each_other() {
    let node = Node::new();
    let other = node
        .values()
        .store(&"hello2".parse().unwrap(), "default", QUOTA)
        .unwrap();
    let cache = node.values().store(&name(), "cache", QUOTA).unwrap();
    node.store().set("k", b"v").unwrap();
    for flushed in [false, true] {
        assert_eq!(other.get("k").unwrap(), None);
        assert_eq!(cache.keys(None).unwrap(), (vec![], None), "flushed: {flushed}");
        node.values().flush().unwrap();
    }
}

#[test]
fn a_full_store_refuses_to_grow_but_lets_go_and_remembers_its_size() {
    let mut node = Node::new();
    let quota = 10_000;
    let store = node.values().store(&name(), "default", quota).unwrap();
    store.set("a", &[0; 5000]).unwrap();
    store.set("b", &[0; 4900]).unwrap();
    assert_eq!(
        store.set("c", &[0; 10]),
        Err(KeyValueError::Full { quota_bytes: quota })
    );
    store.set("a", &[1; 5000]).unwrap();
    drop(store);
    node.restart();
    let store = node.values().store(&name(), "default", quota).unwrap();
    assert_eq!(
        store.set("c", &[0; 100]),
        Err(KeyValueError::Full { quota_bytes: quota })
    );
    store.delete("b").unwrap();
    store.set("c", &[0; 100]).unwrap();
    // A quota made smaller than what is there still lets it shrink.
    let store = node.values().store(&name(), "default", 10).unwrap();
    store.set("a", &[0; 4000]).unwrap();
    store.delete("a").unwrap();
}

#[test]
fn keys_and_values_over_their_limits_are_refused() {
    let store = Node::new().store();
    assert_eq!(store.set(&"k".repeat(KEY_BYTES + 1), b""), Err(KeyValueError::TooLarge));
    assert_eq!(store.set("k", &vec![0; VALUE_BYTES + 1]), Err(KeyValueError::TooLarge));
    assert_eq!(store.get(&"k".repeat(KEY_BYTES + 1)).unwrap(), None);
}

#[test]
fn increments_of_many_replicas_are_all_counted() {
    let node = Node::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let store = node.store();
            scope.spawn(move || (0..500).for_each(|_| assert!(store.increment("n", 1).unwrap() > 0)));
        }
        for _ in 0..10 {
            node.values().flush().unwrap();
        }
    });
    let store = node.store();
    assert_eq!(store.increment("n", -1).unwrap(), 1999);
    store.set("n", b"many").unwrap();
    assert_eq!(store.increment("n", 1), Err(KeyValueError::NotANumber));
    store.set("n", i64::MAX.to_string().as_bytes()).unwrap();
    assert_eq!(store.increment("n", 1), Err(KeyValueError::NotANumber));
}

#[test]
fn keys_come_in_order_and_in_pages_whether_they_are_on_disk_or_not() {
    let node = Node::new();
    let store = node.values().store(&name(), "default", 64 << 20).unwrap();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model = std::collections::BTreeSet::new();
    for round in 0..4 {
        for _ in 0..1500 {
            let key = format!("k{}", random.u16(0..4000));
            if random.u8(0..4) == 0 {
                store.delete(&key).unwrap();
                model.remove(&key);
            } else {
                store.set(&key, b"").unwrap();
                model.insert(key);
            }
        }
        let (mut found, mut cursor) = (vec![], None::<String>);
        loop {
            let (keys, next) = store.keys(cursor.as_deref()).unwrap();
            assert!(keys.len() <= KEYS_PER_PAGE);
            found.extend(keys);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert!(found.iter().eq(&model), "seed {seed}, round {round}");
        if round % 2 == 0 {
            node.values().flush().unwrap();
        }
    }
}

#[test]
fn a_deleted_services_stores_are_gone_for_good_and_others_stay() {
    let mut node = Node::new();
    let old = node.store();
    let other = node
        .values()
        .store(&"hello-2".parse().unwrap(), "default", QUOTA)
        .unwrap();
    other.set("k", b"stays").unwrap();
    old.set("a", b"1").unwrap();
    node.values().flush().unwrap();
    old.set("b", b"2").unwrap();
    node.values().delete_service(&name()).unwrap();
    assert_eq!(old.get("a").unwrap(), None);
    assert!(old.set("c", b"3").is_err());
    let new = node.store();
    assert_eq!(new.keys(None).unwrap().0, [""; 0]);
    drop((old, new, other));
    node.restart();
    assert_eq!(node.store().keys(None).unwrap().0, [""; 0]);
    let other = node
        .values()
        .store(&"hello-2".parse().unwrap(), "default", QUOTA)
        .unwrap();
    assert_eq!(other.get("k").unwrap().unwrap(), b"stays");
    assert_eq!(node.values().shared.unwritten.load(Ordering::Relaxed), 0);
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    let node = Node::new();
    let store = node.values().store(&name(), "default", u64::MAX).unwrap();
    // A disk that never gets on.
    let writing = lock(&node.values().shared.writing);
    let value = vec![0; VALUE_BYTES];
    let refused = (0..64)
        .map(|n| store.set(&format!("k{n}"), &value))
        .find(Result::is_err);
    assert!(matches!(refused, Some(Err(KeyValueError::Store(_)))));
    assert!(node.values().shared.unwritten.load(Ordering::Relaxed) <= UNWRITTEN_BYTES);
    assert_eq!(store.get("k0").unwrap().unwrap(), value);
    drop(writing);
    node.values().flush().unwrap();
    assert_eq!(node.values().shared.unwritten.load(Ordering::Relaxed), 0);
    store.set("more", &value).unwrap();
}

#[test]
fn a_full_disk_loses_nothing_that_was_taken_and_all_is_written_when_there_is_space_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyvalue.redb");
    let disk = FailingDisk::default();
    let values = KeyValues::open_with(&path, disk.opener()).unwrap();
    let store = values.store(&name(), "default", QUOTA).unwrap();
    store.set("k", b"1").unwrap();
    values.flush().unwrap();
    disk.full(true);
    store.set("k", b"2").unwrap();
    store.set("new", b"x").unwrap();
    for _ in 0..3 {
        values.flush().unwrap_err();
        assert_eq!(store.get("k").unwrap().unwrap(), b"2", "what was taken is seen");
    }
    store
        .set("k", b"3")
        .unwrap_or_else(|error| assert!(matches!(error, KeyValueError::Store(_))));
    disk.full(false);
    values.flush().unwrap();
    store.set("k", b"4").unwrap();
    drop((store, values));
    let values = KeyValues::open(&path).unwrap();
    let store = values.store(&name(), "default", QUOTA).unwrap();
    assert_eq!(store.get("k").unwrap().unwrap(), b"4");
    assert_eq!(store.get("new").unwrap().unwrap(), b"x");
}
