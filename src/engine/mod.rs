//! The operation engine: commands and queries of the broker, and the durable work behind them.
//!
//! A command decides (`domain::decide`) and writes instance or binding and operation in one
//! transaction, then answers; nothing outside the database has happened by then. The runner claims
//! operations and takes them step by step through the ports. Restart, crash, a second replica and
//! normal running are one path: an open row whose lease has run out is simply claimed.

mod answer;
mod binding_steps;
mod bindings;
mod credentials;
mod instance_steps;
mod instances;
mod outside;
mod queries;
mod reconcile;
mod retained;
mod rotation;
mod rotation_steps;
mod runner;
mod sweep;

pub use credentials::administrator_since;
pub use reconcile::{Done, Finding, Kind, Mend, Reconciler, Report};
pub use runner::{CANCELLED, Runner};
pub use sweep::{SweepReport, Sweeper};

use crate::domain::catalog::{Catalog, Offering, Plan};
use crate::domain::delivery::{Delivery, Ways};
use crate::domain::error::Error;
use crate::domain::instance::Millis;
use crate::domain::operation::OperationState;
use crate::ports::{
    BindingIdentity, BindingVault, Clock, CredentialMechanism, Provisioner, SecretProjection, SecretStore,
};
use crate::store::Store;
use arc_swap::ArcSwap;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The catalog in use, with the body of GET /v2/catalog. Replaced whole at a reload.
pub struct Served {
    /// Everything, also plans that cannot be provisioned here.
    pub catalog: Catalog,
    /// Ids of the plans new instances may have.
    pub offered: HashSet<String>,
    /// `{"services": [...]}`.
    pub body: Value,
}

impl Served {
    /// Whether new instances may have this plan.
    pub fn offers(&self, _offering: &Offering, plan: &Plan) -> bool {
        self.offered.contains(&plan.id)
    }
}

/// The outside world, as `app` composed it.
#[derive(Clone)]
pub struct Ports {
    /// Makes instances.
    pub provisioner: Arc<dyn Provisioner>,
    /// By the word `binding.yaml` uses.
    pub mechanisms: BTreeMap<String, Arc<dyn CredentialMechanism>>,
    /// Keeps secrets.
    pub secrets: Arc<dyn SecretStore>,
    /// Gives bindings a client of their own, where an identity provider is configured.
    pub identity: Option<Arc<dyn BindingIdentity>>,
    /// Where applications fetch secrets, where a vault is configured.
    pub vault: Option<Arc<dyn BindingVault>>,
    /// Puts secrets into applications' namespaces, where there is a cluster.
    pub projection: Option<Arc<dyn SecretProjection>>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Makes operation tokens: unique, URL-safe.
    pub new_id: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What happens with objects that somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// They are put back.
    Repair,
    /// They are told in the log and in a metric.
    Report,
    /// Nobody looks.
    Off,
}

/// What one platform's bindings may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlatformWays {
    /// Ways its applications may get their credentials, the usual one first; empty = the broker's.
    pub delivery: Vec<Delivery>,
    /// Namespaces its Secrets may be put into.
    pub namespaces: Vec<String>,
}

