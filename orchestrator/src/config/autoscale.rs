//! `[autoscale]`: its values, and what they mean together.

use super::codes::Code;
use super::diagnostic::Problem;
use super::fields::Fields;
use super::read::Reader;
use crate::model::service::{Amount, Autoscale, ScaleMetric, ScaleStep};

/// The table, checked.
pub(super) fn build(f: &Fields) -> Autoscale {
    let step = |f: &Fields| ScaleStep {
        step: f.amount("step"),
        window: f.duration("window"),
    };
    Autoscale {
        min: f.count("min"),
        max: f.count("max"),
        metric: metric(f),
        target: f.amount("target"),
        panic_window: f.duration("panic_window"),
        up: step(f.sub("up")),
        down: step(f.sub("down")),
        // It means nothing there, and two files that mean the same are the same.
        idle: if f.count("min") == 0 {
            f.duration("idle")
        } else {
            Autoscale::default().idle
        },
    }
}

fn metric(f: &Fields) -> ScaleMetric {
    match f.text("metric") {
        "rps" => ScaleMetric::Rps,
        "cpu" => ScaleMetric::Cpu,
        "queue" => ScaleMetric::Queue,
        _ => ScaleMetric::Concurrency,
    }
}

/// Bounds the wrong way round, targets of the wrong form, steps of nothing.
pub(super) fn check(fields: &Fields, reader: &mut Reader) {
    if !fields.given("autoscale") {
        return;
    }
    let (f, source) = (fields.sub("autoscale"), reader.source.clone());
    let (min, max) = (f.count("min"), f.count("max"));
    // One that was refused already is no bound.
    let known = f.opt_count("min").is_some() && f.opt_count("max").is_some();
    if known && min > max {
        let key = if f.given("max") { "max" } else { "min" };
        reader.push(
            Problem::new(
                Code::Contradiction,
                format!("`min` = {min} in [autoscale] is more than `max` = {max}"),
            )
            .at(&source, f.span(key))
            .label("the fewest are more than the most")
            .help("make `min` at most `max`"),
        );
    } else if known && fields.given("replicas") && !(min..=max).contains(&fields.count("replicas")) {
        let text = format!("`replicas` is the first count only, and [autoscale] keeps it within {min} and {max}");
        reader.push(
            Problem::warning(Code::NeverReached, text)
                .at(&source, fields.span("replicas"))
                .label("outside `min` and `max`")
                .help(format!("write a number from {min} to {max}, or remove it")),
        );
    }
    if let Some((message, label, help)) = wrong_target(f) {
        reader.push(
            Problem::new(Code::BadScaleTarget, message)
                .at(&source, f.span("target"))
                .label(label)
                .help(help),
        );
    }
    for name in ["up", "down"] {
        let step = f.sub(name);
        if matches!(step.amount("step"), Amount::Count(0) | Amount::Percent(0)) && step.given("step") {
            reader.push(
                Problem::new(Code::Contradiction, format!("`step` in [autoscale.{name}] is zero"))
                    .at(&source, step.span("step"))
                    .label("the count could never change")
                    .help(format!(
                        "write `step = 1`, or set `min` and `max` to what it may not {}",
                        if name == "up" { "grow over" } else { "fall below" }
                    )),
            );
        }
    }
    if f.given("idle") && min > 0 {
        reader.push(
            Problem::warning(
                Code::NeverReached,
                "`idle` in [autoscale] means nothing while `min` is not 0",
            )
            .at(&source, f.span("idle"))
            .label("never scaled to zero")
            .help("write `min = 0`, or remove it"),
        );
    }
}

type Wrong = (String, &'static str, &'static str);

