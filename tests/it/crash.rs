//! A worker may die at any moment. Every kind of operation × every outside call of it × {before it acted, after it
//! acted and before anybody heard}: the worker is dropped there, another begins, and the final state equals that of
//! the undisturbed run.

use crate::support::broker::TestBroker;
use crate::support::catalog::{self, MEDIUM, ids};
use crate::support::world::{Effect, FakeInstance, When};
use chandler::domain::operation::OperationState;
use chandler::engine::Runner;
use chandler::ports::PortErrorKind;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Provision,
    Update,
    Deprovision,
    Bind,
    Rotate,
    Unbind,
    Expire,
}

const KINDS: [Kind; 7] = [
    Kind::Provision,
    Kind::Update,
    Kind::Deprovision,
    Kind::Bind,
    Kind::Rotate,
    Kind::Unbind,
    Kind::Expire,
];

/// Outside calls of each kind, in order.
fn calls(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Provision | Kind::Update => &["place", "apply", "observe", "prepare"],
        Kind::Deprovision => &["remove"],
        Kind::Bind | Kind::Rotate => &["issue", "verify"],
        Kind::Unbind | Kind::Expire => &["revoke"],
    }
}

const I: &str = "/v2/service_instances/one";

/// A broker whose operations only a runner of the test touches.
async fn broker() -> TestBroker {
    let mut choices = crate::support::broker::Choices::default();
    choices.engine.runs_work = false;
    TestBroker::with(choices).await
}

/// Brings the broker to where an operation of this kind can be accepted, and accepts it.
async fn accept(broker: &TestBroker, kind: Kind) {
    let bind = |name: &'static str| async move {
        broker
            .put(
                &format!("{I}/service_bindings/{name}?accepts_incomplete=true"),
                &catalog::bind_body(),
            )
            .await
            .expect(202);
        broker.run_until_idle().await;
    };
    if kind == Kind::Expire {
        let body = json!({"service_id": catalog::ALPHA, "plan_id": catalog::SHORT, "organization_guid": "o", "space_guid": "s"});
        broker
            .put(&format!("{I}?accepts_incomplete=true"), &body)
            .await
            .expect(202);
        broker.run_until_idle().await;
        let body = json!({"service_id": catalog::ALPHA, "plan_id": catalog::SHORT});
        broker
            .put(&format!("{I}/service_bindings/a?accepts_incomplete=true"), &body)
            .await
            .expect(202);
        broker.run_until_idle().await;
        broker.advance(Duration::from_secs(601));
        assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 1);
        return;
    }
    if kind != Kind::Provision {
        broker.provisioned("one").await;
    }
    match kind {
        Kind::Provision => {
            broker
                .put(
                    &format!("{I}?accepts_incomplete=true"),
                    &catalog::provision_body(),
                )
                .await
                .expect(202);
        }
        Kind::Update => {
            let body = json!({"service_id": catalog::ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}});
            broker
                .patch(&format!("{I}?accepts_incomplete=true"), &body)
                .await
                .expect(202);
        }
        Kind::Deprovision => {
            bind("a").await;
            broker
                .delete(&format!("{I}?accepts_incomplete=true&{}", ids()))
                .await
                .expect(202);
        }
        Kind::Bind => {
            broker
                .put(
                    &format!("{I}/service_bindings/a?accepts_incomplete=true"),
                    &catalog::bind_body(),
                )
                .await
                .expect(202);
        }
        Kind::Rotate => {
            bind("a").await;
            let body = json!({"predecessor_binding_id": "a"});
            broker
                .put(&format!("{I}/service_bindings/b?accepts_incomplete=true"), &body)
                .await
                .expect(202);
        }
        Kind::Unbind => {
            bind("a").await;
            broker
                .delete(&format!(
                    "{I}/service_bindings/a?accepts_incomplete=true&{}",
                    ids()
                ))
                .await
                .expect(202);
        }
        Kind::Expire => {}
    }
}

