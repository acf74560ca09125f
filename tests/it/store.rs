//! The store on both databases: one suite, so that what holds on the laptop holds in production.

use crate::support::postgres;
use chandler::domain::binding::{Binding, BindingAttributes, BindingState};
use chandler::domain::delivery::Delivery;
use chandler::domain::error::Error;
use chandler::domain::instance::{Instance, InstanceAttributes, InstanceState};
use chandler::domain::operation::{OperationKind, OperationState};
use chandler::store::{Advance, Fail, Finish, Lease, LookAgain, NewOperation, Progress, Store, StoreOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs a test body on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}/store.db?mode=rwc", dir.path().display());
            super::$name(super::open(&url).await).await;
        } )* }
        mod postgresql { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
            let url = super::postgres::fresh_url().await;
            super::$name(super::open(&url).await).await;
        } )* }
    };
}

on_both!(
    a_row_comes_back_as_it_went_in,
    a_refused_write_leaves_nothing,
    a_failing_write_does_not_take_its_neighbours_down,
    a_panicking_write_does_not_stop_the_store,
    a_caller_that_goes_away_leaves_no_half_write,
    read_then_write_never_loses_an_update,
    only_one_operation_of_a_subject_can_be_open,
    a_claim_is_exclusive_and_counts_attempts,
    a_lost_lease_cannot_record,
    a_superseded_worker_cannot_finish,
    waiting_operations_are_not_claimed_before_they_are_due,
    only_what_waits_for_the_world_is_hastened,
    busy_offerings_are_left_out,
    last_operation_answers_for_the_named_one_else_the_latest,
    finish_moves_operation_and_instance_together,
    tombstones_go_with_everything_of_theirs,
    old_operations_go_except_the_latest_of_each_subject,
    the_first_secret_of_a_name_stays,
    a_secret_of_what_is_being_deleted_is_refused,
    migrating_again_changes_nothing,
    replicas_that_start_together_migrate_once,
);

async fn open(url: &str) -> Store {
    let store = Store::open(&StoreOptions::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    store
}

fn instance(iid: &str) -> Instance {
    Instance {
        iid: iid.into(),
        platform: "test".into(),
        instance_id: "id with \u{0} and 😀".into(),
        attributes: InstanceAttributes {
            service_id: "s".into(),
            plan_id: "p".into(),
            organization_guid: "o".into(),
            space_guid: String::new(),
            parameters: serde_json::json!({"a": [1, {"b": null}]})
                .as_object()
                .unwrap()
                .clone(),
        },
        state: InstanceState::Provisioning,
        usable: true,
        context: Some(serde_json::json!({"platform": "x", "n": "\u{0}"})),
        maintenance_version: None,
        dashboard_url: Some("https://example.test".into()),
        facts: serde_json::Map::new(),
        endpoints: Vec::new(),
        created_at: 1,
        updated_at: 2,
        retained_until: None,
    }
}

fn binding(bid: &str, iid: &str) -> Binding {
    Binding {
        bid: bid.into(),
        iid: iid.into(),
        platform: "test".into(),
        binding_id: "x".into(),
        attributes: BindingAttributes::default(),
        requested: BindingAttributes::default(),
        state: BindingState::Gone,
        handle: String::new(),
        residue: false,
        delivery: Delivery::Inline,
        generation: 0,
        rotations: 0,
        service_account: None,
        secret_namespace: None,
        expires_at: None,
        renew_before: None,
        created_at: 1,
        updated_at: 100,
    }
}

fn operation(id: &str, iid: &str, kind: OperationKind, now: i64) -> NewOperation {
    NewOperation {
        id: id.into(),
        kind,
        iid: iid.into(),
        bid: None,
        offering: "postgres".into(),
        target: None,
        step: "place",
        description: "Accepted.",
        now,
        deadline_at: now + 1_000_000,
        request_id: None,
    }
}

async fn accept(store: &Store, id: &str, iid: &str, kind: OperationKind, now: i64) -> Result<(), Fail> {
    let (row, op) = (instance(iid), operation(id, iid, kind, now));
    store
        .write(move |tx| {
            let (row, op) = (row.clone(), op.clone());
            Box::pin(async move {
                tx.insert_instance(&row).await?;
                tx.insert_operation(&op).await
            })
        })
        .await
}

async fn a_row_comes_back_as_it_went_in(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 5)
        .await
        .unwrap();
    let now = store.instance("i1").await.unwrap().unwrap();
    assert_eq!(now.instance, instance("i1"));
    assert_eq!(now.open.unwrap().id, "op1");
    assert!(store.instance("other").await.unwrap().is_none());
}

