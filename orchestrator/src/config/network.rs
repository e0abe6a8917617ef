//! What a service file says about the outside: `[outbound]` with its origins, services and credentials, and where
//! `[[keyvalue]]` stores are kept. Nothing is looked up or connected to.

use std::collections::BTreeSet;

use narae_runtime::{CredentialName, Outbound, Target};

use super::checks::{Check, Wrong, later, wrong};
use super::codes::Code;
use super::diagnostic::Problem;
use super::fields::Fields;
use super::hosts;
use super::read::Reader;
use crate::model::ServiceName;
use crate::model::service::{KeyValueBackend, KeyValueStore};

/// An entry of `outbound.allow`.
pub static ALLOWED: Check = Check {
    expected: "an origin, or a service",
    example: "\"https://payments.example.test\"",
    list_example: "[\"https://payments.example.test\"]",
    pattern: None,
    run: |text| allowed(text).map(|entry| entry.show()),
};

/// What one entry lets through.
enum Allowed {
    Origin(Target),
    Service(ServiceName),
}

impl Allowed {
    fn show(&self) -> String {
        match self {
            Self::Origin(target) => hosts::show_target(target),
            Self::Service(name) => format!("service:{name}"),
        }
    }
}

fn allowed(text: &str) -> Result<Allowed, Wrong> {
    let Some(name) = text.strip_prefix("service:") else {
        return hosts::target(text).map(Allowed::Origin);
    };
    name.parse::<ServiceName>().map(Allowed::Service).map_err(|_| {
        wrong(
            Code::BadTarget,
            "is not the name of a service",
            "not a service name",
            "write the service's `name`: \"service:inventory\"; it is then called as http://inventory.internal",
        )
    })
}

/// `outbound.allow` as a file has it, origins first.
pub fn show_allowed(outbound: &Outbound) -> impl Iterator<Item = String> + '_ {
    let services = outbound.services.iter().map(|name| format!("service:{name}"));
    outbound.allow.iter().map(hosts::show_target).chain(services)
}

/// Of a host that gets a header.
pub static CREDENTIAL_HOST: Check = Check {
    expected: "a host name without scheme and port",
    example: "\"payments.example.test\"",
    list_example: "[]",
    pattern: None,
    run: |text| match hosts::host_pattern(text)? {
        host @ crate::model::service::HostPattern::Exact(_) => {
            Ok(hosts::show_host(&host).trim_matches(['[', ']']).to_owned())
        }
        _ => Err(wrong(
            Code::BadCredential,
            "must name one host",
            "`*` is not allowed here",
            "write one entry for each host: a secret goes to no host that is not named",
        )),
    },
};

/// Headers that the host makes itself, or that mean something to the connection.
const NOT_CREDENTIALS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The header that is added.
pub static CREDENTIAL_HEADER: Check = Check {
    expected: "the name of a header",
    example: "\"authorization\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        let lower = text.to_ascii_lowercase();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if lower.is_empty() || lower.len() > 128 || !lower.bytes().all(token) {
            return Err(wrong(
                Code::BadCredential,
                "is not the name of a header",
                "not a header name",
                "write it as in the request: \"authorization\"",
            ));
        }
        if NOT_CREDENTIALS.contains(&lower.as_str()) {
            return Err(wrong(
                Code::BadCredential,
                "is a header that belongs to the connection",
                "cannot be added",
                "choose the header that the server reads the secret from, as \"authorization\"",
            ));
        }
        Ok(lower)
    },
};

/// `embedded`, or the URL of a server.
pub static BACKEND: Check = Check {
    expected: "\"embedded\" or a redis:// URL",
    example: "\"redis://10.20.0.6:6379/0\"",
    list_example: "[]",
    pattern: Some("^(embedded|redis://.+)$"),
    run: |text| {
        if text == "embedded" {
            return Ok(text.to_owned());
        }
        redis_url(text)
    },
};

fn bad_backend(label: &'static str, help: &'static str) -> Wrong {
    wrong(Code::BadBackend, "is not a backend", label, help)
}

