//! `[rollout]` and `traffic.pin`: shares of requests as people write them, what steps and gates mean together, and back as TOML.

use std::time::Duration;

use toml_edit::{InlineTable, Value};

use super::checks::{Check, Wrong, wrong};
use super::codes::Code;
use super::diagnostic::Problem;
use super::fields::{self, Fields};
use super::read::Reader;
use super::units::show_duration;
use crate::model::ServiceSpec;
use crate::model::service::{Compare, Gates, Pin, Rollout, Step, Strategy, Wanting};

/// More steps than anyone waits for.
const MAX_STEPS: usize = 50;

pub static WEIGHT: Check = Check {
    expected: "a share of the requests such as \"5%\"",
    example: "\"5%\"",
    list_example: "[\"5%\"]",
    pattern: Some("^[0-9]{1,3}(\\.[0-9])?%$"),
    run: |text| share(text, 1, Step::WHOLE, "more than 0% and at most 100%"),
};

pub static SHARE_OF_REQUESTS: Check = Check {
    expected: "a share of the requests such as \"1%\"",
    example: "\"1%\"",
    list_example: "[\"1%\"]",
    pattern: Some("^[0-9]{1,3}(\\.[0-9])?%$"),
    run: |text| share(text, 0, Step::WHOLE, "0% to 100%"),
};

pub static MORE: Check = Check {
    expected: "how much more such as \"+20%\"",
    example: "\"+20%\"",
    list_example: "[\"+20%\"]",
    pattern: Some("^\\+[0-9]{1,5}(\\.[0-9])?%$"),
    run: |text| match text.strip_prefix('+') {
        Some(rest) => share(rest, 1, 100_000, "+0.1% to +10000%").map(|share| format!("+{share}")),
        None => Err(wrong(
            Code::BadShare,
            "must be how much more",
            "expected `+`, a number and `%`",
            "write `cpu = \"+20%\"`: the new revision may take a fifth more than the stable one",
        )),
    },
};

pub static TOKEN: Check = Check {
    expected: "a name of a header or cookie",
    example: "\"x-narae-revision\"",
    list_example: "[\"x-narae-revision\"]",
    pattern: Some("^[A-Za-z0-9_-]{1,64}$"),
    run: |text| {
        let ok = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if ok {
            Ok(text.to_owned())
        } else {
            Err(wrong(
                Code::BadPin,
                "is not a name of a header or cookie",
                "not such a name",
                "a name is 1 to 64 of A-Z, a-z, 0-9, `-` and `_`",
            ))
        }
    },
};

/// `5%`, `0.5%` as thousandths.
fn permille(text: &str) -> Option<u32> {
    let number = text.strip_suffix('%')?;
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |t: &str, most: usize| (1..=most).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole, 6) || !digits(tenth, 1) {
        return None;
    }
    Some(whole.parse::<u32>().ok()? * 10 + tenth.parse::<u32>().ok()?)
}

/// Thousandths as they are written.
fn show_permille(n: u32) -> String {
    if n.is_multiple_of(10) {
        format!("{}%", n / 10)
    } else {
        format!("{}.{}%", n / 10, n % 10)
    }
}

fn share(text: &str, least: u32, most: u32, bounds: &str) -> Result<String, Wrong> {
    match permille(text) {
        Some(n) if (least..=most).contains(&n) => Ok(show_permille(n)),
        Some(_) => Err(Wrong {
            code: Code::OutOfRange,
            message: "is out of range".into(),
            label: "out of range",
            help: Some(format!("allowed is {bounds}")),
        }),
        None => Err(wrong(
            Code::BadShare,
            "is not a share",
            "not a share",
            "write a number with `%`, at most one decimal: \"5%\", \"0.5%\"",
        )),
    }
}

fn share_of(f: &Fields, key: &str) -> Option<u32> {
    permille(f.opt_text(key)?.trim_start_matches('+'))
}

