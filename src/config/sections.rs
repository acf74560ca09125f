//! The settings, section by section.
//!
//! These doc comments are the documentation people get: `docs/config.schema.json` and
//! `docs/configuration.md` are generated from them. Every member has a default, so that one wrong
//! value never hides the next; what must be given is checked in `check`. No member ever holds a
//! password or key: those are named by file.

use super::bindings::{Bindings, Delivery, Keycloak, Vault};
use super::hidden::Hidden;
use super::kubernetes::Kubernetes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// All settings of the broker.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "chandler configuration")]
pub struct Config {
    /// Where and how the broker listens.
    pub http: Http,
    /// Choices the Open Service Broker specification leaves to the broker.
    pub osb: Osb,
    /// The broker's own state.
    pub store: Store,
    /// Where offerings and plans come from.
    pub catalog: Catalog,
    /// What makes the instances.
    pub provisioner: Provisioner,
    /// How secrets are kept.
    pub secrets: Secrets,
    /// How applications get their credentials.
    pub bindings: Bindings,
    /// Vault or OpenBao, where applications fetch their secrets. Absent: the answer to a bind carries them.
    pub vault: Option<Vault>,
    /// Keycloak, which gives every binding a client of its own. Only together with `vault`.
    pub keycloak: Option<Keycloak>,
    /// Who may ask: one entry for each platform. At least one.
    pub platforms: Vec<Platform>,
    /// The work behind accepted requests.
    pub engine: Engine,
    /// What is logged.
    pub log: Log,
}

/// Where and how the broker listens.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port of the broker's API. Anything but a loopback address needs `tls`, or `allow_plaintext`.
    #[schemars(with = "String", extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// Address and port for `/livez`, `/readyz` and `/metrics` alone, without log-in. When absent they are served on `listen`.
    #[schemars(with = "Option<String>", extend("format" = "socket-address"))]
    pub admin_listen: Option<SocketAddr>,
    /// Serve TLS directly on `listen`.
    pub tls: Option<Tls>,
    /// Accept plain HTTP on an address other machines can reach. Only for a broker behind a proxy that ends TLS: passwords and credentials cross this connection in clear.
    pub allow_plaintext: bool,
    /// Largest request body in bytes; a larger one is answered 413.
    #[schemars(range(min = 1024, max = 67_108_864))]
    pub max_body_bytes: usize,
    /// Wrong passwords that one client address may send in a minute before it is answered 429; 0 means no bound.
    #[schemars(range(max = 100_000))]
    pub failed_logins_per_minute: u32,
    /// Threads that serve HTTP; 0 means one for each processor.
    #[schemars(range(max = 256))]
    pub workers: usize,
    /// Seconds that requests and running steps get to finish after SIGTERM.
    #[schemars(range(max = 3600))]
    pub shutdown_seconds: u64,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: None,
            tls: None,
            allow_plaintext: false,
            max_body_bytes: 1024 * 1024,
            failed_logins_per_minute: 20,
            workers: 0,
            shutdown_seconds: 30,
        }
    }
}

/// Certificate and key for TLS.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate chain, the broker's own certificate first.
    pub cert_file: PathBuf,
    /// PEM file with the private key, mode 0600.
    pub key_file: PathBuf,
}

/// Choices the Open Service Broker specification leaves to the broker.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Osb {
    /// Status for a request without `X-Broker-API-Version` (H-01): 412, or 400 as the specification has it.
    #[schemars(extend("enum" = [412, 400]))]
    pub missing_version_status: u16,
    /// Lowest `X-Broker-API-Version` that is served (H-02), such as `2.13`.
    #[schemars(extend("format" = "osb-version"))]
    pub min_version: String,
    /// Refuse a provision without `organization_guid` and `space_guid` even when its context names the platform (P-07).
    pub require_guids: bool,
    /// What the poll of a finished delete is told (Z-01): `succeeded` answers 200, `gone` answers 410.
    pub deleted_last_operation: DeletedLastOperation,
    /// Leave out response members that are newer than the version a request announces (Z-03).
    pub strict_versions: bool,
    /// What deleting an instance that still has bindings does (D-09): `cascade` deletes them with it, `refuse` answers 400.
    pub deprovision_with_bindings: DeprovisionWithBindings,
    /// URL given to the platform as an instance's dashboard. `{instance_id}`, `{service}` and `{plan}` are filled in. Absent: no dashboard.
    pub dashboard_url_template: Option<String>,
    /// Days that a deleted instance or binding is remembered, so that late polls are answered (Z-01).
    #[schemars(range(min = 1, max = 3650))]
    pub retention_days: u32,
}