async fn a_refused_write_leaves_nothing(store: Store) {
    let refused: Result<(), Fail> = store
        .write(|tx| {
            Box::pin(async move {
                tx.insert_instance(&instance("i1")).await?;
                Err(Error::conflict("no").into())
            })
        })
        .await;
    assert!(matches!(refused, Err(Fail::Refused(_))));
    assert!(store.instance("i1").await.unwrap().is_none());
}

async fn a_failing_write_does_not_take_its_neighbours_down(store: Store) {
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let iid = format!("i{n}");
                let bad = n % 7 == 3;
                store
                    .write(move |tx| {
                        let iid = iid.clone();
                        Box::pin(async move {
                            tx.insert_instance(&instance(&iid)).await?;
                            if bad {
                                return Err(Error::conflict("after a write").into());
                            }
                            Ok(())
                        })
                    })
                    .await
                    .is_ok()
            })
        })
        .collect();
    for (n, task) in tasks.into_iter().enumerate() {
        let good = n % 7 != 3;
        assert_eq!(task.await.unwrap(), good, "write {n}");
        assert_eq!(
            store.instance(&format!("i{n}")).await.unwrap().is_some(),
            good,
            "row {n}"
        );
    }
}

async fn a_panicking_write_does_not_stop_the_store(store: Store) {
    let panicked: Result<(), Fail> = store
        .write(|tx| {
            Box::pin(async move {
                tx.insert_instance(&instance("bad")).await?;
                panic!("a bug in a write");
            })
        })
        .await;
    assert!(panicked.is_err());
    accept(&store, "op1", "good", OperationKind::Provision, 1)
        .await
        .unwrap();
    assert!(store.instance("bad").await.unwrap().is_none());
    assert!(store.instance("good").await.unwrap().is_some());
}

