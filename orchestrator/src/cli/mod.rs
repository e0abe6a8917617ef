//! Floor 4: what was typed. One file for each verb group; each reads its flags, asks the daemon over `client` (or does its
//! work through `seams`) and prints. Decides nothing about services.

mod act;
pub mod args;
mod boot;
mod call;
mod check;
pub mod client;
pub mod codes;
mod config;
mod crash;
mod deploy;
mod diff;
mod draw;
pub mod exit;
mod find;
mod follow;
mod help;
mod imports;
mod jobs;
mod later;
mod module;
mod observe;
mod progress;
pub mod report;
mod rollout;
pub mod run;
mod schedule;
mod seams;
mod secret;
mod service;
pub mod session;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod units;
mod variables;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::FromArgMatches as _;

use args::{Cli, Verb, When};
use exit::Exit;
use report::Failure;
use session::{Session, tell};

/// The hidden first word with which the daemon starts its compiler child.
pub const COMPILE: &str = "__compile";

/// The whole program.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).as_deref() == Some(OsStr::new(COMPILE)) {
        return narae_runtime::compile::child_main();
    }
    let matches = match Cli::full_command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    if let Some(typed) = later::asked_for(&matches) {
        let failure = not_yet(&typed);
        tell(&failure.reports, false);
        return failure.exit.into();
    }
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error.format(&mut Cli::full_command())),
    };
    colour(cli.globals.color);
    variables::warn();
    let json = cli.globals.json || matches!(cli.globals.output.as_deref(), Some("json" | "jsonl"));
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            tell(&failure.reports, json);
            failure.exit.into()
        }
    }
}

/// Help and version end 0 and go to standard output, the rest ends 2: clap knows which is which.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.exit_code() == 0 {
        Exit::Done.into()
    } else {
        Exit::Usage.into()
    }
}

/// Refuses by name what is designed and not built.
fn not_yet(typed: &str) -> Failure {
    Failure::new(Exit::Failed, codes::LATER, format!("not supported yet: `{typed}`"))
        .help("`narae help` lists what there is")
}

fn colour(when: When) {
    match when {
        When::Auto => {}
        When::Always => anstream::ColorChoice::Always.write_global(),
        When::Never => anstream::ColorChoice::Never.write_global(),
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    let Cli { mut globals, verb } = cli;
    // The one verb for which -o names a directory.
    if matches!(verb, Verb::Man) {
        let dir = globals.output.take();
        return help::man(&Session::new(globals)?, dir.as_deref());
    }
    let session = Session::new(globals)?;
    match verb {
        // These make their own runtimes.
        Verb::Serve(args) => boot::serve(&session, args),
        Verb::Run(args) => run::run(&session, args),
        Verb::Demo(args) => boot::demo(&session, args),
        Verb::Help(args) => help::help(&session, &args),
        Verb::Completions(args) => help::completions(&session, &args),
        Verb::Validate(args) => config::check(&session, &args),
        other => ask(&session, other),
    }
}

/// Verbs that ask a daemon, on one small runtime.
fn ask(session: &Session, asked: Verb) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failed, codes::DAEMON, format!("cannot make a runtime: {e}")))?;
    runtime.block_on(verb(session, asked))
}

async fn verb(session: &Session, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Deploy(args) => deploy::deploy(session, args).await,
        Verb::Diff(args) => diff::diff(session, args).await,
        Verb::List(args) => service::list(session, args).await,
        Verb::Status(args) => service::status(session, args).await,
        Verb::Inspect(args) => service::inspect(session, args).await,
        Verb::Logs(args) => observe::logs(session, args).await,
        Verb::Events(args) => observe::events(session, args).await,
        Verb::Crash(verb) => crash::crash(session, verb).await,
        Verb::Metrics => observe::metrics(session).await,
        Verb::Scale(args) => act::scale(session, args).await,
        Verb::Restart(args) => act::restart(session, args).await,
        Verb::Start(args) => act::start(session, args).await,
        Verb::Stop(args) => act::stop(session, args).await,
        Verb::Delete(args) => act::delete(session, args).await,
        Verb::Call(args) => call::call(session, args).await,
        Verb::Rollout(verb) => rollout::rollout(session, verb).await,
        Verb::Rollback(args) => rollout::undo(session, args).await,
        Verb::Schedule(verb) => schedule::schedule(session, verb).await,
        Verb::Config(verb) => config::config(session, verb).await,
        Verb::Module(verb) => module::module(session, verb).await,
        Verb::Secret(verb) => secret::secret(session, verb).await,
        Verb::Version => help::version(session).await,
        // Done by `run`, without a runtime of ours.
        Verb::Serve(_)
        | Verb::Run(_)
        | Verb::Demo(_)
        | Verb::Help(_)
        | Verb::Completions(_)
        | Verb::Validate(_)
        | Verb::Man => Ok(Exit::Done),
    }
}