impl Default for Osb {
    fn default() -> Self {
        Self {
            missing_version_status: 412,
            min_version: "2.13".to_owned(),
            require_guids: false,
            deleted_last_operation: DeletedLastOperation::Succeeded,
            strict_versions: false,
            deprovision_with_bindings: DeprovisionWithBindings::Cascade,
            dashboard_url_template: None,
            retention_days: 7,
        }
    }
}

impl Osb {
    /// The minor number of [`Self::min_version`]; the major number is always 2.
    pub fn min_minor(&self) -> u32 {
        parse_osb_version(&self.min_version).unwrap_or_default()
    }
}

/// The minor number of `2.<minor>`.
pub(super) fn parse_osb_version(text: &str) -> Option<u32> {
    let minor = text.strip_prefix("2.")?;
    if minor.len() > 1 && minor.starts_with('0') || !minor.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    minor.parse().ok().filter(|minor| *minor <= 17)
}

/// What the poll of a finished delete is told (Z-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeletedLastOperation {
    /// 200 with `succeeded`.
    Succeeded,
    /// 410.
    Gone,
}

/// What deleting an instance that still has bindings does (D-09).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeprovisionWithBindings {
    /// The bindings are revoked first.
    Cascade,
    /// 400.
    Refuse,
}

/// The broker's own state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// `sqlite:///absolute/path.db`, or `postgres://user@host:5432/database` (also `?sslmode=…`, `?sslrootcert=…`). Must be given; never with a password in it.
    pub url: String,
    /// File with the PostgreSQL password, mode 0600.
    pub password_file: Option<PathBuf>,
    /// Allow PostgreSQL on another machine over a connection that is not certain to be encrypted.
    pub allow_plaintext: bool,
    /// Most connections to the database at once.
    #[schemars(range(min = 2, max = 1000))]
    pub max_connections: u32,
    /// On SQLite, commit waiting writes together. Off costs throughput and gains nothing but a figure to compare with.
    pub sqlite_group_commit: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: String::new(),
            password_file: None,
            allow_plaintext: false,
            max_connections: 10,
            sqlite_group_commit: true,
        }
    }
}

/// Where offerings and plans come from.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Catalog {
    /// Serve the offerings this program carries. A directory may replace any file of theirs.
    pub builtin: bool,
    /// Directories that each hold `catalog/<service>/` and `plans/<service>/`, read in this order; a later one wins.
    pub dirs: Vec<PathBuf>,
    /// Seconds between two looks for changed files; 0 reads the catalog at start only.
    #[schemars(range(max = 86400))]
    pub reload_seconds: u64,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            builtin: true,
            dirs: Vec::new(),
            reload_seconds: 10,
        }
    }
}

/// What makes the instances.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provisioner {
    /// `local`: instances are server processes on this machine. `kubernetes`: they are objects of a cluster.
    pub kind: ProvisionerKind,
    /// Settings of the kind `local`.
    pub local: Local,
    /// Settings of the kind `kubernetes`.
    pub kubernetes: Kubernetes,
}

impl Default for Provisioner {
    fn default() -> Self {
        Self {
            kind: ProvisionerKind::Local,
            local: Local::default(),
            kubernetes: Kubernetes::default(),
        }
    }
}

/// The provisioners there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProvisionerKind {
    /// Server processes on this machine.
    Local,
    /// Objects of a Kubernetes cluster.
    Kubernetes,
}

/// Instances as processes on this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// Directory that holds one directory for each instance. Must be given.
    pub dir: PathBuf,
    /// Ports that instances may take, first and last.
    pub ports: PortRange,
    /// User that instances run as when the broker itself runs as root; never root. Absent: the user each service prefers, such as `postgres`, else `nobody`.
    pub run_as: Option<String>,
}

