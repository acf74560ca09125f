//! Who reaches an instance, seen from pods; and what an instance's pods may not.

use crate::scene::{Plan, Scene, Stage, iid, space};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const REDIS: Plan = ("redis", "small");

/// Policies take effect a moment after they are there.
async fn soon<F: Future<Output = bool>>(what: &str, look: impl Fn() -> F) {
    let end = Instant::now() + Duration::from_secs(40);
    while !look().await {
        assert!(Instant::now() < end, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_admitted_namespaces_reach_an_instance() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("closed"));
    let home = space(&iid(&id));
    let (app, named, stranger) = tokio::join!(
        scene.application(),
        scene.tools("named", json!({})),
        scene.tools("stranger", json!({"chandler.osb/consumer": "false"}))
    );
    let consumers = json!({"consumers": [named.namespace]});
    osb.create(REDIS, &id, consumers).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    let (host, port) = (user["host"].as_str().unwrap(), &user["port"]);

    soon("an application is let in", || app.reaches(host, port)).await;
    soon("a namespace named by the parameter is let in", || {
        named.reaches(host, port)
    })
    .await;
    assert_eq!(named.redis(&user, &["PING"]).await.unwrap(), "PONG");
    assert!(!stranger.reaches(host, port).await, "anybody is let in");
    let refused = stranger.redis(&user, &["PING"]).await;
    assert!(refused.is_err(), "with the right password too: {refused:?}");

    // Nothing else of the instance's pod is open, not even to those who are admitted.
    let pods = scene.kubectl().get(&["pods", "-n", &home]).await;
    let address = pods["items"][0]["status"]["podIP"].as_str().unwrap();
    assert!(app.reaches(address, port).await);
    assert!(!app.reaches(address, &json!(26379)).await);

    osb.update(REDIS, &id, json!({"parameters": {"consumers": []}}))
        .await
        .good();
    let shut = || async { !named.reaches(host, port).await };
    soon("a namespace that is no longer named is shut out", shut).await;
    assert!(app.reaches(host, port).await, "the others stay");

    // From inside: no way out but to the name server, no token, no root.
    let inside = |script: &'static str| {
        let (kubectl, home) = (scene.kubectl().clone(), home.clone());
        async move {
            let exec = [
                "exec", "-n", &home, "redis-0", "-c", "redis", "--", "timeout", "12", "sh", "-c", script,
            ];
            kubectl.attempt(&exec).await
        }
    };
    let api = inside("nc -w 3 kubernetes.default.svc.cluster.local 443 </dev/null").await;
    assert!(api.is_err(), "an instance reaches the API server: {api:?}");
    inside("nslookup kubernetes.default.svc.cluster.local >/dev/null")
        .await
        .unwrap();
    inside("[ ! -e /var/run/secrets/kubernetes.io ]").await.unwrap();
    inside("[ $(id -u) != 0 ] && ! touch /file 2>/dev/null")
        .await
        .unwrap();
    let root = [
        "run",
        "root",
        "-n",
        &home,
        "--image=root",
        "--restart=Never",
        "--dry-run=server",
    ];
    let root = scene.kubectl().attempt(&root).await.unwrap_err();
    assert!(root.contains("PodSecurity"), "{root}");

    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_shared_namespace_instances_are_closed_to_each_other() {
    let mut stage = Stage::new().await;
    let shared = format!("{}-shared", stage.tag);
    stage.shared(&shared, json!({})).await;
    let scene = stage.open().await;
    let (osb, one, two) = (&scene.osb, scene.id("one"), scene.id("two"));
    let app = scene.application().await;
    let (first, second) = tokio::join!(
        osb.create(REDIS, &one, json!({})),
        osb.create(REDIS, &two, json!({}))
    );
    first.good();
    second.good();
    let user = osb.bind(REDIS, &one, "user", json!({})).await;
    let other = osb.bind(REDIS, &two, "user", json!({})).await;
    let host = |user: &Value| user["host"].as_str().unwrap().to_owned();
    assert_eq!(
        host(&user),
        format!("redis-{}.{shared}.svc.cluster.local", iid(&one))
    );
    assert_eq!(app.redis(&user, &["SET", "mine", "1"]).await.unwrap(), "OK");
    assert_eq!(app.redis(&other, &["GET", "mine"]).await.unwrap(), "");
    assert!(
        app.redis(
            &json!({"host": host(&other), "port": 6379, "username": user["username"],
        "password": user["password"]}),
            &["PING"]
        )
        .await
        .is_err()
    );

    let pod = format!("redis-{}-0", iid(&one));
    let script = format!("nc -w 3 {} 6379 </dev/null", host(&other));
    let exec = [
        "exec", "-n", &shared, &pod, "-c", "redis", "--", "timeout", "10", "sh", "-c", &script,
    ];
    assert!(
        scene.kubectl().attempt(&exec).await.is_err(),
        "one instance reaches the other"
    );

    osb.delete(REDIS, &one).await;
    assert_eq!(
        app.redis(&other, &["PING"]).await.unwrap(),
        "PONG",
        "the other one stays"
    );
    osb.delete(REDIS, &two).await;
    scene.nothing_left().await;
    let space = scene.kubectl().get(&["namespace", &shared]).await;
    assert!(
        space["metadata"].get("deletionTimestamp").is_none(),
        "the namespace is not the broker's to remove"
    );
    scene.end().await;
}
