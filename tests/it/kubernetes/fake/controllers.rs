//! What controllers would do: pods, volumes and states of sets, ends of hooks, things that wait to go.

use super::Key;
use super::objects::State;
use serde_json::{Value, json};

impl State {
    /// Deletes the pods a set made.
    pub(super) fn end_pods(&mut self, key: &Key) {
        let pods: Vec<Key> = self
            .objects
            .iter()
            .filter(|(k, pod)| k.1 == "pods" && k.2 == key.2 && pod["madeBy"] == key.3.as_str())
            .map(|(k, _)| k.clone())
            .collect();
        for pod in pods {
            if self.pods_stay {
                let mut object = self.objects[&pod].clone();
                object["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:01Z".into();
                self.store(pod, object);
            } else {
                self.gone(&pod);
            }
        }
    }

    /// What controllers would do now.
    pub(super) fn controllers(&mut self, make: bool) {
        let keys: Vec<Key> = self.objects.keys().cloned().collect();
        for key in keys {
            let Some(object) = self.objects.get(&key).cloned() else {
                continue;
            };
            let going = object["metadata"].get("deletionTimestamp").is_some();
            let held = object["metadata"]["finalizers"]
                .as_array()
                .is_some_and(|f| !f.is_empty());
            let pods = self
                .objects
                .values()
                .any(|pod| pod["madeBy"] == key.3.as_str() && pod["metadata"]["namespace"] == key.2.as_str());
            match key.1.as_str() {
                "namespaces" if going && !held && !self.linger => self.gone(&key),
                "statefulsets" | "deployments" | "jobs"
                    if going && (!pods || object["metadata"]["deletedBy"] == "Orphan") =>
                {
                    self.gone(&key);
                }
                // Waits for its pods.
                "statefulsets" | "deployments" | "jobs" if going => {}
                "pods" if going && !self.pods_stay => self.gone(&key),
                "statefulsets" if make => self.play_set(&key, &object),
                "jobs" if make => {
                    let mut done = object.clone();
                    done["status"] =
                        json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]});
                    self.store(key, done);
                }
                "resourcequotas" if make => {
                    let mut counted = object.clone();
                    counted["status"] = json!({"hard": counted["spec"]["hard"]});
                    self.store(key, counted);
                }
                "persistentvolumeclaims" if make => {
                    let mut bound = object.clone();
                    let size = bound["spec"]["resources"]["requests"]["storage"].clone();
                    bound["status"] = json!({"phase": "Bound", "capacity": {"storage": size}});
                    self.store(key, bound);
                }
                _ => {}
            }
        }
    }

    pub(super) fn play_set(&mut self, key: &Key, set: &Value) {
        let replicas = set["spec"]["replicas"].as_i64().unwrap_or(1);
        for n in 0..replicas {
            for template in set["spec"]["volumeClaimTemplates"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let name = format!("{}-{}-{n}", template["metadata"]["name"].as_str().unwrap(), key.3);
                let volume = (
                    "v1".to_owned(),
                    "persistentvolumeclaims".to_owned(),
                    key.2.clone(),
                    name.clone(),
                );
                if self.objects.contains_key(&volume) {
                    continue;
                }
                let mut spec = template["spec"].clone();
                if spec.get("storageClassName").is_none() {
                    spec["storageClassName"] = "standard".into();
                }
                let size = spec["resources"]["requests"]["storage"].clone();
                let object = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "metadata": {"name": name, "namespace": key.2, "labels": template["metadata"]["labels"]},
                    "spec": spec, "status": {"phase": "Bound", "capacity": {"storage": size}},
                });
                self.store(volume, object);
            }
            let name = format!("{}-{n}", key.3);
            let pod = ("v1".to_owned(), "pods".to_owned(), key.2.clone(), name.clone());
            let status = self.pods_fail.clone().unwrap_or_else(|| {
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "state": {"running": {}}}]})
            });
            let mut object = self.objects.get(&pod).cloned().unwrap_or_else(|| {
                json!({
                    "apiVersion": "v1", "kind": "Pod", "madeBy": key.3,
                    "metadata": {"name": name, "namespace": key.2, "labels": set["spec"]["template"]["metadata"]["labels"]},
                    "spec": set["spec"]["template"]["spec"],
                })
            });
            object["status"] = status;
            self.store(pod, object);
        }
        let ready = if self.pods_fail.is_some() { 0 } else { replicas };
        let mut object = set.clone();
        object["status"] = json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": replicas, "readyReplicas": ready,
            "updatedReplicas": replicas, "availableReplicas": ready, "currentReplicas": replicas,
            "currentRevision": "r1", "updateRevision": "r1",
        });
        self.store(key.clone(), object);
    }
}
