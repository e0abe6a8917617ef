//! Whether the figures of a revision on trial speak against it. Numbers in, a sentence or silence out; knows no replica, no
//! step and no clock.

use std::time::Duration;

use serde::Serialize;

use super::rollout::Stage;
use super::words;
use crate::model::RevisionNumber;
use crate::model::service::{Compare, Gates};

/// What a revision did over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Measure {
    /// Requests that ended, other than by a client that left.
    pub requests: u64,
    /// Of these: answered with 500 or above, or failed.
    pub errors: u64,
    /// Of these: trapped, by itself or by a limit.
    pub traps: u64,
    /// 99 of 100 were answered within it.
    pub p99: Option<Duration>,
    /// Processor time of a request, the median.
    pub cpu: Option<Duration>,
}

/// The new and the stable revision over the same time: since this stage began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Measures {
    pub stage: Stage,
    pub new: Measure,
    pub stable: Measure,
}

impl Measures {
    /// Of both.
    pub(crate) fn requests(&self) -> u64 {
        self.new.requests.saturating_add(self.stable.requests)
    }
}

/// p99 comes from buckets a tenth wide: as slow as the stable one is within that.
const P99_SLACK_PERCENT: u128 = 112;

/// What speaks against the new revision, with the figures; none while there is too little to judge by. A gate that compares
/// waits until the stable one has `min_requests` too, where it serves at all; where it gets none (after a switch, or when there
/// is no older revision), the limits hold by themselves and processor time is not judged.
pub fn judge(gates: &Gates, new: &Measure, stable: Option<(RevisionNumber, &Measure)>) -> Option<String> {
    if new.requests < u64::from(gates.min_requests) {
        return None;
    }
    let stable = stable.filter(|(_, m)| gates.compare == Compare::Stable && m.requests > 0);
    if stable.is_some_and(|(_, m)| m.requests < u64::from(gates.min_requests)) {
        return None;
    }
    let rates = [
        ("error rate", gates.error_rate, (|m| m.errors) as fn(&Measure) -> u64),
        ("trap rate", gates.traps, |m| m.traps),
    ];
    for (name, limit, count) in rates {
        if exceeds(
            limit,
            (count(new), new.requests),
            stable.map(|(_, m)| (count(m), m.requests)),
        ) {
            let mut text = format!(
                "{name} {} ({} of {}), allowed {}",
                rate(count(new), new.requests),
                count(new),
                words::many(new.requests, "request"),
                words::share(limit)
            );
            if let Some((number, m)) = stable {
                text.push_str(&format!(
                    " beyond the {} of revision {number} ({} of {})",
                    rate(count(m), m.requests),
                    count(m),
                    m.requests
                ));
            }
            return Some(text);
        }
    }
    if let (Some(limit), Some(p99)) = (gates.p99, new.p99)
        && p99 > limit
    {
        let of_stable = stable.and_then(|(number, m)| Some((number, m.p99?)));
        let as_fast = of_stable.is_some_and(|(_, s)| p99.as_nanos() * 100 <= s.as_nanos() * P99_SLACK_PERCENT);
        if !as_fast {
            let against = of_stable.map_or_else(String::new, |(number, s)| {
                format!("; revision {number} has {}", words::fine(s))
            });
            return Some(format!(
                "p99 {} over {}, allowed {}{against}",
                words::fine(p99),
                words::many(new.requests, "request"),
                words::fine(limit)
            ));
        }
    }
    let (Some(limit), Some(cpu), Some((number, m))) = (gates.cpu, new.cpu, stable) else {
        return None;
    };
    let before = m.cpu?;
    let more = cpu.as_nanos() * 1000 > before.as_nanos() * (1000 + u128::from(limit));
    more.then(|| {
        format!(
            "processor time {} for a request (median of {}), allowed {} beyond the {} of revision {number}",
            words::fine(cpu),
            new.requests,
            words::share(limit),
            words::fine(before)
        )
    })
}

/// `of.0 / of.1` is over `limit` thousandths more than the stable one's rate. Exact.
fn exceeds(limit: u32, of: (u64, u64), stable: Option<(u64, u64)>) -> bool {
    let (bad, all) = (u128::from(of.0), u128::from(of.1));
    let (stable_bad, stable_all) = stable.map_or((0, 1), |(b, a)| (u128::from(b), u128::from(a.max(1))));
    bad * 1000 * stable_all > all * (u128::from(limit) * stable_all + stable_bad * 1000)
}

