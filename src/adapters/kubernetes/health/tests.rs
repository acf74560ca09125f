#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::ports::ObjectRef;
use serde_json::json;

fn wanted(api_version: &str, kind: &str) -> Dressed {
    Dressed {
        reference: ObjectRef {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: "ns".into(),
            name: "x".into(),
        },
        phase: 10,
        ready: None,
        failed: None,
        object: json!({"apiVersion": api_version, "kind": kind, "metadata": {"annotations": {names::HASH: "h"}}}),
    }
}

/// As the cluster has it: of the wanted hash, and without saying its kind, as a watch lists it.
fn live(spec: &Value, status: &Value) -> Value {
    json!({"metadata": {"generation": 3, "annotations": {names::HASH: "h"}}, "spec": spec, "status": status})
}

fn health(api_version: &str, kind: &str, spec: &Value, status: &Value) -> Health {
    of(&live(spec, status), &wanted(api_version, kind))
}

fn waits(text: &str) -> Health {
    Health::Progressing(text.into())
}

#[test]
fn what_is_not_yet_as_wanted_is_never_ready() {
    let mut wanted = wanted("v1", "ConfigMap");
    wanted.ready = Some("true".into());
    let good = live(&json!({}), &json!({}));
    assert_eq!(of(&good, &wanted), Health::Ready);
    for (pointer, value) in [
        ("/metadata/annotations", json!({names::HASH: "older"})),
        ("/metadata/annotations", json!({})),
        (
            "/metadata",
            json!({"generation": 3, "deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {names::HASH: "h"}}),
        ),
        ("/status", json!({"observedGeneration": 2})),
    ] {
        let mut object = good.clone();
        *object.pointer_mut(pointer).unwrap() = value;
        assert!(matches!(of(&object, &wanted), Health::Progressing(_)), "{object}");
    }
}

#[test]
fn a_stateful_set_is_ready_when_every_pod_is_new_and_ready() {
    let set = |spec: &Value, status: &Value| health("apps/v1", "StatefulSet", spec, status);
    let status = |ready: i64, updated: i64, current: &str| {
        json!({"observedGeneration": 3, "replicas": 3, "readyReplicas": ready, "updatedReplicas": updated,
            "currentRevision": current, "updateRevision": "b"})
    };
    let three = json!({"replicas": 3});
    assert_eq!(set(&three, &json!({})), waits("0 of 3 pods ready."));
    assert_eq!(set(&three, &status(2, 3, "b")), waits("2 of 3 pods ready."));
    assert_eq!(set(&three, &status(3, 1, "a")), waits("1 of 3 pods renewed."));
    assert_eq!(set(&three, &status(3, 3, "a")), waits("3 of 3 pods renewed."));
    assert_eq!(set(&three, &status(3, 3, "b")), Health::Ready);
    assert_eq!(
        set(&json!({"replicas": 1}), &status(3, 3, "b")),
        waits("2 pods more than wanted.")
    );
    assert_eq!(
        set(&json!({"replicas": 0}), &json!({"observedGeneration": 3})),
        Health::Ready
    );
    let kept = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}});
    assert_eq!(set(&kept, &status(3, 1, "a")), Health::Ready);
    let by_hand = json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}});
    assert_eq!(set(&by_hand, &status(3, 0, "a")), Health::Ready);
}

