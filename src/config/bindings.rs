//! Settings for how applications get their credentials: the vault they fetch them from, the identity provider that
//! says who they are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the answer to a bind carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Where the secret is and how to fetch it. Needs `vault` and `keycloak`.
    Reference,
    /// The name of a Secret in the application's namespace. Needs the provisioner `kubernetes`.
    Secret,
    /// The credentials themselves.
    Inline,
}

/// How applications get their credentials.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bindings {
    /// Ways that are allowed where a platform names none; the first is what a bind gets that does not ask with the parameter `delivery`. Empty: `reference` then `inline` when `vault` and `keycloak` are set, else `inline`.
    pub delivery: Vec<Delivery>,
    /// Seconds that the former credentials go on working after a rotation in place.
    #[schemars(range(min = 0, max = 604_800))]
    pub rotation_grace_seconds: Option<u32>,
    /// Minutes between two comparisons of all bindings with the clients, secrets and users that are there, told in log and metrics; 0 = never. Absent: 60.
    #[schemars(range(max = 10_080))]
    pub reconcile_minutes: Option<u32>,
    /// Namespaces that Secrets may be put into (`delivery: secret`), by platform: its name → namespaces.
    pub secret_namespaces: std::collections::BTreeMap<String, Vec<String>>,
}

/// Vault or OpenBao, where applications fetch their secrets. `chandler bootstrap vault` prints what must be set up there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Vault {
    /// Its address, such as `https://vault.example.com:8200`. Plain http only on a loopback address, or with `allow_plaintext`.
    pub address: String,
    /// Address that applications use, when it is another one.
    pub public_address: Option<String>,
    /// Namespace, where the server has them.
    pub namespace: Option<String>,
    /// PEM file with the certificate authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Accept http to an address other machines can reach.
    pub allow_plaintext: bool,
    /// How the broker logs in.
    pub login: VaultLogin,
    /// Mount of the KV store (version 2) for bindings' secrets.
    pub kv_mount: String,
    /// Mount of the KV store (version 2) for instances' administrators, which no application can read.
    pub internal_mount: String,
    /// Keep the administrators' credentials of instances there, instead of sealed in the store. Those that were sealed before stay where they are; switch it off only while no instance's lie in the vault.
    pub instance_secrets: bool,
    /// Mount of the JWT log-in of applications.
    pub jwt_mount: String,
    /// Role of that log-in.
    pub jwt_role: String,
    /// Seconds one request may take.
    #[schemars(range(min = 1, max = 60))]
    pub request_seconds: u64,
    /// Lowest version of Vault that is used without a warning; lower ones have known holes in templated policies.
    pub min_vault: String,
    /// The same for OpenBao.
    pub min_openbao: String,
    /// Refuse to start with a lower version instead of warning.
    pub refuse_older: bool,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            address: String::new(),
            public_address: None,
            namespace: None,
            ca_file: None,
            allow_plaintext: false,
            login: VaultLogin::default(),
            kv_mount: "osb".into(),
            internal_mount: "osb-int".into(),
            instance_secrets: true,
            jwt_mount: "osb-jwt".into(),
            jwt_role: "binding".into(),
            request_seconds: 10,
            min_vault: "2.0.4".into(),
            min_openbao: "2.6.2".into(),
            refuse_older: false,
        }
    }
}

/// How the broker logs in to the vault.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VaultLogin {
    /// `kubernetes`, `approle` or `token`.
    pub kind: VaultLoginKind,
    /// Mount of the log-in; absent = its kind's own name.
    pub mount: Option<String>,
    /// Role of the Kubernetes log-in.
    pub role: String,
    /// File with the service account's token (`kubernetes`), or with a token of the vault (`token`, mode 0600).
    pub token_file: Option<PathBuf>,
    /// File with the role id of an AppRole.
    pub role_id_file: Option<PathBuf>,
    /// File with its secret id, mode 0600.
    pub secret_id_file: Option<PathBuf>,
    /// That file holds a wrapping token which is unwrapped once.
    pub wrapped: bool,
}

impl Default for VaultLogin {
    fn default() -> Self {
        Self {
            kind: VaultLoginKind::Kubernetes,
            mount: None,
            role: "osb-broker".into(),
            token_file: None,
            role_id_file: None,
            secret_id_file: None,
            wrapped: false,
        }
    }
}

/// The ways there are to log in to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VaultLoginKind {
    /// With the token of the broker's pod.
    Kubernetes,
    /// With a role id and a secret id.
    AppRole,
    /// With a token somebody else renews.
    Token,
}

/// Keycloak, which gives every binding a client of its own. `chandler bootstrap keycloak` prints what must be set up there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keycloak {
    /// Its address, such as `https://keycloak.example.com`, with its base path if it has one. Plain http only on a loopback address, or with `allow_plaintext`.
    pub url: String,
    /// Address that applications use, when it is another one: what the realm's issuer starts with.
    pub public_url: Option<String>,
    /// PEM file with the certificate authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Accept http to an address other machines can reach.
    pub allow_plaintext: bool,
    /// Realm of the bindings' clients, for nothing else.
    pub realm: String,
    /// The broker's own client there.
    pub client_id: String,
    /// File with its secret, mode 0600.
    pub client_secret_file: Option<PathBuf>,
    /// File with its private key (PEM, PKCS #8), mode 0600, to log in without a shared secret.
    pub private_key_file: Option<PathBuf>,
    /// Audience of bindings' tokens: what the vault's log-in asks for.
    pub audience: String,
    /// Seconds that a binding's token lives.
    #[schemars(range(min = 30, max = 3600))]
    pub token_seconds: u32,
    /// Alias of the identity provider in the realm that stands for the cluster's service accounts; absent: the parameter `client_auth: kubernetes` is refused.
    pub kubernetes_provider: Option<String>,
    /// Seconds one request may take.
    #[schemars(range(min = 1, max = 60))]
    pub request_seconds: u64,
    /// Lowest version that is used without a warning.
    pub min_version: String,
    /// Refuse to start with a lower version instead of warning.
    pub refuse_older: bool,
}

impl Default for Keycloak {
    fn default() -> Self {
        Self {
            url: String::new(),
            public_url: None,
            ca_file: None,
            allow_plaintext: false,
            realm: "osb-bindings".into(),
            client_id: "osb-broker".into(),
            client_secret_file: None,
            private_key_file: None,
            audience: "osb-vault".into(),
            token_seconds: 120,
            kubernetes_provider: None,
            request_seconds: 10,
            min_version: "26.6".into(),
            refuse_older: false,
        }
    }
}
