//! Users on servers with an HTTP interface, by requests that stand in `binding.yaml`: a new kind of server needs no Rust.
//!
//! A service gives lists of requests for preparing, issuing, verifying, revoking and listing; this sends them, as the
//! administrator or as the user, keeps what they capture for the requests after them, and begins a list again when the
//! server says that somebody else was faster. What must stay true:
//! - a value gets into a request only encoded for its place (`step`), so neither a parameter nor an answer can change
//!   which request it is;
//! - each list is run again when the call is: the requests must bear that;
//! - a refusal tells the log which step it was, and quotes nothing that was secret.
//!
//! Servers that make up users' names or keys themselves cannot be served: both are chosen before the server hears of
//! them. An answer is read whole, so a list in pages shows its first page only.
//!
//! Settings: see `settings`, and docs/adding-a-service.md.

mod settings;
mod step;

use super::common::{administrator, is_user, own_handle, within};
use super::holes::{self, Filling};
use super::web::{Answer, Base, Request, Web};
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use data_encoding::BASE64;
use serde_json::{Map, Value};
use settings::{List, Login, Settings};
use std::time::Duration;
use step::{Step, Who};

/// Bounds a call of several requests.
const CALL_TIME: Duration = Duration::from_secs(45);

/// How often a list is begun when the server says that somebody else was faster.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);

/// Most of an answer that goes into the log, in characters.
const MAX_QUOTE: usize = 200;

/// The mechanism `http`.
pub struct Http(Web);

impl Http {
    /// A mechanism with connections of its own.
    pub fn new() -> Self {
        Self(Web::new())
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

/// How a list ended.
enum End {
    Done,
    /// To be begun again.
    Again,
}

/// One server and whoever talks to it.
struct Work<'a> {
    web: &'a Web,
    base: Base,
    login: Login,
    admin: &'a Secret,
    /// None where no user is known.
    user: Option<&'a Secret>,
    role: &'a str,
}

impl<'a> Work<'a> {
    fn new(
        web: &'a Web,
        target: &'a Target,
        settings: &Settings,
        of: Option<(&'a Grant, &'a NewUser)>,
    ) -> PortResult<Self> {
        let endpoint = match &settings.endpoint {
            None => &target.endpoint,
            Some(name) => target
                .endpoints
                .iter()
                .find(|endpoint| endpoint.name == *name)
                .ok_or_else(|| {
                    PortError::invalid(
                        "The instance lacks an endpoint that its bindings need; tell its operator.",
                    )
                    .with_detail(format!(
                        "settings: endpoint: the instance has no endpoint {name:?}"
                    ))
                })?,
        };
        Ok(Self {
            web,
            base: Base::at(endpoint, settings.tls),
            login: settings.login,
            admin: &target.admin,
            user: of.map(|(_, user)| &user.secret),
            role: of.map_or("", |(grant, _)| grant.role.as_str()),
        })
    }

    /// Goes through a list, and gives the names that its steps found.
    async fn go_through(&self, list: &List, filling: &mut Filling) -> PortResult<Vec<String>> {
        for round in 0..ROUNDS {
            if round > 0 {
                tokio::time::sleep(PAUSE * round).await;
            }
            filling.forget(&list.captured);
            let mut names = Vec::new();
            if let End::Done = self.once(list, filling, &mut names).await? {
                return Ok(names);
            }
        }
        Err(PortError::new(
            PortErrorKind::Conflict,
            "Somebody else changes the same thing at this moment.",
        ))
    }

    async fn once(&self, list: &List, filling: &mut Filling, names: &mut Vec<String>) -> PortResult<End> {
        for step in &list.steps {
            let other_role = !step.roles.is_empty() && !step.roles.iter().any(|role| role == self.role);
            let lacks = step
                .only_if
                .as_ref()
                .is_some_and(|name| filling.get(name).is_none());
            let has = step
                .unless
                .as_ref()
                .is_some_and(|name| filling.get(name).is_some());
            if other_role || lacks || has {
                continue;
            }
            let answer = self.send(step, filling).await?;
            let status = answer.status;
            if step.done_on.contains(&status) {
                return Ok(End::Done);
            }
            if step.again_on.contains(&status) {
                return Ok(End::Again);
            }
            let ok = if step.ok.is_empty() {
                answer.is_success()
            } else {
                step.ok.contains(&status)
            };
            if !ok {
                let captured = list.captured.iter().map(String::as_str);
                return Err(refused(step, &answer, |text| {
                    filling.is_quoted_in(text, captured.clone())
                }));
            }
            read(step, &answer, filling, names)?;
        }
        Ok(End::Done)
    }

