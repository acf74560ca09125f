//! Users on Redis 7 and Valkey: one ACL user per binding, kept in the server's ACL file.
//!
//! What must stay true here:
//! - every rule of a user is stated each time, starting from nothing (`reset`), in one command: the server
//!   applies all or none, and open sessions follow at once;
//! - each change is saved, also when there was nothing to change: a worker may have died before it saved;
//! - a scoped binding gets no command that works on keys without naming them: the server checks key names only;
//! - only the password's hash is sent.
//!
//! ACLs are not replicated: of a group with sentinels every node (endpoints `node-0`, `node-1`, …) is told itself, and a
//! call succeeds when all of them have it, so a revoked user is let in by none, whichever is the primary next. A node
//! that lost its users with its volume gets those that the others have when the instance is prepared, as each update
//! does: no binding is made or revoked meanwhile. The server knows no expiry for users.

use super::common::{ADMIN, not_this_bindings, own_handle, own_name, within};
use super::password;
use crate::domain::instance::{Endpoint, Millis};
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortErrorKind, PortResult, Target};
use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, ServerErrorKind, cmd,
};
use async_trait::async_trait;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(5);
const CALL_TIME: Duration = Duration::from_secs(30);

/// How often a client's endless script is stopped before a call gives up; the engine calls again.
const SCRIPT_KILLS: usize = 20;

/// Commands that see, count or remove keys of everybody, or watch or replace what others run.
const UNSCOPED: &[&str] = &[
    "-keys",
    "-scan",
    "-randomkey",
    "-dbsize",
    "-flushdb",
    "-flushall",
    "-function",
    "-client|tracking",
];

/// The mechanism `redis`, for Redis and Valkey.
///
/// Settings: `tls` (optional, false). A binding's parameter `key_prefix` limits it to keys and channels that start so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Redis;

/// The ACL rules of a role, without name, password and state.
fn rules(role: &str, key_prefix: Option<&str>) -> PortResult<Vec<String>> {
    let prefix = key_prefix.unwrap_or_default();
    let mut rules = vec![format!("~{prefix}*"), format!("&{prefix}*")];
    let commands: &[&str] = match role {
        "owner" => &["+@all", "-@admin", "-@dangerous", "+info", "+keys", "+flushdb"],
        // What all bindings share is not for it to remove: libraries and cached scripts.
        "readwrite" => &[
            "+@all",
            "-@admin",
            "-@dangerous",
            "+info",
            "-function",
            "-script|flush",
        ],
        "readonly" => &[
            "+@read",
            "+@connection",
            "+@transaction",
            "-@write",
            "-@admin",
            "-@dangerous",
            "+info",
            "+command",
            "+acl|whoami",
            "+eval_ro",
            "+evalsha_ro",
            "+fcall_ro",
            "+subscribe",
            "+psubscribe",
            "+ssubscribe",
            "+unsubscribe",
            "+punsubscribe",
            "+sunsubscribe",
        ],
        _ => {
            return Err(PortError::invalid(format!(
                "There is no role {role:?}: use owner, readwrite or readonly."
            )));
        }
    };
    rules.extend(commands.iter().map(ToString::to_string));
    if key_prefix.is_some() {
        rules.extend(UNSCOPED.iter().map(ToString::to_string));
    }
    Ok(rules)
}

/// The prefix a binding asks for, provided it is plain text to the server: no pattern, no space, nothing that is a rule.
fn key_prefix(grant: &Grant) -> PortResult<Option<&str>> {
    let Some(value) = grant.params.get("key_prefix") else {
        return Ok(None);
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_:.-/".contains(&b);
    match value.as_str() {
        Some(prefix) if (1..=128).contains(&prefix.len()) && prefix.bytes().all(plain) => Ok(Some(prefix)),
        _ => Err(PortError::invalid(
            "key_prefix must be 1 to 128 characters of letters, digits and _ : . - /",
        )),
    }
}

fn sha256(password: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(password))
}

/// What an endpoint's name starts with when it is one node of a group.
const NODE: &str = "node-";

/// Every server that has users of its own: the nodes of a group, or the one there is.
fn nodes(target: &Target) -> Vec<&Endpoint> {
    let nodes: Vec<&Endpoint> = target
        .endpoints
        .iter()
        .filter(|e| e.name.starts_with(NODE))
        .collect();
    if nodes.is_empty() {
        vec![&target.endpoint]
    } else {
        nodes
    }
}

