//! Commands on instances: PUT, PATCH, DELETE.

use super::Engine;
use super::instance_steps::{PROVISION, lasting, steps};
use crate::domain::audit::Event;
use crate::domain::catalog::{Offering, Plan};
use crate::domain::decide::{self, DeprovisionDecision, InstanceNow, ProvisionDecision, UpdateDecision};
use crate::domain::error::Error;
use crate::domain::instance::{Instance, InstanceState, Millis};
use crate::domain::names;
use crate::domain::operation::OperationKind;
use crate::domain::request::{Caller, Delete, InstanceView, Outcome, Provision, Update};
use crate::store::NewOperation;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What a transaction found or did; the answer is made from it after the commit.
enum Written {
    /// The row as it is, and the operation that works on it.
    Working(Box<Instance>, String),
    /// The row as it is; nothing to do.
    Still(Box<Instance>),
}

impl Engine {
    /// PUT instance (osb-rules §7).
    pub async fn provision(
        self: &Arc<Self>,
        caller: &Caller,
        request: Provision,
    ) -> Result<Outcome<InstanceView>, Error> {
        let served = self.served();
        let now = self.now();
        let iid = names::iid(&caller.platform, &request.instance_id);
        let operation_id = (self.ports.new_id)();
        let decide = {
            let served = served.clone();
            move |request: &Provision, found: Option<&InstanceNow>| {
                decide::provision(&served.catalog, &|o, p| served.offers(o, p), request, found)
            }
        };
        // Most requests are new and right: decide against nothing first, and read only if that says no.
        let (offering, plan) = match decide(&request, None) {
            Ok(ProvisionDecision::Create(picked)) => picked,
            _ => {
                let found = self.store.instance(&iid).await?;
                match (decide(&request, found.as_ref())?, found) {
                    (ProvisionDecision::Create(picked), _) => picked,
                    (ProvisionDecision::Running(id), Some(now)) => {
                        return Ok(self.instance_outcome(Written::Working(Box::new(now.instance), id)));
                    }
                    (_, Some(now)) => {
                        return Ok(self.instance_outcome(Written::Still(Box::new(now.instance))));
                    }
                    (_, None) => return Err(Error::internal("a decision against nothing found something")),
                }
            }
        };
        let row = new_instance(self, caller, &request, &iid, &offering, &plan, now);
        let operation = NewOperation {
            id: operation_id,
            kind: OperationKind::Provision,
            iid: iid.clone(),
            bid: None,
            offering: offering.name.clone(),
            target: None,
            step: PROVISION[0],
            description: "Accepted.",
            now,
            deadline_at: now + 1000 * i64::from(plan.maximum_polling_duration),
            request_id: caller.request_id.clone(),
        };
        let request = Arc::new(request);
        let written = self
            .store
            .write(move |tx| {
                let (row, operation, request, decide) =
                    (row.clone(), operation.clone(), request.clone(), decide.clone());
                Box::pin(async move {
                    let accepted = operation.id.clone();
                    if tx.insert_instance(&row).await? {
                        tx.insert_operation(&operation).await?;
                        return Ok(Written::Working(Box::new(row), accepted));
                    }
                    let found = tx.instance_now(&row.iid).await?;
                    let decision = decide(&request, found.as_ref())?;
                    match (decision, found) {
                        (ProvisionDecision::Create(_), before) => {
                            let row = match before {
                                Some(before) => lasting(row, &before.instance),
                                None => row,
                            };
                            tx.save_instance(&row).await?;
                            tx.insert_operation(&operation).await?;
                            Ok(Written::Working(Box::new(row), accepted))
                        }
                        (ProvisionDecision::Running(id), Some(now)) => {
                            Ok(Written::Working(Box::new(now.instance), id))
                        }
                        (ProvisionDecision::Exists, Some(now)) => Ok(Written::Still(Box::new(now.instance))),
                        (_, None) => Err(Error::internal("an instance vanished inside a transaction").into()),
                    }
                })
            })
            .await?;
        self.accepted(None);
        Ok(self.instance_outcome(written))
    }

    /// PATCH instance (osb-rules §9).
    pub async fn update(
        self: &Arc<Self>,
        caller: &Caller,
        request: Update,
    ) -> Result<Outcome<InstanceView>, Error> {
        let served = self.served();
        let now = self.now();
        let iid = names::iid(&caller.platform, &request.instance_id);
        let operation_id = (self.ports.new_id)();
        let request_id = caller.request_id.clone();
        let request = Arc::new(request);
        let written = self
            .store
            .write(move |tx| {
                let (served, request, iid) = (served.clone(), request.clone(), iid.clone());
                let (operation_id, request_id) = (operation_id.clone(), request_id.clone());
                Box::pin(async move {
                    let found = tx.instance_now(&iid).await?;
                    let decision = decide::update(
                        &served.catalog,
                        &|o, p| served.offers(o, p),
                        &request,
                        found.as_ref(),
                    )?;
                    let mut instance = found
                        .ok_or_else(|| Error::internal("an update was decided on nothing"))?
                        .instance;
                    match decision {
                        UpdateDecision::Running(id) => Ok(Written::Working(Box::new(instance), id)),
                        UpdateDecision::Nothing => {
                            if request.context.is_some() {
                                instance.context.clone_from(&request.context);
                                instance.updated_at = now;
                                tx.save_instance(&instance).await?;
                            }
                            tx.insert_done(&NewOperation {
                                id: operation_id,
                                kind: OperationKind::Update,
                                iid,
                                bid: None,
                                offering: served.catalog.offering_name(&request.service_id),
                                target: None,
                                step: PROVISION[0],
                                description: "There was nothing to change.",
                                now,
                                deadline_at: now,
                                request_id,
                            })
                            .await?;
                            Ok(Written::Still(Box::new(instance)))
                        }
                        UpdateDecision::Start((offering, plan), target) => {
                            if request.context.is_some() {
                                instance.context.clone_from(&request.context);
                            }
                            instance.state = InstanceState::Updating;
                            instance.updated_at = now;
                            tx.save_instance(&instance).await?;
                            tx.insert_operation(&NewOperation {
                                id: operation_id.clone(),
                                kind: OperationKind::Update,
                                iid,
                                bid: None,
                                offering: offering.name.clone(),
                                target: Some(*target),
                                step: PROVISION[0],
                                description: "Accepted.",
                                now,
                                deadline_at: now + 1000 * i64::from(plan.maximum_polling_duration),
                                request_id,
                            })
                            .await?;
                            Ok(Written::Working(Box::new(instance), operation_id))
                        }
                    }
                })
            })
            .await?;
        self.accepted(None);
        Ok(self.instance_outcome(written))
    }

