//! Every key of a service file. Adding a feature starts with moving its key from `later` to `new` here.

use super::checks::{DIGEST, LINE, MODULE, SERVICE_NAME, STORE_NAME, VALUE, VARIABLE};
use super::hosts::{HOST, PATH, PROBE, TARGET};
use super::keys::Kind::{Bool, Choice, Count, Duration, List, Map, Milli, Rate, Size, Table as Sub, Tables, Text};
use super::keys::{Key, Kind, Table};
use crate::model::ReplicaCount;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

pub static SERVICE: Table = Table {
    keys: &[
        Key::new(
            "name",
            Text(&SERVICE_NAME),
            "a DNS label: a-z, 0-9 and `-`, 1 to 63 characters",
        )
        .required(),
        Key::new("description", Text(&LINE), "one line for people"),
        Key::new("module", Text(&MODULE), "path of the .wasm file, relative to this file").required(),
        Key::new("digest", Text(&DIGEST), "the module must have this SHA-256"),
        Key::new(
            "backend",
            Choice {
                now: &["wasm"],
                later: &["namespace"],
            },
            "which wall",
        )
        .default("\"wasm\""),
        Key::new(
            "world",
            Choice {
                now: &["auto", "http", "command"],
                later: &[],
            },
            "auto reads it from the module",
        )
        .default("\"auto\""),
        Key::new("args", List(&VALUE), "arguments after the program name").default("[]"),
        Key::new(
            "replicas",
            Count {
                min: 0,
                max: ReplicaCount::MAX as u64,
            },
            "how many run",
        )
        .default("1"),
        Key::new(
            "depends_on",
            List(&SERVICE_NAME),
            "services that start first; start order only",
        )
        .default("[]"),
        Key::new(
            "labels",
            Map {
                key: &VARIABLE,
                value: &LINE,
            },
            "names for filters",
        )
        .default("{}"),
        Key::new("routes", List(&PATH), "short for one [[route]] for each path, any host").default("[]"),
        Key::new(
            "env",
            Map {
                key: &VARIABLE,
                value: &VALUE,
            },
            "environment of the guest",
        )
        .default("{}"),
        Key::new(
            "config",
            Map {
                key: &VARIABLE,
                value: &VALUE,
            },
            "read by the guest through wasi:config",
        )
        .default("{}"),
        Key::new("limits", Sub(&LIMITS), "what one replica and one request may use"),
        Key::new("route", Tables(&ROUTE), "ways in"),
        Key::new("traffic", Sub(&TRAFFIC), "how requests are spread and replicas leave"),
        Key::new("probes", Sub(&PROBES), "when a replica is started, and ready"),
        Key::new("restart", Sub(&RESTART), "what happens after a death"),
        Key::new("rollout", Sub(&ROLLOUT), "how one revision replaces another"),
        Key::new("keyvalue", Tables(&KEYVALUE), "wasi:keyvalue stores"),
        Key::new("outbound", Sub(&OUTBOUND), "which origins the guest may call"),
        Key::new("logs", Sub(&LOGS), "what is kept of its output"),
        Key::later("program", "a native executable instead of a module"),
        Key::later("rootfs", "file system of a native program"),
        Key::later("signature", "who must have signed the module"),
        Key::later("secrets", "secrets by name"),
        Key::later("rate_limit", "requests per client"),
        Key::later("autoscale", "replicas by load"),
        Key::later("schedule", "replicas or requests at a time"),
        Key::later("job", "runs of a command"),
        Key::later("volume", "directories of the guest"),
        Key::later("placement", "which nodes"),
    ],
};

