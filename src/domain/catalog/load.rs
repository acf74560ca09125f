//! From file texts to offerings: read every folder, lay plans over offerings, then check the whole.
//!
//! A file that cannot be read costs its offering, not the search for further problems: whoever
//! writes a catalog wants all of them at once.

use super::raw::{self, Call};
use super::{
    BindingTemplate, Catalog, Mechanisms, Offering, Plan, Problem, ProcessTemplate, Schema, Schemas, Sources,
    check, render, schema,
};
use crate::domain::expr::{self, ExprError, Template};
use base64::Engine as _;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Largest icon in bytes: it travels inside every catalog answer.
const MAX_ICON: usize = 16_384;

/// Problems found so far; the same one found twice counts once.
#[derive(Default)]
pub(super) struct Problems(BTreeSet<Problem>);

impl Problems {
    pub(super) fn add(&mut self, file: &str, path: &str, message: impl Into<String>) {
        self.0.insert(Problem {
            file: file.to_owned(),
            path: path.to_owned(),
            message: message.into(),
        });
    }

    pub fn add_all(&mut self, file: &str, prefix: &str, errors: Vec<ExprError>) {
        for error in errors {
            self.add(file, &join(prefix, &error.path), error.message);
        }
    }
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}.{path}"),
    }
}

/// The files of one service.
#[derive(Default)]
pub(super) struct Folder<'a> {
    /// Name of the folder.
    pub service: &'a str,
    /// File name within `catalog/<service>/` → text.
    pub files: BTreeMap<&'a str, &'a str>,
    /// File name within `plans/<service>/` → text.
    plans: BTreeMap<&'a str, &'a str>,
}

impl Folder<'_> {
    /// The path of a file of this service, for a problem.
    pub(super) fn file(&self, name: &str) -> String {
        format!("catalog/{}/{name}", self.service)
    }

    /// The path of a plan's file, for a problem.
    pub(super) fn plan_file(&self, name: &str) -> String {
        format!("plans/{}/{name}", self.service)
    }

    /// A file that may be absent, read by `read` from its path and text.
    fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&str, &str) -> Option<T>,
    ) -> Result<Option<T>, Unreadable> {
        match self.files.get(name) {
            None => Ok(None),
            Some(text) => read(&self.file(name), text).map(Some).ok_or(Unreadable),
        }
    }
}

/// The file is there and wrong; why has been reported.
struct Unreadable;

/// An offering with what only the checks need.
pub(super) struct Loaded<'a> {
    pub folder: Folder<'a>,
    pub offering: Offering,
    /// File names of the plans, in the order of `offering.plans`.
    pub plan_files: Vec<&'a str>,
    pub updates: BTreeMap<String, Vec<String>>,
    pub examples: Vec<raw::Example>,
}

/// Reads and checks everything.
pub(super) fn load(sources: &Sources, mechanisms: &dyn Mechanisms) -> Result<Catalog, Vec<Problem>> {
    // A catalog holds over a thousand templates to compile and fill: one stack for all of them.
    expr::with_stack(|| load_here(sources, mechanisms)).unwrap_or_else(|error| {
        Err(vec![Problem {
            file: String::new(),
            path: error.path,
            message: error.message,
        }])
    })
}

fn load_here(sources: &Sources, mechanisms: &dyn Mechanisms) -> Result<Catalog, Vec<Problem>> {
    let mut problems = Problems::default();
    let loaded: Vec<Loaded<'_>> = folders(sources, &mut problems)
        .into_values()
        .filter_map(|folder| read(folder, mechanisms, &mut problems))
        .collect();
    check::across(&loaded, &mut problems);
    for one in &loaded {
        check::offering(one, &mut problems);
        render::plans(one, mechanisms, &mut problems);
    }
    if !problems.0.is_empty() {
        return Err(problems.0.into_iter().collect());
    }
    let mut offerings: Vec<Arc<Offering>> = loaded.into_iter().map(|one| Arc::new(one.offering)).collect();
    offerings.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Catalog { offerings })
}

