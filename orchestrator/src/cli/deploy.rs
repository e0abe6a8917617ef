//! `deploy`: from files to a wish the daemon has taken, and on until it is true. Every mistake of every file is
//! told before anything is changed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};

use super::act;
use super::check::{self, Good};
use super::client::{Client, with_query};
use super::codes;
use super::exit::Exit;
use super::follow::{self, conclude};
use super::jobs;
use super::progress::{Progress, Step};
use super::report::{Failure, Report};
use super::seams;
use super::session::Session;
use super::source::{self, ModuleFile, Source};
use super::units::{parse_duration, printable, size};
use crate::model::service::{Strategy, World};
use crate::model::views::{CapabilityView, DeployAnswer, DeployRequest, List, RolloutView, ServiceView};
use crate::model::{ServiceName, ServiceSpec};

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
    /// How the new revision replaces the old, in place of the file's rollout.strategy
    #[arg(long, value_name = "STRATEGY", value_parser = strategy)]
    pub strategy: Option<Strategy>,
    /// Set a value over the file's, as limits.memory=64MiB; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Delete services that no file of the directory describes
    #[arg(long)]
    pub prune: bool,
    /// Let a revision through that wants more than the last one: interfaces, origins, secrets, volumes
    #[arg(long)]
    pub accept: bool,
    /// Fail unless this is the revision that is wanted now; 0: the service must not exist
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,
}

