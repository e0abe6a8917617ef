//! The shape of the house, kept by a test: floors, where `unsafe` may stand, what no file may say.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing under {folder}");
    found
}

/// Code only: comments and the tests at the end of a file may name anything.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn offenders(files: &[(String, String)], words: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for (name, text) in files {
        let code = code(text);
        for word in words {
            if code.contains(word) {
                out.push(format!("{name}: `{word}`"));
            }
        }
    }
    out
}

#[test]
fn floors_zero_and_one_name_no_clock_no_file_no_socket_and_no_unordered_map() {
    let words = [
        "tokio",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::os::unix::net",
        "wasmtime",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "dashmap",
        "fastrand",
        "getrandom",
        "std::env",
        "std::process",
    ];
    let mut files = Vec::new();
    for folder in [
        "orchestrator/src/model",
        "orchestrator/src/plan",
        "orchestrator/src/config",
    ] {
        files.extend(
            rust_files(folder)
                .into_iter()
                .filter(|(name, _)| !name.contains("/tests")),
        );
    }
    let found = offenders(&files, &words);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn plan_and_config_do_not_import_each_other_and_arrows_point_down() {
    let floors: [(&str, &[&str]); 6] = [
        (
            "orchestrator/src/model",
            &[
                "crate::plan",
                "crate::config",
                "crate::store",
                "crate::proxy",
                "crate::agent",
                "crate::api",
                "crate::cli",
                "crate::daemon",
            ],
        ),
        (
            "orchestrator/src/plan",
            &[
                "crate::config",
                "crate::store",
                "crate::proxy",
                "crate::agent",
                "crate::api",
                "crate::cli",
                "crate::daemon",
            ],
        ),
        (
            "orchestrator/src/config",
            &[
                "crate::plan",
                "crate::store",
                "crate::proxy",
                "crate::agent",
                "crate::api",
                "crate::cli",
                "crate::daemon",
            ],
        ),
        (
            "orchestrator/src/store",
            &[
                "crate::config",
                "crate::proxy",
                "crate::agent",
                "crate::api",
                "crate::cli",
                "crate::daemon",
            ],
        ),
        (
            "orchestrator/src/proxy",
            &[
                "crate::config",
                "crate::store",
                "crate::agent",
                "crate::api",
                "crate::cli",
                "crate::daemon",
            ],
        ),
        (
            "orchestrator/src/agent",
            &["crate::cli", "crate::api", "crate::daemon", "crate::controller"],
        ),
    ];
    let mut found = Vec::new();
    for (folder, above) in floors {
        found.extend(offenders(&rust_files(folder), above));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_stands_only_where_compiled_code_is_loaded() {
    const ALLOWED: [&str; 1] = ["runtime/src/compile.rs"];
    let mut found = Vec::new();
    for folder in ["runtime/src", "orchestrator/src"] {
        for (name, text) in rust_files(folder) {
            let blocks = code(&text).matches("unsafe {").count();
            let limit = usize::from(ALLOWED.contains(&name.as_str()));
            if blocks > limit || code(&text).contains("unsafe fn") || code(&text).contains("unsafe impl") {
                found.push(format!("{name}: {blocks} unsafe blocks, {limit} allowed"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn wasmtime_is_named_by_the_runtime_alone() {
    let found = offenders(&rust_files("orchestrator/src"), &["wasmtime::", "wasmtime_wasi"]);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_file_opens_with_why_it_exists_and_none_is_over_800_lines() {
    let mut found = Vec::new();
    for folder in ["runtime/src", "orchestrator/src", "tests", "benches"] {
        for (name, text) in rust_files(folder) {
            if !text.starts_with("//!") {
                found.push(format!("{name}: no `//!` at its top"));
            }
            if text.lines().count() > 800 {
                found.push(format!("{name}: {} lines", text.lines().count()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_vague_name_is_no_file_name() {
    for folder in ["runtime/src", "orchestrator/src"] {
        for (name, _) in rust_files(folder) {
            let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
            assert!(
                !["util", "utils", "helper", "helpers", "common", "misc", "manager"].contains(&stem),
                "{name}"
            );
        }
    }
}

#[test]
fn the_documents_name_no_path_of_the_machine_they_were_written_on() {
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "benches/README.md",
        "modules/README.md",
    ] {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        for word in ["/root/", "/home/"] {
            assert!(!text.contains(word), "{name} names {word}");
        }
    }
}
