//! `dinle biosnoop` and `dinle biolatency`.

use std::{collections::BTreeMap, io, process::ExitCode};

use dinle_proto::v1::{self, event::Detail};

use super::Common;
use crate::client::{
    Screen,
    args::{Processes, parse_duration, string_match},
    columns::{COMM, Column, PARENT, PID, PPID, Seen, UID, Who, column},
    stream::{Format, Printer},
    text::{self, NONE},
};

pub(in crate::client) const BIOSNOOP: &str = "\
Print requests to disks, in the columns of bcc's biosnoop, with the pod's name in front.

T is what was asked for: R for read, W for write, F for flush, D for discard, DE for secure erase, WZ for write zeroes, Z for zones; before it an F if the \
disk's cache is to be written first; behind it F if the data is to be on the medium itself, A for read ahead, S if somebody waits for it, M for \
metadata. LAT is the time in the device, QUE the time before that; a flush has none. ERR is the error. ATTR, with -o wide, tells how the \
pod is known: by the cgroup that the data belongs to (bio), whoever writes it, or by the task that made the request (task), where the \
controller `io` does not tell more.

Examples:
  dinle biosnoop -n shop -Q
  dinle biosnoop -A --min-ms 20 -o wide";

pub(in crate::client) const BIOLATENCY: &str = "\
Draw how long requests to disks take, by pod, disk and operation, as bcc's biolatency does.

The kernel counts them in buckets by their time in the device; each is twice as wide as the one before. Without --interval all is added up and \
drawn at the end, when the command is interrupted or --duration is over. What happened in the last second before an interruption may be \
missing.

Examples:
  dinle biolatency -n shop --duration 30s
  dinle biolatency -A --disk 'nvme*' --interval 5s";

/// A request in one cell.
pub(in crate::client) fn io_summary(io: &v1::BlockIo) -> String {
    let sector = match io.sector {
        Some(sector) => format!(" at {sector}"),
        None => String::new(),
    };
    format!(
        "{} {} {}{sector}",
        io.disk,
        letters(io),
        text::size(io.bytes.into())
    )
}

/// Latencies in one cell.
pub(in crate::client) fn latency_summary(latency: &v1::BlockLatency) -> String {
    format!(
        "{} {} {} requests, {}, {} ms on average",
        latency.disk,
        operation_name(latency.operation),
        latency.count,
        text::size(latency.bytes),
        mean_ms(latency.device_ns, latency.count)
    )
}

/// `write` for BLOCK_OPERATION_WRITE.
pub(in crate::client) fn operation_name(operation: i32) -> String {
    match v1::BlockOperation::try_from(operation) {
        Ok(v1::BlockOperation::Unspecified) => "other".to_owned(),
        Ok(known) => {
            let name = known.as_str_name();
            let short = name.strip_prefix("BLOCK_OPERATION_").unwrap_or(name);
            short.to_lowercase()
        }
        Err(_) => format!("operation-{operation}"),
    }
}

/// Operation and flags as the kernel's own traces print them: blk_fill_rwbs of kernel/trace/blktrace.c.
fn letters(io: &v1::BlockIo) -> String {
    let operation = match io.operation() {
        v1::BlockOperation::Read => "R",
        v1::BlockOperation::Write => "W",
        v1::BlockOperation::Flush => "F",
        v1::BlockOperation::Discard => "D",
        v1::BlockOperation::SecureErase => "DE",
        v1::BlockOperation::WriteZeroes => "WZ",
        v1::BlockOperation::Zone => "Z",
        v1::BlockOperation::Driver | v1::BlockOperation::Unspecified => "N",
    };
    // A flush writes the cache, and nothing behind it.
    let preflush = io.preflush && io.operation() != v1::BlockOperation::Flush;
    let flag = |set: bool, letter: &'static str| if set { letter } else { "" };
    [
        flag(preflush, "F"),
        operation,
        flag(io.fua, "F"),
        flag(io.read_ahead, "A"),
        flag(io.sync, "S"),
        flag(io.meta, "M"),
    ]
    .concat()
}

