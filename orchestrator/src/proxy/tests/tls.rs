//! The same data path under TLS: what the guest learns, and that no deadline is lost behind the session's buffers.

use narae_runtime::{Body, Response};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::certificates::{Authority, Certificates};
use crate::clock::Clock;

const SHORT: Duration = Duration::from_millis(60);

struct Secure {
    world: World,
    connector: TlsConnector,
    _dir: tempfile::TempDir,
}

impl Secure {
    fn of(instance: Arc<dyn Instance>, options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), vec!["localhost".into()], Clock::system()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let certificates = Arc::new(Certificates::Internal(Box::new(authority)));
        let tls = TlsOptions {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            config: certificates.server_config().unwrap(),
        };
        let options = ServerOptions {
            tls: Some(tls),
            ..options
        };
        Self {
            world: World::with(vec![instance], 64, ServiceTraffic::default(), options),
            connector: TlsConnector::from(Arc::new(client)),
            _dir: dir,
        }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.world.server.tls_addresses()[0]).await.unwrap();
        let name = ServerName::try_from("a.test").unwrap();
        within(self.connector.connect(name, stream)).await.unwrap()
    }

    async fn closed(&self) {
        within(async {
            while self.world.server.connections() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        self.world.settled().await;
    }
}

#[tokio::test]
async fn the_guest_learns_that_its_client_speaks_tls() {
    let proto = fake::guest(|request| async move {
        let value = request.headers()["x-forwarded-proto"].clone();
        Ok(Response::new(Body::full(value.to_str().unwrap_or_default().to_owned())))
    });
    let secure = Secure::of(proto, ServerOptions::default());
    let mut client = secure.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    within(client.write_all(request)).await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("\r\n\r\nhttps"), "{answer}");
}

#[tokio::test]
async fn a_route_that_asks_for_it_sends_plain_http_to_https_and_keeps_the_connection() {
    let secure = Secure::of(fake::hello(), ServerOptions::default());
    let (world, port) = (&secure.world, secure.world.server.tls_addresses()[0].port());
    let route = Route {
        https_redirect: true,
        ..Route::of(HostPattern::Any, "/")
    };
    world
        .balancer
        .publish(Table::build(vec![(route, Arc::clone(&world.service))]));
    let mut plain = world.connect().await;
    for (path, method) in [("/a?b=%20c", "GET"), ("/", "POST")] {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: A.test:80\r\ncontent-length: 3\r\n\r\nabc");
        plain.send(head).await;
        let got = plain.answer().await;
        let there = format!("https://a.test:{port}{path}");
        assert_eq!((got.status, got.field("location")), (308, Some(there.as_str())));
    }
    let mut client = secure.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    within(client.write_all(request)).await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_under_tls_too() {
    let floods = fake::guest(|_| async { Ok(Response::new(Body::full(vec![b'x'; 64 << 20]))) });
    let options = ServerOptions {
        write_idle: SHORT,
        keep_alive: PATIENCE,
        ..ServerOptions::default()
    };
    let secure = Secure::of(floods, options);
    let mut client = secure.connect().await;
    within(client.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"))
        .await
        .unwrap();
    secure.closed().await;
}

#[tokio::test]
async fn silence_after_the_handshake_is_cut() {
    let options = ServerOptions {
        header_timeout: Duration::from_millis(500),
        ..ServerOptions::default()
    };
    let secure = Secure::of(fake::hello(), options);
    let client = secure.connect().await;
    secure.closed().await;
    drop(client);
}

#[tokio::test]
async fn a_large_answer_arrives_whole_at_a_slow_reader() {
    let large = fake::guest(|_| async { Ok(Response::new(Body::full(vec![b'x'; 8 << 20]))) });
    let secure = Secure::of(large, ServerOptions::default());
    let mut client = secure.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    within(client.write_all(request)).await.unwrap();
    let mut answer = Vec::new();
    within(client.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.len() > 8 << 20, "{}", answer.len());
    secure.closed().await;
}
