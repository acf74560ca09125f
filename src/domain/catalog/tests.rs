#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::many_single_char_names
)]

use super::*;
use serde_json::json;

const OFFERING: &str = "\
id: 11111111-1111-4111-8111-111111111111
name: store
description: A store
tags: [kv]
metadata: {displayName: Store, shareable: true, documentationUrl: https://example.com/}
generated: {cookie: 32}
values: {size: 1, nested: {a: 1, b: 2}}
runs_on: [local, kubernetes]
maintenance_info: {version: 1.2.3, description: Restarts.}
updates: {small: [large]}
examples:
  - for: create
    parameters: {mode: fast}
  - for: create
    parameters: {mode: wrong}
    valid: false
";
const SMALL: &str = "\
id: 22222222-2222-4222-8222-222222222222
name: small
description: Small
metadata: {bullets: [one], costs: [{amount: {usd: 1.5}, unit: MONTHLY}]}
values: {nested: {b: 3}, limit: 5}
";
const LARGE: &str = "\
id: 33333333-3333-4333-8333-333333333333
name: large
description: Large
order: -1
free: false
bindable: false
values: {limit: 50}
binding_lifetime: {ttl: 3600, renew_before: 600}
";
const CREATE: &str = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "additionalProperties": false,
 "properties": {"mode": {"type": "string", "enum": ["fast", "safe"], "default": "safe"},
                "count": {"type": "integer", "minimum": 1, "maximum": "${plan.limit}", "default": 2}}}"#;
const UPDATE: &str = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "additionalProperties": false,
 "properties": {"count": {"type": "integer", "minimum": 1, "maximum": "${plan.limit}"}}}"#;
const BIND: &str = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "additionalProperties": false,
 "properties": {"role": {"type": "string", "enum": ["owner", "readonly"]}, "prefix": {"type": "string", "pattern": "^[a-z]+:$"}}}"#;
const PROCESS: &str = "\
user: [nobody]
binaries: {server: [store-server]}
install: apt-get install store
ports: [client]
files:
  - {path: store.conf, content: 'port ${ports.client} mode ${params.mode} count ${params.count} b ${plan.nested.b}'}
  - {path: secret, content: '${admin.password}${generated.cookie}'}
command: ['${bin.server}', '--port', '${ports.client}']
env: {N: '${params.count}'}
ready: {tcp: client}
";
const BINDING: &str = "\
mechanism: redis
settings: {size: '${plan.size}'}
endpoint: client
default_role: owner
roles: [owner, readonly]
credentials:
  type: store
  uri: store://${user.username}:${user.password}@${endpoint.host}:${endpoint.port}/?role=${role}&n=${settings.size}
  prefix: '${has(params.prefix) ? params.prefix : null}'
endpoints: [{host: '${endpoint.host}', ports: ['${string(endpoint.port)}']}]
";

fn sources() -> Sources {
    [
        ("catalog/store/offering.yaml", OFFERING),
        ("catalog/store/create.schema.json", CREATE),
        ("catalog/store/update.schema.json", UPDATE),
        ("catalog/store/bind.schema.json", BIND),
        ("catalog/store/process.yaml", PROCESS),
        ("catalog/store/binding.yaml", BINDING),
        (
            "catalog/store/icon.svg",
            "<svg xmlns=\"http://www.w3.org/2000/svg\"/>",
        ),
        ("catalog/README.md", "words"),
        ("plans/store/small.yaml", SMALL),
        ("plans/store/large.yaml", LARGE),
    ]
    .into_iter()
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .collect()
}

fn problems(sources: &Sources) -> String {
    match Catalog::load(sources, &KnownMechanisms) {
        Ok(_) => String::new(),
        Err(problems) => problems
            .iter()
            .flat_map(|p| [p.to_string(), "\n".into()])
            .collect(),
    }
}

/// In `file`, replaces `from` by `to`; `from` empty = the whole text.
fn changed(file: &str, from: &str, to: &str) -> Sources {
    let mut sources = sources();
    let text = sources.entry(file.to_owned()).or_default();
    if from.is_empty() {
        to.clone_into(text);
    } else {
        assert!(text.contains(from), "{from} in {file}");
        *text = text.replacen(from, to, 1);
    }
    sources
}

