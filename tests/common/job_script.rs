//! Commands of a transcript about jobs, and what happened under each.

use std::fmt::Write as _;
use std::time::Duration;

use narae_orchestrator::model::service::Job;
use narae_orchestrator::plan::world::jobs::{Command, JobWorld};
use narae_orchestrator::plan::world::ms;

/// A transcript that begins with this word is played here.
pub const MARK: &str = "# Job";

/// Runs the commands (lines that begin with `> `) and puts what happened under each.
pub fn play(text: &str) -> Result<String, String> {
    let mut world = JobWorld::new(1);
    world.tracing = true;
    let mut out = String::new();
    for (at, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            let said = run(&mut world, command).map_err(|error| format!("line {}: {error}", at + 1))?;
            for line in world.trace.drain(..).chain(said) {
                writeln!(out, "{}", line.trim_end()).unwrap();
            }
            for breach in world.breaches.drain(..) {
                writeln!(out, "BREACH {breach}").unwrap();
            }
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    Ok(out)
}

fn run(world: &mut JobWorld, command: &str) -> Result<Option<String>, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["deploy", name, settings @ ..] => {
            let (mut job, mut behaves) = (Job::default(), Command::default());
            for setting in settings {
                let pair = setting.split_once('=');
                let (key, value) = pair.ok_or_else(|| format!("no setting `{setting}`"))?;
                set(&mut job, &mut behaves, key, value)?;
            }
            world.deploy(name, job, behaves);
        }
        ["begin", name, cause @ ..] => drop(world.begin(name, &cause.join(" "))),
        ["cancel", name, run] => drop(world.cancel(name, number(run)?)),
        ["stop", name] => drop(world.record(name, |r| r.stopped = true)),
        ["start", name] => drop(world.record(name, |r| r.stopped = false)),
        ["delete", name] => drop(world.record(name, |r| r.deleting = true)),
        ["reboot"] => drop(world.reboot()),
        ["store", "down"] => {
            world.store = false;
            world.settle();
        }
        ["store", "up"] => {
            world.store = true;
            world.settle();
        }
        ["advance", by] => drop(world.advance(duration(by)?)),
        ["status", name] => return Ok(Some(format!("          {}", world.state(name)))),
        _ => return Err(format!("no command `{command}`")),
    }
    Ok(None)
}

fn set(job: &mut Job, command: &mut Command, key: &str, value: &str) -> Result<(), String> {
    let count = || value.parse::<u32>().map_err(|_| format!("no number: `{value}`"));
    match key {
        "completions" => job.completions = count()?,
        "parallelism" => job.parallelism = count()?,
        "retries" => job.retries = count()?,
        "timeout" => job.timeout = duration(value)?,
        "takes" if value == "forever" => command.takes = None,
        "takes" => command.takes = Some(duration(value)?),
        "codes" => {
            let codes = value
                .split(',')
                .map(|code| code.parse().map_err(|_| format!("no code: `{code}`")));
            command.codes = codes.collect::<Result<_, String>>()?;
        }
        "compiles" => command.compiles = value == "true",
        _ => return Err(format!("no setting `{key}`")),
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("no duration: `{text}`");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (digits, unit) = text.split_at(at);
    let n = number(digits)?;
    match unit {
        "ms" => Ok(ms(n)),
        "s" => Ok(Duration::from_secs(n)),
        "m" => Ok(Duration::from_secs(60 * n)),
        _ => Err(error()),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("no number: `{text}`"))
}
