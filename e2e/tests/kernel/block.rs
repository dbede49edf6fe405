//! Requests to disks: each is told once, with its size and times, and as the pod's.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use dinle_e2e::{
    act::act,
    cgroup::{self, Cgroup},
    disk::Loop,
    patience::eventually,
    skipped::skipped,
    stream::{Book, Stream},
};
use dinle_ebpf::block::SUMS_MAX;
use dinle_proto::v1::{
    Attribution, BlockIo, BlockLatency, BlockOperation, EndReason, Event, Filter, HostProcesses,
    Kind, LossStage, Selector, SubscribeRequest, event::Detail,
};

use crate::{Lab, shop, span};

/// What a disk reads and writes in one piece at the least, in bytes.
const SECTOR: u64 = 512;

/// A disk that nobody else uses: that of `DINLE_DISK`, whose content is lost, or a loop device of the test's own.
struct Disk {
    path: PathBuf,
    name: String,
    own: Option<Loop>,
}

impl Disk {
    /// `None` if this machine has none; then it says why.
    fn new() -> Option<Self> {
        if let Some(path) = std::env::var_os("DINLE_DISK") {
            let path = PathBuf::from(path);
            let name = path.file_name()?.to_str()?.to_owned();
            return Some(Self {
                path,
                name,
                own: None,
            });
        }
        Self::own()
    }

    /// A loop device.
    fn own() -> Option<Self> {
        match Loop::attach(SECTOR as u32) {
            Ok(own) => Some(Self {
                path: own.path.clone(),
                name: own.name.clone(),
                own: Some(own),
            }),
            Err(error) => {
                skipped(&format!(
                    "there is no disk to test with (loop devices: {error})"
                ));
                None
            }
        }
    }

