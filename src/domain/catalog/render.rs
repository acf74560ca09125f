//! Renders every plan while the catalog is checked, with default and extreme parameters and made-up secrets:
//! what cannot be rendered must not be offered.

use super::load::{Loaded, Problems};
use super::raw::Call;
use super::{BindingTemplate, Mechanisms, Plan, mechanism, objects, sample};
use crate::domain::expr::ExprError;
use crate::domain::instance::Endpoint;
use crate::domain::manifest::{self, BindingFacts, Desired, KUBERNETES, LOCAL, ProcessSpec};
use crate::domain::secret::Secret;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const IID: &str = "sampleinstancesampleinstan";
const ROOT: &str = "/srv/chandler/instances/sampleinstancesampleinstan";
const INIT: &str = "/srv/chandler/instances/sampleinstancesampleinstan/.init";
const SIGNALS: [&str; 3] = ["SIGTERM", "SIGINT", "SIGQUIT"];

/// Renders every plan of an offering.
pub(super) fn plans(one: &Loaded<'_>, mechanisms: &dyn Mechanisms, problems: &mut Problems) {
    for plan in &one.offering.plans {
        let examples = |call: Call| -> Vec<&Map<String, Value>> {
            one.examples
                .iter()
                .filter(|e| {
                    e.valid && e.call == call && e.plan.as_ref().is_none_or(|name| *name == plan.name)
                })
                .map(|e| &e.parameters)
                .collect()
        };
        let creates = sample::parameters(&plan.schemas.create, &examples(Call::Create));
        let Some(first) = creates.first().cloned() else {
            problems.add(
                &one.folder.file("create.schema.json"),
                "",
                format!("plan {}: no valid parameters could be made up to try it with; give a valid example in offering.yaml", plan.name),
            );
            continue;
        };
        // An update is the instance's parameters with the request's laid over them.
        let updates = sample::parameters(&plan.schemas.update, &examples(Call::Update))
            .into_iter()
            .map(|update| {
                let mut merged = first.clone();
                merged.extend(update);
                merged
            });
        for params in creates.iter().cloned().chain(updates) {
            let rendered = provisioners(one, plan)
                .into_iter()
                .all(|provisioner| instance(one, plan, provisioner, &params, mechanisms, problems));
            if !rendered {
                break;
            }
        }
        if let Some(binding) = &one.offering.binding
            && plan.bindable
        {
            bindings(
                one,
                plan,
                binding,
                &first,
                &examples(Call::Bind),
                mechanisms,
                problems,
            );
        }
    }
}

struct Samples<'a> {
    mechanism: &'a str,
    admin: Secret,
    generated: Secret,
}

/// What a provisioner would choose: see `Provisioner::place`.
fn placement(one: &Loaded<'_>, provisioner: &str) -> Map<String, Value> {
    if provisioner == KUBERNETES {
        // Every custom resource is there: then every document is rendered.
        let kinds: Vec<String> = one
            .offering
            .objects
            .iter()
            .map(|object| format!("{}/{}", object.api_version, object.kind))
            .collect();
        let namespace = "osb-sampleinstancesampleinstan";
        return manifest::cluster_place(&one.offering.name, namespace, "cluster.local", &kinds);
    }
    let ports: Map<String, Value> = ports(one).into_iter().map(|e| (e.name, json!(e.port))).collect();
    let binaries = one.offering.process.iter().flat_map(|p| p.binaries.keys());
    let binaries: Map<String, Value> = binaries
        .map(|name| (name.clone(), json!(format!("/usr/bin/{name}"))))
        .collect();
    Map::from_iter([
        ("ports".to_owned(), Value::Object(ports)),
        ("bin".to_owned(), Value::Object(binaries)),
        ("dirs".to_owned(), json!({"root": ROOT, "init": INIT})),
        ("host".to_owned(), json!("127.0.0.1")),
    ])
}

