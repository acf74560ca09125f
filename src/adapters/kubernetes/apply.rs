//! Bringing the cluster to what is wanted, phase by phase.
//!
//! What must stay true: an object goes out by server-side apply, and only when what is there differs; one phase follows
//! another only once everything in it is ready; nothing that is not this instance's is written over; volumes grow and
//! never shrink, and what held data and is gone is never silently made anew.

use super::client::Ask;
use super::dress::{self, Dressed};
use super::health::{self, Health};
use super::kinds::{Kinds, Resource};
use super::refusal::Refusal;
use super::reshape::{self, Growth, Reshape};
use super::watch::is_watched;
use super::{KubernetesProvisioner, inventory, names, quantity, quota, shape};
use crate::domain::manifest::Desired;
use crate::ports::{InstanceRef, ObjectRef, PortError, PortErrorKind, PortResult};
use kube::api::{DeleteParams, ListParams, Preconditions};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the server's word that it took an object stands for what the watch has not shown yet.
const LAG: Duration = Duration::from_secs(10);
/// The label of what is kept of a removed instance.
pub(super) const RETAINED: &str = "chandler.osb/retained";

/// Where a wanted object stands.
pub(super) enum Stand {
    /// The cluster has it as wanted.
    Live(Value),
    /// The server took it, and it either has no state or was not seen yet.
    Sent,
    /// The cluster has it otherwise.
    Other,
    /// It is being removed.
    Going,
    /// The cluster does not have it, as far as this process knows.
    Missing,
}

/// Whether an object is this instance's.
pub(super) fn is_ours(object: &Value, iid: &str) -> bool {
    let label = |name: &str| {
        let labels = object.pointer("/metadata/labels");
        labels.and_then(|labels| labels.get(name)?.as_str())
            == Some(if name == names::INSTANCE {
                iid
            } else {
                names::MANAGED_BY.1
            })
    };
    label(names::MANAGED_BY.0) && label(names::INSTANCE)
}

/// Whether an object is on its way out.
pub(super) fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// The hash an object was applied with.
fn hash(object: &Value) -> &str {
    let annotations = object.pointer("/metadata/annotations");
    annotations
        .and_then(|annotations| annotations.get(names::HASH)?.as_str())
        .unwrap_or_default()
}

/// Removes exactly the object that was looked at, not one of the same name that came after.
pub(super) fn exactly(object: &Value, mut params: DeleteParams) -> DeleteParams {
    params.preconditions = Some(Preconditions {
        uid: Some(shape::text(object, "/metadata/uid").to_owned()),
        resource_version: None,
    });
    params
}

/// Objects grouped by phase, in rising order.
pub(super) fn phases(all: &[Dressed]) -> BTreeMap<u16, Vec<&Dressed>> {
    let mut phases: BTreeMap<u16, Vec<&Dressed>> = BTreeMap::new();
    for one in all {
        phases.entry(one.phase).or_default().push(one);
    }
    phases
}

impl KubernetesProvisioner {
    pub(super) async fn apply_all(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        let all = dress::dressed(&self.settings, instance, desired)?;
        self.ground(instance).await?;
        for (phase, objects) in phases(&all) {
            if phase == names::OPENING {
                continue;
            }
            let mut ready = true;
            for object in objects {
                let resource = self.resource(&object.reference).await?;
                let there = self.bring(instance, object, &resource).await?;
                ready &= there && self.is_ready(instance, object, &resource);
            }
            if !ready {
                return Ok(());
            }
        }
        self.prune(instance, &all).await
    }

    /// Makes what lets applications in.
    pub(super) async fn open_up(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        let all = dress::dressed(&self.settings, instance, desired)?;
        for object in &all {
            let resource = self.resource(&object.reference).await?;
            if object.phase == names::OPENING {
                self.bring(instance, object, &resource).await?;
            } else if object.reference.kind == "ResourceQuota" && instance.established {
                // While the pods changed it was as wide as before and after together.
                self.send(&object.reference, &resource, &object.object).await?;
            }
        }
        self.notes.forget(&instance.iid);
        Ok(())
    }

