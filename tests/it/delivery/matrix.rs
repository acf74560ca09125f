//! Every outside call of every kind of work, × {before it acted, after it acted} × {the worker dies, the call fails for a
//! while, the call says no}: it comes to what the undisturbed run comes to, or ends as failed with everything undone.
//! Never is anything half granted, read before it works, or outside without a row.

use super::{GRACE, bid, by, held, rotate_path};
use crate::support::broker::TestBroker;
use crate::support::catalog::{ALPHA, SHORT, ids};
use crate::support::flow::{LATER, binding, instance};
use crate::support::world::{Effect, When};
use chandler::domain::binding::BindingState;
use chandler::domain::operation::OperationKind;
use chandler::engine::Runner;
use chandler::ports::PortErrorKind;
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    Bind(&'static str),
    Unbind(&'static str),
    /// A bind that is refused at this call, after that acted: everything is to be undone.
    Undo(&'static str, &'static str),
    Rotate(&'static str),
    /// A rotation that is refused at this call, before that acted.
    UndoRotation(&'static str, &'static str),
    /// The former user's grace is over.
    Retire(&'static str),
    Expire,
    Deprovision,
}

/// The calls each makes, in order.
const WORK: &[(Work, &[&str])] = &[
    (Work::Bind("reference"), &["issue", "verify", "publish", "ensure"]),
    (Work::Bind("inline"), &["issue", "verify", "publish", "ensure"]),
    (Work::Bind("secret"), &["issue", "verify", "project"]),
    (
        Work::Unbind("reference"),
        &["disable", "revoke", "withdraw", "delete"],
    ),
    (Work::Unbind("secret"), &["revoke", "unproject"]),
    (
        Work::Undo("reference", "ensure"),
        &["disable", "revoke", "withdraw", "delete"],
    ),
    (Work::Undo("secret", "project"), &["revoke", "unproject"]),
    (
        Work::Rotate("reference"),
        &["generation", "issue", "verify", "publish"],
    ),
    (Work::Rotate("secret"), &["issue", "verify", "project"]),
    (Work::UndoRotation("reference", "verify"), &["revoke"]),
    (
        Work::UndoRotation("reference", "publish"),
        &["generation", "revoke"],
    ),
    (Work::UndoRotation("secret", "verify"), &["revoke"]),
    (Work::Retire("reference"), &["revoke"]),
    (Work::Retire("secret"), &["revoke"]),
    (Work::Expire, &["disable", "revoke", "withdraw", "delete"]),
    (
        Work::Deprovision,
        &["disable", "withdraw", "delete", "unproject", "remove"],
    ),
];

const NO: Effect = Effect::Fail(PortErrorKind::Denied, "The server says no.");

/// Opens a rotation, and leaves it open: the request that asked for it gets its 202 when it has waited in vain.
async fn open_rotation(broker: &TestBroker) {
    let request = broker.request("POST", &rotate_path("a"));
    broker.send(request).await.expect(202);
}

/// Brings the broker to where this work is open, and nothing of it was done.
async fn accept(broker: &TestBroker, work: Work) {
    if work == Work::Expire {
        broker.provisioned_as(ALPHA, SHORT, json!({})).await;
        let body = json!({"service_id": ALPHA, "plan_id": SHORT});
        broker
            .put(&format!("{}?{LATER}", binding("a")), &body)
            .await
            .expect(202);
        broker.run_until_idle().await;
        broker.advance(Duration::from_secs(601));
        assert_eq!(broker.sweeper().bindings().await.unwrap().expired, 1);
        return;
    }
    broker.provisioned("one").await;
    let bind = format!("{}?{LATER}", binding("a"));
    match work {
        Work::Bind(way) => drop(broker.put(&bind, &by(way)).await.expect(202)),
        Work::Undo(way, call) => {
            drop(broker.put(&bind, &by(way)).await.expect(202));
            broker.world.plan(call, When::After, NO, 1);
        }
        Work::Unbind(way) => {
            broker.handed("a", way).await;
            let path = format!("{}?{LATER}&{}", binding("a"), ids());
            broker.delete(&path).await.expect(202);
        }
        Work::Rotate(way) => {
            broker.handed("a", way).await;
            open_rotation(broker).await;
        }
        Work::UndoRotation(way, call) => {
            broker.handed("a", way).await;
            open_rotation(broker).await;
            broker.world.plan(call, When::Before, NO, 1);
            if call == "publish" {
                // The question before the rotation is not the one that is meant here.
                let runner = Runner::new(broker.engine.clone());
                broker.world.plan(
                    "issue",
                    When::Before,
                    Effect::Fail(PortErrorKind::Transient, "wait"),
                    1,
                );
                runner.run_due().await;
                broker.advance(Duration::from_secs(1));
            }
        }
        Work::Retire(way) => {
            broker.handed("a", way).await;
            open_rotation(broker).await;
            broker.run_until_idle().await;
            broker.advance(GRACE);
            assert_eq!(broker.sweeper().bindings().await.unwrap().retired, 1);
        }
        Work::Deprovision => {
            broker.handed("a", "reference").await;
            broker.handed("b", "secret").await;
            let path = format!("{}?{LATER}&{}", instance("one"), ids());
            broker.delete(&path).await.expect(202);
        }
        Work::Expire => {}
    }
}

/// Everything that matters at the end, without what may differ (times, tokens, passwords).
async fn state(broker: &TestBroker) -> Vec<String> {
    let store = broker.engine.store();
    let mut seen = Vec::new();
    for i in store.instances_page("", None, 100).await.unwrap() {
        seen.push(format!("instance {}", i.state));
        for b in store.bindings_of(&i.iid).await.unwrap() {
            seen.push(format!(
                "binding {} {} residue={} generation={} handle={} {:?}",
                b.binding_id, b.state, b.residue, b.generation, b.handle, b.service_account
            ));
            for user in store.other_users(&b.bid).await.unwrap() {
                let (state, refused) = (user.state.as_str(), user.refused);
                seen.push(format!(
                    "user {} {state} refused={refused} due={}",
                    user.handle,
                    user.due_at.is_some()
                ));
            }
        }
    }
    for row in store.operations_list(None, 100).await.unwrap() {
        seen.push(format!(
            "operation {} {:?}",
            row.operation.kind, row.operation.state
        ));
    }
    seen.extend(
        broker
            .world
            .users()
            .iter()
            .map(|user| format!("user on the server {user}")),
    );
    for (bid, what) in broker.world.around.bids() {
        seen.push(format!("{bid} {what:?}"));
    }
    for (bid, kept) in broker.world.around.kept.lock().unwrap().iter() {
        let users: Vec<_> = kept.versions.iter().map(|v| v["username"].clone()).collect();
        seen.push(format!("vault {bid} {users:?}"));
    }
    for name in broker.engine.ports().secrets.list("").await.unwrap() {
        seen.push(format!("secret {name}"));
    }
    seen.sort();
    seen
}

/// What may be said at any moment, whatever is going on.
async fn always(broker: &TestBroker, what: &str) {
    let wrong = broker.world.around.wrong.lock().unwrap().clone();
    assert!(wrong.is_empty(), "{what}: {wrong:?}");
    let store = broker.engine.store();
    for (bid, there) in broker.world.around.bids() {
        let row = store.binding(&bid).await.unwrap();
        let row = row.unwrap_or_else(|| panic!("{what}: {there:?} without a row"));
        let over = row.binding.state.is_over();
        assert!(
            !over || row.open.is_some() || row.binding.residue,
            "{what}: {there:?} of what has ended"
        );
        assert!(
            !row.binding.handle.is_empty(),
            "{what}: {there:?} and nobody wrote down whose"
        );
    }
    for user in broker.world.users() {
        let bid = chandler::domain::names::bid_of_user(&user).unwrap().to_owned();
        let row = store.binding(&bid).await.unwrap().unwrap().binding;
        let others = store.other_users(&bid).await.unwrap();
        let known = row.handle == user || others.iter().any(|other| other.handle == user);
        assert!(known, "{what}: nobody wrote down the user {user}");
    }
}

/// What must be so once nothing is open: a binding that is answered works, by whichever way its application comes.
async fn whole(broker: &TestBroker, what: &str) {
    always(broker, what).await;
    for id in ["a", "b"] {
        let Some(now) = broker.engine.store().binding(&bid(id)).await.unwrap() else {
            continue;
        };
        let row = now.binding;
        if row.state == BindingState::Ready && broker.row("one").await.state.as_str() == "ready" {
            let answer = broker.get(&binding(id)).await.expect(200);
            let read = broker
                .read(id)
                .unwrap_or_else(|| panic!("{what}: {id} cannot be read"));
            assert!(
                broker.world.opens(&read),
                "{what}: {id} is read and does not work"
            );
            assert_eq!(read["username"], json!(row.handle), "{what}: {}", answer.text);
        } else {
            assert!(
                broker.read(id).is_none(),
                "{what}: {id} can be read in state {}",
                row.state
            );
        }
    }
}

async fn undisturbed(work: Work) -> Vec<String> {
    let broker = held().await;
    accept(&broker, work).await;
    broker.run_until_idle().await;
    whole(&broker, &format!("{work:?}")).await;
    let state = state(&broker).await;
    broker.settled_and_end().await;
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_at_any_call_changes_nothing() {
    for (work, calls) in WORK {
        let expected = undisturbed(*work).await;
        for call in *calls {
            for when in [When::Before, When::After] {
                let what = format!("{work:?}, dead {when:?} {call}");
                let broker = held().await;
                accept(&broker, *work).await;
                broker.world.plan(call, when, Effect::Hang, 1);
                let runner = Runner::new(broker.engine.clone());
                let dying = tokio::spawn(async move { runner.run_due().await });
                let hung = broker.world.hung.notified();
                let hung = tokio::time::timeout(Duration::from_secs(10), hung).await;
                hung.unwrap_or_else(|_| panic!("{what}: was not reached"));
                always(&broker, &what).await;
                dying.abort();
                let _ = dying.await;
                assert_eq!(broker.run_due().await, 0, "{what}: the lease holds");
                broker.engine.store().expire_leases().await.unwrap();
                broker.run_until_idle().await;
                whole(&broker, &what).await;
                assert_eq!(state(&broker).await, expected, "{what}");
                broker.settled_and_end().await;
            }
        }
    }
}

/// An answer that is lost after the call acted, and a server that is away for a while, only delay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_and_passing_failures_only_delay() {
    for (work, calls) in WORK {
        let expected = undisturbed(*work).await;
        for call in *calls {
            for when in [When::Before, When::After] {
                let what = format!("{work:?}, {call} failing for a while {when:?}");
                let broker = held().await;
                accept(&broker, *work).await;
                let failure = Effect::Fail(PortErrorKind::Transient, "a passing failure");
                broker.world.plan(call, when, failure, 3);
                broker.run_until_idle().await;
                whole(&broker, &what).await;
                assert_eq!(state(&broker).await, expected, "{what}");
                broker.world.calm();
                broker.settled_and_end().await;
            }
        }
    }
}

/// A call that says no ends the work as failed, with everything undone; and what cannot be undone at once is later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_at_any_call_leaves_nothing_half_granted() {
    for (work, calls) in WORK {
        for call in *calls {
            for when in [When::Before, When::After] {
                let what = format!("{work:?}, {call} saying no {when:?}");
                let broker = held().await;
                accept(&broker, *work).await;
                broker.world.plan(call, when, NO, 1);
                broker.run_until_idle().await;
                broker.world.calm();
                always(&broker, &what).await;
                match work {
                    Work::Bind(_) => {
                        let last = broker.last(&binding("a")).await;
                        assert_eq!(last.body["state"], "failed", "{what}");
                        let said = last.body["description"].as_str().unwrap();
                        assert!(said.contains("says no"), "{what}: {said}");
                        assert!(broker.world.users().is_empty(), "{what}");
                        assert!(broker.world.around.bids().is_empty(), "{what}");
                        // The same request is a fresh attempt, and nothing of the first stands in its way.
                        let Work::Bind(way) = work else { unreachable!() };
                        broker.handed("a", way).await;
                    }
                    Work::Rotate(_) | Work::UndoRotation(..) => {
                        // The binding works as before or with the new credentials, and can be rotated again.
                        broker.settle().await;
                        whole(&broker, &what).await;
                        open_rotation(&broker).await;
                        broker.run_until_idle().await;
                        let row = broker.binding_row("a").await;
                        assert!(row.generation > 0 && row.state == BindingState::Ready, "{what}");
                    }
                    Work::Deprovision => {
                        let path = format!("{}?{LATER}&{}", instance("one"), ids());
                        let again = broker.delete(&path).await;
                        assert!([202, 410].contains(&again.status), "{what}: {}", again.text);
                    }
                    // What is left is finished by the sweep.
                    _ => broker.settle().await,
                }
                broker.run_until_idle().await;
                broker.settle().await;
                whole(&broker, &what).await;
                broker.settled_and_end().await;
            }
        }
    }
}

/// Something around is away for good: a way in that cannot be closed there is closed everywhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbind_closes_what_it_can_and_the_sweep_the_rest() {
    for (away, still) in [
        (&["disable", "delete"][..], &["client"][..]),
        (&["withdraw"], &["client", "secret in the vault"]),
        (&["revoke"], &["client", "secret in the vault"]),
    ] {
        let broker = held().await;
        broker.provisioned("one").await;
        broker.handed("a", "reference").await;
        for call in away {
            for when in [When::Before, When::After] {
                let gone = Effect::Fail(PortErrorKind::Transient, "away");
                broker.world.plan(call, when, gone, 10_000);
            }
        }
        let path = format!("{}?{LATER}&{}", binding("a"), ids());
        broker.delete(&path).await.expect(202);
        broker.run_until_idle().await;
        assert_eq!(
            broker.last(&binding("a")).await.body["state"],
            "failed",
            "{away:?}"
        );
        let left = broker.world.around.bids().remove(&bid("a")).unwrap_or_default();
        assert_eq!(left, still, "{away:?}");
        assert_eq!(
            broker.world.users().is_empty(),
            !away.contains(&"revoke"),
            "{away:?}"
        );
        let works = broker.read("a").is_some_and(|read| broker.world.opens(&read));
        assert!(!works, "{away:?}: somebody still gets in");
        broker.world.calm();
        broker.settle().await;
        assert!(
            broker.world.around.bids().is_empty() && broker.world.users().is_empty(),
            "{away:?}"
        );
        let gone = broker.delete(&format!("{}?{}", binding("a"), ids())).await;
        assert_eq!(gone.status, 410);
        broker.settled_and_end().await;
    }
}

/// A platform that gives up on a bind deletes it: whatever was made by then goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbind_takes_over_from_a_bind_at_any_call() {
    for call in ["issue", "verify", "publish", "ensure"] {
        for when in [When::Before, When::After] {
            let broker = held().await;
            accept(&broker, Work::Bind("reference")).await;
            broker.world.plan(call, when, Effect::Hang, 1);
            let runner = Runner::new(broker.engine.clone());
            let working = tokio::spawn(async move { runner.run_due().await });
            broker.world.hung.notified().await;
            let path = format!("{}?{LATER}&{}", binding("a"), ids());
            broker.delete(&path).await.expect(202);
            working.await.unwrap();
            broker.run_until_idle().await;
            let what = format!("{call} {when:?}");
            assert!(
                broker.world.around.bids().is_empty() && broker.world.users().is_empty(),
                "{what}"
            );
            assert_eq!(
                broker.last(&binding("a")).await.body["state"],
                "succeeded",
                "{what}"
            );
            broker.settled_and_end().await;
        }
    }
}

