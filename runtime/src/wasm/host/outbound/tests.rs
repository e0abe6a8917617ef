//! The rules of `outbound`, one test each.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::backend::Task;
use crate::guest::Target;
use crate::wasm::host::outside::{Real, Wire};

const PUBLIC: &str = "93.184.216.34";

/// A world with one server: names resolve to what the test says, turn by turn, and every connection ends at it.
struct Fake {
    server: SocketAddr,
    answers: Mutex<VecDeque<Vec<&'static str>>>,
    resolved: Mutex<Vec<String>>,
    connected: Mutex<Vec<SocketAddr>>,
}

impl Fake {
    fn new(server: SocketAddr, answers: &[&[&'static str]]) -> Arc<Self> {
        Arc::new(Self {
            server,
            answers: Mutex::new(answers.iter().map(|a| a.to_vec()).collect()),
            resolved: Mutex::default(),
            connected: Mutex::default(),
        })
    }

    fn connected(&self) -> Vec<String> {
        self.connected.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

impl Outside for Fake {
    fn monotonic_now(&self) -> u64 {
        Real.monotonic_now()
    }
    fn monotonic_resolution(&self) -> u64 {
        1
    }
    fn sleep_until(&self, when: u64) -> Task<'static, ()> {
        Real.sleep_until(when)
    }
    fn wall_now(&self) -> Duration {
        Duration::ZERO
    }
    fn wall_resolution(&self) -> Duration {
        Duration::ZERO
    }
    fn secure_random(&self, out: &mut [u8]) {
        out.fill(0);
    }
    fn insecure_seed(&self) -> u128 {
        0
    }
    fn resolve(&self, host: String, port: u16) -> Task<'static, io::Result<Vec<SocketAddr>>> {
        self.resolved.lock().unwrap().push(host);
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or_default();
        Box::pin(async move {
            Ok(answer
                .iter()
                .map(|ip| SocketAddr::new(ip.parse().unwrap(), port))
                .collect())
        })
    }
    fn connect(&self, address: SocketAddr) -> Task<'static, io::Result<Box<dyn Wire>>> {
        self.connected.lock().unwrap().push(address);
        let server = self.server;
        Box::pin(async move { Ok(Box::new(TcpStream::connect(server).await?) as Box<dyn Wire>) })
    }
}

/// A server that answers every request with these bytes and shows each head it read.
async fn server(answer: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte).await {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        heads.send(String::from_utf8(std::mem::take(&mut head)).unwrap()).ok();
                        stream.write_all(answer).await.ok();
                        if answer.windows(17).any(|w| w == b"connection: close") {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, seen)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const OK_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";

fn policy(hosts: &[(&str, u16)]) -> Outbound {
    let target = |(host, port): &(&str, u16)| Target {
        scheme: "http".into(),
        host: (*host).into(),
        port: *port,
    };
    Outbound {
        allow: hosts.iter().map(target).collect(),
        ..Outbound::default()
    }
}

fn get(uri: &str) -> Request<WasiBody> {
    Request::get(uri)
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
        .unwrap()
}

async fn text(response: Response<WasiBody>) -> Result<String> {
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn a_call_that_is_not_allowed_asks_nobody_anything() {
    let (address, _) = server(OK).await;
    let fake = Fake::new(address, &[]);
    for policy in [Outbound::default(), policy(&[("other.test", 80)])] {
        let client = OutboundClient::new(policy, fake.clone());
        let error = client.send(get("http://name.test/"), None).await.unwrap_err();
        assert!(matches!(error, Error::HttpRequestDenied), "{error}");
    }
    assert!(fake.resolved.lock().unwrap().is_empty() && fake.connected().is_empty());
}

#[tokio::test]
async fn a_name_that_resolves_to_closed_addresses_is_not_connected_to() {
    let (address, _) = server(OK).await;
    let fake = Fake::new(
        address,
        &[&["127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1", "0.0.0.0"]],
    );
    let client = OutboundClient::new(policy(&[("name.test", 80)]), fake.clone());
    let error = client.send(get("http://name.test/"), None).await.unwrap_err();
    assert!(matches!(error, Error::DestinationIpProhibited), "{error}");
    assert!(fake.connected().is_empty());
    assert_eq!(client.in_flight(), 0);
}

#[tokio::test]
async fn of_mixed_addresses_only_the_open_ones_are_connected_to() {
    let (address, _) = server(OK).await;
    let fake = Fake::new(address, &[&["127.0.0.1", PUBLIC, "10.0.0.1"]]);
    let client = OutboundClient::new(policy(&[("name.test", 8080)]), fake.clone());
    let response = client.send(get("http://name.test:8080/"), None).await.unwrap();
    assert_eq!(text(response).await.unwrap(), "hi");
    assert_eq!(fake.connected(), [format!("{PUBLIC}:8080")]);
}

#[tokio::test]
async fn a_name_that_changes_its_address_between_calls_gains_nothing() {
    let (address, _) = server(OK_CLOSE).await;
    let fake = Fake::new(address, &[&[PUBLIC], &["127.0.0.1"]]);
    let client = OutboundClient::new(policy(&[("name.test", 80)]), fake.clone());
    text(client.send(get("http://name.test/"), None).await.unwrap())
        .await
        .unwrap();
    let error = client.send(get("http://name.test/"), None).await.unwrap_err();
    assert!(matches!(error, Error::DestinationIpProhibited), "{error}");
    assert_eq!(fake.connected(), [format!("{PUBLIC}:80")]);
}

#[tokio::test]
async fn numbers_that_hide_an_address_are_what_the_resolver_makes_of_them() {
    let (address, _) = server(OK).await;
    for host in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"] {
        let client = OutboundClient::new(policy(&[(host, address.port())]), Arc::new(Real));
        let error = client
            .send(get(&format!("http://{host}:{}/", address.port())), None)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::DestinationIpProhibited), "{host}: {error}");
    }
}

