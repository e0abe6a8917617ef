//! What the redb store promises beyond the trait: to survive its disk and to refuse what is not its own.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use futures::StreamExt;

use super::super::WatchEvent;
use super::super::file::failing::FailingDisk;
use super::*;

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(task)
}

fn put(store: &RedbStore, key: &str, value: &str) -> Result<u64, StoreError> {
    match block_on(store.txn(vec![], vec![Op::put(key, value.to_owned())]))? {
        Outcome::Committed(revision) => Ok(revision),
        Outcome::Refused { key } => panic!("no guard on {key}"),
    }
}

fn value(store: &RedbStore, key: &str) -> Option<String> {
    block_on(store.get(key))
        .unwrap()
        .map(|item| String::from_utf8(item.value.to_vec()).unwrap())
}

fn text(opened: Result<RedbStore, OpenError>) -> String {
    match opened {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_was_acknowledged_is_there_after_it_is_opened_again_and_revisions_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..5 {
        put(&store, "a", &n.to_string()).unwrap();
    }
    put(&store, "b", "x").unwrap();
    let before = block_on(store.list("")).unwrap();
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(block_on(store.list("")).unwrap(), before);
    assert_eq!(put(&store, "a", "later"), Ok(7));
    // A watch resumes over the restart.
    let events = block_on(store.watch("", 5).take(3).collect::<Vec<_>>());
    assert!(matches!(&events[0], WatchEvent::Put(item) if &*item.key == "b" && item.modified == 6));
    assert!(matches!(&events[1], WatchEvent::Put(item) if &*item.key == "a" && item.modified == 7));
}

#[test]
fn the_file_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(mode(), 0o600);
}

#[test]
fn a_second_daemon_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    assert!(text(RedbStore::open(&path)).contains("in use by another narae"));
    drop(store);
    assert_eq!(text(RedbStore::open(&path)), "opened");
}

#[test]
fn an_empty_file_a_text_a_directory_and_a_link_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for content in [&b""[..], b"hello", &[0; 9000], &[0xff; 200_000]] {
        fs::write(&path, content).unwrap();
        let text = text(RedbStore::open(&path));
        assert!(text.contains("store.redb` is damaged"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(
        RedbStore::open(&path),
        Err(OpenError::Io { .. } | OpenError::Corrupt { .. })
    ));
    fs::remove_dir(&path).unwrap();
    fs::write(dir.path().join("else"), "").unwrap();
    std::os::unix::fs::symlink(dir.path().join("else"), &path).unwrap();
    assert!(matches!(RedbStore::open(&path), Err(OpenError::Io { .. })));
}

#[test]
fn a_store_of_a_newer_version_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    let db = Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("schema", 99).unwrap();
    txn.commit().unwrap();
    drop(db);
    assert!(text(RedbStore::open(&path)).contains("has schema 99, this narae reads 1"));
}

#[test]
fn a_value_that_was_changed_behind_the_stores_back_is_refused_by_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    put(&store, "services/hello", "body").unwrap();
    put(&store, "services/other", "body").unwrap();
    drop(store);
    let db = Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    {
        let mut kv = txn.open_table(KV).unwrap();
        let mut sealed = kv.get("services/hello").unwrap().unwrap().value().to_vec();
        *sealed.last_mut().unwrap() ^= 1;
        kv.insert("services/hello", &*sealed).unwrap();
    }
    txn.commit().unwrap();
    drop(db);
    let text = text(RedbStore::open(&path));
    assert!(text.contains("`services/hello`"), "{text}");
}

