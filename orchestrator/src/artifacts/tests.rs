//! Modules on a real disk.

use std::os::unix::fs::PermissionsExt;

use futures::stream;

use super::*;

fn open() -> (tempfile::TempDir, Artifacts) {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    (dir, artifacts)
}

fn leftovers(artifacts: &Artifacts) -> usize {
    fs::read_dir(artifacts.temporary()).unwrap().count()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_put_is_read_back_and_is_private() {
    let (dir, artifacts) = open();
    let digest = Digest::of(b"module");
    assert_eq!(artifacts.get(digest).unwrap(), None);
    assert_eq!(artifacts.put(b"module", digest).unwrap(), Put::Stored);
    assert_eq!(artifacts.put(b"module", digest).unwrap(), Put::AlreadyThere);
    assert_eq!(artifacts.get(digest).unwrap().unwrap(), &b"module"[..]);
    assert_eq!(artifacts.list().unwrap(), [Blob { digest, size_bytes: 6 }]);
    assert_eq!(mode(&artifacts.path(digest)), 0o600);
    assert_eq!(mode(&dir.path().join("blobs")), 0o700);
    assert_eq!(mode(artifacts.path(digest).parent().unwrap()), 0o700);
    assert_eq!(leftovers(&artifacts), 0);
}

#[test]
fn bytes_of_another_digest_are_not_kept() {
    let (_dir, artifacts) = open();
    let put = artifacts.put(b"evil", Digest::of(b"module")).unwrap();
    assert_eq!(
        put,
        Put::Mismatch {
            found: Digest::of(b"evil")
        }
    );
    assert_eq!(artifacts.list().unwrap(), []);
    assert_eq!(leftovers(&artifacts), 0);
}

#[test]
fn a_module_damaged_on_disk_is_named_moved_away_and_can_be_put_again() {
    let (_dir, artifacts) = open();
    let digest = Digest::of(b"module");
    assert_eq!(artifacts.put(b"module", digest).unwrap(), Put::Stored);
    for damage in [&b"modulf"[..], b"modul", b""] {
        fs::write(artifacts.path(digest), damage).unwrap();
        let error = artifacts.get(digest).unwrap_err();
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        let again = artifacts.get(digest).unwrap_err();
        assert_eq!(
            again.to_string(),
            error.to_string(),
            "the reason stays until it is put again"
        );
        fs::write(artifacts.path(digest), damage).unwrap();
        assert_eq!(artifacts.put(b"module", digest).unwrap(), Put::Stored);
        assert_eq!(artifacts.get(digest).unwrap().unwrap(), &b"module"[..]);
    }
}

#[test]
fn too_large_an_upload_ends_at_the_limit_and_leaves_nothing() {
    let (_dir, artifacts) = open();
    let mut upload = artifacts.begin(Digest::of(b"")).unwrap();
    let piece = vec![0; 16 << 20];
    for _ in 0..4 {
        upload.write(&piece).unwrap();
    }
    assert!(matches!(upload.write(b"x"), Err(ArtifactsError::TooLarge)));
    drop(upload);
    assert_eq!(leftovers(&artifacts), 0);
}

#[tokio::test]
async fn a_stream_of_single_bytes_is_put_and_one_that_breaks_off_is_not() {
    let (_dir, artifacts) = open();
    let bytes: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let digest = Digest::of(&bytes);
    let pieces = |n: usize| stream::iter(bytes[..n].to_vec()).map(|b| Ok::<_, io::Error>(Bytes::from(vec![b])));
    let broken = pieces(300_000).chain(stream::once(async { Err(io::Error::other("gone")) }));
    assert!(matches!(
        artifacts.put_stream(broken, digest).await,
        Err(ArtifactsError::Sender(_))
    ));
    assert!(matches!(
        artifacts.put_stream(pieces(300_000), digest).await,
        Ok(Put::Mismatch { .. })
    ));
    assert_eq!(leftovers(&artifacts), 0);
    assert_eq!(
        artifacts.put_stream(pieces(bytes.len()), digest).await.unwrap(),
        Put::Stored
    );
    assert_eq!(artifacts.read(digest).await.unwrap().unwrap(), bytes);
}

#[test]
fn uploads_that_a_dead_process_left_are_swept_at_the_next_start() {
    let (dir, artifacts) = open();
    let mut upload = artifacts.begin(Digest::of(b"x")).unwrap();
    upload.write(b"half").unwrap();
    std::mem::forget(upload);
    assert_eq!(leftovers(&artifacts), 1);
    assert_eq!(leftovers(&Artifacts::open(dir.path()).unwrap()), 0);
}

#[test]
fn prune_keeps_what_is_used_and_what_may_not_go() {
    let (_dir, artifacts) = open();
    let [used, unused] = [b"used", b"free"].map(|bytes| {
        assert_eq!(artifacts.put(bytes, Digest::of(bytes)).unwrap(), Put::Stored);
        Digest::of(bytes)
    });
    let keep = BTreeSet::from([used]);
    assert_eq!(artifacts.prune(&keep, |_| false).unwrap(), []);
    let removed = artifacts.prune(&keep, |_| true).unwrap();
    assert_eq!(
        removed,
        [Blob {
            digest: unused,
            size_bytes: 4
        }]
    );
    assert!(artifacts.has(used).unwrap());
    assert!(!artifacts.has(unused).unwrap());
    assert!(artifacts.remove(used).unwrap());
    assert!(!artifacts.remove(used).unwrap());
}

#[test]
fn a_link_in_a_modules_place_is_not_followed() {
    let (dir, artifacts) = open();
    let digest = Digest::of(b"secret");
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    fs::create_dir_all(artifacts.path(digest).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), artifacts.path(digest)).unwrap();
    assert!(artifacts.get(digest).is_err());
    assert_eq!(artifacts.list().unwrap(), []);
}
