//! What a platform is told of a binding: the same from PUT, a repeated PUT and every GET.
//!
//! With the delivery `inline` it is what was sealed when the binding was made. With the others nothing secret is kept:
//! coordinates were sealed, and an application's proof is asked of the identity provider each time.

use super::Engine;
use super::binding_steps::member;
use super::outside;
use crate::domain::binding::Binding;
use crate::domain::delivery::{ClientAuth, Delivery};
use crate::domain::error::Error;
use crate::domain::request::BindingView;
use crate::domain::secret::Secret;
use crate::ports::{PortError, PortErrorKind, secret_name};
use serde_json::json;

impl Engine {
    /// What is told of a ready binding. Errors: 503 while something that has to be asked cannot be.
    pub(super) async fn binding_view(&self, binding: &Binding) -> Result<BindingView, Error> {
        let inline = binding.delivery == Delivery::Inline;
        let name = if inline {
            secret_name::binding(&binding.iid, &binding.bid)
        } else {
            secret_name::view(&binding.iid, &binding.bid)
        };
        let stored = self.ports.secrets.get(&name).await.map_err(|e| {
            Error::unavailable("The secret store cannot be read at the moment; try again.")
                .with_internal(e.detail)
        })?;
        let stored = stored
            .ok_or_else(|| Error::internal(format!("the secret {name} of a ready binding is missing")))?;
        let mut credentials = member(&stored, if inline { "credentials" } else { "coordinates" });
        match binding.delivery {
            // Made before there was an identity provider, or without one: as it always was.
            Delivery::Inline if !stored.expose().contains_key("client") => {}
            Delivery::Inline => {
                let proof = member(&stored, "client");
                outside::add_blocks(self, binding, &proof, &mut credentials).map_err(broken)?;
            }
            Delivery::Reference => {
                let proof = self.proof(binding).await?;
                outside::add_blocks(self, binding, &proof, &mut credentials).map_err(broken)?;
            }
            Delivery::Secret => {
                let place = outside::place(binding);
                credentials.insert("credential_mode", json!(binding.delivery.as_str()));
                credentials.insert(
                    "secret",
                    json!({"namespace": place.namespace, "name": place.name}),
                );
            }
        }
        let endpoints = stored.expose().get("endpoints").cloned().unwrap_or_default();
        Ok(BindingView {
            credentials,
            endpoints: serde_json::from_value(endpoints).unwrap_or_default(),
            parameters: binding.attributes.parameters.clone(),
            expires_at: binding.expires_at,
            renew_before: binding.renew_before,
        })
    }

    /// The one secret an answer of the delivery `reference` carries, where the application has none of its own.
    async fn proof(&self, binding: &Binding) -> Result<Secret, Error> {
        let auth = outside::auth(binding).map_err(broken)?;
        let Some(identity) = &self.ports.identity else {
            return Err(Error::unavailable(
                "This binding's credentials are fetched by way of an identity provider, and this broker has none configured (any more). Tell its operator.",
            ));
        };
        if auth != ClientAuth::ClientSecret {
            return Ok(Secret::default());
        }
        let proof = identity
            .proof(&binding.reference(), &auth)
            .await
            .map_err(|e| match e.kind {
                PortErrorKind::Transient | PortErrorKind::Conflict => {
                    Error::unavailable("The identity provider cannot be asked at the moment; try again.")
                        .with_internal(e.detail)
                }
                _ => broken(e),
            })?;
        proof.ok_or_else(|| {
            Error::internal(format!(
                "the client {} of a ready binding is missing",
                binding.reference().client_id()
            ))
        })
    }
}

fn broken(error: PortError) -> Error {
    Error::internal(error.detail)
}
