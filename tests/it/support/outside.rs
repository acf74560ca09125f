//! Fakes of what lies around the server: an identity provider, a vault, namespaces with Secrets. They are strict: what
//! must never be (a secret that is read before it works, a generation left out, a user taken away that applications
//! read) is written down as wrong at the moment it happens, and every test ends by looking at that list.

use super::world::{When, World};
use async_trait::async_trait;
use chandler::domain::delivery::{BindingRef, ClientAuth};
use chandler::domain::instance::Millis;
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{
    BindingIdentity, BindingVault, FoundIdentity, IdentitySpec, Page, PortError, PortErrorKind, PortResult,
    SecretPlace, SecretProjection, SecretState,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// A client at the identity provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    pub binding: BindingRef,
    pub enabled: bool,
    pub auth: ClientAuth,
    pub secret: String,
    pub label: String,
}

/// A secret in the vault, with every version it had.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// Where it is.
    pub place: Option<BindingRef>,
    pub versions: Vec<Map<String, Value>>,
    pub notes: BTreeMap<String, String>,
    pub expires_at: Option<Millis>,
}

/// A Secret in a namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Projected {
    /// Whose it is; none = somebody else's.
    pub owner: Option<String>,
    pub entries: Map<String, Value>,
}

/// What lies around the servers of a fake world.
#[derive(Default)]
pub struct Around {
    /// Whether there are a vault and an identity provider.
    pub vault: bool,
    /// Whether Secrets can be put into namespaces.
    pub projection: bool,
    /// By bid.
    pub clients: Mutex<BTreeMap<String, Client>>,
    /// By bid.
    pub kept: Mutex<BTreeMap<String, Kept>>,
    /// By namespace and name.
    pub projected: Mutex<BTreeMap<(String, String), Projected>>,
    /// What must never happen, and did.
    pub wrong: Mutex<Vec<String>>,
    /// Clients that could not be shut out: what follows cannot be held to the order.
    unclosed: Mutex<BTreeSet<String>>,
}

impl Around {
    /// A vault, an identity provider and namespaces.
    pub fn all() -> Self {
        Self {
            vault: true,
            projection: true,
            ..Self::default()
        }
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// What an application reads that logs in with the binding's client now.
    pub fn readable(&self, bid: &str) -> Option<Map<String, Value>> {
        let clients = self.clients.lock().unwrap();
        clients.get(bid).filter(|client| client.enabled)?;
        self.kept.lock().unwrap().get(bid)?.versions.last().cloned()
    }

    /// Called when a server takes a user away.
    pub fn revoked(&self, handle: &str) {
        let Some(bid) = names::bid_of_user(handle) else {
            return;
        };
        let read = self.readable(bid).is_some_and(|data| data["username"] == handle);
        if read && !self.unclosed.lock().unwrap().contains(bid) {
            self.is_wrong(format!(
                "the user {handle} was taken away while applications read it"
            ));
        }
    }

    /// Everything out there by the binding it belongs to.
    pub fn bids(&self) -> BTreeMap<String, Vec<&'static str>> {
        let mut all: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
        for bid in self.clients.lock().unwrap().keys() {
            all.entry(bid.clone()).or_default().push("client");
        }
        for bid in self.kept.lock().unwrap().keys() {
            all.entry(bid.clone()).or_default().push("secret in the vault");
        }
        for secret in self.projected.lock().unwrap().values() {
            if let Some(bid) = &secret.owner {
                all.entry(bid.clone()).or_default().push("Secret");
            }
        }
        all
    }
}

/// The identity provider.
pub struct FakeIdentity(pub Arc<World>);

#[async_trait]
impl BindingIdentity for FakeIdentity {
    fn coordinates(&self, binding: &BindingRef, auth: &ClientAuth) -> Map<String, Value> {
        let mut told = Map::new();
        told.insert("client_id".into(), json!(binding.client_id()));
        told.insert("token_uri".into(), json!("https://id.test/token"));
        if *auth == ClientAuth::ClientSecret {
            told.insert("grant_type".into(), json!("client_credentials"));
        }
        told
    }

