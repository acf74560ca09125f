//! Brokers that die, a broker that is cut off from the API server, a server that dies again and again: every operation ends
//! right.

use crate::scene::{Osb, Plan, Scene, Stage};
use crate::support::platform::instance;
use crate::support::served::Served;
use crate::support::{Dice, number, postgres, seed, until};
use crate::trouble::says;
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

    let created = osb.ask(REDIS, &two, json!({})).await.expect(&[202]);
    let path = format!("{}/last_operation", instance(&two));
    until("it is in the middle of a provision", LONG, || async {
        let now = osb.platform.get(&path).await.expect(&[200]);
        let text = now.body["description"].as_str().unwrap();
        text.contains("of 1 pods ready").then_some(())
    })
    .await;
    cable.cut();
    // It notices, whatever became of the pod meanwhile, and does not wait on what it saw last.
    let text = until("it notices that nobody answers", LONG, || async {
        let now = osb.platform.get(&path).await.expect(&[200]);
        let text = now.body["description"].as_str().unwrap().to_owned();
        (!text.contains("of 1 pods ready")).then_some(text)
    })
    .await;
    println!("cut off: {text}");
    let mut other = scene.stage.broker();
    let at_other = Osb::new(Served::platform(&other)).await;
    let told = osb.follow(&created, &instance(&two)).await.good();
    println!("with the other's help: {:?} {:#?}", told.took, told.texts);
    // Whoever is asked, it is done; by the other one, or by this one not at all.
    let told = osb
        .update(REDIS, &one, json!({"parameters": {"idle_timeout_seconds": 60}}))
        .await
        .good();
    println!("an update: {:?} {:#?}", told.took, told.texts);
    assert_eq!(app.redis(&user, &["PING"]).await.unwrap(), "PONG");
    let more: Value = at_other.bind(REDIS, &two, "more", json!({})).await;
    assert_eq!(app.redis(&more, &["PING"]).await.unwrap(), "PONG");
    let told = osb.delete(REDIS, &two).await;
    println!("a delete: {:?} {:#?}", told.took, told.texts);

    cable.mend();
    assert!(other.stop().success());
    let back = osb.create(REDIS, &three, json!({})).await.good();
    println!("after the way was mended: {:?} {:#?}", back.took, back.texts);
    osb.delete(REDIS, &three).await;
    osb.delete(REDIS, &one).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_at_once_is_given_up_before_the_deadline() {
    let mut stage = Stage::new().await;
    let path = "catalog/redis/objects/config.yaml";
    let text = std::fs::read_to_string(crate::support::process::repository().join(path)).unwrap();
    let broken = text.replace(
        "protected-mode no\n    daemonize",
        "no-such-setting 1\n    daemonize",
    );
    assert_ne!(text, broken);
    stage.file(path, &broken);
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("crash"));
    let told = osb.create(REDIS, &id, json!({})).await;
    says(&told, &["redis-0", "keeps stopping", "restarts"]);
    assert!(told.took < Duration::from_secs(400), "early: {:?}", told.took);
    osb.delete(REDIS, &id).await;
    scene.end().await;
}
