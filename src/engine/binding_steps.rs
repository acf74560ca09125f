//! Steps of bind, unbind, revoke and settle. A failed bind is undone by the steps of an unbind: undo is the
//! delete path, not more code.
//!
//! What must stay true: the secret is kept before the backend hears of it, so a repeated `issue` sets the
//! same password and a crash leaves no user whose password nobody knows; a binding is answered only
//! after a log-in with its own credentials worked. What happens around the server is in `outside`, and a rotation in
//! place in `rotation_steps`.

use super::instance_steps::{revoked, target, unrenderable};
use super::runner::{Next, OnFailure, Step, ended_badly, following, succeeded};
use super::{Engine, outside, rotation_steps};
use crate::domain::binding::{Binding, BindingState};
use crate::domain::delivery::{Delivery, PARAMETERS};
use crate::domain::manifest::{self, BindingFacts};
use crate::domain::operation::OperationKind;
use crate::domain::params;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, Grant, NewUser, PortError, PortResult, Target, secret_name};
use crate::store::{Claimed, Fail, LookAgain, Progress};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Steps of a bind.
fn bind(engine: &Engine, delivery: Delivery) -> Vec<&'static str> {
    let mut steps = vec!["material", "issue", "verify"];
    steps.extend(outside::opening(engine, delivery));
    steps
}

/// Steps of an unbind, a revocation and the undo of a bind.
fn unbind(engine: &Engine, delivery: Delivery) -> Vec<&'static str> {
    let (mut steps, after) = outside::closing(engine, delivery);
    steps.push("revoke");
    steps.extend(after);
    steps.push("forget");
    steps
}

/// Steps of the last look at a binding that has ended: what a held-up worker brought back goes.
fn settle(engine: &Engine, delivery: Delivery) -> Vec<&'static str> {
    let (_, mut steps) = outside::closing(engine, delivery);
    steps.push("forget");
    steps
}

/// The steps of an operation on a binding, in order: those whose port is there and which its delivery wants.
pub(super) fn steps(engine: &Engine, claimed: &Claimed) -> Vec<&'static str> {
    let delivery = claimed.binding.as_ref().map_or(Delivery::Inline, |b| b.delivery);
    let operation = &claimed.operation;
    match operation.kind {
        OperationKind::Bind if operation.failing.is_none() => bind(engine, delivery),
        OperationKind::Rotate => rotation_steps::steps(engine, delivery, &operation.step),
        OperationKind::Retire => vec![rotation_steps::RETIRE],
        OperationKind::Settle => settle(engine, delivery),
        _ => unbind(engine, delivery),
    }
}

/// The step that an operation on a binding begins with.
pub(super) fn first(engine: &Engine, kind: OperationKind, delivery: Delivery) -> &'static str {
    let steps = match kind {
        OperationKind::Bind => bind(engine, delivery),
        OperationKind::Rotate => rotation_steps::steps(engine, delivery, ""),
        OperationKind::Retire => vec![rotation_steps::RETIRE],
        OperationKind::Settle => settle(engine, delivery),
        _ => unbind(engine, delivery),
    };
    // None of the lists is ever empty; an unknown step begins at the first.
    steps.first().copied().unwrap_or_default()
}

pub(super) async fn step(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let Some(binding) = &claimed.binding else {
        return Err(PortError::invalid(
            "The binding's row is missing; the operator has to look.",
        ));
    };
    if matches!(
        claimed.operation.kind,
        OperationKind::Rotate | OperationKind::Retire
    ) {
        return rotation_steps::step(engine, claimed, binding).await;
    }
    match claimed.operation.step.as_str() {
        "revoke" => revoke(engine, claimed, binding).await,
        "forget" => forget(engine, binding).await,
        "issue" | "verify" => {
            let name = secret_name::binding(&binding.iid, &binding.bid);
            let Some(stored) = engine.ports.secrets.get(&name).await? else {
                return Err(PortError::invalid(
                    "The binding's credentials are missing; bind again.",
                ));
            };
            let (mechanism, target) = needed(engine, claimed).await?;
            let (grant, user) = user(engine, binding, &stored, false);
            if claimed.operation.step == "issue" {
                mechanism.issue(&target, &grant, &user).await?;
            } else {
                mechanism.verify(&target, &grant, &user).await?;
            }
            Ok(Step::Done(Progress::default()))
        }
        "material" => material(engine, claimed, binding).await,
        _ => outside::step(engine, claimed, binding).await,
    }
}

pub(super) async fn needed(
    engine: &Engine,
    claimed: &Claimed,
) -> PortResult<(Arc<dyn CredentialMechanism>, Target)> {
    target(engine, &claimed.instance)
        .await?
        .ok_or_else(|| PortError::invalid("This offering has no way to make credentials."))
}

/// What the mechanism is given of a user whose material was kept. `second` = it has the binding's second name.
pub(super) fn user(engine: &Engine, binding: &Binding, stored: &Secret, second: bool) -> (Grant, NewUser) {
    let user = NewUser {
        handle: stored.text("handle").to_owned(),
        secret: member(stored, "user"),
    };
    (grant(engine, binding, stored.text("role"), second), user)
}

