//! What surrounds an instance: its namespace, what it may use, who may talk to it.
//!
//! What must stay true:
//! - nothing reaches an instance or leaves it unless a policy here or in the catalog says so;
//! - until [`consumers`] is applied only the broker and the instance itself get in;
//! - in a shared namespace every name holds the iid, and every policy selects by the instance's label.

use super::{KubernetesSettings, dress, names, quota, shape};
use crate::ports::InstanceRef;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The label every namespace has from the cluster itself.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Where the cluster's own DNS servers listen, which a policy sees behind their service: 53, 5353 in some distributions,
/// and elsewhere whatever their pods call by the usual names.
const DNS_PORTS: [u16; 2] = [53, 5353];
const DNS_NAMES: [(&str, &str); 2] = [("UDP", "dns"), ("TCP", "dns-tcp")];
/// The usual address of a DNS cache that each node runs.
const NODE_DNS: &str = "169.254.20.10/32";

/// What surrounds an instance, in order, to be applied before its own objects.
pub(super) fn surroundings(
    settings: &KubernetesSettings,
    instance: &InstanceRef,
    objects: &[Value],
) -> Vec<Value> {
    let base = dress::base_name(settings, instance);
    let mut all = Vec::new();
    if settings.shared_namespace.is_none() {
        all.push(namespace(settings, instance));
        all.push(object(
            "v1",
            "ResourceQuota",
            &base,
            "spec",
            json!({"hard": quota::hard(objects)}),
        ));
        all.push(object(
            "v1",
            "LimitRange",
            &base,
            "spec",
            json!({"limits": quota::limits(objects)}),
        ));
    }
    let account = objects
        .iter()
        .any(|object| shape::kind(object) == "ServiceAccount" && shape::name(object) == base);
    if !account {
        let off = Value::Bool(false);
        all.push(object(
            "v1",
            "ServiceAccount",
            &base,
            "automountServiceAccountToken",
            off,
        ));
    }
    let pods = pods(settings, instance);
    let peer = json!([{"podSelector": pods}]);
    let numbers = DNS_PORTS
        .iter()
        .flat_map(|port| ["UDP", "TCP"].map(|protocol| json!({"protocol": protocol, "port": port})));
    let named = DNS_NAMES.map(|(protocol, name)| json!({"protocol": protocol, "port": name}));
    let dns: Vec<Value> = numbers.chain(named).collect();
    let servers = json!([{"namespaceSelector": {}}, {"ipBlock": {"cidr": NODE_DNS}}]);
    let policy = |what: &str, mut spec: Value| {
        spec["podSelector"] = pods.clone();
        let name = format!("{base}-{what}");
        object("networking.k8s.io/v1", "NetworkPolicy", &name, "spec", spec)
    };
    all.push(policy("deny", json!({"policyTypes": ["Ingress", "Egress"]})));
    all.push(policy(
        "dns",
        json!({"policyTypes": ["Egress"], "egress": [{"to": servers, "ports": dns}]}),
    ));
    all.push(policy(
        "peers",
        json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": peer}], "egress": [{"to": peer}]}),
    ));
    let mut admit = |what: &str, namespace: &str, annotation: &str| {
        let ports = ports(objects, annotation, |_| true);
        if !ports.is_empty() {
            let from = json!([{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: namespace}}}]);
            let rule = json!([{"from": from, "ports": ports}]);
            all.push(policy(what, json!({"policyTypes": ["Ingress"], "ingress": rule})));
        }
    };
    admit("broker", &settings.broker_namespace, names::ENDPOINTS);
    if let Some(namespace) = &settings.monitoring_namespace {
        admit("metrics", namespace, names::METRICS);
    }
    all
}

