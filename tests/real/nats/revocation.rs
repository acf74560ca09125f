//! Revoked stays revoked: whatever is pushed, restarted or raced.

use super::{App, Server, mechanism};
use crate::contract::{self, Bound, Kit, Server as _, settle};
use chandler::ports::{CredentialMechanism, RevokedHandle, Target};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::sync::{Arc, Mutex};

async fn lets_in(server: &Server, bound: &Bound) -> bool {
    server
        .connect(bound.user.secret.text("creds"), None)
        .await
        .is_ok()
}

fn without_history(server: &Server) -> Target {
    server.target()
}

#[tokio::test]
async fn the_live_client_is_cut_and_the_other_stays() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (one, one_app) = server.app("one", "owner", json!({})).await;
    let (two, two_app) = server.app("two", "readonly", json!({})).await;
    kit.revoke(&one).await;
    one_app.is_cut_soon().await;
    kit.refused(&one).await;
    assert!(!two_app.is_cut());
    assert!(lets_in(&server, &two).await);

    // Nothing to revoke is success, and changes nothing.
    let before = fs::read(server.account_file()).unwrap();
    for handle in [
        "",
        "b_x",
        one.user.handle.as_str(),
        &one.user.handle.to_lowercase(),
        &"U".repeat(56),
    ] {
        server.mechanism.revoke(&kit.target(), handle).await.unwrap();
    }
    assert_eq!(fs::read(server.account_file()).unwrap(), before);
    kit.refused(&one).await;
    assert!(lets_in(&server, &two).await);
}

/// The classic trap: the server's memory of who was revoked must outlive the server.
#[tokio::test]
async fn a_restarted_server_lets_nobody_back_in() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (gone, _) = server.app("gone", "owner", json!({})).await;
    let (kept, _) = server.app("kept", "owner", json!({})).await;
    kit.revoke(&gone).await;
    // Pulled, then stopped in order.
    for next in [Signal::SIGTERM, Signal::SIGKILL] {
        server.restart(next);
        kit.refused(&gone).await;
        assert!(lets_in(&server, &kept).await);
        kit.issue(&kept).await;
        kit.refused(&gone).await;
    }
}

/// Why the application account is not preloaded. If this fails the server has changed, and the rule may be looked at again.
#[tokio::test]
async fn a_preload_would_undo_revocations() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (gone, _) = server.app("gone", "owner", json!({})).await;
    let initial = fs::read_to_string(server.account_file()).unwrap();
    kit.revoke(&gone).await;
    kit.refused(&gone).await;
    // An older preload loses against a file it can read …
    let preload = format!(
        "resolver_preload: {{ {}: {}, {}: {} }}",
        server.admin.text("system_account"),
        server.admin.text("system_account_jwt"),
        server.admin.text("account"),
        initial
    );
    server.extra.lock().unwrap().clone_from(&preload);
    server.restart(Signal::SIGKILL);
    kit.refused(&gone).await;

    // … and wins over one that a crash left half written.
    server.stop();
    fs::write(server.account_file(), "").unwrap();
    server.restart(Signal::SIGKILL);
    assert!(lets_in(&server, &gone).await, "the preload did not come back");

    // The mechanism repairs even that.
    kit.revoke(&gone).await;
    kit.refused(&gone).await;
}

/// Without the preload the same accidents shut everybody out until the account is pushed again, with its revocations.
#[tokio::test]
async fn a_lost_or_broken_account_file_lets_nobody_in() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (gone, _) = server.app("gone", "owner", json!({})).await;
    let (kept, _) = server.app("kept", "owner", json!({})).await;
    kit.revoke(&gone).await;
    for broken in [None, Some(""), Some("x.y.z")] {
        server.stop();
        match broken {
            None => fs::remove_file(server.account_file()).unwrap(),
            Some(text) => fs::write(server.account_file(), text).unwrap(),
        }
        server.restart(Signal::SIGKILL);
        assert!(!lets_in(&server, &kept).await, "{broken:?}");
        kit.issue(&kept).await;
        assert!(lets_in(&server, &kept).await, "{broken:?}");
        kit.refused(&gone).await;
    }
}

