//! `[[schedule]]`: its keys, the rules of its texts, what the keys mean together. A time zone and a cron expression are judged here,
//! and whether the times they name ever come; what the time is now is not known here.

use std::collections::BTreeSet;

use super::checks::{Check, VALUE, Wrong, wrong};
use super::codes::Code;
use super::diagnostic::{Problem, Source, quoted};
use super::fields::Fields;
use super::hosts::PROBE;
use super::keys::Kind::{Choice, Count, Duration as Time, List, Table as Sub, Text};
use super::keys::{Key, Table};
use super::outside::nearest;
use super::places::place_of;
use super::read::Reader;
use super::units::show_duration;
use crate::model::calendar::{self, Place, Times};
use crate::model::schedule::{CatchUp, Overlap, Schedule, What, When};
use crate::model::service::World;
use crate::model::{ReplicaCount, ServiceSpec, Timestamp};

const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 3_600 * SECOND;
/// Schedules of one service.
const MOST: usize = 100;

pub(super) static SCHEDULE: Table = Table {
    keys: &[
        Key::new("name", Text(&NAME), "unique in the file: a-z, 0-9 and `-`").required(),
        Key::new("at", Text(&AT), "once: a time of the zone's clock"),
        Key::new("cron", Text(&CRON), "5 fields, or 6 with seconds first"),
        Key::new(
            "every",
            Time {
                min: SECOND,
                max: 366 * DAY,
            },
            "at the multiples of this since 1970-01-01T00:00:00Z",
        ),
        Key::new("timezone", Text(&TIMEZONE), "IANA name; zone data is inside the binary").default("\"UTC\""),
        Key::new(
            "replicas",
            Count {
                min: 0,
                max: ReplicaCount::MAX as u64,
            },
            "so many run from then on",
        ),
        Key::new(
            "for",
            Time {
                min: SECOND,
                max: 366 * DAY,
            },
            "with `replicas`: then back; without it until the next schedule or `scale`",
        ),
        Key::new("request", Sub(&REQUEST), "a request into the service"),
        Key::new("args", List(&VALUE), "world = \"command\": a run with these arguments"),
        Key::new(
            "timeout",
            Time { min: 1, max: DAY },
            "of one try of a request, or of a run",
        )
        .default("\"5m\""),
        Key::new(
            "overlap",
            Choice {
                now: &["forbid", "allow", "replace"],
                later: &[],
            },
            "when the one before is not done yet",
        )
        .default("\"forbid\""),
        Key::new(
            "catch_up",
            Choice {
                now: &["skip", "once"],
                later: &[],
            },
            "after times that nobody saw come: power loss, a clock step",
        )
        .default("\"skip\""),
        Key::new(
            "jitter",
            Time { min: 0, max: DAY },
            "each time begins up to so much later",
        )
        .default("\"0s\""),
        Key::new(
            "retries",
            Count { min: 0, max: 100 },
            "further tries of a request that failed",
        )
        .default("0"),
        Key::new("history", Count { min: 1, max: 100 }, "entries that are kept").default("20"),
    ],
};

static REQUEST: Table = Table {
    keys: &[
        Key::new(
            "method",
            Choice {
                now: &["POST", "GET", "PUT", "DELETE", "PATCH", "HEAD"],
                later: &[],
            },
            "of the request; it has no body",
        )
        .default("\"POST\""),
        Key::new("path", Text(&PROBE), "with its query, if any").required(),
    ],
};

static NAME: Check = Check {
    expected: "a name of a-z, 0-9 and `-`",
    example: "\"nightly-report\"",
    list_example: "[]",
    pattern: Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    run: |text| {
        text.parse::<crate::model::ServiceName>()
            .map(|n| n.to_string())
            .map_err(|_| {
                wrong(
                    Code::BadServiceName,
                    "is not the name of a schedule",
                    "not a name",
                    "a name is 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end",
                )
            })
    },
};

