//! The outside world as the engine sees it (design §3).
//!
//! Every call may be repeated: a worker can die after acting and before recording, and for a
//! moment two workers may act for one operation. So "already there" and "already gone" are
//! success. A port never retries and never waits for something to become ready: it looks, acts,
//! returns; the engine alone decides when to come back. Every call bounds its own time.

use crate::domain::catalog::{Offering, Plan};
use crate::domain::delivery::{BindingRef, ClientAuth};
use crate::domain::instance::{Endpoint, Millis};
use crate::domain::manifest::Desired;
use crate::domain::names;
use crate::domain::secret::Secret;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// What kind of failure a port met; the engine's retry rule hangs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortErrorKind {
    /// May pass by itself: refused connection, time-out, 5xx. Retried with back-off until the deadline.
    Transient,
    /// Somebody else changed the same thing: read again, then retry.
    Conflict,
    /// We are not allowed to. Ends the operation.
    Denied,
    /// What we asked for can never work. Ends the operation.
    Invalid,
    /// What we act on does not exist (any more).
    Gone,
}

/// A failure at a port, with the part a user may read apart from the part only the log gets.
#[derive(Debug, Clone)]
pub struct PortError {
    /// Kind.
    pub kind: PortErrorKind,
    /// One sentence a developer can act on. Never a secret, never a path or address the developer has no use for.
    pub message: String,
    /// For the log. Never a secret.
    pub detail: String,
}

impl PortError {
    /// An error of `kind` with the same text for user and log.
    pub fn new(kind: PortErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            kind,
            detail: message.clone(),
            message,
        }
    }

    /// May pass by itself.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(PortErrorKind::Transient, message)
    }

    /// Can never work.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(PortErrorKind::Invalid, message)
    }

    /// Not allowed.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(PortErrorKind::Denied, message)
    }

    /// Replaces the log's part.
    #[must_use]
    pub fn with_detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = detail.to_string();
        self
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PortError {}

/// What every port call returns.
pub type PortResult<T> = Result<T, PortError>;

/// Which instance a provisioner acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceRef {
    /// The broker's own name for it; every outside name derives from it.
    pub iid: String,
    /// Name of the offering, for labels and log lines.
    pub offering: String,
    /// Name of the plan.
    pub plan: String,
    /// Every object that was ever announced by [`Provisioner::inventory`] and is not known to be gone.
    ///
    /// Recorded before any of them is made, so what exists outside is always in it, unless a worker that had lost
    /// its lease made it: [`Provisioner::remove`] looks by label too.
    pub inventory: Vec<ObjectRef>,
    /// Whether it was ready once: from then on somebody's data is missed when its volumes are gone.
    pub established: bool,
}

/// One object in a cluster, by the names that identify it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Group and version, such as `apps/v1`; `v1` for the core group.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty for an object without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectRef {
    /// Whether the user's data goes with it: only a deprovision removes such an object.
    pub fn holds_data(&self) -> bool {
        self.kind == "PersistentVolumeClaim"
    }
}

/// What happens to the data when an instance is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// They go with the instance.
    Delete,
    /// They stay, for `chandler instances undelete`; all else goes.
    Keep,
}

/// What a look at an instance shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// It answers on these endpoints.
    Ready(Vec<Endpoint>),
    /// Not yet; the text is shown to people ("2 of 3 pods ready").
    Progressing(String),
    /// It will not get there by itself; the text says why and what to do.
    Failed(String),
    /// Nothing is there (or what was there has stopped): `apply` brings it (back).
    Absent(String),
}

/// How far a removal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Nothing is left.
    Gone,
    /// Still going; the text is shown to people.
    StillGoing(String),
}

/// Makes, watches and removes the real thing behind an instance.
#[async_trait]
pub trait Provisioner: Send + Sync {
    /// Word for logs, metrics and a plan's `runs_on`: `local` or `kubernetes`.
    fn name(&self) -> &'static str;

    /// Whether this plan can be provisioned here and now, else one sentence on what is missing.
    ///
    /// The catalog leaves out what cannot: never accept what must fail.
    fn offers(&self, offering: &Offering, plan: &Plan) -> Result<(), String>;

