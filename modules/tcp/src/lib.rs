//! A connection of its own, over `wasi:sockets` 0.2: what `std::net::TcpStream` does underneath, step by step.
//!
//! - `/?to=HOST:PORT` connects, sends the request's body, and answers what comes back until the other side closes.
//! - `/hold?to=HOST:PORT&n=N` keeps N connections at once and answers how many it got.
//! - `/listen` and `/udp` try what no grant allows.
//!
//! What the host refuses is a 502 with its reason.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use wasip2::sockets::tcp::{ShutdownType, TcpSocket};
use wasip2::sockets::tcp_create_socket::create_tcp_socket;
use wasip2::sockets::udp_create_socket::create_udp_socket;

struct Tcp;

impl Guest for Tcp {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = kit::Target::of(&request);
        let to = target.text("to").unwrap_or_default();
        let answer = match target.path.as_str() {
            "/hold" => Ok(hold(&to, target.text("n").and_then(|n| n.parse().ok()).unwrap_or(1))),
            "/listen" => listen(),
            "/" if to.is_empty() => return kit::respond(out, 400, "wanted: /?to=HOST:PORT\n"),
            "/udp" => create_udp_socket(IpAddressFamily::Ipv4).map(|_| b"made\n".to_vec()),
            _ => {
                let mut body = Vec::new();
                kit::for_each_chunk(&request, |chunk| body.extend_from_slice(chunk));
                talk(&to, &body)
            }
        };
        match answer {
            Ok(body) => kit::respond(out, 200, body),
            Err(why) => kit::respond(out, 502, format!("refused: {why:?}\n")),
        }
    }
}

/// A standing connection. The streams go before their socket.
struct Connection {
    input: InputStream,
    output: OutputStream,
    socket: TcpSocket,
}

fn connect(to: &str) -> Result<Connection, ErrorCode> {
    let (host, port) = to.rsplit_once(':').ok_or(ErrorCode::InvalidArgument)?;
    let port = port.parse().map_err(|_| ErrorCode::InvalidArgument)?;
    let network = instance_network();
    let addresses = resolve_addresses(&network, host)?;
    let mut why = ErrorCode::NameUnresolvable;
    loop {
        let address = match addresses.resolve_next_address() {
            Ok(Some(address)) => address,
            Ok(None) => return Err(why),
            Err(ErrorCode::WouldBlock) => {
                addresses.subscribe().block();
                continue;
            }
            Err(error) => return Err(error),
        };
        let (family, address) = match address {
            IpAddress::Ipv4(address) => (IpAddressFamily::Ipv4, IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address })),
            IpAddress::Ipv6(address) => (
                IpAddressFamily::Ipv6,
                IpSocketAddress::Ipv6(Ipv6SocketAddress {
                    port,
                    flow_info: 0,
                    address,
                    scope_id: 0,
                }),
            ),
        };
        let socket = create_tcp_socket(family)?;
        if let Err(error) = socket.start_connect(&network, address) {
            why = error;
            continue;
        }
        loop {
            match socket.finish_connect() {
                Ok((input, output)) => return Ok(Connection { input, output, socket }),
                Err(ErrorCode::WouldBlock) => socket.subscribe().block(),
                Err(error) => {
                    why = error;
                    break;
                }
            }
        }
    }
}

fn talk(to: &str, body: &[u8]) -> Result<Vec<u8>, ErrorCode> {
    let connection = connect(to)?;
    let broken = |_: StreamError| ErrorCode::ConnectionReset;
    for piece in body.chunks(4096) {
        connection.output.blocking_write_and_flush(piece).map_err(broken)?;
    }
    connection.socket.shutdown(ShutdownType::Send)?;
    let mut answer = Vec::new();
    loop {
        match connection.input.blocking_read(64 << 10) {
            Ok(bytes) => answer.extend_from_slice(&bytes),
            Err(StreamError::Closed) => return Ok(answer),
            Err(error) => return Err(broken(error)),
        }
    }
}

fn hold(to: &str, n: usize) -> Vec<u8> {
    let mut held = Vec::new();
    let mut why = None;
    for _ in 0..n {
        match connect(to) {
            Ok(connection) => held.push(connection),
            Err(error) => {
                why = Some(error);
                break;
            }
        }
    }
    format!("{} {why:?}\n", held.len()).into_bytes()
}

fn listen() -> Result<Vec<u8>, ErrorCode> {
    let any = IpSocketAddress::Ipv4(Ipv4SocketAddress {
        port: 0,
        address: (0, 0, 0, 0),
    });
    let socket = create_tcp_socket(IpAddressFamily::Ipv4)?;
    socket.start_bind(&instance_network(), any)?;
    socket.finish_bind()?;
    socket.start_listen()?;
    Ok(b"listening\n".to_vec())
}

wasip2::http::proxy::export!(Tcp);
