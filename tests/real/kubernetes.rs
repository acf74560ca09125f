//! The Kubernetes adapter on a real API server with a real node.
//!
//! Ignored unless asked for: they need a cluster (`CHANDLER_TEST_KUBECONFIG`, else `KUBECONFIG`) and the testbed's images
//! and storage classes (`CHANDLER_TESTBED_IMAGES`). Each test has an instance of its own and takes it away again.

use chandler::adapters::kubernetes::{KubernetesProvisioner, KubernetesSettings, Transport};
use chandler::app::{SystemClock, install_tls_provider};
use chandler::domain::instance::Endpoint;
use chandler::domain::manifest::{Desired, ObjectSpec};
use chandler::ports::{InstanceRef, Observation, PortErrorKind, Provisioner, Removal, Volumes};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything here may take: the machine may be busy.
const LONGEST: Duration = Duration::from_secs(180);

fn kubeconfig() -> String {
    std::env::var("CHANDLER_TEST_KUBECONFIG")
        .or_else(|_| std::env::var("KUBECONFIG"))
        .expect("a cluster: start the testbed, or name one with CHANDLER_TEST_KUBECONFIG")
}

fn image(name: &str) -> String {
    let file = std::env::var("CHANDLER_TESTBED_IMAGES").expect("the testbed's images");
    let text = std::fs::read_to_string(file).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.expect("the image is in the testbed").to_owned()
}

struct Room {
    provisioner: KubernetesProvisioner,
    instance: InstanceRef,
}

impl Room {
    async fn new() -> Self {
        install_tls_provider();
        let settings = KubernetesSettings {
            kubeconfig: Some(kubeconfig().into()),
            transport: Transport::PortForward,
            ..KubernetesSettings::default()
        };
        let provisioner = KubernetesProvisioner::connect(settings, Arc::new(SystemClock))
            .await
            .unwrap();
        Self {
            provisioner,
            instance: InstanceRef {
                iid: chandler::app::random_token(),
                offering: "cache".into(),
                plan: "small".into(),
                ..InstanceRef::default()
            },
        }
    }

    fn home(&self) -> String {
        format!("osb-{}", self.instance.iid)
    }

    async fn apply(&mut self, desired: &Desired) -> Result<(), String> {
        let announced = self.provisioner.inventory(&self.instance, desired).unwrap();
        self.instance.inventory.extend(announced);
        self.instance.inventory.sort();
        self.instance.inventory.dedup();
        let begun = Instant::now();
        loop {
            match self.provisioner.apply(&self.instance, desired).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == PortErrorKind::Transient && begun.elapsed() < LONGEST => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error.message),
            }
        }
    }

    /// As the engine: looks, applies again when something is missing, until `enough`.
    async fn until(
        &mut self,
        desired: &Desired,
        enough: impl Fn(&Observation) -> bool,
    ) -> Result<Observation, String> {
        let begun = Instant::now();
        loop {
            let seen = self
                .provisioner
                .observe(&self.instance, desired)
                .await
                .map_err(|e| e.message)?;
            if enough(&seen) {
                return Ok(seen);
            }
            assert!(begun.elapsed() < LONGEST, "still {seen:?}");
            if matches!(seen, Observation::Absent(_)) {
                self.apply(desired).await?;
            }
            // A change, or a moment.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.provisioner.changed()).await;
        }
    }

    async fn ready(&mut self, desired: &Desired) -> Vec<Endpoint> {
        let seen = self
            .until(desired, |seen| {
                matches!(seen, Observation::Ready(_) | Observation::Failed(_))
            })
            .await;
        let Observation::Ready(endpoints) = seen.unwrap() else {
            panic!("failed");
        };
        self.provisioner.open(&self.instance, desired).await.unwrap();
        self.instance.established = true;
        endpoints
    }

    async fn provisioned(&mut self, desired: &Desired) -> Vec<Endpoint> {
        self.apply(desired).await.unwrap();
        self.ready(desired).await
    }

    async fn removed(&self, volumes: Volumes) {
        let begun = Instant::now();
        loop {
            let left = self.provisioner.remove(&self.instance, volumes).await;
            match left {
                Ok(Removal::Gone) => return,
                left => assert!(begun.elapsed() < LONGEST, "{left:?}"),
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), self.provisioner.changed()).await;
        }
    }

    /// kubectl, as an administrator would use it by hand.
    fn kubectl(&self, arguments: &[&str]) -> String {
        let program = std::env::var("CHANDLER_TESTBED_KUBECTL").unwrap_or_else(|_| "kubectl".into());
        let output = std::process::Command::new(program)
            .args(["--kubeconfig", &kubeconfig(), "--namespace", &self.home()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A small server with a volume of this size and class.
fn cache(image: &str, size: &str, class: &str) -> Desired {
    let select = json!({"app": "cache"});
    let object = |object: Value| ObjectSpec {
        phase: 10,
        ready: None,
        failed: None,
        object,
    };
    let restricted = json!({
        "runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "fsGroup": 999,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "cache"},
        "spec": {
            "replicas": 1, "serviceName": "cache", "selector": {"matchLabels": select},
            "template": {"metadata": {"labels": select}, "spec": {
                "securityContext": restricted, "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["redis-server", "--save", "", "--dir", "/data", "--protected-mode", "no"],
                    "ports": [{"name": "client", "containerPort": 6379}],
                    "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1},
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "32Mi"}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
            }},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": size}}},
            }],
        },
    });
    Desired {
        objects: vec![
            object(
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cache"}, "data": {"a": "Yg=="}}),
            ),
            object(
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cache"}, "data": {"a": "b"}}),
            ),
            object(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "cache", "annotations": {"chandler.osb/endpoints": "client"}},
                "spec": {"selector": select, "ports": [{"name": "client", "port": 6379, "targetPort": "client"}]},
            })),
            object(set),
        ],
        ..Desired::default()
    }
}

