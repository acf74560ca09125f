//! The same flows for services whose image not every testbed has: MinIO, Cassandra.

use crate::administrators::{administrator_rotates, as_admin};
use crate::cluster::image;
use crate::pods::Tools;
use crate::s3_client;
use crate::scene::{Plan, Stage};
use async_trait::async_trait;
use scylla::client::PoolSize;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::TranslationError;
use scylla::policies::address_translator::{AddressTranslator, UntranslatedPeer};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

const MINIO: Plan = ("minio", "small");
const CASSANDRA: Plan = ("cassandra", "small");

/// A request to the object store, signed with the credentials of a binding, from a pod.
async fn s3(app: &Tools, credentials: &Value, method: &str, body: &str) -> Result<String, String> {
    let (near, _relay) = app.through(credentials).await;
    let of = |member: &str| credentials[member].as_str().unwrap().to_owned();
    let client = s3_client::Client {
        authority: format!("127.0.0.1:{}", near["port"]),
        region: of("region"),
        id: of("access_key_id"),
        secret: of("secret_access_key"),
        token: None,
    };
    let path = format!("/{}/kept", of("bucket"));
    match client.send(method, &path, "", body).await {
        (200, text) => Ok(text),
        (status, text) => Err(format!("{status} {text}")),
    }
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
    s3(&app, &writer, "PUT", "one").await.unwrap();
    assert_eq!(s3(&app, &reader, "GET", "").await.unwrap(), "one");
    let refused = s3(&app, &reader, "PUT", "two").await.unwrap_err();
    assert!(refused.contains("AccessDenied"), "{refused}");

    osb.update(MINIO, &id, json!({"parameters": {"consumers": ["some-team"]}}))
        .await
        .good();
    assert_eq!(s3(&app, &reader, "GET", "").await.unwrap(), "one");

    osb.unbind(MINIO, &id, "writer").await;
    let refused = s3(&app, &writer, "GET", "").await.unwrap_err();
    assert!(
        refused.contains("InvalidAccessKeyId") || refused.contains("AccessDenied"),
        "{refused}"
    );
    assert_eq!(s3(&app, &reader, "GET", "").await.unwrap(), "one");
    osb.delete(MINIO, &id).await;
    scene.end().await;
}

/// Leads the driver through the pod, whatever the node calls itself.
struct Through(SocketAddr);

#[async_trait]
impl AddressTranslator for Through {
    async fn translate_address(&self, _: &UntranslatedPeer) -> Result<SocketAddr, TranslationError> {
        Ok(self.0)
    }
}

/// A log-in of an application, from its pod; refused or not.
async fn cql(app: &Tools, credentials: &Value, statement: &str) -> Result<Vec<String>, String> {
    let (near, _relay) = app.through(credentials).await;
    let of = |member: &str| credentials[member].as_str().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], near["port"].as_u64().unwrap() as u16));
    let work = async {
        let session: Session = SessionBuilder::new()
            .known_node_addr(address)
            .address_translator(Arc::new(Through(address)))
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

    let former = as_admin(&scene, &id, &first).await;
    assert!(cql(&app, &former, &select).await.is_ok());
    administrator_rotates(&scene, &id).await;
    assert!(cql(&app, &former, &select).await.is_err());
    assert!(
        cql(&app, &as_admin(&scene, &id, &first).await, &select)
            .await
            .is_ok()
    );

    osb.unbind(CASSANDRA, &id, "first").await;
    assert!(cql(&app, &first, &select).await.is_err());
    assert_eq!(cql(&app, &second, &select).await.unwrap(), ["one"]);
    osb.delete(CASSANDRA, &id).await;
    scene.end().await;
}
