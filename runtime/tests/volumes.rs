//! Real guests on volumes: what is theirs works, nothing leads out, and no way of writing holds more than the quota.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use narae_runtime::{
    Allocator, Artifact, Backend as _, Body, CallError, CompileHere, Digest, Grants, Guest, Instance, Kind, Limits,
    LogSink, Stdio, Stream, Volume, VolumeGrant, WasmBackend, WasmOptions,
};

const MIB: u64 = 1 << 20;
const BOUND: Duration = Duration::from_secs(60);

struct NoLog;

impl LogSink for NoLog {
    fn line(&self, _: Stream, _: &[u8]) {}
}

/// A directory of the host with a volume in it, and something beside it that no guest may see.
struct Disk {
    dir: tempfile::TempDir,
    volume: Arc<Volume>,
}

impl Disk {
    fn new() -> Self {
        Self::holding(|_| {})
    }

    /// With what the host put there.
    fn holding(put: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "the secret").unwrap();
        std::fs::create_dir(dir.path().join("volume")).unwrap();
        put(&dir.path().join("volume"));
        let volume = Volume::open(File::open(dir.path().join("volume")).unwrap()).unwrap();
        Self { dir, volume }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("volume").join(name)
    }

    fn grant(&self, guest_path: &str, size_bytes: u64) -> VolumeGrant {
        VolumeGrant {
            volume: Arc::clone(&self.volume),
            guest_path: guest_path.to_owned(),
            size_bytes,
            read_only: false,
        }
    }

    /// What a fresh look finds; the account must say the same.
    fn measured(&self) -> u64 {
        let fresh = Volume::open(File::open(self.path("")).unwrap()).unwrap();
        fresh.used_bytes()
    }

    /// What the files take on the disk, holes not counted.
    fn allocated(&self) -> u64 {
        fn sum(dir: &Path) -> u64 {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
            entries
                .map(|entry| {
                    let meta = entry.metadata().unwrap();
                    meta.blocks() * 512 + if meta.is_dir() { sum(&entry.path()) } else { 0 }
                })
                .sum()
        }
        sum(&self.path(""))
    }

    /// Waits until what guests held is given back: instances end after their answer is out.
    async fn settled(&self) {
        let even = async {
            while self.volume.used_bytes() != self.measured() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(BOUND, even).await;
        assert!(
            waited.is_ok(),
            "{} is not {}",
            self.volume.used_bytes(),
            self.measured()
        );
    }
}

fn limits() -> Limits {
    Limits {
        cpu_time: BOUND,
        timeout: BOUND,
        ..Limits::default()
    }
}

fn backend() -> Arc<WasmBackend> {
    let options = WasmOptions {
        allocator: Allocator::OnDemand,
        memory_budget_bytes: 1024 * MIB,
        compile: Arc::new(CompileHere),
        outbound: None,
    };
    WasmBackend::new(options).unwrap()
}

async fn guest(backend: &WasmBackend, kind: Kind, bytes: Vec<u8>, volumes: Vec<VolumeGrant>, limits: Limits) -> Guest {
    let artifact = Artifact {
        digest: Digest::of(&bytes),
        kind,
        imports: Vec::new(),
        exports: Vec::new(),
        bytes: bytes.into(),
    };
    let bytes = artifact.component_bytes().unwrap().into_owned();
    let artifact = Artifact {
        bytes: bytes.into(),
        ..artifact
    };
    Guest {
        prepared: backend.prepare(&artifact).await.unwrap(),
        label: "guest".into(),
        limits,
        grants: Grants {
            volumes,
            ..Grants::default()
        },
        logs: Arc::new(NoLog),
    }
}

/// A replica of a prebuilt guest.
struct Replica {
    _backend: Arc<WasmBackend>,
    instance: Arc<dyn Instance>,
}

impl Replica {
    async fn of(module: &str, volumes: Vec<VolumeGrant>) -> Self {
        Self::under(module, volumes, limits()).await
    }