    /// Chooses what only this provisioner can choose (ports, directories, binaries, host) and keeps it.
    ///
    /// The members become top-level names in the instance's expressions (`ports.client`, `dirs.root`, `bin.initdb`).
    /// Called again it returns the same choice. Nothing in it is secret.
    async fn place(&self, instance: &InstanceRef, offering: &Offering) -> PortResult<Map<String, Value>>;

    /// Everything that [`apply`](Self::apply) and [`open`](Self::open) may make for `desired`; no outside call.
    ///
    /// The engine records it before the first of them is called.
    fn inventory(&self, _instance: &InstanceRef, _desired: &Desired) -> PortResult<Vec<ObjectRef>> {
        Ok(Vec::new())
    }

    /// Makes the world like `desired`; returns without waiting for it to become ready.
    ///
    /// What the instance's inventory holds and `desired` does not is removed, except what holds data. Objects of a
    /// later phase are made when this is called again after the earlier phase became ready.
    async fn apply(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<()>;

    /// Looks how far it is.
    async fn observe(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Observation>;

    /// The next instance that something happened to since it was observed, or its removal was looked at, and was not
    /// finished; never, where nothing tells. For one caller; a change may be missed, so the engine looks by itself too.
    async fn changed(&self) -> String {
        std::future::pending().await
    }

    /// Lets applications in; called when the instance is ready and its credentials are prepared.
    ///
    /// Until then only the broker reaches it: some servers start with a well-known password.
    async fn open(&self, _instance: &InstanceRef, _desired: &Desired) -> PortResult<()> {
        Ok(())
    }

    /// Where this process reaches an endpoint of the instance; differs from what applications use when it is outside their network.
    async fn reach(&self, _instance: &InstanceRef, endpoint: &Endpoint) -> PortResult<Endpoint> {
        Ok(endpoint.clone())
    }

    /// What differs from `desired` though nobody asked for it, one line for each object; nothing is changed.
    async fn drift(&self, _instance: &InstanceRef, _desired: &Desired) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }

    /// Removes everything this instance ever had here, whatever version made it.
    async fn remove(&self, instance: &InstanceRef, volumes: Volumes) -> PortResult<Removal>;

    /// The iids of everything that exists here, for the sweep; what is kept on purpose ([`Volumes::Keep`]) among it.
    async fn list(&self) -> PortResult<Vec<String>>;

    /// Whether instances that stop must be started again by us (processes) or come back alone (Kubernetes).
    fn supervises(&self) -> bool;

    /// Whether [`remove`](Self::remove) can keep the volumes.
    fn keeps_volumes(&self) -> bool {
        false
    }
}

/// The instance a credential mechanism works on.
#[derive(Debug, Clone)]
pub struct Target {
    /// The instance.
    pub iid: String,
    /// Where the mechanism connects: the endpoint that `binding.yaml` names, as this process reaches it
    /// ([`Provisioner::reach`]); applications may know it by another address.
    pub endpoint: Endpoint,
    /// All endpoints of the instance, reached alike.
    pub endpoints: Vec<Endpoint>,
    /// `settings` of `binding.yaml`, filled in.
    pub settings: Map<String, Value>,
    /// What [`CredentialMechanism::generate_admin`] made for this instance.
    pub admin: Secret,
    /// Bindings that are revoked or being revoked, for mechanisms that state the whole list each time.
    pub revoked: Vec<RevokedHandle>,
}

impl Target {
    /// The same server, with other credentials of its administrator.
    #[must_use]
    pub fn with_admin(&self, admin: &Secret) -> Self {
        Self {
            admin: admin.clone(),
            ..self.clone()
        }
    }
}

/// A handle that must not be let in any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedHandle {
    /// As [`NewUser::handle`].
    pub handle: String,
    /// When the revocation was asked for.
    pub at: Millis,
}

/// What one binding may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The binding; the backend user's name derives from it.
    pub bid: String,
    /// Whether the user has the binding's second name: a rotation in place takes the two by turns.
    pub second: bool,
    /// `owner`, `readwrite` or `readonly`.
    pub role: String,
    /// The binding's parameters: scopes such as `key_prefix` or `subjects`, already checked by the schema.
    pub params: Map<String, Value>,
    /// When it stops being valid, as a belt on the server itself where it can.
    pub expires_at: Option<Millis>,
}

