//! Whether the API server still answers: what watches showed is worth nothing once it does not.
//!
//! What must stay true: a process that is cut off hears no change, so without this it would take its last view for the
//! state of things and wait for ever, with the operation in its hands that another process could finish. Any answer
//! counts and any line of a watch, so in the ordinary case this costs no request; after a silence it costs one, however
//! many ask.

use super::refusal::Refusal;
use crate::ports::{PortError, PortResult};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Whether an answer of this status is the server's own word. Of a server error it may be a proxy's; 0 = there was none.
pub(super) fn is_its_own(status: u16) -> bool {
    (1..500).contains(&status)
}

/// When the API server was last heard, and what came of asking it.
#[derive(Default)]
pub(super) struct Pulse {
    heard: Mutex<Option<Instant>>,
    /// When it did not answer, and how.
    silent: tokio::sync::Mutex<Option<(Instant, PortError)>>,
}

impl Pulse {
    /// The server said something.
    pub fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn was_heard(&self, within: Duration) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.is_some_and(|at| at.elapsed() < within)
    }

    /// `Ok` when the server was heard `within` that time, or answers `ask` now. A "no" is good for as long.
    ///
    /// Any answer of the server itself will do, also a refusal.
    pub async fn check(
        &self,
        within: Duration,
        ask: impl Future<Output = Result<String, Refusal>>,
    ) -> PortResult<()> {
        if self.was_heard(within) {
            return Ok(());
        }
        let mut silent = self.silent.lock().await;
        // Somebody else may have asked meanwhile.
        if self.was_heard(within) {
            return Ok(());
        }
        if let Some((at, error)) = &*silent
            && at.elapsed() < within
        {
            return Err(error.clone());
        }
        *silent = None;
        match ask.await {
            Err(refused) if !is_its_own(refused.status) => {
                let error = PortError::from(refused);
                *silent = Some((Instant::now(), error.clone()));
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::kinds::Resource;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(10);

    fn refusal(status: u16) -> Refusal {
        Refusal::new(status, "", "list", &Resource::server("/version"), "")
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_asked_once_and_only_after_a_silence() {
        let pulse = Pulse::default();
        let asked = AtomicUsize::new(0);
        let check = async |status: u16| {
            let answer = async {
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                if status == 200 {
                    pulse.heard();
                    Ok(String::new())
                } else {
                    Err(refusal(status))
                }
            };
            (
                pulse.check(LONG, answer).await.is_ok(),
                asked.load(Ordering::SeqCst),
            )
        };
        assert_eq!(tokio::join!(check(200), check(200)), ((true, 1), (true, 1)));
        tokio::time::sleep(LONG).await;
        assert_eq!(tokio::join!(check(0), check(0)), ((false, 2), (false, 2)));
        // The "no" is good for as long, unless something is heard.
        assert_eq!(check(200).await, (false, 2));
        pulse.heard();
        assert_eq!(check(0).await, (true, 2));
        tokio::time::sleep(LONG).await;
        assert_eq!(check(503).await, (false, 3));
        tokio::time::sleep(LONG).await;
        assert_eq!(check(403).await, (true, 4));
    }
}
