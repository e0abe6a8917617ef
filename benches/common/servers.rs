//! The servers that narae is measured against, each a process of its own: this bench started again as a native hyper server or as
//! hyper in front of the bare runtime, and `wasmtime serve` where it is installed.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use narae_runtime::{
    Allocator, Artifact, Backend, Body, CompileHere, Grants, Guest, Instance, Limits, LogSink, Stream, WasmBackend,
    WasmOptions,
};

use super::node;

/// A server that says where it listens; ended when dropped.
pub struct Server {
    child: Child,
    pub at: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Option<Self> {
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let (out, err) = (child.stdout.take()?, child.stderr.take()?);
        let (say, said) = std::sync::mpsc::channel();
        for lines in [
            Box::new(BufReader::new(out)) as Box<dyn BufRead + Send>,
            Box::new(BufReader::new(err)),
        ] {
            let say = say.clone();
            std::thread::spawn(move || {
                for line in lines.lines().map_while(Result::ok) {
                    let at = line.split("http://").nth(1);
                    let _ = at
                        .and_then(|at| at.trim_end_matches('/').parse().ok())
                        .map(|at| say.send(at));
                }
            });
        }
        drop(say);
        match said.recv_timeout(node::BOUND) {
            Ok(at) => Some(Self { child, at }),
            Err(_) => {
                let _ = child.kill();
                None
            }
        }
    }

    /// `kind`: `hyper`, or `direct` with the requests that an instance serves.
    pub fn own(kind: &str, argument: &str) -> Self {
        let this = std::env::current_exe().unwrap();
        Self::start(Command::new(this).args(["--server", kind, argument])).expect("the bench starts itself")
    }

    /// `wasmtime serve`, if it is on the path. `reuse`: requests that an instance serves.
    pub fn wasmtime(module: &str, reuse: Option<u32>) -> Option<Self> {
        let mut command = Command::new("wasmtime");
        command.args(["serve", "-S", "cli", "--addr", "127.0.0.1:0"]);
        if let Some(reuse) = reuse {
            command.arg(format!("--max-instance-reuse-count={reuse}"));
        }
        Self::start(command.arg(node::module(module)))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process so far, in seconds.
pub fn processor(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
}

/// When this process was started as one of its own servers: serves until it is killed.
pub fn serve_if_asked() {
    let args: Vec<String> = std::env::args().collect();
    let Some(at) = args.iter().position(|a| a == "--server") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let argument = args[at + 2].clone();
    match args[at + 1].as_str() {
        "hyper" => runtime.block_on(native()),
        _ => runtime.block_on(direct(argument.parse().unwrap())),
    }
}

async fn listen() -> tokio::net::TcpListener {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    std::io::stdout().flush().unwrap();
    listener
}

/// The bytes of the guests, from a function: the bound for anything that serves them on hyper.
async fn native() {
    let listener = listen().await;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request: http::Request<Incoming>| async move { Ok::<_, Infallible>(same(request)) });
        tokio::spawn(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

fn same(request: http::Request<Incoming>) -> http::Response<BoxBody<Bytes, hyper::Error>> {
    static LARGE: [u8; 65536] = [b'.'; 65536];
    if request.method() == http::Method::POST {
        return http::Response::new(request.into_body().boxed());
    }
    let bytes: &'static [u8] = if request.uri().query().is_some() {
        &LARGE
    } else {
        b"hello from narae\n"
    };
    let body = Full::new(Bytes::from_static(bytes))
        .map_err(|never| match never {})
        .boxed();
    http::Response::builder()
        .header("content-type", "text/plain")
        .body(body)
        .expect("constants make an answer")
}

/// The runtime alone: no guard, no routes, no balancing, no limits of a service, no metrics. Writes are as late as narae's.
async fn direct(uses: u32) {
    let (_backend, instance) = instance("hello", uses).await;
    let listener = listen().await;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let instance = Arc::clone(&instance);
        let service = service_fn(move |request: http::Request<Incoming>| {
            let called = instance.call(request.map(|_| Body::Empty));
            async move {
                let answer = called.await;
                tokio::task::yield_now().await;
                answer
            }
        });
        tokio::spawn(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

struct Unheard;

impl LogSink for Unheard {
    fn line(&self, _: Stream, _: &[u8]) {}
}

/// A guest of the runtime in this process, whose instances serve so many requests each.
pub async fn guest(module: &str, uses: u32) -> (Arc<WasmBackend>, Guest) {
    let options = WasmOptions {
        allocator: Allocator::Auto,
        memory_budget_bytes: 1 << 30,
        compile: Arc::new(CompileHere),
        outbound: None,
    };
    let backend = WasmBackend::new(options).expect("an engine");
    let artifact = Artifact::read(std::fs::read(node::module(module)).unwrap().into()).expect("a committed guest");
    let guest = Guest {
        prepared: backend.prepare(&artifact).await.expect("a committed guest"),
        label: module.into(),
        limits: Limits {
            requests_per_instance: Some(uses),
            ..Limits::default()
        },
        grants: Grants::default(),
        logs: Arc::new(Unheard),
    };
    (backend, guest)
}

pub async fn instance(module: &str, uses: u32) -> (Arc<WasmBackend>, Arc<dyn Instance>) {
    let (backend, guest) = guest(module, uses).await;
    let instance = backend.start(guest).await.expect("starts");
    (backend, instance)
}
