//! The comparison with what is there (`chandler reconcile`) over bindings of every delivery: nothing is wrong at any time
//! of their lives, what is lost is told, what it advises helps, and the audit trail tells all of it.

use super::{GRACE, bid, by, full, rotate_path};
use crate::support::broker::TestBroker;
use crate::support::flow::binding;
use chandler::domain::audit::Head;
use chandler::domain::names;
use chandler::engine::{Done, Finding, Kind, Mend, Reconciler};
use std::time::Duration;

async fn compared(broker: &TestBroker, mend: Mend) -> Vec<(Kind, Done)> {
    // What changed a moment ago is left to the next time.
    broker.advance(Duration::from_secs(1));
    let mut found = Vec::new();
    let mut tell = |f: &Finding| found.push((f.kind, f.done.clone()));
    let reconciler = Reconciler::new(broker.engine.clone());
    let report = reconciler.once(mend, &mut tell).await.unwrap();
    assert_eq!(report.found.len(), Kind::ALL.len(), "everything was looked at");
    found
}

#[track_caller]
fn none(found: Vec<(Kind, Done)>, when: &str) {
    assert!(found.is_empty(), "{when}: {found:?}");
}

async fn rotated(broker: &TestBroker, id: &str) {
    broker
        .send(broker.request("POST", &rotate_path(id)))
        .await
        .expect(200);
}

/// Action, outcome and cause of all that was recorded of a binding, its chain checked.
async fn told(broker: &TestBroker, id: &str) -> Vec<String> {
    let mut at = Head::start();
    let records = broker.engine.store().audit_page(0, 1000).await.unwrap();
    for record in &records {
        at.follow(record).unwrap();
    }
    records
        .into_iter()
        .map(|record| record.event)
        .filter(|event| event.binding == bid(id))
        .map(|event| format!("{} {} {}", event.action, event.outcome, event.cause))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_wrong_at_any_time_of_a_life() {
    for way in ["reference", "secret", "inline"] {
        let broker = full().await;
        broker.provisioned("one").await;
        none(compared(&broker, Mend::default()).await, "empty");
        broker.put(&binding("a"), &by(way)).await.expect(201);
        none(compared(&broker, Mend::default()).await, way);
        let mut expected = vec!["bind accepted platform", "bind succeeded platform"];
        if way != "inline" {
            rotated(&broker, "a").await;
            assert_eq!(broker.world.users().len(), 2, "the former user has its grace");
            none(compared(&broker, Mend::default()).await, "rotated");
            broker.advance(GRACE);
            assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 1);
            broker.run_until_idle().await;
            none(compared(&broker, Mend::default()).await, "grace over");
            rotated(&broker, "a").await;
            none(compared(&broker, Mend::default()).await, "rotated back");
            expected.extend([
                "rotate accepted platform",
                "rotate succeeded platform",
                "revoke accepted grace",
                "revoke succeeded grace",
                "rotate accepted platform",
                "rotate succeeded platform",
            ]);
        }
        broker.unbound("a").await;
        none(compared(&broker, Mend::default()).await, "unbound");
        broker.settle().await;
        none(compared(&broker, Mend::default()).await, "settled");
        expected.extend(["unbind accepted platform", "unbind succeeded platform"]);
        assert_eq!(told(&broker, "a").await, expected, "{way}");
        broker.settled_and_end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_is_told_and_the_advice_helps() {
    let repair = Mend {
        repair: true,
        remove: false,
    };
    let broker = full().await;
    broker.provisioned("one").await;
    for (id, way) in [("lost", "reference"), ("kept", "inline")] {
        broker.put(&binding(id), &by(way)).await.expect(201);
    }
    let lose = |id: &str| {
        let around = &broker.world.around;
        around.kept.lock().unwrap().remove(&bid(id));
        around.clients.lock().unwrap().remove(&bid(id));
        let mut instances = broker.world.instances.lock().unwrap();
        for instance in instances.values_mut() {
            instance.users.remove(&names::backend_user(&bid(id)));
        }
    };
    let before = broker.get(&binding("kept")).await.expect(200).body;
    lose("kept");
    let found = compared(&broker, repair).await;
    let put_back =
        [Kind::UserMissing, Kind::SecretMissing, Kind::ClientMissing].map(|kind| (kind, Done::Repaired));
    assert_eq!(found, put_back, "in the order in which a bind lets in");
    none(compared(&broker, Mend::default()).await, "repaired");
    assert_eq!(broker.get(&binding("kept")).await.expect(200).body, before);

    // What only a rotation in place can put back.
    broker.world.around.kept.lock().unwrap().remove(&bid("lost"));
    for instance in broker.world.instances.lock().unwrap().values_mut() {
        instance.users.remove(&names::backend_user(&bid("lost")));
    }
    let found = compared(&broker, repair).await;
    let kinds: Vec<Kind> = found.iter().map(|f| f.0).collect();
    assert_eq!(kinds, [Kind::UserMissing, Kind::SecretMissing]);
    assert!(
        found
            .iter()
            .all(|f| matches!(f.1, Done::Told(what) if what.contains("rotate"))),
        "{found:?}"
    );
    rotated(&broker, "lost").await;
    none(compared(&broker, Mend::default()).await, "rotated");

    // What only a new bind can.
    broker.world.around.clients.lock().unwrap().remove(&bid("lost"));
    let found = compared(&broker, repair).await;
    assert!(
        matches!(found[..], [(Kind::ClientMissing, Done::Told(what))] if what.contains("bind anew")),
        "{found:?}"
    );
    for id in ["lost", "kept"] {
        broker.unbound(id).await;
    }
    broker.settled_and_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_a_secret_in_a_namespace_is_told_and_a_rotation_puts_it_right() {
    let all = Mend {
        repair: true,
        remove: true,
    };
    let broker = full().await;
    broker.provisioned("one").await;
    broker.put(&binding("a"), &by("secret")).await.expect(201);
    none(compared(&broker, all).await, "bound");
    let around = &broker.world.around;
    let key = around.projected.lock().unwrap().keys().next().cloned().unwrap();
    for (kind, spoil) in [
        (Kind::CopyMissing, None),
        (Kind::CopyEdited, Some(Some(bid("a")))),
        (Kind::CopyStrange, Some(None)),
    ] {
        {
            let mut projected = around.projected.lock().unwrap();
            let mut there = projected.remove(&key).unwrap();
            if let Some(owner) = spoil {
                there.owner = owner;
                there.entries.insert("password".into(), "wrong".into());
                projected.insert(key.clone(), there);
            }
        }
        for mend in [Mend::default(), all] {
            let found = compared(&broker, mend).await;
            assert!(
                matches!(found[..], [(told, Done::Told(what))] if told == kind && what.contains("rotate")),
                "{found:?}"
            );
        }
        if kind == Kind::CopyStrange {
            assert_eq!(around.projected.lock().unwrap()[&key].owner, None, "left alone");
            around.projected.lock().unwrap().remove(&key);
        }
        rotated(&broker, "a").await;
        none(compared(&broker, all).await, "rotated");
    }
    broker.unbound("a").await;
    assert!(around.projected.lock().unwrap().is_empty());
    none(compared(&broker, all).await, "unbound");
    broker.settled_and_end().await;
}