async fn a_caller_that_goes_away_leaves_no_half_write(store: Store) {
    let other = store.clone();
    let task = tokio::spawn(async move {
        other
            .write(|tx| {
                Box::pin(async move {
                    tx.insert_instance(&instance("i1")).await?;
                    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
                    tx.insert_operation(&operation("op1", "i1", OperationKind::Provision, 1))
                        .await
                })
            })
            .await
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    task.abort();
    accept(&store, "op2", "i2", OperationKind::Provision, 1)
        .await
        .unwrap();
    for _ in 0..100 {
        if store.instance("i1").await.unwrap().is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let now = store
        .instance("i1")
        .await
        .unwrap()
        .expect("a write once handed in runs to its end");
    assert_eq!(now.open.unwrap().id, "op1");
}

async fn read_then_write_never_loses_an_update(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 0)
        .await
        .unwrap();
    let failures = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, failures) = (store.clone(), failures.clone());
            tokio::spawn(async move {
                for _ in 0..25 {
                    let done = store
                        .write(|tx| {
                            Box::pin(async move {
                                let mut row = tx.instance_now("i1").await?.unwrap().instance;
                                row.updated_at += 1;
                                tx.save_instance(&row).await
                            })
                        })
                        .await;
                    failures.fetch_add(u32::from(done.is_err()), Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    assert_eq!(
        store.instance("i1").await.unwrap().unwrap().instance.updated_at,
        2 + 200
    );
}

async fn only_one_operation_of_a_subject_can_be_open(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    assert!(
        accept(&store, "op2", "i1", OperationKind::Update, 1)
            .await
            .is_err()
    );
    assert!(store.operation("op2").await.unwrap().is_none());
}

async fn a_claim_is_exclusive_and_counts_attempts(store: Store) {
    for n in 0..20 {
        accept(
            &store,
            &format!("op{n}"),
            &format!("i{n}"),
            OperationKind::Provision,
            1,
        )
        .await
        .unwrap();
    }
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                loop {
                    let got = store
                        .claim(&format!("w{n}"), 10, 60_000, 3, 0, &[])
                        .await
                        .unwrap();
                    if got.is_empty() {
                        return mine;
                    }
                    mine.extend(got.into_iter().map(|c| (c.operation.id, c.operation.attempt)));
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort();
    let ids: std::collections::BTreeSet<_> = all.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!((all.len(), ids.len()), (20, 20));
    assert!(all.iter().all(|(_, attempt)| *attempt == 1));
    store.expire_leases().await.unwrap();
    let again = store.claim_one("w9", 60_000, "op3").await.unwrap().unwrap();
    assert_eq!(again.operation.attempt, 2);
    assert!(store.claim_one("w8", 60_000, "op3").await.unwrap().is_none());
}

fn advance(step: &'static str, due_at: i64) -> Advance {
    Advance {
        step,
        due_at,
        tries: 0,
        failures: 0,
        description: "Waiting.".into(),
        failing: None,
        deadline_at: 2_000_000,
        progress: Progress::default(),
        event: Some(("place".into(), "done", String::new())),
        lease: Lease::Free,
    }
}

fn finish(state: OperationState, row: Instance) -> Finish {
    Finish {
        state,
        description: "Ready.".into(),
        instance_usable: None,
        update_repeatable: None,
        instance: Some(row),
        binding: None,
        bindings_gone: false,
        look_again: LookAgain::default(),
        progress: Progress::default(),
        step: "ready".into(),
    }
}

async fn a_lost_lease_cannot_record(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    let stale = store
        .claim("w1", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert!(store.heartbeat("op1", 1, 60_000).await.unwrap());
    store.expire_leases().await.unwrap();
    let fresh = store
        .claim("w2", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert!(!store.heartbeat("op1", 1, 60_000).await.unwrap());
    assert!(!store.advance(&stale, advance("evil", 10), 10).await.unwrap());
    let mut row = instance("i1");
    row.state = InstanceState::Ready;
    assert!(
        !store
            .finish(&stale, finish(OperationState::Succeeded, row.clone()), 10)
            .await
            .unwrap()
    );
    let (op, events) = store.operation("op1").await.unwrap().unwrap();
    assert_eq!((op.operation.step.as_str(), events.len()), ("place", 0));
    assert_eq!(
        store.instance("i1").await.unwrap().unwrap().instance.state,
        InstanceState::Provisioning
    );
    assert!(store.advance(&fresh, advance("apply", 10), 10).await.unwrap());
}

async fn a_superseded_worker_cannot_finish(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    let worker = store
        .claim("w1", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    store
        .write(|tx| {
            Box::pin(async move {
                tx.supersede("op1", "Cancelled.", 20).await?;
                tx.set_instance_state("i1", InstanceState::Deprovisioning, 20)
                    .await?;
                tx.insert_operation(&operation("op2", "i1", OperationKind::Deprovision, 20))
                    .await
            })
        })
        .await
        .unwrap();
    assert!(
        !store
            .finish(&worker, finish(OperationState::Succeeded, instance("i1")), 30)
            .await
            .unwrap()
    );
    assert!(
        !store
            .heartbeat("op1", worker.operation.attempt, 1000)
            .await
            .unwrap()
    );
    let first = store.last_operation("i1", Some("op1")).await.unwrap().unwrap();
    assert_eq!(first.state, OperationState::Superseded);
    assert_eq!(
        store.instance("i1").await.unwrap().unwrap().instance.state,
        InstanceState::Deprovisioning
    );
}

async fn waiting_operations_are_not_claimed_before_they_are_due(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    let claimed = store
        .claim("w1", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert!(store.advance(&claimed, advance("ready", 500), 10).await.unwrap());
    assert!(
        store
            .claim("w1", 499, 60_000, 1, 0, &[])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.open_operations().await.unwrap(), (1, Some(500)));
    let again = store
        .claim("w1", 500, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert_eq!(
        (again.operation.step.as_str(), again.operation.attempt),
        ("ready", 2)
    );
}

async fn only_what_waits_for_the_world_is_hastened(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    for (step, hastened) in [("ready", true), ("prepare", false)] {
        let claimed = store.claim_one("w1", 60_000, "op1").await.unwrap().unwrap();
        assert!(store.advance(&claimed, advance(step, 500), 10).await.unwrap());
        assert!(!store.operation_hasten("i2", 20).await.unwrap());
        assert_eq!(
            store.operation_hasten("i1", 20).await.unwrap(),
            hastened,
            "{step}"
        );
        assert!(!store.operation_hasten("i1", 20).await.unwrap());
        assert_eq!(
            store.open_operations().await.unwrap(),
            (1, Some(if hastened { 20 } else { 500 }))
        );
    }
}

async fn busy_offerings_are_left_out(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    assert!(
        store
            .claim("w", 10, 1000, 5, 0, &["postgres".into(), "redis".into()])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store
            .claim("w", 10, 1000, 5, 0, &["redis".into()])
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn last_operation_answers_for_the_named_one_else_the_latest(store: Store) {
    assert!(store.last_operation("i1", None).await.unwrap().is_none());
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    let claimed = store
        .claim("w1", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    let mut row = instance("i1");
    row.state = InstanceState::Ready;
    store
        .finish(&claimed, finish(OperationState::Succeeded, row), 11)
        .await
        .unwrap();
    accept(&store, "op2", "i1", OperationKind::Deprovision, 1)
        .await
        .unwrap();
    let state = |name: Option<&'static str>| {
        let store = store.clone();
        async move { store.last_operation("i1", name).await.unwrap().unwrap().state }
    };
    assert_eq!(state(None).await, OperationState::Open);
    assert_eq!(state(Some("made-up")).await, OperationState::Open);
    assert_eq!(state(Some("op1")).await, OperationState::Succeeded);
}

async fn finish_moves_operation_and_instance_together(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    let claimed = store
        .claim("w1", 10, 60_000, 1, 0, &[])
        .await
        .unwrap()
        .pop()
        .unwrap();
    let mut row = instance("i1");
    row.state = InstanceState::Ready;
    assert!(
        store
            .finish(&claimed, finish(OperationState::Succeeded, row), 11)
            .await
            .unwrap()
    );
    let now = store.instance("i1").await.unwrap().unwrap();
    assert_eq!((now.instance.state, now.open), (InstanceState::Ready, None));
    let (op, events) = store.operation("op1").await.unwrap().unwrap();
    assert_eq!(
        (op.operation.finished_at, op.operation.state),
        (Some(11), OperationState::Succeeded)
    );
    assert_eq!(events.last().unwrap().outcome, "finished");
}

async fn tombstones_go_with_everything_of_theirs(store: Store) {
    for (iid, op) in [("i1", "op1"), ("i2", "op2")] {
        accept(&store, op, iid, OperationKind::Deprovision, 1)
            .await
            .unwrap();
        let claimed = store
            .claim("w1", 10, 60_000, 1, 0, &[])
            .await
            .unwrap()
            .pop()
            .unwrap();
        let mut row = instance(iid);
        row.state = InstanceState::Gone;
        row.updated_at = if iid == "i1" { 100 } else { 300 };
        store
            .finish(&claimed, finish(OperationState::Succeeded, row), 100)
            .await
            .unwrap();
    }
    let binding = binding("b1", "i1");
    store
        .write(move |tx| {
            let binding = binding.clone();
            Box::pin(async move { tx.save_binding(&binding).await })
        })
        .await
        .unwrap();
    assert_eq!(store.purge_instances(200, 10).await.unwrap(), 1);
    assert!(store.instance("i1").await.unwrap().is_none());
    assert!(store.binding("b1").await.unwrap().is_none());
    assert!(store.operation("op1").await.unwrap().is_none());
    assert!(store.last_operation("i2", None).await.unwrap().is_some());
}

async fn old_operations_go_except_the_latest_of_each_subject(store: Store) {
    for n in 0..3 {
        accept(&store, &format!("op{n}"), "i1", OperationKind::Update, 1)
            .await
            .unwrap();
        let claimed = store
            .claim("w1", 10, 60_000, 1, 0, &[])
            .await
            .unwrap()
            .pop()
            .unwrap();
        let done = finish(OperationState::Succeeded, instance("i1"));
        store.finish(&claimed, done, 100 + n).await.unwrap();
    }
    assert_eq!(store.purge_operations(100, 10).await.unwrap(), 1);
    assert_eq!(store.purge_operations(1000, 10).await.unwrap(), 1);
    assert_eq!(store.purge_operations(1000, 10).await.unwrap(), 0);
    assert!(store.operation("op1").await.unwrap().is_none());
    assert_eq!(store.operation("op2").await.unwrap().unwrap().1.len(), 1);
}

async fn the_first_secret_of_a_name_stays(store: Store) {
    assert_eq!(store.secret_insert("i/admin", "one", 1).await.unwrap(), "one");
    assert_eq!(store.secret_insert("i/admin", "two", 2).await.unwrap(), "one");
    store.secret_insert("i/b/x", "three", 2).await.unwrap();
    store.secret_insert("ii/admin", "four", 2).await.unwrap();
    assert_eq!(store.secret_list("i/").await.unwrap(), ["i/admin", "i/b/x"]);
    assert_eq!(store.secret_list("").await.unwrap().len(), 3);
    assert!(!store.secret_replace("i/admin", "wrong", "new", 3).await.unwrap());
    assert!(store.secret_replace("i/admin", "one", "new", 3).await.unwrap());
    store.secret_delete("i/admin").await.unwrap();
    store.secret_delete("i/admin").await.unwrap();
    assert_eq!(store.secret_get("i/admin").await.unwrap(), None);
}

async fn replicas_that_start_together_migrate_once(store: Store) {
    let url = match store.dialect() {
        chandler::store::Dialect::Postgres => postgres::fresh_url().await,
        chandler::store::Dialect::Sqlite => {
            let dir = tempfile::tempdir().unwrap().keep();
            format!("sqlite://{}/new.db?mode=rwc", dir.display())
        }
    };
    let starts: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let store = Store::open(&StoreOptions::new(url)).await.unwrap();
                store.migrate().await.unwrap();
                store.instance("nobody").await.unwrap()
            })
        })
        .collect();
    for start in starts {
        assert!(start.await.unwrap().is_none());
    }
    if let Some(path) = url.strip_prefix("sqlite://") {
        std::fs::remove_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
    }
}

async fn a_secret_of_what_is_being_deleted_is_refused(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    assert_eq!(store.secret_insert("i1/admin", "one", 1).await.unwrap(), "one");
    store
        .write(|tx| {
            Box::pin(async move {
                tx.set_instance_state("i1", InstanceState::Deprovisioning, 2)
                    .await
            })
        })
        .await
        .unwrap();
    for name in ["i1/admin", "i1/generated", "i1/b/x"] {
        assert!(
            matches!(store.secret_insert(name, "late", 3).await, Err(Fail::Refused(_))),
            "{name}"
        );
    }
    assert_eq!(store.secret_list("i1/").await.unwrap(), ["i1/admin"]);

    // Of a binding: while it is being made, and at no other time.
    accept(&store, "op2", "i2", OperationKind::Provision, 1)
        .await
        .unwrap();
    let mut row = binding("b2", "i2");
    for (state, good) in [
        (BindingState::Creating, true),
        (BindingState::Deleting, false),
        (BindingState::Gone, false),
    ] {
        row.state = state;
        let saved = row.clone();
        store
            .write(move |tx| {
                let saved = saved.clone();
                Box::pin(async move { tx.save_binding(&saved).await })
            })
            .await
            .unwrap();
        assert_eq!(
            store.secret_insert("i2/b/b2", "sealed", 3).await.is_ok(),
            good,
            "{state}"
        );
        store.secret_delete("i2/b/b2").await.unwrap();
    }
}

async fn migrating_again_changes_nothing(store: Store) {
    accept(&store, "op1", "i1", OperationKind::Provision, 1)
        .await
        .unwrap();
    store.migrate().await.unwrap();
    assert!(store.instance("i1").await.unwrap().is_some());
}
