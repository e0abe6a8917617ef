//! What a revision may touch, and what one wants beyond another: interfaces its module imports, and what its file grants. A deploy
//! that wants more than the last one stops here until a person has read the list.
//!
//! Compares names only; whether a wish is wise is for people, and what an import does with a grant for the runtime.

use std::collections::BTreeSet;
use std::fmt;

use narae_runtime::{CredentialName, Target};

use crate::model::ServiceSpec;
use crate::model::service::{KeyValueBackend, Wanting};

/// What kind of thing is touched. The order is that of lists: what reaches furthest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The rule that asks is itself given up.
    Rule,
    /// An origin, address or service that may be called.
    Outbound,
    /// A secret of the node.
    Secret,
    Volume,
    KeyValue,
    /// Of the module's imports: package, interface and compatible version.
    Interface,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Outbound => "outbound",
            Self::Secret => "secret",
            Self::Volume => "volume",
            Self::KeyValue => "keyvalue",
            Self::Interface => "interface",
        }
    }
}

/// One thing that a revision may touch: `outbound https://payments.example.test`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    pub kind: Kind,
    pub name: String,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// Addresses that stay closed unless this is granted.
const PRIVATE: &str = "private addresses";
/// `rollout.capabilities = "allow"`.
const NO_QUESTIONS: &str = "later revisions do not ask";

/// Everything one revision may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// Of a file and of the imports of its module.
    pub fn of<'a>(spec: &ServiceSpec, imports: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all: BTreeSet<Capability> = imports.into_iter().map(interface).collect();
        let mut add = |kind, name: String| all.insert(Capability { kind, name });
        for target in &spec.outbound.allow {
            add(Kind::Outbound, origin(target));
        }
        for name in &spec.outbound.services {
            add(Kind::Outbound, format!("service:{name}"));
        }
        for credential in &spec.outbound.credentials {
            // The secret's name is there too: what matters is where it goes.
            let CredentialName { host, header, secret } = credential;
            add(Kind::Secret, format!("{secret} as {header} to {host}"));
        }
        if spec.outbound.private && !spec.outbound.allow.is_empty() {
            add(Kind::Outbound, PRIVATE.into());
        }
        for name in spec.secret_names() {
            add(Kind::Secret, name.to_owned());
        }
        for store in &spec.keyvalue {
            let place = match &store.backend {
                KeyValueBackend::Embedded => String::new(),
                KeyValueBackend::Redis(url) => format!(" at {url}"),
            };
            add(Kind::KeyValue, format!("{}{place}", store.name));
        }
        for v in &spec.volumes {
            let Capability { kind, name } = volume(&v.name, &v.mount, v.read_only);
            add(kind, name);
        }
        if spec.rollout.capabilities == Wanting::Allow {
            add(Kind::Rule, NO_QUESTIONS.into());
        }
        Self(all)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Capability> {
        self.0.iter()
    }

    fn covers(&self, wanted: &Capability) -> bool {
        self.0.contains(wanted) || self.0.iter().any(|had| covers(had, wanted))
    }
}

/// A volume, writable or not.
pub fn volume(name: &str, mount: &str, read_only: bool) -> Capability {
    let how = if read_only { READ_ONLY } else { "read and write" };
    Capability {
        kind: Kind::Volume,
        name: format!("{name} at {mount}, {how}"),
    }
}

const READ_ONLY: &str = "read only";

/// `wasi:http/outgoing-handler@0.2.6` is `wasi:http/outgoing-handler 0.2`: a later minor version of the host's side is no news. All
/// of preview 1 is one interface.
fn interface(import: &str) -> Capability {
    let name = match import.split_once('@') {
        Some((name, version)) => format!("{name} {}", track(version)),
        None => import
            .strip_prefix("wasi_snapshot_preview1")
            .map_or(import, |_| "wasi_snapshot_preview1")
            .to_owned(),
    };
    Capability {
        kind: Kind::Interface,
        name,
    }
}

/// The part of a version within which it is compatible (semver): `1`, `0.2`, `0.0.3`; one before a release is only itself.
fn track(version: &str) -> String {
    let release = version.split('+').next().unwrap_or(version);
    let parts: Vec<&str> = release.split('.').collect();
    match parts.as_slice() {
        _ if release.contains('-') => release.to_owned(),
        [major, ..] if *major != "0" => (*major).to_owned(),
        [_, minor, ..] if *minor != "0" => format!("0.{minor}"),
        _ => release.to_owned(),
    }
}

