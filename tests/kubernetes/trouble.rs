//! What cannot become ready: the operation ends with a sentence somebody can act on, and a delete leaves nothing.

use crate::scene::{Plan, Scene, Stage, Told, iid, space};
use serde_json::{Value, json};
use std::time::Duration;

const REDIS: Plan = ("redis", "small");

/// A further plan of Redis, like `small` but for this.
fn plan(stage: &mut Stage, name: &str, change: impl FnOnce(&mut Value)) {
    let small = crate::support::process::repository().join("plans/redis/small.yaml");
    let mut plan: Value = serde_saphyr::from_str(&std::fs::read_to_string(small).unwrap()).unwrap();
    plan["id"] = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes())
        .to_string()
        .into();
    plan["name"] = name.into();
    change(&mut plan);
    stage.file(&format!("plans/redis/{name}.yaml"), &plan.to_string());
}

pub fn says(told: &Told, words: &[&str]) {
    println!("after {:?}: {:#?}", told.took, told.texts);
    let why = told.failed();
    for word in words {
        assert!(why.contains(word), "{word:?} is not in {why:?}");
    }
    for never in ["osb-", "kt-", "sha256:"] {
        assert!(
            !why.contains(never),
            "{never:?} means nothing to a developer: {why:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why_at_its_deadline() {
    let mut stage = Stage::new().await;
    plan(&mut stage, "imageless", |plan| {
        plan["maximum_polling_duration"] = 60.into();
        let digest = "0".repeat(64);
        plan["values"]["images"] = json!({"server": format!("registry.invalid/none:9@sha256:{digest}")});
    });
    plan(&mut stage, "huge", |plan| {
        plan["maximum_polling_duration"] = 60.into();
        plan["values"]["cpu"] = "4000".into();
    });
    plan(&mut stage, "volumeless", |plan| {
        plan["maximum_polling_duration"] = 60.into();
        plan["values"]["storage_class"] = "testbed-never".into();
    });
    plan(&mut stage, "classless", |plan| {
        plan["maximum_polling_duration"] = 60.into();
        plan["values"]["storage_class"] = "no-such-class".into();
    });
    let scene = stage.open().await;
    let osb = &scene.osb;
    let ids = ["imageless", "huge", "volumeless", "classless"].map(|word| scene.id(word));
    let (image, huge, volume, class) = tokio::join!(
        osb.create(("redis", "imageless"), &ids[0], json!({})),
        osb.create(("redis", "huge"), &ids[1], json!({})),
        osb.create(("redis", "volumeless"), &ids[2], json!({})),
        osb.create(("redis", "classless"), &ids[3], json!({})),
    );
    says(&image, &["redis-0", "image registry.invalid/none:9"]);
    says(
        &huge,
        &["No node takes pod redis-0", "Insufficient cpu", "smaller plan"],
    );
    says(&volume, &["volume"]);
    says(&class, &["no-such-class"]);
    for told in [&image, &huge, &volume, &class] {
        assert!(told.texts.len() >= 3, "the text moves: {:#?}", told.texts);
        assert!(told.took < Duration::from_secs(100));
    }
    for (word, id) in ["imageless", "huge", "volumeless", "classless"]
        .into_iter()
        .zip(&ids)
    {
        osb.delete(("redis", word), id).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_too_small_is_named() {
    let mut stage = Stage::new().await;
    let shared = format!("{}-shared", stage.tag);
    stage.shared(&shared, json!({})).await;
    stage.plan("redis", "small", |plan| {
        plan["maximum_polling_duration"] = 60.into()
    });
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team", "namespace": shared},
        "spec": {"hard": {"requests.memory": "10Mi"}}});
    stage.kubectl.apply_object(&quota).await;
    let scene = stage.open().await;
    let (osb, id) = (&scene.osb, scene.id("quota"));
    let told = osb.create(REDIS, &id, json!({})).await;
    println!("after {:?}: {:#?}", told.took, told.texts);
    let why = told.failed();
    assert!(why.contains("quota") && why.contains("requests.memory"), "{why}");
    osb.delete(REDIS, &id).await;
    scene.end().await;
}

/// A policy of the cluster's that refuses this kind in this namespace.
fn policy(name: &str, namespace: &str, group: &str, kind: &str) -> String {
    let rule = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": name}, "spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{
            "apiGroups": [group], "apiVersions": ["*"], "resources": [kind], "operations": ["CREATE", "UPDATE"]
        }]},
        "matchConditions": [{"name": "here", "expression": format!("request.namespace == '{namespace}'")}],
        "validations": [{"expression": "false", "message": "no changes on Fridays"}],
    }});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    format!("{rule}\n---\n{binding}\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_of_the_cluster_that_says_no_is_quoted() {
    let scene = Scene::new().await;
    let (osb, sets, pods) = (&scene.osb, scene.id("sets"), scene.id("pods"));
    // One refuses what the broker sends, the other what a controller makes of it.
    for (id, group, kind) in [(&sets, "apps", "statefulsets"), (&pods, "", "pods")] {
        let name = scene.policy_name(kind);
        scene
            .kubectl()
            .apply(&policy(&name, &space(&iid(id)), group, kind))
            .await;
    }
    // Policies take effect a moment after they are there.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (set, pod) = tokio::join!(
        osb.create(REDIS, &sets, json!({})),
        osb.create(REDIS, &pods, json!({}))
    );
    for told in [&set, &pod] {
        says(told, &["no changes on Fridays", "StatefulSet redis"]);
        assert!(told.took < Duration::from_secs(60), "early: {:?}", told.took);
    }
    for id in [&sets, &pods] {
        osb.delete(REDIS, id).await;
    }
    scene.end().await;
}
