//! create → bind → use from a pod of another namespace → update → unbind → delete, with real pods.

use crate::pods::Tools;
use crate::scene::{Plan, Scene, Stage, iid, space};
use crate::support::clients::{self, Access};
use crate::support::platform::Service;
use serde_json::{Value, json};

const REDIS: Plan = ("redis", "small");
const POSTGRES: Plan = ("postgres", "small");
const NATS: Plan = ("nats", "small");

/// A log-in of an application, from its pod.
async fn access(app: &Tools, service: Service, credentials: &Value) -> Access {
    let (near, _relay) = app.through(credentials).await;
    clients::access(service, &near).await
}

/// The texts people saw while they waited are several, and hold no name of a thing they do not know.
fn moved(texts: &[String]) {
    println!("{texts:#?}");
    assert!(texts.len() >= 3, "nothing was told: {texts:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_from_create_to_delete() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("redis"));
    let app = scene.application().await;
    moved(&osb.create(REDIS, &id, json!({})).await.good().texts);

    let writer = osb.bind(REDIS, &id, "writer", json!({})).await;
    let reader = osb.bind(REDIS, &id, "reader", json!({"role": "readonly"})).await;
    assert_eq!(
        writer["host"],
        format!("redis.{}.svc.cluster.local", space(&iid(&id)))
    );
    assert_eq!(app.redis(&writer, &["SET", "kept", "one"]).await.unwrap(), "OK");
    assert_eq!(app.redis(&reader, &["GET", "kept"]).await.unwrap(), "one");
    assert!(app.redis(&reader, &["SET", "kept", "two"]).await.is_err());

    osb.update(
        REDIS,
        &id,
        json!({"parameters": {"notify_keyspace_events": "KEx"}}),
    )
    .await
    .good();
    assert_eq!(app.redis(&writer, &["GET", "kept"]).await.unwrap(), "one");
    let admin = scene.stage.served.state().await.admin(&id).await;
    let mut as_admin = writer.clone();
    as_admin["username"] = admin["username"].clone();
    as_admin["password"] = admin["password"].clone();
    let asked = app
        .redis(&as_admin, &["CONFIG", "GET", "notify-keyspace-events"])
        .await;
    assert!(asked.unwrap().contains('E'), "the update reached the server");

    osb.unbind(REDIS, &id, "writer").await;
    let refused = app.redis(&writer, &["GET", "kept"]).await.unwrap_err();
    assert!(refused.contains("WRONGPASS"), "{refused}");
    assert_eq!(access(&app, Service::Redis, &writer).await, Access::Refused);
    assert_eq!(app.redis(&reader, &["GET", "kept"]).await.unwrap(), "one");

    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_from_create_to_delete() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("postgres"));
    let app = scene.application().await;
    let parameters = json!({"database": "orders", "extensions": ["pg_trgm"]});
    moved(&osb.create(POSTGRES, &id, parameters).await.good().texts);

    let first = osb.bind(POSTGRES, &id, "first", json!({})).await;
    app.psql(&first, "CREATE TABLE kept AS SELECT 'one' AS value")
        .await
        .unwrap();
    let second = osb.bind(POSTGRES, &id, "second", json!({})).await;
    assert_eq!(app.psql(&second, "SELECT value FROM kept").await.unwrap(), "one");
    assert_eq!(app.psql(&second, "SHOW work_mem").await.unwrap(), "4MB");
    assert_eq!(
        app.psql(
            &second,
            "SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'"
        )
        .await
        .unwrap(),
        "1"
    );

    osb.update(POSTGRES, &id, json!({"parameters": {"work_mem_mb": 6}}))
        .await
        .good();
    assert_eq!(app.psql(&first, "SHOW work_mem").await.unwrap(), "6MB");
    assert_eq!(app.psql(&first, "SELECT value FROM kept").await.unwrap(), "one");

    osb.unbind(POSTGRES, &id, "first").await;
    let refused = app.psql(&first, "SELECT 1").await.unwrap_err();
    assert!(
        refused.contains("password authentication failed") || refused.contains("is not permitted to log in"),
        "{refused}"
    );
    // What the first one made belongs to the database, not to it.
    app.psql(&second, "INSERT INTO kept VALUES ('two')")
        .await
        .unwrap();

    osb.delete(POSTGRES, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_from_create_to_delete() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("nats"));
    let app = scene.application().await;
    moved(&osb.create(NATS, &id, json!({})).await.good().texts);

    let first = osb.bind(NATS, &id, "first", json!({})).await;
    let second = osb.bind(NATS, &id, "second", json!({})).await;
    {
        let (near, _relay) = app.through(&first).await;
        clients::write(Service::Nats, &near, "a", "one").await;
        let (near, _relay) = app.through(&second).await;
        assert_eq!(
            clients::read(Service::Nats, &near, "a").await.as_deref(),
            Some("one")
        );
    }

    osb.update(NATS, &id, json!({"parameters": {"ping_interval_seconds": 30}}))
        .await
        .good();
    {
        let (near, _relay) = app.through(&second).await;
        assert_eq!(
            clients::read(Service::Nats, &near, "a").await.as_deref(),
            Some("one")
        );
    }

    osb.unbind(NATS, &id, "first").await;
    assert_eq!(access(&app, Service::Nats, &first).await, Access::Refused);
    assert_eq!(access(&app, Service::Nats, &second).await, Access::In);

    osb.delete(NATS, &id).await;
    scene.end().await;
}

