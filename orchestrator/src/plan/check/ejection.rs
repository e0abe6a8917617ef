//! The law of ejection: out for its own failures, a share at most, never all, and back in time.

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
    /// By revision; the smallest holds.
    shares: BTreeMap<RevisionNumber, Amount>,
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
        of.shares.insert(replica.revision, traffic.max_ejected);
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
        if let (Some(until), true) = (replica.ejected_until, is) {
            let woken = now < until && plan.wake_at.is_some_and(|at| at <= until);
            found.replica(woken, Law::Ejection, replica, || "stays ejected past its time".into());
        }
    }
    for (name, of) in after {
        let serving = u64::from(of.serving);
        let share = |share: &Amount| match share {
            Amount::Count(n) => u64::from(*n),
            Amount::Percent(p) => serving * u64::from(*p) / 100,
        };
        let most = of
            .shares
            .values()
            .map(share)
            .min()
            .unwrap_or(0)
            .min(serving.saturating_sub(1));
        found.unless(u64::from(of.ejected) <= most, Law::Ejection, name, || {
            format!("{} of {} are ejected, at most {most} may be", of.ejected, of.serving)
        });
    }
}

fn is_serving(replica: &Replica) -> bool {
    matches!(replica.phase, Phase::Serving { .. })
}
