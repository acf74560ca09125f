//! Steps of bind, unbind and revoke. A failed bind is undone by the steps of an unbind: undo is the
//! delete path, not more code.
//!
//! What must stay true: the secret is kept before the backend hears of it, so a repeated `issue` sets the
//! same password and a crash leaves no user whose password nobody knows; a binding is answered only
//! after a log-in with its own credentials worked.

use super::Engine;
use super::instance_steps::{revoked, target, unrenderable};
use super::runner::{Next, OnFailure, Step, ended_badly, following, succeeded};
use crate::domain::binding::{Binding, BindingState};
use crate::domain::manifest::{self, BindingFacts};
use crate::domain::operation::OperationKind;
use crate::domain::params;
use crate::domain::request::BindingView;
use crate::domain::secret::Secret;
use crate::ports::{Grant, NewUser, PortError, Target, secret_name};
use crate::store::{Claimed, Progress};
use serde_json::{Value, json};
use std::time::Duration;

/// Steps of a bind.
pub(super) const BIND: &[&str] = &["material", "issue", "verify"];
/// Steps of an unbind, a revocation and the undo of a bind.
pub(super) const UNBIND: &[&str] = &["revoke", "forget"];

pub(super) async fn step(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let Some(binding) = &claimed.binding else {
        return Err(PortError::invalid(
            "The binding's row is missing; the operator has to look.",
        ));
    };
    match claimed.operation.step.as_str() {
        "revoke" => revoke(engine, claimed, binding).await,
        "forget" => {
            let name = secret_name::binding(&binding.iid, &binding.bid);
            engine.ports.secrets.destroy(&name).await?;
            Ok(Step::Done(Progress::default()))
        }
        "issue" | "verify" => {
            let (mechanism, target) = needed(engine, claimed).await?;
            let name = secret_name::binding(&binding.iid, &binding.bid);
            let Some(stored) = engine.ports.secrets.get(&name).await? else {
                return Err(PortError::invalid(
                    "The binding's credentials are missing; bind again.",
                ));
            };
            let grant = grant(engine, binding, &stored_role(&stored));
            let user = NewUser {
                handle: binding.handle.clone(),
                secret: member(&stored, "user"),
            };
            if claimed.operation.step == "issue" {
                mechanism.issue(&target, &grant, &user).await?;
            } else {
                mechanism.verify(&target, &grant, &user).await?;
            }
            Ok(Step::Done(Progress::default()))
        }
        _ => material(engine, claimed, binding).await,
    }
}

async fn needed(
    engine: &Engine,
    claimed: &Claimed,
) -> Result<(std::sync::Arc<dyn crate::ports::CredentialMechanism>, Target), PortError> {
    target(engine, &claimed.instance)
        .await?
        .ok_or_else(|| PortError::invalid("This offering has no way to make credentials."))
}

pub(super) fn grant(engine: &Engine, binding: &Binding, role: &str) -> Grant {
    let served = engine.served();
    let attributes = &binding.attributes;
    let params = served
        .catalog
        .plan(&attributes.service_id, &attributes.plan_id)
        .map_or_else(
            || attributes.parameters.clone(),
            |(_, plan)| params::with_defaults(&plan.schemas.bind, &attributes.parameters),
        );
    Grant {
        bid: binding.bid.clone(),
        role: role.to_owned(),
        params,
        expires_at: binding.expires_at,
    }
}

