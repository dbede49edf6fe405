//! What the tests that need root, a kernel, a VM or a cluster share.

pub mod vm;
