//! Kinds of objects: their addresses, and which of the custom ones the cluster knows.
//!
//! What must stay true: the usual kinds need no request to be known; of the custom ones only the groups are asked for
//! that an offering names. An answer is kept, a "no" only for a moment: an operator may be installed at any time.

use super::client::{Ask, Cluster};
use super::refusal::Refusal;
use crate::domain::catalog::{CustomResource, KINDS};
use crate::ports::{PortError, PortResult};
use kube::api::ListParams;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a group that was not there is not asked for again.
const ABSENT: Duration = Duration::from_secs(5);

/// Kinds the adapter itself uses beside those of [`KINDS`]: group and version, kind, plural, whether in a namespace.
const OWN: [(&str, &str, &str, bool); 6] = [
    ("v1", "Namespace", "namespaces", false),
    ("v1", "ResourceQuota", "resourcequotas", true),
    ("v1", "LimitRange", "limitranges", true),
    ("v1", "Pod", "pods", true),
    ("v1", "Event", "events", true),
    ("storage.k8s.io/v1", "StorageClass", "storageclasses", false),
];

/// A kind of object and where its objects are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Resource {
    /// Group and version, such as `apps/v1`; `v1` for the core group.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// What addresses say.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Resource {
    fn new(api_version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
        }
    }

    /// Something the server itself answers at `path`.
    pub fn server(path: &str) -> Self {
        Self::new(path, "Server", "", false)
    }

    /// A custom kind that was not asked for yet: good for knowing that it is one, not for addresses.
    pub fn unknown(api_version: &str, kind: &str) -> Self {
        Self::new(api_version, kind, "", true)
    }

    /// The group; empty for the core one.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// Whether a custom resource definition brings it.
    pub fn is_custom(&self) -> bool {
        Kinds::usual(&self.api_version, &self.kind).is_none()
    }

    /// Path of its objects, in `namespace` or, when that is empty, in all.
    pub fn path(&self, namespace: &str) -> String {
        if self.api_version.starts_with('/') {
            return self.api_version.clone();
        }
        let root = if self.api_version.contains('/') {
            "/apis"
        } else {
            "/api"
        };
        let plural = &self.plural;
        if self.namespaced && !namespace.is_empty() {
            format!("{root}/{}/namespaces/{namespace}/{plural}", self.api_version)
        } else {
            format!("{root}/{}/{plural}", self.api_version)
        }
    }
}

/// What the cluster said of a group and version.
struct Asked {
    at: Instant,
    /// By kind. Empty = the cluster does not have it.
    resources: BTreeMap<String, Resource>,
}

/// The kinds there are.
#[derive(Default)]
pub(super) struct Kinds {
    asked: Mutex<BTreeMap<String, Asked>>,
}

impl Kinds {
    /// A kind every cluster has.
    pub fn usual(api_version: &str, kind: &str) -> Option<Resource> {
        let usual = KINDS
            .iter()
            .map(|(version, kind, plural)| (*version, *kind, *plural, true))
            .chain(OWN)
            .find(|(version, name, ..)| *version == api_version && *name == kind);
        usual.map(|(version, kind, plural, namespaced)| Resource::new(version, kind, plural, namespaced))
    }

    /// Namespaces.
    pub fn namespaces() -> Resource {
        Resource::new("v1", "Namespace", "namespaces", false)
    }

    /// Volumes, as those who use them claim them.
    pub fn volumes() -> Resource {
        Resource::new("v1", "PersistentVolumeClaim", "persistentvolumeclaims", true)
    }

    /// Secrets.
    pub fn secrets() -> Resource {
        Resource::new("v1", "Secret", "secrets", true)
    }

    /// Pods.
    pub fn pods() -> Resource {
        Resource::new("v1", "Pod", "pods", true)
    }

    /// Services.
    pub fn services() -> Resource {
        Resource::new("v1", "Service", "services", true)
    }

    /// What the cluster reports of objects.
    pub fn events() -> Resource {
        Resource::new("v1", "Event", "events", true)
    }

    /// Classes of storage.
    pub fn classes() -> Resource {
        Resource::new("storage.k8s.io/v1", "StorageClass", "storageclasses", false)
    }

    /// A kind, asking the cluster when it is neither usual nor known from before.
    pub async fn resolve(&self, cluster: &Cluster, api_version: &str, kind: &str) -> PortResult<Resource> {
        if let Some(resource) = Self::usual(api_version, kind).or_else(|| self.known(api_version, kind)) {
            return Ok(resource);
        }
        self.look(cluster, api_version).await?;
        self.known(api_version, kind)
            .ok_or_else(|| PortError::invalid(missing(api_version, kind)))
    }

