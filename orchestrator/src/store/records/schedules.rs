//! What is kept of schedules: which times are done with, what is paused, how it went; and the numbers of replicas they hold in a
//! service's record. Decides nothing: what is due is `plan::schedule`'s business.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Guard, Item, Op, Records, RecordsError, TRIES, Txn, body, broken, encode, service_key};
use crate::model::schedule::{Hold, Schedule, ScheduleState, Schedules};
use crate::model::{ServiceName, ServiceRecord, Timestamp};

const SCHEDULES: &str = "schedules/";

/// States of the last `load`, by key, with the store revision that wrote each.
pub(super) type ParsedSchedules = Mutex<BTreeMap<Arc<str>, (u64, Arc<ScheduleState>)>>;

impl Records {
    /// From `at` on its times count. What was known of it stays: its history, and whether it is paused.
    ///
    /// # Errors
    /// The service is not there or is being deleted.
    pub async fn begin_schedule(
        &self,
        service: &ServiceName,
        schedule: &Schedule,
        at: Timestamp,
    ) -> Result<(), RecordsError> {
        let key = schedule_key(service, &schedule.name);
        for _ in 0..TRIES {
            let held = self.held(service).await?;
            if held.record.deleting {
                return Err(RecordsError::Deleting(service.clone()));
            }
            let mut txn = Txn {
                guards: vec![Guard::modified(service_key(service), held.modified)],
                ops: Vec::new(),
            };
            let found = self.store.get(&key).await?;
            let state = match &found {
                None => {
                    txn.guards.push(Guard::absent(key.clone()));
                    ScheduleState::new(service.clone(), schedule, at)
                }
                Some(item) => {
                    txn.guards.push(Guard::modified(key.clone(), item.modified));
                    ScheduleState {
                        when: schedule.when.clone(),
                        timezone: schedule.timezone.clone(),
                        handled: at,
                        gone: false,
                        ..body(item)?
                    }
                }
            };
            txn.ops.push(Op::put(key.clone(), encode(&state)));
            if self.commit(txn).await? {
                return Ok(());
            }
        }
        Err(RecordsError::Contended(service.clone()))
    }

    /// Reads what is kept of a schedule, lets `change` edit it and writes it, if nobody else did in between; else again. With
    /// `hold` the service's record gets it in the same transaction.
    ///
    /// # Errors
    /// Nothing is kept of such a schedule, or the service is being deleted.
    pub async fn edit_schedule(
        &self,
        service: &ServiceName,
        schedule: &str,
        hold: Option<&Hold>,
        at: Timestamp,
        change: impl Fn(&mut ScheduleState),
    ) -> Result<ScheduleState, RecordsError> {
        let key = schedule_key(service, schedule);
        for _ in 0..TRIES {
            let item = self.store.get(&key).await?;
            let item = item.ok_or_else(|| RecordsError::NoSchedule(service.clone(), schedule.to_owned()))?;
            let old: ScheduleState = body(&item)?;
            let mut state = old.clone();
            change(&mut state);
            let mut txn = Txn {
                guards: vec![Guard::modified(key.clone(), item.modified)],
                ops: vec![Op::put(key.clone(), encode(&state))],
            };
            if let Some(hold) = hold {
                let held = self.held(service).await?;
                if held.record.deleting {
                    return Err(RecordsError::Deleting(service.clone()));
                }
                let mut record = held.record;
                crate::plan::schedule::held(&mut record, hold.clone());
                record.changed_at = at;
                txn.guards.push(Guard::modified(service_key(service), held.modified));
                txn.put_service(&record);
            } else if state == old {
                return Ok(state);
            }
            if self.commit(txn).await? {
                return Ok(state);
            }
        }
        Err(RecordsError::Contended(service.clone()))
    }

    /// The number of replicas of one firing does not hold any more.
    ///
    /// # Errors
    /// The service is not there.
    pub async fn expire_schedule(
        &self,
        service: &ServiceName,
        schedule: &str,
        due: Timestamp,
        at: Timestamp,
    ) -> Result<ServiceRecord, RecordsError> {
        self.update(service, at, |record| {
            crate::plan::schedule::expired(record, schedule, due);
            Ok::<_, RecordsError>(())
        })
        .await
    }

    /// Nothing is known of it any more.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn forget_schedule(&self, service: &ServiceName, schedule: &str) -> Result<(), RecordsError> {
        let txn = Txn {
            guards: Vec::new(),
            ops: vec![Op::delete(schedule_key(service, schedule))],
        };
        self.commit(txn).await.map(|_| ())
    }

    /// The states among all items of a snapshot.
    pub(super) fn load_schedules(&self, items: &[Item]) -> Result<Schedules, RecordsError> {
        let from = items.partition_point(|item| *item.key < *SCHEDULES);
        let mut known = self.parsed_schedules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parsed = BTreeMap::new();
        let mut by_service = Schedules::new();
        for item in items[from..].iter().take_while(|item| item.key.starts_with(SCHEDULES)) {
            let state = match known.get(&item.key) {
                Some((modified, state)) if *modified == item.modified => Arc::clone(state),
                _ => Arc::new(body::<ScheduleState>(item)?),
            };
            if *item.key != *schedule_key(&state.service, &state.name) {
                return Err(broken(&item.key, "it names another schedule"));
            }
            parsed.insert(Arc::clone(&item.key), (item.modified, Arc::clone(&state)));
            by_service
                .entry(state.service.clone())
                .or_default()
                .insert(state.name.clone(), state);
        }
        *known = parsed;
        Ok(by_service)
    }

    /// Keys of everything kept of the schedules of a service that is being forgotten.
    pub(super) async fn schedule_keys(&self, service: &ServiceName) -> Result<Vec<Arc<str>>, RecordsError> {
        let items = self.store.list(&format!("{SCHEDULES}{service}/")).await?.items;
        Ok(items.into_iter().map(|item| item.key).collect())
    }
}