/// How the engine behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this process among the workers; unique.
    pub owner: String,
    /// Whether this process runs operations (`--role worker|all`).
    pub runs_work: bool,
    /// Most steps running at once.
    pub workers: usize,
    /// How long a claim holds without a heartbeat.
    pub lease: Duration,
    /// How often the queue is looked at without a signal.
    pub poll: Duration,
    /// D-09: refuse to delete an instance that has bindings.
    pub refuse_deprovision_with_bindings: bool,
    /// `dashboard_url` with `{instance_id}` (our own name for it), `{service}` and `{plan}` filled in; none = no dashboards.
    pub dashboard_url: Option<String>,
    /// How long tombstones answer (Z-01, L-06).
    pub retention: Duration,
    /// What happens with objects that somebody else changed.
    pub drift: Drift,
    /// How often they are looked for.
    pub drift_every: Duration,
    /// Ways applications may get their credentials, the usual one first, where the platform names none; empty =
    /// `reference` where there are a vault and an identity provider, and `inline`.
    pub delivery: Vec<Delivery>,
    /// What single platforms may, by name.
    pub platforms: BTreeMap<String, PlatformWays>,
    /// Whether the identity provider takes service accounts' tokens for a client's proof.
    pub service_accounts: bool,
    /// How long former credentials go on working after a rotation in place.
    pub rotation_grace: Duration,
    /// How long a request without `accepts_incomplete` waits for its binding.
    pub sync_wait: Duration,
    /// How long a request with `accepts_incomplete` waits before it is answered 202.
    pub async_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            owner: "chandler".into(),
            runs_work: true,
            workers: 16,
            lease: Duration::from_secs(30),
            poll: Duration::from_secs(1),
            refuse_deprovision_with_bindings: false,
            dashboard_url: None,
            retention: Duration::from_hours(7 * 24),
            drift: Drift::Off,
            drift_every: Duration::from_hours(1),
            delivery: Vec::new(),
            platforms: BTreeMap::new(),
            service_accounts: false,
            rotation_grace: Duration::from_hours(1),
            sync_wait: Duration::from_secs(30),
            async_grace: Duration::from_secs(1),
        }
    }
}

/// Commands and queries. One per process, shared.
pub struct Engine {
    store: Store,
    ports: Ports,
    settings: Settings,
    served: ArcSwap<Served>,
    /// Work may be due: carries no data, so missing one only costs a poll.
    wake: Notify,
    /// Operations this process is at, to stop them when a DELETE takes over.
    running: Mutex<HashMap<String, CancellationToken>>,
    /// Requests that wait for the end of an operation in this process.
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
    /// Set when the process is going down: `/readyz` says so.
    draining: CancellationToken,
    /// What else keeps this process from being ready: who says so, and the sentence.
    held_back: Mutex<BTreeMap<&'static str, String>>,
    /// Where operations run: not on the thread of the request that asked for them, which may end first.
    runtime: tokio::runtime::Handle,
}