static AT: Check = Check {
    expected: "a date and a time",
    example: "\"2026-12-01T00:00:00\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        let bad = |label, help: &'static str| wrong(Code::BadTime, "is not a time of a clock", label, help);
        let help = "write it as \"2026-12-01T00:00:00\", and the zone as timezone = \"Asia/Seoul\"";
        if text.ends_with(['Z', 'z']) || text.parse::<jiff::Timestamp>().is_ok() {
            return Err(bad("an offset belongs to no zone's clock", help));
        }
        let civil: jiff::civil::DateTime = text.parse().map_err(|_| bad("not a date and a time", help))?;
        if text.len() < "2026-12-01T00:00".len() {
            return Err(bad("a time of day is missing", help));
        }
        // Beyond these a zone's clock could not be counted.
        if !(1970..=9000).contains(&civil.year()) {
            return Err(bad("outside the years 1970 to 9000", help));
        }
        Ok(civil.to_string())
    },
};

static CRON: Check = Check {
    expected: "a cron expression",
    example: "\"0 2 * * *\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        let help = "minute hour day month weekday, as in \"0 2 * * MON-FRI\"; a sixth field in front is seconds";
        if text.len() > 200 || text.chars().any(char::is_control) {
            return Err(wrong(
                Code::BadCron,
                "is not a cron expression",
                "too long, or more than one line",
                help,
            ));
        }
        let cron = calendar::cron(text).map_err(|why| Wrong {
            code: Code::BadCron,
            message: format!("is not a cron expression: {why}"),
            label: "not a cron expression",
            help: Some(help.to_owned()),
        })?;
        if !calendar::fires(&cron) {
            return Err(wrong(
                Code::CronNeverFires,
                "never fires",
                "no day has such a time",
                "is it the 31st of a month with fewer days? `L` is the last day of any month: \"0 0 L 2 *\"",
            ));
        }
        Ok(text.trim().to_owned())
    },
};

static TIMEZONE: Check = Check {
    expected: "the name of a time zone",
    example: "\"Asia/Seoul\"",
    list_example: "[]",
    pattern: None,
    run: |text| {
        if let Some(zone) = calendar::zone(text) {
            return Ok(zone.iana_name().unwrap_or("UTC").to_owned());
        }
        let names = calendar::zone_names();
        let lower: Vec<String> = names.iter().map(|n| n.to_lowercase()).collect();
        let near = nearest(text, lower.iter().map(String::as_str))
            .and_then(|near| lower.iter().position(|l| l == near))
            .or_else(|| {
                let city = text.rsplit('/').next().unwrap_or(text).to_lowercase();
                lower.iter().position(|l| l.rsplit('/').next() == Some(city.as_str()))
            });
        Err(Wrong {
            code: Code::UnknownZone,
            message: "is not a time zone".into(),
            label: "no such zone",
            help: Some(near.map_or_else(
                || "write an IANA name such as \"Asia/Seoul\" or \"UTC\"; a place, not an offset".into(),
                |at| format!("did you mean \"{}\"?", names[at]),
            )),
        })
    },
};

/// What the keys of the schedules mean together, and what is noteworthy about their times.
/// `world`: of the module, as far as it is known.
pub(super) fn check(fields: &Fields, world: World, reader: &mut Reader) {
    let source = reader.source.clone();
    let tables = fields.tables("schedule");
    if let Some(surplus) = tables.get(MOST) {
        reader.push(
            Problem::new(Code::OutOfRange, format!("more than {MOST} schedules"))
                .at(&source, surplus.span.clone())
                .label("one too many")
                .help("one cron expression can name many times: \"0 8,12,16 * * *\""),
        );
    }
    let mut seen = BTreeSet::new();
    for table in tables {
        let name = table.text("name");
        if !name.is_empty() && !seen.insert(name) {
            reader.push(
                Problem::new(
                    Code::DuplicateSchedule,
                    format!("schedule {} is there twice", quoted(name)),
                )
                .at(&source, table.span("name"))
                .label("the same name again")
                .help("give each [[schedule]] its own `name`"),
            );
        }
        one_of(table, reader, &["at", "cron", "every"], "when it is due");
        one_of(table, reader, &["replicas", "request", "args"], "what is done then");
        strays(table, reader);
        worlds(world, table, reader);
        clock(table, reader);
    }
}

