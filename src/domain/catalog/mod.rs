//! The catalog: offerings and plans read from folders, checked like code (design §4).
//!
//! [`Catalog::load`] takes file texts, never a path, and either returns a catalog in which every
//! plan renders, or every problem it found, each with its file. What a platform is served is a
//! projection of it ([`Catalog::served`]).

mod check;
mod load;
mod mechanism;
mod objects;
mod raw;
mod render;
mod sample;
mod schema;
mod served;

pub use mechanism::{KnownMechanisms, Mechanisms, admin_members, user_members};
pub use objects::{IMAGE_MEMBERS, KINDS, plural};

use super::delivery::Delivery;
use super::expr::Template;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// File texts by path relative to the repository root: `catalog/postgres/offering.yaml`, `plans/postgres/small.yaml`, …
pub type Sources = BTreeMap<String, String>;

/// One thing wrong with the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// Where in it, such as `credentials.uri`; empty for the whole file.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A service as the catalog folder describes it.
#[derive(Debug, Clone)]
pub struct Offering {
    /// Stable UUID.
    pub id: String,
    /// Name, unique in the catalog.
    pub name: String,
    /// One sentence.
    pub description: String,
    /// Whether bindings can be made.
    pub bindable: bool,
    /// What clients select by.
    pub tags: Vec<String>,
    /// C-07.
    pub requires: Vec<String>,
    /// `metadata` as served, the icon already inlined as a data URL.
    pub metadata: Map<String, Value>,
    /// Most operations of this offering that run a step at once in one process.
    pub concurrency: usize,
    /// Secrets made once per instance: name and length, `${generated.<name>}` in expressions.
    pub generated: BTreeMap<String, usize>,
    /// At least one.
    pub plans: Vec<Arc<Plan>>,
    /// The service as a local process, when `process.yaml` exists.
    pub process: Option<ProcessTemplate>,
    /// The service as Kubernetes objects, in file order, when `objects/` exists.
    pub objects: Vec<ObjectTemplate>,
    /// The kinds its objects have beside the usual ones ([`KINDS`]): custom resources.
    pub resources: Vec<CustomResource>,
    /// How bindings are made, when `binding.yaml` exists.
    pub binding: Option<BindingTemplate>,
}

/// A size of a service: values, never logic.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a member of OSB's plan object"
)]
pub struct Plan {
    /// Stable UUID.
    pub id: String,
    /// Name, unique in the offering.
    pub name: String,
    /// One sentence.
    pub description: String,
    /// C-11.
    pub free: bool,
    /// Plan over offering (C-10).
    pub bindable: bool,
    /// Whether instances of this plan may change to some other plan.
    pub plan_updateable: bool,
    /// Whether `predecessor_binding_id` is accepted.
    pub binding_rotatable: bool,
    /// Seconds within which every operation must have ended.
    pub maximum_polling_duration: u32,
    /// Semver of what the broker would deploy now.
    pub maintenance_version: Option<String>,
    /// What moving to that version means for a user.
    pub maintenance_description: Option<String>,
    /// `metadata` as served.
    pub metadata: Map<String, Value>,
    /// The offering's values with the plan's laid over them: `plan.*` in expressions.
    pub values: Map<String, Value>,
    /// Provisioners that can run this plan: `local`, `kubernetes`.
    pub runs_on: Vec<String>,
    /// Names of plans an instance of this one may change to.
    pub updates_to: Vec<String>,
    /// How long a binding lives; `None` = until it is unbound.
    pub binding_lifetime: Option<BindingLifetime>,
    /// Days that the volumes of a deleted instance are kept, where the provisioner can; 0 = they go at once.
    pub retain_days: u32,
    /// Ways its bindings may be handed over, the usual one first; empty = whatever the platform may have.
    pub delivery: Vec<Delivery>,
    /// Parameter schemas.
    pub schemas: Schemas,
}

/// How long bindings of a plan live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingLifetime {
    /// Seconds from creation to expiry.
    pub ttl: u32,
    /// Seconds before expiry at which the platform should rotate; less than `ttl`.
    pub renew_before: u32,
}

/// The three parameter schemas of a plan (C-13, C-14), draft-04.
#[derive(Debug, Clone)]
pub struct Schemas {
    /// For provision.
    pub create: Schema,
    /// For update.
    pub update: Schema,
    /// For bind.
    pub bind: Schema,
}

/// A parameters schema as served, with its compiled form.
#[derive(Debug, Clone)]
pub struct Schema {
    /// As served; a `${plan.…}` in the file is already filled in.
    pub json: Value,
    /// Compiled once at load.
    pub validator: Arc<jsonschema::Validator>,
}

