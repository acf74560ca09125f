//! Rotation in place: the command, and what the broker opens by itself around it.

use super::binding_steps::first;
use super::bindings::PATIENCE;
use super::{Engine, millis, rotation_steps};
use crate::domain::audit::{Action, Cause, Event};
use crate::domain::binding::{Binding, BindingState, UserState};
use crate::domain::decide::{self, RotateDecision};
use crate::domain::error::{Error, ErrorKind};
use crate::domain::instance::Millis;
use crate::domain::names;
use crate::domain::operation::{OperationKind, OperationState};
use crate::domain::request::{Caller, Outcome, Rotate, RotationView};
use crate::store::{Fail, NewOperation, Tx};
use std::sync::Arc;
use std::time::Duration;

/// How long a user that is due rests after an attempt to deal with it.
const REST: Duration = Duration::from_mins(1);

impl Engine {
    /// Gives a binding new credentials in place; applications fetch them from where they fetched the present ones.
    ///
    /// Waits for the end as a bind does, and says `Accepted` when it takes longer. Errors: 400, 404, 409, 422 as they
    /// fit; 500 when it failed and was undone.
    pub async fn rotate(
        self: &Arc<Self>,
        caller: &Caller,
        request: Rotate,
    ) -> Result<Outcome<RotationView>, Error> {
        let served = self.served();
        let now = self.now();
        let operation_id = (self.ports.new_id)();
        let (platform, request_id) = (caller.platform.clone(), caller.request_id.clone());
        let asking = caller.clone();
        let request = Arc::new(request);
        let step = {
            let engine = self.clone();
            move |binding: &Binding| {
                if rotation_steps::is_shown_somewhere(&engine, binding.delivery) {
                    return Ok(first(&engine, OperationKind::Rotate, binding.delivery));
                }
                Err(Error::conflict(
                    "What applications fetch this binding's credentials from is not configured at this broker (any more). Tell its operator.",
                ))
            }
        };
        let (id, bid) = self
            .store
            .write(move |tx| {
                let (served, request, step) = (served.clone(), request.clone(), step.clone());
                let (platform, operation_id, request_id) =
                    (platform.clone(), operation_id.clone(), request_id.clone());
                let asking = asking.clone();
                Box::pin(async move {
                    let (iid, bid) = named(tx, &platform, &request).await?;
                    let instance = tx.instance_now(&iid).await?;
                    let found = tx.binding_now(&bid).await?;
                    let decision = decide::rotate(&served.catalog, instance.as_ref(), found.as_ref(), now)?;
                    if let RotateDecision::Running(id) = decision {
                        return Ok((id, bid));
                    }
                    let (Some(on), Some(found)) = (instance, found) else {
                        return Err(Error::internal("a rotation was decided on nothing").into());
                    };
                    let (on, binding) = (on.instance, found.binding);
                    let begins = step(&binding)?;
                    let asked =
                        Event::asked(&asking, Action::Rotate, &on.instance_id, &binding.binding_id, now);
                    tx.audit(asked.by(&operation_id));
                    tx.begin_rotation(&bid, now).await?;
                    tx.insert_operation(&NewOperation {
                        id: operation_id.clone(),
                        kind: OperationKind::Rotate,
                        offering: served.catalog.offering_name(&binding.attributes.service_id),
                        iid,
                        bid: Some(bid.clone()),
                        target: None,
                        step: begins,
                        description: "Accepted.",
                        now,
                        deadline_at: now + PATIENCE,
                        request_id,
                    })
                    .await?;
                    Ok((operation_id, bid))
                })
            })
            .await?;
        self.accepted(None);
        match self.run_and_wait(&id, self.settings.sync_wait).await? {
            Some((OperationState::Succeeded, _)) => Ok(Outcome::Done(self.rotated(&bid).await?)),
            Some((_, why)) => Err(Error::new(ErrorKind::Internal, why)),
            None => Ok(Outcome::Accepted {
                operation: id,
                body: RotationView::default(),
            }),
        }
    }

    async fn rotated(&self, bid: &str) -> Result<RotationView, Error> {
        let users = self.store.other_users(bid).await?;
        let former = users.iter().find(|user| user.state == UserState::Former);
        let now = self.store.binding(bid).await?;
        Ok(RotationView {
            generation: now.map_or(0, |now| now.binding.generation),
            former_until: former.and_then(|user| user.due_at),
        })
    }

    /// Goes on with users of a binding that are due: a rotation that nobody finished, former ones whose grace is over.
    ///
    /// False when something else is at work on the binding or it changed meanwhile.
    pub(super) async fn look_after_users(self: &Arc<Self>, seen: &Binding) -> Result<bool, Fail> {
        let users = self.store.other_users(&seen.bid).await?;
        let unfinished = users.iter().any(|user| user.state == UserState::Next);
        let kind = if unfinished {
            OperationKind::Rotate
        } else {
            OperationKind::Retire
        };
        self.open_by_ourselves(seen, kind).await
    }

