//! `diff`: what a deploy would change, by what the files mean and not by how they are written.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::deploy::{Ready, SpecText, lines, read_all};
use super::exit::Exit;
use super::report::Failure;
use super::seams::{self, Change};
use super::session::Session;
use super::units::printable;
use crate::model::views::{CapabilityView, List, ModuleView, RevisionView};

/// `narae diff`.
#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// Service files, directories of them, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// End with 10 when there are differences
    #[arg(long)]
    pub exit_code: bool,
    /// Set a value over the file's
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What `diff` says of one service; its JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Difference {
    service: String,
    /// None: the service is not there yet.
    revision: Option<u64>,
    changes: Vec<Change>,
    /// What it may touch beyond the wanted revision, and no more.
    capabilities: Vec<CapabilityView>,
}

/// Compares files with what is deployed.
///
/// # Errors
/// A file is invalid (9), the daemon is gone; 10 as an exit, not an error, when asked for.
pub async fn diff(session: &Session, args: DiffArgs) -> Result<Exit, Failure> {
    let ready = read_all(session, &args.files, &args.set)?;
    let client = session.client().await?;
    let mut found = Vec::new();
    for one in &ready {
        let difference = difference(&client, one).await?;
        if !difference.changes.is_empty() || difference.revision.is_none() {
            found.push(difference);
        }
    }
    session.items(
        &found,
        "no differences",
        |d| d.service.clone(),
        |all, _| all.iter().map(shown).collect(),
    )?;
    Ok(if args.exit_code && !found.is_empty() {
        Exit::Differences
    } else {
        Exit::Done
    })
}

async fn difference(client: &Client, one: &Ready) -> Result<Difference, Failure> {
    let service = one.spec.name.to_string();
    let deployed = match SpecText::fetch(client, &service, None, false).await {
        Ok(deployed) => deployed,
        Err(failure) if failure.exit == Exit::Unknown => {
            return Ok(Difference {
                service,
                revision: None,
                changes: Vec::new(),
                capabilities: Vec::new(),
            });
        }
        Err(failure) => return Err(failure),
    };
    let old = seams::check_service_of(
        &deployed.toml,
        &format!("{service}@{}", deployed.revision),
        one.spec.is_job(),
    )
    .map_err(|reports| Failure::of(Exit::Failed, reports))?;
    let mut changes = seams::diff(&old.spec, &one.spec);
    let revisions: List<RevisionView> = client.get(&format!("/v1/services/{service}/revisions")).await?;
    let digest = revisions
        .items
        .into_iter()
        .find(|r| r.revision == deployed.revision)
        .map(|r| r.digest);
    let new = one.module.digest.to_string();
    let modules: List<ModuleView> = client.get("/v1/modules").await?;
    let before = modules.items.into_iter().find(|m| Some(&m.digest) == digest.as_ref());
    let imports = seams::inspect(&one.module.bytes, &one.spec.module, None)
        .map_err(|report| Failure::of(Exit::Invalid, vec![report]))?
        .imports;
    let before = before.map_or_else(Vec::new, |m| m.imports);
    let capabilities = seams::capabilities((&old.spec, &before), (&one.spec, &imports));
    if digest.as_ref() != Some(&new) {
        changes.push(Change {
            key: "module (content)".into(),
            old: digest,
            new: Some(new),
        });
    }
    Ok(Difference {
        service,
        revision: Some(deployed.revision),
        changes,
        capabilities,
    })
}

fn shown(difference: &Difference) -> String {
    use anstyle::AnsiColor::{Green, Red};
    let (minus, plus) = (Red.on_default(), Green.on_default());
    let Some(revision) = difference.revision else {
        return format!("{plus}+ {}: a new service{plus:#}\n", difference.service);
    };
    let mut out = format!("{} (revision {revision})\n", difference.service);
    for change in &difference.changes {
        if let Some(from) = &change.old {
            out.push_str(&format!("{minus}- {} = {}{minus:#}\n", change.key, printable(from)));
        }
        if let Some(to) = &change.new {
            out.push_str(&format!("{plus}+ {} = {}{plus:#}\n", change.key, printable(to)));
        }
    }
    if !difference.capabilities.is_empty() {
        out.push_str("may touch\n");
        out.push_str(&lines(&difference.capabilities));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(revision: Option<u64>) -> Difference {
        let change = |key: &str, old: Option<&str>, new: Option<&str>| Change {
            key: key.into(),
            old: old.map(Into::into),
            new: new.map(Into::into),
        };
        let changes = vec![
            change("replicas", Some("1"), Some("3")),
            change("env.A", None, Some("\"x\u{1b}[2J\"")),
        ];
        Difference {
            service: "hello".into(),
            revision,
            changes,
            capabilities: vec![CapabilityView {
                change: "added".into(),
                kind: "outbound".into(),
                name: "https://payments.example.test".into(),
                asks: true,
            }],
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn each_difference_is_shown_with_both_values() {
        insta::assert_snapshot!("diff_text", plain(&shown(&difference(Some(2)))));
        insta::assert_json_snapshot!("diff_json", List::of(vec![difference(Some(2))]));
        assert_eq!(plain(&shown(&difference(None))), "+ hello: a new service\n");
    }
}
