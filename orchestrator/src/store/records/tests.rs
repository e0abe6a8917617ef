//! Records over the memory store.

use narae_runtime::{Limits, Outbound};

use super::*;
use crate::model::Why;
use crate::model::service::{Logs, Restart, Rollout, StartupProbe, Traffic, World};
use crate::store::MemoryStore;

const AT: Timestamp = Timestamp(1000);

pub(crate) fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(task)
}

pub(crate) fn name() -> ServiceName {
    "hello".parse().unwrap()
}

fn new(module: &str) -> NewRevision {
    let spec = ServiceSpec {
        name: name(),
        description: None,
        module: module.to_owned(),
        digest: None,
        world: World::Auto,
        args: vec![],
        replicas: ReplicaCount::ONE,
        depends_on: vec![],
        labels: BTreeMap::new(),
        env: BTreeMap::new(),
        config: BTreeMap::new(),
        secrets: BTreeMap::new(),
        limits: Limits::default(),
        routes: vec![],
        traffic: Traffic::default(),
        startup: StartupProbe::default(),
        readiness: None,
        liveness: None,
        restart: Restart::default(),
        autoscale: None,
        rollout: Rollout {
            keep_revisions: 3,
            ..Rollout::default()
        },
        keyvalue: vec![],
        volumes: vec![],
        outbound: Outbound::default(),
        logs: Logs::default(),
        schedules: Vec::new(),
        job: None,
    };
    let source = format!("module = \"{module}\"");
    NewRevision {
        digest: Digest::of(module.as_bytes()),
        kind: Kind::Http02,
        spec,
        source,
        cause: "deploy".to_owned(),
        secrets: BTreeMap::new(),
        accepted: None,
    }
}

pub(super) fn records() -> Records {
    Records::new(Arc::new(MemoryStore::new()))
}

pub(crate) fn deploy(records: &Records, module: &str) -> Deployed {
    block_on(records.deploy(new(module), None, AT)).unwrap()
}

/// Deploys a revision of an edited file.
pub(super) fn try_deploy(
    records: &Records,
    module: &str,
    edit: impl FnOnce(&mut ServiceSpec),
) -> Result<Deployed, RecordsError> {
    let mut new = new(module);
    edit(&mut new.spec);
    block_on(records.deploy(new, None, Timestamp(0)))
}

pub(crate) fn deploy_with(records: &Records, module: &str, edit: impl FnOnce(&mut ServiceSpec)) {
    try_deploy(records, module, edit).unwrap();
}

fn numbers(records: &Records) -> Vec<u64> {
    block_on(records.history(&name()))
        .unwrap()
        .iter()
        .map(|revision| revision.number.0)
        .collect()
}

#[test]
fn a_deploy_makes_a_revision_and_the_same_again_changes_nothing() {
    let records = records();
    let first = deploy(&records, "a");
    assert_eq!(
        first,
        Deployed {
            revision: RevisionNumber(1),
            changed: true,
            previous: None
        }
    );
    let again = deploy(&records, "a");
    assert_eq!(
        again,
        Deployed {
            revision: RevisionNumber(1),
            changed: false,
            previous: Some(RevisionNumber(1))
        }
    );
    let (desired, _) = block_on(records.load()).unwrap();
    let service = &desired.services[&name()];
    assert_eq!(service.record.wanted, RevisionNumber(1));
    assert_eq!(service.revisions[&RevisionNumber(1)].state, RevisionState::Pending);
}

#[test]
fn a_deploy_over_an_unproved_revision_supersedes_it_and_keeps_the_stable_one() {
    let records = records();
    deploy(&records, "a");
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    deploy(&records, "b");
    deploy(&records, "c");
    let (desired, _) = block_on(records.load()).unwrap();
    let service = &desired.services[&name()];
    assert_eq!(service.record.stable, Some(RevisionNumber(1)));
    assert_eq!(service.revisions.keys().map(|n| n.0).collect::<Vec<_>>(), [1, 2, 3]);
    let second = block_on(records.revision(&name(), RevisionNumber(2))).unwrap();
    assert_eq!(second.state, RevisionState::Superseded { at: AT });
}

