//! Refusals that the store did not take. The node keeps to them all the same: until they are written, what is planned with has them
//! in it, so that a refused revision is not started again and again while the disk is full.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::Controller;
use crate::model::{Refusal, Revision, RevisionNumber, RevisionState, ServiceName, Timestamp, Why};
use crate::plan::{Desired, FleetAction};
use crate::store::RecordsError;

/// At most one for each revision on trial.
#[derive(Default)]
pub(super) struct Unwritten(BTreeMap<(ServiceName, RevisionNumber), Refused>);

#[derive(Clone)]
struct Refused {
    why: Why,
    detail: String,
    back_to: Option<RevisionNumber>,
    at: Timestamp,
}

impl Unwritten {
    /// `action` was not written because of `error`. What the store would never take is not kept.
    fn keep(&mut self, action: &FleetAction, error: &RecordsError, at: Timestamp) {
        if let FleetAction::Refuse {
            service,
            revision,
            why,
            detail,
            back_to,
        } = action
            && may_pass(error)
        {
            let (why, detail, back_to) = (*why, detail.clone(), *back_to);
            let refused = Refused {
                why,
                detail,
                back_to,
                at,
            };
            self.0.entry((service.clone(), *revision)).or_insert(refused);
        }
    }

    /// A further try failed: kept, unless the store would never take it.
    fn give_up(&mut self, action: &FleetAction, error: &RecordsError) {
        if let FleetAction::Refuse { service, revision, .. } = action
            && !may_pass(error)
        {
            self.0.remove(&(service.clone(), *revision));
        }
    }

    fn actions(&self) -> Vec<FleetAction> {
        let action = |((service, revision), refused): (&(ServiceName, RevisionNumber), &Refused)| FleetAction::Refuse {
            service: service.clone(),
            revision: *revision,
            why: refused.why,
            detail: refused.detail.clone(),
            back_to: refused.back_to,
        };
        self.0.iter().map(action).collect()
    }

    /// `desired` as it will be when they are written. Those that do not hold any more are forgotten.
    fn overlay(&mut self, desired: Arc<Desired>) -> Arc<Desired> {
        self.0.retain(|(name, number), _| {
            let revision = desired.services.get(name).and_then(|s| s.revisions.get(number));
            revision.is_some_and(|r| r.state == RevisionState::Pending)
        });
        if self.0.is_empty() {
            return desired;
        }
        let mut planned = (*desired).clone();
        for ((name, number), refused) in &self.0 {
            let Some(service) = planned.services.get_mut(name) else {
                continue;
            };
            if let Some(revision) = service.revisions.get_mut(number) {
                let state = RevisionState::Refused(Refusal {
                    why: refused.why,
                    detail: refused.detail.clone(),
                    at: refused.at,
                });
                *revision = Arc::new(Revision {
                    state,
                    ..(**revision).clone()
                });
            }
            if service.record.wanted == *number {
                service.record.wanted = refused.back_to.unwrap_or(*number);
            }
        }
        Arc::new(planned)
    }
}

/// A later try may do.
fn may_pass(error: &RecordsError) -> bool {
    matches!(error, RecordsError::Store(_) | RecordsError::Contended(_))
}

impl Controller {
    /// [`Self::write`], and a refusal that the store does not take is kept to.
    pub(super) async fn write_or_keep(&self, action: FleetAction) -> Result<bool, RecordsError> {
        let written = self.write(action.clone()).await;
        if let Err(error) = &written {
            let at = self.clock.wall();
            let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            unwritten.keep(&action, error, at);
        }
        written
    }

