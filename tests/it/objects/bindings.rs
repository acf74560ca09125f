//! What a binding gets where the instance is a process, a single pod, or a group of pods.

use super::{IID, defaults, placement, plan, secrets};
use chandler::domain::catalog::{KnownMechanisms, Mechanisms};
use chandler::domain::instance::Endpoint;
use chandler::domain::manifest::{self, BindingFacts};
use chandler::domain::secret::Secret;
use serde_json::{Value, json};

fn endpoint(name: &str, host: &str, port: u16) -> Endpoint {
    Endpoint {
        name: name.into(),
        host: host.into(),
        port,
    }
}

/// Credentials and endpoints of a binding of `offering` with these endpoints.
fn bound(offering: &str, plan_name: &str, endpoints: &[Endpoint]) -> (Value, Vec<(String, Vec<String>)>) {
    let (offering, plan) = plan(offering, plan_name);
    let binding = offering.binding.as_ref().unwrap();
    let params = defaults(plan);
    let scope = manifest::instance_scope(
        IID,
        "cf",
        offering,
        plan,
        &params,
        &placement(&offering.name, &[]),
    );
    let settings = manifest::settings(binding, plan, &scope).unwrap();
    let user = Secret::new(KnownMechanisms.sample_user(&binding.mechanism));
    let facts = BindingFacts {
        iid: IID,
        offering,
        plan,
        params: &chandler::domain::params::with_defaults(&plan.schemas.bind, &serde_json::Map::new()),
        role: &binding.default_role,
        endpoint: endpoints.iter().find(|e| e.name == binding.endpoint).unwrap(),
        endpoints,
        settings: &settings,
        user: &user,
    };
    let (credentials, views) =
        manifest::binding_credentials(binding, &manifest::binding_scope(&facts)).unwrap();
    let credentials = Value::Object(credentials.expose().clone());
    let (admin, generated) = secrets(offering);
    for secret in admin.expose().values().chain(generated.expose().values()) {
        assert!(
            !credentials.to_string().contains(secret.as_str().unwrap()),
            "{credentials}"
        );
    }
    (
        credentials,
        views.into_iter().map(|v| (v.host, v.ports)).collect(),
    )
}

/// The endpoints of a group of three: any member, and each by its name.
fn group(service: &str, port: u16, sentinel: Option<u16>) -> Vec<Endpoint> {
    let host = |name: &str| format!("{name}.osb-x.svc.cluster.local");
    let mut all = vec![endpoint("client", &host(service), port)];
    for i in 0..3 {
        let name = host(&format!("{service}-{i}"));
        all.push(endpoint(&format!("node-{i}"), &name, port));
        all.extend(sentinel.map(|port| endpoint(&format!("sentinel-{i}"), &name, port)));
    }
    all
}

#[test]
fn every_service_as_one_server() {
    for (offering, plan) in super::plans().filter(|(_, plan)| plan.name == "small") {
        for host in ["127.0.0.1", "db.osb-x.svc.cluster.local"] {
            let (credentials, endpoints) =
                bound(&offering.name, &plan.name, &[endpoint("client", host, 4000)]);
            assert_eq!(credentials["host"], json!(host), "{}", offering.name);
            assert_eq!(credentials["port"], json!(4000), "{}", offering.name);
            assert_eq!(
                endpoints,
                [(host.to_owned(), vec!["4000".to_owned()])],
                "{}",
                offering.name
            );
            let text = credentials.to_string();
            assert!(!text.contains("sentinel") && !text.contains("node-0"), "{text}");
        }
    }
}

#[test]
fn a_redis_group_is_reached_by_its_sentinels() {
    let (credentials, endpoints) = bound("redis", "medium", &group("redis", 6379, Some(26379)));
    let hosts = |port: u16| {
        let of = |i: u8| json!(format!("redis-{i}.osb-x.svc.cluster.local:{port}"));
        json!([of(0), of(1), of(2)])
    };
    assert_eq!(credentials["sentinels"], hosts(26379));
    assert_eq!(credentials["nodes"], hosts(6379));
    assert_eq!(credentials["sentinel_master"], json!("primary"));
    let uri = credentials["uri"].as_str().unwrap();
    assert!(
        uri.starts_with("redis-sentinel://") && uri.ends_with(":26379/0#primary"),
        "{uri}"
    );
    assert_eq!(uri.matches(":26379").count(), 3);
    assert_eq!(endpoints.len(), 6);
}

#[test]
fn a_nats_cluster_and_a_cassandra_cluster_are_reached_by_any_member() {
    let (credentials, endpoints) = bound("nats", "medium", &group("nats", 4222, None));
    assert_eq!(
        credentials["servers"],
        json!([
            "nats://nats-0.osb-x.svc.cluster.local:4222",
            "nats://nats-1.osb-x.svc.cluster.local:4222",
            "nats://nats-2.osb-x.svc.cluster.local:4222",
        ])
    );
    assert_eq!(endpoints.len(), 4);
    let (credentials, endpoints) = bound("cassandra", "medium", &group("cassandra", 9042, None));
    let hosts = json!([
        "cassandra-0.osb-x.svc.cluster.local",
        "cassandra-1.osb-x.svc.cluster.local",
        "cassandra-2.osb-x.svc.cluster.local",
    ]);
    assert_eq!(credentials["contact_points"], hosts);
    assert_eq!(credentials["node_ips"], hosts);
    assert_eq!(endpoints.len(), 4);
}
