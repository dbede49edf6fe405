//! Cuts a kernel's BTF down to the types that the agent asks it for: the fixtures of `agent/tests/btf`.
//!
//! `btf-extract FULL SMALL`, where FULL is a copy of /sys/kernel/btf/vmlinux, or of a vmlinux's section `.BTF`. It knows the format by itself
//! instead of asking the agent's reader, so that the two check each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use dinle_ebpf::offsets::Offsets;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Bytes of the header that is written.
const HEADER_BYTES: usize = 24;
/// Number of the int that takes the place of every type that is left out.
const FILLER: u32 = 1;

/// A type in words of 32 bits: name, kind with count, size or type, and what follows for its kind.
type Words = Vec<u32>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [full, small] = args.as_slice() else {
        bail!("usage: btf-extract FULL SMALL");
    };
    let bytes = fs::read(full).with_context(|| format!("cannot read {full}"))?;
    let full = Full::parse(&bytes).with_context(|| format!("{full} is not BTF"))?;
    let paths: Vec<&str> = Offsets::PATHS
        .iter()
        .flat_map(|(_, paths)| *paths)
        .copied()
        .collect();
    let extract = full.extract(&full.needed(&paths)?)?;
    fs::write(small, &extract).with_context(|| format!("cannot write {small}"))
}

struct Full<'a> {
    /// Type 0 is void.
    types: Vec<Words>,
    strings: &'a [u8],
}

