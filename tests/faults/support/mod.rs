//! What fault tests share: a place that cleans up after itself, the program, a platform, clients, and the audit.

pub mod audit;
pub mod clients;
pub mod home;
pub mod leaks;
pub mod platform;
#[path = "../../it/support/postgres.rs"]
pub mod postgres;
pub mod process;
pub mod served;

use std::future::Future;
use std::time::{Duration, Instant};

/// A small generator with a seed, so that a bad run can be repeated.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

/// The seed of this run: `CHANDLER_TEST_SEED`, else the time.
pub fn seed() -> u64 {
    number("CHANDLER_TEST_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        now.as_millis() as u64
    })
}

/// An environment variable that is a number.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Waits until `look` gives something, at most `limit`.
#[track_caller]
pub fn until<T, F, L>(what: &str, limit: Duration, mut look: L) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
    L: FnMut() -> F,
{
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let end = Instant::now() + limit;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < end, "{caller}: waited {limit:?} in vain: {what}");
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }
}
