//! What people and controllers do to an instance behind the broker's back.

use crate::scene::{Plan, Scene, Stage, iid, space};
use crate::support::until;
use serde_json::json;
use std::time::Duration;

const REDIS: Plan = ("redis", "small");
/// Two looks for changed objects, and some.
const TWO_LOOKS: Duration = Duration::from_secs(170);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_comes_back_with_its_data_and_its_users() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("pod"));
    let home = space(&iid(&id));
    let app = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    app.redis(&user, &["SET", "kept", "one"]).await.unwrap();
    scene
        .kubectl()
        .ok(&["delete", "pod", "-n", &home, "redis-0", "--grace-period=1"])
        .await;
    until("the pod is back", Duration::from_secs(120), || async {
        app.redis(&user, &["GET", "kept"])
            .await
            .ok()
            .filter(|said| said == "one")
    })
    .await;
    let another = osb.bind(REDIS, &id, "another", json!({})).await;
    assert_eq!(app.redis(&another, &["GET", "kept"]).await.unwrap(), "one");
    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_deleted_is_told_and_not_made_anew() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("space"));
    let home = space(&iid(&id));
    osb.create(REDIS, &id, json!({})).await.good();
    scene
        .kubectl()
        .ok(&["delete", "namespace", &home, "--timeout=120s"])
        .await;
    let told = osb
        .update(REDIS, &id, json!({"parameters": {"idle_timeout_seconds": 60}}))
        .await;
    let why = told.failed();
    println!("{why}");
    assert!(
        why.contains("deleted outside the broker") && why.contains("its data"),
        "{why}"
    );
    let made = scene.kubectl().names(&["namespace", &home]).await;
    assert!(
        made.is_empty(),
        "an empty instance in place of the lost one: {made:?}"
    );
    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_edits_is_put_back() {
    let mut stage = Stage::new().await;
    stage.kubernetes()["drift_minutes"] = json!(1);
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("edited"));
    let home = space(&iid(&id));
    let (app, stranger) = tokio::join!(scene.application(), scene.tools("stranger", json!({})));
    osb.create(REDIS, &id, json!({})).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    app.redis(&user, &["SET", "kept", "one"]).await.unwrap();

    let kubectl = scene.kubectl();
    kubectl
        .ok(&["scale", "statefulset", "-n", &home, "redis", "--replicas=0"])
        .await;
    kubectl.ok(&["delete", "service", "-n", &home, "redis"]).await;
    let policies = kubectl.names(&["networkpolicy", "-n", &home]).await;
    let closed = policies.iter().find(|name| name.ends_with("-deny")).unwrap();
    kubectl.ok(&["delete", "-n", &home, closed]).await;
    until("the edits are put back", TWO_LOOKS, || async {
        let said = app.redis(&user, &["GET", "kept"]).await;
        let policies = kubectl.names(&["networkpolicy", "-n", &home]).await;
        (said.as_deref() == Ok("one") && policies.contains(closed)).then_some(())
    })
    .await;
    assert!(
        !stranger
            .reaches(user["host"].as_str().unwrap(), &user["port"])
            .await
    );
    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_edits_is_only_told_if_so_configured() {
    let mut stage = Stage::new().await;
    stage.kubernetes()["drift_minutes"] = json!(1);
    stage.kubernetes()["drift"] = json!("report");
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("told"));
    let home = space(&iid(&id));
    osb.create(REDIS, &id, json!({})).await.good();
    let patch = json!({"data": {"redis.conf": "port 1"}}).to_string();
    let edit = [
        "patch",
        "configmap",
        "-n",
        &home,
        "redis-config",
        "--type=merge",
        "-p",
        &patch,
    ];
    scene.kubectl().ok(&edit).await;
    until("the edit is told", TWO_LOOKS, || async {
        let log = scene.stage.home.logged();
        let line = log
            .lines()
            .find(|line| line.contains("not as the broker made it"))?
            .to_owned();
        assert!(
            line.contains("redis-config") && line.contains("data.redis.conf"),
            "{line}"
        );
        Some(())
    })
    .await;
    let config = scene
        .kubectl()
        .get(&["configmap", "-n", &home, "redis-config"])
        .await;
    assert_eq!(config["data"]["redis.conf"], "port 1", "it is left as it is");
    osb.delete(REDIS, &id).await;
    scene.end().await;
}
