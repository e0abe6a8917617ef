//! What a service file may say of rollouts, and how each mistake is told.

use super::*;
use crate::config::{effective, render_all, service};

const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

fn good(text: &str) -> ServiceSpec {
    match service(&format!("{HEAD}{text}\n"), "a.toml") {
        Ok(checked) => checked.spec,
        Err(problems) => panic!("{text}\n{}", render_all(&problems, false)),
    }
}

fn code(text: &str) -> Code {
    match service(&format!("{HEAD}{text}\n"), "a.toml") {
        Ok(checked) => panic!("{text}\nwas accepted as {:?}", checked.spec.rollout),
        Err(problems) => {
            assert!(problems.iter().all(|p| p.span.is_some() && p.help.is_some()), "{text}");
            problems[0].code
        }
    }
}

#[test]
fn a_canary_has_steps_gates_and_a_pin() {
    let spec = good(
        "[traffic]\npin = { header = \"X-Narae-Revision\", cookie = \"narae-revision\" }\n[rollout]\nstrategy = \"canary\"\n\
         steps = [{ weight = \"0.5%\", hold = \"10s\" }, { weight = \"25%\" }]\n\
         gates = { error_rate = \"1%\", p99 = \"250ms\", cpu = \"+20%\", min_requests = 50 }",
    );
    let step = |weight, secs| Step {
        weight,
        hold: Duration::from_secs(secs),
    };
    assert_eq!(spec.rollout.steps(), [step(5, 10), step(250, 30)]);
    let gates = Gates {
        p99: Some(Duration::from_millis(250)),
        cpu: Some(200),
        min_requests: 50,
        ..Gates::DEFAULT
    };
    assert_eq!(spec.rollout.gates, Some(gates));
    let pin = spec.traffic.pin.unwrap();
    assert_eq!(
        (pin.header.as_deref(), pin.cookie.as_deref()),
        (Some("x-narae-revision"), Some("narae-revision"))
    );
}

#[test]
fn every_strategy_has_defaults_and_prints_them() {
    assert_eq!(good("[rollout]\nstrategy = \"canary\"").rollout.steps(), Step::CANARY);
    assert_eq!(
        good("[rollout]\nstrategy = \"blue-green\"").rollout.steps(),
        Step::BLUE_GREEN
    );
    assert_eq!(good("[rollout]\nstrategy = \"recreate\"").rollout.steps(), []);
    assert_eq!(good("[rollout]\ngates = {}").rollout.gates, Some(Gates::DEFAULT));
    for text in [
        "strategy = \"canary\"",
        "strategy = \"blue-green\"\nsteps = [{ hold = \"1s\" }]",
        "strategy = \"recreate\"",
        "strategy = \"canary\"\ngates = { cpu = \"+12.5%\", compare = \"stable\" }",
        "gates = { p99 = \"1s\", compare = \"none\" }",
    ] {
        let spec = good(&format!("[rollout]\n{text}"));
        let again =
            service(&effective(&spec), "b.toml").unwrap_or_else(|p| panic!("{text}\n{}", render_all(&p, false)));
        assert_eq!(again.spec.rollout.steps(), spec.rollout.steps(), "{text}");
        assert_eq!(
            (again.spec.rollout.strategy, again.spec.rollout.gates),
            (spec.rollout.strategy, spec.rollout.gates),
            "{text}"
        );
    }
}

#[test]
fn what_makes_no_sense_together_is_told() {
    for (text, expected) in [
        ("strategy = \"canary\"\nsteps = []", Code::BadSteps),
        ("strategy = \"canary\"\nsteps = [{ hold = \"1s\" }]", Code::BadSteps),
        (
            "strategy = \"canary\"\nsteps = [{ weight = \"9%\" }, { weight = \"9%\" }]",
            Code::BadSteps,
        ),
        ("strategy = \"canary\"\nsteps = [{ weight = \"0%\" }]", Code::OutOfRange),
        (
            "strategy = \"canary\"\nsteps = [{ weight = \"101%\" }]",
            Code::OutOfRange,
        ),
        ("strategy = \"canary\"\nsteps = [{ weight = \"5\" }]", Code::BadShare),
        ("strategy = \"canary\"\nsteps = [{ weight = 5 }]", Code::WrongType),
        (
            "strategy = \"blue-green\"\nsteps = [{ weight = \"5%\" }]",
            Code::BadSteps,
        ),
        (
            "strategy = \"blue-green\"\nsteps = [{ hold = \"1s\" }, { hold = \"1s\" }]",
            Code::BadSteps,
        ),
        ("steps = [{ weight = \"5%\" }]", Code::BadSteps),
        ("strategy = \"recreate\"\nsteps = [{ weight = \"5%\" }]", Code::BadSteps),
        ("strategy = \"recreate\"\nmax_surge = 1", Code::BadSteps),
        ("gates = { cpu = \"20%\" }", Code::BadShare),
        ("gates = { cpu = \"+20%\", compare = \"none\" }", Code::BadGate),
        ("gates = { error_rate = \"200%\" }", Code::OutOfRange),
        ("gates = { min_requests = 0 }", Code::OutOfRange),
        ("strategy = \"fast\"", Code::NotAChoice),
    ] {
        assert_eq!(code(&format!("[rollout]\n{text}")), expected, "{text}");
    }
    assert_eq!(code("[traffic]\npin = {}"), Code::BadPin);
    assert_eq!(code("[traffic]\npin = { header = \"x y\" }"), Code::BadPin);
}