    async fn under(module: &str, volumes: Vec<VolumeGrant>, limits: Limits) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../modules/prebuilt/{module}.wasm"));
        let kind = if module.ends_with("-p3") {
            Kind::Http03
        } else {
            Kind::Http02
        };
        let backend = backend();
        let guest = guest(&backend, kind, std::fs::read(path).unwrap(), volumes, limits).await;
        let instance = backend.start(guest).await.unwrap();
        Self {
            _backend: backend,
            instance,
        }
    }

    async fn burglar(disk: &Disk, size_bytes: u64) -> Self {
        Self::of("burglar", vec![disk.grant("/data", size_bytes)]).await
    }

    async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> Result<(u16, String), CallError> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "guest.test")
            .body(Body::full(body))
            .unwrap();
        let answer = tokio::time::timeout(BOUND, self.instance.call(request))
            .await
            .unwrap_or_else(|_| panic!("{path} never answered"))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// What the burglar says of one try.
    async fn tries(&self, what: &str) -> String {
        let (_, said) = self.send("GET", what, Vec::new()).await.unwrap();
        said.trim_end().to_owned()
    }
}

// ---- nothing leads out ----

#[tokio::test]
async fn no_path_and_no_link_leads_out_of_a_volume() {
    let disk = Disk::holding(|root| {
        std::fs::write(root.join("mine"), "mine").unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink("..", root.join("parent")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
    });
    let burglar = Replica::burglar(&disk, MIB).await;
    assert_eq!(burglar.tries("/read?from=mine").await, "ok mine");
    for what in [
        "/read?from=../secret",
        "/read?from=/etc/passwd",
        "/read?from=a/../../secret",
        "/read?from=./../secret",
        "/read?from=absolute",
        "/read?from=up",
        "/read?from=parent/secret",
        "/read?from=magic/etc/passwd",
        "/stat?from=../secret",
        "/stat?from=parent/secret",
        "/create?to=../new",
        "/create?to=parent/new",
        "/create?to=up",
        "/mkdir?to=../new",
        "/mkdir?to=parent/new",
        "/symlink?from=/etc/passwd&to=link",
        "/symlink?from=mine&to=../new",
        "/link?from=../secret&to=stolen",
        "/link?from=parent/secret&to=stolen",
        "/link?from=mine&to=../new",
        "/rename?from=../secret&to=stolen",
        "/rename?from=parent/secret&to=stolen",
        "/rename?from=mine&to=../new",
        "/rename?from=mine&to=parent/new",
        "/rename?from=mine&to=/tmp/new",
        "/unlink?from=../secret",
        "/unlink?from=parent/secret",
        "/rmdir?from=..",
        "/rmdir?from=.",
        "/size?to=parent/secret&n=0",
        "/readlink?from=../secret",
    ] {
        let said = burglar.tries(what).await;
        assert!(!said.starts_with("ok"), "{what}: {said}");
    }
    // A link of its own that leads out can be made, and leads nowhere.
    burglar.tries("/symlink?from=../secret&to=own").await;
    assert!(!burglar.tries("/read?from=own").await.starts_with("ok"));
    assert_eq!(std::fs::read(disk.dir.path().join("secret")).unwrap(), b"the secret");
    assert_eq!(std::fs::read_dir(disk.dir.path()).unwrap().count(), 2);
    disk.settled().await;
}

#[tokio::test]
async fn a_directory_swapped_for_a_link_while_it_is_opened_leads_nowhere_else() {
    let disk = Disk::new();
    std::fs::create_dir(disk.path("dir")).unwrap();
    std::fs::write(disk.path("dir/secret"), "harmless").unwrap();
    symlink("..", disk.path("link")).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let swap = {
        let (done, root) = (Arc::clone(&done), disk.path(""));
        std::thread::spawn(move || {
            let (dir, link, aside) = (root.join("dir"), root.join("link"), root.join("aside"));
            while !done.load(Ordering::Relaxed) {
                std::fs::rename(&dir, &aside).unwrap();
                std::fs::rename(&link, &dir).unwrap();
                std::fs::rename(&dir, &link).unwrap();
                std::fs::rename(&aside, &dir).unwrap();
            }
        })
    };
    let burglar = Replica::burglar(&disk, MIB).await;
    // Who comes when is chance: until both were there, and a good number of times.
    let mut all = String::new();
    for round in 0..200 {
        all += &burglar.tries("/open-loop?from=dir/secret&n=500").await;
        if round >= 4 && all.contains("harmless") && all.contains("not-permitted") {
            break;
        }
    }
    done.store(true, Ordering::Relaxed);
    swap.join().unwrap();
    assert!(all.contains("harmless") && all.contains("not-permitted"), "{all}");
    assert!(!all.contains("the secret"), "{all}");
}

#[tokio::test]
async fn pipes_sockets_and_devices_are_no_files_for_a_guest() {
    let disk = Disk::new();
    let dir = File::open(disk.path("")).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(&dir, "pipe", rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(disk.path("socket")).unwrap();
    symlink("pipe", disk.path("to-pipe")).unwrap();
    let burglar = Replica::burglar(&disk, MIB).await;
    for what in [
        "/read?from=pipe",
        "/read?from=to-pipe",
        "/fill?to=pipe&n=1",
        "/read?from=socket",
    ] {
        // An open that waited for the other end would never answer.
        assert_eq!(burglar.tries(what).await, "not-permitted", "{what}");
    }
}

#[tokio::test]
async fn odd_names_are_refused_in_the_interfaces_words() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, MIB).await;
    let long = "x".repeat(300);
    assert_eq!(burglar.tries(&format!("/create?to={long}")).await, "name-too-long");
    let huge = "x/".repeat(4000);
    let said = burglar.tries(&format!("/create?to={huge}y")).await;
    assert!(["name-too-long", "no-entry"].contains(&&*said), "{said}");
    for name in ["%00", "a%00b", ""] {
        let said = burglar.tries(&format!("/create?to={name}")).await;
        assert!(!said.starts_with("ok"), "{name}: {said}");
    }
    assert_eq!(burglar.tries("/create?to=%ED%95%9C").await, "ok");
    assert!(disk.path("한").exists());
    disk.settled().await;
}

