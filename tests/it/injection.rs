//! Nothing a platform or a developer sends can become more than a value: not a line of a configuration file, not an
//! argument, not a path, not SQL, not an expression.
//!
//! The first part holds the real catalog to it: what its schemas let through is rendered and compared, line by line
//! and argument by argument, with the rendering of the defaults. The second part sends hostile ids and values through
//! a whole broker.

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, SMALL, ids};
use crate::support::chance::Chance;
use crate::support::postgres;
use chandler::domain::catalog::{Catalog, KnownMechanisms, Mechanisms, Offering, Plan, Schema};
use chandler::domain::expr::ExprError;
use chandler::domain::manifest::{self, Desired};
use chandler::domain::secret::Secret;
use chandler::domain::{names, params};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What somebody would try who wants a value to be more than one.
const HOSTILE: &[&str] = &[
    "x\nmaxclients 1",
    "x\r\nload_module evil",
    "\n",
    "x\u{0}y",
    "x\u{2028}y",
    "x\u{85}y",
    "\" save \"1 1",
    "'; DROP DATABASE postgres; --",
    "'; ALTER SYSTEM SET archive_command = 'id'; --",
    "\"; CREATE ROLE x SUPERUSER; --",
    "$$; DROP TABLE x; $$",
    "$(id)",
    "`id`",
    "; id",
    "| id",
    "&& id",
    "${admin.password}",
    "${'a' + 'b'}",
    "$${admin.password}",
    "{{ admin.password }}",
    "%{x}",
    "#{x}",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "--config=/etc/passwd",
    "-c",
    "--",
    "@/etc/passwd",
    "include /etc/passwd",
    "\\",
    "\\\" \\n",
    "x # comment",
    "a, b: c",
    "[x]",
    "{x: y}",
    "!!python/object x",
    "&anchor",
    "*",
    "~* +@all",
    "on nopass ~* +@all",
    ">password",
    "\u{202e}evil",
    "e\u{301}",
    "\u{1f6a2}",
    "%s%n%x",
    "<!ENTITY x SYSTEM \"file:///etc/passwd\">",
];

// ---- the real catalog ----

