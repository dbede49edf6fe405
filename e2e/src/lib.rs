//! What the tests that need root, a kernel, a VM or a cluster share.
//!
//! The tests of a kernel run the agent as a process, on a tree of cgroups of their own that looks like the kubelet's, with pods
//! from a file. What happens there is made by the helper `act`, so that only a kernel is needed and nothing of a distribution.

pub mod act;
pub mod agent;
pub mod bpf;
pub mod cgroup;
pub mod disk;
pub mod patience;
pub mod pods;
pub mod skipped;
pub mod stream;
pub mod vm;
