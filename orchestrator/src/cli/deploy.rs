//! `deploy`: from files to a wish the daemon has taken, and on until it is true. Every mistake of every file is
//! told before anything is changed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};

use super::check::{self, Good};
use super::client::{Client, with_query};
use super::codes;
use super::exit::Exit;
use super::follow::{self, conclude};
use super::progress::{Progress, Step};
use super::report::{Failure, Report};
use super::seams;
use super::session::Session;
use super::source::{self, ModuleFile, Source};
use super::units::{parse_duration, size};
use crate::model::ServiceSpec;
use crate::model::views::{DeployAnswer, DeployRequest, List, RolloutView, ServiceView};

/// Waiting for a revision ends after this, whatever its own deadlines say.
pub const WAIT: &str = "5m";

/// `narae deploy`.
#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// Service files, directories of them, or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Check everything, also on the daemon, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until the new revision is healthy
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = WAIT, value_parser = parse_duration)]
    pub timeout: Duration,
    /// Set a value over the file's, as limits.memory=64MiB; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Delete services that no file of the directory describes
    #[arg(long)]
    pub prune: bool,
    /// Fail unless this is the revision that is wanted now; 0: the service must not exist
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,
}

/// One service, checked and with its module in hand.
#[derive(Clone, Debug)]
pub struct Ready {
    pub spec: ServiceSpec,
    pub source: Source,
    pub module: ModuleFile,
}

/// What became of one service; the JSON of `deploy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Deployed {
    service: String,
    revision: u64,
    previous: Option<u64>,
    changed: bool,
    /// `done`, `stopped` (no replicas are wanted), `refused`, `running` (not waited for, or not to the end), `checked` (`--dry-run`).
    state: String,
}

/// Deploys.
///
/// # Errors
/// As the exit codes say: 9 before anything is changed, 8 and 1 for a refused revision, 7 when waiting took too long.
pub async fn deploy(session: &Session, args: DeployArgs) -> Result<Exit, Failure> {
    if args.prune && !args.files.iter().any(|f| f.is_dir()) {
        return Err(Failure::new(
            Exit::Usage,
            codes::VALUE,
            "`--prune` needs a directory: a file says nothing about others",
        )
        .help("give the directory that holds all service files"));
    }
    let ready = read_all(session, &args.files, &args.set)?;
    if args.if_revision.is_some() && ready.len() > 1 {
        return Err(Failure::new(
            Exit::Usage,
            codes::VALUE,
            "`--if-revision` is for one service file",
        ));
    }
    let client = session.client().await?;
    let mut progress = Progress::of(session);
    for one in &ready {
        upload(&client, one, &mut progress).await?;
    }
    // With several files, ask for the verdict on each before the first is changed.
    if args.dry_run || ready.len() > 1 {
        let checked = ask_all(&client, &ready, &args).await?;
        if args.dry_run {
            progress.clear();
            report(session, &checked)?;
            session.note("nothing was changed (--dry-run)");
            return Ok(Exit::Done);
        }
    }
    let mut deployed = Vec::new();
    for one in &ready {
        let answer = ask(&client, one, &args, false).await?;
        let note = (!answer.changed).then(|| "nothing to change".to_owned());
        progress.show(Step {
            revision: Some(answer.revision),
            ..Step::of(&answer.service, "accepted", note)
        });
        deployed.push((one, row(answer, "running")));
    }
    let waited = match args.no_wait {
        true => Ok(()),
        false => wait_all(&client, &mut deployed, args.timeout, &mut progress).await,
    };
    progress.clear();
    let rows: Vec<Deployed> = deployed.into_iter().map(|(_, row)| row).collect();
    report(session, &rows)?;
    waited?;
    if args.prune {
        prune(session, &client, &ready).await?;
    }
    match rows.as_slice() {
        [one] if args.no_wait => session.next(&format!("narae rollout status {}", one.service)),
        [one] if one.state == "stopped" => session.next(&format!("narae scale {} 1", one.service)),
        [one] => session.next(&format!("narae call {} /", one.service)),
        _ => session.next("narae list"),
    }
    Ok(Exit::Done)
}

