//! What guests reach, end to end: other services inside the process, servers over TCP, credentials that they never see, and
//! state that outlives a kill.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use common::{Node, Reply, request, until};

/// Replicas count as soon as they serve.
const FAST: &str = "[rollout]\nmin_healthy_time = \"20ms\"\ncapabilities = \"allow\"\n";

/// A URL as it stands in a query.
fn encoded(url: &str) -> String {
    url.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn fetch(node: &Node, service: &str, url: &str) -> Reply {
    node.get(&format!("/{service}/?url={}", encoded(url)))
}

/// A server that answers each connection with what this makes of the bytes that came.
fn server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut bytes = vec![0; 64 << 10];
            let n = stream.read(&mut bytes).unwrap_or(0);
            let _ = stream.write_all(&answer(&bytes[..n]));
        }
    });
    address
}

/// An HTTP server that hands on each head it was sent.
fn http_server() -> (SocketAddr, mpsc::Receiver<String>) {
    let (say, heads) = mpsc::channel();
    let address = server(move |bytes| {
        let _ = say.send(String::from_utf8_lossy(bytes).into_owned());
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nyes".to_vec()
    });
    (address, heads)
}

#[test]
fn a_service_calls_another_inside_the_process_and_no_further_than_it_is_listed() {
    let node = Node::start();
    node.deploy("stock", "echo", FAST);
    node.deploy(
        "shop",
        "fetch",
        &format!("{FAST}[outbound]\nallow = [\"service:stock\", \"service:later\"]"),
    );
    let body = vec![b'x'; 200_000];
    let path = format!("/?url={}&method=POST&echo=1", encoded("http://stock.internal/in"));
    let echoed = request(node.http, "POST", &path, &[("host", "shop.test")], &body);
    assert_eq!((echoed.status, echoed.body.len()), (200, body.len()), "{}", echoed.head);
    for (url, words) in [
        ("http://later.internal/", "ConnectionRefused"),
        ("http://shop.internal/", "HttpRequestDenied"),
        ("https://stock.internal/", "HttpRequestDenied"),
        ("http://stock.internal:8080/", "HttpRequestDenied"),
    ] {
        let refused = fetch(&node, "shop", url);
        assert_eq!(refused.status, 502, "{url}");
        assert!(refused.text().contains(words), "{url}: {}", refused.text());
    }
}

#[test]
fn a_service_that_is_called_calls_out_under_its_own_grants() {
    let node = Node::start();
    let (address, heads) = http_server();
    node.deploy(
        "front",
        "fetch",
        &format!("{FAST}[outbound]\nallow = [\"service:back\"]"),
    );
    node.deploy(
        "back",
        "fetch",
        &format!("{FAST}[outbound]\nallow = [\"http://{address}\"]"),
    );
    let inner = format!("http://back.internal/?url={}", encoded(&format!("http://{address}/x")));
    let reply = fetch(&node, "front", &inner);
    assert_eq!((reply.status, reply.text().as_str()), (200, "yes"));
    heads.recv_timeout(common::BOUND).unwrap();
    let refused = fetch(&node, "front", &format!("http://{address}/x"));
    assert_eq!(refused.status, 502, "{}", refused.text());
}

#[test]
fn a_loop_of_services_is_cut_by_the_host() {
    let node = Node::start();
    node.deploy(
        "ring",
        "fetch",
        &format!("{FAST}[outbound]\nallow = [\"service:ring\"]"),
    );
    // Each level asks itself for the next: more of them than a request may take.
    let nested = |levels: usize| {
        let mut url = "http://ring.internal/".to_owned();
        for _ in 1..levels {
            url = format!("http://ring.internal/?url={}", encoded(&url));
        }
        url
    };
    // The innermost is asked for nothing and says so.
    let within = fetch(&node, "ring", &nested(4));
    assert_eq!(within.status, 400, "{}", within.text());
    let looped = fetch(&node, "ring", &nested(10));
    assert_eq!(looped.status, 508, "{}", looped.text());
    assert!(looped.text().contains("loop"), "{}", looped.text());
}

