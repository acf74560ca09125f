#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::super::rbac::yaml;
use super::*;
use crate::domain::manifest::ObjectSpec;
use crate::ports::PortErrorKind;
use std::collections::BTreeMap;

const IID: &str = "abcdefghijklmnopqrstuvwxyz";

pub(in super::super) fn instance() -> InstanceRef {
    InstanceRef {
        iid: IID.into(),
        offering: "postgres".into(),
        plan: "small".into(),
        ..InstanceRef::default()
    }
}

pub(in super::super) fn shared() -> KubernetesSettings {
    KubernetesSettings {
        shared_namespace: Some("services".into()),
        monitoring_namespace: Some("monitoring".into()),
        ..KubernetesSettings::default()
    }
}

fn spec(object: Value) -> ObjectSpec {
    ObjectSpec {
        phase: 10,
        ready: None,
        failed: None,
        object,
    }
}

fn desired(objects: Vec<ObjectSpec>, consumers: &[&str]) -> Desired {
    Desired {
        objects,
        consumers: consumers.iter().map(|&name| name.to_owned()).collect(),
        ..Desired::default()
    }
}

/// A plan with one of everything, named as the catalog names things.
fn plan(name: &str) -> Vec<ObjectSpec> {
    let pod = json!({
        "metadata": {"labels": {"app.kubernetes.io/name": "postgres"}},
        "spec": {
            "containers": [{
                "name": "server", "image": "docker.io/library/postgres:18@sha256:aa",
                "ports": [{"name": "sql", "containerPort": 5432}, {"name": "metrics", "containerPort": 9187}],
                "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            }],
        },
    });
    let once = json!({"spec": {"restartPolicy": "Never", "serviceAccountName": "own", "enableServiceLinks": true,
        "containers": [{"name": "hook", "image": "hook@sha256:bb"}]}});
    let selector = json!({"app.kubernetes.io/name": "postgres"});
    vec![
        spec(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "managedFields": [{"manager": "x"}]},
            "spec": {
                "serviceName": format!("{name}-hl"), "replicas": 2, "selector": {"matchLabels": selector}, "template": pod,
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "5Gi"}}}}],
            },
            "status": {"replicas": 1},
        })),
        spec(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "annotations": {names::ENDPOINTS: "client", names::METRICS: "metrics"}},
            "spec": {"selector": selector, "ports": [
                {"name": "client", "port": 5432, "targetPort": "sql"}, {"name": "metrics", "port": 9187, "targetPort": "metrics"},
            ]},
        })),
        spec(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{name}-admin")}, "data": {"password": "c2VjcmV0"}}),
        ),
        ObjectSpec {
            phase: 20,
            ready: Some("true".into()),
            failed: Some("''".into()),
            object: json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": format!("{name}-init")}, "spec": {"template": once}}),
        },
        spec(
            json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": format!("{name}-dump")},
            "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": once}}}}),
        ),
    ]
}

fn golden(all: &[Dressed]) -> String {
    let objects: Vec<Value> = all.iter().map(|dressed| dressed.object.clone()).collect();
    yaml(&objects)
}

#[test]
fn an_instance_in_a_namespace_of_its_own() {
    let settings = KubernetesSettings {
        monitoring_namespace: Some("monitoring".into()),
        namespace_labels: BTreeMap::from([
            ("istio-injection".to_owned(), "disabled".to_owned()),
            (
                "pod-security.kubernetes.io/enforce".to_owned(),
                "privileged".to_owned(),
            ),
        ]),
        registry: "nexus.example.com/mirror".into(),
        storage_class: Some("fast".into()),
        priority_class: Some("services".into()),
        ..KubernetesSettings::default()
    };
    let all = dressed(&settings, &instance(), &desired(plan("postgres"), &["shop"])).unwrap();
    insta::assert_snapshot!(golden(&all));
}