pub(super) fn rollout(f: &Fields) -> Rollout {
    let strategy = Strategy::of(f.text("strategy")).unwrap_or_default();
    Rollout {
        strategy,
        steps: f.tables("steps").iter().map(step).collect(),
        gates: f.given("gates").then(|| gates(f.sub("gates"))),
        max_surge: f.amount("max_surge"),
        max_unavailable: f.amount("max_unavailable"),
        min_healthy: f.duration("min_healthy_time"),
        progress_deadline: f.duration("progress_deadline"),
        auto_rollback: f.bool("auto_rollback"),
        capabilities: match f.text("capabilities") {
            "allow" => Wanting::Allow,
            _ => Wanting::Ask,
        },
        keep_revisions: f.count("keep_revisions"),
    }
}

fn step(f: &Fields) -> Step {
    Step {
        weight: share_of(f, "weight").unwrap_or(Step::WHOLE),
        hold: f.duration("hold"),
    }
}

fn gates(f: &Fields) -> Gates {
    Gates {
        error_rate: share_of(f, "error_rate").unwrap_or(Gates::DEFAULT.error_rate),
        traps: share_of(f, "traps").unwrap_or(Gates::DEFAULT.traps),
        p99: duration_of(f, "p99"),
        cpu: share_of(f, "cpu"),
        min_requests: f.count("min_requests"),
        compare: match f.text("compare") {
            "none" => Compare::None,
            _ => Compare::Stable,
        },
    }
}

fn duration_of(f: &Fields, key: &str) -> Option<Duration> {
    match f.get(key) {
        Some(fields::Value::Duration(d)) => Some(*d),
        _ => None,
    }
}

pub(super) fn pin(traffic: &Fields) -> Option<Pin> {
    let f = traffic.sub("pin");
    let pin = Pin {
        header: f.opt_text("header").map(str::to_ascii_lowercase),
        cookie: f.opt_text("cookie").map(str::to_owned),
    };
    (pin.header.is_some() || pin.cookie.is_some()).then_some(pin)
}

/// What is fine alone and wrong together.
pub(super) fn contradictions(fields: &Fields, reader: &mut Reader) {
    let f = fields.sub("rollout");
    // A step that was not understood was told already.
    let steps = if reader.failed() { Vec::new() } else { steps(f) };
    for misstep in steps {
        let problem = misstep.0.at(&reader.source.clone(), misstep.1);
        reader.push(problem);
    }
    let source = reader.source.clone();
    let gates = f.sub("gates");
    if gates.given("cpu") && gates.text("compare") == "none" {
        reader.push(
            Problem::new(
                Code::BadGate,
                "`cpu` in [rollout.gates] has nothing to be compared with",
            )
            .at(&source, gates.span("cpu"))
            .label("a share beyond the stable revision's")
            .help("write `compare = \"stable\"`, or remove `cpu`"),
        );
    }
    let traffic = fields.sub("traffic");
    if traffic.given("pin") && pin(traffic).is_none() {
        reader.push(
            Problem::new(Code::BadPin, "`pin` in [traffic] names neither a header nor a cookie")
                .at(&source, traffic.span("pin"))
                .label("no request could ask for a revision")
                .help("write `pin = { header = \"x-narae-revision\" }`"),
        );
    }
}

/// A mistake of the steps and its place.
struct Misstep(Problem, std::ops::Range<usize>);