    pub(super) async fn resource(&self, reference: &ObjectRef) -> PortResult<Resource> {
        self.kinds
            .resolve(&self.cluster, &reference.api_version, &reference.kind)
            .await
    }

    /// Where a wanted object stands; `Err` while its kind was not seen whole.
    pub(super) fn stand(&self, iid: &str, wanted: &Dressed, resource: &Resource) -> PortResult<Stand> {
        let reference = &wanted.reference;
        let sent = self.notes.age(iid, reference, hash(&wanted.object));
        if !is_watched(resource) {
            return Ok(if sent.is_some() {
                Stand::Sent
            } else {
                Stand::Missing
            });
        }
        let seen = self
            .watches
            .on(resource)
            .one(iid, &reference.namespace, &reference.name)?;
        Ok(match seen {
            Some(object) if is_going(&object) => Stand::Going,
            Some(object)
                if hash(&object) == hash(&wanted.object) && !self.notes.is_edited(iid, reference) =>
            {
                Stand::Live(object)
            }
            _ if sent.is_some_and(|age| age < LAG) => Stand::Sent,
            Some(_) => Stand::Other,
            None => Stand::Missing,
        })
    }

    fn is_ready(&self, instance: &InstanceRef, wanted: &Dressed, resource: &Resource) -> bool {
        if !is_watched(resource) {
            return true;
        }
        match self.stand(&instance.iid, wanted, resource) {
            Ok(Stand::Live(object)) => health::of(&object, wanted) == Health::Ready,
            _ => false,
        }
    }

    /// Looks that the instance's namespace is its own, and that what it held is not lost.
    async fn ground(&self, instance: &InstanceRef) -> PortResult<()> {
        if self.settings.shared_namespace.is_some() {
            return self.volumes_are_there(instance).await;
        }
        let name = names::namespace(&instance.iid);
        let resource = Kinds::namespaces();
        let seen = self.watches.on(&resource).one(&instance.iid, "", &name);
        let namespace = match seen {
            Ok(Some(namespace)) => Some(namespace),
            // The watch sees only what is ours, and not yet what was just made.
            _ => self.look(&resource, "", &name, Ask::Get).await?,
        };
        match namespace {
            None if instance.established && instance.inventory.iter().any(ObjectRef::holds_data) => {
                Err(PortError::invalid(lost(&name)))
            }
            None => Ok(()),
            Some(namespace) if !is_ours(&namespace, &instance.iid) => Err(foreign("Namespace", &name)),
            Some(namespace) if is_going(&namespace) && instance.established => {
                Err(PortError::invalid(lost(&name)))
            }
            Some(namespace) if is_going(&namespace) => Err(PortError::transient(format!(
                "Waiting for the earlier namespace {name} of this instance to go."
            ))),
            Some(namespace) => {
                if is_retained(&namespace) {
                    self.take_back(instance, &resource, &name).await?;
                }
                self.volumes_are_there(instance).await
            }
        }
    }

    /// Refuses to make an instance anew whose volumes are gone: it would come up empty, as if nothing had happened.
    async fn volumes_are_there(&self, instance: &InstanceRef) -> PortResult<()> {
        let volumes = || instance.inventory.iter().filter(|object| object.holds_data());
        if !instance.established || volumes().next().is_none() {
            return Ok(());
        }
        let resource = Kinds::volumes();
        if let Ok(seen) = self.watches.on(&resource).of(&instance.iid)
            && !seen.is_empty()
        {
            return Ok(());
        }
        for volume in volumes() {
            let there = self
                .look(&resource, &volume.namespace, &volume.name, Ask::Meta)
                .await?;
            if there.is_some() {
                return Ok(());
            }
        }
        Err(PortError::invalid(
            "The volumes of this instance were deleted outside the broker, and its data with them. Delete the instance and create it again.",
        ))
    }

    /// Ends the keeping of what was retained of this instance.
    async fn take_back(&self, instance: &InstanceRef, namespaces: &Resource, name: &str) -> PortResult<()> {
        let change = json!({"metadata": {"labels": {RETAINED: null}}});
        let volumes = Kinds::volumes();
        let params =
            ListParams::default().labels(&format!("{}={},{RETAINED}", names::INSTANCE, instance.iid));
        for volume in self.cluster.list(&volumes, name, &params, true).await? {
            let volume = shape::name(&volume);
            self.cluster
                .ask(&volumes, name, volume, Ask::Merge(&change))
                .await?;
        }
        self.cluster
            .ask(namespaces, "", name, Ask::Merge(&change))
            .await?;
        Ok(())
    }

