//! Autoscale: how many replicas the load asks for. Samples of the data path and `now` in, a count and its reason out. Knows no
//! replica and no store; what it remembers is bounded, and lives in [`FleetView`], never on disk.
//!
//! Whatever the metric, the load becomes one number, the demand, in thousandths of the metric's unit, and the target says how much
//! of it one replica takes. Up by the mean over `up.window`, down by the most over `down.window`, each by at most its step. Twice
//! the target, or requests that wait for want of slots, is a burst: answered at once, and nothing is taken away for `panic_window`.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::fleet::{self, first_replicas, turned_off};
use super::{Desired, DesiredService, FleetView, words};
use crate::model::service::{Amount, Autoscale, ScaleMetric};
use crate::model::time::millis;
use crate::model::{Millis, Revision, RevisionState, ServiceRecord};

/// Between two samples while there is load.
pub const PACE: Duration = Duration::from_millis(200);
/// Between two samples while requests wait.
pub const QUEUE_PACE: Duration = Duration::from_millis(25);
/// After the last request samples go on for so long: one who calls now and then is load too.
const CALM: Duration = Duration::from_secs(1);
/// Requests and processor time become a rate over so long.
const RATE: Duration = Duration::from_secs(1);
/// So little over the target is let be, in percent: the count must not turn with every request.
const TOLERANCE: u64 = 5;
/// A window is kept in so many parts.
const PARTS: u64 = 30;

/// What the data path says of one service now. The last two only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    pub in_flight: u64,
    /// Waiting for a replica with room.
    pub queued: u64,
    /// Requests begun so far.
    pub requests: u64,
    /// Processor time of the guests so far.
    pub cpu_ns: u64,
}

/// Why the count is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    First,
    ByHand,
    Bounds,
    Burst,
    Grew,
    Fell,
    Idle,
    /// A revision must serve to prove itself.
    Trial,
}

impl Cause {
    /// A fragment: `a burst`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "the first count",
            Self::ByHand => "set by hand",
            Self::Bounds => "its bounds changed",
            Self::Burst => "a burst",
            Self::Grew => "the load grew",
            Self::Fell => "the load fell",
            Self::Idle => "no request came",
            Self::Trial => "a revision is on trial",
        }
    }
}

/// One autoscaled service: the count, and what is remembered to find the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Scaling {
    /// Replicas that are wanted.
    pub count: u32,
    /// Of the last change.
    pub cause: Cause,
    pub min: u32,
    pub max: u32,
    pub metric: ScaleMetric,
    /// Of one replica now, in thousandths of the metric's unit (percent for `cpu`).
    pub load_milli: u64,
    pub target_milli: u64,
    /// Time alone may change the count then, or the load must be looked at again.
    pub look_again: Option<Millis>,
    /// `ServiceRecord::scalings` that it goes on from.
    pub scalings: u64,
    rule: Rule,
    last: (Millis, Load),
    since: Millis,
    busy_at: Millis,
    /// When the present window of `up` began, and with how many.
    up_from: (Millis, u32),
    down_at: Option<Millis>,
    panic_until: Millis,
    mean: Ring,
    most: Ring,
    rate: Ring,
}

/// What the file says, with what it counts in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Rule {
    autoscale: Autoscale,
    /// `limits.concurrency`.
    slots: u32,
}

/// What is asked about one service.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub autoscale: &'a Autoscale,
    /// `limits.concurrency`.
    pub slots: u32,
    /// The fewest and the most.
    pub bounds: (u32, u32),
    /// Where it begins, and where it goes on after `scale` by hand.
    pub first: u32,
    /// `ServiceRecord::scalings`.
    pub scalings: u64,
    /// Scaled to none by hand: off until another number is given.
    pub off: bool,
    pub on_trial: bool,
}

/// The fewest and the most replicas of a service.
// A number that a schedule holds now is the floor: it raises the first of the two.
pub fn bounds(_record: &ServiceRecord, autoscale: &Autoscale) -> (u32, u32) {
    (autoscale.min, autoscale.max.max(autoscale.min))
}

