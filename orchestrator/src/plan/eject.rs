//! Passive outlier ejection: which replicas leave the routes because their calls keep failing, and when they come back.
//! Decided from what the balancer counted; sends nothing. Clients can make calls fail, so that ejection never empties a
//! service: a share may be out, never all, and one replica alone never is. So it is with each revision of a service too: a
//! canary stays where its gates see it, and what is left of the stable one where the canary does not get all requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Group, health};
use crate::model::service::Amount;
use crate::model::{Millis, Phase, Replica, ReplicaId, RevisionNumber};

/// Ejections in a row get longer, up to this (or to `eject`, where that is more).
pub(crate) const MOST: Duration = Duration::from_secs(300);

/// What becomes of the replicas of one service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outliers {
    pub eject: Vec<(ReplicaId, Millis)>,
    pub back: Vec<ReplicaId>,
    /// When the next one comes back.
    pub wake: Option<Millis>,
    /// They would be ejected, if others were not already.
    pub spared: Vec<ReplicaId>,
}

/// How many of `serving` may be out.
pub(crate) fn most(serving: usize, share: Amount) -> usize {
    let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let share = match share {
        Amount::Count(n) => number(n),
        Amount::Percent(p) => serving.saturating_mul(number(p)) / 100,
    };
    share.min(serving.saturating_sub(1))
}

/// How long the ejection after `before` others lasts.
pub(crate) fn span(eject: Duration, before: u32) -> Duration {
    eject.saturating_mul(before.saturating_add(1)).min(MOST.max(eject))
}

/// How many more may be out.
struct Room {
    service: usize,
    revisions: BTreeMap<RevisionNumber, usize>,
}

impl Room {
    fn of(serving: &[&(&Group, &Replica)]) -> Self {
        let mut revisions: BTreeMap<RevisionNumber, (usize, Amount)> = BTreeMap::new();
        for (group, replica) in serving {
            let share = group.revision.spec.traffic.max_ejected;
            revisions.entry(replica.revision).or_insert((0, share)).0 += 1;
        }
        let of_all = revisions.values().map(|(_, share)| most(serving.len(), *share));
        Self {
            service: of_all.min().unwrap_or(0),
            revisions: revisions
                .iter()
                .map(|(n, (of_it, share))| (*n, most(*of_it, *share)))
                .collect(),
        }
    }

    /// False: no further one of this revision.
    fn take(&mut self, revision: RevisionNumber) -> bool {
        let left = self
            .revisions
            .get_mut(&revision)
            .filter(|left| **left > 0 && self.service > 0);
        let Some(left) = left else { return false };
        *left -= 1;
        self.service -= 1;
        true
    }
}

