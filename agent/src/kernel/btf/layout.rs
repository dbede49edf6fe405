//! How BTF lies in bytes: Documentation/bpf/btf.rst of the kernel. Every read is checked.

use super::BtfError;

/// The first two bytes. Both architectures that the agent runs on are little-endian.
const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Bytes of the header that this code reads. It may be longer.
const HEADER_BYTES: usize = 24;
/// Name, kind with count, and size or type: what every type begins with.
const RECORD_BYTES: usize = 12;
/// Name, type and offset of a struct's member; also one of a section's variables, and an enumerator of 64 bits.
const MEMBER_BYTES: usize = 12;
/// Name and type of a function's parameter; also an enumerator of 32 bits.
const PARAM_BYTES: usize = 8;
/// Element's type, index's type and length of an array.
const ARRAY_BYTES: usize = 12;
/// What an int, a variable and a declaration's tag have behind them.
const EXTRA_BYTES: usize = 4;

/// Declares the kinds of types once, with their numbers.
macro_rules! kinds {
    ($($kind:ident = $id:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind { $($kind),* }

        impl Kind {
            fn from_id(id: u8) -> Option<Self> {
                match id { $($id => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    Int = 1,
    Pointer = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Forward = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    Datasec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    /// Whether it only gives another type a name or a qualifier.
    pub(super) const fn stands_for_another(self) -> bool {
        match self {
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag => true,
            Self::Int
            | Self::Pointer
            | Self::Array
            | Self::Struct
            | Self::Union
            | Self::Enum
            | Self::Forward
            | Self::Func
            | Self::FuncProto
            | Self::Var
            | Self::Datasec
            | Self::Float
            | Self::DeclTag
            | Self::Enum64 => false,
        }
    }

    /// Bytes behind the record of a type of this kind with `count` parts.
    const fn bytes_behind(self, count: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => EXTRA_BYTES,
            Self::Array => ARRAY_BYTES,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => count * MEMBER_BYTES,
            Self::Enum | Self::FuncProto => count * PARAM_BYTES,
            Self::Pointer
            | Self::Forward
            | Self::Typedef
            | Self::Volatile
            | Self::Const
            | Self::Restrict
            | Self::Func
            | Self::Float
            | Self::TypeTag => 0,
        }
    }
}

/// Where the two sections lie in the bytes.
#[derive(Clone, Debug)]
pub(super) struct Sections {
    types: (usize, usize),
    strings: (usize, usize),
}

impl Sections {
    pub(super) fn of(bytes: &[u8]) -> Result<Self, BtfError> {
        let cut = |what, begin: usize, end: usize| BtfError::Cut {
            what,
            begin,
            end,
            len: bytes.len(),
        };
        let Some(&[m0, m1, version, ..]) = bytes.get(..HEADER_BYTES) else {
            return Err(cut("the header", 0, HEADER_BYTES));
        };
        let magic = u16::from_le_bytes([m0, m1]);
        if magic != MAGIC {
            return Err(BtfError::Magic {
                found: magic,
                expected: MAGIC,
            });
        }
        if version != VERSION {
            return Err(BtfError::Version {
                found: version,
                expected: VERSION,
            });
        }
        let field = |at| {
            u32_at(bytes, at)
                .map(|value| value as usize)
                .ok_or_else(|| cut("the header", at, at + 4))
        };
        let header = field(4)?;
        let section = |what, at: usize, len: usize| {
            let begin = header.saturating_add(at);
            let end = begin.saturating_add(len);
            if end > bytes.len() {
                return Err(cut(what, begin, end));
            }
            Ok((begin, end))
        };
        Ok(Self {
            types: section("the section of types", field(8)?, field(12)?)?,
            strings: section("the section of strings", field(16)?, field(20)?)?,
        })
    }

    /// The string at `at`, without its NUL.
    pub(super) fn string<'a>(&self, bytes: &'a [u8], at: u32) -> Option<&'a [u8]> {
        let (begin, end) = self.strings;
        let rest = bytes.get(begin..end)?.get(at as usize..)?;
        let len = rest.iter().position(|byte| *byte == 0)?;
        rest.get(..len)
    }
}

/// Where each type begins.
pub(super) fn starts(bytes: &[u8], sections: &Sections) -> Result<Vec<u32>, BtfError> {
    let (mut at, end) = sections.types;
    let cut = |begin, len: usize| BtfError::Cut {
        what: "a type",
        begin,
        end: begin.saturating_add(len),
        len: end,
    };
    let mut starts = Vec::new();
    while at < end {
        let (Some(info), Ok(start)) = (u32_at(bytes, at + 4), u32::try_from(at)) else {
            return Err(cut(at, RECORD_BYTES));
        };
        let kind = Kind::from_id(kind_id(info)).ok_or(BtfError::Kind {
            id: starts.len() + 1,
            kind: kind_id(info),
        })?;
        let len = RECORD_BYTES + kind.bytes_behind(count(info));
        if len > end - at {
            return Err(cut(at, len));
        }
        starts.push(start);
        at += len;
    }
    Ok(starts)
}

/// A type.
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) name_at: u32,
    /// Size in bytes, or the type that it refers to, by kind.
    pub(super) size_or_id: u32,
    count: usize,
    flag: bool,
    /// Where what is behind the record begins.
    behind: usize,
}

/// A member of a struct or union.
pub(super) struct Member {
    pub(super) name_at: u32,
    pub(super) id: u32,
    pub(super) bits: u32,
}

impl Record {
    pub(super) fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let info = u32_at(bytes, at.checked_add(4)?)?;
        Some(Self {
            kind: Kind::from_id(kind_id(info))?,
            name_at: u32_at(bytes, at)?,
            size_or_id: u32_at(bytes, at.checked_add(8)?)?,
            count: count(info),
            flag: info >> 31 == 1,
            behind: at.checked_add(RECORD_BYTES)?,
        })
    }

    /// Members; none when it is not a struct or union.
    pub(super) fn members(&self, bytes: &[u8]) -> impl Iterator<Item = Member> {
        let Self { flag, .. } = *self;
        self.parts(
            bytes,
            matches!(self.kind, Kind::Struct | Kind::Union),
            MEMBER_BYTES,
        )
        .map_while(move |member| {
            let offset = u32_at(member, 8)?;
            Some(Member {
                name_at: u32_at(member, 0)?,
                id: u32_at(member, 4)?,
                // With the flag, the upper byte is the width of a bit field.
                bits: if flag { offset & 0x00ff_ffff } else { offset },
            })
        })
    }

    /// Names of parameters; none when it is not a function's type.
    pub(super) fn params(&self, bytes: &[u8]) -> impl Iterator<Item = u32> {
        self.parts(bytes, self.kind == Kind::FuncProto, PARAM_BYTES)
            .map_while(|param| u32_at(param, 0))
    }

    /// Names and values of an enum's members; none when it is not an enum of 32 bits.
    pub(super) fn enumerators(&self, bytes: &[u8]) -> impl Iterator<Item = (u32, u32)> {
        self.parts(bytes, self.kind == Kind::Enum, PARAM_BYTES)
            .map_while(|member| Some((u32_at(member, 0)?, u32_at(member, 4)?)))
    }

    /// Element and length of an array.
    pub(super) fn array(&self, bytes: &[u8]) -> Option<(u32, u32)> {
        Some((
            u32_at(bytes, self.behind)?,
            u32_at(bytes, self.behind.checked_add(8)?)?,
        ))
    }

    fn parts<'a>(
        &self,
        bytes: &'a [u8],
        any: bool,
        part_bytes: usize,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let len = if any { self.count * part_bytes } else { 0 };
        bytes
            .get(self.behind..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default()
            .chunks_exact(part_bytes)
    }
}

/// Number of the kind in a record's second word.
const fn kind_id(info: u32) -> u8 {
    (info >> 24 & 0x1f) as u8
}

/// How many parts follow the record, in the same word.
const fn count(info: u32) -> usize {
    (info & 0xffff) as usize
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
