//! A service instance: what the platform asked for and where it stands.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Milliseconds since the Unix epoch, as the `Clock` port gives them.
pub type Millis = i64;

/// Where an instance is in its life. Stored as the lower-case word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// A provision operation is open.
    Provisioning,
    /// The last provision failed; whatever it made is still there and DELETE removes it (D-08).
    ProvisionFailed,
    /// Provisioned and not being changed.
    Ready,
    /// An update operation is open.
    Updating,
    /// A deprovision operation is open.
    Deprovisioning,
    /// The last deprovision failed; it may be deleted again (D-10).
    DeprovisionFailed,
    /// Removed. The row stays as a tombstone for the retention time (Z-01).
    Gone,
}

impl InstanceState {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::ProvisionFailed => "provision_failed",
            Self::Ready => "ready",
            Self::Updating => "updating",
            Self::Deprovisioning => "deprovisioning",
            Self::DeprovisionFailed => "deprovision_failed",
            Self::Gone => "gone",
        }
    }

    /// The state a stored word means.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "provisioning" => Self::Provisioning,
            "provision_failed" => Self::ProvisionFailed,
            "ready" => Self::Ready,
            "updating" => Self::Updating,
            "deprovisioning" => Self::Deprovisioning,
            "deprovision_failed" => Self::DeprovisionFailed,
            "gone" => Self::Gone,
            _ => return None,
        })
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The attributes that make two provision requests "identical" (P-06): not context, not maintenance_info.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceAttributes {
    /// The offering's id.
    pub service_id: String,
    /// The plan's id.
    pub plan_id: String,
    /// As the platform sent it; empty when absent.
    #[serde(default)]
    pub organization_guid: String,
    /// As the platform sent it; empty when absent.
    #[serde(default)]
    pub space_guid: String,
    /// As the platform sent them; absent = empty.
    #[serde(default)]
    pub parameters: Map<String, Value>,
}

/// A row of `instances`.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The broker's own name: `names::iid`.
    pub iid: String,
    /// The platform it belongs to.
    pub platform: String,
    /// The platform's id for it, an opaque string.
    pub instance_id: String,
    /// What it is now (the last applied values, G-09).
    pub attributes: InstanceAttributes,
    /// Where it is in its life.
    pub state: InstanceState,
    /// False after a failed update or deprovision that left it broken.
    pub usable: bool,
    /// The context object of the last request that carried one.
    pub context: Option<Value>,
    /// The maintenance version it runs (G-06).
    pub maintenance_version: Option<String>,
    /// Fixed in the first response (P-03).
    pub dashboard_url: Option<String>,
    /// What the provisioner chose and must keep: ports, directories, host. Not secret.
    pub facts: Map<String, Value>,
    /// Named endpoints as last observed.
    pub endpoints: Vec<Endpoint>,
    /// When the row was made.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Millis,
    /// Of a deleted instance: until when its volumes are kept, so that it can be brought back.
    pub retained_until: Option<Millis>,
}

/// An address an instance answers on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The name `process.yaml` or a Service's port gives it, such as `client`.
    pub name: String,
    /// Host name or address an application can use.
    pub host: String,
    /// TCP port.
    pub port: u16,
}
