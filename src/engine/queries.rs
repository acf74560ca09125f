//! Queries: GET instance, GET binding, last_operation. Reads only; what a binding's answer needs from outside is in
//! `answer`. Nothing is written but the event that tells of credentials given out.

use super::Engine;
use crate::domain::audit::{Action, Event};
use crate::domain::binding::BindingState;
use crate::domain::error::Error;
use crate::domain::instance::InstanceState;
use crate::domain::names;
use crate::domain::request::{BindingView, Caller, InstanceView, LastOperation};

impl Engine {
    /// GET instance (osb-rules §8).
    pub async fn fetch_instance(&self, caller: &Caller, instance_id: &str) -> Result<InstanceView, Error> {
        let iid = names::iid(&caller.platform, instance_id);
        let instance = self.store.instance(&iid).await?.map(|now| now.instance);
        match instance {
            Some(i) if matches!(i.state, InstanceState::Ready | InstanceState::DeprovisionFailed) => {
                Ok(self.instance_view(&i))
            }
            // G-03, G-07
            Some(i) if matches!(i.state, InstanceState::Updating | InstanceState::Deprovisioning) => {
                Err(Error::concurrency())
            }
            // G-02
            Some(i) if i.state == InstanceState::Provisioning => Err(Error::not_found(
                "This service instance is still being provisioned.",
            )),
            Some(i) if i.state == InstanceState::ProvisionFailed => Err(Error::not_found(
                "This service instance could not be provisioned; last_operation says why. Delete it and create it again.",
            )),
            _ => Err(Error::not_found("There is no service instance with this id.")),
        }
    }

    /// GET binding (osb-rules §11). Credentials are given out only once that is recorded (ADR 0019).
    pub async fn fetch_binding(
        &self,
        caller: &Caller,
        instance_id: &str,
        binding_id: &str,
    ) -> Result<BindingView, Error> {
        let view = self.unrecorded_binding(caller, instance_id, binding_id).await?;
        let read = Event::asked(caller, Action::Read, instance_id, binding_id, self.now());
        self.store.audit(read).await.map_err(|fail| {
            Error::unavailable(
                "The broker cannot record at the moment that these credentials are read, and does not give them out unrecorded; try again later.",
            )
            .with_internal(fail.to_string())
        })?;
        Ok(view)
    }

    /// What GET binding tells, unrecorded: for who records it otherwise.
    pub(super) async fn unrecorded_binding(
        &self,
        caller: &Caller,
        instance_id: &str,
        binding_id: &str,
    ) -> Result<BindingView, Error> {
        let unknown = || Error::not_found("There is no service binding with this id on this instance.");
        let bid = names::bid(&caller.platform, instance_id, binding_id);
        let binding = self.store.binding(&bid).await?.ok_or_else(unknown)?.binding;
        if binding.state == BindingState::Expired || binding.is_expired(self.now()) {
            return Err(Error::not_found(
                "This service binding has expired and its credentials are revoked. Bind again.",
            ));
        }
        match binding.state {
            BindingState::Ready => {}
            BindingState::Creating => {
                return Err(Error::not_found("This service binding is still being made."));
            }
            _ => return Err(unknown()),
        }
        self.binding_view(&binding).await
    }

    /// last_operation of an instance (osb-rules §6).
    pub async fn last_instance_operation(
        &self,
        caller: &Caller,
        instance_id: &str,
        operation: Option<&str>,
    ) -> Result<LastOperation, Error> {
        let iid = names::iid(&caller.platform, instance_id);
        self.store
            .last_operation(&iid, operation)
            .await?
            .ok_or_else(|| Error::not_found("There is no service instance with this id."))
    }

    /// last_operation of a binding (osb-rules §6).
    pub async fn last_binding_operation(
        &self,
        caller: &Caller,
        instance_id: &str,
        binding_id: &str,
        operation: Option<&str>,
    ) -> Result<LastOperation, Error> {
        let bid = names::bid(&caller.platform, instance_id, binding_id);
        self.store
            .last_operation(&bid, operation)
            .await?
            .ok_or_else(|| Error::not_found("There is no service binding with this id on this instance."))
    }
}
