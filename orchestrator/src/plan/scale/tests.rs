//! The rules of autoscale, by the thousand.

use proptest::prelude::*;

use super::*;
use crate::model::service::ScaleStep;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn autoscale() -> Autoscale {
    Autoscale {
        min: 1,
        max: 100,
        target: Amount::Percent(50),
        ..Autoscale::default()
    }
}

/// One service, asked at will: 10 slots for each replica.
struct One {
    autoscale: Autoscale,
    state: Option<Scaling>,
    first: u32,
    now: Millis,
    load: Load,
    /// Of the last two only rates.
    rps: u64,
    cpu_percent: u64,
    changes: Vec<u32>,
}

impl One {
    fn of(autoscale: Autoscale, first: u32) -> Self {
        let mut one = Self {
            autoscale,
            state: None,
            first,
            now: Millis(10_000),
            load: Load::default(),
            rps: 0,
            cpu_percent: 0,
            changes: Vec::new(),
        };
        one.look();
        one
    }

    fn look(&mut self) -> u32 {
        let asked = Asked {
            autoscale: &self.autoscale,
            slots: 10,
            bounds: (self.autoscale.min, self.autoscale.max),
            first: self.first,
            scalings: 0,
            off: false,
            on_trial: false,
        };
        let next = Scaling::next(self.state.take(), &asked, self.load, self.now);
        let again = Scaling::next(Some(next.clone()), &asked, self.load, self.now);
        assert_eq!(next, again, "asked twice in the same moment");
        assert!(next.look_again.is_none_or(|at| at > self.now), "{next:?}");
        if self.changes.last() != Some(&next.count) {
            self.changes.push(next.count);
        }
        self.state.insert(next).count
    }

    fn load(&mut self, in_flight: u64, queued: u64) -> u32 {
        (self.load.in_flight, self.load.queued) = (in_flight, queued);
        self.look()
    }

    /// Time goes on, and it is looked at when it asks for it, but at least once a second while there is load.
    fn advance(&mut self, by: Duration) -> u32 {
        let until = self.now.plus(by);
        while self.now < until {
            let asked = self.state.as_ref().and_then(|s| s.look_again);
            let busy = (self.rps + self.cpu_percent + self.load.in_flight > 0).then(|| self.now.plus(ms(1_000)));
            let next = asked.into_iter().chain(busy).min().unwrap_or(until).min(until);
            let passed = millis(next.since(self.now));
            self.load.requests += self.rps * passed / 1_000;
            self.load.cpu_ns += self.cpu_percent * passed * 10_000;
            self.now = next;
            self.look();
        }
        self.look()
    }
}

#[test]
fn it_begins_with_the_first_count_within_its_bounds() {
    for (first, count) in [(0, 1), (1, 1), (7, 7), (500, 100)] {
        assert_eq!(One::of(autoscale(), first).look(), count);
    }
}

#[test]
fn a_burst_is_answered_at_once_and_without_steps() {
    let mut one = One::of(autoscale(), 1);
    assert_eq!(one.load(10, 0), 2, "twice five is a burst");
    let mut one = One::of(autoscale(), 1);
    assert_eq!(one.load(9, 0), 1, "not yet");
    assert_eq!(one.load(10, 390), 80);
    assert_eq!(one.load(10, 9_000), 80, "what comes a moment later is taken together");
    assert_eq!(one.advance(ms(25)), 100, "never beyond the most");
}

#[test]
fn requests_that_wait_for_want_of_slots_are_a_burst_below_twice_the_target_too() {
    let mut one = One::of(
        Autoscale {
            target: Amount::Percent(100),
            ..autoscale()
        },
        2,
    );
    assert_eq!(one.load(20, 0), 2);
    assert_eq!(one.load(20, 1), 3);
}

#[test]
fn slow_growth_is_followed_by_its_mean_one_step_in_each_window() {
    let mut one = One::of(autoscale(), 4);
    assert_eq!(one.load(38, 0), 4, "a moment is no growth");
    assert_eq!(one.advance(ms(2_000)), 4);
    assert_eq!(one.advance(ms(5_000)), 8, "8 for 38 at 5 each");
    assert_eq!(one.advance(ms(60_000)), 8);
    let mut step = One::of(
        Autoscale {
            up: ScaleStep {
                step: Amount::Count(1),
                window: ms(6_000),
            },
            ..autoscale()
        },
        4,
    );
    step.load(38, 0);
    step.advance(ms(60_000));
    assert_eq!(step.changes, [4, 5, 6, 7, 8]);
}

