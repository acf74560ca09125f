//! Volumes that outlive their instance for a while, and come back.

use crate::scene::{Plan, Stage, iid, space};
use serde_json::json;
use std::time::{Duration, Instant};

const REDIS: Plan = ("redis", "small");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_volumes_come_back_with_their_data_and_go_when_told() {
    let mut stage = Stage::new().await;
    stage.plan("redis", "small", |plan| plan["retain_days"] = 3.into());
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("kept"));
    let home = space(&iid(&id));
    let app = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();
    let before = osb.bind(REDIS, &id, "before", json!({})).await;
    app.redis(&before, &["SET", "kept", "one"]).await.unwrap();

    let told = osb.delete(REDIS, &id).await;
    assert!(told.texts.last().unwrap().contains("3 days"), "{:?}", told.texts);
    let kinds = "pods,statefulsets,services,configmaps,secrets,networkpolicies";
    let left = scene
        .kubectl()
        .names(&[kinds, "-n", &home, "-l", crate::scene::OURS])
        .await;
    assert!(left.is_empty(), "more than the volume stays: {left:?}");
    let claims = scene.kubectl().get(&["pvc", "-n", &home]).await;
    assert_eq!(claims["items"].as_array().unwrap().len(), 1);
    assert_eq!(claims["items"][0]["status"]["phase"], "Bound");
    assert!(
        scene
            .command(&["instances", "list", "--all"])
            .contains("kept until")
    );

    let said = scene.command(&["instances", "undelete", &iid(&id)]);
    let operation = said
        .split('`')
        .nth(1)
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap()
        .to_owned();
    let path = format!("/v2/service_instances/{id}/last_operation?operation={operation}");
    let end = Instant::now() + Duration::from_secs(240);
    loop {
        let answer = osb.platform.get(&path).await;
        if answer.body["state"] == "succeeded" {
            break;
        }
        assert!(
            Instant::now() < end && answer.body["state"] != "failed",
            "{}",
            answer.text
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let after = osb.bind(REDIS, &id, "after", json!({})).await;
    assert_eq!(app.redis(&after, &["GET", "kept"]).await.unwrap(), "one");
    assert!(
        app.redis(&before, &["GET", "kept"]).await.is_err(),
        "old bindings stay revoked"
    );

    osb.delete(REDIS, &id).await;
    scene.command(&["instances", "purge", &iid(&id)]);
    scene.end().await;
}