#[tokio::test]
async fn nothing_is_moved_or_linked_from_one_volume_to_another() {
    let (one, two) = (Disk::new(), Disk::new());
    std::fs::write(one.path("file"), "x").unwrap();
    let burglar = Replica::of("burglar", vec![one.grant("/one", MIB), two.grant("/two", MIB)]).await;
    for what in ["rename", "link"] {
        let said = burglar.tries(&format!("/{what}?from=file&to=file&to_in=1")).await;
        assert_eq!(said, "cross-device", "{what}");
    }
    assert_eq!(burglar.tries("/create?to=file&from_in=1").await, "ok");
    assert_eq!(two.volume.used_bytes(), 4096);
}

#[tokio::test]
async fn a_read_only_volume_is_read_and_never_changed() {
    let disk = Disk::new();
    std::fs::create_dir(disk.path("dir")).unwrap();
    std::fs::write(disk.path("file"), "from the host").unwrap();
    let before = disk.measured();
    let grant = VolumeGrant {
        read_only: true,
        ..disk.grant("/data", MIB)
    };
    let burglar = Replica::of("burglar", vec![grant]).await;
    assert_eq!(burglar.tries("/read?from=file").await, "ok from the host");
    for what in [
        "/create?to=new",
        "/create?to=file",
        "/mkdir?to=new",
        "/rmdir?from=dir",
        "/unlink?from=file",
        "/symlink?from=file&to=new",
        "/link?from=file&to=new",
        "/rename?from=file&to=new",
        "/size?to=file&n=0",
        "/fill?to=file&n=1",
    ] {
        assert_eq!(burglar.tries(what).await, "not-permitted", "{what}");
    }
    assert_eq!(disk.measured(), before);
}

// ---- the quota ----

#[tokio::test]
async fn a_guest_fills_its_volume_to_its_size_and_no_further() {
    for how in ["fill", "fill-stream", "fill-append", "zeroes"] {
        let disk = Disk::new();
        let burglar = Replica::burglar(&disk, MIB).await;
        let said = burglar.tries(&format!("/{how}?to=file&n={}", 2 * MIB)).await;
        let written: u64 = said.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(said.ends_with(" insufficient-space"), "{how}: {said}");
        assert!(written < MIB && written > MIB - 2 * 65536, "{how}: {said}");
        assert!(disk.allocated() <= MIB && disk.volume.used_bytes() <= MIB, "{how}");
        disk.settled().await;
        // Room comes back with the file.
        assert_eq!(
            burglar.tries("/mkdir?to=other").await.starts_with("ok"),
            disk.volume.used_bytes() < MIB
        );
        assert_eq!(burglar.tries("/unlink?from=file").await, "ok");
        assert_eq!(burglar.tries(&format!("/{how}?to=again&n=65536")).await, "ok 65536");
        disk.settled().await;
    }
}

