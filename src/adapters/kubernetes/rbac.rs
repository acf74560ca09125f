//! The rights the broker needs in a cluster, no more, written from the same tables that say what it makes.
//!
//! What must stay true:
//! - no wildcard, no exec, no nodes, no listing of Secrets: those are known by name, from the inventory;
//! - a right can only say "in every namespace"; the admission policy beside it says "only in the broker's own", and
//!   keeps the broker from making another namespace its own or one of its own less strict.

use super::{KubernetesSettings, Transport, names, shape};
use crate::domain::catalog::{Offering, plural};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io/v1";
/// For what the broker makes and watches.
const KEEP: &[&str] = &["create", "delete", "get", "list", "patch", "watch"];
/// For Secrets.
const KEEP_UNSEEN: &[&str] = &["create", "delete", "get", "patch"];
/// For Secrets in applications' namespaces: the broker never reads what is there.
const PUT: &[&str] = &["create", "delete", "patch"];
/// For what it only looks at.
const LOOK: &[&str] = &["get", "list", "watch"];
/// Opening a tunnel: its first request is a GET, and newer servers ask for both rights.
const TUNNEL: &[&str] = &["create", "get"];

/// What gives the broker's service account (namespace, name) its rights, and bounds them; in the order to apply.
pub fn manifests(
    settings: &KubernetesSettings,
    offerings: &[Arc<Offering>],
    service_account: (&str, &str),
) -> Vec<Value> {
    let (namespace, account) = service_account;
    // Both parts, and unambiguous, because a namespace holds no dot: several brokers may share a cluster.
    let name = format!("chandler.{namespace}.{account}");
    let subject = json!([{"kind": "ServiceAccount", "namespace": namespace, "name": account}]);
    let mut rights = Rights::default();
    for (api_version, resource) in made(settings, offerings) {
        let verbs = if resource == "secrets" { KEEP_UNSEEN } else { KEEP };
        rights.give(shape::group_of(&api_version), &resource, verbs);
    }
    rights.give("", "pods", LOOK);
    rights.give("", "events", LOOK);
    if settings.transport != Transport::Direct {
        rights.give("", "pods/portforward", TUNNEL);
    }
    let mut everywhere = Rights::default();
    everywhere.give("storage.k8s.io", "storageclasses", &["get"]);
    let mut all = Vec::new();
    match &settings.shared_namespace {
        None => {
            rights.0.append(&mut everywhere.0);
            all.extend(role("", &name, &rights.rules(), &subject));
        }
        Some(shared) => {
            let mut rules = rights.rules();
            rules.push(
                json!({"apiGroups": [""], "resources": ["namespaces"], "resourceNames": [shared], "verbs": ["get"]}),
            );
            let mut looks = everywhere.rules();
            if !settings.secret_namespaces.is_empty() {
                // That a namespace is gone, and with it the rights in it, is no obstacle to an unbind.
                looks.push(
                    json!({"apiGroups": [""], "resources": ["namespaces"], "resourceNames": settings.secret_namespaces, "verbs": ["get"]}),
                );
            }
            all.extend(role("", &name, &looks, &subject));
            all.extend(role(shared, &name, &rules, &subject));
        }
    }
    for theirs in &settings.secret_namespaces {
        let mut put = Rights::default();
        put.give("", "secrets", PUT);
        all.extend(role(theirs, &format!("{name}.bindings"), &put.rules(), &subject));
    }
    all.push(policy(settings, &name, namespace, account));
    all.push(json!({
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": metadata("", &name),
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }));
    all
}

/// Manifests as one YAML text, a document each.
pub fn yaml(manifests: &[Value]) -> String {
    let mut text = String::new();
    for manifest in manifests {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        // Maps, lists and texts cannot fail to be written.
        text.push_str(&serde_saphyr::to_string(manifest).unwrap_or_default());
    }
    text
}

/// Group and version, and plural, of every kind the broker makes objects of.
pub(super) fn made(settings: &KubernetesSettings, offerings: &[Arc<Offering>]) -> BTreeSet<(String, String)> {
    let kind = |version: &str, plural: &str| (version.to_owned(), plural.to_owned());
    let mut made = BTreeSet::from([
        kind("v1", "persistentvolumeclaims"),
        kind("v1", "serviceaccounts"),
        kind("networking.k8s.io/v1", "networkpolicies"),
    ]);
    if settings.shared_namespace.is_none() {
        made.extend(["namespaces", "resourcequotas", "limitranges"].map(|plural| kind("v1", plural)));
    }
    for offering in offerings {
        for object in &offering.objects {
            let plural = plural(&offering.resources, &object.api_version, &object.kind);
            made.extend(plural.map(|plural| kind(&object.api_version, plural)));
        }
    }
    made
}