/// The policy that lets applications in; none when nobody may or there is no endpoint.
///
/// Endpoints behind a load balancer are let in from everywhere: which sources may use it is for the load balancer
/// (`loadBalancerSourceRanges`), because what arrives carries the address of a node.
pub(super) fn consumers(
    settings: &KubernetesSettings,
    instance: &InstanceRef,
    desired_consumers: &[String],
    objects: &[Value],
) -> Option<Value> {
    let mut from = Vec::new();
    if !settings.consumer_labels.is_empty() {
        from.push(json!({"namespaceSelector": {"matchLabels": settings.consumer_labels}}));
    }
    if !desired_consumers.is_empty() {
        from.push(json!({"namespaceSelector": {"matchExpressions": [
            {"key": NAMESPACE_NAME, "operator": "In", "values": desired_consumers},
        ]}}));
    }
    let all = ports(objects, names::ENDPOINTS, |_| true);
    let balanced = ports(objects, names::ENDPOINTS, |service| {
        shape::text(service, "/spec/type") == "LoadBalancer"
    });
    let mut ingress = Vec::new();
    if !from.is_empty() && !all.is_empty() {
        ingress.push(json!({"from": from, "ports": all}));
    }
    if !balanced.is_empty() {
        let everywhere = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]);
        ingress.push(json!({"from": everywhere, "ports": balanced}));
    }
    if ingress.is_empty() {
        return None;
    }
    let spec =
        json!({"podSelector": pods(settings, instance), "policyTypes": ["Ingress"], "ingress": ingress});
    let name = format!("{}-consumers", dress::base_name(settings, instance));
    Some(object(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        &name,
        "spec",
        spec,
    ))
}

fn namespace(settings: &KubernetesSettings, instance: &InstanceRef) -> Value {
    let mut labels: Map<String, Value> = settings
        .namespace_labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "restricted".into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": names::namespace(&instance.iid), "labels": labels},
    })
}

fn object(api_version: &str, kind: &str, name: &str, member: &str, value: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    object[member] = value;
    object
}

/// Selects the pods of the instance: all of its own namespace, or those with its label in a shared one.
fn pods(settings: &KubernetesSettings, instance: &InstanceRef) -> Value {
    match settings.shared_namespace {
        None => json!({}),
        Some(_) => json!({"matchLabels": {names::INSTANCE: instance.iid}}),
    }
}

/// The ports that pods listen on behind the annotated ports of the Services `which` picks, each once, in order.
fn ports(objects: &[Value], annotation: &str, which: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut found: BTreeSet<(String, Port)> = BTreeSet::new();
    for service in objects.iter().filter(|object| shape::kind(object) == "Service") {
        if !which(service) {
            continue;
        }
        for (_, port) in shape::annotated_ports(service, annotation) {
            let protocol = match shape::text(port, "/protocol") {
                "" => "TCP",
                protocol => protocol,
            };
            for port in listening(objects, service, port) {
                found.insert((protocol.to_owned(), port));
            }
        }
    }
    found
        .into_iter()
        .map(|(protocol, port)| match port {
            Port::Number(port) => json!({"protocol": protocol, "port": port}),
            Port::Name(port) => json!({"protocol": protocol, "port": port}),
        })
        .collect()
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Number(i64),
    /// Of pods that an operator makes: the policy finds it there.
    Name(String),
}

fn listening(objects: &[Value], service: &Value, port: &Value) -> Vec<Port> {
    let number = shape::number(port, "/port").map(Port::Number);
    // Behind a headless Service applications speak to the pods themselves, on the port they were told.
    if shape::text(service, "/spec/clusterIP") == "None" {
        return number.into_iter().collect();
    }
    let wanted = match port.get("targetPort") {
        None => return number.into_iter().collect(),
        Some(Value::String(name)) => name,
        Some(target) => return target.as_i64().map(Port::Number).into_iter().collect(),
    };
    let mut found = Vec::new();
    for template in objects.iter().filter_map(shape::template) {
        if !shape::selects(
            service.pointer("/spec/selector"),
            template.pointer("/metadata/labels"),
        ) {
            continue;
        }
        for containers in ["/spec/containers", "/spec/initContainers"] {
            for container in shape::list(template, containers) {
                let named = shape::list(container, "/ports")
                    .iter()
                    .find(|port| shape::text(port, "/name") == wanted);
                found.extend(named.and_then(|port| shape::number(port, "/containerPort")));
            }
        }
    }
    if found.is_empty() {
        return vec![Port::Name(wanted.clone())];
    }
    found.into_iter().map(Port::Number).collect()
}

#[cfg(test)]
mod tests;
