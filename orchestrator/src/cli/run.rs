//! Verbs that run something in this process: the daemon, one module, the demonstration. Shapes what was typed; the doing is
//! behind `seams`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;
use narae_runtime::Artifact;

use super::codes;
use super::exit::Exit;
use super::report::{Failure, Report};
use super::session::Session;
use super::units::{parse_duration, parse_size};
use super::{boot, seams, source};
use crate::model::{ReplicaCount, ServiceName};

/// `narae serve`. A flag wins over the node file.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Node file
    #[arg(long, env = "NARAE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where state, modules and the admin socket are kept
    #[arg(long, env = "NARAE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address for the services' HTTP; may be given several times, or with commas
    #[arg(long, env = "NARAE_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Address for the admin API over TCP, on loopback; a token is always needed there
    #[arg(long, env = "NARAE_ADMIN", value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// For trying out: state in a temporary directory, readable log lines
    #[arg(long, env = "NARAE_DEV", value_parser = FalseyValueParser::new())]
    pub dev: bool,
}

/// `narae demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How long the load lasts
    #[arg(long, env = "NARAE_DEMO_SECONDS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: Option<u32>,
    /// Keep the node and its directory after the end, until the keyboard ends it
    #[arg(long, env = "NARAE_DEMO_KEEP", value_parser = FalseyValueParser::new())]
    pub keep: bool,
}

/// `narae run`, as typed.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Component, preview 1 core module, or text of either (.wat)
    pub module: PathBuf,
    /// Address and port to serve on; default 127.0.0.1:8080
    #[arg(short, long, value_name = "[ADDR:]PORT", value_parser = publish)]
    pub publish: Option<SocketAddr>,
    /// Environment of the guest; without a value, this program's own
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// File of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Linear memory of one instance (128MiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Time limit of one request (30s), or of the whole run of a command (none)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Path (or host/path) to serve on, may be given several times; default /
    #[arg(long, value_name = "ROUTE")]
    pub route: Vec<String>,
    /// How many replicas
    #[arg(long, value_name = "N", default_value = "1", value_parser = replicas)]
    pub replicas: ReplicaCount,
    /// Leave nothing behind; always so here, for fingers trained elsewhere
    #[arg(long)]
    pub rm: bool,
    /// Arguments of the guest
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

/// One module to run, read and inspected.
#[derive(Clone)]
pub struct Launch {
    /// A service name made of the file's.
    pub name: ServiceName,
    /// As typed, for messages.
    pub shown: String,
    pub artifact: Artifact,
    /// Where an HTTP component is served.
    pub listen: SocketAddr,
    /// In order; a later pair wins.
    pub env: Vec<(String, String)>,
    pub args: Vec<String>,
    /// None: the default of `[limits]`.
    pub memory_bytes: Option<u64>,
    /// HTTP: `limits.timeout`; command: of the whole run, none means no limit.
    pub timeout: Option<Duration>,
    /// As in a service file: `/x` or `host/x`; at least one.
    pub routes: Vec<String>,
    pub replicas: ReplicaCount,
}

impl Launch {
    /// The service file that says the same, for an embedded node.
    pub fn toml(&self) -> String {
        use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, value};
        let mut document = DocumentMut::new();
        document["name"] = value(self.name.as_str());
        document["module"] = value(self.shown.as_str());
        document["replicas"] = value(i64::from(self.replicas.get()));
        if !self.args.is_empty() {
            document["args"] = value(self.args.iter().collect::<Array>());
        }
        if !self.env.is_empty() {
            let mut env = Table::new();
            for (key, text) in &self.env {
                env[key] = value(text.as_str());
            }
            document["env"] = Item::Table(env);
        }
        let mut limits = Table::new();
        if let Some(bytes) = self.memory_bytes {
            limits["memory"] = value(kib(bytes));
        }
        if let Some(timeout) = self.timeout {
            limits["timeout"] = value(format!("{}ms", timeout.as_millis()));
        }
        if !limits.is_empty() {
            document["limits"] = Item::Table(limits);
        }
        let routes = self.routes.iter().map(|route| {
            let mut table = InlineTable::new();
            let (host, path) = route.split_once('/').unwrap_or((route.as_str(), ""));
            if !host.is_empty() {
                table.insert("host", host.into());
            }
            table.insert("path", format!("/{path}").into());
            table
        });
        document["route"] = value(routes.collect::<Array>());
        document.to_string()
    }
}

/// Runs one module.
///
/// # Errors
/// It cannot be read or run; 125 when it is a command.
pub fn run(session: &Session, args: RunArgs) -> Result<Exit, Failure> {
    let failed = |report| Failure::of(Exit::RunFailed, vec![report]);
    if args.module.extension().is_some_and(|e| e == "toml") {
        let shown = args.module.display();
        return Err(failed(
            Report::new(codes::MODULE_FILE, format!("`{shown}` is a service file, not a module")).help(format!(
                "deploy it with `narae deploy {shown}`, or run the module it names"
            )),
        ));
    }
    let read = source::module(Path::new(""), &args.module.to_string_lossy()).map_err(failed)?;
    let artifact = seams::inspect(&read.bytes, &args.module.to_string_lossy(), None).map_err(failed)?;
    let http = artifact.kind.is_http();
    let launch = launch(args, artifact)?;
    session.detail(&format!(
        "{} is {:?}, {}",
        launch.shown, launch.artifact.kind, launch.artifact.digest
    ));
    if http {
        return boot::run_http(session, launch);
    }
    boot::run_command(session, launch).map_err(|failure| Failure {
        exit: Exit::RunFailed,
        ..failure
    })
}