fn strategy(text: &str) -> Result<Strategy, String> {
    Strategy::of(text).ok_or_else(|| "expected rolling, canary, blue-green or recreate".into())
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
    /// `done`, `stopped` (no replicas are wanted), `refused`, `succeeded`, `failed` and `scheduled` (a command), `running` (not waited for, or not to the end), `checked` (`--dry-run`).
    state: String,
    /// What it may touch beyond the last revision, and no more.
    capabilities: Vec<CapabilityView>,
    accepted_by: Option<String>,
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
    // The question comes before anything is changed: a no leaves everything as it was.
    let surplus = match args.prune {
        true => surplus(session, &client, &ready, args.dry_run).await?,
        false => Vec::new(),
    };
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
            for name in &surplus {
                session.note(&format!("{name}: would be deleted"));
            }
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
    prune(session, &client, &surplus, &args).await?;
    match rows.as_slice() {
        [one] if args.no_wait => session.next(&format!("narae rollout status {}", one.service)),
        [one] if one.state == "stopped" => session.next(&format!("narae scale {} 1", one.service)),
        [one] if one.state == "succeeded" => session.next(&format!("narae logs {}", one.service)),
        [one] if one.state == "scheduled" => session.next(&format!("narae schedule next {}", one.service)),
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
        if ready.spec.is_job() {
            let which = jobs::Which::OfRevision(row.revision);
            let waited = jobs::wait(client, &row.service, which, limit, progress).await;
            match waited.and_then(|ended| jobs::conclude(&row.service, ended)) {
                Ok(Some(_)) => row.state = "succeeded".into(),
                Ok(None) => row.state = "scheduled".into(),
                Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
                Err(failure) => {
                    if matches!(failure.exit, Exit::RolledBack | Exit::Failed) {
                        row.state = "failed".into();
                    }
                    add(&mut failed, failure);
                }
            }
            continue;
        }
        let outcome = follow::revision(client, &row.service, row.revision, limit, progress).await;
        let ended = outcome.and_then(|outcome| conclude(&row.service, row.revision, outcome));
        match ended {
            Ok(view) if view.wanted == 0 && !ready.spec.schedules.is_empty() => row.state = "scheduled".into(),
            Ok(view) if view.wanted == 0 => row.state = "stopped".into(),
            Ok(_) => row.state = "done".into(),
            Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
            Err(failure) => {
                if matches!(failure.exit, Exit::RolledBack | Exit::Failed) {
                    row.state = "refused".into();
                }
                add(&mut failed, without_rollback(failure, &ready.spec));
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The first decides the exit code; all are told.
fn add(failed: &mut Option<Failure>, failure: Failure) {
    match failed {
        Some(first) => first.reports.extend(failure.reports),
        None => *failed = Some(failure),
    }
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
        capabilities: answer.capabilities,
        accepted_by: answer.accepted_by,
    }
}

fn report(session: &Session, rows: &[Deployed]) -> Result<(), Failure> {
    session.items(
        rows,
        "nothing to deploy",
        |row| row.service.clone(),
        |rows, _| rows.iter().map(|row| sentence(row) + &beyond(row)).collect(),
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
        ..
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
        ("succeeded", _) => format!("{service} revision {revision} ran and succeeded{before}\n"),
        ("scheduled", _) => format!("{service} revision {revision} is deployed and runs by its schedule{before}\n"),
        ("refused" | "failed", _) => String::new(),
        (_, true) => format!("{service} revision {revision} is being rolled out{before}\n"),
        (_, false) => format!("{service} revision {revision}: nothing changed\n"),
    }
}

/// What it may touch that it could not before; of a first revision what would be asked about.
fn beyond(row: &Deployed) -> String {
    if row.state == "refused" {
        return String::new();
    }
    let first = row.previous.is_none();
    let shown: Vec<_> = row.capabilities.iter().filter(|c| !first || c.asks).cloned().collect();
    let mut out = lines(&shown);
    if let Some(by) = &row.accepted_by {
        out.push_str(&format!("  accepted by {}\n", printable(by)));
    }
    out
}

/// One line for each: `+ outbound https://payments.example.test`.
pub fn lines(capabilities: &[CapabilityView]) -> String {
    let line = |c: &CapabilityView| {
        let (sign, note) = match (c.change.as_str(), c.asks) {
            ("added", true) => ('+', ""),
            ("added", false) => ('+', " (leads nowhere outside)"),
            _ => ('-', ""),
        };
        format!("  {sign} {} {}{note}\n", c.kind, printable(&c.name))
    };
    capabilities.iter().map(line).collect()
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
            Ok((module, spec)) => ready.push(Ready { spec, source, module }),
            Err(found) => reports.extend(found),
        }
    }
    if reports.is_empty() {
        Ok(ready)
    } else {
        Err(Failure::of(Exit::Invalid, reports))
    }
}

/// Reads the module a service file names, and says what can be said of it without the daemon. The spec is the file's, as it is
/// with that module.
///
/// # Errors
/// It cannot be read, cannot be a service, or the file says what means nothing to such a module.
pub fn module_of(
    source: &Source,
    spec: &ServiceSpec,
    set: &[(String, String)],
) -> Result<(ModuleFile, ServiceSpec), Vec<Report>> {
    let named = check::shown(&source.name, set);
    let placed = |report: Report| match seams::place(&source.text, "module") {
        Some((line, column)) => report.at(named.clone(), line, column),
        None => report.file(named.clone()),
    };
    let module = source::module(&source.dir, &spec.module).map_err(|report| vec![placed(report)])?;
    let command = fit(&module, spec, &named, &source.text, placed).map_err(|report| vec![report])?;
    let checked = seams::check_service_of(&source.text, &named, command)?;
    Ok((module, checked.spec))
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

/// What can be said of a module without the daemon: it is the pinned one, and of the world the file names. True: a command.
fn fit(
    module: &ModuleFile,
    spec: &ServiceSpec,
    name: &str,
    text: &str,
    placed: impl Fn(Report) -> Report,
) -> Result<bool, Report> {
    let shown = &spec.module;
    if let Some(wanted) = spec.digest.filter(|wanted| *wanted != module.digest) {
        let report = Report::new(
            codes::DIGEST,
            format!("module `{shown}` is {}, not {wanted}", module.digest),
        );
        return Err(placed(report).help(format!("if it was rebuilt, write digest = \"{}\"", module.digest)));
    }
    let command = !seams::inspect(&module.bytes, shown, Some((name, text)))?.kind.is_http();
    let (says, is) = match (spec.world, command) {
        (World::Command, false) => ("command", "serves http"),
        (World::Http, true) => ("http", "is a command"),
        _ => return Ok(command),
    };
    let report = Report::new(
        codes::WORLD,
        format!("the file says world = \"{says}\", module `{shown}` {is}"),
    );
    Err(placed(report).help("leave `world` out: the module decides"))
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
        accept: args.accept,
        strategy: args.strategy.map(|s| s.as_str().to_owned()),
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
            Err(failure) if !matches!(failure.exit, Exit::Invalid | Exit::CapabilitiesWanted) => return Err(failure),
            Err(failure) => match &mut failed {
                Some(first) => {
                    // A mistake is mended first; then there is something to accept.
                    if failure.exit == Exit::Invalid {
                        first.exit = Exit::Invalid;
                    }
                    first.reports.extend(failure.reports);
                }
                None => failed = Some(failure),
            },
        }
    }
    failed.map_or(Ok(rows), Err)
}