#[test]
fn every_check_has_an_example_that_fails_it() {
    let (o, s, l) = (
        "catalog/store/offering.yaml",
        "plans/store/small.yaml",
        "plans/store/large.yaml",
    );
    let (p, b) = ("catalog/store/process.yaml", "catalog/store/binding.yaml");
    let (c, u, bs) = (
        "catalog/store/create.schema.json",
        "catalog/store/update.schema.json",
        "catalog/store/bind.schema.json",
    );
    let long = |n: usize| "x".repeat(n);
    let table: Vec<(&str, &str, String, &str)> = vec![
        // Form.
        (o, "tags: [kv]", "tags: [kv".into(), "offering.yaml: "),
        (o, "tags:", "tagz:".into(), "unknown field"),
        (o, "tags: [kv]", "tags: [kv]\nname: again".into(), "duplicate"),
        (o, "description: A store\n", String::new(), "missing field"),
        (s, "", "id: [".into(), "plans/store/small.yaml: "),
        (p, "", "user: 1".into(), "process.yaml: "),
        (c, "", "{".into(), "is not JSON"),
        ("catalog/store/bindings.yaml", "", "x: 1".into(), "bindings.yaml: is no file of a catalog"),
        ("catalog/store/objects/deep/x.yaml", "", "x: 1".into(), "is no file of a catalog"),
        ("plans/other/small.yaml", "", SMALL.into(), "plans of a service that has no folder"),
        ("catalog/lone/offering.yaml", "", OFFERING.into(), "has no plan"),
        ("catalog/half/process.yaml", "", PROCESS.into(), "catalog/half/offering.yaml: is missing"),
        // Names and ids.
        (o, "11111111-1111-4111-8111-111111111111", "not-a-uuid".into(), "C-05"),
        (o, "11111111-1111-4111-8111-111111111111", "ABCDEF11-1111-4111-8111-111111111111".into(), "lower-case UUID"),
        (s, "22222222-2222-4222-8222-222222222222", "11111111-1111-4111-8111-111111111111".into(), "is the id of"),
        (s, "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333".into(), "is the id of"),
        (o, "name: store", "name: my store".into(), "C-06"),
        (o, "name: store", "name: '-'".into(), "C-06"),
        (o, "name: store", format!("name: {}", long(64)), "longer than 63"),
        (s, "name: small", "name: large".into(), "C-04"),
        (s, "name: small", "name: sm_all".into(), "C-06"),
        // Platforms' limits.
        (o, "description: A store", "description: ' '".into(), "is empty"),
        (o, "description: A store", format!("description: {}", long(10_001)), "10000"),
        (o, "tags: [kv]", format!("tags: [{}]", long(2_048)), "tags: are longer"),
        (o, "tags: [kv]", "tags: ['']".into(), "empty tag"),
        (o, "tags: [kv]", "requires: [log_drain]".into(), "C-07"),
        (o, "shareable: true", "shareable: 'yes'".into(), "metadata.shareable"),
        (o, "displayName: Store", "displayName: 5".into(), "metadata.displayName"),
        (o, "https://example.com/", "example".into(), "is not a web address"),
        (o, "version: 1.2.3", "version: '1.2'".into(), "C-12"),
        (o, "description: Restarts.", format!("description: {}", long(2_000)), "maintenance_info"),
        (o, "maintenance_info:", "maximum_polling_duration: 5\nmaintenance_info:".into(), "maximum_polling_duration"),
        (o, "maintenance_info:", "concurrency: 0\nmaintenance_info:".into(), "concurrency"),
        (o, "cookie: 32", "cookie: 4".into(), "generated.cookie"),
        (o, "{cookie: 32}", "{cookie: 32, Bad-Name: 32}".into(), "generated.Bad-Name"),
        (s, "bullets: [one]", "bullets: one".into(), "metadata.bullets"),
        (s, "usd: 1.5", "usd: cheap".into(), "metadata.costs"),
        (s, "unit: MONTHLY", "unit: 5".into(), "metadata.costs"),
        // Plans.
        (o, "updates: {small: [large]}", "updates: {small: [huge]}".into(), "there is no plan `huge`"),
        (o, "updates: {small: [large]}", "updates: {tiny: [large]}".into(), "there is no plan `tiny`"),
        (o, "updates: {small: [large]}", "updates: {small: [small]}".into(), "to itself"),
        (o, "runs_on: [local, kubernetes]", "runs_on: [moon]".into(), "`moon` is none of"),
        (o, "runs_on: [local, kubernetes]", "runs_on: []".into(), "names nothing that runs it"),
        (l, "renew_before: 600", "renew_before: 3600".into(), "B-17"),
        (l, "ttl: 3600", "ttl: 5".into(), "B-17"),
        (s, "limit: 5", "other: 5".into(), "there is no `limit`"),
        // Process.
        (p, "ports: [client]", "ports: [client, client]".into(), "is there twice"),
        (p, "ports: [client]", "ports: [client, Admin]".into(), "`Admin` must be lower-case"),
        (p, "ports: [client]", "ports: []".into(), "names no port"),
        (p, "tcp: client", "tcp: other".into(), "ready.tcp"),
        (p, "install: apt-get install store", "install: ''".into(), "must say how"),
        (p, "[store-server]", "[bin/store]".into(), "neither a plain name nor an absolute path"),
        (p, "[store-server]", "[/opt/../store]".into(), "neither a plain name nor an absolute path"),
        (p, "[store-server]", "[]".into(), "has no candidate"),
        (p, "path: store.conf", "path: ../store.conf".into(), "files[0].path"),
        (p, "path: store.conf", "path: /etc/store.conf".into(), "files[0].path"),
        (p, "path: store.conf", "path: secret".into(), "is written twice"),
        (p, "path: store.conf", "path: store.conf, init_only: true".into(), "no init"),
        (p, "'${bin.server}'", "server".into(), "full path"),
        (p, "'--port'", "'--pw=${admin.password}'".into(), "holds a secret"),
        (p, "'--port'", "'${generated.cookie}'".into(), "holds a secret"),
        (p, "env:", "stop: {signal: SIGKILL}\nenv:".into(), "stop.signal"),
        (p, "env:", "stop: {grace: 0}\nenv:".into(), "stop.grace"),
        (p, "env:", "init: {creates: ../data, command: ['${bin.server}', '${dirs.init}']}\nenv:".into(), "init.creates"),
        (p, "env:", "init: {creates: data, command: ['${bin.server}', data]}\nenv:".into(), "init.command"),
        (p, "env:", "change: explode\nenv:".into(), "process.yaml: change"),
        (p, "${plan.nested.b}", "${plan.nested.c}".into(), "files[0].content"),
        (p, "${bin.server}", "${bin.servr}".into(), "there is no `servr`"),
        (p, "${admin.password}", "${admin.pasword}".into(), "there is no `pasword`"),
        (p, "${params.mode}", "${params.mod}".into(), "there is no `mod`"),
        (p, "${params.mode}", "${params.mode".into(), "process.yaml: files[0].content"),
        (p, "count ${params.count}", "n ${[1,2][params.count - 1]}".into(), "\"count\":"),
        // Binding.
        (b, "mechanism: redis", "mechanism: telepathy".into(), "no mechanism `telepathy`"),
        (b, "endpoint: client", "endpoint: admin".into(), "has no port `admin`"),
        (b, "default_role: owner", "default_role: readwrite".into(), "is not in roles"),
        (b, "[owner, readonly]", "[owner, readonly, god]".into(), "`god` is none of"),
        (b, "[owner, readonly]", "[owner]".into(), "properties.role.enum"),
        (b, "type: store", "kind: store".into(), "credentials.type"),
        (b, "type: store", "type: store\n  'a b': c".into(), "key of a Secret"),
        (b, "${user.username}", "${user.name}".into(), "credentials.uri"),
        (b, "${settings.size}", "${settings.sice}".into(), "there is no `sice`"),
        (b, "'${plan.size}'", "'${admin.password}'".into(), "`admin` is not known here"),
        (b, "'${string(endpoint.port)}'", "'99999'".into(), "a port must be"),
        (b, "host: '${endpoint.host}'", "host: ''".into(), "needs a host"),
        (b, "ports: ['${string(endpoint.port)}']", "ports: []".into(), "at least one port"),
        // Schemas.
        (c, "draft-04", "draft-07".into(), "$schema"),
        (c, "\"additionalProperties\": false,", String::new(), "additionalProperties"),
        (c, "\"type\": \"object\"", "\"type\": \"array\"".into(), "must be \"object\""),
        (c, "\"type\": \"object\"", "\"type\": \"objekt\"".into(), "draft-04 schema"),
        (c, "\"default\": 2", "\"default\": 0".into(), "properties.count.default"),
        (c, "\"enum\": [\"fast\", \"safe\"]", "\"$ref\": \"https://example.com/s.json\"".into(), "create.schema.json"),
        (c, "\"enum\": [\"fast\", \"safe\"]", "\"format\": \"password\"".into(), "looks like a secret"),
        (c, "\"count\"", "\"admin_password\"".into(), "looks like a secret"),
        (c, "\"default\": 2", format!("\"description\": \"{}\"", long(65_536)), "65536"),
        (c, "\"properties\": {\"mode\"", "\"required\": [\"x\"], \"properties\": {\"x\": {\"type\": \"string\", \"pattern\": \"^z$\"}, \"mode\"".into(), "no valid parameters could be made up"),
        (u, "\"count\"", "\"other\"".into(), "is not in create.schema.json"),
        (bs, "[\"owner\", \"readonly\"]", "[\"owner\", \"readwrite\"]".into(), "is not in the roles"),
        (bs, "^[a-z]+:$", "^(?=a)".into(), "draft-04 schema"),
        // Examples.
        (o, "parameters: {mode: fast}", "parameters: {mode: slow}".into(), "\"slow\" is not one of"),
        (o, "parameters: {mode: wrong}", "parameters: {mode: safe}".into(), "should be refused"),
        (o, "- for: create", "- plan: none\n    for: create".into(), "there is no plan `none`"),
        // Icon.
        ("catalog/store/icon.svg", "", "png".into(), "is not an SVG"),
        ("catalog/store/icon.svg", "", "<svg><script/></svg>".into(), "holds a script"),
        ("catalog/store/icon.svg", "", format!("<svg>{}</svg>", long(17_000)), "more than 16384"),
        // Objects.
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a}, spec: {image: 'store:1.0'}}".into(), "not pinned by digest"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a}, spec: {image: '${plan.nope}'}}".into(), "there is no `nope`"),
        ("catalog/store/objects/a.yaml", "", "spec: [".into(), "objects/a.yaml"),
        ("catalog/store/objects/a.yaml", "", "kind: Secret".into(), "apiVersion: must be given"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: A_b}}".into(), "is not a name"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a, namespace: b}}".into(), "must be left out"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {}}".into(), "stringData"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Namespace, metadata: {name: a}}".into(), "not a kind the broker may make"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a}, phase: x}".into(), "must be a number"),
        ("catalog/store/objects/a.yaml", "", "{apiVersion: v1, kind: Secret, metadata: {name: a}, when: '${1}'}".into(), "must be true or false"),
        ("catalog/store/objects/a.yaml", "", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: a}".into(), "there are two objects"),
    ];
    for (file, from, to, expected) in table {
        let found = problems(&changed(file, from, &to));
        let to: String = to.chars().take(100).collect();
        assert!(
            found.contains(expected),
            "{file}: {from} -> {to}\nexpected {expected}, found:\n{found}"
        );
    }
}

