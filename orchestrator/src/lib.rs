//! Keep what is equal to what should be.
//!
//! Floors, arrows pointing down only: `cli -> api, agent, controller -> proxy, store, artifacts, … -> plan, config -> model`,
//! and the `narae-runtime` crate below all. Floors 0 and 1 are plain functions over plain data: no clock, no file, no socket.

pub mod agent;
pub mod api;
pub mod artifacts;
pub mod certificates;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod crashes;
pub mod daemon;
pub mod demo;
pub mod events;
pub mod load;
pub mod logs;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod proxy;
pub mod secret_file;
pub mod secrets;
pub mod store;