#[tokio::test]
async fn holes_cost_as_much_as_bytes() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, 10 * MIB).await;
    for what in [
        "/size?to=file&n=10737418240",
        "/write-at?to=file&n=10737418240",
        "/size?to=file&n=10485760",
    ] {
        assert_eq!(burglar.tries(what).await, "insufficient-space", "{what}");
    }
    assert_eq!(std::fs::metadata(disk.path("file")).unwrap().len(), 0);
    assert_eq!(
        burglar.tries("/size?to=file&n=18446744073709551615").await,
        "file-too-large"
    );
    assert_eq!(
        burglar.tries("/write-at?to=file&n=18446744073709551615").await,
        "file-too-large"
    );
    assert_eq!(burglar.tries("/size?to=file&n=10000000").await, "ok");
    assert_eq!(
        burglar.tries("/fill?to=other&n=1000000").await,
        "ok 458752 insufficient-space"
    );
    // Cut again, there is room again.
    assert_eq!(burglar.tries("/size?to=file&n=1").await, "ok");
    assert_eq!(burglar.tries("/fill?to=other&n=1000000").await, "ok 1000000");
    disk.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_instances_that_write_at_once_hold_no_more_than_the_size() {
    let disk = Disk::new();
    // Two replicas of two revisions: the account is one.
    let (one, two) = (
        Replica::burglar(&disk, 4 * MIB).await,
        Replica::burglar(&disk, 4 * MIB).await,
    );
    let tries: Vec<_> = (0..8)
        .map(|i| {
            let how = ["fill", "fill-stream", "fill-append", "zeroes"][i % 4];
            (
                format!("/{how}?to=file{i}&n={}", 2 * MIB),
                if i < 4 { &one } else { &two },
            )
        })
        .collect();
    let said = futures::future::join_all(tries.iter().map(|(what, replica)| replica.tries(what))).await;
    assert!(
        said.iter().filter(|said| said.contains("insufficient-space")).count() >= 6,
        "{said:?}"
    );
    assert!(disk.allocated() <= 4 * MIB, "{}", disk.allocated());
    assert!(
        disk.measured() <= 4 * MIB && disk.measured() > 3 * MIB,
        "{}",
        disk.measured()
    );
    disk.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_instances_that_append_to_one_file_lose_nothing() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, 4 * MIB).await;
    let tries = (0..8).map(|_| burglar.tries("/fill-append?to=log&n=131072"));
    let said = futures::future::join_all(tries).await;
    assert_eq!(said, vec!["ok 131072"; 8]);
    assert_eq!(std::fs::metadata(disk.path("log")).unwrap().len(), MIB);
    disk.settled().await;
}

#[tokio::test]
async fn files_without_content_are_counted_too() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, MIB).await;
    assert_eq!(burglar.tries("/many?to=f&n=1000000").await, "ok 256 insufficient-space");
    assert_eq!(burglar.tries("/mkdir?to=dir").await, "insufficient-space");
    assert_eq!(burglar.tries("/symlink?from=f1&to=link").await, "insufficient-space");
    assert_eq!(burglar.tries("/link?from=f1&to=link").await, "insufficient-space");
    assert_eq!(burglar.tries("/unlink?from=f0").await, "ok");
    assert_eq!(burglar.tries("/link?from=f1&to=again").await, "ok");
    disk.settled().await;
}

#[tokio::test]
async fn directories_deeper_than_any_path_are_counted() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, 12 * MIB).await;
    assert_eq!(burglar.tries("/deep?n=1000000").await, "ok 3072 insufficient-space");
    disk.settled().await;
}

#[tokio::test]
async fn files_that_are_open_without_a_name_are_counted_until_they_are_closed() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, MIB).await;
    // Each holds 64 KiB; its name's 4 KiB come back at once, and are needed for the next.
    let said = burglar.tries("/hold?to=file&n=200").await;
    assert_eq!(said, format!("ok {} insufficient-space", 15 * 65536));
    // The one that did not fit kept its name.
    assert_eq!(disk.measured(), 4096);
    disk.settled().await;
    assert_eq!(burglar.tries("/hold?to=file&n=10").await, "ok 655360");
    disk.settled().await;
}

