//! What an operator sets up in the vault before the broker can work: as commands to review, or done with his token.
//!
//! One list of steps serves both, so that what is printed is what is done. What must stay true: every step may be repeated
//! and changes nothing the second time; what others may use too (a log-in that was there before) is not reconfigured.

use super::VaultSettings;
use super::fault;
use super::http::{Answer, Http, Request};
use super::login::bytes;
use super::policy;
use crate::domain::names::CLIENT_PREFIX;
use crate::ports::{PortError, PortErrorKind, PortResult};
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// Seconds a binding's token of the vault lives. It cannot be renewed: a new one means another look at the client.
const BINDING_TOKEN_SECONDS: u32 = 15 * 60;
/// Seconds a broker's token lives unless it is renewed.
const BROKER_TOKEN_SECONDS: u32 = 60 * 60;
/// Seconds that clocks may differ by.
const LEEWAY_SECONDS: u32 = 5;
/// Times a store that was just made is asked again while it gets ready.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(200);

/// How the broker will log in.
#[derive(Debug, Clone)]
pub enum BrokerLogIn {
    /// As a service account.
    Kubernetes {
        /// Mount of the log-in.
        mount: String,
        /// Its role.
        role: String,
        /// Namespace of the service account.
        namespace: String,
        /// Its name.
        service_account: String,
        /// What its token must be meant for; none = any audience.
        audience: Option<String>,
        /// Address of the cluster, as the vault reaches it.
        host: String,
        /// The cluster's authority (PEM), where the vault runs outside.
        ca: Option<String>,
    },
    /// With role id and secret id.
    AppRole {
        /// Mount of the log-in.
        mount: String,
        /// Its role.
        role: String,
        /// Networks it may be used from; empty = any.
        cidrs: Vec<String>,
    },
    /// With a token that somebody else sees to.
    Token,
}

/// All that is to be set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How the vault is reached and what its parts are called.
    pub settings: VaultSettings,
    /// How the applications' log-in knows the identity provider: the body of its configuration.
    pub provider: Map<String, Value>,
    /// Audience of bindings' tokens.
    pub audience: String,
    /// How the broker will log in.
    pub broker: BrokerLogIn,
}

/// One thing to set up.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is, for people.
    pub title: String,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    /// A mount below `sys/mounts` or `sys/auth`.
    Mount {
        table: &'static str,
        path: String,
        body: Value,
    },
    /// A configuration that is ours.
    Write { path: String, body: Value },
    /// A configuration that others may rely on: written where there is none.
    WriteAbsent { path: String, body: Value },
    /// A policy; `{accessor}` in it stands for that of the applications' log-in.
    Policy { name: String, text: String },
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    Made,
    /// It was there and different.
    Changed,
    /// It was as it should be.
    Nothing,
}

/// Stands for the accessor, which is known only when the log-in is there.
const ACCESSOR: &str = "{accessor}";

impl Setup {
    /// The steps, in their order.
    pub fn steps(&self) -> Vec<Step> {
        let settings = &self.settings;
        let mut steps = store(
            &settings.kv_mount,
            "chandler: secrets of bindings",
            "bindings' secrets",
        );
        if settings.instance_secrets {
            let what = "chandler: credentials of service instances";
            steps.extend(store(&settings.internal_mount, what, "instances' administrators"));
        }
        let jwt = &settings.jwt_mount;
        steps.extend([
            step(
                "the applications' log-in",
                Act::Mount {
                    table: "sys/auth",
                    path: jwt.clone(),
                    body: json!({"type": "jwt", "description": "chandler: applications, by their binding's client"}),
                },
            ),
            step(
                "whose tokens that log-in accepts",
                Act::Write { path: format!("auth/{jwt}/config"), body: Value::Object(self.provider.clone()) },
            ),
            step(
                "the policy that all bindings share",
                Act::Policy { name: policy::binding_name(settings), text: policy::binding(settings, ACCESSOR) },
            ),
            step(
                "the role that bindings log in with",
                Act::Write {
                    path: format!("auth/{jwt}/role/{}", settings.jwt_role),
                    body: binding_role(&self.audience, &policy::binding_name(settings)),
                },
            ),
            step("the broker's policy", Act::Policy { name: policy::broker_name(settings), text: policy::broker(settings) }),
        ]);
        steps.extend(self.broker.steps(&policy::broker_name(settings)));
        steps
    }

