//! Verbs on stored modules: list, inspect, prune. `inspect` also reads a file, without a daemon.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::session::{Format, Session};
use super::table::{Text, or_dash, pairs, render};
use super::units::size;
use super::{seams, source};
use crate::model::views::{List, ModuleView};

/// `narae module …`.
#[derive(Clone, Debug, Subcommand)]
pub enum ModuleVerb {
    /// List the modules the daemon keeps
    List,
    /// Show what a module imports and exports: a file, or the digest (or its beginning) of a stored one
    Inspect {
        #[arg(value_name = "FILE|DIGEST")]
        module: String,
    },
    /// Remove stored modules that no revision refers to
    Prune,
}

/// `POST /v1/modules/prune`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pruned {
    schema: u32,
    removed: Vec<String>,
    freed_bytes: u64,
}

/// Runs a verb of the group.
///
/// # Errors
/// No such module, or the daemon is gone.
pub async fn module(session: &Session, verb: ModuleVerb) -> Result<Exit, Failure> {
    match verb {
        ModuleVerb::List => list(session).await,
        ModuleVerb::Inspect { module } => inspect(session, &module).await,
        ModuleVerb::Prune => prune(session).await,
    }
}

async fn list(session: &Session) -> Result<Exit, Failure> {
    let list: List<ModuleView> = session.client().await?.get("/v1/modules").await?;
    session.items(
        &list.items,
        "no modules yet; `narae deploy FILE` brings the first",
        |m| m.digest.clone(),
        module_table,
    )?;
    Ok(Exit::Done)
}

fn module_table(items: &[ModuleView], wide: bool) -> String {
    let rows = items.iter().map(|m| {
        let digest = if wide {
            m.digest.clone()
        } else {
            m.digest.chars().take(19).collect()
        };
        vec![
            digest.into(),
            m.kind.clone().into(),
            size(m.size_bytes).into(),
            or_dash(Some(m.used_by.join(","))),
        ]
    });
    render(&["DIGEST", "KIND", "SIZE>", "USED BY"], rows.collect())
}

async fn inspect(session: &Session, module: &str) -> Result<Exit, Failure> {
    let view = if is_digest(module) && !Path::new(module).exists() {
        stored(session, module).await?
    } else {
        read(module)?
    };
    match session.format {
        Format::Json | Format::JsonLines => session.json(&view)?,
        Format::Name => session.print(&format!("{}\n", view.digest))?,
        Format::Table | Format::Wide => session.print(&module_text(&view))?,
    }
    Ok(Exit::Done)
}

/// `sha256:` and hex digits, or at least six of them.
fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.len() >= 6 && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn stored(session: &Session, digest: &str) -> Result<ModuleView, Failure> {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest).to_ascii_lowercase();
    let list: List<ModuleView> = session.client().await?.get("/v1/modules").await?;
    let wanted = format!("sha256:{digits}");
    let mut found = list.items.into_iter().filter(|m| m.digest.starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Failure::new(
            Exit::Unknown,
            codes::UNKNOWN_MODULE,
            format!("no stored module begins with {wanted}"),
        )
        .help("`narae module list` shows them")),
        (Some(_), Some(_)) => Err(Failure::new(
            Exit::Failed,
            codes::UNKNOWN_MODULE,
            format!("more than one stored module begins with {wanted}"),
        )
        .help("give more digits")),
    }
}

fn read(path: &str) -> Result<ModuleView, Failure> {
    let failed = |report| Failure::of(Exit::Failed, vec![report]);
    let file = source::module(&PathBuf::new(), path).map_err(failed)?;
    let artifact = seams::inspect(&file.bytes, path, None).map_err(failed)?;
    Ok(ModuleView {
        digest: artifact.digest.to_string(),
        size_bytes: file.bytes.len() as u64,
        kind: crate::api::kind_name(artifact.kind),
        imports: artifact.imports,
        exports: artifact.exports,
        used_by: Vec::new(),
    })
}

fn module_text(view: &ModuleView) -> String {
    let top: [(&str, Text); 4] = [
        ("digest", view.digest.clone().into()),
        ("kind", view.kind.clone().into()),
        ("size", size(view.size_bytes).into()),
        ("used by", or_dash(Some(view.used_by.join(", ")))),
    ];
    let mut out = pairs(&top);
    for (title, names) in [("imports", &view.imports), ("exports", &view.exports)] {
        out.push_str(&format!("\n{title}\n"));
        if names.is_empty() {
            out.push_str("  nothing\n");
        }
        out.extend(
            names
                .iter()
                .map(|name| format!("  {}\n", super::units::printable(name))),
        );
    }
    out
}

async fn prune(session: &Session) -> Result<Exit, Failure> {
    let client = session.client().await?;
    session.confirm("remove all modules that no revision refers to?")?;
    let pruned: Pruned = client.json(Method::POST, "/v1/modules/prune", Some(&json!({}))).await?;
    if session.format.is_json() {
        session.json(&pruned)?;
        return Ok(Exit::Done);
    }
    for digest in &pruned.removed {
        session.print(&format!("{digest}\n"))?;
    }
    session.note(&format!(
        "removed {}, freed {}",
        pruned.removed.len(),
        size(pruned.freed_bytes)
    ));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> ModuleView {
        ModuleView {
            digest: format!("sha256:{}", "ab".repeat(32)),
            size_bytes: 70_000,
            kind: "http02".into(),
            imports: vec!["wasi:cli/stdout@0.2.6".into()],
            exports: vec!["wasi:http/incoming-handler@0.2.6".into()],
            used_by: vec!["hello@1".into()],
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_digest_is_told_from_a_file() {
        assert!(is_digest("sha256:abcdef") && is_digest("ABCDEF0") && !is_digest("abc") && !is_digest("hello.wasm"));
    }

    #[test]
    fn modules_are_shown_with_their_users() {
        insta::assert_snapshot!("module_table", plain(&module_table(&[view()], false)));
        insta::assert_snapshot!("module_text", plain(&module_text(&view())));
        insta::assert_json_snapshot!("module_json", List::of(vec![view()]));
    }
}
