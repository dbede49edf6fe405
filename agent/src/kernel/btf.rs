//! The kernel's own description of its types (BTF): where members lie, which functions and tracepoints there are.
//!
//! It is read once, when the agent starts, and dropped: a kernel's BTF is some 5 MB. Types stay in the bytes that they came in;
//! what is kept beside them is where each begins, and an index by the hash of the name.

mod layout;

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;

use dinle_ebpf::offsets::Offsets;

use self::layout::{Kind, Record, Sections};

/// Where a kernel built with `CONFIG_DEBUG_INFO_BTF=y` shows its BTF.
pub const RUNNING_KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Typedefs, qualifiers and arrays followed from one type before it is taken for a loop. Kernels need about 5.
const CHAIN_MAX: usize = 32;

/// Members looked at to find one by its name before it is taken for a loop of anonymous structs. `task_struct` has about 300.
const MEMBERS_MAX: usize = 1 << 16;

/// Bytes of a pointer. BTF does not tell it, and every kernel that the agent runs on is a 64-bit one.
const POINTER_BYTES: u32 = 8;

/// Why bytes are not BTF.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel shows none.
    #[error(
        "cannot read the kernel's BTF from {path}: {source}. The kernel has to be built with CONFIG_DEBUG_INFO_BTF=y \
         (every distribution's is since 2021), and /sys has to be mounted where the agent runs"
    )]
    Unreadable {
        /// The file.
        path: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The bytes begin with something else.
    #[error(
        "not BTF of this machine's byte order: it begins with {found:#06x}, expected {expected:#06x}"
    )]
    Magic {
        /// The first two bytes.
        found: u16,
        /// What they have to be.
        expected: u16,
    },
    /// A later format.
    #[error("BTF is version {found}, expected {expected}: this build is too old for the kernel")]
    Version {
        /// Version of the bytes.
        found: u8,
        /// The one known.
        expected: u8,
    },
    /// The bytes end too early.
    #[error("BTF is cut: {what} needs bytes {begin} to {end}, and there are {len}")]
    Cut {
        /// What was being read.
        what: &'static str,
        /// Its first byte.
        begin: usize,
        /// One past its last byte.
        end: usize,
        /// Bytes there are.
        len: usize,
    },
    /// A kind of type whose size is not known, so that nothing after it can be read.
    #[error(
        "BTF type {id} is of kind {kind}, which this build does not know: it is too old for the kernel"
    )]
    Kind {
        /// Number of the type.
        id: usize,
        /// Number of its kind.
        kind: u8,
    },
}

/// The types of one kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    sections: Sections,
    /// Where type `i + 1` begins in `bytes`. Type 0 is void.
    starts: Vec<u32>,
    /// Hash of the name and number of each type that has a name, ordered.
    names: Vec<(u32, u32)>,
}

