//! The agent and the command line of Dinle. `app` wires the rooms; `tests/rooms.rs` says who may know whom.

pub mod client;
pub mod event;
pub mod filter;
pub mod kernel;
pub mod workload;
