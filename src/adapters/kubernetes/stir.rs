//! Who is waited for, and what stirred: so that the engine looks when something happened, not when a pause is over.
//!
//! What must stay true: only instances are told that this process has looked at and found unfinished; what happens while
//! it looks is told after it has looked, because what the engine records then would undo an earlier word; a word that
//! gets lost costs only the engine's own pause.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long after a look the engine has surely recorded what it saw; several changes in this time are one.
const RECORDED: Duration = Duration::from_millis(100);
/// Who was not looked at for so long is waited for elsewhere.
const FORGET: Duration = Duration::from_mins(5);
/// So many are waited for before old ones are looked for.
const MANY: usize = 256;

struct Waiting {
    looked: Instant,
    looking: bool,
    stirred: bool,
}

/// Instances that are waited for.
#[derive(Default)]
pub(super) struct Stir {
    waiting: Mutex<HashMap<String, Waiting>>,
    changed: Notify,
}

impl Stir {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at an instance begins.
    pub fn begin(&self, iid: &str) {
        let now = Instant::now();
        let mut waiting = self.lock();
        if waiting.len() >= MANY && !waiting.contains_key(iid) {
            waiting.retain(|_, one| one.looked + FORGET > now);
        }
        let fresh = Waiting {
            looked: now,
            looking: true,
            stirred: false,
        };
        waiting.insert(iid.to_owned(), fresh);
    }

    /// It ended, and the instance is not finished.
    pub fn end(&self, iid: &str) {
        if let Some(one) = self.lock().get_mut(iid) {
            one.looked = Instant::now();
            one.looking = false;
            self.changed.notify_one();
        }
    }

    /// Nobody waits for it any more.
    pub fn forget(&self, iid: &str) {
        self.lock().remove(iid);
    }

    /// Something of an instance changed.
    pub fn stir(&self, iid: &str) {
        if let Some(one) = self.lock().get_mut(iid) {
            one.stirred = true;
            self.changed.notify_one();
        }
    }

    /// Everything may have changed.
    pub fn stir_all(&self) {
        self.lock().values_mut().for_each(|one| one.stirred = true);
        self.changed.notify_one();
    }

    /// The next instance that something happened to since it was looked at. For one caller at a time.
    pub async fn next(&self) -> String {
        loop {
            let due = {
                let mut waiting = self.lock();
                let first = waiting
                    .iter()
                    .filter(|(_, one)| one.stirred && !one.looking)
                    .min_by_key(|(_, one)| one.looked)
                    .map(|(iid, one)| (iid.clone(), one.looked + RECORDED));
                match first {
                    Some((iid, due)) if due <= Instant::now() => {
                        waiting.remove(&iid);
                        return iid;
                    }
                    first => first.map(|(_, due)| due),
                }
            };
            match due {
                Some(due) => sleep_until(due).await,
                None => self.changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{sleep, timeout};

    async fn told(stir: &Stir) -> Option<String> {
        timeout(RECORDED * 3, stir.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_waited_for_is_told_and_once() {
        let stir = Stir::default();
        stir.stir("a");
        assert_eq!(told(&stir).await, None);
        stir.begin("a");
        stir.end("a");
        assert_eq!(told(&stir).await, None);
        stir.stir("a");
        stir.stir("a");
        assert_eq!(told(&stir).await.as_deref(), Some("a"));
        assert_eq!(told(&stir).await, None);
        stir.begin("a");
        stir.stir("a");
        stir.forget("a");
        assert_eq!(told(&stir).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_during_a_look_is_told_after_it() {
        let stir = Stir::default();
        stir.begin("a");
        stir.stir("a");
        sleep(RECORDED * 5).await;
        stir.end("a");
        let ended = Instant::now();
        assert_eq!(told(&stir).await.as_deref(), Some("a"));
        assert!(ended.elapsed() >= RECORDED);
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_told_when_everything_was_listed_again() {
        let stir = Stir::default();
        for iid in ["a", "b"] {
            stir.begin(iid);
            stir.end(iid);
        }
        stir.stir_all();
        let mut all = [told(&stir).await, told(&stir).await];
        all.sort();
        assert_eq!(all, [Some("a".to_owned()), Some("b".to_owned())]);
    }
}