    /// A custom kind the cluster is known to have; no request.
    pub fn known(&self, api_version: &str, kind: &str) -> Option<Resource> {
        self.lock().get(api_version)?.resources.get(kind).cloned()
    }

    /// Every custom kind that was asked for and is there.
    pub fn custom(&self, wanted: &BTreeSet<CustomResource>) -> Vec<Resource> {
        let asked = self.lock();
        let known = |wanted: &CustomResource| {
            let group = asked.get(&wanted.api_version)?;
            group.resources.get(&wanted.kind).cloned()
        };
        wanted.iter().filter_map(known).collect()
    }

    /// Asks for the groups of `wanted` again; true when an answer differs from the last.
    pub async fn refresh(&self, cluster: &Cluster, wanted: &BTreeSet<CustomResource>) -> PortResult<bool> {
        let groups: BTreeSet<&str> = wanted.iter().map(|w| w.api_version.as_str()).collect();
        let mut changed = false;
        for group in groups {
            let before = self.lock().remove(group).map(|asked| asked.resources);
            if let Err(refused) = self.look(cluster, group).await {
                if let Some(resources) = before {
                    // Not being able to ask is no reason to forget.
                    let at = Instant::now();
                    self.lock().insert(group.to_owned(), Asked { at, resources });
                }
                return Err(refused.into());
            }
            let now = self.lock().get(group).map(|asked| asked.resources.clone());
            changed |= before != now;
        }
        Ok(changed)
    }

    async fn look(&self, cluster: &Cluster, api_version: &str) -> Result<(), Refusal> {
        let fresh = |asked: &Asked| !asked.resources.is_empty() || asked.at.elapsed() < ABSENT;
        if self.lock().get(api_version).is_some_and(fresh) {
            return Ok(());
        }
        let place = Resource::server(&format!("/apis/{api_version}"));
        let resources = match cluster
            .ask(&place, "", "", Ask::List(&ListParams::default()))
            .await
        {
            Ok(list) => read(api_version, &list),
            Err(refused) if refused.is_gone() => BTreeMap::new(),
            Err(refused) => return Err(refused),
        };
        let at = Instant::now();
        self.lock()
            .insert(api_version.to_owned(), Asked { at, resources });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sentence on a kind that the cluster does not have.
pub(super) fn missing(api_version: &str, kind: &str) -> String {
    let group = api_version.split('/').next().unwrap_or_default();
    format!(
        "The cluster does not know the kind {kind} of {api_version}: the operator that brings the custom resource definitions of {group} has to be installed."
    )
}

/// The kinds in an answer of `/apis/<group>/<version>`.
fn read(api_version: &str, list: &Value) -> BTreeMap<String, Resource> {
    let mut found = BTreeMap::new();
    for item in list
        .get("resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        let (kind, plural) = (text("kind"), text("name"));
        // "clusters/status" is a part of a kind, not a kind.
        if kind.is_empty() || plural.contains('/') {
            continue;
        }
        let namespaced = item.get("namespaced").and_then(Value::as_bool).unwrap_or(true);
        found.insert(
            kind.to_owned(),
            Resource::new(api_version, kind, plural, namespaced),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    #[test]
    fn paths_follow_group_and_namespace() {
        let path =
            |version: &str, kind: &str, namespace: &str| Kinds::usual(version, kind).unwrap().path(namespace);
        assert_eq!(path("v1", "Secret", "a"), "/api/v1/namespaces/a/secrets");
        assert_eq!(path("v1", "Pod", ""), "/api/v1/pods");
        assert_eq!(path("v1", "Namespace", "a"), "/api/v1/namespaces");
        assert_eq!(
            path("apps/v1", "StatefulSet", "a"),
            "/apis/apps/v1/namespaces/a/statefulsets"
        );
        assert!(Kinds::usual("apps/v1", "DaemonSet").is_none());
        assert_eq!(Kinds::usual("apps/v1", "Deployment").unwrap().group(), "apps");
        assert_eq!(Kinds::usual("v1", "Pod").unwrap().group(), "");
    }

    #[test]
    fn parts_of_a_kind_are_no_kinds() {
        let found = read(
            "postgresql.cnpg.io/v1",
            &json!({"resources": [
                {"name": "clusters/status", "kind": "Cluster", "namespaced": true},
                {"name": "clusters", "kind": "Cluster", "namespaced": true},
                {"name": "clusterimagecatalogs", "kind": "ClusterImageCatalog", "namespaced": false},
            ]}),
        );
        assert_eq!(found.len(), 2);
        assert_eq!(
            found["Cluster"].path("n"),
            "/apis/postgresql.cnpg.io/v1/namespaces/n/clusters"
        );
        assert!(found["Cluster"].is_custom() && !found["ClusterImageCatalog"].namespaced);
    }
}
