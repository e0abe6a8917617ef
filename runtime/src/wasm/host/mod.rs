//! What a guest meets when it calls out: one file for each kind of thing. None of them knows a service.

pub mod clocks;
pub mod config;
pub mod filesystem;
pub mod keyvalue;
pub mod logging;
pub mod outbound;
pub mod outside;
pub mod sockets;
pub mod stdio;
