//! What differs between two service files by what they mean, not by how they are written.

use std::collections::BTreeMap;

use serde::Serialize;

use super::print::entries;
use crate::model::ServiceSpec;

/// One key that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `limits.memory`, `env.LOG_LEVEL`, `route`.
    pub key: String,
    /// As TOML; `None`: not there.
    pub old: Option<String>,
    pub new: Option<String>,
}

impl std::fmt::Display for Change {
    /// `limits.memory: "64MiB" -> "128MiB"`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |v: &Option<String>| super::diagnostic::visible(v.as_deref().unwrap_or("(not set)"));
        write!(
            f,
            "{}: {} -> {}",
            super::diagnostic::visible(&self.key),
            side(&self.old),
            side(&self.new)
        )
    }
}

/// Every key that differs, in the order of the file. Empty: both mean the same.
pub fn diff(old: &ServiceSpec, new: &ServiceSpec) -> Vec<Change> {
    let listed = |spec: &ServiceSpec| -> Vec<(String, String)> {
        entries(spec)
            .into_iter()
            .map(|e| (e.key(), e.value.to_string().trim().to_owned()))
            .collect()
    };
    let (old, new) = (listed(old), listed(new));
    let before: BTreeMap<&str, &str> = old.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let after: BTreeMap<&str, &str> = new.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let gone = old.iter().filter(|(k, _)| !after.contains_key(k.as_str()));
    let there = new.iter().filter(|(k, v)| before.get(k.as_str()) != Some(&v.as_str()));
    there
        .chain(gone)
        .map(|(key, _)| Change {
            key: key.clone(),
            old: before.get(key.as_str()).map(|v| (*v).to_owned()),
            new: after.get(key.as_str()).map(|v| (*v).to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service;

    fn spec(more: &str) -> ServiceSpec {
        service(&format!("name = \"a\"\nmodule = \"a.wasm\"\n{more}"), "a.toml")
            .unwrap()
            .spec
    }

    #[test]
    fn files_that_mean_the_same_have_no_difference() {
        assert_eq!(
            diff(&spec(""), &spec("replicas = 1\n[limits]\nmemory = \"131072KiB\"\n")),
            []
        );
        assert_eq!(
            diff(&spec("routes = [\"/x/\"]"), &spec("[[route]]\npath = \"/x\"\n")),
            []
        );
    }

    #[test]
    fn each_changed_key_is_named_with_both_values() {
        let old = spec("routes = [\"/\"]\n[env]\nA = \"1\"\nB = \"2\"\n");
        let new = spec("replicas = 3\nroutes = [\"/v1\"]\n[env]\nA = \"2\"\nC = \"3\"\n");
        let lines: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "replicas: 1 -> 3",
                "env.A: \"1\" -> \"2\"",
                "env.C: (not set) -> \"3\"",
                "route: [{ path = \"/\", strip = false, tls = \"off\", https_redirect = false }] -> \
                 [{ path = \"/v1\", strip = false, tls = \"off\", https_redirect = false }]",
                "env.B: \"2\" -> (not set)",
            ]
        );
    }

    #[test]
    fn differences_are_printable() {
        let changes = diff(&spec(""), &spec("[env]\n\"A\u{202e}B\" = \"x\\u001b[31m\"\n"));
        let line = changes[0].to_string();
        assert!(!line.contains('\u{1b}') && !line.contains('\u{202e}'), "{line:?}");
    }
}