/// Sorts files into services; what belongs nowhere is a problem, because it is most often a mistyped name.
fn folders<'a>(sources: &'a Sources, problems: &mut Problems) -> BTreeMap<&'a str, Folder<'a>> {
    let mut folders: BTreeMap<&str, Folder<'_>> = BTreeMap::new();
    for (path, text) in sources {
        let parts: Vec<&str> = path.splitn(3, '/').collect();
        if parts
            .last()
            .is_some_and(|file| file.rsplit('/').next() == Some("README.md"))
        {
            continue;
        }
        match parts.as_slice() {
            ["catalog", service, file] if is_catalog_file(file) => {
                folders.entry(service).or_default().files.insert(file, text);
            }
            ["plans", service, file] if is_yaml(file) => {
                folders.entry(service).or_default().plans.insert(file, text);
            }
            _ => problems.add(
                path,
                "",
                "is no file of a catalog: a service has offering.yaml, create.schema.json, update.schema.json, \
                 bind.schema.json, process.yaml, binding.yaml, icon.svg and objects/*.yaml, a plan is a .yaml file in plans/<service>/",
            ),
        }
    }
    for (service, folder) in &mut folders {
        folder.service = service;
    }
    folders
}

fn is_catalog_file(file: &str) -> bool {
    matches!(
        file,
        "offering.yaml"
            | "create.schema.json"
            | "update.schema.json"
            | "bind.schema.json"
            | "process.yaml"
            | "binding.yaml"
            | "icon.svg"
    ) || file.strip_prefix("objects/").is_some_and(is_yaml)
}

/// Whether this names a YAML file, and not one in a folder below.
fn is_yaml(name: &str) -> bool {
    !name.contains('/')
        && Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "yaml")
}

fn read<'a>(folder: Folder<'a>, mechanisms: &dyn Mechanisms, problems: &mut Problems) -> Option<Loaded<'a>> {
    let Some(text) = folder.files.get("offering.yaml") else {
        let (file, message) = if folder.files.is_empty() {
            (
                format!("plans/{}", folder.service),
                "plans of a service that has no folder in catalog/",
            )
        } else {
            (folder.file("offering.yaml"), "is missing")
        };
        problems.add(&file, "", message);
        return None;
    };
    // Read everything before giving up on anything.
    let raw = parsed::<raw::Offering>(&folder.file("offering.yaml"), text, problems);
    let process = folder.optional("process.yaml", |file, text| process(file, text, problems));
    let binding = folder.optional("binding.yaml", |file, text| {
        binding(file, text, mechanisms, problems)
    });
    let objects = super::objects::read(&folder, problems);
    let templates = SchemaTemplates::read(&folder, problems);
    let mut raw_plans: Vec<(&str, Option<raw::Plan>)> = folder
        .plans
        .iter()
        .map(|(name, text)| {
            (
                *name,
                parsed::<raw::Plan>(&folder.plan_file(name), text, problems),
            )
        })
        .collect();
    raw_plans.sort_by_key(|(_, plan)| plan.as_ref().map_or(0, |plan| plan.order));
    if raw_plans.is_empty() {
        problems.add(
            &folder.file("offering.yaml"),
            "",
            format!(
                "has no plan: put at least one file into plans/{}/ (C-02)",
                folder.service
            ),
        );
    }
    let raw = raw?;
    let mut plan_files = Vec::new();
    let mut plans = Vec::new();
    // A file that is there and unreadable has been reported; what hangs on it is not checked further.
    let (process, binding) = (process.ok()?, binding.ok()?);
    let has_binding = binding.is_some();
    for (name, raw_plan) in raw_plans {
        let (Some(raw_plan), Some(templates)) = (raw_plan, &templates) else {
            continue;
        };
        if let Some(plan) = plan(&raw, raw_plan, has_binding, templates, &folder, problems) {
            plan_files.push(name);
            plans.push(Arc::new(plan));
        }
    }
    let metadata = metadata(&raw, &folder, problems);
    let offering = Offering {
        id: raw.id,
        name: raw.name,
        description: raw.description,
        bindable: raw.bindable.unwrap_or(has_binding),
        tags: raw.tags,
        requires: raw.requires,
        metadata,
        concurrency: raw.concurrency,
        generated: raw.generated,
        plans,
        process,
        objects,
        resources: raw.resources,
        binding,
    };
    Some(Loaded {
        folder,
        offering,
        plan_files,
        updates: raw.updates,
        examples: raw.examples,
    })
}

