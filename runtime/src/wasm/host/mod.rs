//! What a guest meets when it calls out: one file for each kind of thing. None of them knows a service.

pub mod config;
pub mod keyvalue;
pub mod outbound;
pub mod outside;
pub mod stdio;
