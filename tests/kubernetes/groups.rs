//! Plans of several members, with real pods: the loss of one member is survived, with the credentials that were given.

use crate::administrators::{administrator_rotates, as_admin};
use crate::pods::Tools;
use crate::scene::{Plan, Stage, iid, space};
use crate::support::clients;
use crate::support::platform::Service;
use crate::support::until;
use serde_json::{Value, json};
use std::time::Duration;

const REDIS: Plan = ("redis", "medium");
const NATS: Plan = ("nats", "medium");
const LONG: Duration = Duration::from_secs(180);

/// What the members may use is for production; here all share two processors.
async fn modest(service: &str) -> Stage {
    let mut stage = Stage::new().await;
    stage.plan(service, "medium", |plan| {
        plan["retain_days"] = 0.into();
        plan["values"]["cpu"] = "0.05".into();
        plan["values"]["disk"] = "2Gi".into();
    });
    stage
}

/// The credentials, at the node that the sentinels call the primary.
async fn at_primary(app: &Tools, credentials: &Value) -> Option<Value> {
    let sentinels = credentials["sentinels"].as_array().unwrap();
    for sentinel in sentinels {
        let (host, port) = sentinel.as_str().unwrap().rsplit_once(':').unwrap();
        let ask = [
            "redis-cli",
            "-h",
            host,
            "-p",
            port,
            "sentinel",
            "get-master-addr-by-name",
            "primary",
        ];
        let Ok(said) = app.run(5, &ask).await else {
            continue;
        };
        let mut words = said.lines();
        if let (Some(host), Some(port)) = (words.next(), words.next().and_then(|p| p.parse::<u16>().ok())) {
            let mut there = credentials.clone();
            there["host"] = host.into();
            there["port"] = port.into();
            return Some(there);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_group_survives_the_loss_of_its_primary() {
    let scene = modest("redis").await.open().await;
    let (osb, id) = (&scene.osb, scene.id("group"));
    let home = space(&iid(&id));
    let app = scene.application().await;
    let told = osb.create(REDIS, &id, json!({})).await.good();
    println!("{:?} {:#?}", told.took, told.texts);
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    let primary = at_primary(&app, &user)
        .await
        .expect("a sentinel says who is the primary");
    assert_eq!(app.redis(&primary, &["SET", "kept", "one"]).await.unwrap(), "OK");
    let copies = app.redis(&primary, &["WAIT", "1", "5000"]).await.unwrap();
    assert!(copies.parse::<u32>().unwrap() >= 1, "{copies}");
    let former = as_admin(&scene, &id, &user).await;
    administrator_rotates(&scene, &id).await;
    let administrator = as_admin(&scene, &id, &user).await;

    let pod = primary["host"]
        .as_str()
        .unwrap()
        .split('.')
        .next()
        .unwrap()
        .to_owned();
    let born = async || {
        let named = format!("metadata.name={pod}");
        let found = ["pods", "-n", &home, "--field-selector", &named];
        scene.kubectl().get(&found).await["items"][0]["metadata"]["uid"].clone()
    };
    let before = born().await;
    let kill = ["delete", "pod", "-n", &home, &pod, "--grace-period=0", "--force"];
    scene.kubectl().ok(&kill).await;
    // Its pod may be back before the others miss it: then it stays the primary, with its volume.
    let after = until("a primary takes writes again", LONG, || async {
        let now = at_primary(&app, &user).await?;
        let written = app.redis(&now, &["SET", "after", "two"]).await;
        let other = now["host"] != primary["host"] || born().await != before;
        (other && written.as_deref() == Ok("OK")).then_some(now)
    })
    .await;
    assert_eq!(app.redis(&after, &["GET", "kept"]).await.unwrap(), "one");

    // A user made now is known to whichever node will be the primary next.
    until("the group is whole again", LONG, || async {
        let set = scene.kubectl().get(&["statefulset", "-n", &home, "redis"]).await;
        (set["status"]["readyReplicas"] == 3).then_some(())
    })
    .await;
    let more = osb.bind(REDIS, &id, "more", json!({})).await;
    for node in more["nodes"].as_array().unwrap() {
        let (host, port) = node.as_str().unwrap().rsplit_once(':').unwrap();
        let mut there = more.clone();
        there["host"] = host.into();
        there["port"] = port.parse::<u16>().unwrap().into();
        assert_eq!(
            app.redis(&there, &["GET", "kept"]).await.unwrap(),
            "one",
            "{node}"
        );
    }
    osb.unbind(REDIS, &id, "user").await;
    for node in more["nodes"].as_array().unwrap() {
        let (host, port) = node.as_str().unwrap().rsplit_once(':').unwrap();
        let mut there = user.clone();
        there["host"] = host.into();
        there["port"] = port.parse::<u16>().unwrap().into();
        assert!(
            app.redis(&there, &["PING"]).await.is_err(),
            "{node} lets a revoked user in"
        );
        for (login, gets_in) in [(&administrator, true), (&former, false)] {
            let mut there = there.clone();
            there["username"] = login["username"].clone();
            there["password"] = login["password"].clone();
            let asked = app.redis(&there, &["PING"]).await;
            assert_eq!(asked.is_ok(), gets_in, "{node}: {asked:?}");
        }
    }
    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_cluster_survives_the_loss_of_a_member() {
    let scene = modest("nats").await.open().await;
    let (osb, id) = (&scene.osb, scene.id("cluster"));
    let home = space(&iid(&id));
    let app = scene.application().await;
    let told = osb.create(NATS, &id, json!({})).await.good();
    println!("{:?} {:#?}", told.took, told.texts);
    let user = osb.bind(NATS, &id, "user", json!({})).await;
    {
        let (near, _relay) = app.through(&user).await;
        clients::write(Service::Nats, &near, "a", "one").await;
    }
    let kill = [
        "delete",
        "pod",
        "-n",
        &home,
        "nats-0",
        "--grace-period=0",
        "--force",
    ];
    scene.kubectl().ok(&kill).await;
    until("the cluster is whole again", LONG, || async {
        let set = scene.kubectl().get(&["statefulset", "-n", &home, "nats"]).await;
        (set["status"]["readyReplicas"] == 3).then_some(())
    })
    .await;
    let (near, _relay) = app.through(&user).await;
    assert_eq!(
        clients::read(Service::Nats, &near, "a").await.as_deref(),
        Some("one")
    );
    osb.delete(NATS, &id).await;
    scene.end().await;
}