/// Everything that matters at the end, without what may differ (times, tokens, passwords).
async fn state(broker: &TestBroker) -> Vec<String> {
    let store = broker.engine.store();
    let mut seen = Vec::new();
    for i in store.instances_page("", None, 100).await.unwrap() {
        seen.push(format!(
            "instance {} {} {:?} {:?}",
            i.state, i.usable, i.attributes, i.maintenance_version
        ));
        for b in store.bindings_of(&i.iid).await.unwrap() {
            seen.push(format!(
                "binding {} {} residue={} {:?}",
                b.binding_id, b.state, b.residue, b.attributes
            ));
        }
    }
    for row in store.operations_list(None, 100).await.unwrap() {
        seen.push(format!(
            "operation {} {:?}",
            row.operation.kind, row.operation.state
        ));
    }
    let world: BTreeMap<String, FakeInstance> = broker.world.instances.lock().unwrap().clone();
    for (iid, i) in world {
        let users: Vec<_> = i
            .users
            .iter()
            .map(|(u, (_, role))| format!("{u}:{role}"))
            .collect();
        seen.push(format!(
            "world {iid} {} {} {} {users:?}",
            i.applied, i.running, i.prepared
        ));
    }
    for name in broker.engine.ports().secrets.list("").await.unwrap() {
        seen.push(format!("secret {name}"));
    }
    seen.sort();
    seen
}

/// Every live binding's stored password is the one the backend knows.
async fn credentials_work(broker: &TestBroker) {
    for name in ["a", "b"] {
        let got = broker.get(&format!("{I}/service_bindings/{name}")).await;
        if got.status == 200 {
            let c = &got.body["credentials"];
            let (user, password) = (c["username"].as_str().unwrap(), c["password"].as_str().unwrap());
            assert!(broker.world.lets_in(user, password), "{name}: {}", got.text);
        }
    }
}

async fn clean_up(broker: TestBroker) {
    let plan = if broker.get(I).await.body["plan_id"] == catalog::SHORT {
        catalog::SHORT
    } else {
        catalog::SMALL
    };
    let gone = broker
        .delete(&format!(
            "{I}?accepts_incomplete=true&service_id={}&plan_id={plan}",
            catalog::ALPHA
        ))
        .await;
    assert!([202, 410].contains(&gone.status), "{}", gone.text);
    broker.run_until_idle().await;
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_every_call_before_and_after() {
    for kind in KINDS {
        let undisturbed = broker().await;
        accept(&undisturbed, kind).await;
        undisturbed.run_until_idle().await;
        let expected = state(&undisturbed).await;
        clean_up(undisturbed).await;

        for call in calls(kind) {
            for when in [When::Before, When::After] {
                let broker = broker().await;
                accept(&broker, kind).await;
                broker.world.plan(call, when, Effect::Hang, 1);
                let runner = Runner::new(broker.engine.clone());
                let dying = tokio::spawn(async move { runner.run_due().await });
                tokio::time::timeout(Duration::from_secs(10), broker.world.hung.notified())
                    .await
                    .unwrap_or_else(|_| panic!("{kind:?}: {call} {when:?} was not reached"));
                dying.abort();
                let _ = dying.await;
                // Until its lease is over nobody touches the operation.
                assert_eq!(
                    broker.run_due().await,
                    0,
                    "{kind:?} {call} {when:?}: the lease holds"
                );
                broker.engine.store().expire_leases().await.unwrap();
                broker.run_until_idle().await;
                assert_eq!(state(&broker).await, expected, "{kind:?}, dead {when:?} {call}");
                credentials_work(&broker).await;
                clean_up(broker).await;
            }
        }
    }
}

/// A backend that fails for a while only delays; the final state is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_failures_only_delay() {
    for kind in KINDS {
        let undisturbed = broker().await;
        accept(&undisturbed, kind).await;
        undisturbed.run_until_idle().await;
        let expected = state(&undisturbed).await;
        clean_up(undisturbed).await;
        for call in calls(kind) {
            let broker = broker().await;
            accept(&broker, kind).await;
            for when in [When::Before, When::After] {
                broker.world.plan(
                    call,
                    when,
                    Effect::Fail(PortErrorKind::Transient, "a passing failure"),
                    3,
                );
            }
            broker.run_until_idle().await;
            assert_eq!(
                state(&broker).await,
                expected,
                "{kind:?}, {call} failing for a while"
            );
            credentials_work(&broker).await;
            clean_up(broker).await;
        }
    }
}

