//! Verbs on configuration: check, schema and fmt work on files without a daemon; show and reload ask it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::session::{Format, Session};
use super::source::{self, Source};
use super::table::render;
use super::{check, seams, session};
use crate::model::views::Problems;

/// `narae config …`.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigVerb {
    /// Check files without a daemon; every mistake at once
    Check(CheckArgs),
    /// Print the JSON Schema of a file
    Schema(SchemaArgs),
    /// Show the daemon's configuration
    Show(ShowArgs),
    /// Put service files into the usual form
    Fmt(FmtArgs),
    /// Make the daemon read its file again
    Reload,
}

/// `narae config check`, `narae validate`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Files, directories of them, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// What the files are; read from their tables when absent
    #[arg(long, value_name = "WHAT")]
    pub kind: Option<SchemaOf>,
}

#[derive(Clone, Debug, Args)]
pub struct SchemaArgs {
    /// Which file
    #[arg(default_value = "service")]
    pub of: SchemaOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    Service,
    Node,
}

#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Where each value came from: flag, environment, file or default
    #[arg(long)]
    pub origin: bool,
}

#[derive(Clone, Debug, Args)]
pub struct FmtArgs {
    /// Files, directories of them, or - for standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Change nothing; end with 10 when a file is not in the usual form
    #[arg(long)]
    pub check: bool,
}

/// `GET /v1/config`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConfigView {
    schema: u32,
    toml: String,
    origins: Vec<Origin>,
}

/// One value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    key: String,
    value: serde_json::Value,
    from: String,
}

/// `POST /v1/config/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reloaded {
    schema: u32,
    changed: Vec<String>,
    needs_restart: Vec<String>,
}

/// Runs a verb of the group.
///
/// # Errors
/// A file is invalid (9), or the daemon is gone.
pub async fn config(session: &Session, verb: ConfigVerb) -> Result<Exit, Failure> {
    match verb {
        ConfigVerb::Check(args) => check(session, &args),
        ConfigVerb::Schema(args) => schema(session, args.of),
        ConfigVerb::Fmt(args) => fmt(session, &args),
        ConfigVerb::Show(args) => show(session, &args).await,
        ConfigVerb::Reload => reload(session).await,
    }
}

/// Checks files. The problems are the result here, so `-o json` prints them to standard output.
///
/// # Errors
/// A file is invalid (9).
pub fn check(session: &Session, args: &CheckArgs) -> Result<Exit, Failure> {
    let (sources, mut reports) = source::service_files(&args.files);
    let count = sources.len();
    let (nodes, services): (Vec<Source>, Vec<Source>) = sources
        .into_iter()
        .partition(|s| args.kind.unwrap_or_else(|| kind_of(&s.text)) == SchemaOf::Node);
    let (good, mistakes) = check::services(session, services, &[]);
    reports.extend(mistakes);
    for one in good {
        let module = &one.spec.module;
        if !module.contains("://") && !one.source.dir.join(module).exists() {
            // A file is often checked where the module was not built.
            session.note(&format!(
                "{}: `{module}` is not there; deploy will need it",
                one.source.name
            ));
        } else if let Err(found) = super::deploy::module_of(&one.source, &one.spec, &[]) {
            reports.extend(found);
        }
    }
    for node in nodes {
        match seams::check_node(&node.text, &node.name) {
            Ok(warnings) => session.tell(&warnings),
            Err(mistakes) => reports.extend(mistakes),
        }
    }
    let exit = if reports.is_empty() { Exit::Done } else { Exit::Invalid };
    if session.format.is_json() {
        session.json(&Problems {
            schema: 1,
            errors: reports.drain(..).map(|r| *r.view).collect(),
        })?;
        return Ok(exit);
    }
    if exit == Exit::Invalid {
        return Err(Failure::of(exit, reports));
    }
    session.note(&format!(
        "{count} {} right",
        if count == 1 { "file is" } else { "files are" }
    ));
    Ok(exit)
}

