//! `chandler fetch` and the examples on a real Keycloak and a real Vault, set up by plain requests as docs/security.md
//! says, without any code of the broker's.

use crate::fetch_programs as programs;
use chandler::domain::names;
use data_encoding::BASE64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SECRET: &str = "Client-secret-0123456789-0123456789-012345678";

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: eval \"$(sudo -E tests/testbed/up keycloak vault)\", and run in its network"
        )
    })
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A realm and mounts of one test, and a directory for what an application gets. All of it goes with this value.
struct Ground {
    name: String,
    keycloak: String,
    vault: String,
    root: String,
    dir: TempDir,
}

impl Ground {
    /// `seconds`: how long a binding's token of Vault lives.
    async fn make(seconds: u32) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let ground = Self {
            name: format!("chandler-fetch-{}-{number}", std::process::id()),
            keycloak: variable("KEYCLOAK_URL"),
            vault: variable("VAULT_ADDR"),
            root: variable("VAULT_TOKEN"),
            dir: tempfile::tempdir().unwrap(),
        };
        let name = &ground.name;
        ground
            .admin(Method::POST, "", Some(json!({"realm": name, "enabled": true})))
            .await;
        ground
            .vault(
                "sys/mounts",
                name,
                json!({"type": "kv", "options": {"version": "2"}}),
            )
            .await;
        ground.vault("sys/auth", name, json!({"type": "jwt"})).await;
        let mounts = ground.send(Method::GET, "sys/auth", None).await;
        let accessor = mounts["data"][format!("{name}/")]["accessor"]
            .as_str()
            .unwrap()
            .to_owned();
        let own = format!("{{{{identity.entity.aliases.{accessor}.name}}}}");
        let policy = format!("path \"{name}/data/+/+/{own}\" {{ capabilities = [\"read\"] }}");
        ground
            .vault("sys/policies/acl", name, json!({"policy": policy}))
            .await;
        let issuer = ground.issuer();
        let config =
            json!({"oidc_discovery_url": issuer, "bound_issuer": issuer, "jwt_supported_algs": ["RS256"]});
        ground.vault(&format!("auth/{name}"), "config", config).await;
        let role = json!({
            "role_type": "jwt", "bound_audiences": ["osb-vault"], "user_claim": "azp", "bound_claims_type": "glob",
            "bound_claims": {"azp": "osb-b-*", "osb_kind": "binding"}, "token_policies": [name],
            "token_no_default_policy": true, "token_type": "batch", "token_ttl": format!("{seconds}s"),
            "clock_skew_leeway": 5,
        });
        ground.vault(&format!("auth/{name}"), "role/binding", role).await;
        ground
    }

    fn issuer(&self) -> String {
        format!("{}/realms/{}", self.keycloak, self.name)
    }

    /// A request to Keycloak's administration of the realm; any answer but success fails the test.
    async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let web = web();
        let (user, password) = (variable("KEYCLOAK_ADMIN"), variable("KEYCLOAK_ADMIN_PASSWORD"));
        let form = format!("grant_type=password&client_id=admin-cli&username={user}&password={password}");
        let token: Value = web
            .post(format!(
                "{}/realms/master/protocol/openid-connect/token",
                self.keycloak
            ))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let at = match (&method, path) {
            (&Method::POST, "") => format!("{}/admin/realms", self.keycloak),
            _ => format!("{}/admin/realms/{}{path}", self.keycloak, self.name),
        };
        let mut request = web
            .request(method.clone(), at)
            .bearer_auth(token["access_token"].as_str().unwrap());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = web()
            .request(method.clone(), format!("{}/v1/{path}", self.vault))
            .header("x-vault-token", &self.root);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn vault(&self, below: &str, name: &str, body: Value) {
        self.send(Method::POST, &format!("{below}/{name}"), Some(body))
            .await;
    }

    /// A binding's client at Keycloak, and its credentials in Vault. `how` goes over the client as it usually is.
    async fn bind(&self, label: &str, how: Value) -> Bound {
        let client_id = names::client_id(&names::bid("test", &self.name, label));
        let claim = json!({"claim.name": "osb_kind", "claim.value": "binding", "jsonType.label": "String", "access.token.claim": "true"});
        let audience = json!({"included.custom.audience": "osb-vault", "access.token.claim": "true"});
        let mapper = |name: &str, kind: &str, config: Value| json!({"name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": config});
        let mut client = json!({
            "clientId": client_id, "protocol": "openid-connect", "enabled": true, "publicClient": false,
            "clientAuthenticatorType": "client-secret", "secret": SECRET, "serviceAccountsEnabled": true,
            "standardFlowEnabled": false, "fullScopeAllowed": false, "defaultClientScopes": ["basic"],
            "optionalClientScopes": [], "attributes": {"access.token.lifespan": "120"},
            "protocolMappers": [
                mapper("audience", "oidc-audience-mapper", audience),
                mapper("kind", "oidc-hardcoded-claim-mapper", claim),
            ],
        });
        for (name, value) in how.as_object().unwrap() {
            client[name] = value.clone();
        }
        self.admin(Method::POST, "/clients", Some(client)).await;
        let path = format!("tenant/iiiiiiiiiiiiiiiiiiiiiiiiii/{client_id}");
        let bound = Bound {
            credentials: json!({
                "type": "postgresql", "credential_mode": "reference",
                "keycloak": {"issuer": self.issuer(), "token_uri": format!("{}/protocol/openid-connect/token", self.issuer()),
                             "client_id": client_id, "client_secret": SECRET, "grant_type": "client_credentials",
                             "audience": "osb-vault"},
                "vault": {"address": self.vault, "auth_path": self.name, "role": "binding", "kv_mount": self.name,
                          "kv_path": path, "data_path": format!("v1/{}/data/{path}", self.name)},
            }),
            client_id,
            path,
            file: self.dir.path().join(format!("{label}.json")),
        };
        fs::write(&bound.file, bound.credentials.to_string()).unwrap();
        self.publish(&bound, label).await;
        bound
    }

    /// Writes the next version of a binding's secret.
    async fn publish(&self, bound: &Bound, user: &str) {
        let path = format!("{}/data/{}", self.name, bound.path);
        self.send(Method::POST, &path, Some(json!({"data": secret(user)})))
            .await;
    }

    async fn disable(&self, bound: &Bound) {
        let found = self
            .admin(
                Method::GET,
                &format!("/clients?clientId={}", bound.client_id),
                None,
            )
            .await;
        let id = found[0]["id"].as_str().unwrap();
        let off = json!({"clientId": bound.client_id, "enabled": false});
        self.admin(Method::PUT, &format!("/clients/{id}"), Some(off))
            .await;
    }

    async fn withdraw(&self, bound: &Bound) {
        self.send(
            Method::DELETE,
            &format!("{}/metadata/{}", self.name, bound.path),
            None,
        )
        .await;
    }

    async fn remove(&self) {
        self.admin(Method::DELETE, "", None).await;
        for path in ["sys/mounts", "sys/auth", "sys/policies/acl"] {
            self.send(Method::DELETE, &format!("{path}/{}", self.name), None)
                .await;
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // A test that fails must leave nothing either, and what drops cannot wait.
        let removed = std::thread::scope(|scope| {
            let work = || tokio::runtime::Runtime::new().unwrap().block_on(self.remove());
            scope.spawn(work).join()
        });
        if removed.is_err() {
            eprintln!("the realm and mounts {} could not be removed", self.name);
        }
    }
}

