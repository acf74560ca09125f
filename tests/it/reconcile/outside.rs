//! A fake identity provider and a fake vault for the comparison: names, pages, and what slips by between them.

use async_trait::async_trait;
use chandler::domain::delivery::{BindingRef, ClientAuth};
use chandler::domain::instance::Millis;
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{
    BindingIdentity, BindingVault, FoundIdentity, IdentitySpec, Page, PortError, PortResult,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Names of one page, as the servers give them.
pub const SERVED: usize = 100;

/// An identity provider and a vault: names and what they hold.
#[derive(Default)]
pub struct Outside {
    /// Client → enabled and its secret.
    pub clients: Mutex<BTreeMap<String, (bool, String)>>,
    pub secrets: Mutex<BTreeSet<BindingRef>>,
    /// Clients that slip by when pages are read, as they do when others are deleted meanwhile.
    pub slips: Mutex<BTreeSet<String>>,
    pub away: AtomicBool,
    pub pages: AtomicUsize,
    /// Calls that are about one binding.
    pub single: AtomicUsize,
}

impl Outside {
    fn answers(&self) -> PortResult<()> {
        if self.away.load(Ordering::SeqCst) {
            Err(PortError::transient("It does not answer."))
        } else {
            Ok(())
        }
    }

    fn one(&self) -> PortResult<()> {
        self.single.fetch_add(1, Ordering::SeqCst);
        self.answers()
    }
}

fn page_of<T: Clone>(all: impl Iterator<Item = T>, after: Option<&str>) -> Page<T> {
    let start: usize = after.map_or(0, |after| after.parse().unwrap());
    let items: Vec<T> = all.skip(start).take(SERVED).collect();
    let next = (items.len() == SERVED).then(|| (start + SERVED).to_string());
    Page { items, next }
}

#[async_trait]
impl BindingIdentity for Outside {
    fn coordinates(&self, binding: &BindingRef, _: &ClientAuth) -> Map<String, Value> {
        Map::from_iter([("client_id".to_owned(), json!(binding.client_id()))])
    }

    fn generate(&self, auth: &ClientAuth) -> PortResult<Secret> {
        Ok(match auth {
            ClientAuth::ClientSecret => Secret::from_pairs([("client_secret", "made anew")]),
            _ => Secret::default(),
        })
    }

    async fn ensure(&self, spec: &IdentitySpec) -> PortResult<()> {
        self.one()?;
        let secret = spec.secret.text("client_secret").to_owned();
        self.clients
            .lock()
            .unwrap()
            .insert(spec.binding.client_id(), (true, secret));
        Ok(())
    }

    async fn proof(&self, binding: &BindingRef, _: &ClientAuth) -> PortResult<Option<Secret>> {
        self.one()?;
        let clients = self.clients.lock().unwrap();
        let there = clients.get(&binding.client_id());
        Ok(there.map(|(_, secret)| Secret::from_pairs([("client_secret", secret.clone())])))
    }

    async fn disable(&self, bid: &str) -> PortResult<()> {
        self.one()?;
        if let Some(client) = self.clients.lock().unwrap().get_mut(&names::client_id(bid)) {
            client.0 = false;
        }
        Ok(())
    }

    async fn delete(&self, bid: &str) -> PortResult<()> {
        self.one()?;
        self.clients.lock().unwrap().remove(&names::client_id(bid));
        Ok(())
    }

    async fn page(&self, after: Option<&str>) -> PortResult<Page<FoundIdentity>> {
        self.answers()?;
        self.pages.fetch_add(1, Ordering::SeqCst);
        let slips = self.slips.lock().unwrap();
        let clients = self.clients.lock().unwrap();
        let found = clients.iter().filter(|(name, _)| !slips.contains(*name));
        Ok(page_of(
            found.map(|(name, (enabled, _))| FoundIdentity {
                client_id: name.clone(),
                bid: names::bid_of_client(name).map(str::to_owned),
                enabled: *enabled,
            }),
            after,
        ))
    }
}

#[async_trait]
impl BindingVault for Outside {
    fn coordinates(&self, _: &BindingRef) -> Map<String, Value> {
        Map::new()
    }

    async fn publish(
        &self,
        binding: &BindingRef,
        generation: u32,
        data: &Secret,
        _: &[(&'static str, String)],
        _: Option<Millis>,
    ) -> PortResult<()> {
        self.one()?;
        assert_eq!(generation, 0);
        assert!(!data.text("password").is_empty(), "the credentials themselves");
        self.secrets.lock().unwrap().insert(binding.clone());
        Ok(())
    }

    async fn generation(&self, binding: &BindingRef) -> PortResult<Option<u32>> {
        self.one()?;
        Ok(self.secrets.lock().unwrap().contains(binding).then_some(0))
    }

    async fn withdraw(&self, binding: &BindingRef) -> PortResult<()> {
        self.one()?;
        self.secrets.lock().unwrap().remove(binding);
        Ok(())
    }

    async fn page(&self, after: Option<&str>) -> PortResult<Page<BindingRef>> {
        self.answers()?;
        self.pages.fetch_add(1, Ordering::SeqCst);
        Ok(page_of(self.secrets.lock().unwrap().iter().cloned(), after))
    }
}
