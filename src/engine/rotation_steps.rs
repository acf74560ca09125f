//! Steps of a rotation in place: a second user, shown to applications as the next generation of the binding's
//! credentials; the former user is taken away when its grace is over.
//!
//! What must stay true: a user that applications may be reading is never taken away. So before anything is undone the
//! vault is asked which generation it has; where nobody can tell, both users stay and the sweep goes on. At most two
//! users of a binding work at a time: a rotation takes a former one away at once.

use super::binding_steps::{destroy_nexts, make, member, needed, revoke_users, unreadable, user};
use super::runner::{Next, OnFailure, Step, ended_badly, succeeded};
use super::{Engine, millis, outside};
use crate::domain::binding::{Binding, OtherUser, UserState};
use crate::domain::delivery::Delivery;
use crate::domain::names;
use crate::domain::operation::OperationKind;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortErrorKind, PortResult, secret_name};
use crate::store::{Claimed, LookAgain, Progress, UserChange};

/// The one step that takes former users away.
pub(super) const RETIRE: &str = "retire";
/// The first step of finding out how far a rotation got, and of undoing it.
const ASK: &str = "ask";
const UNDO: &[&str] = &[ASK, "retract", "discard"];

/// The steps of a rotation, those of its undo when `step` is one of them.
pub(super) fn steps(engine: &Engine, delivery: Delivery, step: &str) -> Vec<&'static str> {
    if UNDO.contains(&step) {
        return UNDO.to_vec();
    }
    let mut steps = vec!["clear", "material", "issue", "verify"];
    steps.extend(outside::showing(engine, delivery));
    steps.extend(["adopt", "handover"]);
    steps
}

fn changed(change: UserChange) -> Progress {
    Progress {
        user: Some(change),
        ..Progress::default()
    }
}

/// Where nothing shows new credentials to applications, a rotation would leave them with dead ones.
pub(super) fn is_shown_somewhere(engine: &Engine, delivery: Delivery) -> bool {
    !outside::showing(engine, delivery).is_empty()
}

pub(super) async fn step(engine: &Engine, claimed: &Claimed, binding: &Binding) -> Result<Step, PortError> {
    if claimed.operation.kind == OperationKind::Rotate && !is_shown_somewhere(engine, binding.delivery) {
        return Err(PortError::transient(
            "What applications fetch these credentials from is not configured.",
        ));
    }
    let users = engine.store.other_users(&binding.bid).await.map_err(unreadable)?;
    let next = users.iter().find(|user| user.state == UserState::Next);
    let step = claimed.operation.step.as_str();
    match (step, next) {
        ("clear" | RETIRE, _) => retire(engine, claimed, &users).await,
        ("material", _) => material(engine, claimed, binding, next).await,
        ("handover", _) => {
            destroy_nexts(engine, binding).await?;
            Ok(Step::Done(Progress::default()))
        }
        // Nothing was begun, or all is undone already.
        (ASK, None) => Ok(Step::Jump("discard", Progress::default())),
        ("discard", _) => {
            destroy_nexts(engine, binding).await?;
            Ok(Step::Done(changed(UserChange::Discarded)))
        }
        (ASK, Some(next)) => ask(engine, claimed, binding, next).await,
        ("retract", Some(next)) => revoke_users(engine, claimed, std::slice::from_ref(&next.handle)).await,
        (_, Some(next)) => forward(engine, claimed, binding, next).await,
        (_, None) => Err(PortError::invalid(
            "The user that is being rotated in is not written down; rotate again.",
        )),
    }
}

/// Takes former users away that are not to be let in any more.
async fn retire(engine: &Engine, claimed: &Claimed, users: &[OtherUser]) -> Result<Step, PortError> {
    let former: Vec<String> = users
        .iter()
        .filter(|user| user.state == UserState::Former && user.refused)
        .map(|user| user.handle.clone())
        .collect();
    Ok(match revoke_users(engine, claimed, &former).await? {
        Step::Done(_) => Step::Done(changed(UserChange::Retired)),
        other => other,
    })
}

/// Makes the next user's secret and credentials and keeps them; the first made win.
async fn material(
    engine: &Engine,
    claimed: &Claimed,
    binding: &Binding,
    next: Option<&OtherUser>,
) -> Result<Step, PortError> {
    let generation = match next {
        Some(next) => next.generation,
        None => next_generation(engine, binding).await?,
    };
    let name = secret_name::next(&binding.iid, &binding.bid, generation);
    let secrets = &engine.ports.secrets;
    let stored = match secrets.get(&name).await? {
        Some(stored) => stored,
        None => {
            let made = make(engine, claimed, binding, is_second(binding)).await?;
            secrets.create(&name, &made).await?
        }
    };
    let handle = stored.text("handle").to_owned();
    if handle == binding.handle {
        return Err(PortError::invalid(
            "What was kept for the next user is the present one's; the operator has to look.",
        ));
    }
    Ok(Step::Done(changed(UserChange::Next { handle, generation })))
}

/// The other name than the present user's, where there are names to choose.
fn is_second(binding: &Binding) -> bool {
    binding.handle != names::second_user(&binding.bid)
}

