//! Steps around the server itself: the binding's secret in the vault, its client at the identity provider, its Secret in
//! the application's namespace.
//!
//! What must stay true: nothing can be read before it works, so the client is let in last; and on the way out it is shut
//! out first. A step whose port is not there does not exist.

use super::binding_steps::member;
use super::runner::Step;
use super::{Engine, millis};
use crate::domain::binding::Binding;
use crate::domain::delivery::{self, ClientAuth, Delivery};
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{IdentitySpec, PortError, PortResult, SecretPlace, secret_name};
use crate::store::{Claimed, LookAgain, Progress};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::time::Duration;
use tracing::warn;

/// How long after its end a binding is looked at once more: by then no worker is inside a step of it any more, and no
/// token that was given out for it makes the vault remember it anew.
const SETTLE: Duration = Duration::from_mins(3);
/// Bindings that a deprovision closes at once.
const SIDE_BY_SIDE: usize = 8;
/// Longest note a vault keeps beside a secret, in bytes.
const MAX_NOTE: usize = 512;

/// Whether bindings handed over like this are in the vault, and have a client of their own.
pub(super) fn has(engine: &Engine, delivery: Delivery) -> (bool, bool) {
    // Whoever may read the Secret has the credentials: a client would be one more way in, for nobody.
    let wanted = delivery != Delivery::Secret;
    let ports = &engine.ports;
    (
        wanted && ports.vault.is_some(),
        wanted && ports.identity.is_some(),
    )
}

/// Whether bindings handed over like this are in the vault.
pub(super) fn publishes(engine: &Engine, delivery: Delivery) -> bool {
    has(engine, delivery).0
}

fn projects(engine: &Engine, delivery: Delivery) -> bool {
    delivery == Delivery::Secret && engine.ports.projection.is_some()
}

/// Whether anything but the server knows bindings.
pub(super) fn anything(engine: &Engine) -> bool {
    let ports = &engine.ports;
    ports.vault.is_some() || ports.identity.is_some() || ports.projection.is_some()
}

/// Steps that let applications in, in order.
pub(super) fn opening(engine: &Engine, delivery: Delivery) -> Vec<&'static str> {
    let (vault, identity) = has(engine, delivery);
    [
        ("publish", vault),
        ("identity", identity),
        ("project", projects(engine, delivery)),
        ("handover", delivery != Delivery::Inline),
    ]
    .into_iter()
    .filter_map(|(step, exists)| exists.then_some(step))
    .collect()
}

/// Steps that show a new generation of the credentials, in order.
pub(super) fn showing(engine: &Engine, delivery: Delivery) -> Vec<&'static str> {
    opening(engine, delivery)
        .into_iter()
        .filter(|step| matches!(*step, "publish" | "project"))
        .collect()
}

/// Steps that shut applications out: before the server's own part of it, and after.
pub(super) fn closing(engine: &Engine, delivery: Delivery) -> (Vec<&'static str>, Vec<&'static str>) {
    let (vault, identity) = has(engine, delivery);
    let before = identity.then_some("close");
    let after = [
        ("withdraw", vault),
        ("unproject", projects(engine, delivery)),
        ("dismiss", identity),
    ];
    (
        before.into_iter().collect(),
        after
            .into_iter()
            .filter_map(|(step, exists)| exists.then_some(step))
            .collect(),
    )
}

/// When the sweep looks again at a binding that has ended.
pub(super) fn look_again(engine: &Engine, handle: &str) -> LookAgain {
    if handle.is_empty() || !anything(engine) {
        LookAgain::Never
    } else {
        LookAgain::At(later(engine))
    }
}

/// When what may come late has come.
pub(super) fn later(engine: &Engine) -> Millis {
    engine.now() + millis(SETTLE)
}

fn missing() -> PortError {
    PortError::invalid("The binding's credentials are missing; bind again.")
}

