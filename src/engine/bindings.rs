//! Commands on bindings: PUT and DELETE, and the revocations the broker orders itself.
//!
//! A bind or unbind is always a durable operation. A request that wants its answer at once waits for
//! that operation's end; the work is the same.

use super::binding_steps::first;
use super::{Engine, millis};
use crate::domain::audit::{Action, Cause, Event};
use crate::domain::binding::{Binding, BindingState};
use crate::domain::catalog::Plan;
use crate::domain::decide::{self, BindDecision, UnbindDecision};
use crate::domain::error::{Error, ErrorKind};
use crate::domain::instance::Millis;
use crate::domain::names;
use crate::domain::operation::{OperationKind, OperationState};
use crate::domain::request::{Bind, BindingView, Caller, Delete, Outcome};
use crate::store::{Fail, NewOperation};
use std::sync::Arc;
use std::time::Duration;

/// Longest life of a bind or unbind, milliseconds: backends answer in milliseconds, so this is for outages.
pub(super) const PATIENCE: Millis = 300_000;

enum Written {
    Working(String),
    Still,
}

fn patience(plan: Option<&Plan>) -> Millis {
    plan.map_or(PATIENCE, |p| {
        (1000 * i64::from(p.maximum_polling_duration)).min(PATIENCE)
    })
}

impl Engine {
    /// PUT binding (osb-rules §10).
    pub async fn bind(
        self: &Arc<Self>,
        caller: &Caller,
        request: Bind,
    ) -> Result<Outcome<BindingView>, Error> {
        let served = self.served();
        let now = self.now();
        let iid = names::iid(&caller.platform, &request.instance_id);
        let bid = names::bid(&caller.platform, &request.instance_id, &request.binding_id);
        let predecessor = request
            .attributes
            .predecessor_binding_id
            .as_ref()
            .map(|id| names::bid(&caller.platform, &request.instance_id, id));
        let operation_id = (self.ports.new_id)();
        let (platform, request_id) = (caller.platform.clone(), caller.request_id.clone());
        let waits = !request.accepts_incomplete;
        let (instance_id, binding_id) = (request.instance_id.clone(), request.binding_id.clone());
        let asked = Event::asked(caller, Action::Bind, &instance_id, &binding_id, now)
            .after(predecessor.as_deref())
            .by(&operation_id);
        let own = operation_id.clone();
        let request = Arc::new(request);
        let ways = self.ways(&platform);
        let step = {
            let engine = self.clone();
            move |delivery| first(&engine, OperationKind::Bind, delivery)
        };
        let written = self
            .store
            .write(move |tx| {
                let (served, request, iid, bid) = (served.clone(), request.clone(), iid.clone(), bid.clone());
                let (operation_id, request_id) = (operation_id.clone(), request_id.clone());
                let (platform, predecessor) = (platform.clone(), predecessor.clone());
                let (ways, step) = (ways.clone(), step.clone());
                let asked = asked.clone();
                Box::pin(async move {
                    let instance = tx.instance_now(&iid).await?;
                    let found = tx.binding_now(&bid).await?;
                    let before = match &predecessor {
                        Some(bid) => tx.binding_now(bid).await?,
                        None => None,
                    };
                    let decision = decide::bind(
                        &served.catalog,
                        &ways,
                        &request,
                        instance.as_ref(),
                        found.as_ref(),
                        before.as_ref(),
                        now,
                    )?;
                    let ((offering, plan), (attributes, handing)) = match decision {
                        BindDecision::Exists => return Ok(Written::Still),
                        BindDecision::Running(id) => return Ok(Written::Working(id)),
                        BindDecision::Create(picked, made) => (picked, *made),
                    };
                    let service_account = handing.service_account();
                    if let Some(account) = &service_account
                        && tx.service_account_taken(account, &bid).await?
                    {
                        return Err(Error::bad_request(format!(
                            "parameters.client_auth.service_account: {account} is another binding's identity already; every binding, a successor too, needs a service account of its own."
                        ))
                        .into());
                    }
                    // An id that was used before: its former user stays revoked.
                    let mut rotations = 0;
                    if let Some(found) = &found {
                        tx.reuse_binding(&bid, now).await?;
                        rotations = found.binding.rotations + 1;
                    }
                    let expires_at = plan.binding_lifetime.map(|l| now + 1000 * i64::from(l.ttl));
                    tx.save_binding(&Binding {
                        bid: bid.clone(),
                        iid: iid.clone(),
                        platform,
                        binding_id: request.binding_id.clone(),
                        attributes,
                        requested: request.attributes.clone(),
                        state: BindingState::Creating,
                        handle: String::new(),
                        residue: false,
                        delivery: handing.delivery,
                        generation: 0,
                        rotations,
                        service_account,
                        secret_namespace: handing.namespace,
                        expires_at,
                        renew_before: plan
                            .binding_lifetime
                            .and_then(|l| expires_at.map(|at| at - 1000 * i64::from(l.renew_before))),
                        created_at: now,
                        updated_at: now,
                    })
                    .await?;
                    tx.insert_operation(&NewOperation {
                        id: operation_id.clone(),
                        kind: OperationKind::Bind,
                        iid,
                        bid: Some(bid),
                        offering: offering.name.clone(),
                        target: None,
                        step: step(handing.delivery),
                        description: "Accepted.",
                        now,
                        deadline_at: now + patience(Some(&plan)),
                        request_id,
                    })
                    .await?;
                    tx.audit(asked);
                    Ok(Written::Working(operation_id))
                })
            })
            .await?;
        match written {
            Written::Still => Ok(Outcome::Done(
                self.fetch_binding(caller, &instance_id, &binding_id).await?,
            )),
            Written::Working(id) => {
                self.accepted(None);
                match self.wait_for(&id, waits).await? {
                    None => Ok(Outcome::Accepted {
                        operation: id,
                        body: BindingView::default(),
                    }),
                    // What the bind itself answers is told by its own events.
                    Some(()) if id == own => Ok(Outcome::Created(
                        self.unrecorded_binding(caller, &instance_id, &binding_id).await?,
                    )),
                    Some(()) => Ok(Outcome::Created(
                        self.fetch_binding(caller, &instance_id, &binding_id).await?,
                    )),
                }
            }
        }
    }

