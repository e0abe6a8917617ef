//! What README.md and docs/ show is what happens: files are checked, commands are run in order against a real node, and the
//! tables of keys, codes, metrics and reasons are those of the program.
//!
//! Fenced blocks say what they are: `toml service [NAME]`, `toml node`, `toml wrong NAME`, `text NAME`, `sh tour`. A named block becomes a file
//! of the tour's directory. In a tour, `$ narae …` and `$ curl http://127.0.0.1:8080PATH` are run, the lines below must be in what
//! came out, in this order, and `…` stands for anything. A command must end with 0, unless `$ echo $?` below shows another code.

#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Node, binary, request};
use narae_orchestrator::config::keys::{Key, Kind};
use narae_orchestrator::config::node_keys::NODE;
use narae_orchestrator::config::service_keys::SERVICE;
use narae_orchestrator::config::{layers, node, render_all, service};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    pages.extend(
        docs.map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "md")),
    );
    pages.sort();
    pages
}

/// A fenced block: its info string and text.
struct Block {
    info: Vec<String>,
    text: String,
    place: String,
}

fn blocks(page: &Path) -> Vec<Block> {
    let text = std::fs::read_to_string(page).unwrap();
    let name = page.file_name().unwrap().to_string_lossy().into_owned();
    let mut out = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(Block {
                    info: info.split_whitespace().map(str::to_owned).collect(),
                    text: String::new(),
                    place: format!("{name}:{}", at + 2),
                });
            }
            (Some(_), Some(_)) => out.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{name} ends inside a block");
    out
}

impl Block {
    fn is(&self, words: &[&str]) -> bool {
        self.info
            .iter()
            .map(String::as_str)
            .take(words.len())
            .eq(words.iter().copied())
    }
}

#[test]
fn every_file_shown_is_what_it_says() {
    let mut seen = 0;
    for block in pages().iter().flat_map(|p| blocks(p)) {
        if !block.is(&["toml"]) {
            continue;
        }
        seen += 1;
        let found = match block.info.get(1).map(String::as_str) {
            Some("service") => service(&block.text, "service.toml").map(|_| ()),
            Some("node") => node(&block.text, "node.toml").map(|_| ()),
            Some("wrong") => {
                assert!(service(&block.text, "wrong.toml").is_err(), "{} is right", block.place);
                Ok(())
            }
            _ => panic!("{}: say `toml service`, `toml node` or `toml wrong`", block.place),
        };
        if let Err(problems) = found {
            panic!("{}:\n{}", block.place, render_all(&problems, false));
        }
    }
    assert!(seen >= 3, "{seen} blocks");
}

#[test]
fn every_command_shown_was_run() {
    let node = Node::start();
    std::os::unix::fs::symlink(root().join("modules"), node.dir.path().join("modules")).unwrap();
    let mut commands = 0;
    for page in pages() {
        for block in blocks(&page) {
            match block.info.as_slice() {
                [lang, _, name] if lang == "toml" => std::fs::write(node.dir.path().join(name), &block.text).unwrap(),
                [text, name] if text == "text" => std::fs::write(node.dir.path().join(name), &block.text).unwrap(),
                [sh, tour] if sh == "sh" && tour == "tour" => commands += walk(&node, &block),
                _ => {}
            }
        }
    }
    assert!(commands >= 10, "{commands} commands");
}

/// Runs one block; how many commands it held.
fn walk(node: &Node, block: &Block) -> usize {
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in block.text.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command, Vec::new())),
            None => steps.last_mut().expect("a command comes first").1.push(line),
        }
    }
    let mut code = 0;
    for (at, (command, expected)) in steps.iter().enumerate() {
        if *command == "echo $?" {
            assert_eq!(expected, &[code.to_string()], "{}: {}", block.place, steps[at - 1].0);
            continue;
        }
        let (said, ended) = run(node, command);
        code = ended;
        let coded = steps.get(at + 1).is_some_and(|(next, _)| *next == "echo $?");
        assert!(
            coded || code == 0,
            "{}: `{command}` ended with {code}\n{said}",
            block.place
        );
        let mut lines = said.lines();
        for wanted in expected.iter().filter(|l| !l.is_empty()) {
            assert!(
                lines.any(|line| like(line, wanted)),
                "{}: `{command}` did not say, or not in this order:\n{wanted}\nit said:\n{said}",
                block.place
            );
        }
    }
    steps.len()
}

