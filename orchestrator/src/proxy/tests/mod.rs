//! The data path end to end, over real sockets on port 0, against fake guests. Waits are bounded and end with the event.

mod drain;
pub mod fake;
mod http1;
mod http2;
mod overload;
mod slow;
mod smuggling;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use narae_runtime::{CallError, Instance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::model::service::{HostPattern, Route};

/// No wait of a test lasts longer; one that does is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the event came in time")
}

/// What an observer was told.
#[derive(Default)]
struct Recorder {
    failed: Mutex<Vec<(u64, String, bool)>>,
    traps: Mutex<Vec<u32>>,
    refused: Mutex<Vec<Reason>>,
}

impl Observer for Recorder {
    fn call_failed(&self, _: &Service, upstream: &Upstream, error: &CallError, after_head: bool) {
        self.failed
            .lock()
            .unwrap()
            .push((upstream.id.0, error.to_string(), after_head));
    }

    fn trap_run(&self, _: &Upstream, consecutive: u32) {
        self.traps.lock().unwrap().push(consecutive);
    }

    fn refused(&self, _: Option<&Service>, reason: Reason) {
        self.refused.lock().unwrap().push(reason);
    }
}

pub fn balancer() -> Arc<Balancer> {
    Balancer::new(Arc::new(Recorder::default()), Options::default())
}

/// One server with one service on every path, replicas numbered from 1.
struct World {
    server: Server,
    service: Arc<Service>,
    balancer: Arc<Balancer>,
    recorder: Arc<Recorder>,
}

impl World {
    fn of(instances: Vec<Arc<dyn Instance>>) -> Self {
        Self::with(instances, 64, ServiceTraffic::default(), ServerOptions::default())
    }

    fn with(
        instances: Vec<Arc<dyn Instance>>,
        concurrency: u32,
        traffic: ServiceTraffic,
        options: ServerOptions,
    ) -> Self {
        let recorder = Arc::new(Recorder::default());
        let balancer = Balancer::new(Arc::clone(&recorder) as Arc<dyn Observer>, Options::default());
        let service = Service::new("test".parse().unwrap(), traffic);
        for (id, instance) in (1..).zip(instances) {
            service.admit(fake::upstream(id, concurrency, instance));
        }
        let route = |path: &str| (Route::of(HostPattern::Any, path), Arc::clone(&service));
        balancer.publish(Table::build(vec![route("/ok"), route("/")]));
        let options = ServerOptions { threads: 1, ..options };
        let server = Server::start(&["127.0.0.1:0".parse().unwrap()], Arc::clone(&balancer), options).unwrap();
        Self {
            server,
            service,
            balancer,
            recorder,
        }
    }

    fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    async fn connect(&self) -> Client {
        Client {
            stream: TcpStream::connect(self.address()).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    /// Sends bytes on a new connection and reads to its end.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        client.rest().await
    }

    /// Resolves when nothing is in flight and nobody waits.
    async fn settled(&self) {
        within(async {
            for upstream in self.service.upstreams().iter() {
                upstream.idle().await;
            }
        })
        .await;
        assert_eq!((self.service.in_flight(), self.service.queued()), (0, 0));
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|l| l.split_once(": ").filter(|(n, _)| *n == name).map(|(_, v)| v))
    }
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Sends what the peer may no longer want.
    async fn try_send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(within(self.stream.write_all(bytes.as_ref())).await);
    }

    async fn get(&mut self, path: &str) -> Got {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        self.answer().await
    }

    /// Everything until the end, clean or not.
    async fn rest(&mut self) -> String {
        drop(within(self.stream.read_to_end(&mut self.buffer)).await);
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    async fn more(&mut self) -> bool {
        within(self.stream.read_buf(&mut self.buffer))
            .await
            .is_ok_and(|n| n > 0)
    }

    async fn until(&mut self, mark: &str) -> String {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|w| w == mark.as_bytes()) {
                let rest = self.buffer.split_off(at + mark.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
            }
            assert!(
                self.more().await,
                "connection ended in {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    /// One answer with a content-length.
    async fn answer(&mut self) -> Got {
        let head = self.until("\r\n\r\n").await;
        let status = head[9..12].parse().unwrap();
        let mut got = Got {
            status,
            head,
            body: String::new(),
        };
        let length: usize = got.field("content-length").map_or(0, |l| l.parse().unwrap());
        while self.buffer.len() < length {
            assert!(self.more().await, "connection ended in a body");
        }
        let rest = self.buffer.split_off(length);
        got.body = String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
        got
    }
}
