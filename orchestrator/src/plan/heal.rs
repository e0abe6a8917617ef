//! What becomes of a dead replica: start it again, wait, or leave it. Back-off, crash-loop and restart policies are pure
//! functions of the replica's record; the jitter comes from a seed.

use std::time::Duration;

use super::Group;
use super::trial;
use crate::model::service::{Restart, RestartPolicy};
use crate::model::time::millis;
use crate::model::{Death, Millis, Replica, ReplicaId};

/// Between the starts of a revision on trial: its verdict should come fast.
pub const TRIAL_GAP: Duration = Duration::from_millis(10);

/// Room may come back at any moment, and a start without room costs next to nothing.
pub const MEMORY_WAIT: Duration = Duration::from_secs(1);

/// The decision about one dead replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heal {
    Restart,
    /// Start it again then, after `delay` in all.
    Wait {
        until: Millis,
        delay: Duration,
    },
    /// It stays dead; a reason for people.
    Stay(&'static str),
}

/// What to do with `replica`, which died at `at` of `death` and is wanted.
pub fn heal(group: &Group, replica: &Replica, at: Millis, death: &Death, seed: u64, now: Millis) -> Heal {
    let restart = &group.revision.spec.restart;
    if group.on_trial && trial::evidence(&group.revision, replica, Millis(0)).is_some() {
        return Heal::Stay("its revision is about to be refused");
    }
    let delay = match (restart.policy, death) {
        // It never lived: trying again is no restart.
        (_, Death::NoMemory) => delay(restart, replica, seed).min(MEMORY_WAIT),
        (RestartPolicy::Never, _) => return Heal::Stay("restart.policy is never"),
        (RestartPolicy::OnFailure, Death::Exited { code: 0 }) => {
            return Heal::Stay("it ended with success and restart.policy is on-failure");
        }
        (_, Death::StartTrapped { .. }) if group.on_trial => TRIAL_GAP,
        _ => delay(restart, replica, seed),
    };
    let until = at.plus(delay);
    if now >= until {
        Heal::Restart
    } else {
        Heal::Wait { until, delay }
    }
}

/// So many deaths in so short a time that it is retried slowly. True from the death that reached the limit.
pub fn crash_looping(restart: &Restart, replica: &Replica) -> bool {
    replica.crash_loop || reached_crash_loop(restart, replica)
}

/// The newest deaths reach `give_up`.
pub fn reached_crash_loop(restart: &Restart, replica: &Replica) -> bool {
    let Ok(limit) = usize::try_from(restart.give_up_restarts) else {
        return false;
    };
    let (Some(newest), true) = (replica.deaths.last(), limit > 0) else {
        return false;
    };
    replica.deaths.len() >= limit
        && newest.since(replica.deaths[replica.deaths.len() - limit]) <= restart.give_up_within
}

/// How long it stays dead: exactly `initial` after the first death, then `factor` times more up to `max`, each between
/// half and all of that when `jitter` is on; `max` in crash-loop.
pub fn delay(restart: &Restart, replica: &Replica, seed: u64) -> Duration {
    let looping = crash_looping(restart, replica);
    if replica.restarts <= 1 && !looping {
        return restart.initial.min(restart.max);
    }
    let whole = if looping {
        restart.max
    } else {
        grown(restart, replica.restarts - 1)
    };
    if restart.jitter {
        jittered(whole, seed, replica.id, replica.restarts)
    } else {
        whole
    }
}

/// How long a job waits after its `failures`th failed attempt: grown as the wait of a replica. `of` spreads the runs.
pub fn backoff(restart: &Restart, failures: u32, of: u64, seed: u64) -> Duration {
    if failures <= 1 {
        return restart.initial.min(restart.max);
    }
    let whole = grown(restart, failures - 1);
    if restart.jitter {
        jittered(whole, seed, ReplicaId(of), failures)
    } else {
        whole
    }
}

/// `initial * factor ^ steps`, at most `max`.
fn grown(restart: &Restart, steps: u32) -> Duration {
    /// Beyond so many steps even a factor of 1.05 has grown a billion times; a factor of 1 never grows.
    const STEPS: u32 = 512;
    let max = restart.max.as_micros();
    let mut micros = restart.initial.as_micros().min(max);
    for _ in 0..steps.min(STEPS) {
        micros = micros.saturating_mul(restart.factor_milli.into()) / 1_000;
        if micros >= max {
            return restart.max;
        }
    }
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).max(restart.initial.min(restart.max))
}

/// Between half and all of `whole`, in whole milliseconds.
fn jittered(whole: Duration, seed: u64, id: ReplicaId, restarts: u32) -> Duration {
    let x = mix(seed ^ mix(id.0 ^ mix(restarts.into())));
    let ms = millis(whole);
    let half = ms / 2;
    Duration::from_millis(half + x % (ms - half + 1))
}

/// SplitMix64's finisher: every bit of the input reaches every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RevisionNumber;
    use crate::plan::facts;

    fn dead(restarts: u32) -> Replica {
        let mut r = facts::created(ReplicaId(7), "hello".parse().unwrap(), RevisionNumber(1), 0, Millis(0));
        r.restarts = restarts;
        r
    }

    #[test]
    fn the_first_restart_comes_after_exactly_ten_milliseconds_whatever_the_seed() {
        for seed in 0..100 {
            assert_eq!(delay(&Restart::default(), &dead(1), seed), Duration::from_millis(10));
        }
    }

    #[test]
    fn back_off_doubles_to_its_maximum_and_jitter_takes_at_most_half() {
        let plain = Restart {
            jitter: false,
            ..Restart::default()
        };
        let waits: Vec<_> = (1..=14).map(|n| delay(&plain, &dead(n), 1).as_millis()).collect();
        assert_eq!(
            waits,
            [
                10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480, 30000, 30000
            ]
        );
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let d = delay(&Restart::default(), &dead(5), seed).as_millis();
            assert!((80..=160).contains(&d), "{d}");
            seen.insert(d);
        }
        assert!(seen.len() > 40, "the seed matters");
    }

    #[test]
    fn strange_factors_and_counts_neither_spin_nor_overflow() {
        for factor_milli in [0, 1, 999, 1000, 1001, u32::MAX] {
            let restart = Restart {
                factor_milli,
                jitter: false,
                ..Restart::default()
            };
            let d = delay(&restart, &dead(u32::MAX), 1);
            assert!(d >= restart.initial && d <= restart.max, "{factor_milli}: {d:?}");
        }
        let never = Restart {
            give_up_restarts: 0,
            ..Restart::default()
        };
        assert!(!reached_crash_loop(&never, &dead(9)));
    }

    #[test]
    fn ten_deaths_count_as_a_crash_loop_only_within_the_time() {
        let mut r = dead(10);
        r.deaths = (0..10).map(|n| Millis(n * 33_000)).collect();
        assert!(reached_crash_loop(&Restart::default(), &r));
        r.deaths = (0..10).map(|n| Millis(n * 34_000)).collect();
        assert!(!reached_crash_loop(&Restart::default(), &r));
    }
}
