//! `couchdb` on a strict fake: CouchDB itself comes from no package. Servers that run are tried in `tests/platform`.

pub mod client;
pub mod fake;

use crate::contract::{self, Kit, Server as _, Session as _, grant, settle};
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, PortErrorKind, Target};
use client::{Couch, admin};
use fake::FakeCouch;
use serde_json::{Map, json};

struct Running {
    fake: FakeCouch,
    couch: Couch,
}

fn start(open_users: bool) -> Running {
    let admin = admin();
    let fake = FakeCouch::start(admin.clone(), open_users);
    let couch = Couch::at(fake.server.port, admin);
    Running { fake, couch }
}

async fn prepared() -> Running {
    let running = start(false);
    let target = running.couch.target();
    settle("prepare", || running.couch.mechanism.prepare(&target)).await;
    running
}

impl Running {
    /// Writes since the last call.
    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.fake.state.lock().unwrap().writes)
    }
}

#[tokio::test]
async fn couchdb_keeps_the_contract() {
    contract::whole_life(&start(false).couch).await;
}

#[tokio::test]
async fn bindings_touch_only_their_own_document() {
    let running = prepared().await;
    let mut kit = Kit::new(&running.couch);
    running.writes();
    let bound = kit.bind(grant("one", "readonly")).await;
    let path = format!("/_users/org.couchdb.user:{}", bound.user.handle);
    assert_eq!(running.writes(), [format!("PUT {path}")]);
    // What is right is left alone: a new password hash would end the user's cookie sessions.
    kit.issue(&bound).await;
    let target = running.couch.target();
    running.couch.mechanism.prepare(&target).await.unwrap();
    let writes = running.writes();
    let harmless = |write: &String| ["PUT /_users", "PUT /app"].contains(&write.as_str());
    assert!(writes.iter().all(harmless), "{writes:?}");
    kit.revoke(&bound).await;
    assert_eq!(running.writes(), [format!("DELETE {path}")]);
}

#[tokio::test]
async fn what_somebody_changed_is_put_right_by_the_next_issue() {
    let running = prepared().await;
    let kit = Kit::new(&running.couch);
    let owner = kit.bind(grant("owner", "owner")).await;
    let reader = kit.bind(grant("reader", "readonly")).await;
    let mut session = running.couch.client(&reader.user.secret);
    assert!(session.write("k", "v").await.is_err());
    // The owner lets everybody in and everybody write.
    let client = running.couch.client(&owner.user.secret);
    let everybody = json!({"admins": {"roles": ["app_owner"]}, "members": {}});
    assert_eq!(client.send("PUT", "/app/_security", Some(everybody)).await.0, 200);
    let open = json!({"validate_doc_update": "function () {}"});
    client.put("/app/_design/chandler_roles", open).await.unwrap();
    session.write("k", "v").await.unwrap();
    kit.issue(&owner).await;
    assert!(session.write("k", "w").await.is_err());
    assert_eq!(
        client.send("GET", "/app/_security", None).await.1["members"]["roles"],
        json!(["app_owner", "app_readwrite", "app_readonly"])
    );
    // A password or a role that somebody changed in the user's document.
    let admin = running.couch.client(&running.couch.admin);
    let path = format!("/_users/org.couchdb.user:{}", reader.user.handle);
    for document in [
        json!({"type": "user", "name": reader.user.handle, "roles": ["app_readonly"], "password": "other"}),
        json!({"type": "user", "name": reader.user.handle, "roles": ["app_owner"],
               "password": reader.user.secret.text("password")}),
    ] {
        admin.put(&path, document).await.unwrap();
        let (mechanism, target) = (&running.couch.mechanism, running.couch.target());
        let verified = mechanism.verify(&target, &reader.grant, &reader.user).await;
        assert_eq!(verified.unwrap_err().kind, PortErrorKind::Denied);
        kit.issue(&reader).await;
    }
}

#[tokio::test]
async fn bindings_cannot_make_users() {
    let running = prepared().await;
    let kit = Kit::new(&running.couch);
    let owner = kit.bind(grant("owner", "owner")).await;
    let client = running.couch.client(&owner.user.secret);
    let user = json!({"type": "user", "name": "sly", "roles": [], "password": "x"});
    for (method, path, body) in [
        ("PUT", "/_users/org.couchdb.user:sly", Some(user)),
        ("GET", "/_users/_all_docs", None),
        ("PUT", "/_users/_security", Some(json!({}))),
    ] {
        assert_eq!(client.send(method, path, body).await.0, 403, "{method} {path}");
    }
    assert_eq!(client.send("PUT", "/more", None).await.0, 401);

    // A server that leaves `_users` open, and lets nobody close it, is not used.
    let open = start(true);
    assert!(open.fake.state.lock().unwrap().is_open());
    let error = open
        .couch
        .mechanism
        .prepare(&open.couch.target())
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(error.message.contains("_users/_security"), "{error}");
}

#[tokio::test]
async fn somebody_in_the_way_is_a_conflict_and_passes() {
    let running = prepared().await;
    let kit = Kit::new(&running.couch);
    let bound = kit.bind(grant("one", "readonly")).await;
    let (mechanism, target) = (&running.couch.mechanism, running.couch.target());
    let id = format!("org.couchdb.user:{}", bound.user.handle);
    let path = format!("/_users/{id}");
    let interfere = |losing: bool| {
        let id = id.clone();
        let meddle = move |state: &mut fake::State| {
            if losing {
                state.lose("_users", &id);
            } else {
                state.touch("_users", &id);
            }
        };
        running.fake.state.lock().unwrap().interfere = Some((path.clone(), Box::new(meddle)));
    };
    // Changed between reading and deleting; then gone between reading and deleting.
    interfere(false);
    let error = mechanism.revoke(&target, &bound.user.handle).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Conflict);
    interfere(true);
    mechanism.revoke(&target, &bound.user.handle).await.unwrap();
    // A user that was deleted can be made again.
    kit.issue(&bound).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_and_no_secret_with_it() {
    let running = prepared().await;
    let kit = Kit::new(&running.couch);
    let bound = kit.bind(grant("one", "owner")).await;
    let mechanism = &running.couch.mechanism;
    let target = running.couch.target();
    let wrong = Target {
        admin: mechanism.generate_admin(&Map::new()).unwrap(),
        ..target.clone()
    };
    let elsewhere = Target {
        settings: json!({"database": "absent"}).as_object().unwrap().clone(),
        ..target
    };
    let verified = mechanism.verify(&elsewhere, &bound.grant, &bound.user).await;
    for (what, result) in [
        ("wrong admin", mechanism.prepare(&wrong).await),
        ("wrong admin lists", mechanism.list(&wrong).await.map(drop)),
        ("another database", verified),
    ] {
        let error = result.expect_err(what);
        assert_eq!(error.kind, PortErrorKind::Denied, "{what}: {error:?}");
        for secret in [&running.couch.admin, &wrong.admin, &bound.user.secret] {
            assert!(
                !format!("{error:?}").contains(Secret::text(secret, "password")),
                "{what}"
            );
        }
    }
}
