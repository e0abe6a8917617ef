//! Every key of a service file. Adding a feature starts with moving its key from `later` to `new` here.

use super::checks::{
    DIGEST, FIELD_NAME, FIELD_VALUE, LINE, METHOD, MODULE, SECRET_NAME, SERVICE_NAME, STORE_NAME, VALUE, VARIABLE,
};
use super::hosts::{HOST, PATH, PROBE};
use super::keys::Kind::{Bool, Choice, Count, Duration, List, Map, Milli, Rate, Size, Table as Sub, Tables, Text};
use super::keys::{Key, Kind, Table};
use super::network::{ALLOWED, BACKEND, CREDENTIAL_HEADER, CREDENTIAL_HOST};
use super::rollout::{MORE, SHARE_OF_REQUESTS, TOKEN, WEIGHT};
use super::schedule::SCHEDULE;
use super::volumes::{MOUNT, VOLUME_NAME};
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
        Key::new(
            "secrets",
            Map {
                key: &VARIABLE,
                value: &SECRET_NAME,
            },
            "environment of the guest, filled from the node's secrets by their names",
        )
        .default("{}"),
        Key::new("limits", Sub(&LIMITS), "what one replica and one request may use"),
        Key::new("route", Tables(&ROUTE), "ways in"),
        Key::new("traffic", Sub(&TRAFFIC), "how requests are spread and replicas leave"),
        Key::new("probes", Sub(&PROBES), "when a replica is started, and ready"),
        Key::new("restart", Sub(&RESTART), "what happens after a death"),
        Key::new("rollout", Sub(&ROLLOUT), "how one revision replaces another"),
        Key::new(
            "autoscale",
            Sub(&AUTOSCALE),
            "replicas by load; `replicas` is the first count only",
        ),
        Key::new("keyvalue", Tables(&KEYVALUE), "wasi:keyvalue stores"),
        Key::new(
            "volume",
            Tables(&VOLUME),
            "directories of the guest, kept over restarts and revisions",
        ),
        Key::new("outbound", Sub(&OUTBOUND), "which origins the guest may call"),
        Key::new("logs", Sub(&LOGS), "what is kept of its output"),
        Key::new("schedule", Tables(&SCHEDULE), "replicas, a request or a run at a time"),
        Key::later("program", "a native executable instead of a module"),
        Key::later("rootfs", "file system of a native program"),
        Key::later("signature", "who must have signed the module"),
        Key::later("rate_limit", "requests per client"),
        Key::new("job", Sub(&JOB), "runs of a command, with world = \"command\""),
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
        Key::new("methods", List(&METHOD), "only these methods; all without it"),
        Key::new(
            "headers",
            Map {
                key: &FIELD_NAME,
                value: &FIELD_VALUE,
            },
            "only with these headers, each with exactly this value",
        ),
        Key::new(
            "query",
            Map {
                key: &LINE,
                value: &LINE,
            },
            "only with these parameters in the query, each with exactly this value",
        ),
        Key::new("strip", Bool, "hide the path's prefix from the guest").default("false"),
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
        Key::new(
            "https_redirect",
            Bool,
            "send plain HTTP to HTTPS, on a node with http.tls_listen",
        )
        .default("false"),
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
        Key::new(
            "outlier",
            Sub(&OUTLIER),
            "when failures take a replica out of the routes, and traps make it dead",
        ),
        Key::new(
            "drain",
            Duration { min: 0, max: HOUR },
            "for requests in flight when a replica leaves",
        )
        .default("\"30s\""),
        Key::later("hash_on", "what hash balancing looks at"),
        Key::later("sticky", "one client, one replica"),
        Key::new("pin", Sub(&PIN), "a request may ask for a revision that serves"),
        Key::later("mirror", "a copy of the traffic"),
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
            "so many traps in a row make a replica dead; so many failures (traps, timeouts, 5xx) take it out of the routes",
        )
        .default("5"),
        Key::new(
            "eject",
            Duration { min: 100, max: HOUR },
            "how long it stays out; longer each time, up to 5 min",
        )
        .default("\"10s\""),
        Key::new(
            "max_ejected",
            Kind::Amount {
                max: 10_000,
                max_percent: 100,
            },
            "of the serving replicas so many may be out, rounded down, never all",
        )
        .default("\"50%\""),
    ],
};

