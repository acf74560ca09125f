//! What surrounds an instance.
use super::KubernetesSettings;
use crate::ports::InstanceRef;
use serde_json::Value;

/// What surrounds an instance, to be applied before its own objects.
pub(super) fn surroundings(
    _settings: &KubernetesSettings,
    _instance: &InstanceRef,
    _objects: &[Value],
) -> Vec<Value> {
    Vec::new()
}

/// The policy that lets applications in; none when nobody may or there is no endpoint.
pub(super) fn consumers(
    _settings: &KubernetesSettings,
    _instance: &InstanceRef,
    _desired_consumers: &[String],
    _objects: &[Value],
) -> Option<Value> {
    None
}
