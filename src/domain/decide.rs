//! What a request means for what exists: pure decisions, one function per mutating call.
//!
//! Each follows the order of checks of osb-rules §16 from step 6 on; steps 1 to 5 are `http`'s.
//! The rule numbers in comments are those of the protocol digest the tests are named after.

use super::binding::{Binding, BindingAttributes, BindingState};
use super::catalog::{Catalog, Offering, Plan};
use super::delivery::{Handing, Ways};
use super::error::{Error, ErrorKind};
use super::instance::{Instance, InstanceAttributes, InstanceState, Millis};
use super::operation::{OperationKind, UpdateTarget};
use super::params;
use super::request::{Bind, Delete, Provision, Update};
use std::sync::Arc;

mod rotation;

pub use rotation::{RotateDecision, rotate};

/// The open operation of a subject, as far as deciding needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenOperation {
    /// Token.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// For an update: what it is to reach.
    pub target: Option<UpdateTarget>,
}

/// An instance with what is going on around it.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceNow {
    /// The row.
    pub instance: Instance,
    /// Its own open operation.
    pub open: Option<OpenOperation>,
    /// How many operations on its bindings are open.
    pub open_on_bindings: i64,
    /// How many bindings a platform may still know.
    pub bindings: i64,
}

/// A binding with its own open operation.
#[derive(Debug, Clone, PartialEq)]
pub struct BindingNow {
    /// The row.
    pub binding: Binding,
    /// Its own open operation.
    pub open: Option<OpenOperation>,
}

/// An offering and one of its plans.
pub type Picked = (Arc<Offering>, Arc<Plan>);

/// What a PUT instance comes to.
#[derive(Debug, Clone)]
pub enum ProvisionDecision {
    /// Insert (or, over a tombstone or a failed attempt, replace) the row and open a provision.
    Create(Picked),
    /// Identical and complete: 200 (P-04).
    Exists,
    /// Identical and running: 202 with the same operation (P-05).
    Running(String),
}

/// What a PATCH comes to.
#[derive(Debug, Clone)]
pub enum UpdateDecision {
    /// Open an update towards this target.
    Start(Picked, Box<UpdateTarget>),
    /// Nothing to change on the service: 200; the context is stored all the same (U-02, U-11).
    Nothing,
    /// Identical and running (U-03).
    Running(String),
}

/// What a DELETE instance comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum DeprovisionDecision {
    /// Open a deprovision.
    Start {
        /// The operation to close first (D-07).
        supersede: Option<String>,
    },
    /// Identical and running (D-02).
    Running(String),
}

/// What a PUT binding comes to.
#[derive(Debug, Clone)]
pub enum BindDecision {
    /// Write the row with these attributes (inherited ones filled in), handed over like this, and open a bind.
    Create(Picked, Box<(BindingAttributes, Handing)>),
    /// Identical and complete: 200 (B-03).
    Exists,
    /// Identical and running (B-04).
    Running(String),
}

/// What a DELETE binding comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum UnbindDecision {
    /// Open an unbind.
    Start {
        /// The operation to close first (N-07).
        supersede: Option<String>,
    },
    /// Identical and running (N-02).
    Running(String),
}