/// What a server of this kind answers to PING, over a connection of its own.
async fn ping(endpoint: &Endpoint) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster"]
async fn an_instance_is_reached_has_no_drift_and_leaves_nothing() {
    let mut room = Room::new().await;
    let desired = cache(&image("redis"), "16Mi", "testbed");
    let endpoints = room.provisioned(&desired).await;
    assert!(
        room.provisioner.requests() <= 40,
        "{} requests",
        room.provisioner.requests()
    );
    let near = room
        .provisioner
        .reach(&room.instance, &endpoints[0])
        .await
        .unwrap();
    assert_eq!(near.host, "127.0.0.1");
    let answers = futures::future::join_all((0..8).map(|_| ping(&near))).await;
    for answer in answers {
        assert_eq!(answer.unwrap(), "+PONG\r\n");
    }
    assert_eq!(
        room.provisioner.drift(&room.instance, &desired).await.unwrap(),
        Vec::<String>::new()
    );
    room.kubectl(&[
        "patch",
        "configmap",
        "cache",
        "--type=merge",
        "-p",
        r#"{"data":{"a":"hunter2"}}"#,
    ]);
    room.kubectl(&["delete", "networkpolicy", "--all", "--wait=false"]);
    let lines = room
        .provisioner
        .drift(&room.instance, &desired)
        .await
        .unwrap()
        .join("\n");
    assert!(
        lines.contains("ConfigMap cache differs in data.a") && lines.contains("NetworkPolicy"),
        "{lines}"
    );
    assert!(!lines.contains("hunter2"), "{lines}");
    // Another process puts everything back.
    let iid = room.instance.clone();
    room = Room::new().await;
    room.instance = iid;
    room.provisioned(&desired).await;
    assert_eq!(
        room.provisioner.drift(&room.instance, &desired).await.unwrap(),
        Vec::<String>::new()
    );
    // A connection after the pod was replaced goes to the new one.
    let near = room
        .provisioner
        .reach(&room.instance, &endpoints[0])
        .await
        .unwrap();
    room.kubectl(&["delete", "pod", "cache-0"]);
    let begun = Instant::now();
    while ping(&near).await.ok().as_deref() != Some("+PONG\r\n") {
        assert!(begun.elapsed() < LONGEST);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    room.removed(Volumes::Delete).await;
    assert!(TcpStream::connect((near.host.as_str(), near.port)).await.is_err());
    assert!(
        !room
            .provisioner
            .list()
            .await
            .unwrap()
            .contains(&room.instance.iid)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster"]
async fn volumes_grow_where_their_class_lets_them() {
    let mut room = Room::new().await;
    let image = image("redis");
    room.provisioned(&cache(&image, "16Mi", "testbed")).await;
    let pod = room.kubectl(&["get", "pod", "cache-0", "-o", "jsonpath={.metadata.uid}"]);
    let more = cache(&image, "32Mi", "testbed");
    room.apply(&more).await.unwrap();
    room.ready(&more).await;
    let size = room.kubectl(&[
        "get",
        "pvc",
        "data-cache-0",
        "-o",
        "jsonpath={.status.capacity.storage}",
    ]);
    assert_eq!(size, "32Mi");
    assert_eq!(
        room.kubectl(&["get", "pod", "cache-0", "-o", "jsonpath={.metadata.uid}"]),
        pod
    );
    let less = room
        .until(&cache(&image, "16Mi", "testbed"), |seen| {
            matches!(seen, Observation::Ready(_))
        })
        .await;
    let why = less.unwrap_err();
    assert!(why.contains("cannot be made smaller"), "{why}");
    room.removed(Volumes::Delete).await;

    let mut room = Room::new().await;
    room.provisioned(&cache(&image, "16Mi", "testbed-fixed")).await;
    let why = room
        .until(&cache(&image, "32Mi", "testbed-fixed"), |seen| {
            matches!(seen, Observation::Ready(_))
        })
        .await;
    assert!(
        why.as_ref().unwrap_err().contains("does not let volumes grow"),
        "{why:?}"
    );
    // And back: nothing had changed.
    room.ready(&cache(&image, "16Mi", "testbed-fixed")).await;
    room.removed(Volumes::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster"]
async fn what_keeps_an_instance_from_starting_is_told() {
    let nowhere =
        "testbed.local/nowhere:1@sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (image, class, word) in [
        (nowhere.to_owned(), "testbed", "image"),
        (image("redis"), "testbed-never", "volume"),
    ] {
        let mut room = Room::new().await;
        let desired = cache(&image, "16Mi", class);
        room.apply(&desired).await.unwrap();
        let seen = room
            .until(&desired, |seen| {
                matches!(seen, Observation::Failed(text) | Observation::Progressing(text) if text.to_lowercase().contains(word))
            })
            .await;
        println!("{word}: {seen:?}");
        room.removed(Volumes::Delete).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster"]
async fn a_namespace_deleted_by_hand_is_told_and_not_made_anew() {
    let mut room = Room::new().await;
    let desired = cache(&image("redis"), "16Mi", "testbed");
    room.provisioned(&desired).await;
    let home = room.home();
    room.kubectl(&["delete", "namespace", &home, "--wait=true"]);
    let seen = room
        .until(&desired, |seen| matches!(seen, Observation::Failed(_)))
        .await
        .unwrap();
    assert!(
        format!("{seen:?}").contains("deleted outside the broker"),
        "{seen:?}"
    );
    let why = room.apply(&desired).await.unwrap_err();
    assert!(why.contains("deleted outside the broker"), "{why}");
    room.removed(Volumes::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster"]
async fn kept_volumes_come_back_with_their_data() {
    let mut room = Room::new().await;
    let desired = cache(&image("redis"), "16Mi", "testbed");
    room.provisioned(&desired).await;
    let volume = ["get", "pvc", "data-cache-0", "-o", "jsonpath={.metadata.uid}"];
    let uid = room.kubectl(&volume);
    room.removed(Volumes::Keep).await;
    let left = room.kubectl(&[
        "get",
        "all,secret,configmap,networkpolicy",
        "-l",
        "chandler.osb/instance",
        "-o",
        "name",
    ]);
    assert_eq!(left, "");
    assert_eq!(
        room.kubectl(&["get", "pvc", "-l", "chandler.osb/retained=true", "-o", "name"])
            .lines()
            .count(),
        1
    );
    room.provisioned(&desired).await;
    assert_eq!(room.kubectl(&volume), uid);
    room.removed(Volumes::Keep).await;
    room.removed(Volumes::Delete).await;
    assert!(
        !room
            .provisioner
            .list()
            .await
            .unwrap()
            .contains(&room.instance.iid)
    );
}
