//! `delivery: secret`: credentials as a Secret in the application's own namespace, under the generated rights. There is
//! neither vault nor identity provider here: this way of delivery needs none.

use crate::cluster::{Kubectl, tools_image};
use crate::pods::Tools;
use crate::scene::{Osb, Plan, Scene, Stage};
use crate::support::platform::{End, binding};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chandler::domain::names;
use chandler::ports::SecretStore;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const REDIS: Plan = ("redis", "small");
const POSTGRES: Plan = ("postgres", "small");

/// A stage whose platform may have Secrets in two namespaces; former credentials end with the rotation.
async fn stage() -> (Stage, [String; 2]) {
    let mut stage = Stage::new().await;
    let spaces = [stage.strict("shop").await, stage.strict("blog").await];
    for space in &spaces {
        let label = ["label", "namespace", space, "chandler.osb/consumer=true"];
        stage.kubectl.ok(&label).await;
    }
    stage.served.settings["bindings"] = json!({
        "delivery": ["secret", "inline"],
        "rotation_grace_seconds": 0,
        "reconcile_minutes": 0,
        "secret_namespaces": {"cf": spaces},
    });
    (stage, spaces)
}

/// The name of a binding's Secret.
fn name(id: &str, binding_id: &str) -> String {
    names::client_id(&names::bid("cf", id, binding_id))
}

/// What a Secret says, decoded.
fn entries(secret: &Value) -> BTreeMap<String, String> {
    let data = secret["data"].as_object().unwrap();
    let decoded = |text: &Value| String::from_utf8(BASE64.decode(text.as_str().unwrap()).unwrap()).unwrap();
    data.iter()
        .map(|(name, text)| (name.clone(), decoded(text)))
        .collect()
}

async fn secret(kubectl: &Kubectl, namespace: &str, name: &str) -> Value {
    kubectl.get(&["secret", name, "-n", namespace]).await
}

async fn is_there(kubectl: &Kubectl, namespace: &str, name: &str) -> bool {
    !kubectl.names(&["secret", name, "-n", namespace]).await.is_empty()
}

/// Asks for a binding; how it ends.
async fn bind(osb: &Osb, plan: Plan, id: &str, binding_id: &str, parameters: Value) -> Result<End, String> {
    let (service, plan) = osb.ids(plan);
    let body = json!({"service_id": service, "plan_id": plan, "parameters": parameters});
    let path = binding(id, binding_id);
    let asked = format!("{path}?accepts_incomplete=true");
    let answer = osb.platform.sure("PUT", &asked, Some(&body)).await;
    if answer.status == 400 {
        return Err(answer.text);
    }
    let answer = answer.expect(&[200, 201, 202]);
    Ok(osb.follow(&answer, &path).await.end)
}

async fn rotate(osb: &Osb, id: &str, binding_id: &str) -> End {
    let path = format!("/api/v1/bindings/{binding_id}/rotate?instance_id={id}");
    let answer = osb.platform.sure("POST", &path, None).await.expect(&[200, 202]);
    osb.follow(&answer, &binding(id, binding_id)).await.end
}

