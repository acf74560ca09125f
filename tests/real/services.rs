//! Services whose users are made by data: a catalog folder as the broker reads it, up to a mechanism's settings and a
//! binding's credentials.

use crate::contract::grant;
use crate::support::endpoint;
use async_trait::async_trait;
use chandler::adapters::catalog_dir;
use chandler::app::{SystemClock, catalog, mechanisms};
use chandler::domain::catalog::{Offering, Plan, Sources};
use chandler::domain::instance::{Endpoint, Millis};
use chandler::domain::manifest::{self, BindingFacts, LOCAL, ProcessSpec};
use chandler::domain::params;
use chandler::domain::secret::Secret;
use chandler::ports::{Clock, CredentialMechanism, Grant, NewUser, PortResult, Target};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// An instance of a service of a catalog folder.
pub struct Service {
    /// The offering, checked.
    pub offering: Arc<Offering>,
    /// Its only plan.
    pub plan: Arc<Plan>,
    /// Makes its users.
    pub mechanism: WithDefaults,
    /// The administrator's secret.
    pub admin: Secret,
    /// The instance's parameters.
    pub params: Map<String, Value>,
}

/// The folders of `examples/services`.
pub fn examples() -> Sources {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/services");
    catalog_dir::read(&[folder]).unwrap()
}

impl Service {
    /// Loads the catalog as the broker does, with all its checks, and takes one service of it.
    pub fn load(sources: &Sources, name: &str, params: &Value) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let mechanisms = mechanisms(&clock);
        let catalog = catalog::check(sources, &mechanisms).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let offering = catalog.offerings.iter().find(|o| o.name == name).unwrap().clone();
        let plan = offering.plans[0].clone();
        let mechanism = mechanisms[&offering.binding.as_ref().unwrap().mechanism].clone();
        let params = params::with_defaults(&plan.schemas.create, params.as_object().unwrap());
        Self {
            admin: mechanism.generate_admin(&Map::new()).unwrap(),
            mechanism: WithDefaults {
                inner: mechanism,
                params: params::with_defaults(&plan.schemas.bind, &Map::new()),
            },
            offering,
            plan,
            params,
        }
    }

    /// The instance at `port`.
    pub fn target(&self, port: u16) -> Target {
        let scope = self.scope(&Map::new());
        let binding = self.offering.binding.as_ref().unwrap();
        let endpoint = endpoint(&binding.endpoint, port);
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: manifest::settings(binding, &self.plan, &scope).unwrap(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    fn scope(&self, placement: &Map<String, Value>) -> Map<String, Value> {
        let iid = "i".repeat(26);
        manifest::instance_scope(&iid, "kit", &self.offering, &self.plan, &self.params, placement)
    }

    /// `process.yaml` as it would be run in `root`.
    pub fn process(&self, root: &Path, port: u16, binaries: &Value) -> ProcessSpec {
        let placement = json!({
            "ports": {"client": port}, "bin": binaries, "host": "127.0.0.1",
            "dirs": {"root": root, "init": root.join(".init")},
        });
        let scope = self.scope(placement.as_object().unwrap());
        let none = Secret::default();
        let desired = manifest::render(&self.offering, &self.plan, LOCAL, &scope, &self.admin, &none);
        desired.unwrap().process.unwrap()
    }

    /// What a binding gets, as `binding.yaml` says.
    pub fn credentials(&self, target: &Target, user: &NewUser) -> Value {
        let facts = BindingFacts {
            iid: &target.iid,
            offering: &self.offering,
            plan: &self.plan,
            params: &grant("credentials", "owner").params,
            role: "owner",
            endpoint: &target.endpoint,
            endpoints: std::slice::from_ref::<Endpoint>(&target.endpoint),
            settings: &target.settings,
            user: &user.secret,
        };
        let binding = self.offering.binding.as_ref().unwrap();
        let (credentials, _) =
            manifest::binding_credentials(binding, &manifest::binding_scope(&facts)).unwrap();
        Value::Object(credentials.expose().clone())
    }
}

/// A mechanism whose grants get the defaults of `bind.schema.json`, as the engine fills them in.
pub struct WithDefaults {
    inner: Arc<dyn CredentialMechanism>,
    params: Map<String, Value>,
}

impl WithDefaults {
    fn filled(&self, grant: &Grant) -> Grant {
        let mut filled = grant.clone();
        for (name, value) in &self.params {
            filled.params.entry(name).or_insert_with(|| value.clone());
        }
        filled
    }
}

#[async_trait]
impl CredentialMechanism for WithDefaults {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String> {
        self.inner.check_settings(settings)
    }

    fn generate_admin(&self, settings: &Map<String, Value>) -> PortResult<Secret> {
        self.inner.generate_admin(settings)
    }

    fn generate_user(&self, target: &Target, grant: &Grant, now: Millis) -> PortResult<NewUser> {
        self.inner.generate_user(target, &self.filled(grant), now)
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        self.inner.prepare(target).await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        self.inner.issue(target, &self.filled(grant), user).await
    }

    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        self.inner.verify(target, &self.filled(grant), user).await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        self.inner.revoke(target, handle).await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        self.inner.list(target).await
    }

    fn rotates_admin(&self, settings: &Map<String, Value>) -> bool {
        self.inner.rotates_admin(settings)
    }

    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        self.inner.rotate_admin(target, next).await
    }
}