async fn connect(target: &Target, node: &Endpoint, login: &Secret) -> PortResult<MultiplexedConnection> {
    let host = node.host.clone();
    let port = node.port;
    let address = if target.settings.get("tls") == Some(&Value::Bool(true)) {
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let login = RedisConnectionInfo::default()
        .set_username(login.text("username"))
        .set_password(login.text("password"))
        .set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIME))
        .set_response_timeout(Some(ANSWER_TIME));
    let connecting = async {
        let info = address.into_connection_info()?.set_redis_settings(login);
        Client::open(info)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
    };
    connecting.await.map_err(|e| explain(&e))
}

/// The administrator's connection.
struct Admin(MultiplexedConnection);

impl Admin {
    async fn open(target: &Target, node: &Endpoint) -> PortResult<Self> {
        connect(target, node, &target.admin).await.map(Self)
    }

    /// At every node, in their order.
    async fn everywhere(target: &Target) -> PortResult<Vec<Self>> {
        let mut all = Vec::new();
        for node in nodes(target) {
            all.push(Self::open(target, node).await?);
        }
        Ok(all)
    }

    /// Users of bindings, each with its rules as the server states them.
    async fn users(&mut self) -> PortResult<BTreeMap<String, Vec<String>>> {
        let lines: Vec<String> = self.send(cmd("ACL").arg("LIST")).await?;
        let users = lines.iter().filter_map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let handle = words.nth(1)?;
            own_handle(&handle).ok()?;
            Some((handle, words.collect()))
        });
        Ok(users.collect())
    }

    /// Sends a command, stopping a script that keeps the server from answering.
    async fn send<T: FromRedisValue>(&mut self, command: &Cmd) -> PortResult<T> {
        let mut answer = command.query_async(&mut self.0).await;
        for _ in 0..SCRIPT_KILLS {
            match answer {
                Err(ref e) if e.code() == Some("BUSY") => {}
                answer => return answer.map_err(|e| explain(&e)),
            }
            for kind in ["SCRIPT", "FUNCTION"] {
                // Only one of them runs; the other answer, and "it ended meanwhile", say nothing of use.
                drop(cmd(kind).arg("KILL").query_async::<()>(&mut self.0).await);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            answer = command.query_async(&mut self.0).await;
        }
        answer.map_err(|e| explain(&e))
    }

    async fn save(&mut self) -> PortResult<()> {
        self.send(cmd("ACL").arg("SAVE")).await
    }
}

