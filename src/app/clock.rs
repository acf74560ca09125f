//! The real time and real chance, for everybody who takes them as parameters.

use crate::domain::instance::Millis;
use crate::ports::Clock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place the clock comes from"
    )]
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
    }
}

/// 26 characters of `a-z2-7` carrying 128 random bits.
///
/// Ends the process when the system gives no randomness: a guessable secret would be worse.
pub fn random_token() -> String {
    let mut bytes = [0; 16];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("the system gives no randomness; stopping");
        std::process::abort();
    }
    data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}
