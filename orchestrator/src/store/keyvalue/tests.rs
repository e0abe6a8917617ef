//! Guests' key-value stores on a real disk.

use super::super::file::failing::FailingDisk;
use super::*;

const QUOTA: u64 = 1 << 20;
const KEY_BYTES: usize = narae_runtime::keyvalue::MAX_KEY_BYTES;
const VALUE_BYTES: usize = narae_runtime::keyvalue::MAX_VALUE_BYTES;

/// The calls of a store, one after another on this thread.
trait Blocking {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), KeyValueError>;
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError>;
    fn delete(&self, key: &str) -> Result<(), KeyValueError>;
    fn exists(&self, key: &str) -> Result<bool, KeyValueError>;
    fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError>;
    fn keys(&self, after: Option<&str>) -> Result<(Vec<String>, Option<String>), KeyValueError>;
}

fn wait<T>(task: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(task)
}

impl Blocking for Arc<dyn KeyValue> {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), KeyValueError> {
        wait((**self).write(vec![(key.into(), Some(value.into()))]))
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        wait((**self).get(vec![key.into()])).map(|mut found| found.pop().flatten())
    }

    fn delete(&self, key: &str) -> Result<(), KeyValueError> {
        wait((**self).write(vec![(key.into(), None)]))
    }

    fn exists(&self, key: &str) -> Result<bool, KeyValueError> {
        wait((**self).exists(key.into()))
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError> {
        wait((**self).increment(key.into(), delta))
    }

    fn keys(&self, after: Option<&str>) -> Result<(Vec<String>, Option<String>), KeyValueError> {
        wait((**self).keys(after.map(str::to_owned)))
    }
}

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
            scope.spawn(move || (0..100).for_each(|_| assert!(store.increment("n", 1).unwrap() > 0)));
        }
        for _ in 0..10 {
            node.values().flush().unwrap();
        }
    });
    let store = node.store();
    assert_eq!(store.increment("n", -1).unwrap(), 399);
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
        let writes: Vec<Write> = (0..1500)
            .map(|_| {
                let key = format!("k{}", random.u16(0..4000));
                let value = (random.u8(0..4) > 0).then(Vec::new);
                match value {
                    Some(_) => model.insert(key.clone()),
                    None => model.remove(&key),
                };
                (key, value)
            })
            .collect();
        // Half of the rounds are looked at before they are on disk.
        let mut writing = (*store).write(writes);
        if round % 2 == 0 {
            wait(&mut writing).unwrap();
        } else {
            let _ = wait(async { futures::poll!(&mut writing) });
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
    let mut waiting: Vec<_> = (0..64)
        .map(|n| (*store).write(vec![(format!("k{n}"), Some(value.clone()))]))
        .collect();
    let first = wait(async {
        waiting
            .iter_mut()
            .map(|task| futures::FutureExt::now_or_never(&mut *task))
            .collect::<Vec<_>>()
    });
    let refused = first.iter().flatten().count();
    assert!(refused > 16, "{refused}");
    assert!(
        first
            .iter()
            .flatten()
            .all(|r| matches!(r, Err(KeyValueError::Store(_))))
    );
    assert!(node.values().shared.unwritten.load(Ordering::Relaxed) <= UNWRITTEN_BYTES);
    assert_eq!(store.get("k0").unwrap().unwrap(), value, "what waits is seen");
    drop(writing);
    for (task, first) in waiting.into_iter().zip(first) {
        if first.is_none() {
            wait(task).unwrap();
        }
    }
    assert_eq!(node.values().shared.unwritten.load(Ordering::Relaxed), 0);
    store.set("more", &value).unwrap();
}

#[test]
fn writers_that_come_together_share_a_sync() {
    let node = Node::new();
    let store = node.store();
    let writing = lock(&node.values().shared.writing);
    let mut waiting: Vec<_> = (0..50)
        .map(|n| (*store).write(vec![(format!("k{n}"), Some(vec![]))]))
        .collect();
    for task in &mut waiting {
        assert!(
            futures::FutureExt::now_or_never(task).is_none(),
            "not answered before it is on disk"
        );
    }
    drop(writing);
    node.values().flush().unwrap();
    // Two at most: the one that had begun, and this.
    for task in waiting {
        wait(task).unwrap();
    }
    assert_eq!(store.keys(None).unwrap().0.len(), 50);
}

