//! The `nats` mechanism: NATS in operator mode, where a user is a signed token and the server keeps no user list.
//!
//! Each instance has an operator, a system account and one application account of its own. A binding's user is a JWT
//! signed by the account's signing key: making one asks nothing of the server. Revoking one adds its public key to the
//! revocations in the account JWT, which cuts its live connections at once.
//!
//! # The configuration the server must run with
//!
//! The real-server tests run exactly this, filled in:
//!
//! ```text
//! server_name: ${instance.iid}
//! listen: "127.0.0.1:${ports.client}"
//! http: "127.0.0.1:${ports.monitor}"
//! operator: ${admin.operator_jwt}
//! system_account: ${admin.system_account}
//! resolver {
//!   type: full
//!   dir: "${dirs.root}/resolver"
//!   interval: "2m"
//! }
//! resolver_preload {
//!   ${admin.system_account}: ${admin.system_account_jwt}
//! }
//! jetstream {
//!   store_dir: "${dirs.root}/jetstream"
//!   max_memory_store: 64MB
//!   max_file_store: 1GB
//! }
//! max_payload: 8MB
//! ```
//!
//! Two things in it are there on purpose:
//!
//! - **The application account is not preloaded**; `prepare` pushes it. At every start a preload replaces what is in the
//!   resolver's directory unless that is newer by a whole second, and also when a crash left it unreadable; then the
//!   revocations are gone and revoked users are let in again (a test shows it). Without a preload the same accident
//!   shuts everybody out until the next `prepare`, `issue` or `revoke`, which is the right way round.
//! - **`max_payload` is larger than applications may send** (that is `settings.max_payload`, 1 MiB unless it says otherwise),
//!   because the list of revocations travels in one message: 94 bytes each, so 8 MB hold some 80,000. Then a revocation
//!   is refused as `Invalid` with that reason. Revoking beside 10,000 others took 0.3 s, beside 60,000 1.7 s.
//!
//! `allow_delete` is left out: nothing here deletes accounts; an instance ends with its process.
//!
//! # Names
//!
//! `admin.*`: `operator_seed`, `operator_public`, `operator_jwt`, `system_account`, `system_account_seed`,
//! `system_account_jwt`, `system_user`, `system_user_seed`, `system_user_jwt`, `account`, `account_seed`,
//! `account_signing_key`, `account_signing_seed`. `system_account` and `account` are public keys (`A…`).
//!
//! `user.*`: `username` (the public key `U…`, also the handle), `jwt`, `seed`, `creds` (text of a `.creds` file), `account`,
//! `inbox_prefix` (a binding with `subjects` must set it in its client: the shared `_INBOX.>` is closed to it).
//!
//! `settings`: `max_connections`, `max_subscriptions`, `max_payload` (bytes), `jetstream` (`true`, `false` or an object of
//! `max_memory`, `max_file` (bytes), `max_streams`, `max_consumers`), `servers`, `readonly_jetstream`. Limits are numbers;
//! -1 or left out means no limit.

mod account;
mod client;
mod grants;
mod jwt;
mod settings;

use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{
    Clock, CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target,
};
use account::Account;
use async_trait::async_trait;
use client::Who;
use jwt::Claims;
use nkeys::KeyPair;
use serde_json::{Map, Value, json};
use settings::Settings;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// How long one port call may take in all, waiting for another one on the same account included.
const CALL: Duration = Duration::from_secs(20);
/// How long the user `prepare` logs in with is valid: long enough for clocks that differ. In seconds.
const PROBE: i64 = 300;