#[async_trait]
impl CredentialMechanism for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        settings
            .iter()
            .filter_map(|(key, value)| match key.as_str() {
                "tls" if value.is_boolean() => None,
                "tls" => Some("tls: must be true or false".to_owned()),
                _ => Some(format!("{key}: unknown; known is tls")),
            })
            .collect()
    }

    /// Makes `username`, `password` and `password_sha256` (hex), the last for the server's ACL file.
    fn generate_admin(&self, _settings: &Map<String, Value>) -> PortResult<Secret> {
        let password = password::generate()?;
        Ok(Secret::from_pairs([
            ("username", ADMIN.to_owned()),
            ("password_sha256", sha256(&password)),
            ("password", password),
        ]))
    }

    fn generate_user(&self, _target: &Target, grant: &Grant, _now: Millis) -> PortResult<NewUser> {
        rules(&grant.role, key_prefix(grant)?)?;
        let handle = grant.user();
        own_handle(&handle)?;
        let secret = Secret::from_pairs([("username", handle.clone()), ("password", password::generate()?)]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        within(CALL_TIME, async {
            let mut everywhere = Admin::everywhere(target).await?;
            let mut all = BTreeMap::new();
            for admin in &mut everywhere {
                all.extend(admin.users().await?);
            }
            for admin in &mut everywhere {
                admin
                    .send::<()>(cmd("ACL").arg("SETUSER").arg("default").arg("off"))
                    .await?;
                let known = admin.users().await?;
                for (handle, rules) in all.iter().filter(|(handle, _)| !known.contains_key(*handle)) {
                    let mut command = cmd("ACL");
                    command.arg("SETUSER").arg(handle).arg("reset").arg(rules);
                    admin.send::<()>(&command).await?;
                }
                // Without an ACL file every user would be gone after a restart; then this fails.
                admin.save().await?;
            }
            Ok(())
        })
        .await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            let handle = own_handle(&user.handle)?;
            let password = user.secret.text("password");
            if handle != grant.user() || password.is_empty() {
                return Err(not_this_bindings());
            }
            let mut command = cmd("ACL");
            command.arg("SETUSER").arg(handle).arg("reset");
            command.arg(format!("#{}", sha256(password)));
            command.arg(rules(&grant.role, key_prefix(grant)?)?).arg("on");
            for mut admin in Admin::everywhere(target).await? {
                admin.send::<()>(&command).await?;
                admin.save().await?;
            }
            Ok(())
        })
        .await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        within(CALL_TIME, async {
            for node in nodes(target) {
                let mut connection = connect(target, node, &user.secret).await?;
                let who: String = cmd("ACL")
                    .arg("WHOAMI")
                    .query_async(&mut connection)
                    .await
                    .map_err(|e| explain(&e))?;
                cmd("PING")
                    .query_async::<()>(&mut connection)
                    .await
                    .map_err(|e| explain(&e))?;
                if who != grant.user() {
                    return Err(PortError::denied(
                        "The server takes the new user for somebody else.",
                    ));
                }
            }
            Ok(())
        })
        .await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        within(CALL_TIME, async {
            let handle = own_handle(handle)?;
            let mut down = None;
            // A node that does not answer keeps nobody in at the others.
            for node in nodes(target) {
                let revoking = async {
                    let mut admin = Admin::open(target, node).await?;
                    // Answers how many there were, and ends their connections.
                    admin.send::<i64>(cmd("ACL").arg("DELUSER").arg(handle)).await?;
                    admin.save().await
                };
                if let Err(error) = revoking.await {
                    down = Some(error);
                }
            }
            down.map_or(Ok(()), Err)
        })
        .await
    }

    fn rotates_admin(&self, _settings: &Map<String, Value>) -> bool {
        true
    }

    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        within(CALL_TIME, async {
            let name = own_name(target, next)?;
            for node in nodes(target) {
                match Admin::open(target, node).await {
                    Ok(mut admin) => {
                        let mut change = cmd("ACL");
                        change.arg("SETUSER").arg(name).arg("resetpass");
                        change.arg(format!("#{}", sha256(next.text("password"))));
                        admin.send::<()>(&change).await?;
                    }
                    // An earlier try got so far: then the next ones let in.
                    Err(error) if error.kind == PortErrorKind::Denied => {}
                    Err(error) => return Err(error),
                }
                let mut admin = Admin(connect(target, node, next).await?);
                admin.save().await?;
                // Whoever logged in with the former ones would stay.
                let mut cut = cmd("CLIENT");
                cut.arg("KILL").arg("USER").arg(name);
                admin.send::<i64>(&cut).await?;
            }
            Ok(())
        })
        .await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        within(CALL_TIME, async {
            let mut all = BTreeMap::new();
            for mut admin in Admin::everywhere(target).await? {
                all.extend(admin.users().await?);
            }
            Ok(all.into_keys().collect())
        })
        .await
    }
}

