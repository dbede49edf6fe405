//! Programs: for each hook the first way to attach that this kernel takes; loaded once, attached only while wanted.

use std::{collections::BTreeMap, fmt, io::Read as _, path::Path, str::FromStr};

use aya::{
    Btf, Ebpf, RawTracePointRunOptions, TestRun as _,
    programs::{
        Program, ProgramError, fentry::FEntryLink, fexit::FExitLink, kprobe::KProbeLink,
        raw_trace_point::RawTracePointLink, tp_btf::BtfTracePointLink,
    },
};

use dinle_ebpf::{Kind, Sensor};

use super::{
    causes,
    costs::{self, Runs},
    maps::{RequestPod, empty},
};

/// A way to attach to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A tracepoint with typed arguments: the fastest. Needs BTF.
    TpBtf,
    /// A kernel function's entry, by a trampoline.
    Fentry,
    /// A kernel function's return, by a trampoline: also has the arguments.
    Fexit,
    /// A tracepoint with raw arguments.
    RawTracepoint,
    /// A kernel function's entry, by a breakpoint or ftrace.
    Kprobe,
    /// A kernel function's return, by a changed return address.
    Kretprobe,
}

impl Way {
    /// All of them, the cheapest first.
    pub const ALL: &[Self] = &[
        Self::TpBtf,
        Self::Fentry,
        Self::Fexit,
        Self::RawTracepoint,
        Self::Kprobe,
        Self::Kretprobe,
    ];

    /// What programs in the object and users call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::RawTracepoint => "raw_tracepoint",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }

    /// The hook that a program attaches to in this way, given what the program is named after.
    fn hook(self, target: &str) -> String {
        match self {
            Self::TpBtf | Self::RawTracepoint | Self::Fentry | Self::Kprobe => target.to_owned(),
            Self::Fexit | Self::Kretprobe => format!("{target}{RETURN}"),
        }
    }
}

/// How the name of a function's return differs from that of its entry.
const RETURN: &str = ":return";

/// How the name of a hook's second program differs from that of its first.
pub const AGAIN: &str = "__again";

/// Present where the kernel has kprobes (CONFIG_KPROBE_EVENTS): a program is attached through the type in it.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|way| way.name() == text)
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|way| way.name()).collect();
                format!(
                    "`{text}` is no way to attach; there are {}",
                    known.join(", ")
                )
            })
    }
}

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayStatus {
    /// How it attaches.
    pub way: Way,
    /// Its name in the object.
    pub program: String,
    /// Instructions that the verifier walked (0 where the kernel does not say, before 5.16, and where it was not tried, because a
    /// better way works), or why the program cannot be used.
    pub verified: Result<u32, String>,
}

/// One hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    /// Name of the tracepoint or kernel function.
    pub hook: String,
    /// In the order in which they were tried.
    pub ways: Vec<WayStatus>,
    /// The first that works. `None` also where none was tried, because a better hook works.
    pub chosen: Option<Way>,
    /// It is attached now.
    pub attached: bool,
    /// Why it could not be attached the last time it was wanted, although it loads.
    pub failure: Option<String>,
    /// What the kernel counted of the chosen program.
    pub runs: Runs,
}

impl HookStatus {
    /// Attached for somebody who listens, and not always.
    pub fn is_of_sensor(&self) -> bool {
        self.attached && Kind::ALL.iter().any(|kind| kind.uses(&self.hook))
    }

    /// Why no way works: each way's reason.
    pub fn reason(&self) -> Option<String> {
        let reasons = match (&self.failure, self.chosen) {
            (Some(failure), _) => failure.clone(),
            (None, Some(_)) => return None,
            (None, None) if self.ways.iter().any(|way| way.verified.is_ok()) => return None,
            (None, None) => {
                let refused = self.ways.iter().filter_map(|status| {
                    let reason = status.verified.as_ref().err()?;
                    Some(format!("{}: {reason}", status.way))
                });
                refused.collect::<Vec<_>>().join("; ")
            }
        };
        Some(format!("{} cannot be attached ({reasons})", self.hook))
    }
}

