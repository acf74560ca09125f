//! New credentials for administrators of servers in pods: no pod is started again, what is rendered with them says the new
//! ones, and a pod that is started later knows them, too.

use crate::pods::Tools;
use crate::scene::{Plan, Scene, iid, space};
use crate::support::until;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::time::Duration;

const REDIS: Plan = ("redis", "small");
const POSTGRES: Plan = ("postgres", "small");
const LONG: Duration = Duration::from_secs(180);

/// A binding's credentials with the administrator's name and password.
pub async fn as_admin(scene: &Scene, id: &str, credentials: &Value) -> Value {
    let admin = scene.stage.served.state().await.admin(id).await;
    let mut other = credentials.clone();
    for member in ["username", "password"] {
        let uri = other["uri"].as_str().unwrap();
        let (before, after) = (
            credentials[member].as_str().unwrap(),
            admin[member].as_str().unwrap(),
        );
        other["uri"] = json!(uri.replace(before, after));
        other[member] = admin[member].clone();
    }
    other
}

async fn ask(app: &Tools, plan: Plan, credentials: &Value) -> Result<String, String> {
    if plan == REDIS {
        app.redis(credentials, &["GET", "kept"]).await
    } else {
        app.psql(credentials, "SELECT value FROM kept").await
    }
}

/// Names in the system that change when a pod is made anew.
async fn pods(scene: &Scene, home: &str) -> Vec<String> {
    let found = scene.kubectl().get(&["pods", "-n", home]).await;
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
    found["items"].as_array().unwrap().iter().map(uid).collect()
}

/// Gives an instance's administrator new credentials, and waits for the end of it.
pub async fn administrator_rotates(scene: &Scene, id: &str) {
    let rotate = ["credentials", "rotate", "--instance", &iid(id)];
    let said = tokio::task::block_in_place(|| scene.command(&rotate));
    let (_, operation) = said.split_once("operations show ").unwrap();
    let (operation, _) = operation.split_once('`').unwrap();
    let state = scene.stage.served.state().await;
    state.idle().await;
    let (row, _) = state.store.operation(operation).await.unwrap().unwrap();
    let told = row.operation.description;
    assert!(told.contains("has new credentials"), "{told}");
    state.store.close().await;
}

async fn goes_through(plan: Plan) {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id(plan.0));
    let home = space(&iid(&id));
    let app = scene.application().await;
    osb.create(plan, &id, json!({})).await.good();
    let bound = osb.bind(plan, &id, "b", json!({})).await;
    if plan == REDIS {
        app.redis(&bound, &["SET", "kept", "one"]).await.unwrap();
    } else {
        app.psql(
            &bound,
            "CREATE TABLE kept AS SELECT 'one' AS value; GRANT SELECT ON kept TO PUBLIC",
        )
        .await
        .unwrap();
    }
    let former = as_admin(&scene, &id, &bound).await;
    assert_eq!(ask(&app, plan, &former).await.unwrap(), "one");
    let before = pods(&scene, &home).await;

    administrator_rotates(&scene, &id).await;
    let now = as_admin(&scene, &id, &bound).await;
    assert_ne!(now["password"], former["password"]);
    let secret = scene
        .kubectl()
        .get(&["secret", &format!("{}-admin", plan.0), "-n", &home])
        .await;
    let data = secret["data"].as_object().unwrap();
    let decoded = |value: &Value| BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
    let whole: Vec<u8> = data.values().flat_map(decoded).collect();
    let whole = String::from_utf8(whole).unwrap();
    assert!(
        !whole.contains(former["password"].as_str().unwrap()),
        "the Secret is the former one"
    );
    if plan == POSTGRES {
        assert!(whole.contains(now["password"].as_str().unwrap()));
    }
    let well = || async {
        assert_eq!(ask(&app, plan, &now).await.unwrap(), "one");
        assert_eq!(ask(&app, plan, &bound).await.unwrap(), "one");
        let refused = ask(&app, plan, &former).await.unwrap_err();
        assert!(
            refused.contains("password authentication failed") || refused.contains("WRONGPASS"),
            "{refused}"
        );
    };
    well().await;
    assert_eq!(pods(&scene, &home).await, before, "a pod was made anew");

    // What is made anew has the same administrator.
    scene
        .kubectl()
        .ok(&["delete", "pods", "--all", "-n", &home])
        .await;
    until("it is back", LONG, || async {
        ask(&app, plan, &bound).await.ok()
    })
    .await;
    well().await;
    let other = osb.bind(plan, &id, "other", json!({})).await;
    assert_eq!(ask(&app, plan, &other).await.unwrap(), "one");
    osb.delete(plan, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_gets_a_new_administrator() {
    goes_through(REDIS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_gets_a_new_administrator() {
    goes_through(POSTGRES).await;
}