#[test]
fn a_deploy_with_another_precondition_changes_nothing() {
    let records = records();
    let deploy_if = |module, revision| block_on(records.deploy(new(module), Some(revision), AT));
    assert!(matches!(
        deploy_if("a", 1),
        Err(RecordsError::Changed { found: None, .. })
    ));
    deploy_if("a", 0).unwrap();
    assert!(matches!(
        deploy_if("b", 0),
        Err(RecordsError::Changed {
            found: Some(RevisionNumber(1)),
            ..
        })
    ));
    deploy_if("b", 1).unwrap();
    assert_eq!(numbers(&records), [1, 2]);
}

fn refuse(records: &Records, number: u64, why: Why) -> ServiceRecord {
    let back = Some(RevisionNumber(1));
    block_on(records.refuse(&name(), RevisionNumber(number), why, "no answer".to_owned(), back, AT)).unwrap();
    block_on(records.service(&name())).unwrap()
}

#[test]
fn a_verdict_that_comes_late_changes_nothing() {
    let records = records();
    deploy(&records, "a");
    let prove = |number| block_on(records.prove(&name(), RevisionNumber(number), AT)).unwrap();
    assert!(prove(1));
    assert!(!prove(1), "once is enough");
    deploy(&records, "b");
    deploy(&records, "c");
    let before = records.store().status().revision;
    assert!(!prove(2), "it was superseded");
    refuse(&records, 1, Why::Died);
    refuse(&records, 2, Why::Died);
    assert_eq!(records.store().status().revision, before);
    let second = block_on(records.revision(&name(), RevisionNumber(2))).unwrap();
    assert_eq!(second.state, RevisionState::Superseded { at: AT });
    assert_eq!(
        block_on(records.service(&name())).unwrap().stable,
        Some(RevisionNumber(1))
    );
    assert!(prove(3));
}

#[test]
fn a_refused_revision_goes_back_and_can_be_deployed_again_as_a_new_one() {
    let records = records();
    deploy(&records, "a");
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    deploy(&records, "b");
    assert_eq!(refuse(&records, 2, Why::NeverReady).wanted, RevisionNumber(1));
    assert_eq!(deploy(&records, "b").revision, RevisionNumber(3));
}

#[test]
fn a_refusal_that_comes_late_leaves_a_newer_deploy_wanted() {
    let records = records();
    deploy(&records, "a");
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    deploy(&records, "b");
    deploy(&records, "c");
    assert_eq!(refuse(&records, 2, Why::Died).wanted, RevisionNumber(3));
}

#[test]
fn undo_deploys_the_last_revision_that_proved_itself() {
    let records = records();
    deploy(&records, "a");
    assert!(matches!(
        block_on(records.undo(&name(), None, AT)),
        Err(RecordsError::NothingToUndo(_))
    ));
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    deploy(&records, "b");
    block_on(records.prove(&name(), RevisionNumber(2), AT)).unwrap();
    let undone = block_on(records.undo(&name(), None, AT)).unwrap();
    let revision = block_on(records.revision(&name(), undone.revision)).unwrap();
    assert_eq!(
        (revision.number.0, &*revision.spec.module, &*revision.cause),
        (3, "a", "undo to 1")
    );
}

#[test]
fn a_deploy_ends_a_scale_and_a_stop() {
    let records = records();
    deploy(&records, "a");
    block_on(records.scale(&name(), ReplicaCount::new(5).unwrap(), AT)).unwrap();
    block_on(records.set_stopped(&name(), true, None, AT)).unwrap();
    assert!(deploy(&records, "a").changed);
    let record = block_on(records.service(&name())).unwrap();
    assert!(!record.stopped);
    assert!(
        record.scaled_under < Some(record.wanted),
        "the new revision begins with its own file's count"
    );
}

#[test]
fn only_so_many_revisions_are_kept_and_never_the_stable_one_lost() {
    let records = records();
    deploy(&records, "a");
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    for module in ["b", "c", "d", "e"] {
        deploy(&records, module);
    }
    assert_eq!(block_on(records.trim(&name())).unwrap(), 2);
    assert_eq!(numbers(&records), [1, 4, 5]);
    block_on(records.prove(&name(), RevisionNumber(5), AT)).unwrap();
    assert_eq!(
        deploy(&records, "f").revision,
        RevisionNumber(6),
        "a number is never used twice"
    );
}

