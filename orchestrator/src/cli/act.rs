//! Verbs that change how much of a service runs: scale, restart, start, stop, delete. Each waits until the change is true
//! unless told not to.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, with_query};
use super::deploy::WAIT;
use super::exit::Exit;
use super::follow;
use super::jobs;
use super::progress::{Progress, Step};
use super::report::Failure;
use super::service;
use super::session::Session;
use super::units::parse_duration;
use crate::model::time::millis;
use crate::model::views::{ServiceStatus, ServiceView};
use crate::model::{ReplicaCount, ServiceName};

/// Waiting, or not.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Do not wait until it is so
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = WAIT, value_parser = parse_duration)]
    pub timeout: Duration,
}

/// `narae scale`.
#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    pub name: ServiceName,
    /// How many: a number, or a change as +1 or -1
    #[arg(value_name = "N|+N|-N", allow_hyphen_values = true, value_parser = count)]
    pub replicas: Count,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `narae start`.
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    pub name: ServiceName,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `narae restart`, `narae stop`.
#[derive(Clone, Debug, Args)]
pub struct GraceArgs {
    pub name: ServiceName,
    /// For requests in flight, instead of the service's traffic.drain
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `narae delete`.
#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<ServiceName>,
    /// For requests in flight, instead of the service's traffic.drain
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// A number of replicas, or a change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    To(u32),
    By(i64),
}

fn count(text: &str) -> Result<Count, String> {
    let expected = || format!("expected 0 to {}, or a change as +1 or -1", ReplicaCount::MAX);
    let digits = text.trim_start_matches(['+', '-']);
    if digits.len() + 1 < text.len() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(expected());
    }
    let number = digits
        .parse()
        .ok()
        .and_then(ReplicaCount::new)
        .ok_or_else(expected)?
        .get();
    Ok(match text.as_bytes().first() {
        Some(b'+') => Count::By(i64::from(number)),
        Some(b'-') => Count::By(-i64::from(number)),
        _ => Count::To(number),
    })
}

/// Sets the number of replicas.
///
/// # Errors
/// No such service, or waiting ended early.
pub async fn scale(session: &Session, args: ScaleArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let body = match args.replicas {
        Count::To(n) => json!({ "replicas": n }),
        Count::By(by) => json!({ "delta": by }),
    };
    let asked = post(&client, &args.name, "scale", &body).await.map_err(no_file)?;
    let wanted = asked.replicas_wanted;
    // With replicas wanted, only `stop` stops: the number is kept and nothing is there to wait for.
    let stopped = asked.state == "stopped" && wanted > 0;
    let view = if args.wait.no_wait || stopped {
        asked
    } else {
        wait(session, &client, &args.name, "scaling", &args.wait, |now| {
            now.service.replicas_wanted != wanted || now.service.replicas_serving == wanted
        })
        .await?
    };
    report(session, &view)?;
    if stopped {
        session.note(&format!(
            "{} is stopped; the number holds when it is started",
            args.name
        ));
        session.next(&format!("narae start {}", args.name));
    } else {
        session.next(&format!("narae status {}", args.name));
    }
    Ok(Exit::Done)
}

/// Replaces every replica, new beside old.
///
/// # Errors
/// No such service, or waiting ended early.
pub async fn restart(session: &Session, args: GraceArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let before: ServiceStatus = client.get(&service::path(&args.name, "status")).await?;
    if before.service.state == "stopped" {
        session.note(&format!("{} is stopped: nothing is there to restart", args.name));
        session.next(&format!("narae start {}", args.name));
        return Ok(Exit::NotHealthy);
    }
    let old: BTreeSet<String> = before.replicas.into_iter().map(|r| r.id).collect();
    let asked = post(&client, &args.name, "restart", &graceful(args.grace)).await?;
    if let Some(ended) = job(session, &client, &args.name, &args.wait).await? {
        return Ok(ended);
    }
    let view = if args.wait.no_wait {
        asked
    } else {
        wait(session, &client, &args.name, "restarting", &args.wait, |now| {
            let fresh = now
                .replicas
                .iter()
                .filter(|r| !old.contains(&r.id) && r.phase == "serving")
                .count();
            fresh >= now.service.replicas_wanted as usize
                && now.replicas.iter().all(|r| !old.contains(&r.id) || leaving(&r.phase))
        })
        .await?
    };
    report(session, &view)?;
    session.next(&format!("narae status {}", args.name));
    Ok(Exit::Done)
}

/// What `restart` and `start` do with a command: its newest run is waited for. None: it is no command, or nothing runs.
async fn job(session: &Session, client: &Client, name: &ServiceName, wait: &WaitArgs) -> Result<Option<Exit>, Failure> {
    let status: ServiceStatus = client.get(&service::path(name, "status")).await?;
    let Some(run) = status.runs.last() else {
        return Ok(None);
    };
    let run = if wait.no_wait || run.state != "running" {
        run.clone()
    } else {
        let mut progress = Progress::of(session);
        let which = jobs::Which::Id(run.id);
        let ended = jobs::wait(client, name.as_str(), which, wait.timeout, &mut progress).await?;
        match jobs::conclude(name.as_str(), ended)? {
            Some(run) => *run,
            None => return Ok(None),
        }
    };
    let one = std::slice::from_ref(&run);
    session.items(
        one,
        "",
        |run| run.id.to_string(),
        |all, _| all.iter().map(|run| jobs::sentence(name.as_str(), run)).collect(),
    )?;
    session.next(&format!("narae logs {name}"));
    Ok(Some(Exit::Done))
}

fn leaving(phase: &str) -> bool {
    matches!(phase, "draining" | "stopping" | "dead")
}

