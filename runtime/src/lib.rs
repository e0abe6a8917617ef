//! Run one guest behind one wall.
//!
//! This crate knows what a guest is, which walls exist and what may cross them. It knows no service, no node, no route
//! and no TOML: those belong to the orchestrator above it.

pub mod artifact;
pub mod backend;
pub mod budget;
pub mod compile;
pub mod cpu;
pub mod engine;
pub mod error;
pub mod guest;
pub mod http;
pub mod keyvalue;
pub mod volume;
pub mod wasm;

pub use artifact::{Artifact, ArtifactError, Digest, Kind};
pub use backend::{Backend, Exit, Feature, Instance, Prepared, Spent, Task, Usage};
pub use cpu::{CpuCounts, CpuTimes};
pub use engine::{Allocation, Allocator, EngineKind};
pub use error::{CallError, Limit, PrepareError, StartError, TrapReport};
pub use guest::{
    Credential, CredentialName, Grants, Guest, Hops, Level, Limits, LogSink, Neighbours, Outbound, Stream, Target,
};
pub use http::{Body, BodyError, Request, Response};
pub use keyvalue::{KeyValue, KeyValueError};
pub use volume::{Volume, VolumeGrant};
pub use wasm::{Compile, CompileHere, Stdio, WasmBackend, WasmOptions};
