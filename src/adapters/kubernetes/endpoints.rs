//! Where an instance answers.
use super::KubernetesSettings;
use crate::domain::instance::Endpoint;
use serde_json::Value;

/// The endpoints that annotated Services make, rendered or live.
pub(super) fn of(_settings: &KubernetesSettings, _namespace: &str, _services: &[&Value]) -> Vec<Endpoint> {
    Vec::new()
}