    /// Brings one object to what is wanted. False = it has to go first, or is going: call again.
    async fn bring(&self, instance: &InstanceRef, wanted: &Dressed, resource: &Resource) -> PortResult<bool> {
        let iid = instance.iid.as_str();
        let stand = match self.stand(iid, wanted, resource) {
            Err(error) if error.kind == PortErrorKind::Denied => return Err(error),
            stand => stand,
        };
        match &stand {
            Ok(Stand::Live(_) | Stand::Sent) => return Ok(true),
            Ok(Stand::Going) => return Ok(false),
            Ok(Stand::Other | Stand::Missing) | Err(_) => {}
        }
        let reference = &wanted.reference;
        // Only a namespace of its own says that everything in it is the instance's.
        let stranger = self.settings.shared_namespace.is_some() && !matches!(stand, Ok(Stand::Other));
        let picky = matches!(reference.kind.as_str(), "StatefulSet" | "Job") && !resource.is_custom();
        let unseen = !matches!(stand, Ok(Stand::Missing));
        if stranger || (picky && unseen) {
            let ask = if picky { Ask::Get } else { Ask::Meta };
            if let Some(live) = self
                .look(resource, &reference.namespace, &reference.name, ask)
                .await?
            {
                if !is_ours(&live, iid) {
                    return Err(foreign(&reference.kind, &reference.name));
                }
                if is_going(&live) {
                    return Ok(false);
                }
                let same = hash(&live) == hash(&wanted.object);
                if same && !self.notes.is_edited(iid, reference) {
                    self.notes.sent(iid, reference, hash(&wanted.object));
                    return Ok(true);
                }
                if picky && !same && !self.may_change(resource, &live, wanted).await? {
                    return Ok(false);
                }
            }
        }
        let taken = if reference.kind == "ResourceQuota" && instance.established {
            let live = self
                .look(resource, &reference.namespace, &reference.name, Ask::Get)
                .await?;
            let widened = live.map_or_else(
                || wanted.object.clone(),
                |live| quota::widened(&wanted.object, &live),
            );
            self.send(reference, resource, &widened).await?
        } else {
            self.send(reference, resource, &wanted.object).await?
        };
        if taken {
            self.notes.sent(iid, reference, hash(&wanted.object));
        }
        Ok(taken)
    }

