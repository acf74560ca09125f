//! Steps of provision, update and deprovision. Each may run again at any time and finds its own earlier work.

use super::runner::{Next, OnFailure, Step, ended_badly, following, succeeded};
use super::{Engine, credentials, outside};
use crate::domain::catalog::{Offering, Plan};
use crate::domain::expr::{ExprError, Scope};
use crate::domain::instance::{Instance, InstanceAttributes, InstanceState, Millis};
use crate::domain::manifest::{self, Desired};
use crate::domain::operation::OperationKind;
use crate::domain::params;
use crate::domain::secret::Secret;
use crate::ports::{
    CredentialMechanism, InstanceRef, ObjectRef, Observation, PortError, Removal, RevokedHandle, Target,
    Volumes, secret_name,
};
use crate::store::{Claimed, LookAgain, Progress};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Steps of a provision and, with other values, of an update and of its undo.
pub(super) const PROVISION: &[&str] = &["place", "secrets", "apply", "ready", "prepare"];
/// Steps of a deprovision.
const DEPROVISION: &[&str] = &["remove", "forget"];
/// How long going back after a failed update may take, milliseconds.
const UNDO: Millis = 600_000;

/// The steps of an operation on an instance, in order. What lies around the server knows its bindings, where there is
/// anything: they are taken out of it first.
pub(super) fn steps(engine: &Engine, kind: OperationKind) -> Vec<&'static str> {
    match kind {
        OperationKind::Deprovision => {
            let release = outside::anything(engine).then_some("release");
            release.iter().chain(DEPROVISION).copied().collect()
        }
        OperationKind::Credentials => credentials::STEPS.to_vec(),
        _ => PROVISION.to_vec(),
    }
}

pub(super) async fn step(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let instance = &claimed.instance;
    if claimed.operation.kind == OperationKind::Deprovision {
        return match claimed.operation.step.as_str() {
            "release" => outside::release(engine, claimed).await,
            "forget" => forget(engine, claimed).await,
            _ => remove(engine, claimed).await,
        };
    }
    let attributes = wanted(claimed);
    let here = Here::of(engine, instance, attributes)?;
    match claimed.operation.step.as_str() {
        "secrets" => secrets(engine, &here).await,
        "apply" => {
            let desired = here.desired(engine).await?;
            engine.ports.provisioner.apply(&here.reference, &desired).await?;
            Ok(Step::Done(Progress::default()))
        }
        "ready" => ready(engine, claimed, &here).await,
        "prepare" if claimed.operation.kind == OperationKind::Credentials => {
            prepare(engine, &here).await.map_err(credentials::passing)
        }
        "prepare" => prepare(engine, &here).await,
        _ if claimed.operation.kind == OperationKind::Credentials => credentials::step(engine, claimed).await,
        _ => place(engine, &here).await,
    }
}

/// An update works towards its target; undoing it, and everything else, towards what the instance is.
fn wanted(claimed: &Claimed) -> &InstanceAttributes {
    match &claimed.operation.target {
        Some(target) if claimed.operation.failing.is_none() => &target.attributes,
        _ => &claimed.instance.attributes,
    }
}

/// An instance seen through the catalog that is in use now.
pub(super) struct Here<'a> {
    instance: &'a Instance,
    offering: Arc<Offering>,
    plan: Arc<Plan>,
    parameters: Map<String, Value>,
    /// For whom it is rendered.
    provisioner: &'static str,
    pub(super) reference: InstanceRef,
}

impl<'a> Here<'a> {
    pub(super) fn of(
        engine: &Engine,
        instance: &'a Instance,
        attributes: &InstanceAttributes,
    ) -> Result<Self, PortError> {
        let served = engine.served();
        let Some((offering, plan)) = served.catalog.plan(&attributes.service_id, &attributes.plan_id) else {
            return Err(PortError::invalid(
                "The plan of this instance is no longer in the catalog, so the instance can only be deleted.",
            ));
        };
        Ok(Self {
            instance,
            parameters: params::with_defaults(&plan.schemas.create, &attributes.parameters),
            reference: reference(instance, &offering.name, &plan.name),
            provisioner: engine.ports.provisioner.name(),
            offering: offering.clone(),
            plan: plan.clone(),
        })
    }

