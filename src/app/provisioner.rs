//! Which provisioner a configuration means, with its settings.

use crate::adapters::kubernetes::{KubernetesProvisioner, KubernetesSettings, Transport};
use crate::adapters::local::{LocalProvisioner, LocalSettings};
use crate::config::{self, Config, ProvisionerKind, Tenancy};
use crate::domain::catalog::Catalog;
use crate::engine::Engine;
use crate::ports::{Clock, Provisioner, SecretProjection};
use anyhow::anyhow;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// How often the cluster is asked whether operators came or went.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The provisioner of a process.
#[derive(Clone)]
pub(super) enum Chosen {
    Local(Arc<LocalProvisioner>),
    Kubernetes(Arc<KubernetesProvisioner>),
}

impl Chosen {
    /// The one the configuration names; nothing is asked of a cluster yet.
    pub async fn by(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        Ok(match config.provisioner.kind {
            ProvisionerKind::Local => Self::Local(Arc::new(local_provisioner(config)?)),
            ProvisionerKind::Kubernetes => {
                Self::Kubernetes(Arc::new(kubernetes_provisioner(config, clock.clone()).await?))
            }
        })
    }

    /// Puts Secrets into applications' namespaces, where there is a cluster.
    pub fn projection(&self) -> Option<Arc<dyn SecretProjection>> {
        match self {
            Self::Local(_) => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.clone()),
        }
    }

    pub fn port(&self) -> Arc<dyn Provisioner> {
        match self {
            Self::Local(local) => local.clone(),
            Self::Kubernetes(kubernetes) => kubernetes.clone(),
        }
    }

    /// Learns what can be provisioned, before a catalog is put into use. Without an answer the broker starts all the
    /// same, and offers what every cluster can do.
    pub async fn prepare(&self, catalog: &Catalog) {
        if let Self::Kubernetes(kubernetes) = self
            && let Err(why) = kubernetes.discover(&catalog.offerings).await
        {
            warn!(detail = %why.detail, "the cluster does not say which custom resources it has; plans that need some are not offered yet");
        }
    }

    /// Puts the catalog into use again whenever what can be provisioned has changed, until `stop`.
    pub async fn follow(self, engine: Arc<Engine>, stop: CancellationToken) {
        let Self::Kubernetes(kubernetes) = self else {
            return;
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                () = stop.cancelled() => return,
            }
            let catalog = engine.served().catalog.clone();
            // No answer changes nothing.
            if matches!(kubernetes.discover(&catalog.offerings).await, Ok(true)) {
                match engine.set_catalog(catalog).await {
                    Ok(()) => info!("the kinds the cluster has changed; the catalog follows"),
                    Err(error) => error!(error = %error, "the catalog cannot follow what the cluster has"),
                }
            }
        }
    }
}

/// The local provisioner a configuration describes.
pub fn local_provisioner(config: &Config) -> anyhow::Result<LocalProvisioner> {
    if config.provisioner.kind != ProvisionerKind::Local {
        return Err(anyhow!("The configured provisioner is not the local one."));
    }
    let local = &config.provisioner.local;
    LocalProvisioner::new(LocalSettings {
        root: std::path::absolute(&local.dir)?,
        port_range: local.ports.ports(),
        run_as: local.run_as.clone(),
    })
    .map_err(|e| anyhow!("provisioner.local: {} ({})", e.message, e.detail))
}

/// The Kubernetes provisioner a configuration describes.
pub async fn kubernetes_provisioner(
    config: &Config,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<KubernetesProvisioner> {
    if config.provisioner.kind != ProvisionerKind::Kubernetes {
        return Err(anyhow!("The configured provisioner is not a Kubernetes cluster."));
    }
    let settings = kubernetes_settings(&config.provisioner.kubernetes, &config.bindings);
    KubernetesProvisioner::connect(settings, clock)
        .await
        .map_err(|e| anyhow!("provisioner.kubernetes: {} ({})", e.message, e.detail))
}

/// The configuration's section as the adapter takes it.
pub fn kubernetes_settings(section: &config::Kubernetes, bindings: &config::Bindings) -> KubernetesSettings {
    KubernetesSettings {
        kubeconfig: section.kubeconfig.clone(),
        context: section.context.clone(),
        shared_namespace: match section.tenancy {
            Tenancy::Instance => None,
            Tenancy::Shared => Some(section.namespace.clone()),
        },
        broker_namespace: section.broker_namespace.clone(),
        monitoring_namespace: section.monitoring_namespace.clone(),
        consumer_labels: section.consumer_labels.clone(),
        namespace_labels: section.namespace_labels.clone(),
        transport: match section.transport {
            config::Transport::Auto => Transport::Auto,
            config::Transport::Direct => Transport::Direct,
            config::Transport::PortForward => Transport::PortForward,
        },
        cluster_domain: section.cluster_domain.clone(),
        registry: section.images.registry.clone(),
        replace: section.images.replace.clone(),
        storage_class: section.storage_class.clone(),
        priority_class: section.priority_class.clone(),
        secret_namespaces: bindings.secret_namespaces.values().flatten().cloned().collect(),
        requests_at_once: section.requests_at_once,
        request_limit: Duration::from_secs(section.request_seconds),
    }
}
