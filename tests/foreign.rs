//! Guests of other people's toolchains run unmodified. They are too big to commit: `NARAE_FOREIGN_GUESTS` names a folder with
//! HTTP components (JavaScript by componentize-js, Python by componentize-py, …); without it this says that it skipped.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use common::Node;

#[test]
fn http_components_of_any_toolchain_deploy_and_answer() {
    let Ok(folder) = std::env::var("NARAE_FOREIGN_GUESTS") else {
        eprintln!("skipped: NARAE_FOREIGN_GUESTS names no folder with components");
        return;
    };
    let node = Node::start();
    let mut tried = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "wasm") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_lowercase();
        let file = node.dir.path().join(format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nmodule = \"{}\"\n[[route]]\nhost = \"{name}.test\"\n[limits]\nmemory = \"256MiB\"\n",
            path.display()
        );
        std::fs::write(&file, text).unwrap();
        node.ok(&["deploy", file.to_str().unwrap()]);
        let reply = node.get(&format!("/{name}"));
        assert_eq!((reply.status, reply.whole), (200, true), "{name}: {}", reply.text());
        eprintln!(
            "{name}: {} bytes answered {:?}",
            std::fs::metadata(&path).unwrap().len(),
            reply.text()
        );
        tried += 1;
    }
    assert!(tried > 0, "no component in the folder");
}
