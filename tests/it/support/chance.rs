//! Chance that can be had again: a small seeded generator for tests that try many things.
//!
//! The seed is printed by the test and taken from the environment, so a failing run can be repeated.

/// SplitMix64.
pub struct Chance(u64);

impl Chance {
    /// The seed from `CHANDLER_TEST_SEED`, else `default`; printed, so that a failure names it.
    pub fn for_test(name: &str, default: u64) -> Self {
        let seed = setting("CHANDLER_TEST_SEED", default);
        println!("{name}: CHANDLER_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// A number from the environment.
#[expect(
    clippy::disallowed_methods,
    reason = "how long and with which seed a test runs is for the caller to say"
)]
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}
