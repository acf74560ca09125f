//! `couchdb` on pouchdb-server, which speaks CouchDB's protocol: a smoke test, and the one place where the validation
//! function runs. In what it differs from CouchDB is in `tests/real/couchdb/fake.rs`.

use crate::contract::{self, Kit, Server as _, Session as _, grant, settle};
use crate::couchdb_client::{Couch, Documents, admin};
use crate::servers::Pouch;
use crate::services::{Service, examples};
use chandler::ports::CredentialMechanism;
use serde_json::json;

fn start() -> (Pouch, Couch) {
    let admin = admin();
    let running = Pouch::start(admin.text("password"));
    let couch = Couch::at(running.port, admin);
    (running, couch)
}

#[tokio::test]
async fn a_compatible_server_keeps_the_contract() {
    let (_running, couch) = start();
    contract::whole_life(&couch).await;
}

/// The same server by requests that stand in a catalog folder.
#[tokio::test]
async fn a_service_by_requests_keeps_the_contract() {
    let service = Service::load(&examples(), "documents", &json!({}));
    let running = Pouch::start(service.admin.text("password"));
    let port = running.port;
    contract::whole_life(&Documents { service, port }).await;
}

#[tokio::test]
async fn the_validation_function_lets_readers_write_nothing() {
    let (_running, couch) = start();
    let target = couch.target();
    settle("prepare", || couch.mechanism.prepare(&target)).await;
    let kit = Kit::new(&couch);
    let owner = kit.bind(grant("owner", "owner")).await;
    let writer = kit.bind(grant("writer", "readwrite")).await;
    let reader = kit.bind(grant("reader", "readonly")).await;
    let mut owner = couch.client(&owner.user.secret);
    let mut writer = couch.client(&writer.user.secret);
    let reader = couch.client(&reader.user.secret);
    owner.write("one", "1").await.unwrap();
    writer.write("one", "2").await.unwrap();
    let (_, found) = reader.send("GET", "/app/one", None).await;
    let rev = found["_rev"].as_str().unwrap();
    // In bulk each document is answered for itself; the answer as a whole is a success.
    let bulk = json!({"docs": [{"_id": "bulk"}, {"_id": "one", "_rev": rev, "value": "3"}]});
    let (_, answers) = reader.send("POST", "/app/_bulk_docs", Some(bulk)).await;
    let refused = |answer: &serde_json::Value| answer["error"] == "forbidden";
    assert!(answers.as_array().unwrap().iter().all(refused), "{answers}");
    for (method, path, body) in [
        ("PUT", "/app/new".to_owned(), Some(json!({}))),
        ("POST", "/app".to_owned(), Some(json!({}))),
        ("PUT", "/app/one".to_owned(), Some(json!({"_rev": rev}))),
        ("DELETE", format!("/app/one?rev={rev}"), None),
    ] {
        let (status, answer) = reader.send(method, &path, body).await;
        assert!([401, 403].contains(&status), "{method} {path}: {status} {answer}");
    }
    assert_eq!(reader.send("GET", "/app/one", None).await.1["value"], "2");
    assert_eq!(reader.send("GET", "/app/bulk", None).await.0, 404);
}
