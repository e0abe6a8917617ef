//! `[job]`, and what a command has nothing to do with. Whether a module is a command is told by whoever has read it.

use super::codes::Code;
use super::diagnostic::Problem;
use super::fields::{Fields, Value};
use super::read::Reader;
use crate::model::service::{Job, Restart, World};

/// Keys that mean nothing to a command, each with what it has instead.
pub(super) const NOT_FOR_COMMANDS: &[(&str, &str)] = &[
    (
        "replicas",
        "write `job.parallelism` for attempts at once, `job.completions` for how many",
    ),
    (
        "depends_on",
        "a run begins when it is asked for; start it by a schedule or by hand",
    ),
    ("routes", "a command answers no requests: remove it"),
    ("route", "a command answers no requests: remove it"),
    ("traffic", "a command answers no requests: remove it"),
    ("probes", "a command has its exit code: remove it"),
    ("autoscale", "write `job.parallelism` for attempts at once"),
    ("rate_limit", "a command answers no requests: remove it"),
    ("limits.timeout", "write `job.timeout`, the time of a whole run"),
    (
        "limits.cpu_time",
        "write `job.timeout`: one attempt may compute so long",
    ),
    ("limits.concurrency", "write `job.parallelism`"),
    ("limits.queue", "a command answers no requests: remove it"),
    ("limits.queue_wait", "a command answers no requests: remove it"),
    ("limits.body", "a command answers no requests: remove it"),
    (
        "limits.requests_per_instance",
        "each attempt has an instance of its own: remove it",
    ),
    (
        "limits.requests_at_once",
        "each attempt has an instance of its own: remove it",
    ),
    (
        "limits.idle_instances",
        "each attempt has an instance of its own: remove it",
    ),
    ("restart.policy", "write `job.retries`; `retries = 0` never tries again"),
    ("restart.give_up", "write `job.retries`"),
    ("rollout.strategy", "the next run is of the new revision: remove it"),
    ("rollout.steps", "the next run is of the new revision: remove it"),
    ("rollout.max_surge", "the next run is of the new revision: remove it"),
    (
        "rollout.max_unavailable",
        "the next run is of the new revision: remove it",
    ),
    (
        "rollout.min_healthy_time",
        "the next run is of the new revision: remove it",
    ),
    ("rollout.progress_deadline", "write `job.timeout`"),
    ("rollout.gates", "a command answers no requests: remove it"),
];

/// `key` or a key below it means nothing to a command.
pub(super) fn is_for_http(key: &str) -> bool {
    NOT_FOR_COMMANDS.iter().any(|(path, _)| {
        key.strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// What a command does not have, and `[job]` of what is none.
pub(super) fn contradictions(fields: &Fields, world: World, reader: &mut Reader) {
    let source = reader.source.clone();
    if world == World::Http && fields.given("job") {
        reader.push(
            Problem::new(Code::NotForThisWorld, "[job] is for world = \"command\"")
                .at(&source, fields.span("job"))
                .label("nothing runs to its end here")
                .help("remove it, or write world = \"command\""),
        );
    }
    if world != World::Command {
        return;
    }
    for (path, instead) in NOT_FOR_COMMANDS {
        let (table, key) = match path.split_once('.') {
            Some((table, key)) => (fields.sub(table), key),
            None => (fields, *path),
        };
        if table.given(key) {
            reader.push(
                Problem::new(
                    Code::NotForThisWorld,
                    format!("`{path}` means nothing to a command, which is run to its end"),
                )
                .at(&source, place(table, key))
                .label("not a setting of world `command`")
                .help(*instead),
            );
        }
    }
}

/// Of the value; a table's is its header.
fn place(table: &Fields, key: &str) -> std::ops::Range<usize> {
    match table.get(key) {
        Some(Value::Tables(tables)) => tables.first().map_or(table.span(key), |first| first.span.clone()),
        Some(Value::Table(inner)) if !inner.span.is_empty() => inner.span.clone(),
        _ => table.span(key),
    }
}

pub(super) fn job(f: &Fields) -> Job {
    if f.entries.is_empty() {
        return Job::default();
    }
    Job {
        completions: f.count("completions"),
        parallelism: f.count("parallelism"),
        retries: f.count("retries"),
        timeout: f.duration("timeout"),
    }
}

/// The back-off of a job begins with a second, unless the file says otherwise.
pub(super) fn restart(restart: Restart, fields: &Fields, world: World) -> Restart {
    if world != World::Command || fields.sub("restart").sub("backoff").given("initial") {
        return restart;
    }
    Restart {
        initial: Restart::JOB_INITIAL.min(restart.max),
        ..restart
    }
}

#[cfg(test)]
#[path = "tests/jobs.rs"]
mod tests;
