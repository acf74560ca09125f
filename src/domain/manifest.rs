//! From catalog text to what a provisioner makes and a platform gets: pure rendering of one instance or binding.
//!
//! The catalog's checker and the engine render through the same functions and build their scopes
//! with [`instance_scope`] and [`binding_scope`], so what was checked is what is made.

use super::catalog::{BindingTemplate, ObjectTemplate, Offering, Plan};
use super::expr::{ExprError, Scope, Template};
use super::instance::Endpoint;
use super::request::EndpointView;
use super::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// Everything a provisioner needs to make an instance. Holds secrets: no readable `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct Desired {
    /// The local process, when the offering has `process.yaml`.
    pub process: Option<ProcessSpec>,
    /// Kubernetes objects in order, when the offering has `objects/`.
    pub objects: Vec<ObjectSpec>,
    /// Namespaces whose applications may connect, from the parameter `consumers`; beside those the operator admits.
    pub consumers: Vec<String>,
    /// Hash of all the above: equal hashes mean nothing to change.
    pub hash: String,
}

/// A document of `objects/*.yaml` filled in: an object, and what the broker has to know about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectSpec {
    /// Applied in rising order; the next phase waits until this one is ready.
    pub phase: u16,
    /// A CEL rule over `object`, as the cluster has it: true when ready. Absent: what is usual for the kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// A CEL rule over `object` that gives a sentence when it has failed for good, else an empty text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The object, without the members above.
    pub object: Value,
}

impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desired")
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// `process.yaml` filled in. Paths are relative to the instance's directory (`${dirs.root}`).
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Unprivileged users to run as when the broker is root.
    #[serde(default)]
    pub user: Vec<String>,
    /// Port names, each an endpoint on loopback.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Files written (mode 0600, owned by the user) before the process starts.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Run once, before the first start.
    #[serde(default)]
    pub init: Option<InitSpec>,
    /// Program and arguments. Never secrets: arguments are visible to every user of the machine.
    pub command: Vec<String>,
    /// Environment, on top of a bare `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How to stop it.
    #[serde(default)]
    pub stop: StopSpec,
    /// What a changed file or command needs.
    #[serde(default)]
    pub change: ChangeAction,
    /// When it counts as up (the mechanism then still has to log in).
    pub ready: ReadySpec,
}

/// A file of a process.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Relative path without `..`.
    pub path: String,
    /// Text.
    pub content: String,
    /// Only for `init`: written before it and removed after it (password files).
    #[serde(default)]
    pub init_only: bool,
    /// Written only when absent: the process changes it itself afterwards (an ACL file).
    #[serde(default)]
    pub keep: bool,
}

/// A command that makes a directory, run so that a crash half-way leaves nothing that looks finished.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitSpec {
    /// The directory it makes. The command gets `${dirs.init}` and what it made there is renamed to this.
    pub creates: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// How a process is stopped.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopSpec {
    /// `SIGTERM`, `SIGINT` or `SIGQUIT`.
    pub signal: String,
    /// Seconds before SIGKILL.
    pub grace: u32,
}

impl Default for StopSpec {
    fn default() -> Self {
        Self {
            signal: "SIGTERM".into(),
            grace: 10,
        }
    }
}

/// What to do with a running process when its files or command changed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// Stop and start.
    #[default]
    Restart,
    /// Send SIGHUP when only files changed; restart when the command or environment did.
    Reload,
}

/// When a process counts as up.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadySpec {
    /// This port (by name) accepts connections.
    pub tcp: String,
}

/// The scope of an instance's expressions: `instance`, `platform`, `params` and the provisioner's placement.
///
/// `params` are the parameters with defaults filled in. The platform's own ids are not in it: they are opaque
/// strings that must not reach a path or a configuration file (design §7).
pub fn instance_scope(
    iid: &str,
    platform: &str,
    offering: &Offering,
    plan: &Plan,
    params: &Map<String, Value>,
    placement: &Map<String, Value>,
) -> Scope {
    let mut scope = placement.clone();
    scope.insert("instance".into(), instance(iid, offering, plan));
    scope.insert("platform".into(), platform.into());
    scope.insert("params".into(), Value::Object(params.clone()));
    scope
}

fn instance(iid: &str, offering: &Offering, plan: &Plan) -> Value {
    json!({"iid": iid, "offering": offering.name, "plan": plan.name})
}

