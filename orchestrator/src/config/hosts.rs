//! Texts that say where requests come from and go to: hosts, paths, origins, addresses to listen on. Nothing is looked up.

use std::net::{IpAddr, SocketAddr};

use narae_runtime::Target;

use super::checks::{Check, Wrong, wrong};
use super::codes::Code;
use crate::model::service::HostPattern;

pub static HOST: Check = Check {
    expected: "a host name",
    example: "\"api.example.test\"",
    list_example: "[]",
    pattern: None,
    run: |text| host_pattern(text).map(|host| show_host(&host)),
};

fn bad_host(label: &'static str, help: &'static str) -> Wrong {
    wrong(Code::BadHost, "is not a host", label, help)
}

/// `api.example.test`, `*.example.test`, `192.0.2.1`, `[2001:db8::1]`. Upper case is lowered.
pub fn host_pattern(text: &str) -> Result<HostPattern, Wrong> {
    if text == "*" {
        return Err(bad_host(
            "not a host",
            "leave `host` out: the route then takes any host",
        ));
    }
    if text.contains("://") || text.contains('/') {
        return Err(bad_host(
            "a URL, not a host",
            "write the host alone: \"api.example.test\"",
        ));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        let ip = inner
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| bad_host("no address in the brackets", "write \"[2001:db8::1]\""))?;
        return Ok(HostPattern::Exact(format!("[{ip}]")));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(bad_host("an IPv6 address without brackets", "write \"[2001:db8::1]\""));
    }
    if text.contains(':') {
        return Err(bad_host(
            "a host has no port",
            "leave the port out: a route takes every port of `http.listen`",
        ));
    }
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("*.") {
        Some(rest) if domain(rest) && rest.parse::<IpAddr>().is_err() => Ok(HostPattern::OneLabel(rest.to_owned())),
        _ if lower.contains('*') => Err(bad_host(
            "`*` stands for one whole first label",
            "write \"*.example.test\": it takes a.example.test, not a.b.example.test",
        )),
        _ if domain(&lower) => Ok(HostPattern::Exact(lower)),
        _ => Err(bad_host(
            "not a host name",
            "labels of a-z, 0-9 and `-`, each 1 to 63 long, joined by `.`, 253 in all",
        )),
    }
}

/// As [`host_pattern`] reads it; empty for any host.
pub fn show_host(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => String::new(),
        HostPattern::Exact(host) => host.clone(),
        HostPattern::OneLabel(rest) => format!("*.{rest}"),
    }
}

pub(super) fn domain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

pub static PATH: Check = Check {
    expected: "a path that starts with `/`",
    example: "\"/v1\"",
    list_example: "[\"/\"]",
    pattern: Some("^/"),
    run: path,
};

/// What a probe asks for: a path, and a query if there is one.
pub static PROBE: Check = Check {
    expected: "a path that starts with `/`, with a query if needed",
    example: "\"/healthz\"",
    list_example: "[\"/healthz\"]",
    pattern: Some("^/"),
    run: probe,
};

/// As [`path`], with a query of visible ASCII after it; the path is kept as it is written.
fn probe(text: &str) -> Result<String, Wrong> {
    let (bare, query) = text
        .split_once('?')
        .map_or((text, None), |(bare, query)| (bare, Some(query)));
    path(bare)?;
    if query.is_some_and(|q| q.len() > 1024 || !q.bytes().all(|b| b.is_ascii_graphic() && b != b'#')) {
        return Err(bad_path(
            "the query has a character that cannot be sent",
            "percent-encode it",
        ));
    }
    Ok(text.to_owned())
}

fn bad_path(label: &'static str, help: &'static str) -> Wrong {
    wrong(Code::BadPath, "is not a path", label, help)
}

/// An absolute path without query; a `/` at the end is dropped.
fn path(text: &str) -> Result<String, Wrong> {
    if !text.starts_with('/') {
        let help = if text.contains('/') || text.contains('.') {
            "for a host write a [[route]] table with `host` and `path`"
        } else {
            "put a `/` before it"
        };
        return Err(bad_path("must start with `/`", help));
    }
    if text.len() > 1024 {
        return Err(bad_path("longer than 1024 bytes", "a path has at most 1024 bytes"));
    }
    if text.contains(['?', '#']) {
        return Err(bad_path(
            "a query is not part of a path",
            "leave out `?` and `#` and what follows",
        ));
    }
    if text.contains('*') {
        return Err(bad_path(
            "`*` has no meaning in a path",
            "a path takes everything below it: \"/v1\" takes /v1/orders",
        ));
    }
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if trimmed.is_empty() {
        return Ok("/".to_owned());
    }
    if trimmed[1..]
        .split('/')
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return Err(bad_path(
            "an empty segment, `.` or `..`",
            "write the path as clients send it, with one `/` between segments",
        ));
    }
    let bytes = trimmed.as_bytes();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()+,;=:@".contains(&b);
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        if bytes[i] == b'%' && hex(i + 1) && hex(i + 2) {
            i += 3;
        } else if allowed(bytes[i]) {
            i += 1;
        } else {
            return Err(bad_path(
                "a character that a path cannot have",
                "write it percent-encoded: `%20` for a space",
            ));
        }
    }
    Ok(trimmed.to_owned())
}

