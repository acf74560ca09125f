//! What the catalog renders, made into what goes to the API server.
//!
//! What must stay true:
//! - pure: the same settings, instance and rendering give the same objects, byte for byte, so their hashes can be
//!   compared with those in the cluster;
//! - every object carries the labels of [`names`], every pod those of them that never change: a label in a pod
//!   template restarts the pods when it changes, and in a volume claim template cannot change at all;
//! - what the catalog says wins, except for namespace, those labels and the registry.

use super::shape;
use super::{KubernetesSettings, images, names, tenancy};
use crate::domain::manifest::{Desired, canonical_hash};
use crate::ports::{InstanceRef, ObjectRef, PortError, PortResult};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt;

/// Longest name that is a label too.
const MAX_NAME: usize = 63;
/// What the API server sets, and nobody who applies may.
const SET_BY_THE_SERVER: [&str; 6] = [
    "managedFields",
    "resourceVersion",
    "uid",
    "creationTimestamp",
    "generation",
    "selfLink",
];

/// An object as it is applied, and what the broker has to know about it. May hold secrets: no readable `Debug`.
#[derive(Clone, PartialEq)]
pub(super) struct Dressed {
    /// By which names it is found again.
    pub reference: ObjectRef,
    /// Applied in rising order.
    pub phase: u16,
    /// See `manifest::ObjectSpec::ready`.
    pub ready: Option<String>,
    /// See `manifest::ObjectSpec::failed`.
    pub failed: Option<String>,
    /// The whole object.
    pub object: Value,
}

impl fmt::Debug for Dressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dressed")
            .field("reference", &self.reference)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// Everything of an instance in phase order: surroundings, the plan's objects, the opening.
///
/// Errors: an object that cannot be the instance's own (its name, or two of the same name).
pub(super) fn dressed(
    settings: &KubernetesSettings,
    instance: &InstanceRef,
    desired: &Desired,
) -> PortResult<Vec<Dressed>> {
    let wardrobe = Wardrobe {
        settings,
        instance,
        namespace: namespace(settings, &instance.iid),
        base: base_name(settings, instance),
    };
    let mut own = Vec::new();
    for spec in &desired.objects {
        // The first and the last phase are ours.
        let phase = spec.phase.clamp(names::SURROUNDINGS + 1, names::OPENING - 1);
        let (ready, failed) = (spec.ready.clone(), spec.failed.clone());
        own.push(wardrobe.dress(spec.object.clone(), phase, ready, failed)?);
    }
    // Within a phase what pods mount comes before the pods: they need not fail first.
    own.sort_by_key(|dressed| (dressed.phase, makes_pods(&dressed.object)));
    let objects: Vec<Value> = own.iter().map(|dressed| dressed.object.clone()).collect();
    let mut all = Vec::new();
    for object in tenancy::surroundings(settings, instance, &objects) {
        all.push(wardrobe.dress(object, names::SURROUNDINGS, None, None)?);
    }
    all.extend(own);
    if let Some(object) = tenancy::consumers(settings, instance, &desired.consumers, &objects) {
        all.push(wardrobe.dress(object, names::OPENING, None, None)?);
    }
    let mut seen = BTreeSet::new();
    for dressed in &all {
        let reference = &dressed.reference;
        if !seen.insert(reference) {
            return Err(PortError::invalid(format!(
                "The plan has two objects {} {}, or one that the broker itself makes. The catalog must name it otherwise.",
                reference.kind, reference.name
            )));
        }
    }
    Ok(all)
}

/// The namespace an instance lives in.
pub(super) fn namespace(settings: &KubernetesSettings, iid: &str) -> String {
    settings
        .shared_namespace
        .clone()
        .unwrap_or_else(|| names::namespace(iid))
}

/// `name` in the catalog's expressions: unique in the instance's namespace.
pub(super) fn base_name(settings: &KubernetesSettings, instance: &InstanceRef) -> String {
    match settings.shared_namespace {
        Some(_) => format!("{}-{}", instance.offering, instance.iid),
        None => instance.offering.clone(),
    }
}

/// Labels of an instance that never change: for pods, volume claims and selectors.
pub(super) fn lasting_labels(instance: &InstanceRef) -> Map<String, Value> {
    Map::from_iter([
        (names::MANAGED_BY.0.to_owned(), names::MANAGED_BY.1.into()),
        (names::INSTANCE.to_owned(), instance.iid.clone().into()),
        (names::OFFERING.to_owned(), instance.offering.clone().into()),
    ])
}

fn makes_pods(object: &Value) -> bool {
    shape::template_path(object).is_some() || !shape::is_usual(object)
}

struct Wardrobe<'a> {
    settings: &'a KubernetesSettings,
    instance: &'a InstanceRef,
    namespace: String,
    base: String,
}

