//! Which names were seen, in an amount of memory that does not grow with their number.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Bits of a set: one MiB.
const BITS: u64 = 1 << 23;
/// Bits that stand for one name.
const PROBES: usize = 4;

/// A set that never says no to a name that was added, and hardly ever yes to one that was not: with 10,000 names once in
/// a thousand million, with a million once in fifty. Another salt errs about other names, so what one comparison
/// overlooks the next one finds.
pub(super) struct Seen {
    bits: Vec<u64>,
    salt: i64,
}

impl Seen {
    pub(super) fn new(salt: i64) -> Self {
        Self {
            bits: vec![0; usize::try_from(BITS / 64).unwrap_or_default()],
            salt,
        }
    }

    pub(super) fn add(&mut self, name: &str) {
        for (word, bit) in self.places(name) {
            if let Some(word) = self.bits.get_mut(word) {
                *word |= bit;
            }
        }
    }

    pub(super) fn holds(&self, name: &str) -> bool {
        self.places(name)
            .iter()
            .all(|(word, bit)| self.bits.get(*word).is_some_and(|there| there & bit != 0))
    }

    fn places(&self, name: &str) -> [(usize, u64); PROBES] {
        let mut hasher = DefaultHasher::new();
        (self.salt, name).hash(&mut hasher);
        let first = hasher.finish();
        let step = first.rotate_left(32) | 1;
        let mut place = first;
        [(); PROBES].map(|()| {
            place = place.wrapping_add(step);
            let bit = place % BITS;
            (usize::try_from(bit / 64).unwrap_or_default(), 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::names;

    #[test]
    fn ten_thousand_names_are_told_from_ten_thousand_others() {
        let name = |n: u32| names::bid("cf", "one", &n.to_string());
        for salt in [0, 1, 1_800_000_000_000] {
            let mut seen = Seen::new(salt);
            assert!(!seen.holds(&name(0)));
            for n in 0..10_000 {
                seen.add(&name(n));
            }
            assert!((0..10_000).all(|n| seen.holds(&name(n))));
            assert_eq!((10_000..20_000).filter(|n| seen.holds(&name(*n))).count(), 0);
        }
    }
}
