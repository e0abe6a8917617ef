//! The node's configuration while it runs: what is in force, where each value came from, and how to read it again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use narae_runtime::compile::Compiler;
use narae_runtime::wasm::WasmBackend;

use crate::config::{self, Origin, Problem};
use crate::model::node::NodeConfig;

/// The configuration and where each of its values came from.
pub type Loaded = (NodeConfig, Vec<Origin>);
/// Reads files, variables and flags again.
pub type Loader = Box<dyn Fn() -> Result<Loaded, Vec<Problem>> + Send + Sync>;

/// What is in force.
pub struct Settings {
    pub name: String,
    pub http: OnceLock<Vec<SocketAddr>>,
    pub admin: Option<SocketAddr>,
    pub allocator: String,
    pub memory_budget_bytes: u64,
    backend: Arc<WasmBackend>,
    compiler: Arc<Compiler>,
    /// What this process started with: keys that need a restart are still these.
    started: NodeConfig,
    current: Mutex<Loaded>,
    loader: Loader,
}

impl Settings {
    pub(super) fn new(
        current: Loaded,
        loader: Loader,
        backend: Arc<WasmBackend>,
        compiler: Arc<Compiler>,
        memory_budget_bytes: u64,
        admin: Option<SocketAddr>,
    ) -> Self {
        Self {
            name: current.0.name.clone().unwrap_or_else(host_name),
            http: OnceLock::new(),
            admin,
            allocator: backend.allocation().to_string(),
            memory_budget_bytes,
            backend,
            compiler,
            started: current.0.clone(),
            current: Mutex::new(current),
            loader,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that guests have now, in bytes.
    pub fn memory_used(&self) -> u64 {
        self.backend.memory().0
    }

    /// Modules compiled since the start, and those whose code came from the cache instead.
    pub fn code(&self) -> (u64, u64) {
        (self.compiler.compiled(), self.compiler.loaded())
    }

    /// A quarter of the descriptors, so that guests, files and the API have theirs.
    pub fn max_connections(&self) -> usize {
        let configured = self.lock().0.http.max_connections;
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(4096);
        let quarter = usize::try_from(descriptors / 4).unwrap_or(1024).clamp(16, 65_536);
        configured.map_or(quarter, |n| usize::try_from(n).unwrap_or(quarter))
    }

    pub fn header_timeout(&self) -> Duration {
        self.lock().0.http.header_timeout
    }

    /// The effective node file, and the origin of each value.
    pub fn show(&self) -> (String, Vec<Origin>) {
        let current = self.lock();
        (config::effective_node(&current.0), current.1.clone())
    }

    /// Reads everything again: which keys changed, and which of them need a restart. A bad file changes nothing.
    ///
    /// # Errors
    /// Every mistake of the new configuration.
    pub fn reload(&self) -> Result<(Vec<String>, Vec<String>), Vec<Problem>> {
        let new = (self.loader)()?;
        let mut current = self.lock();
        let (live, _) = config::changes(&current.0, &new.0);
        let (_, restart) = config::changes(&self.started, &new.0);
        *current = new;
        Ok((live, restart))
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".into(), |n| n.trim().to_owned())
}