#[tokio::test]
async fn a_literal_address_that_is_listed_is_reached_and_its_connection_kept() {
    let (address, mut seen) = server(OK).await;
    let client = OutboundClient::new(policy(&[("127.0.0.1", address.port())]), Arc::new(Real));
    let other = client.clone();
    for client in [&client, &other, &client] {
        let response = client
            .send(get(&format!("http://{address}/a?b=c")), None)
            .await
            .unwrap();
        assert_eq!(text(response).await.unwrap(), "hi");
    }
    let head = seen.recv().await.unwrap();
    assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
    assert_eq!(client.in_flight(), 0);
}

#[tokio::test]
async fn connections_are_shared_by_the_stores_of_a_replica() {
    let (address, _) = server(OK).await;
    let fake = Fake::new(address, &[&[PUBLIC]]);
    let client = OutboundClient::new(policy(&[("name.test", 80)]), fake.clone());
    for _ in 0..5 {
        text(client.clone().send(get("http://name.test/"), None).await.unwrap())
            .await
            .unwrap();
    }
    assert_eq!(fake.connected().len(), 1);
}

#[tokio::test]
async fn the_host_header_is_what_is_connected_to() {
    let (address, mut seen) = server(OK).await;
    let fake = Fake::new(address, &[&[PUBLIC]]);
    let client = OutboundClient::new(policy(&[("name.test", 80)]), fake);
    let mut request = get("http://name.test/");
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_static("admin.internal"));
    request
        .headers_mut()
        .append(HOST, HeaderValue::from_static("second.internal"));
    client.send(request, None).await.unwrap();
    let head = seen.recv().await.unwrap();
    assert_eq!(head.matches("host: ").count(), 1, "{head}");
    assert!(head.contains("host: name.test\r\n"), "{head}");
    let error = client.send(get("http://user:pass@name.test/"), None).await.unwrap_err();
    assert!(matches!(error, Error::HttpRequestUriInvalid), "{error}");
}

#[tokio::test]
async fn a_redirect_is_the_guests_own_business() {
    let (address, mut seen) =
        server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n").await;
    let fake = Fake::new(address, &[&[PUBLIC]]);
    let client = OutboundClient::new(policy(&[("name.test", 80)]), fake.clone());
    assert_eq!(client.send(get("http://name.test/"), None).await.unwrap().status(), 302);
    seen.recv().await.unwrap();
    assert!(seen.try_recv().is_err());
    assert_eq!(fake.connected().len(), 1);
}

#[tokio::test]
async fn calls_over_the_limit_wait_and_a_dropped_body_makes_room() {
    let (address, _) = server(OK).await;
    let mut policy = policy(&[("127.0.0.1", address.port())]);
    policy.concurrent = 1;
    policy.timeout = Duration::from_millis(200);
    let client = OutboundClient::new(policy, Arc::new(Real));
    let uri = format!("http://{address}/");
    let held = client.send(get(&uri), None).await.unwrap();
    assert_eq!(client.in_flight(), 1);
    let error = client.send(get(&uri), None).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLimitReached), "{error}");
    drop(held);
    let response = client.send(get(&uri), None).await.unwrap();
    assert_eq!(text(response).await.unwrap(), "hi");
    assert_eq!(client.in_flight(), 0, "a body read to its end gives its permit back");
}