/// `process.yaml`: the service as one local process. Filled by `manifest::render`.
#[derive(Debug, Clone)]
pub struct ProcessTemplate {
    /// Unprivileged users to run as when the broker is root: the first that exists (else `nobody`).
    pub user: Vec<String>,
    /// Binary name → candidates: names looked up in PATH, or absolute paths in which `*` matches within one segment
    /// (the highest version wins).
    pub binaries: BTreeMap<String, Vec<String>>,
    /// What to do when a binary is missing, for `chandler doctor`.
    pub install: String,
    /// Names of the loopback ports an instance needs; each becomes `${ports.<name>}` and an endpoint.
    pub ports: Vec<String>,
    /// The rest (`files`, `init`, `command`, `env`, `stop`, `change`, `ready`), to be filled into a `manifest::ProcessSpec`.
    pub spec: Template,
}

/// A document of `objects/*.yaml`. Filled by `manifest::render`.
#[derive(Debug, Clone)]
pub struct ObjectTemplate {
    /// Where it stands, such as `objects/server.yaml[0]`.
    pub file: String,
    /// Group and version, written without an expression.
    pub api_version: String,
    /// Kind, written without an expression.
    pub kind: String,
    /// Applied in rising order; 10 when not given.
    pub phase: u16,
    /// Whether the instance has this object; `None` = always.
    pub when: Option<Template>,
    /// See `manifest::ObjectSpec::ready`.
    pub ready: Option<Template>,
    /// See `manifest::ObjectSpec::failed`.
    pub failed: Option<Template>,
    /// The object itself.
    pub object: Template,
}

/// A kind of object an operator's custom resource definition brings, as `resources` in `offering.yaml` names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomResource {
    /// Group and version, such as `postgresql.cnpg.io/v1`.
    pub api_version: String,
    /// Kind, such as `Cluster`.
    pub kind: String,
    /// What its addresses say, such as `clusters`.
    pub plural: String,
}

/// `binding.yaml`: which mechanism makes users, and what the platform gets.
#[derive(Debug, Clone)]
pub struct BindingTemplate {
    /// `sql`, `redis`, `nats`, …
    pub mechanism: String,
    /// The mechanism's own settings; instance scope without `admin` and `generated`.
    pub settings: Template,
    /// Name of the endpoint the mechanism and the application connect to.
    pub endpoint: String,
    /// Role when the parameters name none.
    pub default_role: String,
    /// Roles a binding may ask for.
    pub roles: Vec<String>,
    /// The credentials object; scope `user`, `endpoint`, `endpoints`, `settings`, `plan`, `params`, `instance`, `role`.
    pub credentials: Template,
    /// The same without all that depends on the user: what may be told without telling a secret.
    pub coordinates: Template,
    /// The OSB `endpoints` array; same scope.
    pub endpoints: Template,
    /// Whether a bind must name an application (B-07).
    pub requires_app: bool,
}

/// A loaded, checked catalog.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// In name order.
    pub offerings: Vec<Arc<Offering>>,
}

impl Catalog {
    /// Reads and checks a catalog.
    ///
    /// A mechanism must be one that exists or is planned ([`Mechanisms::known`]); the settings of those that exist
    /// ([`Mechanisms::registered`]) are checked by them. Offerings of the others load, so that they stay checked, and
    /// are to be left out by [`Catalog::served`]'s `offered`. Errors: every problem found, in file order.
    pub fn load(sources: &Sources, mechanisms: &dyn Mechanisms) -> Result<Self, Vec<Problem>> {
        load::load(sources, mechanisms)
    }

    /// The name of an offering, by its id; `unknown` when it left the catalog.
    pub fn offering_name(&self, service_id: &str) -> String {
        self.offering(service_id)
            .map_or_else(|| "unknown".to_owned(), |offering| offering.name.clone())
    }

    /// The offering with this id.
    pub fn offering(&self, id: &str) -> Option<&Arc<Offering>> {
        self.offerings.iter().find(|o| o.id == id)
    }

    /// The offering with this id and its plan with that id.
    pub fn plan(&self, service_id: &str, plan_id: &str) -> Option<(&Arc<Offering>, &Arc<Plan>)> {
        let offering = self.offering(service_id)?;
        let plan = offering.plans.iter().find(|p| p.id == plan_id)?;
        Some((offering, plan))
    }

    /// The body of GET /v2/catalog: offerings that have at least one plan for which `offered` says yes, with those plans.
    ///
    /// `own` are the bind parameters that the broker adds to those of every plan: names and their schemas.
    pub fn served(&self, offered: &dyn Fn(&Offering, &Plan) -> bool, own: &Map<String, Value>) -> Value {
        served::served(self, offered, own)
    }
}

#[cfg(test)]
mod tests;