/// A stage on which `redis` has a plan `roomy`, like `small` with twice the disk.
async fn with_roomy(class: &str) -> Stage {
    let mut stage = Stage::new().await;
    let class = class.to_owned();
    stage.plan("redis", "small", |plan| {
        plan["values"]["storage_class"] = class.clone().into()
    });
    let small = std::fs::read_to_string(stage.home.path().join("own/plans/redis/small.yaml")).unwrap();
    let mut roomy: Value = serde_json::from_str(&small).unwrap();
    roomy["id"] = "0a6ff1a3-6a26-4a0e-9f0b-0d2f3a7e5c01".into();
    roomy["name"] = "roomy".into();
    roomy["order"] = 9.into();
    roomy["values"]["disk"] = "2Gi".into();
    stage.file("plans/redis/roomy.yaml", &roomy.to_string());
    stage.offering("redis", |offering| {
        offering["updates"] = json!({"small": ["roomy"], "medium": ["large"]});
    });
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_larger_plan_makes_the_volume_grow() {
    let scene = with_roomy("testbed").await.open().await;
    let (osb, id) = (&scene.osb, scene.id("grows"));
    let space = space(&iid(&id));
    let app = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    app.redis(&user, &["SET", "kept", "one"]).await.unwrap();
    let claim = scene.kubectl().get(&["pvc", "-n", &space]).await["items"][0].clone();
    let roomy = osb.ids(("redis", "roomy")).1;

    let told = osb.update(REDIS, &id, json!({"plan_id": roomy})).await.good();
    println!("{:#?}", told.texts);
    let after = scene.kubectl().get(&["pvc", "-n", &space]).await["items"][0].clone();
    assert_eq!(
        after["metadata"]["uid"], claim["metadata"]["uid"],
        "the same volume"
    );
    assert_eq!(after["status"]["capacity"]["storage"], "2Gi");
    let set = scene.kubectl().get(&["statefulset", "-n", &space, "redis"]).await;
    let template = &set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
    assert_eq!(template, "2Gi");
    assert_eq!(app.redis(&user, &["GET", "kept"]).await.unwrap(), "one");

    osb.delete(("redis", "roomy"), &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_cannot_grow_is_said_and_the_instance_works_on() {
    let scene = with_roomy("testbed-fixed").await.open().await;
    let (osb, id) = (&scene.osb, scene.id("fixed"));
    let app = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    app.redis(&user, &["SET", "kept", "one"]).await.unwrap();
    let roomy = osb.ids(("redis", "roomy")).1;

    let told = osb.update(REDIS, &id, json!({"plan_id": roomy})).await;
    let why = told.failed();
    println!("{why}");
    assert!(why.contains("testbed-fixed") && why.contains("grow"), "{why}");
    assert!(why.contains("works"), "whether it can be used is said: {why}");
    assert_eq!(app.redis(&user, &["GET", "kept"]).await.unwrap(), "one");

    osb.delete(REDIS, &id).await;
    scene.end().await;
}
