//! How one revision replaces another, as the service file says it and as the store remembers it. Plain data: what is done
//! with it is decided in `plan::rollout` and `plan::gates`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::RevisionNumber;
use super::service::Rollout;

/// How one revision replaces another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// New beside old until the new serve.
    #[default]
    Rolling,
    /// A growing share of the requests, each held for a while.
    Canary,
    /// All new ready, one switch, the old kept warm.
    BlueGreen,
    /// The old gone, then the new.
    Recreate,
}

impl Strategy {
    pub const ALL: [Self; 4] = [Self::Rolling, Self::Canary, Self::BlueGreen, Self::Recreate];

    /// As it is written in a service file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Canary => "canary",
            Self::BlueGreen => "blue-green",
            Self::Recreate => "recreate",
        }
    }

    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

/// One step: this share of the requests for so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Thousandths of the requests, 1 to 1000.
    pub weight: u32,
    pub hold: Duration,
}

impl Step {
    /// All requests.
    pub const WHOLE: u32 = 1000;
    const HOLD: Duration = Duration::from_secs(30);

    /// The steps of a canary that names none.
    pub const CANARY: [Self; 3] = [
        Self {
            weight: 50,
            hold: Self::HOLD,
        },
        Self {
            weight: 250,
            hold: Self::HOLD,
        },
        Self {
            weight: 500,
            hold: Self::HOLD,
        },
    ];

    /// The step of a blue-green rollout that names none: how long the old stay warm after the switch.
    pub const BLUE_GREEN: [Self; 1] = [Self {
        weight: Self::WHOLE,
        hold: Duration::from_secs(60),
    }];
}

/// What the new revision is measured by. A time that is absent is not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// Thousandths of the requests that may fail; beyond those of the stable one where it is compared.
    pub error_rate: u32,
    /// Thousandths of the requests that may trap, judged like the error rate.
    pub traps: u32,
    /// 99 of 100 requests are answered within it; or as fast as by the stable one, where it is compared.
    pub p99: Option<Duration>,
    /// Thousandths of the median processor time of a request that may be spent beyond the stable one's.
    pub cpu: Option<u32>,
    /// Judged from so many requests on.
    pub min_requests: u32,
    pub compare: Compare,
}

impl Gates {
    /// Of a `gates` table without keys.
    pub const DEFAULT: Self = Self {
        error_rate: 10,
        traps: 1,
        p99: None,
        cpu: None,
        min_requests: 100,
        compare: Compare::Stable,
    };
}

/// What the figures of the new revision are held against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// The stable revision over the same time.
    #[default]
    Stable,
    /// The limits alone.
    None,
}

/// By what a request may ask for a revision. At least one is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Lower case.
    pub header: Option<String>,
    pub cookie: Option<String>,
}

/// How far the rollout of a revision is; a part of its service's record. Times are not stored: a hold begins anew after a
/// restart of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Of which revision; of another than the wanted one it means nothing.
    pub revision: RevisionNumber,
    /// Steps that have been held to their end.
    #[serde(default)]
    pub step: u32,
    /// No further step is taken.
    #[serde(default)]
    pub paused: bool,
    /// Steps and gates are passed over.
    #[serde(default)]
    pub promoted: bool,
}

impl RolloutRecord {
    /// At its beginning.
    pub const fn of(revision: RevisionNumber) -> Self {
        Self {
            revision,
            step: 0,
            paused: false,
            promoted: false,
        }
    }
}

impl Rollout {
    /// The steps that are taken: none without weights, and the defaults where the file names none.
    pub fn steps(&self) -> &[Step] {
        match self.strategy {
            Strategy::Rolling | Strategy::Recreate => &[],
            Strategy::Canary if self.steps.is_empty() => &Step::CANARY,
            Strategy::Canary => &self.steps,
            Strategy::BlueGreen if self.steps.is_empty() => &Step::BLUE_GREEN,
            // Of a file for a canary that is deployed blue-green, the first hold is how long the old stay.
            Strategy::BlueGreen => &self.steps[..1],
        }
    }

    /// The weight of a step: a blue-green rollout switches everything at once.
    pub fn weight(&self, step: Step) -> u32 {
        match self.strategy {
            Strategy::BlueGreen => Step::WHOLE,
            _ => step.weight.clamp(1, Step::WHOLE),
        }
    }
}