fn launch(args: RunArgs, artifact: Artifact) -> Result<Launch, Failure> {
    let mut env = Vec::new();
    for file in &args.env_file {
        let text = std::fs::read_to_string(file).map_err(|e| {
            Failure::new(
                Exit::RunFailed,
                codes::READ,
                format!("cannot read `{}`: {}", file.display(), super::units::io_words(&e)),
            )
        })?;
        env.extend(env_lines(&text).map_err(|line| {
            let report = Report::new(codes::VALUE, "expected KEY=VALUE").at(file.display().to_string(), line, 1);
            Failure::of(Exit::RunFailed, vec![report])
        })?);
    }
    for pair in &args.env {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => env.push((key.to_owned(), value.to_owned())),
            Some(_) => {
                return Err(Failure::new(
                    Exit::Usage,
                    codes::VALUE,
                    format!("`-e {pair}` names no variable"),
                ));
            }
            None => env.extend(std::env::var(pair).ok().map(|value| (pair.clone(), value))),
        }
    }
    let routes = if args.route.is_empty() {
        vec!["/".into()]
    } else {
        args.route
    };
    Ok(Launch {
        name: name_of(&args.module),
        shown: args.module.display().to_string(),
        artifact,
        listen: args
            .publish
            .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080)),
        env,
        args: args.args,
        memory_bytes: args.memory,
        timeout: args.timeout,
        routes,
        replicas: args.replicas,
    })
}

/// Whole KiB: a page of linear memory is 64 of them.
fn kib(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{}MiB", bytes >> 20)
    } else {
        format!("{}KiB", bytes.div_ceil(1 << 10))
    }
}

/// `KEY=VALUE` lines; empty ones and those that begin with `#` are left out. The error is the number of a bad line.
fn env_lines(text: &str) -> Result<Vec<(String, String)>, u32> {
    let mut pairs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => pairs.push((key.trim().to_owned(), value.to_owned())),
            _ => return Err(number),
        }
    }
    Ok(pairs)
}

/// A service name out of a file name: `My App.wasm` is `my-app`.
fn name_of(path: &Path) -> ServiceName {
    let stem = path
        .file_stem()
        .map(|s| s.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    name.trim_matches('-')
        .parse()
        .unwrap_or_else(|_| "app".parse().expect("`app` is a service name"))
}

fn publish(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse()
        .map_err(|_| "expected a port (on 127.0.0.1), or ADDRESS:PORT as 0.0.0.0:8080".to_owned())
}

fn replicas(text: &str) -> Result<ReplicaCount, String> {
    let count = text.parse().ok().and_then(ReplicaCount::new);
    count
        .filter(|n| n.get() > 0)
        .ok_or_else(|| format!("expected 1 to {}", ReplicaCount::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        assert_eq!(publish("8081").unwrap().to_string(), "127.0.0.1:8081");
        assert_eq!(publish("0.0.0.0:80").unwrap().to_string(), "0.0.0.0:80");
        assert!(publish("box:80").is_err() && publish("99999").is_err());
    }

    #[test]
    fn a_name_is_made_of_any_file_name() {
        let of = |p: &str| name_of(Path::new(p)).to_string();
        assert_eq!(
            [of("My App.wasm"), of("/x/나래.wat"), of("-.wasm"), of("hello.wasm")],
            ["my-app", "app", "app", "hello"]
        );
    }

    #[test]
    fn a_bad_line_of_an_env_file_is_named() {
        assert_eq!(
            env_lines("# c\n\nA=1\nB = x=y\n"),
            Ok(vec![("A".into(), "1".into()), ("B".into(), " x=y".into())])
        );
        assert_eq!(env_lines("A=1\noops\n"), Err(2));
    }

    #[test]
    fn what_was_typed_becomes_a_service_file() {
        let launch = Launch {
            name: "hello".parse().unwrap(),
            shown: "hello.wasm".into(),
            artifact: seams::inspect(&bytes::Bytes::from_static(b"\0asm"), "x", None).unwrap_or_else(|_| Artifact {
                digest: narae_runtime::Digest::of(b""),
                kind: narae_runtime::Kind::Http02,
                imports: vec![],
                exports: vec![],
                bytes: bytes::Bytes::new(),
            }),
            listen: publish("0").unwrap(),
            env: vec![("A".into(), "x \"y\"".into())],
            args: vec!["-v".into()],
            memory_bytes: Some(64 << 20),
            timeout: Some(Duration::from_secs(5)),
            routes: vec!["/".into(), "api.test/v1".into()],
            replicas: ReplicaCount::ONE,
        };
        insta::assert_snapshot!(launch.toml());
    }
}
