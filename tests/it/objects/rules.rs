//! The rules of custom resources on status documents as their operators write them.

use super::{all_kinds, defaults, plan, rendered, text};
use chandler::domain::expr::{Scope, Template};
use chandler::domain::manifest::ObjectSpec;
use serde_json::{Value, json};

/// The custom resource of a plan, with a status as its operator would have written it.
fn resource(offering: &str, name: &str, kind: &str) -> ObjectSpec {
    let (offering, plan) = plan(offering, name);
    let desired = rendered(offering, plan, &defaults(plan), &all_kinds(offering));
    let found = desired
        .objects
        .into_iter()
        .find(|o| text(&o.object, "/kind") == kind);
    found.unwrap()
}

/// A rule's value; `None` when it cannot be evaluated.
fn evaluated(rule: &str, object: &Value) -> Option<Value> {
    let rule = Template::compile(Value::String(format!("${{{rule}}}"))).unwrap();
    rule.fill(&Scope::from_iter([("object".to_owned(), object.clone())]))
        .ok()
}

/// Whether the rules call it ready, and what they say of a failure.
fn judged(spec: &ObjectSpec, status: Option<Value>) -> (bool, String) {
    let mut object = spec.object.clone();
    object["metadata"]["generation"] = json!(2);
    if let Some(status) = status {
        object["status"] = status;
    }
    let ready = evaluated(spec.ready.as_ref().unwrap(), &object) == Some(Value::Bool(true));
    let failed = evaluated(spec.failed.as_ref().unwrap(), &object).expect("a text");
    (ready, failed.as_str().unwrap().to_owned())
}

#[test]
fn a_postgres_cluster() {
    let cluster = resource("postgres", "large", "Cluster");
    let status = |phase: &str, ready: u64, primary: &str, target: &str, condition: &str| {
        json!({
            "phase": phase, "instances": 3, "readyInstances": ready, "currentPrimary": primary, "targetPrimary": target,
            "conditions": [
                {"type": "ContinuousArchiving", "status": "True", "reason": "ContinuousArchivingSuccess"},
                {"type": "Ready", "status": condition, "reason": "ClusterIsReady"},
            ],
        })
    };
    assert_eq!(judged(&cluster, None), (false, String::new()));
    assert_eq!(judged(&cluster, Some(json!({}))), (false, String::new()));
    let starting = json!({"phase": "Setting up primary", "instances": 1, "targetPrimary": "postgres-1"});
    assert_eq!(judged(&cluster, Some(starting)), (false, String::new()));
    let joining = status("Creating a new replica", 2, "postgres-1", "postgres-1", "False");
    assert_eq!(judged(&cluster, Some(joining)), (false, String::new()));
    let well = status("Cluster in healthy state", 3, "postgres-1", "postgres-1", "True");
    assert_eq!(judged(&cluster, Some(well)), (true, String::new()));
    let moving = status("Switchover in progress", 3, "postgres-1", "postgres-2", "True");
    assert_eq!(judged(&cluster, Some(moving)), (false, String::new()));
    let mut lost = status(
        "Cluster is unrecoverable and needs manual intervention",
        0,
        "postgres-1",
        "postgres-1",
        "False",
    );
    lost["phaseReason"] = json!("No instance has a volume left");
    let (ready, said) = judged(&cluster, Some(lost));
    assert!(
        !ready && said.ends_with("manual intervention: No instance has a volume left"),
        "{said}"
    );
}

#[test]
fn a_cassandra_datacenter() {
    let datacenter = resource("cassandra", "large", "CassandraDatacenter");
    let status = |progress: &str, generation: u64, conditions: Value| {
        json!({
            "cassandraOperatorProgress": progress, "observedGeneration": generation, "conditions": conditions,
            "nodeStatuses": {"cassandra-rack1-sts-0": {"hostID": "0a"}},
        })
    };
    let ready = |status: &str| json!([{"type": "Ready", "status": status, "reason": "", "message": ""}]);
    assert_eq!(judged(&datacenter, None), (false, String::new()));
    assert_eq!(
        judged(&datacenter, Some(status("Updating", 2, json!([])))),
        (false, String::new())
    );
    assert_eq!(
        judged(&datacenter, Some(status("Ready", 2, ready("True")))),
        (true, String::new())
    );
    // It has not seen the change yet.
    assert_eq!(
        judged(&datacenter, Some(status("Ready", 1, ready("True")))),
        (false, String::new())
    );
    assert_eq!(
        judged(&datacenter, Some(status("Ready", 2, ready("False")))),
        (false, String::new())
    );
    let invalid = json!([{"type": "Valid", "status": "False", "message": "size must not be smaller"}]);
    let (is_ready, said) = judged(&datacenter, Some(status("Updating", 2, invalid)));
    assert!(
        !is_ready && said.ends_with("refuses the datacenter: size must not be smaller"),
        "{said}"
    );
}
