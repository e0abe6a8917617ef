//! What an outbound call may reach: plain functions over the policy, a name and an address. They resolve nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;

use crate::guest::{Outbound, Target};

/// The entry of `allow` that lets this absolute URI through, by scheme, host and port.
pub fn target<'a>(policy: &'a Outbound, uri: &Uri) -> Option<&'a Target> {
    let scheme = uri.scheme_str()?;
    let host = host_of(uri)?;
    let port = port_of(uri)?;
    policy
        .allow
        .iter()
        .find(|t| t.port == port && t.scheme.eq_ignore_ascii_case(scheme) && host_matches(&t.host, &host))
}

/// The service of this node that this URI names, if it may be called: `http://NAME.internal`, no other port or scheme. A
/// host with more labels is no service; `http://NAME.internal` in `allow` is another host where `services` has no NAME.
pub fn neighbour(policy: &Outbound, uri: &Uri) -> Option<String> {
    if policy.services.is_empty() || uri.scheme_str() != Some("http") || port_of(uri) != Some(80) {
        return None;
    }
    if uri.authority()?.as_str().contains('@') {
        return None;
    }
    let host = host_of(uri)?;
    let name = host.strip_suffix(".internal")?;
    policy.services.iter().find(|service| *service == name).cloned()
}

/// The ports of a name that `tcp://` entries let through, with their entries.
pub fn tcp_targets<'a>(policy: &'a Outbound, name: &str) -> impl Iterator<Item = &'a Target> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let targets = policy.allow.iter().filter(|t| t.scheme == TCP);
    targets.filter(move |t| host_matches(&t.host, &name))
}

/// Whether `allow` has this very address and port as a literal.
pub fn tcp_listed(policy: &Outbound, address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let listed = |t: &Target| {
        t.scheme == TCP && t.port == address.port() && t.host.parse::<IpAddr>().is_ok_and(|a| a.to_canonical() == ip)
    };
    policy.allow.iter().any(listed)
}

/// Whether there is any `tcp://` entry.
pub fn grants_tcp(policy: &Outbound) -> bool {
    policy.allow.iter().any(|t| t.scheme == TCP)
}

const TCP: &str = "tcp";

/// The host as it is compared and resolved: lower case, without brackets and final dot. `None` if it is neither an
/// address nor made of the characters of names, so that nothing is left to another parser's taste.
pub fn host_of(uri: &Uri) -> Option<String> {
    let host = uri.host()?;
    if let Some(inner) = host.strip_prefix('[') {
        let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(address.to_string());
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(name)).then_some(host)
}

/// The port, the scheme's own if the URI names none.
pub fn port_of(uri: &Uri) -> Option<u16> {
    match (uri.port(), uri.scheme_str()?) {
        (Some(port), _) => Some(port.as_u16()),
        // `http://host:99999` has a port that is none; it must not fall back to 80.
        (None, _) if uri.authority()?.as_str().rsplit(']').next()?.contains(':') => None,
        (None, "http") => Some(80),
        (None, "https") => Some(443),
        (None, _) => None,
    }
}

fn host_matches(pattern: &str, host: &str) -> bool {
    if let (Ok(pattern), Ok(host)) = (pattern.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return pattern == host;
    }
    match pattern.strip_prefix("*.") {
        // One label in place of the star, and an address has no labels.
        Some(rest) => {
            host.parse::<IpAddr>().is_err()
                && host
                    .split_once('.')
                    .is_some_and(|(label, tail)| !label.is_empty() && tail.eq_ignore_ascii_case(rest))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Whether a call let through by `target` may connect to this address: a public one always; a closed one if the policy
/// opens them, or if `allow` has this very address as a literal for that port.
pub fn address_allowed(policy: &Outbound, target: &Target, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let listed = |t: &Target| t.port == target.port && t.host.parse::<IpAddr>().is_ok_and(|a| a.to_canonical() == ip);
    policy.private || !is_closed(ip) || policy.allow.iter().any(listed)
}

/// Addresses that lead back into this machine or its network, to the cloud's metadata, or nowhere.
pub fn is_closed(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_closed_v4(ip),
        IpAddr::V6(ip) => is_closed_v6(ip),
    }
}

fn is_closed_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // This host; private use (RFC 1918); shared by carriers (RFC 6598; Alibaba's metadata); loopback.
        [0 | 10 | 127, ..] | [100, 64..=127, ..] => true,
        // Link-local, with the metadata of most clouds; private use.
        [169, 254, ..] | [172, 16..=31, ..] | [192, 168, ..] => true,
        // Protocol assignments (Oracle's metadata); documentation; the 6to4 relay; benchmarks.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        // Azure's metadata and host services, in public clothes.
        [168, 63, 129, 16] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    }
}

