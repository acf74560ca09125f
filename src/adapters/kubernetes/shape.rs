//! Where in an object things stand: its names, its pods, its volumes.
//!
//! The only place that knows the outer form of kinds, those of the two operators the catalog uses among them, so that
//! dressing, quotas, policies and the inventory agree on it.

use serde_json::Value;

/// The group of CloudNativePG.
const CNPG: &str = "postgresql.cnpg.io";
/// The group of cass-operator.
const CASS: &str = "cassandra.datastax.com";

/// The text at a pointer; empty when there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The kind.
pub(super) fn kind(object: &Value) -> &str {
    text(object, "/kind")
}

/// The name.
pub(super) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The group of an `apiVersion`; empty for the core group.
pub(super) fn group(object: &Value) -> &str {
    group_of(text(object, "/apiVersion"))
}

/// The group of an `apiVersion` given as text.
pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The list at a pointer; empty when there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The whole number at a pointer.
pub(super) fn number(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// How an operator's custom resource says what we give to every object.
pub(super) struct Operator {
    /// Where the labels of everything it makes stand.
    pub labels: &'static str,
    /// Specifications of volume claims: where each stands, and the member that names the storage class.
    pub classes: &'static [(&'static str, &'static str)],
    /// Where the priority class of its pods stands; `None` = only in a pod template.
    pub priority: Option<&'static str>,
    /// How many pods it makes.
    pub members: &'static str,
    /// What each pod asks for.
    pub resources: &'static str,
    /// Sizes of the volumes of each pod.
    pub volumes: &'static [&'static str],
}

/// What is known of an operator's custom resource; `None` for every other object.
pub(super) fn operator(object: &Value) -> Option<Operator> {
    match (group(object), kind(object)) {
        (CNPG, "Cluster") => Some(Operator {
            labels: "/spec/inheritedMetadata/labels",
            classes: &[
                ("/spec/storage", "storageClass"),
                ("/spec/walStorage", "storageClass"),
            ],
            priority: Some("priorityClassName"),
            members: "/spec/instances",
            resources: "/spec/resources",
            volumes: &["/spec/storage/size", "/spec/walStorage/size"],
        }),
        (CASS, "CassandraDatacenter") => Some(Operator {
            labels: "/spec/additionalLabels",
            classes: &[(
                "/spec/storageConfig/cassandraDataVolumeClaimSpec",
                "storageClassName",
            )],
            priority: None,
            members: "/spec/size",
            resources: "/spec/resources",
            volumes: &["/spec/storageConfig/cassandraDataVolumeClaimSpec/resources/requests/storage"],
        }),
        _ => None,
    }
}

/// Whether the object is one whose form Kubernetes itself defines.
pub(super) fn is_usual(object: &Value) -> bool {
    let group = group(object);
    matches!(group, "" | "apps" | "batch" | "autoscaling" | "policy") || group.ends_with(".k8s.io")
}

/// Whether an object is known to make no pods and no volumes: it only tells others something.
pub(super) fn only_tells(object: &Value) -> bool {
    const GROUPS: [&str; 4] = [
        "cert-manager.io",
        "monitoring.coreos.com",
        "networking.istio.io",
        "security.istio.io",
    ];
    GROUPS.contains(&group(object))
}

/// Whether an object's kind keeps no state that could be waited for.
pub(super) fn keeps_no_state(object: &Value) -> bool {
    only_tells(object) && group(object) != "cert-manager.io"
}

/// Where the pod template stands, for kinds that make pods by one.
pub(super) fn template_path(object: &Value) -> Option<&'static str> {
    match (group(object), kind(object)) {
        ("apps", "StatefulSet" | "Deployment") | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        (CASS, "CassandraDatacenter") => Some("/spec/podTemplateSpec"),
        _ => None,
    }
}

/// The pod template, for kinds that make pods by one.
pub(super) fn template(object: &Value) -> Option<&Value> {
    object.pointer(template_path(object)?)
}

/// How many pods an object of a usual kind runs at once; a CronJob's runs do not overlap.
pub(super) fn pods_at_once(object: &Value) -> i64 {
    match kind(object) {
        "Job" => number(object, "/spec/parallelism").unwrap_or(1),
        "CronJob" => number(object, "/spec/jobTemplate/spec/parallelism").unwrap_or(1),
        _ => number(object, "/spec/replicas").unwrap_or(1),
    }
}

/// Whether all labels of a selector are among `labels`; an empty selector selects nothing.
pub(super) fn selects(selector: Option<&Value>, labels: Option<&Value>) -> bool {
    let Some(selector) = selector.and_then(Value::as_object) else {
        return false;
    };
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The names an annotation lists, separated by commas.
pub(super) fn listed<'a>(object: &'a Value, annotation: &str) -> impl Iterator<Item = &'a str> {
    object
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(annotation))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// The ports of a Service that an annotation names, in its order.
///
/// A Service with one port need not name it: that port then has the first name the annotation gives.
pub(super) fn annotated_ports<'a>(service: &'a Value, annotation: &str) -> Vec<(&'a str, &'a Value)> {
    let ports = list(service, "/spec/ports");
    listed(service, annotation)
        .enumerate()
        .filter_map(|(i, wanted)| {
            let named = ports.iter().find(|port| text(port, "/name") == wanted);
            let only = match ports {
                [one] if i == 0 && one.get("name").is_none() => Some(one),
                _ => None,
            };
            Some((wanted, named.or(only)?))
        })
        .collect()
}