    fn generate(&self, auth: &ClientAuth) -> PortResult<Secret> {
        if *auth != ClientAuth::ClientSecret {
            return Ok(Secret::default());
        }
        let n = self.0.passwords.fetch_add(1, Ordering::Relaxed);
        Ok(Secret::from_pairs([(
            "client_secret",
            format!("ClientSecretOfTheFakeWorld{n}"),
        )]))
    }

    async fn ensure(&self, spec: &IdentitySpec) -> PortResult<()> {
        self.0.strike("ensure", When::Before).await?;
        let (around, bid) = (&self.0.around, &spec.binding.bid);
        let readable = around.kept.lock().unwrap().get(bid).cloned();
        match readable.and_then(|kept| kept.versions.last().cloned()) {
            Some(data) if self.0.opens(&data) => {}
            Some(_) => around.is_wrong(format!("{bid} can be read and does not work")),
            None => around.is_wrong(format!("{bid} gets tokens before there is anything to read")),
        }
        around.unclosed.lock().unwrap().remove(bid);
        around.clients.lock().unwrap().insert(
            bid.clone(),
            Client {
                binding: spec.binding.clone(),
                enabled: true,
                auth: spec.auth.clone(),
                secret: spec.secret.text("client_secret").to_owned(),
                label: spec.label.clone(),
            },
        );
        self.0.strike("ensure", When::After).await
    }

    async fn proof(&self, binding: &BindingRef, _: &ClientAuth) -> PortResult<Option<Secret>> {
        self.0.strike("proof", When::Before).await?;
        let clients = self.0.around.clients.lock().unwrap();
        Ok(clients
            .get(&binding.bid)
            .map(|client| Secret::from_pairs([("client_secret", client.secret.clone())])))
    }

    async fn disable(&self, bid: &str) -> PortResult<()> {
        // Until it is known to have worked nobody may be blamed for what comes after.
        self.0.around.unclosed.lock().unwrap().insert(bid.to_owned());
        self.0.strike("disable", When::Before).await?;
        if let Some(client) = self.0.around.clients.lock().unwrap().get_mut(bid) {
            client.enabled = false;
        }
        self.0.around.unclosed.lock().unwrap().remove(bid);
        self.0.strike("disable", When::After).await
    }

    async fn delete(&self, bid: &str) -> PortResult<()> {
        self.0.strike("delete", When::Before).await?;
        self.0.around.clients.lock().unwrap().remove(bid);
        self.0.strike("delete", When::After).await
    }

    async fn page(&self, _: Option<&str>) -> PortResult<Page<FoundIdentity>> {
        let clients = self.0.around.clients.lock().unwrap();
        let items = clients.iter().map(|(bid, client)| FoundIdentity {
            client_id: names::client_id(bid),
            bid: Some(bid.clone()),
            enabled: client.enabled,
        });
        Ok(Page {
            items: items.collect(),
            next: None,
        })
    }
}

/// The vault.
pub struct FakeVault(pub Arc<World>);

#[async_trait]
impl BindingVault for FakeVault {
    fn coordinates(&self, binding: &BindingRef) -> Map<String, Value> {
        let path = format!(
            "v1/osb/data/{}/{}/{}",
            binding.tenant,
            binding.iid,
            binding.client_id()
        );
        Map::from_iter([
            ("address".to_owned(), json!("https://vault.test")),
            ("data_path".to_owned(), json!(path)),
        ])
    }

