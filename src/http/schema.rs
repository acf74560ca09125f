//! The JSON of the wire: what requests may hold and what answers look like.
//!
//! Requests are read leniently (unknown members are ignored, `null` is absent: E-08, E-10) and
//! then checked, so that a 400 can name the field. Answers leave out what has no value: no member
//! is ever `null` (Z-02). The OpenAPI document is generated from these types, so they are what is
//! served, and `tests` checks rendered answers against it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use validator::{Validate, ValidationError};

/// Derived names separate their parts by NUL, so no id may hold one.
fn no_nul(text: &str) -> Result<(), ValidationError> {
    if text.contains('\0') {
        return Err(ValidationError::new("nul"));
    }
    Ok(())
}

/// `maintenance_info` of a request; only `version` counts (P-12).
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct MaintenanceInfoBody {
    /// Must be the version the catalog names for the plan.
    pub version: Option<String>,
}

/// PUT /v2/service_instances/{instance_id}
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct ProvisionBody {
    /// Id of the offering in the catalog.
    #[validate(required, length(min = 1), custom(function = "no_nul"))]
    #[schema(required, nullable = false, min_length = 1)]
    pub service_id: Option<String>,
    /// Id of a plan of that offering.
    #[validate(required, length(min = 1), custom(function = "no_nul"))]
    #[schema(required, nullable = false, min_length = 1)]
    pub plan_id: Option<String>,
    /// Contextual data of the platform. `platform` is expected in it.
    #[schema(value_type = Option<Object>)]
    pub context: Option<Map<String, Value>>,
    /// Required and not empty, unless `context.platform` is given.
    #[validate(custom(function = "no_nul"))]
    pub organization_guid: Option<String>,
    /// Required and not empty, unless `context.platform` is given.
    #[validate(custom(function = "no_nul"))]
    pub space_guid: Option<String>,
    /// Checked against the plan's create schema.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// Which version of the plan is expected.
    pub maintenance_info: Option<MaintenanceInfoBody>,
}

/// PATCH /v2/service_instances/{instance_id}
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct UpdateBody {
    /// Id of the instance's offering.
    #[validate(required, length(min = 1), custom(function = "no_nul"))]
    #[schema(required, nullable = false, min_length = 1)]
    pub service_id: Option<String>,
    /// Absent: the plan stays.
    #[validate(custom(function = "no_nul"))]
    pub plan_id: Option<String>,
    /// Contextual data of the platform; replaces the stored one.
    #[schema(value_type = Option<Object>)]
    pub context: Option<Map<String, Value>>,
    /// Absent or empty: the parameters stay. Checked against the plan's update schema.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// Informational; the broker trusts its own records.
    #[schema(value_type = Option<Object>)]
    pub previous_values: Option<Map<String, Value>>,
    /// Which version of the plan is wanted.
    pub maintenance_info: Option<MaintenanceInfoBody>,
}

/// PUT /v2/service_instances/{instance_id}/service_bindings/{binding_id}
#[derive(Debug, Deserialize, Validate, ToSchema)]
pub struct BindBody {
    /// Id of the instance's offering. Required unless `predecessor_binding_id` is given.
    #[validate(custom(function = "no_nul"))]
    pub service_id: Option<String>,
    /// Id of the instance's plan. Required unless `predecessor_binding_id` is given.
    #[validate(custom(function = "no_nul"))]
    pub plan_id: Option<String>,
    /// Contextual data of the platform.
    #[schema(value_type = Option<Object>)]
    pub context: Option<Map<String, Value>>,
    /// Deprecated in favour of `bind_resource.app_guid`.
    #[validate(custom(function = "no_nul"))]
    pub app_guid: Option<String>,
    /// What the binding is for.
    #[schema(value_type = Option<BindResourceBody>)]
    pub bind_resource: Option<Map<String, Value>>,
    /// Checked against the plan's bind schema.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Map<String, Value>>,
    /// The binding this one takes over from.
    #[validate(custom(function = "no_nul"))]
    pub predecessor_binding_id: Option<String>,
}

/// `bind_resource` of a request; stored whole, also with members not listed here.
#[derive(Debug, Deserialize, ToSchema)]
pub struct BindResourceBody {
    /// The application.
    pub app_guid: Option<String>,
    /// The application's route.
    pub route: Option<String>,
}

