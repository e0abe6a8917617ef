//! The command line as clap sees it: the verbs, their hidden aliases and the flags all of them share. What a verb does is
//! in the file of its group.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::{
    act, call, config, crash, deploy, diff, help, later, module, observe, rollout, run, schedule, secret, service,
};

/// Run WebAssembly services: deploy from TOML, balance, heal, swap without losing a request.
#[derive(Debug, Parser)]
#[command(
    name = "narae",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120,
    after_help = "`narae help VERB` tells more, `narae help E0042` explains an error, `narae help aliases` lists the other names."
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// What is parsed: the verbs of today, and those of later so that they can be refused by name.
    pub fn full_command() -> clap::Command {
        later::extend(Self::command())
    }
}

/// Flags of every verb.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct Globals {
    /// The daemon: unix:/path/to/admin.sock or http://127.0.0.1:7070
    #[arg(long, global = true, env = "NARAE_HOST", value_name = "URL", hide_env_values = true)]
    pub host: Option<String>,
    /// File with the token of the admin listener; needed over TCP only
    #[arg(long, global = true, env = "NARAE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How to print results: table, wide, json, jsonl or name
    #[arg(short, long, global = true, env = "NARAE_OUTPUT", value_name = "FORMAT")]
    pub output: Option<String>,
    /// The same as -o json
    #[arg(long, global = true, env = "NARAE_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// When to use colour
    #[arg(
        long,
        global = true,
        env = "NARAE_COLOR",
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub color: When,
    /// How to show progress: bars on a terminal, else one line per change
    #[arg(
        long,
        global = true,
        env = "NARAE_PROGRESS",
        value_name = "HOW",
        default_value = "auto"
    )]
    pub progress: ProgressMode,
    /// Results only: no hints, no notes; `list` prints names
    #[arg(short, long, global = true, env = "NARAE_QUIET", value_parser = FalseyValueParser::new())]
    pub quiet: bool,
    /// Say what is done, on standard error; repeat for more
    #[arg(short, long, global = true, env = "NARAE_VERBOSE", action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Yes to every question
    #[arg(short, long, global = true, env = "NARAE_YES", value_parser = FalseyValueParser::new())]
    pub yes: bool,
    /// Never ask; fail where a question would be asked
    #[arg(long, global = true, env = "NARAE_NO_INPUT", value_parser = FalseyValueParser::new())]
    pub no_input: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, else plain
    #[default]
    Auto,
    /// One line per change
    Plain,
    /// One JSON object per change, on standard error
    Json,
    /// Nothing
    None,
}