#[test]
fn an_instance_in_a_shared_namespace() {
    let name = format!("postgres-{IID}");
    let all = dressed(&shared(), &instance(), &desired(plan(&name), &[])).unwrap();
    insta::assert_snapshot!(golden(&all));
}

#[test]
fn everything_is_in_order_and_knows_its_rules() {
    let mut specs = plan("postgres");
    specs[1].phase = 0;
    specs[4].phase = u16::MAX;
    let all = dressed(&KubernetesSettings::default(), &instance(), &desired(specs, &[])).unwrap();
    let order: Vec<_> = all
        .iter()
        .map(|d| (d.phase, d.reference.kind.as_str(), d.reference.name.as_str()))
        .collect();
    assert_eq!(
        order,
        [
            (0, "Namespace", "osb-abcdefghijklmnopqrstuvwxyz"),
            (0, "ResourceQuota", "postgres"),
            (0, "LimitRange", "postgres"),
            (0, "ServiceAccount", "postgres"),
            (0, "NetworkPolicy", "postgres-deny"),
            (0, "NetworkPolicy", "postgres-dns"),
            (0, "NetworkPolicy", "postgres-peers"),
            (0, "NetworkPolicy", "postgres-broker"),
            (1, "Service", "postgres"),
            (10, "Secret", "postgres-admin"),
            (10, "StatefulSet", "postgres"),
            (20, "Job", "postgres-init"),
            (u16::MAX - 1, "CronJob", "postgres-dump"),
            (u16::MAX, "NetworkPolicy", "postgres-consumers"),
        ]
    );
    let job = &all[11];
    assert_eq!(
        (job.ready.as_deref(), job.failed.as_deref()),
        (Some("true"), Some("''"))
    );
    assert!(
        all[1..]
            .iter()
            .all(|d| d.reference.namespace == format!("osb-{IID}"))
    );
    assert_eq!(all[0].reference.namespace, "");
}

#[test]
fn the_hash_follows_the_object_and_nothing_else() {
    let hashes = |settings: &KubernetesSettings, specs: Vec<ObjectSpec>| -> BTreeMap<String, Value> {
        dressed(settings, &instance(), &desired(specs, &[]))
            .unwrap()
            .iter()
            .map(|d| {
                let key = format!("{} {}", d.reference.kind, d.reference.name);
                (key, d.object["metadata"]["annotations"][names::HASH].clone())
            })
            .collect()
    };
    let plain = KubernetesSettings::default();
    let before = hashes(&plain, plan("postgres"));
    assert_eq!(before, hashes(&plain, plan("postgres")));
    assert!(before.values().all(|hash| hash.as_str().unwrap().len() == 64));

    let mut specs = plan("postgres");
    specs[2].object["data"]["password"] = json!("b3RoZXI=");
    let after = hashes(&plain, specs);
    let changed: Vec<_> = before.keys().filter(|key| before[*key] != after[*key]).collect();
    assert_eq!(changed, ["Secret postgres-admin"]);

    let mirrored = KubernetesSettings {
        registry: "r.example.com".into(),
        ..KubernetesSettings::default()
    };
    let after = hashes(&mirrored, plan("postgres"));
    let changed: Vec<_> = before.keys().filter(|key| before[*key] != after[*key]).collect();
    assert_eq!(
        changed,
        [
            "CronJob postgres-dump",
            "Job postgres-init",
            "StatefulSet postgres"
        ]
    );
}

#[test]
fn a_changed_plan_leaves_pods_and_claims_alone() {
    let of = |plan_name: &str| {
        let instance = InstanceRef {
            plan: plan_name.into(),
            ..instance()
        };
        let all = dressed(
            &KubernetesSettings::default(),
            &instance,
            &desired(plan("postgres"), &[]),
        )
        .unwrap();
        let set = all.iter().find(|d| d.reference.kind == "StatefulSet").unwrap();
        set.object.clone()
    };
    let (small, large) = (of("small"), of("large"));
    assert_ne!(small["metadata"]["labels"], large["metadata"]["labels"]);
    assert_eq!(small["spec"], large["spec"]);
}

