//! Rotation while an application works: whoever connects anew with the newer secret is let in at once and stays in.
//!
//! The application is many workers beside one `chandler fetch --watch`, which follows the secret. Careful ones connect
//! anew as soon as there is a newer secret, as a pool does that is told; careless ones only when their connection breaks.

use crate::support::Process;
use crate::whole::{Mission, VaultPlace, chandler, connect, secret_file, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::PgConnection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROTATIONS: u32 = 3;
/// Of each sort.
const WORKERS: usize = 4;

/// What one worker saw.
#[derive(Debug, Default)]
struct Seen {
    /// Statements that succeeded.
    statements: u32,
    /// Connections that were broken under it.
    broken: u32,
    /// Connections that were refused.
    refused: u32,
    /// User names it worked as, one after the other.
    names: Vec<String>,
}

/// Writes one row after the other until it is told to stop.
async fn work(file: &Path, careful: bool, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut open: Option<(Value, PgConnection)> = None;
    while !stop.load(Ordering::Relaxed) {
        // Replaced whole: there is always one secret or the next.
        let secret: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        if careful && open.as_ref().is_some_and(|(with, _)| *with != secret) {
            open = None;
        }
        let Some((_, session)) = &mut open else {
            match connect(&secret).await {
                Ok(session) => {
                    seen.names.push(secret["username"].as_str().unwrap().to_owned());
                    open = Some((secret, session));
                }
                Err(why) => {
                    println!("refused: {why}");
                    seen.refused += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            continue;
        };
        match sqlx::query("INSERT INTO work VALUES (1)").execute(session).await {
            Ok(_) => seen.statements += 1,
            Err(_) => {
                seen.broken += 1;
                open = None;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_load_loses_no_connection_made_with_the_newer_secret() {
    let mut mission = Mission::begin_with("load", VaultPlace::testbed(), |config| {
        config["bindings"]["rotation_grace_seconds"] = 5.into();
    });
    mission.set_up().await;
    mission.serve().await;
    let (ids, query) = mission.create_database(json!({})).await;
    let credentials = mission.bind(&ids, "web").await;

    let dir = mission.dir.path();
    let (binding, fetched) = (dir.join("web.json"), dir.join("fetched.json"));
    secret_file(&binding, &credentials.to_string());
    let mut fetch = chandler();
    fetch
        .args(["fetch", "--as", "json", "--watch", "--every", "1", "--from"])
        .arg(&binding)
        .arg("--to")
        .arg(&fetched);
    let fetch = Process::start_logging(&mut fetch, Signal::SIGTERM, &dir.join("fetch.log"));
    until("the secret is fetched", async || fetched.exists()).await;
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&fetched).unwrap()).unwrap();
    let mut session = connect(&read()).await.unwrap();
    sqlx::query("CREATE TABLE work (what INT)")
        .execute(&mut session)
        .await
        .unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..2 * WORKERS)
        .map(|n| {
            let (file, stop) = (fetched.clone(), stop.clone());
            tokio::spawn(async move { work(&file, n < WORKERS, &stop).await })
        })
        .collect();
    for _ in 0..ROTATIONS {
        let former = read();
        let (status, told) = mission
            .osb("POST", "/api/v1/bindings/web/rotate", json!({}))
            .await;
        assert_eq!(status, 200, "{told}");
        until("the newer secret is fetched", async || read() != former).await;
        until("the former one is refused", async || {
            connect(&former).await.is_err()
        })
        .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut rows, mut broken) = (0, 0);
    for (n, worker) in workers.into_iter().enumerate() {
        let seen = worker.await.unwrap();
        let careful = n < WORKERS;
        println!("careful {careful}: {seen:?}");
        assert_eq!(seen.refused, 0, "the newest secret was refused");
        // The session of the secret that ended breaks, and no other; the careful had left it before.
        assert_eq!(seen.broken, if careful { 0 } else { ROTATIONS });
        assert_eq!(seen.names.len(), 1 + ROTATIONS as usize);
        assert!(seen.names.windows(2).all(|two| two[0] != two[1]), "by turns");
        rows += i64::from(seen.statements);
        broken += i64::from(seen.broken);
    }
    let mut session = connect(&read()).await.unwrap();
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM work")
        .fetch_one(&mut session)
        .await
        .unwrap();
    // A session may break between the row and the word that it is there.
    assert!((rows..=rows + broken).contains(&found), "{found} of {rows} rows");
    drop(fetch);
    mission.delete_database(&query).await;
}
