//! The application account on the server: looking at it, and bringing it into the state it must have.
//!
//! The account JWT holds limits, signing key and the revocations all in one, a push replaces it whole, and the server
//! keeps the push that arrived last, whatever its `iat`. Three things follow, and must stay true:
//!
//! - **Revocations only grow.** A push carries ours and those the server already has. So a caller with an older list, a
//!   tombstone that was purged, or two brokers at once do not let a revoked user back in.
//! - **Nothing is believed that was not looked at.** After a push the account is read again, from the server's store and
//!   from its memory, until both are right; a push that lost a race is seen and repeated.
//! - **`iat` always rises.** Servers of a cluster and a restart with a preload keep the newer `iat`, and on equal ones either.
//!
//! A revocation is dated beyond every `iat` there can be: the key of a binding is used by no other, ever, and no clock
//! that runs ahead can make a JWT look newer than its revocation.

use super::Admin;
use super::client::{self, Who};
use super::jwt::{self, Claims};
use super::settings::Settings;
use crate::domain::instance::Endpoint;
use crate::ports::{PortError, PortErrorKind, PortResult};
use async_nats::Client;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Pushes before giving up for now: each lost a race with another push, or the server did not take it.
const ROUNDS: usize = 5;
/// The revocation date: the last second of 10 digits, in the year 2286.
const FOR_GOOD: i64 = 9_999_999_999;
/// The inbox of the system user.
const INBOX: &str = "_INBOX_broker";

/// A session of the system user.
pub(super) struct Account<'a> {
    admin: &'a Admin<'a>,
    settings: &'a Settings,
    client: Client,
}

/// What the servers say about the account.
struct View {
    /// It is there on every server that answered.
    everywhere: bool,
    /// What each server has in store, as far as it is ours.
    stored: Vec<(String, Claims)>,
}

impl<'a> Account<'a> {
    /// Logs in as the system user.
    pub async fn open(endpoint: &Endpoint, admin: &'a Admin<'a>, settings: &'a Settings) -> PortResult<Self> {
        let client = client::login(
            endpoint,
            Who::System,
            admin.system_user_jwt,
            admin.system_user_seed,
            INBOX,
        )
        .await?;
        Ok(Self {
            admin,
            settings,
            client,
        })
    }

    /// Whether every server knows the account.
    pub async fn is_known(&self) -> PortResult<bool> {
        let view = self.look().await?;
        Ok(view.everywhere && !view.stored.is_empty())
    }

    /// Makes the servers serve the account with the limits of the settings and at least these users revoked.
    ///
    /// `now` is in seconds. Errors: `Conflict` when others kept overwriting it.
    pub async fn settle(&self, revoked: &BTreeSet<String>, now: i64) -> PortResult<()> {
        for _ in 0..ROUNDS {
            let view = self.look().await?;
            let mut all = revoked.clone();
            for (_, claims) in &view.stored {
                all.extend(revocations(&claims.nats));
            }
            let wanted = self.body(&all);
            if self.is_settled(&view, &wanted).await? {
                return Ok(());
            }
            let newest = view.stored.iter().map(|(_, claims)| claims.iat).max();
            let token = jwt::encode(
                &Claims {
                    sub: self.admin.account.to_owned(),
                    name: "APP".into(),
                    iat: newest.map_or(now, |iat| now.max(iat + 1)),
                    exp: None,
                    nats: wanted,
                },
                &self.admin.operator()?,
            )
            .map_err(|_| PortError::invalid("The instance's operator key cannot sign."))?;
            self.push(token).await?;
        }
        Err(PortError::new(
            PortErrorKind::Conflict,
            "The NATS account is being changed by others at the same time.",
        )
        .with_detail("the account was not in the wanted state after 5 pushes"))
    }

