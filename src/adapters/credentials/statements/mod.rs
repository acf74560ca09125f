//! Users on SQL servers by statements that stand in `binding.yaml`: a new kind of server needs no Rust.
//!
//! A service gives lists of statements for preparing, issuing, verifying and revoking, and a query that lists users; this
//! runs them, as the administrator or, to verify, as the user. What must stay true:
//! - a value reaches a statement only quoted, by a hole (`text`), so neither a parameter nor a name can become SQL;
//! - each entry is run again when the call is: the statements must bear that, and `unless`, `ignore` and `until` help;
//! - two calls for the same user, or two preparations, take turns;
//! - a refusal tells the log which entry it was, and never quotes a password.
//!
//! For PostgreSQL `{verifier:literal}` keeps the clear password out of the server's log; MySQL offers nothing like it.
//!
//! Settings: see `settings`, and docs/adding-a-service.md.

mod session;
mod settings;
mod text;

use super::common::{administrator, is_user, own_handle, own_name, within};
use super::holes::{self, Filling};
use super::sql_text::Verifier;
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use async_trait::async_trait;
use serde_json::{Map, Value};
use session::{Place, Session};
use settings::{Entry, Settings};
use std::time::Duration;
use text::Dialect;

const CALL_TIME: Duration = Duration::from_mins(1);

/// How often an `until` is asked, and how long it waits between.
const UNTIL_TRIES: u32 = 100;
const UNTIL_PAUSE: Duration = Duration::from_millis(50);

/// The mechanism `statements`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Statements;

/// Somebody at work on one instance: the administrator, or a user who proves that it gets in.
struct Work<'a> {
    target: &'a Target,
    settings: &'a Settings,
    login: &'a Secret,
    server: Session,
    /// In the applications' database; opened when first needed.
    inside: Option<Session>,
}

impl<'a> Work<'a> {
    /// Logs in as the administrator and waits its turn behind other workers that act on the same `thing`.
    async fn administer(target: &'a Target, settings: &'a Settings, thing: &str) -> PortResult<Self> {
        let place = Place {
            dialect: settings.dialect,
            target,
            login: &target.admin,
            tls: &settings.tls,
            database: settings.maintenance.as_deref(),
        };
        let mut server = Session::open(&place, 0).await?;
        server.lock(thing).await?;
        Ok(Self {
            target,
            settings,
            login: &target.admin,
            server,
            inside: None,
        })
    }

    /// Logs in where applications do, as one of them.
    async fn apply(target: &'a Target, settings: &'a Settings, login: &'a Secret) -> PortResult<Self> {
        let place = Place {
            dialect: settings.dialect,
            target,
            login,
            tls: &settings.tls,
            database: Some(&settings.database),
        };
        Ok(Self {
            target,
            settings,
            login,
            server: Session::open(&place, 0).await?,
            inside: None,
        })
    }

    async fn session(&mut self, inside: bool) -> PortResult<&mut Session> {
        if !inside {
            return Ok(&mut self.server);
        }
        let open = match self.inside.take() {
            Some(open) => open,
            None => {
                let place = Place {
                    dialect: self.settings.dialect,
                    target: self.target,
                    login: self.login,
                    tls: &self.settings.tls,
                    database: Some(&self.settings.database),
                };
                Session::open(&place, self.server.version()).await?
            }
        };
        Ok(self.inside.insert(open))
    }

    /// Goes through a list.
    async fn go_through(&mut self, list: &[Entry], role: &str, filling: &mut Filling) -> PortResult<()> {
        for entry in list {
            if entry.roles.is_empty() || entry.roles.iter().any(|known| known == role) {
                self.entry(entry, filling).await.map_err(|error| {
                    let quotes = filling.is_quoted_in(&error.detail, std::iter::empty());
                    let why = if quotes {
                        "(the server quotes a secret)"
                    } else {
                        &error.detail
                    };
                    let detail = format!("{}: {why}", entry.path);
                    error.with_detail(detail)
                })?;
            }
        }
        Ok(())
    }

    async fn entry(&mut self, entry: &Entry, filling: &mut Filling) -> PortResult<()> {
        let dialect = self.settings.dialect;
        if let Some(unless) = &entry.unless {
            let query = unless.fill(dialect, filling)?;
            if self.session(entry.inside).await?.any(&query).await? {
                return Ok(());
            }
        }
        for round in 0..UNTIL_TRIES {
            if round > 0 {
                tokio::time::sleep(UNTIL_PAUSE).await;
            }
            self.once(entry, filling).await?;
            let Some(until) = &entry.until else {
                return Ok(());
            };
            let query = until.fill(dialect, filling)?;
            if self.session(entry.inside).await?.any(&query).await? {
                return Ok(());
            }
        }
        Err(PortError::transient(
            "What was asked of the database server does not come about yet; it is tried again.",
        ))
    }