/// As it is written in a file.
fn origin(target: &Target) -> String {
    let usual = match target.scheme.as_str() {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    let host = if target.host.contains(':') {
        format!("[{}]", target.host)
    } else {
        target.host.clone()
    };
    let port = if Some(target.port) == usual {
        String::new()
    } else {
        format!(":{}", target.port)
    };
    format!("{}://{host}{port}", target.scheme)
}

/// Whether who had `had` has `wanted` already.
fn covers(had: &Capability, wanted: &Capability) -> bool {
    if had.kind != wanted.kind {
        return false;
    }
    match had.kind {
        // One label for the `*`, as the runtime has it.
        Kind::Outbound => had.name.split_once("://*.").is_some_and(|(scheme, rest)| {
            let host = wanted.name.strip_prefix(scheme).and_then(|n| n.strip_prefix("://"));
            host.and_then(|h| h.split_once('.'))
                .is_some_and(|(label, after)| !label.is_empty() && after == rest)
        }),
        // Who writes may read.
        Kind::Volume => wanted
            .name
            .strip_suffix(READ_ONLY)
            .is_some_and(|place| had.name.strip_suffix("read and write") == Some(place)),
        _ => false,
    }
}

/// Interfaces that lead nowhere outside of the guest: a newer compiler brings them along, and nobody should be asked about a clock.
/// What preview 1 could open needs a grant, which is asked for.
fn harmless(capability: &Capability) -> bool {
    const PREFIXES: [&str; 7] = [
        "wasi:io/",
        "wasi:clocks/",
        "wasi:random/",
        "wasi:cli/",
        "wasi:http/types ",
        "wasi:logging/",
        "wasi_snapshot_preview1",
    ];
    capability.kind == Kind::Interface && PREFIXES.iter().any(|prefix| capability.name.starts_with(prefix))
}

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub capability: Capability,
    /// Else it is not wanted any more.
    pub added: bool,
    /// It is one that a person is asked about.
    pub asks: bool,
}

/// What `new` wants beyond all of `before` together, and what it does without.
pub fn diff(before: &[&Capabilities], new: &Capabilities) -> Vec<Change> {
    let added = new
        .iter()
        .filter(|c| !before.iter().any(|b| b.covers(c)))
        .map(|c| Change {
            asks: !harmless(c),
            capability: c.clone(),
            added: true,
        });
    let before: BTreeSet<&Capability> = before.iter().flat_map(|b| b.iter()).collect();
    let removed = before.into_iter().filter(|c| !new.covers(c)).map(|c| Change {
        capability: c.clone(),
        added: false,
        asks: false,
    });
    added.chain(removed).collect()
}

/// What must be accepted before a deploy may go on; empty: it may. `before` are the revisions that were let through last (the stable
/// and the wanted one); none: a first deploy, which never asks. Only where every one of them and the new one say `allow` is
/// nothing asked: a file cannot switch the question off and ask for more in one step.
pub fn asked<'a>(before: &[Wanting], new: Wanting, changes: &'a [Change]) -> Vec<&'a Capability> {
    let allowed = before.iter().chain([&new]).all(|w| *w == Wanting::Allow);
    if before.is_empty() || allowed {
        return Vec::new();
    }
    changes.iter().filter(|c| c.asks).map(|c| &c.capability).collect()
}

/// What an import needs in a service file before it does anything: `[outbound]`; none: nothing.
pub fn needs(import: &str) -> Option<&'static str> {
    const NEEDS: [(&str, &str); 7] = [
        ("wasi:http/outgoing-handler", "[outbound] allow"),
        ("wasi:http/client", "[outbound] allow"),
        ("wasi:sockets/", "[outbound] allow"),
        ("wasi:keyvalue/", "[[keyvalue]]"),
        ("wasi:blobstore/", "[[volume]]"),
        ("wasi:filesystem/", "[[volume]]"),
        ("wasi:config/", "[config]"),
    ];
    let found = NEEDS.iter().find(|(prefix, _)| import.starts_with(prefix));
    found.map(|(_, grant)| *grant)
}

/// Whether a file grants what [`needs`] names.
pub fn grants(spec: &ServiceSpec, import: &str) -> bool {
    match needs(import) {
        None => true,
        Some("[outbound] allow") => !spec.outbound.allow.is_empty(),
        Some("[[keyvalue]]") => !spec.keyvalue.is_empty(),
        Some("[[volume]]") => !spec.volumes.is_empty(),
        Some("[config]") => !spec.config.is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests;