/// A binding as the application was told of it.
struct Bound {
    credentials: Value,
    client_id: String,
    path: String,
    file: PathBuf,
}

fn secret(user: &str) -> Value {
    json!({
        "type": "postgresql", "host": "db.example", "port": 5432, "username": user,
        "password": format!("Password0123456789{user}"), "jdbcUrl": "jdbc:postgresql://db.example:5432/app",
    })
}

fn web() -> Client {
    chandler::app::install_tls_provider();
    Client::builder()
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .build()
        .unwrap()
}

fn program(bound: &Bound) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
    command
        .args(["fetch", "--as", "json", "--wait", "20", "--from"])
        .arg(&bound.file);
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !said.contains(SECRET) && !said.contains("Password0123456789") && !said.contains("eyJ"),
        "{said}"
    );
    output
}

#[track_caller]
fn fetches(command: &mut Command, user: &str) {
    let output = run(command);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        secret(user)
    );
}

#[track_caller]
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let last = said.trim_end().lines().last().unwrap();
    for word in words {
        assert!(last.contains(word), "{word} is missing in {said}");
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A new RSA key in PEM, and its public half as a key set.
fn key(id: &str) -> (String, Value) {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der = pair.as_der().unwrap();
    let text = BASE64.encode(der.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
    let own = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    let public = jsonwebtoken::jwk::Jwk::from_encoding_key(&own, Algorithm::RS256).unwrap();
    let mut public = serde_json::to_value(public).unwrap();
    public["kid"] = json!(id);
    public["use"] = json!("sig");
    (pem, json!({"keys": [public]}))
}

/// What a cluster says about itself and its keys, as far as Keycloak asks.
async fn cluster(keys: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let told = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/openid/v1/jwks")});
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8192];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = if asked.starts_with("GET /openid/v1/jwks ") {
                &keys
            } else {
                &told
            }
            .to_string();
            let head = format!(
                "content-type: application/json\r\ncontent-length: {}\r\nconnection: close",
                body.len()
            );
            drop(
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}").as_bytes())
                    .await,
            );
        }
    });
    issuer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_proof_leads_to_the_secret() {
    let ground = Ground::make(900).await;
    let by_secret = ground.bind("secret", json!({})).await;
    fetches(&mut program(&by_secret), "secret");

    // A key of the application's own, which its key set may name or not.
    let (pem, keys) = key("k1");
    let attributes =
        json!({"use.jwks.string": "true", "jwks.string": keys.to_string(), "access.token.lifespan": "120"});
    let how = json!({"clientAuthenticatorType": "client-jwt", "attributes": attributes});
    let by_key = ground.bind("key", how).await;
    let file = ground.dir.path().join("key.pem");
    fs::write(&file, pem).unwrap();
    fetches(
        program(&by_key)
            .arg("--private-key-file")
            .arg(&file)
            .args(["--key-id", "k1"]),
        "key",
    );
    fetches(program(&by_key).arg("--private-key-file").arg(&file), "key");
    refused(
        &mut program(&by_key),
        3,
        &["Keycloak", &by_key.client_id, "client_auth"],
    );

    // A service account's token.
    let (pem, keys) = key("cluster");
    let issuer = cluster(keys).await;
    let provider = json!({"alias": "cluster", "providerId": "kubernetes", "enabled": true, "config": {"issuer": issuer}});
    ground
        .admin(Method::POST, "/identity-provider/instances", Some(provider))
        .await;
    let subject = "system:serviceaccount:shop:orders";
    let attributes = json!({"jwt.credential.issuer": "cluster", "jwt.credential.sub": subject, "access.token.lifespan": "120"});
    let how = json!({"clientAuthenticatorType": "federated-jwt", "attributes": attributes});
    let by_token = ground.bind("token", how).await;
    let token = |subject: &str| {
        let claims = json!({"iss": issuer, "sub": subject, "aud": [ground.issuer()], "iat": now(), "nbf": now(), "exp": now() + 600});
        let header = Header {
            kid: Some("cluster".to_owned()),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(
            &header,
            &claims,
            &EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        )
        .unwrap()
    };
    let file = ground.dir.path().join("token");
    fs::write(&file, token(subject)).unwrap();
    fetches(program(&by_token).arg("--token-file").arg(&file), "token");
    fs::write(&file, token("system:serviceaccount:shop:other")).unwrap();
    refused(
        program(&by_token).arg("--token-file").arg(&file),
        3,
        &["Keycloak", "signed log-in"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_told_apart() {
    let ground = Ground::make(900).await;
    let bound = ground.bind("mine", json!({})).await;
    let other = ground.bind("other", json!({})).await;
    let with = |path: &[&str], value: Value| {
        let mut credentials = bound.credentials.clone();
        credentials[path[0]][path[1]] = value;
        fs::write(&bound.file, credentials.to_string()).unwrap();
        program(&bound)
    };
    let wrong = json!("Password0123456789-wrong");
    refused(
        &mut with(&["keycloak", "client_secret"], wrong),
        3,
        &["Keycloak", &bound.client_id, "unauthorized_client"],
    );
    let nowhere = json!(format!(
        "{}/realms/no-such-realm/protocol/openid-connect/token",
        ground.keycloak
    ));
    refused(
        &mut with(&["keycloak", "token_uri"], nowhere),
        3,
        &["Keycloak", "keycloak.token_uri"],
    );
    refused(
        &mut with(&["vault", "role"], json!("nobody")),
        4,
        &["Vault", "role `nobody`"],
    );
    refused(
        &mut with(&["vault", "auth_path"], json!("no-such-mount")),
        4,
        &["Vault", "no-such-mount"],
    );
    let others = other.credentials["vault"]["data_path"].clone();
    refused(
        &mut with(&["vault", "data_path"], others),
        4,
        &["Vault", "permission denied", "same binding"],
    );
    fetches(&mut with(&["vault", "role"], json!("binding")), "mine");

    let deaf = ground.bind("deaf", json!({"protocolMappers": []})).await;
    refused(&mut program(&deaf), 4, &["Vault", "refuses Keycloak's token"]);
    ground.withdraw(&bound).await;
    refused(&mut program(&bound), 4, &["Vault", "holds no secret", "unbound"]);
    ground.disable(&bound).await;
    refused(&mut program(&bound), 3, &["Keycloak", "invalid_client"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_follows_a_rotation_and_ends_with_the_binding() {
    // Short tokens: it must log in again and again.
    let ground = Ground::make(5).await;
    let bound = ground.bind("one", json!({})).await;
    let tree = ground.dir.path().join("tree");
    let log = ground.dir.path().join("log");
    let mut watching = Command::new(env!("CARGO_BIN_EXE_chandler"))
        .args([
            "fetch", "--as", "files", "--watch", "--every", "1", "--wait", "3", "--from",
        ])
        .arg(&bound.file)
        .arg("--to")
        .arg(&tree)
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let said = || fs::read_to_string(&log).unwrap();
    for user in ["one", "two", "three"] {
        if user != "one" {
            tokio::time::sleep(Duration::from_secs(4)).await;
            ground.publish(&bound, user).await;
        }
        while fs::read_to_string(tree.join("username")).ok().as_deref() != Some(user) {
            if Instant::now() > end || watching.try_wait().unwrap().is_some() {
                watching.kill().unwrap();
                panic!("{user} does not come: {}", said());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(
            fs::read_to_string(tree.join("password")).unwrap(),
            format!("Password0123456789{user}")
        );
    }
    assert!(!said().contains("tried again"), "{}", said());
    ground.disable(&bound).await;
    ground.withdraw(&bound).await;
    let code = loop {
        match watching.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() > end => {
                watching.kill().unwrap();
                panic!("it goes on: {}", said());
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(matches!(code, Some(3 | 4)), "{code:?}: {}", said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_work_on_real_servers() {
    let ground = Ground::make(900).await;
    let bound = ground.bind("example", json!({})).await;
    let all = [
        ("shell", programs::shell()),
        ("Python", programs::python()),
        ("Node", programs::node()),
        ("Go", programs::go()),
        ("Spring", spring()),
    ];
    for (name, program) in all {
        let Some(program) = program else { continue };
        let output = run(program().env("BINDING", &bound.file));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        let shown = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            shown, "postgresql at db.example:5432 as example, version 1\n",
            "{name}: {said}"
        );
    }
}

/// The jar that `tests/platform/spring.sh` builds; said loudly where there is none.
fn spring() -> Option<programs::Program> {
    let built = Command::new("bash")
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/platform/spring.sh"))
        .output()
        .unwrap();
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr);
        eprintln!("NOT RUN: the Spring example needs a JDK, Maven and Spring's jars: {why}");
        return None;
    }
    let jar = String::from_utf8(built.stdout).unwrap().trim().to_owned();
    Some(Box::new(move || {
        let mut command = Command::new("java");
        command.args(["-XX:TieredStopAtLevel=1", "-jar", &jar]);
        command
    }))
}
