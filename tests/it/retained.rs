//! Volumes that outlive their instance: kept, brought back, let go. And objects that somebody else changed.

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::ALPHA;
use crate::support::flow::{LATER, instance};
use chandler::domain::instance::InstanceState;
use chandler::domain::names;
use chandler::engine::Drift;
use chandler::ports::secret_name;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const KEPT: &str = "0a0a0a0a-0000-4000-8000-000000000099";
const DAY: Duration = Duration::from_hours(24);

async fn keeping() -> TestBroker {
    let mut choices = Choices::default();
    choices.catalog.insert(
        "plans/alpha/kept.yaml".into(),
        format!("id: {KEPT}\nname: kept\ndescription: Keeps\nretain_days: 3\nmetadata: {{displayName: Kept, bullets: [One]}}\n"),
    );
    *choices.world.keeps_volumes.lock().unwrap() = true;
    TestBroker::with(choices).await
}

async fn delete(broker: &TestBroker) -> String {
    let query = format!("{LATER}&service_id={ALPHA}&plan_id={KEPT}");
    broker
        .delete(&format!("{}?{query}", instance("one")))
        .await
        .expect(202);
    broker.run_until_idle().await;
    let last = broker.last(&instance("one")).await;
    assert_eq!(last.body["state"], "succeeded", "{}", last.text);
    last.body["description"].as_str().unwrap().to_owned()
}

/// Names of the instance's secrets that are still there.
async fn secrets(broker: &TestBroker) -> Vec<String> {
    let iid = names::iid("cf", "one");
    broker
        .engine
        .ports()
        .secrets
        .list(&secret_name::all(&iid))
        .await
        .unwrap()
}

async fn bound(broker: &TestBroker, id: &str) -> Value {
    let path = format!("{}/service_bindings/{id}", instance("one"));
    let body = json!({"service_id": ALPHA, "plan_id": KEPT});
    broker.put(&path, &body).await.expect(201).body["credentials"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_instance_comes_back_with_its_data_and_without_its_old_bindings() {
    let broker = keeping().await;
    broker.provisioned_as(ALPHA, KEPT, json!({"size": 5})).await;
    let old = bound(&broker, "a").await;
    let said = delete(&broker).await;
    assert!(said.contains("kept for 3 days"), "{said}");
    let iid = names::iid("cf", "one");
    assert_eq!(
        secrets(&broker).await,
        [secret_name::admin(&iid)],
        "what opens the volumes, nothing else"
    );
    assert!(!broker.opens(&old));
    // Sweeping does not take it for a left-over, and the platform sees a deleted instance.
    broker.sweeper().once().await.unwrap();
    assert!(broker.world.volumes.lock().unwrap().contains_key(&iid));
    broker.get(&instance("one")).await.expect(404);
    let body = json!({"service_id": ALPHA, "plan_id": KEPT, "organization_guid": "o", "space_guid": "s"});
    let refused = broker
        .put(&format!("{}?{LATER}", instance("one")), &body)
        .await
        .expect(409);
    assert!(
        refused.body["description"].as_str().unwrap().contains("undelete"),
        "{}",
        refused.text
    );

    broker.engine.undelete(&iid).await.unwrap();
    broker.run_until_idle().await;
    let row = broker.row("one").await;
    assert_eq!((row.state, row.retained_until), (InstanceState::Ready, None));
    assert_eq!(row.attributes.parameters["size"], 5);
    assert!(
        !broker.opens(&old),
        "the user in the volume was taken away before anybody was let in"
    );
    let new = bound(&broker, "b").await;
    assert!(broker.opens(&new));
    // A second time, and then for good.
    delete(&broker).await;
    broker.engine.let_go(&iid).await.unwrap();
    assert!(broker.engine.undelete(&iid).await.is_err(), "its time is over");
    let report = broker.sweeper().once().await.unwrap();
    assert_eq!(report.let_go, 1, "{report:?}");
    assert!(secrets(&broker).await.is_empty());
    assert!(broker.world.volumes.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_go_when_their_time_is_over_and_not_before() {
    let broker = keeping().await;
    broker.provisioned_as(ALPHA, KEPT, json!({})).await;
    delete(&broker).await;
    broker.advance(2 * DAY);
    assert_eq!(broker.sweeper().once().await.unwrap().let_go, 0);
    // Older than any tombstone: the row stays as long as there is something to know.
    broker.advance(DAY + Duration::from_secs(1));
    let report = broker.sweeper().once().await.unwrap();
    assert_eq!(report.let_go, 1, "{report:?}");
    assert!(broker.world.volumes.lock().unwrap().is_empty());
    assert!(broker.engine.undelete(&names::iid("cf", "one")).await.is_err());
    // Now the id is free again.
    broker.provisioned_as(ALPHA, KEPT, json!({})).await;
    delete(&broker).await;
    broker.engine.let_go(&names::iid("cf", "one")).await.unwrap();
    broker.sweeper().once().await.unwrap();
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_ready_is_not_kept() {
    let broker = keeping().await;
    *broker.world.refuse_ready.lock().unwrap() = Some("The image does not exist.".into());
    let body = json!({"service_id": ALPHA, "plan_id": KEPT, "organization_guid": "o", "space_guid": "s"});
    broker
        .put(&format!("{}?{LATER}", instance("one")), &body)
        .await
        .expect(202);
    broker.run_until_idle().await;
    let said = delete(&broker).await;
    assert_eq!(said, "Deleted.");
    assert!(secrets(&broker).await.is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_changed_is_told_and_put_back_if_wanted() {
    for (wanted, left) in [(Drift::Repair, 0), (Drift::Report, 1)] {
        let mut choices = Choices::default();
        choices.engine.drift = wanted;
        let world = Arc::clone(&choices.world);
        let broker = TestBroker::with(choices).await;
        broker.provisioned("one").await;
        world
            .drifted
            .lock()
            .unwrap()
            .push("StatefulSet alpha: spec.replicas is 0".into());
        let report = broker.sweeper().drift().await.unwrap();
        assert_eq!(report.drifted, 1);
        assert_eq!(world.drifted.lock().unwrap().len(), left, "{wanted:?}");
        broker.deleted("one").await;
        broker.end().await;
    }
}
