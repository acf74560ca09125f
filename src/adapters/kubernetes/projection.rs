//! Secrets in applications' own namespaces (`delivery: secret`).
//!
//! What must stay true: the broker never asks for what a Secret holds (in the tenancy `shared` it has no right to), and
//! never changes or removes what is not this very binding's. It is this binding's by its label. Every change is applied
//! under a field manager of the binding's own and without force, so the server itself refuses what is another's; force is
//! used only on the very version whose label was seen, when somebody edited the binding's own Secret.

use super::client::Ask;
use super::kinds::Kinds;
use super::refusal::Refusal;
use super::{KubernetesProvisioner, names};
use crate::domain::delivery::BindingRef;
use crate::domain::projection;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortResult, SecretPlace, SecretProjection, SecretState};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Map, Value, json};

/// Who owns the fields: nobody but this binding.
fn manager(binding: &BindingRef) -> String {
    format!("{}-{}", names::FIELD_MANAGER, binding.bid)
}

/// The Secret as it is to be.
fn wanted(binding: &BindingRef, place: &SecretPlace, credentials: &Secret) -> Value {
    let (key, value) = names::MANAGED_BY;
    let entries = projection::entries(credentials);
    let data: Map<String, Value> = entries
        .expose()
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), BASE64.encode(value.as_str()?).into())))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": projection::secret_type(credentials),
        "metadata": {
            "name": place.name,
            "namespace": place.namespace,
            "labels": {key: value, names::BINDING: binding.bid, names::INSTANCE: binding.iid},
        },
        "data": data,
    })
}

/// Whose the Secret of a name is.
enum Whose {
    /// Nobody's: there is none.
    Nobodys,
    /// This binding's; identity and owners of its fields.
    Ours(Value),
    /// Somebody else's.
    Anothers,
}

fn another(place: &SecretPlace) -> PortError {
    let SecretPlace { namespace, name } = place;
    PortError::denied(format!(
        "The Secret {name} in namespace {namespace} is somebody else's and was left alone. Remove or rename it, then try again."
    ))
}

fn nowhere(place: &SecretPlace) -> PortError {
    PortError::invalid(format!(
        "There is no namespace {} (any more), or it is being removed.",
        place.namespace
    ))
}

/// Whether somebody else has written content into it: a server writes down who owns which field.
fn is_edited(seen: &Value, manager: &str) -> bool {
    let owners = seen.pointer("/metadata/managedFields").and_then(Value::as_array);
    owners.into_iter().flatten().any(|owner| {
        let of = |member: &str| owner.get(member);
        let content = of("fieldsV1").is_some_and(|fields| fields.get("f:data").is_some());
        content && of("manager").and_then(Value::as_str) != Some(manager)
    })
}

impl KubernetesProvisioner {
    /// Learns it without a right to read.
    async fn whose(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<Whose> {
        let (namespace, name) = (place.namespace.as_str(), place.name.as_str());
        let seen = self
            .cluster
            .ask(&Kinds::secrets(), namespace, name, Ask::Peek)
            .await;
        let label = |seen: &Value| {
            let labels = seen.pointer("/metadata/labels");
            labels.and_then(|labels| Some(labels.get(names::BINDING)?.as_str()? == binding.bid))
        };
        match seen {
            Ok(seen) if label(&seen) == Some(true) => Ok(Whose::Ours(seen)),
            Ok(_) => Ok(Whose::Anothers),
            Err(refused) if refused.is_gone() => Ok(Whose::Nobodys),
            // The broker's own policy: it has no label of a binding.
            Err(refused) if refused.is_against_a_rule() => Ok(Whose::Anothers),
            // The right may have gone together with the namespace.
            Err(refused) if refused.is_forbidden() && self.is_nowhere(place).await => Ok(Whose::Nobodys),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Whether the namespace is known not to be there.
    async fn is_nowhere(&self, place: &SecretPlace) -> bool {
        let namespaces = Kinds::namespaces();
        let seen = self
            .cluster
            .ask(&namespaces, "", &place.namespace, Ask::Meta)
            .await;
        seen.is_err_and(|refused| refused.is_gone())
    }

    async fn put(
        &self,
        binding: &BindingRef,
        place: &SecretPlace,
        object: &Value,
        force: bool,
    ) -> Result<(), Refusal> {
        let manager = manager(binding);
        let resource = Kinds::secrets();
        let ask = Ask::Claim {
            object,
            manager: &manager,
            force,
        };
        self.cluster
            .ask(&resource, &place.namespace, &place.name, ask)
            .await
            .map(drop)
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
        let mut object = wanted(binding, place, credentials);
        let refused = match self.put(binding, place, &object, false).await {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        if refused.is_gone() || refused.is_ending() {
            return Err(nowhere(place));
        }
        let conflict = refused.status == 409;
        if !(conflict || refused.is_refused() || refused.is_forbidden()) {
            return Err(refused.into());
        }
        match self.whose(binding, place).await? {
            Whose::Anothers => Err(another(place)),
            Whose::Nobodys if refused.is_forbidden() => Err(nowhere(place)),
            // Somebody edited what is this binding's: it is set right, provided that it is still the one that was seen.
            Whose::Ours(seen) if conflict => {
                object["metadata"]["resourceVersion"] = seen["metadata"]["resourceVersion"].clone();
                Ok(self.put(binding, place, &object, true).await?)
            }
            Whose::Ours(_) | Whose::Nobodys => Err(refused.into()),
        }
    }

    async fn remove(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<()> {
        let seen = match self.whose(binding, place).await? {
            Whose::Ours(seen) => seen,
            // One of somebody else's is not this binding's to remove: a bind that was refused for it is undone like any other.
            Whose::Nobodys | Whose::Anothers => return Ok(()),
        };
        let uid = seen.pointer("/metadata/uid").and_then(Value::as_str);
        let exactly = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.unwrap_or_default().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let removed = self
            .cluster
            .ask(
                &Kinds::secrets(),
                &place.namespace,
                &place.name,
                Ask::Delete(&exactly),
            )
            .await;
        match removed {
            Ok(_) => Ok(()),
            Err(refused) if refused.is_gone() => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    async fn state(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<SecretState> {
        Ok(match self.whose(binding, place).await? {
            Whose::Nobodys => SecretState::Absent,
            Whose::Anothers => SecretState::Anothers,
            Whose::Ours(seen) if is_edited(&seen, &manager(binding)) => SecretState::Edited,
            Whose::Ours(_) => SecretState::Whole,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_that_somebody_else_wrote_makes_it_edited() {
        let owned = |manager: &str, what: &str| json!({"manager": manager, "fieldsV1": {what: {".": {}}}});
        let seen = |owners: &[Value]| json!({"metadata": {"managedFields": owners}});
        let ours = owned("chandler-b", "f:data");
        assert!(!is_edited(&json!({}), "chandler-b"));
        assert!(!is_edited(&seen(std::slice::from_ref(&ours)), "chandler-b"));
        let labelled = seen(&[ours.clone(), owned("kubectl-label", "f:metadata")]);
        assert!(!is_edited(&labelled, "chandler-b"));
        assert!(is_edited(
            &seen(&[ours, owned("kubectl-edit", "f:data")]),
            "chandler-b"
        ));
    }
}