#[test]
fn a_plan_without_what_it_needs_is_refused() {
    for (missing, expected) in [
        ("catalog/store/binding.yaml", "needs a binding.yaml"),
        ("catalog/store/process.yaml", "`local` needs a process.yaml"),
        ("catalog/store/offering.yaml", "offering.yaml: is missing"),
    ] {
        let mut sources = sources();
        if missing.ends_with("binding.yaml") {
            sources.insert(
                "plans/store/small.yaml".into(),
                format!("{SMALL}bindable: true\n"),
            );
            // Without a mechanism there are no admin secrets either.
            let process = PROCESS.replace("${admin.password}", "");
            sources.insert("catalog/store/process.yaml".into(), process);
        }
        sources.remove(missing);
        assert!(
            problems(&sources).contains(expected),
            "{missing}: {}",
            problems(&sources)
        );
    }
}

#[test]
fn all_problems_come_at_once_in_file_order() {
    let mut sources = changed("catalog/store/offering.yaml", "name: store", "name: my store");
    sources.insert("plans/store/zeta.yaml".into(), "id: 1".into());
    sources.insert("catalog/store/what.txt".into(), String::new());
    sources.insert(
        "catalog/store/bind.schema.json".into(),
        BIND.replace("draft-04", "draft-06"),
    );
    let found = problems(&sources);
    let files: Vec<&str> = found
        .lines()
        .map(|line| line.split(':').next().unwrap())
        .collect();
    let mut sorted = files.clone();
    sorted.sort_unstable();
    assert_eq!(files, sorted, "{found}");
    for file in ["bind.schema.json", "offering.yaml", "what.txt", "zeta.yaml"] {
        assert!(files.iter().any(|f| f.ends_with(file)), "{file} in {found}");
    }
}

