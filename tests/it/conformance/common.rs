//! Paths, bodies and small steps the rules' tests share.

use crate::support::broker::{Answer, Choices, PASSWORD, TestBroker};
use crate::support::catalog::{self, ALPHA, MEDIUM};
use chandler::http::Settings;
use serde_json::{Value, json};

/// Path of an instance.
pub fn instance(id: &str) -> String {
    format!("/v2/service_instances/{id}")
}

/// Path of a binding.
pub fn binding(id: &str, binding: &str) -> String {
    format!("/v2/service_instances/{id}/service_bindings/{binding}")
}

/// The path with `accepts_incomplete=true`.
pub fn flagged(path: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}accepts_incomplete=true")
}

/// The path with the ids a delete needs, and the flag.
pub fn delete(path: &str) -> String {
    format!("{path}?accepts_incomplete=true&{}", catalog::ids())
}

/// Where the last operation of a resource is told.
pub fn last(path: &str) -> String {
    format!("{path}/last_operation")
}

/// A PUT instance body with other or more members; `null` takes one out.
pub fn provision(members: Value) -> Value {
    merged(catalog::provision_body(), members)
}

/// A body with other or more members; `null` takes one out.
pub fn merged(mut body: Value, members: Value) -> Value {
    let body_members = body.as_object_mut().unwrap();
    for (name, value) in members.as_object().unwrap() {
        if value.is_null() {
            body_members.remove(name);
        } else {
            body_members.insert(name.clone(), value.clone());
        }
    }
    body
}

/// A PUT instance body for a plan of `alpha`.
pub fn provision_plan(plan: &str) -> Value {
    provision(json!({"service_id": ALPHA, "plan_id": plan}))
}

/// A broker with these choices of the HTTP layer.
pub async fn with_http(change: impl FnOnce(&mut Settings)) -> TestBroker {
    let mut choices = Choices::default();
    change(&mut choices.http);
    TestBroker::with(choices).await
}

/// A broker whose operations run only when the test says so, those of bindings included.
pub async fn by_hand() -> TestBroker {
    let mut choices = Choices::default();
    choices.engine.runs_work = false;
    TestBroker::with(choices).await
}

/// A request of another platform or with other credentials, with no version.
pub fn request_of(broker: &TestBroker, user: &str, method: &str, path: &str) -> reqwest::RequestBuilder {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    broker
        .http
        .request(method, format!("{}{path}", broker.base))
        .basic_auth(user, Some(PASSWORD))
}

/// A whole request of the platform `k8s`.
pub async fn k8s(broker: &TestBroker, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let mut request = request_of(broker, "k8s", method, path).header("X-Broker-API-Version", "2.17");
    if let Some(body) = body {
        request = request.json(body);
    }
    broker.send(request).await
}

/// What last_operation says now.
pub async fn told(broker: &TestBroker, path: &str) -> Value {
    broker.get(&last(path)).await.expect(200).body
}

/// The state last_operation tells of one operation.
pub async fn state_of(broker: &TestBroker, path: &str, operation: &str) -> String {
    let answer = broker
        .get(&format!("{}?operation={operation}", last(path)))
        .await
        .expect(200);
    answer.body["state"].as_str().unwrap().to_owned()
}

/// Everything the broker remembers and everything that exists outside, as text to compare.
pub async fn everything(broker: &TestBroker) -> String {
    let store = broker.engine.store();
    let mut seen = Vec::new();
    for instance in store.instances_page("", None, 10_000).await.unwrap() {
        let bindings = store.bindings_of(&instance.iid).await.unwrap();
        seen.push(format!("{instance:?} {bindings:?}"));
    }
    let open = store.open_operations().await.unwrap();
    let secrets = broker.engine.ports().secrets.list("").await.unwrap();
    let world = broker.world.instances.lock().unwrap().clone();
    format!("{seen:#?} {open:?} {secrets:?} {world:?}")
}

/// A change of `alpha/small` that takes work.
pub fn change() -> Value {
    json!({"service_id": ALPHA, "plan_id": MEDIUM, "parameters": {"size": 7}})
}