    /// Applies an object. False = it is on its way out.
    async fn send(&self, reference: &ObjectRef, resource: &Resource, object: &Value) -> PortResult<bool> {
        let (namespace, name) = (reference.namespace.as_str(), reference.name.as_str());
        match self
            .cluster
            .ask(resource, namespace, name, Ask::Apply(object))
            .await
        {
            Ok(taken) => Ok(!is_going(&taken)),
            Err(refused) if refused.is_gone() => Err(PortError::transient(
                "The namespace of this instance went away while it was being made; trying again.",
            )
            .with_detail(PortError::from(refused).detail)),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Makes way for what an object in the cluster does not let anybody change. False = it has to go first.
    async fn may_change(&self, resource: &Resource, live: &Value, wanted: &Dressed) -> PortResult<bool> {
        let reference = &wanted.reference;
        let (namespace, name) = (reference.namespace.as_str(), reference.name.as_str());
        let params = match resource.kind.as_str() {
            "Job" => DeleteParams::background(),
            _ => match reshape::of(live, &wanted.object) {
                Reshape::Apply => return Ok(true),
                Reshape::Refused(why) => return Err(PortError::invalid(why)),
                Reshape::Again(growths) => {
                    self.grow(namespace, name, &growths).await?;
                    DeleteParams::orphan()
                }
            },
        };
        match self
            .cluster
            .ask(resource, namespace, name, Ask::Delete(&exactly(live, params)))
            .await
        {
            Ok(_) => Ok(false),
            Err(refused) if refused.is_gone() => Ok(true),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Makes the volumes of a StatefulSet larger; everything is looked at before anything is changed.
    async fn grow(&self, namespace: &str, set: &str, growths: &[Growth]) -> PortResult<()> {
        if growths.is_empty() {
            return Ok(());
        }
        let resource = Kinds::volumes();
        let params =
            ListParams::default().labels(&format!("{}={}", names::MANAGED_BY.0, names::MANAGED_BY.1));
        let volumes = self.cluster.list(&resource, namespace, &params, false).await?;
        let mut changes = Vec::new();
        for growth in growths {
            let wanted = quantity::milli(&Value::from(growth.size.as_str()));
            for volume in &volumes {
                let ordinal = shape::name(volume).strip_prefix(&format!("{}-{set}-", growth.template));
                if !ordinal.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
                    continue;
                }
                let has = volume.pointer("/spec/resources/requests/storage");
                if has.and_then(quantity::milli) >= wanted {
                    continue;
                }
                self.can_grow(volume, growth).await?;
                changes.push((shape::name(volume), growth.size.as_str()));
            }
        }
        for (name, size) in changes {
            let change = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            self.cluster
                .ask(&resource, namespace, name, Ask::Merge(&change))
                .await?;
        }
        Ok(())
    }

    async fn can_grow(&self, volume: &Value, growth: &Growth) -> PortResult<()> {
        let class = shape::text(volume, "/spec/storageClassName");
        let refuse = || {
            Err(PortError::invalid(format!(
                "The StorageClass `{class}` does not let volumes grow, so {} cannot become {}. Create a new instance and move the data.",
                growth.template, growth.size
            )))
        };
        if class.is_empty() {
            return refuse();
        }
        let found = self.look(&Kinds::classes(), "", class, Ask::Get).await;
        match found {
            Ok(Some(found)) if found.get("allowVolumeExpansion") == Some(&Value::Bool(true)) => Ok(()),
            // Without the right to look, the server's answer to the change itself says it.
            Err(error) if error.kind == PortErrorKind::Denied => Ok(()),
            Err(error) => Err(error),
            Ok(_) => refuse(),
        }
    }

    /// Removes what the inventory holds and nobody wants any more, except what holds data.
    async fn prune(&self, instance: &InstanceRef, all: &[Dressed]) -> PortResult<()> {
        for reference in self.left_over(instance, all) {
            self.remove_one(&instance.iid, &reference, DeleteParams::background())
                .await?;
            self.notes.pruned(&instance.iid, &reference);
        }
        Ok(())
    }

    /// What the inventory holds beyond what is wanted, and is not known to be gone.
    pub(super) fn left_over(&self, instance: &InstanceRef, all: &[Dressed]) -> Vec<ObjectRef> {
        if instance.inventory.is_empty() {
            return Vec::new();
        }
        let wanted = inventory::of(all);
        instance
            .inventory
            .iter()
            .filter(|object| !object.holds_data() && object.kind != "Namespace")
            .filter(|object| !wanted.contains(object) && !self.notes.is_pruned(&instance.iid, object))
            .cloned()
            .collect()
    }

    /// An object as it is; `None` when there is none.
    pub(super) async fn look(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        ask: Ask<'_>,
    ) -> PortResult<Option<Value>> {
        match self.cluster.ask(resource, namespace, name, ask).await {
            Ok(object) => Ok(Some(object)),
            Err(refused) if refused.is_gone() => Ok(None),
            Err(refused) => Err(Refusal::into(refused)),
        }
    }
}

/// Whether a namespace or volume was kept when its instance was removed.
pub(super) fn is_retained(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.is_some_and(|labels| labels.get(RETAINED).is_some())
}

/// The sentence for a namespace that somebody deleted.
pub(super) fn lost(namespace: &str) -> String {
    format!(
        "The namespace {namespace} of this instance was deleted outside the broker, and its data with it. Delete the instance and create it again."
    )
}

fn foreign(kind: &str, name: &str) -> PortError {
    PortError::denied(format!(
        "There is a {kind} {name} in the cluster that is not this instance's, and the broker does not write over it. The operator has to remove or rename it."
    ))
}
