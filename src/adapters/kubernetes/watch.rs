//! What the cluster has of ours, kept up to date: one watch for each kind, whatever the number of instances.
//!
//! What must stay true: a look costs no request; whether the server still answers is asked elsewhere ([`super::pulse`]).
//! A watch begins when it is first needed, goes on by itself after every loss, and says so while it has not seen
//! everything; what it had seen stays in use while it lists again. Kept is only what somebody reads, as text, because
//! parsed trees of a thousand instances would fill memory. Secrets, ConfigMaps and policies are never watched.

use super::client::{Ask, Cluster, PAGE, causes};
use super::kinds::Resource;
use super::names;
use super::refusal::Refusal;
use super::stir::Stir;
use crate::ports::PortError;
use futures::{AsyncBufReadExt, StreamExt};
use kube::api::ListParams;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// How long the server keeps one watch open, seconds; then it is opened again from where it was.
const OPEN: u32 = 60;
/// How much longer than that we wait for its end: it may be that nobody is there any more.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after the first loss; it doubles.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Kinds that are watched because their state says how an instance is.
const WATCHED: [(&str, &str); 8] = [
    ("v1", "Namespace"),
    ("v1", "Pod"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "Service"),
    ("v1", "ResourceQuota"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "Deployment"),
    ("batch/v1", "Job"),
];

/// Whether objects of this kind have a state to wait for.
pub(super) fn is_watched(resource: &Resource) -> bool {
    resource.is_custom()
        || WATCHED
            .iter()
            .any(|(version, kind)| *version == resource.api_version && *kind == resource.kind)
}

/// Namespace and name.
type Key = (Box<str>, Box<str>);
/// Objects of one instance, as text.
type Objects = HashMap<Key, Box<str>>;

#[derive(Default)]
struct Seen {
    /// By instance; `None` = not everything was seen yet.
    all: Option<HashMap<Box<str>, Objects>>,
    /// Why it cannot be seen, when the broker has no right to.
    refused: Option<PortError>,
}

impl Seen {
    /// Keeps an object, or lets it go; true when that changed something somebody reads.
    fn takes(&mut self, iid: &str, key: Key, text: Option<Box<str>>) -> bool {
        let Some(all) = &mut self.all else {
            return false;
        };
        match text {
            Some(text) => {
                let objects = all.entry(iid.into()).or_default();
                let changed = objects.get(&key) != Some(&text);
                objects.insert(key, text);
                changed
            }
            None => {
                let Some(objects) = all.get_mut(iid) else {
                    return false;
                };
                let changed = objects.remove(&key).is_some();
                if objects.is_empty() {
                    all.remove(iid);
                }
                changed
            }
        }
    }
}

/// The watch on one kind.
pub(super) struct Watch {
    seen: RwLock<Seen>,
    task: Mutex<Option<AbortHandle>>,
}

impl Watch {
    /// The objects of an instance. `Err` while not everything was seen: the text is for people.
    pub fn of(&self, iid: &str) -> Result<Vec<Value>, PortError> {
        self.with(iid, |objects| {
            objects
                .into_iter()
                .flat_map(HashMap::values)
                .filter_map(|text| serde_json::from_str(text).ok())
                .collect()
        })
    }

    /// One object of an instance.
    pub fn one(&self, iid: &str, namespace: &str, name: &str) -> Result<Option<Value>, PortError> {
        let key = (namespace.into(), name.into());
        self.with(iid, |objects| {
            let text = objects?.get(&key)?;
            serde_json::from_str(text).ok()
        })
    }

    fn with<T>(&self, iid: &str, look: impl FnOnce(Option<&Objects>) -> T) -> Result<T, PortError> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        match (&seen.all, &seen.refused) {
            (Some(all), _) => Ok(look(all.get(iid))),
            (None, Some(refused)) => Err(refused.clone()),
            (None, None) => Err(PortError::transient(
                "Waiting for the Kubernetes API server to tell what there is.",
            )),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.seen.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

/// All watches of this process.
pub(super) struct Watches {
    cluster: Arc<Cluster>,
    /// The one namespace of all instances; empty = each has its own.
    shared: String,
    /// Told of every change.
    stir: Arc<Stir>,
    running: Mutex<HashMap<Resource, Arc<Watch>>>,
}

impl Watches {
    /// No watch yet; `shared` is the one namespace of all instances, or empty.
    pub fn new(cluster: Arc<Cluster>, shared: &str, stir: Arc<Stir>) -> Self {
        Self {
            cluster,
            shared: shared.to_owned(),
            stir,
            running: Mutex::default(),
        }
    }

    /// The watch on a kind; it begins now if it had not yet.
    pub fn on(&self, resource: &Resource) -> Arc<Watch> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = running.get(resource) {
            return watch.clone();
        }
        let watch = Arc::new(Watch {
            seen: RwLock::default(),
            task: Mutex::default(),
        });
        let follower = Follower {
            cluster: self.cluster.clone(),
            resource: resource.clone(),
            namespace: if resource.namespaced {
                self.shared.clone()
            } else {
                String::new()
            },
            watch: Arc::downgrade(&watch),
            stir: self.stir.clone(),
        };
        let task = tokio::spawn(follower.follow());
        *watch.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        running.insert(resource.clone(), watch.clone());
        watch
    }

    /// The watch on a kind, if it has begun.
    pub fn begun(&self, resource: &Resource) -> Option<Arc<Watch>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(resource).cloned()
    }