    /// The `nats` part of the account JWT.
    fn body(&self, revoked: &BTreeSet<String>) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("type".into(), "account".into());
        body.insert("version".into(), 2.into());
        body.insert("limits".into(), self.settings.limits());
        body.insert("signing_keys".into(), json!([self.admin.account_signing_key]));
        if !revoked.is_empty() {
            let list: Map<String, Value> = revoked.iter().map(|u| (u.clone(), FOR_GOOD.into())).collect();
            body.insert("revocations".into(), Value::Object(list));
        }
        body
    }

    /// A look-up of an account a server does not have is never answered, so ask for the list first.
    async fn look(&self) -> PortResult<View> {
        let lists = self
            .ask_most("$SYS.REQ.CLAIMS.LIST".into(), String::new())
            .await?;
        let have = lists
            .iter()
            .filter(|answer| {
                parse(answer)["data"]
                    .as_array()
                    .is_some_and(|ids| ids.iter().any(|id| id == self.admin.account))
            })
            .count();
        if have == 0 {
            return Ok(View {
                everywhere: false,
                stored: Vec::new(),
            });
        }
        let subject = format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP", self.admin.account);
        let answers = client::ask(&self.client, subject, String::new(), have).await?;
        let stored: Vec<_> = answers.iter().filter_map(|answer| self.ours(answer)).collect();
        Ok(View {
            // A file that was half written when a server died does not count as being there.
            everywhere: have == lists.len() && stored.len() == have,
            stored,
        })
    }

    /// A token and its claims, if the operator signed it for this account.
    fn ours(&self, token: &[u8]) -> Option<(String, Claims)> {
        let token = std::str::from_utf8(token).ok()?;
        let (issuer, claims) = jwt::decode(token).ok()?;
        (issuer == self.admin.operator_public && claims.sub == self.admin.account)
            .then(|| (token.to_owned(), claims))
    }

    /// Whether every server has `wanted` in its store, and in force where the account is loaded.
    async fn is_settled(&self, view: &View, wanted: &Map<String, Value>) -> PortResult<bool> {
        if !view.everywhere || view.stored.iter().any(|(_, claims)| claims.nats != *wanted) {
            return Ok(false);
        }
        let subject = format!("$SYS.REQ.ACCOUNT.{}.INFO", self.admin.account);
        let answers = self.ask_most(subject, String::new()).await?;
        Ok(answers.iter().map(|answer| parse(answer)).all(|info| {
            // A server on which nobody used the account since its start has not loaded it, and will from its store.
            info["data"]["jwt"]
                .as_str()
                .is_none_or(|live| view.stored.iter().any(|(token, _)| token == live))
        }))
    }

    async fn push(&self, token: String) -> PortResult<()> {
        for answer in self.ask_most("$SYS.REQ.CLAIMS.UPDATE".into(), token).await? {
            let answer = parse(&answer);
            if answer["data"]["code"] != 200 {
                let said = answer["error"]["description"]
                    .as_str()
                    .unwrap_or("no reason given");
                return Err(
                    PortError::transient("The NATS server did not take the account's new state.")
                        .with_detail(said),
                );
            }
        }
        Ok(())
    }

    /// Asks all servers and insists on most of them; the others catch up from these when they are back.
    async fn ask_most(&self, subject: String, payload: String) -> PortResult<Vec<Vec<u8>>> {
        let servers = self.settings.servers;
        let answers = client::ask(&self.client, subject, payload, servers).await?;
        if answers.len() <= servers / 2 {
            return Err(
                PortError::transient("Most NATS servers of the cluster do not answer.")
                    .with_detail(format!("{} of {servers} answered", answers.len())),
            );
        }
        Ok(answers)
    }
}

fn parse(answer: &[u8]) -> Value {
    serde_json::from_slice(answer).unwrap_or_default()
}

fn revocations(nats: &Map<String, Value>) -> Vec<String> {
    match nats.get("revocations") {
        Some(Value::Object(list)) => list.keys().cloned().collect(),
        _ => Vec::new(),
    }
}
