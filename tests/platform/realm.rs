//! A realm of its own for each test, on the Keycloak that the variables name, made as an operator makes it
//! (`chandler bootstrap keycloak`) and removed at the end.

use chandler::adapters::keycloak::{
    BrokerProof, Done, Keycloak, KeycloakSettings, Operator, Plan, Proof, ReadSecret, Setup,
};
use chandler::app::SystemClock;
use chandler::domain::delivery::{BindingRef, ClientAuth};
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{BindingIdentity, Finding, Grade, IdentitySpec, PortErrorKind, PortResult};
use data_encoding::BASE64URL_NOPAD;
use reqwest::Client;
use serde_json::{Value, json};
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The secret of the broker's client in these realms.
pub const BROKER_SECRET: &str = "broker-secret-0123456789-0123456789-0123456789";

const ADVICE: &str = "start a Keycloak: eval \"$(sudo -E tests/testbed/up keycloak vault)\"";

/// What a variable of the testbed says.
pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: {ADVICE}"))
}

/// A secret that is always the same.
pub fn fixed(text: &str) -> ReadSecret {
    let text = text.to_owned();
    Arc::new(move || Ok(text.clone().into()))
}

/// Where a Keycloak is and who its administrator is.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub admin: String,
    pub password: String,
    pub ca_pem: Option<Vec<u8>>,
}

impl Place {
    /// The testbed's.
    pub fn testbed() -> Self {
        Self {
            url: variable("KEYCLOAK_URL"),
            admin: variable("KEYCLOAK_ADMIN"),
            password: variable("KEYCLOAK_ADMIN_PASSWORD"),
            ca_pem: None,
        }
    }

    pub fn operator(&self) -> Setup {
        let operator = Operator::Person {
            username: self.admin.clone(),
            password: fixed(&self.password),
        };
        let limit = Duration::from_secs(30);
        Setup::new(&self.url, self.ca_pem.as_deref(), limit, "master", operator).unwrap()
    }
}

/// A client without surprises: no redirects, no proxy, bounded.
pub fn web(ca_pem: Option<&[u8]>) -> Client {
    chandler::app::install_tls_provider();
    let authorities = ca_pem.map(|pem| reqwest::Certificate::from_pem_bundle(pem).unwrap());
    Client::builder()
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_merge(authorities.unwrap_or_default())
        .build()
        .unwrap()
}

/// Sends a form, as a token endpoint wants it.
pub async fn post_form(web: &Client, url: &str, fields: &[(&str, &str)]) -> (u16, Value) {
    let body: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            format!("{name}={value}")
        })
        .collect();
    let answer = web
        .post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.join("&"))
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

/// The claims of a token, unverified.
pub fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

/// A realm that goes when this is dropped.
pub struct Realm {
    pub place: Place,
    pub name: String,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Realm {
    /// A plan for a realm of a new name, with the broker's usual secret.
    pub fn plan() -> Plan {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Plan {
            realm: format!("chandler-test-{}-{number}", std::process::id()),
            client_id: "osb-broker".into(),
            proof: BrokerProof::Secret(BROKER_SECRET.into()),
            kubernetes: None,
            min_version: "26.6".into(),
            refuse_older: false,
        }
    }

    /// A realm of the testbed's Keycloak, as the plan says.
    pub async fn of(plan: &Plan) -> Self {
        Self::at(Place::testbed(), plan).await
    }

    pub async fn at(place: Place, plan: &Plan) -> Self {
        let realm = Self {
            place,
            name: plan.realm.clone(),
        };
        realm.apply(plan).await;
        realm
    }

    /// The usual one.
    pub async fn make() -> Self {
        Self::of(&Self::plan()).await
    }

    /// Applies a plan and returns what was said.
    pub async fn apply(&self, plan: &Plan) -> Vec<Done> {
        let mut told = Vec::new();
        let applied = self.place.operator().apply(plan, |done| told.push(done)).await;
        applied.unwrap_or_else(|why| panic!("{why}: {}", why.detail));
        told
    }

    pub fn settings(&self) -> KeycloakSettings {
        KeycloakSettings {
            url: self.place.url.clone(),
            public_url: self.place.url.clone(),
            ca_pem: self.place.ca_pem.clone(),
            realm: self.name.clone(),
            client_id: "osb-broker".into(),
            proof: Proof::Secret(fixed(BROKER_SECRET)),
            audience: "osb-vault".into(),
            token_seconds: 120,
            kubernetes_provider: None,
            request_time: Duration::from_secs(10),
            min_version: "26.6".into(),
            refuse_older: false,
        }
    }

    pub fn keycloak(&self) -> Keycloak {
        Self::keycloak_with(self.settings())
    }

    pub fn keycloak_with(settings: KeycloakSettings) -> Keycloak {
        chandler::app::install_tls_provider();
        Keycloak::new(settings, Arc::new(SystemClock)).unwrap()
    }

    /// A client that trusts this Keycloak.
    pub fn web(&self) -> Client {
        web(self.place.ca_pem.as_deref())
    }

    pub fn issuer(&self) -> String {
        format!("{}/realms/{}", self.place.url, self.name)
    }

    pub fn token_uri(&self) -> String {
        format!("{}/protocol/openid-connect/token", self.issuer())
    }

    /// Asks the token endpoint as an application with a secret does.
    pub async fn log_in(&self, client_id: &str, secret: &str) -> (u16, Value) {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("client_secret", secret),
        ];
        post_form(&self.web(), &self.token_uri(), &fields).await
    }

