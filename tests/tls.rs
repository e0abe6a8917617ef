//! TLS as clients meet it: which protocol, which certificate, and what happens when a certificate changes or a handshake stalls.

#![expect(clippy::unwrap_used, reason = "a test says what failed by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{BOUND, Node};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const INTERNAL: &str = "[http]\ntls_listen = [\"127.0.0.1:0\"]\n[tls]\nmode = \"internal\"\n";

/// Where the node speaks TLS.
fn https(node: &Node) -> SocketAddr {
    loop {
        let line = node.said.recv_timeout(BOUND).expect("serve says where it speaks TLS");
        if let Some(address) = line.split("https://").nth(1) {
            return address.trim().parse().unwrap();
        }
    }
}

/// A client that trusts `root` alone and offers `protocols`.
fn client(root: &Path, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn connect(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), socket)
}

fn get(to: SocketAddr, host: &str, path: &str, config: &Arc<ClientConfig>) -> std::io::Result<String> {
    let mut stream = connect(to, host, config);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_host_is_served_under_the_nodes_own_authority() {
    let node = Node::start_with_config(INTERNAL);
    let to = https(&node);
    node.deploy("echo", "echo", "");
    node.deploy("hello", "hello", "");
    let client = client(&node.dir.path().join("data/tls/ca.crt"), &[]);
    let answer = get(to, "hello.test", "/", &client).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let wrong = connect(to, "hello.test", &client_that_trusts_nobody());
    assert!(
        { wrong }.flush().is_err(),
        "a client that does not trust it gets nothing"
    );
}

fn client_that_trusts_nobody() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Arc::new(config)
}

#[test]
fn http2_is_agreed_in_the_handshake_and_http1_where_the_client_knows_no_other() {
    let node = Node::start_with_config(INTERNAL);
    let to = https(&node);
    node.deploy("hello", "hello", "");
    let root = node.dir.path().join("data/tls/ca.crt");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let connector = tokio_rustls::TlsConnector::from(client(&root, &["h2", "http/1.1"]));
        let socket = tokio::net::TcpStream::connect(to).await.unwrap();
        let name = ServerName::try_from("hello.test").unwrap();
        let stream = connector.connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("https://hello.test/").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    let mut stream = connect(to, "hello.test", &client(&root, &["http/1.1"]));
    stream.flush().unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
}

/// Writes a self-signed pair; the certificate is its own root.
fn write_pair(dir: &Path, name: &str) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
}

#[test]
fn a_certificate_is_renewed_under_open_connections_and_a_broken_one_changes_nothing() {
    let files = tempfile::tempdir().unwrap();
    write_pair(files.path(), "hello.test");
    let root = files.path().join("cert.pem");
    let (cert, key) = (root.display(), files.path().join("key.pem").display().to_string());
    let node = Node::start_with_config(&format!(
        "[http]\ntls_listen = [\"127.0.0.1:0\"]\n[tls]\nmode = \"file\"\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n"
    ));
    let to = https(&node);
    node.deploy("hello", "hello", "");
    let first = client(&root, &[]);
    let mut open = connect(to, "hello.test", &first);
    open.flush().unwrap();

    std::fs::write(files.path().join("key.pem"), "no key").unwrap();
    node.until("the broken file is told", |n| {
        n.ok(&["events", "--json"]).contains("the old certificate stays")
    });
    assert!(get(to, "hello.test", "/", &first).unwrap().starts_with("HTTP/1.1 200"));

    let old = files.path().join("old.pem");
    std::fs::copy(&root, &old).unwrap();
    write_pair(files.path(), "hello.test");
    node.until("the new certificate is shown", |_| {
        get(to, "hello.test", "/", &client(&root, &[])).is_ok_and(|a| a.starts_with("HTTP/1.1 200"))
    });
    // A client of its own: one that was here before resumes its session, and is shown no certificate at all.
    let old = client(&old, &[]);
    assert!(
        get(to, "hello.test", "/", &old).is_err(),
        "the old one is no longer shown"
    );
    write!(open, "GET / HTTP/1.1\r\nhost: hello.test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    open.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_handshake_that_stalls_is_cut_and_plain_http_there_gets_no_answer() {
    let node = Node::start_with_config(&INTERNAL.replace("[http]\n", "[http]\nheader_timeout = \"300ms\"\n"));
    let to = https(&node);
    for bytes in [
        &b""[..],
        &[22, 3, 1, 2, 0, 1][..],
        b"GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn tls_without_a_certificate_is_refused_before_anything_starts() {
    for (toml, says) in [
        ("[http]\ntls_listen = [\"127.0.0.1:0\"]\n", "needs certificates"),
        ("[tls]\nmode = \"file\"\n", "needs `cert_file`"),
        ("[tls]\nmode = \"acme\"\n", "not supported yet"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, toml).unwrap();
        let (code, said) = common::refused(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
        assert_eq!(code, Some(9), "{said}");
        assert!(said.contains(says), "{said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let toml = "[tls]\nmode = \"file\"\ncert_file = \"absent.pem\"\nkey_file = \"absent.key\"\n";
    std::fs::write(&file, toml).unwrap();
    let (code, said) = common::refused(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("absent.pem"), "{said}");
}
