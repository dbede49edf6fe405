//! The reader of BTF against extracts of real kernels' (made by `btf-extract`), and against bytes that are none.

#![allow(clippy::unwrap_used, reason = "a test")]

use dinle::kernel::btf::{Btf, BtfError, offsets};
use dinle_ebpf::offsets::{MISSING, Offsets};

/// What the kernels' full BTF says, as bpftool shows it: one line for each field, one column for each kernel.
const GOLDEN: &str = include_str!("btf/offsets.txt");

const KERNELS: [(&str, &[u8]); 5] = [
    ("5.10", include_bytes!("btf/5.10.btf")),
    ("6.1", include_bytes!("btf/6.1.btf")),
    ("6.12", include_bytes!("btf/6.12.btf")),
    ("6.18", include_bytes!("btf/6.18.btf")),
    ("7.3", include_bytes!("btf/7.3.btf")),
];

fn kernel(version: &str) -> &'static [u8] {
    KERNELS.iter().find(|(name, _)| *name == version).unwrap().1
}

fn text(value: u32) -> String {
    if value == MISSING {
        "-".to_owned()
    } else {
        value.to_string()
    }
}

#[test]
fn offsets_are_those_of_the_full_kernels() {
    let columns: Vec<_> = KERNELS
        .iter()
        .map(|(_, bytes)| offsets(&Btf::parse(bytes).unwrap()).values())
        .collect();
    let mut found = format!("field {}\n", KERNELS.map(|(version, _)| version).join(" "));
    for (i, (field, _)) in Offsets::PATHS.iter().enumerate() {
        let values: Vec<String> = columns.iter().map(|column| text(column[i])).collect();
        found += &format!("{field} {}\n", values.join(" "));
    }
    assert_eq!(found, GOLDEN);
}

#[test]
fn only_what_a_kernel_lacks_is_missing() {
    for (version, bytes) in KERNELS {
        let values = offsets(&Btf::parse(bytes).unwrap()).values();
        let missing: Vec<&str> = Offsets::PATHS
            .iter()
            .zip(values)
            .filter(|(_, value)| *value == MISSING)
            .map(|((field, _), _)| *field)
            .collect();
        // Newer kernels have them, or older ones had them.
        let expected: &[&str] = match version {
            "5.10" => &[
                "exit_group_dead",
                "helper_task_pt_regs",
                "helper_current_task_btf",
                "sock_cgroup_pointer",
                "reset_reason",
                "retransmit_err",
                "cgroup_ancestors",
                "queue_disk",
                "kfree_skb_reason",
                "kfree_skb_socket",
                "skb_consumed",
            ],
            "6.1" => &[
                "exit_group_dead",
                "reset_reason",
                "retransmit_err",
                "cgroup_ancestor_ids",
                "request_disk",
                "kfree_skb_socket",
                "skb_consumed",
            ],
            "6.12" => &[
                "exit_group_dead",
                "retransmit_err",
                "cgroup_ancestor_ids",
                "request_disk",
            ],
            _ => &["cgroup_ancestor_ids", "request_disk"],
        };
        assert_eq!(missing, expected, "{version}");
    }
}

#[test]
fn functions_and_tracepoints_are_found_by_their_whole_name() {
    let btf = Btf::parse(kernel("7.3")).unwrap();
    assert!(btf.has_func("__traceiter_sched_process_exit"));
    assert!(!btf.has_func("__traceiter_sched_process_exi"));
    assert!(!btf.has_func("task_struct"), "a struct is no function");
    assert!(!btf.has_func(""));
    assert!(btf.has_tracepoint("sched_process_exit"));
    assert!(!btf.has_tracepoint("sched_process"));
}

#[test]
fn what_is_not_there_is_not_found() {
    let btf = Btf::parse(kernel("6.18")).unwrap();
    for path in [
        "",
        ".",
        "task_struct",
        "task_struct.",
        "task_struct.no_such_member",
        "task_struct.comm.more",
        "no_such_struct.member",
        "size:",
        "size:no_such_type",
        "size:__traceiter_sched_process_exit",
        "arg:",
        "arg:sched_process_exit",
        "arg:sched_process_exit:no_such_argument",
        "arg:no_such_tracepoint:p",
    ] {
        assert_eq!(btf.find(path), None, "{path:?}");
    }
}

/// The first parameter of the function behind a tracepoint is not an argument.
#[test]
fn arguments_are_counted_from_the_first_that_a_probe_gets() {
    let btf = Btf::parse(kernel("6.18")).unwrap();
    assert_eq!(btf.find("arg:sched_process_exit:__data"), None);
    assert_eq!(btf.find("arg:sched_process_exit:p"), Some(0));
    assert_eq!(btf.find("arg:sched_process_exit:group_dead"), Some(1));
}

#[test]
fn a_bit_field_is_where_its_first_bit_is() {
    let btf = Btf::parse(
        &Builder::default()
            .ty("int", INT, 4, &[1 << 24 | 32])
            .flagged(
                "flags",
                STRUCT,
                8,
                &[("a", 1, 3 << 24), ("b", 1, 9 << 24 | 11)],
            )
            .bytes(),
    )
    .unwrap();
    assert_eq!(btf.find("flags.a"), Some(0));
    assert_eq!(btf.find("flags.b"), Some(1));
}

