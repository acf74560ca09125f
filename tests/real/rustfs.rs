//! `s3` on a fake of RustFS: its own admin path, plain bodies, and "internal error" where MinIO says "not there".
//!
//! It knows users by their ids and policies by name; whether signatures are right is shown on MinIO (`tests/platform`).

use crate::contract::{Kit, Server, Session, grant, settle};
use crate::fake::{Call, Fake};
use crate::support::endpoint;
use async_trait::async_trait;
use chandler::adapters::credentials::s3::S3;
use chandler::app::SystemClock;
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, NewUser, PortErrorKind, Target};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct State {
    buckets: Vec<String>,
    policies: BTreeMap<String, Value>,
    /// Secret key, and the policy once there is one.
    users: BTreeMap<String, (String, Option<String>)>,
}

impl State {
    fn answer(&mut self, call: &Call) -> (u16, String) {
        let id = call
            .authorization
            .split_once("Credential=")
            .map_or("", |(_, rest)| rest);
        let id = id.split('/').next().unwrap().to_owned();
        let no_user = || {
            (
                404,
                "<Error><Code>XMinioAdminNoSuchUser</Code></Error>".to_owned(),
            )
        };
        let done = || (200, String::new());
        if let Some(admin_call) = call.path.strip_prefix("/rustfs/admin/v3/") {
            if id != "chandler" {
                return (403, "<Error><Code>AccessDenied</Code></Error>".to_owned());
            }
            let name = call.query.get("accessKey").cloned().unwrap_or_default();
            let plain = || serde_json::from_slice::<Value>(&call.body).unwrap();
            return match (call.method.as_str(), admin_call) {
                ("PUT", "add-canned-policy") => {
                    self.policies.insert(call.query["name"].clone(), plain());
                    done()
                }
                ("DELETE", "remove-canned-policy") => {
                    self.policies.remove(&call.query["name"]);
                    done()
                }
                ("PUT", "add-user") => {
                    let secret = plain()["secretKey"].as_str().unwrap().to_owned();
                    self.users.insert(name, (secret, None));
                    done()
                }
                ("PUT", "set-user-or-group-policy") => match self.users.get_mut(&call.query["userOrGroup"]) {
                    Some(user) if self.policies.contains_key(&call.query["policyName"]) => {
                        user.1 = Some(call.query["policyName"].clone());
                        done()
                    }
                    _ => no_user(),
                },
                ("GET", "user-info") if self.users.contains_key(&name) => (200, "{}".to_owned()),
                ("GET", "user-info") => no_user(),
                ("DELETE", "remove-user") if self.users.remove(&name).is_some() => done(),
                ("DELETE", "remove-user") => (500, "<Error><Code>InternalError</Code></Error>".to_owned()),
                ("GET", "list-users") => {
                    let users = self
                        .users
                        .keys()
                        .map(|user| (user.clone(), json!({"status": "enabled"})));
                    (200, Value::Object(users.collect()).to_string())
                }
                _ => (404, String::new()),
            };
        }
        let bucket = call.path.trim_start_matches('/').to_owned();
        match call.method.as_str() {
            "PUT" if id == "chandler" && self.buckets.contains(&bucket) => (
                409,
                "<Error><Code>BucketAlreadyOwnedByYou</Code></Error>".to_owned(),
            ),
            "PUT" if id == "chandler" => {
                self.buckets.push(bucket);
                done()
            }
            "GET" if self.users.get(&id).is_some_and(|user| user.1.is_some()) => done(),
            _ => (403, "<Error><Code>InvalidAccessKeyId</Code></Error>".to_owned()),
        }
    }
}

struct RustFs {
    fake: Fake,
    state: Arc<Mutex<State>>,
    mechanism: S3,
    admin: Secret,
}

impl RustFs {
    fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let mechanism = S3::new(Arc::new(SystemClock));
        let admin = mechanism.generate_admin(&Map::new()).unwrap();
        Self {
            fake: Fake::serve(move |call| shared.lock().unwrap().answer(call)),
            state,
            mechanism,
            admin,
        }
    }
}

#[async_trait]
impl Server for RustFs {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.mechanism
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.fake.port);
        let settings = json!({"bucket": "data", "admin_api": "rustfs"});
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
        Err(format!(
            "{} has nothing to log in to: the fake keeps no objects",
            user.handle
        ))
    }
}

#[tokio::test]
async fn rustfs_gets_plain_bodies_on_its_own_path() {
    let server = RustFs::start();
    let target = server.target();
    for _ in 0..2 {
        settle("prepare", || server.mechanism.prepare(&target)).await;
    }
    let mut kit = Kit::new(&server);
    let bound = kit.bind(grant("one", "readonly")).await;
    kit.issue(&bound).await;
    kit.exist(&[&bound]).await;
    {
        let state = server.state.lock().unwrap();
        let (secret, policy) = &state.users[&bound.user.handle];
        assert_eq!(secret, bound.user.secret.text("secret_access_key"));
        assert_eq!(policy.as_deref(), Some(bound.user.handle.as_str()));
        let policy = state.policies[&bound.user.handle].to_string();
        assert!(policy.contains("s3:GetObject") && !policy.contains("s3:PutObject"));
        assert_eq!(state.buckets, ["data"]);
    }
    for _ in 0..2 {
        kit.revoke(&bound).await;
        kit.refused(&bound).await;
    }
    kit.exist(&[]).await;
    assert!(server.state.lock().unwrap().policies.is_empty());
}

#[tokio::test]
async fn a_user_that_goes_while_it_is_made_is_a_conflict() {
    let server = RustFs::start();
    let target = server.target();
    server.mechanism.prepare(&target).await.unwrap();
    // Another server in front, on which the user is gone when it comes to linking it.
    let state = server.state.clone();
    let between = Fake::serve(move |call| {
        let mut state = state.lock().unwrap();
        if call.path.ends_with("set-user-or-group-policy") {
            state.users.clear();
        }
        state.answer(call)
    });
    let target = Target {
        endpoint: endpoint("client", between.port),
        ..target
    };
    let bound = Kit::new(&server).generate(grant("one", "owner"));
    let issued = server.mechanism.issue(&target, &bound.grant, &bound.user).await;
    assert_eq!(issued.unwrap_err().kind, PortErrorKind::Conflict);
}