/// The provisioner that fills `process.yaml`, as a plan's `runs_on` writes it.
pub const LOCAL: &str = "local";
/// The provisioner that fills `objects/`, as a plan's `runs_on` writes it.
pub const KUBERNETES: &str = "kubernetes";

/// Renders an instance for one provisioner: fills `process.yaml` ([`LOCAL`]) or `objects/` ([`KUBERNETES`]) of the offering.
///
/// `scope` holds `instance`, `platform`, `params` and the provisioner's placement; `plan`, `admin` and `generated` are added here.
/// Errors: the leaf that could not be filled, its path starting with `process.` or `objects/<file>: `.
pub fn render(
    offering: &Offering,
    plan: &Plan,
    provisioner: &str,
    scope: &Scope,
    admin: &Secret,
    generated: &Secret,
) -> Result<Desired, ExprError> {
    let mut scope = with_plan(scope, plan);
    scope.insert("admin".into(), Value::Object(admin.expose().clone()));
    scope.insert("generated".into(), Value::Object(generated.expose().clone()));
    let process = match &offering.process {
        Some(template) if provisioner == LOCAL => {
            let mut spec = template.spec.fill(&scope).map_err(|e| below("process", e))?;
            as_text(&mut spec, "/command");
            as_text(&mut spec, "/init/command");
            as_text(&mut spec, "/env");
            let mut spec: ProcessSpec = typed(spec).map_err(|e| below("process", e))?;
            spec.user.clone_from(&template.user);
            spec.ports.clone_from(&template.ports);
            Some(spec)
        }
        _ => None,
    };
    let mut objects = Vec::new();
    if provisioner == KUBERNETES {
        for template in &offering.objects {
            objects.extend(object(template, &scope).map_err(|e| below(&format!("{}: ", template.file), e))?);
        }
        objects.sort_by_key(|object| object.phase);
    }
    let consumers = consumers(&scope);
    let hash = hash(process.as_ref(), &objects, &consumers);
    Ok(Desired {
        process,
        objects,
        consumers,
        hash,
    })
}

/// One document filled in; none when its `when` says no.
fn object(template: &ObjectTemplate, scope: &Scope) -> Result<Option<ObjectSpec>, ExprError> {
    if let Some(when) = &template.when {
        match when.fill(scope).map_err(|e| below("when", e))? {
            Value::Bool(true) => {}
            Value::Bool(false) => return Ok(None),
            _ => return Err(error("when", "must be true or false")),
        }
    }
    let rule = |name: &str, rule: &Option<Template>| -> Result<Option<String>, ExprError> {
        match rule
            .as_ref()
            .map(|rule| rule.fill(scope))
            .transpose()
            .map_err(|e| below(name, e))?
        {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(error(name, "must be the text of a rule")),
        }
    };
    let mut object = template.object.fill(scope)?;
    drop_nulls(&mut object);
    Ok(Some(ObjectSpec {
        phase: template.phase,
        ready: rule("ready", &template.ready)?,
        failed: rule("failed", &template.failed)?,
        object,
    }))
}

/// The parameter `consumers`, where an offering's schema has one: names of namespaces.
fn consumers(scope: &Scope) -> Vec<String> {
    let names = scope
        .get("params")
        .and_then(|params| params.get("consumers"))
        .and_then(Value::as_array);
    let mut names: Vec<String> = names
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Fills `settings` of a `binding.yaml`. The scope is an instance's; `plan` is added here, secrets are not to be had.
pub fn settings(
    binding: &BindingTemplate,
    plan: &Plan,
    scope: &Scope,
) -> Result<Map<String, Value>, ExprError> {
    match binding
        .settings
        .fill(&with_plan(scope, plan))
        .map_err(|e| below("settings", e))?
    {
        Value::Object(settings) => Ok(settings),
        _ => Err(error("settings", "must be a map")),
    }
}

/// The names an instance on Kubernetes has in expressions: its base name, its namespace, the cluster's domain and the kinds
/// it was found to have.
pub fn cluster_place(name: &str, namespace: &str, domain: &str, kinds: &[String]) -> Map<String, Value> {
    Map::from_iter([
        ("name".to_owned(), name.into()),
        ("namespace".to_owned(), namespace.into()),
        ("cluster".to_owned(), json!({"domain": domain, "kinds": kinds})),
    ])
}

/// What a binding's credentials are made from.
#[derive(Debug, Clone, Copy)]
pub struct BindingFacts<'a> {
    /// The instance's own name.
    pub iid: &'a str,
    /// Its offering.
    pub offering: &'a Offering,
    /// Its plan.
    pub plan: &'a Plan,
    /// The binding's parameters with defaults filled in.
    pub params: &'a Map<String, Value>,
    /// The role it was given.
    pub role: &'a str,
    /// The endpoint `binding.yaml` names.
    pub endpoint: &'a Endpoint,
    /// All endpoints of the instance.
    pub endpoints: &'a [Endpoint],
    /// `settings`, filled in.
    pub settings: &'a Map<String, Value>,
    /// The user's secret.
    pub user: &'a Secret,
}

