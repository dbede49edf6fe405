//! A tree of cgroups like the kubelet's, and processes in it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use crate::{
    patience::eventually,
    pods::{Pod, container_id, unique},
};

/// Where the cgroup2 tree is mounted.
pub fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    mount.expect("a mount of the type cgroup2; `mount -t cgroup2 none /sys/fs/cgroup` makes one")
}

/// The tree of one test. Dropping it ends what runs in it and removes it.
#[derive(Debug)]
pub struct Tree(PathBuf);

/// A directory in a [`Tree`].
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Its path on this machine.
    pub path: PathBuf,
}

/// A process that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Its id.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
}

impl Tree {
    /// A tree without pods.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        let (process, number) = unique();
        let path = root().join(format!("dinle-test-{process}-{number}"));
        fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("make {}: {error}; run as root", path.display()));
        Self(path)
    }

    /// A directory outside every pod, as of a service of systemd.
    pub fn host(&self, name: &str) -> Cgroup {
        Cgroup::make(self.0.join(name))
    }

    /// The directory of a pod of the QoS class `Burstable`.
    pub fn pod(&self, pod: &Pod) -> Cgroup {
        Cgroup::make(
            self.0
                .join("kubepods/burstable")
                .join(format!("pod{}", pod.uid)),
        )
    }

    /// The directory of a container with that id.
    pub fn container(&self, pod: &Pod, id: &str) -> Cgroup {
        self.pod(pod).child(id)
    }

    /// A pod with that name and one container `app` in it, with its directory.
    pub fn app(&self, name: &str) -> (Pod, Cgroup) {
        let id = container_id();
        let pod = Pod::new(name).container("app", &id);
        let cgroup = self.container(&pod, &id);
        (pod, cgroup)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let Self(path) = self;
        let dirs = below(path);
        // Since 5.14 the kernel does it.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            dirs.iter().for_each(|dir| kill_each(dir));
        }
        if std::thread::panicking() {
            // A second panic would hide the first.
            remove(&dirs);
            return;
        }
        eventually("the tree of cgroups is removed", || remove(&dirs));
    }
}

/// All directories, the outermost first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![path.to_owned()];
    let mut at = 0;
    while let Some(dir) = dirs.get(at) {
        let entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
        let subdirs = entries
            .iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.extend(subdirs.map(|entry| entry.path()));
        at += 1;
    }
    dirs
}

fn kill_each(dir: &Path) {
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids
        .lines()
        .filter_map(|pid| pid.parse::<libc::pid_t>().ok())
    {
        // SAFETY: has no preconditions. The process is one of this tree.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Whether everything is gone.
fn remove(dirs: &[PathBuf]) -> bool {
    let gone = |dir: &PathBuf| match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    dirs.iter().rev().all(gone)
}

impl Cgroup {
    fn make(path: PathBuf) -> Self {
        fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        Self { path }
    }

    /// A directory in it.
    pub fn child(&self, name: &str) -> Self {
        Self::make(self.path.join(name))
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("a cgroup").ino()
    }

    /// Makes the command's process enter before it executes the program: its fork happens outside, the rest inside.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let procs = self.path.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .unwrap_or_else(|error| panic!("open {}: {error}", procs.display()));
        // SAFETY: between fork and exec only write(2) is called.
        unsafe { command.pre_exec(move || (&procs).write_all(b"0")) }
    }

    /// Starts the command inside.
    pub fn spawn(&self, mut command: Command) -> Child {
        let spawned = self.enter(&mut command).spawn();
        spawned.unwrap_or_else(|error| panic!("run {command:?}: {error}"))
    }

    /// Runs the command inside, to its end. Its events are in the kernel's ring when this comes back.
    pub fn run(&self, command: Command) -> Ran {
        let mut child = self.spawn(command);
        let status = child.wait().expect("a child can be waited for");
        Ran {
            pid: child.id(),
            status,
        }
    }

    /// The same, and the program must end with 0.
    pub fn succeed(&self, command: Command) -> Ran {
        let shown = format!("{command:?}");
        let ran = self.run(command);
        assert!(ran.status.success(), "{shown}: {}", ran.status);
        ran
    }
}