#[tokio::test]
async fn what_is_replaced_is_given_back() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, 4 * MIB).await;
    for name in ["a", "b"] {
        assert_eq!(burglar.tries(&format!("/fill?to={name}&n=1000000")).await, "ok 1000000");
    }
    assert_eq!(burglar.tries("/rename?from=a&to=b").await, "ok");
    disk.settled().await;
    assert_eq!(disk.volume.used_bytes(), 1_003_520 + 4096);
    // Two names of one file: moved onto each other, both stay; the content goes with the last.
    assert_eq!(burglar.tries("/link?from=b&to=c").await, "ok");
    assert_eq!(burglar.tries("/rename?from=b&to=c").await, "ok");
    disk.settled().await;
    for name in ["b", "c"] {
        assert_eq!(burglar.tries(&format!("/unlink?from={name}")).await, "ok");
        disk.settled().await;
    }
    assert_eq!(disk.volume.used_bytes(), 0);
    // Directories over directories.
    for what in ["/mkdir?to=x", "/mkdir?to=y", "/rename?from=x&to=y", "/rmdir?from=y"] {
        assert_eq!(burglar.tries(what).await, "ok", "{what}");
    }
    assert_eq!(burglar.tries("/rmdir?from=y").await, "no-entry");
    assert_eq!(disk.volume.used_bytes(), 0);
}

#[tokio::test]
async fn a_smaller_quota_refuses_more_and_takes_less() {
    let disk = Disk::new();
    let before = Replica::burglar(&disk, MIB).await;
    assert_eq!(before.tries("/fill?to=file&n=500000").await, "ok 500000");
    let after = Replica::burglar(&disk, 65536).await;
    assert_eq!(after.tries("/create?to=new").await, "insufficient-space");
    assert_eq!(after.tries("/read?from=file").await, format!("ok {}", "x".repeat(100)));
    assert_eq!(after.tries("/size?to=file&n=100000").await, "ok");
    assert_eq!(after.tries("/unlink?from=file").await, "ok");
    assert_eq!(after.tries("/create?to=new").await, "ok");
    disk.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn guests_that_are_ended_in_the_middle_leave_a_true_account() {
    let disk = Disk::new();
    let short = Limits {
        timeout: Duration::from_millis(40),
        ..limits()
    };
    let burglar = Replica::under("burglar", vec![disk.grant("/data", 64 * MIB)], short).await;
    let mut ended = 0;
    for round in 0..5 {
        let tries = (0..8).map(|i| {
            let what = ["/many?to=m", "/fill?to=f", "/fill-stream?to=s", "/deep?to=d"][i % 4];
            let path = format!("{what}{round}{i}&n=100000000");
            let burglar = &burglar;
            async move { burglar.send("GET", &path, Vec::new()).await.is_err() }
        });
        ended += futures::future::join_all(tries)
            .await
            .iter()
            .filter(|ended| **ended)
            .count();
    }
    assert!(ended > 0, "no call was ended");
    disk.settled().await;
    assert!(disk.measured() <= 64 * MIB);
}

// ---- what one instance may have open ----

#[tokio::test]
async fn an_instance_has_a_bounded_number_of_files_open() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, MIB).await;
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    assert_eq!(burglar.tries("/descriptors?to=file&n=5000").await, "ok 256 busy");
    // A stream holds its file, and counts beside it.
    assert_eq!(burglar.tries("/streams?to=file&n=5000").await, "ok 128 busy");
    disk.settled().await;
    assert!(open() < before + 100, "{} open files are left", open());
    assert_eq!(burglar.tries("/descriptors?to=file&n=100").await, "ok 100");
}

// ---- the other tracks ----

