//! What each role and scope can reach, asked of the server.

use super::{App, Server, mechanism};
use crate::contract::{self, Kit, Server as _};
use async_nats::jetstream::consumer::pull;
use chandler::ports::{CredentialMechanism, Grant, PortErrorKind};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

/// Answers every message on `subject` with `pong` until the guard drops.
async fn serve(app: &App, subject: &str) -> tokio::task::JoinHandle<()> {
    let client = app.client.clone();
    let mut requests = client.subscribe(subject.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                client.publish(reply, "\"pong\"".into()).await.unwrap();
            }
        }
    })
}

#[tokio::test]
async fn two_bindings_talk_and_readonly_only_listens() {
    let server = Server::prepared().await;
    let (_, owner) = server.app("owner", "owner", json!({})).await;
    let (_, writer) = server.app("writer", "readwrite", json!({})).await;
    let (_, reader) = server.app("reader", "readonly", json!({})).await;

    assert!(writer.hears(&owner, "orders.new").await);
    assert!(owner.hears(&writer, "orders.new").await);
    assert!(reader.hears(&writer, "orders.new").await);
    assert!(!owner.hears(&reader, "orders.new").await);
    for subject in [
        "orders.new",
        "_INBOX.x",
        "$JS.API.INFO",
        "$JS.API.STREAM.DELETE.S",
    ] {
        assert!(!reader.may_publish(subject).await, "{subject}");
    }
    // The default inbox of ordinary clients works in both directions.
    let task = serve(&owner, "time.now").await;
    assert_eq!(writer.ask("time.now", "").await, Ok(json!("pong")));
    task.abort();
}