/// An instance's tombstones may be purged, and another broker may have an older list.
#[tokio::test]
async fn a_caller_with_a_shorter_list_brings_nobody_back() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (one, _) = server.app("one", "owner", json!({})).await;
    let (two, _) = server.app("two", "owner", json!({})).await;
    kit.revoke(&one).await;
    let other = mechanism();
    other
        .revoke(&without_history(&server), &two.user.handle)
        .await
        .unwrap();
    other.prepare(&without_history(&server)).await.unwrap();
    kit.refused(&one).await;
    kit.refused(&two).await;
}

/// The server takes whatever arrives last, whatever its date: the next look must see it and mend it.
#[tokio::test]
async fn an_old_push_that_arrives_late_does_not_last() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let (one, _) = server.app("one", "owner", json!({})).await;
    let (two, _) = server.app("two", "owner", json!({})).await;
    let old = fs::read_to_string(server.account_file()).unwrap();
    kit.revoke(&one).await;
    let system = system_client(&server).await;
    let answer = system.ask("$SYS.REQ.CLAIMS.UPDATE", &old).await.unwrap();
    assert_eq!(answer["data"]["code"], 200);
    assert!(
        lets_in(&server, &one).await,
        "the server now keeps the newer of two: good, the test is out of date"
    );

    // The engine's list has both by then.
    kit.revoke(&two).await;
    kit.refused(&one).await;
    kit.refused(&two).await;
}

async fn system_client(server: &Server) -> App {
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        server.admin.text("system_user_jwt"),
        server.admin.text("system_user_seed")
    );
    server.connect(&creds, Some("_INBOX_broker")).await.unwrap()
}

/// Eight unbinds at once, by two brokers that share nothing but the list in the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_at_once_all_end_revoked() {
    let server = Arc::new(Server::prepared().await);
    let brokers = [Arc::new(mechanism()), Arc::new(mechanism())];
    let mut apps = Vec::new();
    for i in 0..8 {
        apps.push(server.app(&format!("app-{i}"), "readwrite", json!({})).await);
    }
    let (stays, stays_app) = server.app("stays", "readwrite", json!({})).await;
    let list: Arc<Mutex<Vec<RevokedHandle>>> = Arc::default();

    let mut tasks = Vec::new();
    for (i, (bound, _)) in apps.iter().enumerate() {
        let (server, list) = (Arc::clone(&server), Arc::clone(&list));
        let broker = Arc::clone(&brokers[i % 2]);
        let handle = bound.user.handle.clone();
        tasks.push(tokio::spawn(async move {
            let at = contract::now();
            let read = || list.lock().unwrap().clone();
            list.lock().unwrap().push(RevokedHandle {
                handle: handle.clone(),
                at,
            });
            // The engine's rule: again while the list grew during the call.
            loop {
                let revoked = read();
                let target = Target {
                    revoked: revoked.clone(),
                    ..server.target()
                };
                settle("revoke", || broker.revoke(&target, &handle)).await;
                if read().len() == revoked.len() {
                    break;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for (bound, app) in &apps {
        app.is_cut_soon().await;
        assert!(!lets_in(&server, bound).await, "{}", bound.user.handle);
    }
    assert!(!stays_app.is_cut());
    assert!(lets_in(&server, &stays).await);
    server.restart(Signal::SIGKILL);
    for (bound, _) in &apps {
        assert!(!lets_in(&server, bound).await);
    }
}

/// A broker whose clock is behind the one that issued must still be able to revoke.
#[tokio::test]
async fn clocks_that_differ_do_not_save_a_jwt() {
    let server = Server::prepared().await;
    let mut kit = Kit::new(&server);
    let grant = contract::grant("ahead", "owner");
    let user = server
        .mechanism
        .generate_user(&kit.target(), &grant, contract::now() + 86_400_000)
        .unwrap();
    let ahead = Bound { grant, user };
    kit.issue(&ahead).await;
    kit.revoke(&ahead).await;
    kit.refused(&ahead).await;
}