fn schedule_key(service: &ServiceName, schedule: &str) -> String {
    format!("{SCHEDULES}{service}/{schedule}")
}

#[cfg(test)]
mod tests {
    use super::super::NewRevision;
    use super::*;
    use crate::store::MemoryStore;

    const FILE: &str = "name = \"a\"\nmodule = \"a.wasm\"\nroutes = [\"/\"]\n[[schedule]]\nname = \"day\"\ncron = \"0 2 * * *\"\nreplicas = 9\n";

    async fn deployed() -> (Records, ServiceName, Schedule) {
        let records = Records::new(Arc::new(MemoryStore::default()));
        let spec = crate::config::service(FILE, "a.toml").unwrap().spec;
        let (name, schedule) = (spec.name.clone(), spec.schedules[0].clone());
        let new = NewRevision {
            digest: narae_runtime::Digest::of(b"a"),
            kind: narae_runtime::Kind::Http02,
            spec,
            source: FILE.into(),
            cause: "deploy".into(),
            secrets: std::collections::BTreeMap::new(),
            accepted: None,
        };
        records.deploy(new, None, Timestamp(1)).await.unwrap();
        (records, name, schedule)
    }

    #[tokio::test]
    async fn that_a_time_is_done_with_and_the_number_it_sets_are_written_together_or_not_at_all() {
        let (records, name, schedule) = deployed().await;
        let hold = Hold {
            schedule: "day".into(),
            replicas: crate::model::ReplicaCount::new(9).unwrap(),
            due: Timestamp(50),
            until: None,
        };
        let missing = records
            .edit_schedule(&name, "day", Some(&hold), Timestamp(50), |s| s.handled = Timestamp(50))
            .await;
        assert!(matches!(missing, Err(RecordsError::NoSchedule(..))));
        assert!(records.service(&name).await.unwrap().scheduled.is_empty());
        records.begin_schedule(&name, &schedule, Timestamp(10)).await.unwrap();
        records
            .edit_schedule(&name, "day", Some(&hold), Timestamp(50), |s| s.handled = Timestamp(50))
            .await
            .unwrap();
        let (desired, _) = records.load().await.unwrap();
        assert_eq!(desired.state_of(&name, "day").unwrap().handled, Timestamp(50));
        let record = &desired.services[&name].record;
        assert_eq!(record.scheduled, std::slice::from_ref(&hold));
        let revision = &desired.services[&name].revisions[&record.wanted];
        assert_eq!(crate::plan::fleet::wanted_replicas(record, revision, None), 9);
        records
            .expire_schedule(&name, "day", Timestamp(50), Timestamp(60))
            .await
            .unwrap();
        assert!(records.service(&name).await.unwrap().scheduled.is_empty());
    }

    #[tokio::test]
    async fn scale_by_hand_ends_what_schedules_hold() {
        let (records, name, schedule) = deployed().await;
        records.begin_schedule(&name, &schedule, Timestamp(10)).await.unwrap();
        let nine = crate::model::ReplicaCount::new(9).unwrap();
        let hold = Hold {
            schedule: "day".into(),
            replicas: nine,
            due: Timestamp(50),
            until: None,
        };
        records
            .edit_schedule(&name, "day", Some(&hold), Timestamp(50), |_| {})
            .await
            .unwrap();
        let record = records.scale(&name, nine, Timestamp(60)).await.unwrap();
        assert!(record.scheduled.is_empty() && record.scaled == Some(nine));
    }

    #[tokio::test]
    async fn what_is_known_stays_when_it_begins_anew_and_goes_with_the_service() {
        let (records, name, schedule) = deployed().await;
        records.begin_schedule(&name, &schedule, Timestamp(10)).await.unwrap();
        records
            .edit_schedule(&name, "day", None, Timestamp(20), |s| s.paused = true)
            .await
            .unwrap();
        records.begin_schedule(&name, &schedule, Timestamp(30)).await.unwrap();
        let (desired, _) = records.load().await.unwrap();
        let state = desired.state_of(&name, "day").unwrap();
        assert_eq!((state.paused, state.handled), (true, Timestamp(30)));
        records.delete(&name, None, Timestamp(40)).await.unwrap();
        records.forget(&name).await.unwrap();
        let (desired, _) = records.load().await.unwrap();
        assert!(desired.schedules.is_empty());
    }
}