/// Rules by group and verbs, so that each stands once and always in the same order.
#[derive(Default)]
struct Rights(BTreeMap<(String, Vec<&'static str>), BTreeSet<String>>);

impl Rights {
    fn give(&mut self, group: &str, resource: &str, verbs: &[&'static str]) {
        self.0
            .entry((group.to_owned(), verbs.to_vec()))
            .or_default()
            .insert(resource.to_owned());
    }

    fn rules(self) -> Vec<Value> {
        self.0
            .into_iter()
            .map(|((group, verbs), resources)| json!({"apiGroups": [group], "resources": resources, "verbs": verbs}))
            .collect()
    }
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({"name": name, "labels": {"app.kubernetes.io/name": "chandler"}});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

/// A role and who has it: of a namespace, or of the whole cluster when that is empty.
fn role(namespace: &str, name: &str, rules: &[Value], subject: &Value) -> [Value; 2] {
    let kind = if namespace.is_empty() {
        "ClusterRole"
    } else {
        "Role"
    };
    let version = format!("{RBAC}/v1");
    [
        json!({"apiVersion": version, "kind": kind, "metadata": metadata(namespace, name), "rules": rules}),
        json!({
            "apiVersion": version,
            "kind": format!("{kind}Binding"),
            "metadata": metadata(namespace, name),
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
            "subjects": subject,
        }),
    ]
}

/// Denies the broker every write outside its own namespaces.
fn policy(settings: &KubernetesSettings, name: &str, namespace: &str, account: &str) -> Value {
    let (key, value) = names::MANAGED_BY;
    let labelled = |object: &str| {
        format!(
            "has({object}.metadata.labels) && '{key}' in {object}.metadata.labels && {object}.metadata.labels['{key}'] == '{value}'"
        )
    };
    let member = match &settings.shared_namespace {
        None => labelled("namespaceObject"),
        Some(shared) => format!(
            "namespaceObject.metadata.name == '{shared}' && {}",
            labelled("namespaceObject")
        ),
    };
    // A Namespace is in no namespace: the server gives no namespaceObject for it.
    let mut variables = vec![variable(
        "isNamespace",
        "request.kind.group == '' && request.kind.kind == 'Namespace'",
    )];
    let mut bindings = String::new();
    if !settings.secret_namespaces.is_empty() {
        variables.push(variable("isBinding", &binding_secret(settings)));
        bindings.push_str(" || variables.isBinding");
    }
    let mut validations = vec![json!({
        "expression": format!("variables.isNamespace || (namespaceObject != null && {member}){bindings}"),
        "message": format!("The broker writes only into namespaces of its own, labelled {key}={value}."),
        "reason": "Forbidden",
    })];
    let strict = "pod-security.kubernetes.io/enforce";
    if settings.shared_namespace.is_some() {
        validations.push(json!({
            "expression": "variables.isNamespace ? false : true",
            "message": "The broker neither makes nor changes nor removes namespaces.",
            "reason": "Forbidden",
        }));
    } else {
        variables.push(variable(
            "wasOurs",
            &format!("oldObject == null || ({})", labelled("oldObject")),
        ));
        variables.push(variable(
            "isOurs",
            &format!("object == null || ({})", labelled("object")),
        ));
        variables.push(variable(
            "name",
            "object == null ? oldObject.metadata.name : object.metadata.name",
        ));
        validations.push(json!({
            "expression": "variables.isNamespace ? variables.wasOurs && variables.isOurs && variables.name.matches('^osb-[a-z2-7]{26}$') : true",
            "message": format!("The broker makes, changes and removes only namespaces that are named osb-… and labelled {key}={value}, and that label stays."),
            "reason": "Forbidden",
        }));
        validations.push(json!({
            "expression": format!("variables.isNamespace && object != null ? has(object.metadata.labels) && '{strict}' in object.metadata.labels && object.metadata.labels['{strict}'] == 'restricted' : true"),
            "message": format!("Namespaces of the broker are labelled {strict}=restricted, and stay so."),
            "reason": "Forbidden",
        }));
    }
    json!({
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata("", name),
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [{
                    "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"],
                    "operations": ["CREATE", "UPDATE", "DELETE", "CONNECT"],
                }],
                // Asking what one may do writes nothing.
                "excludeResourceRules": [{
                    "apiGroups": ["authorization.k8s.io"], "apiVersions": ["*"], "operations": ["CREATE"],
                    "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                }],
            },
            "matchConditions": [{
                "name": "broker",
                "expression": format!("request.userInfo.username == 'system:serviceaccount:{namespace}:{account}'"),
            }],
            "variables": variables,
            "validations": validations,
        },
    })
}

/// A Secret that the broker makes, keeps or removes for a binding in an application's namespace; the label that says which
/// binding it is of never changes.
fn binding_secret(settings: &KubernetesSettings) -> String {
    let places: Vec<String> = settings
        .secret_namespaces
        .iter()
        .map(|namespace| format!("'{namespace}'"))
        .collect();
    let binding = names::BINDING;
    let labelled = |object: &str| {
        format!(
            "({object} == null || (has({object}.metadata.labels) && '{binding}' in {object}.metadata.labels))"
        )
    };
    format!(
        "request.kind.group == '' && request.kind.kind == 'Secret' && request.namespace in [{}] && {} && {} && \
         (object == null || oldObject == null || object.metadata.labels['{binding}'] == oldObject.metadata.labels['{binding}'])",
        places.join(", "),
        labelled("object"),
        labelled("oldObject"),
    )
}

fn variable(name: &str, expression: &str) -> Value {
    Value::Object(Map::from_iter([
        ("name".to_owned(), name.into()),
        ("expression".to_owned(), expression.into()),
    ]))
}

#[cfg(test)]
mod tests;
