//! Mistyped `NARAE_*` variables: one that is nearly a known one is told, because nobody would notice that it does nothing.
//! Others with our prefix may be somebody else's and are left alone.

use std::collections::BTreeSet;

use super::args::Cli;
use super::session::say;
use crate::config;

const PREFIX: &str = "NARAE_";

/// Tells of this process's mistyped variables, each once.
pub fn warn() {
    let set = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for (typed, meant) in mistyped(set.filter(|name| name.starts_with(PREFIX)), &known()) {
        say(&format!(
            "warning: variable `{}` is not known: did you mean `{PREFIX}{}`?",
            typed.escape_debug(),
            meant.to_ascii_uppercase()
        ));
    }
}

/// Every variable that is read, in small letters and without the prefix: of flags, of keys of the node file, and of the log.
fn known() -> BTreeSet<String> {
    fn of(command: &clap::Command, into: &mut BTreeSet<String>) {
        let named = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str());
        into.extend(named.filter_map(short));
        for below in command.get_subcommands() {
            of(below, into);
        }
    }
    let mut known = BTreeSet::from(["log".to_owned(), "data_dir".to_owned()]);
    of(&Cli::full_command(), &mut known);
    known.extend(config::variables().filter_map(|name| short(&name)));
    known
}

fn short(name: &str) -> Option<String> {
    name.strip_prefix(PREFIX).map(str::to_ascii_lowercase)
}

/// What is set and not known, with what was meant.
fn mistyped(set: impl Iterator<Item = String>, known: &BTreeSet<String>) -> Vec<(String, String)> {
    let near = |name: String| {
        let typed = short(&name)?;
        // `NARAE_NODE_LABELS_x` belongs to `NARAE_NODE_LABELS`.
        if known.iter().any(|k| typed == *k || typed.starts_with(&format!("{k}_"))) {
            return None;
        }
        let meant = config::nearest(&typed, known.iter().map(String::as_str))?.to_owned();
        Some((name, meant))
    };
    set.filter_map(near).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(name: &str) -> Option<String> {
        mistyped(std::iter::once(name.to_owned()), &known()).pop().map(|m| m.1)
    }

    #[test]
    fn a_variable_that_is_nearly_a_known_one_is_told_and_others_are_not_ours() {
        assert_eq!(meant("NARAE_LISTN").as_deref(), Some("listen"));
        assert_eq!(meant("NARAE_HTTP_LISTENS").as_deref(), Some("http_listen"));
        assert_eq!(
            meant("NARAE_HTTP_MAX_CONECTIONS").as_deref(),
            Some("http_max_connections")
        );
        for fine in [
            "NARAE_LISTEN",
            "NARAE_HTTP_LISTEN",
            "NARAE_LOG",
            "NARAE_BINARY",
            "NARAE_SEEDS",
            "NARAE_STRICT",
        ] {
            assert_eq!(meant(fine), None, "{fine}");
        }
    }
}