    /// What the kernel says of it in sysfs.
    fn says(&self, file: &str) -> String {
        let path = format!("/sys/block/{}/{file}", self.name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Reads and writes done (Documentation/block/stat.rst).
    fn statistics(&self) -> [u64; 2] {
        let text = self.says("stat");
        let number = |at| text.split_whitespace().nth(at).unwrap().parse().unwrap();
        [number(0), number(4)]
    }

    /// It holds back what it is given, so that a flush makes it write.
    fn has_cache(&self) -> bool {
        self.says("queue/write_cache").trim() == "write back"
    }

    /// Runs `act block` in a cgroup, and gives its pid and how long each operation took.
    fn act(&self, cgroup: &Cgroup, how: &str, operations: &[&str]) -> (u32, Vec<Duration>) {
        let (pid, code, took) = self.try_act(cgroup, how, operations);
        assert_eq!(code, 0, "{how} {operations:?}");
        (pid, took)
    }

    fn try_act(
        &self,
        cgroup: &Cgroup,
        how: &str,
        operations: &[&str],
    ) -> (u32, i32, Vec<Duration>) {
        let path = self.path.to_str().unwrap();
        let mut command = act([&["block", path, how], operations].concat());
        command.stdout(Stdio::piped());
        let child = cgroup.spawn(command);
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let took = String::from_utf8(output.stdout).unwrap();
        let took = took
            .lines()
            .map(|line| Duration::from_nanos(line.parse().unwrap()));
        (pid, output.status.code().unwrap(), took.collect())
    }

    /// Requests to this disk that a stream was told of.
    fn requests<'a>(&self, stream: &'a Stream) -> Vec<(&'a Event, &'a BlockIo)> {
        let all = stream.details(io);
        all.filter(|(_, io)| io.disk == self.name).collect()
    }

    /// What a stream's snapshots say of this disk, of one operation.
    fn latency(&self, stream: &Stream, operation: BlockOperation) -> BlockLatency {
        let mut sum = BlockLatency::default();
        for (_, row) in stream.rows(latency) {
            if row.disk != self.name || row.operation() != operation {
                continue;
            }
            sum.count += row.count;
            sum.bytes += row.bytes;
            sum.device_ns += row.device_ns;
            sum.queued_ns += row.queued_ns;
            let len = sum.buckets.len().max(row.buckets.len());
            sum.buckets.resize(len, 0);
            for (sum, more) in sum.buckets.iter_mut().zip(&row.buckets) {
                *sum += more;
            }
        }
        sum
    }
}

fn io(detail: &Detail) -> Option<&BlockIo> {
    match detail {
        Detail::BlockIo(io) => Some(io),
        _ => None,
    }
}

fn latency(detail: &Detail) -> Option<&BlockLatency> {
    match detail {
        Detail::BlockLatency(latency) => Some(latency),
        _ => None,
    }
}

/// Requests of the pod, and the ends of its processes, which come behind those.
fn requests() -> SubscribeRequest {
    SubscribeRequest {
        kinds: vec![Kind::BlockIo.into(), Kind::Exit.into()],
        ..shop()
    }
}

fn filtered(filter: Filter) -> SubscribeRequest {
    SubscribeRequest {
        kinds: vec![Kind::BlockIo.into()],
        filter: Some(filter),
        ..shop()
    }
}

/// Latencies of the pod, as often as can be.
fn latencies() -> SubscribeRequest {
    SubscribeRequest {
        kinds: vec![Kind::BlockLatency.into(), Kind::Exit.into()],
        interval: Some(span(Duration::from_secs(1))),
        ..shop()
    }
}

fn length(time: Option<prost_types::Duration>) -> Duration {
    time.map(|time| time.try_into().unwrap())
        .unwrap_or_default()
}

#[test]
fn each_request_is_told_once_with_its_size_and_times() {
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let mut stream = lab.agent.subscribe(requests());
    let before = disk.statistics();
    let (pid, took) = disk.act(
        &lab.app,
        "direct",
        &["read", "23", "8192", "write", "29", "16384"],
    );
    let after = disk.statistics();
    stream.through_exit(pid);

    let requests = disk.requests(&stream);
    let expected = [
        (BlockOperation::Read, 23, 8192),
        (BlockOperation::Write, 29, 16384),
    ];
    assert_eq!(requests.len(), 52);
    for (at, (operation, count, bytes)) in expected.into_iter().enumerate() {
        let told: Vec<_> = requests
            .iter()
            .filter(|(_, io)| io.operation() == operation)
            .collect();
        assert_eq!(told.len(), count, "{operation:?}");
        let mut in_all = Duration::ZERO;
        for (turn, (event, io)) in told.iter().enumerate() {
            assert_eq!(u64::from(io.bytes), bytes, "{io:?}");
            assert_eq!(io.sector, Some(turn as u64 * bytes / SECTOR), "{io:?}");
            assert_eq!(io.error, 0);
            assert!(io.sync || operation == BlockOperation::Read, "{io:?}");
            assert!(!(io.meta || io.fua || io.preflush), "{io:?}");
            // The test does not give the controller `io` to the pod's cgroups.
            assert_eq!(io.attribution(), Attribution::Task);
            assert!(
                io.queued.is_some() && length(io.device) > Duration::ZERO,
                "{io:?}"
            );
            in_all += length(io.queued) + length(io.device);
            assert_eq!(event.cgroup_id, lab.app.id());
            assert_eq!(event.workload.as_ref().unwrap().pod, "web");
            let process = event.process.as_ref().unwrap();
            assert_eq!((process.pid, process.comm.as_str()), (pid, "act"));
            assert_eq!(process.ppid, std::process::id());
        }
        // They came one after the other: what the process waited for each is more than what its request took.
        assert!(in_all <= took[at], "{operation:?}: {in_all:?} {took:?}");
        // Its time is no bound of ours: requests that end together end at one moment there, before the first is told of
        // (block/blk-mq.c, blk_mq_end_request_batch).
        let requests = after[at] - before[at];
        assert!(requests >= count as u64, "{operation:?}: {requests}");
    }
    assert_eq!(stream.losses.len(), 0);
    assert!(stream.book(Kind::BlockIo).lost.is_empty());
}

#[test]
fn a_flush_and_a_write_through_are_told_as_the_process_asks_for_them() {
    let Some(disk) = Disk::new() else { return };
    if !disk.has_cache() {
        skipped(&format!("{} has no cache to write out", disk.name));
        return;
    }
    let lab = Lab::of("process,block");
    let mut stream = lab.agent.subscribe(requests());
    let (pid, took) = disk.act(&lab.app, "direct", &["fsync", "7", "0"]);
    stream.through_exit(pid);
    let flushes = disk.requests(&stream);
    assert_eq!(flushes.len(), 7);
    let mut in_all = Duration::ZERO;
    for (event, io) in &flushes {
        assert_eq!(io.operation(), BlockOperation::Flush, "{io:?}");
        assert!(io.preflush);
        assert_eq!((io.bytes, io.sector, io.queued), (0, None, None));
        in_all += length(io.device);
        assert_eq!(event.process.as_ref().unwrap().pid, pid);
        assert_eq!(event.cgroup_id, lab.app.id());
    }
    assert!(
        Duration::ZERO < in_all && in_all <= took[0],
        "{in_all:?} {took:?}"
    );

    let seen = flushes.len();
    let (pid, _) = disk.act(&lab.app, "dsync", &["write", "5", "4096"]);
    stream.through_exit(pid);
    let all = disk.requests(&stream);
    let writes: Vec<_> = all[seen..]
        .iter()
        .filter(|(_, io)| io.operation() == BlockOperation::Write)
        .collect();
    // However the disk does it, as a flag or as a flush behind it, it is one write.
    assert_eq!(writes.len(), 5);
    for (event, io) in writes {
        assert!(io.fua, "{io:?}");
        assert_eq!(io.bytes, 4096);
        assert_eq!(event.process.as_ref().unwrap().pid, pid);
    }
}

#[test]
fn what_others_do_is_not_told() {
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let (_, elsewhere) = lab.tree.app("unknown");
    let host = lab.tree.host("cron.service");
    let mut stream = lab.agent.subscribe(requests());
    disk.act(&elsewhere, "direct", &["write", "29", "4096"]);
    disk.act(&host, "direct", &["write", "29", "4096"]);
    let (pid, _) = disk.act(&lab.app, "direct", &["write", "23", "4096"]);
    stream.through_exit(pid);
    assert_eq!(disk.requests(&stream).len(), 23);
    assert!(
        stream
            .events
            .iter()
            .all(|event| event.cgroup_id == lab.app.id())
    );

    // Who asks for the host's processes is told of those.
    let mut host_stream = lab.agent.subscribe(SubscribeRequest {
        selector: Some(Selector {
            host_processes: HostProcesses::Only.into(),
            ..Selector::default()
        }),
        ..requests()
    });
    let (pid, _) = disk.act(&host, "direct", &["write", "19", "4096"]);
    host_stream.through_exit(pid);
    assert_eq!(disk.requests(&host_stream).len(), 19);
}

#[test]
fn what_takes_less_time_than_asked_for_is_left_out_in_the_kernel() {
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let slow = filtered(Filter {
        min_duration: Some(span(Duration::from_secs(3600))),
        ..Filter::default()
    });
    let mut stream = lab.agent.subscribe(slow);
    disk.act(&lab.app, "direct", &["write", "23", "4096"]);
    stream.heartbeat();
    assert_eq!(stream.book(Kind::BlockIo), Book::complete(0));
    let frames = |lab: &Lab| {
        let (_, metrics) = lab.agent.get("/metrics");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("dinle_frames_total{kind=\"block_io\"}"));
        line.map_or(0, |line| {
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        })
    };
    assert_eq!(frames(&lab), 0, "the kernel left it out");