    /// The steps as commands of a shell, to be reviewed and run by an operator of the vault.
    pub fn script(&self) -> String {
        let mut text = String::from(
            "# What chandler needs in the vault. Review it and run it as an operator of the vault; for OpenBao read\n\
             # `bao` for `vault`. `chandler bootstrap vault --apply` does the same. Both may be repeated.\nset -eu\n",
        );
        let _ = writeln!(text, "export VAULT_ADDR={}", quoted(&self.settings.address));
        if let Some(namespace) = &self.settings.namespace {
            let _ = writeln!(text, "export VAULT_NAMESPACE={}", quoted(namespace));
        }
        for step in self.steps() {
            let _ = writeln!(text, "\n# {}", step.title);
            text.push_str(&step.act.command(&self.settings.jwt_mount));
        }
        text.push_str(&self.hint());
        text
    }

    /// What is left to do, as comments of a shell.
    pub fn hint(&self) -> String {
        self.broker.hint(&policy::broker_name(&self.settings))
    }

    /// Does every step with an operator's token, and tells each as it is done.
    pub async fn apply(
        &self,
        token: &SecretString,
        tell: &mut (dyn FnMut(&Step, Change) + Send),
    ) -> PortResult<()> {
        let settings = &self.settings;
        let (namespace, ca) = (settings.namespace.as_deref(), settings.ca.as_deref());
        let http = Http::new(&settings.address, namespace, ca, settings.request_limit)
            .map_err(PortError::invalid)?;
        let operator = Operator { http, token };
        for step in self.steps() {
            let change = match &step.act {
                Act::Mount { table, path, body } => operator.mount(table, path, body).await?,
                Act::Write { path, body } => operator.write(path, body).await?,
                Act::WriteAbsent { path, body } => operator.write_absent(path, body).await?,
                Act::Policy { name, text } => {
                    let text = if text.contains(ACCESSOR) {
                        text.replace(ACCESSOR, &operator.accessor(&settings.jwt_mount).await?)
                    } else {
                        text.clone()
                    };
                    operator.policy(name, &text).await?
                }
            };
            tell(&step, change);
        }
        Ok(())
    }
}

fn step(title: &str, act: Act) -> Step {
    Step {
        title: title.to_owned(),
        act,
    }
}

/// A store, which accepts no write that does not say which version it replaces.
fn store(mount: &str, description: &str, what: &str) -> Vec<Step> {
    vec![
        step(
            &format!("the store of {what}"),
            Act::Mount {
                table: "sys/mounts",
                path: mount.to_owned(),
                body: json!({"type": "kv", "options": {"version": "2"}, "description": description}),
            },
        ),
        step(
            &format!("how the store of {what} works"),
            Act::Write {
                path: format!("{mount}/config"),
                body: json!({"cas_required": true, "max_versions": 5}),
            },
        ),
    ]
}

/// A client's name is all that is believed of a token beside the marks that the broker gave it. The claims that are mapped
/// serve the audit log; no policy is filled in with them.
fn binding_role(audience: &str, policy: &str) -> Value {
    json!({
        "role_type": "jwt",
        "bound_audiences": [audience],
        "user_claim": "azp",
        "bound_claims_type": "glob",
        "bound_claims": {"azp": format!("{CLIENT_PREFIX}*"), "osb_kind": "binding"},
        "claim_mappings": {"osb_tenant": "tenant", "osb_instance": "instance"},
        "token_policies": [policy],
        "token_no_default_policy": true,
        "token_type": "batch",
        "token_ttl": BINDING_TOKEN_SECONDS,
        "token_max_ttl": BINDING_TOKEN_SECONDS,
        // Zero would mean the server's own, which is a minute and more.
        "expiration_leeway": LEEWAY_SECONDS,
        "not_before_leeway": LEEWAY_SECONDS,
        "clock_skew_leeway": LEEWAY_SECONDS,
    })
}

