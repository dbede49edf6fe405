//! Pods for tests of those who ask who runs here.

use super::{Index, Pod};

/// A pod of that namespace begins to run, called after it and its number, of one digit. Its cgroup is 10 and that number.
pub(crate) fn runs(index: &Index, number: u64, namespace: &str) {
    let uid = format!("2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e0{number}");
    let path = format!("/kubepods/burstable/pod{uid}");
    index.pod_applied(Pod {
        uid,
        namespace: namespace.to_owned(),
        name: format!("{namespace}-{number}"),
        ..Pod::default()
    });
    index.cgroup_created(10 + number, 1, &path, false);
}
