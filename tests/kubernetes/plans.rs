//! Every plan of every service, as far as the API server can say: schemas, admission, quota, Pod Security.
//!
//! What needs operators or images that a cluster does not have is not started: images come from a registry that does not
//! exist, and the status of an operator's object is written by the test, under a schema of the test's own.

use crate::scene::{OURS, Osb, PATIENCE, Plan, Scene, Stage, iid, space};
use crate::support::platform::instance;
use crate::support::process::{self, repository};
use crate::support::until;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The kinds that operators bring, with their plurals, as the catalog uses them.
const OPERATORS: [(&str, &str, &str); 4] = [
    ("postgresql.cnpg.io", "v1/Cluster", "clusters"),
    (
        "cassandra.datastax.com",
        "v1beta1/CassandraDatacenter",
        "cassandradatacenters",
    ),
    ("cert-manager.io", "v1/Certificate", "certificates"),
    ("cert-manager.io", "v1/Issuer", "issuers"),
];

/// Definitions of kinds are the whole cluster's.
static OPERATED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Name of offering and plan, with the parameters that must be given.
fn plans() -> Vec<(String, String, Value)> {
    let folder = |path: &str| {
        let all = std::fs::read_dir(repository().join(path)).unwrap();
        let mut names: Vec<String> = all
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let mut found = Vec::new();
    for service in folder("catalog") {
        let parameters = match service.as_str() {
            "cockroachdb" => json!({"accept_license": true}),
            _ => json!({}),
        };
        for plan in folder(&format!("plans/{service}")) {
            let plan = plan.strip_suffix(".yaml").unwrap().to_owned();
            found.push((service.clone(), plan, parameters.clone()));
        }
    }
    assert!(found.len() >= 21, "seven services of three plans: {found:?}");
    found
}

/// Makes the kinds known that no operator here brings; true when this test may remove them again.
async fn operators(scene: &Stage) -> bool {
    let mut own = true;
    for (group, kind, plural) in OPERATORS {
        let (version, kind) = kind.split_once('/').unwrap();
        let name = format!("{plural}.{group}");
        if !scene.kubectl.names(&["crd", &name]).await.is_empty() {
            own = false;
            continue;
        }
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "labels": {"chandler.osb/test": scene.tag}},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
                "versions": [{
                    "name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }],
            },
        });
        scene.kubectl.apply_object(&definition).await;
        let crd = format!("crd/{name}");
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", &crd];
        scene.kubectl.ok(&wait).await;
    }
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_of_every_plan_is_what_the_api_server_takes() {
    let _turn = OPERATED.lock().await;
    let mut stage = Stage::new().await;
    stage.crds();
    operators(&stage).await;
    let kinds = OPERATORS.map(|(group, kind, _)| format!("--kind={group}/{kind}"));
    let home = stage.strict("dry").await;
    for (service, plan, parameters) in plans() {
        let parameters = parameters.to_string();
        let mut render = vec!["catalog", "render", &service, &plan, "--parameters", &parameters];
        render.extend(kinds.iter().map(String::as_str));
        let output = process::run(&render);
        assert!(output.status.success(), "{}", process::text(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let dry = [
            "--server-side",
            "--dry-run=server",
            "-n",
            &home,
            "-o",
            "json",
            "-f",
            "-",
        ];
        let output = stage
            .kubectl
            .run_with(&[&["apply"], &dry[..]].concat(), &text)
            .await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{service} {plan}: {said}\n{text}");
        assert!(!said.contains("Warning"), "{service} {plan}: {said}");

        // Pod Security looks at templates only to warn; here every template is a pod.
        let taken: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut pods = 0;
        for object in taken["items"].as_array().unwrap() {
            let template = match object["kind"].as_str().unwrap() {
                "StatefulSet" | "Deployment" | "Job" => &object["spec"]["template"],
                "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
                _ => continue,
            };
            let mut spec = template["spec"].clone();
            spec.as_object_mut().unwrap().remove("serviceAccountName");
            spec.as_object_mut().unwrap().remove("serviceAccount");
            spec.as_object_mut().unwrap().remove("priorityClassName");
            if object["kind"] == "Job" || object["kind"] == "CronJob" {
                spec["restartPolicy"] = "Never".into();
            }
            for claim in object["spec"]["volumeClaimTemplates"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let volume = json!({"name": claim["metadata"]["name"], "emptyDir": {}});
                if !spec["volumes"].is_array() {
                    spec["volumes"] = json!([]);
                }
                spec["volumes"].as_array_mut().unwrap().push(volume);
            }
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "namespace": home,
                "labels": template["metadata"]["labels"]}, "spec": spec});
            let create = ["create", "--dry-run=server", "-f", "-"];
            let made = stage.kubectl.run_with(&create, &pod.to_string()).await;
            let said = String::from_utf8_lossy(&made.stderr);
            assert!(
                made.status.success(),
                "{service} {plan} {}: {said}",
                object["metadata"]["name"]
            );
            pods += 1;
        }
        println!(
            "{service} {plan}: {} objects, {pods} kinds of pods",
            taken["items"].as_array().unwrap().len()
        );
    }
}

