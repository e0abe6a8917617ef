//! Floor 1: what people write, as what it means. Text in, a model or every mistake at once out.
//!
//! One table of keys ([`keys`]) drives reading, the messages, the JSON Schema, the environment variables and printing. This floor
//! knows no file system, no clock and no socket: callers hand it text and a name for the messages.

pub mod artifact;
mod autoscale;
pub mod checks;
pub mod codes;
pub mod cross;
pub mod diagnostic;
pub mod diff;
pub mod fields;
pub mod fmt;
pub mod hosts;
pub mod jobs;
pub mod keys;
pub mod layers;
pub mod network;
pub mod node;
pub mod node_keys;
pub mod outside;
pub mod places;
pub mod print;
mod quantity;
pub mod read;
pub mod rollout;
pub mod schedule;
pub mod schema;
pub mod secrets;
pub mod service;
pub mod service_keys;
pub mod set;
pub mod units;
pub mod volumes;

pub use artifact::{artifact, digest_mismatch, not_offered_help};
pub use codes::{Code, explain};
pub use cross::{cross, cross_at};
pub use diagnostic::{Problem, Severity, Source, footer, render_all, visible};
pub use diff::{Change, diff};
pub use fmt::fmt;
pub use layers::{Origin, layers};
pub use node::{CheckedNode, changes, node};
pub use node_keys::variables;
pub use outside::nearest;
pub use places::place_of;
pub use print::{effective, effective_node};
pub use schema::{Which, schema};
pub use secrets::missing_secret;
pub use service::{Checked, service, service_of};
pub use set::set;
