//! Maps that are asked for every event.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// A map by cgroup id. Ids come from the kernel, one after the other: nobody can choose them so that they collide, and the
/// standard library's hasher, which guards against that, would cost more than the rest of a lookup.
pub type IdMap<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

/// Spreads the bits of one integer.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl IdHasher {
    /// 2^64 divided by the golden ratio, which spreads neighbours far apart.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // A product's best bits are its high ones; the map takes both ends.
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(Self::FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, hash::BuildHasher as _};

    #[test]
    fn neighbours_are_spread_at_both_ends() {
        let hasher = BuildHasherDefault::<IdHasher>::default();
        let hashes: Vec<u64> = (10_000..10_128u64).map(|id| hasher.hash_one(id)).collect();
        for ends in [
            hashes.iter().map(|hash| hash >> 57).collect::<HashSet<_>>(),
            hashes.iter().map(|hash| hash & 127).collect(),
        ] {
            // Of 128 places that 128 random numbers take, about 81 differ.
            assert!(ends.len() > 64, "{} of 128 differ", ends.len());
        }
    }
}
