//! Floor 0: the nouns. Plain data without behaviour that could look at a clock, a file or a socket.

pub mod calendar;
pub mod event;
pub mod ids;
pub mod job;
pub mod node;
pub mod record;
pub mod redacted;
pub mod replica;
pub mod rollout;
pub mod schedule;
pub mod service;
pub mod time;
pub mod views;

pub use event::{Event, EventKind};
pub use ids::{ReplicaCount, ReplicaId, RevisionNumber, ServiceName};
pub use job::{JobRun, RunId, RunState};
pub use node::NodeConfig;
pub use record::{Refusal, Revision, RevisionState, ServiceRecord, Why};
pub use redacted::Redacted;
pub use replica::{Death, Live, Phase, Probing, Replica};
pub use rollout::RolloutRecord;
pub use service::ServiceSpec;
pub use time::{Millis, Timestamp};
