//! `s3` on a MinIO server: the contract, what roles allow, and ways back in that must be closed.

use crate::contract::{self, Bound, Kit, Server, Session, grant, now, settle};
use crate::s3_client::Client;
use crate::servers::Minio as Running;
use crate::support::endpoint;
use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use chandler::adapters::credentials::s3::S3;
use chandler::app::SystemClock;
use chandler::domain::instance::Millis;
use chandler::domain::secret::Secret;
use chandler::ports::{Clock, CredentialMechanism, Grant, NewUser, PortErrorKind, Target};
use serde_json::{Map, Value, json};
use std::num::NonZeroU32;
use std::sync::Arc;

struct Minio {
    running: Running,
    mechanism: S3,
    admin: Secret,
    region: String,
}

impl Minio {
    fn start(region: &str) -> Self {
        let mechanism = S3::new(Arc::new(SystemClock));
        let admin = mechanism.generate_admin(&Map::new()).unwrap();
        Self {
            running: Running::start(admin.text("password"), region),
            mechanism,
            admin,
            region: region.to_owned(),
        }
    }

    async fn prepared() -> Self {
        let server = Self::start("us-east-1");
        let target = server.target();
        settle("prepare", || server.mechanism.prepare(&target)).await;
        server
    }

    fn client(&self, id: &str, secret: &str) -> Client {
        Client {
            authority: format!("127.0.0.1:{}", self.running.port),
            region: self.region.clone(),
            id: id.to_owned(),
            secret: secret.to_owned(),
            token: None,
        }
    }

    fn client_of(&self, bound: &Bound) -> Client {
        let secret = &bound.user.secret;
        self.client(secret.text("access_key_id"), secret.text("secret_access_key"))
    }

    fn root(&self) -> Client {
        self.client(self.admin.text("username"), self.admin.text("password"))
    }
}

struct S3Session(Client);

#[async_trait]
impl Session for S3Session {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        match self.0.send("PUT", &format!("/data/{key}"), "", value).await {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        }
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.0.send("GET", &format!("/data/{key}"), "", "").await {
            (200, body) => Ok(Some(body)),
            (404, _) => Ok(None),
            (status, body) => Err(format!("{status} {body}")),
        }
    }

    async fn alive(&mut self) -> bool {
        self.0.send("GET", "/data", "list-type=2&max-keys=1", "").await.0 == 200
    }
}

#[async_trait]
impl Server for Minio {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.mechanism
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.running.port);
        let settings = json!({"bucket": "data", "region": self.region});
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: settings.as_object().unwrap().clone(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let (id, secret) = (
            user.secret.text("access_key_id"),
            user.secret.text("secret_access_key"),
        );
        let mut session = S3Session(self.client(id, secret));
        if session.alive().await {
            Ok(Box::new(session))
        } else {
            Err("the keys are refused".to_owned())
        }
    }
}

/// A body as MinIO's administration wants it, of less than 16 KiB; written apart from the mechanism's.
fn encrypted(secret_key: &str, plain: &[u8]) -> Vec<u8> {
    let (salt, nonce) = ([1; 32], [2; 8]);
    let mut key = [0; 32];
    let rounds = NonZeroU32::new(8192).unwrap();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        secret_key.as_bytes(),
        &mut key,
    );
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let numbered = |counter: u8| {
        let counter = [counter, 0, 0, 0];
        Nonce::try_assume_unique_for_key(&[&nonce[..], &counter].concat()).unwrap()
    };
    let tag = key
        .seal_in_place_separate_tag(numbered(0), Aad::empty(), &mut [])
        .unwrap();
    let associated = [&[0x80], tag.as_ref()].concat();
    let mut chunk = plain.to_vec();
    key.seal_in_place_append_tag(numbered(1), Aad::from(associated), &mut chunk)
        .unwrap();
    [&salt[..], &[2], &nonce, &chunk].concat()
}

fn scoped(label: &str, role: &str, prefix: &str) -> Grant {
    let mut grant = grant(label, role);
    grant.params.insert("prefix".to_owned(), json!(prefix));
    grant
}

#[tokio::test]
async fn minio_keeps_the_contract() {
    contract::whole_life(&Minio::start("us-east-1")).await;
}

#[tokio::test]
async fn another_region_works_too() {
    let server = Minio::start("eu-central-1");
    let target = server.target();
    settle("prepare", || server.mechanism.prepare(&target)).await;
    let kit = Kit::new(&server);
    let bound = kit.bind(grant("there", "owner")).await;
    let (status, body) = server
        .client_of(&bound)
        .send("GET", "/data", "location=", "")
        .await;
    assert!(status == 200 && body.contains("eu-central-1"), "{status} {body}");
}