    /// The names expressions see, from what the instance and its placement are.
    fn scope(&self, place: &Map<String, Value>) -> Scope {
        let platform = &self.instance.platform;
        manifest::instance_scope(
            &self.instance.iid,
            platform,
            &self.offering,
            &self.plan,
            &self.parameters,
            place,
        )
    }

    fn place(&self) -> Map<String, Value> {
        match self.instance.facts.get("place") {
            Some(Value::Object(place)) => place.clone(),
            _ => Map::new(),
        }
    }

    pub(super) async fn desired(&self, engine: &Engine) -> Result<Desired, PortError> {
        let secrets = &engine.ports.secrets;
        let admin = secrets
            .get(&credentials::present(self.instance))
            .await?
            .unwrap_or_default();
        let generated = secrets
            .get(&secret_name::generated(&self.instance.iid))
            .await?
            .unwrap_or_default();
        manifest::render(
            &self.offering,
            &self.plan,
            self.provisioner,
            &self.scope(&self.place()),
            &admin,
            &generated,
        )
        .map_err(unrenderable)
    }
}

pub(super) fn reference(instance: &Instance, offering: &str, plan: &str) -> InstanceRef {
    InstanceRef {
        iid: instance.iid.clone(),
        offering: offering.to_owned(),
        plan: plan.to_owned(),
        inventory: inventory(&instance.facts),
        established: !matches!(
            instance.state,
            InstanceState::Provisioning | InstanceState::ProvisionFailed
        ),
    }
}

/// Objects announced for an instance, from its facts.
fn inventory(facts: &Map<String, Value>) -> Vec<ObjectRef> {
    let recorded = facts.get("inventory").cloned().unwrap_or_default();
    serde_json::from_value(recorded).unwrap_or_default()
}

/// The facts with `objects` announced beside what was before, when that adds something.
fn announced(facts: &Map<String, Value>, objects: Vec<ObjectRef>) -> Option<Map<String, Value>> {
    let mut all = inventory(facts);
    let before = all.len();
    all.extend(objects);
    all.sort();
    all.dedup();
    (all.len() > before).then(|| {
        let mut facts = facts.clone();
        facts.insert("inventory".into(), json!(all));
        facts
    })
}

pub(super) fn unrenderable(error: ExprError) -> PortError {
    PortError::invalid("The catalog's description of this service does not fit these parameters; the operator has to mend it.")
        .with_detail(error)
}

/// Lets the provisioner choose, and fixes what bindings need to know even if the catalog changes later.
async fn place(engine: &Engine, here: &Here<'_>) -> Result<Step, PortError> {
    let place = engine
        .ports
        .provisioner
        .place(&here.reference, &here.offering)
        .await?;
    let mut facts = here.instance.facts.clone();
    if let Some(binding) = &here.offering.binding {
        let settings = manifest::settings(binding, &here.plan, &here.scope(&place)).map_err(unrenderable)?;
        facts.insert(
            "binding".into(),
            json!({"mechanism": binding.mechanism, "settings": settings, "endpoint": binding.endpoint}),
        );
    }
    facts.insert("place".into(), Value::Object(place));
    Ok(Step::Done(Progress {
        facts: Some(facts),
        ..Progress::default()
    }))
}

/// Makes what is made once, and announces every object before the first of them exists.
///
/// Two workers at it go on with the same values: the store keeps the first.
async fn secrets(engine: &Engine, here: &Here<'_>) -> Result<Step, PortError> {
    let iid = &here.instance.iid;
    let store = &engine.ports.secrets;
    if let Some((mechanism, settings, _)) = mechanism(engine, here.instance)? {
        let name = credentials::present(here.instance);
        if store.get(&name).await?.is_none() {
            store.create(&name, &mechanism.generate_admin(&settings)?).await?;
        }
    }
    if !here.offering.generated.is_empty() {
        let name = secret_name::generated(iid);
        if store.get(&name).await?.is_none() {
            let values = here
                .offering
                .generated
                .iter()
                .map(|(name, length)| (name.clone(), generated(engine, *length)));
            store.create(&name, &Secret::from_pairs(values)).await?;
        }
    }
    let desired = here.desired(engine).await?;
    let objects = engine.ports.provisioner.inventory(&here.reference, &desired)?;
    Ok(Step::Done(Progress {
        facts: announced(&here.instance.facts, objects),
        ..Progress::default()
    }))
}