/// Decides PUT instance. `offered` says which plans new instances may have.
pub fn provision(
    catalog: &Catalog,
    offered: &dyn Fn(&Offering, &Plan) -> bool,
    request: &Provision,
    found: Option<&InstanceNow>,
) -> Result<ProvisionDecision, Error> {
    let asked = &request.attributes;
    let (offering, plan) = pick(catalog, &asked.service_id, &asked.plan_id)?;
    if found.is_some_and(|now| now.instance.retained_until.is_some()) {
        return Err(Error::conflict(
            "A service instance with this id was deleted and its volumes are still kept. Use another id, or ask the operator to bring it back (chandler instances undelete) or to let it go (chandler instances purge).",
        ));
    }
    let alive = found.filter(|now| now.instance.state != InstanceState::Gone);
    if let Some(now) = alive {
        // 7: identical or different comes before every other rule.
        let same = now.instance.attributes == *asked;
        match (now.instance.state, &now.open) {
            (InstanceState::Provisioning, Some(open)) if same => {
                return flagged(request.accepts_incomplete)
                    .map(|()| ProvisionDecision::Running(open.id.clone()));
            }
            (InstanceState::Ready, _) if same => return Ok(ProvisionDecision::Exists),
            (InstanceState::Provisioning | InstanceState::Ready | InstanceState::ProvisionFailed, _)
                if !same =>
            {
                return Err(Error::conflict(format!(
                    "A service instance with this id exists with other attributes ({}). Use another id, or delete that instance first.",
                    differing(&now.instance.attributes, asked)
                )));
            }
            _ => {}
        }
    }
    if !offered(&offering, &plan) {
        return Err(Error::bad_request(format!(
            "plan_id: the plan {}/{} cannot be provisioned by this broker. GET /v2/catalog lists the plans that can.",
            offering.name, plan.name
        )));
    }
    flagged(request.accepts_incomplete)?;
    maintenance(&plan, request.maintenance_version.as_deref())?;
    params::check(&plan.schemas.create, &asked.parameters).map_err(Error::bad_request)?;
    match alive.map(|now| now.instance.state) {
        // P-18: identical after a failure is a fresh attempt.
        None | Some(InstanceState::ProvisionFailed) => Ok(ProvisionDecision::Create((offering, plan))),
        // P-17, and a delete that failed: the instance is on its way out.
        Some(_) => Err(Error::concurrency()),
    }
}

/// Decides PATCH instance.
pub fn update(
    catalog: &Catalog,
    offered: &dyn Fn(&Offering, &Plan) -> bool,
    request: &Update,
    found: Option<&InstanceNow>,
) -> Result<UpdateDecision, Error> {
    let now = found
        .filter(|now| now.instance.state != InstanceState::Gone)
        .ok_or_else(unknown_instance)?;
    let current = &now.instance.attributes;
    let offering = catalog
        .offering(&request.service_id)
        .ok_or_else(|| unknown_service(&request.service_id))?;
    if request.service_id != current.service_id {
        return Err(Error::bad_request(
            "service_id: this instance belongs to another offering; send the service_id it was created with.",
        ));
    }
    let plan_id = request.plan_id.as_deref().unwrap_or(&current.plan_id);
    // C-17: a plan that left the catalog may stay, but not be changed to.
    let plan = offering.plans.iter().find(|p| p.id == plan_id);
    let Some(plan) = plan else {
        return Err(Error::bad_request(format!(
            "plan_id: the offering {} has no plan with this id.",
            offering.name
        )));
    };
    let target = target(now, plan, request);
    let changing_plan = plan_id != current.plan_id;
    let asked_version = request.maintenance_version.as_ref();
    // U-18: an update of an unusable instance may repair it, so it runs even when it changes nothing.
    let changes = target.attributes != *current
        || !now.instance.usable
        || asked_version.is_some_and(|v| now.instance.maintenance_version.as_ref() != Some(v));

    // 7
    if let Some(open) = now
        .open
        .as_ref()
        .filter(|open| open.kind == OperationKind::Update)
        && let Some(running) = &open.target
        && changes
        && running.attributes == target.attributes
        && asked_version.is_none_or(|v| running.maintenance_version.as_ref() == Some(v))
    {
        return flagged(request.accepts_incomplete).map(|()| UpdateDecision::Running(open.id.clone()));
    }
    // 8
    flagged(request.accepts_incomplete)?;
    // 9
    if changing_plan {
        plan_change(offering, plan, &current.plan_id, offered)?;
    }
    maintenance(plan, request.maintenance_version.as_deref())?;
    // 10
    params::check(&plan.schemas.update, &request.parameters).map_err(Error::bad_request)?;
    params::check(&plan.schemas.create, &target.attributes.parameters).map_err(|why| {
        Error::bad_request(format!(
            "With this update the instance's parameters would not fit the plan {}: {why}",
            plan.name
        ))
    })?;
    // 11
    if now.open.is_some() || now.open_on_bindings > 0 {
        return Err(Error::concurrency());
    }
    match now.instance.state {
        InstanceState::Ready => {}
        InstanceState::ProvisionFailed => {
            return Err(Error::bad_request(
                "This instance was never provisioned successfully, so there is nothing to update. Delete it and create it again.",
            ));
        }
        InstanceState::DeprovisionFailed => {
            return Err(Error::bad_request(
                "This instance is partly deleted and cannot be updated. Delete it again.",
            ));
        }
        _ => return Err(Error::concurrency()),
    }
    if changes {
        Ok(UpdateDecision::Start(
            (offering.clone(), plan.clone()),
            Box::new(target),
        ))
    } else {
        Ok(UpdateDecision::Nothing)
    }
}