/// The same while a rotation is at work: both users go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unbind_takes_over_from_a_rotation_at_any_call() {
    for (way, calls) in [
        ("reference", &["generation", "issue", "verify", "publish"][..]),
        ("secret", &["issue", "verify", "project"]),
    ] {
        for call in calls {
            for when in [When::Before, When::After] {
                let broker = held().await;
                accept(&broker, Work::Rotate(way)).await;
                broker.world.plan(call, when, Effect::Hang, 1);
                let runner = Runner::new(broker.engine.clone());
                let working = tokio::spawn(async move { runner.run_due().await });
                broker.world.hung.notified().await;
                let path = format!("{}?{LATER}&{}", binding("a"), ids());
                broker.delete(&path).await.expect(202);
                working.await.unwrap();
                broker.run_until_idle().await;
                let what = format!("{way} {call} {when:?}");
                assert!(broker.world.around.bids().is_empty(), "{what}");
                assert!(broker.world.users().is_empty(), "{what}");
                let rows = broker.engine.store().operations_list(None, 10).await.unwrap();
                let rotation = rows.iter().find(|r| r.operation.kind == OperationKind::Rotate);
                assert_eq!(rotation.unwrap().operation.state.as_str(), "superseded", "{what}");
                broker.settled_and_end().await;
            }
        }
    }
}