impl Grant {
    /// What the backend user is called, where names are ours to choose.
    pub fn user(&self) -> String {
        if self.second {
            names::second_user(&self.bid)
        } else {
            names::backend_user(&self.bid)
        }
    }
}

/// A backend user before it exists on the server.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// What the backend knows it by; stored in clear.
    pub handle: String,
    /// `username`, `password`, `creds`, …: the `user.*` names in `binding.yaml`'s credentials. Stored sealed.
    pub secret: Secret,
}

/// Makes and revokes users on a running instance (services.md §3).
#[async_trait]
pub trait CredentialMechanism: Send + Sync {
    /// The word `binding.yaml` uses: `sql`, `redis`, `nats`.
    fn name(&self) -> &'static str;

    /// Checks `settings` of a `binding.yaml` when the catalog is loaded; every error at once.
    fn check_settings(&self, settings: &Map<String, Value>) -> Vec<String>;

    /// Makes the instance's own admin secrets; called once per instance, then kept sealed.
    ///
    /// The members are the `admin.*` names in the instance's expressions.
    fn generate_admin(&self, settings: &Map<String, Value>) -> PortResult<Secret>;

    /// Makes a user's secret without touching the server; called once per binding, then kept sealed,
    /// so that a repeated [`issue`](Self::issue) sets the same password.
    fn generate_user(&self, target: &Target, grant: &Grant, now: Millis) -> PortResult<NewUser>;

    /// Brings the server into the state bindings need (owner role, default privileges); proves that we can log in.
    async fn prepare(&self, target: &Target) -> PortResult<()>;

    /// Creates the user, or sets an existing one to exactly this state.
    async fn issue(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()>;

    /// Logs in as the user.
    async fn verify(&self, target: &Target, grant: &Grant, user: &NewUser) -> PortResult<()>;

    /// Removes the user, ends its sessions, keeps what it made; a user that is not there is success.
    async fn revoke(&self, target: &Target, handle: &str) -> PortResult<()>;

    /// Handles of all binding users on the server, for the sweep.
    ///
    /// Mechanisms whose users exist only as signed tokens return an empty list.
    async fn list(&self, target: &Target) -> PortResult<Vec<String>>;

    /// Whether [`rotate_admin`](Self::rotate_admin) can, on a server with these settings.
    fn rotates_admin(&self, _settings: &Map<String, Value>) -> bool {
        false
    }

    /// Gives the administrator the credentials `next`, which [`generate_admin`](Self::generate_admin) made, in the place of
    /// [`Target::admin`]. On return `next` lets in and, unless it is the same, [`Target::admin`] does not; sessions that
    /// were opened with it are ended where the server can.
    ///
    /// With `next` in place already it is success. [`PortErrorKind::Denied`]: neither of the two lets in. Users of
    /// bindings and their sessions do not notice.
    async fn rotate_admin(&self, _target: &Target, _next: &Secret) -> PortResult<()> {
        Err(PortError::invalid(
            "The broker cannot exchange the administrator's credentials of this kind of server.",
        ))
    }

    /// Whether revoking writes one document with the whole [`Target::revoked`] list; then the engine checks
    /// after the call that the list did not grow meanwhile, and calls again if it did.
    fn states_whole_list(&self) -> bool {
        false
    }
}

/// Where secrets are kept. Names are `<iid>/<what>`; see [`secret_name`].
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// Stores `value` unless the name is taken; returns what is stored afterwards.
    ///
    /// Two workers that both make a secret for one name therefore go on with the same one.
    async fn create(&self, name: &str, value: &Secret) -> PortResult<Secret>;

    /// Reads a secret.
    async fn get(&self, name: &str) -> PortResult<Option<Secret>>;

    /// Destroys a secret with all its versions; an absent one is success.
    async fn destroy(&self, name: &str) -> PortResult<()>;

    /// Names that start with `prefix`: an instance's `<iid>/`, or none for all. With none, names that an instance
    /// could have may be told without a look whether they are there: it is asked for to destroy what nobody owns.
    async fn list(&self, prefix: &str) -> PortResult<Vec<String>>;
}

/// Names of secrets: everything of an instance lies below its iid.
pub mod secret_name {
    /// The admin secrets an instance was made with.
    pub fn admin(iid: &str) -> String {
        format!("{iid}/admin")
    }