/// Starts a stopped service.
///
/// # Errors
/// No such service, or waiting ended early.
pub async fn start(session: &Session, args: StartArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let asked = post(&client, &args.name, "start", &json!({})).await?;
    if let Some(ended) = job(session, &client, &args.name, &args.wait).await? {
        return Ok(ended);
    }
    let view = if args.wait.no_wait {
        asked
    } else {
        wait(session, &client, &args.name, "starting", &args.wait, |now| {
            now.service.replicas_serving >= now.service.replicas_wanted && now.service.state != "stopped"
        })
        .await?
    };
    report(session, &view)?;
    session.next(&format!("narae status {}", args.name));
    Ok(Exit::Done)
}

/// Stops a service: its routes answer 503.
///
/// # Errors
/// No such service, or waiting ended early.
pub async fn stop(session: &Session, args: GraceArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let asked = post(&client, &args.name, "stop", &graceful(args.grace)).await?;
    let view = if args.wait.no_wait {
        asked
    } else {
        wait(session, &client, &args.name, "stopping", &args.wait, |now| {
            now.replicas.iter().all(|r| r.phase == "dead") && now.runs.iter().all(|r| r.state != "running")
        })
        .await?
    };
    report(session, &view)?;
    session.next(&format!("narae start {}", args.name));
    Ok(Exit::Done)
}

/// Drains services and forgets them.
///
/// # Errors
/// No such service, nobody to confirm, or waiting ended early.
pub async fn delete(session: &Session, args: DeleteArgs) -> Result<Exit, Failure> {
    let client = session.client().await?;
    let names: Vec<&str> = args.names.iter().map(ServiceName::as_str).collect();
    for name in &args.names {
        // Before the question: a name that is not there is no question.
        let _: ServiceStatus = client.get(&service::path(name, "status")).await?;
    }
    session.confirm(&format!("delete {} with all revisions?", names.join(", ")))?;
    for name in &args.names {
        let query = [("grace_ms", args.grace.map(|grace| millis(grace).to_string()))];
        let path = with_query(&format!("/v1/services/{name}"), &query);
        client.act(Method::DELETE, &path).await?;
    }
    let mut progress = Progress::of(session);
    if !args.wait.no_wait {
        gone(&client, &args.names, args.wait.timeout, &mut progress).await?;
    }
    progress.clear();
    let state = if args.wait.no_wait { "deleting" } else { "deleted" };
    if session.format.is_json() {
        let items: Vec<Value> = names
            .iter()
            .map(|name| json!({ "name": name, "state": state }))
            .collect();
        session.items(&items, "", |_| String::new(), |_, _| String::new())?;
    } else {
        for name in names {
            session.print(&format!("{name}: {state}\n"))?;
        }
    }
    session.next("narae list");
    Ok(Exit::Done)
}

/// Waits until none of these services is there any more.
///
/// # Errors
/// Waiting ended early.
pub async fn gone(
    client: &Client,
    names: &[ServiceName],
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    for name in names {
        let path = service::path(name, "status");
        let again = format!("narae status {name}");
        let look = async |seen: &mut Progress| match client.get::<ServiceStatus>(&path).await {
            Ok(now) => {
                seen.show(step(&now, "deleting"));
                Ok(None)
            }
            Err(failure) if failure.exit == Exit::Unknown => Ok(Some(())),
            Err(failure) => Err(failure),
        };
        follow::until(limit, &again, look, progress).await?;
    }
    Ok(())
}

async fn post(client: &Client, name: &ServiceName, verb: &str, body: &Value) -> Result<ServiceView, Failure> {
    client.json(Method::POST, &service::path(name, verb), Some(body)).await
}

fn graceful(grace: Option<Duration>) -> Value {
    grace.map_or_else(|| json!({}), |grace| json!({ "grace_ms": millis(grace) }))
}

/// A refused number is no invalid configuration file.
fn no_file(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Invalid => Failure {
            exit: Exit::Failed,
            ..failure
        },
        _ => failure,
    }
}

async fn wait(
    session: &Session,
    client: &Client,
    name: &ServiceName,
    state: &str,
    args: &WaitArgs,
    mut so: impl FnMut(&ServiceStatus) -> bool,
) -> Result<ServiceView, Failure> {
    let path = service::path(name, "status");
    let mut progress = Progress::of(session);
    follow::until(
        args.timeout,
        &format!("narae status {name}"),
        async |seen: &mut Progress| {
            let now: ServiceStatus = client.get(&path).await?;
            seen.show(step(&now, state));
            Ok(so(&now).then_some(now.service))
        },
        &mut progress,
    )
    .await
}

fn step(now: &ServiceStatus, state: &str) -> Step {
    Step {
        new_serving: now.service.replicas_serving,
        wanted: now.service.replicas_wanted,
        ..Step::of(&now.service.name, state, now.service.reason.clone())
    }
}

fn report(session: &Session, view: &ServiceView) -> Result<(), Failure> {
    let one = std::slice::from_ref(view);
    session.items(
        one,
        "",
        |s| s.name.clone(),
        |all, _| {
            all.iter()
                .map(|s| {
                    format!(
                        "{}: {}, {}/{} serving\n",
                        s.name, s.state, s.replicas_serving, s.replicas_wanted
                    )
                })
                .collect()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_or_a_signed_change() {
        assert_eq!(count("3"), Ok(Count::To(3)));
        assert_eq!(count("0"), Ok(Count::To(0)));
        assert_eq!(count("+2"), Ok(Count::By(2)));
        assert_eq!(count("-2"), Ok(Count::By(-2)));
        for bad in ["", "+", "-", "--1", "+-1", "1.5", "ten", "10001", "-99999999999999"] {
            assert!(count(bad).is_err(), "{bad}");
        }
    }
}