fn parsed<T: serde::de::DeserializeOwned>(file: &str, text: &str, problems: &mut Problems) -> Option<T> {
    raw::parse(text)
        .map_err(|message| problems.add(file, "", message))
        .ok()
}

fn compiled(file: &str, prefix: &str, value: Value, problems: &mut Problems) -> Option<Template> {
    Template::compile(value)
        .map_err(|errors| problems.add_all(file, prefix, errors))
        .ok()
}

fn process(file: &str, text: &str, problems: &mut Problems) -> Option<ProcessTemplate> {
    let raw = parsed::<raw::Process>(file, text, problems)?;
    let mut spec = Map::new();
    let parts = [
        ("files", raw.files),
        ("init", raw.init),
        ("command", Some(raw.command)),
        ("env", raw.env),
        ("stop", raw.stop),
        ("change", raw.change),
        ("ready", Some(raw.ready)),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            spec.insert(name.into(), value);
        }
    }
    Some(ProcessTemplate {
        user: raw.user,
        binaries: raw.binaries,
        install: raw.install,
        ports: raw.ports,
        spec: compiled(file, "", Value::Object(spec), problems)?,
    })
}

fn binding(
    file: &str,
    text: &str,
    mechanisms: &dyn Mechanisms,
    problems: &mut Problems,
) -> Option<BindingTemplate> {
    let raw = parsed::<raw::Binding>(file, text, problems)?;
    if !mechanisms.known(&raw.mechanism) {
        problems.add(
            file,
            "mechanism",
            format!(
                "there is no mechanism `{}`; `sql`, `redis` and `nats` are examples of one",
                raw.mechanism
            ),
        );
    }
    let settings = compiled(file, "settings", Value::Object(raw.settings), problems);
    let credentials = compiled(file, "credentials", Value::Object(raw.credentials), problems);
    let coordinates = credentials.as_ref().and_then(|credentials| {
        credentials
            .without("user")
            .map_err(|errors| problems.add_all(file, "credentials", errors))
            .ok()
    });
    let endpoints = compiled(file, "endpoints", raw.endpoints, problems);
    Some(BindingTemplate {
        mechanism: raw.mechanism,
        settings: settings?,
        endpoint: raw.endpoint,
        default_role: raw.default_role,
        roles: raw.roles,
        credentials: credentials?,
        coordinates: coordinates?,
        endpoints: endpoints?,
        requires_app: raw.requires_app,
    })
}

/// The service's metadata, with `icon.svg` as its image.
fn metadata(raw: &raw::Offering, folder: &Folder<'_>, problems: &mut Problems) -> Map<String, Value> {
    let mut metadata = raw.metadata.clone();
    if let Some(icon) = folder.files.get("icon.svg") {
        let file = folder.file("icon.svg");
        let lower = icon.to_ascii_lowercase();
        if !lower.contains("<svg") {
            problems.add(&file, "", "is not an SVG drawing");
        }
        if lower.contains("<script") || lower.contains("javascript:") {
            problems.add(&file, "", "holds a script; people's browsers show this drawing");
        }
        if icon.len() > MAX_ICON {
            problems.add(
                &file,
                "",
                format!("has more than {MAX_ICON} bytes; it is sent with every catalog"),
            );
        }
        let encoded = base64::engine::general_purpose::STANDARD.encode(icon);
        metadata
            .entry("imageUrl")
            .or_insert_with(|| Value::String(format!("data:image/svg+xml;base64,{encoded}")));
    }
    metadata
}

/// The three schema files of a service; a plan's values are filled in per plan.
struct SchemaTemplates(Vec<(Call, String, Template)>);

