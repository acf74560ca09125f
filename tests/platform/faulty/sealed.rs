//! The vault is sealed just before each request that a bind, a rotation and an unbind make to it, and killed before the
//! last ones, and comes back: all of them go on by themselves, and nothing is left over or half granted.

use super::proxy::{Fault, Kind};
use super::stage::{Stage, Work, client};
use crate::vault::server::Server;
use crate::whole::VaultPlace;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_is_sealed_or_killed_at_any_request_is_waited_for() {
    let server = Arc::new(Server::lasting().await);
    let place = VaultPlace {
        address: server.address.clone(),
        root: server.root.clone(),
        ca: server.ca.clone(),
    };
    let stage = Stage::begin("sealed", place).await;
    let requests = stage.clean_run().await;
    let seal = {
        let server = server.clone();
        Kind::After(Arc::new(move || {
            let server = server.clone();
            Box::pin(async move { server.seal().await })
        }))
    };
    let kill = {
        let server = server.clone();
        Kind::After(Arc::new(move || {
            let server = server.clone();
            Box::pin(async move { server.kill() })
        }))
    };
    let mut bindings = Vec::new();
    for (work, list) in &requests {
        for (at, request) in list.iter().enumerate() {
            if !request.starts_with("vault ") {
                continue;
            }
            // To be killed is to refuse connections, which others see to: here once for each kind of work.
            let last = !list[at + 1..].iter().any(|later| later.starts_with("vault "));
            for (word, kind) in [("sealed", &seal), ("killed", &kill)]
                .into_iter()
                .take(1 + usize::from(last))
            {
                let binding = format!("{work:?}-{at}-{word}");
                stage.faults.begin([]);
                for before in super::ALL.iter().filter(|before| *before < work) {
                    assert_eq!(stage.carry_out(*before, &binding).await, "succeeded");
                }
                let held = match work {
                    Work::Unbind => Some(stage.enters(&binding).await),
                    _ => None,
                };
                stage
                    .faults
                    .begin([(client(&binding), Fault::new(at, 1, kind.clone()))]);
                let back = async {
                    stage.spoilt(&binding).await;
                    // Long enough to be told, and tried again, while it is away.
                    tokio::time::sleep(Duration::from_millis(800)).await;
                    if word == "killed" {
                        server.start().await;
                    }
                    server.unseal().await;
                };
                let (end, ()) = tokio::join!(stage.carry_out(*work, &binding), back);
                assert_eq!(end, "succeeded", "{work:?} of {binding}");
                if let Some(held) = held {
                    stage.is_out(&held).await;
                } else {
                    stage.enters(&binding).await;
                    bindings.push(binding);
                }
            }
        }
    }
    println!(
        "{} bindings went through a vault that was sealed or killed and are still there",
        bindings.len()
    );
    let there = stage.comes_to_any("after all that", &bindings).await;
    for binding in &bindings {
        let version = if binding.starts_with("Rotate") { 2 } else { 1 };
        assert_eq!(there.secrets[&client(binding)], version, "{binding}");
    }
    for binding in &bindings {
        assert_eq!(stage.carry_out(Work::Unbind, binding).await, "succeeded");
    }
    stage.comes_to("at the end", 0, &[]).await;
    stage.end().await;
}