#[tokio::test]
async fn a_guest_of_0_3_reads_writes_and_lists_under_the_same_quota() {
    let disk = Disk::new();
    let files = Replica::of("files-p3", vec![disk.grant("/data", MIB)]).await;
    let body: Vec<u8> = (0..200_000_u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    assert_eq!(files.send("PUT", "/one", body.clone()).await.unwrap().0, 200);
    let (status, read) = files.send("GET", "/one", Vec::new()).await.unwrap();
    assert_eq!((status, read.as_bytes() == body), (200, true));
    assert_eq!(files.send("POST", "/one", b"more".to_vec()).await.unwrap().0, 200);
    assert_eq!(std::fs::metadata(disk.path("one")).unwrap().len(), 200_004);
    assert_eq!(files.send("PUT", "/one", b"short".to_vec()).await.unwrap().0, 200);
    assert_eq!(files.send("GET", "/one", Vec::new()).await.unwrap().1, "short");
    assert_eq!(files.send("PUT", "/another", Vec::new()).await.unwrap().0, 200);
    let (_, listed) = files.send("GET", "/", Vec::new()).await.unwrap();
    assert_eq!(listed, "another\none\n");
    disk.settled().await;

    let (status, said) = files.send("PUT", "/big", vec![b'x'; 2 << 20]).await.unwrap();
    assert_eq!((status, &*said), (507, "insufficient-space\n"));
    assert!(disk.volume.used_bytes() <= MIB && disk.allocated() <= MIB);
    let (status, said) = files
        .send("GET", "/size?to=hole&n=10737418240", Vec::new())
        .await
        .unwrap();
    assert_eq!((status, &*said), (507, "insufficient-space\n"));
    let (status, said) = files.send("GET", "/..%2Fsecret", Vec::new()).await.unwrap();
    assert_eq!(status, 500, "{said}");
    assert_eq!(files.send("DELETE", "/big", Vec::new()).await.unwrap().0, 200);
    disk.settled().await;
    assert_eq!(files.send("PUT", "/again", vec![b'x'; 500_000]).await.unwrap().0, 200);
    disk.settled().await;
}

#[tokio::test]
async fn a_directory_of_many_files_is_listed_whole_in_both_tracks() {
    let disk = Disk::new();
    for i in 0..1500 {
        std::fs::write(disk.path(&format!("file{i:04}")), "").unwrap();
    }
    let grant = || vec![disk.grant("/data", 64 * MIB)];
    for module in ["files", "files-p3"] {
        let files = Replica::of(module, grant()).await;
        let (_, listed) = files.send("GET", "/", Vec::new()).await.unwrap();
        assert_eq!(listed.lines().count(), 1500, "{module}");
        assert!(listed.starts_with("file0000\nfile0001\n"), "{module}");
    }
}

#[tokio::test]
async fn a_program_of_preview_1_is_told_that_there_is_no_space() {
    // Creates a file in its first directory and writes to it until it may not; ends with the errno.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 2)
        (data (i32.const 0) "file")
        (func (export "_start") (local $errno i32)
            ;; one piece of 32 KiB from 65536 on
            (i32.store (i32.const 32) (i32.const 65536))
            (i32.store (i32.const 36) (i32.const 32768))
            (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 1)
                    (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16))
                (then (call $exit (i32.const 125))))
            (loop $more
                (local.set $errno
                    (call $write (i32.load (i32.const 16)) (i32.const 32) (i32.const 1) (i32.const 48)))
                (br_if $more (i32.eqz (local.get $errno))))
            (call $exit (local.get $errno))))"#;
    let disk = Disk::new();
    let backend = backend();
    let volumes = vec![disk.grant("/data", MIB)];
    let guest = guest(
        &backend,
        Kind::CommandCore,
        wat::parse_str(text).unwrap(),
        volumes,
        limits(),
    )
    .await;
    let ended = tokio::time::timeout(BOUND, backend.run(guest, Stdio::log()))
        .await
        .unwrap();
    assert_eq!(ended.unwrap(), 51, "51 is ENOSPC");
    assert!(disk.allocated() <= MIB && disk.volume.used_bytes() <= MIB);
    disk.settled().await;
}

#[tokio::test]
async fn a_guest_without_a_volume_sees_no_directory() {
    let burglar = Replica::of("burglar", Vec::new()).await;
    assert_eq!(burglar.tries("/read?from=/etc/passwd").await, "no-device");
}

// ---- threads ----

#[tokio::test]
async fn the_thread_that_serves_goes_on_while_files_are_written() {
    let disk = Disk::new();
    let burglar = Replica::burglar(&disk, 64 * MIB).await;
    let turns = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counting = {
        let turns = Arc::clone(&turns);
        tokio::spawn(async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
    };
    // A current-thread runtime: a write that blocked it would leave no turn to the other task.
    assert_eq!(burglar.tries("/fill?to=file&n=16777216").await, "ok 16777216");
    counting.abort();
    assert!(turns.load(Ordering::Relaxed) > 256, "one turn for each write at least");
}