impl SchemaTemplates {
    fn read(folder: &Folder<'_>, problems: &mut Problems) -> Option<Self> {
        let mut templates = Vec::new();
        let names = [
            (Call::Create, "create"),
            (Call::Update, "update"),
            (Call::Bind, "bind"),
        ];
        for (call, name) in names {
            let name = format!("{name}.schema.json");
            let file = folder.file(&name);
            let json = match folder.files.get(name.as_str()) {
                None => Some(Schema::none()),
                Some(text) => serde_json::from_str(text)
                    .map_err(|e| problems.add(&file, "", format!("is not JSON: {e}")))
                    .ok(),
            };
            let template = json.and_then(|json| compiled(&file, "", json, problems));
            templates.push(template.map(|template| (call, file, template)));
        }
        Some(Self(templates.into_iter().collect::<Option<_>>()?))
    }

    fn fill(&self, plan: &str, values: &Map<String, Value>, problems: &mut Problems) -> Option<Schemas> {
        let scope = Map::from_iter([("plan".to_owned(), Value::Object(values.clone()))]);
        let mut fill = |call: Call| {
            let (_, file, template) = self.0.iter().find(|(of, _, _)| *of == call)?;
            let filled = template
                .fill(&scope)
                .map_err(|e| problems.add(file, &e.path, format!("plan {plan}: {}", e.message)))
                .ok()?;
            let schema = Schema::compile(filled)
                .map_err(|message| problems.add(file, "", message))
                .ok()?;
            for (path, message) in schema::problems(&schema) {
                problems.add(file, &path, message);
            }
            if call == Call::Bind {
                for name in schema::reserved(&schema) {
                    problems.add(
                        file,
                        &format!("properties.{name}"),
                        "is a parameter of the broker's own; choose another name",
                    );
                }
            }
            Some(schema)
        };
        let (create, update, bind) = (fill(Call::Create), fill(Call::Update), fill(Call::Bind));
        Some(Schemas {
            create: create?,
            update: update?,
            bind: bind?,
        })
    }
}

fn plan(
    offering: &raw::Offering,
    raw: raw::Plan,
    has_binding: bool,
    templates: &SchemaTemplates,
    folder: &Folder<'_>,
    problems: &mut Problems,
) -> Option<Plan> {
    let mut values = offering.values.clone();
    lay_over(&mut values, raw.values);
    let schemas = templates.fill(&raw.name, &values, problems)?;
    let updates_to = offering.updates.get(&raw.name).cloned().unwrap_or_default();
    let maintenance = raw.maintenance_info.or_else(|| offering.maintenance_info.clone());
    if let Some(info) = &maintenance {
        check::maintenance(info, &folder.file("offering.yaml"), problems);
    }
    let (version, description) =
        maintenance.map_or((None, None), |info| (Some(info.version), info.description));
    Some(Plan {
        id: raw.id,
        description: raw.description,
        free: raw.free,
        bindable: raw.bindable.or(offering.bindable).unwrap_or(has_binding),
        plan_updateable: updates_to.iter().any(|to| *to != raw.name),
        binding_rotatable: raw.binding_rotatable.unwrap_or(offering.binding_rotatable),
        maximum_polling_duration: raw
            .maximum_polling_duration
            .unwrap_or(offering.maximum_polling_duration),
        maintenance_version: version,
        maintenance_description: description,
        metadata: raw.metadata,
        values,
        runs_on: raw.runs_on.unwrap_or_else(|| offering.runs_on.clone()),
        updates_to,
        binding_lifetime: raw.binding_lifetime.or(offering.binding_lifetime).map(Into::into),
        retain_days: raw.retain_days.unwrap_or(offering.retain_days),
        delivery: raw.delivery.unwrap_or_else(|| offering.delivery.clone()),
        schemas,
        name: raw.name,
    })
}

/// Lays `over` on `base`: maps are merged member by member, anything else is replaced.
fn lay_over(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(base)), Value::Object(over)) => lay_over(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