#[tokio::test]
async fn streams_are_the_owners_and_their_content_everybodys() {
    let server = Server::prepared().await;
    let (_, owner) = server.app("owner", "owner", json!({})).await;
    let (_, writer) = server.app("writer", "readwrite", json!({})).await;
    let create = json!({"name": "S", "subjects": ["s.>"], "storage": "file"}).to_string();

    assert!(writer.ask("$JS.API.STREAM.CREATE.S", &create).await.is_err());
    let made = owner.ask("$JS.API.STREAM.CREATE.S", &create).await.unwrap();
    assert_eq!(made["config"]["name"], "S", "{made}");
    assert_eq!(writer.ask("s.x", "one").await.unwrap()["seq"], 1);
    assert_eq!(
        writer.ask("$JS.API.STREAM.INFO.S", "").await.unwrap()["state"]["messages"],
        1
    );

    // A durable consumer, made and used by readwrite with an ordinary client.
    let stream = async_nats::jetstream::new(writer.client.clone())
        .get_stream("S")
        .await
        .unwrap();
    let config = pull::Config {
        durable_name: Some("C".to_owned()),
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let next = timeout(Duration::from_secs(10), batch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(next.payload, "one");
    next.double_ack().await.unwrap();

    for verb in ["UPDATE", "DELETE", "RESTORE"] {
        let subject = format!("$JS.API.STREAM.{verb}.S");
        assert!(!writer.may_publish(&subject).await, "{subject}");
    }
    assert_eq!(
        owner.ask("$JS.API.STREAM.DELETE.S", "").await.unwrap()["success"],
        true
    );
}

#[tokio::test]
async fn a_scope_is_a_wall() {
    let server = Server::prepared().await;
    let (_, owner) = server.app("owner", "owner", json!({})).await;
    let (_, scoped) = server
        .app("scoped", "readwrite", json!({"subjects": ["orders.>", "audit"]}))
        .await;
    let (bound, listener) = server
        .app("listener", "readonly", json!({"subjects": ["orders.*"]}))
        .await;

    assert!(owner.hears(&scoped, "orders.new.eu").await);
    assert!(owner.hears(&scoped, "audit").await);
    assert!(scoped.hears(&owner, "orders.new").await);
    assert!(listener.hears(&scoped, "orders.new").await);
    for subject in [
        "billing",
        "orders",
        "audit.x",
        "$JS.API.INFO",
        "_INBOX.x.y",
        "$JS.ACK.x",
    ] {
        assert!(!scoped.may_publish(subject).await, "{subject}");
    }
    for subject in [
        ">",
        "*",
        "*.new",
        "billing",
        "_INBOX.>",
        "_INBOX.x",
        "_INBOX_X.>",
        "$JS.EVENT.>",
        "$SYS.>",
    ] {
        assert!(!scoped.may_subscribe(subject).await, "{subject}");
        assert!(!listener.may_subscribe(subject).await, "{subject}");
    }
    // The server takes `orders.>` for `orders.*`, but what lies deeper must not arrive.
    assert!(listener.hears_on(&owner, "orders.>", "orders.new").await);
    assert!(!listener.hears_on(&owner, "orders.>", "orders.new.eu").await);
    assert!(!listener.queue_hears_on(&owner, "orders.>", "orders.new.eu").await);
    assert!(!listener.may_subscribe("orders.new.eu").await);
    assert!(!listener.may_publish("orders.new").await);

    // With its inbox prefix a scoped application asks and answers; nobody else may listen in.
    let task = serve(&owner, "orders.price").await;
    assert_eq!(scoped.ask("orders.price", "").await, Ok(json!("pong")));
    task.abort();
    let task = serve(&scoped, "orders.stock").await;
    assert_eq!(owner.ask("orders.stock", "").await, Ok(json!("pong")));
    task.abort();
    let other = format!("{}.>", bound.user.secret.text("inbox_prefix"));
    assert!(!scoped.may_subscribe(&other).await);
}

#[tokio::test]
async fn subjects_that_reach_further_are_refused_before_anything_is_made() {
    let server = Server::start(json!({}));
    for subjects in [
        json!([">"]),
        json!(["$SYS.>"]),
        json!(["a b"]),
        json!(["a\r\nPUB x 0\r\n"]),
        json!([]),
        json!("orders"),
    ] {
        let mut grant = contract::grant("x", "readwrite");
        grant.params.insert("subjects".into(), subjects);
        let error = server
            .mechanism
            .generate_user(&server.target(), &grant, contract::now())
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid);
    }
}

/// Not even an owner reaches the system account, and instances do not reach each other.
#[tokio::test]
async fn an_owner_stays_in_its_account() {
    let server = Server::prepared().await;
    let other = Server::prepared().await;
    let (bound, owner) = server.app("owner", "owner", json!({})).await;
    let (_, stranger) = other.app("owner", "owner", json!({})).await;

    for subject in [
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.CLAIMS.LIST",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
    ] {
        assert!(owner.ask(subject, "").await.is_err(), "{subject}");
        assert!(!owner.may_publish(subject).await, "{subject}");
    }
    assert!(!owner.may_subscribe("$SYS.>").await);
    assert!(!stranger.hears(&owner, "orders").await);
    let creds = bound.user.secret.text("creds");
    assert!(
        other.connect(creds, None).await.is_err(),
        "another instance lets it in"
    );
}

#[tokio::test]
async fn limits_of_the_account_are_enforced_and_can_change() {
    let mut server = Server::start(json!({"max_connections": 2, "max_payload": 1000}));
    server.mechanism.prepare(&server.target()).await.unwrap();
    let (bound, first) = server.app("a", "owner", json!({})).await;
    let (_, second) = server.app("b", "owner", json!({})).await;
    let creds = bound.user.secret.text("creds");
    assert!(server.connect(creds, None).await.is_err());
    let error = server
        .mechanism
        .verify(&server.target(), &bound.grant, &bound.user)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    assert!(error.message.contains("connection"), "{error}");

    // A larger plan.
    server.settings.insert("max_connections".into(), 3.into());
    let mut kit = Kit::new(&server);
    // `prepare` itself needs one connection.
    drop(second);
    let target = server.target();
    contract::settle("prepare", || server.mechanism.prepare(&target)).await;
    kit.issue(&bound).await;
    let third = server.connect(creds, None).await.unwrap();
    assert!(!first.is_cut());
    first.client.publish("x", vec![b'x'; 1001].into()).await.unwrap();
    first.is_cut_soon().await;
    kit.revoke(&bound).await;
    third.is_cut_soon().await;
}

#[tokio::test]
async fn a_jwt_ends_with_its_binding() {
    let server = Server::prepared().await;
    let kit = Kit::new(&server);
    let past = kit.generate(Grant {
        expires_at: Some(contract::now() - 2_000),
        ..contract::grant("past", "owner")
    });
    assert!(
        server
            .connect(past.user.secret.text("creds"), None)
            .await
            .is_err()
    );
    let error = mechanism()
        .verify(&server.target(), &past.grant, &past.user)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied);

    let soon = kit
        .bind(Grant {
            expires_at: Some(contract::now() + 2_000),
            ..contract::grant("soon", "owner")
        })
        .await;
    let app = server
        .connect(soon.user.secret.text("creds"), None)
        .await
        .unwrap();
    app.is_cut_soon().await;
    // The second of the expiry itself still counts as valid.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(
        server
            .connect(soon.user.secret.text("creds"), None)
            .await
            .is_err()
    );
}