/// What can be asked for. Hidden aliases are for fingers trained elsewhere.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the daemon: proxy, agent and admin API in one process
    #[command(alias = "daemon")]
    Serve(run::ServeArgs),
    /// Run one module here and now, without a daemon or a file
    Run(run::RunArgs),
    /// Make services what their files say, and wait until they are
    #[command(aliases = ["apply", "up"])]
    Deploy(deploy::DeployArgs),
    /// Show what deploy would change
    #[command(alias = "plan")]
    Diff(diff::DiffArgs),
    /// List services
    #[command(aliases = ["ls", "ps"])]
    List(service::ListArgs),
    /// Show one service: replicas, last events, last log lines
    Status(service::StatusArgs),
    /// Show everything about a service or one of its revisions
    #[command(alias = "describe")]
    Inspect(service::InspectArgs),
    /// Print what the guests wrote
    Logs(observe::LogsArgs),
    /// Print what happened
    Events(observe::EventsArgs),
    /// List and show crash reports: why guests trapped and replicas died
    #[command(subcommand)]
    Crash(crash::CrashVerb),
    /// Print the metrics as OpenMetrics text
    Metrics,
    /// Set the number of replicas
    Scale(act::ScaleArgs),
    /// Replace every replica by a fresh one, new beside old
    #[command(alias = "reload")]
    Restart(act::GraceArgs),
    /// Start a stopped service
    Start(act::StartArgs),
    /// Stop a service; its routes answer 503
    Stop(act::GraceArgs),
    /// Drain a service and forget it
    #[command(aliases = ["rm", "down"])]
    Delete(act::DeleteArgs),
    /// Send one request to a service through the admin socket
    #[command(alias = "curl")]
    Call(call::CallArgs),
    /// Follow, list and undo revisions
    #[command(subcommand)]
    Rollout(rollout::RolloutVerb),
    /// The same as rollout undo
    #[command(hide = true)]
    Rollback(rollout::UndoArgs),
    /// List, run, pause and look back on schedules
    #[command(subcommand, alias = "cron")]
    Schedule(schedule::ScheduleVerb),
    /// Check, format and show configuration
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// The same as config check
    #[command(hide = true)]
    Validate(config::CheckArgs),
    /// List, inspect and prune stored modules
    #[command(subcommand, aliases = ["image", "images"])]
    Module(module::ModuleVerb),
    /// Set, list and delete the node's secrets
    #[command(subcommand)]
    Secret(secret::SecretVerb),
    /// Show the main job by itself: real components under load, killed, healed and swapped
    Demo(run::DemoArgs),
    /// Print the completion script of a shell
    Completions(help::CompletionsArgs),
    /// Print the manual page, or write all of them with -o DIR
    Man,
    /// Print the version of this program and of the daemon
    Version,
    /// Explain a verb, an error code (E0042) or a topic
    Help(help::HelpArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        Cli::full_command().debug_assert();
    }

    #[test]
    fn every_verb_of_today_is_understood() {
        for line in [
            "narae serve --config n.toml --data-dir d --listen 127.0.0.1:0 --admin 127.0.0.1:0 --dev",
            "narae run app.wasm -p 8080 -e A=B --env-file f --memory 64MiB --timeout 5s --route / --replicas 2 --rm -- a -b",
            "narae deploy a.toml b.toml --dry-run --set limits.memory=64MiB --timeout 1m -y",
            "narae deploy dir --prune --no-wait",
            "narae deploy -",
            "narae diff a.toml --exit-code",
            "narae list -a -q --watch --sort name --filter state=failed",
            "narae status hello",
            "narae inspect hello --revision 3 --spec",
            "narae inspect hello --effective",
            "narae logs hello -f -n 5 --since 10m --until 1m --replica r3 --revision 2 --level warn --grep x -t --json",
            "narae events -f --since 1h --service hello --kind trap --json",
            "narae metrics",
            "narae scale hello 3 --no-wait",
            "narae scale hello +1",
            "narae scale hello -1",
            "narae restart hello --grace 30s",
            "narae start hello",
            "narae stop hello --grace 1s",
            "narae delete hello -y",
            "narae call hello /x?y=1 -X POST -H a:b -d body --replica r1 --revision 2 -i --fail",
            "narae rollout status hello",
            "narae rollout history hello",
            "narae rollout undo hello --to 3",
            "narae schedule list",
            "narae schedule next hello nightly -n 3",
            "narae schedule next ./hello.toml",
            "narae schedule run hello nightly",
            "narae schedule pause hello nightly",
            "narae schedule resume hello nightly",
            "narae schedule history hello",
            "narae config check a.toml",
            "narae config schema service",
            "narae config show --origin",
            "narae config fmt a.toml --check",
            "narae config reload",
            "narae module list",
            "narae module inspect hello.wasm",
            "narae module prune -y",
            "narae module inspect hello.wasm --for hello.toml",
            "narae secret set db",
            "narae secret set db --from-file f",
            "narae secret list -o json",
            "narae secret delete db -y",
            "narae deploy a.toml --accept",
            "narae demo --seconds 5 --keep",
            "narae completions bash",
            "narae man -o dir",
            "narae version -o json",
            "narae help E0042",
            "narae help rollout undo",
            "narae --host unix:/a --token-file t -o wide --color never --progress plain -q -vv -y --no-input list",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn every_alias_means_its_verb() {
        for (alias, verb) in [
            ("daemon", "Serve("),
            ("apply a.toml", "Deploy("),
            ("up a.toml", "Deploy("),
            ("plan a.toml", "Diff("),
            ("ls", "List("),
            ("ps", "List("),
            ("describe hello", "Inspect("),
            ("reload hello", "Restart("),
            ("rm hello", "Delete("),
            ("down hello", "Delete("),
            ("curl hello /", "Call("),
            ("rollback hello", "Rollback("),
            ("cron list", "Schedule("),
            ("validate a.toml", "Validate("),
            ("image list", "Module("),
            ("images list", "Module("),
        ] {
            let cli = parse(&format!("narae {alias}")).unwrap();
            assert!(format!("{:?}", cli.verb).starts_with(verb), "{alias}: {:?}", cli.verb);
        }
    }

    #[test]
    fn nonsense_ends_with_clap_s_own_code() {
        for line in [
            "narae lsit",
            "narae status",
            "narae scale hello many",
            "narae status UPPER",
            "narae list --color blue",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