#[test]
fn sizes_are_seen_through_typedefs_and_arrays() {
    let btf = Btf::parse(
        &Builder::default()
            .ty("int", INT, 4, &[1 << 24 | 32])
            .ty("", ARRAY, 0, &[1, 1, 6])
            .ty("six", TYPEDEF, 2, &[])
            .ty("", POINTER, 1, &[])
            .ty("pointer", TYPEDEF, 4, &[])
            .ty("nothing", TYPEDEF, 0, &[])
            .bytes(),
    )
    .unwrap();
    assert_eq!(btf.find("size:int"), Some(4));
    assert_eq!(btf.find("size:six"), Some(24));
    assert_eq!(btf.find("size:pointer"), Some(8));
    assert_eq!(btf.find("size:nothing"), None);
}

#[test]
fn types_that_refer_to_themselves_end() {
    let btf = Btf::parse(
        &Builder::default()
            .ty("typedef", TYPEDEF, 1, &[])
            .ty("array", ARRAY, 0, &[2, 2, 1])
            .flagged("nest", STRUCT, 8, &[("", 3, 0), ("", 3, 0), ("", 9, 0)])
            .bytes(),
    )
    .unwrap();
    assert_eq!(btf.find("size:typedef"), None);
    assert_eq!(btf.find("size:array"), None);
    assert_eq!(btf.find("nest.member"), None);
}

#[test]
fn what_is_not_btf_is_refused_with_the_reason() {
    let refusal = |bytes: &[u8]| Btf::parse(bytes).unwrap_err().to_string();
    let good = Builder::default().ty("int", INT, 4, &[32]).bytes();
    assert_eq!(Btf::parse(&good).unwrap().find("size:int"), Some(4));

    assert_eq!(
        refusal(b"\x7fELF"),
        "BTF is cut: the header needs bytes 0 to 24, and there are 4"
    );
    let mut elf = good.clone();
    elf[..2].copy_from_slice(b"\x7fE");
    assert_eq!(
        refusal(&elf),
        "not BTF of this machine's byte order: it begins with 0x457f, expected 0xeb9f"
    );
    let mut later = good.clone();
    later[2] = 2;
    assert_eq!(
        refusal(&later),
        "BTF is version 2, expected 1: this build is too old for the kernel"
    );
    assert_eq!(
        refusal(
            &Builder::default()
                .ty("int", INT, 4, &[32])
                .ty("new", 31, 0, &[])
                .bytes()
        ),
        "BTF type 2 is of kind 31, which this build does not know: it is too old for the kernel"
    );
    assert_eq!(
        refusal(&Builder::default().ty("int", INT, 4, &[]).bytes()),
        "BTF is cut: a type needs bytes 24 to 40, and there are 36"
    );
    assert_eq!(
        refusal(&good[..good.len() - 1]),
        "BTF is cut: the section of strings needs bytes 40 to 45, and there are 44"
    );
}

/// The strings are the last section: a kernel's BTF that is cut anywhere lacks a part of them.
#[test]
fn a_cut_kernel_is_refused() {
    for (version, bytes) in KERNELS {
        for len in 0..bytes.len() {
            let refused = Btf::parse(&bytes[..len]);
            assert!(
                matches!(refused, Err(BtfError::Cut { .. })),
                "{version} cut to {len} bytes"
            );
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut parsed = 0;
    for (_, bytes) in KERNELS {
        for _ in 0..200 {
            let mut bytes = bytes.to_vec();
            for _ in 0..=next(16) {
                let at = next(bytes.len());
                bytes[at] ^= 1 << next(8);
            }
            if let Ok(btf) = Btf::parse(&bytes) {
                offsets(&btf);
                parsed += 1;
            }
        }
    }
    assert!(
        parsed > 0,
        "every try was refused: nothing was tested behind the door"
    );
}

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const TYPEDEF: u32 = 8;

/// Writes BTF by hand.
struct Builder {
    types: Vec<u32>,
    strings: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
        }
    }
}

impl Builder {
    fn string(&mut self, string: &str) -> u32 {
        if string.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(string.bytes().chain([0]));
        at
    }

    fn ty(mut self, name: &str, kind: u32, size_or_id: u32, behind: &[u32]) -> Self {
        let name = self.string(name);
        self.types.extend([name, kind << 24, size_or_id]);
        self.types.extend(behind);
        self
    }

    /// A struct whose members' offsets hold the width of a bit field in the upper byte.
    fn flagged(mut self, name: &str, kind: u32, size: u32, members: &[(&str, u32, u32)]) -> Self {
        let name = self.string(name);
        self.types
            .extend([name, 1 << 31 | kind << 24 | members.len() as u32, size]);
        for (name, id, offset) in members {
            let name = self.string(name);
            self.types.extend([name, *id, *offset]);
        }
        self
    }

    fn bytes(self) -> Vec<u8> {
        let Self { types, strings } = self;
        let types_len = types.len() as u32 * 4;
        [
            0x0001_eb9f,
            24,
            0,
            types_len,
            types_len,
            strings.len() as u32,
        ]
        .into_iter()
        .chain(types)
        .flat_map(u32::to_le_bytes)
        .chain(strings)
        .collect()
    }
}
