//! Compiling happens in a child that can be killed; compiled code is kept, checked, and never trusted blindly.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::compile::{CacheOptions, Compiler, CompilerOptions, Engine};
use narae_runtime::engine::{EngineKind, base_config};
use narae_runtime::{Artifact, PrepareError};
use tempfile::TempDir;

fn engine(kind: EngineKind) -> Engine {
    Engine::new(&base_config(kind)).unwrap()
}

fn prebuilt(name: &str) -> Artifact {
    let path = format!("{}/modules/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    Artifact::read(std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")).into()).unwrap()
}

fn options(cache: Option<&Path>) -> CompilerOptions {
    CompilerOptions {
        program: env!("CARGO_BIN_EXE_narae").into(),
        args: vec!["__compile".into()],
        cache: cache.map(|dir| CacheOptions {
            dir: dir.into(),
            max_bytes: 64 << 20,
        }),
        key: [7; 32],
        deadline: Duration::from_secs(60),
        memory_bytes: 512 << 20,
        jobs: 2,
    }
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

/// A preview 1 command of 3,000 functions of 200 multiplications each: seconds and hundreds of megabytes to compile.
fn slow_artifact() -> Artifact {
    const FUNCTIONS: usize = 3_000;
    let mut body = vec![1, 40, 0x7e];
    for n in 0..200u8 {
        body.extend([0x20, n % 30 * 7 % 40, 0x42, n % 64, 0x7e, 0x21, n % 40]);
    }
    body.push(0x0b);
    let body = [leb(body.len()), body].concat();
    let section = |id: u8, contents: Vec<u8>| [vec![id], leb(contents.len()), contents].concat();
    let bytes = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, vec![1, 0x60, 0, 0]),
        section(3, [leb(FUNCTIONS), vec![0; FUNCTIONS]].concat()),
        section(5, vec![1, 0, 1]),
        section(7, [&[2, 6][..], b"_start\0\0\x06memory\x02\0"].concat()),
        section(10, [leb(FUNCTIONS), body.repeat(FUNCTIONS)].concat()),
    ];
    Artifact::read(bytes.concat().into()).unwrap()
}