#[test]
fn pinned_images_and_several_documents_are_fine() {
    let digest = "a".repeat(64);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\nimage: store@sha256:{digest}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: '${{dns_name(instance.iid)}}'}}\n"
    );
    let sources = changed("catalog/store/objects/a.yaml", "", &text);
    assert_eq!(problems(&sources), "");
    let catalog = Catalog::load(&sources, &KnownMechanisms).unwrap();
    assert_eq!(catalog.offerings[0].objects.len(), 2);
}

struct OnlySql;

impl Mechanisms for OnlySql {
    fn registered(&self, mechanism: &str) -> bool {
        mechanism == "sql"
    }
    fn check_settings(&self, mechanism: &str, settings: &Map<String, Value>) -> Vec<String> {
        assert_eq!(mechanism, "sql", "only registered ones are asked");
        settings.keys().map(|key| format!("{key}: unknown")).collect()
    }
}

#[test]
fn settings_are_checked_by_registered_mechanisms_only() {
    assert!(Catalog::load(&sources(), &OnlySql).is_ok());
    let mut sources = changed("catalog/store/binding.yaml", "redis", "sql");
    sources.insert(
        "catalog/store/process.yaml".into(),
        PROCESS.replace("password_sha256", "password"),
    );
    let found = Catalog::load(&sources, &OnlySql).unwrap_err();
    assert_eq!(
        found[0].to_string(),
        "catalog/store/binding.yaml: settings: plan large: size: unknown"
    );
}