    /// Asks it with an assertion.
    pub async fn assert(&self, assertion: &str) -> (u16, Value) {
        let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", kind),
            ("client_assertion", assertion),
        ];
        post_form(&self.web(), &self.token_uri(), &fields).await
    }

    /// An access token of a binding that has a secret.
    pub async fn token(&self, spec: &IdentitySpec) -> String {
        let secret = spec.secret.text("client_secret");
        let (status, answer) = self.log_in(&spec.binding.client_id(), secret).await;
        assert_eq!(status, 200, "{answer}");
        answer["access_token"].as_str().unwrap().to_owned()
    }

    /// One call as the server's administrator, below this realm; the status with the answer.
    pub async fn admin(&self, method: &str, below: &str, body: Option<Value>) -> (u16, Value) {
        let fields = [
            ("grant_type", "password"),
            ("client_id", "admin-cli"),
            ("username", &self.place.admin),
            ("password", &self.place.password),
        ];
        let master = format!("{}/realms/master/protocol/openid-connect/token", self.place.url);
        let (status, granted) = post_form(&self.web(), &master, &fields).await;
        assert_eq!(status, 200, "{granted}");
        let url = format!("{}/admin/realms/{}{below}", self.place.url, self.name);
        let method = method.parse().unwrap();
        let mut request = self
            .web()
            .request(method, url)
            .bearer_auth(granted["access_token"].as_str().unwrap());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// A client as it is stored.
    pub async fn client(&self, client_id: &str) -> Option<Value> {
        let (status, found) = self
            .admin("GET", &format!("/clients?clientId={client_id}"), None)
            .await;
        assert_eq!(status, 200, "{found}");
        let mut found = found.as_array().unwrap().clone();
        assert!(found.len() < 2, "two clients are called {client_id}");
        found.pop()
    }
}

impl Drop for Realm {
    fn drop(&mut self) {
        let (place, name) = (self.place.clone(), self.name.clone());
        // A test that panics is in the middle of its own runtime: this is done beside it.
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async { place.operator().remove_realm(&name).await })
        })
        .join();
        if !matches!(removed, Ok(Ok(()))) {
            eprintln!("the realm {} is left behind: {removed:?}", self.name);
        }
    }
}

/// The `number`th binding of one instance.
pub fn binding(number: usize) -> BindingRef {
    BindingRef {
        tenant: "cf".into(),
        iid: names::iid("cf", "instance"),
        bid: names::bid("cf", "instance", &number.to_string()),
    }
}

/// A binding with a secret.
pub fn spec(keycloak: &Keycloak, number: usize) -> IdentitySpec {
    spec_with(keycloak, number, ClientAuth::ClientSecret)
}

pub fn spec_with(keycloak: &Keycloak, number: usize, auth: ClientAuth) -> IdentitySpec {
    let secret: Secret = keycloak.generate(&auth).unwrap();
    IdentitySpec {
        binding: binding(number),
        label: "postgres/small".into(),
        auth,
        secret,
    }
}

/// Calls as the engine does, until it succeeds: what may pass is tried again, anything else is a failure.
pub async fn settle<T, F: Future<Output = PortResult<T>>>(what: &str, mut call: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match call().await {
            Ok(done) => return done,
            Err(why) => {
                let may_pass = matches!(why.kind, PortErrorKind::Transient | PortErrorKind::Conflict);
                assert!(may_pass, "{what}: {why:?}");
                assert!(Instant::now() < deadline, "{what}: {why:?}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Signs a JWT with a key in PEM form.
pub fn signed(
    key: &jsonwebtoken::EncodingKey,
    algorithm: jsonwebtoken::Algorithm,
    kid: &str,
    claims: &Value,
) -> String {
    let mut header = jsonwebtoken::Header::new(algorithm);
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

/// A new RSA key and its public half as a key set with this id.
pub fn rsa(kid: &str) -> (jsonwebtoken::EncodingKey, Value) {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der = pair.as_der().unwrap();
    let pem = pem_of(der.as_ref());
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::RS256).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    jwk["kid"] = json!(kid);
    jwk["use"] = json!("sig");
    (key, json!({"keys": [jwk]}))
}

fn pem_of(der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    use chandler::ports::Clock;
    SystemClock.now() / 1000
}

/// The worst that a look found.
pub fn worst(found: &[Finding]) -> Grade {
    found.iter().map(|finding| finding.grade).max().unwrap()
}

/// How bad the one finding is that says this.
pub fn said(found: &[Finding], what: &str) -> Grade {
    let matching = found.iter().find(|finding| finding.text.contains(what));
    matching
        .unwrap_or_else(|| panic!("nothing says {what:?}: {found:#?}"))
        .grade
}