/// The scope of a binding's expressions. `endpoints` is a map by name: `endpoints.monitor.port`.
pub fn binding_scope(facts: &BindingFacts<'_>) -> Scope {
    let endpoint = |e: &Endpoint| json!({"name": e.name, "host": e.host, "port": e.port});
    let endpoints: Map<String, Value> = facts
        .endpoints
        .iter()
        .map(|e| (e.name.clone(), endpoint(e)))
        .collect();
    Map::from_iter([
        (
            "instance".to_owned(),
            instance(facts.iid, facts.offering, facts.plan),
        ),
        ("plan".to_owned(), Value::Object(facts.plan.values.clone())),
        ("params".to_owned(), Value::Object(facts.params.clone())),
        ("role".to_owned(), facts.role.into()),
        ("endpoint".to_owned(), endpoint(facts.endpoint)),
        ("endpoints".to_owned(), Value::Object(endpoints)),
        ("settings".to_owned(), Value::Object(facts.settings.clone())),
        ("user".to_owned(), Value::Object(facts.user.expose().clone())),
    ])
}

/// The credentials object and the OSB `endpoints` (B-16) of a binding.
///
/// Members that came out as null are left out: clients call methods on whatever is present (security §4, Z-02).
pub fn binding_credentials(
    binding: &BindingTemplate,
    scope: &Scope,
) -> Result<(Secret, Vec<EndpointView>), ExprError> {
    let mut credentials = binding
        .credentials
        .fill(scope)
        .map_err(|e| below("credentials", e))?;
    drop_nulls(&mut credentials);
    let Value::Object(credentials) = credentials else {
        return Err(error("credentials", "must be a map"));
    };
    let endpoints = binding.endpoints.fill(scope).map_err(|e| below("endpoints", e))?;
    let Value::Array(endpoints) = endpoints else {
        return Err(error("endpoints", "must be a list"));
    };
    let mut views = Vec::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        views.push(view(endpoint).map_err(|message| error(&format!("endpoints[{i}]"), message))?);
    }
    Ok((Secret::new(credentials), views))
}

/// What may be told of a binding without telling a secret: the credentials object without all that depends on the user.
pub fn binding_coordinates(
    binding: &BindingTemplate,
    scope: &Scope,
) -> Result<Map<String, Value>, ExprError> {
    let mut coordinates = binding
        .coordinates
        .fill(scope)
        .map_err(|e| below("credentials", e))?;
    drop_nulls(&mut coordinates);
    match coordinates {
        Value::Object(coordinates) => Ok(coordinates),
        _ => Err(error("credentials", "must be a map")),
    }
}

fn view(endpoint: &Value) -> Result<EndpointView, &'static str> {
    let host = endpoint.get("host").and_then(Value::as_str).unwrap_or_default();
    if host.is_empty() {
        return Err("needs a host");
    }
    let mut ports = Vec::new();
    for port in endpoint
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = match port {
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.clone(),
            _ => String::new(),
        };
        let number = |text: &str| text.parse::<u16>().is_ok_and(|n| n > 0);
        let right = match text.split_once('-') {
            Some((from, to)) => number(from) && number(to),
            None => number(&text),
        };
        if !right {
            return Err("a port must be a number or a range such as \"9000-9010\"");
        }
        ports.push(text);
    }
    if ports.is_empty() {
        return Err("needs at least one port");
    }
    let protocol = endpoint
        .get("protocol")
        .map_or(Some("tcp"), Value::as_str)
        .unwrap_or_default();
    if !["tcp", "udp", "all"].contains(&protocol) {
        return Err("protocol must be tcp, udp or all");
    }
    Ok(EndpointView {
        host: host.to_owned(),
        ports,
        protocol: protocol.to_owned(),
    })
}

