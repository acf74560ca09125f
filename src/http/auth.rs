//! Who asks: platforms with their credentials, checked on every request.
//!
//! Passwords are kept as argon2id hashes. Checking one costs some 20 ms of a core by design, and
//! platforms poll constantly, so a right password is remembered for a few minutes under a keyed
//! hash of it. The memory lives inside the table of platforms: replacing the table forgets it.
//! An unknown user name costs what a wrong password costs.

use super::error::Refusal;
use super::headers;
use super::limit::FailureLimit;
pub use super::password::hash_password;
use super::password::is_password_of;
use crate::domain::error::Error;
use actix_web::http::header::HeaderValue;
use actix_web::web;
use arc_swap::ArcSwap;
use argon2::Algorithm;
use argon2::password_hash::phc::PasswordHash;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, Semaphore};
use zeroize::Zeroizing;

/// How long a right password is remembered.
const REMEMBERED: Duration = Duration::from_mins(5);
/// Password checks running at once.
const CHECKS: usize = 2;
/// Password checks running or waiting, beyond which the answer is 503.
const QUEUED_CHECKS: usize = 256;
/// Credential slots of a platform: the present one and the next.
const SLOTS: usize = 2;
/// Longest platform name.
const MAX_NAME: usize = 64;

/// One user name and the argon2id hash of its password, in PHC form.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// User name, unique over all slots of all platforms; without a colon.
    pub username: String,
    /// `$argon2id$…`, see [`hash_password`].
    pub hash: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A platform that may use this broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Its name; ids of different platforms never collide, because every derived name holds it.
    pub name: String,
    /// The present credential and, during a rotation, the next.
    pub credentials: Vec<Credential>,
}

/// A password that was right.
#[derive(Clone)]
struct Known {
    platform: Arc<str>,
    at: Instant,
}

/// The key a right password is remembered under.
type Memo = [u8; 32];

/// All platforms at one moment, with the passwords that were right since.
struct Table {
    users: HashMap<String, (Arc<str>, Arc<PasswordHash>)>,
    known: Mutex<HashMap<Memo, Known>>,
}

impl Table {
    /// Errors: everything wrong with `platforms`, one sentence each.
    fn new(platforms: Vec<Platform>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        let mut users = HashMap::new();
        for Platform { name, credentials } in platforms {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(legal) {
                problems.push(format!(
                    "platform {name:?}: a name is 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`"
                ));
            }
            if !names.insert(name.clone()) {
                problems.push(format!("platform {name:?}: the name is used twice"));
            }
            if credentials.is_empty() || credentials.len() > SLOTS {
                problems.push(format!(
                    "platform {name:?}: needs one credential, or two during a rotation"
                ));
            }
            let name: Arc<str> = name.into();
            for Credential { username, hash } in credentials {
                if username.is_empty() || username.contains(':') || username.chars().any(char::is_control) {
                    problems.push(format!(
                        "platform {name:?}: user name {username:?} is empty or holds a colon or control character"
                    ));
                }
                match PasswordHash::new(&hash) {
                    Ok(hash) if hash.algorithm == Algorithm::Argon2id.ident() && hash.hash.is_some() => {
                        if users.insert(username.clone(), (Arc::clone(&name), Arc::new(hash))).is_some() {
                            problems.push(format!("platform {name:?}: user name {username:?} is used twice"));
                        }
                    }
                    _ => problems.push(format!(
                        "platform {name:?}: the hash of user {username:?} is not argon2id in PHC form ($argon2id$v=19$…)"
                    )),
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            users,
            known: Mutex::new(HashMap::new()),
        })
    }

    /// Looks a password up among those that were right: `Some(true)` recently, `Some(false)` some time ago.
    fn recall(&self, memo: &Memo, now: Instant) -> Option<(Arc<str>, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(memo).map(|known| {
            let fresh = now.saturating_duration_since(known.at) < REMEMBERED;
            (Arc::clone(&known.platform), fresh)
        })
    }

    /// Remembers a right password. There are no more of these than credentials.
    fn remember(&self, memo: Memo, platform: &Arc<str>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(
            memo,
            Known {
                platform: Arc::clone(platform),
                at: now,
            },
        );
    }
}

/// The platforms, replaceable while requests run.
pub struct Platforms {
    table: ArcSwap<Table>,
    memo_key: hmac::Key,
    decoy: Arc<PasswordHash>,
    checks: Arc<Semaphore>,
    queued: AtomicUsize,
    turns: Turns,
}

impl Platforms {
    /// Errors: everything wrong with `platforms`, one sentence each.
    pub fn new(platforms: Vec<Platform>) -> Result<Self, Vec<String>> {
        let table = Table::new(platforms)?;
        let memo_key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| vec!["the system gave no randomness".to_owned()])?;
        let decoy = hash_password("").and_then(|hash| PasswordHash::new(&hash).map_err(|e| e.to_string()));
        Ok(Self {
            table: ArcSwap::from_pointee(table),
            memo_key,
            decoy: Arc::new(decoy.map_err(|e| vec![e])?),
            checks: Arc::new(Semaphore::new(CHECKS)),
            queued: AtomicUsize::new(0),
            turns: Turns::default(),
        })
    }