fn is_closed_v6(ip: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_closed_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // Mapped, and translated (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => embedded(high, low),
        // Unspecified, loopback, IPv4-compatible: no public host has one.
        [0, 0, 0, 0, 0, 0, _, _] => true,
        // NAT64 with the well-known prefix; 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // NAT64 inside a network; discard; protocol assignments with Teredo; documentation; segment routing.
        [0x64, 0xff9b, ..] | [0x100, ..] | [0x2001, 0..=0x1ff, ..] => true,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x5f00, ..] => true,
        // Unique local (with fd00:ec2::254); link-local; site-local; multicast.
        [0xfc00..=0xfdff, ..] | [0xfe80..=0xfeff, ..] | [0xff00..=0xffff, ..] => true,
        // ISATAP carries an IPv4 address in its last half.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => embedded(high, low),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[(&str, &str, u16)], private: bool) -> Outbound {
        let target = |(scheme, host, port): &(&str, &str, u16)| Target {
            scheme: (*scheme).into(),
            host: (*host).into(),
            port: *port,
        };
        Outbound {
            allow: allow.iter().map(target).collect(),
            private,
            ..Outbound::default()
        }
    }

    #[test]
    fn only_what_is_listed_is_let_through() {
        let policy = policy(
            &[
                ("https", "pay.example.test", 443),
                ("http", "10.20.0.5", 8080),
                ("https", "*.wild.test", 443),
                ("http", "fd00::1", 80),
            ],
            false,
        );
        for (uri, allowed) in [
            ("https://pay.example.test/x?y", true),
            ("https://PAY.Example.TEST:443", true),
            ("https://pay.example.test./", true),
            ("http://pay.example.test/", false),
            ("https://pay.example.test:8443/", false),
            ("https://pay.example.test.evil.test/", false),
            ("https://evil.test/pay.example.test", false),
            ("https://xpay.example.test/", false),
            ("http://10.20.0.5:8080/", true),
            ("http://10.20.0.5/", false),
            ("http://169083909:8080/", false),
            ("http://0x0a140005:8080/", false),
            ("http://012.024.0.5:8080/", false),
            ("https://a.wild.test/", true),
            ("https://wild.test/", false),
            ("https://a.b.wild.test/", false),
            ("https://.wild.test/", false),
            ("https://1.2.wild.test/", false),
            ("http://[fd00::1]/", true),
            ("http://[fd00:0:0:0:0:0:0:1]:80/", true),
            ("http://[fd00::2]/", false),
            ("http://[::ffff:10.20.0.5]:8080/", false),
            ("ftp://pay.example.test/", false),
            ("/relative", false),
        ] {
            assert_eq!(
                uri.parse::<Uri>().is_ok_and(|uri| target(&policy, &uri).is_some()),
                allowed,
                "{uri}"
            );
        }
        assert!(target(&Outbound::default(), &"https://pay.example.test/".parse().unwrap()).is_none());
    }

    #[test]
    fn a_service_is_called_by_its_name_on_port_80_and_only_when_it_is_listed() {
        let policy = Outbound {
            services: vec!["inventory".into()],
            ..policy(&[("http", "other.internal", 80)], false)
        };
        for (uri, service) in [
            ("http://inventory.internal/x", Some("inventory")),
            ("http://INVENTORY.internal:80", Some("inventory")),
            ("http://inventory.internal./", Some("inventory")),
            ("https://inventory.internal/", None),
            ("http://inventory.internal:8080/", None),
            ("http://user@inventory.internal/", None),
            ("http://other.internal/", None),
            ("http://a.inventory.internal/", None),
            ("http://inventory/", None),
            ("http://inventory.internal.test/", None),
        ] {
            assert_eq!(neighbour(&policy, &uri.parse().unwrap()).as_deref(), service, "{uri}");
        }
        assert!(target(&policy, &"http://other.internal/".parse().unwrap()).is_some());
    }

    #[test]
    fn a_tcp_entry_is_for_its_port_and_no_http_call() {
        let policy = policy(
            &[
                ("tcp", "db.test", 5432),
                ("tcp", "10.20.0.5", 6379),
                ("tcp", "*.wild.test", 1),
            ],
            false,
        );
        let ports = |name: &str| tcp_targets(&policy, name).map(|t| t.port).collect::<Vec<_>>();
        assert_eq!(ports("DB.test."), [5432]);
        assert_eq!(ports("a.wild.test"), [1]);
        assert!(ports("evil.test").is_empty() && ports("wild.test").is_empty());
        for (address, listed) in [
            ("10.20.0.5:6379", true),
            ("[::ffff:10.20.0.5]:6379", true),
            ("10.20.0.5:5432", false),
            ("10.20.0.6:6379", false),
        ] {
            assert_eq!(tcp_listed(&policy, address.parse().unwrap()), listed, "{address}");
        }
        for uri in ["http://db.test:5432/", "tcp://db.test:5432", "http://10.20.0.5:6379/"] {
            let http = uri
                .parse::<Uri>()
                .is_ok_and(|uri| uri.scheme_str() == Some("http") && target(&policy, &uri).is_some());
            assert!(!http, "{uri}");
        }
    }

    #[test]
    fn closed_addresses_are_closed_in_every_dress() {
        let closed = "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
            127.255.255.254 169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1
            192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9 168.63.129.16 224.0.0.1 239.255.255.255
            240.0.0.1 255.255.255.255
            :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
            64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
            2001:10::1 2001:db8::1 3fff::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2002:c0a8:1::1 5f00::1 fc00::1 fd00:ec2::254
            fdff::1 fe80::1 fe80::1:2:3:4 febf::1 fec0::1 ff02::1 ff0e::1 2400:cb00::5efe:10.0.0.1
            2400:cb00::200:5efe:127.0.0.1";
        for text in closed.split_whitespace() {
            assert!(is_closed(text.parse::<IpAddr>().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_open() {
        let open = "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.1.1.1 128.0.0.1 169.253.1.1
            172.15.255.255 172.32.0.1 192.0.1.1 192.167.1.1 192.169.1.1 198.17.1.1 198.20.0.1 168.63.129.17
            223.255.255.255 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2001:200::1 2001:4860:4860::8888
            2400:cb00::1 2606:4700:4700::1111 2a00:1450::1 3ffe::1";
        for text in open.split_whitespace() {
            assert!(!is_closed(text.parse::<IpAddr>().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_closed_address_needs_private_or_its_own_line() {
        let name = ("http", "name.test", 8080);
        for (allow, private, ip, allowed) in [
            (vec![name], false, "127.0.0.1", false),
            (vec![name], true, "127.0.0.1", true),
            (vec![name], true, "169.254.169.254", true),
            (vec![name], false, "93.184.216.34", true),
            (vec![name, ("http", "127.0.0.1", 8080)], false, "127.0.0.1", true),
            (vec![name, ("http", "127.0.0.1", 8080)], false, "::ffff:127.0.0.1", true),
            (vec![name, ("http", "127.0.0.1", 8080)], false, "127.0.0.2", false),
            (vec![name, ("http", "127.0.0.1", 9090)], false, "127.0.0.1", false),
            (vec![name, ("http", "2130706433", 8080)], false, "127.0.0.1", false),
            (vec![name, ("http", "fd00::5", 8080)], false, "fd00::5", true),
            (vec![name, ("http", "fd00::5", 8080)], false, "fd00::6", false),
            (
                vec![name, ("http", "10.0.0.1", 8080)],
                false,
                "64:ff9b::10.0.0.1",
                false,
            ),
        ] {
            let policy = policy(&allow, private);
            let found = address_allowed(&policy, &policy.allow[0], ip.parse().unwrap());
            assert_eq!(found, allowed, "{allow:?} private={private} {ip}");
        }
    }

    #[test]
    fn a_host_that_parsers_could_read_differently_is_none() {
        for uri in [
            "http://a%00b/",
            "http://a%2eb/",
            "http://[fe80::1%25eth0]/",
            "http://[::1/",
            "http://host:99999/",
        ] {
            let none = uri
                .parse::<Uri>()
                .map_or(true, |u| host_of(&u).is_none() || port_of(&u).is_none());
            assert!(none, "{uri}");
        }
    }
}