/// A node file has one of its own tables and no service name or module.
fn kind_of(text: &str) -> SchemaOf {
    const NODE: [&str; 8] = ["node", "http", "admin", "tls", "engine", "policy", "metrics", "cluster"];
    let Ok(table) = text.parse::<toml::Table>() else {
        return SchemaOf::Service;
    };
    let service = table.contains_key("name") || table.contains_key("module");
    if !service
        && NODE
            .iter()
            .any(|key| table.get(*key).is_some_and(toml::Value::is_table))
    {
        SchemaOf::Node
    } else {
        SchemaOf::Service
    }
}

fn schema(session: &Session, of: SchemaOf) -> Result<Exit, Failure> {
    session.print(&format!("{:#}\n", seams::schema(of)))?;
    Ok(Exit::Done)
}

fn fmt(session: &Session, args: &FmtArgs) -> Result<Exit, Failure> {
    let invalid = |reports| Failure::of(Exit::Invalid, reports);
    let (sources, mut reports) = source::service_files(&args.files);
    let mut formed = Vec::new();
    for source in sources {
        match seams::format(&source.text, &source.name) {
            Ok(text) => formed.push((source, text)),
            Err(found) => reports.extend(found),
        }
    }
    if !reports.is_empty() {
        return Err(invalid(reports));
    }
    let mut exit = Exit::Done;
    for (source, text) in formed {
        let same = source.text == text;
        if source.name == "<stdin>" && !args.check {
            session.print(&text)?;
        } else if !same && args.check {
            session.print(&format!("{}\n", source.name))?;
            exit = Exit::Differences;
        } else if !same {
            write_whole(&source.name, &text)?;
            session.note(&format!("{}: formatted", source.name));
        }
    }
    Ok(exit)
}

/// Replaces a file in one step: a crash leaves the old text or the new.
fn write_whole(name: &str, text: &str) -> Result<(), Failure> {
    let path = std::path::Path::new(name);
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| std::path::Path::new("."));
    let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut file| {
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        if let Ok(meta) = std::fs::metadata(path) {
            file.as_file().set_permissions(meta.permissions())?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|e| e.error)
    });
    written.map_err(|e| {
        Failure::new(
            Exit::Failed,
            codes::WRITE,
            format!("cannot write `{name}`: {}", super::units::io_words(&e)),
        )
    })
}

async fn show(session: &Session, args: &ShowArgs) -> Result<Exit, Failure> {
    let view: ConfigView = session.client().await?.get("/v1/config").await?;
    match session.format {
        Format::Json | Format::JsonLines => session.json(&view)?,
        _ if args.origin => session.print(&origins(&view.origins))?,
        _ => session.print(&view.toml)?,
    }
    Ok(Exit::Done)
}

fn origins(all: &[Origin]) -> String {
    let rows = all.iter().map(|o| {
        let value = match &o.value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        vec![o.key.clone().into(), value.into(), o.from.clone().into()]
    });
    render(&["KEY", "VALUE", "FROM"], rows.collect())
}

async fn reload(session: &Session) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let answer: Reloaded = client.json(Method::POST, "/v1/config/reload", Some(&json!({}))).await?;
    if session.format.is_json() {
        session.json(&answer)?;
        return Ok(Exit::Done);
    }
    if answer.changed.is_empty() && answer.needs_restart.is_empty() {
        session::say("nothing changed");
    }
    for key in &answer.changed {
        session.print(&format!("{key}: changed\n"))?;
    }
    for key in &answer.needs_restart {
        session.print(&format!("{key}: needs a restart of the daemon\n"))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_file_is_told_from_a_service_file() {
        assert_eq!(kind_of("[http]\nlisten = []"), SchemaOf::Node);
        assert_eq!(kind_of("name = \"a\"\n[http]\n"), SchemaOf::Service);
        assert_eq!(kind_of("[limits]\n"), SchemaOf::Service);
        assert_eq!(kind_of("not toml"), SchemaOf::Service);
        assert_eq!(kind_of("http = 3"), SchemaOf::Service);
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write_whole(&path.display().to_string(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(write_whole("/none/such/a.toml", "x").is_err());
    }

    #[test]
    fn origins_are_a_table() {
        let origin = Origin {
            key: "http.listen".into(),
            value: json!(["127.0.0.1:8080"]),
            from: "default".into(),
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&origins(&[origin])).to_string(), @r#"
        KEY          VALUE               FROM
        http.listen  ["127.0.0.1:8080"]  default
        "#);
    }
}