fn bad_target(label: &'static str, help: &'static str) -> Wrong {
    wrong(Code::BadTarget, "is not an origin", label, help)
}

/// `https://host`, `http://host:port`, `tcp://host:port`; `*` only as the whole first label.
pub fn target(text: &str) -> Result<Target, Wrong> {
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| bad_target("no scheme", "write the scheme too: \"https://payments.example.test\""))?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "https" => Some(443),
        "http" => Some(80),
        "tcp" => None,
        _ => {
            return Err(bad_target(
                "only http://, https://, tcp:// and service:",
                "write \"https://payments.example.test\"",
            ));
        }
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(bad_target(
            "an origin has no path",
            "allow the whole origin: scheme, host and port",
        ));
    }
    if rest.contains('@') {
        return Err(bad_target(
            "credentials do not belong here",
            "leave out the user and password",
        ));
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(inner) => {
            let (ip, tail) = inner
                .split_once(']')
                .ok_or_else(|| bad_target("no closing bracket", "write \"http://[2001:db8::1]:8080\""))?;
            (
                format!("[{ip}]"),
                tail.strip_prefix(':')
                    .or(if tail.is_empty() { None } else { Some(tail) }),
            )
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (rest.to_owned(), None),
        },
    };
    let port = match port {
        None => default_port.ok_or_else(|| bad_target("no port", "write the port too: \"tcp://10.20.0.5:5432\""))?,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
            .parse::<u16>()
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| bad_target("no such port", "a port is a number from 1 to 65535"))?,
        Some(_) => return Err(bad_target("no such port", "a port is a number from 1 to 65535")),
    };
    let host = match host_pattern(&host) {
        Ok(pattern) => show_host(&pattern).trim_matches(['[', ']']).to_owned(),
        Err(_) if host == "*" => {
            return Err(bad_target(
                "`*` stands for one whole first label",
                "name the hosts: \"https://*.example.test\"",
            ));
        }
        Err(why) => {
            return Err(Wrong {
                code: Code::BadTarget,
                message: "is not an origin".into(),
                ..why
            });
        }
    };
    Ok(Target { scheme, host, port })
}

/// As [`target`] reads it.
pub fn show_target(target: &Target) -> String {
    let default_port = match target.scheme.as_str() {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    let host = if target.host.contains(':') {
        format!("[{}]", target.host)
    } else {
        target.host.clone()
    };
    if Some(target.port) == default_port {
        format!("{}://{host}", target.scheme)
    } else {
        format!("{}://{host}:{}", target.scheme, target.port)
    }
}

pub static ADDRESS: Check = Check {
    expected: "an address with a port",
    example: "\"127.0.0.1:8080\"",
    list_example: "[\"127.0.0.1:8080\"]",
    pattern: None,
    run: |text| address(text).map(|a| a.to_string()),
};

/// An IP address and port; `localhost:8080` is 127.0.0.1, `:8080` is every IPv4 address.
fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse::<SocketAddr>().map_err(|_| {
        let help = if text.parse::<IpAddr>().is_ok() {
            "add the port: \"127.0.0.1:8080\", \"[::1]:8080\""
        } else {
            "an IP address and a port: \"127.0.0.1:8080\", \"[::]:80\", \"0.0.0.0:80\" for every address"
        };
        wrong(
            Code::BadAddress,
            "is not an address to listen on",
            "not an address with a port",
            help,
        )
    })
}

pub static LOOPBACK: Check = Check {
    expected: "a loopback address with a port, or \"\" for none",
    example: "\"127.0.0.1:7070\"",
    list_example: "[\"127.0.0.1:7070\"]",
    pattern: None,
    run: |text| {
        if text.is_empty() {
            return Ok(String::new());
        }
        let address = address(text)?;
        if !address.ip().is_loopback() {
            return Err(wrong(
                Code::AdminNotLoopback,
                "may only listen on loopback until the admin listener has TLS",
                "not a loopback address",
                "write \"127.0.0.1:7070\" and reach it through ssh from elsewhere",
            ));
        }
        Ok(address.to_string())
    },
};