/// The mechanism; one for all instances.
pub struct Nats {
    clock: Arc<dyn Clock>,
    /// One lock per account that is being changed: two pushes at once would only undo and repeat each other.
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Nats {
    /// A mechanism that dates its tokens by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            busy: Mutex::new(HashMap::new()),
        }
    }

    fn now(&self) -> i64 {
        seconds(self.clock.now())
    }

    fn lock_of(&self, account: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = busy.get(account).and_then(Weak::upgrade) {
            return lock;
        }
        busy.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        busy.insert(account.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Makes the server serve the account with everything in [`Target::revoked`] and `handle` revoked.
    ///
    /// With `only_if_missing` an account that is there is left as it is.
    async fn settle(&self, target: &Target, handle: &str, only_if_missing: bool) -> PortResult<()> {
        let admin = Admin::of(&target.admin)?;
        let settings = settings_of(&target.settings)?;
        let revoked: BTreeSet<String> = target
            .revoked
            .iter()
            .map(|r| r.handle.as_str())
            .chain([handle])
            .filter(|handle| is_user_key(handle))
            .map(str::to_owned)
            .collect();
        let lock = self.lock_of(admin.account);
        let _held = lock.lock().await;
        let account = Account::open(&target.endpoint, &admin, &settings).await?;
        if only_if_missing && account.is_known().await? {
            return Ok(());
        }
        account.settle(&revoked, self.now()).await
    }

    /// Logs in as a user made for this moment, and asks for JetStream if the account should have it.
    async fn probe(&self, target: &Target) -> PortResult<()> {
        let admin = Admin::of(&target.admin)?;
        let settings = settings_of(&target.settings)?;
        let key = KeyPair::new_user();
        let inbox = grants::inbox_prefix(&key.public_key());
        let mut permissions = Map::new();
        permissions.insert("pub".into(), json!({"allow": ["$JS.API.INFO"]}));
        permissions.insert("sub".into(), json!({"allow": [format!("{inbox}.>")]}));
        let now = self.now();
        let jwt = user_jwt(&admin, &key, "probe".into(), now, Some(now + PROBE), permissions)?;
        let seed = seed(&key)?;
        let client = client::login(&target.endpoint, Who::User, &jwt, &seed, &inbox)
            .await
            .map_err(|error| match error.kind {
                // The account is on the server; right after its start the server may still refuse for a moment.
                PortErrorKind::Denied => PortError::transient("The NATS server does not let users in yet.")
                    .with_detail(error.detail),
                _ => error,
            })?;
        if settings.jetstream.is_some() {
            let answers = client::ask(&client, "$JS.API.INFO".into(), String::new(), 1).await?;
            let answer: Value = answers
                .first()
                .and_then(|a| serde_json::from_slice(a).ok())
                .unwrap_or_default();
            if answer.get("error").is_some() || answer.get("limits").is_none() {
                let said = answer["error"]["description"]
                    .as_str()
                    .unwrap_or("no reason given");
                return Err(
                    PortError::transient("JetStream is not available on the NATS server (yet).")
                        .with_detail(said),
                );
            }
        }
        Ok(())
    }
}

#[async_trait]
impl CredentialMechanism for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        Settings::parse(settings).err().unwrap_or_default()
    }

    fn generate_admin(&self, settings: &Map<String, Value>) -> PortResult<Secret> {
        settings_of(settings)?;
        let now = self.now();
        let operator = KeyPair::new_operator();
        let system = KeyPair::new_account();
        let system_user = KeyPair::new_user();
        let account = KeyPair::new_account();
        let signing = KeyPair::new_account();

        let operator_jwt = sign(
            &operator,
            operator.public_key(),
            "chandler".into(),
            now,
            None,
            json!({"type": "operator", "version": 2, "system_account": system.public_key()}),
        )?;
        let system_account_jwt = sign(
            &operator,
            system.public_key(),
            "SYS".into(),
            now,
            None,
            json!({"type": "account", "version": 2, "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
                "conn": -1, "leaf": 0, "disallow_bearer": true,
            }}),
        )?;
        let system_user_jwt = sign(
            &system,
            system_user.public_key(),
            "broker".into(),
            now,
            None,
            json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
                "pub": {"allow": ["$SYS.REQ.>"]}, "sub": {"allow": ["_INBOX_broker.>"]}}),
        )?;
        Ok(Secret::from_pairs([
            ("operator_seed", seed(&operator)?),
            ("operator_public", operator.public_key()),
            ("operator_jwt", operator_jwt),
            ("system_account", system.public_key()),
            ("system_account_seed", seed(&system)?),
            ("system_account_jwt", system_account_jwt),
            ("system_user", system_user.public_key()),
            ("system_user_seed", seed(&system_user)?),
            ("system_user_jwt", system_user_jwt),
            ("account", account.public_key()),
            ("account_seed", seed(&account)?),
            ("account_signing_key", signing.public_key()),
            ("account_signing_seed", seed(&signing)?),
        ]))
    }

    fn generate_user(&self, target: &Target, grant: &Grant, now: Millis) -> PortResult<NewUser> {
        let admin = Admin::of(&target.admin)?;
        let settings = settings_of(&target.settings)?;
        let key = KeyPair::new_user();
        let handle = key.public_key();
        let inbox = grants::inbox_prefix(&handle);
        let subjects = grants::subjects(&grant.params)?;
        let permissions = grants::permissions(
            &grant.role,
            subjects.as_deref(),
            &inbox,
            settings.readonly_jetstream,
        )?;
        let jwt = user_jwt(
            &admin,
            &key,
            grant.user(),
            seconds(now),
            // Whole seconds, and the server lets the last one pass; 0 would mean "never expires".
            grant.expires_at.map(|at| seconds(at).max(1)),
            permissions,
        )?;
        let seed = seed(&key)?;
        let secret = Secret::from_pairs([
            ("username", handle.clone()),
            ("creds", jwt::creds_file(&jwt, &seed)),
            ("jwt", jwt),
            ("seed", seed),
            ("account", admin.account.to_owned()),
            ("inbox_prefix", inbox),
        ]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        bounded(async {
            self.settle(target, "", false).await?;
            self.probe(target).await
        })
        .await
    }

    /// The user is complete with its JWT; all the server needs is to know the account.
    async fn issue(&self, target: &Target, _grant: &Grant, _user: &NewUser) -> PortResult<()> {
        bounded(self.settle(target, "", true)).await
    }

    async fn verify(&self, target: &Target, _grant: &Grant, user: &NewUser) -> PortResult<()> {
        let secret = &user.secret;
        client::login(
            &target.endpoint,
            Who::User,
            secret.text("jwt"),
            secret.text("seed"),
            secret.text("inbox_prefix"),
        )
        .await
        .map(drop)
    }

    /// What is no user key was never let in by anybody: success.
    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        if !is_user_key(handle) {
            return Ok(());
        }
        bounded(self.settle(target, handle, false)).await
    }

    async fn list(&self, _target: &Target) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }

    fn states_whole_list(&self) -> bool {
        true
    }
}

