#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::domain::catalog::{Catalog, KnownMechanisms, Sources};
use crate::domain::expr::{Scope, Template};

fn offerings() -> Vec<Arc<Offering>> {
    let objects = "apiVersion: v1\nkind: Secret\nmetadata: {name: \"${name}-admin\"}\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: \"${name}\"}\n---\napiVersion: postgresql.cnpg.io/v1\nkind: Cluster\nwhen: \"${false}\"\nmetadata: {name: \"${name}\"}\n";
    let sources = Sources::from_iter([
        (
            "catalog/s/offering.yaml".to_owned(),
            "id: 11111111-1111-4111-8111-111111111111\nname: s\ndescription: S\nruns_on: [kubernetes]\nresources:\n- {api_version: postgresql.cnpg.io/v1, kind: Cluster, plural: clusters}\n- {api_version: example.com/v1, kind: Unused, plural: unuseds}\n".to_owned(),
        ),
        (
            "plans/s/p.yaml".to_owned(),
            "id: 22222222-2222-4222-8222-222222222222\nname: p\ndescription: P\n".to_owned(),
        ),
        ("catalog/s/objects/all.yaml".to_owned(), objects.to_owned()),
    ]);
    Catalog::load(&sources, &KnownMechanisms).unwrap().offerings
}

fn shared() -> KubernetesSettings {
    KubernetesSettings {
        shared_namespace: Some("services".into()),
        transport: Transport::Direct,
        ..KubernetesSettings::default()
    }
}

#[test]
fn the_rights_of_a_broker_that_makes_namespaces() {
    let all = manifests(&KubernetesSettings::default(), &offerings(), ("osb", "broker"));
    insta::assert_snapshot!(yaml(&all));
}

#[test]
fn the_rights_of_a_broker_in_a_shared_namespace() {
    insta::assert_snapshot!(yaml(&manifests(&shared(), &offerings(), ("osb", "broker"))));
}

#[test]
fn the_rights_to_put_secrets_into_applications_namespaces() {
    let settings = KubernetesSettings {
        secret_namespaces: ["shop".to_owned(), "blog".to_owned()].into(),
        ..shared()
    };
    let all = manifests(&settings, &offerings(), ("osb", "broker"));
    let text = yaml(&all);
    insta::assert_snapshot!(text);
}

#[test]
fn what_is_printed_reads_back_as_what_was_meant() {
    let all = manifests(&KubernetesSettings::default(), &offerings(), ("osb", "broker"));
    let read: Vec<Value> = serde_saphyr::from_multiple(&yaml(&all)).unwrap();
    assert_eq!(read, all);
}

#[test]
fn no_right_is_wider_than_its_use() {
    for settings in [KubernetesSettings::default(), shared()] {
        let all = manifests(&settings, &offerings(), ("osb", "broker"));
        let rules: Vec<&Value> = all.iter().flat_map(|m| shape::list(m, "/rules")).collect();
        let mut tunnels = 0;
        for rule in rules {
            let has = |member: &str, word: &str| shape::list(rule, member).iter().any(|v| v == word);
            for (member, word) in [
                ("/apiGroups", "*"),
                ("/resources", "*"),
                ("/verbs", "*"),
                ("/resources", "nodes"),
                ("/resources", "pods/exec"),
                ("/resources", "unuseds"),
                ("/resources", "deployments"),
            ] {
                assert!(!has(member, word), "{rule}");
            }
            if has("/resources", "secrets") {
                assert!(!has("/verbs", "list") && !has("/verbs", "watch"), "{rule}");
            }
            if has("/resources", "pods") || has("/resources", "events") {
                assert!(!has("/verbs", "create") && !has("/verbs", "delete"), "{rule}");
            }
            tunnels += usize::from(has("/resources", "pods/portforward"));
            let anywhere = settings.shared_namespace.is_none();
            assert!(anywhere || !has("/resources", "namespaces") || rule["verbs"] == json!(["get"]));
        }
        assert_eq!(tunnels, usize::from(settings.transport != Transport::Direct));
    }
}