/// A step of opening or closing.
pub(super) async fn step(engine: &Engine, claimed: &Claimed, binding: &Binding) -> PortResult<Step> {
    match claimed.operation.step.as_str() {
        "publish" => {
            let stored = material(engine, binding).await?;
            publish(engine, claimed, binding, 0, &member(&stored, "credentials")).await?;
        }
        "identity" => identity(engine, claimed, binding).await?,
        "project" => {
            let stored = material(engine, binding).await?;
            project(engine, binding, &member(&stored, "credentials")).await?;
        }
        "handover" => handover(engine, binding).await?,
        "close" => close(engine, binding).await,
        "withdraw" => withdraw(engine, binding).await?,
        "unproject" => unproject(engine, binding).await?,
        _ => dismiss(engine, binding).await?,
    }
    Ok(Step::Done(Progress::default()))
}

async fn material(engine: &Engine, binding: &Binding) -> PortResult<Secret> {
    let name = secret_name::binding(&binding.iid, &binding.bid);
    engine.ports.secrets.get(&name).await?.ok_or_else(missing)
}

/// Puts a generation of the credentials where the binding's client can read them.
pub(super) async fn publish(
    engine: &Engine,
    claimed: &Claimed,
    binding: &Binding,
    generation: u32,
    credentials: &Secret,
) -> PortResult<()> {
    let Some(vault) = &engine.ports.vault else {
        return Ok(());
    };
    let served = engine.served();
    let attributes = &binding.attributes;
    let plan = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
    let request = claimed.operation.request_id.as_deref().unwrap_or_default();
    let number = |at: Option<Millis>| at.map_or_else(String::new, |at| at.to_string());
    let notes = [
        ("platform", binding.platform.clone()),
        ("instance", binding.iid.clone()),
        ("offering", claimed.operation.offering.clone()),
        (
            "plan",
            plan.map_or_else(String::new, |(_, plan)| plan.name.clone()),
        ),
        ("generation", generation.to_string()),
        ("request_id", request.to_owned()),
        ("renew_before_ms", number(binding.renew_before)),
    ];
    let notes: Vec<(&'static str, String)> = notes
        .into_iter()
        .filter(|(_, note)| !note.is_empty())
        .map(|(name, note)| (name, cut(note)))
        .collect();
    vault
        .publish(
            &binding.reference(),
            generation,
            credentials,
            &notes,
            binding.expires_at,
        )
        .await
}

fn cut(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        note.truncate(note.floor_char_boundary(MAX_NOTE));
    }
    note
}

/// Gives the binding its client, which gets tokens from here on.
async fn identity(engine: &Engine, claimed: &Claimed, binding: &Binding) -> PortResult<()> {
    let Some(identity) = &engine.ports.identity else {
        return Ok(());
    };
    let stored = material(engine, binding).await?;
    // Made before there was an identity provider: to make a secret now would not be the first one made.
    if !stored.expose().contains_key("client") {
        return Err(missing());
    }
    let served = engine.served();
    let attributes = &binding.attributes;
    let plan = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
    let label = plan.map_or_else(
        || claimed.operation.offering.clone(),
        |(offering, plan)| format!("{}/{}", offering.name, plan.name),
    );
    identity
        .ensure(&IdentitySpec {
            binding: binding.reference(),
            label,
            auth: auth(binding)?,
            secret: member(&stored, "client"),
        })
        .await
}

/// How the binding's application proves who it is, as it was asked for.
pub(super) fn auth(binding: &Binding) -> PortResult<ClientAuth> {
    delivery::client_auth(&binding.attributes.parameters)
        .map_err(|error| PortError::invalid(error.description))
}

/// Where the binding's Secret is.
pub(super) fn place(binding: &Binding) -> SecretPlace {
    SecretPlace {
        namespace: binding.secret_namespace.clone().unwrap_or_default(),
        name: binding.reference().client_id(),
    }
}

/// Sets the Secret in the application's namespace to these credentials.
pub(super) async fn project(engine: &Engine, binding: &Binding, credentials: &Secret) -> PortResult<()> {
    let Some(projection) = &engine.ports.projection else {
        return Ok(());
    };
    projection
        .project(&binding.reference(), &place(binding), credentials)
        .await
}