/// Every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// One word in CamelCase; the reserved ones are AsyncRequired, ConcurrencyError, RequiresApp and MaintenanceInfoConflict.
    #[schema(min_length = 1, pattern = "^[A-Za-z]+$")]
    pub error: String,
    /// What happened, why, and what to do.
    #[schema(min_length = 1)]
    pub description: String,
    /// Only after a failed update or deprovision: whether the instance still works.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance_usable: Option<bool>,
    /// Only after a failed update: whether sending it again may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub update_repeatable: Option<bool>,
}

/// `{}`
#[derive(Debug, Serialize, ToSchema)]
pub struct EmptyBody {}

/// 202: the work goes on.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationBody {
    /// To be sent back as the query member `operation` of last_operation.
    #[schema(min_length = 1, max_length = 10000)]
    pub operation: String,
}

/// Metadata of an instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceMetadataBody<'a> {
    /// Labels the platform may attach to the instance.
    #[schema(value_type = Object)]
    pub labels: &'a Map<String, Value>,
}

/// PUT and PATCH of an instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceChangedBody<'a> {
    /// Only with 202: to be sent back as the query member `operation` of last_operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, min_length = 1, max_length = 10000)]
    pub operation: Option<&'a str>,
    /// Where people look at the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub dashboard_url: Option<&'a str>,
    /// Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<InstanceMetadataBody>)]
    pub metadata: Option<InstanceMetadataBody<'a>>,
}

/// The version an instance runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunningVersionBody<'a> {
    /// Semantic version.
    #[schema(value_type = String)]
    pub version: &'a str,
}

/// GET of an instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceBody<'a> {
    /// The offering.
    #[schema(value_type = String)]
    pub service_id: &'a str,
    /// The plan.
    #[schema(value_type = String)]
    pub plan_id: &'a str,
    /// Where people look at the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub dashboard_url: Option<&'a str>,
    /// Parameters as last applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub parameters: Option<&'a Map<String, Value>>,
    /// The version it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<RunningVersionBody>)]
    pub maintenance_info: Option<RunningVersionBody<'a>>,
    /// Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<InstanceMetadataBody>)]
    pub metadata: Option<InstanceMetadataBody<'a>>,
}

/// Metadata of a binding.
#[derive(Debug, Serialize, ToSchema)]
pub struct BindingMetadataBody {
    /// When it stops being valid, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub expires_at: Option<String>,
    /// When the platform should have rotated it, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub renew_before: Option<String>,
}

/// A network endpoint of a binding.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndpointBody<'a> {
    /// Host name or address.
    #[schema(value_type = String)]
    pub host: &'a str,
    /// Ports or ranges, as text.
    #[schema(value_type = Vec<String>, min_items = 1)]
    pub ports: &'a [String],
    /// `tcp`, `udp` or `all`.
    #[schema(value_type = String, pattern = "^(tcp|udp|all)$")]
    pub protocol: &'a str,
}

/// PUT and GET of a binding. Holds credentials: never logged, hence no `Debug`.
#[derive(Serialize, ToSchema)]
pub struct BindingBody<'a> {
    /// What the application connects with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub credentials: Option<&'a Map<String, Value>>,
    /// All endpoints the application needs; only for callers of 2.15 and later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Vec<EndpointBody>>)]
    pub endpoints: Option<Vec<EndpointBody<'a>>>,
    /// Only when fetched: the binding's parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub parameters: Option<&'a Map<String, Value>>,
    /// Metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub metadata: Option<BindingMetadataBody>,
}

/// A rotation in place that is done.
#[derive(Debug, Serialize, ToSchema)]
pub struct RotationBody {
    /// Which generation of the credentials applications now find; a version of the vault's KV store is one more.
    pub generation: u32,
    /// Until when the former credentials go on working, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub former_valid_until: Option<String>,
}

/// The states of an operation as platforms know them.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub enum StateWord {
    /// Accepted or running.
    #[serde(rename = "in progress")]
    InProgress,
    /// Ended well.
    #[serde(rename = "succeeded")]
    Succeeded,
    /// Ended badly.
    #[serde(rename = "failed")]
    Failed,
}

/// GET last_operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct LastOperationBody<'a> {
    /// Where it stands.
    pub state: StateWord,
    /// Text for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, min_length = 1)]
    pub description: Option<&'a str>,
    /// Only after a failed update or deprovision: whether the instance still works.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub instance_usable: Option<bool>,
    /// Only after a failed update: whether sending it again may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub update_repeatable: Option<bool>,
}

