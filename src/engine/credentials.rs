//! New credentials for an instance's administrator, by which the broker itself logs in: an operator's command, and the
//! steps behind it.
//!
//! What must stay true: each administrator's credentials have a name of their own, with a number, and never change under
//! it; the instance's row says which number counts. So nobody goes on with former ones out of a memory: whoever works on
//! an instance has read its row first. The next ones are kept, and the row tells of them, before the server hears of
//! them; the former ones are destroyed after the server has refused them. In between the broker has both and finds out
//! which let in, whoever comes first.

use super::instance_steps::{Here, mechanism, target_as};
use super::runner::{Next, OnFailure, Step, ended_badly, succeeded};
use super::{Engine, millis};
use crate::domain::audit::{Action, Cause, Event};
use crate::domain::decide::InstanceNow;
use crate::domain::error::{Error, ErrorKind};
use crate::domain::instance::{Instance, InstanceState, Millis};
use crate::domain::operation::OperationKind;
use crate::domain::secret::Secret;
use crate::ports::{CredentialMechanism, PortError, PortErrorKind, PortResult, Target, secret_name};
use crate::store::{Claimed, NewOperation, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Its steps. Three of them are a provision's: what is rendered with the credentials is brought up to the new ones.
pub(super) const STEPS: &[&str] = &["renew", "change", "apply", "ready", "prepare", "confirm", "drop"];
/// How long it may take: a server that is away comes back, and meanwhile nothing else is done on the instance.
const PATIENCE: Duration = Duration::from_mins(15);
/// Member of an instance's facts that holds [`Standing`].
pub(super) const FACT: &str = "admin";

/// Which credentials of an instance's administrator count, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Standing {
    /// The ones in use.
    now: u32,
    /// The ones that the server may have heard of already.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
    /// The ones that were in use before, until it is proven that the server refuses them.
    #[serde(skip_serializing_if = "Option::is_none")]
    former: Option<u32>,
    /// Since when the present ones are in use; absent: since the instance was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Millis>,
}

impl Standing {
    fn of(instance: &Instance) -> Self {
        let recorded = instance.facts.get(FACT).cloned().unwrap_or_default();
        serde_json::from_value(recorded).unwrap_or_default()
    }

    /// The step is done, and the instance's row says this from now on.
    fn recorded(&self, instance: &Instance) -> Step {
        let mut facts: Map<String, Value> = instance.facts.clone();
        facts.insert(FACT.into(), json!(self));
        Step::Done(Progress {
            facts: Some(facts),
            ..Progress::default()
        })
    }
}

/// The name of the credentials that are in use.
pub(super) fn present(instance: &Instance) -> String {
    secret_name::nth_admin(&instance.iid, Standing::of(instance).now)
}

/// Names of all credentials of its administrator that may still let in.
pub(super) fn any_present(instance: &Instance) -> Vec<String> {
    let Standing {
        now, next, former, ..
    } = Standing::of(instance);
    let numbers = [Some(now), next, former].into_iter().flatten();
    numbers
        .map(|n| secret_name::nth_admin(&instance.iid, n))
        .collect()
}

/// Since when an instance's administrator has had its present credentials.
pub fn administrator_since(instance: &Instance) -> Millis {
    Standing::of(instance).since.unwrap_or(instance.created_at)
}

/// The target with credentials that let in, where an operation ended before anybody could tell which ones do.
///
/// Then this brings the server to the next ones; where that can never work, the present ones are what is left.
pub(super) async fn settled(
    engine: &Engine,
    instance: &Instance,
    mechanism: &dyn CredentialMechanism,
    target: Target,
) -> PortResult<Target> {
    let Some(next) = Standing::of(instance).next else {
        return Ok(target);
    };
    let name = secret_name::nth_admin(&instance.iid, next);
    let Some(next) = engine.ports.secrets.get(&name).await? else {
        return Ok(target);
    };
    match mechanism.rotate_admin(&target, &next).await {
        Ok(()) => Ok(target.with_admin(&next)),
        Err(error) if matches!(error.kind, PortErrorKind::Transient | PortErrorKind::Conflict) => Err(error),
        Err(_) => Ok(target),
    }
}

impl Engine {
    /// Opens the operation that gives an instance's administrator new credentials; returns its token.
    ///
    /// Errors: no such instance, it is not ready, something is at work on it, its kind of server cannot do it, or its
    /// plan is no longer in the catalog. Then nothing was changed.
    pub async fn rotate_admin(&self, iid: &str) -> Result<String, Error> {
        let served = self.served();
        let (iid, id, now) = (iid.to_owned(), (self.ports.new_id)(), self.now());
        let found = self.store.instance(&iid).await?.map(|found| found.instance);
        self.can_rotate_admin(&iid, found.as_ref())?;
        let accepted = self.store.write(move |tx| {
            let (iid, id, served) = (iid.clone(), id.clone(), served.clone());
            Box::pin(async move {
                let there = tx.instance_now(&iid).await?;
                let free = |there: &InstanceNow| {
                    let ready = there.instance.state == InstanceState::Ready;
                    ready && there.open.is_none() && there.open_on_bindings == 0
                };
                let Some(InstanceNow { instance, .. }) = there.filter(free) else {
                    let why = format!(
                        "Instance {iid} is not ready, or something is at work on it (`chandler instances list`, `chandler operations list --open`). Try again after it."
                    );
                    return Err(Error::new(ErrorKind::Concurrency, why).into());
                };
                tx.audit(Event::on_instance(Action::RotateAdmin, Cause::Operator, &instance, now).by(&id));
                tx.insert_operation(&NewOperation {
                    id: id.clone(),
                    kind: OperationKind::Credentials,
                    iid,
                    bid: None,
                    offering: served.catalog.offering_name(&instance.attributes.service_id),
                    target: None,
                    step: STEPS[0],
                    description: "Accepted.",
                    now,
                    deadline_at: now + millis(PATIENCE),
                    request_id: None,
                })
                .await?;
                Ok(id)
            })
        });
        let id = accepted.await?;
        self.wake.notify_one();
        Ok(id)
    }

