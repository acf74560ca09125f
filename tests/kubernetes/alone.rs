//! What disturbs everybody: the API server dies, the node goes away. `make test-real` runs these when the others are done.

use crate::cluster::Component;
use crate::scene::{Plan, Stage};
use crate::support::platform::instance;
use crate::support::{Dice, seed, until};
use serde_json::json;
use std::time::Duration;

const REDIS: Plan = ("redis", "small");
const LONG: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_dies_is_waited_for() {
    let seed = seed();
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let scene = Stage::alone().await.open().await;
    let Some(server) = Component::of_testbed("kube-apiserver") else {
        println!("not the testbed: its API server cannot be killed");
        return;
    };
    let (osb, id) = (&scene.osb, scene.id("server"));
    for verb in ["create", "update", "delete"] {
        let answer = match verb {
            "create" => osb.ask(REDIS, &id, json!({})).await,
            "update" => {
                osb.ask_update(REDIS, &id, json!({"parameters": {"idle_timeout_seconds": 60}}))
                    .await
            }
            _ => osb.ask_delete(REDIS, &id).await,
        };
        let answer = answer.expect(&[202]);
        tokio::time::sleep(Duration::from_millis(dice.below(2500))).await;
        server.kill().await;
        // Whoever polls is answered meanwhile.
        let path = format!("{}/last_operation", instance(&id));
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = osb.platform.get(&path).await.expect(&[200]);
            assert_ne!(now.body["state"], "failed", "{}", now.text);
        }
        server.start().await;
        let told = osb.follow(&answer, &instance(&id)).await.good();
        println!("{verb}: {:?} {:#?}", told.took, told.texts);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_away_is_told_and_waited_for() {
    let scene = Stage::alone().await.open().await;
    let Some(kubelet) = Component::of_testbed("kubelet") else {
        println!("not the testbed: its kubelet cannot be stopped");
        return;
    };
    let (osb, id, there) = (&scene.osb, scene.id("node"), scene.id("there"));
    let app = scene.application().await;
    osb.create(REDIS, &there, json!({})).await.good();
    let user = osb.bind(REDIS, &there, "user", json!({})).await;
    kubelet.kill().await;
    let ready = "{.items[*].status.conditions[?(@.type=='Ready')].status}";
    until("the node is not ready", LONG, || async {
        let path = format!("jsonpath={ready}");
        let said = scene.kubectl().ok(&["get", "nodes", "-o", &path]).await;
        (said != "True").then_some(())
    })
    .await;
    let answer = osb.ask(REDIS, &id, json!({})).await.expect(&[202]);
    let path = format!("{}/last_operation", instance(&id));
    let text = until("what is waited for is told", LONG, || async {
        let now = osb.platform.get(&path).await.expect(&[200]);
        assert_eq!(now.body["state"], "in progress", "{}", now.text);
        let text = now.body["description"].as_str().unwrap().to_owned();
        text.contains("No node takes pod").then_some(text)
    })
    .await;
    println!("{text}");
    kubelet.start().await;
    osb.follow(&answer, &instance(&id)).await.good();
    // A pod of a node that was away is nobody's endpoint until its own probe has passed again.
    until("what was there answers again", LONG, || async {
        (app.redis(&user, &["PING"]).await.as_deref() == Ok("PONG")).then_some(())
    })
    .await;
    osb.delete(REDIS, &id).await;
    osb.delete(REDIS, &there).await;
    scene.end().await;
}