    // Where somebody else wants to know, the agent leaves it out.
    let mut all = lab.agent.subscribe(requests());
    let (pid, _) = disk.act(&lab.app, "direct", &["write", "23", "4096"]);
    all.through_exit(pid);
    stream.heartbeat();
    assert_eq!(disk.requests(&all).len(), 23);
    assert_eq!(stream.book(Kind::BlockIo), Book::complete(0));
    assert!(frames(&lab) >= 23);
}

#[test]
fn what_fails_is_told_with_its_error() {
    let Some(disk) = Disk::own() else { return };
    let lab = Lab::of("process,block");
    let mut stream = lab.agent.subscribe(filtered(Filter {
        failed: true,
        ..Filter::default()
    }));
    // The disk gets smaller than it says: what is behind cannot be read.
    let Loop { backing, .. } = disk.own.as_ref().unwrap();
    backing.set_len(3 * 4096).unwrap();
    let (pid, code, _) = disk.try_act(&lab.app, "direct", &["read", "9", "4096"]);
    if code == 0 {
        skipped("this kernel reads zeros where there is nothing");
        return;
    }
    assert_eq!(code, libc::EIO);
    stream.until("the failure", |stream| !disk.requests(stream).is_empty());
    stream.heartbeat();
    let failed = disk.requests(&stream);
    assert_eq!(failed.len(), 1, "{failed:?}");
    let (event, io) = failed[0];
    assert_eq!(
        (io.error, io.sector),
        (libc::EIO as u32, Some(3 * 4096 / SECTOR))
    );
    assert_eq!(event.process.as_ref().unwrap().pid, pid);
}