#[test]
fn a_flipped_byte_anywhere_never_gives_an_empty_store_a_wrong_value_or_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..40 {
        put(&store, &format!("key{n}"), &"v".repeat(200)).unwrap();
    }
    let before = block_on(store.list("")).unwrap();
    drop(store);
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    // The header densely, the rest by chance.
    let places = (0..320).step_by(4).chain((0..80).map(|_| random.usize(0..good.len())));
    for place in places.collect::<Vec<_>>() {
        let mut bad = good.clone();
        bad[place] ^= 1 << random.u8(0..8);
        fs::write(&path, &bad).unwrap();
        match RedbStore::open(&path) {
            Ok(store) => {
                let listing = block_on(store.list("")).unwrap();
                assert_eq!(listing.items, before.items, "byte {place}, seed {seed}");
                assert_eq!(listing.revision, before.revision, "byte {place}, seed {seed}");
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_file_that_was_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..200 {
        put(&store, &format!("key{n}"), &"v".repeat(2000)).unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    for length in [1, 100, 4096, 5000, good.len() / 2] {
        fs::write(&path, &good[..length]).unwrap();
        let text = text(RedbStore::open(&path));
        assert!(text.contains("is damaged"), "{length}: {text}");
    }
}

fn on_failing_disk(path: &Path) -> (RedbStore, FailingDisk) {
    let disk = FailingDisk::default();
    (RedbStore::open_with(path, disk.opener()).unwrap(), disk)
}

#[test]
fn on_a_full_disk_writes_are_refused_reads_go_on_and_all_is_well_when_there_is_space_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let (store, disk) = on_failing_disk(&path);
    put(&store, "a", "1").unwrap();
    for round in 0..3 {
        disk.full(true);
        for _ in 0..3 {
            let error = put(&store, "a", "lost").unwrap_err();
            assert!(matches!(error, StoreError::Full(_)), "{error:?}");
            assert_ne!(value(&store, "a").as_deref(), Some("lost"));
            assert!(store.status().trouble.is_some());
        }
        disk.full(false);
        put(&store, "a", &round.to_string()).unwrap();
        assert_eq!(store.status().trouble, None);
        assert_eq!(value(&store, "a"), Some(round.to_string()));
    }
    drop(store);
    assert_eq!(value(&RedbStore::open(&path).unwrap(), "a").as_deref(), Some("2"));
}

#[test]
fn after_a_failed_sync_readers_and_watches_see_what_the_disk_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let (store, disk) = on_failing_disk(&path);
    put(&store, "a", "1").unwrap();
    disk.fail_next_sync();
    assert!(matches!(put(&store, "a", "2"), Err(StoreError::Io(_))));
    let shown = value(&store, "a");
    let revision = put(&store, "b", "x").unwrap();
    // Whether "2" happened or not, all agree on it.
    let happened = shown.as_deref() == Some("2");
    assert_eq!(revision, if happened { 3 } else { 2 });
    let events = block_on(
        store
            .watch("a", 0)
            .take_while(|e| futures::future::ready(!matches!(e, WatchEvent::Progress { .. })))
            .collect::<Vec<_>>(),
    );
    assert_eq!(events.len(), if happened { 2 } else { 1 });
    drop(store);
    assert_eq!(value(&RedbStore::open(&path).unwrap(), "a"), shown);
}

#[test]
fn a_store_that_vanished_while_it_was_open_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let (store, disk) = on_failing_disk(&path);
    put(&store, "a", "1").unwrap();
    fs::remove_file(&path).unwrap();
    disk.full(true);
    put(&store, "a", "2").unwrap_err();
    disk.full(false);
    put(&store, "a", "2").unwrap_err();
    assert!(!path.exists());
    assert_eq!(
        value(&store, "a").as_deref(),
        Some("1"),
        "readers keep the last known state"
    );
}

#[test]
#[ignore = "needs a small file system: NARAE_SMALL_DIR on a tmpfs of a few MiB"]
fn on_a_disk_that_is_really_full_the_store_stays_whole_and_recovers() {
    let dir = tempfile::tempdir_in(std::env::var("NARAE_SMALL_DIR").unwrap()).unwrap();
    let path = dir.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for round in 0..5 {
        put(&store, "before", &round.to_string()).unwrap();
        let ballast = dir.path().join("ballast");
        let mut filled = 0;
        let mut file = fs::File::create(&ballast).unwrap();
        while let Ok(n) = io::Write::write(&mut file, &[1; 4096]) {
            filled += n;
        }
        let mut errors = 0;
        for n in 0..200 {
            match put(&store, &format!("k{round}-{n}"), &"x".repeat(20_000)) {
                Ok(_) => {}
                Err(StoreError::Full(_)) => errors += 1,
                Err(other) => panic!("{other}"),
            }
            assert_eq!(value(&store, "before"), Some(round.to_string()));
        }
        drop(file);
        fs::remove_file(&ballast).unwrap();
        println!("round {round}: {filled} bytes of ballast, {errors} writes refused");
        put(&store, "after", &round.to_string()).unwrap();
        let keys = block_on(store.list("k")).unwrap().items;
        for key in keys {
            block_on(store.txn(vec![], vec![Op::delete(&*key.key)]))
                .map(drop)
                .unwrap();
        }
    }
    drop(store);
    assert_eq!(value(&RedbStore::open(&path).unwrap(), "after").as_deref(), Some("4"));
}

#[test]
#[ignore = "prints figures: cargo test -p narae-orchestrator --lib commit_cost -- --ignored --nocapture"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn commit_cost() {
    let dir = tempfile::tempdir_in(std::env::var("NARAE_BENCH_DIR").unwrap_or("/var/tmp".into())).unwrap();
    let store = Arc::new(RedbStore::open(&dir.path().join("store.redb")).unwrap());
    let body = "x".repeat(4096);
    let mut took: Vec<_> = (0..300)
        .map(|n| {
            let start = std::time::Instant::now();
            put(&store, &format!("revisions/hello/{n:020}"), &body).unwrap();
            start.elapsed()
        })
        .collect();
    took.sort();
    println!("one after the other: p50 {:?} p99 {:?}", took[150], took[297]);
    let start = std::time::Instant::now();
    let many = futures::future::join_all((0..1000).map(|n| {
        let (store, body) = (store.clone(), body.clone());
        async move {
            drop(
                store
                    .txn(vec![], vec![Op::put(format!("many/{n}"), body)])
                    .await
                    .unwrap(),
            )
        }
    }));
    block_on(many);
    println!("1000 at once: {:?} each", start.elapsed() / 1000);
}
