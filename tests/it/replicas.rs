//! Two brokers on one database: shared work, stolen leases, stale writers.

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ids};
use crate::support::postgres;
use crate::support::world::{Effect, When};
use async_trait::async_trait;
use chandler::domain::catalog::{Offering, Plan};
use chandler::domain::manifest::Desired;
use chandler::engine::{Engine, Runner, Settings};
use chandler::ports::{InstanceRef, Observation, PortError, PortResult, Provisioner, Removal, Volumes};
use chandler::store::{Store, StoreOptions};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

async fn on_postgres() -> (TestBroker, String) {
    let url = postgres::fresh_url().await;
    let mut choices = Choices {
        database: Some(url.clone()),
        ..Choices::default()
    };
    choices.engine.runs_work = false;
    (TestBroker::with(choices).await, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_queue_and_nothing_runs_twice() {
    let (broker, url) = on_postgres().await;
    for n in 0..24 {
        let path = format!("/v2/service_instances/i{n}?accepts_incomplete=true");
        broker.put(&path, &catalog::provision_body()).await.expect(202);
    }
    let other = broker.replica(&url, "other").await;
    let (a, b) = (Runner::new(broker.engine.clone()), Runner::new(other.clone()));
    let (a, b) = tokio::join!(
        tokio::spawn(async move { a.run_due().await }),
        tokio::spawn(async move { b.run_due().await })
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a + b, 24, "each operation was claimed once");
    assert!(a > 0 && b > 0, "both worked: {a} and {b}");
    assert_eq!(broker.world.count("apply"), 24);
    for n in 0..24 {
        let last = broker
            .get(&format!("/v2/service_instances/i{n}/last_operation"))
            .await
            .expect(200);
        assert_eq!(last.body["state"], "succeeded");
        broker
            .delete(&format!(
                "/v2/service_instances/i{n}?accepts_incomplete=true&{}",
                ids()
            ))
            .await
            .expect(202);
    }
    broker.run_until_idle().await;
    other.store().close().await;
    broker.end().await;
}

/// A worker sleeps through its lease inside `issue`; another finishes the bind; the sleeper wakes and finds it is nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_overslept_changes_nothing() {
    let (broker, url) = on_postgres().await;
    broker.provisioned("one").await;
    let path = "/v2/service_instances/one/service_bindings/a";
    broker
        .put(&format!("{path}?accepts_incomplete=true"), &catalog::bind_body())
        .await
        .expect(202);
    broker.world.plan("issue", When::After, Effect::Hang, 1);
    let sleeper = Runner::new(broker.engine.clone());
    let sleeping = tokio::spawn(async move { sleeper.run_due().await });
    broker.world.hung.notified().await;
    broker.engine.store().expire_leases().await.unwrap();
    let other = broker.replica(&url, "other").await;
    assert!(Runner::new(other.clone()).run_due().await >= 1);
    let got = broker.get(path).await.expect(200);
    let c = &got.body["credentials"];
    assert!(
        broker
            .world
            .lets_in(c["username"].as_str().unwrap(), c["password"].as_str().unwrap())
    );
    sleeping.abort();
    let _ = sleeping.await;
    assert_eq!(broker.get(path).await.expect(200).body, got.body);
    broker.deleted("one").await;
    other.store().close().await;
    broker.end().await;
}

/// The heartbeat notices a stolen lease and stops the step that is running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_lease_stops_the_step() {
    let url = postgres::fresh_url().await;
    let mut choices = Choices {
        database: Some(url.clone()),
        ..Choices::default()
    };
    choices.engine.runs_work = false;
    choices.engine.lease = Duration::from_millis(1500);
    let broker = TestBroker::with(choices).await;
    broker
        .put(
            "/v2/service_instances/one?accepts_incomplete=true",
            &catalog::provision_body(),
        )
        .await
        .expect(202);
    broker.world.plan("apply", When::Before, Effect::Hang, 1);
    let runner = Runner::new(broker.engine.clone());
    let stuck = tokio::spawn(async move { runner.run_due().await });
    broker.world.hung.notified().await;
    // The heartbeat keeps the lease as long as nobody takes it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(broker.run_due().await, 0, "the heartbeat holds the lease");
    let other = broker.replica(&url, "other").await;
    let thief = Runner::new(other.clone());
    // The heartbeat may win the lease back in between: steal until it is ours.
    for _ in 0..50 {
        broker.engine.store().expire_leases().await.unwrap();
        if thief.run_due().await > 0 {
            break;
        }
    }
    tokio::time::timeout(Duration::from_secs(5), stuck)
        .await
        .expect("the stuck step was stopped")
        .unwrap();
    let last = broker
        .get("/v2/service_instances/one/last_operation")
        .await
        .expect(200);
    assert_eq!(last.body["state"], "succeeded");
    broker.deleted("one").await;
    other.store().close().await;
    broker.end().await;
}