#[test]
fn a_discard_is_told() {
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let mut stream = lab.agent.subscribe(requests());
    let (pid, code, _) = disk.try_act(&lab.app, "direct", &["discard", "3", "65536"]);
    if code == libc::EOPNOTSUPP {
        skipped(&format!("{} cannot discard", disk.name));
        return;
    }
    assert_eq!(code, 0);
    stream.through_exit(pid);
    let told: Vec<_> = disk
        .requests(&stream)
        .iter()
        .map(|(_, io)| (io.operation(), io.sector, io.bytes))
        .collect();
    let expected = [0, 1, 2].map(|turn| (BlockOperation::Discard, Some(turn * 128), 65536));
    assert_eq!(told, expected);
}

#[test]
fn latencies_add_up_to_what_happened() {
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let (_, elsewhere) = lab.tree.app("unknown");
    let mut stream = lab.agent.subscribe(latencies());
    let mut in_all = [Duration::ZERO; 2];
    for turn in 1..=3u64 {
        let (pid, took) = disk.act(
            &lab.app,
            "direct",
            &["read", "23", "8192", "write", "29", "16384"],
        );
        disk.act(&elsewhere, "direct", &["read", "31", "4096"]);
        in_all[0] += took[0];
        in_all[1] += took[1];
        stream.through_exit(pid);
        // In another snapshot each time: what comes next adds to other ones.
        stream.until("the latencies", |stream| {
            disk.latency(stream, BlockOperation::Read).count >= turn * 23
                && disk.latency(stream, BlockOperation::Write).count >= turn * 29
        });
    }
    stream.heartbeat();
    let expected = [
        (BlockOperation::Read, 69, 69 * 8192),
        (BlockOperation::Write, 87, 87 * 16384),
    ];
    for (at, (operation, count, bytes)) in expected.into_iter().enumerate() {
        let sum = disk.latency(&stream, operation);
        assert_eq!((sum.count, sum.bytes), (count, bytes), "{operation:?}");
        let time = Duration::from_nanos(sum.device_ns + sum.queued_ns);
        assert!(time <= in_all[at], "{operation:?}: {time:?} {in_all:?}");
        // A bucket's bounds hold for each that is in it.
        let least: u64 = sum
            .buckets
            .iter()
            .enumerate()
            .map(|(i, count)| if i == 0 { 0 } else { count << i })
            .sum();
        let most: u64 = sum
            .buckets
            .iter()
            .enumerate()
            .map(|(i, count)| count << (i + 1))
            .sum();
        let us = sum.device_ns / 1000;
        assert!(least <= us && us <= most, "{sum:?}");
    }
    for (event, row) in stream.rows(latency) {
        assert_eq!(row.buckets.iter().sum::<u64>(), row.count);
        assert!(row.count > 0, "a row tells of something");
        assert_eq!(event.cgroup_id, lab.app.id());
        assert_eq!(event.workload.as_ref().unwrap().pod, "web");
    }
    let rows = stream.rows(latency).count() as u64;
    assert_eq!(stream.book(Kind::BlockLatency), Book::complete(rows));
    assert_eq!(stream.losses.len(), 0);
}

