//! New credentials for an instance's administrator: bindings do not notice, a worker may die at any call, what an earlier
//! try made is gone on with, and nobody goes on with the former ones out of a memory.

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{ALPHA, bind_body, ids};
use crate::support::flow::{LATER, binding, instance};
use crate::support::world::{Effect, When, World};
use async_trait::async_trait;
use chandler::domain::operation::OperationState;
use chandler::domain::secret::Secret;
use chandler::engine::{Engine, Ports, Runner, Settings, administrator_since};
use chandler::ports::{Clock, PortErrorKind, PortResult, SecretStore, secret_name};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Outside calls of it, in order.
const CALLS: [&str; 7] = [
    "keep_secret",
    "rotate_admin",
    "apply",
    "observe",
    "prepare",
    "confirm_admin",
    "destroy_secret",
];

/// Secrets as a process with a vault has them: an instance's that it read once it does not read again. Calls can be struck.
struct Remembering {
    inner: Arc<dyn SecretStore>,
    world: Arc<World>,
    read: Mutex<HashMap<String, Secret>>,
}

#[async_trait]
impl SecretStore for Remembering {
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
        self.world.strike("keep_secret", When::Before).await?;
        let stored = self.inner.create(name, value).await?;
        self.world.strike("keep_secret", When::After).await?;
        Ok(stored)
    }

    async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
        if let Some(known) = self.read.lock().unwrap().get(name) {
            return Ok(Some(known.clone()));
        }
        let found = self.inner.get(name).await?;
        if let Some(found) = found.as_ref().filter(|_| !secret_name::is_binding(name)) {
            self.read.lock().unwrap().insert(name.to_owned(), found.clone());
        }
        Ok(found)
    }

    async fn destroy(&self, name: &str) -> PortResult<()> {
        self.world.strike("destroy_secret", When::Before).await?;
        self.inner.destroy(name).await?;
        self.world.strike("destroy_secret", When::After).await
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        self.inner.list(prefix).await
    }
}

/// Another process on the same database and world, which remembers what it read.
async fn replica(broker: &TestBroker, owner: &str) -> Arc<Engine> {
    let ports = broker.engine.ports().clone();
    let secrets = Remembering {
        inner: ports.secrets.clone(),
        world: broker.world.clone(),
        read: Mutex::default(),
    };
    let settings = Settings {
        owner: owner.to_owned(),
        poll: Duration::from_millis(1),
        ..Settings::default()
    };
    let ports = Ports {
        secrets: Arc::new(secrets),
        ..ports
    };
    let engine = Engine::new(broker.engine.store().clone(), ports, settings);
    let catalog = broker.engine.served().catalog.clone();
    engine.set_catalog(catalog).await.unwrap();
    engine
}

/// Lets one process do all the work there is.
async fn work(broker: &TestBroker, engine: &Arc<Engine>) {
    let runner = Runner::new(engine.clone());
    for _ in 0..2000 {
        runner.run_due().await;
        let (open, due) = engine.store().open_operations().await.unwrap();
        if open == 0 {
            return;
        }
        let pause = (due.unwrap() - broker.clock.now()).max(0) + 3;
        broker.advance(Duration::from_millis(u64::try_from(pause).unwrap()));
    }
    panic!("operations do not come to an end");
}

async fn with(choices: Choices) -> TestBroker {
    let mut choices = choices;
    choices.engine.runs_work = false;
    choices.world.own_admins.store(true, Ordering::Relaxed);
    TestBroker::with(choices).await
}

/// A broker with a bound instance; its name, and the credentials of the binding.
async fn bound() -> (TestBroker, String, Value) {
    let broker = with(Choices::default()).await;
    broker.provisioned("one").await;
    let credentials = broker.bound_later("a", &bind_body()).await;
    let iid = broker.row("one").await.iid;
    (broker, iid, credentials)
}

/// Passwords of administrators that are kept, by the last parts of their names.
async fn kept(broker: &TestBroker, iid: &str) -> Vec<(String, String)> {
    let secrets = &broker.engine.ports().secrets;
    let mut kept = Vec::new();
    for name in secrets.list(&secret_name::all(iid)).await.unwrap() {
        if secret_name::is_admin(&name) {
            let secret = secrets.get(&name).await.unwrap().unwrap();
            let part = name.strip_prefix(&secret_name::all(iid)).unwrap();
            kept.push((part.to_owned(), secret.text("password").to_owned()));
        }
    }
    kept
}