fn mean_ms(ns: u64, count: u64) -> String {
    match count {
        0 => NONE.to_owned(),
        count => format!("{:.2}", ns as f64 / count as f64 / 1e6),
    }
}

fn cell(seen: &Seen<'_>, cell: impl FnOnce(&v1::BlockIo) -> String) -> String {
    match &seen.event.detail {
        Some(Detail::BlockIo(io)) => cell(io),
        _ => NONE.to_owned(),
    }
}

const DISK: Column = column("DISK", 8, 16, |seen| {
    cell(seen, |io| text::or_none(&io.disk).to_owned())
});
const T: Column = column("T", 4, 8, |seen| cell(seen, letters));
const SECTOR: Column = column("SECTOR", 10, 20, |seen| {
    cell(seen, |io| match io.sector {
        Some(sector) => sector.to_string(),
        None => NONE.to_owned(),
    })
});
const BYTES: Column = column("BYTES", 8, 10, |seen| cell(seen, |io| io.bytes.to_string()));
const QUE: Column = column("QUE(ms)", 7, 10, |seen| {
    cell(seen, |io| text::milliseconds(io.queued.as_ref()))
});
const LAT: Column = column("LAT(ms)", 7, 10, |seen| {
    cell(seen, |io| text::milliseconds(io.device.as_ref()))
});
const ERR: Column = column("ERR", 3, 14, |seen| cell(seen, |io| text::errno(io.error)));
const ATTR: Column = column("ATTR", 4, 11, |seen| {
    cell(seen, |io| {
        let name = io.attribution().as_str_name();
        let short = name.strip_prefix("ATTRIBUTION_").unwrap_or(name);
        short.to_lowercase()
    })
});

/// Arguments of `dinle biosnoop`.
#[derive(Clone, Debug, clap::Args)]
pub struct Biosnoop {
    /// Print the time queued too [default: no]
    #[arg(short = 'Q', long)]
    queue: bool,
    /// Only this disk, such as `nvme0n1`; `nvme*` is a prefix, other globs work too; can be repeated [default: any disk]
    #[arg(short, long, value_name = "DISK", help_heading = "Filters")]
    disk: Vec<String>,
    /// Only requests that took so many milliseconds, queued or in the device [default: any time]
    #[arg(long, value_name = "MS", value_parser = parse_ms, help_heading = "Filters")]
    min_ms: Option<prost_types::Duration>,
    /// Only requests that failed [default: all]
    #[arg(short = 'x', long, help_heading = "Filters")]
    failed: bool,
    #[command(flatten)]
    processes: Processes,
    #[command(flatten)]
    common: Common,
}

/// Reads a number of milliseconds, which may have a fraction.
pub(in crate::client) fn parse_ms(text: &str) -> Result<prost_types::Duration, String> {
    let ms: f64 = text
        .parse()
        .map_err(|_| "it is no number of milliseconds, such as 20 or 0.5".to_owned())?;
    let span = std::time::Duration::try_from_secs_f64(ms / 1e3)
        .map_err(|error| format!("it is no time: {error}"))?;
    prost_types::Duration::try_from(span).map_err(|error| error.to_string())
}

impl Biosnoop {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self { queue, common, .. } = self;
        let mut columns = vec![COMM, PID, DISK, T, SECTOR, BYTES];
        if queue {
            columns.push(QUE);
        }
        columns.extend([LAT, ERR]);
        let mut wide = vec![ATTR, PARENT, PPID, UID];
        if !queue {
            wide.insert(0, QUE);
        }
        common.run(request, columns, wide, screen).await
    }

    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            queue: _,
            disk,
            min_ms,
            failed,
            processes,
            common,
        } = self;
        let filter = v1::Filter {
            failed: *failed,
            min_duration: *min_ms,
            disk: disk.iter().map(|text| string_match(text)).collect(),
            ..processes.to_proto(false)
        };
        common.request(&[v1::Kind::BlockIo], filter)
    }
}

