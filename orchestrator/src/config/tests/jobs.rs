//! The rules of `jobs`, one test each.

use std::time::Duration;

use super::*;
use crate::config::{Problem, codes::explain, effective, render_all, service, service_of};
use crate::model::ServiceSpec;

const HEAD: &str = "name = \"a\"\nmodule = \"a.wasm\"\n";

fn command(more: &str) -> Result<ServiceSpec, Vec<Problem>> {
    service(&format!("{HEAD}world = \"command\"\n{more}"), "a.toml").map(|checked| checked.spec)
}

#[test]
fn a_command_without_a_job_table_has_every_default_of_one() {
    let spec = command("").unwrap();
    assert_eq!(spec.job, Some(Job::default()));
    assert_eq!(spec.restart.initial, Duration::from_secs(1));
    assert!(spec.is_job());
}

#[test]
fn what_a_module_is_decides_for_world_auto() {
    let text = format!("{HEAD}[job]\ncompletions = 5\nparallelism = 2\nretries = 0\ntimeout = \"90s\"\n");
    let job = service_of(&text, "a", Some(World::Command)).unwrap().spec;
    assert_eq!(job.world, World::Command);
    let expected = Job {
        completions: 5,
        parallelism: 2,
        retries: 0,
        timeout: Duration::from_secs(90),
    };
    assert_eq!(job.job, Some(expected));
    let refused = service_of(&text, "a", Some(World::Http)).unwrap_err();
    assert_eq!(refused[0].code, Code::NotForThisWorld);
    // What nobody has looked into yet may be either.
    assert_eq!(service(&text, "a").unwrap().spec.world, World::Auto);
}

#[test]
fn everything_that_means_nothing_to_a_command_is_refused_at_its_place() {
    for (path, _) in NOT_FOR_COMMANDS {
        let line = match *path {
            "replicas" => "replicas = 2",
            "depends_on" => "depends_on = [\"b\"]",
            "routes" => "routes = [\"/\"]",
            "route" => "[[route]]\npath = \"/\"",
            "traffic" => "[traffic]\ndrain = \"1s\"",
            "probes" => "[probes.startup]\npath = \"/\"",
            "limits.timeout" => "[limits]\ntimeout = \"1s\"",
            "limits.cpu_time" => "[limits]\ncpu_time = \"1s\"",
            "limits.queue_wait" => "[limits]\nqueue_wait = \"1s\"",
            "limits.body" => "[limits]\nbody = \"1MiB\"",
            "restart.policy" => "[restart]\npolicy = \"never\"",
            "restart.give_up" => "[restart]\ngive_up = { restarts = 1, within = \"1m\" }",
            "rollout.strategy" => "[rollout]\nstrategy = \"rolling\"",
            "rollout.max_surge" => "[rollout]\nmax_surge = 1",
            "rollout.max_unavailable" => "[rollout]\nmax_unavailable = 1",
            "rollout.min_healthy_time" => "[rollout]\nmin_healthy_time = \"1s\"",
            "rollout.progress_deadline" => "[rollout]\nprogress_deadline = \"1s\"",
            // Whole numbers, all of them.
            limit if limit.starts_with("limits.") => {
                let text = format!("[limits]\n{} = 2", &limit["limits.".len()..]);
                refused(path, &text);
                continue;
            }
            // Keys of tables that other features bring.
            _ => continue,
        };
        refused(path, line);
    }
}

fn refused(path: &str, line: &str) {
    let found = command(line).unwrap_err();
    let said = render_all(&found, false);
    let mine = found.iter().find(|p| p.code == Code::NotForThisWorld);
    let mine = mine.unwrap_or_else(|| panic!("{path}: {said}"));
    assert!(mine.message.starts_with(&format!("`{path}`")), "{said}");
    assert!(mine.position().is_some_and(|(line, _)| line >= 4), "{said}");
}

#[test]
fn a_commands_effective_file_reads_back_and_says_nothing_of_requests() {
    for more in [
        "",
        "[job]\ncompletions = 3\n[restart]\nbackoff = { max = \"500ms\" }\n[limits]\nmemory = \"1MiB\"\n",
    ] {
        let spec = command(more).unwrap();
        let printed = effective(&spec);
        assert_eq!(service(&printed, "b").unwrap().spec, spec, "{printed}");
        assert!(
            !printed.contains("replicas") && !printed.contains("[probes") && !printed.contains("cpu_time"),
            "{printed}"
        );
    }
    let quick = command("[restart]\nbackoff = { max = \"500ms\" }").unwrap();
    assert_eq!(quick.restart.initial, Duration::from_millis(500));
}

#[test]
fn a_job_that_is_no_job_is_refused() {
    for line in [
        "completions = 0",
        "parallelism = 0",
        "parallelism = 1001",
        "retries = -1",
        "timeout = 10",
    ] {
        assert!(command(&format!("[job]\n{line}\n")).is_err(), "{line}");
    }
}

#[test]
fn the_chapter_shows_a_mistake_and_its_repair() {
    let chapter = explain("E0155").unwrap();
    assert!(chapter.contains("Wrong:") && chapter.contains("Right:"));
    assert!(command("routes = [\"/report\"]").is_err());
    assert!(command("[job]\ncompletions = 5").is_ok());
}