/// Waits for each; the first that fails decides the end, after all have been seen.
async fn wait_all(
    client: &Client,
    deployed: &mut [(&Ready, Deployed)],
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut failed: Option<Failure> = None;
    // One limit for all of them together.
    let end = tokio::time::Instant::now() + limit;
    for (ready, row) in deployed.iter_mut() {
        let limit = end.saturating_duration_since(tokio::time::Instant::now());
        let outcome = follow::revision(client, &row.service, row.revision, limit, progress).await;
        let ended = outcome.and_then(|outcome| conclude(&row.service, row.revision, outcome));
        match ended {
            Ok(view) if view.wanted == 0 => row.state = "stopped".into(),
            Ok(_) => row.state = "done".into(),
            Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
            Err(failure) => {
                if matches!(failure.exit, Exit::RolledBack | Exit::Failed) {
                    row.state = "refused".into();
                }
                let failure = without_rollback(failure, &ready.spec);
                match &mut failed {
                    Some(first) => first.reports.extend(failure.reports),
                    None => failed = Some(failure),
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// With `auto_rollback = false` nothing was rolled back, whatever served before.
fn without_rollback(failure: Failure, spec: &ServiceSpec) -> Failure {
    if failure.exit == Exit::RolledBack && !spec.rollout.auto_rollback {
        return Failure::new(
            Exit::Failed,
            codes::REFUSED,
            format!("the new revision of {} was refused; auto_rollback is off", spec.name),
        )
        .help(format!("go back with `narae rollout undo {}`", spec.name));
    }
    failure
}

fn row(answer: DeployAnswer, state: &str) -> Deployed {
    Deployed {
        service: answer.service,
        revision: answer.revision,
        previous: answer.previous,
        changed: answer.changed,
        state: state.into(),
    }
}

fn report(session: &Session, rows: &[Deployed]) -> Result<(), Failure> {
    session.items(
        rows,
        "nothing to deploy",
        |row| row.service.clone(),
        |rows, _| rows.iter().map(sentence).collect(),
    )
}

/// One line; a refusal is told as an error.
fn sentence(row: &Deployed) -> String {
    let Deployed {
        service,
        revision,
        previous,
        changed,
        state,
    } = row;
    let before = previous
        .filter(|p| p != revision)
        .map_or(String::new(), |p| format!(", revision {p} before"));
    match (state.as_str(), changed) {
        ("checked", true) => format!("{service}: would become revision {revision}{before}\n"),
        ("checked", false) => format!("{service}: nothing would change, revision {revision}\n"),
        ("done", true) => format!("{service} revision {revision} is healthy{before}\n"),
        ("done", false) => format!("{service} revision {revision} is healthy, nothing changed\n"),
        ("stopped", _) => format!("{service} revision {revision} is deployed and wants no replicas{before}\n"),
        ("refused", _) => String::new(),
        (_, true) => format!("{service} revision {revision} is being rolled out{before}\n"),
        (_, false) => format!("{service} revision {revision}: nothing changed\n"),
    }
}

/// Reads and checks everything that can be checked without the daemon.
///
/// # Errors
/// Every mistake of every file (9).
pub fn read_all(session: &Session, files: &[PathBuf], set: &[String]) -> Result<Vec<Ready>, Failure> {
    let set = pairs(set)?;
    let (sources, mut reports) = source::service_files(files);
    let (good, mistakes) = check::services(session, sources, &set);
    reports.extend(mistakes);
    let mut ready = Vec::new();
    for Good { source, spec } in good {
        match module_of(&source, &spec, &set) {
            Ok(module) => ready.push(Ready { spec, source, module }),
            Err(report) => reports.push(report),
        }
    }
    if reports.is_empty() {
        Ok(ready)
    } else {
        Err(Failure::of(Exit::Invalid, reports))
    }
}

/// Reads the module a service file names, and says what can be said of it without the daemon.
///
/// # Errors
/// It cannot be read, or cannot be a service.
pub fn module_of(source: &Source, spec: &ServiceSpec, set: &[(String, String)]) -> Result<ModuleFile, Report> {
    let named = check::shown(&source.name, set);
    let placed = |report: Report| match seams::place(&source.text, "module") {
        Some((line, column)) => report.at(named.clone(), line, column),
        None => report.file(named.clone()),
    };
    let module = source::module(&source.dir, &spec.module).map_err(placed)?;
    fit(module, spec, &named, &source.text, placed)
}

fn pairs(set: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty())?;
        Some((key.to_owned(), value.to_owned()))
    };
    let pairs = set.iter().map(|text| {
        pair(text).ok_or_else(|| {
            Failure::new(Exit::Usage, codes::VALUE, format!("`--set {text}` is not KEY=VALUE"))
                .help("write `--set limits.memory=64MiB`")
        })
    });
    pairs.collect()
}

/// What can be said of a module without the daemon: it is the pinned one, and one that can be a service.
fn fit(
    module: ModuleFile,
    spec: &ServiceSpec,
    name: &str,
    text: &str,
    placed: impl Fn(Report) -> Report,
) -> Result<ModuleFile, Report> {
    let shown = &spec.module;
    if let Some(wanted) = spec.digest.filter(|wanted| *wanted != module.digest) {
        let report = Report::new(
            codes::DIGEST,
            format!("module `{shown}` is {}, not {wanted}", module.digest),
        );
        return Err(placed(report).help(format!("if it was rebuilt, write digest = \"{}\"", module.digest)));
    }
    if !seams::inspect(&module.bytes, shown, Some((name, text)))?.kind.is_http() {
        let report = Report::new(
            codes::COMMAND,
            format!("not supported yet: deploying a command (`{shown}` has no HTTP handler)"),
        );
        return Err(placed(report).help(format!("run it to its end with `narae run {shown}`")));
    }
    Ok(module)
}

async fn upload(client: &Client, one: &Ready, progress: &mut Progress) -> Result<(), Failure> {
    let path = format!("/v1/modules/{}", one.module.digest);
    if client.exists(&path).await? {
        return Ok(());
    }
    let note = format!("{}, {}", one.spec.module, size(one.module.bytes.len() as u64));
    progress.show(Step::of(one.spec.name.as_str(), "uploading", Some(note)));
    client
        .put_bytes(&path, one.module.bytes.clone())
        .await
        .map_err(|failure| failure.file(one.source.name.clone()))
}

async fn ask(client: &Client, one: &Ready, args: &DeployArgs, dry_run: bool) -> Result<DeployAnswer, Failure> {
    let request = DeployRequest {
        toml: one.source.text.clone(),
        file: Some(one.source.name.clone()),
        digest: one.module.digest.to_string(),
        if_revision: args.if_revision,
        dry_run,
        cause: None,
    };
    let answer = client
        .json(Method::PUT, &format!("/v1/services/{}", one.spec.name), Some(&request))
        .await;
    // Also when the module was pruned between upload and deploy: nobody but us can do anything about it.
    answer.map_err(|failure: Failure| match failure.exit {
        Exit::Unknown => Failure {
            exit: Exit::Failed,
            ..failure
        },
        _ => failure,
    })
}

/// Every file's verdict of the daemon, with nothing changed.
async fn ask_all(client: &Client, ready: &[Ready], args: &DeployArgs) -> Result<Vec<Deployed>, Failure> {
    let mut rows = Vec::new();
    let mut failed: Option<Failure> = None;
    for one in ready {
        match ask(client, one, args, true).await {
            Ok(answer) => rows.push(row(answer, "checked")),
            Err(failure) if failure.exit != Exit::Invalid => return Err(failure),
            Err(failure) => match &mut failed {
                Some(first) => first.reports.extend(failure.reports),
                None => failed = Some(failure),
            },
        }
    }
    failed.map_or(Ok(rows), Err)
}

async fn prune(session: &Session, client: &Client, ready: &[Ready]) -> Result<(), Failure> {
    let kept: BTreeSet<&str> = ready.iter().map(|one| one.spec.name.as_str()).collect();
    let all: List<ServiceView> = client.get("/v1/services").await?;
    let gone: Vec<String> = all
        .items
        .into_iter()
        .filter(|s| !kept.contains(s.name.as_str()) && s.state != "deleting")
        .map(|s| s.name)
        .collect();
    if gone.is_empty() {
        session.note("nothing to prune");
        return Ok(());
    }
    session.confirm(&format!("delete {}?", gone.join(", ")))?;
    for name in gone {
        client.act(Method::DELETE, &format!("/v1/services/{name}")).await?;
        session.note(&format!("{name}: deleting"));
    }
    Ok(())
}

/// A revision's file, as `GET …/spec` gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecText {
    pub schema: u32,
    pub revision: u64,
    pub toml: String,
}

impl SpecText {
    /// Of a revision, or of the wanted one.
    ///
    /// # Errors
    /// There is none.
    pub async fn fetch(
        client: &Client,
        service: &str,
        revision: Option<u64>,
        effective: bool,
    ) -> Result<Self, Failure> {
        let query = [
            ("revision", revision.map(|n| n.to_string())),
            ("effective", effective.then(|| "true".into())),
        ];
        client
            .get(&with_query(&format!("/v1/services/{service}/spec"), &query))
            .await
    }
}

/// Waits for a revision and says how it ended; `undo` uses it too.
///
/// # Errors
/// As `deploy`.
pub async fn wait_for(
    session: &Session,
    client: &Client,
    answer: &DeployAnswer,
    limit: Duration,
) -> Result<RolloutView, Failure> {
    let mut progress = Progress::of(session);
    let outcome = follow::revision(client, &answer.service, answer.revision, limit, &mut progress).await?;
    conclude(&answer.service, answer.revision, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Globals;

    fn session() -> Session {
        Session::new(Globals {
            quiet: true,
            ..Globals::default()
        })
        .unwrap()
    }

    fn write(dir: &std::path::Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn every_mistake_of_every_file_is_told_before_a_daemon_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            write(dir.path(), "a.toml", "name = 3"),
            write(dir.path(), "b.toml", "name = \"b\"\nmodule = \"missing.wasm\"\n"),
        ];
        let failure = read_all(&session(), &files, &[]).unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        let text: String = failure.reports.iter().map(|r| r.view.rendered.as_str()).collect();
        assert!(text.contains("a.toml") && text.contains("missing.wasm"), "{text}");
    }

    #[test]
    fn a_service_in_two_files_is_told_with_both_names() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m.wat", "(component)");
        let text = "name = \"a\"\nmodule = \"m.wat\"\n";
        let files = [write(dir.path(), "a.toml", text), write(dir.path(), "b.toml", text)];
        let failure = read_all(&session(), &files, &[]).unwrap_err();
        assert!(failure.reports[0].view.message.contains("a.toml"));
        assert!(failure.reports[0].view.file.as_deref().unwrap().ends_with("b.toml"));
    }

    #[test]
    fn a_module_that_is_not_the_pinned_one_is_refused_with_both_digests() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m.wat", "(component)");
        let pinned = format!("sha256:{}", "0".repeat(64));
        let file = write(
            dir.path(),
            "a.toml",
            &format!("name = \"a\"\nmodule = \"m.wat\"\ndigest = \"{pinned}\"\n"),
        );
        let failure = read_all(&session(), &[file], &[]).unwrap_err();
        assert_eq!(failure.reports[0].view.code, codes::DIGEST);
        assert!(failure.reports[0].view.message.contains(&pinned));
    }

    #[test]
    fn a_value_without_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "a.toml", "name = \"a\"\nmodule = \"m.wat\"\n");
        for bad in ["memory", "=1"] {
            let failure = read_all(&session(), std::slice::from_ref(&file), &[bad.into()]).unwrap_err();
            assert_eq!(failure.reports[0].view.code, codes::VALUE);
        }
    }

    #[test]
    fn what_happened_is_one_sentence() {
        let row = |changed, previous, state: &str| {
            sentence(&Deployed {
                service: "hello".into(),
                revision: 2,
                previous,
                changed,
                state: state.into(),
            })
        };
        assert_eq!(
            row(true, Some(1), "done"),
            "hello revision 2 is healthy, revision 1 before\n"
        );
        assert_eq!(row(true, None, "done"), "hello revision 2 is healthy\n");
        assert_eq!(
            row(false, Some(2), "done"),
            "hello revision 2 is healthy, nothing changed\n"
        );
        assert_eq!(
            row(true, Some(1), "checked"),
            "hello: would become revision 2, revision 1 before\n"
        );
    }
}
