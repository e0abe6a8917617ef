//! A checked node file: how one daemon is set up, with every default filled in. `config` makes it; nothing else may.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything a node file, its variables and flags say. `None` where the default depends on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Without it the host name.
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Without it the service manager's state directory, else `~/.local/state/narae`.
    pub data_dir: Option<String>,
    pub http: HttpConfig,
    pub admin: AdminConfig,
    pub tls: TlsConfig,
    pub engine: EngineConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpConfig {
    pub listen: Vec<SocketAddr>,
    /// Where clients speak TLS.
    pub tls_listen: Vec<SocketAddr>,
    /// Without it a quarter of the descriptor limit.
    pub max_connections: Option<u32>,
    pub header_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminConfig {
    /// A path, relative to the data directory.
    pub socket: String,
    /// Loopback only.
    pub listen: Option<SocketAddr>,
}

/// Certificates of `tls_listen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    pub mode: TlsMode,
    /// Chain, leaf first, in PEM; a path, relative to the data directory. With mode `file`.
    pub cert_file: Option<String>,
    pub key_file: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    #[default]
    Off,
    File,
    /// An authority of the node's own.
    Internal,
}

impl TlsMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::File => "file",
            Self::Internal => "internal",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineConfig {
    pub allocator: Allocator,
    pub compile_memory_bytes: u64,
    pub compile_timeout: Duration,
    /// All guests together.
    pub memory_budget: Budget,
    pub cache_size_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocator {
    /// Fitted to the address space at start.
    #[default]
    Auto,
    Pooling,
    OnDemand,
}

/// So much memory, or a share of the machine's (of the cgroup's limit where there is one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    Bytes(u64),
    /// 1 to 100.
    Percent(u32),
}

impl Budget {
    /// Bytes, of `total` bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(n) => n,
            Self::Percent(p) => u64::try_from(u128::from(total) * u128::from(p) / 100).unwrap_or(u64::MAX),
        }
    }
}