    /// The admin secrets that an instance was given the `number`th time since; 0: those it was made with.
    pub fn nth_admin(iid: &str, number: u32) -> String {
        match number {
            0 => admin(iid),
            _ => format!("{iid}/{NTH_ADMIN}{number}"),
        }
    }

    /// Whether a name is that of some admin secrets.
    pub fn is_admin(name: &str) -> bool {
        name.split_once('/').is_some_and(|(_, what)| is_admin_part(what))
    }

    /// What the last parts of [`nth_admin`] begin with, but for the first.
    const NTH_ADMIN: &str = "admin-";

    fn is_admin_part(part: &str) -> bool {
        let numbered = part.strip_prefix(NTH_ADMIN);
        part == "admin" || numbered.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    }

    /// Values of the catalog function `generated(name, length)`.
    pub fn generated(iid: &str) -> String {
        format!("{iid}/generated")
    }

    /// A binding's user and credentials: until they are handed over, or for good where the answer carries them.
    pub fn binding(iid: &str, bid: &str) -> String {
        format!("{iid}/b/{bid}")
    }

    /// What a binding's answers say where they do not carry the credentials.
    pub fn view(iid: &str, bid: &str) -> String {
        format!("{iid}/v/{bid}")
    }

    /// The user and credentials that are being rotated in.
    pub fn next(iid: &str, bid: &str, generation: u32) -> String {
        format!("{}{generation}", nexts(iid, bid))
    }

    /// What the names of all [`next`] ones of a binding begin with.
    pub fn nexts(iid: &str, bid: &str) -> String {
        format!("{iid}/n/{bid}/")
    }

    /// Everything of an instance.
    pub fn all(iid: &str) -> String {
        format!("{iid}/")
    }

    /// What an instance has of its own: the last parts of [`admin`] and [`generated`]; beside the first there may be a
    /// later [`nth_admin`].
    pub const OF_INSTANCE: [&str; 2] = ["admin", "generated"];

    /// Whether a name is a binding's, of whatever instance.
    pub fn is_binding(name: &str) -> bool {
        name.split('/')
            .nth(1)
            .is_some_and(|kind| !kind.is_empty() && !OF_INSTANCE.contains(&kind) && !is_admin_part(kind))
    }
}

/// Part of a long list: some of it, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What was found.
    pub items: Vec<T>,
    /// What to ask with for more; none at the end.
    pub next: Option<String>,
}

/// The identity a binding is to have.
#[derive(Debug, Clone)]
pub struct IdentitySpec {
    /// The binding.
    pub binding: BindingRef,
    /// Offering and plan, for people who look at the provider's lists.
    pub label: String,
    /// How the application proves who it is.
    pub auth: ClientAuth,
    /// What [`BindingIdentity::generate`] made.
    pub secret: Secret,
}

/// A client that exists at the identity provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundIdentity {
    /// Its name there.
    pub client_id: String,
    /// The binding it belongs to; none when the broker never gives such a name (an alarm: see `names::bid_of_client`).
    pub bid: Option<String>,
    /// Whether it gets tokens.
    pub enabled: bool,
}

/// The identity a binding has of its own at an identity provider (Keycloak). Absent in the embedded default.
#[async_trait]
pub trait BindingIdentity: Send + Sync {
    /// What an application needs beside its own proof, such as `issuer`, `token_uri`, `client_id`; never secret, no outside call.
    fn coordinates(&self, binding: &BindingRef, auth: &ClientAuth) -> Map<String, Value>;

    /// Makes the application's proof (`client_secret`), empty for an `auth` that needs none; no outside call.
    fn generate(&self, auth: &ClientAuth) -> PortResult<Secret>;

    /// Makes the client or sets it to exactly this state. From then on it gets tokens.
    async fn ensure(&self, spec: &IdentitySpec) -> PortResult<()>;

    /// The application's present proof, as [`generate`](Self::generate) gave it; none when there is no such client.
    async fn proof(&self, binding: &BindingRef, auth: &ClientAuth) -> PortResult<Option<Secret>>;

    /// Stops new tokens; an absent client is success.
    async fn disable(&self, bid: &str) -> PortResult<()>;

    /// Removes the client; an absent one is success.
    async fn delete(&self, bid: &str) -> PortResult<()>;