#[test]
fn latencies_begin_with_the_stream_and_end_with_it() {
    let Some(disk) = Disk::new() else { return };
    let mut lab = Lab::of("process,block");
    let first = lab.agent.subscribe(latencies());
    disk.act(&lab.app, "direct", &["read", "31", "4096"]);
    // What the first was not told of any more is nothing to the second.
    drop(first);
    let mut second = lab.agent.subscribe(latencies());
    disk.act(&lab.app, "direct", &["read", "23", "4096"]);
    let mut third = lab.agent.subscribe(SubscribeRequest {
        interval: Some(span(Duration::from_secs(3600))),
        ..latencies()
    });
    disk.act(&lab.app, "direct", &["read", "19", "4096"]);
    let read = |stream: &Stream| disk.latency(stream, BlockOperation::Read).count;
    second.until("both", |stream| read(stream) >= 42);
    second.heartbeat();
    assert_eq!(read(&second), 42);
    // It ends before its interval does, and is told all the same.
    drop(second);
    lab.agent.signal(libc::SIGTERM);
    assert_eq!(third.to_end(), EndReason::Shutdown);
    assert_eq!(read(&third), 19);
    assert_eq!(third.snapshots.len(), 1);
    assert!(lab.agent.wait().success());
}

#[test]
fn sums_that_find_no_room_are_told() {
    /// As many as the kernel's table holds, and some.
    const CGROUPS: u64 = SUMS_MAX as u64 + 23;
    let Some(disk) = Disk::new() else { return };
    let lab = Lab::of("process,block");
    let mut stream = lab.agent.subscribe(latencies());
    // Has them one by one: also what the program itself is read from.
    let mut each = lab.agent.subscribe(requests());
    let command = act([
        "block",
        "roam",
        lab.app.path.to_str().unwrap(),
        &CGROUPS.to_string(),
        disk.path.to_str().unwrap(),
        "4096",
    ]);
    let ran = lab.app.succeed(command);
    each.through_exit(ran.pid);
    assert_eq!(disk.requests(&each).len() as u64, CGROUPS);
    let lost = |stream: &Stream| stream.told_lost(Kind::BlockLatency, LossStage::KernelTable);
    eventually("each request is counted in a row or lost", || {
        each.heartbeat();
        stream.heartbeat();
        let counted: u64 = stream.rows(latency).map(|(_, row)| row.count).sum();
        counted + lost(&stream) == each.details(io).count() as u64
    });
    assert!(each.losses.is_empty(), "{:?}", each.losses);
    let rows: HashSet<_> = stream
        .rows(latency)
        .map(|(event, row)| (event.cgroup_id, &row.disk, row.operation))
        .collect();
    assert_eq!(
        rows.len() as u32,
        SUMS_MAX,
        "what is lost is what does not fit"
    );
    assert_eq!(
        stream.book(Kind::BlockLatency).lost,
        [(LossStage::KernelTable, lost(&stream))]
    );
}

