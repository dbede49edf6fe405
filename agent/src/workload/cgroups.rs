//! What the path of a cgroup says: pure, and the only place that knows how runtimes name directories.

/// Who runs in a cgroup, as far as its path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The pod's uid with dashes, or, for a static pod, the 32 hex digits of its configuration's hash.
    pub(super) pod: Option<String>,
    /// The runtime's id of the container. Below a pod, the container that the pod itself has; not one that runs inside it.
    pub(super) container: Option<String>,
}

impl Place {
    /// Nothing but a directory.
    pub(super) fn is_empty(&self) -> bool {
        self.pod.is_none() && self.container.is_none()
    }

    /// The name under which a pod answers for this place.
    pub(super) fn key(&self) -> Option<&str> {
        self.pod.as_deref().or(self.container.as_deref())
    }
}

/// Length of a container's id: a SHA-256 in hex.
const CONTAINER_ID_LEN: usize = 64;
/// Length of a uid as the API server makes it: 8-4-4-4-12.
const UID_LEN: usize = 36;
/// Where its dashes are.
const UID_DASHES: [usize; 4] = [8, 13, 18, 23];
/// Length of the hash that stands for the uid of a static pod: an MD5 in hex.
const HASH_LEN: usize = 32;

/// Reads a path from its innermost component outwards, up to the first pod: a node may itself be a container, or even
/// a pod, and what is outside of the innermost pod is that node.
pub(super) fn parse(path: &str) -> Place {
    let mut innermost = None;
    let mut outermost = None;
    for component in path.rsplit('/') {
        // A containerd that was not told to use systemd takes the `slice:prefix:id` meant for it as a directory's name.
        let (slice, unit) = component
            .split_once(':')
            .map_or((component, component), |(slice, rest)| {
                (slice, rest.rsplit(':').next().unwrap_or(rest))
            });
        if let Some(id) = container_id(unit) {
            innermost.get_or_insert(id);
            outermost = Some(id);
        }
        if let Some(pod) = pod_uid(slice) {
            return Place {
                pod: Some(pod),
                container: outermost.map(str::to_owned),
            };
        }
    }
    Place {
        pod: None,
        container: innermost.map(str::to_owned),
    }
}

/// `<id>`, `<runtime>-<id>` or `<runtime>-<id>.scope`.
fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (prefix, id) = name.split_at_checked(name.len().checked_sub(CONTAINER_ID_LEN)?)?;
    // conmon watches a container from outside of it.
    let names_a_container =
        prefix.is_empty() || prefix.ends_with('-') && !prefix.ends_with("conmon-");
    (names_a_container && is_hex(id)).then_some(id)
}

/// `pod<uid>`, or `<anything>-pod<uid>.slice` with the dashes of the uid written as underscores.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    [UID_LEN, HASH_LEN].into_iter().find_map(|len| {
        let (prefix, uid) = name.split_at_checked(name.len().checked_sub(len)?)?;
        let parent = prefix.strip_suffix("pod")?;
        let is_uid = if len == HASH_LEN {
            is_hex(uid)
        } else {
            is_dashed(uid, '-') || is_dashed(uid, '_')
        };
        (is_uid && (parent.is_empty() || parent.ends_with('-'))).then(|| uid.replace('_', "-"))
    })
}

fn is_dashed(uid: &str, dash: char) -> bool {
    uid.char_indices().all(|(at, c)| {
        if UID_DASHES.contains(&at) {
            c == dash
        } else {
            is_hex_digit(c)
        }
    })
}

fn is_hex(text: &str) -> bool {
    text.chars().all(is_hex_digit)
}