fn leb(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap());
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_artifact_compiles_for_its_engine() {
    let compiler = Compiler::new(options(None)).unwrap();
    for (name, kind) in [
        ("hello", EngineKind::V02),
        ("report", EngineKind::V02),
        ("report-p1", EngineKind::V02),
        ("hello-p3", EngineKind::V03),
        ("report-p3", EngineKind::V03),
    ] {
        compiler
            .compile(&prebuilt(name), kind, &engine(kind))
            .await
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!((compiler.compiled(), compiler.loaded()), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_compiles_nothing() {
    let dir = TempDir::new().unwrap();
    let names = ["hello", "echo", "config", "version-v1", "version-v2"];
    let first = Compiler::new(options(Some(dir.path()))).unwrap();
    for name in names {
        first
            .compile(&prebuilt(name), EngineKind::V02, &engine(EngineKind::V02))
            .await
            .unwrap();
    }
    assert_eq!((first.compiled(), first.loaded()), (5, 0));
    let second = Compiler::new(options(Some(dir.path()))).unwrap();
    for name in names {
        second
            .compile(&prebuilt(name), EngineKind::V02, &engine(EngineKind::V02))
            .await
            .unwrap();
    }
    assert_eq!((second.compiled(), second.loaded()), (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_this_node_did_not_write_is_thrown_away_and_made_anew() {
    type Harm = fn(&mut Vec<u8>);
    let harms: [(&str, Harm); 6] = [
        ("a changed byte of code", |b| {
            let at = b.len() / 2;
            b[at] ^= 1;
        }),
        ("a changed byte of the tag", |b| b[0] ^= 0x80),
        ("a file cut short", |b| b.truncate(b.len() - 1)),
        ("an appended byte", |b| b.push(0)),
        ("an empty file", Vec::clear),
        ("only a tag", |b| b.truncate(32)),
    ];
    let hello = prebuilt("hello");
    let engine = engine(EngineKind::V02);
    let dir = TempDir::new().unwrap();
    Compiler::new(options(Some(dir.path())))
        .unwrap()
        .compile(&hello, EngineKind::V02, &engine)
        .await
        .unwrap();
    let path = files(dir.path()).remove(0);
    let good = std::fs::read(&path).unwrap();
    for (harm, change) in harms {
        let mut bytes = good.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let compiler = Compiler::new(options(Some(dir.path()))).unwrap();
        compiler.compile(&hello, EngineKind::V02, &engine).await.unwrap();
        assert_eq!((compiler.compiled(), compiler.loaded()), (1, 0), "{harm}");
        assert_eq!(std::fs::read(&path).unwrap(), good, "{harm}: the good file is back");
    }
    let other_key = Compiler::new(CompilerOptions {
        key: [8; 32],
        ..options(Some(dir.path()))
    })
    .unwrap();
    other_key.compile(&hello, EngineKind::V02, &engine).await.unwrap();
    assert_eq!((other_key.compiled(), other_key.loaded()), (1, 0), "another node's key");
    // The code of one artifact under the name of another.
    let compiler = Compiler::new(options(Some(dir.path()))).unwrap();
    compiler
        .compile(&prebuilt("echo"), EngineKind::V02, &engine)
        .await
        .unwrap();
    let echo = files(dir.path()).into_iter().find(|p| *p != path).unwrap();
    std::fs::copy(&echo, &path).unwrap();
    let compiler = Compiler::new(options(Some(dir.path()))).unwrap();
    compiler.compile(&hello, EngineKind::V02, &engine).await.unwrap();
    assert_eq!((compiler.compiled(), compiler.loaded()), (1, 0), "a swapped file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_or_a_pipe_in_the_cache_is_not_followed() {
    let hello = prebuilt("hello");
    let engine = engine(EngineKind::V02);
    let dir = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    Compiler::new(options(Some(dir.path())))
        .unwrap()
        .compile(&hello, EngineKind::V02, &engine)
        .await
        .unwrap();
    let path = files(dir.path()).remove(0);
    let target = elsewhere.path().join("code");
    std::fs::rename(&path, &target).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let compiler = Compiler::new(options(Some(dir.path()))).unwrap();
    compiler.compile(&hello, EngineKind::V02, &engine).await.unwrap();
    assert_eq!(compiler.compiled(), 1, "a link");
    assert!(target.exists() && !path.symlink_metadata().unwrap().is_symlink());
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let compiler = Compiler::new(options(Some(dir.path()))).unwrap();
    compiler.compile(&hello, EngineKind::V02, &engine).await.unwrap();
    assert_eq!(compiler.compiled(), 1, "a pipe");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_keeps_to_its_size_and_forgets_the_least_recently_used() {
    let dir = TempDir::new().unwrap();
    let engine = engine(EngineKind::V02);
    let all = Compiler::new(options(Some(dir.path()))).unwrap();
    for name in ["version-v1", "version-v2"] {
        all.compile(&prebuilt(name), EngineKind::V02, &engine).await.unwrap();
    }
    let size: u64 = files(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    let mut tight = options(Some(dir.path()));
    tight.cache = Some(CacheOptions {
        dir: dir.path().into(),
        max_bytes: size,
    });
    let compiler = Compiler::new(tight).unwrap();
    // A use of v1 makes v2 the older one; the third then takes v2's place.
    compiler
        .compile(&prebuilt("version-v1"), EngineKind::V02, &engine)
        .await
        .unwrap();
    compiler
        .compile(&prebuilt("version-broken"), EngineKind::V02, &engine)
        .await
        .unwrap();
    let names: Vec<String> = files(dir.path())
        .iter()
        .map(|p| p.file_name().unwrap().to_string_lossy().into())
        .collect();
    let has = |name: &str| names.iter().any(|f| f.starts_with(&prebuilt(name).digest.hex()));
    assert!(
        has("version-v1") && has("version-broken") && !has("version-v2"),
        "{names:?}"
    );
    let left: u64 = files(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(left <= size);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_artifact_is_compiled_once_at_a_time() {
    let compiler = Arc::new(Compiler::new(options(None)).unwrap());
    let engine = engine(EngineKind::V02);
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (compiler, engine) = (compiler.clone(), engine.clone());
            tokio::spawn(async move {
                compiler
                    .compile(&prebuilt("hello"), EngineKind::V02, &engine)
                    .await
                    .map(drop)
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(compiler.compiled(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_over_its_deadline_is_killed_and_the_next_one_runs() {
    let dir = TempDir::new().unwrap();
    let pid = dir.path().join("pid");
    let mut quick = options(None);
    let script = format!(
        "echo $$ > {}; exec {} __compile",
        pid.display(),
        quick.program.display()
    );
    quick.program = "/bin/sh".into();
    quick.args = vec!["-c".into(), script.into()];
    quick.deadline = Duration::from_millis(1500);
    quick.jobs = 1;
    let compiler = Compiler::new(quick).unwrap();
    let engine = engine(EngineKind::V02);
    let error = compiler
        .compile(&slow_artifact(), EngineKind::V02, &engine)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PrepareError::CompileLimit {
                what: "compile_timeout",
                ..
            }
        ),
        "{error}"
    );
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "nothing is left of it");
    let mut patient = options(None);
    patient.jobs = 1;
    Compiler::new(patient)
        .unwrap()
        .compile(&prebuilt("hello"), EngineKind::V02, &engine)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_takes_the_child_with_it_and_frees_its_place() {
    let mut one = options(None);
    one.jobs = 1;
    let compiler = Compiler::new(one).unwrap();
    let engine = engine(EngineKind::V02);
    let slow = slow_artifact();
    let call = compiler.compile(&slow, EngineKind::V02, &engine);
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    compiler
        .compile(&prebuilt("hello"), EngineKind::V02, &engine)
        .await
        .unwrap();
    assert_eq!(compiler.compiled(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_over_its_memory_fails_alone_and_says_so() {
    let mut small = options(None);
    small.memory_bytes = 24 << 20;
    let error = Compiler::new(small)
        .unwrap()
        .compile(&slow_artifact(), EngineKind::V02, &engine(EngineKind::V02))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PrepareError::CompileLimit {
                what: "compile_memory",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_compiler_refuses_comes_back_in_its_own_printable_words() {
    let mut artifact = prebuilt("hello");
    artifact.bytes = b"\0asm\x0d\0\x01\0\x63\x02\x1b[".as_slice().into();
    let error = Compiler::new(options(None))
        .unwrap()
        .compile(&artifact, EngineKind::V02, &engine(EngineKind::V02))
        .await
        .unwrap_err();
    let PrepareError::Compile(words) = &error else {
        panic!("{error}")
    };
    assert!(!words.is_empty() && words.len() < 2048, "{words}");
    assert!(words.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_no_compiler_is_an_error_and_not_a_hang() {
    let engine = engine(EngineKind::V02);
    for (program, args, child) in [
        ("/nonexistent", vec![], true),
        ("/bin/true", vec![], false),
        ("/bin/false", vec![], false),
        ("/bin/sh", vec!["-c", "head -c 100000 /dev/zero"], false),
        (
            "/bin/sh",
            vec!["-c", "printf '\\377\\377\\377\\377\\377\\377\\377\\377'; cat /dev/zero"],
            false,
        ),
        ("/bin/sh", vec!["-c", "kill -9 $$"], false),
    ] {
        let mut bad = options(None);
        bad.program = program.into();
        bad.args = args.iter().map(Into::into).collect();
        bad.deadline = Duration::from_secs(20);
        let error = Compiler::new(bad)
            .unwrap()
            .compile(&prebuilt("hello"), EngineKind::V02, &engine)
            .await
            .unwrap_err();
        assert_eq!(
            matches!(error, PrepareError::Child(_)),
            child,
            "{program} {args:?}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_a_service_manager_set_are_kept_and_no_hindrance() {
    let mut limited = options(None);
    let script = format!(
        "ulimit -v 1500000; ulimit -t 40; exec {} __compile",
        limited.program.display()
    );
    limited.program = "/bin/sh".into();
    limited.args = vec!["-c".into(), script.into()];
    limited.memory_bytes = 4 << 30;
    let engine = engine(EngineKind::V02);
    Compiler::new(limited)
        .unwrap()
        .compile(&prebuilt("hello"), EngineKind::V02, &engine)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inspection_and_the_engines_agree_on_proposals() {
    let compiler = Compiler::new(options(None)).unwrap();
    let command = |items: &str| -> bytes::Bytes {
        wat::parse_str(format!(
            r#"(module (memory (export "memory") 1) (func (export "_start")) {items})"#
        ))
        .unwrap()
        .into()
    };
    let on = [
        ("tail calls", "(func $f (return_call $f))"),
        ("vectors", "(func (drop (i8x16.splat (i32.const 1))))"),
        (
            "relaxed vectors",
            "(func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0))))",
        ),
        ("sign extension", "(func (drop (i32.extend8_s (i32.const 1))))"),
        (
            "bulk memory",
            "(func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))",
        ),
        ("several values", "(func (result i32 i32) (i32.const 1) (i32.const 2))"),
        (
            "function tables",
            "(table $t 1 funcref) (func (drop (table.grow $t (ref.null func) (i32.const 1))))",
        ),
        (
            "constant expressions",
            "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
        ),
    ];
    let engine = engine(EngineKind::V02);
    for (what, items) in on {
        let artifact = Artifact::read(command(items)).unwrap_or_else(|e| panic!("{what}: {e}"));
        compiler
            .compile(&artifact, EngineKind::V02, &engine)
            .await
            .unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let off = [
        ("exceptions", "(tag)"),
        ("garbage collection", "(type (struct))"),
        ("external references", "(table 1 externref)"),
        ("function references", "(type $t (func)) (func (local (ref null $t)))"),
        ("threads", "(func (drop (i32.atomic.load (i32.const 0))))"),
    ];
    for (what, items) in off {
        let bytes = command(items);
        assert!(Artifact::read(bytes.clone()).is_err(), "{what}");
        let mut forged = prebuilt("report-p1");
        forged.digest = narae_runtime::Digest::of(&bytes);
        forged.bytes = bytes;
        let compiled = compiler.compile(&forged, EngineKind::V02, &engine).await;
        assert!(matches!(compiled, Err(PrepareError::Compile(_))), "{what}");
    }
}

#[test]
fn the_hidden_verb_says_what_it_is_when_a_person_calls_it() {
    for input in ["", "hello", &"x".repeat(1000)] {
        let out = assert_cmd::Command::new(env!("CARGO_BIN_EXE_narae"))
            .arg("__compile")
            .write_stdin(input)
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert!(out.stdout.is_empty());
        assert!(String::from_utf8(out.stderr).unwrap().contains("compiler child"));
    }
}