#[test]
fn a_service_that_waits_for_itself_ends_by_its_queue() {
    let node = Node::start();
    let more = "[limits]\nconcurrency = 1\nqueue_wait = \"200ms\"\n[outbound]\nallow = [\"service:one\"]";
    node.deploy("one", "fetch", &format!("{FAST}{more}"));
    let reply = fetch(&node, "one", "http://one.internal/");
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("no replica became free"), "{}", reply.text());
    until("the only slot is free again", || node.get("/one/").status == 400);
}

#[test]
fn a_credential_goes_to_its_host_alone_and_the_guest_never_sees_it() {
    let node = Node::start();
    let mut set = node.command(&["secret", "set", "token"]);
    let mut child = set.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"Bearer very-secret-token")
        .unwrap();
    assert!(child.wait().unwrap().success());
    let (paid, paid_heads) = http_server();
    let (other, other_heads) = http_server();
    let other = SocketAddr::new("127.0.0.2".parse().unwrap(), other.port());
    let more = format!(
        "[outbound]\nallow = [\"http://{paid}\", \"http://localhost:{}\", \"http://{other}\"]\nprivate = true\n\
         credentials = [{{ host = \"127.0.0.1\", header = \"authorization\", secret = \"token\" }}]",
        paid.port()
    );
    node.deploy("shop", "fetch", &format!("{FAST}{more}"));
    let reply = fetch(&node, "shop", &format!("http://{paid}/pay"));
    assert_eq!((reply.status, reply.text().as_str()), (200, "yes"));
    let head = paid_heads.recv_timeout(common::BOUND).unwrap();
    assert!(
        head.to_lowercase().contains("authorization: bearer very-secret-token"),
        "{head}"
    );
    // The same server by a name that has no credential.
    let reply = fetch(&node, "shop", &format!("http://localhost:{}/", paid.port()));
    assert_eq!(reply.status, 200, "{}", reply.text());
    let head = paid_heads.recv_timeout(common::BOUND).unwrap();
    assert!(!head.contains("very-secret-token"), "{head}");
    drop(other_heads);
    let spec = node.ok(&["inspect", "shop"]);
    assert!(!spec.contains("very-secret-token"));
}

#[test]
fn a_guest_connects_to_what_is_granted_and_to_nothing_else() {
    let node = Node::start();
    let address = server(|bytes| [b"you said ", bytes].concat());
    let port = address.port();
    let deploy = |name: &str, allow: &str| node.deploy(name, "tcp", &format!("{FAST}[outbound]\n{allow}"));
    deploy("literal", &format!("allow = [\"tcp://{address}\"]"));
    deploy(
        "named",
        &format!("allow = [\"tcp://localhost:{port}\"]\nprivate = true"),
    );
    deploy("closed", &format!("allow = [\"tcp://localhost:{port}\"]"));
    deploy("http", &format!("allow = [\"http://{address}\"]"));
    let say = |service: &str, to: &str| {
        let path = format!("/?to={to}");
        request(
            node.http,
            "POST",
            &path,
            &[("host", &format!("{service}.test"))],
            b"hello",
        )
    };
    let heard = say("literal", &address.to_string());
    assert_eq!((heard.status, heard.text().as_str()), (200, "you said hello"));
    let heard = say("named", &format!("localhost:{port}"));
    assert_eq!((heard.status, heard.text().as_str()), (200, "you said hello"));
    // A literal port, another host, another port, a name that was not granted, a name to a closed address.
    for (service, to) in [
        ("literal", format!("127.0.0.2:{port}")),
        ("literal", "127.0.0.1:1".to_owned()),
        ("literal", format!("localhost:{port}")),
        ("named", "example.test:80".to_owned()),
        ("closed", format!("localhost:{port}")),
        ("http", address.to_string()),
    ] {
        let refused = say(service, &to);
        assert_eq!(refused.status, 502, "{service} to {to}: {}", refused.text());
    }
    for path in ["/listen", "/udp"] {
        assert_eq!(node.get(&format!("/literal{path}")).status, 502, "{path}");
    }
}

