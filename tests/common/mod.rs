//! A node run as its users run it: the real binary, on free ports, in a temporary directory.
#![allow(clippy::disallowed_methods, reason = "a test bounds its waits by the clock")]
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// No wait of a test is longer.
pub const BOUND: Duration = Duration::from_secs(60);

/// `NARAE_BINARY` measures another build with the same tests.
pub fn binary() -> &'static str {
    static BINARY: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BINARY.get_or_init(|| std::env::var("NARAE_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_narae").to_owned()))
}

/// The binary is a release build on a machine that is ours: what is promised for one is held to the letter.
pub fn strict() -> bool {
    std::env::var_os("NARAE_STRICT").is_some()
}

/// A committed guest.
pub fn module(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("modules/prebuilt")
        .join(format!("{name}.wasm"))
}

/// A running `narae serve`; killed when dropped.
pub struct Node {
    child: Child,
    pub dir: tempfile::TempDir,
    pub http: SocketAddr,
    /// What `serve` said until it was ready, and after.
    pub said: mpsc::Receiver<String>,
    pub ready_after: Duration,
    extra: Vec<String>,
}

impl Node {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments for `serve`.
    pub fn start_with(extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("narae-")
            .tempdir()
            .expect("a temporary directory");
        Self::launch(dir, extra.iter().map(|s| (*s).to_owned()).collect(), |c| c)
    }

    /// With a node file.
    pub fn start_with_config(toml: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("narae-")
            .tempdir()
            .expect("a temporary directory");
        std::fs::write(dir.path().join("node.toml"), toml).unwrap();
        let config = dir.path().join("node.toml").to_str().unwrap().to_owned();
        Self::launch(dir, vec!["--config".into(), config], |c| c)
    }

    /// Through another program, such as `sh -c 'ulimit …; exec "$@"'`.
    pub fn start_under(wrap: impl Fn(Command) -> Command, extra: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("narae-")
            .tempdir()
            .expect("a temporary directory");
        Self::launch(dir, extra.iter().map(|s| (*s).to_owned()).collect(), wrap)
    }