/// What cannot work ends the operation, with the reason, and leaves nothing half granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_that_cannot_work_is_undone() {
    for call in ["issue", "verify"] {
        for when in [When::Before, When::After] {
            let broker = broker().await;
            accept(&broker, Kind::Bind).await;
            broker.world.plan(
                call,
                when,
                Effect::Fail(PortErrorKind::Denied, "The backend says no."),
                1,
            );
            broker.run_until_idle().await;
            let last = broker
                .get(&format!("{I}/service_bindings/a/last_operation"))
                .await
                .expect(200);
            assert_eq!(last.body["state"], "failed");
            assert!(
                last.body["description"]
                    .as_str()
                    .unwrap()
                    .contains("The backend says no."),
                "{}",
                last.text
            );
            assert!(
                broker.world.users().is_empty(),
                "{call} {when:?}: no user is left"
            );
            broker.get(&format!("{I}/service_bindings/a")).await.expect(404);
            // P-18 for bindings: the same request is a fresh attempt.
            broker
                .put(
                    &format!("{I}/service_bindings/a?accepts_incomplete=true"),
                    &catalog::bind_body(),
                )
                .await
                .expect(202);
            broker.run_until_idle().await;
            broker.get(&format!("{I}/service_bindings/a")).await.expect(200);
            clean_up(broker).await;
        }
    }
}

