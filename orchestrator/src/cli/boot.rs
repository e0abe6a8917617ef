//! Starting a node from the command line: `serve`, `demo` and `run`. Reads files, variables and flags, makes the control
//! runtime, waits for signals. What a node is made of is `daemon`'s business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::wasm::{Stdio, WasmBackend, WasmOptions};
use narae_runtime::{Allocator, Backend, CallError, Grants, Guest, Limits, LogSink, PrepareError, Stream};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Exit;
use super::report::{Failure, Report};
use super::run::{DemoArgs, Launch, ServeArgs};
use super::session::{Session, say};
use crate::config::{self, Code, Problem};
use crate::daemon::settings::{Loaded, Loader};
use crate::daemon::{self, Daemon, DaemonError};
use crate::logs::Followed;
use crate::model::views::{DeployAnswer, DeployRequest, RolloutView};

/// Requests in flight get so long when the daemon is told to stop; a second signal ends it at once.
const DRAIN: Duration = Duration::from_secs(30);

/// Runs the daemon until SIGTERM or the keyboard ends it; SIGHUP reads the node file again.
///
/// # Errors
/// It cannot start.
pub fn serve(session: &Session, args: ServeArgs) -> Result<Exit, Failure> {
    log_to_stderr(session, args.dev);
    let temporary = args
        .dev
        .then(short_temporary_dir)
        .transpose()
        .map_err(|e| failed("make a temporary directory", &e))?;
    let loader = loader(&args);
    let loaded = loader().map_err(invalid)?;
    let data_dir = match (&temporary, &args.data_dir, &loaded.0.data_dir) {
        (_, Some(dir), _) => dir.clone(),
        (Some(dir), None, _) => dir.path().to_owned(),
        (None, None, Some(dir)) => PathBuf::from(dir),
        (None, None, None) => default_data_dir()?,
    };
    let runtime = control_runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let daemon = start(loaded, loader, data_dir).await?;
        announce(&daemon);
        while let Asked::Reload = signals.next().await {
            reload(&daemon);
        }
        say("stopping: requests in flight are finished");
        tokio::select! {
            () = daemon.stop(DRAIN) => {}
            _ = signals.next() => {}
        }
        Ok(Exit::Done)
    })
}

/// The demonstration, in a directory of its own.
///
/// # Errors
/// It cannot start; that requests were lost is `Exit::Failed`.
pub fn demo(session: &Session, args: DemoArgs) -> Result<Exit, Failure> {
    log_to_stderr(session, false);
    let dir = short_temporary_dir().map_err(|e| failed("make a temporary directory", &e))?;
    let runtime = control_runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let loader = embedded("127.0.0.1:0");
        let daemon = start(loader().map_err(invalid)?, loader, dir.path().join("data")).await?;
        let mut print = |line: &str| {
            let _ = session.print(&format!("{line}\n"));
        };
        let running = crate::demo::run(&daemon, u64::from(args.seconds.unwrap_or(9)), &mut print);
        let ended = tokio::select! {
            ended = running => ended,
            _ = signals.next() => return Ok(Exit::Interrupted),
        };
        if args.keep {
            announce(&daemon);
            signals.next().await;
        }
        daemon.stop(Duration::from_secs(5)).await;
        match ended {
            Ok(()) => Ok(Exit::Done),
            Err(fault) => Err(Failure::new(Exit::Failed, Code::Internal.as_str(), fault)),
        }
    });
    if args.keep {
        let _ = dir.keep();
    }
    result
}

/// Serves one HTTP component in the foreground with an embedded node, until the keyboard ends it.
///
/// # Errors
/// It cannot start, or the component is refused.
pub fn run_http(session: &Session, launch: Launch) -> Result<Exit, Failure> {
    log_to_stderr(session, true);
    let dir = short_temporary_dir().map_err(|e| failed("make a temporary directory", &e))?;
    let runtime = control_runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let loader = embedded(&launch.listen.to_string());
        let daemon = start(loader().map_err(invalid)?, loader, dir.path().join("data")).await?;
        deploy_here(&daemon, &launch).await?;
        for address in &daemon.http {
            say(&format!("serving {} on http://{address}", launch.shown));
        }
        let followed = follow_logs(&daemon, launch.name.as_str());
        tokio::select! {
            _ = signals.next() => {}
            () = followed => {}
        }
        daemon.stop(DRAIN).await;
        Ok(Exit::Done)
    })
}

