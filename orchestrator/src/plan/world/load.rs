//! The scripted load of a world's services, and what no autoscaler may do under it: leave its bounds, take away what the load
//! needs, go faster down than its step, or turn back and forth while the load stays as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use super::World;
use crate::model::{Millis, ServiceName};
use crate::plan::check::{Breach, Law};
use crate::plan::scale::{self, Cause, Load};

/// As the node does for services that have load but nobody looks at.
const TICK: Duration = Duration::from_secs(1);

/// By then a change of the load is seen, whatever it is measured by.
const SEEN_BY: Duration = Duration::from_secs(2);

/// What a service's clients do from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    pub in_flight: u64,
    pub queued: u64,
    /// Requests per second beside those.
    pub rps: u64,
    /// Processor time of all replicas, in percent of one processor.
    pub cpu: u64,
}

/// The load of each service, and what came before.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads {
    scripts: BTreeMap<ServiceName, Script>,
    /// Services that were scaled down since their load was changed.
    fell: BTreeMap<ServiceName, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Script {
    clients: Clients,
    since: Millis,
    before: Load,
}

impl Script {
    fn at(&self, now: Millis) -> Load {
        let ms = now.0.saturating_sub(self.since.0);
        Load {
            in_flight: self.clients.in_flight,
            queued: self.clients.queued,
            requests: self.before.requests + self.clients.rps * ms / 1_000,
            cpu_ns: self.before.cpu_ns + self.clients.cpu * ms * 10_000,
        }
    }
}

impl World {
    /// The clients of a service do this from now on.
    pub fn load(&mut self, name: &str, clients: Clients) -> &mut Self {
        let (name, since) = (super::service_name(name), self.now);
        let before = self.loads.scripts.get(&name).map_or(Load::default(), |s| s.at(since));
        let begun = clients.in_flight + clients.queued;
        let before = Load {
            requests: before.requests + begun,
            ..before
        };
        self.steady_from_now(&name);
        self.loads.scripts.insert(name, Script { clients, since, before });
        self.settle()
    }

    /// All clients leave.
    pub fn calm(&mut self) -> &mut Self {
        for name in self.loads.scripts.keys().cloned().collect::<Vec<_>>() {
            self.load(name.as_str(), Clients::default());
        }
        self
    }

    pub(super) fn steady_from_now(&mut self, name: &ServiceName) {
        self.loads.fell.remove(name);
    }

    /// Looks at replicas and load as the shell does, and judges how the counts changed.
    pub(super) fn observe(&mut self) {
        let now = self.now;
        self.view.loads = self.loads.scripts.iter().map(|(n, s)| (n.clone(), s.at(now))).collect();
        let before: BTreeMap<ServiceName, u32> = self.view.scaling.iter().map(|(n, s)| (n.clone(), s.count)).collect();
        (self.observer)(&self.desired, &mut self.view, now);
        let mut found = Vec::new();
        let mut said = Vec::new();
        for (name, scaling) in &self.view.scaling {
            let Some((was, is)) = before
                .get(name)
                .map(|was| (*was, scaling.count))
                .filter(|(was, is)| was != is)
            else {
                continue;
            };
            said.push(format!("scale {name} from {was} to {is}: {}", scaling.cause.as_str()));
            found.extend(self.judge(name, was, scaling).map(|text| (name.clone(), text)));
            // A rate is seen a second after it began.
            let known = self
                .loads
                .scripts
                .get(name)
                .is_none_or(|s| now >= s.since.plus(SEEN_BY));
            if is < was && known && matches!(scaling.cause, Cause::Fell | Cause::Idle) {
                self.loads.fell.insert(name.clone(), is);
            }
        }
        for text in said {
            self.say(|| text);
        }
        self.breaches.extend(found.into_iter().map(|(name, text)| Breach {
            law: Law::Scale,
            service: Some(name),
            replica: None,
            text,
        }));
    }

    fn judge(&self, name: &ServiceName, was: u32, scaling: &scale::Scaling) -> Option<String> {
        let (is, load) = (scaling.count, self.view.loads.get(name).copied().unwrap_or_default());
        let (revision, autoscale) = scale::autoscaled(self.desired.services.get(name)?)?;
        let there = load.in_flight + load.queued;
        if is > was && matches!(scaling.cause, Cause::Burst | Cause::Grew) {
            let fell = self.loads.fell.get(name);
            return fell.map(|to| format!("up to {is} after it went down to {to} under the same load"));
        }
        if !matches!(scaling.cause, Cause::Fell | Cause::Idle) {
            return None;
        }
        if is == 0 && (autoscale.min > 0 || there > 0) {
            return Some(format!(
                "to zero with {there} requests there and a minimum of {}",
                autoscale.min
            ));
        }
        if u64::from(is) * u64::from(revision.spec.limits.concurrency) < there {
            return Some(format!("down to {is} with {there} requests there"));
        }
        let step = autoscale.down.step.of(was).max(1);
        (is > 0 && was.saturating_sub(is) > step).then(|| format!("from {was} down to {is}, the step is {step}"))
    }

    /// When the node would look at load that nobody waits for.
    pub(super) fn tick(&self) -> Option<Millis> {
        let any = self.loads.scripts.values().any(|s| s.clients != Clients::default());
        any.then(|| self.now.plus(TICK))
    }
}