/// The provisioners this plan is described for.
fn provisioners(one: &Loaded<'_>, plan: &Plan) -> Vec<&'static str> {
    let runs_on = |word: &str| plan.runs_on.iter().any(|w| w == word);
    let mut provisioners = Vec::new();
    if runs_on(LOCAL) && one.offering.process.is_some() {
        provisioners.push(LOCAL);
    }
    if runs_on(KUBERNETES) && !one.offering.objects.is_empty() {
        provisioners.push(KUBERNETES);
    }
    if provisioners.is_empty() {
        // An offering that runs elsewhere, or is only described so far: its settings are checked all the same.
        provisioners.push(if one.offering.process.is_some() {
            LOCAL
        } else {
            KUBERNETES
        });
    }
    provisioners
}

fn samples<'a>(one: &'a Loaded<'_>, mechanisms: &dyn Mechanisms) -> Samples<'a> {
    let mechanism = one.offering.binding.as_ref().map_or("", |b| b.mechanism.as_str());
    let generated = one.offering.generated.iter();
    let generated =
        generated.map(|(name, length)| (name.clone(), format!("Generated{name}{}", "0".repeat(*length))));
    Samples {
        mechanism,
        admin: Secret::new(mechanisms.sample_admin(mechanism)),
        generated: Secret::from_pairs(generated),
    }
}

/// The endpoints an instance would have.
fn ports(one: &Loaded<'_>) -> Vec<Endpoint> {
    let names = one.offering.process.iter().flat_map(|p| &p.ports);
    names
        .zip(20_001u16..)
        .map(|(name, port)| Endpoint {
            name: name.clone(),
            host: "127.0.0.1".into(),
            port,
        })
        .collect()
}

/// Renders one instance; false when that failed, so that one mistake is not told for every parameter.
fn instance(
    one: &Loaded<'_>,
    plan: &Plan,
    provisioner: &str,
    params: &Map<String, Value>,
    mechanisms: &dyn Mechanisms,
    problems: &mut Problems,
) -> bool {
    let samples = samples(one, mechanisms);
    let placement = placement(one, provisioner);
    let scope = manifest::instance_scope(IID, "sample", &one.offering, plan, params, &placement);
    let with = format!("plan {} with {}", plan.name, Value::Object(params.clone()));
    let (admin, generated) = (&samples.admin, &samples.generated);
    match manifest::render(&one.offering, plan, provisioner, &scope, admin, generated) {
        Ok(desired) => desired_is_right(one, &desired, &samples, problems),
        Err(error) => {
            tell(one, &with, &error, problems);
            return false;
        }
    }
    if let Some(binding) = &one.offering.binding {
        match manifest::settings(binding, plan, &scope) {
            Ok(settings) if mechanisms.registered(&binding.mechanism) => {
                let file = one.folder.file("binding.yaml");
                for message in mechanisms.check_settings(&binding.mechanism, &settings) {
                    problems.add(&file, "settings", format!("plan {}: {message}", plan.name));
                }
            }
            Ok(_) => {}
            Err(error) => {
                tell(one, &with, &error, problems);
                return false;
            }
        }
    }
    true
}

fn bindings(
    one: &Loaded<'_>,
    plan: &Plan,
    binding: &BindingTemplate,
    params: &Map<String, Value>,
    examples: &[&Map<String, Value>],
    mechanisms: &dyn Mechanisms,
    problems: &mut Problems,
) {
    let samples = samples(one, mechanisms);
    let place = provisioners(one, plan)
        .first()
        .map(|p| placement(one, p))
        .unwrap_or_default();
    let scope = manifest::instance_scope(IID, "sample", &one.offering, plan, params, &place);
    // Failures were told when the instance was rendered.
    let Ok(settings) = manifest::settings(binding, plan, &scope) else {
        return;
    };
    let mut endpoints = ports(one);
    if !endpoints.iter().any(|e| e.name == binding.endpoint) {
        endpoints.push(Endpoint {
            name: binding.endpoint.clone(),
            host: "sample.example".into(),
            port: 20_000,
        });
    }
    let Some(endpoint) = endpoints.iter().find(|e| e.name == binding.endpoint) else {
        return;
    };
    let user = Secret::new(mechanisms.sample_user(samples.mechanism));
    for params in sample::parameters(&plan.schemas.bind, examples) {
        for role in &binding.roles {
            let facts = BindingFacts {
                iid: IID,
                offering: &one.offering,
                plan,
                params: &params,
                role,
                endpoint,
                endpoints: &endpoints,
                settings: &settings,
                user: &user,
            };
            if let Err(error) = manifest::binding_credentials(binding, &manifest::binding_scope(&facts)) {
                let with = format!("plan {}, role {role}, with {}", plan.name, Value::Object(params));
                tell(one, &with, &error, problems);
                return;
            }
        }
    }
}

/// Reports a rendering error at the file it is in.
fn tell(one: &Loaded<'_>, with: &str, error: &ExprError, problems: &mut Problems) {
    let (file, path) = if let Some(path) = error.path.strip_prefix("process") {
        ("process.yaml", path.trim_start_matches('.'))
    } else if error.path.starts_with("objects/") {
        error.path.split_once('[').unwrap_or((&error.path, ""))
    } else {
        ("binding.yaml", error.path.as_str())
    };
    problems.add(
        &one.folder.file(file),
        path,
        format!("{} ({})", error.message, short(with)),
    );
}

fn short(text: &str) -> String {
    if text.chars().count() <= 200 {
        return text.to_owned();
    }
    text.chars().take(199).chain(['…']).collect()
}

fn desired_is_right(one: &Loaded<'_>, desired: &Desired, samples: &Samples<'_>, problems: &mut Problems) {
    if let Some(spec) = &desired.process {
        process_is_right(&one.folder.file("process.yaml"), spec, samples, problems);
    }
    let secrets = secrets(samples);
    let mut seen = BTreeSet::new();
    for object in &desired.objects {
        let file = one.folder.file("objects/");
        objects::is_right(
            &file,
            &one.offering.resources,
            &object.object,
            &secrets,
            &mut seen,
            problems,
        );
    }
}

fn process_is_right(file: &str, spec: &ProcessSpec, samples: &Samples<'_>, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for (i, one) in spec.files.iter().enumerate() {
        let path = format!("files[{i}].path");
        if !is_plain(&one.path) {
            problems.add(
                file,
                &path,
                "must be a relative path without `..` below the instance's directory",
            );
        }
        if !seen.insert(&one.path) {
            problems.add(file, &path, format!("`{}` is written twice", one.path));
        }
        if one.init_only && spec.init.is_none() {
            problems.add(
                file,
                &format!("files[{i}].init_only"),
                "there is no init that could use it",
            );
        }
    }
    if !SIGNALS.contains(&spec.stop.signal.as_str()) {
        problems.add(
            file,
            "stop.signal",
            format!("must be one of {}", SIGNALS.join(", ")),
        );
    }
    if !(1..=600).contains(&spec.stop.grace) {
        problems.add(file, "stop.grace", "must be between 1 and 600 seconds");
    }
    if !spec.ports.contains(&spec.ready.tcp) {
        problems.add(file, "ready.tcp", "is not one of ports");
    }
    command_is_right(file, "command", &spec.command, samples, problems);
    if let Some(init) = &spec.init {
        if !is_plain(&init.creates) {
            problems.add(
                file,
                "init.creates",
                "must be a relative path without `..` below the instance's directory",
            );
        }
        command_is_right(file, "init.command", &init.command, samples, problems);
        if !init.command.iter().any(|argument| argument.contains(INIT)) {
            problems.add(
                file,
                "init.command",
                "must work in `${dirs.init}`, so that a crash half-way leaves nothing that looks finished",
            );
        }
    }
}

/// The values that nobody but the service may read.
fn secrets(samples: &Samples<'_>) -> Vec<String> {
    let secret = |(name, value): (&String, &Value)| {
        (!mechanism::is_public(samples.mechanism, name)).then(|| value.as_str().map(str::to_owned))?
    };
    let admin = samples.admin.expose().iter().filter_map(secret);
    let generated = samples.generated.expose().values();
    admin
        .chain(generated.filter_map(|v| v.as_str().map(str::to_owned)))
        .collect()
}

fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|segment| !["", ".", ".."].contains(&segment))
        && !path.contains(['\\', '\0'])
}

fn command_is_right(
    file: &str,
    path: &str,
    command: &[String],
    samples: &Samples<'_>,
    problems: &mut Problems,
) {
    if !command.first().is_some_and(|program| program.starts_with('/')) {
        problems.add(file, path, "must start with a full path, such as `${bin.server}`");
    }
    for secret in secrets(samples) {
        if command.iter().any(|argument| argument.contains(&secret)) {
            problems.add(
                file,
                path,
                "holds a secret; every user of the machine can read arguments: put it into a file",
            );
        }
    }
}