impl Wardrobe<'_> {
    fn dress(
        &self,
        mut object: Value,
        phase: u16,
        ready: Option<String>,
        failed: Option<String>,
    ) -> PortResult<Dressed> {
        let kind = shape::kind(&object).to_owned();
        let name = shape::name(&object).to_owned();
        let namespaced = kind != "Namespace";
        self.check(&object, &kind, &name)?;
        if let Some(members) = object.as_object_mut() {
            members.remove("status");
        }
        map_at(&mut object, "/metadata", |metadata| {
            metadata.retain(|key, _| !SET_BY_THE_SERVER.contains(&key.as_str()));
            if namespaced {
                metadata.insert("namespace".into(), self.namespace.clone().into());
            }
        });
        let mut labels = lasting_labels(self.instance);
        labels.insert(names::PLAN.into(), self.instance.plan.clone().into());
        label(&mut object, "/metadata/labels", labels);
        self.pods(&mut object);
        self.volumes(&mut object);
        self.operator(&mut object);
        images::rewrite(self.settings, &mut object);
        let hash = canonical_hash(&object);
        map_at(&mut object, "/metadata/annotations", |annotations| {
            annotations.insert(names::HASH.into(), hash.into());
        });
        Ok(Dressed {
            reference: ObjectRef {
                api_version: shape::text(&object, "/apiVersion").to_owned(),
                kind,
                namespace: if namespaced {
                    self.namespace.clone()
                } else {
                    String::new()
                },
                name,
            },
            phase,
            ready,
            failed,
            object,
        })
    }

    /// Refuses an object that another instance, or nobody, could own.
    fn check(&self, object: &Value, kind: &str, name: &str) -> PortResult<()> {
        let refuse = |why: &str| {
            Err(PortError::invalid(format!(
                "The catalog's object {kind} `{name}` {why}. Tell the platform's operators: the catalog must be corrected."
            )))
        };
        if shape::text(object, "/apiVersion").is_empty() || kind.is_empty() || name.is_empty() {
            return refuse("lacks its version, kind or name");
        }
        if name.len() > MAX_NAME {
            return refuse("has a name longer than 63 characters");
        }
        // In a namespace of its own every name is the instance's; in a shared one its name must say so.
        if self.settings.shared_namespace.is_some() && !name.contains(&self.instance.iid) {
            return refuse("has a name without `${name}`, and would be shared between instances");
        }
        Ok(())
    }

    /// Labels and defaults of what the pods are made from.
    fn pods(&self, object: &mut Value) {
        let usual = shape::is_usual(object);
        if shape::kind(object) == "CronJob" {
            let labels = lasting_labels(self.instance);
            label(object, "/spec/jobTemplate/metadata/labels", labels);
        }
        let Some(path) = shape::template_path(object) else {
            return;
        };
        let Some(template) = object.pointer_mut(path).filter(|template| template.is_object()) else {
            return;
        };
        label(template, "/metadata/labels", lasting_labels(self.instance));
        let Some(Value::Object(spec)) = template.get_mut("spec") else {
            return;
        };
        if let Some(class) = &self.settings.priority_class {
            spec.entry("priorityClassName")
                .or_insert_with(|| class.clone().into());
        }
        // An operator gives its pods an account and a token of its own, which they need.
        if !usual {
            return;
        }
        if !spec.contains_key("serviceAccount") {
            spec.entry("serviceAccountName")
                .or_insert_with(|| self.base.clone().into());
        }
        for switch in ["automountServiceAccountToken", "enableServiceLinks"] {
            spec.entry(switch).or_insert(Value::Bool(false));
        }
    }

    fn volumes(&self, object: &mut Value) {
        let mut claims: Vec<&mut Value> = Vec::new();
        match shape::kind(object) {
            "PersistentVolumeClaim" => claims.push(object),
            "StatefulSet" => {
                if let Some(Value::Array(templates)) = object.pointer_mut("/spec/volumeClaimTemplates") {
                    for template in templates {
                        label(template, "/metadata/labels", lasting_labels(self.instance));
                        claims.push(template);
                    }
                }
            }
            _ => {}
        }
        for claim in claims {
            map_at(claim, "/spec", |spec| self.class(spec, "storageClassName"));
        }
    }

    /// The same for custom resources, whose operators make pods and volumes of their own.
    fn operator(&self, object: &mut Value) {
        let Some(operator) = shape::operator(object) else {
            return;
        };
        label(object, operator.labels, lasting_labels(self.instance));
        for (path, member) in operator.classes {
            if let Some(Value::Object(claim)) = object.pointer_mut(path) {
                self.class(claim, member);
            }
        }
        if let (Some(member), Some(class)) = (operator.priority, &self.settings.priority_class) {
            map_at(object, "/spec", |spec| {
                spec.entry(member).or_insert_with(|| class.clone().into());
            });
        }
    }

    fn class(&self, claim: &mut Map<String, Value>, member: &str) {
        if let Some(class) = &self.settings.storage_class {
            claim.entry(member).or_insert_with(|| class.clone().into());
        }
    }
}

/// Ours win: they are how an object is found again.
fn label(object: &mut Value, pointer: &str, ours: Map<String, Value>) {
    map_at(object, pointer, |labels| labels.extend(ours));
}

/// Does something with the map at a pointer, which is made where it is missing.
fn map_at(mut value: &mut Value, pointer: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    for key in pointer.split('/').skip(1) {
        if !value.is_object() {
            *value = json!({});
        }
        value = &mut value[key];
    }
    if !value.is_object() {
        *value = json!({});
    }
    if let Value::Object(members) = value {
        change(members);
    }
}

#[cfg(test)]
pub(super) mod tests;
