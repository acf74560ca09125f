//! Bindings' secrets in the vault: `<tenant>/<iid>/osb-b-<bid>`, where the binding's own client reads and nobody else.
//!
//! What must stay true: nothing here reads a binding's secret, and the broker's policy does not let it; version g+1 holds
//! generation g, so that a repeated write finds itself; the last name of a path is the client's, checked by one function
//! ([`names::bid_of_client`]), because the vault's policy is filled in with it.

use super::Vault;
use super::fault;
use super::http::Request;
use super::kv::{Kv, Written, conflict};
use super::login::bytes;
use crate::domain::delivery::BindingRef;
use crate::domain::instance::Millis;
use crate::domain::names;
use crate::domain::secret::Secret;
use crate::ports::{BindingVault, Page, PortError, PortErrorKind, PortResult};
use async_trait::async_trait;
use futures::future::try_join_all;
use serde_json::{Map, Value, json};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Instances that one page of the sweep's walk covers.
const INSTANCES_A_PAGE: usize = 100;
/// Lists that are asked for at once.
const AT_ONCE: usize = 4;
/// Longest value the vault takes as a note, in bytes.
const LONGEST_NOTE: usize = 512;
/// How long the log-in's accessor is trusted: it changes only when an operator makes the log-in anew.
const ACCESSOR_TIME: Duration = Duration::from_mins(10);

/// The accessor of the applications' log-in, and when it was read.
pub(super) type Accessor = std::sync::Mutex<Option<(Instant, Arc<str>)>>;

impl Vault {
    fn bindings(&self) -> Kv<'_> {
        Kv {
            session: &self.session,
            mount: &self.settings.kv_mount,
        }
    }

    /// The accessor of the applications' log-in, which the name of an identity's alias is not unique without.
    pub(super) async fn accessor(&self) -> PortResult<Option<Arc<str>>> {
        let lock = || self.accessor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, accessor)) = lock().as_ref()
            && at.elapsed() < ACCESSOR_TIME
        {
            return Ok(Some(accessor.clone()));
        }
        let request = Request::get("sys/auth");
        let answer = self.session.call(request).await?;
        if !answer.is_success() {
            return Err(fault::refusal(&self.session.http, &request, &answer).await);
        }
        let mount = format!("{}/", self.settings.jwt_mount);
        let accessor = answer.data(&mount)["accessor"].as_str().map(Arc::from);
        *lock() = accessor.clone().map(|accessor| (Instant::now(), accessor));
        Ok(accessor)
    }

    /// Ends the tokens that were given out for a client: the vault made an entity at its first log-in, and tokens of an
    /// entity that is gone are refused.
    async fn forget_entity(&self, client_id: &str) -> PortResult<()> {
        // Without the log-in nobody can have logged in.
        let Some(accessor) = self.accessor().await? else {
            return Ok(());
        };
        let body = bytes(json!({"alias_name": client_id, "alias_mount_accessor": &*accessor}))?;
        let request = Request::post("identity/lookup/entity", &body);
        let answer = self.session.call(request).await?;
        if !answer.is_success() && !answer.is_absent() {
            *self.accessor.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(fault::refusal(&self.session.http, &request, &answer).await);
        }
        let Some(id) = answer.data("id").as_str() else {
            return Ok(());
        };
        let path = format!("identity/entity/id/{}", super::http::segment(id)?);
        let request = Request::delete(&path);
        let answer = self.session.call(request).await?;
        if answer.is_success() || answer.is_absent() {
            Ok(())
        } else {
            Err(fault::refusal(&self.session.http, &request, &answer).await)
        }
    }

    async fn bindings_of(&self, tenant: &str, iid: &str) -> PortResult<Vec<BindingRef>> {
        let clients = self.bindings().leaves(&[tenant, iid]).await?;
        let bids = clients.iter().filter_map(|client| names::bid_of_client(client));
        Ok(bids
            .map(|bid| BindingRef {
                tenant: tenant.to_owned(),
                iid: iid.to_owned(),
                bid: bid.to_owned(),
            })
            .collect())
    }
}