/// Brings `view.scaling` up to date with `view.loads`. Part of [`fleet::observe`].
pub(crate) fn observe(desired: &Desired, view: &mut FleetView, now: Millis) {
    let mut before = std::mem::take(&mut view.scaling);
    for (name, service) in &desired.services {
        let Some((revision, autoscale)) = autoscaled(service) else {
            continue;
        };
        let record = &service.record;
        let asked = Asked {
            autoscale,
            slots: revision.spec.limits.concurrency.max(1),
            bounds: bounds(record, autoscale),
            first: first_replicas(record, revision),
            scalings: record.scalings,
            off: turned_off(record, revision),
            on_trial: fleet::on_trial(service),
        };
        let load = view.loads.get(name).copied().unwrap_or_default();
        let next = Scaling::next(before.remove(name), &asked, load, now);
        view.scaling.insert(name.clone(), next);
    }
}

/// The revision that a service is going to and its `[autoscale]`; none for one that has none, is stopped or is being deleted. While
/// one without is on trial, the stable one goes on by its own.
pub fn autoscaled(service: &DesiredService) -> Option<(&Revision, &Autoscale)> {
    let record = &service.record;
    let usable = |n| {
        let revision = service.revisions.get(&n).map(|r| &**r);
        revision.filter(|r| !matches!(r.state, RevisionState::Refused(_)))
    };
    let off = record.stopped || record.deleting || service.is_job();
    let going = [Some(record.wanted).filter(|_| !off), record.stable.filter(|_| !off)];
    let mut usable = going.into_iter().flatten().filter_map(usable);
    usable.find_map(|r| Some((r, r.spec.autoscale.as_ref()?)))
}

impl Scaling {
    /// The next state. Asked twice in the same moment it says the same.
    pub fn next(before: Option<Self>, asked: &Asked<'_>, load: Load, now: Millis) -> Self {
        let rule = Rule {
            autoscale: asked.autoscale.clone(),
            slots: asked.slots,
        };
        let mut next = match before {
            Some(same) if same.rule == rule => same,
            // Another revision counts in another way: the count goes on, the samples begin anew.
            Some(other) => Self {
                count: other.count,
                cause: other.cause,
                scalings: other.scalings,
                panic_until: other.panic_until,
                ..Self::begin(rule, asked, load, now)
            },
            None => Self::begin(rule, asked, load, now),
        };
        (next.min, next.max) = asked.bounds;
        next.sample(load, now);
        if next.scalings != asked.scalings {
            next.scalings = asked.scalings;
            next.set(asked.first, Cause::ByHand);
            (next.up_from, next.down_at, next.busy_at) = ((now, next.count), Some(now), now);
        }
        if asked.off {
            next.count = 0;
            next.look_again = None;
            return next;
        }
        if asked.on_trial {
            next.busy_at = now;
            if next.count == 0 {
                next.set(1, Cause::Trial);
            }
        }
        // What serves now is not taken away for a file that has proved nothing: each revision is held within its own bounds.
        let most = if asked.on_trial { next.count } else { next.max };
        let within = next.count.min(most).max(next.min);
        if within < next.count {
            next.down_at = Some(now);
        }
        next.set(within, Cause::Bounds);
        next.decide(asked.on_trial, now);
        next.load_milli = next.shown_load();
        next.look_again = next.when_to_look(asked.on_trial, now);
        next
    }

    fn begin(rule: Rule, asked: &Asked<'_>, load: Load, now: Millis) -> Self {
        let Autoscale { up, down, .. } = rule.autoscale;
        Self {
            count: asked.first.clamp(asked.bounds.0, asked.bounds.1),
            cause: Cause::First,
            min: asked.bounds.0,
            max: asked.bounds.1,
            metric: rule.autoscale.metric,
            load_milli: 0,
            target_milli: shown_target(&rule),
            look_again: None,
            scalings: asked.scalings,
            last: (now, load),
            since: now,
            busy_at: now,
            up_from: (now, asked.first.clamp(asked.bounds.0, asked.bounds.1)),
            down_at: None,
            panic_until: Millis(0),
            mean: Ring::over(up.window),
            most: Ring::over(down.window),
            rate: Ring::over(RATE),
            rule,
        }
    }

