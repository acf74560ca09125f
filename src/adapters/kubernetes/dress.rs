//! What the catalog renders, made into what goes to the API server.
use super::KubernetesSettings;
use crate::domain::manifest::Desired;
use crate::ports::{InstanceRef, ObjectRef, PortResult};
use serde_json::Value;
use std::fmt;

/// An object as it is applied, and what the broker has to know about it. May hold secrets: no readable `Debug`.
#[derive(Clone, PartialEq)]
pub(super) struct Dressed {
    /// By which names it is found again.
    pub reference: ObjectRef,
    /// Applied in rising order.
    pub phase: u16,
    /// See `manifest::ObjectSpec::ready`.
    pub ready: Option<String>,
    /// See `manifest::ObjectSpec::failed`.
    pub failed: Option<String>,
    /// The whole object.
    pub object: Value,
}

impl fmt::Debug for Dressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dressed")
            .field("reference", &self.reference)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Everything of an instance in phase order: surroundings, the plan's objects, the opening.
pub(super) fn dressed(
    _settings: &KubernetesSettings,
    _instance: &InstanceRef,
    _desired: &Desired,
) -> PortResult<Vec<Dressed>> {
    Ok(Vec::new())
}

/// The namespace an instance lives in.
pub(super) fn namespace(settings: &KubernetesSettings, iid: &str) -> String {
    settings
        .shared_namespace
        .clone()
        .unwrap_or_else(|| super::names::namespace(iid))
}

/// `name` in the catalog's expressions: unique in the instance's namespace.
pub(super) fn base_name(settings: &KubernetesSettings, instance: &InstanceRef) -> String {
    match settings.shared_namespace {
        Some(_) => format!("{}-{}", instance.offering, instance.iid),
        None => instance.offering.clone(),
    }
}