/// TCP ports from a first to a last one, written `20000-29999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, itself included.
    pub last: u16,
}

impl PortRange {
    /// All ports of the range.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self {
            first: 20000,
            last: 29999,
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bounds = text
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
        match bounds {
            Some((first, last)) if (1024..=last).contains(&first) => Ok(Self { first, last }),
            _ => Err("two ports such as 20000-29999, the first not below 1024 and not above the last"),
        }
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        format!("{}-{}", range.first, range.last)
    }
}

impl JsonSchema for PortRange {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PortRange".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "port-range"})
    }
}

/// How secrets are kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// `sealed`: in the store, encrypted with AES-256-GCM.
    pub kind: SecretsKind,
    /// Keys that open what is sealed. At least one; an old one stays here until `chandler secrets rekey` has run.
    pub keys: Vec<SealKey>,
    /// Label of the key that seals new secrets. May be left out when there is only one key.
    pub primary: Option<String>,
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            kind: SecretsKind::Sealed,
            keys: Vec::new(),
            primary: None,
        }
    }
}

impl Secrets {
    /// The label new secrets are sealed under: [`Self::primary`], else the first key's; empty when there is none.
    pub fn primary_label(&self) -> &str {
        self.primary
            .as_deref()
            .or_else(|| self.keys.first().map(|key| key.label.as_str()))
            .unwrap_or_default()
    }
}

/// The ways to keep secrets there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretsKind {
    /// Encrypted rows in the store.
    Sealed,
}

/// A key that seals secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SealKey {
    /// Name of the key, kept beside everything it sealed: 1 to 32 of `a-z 0-9 . _ -`.
    pub label: String,
    /// File with 32 bytes in base64, mode 0600. `chandler secrets new-key FILE` makes one.
    pub file: PathBuf,
}

/// Who may ask: a platform such as one Cloud Foundry or one Kubernetes cluster.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Platform {
    /// Name, 1 to 63 of `a-z 0-9 -`. Every instance belongs to the name that made it: it must never change.
    pub name: String,
    /// One or two log-ins that are valid at the same time, so that a password can be changed without a gap.
    pub credentials: Vec<Credential>,
    /// Ways its applications may get their credentials, the usual one first; empty = as `bindings.delivery`.
    pub delivery: Vec<Delivery>,
}

/// A log-in of a platform. Exactly one of `password_file`, `password_hash`, `password_hash_file`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credential {
    /// User name for Basic authentication, no other log-in's of any platform.
    pub username: String,
    /// File with the password, mode 0600.
    pub password_file: Option<PathBuf>,
    /// Argon2id hash of the password, as `chandler platforms hash-password` prints it.
    #[schemars(with = "Option<String>")]
    pub password_hash: Option<Hidden>,
    /// File with such a hash, mode 0600.
    pub password_hash_file: Option<PathBuf>,
    /// A password handed over by the program itself, never by a configuration: `chandler dev` does.
    #[serde(skip)]
    #[schemars(skip)]
    pub password: Option<Hidden>,
}

/// The work behind accepted requests.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Operations that run a step at the same time in one process.
    #[schemars(range(min = 1, max = 1024))]
    pub workers: usize,
    /// Seconds after which the work of a broker that went silent is taken over by another.
    #[schemars(range(min = 5, max = 3600))]
    pub lease_seconds: u64,
    /// Milliseconds between two looks for work that nobody announced.
    #[schemars(range(min = 50, max = 60_000))]
    pub poll_milliseconds: u64,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            workers: 16,
            lease_seconds: 30,
            poll_milliseconds: 1000,
        }
    }
}

/// What is logged, on standard error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `json` for machines, `text` for people.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or levels by module such as `info,chandler::engine=debug`. Libraries never log below `info`.
    #[schemars(extend("format" = "log-filter"))]
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Json,
            level: "info".to_owned(),
        }
    }
}

/// The forms a log line can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object on each line.
    Json,
    /// Lines for people.
    Text,
}