/// Arguments of `dinle biolatency`.
#[derive(Clone, Debug, clap::Args)]
pub struct Biolatency {
    /// Draw every so often, such as every `5s`; at least 1s [default: once, at the end]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    interval: Option<prost_types::Duration>,
    /// With --interval: draw what happened since the beginning each time [default: since the last time]
    #[arg(long, requires = "interval")]
    cumulative: bool,
    /// Only this disk, such as `nvme0n1`; `nvme*` is a prefix, other globs work too; can be repeated [default: any disk]
    #[arg(short, long, value_name = "DISK", help_heading = "Filters")]
    disk: Vec<String>,
    #[command(flatten)]
    common: Common,
}

impl Biolatency {
    pub(in crate::client) async fn run(self, screen: &mut Screen<'_>) -> anyhow::Result<ExitCode> {
        let request = self.request();
        let Self {
            interval,
            cumulative,
            common,
            ..
        } = self;
        let drawing = match (interval, cumulative) {
            (None, _) => Drawn::AtTheEnd,
            (Some(_), false) => Drawn::Anew,
            (Some(_), true) => Drawn::All,
        };
        if drawing == Drawn::AtTheEnd && screen.look.is_terminal() {
            screen.say("adding up; interrupt with Ctrl-C to see it")?;
        }
        let format = Format::Custom(Box::new(Drawing::new(drawing)));
        common.run_as(request, format, screen).await
    }

    pub(in crate::client) fn request(&self) -> v1::SubscribeRequest {
        let Self {
            interval,
            cumulative: _,
            disk,
            common,
        } = self;
        let filter = v1::Filter {
            disk: disk.iter().map(|text| string_match(text)).collect(),
            ..Default::default()
        };
        v1::SubscribeRequest {
            interval: *interval,
            ..common.request(&[v1::Kind::BlockLatency], filter)
        }
    }
}

/// When latencies are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drawn {
    /// All of them, once.
    AtTheEnd,
    /// Those of each snapshot.
    Anew,
    /// All so far, with each snapshot.
    All,
}

/// What is drawn apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    /// Node, namespace, pod, container.
    who: [String; 4],
    disk: String,
    operation: i32,
}

/// Adds latencies up and draws them. Grows with the pods, disks and operations that it hears of, by about half a kilobyte each.
#[derive(Debug)]
struct Drawing {
    drawn: Drawn,
    sums: BTreeMap<Subject, v1::BlockLatency>,
    until: Option<prost_types::Timestamp>,
}

impl Drawing {
    fn new(drawn: Drawn) -> Self {
        Self {
            drawn,
            sums: BTreeMap::new(),
            until: None,
        }
    }