#[test]
fn custom_resources_hand_labels_and_classes_on() {
    let settings = KubernetesSettings {
        registry: "r.example.com".into(),
        storage_class: Some("fast".into()),
        priority_class: Some("services".into()),
        ..KubernetesSettings::default()
    };
    let cluster = json!({
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "metadata": {"name": "postgres"},
        "spec": {"instances": 2, "imageName": "ghcr.io/cloudnative-pg/postgresql:18@sha256:aa", "storage": {"size": "1Gi"},
            "inheritedMetadata": {"labels": {"own": "label"}}},
    });
    let datacenter = json!({
        "apiVersion": "cassandra.datastax.com/v1beta1", "kind": "CassandraDatacenter", "metadata": {"name": "cassandra"},
        "spec": {"size": 3, "serverImage": "k8ssandra/cass:5@sha256:aa",
            "storageConfig": {"cassandraDataVolumeClaimSpec": {"storageClassName": "own"}},
            "podTemplateSpec": {"spec": {"containers": [{"name": "cassandra"}]}}},
    });
    let all = dressed(
        &settings,
        &instance(),
        &desired(vec![spec(cluster), spec(datacenter)], &[]),
    )
    .unwrap();
    let find = |kind: &str| &all.iter().find(|d| d.reference.kind == kind).unwrap().object["spec"];
    let (cluster, datacenter) = (find("Cluster"), find("CassandraDatacenter"));
    assert_eq!(cluster["inheritedMetadata"]["labels"]["own"], "label");
    assert_eq!(cluster["inheritedMetadata"]["labels"][names::INSTANCE], IID);
    assert_eq!(
        cluster["imageName"],
        "r.example.com/cloudnative-pg/postgresql:18@sha256:aa"
    );
    assert_eq!(
        (&cluster["storage"]["storageClass"], &cluster["priorityClassName"]),
        (&json!("fast"), &json!("services"))
    );
    assert_eq!(cluster.get("walStorage"), None);
    assert_eq!(datacenter["additionalLabels"][names::INSTANCE], IID);
    assert_eq!(
        datacenter["serverImage"],
        "r.example.com/k8ssandra/cass:5@sha256:aa"
    );
    assert_eq!(
        datacenter["storageConfig"]["cassandraDataVolumeClaimSpec"]["storageClassName"],
        "own"
    );
    let pod = &datacenter["podTemplateSpec"];
    assert_eq!(pod["metadata"]["labels"][names::INSTANCE], IID);
    assert_eq!(
        pod["spec"],
        json!({"containers": [{"name": "cassandra"}], "priorityClassName": "services"})
    );
}

#[test]
fn an_object_that_cannot_be_the_instances_own_is_refused() {
    let object =
        |kind: &str, name: &str| spec(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}));
    let long = "a".repeat(64);
    for (settings, specs, says) in [
        (
            KubernetesSettings::default(),
            vec![object("Service", "a"), object("Service", "a")],
            "two objects Service a",
        ),
        (
            KubernetesSettings::default(),
            vec![object("ResourceQuota", "postgres")],
            "the broker itself makes",
        ),
        (
            KubernetesSettings::default(),
            vec![object("Service", &long)],
            "longer than 63",
        ),
        (
            KubernetesSettings::default(),
            vec![object("Service", "")],
            "lacks its version, kind or name",
        ),
        (
            shared(),
            vec![object("ConfigMap", "postgres-config")],
            "would be shared between instances",
        ),
    ] {
        let error = dressed(&settings, &instance(), &desired(specs, &[])).expect_err(says);
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains(says), "{error}");
    }
}

#[test]
fn nothing_dressed_shows_a_secret_when_it_is_printed() {
    let all = dressed(
        &KubernetesSettings::default(),
        &instance(),
        &desired(plan("postgres"), &[]),
    )
    .unwrap();
    assert!(!format!("{all:?}").contains("c2VjcmV0"));
}