fn real_catalog() -> Catalog {
    let sources = chandler::app::catalog::sources(&chandler::config::Catalog::default()).unwrap();
    Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn plans() -> Vec<(Arc<Offering>, Arc<Plan>)> {
    let all = real_catalog();
    let plans: Vec<_> = all
        .offerings
        .iter()
        .flat_map(|o| o.plans.iter().map(|p| (o.clone(), p.clone())))
        .collect();
    assert!(plans.len() >= 21, "seven services with three plans each");
    plans
}

fn schemas(plan: &Plan) -> [(&'static str, &Schema); 3] {
    [
        ("create", &plan.schemas.create),
        ("update", &plan.schemas.update),
        ("bind", &plan.schemas.bind),
    ]
}

/// Every schema below `schema`, itself included.
fn all_of<'a>(at: &str, schema: &'a Value, into: &mut Vec<(String, &'a Value)>) {
    into.push((at.to_owned(), schema));
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        all_of(&format!("{at}.{name}"), property, into);
    }
    if schema.get("items").is_some() {
        all_of(&format!("{at}[]"), &schema["items"], into);
    }
}

#[test]
fn every_parameter_of_the_catalog_is_bounded() {
    for (offering, plan) in plans() {
        for (call, schema) in schemas(&plan) {
            let mut all = Vec::new();
            all_of(
                &format!("{}/{} {call}", offering.name, plan.name),
                &schema.json,
                &mut all,
            );
            for (at, part) in all {
                let has = |member: &str| part.get(member).is_some();
                if has("enum") {
                    continue;
                }
                match part["type"].as_str().unwrap_or_default() {
                    "string" => {
                        let pattern = part["pattern"].as_str().unwrap_or_default();
                        assert!(
                            pattern.starts_with('^') && pattern.ends_with('$') && has("maxLength"),
                            "{at}: {part}"
                        );
                    }
                    "array" => assert!(has("maxItems") && has("items"), "{at}: {part}"),
                    "integer" => assert!(has("minimum") && has("maximum"), "{at}: {part}"),
                    "object" => assert_eq!(part["additionalProperties"], false, "{at}"),
                    "boolean" => {}
                    other => panic!("{at}: a parameter of type {other:?} can be anything"),
                }
            }
        }
    }
}

/// Valid values of a text parameter, made from its own form.
fn texts(part: &Value, count: usize) -> Vec<String> {
    let pattern = part["pattern"].as_str().unwrap();
    let bare = pattern.trim_start_matches('^').trim_end_matches('$');
    let strategy = proptest::string::string_regex(bare).unwrap();
    let mut runner = TestRunner::deterministic();
    let most = usize::try_from(part["maxLength"].as_u64().unwrap()).unwrap();
    (0..count)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .filter(|text| text.chars().count() <= most)
        .collect()
}

/// Parameters valid but for what `value` does to them: the defaults, with one property set.
fn with(schema: &Schema, name: &str, value: Value) -> Map<String, Value> {
    let mut all = params::with_defaults(schema, &Map::new());
    all.insert(name.to_owned(), value);
    all
}

fn properties(schema: &Schema) -> Vec<(String, Value)> {
    let properties = schema.json["properties"].as_object();
    properties
        .into_iter()
        .flatten()
        .map(|(name, part)| (name.clone(), part.clone()))
        .collect()
}

fn passes(schema: &Schema, params: &Map<String, Value>) -> bool {
    params::check(schema, params).is_ok()
}

#[test]
fn hostile_values_and_names_do_not_pass_the_schemas() {
    let mut tried = 0;
    for (offering, plan) in plans() {
        for (call, schema) in schemas(&plan) {
            let at = format!("{}/{} {call}", offering.name, plan.name);
            for hostile in HOSTILE {
                assert!(
                    !passes(schema, &with(schema, hostile, json!(1))),
                    "{at}: a parameter named {hostile:?}"
                );
                for (name, _) in properties(schema) {
                    for value in [
                        json!(hostile),
                        json!([hostile]),
                        json!({ *hostile: hostile }),
                        json!({"a": [hostile]}),
                    ] {
                        tried += 1;
                        assert!(
                            !passes(schema, &with(schema, &name, value.clone())),
                            "{at}: {name} = {value}"
                        );
                    }
                }
            }
            for (name, part) in properties(schema) {
                let (part, list) = if part["type"] == "array" {
                    (&part["items"], true)
                } else {
                    (&part, false)
                };
                if part["type"] != "string" || part.get("enum").is_some() {
                    continue;
                }
                // Something right with something added is refused as well, at either end and in the middle.
                for good in texts(part, 20) {
                    for more in [
                        "\n", "\r", "\u{0}", " ", "\t", "\"", "'", "\\", "$", "`", ";", "#", "%", "\u{e9}",
                        "\u{2028}", "${1}", "$(id)", "\nx 1",
                    ] {
                        let middle = format!("{}{more}{}", &good[..good.len() / 2], &good[good.len() / 2..]);
                        for bad in [format!("{good}{more}"), format!("{more}{good}"), middle] {
                            let value = if list { json!([bad]) } else { json!(bad) };
                            assert!(
                                !passes(schema, &with(schema, &name, value)),
                                "{at}: {name} = {bad:?}"
                            );
                        }
                    }
                }
            }
        }
    }
    assert!(tried > 5000, "{tried}");
}

fn render(offering: &Offering, plan: &Plan, iid: &str, params: &Map<String, Value>) -> Desired {
    try_render(offering, plan, iid, params)
        .unwrap_or_else(|e| panic!("{}: {e} with {params:?}", offering.name))
}

fn try_render(
    offering: &Offering,
    plan: &Plan,
    iid: &str,
    params: &Map<String, Value>,
) -> Result<Desired, ExprError> {
    let (mut ports, mut binaries) = (Map::new(), Map::new());
    if let Some(process) = &offering.process {
        for (name, port) in process.ports.iter().zip(20_001..) {
            ports.insert(name.clone(), json!(port));
        }
        for name in process.binaries.keys() {
            binaries.insert(name.clone(), json!(format!("/usr/bin/{name}")));
        }
    }
    let root = format!("/srv/instances/{iid}");
    let place = json!({"ports": ports, "bin": binaries, "dirs": {"root": root, "init": format!("{root}/.init")}, "host": "127.0.0.1"});
    let mechanism = offering.binding.as_ref().map_or("", |b| b.mechanism.as_str());
    let admin = Secret::new(KnownMechanisms.sample_admin(mechanism));
    let generated = Secret::from_pairs(
        offering
            .generated
            .keys()
            .map(|name| (name.clone(), "Generated".to_owned())),
    );
    let scope = manifest::instance_scope(iid, "cf", offering, plan, params, place.as_object().unwrap());
    manifest::render(offering, plan, manifest::LOCAL, &scope, &admin, &generated)
}

/// The number of a line's words and the word it begins with: what it says, without the value.
fn directive(line: &str) -> (String, usize) {
    let words: Vec<&str> = line
        .split(|c: char| c.is_whitespace() || "=:".contains(c))
        .filter(|w| !w.is_empty())
        .collect();
    (words.first().copied().unwrap_or_default().to_owned(), words.len())
}

/// Checks that `now` differs from `before` in values only. `may_reword` is for choices of the catalog's author.
fn same_but_for_values(before: &Desired, now: &Desired, may_reword: bool, what: &str) {
    assert_eq!(before.objects.len(), now.objects.len(), "{what}");
    let (Some(before), Some(now)) = (&before.process, &now.process) else {
        assert_eq!(before.process.is_some(), now.process.is_some(), "{what}");
        return;
    };
    assert_eq!(
        before.command, now.command,
        "{what}: no parameter reaches an argument"
    );
    assert_eq!(
        before.init.as_ref().map(|i| &i.command),
        now.init.as_ref().map(|i| &i.command),
        "{what}"
    );
    assert_eq!(
        before.env, now.env,
        "{what}: no parameter reaches the environment"
    );
    let paths = |files: &[manifest::FileSpec]| files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
    assert_eq!(
        paths(&before.files),
        paths(&now.files),
        "{what}: no parameter reaches a path"
    );
    for (old, new) in before.files.iter().zip(&now.files) {
        let (old_lines, new_lines) = (old.content.split('\n').count(), new.content.split('\n').count());
        assert_eq!(old_lines, new_lines, "{what}: {}\n{}", new.path, new.content);
        assert!(
            !new.content.contains(['\r', '\0', '\u{2028}', '\u{85}']),
            "{what}: {}",
            new.path
        );
        for (old, new) in old.content.split('\n').zip(new.content.split('\n')) {
            let ((old_word, old_count), (new_word, new_count)) = (directive(old), directive(new));
            assert_eq!(old_word, new_word, "{what}: {old:?} became {new:?}");
            assert!(
                may_reword || old_count == new_count,
                "{what}: {old:?} became {new:?}"
            );
            let quotes = |line: &str| line.matches(['"', '\'']).count();
            assert!(
                may_reword || quotes(old) == quotes(new),
                "{what}: {old:?} became {new:?}"
            );
        }
    }
}

/// Values of a property that its schema may let through.
fn candidates(part: &Value, chance: &mut Chance) -> Vec<Value> {
    if let Some(choices) = part["enum"].as_array() {
        return choices.clone();
    }
    match part["type"].as_str().unwrap() {
        "string" => texts(part, 100).into_iter().map(Value::from).collect(),
        "boolean" => vec![json!(true), json!(false)],
        "integer" => {
            let (least, most) = (
                part["minimum"].as_i64().unwrap(),
                part["maximum"].as_i64().unwrap(),
            );
            let mut all = vec![
                json!(least),
                json!(most),
                json!(least as f64),
                json!(most as f64 - 0.5),
                json!(1e300),
                json!(u64::MAX),
                json!(-1),
            ];
            all.extend((0..20).map(|_| {
                json!(
                    least + i64::try_from(chance.next() % u64::try_from(most - least + 1).unwrap()).unwrap()
                )
            }));
            all
        }
        "array" => {
            let items = candidates(&part["items"], chance);
            let most = usize::try_from(part["maxItems"].as_u64().unwrap()).unwrap();
            let mut all: Vec<Value> = items.iter().take(30).map(|item| json!([item])).collect();
            all.extend([json!([]), json!(items.iter().take(most).collect::<Vec<_>>())]);
            all
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_passes_the_schemas_changes_values_and_nothing_else() {
    let mut chance = Chance::for_test("injection", 7);
    let mut rendered = 0;
    for (offering, plan) in plans() {
        let create = &plan.schemas.create;
        let iid = names::iid("cf", "i");
        let defaults = params::with_defaults(create, &Map::new());
        let before = render(&offering, &plan, &iid, &defaults);
        for (name, part) in properties(create) {
            for value in candidates(&part, &mut chance) {
                let what = format!("{}/{} {name} = {value}", offering.name, plan.name);
                let params = with(create, &name, value.clone());
                if !passes(create, &params) {
                    continue;
                }
                rendered += 1;
                same_but_for_values(
                    &before,
                    &render(&offering, &plan, &iid, &params),
                    part.get("enum").is_some(),
                    &what,
                );
                let Some(binding) = &offering.binding else {
                    continue;
                };
                let scope = manifest::instance_scope(&iid, "cf", &offering, &plan, &params, &Map::new());
                let settings = Value::Object(manifest::settings(binding, &plan, &scope).unwrap());
                plain(&settings, "_-.", &what);
                assert!(!settings.to_string().contains(".."), "{what}: {settings}");
            }
        }
        for (name, part) in properties(&plan.schemas.bind) {
            for value in candidates(&part, &mut chance) {
                if passes(
                    &plan.schemas.bind,
                    &with(&plan.schemas.bind, &name, value.clone()),
                ) {
                    rendered += 1;
                    plain(
                        &value,
                        "_-.:/*>",
                        &format!("{}/{} bind {name}", offering.name, plan.name),
                    );
                }
            }
        }
    }
    assert!(rendered > 1000, "only {rendered} values passed");
}

/// Every text in `value` consists of ASCII letters, digits and `also`.
fn plain(value: &Value, also: &str, what: &str) {
    match value {
        Value::String(text) => {
            let good = text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || also.contains(c));
            assert!(good && !text.starts_with('-'), "{what}: {text:?}");
        }
        Value::Array(items) => items.iter().for_each(|item| plain(item, also, what)),
        Value::Object(members) => members.values().for_each(|member| plain(member, also, what)),
        _ => {}
    }
}

#[test]
fn names_derived_from_hostile_ids_are_plain() {
    let mut seen = std::collections::BTreeSet::new();
    for a in HOSTILE.iter().chain(&["", "a", "A"]) {
        for name in [
            names::iid("cf", a),
            names::iid(a, "x"),
            names::bid("cf", a, "b"),
            names::bid("cf", "i", a),
        ] {
            assert!(
                name.len() == names::LEN
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b)),
                "{name}"
            );
            assert!(seen.insert(name), "{a:?}: two ids, one name");
        }
    }
}

/// A parameter that is free text, in a catalog somebody else might write: it is a value all the same.
#[test]
fn an_expression_in_a_value_is_not_evaluated() {
    let mut sources = catalog::sources();
    let schema = r#"{"$schema": "http://json-schema.org/draft-04/schema#", "type": "object", "additionalProperties": false,
        "properties": {"note": {"type": "string", "default": "none", "maxLength": 200}}}"#;
    sources.insert("catalog/alpha/create.schema.json".into(), schema.into());
    let process =
        sources["catalog/alpha/process.yaml"].replace("size ${params.size}", "note ${json(params.note)}");
    sources.insert("catalog/alpha/process.yaml".into(), process);
    sources.insert("catalog/alpha/update.schema.json".into(), schema.into());
    let catalog = Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
    let (offering, plan) = catalog.plan(ALPHA, SMALL).unwrap();
    let before = render(
        offering,
        plan,
        "iid",
        &with(&plan.schemas.create, "note", json!("none")),
    );
    for hostile in HOSTILE {
        let params = with(&plan.schemas.create, "note", json!(hostile));
        assert!(passes(&plan.schemas.create, &params));
        let now = match try_render(offering, plan, "iid", &params) {
            Ok(now) => now,
            // The second line of defence: what could end a line is refused wherever it stands inside a text.
            Err(_) if hostile.contains(['\u{2028}', '\u{85}']) => continue,
            Err(error) => panic!("{hostile:?}: {error}"),
        };
        let (old, new) = (
            &before.process.as_ref().unwrap().files[0].content,
            now.process.unwrap().files[0].content.clone(),
        );
        assert_eq!(
            new,
            old.replace("\"none\"", &json!(hostile).to_string()),
            "{hostile:?}"
        );
    }
}