impl BrokerLogIn {
    fn steps(&self, policy: &str) -> Vec<Step> {
        let mount_step = |kind: &str, mount: &str| {
            step(
                "the broker's log-in",
                Act::Mount {
                    table: "sys/auth",
                    path: mount.to_owned(),
                    body: json!({"type": kind}),
                },
            )
        };
        match self {
            Self::Kubernetes {
                mount,
                role,
                namespace,
                service_account,
                audience,
                host,
                ca,
            } => {
                let mut config = json!({"kubernetes_host": host});
                if let Some(ca) = ca {
                    config["kubernetes_ca_cert"] = ca.as_str().into();
                    // Without this a vault in a pod of its own would ask with that pod's token.
                    config["disable_local_ca_jwt"] = true.into();
                }
                let mut body = json!({
                    "bound_service_account_names": [service_account],
                    "bound_service_account_namespaces": [namespace],
                    "token_policies": [policy],
                    "token_no_default_policy": true,
                    "token_period": BROKER_TOKEN_SECONDS,
                });
                if let Some(audience) = audience {
                    body["audience"] = audience.as_str().into();
                }
                vec![
                    mount_step("kubernetes", mount),
                    step(
                        "the cluster that log-in asks",
                        Act::WriteAbsent {
                            path: format!("auth/{mount}/config"),
                            body: config,
                        },
                    ),
                    step(
                        "the broker's role there",
                        Act::Write {
                            path: format!("auth/{mount}/role/{role}"),
                            body,
                        },
                    ),
                ]
            }
            Self::AppRole { mount, role, cidrs } => {
                let mut body = json!({
                    "token_policies": [policy],
                    "token_no_default_policy": true,
                    "token_period": BROKER_TOKEN_SECONDS,
                    "bind_secret_id": true,
                    // It is kept in memory for the day the token cannot be renewed.
                    "secret_id_num_uses": 0,
                });
                if !cidrs.is_empty() {
                    body["secret_id_bound_cidrs"] = json!(cidrs);
                    body["token_bound_cidrs"] = json!(cidrs);
                }
                vec![
                    mount_step("approle", mount),
                    step(
                        "the broker's role there",
                        Act::Write {
                            path: format!("auth/{mount}/role/{role}"),
                            body,
                        },
                    ),
                ]
            }
            Self::Token => Vec::new(),
        }
    }

    /// What is left to do, as comments.
    fn hint(&self, policy: &str) -> String {
        let lines = match self {
            Self::Kubernetes {
                mount,
                audience: Some(audience),
                ca,
                ..
            } => {
                let outside = ca.as_ref().map_or_else(String::new, |_| {
                    format!(
                        "\nA vault outside the cluster cannot ask about it with that very token: give auth/{mount}/config a\n\
                         token_reviewer_jwt of a service account with the role system:auth-delegator."
                    )
                });
                format!(
                    "Mount a projected service account token for the audience \"{audience}\" into the broker's pod:\n\
                     vault.login.token_file.{outside}"
                )
            }
            Self::Kubernetes { audience: None, .. } => {
                "Any token of the service account logs in. Safer is one for the vault alone: set vault.login.token_file\n\
                 to a projected token and do this again."
                    .to_owned()
            }
            Self::AppRole { mount, role, .. } => format!(
                "Then, for vault.login of the broker's configuration (with `wrapped: true`, anew for each start):\n  \
                 vault read -field=role_id auth/{mount}/role/{role}/role-id > role-id\n  \
                 (umask 077; vault write -f -wrap-ttl=15m -field=wrapping_token \\\n    \
                 auth/{mount}/role/{role}/secret-id > secret-id)"
            ),
            Self::Token => format!("Give the broker a token that has the policy {policy}: vault.login.token_file."),
        };
        format!("\n# {}\n", lines.replace('\n', "\n# "))
    }
}

impl Act {
    fn command(&self, jwt_mount: &str) -> String {
        let json = |body: &Value| serde_json::to_string_pretty(body).unwrap_or_default();
        match self {
            Self::Mount { table, path, body } => format!(
                "vault read {table}/{path} >/dev/null 2>&1 || vault write {table}/{path} - <<'END'\n{}\nEND\n",
                json(body)
            ),
            // A store that was just made gets ready for a moment.
            Self::Write { path, body } if path.ends_with("/config") && !path.starts_with("auth/") => {
                format!("sleep 1\nvault write {path} - <<'END'\n{}\nEND\n", json(body))
            }
            Self::Write { path, body } => format!("vault write {path} - <<'END'\n{}\nEND\n", json(body)),
            Self::WriteAbsent { path, body } => format!(
                "vault read {path} >/dev/null 2>&1 || vault write {path} - <<'END'\n{}\nEND\n",
                json(body)
            ),
            Self::Policy { name, text } if text.contains(ACCESSOR) => format!(
                "accessor=$(vault read -field=accessor sys/auth/{jwt_mount})\n\
                 vault policy write {name} - <<END\n{}END\n",
                text.replace(ACCESSOR, "$accessor")
            ),
            Self::Policy { name, text } => format!("vault policy write {name} - <<'END'\n{text}END\n"),
        }
    }
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Requests with an operator's token.
struct Operator<'a> {
    http: Http,
    token: &'a SecretString,
}