static PROBES: Table = Table {
    keys: &[
        Key::new("startup", Sub(&STARTUP), "passed once, after the start"),
        Key::new("readiness", Sub(&READINESS), "in the routes or out of them"),
        Key::new("liveness", Sub(&LIVENESS), "restarts a replica that no longer answers"),
    ],
};

static LIVENESS: Table = Table {
    keys: &[
        Key::new("path", Text(&PROBE), "200 to 399 counts").default("\"/healthz\""),
        Key::new("interval", Duration { min: 10, max: HOUR }, "between probes").default("\"10s\""),
        Key::new("timeout", Duration { min: 1, max: HOUR }, "of one probe").default("\"1s\""),
        Key::new(
            "failures",
            Count { min: 1, max: 1_000 },
            "so many in a row and it is dead",
        )
        .default("3"),
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
                now: &["rolling", "canary", "blue-green", "recreate"],
                later: &[],
            },
            "new beside old until the new serve; a growing share; one switch; old gone, then new",
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
        Key::new(
            "steps",
            Tables(&ROLLOUT_STEP),
            "of a canary (5, 25, 50 % for 30s each); one of a blue-green rollout (60s)",
        ),
        Key::new("gates", Sub(&GATES), "what the new revision is measured by"),
        Key::new(
            "capabilities",
            Choice {
                now: &["ask", "allow"],
                later: &[],
            },
            "ask stops a revision that wants more than the one before until it is accepted",
        )
        .default("\"ask\""),
    ],
};

static JOB: Table = Table {
    keys: &[
        Key::new(
            "completions",
            Count { min: 1, max: 1_000 },
            "so many attempts must end with code 0",
        )
        .default("1"),
        Key::new("parallelism", Count { min: 1, max: 1_000 }, "attempts at once, at most").default("1"),
        Key::new(
            "retries",
            Count { min: 0, max: 1_000 },
            "failed attempts that a run survives, all together",
        )
        .default("3"),
        Key::new(
            "timeout",
            Duration { min: 1, max: 7 * DAY },
            "wall clock of a whole run",
        )
        .default("\"10m\""),
    ],
};

static AUTOSCALE: Table = Table {
    keys: &[
        Key::new(
            "min",
            Count {
                min: 0,
                max: ReplicaCount::MAX as u64,
            },
            "the fewest; 0 is scaled to zero, and the first request waits for the start",
        )
        .default("2"),
        Key::new(
            "max",
            Count {
                min: 1,
                max: ReplicaCount::MAX as u64,
            },
            "the most",
        )
        .default("20"),
        Key::new(
            "metric",
            Choice {
                now: &["concurrency", "rps", "cpu", "queue"],
                later: &[],
            },
            "what the load is measured by",
        )
        .default("\"concurrency\""),
        Key::new(
            "target",
            Kind::Amount {
                max: 1_000_000,
                max_percent: 1_000,
            },
            "of one replica: a share of limits.concurrency or of one processor (cpu), a number for rps and queue",
        )
        .default("\"70%\""),
        Key::new(
            "panic_window",
            Duration { min: 1, max: HOUR },
            "twice the target is answered at once, and nothing is taken away for so long",
        )
        .default("\"6s\""),
        Key::new("up", Sub(&SCALE_UP), "how fast it grows below twice the target"),
        Key::new("down", Sub(&SCALE_DOWN), "how fast it shrinks"),
        Key::new(
            "idle",
            Duration { min: 1, max: DAY },
            "without a request for so long it is scaled to zero; only with min = 0",
        )
        .default("\"5m\""),
    ],
};

const STEP: &str = "so much of the present number at once, at least one replica";
const STEP_WINDOW: &str = "the load is looked at over so long, and one step is made in it";