#[tokio::test]
async fn roles_allow_what_they_say_and_no_more() {
    let server = Minio::prepared().await;
    let kit = Kit::new(&server);
    let root = server.root();
    assert_eq!(root.send("PUT", "/data/k", "", "v").await.0, 200);
    assert_eq!(root.send("PUT", "/other", "", "").await.0, 200);
    assert_eq!(root.send("PUT", "/other/k", "", "v").await.0, 200);
    let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let opening = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":["*"]},"Action":["s3:GetObject"],"Resource":["arn:aws:s3:::data/*"]}]}"#;
    // What is asked, and the roles that may.
    let all = &["owner", "readwrite", "readonly"][..];
    let writers = &["owner", "readwrite"][..];
    let calls: &[(&str, &str, &str, &str, &[&str])] = &[
        ("GET", "/data", "list-type=2", "", all),
        ("HEAD", "/data", "", "", all),
        ("GET", "/data", "location=", "", all),
        ("GET", "/data", "uploads=", "", all),
        ("GET", "/data/k", "", "", all),
        ("PUT", "/data/new", "", "v", writers),
        (
            "PUT",
            "/data/k",
            "tagging=",
            "<Tagging><TagSet></TagSet></Tagging>",
            writers,
        ),
        ("POST", "/data/big", "uploads=", "", writers),
        ("DELETE", "/data/gone", "", "", writers),
        ("GET", "/data", "versioning=", "", &["owner"]),
        ("PUT", "/data", "versioning=", versioning, &["owner"]),
        ("PUT", "/data", "policy=", opening, &[]),
        ("DELETE", "/data", "policy=", "", &[]),
        ("DELETE", "/data", "", "", &[]),
        ("PUT", "/mine", "", "", &[]),
        ("GET", "/other", "list-type=2", "", &[]),
        ("GET", "/other/k", "", "", &[]),
        ("GET", "/minio/admin/v3/list-users", "", "", &[]),
        ("GET", "/minio/admin/v3/info", "", "", &[]),
        ("DELETE", "/minio/admin/v3/remove-user", "accessKey=b_x", "", &[]),
    ];
    for role in all {
        let bound = kit.bind(grant(role, role)).await;
        let client = server.client_of(&bound);
        for (method, path, query, body, may) in calls {
            let (status, answer) = client.send(method, path, query, body).await;
            let what = format!("{role}: {method} {path}?{query}: {status} {answer}");
            if may.contains(role) {
                assert!((200..300).contains(&status), "{what}");
            } else {
                assert_eq!(status, 403, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_prefix_keeps_bindings_apart() {
    let server = Minio::prepared().await;
    let kit = Kit::new(&server);
    let root = server.root();
    for key in ["shop/k", "shopping/k", "other"] {
        assert_eq!(root.send("PUT", &format!("/data/{key}"), "", "v").await.0, 200);
    }
    for role in ["owner", "readonly"] {
        let bound = kit.bind(scoped(role, role, "shop/")).await;
        let client = server.client_of(&bound);
        assert_eq!(client.send("GET", "/data/shop/k", "", "").await.0, 200);
        let (status, listed) = client
            .send("GET", "/data", "list-type=2&prefix=shop%2F", "")
            .await;
        assert!(
            status == 200 && listed.contains("shop/k") && !listed.contains("shopping"),
            "{listed}"
        );
        for (path, query) in [
            ("/data/shopping/k", ""),
            ("/data/other", ""),
            ("/data", "list-type=2"),
            ("/data", "list-type=2&prefix=shop"),
            ("/data", "versioning="),
        ] {
            assert_eq!(
                client.send("GET", path, query, "").await.0,
                403,
                "{role} {path} {query}"
            );
        }
        assert_eq!(client.send("PUT", "/data/other", "", "x").await.0, 403);
        let written = client.send("PUT", "/data/shop/new", "", "x").await.0;
        assert_eq!(written == 200, role == "owner", "{role}: {written}");
    }
}

#[tokio::test]
async fn a_binding_makes_no_way_in_that_outlives_it() {
    let server = Minio::prepared().await;
    let mut kit = Kit::new(&server);
    let bound = kit.bind(grant("sly", "owner")).await;
    let client = server.client_of(&bound);
    // Keys of its own, a password of its own, another user: the first two a user may do for itself unless denied.
    let own = format!("accessKey={}", client.id);
    let keys = json!({"accessKey": "slyslysly", "secretKey": "slyslysly"}).to_string();
    let password = json!({"secretKey": "slyslysly", "status": "enabled"}).to_string();
    for (call, query, body) in [
        ("add-service-account", "", &keys),
        ("add-user", own.as_str(), &password),
        ("add-user", "accessKey=somebody", &password),
    ] {
        let path = format!("/minio/admin/v3/{call}");
        let body = encrypted(&client.secret, body.as_bytes());
        let (status, answer) = client.send("PUT", &path, query, &body).await;
        assert_eq!(status, 403, "{call}: {answer}");
        // As it is asked, it works for who may.
        let root = server.root();
        let body = encrypted(
            &root.secret,
            if call == "add-user" { &password } else { &keys }.as_bytes(),
        );
        if query != own {
            assert_eq!(root.send("PUT", &path, query, &body).await.0, 200, "{call}");
        }
    }
    // Temporary keys cannot be denied; they must end with the user.
    let form = "Action=AssumeRole&Version=2011-06-15&DurationSeconds=3600";
    let (status, answer) = client.send_to("sts", "POST", "/", "", form).await;
    assert_eq!(status, 200, "{answer}");
    let member = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    let temporary = Client {
        id: member("AccessKeyId"),
        secret: member("SecretAccessKey"),
        token: Some(member("SessionToken")),
        ..client.clone()
    };
    assert_eq!(temporary.send("GET", "/data", "list-type=2", "").await.0, 200);
    kit.revoke(&bound).await;
    assert_eq!(temporary.send("GET", "/data", "list-type=2", "").await.0, 403);
    assert_eq!(temporary.send("PUT", "/data/k", "", "v").await.0, 403);
    assert_eq!(client.send_to("sts", "POST", "/", "", form).await.0, 403);
    // Nothing of it is left, its policy neither.
    let (_, policies) = server
        .root()
        .send("GET", "/minio/admin/v3/list-canned-policies", "", "")
        .await;
    assert!(
        policies.contains("consoleAdmin") && !policies.contains("b_"),
        "{policies}"
    );
}

#[tokio::test]
async fn issuing_again_states_everything_anew() {
    let server = Minio::prepared().await;
    let kit = Kit::new(&server);
    let bound = kit.bind(grant("again", "owner")).await;
    let client = server.client_of(&bound);
    // What somebody changed by hand: status and rights.
    let root = server.root();
    let disable = format!("accessKey={}&status=disabled", client.id);
    assert_eq!(
        root.send("PUT", "/minio/admin/v3/set-user-status", &disable, "")
            .await
            .0,
        200
    );
    assert_eq!(client.send("GET", "/data", "list-type=2", "").await.0, 403);
    kit.issue(&bound).await;
    assert_eq!(client.send("PUT", "/data/k", "", "v").await.0, 200);
    // The same user with less.
    let less = Bound {
        grant: grant("again", "readonly"),
        user: bound.user.clone(),
    };
    kit.issue(&less).await;
    assert_eq!(client.send("PUT", "/data/k", "", "v").await.0, 403);
    assert_eq!(client.send("GET", "/data/k", "", "").await.0, 200);
}

#[tokio::test]
async fn hundreds_of_users_are_listed() {
    let server = Minio::prepared().await;
    let kit = Kit::new(&server);
    // The list is longer than one encrypted chunk of 16 KiB.
    let bounds: Vec<_> = (0..200)
        .map(|n| kit.generate(grant(&n.to_string(), "readonly")))
        .collect();
    let target = server.target();
    for bound in &bounds {
        server
            .mechanism
            .issue(&target, &bound.grant, &bound.user)
            .await
            .unwrap();
    }
    kit.exist(&bounds.iter().collect::<Vec<_>>()).await;
}

struct Late;

impl Clock for Late {
    fn now(&self) -> Millis {
        now() - 3_600_000
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_and_no_secret_with_it() {
    let server = Minio::prepared().await;
    let target = server.target();
    let wrong = Target {
        admin: server.mechanism.generate_admin(&Map::new()).unwrap(),
        ..target.clone()
    };
    let elsewhere = Target {
        settings: json!({"bucket": "absent"}).as_object().unwrap().clone(),
        ..target.clone()
    };
    let kit = Kit::new(&server);
    let bound = kit.bind(grant("someone", "readonly")).await;
    let late = S3::new(Arc::new(Late));
    for (what, result, kind) in [
        (
            "wrong admin",
            server.mechanism.prepare(&wrong).await,
            PortErrorKind::Denied,
        ),
        (
            "wrong admin lists",
            server.mechanism.list(&wrong).await.map(drop),
            PortErrorKind::Denied,
        ),
        ("slow clock", late.prepare(&target).await, PortErrorKind::Denied),
        (
            "another bucket",
            server
                .mechanism
                .verify(&elsewhere, &bound.grant, &bound.user)
                .await,
            PortErrorKind::Denied,
        ),
    ] {
        let error = result.expect_err(what);
        assert_eq!(error.kind, kind, "{what}: {error:?}");
        for secret in [&server.admin, &wrong.admin, &bound.user.secret] {
            for value in secret
                .expose()
                .values()
                .filter_map(Value::as_str)
                .filter(|v| v.len() > 28)
            {
                assert!(!format!("{error:?}").contains(value), "{what}: {error:?}");
            }
        }
    }
    let error = late.prepare(&target).await.unwrap_err();
    assert!(error.message.contains("clocks"), "{error}");
}