    /// Puts other platforms in place and forgets every remembered password. Errors: as [`Platforms::new`]; the old ones stay.
    pub fn replace(&self, platforms: Vec<Platform>) -> Result<(), Vec<String>> {
        self.table.store(Arc::new(Table::new(platforms)?));
        Ok(())
    }

    /// Names the platform a request comes from. Errors: 401, 429 after too many wrong passwords, 503 when too many checks wait.
    pub(super) async fn authenticate(
        &self,
        authorization: Option<&HeaderValue>,
        limit: &FailureLimit,
        address: Option<IpAddr>,
    ) -> Result<Arc<str>, Refusal> {
        let Some((user, password)) = authorization.and_then(basic) else {
            return Err(Refusal::unauthorized());
        };
        let memo = self.memo(&user, &password);
        let table = self.table.load_full();
        if let Some((platform, true)) = table.recall(&memo, Instant::now()) {
            return Ok(platform);
        }
        // Requests with the same password are checked one after the other: after the first right one the rest know it,
        // so that a platform with many connections does not look like somebody who guesses.
        let _turn = Turn::wait(&self.turns, memo).await;
        let known = table.recall(&memo, Instant::now());
        if let Some((platform, true)) = known {
            return Ok(platform);
        }
        // Who was right before is not slowed down by somebody else guessing from the same address.
        let counted = known.is_none();
        if counted {
            limit.take(address, Instant::now()).map_err(|seconds| {
                Refusal::too_many(
                    "Too many failed log-ins came from this address. Wait before trying again.",
                    seconds,
                )
            })?;
        }
        let outcome = self.check(&table, memo, &user, password).await;
        if counted && !matches!(&outcome, Ok(None)) {
            limit.give_back(address);
        }
        outcome?.ok_or_else(|| {
            metrics::counter!("chandler_http_failed_logins_total").increment(1);
            Refusal::unauthorized()
        })
    }

    fn memo(&self, user: &str, password: &[u8]) -> Memo {
        let mut context = hmac::Context::with_key(&self.memo_key);
        context.update(user.as_bytes());
        context.update(&[0]);
        context.update(password);
        let mut memo = Memo::default();
        memo.copy_from_slice(context.sign().as_ref());
        memo
    }

    /// Checks a password against its hash, at most [`CHECKS`] at once; `None` means wrong.
    async fn check(
        &self,
        table: &Arc<Table>,
        memo: Memo,
        user: &str,
        password: Zeroizing<Vec<u8>>,
    ) -> Result<Option<Arc<str>>, Refusal> {
        let _place = Place::take(&self.queued)
            .ok_or_else(|| Error::unavailable("Too many log-ins are being checked. Try again."))?;
        let permit = Arc::clone(&self.checks)
            .acquire_owned()
            .await
            .map_err(|e| Error::internal(e.to_string()))?;
        let entry = table.users.get(user);
        let hash = Arc::clone(entry.map_or(&self.decoy, |(_, hash)| hash));
        let matches = web::block(move || {
            let _permit = permit;
            is_password_of(&password, &hash)
        })
        .await
        .map_err(|e| Error::internal(e.to_string()))?;
        // The decoy's password can be guessed, so a match alone proves nothing.
        Ok(entry.filter(|_| matches).map(|(platform, _)| {
            table.remember(memo, platform, Instant::now());
            Arc::clone(platform)
        }))
    }
}

impl fmt::Debug for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platforms").finish_non_exhaustive()
    }
}

/// A place in the queue of checks, given up when dropped, also when the client went away.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(queued: &'a AtomicUsize) -> Option<Self> {
        let place = Self(queued);
        (queued.fetch_add(1, Ordering::Relaxed) < QUEUED_CHECKS).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passwords being checked, each with the lock its requests wait at.
type Turns = Mutex<HashMap<Memo, Arc<tokio::sync::Mutex<()>>>>;