fn rate(n: u64, of: u64) -> String {
    let permille = n.saturating_mul(1000).checked_div(of).unwrap_or(0);
    words::share(u32::try_from(permille).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(requests: u64, errors: u64, traps: u64) -> Measure {
        Measure {
            requests,
            errors,
            traps,
            p99: Some(Duration::from_millis(10)),
            cpu: Some(Duration::from_micros(100)),
        }
    }

    const GATES: Gates = Gates {
        p99: Some(Duration::from_millis(250)),
        cpu: Some(200),
        ..Gates::DEFAULT
    };

    fn against(new: &Measure, stable: &Measure) -> Option<String> {
        judge(&GATES, new, Some((RevisionNumber(1), stable)))
    }

    #[test]
    fn too_few_requests_say_nothing_however_bad_they_are() {
        assert_eq!(against(&measure(99, 99, 99), &measure(5000, 0, 0)), None);
        assert_eq!(
            against(&measure(100, 100, 0), &measure(99, 0, 0)),
            None,
            "the stable one has too few"
        );
        assert!(against(&measure(100, 100, 0), &measure(100, 0, 0)).is_some());
    }

    #[test]
    fn errors_are_judged_beyond_those_of_the_stable_one_and_exactly() {
        let stable = measure(1000, 50, 0);
        assert_eq!(
            against(&measure(1000, 60, 0), &stable),
            None,
            "one point beyond is allowed"
        );
        assert_eq!(
            against(&measure(1000, 61, 0), &stable).as_deref(),
            Some("error rate 6.1 % (61 of 1000 requests), allowed 1 % beyond the 5 % of revision 1 (50 of 1000)")
        );
        let alone = judge(&GATES, &measure(1000, 11, 0), None);
        assert_eq!(
            alone.as_deref(),
            Some("error rate 1.1 % (11 of 1000 requests), allowed 1 %")
        );
        assert_eq!(judge(&GATES, &measure(1000, 10, 0), None), None);
    }

    #[test]
    fn a_stable_one_that_serves_no_more_is_not_waited_for() {
        assert!(against(&measure(100, 2, 0), &measure(0, 0, 0)).is_some());
    }

    #[test]
    fn traps_have_a_limit_of_their_own() {
        let gates = Gates {
            error_rate: 1000,
            ..GATES
        };
        let stable = measure(1000, 0, 0);
        let said = judge(&gates, &measure(1000, 2, 2), Some((RevisionNumber(1), &stable)));
        assert!(said.unwrap().starts_with("trap rate 0.2 %"));
        let said = judge(&gates, &measure(1000, 1, 1), Some((RevisionNumber(1), &stable)));
        assert_eq!(said, None);
    }

    #[test]
    fn p99_is_a_limit_unless_the_stable_one_is_as_slow() {
        let slow = |ms| Measure {
            p99: Some(Duration::from_millis(ms)),
            ..measure(1000, 0, 0)
        };
        assert_eq!(against(&slow(250), &slow(10)), None);
        assert_eq!(
            against(&slow(300), &slow(10)).as_deref(),
            Some("p99 300 ms over 1000 requests, allowed 250 ms; revision 1 has 10 ms")
        );
        assert_eq!(against(&slow(300), &slow(290)), None);
        assert!(judge(&GATES, &slow(300), None).is_some());
    }

    #[test]
    fn processor_time_is_compared_and_never_judged_alone() {
        let busy = |us| Measure {
            cpu: Some(Duration::from_micros(us)),
            ..measure(1000, 0, 0)
        };
        assert_eq!(against(&busy(120), &busy(100)), None);
        assert_eq!(
            against(&busy(121), &busy(100)).as_deref(),
            Some("processor time 121 us for a request (median of 1000), allowed 20 % beyond the 100 us of revision 1")
        );
        assert_eq!(judge(&GATES, &busy(1_000_000), None), None);
    }

    #[test]
    fn compared_with_nothing_the_limits_hold_by_themselves() {
        let gates = Gates {
            compare: Compare::None,
            ..GATES
        };
        let bad = measure(1000, 50, 0);
        assert!(judge(&gates, &bad, Some((RevisionNumber(1), &bad))).is_some());
        assert_eq!(against(&bad, &bad), None);
    }
}