/// `stay`: the replicas of one service that stay, with their groups.
pub(crate) fn outliers(stay: &[(&Group, &Replica)], now: Millis) -> Outliers {
    let mut out = Outliers::default();
    let in_routes = |(group, replica): &&(&Group, &Replica)| {
        matches!(replica.phase, Phase::Serving { .. }) && !health::leaves(group, replica, now)
    };
    let serving: Vec<_> = stay.iter().filter(in_routes).collect();
    let mut room = Room::of(&serving);
    let (mut out_now, mut active): (Vec<_>, Vec<_>) = serving.into_iter().partition(|(_, r)| r.ejected_until.is_some());
    // The first to come back first; with others gone, more than may be out are needed before their time.
    out_now.sort_by_key(|(_, r)| (r.ejected_until, r.id));
    for (_, replica) in out_now.into_iter().rev() {
        match replica.ejected_until {
            Some(until) if now < until && room.take(replica.revision) => {
                out.wake = Some(out.wake.map_or(until, |w| w.min(until)));
            }
            _ => out.back.push(replica.id),
        }
    }
    out.back.reverse();
    active.sort_by_key(|(_, r)| r.id);
    for (group, replica) in active {
        let traffic = &group.revision.spec.traffic;
        if replica.consecutive_failures < traffic.consecutive_failures.max(1) {
            continue;
        }
        if !room.take(replica.revision) {
            out.spared.push(replica.id);
            continue;
        }
        let before = if super::facts::healthy(replica, now) {
            0
        } else {
            replica.ejections
        };
        let until = now.plus(span(traffic.eject, before));
        out.eject.push((replica.id, until));
        out.wake = Some(out.wake.map_or(until, |w| w.min(until)));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::world::{Guest, World};

    /// `n` serving replicas, and a group of them with this share.
    fn serving(n: u32, percent: u32) -> (Group, Vec<Replica>) {
        let world = World::with_serving("hello", Guest::default(), n);
        let assigned = &world.view.assigned.services[&"hello".parse().unwrap()];
        let mut group = assigned.groups.values().next().unwrap().clone();
        let mut revision = (*group.revision).clone();
        revision.spec.traffic.max_ejected = Amount::Percent(percent);
        group.revision = Arc::new(revision);
        (group, world.replicas().to_vec())
    }

    fn decide(group: &Group, replicas: &[Replica], now: u64) -> Outliers {
        let stay: Vec<_> = replicas.iter().map(|r| (group, r)).collect();
        outliers(&stay, Millis(now))
    }

    #[test]
    fn never_more_than_the_share_and_never_all() {
        for n in 1..=9_u32 {
            for percent in [0, 10, 34, 50, 99, 100] {
                let (group, mut replicas) = serving(n, percent);
                for replica in &mut replicas {
                    replica.consecutive_failures = 100;
                }
                let out = decide(&group, &replicas, 1_000_000);
                let share = usize::try_from(n * percent / 100).unwrap();
                assert!(out.eject.len() <= share, "{n} at {percent} %");
                assert!(out.eject.len() < replicas.len(), "{n} at {percent} %");
                assert_eq!(out.eject.len() + out.spared.len(), replicas.len());
            }
        }
    }

    #[test]
    fn one_alone_is_never_ejected_and_one_of_two_is() {
        let (group, mut alone) = serving(1, 100);
        alone[0].consecutive_failures = 5;
        assert!(decide(&group, &alone, 0).eject.is_empty());
        let (group, mut two) = serving(2, 50);
        two[1].consecutive_failures = 5;
        let out = decide(&group, &two, 7_000);
        assert_eq!(out.eject, [(two[1].id, Millis(17_000))]);
        assert_eq!(out.wake, Some(Millis(17_000)));
        two[1].consecutive_failures = 4;
        assert_eq!(decide(&group, &two, 7_000), Outliers::default());
    }

    #[test]
    fn no_revision_is_ejected_whole_however_many_others_serve() {
        let (group, mut three) = serving(3, 100);
        let mut newer = (*group.revision).clone();
        newer.number = RevisionNumber(2);
        let canary = Group {
            revision: Arc::new(newer),
            ..group.clone()
        };
        three[2].revision = RevisionNumber(2);
        for replica in &mut three {
            replica.consecutive_failures = 100;
        }
        let out = |replicas: &[Replica], now| {
            let of = |r: &Replica| {
                if r.revision.0 == 2 {
                    canary.clone()
                } else {
                    group.clone()
                }
            };
            let groups: Vec<_> = replicas.iter().map(of).collect();
            outliers(&groups.iter().zip(replicas).collect::<Vec<_>>(), Millis(now))
        };
        let ids = |n: &[usize]| n.iter().map(|at| three[*at].id).collect::<Vec<_>>();
        let found = out(&three, 0);
        assert_eq!(found.eject.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids(&[0]));
        assert_eq!(found.spared, ids(&[1, 2]), "the last of each revision");
        assert!(out(&three[1..], 0).eject.is_empty(), "one stable and one canary");
        let mut ejected = three.clone();
        ejected[1].ejected_until = Some(Millis(9_000));
        assert_eq!(out(&ejected[1..], 0).back, ids(&[1]), "the other stable one is gone");
    }

    #[test]
    fn it_comes_back_at_its_time_or_when_the_others_are_gone() {
        let (group, mut two) = serving(2, 50);
        two[0].ejected_until = Some(Millis(9_000));
        assert_eq!(decide(&group, &two, 8_999).back, []);
        assert_eq!(decide(&group, &two, 9_000).back, [two[0].id]);
        assert_eq!(decide(&group, &two[..1], 8_000).back, [two[0].id], "it is the last one");
    }

    #[test]
    fn each_ejection_in_a_row_is_longer_and_none_is_for_ever() {
        let ten = Duration::from_secs(10);
        assert_eq!([0, 1, 5].map(|n| span(ten, n).as_secs()), [10, 20, 60]);
        assert_eq!(span(ten, u32::MAX), MOST);
        assert_eq!(span(MOST * 2, 7), MOST * 2);
    }
}
