//! Transcripts of the pure core: what is asked for, and everything that the planners decide from it, in virtual time.
//! `UPDATE=1 cargo test --test scenarios` writes the answers down again; read the difference before you keep it.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "common/job_script.rs"]
mod job_script;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use narae_orchestrator::model::schedule::{CatchUp, Overlap, Schedule, What, When};
use narae_orchestrator::model::service::{
    Amount, Autoscale, Gates, LivenessProbe, ReadinessProbe, RestartPolicy, ScaleMetric, Step, Strategy,
};
use narae_orchestrator::model::{Death, ServiceSpec, Timestamp};
use narae_orchestrator::plan::world::clock::schedule as clock_schedule;
use narae_orchestrator::plan::world::{Clients, Guest, World, ms, replica_count, service_name};

#[test]
fn every_transcript_is_what_the_planners_decide() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(paths.len() >= 16, "the transcripts are missing");
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = String::new();
    for path in paths {
        let written = std::fs::read_to_string(&path).unwrap();
        let played = play(&written).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if written == played {
            continue;
        }
        if update {
            std::fs::write(&path, played).unwrap();
            continue;
        }
        let line = written.lines().zip(played.lines()).take_while(|(a, b)| a == b).count();
        let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
        writeln!(
            wrong,
            "{}:{}\n  written  {}\n  decided  {}",
            path.display(),
            line + 1,
            at(&written),
            at(&played)
        )
        .unwrap();
    }
    assert!(wrong.is_empty(), "{wrong}UPDATE=1 writes them down again");
}

#[test]
fn a_command_with_a_mistake_is_named() {
    assert_eq!(play("> deply hello").unwrap_err(), "line 1: no command `deply`");
    assert_eq!(
        play("# x\n> deploy hello colour=red").unwrap_err(),
        "line 2: no setting `colour`"
    );
    assert_eq!(play("> advance soon").unwrap_err(), "line 1: no duration: `soon`");
}