impl Btf {
    /// Reads `bytes`, which are as in [`RUNNING_KERNEL`]. It checks that the types can be told apart, not that they make sense:
    /// what refers to nothing is not found.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        Self::from_vec(bytes.to_vec())
    }

    /// Reads the BTF of the kernel that runs.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        let bytes = fs::read(RUNNING_KERNEL).map_err(|source| BtfError::Unreadable {
            path: RUNNING_KERNEL,
            source,
        })?;
        Self::from_vec(bytes)
    }

    fn from_vec(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let sections = Sections::of(&bytes)?;
        let mut btf = Self {
            starts: layout::starts(&bytes, &sections)?,
            bytes,
            sections,
            names: Vec::new(),
        };
        let mut names: Vec<(u32, u32)> = (1..=btf.starts.len() as u32)
            .filter_map(|id| {
                let name = btf.name(btf.record(id)?.name_at)?;
                (!name.is_empty()).then(|| (hash(name), id))
            })
            .collect();
        names.sort_unstable();
        btf.names = names;
        Ok(btf)
    }

    /// What a path of [`dinle_ebpf::offsets`] stands for, or `None` when this kernel does not have it:
    ///
    /// * `"task_struct.mm"`: offset in bytes of a member, anonymous structs and unions seen through. Of a bit field, the byte
    ///   that holds its first bit;
    /// * `"size:upid"`: size in bytes of a type;
    /// * `"arg:sched_process_exit:group_dead"`: position of a tracepoint's argument by its name, counted from 0;
    /// * `"param:vfs_unlink:dentry"`: position of a function's parameter by its name, counted from 0;
    /// * `"params:vfs_unlink"`: how many parameters a function has;
    /// * `"enumerator:bpf_func_id:BPF_FUNC_task_pt_regs"`: value of an enumerator.
    ///
    /// With `+8` behind it a value is so much larger.
    pub fn find(&self, path: &str) -> Option<u32> {
        if let Some((path, more)) = path.split_once('+') {
            return self.find(path)?.checked_add(more.parse().ok()?);
        }
        if let Some(name) = path.strip_prefix("size:") {
            self.types(name).find_map(|id| self.size(id))
        } else if let Some(parameter) = path.strip_prefix("param:") {
            let (function, name) = parameter.split_once(':')?;
            self.position(function, name, 0)
        } else if let Some(function) = path.strip_prefix("params:") {
            self.of_kind(function, &[Kind::Func]).find_map(|func| {
                let proto = self.record(self.record(func)?.size_or_id)?;
                u32::try_from(proto.params(&self.bytes).count()).ok()
            })
        } else if let Some(enumerator) = path.strip_prefix("enumerator:") {
            let (of, name) = enumerator.split_once(':')?;
            let values = self.enumerators(of);
            let found = values.iter().find(|(_, known)| *known == name);
            found.map(|(value, _)| *value)
        } else if let Some(argument) = path.strip_prefix("arg:") {
            let (tracepoint, name) = argument.split_once(':')?;
            self.argument(tracepoint, name)
        } else {
            let (name, members) = path.split_once('.')?;
            self.of_kind(name, &[Kind::Struct, Kind::Union])
                .find_map(|id| self.offset(id, members))
        }
    }

    /// Names and values of an enum.
    fn enumerators(&self, name: &str) -> HashMap<u32, String> {
        let found = self.of_kind(name, &[Kind::Enum]).next();
        let record = found.and_then(|id| self.record(id));
        let values = record
            .iter()
            .flat_map(|record| record.enumerators(&self.bytes));
        values
            .filter_map(|(name_at, value)| {
                let name = String::from_utf8_lossy(self.name(name_at)?);
                Some((value, name.into_owned()))
            })
            .collect()
    }

    /// Whether the kernel has a function of this name, inlined everywhere or not.
    pub fn has_func(&self, name: &str) -> bool {
        self.of_kind(name, &[Kind::Func]).next().is_some()
    }

    /// Whether the kernel has a tracepoint of this name, in its core (not in a module).
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.of_kind(&format!("btf_trace_{name}"), &[Kind::Typedef])
            .next()
            .is_some()
    }

    /// Offset in bytes of `a.b.c` in the struct `id`.
    fn offset(&self, mut id: u32, members: &str) -> Option<u32> {
        let mut bits = 0_u32;
        for name in members.split('.') {
            let (at, member) = self.member(id, name)?;
            bits = bits.checked_add(at)?;
            id = member;
        }
        Some(bits / u8::BITS)
    }

    /// Offset in bits and type of the member `name` of the struct `id`.
    fn member(&self, id: u32, name: &str) -> Option<(u32, u32)> {
        let mut seen = 0;
        let mut structs = vec![(id, 0_u32)];
        while let Some((id, base)) = structs.pop() {
            let Some(record) = self.resolve(id).and_then(|id| self.record(id)) else {
                continue;
            };
            for member in record.members(&self.bytes) {
                seen += 1;
                if seen > MEMBERS_MAX {
                    return None;
                }
                let bits = base.checked_add(member.bits)?;
                match self.name(member.name_at)? {
                    b"" => structs.push((member.id, bits)),
                    other if other == name.as_bytes() => return Some((bits, member.id)),
                    _ => {}
                }
            }
        }
        None
    }

    /// Position of an argument. The types of tracepoints (`btf_trace_…`) leave arguments without a name; the functions that call
    /// the probes, there since 5.10, have the names, behind a first one that is not the tracepoint's.
    fn argument(&self, tracepoint: &str, name: &str) -> Option<u32> {
        self.position(&format!("__traceiter_{tracepoint}"), name, 1)
    }

    /// Position of a function's parameter, behind the first `skipped`.
    fn position(&self, function: &str, name: &str, skipped: usize) -> Option<u32> {
        self.of_kind(function, &[Kind::Func]).find_map(|func| {
            let proto = self.record(self.record(func)?.size_or_id)?;
            let position = proto
                .params(&self.bytes)
                .skip(skipped)
                .position(|at| self.name(at) == Some(name.as_bytes()))?;
            u32::try_from(position).ok()
        })
    }

    fn size(&self, id: u32) -> Option<u32> {
        let mut count = 1_u32;
        let mut id = id;
        for _ in 0..CHAIN_MAX {
            id = self.resolve(id)?;
            let record = self.record(id)?;
            match record.kind {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float
                | Kind::Datasec => return count.checked_mul(record.size_or_id),
                Kind::Pointer => return count.checked_mul(POINTER_BYTES),
                Kind::Array => {
                    let (element, len) = record.array(&self.bytes)?;
                    count = count.checked_mul(len)?;
                    id = element;
                }
                Kind::Forward
                | Kind::Typedef
                | Kind::Volatile
                | Kind::Const
                | Kind::Restrict
                | Kind::Func
                | Kind::FuncProto
                | Kind::Var
                | Kind::DeclTag
                | Kind::TypeTag => return None,
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers. `None` for void.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..CHAIN_MAX {
            let record = self.record(id)?;
            if !record.kind.stands_for_another() {
                return Some(id);
            }
            id = record.size_or_id;
        }
        None
    }

    fn of_kind<'a>(&'a self, name: &'a str, kinds: &'a [Kind]) -> impl Iterator<Item = u32> + 'a {
        self.named(name)
            .filter(|id| self.record(*id).is_some_and(|r| kinds.contains(&r.kind)))
    }

    /// Types of this name that have a size. A struct is often called like a function or a variable.
    fn types<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u32> + 'a {
        self.named(name).filter(|id| self.size(*id).is_some())
    }

    /// Everything of this name, in the order of the numbers.
    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = u32> + 'a {
        let wanted = hash(name.as_bytes());
        let first = self.names.partition_point(|(hash, _)| *hash < wanted);
        self.names[first..]
            .iter()
            .take_while(move |(hash, _)| *hash == wanted)
            .map(|(_, id)| *id)
            .filter(|id| {
                self.record(*id).and_then(|r| self.name(r.name_at)) == Some(name.as_bytes())
            })
    }

    fn record(&self, id: u32) -> Option<Record> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        Record::at(&self.bytes, start as usize)
    }

    fn name(&self, at: u32) -> Option<&[u8]> {
        self.sections.string(&self.bytes, at)
    }
}

