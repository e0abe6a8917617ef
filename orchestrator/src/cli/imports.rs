//! What each import of a module needs before it does anything: an interface of the host, and a grant in a service file. The words
//! of `module inspect`; reads no file and asks no daemon.

use std::collections::BTreeMap;

use serde::Serialize;

use super::units::printable;
use crate::model::ServiceSpec;
use crate::plan::capabilities::{grants, needs};

/// One import that a service file, or this narae, has a say in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    pub import: String,
    /// `[outbound] allow`; none: nothing would make it work.
    pub grant: Option<String>,
    /// `needed`; with a service file `granted` or `missing`; `not-offered`.
    pub state: String,
}

/// The needs of these imports, in their order. `offered` says what the host has; `spec` is the file they are judged for.
pub fn of(imports: &[String], offered: impl Fn(&str) -> bool, spec: Option<&ServiceSpec>) -> Vec<Need> {
    let need = |import: &String| {
        let (grant, state) = match (offered(import), needs(import), spec) {
            (false, _, _) => (None, "not-offered"),
            (true, None, _) => return None,
            (true, Some(grant), None) => (Some(grant), "needed"),
            (true, Some(grant), Some(spec)) if grants(spec, import) => (Some(grant), "granted"),
            (true, Some(grant), Some(_)) => (Some(grant), "missing"),
        };
        Some(Need {
            import: import.clone(),
            grant: grant.map(str::to_owned),
            state: state.to_owned(),
        })
    };
    imports.iter().filter_map(need).collect()
}

/// Imports by package, each with what it needs.
pub fn text(imports: &[String], found: &[Need], file: Option<&str>) -> String {
    let mut packages: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for import in imports {
        let package = import.split_once('/').map_or("", |(package, _)| package);
        packages.entry(package).or_default().push(import);
    }
    let mut out = String::new();
    for (package, imports) in packages {
        if !package.is_empty() {
            out.push_str(&format!("  {}\n", printable(package)));
        }
        for import in imports {
            let name = import.split_once('/').map_or(import, |(_, name)| name);
            let indent = if package.is_empty() { "  " } else { "    " };
            let note = found.iter().find(|n| n.import == import).map(|n| note(n, file));
            let note = note.map_or(String::new(), |note| format!("  ({note})"));
            out.push_str(&format!("{indent}{}{note}\n", printable(name)));
        }
    }
    out
}

fn note(need: &Need, file: Option<&str>) -> String {
    let file = printable(file.unwrap_or("the file"));
    match (need.state.as_str(), &need.grant) {
        ("granted", Some(grant)) => format!("{grant}: granted by {file}"),
        ("missing", Some(grant)) => format!("{grant}: missing in {file}, each call will be denied"),
        (_, Some(grant)) => format!("needs {grant}"),
        (_, None) => "not offered: a deploy is refused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_import_says_what_it_needs_and_whether_a_file_grants_it() {
        let imports: Vec<String> = [
            "wasi:cli/stdout@0.2.6",
            "wasi:http/outgoing-handler@0.2.6",
            "wasi:http/types@0.2.6",
            "wasi:keyvalue/store@0.2.0-draft",
            "evil:host/anything",
            "plain",
        ]
        .map(str::to_owned)
        .into();
        let offered = |name: &str| name.starts_with("wasi:");
        insta::assert_snapshot!(text(&imports, &of(&imports, offered, None), None), @r"
          plain  (not offered: a deploy is refused)
          evil:host
            anything  (not offered: a deploy is refused)
          wasi:cli
            stdout@0.2.6
          wasi:http
            outgoing-handler@0.2.6  (needs [outbound] allow)
            types@0.2.6
          wasi:keyvalue
            store@0.2.0-draft  (needs [[keyvalue]])
        ");
        let file = "name = \"a\"\nmodule = \"a.wasm\"\n[[keyvalue]]\n";
        let spec = crate::config::service(file, "a.toml").unwrap().spec;
        let found = of(&imports, offered, Some(&spec));
        let states: Vec<&str> = found.iter().map(|n| n.state.as_str()).collect();
        assert_eq!(states, ["missing", "granted", "not-offered", "not-offered"]);
        assert!(text(&imports, &found, Some("a.toml")).contains("missing in a.toml, each call will be denied"));
    }
}
