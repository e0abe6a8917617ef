//! The rules of runs in the store, one test each.

use super::super::tests::{block_on, deploy_with, name, records};
use super::*;
use crate::model::ReplicaId;
use crate::model::job::AttemptExit;
use crate::model::service::World;

const AT: Timestamp = Timestamp(0);

fn with_job() -> Records {
    let records = records();
    deploy_with(&records, "a.wasm", |spec| {
        spec.world = World::Command;
        spec.job = Some(crate::model::service::Job::default());
    });
    records
}

fn begin(records: &Records) -> Result<RunId, RecordsError> {
    block_on(records.begin_run(&name(), RevisionNumber(1), None, "deploy", AT))
}

fn attempt(code: i32) -> Attempt {
    Attempt {
        replica: ReplicaId(7),
        exit: AttemptExit::Exited { code },
        started_at: AT,
        ended_at: AT,
        cpu_ms: 0,
    }
}

#[test]
fn a_run_is_counted_attempt_by_attempt_and_loaded_with_the_rest() {
    let records = with_job();
    let id = begin(&records).unwrap();
    block_on(records.end_attempt(&name(), id, attempt(3), 10)).unwrap();
    block_on(records.end_attempt(&name(), id, attempt(0), 20)).unwrap();
    let (desired, _) = block_on(records.load()).unwrap();
    let run = &desired.runs[&name()][&id];
    assert_eq!(
        (run.failed, run.succeeded, run.ran_ms, run.last_code()),
        (1, 1, 20, Some(0))
    );
    block_on(records.end_run(&name(), id, RunState::Succeeded, 30, AT)).unwrap();
    assert!(block_on(records.open_runs(&name())).unwrap().is_empty());
    // An attempt that comes late changes nothing.
    let late = block_on(records.end_attempt(&name(), id, attempt(0), 99)).unwrap();
    assert_eq!((late.succeeded, late.ran_ms), (1, 30));
}

#[test]
fn a_stopped_deleted_or_unknown_service_begins_no_run() {
    let records = with_job();
    let missing = block_on(records.begin_run(&name(), RevisionNumber(9), None, "x", AT));
    assert!(matches!(missing, Err(RecordsError::NoRevision(..))));
    block_on(records.set_stopped(&name(), true, None, AT)).unwrap();
    assert!(matches!(begin(&records), Err(RecordsError::Stopped(_))));
    block_on(records.set_stopped(&name(), false, None, AT)).unwrap();
    begin(&records).unwrap();
    block_on(records.delete(&name(), None, AT)).unwrap();
    assert!(matches!(begin(&records), Err(RecordsError::Deleting(_))));
    block_on(records.forget(&name())).unwrap();
    assert!(matches!(begin(&records), Err(RecordsError::NoService(_))));
    assert!(
        block_on(records.load()).unwrap().0.runs.is_empty(),
        "its runs went with it"
    );
}

#[test]
fn twenty_runs_may_be_open_and_twenty_that_have_ended_are_kept() {
    let records = with_job();
    for _ in 0..OPEN_RUNS {
        begin(&records).unwrap();
    }
    assert!(matches!(begin(&records), Err(RecordsError::TooManyRuns(_))));
    for id in 1..=20 {
        block_on(records.end_run(&name(), RunId(id), RunState::TimedOut, 0, AT)).unwrap();
    }
    for _ in 0..5 {
        let id = begin(&records).unwrap();
        block_on(records.end_run(&name(), id, RunState::Succeeded, 0, AT)).unwrap();
    }
    let kept: Vec<u64> = block_on(records.runs(&name()))
        .unwrap()
        .iter()
        .map(|run| run.id.0)
        .collect();
    assert_eq!(kept, (6..=25).collect::<Vec<_>>());
    assert_eq!(begin(&records).unwrap(), RunId(26), "numbers are never used twice");
}

#[test]
fn a_run_that_takes_the_place_of_others_asks_them_to_end_in_the_same_write() {
    let records = with_job();
    let old = begin(&records).unwrap();
    let service = name();
    let begun = records.begin_run_and(&service, RevisionNumber(1), None, "restart", Some("restarted"), AT);
    let new = block_on(begun).unwrap();
    let runs = block_on(records.open_runs(&name())).unwrap();
    let asked: Vec<_> = runs.iter().map(|run| (run.id, run.cancel.as_deref())).collect();
    assert_eq!(asked, [(old, Some("restarted")), (new, None)]);
    block_on(records.cancel_run(&name(), old, AT)).unwrap();
    let first = block_on(records.open_runs(&name())).unwrap();
    assert_eq!(first[0].cancel.as_deref(), Some("restarted"), "the first reason stays");
    let none = block_on(records.cancel_run(&name(), RunId(99), AT));
    assert!(matches!(none, Err(RecordsError::NoRun(..))));
}

#[test]
fn only_the_newest_attempts_are_kept_and_all_are_counted() {
    let records = with_job();
    let id = begin(&records).unwrap();
    for _ in 0..50 {
        block_on(records.end_attempt(&name(), id, attempt(1), 0)).unwrap();
    }
    let run = block_on(records.runs(&name())).unwrap()[0].clone();
    assert_eq!((run.failed, run.attempts.len()), (50, JobRun::ATTEMPTS));
}

#[test]
fn arguments_without_end_are_refused() {
    let records = with_job();
    let args = Some(vec!["x".repeat(ARGS_BYTES + 1)]);
    let long = block_on(records.begin_run(&name(), RevisionNumber(1), args, "x", AT));
    assert!(matches!(long, Err(RecordsError::ArgsTooLong(_))));
}

#[test]
fn a_service_does_not_become_a_job_and_a_run_keeps_its_revision() {
    let records = with_job();
    let other = super::super::tests::try_deploy(&records, "b.wasm", |_| {});
    assert!(matches!(other, Err(RecordsError::KindChanges(_))));
    begin(&records).unwrap();
    for module in ["b.wasm", "c.wasm", "d.wasm", "e.wasm", "f.wasm"] {
        deploy_with(&records, module, |spec| {
            spec.world = World::Command;
            spec.job = Some(crate::model::service::Job::default());
        });
    }
    while block_on(records.trim(&name())).unwrap() > 0 {}
    let kept = block_on(records.history(&name())).unwrap();
    assert!(
        kept.iter().any(|r| r.number == RevisionNumber(1)),
        "an open run is of it"
    );
    assert!(kept.len() <= 4);
}
