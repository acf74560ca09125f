//! What comes late: a worker that was held up puts something back after its binding has ended, and the sweep takes it
//! away again.

use super::{SETTLED, bid, full, held};
use crate::support::catalog::ids;
use crate::support::flow::{LATER, binding, instance};
use crate::support::world::{Effect, When};
use chandler::domain::operation::OperationKind;
use chandler::ports::{PortErrorKind, secret_name};
use chandler::store::Store;
use std::time::Duration;

async fn settles(store: &Store) -> usize {
    let rows = store.operations_list(None, 100).await.unwrap();
    rows.iter()
        .filter(|r| r.operation.kind == OperationKind::Settle)
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_after_an_unbind_goes_again() {
    for way in ["reference", "secret"] {
        let broker = full().await;
        broker.provisioned("one").await;
        broker.handed("a", way).await;
        let around = &broker.world.around;
        let (client, kept) = (
            around.clients.lock().unwrap().get(&bid("a")).cloned(),
            around.kept.lock().unwrap().get(&bid("a")).cloned(),
        );
        let projected = around.projected.lock().unwrap().clone();
        broker.unbound("a").await;
        assert!(around.bids().is_empty());
        // A worker that was inside `publish`, `ensure` or `project` all the while.
        if let (Some(client), Some(kept)) = (client, kept) {
            around.clients.lock().unwrap().insert(bid("a"), client);
            around.kept.lock().unwrap().insert(bid("a"), kept);
        }
        *around.projected.lock().unwrap() = projected;
        broker.advance(Duration::from_secs(130));
        assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 0, "not yet");
        broker.advance(SETTLED);
        assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
        broker.run_until_idle().await;
        assert!(around.bids().is_empty(), "{way}");
        assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 0, "once");
        // To the platform nothing of this ever was.
        broker
            .delete(&format!("{}?{}", binding("a"), ids()))
            .await
            .expect(410);
        assert_eq!(broker.last(&binding("a")).await.body["state"], "succeeded");
        broker.settled_and_end().await;
    }
}

/// The last look fails for a while: it comes again until it worked, and holds nobody up meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_look_that_fails_is_repeated() {
    let broker = held().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    broker.unbound("a").await;
    broker.advance(SETTLED);
    let away = Effect::Fail(PortErrorKind::Transient, "away");
    broker.world.plan("withdraw", When::Before, away, 10_000);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
    broker.run_due().await;
    // The instance can be updated and deleted under it.
    let patch = serde_json::json!({"service_id": crate::support::catalog::ALPHA, "parameters": {"size": 7}});
    broker
        .patch(&format!("{}?{LATER}", instance("one")), &patch)
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(broker.last(&instance("one")).await.body["state"], "succeeded");
    broker.world.calm();
    broker.advance(Duration::from_mins(2));
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
    broker.run_until_idle().await;
    assert_eq!(settles(broker.engine.store()).await, 2);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 0);
    broker.settled_and_end().await;
}

/// While the last look is at work, a bind under the same id waits for its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_waits_for_the_last_look() {
    let broker = held().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    broker.unbound("a").await;
    broker.advance(SETTLED);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
    let path = format!("{}?{LATER}", binding("a"));
    broker
        .put(&path, &super::by("reference"))
        .await
        .expect_error(422, "ConcurrencyError");
    broker.run_until_idle().await;
    broker.put(&path, &super::by("reference")).await.expect(202);
    broker.run_until_idle().await;
    assert!(broker.world.opens(&broker.read("a").unwrap()));
    // It is a living binding now: nobody looks at the end of the one before.
    broker.advance(SETTLED);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 0);
    broker.settled_and_end().await;
}

/// Bindings of a deleted instance are looked at once more too, though their server is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_of_a_deleted_instance_are_looked_at_too() {
    let broker = held().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let client = broker.world.around.clients.lock().unwrap()[&bid("a")].clone();
    broker.deleted("one").await;
    broker
        .world
        .around
        .clients
        .lock()
        .unwrap()
        .insert(bid("a"), client);
    broker.advance(SETTLED);
    assert_eq!(broker.sweeper().bindings().await.unwrap().settled, 1);
    broker.run_until_idle().await;
    assert!(broker.world.around.bids().is_empty());
    broker.end().await;
}

/// Secrets that no rule keeps: what a worker sealed once more after the credentials were handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn material_that_comes_late_is_refused_or_removed() {
    let broker = full().await;
    broker.provisioned("one").await;
    broker.handed("a", "reference").await;
    let row = broker.binding_row("a").await;
    let secrets = &broker.engine.ports().secrets;
    let late = chandler::domain::secret::Secret::from_pairs([("password", "late")]);
    for name in [
        secret_name::binding(&row.iid, &row.bid),
        secret_name::view(&row.iid, "other-aaaaaaaaaaaaaaaaaaaa"),
        secret_name::next(&row.iid, &row.bid, 1),
    ] {
        let refused = secrets.create(&name, &late).await;
        let stranger = name.contains("other");
        assert_eq!(refused.is_err(), !stranger, "{name}");
        secrets.destroy(&name).await.unwrap();
    }
    // What got in before the door was closed, or was brought back with a backup.
    for name in [
        secret_name::binding(&row.iid, &row.bid),
        secret_name::next(&row.iid, &row.bid, 7),
    ] {
        sqlx_insert(&broker, &name).await;
    }
    assert_eq!(broker.sweeper().orphans().await.unwrap().orphans, 2);
    let left = secrets.list(&secret_name::all(&row.iid)).await.unwrap();
    assert!(
        left.contains(&secret_name::view(&row.iid, &row.bid)),
        "what answers say stays: {left:?}"
    );
    assert!(left.contains(&secret_name::admin(&row.iid)));
    broker.get(&binding("a")).await.expect(200);
    broker.settled_and_end().await;
}

/// Puts a row into the table of secrets past every rule.
async fn sqlx_insert(broker: &crate::support::broker::TestBroker, name: &str) {
    let pool = sqlx::AnyPool::connect(&broker.database).await.unwrap();
    sqlx::query("INSERT INTO secrets (name, iid, sealed, updated_at) VALUES ($1, $2, 'v1:test:AAAA', 1)")
        .bind(name)
        .bind(name.split('/').next().unwrap())
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
}