/// What the instance would be after this update.
fn target(now: &InstanceNow, plan: &Plan, request: &Update) -> UpdateTarget {
    let current = &now.instance.attributes;
    let mut attributes = InstanceAttributes {
        plan_id: plan.id.clone(),
        ..current.clone()
    };
    for (name, value) in &request.parameters {
        if value.is_null() {
            attributes.parameters.remove(name);
        } else {
            attributes.parameters.insert(name.clone(), value.clone());
        }
    }
    UpdateTarget {
        attributes,
        // G-06: whatever the update was for, it renders the plan as the catalog has it now.
        maintenance_version: plan.maintenance_version.clone(),
    }
}

/// U-08.
fn plan_change(
    offering: &Offering,
    to: &Plan,
    from_id: &str,
    offered: &dyn Fn(&Offering, &Plan) -> bool,
) -> Result<(), Error> {
    let refuse = |why: String| {
        let mut error = Error::new(ErrorKind::PlanChangeNotSupported, why);
        error.update_repeatable = Some(false);
        error.instance_usable = Some(true);
        Err(error)
    };
    let Some(from) = offering.plans.iter().find(|p| p.id == from_id) else {
        return refuse(format!(
            "The instance's present plan is no longer in the catalog, so it cannot be changed to {}. Create a new instance.",
            to.name
        ));
    };
    if !from.plan_updateable {
        return refuse(format!(
            "Instances of the plan {} cannot change their plan. Create a new instance of {}.",
            from.name, to.name
        ));
    }
    if !from.updates_to.contains(&to.name) || !offered(offering, to) {
        let possible: Vec<_> = offering
            .plans
            .iter()
            .filter(|p| from.updates_to.contains(&p.name) && offered(offering, p))
            .map(|p| p.name.as_str())
            .collect();
        return refuse(format!(
            "An instance of the plan {} cannot change to {}. {}",
            from.name,
            to.name,
            if possible.is_empty() {
                "There is no plan it can change to here; create a new instance.".to_owned()
            } else {
                format!("It can change to: {}.", possible.join(", "))
            }
        ));
    }
    Ok(())
}

/// Decides DELETE instance.
pub fn deprovision(
    refuse_with_bindings: bool,
    request: &Delete,
    found: Option<&InstanceNow>,
) -> Result<DeprovisionDecision, Error> {
    // D-03: missing ids win even over an unknown instance.
    let service_id = required(request.service_id.as_deref(), "service_id")?;
    required(request.plan_id.as_deref(), "plan_id")?;
    // D-05 before D-04.
    flagged(request.accepts_incomplete)?;
    let now = found
        .filter(|now| now.instance.state != InstanceState::Gone)
        .ok_or_else(|| Error::gone("There is no service instance with this id (any more)."))?;
    if service_id != now.instance.attributes.service_id {
        return Err(Error::bad_request(
            "service_id: this instance belongs to another offering; send the service_id it was created with.",
        ));
    }
    if let Some(open) = &now.open
        && open.kind == OperationKind::Deprovision
    {
        return Ok(DeprovisionDecision::Running(open.id.clone()));
    }
    // D-06: work on bindings is short and not stopped half-way.
    if now.open_on_bindings > 0 {
        return Err(Error::concurrency());
    }
    if refuse_with_bindings && now.bindings > 0 {
        return Err(Error::bad_request(format!(
            "This instance still has {} service binding(s). Unbind them first.",
            now.bindings
        )));
    }
    Ok(DeprovisionDecision::Start {
        supersede: now.open.as_ref().map(|open| open.id.clone()),
    })
}

