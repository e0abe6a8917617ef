//! Secrets over the memory store.

use super::*;
use crate::store::{MemoryStore, Op};

const AT: Timestamp = Timestamp(1000);

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(task)
}

struct Node {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            store: Arc::new(MemoryStore::new()),
        }
    }

    fn key(&self) -> PathBuf {
        key_file(self.dir.path())
    }

    fn open(&self) -> Secrets {
        Secrets::open(&self.key(), self.store.clone())
    }
}

fn set(secrets: &Secrets, name: &str, value: &str) -> Result<Set, SecretsError> {
    block_on(secrets.set(name, &Redacted::new(value.into()), 0, AT))
}

fn value(secrets: &Secrets, name: &str, version: u64) -> Result<String, SecretsError> {
    block_on(secrets.value(name, version)).map(|v| v.expose().to_owned())
}

#[test]
fn what_was_set_is_read_again_after_a_restart_by_its_version() {
    let node = Node::new();
    let secrets = node.open();
    assert_eq!(
        set(&secrets, "db", "one").unwrap(),
        Set {
            version: 1,
            changed: true
        }
    );
    assert_eq!(
        set(&secrets, "db", "two").unwrap(),
        Set {
            version: 2,
            changed: true
        }
    );
    drop(secrets);
    let secrets = node.open();
    assert_eq!(block_on(secrets.current("db")).unwrap(), Some(2));
    assert_eq!(value(&secrets, "db", 1).unwrap(), "one");
    assert_eq!(value(&secrets, "db", 2).unwrap(), "two");
    let pins = BTreeMap::from([("db".to_owned(), 2)]);
    assert_eq!(block_on(secrets.values(&pins)).unwrap()["db"].expose(), "two");
}

#[test]
fn the_same_value_again_is_the_same_version() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "db", "one").unwrap();
    assert_eq!(
        set(&secrets, "db", "one").unwrap(),
        Set {
            version: 1,
            changed: false
        }
    );
}

#[test]
fn a_version_number_never_means_two_values() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "db", "one").unwrap();
    block_on(secrets.delete("db")).unwrap();
    // A kept revision still names version 1.
    let again = block_on(secrets.set("db", &Redacted::new("other".into()), 1, AT)).unwrap();
    assert_eq!(again.version, 2);
    assert!(matches!(
        value(&secrets, "db", 1),
        Err(SecretsError::NoVersion { version: 1, .. })
    ));
}

#[test]
fn nothing_of_a_value_is_in_the_store_or_in_an_error() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "db", "correct-horse-battery").unwrap();
    for item in block_on(node.store.list("")).unwrap().items {
        let text = String::from_utf8_lossy(&item.value).into_owned();
        assert!(!text.contains("horse") && !text.contains(&hex(b"horse")), "{text}");
    }
    let refused = set(&secrets, "db", "correct-horse-battery\0").unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains("horse"));
}

#[test]
fn the_same_value_is_sealed_differently_each_time() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "a", "same").unwrap();
    set(&secrets, "b", "same").unwrap();
    let items = block_on(node.store.list("")).unwrap().items;
    assert_ne!(
        record(&items[0]).unwrap().sealed[24..],
        record(&items[1]).unwrap().sealed[24..]
    );
}

#[test]
fn a_record_under_another_name_or_version_does_not_open() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "mine", "value").unwrap();
    let item = block_on(node.store.get(&record_key("mine", 1))).unwrap().unwrap();
    for (name, version) in [("yours", 1), ("mine", 2)] {
        let op = Op::put(record_key(name, version), item.value.clone());
        assert!(matches!(
            block_on(node.store.txn(vec![], vec![op])),
            Ok(Outcome::Committed(_))
        ));
        assert!(matches!(
            value(&secrets, name, version),
            Err(SecretsError::Sealed { .. })
        ));
    }
}

#[test]
fn every_damaged_record_is_an_error_and_never_a_panic() {
    let node = Node::new();
    let secrets = node.open();
    set(&secrets, "db", "value").unwrap();
    let good = block_on(node.store.get(&record_key("db", 1))).unwrap().unwrap().value;
    let text = String::from_utf8(good.to_vec()).unwrap();
    let sealed = record(&block_on(node.store.get(&record_key("db", 1))).unwrap().unwrap())
        .unwrap()
        .sealed;
    let with = |new: &str| text.replace(&sealed, new);
    let mut bad = vec![
        String::new(),
        "{}".into(),
        "null".into(),
        text.replace("\"schema\":1", "\"schema\":2"),
    ];
    bad.extend(
        [
            "",
            "0",
            "zz",
            "é",
            "00",
            &"0".repeat(24),
            &"0".repeat(56),
            &sealed[1..],
            &sealed[2..],
        ]
        .map(with),
    );
    for at in 0..sealed.len() {
        let mut digits = sealed.clone().into_bytes();
        digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
        bad.push(with(&String::from_utf8(digits).unwrap()));
    }
    for value_of in bad {
        let op = Op::put(record_key("db", 1), value_of.clone().into_bytes());
        assert!(matches!(
            block_on(node.store.txn(vec![], vec![op])),
            Ok(Outcome::Committed(_))
        ));
        assert!(
            matches!(value(&secrets, "db", 1), Err(SecretsError::Sealed { .. })),
            "{value_of}"
        );
        block_on(secrets.list()).unwrap();
    }
    // A damaged one can be set anew.
    assert_eq!(set(&secrets, "db", "value").unwrap().version, 2);
}

