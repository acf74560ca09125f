//! Taking an instance away, in an order in which everything can end well.
//!
//! What must stay true: only what carries this instance's labels is touched, and exactly the object that was looked at;
//! custom resources go first, while their operators and what they need are there; then workloads, then volumes, the
//! namespace last; gone means that the server says so. Every call looks anew, so it goes on from wherever it was. No
//! Secrets are listed: they are known by name from the inventory, or go with their namespace.

use super::apply::{RETAINED, exactly, is_going, is_ours};
use super::client::Ask;
use super::kinds::{Kinds, Resource};
use super::{KubernetesProvisioner, names, shape};
use crate::domain::catalog::KINDS;
use crate::ports::{InstanceRef, ObjectRef, PortErrorKind, PortResult, Removal, Volumes};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tracing::warn;

/// What is left of an object that was to go.
pub(super) enum Left {
    /// Nothing.
    Gone,
    /// It is on its way out; what still holds it, if the server says.
    Going(Option<String>),
}

/// In which order kinds go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Custom,
    Workload,
    Volume,
    Rest,
}

impl Turn {
    fn of(resource: &Resource) -> Self {
        match resource.kind.as_str() {
            _ if resource.is_custom() => Self::Custom,
            "StatefulSet" | "Deployment" | "Job" | "CronJob" | "HorizontalPodAutoscaler" => Self::Workload,
            "PersistentVolumeClaim" => Self::Volume,
            _ => Self::Rest,
        }
    }

    fn params(self) -> DeleteParams {
        match self {
            Self::Workload => DeleteParams::foreground(),
            _ => DeleteParams::background(),
        }
    }
}

/// Kinds that stay beside the volumes when these are kept.
const STAY: [&str; 4] = [
    "Namespace",
    "PersistentVolumeClaim",
    "ResourceQuota",
    "LimitRange",
];

impl KubernetesProvisioner {
    pub(super) async fn remove_all(&self, instance: &InstanceRef, volumes: Volumes) -> PortResult<Removal> {
        let iid = instance.iid.as_str();
        self.forwards.close(iid);
        self.cluster.is_there().await?;
        for home in self.homes(instance) {
            let going = self.leave(instance, &home, volumes).await?;
            if let Some(text) = going {
                return Ok(Removal::StillGoing(text));
            }
        }
        for place in self.shared_places(instance) {
            let going = self.clear(instance, &place, volumes).await?;
            if let Some(text) = going {
                return Ok(Removal::StillGoing(text));
            }
        }
        self.notes.forget(iid);
        Ok(Removal::Gone)
    }

    /// Namespaces that are the instance's own.
    fn homes(&self, instance: &InstanceRef) -> BTreeSet<String> {
        let mut homes: BTreeSet<String> = instance
            .inventory
            .iter()
            .filter(|object| object.kind == "Namespace" && object.api_version == "v1")
            .map(|object| object.name.clone())
            .filter(|name| names::iid_of(name) == Some(instance.iid.as_str()))
            .collect();
        if self.settings.shared_namespace.is_none() {
            homes.insert(names::namespace(&instance.iid));
        }
        homes
    }

    /// Namespaces it shares with others.
    fn shared_places(&self, instance: &InstanceRef) -> BTreeSet<String> {
        let homes = self.homes(instance);
        instance
            .inventory
            .iter()
            .map(|object| object.namespace.clone())
            .chain(self.settings.shared_namespace.clone())
            .filter(|place| !place.is_empty() && !homes.contains(place))
            .collect()
    }