/// Decides PUT binding. `predecessor` is the row its `predecessor_binding_id` names on the same instance.
pub fn bind(
    catalog: &Catalog,
    ways: &Ways,
    request: &Bind,
    instance: Option<&InstanceNow>,
    found: Option<&BindingNow>,
    predecessor: Option<&BindingNow>,
    now: Millis,
) -> Result<BindDecision, Error> {
    // B-10
    let on = instance
        .filter(|on| on.instance.state != InstanceState::Gone)
        .ok_or_else(unknown_instance)?;
    let own = &on.instance.attributes;
    let asked = &request.attributes;
    let rotation = asked.predecessor_binding_id.is_some();
    // a rotation may leave the ids out; checked when present.
    let service_id = filled(&asked.service_id, rotation, &own.service_id);
    let plan_id = filled(&asked.plan_id, rotation, &own.plan_id);
    let (offering, plan) = pick(catalog, service_id, plan_id)?;
    // R-03, before 7: such a request is wrong whatever exists.
    if asked.predecessor_binding_id.as_deref() == Some(request.binding_id.as_str()) {
        return Err(Error::bad_request(
            "predecessor_binding_id: a binding cannot follow itself; choose a new binding id.",
        ));
    }

    // 7, and B-05 precedes "does not fit the instance".
    let alive = found.filter(|b| b.binding.state != BindingState::Gone);
    if alive.is_none() && found.is_some_and(|b| b.open.is_some()) {
        // The last look at what the binding of this id left outside: it takes a moment.
        return Err(Error::concurrency());
    }
    if let Some(there) = alive {
        let same = there.binding.requested == *asked;
        match (there.binding.state, &there.open) {
            (BindingState::Ready, open)
                if same && !there.binding.is_expired(now) && open.as_ref().is_none_or(in_place) =>
            {
                return Ok(BindDecision::Exists);
            }
            (BindingState::Creating, Some(open)) if same => {
                return flagged(request.accepts_incomplete).map(|()| BindDecision::Running(open.id.clone()));
            }
            (BindingState::Deleting | BindingState::DeleteFailed, _) | (_, Some(_)) if same => {
                return Err(Error::concurrency());
            }
            (BindingState::Failed, None) if same => {}
            (BindingState::Expired | BindingState::Ready, _) if same => {
                return Err(Error::conflict(
                    "The binding with this id has expired. Unbind it, or bind with a new id.",
                ));
            }
            _ => {
                return Err(Error::conflict(
                    "A service binding with this id exists with other attributes. Use another id, or unbind it first.",
                ));
            }
        }
    }
    if service_id != own.service_id || plan_id != own.plan_id {
        let field = if service_id == own.service_id {
            "plan_id"
        } else {
            "service_id"
        };
        return Err(Error::bad_request(format!(
            "{field}: not the instance's own. Send the service_id and plan_id the instance has now."
        )));
    }
    if !plan.bindable || offering.binding.is_none() {
        return Err(Error::bad_request(format!(
            "The plan {}/{} is not bindable.",
            offering.name, plan.name
        )));
    }
    let attributes = if rotation {
        inherit(asked, &plan, predecessor, now)?
    } else {
        asked.clone()
    };
    // 9
    if offering.binding.as_ref().is_some_and(|b| b.requires_app) && app_guid(&attributes).is_none() {
        return Err(Error::requires_app());
    }
    // 10
    params::check(&plan.schemas.bind, &ways.of_the_plan(&attributes.parameters))
        .map_err(Error::bad_request)?;
    let before = predecessor.map(|b| b.binding.delivery);
    let handing = ways.decide(&plan.delivery, before, &attributes.parameters)?;
    if let (Some(template), Some(role)) = (
        &offering.binding,
        attributes
            .parameters
            .get("role")
            .and_then(serde_json::Value::as_str),
    ) && !template.roles.iter().any(|r| r == role)
    {
        return Err(Error::bad_request(format!(
            "parameters.role: choose one of {}.",
            template.roles.join(", ")
        )));
    }
    // 11
    if on.open.is_some() {
        return Err(Error::concurrency());
    }
    match on.instance.state {
        InstanceState::Ready => Ok(BindDecision::Create(
            (offering, plan),
            Box::new((attributes, handing)),
        )),
        InstanceState::ProvisionFailed => Err(Error::bad_request(
            "This instance was never provisioned successfully and cannot be bound. Delete it and create it again.",
        )),
        InstanceState::DeprovisionFailed => Err(Error::bad_request(
            "This instance is partly deleted and cannot be bound. Delete it again.",
        )),
        _ => Err(Error::concurrency()),
    }
}