#[test]
fn another_key_opens_nothing_says_so_and_can_be_used_for_new_values() {
    let node = Node::new();
    set(&node.open(), "db", "value").unwrap();
    std::fs::write(node.key(), [7; 32]).unwrap();
    let secrets = node.open();
    let error = value(&secrets, "db", 1).unwrap_err().to_string();
    assert!(error.contains("secrets.key") && error.contains("db"), "{error}");
    assert!(!block_on(secrets.list()).unwrap()[0].ours);
    set(&secrets, "db", "value").unwrap();
    assert_eq!(value(&secrets, "db", 2).unwrap(), "value");
}

#[test]
fn a_file_that_is_no_key_fails_every_use_and_is_not_overwritten() {
    let node = Node::new();
    set(&node.open(), "db", "value").unwrap();
    std::fs::write(node.key(), b"short").unwrap();
    let secrets = node.open();
    for error in [
        value(&secrets, "db", 1).unwrap_err(),
        set(&secrets, "x", "y").unwrap_err(),
    ] {
        assert!(error.to_string().contains("5 bytes"), "{error}");
    }
    assert_eq!(
        block_on(secrets.current("db")).unwrap(),
        Some(1),
        "what needs no key works"
    );
    assert_eq!(std::fs::read(node.key()).unwrap(), b"short");
}

#[test]
fn the_key_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    node.open();
    assert_eq!(
        std::fs::metadata(node.key()).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn names_and_values_have_bounds() {
    let node = Node::new();
    let secrets = node.open();
    for name in ["", "A", "a/b", "a.b", "-a", "a-", "../x", &"a".repeat(64), "a\0", "é"] {
        assert!(
            matches!(set(&secrets, name, "x"), Err(SecretsError::BadName(_))),
            "{name}"
        );
        assert_eq!(block_on(secrets.current(name)).unwrap(), None);
        assert!(matches!(block_on(secrets.delete(name)), Err(SecretsError::NoSecret(_))));
    }
    assert!(matches!(set(&secrets, "a", ""), Err(SecretsError::BadSize(0))));
    assert!(matches!(
        set(&secrets, "a", &"x".repeat(MAX_VALUE_BYTES + 1)),
        Err(SecretsError::BadSize(_))
    ));
    set(&secrets, "a", &"x".repeat(MAX_VALUE_BYTES)).unwrap();
}

#[test]
fn so_many_secrets_and_no_more_but_a_known_one_still_changes() {
    let node = Node::new();
    let secrets = node.open();
    for n in 0..MAX_SECRETS {
        set(&secrets, &format!("s{n}"), "x").unwrap();
    }
    assert!(matches!(set(&secrets, "more", "x"), Err(SecretsError::TooMany)));
    set(&secrets, "s7", "y").unwrap();
}

#[test]
fn all_values_together_have_a_bound() {
    let node = Node::new();
    let secrets = node.open();
    let large = |n: usize| format!("{n:04}{}", "x".repeat(MAX_VALUE_BYTES - 4));
    let refused = (0..MAX_SECRETS).find_map(|n| set(&secrets, &format!("s{n}"), &large(n)).err());
    assert!(matches!(refused, Some(SecretsError::TooLarge)));
}

#[test]
fn versions_go_when_nothing_pins_them_and_the_newest_stays() {
    let node = Node::new();
    let secrets = node.open();
    for n in 1..=5 {
        set(&secrets, "a", &n.to_string()).unwrap();
    }
    set(&secrets, "b", "x").unwrap();
    let pinned = BTreeSet::from([("a".to_owned(), 2), ("b".to_owned(), 9), ("gone".to_owned(), 1)]);
    assert_eq!(block_on(secrets.trim(&pinned)).unwrap(), 3);
    let kept: Vec<_> = block_on(secrets.list())
        .unwrap()
        .into_iter()
        .map(|v| (v.name, v.version))
        .collect();
    assert_eq!(kept, [("a".to_owned(), 2), ("a".to_owned(), 5), ("b".to_owned(), 1)]);
    assert_eq!(block_on(secrets.trim(&pinned)).unwrap(), 0);
}