static SCALE_UP: Table = Table {
    keys: &[
        Key::new("step", SHARE, STEP).default("\"100%\""),
        Key::new("window", Duration { min: 1, max: HOUR }, STEP_WINDOW).default("\"6s\""),
    ],
};

static SCALE_DOWN: Table = Table {
    keys: &[
        Key::new("step", SHARE, STEP).default("\"25%\""),
        Key::new("window", Duration { min: 1, max: HOUR }, STEP_WINDOW).default("\"60s\""),
    ],
};

static ROLLOUT_STEP: Table = Table {
    keys: &[
        Key::new(
            "weight",
            Text(&WEIGHT),
            "share of the requests; rises from step to step",
        ),
        Key::new(
            "hold",
            Duration { min: 0, max: 7 * DAY },
            "for so long, with the gates open",
        )
        .default("\"30s\""),
    ],
};

static GATES: Table = Table {
    keys: &[
        Key::new(
            "error_rate",
            Text(&SHARE_OF_REQUESTS),
            "answers of 500 and above and failed calls; beyond those of the stable revision",
        )
        .default("\"1%\""),
        Key::new("traps", Text(&SHARE_OF_REQUESTS), "calls that trap, judged alike").default("\"0.1%\""),
        Key::new(
            "p99",
            Duration { min: 1, max: HOUR },
            "99 of 100 answers come within it, or as fast as from the stable revision",
        ),
        Key::new(
            "cpu",
            Text(&MORE),
            "processor time per request, medians, beyond the stable revision's",
        ),
        Key::new("min_requests", Count { min: 1, max: 1_000_000 }, "fewer say nothing").default("100"),
        Key::new(
            "compare",
            Choice {
                now: &["stable", "none"],
                later: &[],
            },
            "what the figures are held against",
        )
        .default("\"stable\""),
    ],
};

static PIN: Table = Table {
    keys: &[
        Key::new(
            "header",
            Text(&TOKEN),
            "name of the request header with the revision's number",
        ),
        Key::new("cookie", Text(&TOKEN), "name of the cookie with it"),
    ],
};

static KEYVALUE: Table = Table {
    keys: &[
        Key::new("name", Text(&STORE_NAME), "as the guest opens it").default("\"default\""),
        Key::new(
            "backend",
            Text(&BACKEND),
            "where it is kept: `embedded` is a file of this node, else a redis:// URL",
        )
        .default("\"embedded\""),
        Key::new(
            "password",
            Text(&SECRET_NAME),
            "the secret that is the backend's password",
        ),
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

static VOLUME: Table = Table {
    keys: &[
        Key::new("name", Text(&VOLUME_NAME), "a DNS label").required(),
        Key::new("mount", Text(&MOUNT), "where the guest finds it: an absolute path").required(),
        Key::new(
            "size",
            Size {
                min: 64 * KIB,
                max: 64 * GIB,
            },
            "quota; a file, directory or link counts 4 KiB and its content in whole 4 KiB",
        )
        .default("\"32MiB\""),
        Key::new("read_only", Bool, "the guest may not change it").default("false"),
    ],
};

static OUTBOUND: Table = Table {
    keys: &[
        Key::new(
            "allow",
            List(&ALLOWED),
            "http, https and tcp origins, `*` only as a whole first label; `service:NAME`, called as http://NAME.internal",
        )
        .default("[]"),
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
        Key::new("concurrent", Count { min: 1, max: 10_000 }, "calls at once per replica, and as many TCP connections").default("64"),
        Key::new("credentials", Tables(&CREDENTIAL), "headers that the host adds, unseen by the guest").default("[]"),
    ],
};

static CREDENTIAL: Table = Table {
    keys: &[
        Key::new("host", Text(&CREDENTIAL_HOST), "calls to this host get the header").required(),
        Key::new(
            "header",
            Text(&CREDENTIAL_HEADER),
            "its name; what the guest sends under it is replaced",
        )
        .required(),
        Key::new("secret", Text(&SECRET_NAME), "the secret that is its whole value").required(),
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
