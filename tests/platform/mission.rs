//! The whole sentence: from the catalog to a database, to credentials that belong to one application, rotate and end.
//!
//! `scripts/demo-platform.sh` tells the same story with pods.

use crate::whole::{Mission, connect, said, until};
use serde_json::json;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_catalog_to_the_last_refusal() {
    let mut mission = Mission::begin();
    mission.set_up().await;
    mission.serve().await;
    mission.admit().await;
    let doctor = mission.run(&["doctor"]);
    assert!(doctor.status.success(), "{}", said(&doctor));

    // Catalog and instance.
    let (ids, query) = mission.create_database(json!({})).await;

    // Two applications, each with a client of its own.
    let (web_app, other) = (mission.bind(&ids, "web").await, mission.bind(&ids, "other").await);
    let first = mission.fetch(&web_app).unwrap();
    let mut session = connect(&first).await.unwrap();
    sqlx::query("CREATE TABLE orders (what TEXT)")
        .execute(&mut session)
        .await
        .unwrap();
    let jwt = mission.token(&web_app).await.unwrap();
    let (_, web_token) = mission.enter(&jwt).await;
    let (_, other_token) = mission.enter(&mission.token(&other).await.unwrap()).await;
    assert_eq!(mission.read(&web_token, &web_app).await, 200);
    assert_eq!(mission.read(&other_token, &web_app).await, 403);

    // At rest the broker has no password of a binding: neither in its database nor by its own log-in.
    let database = std::fs::read(mission.dir.path().join("chandler.db")).unwrap();
    let password = first["password"].as_str().unwrap().as_bytes();
    assert!(!database.windows(password.len()).any(|w| w == password));

    // Rotation: the session that is open goes on, whoever connects anew does so with the newer credentials.
    let (status, told) = mission
        .osb("POST", "/api/v1/bindings/web/rotate", json!({}))
        .await;
    assert_eq!(status, 200, "{told}");
    let second = mission.fetch(&web_app).unwrap();
    assert_ne!(first["password"], second["password"]);
    let mut newer = connect(&second).await.unwrap();
    sqlx::query("INSERT INTO orders VALUES ('rope')")
        .execute(&mut newer)
        .await
        .unwrap();
    until("the former credentials are refused", async || {
        connect(&first).await.is_err()
    })
    .await;
    sqlx::query("INSERT INTO orders VALUES ('tar')")
        .execute(&mut newer)
        .await
        .unwrap();

    // The administrator, too: the former credentials are in the broker's memory, and what follows works all the same.
    let internal = format!("{}-int/metadata/", mission.name);
    let (_, instances) = mission.vault(None, "LIST", &internal, None).await;
    let kept = format!("{internal}{}", instances["data"]["keys"][0].as_str().unwrap());
    let names = async || mission.vault(None, "LIST", &kept, None).await.1["data"]["keys"].clone();
    assert_eq!(names().await, json!(["admin"]));
    mission.admit().await;
    let done = mission.run(&["credentials", "rotate", "--all"]);
    assert!(
        done.status.success() && said(&done).contains("1 under way"),
        "{}",
        said(&done)
    );
    until("the administrator has new credentials", async || {
        names().await == json!(["admin-1"])
    })
    .await;
    sqlx::query("INSERT INTO orders VALUES ('sail')")
        .execute(&mut newer)
        .await
        .unwrap();

    // Unbind: every way in is closed, at once.
    let path = format!("/v2/service_instances/db/service_bindings/web?{query}");
    let began = Instant::now();
    let (status, told) = mission.osb("DELETE", &path, json!({})).await;
    assert_eq!(status, 200, "{told}");
    println!("unbound in {:?}", began.elapsed());
    assert!(connect(&second).await.is_err());
    assert!(
        sqlx::query("SELECT 1").execute(&mut newer).await.is_err(),
        "its session goes on"
    );
    assert!(mission.token(&web_app).await.is_none());
    assert!(matches!(mission.read(&web_token, &web_app).await, 403 | 404));
    // A token from before still logs in for its short life, and finds nothing.
    let (status, late) = mission.enter(&jwt).await;
    if status == 200 {
        assert!(matches!(mission.read(&late, &web_app).await, 403 | 404));
    }
    assert!(mission.fetch(&web_app).is_err());
    // The other application noticed nothing.
    connect(&mission.fetch(&other).unwrap()).await.unwrap();

    for check in [&["audit", "verify"][..], &["reconcile"]] {
        mission.admit().await;
        let done = mission.run(check);
        assert!(done.status.success(), "{check:?}: {}", said(&done));
    }

    // Delete, with a binding still there: nothing is left anywhere.
    mission.delete_database(&query).await;
    for mount in [mission.name.clone(), format!("{}-int", mission.name)] {
        let left = mission
            .vault(None, "LIST", &format!("{mount}/metadata/"), None)
            .await;
        assert_eq!(left.0, 404, "{}", left.1);
    }
    let clients = mission.admin("GET", "/clients?clientId=osb-b-&search=true").await;
    assert_eq!(clients, json!([]));
    assert!(connect(&second).await.is_err());
}