/// Brings the server into the state bindings need, and only then lets applications in.
///
/// What an earlier version had and this one has not is gone by now, except what holds data.
async fn prepare(engine: &Engine, here: &Here<'_>) -> Result<Step, PortError> {
    if let Some((mechanism, target)) = target(engine, here.instance).await? {
        mechanism.prepare(&target).await?;
        if here.instance.state == InstanceState::Provisioning && has_data(here.instance) {
            // Brought back: what is in the volumes still knows the users of bindings that ended with the instance.
            for handle in mechanism.list(&target).await? {
                mechanism.revoke(&target, &handle).await?;
            }
        }
    }
    let desired = here.desired(engine).await?;
    let provisioner = &engine.ports.provisioner;
    provisioner.open(&here.reference, &desired).await?;
    let wanted = provisioner.inventory(&here.reference, &desired)?;
    let before = inventory(&here.instance.facts);
    let left: Vec<&ObjectRef> = before
        .iter()
        .filter(|object| object.holds_data() || wanted.contains(object))
        .collect();
    let worth_keeping = provisioner.keeps_volumes();
    let changed = left.len() < before.len() || worth_keeping != has_data(here.instance);
    let facts = changed.then(|| {
        let mut facts = here.instance.facts.clone();
        facts.insert("inventory".into(), json!(left));
        facts.insert("has_data".into(), Value::Bool(worth_keeping));
        facts
    });
    Ok(Step::Done(Progress {
        facts,
        ..Progress::default()
    }))
}

/// A secret text of `length` characters from operation-token entropy (base32, 5 bits each).
fn generated(engine: &Engine, length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        text.push_str(&(engine.ports.new_id)());
    }
    text.truncate(length);
    text
}

async fn ready(engine: &Engine, claimed: &Claimed, here: &Here<'_>) -> Result<Step, PortError> {
    let desired = here.desired(engine).await?;
    let provisioner = &engine.ports.provisioner;
    match provisioner.observe(&here.reference, &desired).await? {
        Observation::Ready(endpoints) => Ok(Step::Done(Progress {
            endpoints: Some(endpoints),
            ..Progress::default()
        })),
        Observation::Progressing(message) => Ok(Step::Again(soon(claimed), message)),
        Observation::Failed(reason) => Ok(Step::Failed(reason)),
        Observation::Absent(message) => {
            provisioner.apply(&here.reference, &desired).await?;
            Ok(Step::Again(soon(claimed), message))
        }
    }
}

/// Short at first, because small services start in milliseconds; then longer, because big ones take minutes.
fn soon(claimed: &Claimed) -> Duration {
    let tries = i32::try_from(claimed.operation.tries.clamp(0, 20)).unwrap_or(20);
    Duration::from_secs_f64((0.04 * 1.35_f64.powi(tries)).min(2.0))
}

async fn remove(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let instance = &claimed.instance;
    let reference = reference(instance, &claimed.operation.offering, "");
    let volumes = volumes(engine, instance);
    match engine.ports.provisioner.remove(&reference, volumes).await? {
        Removal::Gone => Ok(Step::Done(Progress::default())),
        Removal::StillGoing(message) => Ok(Step::Again(soon(claimed), message)),
    }
}

/// Data is worth keeping once an instance has been ready, when its plan says so and the provisioner can.
fn volumes(engine: &Engine, instance: &Instance) -> Volumes {
    if has_data(instance) && retain_days(engine, instance) > 0 && engine.ports.provisioner.keeps_volumes() {
        Volumes::Keep
    } else {
        Volumes::Delete
    }
}

/// A new attempt where an earlier one failed: what kept volumes know of it is known of them still.
pub(super) fn lasting(mut row: Instance, before: &Instance) -> Instance {
    for fact in ["has_data", credentials::FACT] {
        if let Some(known) = before.facts.get(fact) {
            row.facts.insert(fact.into(), known.clone());
        }
    }
    row
}

fn has_data(instance: &Instance) -> bool {
    instance.facts.get("has_data") == Some(&Value::Bool(true))
}