/// Runs the commands (lines that begin with `> `) and puts what happened under each. Other text that begins with `#` or
/// is empty is kept.
fn play(text: &str) -> Result<String, String> {
    if text.starts_with(job_script::MARK) {
        return job_script::play(text);
    }
    let mut world = World::new(1);
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

fn run(world: &mut World, command: &str) -> Result<Option<String>, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["deploy", name, settings @ ..] => {
            let mut guest = Guest::default();
            let mut edits: Vec<(&str, &str)> = Vec::new();
            for setting in settings {
                let (key, value) = setting
                    .split_once('=')
                    .ok_or_else(|| format!("no setting `{setting}`"))?;
                if !behave(&mut guest, key, value)? {
                    edits.push((key, value));
                }
            }
            let mut trial = narae_orchestrator::plan::world::spec(name);
            for (key, value) in &edits {
                set(&mut trial, key, value)?;
            }
            world.deploy(name, guest, |spec| {
                for (key, value) in edits {
                    set(spec, key, value).expect("tried above");
                }
            });
        }
        ["guest", name, revision, settings @ ..] => {
            let mut guest = Guest::default();
            for setting in settings {
                let (key, value) = setting
                    .split_once('=')
                    .ok_or_else(|| format!("no setting `{setting}`"))?;
                if !behave(&mut guest, key, value)? {
                    return Err(format!("no setting `{key}`"));
                }
            }
            world.behave(name, number(revision)?, guest);
        }
        ["secret", name, settings @ ..] => {
            let mut guest = Guest::default();
            for setting in settings {
                let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
                if !behave(&mut guest, key, value)? {
                    return Err(format!("no setting `{setting}`"));
                }
            }
            world.change_secret(name, guest);
        }
        ["undo", name, to] => drop(world.undo(name, number(to)?)),
        ["scale", name, n] => drop(world.scale(name, count(n)?)),
        ["load", name, settings @ ..] => {
            let mut clients = Clients::default();
            for setting in settings {
                let (key, value) = setting
                    .split_once('=')
                    .ok_or_else(|| format!("no setting `{setting}`"))?;
                match key {
                    "in_flight" => clients.in_flight = number(value)?,
                    "queued" => clients.queued = number(value)?,
                    "rps" => clients.rps = number(value)?,
                    "cpu" => clients.cpu = number(value)?,
                    _ => return Err(format!("no setting `{key}`")),
                }
            }
            world.load(name, clients);
        }
        ["pause", name] => drop(world.pause(name)),
        ["resume", name] => drop(world.resume(name)),
        ["promote", name] => drop(world.promote(name)),
        ["abort", name] => drop(world.abort(name)),
        ["restart", name] => drop(world.restart(name)),
        ["stop", name] => drop(world.stop(name)),
        ["start", name] => drop(world.start(name)),
        ["delete", name] => drop(world.delete(name)),
        ["failing", replica] => drop(world.failing(id(replica)?)),
        ["stop", name, grace] => {
            let grace = grace
                .strip_prefix("grace=")
                .ok_or_else(|| format!("no setting `{grace}`"))?;
            let ms = u64::try_from(duration(grace)?.as_millis()).map_err(|e| e.to_string())?;
            world.record(name, |r| (r.stopped, r.grace_ms) = (true, Some(ms)));
        }
        ["kill", replica, how] => drop(world.kill(id(replica)?, death(how)?)),
        ["busy", replica, n] => drop(world.busy(id(replica)?, number(n)?)),
        ["done", replica] => drop(world.busy(id(replica)?, 0)),
        ["memory", "enough"] => world.memory = None,
        ["memory", n] => world.memory = Some(count(n)?),
        ["reboot"] => drop(world.reboot()),
        ["advance", time] => drop(world.advance(duration(time)?)),
        ["leap", time] => drop(world.leap(duration(time)?)),
        ["clock", time] => clock(world, time)?,
        ["pause", name, schedule] => drop(world.pause_schedule(name, schedule, true)),
        ["resume", name, schedule] => drop(world.pause_schedule(name, schedule, false)),
        ["takes", name, time] => drop(world.takes(name, duration(time)?)),
        ["history", name, schedule] => return Ok(Some(history(world, name, schedule))),
        ["status", name] => return Ok(Some(format!("          {}", world.state(name)))),
        [other, ..] => return Err(format!("no command `{other}`")),
        [] => {}
    }
    Ok(None)
}

