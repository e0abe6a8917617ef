//! What a guest sees of the host when it looks: its environment, its directories, the network.
//!
//! A service that was granted nothing reports zeros and refusals. 127.0.0.1:22 stands for whatever
//! else listens on the machine.

use wasip2::cli::environment;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::filesystem::preopens;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress};
use wasip2::sockets::{instance_network, ip_name_lookup, tcp_create_socket};

struct Peek;

impl Guest for Peek {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let report = format!(
            "env={} args={} preopens={}\ntcp: {}\ndns: {}\n",
            environment::get_environment().len(),
            environment::get_arguments().len(),
            preopens::get_directories().len(),
            connect().as_ref().err().map_or("connected", ErrorCode::name),
            resolve().as_ref().err().map_or("resolved", ErrorCode::name),
        );
        kit::respond(out, 200, report);
    }
}

fn connect() -> Result<(), ErrorCode> {
    let network = instance_network::instance_network();
    let socket = tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)?;
    let address = Ipv4SocketAddress {
        port: 22,
        address: (127, 0, 0, 1),
    };
    socket.start_connect(&network, IpSocketAddress::Ipv4(address))?;
    socket.subscribe().block();
    socket.finish_connect().map(drop)
}

fn resolve() -> Result<(), ErrorCode> {
    let network = instance_network::instance_network();
    let addresses = ip_name_lookup::resolve_addresses(&network, "localhost")?;
    addresses.subscribe().block();
    match addresses.resolve_next_address()? {
        Some(_) => Ok(()),
        None => Err(ErrorCode::NameUnresolvable),
    }
}

wasip2::http::proxy::export!(Peek);
