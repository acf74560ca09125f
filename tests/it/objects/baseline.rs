//! What every pod of every service must keep, whatever the plan: restricted Pod Security, bounded resources, probes, and a
//! way to leave.

use super::{containers, everything, list, name_of, template, text};
use serde_json::{Value, json};

/// Calls `look` with each pod template, and says where a failed look was.
fn each_template(look: impl Fn(&str, &Value, &Value)) {
    let mut seen = 0;
    for (what, _, objects) in everything() {
        for object in &objects {
            if let Some(template) = template(object) {
                seen += 1;
                look(&format!("{what}: {}", name_of(object)), object, template);
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn pods_are_as_restricted_as_can_be() {
    each_template(|what, _, template| {
        let spec = &template["spec"];
        let pod = &spec["securityContext"];
        assert_eq!(pod["runAsNonRoot"], json!(true), "{what}");
        for id in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert!(pod[id].as_u64().is_some_and(|id| id >= 999), "{what}: {id}");
        }
        assert_eq!(pod["fsGroupChangePolicy"], json!("OnRootMismatch"), "{what}");
        assert_eq!(pod["seccompProfile"], json!({"type": "RuntimeDefault"}), "{what}");
        assert_eq!(spec["automountServiceAccountToken"], json!(false), "{what}");
        assert_eq!(spec["enableServiceLinks"], json!(false), "{what}");
        for shared in ["hostNetwork", "hostPID", "hostIPC", "serviceAccountName"] {
            assert!(spec.get(shared).is_none(), "{what}: {shared}");
        }
        for volume in list(template, "/spec/volumes") {
            assert!(volume.get("hostPath").is_none(), "{what}");
            if let Some(empty) = volume.get("emptyDir") {
                assert!(empty["sizeLimit"].is_string(), "{what}: {volume}");
            }
        }
        for container in containers(template) {
            let what = format!("{what}: {}", text(container, "/name"));
            let context = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            });
            assert_eq!(container["securityContext"], context, "{what}");
            assert!(
                !list(container, "/command").is_empty(),
                "{what}: the image's own start script is not ours to trust"
            );
            assert!(text(container, "/image").contains("@sha256:"), "{what}");
        }
    });
}

#[test]
fn containers_are_bounded() {
    each_template(|what, _, template| {
        for container in containers(template) {
            let what = format!("{what}: {}", text(container, "/name"));
            let amount = |pointer: &str| text(container, pointer).to_owned();
            assert_ne!(amount("/resources/requests/cpu"), "", "{what}");
            assert_ne!(amount("/resources/requests/memory"), "", "{what}");
            // What a database asks for is what it uses: nothing else may count on it.
            assert_eq!(
                amount("/resources/requests/memory"),
                amount("/resources/limits/memory"),
                "{what}"
            );
            assert_eq!(
                amount("/resources/limits/cpu"),
                "",
                "{what}: a limit would slow it on an idle machine"
            );
            assert_ne!(amount("/resources/requests/ephemeral-storage"), "", "{what}");
            assert_ne!(amount("/resources/limits/ephemeral-storage"), "", "{what}");
        }
    });
}

#[test]
fn servers_are_probed_spread_and_stopped_in_time() {
    each_template(|what, object, template| {
        let grace = template["spec"]["terminationGracePeriodSeconds"].as_u64();
        assert!(grace.is_some(), "{what}");
        if text(object, "/kind") != "StatefulSet" {
            assert_eq!(text(template, "/spec/restartPolicy"), "Never", "{what}");
            return;
        }
        assert!(grace >= Some(60), "{what}");
        for container in list(template, "/spec/containers") {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                assert!(container[probe].is_object(), "{what}: {probe}");
            }
            let budget = container["startupProbe"]["periodSeconds"].as_u64().unwrap()
                * container["startupProbe"]["failureThreshold"].as_u64().unwrap();
            assert!(budget >= 120, "{what}: {budget}");
            // A server that is busy is not dead.
            let patience = container["livenessProbe"]["periodSeconds"].as_u64().unwrap()
                * container["livenessProbe"]["failureThreshold"].as_u64().unwrap();
            assert!(patience >= 60, "{what}: {patience}");
        }
        let spread: Vec<(&str, &str)> = list(template, "/spec/topologySpreadConstraints")
            .iter()
            .map(|c| (text(c, "/topologyKey"), text(c, "/whenUnsatisfiable")))
            .collect();
        assert!(
            spread.contains(&("topology.kubernetes.io/zone", "ScheduleAnyway")),
            "{what}"
        );
        if object["spec"]["replicas"].as_u64() > Some(1) {
            assert!(
                spread.contains(&("kubernetes.io/hostname", "DoNotSchedule")),
                "{what}"
            );
        }
        let kept = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        assert_eq!(
            object["spec"]["persistentVolumeClaimRetentionPolicy"], kept,
            "{what}"
        );
        assert!(!list(object, "/spec/volumeClaimTemplates").is_empty(), "{what}");
    });
}

#[test]
fn only_groups_that_survive_a_loss_have_a_disruption_budget() {
    for (what, _, objects) in everything() {
        let of = |kind: &str| {
            objects
                .iter()
                .filter(|o| text(o, "/kind") == kind)
                .collect::<Vec<_>>()
        };
        let budgets = of("PodDisruptionBudget");
        for set in of("StatefulSet") {
            let large = set["spec"]["replicas"].as_u64() >= Some(3);
            assert_eq!(budgets.len(), usize::from(large), "{what}");
        }
        for budget in budgets {
            assert_eq!(budget["spec"]["maxUnavailable"], json!(1), "{what}");
            assert_eq!(
                text(budget, "/spec/unhealthyPodEvictionPolicy"),
                "AlwaysAllow",
                "{what}"
            );
        }
    }
}
