//! What to run and what it may touch: plain data, checked at birth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Prepared;

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
}

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
    /// Calls at once per replica.
    pub concurrent: u32,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            private: false,
            timeout: Duration::from_secs(5),
            concurrent: 64,
        }
    }
}

/// One allowed origin: `https://payments.example.test`, `http://10.20.0.5:8080`, `https://*.example.test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `http` or `https`.
    pub scheme: String,
    /// Lower case, without brackets; a first label `*` stands for exactly one label.
    pub host: String,
    /// The scheme's default when the file names none.
    pub port: u16,
}

/// Which of its two output streams a guest wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Takes a guest's output. Called on the data path: must not block and must bound what it keeps.
pub trait LogSink: Send + Sync {
    /// One line without its newline, at most 8 KiB (longer ones arrive in pieces), any bytes.
    fn line(&self, stream: Stream, line: &[u8]);
}

/// A `wasi:keyvalue` store as the host sees it. Calls are short and may be made on the data path.
pub trait KeyValue: Send + Sync {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, KeyValueError>;
    fn set(&self, key: &str, value: &[u8]) -> Result<(), KeyValueError>;
    fn delete(&self, key: &str) -> Result<(), KeyValueError>;
    fn exists(&self, key: &str) -> Result<bool, KeyValueError>;
    /// Adds to a number kept as decimal text (absent counts as 0) in one step and returns the new value.
    fn increment(&self, key: &str, delta: i64) -> Result<i64, KeyValueError>;
    /// Keys after `cursor` in order, at most 1,000, and the cursor of the next page.
    fn keys(&self, cursor: Option<&str>) -> Result<(Vec<String>, Option<String>), KeyValueError>;
}

/// What a key-value store can refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The write would pass the store's quota (bytes).
    #[error("store is full: its size is {quota_bytes} bytes")]
    Full { quota_bytes: u64 },
    /// `increment` on something that is not a number.
    #[error("value is not a number")]
    NotANumber,
    /// Key over 1 KiB or value over 1 MiB.
    #[error("key or value too large")]
    TooLarge,
    /// The store behind it failed.
    #[error("store failed: {0}")]
    Store(String),
}