/// Makes an instance whose images nobody has, until its pods are there, and removes it.
async fn gets_its_pods(scene: &Scene, plan: Plan, id: &str, parameters: Value) {
    let osb = &scene.osb;
    let answer = osb.ask(plan, id, parameters).await.expect(&[202]);
    let home = space(&iid(id));
    let end = Instant::now() + PATIENCE;
    loop {
        let listed = scene
            .kubectl()
            .get(&["statefulset,deployment", "-n", &home, "-l", OURS])
            .await;
        let sets = listed["items"].as_array().unwrap();
        let is_complete = |set: &Value| {
            let wanted = match set["spec"]["podManagementPolicy"].as_str() {
                Some("OrderedReady") => 1,
                _ => set["spec"]["replicas"].as_i64().unwrap(),
            };
            set["status"]["replicas"].as_i64().unwrap_or_default() >= wanted
        };
        if !sets.is_empty() && sets.iter().all(is_complete) {
            break;
        }
        let now = osb
            .platform
            .get(&format!("{}/last_operation", instance(id)))
            .await;
        assert_eq!(now.body["state"], "in progress", "{plan:?}: {}", now.text);
        assert!(Instant::now() < end, "{plan:?}: {listed:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let refused = ["-n", &home, "--field-selector", "reason=FailedCreate"];
    let refused = scene.kubectl().get(&[&["events"], &refused[..]].concat()).await;
    assert_eq!(refused["items"], json!([]), "{plan:?}");
    drop(answer);
    osb.delete(plan, id).await;
    println!("{plan:?}: quota and Pod Security admit its pods");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_plan_that_needs_no_operator_gets_its_pods() {
    let _turn = OPERATED.lock().await;
    let mut stage = Stage::new().await;
    stage.kubernetes()["images"] = json!({"registry": "registry.invalid/mirror"});
    let scene = stage.open().await;
    let mut tried = 0;
    let offered: Vec<_> = plans()
        .into_iter()
        .map(|(service, plan, parameters)| {
            let plan: Plan = (String::leak(service), String::leak(plan));
            (plan, parameters)
        })
        .filter(|(plan, _)| scene.osb.offers(*plan))
        .collect();
    for some in offered.chunks(3) {
        let work = some.iter().map(|(plan, parameters)| {
            tried += 1;
            let id = scene.id(&format!("{}-{}", plan.0, plan.1));
            let (scene, parameters) = (&scene, parameters.clone());
            async move { gets_its_pods(scene, *plan, &id, parameters).await }
        });
        futures::future::join_all(work).await;
    }
    println!("{tried} plans");
    assert!(tried >= 12, "{tried} plans only");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_reports_is_followed() {
    const MEDIUM: Plan = ("postgres", "medium");
    let _turn = OPERATED.lock().await;
    let mut stage = Stage::new().await;
    stage.crds();
    if !operators(&stage).await {
        println!("this cluster has operators of its own, which would answer before the test does");
        return;
    }
    let scene = stage.open().await;
    let (osb, id) = (Osb::new(scene.osb.platform.clone()).await, scene.id("operated"));
    assert!(
        osb.offers(MEDIUM),
        "the operator is there, so its plan is offered"
    );
    let home = space(&iid(&id));
    let kubectl = scene.kubectl();
    let answer = osb.ask(MEDIUM, &id, json!({})).await.expect(&[202]);
    let path = format!("{}/last_operation", instance(&id));
    let cluster = until("the operator's object is made", PATIENCE, || async {
        let found = kubectl.get(&["clusters.postgresql.cnpg.io", "-n", &home]).await;
        found["items"].get(0).cloned()
    })
    .await;
    let (name, wanted) = (
        cluster["metadata"]["name"].as_str().unwrap().to_owned(),
        cluster["spec"]["instances"].clone(),
    );
    let report = async |status: Value| {
        let patch = json!({"status": status}).to_string();
        let patch = [
            "patch",
            "clusters.postgresql.cnpg.io",
            "-n",
            &home,
            &name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        kubectl.ok(&patch).await;
    };
    let told = async |what: &'static str, word: &'static str| {
        until(what, Duration::from_secs(60), || async {
            let now = osb.platform.get(&path).await.expect(&[200]);
            let text = now.body["description"].as_str().unwrap().to_owned();
            text.contains(word).then_some(text)
        })
        .await
    };
    report(json!({"phase": "Setting up primary", "readyInstances": 0, "conditions": [{"type": "Ready", "status": "False",
        "reason": "ClusterIsNotReady", "message": "Cluster Is Not Ready"}]})).await;
    println!("{}", told("what the operator says is told", "Not Ready").await);
    report(json!({"phase": "Cluster in healthy state", "readyInstances": wanted, "currentPrimary": "a", "targetPrimary": "a",
        "conditions": [{"type": "Ready", "status": "True", "reason": "ClusterIsReady", "message": ""}]})).await;
    // The log-in goes through the operator's service, and here is nobody behind it.
    until(
        "the broker goes on to the log-in",
        Duration::from_secs(60),
        || async {
            let state = scene.stage.served.state().await;
            let open = state.store.operations_list(None, 1).await.unwrap();
            state.store.close().await;
            (open[0].operation.step == "prepare").then_some(())
        },
    )
    .await;
    report(json!({"phase": "Cluster is unrecoverable and needs manual intervention"})).await;
    osb.delete(MEDIUM, &id).await;
    drop(answer);

    let again = scene.id("hopeless");
    let home = space(&iid(&again));
    let answer = osb.ask(MEDIUM, &again, json!({})).await.expect(&[202]);
    let name = until("the operator's object is made", PATIENCE, || async {
        let found = kubectl.get(&["clusters.postgresql.cnpg.io", "-n", &home]).await;
        found["items"]
            .get(0)
            .map(|found| found["metadata"]["name"].as_str().unwrap().to_owned())
    })
    .await;
    let patch =
        json!({"status": {"phase": "Cluster is unrecoverable and needs manual intervention"}}).to_string();
    let patch = [
        "patch",
        "clusters.postgresql.cnpg.io",
        "-n",
        &home,
        &name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    kubectl.ok(&patch).await;
    let told = osb.follow(&answer, &instance(&again)).await;
    assert!(told.failed().contains("operator gave up"), "{told:?}");
    osb.delete(MEDIUM, &again).await;
    scene.end().await;
}
