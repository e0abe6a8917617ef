//! `[[volume]]` end to end: the real binary, the `files` guest, and a disk that is looked at from outside.

#![allow(clippy::disallowed_methods, reason = "a test bounds its waits by the clock")]
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Node, Reply, request, until};

const MIB: u64 = 1 << 20;

fn volume(size: &str) -> String {
    format!("[[volume]]\nname = \"cache\"\nmount = \"/data\"\nsize = \"{size}\"\n")
}

fn dir(node: &Node, service: &str) -> PathBuf {
    node.dir.path().join("data/volumes").join(service).join("cache")
}

fn send(node: &Node, service: &str, method: &str, path: &str, body: &[u8]) -> Reply {
    request(node.http, method, path, &[("host", &format!("{service}.test"))], body)
}

/// Must be answered with this status; returns the text.
fn must(node: &Node, method: &str, path: &str, body: &[u8], status: u16) -> String {
    let reply = send(node, "shop", method, path, body);
    assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
    reply.text()
}

/// What the files below take on the disk.
fn allocated(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => meta.blocks() * 512 + allocated(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn files_outlive_restarts_revisions_and_kill_9_and_go_with_their_service() {
    let node = Node::start();
    node.deploy("shop", "files", &format!("replicas = 3\n{}", volume("1MiB")));
    must(&node, "PUT", "/file", b"first", 200);
    must(&node, "POST", "/file", b" and second", 200);
    must(&node, "PUT", "/dir/", b"", 200);
    // Whichever of the three replicas answers sees the same.
    for _ in 0..12 {
        assert_eq!(must(&node, "GET", "/file", b"", 200), "first and second");
    }
    assert_eq!(must(&node, "GET", "/", b"", 200), "dir/\nfile\n");
    assert_eq!(must(&node, "GET", "/file?stat", b"", 200), "file 16\n");
    must(&node, "GET", "/missing", b"", 404);
    must(&node, "GET", "/../../admin.token", b"", 403);
    for path in [dir(&node, "shop"), node.dir.path().join("data/volumes")] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.display());
    }

    node.until("the metric is there", |node| {
        node.ok(&["metrics"])
            .contains("narae_volume_used_bytes{service=\"shop\",volume=\"cache\"} 12288")
    });

    // A new revision, beside the old one for a while, has the same files.
    node.deploy(
        "shop",
        "files",
        &format!("replicas = 2\n[env]\nNEW = \"1\"\n{}", volume("1MiB")),
    );
    assert_eq!(must(&node, "GET", "/file", b"", 200), "first and second");
    node.ok(&["restart", "shop"]);
    assert_eq!(must(&node, "GET", "/file", b"", 200), "first and second");
    let node = node.kill_and_restart();
    node.until("serves again", |node| {
        send(node, "shop", "GET", "/file", b"").status == 200
    });
    assert_eq!(must(&node, "GET", "/file", b"", 200), "first and second");
    let (status, dir_of) = node.terminate();
    assert!(status.success());
    let node = Node::again(dir_of, &[]);
    node.until("serves again", |node| {
        send(node, "shop", "GET", "/file", b"").status == 200
    });
    must(&node, "DELETE", "/dir", b"", 200);

    let effective = node.ok(&["inspect", "shop", "--effective"]);
    assert!(
        effective.contains("mount = \"/data\"\nsize = \"1MiB\"\nread_only = false\n"),
        "{effective}"
    );
    node.ok(&["delete", "shop", "--yes"]);
    let folder = node.dir.path().join("data/volumes");
    until("the files are gone", || {
        std::fs::read_dir(&folder).unwrap().count() == 0
    });
    node.deploy("shop", "files", &volume("1MiB"));
    assert_eq!(must(&node, "GET", "/", b"", 200), "");
}

#[test]
fn a_full_volume_is_an_error_in_its_guest_and_nowhere_else() {
    let node = Node::start();
    node.deploy("shop", "files", &format!("replicas = 4\n{}", volume("4MiB")));
    node.deploy("other", "files", &volume("4MiB"));
    let clients: Vec<_> = (0..8)
        .map(|i| {
            let http = node.http;
            std::thread::spawn(move || {
                let body = vec![b'x'; usize::try_from(MIB).unwrap()];
                request(http, "PUT", &format!("/file{i}"), &[("host", "shop.test")], &body).status
            })
        })
        .collect();
    let statuses: Vec<u16> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(
        statuses.iter().all(|status| matches!(status, 200 | 507)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&507), "{statuses:?}");
    assert!(allocated(&dir(&node, "shop")) <= 4 * MIB);
    // It is the same service as before, and the other one is no fuller.
    assert_eq!(send(&node, "other", "PUT", "/file", &vec![b'x'; 3 << 20]).status, 200);
    must(&node, "GET", "/", b"", 200);
    for i in 0..8 {
        send(&node, "shop", "DELETE", &format!("/file{i}"), b"");
    }
    must(&node, "PUT", "/again", &vec![b'x'; 3 << 20], 200);
    let restarts = node.json(&["status", "shop", "-o", "json"]).to_string();
    assert!(!restarts.contains("\"restarts\":1"), "{restarts}");
}

