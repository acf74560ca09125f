//! The broker's rights: what it cannot do under what `chandler rbac` prints, tried with its own token.

use crate::scene::{Plan, Scene, iid, space};
use crate::support::process;
use serde_json::json;
use std::time::{Duration, Instant};

const REDIS: Plan = ("redis", "small");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_can_do_its_work_and_nothing_else() {
    let scene = Scene::new().await;
    let (osb, id) = (&scene.osb, scene.id("rights"));
    let home = space(&iid(&id));
    let app = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();
    let file = scene.stage.kubeconfig("rights.kubeconfig", None).await;
    let broker = scene.kubectl().with(&file);
    let foreign = app.namespace.as_str();

    // Rights it does not have at all.
    for (verb, what, part) in [
        ("list", "secrets", ""),
        ("watch", "secrets", ""),
        ("create", "pods", ""),
        ("delete", "pods", ""),
        ("create", "pods", "exec"),
        ("get", "pods", "exec"),
        ("get", "pods", "log"),
        ("list", "nodes", ""),
        ("create", "serviceaccounts", "token"),
        ("impersonate", "users", ""),
        ("bind", "clusterroles", ""),
        ("escalate", "clusterroles", ""),
        ("create", "clusterrolebindings", ""),
        ("create", "rolebindings", ""),
        ("deletecollection", "namespaces", ""),
        ("delete", "persistentvolumes", ""),
        ("update", "validatingadmissionpolicies", ""),
        ("*", "*", ""),
    ] {
        let part = format!("--subresource={part}");
        let ask = ["auth", "can-i", verb, what, &part, "-n", &home];
        let said = broker.attempt(&ask).await;
        assert!(said.is_err(), "the broker may {verb} {what} {part}: {said:?}");
    }
    let listed = broker
        .attempt(&["get", "secrets", "-n", &home])
        .await
        .unwrap_err();
    assert!(
        listed.contains("Forbidden") || listed.contains("forbidden"),
        "{listed}"
    );
    let exec = broker
        .attempt(&["exec", "-n", &home, "redis-0", "--", "true"])
        .await;
    assert!(exec.is_err());

    // Rights it has, kept to its own namespaces by the policy; that takes effect within a moment.
    let denied = async |what: &str, arguments: &[&str], input: &str| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let output = broker.run_with(arguments, input).await;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if !output.status.success() && said.contains("denied request") {
                println!("{what}: {}", said.trim());
                break;
            }
            assert!(Instant::now() < end, "not denied: {what}: {said}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": foreign}});
    let create = ["create", "--dry-run=server", "-f", "-"];
    denied("a ConfigMap elsewhere", &create, &map.to_string()).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": "kube-system"}});
    denied("a Secret in kube-system", &create, &secret.to_string()).await;
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "open", "namespace": foreign}, "spec": {"podSelector": {}, "ingress": [{}]}});
    denied("an opening elsewhere", &create, &policy.to_string()).await;
    let space = |name: &str, labels: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
            .to_string()
    };
    denied(
        "a namespace of another name",
        &create,
        &space(
            "somebody",
            json!({
                "app.kubernetes.io/managed-by": "chandler", "pod-security.kubernetes.io/enforce": "restricted"
            }),
        ),
    )
    .await;
    let other = format!("osb-{}", "a".repeat(26));
    denied(
        "a namespace without our label",
        &create,
        &space(
            &other,
            json!({
                "pod-security.kubernetes.io/enforce": "restricted"
            }),
        ),
    )
    .await;
    denied(
        "a namespace that admits root",
        &create,
        &space(
            &other,
            json!({
                "app.kubernetes.io/managed-by": "chandler", "pod-security.kubernetes.io/enforce": "privileged"
            }),
        ),
    )
    .await;
    let patch = |namespace: &str, label: &str, value: serde_json::Value| {
        let body = json!({"metadata": {"labels": {label: value}}}).to_string();
        let all = [
            "patch",
            "namespace",
            namespace,
            "--dry-run=server",
            "--type=merge",
            "-p",
            &body,
        ];
        all.map(str::to_owned).to_vec()
    };
    for (what, arguments) in [
        (
            "to take a namespace over",
            patch(foreign, "app.kubernetes.io/managed-by", "chandler".into()),
        ),
        (
            "to let root into one of its own",
            patch(&home, "pod-security.kubernetes.io/enforce", "baseline".into()),
        ),
        (
            "to drop its label",
            patch(&home, "app.kubernetes.io/managed-by", serde_json::Value::Null),
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        denied(what, &arguments, "").await;
    }
    denied(
        "to delete a foreign namespace",
        &["delete", "namespace", foreign, "--dry-run=server"],
        "",
    )
    .await;
    let forward = broker
        .attempt(&["port-forward", "-n", foreign, "pod/tools", ":80"])
        .await;
    assert!(
        forward.unwrap_err().contains("denied request"),
        "a tunnel into a foreign pod"
    );

    osb.delete(REDIS, &id).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rbac_prints_holds_no_wildcard() {
    let scene = Scene::new().await;
    let printed = process::run(&["rbac", "--config", scene.stage.served.file()]);
    let role = format!("chandler.{}.chandler", scene.stage.tag);
    assert!(process::text(&printed).contains(&role));
    let role = scene.kubectl().get(&["clusterrole", &role]).await;
    let rules = role["rules"].to_string();
    for word in [
        "\"*\"",
        "exec",
        "nodes",
        "impersonate",
        "escalate",
        "bind",
        "deletecollection",
    ] {
        assert!(!rules.contains(word), "{word}: {rules}");
    }
    scene.end().await;
}