impl Operator<'_> {
    /// Success, or nothing there; all else is an error.
    async fn ask(&self, request: Request<'_>) -> PortResult<Answer> {
        let request = request.with(self.token);
        let answer = self.http.send(request).await?;
        if answer.is_success() || answer.is_absent() {
            return Ok(answer);
        }
        let error = fault::refusal(&self.http, &request, &answer).await;
        Err(match (answer.status, error.kind) {
            (403, _) => PortError::denied("The operator's token may not do this.").with_detail(error.detail),
            (_, PortErrorKind::Transient) => error,
            _ => PortError::invalid("The vault refuses this.").with_detail(error.detail),
        })
    }

    async fn mount(&self, table: &str, path: &str, body: &Value) -> PortResult<Change> {
        let mounts = self.ask(Request::get(table)).await?;
        let there = mounts.data(&format!("{path}/"));
        if there.is_object() {
            if covers(there, &body["type"], "type") && covers(there, &body["options"], "options") {
                return Ok(Change::Nothing);
            }
            return Err(PortError::invalid(format!(
                "At {path} there is something else already ({}); choose another mount in the broker's configuration.",
                there["type"].as_str().unwrap_or("of unknown type")
            )));
        }
        let request = bytes(body.clone())?;
        self.ask(Request::post(&format!("{table}/{path}"), &request))
            .await?;
        Ok(Change::Made)
    }

    async fn write(&self, path: &str, body: &Value) -> PortResult<Change> {
        let there = self.patiently(Request::get(path)).await?;
        if there.is_success() && includes(&there.body["data"], body) {
            return Ok(Change::Nothing);
        }
        let request = bytes(body.clone())?;
        self.patiently(Request::post(path, &request)).await?;
        Ok(if there.is_success() {
            Change::Changed
        } else {
            Change::Made
        })
    }

    async fn write_absent(&self, path: &str, body: &Value) -> PortResult<Change> {
        if self.ask(Request::get(path)).await?.is_success() {
            return Ok(Change::Nothing);
        }
        let request = bytes(body.clone())?;
        self.ask(Request::post(path, &request)).await?;
        Ok(Change::Made)
    }

    async fn policy(&self, name: &str, text: &str) -> PortResult<Change> {
        let path = format!("sys/policies/acl/{name}");
        let there = self.ask(Request::get(&path)).await?;
        if there.data("policy").as_str() == Some(text) {
            return Ok(Change::Nothing);
        }
        let request = bytes(json!({"policy": text}))?;
        self.ask(Request::post(&path, &request)).await?;
        Ok(if there.is_success() {
            Change::Changed
        } else {
            Change::Made
        })
    }

    async fn accessor(&self, jwt_mount: &str) -> PortResult<String> {
        let mounts = self.ask(Request::get("sys/auth")).await?;
        let accessor = mounts.data(&format!("{jwt_mount}/"))["accessor"].as_str();
        accessor.map(str::to_owned).ok_or_else(|| {
            PortError::invalid("The applications' log-in is not there, though it was just made.")
        })
    }

    /// Asks again while a store that was just made gets ready.
    async fn patiently(&self, request: Request<'_>) -> PortResult<Answer> {
        for _ in 1..TRIES {
            match self.ask(request).await {
                Err(error) if error.message == fault::PREPARING => tokio::time::sleep(PAUSE).await,
                done => return done,
            }
        }
        self.ask(request).await
    }
}

/// Whether a member of what is there includes what is wanted of it.
fn covers(there: &Value, wanted: &Value, member: &str) -> bool {
    wanted.is_null() || includes(&there[member], wanted)
}

/// Whether what is there has all that is wanted. Servers add members of their own, and trim texts.
fn includes(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| there.get(name).is_some_and(|there| includes(there, value))),
        (Value::String(there), Value::String(wanted)) => there.trim() == wanted.trim(),
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_there_may_have_more() {
        let wanted = json!({"a": 1, "list": ["x"], "map": {"k": "v"}, "pem": "text\n"});
        let there =
            json!({"a": 1, "list": ["x"], "map": {"k": "v", "other": 1}, "pem": "text", "more": true});
        assert!(includes(&there, &wanted));
        for (member, value) in [
            ("a", json!(2)),
            ("list", json!(["x", "y"])),
            ("map", json!({"other": 1})),
            ("pem", json!(null)),
        ] {
            let mut different = there.clone();
            different[member] = value;
            assert!(!includes(&different, &wanted), "{member}");
        }
    }

    #[test]
    fn words_of_a_shell_stay_words() {
        assert_eq!(quoted("https://vault:8200"), "'https://vault:8200'");
        assert_eq!(quoted("a'; rm x; '"), "'a'\\''; rm x; '\\'''");
    }
}