/// Whether `key` says how a guest behaves.
fn behave(guest: &mut Guest, key: &str, value: &str) -> Result<bool, String> {
    match (key, value) {
        ("start", "traps") => {
            guest.start = Err(Death::StartTrapped {
                reason: "unreachable".into(),
            })
        }
        ("start", "cannot-prepare") => {
            guest.start = Err(Death::CannotPrepare {
                reason: "unknown import `foo:bar/baz`".into(),
            });
        }
        ("start", time) => guest.starts_in = duration(time)?,
        ("probe", value) => guest.answers = value == "ok",
        ("ready", value) => guest.ready = value == "ok",
        ("dies", time) => guest.dies = Some((duration(time)?, Death::Exited { code: 1 })),
        ("calls", "trap") => guest.traps = true,
        ("calls", "fail") => guest.fails = true,
        ("alive", value) => guest.alive = value == "ok",
        ("errors", percent) => guest.figures.errors = count(percent)? * 10,
        ("p99", time) => guest.figures.p99 = duration(time)?,
        ("cpu", time) => guest.figures.cpu = duration(time)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn set(spec: &mut ServiceSpec, key: &str, value: &str) -> Result<(), String> {
    match key {
        "schedule" => spec.schedules.push(schedule(value)?),
        "schedules" => spec.schedules.clear(),
        "replicas" => spec.replicas = replica_count(count(value)?),
        "surge" => spec.rollout.max_surge = Amount::Count(count(value)?),
        "unavailable" => spec.rollout.max_unavailable = Amount::Count(count(value)?),
        "min_healthy" => spec.rollout.min_healthy = duration(value)?,
        "deadline" => spec.rollout.progress_deadline = duration(value)?,
        "rollback" => spec.rollout.auto_rollback = value == "on",
        "strategy" => spec.rollout.strategy = Strategy::of(value).ok_or_else(|| format!("no strategy `{value}`"))?,
        "steps" => {
            let step = |text: &str| {
                let (weight, hold) = text.split_once('x').ok_or_else(|| format!("no step: `{text}`"))?;
                let weight = count(weight)? * 10;
                Ok::<_, String>(Step {
                    weight,
                    hold: duration(hold)?,
                })
            };
            spec.rollout.steps = value.split(',').map(step).collect::<Result<_, _>>()?;
        }
        "gates" => spec.rollout.gates = (value == "on").then_some(GATES),
        "drain" => spec.traffic.drain = duration(value)?,
        "depends_on" => spec.depends_on = value.split(',').map(service_name).collect(),
        "jitter" => spec.restart.jitter = value == "on",
        "give_up" => spec.restart.give_up_restarts = count(value)?,
        "startup_failures" => spec.startup.failures = count(value)?,
        "restart" => {
            spec.restart.policy = match value {
                "always" => RestartPolicy::Always,
                "on-failure" => RestartPolicy::OnFailure,
                "never" => RestartPolicy::Never,
                _ => return Err(format!("no restart policy `{value}`")),
            };
        }
        "autoscale" => {
            let (min, max) = value.split_once("..").ok_or_else(|| format!("no bounds: `{value}`"))?;
            let autoscale = spec.autoscale.get_or_insert_with(Autoscale::default);
            (autoscale.min, autoscale.max) = (count(min)?, count(max)?);
        }
        "metric" | "target" | "idle" | "panic" | "up" | "down" => {
            scaling(spec.autoscale.get_or_insert_with(Autoscale::default), key, value)?
        }
        "readiness" => {
            let (interval, failures) = value
                .split_once('x')
                .ok_or_else(|| format!("no readiness: `{value}`"))?;
            let (interval, failures) = (duration(interval)?, count(failures)?);
            spec.readiness = Some(ReadinessProbe {
                path: "/ready".into(),
                interval,
                timeout: interval,
                failures,
            });
        }
        _ => return set_healing(spec, key, value),
    }
    Ok(())
}

fn set_healing(spec: &mut ServiceSpec, key: &str, value: &str) -> Result<(), String> {
    match key {
        "eject" => spec.traffic.eject = duration(value)?,
        "max_ejected" => spec.traffic.max_ejected = Amount::Percent(count(value)?),
        "liveness" => {
            let (interval, failures) = value.split_once('x').ok_or_else(|| format!("no liveness: `{value}`"))?;
            spec.liveness = Some(LivenessProbe {
                path: "/healthz".into(),
                interval: duration(interval)?,
                timeout: Duration::from_secs(1),
                failures: count(failures)?,
            });
        }
        _ => return Err(format!("no setting `{key}`")),
    }
    Ok(())
}

fn scaling(autoscale: &mut Autoscale, key: &str, value: &str) -> Result<(), String> {
    let amount = |text: &str| match text.strip_suffix('%') {
        Some(percent) => count(percent).map(Amount::Percent),
        None => count(text).map(Amount::Count),
    };
    match key {
        "metric" => {
            autoscale.metric = match value {
                "rps" => ScaleMetric::Rps,
                "cpu" => ScaleMetric::Cpu,
                "queue" => ScaleMetric::Queue,
                "concurrency" => ScaleMetric::Concurrency,
                _ => return Err(format!("no metric `{value}`")),
            };
        }
        "target" => autoscale.target = amount(value)?,
        "idle" => autoscale.idle = duration(value)?,
        "panic" => autoscale.panic_window = duration(value)?,
        _ => {
            let (step, window) = value.split_once('/').ok_or_else(|| format!("no step: `{value}`"))?;
            let (step, window) = (amount(step)?, duration(window)?);
            let of = if key == "up" {
                &mut autoscale.up
            } else {
                &mut autoscale.down
            };
            (of.step, of.window) = (step, window);
        }
    }
    Ok(())
}

/// `nightly,cron:0_2_*_*_*,zone:Asia/Seoul,replicas:5,for:2h`; spaces are written as `_`.
fn schedule(text: &str) -> Result<Schedule, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let request = What::Request {
        method: "POST".into(),
        path: "/".into(),
    };
    let mut schedule = clock_schedule(name, When::Every(Duration::from_secs(60)), request);
    for part in parts {
        let (key, value) = part.split_once(':').ok_or_else(|| format!("no part `{part}`"))?;
        match (key, &mut schedule.what) {
            ("at", _) => {
                let at = serde_json::from_value(value.into()).map_err(|e| format!("{value}: {e}"))?;
                schedule.when = When::At(at);
            }
            ("cron", _) => schedule.when = When::Cron(value.replace('_', " ")),
            ("every", _) => schedule.when = When::Every(duration(value)?),
            ("zone", _) => schedule.timezone = value.into(),
            ("replicas", _) => {
                let (replicas, hold) = (replica_count(count(value)?), None);
                schedule.what = What::Replicas { replicas, hold };
            }
            ("for", What::Replicas { hold, .. }) => *hold = Some(duration(value)?),
            ("overlap", _) => {
                schedule.overlap = match value {
                    "allow" => Overlap::Allow,
                    "replace" => Overlap::Replace,
                    _ => Overlap::Forbid,
                };
            }
            ("catch_up", _) if value == "once" => schedule.catch_up = CatchUp::Once,
            ("jitter", _) => schedule.jitter = duration(value)?,
            _ => return Err(format!("no part `{part}`")),
        }
    }
    Ok(schedule)
}

/// `2026-12-01T00:00:00Z`: it shows this; `+24h`, `-1h`: it is put forward, back.
fn clock(world: &mut World, time: &str) -> Result<(), String> {
    if let Some(by) = time.strip_prefix(['+', '-']) {
        let by = i64::try_from(duration(by)?.as_millis()).map_err(|e| e.to_string())?;
        world.put_clock(if time.starts_with('-') { -by } else { by }).settle();
        return Ok(());
    }
    let at = Timestamp::parse(time).ok_or_else(|| format!("no time: `{time}`"))?;
    world.set_clock(at);
    Ok(())
}

fn history(world: &World, name: &str, schedule: &str) -> String {
    let mut out = String::new();
    for entry in world.history(name, schedule) {
        let times = if entry.times > 1 {
            format!(" {} times", entry.times)
        } else {
            String::new()
        };
        let (due, cause) = (entry.due.rfc3339(), entry.cause.as_str());
        writeln!(
            out,
            "          {due} {cause}: {}{times}: {}",
            entry.outcome.as_str(),
            entry.detail
        )
        .unwrap();
    }
    out.trim_end().to_owned()
}
/// All of them, as a transcript turns them on.
const GATES: Gates = Gates {
    p99: Some(ms(250)),
    cpu: Some(200),
    ..Gates::DEFAULT
};

fn death(how: &str) -> Result<Death, String> {
    match how {
        "traps" => Ok(Death::Traps {
            reason: "5 calls in a row trapped".into(),
        }),
        "no-memory" => Ok(Death::NoMemory),
        "exits" => Ok(Death::Exited { code: 1 }),
        "ends" => Ok(Death::Exited { code: 0 }),
        _ => Err(format!("no death `{how}`")),
    }
}

fn id(text: &str) -> Result<u64, String> {
    number(text.strip_prefix('r').ok_or_else(|| format!("no replica: `{text}`"))?)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("no number: `{text}`"))
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("no number: `{text}`"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("no duration: `{text}`");
    let (n, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?);
    let n: u64 = n.parse().map_err(|_| bad())?;
    match unit {
        "ms" => Ok(ms(n)),
        "s" => Ok(Duration::from_secs(n)),
        "m" => Ok(Duration::from_secs(n * 60)),
        "h" => Ok(Duration::from_secs(n * 3_600)),
        _ => Err(bad()),
    }
}
