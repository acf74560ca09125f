//! Two brokers on one PostgreSQL database and one machine's instances.
//!
//! One is killed while it works, or stopped (SIGSTOP) inside a step for longer than its lease. The other takes over. When
//! the stopped one goes on it still believes that it works: what it does then must not count.

use crate::support::audit::{Expected, State};
use crate::support::clients::{self, Access};
use crate::support::home::{Home, processes_below, signal};
use crate::support::platform::{Answer, End, Platform, Service, binding, instance};
use crate::support::process::Broker;
use crate::support::served::Served;
use crate::support::{Dice, postgres, seed, until};
use chandler::domain::operation::OperationState;
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

struct Pair {
    a: Broker,
    b: Broker,
    at_a: Platform,
    at_b: Platform,
    state: State,
    /// Last, so that it outlives what works in it.
    home: Home,
}

async fn pair() -> Pair {
    let home = Home::new();
    let served = Served::new(&home, &postgres::fresh_url().await);
    let a = Broker::serve(&home, &served.file, "all");
    let b = Broker::serve(&home, &served.file, "all");
    let (at_a, at_b) = (Served::platform(&a), Served::platform(&b));
    Pair {
        at_a,
        at_b,
        state: served.state().await,
        a,
        b,
        home,
    }
}

impl Pair {
    /// Who holds the operation that is open in this step.
    async fn holder(&self, step: &str) -> Option<String> {
        let open = self
            .state
            .store
            .operations_list(Some(OperationState::Open), 100)
            .await
            .unwrap();
        open.into_iter()
            .find(|row| row.operation.step == step)
            .and_then(|row| row.owner)
    }

    /// Waits until the first broker is inside a step.
    async fn a_is_in(&self, step: &str) {
        let mine = format!("{}-", self.a.pid());
        until(&format!("the first broker is in {step}"), LONG, || async {
            self.holder(step).await.filter(|owner| owner.starts_with(&mine))
        })
        .await;
    }

    /// Waits until the second broker has taken an operation over.
    async fn b_took(&self, asked: &Answer) {
        let mine = format!("{}-", self.b.pid());
        let id = asked.operation().unwrap();
        until("the second broker has taken over", LONG, || async {
            let (row, _) = self.state.store.operation(id).await.unwrap()?;
            row.owner.filter(|owner| owner.starts_with(&mine))
        })
        .await;
    }