    /// Tries those again that are left from the turns before.
    pub(super) async fn write_again(&self) -> Result<bool, RecordsError> {
        let actions = {
            let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            unwritten.actions()
        };
        let (mut wrote, mut failed) = (false, None);
        for action in actions {
            match self.write(action.clone()).await {
                Ok(written) => wrote |= written,
                Err(error) => {
                    let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
                    unwritten.give_up(&action, &error);
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(wrote), Err)
    }

    /// What is planned with.
    pub(super) fn planned(&self, desired: Arc<Desired>) -> Arc<Desired> {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.overlay(desired)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use narae_runtime::Task;

    use super::*;
    use crate::model::Millis;
    use crate::plan::FleetView;
    use crate::store::records::tests::{block_on, deploy, name};
    use crate::store::{Guard, Item, Listing, MemoryStore, Op, Outcome, Records, Status, Store, StoreError, Watch};

    /// Takes no writes while it is full.
    struct Full(MemoryStore, AtomicBool);

    impl Store for Full {
        fn get<'a>(&'a self, key: &'a str) -> Task<'a, Result<Option<Item>, StoreError>> {
            self.0.get(key)
        }

        fn list<'a>(&'a self, prefix: &'a str) -> Task<'a, Result<Listing, StoreError>> {
            self.0.list(prefix)
        }

        fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Task<'_, Result<Outcome, StoreError>> {
            if self.1.load(Ordering::SeqCst) {
                return Box::pin(async { Err(StoreError::Full("no space".into())) });
            }
            self.0.txn(guards, ops)
        }

        fn watch(&self, prefix: &str, after: u64) -> Watch {
            self.0.watch(prefix, after)
        }

        fn status(&self) -> Status {
            self.0.status()
        }
    }

    const AT: Timestamp = Timestamp(1000);
    const ONE: RevisionNumber = RevisionNumber(1);
    const TWO: RevisionNumber = RevisionNumber(2);

    fn refuse(records: &Records) -> Result<bool, RecordsError> {
        block_on(records.refuse(&name(), TWO, Why::Died, "it died".into(), Some(ONE), AT))
    }

    #[test]
    fn a_refusal_that_the_store_does_not_take_is_kept_to_until_it_does() {
        let store = Arc::new(Full(MemoryStore::default(), AtomicBool::new(false)));
        let records = Records::new(store.clone());
        deploy(&records, "a");
        block_on(records.prove(&name(), ONE, AT)).unwrap();
        deploy(&records, "b");
        store.1.store(true, Ordering::SeqCst);
        let action = FleetAction::Refuse {
            service: name(),
            revision: TWO,
            why: Why::Died,
            detail: "it died".into(),
            back_to: Some(ONE),
        };
        let mut unwritten = Unwritten::default();
        unwritten.keep(&action, &refuse(&records).unwrap_err(), AT);
        assert_eq!(unwritten.actions(), std::slice::from_ref(&action));

        let read = || block_on(records.load()).unwrap().0;
        let planned = unwritten.overlay(read());
        assert_eq!(read().services[&name()].record.wanted, TWO, "the store is as it was");
        let service = &planned.services[&name()];
        assert_eq!(service.record.wanted, ONE);
        assert!(matches!(service.revisions[&TWO].state, RevisionState::Refused(_)));
        let plan = crate::plan::fleet::fleet(&planned, &FleetView::default(), Millis(0));
        let [FleetAction::Assign { assignment }] = &*plan.actions else {
            panic!("{:?}", plan.actions);
        };
        let groups = &assignment.services[&name()].groups;
        assert_eq!(groups.keys().collect::<Vec<_>>(), [&ONE], "nothing starts of it");

        store.1.store(false, Ordering::SeqCst);
        assert!(refuse(&records).unwrap());
        let read = read();
        assert!(Arc::ptr_eq(&unwritten.overlay(read.clone()), &read));
        assert!(unwritten.actions().is_empty(), "written: forgotten");
    }

    #[test]
    fn a_refusal_that_the_store_would_never_take_is_not_kept() {
        let action = FleetAction::Refuse {
            service: name(),
            revision: TWO,
            why: Why::Died,
            detail: String::new(),
            back_to: None,
        };
        let mut unwritten = Unwritten::default();
        unwritten.keep(&action, &RecordsError::NoService(name()), AT);
        assert!(unwritten.actions().is_empty());
        unwritten.keep(&action, &StoreError::Closed.into(), AT);
        unwritten.give_up(&action, &StoreError::Closed.into());
        assert_eq!(unwritten.actions().len(), 1);
        unwritten.give_up(&action, &RecordsError::NoService(name()));
        assert!(unwritten.actions().is_empty());
    }
}
