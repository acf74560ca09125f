//! A fake outside world: a provisioner and a mechanism over one table of what exists, with faults that are
//! planned at a named call and strike before or after it acted.

use super::outside::Around;
use async_trait::async_trait;
use chandler::domain::catalog::{Offering, Plan};
use chandler::domain::instance::{Endpoint, Millis};
use chandler::domain::manifest::Desired;
use chandler::domain::secret::Secret;
use chandler::ports::{
    CredentialMechanism, Grant, InstanceRef, NewUser, Observation, PortError, PortErrorKind, PortResult,
    Provisioner, Removal, RevokedHandle, Target, Volumes,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What one instance is in the fake world.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FakeInstance {
    /// Hash of what was applied last.
    pub applied: String,
    /// Looks until it is ready.
    pub looks_left: u32,
    /// Whether it runs; false after `stop`.
    pub running: bool,
    /// Users by handle: password and role.
    pub users: BTreeMap<String, (String, String)>,
    /// Whether `prepare` came by.
    pub prepared: bool,
    /// The list of revoked handles as last stated.
    pub revoked: BTreeSet<String>,
    /// The administrator's password: that of whoever logged in first.
    pub admin: Option<String>,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing has happened yet.
    Before,
    /// It has happened, but nobody hears of it.
    After,
}

/// What a fault does.
#[derive(Debug, Clone)]
pub enum Effect {
    /// The call fails.
    Fail(PortErrorKind, &'static str),
    /// The call never returns: the worker that made it is as good as dead.
    Hang,
}

#[derive(Debug, Clone)]
struct Fault {
    call: &'static str,
    when: When,
    effect: Effect,
    times: u32,
}

/// The table and the plan of faults.
#[derive(Default)]
pub struct World {
    pub instances: Mutex<BTreeMap<String, FakeInstance>>,
    faults: Mutex<Vec<Fault>>,
    /// Names of calls in order.
    pub calls: Mutex<Vec<&'static str>>,
    /// What `observe` answers instead of becoming ready.
    pub refuse_ready: Mutex<Option<String>>,
    /// Looks a new instance needs.
    pub looks: Mutex<u32>,
    /// Whether removed instances may leave their volumes: what was in them is here, users and all.
    pub volumes: Mutex<BTreeMap<String, FakeInstance>>,
    /// Whether the provisioner can keep volumes.
    pub keeps_volumes: Mutex<bool>,
    /// What is not as the broker made it, told by the next `drift`.
    pub drifted: Mutex<Vec<String>>,
    /// Whether the mechanism states the whole list of revocations.
    pub whole_list: Mutex<bool>,
    /// Notified when a call hangs.
    pub hung: tokio::sync::Notify,
    /// Everything the outside world was told, as text.
    pub told: Mutex<Vec<String>>,
    pub passwords: std::sync::atomic::AtomicU64,
    /// What lies around the servers.
    pub around: Around,
    /// Whether administrators' passwords differ from one another.
    pub own_admins: std::sync::atomic::AtomicBool,
}

impl World {
    /// A world with a vault, an identity provider and namespaces that Secrets can be put into.
    pub fn with_all_around() -> Self {
        Self {
            around: Around::all(),
            ..Self::default()
        }
    }

    /// Whether these credentials let in.
    pub fn opens(&self, credentials: &Map<String, Value>) -> bool {
        let text = |name: &str| credentials.get(name).and_then(Value::as_str).unwrap_or_default();
        self.lets_in(text("username"), text("password"))
    }

    /// Plans a fault for the next `times` calls of this name.
    pub fn plan(&self, call: &'static str, when: When, effect: Effect, times: u32) {
        self.faults.lock().unwrap().push(Fault {
            call,
            when,
            effect,
            times,
        });
    }

    /// Forgets planned faults.
    pub fn calm(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// How often a call was made.
    pub fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| **c == call).count()
    }

    /// Lets an instance stop by itself.
    pub fn stop(&self, iid: &str) {
        self.instances.lock().unwrap().get_mut(iid).unwrap().running = false;
    }

    /// Whether somebody with this user and password gets in.
    pub fn lets_in(&self, handle: &str, password: &str) -> bool {
        self.instances
            .lock()
            .unwrap()
            .values()
            .any(|i| i.users.get(handle).is_some_and(|(p, _)| p == password) && !i.revoked.contains(handle))
    }

    /// All users there are.
    pub fn users(&self) -> Vec<String> {
        self.instances
            .lock()
            .unwrap()
            .values()
            .flat_map(|i| i.users.keys().cloned())
            .collect()
    }

    pub async fn strike(&self, call: &'static str, when: When) -> PortResult<()> {
        if when == When::Before {
            self.calls.lock().unwrap().push(call);
        }
        let effect = {
            let mut faults = self.faults.lock().unwrap();
            match faults
                .iter_mut()
                .find(|f| f.call == call && f.when == when && f.times > 0)
            {
                Some(fault) => {
                    fault.times -= 1;
                    Some(fault.effect.clone())
                }
                None => None,
            }
        };
        match effect {
            None => Ok(()),
            Some(Effect::Fail(kind, message)) => Err(PortError::new(kind, message)),
            Some(Effect::Hang) => {
                self.hung.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// The provisioner of the fake world; it says it is the local one.
pub struct FakeProvisioner(pub Arc<World>);

impl FakeProvisioner {
    fn seen(&self, iid: &str) -> Observation {
        if let Some(reason) = self.0.refuse_ready.lock().unwrap().clone() {
            return Observation::Failed(reason);
        }
        match self.0.instances.lock().unwrap().get_mut(iid) {
            None => Observation::Absent("nothing is there".into()),
            Some(i) if !i.running => Observation::Absent("stopped".into()),
            Some(i) if i.looks_left > 0 => {
                i.looks_left -= 1;
                Observation::Progressing(format!("{} more looks", i.looks_left))
            }
            Some(_) => Observation::Ready(vec![Endpoint {
                name: "client".into(),
                host: "127.0.0.1".into(),
                port: 4000,
            }]),
        }
    }
}

#[async_trait]
impl Provisioner for FakeProvisioner {
    fn name(&self) -> &'static str {
        "local"
    }

    fn offers(&self, _: &Offering, plan: &Plan) -> Result<(), String> {
        if plan.runs_on.iter().any(|r| r == "local") {
            Ok(())
        } else {
            Err("not here".into())
        }
    }

    async fn place(&self, _: &InstanceRef, _: &Offering) -> PortResult<Map<String, Value>> {
        self.0.strike("place", When::Before).await?;
        let place = json!({"ports": {"client": 4000}, "dirs": {"root": "/x", "init": "/x/i"}, "bin": {"server": "/bin/true"}, "host": "127.0.0.1"});
        self.0.strike("place", When::After).await?;
        Ok(place.as_object().unwrap().clone())
    }

    async fn apply(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()> {
        self.0.strike("apply", When::Before).await?;
        {
            let looks = *self.0.looks.lock().unwrap();
            let mut all = self.0.instances.lock().unwrap();
            let there = all.entry(instance.iid.clone()).or_insert_with(|| FakeInstance {
                looks_left: looks,
                ..self
                    .0
                    .volumes
                    .lock()
                    .unwrap()
                    .remove(&instance.iid)
                    .unwrap_or_default()
            });
            self.0.drifted.lock().unwrap().clear();
            there.running = true;
            there.applied.clone_from(&desired.hash);
            let rendered = json!([desired.process, desired.objects]);
            self.0
                .told
                .lock()
                .unwrap()
                .push(format!("{instance:?} {rendered}"));
        }
        self.0.strike("apply", When::After).await
    }

    async fn observe(&self, instance: &InstanceRef, _: &Desired) -> PortResult<Observation> {
        self.0.strike("observe", When::Before).await?;
        let seen = self.seen(&instance.iid);
        self.0.strike("observe", When::After).await?;
        Ok(seen)
    }

    async fn remove(&self, instance: &InstanceRef, volumes: Volumes) -> PortResult<Removal> {
        self.0.strike("remove", When::Before).await?;
        let was = self.0.instances.lock().unwrap().remove(&instance.iid);
        match (volumes, was) {
            (Volumes::Keep, Some(was)) => {
                self.0.volumes.lock().unwrap().insert(instance.iid.clone(), was);
            }
            (Volumes::Keep, None) => {}
            (Volumes::Delete, _) => {
                self.0.volumes.lock().unwrap().remove(&instance.iid);
            }
        }
        self.0.strike("remove", When::After).await?;
        Ok(Removal::Gone)
    }

    async fn list(&self) -> PortResult<Vec<String>> {
        let mut all: BTreeSet<String> = self.0.instances.lock().unwrap().keys().cloned().collect();
        all.extend(self.0.volumes.lock().unwrap().keys().cloned());
        Ok(all.into_iter().collect())
    }

    async fn drift(&self, _: &InstanceRef, _: &Desired) -> PortResult<Vec<String>> {
        Ok(self.0.drifted.lock().unwrap().clone())
    }

    fn supervises(&self) -> bool {
        true
    }

    fn keeps_volumes(&self) -> bool {
        *self.0.keeps_volumes.lock().unwrap()
    }
}

/// The mechanism of the fake world, under the word `sql`.
pub struct FakeMechanism(pub Arc<World>);

impl FakeMechanism {
    /// The administrator logs in.
    fn logged_in(&self, target: &Target) -> PortResult<()> {
        let password = target.admin.text("password");
        let present = self.with(&target.iid, |i| {
            i.admin.get_or_insert_with(|| password.to_owned()).clone()
        })?;
        if present == password {
            Ok(())
        } else {
            Err(PortError::denied("the administrator's password is wrong"))
        }
    }

    fn with<T>(&self, iid: &str, act: impl FnOnce(&mut FakeInstance) -> T) -> PortResult<T> {
        let mut all = self.0.instances.lock().unwrap();
        match all.get_mut(iid) {
            Some(i) if i.running => Ok(act(i)),
            _ => Err(PortError::transient("the server does not answer")),
        }
    }
}

#[async_trait]
impl CredentialMechanism for FakeMechanism {
    fn name(&self) -> &'static str {
        "sql"
    }

    fn check_settings(&self, _: &Map<String, Value>) -> Vec<String> {
        Vec::new()
    }

    fn generate_admin(&self, _: &Map<String, Value>) -> PortResult<Secret> {
        let mut password = "AdminSecretOfTheFakeWorld".to_owned();
        if self.0.own_admins.load(Ordering::Relaxed) {
            password.push_str(&self.0.passwords.fetch_add(1, Ordering::Relaxed).to_string());
        }
        Ok(Secret::from_pairs([
            ("username", "admin".to_owned()),
            ("password", password),
        ]))
    }

    fn generate_user(&self, _: &Target, grant: &Grant, _: Millis) -> PortResult<NewUser> {
        let n = self.0.passwords.fetch_add(1, Ordering::Relaxed);
        let handle = grant.user();
        Ok(NewUser {
            secret: Secret::from_pairs([
                ("username", handle.clone()),
                ("password", format!("UserSecretOfTheFakeWorld{n}")),
            ]),
            handle,
        })
    }

    async fn prepare(&self, target: &Target) -> PortResult<()> {
        self.0.strike("prepare", When::Before).await?;
        self.logged_in(target)?;
        self.with(&target.iid, |i| i.prepared = true)?;
        self.0.strike("prepare", When::After).await
    }

    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()> {
        self.0.strike("issue", When::Before).await?;
        self.logged_in(target)?;
        let entry = (user.secret.text("password").to_owned(), grant.role.clone());
        self.0.told.lock().unwrap().push(format!(
            "{target:?} {:?} {grant:?} {}",
            target.settings, user.handle
        ));
        self.with(&target.iid, |i| i.users.insert(user.handle.clone(), entry))?;
        self.0.strike("issue", When::After).await
    }

    async fn verify(&self, target: &Target, _: &Grant, user: &NewUser) -> PortResult<()> {
        self.0.strike("verify", When::Before).await?;
        let good = self.with(&target.iid, |i| {
            i.users
                .get(&user.handle)
                .is_some_and(|(p, _)| p == user.secret.text("password"))
        })?;
        if !good {
            return Err(PortError::denied("the new credentials do not let in"));
        }
        self.0.strike("verify", When::After).await
    }

    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()> {
        self.0.strike("revoke", When::Before).await?;
        self.logged_in(target)?;
        self.0.around.revoked(handle);
        let whole = *self.0.whole_list.lock().unwrap();
        self.with(&target.iid, |i| {
            if whole {
                i.revoked = target
                    .revoked
                    .iter()
                    .map(|r: &RevokedHandle| r.handle.clone())
                    .collect();
                i.revoked.insert(handle.to_owned());
            } else {
                i.users.remove(handle);
            }
        })?;
        self.0.strike("revoke", When::After).await
    }

    fn rotates_admin(&self, _: &Map<String, Value>) -> bool {
        !*self.0.whole_list.lock().unwrap()
    }

    async fn rotate_admin(&self, target: &Target, next: &Secret) -> PortResult<()> {
        let password = next.text("password").to_owned();
        let there = self.with(&target.iid, |i| i.admin.clone())?;
        let done = there.as_ref() == Some(&password);
        let call = if done { "confirm_admin" } else { "rotate_admin" };
        self.0.strike(call, When::Before).await?;
        if !done {
            self.logged_in(target)?;
            self.with(&target.iid, |i| i.admin = Some(password))?;
        }
        self.0.strike(call, When::After).await
    }

    async fn list(&self, target: &Target) -> PortResult<Vec<String>> {
        self.logged_in(target)?;
        self.with(&target.iid, |i| i.users.keys().cloned().collect())
    }

    fn states_whole_list(&self) -> bool {
        *self.0.whole_list.lock().unwrap()
    }
}