#[test]
fn a_daemon_killed_while_guests_write_counts_what_is_there() {
    let mut node = Node::start();
    node.deploy("shop", "files", &volume("2MiB"));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|i| {
            let (stop, http) = (Arc::clone(&stop), node.http);
            std::thread::spawn(move || {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = std::net::TcpStream::connect(http) else { return sent };
                    use std::io::{Read as _, Write as _};
                    let head = format!("PUT /f{i}-{sent} HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\ncontent-length: 50000\r\n\r\n");
                    let _ = stream.write_all(head.as_bytes());
                    let _ = stream.write_all(&[b'x'; 50_000]);
                    let _ = stream.read_to_end(&mut Vec::new());
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    let folder = dir(&node, "shop");
    until("some files are there", || {
        std::fs::read_dir(&folder).map_or(0, Iterator::count) > 8
    });
    node.kill();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.join().unwrap() > 0);
    }
    let node = node.kill_and_restart();
    node.until("serves again", |node| send(node, "shop", "GET", "/", b"").status == 200);
    // Filled to the end in small steps, then emptied: no byte was forgotten and none counted twice.
    let mut n = 0;
    while send(&node, "shop", "PUT", &format!("/more{n}"), &[b'y'; 4096]).status == 200 {
        n += 1;
        assert!(n < 1000, "no end");
    }
    let there = allocated(&folder);
    assert!(there <= 2 * MIB, "{there}");
    for name in must(&node, "GET", "/", b"", 200).lines() {
        must(&node, "DELETE", &format!("/{name}"), b"", 200);
    }
    must(&node, "PUT", "/all", &vec![b'z'; (2 << 20) - 4096], 200);
    must(&node, "PUT", "/more", b"", 507);
}

#[test]
fn a_read_only_volume_shows_what_the_node_has_and_takes_nothing() {
    let node = Node::start();
    let folder = dir(&node, "shop");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("file"), "from the operator").unwrap();
    node.deploy("shop", "files", &format!("{}read_only = true\n", volume("1MiB")));
    assert_eq!(must(&node, "GET", "/file", b"", 200), "from the operator");
    must(&node, "PUT", "/file", b"x", 403);
    must(&node, "PUT", "/new", b"x", 403);
    must(&node, "DELETE", "/file", b"", 403);
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"from the operator");
}

#[test]
fn a_link_in_place_of_a_volume_is_refused_by_name_and_not_followed() {
    let node = Node::start();
    let elsewhere = node.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::create_dir_all(node.dir.path().join("data/volumes/shop")).unwrap();
    symlink(&elsewhere, dir(&node, "shop")).unwrap();
    let file = node.file("shop", "files", &volume("1MiB"));
    let output = node.narae(&["deploy", &file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        said.contains("volume `cache`") && said.contains("a link or a file is in its place"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
}

/// A node whose disk is a tmpfs of 24 MiB; `None` where that cannot be mounted.
fn node_on_a_small_disk() -> Option<Node> {
    let probe = tempfile::tempdir().unwrap();
    let mount = |at: &Path| {
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"])
            .arg(at);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !mount(probe.path()) {
        return None;
    }
    let unmounted = Command::new("umount").arg(probe.path()).output().unwrap();
    assert!(unmounted.status.success());
    let node = Node::start();
    let (_, dir) = node.terminate();
    let volumes = dir.path().join("data/volumes");
    std::fs::create_dir_all(&volumes).unwrap();
    assert!(mount(&volumes));
    Some(Node::again(dir, &[]))
}

#[test]
fn a_full_disk_is_an_error_in_the_guest_and_passes() {
    let Some(node) = node_on_a_small_disk() else {
        eprintln!("SKIPPED: a_full_disk_is_an_error_in_the_guest_and_passes needs the right to mount a tmpfs");
        return;
    };
    let volumes = node.dir.path().join("data/volumes");
    node.deploy(
        "shop",
        "files",
        &format!("{}[limits]\nbody = \"64MiB\"\n", volume("1GiB")),
    );
    node.deploy("hello", "hello", "");
    must(&node, "PUT", "/big", &vec![b'x'; 40 << 20], 507);
    assert_eq!(node.get("/hello/").status, 200);
    must(&node, "PUT", "/small", &[b'x'; 100_000], 507);
    must(&node, "DELETE", "/big", b"", 200);
    must(&node, "PUT", "/small", &[b'x'; 100_000], 200);
    drop(node);
    let unmounted = Command::new("umount").arg("-l").arg(&volumes).output().unwrap();
    assert!(unmounted.status.success());
}
