//! Verbs on stored modules: list, inspect, prune. `inspect` also reads a file, without a daemon.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::codes;
use super::exit::Exit;
use super::imports::{self, Need};
use super::report::Failure;
use super::session::{Format, Session};
use super::table::{Text, or_dash, pairs, render};
use super::units::size;
use super::{seams, source};
use crate::model::ServiceSpec;
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
        /// Say which of its needs this service file grants
        #[arg(long = "for", value_name = "SERVICE.toml")]
        service: Option<PathBuf>,
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
        ModuleVerb::Inspect { module, service } => inspect(session, &module, service.as_deref()).await,
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

/// A module with what its imports need.
#[derive(Clone, Debug, Serialize)]
struct Inspection {
    #[serde(flatten)]
    module: ModuleView,
    needs: Vec<Need>,
}

async fn inspect(session: &Session, module: &str, service: Option<&Path>) -> Result<Exit, Failure> {
    let spec = service.map(file_of).transpose()?;
    let view = if is_digest(module) && !Path::new(module).exists() {
        stored(session, module).await?
    } else {
        read(module)?
    };
    let offered = |import: &str| seams::is_offered(&view.kind, import);
    let needs = imports::of(&view.imports, offered, spec.as_ref());
    let file = service.map(|path| path.display().to_string());
    match session.format {
        Format::Json | Format::JsonLines => session.json(&Inspection { module: view, needs })?,
        Format::Name => session.print(&format!("{}\n", view.digest))?,
        Format::Table | Format::Wide => session.print(&module_text(&view, &needs, file.as_deref()))?,
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

fn file_of(path: &Path) -> Result<ServiceSpec, Failure> {
    let source = source::service_file(path).map_err(|report| Failure::of(Exit::Failed, vec![report]))?;
    let checked = seams::check_service(&source.text, &source.name);
    Ok(checked.map_err(|reports| Failure::of(Exit::Invalid, reports))?.spec)
}

fn module_text(view: &ModuleView, needs: &[Need], file: Option<&str>) -> String {
    let top: [(&str, Text); 4] = [
        ("digest", view.digest.clone().into()),
        ("kind", view.kind.clone().into()),
        ("size", size(view.size_bytes).into()),
        ("used by", or_dash(Some(view.used_by.join(", ")))),
    ];
    let mut out = pairs(&top);
    let exports = view
        .exports
        .iter()
        .map(|name| format!("  {}\n", super::units::printable(name)))
        .collect();
    for (title, text) in [
        ("imports", imports::text(&view.imports, needs, file)),
        ("exports", exports),
    ] {
        let text = if text.is_empty() {
            "  nothing\n".to_owned()
        } else {
            text
        };
        out.push_str(&format!("\n{title}\n{text}"));
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
        insta::assert_snapshot!("module_text", plain(&module_text(&view(), &[], None)));
        insta::assert_json_snapshot!("module_json", List::of(vec![view()]));
    }
}