    fn set(&mut self, count: u32, cause: Cause) {
        if count != self.count {
            (self.count, self.cause) = (count, cause);
        }
    }

    /// Takes what was seen since the last look into the windows.
    fn sample(&mut self, load: Load, now: Millis) {
        let (at, last) = std::mem::replace(&mut self.last, (now, load));
        let began = load.requests.saturating_sub(last.requests);
        if began > 0 || load.in_flight + load.queued > 0 {
            self.busy_at = now;
        }
        // What is there holds until the next look; what is counted came in between.
        let held = millis(now.since(at)).saturating_mul(1_000);
        let area = match self.metric {
            ScaleMetric::Concurrency | ScaleMetric::Queue => held.saturating_mul(last.in_flight + last.queued),
            ScaleMetric::Rps => began.saturating_mul(1_000_000),
            ScaleMetric::Cpu => load.cpu_ns.saturating_sub(last.cpu_ns) / 1_000,
        };
        self.rate.add(at, now, area);
        self.mean.add(at, now, area);
        // However it is measured, what is there keeps its slots.
        let needs = self.needs_now(now).max(self.slots());
        self.most.mark(now, u64::from(needs));
    }

    /// Demand now, in thousandths.
    fn demand(&self, now: Millis) -> u64 {
        let load = &self.last.1;
        match self.metric {
            ScaleMetric::Concurrency | ScaleMetric::Queue => (load.in_flight + load.queued).saturating_mul(1_000),
            // What replicas computed before they went is nobody's need: the next request is.
            ScaleMetric::Cpu if self.count == 0 => 0,
            ScaleMetric::Rps | ScaleMetric::Cpu => self.rate.mean(now, RATE),
        }
    }

    fn needs(&self, demand_milli: u64) -> u32 {
        u32::try_from(demand_milli.div_ceil(capacity(&self.rule).max(1))).unwrap_or(u32::MAX)
    }

    /// Replicas that give a slot to each request there is.
    fn slots(&self) -> u32 {
        let load = &self.last.1;
        u32::try_from((load.in_flight + load.queued).div_ceil(u64::from(self.rule.slots))).unwrap_or(u32::MAX)
    }

    /// Requests wait for want of slots, which that metric does not allow for.
    fn overflows(&self) -> bool {
        self.last.1.queued > 0 && self.metric != ScaleMetric::Queue
    }

    fn needs_now(&self, now: Millis) -> u32 {
        let slots = if self.overflows() { self.slots() } else { 0 };
        self.needs(self.demand(now)).max(slots)
    }

    fn is_burst(&self, now: Millis) -> bool {
        let twice = |per_replica: u64| per_replica.saturating_mul(2).saturating_mul(u64::from(self.count));
        let over = match self.metric {
            ScaleMetric::Queue => {
                let queued = self.last.1.queued.saturating_mul(1_000);
                queued >= twice(self.target_milli) && self.needs_now(now) > self.count
            }
            _ => {
                let demand = self.demand(now);
                demand > 0 && demand >= twice(capacity(&self.rule))
            }
        };
        over || self.overflows() && self.slots() > self.count
    }