/// Runs a command to its end: `Exit::Guest` with its own code.
///
/// # Errors
/// narae itself failed.
pub fn run_command(session: &Session, launch: Launch) -> Result<Exit, Failure> {
    log_to_stderr(session, true);
    let broke = |what: &str| Failure::new(Exit::RunFailed, Code::CannotCompile.as_str(), what.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| failed("make a runtime", &e))?;
    let code = runtime.block_on(async {
        let budget = daemon::machine_memory() / 2;
        // Nothing is kept: a key for this run alone, and no cache.
        let compiler = daemon::compiler(
            std::env::current_exe().map_err(|e| broke(&e.to_string()))?,
            None,
            [0; 32],
            None,
        )
        .map_err(|e| broke(&e.to_string()))?;
        let options = WasmOptions {
            allocator: Allocator::OnDemand,
            memory_budget_bytes: budget,
            compile: Arc::new(compiler),
            outbound: None,
        };
        let backend = WasmBackend::new(options).map_err(|e| broke(&crate::agent::report(&e)))?;
        let prepared = backend.prepare(&launch.artifact).await.map_err(|error| {
            let code = match error {
                PrepareError::Imports(_) => Code::ImportNotOffered,
                _ => Code::CannotCompile,
            };
            let text = format!("{}: {}", launch.shown, crate::agent::report(&error));
            Failure::new(Exit::RunFailed, code.as_str(), text)
        })?;
        let limits = Limits {
            memory_bytes: launch.memory_bytes.unwrap_or(Limits::default().memory_bytes),
            timeout: launch.timeout.unwrap_or(Duration::MAX),
            cpu_time: Duration::MAX,
            ..Limits::default()
        };
        let guest = Guest {
            prepared,
            label: launch.name.as_str().into(),
            limits,
            grants: Grants {
                env: launch.env.clone(),
                args: launch.args.clone(),
                ..Grants::default()
            },
            logs: Arc::new(Nowhere),
        };
        tokio::select! {
            code = backend.run(guest, Stdio::inherit()) => code.map_err(|error| match error {
                CallError::Trap(report) => {
                    let frames: String = report.backtrace.iter().map(|f| format!("\n    {f}")).collect();
                    broke(&format!("the guest trapped: {}{frames}", report.reason))
                }
                other => broke(&other.to_string()),
            }),
            _ = tokio::signal::ctrl_c() => Ok(130),
        }
    })?;
    // A guest that ignores us must not hold up the end of the process.
    runtime.shutdown_background();
    Ok(Exit::Guest(u8::try_from(code & 0xff).unwrap_or(1)))
}

/// A command's output goes to the terminal, not into a ring.
struct Nowhere;

impl LogSink for Nowhere {
    fn line(&self, _: Stream, _: &[u8]) {}
}

async fn start(loaded: Loaded, loader: Loader, data_dir: PathBuf) -> Result<Daemon, Failure> {
    let program = std::env::current_exe().map_err(|e| failed("find this program", &e))?;
    let options = daemon::Options {
        config: loaded,
        loader,
        data_dir,
        program,
    };
    Daemon::start(options).await.map_err(cannot_start)
}

fn announce(daemon: &Daemon) {
    for address in &daemon.http {
        say(&format!(
            "narae {} serves on http://{address}",
            env!("CARGO_PKG_VERSION")
        ));
    }
    for address in &daemon.https {
        say(&format!(
            "narae {} serves on https://{address}",
            env!("CARGO_PKG_VERSION")
        ));
    }
    say(&format!(
        "admin socket {}; allocator {}",
        daemon.socket.display(),
        daemon.allocator
    ));
    if let Some(admin) = daemon.admin {
        say(&format!(
            "admin API on {admin}, token in admin.token of the data directory"
        ));
    }
}

fn reload(daemon: &Daemon) {
    match daemon.settings.reload() {
        Ok((changed, restart)) if changed.is_empty() && restart.is_empty() => {
            say("configuration read again: no change")
        }
        Ok((changed, restart)) => {
            say(&format!(
                "configuration read again: changed {}; needs a restart: {}",
                list(&changed),
                list(&restart)
            ));
        }
        Err(problems) => {
            say("configuration not changed:");
            say(&config::render_all(&problems, false));
        }
    }
}

fn list(keys: &[String]) -> String {
    if keys.is_empty() {
        "nothing".into()
    } else {
        keys.join(", ")
    }
}