    fn draw(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let Self { sums, until, .. } = self;
        for (Subject { who, disk, .. }, sum) in sums {
            let [node, namespace, pod, container] = who;
            let heading = format!(
                "{} {node} {namespace} {pod} {container} {disk} {}: {} request{}, {}, {} ms in the device and {} ms queued on average",
                text::clock(until.as_ref()),
                operation_name(sum.operation),
                text::thousands(sum.count),
                if sum.count == 1 { "" } else { "s" },
                text::size(sum.bytes),
                mean_ms(sum.device_ns, sum.count),
                mean_ms(sum.queued_ns, sum.count),
            );
            writeln!(out, "{}", text::clean(&heading))?;
            histogram(&sum.buckets, out)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

impl Printer for Drawing {
    fn event(&mut self, event: &v1::Event, who: &Who, _: &mut dyn io::Write) -> io::Result<()> {
        if let Some(Detail::BlockLatency(latency)) = &event.detail {
            let Who {
                node,
                namespace,
                pod,
                container,
                container_id: _,
            } = who.clone();
            let subject = Subject {
                who: [node, namespace, pod, container],
                disk: latency.disk.clone(),
                operation: latency.operation,
            };
            add(self.sums.entry(subject).or_default(), latency);
        }
        Ok(())
    }

    fn snapshot_end(&mut self, snapshot: &v1::Snapshot, out: &mut dyn io::Write) -> io::Result<()> {
        self.until = snapshot.end;
        match self.drawn {
            Drawn::AtTheEnd => {}
            Drawn::Anew => {
                self.draw(out)?;
                self.sums.clear();
            }
            Drawn::All => self.draw(out)?,
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn io::Write) -> io::Result<()> {
        match self.drawn {
            Drawn::AtTheEnd => self.draw(out),
            Drawn::Anew | Drawn::All => Ok(()),
        }
    }
}

/// Adds latencies to others of the same disk and operation.
pub(in crate::client) fn add(sum: &mut v1::BlockLatency, more: &v1::BlockLatency) {
    let v1::BlockLatency {
        disk,
        device_major,
        device_minor,
        operation,
        count,
        bytes,
        device_ns,
        queued_ns,
        buckets,
    } = more;
    sum.disk.clone_from(disk);
    (sum.device_major, sum.device_minor) = (*device_major, *device_minor);
    sum.operation = *operation;
    sum.count += count;
    sum.bytes += bytes;
    sum.device_ns += device_ns;
    sum.queued_ns += queued_ns;
    let len = sum.buckets.len().max(buckets.len());
    sum.buckets.resize(len, 0);
    for (sum, more) in sum.buckets.iter_mut().zip(buckets) {
        *sum += more;
    }
}

/// The last bucket has no upper bound: as the contract says.
const LAST_BUCKET: usize = 26;

/// As bcc draws it.
fn histogram(buckets: &[u64], out: &mut dyn io::Write) -> io::Result<()> {
    const WIDTH: usize = 40;
    let most = buckets.iter().copied().max().unwrap_or(0).max(1);
    writeln!(out, "     {:<19} : count     distribution", "usecs")?;
    for (index, count) in buckets.iter().enumerate() {
        let from = if index == 0 { 0 } else { 1u64 << index };
        let range = if index < LAST_BUCKET {
            format!("{from:>10} -> {:<10}", (2u64 << index) - 1)
        } else {
            format!("{from:>10} -> {:<10}", "...")
        };
        // Both are counts; the quotient is at most 1.
        let stars = (*count as f64 / most as f64 * WIDTH as f64) as usize;
        writeln!(out, "{range} : {count:<8} |{:<WIDTH$}|", "*".repeat(stars))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(operation: v1::BlockOperation) -> v1::BlockIo {
        v1::BlockIo {
            disk: "vda".to_owned(),
            operation: operation.into(),
            sector: Some(2048),
            bytes: 4096,
            ..Default::default()
        }
    }

    #[test]
    fn operations_and_flags_are_letters() {
        use v1::BlockOperation::{
            Discard, Driver, Flush, Read, SecureErase, Unspecified, Write, WriteZeroes, Zone,
        };
        let table = [
            (io(Read), "R"),
            (
                v1::BlockIo {
                    read_ahead: true,
                    ..io(Read)
                },
                "RA",
            ),
            (
                v1::BlockIo {
                    sync: true,
                    meta: true,
                    ..io(Write)
                },
                "WSM",
            ),
            (
                v1::BlockIo {
                    preflush: true,
                    fua: true,
                    sync: true,
                    ..io(Write)
                },
                "FWFS",
            ),
            (
                v1::BlockIo {
                    preflush: true,
                    ..io(Flush)
                },
                "F",
            ),
            (io(Discard), "D"),
            (io(SecureErase), "DE"),
            (io(WriteZeroes), "WZ"),
            (io(Zone), "Z"),
            (io(Driver), "N"),
            (io(Unspecified), "N"),
        ];
        for (io, expected) in table {
            assert_eq!(letters(&io), expected, "{io:?}");
        }
        assert_eq!(io_summary(&io(Write)), "vda W 4.0K at 2048");
        assert_eq!(operation_name(WriteZeroes.into()), "write_zeroes");
        assert_eq!(operation_name(0), "other");
        assert_eq!(operation_name(77), "operation-77");
    }

    #[test]
    fn milliseconds_may_have_a_fraction() {
        let span = |seconds, nanos| prost_types::Duration { seconds, nanos };
        assert_eq!(parse_ms("20"), Ok(span(0, 20_000_000)));
        assert_eq!(parse_ms("0.5"), Ok(span(0, 500_000)));
        assert_eq!(parse_ms("1500"), Ok(span(1, 500_000_000)));
        for wrong in ["", "x", "-1", "inf"] {
            assert!(parse_ms(wrong).is_err(), "{wrong}");
        }
    }

    fn web() -> Who {
        Who {
            node: "n1".to_owned(),
            namespace: "shop".to_owned(),
            pod: "web".to_owned(),
            container: "app".to_owned(),
            container_id: "0123".to_owned(),
        }
    }

    fn row(operation: v1::BlockOperation, buckets: &[u64]) -> v1::Event {
        let count = buckets.iter().sum::<u64>();
        v1::Event {
            detail: Some(Detail::BlockLatency(v1::BlockLatency {
                disk: "vda".to_owned(),
                operation: operation.into(),
                count,
                bytes: count * 1024,
                device_ns: count * 1_500_000,
                queued_ns: count * 250_000,
                buckets: buckets.to_vec(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn drawn(drawn: Drawn, snapshots: &[&[v1::Event]]) -> String {
        let mut drawing = Drawing::new(drawn);
        let mut out = Vec::new();
        for (turn, rows) in snapshots.iter().enumerate() {
            for row in *rows {
                drawing
                    .event(row, &web(), &mut out)
                    .expect("a Vec takes all");
            }
            let snapshot = v1::Snapshot {
                end: Some(prost_types::Timestamp {
                    seconds: turn as i64,
                    nanos: 0,
                }),
                ..Default::default()
            };
            drawing
                .snapshot_end(&snapshot, &mut out)
                .expect("a Vec takes all");
        }
        drawing.end(&mut out).expect("a Vec takes all");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn histograms_look_like_bccs() {
        let rows = [row(v1::BlockOperation::Read, &[0, 1, 4, 8])];
        let expected = "\
00:00:00.000 n1 shop web app vda read: 13 requests, 13.0K, 1.50 ms in the device and 0.25 ms queued on average
     usecs               : count     distribution
         0 -> 1          : 0        |                                        |
         2 -> 3          : 1        |*****                                   |
         4 -> 7          : 4        |********************                    |
         8 -> 15         : 8        |****************************************|

";
        assert_eq!(drawn(Drawn::AtTheEnd, &[&rows]), expected);
    }

    #[test]
    fn the_last_bucket_is_open() {
        let mut out = Vec::new();
        let mut buckets = [0; 27];
        buckets[26] = 1;
        histogram(&buckets, &mut out).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("UTF-8");
        let last = text.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("  67108864 -> ...        : 1        |****"),
            "{last}"
        );
    }

    #[test]
    fn what_is_drawn_is_of_the_interval_or_of_all() {
        let read = |count| row(v1::BlockOperation::Read, &[count]);
        let write = |count| row(v1::BlockOperation::Write, &[0, count]);
        let rows: [&[v1::Event]; 3] = [&[read(1), write(2)], &[], &[read(4)]];
        let headings = |how| {
            let text = drawn(how, &rows);
            let headings = text.lines().filter(|line| line.contains(" request"));
            let headings = headings.map(|line| {
                let words: Vec<_> = line.split(' ').collect();
                [words[0], words[6], words[7]].join(" ")
            });
            headings.collect::<Vec<_>>()
        };
        assert_eq!(
            headings(Drawn::AtTheEnd),
            ["00:00:02.000 read: 5", "00:00:02.000 write: 2"]
        );
        assert_eq!(
            headings(Drawn::Anew),
            [
                "00:00:00.000 read: 1",
                "00:00:00.000 write: 2",
                "00:00:02.000 read: 4"
            ]
        );
        assert_eq!(
            headings(Drawn::All),
            [
                "00:00:00.000 read: 1",
                "00:00:00.000 write: 2",
                "00:00:01.000 read: 1",
                "00:00:01.000 write: 2",
                "00:00:02.000 read: 5",
                "00:00:02.000 write: 2"
            ]
        );
    }
}