fn grant(engine: &Engine, binding: &Binding, role: &str, second: bool) -> Grant {
    let served = engine.served();
    let attributes = &binding.attributes;
    let mut own = attributes.parameters.clone();
    // The broker's own are nothing to a server, whether or not they still mean something here.
    own.retain(|name, _| !PARAMETERS.contains(&name.as_str()));
    let params = served
        .catalog
        .plan(&attributes.service_id, &attributes.plan_id)
        .map_or_else(
            || own.clone(),
            |(_, plan)| params::with_defaults(&plan.schemas.bind, &own),
        );
    Grant {
        bid: binding.bid.clone(),
        second,
        role: role.to_owned(),
        params,
        expires_at: binding.expires_at,
    }
}

async fn material(engine: &Engine, claimed: &Claimed, binding: &Binding) -> Result<Step, PortError> {
    let name = secret_name::binding(&binding.iid, &binding.bid);
    let stored = match engine.ports.secrets.get(&name).await? {
        Some(stored) => stored,
        None => {
            let made = make(engine, claimed, binding, false).await?;
            engine.ports.secrets.create(&name, &made).await?
        }
    };
    Ok(Step::Done(Progress {
        handle: Some(stored.text("handle").to_owned()),
        ..Progress::default()
    }))
}

/// Makes a user's secret, the credentials applications will get and what else must be kept of them; touches nothing.
pub(super) async fn make(
    engine: &Engine,
    claimed: &Claimed,
    binding: &Binding,
    second: bool,
) -> PortResult<Secret> {
    let (mechanism, target) = needed(engine, claimed).await?;
    let served = engine.served();
    let attributes = &binding.attributes;
    let Some((offering, plan)) = served.catalog.plan(&attributes.service_id, &attributes.plan_id) else {
        return Err(PortError::invalid(
            "The plan of this instance is no longer in the catalog.",
        ));
    };
    let Some(template) = &offering.binding else {
        return Err(PortError::invalid("This offering is not bindable."));
    };
    let asked = binding.attributes.parameters.get("role").and_then(Value::as_str);
    let role = asked.unwrap_or(&template.default_role);
    if !template.roles.iter().any(|r| r == role) {
        return Err(PortError::invalid(format!(
            "parameters.role: choose one of {}.",
            template.roles.join(", ")
        )));
    }
    let grant = grant(engine, binding, role, second);
    let user = mechanism.generate_user(&target, &grant, engine.now())?;
    // What applications use, not how this process gets there.
    let endpoints = &claimed.instance.endpoints;
    let endpoint = endpoints.iter().find(|e| e.name == target.endpoint.name);
    let scope = manifest::binding_scope(&BindingFacts {
        iid: &target.iid,
        offering,
        plan,
        params: &grant.params,
        role,
        endpoint: endpoint.unwrap_or(&target.endpoint),
        endpoints,
        settings: &target.settings,
        user: &user.secret,
    });
    let (credentials, endpoints) = manifest::binding_credentials(template, &scope).map_err(unrenderable)?;
    let mut made = Secret::default();
    made.insert("handle", json!(user.handle));
    made.insert("role", json!(role));
    made.insert("user", Value::Object(user.secret.expose().clone()));
    made.insert("credentials", Value::Object(credentials.expose().clone()));
    made.insert("endpoints", json!(endpoints));
    if binding.delivery != Delivery::Inline {
        let coordinates = manifest::binding_coordinates(template, &scope).map_err(unrenderable)?;
        made.insert("coordinates", Value::Object(coordinates));
    }
    if let (Some(identity), false) = (&engine.ports.identity, binding.delivery == Delivery::Secret) {
        let proof = identity.generate(&outside::auth(binding)?)?;
        made.insert("client", Value::Object(proof.expose().clone()));
    }
    Ok(made)
}

async fn revoke(engine: &Engine, claimed: &Claimed, binding: &Binding) -> Result<Step, PortError> {
    let mut handles = vec![binding.handle.clone()];
    if binding.rotations > 0 {
        let others = engine.store.other_users(&binding.bid).await.map_err(unreadable)?;
        handles.extend(others.into_iter().map(|user| user.handle));
    }
    // Without a handle the backend never heard of it: `issue` runs only after the handle was recorded.
    handles.retain(|handle| !handle.is_empty());
    revoke_users(engine, claimed, &handles).await
}

/// Takes these users away from the server.
pub(super) async fn revoke_users(
    engine: &Engine,
    claimed: &Claimed,
    handles: &[String],
) -> Result<Step, PortError> {
    if handles.is_empty() {
        return Ok(Step::Done(Progress::default()));
    }
    let Some((mechanism, target)) = target(engine, &claimed.instance).await? else {
        return Ok(Step::Done(Progress::default()));
    };
    let whole = mechanism.states_whole_list();
    // Where the whole list is stated, it names the others already.
    let calls = if whole { 1 } else { handles.len() };
    for handle in &handles[..calls] {
        mechanism.revoke(&target, handle).await?;
    }
    if whole && revoked(engine, &claimed.instance.iid).await? != target.revoked {
        return Ok(Step::Again(
            Duration::from_millis(1),
            "Revoking together with other bindings.".into(),
        ));
    }
    Ok(Step::Done(Progress::default()))
}