/// The names of a binding's place. A name the broker does not give is refused before it gets anywhere.
fn place(binding: &BindingRef) -> PortResult<[String; 3]> {
    let client_id = binding.client_id();
    if is_tenant(&binding.tenant)
        && names::is_name(&binding.iid)
        && names::bid_of_client(&client_id).is_some()
    {
        Ok([binding.tenant.clone(), binding.iid.clone(), client_id])
    } else {
        Err(
            PortError::invalid("This binding's names cannot stand in the vault; tell the broker's operator.")
                .with_detail("a tenant, instance or binding with a name that the broker never gives"),
        )
    }
}

/// Whether `name` can be a platform's.
fn is_tenant(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What the vault takes as notes: texts that are not empty, cut to its limit.
fn notes(notes: &[(&'static str, String)]) -> Map<String, Value> {
    notes
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| {
            let end = text.floor_char_boundary(LONGEST_NOTE);
            ((*name).to_owned(), Value::from(&text[..end]))
        })
        .collect()
}

/// How long a version written now may live. `0s` = as long as it likes.
fn life(expires_at: Option<Millis>, now: Millis) -> String {
    let seconds = expires_at.map_or(0, |end| ((end - now).max(1) + 999) / 1000);
    format!("{seconds}s")
}

#[async_trait]
impl BindingVault for Vault {
    fn coordinates(&self, binding: &BindingRef) -> Map<String, Value> {
        let settings = &self.settings;
        let path = format!("{}/{}/{}", binding.tenant, binding.iid, binding.client_id());
        let mut told = Map::new();
        told.insert(
            "address".to_owned(),
            settings.public_address.trim_end_matches('/').into(),
        );
        if let Some(namespace) = &settings.namespace {
            told.insert("namespace".to_owned(), namespace.as_str().into());
        }
        told.insert("auth_path".to_owned(), settings.jwt_mount.as_str().into());
        told.insert("role".to_owned(), settings.jwt_role.as_str().into());
        told.insert("kv_mount".to_owned(), settings.kv_mount.as_str().into());
        told.insert(
            "data_path".to_owned(),
            format!("v1/{}/data/{path}", settings.kv_mount).into(),
        );
        told.insert("kv_path".to_owned(), path.into());
        told
    }

    async fn publish(
        &self,
        binding: &BindingRef,
        generation: u32,
        data: &Secret,
        beside: &[(&'static str, String)],
        expires_at: Option<Millis>,
    ) -> PortResult<()> {
        let place = place(binding)?;
        let place: [&str; 3] = [&place[0], &place[1], &place[2]];
        let store = self.bindings();
        // A later generation follows one that was there: that is looked at first, so that a worker that comes too late
        // changes nothing. The first one is written straight away, which costs a bind no look: a worker that comes too
        // late with that can put back older notes, no more.
        if generation > 0 {
            match store.version(&place).await? {
                Some(version) if version == generation => {}
                Some(version) => return settled(version, generation),
                None => return settled(0, generation),
            }
        }
        store
            .describe(&place, notes(beside), &life(expires_at, self.clock.now()))
            .await?;
        match store.write(&place, generation, data).await? {
            Written::Done => Ok(()),
            Written::Refused(why) => match store.version(&place).await? {
                // Not because of the version.
                Some(version) if version == generation => Err(why),
                found => settled(found.unwrap_or_default(), generation),
            },
        }
    }

    async fn generation(&self, binding: &BindingRef) -> PortResult<Option<u32>> {
        let place = place(binding)?;
        let version = self
            .bindings()
            .version(&[&place[0], &place[1], &place[2]])
            .await?;
        Ok(version.and_then(|version| version.checked_sub(1)))
    }

    async fn withdraw(&self, binding: &BindingRef) -> PortResult<()> {
        let place = place(binding)?;
        self.bindings().erase(&[&place[0], &place[1], &place[2]]).await?;
        self.forget_entity(&place[2]).await
    }

    async fn page(&self, after: Option<&str>) -> PortResult<Page<BindingRef>> {
        let (last_tenant, last_iid) = after.and_then(|after| after.split_once('/')).unwrap_or_default();
        let store = self.bindings();
        let tenants = store.folders(&[]).await?;
        for tenant in tenants.iter().filter(|tenant| is_tenant(tenant)) {
            let tenant = tenant.as_str();
            if tenant < last_tenant {
                continue;
            }
            let mut iids = store.folders(&[tenant]).await?;
            iids.retain(|iid| names::is_name(iid) && (tenant > last_tenant || iid.as_str() > last_iid));
            iids.truncate(INSTANCES_A_PAGE);
            let Some(last) = iids.last() else {
                continue;
            };
            let next = format!("{tenant}/{last}");
            let mut items = Vec::new();
            for some in iids.chunks(AT_ONCE) {
                let lists = some.iter().map(|iid| self.bindings_of(tenant, iid));
                items.extend(try_join_all(lists).await?.into_iter().flatten());
            }
            return Ok(Page {
                items,
                next: Some(next),
            });
        }
        Ok(Page {
            items: Vec::new(),
            next: None,
        })
    }
}

/// What it means that `version` is the newest where generation `generation` was to be written.
fn settled(version: u32, generation: u32) -> PortResult<()> {
    let wanted = generation + 1;
    if version == wanted {
        return Ok(());
    }
    let detail = format!("version {version} is there, version {wanted} was to be written");
    Err(if version > wanted {
        conflict(detail)
    } else {
        PortError::new(
            PortErrorKind::Gone,
            "The binding's secret is not in the vault any more; unbind and bind again.",
        )
        .with_detail(detail)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn binding(tenant: &str, iid: &str, bid: &str) -> BindingRef {
        BindingRef {
            tenant: tenant.to_owned(),
            iid: iid.to_owned(),
            bid: bid.to_owned(),
        }
    }

    #[test]
    fn only_names_of_our_own_reach_a_path() {
        let name = "a".repeat(26);
        assert_eq!(
            place(&binding("cf-1", &name, &name)).unwrap(),
            ["cf-1".to_owned(), name.clone(), format!("osb-b-{name}")]
        );
        for (tenant, iid, bid) in [
            ("", name.as_str(), name.as_str()),
            ("..", &name, &name),
            ("a/b", &name, &name),
            ("CF", &name, &name),
            ("cf", "..", &name),
            ("cf", &name, "*"),
            ("cf", &name, "../x"),
            ("cf", &name, ""),
        ] {
            let error = place(&binding(tenant, iid, bid)).unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{tenant} {iid} {bid}");
        }
    }

    #[test]
    fn notes_fit_the_vault() {
        let long = "ä".repeat(300);
        let found = notes(&[
            ("empty", String::new()),
            ("long", long),
            ("plan", "small".to_owned()),
        ]);
        assert_eq!(found.len(), 2);
        assert_eq!(found["plan"], "small");
        assert_eq!(found["long"].as_str().unwrap().len(), 512);
    }

    #[test]
    fn a_version_lives_as_long_as_its_binding() {
        for (expires_at, now, text) in [
            (None, 1_000, "0s"),
            (Some(61_000), 1_000, "60s"),
            (Some(61_001), 1_000, "61s"),
            (Some(500), 1_000, "1s"),
        ] {
            assert_eq!(life(expires_at, now), text);
        }
    }

    #[test]
    fn a_repeated_write_finds_itself() {
        for (version, generation, kind) in [
            (1, 0, None),
            (3, 2, None),
            (2, 0, Some(PortErrorKind::Conflict)),
            (0, 1, Some(PortErrorKind::Gone)),
            (1, 2, Some(PortErrorKind::Gone)),
        ] {
            assert_eq!(
                settled(version, generation).err().map(|e| e.kind),
                kind,
                "{version} {generation}"
            );
        }
    }
}
