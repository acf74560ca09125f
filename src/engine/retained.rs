//! Operators' commands on deleted instances whose volumes are kept: bring one back, or let it go.

use super::Engine;
use super::instance_steps::PROVISION;
use crate::domain::error::Error;
use crate::domain::instance::{Instance, InstanceState, Millis};
use crate::domain::operation::OperationKind;
use crate::store::{Fail, NewOperation, Tx};

/// Patience for bringing back an instance whose plan is no longer in the catalog, seconds.
const PATIENCE: u32 = 3600;

impl Engine {
    /// Brings a deleted instance back over its kept volumes; returns the operation that does it.
    ///
    /// Its bindings stay revoked. Errors: no such instance, or its volumes are not kept.
    pub async fn undelete(&self, iid: &str) -> Result<String, Error> {
        let (iid, id, now) = (iid.to_owned(), (self.ports.new_id)(), self.now());
        let served = self.served();
        let accepted = self.store.write(move |tx| {
            let (iid, id, served) = (iid.clone(), id.clone(), served.clone());
            Box::pin(async move {
                let mut instance = kept(tx, &iid, now).await?;
                let attributes = &instance.attributes;
                let known = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
                let patience = known.map_or(PATIENCE, |(_, plan)| plan.maximum_polling_duration);
                let operation = NewOperation {
                    id: id.clone(),
                    kind: OperationKind::Provision,
                    iid,
                    bid: None,
                    offering: served.catalog.offering_name(&attributes.service_id),
                    target: None,
                    step: PROVISION[0],
                    description: "Accepted: bringing it back.",
                    now,
                    deadline_at: now + 1000 * i64::from(patience),
                    request_id: None,
                };
                instance.state = InstanceState::Provisioning;
                instance.retained_until = None;
                instance.updated_at = now;
                tx.save_instance(&instance).await?;
                tx.insert_operation(&operation).await?;
                Ok(id)
            })
        });
        let id = accepted.await?;
        self.wake.notify_one();
        Ok(id)
    }

    /// Lets the kept volumes of a deleted instance go with the next sweep instead of at their time.
    ///
    /// Errors: as [`undelete`](Self::undelete).
    pub async fn let_go(&self, iid: &str) -> Result<(), Error> {
        let (iid, now) = (iid.to_owned(), self.now());
        let written = self.store.write(move |tx| {
            let iid = iid.clone();
            Box::pin(async move {
                let mut instance = kept(tx, &iid, now).await?;
                instance.retained_until = Some(now);
                tx.save_instance(&instance).await
            })
        });
        Ok(written.await?)
    }

    /// Records that nothing is left of an instance whose time is over. False when it was brought back meanwhile.
    pub(super) async fn forget_kept(&self, iid: &str) -> Result<bool, Fail> {
        let (iid, now) = (iid.to_owned(), self.now());
        let written = self.store.write(move |tx| {
            let iid = iid.clone();
            Box::pin(async move {
                let found = tx.instance_now(&iid).await?.map(|found| found.instance);
                let Some(mut instance) = found.filter(|i| i.retained_until.is_some_and(|until| until <= now))
                else {
                    return Ok(false);
                };
                instance.retained_until = None;
                instance.facts.clear();
                instance.updated_at = now;
                tx.save_instance(&instance).await?;
                Ok(true)
            })
        });
        written.await
    }
}

/// The row of an instance whose volumes are kept for some time yet: once it is over, the sweep may be removing them.
async fn kept(tx: &mut Tx, iid: &str, now: Millis) -> Result<Instance, Fail> {
    let found = tx.instance_now(iid).await?.map(|now| now.instance);
    let instance = found.ok_or_else(|| {
        Error::bad_request(format!(
            "There is no instance {iid}. `chandler instances list --all` shows all."
        ))
    })?;
    if instance.retained_until.is_none_or(|until| until <= now) {
        let state = instance.state;
        return Err(Error::bad_request(format!(
            "The volumes of instance {iid} are not kept: it is {state}."
        ))
        .into());
    }
    Ok(instance)
}