/// Work under which a binding stays what it is.
fn in_place(open: &OpenOperation) -> bool {
    matches!(open.kind, OperationKind::Rotate | OperationKind::Retire)
}

fn filled<'a>(asked: &'a str, rotation: bool, own: &'a str) -> &'a str {
    if asked.is_empty() && rotation { own } else { asked }
}

///
fn inherit(
    asked: &BindingAttributes,
    plan: &Plan,
    predecessor: Option<&BindingNow>,
    now: Millis,
) -> Result<BindingAttributes, Error> {
    let refuse = |why: &str| Err(Error::bad_request(format!("predecessor_binding_id: {why}")));
    if !plan.binding_rotatable {
        return refuse("bindings of this plan cannot be rotated; make a new binding without it.");
    }
    let Some(before) = predecessor else {
        return refuse("there is no such binding on this instance.");
    };
    match before.binding.state {
        BindingState::Creating => return Err(Error::concurrency()),
        BindingState::Ready if !before.binding.is_expired(now) => {}
        BindingState::Ready | BindingState::Expired => {
            return refuse("that binding has expired; make a new binding without it.");
        }
        _ => {
            return refuse("that binding is being deleted or was never made; make a new binding without it.");
        }
    }
    let mut attributes = asked.clone();
    let old = &before.binding.attributes;
    attributes.service_id.clone_from(&old.service_id);
    attributes.plan_id.clone_from(&plan.id);
    if attributes.parameters.is_empty() {
        attributes.parameters.clone_from(&old.parameters);
    }
    if attributes.bind_resource.is_none() {
        attributes.bind_resource.clone_from(&old.bind_resource);
    }
    if attributes.app_guid.is_none() {
        attributes.app_guid.clone_from(&old.app_guid);
    }
    Ok(attributes)
}

fn app_guid(attributes: &BindingAttributes) -> Option<&str> {
    attributes
        .bind_resource
        .as_ref()
        .and_then(|r| r.get("app_guid"))
        .and_then(serde_json::Value::as_str)
        .filter(|guid| !guid.is_empty())
        .or(attributes.app_guid.as_deref())
        .filter(|guid| !guid.is_empty())
}

