//! The Kubernetes adapter against an API server in this process, driven as the engine drives it.

mod crash;
mod fake;
mod faults;
mod lifecycle;
mod removal;
mod updates;

use chandler::adapters::kubernetes::{KubernetesProvisioner, KubernetesSettings, Transport};
use chandler::app::SystemClock;
use chandler::domain::instance::Endpoint;
use chandler::domain::manifest::{Desired, ObjectSpec};
use chandler::ports::{InstanceRef, Observation, PortResult, Provisioner, Removal, Volumes};
use fake::Fake;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const IID: &str = "abcdefghijklmnopqrstuvwxyz";
pub const HOME: &str = "osb-abcdefghijklmnopqrstuvwxyz";
const IMAGE: &str = "db@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A cluster and one instance in it.
pub struct Room {
    pub fake: Fake,
    pub settings: KubernetesSettings,
    pub provisioner: KubernetesProvisioner,
    pub instance: InstanceRef,
    _dir: tempfile::TempDir,
}

impl Room {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A room whose settings a test changes.
    pub async fn with(change: impl FnOnce(&mut KubernetesSettings)) -> Self {
        let fake = Fake::start().await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": fake.url}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "users": [{"name": "fake", "user": {}}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let mut settings = KubernetesSettings {
            kubeconfig: Some(file),
            transport: Transport::Direct,
            request_limit: Duration::from_secs(5),
            ..KubernetesSettings::default()
        };
        change(&mut settings);
        Self {
            provisioner: provisioner(&settings).await,
            fake,
            settings,
            instance: InstanceRef {
                iid: IID.into(),
                offering: "db".into(),
                plan: "small".into(),
                ..InstanceRef::default()
            },
            _dir: dir,
        }
    }

    /// Another process takes over: it knows nothing of what the first one did.
    pub async fn restart(&mut self) {
        self.provisioner = provisioner(&self.settings).await;
    }

    /// As the engine's step `secrets`: what may be made is announced first.
    pub fn announce(&mut self, desired: &Desired) {
        let objects = self.provisioner.inventory(&self.instance, desired).unwrap();
        self.instance.inventory.extend(objects);
        self.instance.inventory.sort();
        self.instance.inventory.dedup();
    }

    /// As the engine's step `apply`.
    pub async fn apply(&mut self, desired: &Desired) -> PortResult<()> {
        self.announce(desired);
        self.provisioner.apply(&self.instance, desired).await
    }

    pub async fn observe(&self, desired: &Desired) -> Observation {
        self.provisioner.observe(&self.instance, desired).await.unwrap()
    }

    /// As the engine's step `ready`, until something else than waiting comes, or `enough` says so.
    pub async fn watch_until(&self, desired: &Desired, enough: impl Fn(&Observation) -> bool) -> Observation {
        let begun = Instant::now();
        loop {
            let seen = self.observe(desired).await;
            if enough(&seen) {
                return seen;
            }
            if matches!(seen, Observation::Absent(_)) {
                let applied = self.provisioner.apply(&self.instance, desired).await;
                if let Err(error) = applied {
                    assert!(
                        matches!(error.kind, chandler::ports::PortErrorKind::Transient),
                        "{} ({})",
                        error.message,
                        error.detail
                    );
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "still {seen:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until it is ready; then the steps after that.
    pub async fn settled(&mut self, desired: &Desired) -> Vec<Endpoint> {
        let seen = self
            .watch_until(desired, |seen| {
                matches!(seen, Observation::Ready(_) | Observation::Failed(_))
            })
            .await;
        let Observation::Ready(endpoints) = seen else {
            panic!("{seen:?}");
        };
        self.provisioner.open(&self.instance, desired).await.unwrap();
        let wanted = self.provisioner.inventory(&self.instance, desired).unwrap();
        self.instance
            .inventory
            .retain(|object| object.holds_data() || wanted.contains(object));
        self.instance.established = true;
        endpoints
    }

    /// Everything up to a ready instance.
    pub async fn provisioned(&mut self, desired: &Desired) -> Vec<Endpoint> {
        self.fake.automatic();
        self.apply(desired).await.unwrap();
        self.settled(desired).await
    }

    /// Until it is gone; what people were told on the way.
    pub async fn removed(&self, volumes: Volumes) -> Vec<String> {
        let begun = Instant::now();
        let mut told = Vec::new();
        loop {
            match self.provisioner.remove(&self.instance, volumes).await.unwrap() {
                Removal::Gone => return told,
                Removal::StillGoing(text) => {
                    if told.last() != Some(&text) {
                        told.push(text);
                    }
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{told:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub async fn provisioner(settings: &KubernetesSettings) -> KubernetesProvisioner {
    KubernetesProvisioner::connect(settings.clone(), Arc::new(SystemClock))
        .await
        .unwrap()
}

/// A document of the catalog, filled in.
pub fn spec(phase: u16, object: Value) -> ObjectSpec {
    ObjectSpec {
        phase,
        ready: None,
        failed: None,
        object,
    }
}

/// A database as objects: `name` is the base name, `size` its volume's, `config` a setting.
pub fn database(name: &str, size: &str, config: &str) -> Desired {
    let select = json!({"app": name});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "serviceName": name, "selector": {"matchLabels": select},
            "template": {"metadata": {"labels": select}, "spec": {"containers": [{
                "name": "main", "image": IMAGE, "ports": [{"name": "client", "containerPort": 5432}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
            }]}},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
            }],
        },
    });
    Desired {
        objects: vec![
            spec(
                10,
                json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"password": "aHVudGVyMg=="}}),
            ),
            spec(
                10,
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"db.conf": config}}),
            ),
            spec(
                10,
                json!({
                    "apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": name, "annotations": {"chandler.osb/endpoints": "client"}},
                    "spec": {"selector": select, "ports": [{"name": "client", "port": 5432, "targetPort": "client"}]},
                }),
            ),
            spec(10, set),
        ],
        ..Desired::default()
    }
}

/// The same with a hook that runs when the database is up.
pub fn with_hook(mut desired: Desired, name: &str, argument: &str) -> Desired {
    desired.objects.push(spec(
        20,
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": format!("{name}-setup")},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "main", "image": IMAGE, "args": [argument]},
            ]}}},
        }),
    ));
    desired
}

/// Waits until `holds`, for what a watch brings in its own time.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