/// A pod that runs `script` with the Secret mounted as servicebinding.io has it, and its `uri` in the environment.
async fn application(kubectl: &Kubectl, namespace: &str, pod: &str, secret: &str, script: &str) -> String {
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "application",
                "image": tools_image(),
                "command": ["timeout", "60", "sh", "-euc", script],
                "env": [
                    {"name": "SERVICE_BINDING_ROOT", "value": "/bindings"},
                    {"name": "URI", "valueFrom": {"secretKeyRef": {"name": secret, "key": "uri"}}},
                    {"name": "HOME", "value": "/tmp"},
                ],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "service", "mountPath": "/bindings/service", "readOnly": true}],
            }],
            "volumes": [{"name": "service", "secret": {"secretName": secret}}],
        },
    });
    kubectl.apply_object(&manifest).await;
    let end = Instant::now() + Duration::from_secs(100);
    let phase = loop {
        let pod = kubectl.get(&["pod", pod, "-n", namespace]).await;
        match pod["status"]["phase"].as_str() {
            Some(phase @ ("Succeeded" | "Failed")) => break phase.to_owned(),
            _ => assert!(Instant::now() < end, "the application does not end: {pod:#}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let said = kubectl.ok(&["logs", "-n", namespace, pod]).await;
    format!("{phase}: {}", said.trim())
}

/// redis-cli by what is mounted.
fn redis_cli(command: &str) -> String {
    format!(
        "cd \"$SERVICE_BINDING_ROOT/service\"; test \"$(cat type)\" = redis; \
         for i in 1 2 3 4 5 6 7 8; do \
         timeout 5 redis-cli --no-auth-warning -e -h $(cat host) -p $(cat port) --user $(cat username) --pass $(cat password) {command} && exit; \
         sleep 1; done; exit 1"
    )
}

/// What a server says to a change that makes an entry of a Secret a label, asked by somebody who may not read it.
async fn quoted(somebody: &Kubectl, namespace: &str, name: &str, entry: &str) -> String {
    let view = ["config", "view", "--raw", "--minify", "--flatten", "-o", "json"];
    let view: Value = serde_json::from_str(&somebody.ok(&view).await).unwrap();
    let server = view["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let authority = view["clusters"][0]["cluster"]["certificate-authority-data"].as_str();
    let authority = BASE64.decode(authority.unwrap()).unwrap();
    let client = reqwest::Client::builder()
        .add_root_certificate(reqwest::Certificate::from_pem(&authority).unwrap())
        .timeout(Duration::from_secs(20))
        .no_proxy()
        .build()
        .unwrap();
    let change = json!([
        {"op": "add", "path": "/metadata/labels", "value": {}},
        {"op": "copy", "from": format!("/data/{entry}"), "path": "/metadata/labels/word"},
    ]);
    client
        .patch(format!(
            "{server}/api/v1/namespaces/{namespace}/secrets/{name}?dryRun=All"
        ))
        .bearer_auth(view["users"][0]["user"]["token"].as_str().unwrap())
        .header("content-type", "application/json-patch+json")
        .body(change.to_string())
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
}

/// What `chandler reconcile` says, and whether it is content.
fn reconciled(scene: &Scene) -> (bool, String) {
    let arguments = ["reconcile", "--repair", "--config", scene.stage.served.file()];
    let output = crate::support::process::run(&arguments);
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_mounts_the_secret_of_its_binding() {
    let (stage, [shop, blog]) = stage().await;
    let scene = stage.open().await;
    let (osb, kubectl, id) = (&scene.osb, scene.kubectl(), scene.id("mounted"));
    let tools = scene.application().await;
    osb.create(REDIS, &id, json!({})).await.good();

    // Only where the platform may, and it has to say which of two.
    let (elsewhere, own) = (format!("{}-in", scene.stage.tag), scene.stage.tag.clone());
    for parameters in [
        json!({}),
        json!({"secret_namespace": elsewhere}),
        json!({"secret_namespace": own}),
        json!({"secret_namespace": "kube-system"}),
        json!({"secret_namespace": shop, "delivery": "inline"}),
    ] {
        let why = bind(osb, REDIS, &id, "web", parameters.clone())
            .await
            .unwrap_err();
        assert!(why.contains("secret_namespace"), "{parameters}: {why}");
        osb.platform.get(&binding(&id, "web")).await.expect(&[404]);
    }
    let web = name(&id, "web");
    for space in [shop.as_str(), &blog, &elsewhere, &own, "kube-system"] {
        assert!(!is_there(kubectl, space, &web).await, "a Secret in {space}");
    }

    let told = osb
        .bind(REDIS, &id, "web", json!({"secret_namespace": shop}))
        .await;
    assert_eq!(told["credential_mode"], "secret");
    assert_eq!(told["secret"], json!({"namespace": shop, "name": web}));
    let made = secret(kubectl, &shop, &web).await;
    assert_eq!(made["type"], "servicebinding.io/redis");
    assert_eq!(
        made["metadata"]["labels"]["chandler.osb/binding"],
        names::bid("cf", &id, "web")
    );
    let first = entries(&made);
    for key in ["type", "host", "port", "username", "password", "uri"] {
        assert!(!first[key].is_empty(), "{key}: {:?}", first.keys());
    }
    assert_eq!(first["host"], told["host"].as_str().unwrap());

    // GET says the same again, and neither it nor the broker's own store has the password.
    let answer = osb.platform.get(&binding(&id, "web")).await.expect(&[200]);
    assert_eq!(answer.body["credentials"], told);
    assert!(!answer.text.contains(&first["password"]) && told.get("password").is_none());
    let kept = scene.stage.served.state().await;
    for name in kept.sealed.list("").await.unwrap() {
        let secret = kept.sealed.get(&name).await.unwrap().unwrap();
        let text = Value::Object(secret.expose().clone()).to_string();
        assert!(!text.contains(&first["password"]), "{name} holds the password");
    }

    let said = application(kubectl, &shop, "first", &web, &redis_cli("SET kept one")).await;
    assert_eq!(said, "Succeeded: OK");
    let said = application(kubectl, &shop, "by-uri", &web, "redis-cli -u \"$URI\" GET kept").await;
    assert!(said.contains("one"), "{said}");
    assert!(reconciled(&scene).0);

    // New credentials in place, found where the old ones were.
    assert_eq!(rotate(osb, &id, "web").await, End::Succeeded);
    let second = entries(&secret(kubectl, &shop, &web).await);
    assert_ne!(first["password"], second["password"]);
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        second.keys().collect::<Vec<_>>()
    );
    let said = application(kubectl, &shop, "second", &web, &redis_cli("GET kept")).await;
    assert_eq!(said, "Succeeded: one");
    let log_in = |entries: &BTreeMap<String, String>| json!({"host": entries["host"], "port": entries["port"], "username": entries["username"], "password": entries["password"]});
    refused(&tools, &log_in(&first)).await;
    let answer = osb.platform.get(&binding(&id, "web")).await.expect(&[200]);
    assert_eq!(
        answer.body["credentials"], told,
        "the platform sees no difference"
    );

    // Edited, or deleted: told, and put right by a rotation.
    let wrong = json!({"data": {"password": BASE64.encode("wrong")}}).to_string();
    let edit = ["patch", "secret", &web, "-n", &shop, "--type=merge", "-p", &wrong];
    kubectl.ok(&edit).await;
    let (content, said) = reconciled(&scene);
    assert!(
        !content && said.contains("copy_edited") && said.contains(&web),
        "{said}"
    );
    assert_eq!(rotate(osb, &id, "web").await, End::Succeeded);
    let third = entries(&secret(kubectl, &shop, &web).await);
    assert_eq!(
        tools.redis(&log_in(&third), &["GET", "kept"]).await.unwrap(),
        "one"
    );
    kubectl.ok(&["delete", "secret", &web, "-n", &shop]).await;
    let (content, said) = reconciled(&scene);
    assert!(!content && said.contains("copy_missing"), "{said}");
    assert_eq!(rotate(osb, &id, "web").await, End::Succeeded);
    let fourth = entries(&secret(kubectl, &shop, &web).await);
    assert_eq!(
        tools.redis(&log_in(&fourth), &["GET", "kept"]).await.unwrap(),
        "one"
    );
    assert!(reconciled(&scene).0);

    // A binding that ends takes its Secret with it, and no other.
    let other = name(&id, "other");
    osb.bind(REDIS, &id, "other", json!({"secret_namespace": blog}))
        .await;
    osb.unbind(REDIS, &id, "web").await;
    assert!(!is_there(kubectl, &shop, &web).await);
    assert!(is_there(kubectl, &blog, &other).await);
    refused(&tools, &log_in(&fourth)).await;
    // One whose Secret is gone already ends as well; and so does an instance with a binding.
    kubectl.ok(&["delete", "secret", &other, "-n", &blog]).await;
    osb.unbind(REDIS, &id, "other").await;
    osb.bind(REDIS, &id, "last", json!({"secret_namespace": blog}))
        .await;
    osb.delete(REDIS, &id).await;
    assert!(!is_there(kubectl, &blog, &name(&id, "last")).await);
    scene.end().await;
}

async fn refused(tools: &Tools, credentials: &Value) {
    let end = Instant::now() + Duration::from_secs(30);
    while tools.redis(credentials, &["PING"]).await.is_ok() {
        assert!(Instant::now() < end, "the former credentials still work");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_others_are_left_alone_and_a_namespace_may_go() {
    let (mut stage, [shop, blog]) = stage().await;
    // The mode with the fewest rights.
    let shared = format!("{}-shared", stage.tag);
    stage.shared(&shared, json!({})).await;
    let scene = stage.open().await;
    let (osb, kubectl, id) = (&scene.osb, scene.kubectl(), scene.id("strange"));
    osb.create(POSTGRES, &id, json!({})).await.good();
    let place = || json!({"secret_namespace": shop});
    let web = name(&id, "web");

    // Of another type; of the same; of another binding.
    for (kind, labels) in [
        ("Opaque", json!({})),
        ("servicebinding.io/postgresql", json!({})),
        (
            "servicebinding.io/postgresql",
            json!({"app.kubernetes.io/managed-by": "chandler", "chandler.osb/binding": "another"}),
        ),
    ] {
        let theirs = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "stringData": {"own": "thing"},
            "metadata": {"name": web, "namespace": shop, "labels": labels}});
        kubectl.apply_object(&theirs).await;
        let before = secret(kubectl, &shop, &web).await;
        match bind(osb, POSTGRES, &id, "web", place()).await.unwrap() {
            End::Failed(why) => assert!(why.contains("somebody else's") && why.contains(&web), "{why}"),
            End::Succeeded => panic!("it took over a Secret of type {kind} with {labels}"),
        }
        assert_eq!(secret(kubectl, &shop, &web).await, before, "left alone");
        osb.unbind(POSTGRES, &id, "web").await;
        assert_eq!(
            secret(kubectl, &shop, &web).await,
            before,
            "left alone at the end, too"
        );
        kubectl.ok(&["delete", "secret", &web, "-n", &shop]).await;
    }

    let told = osb.bind(POSTGRES, &id, "web", place()).await;
    assert_eq!(told["secret"]["name"], web);
    let made = secret(kubectl, &shop, &web).await;
    assert_eq!(made["type"], "servicebinding.io/postgresql");
    let script = "for i in 1 2 3 4 5 6 7 8; do psql -X -A -t \"$URI\" -c \"SELECT 'in'\" && exit; sleep 1; done; exit 1";
    let said = application(kubectl, &shop, "application", &web, script).await;
    assert!(said.starts_with("Succeeded") && said.ends_with("in"), "{said}");

    // What the broker itself may do there: nothing with what is not a binding's, and no list.
    let file = scene.stage.kubeconfig("delivery.kubeconfig", None).await;
    let broker = kubectl.with(&file);
    for ask in [["list", "secrets"], ["get", "secrets"], ["create", "configmaps"]] {
        let said = broker
            .attempt(&["auth", "can-i", ask[0], ask[1], "-n", &shop])
            .await;
        assert!(said.is_err(), "{ask:?}: {said:?}");
    }
    let mine = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": shop}});
    let create = ["create", "--dry-run=server", "-f", "-"];
    let output = broker.run_with(&create, &mine.to_string()).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("denied request"), "{said}");

    // And what neither roles nor the policy keep from whoever has its token: docs/security.md says so.
    let theirs = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": shop},
        "data": {"word": BASE64.encode("hunter2?")}});
    kubectl.apply_object(&theirs).await;
    let said = quoted(&broker, &shop, "theirs", "word").await;
    assert!(
        said.contains(&BASE64.encode("hunter2?")),
        "it is safer than the documentation says: {said}"
    );

    // The application's team removes its namespace first, and with it the broker's rights there.
    osb.bind(POSTGRES, &id, "left", json!({"secret_namespace": blog}))
        .await;
    kubectl
        .ok(&["delete", "namespace", &blog, "--timeout=120s"])
        .await;
    osb.unbind(POSTGRES, &id, "left").await;
    match bind(osb, POSTGRES, &id, "late", json!({"secret_namespace": blog}))
        .await
        .unwrap()
    {
        End::Failed(why) => assert!(why.contains(&format!("no namespace {blog}")), "{why}"),
        End::Succeeded => panic!("a Secret in a namespace that is gone"),
    }
    osb.unbind(POSTGRES, &id, "late").await;
    let (content, said) = reconciled(&scene);
    assert!(content, "{said}");

    osb.unbind(POSTGRES, &id, "web").await;
    assert!(!is_there(kubectl, &shop, &web).await);
    osb.delete(POSTGRES, &id).await;
    scene.end().await;
}