    async fn once(&mut self, entry: &Entry, filling: &mut Filling) -> PortResult<()> {
        let dialect = self.settings.dialect;
        let Some(sql) = &entry.sql else {
            return Ok(());
        };
        let Some(for_each) = &entry.for_each else {
            let statement = sql.fill(dialect, filling)?;
            return self
                .session(entry.inside)
                .await?
                .run(&statement, &entry.ignore)
                .await;
        };
        let query = for_each.fill(dialect, filling)?;
        let found = self.session(entry.inside).await?.column(&query).await?;
        for each in found {
            filling.set("each", Value::String(each));
            let statement = sql.fill(dialect, filling)?;
            self.session(entry.inside)
                .await?
                .run(&statement, &entry.ignore)
                .await?;
        }
        Ok(())
    }

    async fn close(self) {
        self.server.close().await;
        if let Some(inside) = self.inside {
            inside.close().await;
        }
    }
}

/// What is known of a binding.
fn filling(target: &Target, settings: &Settings, grant: &Grant, user: &NewUser) -> PortResult<Filling> {
    let mut filling = Filling::grant(target, &settings.values, grant, user);
    let expires = grant.expires_at.map(|at| {
        holes::rfc3339(at)
            .ok_or_else(|| PortError::invalid("The time this binding expires at is out of range."))
    });
    let expires = expires.transpose()?;
    if settings.dialect == Dialect::Postgres {
        let verifier = Verifier::new(user.secret.text("password"))?.to_string();
        filling.set("verifier", verifier.trim_matches('\'').into());
        filling.set(
            "expires_at",
            expires.unwrap_or_else(|| "infinity".to_owned()).into(),
        );
    } else {
        filling.set("expires_at", expires.map_or(Value::Null, Value::String));
    }
    Ok(filling)
}

