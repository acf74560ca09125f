//! What a platform asks and what it is answered, free of HTTP: the words `http` and `engine` share.
//!
//! `http` has checked shape and required members (400) before one of these exists; everything
//! after that (osb-rules §16, steps 6 to 12) is decided from them.

use super::binding::BindingAttributes;
use super::instance::InstanceAttributes;
use super::operation::OperationState;
use serde_json::{Map, Value};

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Caller {
    /// Name of the platform, from its credentials.
    pub platform: String,
    /// `X-Broker-API-Originating-Identity`, parsed: platform word and JSON object.
    pub originating: Option<(String, Value)>,
    /// `X-Broker-API-Request-Identity`.
    pub request_id: Option<String>,
}

/// PUT instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provision {
    /// The platform's instance id.
    pub instance_id: String,
    /// What is asked for.
    pub attributes: InstanceAttributes,
    /// The context object, stored and not interpreted beyond `platform`.
    pub context: Option<Value>,
    /// `maintenance_info.version` when given.
    pub maintenance_version: Option<String>,
    /// `accepts_incomplete=true`.
    pub accepts_incomplete: bool,
}

/// PATCH instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Update {
    /// The platform's instance id.
    pub instance_id: String,
    /// Must be the instance's own.
    pub service_id: String,
    /// Absent = the plan stays.
    pub plan_id: Option<String>,
    /// Absent or empty = the parameters stay (U-07); else members are merged over the present ones.
    pub parameters: Map<String, Value>,
    /// Replaces the stored context.
    pub context: Option<Value>,
    /// `maintenance_info.version` when given.
    pub maintenance_version: Option<String>,
    /// `accepts_incomplete=true`.
    pub accepts_incomplete: bool,
}

/// DELETE instance or binding. Missing ids are `None`: what that means depends on what exists (D-03, N-03).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delete {
    /// The platform's instance id.
    pub instance_id: String,
    /// The platform's binding id, for unbind.
    pub binding_id: Option<String>,
    /// Query member; empty counts as missing.
    pub service_id: Option<String>,
    /// Query member; empty counts as missing.
    pub plan_id: Option<String>,
    /// `accepts_incomplete=true`.
    pub accepts_incomplete: bool,
}

/// PUT binding.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bind {
    /// The platform's instance id.
    pub instance_id: String,
    /// The platform's binding id.
    pub binding_id: String,
    /// What is asked for. For a rotation `service_id` and `plan_id` may be empty.
    pub attributes: BindingAttributes,
    /// Accepted, not interpreted.
    pub context: Option<Value>,
    /// `accepts_incomplete=true`.
    pub accepts_incomplete: bool,
}

/// A rotation in place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rotate {
    /// The platform's binding id.
    pub binding_id: String,
    /// The platform's instance id, needed where the binding's alone does not say which is meant.
    pub instance_id: Option<String>,
}

/// What is told of a rotation that is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RotationView {
    /// Which generation of the credentials applications now find.
    pub generation: u32,
    /// Until when the former ones go on working, milliseconds.
    pub former_until: Option<i64>,
}

/// How a mutating call ended, as far as it is known when the answer leaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    /// Made by this call: 201.
    Created(T),
    /// Was so already, or done within this call: 200.
    Done(T),
    /// Going on: 202 with this operation token.
    Accepted {
        /// The token.
        operation: String,
        /// What may be told at once.
        body: T,
    },
}

/// What PUT, PATCH and GET tell of an instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceView {
    /// The offering's id.
    pub service_id: String,
    /// The plan's id.
    pub plan_id: String,
    /// Parameters as last applied.
    pub parameters: Map<String, Value>,
    /// Where to look at it.
    pub dashboard_url: Option<String>,
    /// The version it runs.
    pub maintenance_version: Option<String>,
    /// Instance `metadata.labels`.
    pub labels: Map<String, Value>,
}

/// What PUT and GET tell of a binding. Holds credentials: no `Debug` of its members in logs.
#[derive(Clone, Default, PartialEq)]
pub struct BindingView {
    /// The credentials object as the platform hands it on.
    pub credentials: super::secret::Secret,
    /// `endpoints` (B-16): host, ports as text, protocol.
    pub endpoints: Vec<EndpointView>,
    /// The binding's parameters.
    pub parameters: Map<String, Value>,
    /// Milliseconds; `http` formats it.
    pub expires_at: Option<i64>,
    /// Milliseconds; `http` formats it.
    pub renew_before: Option<i64>,
}

impl std::fmt::Debug for BindingView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BindingView").finish_non_exhaustive()
    }
}

/// One entry of `endpoints`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EndpointView {
    /// Host.
    pub host: String,
    /// Ports or ranges as text.
    pub ports: Vec<String>,
    /// `tcp`, `udp` or `all`.
    pub protocol: String,
}

/// What `last_operation` answers.
#[derive(Debug, Clone, PartialEq)]
pub struct LastOperation {
    /// `Open` is told as "in progress", `Superseded` as "failed".
    pub state: OperationState,
    /// Text for people.
    pub description: String,
    /// E-04.
    pub instance_usable: Option<bool>,
    /// E-04.
    pub update_repeatable: Option<bool>,
    /// It was a delete and it succeeded: Z-01 may answer 410.
    pub deleted: bool,
    /// Seconds after which asking again makes sense, while open.
    pub retry_after: u32,
}
