//! Floor 3: one node put together: store, blobs, backend, balancer, agent, controller, API and the two kinds of listener.
//! `serve`, `run` and `demo` all start this; there is no second way to run a node.

pub mod settings;
mod tls;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use narae_runtime::compile::{CacheOptions, Compiler, CompilerOptions};
use narae_runtime::wasm::host::{outbound, outside};
use narae_runtime::wasm::{WasmBackend, WasmOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Tools};
use crate::api::{Api, Door, Token, router};
use crate::artifacts::Artifacts;
use crate::clock::Clock;
use crate::config::Code;
use crate::controller::Controller;
use crate::crashes::Crashes;
use crate::events::{Events, Occurrence};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::model::EventKind;
use crate::model::node::{self, NodeConfig};
use crate::proxy::{Balancer, Server, ServerOptions};
use crate::secrets::Secrets;
use crate::store::keyvalue::KeyValues;
use crate::store::volumes::Volumes;
use crate::store::{OpenError, Records};
use settings::{Loaded, Loader, Settings};
use watch::Watch;

/// What a node needs to know before it starts.
pub struct Options {
    pub config: Loaded,
    /// Reads the node file again for `config reload`.
    pub loader: Loader,
    /// Made if absent, mode 0700.
    pub data_dir: PathBuf,
    /// The binary whose hidden verb compiles, normally this one.
    pub program: PathBuf,
}

/// Why a node did not start: the operation, and the cause behind it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct DaemonError {
    pub what: String,
    /// Whose chapter helps.
    pub code: Code,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn cannot<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: impl Into<String>) -> impl FnOnce(E) -> DaemonError {
    let what = what.into();
    move |source| DaemonError {
        what,
        code: Code::Internal,
        source: source.into(),
    }
}

/// As [`cannot`], with the chapter that the cause asks for.
fn cannot_use(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DaemonError {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, InvalidFilename, PermissionDenied, ResourceBusy};
    let what = what.into();
    move |source| DaemonError {
        what,
        code: match source.kind() {
            AddrInUse => Code::AddressInUse,
            ResourceBusy => Code::AlreadyRunning,
            AddrNotAvailable => Code::BadAddress,
            InvalidFilename => Code::SocketPathTooLong,
            PermissionDenied => Code::NotPermitted,
            _ => Code::BadNodePath,
        },
        source: source.into(),
    }
}

/// As [`cannot`], of a database: in use, or not readable.
fn cannot_open(what: &str) -> impl FnOnce(OpenError) -> DaemonError {
    let what = format!("open {what}");
    move |source| DaemonError {
        what,
        code: match source {
            OpenError::Locked { .. } => Code::AlreadyRunning,
            _ => Code::StoreUnreadable,
        },
        source: source.into(),
    }
}

/// A running node.
pub struct Daemon {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub socket: PathBuf,
    /// `pooling: …` or `on-demand: …`.
    pub allocator: String,
    pub settings: Arc<Settings>,
    pub logs: Arc<Logs>,
    agent: Arc<Agent>,
    server: Arc<Server>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    keyvalues: Arc<KeyValues>,
    planner: tokio::task::JoinHandle<()>,
    planning: CancellationToken,
    _guests: Guests,
}

/// Services of the last run get so long to serve again before the listeners open without them.
const SETTLE: Duration = Duration::from_secs(5);
/// Past the drain, what still runs is ended.
const STOP_GRACE: Duration = Duration::from_secs(1);