    /// Clients whose names start like those of bindings, for the sweep; `after` = the page before's `next`.
    async fn page(&self, after: Option<&str>) -> PortResult<Page<FoundIdentity>>;
}

/// Where applications fetch their bindings' secrets (Vault). The broker writes there and does not read.
#[async_trait]
pub trait BindingVault: Send + Sync {
    /// What an application needs to fetch its secret, such as `address`, `auth_path`, `role`, `data_path`; never secret, no outside call.
    fn coordinates(&self, binding: &BindingRef) -> Map<String, Value>;

    /// Keeps `data` as generation `generation` (0 for the first) of the binding's secret.
    ///
    /// Calling it again for the same generation is success and changes nothing; for an older one than is there,
    /// it is [`PortErrorKind::Conflict`]. `notes` are kept beside it in clear, at most 512 bytes each.
    async fn publish(
        &self,
        binding: &BindingRef,
        generation: u32,
        data: &Secret,
        notes: &[(&'static str, String)],
        expires_at: Option<Millis>,
    ) -> PortResult<()>;

    /// The newest generation that is there.
    async fn generation(&self, binding: &BindingRef) -> PortResult<Option<u32>>;

    /// Destroys the secret with all generations, and ends the tokens that were given out for it; absent is success.
    async fn withdraw(&self, binding: &BindingRef) -> PortResult<()>;

    /// Bindings that have a secret, for the sweep; `after` = the page before's `next`. Names the broker never gives are left out.
    async fn page(&self, after: Option<&str>) -> PortResult<Page<BindingRef>>;
}

/// A Secret in the application's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretPlace {
    /// Namespace; the broker may write Secrets there.
    pub namespace: String,
    /// Name of the Secret.
    pub name: String,
}

/// How the Secret of a binding is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretState {
    /// As the broker made it, as far as can be told without reading it.
    Whole,
    /// The binding's, with content that somebody else wrote.
    Edited,
    /// There is none.
    Absent,
    /// There is one of its name that is somebody else's.
    Anothers,
}

/// Puts credentials where pods of a cluster can mount them (servicebinding.io).
#[async_trait]
pub trait SecretProjection: Send + Sync {
    /// Makes the Secret or sets it to exactly what these credentials say. A Secret of that name that is somebody else's is
    /// [`PortErrorKind::Denied`] and left alone.
    async fn project(
        &self,
        binding: &BindingRef,
        place: &SecretPlace,
        credentials: &Secret,
    ) -> PortResult<()>;

    /// Removes the Secret if it is the binding's; an absent one is success, and so is somebody else's, which is left alone.
    async fn remove(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<()>;

    /// How the Secret is found; what it holds is not read.
    async fn state(&self, binding: &BindingRef, place: &SecretPlace) -> PortResult<SecretState>;
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, and should be changed.
    Warning,
    /// Cannot be looked at now: the other side does not answer.
    Unknown,
    /// The broker cannot do its work.
    Error,
}

/// What a look at a server around the instances shows, for `chandler doctor` and for a broker that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub grade: Grade,
    /// One sentence; with what to do, unless it is good. Never a secret.
    pub text: String,
}

impl Finding {
    /// As it should be.
    pub fn good(text: impl Into<String>) -> Self {
        Self::of(Grade::Good, text)
    }

    /// Works, and should be changed.
    pub fn warning(text: impl Into<String>) -> Self {
        Self::of(Grade::Warning, text)
    }

    /// The broker cannot do its work.
    pub fn error(text: impl Into<String>) -> Self {
        Self::of(Grade::Error, text)
    }

    /// What a call that failed shows: what may pass is unknown, all else an error.
    pub fn failure(error: &PortError) -> Self {
        let grade = match error.kind {
            PortErrorKind::Transient => Grade::Unknown,
            _ => Grade::Error,
        };
        let text = if error.detail == error.message {
            error.message.clone()
        } else {
            format!("{} ({})", error.message, error.detail)
        };
        Self::of(grade, text)
    }

    fn of(grade: Grade, text: impl Into<String>) -> Self {
        Self {
            grade,
            text: text.into(),
        }
    }
}

/// Time as a parameter. Leases alone use the database's clock instead.
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch.
    fn now(&self) -> Millis;
}