    fn launch(dir: tempfile::TempDir, extra: Vec<String>, wrap: impl Fn(Command) -> Command) -> Self {
        let started = Instant::now();
        let mut command = Command::new(binary());
        command
            .arg("serve")
            .args(["--data-dir", dir.path().join("data").to_str().unwrap()])
            .args(["--listen", "127.0.0.1:0"]);
        command.args(&extra);
        let mut command = wrap(command);
        command
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("narae starts");
        let stderr = child.stderr.take().expect("piped");
        let (say, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        let mut heard = Vec::new();
        let http = loop {
            match said.recv_timeout(BOUND) {
                Ok(line) => {
                    let address = line
                        .split("http://")
                        .nth(1)
                        .and_then(|rest| rest.split([' ', ',', '/']).next()?.parse().ok());
                    heard.push(line);
                    if let Some(address) = address {
                        break address;
                    }
                }
                Err(_) => {
                    let _ = child.kill();
                    panic!("narae serve never said where it listens; it said: {heard:#?}");
                }
            }
        };
        Self {
            child,
            dir,
            http,
            said,
            ready_after: started.elapsed(),
            extra,
        }
    }

    /// A node on the data of an earlier one, as `terminate` gave it back.
    pub fn again(dir: tempfile::TempDir, extra: &[&str]) -> Self {
        Self::launch(dir, extra.iter().map(|s| (*s).to_owned()).collect(), |c| c)
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// One request to the admin API through the socket; `None` when nobody answers.
    pub fn api(&self, method: &str, path: &str, body: &[u8]) -> Option<Reply> {
        socket_request(&self.socket(), method, path, body)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("data/admin.sock")
    }

    /// Runs `narae` as a client of this node.
    pub fn narae(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("narae runs")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env("NARAE_HOST", format!("unix:{}", self.socket().display()))
            .env("NO_COLOR", "1");
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs it, must succeed, returns stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.narae(args);
        assert!(
            output.status.success(),
            "narae {args:?} ended {:?}\n{}{}",
            output.status.code(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Writes a service file beside a copy of its module, ready for `deploy`; its route is the host `NAME.test`.
    pub fn file(&self, name: &str, guest: &str, more: &str) -> String {
        let wasm = self.dir.path().join(format!("{guest}.wasm"));
        if !wasm.exists() {
            std::fs::copy(module(guest), &wasm).unwrap();
        }
        let path = self.dir.path().join(format!("{name}.toml"));
        let own = more.contains("routes") || more.contains("[[route]]");
        let route = if own {
            String::new()
        } else {
            format!("[[route]]\nhost = \"{name}.test\"\n")
        };
        // Keys of the top level come before the first table.
        let (top, tables) = more
            .find('[')
            .filter(|_| !more.starts_with("routes"))
            .map_or((more, ""), |at| more.split_at(at));
        std::fs::write(
            &path,
            format!("name = \"{name}\"\nmodule = \"{guest}.wasm\"\n{top}\n{route}{tables}\n"),
        )
        .unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Deploys a guest under its own host and waits until it serves.
    pub fn deploy(&self, name: &str, guest: &str, more: &str) {
        let file = self.file(name, guest, more);
        self.ok(&["deploy", &file]);
    }

    /// `get("/hello/x?y")` asks the service `hello` for `/x?y`, on a connection of its own.
    pub fn get(&self, target: &str) -> Reply {
        let rest = target
            .strip_prefix('/')
            .expect("a target starts with the service's name");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (name, path) = rest.split_at(end);
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        request(self.http, "GET", &path, &[("host", &format!("{name}.test"))], b"")
    }

    /// A GET of this very path, for `localhost`.
    pub fn get_path(&self, path: &str) -> Reply {
        request(self.http, "GET", path, &[], b"")
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.ok(args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}\n{text}"))
    }

    /// `kill -9`, then the same node again on the same data.
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        let extra = std::mem::take(&mut self.extra);
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        drop(self);
        Self::launch(dir, extra, |c| c)
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> (std::process::ExitStatus, tempfile::TempDir) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        (status, std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap()))
    }

    /// Resident memory of the daemon, in bytes.
    pub fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Waits until `check` holds, looking again every few milliseconds, at most `BOUND`.
    pub fn until(&self, what: &str, mut check: impl FnMut(&Self) -> bool) {
        until(what, || check(self));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for an outside process's state, which has no event to wait for: looks again until the bound.
pub fn until(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < BOUND, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The body ended as its framing said it would.
    pub whole: bool,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|l| {
            let (key, value) = l.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One request with `connection: close`, read to its end.
pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let host = headers
        .iter()
        .find(|(name, _)| *name == "host")
        .map_or("localhost", |(_, host)| host);
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    raw(to, &bytes)
}

/// Sends these bytes and reads until the server closes.
pub fn raw(to: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(to).expect("connects");
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    parse(&answer)
}

/// One request over a Unix socket, read to its end; `None` when nobody answers.
pub fn socket_request(socket: &Path, method: &str, path: &str, body: &[u8]) -> Option<Reply> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: narae\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Some(parse(&answer)).filter(|reply| reply.status != 0 && reply.whole)
}

/// Runs `narae serve`, which must refuse to start; returns its exit code and what it said.
pub fn refused(data: &Path, extra: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(binary())
        .arg("serve")
        .args(["--data-dir", data.to_str().unwrap()])
        .args(extra)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("narae starts");
    let mut stderr = child.stderr.take().expect("piped");
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        let _ = say.send(text);
    });
    let said = said.recv_timeout(BOUND);
    let _ = child.kill();
    let status = child.wait().unwrap();
    (status.code(), said.expect("it started instead of refusing"))
}

fn parse(answer: &[u8]) -> Reply {
    let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Reply {
            status: 0,
            head: String::from_utf8_lossy(answer).into_owned(),
            body: Vec::new(),
            whole: false,
        };
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut reply = Reply {
        status,
        head,
        body: answer[end + 4..].to_vec(),
        whole: true,
    };
    if reply.header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        let (body, whole) = unchunk(&reply.body);
        reply.body = body;
        reply.whole = whole;
    } else if let Some(length) = reply.header("content-length").and_then(|v| v.parse::<usize>().ok()) {
        reply.whole = reply.body.len() == length;
    }
    reply
}

fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = bytes.windows(2).position(|w| w == b"\r\n") else {
            return (body, false);
        };
        let size = std::str::from_utf8(&bytes[..line])
            .ok()
            .and_then(|s| usize::from_str_radix(s.split(';').next()?.trim(), 16).ok());
        let Some(size) = size else { return (body, false) };
        bytes = &bytes[line + 2..];
        if size == 0 {
            return (body, true);
        }
        if bytes.len() < size + 2 {
            body.extend_from_slice(&bytes[..bytes.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&bytes[..size]);
        bytes = &bytes[size + 2..];
    }
}
