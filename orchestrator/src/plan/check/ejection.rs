//! The law of ejection: out for its own failures, a share at most of the service and of each revision, never all, and back in time.

use std::collections::{BTreeMap, BTreeSet};

use super::{Found, Law};
use crate::model::service::Amount;
use crate::model::{Millis, Phase, Replica, ReplicaId, RevisionNumber, ServiceName};
use crate::plan::{Assignment, NodeAction, NodeView, Plan};

/// What a plan makes of the replicas of one service.
#[derive(Default)]
struct After {
    serving: u32,
    ejected: u32,
    /// For the service the smallest share holds, for each revision its own.
    revisions: BTreeMap<RevisionNumber, OfRevision>,
}

struct OfRevision {
    serving: u64,
    ejected: u64,
    share: Amount,
}

/// So many of `serving` may be out.
fn most(serving: u64, share: Amount) -> u64 {
    let share = match share {
        Amount::Count(n) => u64::from(n),
        Amount::Percent(p) => serving * u64::from(p) / 100,
    };
    share.min(serving.saturating_sub(1))
}

pub(super) fn breaches(
    found: &mut Found,
    assigned: &Assignment,
    before: &NodeView,
    plan: &Plan<NodeAction>,
    now: Millis,
) {
    let mut leave: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut ejected: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut back: BTreeSet<ReplicaId> = BTreeSet::new();
    for action in &plan.actions {
        match action {
            NodeAction::Eject { replica, .. } => drop(ejected.insert(*replica)),
            NodeAction::Return { replica } => drop(back.insert(*replica)),
            NodeAction::Withdraw { replica }
            | NodeAction::Kill { replica, .. }
            | NodeAction::Drain { replica, .. }
            | NodeAction::Stop { replica } => drop(leave.insert(*replica)),
            _ => {}
        }
    }
    let mut after: BTreeMap<&ServiceName, After> = BTreeMap::new();
    for replica in before
        .replicas
        .iter()
        .filter(|r| is_serving(r) && !leave.contains(&r.id))
    {
        let Some(group) = assigned
            .services
            .get(&replica.service)
            .and_then(|a| a.groups.get(&replica.revision))
        else {
            continue;
        };
        let traffic = &group.revision.spec.traffic;
        let of = after.entry(&replica.service).or_default();
        of.serving += 1;
        let of_revision = of.revisions.entry(replica.revision).or_insert(OfRevision {
            serving: 0,
            ejected: 0,
            share: traffic.max_ejected,
        });
        of_revision.serving += 1;
        let was = replica.ejected_until.is_some();
        if ejected.contains(&replica.id) {
            let failed = !was && replica.consecutive_failures >= traffic.consecutive_failures.max(1);
            found.replica(failed, Law::Ejection, replica, || "ejected without its failures".into());
        }
        found.replica(!back.contains(&replica.id) || was, Law::Ejection, replica, || {
            "comes back, but was not ejected".into()
        });
        let is = ejected.contains(&replica.id) || was && !back.contains(&replica.id);
        of.ejected += u32::from(is);
        of_revision.ejected += u64::from(is);
        if let (Some(until), true) = (replica.ejected_until, is) {
            let woken = now < until && plan.wake_at.is_some_and(|at| at <= until);
            found.replica(woken, Law::Ejection, replica, || "stays ejected past its time".into());
        }
    }
    for (name, of) in after {
        let serving = u64::from(of.serving);
        let most_of_all = of.revisions.values().map(|r| most(serving, r.share)).min().unwrap_or(0);
        found.unless(u64::from(of.ejected) <= most_of_all, Law::Ejection, name, || {
            format!(
                "{} of {} are ejected, at most {most_of_all} may be",
                of.ejected, of.serving
            )
        });
        for (number, r) in &of.revisions {
            let most = most(r.serving, r.share);
            found.unless(r.ejected <= most, Law::Ejection, name, || {
                format!(
                    "{} of {} of revision {number} are ejected, at most {most} may be",
                    r.ejected, r.serving
                )
            });
        }
    }
}

fn is_serving(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Serving { .. })
}