impl Daemon {
    /// Starts everything. The HTTP listeners open last, when the services of the last run serve again (or after 5 s), so
    /// that no client meets a node that does not know its services yet.
    pub async fn start(options: Options) -> Result<Self, DaemonError> {
        let Options {
            config: loaded,
            loader,
            data_dir,
            program,
        } = options;
        let config = loaded.0.clone();
        let clock = Clock::system();
        make_data_dir(&data_dir).map_err(cannot_use(format!("use data directory `{}`", data_dir.display())))?;
        let socket = data_dir.join(&config.admin.socket);
        let door = Door::bind(&socket, config.admin.listen)
            .await
            .map_err(cannot_use(format!("open the admin socket `{}`", socket.display())))?;
        for address in config.http.listen.iter().chain(&config.http.tls_listen) {
            free(*address).map_err(cannot_use(format!("listen on {address}")))?;
        }
        raise_descriptor_limit();
        forbid_core_files();
        let store =
            crate::store::redb::RedbStore::open(&data_dir.join("state.redb")).map_err(cannot_open("the store"))?;
        let store: Arc<dyn crate::store::Store> = Arc::new(store);
        let secrets = Arc::new(Secrets::open(&crate::secrets::key_file(&data_dir), Arc::clone(&store)));
        let records = Arc::new(Records::new(store));
        let blobs = Artifacts::open(&data_dir).map_err(cannot("open the module store"))?;
        let keyvalues = KeyValues::open(&data_dir.join("keyvalue.redb")).map_err(cannot_open("the key-value store"))?;
        let keyvalues = Arc::new(keyvalues);
        let volumes = Arc::new(Volumes::new(&data_dir).map_err(cannot("open the volumes"))?);
        let logs = Arc::new(Logs::new(clock.clone()));
        let events = Arc::new(Events::new(clock.clone()));
        let metrics = Arc::new(Metrics::new());
        let budget = config.engine.memory_budget.of(machine_memory());
        let key = node_key(&data_dir.join("node.key")).map_err(cannot("read or make this node's key"))?;
        let cache = CacheOptions {
            dir: data_dir.join("cache"),
            max_bytes: config.engine.cache_size_bytes,
        };
        let compiler =
            compiler(program, Some(cache), key, Some(&config)).map_err(cannot("open the compiled-code cache"))?;
        let compiler = Arc::new(compiler);
        let options = WasmOptions {
            allocator: allocator(config.engine.allocator),
            memory_budget_bytes: budget,
            compile: Arc::clone(&compiler) as _,
            outbound: Some(outbound::maker(outside::real())),
        };
        let backend = WasmBackend::new(options).map_err(cannot("make the engine"))?;
        let guests = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("narae-guests")
            .enable_all()
            .build()
            .map_err(cannot("start the guests' runtime"))?;
        let guests = Guests(Some(guests));
        let wake = Arc::new(Notify::new());
        let crashes = Crashes::open(&data_dir, clock.clone(), Arc::clone(&logs));
        let observer = Watch::new(
            Arc::clone(&events),
            Arc::clone(&metrics),
            Arc::clone(&crashes),
            Arc::clone(&wake),
        );
        let balancer = Balancer::new(observer, crate::proxy::Options::default());
        let tools = Tools {
            backend: backend.clone(),
            blobs: blobs.clone(),
            keyvalues: Arc::clone(&keyvalues),
            secrets: Arc::clone(&secrets),
            volumes: Arc::clone(&volumes),
            logs: Arc::clone(&logs),
            events: Arc::clone(&events),
            metrics: Arc::clone(&metrics),
            crashes: Arc::clone(&crashes),
            balancer: Arc::clone(&balancer),
            guests: guests.handle(),
            clock: clock.clone(),
            wake: Arc::clone(&wake),
        };
        let agent = Agent::new(tools, fastrand::u64(..));
        {
            let agent = Arc::downgrade(&agent);
            crashes.ask(move |service, revision, replica| {
                let agent = agent.upgrade();
                agent.map(|a| a.context(service, revision, replica)).unwrap_or_default()
            });
        }
        let on_forget = {
            let (logs, metrics, keyvalues) = (Arc::clone(&logs), Arc::clone(&metrics), Arc::clone(&keyvalues));
            Box::new(move |name: &crate::model::ServiceName| {
                logs.forget(name);
                metrics.forget(name);
                keyvalues.delete_service(name).map_err(|e| crate::agent::report(&e))?;
                volumes.delete_service(name).map_err(|e| crate::agent::report(&e))
            })
        };
        let controller = Controller::new(
            Arc::clone(&records),
            Arc::clone(&agent),
            Arc::clone(&events),
            clock.clone(),
            wake,
            on_forget,
        );
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        let planning = CancellationToken::new();
        let planner = tokio::spawn(plan(Arc::clone(&controller), Arc::clone(&metrics), planning.clone()));
        let token = Token::open(&data_dir.join("admin.token")).map_err(cannot("make the admin token"))?;
        let allocator = backend.allocation().to_string();
        let settings = Arc::new(Settings::new(loaded, loader, backend, compiler, budget, door.address()));
        let admin = door.address();
        let api = Arc::new(Api {
            controller: Arc::clone(&controller),
            agent: Arc::clone(&agent),
            records,
            secrets,
            blobs,
            modules: crate::api::Modules::new(clock.monotonic()),
            logs: Arc::clone(&logs),
            events: Arc::clone(&events),
            metrics: Arc::clone(&metrics),
            crashes,
            clock: clock.clone(),
            settings: Arc::clone(&settings),
        });
        tasks.push(tokio::spawn(door.serve(
            router(api),
            Arc::new(token),
            clock.clone(),
            stop.clone(),
        )));
        let _ = tokio::time::timeout(SETTLE, settled(&controller, &agent)).await;
        let certificates = tls::certificates(&config, &data_dir, &settings.name, &clock)?;
        let server_options = ServerOptions {
            tls: tls::options(&config, certificates.as_ref())?,
            max_connections: settings.max_connections(),
            header_timeout: settings.header_timeout(),
            ..ServerOptions::default()
        };
        let server =
            Server::start(&config.http.listen, Arc::clone(&balancer), server_options).map_err(cannot("serve HTTP"))?;
        let server = Arc::new(server);
        tasks.push(tokio::spawn(tick(
            Arc::clone(&agent),
            metrics,
            Arc::clone(&events),
            clock,
            stop.clone(),
            {
                let (server, balancer) = (Arc::clone(&server), balancer);
                let events = Arc::clone(&events);
                move |metrics: &Metrics| {
                    if let Some(certificates) = &certificates {
                        tls::refresh(certificates, &events);
                    }
                    let connections = server.connections() as u64;
                    metrics
                        .node()
                        .set_data_path(connections, balancer.panics(), balancer.refusals());
                }
            },
        )));
        let (http, https) = (server.addresses().to_vec(), server.tls_addresses().to_vec());
        let _ = settings.http.set(http.clone());
        events.record(
            EventKind::Node,
            None,
            Occurrence::new(format!("serving; allocator {allocator}")),
        );
        Ok(Self {
            http,
            https,
            admin,
            socket,
            allocator,
            settings,
            logs,
            agent,
            server,
            stop,
            tasks,
            keyvalues,
            planner,
            planning,
            _guests: guests,
        })
    }

