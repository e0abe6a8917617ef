//! The arithmetic of "new beside old": how many of each may be there. Numbers only; knows no replica and no service.

use crate::model::service::Rollout;

/// What `[rollout]` allows for a change, already made workable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Replicas beyond the wanted ones.
    pub surge: u32,
    /// Wanted ones that may be missing.
    pub unavailable: u32,
}

impl Room {
    /// Room for a change towards `new` replicas where up to `most` served before. A change must be able to move and must
    /// keep one serving: at least one replica of surge when none may be missing, never all of them missing.
    pub fn of(rollout: &Rollout, new: u32, most: u32) -> Self {
        let unavailable = rollout.max_unavailable.of(most).min(most.saturating_sub(1));
        let surge = rollout.max_surge.of(new).max(u32::from(unavailable == 0));
        Self { surge, unavailable }
    }
}

/// What is there, counted without replicas that are leaving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Have {
    /// New ones in any state.
    pub new: u32,
    /// New ones that served long enough to count.
    pub counted: u32,
    /// Old ones in the routes that may also be started again (the stable revision, the older generation).
    pub stable_serving: u32,
    /// Old ones in the routes of revisions that may not be started.
    pub retiring_serving: u32,
}

/// How many there should be now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub new: u32,
    pub stable: u32,
    pub retiring: u32,
}

/// One step from old to new. `wanted`: new replicas in the end; `stable`: what the old ones were (0: there is no stable
/// to start). The sum stays within `max(wanted, stable) + surge`; with old ones serving and no new one counted, at least
/// one old one is kept.
pub(crate) fn step(wanted: u32, stable: u32, room: Room, have: Have) -> Share {
    let most = wanted.max(stable);
    let cap = most.saturating_add(room.surge);
    let needed = if have.counted >= wanted {
        0
    } else {
        most.saturating_sub(room.unavailable)
            .saturating_sub(have.counted)
            .max(u32::from(have.counted == 0))
    };
    let old_serves = have.stable_serving + have.retiring_serving > 0;
    let held = have.new.min(wanted).min(if have.counted == 0 && old_serves {
        cap.saturating_sub(1)
    } else {
        cap
    });
    let left = cap - held;
    let retiring = have
        .retiring_serving
        .min(needed.saturating_sub(have.stable_serving))
        .min(left);
    let stable = (needed - retiring).min(stable).min(left - retiring);
    Share {
        new: wanted.min(cap - retiring - stable),
        stable,
        retiring,
    }
}

/// A step that is not taken further: no more new ones than there are, and old ones in place of those that are missing.
pub(crate) fn halt(share: Share, most: u32, stable: u32, have: Have) -> Share {
    let new = share.new.min(have.new.max(1));
    let kept = most.saturating_sub(new).saturating_sub(share.retiring);
    Share {
        new,
        stable: share.stable.max(kept.min(stable)),
        retiring: share.retiring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::Amount;

    fn rollout(surge: Amount, unavailable: u32) -> Rollout {
        Rollout {
            max_surge: surge,
            max_unavailable: Amount::Count(unavailable),
            ..Rollout::default()
        }
    }

    #[test]
    fn nothing_surplus_and_nothing_missing_still_leaves_room_to_move() {
        assert_eq!(
            Room::of(&rollout(Amount::Count(0), 0), 3, 3),
            Room {
                surge: 1,
                unavailable: 0
            }
        );
        assert_eq!(
            Room::of(&rollout(Amount::Count(0), 1), 1, 1),
            Room {
                surge: 1,
                unavailable: 0
            }
        );
        assert_eq!(
            Room::of(&rollout(Amount::Count(0), 9), 3, 3),
            Room {
                surge: 0,
                unavailable: 2
            }
        );
        assert_eq!(
            Room::of(&rollout(Amount::Percent(50), 0), 3, 3),
            Room {
                surge: 2,
                unavailable: 0
            }
        );
    }

    #[test]
    fn every_step_keeps_one_serving_stays_in_the_cap_and_the_last_leaves_no_old_one() {
        for wanted in 1..5 {
            for old in 0..5_u32 {
                for surge in 0..3 {
                    for unavailable in 0..3 {
                        let room = Room::of(&rollout(Amount::Count(surge), unavailable), wanted, wanted.max(old));
                        let mut have = Have {
                            stable_serving: old,
                            ..Have::default()
                        };
                        for _ in 0..50 {
                            let share = step(wanted, old, room, have);
                            assert!(share.new + share.stable + share.retiring <= wanted.max(old) + room.surge);
                            let serving = share.stable.min(have.stable_serving) + share.new.min(have.counted);
                            assert!(old == 0 || serving > 0, "{wanted} {old} {room:?} {have:?} {share:?}");
                            have = Have {
                                new: share.new,
                                counted: share.new,
                                stable_serving: share.stable,
                                ..have
                            };
                        }
                        assert_eq!(
                            (have.counted, have.stable_serving),
                            (wanted, 0),
                            "{wanted} {old} {room:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn new_ones_that_stopped_counting_bring_the_old_ones_back_within_the_cap() {
        let room = Room {
            surge: 1,
            unavailable: 0,
        };
        let share = step(
            3,
            3,
            room,
            Have {
                new: 3,
                counted: 1,
                stable_serving: 0,
                retiring_serving: 0,
            },
        );
        assert_eq!(
            share,
            Share {
                new: 3,
                stable: 1,
                retiring: 0
            }
        );
    }

    #[test]
    fn a_superseded_revision_that_serves_is_kept_until_the_newer_one_does() {
        let room = Room {
            surge: 3,
            unavailable: 0,
        };
        let share = step(
            3,
            3,
            room,
            Have {
                retiring_serving: 3,
                ..Have::default()
            },
        );
        assert_eq!(
            share,
            Share {
                new: 3,
                stable: 0,
                retiring: 3
            }
        );
    }
}
