//! The agent under fire: far more than it can take, cgroups that come and go, threads and processes that stand still. Needs what the
//! tests of the kernel need.
//!
//! These tests fill the machine, and run one after the other.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "fire/churn.rs"]
mod churn;
#[path = "fire/faults.rs"]
mod faults;
#[path = "fire/overload.rs"]
mod overload;
#[path = "fire/producer.rs"]
mod producer;
#[path = "fire/subscriber.rs"]
mod subscriber;

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use dinle_e2e::agent::Agent;
use dinle_proto::v1::{Selector, SubscribeRequest};

/// One at a time: each of them is measured, or needs the machine to itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that happens in the pods of the namespace `shop`.
fn shop() -> SubscribeRequest {
    SubscribeRequest {
        selector: Some(Selector {
            namespaces: vec!["shop".into()],
            ..Selector::default()
        }),
        ..SubscribeRequest::default()
    }
}

/// A line of /proc/PID/status, such as `VmRSS`, in KiB.
fn memory(agent: &Agent, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let found = status
        .lines()
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let value = found.unwrap().trim().trim_end_matches(" kB");
    value.parse().unwrap()
}

/// The value of a metric, by its name with labels.
fn metric(metrics: &str, name: &str) -> u64 {
    let mut lines = metrics.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found
        .unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
        .parse()
        .unwrap()
}
