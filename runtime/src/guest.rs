//! What to run and what it may touch: plain data, checked at birth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use ::http::{HeaderName, HeaderValue};

use crate::backend::{Prepared, Task};
use crate::http::{Request, Response};
pub use crate::keyvalue::{KeyValue, KeyValueError};
use crate::volume::VolumeGrant;

/// One guest to start: a prepared artifact with its limits, grants and log sink.
#[derive(Clone)]
pub struct Guest {
    /// What `Backend::prepare` made.
    pub prepared: Prepared,
    /// A label for traces and messages, `service/revision/replica`.
    pub label: Arc<str>,
    pub limits: Limits,
    pub grants: Grants,
    /// Where its stdout and stderr go.
    pub logs: Arc<dyn LogSink>,
}

/// `[limits]` of a service file. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// Wall clock per request until the response head.
    pub timeout: Duration,
    /// Processor time per request, from the thread's clock.
    pub cpu_time: Duration,
    /// Processor time of instantiation and start functions.
    pub start_time: Duration,
    /// Requests at once in one replica.
    pub concurrency: u32,
    /// Waiting requests per service (kept by the balancer).
    pub queue: u32,
    /// How long one waits there.
    pub queue_wait: Duration,
    /// Request body (kept by the balancer).
    pub body_bytes: u64,
    /// Requests one instance serves before it is thrown away; `None`: 1 for wasi:http 0.2, 128 for 0.3.
    pub requests_per_instance: Option<u32>,
    /// Requests at once in one instance; `None`: 1 for 0.2 (which cannot do more), 16 for 0.3.
    pub requests_at_once: Option<u32>,
    /// Warm instances kept per replica.
    pub idle_instances: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            timeout: Duration::from_secs(30),
            cpu_time: Duration::from_secs(1),
            start_time: Duration::from_secs(10),
            concurrency: 64,
            queue: 128,
            queue_wait: Duration::from_secs(1),
            body_bytes: 10 << 20,
            requests_per_instance: None,
            requests_at_once: None,
            idle_instances: 8,
        }
    }
}

/// What a guest may touch. The default grants nothing.
#[derive(Clone, Default)]
pub struct Grants {
    /// `wasi:cli/environment`.
    pub env: Vec<(String, String)>,
    /// Arguments after the program name.
    pub args: Vec<String>,
    /// `wasi:config`.
    pub config: Vec<(String, String)>,
    /// Outbound HTTP.
    pub outbound: Outbound,
    /// `wasi:keyvalue` stores by name.
    pub key_values: BTreeMap<String, Arc<dyn KeyValue>>,
    /// Directories of `wasi:filesystem`.
    pub volumes: Vec<VolumeGrant>,
    /// The way to other services of this node; `outbound.services` says to which.
    pub neighbours: Option<Arc<dyn Neighbours>>,
    /// Headers that the host adds to outbound calls.
    pub credentials: Vec<Credential>,
}

/// A header that the host adds to every outbound HTTP call to one host, and that the guest never sees.
#[derive(Clone, Debug)]
pub struct Credential {
    /// Lower case, without port: the calls that `allow` lets through to it get the header.
    pub host: String,
    pub header: HeaderName,
    /// Marked as sensitive: it is never printed.
    pub value: HeaderValue,
}

impl Credential {
    pub fn new(host: String, header: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        Self { host, header, value }
    }
}

/// Other services of this node, reached without a socket. The runtime knows them by name alone.
pub trait Neighbours: Send + Sync {
    /// Sends a request (origin-form URI, `host` is `NAME.internal`) that came through so many calls between services. `None`:
    /// there is no such service. What the balancer refuses is an answer, as a client would get it.
    fn call(&self, name: &str, hops: u32, request: Request) -> Option<Task<'static, Response>>;
}

/// How many calls between services led to a request: in the extensions of every [`Request`] that came that way. No header
/// carries it, so that no guest can reset it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hops(pub u32);

/// `[outbound]`: which addresses a guest's HTTP calls may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbound {
    /// Empty: no outbound call at all.
    pub allow: Vec<Target>,
    /// Loopback, private, link-local and metadata addresses may be reached through an `allow`ed *name*. A literal
    /// address in `allow` needs no such permission for that address.
    pub private: bool,
    /// Deadline of a whole call until its response head, and of each wait for a further frame.
    pub timeout: Duration,
    /// Calls at once per replica, and as many TCP connections.
    pub concurrent: u32,
    /// Services of this node that may be called as `http://NAME.internal`.
    #[serde(default)]
    pub services: Vec<String>,
    /// Headers added by the host, their values by the name of a secret.
    #[serde(default)]
    pub credentials: Vec<CredentialName>,
}

/// One entry of `credentials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialName {
    /// Lower case, without port.
    pub host: String,
    /// Lower case.
    pub header: String,
    pub secret: String,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            private: false,
            timeout: Duration::from_secs(5),
            concurrent: 64,
            services: Vec::new(),
            credentials: Vec::new(),
        }
    }
}

/// One allowed origin: `https://payments.example.test`, `http://10.20.0.5:8080`, `https://*.example.test`,
/// `tcp://10.20.0.5:5432`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `http`, `https` or `tcp`.
    pub scheme: String,
    /// Lower case, without brackets; a first label `*` stands for exactly one label.
    pub host: String,
    /// The scheme's default when the file names none.
    pub port: u16,
}

/// Where a guest wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
    /// `wasi:logging`.
    Log,
}

/// Takes a guest's output. Called on the data path: must not block and must bound what it keeps.
pub trait LogSink: Send + Sync {
    /// One line without its newline, at most 8 KiB (longer ones arrive in pieces), any bytes.
    fn line(&self, stream: Stream, line: &[u8]);

    /// A line of `wasi:logging`, at most 8 KiB, with the level that the guest gave it.
    fn log(&self, level: Level, line: &[u8]) {
        let _ = level;
        self.line(Stream::Log, line);
    }
}

/// `wasi:logging/logging.level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
}