    async fn nothing_wrong(&self, expected: &[Expected]) {
        self.state.idle().await;
        let wrong = self
            .state
            .audit(&self.home.path().join("instances"), expected)
            .await;
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    async fn end(mut self) {
        self.state.store.close().await;
        assert!(self.a.stop().success() && self.b.stop().success());
    }
}

fn expected(service: Service, id: &str, bindings: &[&str]) -> Expected {
    Expected {
        service,
        id: id.into(),
        bindings: bindings.iter().map(ToString::to_string).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_broker_was_at_the_other_takes_over() {
    let seed = seed();
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut pair = pair().await;
    let (at_a, at_b) = (pair.at_a.clone(), pair.at_b.clone());
    at_b.create(Service::Redis, "kept").await;
    let kept = at_b.bind(Service::Redis, "kept", "first").await;
    clients::write(Service::Redis, &kept, "key", "value").await;

    for (round, service) in [Service::Postgres, Service::Redis, Service::Nats]
        .into_iter()
        .enumerate()
    {
        let (id, bound) = (format!("i{round}"), format!("b{round}"));
        let created = at_a.ask_instance(service, &id, json!({})).await;
        let made = at_a.ask_binding(Service::Redis, "kept", &bound, json!({})).await;
        tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
        pair.a.kill9();
        assert_eq!(at_b.ended(&created, &instance(&id)).await, End::Succeeded);
        assert_eq!(at_b.ended(&made, &binding("kept", &bound)).await, End::Succeeded);
        let credentials = at_b.credentials("kept", &bound).await;
        clients::comes_to(Service::Redis, &credentials, Access::In).await;
        let own = at_b.bind(service, &id, "own").await;
        clients::comes_to(service, &own, Access::In).await;
        tokio::task::block_in_place(|| pair.a.again());

        // And on the way back: the delete of the one, the unbind of the other.
        let gone = at_a.ask_delete(service, &id).await;
        let revoked = at_a.ask_unbind(Service::Redis, "kept", &bound).await;
        tokio::time::sleep(Duration::from_millis(dice.below(60))).await;
        pair.a.kill9();
        assert_eq!(at_b.ended(&gone, &instance(&id)).await, End::Succeeded);
        assert_eq!(
            at_b.ended(&revoked, &binding("kept", &bound)).await,
            End::Succeeded
        );
        clients::comes_to(Service::Redis, &credentials, Access::Refused).await;
        assert_ne!(clients::access(service, &own).await, Access::In);
        tokio::task::block_in_place(|| pair.a.again());
    }
    assert_eq!(
        clients::read(Service::Redis, &kept, "key").await.as_deref(),
        Some("value")
    );
    pair.nothing_wrong(&[expected(Service::Redis, "kept", &["first"])])
        .await;
    at_a.delete(Service::Redis, "kept").await;
    pair.nothing_wrong(&[]).await;
    pair.end().await;
}

/// The worst moment: the first broker has connected to the server to make a user, and is stopped. The second makes the
/// user; the platform uses it and unbinds it. Then the first goes on, and the user is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_made_again_by_a_stopped_broker_does_not_stay() {
    tokio::join!(made_again(Service::Redis), made_again(Service::Postgres));
}

async fn made_again(service: Service) {
    let mut pair = pair().await;
    let (at_a, at_b) = (pair.at_a.clone(), pair.at_b.clone());
    at_a.create(service, "i").await;
    let kept = at_a.bind(service, "i", "kept").await;
    let instances = pair.home.path().join("instances");
    let freeze = |with: Signal| {
        for process in processes_below(&instances) {
            signal(process.pid, with);
        }
    };
    freeze(Signal::SIGSTOP);
    let asked = at_a.ask_binding(service, "i", "late", json!({})).await;
    pair.a_is_in("issue").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    pair.a.pause();
    freeze(Signal::SIGCONT);
    pair.b_took(&asked).await;
    assert_eq!(
        at_b.ended(&asked, &binding("i", "late")).await,
        End::Succeeded,
        "{}",
        service.name()
    );
    let late = at_b.credentials("i", "late").await;
    clients::comes_to(service, &late, Access::In).await;
    at_b.unbind(service, "i", "late").await;
    clients::comes_to(service, &late, Access::Refused).await;

    // Whether it still acts is a matter of microseconds; that it did is therefore played here.
    pair.a.resume();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let user = pair.state.user("i", "late");
    if !pair.state.users(service, "i").await.contains(&user) {
        let port = u16::try_from(late["port"].as_u64().unwrap()).unwrap();
        clients::make_user(
            service,
            port,
            &pair.state.admin("i").await,
            &user,
            late["password"].as_str().unwrap(),
        )
        .await;
    }
    assert!(pair.state.users(service, "i").await.contains(&user));
    // The sweep looks at the start, and then once a minute: waiting is not what is tested.
    pair.b.stop();
    tokio::task::block_in_place(|| pair.b.again());
    until("the late user is gone", LONG, || async {
        (!pair.state.users(service, "i").await.contains(&user)).then_some(())
    })
    .await;
    clients::comes_to(service, &late, Access::Refused).await;
    clients::comes_to(service, &kept, Access::In).await;
    pair.nothing_wrong(&[expected(service, "i", &["kept"])]).await;
    at_a.delete(service, "i").await;
    pair.nothing_wrong(&[]).await;
    pair.end().await;
}

/// The stopped broker is in the middle of starting a database, and holds the instance's lock on this machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_stopped_while_it_starts_a_server_does_not_start_a_second() {
    let pair = pair().await;
    let (at_a, at_b) = (pair.at_a.clone(), pair.at_b.clone());
    let database = at_a.ask_instance(Service::Postgres, "db", json!({})).await;
    pair.a_is_in("apply").await;
    until("initdb runs", LONG, || async {
        (!processes_below(&pair.home.path().join("instances")).is_empty()).then_some(())
    })
    .await;
    pair.a.pause();
    let cache = at_b.ask_instance(Service::Redis, "cache", json!({})).await;
    pair.b_took(&database).await;
    // What does not need that lock goes on meanwhile.
    assert_eq!(at_b.ended(&cache, &instance("cache")).await, End::Succeeded);
    tokio::time::sleep(Duration::from_secs(2)).await;
    pair.a.resume();
    assert_eq!(at_b.ended(&database, &instance("db")).await, End::Succeeded);
    let credentials = at_b.bind(Service::Postgres, "db", "b").await;
    clients::write(Service::Postgres, &credentials, "key", "value").await;
    let iid = pair.state.iid("db");
    let there: Vec<_> = processes_below(&pair.home.path().join("instances").join(&iid));
    let pids: Vec<i32> = there.iter().map(|p| p.pid).collect();
    let leaders = there.iter().filter(|p| !pids.contains(&p.parent)).count();
    assert_eq!(leaders, 1, "{there:?}");
    pair.nothing_wrong(&[
        expected(Service::Postgres, "db", &["b"]),
        expected(Service::Redis, "cache", &[]),
    ])
    .await;

    // Stopped while it removes: the other one removes, and the one that wakes up finds nothing to do.
    let gone = at_a.ask_delete(Service::Postgres, "db").await;
    pair.a.pause();
    tokio::time::sleep(Duration::from_secs(6)).await;
    pair.a.resume();
    assert_eq!(at_b.ended(&gone, &instance("db")).await, End::Succeeded);
    at_b.delete(Service::Redis, "cache").await;
    pair.nothing_wrong(&[]).await;
    pair.end().await;
}
