//! The vault adapter on real Vault servers: what is set up, what the broker can do, what applications can and cannot.
//!
//! The applications' tokens are signed by a key of the test's own instead of Keycloak's; all else is as in earnest. The
//! tests of a log-in by Kubernetes need a node and are ignored unless asked for.

mod attacks;
mod bindings;
mod cluster;
pub mod server;
mod sessions;
mod setup;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chandler::adapters::vault::{BrokerLogIn, Change, LogIn, Minimum, Setup, Vault, VaultSettings};
use chandler::app::SystemClock;
use chandler::domain::delivery::BindingRef;
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::BindingVault;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use server::Server;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// The issuer of applications' tokens.
const ISSUER: &str = "https://keycloak.test/realms/osb-bindings";

/// The key that stands for the realm's.
struct Realm(RsaKeyPair);

impl Realm {
    fn new() -> Self {
        Self(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    /// As the vault is told of it.
    fn provider(&self) -> Map<String, Value> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
            STANDARD.encode(der.as_ref())
        );
        let body = json!({
            "jwt_validation_pubkeys": [pem],
            "bound_issuer": ISSUER,
            "jwt_supported_algs": ["RS256"],
        });
        body.as_object().unwrap().clone()
    }

    /// A signed token with these claims.
    fn sign(&self, claims: &Value) -> String {
        let text = unsigned("RS256", claims);
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                text.as_bytes(),
                &mut signature,
            )
            .unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Head and claims of a token.
fn unsigned(algorithm: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}",
        part(&json!({"alg": algorithm, "typ": "JWT"})),
        part(claims)
    )
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// What Keycloak puts into the token of a binding's client.
fn claims(client_id: &str) -> Value {
    json!({
        "iss": ISSUER,
        "aud": "osb-vault",
        "azp": client_id,
        "sub": "a-service-account",
        "typ": "Bearer",
        "osb_kind": "binding",
        "osb_tenant": "cf",
        "osb_instance": "an-instance",
        "iat": now(),
        "exp": now() + 120,
    })
}

fn read_secret(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(SecretString::from(text))
}

/// A vault that is set up, and the broker's client of it.
struct Scene {
    server: Server,
    realm: Realm,
    vault: Arc<Vault>,
    dir: TempDir,
}

impl Scene {
    async fn dev() -> Self {
        Self::on(Server::dev()).await
    }

    async fn on(server: Server) -> Self {
        let realm = Realm::new();
        let dir = tempfile::tempdir().unwrap();
        apply(&setup(&server, &realm, dir.path()), &server).await;
        let role_id = server
            .root("GET", "auth/approle/role/osb-broker/role-id", None)
            .await;
        std::fs::write(
            dir.path().join("role-id"),
            role_id["data"]["role_id"].as_str().unwrap(),
        )
        .unwrap();
        let secret_id = server
            .root("POST", "auth/approle/role/osb-broker/secret-id", None)
            .await;
        let secret_id = secret_id["data"]["secret_id"].as_str().unwrap();
        std::fs::write(dir.path().join("secret-id"), secret_id).unwrap();
        let vault = vault_of(settings(&server, app_role(dir.path(), false)));
        Self {
            server,
            realm,
            vault,
            dir,
        }
    }

    /// A token of the vault as the broker has one, to ask what the adapter never asks.
    async fn brokers_token(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        let body = json!({"role_id": read("role-id"), "secret_id": read("secret-id")});
        let (status, answer) = self
            .server
            .ask("POST", "auth/approle/login", "", Some(&body))
            .await;
        assert_eq!(status, 200, "{answer}");
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Logs in as an application with a token of the identity provider.
    async fn log_in(&self, jwt: &str) -> Result<String, String> {
        let body = json!({"role": "binding", "jwt": jwt});
        let (status, answer) = self
            .server
            .ask("POST", "auth/osb-jwt/login", "", Some(&body))
            .await;
        match answer["auth"]["client_token"].as_str() {
            Some(token) => Ok(token.to_owned()),
            None => Err(format!("{status} {answer}")),
        }
    }

    /// Logs in as the application of a binding.
    async fn application(&self, binding: &BindingRef) -> String {
        self.log_in(&self.realm.sign(&claims(&binding.client_id())))
            .await
            .unwrap()
    }

    /// Asks for a binding's secret.
    async fn fetch(&self, token: &str, binding: &BindingRef) -> (u16, Value) {
        let (status, answer) = self.server.ask("GET", &data(binding), token, None).await;
        (status, answer["data"]["data"].clone())
    }

    async fn publish(&self, binding: &BindingRef, generation: u32, password: &str) {
        let data = Secret::from_pairs([("password", password)]);
        let notes = [("tenant", "cf".to_owned()), ("request_id", "r-1".to_owned())];
        self.vault
            .publish(binding, generation, &data, &notes, None)
            .await
            .unwrap();
    }
}

async fn apply(setup: &Setup, server: &Server) -> Vec<(String, Change)> {
    let token = SecretString::from(server.root.as_str());
    let mut changes = Vec::new();
    let mut tell =
        |step: &chandler::adapters::vault::Step, change| changes.push((step.title.clone(), change));
    setup.apply(&token, &mut tell).await.unwrap();
    changes
}

fn setup(server: &Server, realm: &Realm, dir: &Path) -> Setup {
    Setup {
        settings: settings(server, app_role(dir, false)),
        provider: realm.provider(),
        audience: "osb-vault".to_owned(),
        broker: BrokerLogIn::AppRole {
            mount: "approle".to_owned(),
            role: "osb-broker".to_owned(),
            cidrs: Vec::new(),
        },
    }
}

fn app_role(dir: &Path, wrapped: bool) -> LogIn {
    LogIn::AppRole {
        mount: "approle".to_owned(),
        role_id_file: dir.join("role-id"),
        secret_id_file: if wrapped {
            dir.join("wrapped")
        } else {
            dir.join("secret-id")
        },
        wrapped,
    }
}

fn settings(server: &Server, login: LogIn) -> VaultSettings {
    VaultSettings {
        address: server.address.clone(),
        public_address: server.address.clone(),
        namespace: None,
        ca: server.ca.clone(),
        login,
        read_secret,
        kv_mount: "osb".to_owned(),
        internal_mount: "osb-int".to_owned(),
        instance_secrets: true,
        jwt_mount: "osb-jwt".to_owned(),
        jwt_role: "binding".to_owned(),
        request_limit: Duration::from_secs(10),
        minimum: Minimum {
            vault: "2.0.4".to_owned(),
            openbao: "2.6.2".to_owned(),
            refuse_older: false,
        },
    }
}

fn vault_of(settings: VaultSettings) -> Arc<Vault> {
    chandler::app::install_tls_provider();
    Arc::new(Vault::new(settings, Arc::new(SystemClock)).unwrap())
}

fn binding(number: usize) -> BindingRef {
    let id = number.to_string();
    BindingRef {
        tenant: "cf".to_owned(),
        iid: names::iid("cf", &id),
        bid: names::bid("cf", &id, &id),
    }
}

fn path(half: &str, binding: &BindingRef) -> String {
    format!(
        "osb/{half}/{}/{}/{}",
        binding.tenant,
        binding.iid,
        binding.client_id()
    )
}

fn data(binding: &BindingRef) -> String {
    path("data", binding)
}

/// A file below the test's directory.
fn file(dir: &TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}