    async fn publish(
        &self,
        binding: &BindingRef,
        generation: u32,
        data: &Secret,
        notes: &[(&'static str, String)],
        expires_at: Option<Millis>,
    ) -> PortResult<()> {
        self.0.strike("publish", When::Before).await?;
        let around = &self.0.around;
        if !self.0.opens(data.expose()) {
            around.is_wrong(format!(
                "generation {generation} of {} is shown and does not work",
                binding.bid
            ));
        }
        if notes.iter().any(|(_, note)| note.is_empty() || note.len() > 512) {
            around.is_wrong(format!("a note that no vault takes: {notes:?}"));
        }
        {
            let mut kept = around.kept.lock().unwrap();
            let mut entry = kept.get(&binding.bid).cloned().unwrap_or_default();
            let (wanted, there) = (generation as usize + 1, entry.versions.len());
            if there + 1 == wanted {
                entry.versions.push(data.expose().clone());
                entry.notes = notes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
                entry.expires_at = expires_at;
                entry.place = Some(binding.clone());
                kept.insert(binding.bid.clone(), entry);
            } else if there > wanted {
                return Err(PortError::new(PortErrorKind::Conflict, "a newer one is there"));
            } else if there < wanted {
                drop(kept);
                around.is_wrong(format!("generation {generation} after {there} versions"));
                return Err(PortError::new(PortErrorKind::Gone, "a generation is missing"));
            } else if entry.versions.last() != Some(data.expose()) {
                drop(kept);
                around.is_wrong(format!("generation {generation} twice, and not the same"));
            }
        }
        self.0.strike("publish", When::After).await
    }

    async fn generation(&self, binding: &BindingRef) -> PortResult<Option<u32>> {
        self.0.strike("generation", When::Before).await?;
        let there = self
            .0
            .around
            .kept
            .lock()
            .unwrap()
            .get(&binding.bid)
            .map_or(0, |k| k.versions.len());
        self.0.strike("generation", When::After).await?;
        Ok(there.checked_sub(1).map(|n| u32::try_from(n).unwrap()))
    }

    async fn withdraw(&self, binding: &BindingRef) -> PortResult<()> {
        self.0.strike("withdraw", When::Before).await?;
        self.0.around.kept.lock().unwrap().remove(&binding.bid);
        self.0.strike("withdraw", When::After).await
    }

    async fn page(&self, _: Option<&str>) -> PortResult<Page<BindingRef>> {
        let kept = self.0.around.kept.lock().unwrap();
        Ok(Page {
            items: kept.values().filter_map(|kept| kept.place.clone()).collect(),
            next: None,
        })
    }
}

/// Namespaces with Secrets.
pub struct FakeProjection(pub Arc<World>);

#[async_trait]
impl SecretProjection for FakeProjection {
    async fn project(&self, binding: &BindingRef, place: &SecretPlace, entries: &Secret) -> PortResult<()> {
        self.0.strike("project", When::Before).await?;
        let around = &self.0.around;
        if !self.0.opens(entries.expose()) {
            around.is_wrong(format!("the Secret of {} does not work", binding.bid));
        }
        let key = (place.namespace.clone(), place.name.clone());
        {
            let mut projected = around.projected.lock().unwrap();
            let own = Some(binding.bid.clone());
            if projected.get(&key).is_some_and(|there| there.owner != own) {
                return Err(PortError::denied("A Secret of this name is somebody else's."));
            }
            let secret = Projected {
                owner: own,
                entries: entries.expose().clone(),
            };
            projected.insert(key, secret);
        }
        self.0.strike("project", When::After).await
    }

    async fn remove(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<()> {
        self.0.strike("unproject", When::Before).await?;
        let key = (place.namespace.clone(), place.name.clone());
        {
            let mut projected = self.0.around.projected.lock().unwrap();
            let own = |there: &Projected| there.owner.as_ref() == Some(&binding.bid);
            if projected.get(&key).is_some_and(own) {
                projected.remove(&key);
            }
        }
        self.0.strike("unproject", When::After).await
    }

    async fn state(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<SecretState> {
        let key = (place.namespace.clone(), place.name.clone());
        let projected = self.0.around.projected.lock().unwrap();
        Ok(match projected.get(&key) {
            None => SecretState::Absent,
            Some(there) if there.owner.as_ref() != Some(&binding.bid) => SecretState::Anothers,
            Some(there) if !self.0.opens(&there.entries) => SecretState::Edited,
            Some(_) => SecretState::Whole,
        })
    }
}
