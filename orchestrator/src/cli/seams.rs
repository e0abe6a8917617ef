//! Where the command line meets the pure floors and the runtime, one thin function for each need: the verbs see their findings
//! as [`Report`]s and know nothing of how they were found.

use narae_runtime::Artifact;

use super::report::Report;
use crate::config::{self, Problem, Severity};
pub use crate::config::{Change, diff, explain};
use crate::model::service::World;
use crate::model::views::CapabilityView;
use crate::model::{ServiceName, ServiceSpec, Timestamp};
use crate::plan::capabilities::Capabilities;

/// A service file that may be deployed.
#[derive(Clone, Debug)]
pub struct Checked {
    pub spec: ServiceSpec,
    pub warnings: Vec<Report>,
}

fn report(problem: &Problem) -> Report {
    Report {
        view: Box::new(problem.to_view()),
        styled: problem.render(true),
    }
}

fn reports(problems: &[Problem]) -> Vec<Report> {
    problems.iter().map(report).collect()
}

/// Checks a service file.
///
/// # Errors
/// Every mistake.
pub fn check_service(text: &str, file: &str) -> Result<Checked, Vec<Report>> {
    let checked = config::service(text, file).map_err(|p| reports(&p))?;
    let now = Timestamp(super::session::now().as_millisecond());
    let mut warnings = checked.warnings;
    warnings.extend(config::schedule::past(
        &checked.spec,
        Some(&config::Source::new(file, text)),
        now,
    ));
    Ok(Checked {
        spec: checked.spec,
        warnings: reports(&warnings),
    })
}

/// Checks a service file again, knowing whether its module is a command.
///
/// # Errors
/// Every mistake.
pub fn check_service_of(text: &str, file: &str, command: bool) -> Result<Checked, Vec<Report>> {
    let world = if command { World::Command } else { World::Http };
    let checked = config::service_of(text, file, Some(world)).map_err(|p| reports(&p))?;
    Ok(Checked {
        spec: checked.spec,
        warnings: reports(&checked.warnings),
    })
}

/// Checks a node file; returns warnings.
///
/// # Errors
/// Every mistake.
pub fn check_node(text: &str, file: &str) -> Result<Vec<Report>, Vec<Report>> {
    config::node(text, file)
        .map(|checked| reports(&checked.warnings))
        .map_err(|p| reports(&p))
}

/// What is wrong with a service beside others of the same deploy: a route taken, dependencies in a circle.
pub fn beside(spec: &ServiceSpec, others: &[(ServiceName, &ServiceSpec)], text: &str, file: &str) -> Vec<Report> {
    // The node's memory is the daemon's business: 0 means unknown.
    let found = config::cross_at(spec, others, 0, Some(&config::Source::new(file, text)));
    reports(
        &found
            .into_iter()
            .filter(|p| p.severity == Severity::Error)
            .collect::<Vec<_>>(),
    )
}

/// Problems found in a text that had no name yet.
fn in_file(problems: Vec<Problem>, file: &str) -> Vec<Report> {
    let named = problems.into_iter().map(|p| Problem {
        file: file.to_owned(),
        ..p
    });
    reports(&named.collect::<Vec<_>>())
}

/// Puts values into a service file's text: `limits.memory`, `64MiB`.
///
/// # Errors
/// Every key or value that cannot be set.
pub fn set(text: &str, file: &str, pairs: &[(String, String)]) -> Result<String, Vec<Report>> {
    config::set(text, pairs).map_err(|p| in_file(p, file))
}

/// A service file in the usual form.
///
/// # Errors
/// It does not parse.
pub fn format(text: &str, file: &str) -> Result<String, Vec<Report>> {
    config::fmt(text).map_err(|p| in_file(p, file))
}

/// The JSON Schema of a file.
pub fn schema(of: super::config::SchemaOf) -> serde_json::Value {
    config::schema(match of {
        super::config::SchemaOf::Service => config::Which::Service,
        super::config::SchemaOf::Node => config::Which::Node,
    })
}

/// Verifies and inspects a module that messages call `shown`; `file` is the name and the text of the service file that names it.
///
/// # Errors
/// It is none that narae runs.
pub fn inspect(bytes: &bytes::Bytes, shown: &str, file: Option<(&str, &str)>) -> Result<Artifact, Report> {
    Artifact::read(bytes.clone()).map_err(|error| {
        let source = file.map(|(name, text)| config::Source::new(name, text));
        report(&config::artifact(&error, shown, source.as_ref()))
    })
}

/// Whether this narae has the interface for a module of this kind, as `module inspect` names kinds.
pub fn is_offered(kind: &str, import: &str) -> bool {
    use narae_runtime::Kind::{Command02, Command03, CommandCore, Http02, Http03};
    let kind = [Http02, Http03, Command02, Command03, CommandCore]
        .into_iter()
        .find(|k| crate::api::kind_name(*k) == kind);
    let Some(kind) = kind else { return true };
    let artifact = Artifact {
        digest: narae_runtime::Digest::of(&[]),
        kind,
        imports: vec![import.to_owned()],
        exports: Vec::new(),
        bytes: bytes::Bytes::new(),
    };
    // Names outside of `wasi:` have no host behind them; those of a core module are its adapter's business.
    kind == CommandCore || (import.starts_with("wasi:") && narae_runtime::wasm::missing_imports(&artifact).is_empty())
}

/// What a file with its module's imports wants beyond another.
pub fn capabilities(old: (&ServiceSpec, &[String]), new: (&ServiceSpec, &[String])) -> Vec<CapabilityView> {
    let of = |(spec, imports): (&ServiceSpec, &[String])| Capabilities::of(spec, imports.iter().map(String::as_str));
    let changes = crate::plan::capabilities::diff(&[&of(old)], &of(new));
    changes.iter().map(crate::api::capabilities::view).collect()
}

/// Line and column of a top-level key's value in a service file.
pub fn place(text: &str, key: &str) -> Option<(u32, u32)> {
    let source = config::Source::new("", text);
    let span = config::place_of(&source, &[key]);
    Problem::new(config::Code::BadModule, "").at(&source, span).position()
}
