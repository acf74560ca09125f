//! The broker's token of the vault, and every request that needs one.
//!
//! What must stay true: at two thirds of its life the token is renewed, and exchanged by a log-in when that does not make
//! it live longer; while one task does so the others go on with what still works. A request that is refused (403) is
//! repeated once, with a new token, if its token is dead; if the token lives, the refusal is meant. However many requests
//! find the token gone, one log-in is made, and its failure is everybody's.

use super::fault;
use super::http::{Answer, Http, Request};
use super::login::{Entrance, Granted, granted};
use crate::ports::{PortError, PortResult};
use secrecy::{ExposeSecret, SecretString};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Pause after a renewal that failed while the token still lives.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

/// A token with its times.
pub(super) struct Token {
    secret: SecretString,
    renewable: bool,
    life: Option<Duration>,
    /// When it should be renewed, and when it ends; none for one without an end.
    times: Option<(Instant, Instant)>,
}

/// What is to be done with a token.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    Fresh,
    /// Works, and should be renewed.
    Old,
    Over,
}

impl Token {
    fn new(granted: Granted, now: Instant) -> Self {
        Self {
            secret: granted.secret,
            renewable: granted.renewable,
            life: granted.life,
            times: granted.life.map(|life| (now + life * 2 / 3, now + life)),
        }
    }

    fn age(&self, now: Instant) -> Age {
        match self.times {
            Some((_, end)) if now >= end => Age::Over,
            Some((renew, _)) if now >= renew => Age::Old,
            _ => Age::Fresh,
        }
    }

    /// The same token, looked after again a little later.
    fn postponed(&self, now: Instant) -> Self {
        Self {
            secret: self.secret.clone(),
            renewable: self.renewable,
            life: self.life,
            times: self.times.map(|(_, end)| (now + RENEW_AGAIN, end)),
        }
    }
}

/// Requests to one vault as one user of it.
pub(super) struct Session {
    pub http: Http,
    entrance: Entrance,
    held: RwLock<Option<Arc<Token>>>,
    /// Whoever logs in or renews.
    gate: tokio::sync::Mutex<()>,
    /// The last log-in that failed, and when: those who waited for it meanwhile fail with it.
    failed: Mutex<Option<(Instant, PortError)>>,
}

impl Session {
    pub fn new(http: Http, entrance: Entrance) -> Self {
        Self {
            http,
            entrance,
            held: RwLock::default(),
            gate: tokio::sync::Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Whether logging in uses up what only one process can use.
    pub fn is_single_use(&self) -> bool {
        self.entrance.is_single_use()
    }

    /// Sends a request with the broker's token. What comes back is success, 400 or 404; all else is an error.
    pub async fn call(&self, request: Request<'_>) -> PortResult<Answer> {
        let token = self.token().await?;
        let answer = self.http.send(request.with(&token.secret)).await?;
        if answer.status != 403 {
            return self.settle(&request, answer).await;
        }
        if self.lives(&token).await? {
            return Err(fault::refusal(&self.http, &request, &answer).await);
        }
        let again = self.instead_of(&token).await?;
        if again.secret.expose_secret() == token.secret.expose_secret() {
            return Err(fault::refusal(&self.http, &request, &answer).await);
        }
        let answer = self.http.send(request.with(&again.secret)).await?;
        self.settle(&request, answer).await
    }

    /// A token that works, as far as is known; also what keeps one alive that nobody uses.
    pub async fn token(&self) -> PortResult<Arc<Token>> {
        if let Some(token) = self.held() {
            match token.age(Instant::now()) {
                Age::Fresh => return Ok(token),
                Age::Old => {
                    let Ok(_gate) = self.gate.try_lock() else {
                        return Ok(token);
                    };
                    return self.longer().await;
                }
                Age::Over => {}
            }
        }
        let asked = Instant::now();
        let _gate = self.gate.lock().await;
        match self.held() {
            Some(token) if token.age(Instant::now()) != Age::Over => Ok(token),
            _ => self.log_in(asked).await,
        }
    }

    async fn settle(&self, request: &Request<'_>, answer: Answer) -> PortResult<Answer> {
        let refused = matches!(answer.status, 400 | 404) && !fault::is_preparing(&answer);
        if answer.is_success() || refused {
            Ok(answer)
        } else {
            Err(fault::refusal(&self.http, request, &answer).await)
        }
    }

    /// Whether the vault still knows a token: then its 403 is about what was asked.
    async fn lives(&self, token: &Token) -> PortResult<bool> {
        let request = Request::get("auth/token/lookup-self").with(&token.secret);
        let answer = self.http.send(request).await?;
        match answer.status {
            200..=299 => Ok(true),
            400 | 403 | 404 => Ok(false),
            _ => Err(fault::refusal(&self.http, &request, &answer).await),
        }
    }

    /// Another token than one that is dead.
    async fn instead_of(&self, dead: &Arc<Token>) -> PortResult<Arc<Token>> {
        let asked = Instant::now();
        let _gate = self.gate.lock().await;
        match self.held() {
            Some(token) if token.secret.expose_secret() != dead.secret.expose_secret() => Ok(token),
            _ => {
                debug!("the vault does not know the broker's token any more; logging in again");
                self.log_in(asked).await
            }
        }
    }

    /// Renews the token, or exchanges it; behind the gate. While neither works the old one is used to its end.
    async fn longer(&self) -> PortResult<Arc<Token>> {
        let Some(old) = self.held() else {
            return self.log_in(Instant::now()).await;
        };
        if old.age(Instant::now()) == Age::Fresh {
            return Ok(old);
        }
        let renewed = match self.renew(&old).await {
            Ok(Some(granted)) => Ok(self.hold(granted)),
            Ok(None) => self.log_in(Instant::now()).await,
            Err(error) => Err(error),
        };
        match renewed {
            Ok(token) => Ok(token),
            Err(error) if old.age(Instant::now()) == Age::Over => Err(error),
            Err(error) => {
                warn!(detail = %error.detail, "the broker's token of the vault could not be renewed yet");
                self.put(old.postponed(Instant::now()));
                Ok(old)
            }
        }
    }

    /// A longer life for `old`; none when it cannot be had, as at the end of a token's greatest life.
    async fn renew(&self, old: &Token) -> PortResult<Option<Granted>> {
        let Some(life) = old.life.filter(|_| old.renewable) else {
            return Ok(None);
        };
        let request = Request::post("auth/token/renew-self", b"{}").with(&old.secret);
        let answer = self.http.send(request).await?;
        match answer.status {
            200..=299 => Ok(granted(&answer).filter(|granted| granted.life.is_none_or(|new| new > life / 2))),
            400 | 403 | 404 => Ok(None),
            _ => Err(fault::refusal(&self.http, &request, &answer).await),
        }
    }

    /// Logs in; behind the gate. Whoever asked before the last attempt failed has its answer.
    async fn log_in(&self, asked: Instant) -> PortResult<Arc<Token>> {
        if let Some((at, error)) = self.failed().as_ref()
            && *at >= asked
        {
            return Err(error.clone());
        }
        match self.entrance.log_in(&self.http).await {
            Ok(granted) => Ok(self.hold(granted)),
            Err(error) => {
                *self.failed() = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn hold(&self, granted: Granted) -> Arc<Token> {
        self.put(Token::new(granted, Instant::now()))
    }

    fn put(&self, token: Token) -> Arc<Token> {
        let token = Arc::new(token);
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        token
    }

    fn held(&self) -> Option<Arc<Token>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<(Instant, PortError)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
