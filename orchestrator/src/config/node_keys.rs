//! Every key of a node file, and the name of its environment variable.

use super::checks::{FILE, LINE, NODE_NAME, NOTHING, VARIABLE};
use super::hosts::{ADDRESS, LOOPBACK};
use super::keys::Kind::{Budget, Choice, Choices, Count, Duration, Empty, List, Map, Only, Size, Table as Sub, Text};
use super::keys::{Key, Status, Table};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub static NODE: Table = Table {
    keys: &[
        Key::new("node", Sub(&IDENTITY), "which machine"),
        Key::new("http", Sub(&HTTP), "the services' listener"),
        Key::new("admin", Sub(&ADMIN), "the operators' door"),
        Key::new("tls", Sub(&TLS), "certificates"),
        Key::new("engine", Sub(&ENGINE), "what guests run in"),
        Key::new("policy", Sub(&POLICY), "what may be deployed"),
        Key::new("logs", Sub(&LOGS), "the daemon's own messages"),
        Key::new("metrics", Sub(&METRICS), "where metrics are served"),
        Key::later("cluster", "more than one machine"),
    ],
};

static IDENTITY: Table = Table {
    keys: &[
        Key::new("name", Text(&NODE_NAME), "the host name without it"),
        Key::new(
            "labels",
            Map {
                key: &VARIABLE,
                value: &LINE,
            },
            "names for filters",
        )
        .default("{}")
        .live(),
        Key::new(
            "data_dir",
            Text(&FILE),
            "the service manager's state directory, else ~/.local/state/narae",
        ),
    ],
};

static HTTP: Table = Table {
    keys: &[
        Key::new("listen", List(&ADDRESS), "addresses to serve HTTP on").default("[\"127.0.0.1:8080\"]"),
        Key::new("tls_listen", List(&ADDRESS), "addresses to serve HTTPS on").default("[]"),
        Key::new(
            "max_connections",
            Count { min: 1, max: 1_000_000 },
            "a quarter of the descriptor limit without it",
        ),
        Key::new(
            "header_timeout",
            Duration {
                min: 100,
                max: 3_600_000,
            },
            "for the head of a request",
        )
        .default("\"10s\""),
        Key::new("trusted_proxies", Empty, "from whom X-Forwarded-For is believed").default("[]"),
        Key::new(
            "access_log",
            Choice {
                now: &["off"],
                later: &["sampled", "all"],
            },
            "a line per request",
        )
        .default("\"off\""),
    ],
};

static ADMIN: Table = Table {
    keys: &[
        Key::new("socket", Text(&FILE), "path, relative to data_dir; mode 0660").default("\"admin.sock\""),
        Key::new(
            "listen",
            Text(&LOOPBACK),
            "API over TCP, loopback only; a token is always needed there",
        )
        .default("\"\""),
        Key::new("dashboard", Only(false), "pages for people").default("false"),
    ],
};

static TLS: Table = Table {
    keys: &[
        Key::new(
            "mode",
            Choice {
                now: &["off", "file", "internal"],
                later: &["acme"],
            },
            "where certificates come from",
        )
        .default("\"off\""),
        Key::later("email", "contact for certificates"),
        Key::later("directory", "certificate authority"),
        Key::new(
            "cert_file",
            Text(&FILE),
            "chain in PEM, leaf first, relative to data_dir; read again when it changes",
        ),
        Key::new("key_file", Text(&FILE), "its key in PEM"),
    ],
};

static ENGINE: Table = Table {
    keys: &[
        Key::new(
            "profile",
            Choice {
                now: &["auto"],
                later: &["server", "edge", "tiny"],
            },
            "size of the machine",
        )
        .default("\"auto\""),
        Key::new(
            "allocator",
            Choice {
                now: &["auto", "pooling", "on-demand"],
                later: &[],
            },
            "auto is fitted to the address space at start",
        )
        .default("\"auto\""),
        Key::new(
            "compiler",
            Choice {
                now: &["cranelift"],
                later: &["none"],
            },
            "none runs only precompiled modules",
        )
        .default("\"cranelift\""),
        Key::new(
            "compile_memory",
            Size {
                min: 64 * MIB,
                max: 64 * GIB,
            },
            "of one compilation",
        )
        .default("\"1GiB\""),
        Key::new(
            "compile_timeout",
            Duration {
                min: 1_000,
                max: 3_600_000,
            },
            "of one compilation",
        )
        .default("\"60s\""),
        Key::new(
            "memory_budget",
            Budget { min: 16 * MIB },
            "all guests together, of RAM or of the cgroup limit",
        )
        .default("\"50%\""),
        Key::new(
            "cache_size",
            Size {
                min: 0,
                max: 1024 * GIB,
            },
            "compiled code on disk",
        )
        .default("\"256MiB\""),
    ],
};

static POLICY: Table = Table {
    keys: &[
        Key::new("require_signature", Only(false), "only signed modules").default("false"),
        Key::later("trusted_keys", "whose signatures count"),
        Key::new(
            "allow_backends",
            Choices {
                now: &["wasm"],
                later: &["namespace"],
            },
            "which walls",
        )
        .default("[\"wasm\"]"),
        Key::new(
            "limits",
            Choice {
                now: &["enforce"],
                later: &["best-effort"],
            },
            "refuse what this node cannot limit",
        )
        .default("\"enforce\""),
    ],
};

static LOGS: Table = Table {
    keys: &[Key::new(
        "target",
        Choice {
            now: &["stderr"],
            later: &["journal", "file"],
        },
        "where they go",
    )
    .default("\"stderr\"")],
};

static METRICS: Table = Table {
    keys: &[
        Key::new("listen", Text(&NOTHING), "on the admin listener when empty").default("\"\""),
        Key::new("otlp", Text(&NOTHING), "pushed nowhere when empty").default("\"\""),
    ],
};

/// `NARAE_HTTP_MAX_CONNECTIONS` of `http.max_connections`.
pub fn variable(path: &str) -> String {
    format!("NARAE_{}", path.to_ascii_uppercase().replace('.', "_"))
}

/// The variables of all keys, also of those whose feature comes later.
pub fn variables() -> impl Iterator<Item = String> {
    let later = later().into_iter();
    values().map(|(path, _)| path).chain(later).map(|path| variable(&path))
}

/// Keys that hold a value (not tables), with their paths.
pub fn values() -> impl Iterator<Item = (String, &'static Key)> {
    NODE.walk().into_iter().filter(|(_, k)| !matches!(k.kind, Sub(_)))
}

/// Keys whose feature comes later, with their paths.
pub fn later() -> Vec<String> {
    let mut out = Vec::new();
    for key in NODE.keys {
        if key.status == Status::Later {
            out.push(key.name.to_owned());
        }
        if let Sub(table) = &key.kind {
            out.extend(
                table
                    .keys
                    .iter()
                    .filter(|k| k.status == Status::Later)
                    .map(|k| format!("{}.{}", key.name, k.name)),
            );
        }
    }
    out
}