/// What a terminal would have shown, and the exit code.
fn run(node: &Node, command: &str) -> (String, i32) {
    if let Some(path) = command.strip_prefix("curl http://127.0.0.1:8080") {
        return (request(node.http, "GET", path, &[], b"").text(), 0);
    }
    assert!(command.starts_with("narae "), "`{command}` is no command of a tour");
    let bin = Path::new(binary()).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(node.dir.path())
        .env("PATH", path)
        .env("NARAE_HOST", format!("unix:{}", node.socket().display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        output.status.code().unwrap_or(-1),
    )
}

/// `…` stands for any text.
fn like(line: &str, pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.trim_end().split('…').collect();
    let [first, rest @ ..] = parts.as_slice() else {
        return false;
    };
    let Some(mut left) = line.trim_end().strip_prefix(first) else {
        return false;
    };
    let Some((last, middle)) = rest.split_last() else {
        return left.is_empty();
    };
    for part in middle {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

/// Compares what stands between `<!-- NAME -->` and `<!-- end -->` with what the program says; `UPDATE=1` writes it.
fn generated(page: &str, name: &str, made: &str) {
    let path = root().join("docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (open, close) = (format!("<!-- {name} -->\n"), "<!-- end -->");
    let start = text.find(&open).unwrap_or_else(|| panic!("{page} has no {open}")) + open.len();
    let end = start + text[start..].find(close).expect("the table ends");
    if text[start..end] == *made {
        return;
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{}{made}{}", &text[..start], &text[end..])).unwrap();
        return;
    }
    panic!("docs/{page} is not what the program says ({name}); UPDATE=1 cargo test --test readme rewrites it");
}

/// A section for each table, in the order of the file.
fn reference(keys: &[(String, &'static Key)], live: bool) -> String {
    let mut tables: Vec<(String, String)> = vec![(String::new(), String::new())];
    let mut later: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, key) in keys {
        if let Kind::Table(_) | Kind::Tables(_) = key.kind {
            let title = match key.kind {
                Kind::Tables(_) => format!("\n### `[[{path}]]`\n\n{}.\n", key.doc),
                _ => format!("\n### `[{path}]`\n\n{}.\n", key.doc),
            };
            tables.push((path.clone(), title));
            if let Kind::Table(t) | Kind::Tables(t) = &key.kind {
                let refused = t.keys.iter().filter(|k| matches!(k.kind, Kind::Any)).map(|k| k.name);
                later.entry(path.clone()).or_default().extend(refused);
            }
            continue;
        }
        let table = path.rsplit_once('.').map_or("", |(table, _)| table);
        let text = &mut tables
            .iter_mut()
            .find(|(name, _)| name == table)
            .expect("its table came before")
            .1;
        if !text.contains("|---|") {
            text.push_str("\n| key | value | default | |\n|---|---|---|---|\n");
        }
        let default = match (key.required, key.default) {
            (true, _) => "required".to_owned(),
            (false, Some(default)) => format!("`{default}`"),
            (false, None) => "–".to_owned(),
        };
        let mark = if live && key.live { " (a reload applies it)" } else { "" };
        let doc = format!("{}{mark}", key.doc).replace('|', "\\|");
        let _ = writeln!(text, "| `{}` | {} | {default} | {doc} |", key.name, key.kind.expected());
    }
    let mut out = String::new();
    for (name, text) in tables {
        out.push_str(&text);
        if let Some(refused) = later.get(&name).filter(|l| !l.is_empty()) {
            let _ = writeln!(out, "\nNot supported yet: {}.", words(refused));
        }
    }
    out
}

fn words(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_pages_of_both_files_have_every_key() {
    let top = |table: &'static narae_orchestrator::config::keys::Table| {
        let refused: Vec<&str> = table
            .keys
            .iter()
            .filter(|k| matches!(k.kind, Kind::Any))
            .map(|k| k.name)
            .collect();
        format!(
            "\nWhole keys and tables that are not supported yet: {}.\n\n",
            words(&refused)
        )
    };
    let services = format!("{}{}", reference(&SERVICE.walk(), false), top(&SERVICE));
    generated("service-file.md", "keys", &services);
    let nodes = format!("{}{}", reference(&NODE.walk(), true), top(&NODE));
    generated("node-file.md", "keys", &nodes);
}

#[test]
fn the_full_node_file_shown_is_the_default_one() {
    let block = blocks(&root().join("docs/node-file.md"))
        .into_iter()
        .find(|b| b.is(&["toml", "node", "full.toml"]));
    let block = block.expect("docs/node-file.md shows a node file");
    let shown = node(&block.text, "full.toml").unwrap().config;
    let default = layers(None, None, None, &BTreeMap::new(), &[]).unwrap().0;
    assert_eq!(format!("{shown:#?}"), format!("{default:#?}"));
}

#[test]
fn the_page_of_operations_names_every_exit_code_metric_and_variable() {
    let page = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let node = Node::start();
    let codes = node.ok(&["help", "exit-codes"]);
    let mut table = String::from("| code | meaning |\n|---|---|\n");
    for line in codes.lines() {
        if let Some((code, meaning)) = line.trim().split_once("  ") {
            let _ = writeln!(table, "| {code} | {} |", meaning.trim());
        }
    }
    generated("operations.md", "exit codes", &table);
    node.deploy("hello", "hello", "");
    let metrics = node.ok(&["metrics"]);
    let mut table = String::from("| metric | type | |\n|---|---|---|\n");
    let mut help: BTreeMap<&str, &str> = BTreeMap::new();
    for line in metrics.lines() {
        if let Some((name, text)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            help.insert(name, text);
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            let _ = writeln!(table, "| `{name}` | {kind} | {} |", help[name]);
        }
    }
    generated("operations.md", "metrics", &table);
    for line in node.ok(&["help", "environment"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name.starts_with("NARAE_") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            assert!(page.contains(&format!("`{name}`")), "operations.md lacks {name}");
        }
    }
    let data: Vec<String> = std::fs::read_dir(node.dir.path().join("data"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    for name in data {
        assert!(
            page.contains(&format!("`{name}")),
            "operations.md does not say what {name} is"
        );
    }
}

#[test]
fn the_answers_that_no_guest_gave_are_listed() {
    use narae_orchestrator::proxy::Reason;
    let mut table = String::from("| `x-narae-error` | status |\n|---|---|\n");
    for reason in Reason::ALL {
        let _ = writeln!(table, "| `{}` | {} |", reason.name(), reason.status().as_u16());
    }
    generated("limits-and-security.md", "reasons", &table);
}

#[test]
fn a_wildcard_stands_for_any_text() {
    assert!(like("hello   1  3/3", "hello   1  3/3"));
    assert!(like("a b c", "a … c") && like("a b c", "…c") && like("a b c", "a…") && like("abc", "a…b…c"));
    assert!(!like("a b c", "a … d") && !like("xa", "a…") && !like("abc", "ab"));
}