fn is_hex_digit(c: char) -> bool {
    matches!(c, '0'..='9' | 'a'..='f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
    const UID_: &str = "2f1ee1cf_7f5c_4f0e_9b0b_0d5c3a9d8e11";
    const HASH: &str = "be84997637164a52d9f1fd6acfbda804";
    const C: &str = "4c01db0b339c7e1f8a6d5b2f90e3a1c44c01db0b339c7e1f8a6d5b2f90e3a1c4";
    const OTHER: &str = "99aa0b339c7e1f8a6d5b2f90e3a1c44c01db0b339c7e1f8a6d5b2f90e3a1c4ff";

    /// Replaces the names above, so that the paths below stay readable.
    fn path(template: &str) -> String {
        template
            .replace("{uid_}", UID_)
            .replace("{uid}", UID)
            .replace("{hash}", HASH)
            .replace("{other}", OTHER)
            .replace("{c}", C)
    }

    #[test]
    fn paths_of_every_runtime() {
        let (u, h) = (Some(UID), Some(HASH));
        let (c, none) = (Some(C), None);
        for (template, pod, container) in [
            // containerd
            ("/kubepods/burstable/pod{uid}/{c}", u, c),
            ("/kubepods/besteffort/pod{uid}/{c}", u, c),
            ("/kubepods/pod{uid}/{c}", u, c),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{c}.scope",
                u,
                c,
            ),
            (
                "/kubepods.slice/kubepods-pod{uid_}.slice/cri-containerd-{c}.scope",
                u,
                c,
            ),
            // containerd with cgroupfs below a kubelet with systemd
            (
                "/system.slice/containerd.service/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{c}",
                u,
                c,
            ),
            (
                "/kubepods-pod{uid_}.slice:cri-containerd:{c}/init.scope",
                u,
                c,
            ),
            // CRI-O, its monitor, and what crun and it make below a container
            ("/kubepods/burstable/pod{uid}/crio-{c}", u, c),
            ("/kubepods/burstable/pod{uid}/crio-conmon-{c}", u, none),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/crio-{c}.scope",
                u,
                c,
            ),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid_}.slice/crio-{c}.scope/container",
                u,
                c,
            ),
            (
                "/kubepods.slice/kubepods-pod{uid_}.slice/crio-{c}.scope/exec",
                u,
                c,
            ),
            (
                "/kubepods.slice/kubepods-pod{uid_}.slice/crio-conmon-{c}.scope",
                u,
                none,
            ),
            ("/system.slice/crio-conmon-{c}.scope", none, none),
            // Docker, with and without Kubernetes
            (
                "/kubepods.slice/kubepods-pod{uid_}.slice/docker-{c}.scope",
                u,
                c,
            ),
            ("/kubepods/besteffort/pod{uid}/{c}", u, c),
            ("/docker/{c}", none, c),
            ("/system.slice/docker-{c}.scope", none, c),
            // podman and nerdctl
            ("/machine.slice/libpod-{c}.scope/container", none, c),
            ("/machine.slice/libpod-conmon-{c}.scope", none, none),
            ("/libpod_parent/libpod-{c}/container", none, c),
            ("/libpod_parent/libpod-conmon-{c}", none, none),
            (
                "/machine.slice/machine-libpod_pod_{other}.slice/libpod-{c}.scope",
                none,
                c,
            ),
            ("/machine.slice/machine-libpod_pod_{c}.slice", none, none),
            ("/user.slice/user-1000.slice/nerdctl-{c}.scope", none, c),
            // The pod's own directory, and those above
            ("/kubepods/burstable/pod{uid}", u, none),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid_}.slice",
                u,
                none,
            ),
            ("/kubepods", none, none),
            ("/kubepods.slice/kubepods-besteffort.slice", none, none),
            // kind: the node is a container of Docker
            (
                "/docker/{other}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{uid_}.slice/cri-containerd-{c}.scope",
                u,
                c,
            ),
            (
                "/system.slice/docker-{other}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{uid_}.slice",
                u,
                none,
            ),
            ("/docker/{other}/kubelet/kubepods/pod{uid}/{c}", u, c),
            ("/docker/{c}/kubelet.slice", none, c),
            ("/docker/{c}/system.slice/containerd.service", none, c),
            // k3s, alone and in Docker
            ("/kubepods/burstable/pod{uid}/{c}", u, c),
            ("/docker/{other}/kubepods/besteffort/pod{uid}/{c}", u, c),
            ("/system.slice/k3s.service", none, none),
            // --cgroup-root
            ("/node1/kubepods/pod{uid}/{c}", u, c),
            (
                "/node1.slice/node1-kubepods.slice/node1-kubepods-pod{uid_}.slice/cri-containerd-{c}.scope",
                u,
                c,
            ),
            // Static pods
            ("/kubepods/besteffort/pod{hash}", h, none),
            ("/kubepods/besteffort/pod{hash}/{c}", h, c),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-{c}.scope",
                h,
                c,
            ),
            // What runs inside a container of a pod belongs to that container
            ("/kubepods/burstable/pod{uid}/{c}/docker/{other}", u, c),
            (
                "/kubepods/pod{uid}/{c}/system.slice/docker-{other}.scope",
                u,
                c,
            ),
            ("/kubepods/pod{uid}/{c}/init.scope", u, c),
            (
                "/kubepods/pod{uid}/{c}/libpod_parent/libpod-conmon-{other}",
                u,
                c,
            ),
            // Not Kubernetes
            ("/", none, none),
            ("", none, none),
            ("/init.scope", none, none),
            ("/system.slice/sshd.service", none, none),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice",
                none,
                none,
            ),
            ("/system.slice/run-r{hash}.scope", none, none),
            ("/kubepods/mypod{uid}", none, none),
            ("/kubepods/pod{uid}x", none, none),
            ("/kubepods/pod{hash}f", none, none),
            ("/system.slice/docker-{c}.mount", none, none),
            ("/system.slice/docker-{c}0.scope", none, none),
            ("/system.slice/docker{c}.scope", none, none),
            ("/system.slice/üöä:ß:é", none, none),
        ] {
            let place = parse(&path(template));
            assert_eq!(place.pod.as_deref(), pod, "pod of {template}");
            assert_eq!(
                place.container.as_deref(),
                container,
                "container of {template}"
            );
        }
    }

    #[test]
    fn a_uid_has_one_kind_of_dash_and_hex_digits_only() {
        for uid in [
            "2f1ee1cf-7f5c_4f0e-9b0b-0d5c3a9d8e11",
            "2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e1g",
            "2F1EE1CF-7F5C-4F0E-9B0B-0D5C3A9D8E11",
            "2f1ee1cf7f5c-4f0e-9b0b-0d5c3a9d8e111-",
        ] {
            assert_eq!(parse(&format!("/kubepods/pod{uid}")), Place::default());
        }
    }
}