#[test]
fn a_deleted_service_refuses_changes_until_it_is_forgotten_with_all_its_revisions() {
    let records = records();
    for n in 0..120 {
        deploy(&records, &n.to_string());
    }
    assert!(
        matches!(block_on(records.forget(&name())), Err(RecordsError::Changed { .. })),
        "not deleted yet"
    );
    block_on(records.delete(&name(), None, AT)).unwrap();
    assert!(matches!(
        block_on(records.deploy(new("x"), None, AT)),
        Err(RecordsError::Deleting(_))
    ));
    assert!(matches!(
        block_on(records.restart(&name(), None, AT)),
        Err(RecordsError::Deleting(_))
    ));
    block_on(records.forget(&name())).unwrap();
    block_on(records.forget(&name())).unwrap();
    assert!(block_on(records.store().list("")).unwrap().items.is_empty());
    assert!(matches!(
        block_on(records.service(&name())),
        Err(RecordsError::NoService(_))
    ));
}

#[test]
fn a_record_that_makes_no_sense_fails_the_load_by_its_key() {
    let records = records();
    deploy(&records, "a");
    for value in ["", "{}", r#"{"schema":2,"body":{}}"#, r#"{"schema":1,"body":{}}"#] {
        let op = Op::put("services/other", value.as_bytes().to_vec());
        assert!(matches!(
            block_on(records.store().txn(vec![], vec![op])),
            Ok(Outcome::Committed(_))
        ));
        let error = block_on(records.load()).unwrap_err();
        assert!(error.to_string().contains("services/other"), "{error}");
    }
}

#[test]
fn modules_names_who_uses_each() {
    let records = records();
    deploy(&records, "a");
    deploy(&records, "b");
    let used = block_on(records.modules()).unwrap();
    assert_eq!(used[&Digest::of(b"b")], [(name(), RevisionNumber(2))]);
    assert_eq!(used.len(), 2);
}

#[test]
fn a_refusal_cannot_go_back_to_a_revision_that_is_not_there() {
    let records = records();
    deploy(&records, "a");
    let (name, back) = (name(), Some(RevisionNumber(9)));
    let refused = block_on(records.refuse(&name, RevisionNumber(1), Why::Asked, String::new(), back, AT));
    assert!(matches!(refused, Err(RecordsError::NoRevision(_, RevisionNumber(9)))));
    block_on(records.load()).unwrap();
}

/// A service that reads version `version` of the secret `db`.
fn deploy_reading(records: &Records, module: &str, version: u64) -> Deployed {
    let mut new = new(module);
    new.spec.secrets.insert("DB".into(), "db".into());
    new.secrets.insert("db".into(), version);
    block_on(records.deploy(new, None, AT)).unwrap()
}

fn renew(records: &Records, version: u64) -> Option<u64> {
    let renewed = block_on(records.renew(&name(), "db", version, AT)).unwrap();
    renewed.map(|deployed| deployed.revision.0)
}

#[test]
fn a_changed_secret_makes_the_wanted_revision_again_with_the_new_version() {
    let records = records();
    deploy_reading(&records, "a", 1);
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    assert_eq!(renew(&records, 2), Some(2));
    let (old, new) = (
        block_on(records.revision(&name(), RevisionNumber(1))).unwrap(),
        block_on(records.revision(&name(), RevisionNumber(2))).unwrap(),
    );
    assert_eq!((old.secrets["db"], new.secrets["db"]), (1, 2));
    assert_eq!(
        (&old.spec, &old.source, old.digest),
        (&new.spec, &new.source, new.digest)
    );
    assert_eq!(
        (&*new.cause, &new.state),
        ("secret db changed", &RevisionState::Pending)
    );
    assert_eq!(renew(&records, 2), None, "it has that version already");
    let record = block_on(records.service(&name())).unwrap();
    assert_eq!((record.wanted.0, record.stable), (2, Some(RevisionNumber(1))));
}

#[test]
fn a_changed_secret_leaves_scale_and_stop_and_other_services_alone() {
    let records = records();
    deploy_reading(&records, "a", 1);
    block_on(records.scale(&name(), ReplicaCount::new(5).unwrap(), AT)).unwrap();
    block_on(records.set_stopped(&name(), true, None, AT)).unwrap();
    assert_eq!(renew(&records, 2), Some(2));
    let record = block_on(records.service(&name())).unwrap();
    let revision = block_on(records.revision(&name(), record.wanted)).unwrap();
    assert!(record.stopped);
    assert_eq!(crate::plan::fleet::wanted_replicas(&record, &revision, None), 5);
    assert_eq!(block_on(records.renew(&name(), "other", 9, AT)).unwrap(), None);
    block_on(records.delete(&name(), None, AT)).unwrap();
    assert_eq!(renew(&records, 3), None);
}