#[test]
fn a_write_that_the_disk_refuses_is_an_error_and_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keyvalue.redb");
    let disk = FailingDisk::default();
    let values = KeyValues::open_with(&path, disk.opener()).unwrap();
    let store = values.store(&name(), "default", QUOTA).unwrap();
    store.set("k", b"1").unwrap();
    let before = lock(&values.shared.spaces)["hello/default"].clone();
    let size = lock(&before.state).size_bytes;
    disk.full(true);
    for _ in 0..3 {
        assert!(matches!(store.set("k", b"2"), Err(KeyValueError::Store(_))));
        assert!(matches!(store.set("new", b"x"), Err(KeyValueError::Store(_))));
    }
    disk.full(false);
    // The first write after a failure may be what opens the file anew.
    let again = (0..100).find(|_| store.set("k", b"3").is_ok());
    assert!(again.is_some(), "written again once there is space");
    assert!(!store.exists("new").unwrap());
    assert_eq!(lock(&before.state).size_bytes, size);
    assert_eq!(values.shared.unwritten.load(Ordering::Relaxed), 0);
    drop((store, values, before));
    let values = KeyValues::open(&path).unwrap();
    let store = values.store(&name(), "default", QUOTA).unwrap();
    assert_eq!(store.get("k").unwrap().unwrap(), b"3");
    assert!(!store.exists("new").unwrap());
}

#[test]
fn a_full_store_stays_within_its_size_whoever_writes_at_once() {
    let node = Node::new();
    let quota = 20_000;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = node.values().store(&name(), "default", quota).unwrap();
            let space = lock(&node.values().shared.spaces)["hello/default"].clone();
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                for _ in 0..60 {
                    let key = format!("k{}", random.u8(0..24));
                    let value = vec![0; random.usize(0..1500)];
                    let done = match random.u8(0..4) {
                        0 => wait((*store).write((0..8).map(|n| (format!("{key}{n}"), Some(value.clone()))).collect())),
                        1 => wait((*store).swap(key, None, value)).map(|_| ()),
                        2 => store.increment(&format!("n{key}"), 1).map(|_| ()),
                        _ => store.set(&key, &value),
                    };
                    assert!(matches!(done, Ok(()) | Err(KeyValueError::Full { .. })), "{done:?}");
                    assert!(lock(&space.state).size_bytes <= quota);
                }
            });
        }
    });
}

/// What happens to a store, and to the model beside it.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, Option<u16>)>),
    Increment(u8, i8),
    Swap(u8, Option<u16>, u16),
    List,
    Restart,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let key = || 0..12_u8;
    let step = prop_oneof![
        6 => prop::collection::vec((key(), prop::option::of(0..300_u16)), 1..6).prop_map(Step::Write),
        3 => (key(), any::<i8>()).prop_map(|(k, d)| Step::Increment(k, d)),
        3 => (key(), prop::option::of(0..300_u16), 0..300_u16).prop_map(|(k, old, new)| Step::Swap(k, old, new)),
        1 => Just(Step::List),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(40))]

    /// The store in memory is the model: same answers, same errors, over restarts.
    #[test]
    fn a_store_on_disk_answers_as_one_in_memory(steps in steps()) {
        let quota = 1200;
        let model: Arc<dyn KeyValue> = Arc::new(narae_runtime::wasm::host::keyvalue::MemoryKeyValue::new(quota));
        let mut node = Node::new();
        let mut store = node.values().store(&name(), "default", quota).unwrap();
        let value = |n: u16| n.to_string().repeat(usize::from(n % 7)).into_bytes();
        for step in steps {
            match step {
                Step::Write(writes) => {
                    let writes: Vec<Write> = writes.iter().map(|(k, v)| (format!("k{k}"), v.map(value))).collect();
                    proptest::prop_assert_eq!(wait((*store).write(writes.clone())), wait((*model).write(writes)));
                }
                Step::Increment(k, by) => {
                    let key = format!("k{k}");
                    proptest::prop_assert_eq!(store.increment(&key, by.into()), model.increment(&key, by.into()));
                }
                Step::Swap(k, old, new) => {
                    let swap = |s: &Arc<dyn KeyValue>| wait((**s).swap(format!("k{k}"), old.map(value), value(new)));
                    proptest::prop_assert_eq!(swap(&store), swap(&model));
                }
                Step::List => proptest::prop_assert_eq!(store.keys(None), model.keys(None)),
                Step::Restart => {
                    drop(store);
                    node.restart();
                    store = node.values().store(&name(), "default", quota).unwrap();
                }
            }
            for k in 0..12 {
                let key = format!("k{k}");
                proptest::prop_assert_eq!(store.get(&key), model.get(&key));
            }
        }
    }
}