/// Holding one is being attached.
#[derive(Debug)]
enum Link {
    TpBtf(#[expect(dead_code, reason = "held for its drop")] BtfTracePointLink),
    RawTracepoint(#[expect(dead_code, reason = "held for its drop")] RawTracePointLink),
    Fentry(#[expect(dead_code, reason = "held for its drop")] FEntryLink),
    Fexit(#[expect(dead_code, reason = "held for its drop")] FExitLink),
    Kprobe(#[expect(dead_code, reason = "held for its drop")] KProbeLink),
}

#[derive(Debug)]
struct Hook {
    status: HookStatus,
    link: Option<Link>,
}

/// All programs of the object. Dropping this detaches and unloads them.
pub struct Programs {
    // Before `ebpf`: links go first.
    hooks: BTreeMap<String, Hook>,
    /// Bits of the kinds that are offered.
    kinds: u64,
    /// Programs that the agent runs itself, loaded or with the reason why not.
    own: BTreeMap<String, Result<(), String>>,
    pub(super) ebpf: Ebpf,
}

/// What a program that runs over all objects of a type is named after: `iter__tcp`.
const ITERATOR: &str = "iter__";
/// What a program that the agent calls with numbers is named after: `run__report_session`.
const CALLED: &str = "run__";

impl Programs {
    /// Loads what the kinds need. With `every`, tries every way of every hook, to tell whether it would load.
    pub(super) fn load(
        ebpf: Ebpf,
        btf: &Btf,
        functions: &dyn Fn(&str) -> bool,
        ways: &[Way],
        sensors: &[Sensor],
        every: bool,
    ) -> Self {
        let mut hooks: BTreeMap<String, Hook> = BTreeMap::new();
        let mut named: Vec<(String, Way, String)> = ebpf
            .programs()
            .filter_map(|(name, _)| {
                let (way, target) = name.split_once("__")?;
                let way: Way = way.parse().ok()?;
                Some((way.hook(target), way, name.to_owned()))
            })
            .collect();
        let rank = |way: &Way| {
            ways.iter()
                .position(|listed| listed == way)
                .unwrap_or(usize::MAX)
        };
        named.sort_by_key(|(hook, way, _)| (hook.clone(), rank(way), *way));
        for (name, way, program) in named {
            let hook = hooks.entry(name.clone()).or_insert_with(|| Hook {
                status: HookStatus {
                    hook: name.clone(),
                    ways: Vec::new(),
                    chosen: None,
                    attached: false,
                    failure: None,
                    runs: Runs::default(),
                },
                link: None,
            });
            let verified = if !ways.contains(&way) {
                Err("left out by --ways".to_owned())
            } else if let Some(reason) = absent(way, &name, functions) {
                Err(reason)
            } else {
                Ok(0)
            };
            hook.status.ways.push(WayStatus {
                way,
                program,
                verified,
            });
        }
        let offered = |kind: &&Kind| sensors.contains(&kind.sensor());
        let mut programs = Self {
            hooks,
            kinds: Kind::ALL
                .iter()
                .filter(offered)
                .map(|kind| kind.bit())
                .sum(),
            own: BTreeMap::new(),
            ebpf,
        };
        programs.choose(btf, every);
        let Self { own, ebpf, .. } = &mut programs;
        *own = ebpf
            .programs_mut()
            .filter_map(|(name, program)| {
                let what = name
                    .strip_prefix(ITERATOR)
                    .or_else(|| name.strip_prefix(CALLED))?;
                sensors.contains(&sensor_of(what)).then_some(())?;
                Some((name.to_owned(), load(program, what, btf, true).map(|_| ())))
            })
            .collect();
        programs
    }

    /// Loads what the kinds need: of each the first route whose hooks all load, and what lets it hear more. Verifying takes time, so
    /// what is not needed is left alone, unless `every` hook is to be tried.
    fn choose(&mut self, btf: &Btf, every: bool) {
        let mut tried: BTreeMap<String, bool> = BTreeMap::new();
        let mut loads = |programs: &mut Self, name: &str| {
            let known = tried.get(name).copied();
            known.unwrap_or_else(|| {
                let loads = programs.load_hook(name, btf, every);
                tried.insert(name.to_owned(), loads);
                loads
            })
        };
        let offered = self.kinds;
        let offered = |kind: &&Kind| offered & kind.bit() != 0;
        for kind in Kind::ALL.iter().filter(offered) {
            for route in kind.routes() {
                if route.iter().all(|hook| loads(self, hook)) {
                    break;
                }
            }
            for hook in kind.also() {
                loads(self, hook);
            }
        }
        // What no kind names always runs.
        let names: Vec<String> = self.hooks.keys().cloned().collect();
        let more = |name: &&String| {
            let mut users = Kind::ALL.iter().filter(|kind| kind.uses(name));
            (every && users.clone().any(|kind| offered(&kind))) || users.next().is_none()
        };
        for name in names.iter().filter(more) {
            loads(self, name);
        }
    }

    /// Loads a hook by the first way that loads. Whether there is one.
    fn load_hook(&mut self, name: &str, btf: &Btf, every: bool) -> bool {
        let Self { hooks, ebpf, .. } = self;
        let Some(Hook { status, .. }) = hooks.get_mut(name) else {
            return false;
        };
        let HookStatus { ways, chosen, .. } = status;
        for WayStatus {
            way,
            program,
            verified,
        } in ways.iter_mut().filter(|way| way.verified.is_ok())
        {
            if chosen.is_some() && !every {
                break;
            }
            *verified = ebpf
                .program_mut(program)
                .ok_or_else(|| "the object has no such program".to_owned())
                .and_then(|loaded| load(loaded, name, btf, chosen.is_none()));
            if verified.is_ok() && chosen.is_none() {
                *chosen = Some(*way);
            }
        }
        chosen.is_some()
    }

    /// Bits of the kinds whose sensors are not left out.
    pub fn kinds(&self) -> u64 {
        self.kinds
    }

    /// Runs an iterator over all objects of its type. Returns what it wrote.
    pub fn iterate(&mut self, target: &str) -> Result<Vec<u8>, String> {
        let name = format!("{ITERATOR}{target}");
        let Some(Program::Iter(program)) = self.own(&name)? else {
            return Err(format!("the object has no iterator {name}"));
        };
        let failed = |error: &dyn std::error::Error| format!("{name} failed ({})", causes(error));
        let id = program.attach().map_err(|error| failed(&error))?;
        let link = program.take_link(id).map_err(|error| failed(&error))?;
        let mut file = link.into_file().map_err(|error| failed(&error))?;
        let mut written = Vec::new();
        file.read_to_end(&mut written)
            .map_err(|error| failed(&error))?;
        Ok(written)
    }

    /// Calls a program with each of these numbers: BPF_PROG_TEST_RUN, which takes such programs since Linux 5.10.
    pub fn call(
        &mut self,
        what: &str,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Result<(), String> {
        let name = format!("{CALLED}{what}");
        let Some(Program::RawTracePoint(program)) = self.own(&name)? else {
            return Err(format!("the object has no program {name}"));
        };
        for number in numbers {
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = number;
            program
                .test_run(options)
                .map_err(|error| format!("{name} cannot be called ({})", causes(&error)))?;
        }
        Ok(())
    }

    /// A program that the agent runs itself, for a sensor that is not left out.
    fn own(&mut self, name: &str) -> Result<Option<&mut Program>, String> {
        match self.own.get(name) {
            Some(Err(reason)) => Err(format!("{name} cannot be loaded ({reason})")),
            Some(Ok(())) | None => Ok(self.ebpf.program_mut(name)),
        }
    }

    /// Attaches a hook, if it is not attached yet: by the first way that loads and attaches. Can be tried again after a failure.
    pub fn attach(&mut self, hook: &str) -> Result<(), String> {
        let Self { hooks, ebpf, .. } = self;
        let Some(Hook { status, link }) = hooks.get_mut(hook) else {
            return Err(format!("this build has no program for {hook}"));
        };
        if link.is_some() {
            return Ok(());
        }
        if hook == "block_getrq" {
            // What was under way when it was detached has ended unseen, which nobody is to be told of.
            empty::<RequestPod>(ebpf, "BLOCK_REQUESTS")?;
        }
        let mut failures = Vec::new();
        for WayStatus {
            way,
            program,
            verified,
        } in &status.ways
        {
            if verified.is_err() {
                continue;
            }
            let attached = ebpf
                .program_mut(program)
                .ok_or_else(|| format!("the object has no program {program}"))
                .and_then(|program| {
                    // Only the first way is kept loaded.
                    if status.chosen != Some(*way) {
                        let btf = Btf::from_sys_fs().map_err(|error| error.to_string())?;
                        load(program, hook, &btf, true)?;
                    }
                    attach(program, hook).map_err(|error| reason(&error))
                });
            match attached {
                Ok(attached) => {
                    *link = Some(attached);
                    (status.chosen, status.attached, status.failure) = (Some(*way), true, None);
                    return Ok(());
                }
                Err(reason) => failures.push(format!("{way}: {reason}")),
            }
        }
        if !failures.is_empty() {
            status.failure = Some(failures.join("; "));
        }
        Err(status.reason().unwrap_or_default())
    }

    /// Detaches a hook. What was counted stays.
    pub fn detach(&mut self, hook: &str) {
        if let Some(Hook { status, link }) = self.hooks.get_mut(hook) {
            *link = None;
            status.attached = false;
        }
    }

    /// Every hook, with what the kernel counted so far.
    pub fn status(&mut self) -> Vec<HookStatus> {
        let Self { hooks, ebpf, .. } = self;
        let refreshed = hooks.values_mut().map(|Hook { status, .. }| {
            let chosen = status
                .ways
                .iter()
                .find(|way| Some(way.way) == status.chosen);
            if let Some(runs) = chosen
                .and_then(|way| ebpf.program(&way.program))
                .and_then(costs::runs)
            {
                status.runs = runs;
            }
            status.clone()
        });
        refreshed.collect()
    }
}

/// What the kernel calls a hook.
fn target(hook: &str) -> &str {
    let hook = hook.strip_suffix(RETURN).unwrap_or(hook);
    hook.strip_suffix(AGAIN).unwrap_or(hook)
}

/// Why this kernel cannot have such a hook, where that can be told without trying.
fn absent(way: Way, hook: &str, functions: &dyn Fn(&str) -> bool) -> Option<String> {
    let function = match way {
        Way::TpBtf | Way::RawTracepoint => return None,
        Way::Fentry | Way::Fexit | Way::Kprobe | Way::Kretprobe => target(hook),
    };
    if !functions(function) {
        return Some(format!("this kernel has no function {function}"));
    }
    let probe = matches!(way, Way::Kprobe | Way::Kretprobe);
    // Such a program loads everywhere; only attaching it fails.
    (probe && !Path::new(KPROBES).exists()).then(|| "this kernel has no kprobes".to_owned())
}

/// Loads a program to see whether the kernel takes it, and keeps it loaded if it is to be used.
fn load(program: &mut Program, hook: &str, btf: &Btf, keep: bool) -> Result<u32, String> {
    let loaded = match program {
        Program::BtfTracePoint(program) => program.load(target(hook), btf),
        Program::RawTracePoint(program) => program.load(),
        Program::FEntry(program) => program.load(target(hook), btf),
        Program::FExit(program) => program.load(target(hook), btf),
        Program::KProbe(program) => program.load(),
        Program::Iter(program) => program.load(target(hook), btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|error| reason(&error))?;
    let verified = program
        .info()
        .ok()
        .and_then(|info| info.verified_instruction_count());
    if !keep {
        let unloaded = match program {
            Program::BtfTracePoint(program) => program.unload(),
            Program::RawTracePoint(program) => program.unload(),
            Program::FEntry(program) => program.unload(),
            Program::FExit(program) => program.unload(),
            Program::KProbe(program) => program.unload(),
            Program::Iter(program) => program.unload(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        unloaded.map_err(|error| reason(&error))?;
    }
    Ok(verified.unwrap_or(0))
}

fn attach(program: &mut Program, hook: &str) -> Result<Link, ProgramError> {
    Ok(match program {
        Program::BtfTracePoint(program) => {
            let id = program.attach()?;
            Link::TpBtf(program.take_link(id)?)
        }
        Program::RawTracePoint(program) => {
            let id = program.attach(target(hook))?;
            Link::RawTracepoint(program.take_link(id)?)
        }
        Program::FEntry(program) => {
            let id = program.attach()?;
            Link::Fentry(program.take_link(id)?)
        }
        Program::FExit(program) => {
            let id = program.attach()?;
            Link::Fexit(program.take_link(id)?)
        }
        Program::KProbe(program) => {
            let id = program.attach(target(hook), 0)?;
            Link::Kprobe(program.take_link(id)?)
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    })
}

/// For whom the agent runs a program itself, by what it is called without its prefix.
fn sensor_of(program: &str) -> Sensor {
    match program {
        // Network namespaces of processes.
        "task" => Sensor::Drop,
        // Sessions.
        _ => Sensor::Tcp,
    }
}

/// The kernel's reason in one line, with what mends it where that is known.
fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        // The verifier's last words before its statistics say what it minds.
        let last = log.lines().rfind(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("stack depth ")
                && !line.starts_with("verification time")
        });
        return match (io_error.raw_os_error(), last) {
            (_, Some(last)) => format!("the verifier refuses it: {last} ({io_error})"),
            (Some(libc::EPERM), None) => {
                format!(
                    "the kernel does not permit it ({io_error}): CAP_BPF and CAP_PERFMON are needed, and no lockdown"
                )
            }
            (_, None) => format!("the kernel refuses to load it ({io_error})"),
        };
    }
    causes(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(verified: [Result<u32, String>; 2]) -> HookStatus {
        let ways = [Way::TpBtf, Way::RawTracepoint].into_iter();
        let ways = ways.zip(verified).map(|(way, verified)| WayStatus {
            way,
            program: format!("{way}__h"),
            verified,
        });
        HookStatus {
            hook: "h".into(),
            ways: ways.collect(),
            chosen: None,
            attached: false,
            failure: None,
            runs: Runs::default(),
        }
    }

    #[test]
    fn a_hook_that_cannot_be_attached_says_why_of_each_way() {
        let refused = hook([Err("no BTF".into()), Err("no such thing".into())]);
        let reason = refused.reason().expect("a reason");
        assert_eq!(
            reason,
            "h cannot be attached (tp_btf: no BTF; raw_tracepoint: no such thing)"
        );
    }

    #[test]
    fn what_loads_but_does_not_attach_is_not_available() {
        let mut loaded = hook([Ok(1), Ok(1)]);
        loaded.chosen = Some(Way::TpBtf);
        assert_eq!(loaded.reason(), None);
        loaded.failure = Some("tp_btf: too many open files".into());
        let reason = loaded.reason().expect("a reason");
        assert_eq!(reason, "h cannot be attached (tp_btf: too many open files)");
    }
}