/// An undo that cannot finish is never forgotten: the row says so, and the sweep goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_that_fails_is_finished_by_the_sweep() {
    let broker = broker().await;
    accept(&broker, Kind::Bind).await;
    broker.world.plan(
        "verify",
        When::Before,
        Effect::Fail(PortErrorKind::Denied, "no"),
        1,
    );
    broker.world.plan(
        "revoke",
        When::Before,
        Effect::Fail(PortErrorKind::Transient, "the server is away"),
        10_000,
    );
    broker.run_until_idle().await;
    let last = broker
        .get(&format!("{I}/service_bindings/a/last_operation"))
        .await
        .expect(200);
    assert_eq!(last.body["state"], "failed");
    assert_eq!(broker.world.users().len(), 1, "the user is still there");
    assert!(!broker.left_over().await.is_empty(), "and a row knows about it");
    broker.world.calm();
    broker.advance(Duration::from_secs(61));
    assert_eq!(broker.sweeper().bindings().await.unwrap().residual, 1);
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty());
    clean_up(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbind_that_fails_is_finished_by_the_sweep() {
    let broker = broker().await;
    accept(&broker, Kind::Unbind).await;
    broker.world.plan(
        "revoke",
        When::Before,
        Effect::Fail(PortErrorKind::Transient, "the server is away"),
        10_000,
    );
    broker.run_until_idle().await;
    let last = broker
        .get(&format!("{I}/service_bindings/a/last_operation"))
        .await
        .expect(200);
    assert_eq!(last.body["state"], "failed");
    broker.world.calm();
    broker.advance(Duration::from_secs(61));
    assert_eq!(broker.sweeper().bindings().await.unwrap().residual, 1);
    broker.run_until_idle().await;
    assert!(broker.world.users().is_empty());
    broker
        .delete(&format!("{I}/service_bindings/a?{}", ids()))
        .await
        .expect(410);
    clean_up(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_update_goes_back_and_says_so() {
    let broker = broker().await;
    broker.provisioned("one").await;
    let before = broker.get(I).await.expect(200).body;
    let body = json!({"service_id": catalog::ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}});
    broker
        .patch(&format!("{I}?accepts_incomplete=true"), &body)
        .await
        .expect(202);
    broker.world.plan(
        "apply",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "Too little memory on this machine."),
        1,
    );
    broker.run_until_idle().await;
    let last = broker.get(&format!("{I}/last_operation")).await.expect(200);
    assert_eq!(
        (&last.body["state"], &last.body["instance_usable"]),
        (&json!("failed"), &json!(true))
    );
    assert!(
        last.body["description"]
            .as_str()
            .unwrap()
            .starts_with("Too little memory"),
        "{}",
        last.text
    );
    assert_eq!(broker.get(I).await.expect(200).body, before, "G-09");
    clean_up(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_cannot_go_back_leaves_an_unusable_instance_that_an_update_repairs() {
    let broker = broker().await;
    broker.provisioned("one").await;
    let body = json!({"service_id": catalog::ALPHA, "parameters": {"size": 7}});
    broker
        .patch(&format!("{I}?accepts_incomplete=true"), &body)
        .await
        .expect(202);
    broker.world.plan(
        "apply",
        When::Before,
        Effect::Fail(PortErrorKind::Invalid, "no"),
        2,
    );
    broker.run_until_idle().await;
    let last = broker.get(&format!("{I}/last_operation")).await.expect(200);
    assert_eq!(
        (&last.body["state"], &last.body["instance_usable"]),
        (&json!("failed"), &json!(false))
    );
    broker
        .patch(
            &format!("{I}?accepts_incomplete=true"),
            &json!({"service_id": catalog::ALPHA}),
        )
        .await
        .expect(202);
    broker.run_until_idle().await;
    assert_eq!(
        broker.get(&format!("{I}/last_operation")).await.body["state"],
        "succeeded"
    );
    clean_up(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_what_never_becomes_ready() {
    let broker = broker().await;
    *broker.world.looks.lock().unwrap() = 1_000_000;
    accept(&broker, Kind::Provision).await;
    broker.run_until_idle().await;
    let last = broker.get(&format!("{I}/last_operation")).await.expect(200);
    assert_eq!(last.body["state"], "failed");
    assert!(
        last.body["description"].as_str().unwrap().contains("more looks"),
        "says what was seen last: {}",
        last.text
    );
    broker.get(I).await.expect(404);
    clean_up(broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_stops_is_started_again_by_the_sweep() {
    let broker = broker().await;
    broker.provisioned("one").await;
    let iid = broker
        .world
        .instances
        .lock()
        .unwrap()
        .keys()
        .next()
        .unwrap()
        .clone();
    broker.world.stop(&iid);
    assert_eq!(broker.sweeper().revive().await.unwrap().revived, 1);
    assert!(broker.world.instances.lock().unwrap()[&iid].running);
    clean_up(broker).await;
}

/// A lost database must not cost the data: what no row knows is told, and goes only when asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_row_knows_is_told_and_not_touched() {
    let broker = broker().await;
    broker.provisioned("one").await;
    let stranger = "aaaaaaaaaaaaaaaaaaaaaaaaaa";
    broker
        .world
        .instances
        .lock()
        .unwrap()
        .insert(stranger.into(), FakeInstance::default());
    let seen = broker.sweeper().orphans().await.unwrap();
    assert_eq!((seen.orphans, seen.unknown), (0, 1));
    assert_eq!(broker.world.instances.lock().unwrap().len(), 2);
    assert_eq!(broker.sweeper().unknown().await.unwrap(), [stranger]);
    assert!(broker.sweeper().remove(stranger).await);
    assert_eq!(
        broker.world.instances.lock().unwrap().len(),
        1,
        "the one with a row stays"
    );
    clean_up(broker).await;
}

/// What a worker that was held up makes after its instance is gone has a tombstone, and goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_after_the_end_is_removed_by_the_sweep() {
    let broker = broker().await;
    broker.provisioned("one").await;
    let iid = broker
        .world
        .instances
        .lock()
        .unwrap()
        .keys()
        .next()
        .unwrap()
        .clone();
    broker.deleted("one").await;
    broker
        .world
        .instances
        .lock()
        .unwrap()
        .insert(iid, FakeInstance::default());
    let seen = broker.sweeper().orphans().await.unwrap();
    assert_eq!((seen.orphans, seen.unknown), (1, 0));
    assert!(broker.world.instances.lock().unwrap().is_empty());
    broker.end().await;
}

/// DELETE while a worker is inside `apply`: its late write is found and removed, its record is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_during_create_wins_over_a_worker_inside_a_call() {
    for (call, when) in [
        ("apply", When::Before),
        ("apply", When::After),
        ("prepare", When::Before),
    ] {
        let broker = broker().await;
        accept(&broker, Kind::Provision).await;
        broker.world.plan(call, when, Effect::Hang, 1);
        let runner = Runner::new(broker.engine.clone());
        let first = tokio::spawn(async move { runner.run_due().await });
        broker.world.hung.notified().await;
        let put = broker
            .put(
                &format!("{I}?accepts_incomplete=true"),
                &catalog::provision_body(),
            )
            .await
            .expect(202);
        let gone = broker
            .delete(&format!("{I}?accepts_incomplete=true&{}", ids()))
            .await
            .expect(202);
        assert_ne!(put.operation(), gone.operation());
        first.await.unwrap();
        broker.run_until_idle().await;
        let of = |token: String| {
            let broker = &broker;
            async move {
                broker
                    .get(&format!("{I}/last_operation?operation={token}"))
                    .await
                    .expect(200)
                    .body["state"]
                    .clone()
            }
        };
        assert_eq!(of(put.operation().to_owned()).await, "failed", "L-12");
        assert_eq!(of(gone.operation().to_owned()).await, "succeeded");
        assert!(broker.world.instances.lock().unwrap().is_empty());
        broker.end().await;
    }
}

/// Mechanisms that state the whole list of revocations: unbinds side by side must not undo one another.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn side_by_side_unbinds_keep_every_revocation() {
    let broker = broker().await;
    *broker.world.whole_list.lock().unwrap() = true;
    broker.provisioned("one").await;
    let mut handles = Vec::new();
    for n in 0..8 {
        let path = format!("{I}/service_bindings/b{n}?accepts_incomplete=true");
        broker.put(&path, &catalog::bind_body()).await.expect(202);
        broker.run_until_idle().await;
        let got = broker
            .get(&format!("{I}/service_bindings/b{n}"))
            .await
            .expect(200);
        handles.push(got.body["credentials"]["username"].as_str().unwrap().to_owned());
    }
    for n in 0..8 {
        let path = format!("{I}/service_bindings/b{n}?accepts_incomplete=true&{}", ids());
        broker.delete(&path).await.expect(202);
    }
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let runner = Runner::new(broker.engine.clone());
            tokio::spawn(async move { runner.run_due().await })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    broker.run_until_idle().await;
    let revoked = broker
        .world
        .instances
        .lock()
        .unwrap()
        .values()
        .next()
        .unwrap()
        .revoked
        .clone();
    for handle in handles {
        assert!(revoked.contains(&handle), "{handle} is let in again");
    }
    clean_up(broker).await;
}

/// An operator's cancel undoes a bind and ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_ends_an_operation_as_failed_and_undone() {
    let broker = broker().await;
    accept(&broker, Kind::Bind).await;
    broker.world.plan(
        "verify",
        When::Before,
        Effect::Fail(PortErrorKind::Transient, "away"),
        2,
    );
    broker.run_due().await;
    let open = broker
        .engine
        .store()
        .operations_list(Some(OperationState::Open), 10)
        .await
        .unwrap();
    let id = open[0].operation.id.clone();
    let why = format!("{}.", chandler::engine::CANCELLED);
    assert!(
        broker
            .engine
            .store()
            .operation_cancel(&id, &why, 0)
            .await
            .unwrap()
    );
    broker.run_until_idle().await;
    let last = broker
        .get(&format!("{I}/service_bindings/a/last_operation"))
        .await
        .expect(200);
    assert_eq!(
        (&last.body["state"], &last.body["description"]),
        (&json!("failed"), &json!("Cancelled by an operator."))
    );
    assert!(broker.world.users().is_empty());
    clean_up(broker).await;
}
