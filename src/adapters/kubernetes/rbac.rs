//! The rights the broker needs in a cluster, no more.
use super::KubernetesSettings;
use crate::domain::catalog::Offering;
use serde_json::Value;
use std::sync::Arc;

/// What gives the broker's service account (namespace, name) its rights and bounds them.
pub fn manifests(
    _settings: &KubernetesSettings,
    _offerings: &[Arc<Offering>],
    _service_account: (&str, &str),
) -> Vec<Value> {
    Vec::new()
}

/// Manifests as one YAML text.
pub fn yaml(_manifests: &[Value]) -> String {
    String::new()
}