/// Sorts a failure. The server quotes the rule it does not like, so text from the first `#` on (a hash) is cut.
fn explain(error: &RedisError) -> PortError {
    use PortErrorKind::{Denied, Invalid, Transient};
    let text = error.to_string();
    let detail = text.split('#').next().unwrap_or_default();
    let (kind, message) = match (error.kind(), error.code()) {
        (_, Some("WRONGPASS" | "NOAUTH" | "NOPERM")) | (ErrorKind::AuthenticationFailed, _) => {
            (Denied, "The server refuses the login or does not allow this.")
        }
        (_, Some("BUSY" | "UNKILLABLE")) => (
            Transient,
            "A client's script keeps the server busy and cannot be stopped yet; if it never ends, restart the instance.",
        ),
        (_, Some("LOADING")) => (Transient, "The server is still loading its data."),
        (ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported, _) => (
            Invalid,
            "The connection settings of this service are wrong; tell its operator.",
        ),
        (ErrorKind::Server(ServerErrorKind::ResponseError), _)
            if text.contains("not configured to use an ACL file") =>
        {
            (
                Invalid,
                "The server has no ACL file, so users would not survive a restart; set `aclfile` in its configuration.",
            )
        }
        (ErrorKind::Server(ServerErrorKind::ResponseError), _)
            if ["SETUSER", "syntax", "unknown", "wrong number"]
                .iter()
                .any(|word| text.contains(word)) =>
        {
            (
                Invalid,
                "The server does not understand what it was asked; tell its operator.",
            )
        }
        (ErrorKind::Server(_) | ErrorKind::Extension, _) => {
            (Transient, "The server cannot do this at the moment.")
        }
        _ => (Transient, "The server does not answer."),
    };
    PortError::new(kind, message).with_detail(detail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::names::{self, backend_user};
    use serde_json::json;

    fn grant(params: &Value) -> Grant {
        Grant {
            bid: names::bid("p", "i", "b"),
            second: false,
            role: "owner".to_owned(),
            params: params.as_object().unwrap().clone(),
            expires_at: None,
        }
    }

    #[test]
    fn a_prefix_cannot_become_a_rule_or_a_pattern() {
        assert_eq!(key_prefix(&grant(&json!({}))).unwrap(), None);
        for good in ["a", "orders:", "a/b.c-d_1:"] {
            assert_eq!(
                key_prefix(&grant(&json!({"key_prefix": good}))).unwrap(),
                Some(good)
            );
        }
        let long = "a".repeat(129);
        let texts = [
            "", "*", "a*", "a ~*", "a\n", "a\0", "a?", "[a]", "a\\", "{a}", "ä", "a +@all", "a#", &long,
        ];
        let others = [json!(7), json!(null), json!(["a"])];
        for bad in texts.iter().map(|t| json!(t)).chain(others) {
            let grant = grant(&json!({"key_prefix": bad}));
            assert_eq!(
                key_prefix(&grant).unwrap_err().kind,
                PortErrorKind::Invalid,
                "{bad}"
            );
        }
    }

    #[test]
    fn roles_and_scopes_become_rules() {
        assert_eq!(
            rules("owner", None).unwrap().join(" "),
            "~* &* +@all -@admin -@dangerous +info +keys +flushdb"
        );
        let scoped = rules("owner", Some("a:")).unwrap();
        assert_eq!(scoped[..2], ["~a:*", "&a:*"]);
        let last = |name: &str| {
            let about = |rule: &&String| rule[1..] == *name;
            scoped
                .iter()
                .rfind(about)
                .map(String::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        for (name, rule) in [
            ("keys", "-keys"),
            ("flushdb", "-flushdb"),
            ("scan", "-scan"),
            ("info", "+info"),
        ] {
            assert_eq!(last(name), rule);
        }
        assert!(rules("admin", None).is_err());
    }

    #[test]
    fn of_a_group_every_node_is_told() {
        let endpoint = |name: &str, port: u16| Endpoint {
            name: name.to_owned(),
            host: "h".to_owned(),
            port,
        };
        let mut target = Target {
            iid: String::new(),
            endpoint: endpoint("client", 1),
            endpoints: vec![endpoint("client", 1)],
            settings: Map::new(),
            admin: Secret::default(),
            revoked: Vec::new(),
        };
        let ports = |target: &Target| nodes(target).iter().map(|e| e.port).collect::<Vec<_>>();
        assert_eq!(ports(&target), [1]);
        for (name, port) in [("node-0", 2), ("sentinel-0", 3), ("node-1", 4)] {
            target.endpoints.push(endpoint(name, port));
        }
        assert_eq!(ports(&target), [2, 4]);
    }

    #[test]
    fn handles_are_checked() {
        let good = backend_user(&names::bid("p", "i", "b"));
        assert_eq!(own_handle(&good).unwrap(), good);
        let second = names::second_user(&names::bid("p", "i", "b"));
        assert_eq!(own_handle(&second).unwrap(), second);
        for bad in ["default", "chandler", "b_", "b_x y", &good[2..]] {
            assert_eq!(own_handle(bad).unwrap_err().kind, PortErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn settings_are_checked() {
        let check = |settings: Value| Redis.check_settings(settings.as_object().unwrap()).len();
        assert_eq!(check(json!({})), 0);
        assert_eq!(check(json!({"tls": true})), 0);
        assert_eq!(check(json!({"tls": "yes", "user": "x"})), 2);
    }

    #[test]
    fn the_admin_secret_carries_the_hash_for_the_acl_file() {
        let admin = Redis.generate_admin(&Map::new()).unwrap();
        assert_eq!(admin.text("username"), "chandler");
        assert_eq!(admin.text("password_sha256"), sha256(admin.text("password")));
        assert_eq!(
            sha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn errors_never_quote_a_hash() {
        let error = RedisError::from((
            ErrorKind::Extension,
            "ERR",
            "Error in ACL SETUSER modifier '#abcdef': bad".to_owned(),
        ));
        assert!(!explain(&error).detail.contains("abcdef"));
    }
}
