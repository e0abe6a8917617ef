//! Verbs about narae itself: help, completions, manual pages, version. All work without a daemon.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use serde_json::json;

use super::args::Cli;
use super::client::Client;
use super::codes;
use super::exit::Exit;
use super::report::Failure;
use super::seams;
use super::session::{Format, Session};
use super::table::{Text, pairs, render};
use crate::model::views::NodeView;

/// `narae help`.
#[derive(Clone, Debug, Args)]
pub struct HelpArgs {
    /// A verb (rollout undo), an error code (E0501), or a topic: aliases, exit-codes, environment, output
    #[arg(value_name = "WHAT")]
    pub what: Vec<String>,
}

/// `narae completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// Topics: name, one line, text. The texts of `aliases` and `environment` are made of the command itself.
const TOPICS: [(&str, &str); 4] = [
    ("aliases", "other names of the verbs"),
    ("exit-codes", "what the numbers mean"),
    ("environment", "variables in place of flags"),
    ("output", "formats, colour and streams"),
];

const EXIT_CODES: &str = "  0  done, and true (healthy, no difference)
  1  operation failed
  2  bad command line
  3  exists but is not running and healthy (status)
  4  no such service, revision or module
  5  daemon unreachable
  6  not permitted (token, group of the socket)
  7  time limit reached while waiting; the work goes on
  8  rollout failed and was rolled back; the old revision serves
  9  configuration invalid
 10  differences found (diff --exit-code, config fmt --check)
 11  changed underneath (revision precondition failed)
 12  stopped: the revision wants new capabilities
125  run of a command: narae itself failed
130  interrupted
`run` of a command ends with the guest's own code.
";

const OUTPUT: &str = "\
Results go to standard output, everything else to standard error.
-o table (default), wide (more columns), json ({\"schema\":1,\"items\":[...]}), jsonl (one item a line), name.
In JSON durations are milliseconds (_ms), sizes bytes, times RFC 3339 UTC. Streams (logs, events) are JSON Lines.
Colour follows --color, NO_COLOR, CLICOLOR_FORCE and TERM=dumb.
--progress json prints one object for each change on standard error.
";

const VARIABLES: &str = "
`serve` takes one for each key of the node file, too: http.max_connections is NARAE_HTTP_MAX_CONNECTIONS.
NARAE_LOG filters the log of the daemon, as debug or warn,narae_orchestrator::proxy=trace.
";

/// Explains a verb, a code or a topic.
///
/// # Errors
/// There is no such thing.
pub fn help(session: &Session, args: &HelpArgs) -> Result<Exit, Failure> {
    let text = match args.what.as_slice() {
        [] => format!("{}\n{}", Cli::command().render_long_help().ansi(), topics()),
        [what] if looks_like_code(what) => chapter(what)?,
        [topic] if TOPICS.iter().any(|(name, _)| name == topic) => topic_text(topic),
        verb => verb_help(verb)?,
    };
    session.print(&text)?;
    Ok(Exit::Done)
}

fn looks_like_code(what: &str) -> bool {
    let digits = what.strip_prefix(['E', 'e']).unwrap_or("");
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn chapter(code: &str) -> Result<String, Failure> {
    let code = code.to_ascii_uppercase();
    let own = codes::explain(&code).map(|(title, text)| format!("{code}: {title}\n\n{text}\n"));
    match own.or_else(|| seams::explain(&code).map(|chapter| format!("{}\n", chapter.trim_end()))) {
        Some(chapter) => Ok(chapter),
        None => Err(
            Failure::new(Exit::Failed, codes::NO_HELP, format!("there is no error {code}"))
                .help("codes are printed below each error"),
        ),
    }
}

fn topics() -> String {
    let lines = TOPICS.iter().map(|(name, line)| format!("  {name:<12} {line}\n"));
    format!("Topics of `narae help TOPIC`:\n{}", lines.collect::<String>())
}

fn topic_text(topic: &str) -> String {
    match topic {
        "aliases" => aliases(),
        "environment" => environment(),
        "exit-codes" => EXIT_CODES.to_owned(),
        _ => OUTPUT.to_owned(),
    }
}

fn verb_help(path: &[String]) -> Result<String, Failure> {
    let mut root = Cli::full_command().bin_name("narae");
    root.build();
    let mut here = &mut root;
    for verb in path {
        let known = here.find_subcommand(verb).is_some();
        if !known {
            return Err(Failure::new(
                Exit::Failed,
                codes::NO_HELP,
                format!("there is no help on `{}`", path.join(" ")),
            )
            .help("`narae help` lists the verbs and topics"));
        }
        here = here.find_subcommand_mut(verb).expect("found a line above");
    }
    if here.is_hide_set() && here.get_arguments().any(|a| a.get_id() == "rest") {
        return Err(super::not_yet(&format!("narae {}", path.join(" "))));
    }
    Ok(here.render_long_help().ansi().to_string())
}

/// Every hidden name and what it means, read from the command itself.
fn aliases() -> String {
    let mut rows: Vec<Vec<Text>> = Vec::new();
    // Of what there is: an alias of a verb of later would promise it.
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        rows.extend(command.get_all_aliases().map(|alias| vec![alias.into(), name.into()]));
        match name {
            "rollback" => rows.push(vec![name.into(), "rollout undo".into()]),
            "validate" => rows.push(vec![name.into(), "config check".into()]),
            _ => {}
        }
    }
    rows.sort_by(|a, b| a[0].text.cmp(&b[0].text));
    render(&["ALIAS", "MEANS"], rows)
}

/// Every variable and its flag, read from the command itself.
fn environment() -> String {
    let mut rows: Vec<Vec<Text>> = Vec::new();
    let mut root = Cli::command();
    root.build();
    let mut add = |verb: &str, command: &clap::Command| {
        for arg in command
            .get_arguments()
            .filter(|a| verb.is_empty() || !a.is_global_set())
        {
            if let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) {
                let space = if verb.is_empty() { "" } else { " " };
                rows.push(vec![
                    variable.to_string_lossy().into_owned().into(),
                    format!("{verb}{space}--{long}").into(),
                ]);
            }
        }
    };
    add("", &root);
    root.get_subcommands()
        .for_each(|command| add(command.get_name(), command));
    format!("{}{VARIABLES}", render(&["VARIABLE", "FLAG"], rows))
}

/// Prints a completion script.
///
/// # Errors
/// Standard output refuses it.
pub fn completions(session: &Session, args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "narae", &mut script);
    session.raw(&script)?;
    Ok(Exit::Done)
}

