//! What the configuration says of a cluster, in the adapter's terms.

use crate::adapters::kubernetes::{KubernetesSettings, Transport};
use crate::config::{self, Tenancy};
use std::time::Duration;

/// Settings of the Kubernetes provisioner, as the configuration has them.
pub fn kubernetes_settings(section: &config::Kubernetes) -> KubernetesSettings {
    let from = section.clone();
    KubernetesSettings {
        kubeconfig: from.kubeconfig,
        context: from.context,
        shared_namespace: (from.tenancy == Tenancy::Shared).then_some(from.namespace),
        broker_namespace: from.broker_namespace,
        monitoring_namespace: from.monitoring_namespace,
        consumer_labels: from.consumer_labels,
        namespace_labels: from.namespace_labels,
        transport: match from.transport {
            config::Transport::Auto => Transport::Auto,
            config::Transport::Direct => Transport::Direct,
            config::Transport::PortForward => Transport::PortForward,
        },
        cluster_domain: from.cluster_domain,
        registry: from.images.registry,
        replace: from.images.replace,
        storage_class: from.storage_class,
        priority_class: from.priority_class,
        requests_at_once: from.requests_at_once,
        request_limit: Duration::from_secs(from.request_seconds),
    }
}