static LIMITS: Table = Table {
    keys: &[
        Key::new(
            "memory",
            Size {
                min: 64 * KIB,
                max: 4 * GIB,
            },
            "linear memory of one instance",
        )
        .default("\"128MiB\""),
        Key::new(
            "timeout",
            Duration { min: 1, max: DAY },
            "wall clock per request until the response head",
        )
        .default("\"30s\""),
        Key::new(
            "cpu_time",
            Duration { min: 1, max: HOUR },
            "processor time per request; over it only that request dies",
        )
        .default("\"1s\""),
        Key::new(
            "start_time",
            Duration { min: 1, max: HOUR },
            "processor time of instantiation and start functions",
        )
        .default("\"10s\""),
        Key::new(
            "concurrency",
            Count { min: 1, max: 10_000 },
            "requests at once in one replica",
        )
        .default("64"),
        Key::new(
            "queue",
            Count { min: 0, max: 100_000 },
            "waiting requests per service before 503",
        )
        .default("128"),
        Key::new("queue_wait", Duration { min: 0, max: HOUR }, "how long one waits there").default("\"1s\""),
        Key::new("body", Size { min: 0, max: 4 * GIB }, "request body").default("\"10MiB\""),
        Key::new(
            "requests_per_instance",
            Count { min: 1, max: 1_000_000 },
            "1 is a fresh instance per request (1 for wasi:http 0.2, 128 for 0.3)",
        ),
        Key::new(
            "requests_at_once",
            Count { min: 1, max: 10_000 },
            "in one instance (1 for wasi:http 0.2, which cannot do more; 16 for 0.3)",
        ),
        Key::new(
            "idle_instances",
            Count { min: 0, max: 10_000 },
            "warm instances kept per replica",
        )
        .default("8"),
        Key::later("pids", "processes of a native program"),
        Key::later("cpus", "processors of a native program"),
        Key::later("tmp", "temporary files of a native program"),
        Key::later("open_files", "open files of a native program"),
    ],
};

static ROUTE: Table = Table {
    keys: &[
        Key::new(
            "host",
            Text(&HOST),
            "any host without it; \"*.example.test\" takes one label",
        ),
        Key::new("path", Text(&PATH), "prefix on path segments").default("\"/\""),
        Key::later("methods", "only these methods"),
        Key::later("headers", "only with these headers"),
        Key::later("strip", "hide the prefix from the guest"),
        Key::new(
            "tls",
            Choice {
                now: &["off"],
                later: &["acme", "internal", "file"],
            },
            "certificate of this host",
        )
        .default("\"off\""),
        Key::later("compression", "compressed answers"),
        Key::later("https_redirect", "send plain HTTP to HTTPS"),
    ],
};

static TRAFFIC: Table = Table {
    keys: &[
        Key::new(
            "balance",
            Choice {
                now: &["least-request"],
                later: &["round-robin", "peak-ewma", "hash"],
            },
            "two random choices, the one with fewer requests in flight",
        )
        .default("\"least-request\""),
        Key::new("retries", Sub(&RETRIES), "of calls that never reached a guest"),
        Key::new("outlier", Sub(&OUTLIER), "when traps make a replica dead"),
        Key::new(
            "drain",
            Duration { min: 0, max: HOUR },
            "for requests in flight when a replica leaves",
        )
        .default("\"30s\""),
        Key::later("hash_on", "what hash balancing looks at"),
        Key::later("sticky", "one client, one replica"),
        Key::later("mirror", "a copy of the traffic"),
        Key::later("pin", "a request may ask for a revision"),
        Key::later("stop_grace", "between the stop signal and the kill of a native program"),
    ],
};

static RETRIES: Table = Table {
    keys: &[
        Key::new("attempts", Count { min: 0, max: 1 }, "tries on another replica").default("1"),
        Key::later("budget", "share of requests that may be tried again"),
    ],
};

static OUTLIER: Table = Table {
    keys: &[
        Key::new(
            "consecutive_failures",
            Count { min: 1, max: 1_000 },
            "so many traps in a row make a replica dead",
        )
        .default("5"),
        Key::later("eject", "how long it stays out"),
        Key::later("max_ejected", "share of replicas that may be out"),
    ],
};

static PROBES: Table = Table {
    keys: &[
        Key::new("startup", Sub(&STARTUP), "passed once, after the start"),
        Key::new("readiness", Sub(&READINESS), "in the routes or out of them"),
        Key::later("liveness", "restarts a replica that no longer answers"),
    ],
};

static STARTUP: Table = Table {
    keys: &[
        Key::new(
            "path",
            Text(&PROBE),
            "200 to 399 counts; without it one GET of the first route, below 500 counts",
        ),
        Key::new("interval", Duration { min: 1, max: HOUR }, "between tries").default("\"200ms\""),
        Key::new("timeout", Duration { min: 1, max: HOUR }, "of one try").default("\"1s\""),
        Key::new(
            "failures",
            Count { min: 1, max: 100_000 },
            "so many in a row and the start has failed",
        )
        .default("40"),
    ],
};

static READINESS: Table = Table {
    keys: &[
        Key::new("path", Text(&PROBE), "200 to 399 counts").default("\"/ready\""),
        Key::new("interval", Duration { min: 10, max: HOUR }, "between probes").default("\"500ms\""),
        Key::new("timeout", Duration { min: 1, max: HOUR }, "of one probe").default("\"500ms\""),
        Key::new(
            "failures",
            Count { min: 1, max: 1_000 },
            "so many in a row and it leaves the routes",
        )
        .default("2"),
    ],
};