/// The admin secrets this mechanism works with, borrowed and therefore wiped with their owner.
struct Admin<'a> {
    operator_seed: &'a str,
    operator_public: &'a str,
    system_user_seed: &'a str,
    system_user_jwt: &'a str,
    account: &'a str,
    account_signing_key: &'a str,
    account_signing_seed: &'a str,
}

impl<'a> Admin<'a> {
    fn of(secret: &'a Secret) -> PortResult<Self> {
        let member = |name: &str| {
            Some(secret.text(name))
                .filter(|text| !text.is_empty())
                .ok_or_else(|| {
                    PortError::invalid("The instance's NATS keys are incomplete.")
                        .with_detail(format!("{name} is missing"))
                })
        };
        Ok(Self {
            operator_seed: member("operator_seed")?,
            operator_public: member("operator_public")?,
            system_user_seed: member("system_user_seed")?,
            system_user_jwt: member("system_user_jwt")?,
            account: member("account")?,
            account_signing_key: member("account_signing_key")?,
            account_signing_seed: member("account_signing_seed")?,
        })
    }

    fn operator(&self) -> PortResult<KeyPair> {
        read_key(self.operator_seed)
    }
}

fn read_key(seed: &str) -> PortResult<KeyPair> {
    KeyPair::from_seed(seed).map_err(|_| PortError::invalid("A NATS key of the instance cannot be read."))
}

fn seed(key: &KeyPair) -> PortResult<String> {
    key.seed()
        .map_err(|_| PortError::invalid("A NATS key could not be made."))
}

fn sign(
    issuer: &KeyPair,
    sub: String,
    name: String,
    iat: i64,
    exp: Option<i64>,
    nats: Value,
) -> PortResult<String> {
    let nats = match nats {
        Value::Object(nats) => nats,
        _ => Map::new(),
    };
    let claims = Claims {
        sub,
        name,
        iat,
        exp,
        nats,
    };
    jwt::encode(&claims, issuer)
        .map_err(|error| PortError::invalid("A NATS token could not be signed.").with_detail(error))
}

/// A user of the application account.
fn user_jwt(
    admin: &Admin<'_>,
    key: &KeyPair,
    name: String,
    iat: i64,
    exp: Option<i64>,
    mut nats: Map<String, Value>,
) -> PortResult<String> {
    nats.insert("type".into(), "user".into());
    nats.insert("version".into(), 2.into());
    nats.insert("issuer_account".into(), admin.account.into());
    for unlimited in ["subs", "data", "payload"] {
        nats.insert(unlimited.into(), (-1).into());
    }
    let signing = read_key(admin.account_signing_seed)?;
    sign(&signing, key.public_key(), name, iat, exp, Value::Object(nats))
}

fn settings_of(settings: &Map<String, Value>) -> PortResult<Settings> {
    Settings::parse(settings).map_err(|errors| {
        PortError::invalid("The service's NATS settings are wrong; its operator has to correct them.")
            .with_detail(errors.join("; "))
    })
}

/// Whether `handle` is a user's public key with a fitting checksum.
fn is_user_key(handle: &str) -> bool {
    handle.starts_with('U') && nkeys::from_public_key(handle).is_ok()
}

fn seconds(at: Millis) -> i64 {
    at.div_euclid(1000)
}

async fn bounded<T>(call: impl Future<Output = PortResult<T>> + Send) -> PortResult<T> {
    match tokio::time::timeout(CALL, call).await {
        Ok(result) => result,
        Err(_) => Err(PortError::transient("The NATS server took too long.")),
    }
}