#[test]
fn connections_are_counted_and_given_back() {
    let node = Node::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let more = format!("[outbound]\nallow = [\"tcp://{address}\"]\nconcurrent = 3\ntimeout = \"300ms\"");
    node.deploy("many", "tcp", &format!("{FAST}{more}"));
    for _ in 0..3 {
        let held = node.get(&format!("/many/hold?to={address}&n=5"));
        assert!(held.text().starts_with("3 Some"), "{}", held.text());
    }
}

#[test]
fn what_a_guest_was_told_is_kept_is_there_after_a_kill() {
    let node = Node::start();
    node.deploy("notes", "notes", &format!("{FAST}[[keyvalue]]\nname = \"default\""));
    let put = request(node.http, "PUT", "/many?keys=a,b", &[("host", "notes.test")], b"kept");
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(node.get("/notes/add/n?by=-7").text(), "-7\n");
    let node = node.kill_and_restart();
    until("it serves again", || node.get("/notes/keys").status == 200);
    assert_eq!(node.get("/notes/keys").text(), "a\nb\nn\n");
    assert_eq!(node.get("/notes/many?keys=a,x,b").text(), "a=kept\nb=kept\n");
}

#[test]
fn writers_at_once_lose_nothing_with_compare_and_swap_and_their_log_lines_have_levels() {
    let node = Node::start();
    let logs = "[logs]\nlevel = \"debug\"\n";
    node.deploy(
        "notes",
        "notes",
        &format!("replicas = 2\n{FAST}{logs}[[keyvalue]]\nname = \"default\""),
    );
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let to = node.http;
            scope.spawn(move || {
                for n in 0..5 {
                    let line = format!("{writer}-{n}");
                    let reply = request(to, "POST", "/append/all", &[("host", "notes.test")], line.as_bytes());
                    assert_eq!(reply.status, 200, "{}", reply.text());
                }
            });
        }
    });
    let all = node.get("/notes/many?keys=all").text();
    assert_eq!(all.lines().filter(|line| !line.is_empty()).count(), 20, "{all}");
    request(node.http, "DELETE", "/many?keys=x", &[("host", "notes.test")], b"");
    let lines = node.ok(&["logs", "notes", "--level", "warn"]);
    assert!(lines.contains("notes: 1 deleted") && !lines.contains("took"), "{lines}");
}

/// `redis-server` on this port; ended when dropped.
struct Redis(
    Child,
    #[expect(dead_code, reason = "removed when dropped")] tempfile::TempDir,
);

impl Redis {
    /// `None`, loudly, where the program is missing.
    fn start(port: u16) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn();
        if child.is_err() {
            eprintln!("SKIPPED: no `redis-server` on this machine; the Redis backend was NOT tested end to end");
        }
        Some(Self(child.ok()?, dir))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_with_a_dead_redis_starts_answers_with_errors_and_gets_on_when_it_is_back() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let node = Node::start();
    let more = format!("[[keyvalue]]\nname = \"default\"\nbackend = \"redis://127.0.0.1:{port}/0\"");
    node.deploy("notes", "notes", &format!("{FAST}{more}"));
    let refused = node.get("/notes/add/n");
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains("not reachable"), "{}", refused.text());
    let Some(redis) = Redis::start(port) else { return };
    until("Redis is found again", || node.get("/notes/add/n").status == 200);
    request(node.http, "POST", "/append/log", &[("host", "notes.test")], b"one");
    assert_eq!(node.get("/notes/many?keys=log").text(), "log=one\n\n");
    drop(redis);
    assert_eq!(node.get("/notes/add/n").status, 502);
}
