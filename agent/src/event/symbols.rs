//! Names of places in the kernel's code.

use std::fmt;

/// Functions of the kernel and of its modules, by address. Some 150,000 of them in 5 MB.
#[derive(Clone, Default)]
pub struct Symbols {
    /// Where each function begins, ordered.
    begins: Vec<u64>,
    /// Where its name begins in `names`; it goes to where the next one begins.
    starts: Vec<u32>,
    names: String,
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Symbols({})", self.begins.len())
    }
}

impl Symbols {
    /// Reads lines of /proc/kallsyms: `ffffffff81000000 T _text`, behind a tab `[module]`. Without a privilege the kernel writes zeros for
    /// addresses; those are left out.
    pub fn parse(kallsyms: &str) -> Self {
        let mut functions: Vec<(u64, &str, Option<&str>)> = kallsyms
            .lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let code = matches!(words.next()?, "t" | "T" | "w" | "W");
                let name = words.next()?;
                (address != 0 && code).then(|| (address, name, words.next()))
            })
            .collect();
        // Of aliases the first one is taken, as the kernel does.
        functions.sort_by_key(|(address, ..)| *address);
        functions.dedup_by_key(|(address, ..)| *address);
        let mut symbols = Self {
            begins: Vec::with_capacity(functions.len()),
            starts: Vec::with_capacity(functions.len()),
            names: String::new(),
        };
        for (address, name, module) in functions {
            let Ok(start) = u32::try_from(symbols.names.len()) else {
                break;
            };
            symbols.begins.push(address);
            symbols.starts.push(start);
            symbols.names.push_str(name);
            if let Some(module) = module {
                symbols.names.push(' ');
                symbols.names.push_str(module);
            }
        }
        symbols.names.shrink_to_fit();
        symbols
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// The function and the place in it, as the kernel prints them: `name+0x1a`, or `name+0x1a [module]`.
    pub fn find(&self, address: u64) -> Option<String> {
        let Self {
            begins,
            starts,
            names,
        } = self;
        let at = begins
            .partition_point(|begin| *begin <= address)
            .checked_sub(1)?;
        let start = *starts.get(at)? as usize;
        let end = starts
            .get(at + 1)
            .map_or(names.len(), |start| *start as usize);
        let name = names.get(start..end)?;
        let offset = address - begins.get(at)?;
        Some(match name.split_once(' ') {
            Some((name, module)) => format!("{name}+{offset:#x} {module}"),
            None => format!("{name}+{offset:#x}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t early
ffffffff81000100 t early_too
ffffffff81000200 D data
ffffffff81000300 W weak
ffffffffc0000000 t of_module\t[nf_tables]
";

    #[test]
    fn places_have_the_name_of_their_function() {
        let symbols = Symbols::parse(KALLSYMS);
        let table = [
            (0xffff_ffff_8100_0000, Some("_text+0x0")),
            (0xffff_ffff_8100_011a, Some("early+0x1a")),
            (0xffff_ffff_8100_0210, Some("early+0x110")),
            (0xffff_ffff_8100_0300, Some("weak+0x0")),
            (0xffff_ffff_c000_0010, Some("of_module+0x10 [nf_tables]")),
            (0xffff_ffff_80ff_ffff, None),
            (0, None),
        ];
        for (address, expected) in table {
            assert_eq!(symbols.find(address).as_deref(), expected, "{address:#x}");
        }
    }

    #[test]
    fn hidden_addresses_are_no_symbols() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t early\n";
        for text in [hidden, "", "x\n", "ffffffff81000000 T\n", "zz T x\n"] {
            let symbols = Symbols::parse(text);
            assert!(symbols.is_empty(), "{text}");
            assert_eq!(symbols.find(u64::MAX), None);
        }
    }
}
