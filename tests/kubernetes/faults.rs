//! Brokers that die, an API server that goes away, a broker that is cut off from it: every operation ends right.

use crate::cluster::Component;
use crate::scene::{Osb, Plan, Scene, Stage};
use crate::support::platform::instance;
use crate::support::process::Broker;
use crate::support::served::Served;
use crate::support::{Dice, number, postgres, seed, until};
use chandler::domain::operation::OperationState;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const REDIS: Plan = ("redis", "small");
const LONG: Duration = Duration::from_secs(120);

/// A whole life of an instance, asked for by a platform that repeats what is not answered.
async fn life(osb: Osb, app: Arc<crate::pods::Tools>, id: String) {
    osb.create(REDIS, &id, json!({})).await.good();
    let user = osb.bind(REDIS, &id, "user", json!({})).await;
    assert_eq!(app.redis(&user, &["SET", "kept", "one"]).await.unwrap(), "OK");
    osb.update(REDIS, &id, json!({"parameters": {"idle_timeout_seconds": 3600}}))
        .await
        .good();
    assert_eq!(app.redis(&user, &["GET", "kept"]).await.unwrap(), "one");
    osb.unbind(REDIS, &id, "user").await;
    assert!(app.redis(&user, &["PING"]).await.is_err());
    osb.delete(REDIS, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_again_and_again_loses_and_leaves_nothing() {
    let (seed, kills) = (seed(), number("CHANDLER_TEST_KILLS").unwrap_or(12));
    println!("seed {seed}");
    let mut dice = Dice::new(seed);
    let mut scene = Scene::new().await;
    let app = Arc::new(scene.application().await);
    let lives: Vec<_> = ["one", "two"]
        .map(|word| tokio::spawn(life(scene.osb.clone(), app.clone(), scene.id(word))))
        .into();
    let mut killed = 0;
    while killed < kills && !lives.iter().all(tokio::task::JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(300 + dice.below(7000))).await;
        scene.broker.kill9();
        scene.broker.again();
        killed += 1;
    }
    for life in lives {
        life.await.unwrap();
    }
    println!("killed {killed} times");
    assert!(
        killed >= 3,
        "it was not killed often enough to say anything: {killed}"
    );
    scene.end().await;
}

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
    assert_eq!(app.redis(&user, &["PING"]).await.unwrap(), "PONG");
    osb.delete(REDIS, &id).await;
    osb.delete(REDIS, &there).await;
    scene.end().await;
}

/// A way to the API server that can be cut.
struct Cable {
    port: u16,
    whole: Arc<AtomicBool>,
    cut: Arc<Notify>,
}

impl Cable {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (whole, cut) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        let (is_whole, broke) = (whole.clone(), cut.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (is_whole, broke, server) = (is_whole.clone(), broke.clone(), server.clone());
                tokio::spawn(async move {
                    let broken = broke.notified();
                    if !is_whole.load(Ordering::SeqCst) {
                        // Packets are lost: nobody says no.
                        tokio::time::sleep(LONG).await;
                        return;
                    }
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        () = broken => {}
                    }
                });
            }
        });
        Self { port, whole, cut }
    }

    fn cut(&self) {
        self.whole.store(false, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    fn mend(&self) {
        self.whole.store(true, Ordering::SeqCst);
    }
}

/// Host and port of the API server.
async fn api_server(stage: &Stage) -> String {
    let path = "jsonpath={.clusters[0].cluster.server}";
    let url = stage
        .kubectl
        .ok(&["config", "view", "--minify", "-o", path])
        .await;
    let url: reqwest::Url = url.parse().unwrap();
    format!(
        "{}:{}",
        url.host_str().unwrap(),
        url.port_or_known_default().unwrap()
    )
}

/// Whether this broker holds an operation that is in one of these steps.
async fn is_at(scene: &Scene, broker: &Broker, steps: &[&str]) {
    let mine = format!("{}-", broker.pid());
    let state = scene.stage.served.state().await;
    until("the broker that is to be cut off is at work", LONG, || async {
        let open = state
            .store
            .operations_list(Some(OperationState::Open), 10)
            .await
            .unwrap();
        open.iter()
            .any(|row| {
                steps.contains(&row.operation.step.as_str())
                    && row.owner.as_deref().is_some_and(|owner| owner.starts_with(&mine))
            })
            .then_some(())
    })
    .await;
    state.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_from_the_cluster_harms_nothing() {
    let mut stage = Stage::on(&postgres::fresh_url().await).await;
    let cable = Cable::to(api_server(&stage).await).await;
    let through = format!("https://127.0.0.1:{}", cable.port);
    let direct = stage.kubernetes()["kubeconfig"].clone();
    let cabled = stage.kubeconfig("cabled.kubeconfig", Some(&through)).await;
    stage.kubernetes()["kubeconfig"] = json!(cabled);
    stage.kubernetes()["request_seconds"] = json!(5);
    // The first broker is the one that will be cut off.
    let mut scene = stage.open().await;
    scene.stage.kubernetes()["kubeconfig"] = direct;
    let (one, two, three) = (scene.id("one"), scene.id("two"), scene.id("three"));
    let app = scene.application().await;
    let osb = scene.osb.clone();
    osb.create(REDIS, &one, json!({})).await.good();
    let user = osb.bind(REDIS, &one, "user", json!({})).await;

    let mut other = scene.stage.broker();
    let at_other = Osb::new(Served::platform(&other)).await;
    let created = osb.ask(REDIS, &two, json!({})).await.expect(&[202]);
    is_at(&scene, &scene.broker, &["apply", "ready", "prepare"]).await;
    cable.cut();
    osb.follow(&created, &instance(&two)).await.good();
    // Whoever is asked, it is done; by the other one, or by this one not at all.
    osb.update(REDIS, &one, json!({"parameters": {"idle_timeout_seconds": 60}}))
        .await
        .good();
    assert_eq!(app.redis(&user, &["PING"]).await.unwrap(), "PONG");
    let more: Value = at_other.bind(REDIS, &two, "more", json!({})).await;
    assert_eq!(app.redis(&more, &["PING"]).await.unwrap(), "PONG");
    osb.delete(REDIS, &two).await;

    cable.mend();
    assert!(other.stop().success());
    let back = osb.create(REDIS, &three, json!({})).await.good();
    println!("after the way was mended: {:?} {:#?}", back.took, back.texts);
    osb.delete(REDIS, &three).await;
    osb.delete(REDIS, &one).await;
    scene.end().await;
}