#[test]
fn plan_values_lie_over_offering_values_and_schemas_follow() {
    let catalog = Catalog::load(&sources(), &KnownMechanisms).unwrap();
    let (offering, small) = catalog
        .plan(
            "11111111-1111-4111-8111-111111111111",
            "22222222-2222-4222-8222-222222222222",
        )
        .unwrap();
    assert_eq!(
        Value::Object(small.values.clone()),
        json!({"size": 1, "nested": {"a": 1, "b": 3}, "limit": 5})
    );
    assert_eq!(
        small.schemas.create.json["properties"]["count"]["maximum"],
        json!(5)
    );
    assert_eq!(small.updates_to, ["large"]);
    assert!(small.plan_updateable && small.bindable && small.binding_rotatable);
    let large = offering.plans.iter().find(|p| p.name == "large").unwrap();
    assert_eq!(
        large.schemas.update.json["properties"]["count"]["maximum"],
        json!(50)
    );
    assert_eq!(
        large.binding_lifetime,
        Some(BindingLifetime {
            ttl: 3600,
            renew_before: 600
        })
    );
    assert!(!large.plan_updateable && !large.bindable);
    assert!(
        catalog
            .plan("11111111-1111-4111-8111-111111111111", "x")
            .is_none()
    );
    assert!(catalog.offering("x").is_none());
}