    fn decide(&mut self, on_trial: bool, now: Millis) {
        let Autoscale { up, down, .. } = self.rule.autoscale;
        if self.is_burst(now) {
            self.panic_until = now.plus(self.rule.autoscale.panic_window);
        }
        let needed = self.needs_now(now).min(self.max);
        if needed > self.count {
            if now < self.panic_until || self.count == 0 {
                if !self.just_grew(now) {
                    self.set(needed, Cause::Burst);
                    self.up_from = (now, self.count);
                }
                return;
            }
            if now >= self.up_from.0.plus(up.window) || self.count < self.up_from.1 {
                self.up_from = (now, self.count);
            }
            let mean = self.mean.mean(now, up.window);
            let mean = self.needs(mean - mean / 100 * TOLERANCE).min(needed);
            let from = self.up_from.1;
            let most = from.saturating_add(up.step.of(from).max(1));
            if mean.min(most) > self.count {
                self.set(mean.min(most), Cause::Grew);
            }
            return;
        }
        let calm = now >= self.panic_until && !on_trial;
        if calm && self.idles() && now >= self.busy_at.plus(self.rule.autoscale.idle) {
            self.set(0, Cause::Idle);
        } else if calm && self.count > self.floor() && now >= self.may_fall_at() {
            let most = u32::try_from(self.most.most(now)).unwrap_or(u32::MAX);
            let least = self.count.saturating_sub(down.step.of(self.count).max(1));
            let goal = most.max(least).max(self.floor());
            if goal < self.count {
                self.set(goal, Cause::Fell);
                self.down_at = Some(now);
            }
        }
    }

    /// A burst takes a moment to arrive: it is followed in few steps, not request by request.
    fn just_grew(&self, now: Millis) -> bool {
        self.cause == Cause::Burst && now < self.up_from.0.plus(QUEUE_PACE)
    }

    /// Fewer than this only when idle.
    fn floor(&self) -> u32 {
        self.min.max(1)
    }

    /// Nothing is there, and it may be scaled to zero.
    fn idles(&self) -> bool {
        self.min == 0 && self.count > 0 && self.last.1.in_flight + self.last.1.queued == 0
    }

    /// One window was seen, and one has passed since the last step down.
    fn may_fall_at(&self) -> Millis {
        // A rate rises from nothing when the samples begin anew, whatever the load is.
        let known = match self.metric {
            ScaleMetric::Rps | ScaleMetric::Cpu => self.since.plus(RATE * 2),
            ScaleMetric::Concurrency | ScaleMetric::Queue => self.since,
        };
        let last = self.down_at.unwrap_or(self.since).max(self.since);
        last.plus(self.rule.autoscale.down.window).max(known)
    }

    fn when_to_look(&self, on_trial: bool, now: Millis) -> Option<Millis> {
        let load = &self.last.1;
        if (load.queued > 0 || self.just_grew(now)) && self.count < self.max {
            return Some(now.plus(QUEUE_PACE));
        }
        if load.in_flight + load.queued > 0 || self.demand(now) > 0 || now < self.busy_at.plus(CALM) && !on_trial {
            return Some(now.plus(PACE));
        }
        if on_trial {
            return None;
        }
        let idle = self.rule.autoscale.idle;
        let idle = self.idles().then(|| self.busy_at.plus(idle).max(self.panic_until));
        let fall = (self.count > self.floor()).then(|| {
            let at = self.may_fall_at().max(self.panic_until);
            if at > now { at } else { now.plus(self.most.part()) }
        });
        let at = idle.into_iter().chain(fall).min()?;
        Some(if at > now { at } else { now.plus(PACE) })
    }

    fn shown_load(&self) -> u64 {
        let (at, load) = &self.last;
        let all = match self.metric {
            ScaleMetric::Queue => load.queued.saturating_mul(1_000),
            ScaleMetric::Cpu => self.demand(*at).saturating_mul(100),
            ScaleMetric::Concurrency | ScaleMetric::Rps => self.demand(*at),
        };
        all / u64::from(self.count.max(1))
    }

    /// `12 of 2..20, concurrency 8.1 of 44.8 per replica`.
    pub fn text(&self) -> String {
        format!("{} of {}..{}, {}", self.count, self.min, self.max, self.load_text())
    }

    /// `concurrency 8.1 of 44.8 per replica`.
    pub fn load_text(&self) -> String {
        let unit = if self.metric == ScaleMetric::Cpu { " %" } else { "" };
        format!(
            "{} {}{unit} of {}{unit} per replica",
            self.metric.as_str(),
            words::tenths(self.load_milli),
            words::tenths(self.target_milli)
        )
    }
}