#[test]
fn it_goes_down_by_its_step_after_a_whole_window_allows_it() {
    let mut one = One::of(autoscale(), 1);
    one.load(20, 380);
    assert_eq!(one.load(0, 0), 80);
    assert_eq!(one.advance(ms(59_000)), 80, "the burst is still in the window");
    one.advance(ms(5_000));
    assert_eq!(one.changes, [1, 80, 60]);
    one.advance(ms(3_000_000));
    assert_eq!(one.changes, [1, 80, 60, 45, 33, 24, 18, 13, 9, 6, 4, 3, 2, 1]);
    assert_eq!(one.state.as_ref().unwrap().look_again, None, "nothing more is to come");
}

#[test]
fn nothing_is_taken_away_in_a_panic() {
    let mut one = One::of(
        Autoscale {
            panic_window: ms(90_000),
            ..autoscale()
        },
        1,
    );
    one.load(20, 80);
    one.load(0, 0);
    assert_eq!(one.advance(ms(89_000)), 20);
    assert!(one.advance(ms(10_000)) < 20);
}

#[test]
fn a_short_lull_within_the_window_takes_nothing_away() {
    let mut one = One::of(autoscale(), 8);
    for _ in 0..10 {
        one.load(40, 0);
        one.advance(ms(10_000));
        one.load(1, 0);
        one.advance(ms(40_000));
    }
    assert_eq!(one.changes, [8]);
}

#[test]
fn it_is_scaled_to_zero_only_when_idle_and_comes_back_with_the_first_request() {
    let mut one = One::of(Autoscale { min: 0, ..autoscale() }, 3);
    one.load(1, 0);
    one.advance(ms(600_000));
    assert_eq!(one.look(), 1, "a request is there");
    one.load(0, 0);
    assert_eq!(one.advance(ms(299_000)), 1);
    assert_eq!(one.advance(ms(2_000)), 0);
    assert_eq!(one.state.as_ref().unwrap().look_again, None);
    one.now = one.now.plus(ms(3_600_000));
    assert_eq!(one.load(0, 1), 1);
    one.load(0, 100);
    assert_eq!(one.advance(ms(25)), 20);
}

#[test]
fn a_request_now_and_then_keeps_it_awake() {
    let mut one = One::of(Autoscale { min: 0, ..autoscale() }, 1);
    for _ in 0..10 {
        one.load.requests += 1;
        one.look();
        one.advance(ms(200_000));
    }
    assert_eq!(one.changes, [1]);
}

#[test]
fn a_rate_is_taken_over_a_second_and_followed() {
    let by_rate = Autoscale {
        metric: ScaleMetric::Rps,
        target: Amount::Count(100),
        ..autoscale()
    };
    let mut one = One::of(by_rate, 1);
    one.rps = 150;
    one.advance(ms(3_000));
    assert_eq!(one.look(), 1);
    one.advance(ms(10_000));
    assert_eq!(one.look(), 2);
    one.rps = 1_000;
    one.advance(ms(1_500));
    assert_eq!(one.look(), 10, "a burst within about a second");
    assert_eq!(
        one.state.as_ref().unwrap().load_text(),
        "rps 100.0 of 100.0 per replica"
    );
}

#[test]
fn a_rate_at_its_target_is_no_reason_to_turn_back_and_forth() {
    let by_rate = Autoscale {
        metric: ScaleMetric::Rps,
        target: Amount::Count(100),
        ..autoscale()
    };
    let mut one = One::of(by_rate, 1);
    one.rps = 300;
    one.advance(ms(3_600_000));
    assert!(one.changes.len() <= 4, "{:?}", one.changes);
}

#[test]
fn processor_time_is_counted_in_percent_of_one_processor() {
    let by_cpu = Autoscale {
        metric: ScaleMetric::Cpu,
        target: Amount::Percent(70),
        ..autoscale()
    };
    let mut one = One::of(by_cpu, 1);
    one.cpu_percent = 180;
    one.advance(ms(20_000));
    assert_eq!(one.look(), 3);
    assert_eq!(
        one.state.as_ref().unwrap().text(),
        "3 of 1..100, cpu 60.0 % of 70.0 % per replica"
    );
}