fn retain_days(engine: &Engine, instance: &Instance) -> u32 {
    let attributes = &instance.attributes;
    let served = engine.served();
    let plan = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
    plan.map_or(0, |(_, plan)| plan.retain_days)
}

/// Looks once more that nothing came late from a worker that lost its lease, then forgets the secrets.
///
/// With the volumes, the secrets that open them are kept too.
async fn forget(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let instance = &claimed.instance;
    let reference = reference(instance, &claimed.operation.offering, "");
    let volumes = volumes(engine, instance);
    if let Removal::StillGoing(message) = engine.ports.provisioner.remove(&reference, volumes).await? {
        return Ok(Step::Again(soon(claimed), message));
    }
    let keep = match volumes {
        Volumes::Delete => Vec::new(),
        Volumes::Keep => {
            let mut keep = credentials::any_present(instance);
            keep.push(secret_name::generated(&instance.iid));
            keep
        }
    };
    destroy_secrets(engine, &instance.iid, &keep).await?;
    Ok(Step::Done(Progress::default()))
}

/// Destroys every secret of an instance, its bindings' among them, except those named in `keep`.
pub(super) async fn destroy_secrets(engine: &Engine, iid: &str, keep: &[String]) -> Result<(), PortError> {
    let secrets = &engine.ports.secrets;
    for name in secrets.list(&secret_name::all(iid)).await? {
        if !keep.contains(&name) {
            secrets.destroy(&name).await?;
        }
    }
    Ok(())
}

/// The mechanism an instance was provisioned with, its settings and the name of its endpoint.
pub(super) type Chosen = (Arc<dyn CredentialMechanism>, Map<String, Value>, String);

pub(super) fn mechanism(engine: &Engine, instance: &Instance) -> Result<Option<Chosen>, PortError> {
    let Some(binding) = instance.facts.get("binding") else {
        return Ok(None);
    };
    let word = binding
        .get("mechanism")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mechanism = engine.ports.mechanisms.get(word).ok_or_else(|| {
        PortError::invalid(format!(
            "This broker does not have the credential mechanism \"{word}\" any more."
        ))
    })?;
    let settings = binding.get("settings").and_then(Value::as_object).cloned();
    let endpoint = binding
        .get("endpoint")
        .and_then(Value::as_str)
        .unwrap_or_default();
    Ok(Some((
        mechanism.clone(),
        settings.unwrap_or_default(),
        endpoint.to_owned(),
    )))
}

/// What a mechanism needs to work on an instance; none when its bindings need no users.
pub(super) async fn target(
    engine: &Engine,
    instance: &Instance,
) -> Result<Option<(Arc<dyn CredentialMechanism>, Target)>, PortError> {
    let Some(chosen) = mechanism(engine, instance)? else {
        return Ok(None);
    };
    let admin = engine.ports.secrets.get(&credentials::present(instance)).await?;
    let admin = admin.ok_or_else(credentials::missing)?;
    let (mechanism, target) = target_as(engine, instance, chosen, admin).await?;
    let target = credentials::settled(engine, instance, &*mechanism, target).await?;
    Ok(Some((mechanism, target)))
}

/// The same for its mechanism, with these credentials of the administrator.
pub(super) async fn target_as(
    engine: &Engine,
    instance: &Instance,
    (mechanism, settings, name): Chosen,
    admin: Secret,
) -> Result<(Arc<dyn CredentialMechanism>, Target), PortError> {
    let endpoint = instance
        .endpoints
        .iter()
        .find(|e| e.name == name)
        .cloned()
        .ok_or_else(|| PortError::transient("The instance's address is not known yet."))?;
    let reference = reference(instance, "", "");
    let provisioner = &engine.ports.provisioner;
    let mut endpoints = Vec::with_capacity(instance.endpoints.len());
    for endpoint in &instance.endpoints {
        endpoints.push(provisioner.reach(&reference, endpoint).await?);
    }
    let target = Target {
        iid: instance.iid.clone(),
        endpoint: provisioner.reach(&reference, &endpoint).await?,
        endpoints,
        settings,
        admin,
        revoked: revoked(engine, &instance.iid).await?,
    };
    Ok((mechanism, target))
}