// ---- a whole broker ----

const CANARY: &str = "CANARY";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn platform_ids_stay_out_of_everything_that_is_made_on_sqlite() {
    platform_ids(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn platform_ids_stay_out_of_everything_that_is_made_on_postgresql() {
    platform_ids(Some(postgres::fresh_url().await)).await;
}

async fn platform_ids(database: Option<String>) {
    let broker = TestBroker::with(Choices {
        database,
        ..Choices::default()
    })
    .await;
    let hostile: Vec<String> = HOSTILE
        .iter()
        .filter(|h| !h.contains('\0'))
        .map(|h| format!("{CANARY}{h}"))
        .collect();
    for (i, id) in hostile.iter().enumerate() {
        let other = &hostile[(i + 1) % hostile.len()];
        let (id, other_id) = (
            utf8_percent_encode(id, NON_ALPHANUMERIC),
            utf8_percent_encode(other, NON_ALPHANUMERIC),
        );
        let (instance, binding) = (
            format!("/v2/service_instances/{id}"),
            format!("/v2/service_instances/{id}/service_bindings/{other_id}"),
        );
        let body = json!({
            "service_id": ALPHA, "plan_id": SMALL, "organization_guid": other, "space_guid": other,
            "context": {"platform": other, "instance_name": other, "evil": {other: other}}, "parameters": {"size": 4},
        });
        let made = broker
            .put(&format!("{instance}?accepts_incomplete=true"), &body)
            .await
            .expect(202);
        broker.run_until_idle().await;
        let bind = json!({
            "service_id": ALPHA, "plan_id": SMALL, "app_guid": other, "context": {"platform": other},
            "bind_resource": {"app_guid": other, "route": other, "evil": other}, "parameters": {"role": "readonly"},
        });
        let bound = broker.put(&binding, &bind).await.expect(201);
        assert!(!bound.text.contains(CANARY), "{}", bound.text);
        assert_eq!(broker.put(&binding, &bind).await.expect(200).body, bound.body);
        broker.get(&binding).await.expect(200);
        // A token that is no token does not lead to anybody else's operation, nor to an error (L-13).
        let last = broker
            .get(&format!("{instance}/last_operation?operation={other_id}"))
            .await
            .expect(200);
        assert_eq!(last.body["state"], "succeeded", "{}", made.text);
        for ids in [
            format!("service_id={other_id}&plan_id={SMALL}"),
            format!("service_id={ALPHA}&plan_id={other_id}"),
        ] {
            broker
                .delete(&format!("{binding}?{ids}"))
                .await
                .expect_error(400, "BadRequest");
        }
        broker.delete(&format!("{binding}?{}", ids())).await.expect(200);
        broker
            .delete(&format!("{instance}?accepts_incomplete=true&{}", ids()))
            .await
            .expect(202);
        broker.run_until_idle().await;
    }
    {
        let told = broker.world.told.lock().unwrap();
        assert!(
            told.len() >= 2 * hostile.len(),
            "the world was told something: {}",
            told.len()
        );
        for text in told.iter() {
            assert!(!text.contains(CANARY), "{text}");
        }
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_repeat_little_of_what_was_sent() {
    let broker = TestBroker::start().await;
    broker.provisioned("one").await;
    for hostile in HOSTILE {
        let mut create = catalog::provision_body();
        create["parameters"] = json!({"size": hostile, *hostile: 1, "colour": hostile.repeat(200)});
        let refused = broker
            .put("/v2/service_instances/x?accepts_incomplete=true", &create)
            .await
            .expect_error(400, "BadRequest");
        let text = refused.body["description"].as_str().unwrap();
        assert!(
            text.len() < 2000 && !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
            "{text:?}"
        );
        let bind = json!({"service_id": ALPHA, "plan_id": SMALL, "parameters": {"role": hostile}});
        let refused = broker
            .put("/v2/service_instances/one/service_bindings/b", &bind)
            .await
            .expect_error(400, "BadRequest");
        let text = refused.body["description"].as_str().unwrap();
        assert!(
            text.len() < 2000 && !text.chars().any(|c| c.is_control() || c == '\u{202e}'),
            "{text:?}"
        );
    }
    broker.deleted("one").await;
    broker.end().await;
}