    /// Drains and stops: no new connection, answers under way get `grace`, then guests end and the store closes.
    pub async fn stop(mut self, grace: Duration) {
        self.server.drain(grace).await;
        // Nobody may plan for replicas that are being taken away.
        self.planning.cancel();
        let _ = (&mut self.planner).await;
        self.agent.shut_down(STOP_GRACE).await;
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        if let Err(error) = self.keyvalues.flush() {
            tracing::error!(error = crate::agent::report(&error), "key-value data was not flushed");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.planning.cancel();
        self.stop.cancel();
    }
}

/// The guests' runtime. A runtime must not be dropped inside another, on no path: it is let go in the background.
struct Guests(Option<tokio::runtime::Runtime>);

impl Guests {
    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("taken by drop alone").handle().clone()
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// `engine.compile_timeout` and `engine.compile_memory` without a node file.
const COMPILE_DEFAULTS: (Duration, u64) = (Duration::from_secs(60), 1 << 30);

/// The compiler of this program: a child process under the node's limits, or under the defaults.
///
/// # Errors
/// The cache directory cannot be used.
pub fn compiler(
    program: PathBuf,
    cache: Option<CacheOptions>,
    key: [u8; 32],
    config: Option<&NodeConfig>,
) -> std::io::Result<Compiler> {
    let (deadline, memory_bytes) = config.map_or(COMPILE_DEFAULTS, |c| {
        (c.engine.compile_timeout, c.engine.compile_memory_bytes)
    });
    Compiler::new(CompilerOptions {
        program,
        args: vec![crate::cli::COMPILE.into()],
        cache,
        key,
        deadline,
        memory_bytes,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn allocator(configured: node::Allocator) -> narae_runtime::engine::Allocator {
    use narae_runtime::engine::Allocator;
    match configured {
        node::Allocator::Auto => Allocator::Auto,
        node::Allocator::Pooling => Allocator::Pooling,
        node::Allocator::OnDemand => Allocator::OnDemand,
    }
}

/// The data threads share their port (SO_REUSEPORT), and so would a second daemon: nobody else may hold it now.
fn free(address: SocketAddr) -> std::io::Result<()> {
    std::net::TcpListener::bind(address).map(drop)
}

/// Runs the control loop. Without it nothing heals any more, so a bug that ends it ends the process: a service manager starts
/// it again, and everything comes back from the store.
async fn plan(controller: Arc<Controller>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let looping = tokio::spawn(async move { controller.run(stop).await });
    if looping.await.is_err_and(|e| e.is_panic()) {
        metrics.node().panicked();
        tracing::error!("the control loop panicked: this is a bug in narae; ending, to be started again");
        std::process::abort();
    }
}

/// Every service of the last run that has a stable revision and is not stopped serves with at least one replica.
async fn settled(controller: &Controller, agent: &Agent) {
    use crate::model::Phase;
    loop {
        let desired = controller.desired();
        if controller.has_read() {
            let serving: std::collections::BTreeSet<_> = agent
                .replicas()
                .into_iter()
                .filter(|r| matches!(r.phase, Phase::Serving { .. }))
                .map(|r| r.service)
                .collect();
            let waits = desired.services.iter().any(|(name, s)| {
                let runs = s.record.stable.is_some() && !s.record.stopped && !s.record.deleting;
                let wanted = s.revisions.get(&s.record.wanted);
                let count = wanted.map_or(0, |r| crate::plan::fleet::wanted_replicas(&s.record, r, None));
                runs && count > 0 && !serving.contains(name)
            });
            if !waits {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn tick(
    agent: Arc<Agent>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    clock: Clock,
    stop: CancellationToken,
    data_path: impl Fn(&Metrics) + Send,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                agent.measure();
                if agent.has_unseen_load() {
                    agent.wake();
                }
                data_path(&metrics);
                metrics.tick(clock.monotonic());
                events.tick();
            }
        }
    }
}

fn make_data_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// 256 random bits that only this node has: compiled code under any other key is not loaded.
fn node_key(path: &Path) -> std::io::Result<[u8; 32]> {
    if let Ok(bytes) = std::fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice())
    {
        return Ok(key);
    }
    let key = crate::secret_file::random()?;
    crate::secret_file::write(path, &key)?;
    Ok(key)
}

/// The soft limit on descriptors is a default for shells; a server takes what it is allowed.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// This process holds secrets in clear text: a crash must not write them to a disk. Who debugs it raises the limit again.
fn forbid_core_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Core);
    limit.current = Some(0);
    let _ = setrlimit(Resource::Core, limit);
}

/// Where a memory limit of this process may be: its own cgroup and every one above it, of version 2 or 1.
fn cgroup_files() -> impl Iterator<Item = PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut files = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|n| n == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            files.push(Path::new(base).join(ancestor).join(file));
        }
    }
    files.into_iter()
}

/// Memory this process may use: of the cgroup if it has a limit, else of the machine.
pub fn machine_memory() -> u64 {
    let cgroup = cgroup_files()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .min();
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(1 << 30, |kib| kib << 10);
    cgroup.map_or(total, |limit| limit.min(total))
}