#[test]
fn by_the_queue_so_many_may_wait_beside_those_in_flight() {
    let by_queue = Autoscale {
        metric: ScaleMetric::Queue,
        target: Amount::Count(5),
        ..autoscale()
    };
    let mut one = One::of(by_queue, 2);
    one.load(20, 10);
    one.advance(ms(60_000));
    assert_eq!(one.look(), 2, "five for each wait, as it should be");
    one.load(20, 15);
    one.advance(ms(10_000));
    assert_eq!(one.look(), 3);
    assert_eq!(one.load(20, 40), 4, "twice the target");
    one.advance(ms(120_000));
    assert_eq!(
        one.look(),
        4,
        "what serves is not taken away because nothing waits any more"
    );
}

#[test]
fn a_new_revision_goes_on_from_the_count_with_its_own_bounds() {
    let mut one = One::of(autoscale(), 1);
    one.load(10, 390);
    one.autoscale = Autoscale { max: 40, ..autoscale() };
    assert_eq!(one.look(), 40);
    one.autoscale = Autoscale { min: 50, ..autoscale() };
    assert_eq!(one.load(0, 0), 50);
}

#[test]
fn a_long_sleep_costs_no_more_than_a_window() {
    let mut ring = Ring::over(ms(6_000));
    ring.add(Millis(5), Millis(u64::MAX / 2), u64::MAX);
    assert!(ring.parts.len() <= 31);
}

#[derive(Clone, Debug)]
enum Step {
    Load(u64, u64),
    Rates(u64, u64),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u64..400, 0_u64..400).prop_map(|(a, b)| Step::Load(a, b)),
        (0_u64..2_000, 0_u64..800).prop_map(|(a, b)| Step::Rates(a, b)),
        (1_u64..90_000).prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 1..20)
}

fn rules() -> impl Strategy<Value = Autoscale> {
    let amount = |n: std::ops::Range<u32>, p: std::ops::Range<u32>| {
        prop_oneof![n.prop_map(Amount::Count), p.prop_map(Amount::Percent)]
    };
    let step = move || {
        (amount(1..9, 1..300), 1_u64..60_000).prop_map(|(step, window)| ScaleStep {
            step,
            window: ms(window),
        })
    };
    let metric = prop_oneof![
        Just((ScaleMetric::Concurrency, Amount::Percent(70))),
        Just((ScaleMetric::Rps, Amount::Count(100))),
        Just((ScaleMetric::Cpu, Amount::Percent(70))),
        Just((ScaleMetric::Queue, Amount::Count(4))),
    ];
    (
        0_u32..5,
        0_u32..40,
        metric,
        step(),
        step(),
        1_u64..60_000,
        1_u64..60_000,
    )
        .prop_map(|(min, more, (metric, target), up, down, panic, idle)| Autoscale {
            min,
            max: (min + more).max(1),
            metric,
            target,
            panic_window: ms(panic),
            up,
            down,
            idle: ms(idle),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_it_stays_within_its_bounds_and_comes_to_rest(rule in rules(), steps in steps(), first in 0_u32..50) {
        let (min, max) = (rule.min, rule.max);
        let mut one = One::of(rule, first);
        for step in steps {
            let count = match step {
                Step::Load(in_flight, queued) => one.load(in_flight, queued),
                Step::Rates(rps, cpu) => {
                    (one.rps, one.cpu_percent) = (rps, cpu);
                    one.look()
                }
                Step::Advance(by) => one.advance(ms(by)),
            };
            prop_assert!((min..=max).contains(&count));
            if one.load.in_flight + one.load.queued > 0 {
                prop_assert!(count > 0);
            }
        }
        // Nothing more comes: it goes down to the fewest and asks for nothing any more.
        (one.rps, one.cpu_percent) = (0, 0);
        one.load(0, 0);
        one.advance(ms(4_000_000));
        prop_assert_eq!(one.look(), min);
        prop_assert_eq!(one.state.as_ref().unwrap().look_again, None);
    }

    #[test]
    fn a_steady_load_is_never_followed_both_up_and_down(rule in rules(), load in (0_u64..300, 0_u64..50), first in 0_u32..50) {
        let mut one = One::of(rule, first);
        one.load(load.0, load.1);
        one.advance(ms(300_000));
        let changes = &one.changes;
        let turned = changes.windows(3).filter(|w| (w[0] < w[1]) && (w[1] > w[2])).count();
        let back = changes.windows(3).filter(|w| (w[0] > w[1]) && (w[1] < w[2])).count();
        prop_assert!(back == 0, "{changes:?}");
        prop_assert!(turned <= 1, "{changes:?}");
    }
}
