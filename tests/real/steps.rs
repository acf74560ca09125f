//! `http` with the service that stands in `examples/services`, on the strict fake of CouchDB. A server that runs is
//! tried in `tests/platform`.

use crate::contract::{self, Kit, Server, grant, settle};
use crate::couchdb::client::Documents;
use crate::couchdb::fake::FakeCouch;
use crate::fake::Fake;
use crate::services::{Service, examples};
use chandler::ports::PortErrorKind;
use serde_json::json;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn start() -> (FakeCouch, Documents) {
    let service = Service::load(&examples(), "documents", &json!({}));
    let fake = FakeCouch::start(service.admin.clone(), false);
    let port = fake.server.port;
    (fake, Documents { service, port })
}

#[tokio::test]
async fn the_example_keeps_the_contract() {
    let (_fake, server) = start();
    contract::whole_life(&server).await;
}

#[tokio::test]
async fn somebody_in_the_way_is_overcome_within_bounds() {
    let (fake, server) = start();
    let mut kit = Kit::new(&server);
    let target = kit.target();
    settle("prepare", || server.mechanism().prepare(&target)).await;
    let bound = kit.bind(grant("one", "owner")).await;
    let id = format!("org.couchdb.user:{}", bound.user.handle);
    let interfere = |losing: bool| {
        let (id, path) = (id.clone(), format!("/_users/{id}"));
        let meddle = move |state: &mut crate::couchdb::fake::State| {
            if losing {
                state.lose("_users", &id);
            } else {
                state.touch("_users", &id);
            }
        };
        fake.state.lock().unwrap().interfere = Some((path, Box::new(meddle)));
    };
    // Changed between reading and writing: the list is begun again, with a newer revision.
    interfere(false);
    server
        .mechanism()
        .issue(&target, &bound.grant, &bound.user)
        .await
        .unwrap();
    interfere(false);
    server
        .mechanism()
        .revoke(&target, &bound.user.handle)
        .await
        .unwrap();
    // Gone in between is gone.
    let bound = kit.bind(bound.grant).await;
    interfere(true);
    kit.revoke(&bound).await;
    kit.exist(&[]).await;
}

/// What a fake answers, and how often it was asked.
fn answering(status: u16, body: &'static str) -> (Fake, Arc<AtomicUsize>, Documents) {
    let service = Service::load(&examples(), "documents", &json!({}));
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let fake = Fake::serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        (status, body.to_owned())
    });
    let port = fake.port;
    (fake, asked, Documents { service, port })
}

#[tokio::test]
async fn answers_are_sorted_and_the_step_is_named() {
    use PortErrorKind::{Conflict, Denied, Gone, Invalid, Transient};
    for (status, kind) in [
        (401, Denied),
        (403, Denied),
        (404, Gone),
        (409, Conflict),
        (429, Transient),
        (503, Transient),
        (302, Invalid),
        (400, Invalid),
    ] {
        let (_fake, asked, server) = answering(status, "{\"reason\":\"some words\"}");
        let error = server.mechanism().prepare(&server.target()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}");
        assert!(
            error
                .detail
                .starts_with(&format!("prepare[0]: PUT answered {status}: ")),
            "{}",
            error.detail
        );
        assert!(error.detail.contains("some words") && !error.message.contains("some words"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn beginning_again_has_an_end() {
    let service = Service::load(&examples(), "documents", &json!({}));
    let puts = Arc::new(AtomicUsize::new(0));
    let counted = puts.clone();
    let fake = Fake::serve(move |call| {
        if call.method == "GET" {
            return (200, json!({"_rev": "1-x"}).to_string());
        }
        counted.fetch_add(1, Ordering::SeqCst);
        (409, "{}".to_owned())
    });
    let server = Documents {
        service,
        port: fake.port,
    };
    let bound = Kit::new(&server).generate(grant("one", "owner"));
    let issued = server
        .mechanism()
        .issue(&server.target(), &bound.grant, &bound.user)
        .await;
    assert_eq!(issued.unwrap_err().kind, PortErrorKind::Conflict);
    assert_eq!(puts.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn nothing_secret_is_quoted() {
    let service = Service::load(&examples(), "documents", &json!({}));
    let status = Arc::new(AtomicU16::new(400));
    let said = Arc::new(Mutex::new(String::new()));
    let (answered, saying) = (status.clone(), said.clone());
    let fake = Fake::serve(move |call| {
        if call.method == "GET" {
            return (200, json!({"_rev": "1-captured"}).to_string());
        }
        let body = String::from_utf8_lossy(&call.body).into_owned();
        saying.lock().unwrap().clone_from(&body);
        (answered.load(Ordering::SeqCst), format!("what is {body}?"))
    });
    let server = Documents {
        service,
        port: fake.port,
    };
    let target = server.target();
    let bound = Kit::new(&server).generate(grant("one", "owner"));
    let password = bound.user.secret.text("password");
    for code in [400, 500] {
        status.store(code, Ordering::SeqCst);
        let error = server
            .mechanism()
            .issue(&target, &bound.grant, &bound.user)
            .await
            .unwrap_err();
        assert!(said.lock().unwrap().contains(password), "the server was told");
        for secret in [password, server.service.admin.text("password"), "1-captured"] {
            assert!(!format!("{error:?}").contains(secret), "{error:?}");
        }
        assert!(error.detail.contains("quotes a secret"), "{}", error.detail);
    }
    // Secrets travel in headers and bodies only.
    let (_fake, _, lost) = answering(200, "{}");
    lost.mechanism()
        .issue(&lost.target(), &bound.grant, &bound.user)
        .await
        .unwrap();
}