/// Names that this kernel gives to numbers. New kernels add to them, so they are read and not known.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// `enum skb_drop_reason`, without `SKB_DROP_REASON_`.
    pub drop_reasons: HashMap<u32, String>,
    /// `enum sk_rst_reason`, without `SK_RST_REASON_`.
    pub reset_reasons: HashMap<u32, String>,
}

/// The names that events use.
pub fn names(btf: &Btf) -> Names {
    let without = |name: &str, prefix: &str| {
        let mut names = btf.enumerators(name);
        for name in names.values_mut() {
            if let Some(short) = name.strip_prefix(prefix) {
                *name = short.to_owned();
            }
        }
        names
    };
    let mut drop_reasons = without("skb_drop_reason", "SKB_DROP_REASON_");
    // Subsystems number theirs in the upper half. Those of modules are not among the kernel's own types.
    for subsystem in [
        "qdisc_drop_reason",
        "mac80211_drop_reason",
        "ovs_drop_reason",
    ] {
        let own = btf.enumerators(subsystem).into_iter();
        drop_reasons.extend(own.filter(|(reason, _)| *reason > 0xffff));
    }
    Names {
        drop_reasons,
        reset_reasons: without("sk_rst_reason", "SK_RST_REASON_"),
    }
}

/// Where things lie in the structs of this kernel; [`dinle_ebpf::offsets::MISSING`] for what it does not have.
pub fn offsets(btf: &Btf) -> Offsets {
    Offsets::resolve(|path| btf.find(path))
}

fn hash(name: &[u8]) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish() as u32
}