/// The vault's own count decides: it may be ahead of ours by what a held-up worker put there.
async fn next_generation(engine: &Engine, binding: &Binding) -> PortResult<u32> {
    match published(engine, binding).await? {
        Some(there) => Ok(there.map_or(0, |there| there + 1)),
        None => Ok(binding.generation + 1),
    }
}

/// Which generation the vault has; none where this binding is not in a vault, and none within where nothing is in it.
async fn published(engine: &Engine, binding: &Binding) -> PortResult<Option<Option<u32>>> {
    match &engine.ports.vault {
        Some(vault) if outside::publishes(engine, binding.delivery) => {
            Ok(Some(vault.generation(&binding.reference()).await?))
        }
        _ => Ok(None),
    }
}

/// Whether the vault has a generation that this binding's row does not know: a held-up worker put it there.
pub(super) async fn is_behind(engine: &Engine, binding: &Binding) -> PortResult<bool> {
    let there = published(engine, binding).await?.flatten();
    Ok(there.is_some_and(|there| there > binding.generation))
}

async fn kept(engine: &Engine, binding: &Binding, next: &OtherUser) -> PortResult<Secret> {
    let name = secret_name::next(&binding.iid, &binding.bid, next.generation);
    engine.ports.secrets.get(&name).await?.ok_or_else(|| {
        PortError::invalid("The credentials that are being rotated in are missing; rotate again.")
    })
}

async fn forward(
    engine: &Engine,
    claimed: &Claimed,
    binding: &Binding,
    next: &OtherUser,
) -> Result<Step, PortError> {
    match claimed.operation.step.as_str() {
        "adopt" => {
            return Ok(Step::Done(changed(UserChange::Adopted {
                handle: next.handle.clone(),
                generation: next.generation,
                former_until: engine.now() + millis(engine.settings.rotation_grace),
            })));
        }
        "publish" => {
            let stored = kept(engine, binding, next).await?;
            let credentials = member(&stored, "credentials");
            outside::publish(engine, claimed, binding, next.generation, &credentials).await?;
        }
        "project" => {
            let stored = kept(engine, binding, next).await?;
            outside::project(engine, binding, &member(&stored, "credentials")).await?;
        }
        step => {
            let stored = kept(engine, binding, next).await?;
            let (mechanism, target) = needed(engine, claimed).await?;
            let (grant, user) = user(engine, binding, &stored, is_second(binding));
            if step == "issue" {
                mechanism.issue(&target, &grant, &user).await?;
            } else {
                mechanism.verify(&target, &grant, &user).await?;
                // Written down together with the step: from the next one on somebody may read it.
                return Ok(Step::Done(changed(UserChange::Shown)));
            }
        }
    }
    Ok(Step::Done(Progress::default()))
}

/// Finds out whether applications read the new credentials already: then there is no way but forward.
async fn ask(
    engine: &Engine,
    claimed: &Claimed,
    binding: &Binding,
    next: &OtherUser,
) -> Result<Step, PortError> {
    let refuse = Step::Jump("retract", changed(UserChange::Refused));
    let adopt = || Step::Jump("adopt", Progress::default());
    if !next.shown {
        return Ok(refuse);
    }
    if let Some(there) = published(engine, binding).await? {
        let is_there = there.is_some_and(|there| there >= next.generation);
        return Ok(if is_there { adopt() } else { refuse });
    }
    // A Secret is written whole or not at all, and writing it again tells which: refused is not written.
    let stored = kept(engine, binding, next).await?;
    match outside::project(engine, binding, &member(&stored, "credentials")).await {
        Ok(()) => Ok(adopt()),
        Err(error) if matches!(error.kind, PortErrorKind::Denied | PortErrorKind::Invalid) => {
            tracing::info!(operation = %claimed.operation.id, detail = %error.detail, "the Secret was not written");
            Ok(refuse)
        }
        Err(error) => Err(error),
    }
}

/// How an operation ends after its last step.
pub(super) fn end(engine: &Engine, claimed: &Claimed) -> Next {
    let operation = &claimed.operation;
    let finish = match (operation.kind, operation.step.as_str(), &operation.failing) {
        (OperationKind::Retire, ..) => succeeded(claimed, "The former credentials are revoked."),
        (_, "discard", Some(why)) => {
            let mut finish = ended_badly(claimed, why);
            finish.look_again = LookAgain::At(outside::later(engine));
            finish
        }
        _ => succeeded(claimed, "Rotated."),
    };
    Next::End(Box::new(finish))
}

pub(super) fn on_failure(engine: &Engine, claimed: &Claimed, why: &str) -> OnFailure {
    let operation = &claimed.operation;
    let finish = match (operation.kind, operation.step.as_str(), &operation.failing) {
        // The sweep tries again.
        (OperationKind::Retire, ..) => ended_badly(claimed, why),
        // The rotation itself is done; what was kept for it is of no use to anybody, and the sweep removes it.
        (_, "handover", _) => succeeded(claimed, "Rotated."),
        (_, step, None) if step != "clear" => return OnFailure::Undo(ASK, engine.undo_deadline()),
        (_, _, None) => ended_badly(claimed, why),
        (_, _, Some(first)) => ended_badly(
            claimed,
            &format!(
                "{first} Whether applications have the new credentials could not be settled, so both work, and the broker goes on by itself."
            ),
        ),
    };
    OnFailure::End(Box::new(finish))
}
