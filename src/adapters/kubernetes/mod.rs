//! Instances as objects of a Kubernetes cluster.
//!
//! What must stay true:
//! - every name derives from the iid, so a repeated call finds its earlier work; every object carries the labels of
//!   [`names`], so what is there can be found without our database;
//! - desired state goes out by server-side apply with one field manager; nothing is read to be written back;
//! - observing costs no request: it reads what shared watches keep up to date, one watch for each kind;
//! - no call waits for anything to become ready; each bounds its own time, and how many requests are on their way;
//! - data (volumes) goes only when an instance is removed and the volumes are not to be kept.
//!
//! ```text
//! desired objects ─ dress ─┐                      ┌─ health ← watch (one per kind)
//! settings ─────── tenancy ┴─ apply → API server ─┤
//!                                                 └─ remove, drift, forward
//! ```

mod dress;
mod endpoints;
mod health;
mod images;
mod inventory;
pub mod names;
mod quantity;
mod quota;
pub mod rbac;
mod shape;
mod tenancy;
mod trouble;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the Kubernetes provisioner.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// File that says how to reach the cluster; `None` = the pod's own service account, or what `KUBECONFIG` names.
    pub kubeconfig: Option<PathBuf>,
    /// Context of that file.
    pub context: Option<String>,
    /// The one namespace of all instances; `None` = one for each.
    pub shared_namespace: Option<String>,
    /// The broker's own namespace, let in to every instance.
    pub broker_namespace: String,
    /// Namespace that may read metrics.
    pub monitoring_namespace: Option<String>,
    /// Labels of namespaces whose applications may connect to every instance.
    pub consumer_labels: BTreeMap<String, String>,
    /// Labels every instance's namespace gets.
    pub namespace_labels: BTreeMap<String, String>,
    /// How the broker reaches instances.
    pub transport: Transport,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Private registry and path that image names are put behind; empty = none.
    pub registry: String,
    /// Image name without tag and digest → whole reference to use instead.
    pub replace: BTreeMap<String, String>,
    /// StorageClass where a plan names none.
    pub storage_class: Option<String>,
    /// PriorityClass where a plan names none.
    pub priority_class: Option<String>,
    /// Most requests to the API server at once.
    pub requests_at_once: usize,
    /// How long one request may take.
    pub request_limit: Duration,
}

/// How the broker reaches instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// [`Direct`](Self::Direct) when the broker runs in the cluster, else [`PortForward`](Self::PortForward).
    Auto,
    /// By the service's DNS name.
    Direct,
    /// Through the API server.
    PortForward,
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            shared_namespace: None,
            broker_namespace: "chandler".into(),
            monitoring_namespace: None,
            consumer_labels: BTreeMap::from([("chandler.osb/consumer".into(), "true".into())]),
            namespace_labels: BTreeMap::new(),
            transport: Transport::Auto,
            cluster_domain: "cluster.local".into(),
            registry: String::new(),
            replace: BTreeMap::new(),
            storage_class: None,
            priority_class: None,
            requests_at_once: 32,
            request_limit: Duration::from_secs(15),
        }
    }
}