/// The password the server knows.
fn there(broker: &TestBroker, iid: &str) -> String {
    broker.world.instances.lock().unwrap()[iid].admin.clone().unwrap()
}

/// The server has other credentials than before, they are the only ones kept, and everything works.
async fn is_rotated(broker: &TestBroker, iid: &str, former: &str, what: &str) {
    let now = there(broker, iid);
    assert_ne!(now, former, "{what}");
    assert_eq!(kept(broker, iid).await, [("admin-1".to_owned(), now)], "{what}");
    broker.get(&instance("one")).await.expect(200);
    let credentials = broker.bound_later("after", &bind_body()).await;
    assert!(broker.opens(&credentials), "{what}");
    let path = format!("{}?{LATER}&{}", binding("after"), ids());
    broker.delete(&path).await.expect(202);
    broker.run_until_idle().await;
    assert!(!broker.opens(&credentials), "{what}");
}

async fn state_of(broker: &TestBroker, operation: &str) -> (OperationState, String) {
    let (row, _) = broker.engine.store().operation(operation).await.unwrap().unwrap();
    (row.operation.state, row.operation.description)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_administrator_changes_and_bindings_do_not_notice() {
    let (broker, iid, credentials) = bound().await;
    let made_at = administrator_since(&broker.row("one").await);
    broker.advance(Duration::from_hours(1));
    let former = there(&broker, &iid);
    let operation = broker.engine.rotate_admin(&iid).await.unwrap();
    // Nothing else is done on the instance meanwhile; the platform is told what it was told before.
    broker
        .put(&format!("{}?{LATER}", binding("c")), &bind_body())
        .await
        .expect_error(422, "ConcurrencyError");
    let twice = broker.engine.rotate_admin(&iid).await.unwrap_err();
    assert!(twice.description.contains("at work"), "{twice}");
    assert_eq!(broker.last(&instance("one")).await.body["state"], "succeeded");
    broker.get(&binding("a")).await.expect(200);
    broker.run_until_idle().await;
    assert_eq!(state_of(&broker, &operation).await.0, OperationState::Succeeded);
    assert!(broker.opens(&credentials));
    let last = broker.last_of(&instance("one"), &operation).await;
    assert!(!last.text.contains("administrator"), "{}", last.text);
    assert!(administrator_since(&broker.row("one").await) > made_at);
    is_rotated(&broker, &iid, &former, "undisturbed").await;

    let records = broker.engine.store().audit_page(0, 1000).await.unwrap();
    let told: Vec<_> = records
        .iter()
        .map(|record| &record.event)
        .filter(|event| event.action == "rotate_admin")
        .collect();
    let outcomes: Vec<_> = told.iter().map(|event| event.outcome.as_str()).collect();
    assert_eq!(outcomes, ["accepted", "succeeded"]);
    for event in told {
        assert_eq!(
            (event.cause.as_str(), event.platform.as_str()),
            ("operator", "cf")
        );
        assert_eq!(
            (event.instance.as_str(), event.binding.as_str()),
            (iid.as_str(), "")
        );
        assert_eq!(event.operation.as_ref(), Some(&operation));
    }

    // And once more: numbers go on, and what the platform may ask for stays.
    broker.engine.rotate_admin(&iid).await.unwrap();
    broker.run_until_idle().await;
    let now = there(&broker, &iid);
    assert_eq!(kept(&broker, &iid).await, [("admin-2".to_owned(), now)]);
    broker.advance(Duration::from_hours(24 * 30));
    broker.sweeper().purge().await.unwrap();
    assert_eq!(broker.last(&instance("one")).await.body["state"], "succeeded");
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_die_and_an_answer_be_lost_at_any_call() {
    for call in CALLS {
        for when in [When::Before, When::After] {
            for dies in [true, false] {
                let what = format!("{call} {when:?} dies={dies}");
                let (broker, iid, credentials) = bound().await;
                let former = there(&broker, &iid);
                let operation = broker.engine.rotate_admin(&iid).await.unwrap();
                let one = replica(&broker, "one").await;
                if dies {
                    broker.world.plan(call, when, Effect::Hang, 1);
                    let runner = Runner::new(one.clone());
                    let dying = tokio::spawn(async move { runner.run_due().await });
                    let hung = tokio::time::timeout(Duration::from_secs(10), broker.world.hung.notified());
                    hung.await.unwrap_or_else(|_| panic!("{what}: was not reached"));
                    dying.abort();
                    let _ = dying.await;
                    let now = there(&broker, &iid);
                    let known = kept(&broker, &iid).await;
                    assert!(
                        known.iter().any(|(_, password)| *password == now),
                        "{what}: the broker is locked out"
                    );
                    broker.engine.store().expire_leases().await.unwrap();
                    work(&broker, &replica(&broker, "two").await).await;
                } else {
                    let failure = Effect::Fail(PortErrorKind::Transient, "a passing failure");
                    broker.world.plan(call, when, failure, 2);
                    work(&broker, &one).await;
                }
                assert_eq!(
                    state_of(&broker, &operation).await.0,
                    OperationState::Succeeded,
                    "{what}"
                );
                assert!(broker.opens(&credentials), "{what}");
                is_rotated(&broker, &iid, &former, &what).await;
                broker.deleted_and_end().await;
            }
        }
    }
}

/// What cannot work ends as failed; bindings are made and revoked all the same, with whichever credentials let in, and the
/// next try goes on with those that were made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_go_on_after_a_failure_and_so_does_the_next_try() {
    for (call, when, said) in [
        ("rotate_admin", When::Before, "goes on with the new"),
        ("rotate_admin", When::After, "goes on with the new"),
        ("apply", When::Before, "are in use"),
        ("confirm_admin", When::Before, "are in use"),
    ] {
        let what = format!("{call} {when:?}");
        let (broker, iid, credentials) = bound().await;
        let former = there(&broker, &iid);
        let operation = broker.engine.rotate_admin(&iid).await.unwrap();
        let no = Effect::Fail(PortErrorKind::Invalid, "The server says no.");
        broker.world.plan(call, when, no, 1);
        broker.run_until_idle().await;
        let (state, description) = state_of(&broker, &operation).await;
        assert_eq!(state, OperationState::Failed, "{what}");
        assert!(
            description.contains("says no") && description.contains(said),
            "{what}: {description}"
        );
        broker.get(&instance("one")).await.expect(200);
        let made = broker.bound_later("b", &bind_body()).await;
        assert!(broker.opens(&credentials) && broker.opens(&made), "{what}");
        let path = format!("{}?{LATER}&{}", binding("b"), ids());
        broker.delete(&path).await.expect(202);
        broker.run_until_idle().await;
        assert!(!broker.opens(&made), "{what}");
        // Wherever that left the server, the broker goes on from there.
        broker.engine.rotate_admin(&iid).await.unwrap();
        broker.run_until_idle().await;
        let now = there(&broker, &iid);
        assert_ne!(now, former, "{what}");
        let kept = kept(&broker, &iid).await;
        assert_eq!(kept.len(), 1, "{what}: {kept:?}");
        assert_eq!(kept[0].1, now, "{what}");
        broker.deleted_and_end().await;
    }
}

/// The other replica has the former credentials in its memory, and works at once with the new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_remembers_and_is_not_refused() {
    let (broker, iid, _) = bound().await;
    let (one, two) = (replica(&broker, "one").await, replica(&broker, "two").await);
    for engine in [&one, &two] {
        // Reads the administrator's credentials, and keeps them in memory.
        broker
            .put(&format!("{}?{LATER}", binding("b")), &bind_body())
            .await
            .expect(202);
        work(&broker, engine).await;
        let path = format!("{}?{LATER}&{}", binding("b"), ids());
        broker.delete(&path).await.expect(202);
        work(&broker, engine).await;
    }
    let former = there(&broker, &iid);
    two.rotate_admin(&iid).await.unwrap();
    work(&broker, &one).await;
    assert_ne!(there(&broker, &iid), former);
    for engine in [&two, &one] {
        broker
            .put(&format!("{}?{LATER}", binding("b")), &bind_body())
            .await
            .expect(202);
        work(&broker, engine).await;
        broker.get(&binding("b")).await.expect(200);
        let path = format!("{}?{LATER}&{}", binding("b"), ids());
        broker.delete(&path).await.expect(202);
        work(&broker, engine).await;
    }
    broker.deleted_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_is_refused_and_a_delete_wins() {
    let (broker, iid, _) = bound().await;
    let before = kept(&broker, &iid).await;
    *broker.world.whole_list.lock().unwrap() = true;
    let refused = broker.engine.rotate_admin(&iid).await.unwrap_err();
    assert!(refused.description.contains("cannot exchange"), "{refused}");
    assert!(broker.engine.rotate_admin("nobody").await.is_err());
    *broker.world.whole_list.lock().unwrap() = false;
    assert_eq!(kept(&broker, &iid).await, before, "nothing was made");
    assert_eq!(broker.engine.store().open_operations().await.unwrap().0, 0);

    let path = format!("{}?{LATER}", binding("b"));
    broker.put(&path, &bind_body()).await.expect(202);
    let busy = broker.engine.rotate_admin(&iid).await.unwrap_err();
    assert!(busy.description.contains("at work"), "{busy}");
    broker.run_until_idle().await;

    let operation = broker.engine.rotate_admin(&iid).await.unwrap();
    let path = format!("{}?{LATER}&{}", instance("one"), ids());
    broker.delete(&path).await.expect(202);
    broker.run_until_idle().await;
    assert_eq!(state_of(&broker, &operation).await.0, OperationState::Superseded);
    let gone = broker.engine.rotate_admin(&iid).await.unwrap_err();
    assert!(gone.description.contains("no instance"), "{gone}");
    broker.end().await;
}

/// Volumes that are kept know the administrator that the server knew last, whatever the rows had heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_volumes_open_whichever_credentials_they_know() {
    const KEPT: &str = "0a0a0a0a-0000-4000-8000-000000000098";
    for when in [None, Some(When::Before), Some(When::After)] {
        let mut choices = Choices::default();
        choices.catalog.insert(
            "plans/alpha/kept.yaml".into(),
            format!("id: {KEPT}\nname: kept\ndescription: Keeps\nretain_days: 3\nmetadata: {{displayName: Kept, bullets: [One]}}\n"),
        );
        *choices.world.keeps_volumes.lock().unwrap() = true;
        let broker = with(choices).await;
        broker.provisioned_as(ALPHA, KEPT, json!({"size": 5})).await;
        let iid = broker.row("one").await.iid;
        let bind = json!({"service_id": ALPHA, "plan_id": KEPT});
        let old = broker.bound_later("a", &bind).await;
        let former = there(&broker, &iid);
        broker.engine.rotate_admin(&iid).await.unwrap();
        if let Some(when) = when {
            // The worker dies here, and the platform deletes the instance.
            broker.world.plan("rotate_admin", when, Effect::Hang, 1);
            let runner = Runner::new(broker.engine.clone());
            let dying = tokio::spawn(async move { runner.run_due().await });
            broker.world.hung.notified().await;
            dying.abort();
        } else {
            broker.run_until_idle().await;
        }
        let known = there(&broker, &iid);
        assert_eq!(known == former, when == Some(When::Before));
        let query = format!("{LATER}&service_id={ALPHA}&plan_id={KEPT}");
        let path = format!("{}?{query}", instance("one"));
        broker.delete(&path).await.expect(202);
        broker.run_until_idle().await;
        broker.sweeper().once().await.unwrap();
        if when.is_none() {
            // Bringing it back fails, and the platform tries to create it: over the same volumes.
            let no = Effect::Fail(PortErrorKind::Invalid, "There is no room.");
            broker.world.plan("apply", When::Before, no, 1);
            broker.engine.undelete(&iid).await.unwrap();
            broker.run_until_idle().await;
            assert_eq!(broker.last(&instance("one")).await.body["state"], "failed");
            broker.provisioned_as(ALPHA, KEPT, json!({"size": 5})).await;
        } else {
            broker.engine.undelete(&iid).await.unwrap();
            broker.run_until_idle().await;
        }
        assert!(!broker.opens(&old), "a binding from before its end");
        assert_eq!(
            broker.last(&instance("one")).await.body["state"],
            "succeeded",
            "{when:?}"
        );
        let credentials = broker.bound_later("b", &bind).await;
        assert!(broker.opens(&credentials), "{when:?}");
        broker.delete(&path).await.expect(202);
        broker.run_until_idle().await;
        broker.engine.let_go(&iid).await.unwrap();
        broker.sweeper().once().await.unwrap();
        assert_eq!(kept(&broker, &iid).await, [], "{when:?}");
        broker.end().await;
    }
}