    /// DELETE instance (osb-rules §13).
    pub async fn deprovision(
        self: &Arc<Self>,
        caller: &Caller,
        request: Delete,
    ) -> Result<Outcome<()>, Error> {
        let served = self.served();
        let now = self.now();
        let iid = names::iid(&caller.platform, &request.instance_id);
        let operation_id = (self.ports.new_id)();
        let request_id = caller.request_id.clone();
        let refuse = self.settings.refuse_deprovision_with_bindings;
        let begins = steps(self, OperationKind::Deprovision);
        let step = begins.first().copied().unwrap_or_default();
        let asked = Event::asked_for_all(caller, &request.instance_id, now).by(&operation_id);
        let request = Arc::new(request);
        let (id, superseded) = self
            .store
            .write(move |tx| {
                let (served, request, iid) = (served.clone(), request.clone(), iid.clone());
                let (operation_id, request_id) = (operation_id.clone(), request_id.clone());
                let asked = asked.clone();
                Box::pin(async move {
                    let found = tx.instance_now(&iid).await?;
                    let supersede = match decide::deprovision(refuse, &request, found.as_ref())? {
                        DeprovisionDecision::Running(id) => return Ok((id, None)),
                        DeprovisionDecision::Start { supersede } => supersede,
                    };
                    if found.as_ref().is_some_and(|now| now.bindings > 0) {
                        tx.audit(asked);
                    }
                    let attributes = found.map(|now| now.instance.attributes).unwrap_or_default();
                    let offering = served.catalog.offering_name(&attributes.service_id);
                    let patience = served
                        .catalog
                        .plan(&attributes.service_id, &attributes.plan_id)
                        .map_or(3600, |(_, plan)| plan.maximum_polling_duration);
                    if let Some(id) = &supersede {
                        tx.supersede(
                            id,
                            "Cancelled: the platform asked for the instance to be deleted.",
                            now,
                        )
                        .await?;
                    }
                    tx.set_instance_state(&iid, InstanceState::Deprovisioning, now)
                        .await?;
                    tx.insert_operation(&NewOperation {
                        id: operation_id.clone(),
                        kind: OperationKind::Deprovision,
                        iid,
                        bid: None,
                        offering,
                        target: None,
                        step,
                        description: "Accepted.",
                        now,
                        deadline_at: now + 1000 * i64::from(patience),
                        request_id,
                    })
                    .await?;
                    Ok((operation_id, supersede))
                })
            })
            .await?;
        self.accepted(superseded.as_deref());
        Ok(Outcome::Accepted {
            operation: id,
            body: (),
        })
    }

    fn instance_outcome(&self, written: Written) -> Outcome<InstanceView> {
        match written {
            Written::Working(instance, operation) => Outcome::Accepted {
                operation,
                body: self.instance_view(&instance),
            },
            Written::Still(instance) => Outcome::Done(self.instance_view(&instance)),
        }
    }

    /// What may be told of an instance.
    pub(super) fn instance_view(&self, instance: &Instance) -> InstanceView {
        let served = self.served();
        let attributes = &instance.attributes;
        let mut labels = Map::new();
        labels.insert("chandler.osb/instance".into(), json!(instance.iid));
        if let Some((offering, plan)) = served.catalog.plan(&attributes.service_id, &attributes.plan_id) {
            labels.insert("chandler.osb/offering".into(), Value::from(offering.name.clone()));
            labels.insert("chandler.osb/plan".into(), Value::from(plan.name.clone()));
        }
        InstanceView {
            service_id: attributes.service_id.clone(),
            plan_id: attributes.plan_id.clone(),
            parameters: attributes.parameters.clone(),
            dashboard_url: instance.dashboard_url.clone(),
            maintenance_version: instance.maintenance_version.clone(),
            labels,
        }
    }
}

fn new_instance(
    engine: &Engine,
    caller: &Caller,
    request: &Provision,
    iid: &str,
    offering: &Offering,
    plan: &Plan,
    now: Millis,
) -> Instance {
    Instance {
        iid: iid.to_owned(),
        platform: caller.platform.clone(),
        instance_id: request.instance_id.clone(),
        attributes: request.attributes.clone(),
        state: InstanceState::Provisioning,
        usable: true,
        context: request.context.clone(),
        maintenance_version: request
            .maintenance_version
            .clone()
            .or_else(|| plan.maintenance_version.clone()),
        dashboard_url: engine.settings.dashboard_url.as_ref().map(|template| {
            template
                .replace("{instance_id}", iid)
                .replace("{service}", &offering.name)
                .replace("{plan}", &plan.name)
        }),
        facts: Map::new(),
        endpoints: Vec::new(),
        created_at: now,
        updated_at: now,
        retained_until: None,
    }
}