fn steps(f: &Fields) -> Vec<Misstep> {
    let tables = f.tables("steps");
    let mut out = Vec::new();
    let mut wrong = |span, message: &str, label: &str, help: &str| {
        out.push(Misstep(
            Problem::new(Code::BadSteps, message).label(label).help(help),
            span,
        ));
    };
    match f.text("strategy") {
        _ if !f.given("steps") => {}
        "canary" => {
            let mut last = 0;
            for table in tables {
                match share_of(table, "weight") {
                    None => wrong(
                        table.span.clone(),
                        "a step of a canary has no `weight`",
                        "no weight",
                        "write { weight = \"5%\", hold = \"30s\" }",
                    ),
                    Some(weight) if weight <= last => wrong(
                        table.span("weight"),
                        "the weights of `steps` in [rollout] do not rise",
                        "not above the step before",
                        "order the steps from the smallest weight to the largest",
                    ),
                    Some(weight) => last = weight,
                }
            }
            if tables.is_empty() {
                wrong(
                    f.span("steps"),
                    "`steps` in [rollout] is empty",
                    "no step",
                    "leave the key out for 5%, 25% and 50%, 30s each",
                );
            }
            if tables.len() > MAX_STEPS {
                wrong(
                    f.span("steps"),
                    "`steps` in [rollout] has more than 50 steps",
                    "too many",
                    "fewer steps hold longer",
                );
            }
        }
        "blue-green" => {
            if tables.len() != 1 {
                wrong(
                    f.span("steps"),
                    "a blue-green rollout has one step: the switch",
                    "not one step",
                    "write `steps = [{ hold = \"60s\" }]`: so long the old revision stays warm",
                );
            }
            for table in tables.iter().take(1) {
                if share_of(table, "weight").is_some_and(|w| w != Step::WHOLE) {
                    wrong(
                        table.span("weight"),
                        "a blue-green rollout switches all requests at once",
                        "not all of them",
                        "remove `weight`, or write `strategy = \"canary\"`",
                    );
                }
            }
        }
        // An unknown strategy was reported where it stands.
        "rolling" | "recreate" => wrong(
            f.span("steps"),
            "`steps` in [rollout] belong to a canary",
            "this strategy takes no steps",
            "write `strategy = \"canary\"`, or remove the steps",
        ),
        _ => {}
    }
    if f.text("strategy") == "recreate" {
        for key in ["max_surge", "max_unavailable"].into_iter().filter(|k| f.given(k)) {
            wrong(
                f.span(key),
                &format!("`{key}` in [rollout] means nothing to `recreate`"),
                "nothing is beside the old",
                "remove it",
            );
        }
    }
    out
}

/// `[rollout]` from its strategy to its gates, in the order of the file.
pub(super) fn print(rollout: &Rollout, say: &mut dyn FnMut(&str, Value)) {
    say("rollout.strategy", rollout.strategy.as_str().into());
    let steps = rollout.steps();
    if !steps.is_empty() {
        let table = |step: &Step| {
            let mut table = InlineTable::new();
            table.insert("weight", show_permille(rollout.weight(*step)).into());
            table.insert("hold", show_duration(step.hold).into());
            table
        };
        let steps = steps.iter().map(table).collect::<toml_edit::Array>();
        say("rollout.steps", Value::Array(steps));
    }
    if let Some(gates) = &rollout.gates {
        say("rollout.gates.error_rate", show_permille(gates.error_rate).into());
        say("rollout.gates.traps", show_permille(gates.traps).into());
        if let Some(p99) = gates.p99 {
            say("rollout.gates.p99", show_duration(p99).into());
        }
        if let Some(cpu) = gates.cpu {
            say("rollout.gates.cpu", format!("+{}", show_permille(cpu)).into());
        }
        say("rollout.gates.min_requests", i64::from(gates.min_requests).into());
        let compare = match gates.compare {
            Compare::Stable => "stable",
            Compare::None => "none",
        };
        say("rollout.gates.compare", compare.into());
    }
}

pub(super) fn print_pin(spec: &ServiceSpec, say: &mut dyn FnMut(&str, Value)) {
    let Some(pin) = &spec.traffic.pin else { return };
    if let Some(header) = &pin.header {
        say("traffic.pin.header", header.as_str().into());
    }
    if let Some(cookie) = &pin.cookie {
        say("traffic.pin.cookie", cookie.as_str().into());
    }
}

#[cfg(test)]
#[path = "tests/rollout.rs"]
mod tests;
