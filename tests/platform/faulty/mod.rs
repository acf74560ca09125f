//! Keycloak and Vault fail at each request of a bind, a rotation and an unbind: it converges, or ends as failed with
//! everything undone; nothing is half granted.
//!
//! The real servers stay behind proxies that spoil the n-th request made for one binding. After each piece of work
//! Keycloak, the vault and the database are listed and must have exactly what belongs there.

mod lasting;
pub mod proxy;
mod sealed;
pub mod stage;

use crate::realm::now;
use crate::whole::VaultPlace;
use futures::future::join_all;
use proxy::{Fault, Kind, log_in};
use serde_json::json;
use stage::{ALL, Stage, Work, client};
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that an outage which passes spoils, one after the other.
const SHORT: usize = 2;

/// Broken in this work, at this request, like this.
struct Run {
    binding: String,
    work: Work,
    at: usize,
    kind: Kind,
}

/// One run for each request and each kind of fault.
fn runs(requests: &BTreeMap<Work, Vec<String>>, kinds: &[Kind]) -> Vec<Run> {
    let mut runs = Vec::new();
    for (work, list) in requests {
        for at in 0..list.len() {
            for kind in kinds {
                let word = kind.word();
                runs.push(Run {
                    binding: format!("{work:?}-{at}-{word}"),
                    work: *work,
                    at,
                    kind: kind.clone(),
                });
            }
        }
    }
    runs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_passes_at_any_request_is_got_over() {
    let stage = Stage::begin("short", VaultPlace::testbed()).await;
    let requests = stage.clean_run().await;
    let runs = runs(&requests, &[Kind::Cut, Kind::Error, Kind::Slow, Kind::Lost]);
    let bindings: Vec<String> = runs.iter().map(|run| run.binding.clone()).collect();
    let mut ends: BTreeMap<(Work, &str, String), (usize, usize)> = BTreeMap::new();
    let mut held = Vec::new();
    for work in ALL {
        let broken = runs.iter().filter(|run| run.work == work);
        let faults = broken.map(|run| (client(&run.binding), Fault::new(run.at, SHORT, run.kind.clone())));
        stage.faults.begin(faults);
        let all = join_all(bindings.iter().map(|binding| stage.carry_out(work, binding))).await;
        // What was held up may still arrive.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let met = stage.faults.lift();
        for (run, end) in runs.iter().zip(&all) {
            assert_eq!(end, "succeeded", "{work:?} of {}", run.binding);
            if run.work == work {
                let met = met[&client(&run.binding)];
                assert!(met > 0, "{}: nothing was spoilt", run.binding);
                let end = ends.entry((work, run.kind.word(), end.clone())).or_default();
                *end = (end.0 + 1, end.1 + met);
            }
        }
        match work {
            Work::Bind => {
                stage.comes_to("after the bind", 1, &bindings).await;
                stage.all_enter(&bindings).await;
            }
            Work::Rotate => {
                // The former users go when their grace is over.
                stage.comes_to("after the rotation", 2, &bindings).await;
                held = stage.all_enter(&bindings).await;
            }
            Work::Unbind => stage.comes_to("after the unbind", 0, &[]).await,
        }
    }
    for held in &held {
        stage.is_out(held).await;
    }
    for ((work, kind, end), (count, met)) in ends {
        println!("{work:?}\t{kind}\t{count} {end}\t{met} requests spoilt");
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_refuse_connections_for_a_while_are_waited_for() {
    let stage = Stage::begin("stopped", VaultPlace::testbed()).await;
    let names = |kind: &str| (0..3).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let (fresh, turned, leaving) = (names("fresh"), names("turned"), names("leaving"));
    for (round, proxies) in [
        vec![&stage.vault],
        vec![&stage.keycloak],
        vec![&stage.vault, &stage.keycloak],
    ]
    .into_iter()
    .enumerate()
    {
        let before: Vec<_> = turned.iter().chain(&leaving).collect();
        for end in join_all(before.iter().map(|binding| stage.carry_out(Work::Bind, binding))).await {
            assert_eq!(end, "succeeded");
        }
        let held = stage.all_enter(&leaving).await;
        for proxy in &proxies {
            proxy.stop().await;
        }
        let work = fresh
            .iter()
            .map(|b| (Work::Bind, b))
            .chain(turned.iter().map(|b| (Work::Rotate, b)));
        let work = work.chain(leaving.iter().map(|b| (Work::Unbind, b)));
        let work = join_all(work.map(|(work, binding)| stage.carry_out(work, binding)));
        let back = async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            for proxy in &proxies {
                proxy.go_on().await;
            }
        };
        let (ends, ()) = tokio::join!(work, back);
        assert!(ends.iter().all(|end| end == "succeeded"), "{ends:?}");
        println!("round {round}: {} pieces of work, all succeeded", ends.len());
        for held in &held {
            stage.is_out(held).await;
        }
        stage.all_enter(&fresh).await;
        stage.all_enter(&turned).await;
        for binding in fresh.iter().chain(&turned) {
            assert_eq!(stage.carry_out(Work::Unbind, binding).await, "succeeded");
        }
        stage.comes_to("at the end of a round", 0, &[]).await;
    }
    stage.end().await;
}

/// The broker's own log-in is a request like others, but not one of each operation: its token is taken away first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_the_brokers_own_log_in_is_got_over() {
    let stage = Stage::begin("login", VaultPlace::testbed()).await;
    let mission = &stage.mission;
    for server in ["vault", "keycloak"] {
        for kind in [Kind::Cut, Kind::Error, Kind::Slow, Kind::Lost] {
            for work in ALL {
                if server == "vault" {
                    let path = format!("sys/leases/revoke-prefix/auth/{}-approle/login", mission.name);
                    assert_eq!(mission.vault(None, "PUT", &path, None).await.0, 204);
                } else {
                    // What was given out before this second is not taken any more.
                    tokio::time::sleep(Duration::from_millis(1100)).await;
                    mission
                        .admin_with("PUT", "", Some(json!({"notBefore": now()})))
                        .await;
                }
                stage
                    .faults
                    .begin([(log_in(server), Fault::new(0, SHORT, kind.clone()))]);
                let end = stage.carry_out(work, "one").await;
                assert_eq!(end, "succeeded", "{work:?}, log-in to {server}: {}", kind.word());
                let met = stage.faults.lift();
                // A rotation has nothing to do at Keycloak.
                let expected = server == "vault" || work != Work::Rotate;
                assert_eq!(
                    met[&log_in(server)] > 0,
                    expected,
                    "{work:?}, {server}, {}",
                    kind.word()
                );
                if work != Work::Unbind {
                    stage.enters("one").await;
                }
            }
            stage.comes_to("after the unbind", 0, &[]).await;
            println!(
                "log-in to {server}, {}: bind, rotation, unbind succeeded",
                kind.word()
            );
        }
    }
    stage.end().await;
}