fn wrong_target(f: &Fields) -> Option<Wrong> {
    let metric = metric(f);
    let name = metric.as_str();
    match (metric, f.amount("target")) {
        (_, Amount::Count(0) | Amount::Percent(0)) => Some((
            "`target` in [autoscale] is zero".into(),
            "no number of replicas would do",
            "write what one replica takes: target = \"70%\", or target = 200 for rps",
        )),
        (ScaleMetric::Rps | ScaleMetric::Queue, Amount::Percent(_)) if !f.given("target") => Some((
            format!("[autoscale] by {name} needs a `target`"),
            "no target",
            "write how many one replica takes: target = 200",
        )),
        (ScaleMetric::Rps | ScaleMetric::Queue, Amount::Percent(_)) => Some((
            format!("`target` of {name} in [autoscale] must be a plain number"),
            "a percentage of nothing",
            "write how many one replica takes: target = 200",
        )),
        (ScaleMetric::Concurrency | ScaleMetric::Cpu, Amount::Count(_)) => Some((
            format!("`target` of {name} in [autoscale] must be a percentage"),
            "a number without `%`",
            "write a share of what one replica has: target = \"70%\"",
        )),
        (ScaleMetric::Concurrency, Amount::Percent(101..)) => Some((
            "`target` of concurrency in [autoscale] is more than all of `limits.concurrency`".into(),
            "more than a replica can take",
            "write at most \"100%\"",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Severity, service};
    use crate::model::ServiceSpec;

    const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

    fn spec(text: &str) -> ServiceSpec {
        let checked = service(&format!("{HEAD}{text}"), "a.toml").unwrap_or_else(|p| panic!("{text}\n{p:?}"));
        assert!(checked.warnings.is_empty(), "{text}: {:?}", checked.warnings);
        checked.spec
    }

    fn found(text: &str) -> Vec<(Code, Severity, String)> {
        let problems = service(&format!("{HEAD}{text}"), "a.toml").map_or_else(|p| p, |c| c.warnings);
        problems.into_iter().map(|p| (p.code, p.severity, p.message)).collect()
    }

    #[test]
    fn a_table_without_keys_has_the_defaults_of_the_reference() {
        assert_eq!(spec("[autoscale]\n").autoscale, Some(Autoscale::default()));
        assert_eq!(spec("").autoscale, None);
    }

    #[test]
    fn each_metric_has_its_form_of_target() {
        for (metric, target, want) in [
            ("concurrency", "\"100%\"", Amount::Percent(100)),
            ("cpu", "\"150%\"", Amount::Percent(150)),
            ("rps", "200", Amount::Count(200)),
            ("queue", "5", Amount::Count(5)),
        ] {
            let spec = spec(&format!("[autoscale]\nmetric = \"{metric}\"\ntarget = {target}\n"));
            assert_eq!(spec.autoscale.unwrap().target, want);
        }
        for (metric, target) in [
            ("concurrency", "7"),
            ("concurrency", "\"101%\""),
            ("concurrency", "\"0%\""),
            ("cpu", "70"),
            ("rps", "\"70%\""),
            ("rps", "0"),
            ("queue", "\"5%\""),
        ] {
            let found = found(&format!("[autoscale]\nmetric = \"{metric}\"\ntarget = {target}\n"));
            assert_eq!(
                found.iter().map(|f| f.0).collect::<Vec<_>>(),
                [Code::BadScaleTarget],
                "{metric} {target}"
            );
        }
        assert_eq!(
            found("[autoscale]\nmetric = \"rps\"\n")[0].2,
            "[autoscale] by rps needs a `target`"
        );
    }

    #[test]
    fn all_contradictions_are_found_at_once() {
        let text = "[autoscale]\nmin = 9\nmax = 3\ntarget = \"0%\"\nup = { step = 0 }\ndown = { step = \"0%\" }\n";
        let codes: Vec<Code> = found(text).into_iter().map(|f| f.0).collect();
        assert_eq!(
            codes.iter().filter(|c| **c == Code::Contradiction).count(),
            3,
            "{codes:?}"
        );
        assert!(codes.contains(&Code::BadScaleTarget));
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        for text in [
            "replicas = 1\n[autoscale]\n",
            "replicas = 21\n[autoscale]\n",
            "[autoscale]\nidle = \"1m\"\n",
        ] {
            let found = found(text);
            assert_eq!(found.len(), 1, "{text}");
            assert_eq!(
                (found[0].0, found[0].1),
                (Code::NeverReached, Severity::Warning),
                "{text}"
            );
        }
        assert!(found("replicas = 0\n[autoscale]\nmin = 0\nidle = \"1m\"\n").is_empty());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "min = 10001",
            "max = 0",
            "min = -1",
            "panic_window = \"0s\"",
            "up = { window = \"0s\" }",
            "metric = \"memory\"",
        ] {
            assert_eq!(found(&format!("[autoscale]\n{text}\n")).len(), 1, "{text}");
        }
    }
}