#[test]
fn served_catalog_has_the_osb_shape_and_nothing_else() {
    let catalog = Catalog::load(&sources(), &KnownMechanisms).unwrap();
    let (create, update, bind) = (
        catalog.offerings[0].plans[0].schemas.create.json.clone(),
        catalog.offerings[0].plans[0].schemas.update.json.clone(),
        catalog.offerings[0].plans[1].schemas.bind.json.clone(),
    );
    let mut create_small = create.clone();
    create_small["properties"]["count"]["maximum"] = json!(5);
    let mut update_small = update.clone();
    update_small["properties"]["count"]["maximum"] = json!(5);
    let expected = json!({"services": [{
        "id": "11111111-1111-4111-8111-111111111111",
        "name": "store",
        "description": "A store",
        "tags": ["kv"],
        "bindable": true,
        "instances_retrievable": true,
        "bindings_retrievable": true,
        "allow_context_updates": true,
        "plan_updateable": true,
        "metadata": {
            "displayName": "Store",
            "shareable": true,
            "documentationUrl": "https://example.com/",
            "imageUrl": "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciLz4=",
        },
        "plans": [
            {
                "id": "33333333-3333-4333-8333-333333333333",
                "name": "large",
                "description": "Large",
                "free": false,
                "bindable": false,
                "binding_rotatable": false,
                "plan_updateable": false,
                "maximum_polling_duration": 600,
                "maintenance_info": {"version": "1.2.3", "description": "Restarts."},
                "schemas": {"service_instance": {"create": {"parameters": create}, "update": {"parameters": update}}},
            },
            {
                "id": "22222222-2222-4222-8222-222222222222",
                "name": "small",
                "description": "Small",
                "free": true,
                "bindable": true,
                "binding_rotatable": true,
                "plan_updateable": true,
                "maximum_polling_duration": 600,
                "maintenance_info": {"version": "1.2.3", "description": "Restarts."},
                "metadata": {"bullets": ["one"], "costs": [{"amount": {"usd": 1.5}, "unit": "MONTHLY"}]},
                "schemas": {
                    "service_instance": {"create": {"parameters": create_small}, "update": {"parameters": update_small}},
                    "service_binding": {"create": {"parameters": bind}},
                },
            },
        ],
    }]});
    assert_eq!(catalog.served(&|_, _| true, &Map::new()), expected);
}

#[test]
fn served_leaves_out_what_is_not_offered() {
    let catalog = Catalog::load(&sources(), &KnownMechanisms).unwrap();
    let served = catalog.served(&|_, plan| plan.name == "small", &Map::new());
    assert_eq!(served["services"][0]["plans"].as_array().unwrap().len(), 1);
    // The only plan it could change to is not there.
    assert_eq!(served["services"][0]["plans"][0]["plan_updateable"], json!(false));
    assert_eq!(served["services"][0]["plan_updateable"], json!(false));
    assert_eq!(
        catalog.served(&|_, _| false, &Map::new()),
        json!({"services": []})
    );
}

#[test]
fn what_runs_on_a_server_as_it_stands_holds_no_expression() {
    let settings = "mechanism: statements\nsettings:\n  values: {database: '${plan.nested.a}'}\n  issue:\n    \
                    - sql: DROP ROLE ${plan.size}\n    - SELECT '$${'\n    - '{params.prefix:literal} {params.nope:literal}'\n  list: ${plan.size}\n";
    let sources = changed(
        "catalog/store/binding.yaml",
        "mechanism: redis\nsettings: {size: '${plan.size}'}\n",
        settings,
    );
    let found = problems(&sources);
    for path in ["settings.issue[0].sql", "settings.issue[1]", "settings.list"] {
        let told = format!("catalog/store/binding.yaml: {path}: must hold no `${{…}}`");
        assert!(found.contains(&told), "{path}: {found}");
    }
    assert_eq!(found.matches("must hold no").count(), 3, "{found}");
    assert!(
        found.contains("settings.issue[2]: bind.schema.json of plan large has no parameter `nope`"),
        "{found}"
    );
    assert!(!found.contains("`prefix`"), "{found}");
}