/// Lets go of the credentials: from here on they are only where applications get them. What answers say stays.
async fn handover(engine: &Engine, binding: &Binding) -> PortResult<()> {
    let secrets = &engine.ports.secrets;
    let (name, view) = (
        secret_name::binding(&binding.iid, &binding.bid),
        secret_name::view(&binding.iid, &binding.bid),
    );
    match secrets.get(&name).await? {
        Some(stored) => {
            let mut told = Secret::default();
            for what in ["role", "coordinates", "endpoints"] {
                told.insert(what, stored.expose().get(what).cloned().unwrap_or_default());
            }
            secrets.create(&view, &told).await?;
            secrets.destroy(&name).await
        }
        // Another worker got here before.
        None if secrets.get(&view).await?.is_some() => Ok(()),
        None => Err(missing()),
    }
}

/// Shuts the client out before anything else. Where that fails, the rest must not wait for it: with the user and the
/// secret gone a token opens nothing, and the client itself goes at the end, or the operation does not end well.
async fn close(engine: &Engine, binding: &Binding) {
    if binding.handle.is_empty() {
        return;
    }
    if let Some(identity) = &engine.ports.identity
        && let Err(error) = identity.disable(&binding.bid).await
    {
        warn!(bid = %binding.bid, detail = %error.detail, "could not shut a client out; the rest goes on");
    }
}

async fn withdraw(engine: &Engine, binding: &Binding) -> PortResult<()> {
    match &engine.ports.vault {
        // Without a handle nothing was ever put there.
        Some(vault) if !binding.handle.is_empty() => vault.withdraw(&binding.reference()).await,
        _ => Ok(()),
    }
}

async fn unproject(engine: &Engine, binding: &Binding) -> PortResult<()> {
    match &engine.ports.projection {
        Some(projection) if !binding.handle.is_empty() => {
            projection.remove(&binding.reference(), &place(binding)).await
        }
        _ => Ok(()),
    }
}

async fn dismiss(engine: &Engine, binding: &Binding) -> PortResult<()> {
    match &engine.ports.identity {
        Some(identity) if !binding.handle.is_empty() => identity.delete(&binding.bid).await,
        _ => Ok(()),
    }
}

/// Takes every binding that an instance still has out of what lies around it, before the server itself goes.
pub(super) async fn release(engine: &Engine, claimed: &Claimed) -> PortResult<Step> {
    let iid = &claimed.instance.iid;
    let bindings =
        engine.store.bindings_of(iid).await.map_err(|fail| {
            PortError::transient("The broker's database cannot be read.").with_detail(fail)
        })?;
    let left = bindings
        .into_iter()
        .filter(|binding| binding.residue || !binding.state.is_over())
        .map(|binding| async move { shut_out(engine, &binding).await });
    futures::stream::iter(left)
        .buffer_unordered(SIDE_BY_SIDE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(Step::Done(Progress::default()))
}

async fn shut_out(engine: &Engine, binding: &Binding) -> PortResult<()> {
    let (before, after) = closing(engine, binding.delivery);
    for step in before.into_iter().chain(after) {
        match step {
            "close" => close(engine, binding).await,
            "withdraw" => withdraw(engine, binding).await?,
            "unproject" => unproject(engine, binding).await?,
            _ => dismiss(engine, binding).await?,
        }
    }
    Ok(())
}

/// Adds what only bindings of an identity provider and a vault say: how to log in, and where to fetch.
pub(super) fn add_blocks(
    engine: &Engine,
    binding: &Binding,
    proof: &Secret,
    credentials: &mut Secret,
) -> PortResult<()> {
    let reference = binding.reference();
    credentials.insert("credential_mode", json!(binding.delivery.as_str()));
    if let Some(identity) = &engine.ports.identity {
        let mut block = identity.coordinates(&reference, &auth(binding)?);
        block.extend(proof.expose().clone());
        credentials.insert("keycloak", Value::Object(block));
    }
    if let Some(vault) = &engine.ports.vault {
        credentials.insert("vault", Value::Object(vault.coordinates(&reference)));
    }
    Ok(())
}