/// A parameters schema of the catalog.
#[derive(ToSchema)]
pub struct ParametersSchemaBody {
    /// JSON Schema draft-04.
    #[schema(value_type = Option<Object>, nullable = false)]
    pub parameters: Option<Value>,
}

/// Schemas for an instance's parameters.
#[derive(ToSchema)]
pub struct InstanceSchemasBody {
    /// For provision.
    #[schema(nullable = false)]
    pub create: Option<ParametersSchemaBody>,
    /// For update.
    #[schema(nullable = false)]
    pub update: Option<ParametersSchemaBody>,
}

/// Schemas for a binding's parameters.
#[derive(ToSchema)]
pub struct BindingSchemasBody {
    /// For bind.
    #[schema(nullable = false)]
    pub create: Option<ParametersSchemaBody>,
}

/// Schemas of a plan.
#[derive(ToSchema)]
pub struct SchemasBody {
    /// Of instances.
    #[schema(nullable = false)]
    pub service_instance: Option<InstanceSchemasBody>,
    /// Of bindings.
    #[schema(nullable = false)]
    pub service_binding: Option<BindingSchemasBody>,
}

/// The version of what a plan deploys now.
#[derive(ToSchema)]
pub struct PlanVersionBody {
    /// Semantic version 2.0.
    #[schema(min_length = 1)]
    pub version: String,
    /// What moving to that version means.
    #[schema(nullable = false)]
    pub description: Option<String>,
}

/// A plan of the catalog.
#[derive(ToSchema)]
pub struct PlanBody {
    /// Stable id.
    #[schema(min_length = 1)]
    pub id: String,
    /// Unique within the offering.
    #[schema(min_length = 1)]
    pub name: String,
    /// One sentence.
    #[schema(min_length = 1)]
    pub description: String,
    /// For people and platforms.
    #[schema(value_type = Option<Object>, nullable = false)]
    pub metadata: Option<Value>,
    /// Whether it costs nothing.
    #[schema(nullable = false)]
    pub free: Option<bool>,
    /// Wins over the offering's.
    #[schema(nullable = false)]
    pub bindable: Option<bool>,
    /// Whether `predecessor_binding_id` is accepted.
    #[schema(nullable = false)]
    pub binding_rotatable: Option<bool>,
    /// Wins over the offering's.
    #[schema(nullable = false)]
    pub plan_updateable: Option<bool>,
    /// Schemas of the parameters.
    #[schema(nullable = false)]
    pub schemas: Option<SchemasBody>,
    /// Seconds within which every operation has ended.
    #[schema(nullable = false)]
    pub maximum_polling_duration: Option<u32>,
    /// What would be deployed now.
    #[schema(nullable = false)]
    pub maintenance_info: Option<PlanVersionBody>,
}

/// An offering of the catalog.
#[derive(ToSchema)]
pub struct OfferingBody {
    /// Stable id.
    #[schema(min_length = 1)]
    pub id: String,
    /// Unique.
    #[schema(min_length = 1)]
    pub name: String,
    /// One sentence.
    #[schema(min_length = 1)]
    pub description: String,
    /// What clients select by.
    #[schema(nullable = false)]
    pub tags: Option<Vec<String>>,
    /// Permissions the platform must give.
    #[schema(nullable = false)]
    pub requires: Option<Vec<String>>,
    /// Whether bindings can be made.
    pub bindable: bool,
    /// Whether GET of an instance works.
    #[schema(nullable = false)]
    pub instances_retrievable: Option<bool>,
    /// Whether GET of a binding works.
    #[schema(nullable = false)]
    pub bindings_retrievable: Option<bool>,
    /// Whether updates that change only the context are handled.
    #[schema(nullable = false)]
    pub allow_context_updates: Option<bool>,
    /// For people and platforms.
    #[schema(value_type = Option<Object>, nullable = false)]
    pub metadata: Option<Value>,
    /// Whether instances may change their plan.
    #[schema(nullable = false)]
    pub plan_updateable: Option<bool>,
    /// At least one.
    #[schema(min_items = 1)]
    pub plans: Vec<PlanBody>,
}

/// GET /v2/catalog
#[derive(ToSchema)]
pub struct CatalogBody {
    /// The offerings.
    pub services: Vec<OfferingBody>,
}
