//! What is there, compared with what should be: rows, secrets, processes, directories, ports, users.

use super::clients;
use super::home::{Home, processes_below};
use super::platform::Service;
use super::until;
use chandler::adapters::sealed::SealedStore;
use chandler::app::{self, SqlRows, SystemClock};
use chandler::config::{Config, Dev, Hidden};
use chandler::domain::binding::BindingState;
use chandler::domain::instance::InstanceState;
use chandler::domain::names;
use chandler::ports::{SecretStore, secret_name};
use chandler::store::Store;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An instance that should be there.
#[derive(Debug, Clone)]
pub struct Expected {
    pub service: Service,
    pub id: String,
    /// The platform's ids of its bindings.
    pub bindings: Vec<String>,
}

/// The broker's own state, opened beside the broker.
pub struct State {
    pub store: Store,
    pub sealed: SealedStore<SqlRows>,
    platform: String,
}

impl State {
    /// Of a `chandler dev`.
    pub async fn dev(home: &Home) -> Self {
        let config = Config::dev(&Dev {
            data_dir: home.data(),
            port: 0,
            catalog_dirs: Vec::new(),
            password: Hidden::new("not needed here".into()),
            run_as: None,
        });
        Self::of(&config.unwrap(), "dev").await
    }

    /// Of a `chandler serve`.
    pub async fn of(config: &Config, platform: &str) -> Self {
        // Beside many other servers that start, PostgreSQL may take longer than a broker waits for a connection.
        let store = until("the store can be opened", Duration::from_secs(60), || async {
            app::open_store(config).await.ok()
        })
        .await;
        let rows = SqlRows::new(store.clone(), Arc::new(SystemClock));
        let sealed = SealedStore::new(app::seal_keys(config).unwrap(), rows);
        Self {
            store,
            sealed,
            platform: platform.into(),
        }
    }

    pub fn iid(&self, id: &str) -> String {
        names::iid(&self.platform, id)
    }

    /// The user a binding has on Redis and PostgreSQL.
    pub fn user(&self, id: &str, binding_id: &str) -> String {
        names::backend_user(&names::bid(&self.platform, id, binding_id))
    }

    /// The administrator's secrets of an instance.
    pub async fn admin(&self, id: &str) -> Value {
        let secret = self
            .sealed
            .get(&self.admin_name(&self.iid(id)).await)
            .await
            .unwrap();
        Value::Object(
            secret
                .unwrap_or_else(|| panic!("{id} has no administrator"))
                .expose()
                .clone(),
        )
    }

    /// The name of the administrator's secrets that count.
    async fn admin_name(&self, iid: &str) -> String {
        let row = self.store.instance(iid).await.unwrap();
        let number = row.and_then(|row| row.instance.facts.get("admin")?["now"].as_u64());
        secret_name::nth_admin(iid, u32::try_from(number.unwrap_or(0)).unwrap())
    }

    /// Users of bindings that an instance's server knows.
    pub async fn users(&self, service: Service, id: &str) -> Vec<String> {
        let row = self.store.instance(&self.iid(id)).await.unwrap().unwrap();
        let endpoint = row
            .instance
            .endpoints
            .iter()
            .find(|e| e.name == "client")
            .unwrap()
            .port;
        clients::users(service, endpoint, &self.admin(id).await).await
    }

