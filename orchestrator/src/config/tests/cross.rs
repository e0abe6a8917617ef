//! The rules of `cross`, one test each.

use super::*;
use crate::config::{Severity, service};

fn spec(text: &str) -> ServiceSpec {
    service(text, "x.toml")
        .unwrap_or_else(|p| panic!("{}", crate::config::render_all(&p, false)))
        .spec
}

fn named(name: &str, more: &str) -> ServiceSpec {
    spec(&format!("name = \"{name}\"\nmodule = \"a.wasm\"\n{more}"))
}

fn with(specs: &[ServiceSpec]) -> Vec<(ServiceName, &ServiceSpec)> {
    specs.iter().map(|s| (s.name.clone(), s)).collect()
}

#[test]
fn a_route_of_another_service_is_refused_and_marked_in_the_file() {
    let other = [named(
        "hello",
        "routes = [\"/v1\"]\n[[route]]\nhost = \"A.test\"\npath = \"/x/\"\n",
    )];
    let text = "name = \"orders\"\nmodule = \"a.wasm\"\nroutes = [\"/\", \"/v1/\"]\n\n[[route]]\nhost = \"a.test\"\npath = \"/x\"\n";
    let problems = cross_at(&spec(text), &with(&other), 0, Some(&Source::new("orders.toml", text)));
    let seen: Vec<_> = problems
        .iter()
        .map(|p| (p.code, p.position(), p.message.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (
                Code::RouteTaken,
                Some((3, 16)),
                "route `/v1` belongs to service `hello`"
            ),
            (
                Code::RouteTaken,
                Some((7, 8)),
                "route `a.test/x` belongs to service `hello`"
            ),
        ]
    );
}

#[test]
fn its_own_routes_are_no_conflict_when_a_service_is_deployed_again() {
    let old = [
        named("hello", "routes = [\"/\"]\ndepends_on = [\"b\"]\n"),
        named("b", ""),
    ];
    assert_eq!(
        cross(
            &named("hello", "routes = [\"/\"]\ndepends_on = [\"b\"]\n"),
            &with(&old),
            0
        ),
        []
    );
}

#[test]
fn one_instance_beyond_the_budget_is_an_error_and_all_together_a_warning() {
    let of = |more: &str| {
        cross(&named("a", more), &[], 1 << 30)
            .iter()
            .map(|p| (p.severity, p.code))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("[limits]\nmemory = \"2GiB\"\n"),
        [(Severity::Error, Code::OverBudget)]
    );
    assert_eq!(
        of("replicas = 5\n[limits]\nmemory = \"256MiB\"\n"),
        [(Severity::Warning, Code::OverBudget)]
    );
    assert_eq!(of("replicas = 4\n[limits]\nmemory = \"256MiB\"\n"), []);
    assert_eq!(of("replicas = 0\n[limits]\nmemory = \"1GiB\"\n"), []);
    assert_eq!(of("replicas = 10000\n[limits]\nmemory = \"1GiB\"\n").len(), 1);
}

#[test]
fn an_unknown_dependency_is_a_warning_with_the_nearest_name() {
    let others = [named("inventory", "")];
    let problems = cross(&named("a", "depends_on = [\"inventroy\"]\n"), &with(&others), 0);
    assert_eq!(
        (problems[0].severity, problems[0].code),
        (Severity::Warning, Code::UnknownDependency)
    );
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `inventory`?"));
}

#[test]
fn a_circle_of_dependencies_is_shown_whole() {
    let others = [
        named("b", "depends_on = [\"c\"]\n"),
        named("c", "depends_on = [\"d\", \"a\"]\n"),
        named("d", "depends_on = [\"b\"]\n"),
    ];
    let problems = cross(&named("a", "depends_on = [\"b\"]\n"), &with(&others), 0);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].message, "dependencies go in a circle: a -> b -> c -> a");
}

#[test]
fn a_circle_among_others_ends_the_search() {
    let others = [
        named("b", "depends_on = [\"c\"]\n"),
        named("c", "depends_on = [\"b\"]\n"),
    ];
    assert_eq!(cross(&named("a", "depends_on = [\"b\"]\n"), &with(&others), 0), []);
}

#[test]
fn a_text_that_is_not_the_file_only_loses_the_place() {
    let others = [named("b", "routes = [\"/\"]\n")];
    let problems = cross_at(
        &named("a", "routes = [\"/\"]\n"),
        &with(&others),
        0,
        Some(&Source::new("x", "[[[")),
    );
    assert_eq!(problems.len(), 1);
    assert!(!problems[0].render(false).is_empty());
}
