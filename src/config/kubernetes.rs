//! Settings of the kind `kubernetes`: which cluster, how instances are kept apart in it, and what every object gets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Instances as objects of a Kubernetes cluster.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// File that says how to reach the cluster. Absent: the pod's own service account, or what `KUBECONFIG` names.
    pub kubeconfig: Option<PathBuf>,
    /// Context of that file; absent = its current one.
    pub context: Option<String>,
    /// `instance`: a namespace of its own for every instance. `shared`: all in `namespace`, for clusters where the broker may not make namespaces.
    pub tenancy: Tenancy,
    /// The namespace of the tenancy `shared`. It must exist and carry the label `app.kubernetes.io/managed-by: chandler`.
    pub namespace: String,
    /// The broker's own namespace; it is let in to every instance, to make users there.
    pub broker_namespace: String,
    /// Namespace that may read metrics; absent = none.
    pub monitoring_namespace: Option<String>,
    /// Labels of namespaces whose applications may connect to every instance, beside those an instance's parameter `consumers` names. Empty = only those.
    pub consumer_labels: BTreeMap<String, String>,
    /// Labels that every instance's namespace gets, such as `istio-injection: disabled`.
    pub namespace_labels: BTreeMap<String, String>,
    /// How the broker itself reaches instances.
    pub transport: Transport,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Where images are pulled from.
    pub images: Images,
    /// StorageClass of volumes for which a plan names none; absent = the cluster's default.
    pub storage_class: Option<String>,
    /// PriorityClass of pods for which a plan names none.
    pub priority_class: Option<String>,
    /// Most requests to the API server at once.
    #[schemars(range(min = 1, max = 1000))]
    pub requests_at_once: usize,
    /// Seconds one request to the API server may take.
    #[schemars(range(min = 1, max = 120))]
    pub request_seconds: u64,
    /// What happens with objects that somebody else changed.
    pub drift: Drift,
    /// Minutes between two looks for such objects.
    #[schemars(range(min = 1, max = 10_080))]
    pub drift_minutes: u64,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            tenancy: Tenancy::Instance,
            namespace: String::new(),
            broker_namespace: "chandler".into(),
            monitoring_namespace: None,
            consumer_labels: BTreeMap::from([("chandler.osb/consumer".into(), "true".into())]),
            namespace_labels: BTreeMap::new(),
            transport: Transport::Auto,
            cluster_domain: "cluster.local".into(),
            images: Images::default(),
            storage_class: None,
            priority_class: None,
            requests_at_once: 32,
            request_seconds: 15,
            drift: Drift::Repair,
            drift_minutes: 60,
        }
    }
}

/// How instances are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tenancy {
    /// A namespace for each instance.
    Instance,
    /// One namespace for all.
    Shared,
}

/// How the broker reaches instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// `direct` when the broker runs in the cluster, else `port-forward`.
    Auto,
    /// By the service's DNS name.
    Direct,
    /// Through the API server.
    PortForward,
}

/// Where images are pulled from. A digest stays as the catalog has it, unless it is replaced whole.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Private registry and path that every image name is put behind, such as `nexus.example.com/mirror`; empty = as the catalog says.
    pub registry: String,
    /// Images to use instead of others: the name the catalog uses, without tag and digest → the whole other reference with its digest.
    pub replace: BTreeMap<String, String>,
}

/// What happens with objects that somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Drift {
    /// They are put back.
    Repair,
    /// They are told in the log and in a metric.
    Report,
    /// Nobody looks.
    Off,
}