impl Engine {
    /// An engine over a migrated store, with no catalog yet: see [`set_catalog`](Self::set_catalog).
    pub fn new(store: Store, ports: Ports, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            store,
            ports,
            settings,
            served: ArcSwap::from_pointee(Served {
                catalog: Catalog::default(),
                offered: HashSet::new(),
                body: serde_json::json!({"services": []}),
            }),
            wake: Notify::new(),
            running: Mutex::default(),
            waiting: Mutex::default(),
            draining: CancellationToken::new(),
            held_back: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// The catalog in use.
    pub fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    /// Puts a checked catalog into use. Plans that the provisioner or the mechanisms cannot serve are not offered.
    ///
    /// Errors: an offering or plan that exists in the database under the same name now has another id (I-03).
    pub async fn set_catalog(&self, catalog: Catalog) -> Result<(), Error> {
        let provisioner = &self.ports.provisioner;
        let can = |offering: &Offering, plan: &Plan| {
            let mechanism = offering
                .binding
                .as_ref()
                .is_none_or(|b| self.ports.mechanisms.contains_key(&b.mechanism));
            mechanism && provisioner.offers(offering, plan).is_ok()
        };
        let mut offered = HashSet::new();
        let mut ids = Vec::new();
        for offering in &catalog.offerings {
            ids.push((offering.id.clone(), "offering".to_owned(), offering.name.clone()));
            for plan in &offering.plans {
                let name = format!("{}/{}", offering.name, plan.name);
                ids.push((plan.id.clone(), "plan".to_owned(), name));
                if can(offering, plan) {
                    offered.insert(plan.id.clone());
                }
            }
        }
        let known = self.store.catalog_ids().await?;
        for (id, kind, name) in &ids {
            if let Some((old, _, _)) = known.iter().find(|(i, k, n)| k == kind && n == name && i != id)
                && !ids.iter().any(|(i, _, _)| i == old)
            {
                return Err(Error::bad_request(format!(
                    "The {kind} {name} has the id {id}, but platforms know it as {old}. Ids never change: put the old id back, or give the new one another name."
                )));
            }
        }
        if known.len() < ids.len() || ids.iter().any(|id| !known.contains(id)) {
            self.store
                .write(move |tx| {
                    let ids = ids.clone();
                    Box::pin(async move { tx.remember_catalog_ids(&ids).await })
                })
                .await?;
        }
        let own = self.ways("").schema();
        let body = catalog.served(&|_, plan| offered.contains(&plan.id), &own);
        self.served.store(Arc::new(Served {
            catalog,
            offered,
            body,
        }));
        Ok(())
    }

    /// Makes `/readyz` answer 503 with the sentence `why` until the same `who` says there is none.
    pub fn hold_back(&self, who: &'static str, why: Option<String>) {
        let mut held_back = lock(&self.held_back);
        match why {
            Some(why) => held_back.insert(who, why),
            None => held_back.remove(who),
        };
    }

    /// Whether the broker can serve: store reachable, catalog loaded, not draining. Else one sentence.
    pub async fn ready(&self) -> Result<(), String> {
        if self.draining.is_cancelled() {
            return Err("The broker is shutting down.".into());
        }
        if self.served.load().catalog.offerings.is_empty() {
            return Err("No catalog is loaded.".into());
        }
        if let Some(why) = lock(&self.held_back).values().next() {
            return Err(why.clone());
        }
        self.store
            .ping()
            .await
            .map_err(|_| "The database cannot be reached.".into())
    }

    /// From now on `/readyz` answers 503, so that no new requests are sent here.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// The store, for operators' commands.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The ports, for operators' commands.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// What of all the ways to hand credentials over a platform may have.
    pub(crate) fn ways(&self, platform: &str) -> Ways {
        let (ports, settings) = (&self.ports, &self.settings);
        let (identity, vault) = (ports.identity.is_some(), ports.vault.is_some());
        let own = settings.platforms.get(platform).cloned().unwrap_or_default();
        let allowed = match (own.delivery, &settings.delivery) {
            (own, _) if !own.is_empty() => own,
            (_, all) if !all.is_empty() => all.clone(),
            _ if identity && vault => vec![Delivery::Reference, Delivery::Inline],
            _ => vec![Delivery::Inline],
        };
        Ways {
            allowed,
            identity,
            vault,
            projection: ports.projection.is_some(),
            service_accounts: identity && settings.service_accounts,
            namespaces: own.namespaces,
        }
    }

    fn now(&self) -> Millis {
        self.ports.clock.now()
    }

    /// Starts on an accepted operation in this process if it runs work; signals the runner.
    fn accepted(self: &Arc<Self>, superseded: Option<&str>) {
        if let Some(id) = superseded
            && let Some(token) = lock(&self.running).remove(id)
        {
            token.cancel();
        }
        self.wake.notify_one();
    }

    /// Runs one operation at once and waits until it ended, or `limit` passed. `None` = still open.
    async fn run_and_wait(
        self: &Arc<Self>,
        id: &str,
        limit: Duration,
    ) -> Result<Option<(OperationState, String)>, Error> {
        let signal = Arc::new(Notify::new());
        lock(&self.waiting).insert(id.to_owned(), signal.clone());
        if self.settings.runs_work {
            let (engine, id) = (self.clone(), id.to_owned());
            self.runtime
                .spawn(async move { Runner::new(engine).run_one(&id).await });
        }
        let end = tokio::time::sleep(limit);
        tokio::pin!(end);
        let mut pause = Duration::from_millis(50);
        let result = loop {
            let notified = signal.notified();
            match self.store.operation(id).await {
                Err(fail) => break Err(fail.into()),
                Ok(None) => break Ok(None),
                Ok(Some((row, _))) if row.operation.state != OperationState::Open => {
                    break Ok(Some((row.operation.state, row.operation.description)));
                }
                Ok(Some(_)) => {}
            }
            tokio::select! {
                () = notified => {}
                // Another process may be at it: look now and then.
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(500)),
                () = &mut end => break Ok(None),
            }
        };
        lock(&self.waiting).remove(id);
        result
    }

    fn ended(&self, id: &str) {
        if let Some(signal) = lock(&self.waiting).remove(id) {
            signal.notify_one();
        }
    }
}

/// A lock whose holder panicked still guards plain data: go on with it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> Millis {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
