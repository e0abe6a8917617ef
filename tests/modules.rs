//! The committed guests are those their sources make: a prebuilt file whose recorded hashes are stale is refused.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use narae_runtime::Digest;

#[derive(serde::Deserialize)]
struct Manifest {
    module: Vec<Module>,
}

#[derive(serde::Deserialize)]
struct Module {
    file: String,
    sha256: String,
    folders: Vec<String>,
    source: String,
}

fn modules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("modules")
}

fn manifest() -> Manifest {
    toml::from_str(&std::fs::read_to_string(modules().join("prebuilt/manifest.toml")).unwrap()).unwrap()
}

/// The rule of `modules/README.md`: path, NUL, bytes, NUL of every file, in order of the paths.
fn source_hash(root: &Path, folders: &[String]) -> String {
    let mut files = BTreeMap::new();
    for folder in folders {
        collect(root, &root.join(folder), &mut files);
    }
    let mut all = Vec::new();
    for (path, bytes) in files {
        all.extend_from_slice(path.as_bytes());
        all.push(0);
        all.extend_from_slice(&bytes);
        all.push(0);
    }
    Digest::of(&all).hex()
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_prebuilt_module_is_the_one_its_manifest_and_its_source_say() {
    let mut wrong = Vec::new();
    for module in manifest().module {
        let bytes = std::fs::read(modules().join("prebuilt").join(&module.file)).unwrap();
        if Digest::of(&bytes).hex() != module.sha256 {
            wrong.push(format!("{}: not the file that was recorded", module.file));
        }
        if source_hash(&modules(), &module.folders) != module.source {
            wrong.push(format!(
                "{}: stale, its source has changed; run modules/build.sh",
                module.file
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_prebuilt_module_is_in_the_manifest() {
    let known: Vec<_> = manifest().module.into_iter().map(|m| m.file).collect();
    for entry in std::fs::read_dir(modules().join("prebuilt")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "manifest.toml" || known.contains(&name),
            "{name} is not in the manifest"
        );
    }
}

#[test]
fn a_changed_source_file_changes_the_hash() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("hello/src")).unwrap();
    std::fs::write(dir.path().join("hello/src/lib.rs"), "a").unwrap();
    let before = source_hash(dir.path(), &["hello".into()]);
    std::fs::write(dir.path().join("hello/src/lib.rs"), "b").unwrap();
    assert_ne!(before, source_hash(dir.path(), &["hello".into()]));
}
