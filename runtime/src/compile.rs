//! Compiling is not serving: Cranelift runs in a killable child of the same binary, its output is cached under a MAC of
//! this node, and only what carries that MAC is ever loaded.
//!
//! This file decides when to compile and when to load. It knows nothing of linking, of pools or of services.

mod cache;
mod child;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::component::Component;

use crate::artifact::{Artifact, printable};
use crate::engine::EngineKind;
use crate::error::PrepareError;

pub use child::child_main;
/// What the compiled code is loaded into.
pub use wasmtime::Engine;

/// Most compiled code of one artifact, in bytes: four times the largest artifact.
pub const MAX_COMPILED_BYTES: u64 = 256 << 20;

/// How to compile.
#[derive(Clone)]
pub struct CompilerOptions {
    /// The binary whose hidden verb calls [`child_main`], usually this one.
    pub program: PathBuf,
    /// What makes it do so, usually `__compile`.
    pub args: Vec<OsString>,
    /// Where compiled code is kept; `None` keeps none.
    pub cache: Option<CacheOptions>,
    /// This node's own key; code under another key is thrown away unread.
    pub key: [u8; 32],
    /// Wall clock of one child (`engine.compile_timeout`).
    pub deadline: Duration,
    /// Memory of one child, in bytes (`engine.compile_memory`).
    pub memory_bytes: u64,
    /// Children at once, at least one.
    pub jobs: usize,
}

impl std::fmt::Debug for CompilerOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompilerOptions")
            .field("program", &self.program)
            .field("cache", &self.cache)
            .field("deadline", &self.deadline)
            .field("memory_bytes", &self.memory_bytes)
            .field("jobs", &self.jobs)
            .finish_non_exhaustive()
    }
}

/// Where compiled code is kept, and how much of it (`engine.cache_size`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Made if absent, readable by its owner alone.
    pub dir: PathBuf,
    /// The least recently used files go first.
    pub max_bytes: u64,
}

/// Compiles artifacts in children, each digest once at a time.
pub struct Compiler {
    options: CompilerOptions,
    cache: Option<Arc<cache::Cache>>,
    jobs: Semaphore,
    flights: Mutex<HashMap<String, Weak<Flight>>>,
    compiled: AtomicU64,
    loaded: AtomicU64,
}

/// Holds the result for those who wait for the same artifact.
type Flight = tokio::sync::Mutex<Option<Component>>;

impl Compiler {
    /// Opens the cache directory (making it if it is not there) and removes what an interrupted write left in it.
    pub fn new(options: CompilerOptions) -> io::Result<Self> {
        let cache = options
            .cache
            .as_ref()
            .map(|c| cache::Cache::open(c, &options.key))
            .transpose()?
            .map(Arc::new);
        Ok(Self {
            jobs: Semaphore::new(options.jobs.clamp(1, 64)),
            cache,
            options,
            flights: Mutex::default(),
            compiled: AtomicU64::new(0),
            loaded: AtomicU64::new(0),
        })
    }

    /// How many artifacts a child has compiled since this value was made.
    pub fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// How many times compiled code came from the cache instead.
    pub fn loaded(&self) -> u64 {
        self.loaded.load(Ordering::Relaxed)
    }

    /// The artifact as a component of this engine, which must have been made from [`crate::engine::base_config`] of
    /// `kind`. From the cache if it is there, else from a child. Dropping the future kills the child.
    pub async fn compile(
        &self,
        artifact: &Artifact,
        kind: EngineKind,
        engine: &Engine,
    ) -> Result<Component, PrepareError> {
        let name = cache::file_name(&artifact.digest, kind, engine);
        let flight = self.flight(&name);
        let mut result = flight.lock().await;
        if let Some(component) = result.as_ref().filter(|c| Engine::same(c.engine(), engine)) {
            return Ok(component.clone());
        }
        let component = match self.cached(&name, engine).await? {
            Some(component) => {
                self.loaded.fetch_add(1, Ordering::Relaxed);
                component
            }
            None => self.made_by_child(artifact, kind, engine, name).await?,
        };
        *result = Some(component.clone());
        Ok(component)
    }

    fn flight(&self, name: &str) -> Arc<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(name).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(Flight::default());
        flights.insert(name.to_owned(), Arc::downgrade(&flight));
        flight
    }

    /// Whatever is wrong with the cache, the answer is "not there": the child can always make it anew. Only good code that
    /// this engine's pool has no slot for is an error, and stays for the engine that allocates on demand.
    async fn cached(&self, name: &str, engine: &Engine) -> Result<Option<Component>, PrepareError> {
        let Some(cache) = self.cache.clone() else {
            return Ok(None);
        };
        let (engine, name) = (engine.clone(), name.to_owned());
        let load = move || {
            let Some(code) = cache.read(&name) else { return Ok(None) };
            match load(&engine, &code) {
                Ok(component) => Ok(Some(component)),
                Err(error) if fits_no_slot(&error) => Err(does_not_load(&error)),
                Err(error) => {
                    tracing::warn!(file = name, error = %error, "compiled code does not fit this engine; compiling anew");
                    cache.remove(&name);
                    Ok(None)
                }
            }
        };
        tokio::task::spawn_blocking(load).await.unwrap_or(Ok(None))
    }

    async fn made_by_child(
        &self,
        artifact: &Artifact,
        kind: EngineKind,
        engine: &Engine,
        name: String,
    ) -> Result<Component, PrepareError> {
        // The semaphore is never closed.
        let _job = self
            .jobs
            .acquire()
            .await
            .map_err(|e| PrepareError::Child(io::Error::other(e)))?;
        let code = child::run(&self.options, artifact, kind).await?;
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let (cache, engine) = (self.cache.clone(), engine.clone());
        let finish = move || {
            let component = load(&engine, &code);
            let good = component.as_ref().map_or_else(fits_no_slot, |_| true);
            if let Some(Err(error)) = cache.filter(|_| good).map(|cache| cache.write(&name, &code)) {
                // A full disk must not stop a deploy: the code is good, only the next start will pay again.
                tracing::warn!(file = name, error = %error, "cannot keep compiled code");
            }
            component.map_err(|e| does_not_load(&e))
        };
        tokio::task::spawn_blocking(finish)
            .await
            .map_err(|e| PrepareError::Link(e.to_string()))?
    }
}

/// The code is good, but a pooling allocator has no slot that large: wasmtime's words, which carry no type of their own.
pub(crate) fn fits_no_slot(error: &wasmtime::Error) -> bool {
    let words = format!("{error:#}");
    words.contains("exceeds the") && words.contains("limit of")
}

fn does_not_load(error: &wasmtime::Error) -> PrepareError {
    PrepareError::Link(printable(&format!("compiled code does not load: {error:#}"), 1024))
}

impl crate::wasm::Compile for Compiler {
    fn compile<'a>(
        &'a self,
        artifact: &'a Artifact,
        kind: EngineKind,
        engine: &'a Engine,
    ) -> crate::backend::Task<'a, Result<Component, PrepareError>> {
        Box::pin(self.compile(artifact, kind, engine))
    }
}

/// Code that a child of this process made or that passed the check of this node's MAC -> a component.
fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `deserialize` trusts its bytes. Both callers hold what `Engine::precompile_component` wrote, unchanged:
    // either read from the pipe of a child that ran this very binary, or read from a file whose HMAC-SHA256 under a key
    // that only this node has was checked over exactly these bytes. wasmtime itself refuses bytes of another version
    // or configuration.
    unsafe { Component::deserialize(engine, code) }
}