/// Decides DELETE binding. `catalog` is asked only whether a plan id belongs to the offering (N-08).
pub fn unbind(
    catalog: &Catalog,
    request: &Delete,
    instance: Option<&InstanceNow>,
    found: Option<&BindingNow>,
) -> Result<UnbindDecision, Error> {
    let alive = found.filter(|b| b.binding.state != BindingState::Gone);
    let (Some(there), Some(on)) = (alive, instance) else {
        return Err(Error::gone(
            "There is no service binding with this id (any more).",
        ));
    };
    // N-03 loses to N-04.
    let service_id = required(request.service_id.as_deref(), "service_id")?;
    let plan_id = required(request.plan_id.as_deref(), "plan_id")?;
    let own = &there.binding.attributes;
    if service_id != own.service_id {
        return Err(Error::bad_request(
            "service_id: not the one this binding was made with.",
        ));
    }
    let of_offering = catalog
        .offering(service_id)
        .is_none_or(|o| o.plans.iter().any(|p| p.id == plan_id));
    if plan_id != own.plan_id && plan_id != on.instance.attributes.plan_id && !of_offering {
        return Err(Error::bad_request(
            "plan_id: not a plan of this binding's offering.",
        ));
    }
    if let Some(open) = &there.open {
        return match open.kind {
            OperationKind::Unbind if request.accepts_incomplete => {
                Ok(UnbindDecision::Running(open.id.clone()))
            }
            OperationKind::Unbind => Err(Error::async_required()),
            // N-07 for a bind; a revocation of our own does the same work, so it is taken over.
            _ => Ok(UnbindDecision::Start {
                supersede: Some(open.id.clone()),
            }),
        };
    }
    if on.open.is_some() {
        return Err(Error::concurrency());
    }
    Ok(UnbindDecision::Start { supersede: None })
}

fn pick(catalog: &Catalog, service_id: &str, plan_id: &str) -> Result<Picked, Error> {
    let offering = catalog
        .offering(service_id)
        .ok_or_else(|| unknown_service(service_id))?;
    let plan = offering.plans.iter().find(|p| p.id == plan_id).ok_or_else(|| {
        Error::bad_request(format!(
            "plan_id: the offering {} has no plan with this id. GET /v2/catalog lists them.",
            offering.name
        ))
    })?;
    Ok((offering.clone(), plan.clone()))
}

/// P-12 to P-14, U-10.
fn maintenance(plan: &Plan, asked: Option<&str>) -> Result<(), Error> {
    match asked {
        Some(version) if plan.maintenance_version.as_deref() != Some(version) => Err(Error::new(
            ErrorKind::MaintenanceInfoConflict,
            format!(
                "The maintenance_info.version for the requested plan is {}. Fetch the catalog again and repeat the request.",
                plan.maintenance_version.as_deref().unwrap_or("not set")
            ),
        )),
        _ => Ok(()),
    }
}

fn flagged(accepts_incomplete: bool) -> Result<(), Error> {
    if accepts_incomplete {
        Ok(())
    } else {
        Err(Error::async_required())
    }
}

fn required<'a>(value: Option<&'a str>, name: &str) -> Result<&'a str, Error> {
    value.filter(|v| !v.is_empty()).ok_or_else(|| {
        Error::bad_request(format!(
            "{name}: this query parameter is required and must not be empty."
        ))
    })
}

fn unknown_instance() -> Error {
    Error::not_found("There is no service instance with this id.")
}

fn unknown_service(_id: &str) -> Error {
    Error::bad_request("service_id: the catalog has no offering with this id. GET /v2/catalog lists them.")
}

fn differing(have: &InstanceAttributes, asked: &InstanceAttributes) -> String {
    let mut fields = Vec::new();
    for (name, differs) in [
        ("service_id", have.service_id != asked.service_id),
        ("plan_id", have.plan_id != asked.plan_id),
        (
            "organization_guid",
            have.organization_guid != asked.organization_guid,
        ),
        ("space_guid", have.space_guid != asked.space_guid),
        ("parameters", have.parameters != asked.parameters),
    ] {
        if differs {
            fields.push(name);
        }
    }
    fields.join(", ")
}

#[cfg(test)]
mod tests;