impl<'a> Full<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let header = words(bytes.get(..HEADER_BYTES).context("no header")?);
        let [magic, header, types_at, types_len, strings_at, strings_len] = header[..] else {
            bail!("no header");
        };
        ensure!(magic == 0x0001_eb9f, "it begins with {magic:#010x}");
        let section = |at: u32, len: u32| {
            let begin = (header + at) as usize;
            bytes
                .get(begin..begin + len as usize)
                .context("a section is cut")
        };
        let mut words = &words(section(types_at, types_len)?)[..];
        let mut types = vec![Words::new()];
        while let [_, info, _, ..] = words {
            let (ty, rest) = words
                .split_at_checked(3 + words_behind(*info)?)
                .context("a type is cut")?;
            types.push(ty.to_vec());
            words = rest;
        }
        Ok(Self {
            types,
            strings: section(strings_at, strings_len)?,
        })
    }

    /// Every type that a path goes through.
    fn needed(&self, paths: &[&str]) -> Result<BTreeSet<u32>> {
        let mut needed = BTreeSet::new();
        for path in paths {
            // What is added to a value needs no type.
            let path = path.split('+').next().unwrap_or_default();
            let function = path.strip_prefix("param:").or(path.strip_prefix("params:"));
            if let Some(function) = function {
                let name = function.split(':').next().unwrap_or_default();
                for id in self.named(name, &[FUNC]) {
                    needed.extend([id, self.types[id as usize][2]]);
                }
            } else if let Some(name) = path.strip_prefix("size:") {
                for id in self.named(name, &[INT, STRUCT, UNION, ENUM, TYPEDEF, FLOAT, ENUM64]) {
                    self.need(id, &mut needed);
                }
            } else if let Some(argument) = path.strip_prefix("arg:") {
                let (tracepoint, _) = argument
                    .split_once(':')
                    .with_context(|| format!("{path}: no argument"))?;
                for id in self.named(&format!("__traceiter_{tracepoint}"), &[FUNC]) {
                    needed.extend([id, self.types[id as usize][2]]);
                }
                needed.extend(self.named(&format!("btf_trace_{tracepoint}"), &[TYPEDEF]));
            } else if let Some(member) = path.strip_prefix("enumerator:") {
                let name = member.split(':').next().unwrap_or_default();
                needed.extend(self.named(name, &[ENUM]));
            } else {
                let mut names = path.split('.');
                let mut at = self.named(names.next().unwrap_or_default(), &[STRUCT, UNION]);
                for name in names {
                    at.iter().for_each(|id| self.need(*id, &mut needed));
                    at = at
                        .iter()
                        .flat_map(|id| self.members_named(*id, name))
                        .collect();
                }
            }
        }
        Ok(needed)
    }

    /// `id`, what it stands for, and the anonymous structs in it.
    fn need(&self, id: u32, needed: &mut BTreeSet<u32>) {
        let ty = &self.types[id as usize];
        if ty.is_empty() || !needed.insert(id) {
            return;
        }
        match kind(ty) {
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => self.need(ty[2], needed),
            STRUCT | UNION => {
                for member in ty[3..]
                    .chunks_exact(3)
                    .filter(|member| self.string(member[0]).is_empty())
                {
                    self.need(member[1], needed);
                }
            }
            _ => {}
        }
    }

    /// Types of the members called `name`.
    fn members_named(&self, id: u32, name: &str) -> Vec<u32> {
        let ty = &self.types[id as usize];
        match ty.get(1).map(|_| kind(ty)) {
            Some(TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) => {
                self.members_named(ty[2], name)
            }
            Some(STRUCT | UNION) => ty[3..]
                .chunks_exact(3)
                .flat_map(|member| match self.string(member[0]) {
                    b"" => self.members_named(member[1], name),
                    other if other == name.as_bytes() => vec![member[1]],
                    _ => Vec::new(),
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    fn named(&self, name: &str, kinds: &[u32]) -> Vec<u32> {
        (1..self.types.len())
            .filter(|id| {
                let ty = &self.types[*id];
                kinds.contains(&kind(ty)) && self.string(ty[0]) == name.as_bytes()
            })
            .map(|id| id as u32)
            .collect()
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// BTF with the types `needed`, in their order; whatever else they refer to is an int.
    fn extract(&self, needed: &BTreeSet<u32>) -> Result<Vec<u8>> {
        let ids: BTreeMap<u32, u32> = needed.iter().copied().zip(FILLER + 1..).collect();
        let id = |old: u32| {
            if old == 0 {
                0
            } else {
                ids.get(&old).copied().unwrap_or(FILLER)
            }
        };
        let mut strings = Strings::default();
        let mut types = vec![strings.add(b"int"), INT << 24, 4, 1 << 24 | 32];
        for old in needed {
            let mut ty = self.types[*old as usize].clone();
            ty[0] = strings.add(self.string(ty[0]));
            let (names, refs): (Vec<usize>, Vec<usize>) = match kind(&ty) {
                STRUCT | UNION => (
                    (3..ty.len()).step_by(3).collect(),
                    (4..ty.len()).step_by(3).collect(),
                ),
                FUNC_PROTO => (
                    (3..ty.len()).step_by(2).collect(),
                    std::iter::once(2).chain((4..ty.len()).step_by(2)).collect(),
                ),
                ENUM => ((3..ty.len()).step_by(2).collect(), vec![]),
                ENUM64 => ((3..ty.len()).step_by(3).collect(), vec![]),
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG | FUNC => (vec![], vec![2]),
                INT | FLOAT => (vec![], vec![]),
                kind => bail!("type {old} is of kind {kind}, which no path goes through"),
            };
            for at in names {
                ty[at] = strings.add(self.string(ty[at]));
            }
            for at in refs {
                ty[at] = id(ty[at]);
            }
            types.extend(ty);
        }
        let types_len = types.len() as u32 * 4;
        let header = [
            0x0001_eb9f,
            HEADER_BYTES as u32,
            0,
            types_len,
            types_len,
            strings.bytes.len() as u32,
        ];
        let mut bytes: Vec<u8> = header
            .into_iter()
            .chain(types)
            .flat_map(u32::to_le_bytes)
            .collect();
        bytes.extend(strings.bytes);
        Ok(bytes)
    }
}

/// The section of strings, each once.
struct Strings {
    bytes: Vec<u8>,
    places: HashMap<Vec<u8>, u32>,
}

impl Default for Strings {
    fn default() -> Self {
        Self {
            bytes: vec![0],
            places: HashMap::from([(Vec::new(), 0)]),
        }
    }
}

impl Strings {
    fn add(&mut self, string: &[u8]) -> u32 {
        if let Some(place) = self.places.get(string) {
            return *place;
        }
        let place = self.bytes.len() as u32;
        self.bytes.extend(string);
        self.bytes.push(0);
        self.places.insert(string.to_vec(), place);
        place
    }
}

fn words(bytes: &[u8]) -> Words {
    let (words, _) = bytes.as_chunks();
    words.iter().copied().map(u32::from_le_bytes).collect()
}

fn kind(ty: &[u32]) -> u32 {
    ty[1] >> 24 & 0x1f
}

/// Words behind the first three of a type.
fn words_behind(info: u32) -> Result<usize> {
    let count = (info & 0xffff) as usize;
    Ok(match info >> 24 & 0x1f {
        INT | VAR | DECL_TAG => 1,
        ARRAY => 3,
        STRUCT | UNION | DATASEC | ENUM64 => 3 * count,
        ENUM | FUNC_PROTO => 2 * count,
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        kind => bail!("a type is of kind {kind}, which is not known"),
    })
}
