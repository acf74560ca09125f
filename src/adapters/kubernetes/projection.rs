//! Secrets in applications' own namespaces (`delivery: secret`).
//!
//! What must stay true: the broker never asks for what is there (in the tenancy `shared` it has no right to), and never changes
//! or removes what is not this very binding's. Every change is applied under a field manager of the binding's own and
//! without force, so the server itself refuses when the object's labels, which every such Secret has, belong to another
//! binding or to anybody else. The type of a Secret cannot be changed, which protects those without labels.

use super::client::Ask;
use super::kinds::{Kinds, Resource};
use super::refusal::Refusal;
use super::{KubernetesProvisioner, names};
use crate::domain::delivery::BindingRef;
use crate::domain::projection;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, SecretPlace, SecretProjection};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Map, Value, json};

fn secrets() -> PortResult<Resource> {
    Kinds::usual("v1", "Secret")
        .ok_or_else(|| PortError::invalid("The broker does not know the kind Secret."))
}

/// Who owns the fields: nobody but this binding.
fn manager(binding: &BindingRef) -> String {
    format!("{}-{}", names::FIELD_MANAGER, binding.bid)
}

/// The Secret without its data: what says whose it is.
fn claim(binding: &BindingRef, place: &SecretPlace, kind: &str) -> Value {
    let (key, value) = names::MANAGED_BY;
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "metadata": {
            "name": place.name,
            "namespace": place.namespace,
            "labels": {key: value, names::BINDING: binding.bid, names::INSTANCE: binding.iid},
        },
    })
}

/// 409: its labels are another's; 422: its type is.
fn is_another(refused: &Refusal) -> bool {
    matches!(refused.status, 409 | 422)
}

fn refused(refused: Refusal, place: &SecretPlace) -> PortError {
    let SecretPlace { namespace, name } = place;
    match refused.status {
        _ if is_another(&refused) => PortError::denied(format!(
            "The Secret {name} in namespace {namespace} is somebody else's and was left alone. Remove or rename it, then bind again."
        )),
        404 => PortError::invalid(format!("There is no namespace {namespace}.")),
        _ => refused.into(),
    }
}

#[async_trait]
impl SecretProjection for KubernetesProvisioner {
    async fn project(
        &self,
        binding: &BindingRef,
        place: &SecretPlace,
        credentials: &Secret,
    ) -> PortResult<()> {
        let entries = projection::entries(credentials);
        let data: Map<String, Value> = entries
            .expose()
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), BASE64.encode(value.as_str()?).into())))
            .collect();
        let mut object = claim(binding, place, &projection::secret_type(credentials));
        object["data"] = Value::Object(data);
        let manager = manager(binding);
        let ask = Ask::Claim {
            object: &object,
            manager: &manager,
            rehearse: false,
        };
        self.cluster
            .ask(&secrets()?, &place.namespace, &place.name, ask)
            .await
            .map(drop)
            .map_err(|e| refused(e, place))
    }

    async fn remove(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<()> {
        let resource = secrets()?;
        // A rehearsal under a manager that owns nothing: agreed to only when the labels are this binding's already, or there is
        // no such Secret. It answers whose they are without a right to read.
        let manager = format!("{}-end", manager(binding));
        let mut object = claim(binding, place, "");
        if let Some(members) = object.as_object_mut() {
            members.remove("type");
        }
        let ask = Ask::Claim {
            object: &object,
            manager: &manager,
            rehearse: true,
        };
        let seen = match self
            .cluster
            .ask(&resource, &place.namespace, &place.name, ask)
            .await
        {
            Ok(seen) => seen,
            Err(e) if e.is_gone() => return Ok(()),
            // Somebody else's, so this binding has none (any more): a bind that was refused for it is undone like any other.
            Err(e) if is_another(&e) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let uid = seen.pointer("/metadata/uid").and_then(Value::as_str);
        // Of one that is not there the rehearsal makes up a uid that nothing has.
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.unwrap_or_default().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self
            .cluster
            .ask(&resource, &place.namespace, &place.name, Ask::Delete(&exactly))
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.is_gone() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
