//! Floor 0: the nouns. Plain data without behaviour that could look at a clock, a file or a socket.

pub mod event;
pub mod ids;
pub mod node;
pub mod record;
pub mod replica;
pub mod service;
pub mod time;
pub mod views;

pub use event::{Event, EventKind};
pub use ids::{ReplicaCount, ReplicaId, RevisionNumber, ServiceName};
pub use node::NodeConfig;
pub use record::{Refusal, Revision, RevisionState, ServiceRecord, Why};
pub use replica::{Death, Phase, Probing, Replica};
pub use service::ServiceSpec;
pub use time::{Millis, Timestamp};
