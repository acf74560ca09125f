//! Instances as objects of a Kubernetes cluster.
//!
//! What must stay true:
//! - every name derives from the iid, so a repeated call finds its earlier work; every object carries the labels of
//!   [`names`], so what is there can be found without our database;
//! - desired state goes out by server-side apply with one field manager; nothing is read to be written back;
//! - observing costs no request while the server is heard: it reads what shared watches keep up to date, one watch for
//!   each kind; what they showed is not used when the server does not answer any more;
//! - no call waits for anything to become ready; each bounds its own time, and how many requests are on their way;
//! - data (volumes) goes only when an instance is removed and the volumes are not to be kept.
//!
//! ```text
//! desired objects ─ dress ─┐                      ┌─ health ← watch (one per kind)
//! settings ─────── tenancy ┴─ apply → API server ─┤
//!                                                 └─ remove, drift, forward
//! ```

mod apply;
mod client;
mod dress;
mod drift;
mod endpoints;
mod forward;
mod health;
mod images;
mod inventory;
mod kinds;
pub mod names;
mod notes;
mod observe;
mod projection;
mod pulse;
mod quantity;
mod quota;
pub mod rbac;
mod refusal;
mod remove;
mod reshape;
mod shape;
mod stir;
mod tenancy;
mod trouble;
mod watch;
mod words;

use crate::domain::catalog::{CustomResource, ObjectTemplate, Offering, Plan};
use crate::domain::instance::Endpoint;
use crate::domain::manifest::{self, Desired};
use crate::domain::params;
use crate::ports::{
    Clock, InstanceRef, ObjectRef, Observation, PortErrorKind, PortResult, Provisioner, Removal, Volumes,
};
use async_trait::async_trait;
use client::Cluster;
use forward::Forwards;
use kinds::{Kinds, Resource};
use notes::Notes;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use stir::Stir;
use watch::Watches;

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
    /// Applications' namespaces that Secrets may be put into, for `chandler rbac`.
    pub secret_namespaces: BTreeSet<String>,
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
            secret_namespaces: BTreeSet::new(),
            requests_at_once: 32,
            request_limit: Duration::from_secs(15),
        }
    }
}

/// Makes instances as objects of a cluster.
pub struct KubernetesProvisioner {
    settings: KubernetesSettings,
    cluster: Arc<Cluster>,
    kinds: Kinds,
    watches: Arc<Watches>,
    notes: Notes,
    stir: Arc<Stir>,
    forwards: Forwards,
    clock: Arc<dyn Clock>,
    /// The custom resources that the catalog in use names.
    wanted: RwLock<BTreeSet<CustomResource>>,
    /// Group and version, and plural, of the kinds that catalog makes objects of; none before it is known.
    made: RwLock<Option<BTreeSet<(String, String)>>>,
}

impl KubernetesProvisioner {
    /// Reads how to reach the cluster; sends nothing yet.
    ///
    /// Errors: a configuration that cannot be used. A cluster that does not answer is none.
    pub async fn connect(settings: KubernetesSettings, clock: Arc<dyn Clock>) -> PortResult<Self> {
        let cluster = Arc::new(Cluster::open(&settings).await?);
        let shared = settings.shared_namespace.clone().unwrap_or_default();
        let stir = Arc::new(Stir::default());
        Ok(Self {
            watches: Arc::new(Watches::new(cluster.clone(), &shared, stir.clone())),
            settings,
            cluster,
            kinds: Kinds::default(),
            notes: Notes::default(),
            stir,
            forwards: Forwards::default(),
            clock,
            wanted: RwLock::default(),
            made: RwLock::default(),
        })
    }

