//! Hostile and odd artifacts are refused in bounded time and memory; real ones are recognised for what they are.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use bytes::Bytes;
use narae_runtime::artifact::{Artifact, ArtifactError, Kind, MAX_BYTES, printable};
use proptest::prelude::*;

fn prebuilt(name: &str) -> Bytes {
    let path = format!("{}/modules/prebuilt/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")).into()
}

fn read(bytes: impl Into<Bytes>) -> Result<Artifact, ArtifactError> {
    Artifact::read(bytes.into())
}

fn assemble(text: impl AsRef<str>) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// One section with its header.
fn section(id: u8, contents: &[u8]) -> Vec<u8> {
    [&[id], &leb(contents.len())[..], contents].concat()
}

fn leb(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        if n == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

#[test]
fn the_kind_is_read_from_the_file() {
    for (name, kind) in [
        ("hello", Kind::Http02),
        ("config", Kind::Http02),
        ("fetch", Kind::Http02),
        ("std-hello", Kind::Http02),
        ("hello-p3", Kind::Http03),
        ("report", Kind::Command02),
        ("report-p3", Kind::Command03),
        ("report-p1", Kind::CommandCore),
    ] {
        let artifact = read(prebuilt(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(artifact.kind, kind, "{name}");
        assert!(artifact.imports.is_sorted() && artifact.exports.is_sorted(), "{name}");
    }
}

#[test]
fn what_a_guest_imports_is_listed_by_interface() {
    let artifact = read(prebuilt("config")).unwrap();
    let imports = |prefix: &str| artifact.imports.iter().any(|i| i.starts_with(prefix));
    assert!(imports("wasi:config/"), "{:?}", artifact.imports);
    assert!(imports("wasi:keyvalue/store@"), "{:?}", artifact.imports);
    assert!(
        artifact
            .exports
            .iter()
            .any(|e| e.starts_with("wasi:http/incoming-handler@0.2."))
    );
    let artifact = read(prebuilt("report-p1")).unwrap();
    assert!(
        artifact.imports.contains(&"wasi_snapshot_preview1/fd_write".to_owned()),
        "{:?}",
        artifact.imports
    );
}

#[test]
fn a_core_module_is_adapted_and_a_component_is_left_as_it_is() {
    let component = read(prebuilt("hello")).unwrap();
    assert_eq!(&*component.component_bytes().unwrap(), &component.bytes[..]);
    let core = read(prebuilt("report-p1")).unwrap();
    let adapted = read(core.component_bytes().unwrap().into_owned()).unwrap();
    assert_eq!(adapted.kind, Kind::Command02);
}

#[test]
fn what_is_not_wasm_is_refused_by_what_it_looks_like() {
    let cases: [(&[u8], &str); 12] = [
        (b"", "an empty file"),
        (b"\0as", "a wasm file cut short"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"\x7fELF\x02\x01\x01\0", "ELF"),
        (b"PK\x03\x04....", "zip"),
        (b"MZ\x90\0", "a Windows program"),
        (b"#!/bin/sh\n", "a script"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"  (module)", "WebAssembly text; assemble it first"),
        (b";; a comment\n(component)", "WebAssembly text; assemble it first"),
        (b"hello\n", "text"),
        (b"\xff\xfe\0\x01", "something else"),
    ];
    for (bytes, looks_like) in cases {
        assert_eq!(
            read(bytes.to_vec()).unwrap_err(),
            ArtifactError::NotWasm { looks_like },
            "{bytes:?}"
        );
    }
}

#[test]
fn a_file_over_the_limit_is_refused_before_it_is_looked_at() {
    let size = usize::try_from(MAX_BYTES).unwrap() + 1;
    let error = read(vec![0; size]).unwrap_err();
    assert_eq!(
        error,
        ArtifactError::TooLarge {
            found: MAX_BYTES + 1,
            limit: MAX_BYTES
        }
    );
}

#[test]
fn another_kind_of_wasm_is_refused_with_what_it_exports_and_what_was_expected() {
    let error = read(assemble(
        r#"(module (func (export "add") nop) (memory (export "memory") 1))"#,
    ))
    .unwrap_err();
    let ArtifactError::Unsupported { exports, expected } = &error else {
        panic!("{error}")
    };
    assert_eq!(exports, &["add", "memory"]);
    assert!(expected.contains(&"wasi:http/incoming-handler@0.2.x"));
    // A `_start` that wants more than preview 1 is none.
    let error = read(assemble(
        r#"(module (import "env" "f" (func)) (func (export "_start") nop))"#,
    ))
    .unwrap_err();
    assert!(matches!(error, ArtifactError::Unsupported { .. }), "{error}");
    // Nor is an interface of a version that was never released.
    for name in [
        "wasi:http/handler@0.3.0-rc-2025-01-01",
        "wasi:http/incoming-handler@0.4.0",
        "wasi:http/handler@0.2.0",
    ] {
        let text = format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#);
        let error = read(assemble(text)).unwrap_err();
        assert!(matches!(error, ArtifactError::Unsupported { .. }), "{name}: {error}");
    }
}

#[test]
fn names_from_a_guest_are_printable_and_the_list_of_them_is_short() {
    let escape = r#"(module (func (export "\1b[2J\1b]0;owned\07") nop) (func (export "\e2\80\aeevil") nop))"#;
    let text = read(assemble(escape)).unwrap_err().to_string();
    assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{text:?}");
    let many: String = (0..5000)
        .map(|n| format!("(func (export \"{}{n}\") nop)", "x".repeat(300)))
        .collect();
    let text = read(assemble(format!("(module {many})"))).unwrap_err().to_string();
    assert!(
        text.len() < 4096 && text.contains("and 4984 more"),
        "{} bytes",
        text.len()
    );
    assert_eq!(printable("a\n\u{202e}b", 100), "a\\n\\u{202e}b");
    assert_eq!(printable("abcdef", 3), "abc...");
}

#[test]
fn proposals_that_the_engines_switch_off_are_malformed() {
    for (what, text) in [
        ("threads", r#"(module (memory 1 1 shared) (func (export "_start")))"#),
        ("memory64", r#"(module (memory i64 1) (func (export "_start")))"#),
        (
            "multi-memory",
            r#"(module (memory 1) (memory 1) (func (export "_start")))"#,
        ),
        ("exceptions", r#"(module (tag) (func (export "_start")))"#),
        ("gc", r#"(module (type (struct)) (func (export "_start")))"#),
        (
            "function references",
            r#"(module (type $t (func)) (func (export "_start") (local (ref null $t))))"#,
        ),
    ] {
        let error = read(assemble(text)).unwrap_err();
        assert!(matches!(error, ArtifactError::Malformed(_)), "{what}: {error}");
    }
}

#[test]
fn component_async_is_for_wasi_0_3_only() {
    let with = |export: &str| {
        assemble(format!(
            r#"(component
                (core func $g (canon task.cancel))
                (instance $i) (export "{export}" (instance $i)))"#
        ))
    };
    assert_eq!(read(with("wasi:http/handler@0.3.0")).unwrap().kind, Kind::Http03);
    let error = read(with("wasi:http/incoming-handler@0.2.0")).unwrap_err();
    assert!(matches!(error, ArtifactError::Malformed(_)), "{error}");
}

#[track_caller]
fn assert_too_many(bytes: Vec<u8>, what: &str) {
    match read(bytes) {
        Err(ArtifactError::TooMany { what: found, .. }) => assert_eq!(found, what),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn twenty_thousand_imports_are_too_many() {
    let imports: String = (0..20_000)
        .map(|n| format!(r#"(import "wasi_snapshot_preview1" "f{n}" (func))"#))
        .collect();
    assert_too_many(
        assemble(format!(r#"(module {imports} (func (export "_start")))"#)),
        "imports",
    );
}

#[test]
fn a_thousand_instances_are_too_many() {
    let instances = "(core instance (instantiate $m))".repeat(1_000);
    assert_too_many(
        assemble(format!("(component (core module $m) {instances})")),
        "instances",
    );
}

#[test]
fn four_hundred_nested_components_are_too_many() {
    let mut bytes = COMPONENT.to_vec();
    for _ in 0..400 {
        bytes = [COMPONENT, &section(4, &bytes)].concat();
    }
    assert_too_many(bytes, "levels of nesting");
}

#[test]
fn types_nested_a_million_deep_do_not_overflow_the_stack() {
    // An instance type with one declaration: a type, which is an instance type with one declaration: a type …
    for tag in [0x41, 0x42] {
        let mut types = vec![1];
        for _ in 0..1_000_000 {
            types.extend([tag, 1, 1]);
        }
        types.extend([0x40, 0, 1, 0]);
        assert_too_many([COMPONENT, &section(7, &types)].concat(), "levels of nested types");
    }
}

#[test]
fn a_world_hidden_in_a_core_module_cannot_overflow_the_adapter() {
    let mut types = vec![1];
    for _ in 0..300_000 {
        types.extend([0x42, 1, 1]);
    }
    let world = [COMPONENT, &section(7, &types)].concat();
    let name = b"component-type:world";
    let custom = section(0, &[&leb(name.len())[..], name, &world].concat());
    let module = [&prebuilt("report-p1")[..], &custom].concat();
    let artifact = read(module).unwrap();
    assert!(artifact.component_bytes().is_ok());
}

#[test]
fn a_million_functions_are_too_many() {
    let mut count = leb(1_000_000);
    count.resize(count.len() + 1_000_000, 0);
    let bytes = [MODULE, &section(1, &[1, 0x60, 0, 0]), &section(3, &count)].concat();
    assert_too_many(bytes, "functions");
}

#[test]
fn declarations_that_would_fill_the_memory_are_too_many() {
    // Each export of an instance is some six bytes here and eighty in memory.
    let mut bytes = COMPONENT.to_vec();
    for _ in 0..2 {
        let exports = 60_000;
        let mut instance = [&[1, 1][..], &leb(exports)].concat();
        for n in 0..exports {
            let name = format!("{n}");
            instance.extend(leb(name.len()));
            instance.extend(name.as_bytes());
            instance.extend([0, 0]);
        }
        bytes.extend(section(2, &instance));
    }
    assert_too_many(bytes, "instance arguments");
    let large = vec![0; 9 << 20];
    assert_too_many([MODULE, &section(9, &large)].concat(), "bytes of declarations");
}

#[test]
fn validating_wide_jump_tables_is_bounded_by_work_and_not_by_time() {
    // One jump table of 600,000 targets with a thousand results each takes the validator 600 million steps.
    let results = vec![0x7f; 1000];
    let ty = [&[2, 0x60, 0][..], &leb(1000), &results, &[0x60, 0, 0]].concat();
    let mut code = vec![0];
    // A block of that type; what is unreachable may pop anything.
    code.extend([0x02, 0, 0x00]);
    for _ in 0..2 {
        code.push(0x0e);
        code.extend(leb(600_000));
        code.resize(code.len() + 600_001, 0);
    }
    code.extend([0x0b, 0x00, 0x0b]);
    let body = [&leb(code.len())[..], &code].concat();
    let export = [&[1, 6][..], b"_start", &[0, 0]].concat();
    let bytes = [
        MODULE,
        &section(1, &ty),
        &section(3, &[1, 1]),
        &section(7, &export),
        &section(10, &[&[1][..], &body].concat()),
    ]
    .concat();
    assert_too_many(bytes, "steps of validation");
}

#[test]
fn comparing_wide_types_again_and_again_is_bounded() {
    // Each instantiation compares an instance type of all these functions with itself.
    let component = |functions: usize| {
        let functions: String = (0..functions)
            .map(|n| format!(r#"(export "f{n}" (func (param "a" u32)))"#))
            .collect();
        assemble(format!(
            r#"(component (type $t (instance {functions})) (import "i" (instance $i (type $t)))
                (component $c (type $t (instance {functions})) (import "i" (instance (type $t))))
                {} (instance $e) (export "wasi:http/incoming-handler@0.2.0" (instance $e)))"#,
            r#"(instance (instantiate $c (with "i" (instance $i))))"#.repeat(450)
        ))
    };
    assert_eq!(read(component(100)).unwrap().kind, Kind::Http02);
    assert_too_many(component(20_000), "comparisons of types");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["hello", "report-p1", "hello-p3"] {
        let whole = prebuilt(name);
        // The file without its last custom section is whole again.
        let ends: Vec<usize> = sections_of(&whole);
        for at in (0..whole.len())
            .step_by(whole.len() / 60)
            .filter(|at| !ends.contains(at))
        {
            assert!(read(whole.slice(..at)).is_err(), "{name} cut at {at}");
        }
    }
}

/// Where each section of the outermost module or component ends.
fn sections_of(bytes: &[u8]) -> Vec<usize> {
    let mut at = 8;
    let mut ends = vec![at];
    while at + 1 < bytes.len() {
        let (mut len, mut shift) = (0, 0);
        at += 1;
        loop {
            let byte = usize::from(bytes[at]);
            at += 1;
            len |= (byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        at += len;
        ends.push(at);
    }
    ends
}

#[test]
fn mutants_of_real_guests_never_panic() {
    let mut random = fastrand::Rng::with_seed(0x6e61_7261);
    for name in ["hello", "report-p1", "hello-p3"] {
        let whole = prebuilt(name);
        for round in 0..40 {
            let mut bytes = whole.to_vec();
            for _ in 0..1 + round % 8 {
                let at = random.usize(..bytes.len());
                match round % 3 {
                    0 => bytes[at] ^= 1 << random.u8(..8),
                    1 => bytes[at] = random.u8(..),
                    _ => drop(bytes.splice(at..(at + random.usize(..64)).min(bytes.len()), [])),
                }
            }
            if let Ok(artifact) = read(bytes) {
                let _ = artifact.component_bytes();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_inspection_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        header in 0..3usize,
    ) {
        let bytes = [[b"", MODULE, COMPONENT][header], &bytes[..]].concat();
        if let Ok(artifact) = read(bytes) {
            let _ = artifact.component_bytes();
        }
    }

    #[test]
    fn no_sections_make_the_inspection_panic(
        sections in prop::collection::vec((0..13u8, prop::collection::vec(0..0x80u8, 0..40)), 0..8),
        component in any::<bool>(),
    ) {
        let mut bytes = if component { COMPONENT } else { MODULE }.to_vec();
        for (id, contents) in sections {
            bytes.extend(section(id, &contents));
        }
        if let Ok(artifact) = read(bytes) {
            let _ = artifact.component_bytes();
        }
    }
}