/// One request's turn among those with the same password; given up when dropped, waiting or not.
struct Turn<'a> {
    of: &'a Turns,
    memo: Memo,
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl<'a> Turn<'a> {
    async fn wait(of: &'a Turns, memo: Memo) -> Self {
        let lock = Arc::clone(
            of.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(memo)
                .or_default(),
        );
        let mut turn = Self {
            of,
            memo,
            lock: Some(Arc::clone(&lock)),
            held: None,
        };
        turn.held = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        self.held = None;
        self.lock = None;
        // The last to go takes the entry along, so there are never more than requests.
        if turns
            .get(&self.memo)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            turns.remove(&self.memo);
        }
    }
}

/// User name and password of a basic `Authorization`; `None` when it is anything else.
fn basic(authorization: &HeaderValue) -> Option<(String, Zeroizing<Vec<u8>>)> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(headers::base64(encoded.trim())?);
    let colon = decoded.iter().position(|b| *b == b':')?;
    // A NUL in the name could shift the boundary between name and password in the memory's key.
    let user = std::str::from_utf8(&decoded[..colon])
        .ok()
        .filter(|user| !user.contains('\0'))?
        .to_owned();
    Some((user, Zeroizing::new(decoded[colon + 1..].to_vec())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use actix_web::http::StatusCode;
    use base64::prelude::{BASE64_STANDARD, Engine as _};

    fn platform(name: &str, credentials: &[(&str, &str)]) -> Platform {
        Platform {
            name: name.into(),
            credentials: credentials
                .iter()
                .map(|(user, password)| Credential {
                    username: (*user).into(),
                    hash: hash_password(password).unwrap(),
                })
                .collect(),
        }
    }

    fn header(user: &str, password: &str) -> HeaderValue {
        let text = BASE64_STANDARD.encode(format!("{user}:{password}"));
        HeaderValue::from_str(&format!("Basic {text}")).unwrap()
    }

    async fn ask(
        platforms: &Platforms,
        limit: &FailureLimit,
        value: Option<&HeaderValue>,
    ) -> Result<String, StatusCode> {
        platforms
            .authenticate(value, limit, None)
            .await
            .map(|name| name.to_string())
            .map_err(|refusal| refusal.status())
    }

    #[test]
    fn basic_is_read_leniently_and_nothing_else_is() {
        let read = |text: &str| basic(&HeaderValue::from_str(text).unwrap()).map(|(u, p)| (u, p.to_vec()));
        assert_eq!(read("Basic dTpw"), Some(("u".into(), b"p".to_vec())));
        assert_eq!(read("bASIC  dTpw"), Some(("u".into(), b"p".to_vec())));
        assert_eq!(
            read(&format!("Basic {}", BASE64_STANDARD.encode("u:p:q"))),
            Some(("u".into(), b"p:q".to_vec()))
        );
        assert_eq!(read("Basic Og"), Some((String::new(), Vec::new())), "unpadded");
        for bad in [
            "",
            "Basic",
            "Basic ",
            "Basic !!!",
            "Basic dXA=",
            "Bearer dTpw",
            "dTpw",
            "Basic /zpw",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[actix_web::test]
    async fn a01_both_slots_work_and_everything_else_is_401() {
        let platforms = Platforms::new(vec![
            platform("cf", &[("cf", "one"), ("cf-next", "two")]),
            platform("k8s", &[("k8s", "three")]),
        ])
        .unwrap();
        let off = FailureLimit::new(0);
        for (user, password, name) in [
            ("cf", "one", "cf"),
            ("cf-next", "two", "cf"),
            ("k8s", "three", "k8s"),
        ] {
            for _ in 0..2 {
                assert_eq!(
                    ask(&platforms, &off, Some(&header(user, password))).await,
                    Ok(name.to_owned())
                );
            }
        }
        let refused = Err(StatusCode::UNAUTHORIZED);
        for (user, password) in [
            ("cf", "two"),
            ("cf", ""),
            ("", ""),
            ("nobody", "one"),
            ("nobody", ""),
            ("CF", "one"),
            ("cf\0one", ""),
        ] {
            assert_eq!(
                ask(&platforms, &off, Some(&header(user, password))).await,
                refused,
                "{user}"
            );
        }
        assert_eq!(ask(&platforms, &off, None).await, refused);
    }

    #[actix_web::test]
    async fn replacing_platforms_forgets_their_passwords_at_once() {
        let platforms = Platforms::new(vec![platform("cf", &[("cf", "old")])]).unwrap();
        let off = FailureLimit::new(0);
        let (old, new) = (header("cf", "old"), header("cf", "new"));
        assert!(ask(&platforms, &off, Some(&old)).await.is_ok());
        platforms.replace(vec![platform("cf", &[("cf", "new")])]).unwrap();
        assert_eq!(
            ask(&platforms, &off, Some(&old)).await,
            Err(StatusCode::UNAUTHORIZED)
        );
        assert!(ask(&platforms, &off, Some(&new)).await.is_ok());
        assert!(platforms.replace(vec![platform("", &[])]).is_err());
        assert!(
            ask(&platforms, &off, Some(&new)).await.is_ok(),
            "a refused reload changes nothing"
        );
    }

    #[actix_web::test]
    async fn guessing_is_slowed_down_but_not_who_was_right_before() {
        let platforms = Platforms::new(vec![platform("cf", &[("cf", "right"), ("cf2", "right")])]).unwrap();
        let limit = FailureLimit::new(2);
        assert!(
            ask(&platforms, &limit, Some(&header("cf", "right")))
                .await
                .is_ok()
        );
        for _ in 0..2 {
            assert_eq!(
                ask(&platforms, &limit, Some(&header("cf", "wrong"))).await,
                Err(StatusCode::UNAUTHORIZED)
            );
        }
        assert_eq!(
            ask(&platforms, &limit, Some(&header("cf", "wrong"))).await,
            Err(StatusCode::TOO_MANY_REQUESTS)
        );
        assert_eq!(
            ask(&platforms, &limit, Some(&header("cf2", "right"))).await,
            Err(StatusCode::TOO_MANY_REQUESTS)
        );
        assert!(
            ask(&platforms, &limit, Some(&header("cf", "right")))
                .await
                .is_ok()
        );
        // The memory of a password that was right outlives its use as an answer.
        let memo = platforms.memo("cf", b"right");
        let long_ago = Instant::now().checked_sub(REMEMBERED).unwrap();
        platforms.table.load().remember(memo, &"cf".into(), long_ago);
        assert!(
            ask(&platforms, &limit, Some(&header("cf", "right")))
                .await
                .is_ok()
        );
        assert_eq!(
            platforms
                .table
                .load()
                .recall(&memo, Instant::now())
                .map(|(_, fresh)| fresh),
            Some(true)
        );
    }

    #[actix_web::test]
    async fn many_first_requests_at_once_are_checked_few_times() {
        let platforms = Platforms::new(vec![platform("cf", &[("cf", "right")])]).unwrap();
        let limit = FailureLimit::new(2);
        let (right, wrong) = (header("cf", "right"), header("cf", "wrong"));
        let all = futures::future::join_all((0..64).map(|_| ask(&platforms, &limit, Some(&right)))).await;
        assert!(
            all.iter().all(Result::is_ok),
            "none of them looks like somebody who guesses"
        );
        let all = futures::future::join_all((0..64).map(|_| ask(&platforms, &limit, Some(&wrong)))).await;
        let refused = |status| all.iter().filter(|answer| **answer == Err(status)).count();
        assert_eq!(
            (
                refused(StatusCode::UNAUTHORIZED),
                refused(StatusCode::TOO_MANY_REQUESTS)
            ),
            (2, 62)
        );
        assert_eq!(platforms.queued.load(Ordering::Relaxed), 0);
        assert!(platforms.turns.lock().unwrap().is_empty());
        let wrong: Vec<_> = (0..=QUEUED_CHECKS)
            .map(|_| Place::take(&platforms.queued))
            .collect();
        assert!(wrong.last().unwrap().is_none(), "the queue is bounded");
        drop(wrong);
        assert_eq!(platforms.queued.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn every_problem_of_the_platforms_is_told_at_once() {
        let cheap = Credential {
            username: "a".into(),
            hash: "$2b$12$abcdefghijklmnopqrstuv".into(),
        };
        let problems = Platforms::new(vec![
            Platform {
                name: "a b".into(),
                credentials: vec![],
            },
            Platform {
                name: "x".into(),
                credentials: vec![cheap.clone()],
            },
            Platform {
                name: "x".into(),
                credentials: platform("y", &[("u:v", "p")]).credentials,
            },
            platform("p1", &[("same", "p")]),
            platform("p2", &[("same", "q")]),
        ])
        .unwrap_err();
        let text = problems.join("\n");
        for part in [
            "\"a b\"",
            "needs one credential",
            "not argon2id",
            "the name is used twice",
            "holds a colon",
            "\"same\" is used twice",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!format!("{cheap:?}").contains("2b"), "hashes stay out of Debug");
    }
}