    /// Asks the cluster which of the custom resources that these offerings name it has.
    ///
    /// To be called before a catalog is put into use, and now and then: operators come and go. True = something changed.
    pub async fn discover(&self, offerings: &[Arc<Offering>]) -> PortResult<bool> {
        let wanted: BTreeSet<CustomResource> = offerings
            .iter()
            .flat_map(|offering| offering.resources.clone())
            .collect();
        self.wanted
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&wanted);
        *self.made.write().unwrap_or_else(PoisonError::into_inner) =
            Some(rbac::made(&self.settings, offerings));
        self.kinds.refresh(&self.cluster, &wanted).await
    }

    /// The version of the API server, or why it does not answer.
    pub async fn version(&self) -> PortResult<String> {
        Ok(self.cluster.version().await?)
    }

    /// How many requests were sent to the API server since the start, watches among them.
    pub fn requests(&self) -> u64 {
        self.cluster.sent()
    }

    /// How many watches are open; it does not depend on the number of instances.
    pub fn watched_kinds(&self) -> usize {
        self.watches.count()
    }

    /// The custom kinds the catalog names and the cluster has.
    fn custom(&self) -> Vec<Resource> {
        self.kinds
            .custom(&self.wanted.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether an instance can have objects of a usual kind. For others the broker has no rights, and asking would only
    /// be refused. Before the catalog is known it may be any.
    fn is_made(&self, resource: &Resource) -> bool {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        let kind = (resource.api_version.clone(), resource.plural.clone());
        made.as_ref().is_none_or(|made| made.contains(&kind))
    }

    /// `<apiVersion>/<kind>` of the custom resources an instance of `offering` can be made of.
    ///
    /// An instance that is there stays with what it was made of, whatever operator was installed since.
    async fn kinds_for(&self, instance: &InstanceRef, offering: &Offering) -> PortResult<Vec<String>> {
        let mut found = Vec::new();
        for resource in &offering.resources {
            let (version, kind) = (&resource.api_version, &resource.kind);
            let there = if instance.established {
                instance
                    .inventory
                    .iter()
                    .any(|object| object.api_version == *version && object.kind == *kind)
            } else {
                match self.kinds.resolve(&self.cluster, version, kind).await {
                    Ok(_) => true,
                    Err(error) if error.kind == PortErrorKind::Invalid => false,
                    Err(error) => return Err(error),
                }
            };
            if there {
                found.push(format!("{version}/{kind}"));
            }
        }
        Ok(found)
    }

    fn facts(&self, instance: &InstanceRef, kinds: &[String]) -> Map<String, Value> {
        let namespace = dress::namespace(&self.settings, &instance.iid);
        let domain = self.settings.cluster_domain.trim_matches('.');
        let name = dress::base_name(&self.settings, instance);
        manifest::cluster_place(&name, &namespace, domain, kinds)
    }

    /// Whether an instance of the plan with default parameters would have this object.
    fn would_have(&self, offering: &Offering, plan: &Plan, object: &ObjectTemplate) -> bool {
        let Some(when) = &object.when else {
            return true;
        };
        let kinds: Vec<String> = offering
            .resources
            .iter()
            .filter(|r| self.kinds.known(&r.api_version, &r.kind).is_some())
            .map(|r| format!("{}/{}", r.api_version, r.kind))
            .collect();
        let instance = InstanceRef {
            iid: "a".repeat(26),
            offering: offering.name.clone(),
            plan: plan.name.clone(),
            ..InstanceRef::default()
        };
        let parameters = params::with_defaults(&plan.schemas.create, &Map::new());
        let facts = self.facts(&instance, &kinds);
        let mut scope = manifest::instance_scope(&instance.iid, "", offering, plan, &parameters, &facts);
        scope.insert("plan".into(), Value::Object(plan.values.clone()));
        // What cannot be told is taken as wanted: never accept what must fail.
        when.fill(&scope) != Ok(Value::Bool(false))
    }
}

#[async_trait]
impl Provisioner for KubernetesProvisioner {
    fn name(&self) -> &'static str {
        manifest::KUBERNETES
    }

    fn offers(&self, offering: &Offering, plan: &Plan) -> Result<(), String> {
        if !plan.runs_on.iter().any(|word| word == manifest::KUBERNETES) {
            return Err(format!("the plan {} does not run on Kubernetes", plan.name));
        }
        if offering.objects.is_empty() && offering.process.is_some() {
            return Err(format!(
                "{} is not described as Kubernetes objects",
                offering.name
            ));
        }
        for object in &offering.objects {
            let (version, kind) = (object.api_version.as_str(), object.kind.as_str());
            let there = Kinds::usual(version, kind).or_else(|| self.kinds.known(version, kind));
            if there.is_none() && self.would_have(offering, plan, object) {
                return Err(kinds::missing(version, kind));
            }
        }
        Ok(())
    }

    async fn place(&self, instance: &InstanceRef, offering: &Offering) -> PortResult<Map<String, Value>> {
        let kinds = self.kinds_for(instance, offering).await?;
        Ok(self.facts(instance, &kinds))
    }

    fn inventory(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Vec<ObjectRef>> {
        Ok(inventory::of(&dress::dressed(&self.settings, instance, desired)?))
    }

    async fn apply(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        self.apply_all(instance, desired).await
    }

    async fn observe(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Observation> {
        self.stir.begin(&instance.iid);
        let seen = self.look_at(instance, desired).await;
        match seen {
            Ok(Observation::Ready(_) | Observation::Failed(_)) => self.stir.forget(&instance.iid),
            _ => self.stir.end(&instance.iid),
        }
        seen
    }

    async fn changed(&self) -> String {
        self.stir.next().await
    }

    async fn open(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        self.open_up(instance, desired).await
    }

    async fn reach(&self, instance: &InstanceRef, endpoint: &Endpoint) -> PortResult<Endpoint> {
        self.way_to(instance, endpoint).await
    }

    async fn drift(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Vec<String>> {
        self.drifted(instance, desired).await
    }

    async fn remove(&self, instance: &InstanceRef, volumes: Volumes) -> PortResult<Removal> {
        self.stir.begin(&instance.iid);
        let left = self.remove_all(instance, volumes).await;
        match left {
            Ok(Removal::Gone) => self.stir.forget(&instance.iid),
            _ => self.stir.end(&instance.iid),
        }
        left
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        self.list_all().await
    }

    /// Deployments and StatefulSets bring their pods back; what else was changed is the matter of `drift`.
    fn supervises(&self) -> bool {
        false
    }

    fn keeps_volumes(&self) -> bool {
        true
    }
}