/// Demand that one replica takes, in thousandths.
fn capacity(rule: &Rule) -> u64 {
    let slots = u64::from(rule.slots);
    match (rule.autoscale.metric, rule.autoscale.target) {
        (ScaleMetric::Concurrency, Amount::Percent(p)) => slots * u64::from(p) * 10,
        // Beside those in flight so many may wait.
        (ScaleMetric::Queue, Amount::Count(n) | Amount::Percent(n)) => (slots + u64::from(n)) * 1_000,
        (_, Amount::Percent(p)) => u64::from(p) * 10,
        (_, Amount::Count(n)) => u64::from(n) * 1_000,
    }
}

fn shown_target(rule: &Rule) -> u64 {
    match (rule.autoscale.metric, rule.autoscale.target) {
        (ScaleMetric::Queue, Amount::Count(n) | Amount::Percent(n)) => u64::from(n) * 1_000,
        (ScaleMetric::Cpu, _) => capacity(rule) * 100,
        _ => capacity(rule),
    }
}

/// A window of the past, in parts: a new part pushes the oldest out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Ring {
    part_ms: u64,
    parts: VecDeque<Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Part {
    /// Which part of all time.
    index: u64,
    /// Demand in thousandths, times milliseconds.
    area: u64,
    /// The most replicas needed.
    most: u64,
}

impl Ring {
    fn over(window: Duration) -> Self {
        Self {
            part_ms: millis(window).div_ceil(PARTS).max(1),
            parts: VecDeque::new(),
        }
    }

    fn part(&self) -> Duration {
        Duration::from_millis(self.part_ms)
    }

    fn at(&mut self, index: u64) -> Option<&mut Part> {
        if self.parts.back().is_none_or(|p| p.index < index) {
            self.parts.push_back(Part {
                index,
                ..Part::default()
            });
        }
        while self.parts.front().is_some_and(|p| p.index + PARTS < index) {
            self.parts.pop_front();
        }
        self.parts.back_mut()
    }

    /// Spreads `area` over the time from `from` to `to`.
    fn add(&mut self, from: Millis, to: Millis, area: u64) {
        let (Millis(from), Millis(to), p) = (from, to, self.part_ms);
        let whole = to.saturating_sub(from);
        if area == 0 {
            return;
        }
        if whole == 0 {
            if let Some(part) = self.at(to / p) {
                part.area = part.area.saturating_add(area);
            }
            return;
        }
        for index in (from / p).max((to / p).saturating_sub(PARTS))..=to / p {
            let within = to.min((index + 1) * p) - from.max(index * p);
            let share = u128::from(area) * u128::from(within) / u128::from(whole);
            if let Some(part) = self.at(index) {
                part.area = part.area.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
            }
        }
    }

    fn mark(&mut self, now: Millis, replicas: u64) {
        let index = now.0 / self.part_ms;
        if let Some(part) = self.at(index) {
            part.most = part.most.max(replicas);
        }
    }

    /// Mean demand over `window`; what was not seen counts as nothing.
    fn mean(&self, now: Millis, window: Duration) -> u64 {
        let first = (now.0 / self.part_ms).saturating_sub(PARTS);
        let area = self.seen(now).fold(0_u64, |sum, p| sum.saturating_add(p.area));
        let covered = now.0.saturating_sub(first * self.part_ms).max(millis(window)).max(1);
        area / covered
    }

    fn most(&self, now: Millis) -> u64 {
        self.seen(now).map(|p| p.most).max().unwrap_or(0)
    }

    fn seen(&self, now: Millis) -> impl Iterator<Item = &Part> {
        let first = (now.0 / self.part_ms).saturating_sub(PARTS);
        self.parts.iter().filter(move |p| p.index >= first)
    }
}

#[cfg(test)]
#[path = "scale/tests.rs"]
mod tests;