/// What the policy says of a request, evaluated as the API server does.
fn allows(
    settings: &KubernetesSettings,
    request: &Value,
    object: &Value,
    old: &Value,
    namespace: &Value,
) -> bool {
    let policy = policy(settings, "n", "osb", "broker");
    let filled = |rule: &Value, scope: &Scope| {
        let text = format!("${{{}}}", rule["expression"].as_str().unwrap());
        Template::compile(Value::String(text)).unwrap().fill(scope)
    };
    let mut scope = Scope::from_iter([
        ("request".to_owned(), request.clone()),
        ("object".to_owned(), object.clone()),
        ("oldObject".to_owned(), old.clone()),
        ("namespaceObject".to_owned(), namespace.clone()),
    ]);
    // The server evaluates a variable when it is used: one that does not fit the object fails only there.
    let mut variables = Map::new();
    for variable in policy["spec"]["variables"].as_array().unwrap() {
        if let Ok(value) = filled(variable, &scope) {
            variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
    }
    scope.insert("variables".into(), Value::Object(variables));
    policy["spec"]["validations"]
        .as_array()
        .unwrap()
        .iter()
        .all(|rule| filled(rule, &scope) == Ok(Value::Bool(true)))
}

const HOME: &str = "osb-abcdefghijklmnopqrstuvwxyz";

fn named(name: &str, ours: bool, strict: bool) -> Value {
    let mut labels = Map::new();
    if ours {
        labels.insert(names::MANAGED_BY.0.into(), names::MANAGED_BY.1.into());
    }
    if strict {
        labels.insert("pod-security.kubernetes.io/enforce".into(), "restricted".into());
    }
    let mut metadata = json!({"name": name});
    if !labels.is_empty() {
        metadata["labels"] = Value::Object(labels);
    }
    json!({"metadata": metadata})
}

#[test]
fn writes_are_allowed_only_in_namespaces_of_the_broker() {
    let request = json!({"kind": {"group": "apps", "kind": "StatefulSet"}});
    let object = json!({"metadata": {"name": "db"}});
    let plain = KubernetesSettings::default();
    let inside = |settings: &KubernetesSettings, namespace: &Value| {
        allows(settings, &request, &object, &Value::Null, namespace)
    };
    assert!(inside(&plain, &named(HOME, true, true)));
    assert!(!inside(&plain, &named("kube-system", false, false)));
    let mut foreign = named("kube-system", true, true);
    foreign["metadata"]["labels"][names::MANAGED_BY.0] = json!("helm");
    assert!(!inside(&plain, &foreign));
    // What is in no namespace at all.
    assert!(!inside(&plain, &Value::Null));
    assert!(inside(&shared(), &named("services", true, false)));
    assert!(!inside(&shared(), &named("services", false, false)));
    assert!(!inside(&shared(), &named("other", true, false)));
    // A tunnel has no name of its own.
    let tunnel = json!({"kind": {"group": "", "kind": "PodPortForwardOptions"}});
    assert!(allows(
        &plain,
        &tunnel,
        &json!({}),
        &Value::Null,
        &named(HOME, true, true)
    ));
    assert!(!allows(
        &plain,
        &tunnel,
        &json!({}),
        &Value::Null,
        &named("osb", false, true)
    ));
}

#[test]
fn namespaces_are_made_and_kept_only_with_label_name_and_strictness() {
    let request = json!({"kind": {"group": "", "kind": "Namespace"}});
    let plain = KubernetesSettings::default();
    let none = Value::Null;
    let good = named(HOME, true, true);
    for (object, old, allowed) in [
        (&good, &none, true),
        (&good, &good, true),
        (&none, &good, true),
        (&named("osb-x", true, true), &none, false),
        (&named("kube-system", true, true), &none, false),
        (&named(HOME, false, true), &none, false),
        (&named(HOME, true, false), &none, false),
        // Taking the label off, putting it on, removing what does not have it, loosening.
        (&named(HOME, false, true), &good, false),
        (&good, &named(HOME, false, true), false),
        (&none, &named(HOME, false, true), false),
        (&none, &named("kube-system", true, true), false),
        (&named(HOME, true, false), &good, false),
    ] {
        assert_eq!(
            allows(&plain, &request, object, old, &none),
            allowed,
            "{object} {old}"
        );
        assert!(!allows(&shared(), &request, object, old, &none), "{object} {old}");
    }
}
