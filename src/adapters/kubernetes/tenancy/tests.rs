#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::dress::tests::{instance, shared};
use super::*;

fn service(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "annotations": {names::ENDPOINTS: "client"}}, "spec": spec})
}

fn pods(labels: &Value, ports: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {"template": {"metadata": {"labels": labels}, "spec": {"containers": [{"ports": ports}]}}}})
}

fn open(objects: &[Value]) -> Value {
    consumers(&KubernetesSettings::default(), &instance(), &[], objects).unwrap()["spec"]["ingress"].take()
}

#[test]
fn policies_open_the_ports_pods_listen_on_not_those_of_the_service() {
    let objects = [
        service(
            &json!({"selector": {"role": "server"}, "ports": [{"name": "client", "port": 80, "targetPort": "sql"}]}),
        ),
        pods(
            &json!({"role": "server", "x": "y"}),
            &json!([{"name": "sql", "containerPort": 5432}]),
        ),
        pods(
            &json!({"role": "other"}),
            &json!([{"name": "sql", "containerPort": 1}]),
        ),
    ];
    assert_eq!(
        open(&objects)[0]["ports"],
        json!([{"protocol": "TCP", "port": 5432}])
    );
}

#[test]
fn other_ways_to_say_a_port_are_understood() {
    for (spec, port) in [
        (
            json!({"ports": [{"name": "client", "port": 80, "targetPort": 81}]}),
            json!(81),
        ),
        (json!({"ports": [{"name": "client", "port": 80}]}), json!(80)),
        (json!({"ports": [{"port": 80}]}), json!(80)),
        // Nobody's pods that we know: an operator makes them.
        (
            json!({"selector": {"a": "b"}, "ports": [{"name": "client", "port": 80, "targetPort": "sql"}]}),
            json!("sql"),
        ),
        (
            json!({"clusterIP": "None", "ports": [{"name": "client", "port": 80, "targetPort": 81}]}),
            json!(80),
        ),
    ] {
        assert_eq!(open(&[service(&spec)])[0]["ports"][0]["port"], port, "{spec}");
    }
}

#[test]
fn consumers_are_namespaces_by_label_or_by_name() {
    let objects = [service(&json!({"ports": [{"name": "client", "port": 80}]}))];
    let nobody = KubernetesSettings {
        consumer_labels: std::collections::BTreeMap::new(),
        ..KubernetesSettings::default()
    };
    assert_eq!(consumers(&nobody, &instance(), &[], &objects), None);
    assert_eq!(
        consumers(&KubernetesSettings::default(), &instance(), &[], &[]),
        None
    );
    let names = ["a".to_owned(), "b".to_owned()];
    let policy = consumers(&nobody, &instance(), &names, &objects).unwrap();
    assert_eq!(
        policy["spec"]["ingress"],
        json!([{
            "from": [{"namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]},
            ]}}],
            "ports": [{"protocol": "TCP", "port": 80}],
        }])
    );
    let both = consumers(&KubernetesSettings::default(), &instance(), &names, &objects).unwrap();
    assert_eq!(both["spec"]["ingress"][0]["from"].as_array().unwrap().len(), 2);
}

#[test]
fn a_load_balancer_lets_everybody_to_its_own_ports_only() {
    let mut balanced = service(&json!({"type": "LoadBalancer", "ports": [{"name": "client", "port": 80}]}));
    balanced["metadata"]["name"] = json!("outside");
    let inside = service(&json!({"ports": [{"name": "client", "port": 90}]}));
    let ingress = open(&[inside, balanced]);
    assert_eq!(ingress[0]["ports"].as_array().unwrap().len(), 2);
    assert_eq!(ingress[1]["from"][0], json!({"ipBlock": {"cidr": "0.0.0.0/0"}}));
    assert_eq!(ingress[1]["ports"], json!([{"protocol": "TCP", "port": 80}]));
}

/// The pods a policy is for, and whether it opens anything to a source that is no selector at all.
#[test]
fn in_a_shared_namespace_nothing_touches_other_instances() {
    let objects = [service(&json!({"ports": [{"name": "client", "port": 80}]}))];
    let mut all = surroundings(&shared(), &instance(), &objects);
    all.extend(consumers(&shared(), &instance(), &[], &objects));
    let own = json!({"matchLabels": {names::INSTANCE: instance().iid}});
    let mut policies = 0;
    for object in &all {
        assert!(shape::name(object).contains(&instance().iid), "{object}");
        match shape::kind(object) {
            "NetworkPolicy" => {
                policies += 1;
                assert_eq!(object["spec"]["podSelector"], own);
            }
            kind => assert_eq!(kind, "ServiceAccount"),
        }
    }
    assert_eq!(policies, 5);
    let peers = all.iter().find(|o| shape::name(o).ends_with("-peers")).unwrap();
    assert_eq!(
        peers["spec"]["ingress"],
        json!([{"from": [{"podSelector": own}]}])
    );
}

#[test]
fn nothing_is_open_to_anybody_before_the_opening() {
    let objects = [service(&json!({"ports": [{"name": "client", "port": 80}]}))];
    for settings in [KubernetesSettings::default(), shared()] {
        for object in surroundings(&settings, &instance(), &objects) {
            for rule in shape::list(&object, "/spec/ingress") {
                for from in shape::list(rule, "/from") {
                    let names = from.pointer("/namespaceSelector/matchLabels/kubernetes.io~1metadata.name");
                    let peer = from.get("podSelector").is_some() && from.get("namespaceSelector").is_none();
                    assert!(peer || names.is_some(), "{object}");
                }
                assert!(!shape::list(rule, "/from").is_empty(), "{object}");
            }
            for rule in shape::list(&object, "/spec/egress") {
                assert!(!shape::list(rule, "/to").is_empty(), "{object}");
            }
        }
    }
}

#[test]
fn an_account_of_the_catalogs_own_is_not_made_twice() {
    let own = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "postgres"}});
    let accounts = |objects: &[Value]| {
        surroundings(&KubernetesSettings::default(), &instance(), objects)
            .iter()
            .filter(|object| shape::kind(object) == "ServiceAccount")
            .count()
    };
    assert_eq!((accounts(&[]), accounts(&[own])), (1, 0));
}
