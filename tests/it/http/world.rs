//! A broker whose world is made of maps: one offering, instances that are ready at once, users that are names.

use async_trait::async_trait;
use chandler::domain::catalog::{Catalog, KnownMechanisms, Offering, Plan, Sources};
use chandler::domain::instance::{Endpoint, Millis};
use chandler::domain::manifest::Desired;
use chandler::domain::secret::Secret;
use chandler::engine::{Engine, Ports, Settings};
use chandler::ports::{
    Clock, CredentialMechanism, Grant, InstanceRef, NewUser, Observation, PortResult, Provisioner, Removal,
    SecretStore, Target,
};
use chandler::store::{Store, StoreOptions};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub const SERVICE: &str = "6b1a5c0e-0000-4000-8000-000000000001";
pub const SMALL: &str = "6b1a5c0e-0000-4000-8000-000000000002";
pub const BIG: &str = "6b1a5c0e-0000-4000-8000-000000000003";

/// 2026-01-01T00:00:00Z
pub const NOW: Millis = 1_767_225_600_000;

fn sources() -> Sources {
    let schema = |members: Value| {
        json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "properties": members, "additionalProperties": false})
            .to_string()
    };
    let plan = |id: &str, name: &str| format!("id: {id}\nname: {name}\ndescription: A {name} tank.\n");
    [
        (
            "catalog/tank/offering.yaml",
            format!(
                "id: {SERVICE}\nname: tank\ndescription: A tank that holds things.\nruns_on: [local]\n\
                 maintenance_info: {{version: 1.0.0}}\nupdates: {{small: [big]}}\n\
                 binding_lifetime: {{ttl: 3600, renew_before: 600}}\n"
            ),
        ),
        ("catalog/tank/create.schema.json", schema(json!({"litres": {"type": "integer", "minimum": 1, "maximum": 9}}))),
        ("catalog/tank/update.schema.json", schema(json!({"litres": {"type": "integer", "minimum": 1, "maximum": 9}}))),
        ("catalog/tank/bind.schema.json", schema(json!({"role": {"type": "string", "enum": ["owner", "readonly"]}}))),
        (
            "catalog/tank/process.yaml",
            "binaries: {tank: [tank]}\ninstall: none\nports: [client]\ncommand: [\"${bin.tank}\"]\nready: {tcp: client}\n".into(),
        ),
        (
            "catalog/tank/binding.yaml",
            "mechanism: redis\nendpoint: client\ndefault_role: owner\nroles: [owner, readonly]\n\
             credentials: {type: tank, username: \"${user.username}\", password: \"${user.password}\"}\n\
             endpoints: [{host: \"${endpoint.host}\", ports: [\"${string(endpoint.port)}\"], protocol: tcp}]\n"
                .into(),
        ),
        ("plans/tank/small.yaml", plan(SMALL, "small")),
        ("plans/tank/big.yaml", plan(BIG, "big")),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text))
    .collect()
}

struct World(Mutex<BTreeMap<String, Secret>>);

#[async_trait]
impl Provisioner for World {
    fn name(&self) -> &'static str {
        "local"
    }

    fn offers(&self, _: &Offering, _: &Plan) -> Result<(), String> {
        Ok(())
    }

    async fn place(&self, _: &InstanceRef, _: &Offering) -> PortResult<Map<String, Value>> {
        let placed = json!({"ports": {"client": 7}, "bin": {"tank": "/bin/tank"}, "dirs": {"root": "/tank"}});
        Ok(placed.as_object().cloned().unwrap_or_default())
    }

    async fn apply(&self, _: &InstanceRef, _: &Desired) -> PortResult<()> {
        Ok(())
    }

    async fn observe(&self, _: &InstanceRef, _: &Desired) -> PortResult<Observation> {
        let endpoint = Endpoint {
            name: "client".into(),
            host: "127.0.0.1".into(),
            port: 7,
        };
        Ok(Observation::Ready(vec![endpoint]))
    }

    async fn remove(&self, _: &InstanceRef) -> PortResult<Removal> {
        Ok(Removal::Gone)
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }

    fn supervises(&self) -> bool {
        false
    }
}

#[async_trait]
impl CredentialMechanism for World {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn check_settings(&self, _: &Map<String, Value>) -> Vec<String> {
        Vec::new()
    }

    fn generate_admin(&self, _: &Map<String, Value>) -> PortResult<Secret> {
        Ok(Secret::from_pairs([
            ("username", "admin"),
            ("password", "admin-password"),
        ]))
    }

    fn generate_user(&self, _: &Target, grant: &Grant, _: Millis) -> PortResult<NewUser> {
        let handle = format!("b_{}", grant.bid);
        let secret = Secret::from_pairs([("username", handle.as_str()), ("password", "user-password")]);
        Ok(NewUser { handle, secret })
    }

    async fn prepare(&self, _: &Target) -> PortResult<()> {
        Ok(())
    }

    async fn issue(&self, _: &Target, _: &Grant, _: &NewUser) -> PortResult<()> {
        Ok(())
    }

    async fn verify(&self, _: &Target, _: &Grant, _: &NewUser) -> PortResult<()> {
        Ok(())
    }

    async fn revoke(&self, _: &Target, _: &str) -> PortResult<()> {
        Ok(())
    }

    async fn list(&self, _: &Target) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl SecretStore for World {
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret> {
        let mut secrets = self.0.lock().unwrap();
        Ok(secrets
            .entry(name.to_owned())
            .or_insert_with(|| value.clone())
            .clone())
    }

    async fn get(&self, name: &str) -> PortResult<Option<Secret>> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }

    async fn destroy(&self, name: &str) -> PortResult<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> PortResult<Vec<String>> {
        let secrets = self.0.lock().unwrap();
        Ok(secrets
            .keys()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect())
    }
}

impl Clock for World {
    fn now(&self) -> Millis {
        NOW
    }
}

/// An engine over a SQLite file in `dir`, with the tank in its catalog. Work runs when a `Runner` is told to.
pub async fn engine(dir: &Path) -> Arc<Engine> {
    let url = format!("sqlite://{}/store.db?mode=rwc", dir.display());
    let store = Store::open(&StoreOptions::new(url)).await.unwrap();
    store.migrate().await.unwrap();
    let world = Arc::new(World(Mutex::default()));
    let serial = AtomicU64::new(0);
    let ports = Ports {
        provisioner: world.clone(),
        mechanisms: BTreeMap::from([("redis".to_owned(), world.clone() as _)]),
        secrets: world.clone(),
        clock: world,
        new_id: Arc::new(move || format!("op-{}", serial.fetch_add(1, Ordering::Relaxed))),
    };
    let engine = Engine::new(store, ports, Settings::default());
    engine
        .set_catalog(Catalog::load(&sources(), &KnownMechanisms).unwrap())
        .await
        .unwrap();
    engine
}
