//! The same flows for services whose image not every testbed has: MinIO, Cassandra.

use crate::cluster::image;
use crate::pods::Tools;
use crate::scene::{Plan, Stage};
use scylla::client::PoolSize;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::cluster::metadata::Peer;
use scylla::policies::host_filter::HostFilter;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

const MINIO: Plan = ("minio", "small");
const CASSANDRA: Plan = ("cassandra", "small");

/// A request to the object store, signed with the credentials of a binding, from a pod.
async fn s3(app: &Tools, credentials: &Value, more: &[&str], key: &str) -> Result<String, String> {
    let of = |member: &str| credentials[member].as_str().unwrap();
    let user = format!("{}:{}", of("access_key_id"), of("secret_access_key"));
    let url = format!("{}/{}/{key}", of("endpoint"), of("bucket"));
    let provider = format!("aws:amz:{}:s3", of("region"));
    let curl = [
        "curl",
        "-sS",
        "--fail-with-body",
        "-m",
        "15",
        "--aws-sigv4",
        &provider,
        "--user",
        &user,
    ];
    app.run(20, &[&curl[..], more, &[&url]].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minio_from_create_to_delete() {
    if image("minio").is_none() && std::env::var_os("CHANDLER_TESTBED_RUN").is_some() {
        println!("the testbed has no image of MinIO");
        return;
    }
    let scene = Stage::new().await.open().await;
    let (osb, id) = (&scene.osb, scene.id("minio"));
    let app = scene.application().await;
    let told = osb.create(MINIO, &id, json!({})).await.good();
    println!("{:?} {:#?}", told.took, told.texts);
    let writer = osb.bind(MINIO, &id, "writer", json!({})).await;
    let reader = osb.bind(MINIO, &id, "reader", json!({"role": "readonly"})).await;
    let put = ["-X", "PUT", "--data-binary", "one"];
    s3(&app, &writer, &put, "kept").await.unwrap();
    assert_eq!(s3(&app, &reader, &[], "kept").await.unwrap(), "one");
    let refused = s3(&app, &reader, &put, "kept").await.unwrap_err();
    assert!(refused.contains("AccessDenied"), "{refused}");

    osb.update(MINIO, &id, json!({"parameters": {"consumers": ["some-team"]}}))
        .await
        .good();
    assert_eq!(s3(&app, &reader, &[], "kept").await.unwrap(), "one");

    osb.unbind(MINIO, &id, "writer").await;
    let refused = s3(&app, &writer, &[], "kept").await.unwrap_err();
    assert!(
        refused.contains("InvalidAccessKeyId") || refused.contains("AccessDenied"),
        "{refused}"
    );
    assert_eq!(s3(&app, &reader, &[], "kept").await.unwrap(), "one");
    osb.delete(MINIO, &id).await;
    scene.end().await;
}

/// Keeps the driver at the one address that leads through the pod.
struct OnlyThere;

impl HostFilter for OnlyThere {
    fn accept(&self, peer: &Peer) -> bool {
        peer.address.ip().is_loopback()
    }
}

/// A log-in of an application, from its pod; refused or not.
async fn cql(app: &Tools, credentials: &Value, statement: &str) -> Result<Vec<String>, String> {
    let (near, _relay) = app.through(credentials).await;
    let of = |member: &str| credentials[member].as_str().unwrap();
    let work = async {
        let session: Session = SessionBuilder::new()
            .known_node_addr(([127, 0, 0, 1], near["port"].as_u64().unwrap() as u16).into())
            .host_filter(Arc::new(OnlyThere))
            .user(of("username"), of("password"))
            .pool_size(PoolSize::PerHost(NonZeroUsize::MIN))
            .connection_timeout(Duration::from_secs(15))
            .fetch_schema_metadata(false)
            .auto_await_schema_agreement(false)
            .build()
            .await
            .map_err(|e| format!("{e:?}"))?;
        let answer = session
            .query_unpaged(statement, ())
            .await
            .map_err(|e| e.to_string())?;
        let Ok(rows) = answer.into_rows_result() else {
            return Ok(Vec::new());
        };
        let rows = rows.rows::<(String,)>().map_err(|e| e.to_string())?;
        rows.map(|row| row.map(|(text,)| text).map_err(|e| e.to_string()))
            .collect()
    };
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .unwrap_or_else(|_| Err("no answer in time".into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cassandra_from_create_to_delete() {
    if image("cassandra").is_none() && std::env::var_os("CHANDLER_TESTBED_RUN").is_some() {
        println!("the testbed has no image of Cassandra");
        return;
    }
    let mut stage = Stage::new().await;
    // What it may use at once is for production; here it shares two processors with all the others.
    stage.plan("cassandra", "small", |plan| {
        plan["values"]["cpu"] = "0.25".into();
        plan["values"]["memory"] = "2Gi".into();
        plan["values"]["heap"] = "512Mi".into();
    });
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("cassandra"));
    let app = scene.application().await;
    let told = osb.create(CASSANDRA, &id, json!({})).await.good();
    println!("{:?} {:#?}", told.took, told.texts);
    let first = osb.bind(CASSANDRA, &id, "first", json!({})).await;
    let second = osb
        .bind(CASSANDRA, &id, "second", json!({"role": "readonly"}))
        .await;
    let table = format!("{}.kept", first["keyspace"].as_str().unwrap());
    for statement in [
        format!("CREATE TABLE {table} (key text PRIMARY KEY, value text)"),
        format!("INSERT INTO {table} (key, value) VALUES ('a', 'one')"),
    ] {
        cql(&app, &first, &statement).await.unwrap();
    }
    let select = format!("SELECT value FROM {table} WHERE key = 'a'");
    assert_eq!(cql(&app, &second, &select).await.unwrap(), ["one"]);
    let refused = cql(&app, &second, &format!("DELETE FROM {table} WHERE key = 'a'")).await;
    assert!(refused.is_err(), "{refused:?}");

    // The well-known administrator of a new server lets nobody in.
    let mut known = first.clone();
    known["username"] = "cassandra".into();
    known["password"] = "cassandra".into();
    assert!(cql(&app, &known, &select).await.is_err());

    osb.unbind(CASSANDRA, &id, "first").await;
    assert!(cql(&app, &first, &select).await.is_err());
    assert_eq!(cql(&app, &second, &select).await.unwrap(), ["one"]);
    osb.delete(CASSANDRA, &id).await;
    scene.end().await;
}