/// SIGTERM: what runs reaches its next record, leases are given back, another goes on at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_worker_gives_its_leases_back() {
    let (broker, url) = on_postgres().await;
    *broker.world.looks.lock().unwrap() = 3;
    for n in 0..6 {
        let path = format!("/v2/service_instances/i{n}?accepts_incomplete=true");
        broker.put(&path, &catalog::provision_body()).await.expect(202);
    }
    broker.world.plan("apply", When::Before, Effect::Hang, 1);
    let stop = CancellationToken::new();
    let runner =
        tokio::spawn(Runner::new(broker.engine.clone()).run(stop.clone(), Duration::from_millis(300)));
    broker.world.hung.notified().await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), runner)
        .await
        .expect("it stops in time")
        .unwrap();
    let other = broker.replica(&url, "other").await;
    let runner = Runner::new(other.clone());
    for _ in 0..200 {
        runner.run_due().await;
        if other.store().open_operations().await.unwrap().0 == 0 {
            break;
        }
        broker.advance(Duration::from_secs(1));
    }
    assert_eq!(other.store().open_operations().await.unwrap().0, 0);
    for n in 0..6 {
        broker.deleted(&format!("i{n}")).await;
    }
    other.store().close().await;
    broker.end().await;
}

/// What a broker sees whose way to the cluster is cut: nothing.
struct CutOff(Arc<dyn Provisioner>);

fn cut<T>() -> PortResult<T> {
    Err(PortError::transient(
        "The cluster cannot be reached; trying again.",
    ))
}

#[async_trait]
impl Provisioner for CutOff {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn offers(&self, offering: &Offering, plan: &Plan) -> Result<(), String> {
        self.0.offers(offering, plan)
    }
    async fn place(&self, _: &InstanceRef, _: &Offering) -> PortResult<Map<String, Value>> {
        cut()
    }
    async fn apply(&self, _: &InstanceRef, _: &Desired) -> PortResult<()> {
        cut()
    }
    async fn observe(&self, _: &InstanceRef, _: &Desired) -> PortResult<Observation> {
        cut()
    }
    async fn remove(&self, _: &InstanceRef, _: Volumes) -> PortResult<Removal> {
        cut()
    }
    async fn list(&self) -> PortResult<Vec<String>> {
        cut()
    }
    fn supervises(&self) -> bool {
        self.0.supervises()
    }
}

/// A broker that cannot get through knows to the millisecond when it may try again, the others only by polling: it must let
/// them go first, or nobody ever finishes its work. Alone it goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_get_through_lets_others_go_first() {
    let (broker, url) = on_postgres().await;
    let mut ports = broker.engine.ports().clone();
    ports.provisioner = Arc::new(CutOff(ports.provisioner));
    let settings = Settings {
        owner: "cut off".into(),
        ..Settings::default()
    };
    let poll = settings.poll;
    let store = Store::open(&StoreOptions::new(&url)).await.unwrap();
    let cut_off = Engine::new(store, ports, settings);
    cut_off
        .set_catalog(broker.engine.served().catalog.clone())
        .await
        .unwrap();
    let lonely = Runner::new(cut_off.clone());

    let path = "/v2/service_instances/one";
    broker
        .put(
            &format!("{path}?accepts_incomplete=true"),
            &catalog::provision_body(),
        )
        .await
        .expect(202);
    // It tries a few times, and goes on trying when nobody else is there, only later.
    let (mut at_once, mut later) = (0, 0);
    for _ in 0..8 {
        let (_, due) = broker.engine.store().open_operations().await.unwrap();
        let now = broker.engine.ports().clock.now();
        broker.advance(Duration::from_millis(
            u64::try_from(due.unwrap() - now).unwrap_or(0),
        ));
        if lonely.run_due().await > 0 {
            at_once += 1;
        } else {
            broker.advance(2 * poll);
            assert_eq!(lonely.run_due().await, 1);
            later += 1;
        }
    }
    assert!(at_once >= 3 && later >= 4, "{at_once} at once, {later} later");

    let (_, due) = broker.engine.store().open_operations().await.unwrap();
    let now = broker.engine.ports().clock.now();
    broker.advance(Duration::from_millis(u64::try_from(due.unwrap() - now).unwrap()));
    assert_eq!(lonely.run_due().await, 0);
    assert_eq!(Runner::new(broker.engine.clone()).run_due().await, 1);
    let told = broker.get(&format!("{path}/last_operation")).await.expect(200);
    assert_eq!(told.body["state"], "succeeded");
    broker.deleted("one").await;
    cut_off.store().close().await;
    broker.end().await;
}