    /// How many watches there are.
    pub fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What keeps one watch up to date.
struct Follower {
    cluster: Arc<Cluster>,
    resource: Resource,
    namespace: String,
    watch: Weak<Watch>,
    stir: Arc<Stir>,
}

/// A refusal, and the version to go on from if the earlier one is still good.
type Lost = (Refusal, Option<String>);

impl Follower {
    /// Lists, then watches from there; forever, until nobody holds the watch any more.
    async fn follow(self) {
        let mut pause = SHORTEST_PAUSE;
        let mut version: Option<String> = None;
        loop {
            let went = match version.take() {
                None => self.list().await.map(Some),
                Some(from) => self.changes(from).await,
            };
            let Some(watch) = self.watch.upgrade() else {
                return;
            };
            match went {
                Ok(next) => {
                    version = next;
                    pause = SHORTEST_PAUSE;
                }
                Err((refused, kept)) => {
                    self.lost(&watch, refused);
                    drop(watch);
                    version = kept;
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// A restart of the API server is ordinary; only a missing right is told, once.
    fn lost(&self, watch: &Watch, refused: Refusal) {
        let forbidden = refused.is_forbidden();
        let error = PortError::from(refused);
        let kind = self.resource.kind.as_str();
        debug!(kind, detail = %error.detail, "a watch was lost");
        watch.change(|seen| {
            if forbidden && seen.refused.is_none() {
                warn!(kind, detail = %error.detail, "what there is cannot be watched; trying on");
            }
            seen.refused = forbidden.then_some(error);
        });
    }

    /// Puts everything there is in the place of what was seen before; gives the version to watch from.
    async fn list(&self) -> Result<String, Lost> {
        let mut params = ListParams::default().labels(&ours()).limit(PAGE);
        let mut all: HashMap<Box<str>, Objects> = HashMap::new();
        loop {
            let page = self
                .cluster
                .ask(&self.resource, &self.namespace, "", Ask::List(&params))
                .await
                .map_err(|refused| (refused, None))?;
            let text = |pointer: &str| page.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (version, next) = (text("/metadata/resourceVersion"), text("/metadata/continue"));
            for item in page.get("items").and_then(Value::as_array).into_iter().flatten() {
                if let Some((iid, key, text)) = kept(&self.resource, item) {
                    all.entry(iid).or_default().insert(key, text);
                }
            }
            if next.is_empty() {
                if let Some(watch) = self.watch.upgrade() {
                    watch.change(|seen| {
                        *seen = Seen {
                            all: Some(all),
                            refused: None,
                        };
                    });
                }
                self.stir.stir_all();
                return Ok(version.to_owned());
            }
            params = params.continue_token(next);
        }
    }

    /// Follows changes from `version` until the stream ends; gives the version to go on from, none = list again.
    async fn changes(&self, mut version: String) -> Result<Option<String>, Lost> {
        let resource = &self.resource;
        let opened = self
            .cluster
            .watch(resource, &self.namespace, &ours(), &version, OPEN)
            .await;
        let stream = match opened {
            Ok(stream) => stream,
            Err(refused) if refused.is_expired() => return Ok(None),
            Err(refused) => return Err((refused, Some(version))),
        };
        let lost = |text: &str| Refusal::new(0, text, "watch", resource, "");
        let mut lines = std::pin::pin!(stream.lines());
        let patience = Duration::from_secs(u64::from(OPEN)) + GRACE;
        loop {
            let line = match timeout(patience, lines.next()).await {
                Ok(Some(Ok(line))) => line,
                Ok(Some(Err(error))) => return Err((lost(&causes(&error)), Some(version))),
                Ok(None) => return Ok(Some(version)),
                Err(_) => return Err((lost("silence"), Some(version))),
            };
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                return Err((lost("a line that is not JSON"), Some(version)));
            };
            self.cluster.heard();
            let object = event.get("object").unwrap_or(&Value::Null);
            let word = event.get("type").and_then(Value::as_str).unwrap_or_default();
            if word == "ERROR" {
                let code = object.get("code").and_then(Value::as_u64).unwrap_or_default();
                // Whatever it is, listing again is right; only for an expired version it is right at once.
                return match code {
                    410 => Ok(None),
                    _ => Err((lost("the server ended the watch"), None)),
                };
            }
            if let Some(now) = object
                .pointer("/metadata/resourceVersion")
                .and_then(Value::as_str)
            {
                now.clone_into(&mut version);
            }
            let Some(watch) = self.watch.upgrade() else {
                return Ok(None);
            };
            if let (Some((iid, key, text)), "ADDED" | "MODIFIED" | "DELETED") = (kept(resource, object), word)
            {
                let changed = watch.change(|seen| seen.takes(&iid, key, (word != "DELETED").then_some(text)));
                if changed {
                    self.stir.stir(&iid);
                }
            }
        }
    }
}

fn ours() -> String {
    format!("{}={}", names::MANAGED_BY.0, names::MANAGED_BY.1)
}

/// Whose an object is, and what is kept of it; none when it is no instance's.
fn kept(resource: &Resource, object: &Value) -> Option<(Box<str>, Key, Box<str>)> {
    let metadata = object.get("metadata")?.as_object()?;
    let text = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
    let iid = metadata
        .get("labels")
        .and_then(|labels| labels.get(names::INSTANCE)?.as_str())
        .or_else(|| names::iid_of(text("namespace")))?;
    let key = (text("namespace").into(), text("name").into());
    let slim = slim(resource, object, metadata);
    Some((iid.into(), key, slim.to_string().into()))
}

/// An object without what nobody reads.
fn slim(resource: &Resource, object: &Value, metadata: &Map<String, Value>) -> Value {
    let mut kept = Map::new();
    kept.insert("apiVersion".into(), resource.api_version.clone().into());
    kept.insert("kind".into(), resource.kind.clone().into());
    let mut about = metadata.clone();
    about.remove("managedFields");
    about.remove("resourceVersion");
    if let Some(Value::Object(annotations)) = about.get_mut("annotations") {
        annotations.retain(|name, _| name.starts_with("chandler.osb/"));
    }
    kept.insert("metadata".into(), Value::Object(about));
    for (name, member) in object.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            let mut member = member.clone();
            if name == "spec" {
                slim_spec(resource, &mut member);
            }
            kept.insert(name.clone(), member);
        }
    }
    Value::Object(kept)
}

fn slim_spec(resource: &Resource, spec: &mut Value) {
    let Value::Object(spec) = spec else { return };
    match resource.kind.as_str() {
        "StatefulSet" | "Deployment" | "Job" if !resource.is_custom() => {
            spec.remove("template");
            spec.remove("volumeClaimTemplates");
        }
        "Pod" => {
            spec.retain(|name, _| matches!(name.as_str(), "nodeName" | "containers" | "initContainers"));
            for name in ["containers", "initContainers"] {
                for container in spec
                    .get_mut(name)
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    if let Value::Object(container) = container {
                        container.retain(|name, _| matches!(name.as_str(), "name" | "ports" | "image"));
                    }
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::kinds::Kinds;
    use super::*;
    use serde_json::json;

    const IID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn a_pod_is_kept_without_what_nobody_reads() {
        let pod = json!({
            "metadata": {
                "name": "db-0", "namespace": "n", "resourceVersion": "7", "managedFields": [{"manager": "x"}],
                "labels": {names::INSTANCE: IID}, "annotations": {names::HASH: "h", "other": "long"},
            },
            "spec": {
                "nodeName": "a",
                "containers": [{"name": "db", "image": "i", "ports": [{"name": "client", "containerPort": 1}], "env": [{"name": "A"}]}],
                "volumes": [{"name": "data"}],
            },
            "status": {"phase": "Running"},
        });
        let resource = Kinds::usual("v1", "Pod").unwrap();
        let (iid, key, text) = kept(&resource, &pod).unwrap();
        assert_eq!((&*iid, &*key.0, &*key.1), (IID, "n", "db-0"));
        let seen: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            seen,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "db-0", "namespace": "n", "labels": {names::INSTANCE: IID},
                    "annotations": {names::HASH: "h"},
                },
                "spec": {
                    "nodeName": "a",
                    "containers": [{"name": "db", "image": "i", "ports": [{"name": "client", "containerPort": 1}]}],
                },
                "status": {"phase": "Running"},
            })
        );
    }

    #[test]
    fn an_object_is_found_by_label_or_by_namespace_or_not_at_all() {
        let resource = Kinds::usual("v1", "PersistentVolumeClaim").unwrap();
        let whose = |object: &Value| kept(&resource, object).map(|(iid, ..)| iid.to_string());
        let in_namespace = json!({"metadata": {"name": "data", "namespace": names::namespace(IID)}});
        assert_eq!(whose(&in_namespace).as_deref(), Some(IID));
        assert_eq!(
            whose(&json!({"metadata": {"name": "data", "namespace": "default"}})),
            None
        );
    }

    #[test]
    fn only_what_has_a_state_is_watched() {
        for (version, kind, watched) in [
            ("v1", "Pod", true),
            ("v1", "Secret", false),
            ("v1", "ConfigMap", false),
            ("networking.k8s.io/v1", "NetworkPolicy", false),
            ("apps/v1", "StatefulSet", true),
        ] {
            assert_eq!(
                is_watched(&Kinds::usual(version, kind).unwrap()),
                watched,
                "{kind}"
            );
        }
    }
}