async fn forget(engine: &Engine, binding: &Binding) -> Result<Step, PortError> {
    let secrets = &engine.ports.secrets;
    let (iid, bid) = (&binding.iid, &binding.bid);
    secrets.destroy(&secret_name::binding(iid, bid)).await?;
    if binding.delivery != Delivery::Inline {
        secrets.destroy(&secret_name::view(iid, bid)).await?;
    }
    if binding.rotations > 0 {
        destroy_nexts(engine, binding).await?;
    }
    Ok(Step::Done(Progress::default()))
}

/// Destroys what rotations of a binding keep while they are at work.
pub(super) async fn destroy_nexts(engine: &Engine, binding: &Binding) -> PortResult<()> {
    let secrets = &engine.ports.secrets;
    let prefix = secret_name::nexts(&binding.iid, &binding.bid);
    for name in secrets.list(&prefix).await? {
        // A store may list more than was asked for.
        if name.starts_with(&prefix) {
            secrets.destroy(&name).await?;
        }
    }
    Ok(())
}

pub(super) fn unreadable(fail: Fail) -> PortError {
    PortError::transient("The broker's database cannot be read.").with_detail(fail)
}

/// A secret within a secret; empty when it is not there.
pub(super) fn member(stored: &Secret, name: &str) -> Secret {
    match stored.expose().get(name) {
        Some(Value::Object(members)) => Secret::new(members.clone()),
        _ => Secret::default(),
    }
}

pub(super) fn next(engine: &Engine, claimed: &Claimed) -> Next {
    let operation = &claimed.operation;
    if let Some(step) = following(engine, claimed) {
        return Next::Step(step);
    }
    if matches!(operation.kind, OperationKind::Rotate | OperationKind::Retire) {
        return rotation_steps::end(engine, claimed);
    }
    let binding = claimed.binding.as_ref();
    let look_again = outside::look_again(engine, binding.map_or("", |b| &b.handle));
    let finish = match (operation.kind, &operation.failing) {
        (OperationKind::Bind, None) => {
            let mut finish = succeeded(claimed, "Bound.");
            finish.binding = Some((BindingState::Ready, false));
            finish
        }
        (OperationKind::Bind, Some(why)) => {
            let mut finish = ended_badly(claimed, why);
            finish.binding = Some((BindingState::Failed, false));
            finish.look_again = look_again;
            finish
        }
        (OperationKind::Revoke, _) => {
            let mut finish = succeeded(claimed, "Revoked.");
            let state = match binding {
                Some(b) if b.state == BindingState::Failed => BindingState::Failed,
                Some(b) if b.is_expired(engine.now()) => BindingState::Expired,
                _ => BindingState::Gone,
            };
            finish.binding = Some((state, false));
            finish.look_again = look_again;
            finish
        }
        (OperationKind::Settle, _) => {
            let mut finish = succeeded(claimed, "Nothing of it is left.");
            finish.look_again = LookAgain::Never;
            finish
        }
        _ => {
            let mut finish = succeeded(claimed, "Unbound.");
            finish.binding = Some((BindingState::Gone, false));
            finish.look_again = look_again;
            finish
        }
    };
    Next::End(Box::new(finish))
}

pub(super) fn on_failure(engine: &Engine, claimed: &Claimed, why: &str) -> OnFailure {
    let operation = &claimed.operation;
    let failed = |description: String, state: BindingState| {
        let mut finish = ended_badly(claimed, &description);
        // The sweep takes it from here: what may still let somebody in is never forgotten.
        finish.binding = Some((state, true));
        OnFailure::End(Box::new(finish))
    };
    let binding = claimed.binding.as_ref();
    match (operation.kind, &operation.failing) {
        (OperationKind::Bind, None) => {
            let delivery = binding.map_or(Delivery::Inline, |b| b.delivery);
            OnFailure::Undo(
                first(engine, OperationKind::Unbind, delivery),
                engine.undo_deadline(),
            )
        }
        (OperationKind::Bind, Some(first)) => failed(first.clone(), BindingState::Failed),
        (OperationKind::Rotate | OperationKind::Retire, _) => {
            rotation_steps::on_failure(engine, claimed, why)
        }
        // The sweep looks again later; the binding stays what it is.
        (OperationKind::Settle, _) => OnFailure::End(Box::new(ended_badly(claimed, why))),
        _ => {
            let state = match binding {
                Some(b) if b.state == BindingState::Failed => BindingState::Failed,
                _ => BindingState::DeleteFailed,
            };
            failed(
                format!("{why} The credentials may still work; the broker goes on trying to revoke them."),
                state,
            )
        }
    }
}