/// Exactly one of `keys` is written. A key whose value was refused has its own problem, and counts as written.
fn one_of(table: &Fields, reader: &mut Reader, keys: &[&'static str], what: &str) {
    let source = reader.source.clone();
    let given: Vec<&&str> = keys.iter().filter(|k| table.written(k)).collect();
    let all = keys.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    match given.as_slice() {
        [_] => {}
        [] => reader.push(
            Problem::new(
                Code::ScheduleIncomplete,
                format!("schedule {} does not say {what}", quoted(table.text("name"))),
            )
            .at(&source, table.span.clone())
            .label(format!("none of {all}"))
            .help(format!("write one of {all}")),
        ),
        [first, second, ..] => reader.push(
            Problem::new(
                Code::ScheduleIncomplete,
                format!(
                    "schedule {} has both `{first}` and `{second}`",
                    quoted(table.text("name"))
                ),
            )
            .at(&source, table.span(second))
            .label("one too many")
            .help(format!("keep one of {all}; the other is a [[schedule]] of its own")),
        ),
    }
}

/// Keys that have no effect beside the others are not accepted in silence.
fn strays(table: &Fields, reader: &mut Reader) {
    let source = reader.source.clone();
    let replicas = table.given("replicas");
    let strays = [
        ("for", !replicas, "`replicas`"),
        ("overlap", replicas, "`request` or `args`"),
        ("timeout", replicas, "`request` or `args`"),
        ("retries", !table.given("request"), "`request`"),
    ];
    let decided = ["replicas", "request", "args"].iter().any(|k| table.given(k));
    for (key, stray, with) in strays {
        if decided && stray && table.given(key) {
            reader.push(
                Problem::new(
                    Code::Contradiction,
                    format!("`{key}` in [[schedule]] goes with {with} only"),
                )
                .at(&source, table.span(key))
                .label("has no effect here")
                .help("remove it"),
            );
        }
    }
    if table.given("every") && table.duration("jitter") >= table.duration("every") {
        reader.push(
            Problem::new(
                Code::Contradiction,
                "`jitter` in [[schedule]] is not shorter than `every`",
            )
            .at(
                &source,
                table.span(if table.given("jitter") { "jitter" } else { "every" }),
            )
            .label("one time would run into the next")
            .help(format!(
                "make it shorter than {}",
                show_duration(table.duration("every"))
            )),
        );
    }
}

fn worlds(world: World, table: &Fields, reader: &mut Reader) {
    let wrong = [
        ("replicas", World::Command),
        ("request", World::Command),
        ("args", World::Http),
    ];
    for (key, other) in wrong {
        if table.given(key) && world == other {
            let name = if world == World::Command { "command" } else { "http" };
            reader.push(
                Problem::new(
                    Code::ScheduleWorld,
                    format!("`{key}` in [[schedule]] is not for a service of world \"{name}\""),
                )
                .at(&reader.source.clone(), table.span(key))
                .label(format!("the service is of world \"{name}\""))
                .help(if other == World::Command {
                    "a command is run: write `args = []`"
                } else {
                    "a service of world \"http\" is sent a `request`, or gets `replicas`"
                }),
            );
        }
    }
}

/// A time that a zone's clock jumps over, or shows twice, is worth a word.
fn clock(table: &Fields, reader: &mut Reader) {
    let (Some(at), Some(zone)) = (table.opt_text("at"), calendar::zone(table.text("timezone"))) else {
        return;
    };
    let Some(placed) = at.parse().ok().and_then(|civil| calendar::place(&zone, civil)) else {
        return;
    };
    let (message, label, when) = match placed.1 {
        Place::Once => return,
        Place::Gap(end) => ("does not exist", "the clock is put forward over it", end),
        Place::Fold(first) => ("comes twice", "the clock is put back over it", first),
    };
    reader.push(
        Problem::warning(
            Code::ScheduleClock,
            format!("`at` in [[schedule]]: {at} {message} in {}", table.text("timezone")),
        )
        .at(&reader.source.clone(), table.span("at"))
        .label(label)
        .help(format!("it runs once, at {}", calendar::show(&zone, when))),
    );
}

/// The schedules; `None` only when a problem was reported.
pub(super) fn schedules(fields: &Fields) -> Option<Vec<Schedule>> {
    fields.tables("schedule").iter().map(schedule).collect()
}

fn schedule(f: &Fields) -> Option<Schedule> {
    let when = match (f.opt_text("at"), f.opt_text("cron")) {
        (Some(at), _) => When::At(at.parse().ok()?),
        (_, Some(cron)) => When::Cron(cron.to_owned()),
        _ if f.given("every") => When::Every(f.duration("every")),
        _ => return None,
    };
    let what = if f.given("replicas") {
        What::Replicas {
            replicas: ReplicaCount::new(f.count("replicas"))?,
            hold: f.given("for").then(|| f.duration("for")),
        }
    } else if f.given("request") {
        let request = f.sub("request");
        What::Request {
            method: request.text("method").to_owned(),
            path: request.text("path").to_owned(),
        }
    } else if f.given("args") {
        What::Run {
            args: f.list("args").iter().map(|i| i.text.clone()).collect(),
        }
    } else {
        return None;
    };
    Some(Schedule {
        name: f.text("name").to_owned(),
        when,
        timezone: f.text("timezone").to_owned(),
        what,
        timeout: f.duration("timeout"),
        overlap: match f.text("overlap") {
            "allow" => Overlap::Allow,
            "replace" => Overlap::Replace,
            _ => Overlap::Forbid,
        },
        catch_up: match f.text("catch_up") {
            "once" => CatchUp::Once,
            _ => CatchUp::Skip,
        },
        jitter: f.duration("jitter"),
        retries: f.count("retries"),
        history: f.count("history"),
    })
}

/// As TOML, every default filled in; keys that have no effect are left out.
pub(super) fn printed(schedule: &Schedule) -> toml_edit::InlineTable {
    let mut table = toml_edit::InlineTable::new();
    let mut put = |key: &str, value: toml_edit::Value| {
        table.insert(key, value);
    };
    put("name", schedule.name.as_str().into());
    match &schedule.when {
        When::At(civil) => put("at", civil.to_string().into()),
        When::Cron(cron) => put("cron", cron.as_str().into()),
        When::Every(period) => put("every", show_duration(*period).into()),
    }
    put("timezone", schedule.timezone.as_str().into());
    match &schedule.what {
        What::Replicas { replicas, hold } => {
            put("replicas", i64::from(replicas.get()).into());
            if let Some(hold) = hold {
                put("for", show_duration(*hold).into());
            }
        }
        What::Request { method, path } => {
            let mut request = toml_edit::InlineTable::new();
            request.insert("method", method.as_str().into());
            request.insert("path", path.as_str().into());
            put("request", request.into());
        }
        What::Run { args } => put("args", args.iter().collect::<toml_edit::Array>().into()),
    }
    if !matches!(schedule.what, What::Replicas { .. }) {
        put("timeout", show_duration(schedule.timeout).into());
        put("overlap", schedule.overlap.as_str().into());
    }
    put("catch_up", schedule.catch_up.as_str().into());
    put("jitter", show_duration(schedule.jitter).into());
    if matches!(schedule.what, What::Request { .. }) {
        put("retries", i64::from(schedule.retries).into());
    }
    put("history", i64::from(schedule.history).into());
    table
}

/// Schedules whose only time is past at `now`: warnings.
pub fn past(spec: &ServiceSpec, source: Option<&Source>, now: Timestamp) -> Vec<Problem> {
    let over = |s: &&Schedule| matches!(s.when, When::At(_)) && Times::of(s).is_some_and(|t| t.next(now).is_none());
    let problem = |s: &Schedule| {
        let problem = Problem::warning(
            Code::SchedulePast,
            format!("the time of schedule {} is past: it never fires", quoted(&s.name)),
        )
        .label("past")
        .help("write a time to come; `narae schedule run` does it now");
        match source {
            Some(source) => problem.at(source, place_of(source, &["schedule"])),
            None => problem,
        }
    };
    spec.schedules.iter().filter(over).map(problem).collect()
}

#[cfg(test)]
#[path = "tests/schedule.rs"]
mod tests;
