//! How far an instance is, from what the watches show: no request in the ordinary case.
//!
//! What must stay true: a phase is looked at only when all before it are ready; something that is missing, or differs
//! from what is wanted, makes the engine apply again; somebody who waits is told what for, and after some time without
//! progress also what the cluster complains about.

use super::apply::{Stand, is_going, lost, phases};
use super::dress::{self, Dressed};
use super::health::{self, Health};
use super::kinds::{Kinds, Resource};
use super::watch::is_watched;
use super::{KubernetesProvisioner, endpoints, names, quantity, shape};
use crate::domain::manifest::Desired;
use crate::ports::{InstanceRef, Observation, PortErrorKind, PortResult};
use kube::api::ListParams;
use serde_json::Value;
use std::time::Duration;

/// Without a new word for so long, the cluster is asked what is wrong.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long an answer to that is good.
const FRESH: Duration = Duration::from_secs(10);

impl KubernetesProvisioner {
    pub(super) async fn look_at(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Observation> {
        let iid = instance.iid.as_str();
        let all = dress::dressed(&self.settings, instance, desired)?;
        // Before anything else, so that they all begin at once.
        let mut kinds = vec![Kinds::pods(), Kinds::volumes()];
        for object in &all {
            kinds.push(self.resource(&object.reference).await?);
        }
        for kind in kinds.iter().filter(|kind| is_watched(kind)) {
            self.watches.on(kind);
        }
        self.cluster.is_there().await?;
        let mut services = Vec::new();
        for (phase, objects) in phases(&all) {
            if phase == names::OPENING {
                continue;
            }
            let mut missing = None;
            let mut waiting = None;
            for object in objects {
                let resource = self.resource(&object.reference).await?;
                let stand = match self.stand(iid, object, &resource) {
                    Ok(stand) => stand,
                    Err(error) if error.kind == PortErrorKind::Transient => {
                        return Ok(Observation::Progressing(error.message));
                    }
                    Err(error) => return Err(error),
                };
                match state(instance, object, &resource, stand, &mut services) {
                    State::Ready => {}
                    State::Waiting(text) => waiting = waiting.or(Some(text)),
                    State::Missing(text) => missing = missing.or(Some(text)),
                    State::Failed(why) => return Ok(Observation::Failed(why)),
                }
            }
            if let Some(text) = missing {
                return Ok(Observation::Absent(text));
            }
            if let Some(text) = waiting {
                return self.wait(instance, text).await;
            }
        }
        if !self.left_over(instance, &all).is_empty() {
            return Ok(Observation::Absent("Removing what is no longer needed.".into()));
        }
        if let Some(text) = self.growing(iid) {
            return self.wait(instance, text).await;
        }
        let namespace = dress::namespace(&self.settings, iid);
        let services: Vec<&Value> = services.iter().collect();
        Ok(Observation::Ready(endpoints::of(
            &self.settings,
            &namespace,
            &services,
        )))
    }

    /// Volumes that were asked to grow and have not yet.
    fn growing(&self, iid: &str) -> Option<String> {
        let volumes = self.watches.on(&Kinds::volumes()).of(iid).ok()?;
        volumes
            .iter()
            .filter(|volume| shape::text(volume, "/status/phase") == "Bound" && !is_going(volume))
            .find_map(|volume| {
                let amount = |pointer: &str| volume.pointer(pointer).and_then(quantity::milli);
                let has = amount("/status/capacity/storage")?;
                (has < amount("/spec/resources/requests/storage")?).then(|| {
                    format!(
                        "The volume {} grows from {} to {}.",
                        shape::name(volume),
                        shape::text(volume, "/status/capacity/storage"),
                        shape::text(volume, "/spec/resources/requests/storage")
                    )
                })
            })
    }

    /// Tells what is waited for, with what the cluster complains about.
    async fn wait(&self, instance: &InstanceRef, text: String) -> PortResult<Observation> {
        let iid = instance.iid.as_str();
        let waited = self.notes.said(iid, &text);
        let seen = |kind: &Resource| self.watches.on(kind).of(iid).unwrap_or_default();
        let (pods, volumes) = (seen(&Kinds::pods()), seen(&Kinds::volumes()));
        let events = match self.notes.events(iid, FRESH) {
            Some(events) => events,
            None if waited >= PATIENCE => {
                // Asked for again only after FRESH, also when there was no answer.
                let events = self.events(instance).await.unwrap_or_default();
                self.notes.reported(iid, events.clone());
                events
            }
            None => Vec::new(),
        };
        let (pods, volumes): (Vec<&Value>, Vec<&Value>) = (pods.iter().collect(), volumes.iter().collect());
        Ok(
            match health::trouble(&pods, &volumes, &events, self.clock.now()) {
                Some(trouble) if trouble.terminal => Observation::Failed(trouble.sentence),
                Some(trouble) => Observation::Progressing(format!("{text} {}", trouble.sentence)),
                None => Observation::Progressing(text),
            },
        )
    }

    /// What the cluster warned of in the instance's namespace.
    async fn events(&self, instance: &InstanceRef) -> PortResult<Vec<Value>> {
        let namespace = dress::namespace(&self.settings, &instance.iid);
        let params = ListParams::default().fields("type=Warning");
        let mut events = self
            .cluster
            .list(&Kinds::events(), &namespace, &params, false)
            .await?;
        if self.settings.shared_namespace.is_some() {
            // Names in a shared namespace all hold the iid.
            events.retain(|event| shape::text(event, "/involvedObject/name").contains(&instance.iid));
        }
        Ok(events)
    }
}

/// What a stand means for waiting; live Services are put aside for the endpoints.
fn state(
    instance: &InstanceRef,
    wanted: &Dressed,
    resource: &Resource,
    stand: Stand,
    services: &mut Vec<Value>,
) -> State {
    let (kind, name) = (&wanted.reference.kind, &wanted.reference.name);
    let namespace = kind == "Namespace";
    match stand {
        Stand::Sent if !is_watched(resource) => State::Ready,
        Stand::Sent => State::Waiting(format!("{kind} {name} is being made.")),
        Stand::Missing | Stand::Going if namespace && instance.established => State::Failed(lost(name)),
        Stand::Missing => State::Missing(format!("{kind} {name} is to be made.")),
        Stand::Other => State::Missing(format!("{kind} {name} is being changed.")),
        // Only applying again tells whether it is gone, and makes it then.
        Stand::Going => State::Missing(format!("Waiting for the earlier {kind} {name} to go.")),
        Stand::Live(object) => {
            let health = health::of(&object, wanted);
            if kind == "Service" {
                services.push(object);
            }
            match health {
                Health::Ready => State::Ready,
                Health::Progressing(text) => State::Waiting(text),
                Health::Failed(why) => State::Failed(why),
            }
        }
    }
}

enum State {
    Ready,
    Waiting(String),
    Missing(String),
    Failed(String),
}