fn with_plan(scope: &Scope, plan: &Plan) -> Scope {
    let mut scope = scope.clone();
    scope.insert("plan".into(), Value::Object(plan.values.clone()));
    scope
}

fn error(path: &str, message: impl Into<String>) -> ExprError {
    ExprError {
        path: path.to_owned(),
        message: message.into(),
    }
}

fn below(prefix: &str, e: ExprError) -> ExprError {
    let path = match e.path.as_str() {
        "" | "." => prefix.to_owned(),
        path if path.starts_with('[') || prefix.ends_with(' ') => format!("{prefix}{path}"),
        path => format!("{prefix}.{path}"),
    };
    ExprError { path, ..e }
}

/// Numbers and booleans in arguments and environment as text: `${ports.client}` alone is a number.
fn as_text(spec: &mut Value, pointer: &str) {
    let scalar = |value: &mut Value| {
        if value.is_number() || value.is_boolean() {
            *value = Value::String(value.to_string());
        }
    };
    match spec.pointer_mut(pointer) {
        Some(Value::Array(items)) => items.iter_mut().for_each(scalar),
        Some(Value::Object(members)) => members.values_mut().for_each(scalar),
        _ => {}
    }
}

/// A filled document as its type. What serde says is kept only up to where it repeats the value.
fn typed(value: Value) -> Result<ProcessSpec, ExprError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let message = e.into_inner().to_string();
        let message = match message.split_once("expected ") {
            Some((said, expected)) if !said.starts_with("unknown field") => {
                format!("is not what it should be: {expected}")
            }
            _ => message,
        };
        error(&path, message)
    })
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(drop_nulls);
        }
        _ => {}
    }
}

/// Hash over the canonical JSON of everything rendered: equal means nothing to change.
fn hash(process: Option<&ProcessSpec>, objects: &[ObjectSpec], consumers: &[String]) -> String {
    // A spec is plain maps, lists and texts: it cannot fail to serialise.
    let whole = json!({"process": process, "objects": objects, "consumers": consumers});
    canonical_hash(&whole)
}

/// SHA-256 in hex over a document's JSON with members in name order: equal documents have equal hashes.
pub fn canonical_hash(document: &Value) -> String {
    let mut text = String::new();
    canonical(document, &mut text);
    data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}