    /// DELETE binding (osb-rules §12).
    pub async fn unbind(self: &Arc<Self>, caller: &Caller, request: Delete) -> Result<Outcome<()>, Error> {
        let served = self.served();
        let now = self.now();
        let iid = names::iid(&caller.platform, &request.instance_id);
        let binding_id = request.binding_id.clone().unwrap_or_default();
        let bid = names::bid(&caller.platform, &request.instance_id, &binding_id);
        let operation_id = (self.ports.new_id)();
        let request_id = caller.request_id.clone();
        let asked =
            Event::asked(caller, Action::Unbind, &request.instance_id, &binding_id, now).by(&operation_id);
        let waits = !request.accepts_incomplete;
        let request = Arc::new(request);
        let step = {
            let engine = self.clone();
            move |delivery| first(&engine, OperationKind::Unbind, delivery)
        };
        let (id, superseded) = self
            .store
            .write(move |tx| {
                let (served, request, iid, bid) = (served.clone(), request.clone(), iid.clone(), bid.clone());
                let (operation_id, request_id, step) =
                    (operation_id.clone(), request_id.clone(), step.clone());
                let asked = asked.clone();
                Box::pin(async move {
                    let instance = tx.instance_now(&iid).await?;
                    let found = tx.binding_now(&bid).await?;
                    let supersede =
                        match decide::unbind(&served.catalog, &request, instance.as_ref(), found.as_ref())? {
                            UnbindDecision::Running(id) => return Ok((id, None)),
                            UnbindDecision::Start { supersede } => supersede,
                        };
                    if let Some(id) = &supersede {
                        tx.supersede(
                            id,
                            "Cancelled: the platform asked for the binding to be deleted.",
                            now,
                        )
                        .await?;
                    }
                    let binding = found
                        .ok_or_else(|| Error::internal("an unbind was decided on nothing"))?
                        .binding;
                    let attributes = &binding.attributes;
                    let offering = served.catalog.offering_name(&attributes.service_id);
                    let plan = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
                    tx.set_binding_state(&bid, BindingState::Deleting, true, now)
                        .await?;
                    tx.mark_revoked(&binding, now).await?;
                    tx.insert_operation(&NewOperation {
                        id: operation_id.clone(),
                        kind: OperationKind::Unbind,
                        iid,
                        bid: Some(bid),
                        offering,
                        target: None,
                        step: step(binding.delivery),
                        description: "Accepted.",
                        now,
                        deadline_at: now + patience(plan.map(|(_, p)| p.as_ref())),
                        request_id,
                    })
                    .await?;
                    tx.audit(asked);
                    Ok((operation_id, supersede))
                })
            })
            .await?;
        self.accepted(superseded.as_deref());
        match self.wait_for(&id, waits).await? {
            None => Ok(Outcome::Accepted {
                operation: id,
                body: (),
            }),
            Some(()) => Ok(Outcome::Done(())),
        }
    }

    /// Waits for an operation as long as the request may: `Some` = it succeeded, `None` = answer 202.
    async fn wait_for(self: &Arc<Self>, id: &str, must_end: bool) -> Result<Option<()>, Error> {
        let limit: Duration = if must_end {
            self.settings.sync_wait
        } else {
            self.settings.async_grace
        };
        match self.run_and_wait(id, limit).await? {
            Some((OperationState::Succeeded, _)) => Ok(Some(())),
            // With the flag the failure is told by last_operation, where it causes no orphan mitigation.
            Some(_) | None if !must_end => Ok(None),
            Some((_, why)) => Err(Error::new(ErrorKind::Internal, why)),
            None => Err(Error::unavailable(
                "The operation did not end in time and goes on in the background. Delete the binding, or ask again with accepts_incomplete=true.",
            )),
        }
    }

    /// Opens a revocation the broker wants itself: of an expired binding, or of what a failed one left behind.
    ///
    /// False when something else is at work on the binding or it changed meanwhile.
    pub(super) async fn revoke_by_ourselves(
        self: &Arc<Self>,
        seen: &Binding,
        cause: Cause,
    ) -> Result<bool, Fail> {
        self.order(seen, OperationKind::Revoke, cause).await
    }

    /// The plan's patience for undoing a bind: as long as an unbind gets.
    pub(super) fn undo_deadline(&self) -> Millis {
        self.now() + PATIENCE.max(millis(self.settings.lease))
    }
}
