//! Jobs as the command line sees them: waiting for a run to end, and its table. The verbs are those of every service.

use std::time::Duration;

use super::client::Client;
use super::codes;
use super::exit::Exit;
use super::follow;
use super::progress::{Progress, Step};
use super::report::Failure;
use super::table::{Text, or_dash, render, state};
use super::units::{age, age_of, size};
use crate::model::views::{AttemptView, RunView, ServiceStatus};

/// How waiting for a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// A run ended, and how.
    Run(Box<RunView>),
    /// A schedule begins its runs: none was waited for.
    Scheduled,
}

/// Which run is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The newest of this revision, once it is there.
    OfRevision(u64),
    Id(u64),
}

/// Waits until a run has ended.
///
/// # Errors
/// The limit is reached (7), the revision is refused (1, or 8 when an older one is kept), another one took its place (11), or the
/// daemon is lost.
pub async fn wait(
    client: &Client,
    service: &str,
    which: Which,
    limit: Duration,
    progress: &mut Progress,
) -> Result<Ended, Failure> {
    let path = format!("/v1/services/{service}/status");
    let again = format!("narae status {service}");
    let looked = follow::until(
        limit,
        &again,
        async |seen: &mut Progress| {
            let now: ServiceStatus = client.get(&path).await?;
            let found = look(&now, which);
            if found.is_none() {
                seen.show(step(&now));
            }
            Ok(found)
        },
        progress,
    );
    looked.await?
}

/// What one look says; none: wait.
fn look(now: &ServiceStatus, which: Which) -> Option<Result<Ended, Failure>> {
    let service = &now.service.name;
    let mine = |run: &&RunView| match which {
        Which::OfRevision(revision) => run.revision == revision,
        Which::Id(id) => run.id == id,
    };
    if let Some(run) = now.runs.iter().rev().find(mine) {
        return (run.state != "running").then(|| Ok(Ended::Run(Box::new(run.clone()))));
    }
    let Which::OfRevision(revision) = which else {
        let text = format!("run of {service} is not kept any more");
        return Some(Err(Failure::new(Exit::Unknown, codes::RUN_FAILED, text)));
    };
    if let Some(rollout) = now
        .rollout
        .as_ref()
        .filter(|r| r.to == revision && r.state == "refused")
    {
        let outcome = follow::conclude(service, revision, follow::Outcome::Refused(rollout.clone()));
        return outcome.err().map(Err);
    }
    if now.service.revision != revision {
        let by = follow::Outcome::Superseded(now.service.revision);
        return follow::conclude(service, revision, by).err().map(Err);
    }
    let idle = now.service.stable == Some(revision) && now.service.state != "starting";
    idle.then_some(Ok(Ended::Scheduled))
}

fn step(now: &ServiceStatus) -> Step {
    Step {
        revision: Some(now.service.revision),
        new_serving: now.service.replicas_serving,
        wanted: now.service.replicas_wanted,
        ..Step::of(&now.service.name, &now.service.state, now.service.reason.clone())
    }
}

/// What an ended run means for the exit code.
///
/// # Errors
/// It did not succeed: 1; another revision took its place: 11.
pub fn conclude(service: &str, ended: Ended) -> Result<Option<Box<RunView>>, Failure> {
    let Ended::Run(run) = ended else { return Ok(None) };
    if run.state == "succeeded" {
        return Ok(Some(run));
    }
    let why = run.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let word = match run.state.as_str() {
        "timed-out" => "was ended",
        "cancelled" => "was cancelled",
        _ => "failed",
    };
    let failure = Failure::new(
        Exit::Failed,
        codes::RUN_FAILED,
        format!("run {} of {service} {word}{why}", run.id),
    );
    Err(match run.attempts.last() {
        Some(attempt) => failure.help(format!(
            "what it said: narae logs {service} --replica {}",
            attempt.replica
        )),
        None => failure.help(format!("see it with `narae status {service}`")),
    })
}

/// `run 3 succeeded, 5 of 5 attempts`.
pub fn sentence(service: &str, run: &RunView) -> String {
    let many = run.completions.unwrap_or(run.succeeded);
    let attempts = if many == 1 { "attempt" } else { "attempts" };
    let failed = if run.failed > 0 {
        format!(", {} failed", run.failed)
    } else {
        String::new()
    };
    format!(
        "{service}: run {} {}, {} of {many} {attempts} succeeded{failed}\n",
        run.id, run.state, run.succeeded
    )
}

/// The newest runs, the newest last, and the attempts of the last one.
pub fn tables(runs: &[RunView], at: jiff::Timestamp) -> String {
    let headings = [
        "RUN>", "REV>", "STATE", "DONE>", "FAILED>", "CODE>", "AGE", "TOOK", "CAUSE", "REASON",
    ];
    let rows = runs[runs.len().saturating_sub(10)..].iter().map(|run| {
        let row: Vec<Text> = vec![
            run.id.to_string().into(),
            run.revision.to_string().into(),
            state(&run.state),
            match run.completions {
                Some(of) => format!("{}/{of}", run.succeeded),
                None => run.succeeded.to_string(),
            }
            .into(),
            run.failed.to_string().into(),
            or_dash(run.last_code.map(|code| code.to_string())),
            age_of(&run.created_at, at).into(),
            or_dash(took(run)),
            run.cause.clone().into(),
            or_dash(run.reason.clone()),
        ];
        row
    });
    let mut out = render(&headings, rows.collect());
    if let Some(last) = runs.last().filter(|run| !run.attempts.is_empty()) {
        out.push_str(&format!("\nattempts of run {}\n", last.id));
        out.push_str(&attempts(&last.attempts));
    }
    out
}

/// From its beginning to its end.
fn took(run: &RunView) -> Option<String> {
    let began: jiff::Timestamp = run.created_at.parse().ok()?;
    let ended: jiff::Timestamp = run.ended_at.as_ref()?.parse().ok()?;
    let ms = ended.as_millisecond().saturating_sub(began.as_millisecond());
    Some(short(u64::try_from(ms).unwrap_or(0)))
}

/// `840ms`, then as an age.
fn short(ms: u64) -> String {
    if ms < 1_000 {
        format!("{ms}ms")
    } else {
        age(Duration::from_millis(ms))
    }
}

fn attempts(attempts: &[AttemptView]) -> String {
    let headings = ["REPLICA", "STATE", "CODE>", "TOOK", "CPU", "MEM", "REASON"];
    let rows = attempts.iter().map(|a| {
        let row: Vec<Text> = vec![
            a.replica.clone().into(),
            state(&a.state),
            or_dash(a.code.map(|code| code.to_string())),
            short(a.ran_ms).into(),
            short(a.cpu_ms).into(),
            or_dash((a.memory_bytes > 0).then(|| size(a.memory_bytes))),
            or_dash(a.reason.clone()),
        ];
        row
    });
    render(&headings, rows.collect())
}

/// The words of a job's state that are no trouble.
pub fn is_well(state: &str) -> bool {
    matches!(state, "succeeded" | "running" | "scheduled")
}