/// Prints the manual page, or writes all of them into the directory of `-o`.
///
/// # Errors
/// The directory or standard output refuses them.
pub fn man(session: &Session, dir: Option<&str>) -> Result<Exit, Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        session.raw(&page)?;
        return Ok(Exit::Done);
    };
    let pages = write_pages(Path::new(dir)).map_err(|e| {
        Failure::new(
            Exit::Failed,
            codes::WRITE,
            format!("cannot write manual pages into `{dir}`: {}", super::units::io_words(&e)),
        )
    })?;
    session.note(&format!("{} pages in {dir}", pages.len()));
    Ok(Exit::Done)
}

fn write_pages(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)?;
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect();
    Ok(entries?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "1"))
        .collect())
}

/// Prints the version of this program, and of the daemon when one answers.
///
/// # Errors
/// Standard output refuses it.
pub async fn version(session: &Session) -> Result<Exit, Failure> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let daemon = match Client::find(&session.globals).await {
        Ok(client) => client.get::<NodeView>("/v1/node").await.ok(),
        Err(_) => None,
    };
    match session.format {
        Format::Json | Format::JsonLines => session.json(&json!({ "schema": 1, "version": OWN, "daemon": daemon }))?,
        Format::Table | Format::Name => {
            session.print(&format!("narae {OWN}\n"))?;
            if let Some(node) = daemon {
                session.print(&format!("daemon {} on {}\n", node.version, node.name))?;
            }
        }
        Format::Wide => {
            session.print(&format!("narae {OWN}\n"))?;
            if let Some(node) = daemon {
                session.print(&pairs(&node_pairs(&node)))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn node_pairs(node: &NodeView) -> Vec<(&'static str, Text)> {
    use super::units::{age, size};
    vec![
        ("daemon", format!("{} on {}", node.version, node.name).into()),
        ("http", node.http.join(", ").into()),
        (
            "admin",
            node.admin.clone().unwrap_or_else(|| "socket only".into()).into(),
        ),
        ("allocator", node.allocator.clone().into()),
        (
            "memory",
            format!("{} of {}", size(node.memory_used_bytes), size(node.memory_budget_bytes)).into(),
        ),
        ("up", age(std::time::Duration::from_millis(node.uptime_ms)).into()),
        (
            "services",
            format!("{}, {} replicas serving", node.services, node.replicas_serving).into(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn every_alias_of_the_reference_is_listed() {
        insta::assert_snapshot!("aliases", plain(&aliases()));
    }

    #[test]
    fn every_variable_is_listed() {
        insta::assert_snapshot!("environment", plain(&environment()));
    }

    #[test]
    fn a_code_has_a_chapter_and_an_unknown_one_an_error() {
        assert!(chapter("e0601").unwrap().starts_with("E0601: "));
        assert_eq!(chapter("E9999").unwrap_err().exit, Exit::Failed);
        assert!(looks_like_code("E0042") && !looks_like_code("events") && !looks_like_code("E"));
    }

    #[test]
    fn help_on_a_verb_goes_as_deep_as_it_was_asked() {
        let of = |words: &[&str]| verb_help(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert!(plain(&of(&["rollout", "undo"]).unwrap()).contains("narae rollout undo"));
        assert!(plain(&of(&["apply"]).unwrap()).contains("--dry-run"));
        assert_eq!(of(&["nothing"]).unwrap_err().exit, Exit::Failed);
        assert!(
            of(&["top"]).unwrap_err().reports[0]
                .view
                .message
                .starts_with("not supported yet")
        );
    }

    #[test]
    fn manual_pages_are_written_for_every_verb() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write_pages(dir.path()).unwrap();
        assert!(pages.iter().any(|p| p.ends_with("narae-deploy.1")), "{pages:?}");
        assert!(!pages.iter().any(|p| p.ends_with("narae-top.1")));
    }

    #[test]
    fn completions_are_made_for_every_shell() {
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "narae", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("deploy"));
        }
    }
}