    /// Empties and removes a namespace of the instance's own. `None` = nothing (more) of it is to go.
    async fn leave(
        &self,
        instance: &InstanceRef,
        home: &str,
        volumes: Volumes,
    ) -> PortResult<Option<String>> {
        let resource = Kinds::namespaces();
        let seen = self.watches.on(&resource).one(&instance.iid, "", home);
        let namespace = match seen {
            Ok(Some(seen)) => Some(seen),
            // Only the server's word counts for gone.
            _ => self.look(&resource, "", home, Ask::Get).await?,
        };
        let Some(namespace) = namespace else {
            return Ok(None);
        };
        if !is_ours(&namespace, &instance.iid) {
            warn!(
                namespace = home,
                "a namespace with the name of an instance's is not the broker's; it stays"
            );
            return Ok(None);
        }
        if is_going(&namespace) {
            return Ok(Some(conditions(home, &namespace)));
        }
        let mut objects = self.known(instance, home);
        if volumes == Volumes::Keep {
            objects.retain(|(_, object)| !STAY.contains(&object.kind.as_str()));
            if let Some(text) = self.clear_all(instance, home, &objects, Turn::Rest).await? {
                return Ok(Some(text));
            }
            self.retain(instance, home).await?;
            return Ok(None);
        }
        if let Some(text) = self.clear_all(instance, home, &objects, Turn::Volume).await? {
            return Ok(Some(text));
        }
        let params = exactly(&namespace, DeleteParams::background());
        let answer = self.cluster.ask(&resource, "", home, Ask::Delete(&params)).await;
        match answer {
            Ok(_) => Ok(Some(format!("The namespace {home} is being removed."))),
            Err(refused) if refused.is_gone() => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Removes everything of the instance from a namespace it shares.
    async fn clear(
        &self,
        instance: &InstanceRef,
        place: &str,
        volumes: Volumes,
    ) -> PortResult<Option<String>> {
        let goes = |object: &ObjectRef| volumes == Volumes::Delete || !STAY.contains(&object.kind.as_str());
        let mut objects = self.known(instance, place);
        objects.retain(|(_, object)| goes(object));
        let mut going = self.clear_all(instance, place, &objects, Turn::Rest).await?;
        if going.is_none() {
            // What nobody announced is asked for last: it takes a list of every kind.
            let mut rest = self.labelled(&instance.iid, place).await?;
            rest.retain(|(_, object)| goes(object));
            going = self.clear_all(instance, place, &rest, Turn::Rest).await?;
        }
        if going.is_none() && volumes == Volumes::Keep {
            self.mark_volumes(instance, place).await?;
        }
        Ok(going)
    }

    /// What is known to be in a namespace without asking: the inventory, and what the watches show.
    fn known(&self, instance: &InstanceRef, place: &str) -> Vec<(Resource, ObjectRef)> {
        let mut known: BTreeMap<ObjectRef, Resource> = BTreeMap::new();
        for object in instance
            .inventory
            .iter()
            .filter(|object| object.namespace == place)
        {
            let resource = Kinds::usual(&object.api_version, &object.kind)
                .or_else(|| self.kinds.known(&object.api_version, &object.kind))
                .unwrap_or_else(|| Resource::unknown(&object.api_version, &object.kind));
            known.insert(object.clone(), resource);
        }
        let workloads = ["StatefulSet", "Deployment"].map(|kind| ("apps/v1", kind));
        let others = [("batch/v1", "Job"), ("v1", "PersistentVolumeClaim")];
        let usual = workloads.into_iter().chain(others);
        let usual = usual.filter_map(|(version, kind)| Kinds::usual(version, kind));
        for resource in usual.chain(self.custom()) {
            let seen = self
                .watches
                .begun(&resource)
                .and_then(|watch| watch.of(&instance.iid).ok());
            for object in seen.unwrap_or_default() {
                let reference = ObjectRef {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                    namespace: shape::text(&object, "/metadata/namespace").to_owned(),
                    name: shape::name(&object).to_owned(),
                };
                if reference.namespace == place {
                    known.entry(reference).or_insert_with(|| resource.clone());
                }
            }
        }
        known
            .into_iter()
            .map(|(reference, resource)| (resource, reference))
            .collect()
    }

    /// Removes `objects` turn by turn, up to and with the turn `last`; the text says what is waited for.
    async fn clear_all(
        &self,
        instance: &InstanceRef,
        place: &str,
        objects: &[(Resource, ObjectRef)],
        last: Turn,
    ) -> PortResult<Option<String>> {
        let mut turns: BTreeMap<Turn, Vec<&ObjectRef>> = BTreeMap::new();
        for (resource, object) in objects {
            turns.entry(Turn::of(resource)).or_default().push(object);
        }
        for turn in [Turn::Custom, Turn::Workload, Turn::Volume, Turn::Rest] {
            if turn > last {
                break;
            }
            let mut waits = None;
            for object in turns.get(&turn).into_iter().flatten() {
                if let Left::Going(held) = self.remove_one(&instance.iid, object, turn.params()).await? {
                    let held = held.map(|held| format!(", held by {held}")).unwrap_or_default();
                    waits = waits.or(Some(format!(
                        "Waiting for {} {} to be removed{held}.",
                        object.kind, object.name
                    )));
                }
            }
            if turn == Turn::Workload {
                waits = waits.or(self.stopping(instance, place));
            }
            if waits.is_some() {
                return Ok(waits);
            }
        }
        Ok(None)
    }

    /// Pods that have not ended, as far as the watch shows.
    fn stopping(&self, instance: &InstanceRef, place: &str) -> Option<String> {
        let pods = self.watches.on(&Kinds::pods()).of(&instance.iid).ok()?;
        let left: Vec<&Value> = pods
            .iter()
            .filter(|pod| shape::text(pod, "/metadata/namespace") == place)
            .filter(|pod| !matches!(shape::text(pod, "/status/phase"), "Succeeded" | "Failed"))
            .collect();
        match left.as_slice() {
            [] => None,
            [one] => Some(format!("Waiting for the pod {} to stop.", shape::name(one))),
            more => Some(format!("Waiting for {} pods to stop.", more.len())),
        }
    }

    /// Removes one object if it is the instance's.
    pub(super) async fn remove_one(
        &self,
        iid: &str,
        object: &ObjectRef,
        params: DeleteParams,
    ) -> PortResult<Left> {
        let resource = match self.resource(object).await {
            Ok(resource) => resource,
            // Without its kind there are no objects of it.
            Err(error) if error.kind == PortErrorKind::Invalid => return Ok(Left::Gone),
            Err(error) => return Err(error),
        };
        let (namespace, name) = (object.namespace.as_str(), object.name.as_str());
        let watch = self.watches.begun(&resource);
        let seen = watch.and_then(|watch| watch.one(iid, namespace, name).ok().flatten());
        let live = match seen {
            Some(seen) => Some(seen),
            // Only the server's word counts for gone.
            None => self.look(&resource, namespace, name, Ask::Meta).await?,
        };
        let Some(live) = live else {
            return Ok(Left::Gone);
        };
        if !is_ours(&live, iid) {
            return Ok(Left::Gone);
        }
        if is_going(&live) {
            return Ok(Left::Going(holders(&live)));
        }
        let params = exactly(&live, params);
        match self
            .cluster
            .ask(&resource, namespace, name, Ask::Delete(&params))
            .await
        {
            // What nothing holds is gone at once.
            Ok(answer) if answer.get("kind") == Some(&Value::from("Status")) => Ok(Left::Gone),
            Ok(answer) => Ok(Left::Going(holders(&answer))),
            Err(refused) if refused.is_gone() => Ok(Left::Gone),
            // Another object has its name by now: look again.
            Err(refused) if refused.status == 409 => Ok(Left::Going(None)),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Every kind an instance can have objects of, but Secrets, which are never listed.
    fn listable(&self) -> Vec<Resource> {
        KINDS
            .iter()
            .filter(|(_, kind, _)| *kind != "Secret")
            .filter_map(|(version, kind, _)| Kinds::usual(version, kind))
            .filter(|resource| self.is_made(resource))
            .chain(self.custom())
            .collect()
    }

    /// What carries the instance's label in a namespace; Secrets are not looked for.
    async fn labelled(&self, iid: &str, place: &str) -> PortResult<Vec<(Resource, ObjectRef)>> {
        let params = ListParams::default().labels(&format!(
            "{}={},{}={iid}",
            names::MANAGED_BY.0,
            names::MANAGED_BY.1,
            names::INSTANCE
        ));
        let mut found = Vec::new();
        for resource in self.listable() {
            let listed = self.cluster.list(&resource, place, &params, true).await;
            let listed = match listed {
                Ok(listed) => listed,
                // The role is of an earlier catalog: there is nothing of a kind it leaves out.
                Err(refused) if refused.is_gone() || refused.is_forbidden() => continue,
                Err(refused) => return Err(refused.into()),
            };
            found.extend(listed.iter().map(|object| {
                let reference = ObjectRef {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                    namespace: place.to_owned(),
                    name: shape::name(object).to_owned(),
                };
                (resource.clone(), reference)
            }));
        }
        Ok(found)
    }

    /// Marks a namespace and its volumes as kept.
    async fn retain(&self, instance: &InstanceRef, home: &str) -> PortResult<()> {
        self.mark_volumes(instance, home).await?;
        let change = json!({"metadata": {"labels": {RETAINED: "true"}}});
        let namespaces = Kinds::namespaces();
        self.cluster
            .ask(&namespaces, "", home, Ask::Merge(&change))
            .await?;
        Ok(())
    }

    async fn mark_volumes(&self, instance: &InstanceRef, place: &str) -> PortResult<()> {
        let change = json!({"metadata": {"labels": {RETAINED: "true"}}});
        let volumes = Kinds::volumes();
        let params =
            ListParams::default().labels(&format!("{}={},!{RETAINED}", names::INSTANCE, instance.iid));
        for volume in self.cluster.list(&volumes, place, &params, true).await? {
            let name = shape::name(&volume);
            self.cluster
                .ask(&volumes, place, name, Ask::Merge(&change))
                .await?;
        }
        Ok(())
    }

    /// The iids of everything of ours in the cluster.
    pub(super) async fn list_all(&self) -> PortResult<Vec<String>> {
        let params =
            ListParams::default().labels(&format!("{}={}", names::MANAGED_BY.0, names::MANAGED_BY.1));
        let mut iids = BTreeSet::new();
        let shared = self.settings.shared_namespace.clone();
        let resources: Vec<Resource> = match &shared {
            None => vec![Kinds::namespaces()],
            Some(_) => self.listable(),
        };
        let place = shared.as_deref().unwrap_or_default();
        for resource in resources {
            let listed = match self.cluster.list(&resource, place, &params, true).await {
                Ok(listed) => listed,
                Err(refused) if shared.is_some() && (refused.is_gone() || refused.is_forbidden()) => continue,
                Err(refused) => return Err(refused.into()),
            };
            iids.extend(listed.iter().filter_map(|object| {
                let labels = object.pointer("/metadata/labels")?;
                let iid = labels.get(names::INSTANCE)?.as_str()?;
                crate::domain::names::is_name(iid).then(|| iid.to_owned())
            }));
        }
        Ok(iids.into_iter().collect())
    }
}

/// What keeps an object that is to go.
fn holders(object: &Value) -> Option<String> {
    let held: Vec<&str> = shape::list(object, "/metadata/finalizers")
        .iter()
        .filter_map(Value::as_str)
        // These are the cluster's own, and say only that it is at it.
        .filter(|name| {
            !matches!(
                *name,
                "foregroundDeletion" | "orphan" | "kubernetes.io/pvc-protection"
            )
        })
        .collect();
    (!held.is_empty()).then(|| format!("the finalizer {}", held.join(" and ")))
}

/// Why a namespace is still there.
fn conditions(name: &str, namespace: &Value) -> String {
    let telling = [
        "NamespaceFinalizersRemaining",
        "NamespaceContentRemaining",
        "NamespaceDeletionContentFailure",
        "NamespaceDeletionDiscoveryFailure",
    ];
    let conditions = shape::list(namespace, "/status/conditions");
    let said = telling.iter().find_map(|wanted| {
        conditions
            .iter()
            .find(|c| shape::text(c, "/type") == *wanted && shape::text(c, "/status") == "True")
            .map(|c| shape::text(c, "/message"))
    });
    match said {
        Some(why) if !why.is_empty() => format!("The namespace {name} is being removed: {why}"),
        _ => format!("The namespace {name} is being removed."),
    }
}