/// Makes the user's secret and the credentials the platform will get, and keeps both; the first made wins.
async fn material(engine: &Engine, claimed: &Claimed, binding: &Binding) -> Result<Step, PortError> {
    let (mechanism, target) = needed(engine, claimed).await?;
    let name = secret_name::binding(&binding.iid, &binding.bid);
    let stored = match engine.ports.secrets.get(&name).await? {
        Some(stored) => stored,
        None => {
            let served = engine.served();
            let attributes = &binding.attributes;
            let Some((offering, plan)) = served.catalog.plan(&attributes.service_id, &attributes.plan_id)
            else {
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
            let grant = grant(engine, binding, role);
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
            let (credentials, endpoints) =
                manifest::binding_credentials(template, &scope).map_err(unrenderable)?;
            let mut made = Secret::default();
            made.insert("handle", json!(user.handle));
            made.insert("role", json!(role));
            made.insert("user", Value::Object(user.secret.expose().clone()));
            made.insert("credentials", Value::Object(credentials.expose().clone()));
            made.insert("endpoints", json!(endpoints));
            engine.ports.secrets.create(&name, &made).await?
        }
    };
    Ok(Step::Done(Progress {
        handle: Some(stored.text("handle").to_owned()),
        ..Progress::default()
    }))
}

async fn revoke(engine: &Engine, claimed: &Claimed, binding: &Binding) -> Result<Step, PortError> {
    // Without a handle the backend never heard of it: `issue` runs only after the handle was recorded.
    if binding.handle.is_empty() {
        return Ok(Step::Done(Progress::default()));
    }
    let Some((mechanism, target)) = target(engine, &claimed.instance).await? else {
        return Ok(Step::Done(Progress::default()));
    };
    let list = target.revoked.clone();
    mechanism.revoke(&target, &binding.handle).await?;
    if mechanism.states_whole_list() && revoked(engine, &claimed.instance.iid).await? != list {
        return Ok(Step::Again(
            Duration::from_millis(1),
            "Revoking together with other bindings.".into(),
        ));
    }
    Ok(Step::Done(Progress::default()))
}

fn stored_role(stored: &Secret) -> String {
    stored.text("role").to_owned()
}

pub(super) fn member(stored: &Secret, name: &str) -> Secret {
    match stored.expose().get(name) {
        Some(Value::Object(members)) => Secret::new(members.clone()),
        _ => Secret::default(),
    }
}

/// What was kept when the binding was made, as it is told to the platform: the same at every asking.
pub(super) fn stored_view(stored: &Secret) -> BindingView {
    let endpoints = stored.expose().get("endpoints").cloned().unwrap_or_default();
    BindingView {
        credentials: member(stored, "credentials"),
        endpoints: serde_json::from_value(endpoints).unwrap_or_default(),
        ..BindingView::default()
    }
}

pub(super) fn next(engine: &Engine, claimed: &Claimed) -> Next {
    let operation = &claimed.operation;
    if let Some(step) = following(operation.kind, operation.failing.is_some(), &operation.step) {
        return Next::Step(step);
    }
    let finish = match (operation.kind, &operation.failing) {
        (OperationKind::Bind, None) => {
            let mut finish = succeeded(claimed, "Bound.");
            finish.binding = Some((BindingState::Ready, false));
            finish
        }
        (OperationKind::Bind, Some(why)) => {
            let mut finish = ended_badly(claimed, why);
            finish.binding = Some((BindingState::Failed, false));
            finish
        }
        (OperationKind::Revoke, _) => {
            let mut finish = succeeded(claimed, "Revoked.");
            let state = match &claimed.binding {
                Some(b) if b.state == BindingState::Failed => BindingState::Failed,
                Some(b) if b.is_expired(engine.now()) => BindingState::Expired,
                _ => BindingState::Gone,
            };
            finish.binding = Some((state, false));
            finish
        }
        _ => {
            let mut finish = succeeded(claimed, "Unbound.");
            finish.binding = Some((BindingState::Gone, false));
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
    match (operation.kind, &operation.failing) {
        (OperationKind::Bind, None) => OnFailure::Undo(UNBIND[0], engine.undo_deadline()),
        (OperationKind::Bind, Some(first)) => failed(first.clone(), BindingState::Failed),
        _ => {
            let was_failed = claimed
                .binding
                .as_ref()
                .is_some_and(|b| b.state == BindingState::Failed);
            let state = if was_failed {
                BindingState::Failed
            } else {
                BindingState::DeleteFailed
            };
            failed(
                format!("{why} The credentials may still work; the broker goes on trying to revoke them."),
                state,
            )
        }
    }
}