    fn can_rotate_admin(&self, iid: &str, found: Option<&Instance>) -> Result<(), Error> {
        let Some(instance) = found.filter(|instance| instance.state != InstanceState::Gone) else {
            return Err(Error::bad_request(format!(
                "There is no instance {iid}. `chandler instances list` shows all."
            )));
        };
        let said = |error: PortError| Error::bad_request(format!("Instance {iid}: {}", error.message));
        Here::of(self, instance, &instance.attributes).map_err(said)?;
        let Some((mechanism, settings, _)) = mechanism(self, instance).map_err(said)? else {
            return Err(Error::bad_request(format!(
                "Instance {iid}: the broker has no administrator's credentials for this kind of service."
            )));
        };
        if mechanism.rotates_admin(&settings) {
            return Ok(());
        }
        Err(Error::bad_request(format!(
            "Instance {iid}: the broker cannot exchange the administrator's credentials of this kind of server (mechanism {}); nothing was changed. docs/operations.md says why, and what to do if they may be known.",
            mechanism.name()
        )))
    }
}

/// A step of its own, or [`prepare`](super::instance_steps) with the patience that this operation needs.
pub(super) async fn step(engine: &Engine, claimed: &Claimed) -> PortResult<Step> {
    let instance = &claimed.instance;
    let secrets = &engine.ports.secrets;
    let mut standing = Standing::of(instance);
    match claimed.operation.step.as_str() {
        "change" => {
            let Some(next) = standing.next else {
                // Done, and its record as well: an operator had the step repeated.
                return Ok(Step::Done(Progress::default()));
            };
            let (mechanism, target, made) = between(engine, instance, standing.now, next).await?;
            mechanism.rotate_admin(&target, &made).await?;
            standing = Standing {
                now: next,
                next: None,
                former: Some(standing.now),
                since: Some(engine.now()),
            };
            Ok(standing.recorded(instance))
        }
        "confirm" => {
            let Some(former) = standing.former else {
                return Ok(Step::Done(Progress::default()));
            };
            // Something that looks after the server may have put the former ones back before it heard of the new ones.
            let (mechanism, target, made) = between(engine, instance, former, standing.now).await?;
            mechanism.rotate_admin(&target, &made).await.map_err(passing)?;
            Ok(Step::Done(Progress::default()))
        }
        "drop" => {
            for name in secrets.list(&secret_name::all(&instance.iid)).await? {
                let of_admin = secret_name::is_admin(&name);
                if of_admin && name != present(instance) {
                    secrets.destroy(&name).await?;
                }
            }
            standing.former = None;
            Ok(standing.recorded(instance))
        }
        _ => {
            let Some((mechanism, settings, _)) = mechanism(engine, instance)? else {
                return Err(missing());
            };
            let number = standing.next.unwrap_or(standing.now + 1);
            let name = secret_name::nth_admin(&instance.iid, number);
            if secrets.get(&name).await?.is_none() {
                secrets
                    .create(&name, &mechanism.generate_admin(&settings)?)
                    .await?;
            }
            standing.next = Some(number);
            Ok(standing.recorded(instance))
        }
    }
}

/// What brings the server from the administrator's credentials of one number to those of another.
async fn between(
    engine: &Engine,
    instance: &Instance,
    from: u32,
    to: u32,
) -> PortResult<(Arc<dyn CredentialMechanism>, Target, Secret)> {
    let secrets = &engine.ports.secrets;
    let kept = async |number| {
        let name = secret_name::nth_admin(&instance.iid, number);
        secrets.get(&name).await?.ok_or_else(missing)
    };
    let (before, next) = (kept(from).await?, kept(to).await?);
    let chosen = mechanism(engine, instance)?.ok_or_else(missing)?;
    let (mechanism, target) = target_as(engine, instance, chosen, before).await?;
    Ok((mechanism, target, next))
}

/// A refusal may pass while something that looks after the server (an operator in a cluster) hears of the new credentials.
pub(super) fn passing(error: PortError) -> PortError {
    match error.kind {
        PortErrorKind::Denied => PortError {
            kind: PortErrorKind::Transient,
            ..error
        },
        _ => error,
    }
}

/// How it ends; the instance stays what it is.
pub(super) fn end(claimed: &Claimed) -> Next {
    Next::End(Box::new(succeeded(
        claimed,
        "The administrator has new credentials; the former ones are refused.",
    )))
}

/// How it ends badly; the instance stays what it is, and its bindings work.
pub(super) fn on_failure(claimed: &Claimed, why: &str) -> OnFailure {
    let standing = Standing::of(&claimed.instance);
    let so = match (standing.next, standing.former) {
        (Some(_), _) => {
            "Another `chandler credentials rotate` goes on with the new credentials that were made."
        }
        (None, Some(_)) => {
            "The new credentials are in use; another `chandler credentials rotate` makes sure of the rest."
        }
        (None, None) => "Nothing was changed.",
    };
    OnFailure::End(Box::new(ended_badly(claimed, &format!("{why} {so}"))))
}

pub(super) fn missing() -> PortError {
    PortError::invalid(
        "The administrator's credentials of this instance are missing; the operator has to look.",
    )
}