    /// Waits until no operation is open.
    pub async fn idle(&self) {
        let end = Instant::now() + super::platform::PATIENCE;
        loop {
            let (open, _) = self.store.open_operations().await.unwrap();
            if open == 0 {
                return;
            }
            assert!(Instant::now() < end, "{open} operations do not end");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Everything that is not as it should be, in words.
    pub async fn audit(&self, instances: &Path, expected: &[Expected]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut live = BTreeSet::new();
        for one in expected {
            live.insert(self.iid(&one.id));
        }
        self.rows(expected, &mut wrong).await;
        self.secrets(expected, &mut wrong).await;
        on_disk(instances, &live, &mut wrong);
        let running: BTreeSet<String> = processes_below(instances)
            .iter()
            .filter_map(|p| Some(p.at.iter().next()?.to_str()?.to_owned()))
            .collect();
        differ("process", &running, &live, &mut wrong);
        for one in expected {
            if one.service == Service::Nats {
                continue;
            }
            let there: BTreeSet<String> = self.users(one.service, &one.id).await.into_iter().collect();
            let should = one.bindings.iter().map(|b| self.user(&one.id, b)).collect();
            differ(&format!("user on {} of", one.id), &there, &should, &mut wrong);
        }
        wrong
    }

    async fn rows(&self, expected: &[Expected], wrong: &mut Vec<String>) {
        let mut should = BTreeMap::new();
        for one in expected {
            let bids: BTreeSet<String> = one
                .bindings
                .iter()
                .map(|b| names::bid(&self.platform, &one.id, b))
                .collect();
            should.insert(self.iid(&one.id), bids);
        }
        for row in self.store.instances_page("", None, 10_000).await.unwrap() {
            let bids = should.remove(&row.iid);
            let state = if bids.is_some() {
                InstanceState::Ready
            } else {
                InstanceState::Gone
            };
            if row.state != state || !row.usable && bids.is_some() {
                wrong.push(format!(
                    "instance {} is {} instead of {state}",
                    row.instance_id, row.state
                ));
            }
            let mut bids = bids.unwrap_or_default();
            for binding in self.store.bindings_of(&row.iid).await.unwrap() {
                let should_be = bids.remove(&binding.bid);
                let good = match binding.state {
                    BindingState::Ready => should_be,
                    BindingState::Gone | BindingState::Failed => !should_be,
                    _ => false,
                };
                if !good || binding.residue {
                    wrong.push(format!(
                        "binding {} of {} is {} (residue {}), and should be there: {should_be}",
                        binding.binding_id, row.instance_id, binding.state, binding.residue
                    ));
                }
            }
            wrong.extend(
                bids.iter()
                    .map(|bid| format!("binding {bid} of {} has no row", row.instance_id)),
            );
        }
        wrong.extend(should.keys().map(|iid| format!("instance {iid} has no row")));
        let (open, _) = self.store.open_operations().await.unwrap();
        if open > 0 {
            wrong.push(format!("{open} operations are open"));
        }
    }

    async fn secrets(&self, expected: &[Expected], wrong: &mut Vec<String>) {
        let mut should = BTreeSet::new();
        for one in expected {
            let iid = self.iid(&one.id);
            should.insert(self.admin_name(&iid).await);
            if one.service.generates() {
                should.insert(secret_name::generated(&iid));
            }
            for binding in &one.bindings {
                should.insert(secret_name::binding(
                    &iid,
                    &names::bid(&self.platform, &one.id, binding),
                ));
            }
        }
        let there: BTreeSet<String> = self.sealed.list("").await.unwrap().into_iter().collect();
        differ("secret", &there, &should, wrong);
        for name in there {
            if let Err(error) = self.sealed.get(&name).await {
                wrong.push(format!("secret {name} does not open: {}", error.detail));
            }
        }
    }
}

/// Directories, what the provisioner remembers, and its ports.
fn on_disk(instances: &Path, live: &BTreeSet<String>, wrong: &mut Vec<String>) {
    let own = [".state", ".ports"].map(String::from);
    let there: BTreeSet<String> = entries(instances)
        .into_iter()
        .filter(|n| !own.contains(n))
        .collect();
    differ("directory", &there, live, wrong);
    let facts = BTreeSet::from_iter(live.iter().map(|iid| format!("{iid}.facts")));
    let mut kept = entries(&instances.join(".state"));
    // What describes the present process, and the lock, come and go; nobody's may stay.
    for other in kept.iter().filter(|n| !facts.contains(*n)) {
        let iid = other.split('.').next().unwrap_or_default();
        if !live.contains(iid) {
            wrong.push(format!(".state/{other} belongs to nobody"));
        }
    }
    kept.retain(|n| facts.contains(n));
    differ("facts", &kept, &facts, wrong);
    let mut reserved: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for port in entries(&instances.join(".ports"))
        .into_iter()
        .filter(|n| n.parse::<u16>().is_ok())
    {
        let owner = std::fs::read_link(instances.join(".ports").join(&port)).unwrap();
        reserved
            .entry(owner.to_str().unwrap().to_owned())
            .or_default()
            .insert(port);
    }
    for (owner, ports) in &reserved {
        if !live.contains(owner) {
            wrong.push(format!(
                "ports {ports:?} are reserved for {owner}, who is not there"
            ));
        }
    }
    for iid in live {
        let facts =
            std::fs::read_to_string(instances.join(format!(".state/{iid}.facts"))).unwrap_or_default();
        let facts: Value = serde_json::from_str(&facts).unwrap_or_default();
        let chosen: BTreeSet<String> = facts["ports"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, port)| port.to_string())
            .collect();
        let held = reserved.get(iid).cloned().unwrap_or_default();
        differ(&format!("port of {iid}"), &held, &chosen, wrong);
    }
}

fn entries(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir)
        .map(|all| {
            all.flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default()
}

fn differ(what: &str, there: &BTreeSet<String>, should: &BTreeSet<String>, wrong: &mut Vec<String>) {
    wrong.extend(
        there
            .difference(should)
            .map(|one| format!("{what} {one} is left over")),
    );
    wrong.extend(
        should
            .difference(there)
            .map(|one| format!("{what} {one} is missing")),
    );
}