#[tokio::test]
async fn every_wait_has_its_deadline() {
    for (answer, in_head) in [
        (&b""[..], true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", false),
    ] {
        let (address, _) = server(answer).await;
        let mut policy = policy(&[("127.0.0.1", address.port())]);
        policy.timeout = Duration::from_millis(200);
        let client = OutboundClient::new(policy, Arc::new(Real));
        let error = match client.send(get(&format!("http://{address}/")), None).await {
            Ok(response) => text(response).await.unwrap_err(),
            Err(error) => error,
        };
        match error {
            Error::HttpResponseTimeout => assert!(in_head),
            Error::ConnectionReadTimeout => assert!(!in_head),
            other => panic!("{other}"),
        }
        assert_eq!(client.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_caller_that_leaves_gives_its_permit_back() {
    let (address, mut seen) = server(b"").await;
    let client = OutboundClient::new(policy(&[("127.0.0.1", address.port())]), Arc::new(Real));
    let uri = format!("http://{address}/");
    let call = client.send(get(&uri), None);
    tokio::select! {
        answer = call => panic!("{answer:?}"),
        head = seen.recv() => assert!(head.is_some()),
    }
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn a_guest_may_ask_for_less_time_but_not_for_more() {
    let policy = Outbound {
        timeout: Duration::from_secs(5),
        ..Outbound::default()
    };
    let options = |connect, first, between| {
        Some(RequestOptions {
            connect_timeout: Some(Duration::from_secs(connect)),
            first_byte_timeout: Some(Duration::from_secs(first)),
            between_bytes_timeout: Some(Duration::from_secs(between)),
        })
    };
    let times = |head, frame| Times {
        head: Duration::from_secs(head),
        frame: Duration::from_secs(frame),
    };
    assert_eq!(Times::of(&policy, None), times(5, 5));
    assert_eq!(Times::of(&policy, options(1, 2, 3)), times(3, 3));
    assert_eq!(Times::of(&policy, options(100, u64::MAX, u64::MAX)), times(5, 5));
}

#[tokio::test]
async fn failures_come_in_the_interfaces_words() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = OutboundClient::new(policy(&[("127.0.0.1", closed.port())]), Arc::new(Real));
    let error = client.send(get(&format!("http://{closed}/")), None).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionRefused), "{error}");

    let fake = Fake::new(closed, &[]);
    let client = OutboundClient::new(policy(&[("nowhere.test", 80)]), fake);
    let error = client.send(get("http://nowhere.test/"), None).await.unwrap_err();
    assert!(matches!(error, Error::DestinationNotFound), "{error}");

    for (answer, expected) in [
        (
            &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhi"[..],
            "HttpResponseIncomplete",
        ),
        (b"nonsense\r\n\r\n", "HttpProtocolError"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nhi",
            "HttpProtocolError",
        ),
    ] {
        let (address, _) = server(answer).await;
        let client = OutboundClient::new(policy(&[("127.0.0.1", address.port())]), Arc::new(Real));
        let error = match client.send(get(&format!("http://{address}/")), None).await {
            Ok(response) => text(response).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(format!("{error:?}"), expected);
    }
}

#[tokio::test]
async fn a_head_without_end_is_cut() {
    let head: &'static [u8] = Box::leak(
        [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 200 << 10]]
            .concat()
            .into(),
    );
    let (address, _) = server(head).await;
    let client = OutboundClient::new(policy(&[("127.0.0.1", address.port())]), Arc::new(Real));
    let error = client.send(get(&format!("http://{address}/")), None).await.unwrap_err();
    assert!(matches!(error, Error::HttpResponseHeaderSectionSize(None)), "{error:?}");
}

#[tokio::test]
async fn a_plain_server_behind_https_is_a_tls_error() {
    let (address, _) = server(OK).await;
    let mut policy = policy(&[("127.0.0.1", address.port())]);
    policy.allow[0].scheme = "https".into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    policy.allow[0].port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(OK).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    let uri = format!("https://127.0.0.1:{}/", policy.allow[0].port);
    let client = OutboundClient::new(policy, Arc::new(Real));
    let error = client.send(get(&uri), None).await.unwrap_err();
    assert!(matches!(error, Error::TlsProtocolError), "{error:?}");
}