    async fn send(&self, step: &Step, filling: &Filling) -> PortResult<Answer> {
        let mut headers = vec![("accept".into(), "application/json".to_owned())];
        let login = match step.who {
            Who::Admin => Some(self.admin),
            Who::User => self.user,
            Who::Nobody => None,
        };
        if let Some(login) = login {
            let (username, password) = (login.text("username"), login.text("password"));
            match self.login {
                Login::Basic => {
                    let basic = BASE64.encode(format!("{username}:{password}").as_bytes());
                    headers.push(("authorization".into(), format!("Basic {basic}")));
                }
                Login::Bearer => headers.push(("authorization".into(), format!("Bearer {password}"))),
                Login::None => {}
            }
        }
        for (name, value) in step.headers(filling)? {
            headers.retain(|(known, _): &(std::borrow::Cow<'static, str>, String)| *known != name);
            headers.push((name.into(), value));
        }
        let body = step.body(filling)?;
        if body.is_some() {
            headers.push(("content-type".into(), "application/json".to_owned()));
        }
        let request = Request {
            method: step.method,
            path_and_query: step.path(filling)?,
            headers,
            body: body
                .as_ref()
                .map(Value::to_string)
                .unwrap_or_default()
                .into_bytes(),
        };
        if let Some(Value::Object(body)) = body {
            drop(Secret::new(body));
        }
        self.web.send(&self.base, request).await.map_err(|error| {
            let detail = format!("{}: {}", step.place, error.detail);
            error.with_detail(detail)
        })
    }
}

/// Takes out of an answer what a step wants of it.
fn read(step: &Step, answer: &Answer, filling: &mut Filling, names: &mut Vec<String>) -> PortResult<()> {
    if step.capture.is_empty() && step.expect.is_empty() && step.users.is_none() {
        return Ok(());
    }
    // Not every status that is fine has a body.
    let found: Value = if answer.body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&answer.body).map_err(|_| {
            PortError::invalid("The server's answer is not understood; tell its operator.")
                .with_detail(format!("{}: the answer is not JSON", step.place))
        })?
    };
    for (name, pointer) in &step.capture {
        if let Some(value) = pointer.one(&found) {
            filling.set(name, value.clone());
        }
    }
    for (pointer, wanted) in &step.expect {
        if wanted.fill(filling)?.as_ref() != pointer.one(&found) {
            return Err(PortError::new(
                PortErrorKind::Conflict,
                "The server does not show yet what this binding was given.",
            )
            .with_detail(format!("{}: the answer is not what `expect` says", step.place)));
        }
    }
    if let Some(pointer) = &step.users {
        let all = pointer.all(&found);
        names.extend(
            all.iter()
                .filter_map(|name| name.strip_prefix(&step.prefix))
                .map(str::to_owned),
        );
    }
    Ok(())
}

/// Sorts a refusal. The server's words go to the log, unless they quote something secret.
fn refused(step: &Step, answer: &Answer, quotes_secret: impl Fn(&str) -> bool) -> PortError {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    let (kind, message) = match answer.status {
        401 if step.who == Who::User => (Denied, "The server refuses the log-in of this binding."),
        401 => (Denied, "The server refuses the broker's log-in."),
        403 => (Denied, "The server does not allow this."),
        404 | 410 => (Gone, "What this binding needs does not exist on the server."),
        409 | 412 => (Conflict, "Somebody else changes the same thing at this moment."),
        408 | 425 | 429 | 500.. => (Transient, "The server cannot do this at the moment."),
        _ => (
            Invalid,
            "The server does not understand what it was asked; tell its operator.",
        ),
    };
    let text = String::from_utf8_lossy(&answer.body);
    let words: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTE)
        .collect();
    let words = if quotes_secret(&text) {
        "(the server quotes a secret)"
    } else {
        &words
    };
    let (place, method, status) = (&step.place, step.method, answer.status);
    PortError::new(kind, message).with_detail(format!("{place}: {method} answered {status}: {words}"))
}

fn filling(target: &Target, settings: &Settings, grant: &Grant, user: &NewUser) -> PortResult<Filling> {
    let mut filling = Filling::grant(target, &settings.values, grant, user);
    let expires = grant.expires_at.map(|at| {
        holes::rfc3339(at)
            .ok_or_else(|| PortError::invalid("The time this binding expires at is out of range."))
    });
    filling.set(
        "expires_at",
        expires.transpose()?.map_or(Value::Null, Value::String),
    );
    Ok(with_admin(filling, target))
}

fn with_admin(mut filling: Filling, target: &Target) -> Filling {
    filling.set("admin_username", target.admin.text("username").into());
    filling.set("admin_password", target.admin.text("password").into());
    filling
}

#[async_trait]
impl CredentialMechanism for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        Settings::of(target)?;
        holes::new_user(grant)
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(CALL_TIME, async {
            let settings = Settings::of(target)?;
            let mut filling = with_admin(Filling::instance(target, &settings.values), target);
            let work = Work::new(&self.0, target, &settings, None)?;
            work.go_through(&settings.prepare, &mut filling).await.map(drop)
        })
        .await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            holes::own_user(grant, user)?;
            let settings = Settings::of(target)?;
            let mut filling = filling(target, &settings, grant, user)?;
            let work = Work::new(&self.0, target, &settings, Some((grant, user)))?;
            work.go_through(&settings.issue, &mut filling).await.map(drop)
        })
        .await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            holes::own_user(grant, user)?;
            let settings = Settings::of(target)?;
            let mut filling = filling(target, &settings, grant, user)?;
            let work = Work::new(&self.0, target, &settings, Some((grant, user)))?;
            work.go_through(&settings.verify, &mut filling).await.map(drop)
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(CALL_TIME, async {
            let handle = own_handle(handle)?;
            let settings = Settings::of(target)?;
            let mut filling = with_admin(Filling::handle(target, &settings.values, handle), target);
            let work = Work::new(&self.0, target, &settings, None)?;
            work.go_through(&settings.revoke, &mut filling).await.map(drop)
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(CALL_TIME, async {
            let settings = Settings::of(target)?;
            let mut filling = with_admin(Filling::instance(target, &settings.values), target);
            let work = Work::new(&self.0, target, &settings, None)?;
            let mut names = work.go_through(&settings.list, &mut filling).await?;
            names.retain(|name| is_user(name));
            Ok(names)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