/// JSON with members in name order, whatever order the map keeps.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            text.push('{');
            for (i, (key, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                canonical(member, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                canonical(item, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::domain::catalog::{Catalog, KnownMechanisms, ProcessTemplate, Sources};
    use std::sync::Arc;

    fn offering() -> (Offering, Arc<Plan>) {
        let sources = Sources::from_iter([
            (
                "catalog/s/offering.yaml".to_owned(),
                "id: 11111111-1111-4111-8111-111111111111\nname: s\ndescription: S\nruns_on: [kubernetes]\n"
                    .to_owned(),
            ),
            (
                "plans/s/p.yaml".to_owned(),
                "id: 22222222-2222-4222-8222-222222222222\nname: p\ndescription: P\nvalues: {n: 3}\n"
                    .to_owned(),
            ),
        ]);
        let catalog = Catalog::load(&sources, &KnownMechanisms).unwrap();
        let offering = (*catalog.offerings[0]).clone();
        let plan = offering.plans[0].clone();
        (offering, plan)
    }

    fn with_process(spec: Value) -> (Offering, Arc<Plan>) {
        let (mut offering, plan) = offering();
        offering.process = Some(ProcessTemplate {
            user: vec!["nobody".into()],
            binaries: BTreeMap::new(),
            install: String::new(),
            ports: vec!["client".into()],
            spec: Template::compile(spec).unwrap(),
        });
        (offering, plan)
    }

    fn rendered(spec: Value, port: u16) -> Result<Desired, ExprError> {
        let (offering, plan) = with_process(spec);
        let placement = Map::from_iter([("ports".to_owned(), json!({"client": port}))]);
        let scope = instance_scope("iid", "cf", &offering, &plan, &Map::new(), &placement);
        let admin = Secret::from_pairs([("password", "hunter2hunter2")]);
        render(&offering, &plan, LOCAL, &scope, &admin, &Secret::default())
    }

    #[test]
    fn numbers_in_arguments_and_environment_become_text() {
        let spec = json!({
            "command": ["/b", "${ports.client}", "${plan.n}"], "env": {"N": "${plan.n}", "ON": "${plan.n > 2}"},
            "ready": {"tcp": "client"},
        });
        let desired = rendered(spec, 4000).unwrap();
        let process = desired.process.unwrap();
        assert_eq!(process.command, ["/b", "4000", "3"]);
        assert_eq!(process.env["ON"], "true");
        assert_eq!(
            (process.user, process.ports),
            (vec!["nobody".to_owned()], vec!["client".to_owned()])
        );
    }

    #[test]
    fn the_hash_follows_what_is_rendered() {
        let spec = || json!({"command": ["/b", "${ports.client}"], "ready": {"tcp": "client"}});
        let hash = |port| rendered(spec(), port).unwrap().hash;
        assert_eq!(hash(4000), hash(4000));
        assert_ne!(hash(4000), hash(4001));
        assert_eq!(hash(4000).len(), 64);
    }

    #[test]
    fn errors_say_where_and_never_a_secret() {
        for (spec, path) in [
            (
                json!({"command": ["/b"], "ready": {"tcp": "${admin}"}}),
                "process.ready.tcp",
            ),
            (
                json!({"command": "${admin.password}", "ready": {"tcp": "c"}}),
                "process.command",
            ),
            (
                json!({"command": ["/b"], "change": "${admin.password}", "ready": {"tcp": "c"}}),
                "process.change",
            ),
            (
                json!({"command": ["/b"], "stop": {"grace": "${admin.password}"}, "ready": {"tcp": "c"}}),
                "process.stop.grace",
            ),
            (
                json!({"command": ["/b"], "files": [{"path": "a", "content": "${admin.nope}"}]}),
                "process.files[0].content",
            ),
            (json!({"command": ["/b"]}), "process"),
        ] {
            let error = rendered(spec.clone(), 1).expect_err("fails");
            assert_eq!(error.path, path, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nulls_are_left_out_of_credentials_at_every_depth() {
        let credentials = Template::compile(json!({
            "password": "${user.password}", "none": "${null}", "in": {"none": null, "list": [null, 1]}, "role": "${role}",
            "monitor": "${endpoints.monitor.port}", "iid": "${instance.iid}",
        }))
        .unwrap();
        let binding = BindingTemplate {
            mechanism: "sql".into(),
            settings: Template::compile(json!({"n": "${plan.n}"})).unwrap(),
            endpoint: "client".into(),
            default_role: "owner".into(),
            roles: vec!["owner".into()],
            coordinates: credentials.without("user").unwrap(),
            credentials,
            endpoints: Template::compile(json!([
                {"host": "${endpoint.host}", "ports": ["${endpoint.port}", "9000-9010"]},
                {"host": "h", "ports": ["1"], "protocol": "udp"},
            ]))
            .unwrap(),
            requires_app: false,
        };
        let (offering, plan) = offering();
        let client = Endpoint {
            name: "client".into(),
            host: "127.0.0.1".into(),
            port: 5432,
        };
        let monitor = Endpoint {
            name: "monitor".into(),
            host: "127.0.0.1".into(),
            port: 8222,
        };
        let settings = settings(&binding, &plan, &Map::new()).unwrap();
        assert_eq!(settings["n"], json!(3));
        let scope = binding_scope(&BindingFacts {
            iid: "iid",
            offering: &offering,
            plan: &plan,
            params: &Map::new(),
            role: "owner",
            endpoint: &client,
            endpoints: &[client.clone(), monitor],
            settings: &settings,
            user: &Secret::from_pairs([("password", "p")]),
        });
        let (credentials, endpoints) = binding_credentials(&binding, &scope).unwrap();
        assert_eq!(
            Value::Object(credentials.expose().clone()),
            json!({"password": "p", "in": {"list": [1]}, "role": "owner", "monitor": 8222, "iid": "iid"})
        );
        assert_eq!(
            Value::Object(binding_coordinates(&binding, &scope).unwrap()),
            json!({"in": {"list": [1]}, "role": "owner", "monitor": 8222, "iid": "iid"}),
            "what the user is made of stays out"
        );
        assert_eq!(endpoints[0].ports, ["5432", "9000-9010"]);
        assert_eq!(
            (endpoints[0].protocol.as_str(), endpoints[1].protocol.as_str()),
            ("tcp", "udp")
        );
    }
}