/// Everybody whom this instance must not let in any more.
pub(super) async fn revoked(engine: &Engine, iid: &str) -> Result<Vec<RevokedHandle>, PortError> {
    let handles =
        engine.store.revoked_handles(iid).await.map_err(|fail| {
            PortError::transient("The broker's database cannot be read.").with_detail(fail)
        })?;
    Ok(handles
        .into_iter()
        .map(|(handle, at)| RevokedHandle { handle, at })
        .collect())
}

pub(super) fn next(engine: &Engine, claimed: &Claimed) -> Next {
    let operation = &claimed.operation;
    if let Some(step) = following(engine, claimed) {
        return Next::Step(step);
    }
    if operation.kind == OperationKind::Credentials {
        return credentials::end(claimed);
    }
    let mut instance = claimed.instance.clone();
    instance.updated_at = engine.now();
    let finish = match (operation.kind, &operation.failing, &operation.target) {
        (OperationKind::Deprovision, ..) => {
            let mut finish = match volumes(engine, &instance) {
                Volumes::Delete => {
                    instance.facts.clear();
                    succeeded(claimed, "Deleted.")
                }
                Volumes::Keep => {
                    let days = retain_days(engine, &instance);
                    instance.retained_until = Some(instance.updated_at + Millis::from(days) * 24 * 3_600_000);
                    succeeded(
                        claimed,
                        &format!(
                            "Deleted. Its volumes are kept for {days} days; an operator can bring it back until then."
                        ),
                    )
                }
            };
            instance.state = InstanceState::Gone;
            instance.endpoints.clear();
            finish.bindings_gone = true;
            finish.look_again = if outside::anything(engine) {
                LookAgain::At(outside::later(engine))
            } else {
                LookAgain::Never
            };
            finish
        }
        (OperationKind::Update, Some(why), _) => {
            // Went back to what it was: the update failed, the instance works.
            instance.state = InstanceState::Ready;
            instance.usable = true;
            let mut finish = ended_badly(
                claimed,
                &format!("{why} The instance was put back to its previous state and works."),
            );
            finish.instance_usable = Some(true);
            finish
        }
        (OperationKind::Update, None, Some(target)) => {
            instance.attributes = target.attributes.clone();
            instance
                .maintenance_version
                .clone_from(&target.maintenance_version);
            instance.state = InstanceState::Ready;
            instance.usable = true;
            succeeded(claimed, "Updated.")
        }
        _ => {
            instance.state = InstanceState::Ready;
            instance.usable = true;
            succeeded(claimed, "Ready.")
        }
    };
    Next::End(Box::new(crate::store::Finish {
        instance: Some(instance),
        ..finish
    }))
}

pub(super) fn on_failure(engine: &Engine, claimed: &Claimed, why: &str, late: bool) -> OnFailure {
    let operation = &claimed.operation;
    if operation.kind == OperationKind::Credentials {
        return credentials::on_failure(claimed, why);
    }
    let mut instance = claimed.instance.clone();
    instance.updated_at = engine.now();
    let mut finish = ended_badly(claimed, why);
    match operation.kind {
        OperationKind::Update => {
            if operation.failing.is_none() {
                return OnFailure::Undo(PROVISION[0], engine.now() + UNDO);
            }
            let first = operation.failing.as_deref().unwrap_or_default();
            instance.state = InstanceState::Ready;
            instance.usable = false;
            let again = if first == why {
                String::new()
            } else {
                format!(": {why}")
            };
            let again = again.trim_end_matches('.');
            finish.description = format!(
                "{first} Going back failed too{again}. The instance may not work; update it again or give it up."
            );
            finish.instance_usable = Some(false);
            finish.update_repeatable = Some(true);
        }
        OperationKind::Deprovision => {
            instance.state = InstanceState::DeprovisionFailed;
            instance.usable = false;
            finish.instance_usable = Some(false);
            finish.description = format!("{why} Delete the instance again to go on.");
        }
        _ => {
            instance.state = InstanceState::ProvisionFailed;
            instance.usable = false;
            if late {
                finish.description = format!("{why} Delete the instance and create it again.");
            }
        }
    }
    finish.instance = Some(instance);
    OnFailure::End(Box::new(finish))
}