#[test]
fn a_deployment_is_ready_when_the_old_pods_are_gone() {
    let status = |members: Value| {
        let mut status = json!({"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2});
        status
            .as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        health("apps/v1", "Deployment", &json!({"replicas": 2}), &status)
    };
    assert_eq!(status(json!({})), Health::Ready);
    assert_eq!(
        status(json!({"availableReplicas": 1})),
        waits("1 of 2 pods ready.")
    );
    assert_eq!(
        status(json!({"updatedReplicas": 1})),
        waits("1 of 2 pods renewed.")
    );
    assert_eq!(status(json!({"replicas": 3})), waits("2 of 2 pods renewed."));
    let late = json!({"readyReplicas": 0, "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]});
    assert_eq!(
        status(late),
        Health::Failed("The pods of x did not become ready in time: 0 of 2 are.".into())
    );
}

#[test]
fn a_job_is_ready_when_it_is_done_and_failed_when_it_was_given_up() {
    let job = |status: &Value| health("batch/v1", "Job", &json!({}), status);
    assert_eq!(job(&json!({"active": 1})), waits("The job x is at work."));
    assert_eq!(
        job(&json!({"failed": 2})),
        waits("The job x is at work, after 2 failed tries.")
    );
    assert_eq!(
        job(&json!({"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]})),
        waits("The job x is at work.")
    );
    assert_eq!(
        job(&json!({"conditions": [{"type": "Complete", "status": "True"}]})),
        Health::Ready
    );
    for (reason, why) in [
        ("BackoffLimitExceeded", "it failed 4 times"),
        ("DeadlineExceeded", "it took too long"),
        ("PodFailurePolicy", "no such luck"),
    ] {
        let status = json!({"failed": 4, "conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": "no such luck."}]});
        assert_eq!(
            job(&status),
            Health::Failed(format!("The job x did not do its work: {why}."))
        );
    }
}

#[test]
fn a_volume_is_ready_when_it_is_bound_and_large_enough() {
    let claim = |status: &Value| {
        let spec = json!({"resources": {"requests": {"storage": "2Gi"}}});
        health("v1", "PersistentVolumeClaim", &spec, status)
    };
    assert_eq!(
        claim(&json!({"phase": "Pending"})),
        waits("Waiting for the volume x.")
    );
    assert_eq!(
        claim(&json!({"phase": "Bound", "capacity": {"storage": "2048Mi"}})),
        Health::Ready
    );
    for status in [
        json!({"phase": "Bound", "capacity": {"storage": "1Gi"}}),
        json!({"phase": "Bound", "capacity": {"storage": "2Gi"}, "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}),
    ] {
        assert_eq!(claim(&status), waits("The volume x is being enlarged."));
    }
    assert!(matches!(claim(&json!({"phase": "Lost"})), Health::Failed(_)));
    let refused =
        json!({"phase": "Bound", "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}});
    assert!(matches!(claim(&refused), Health::Failed(_)));
}

#[test]
fn other_usual_kinds_are_ready_once_they_are_there() {
    let nothing = json!({});
    for (version, kind) in [
        ("v1", "Secret"),
        ("v1", "Service"),
        ("v1", "Namespace"),
        ("batch/v1", "CronJob"),
        ("policy/v1", "PodDisruptionBudget"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("autoscaling/v2", "HorizontalPodAutoscaler"),
        ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ] {
        assert_eq!(health(version, kind, &nothing, &nothing), Health::Ready, "{kind}");
    }
    let balanced = json!({"type": "LoadBalancer"});
    assert!(matches!(
        health("v1", "Service", &balanced, &nothing),
        Health::Progressing(_)
    ));
    let addressed = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    assert_eq!(health("v1", "Service", &balanced, &addressed), Health::Ready);
    let quota = json!({"hard": {"pods": "2"}});
    assert!(matches!(
        health("v1", "ResourceQuota", &quota, &nothing),
        Health::Progressing(_)
    ));
    assert_eq!(health("v1", "ResourceQuota", &quota, &quota), Health::Ready);
    let going = json!({"phase": "Terminating"});
    assert!(matches!(
        health("v1", "Namespace", &nothing, &going),
        Health::Progressing(_)
    ));
}

#[test]
fn custom_resources_are_ready_by_their_conditions() {
    let cluster = |conditions: Value| {
        health(
            "example.com/v1",
            "Thing",
            &json!({}),
            &json!({"conditions": conditions}),
        )
    };
    assert_eq!(
        health("example.com/v1", "Thing", &json!({}), &json!({})),
        waits("Waiting for Thing x.")
    );
    assert_eq!(
        cluster(json!([{"type": "Available", "status": "True"}])),
        Health::Ready
    );
    assert_eq!(
        cluster(json!([{"type": "Ready", "status": "True", "observedGeneration": 2}])),
        waits("Thing x is being changed.")
    );
    assert_eq!(
        cluster(json!([{"type": "Ready", "status": "False", "message": "joining"}])),
        waits("Thing x: joining.")
    );
    assert_eq!(
        cluster(json!([{"type": "Stalled", "status": "True", "message": "bad password=abc"}])),
        Health::Failed("Thing x is stalled: bad password=…".into())
    );
}

#[test]
fn a_rule_decides_and_a_missing_member_means_not_ready() {
    let by = |ready: Option<&str>, failed: Option<&str>, status: &Value| {
        let mut wanted = wanted("example.com/v1", "Thing");
        wanted.ready = ready.map(str::to_owned);
        wanted.failed = failed.map(str::to_owned);
        of(&live(&json!({"members": 3}), status), &wanted)
    };
    let rule = Some("object.status.ready == object.spec.members");
    assert_eq!(by(rule, None, &json!({"ready": 3})), Health::Ready);
    for status in [json!({"ready": 2}), json!({}), json!({"ready": "three"})] {
        assert_eq!(by(rule, None, &status), waits("Waiting for Thing x."), "{status}");
    }
    let trouble = Some("has(object.status.why) ? object.status.why : ''");
    assert_eq!(
        by(rule, trouble, &json!({"ready": 3, "why": "it broke"})),
        Health::Failed("It broke.".into())
    );
    assert_eq!(by(rule, trouble, &json!({"ready": 3})), Health::Ready);
    assert_eq!(
        by(rule, Some("object.status.nothing"), &json!({"ready": 3})),
        Health::Ready
    );
    // No rules at all, and rules that are none.
    for broken in ["object.(", "'true'", "true} and ${true", "1"] {
        assert_eq!(
            by(Some(broken), None, &json!({"ready": 3})),
            waits("Waiting for Thing x."),
            "{broken}"
        );
    }
}

#[test]
fn a_rule_of_the_catalog_has_the_last_word_on_failure() {
    let mut wanted = wanted("batch/v1", "Job");
    wanted.ready = Some("false".into());
    let given_up = live(
        &json!({}),
        &json!({"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}),
    );
    assert!(matches!(of(&given_up, &wanted), Health::Failed(_)));
    wanted.failed = Some("''".into());
    assert!(matches!(of(&given_up, &wanted), Health::Progressing(_)));
}

#[test]
fn an_object_too_large_to_look_at_is_not_ready() {
    let mut wanted = wanted("example.com/v1", "Thing");
    wanted.ready = Some("true".into());
    let large = live(&json!(vec![0; MOST_PARTS]), &json!({}));
    assert_eq!(of(&large, &wanted), waits("Waiting for Thing x."));
    let mut small = live(&json!({}), &json!({}));
    small["metadata"]["managedFields"] = json!(vec![0; MOST_PARTS]);
    assert_eq!(of(&small, &wanted), Health::Ready);
}

/// As CloudNativePG and cass-operator were seen to report, with the catalog's kind of rule over it.
#[test]
fn rules_on_recorded_states_of_operators() {
    let ready = "has(object.status) && has(object.status.readyInstances) && object.status.readyInstances == object.spec.instances && has(object.status.conditions) && object.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')";
    let mut cluster = wanted("postgresql.cnpg.io/v1", "Cluster");
    cluster.ready = Some(ready.into());
    let seen = |ready: i64, condition: &str| {
        let status = json!({"instances": 3, "readyInstances": ready, "phase": "Cluster in healthy state",
            "conditions": [{"type": "Ready", "status": condition, "reason": "ClusterIsReady", "message": "Cluster is Ready"}]});
        of(&live(&json!({"instances": 3}), &status), &cluster)
    };
    assert_eq!(seen(3, "True"), Health::Ready);
    assert!(matches!(seen(2, "True"), Health::Progressing(_)));
    assert!(matches!(seen(3, "False"), Health::Progressing(_)));
    assert!(matches!(
        of(&live(&json!({"instances": 3}), &Value::Null), &cluster),
        Health::Progressing(_)
    ));
}