#[async_trait]
impl CredentialMechanism for Statements {
    fn name(&self) -> &'static str {
        "statements"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        administrator()
    }

    fn generate_user(&self, target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        let settings = Settings::of(target)?;
        let user = holes::new_user(grant)?;
        // A parameter that cannot be put into a statement is told before the server hears of the binding.
        let filling = filling(target, &settings, grant, &user)?;
        for entry in settings.issue.iter().chain(&settings.verify) {
            let own = entry.roles.is_empty() || entry.roles.contains(&grant.role);
            let plain = entry.sql.iter().filter(|_| entry.for_each.is_none());
            for sql in plain
                .chain(&entry.unless)
                .chain(&entry.for_each)
                .chain(&entry.until)
                .filter(|_| own)
            {
                sql.fill(settings.dialect, &filling)?;
            }
        }
        Ok(user)
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(CALL_TIME, async {
            let settings = Settings::of(target)?;
            let mut filling = Filling::instance(target, &settings.values);
            let mut admin = Work::administer(target, &settings, "prepare").await?;
            admin.go_through(&settings.prepare, "", &mut filling).await?;
            admin.close().await;
            Ok(())
        })
        .await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            holes::own_user(grant, user)?;
            let settings = Settings::of(target)?;
            let mut filling = filling(target, &settings, grant, user)?;
            let mut admin = Work::administer(target, &settings, &user.handle).await?;
            admin
                .go_through(&settings.issue, &grant.role, &mut filling)
                .await?;
            admin.close().await;
            Ok(())
        })
        .await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            holes::own_user(grant, user)?;
            let settings = Settings::of(target)?;
            let mut filling = filling(target, &settings, grant, user)?;
            let mut application = Work::apply(target, &settings, &user.secret).await?;
            application
                .go_through(&settings.verify, &grant.role, &mut filling)
                .await?;
            application.close().await;
            Ok(())
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(CALL_TIME, async {
            let handle = own_handle(handle)?;
            let settings = Settings::of(target)?;
            let mut filling = Filling::handle(target, &settings.values, handle);
            let mut admin = Work::administer(target, &settings, handle).await?;
            admin.go_through(&settings.revoke, "", &mut filling).await?;
            admin.close().await;
            Ok(())
        })
        .await
    }

    fn rotates_admin(&self, settings: &Map<String, Value>) -> bool {
        Settings::parse(settings).is_ok_and(|settings| !settings.rotate_admin.is_empty())
    }

    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        within(CALL_TIME, async {
            let name = own_name(target, next)?;
            let settings = Settings::of(target)?;
            if settings.rotate_admin.is_empty() {
                return Err(PortError::invalid(
                    "This service does not say how its administrator's credentials are exchanged; nothing was changed.",
                ));
            }
            let mut filling = Filling::handle(target, &settings.values, name);
            filling.set("password", next.text("password").into());
            if settings.dialect == Dialect::Postgres {
                let verifier = Verifier::new(next.text("password"))?.to_string();
                filling.set("verifier", verifier.trim_matches('\'').into());
            }
            let after = target.with_admin(next);
            // After an earlier try that got so far, the next ones let in; the list goes to its end all the same.
            let mut admin = match Work::administer(target, &settings, "rotate_admin").await {
                Err(error) if error.kind == PortErrorKind::Denied => {
                    Work::administer(&after, &settings, "rotate_admin").await?
                }
                opened => opened?,
            };
            admin.go_through(&settings.rotate_admin, "", &mut filling).await?;
            admin.close().await;
            Work::administer(&after, &settings, "rotate_admin").await?.close().await;
            if target.admin == *next {
                return Ok(());
            }
            match Work::administer(target, &settings, "rotate_admin").await {
                Err(error) if error.kind == PortErrorKind::Denied => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(PortError::invalid(
                    "The statements of this service leave the administrator's former password in force; its operator has to mend them.",
                )),
            }
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(CALL_TIME, async {
            let settings = Settings::of(target)?;
            let filling = Filling::instance(target, &settings.values);
            let query = settings.list.fill(settings.dialect, &filling)?;
            let mut admin = Work::administer(target, &settings, "list").await?;
            let found = admin.server.column(&query).await?;
            admin.close().await;
            Ok(found.into_iter().filter(|name| is_user(name)).collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::catalog::{admin_members, user_members};
    use crate::domain::instance::Endpoint;
    use crate::domain::names;
    use serde_json::json;

    fn target() -> Target {
        let endpoint = Endpoint {
            name: "client".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        let settings = json!({
            "dialect": "postgres", "database": "app",
            "issue": ["CREATE ROLE {user:identifier} PASSWORD {verifier:literal} VALID UNTIL {expires_at:literal} \
                       CONNECTION LIMIT {params.limit:number}"],
            "revoke": ["DROP ROLE IF EXISTS {user:identifier}"],
            "list": "SELECT rolname FROM pg_roles",
        });
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: settings.as_object().unwrap().clone(),
            admin: administrator().unwrap(),
            revoked: Vec::new(),
        }
    }

    fn grant(limit: &Value) -> Grant {
        Grant {
            bid: names::bid("p", "i", "b"),
            second: false,
            role: "owner".to_owned(),
            params: Map::from_iter([("limit".to_owned(), limit.clone())]),
            expires_at: Some(1_700_000_000_123),
        }
    }

    #[test]
    fn secrets_have_the_members_the_catalog_expects() {
        let user = Statements.generate_user(&target(), &grant(&json!(5)), 0).unwrap();
        for (secret, members) in [
            (&target().admin, admin_members("statements")),
            (&user.secret, user_members("statements")),
        ] {
            assert_eq!(secret.expose().len(), members.len());
            assert!(members.iter().all(|member| !secret.text(member).is_empty()));
        }
    }

    #[test]
    fn a_parameter_that_is_no_number_is_told_before_the_server_hears_of_it() {
        let error = Statements
            .generate_user(&target(), &grant(&json!("5; DROP ROLE x")), 0)
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains("`params.limit`"), "{error}");
    }

    #[test]
    fn what_is_filled_in_is_the_verifier_and_the_time() {
        let target = target();
        let settings = Settings::of(&target).unwrap();
        let grant = grant(&json!(5));
        let user = Statements.generate_user(&target, &grant, 0).unwrap();
        let filling = filling(&target, &settings, &grant, &user).unwrap();
        let sql = settings.issue[0].sql.as_ref().unwrap();
        let text = sql.fill(Dialect::Postgres, &filling).unwrap();
        assert!(text.contains("PASSWORD 'SCRAM-SHA-256$4096:"), "{text}");
        assert!(
            text.contains("VALID UNTIL '2023-11-14T22:13:20.123Z' CONNECTION LIMIT 5"),
            "{text}"
        );
        assert!(!text.contains(user.secret.text("password")));
    }

    #[tokio::test]
    async fn only_users_of_bindings_are_touched() {
        for bad in ["chandler", "b_", "b_x\"; DROP ROLE y", "postgres"] {
            let error = Statements.revoke(&target(), bad).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
        }
        let mut user = Statements.generate_user(&target(), &grant(&json!(5)), 0).unwrap();
        user.handle = names::backend_user(&names::bid("p", "i", "other"));
        let error = Statements
            .issue(&target(), &grant(&json!(5)), &user)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }
}
