//! O: deletes for what may or may not exist, answers nobody saw, and clearing up.

use super::common::{binding, by_hand, delete, flagged, instance, last, told};
use crate::http::wire::right;
use crate::support::broker::TestBroker;
use crate::support::catalog::{self, ids};
use crate::support::world::{Effect, FakeInstance, When};
use chandler::ports::PortErrorKind;
use serde_json::Value;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Deletes until it is gone, and then once more.
async fn deleted_for_good(broker: &TestBroker, path: &str) {
    let first = broker.delete(&delete(path)).await;
    assert!([202, 410].contains(&first.status), "{path}: {}", first.text);
    if first.status == 202 {
        let second = broker.delete(&delete(path)).await;
        assert!([202, 410].contains(&second.status), "{path}: {}", second.text);
    }
    broker.run_until_idle().await;
    for _ in 0..3 {
        broker.delete(&delete(path)).await.expect_error(410, "Gone");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o01_deletes_are_idempotent_in_every_state() {
    let broker = by_hand().await;
    let (i, b) = (instance("i"), binding("i", "b"));
    // Never created.
    deleted_for_good(&broker, &i).await;
    deleted_for_good(&broker, &b).await;
    // Half created: at each step of the provision.
    for steps in 0..4 {
        *broker.world.looks.lock().unwrap() = 9;
        broker
            .put(&flagged(&i), &catalog::provision_body())
            .await
            .expect(202);
        for _ in 0..steps {
            broker.run_due().await;
        }
        deleted_for_good(&broker, &i).await;
        assert!(broker.world.instances.lock().unwrap().is_empty());
    }
    *broker.world.looks.lock().unwrap() = 0;
    // Failed.
    *broker.world.refuse_ready.lock().unwrap() = Some("No.".into());
    broker
        .put(&flagged(&i), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    deleted_for_good(&broker, &i).await;
    *broker.world.refuse_ready.lock().unwrap() = None;
    // Bindings: half created, failed, complete.
    broker.provisioned("i").await;
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    deleted_for_good(&broker, &b).await;
    broker.world.plan(
        "issue",
        When::After,
        Effect::Fail(PortErrorKind::Invalid, "No."),
        1,
    );
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    deleted_for_good(&broker, &b).await;
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    deleted_for_good(&broker, &b).await;
    // With its instance gone, a binding is gone as well.
    broker.put(&flagged(&b), &catalog::bind_body()).await.expect(202);
    broker.run_until_idle().await;
    deleted_for_good(&broker, &i).await;
    deleted_for_good(&broker, &b).await;
    broker.end().await;
}

/// Sends a request whole; whoever drops the connection has gone away without reading the answer.
async fn sent(broker: &TestBroker, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(broker.base.trim_start_matches("http://"))
        .await
        .unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nX-Broker-API-Version: 2.17\r\nContent-Length: {}\r\n\r\n{body}",
        right(),
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Waits, for at most ten seconds, until something answers with this status.
async fn until(broker: &TestBroker, path: &str, status: u16) {
    for _ in 0..1000 {
        if broker.get(path).await.status == status {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{path} never answered {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o02_an_answer_nobody_saw_can_be_asked_for_again_or_deleted() {
    let broker = TestBroker::start().await;
    for id in ["again", "away"] {
        let unread = sent(&broker, &flagged(&instance(id)), &catalog::provision_body()).await;
        until(&broker, &last(&instance(id)), 200).await;
        drop(unread);
    }
    broker
        .put(&flagged(&instance("again")), &catalog::provision_body())
        .await
        .expect(202);
    broker.delete(&delete(&instance("away"))).await.expect(202);
    broker.run_until_idle().await;
    broker
        .put(&flagged(&instance("again")), &catalog::provision_body())
        .await
        .expect(200);
    broker.get(&instance("away")).await.expect(404);

    // A synchronous bind that ends after its caller stopped listening.
    let unread = sent(&broker, &binding("again", "b"), &catalog::bind_body()).await;
    until(&broker, &binding("again", "b"), 200).await;
    drop(unread);
    let b = binding("again", "b");
    let seen = broker.put(&b, &catalog::bind_body()).await.expect(200).body;
    assert_eq!(
        seen["credentials"],
        broker.get(&b).await.expect(200).body["credentials"]
    );

    // One whose caller goes away while the backend is being asked: it is still there, and can still be deleted.
    let c = binding("again", "c");
    broker.world.plan("issue", When::Before, Effect::Hang, 1);
    let unread = sent(&broker, &c, &catalog::bind_body()).await;
    broker.world.hung.notified().await;
    drop(unread);
    let running = broker.put(&flagged(&c), &catalog::bind_body()).await.expect(202);
    assert!(!running.operation().is_empty());
    broker.delete(&delete(&c)).await.expect(202);
    broker.run_until_idle().await;
    broker.get(&c).await.expect_error(404, "NotFound");
    assert_eq!(broker.world.users().len(), 1);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o03_clearing_up_never_touches_what_a_platform_or_nobody_knows() {
    let broker = TestBroker::start().await;
    broker.provisioned("i").await;
    let c = broker.bound("i", "b").await;
    *broker.world.refuse_ready.lock().unwrap() = Some("No.".into());
    broker
        .put(&flagged(&instance("failed")), &catalog::provision_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    *broker.world.refuse_ready.lock().unwrap() = None;
    broker
        .put(&flagged(&instance("running")), &catalog::provision_body())
        .await
        .expect(202);
    let nobodys = "a".repeat(26);
    broker
        .world
        .instances
        .lock()
        .unwrap()
        .insert(nobodys.clone(), FakeInstance::default());
    let report = broker.sweeper().once().await.unwrap();
    assert_eq!(
        (report.orphans, report.purged, report.expired, report.residual),
        (0, 0, 0, 0)
    );
    assert_eq!(report.unknown, 1);
    // It may be somebody's data under a lost database: told, and gone only when an operator asks.
    assert!(broker.world.instances.lock().unwrap().contains_key(&nobodys));
    assert!(broker.sweeper().remove(&nobodys).await);
    assert!(
        broker
            .world
            .lets_in(c["username"].as_str().unwrap(), c["password"].as_str().unwrap())
    );
    assert_eq!(told(&broker, &instance("failed")).await["state"], "failed");
    broker.run_until_idle().await;
    for id in ["i", "running"] {
        broker.get(&instance(id)).await.expect(200);
    }
    // What comes back after its delete was told as finished is nobody's, and is removed.
    let there = broker.world.instances.lock().unwrap().clone();
    for id in ["i", "failed", "running"] {
        broker.deleted(id).await;
    }
    broker.world.instances.lock().unwrap().extend(there);
    assert_eq!(broker.sweeper().once().await.unwrap().orphans, 3);
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o04_transient_trouble_is_waited_out_and_a_5xx_leaves_nothing() {
    let broker = TestBroker::start().await;
    let trouble = || Effect::Fail(PortErrorKind::Transient, "The server is busy.");
    for call in ["place", "apply", "observe", "prepare"] {
        broker.world.plan(call, When::Before, trouble(), 2);
    }
    broker.provisioned("i").await;
    broker.world.plan("issue", When::Before, trouble(), 2);
    broker
        .put(&flagged(&binding("i", "a")), &catalog::bind_body())
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &binding("i", "a")).await["state"], "succeeded");
    // A synchronous bind that fails for good has made nothing that lasts, and can be deleted and made anew.
    let b = binding("i", "b");
    let users = broker.world.users();
    broker.world.plan(
        "verify",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "No."),
        1,
    );
    let answer = broker.put(&b, &catalog::bind_body()).await;
    assert_eq!(answer.status, 500, "{}", answer.text);
    broker.run_until_idle().await;
    assert_eq!(broker.world.users(), users);
    broker.get(&b).await.expect_error(404, "NotFound");
    broker.delete(&format!("{b}?{}", ids())).await.expect(200);
    broker.bound("i", "b").await;
    broker.deleted("i").await;
    broker.end().await;
}