/// The services that no file describes, when they may be deleted.
async fn surplus(
    session: &Session,
    client: &Client,
    ready: &[Ready],
    dry_run: bool,
) -> Result<Vec<ServiceName>, Failure> {
    let kept: BTreeSet<&str> = ready.iter().map(|one| one.spec.name.as_str()).collect();
    let all: List<ServiceView> = client.get("/v1/services").await?;
    let others = all
        .items
        .iter()
        .filter(|s| !kept.contains(s.name.as_str()) && s.state != "deleting");
    let surplus: Vec<ServiceName> = others.filter_map(|s| s.name.parse().ok()).collect();
    if surplus.is_empty() {
        session.note("nothing to prune");
    } else if !dry_run {
        let names: Vec<&str> = surplus.iter().map(ServiceName::as_str).collect();
        session.confirm(&format!("deploy, then delete {}?", names.join(", ")))?;
    }
    Ok(surplus)
}

/// Deletes them and, unless told not to wait, sees them go.
async fn prune(session: &Session, client: &Client, surplus: &[ServiceName], args: &DeployArgs) -> Result<(), Failure> {
    for name in surplus {
        let deleted = client.act(Method::DELETE, &format!("/v1/services/{name}")).await;
        // Somebody else was faster: gone is what was asked for.
        match deleted {
            Err(failure) if failure.exit == Exit::Unknown => {}
            other => other?,
        }
    }
    if !args.no_wait {
        let mut progress = Progress::of(session);
        act::gone(client, surplus, args.timeout, &mut progress).await?;
        progress.clear();
    }
    for name in surplus {
        session.note(&format!(
            "{name}: {}",
            if args.no_wait { "deleting" } else { "deleted" }
        ));
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
    fn what_is_wanted_beyond_the_last_revision_is_listed_below() {
        let capability = |change: &str, kind: &str, name: &str, asks| CapabilityView {
            change: change.into(),
            kind: kind.into(),
            name: name.into(),
            asks,
        };
        let mut row = Deployed {
            service: "hello".into(),
            revision: 2,
            previous: Some(1),
            changed: true,
            state: "done".into(),
            capabilities: vec![
                capability("added", "outbound", "https://a.test", true),
                capability("added", "interface", "wasi:clocks/wall-clock 0.2", false),
                capability("removed", "secret", "db", false),
            ],
            accepted_by: Some("uid 0 (root)".into()),
        };
        insta::assert_snapshot!(beyond(&row), @r"
        + outbound https://a.test
        + interface wasi:clocks/wall-clock 0.2 (leads nowhere outside)
        - secret db
        accepted by uid 0 (root)
        ");
        insta::assert_json_snapshot!("deployed_json", List::of(vec![row.clone()]));
        (row.previous, row.accepted_by) = (None, None);
        assert_eq!(
            beyond(&row),
            "  + outbound https://a.test\n",
            "of a first one what matters"
        );
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
                capabilities: Vec::new(),
                accepted_by: None,
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