/// Controllers that nobody used below the root before. Nobody does again when it is dropped, which has to be after all cgroups that do.
#[derive(Default)]
struct Taken(Vec<String>);

impl Drop for Taken {
    fn drop(&mut self) {
        let control = cgroup::root().join("cgroup.subtree_control");
        for controller in &self.0 {
            // Somebody else may use it by now.
            _ = fs::write(&control, format!("-{controller}"));
        }
    }
}

/// Lets the controllers be used in a cgroup and all above it. `false` if they are not cgroup v2's.
fn delegate(cgroup: &Cgroup, controllers: &str, taken: &mut Taken) -> bool {
    let root = cgroup::root();
    let has = fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    if !controllers
        .split(' ')
        .all(|one| has.split_whitespace().any(|has| has == &one[1..]))
    {
        return false;
    }
    let used = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap();
    let new = controllers.split(' ').map(|one| one[1..].to_owned());
    taken
        .0
        .extend(new.filter(|one| used.split_whitespace().all(|used| used != one)));
    let below = cgroup.path.strip_prefix(&root).unwrap();
    let mut at = root.clone();
    for part in below.parent().unwrap().components() {
        fs::write(at.join("cgroup.subtree_control"), controllers).unwrap();
        at.push(part);
    }
    fs::write(at.join("cgroup.subtree_control"), controllers).unwrap();
    true
}

#[test]
fn what_is_written_back_is_the_pods_whoever_writes_it() {
    let Some(disk) = Disk::new() else { return };
    let mut taken = Taken::default();
    let lab = Lab::of("process,block");
    if !delegate(&lab.app, "+io +memory", &mut taken) {
        skipped("the controllers `io` and `memory` are not those of cgroup v2");
        return;
    }
    let mut stream = lab.agent.subscribe(requests());
    // Held open, since the last one who closes a disk writes to it what is left.
    let other = File::open(&disk.path).unwrap();
    let (pid, _) = disk.act(&lab.app, "buffered", &["write", "23", "4096"]);
    other.sync_all().unwrap();
    stream.through_exit(pid);
    let bytes = |stream: &Stream| {
        let all = disk.requests(stream);
        let writes = all
            .iter()
            .filter(|(_, io)| io.operation() == BlockOperation::Write);
        writes.map(|(_, io)| u64::from(io.bytes)).sum::<u64>()
    };
    stream.until("the writes", |stream| bytes(stream) >= 23 * 4096);
    stream.heartbeat();
    assert_eq!(bytes(&stream), 23 * 4096);
    for (event, io) in disk.requests(&stream) {
        if io.operation() != BlockOperation::Write {
            continue;
        }
        assert_eq!(io.attribution(), Attribution::Bio, "{io:?}");
        assert_eq!(event.cgroup_id, lab.app.id());
        assert_eq!(event.process, None, "it is not known who of the pod");
    }
    // With the controller, also what the pod does itself is known by its data.
    let seen = disk.requests(&stream).len();
    let (pid, _) = disk.act(&lab.app, "direct", &["read", "19", "4096"]);
    stream.through_exit(pid);
    let all = disk.requests(&stream);
    let reads: Vec<_> = all[seen..]
        .iter()
        .filter(|(_, io)| io.operation() == BlockOperation::Read)
        .collect();
    assert_eq!(reads.len(), 19);
    for (event, io) in reads {
        assert_eq!(io.attribution(), Attribution::Bio, "{io:?}");
        assert_eq!(event.process.as_ref().unwrap().pid, pid);
    }
}

#[test]
fn nothing_of_the_disk_is_left() {
    let Some(disk) = Disk::own() else { return };
    let place = format!("/sys/block/{}/loop/backing_file", disk.name);
    let backing = fs::read_to_string(&place).unwrap();
    drop(disk);
    // Another test may have got the device by then.
    eventually("the loop device is free again", || {
        fs::read_to_string(&place).ok().as_ref() != Some(&backing)
    });
}
