//! Verbs and flags that are designed and not built yet. They are refused by name; accepting and ignoring one would be a lie.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

/// Verbs of the root: name and aliases.
const VERBS: &[(&str, &[&str])] = &[
    ("new", &[]),
    ("dev", &["watch"]),
    ("top", &["monit"]),
    ("node", &[]),
    ("cluster", &[]),
    ("doctor", &[]),
    ("system", &[]),
    ("token", &[]),
    ("context", &[]),
    ("import", &[]),
    ("export", &[]),
    ("prove", &[]),
    ("report", &[]),
];

/// Verbs below a group.
const GROUPED: &[(&str, &[&str])] = &[("module", &["pull", "push", "verify", "compile"])];

/// A flag: where (one or two verbs deep), its long name, its letter, whether a value follows.
type Flag = (&'static [&'static str], &'static str, Option<char>, bool);

const FLAGS: &[Flag] = &[
    (&[], "context", None, true),
    (&["crash", "show"], "core", None, true),
    (&["run"], "detach", Some('d'), false),
    (&["rollout", "history"], "watch", None, false),
    (&["rollout", "undo"], "watch", None, false),
];

/// The command with everything of later added, hidden.
pub fn extend(mut command: Command) -> Command {
    for (name, aliases) in VERBS {
        command = command.subcommand(refused_verb(name).aliases(aliases.iter().copied()));
    }
    for (group, verbs) in GROUPED {
        command = command.mut_subcommand(group, |mut c| {
            for verb in *verbs {
                c = c.subcommand(refused_verb(verb));
            }
            c
        });
    }
    for flag in FLAGS.iter().copied() {
        command = with_flag(command, flag.0, flag);
    }
    command
}

fn with_flag(command: Command, at: &'static [&'static str], flag: Flag) -> Command {
    match at.split_first() {
        Some((verb, rest)) => command.mut_subcommand(*verb, |c| with_flag(c, rest, flag)),
        None => command.arg(refused_flag(flag)),
    }
}

fn refused_verb(name: &'static str) -> Command {
    let rest = Arg::new("rest")
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(clap::value_parser!(OsString));
    Command::new(name)
        .hide(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(rest)
}

fn refused_flag((at, long, letter, value): Flag) -> Arg {
    let arg = Arg::new(format!("later-{long}"))
        .long(long)
        .hide(true)
        .global(at.is_empty());
    let arg = match letter {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    if value {
        arg.num_args(1)
    } else {
        arg.action(ArgAction::SetTrue)
    }
}

/// What was typed and cannot be done yet, as it would be typed: `narae top`, `narae deploy --strategy`.
pub fn asked_for(matches: &ArgMatches) -> Option<String> {
    let mut typed = String::from("narae");
    let mut here = matches;
    let mut path: Vec<&str> = Vec::new();
    loop {
        let flag = FLAGS.iter().find(|(at, long, _, value)| {
            (at.is_empty() || *at == path.as_slice()) && {
                let id = format!("later-{long}");
                if *value {
                    here.try_contains_id(&id).unwrap_or(false)
                } else {
                    here.try_get_one::<bool>(&id).ok().flatten().is_some_and(|set| *set)
                }
            }
        });
        if let Some((_, long, _, _)) = flag {
            return Some(format!("{typed} --{long}"));
        }
        let (verb, below) = here.subcommand()?;
        typed.push(' ');
        typed.push_str(verb);
        let refused = match path.as_slice() {
            [] => VERBS.iter().any(|(name, _)| *name == verb),
            [group] => GROUPED.iter().any(|(g, verbs)| g == group && verbs.contains(&verb)),
            _ => false,
        };
        if refused {
            return Some(typed);
        }
        path.push(verb);
        here = below;
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;

    fn asked(line: &str) -> Option<String> {
        let matches = Cli::full_command().try_get_matches_from(line.split_whitespace());
        asked_for(&matches.unwrap_or_else(|e| panic!("{line}: {e}")))
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        for (line, said) in [
            ("narae top --once -o json", "narae top"),
            ("narae monit", "narae top"),
            ("narae watch a.toml --open", "narae dev"),
            ("narae node drain n1", "narae node"),
            ("narae doctor --help", "narae doctor"),
            ("narae module pull oci://x", "narae module pull"),
            ("narae rollout undo hello --watch", "narae rollout undo --watch"),
            ("narae run a.wasm -d", "narae run --detach"),
            ("narae --context prod list", "narae --context"),
            ("narae list --context prod", "narae --context"),
        ] {
            assert_eq!(asked(line).as_deref(), Some(said), "{line}");
        }
    }

    #[test]
    fn what_exists_is_not_refused() {
        for line in [
            "narae list",
            "narae deploy a.toml",
            "narae rollout undo hello --to 3",
            "narae rollout promote hello",
            "narae rollout status hello --watch",
            "narae deploy a.toml --strategy canary",
            "narae module list",
        ] {
            assert_eq!(asked(line), None, "{line}");
        }
    }
}