/// `redis://[user@]host[:port][/db]`, with everything written out.
fn redis_url(text: &str) -> Result<String, Wrong> {
    if text.starts_with("rediss://") {
        return Err(later(
            "with TLS (rediss://)",
            "use redis:// on a network of your own, or a tunnel on this machine",
        ));
    }
    let rest = text.strip_prefix("redis://").ok_or_else(|| {
        bad_backend(
            "neither \"embedded\" nor redis://",
            "write backend = \"embedded\", or the server: \"redis://10.20.0.6:6379/0\"",
        )
    })?;
    if rest.contains(['?', '#']) {
        return Err(bad_backend("no options here", "leave out `?` and `#` and what follows"));
    }
    let (server, db) = rest.split_once('/').unwrap_or((rest, ""));
    let db: u32 = match db {
        "" => 0,
        db => db
            .parse()
            .ok()
            .filter(|n| *n < 1_000_000)
            .ok_or_else(|| bad_backend("the path is the number of a database", "write redis://host:6379/0"))?,
    };
    let (user, server) = match server.rsplit_once('@') {
        None => (None, server),
        Some((user, server)) => (Some(user), server),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err(wrong(
            Code::BadBackend,
            "has a password in clear",
            "a secret does not belong in the file",
            "keep it as a secret and name that: password = \"redis-password\" (narae secret set redis-password)",
        ));
    }
    let plain = |user: &str| {
        (1..=128).contains(&user.len()) && user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if user.is_some_and(|user| !plain(user)) {
        return Err(bad_backend("not a user name", "letters, digits, `-`, `_` and `.`"));
    }
    // The rules of an origin are those of this host and port.
    let target = hosts::target(&format!("tcp://{}", with_port(server))).map_err(|why| Wrong {
        code: Code::BadBackend,
        message: "is not a backend".into(),
        ..why
    })?;
    if target.host.starts_with("*.") {
        return Err(bad_backend("`*` is no host", "name the server"));
    }
    let host = if target.host.contains(':') {
        format!("[{}]", target.host)
    } else {
        target.host
    };
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    Ok(format!("redis://{user}{host}:{}/{db}", target.port))
}

fn with_port(server: &str) -> String {
    let after_host = server.rsplit(']').next().unwrap_or(server);
    if after_host.contains(':') {
        server.to_owned()
    } else {
        format!("{server}:6379")
    }
}

/// `[outbound]`.
pub fn outbound(f: &Fields) -> Outbound {
    let (mut origins, mut services) = (Vec::new(), Vec::new());
    for item in f.list("allow") {
        match allowed(&item.text) {
            Ok(Allowed::Origin(target)) => origins.push(target),
            Ok(Allowed::Service(name)) => services.push(name.to_string()),
            Err(_) => {}
        }
    }
    Outbound {
        allow: origins,
        private: f.bool("private"),
        timeout: f.duration("timeout"),
        concurrent: f.count("concurrent"),
        services,
        credentials: f.tables("credentials").iter().map(credential).collect(),
    }
}

fn credential(t: &Fields) -> CredentialName {
    CredentialName {
        host: t.text("host").to_owned(),
        header: t.text("header").to_owned(),
        secret: t.text("secret").to_owned(),
    }
}

/// One `[[keyvalue]]`.
pub fn store(t: &Fields) -> KeyValueStore {
    KeyValueStore {
        name: t.text("name").to_owned(),
        backend: match t.text("backend") {
            "" | "embedded" => KeyValueBackend::Embedded,
            url => KeyValueBackend::Redis(url.to_owned()),
        },
        password: t.opt_text("password").map(str::to_owned),
        size_bytes: t.bytes("size"),
    }
}

/// What is wrong with entries beside each other.
pub fn check(fields: &Fields, reader: &mut Reader) {
    let source = reader.source.clone();
    let section = fields.sub("outbound");
    let outbound = outbound(section);
    let mut seen = BTreeSet::new();
    for table in section.tables("credentials") {
        let entry = credential(table);
        let problem = if !seen.insert((entry.host.clone(), entry.header.clone())) {
            Problem::new(
                Code::BadCredential,
                format!("header `{}` for `{}` is there twice", entry.header, entry.host),
            )
            .label("the same host and header again")
            .help("remove one of the two")
        } else if !entry.host.is_empty() && !reaches(&outbound, &entry.host) {
            Problem::warning(
                Code::NeverReached,
                format!(
                    "no call to `{}` is allowed, so its credential is never used",
                    entry.host
                ),
            )
            .label("not in `allow`")
            .help(format!("add \"https://{}\" to `allow` in [outbound]", entry.host))
        } else {
            continue;
        };
        reader.push(problem.at(&source, table.span("host")));
    }
    for table in fields.tables("keyvalue") {
        if table.given("password") && store(table).backend == KeyValueBackend::Embedded {
            reader.push(
                Problem::new(
                    Code::BadBackend,
                    "`password` in [[keyvalue]] needs a backend that asks for one",
                )
                .at(&source, table.span("password"))
                .label("the embedded store has no password")
                .help("remove it, or name the server: backend = \"redis://10.20.0.6:6379/0\""),
            );
        }
    }
}

fn reaches(outbound: &Outbound, host: &str) -> bool {
    outbound
        .allow
        .iter()
        .filter(|t| t.scheme != "tcp")
        .any(|t| match t.host.strip_prefix("*.") {
            Some(rest) => host.split_once('.').is_some_and(|(_, tail)| tail == rest),
            None => t.host == host,
        })
}

#[cfg(test)]
#[path = "tests/network.rs"]
mod tests;