#[test]
fn an_undo_brings_the_versions_of_its_secrets_back_and_a_deploy_takes_the_current_ones() {
    let records = records();
    deploy_reading(&records, "a", 1);
    block_on(records.prove(&name(), RevisionNumber(1), AT)).unwrap();
    renew(&records, 2);
    block_on(records.prove(&name(), RevisionNumber(2), AT)).unwrap();
    let undone = block_on(records.undo(&name(), None, AT)).unwrap();
    let pinned = |number| block_on(records.revision(&name(), number)).unwrap().secrets["db"];
    assert_eq!(pinned(undone.revision), 1);
    let again = deploy_reading(&records, "a", 2);
    assert!(again.changed, "the file is the same, what it runs with is not");
    assert_eq!(pinned(again.revision), 2);
    assert!(!deploy_reading(&records, "a", 2).changed);
}

#[test]
fn a_revision_that_was_stored_before_there_were_secrets_is_read() {
    let records = records();
    deploy(&records, "a");
    let item = block_on(records.store().get(&revision_key(&name(), RevisionNumber(1))))
        .unwrap()
        .unwrap();
    let mut old: serde_json::Value = serde_json::from_slice(&item.value).unwrap();
    let body = old["body"].as_object_mut().unwrap();
    body.remove("secrets").unwrap();
    body.remove("accepted").unwrap();
    body["spec"].as_object_mut().unwrap().remove("secrets").unwrap();
    body["spec"]["rollout"]
        .as_object_mut()
        .unwrap()
        .remove("capabilities")
        .unwrap();
    let op = Op::put(&*item.key, serde_json::to_vec(&old).unwrap());
    assert!(matches!(
        block_on(records.store().txn(vec![], vec![op])),
        Ok(Outcome::Committed(_))
    ));
    let (desired, _) = block_on(records.load()).unwrap();
    assert!(
        desired.services[&name()].revisions[&RevisionNumber(1)]
            .secrets
            .is_empty()
    );
}

#[test]
fn a_rollout_takes_steps_is_paused_promoted_and_undone_only_while_it_is_on_trial() {
    let (records, name) = (records(), "hello".parse::<ServiceName>().unwrap());
    let one = RevisionNumber(1);
    let nothing = |result: Result<ServiceRecord, RecordsError>| matches!(result, Err(RecordsError::NoRollout { .. }));
    block_on(records.deploy(new("a"), None, AT)).unwrap();
    assert!(matches!(
        block_on(records.abort(&name, "x", AT)),
        Err(RecordsError::NoRollout { stable: None, .. })
    ));
    block_on(records.prove(&name, one, AT)).unwrap();
    assert!(nothing(block_on(records.promote(&name, AT))));
    block_on(records.deploy(new("b"), None, AT)).unwrap();
    block_on(records.step(&name, RevisionNumber(2), 1, AT)).unwrap();
    block_on(records.step(&name, one, 7, AT)).unwrap();
    let paused = block_on(records.set_paused(&name, true, AT)).unwrap().rollout.unwrap();
    assert_eq!((paused.step, paused.paused, paused.promoted), (1, true, false));
    let promoted = block_on(records.promote(&name, AT)).unwrap().rollout.unwrap();
    assert_eq!((promoted.step, promoted.paused, promoted.promoted), (1, false, true));
    let undone = block_on(records.undo(&name, None, AT)).unwrap();
    assert_eq!((undone.revision, undone.previous), (one, Some(RevisionNumber(2))));
    assert!(nothing(block_on(records.set_paused(&name, true, AT))));
    // Going back later is a new revision, without steps.
    let again = block_on(records.undo(&name, Some(RevisionNumber(2)), AT)).unwrap();
    let record = block_on(records.service(&name)).unwrap();
    assert_eq!(
        (again.revision, record.rollout.unwrap().promoted),
        (RevisionNumber(3), true)
    );
}