static RESTART: Table = Table {
    keys: &[
        Key::new(
            "policy",
            Choice {
                now: &["always", "on-failure", "never"],
                later: &[],
            },
            "which deaths",
        )
        .default("\"always\""),
        Key::new(
            "backoff",
            Sub(&BACKOFF),
            "how long to wait; starts anew after 60s healthy",
        ),
        Key::new(
            "give_up",
            Sub(&GIVE_UP),
            "then crash-loop: an event, and slow retries at backoff.max",
        ),
    ],
};

static BACKOFF: Table = Table {
    keys: &[
        Key::new("initial", Duration { min: 1, max: HOUR }, "before the first restart").default("\"10ms\""),
        Key::new("max", Duration { min: 1, max: DAY }, "the longest wait").default("\"30s\""),
        Key::new(
            "factor",
            Milli {
                min: 1_000,
                max: 100_000,
            },
            "from one wait to the next",
        )
        .default("2.0"),
        Key::new("jitter", Bool, "spread the restarts of many replicas").default("true"),
    ],
};

static GIVE_UP: Table = Table {
    keys: &[
        Key::new("restarts", Count { min: 1, max: 100_000 }, "so many deaths").default("10"),
        Key::new("within", Duration { min: 1, max: DAY }, "in this time").default("\"5m\""),
    ],
};

const SHARE: Kind = Kind::Amount {
    max: ReplicaCount::MAX as u64,
    max_percent: 1_000,
};

static ROLLOUT: Table = Table {
    keys: &[
        Key::new(
            "strategy",
            Choice {
                now: &["rolling"],
                later: &["canary", "blue-green", "recreate"],
            },
            "new beside old until the new serve",
        )
        .default("\"rolling\""),
        Key::new("max_surge", SHARE, "replicas above the wanted number, rounded up").default("\"100%\""),
        Key::new("max_unavailable", SHARE, "replicas below the wanted number").default("0"),
        Key::new(
            "min_healthy_time",
            Duration { min: 0, max: HOUR },
            "a new replica counts after serving so long",
        )
        .default("\"1s\""),
        Key::new(
            "progress_deadline",
            Duration { min: 1, max: DAY },
            "no progress for so long refuses the revision",
        )
        .default("\"60s\""),
        Key::new(
            "auto_rollback",
            Bool,
            "a refused revision gives way to the last good one",
        )
        .default("true"),
        Key::new("keep_revisions", Count { min: 1, max: 1_000 }, "for undo").default("20"),
        Key::later("steps", "weights of a canary"),
        Key::later("gates", "what a canary is measured by"),
        Key::later("capabilities", "what happens when a revision wants more"),
    ],
};

static KEYVALUE: Table = Table {
    keys: &[
        Key::new("name", Text(&STORE_NAME), "as the guest opens it").default("\"default\""),
        Key::new(
            "backend",
            Choice {
                now: &["embedded"],
                later: &["redis"],
            },
            "where it is kept",
        )
        .default("\"embedded\""),
        Key::new(
            "size",
            Size {
                min: KIB,
                max: 64 * GIB,
            },
            "quota",
        )
        .default("\"64MiB\""),
    ],
};

static OUTBOUND: Table = Table {
    keys: &[
        Key::new("allow", List(&TARGET), "origins; `*` only as a whole first label").default("[]"),
        Key::new(
            "private",
            Bool,
            "allowed names may lead to loopback, private and link-local addresses",
        )
        .default("false"),
        Key::new(
            "timeout",
            Duration { min: 1, max: HOUR },
            "of a call until its response head",
        )
        .default("\"5s\""),
        Key::new("concurrent", Count { min: 1, max: 10_000 }, "calls at once per replica").default("64"),
        Key::later("credentials", "headers the host adds"),
    ],
};

static LOGS: Table = Table {
    keys: &[
        Key::new(
            "level",
            Choice {
                now: &["debug", "info", "warn", "error"],
                later: &[],
            },
            "lines below it are dropped",
        )
        .default("\"info\""),
        Key::new("rate", Rate, "lines per second; the surplus is counted and reported").default("\"200/s\""),
        Key::new("keep", Size { min: KIB, max: GIB }, "ring per service, in memory").default("\"4MiB\""),
    ],
};