/// Uploads and deploys through the node's own admin socket: the same door as everyone's.
async fn deploy_here(daemon: &Daemon, launch: &Launch) -> Result<(), Failure> {
    let client = super::client::Client::at_socket(&daemon.socket);
    let digest = launch.artifact.digest.to_string();
    client
        .put_bytes(&format!("/v1/modules/{digest}"), launch.artifact.bytes.clone())
        .await?;
    let file = Some(launch.shown.clone());
    let request = DeployRequest {
        toml: launch.toml(),
        file,
        digest,
        if_revision: None,
        dry_run: false,
        cause: Some("run".into()),
        accept: true,
        strategy: None,
    };
    let path = format!("/v1/services/{}", launch.name);
    let answer: DeployAnswer = client.json(http::Method::PUT, &path, Some(&request)).await?;
    loop {
        let rollout: RolloutView = client.get(&format!("{path}/rollout")).await?;
        match rollout.state.as_str() {
            "done" => return Ok(()),
            "refused" if rollout.to == answer.revision => {
                let text = format!(
                    "{} does not start: {}",
                    launch.shown,
                    rollout.reason.unwrap_or_default()
                );
                return Err(Failure::new(Exit::Failed, super::codes::REFUSED, text));
            }
            // Serving is enough: nobody waits for the rest of a trial here.
            _ if rollout.new_serving > 0 => return Ok(()),
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The guest's lines, as they come.
async fn follow_logs(daemon: &Daemon, name: &str) {
    use futures::StreamExt;
    let Some(ring) = name.parse().ok().and_then(|name| daemon.logs.find(&name)) else {
        return std::future::pending().await;
    };
    let (past, live) = ring.follow(crate::logs::LogQuery::default());
    let mut all = std::pin::pin!(futures::stream::iter(past.into_iter().map(Followed::New)).chain(live));
    while let Some(followed) = all.next().await {
        if let Followed::New(entry) = followed {
            say(&entry.line);
        }
    }
    std::future::pending().await
}

/// Files in order, then `NARAE_*`, then flags; read anew at each call.
fn loader(args: &ServeArgs) -> Loader {
    let args = args.clone();
    Box::new(move || {
        let named = args.config.as_deref();
        let system = read_if_there(Path::new("/etc/narae/node.toml"))?;
        let user = user_file().map(|p| read_if_there(&p)).transpose()?.flatten();
        let project = match named {
            Some(path) => Some(read(path)?),
            None => read_if_there(Path::new("narae.toml"))?,
        };
        let env: BTreeMap<String, String> = std::env::vars().filter(|(k, _)| k.starts_with("NARAE_")).collect();
        let mut flags = Vec::new();
        if !args.listen.is_empty() {
            let text = args
                .listen
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",");
            flags.push(("http.listen".to_owned(), text));
        }
        if let Some(admin) = args.admin {
            flags.push(("admin.listen".to_owned(), admin.to_string()));
        }
        fn layer_of(file: &Option<(String, String)>) -> Option<(&str, &str)> {
            file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()))
        }
        config::layers(layer_of(&system), layer_of(&user), layer_of(&project), &env, &flags)
    })
}

/// A node that is part of another verb: nothing but defaults and one address.
fn embedded(listen: &str) -> Loader {
    let flags = vec![("http.listen".to_owned(), listen.to_owned())];
    Box::new(move || config::layers(None, None, None, &BTreeMap::new(), &flags))
}

fn user_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("narae/node.toml"))
}

fn read_if_there(path: &Path) -> Result<Option<(String, String)>, Vec<Problem>> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

fn read(path: &Path) -> Result<(String, String), Vec<Problem>> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(vec![Problem::new(
            Code::CannotRead,
            format!("cannot read node file `{name}`: {error}"),
        )]),
    }
}

/// The service manager's directory if it gave one, else the user's.
fn default_data_dir() -> Result<PathBuf, Failure> {
    if let Some(dir) = std::env::var_os("STATE_DIRECTORY") {
        return Ok(PathBuf::from(dir));
    }
    super::find::Surroundings::read(None).user_data_dir().ok_or_else(|| {
        let text = "no data directory: neither HOME nor XDG_STATE_HOME is set";
        Failure::new(Exit::Failed, Code::BadNodePath.as_str(), text).help("name one with --data-dir")
    })
}

fn short_temporary_dir() -> std::io::Result<tempfile::TempDir> {
    // A socket path has 107 bytes: a long TMPDIR would leave no room for its name.
    let usual = std::env::temp_dir();
    let base = if usual.as_os_str().len() < 60 {
        usual
    } else {
        PathBuf::from("/tmp")
    };
    tempfile::Builder::new().prefix("narae-").tempdir_in(base)
}

/// Timers, planner, API and probes; guests never run here.
fn control_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("narae-control")
        .enable_all()
        .build()
        .map_err(|e| failed("make a runtime", &e))
}

enum Asked {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| failed("listen for signals", &e));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

fn log_to_stderr(session: &Session, pretty: bool) {
    use tracing_subscriber::EnvFilter;
    let level = match session.globals.verbose {
        0 if pretty => "warn",
        0 => "warn,narae=info",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("NARAE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        Code::Internal.as_str(),
        format!("cannot {what}: {}", crate::agent::report(error)),
    )
}

fn cannot_start(error: DaemonError) -> Failure {
    let code = error.code;
    let failure = Failure::new(Exit::Failed, code.as_str(), crate::agent::report(&error));
    match code {
        Code::AddressInUse => failure.help("choose another address, or stop what listens there; `ss -ltnp` shows it"),
        Code::AlreadyRunning => failure.help("use that one, or give this one a `--data-dir` of its own"),
        Code::SocketPathTooLong => failure.help("choose a shorter `--data-dir`"),
        _ => failure,
    }
}

fn invalid(problems: Vec<Problem>) -> Failure {
    Failure {
        exit: Exit::Invalid,
        reports: problems.iter().map(|p| Report::of_view(p.to_view())).collect(),
    }
}