    /// Opens an operation the broker wants itself, on a binding that stays what it is.
    ///
    /// False when something else is at work on it or it changed meanwhile.
    pub(super) async fn open_by_ourselves(
        self: &Arc<Self>,
        seen: &Binding,
        kind: OperationKind,
    ) -> Result<bool, Fail> {
        let cause = if kind == OperationKind::Retire {
            Cause::Grace
        } else {
            Cause::Residue
        };
        self.order(seen, kind, cause).await
    }

    /// Opens an operation on a binding that nobody asked for.
    ///
    /// False when something else is at work on it or it changed meanwhile.
    pub(super) async fn order(
        self: &Arc<Self>,
        seen: &Binding,
        kind: OperationKind,
        cause: Cause,
    ) -> Result<bool, Fail> {
        let served = self.served();
        let now = self.now();
        let operation_id = (self.ports.new_id)();
        let step = first(self, kind, seen.delivery);
        let seen = seen.clone();
        let opened = self
            .store
            .write(move |tx: &mut Tx| {
                let (served, seen, operation_id) = (served.clone(), seen.clone(), operation_id.clone());
                Box::pin(async move {
                    let instance = tx.instance_now(&seen.iid).await?;
                    let there = tx.binding_now(&seen.bid).await?;
                    // What has ended needs nothing of the instance, which may be gone.
                    let free =
                        kind == OperationKind::Settle || instance.as_ref().is_some_and(|i| i.open.is_none());
                    if !free || !there.is_some_and(|b| b.open.is_none() && b.binding.state == seen.state) {
                        return Ok(false);
                    }
                    if !begin(tx, &seen, kind, now).await? {
                        return Ok(false);
                    }
                    if let Some(action) = told(kind) {
                        let on = instance.map(|i| i.instance.instance_id).unwrap_or_default();
                        tx.audit(Event::ordered(action, cause, &seen, &on, now).by(&operation_id));
                    }
                    tx.insert_operation(&NewOperation {
                        id: operation_id,
                        kind,
                        offering: served.catalog.offering_name(&seen.attributes.service_id),
                        iid: seen.iid,
                        bid: Some(seen.bid),
                        target: None,
                        step,
                        description: if kind == OperationKind::Revoke {
                            "Revoking."
                        } else {
                            "Accepted."
                        },
                        now,
                        deadline_at: now + PATIENCE,
                        request_id: None,
                    })
                    .await?;
                    Ok(true)
                })
            })
            .await?;
        if opened {
            self.accepted(None);
        }
        Ok(opened)
    }
}

/// What the audit is told of an operation that nobody asked for.
fn told(kind: OperationKind) -> Option<Action> {
    match kind {
        OperationKind::Rotate => Some(Action::Rotate),
        // The last look at what has ended already neither gives nor takes.
        OperationKind::Settle => None,
        _ => Some(Action::Revoke),
    }
}

/// Marks the binding for an operation that nobody asked for; false when there is nothing to do.
async fn begin(tx: &mut Tx, seen: &Binding, kind: OperationKind, now: Millis) -> Result<bool, Fail> {
    let later = now + millis(REST);
    match kind {
        OperationKind::Settle => tx.set_look_again(&seen.bid, Some(later)).await?,
        OperationKind::Rotate => {
            tx.begin_rotation(&seen.bid, now).await?;
            tx.rest_users(&seen.bid, now, later).await?;
        }
        OperationKind::Retire => {
            if !tx.retire_users(&seen.bid, now).await? {
                return Ok(false);
            }
            tx.rest_users(&seen.bid, now, later).await?;
        }
        _ => {
            let state = if seen.state == BindingState::Failed {
                BindingState::Failed
            } else {
                BindingState::Deleting
            };
            tx.set_binding_state(&seen.bid, state, true, now).await?;
            tx.mark_revoked(seen, now).await?;
        }
    }
    Ok(true)
}

/// The binding a request names: by its instance too, where the platform has the same id on several.
async fn named(tx: &mut Tx, platform: &str, request: &Rotate) -> Result<(String, String), Fail> {
    if let Some(instance_id) = &request.instance_id {
        return Ok((
            names::iid(platform, instance_id),
            names::bid(platform, instance_id, &request.binding_id),
        ));
    }
    let mut found = tx.bindings_named(platform, &request.binding_id).await?;
    match (found.pop(), found.is_empty()) {
        (Some(binding), true) => Ok((binding.iid, binding.bid)),
        (Some(_), false) => Err(Error::bad_request(
            "instance_id: several instances have a binding with this id; say with this query parameter which is meant.",
        )
        .into()),
        (None, _) => Err(Error::not_found("There is no service binding with this id.").into()),
    }
}
