//! Where an instance answers: the ports of its Services that the catalog marked.

use super::{KubernetesSettings, names, shape};
use crate::domain::instance::Endpoint;
use serde_json::Value;

/// The endpoints that annotated Services make, rendered or live, in their order; the first of a name counts.
///
/// A load balancer's address takes the place of the DNS name once it has one.
pub(super) fn of(settings: &KubernetesSettings, namespace: &str, services: &[&Value]) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for service in services {
        // What a watch lists does not say its kind.
        if !matches!(shape::kind(service), "" | "Service") {
            continue;
        }
        for (name, port) in shape::annotated_ports(service, names::ENDPOINTS) {
            let number = shape::number(port, "/port").and_then(|port| u16::try_from(port).ok());
            let (Some(port), false) = (number, endpoints.iter().any(|endpoint| endpoint.name == name)) else {
                continue;
            };
            endpoints.push(Endpoint {
                name: name.to_owned(),
                host: host(settings, namespace, service),
                port,
            });
        }
    }
    endpoints
}

fn host(settings: &KubernetesSettings, namespace: &str, service: &Value) -> String {
    if shape::text(service, "/spec/type") == "LoadBalancer"
        && let Some(address) = balanced(service)
    {
        return address.to_owned();
    }
    let domain = settings.cluster_domain.trim_matches('.');
    format!("{}.{namespace}.svc.{domain}", shape::name(service))
}

/// The address a load balancer gave a Service; a name before a number.
pub(super) fn balanced(service: &Value) -> Option<&str> {
    let ingress = shape::list(service, "/status/loadBalancer/ingress").first()?;
    ["/hostname", "/ip"]
        .map(|member| shape::text(ingress, member))
        .into_iter()
        .find(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    fn service(kind: &str, annotation: &str, ports: &Value, ingress: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "db", "annotations": {names::ENDPOINTS: annotation}},
            "spec": {"type": kind, "ports": ports}, "status": {"loadBalancer": {"ingress": ingress}},
        })
    }

    fn found(services: &[&Value]) -> Vec<String> {
        of(&KubernetesSettings::default(), "osb-x", services)
            .iter()
            .map(|e| format!("{} {}:{}", e.name, e.host, e.port))
            .collect()
    }

    #[test]
    fn marked_ports_are_endpoints_in_the_order_of_the_mark() {
        let ports = json!([{"name": "metrics", "port": 1}, {"name": "client", "port": 2}, {"name": "monitor", "port": 3}]);
        let service = service("ClusterIP", "monitor, client,nothing", &ports, &json!([]));
        assert_eq!(
            found(&[&service, &service]),
            [
                "monitor db.osb-x.svc.cluster.local:3",
                "client db.osb-x.svc.cluster.local:2"
            ]
        );
    }

    #[test]
    fn a_single_port_needs_no_name() {
        let service = service("", "client,monitor", &json!([{"port": 5432}]), &json!([]));
        assert_eq!(found(&[&service]), ["client db.osb-x.svc.cluster.local:5432"]);
    }

    #[test]
    fn a_load_balancer_is_known_by_its_own_address_once_it_has_one() {
        let ports = json!([{"name": "client", "port": 2}]);
        for (kind, ingress, host) in [
            ("LoadBalancer", json!([{"ip": "192.0.2.7"}]), "192.0.2.7"),
            (
                "LoadBalancer",
                json!([{"ip": "192.0.2.7", "hostname": "lb.example.com"}]),
                "lb.example.com",
            ),
            ("LoadBalancer", json!([]), "db.osb-x.svc.cluster.local"),
            (
                "ClusterIP",
                json!([{"ip": "192.0.2.7"}]),
                "db.osb-x.svc.cluster.local",
            ),
        ] {
            let service = service(kind, "client", &ports, &ingress);
            assert_eq!(found(&[&service]), [format!("client {host}:2")]);
        }
    }

    #[test]
    fn unmarked_services_and_other_kinds_are_none() {
        let ports = json!([{"name": "client", "port": 2}]);
        let unmarked = service("", "", &ports, &json!([]));
        let mut other = service("", "client", &ports, &json!([]));
        other["kind"] = json!("Endpoints");
        assert!(found(&[&unmarked, &other]).is_empty());
    }
}
