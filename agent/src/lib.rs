//! The agent and the command line of Dinle. `app` wires the rooms; `tests/rooms.rs` says who may know whom.

pub mod admission;
pub mod api;
pub mod apiserver;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod control;
pub mod errno;
pub mod event;
pub mod export;
pub mod filter;
pub mod hub;
pub mod json;
pub mod kernel;
pub mod listen;
pub mod metrics;
pub mod pipeline;
pub mod sessions;
pub mod workload;
