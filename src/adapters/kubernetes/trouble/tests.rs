#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use serde_json::json;

/// 2026-01-01T00:10:00Z
const NOW: i64 = 1_767_226_200_000;
const IMAGE: &str =
    "docker.io/library/postgres:18@sha256:4034030123456789012345678901234567890123456789012345678901234567";

fn at(seconds_ago: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(NOW / 1000 - seconds_ago).unwrap();
    time.format(&Rfc3339).unwrap()
}

fn pod(made_ago: i64, phase: &str, container: &Value) -> Value {
    json!({
        "metadata": {"name": "db-0", "creationTimestamp": at(made_ago)},
        "spec": {"containers": [{"name": "server", "image": IMAGE}]},
        "status": {"phase": phase, "containerStatuses": [container]},
    })
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"name": "server", "restartCount": 0, "ready": false, "state": {"waiting": {"reason": reason, "message": message}}})
}

fn event(kind: &str, name: &str, reason: &str, message: &str, first_ago: i64, last_ago: i64) -> Value {
    json!({
        "involvedObject": {"kind": kind, "name": name, "uid": "u1"}, "reason": reason, "message": message,
        "firstTimestamp": at(first_ago), "lastTimestamp": at(last_ago),
    })
}

fn of_pod(pod: &Value, events: &[Value]) -> Option<Trouble> {
    trouble(&[pod], &[], events, NOW)
}

fn of_events(events: &[Value]) -> Option<Trouble> {
    trouble(&[], &[], events, NOW)
}

#[test]
fn the_moment_tests_speak_of() {
    assert_eq!(millis(&json!({"t": "2026-01-01T00:10:00Z"}), "/t"), Some(NOW));
}

#[test]
fn nothing_is_said_when_nothing_is_wrong() {
    let good = json!({"name": "server", "restartCount": 3, "ready": true, "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 1}}});
    for pod in [
        pod(60, "Running", &good),
        pod(60, "Succeeded", &waiting("CrashLoopBackOff", "")),
        pod(60, "Pending", &waiting("ContainerCreating", "")),
        pod(60, "Pending", &waiting("PodInitializing", "")),
    ] {
        assert_eq!(of_pod(&pod, &[]), None, "{pod}");
    }
    let mut going = pod(60, "Pending", &waiting("InvalidImageName", ""));
    going["metadata"]["deletionTimestamp"] = json!(at(1));
    assert_eq!(of_pod(&going, &[]), None);
    assert_eq!(trouble(&[], &[], &[], NOW), None);
}

#[test]
fn an_image_that_does_not_exist_ends_it_a_registry_that_is_away_does_not() {
    let back_off = format!("Back-off pulling image \"{IMAGE}\"");
    for (reason, message, says, terminal) in [
        (
            "InvalidImageName",
            "Failed to apply default image tag".to_owned(),
            "that is not the name of an image",
            true,
        ),
        ("ErrImageNeverPull", String::new(), "may not be pulled", true),
        (
            "ErrImagePull",
            format!("failed to pull \"{IMAGE}\": not found"),
            "its registry does not have it",
            false,
        ),
        (
            "ImagePullBackOff",
            format!("{back_off}: ErrImagePull: {IMAGE}: not found"),
            "its registry does not have it",
            true,
        ),
        (
            "ImagePullBackOff",
            format!("{back_off}: ErrImagePull: unauthorized"),
            "its registry refuses access",
            true,
        ),
        (
            "ImagePullBackOff",
            format!("{back_off}: 403 Forbidden"),
            "its registry refuses access",
            true,
        ),
        (
            "ImagePullBackOff",
            format!("{back_off}: dial tcp: lookup r.example.com: no such host"),
            "cannot be reached",
            false,
        ),
        (
            "ImagePullBackOff",
            format!("{back_off}: toomanyrequests: limit"),
            "no more pulls for now",
            false,
        ),
        // The digest holds 403, and that is no refusal.
        (
            "ImagePullBackOff",
            back_off.clone(),
            "Back-off pulling image",
            false,
        ),
    ] {
        let found = of_pod(&pod(60, "Pending", &waiting(reason, &message)), &[]).unwrap();
        assert!(found.sentence.contains(says), "{found:?}");
        assert!(
            found
                .sentence
                .starts_with("Pod db-0 cannot get the image docker.io/library/postgres:18: "),
            "{found:?}"
        );
        assert_eq!(found.terminal, terminal, "{found:?}");
    }
    let old = pod(601, "Pending", &waiting("ImagePullBackOff", &back_off));
    assert!(of_pod(&old, &[]).unwrap().terminal);
    // What the status leaves out an event tells.
    let told = event(
        "Pod",
        "db-0",
        "Failed",
        "Failed to pull image: manifest unknown",
        30,
        10,
    );
    let found = of_pod(
        &pod(60, "Pending", &waiting("ImagePullBackOff", &back_off)),
        &[told],
    )
    .unwrap();
    assert!(
        found.terminal && found.sentence.contains("does not have it"),
        "{found:?}"
    );
}

#[test]
fn a_crash_again_and_again_ends_it_with_the_last_words() {
    let crashed = |restarts: i64, reason: &str, last: Value| json!({"name": "server", "restartCount": restarts, "ready": false, "state": {"waiting": {"reason": reason}}, "lastState": {"terminated": last}});
    let last = json!({"exitCode": 1, "message": "starting\nFATAL: password=hunter2 is wrong\n", "startedAt": at(20), "finishedAt": at(10)});
    let found = of_pod(
        &pod(300, "Running", &crashed(5, "CrashLoopBackOff", last.clone())),
        &[],
    )
    .unwrap();
    assert_eq!(
        found,
        lasting(
            "Container server of pod db-0 keeps stopping (5 restarts): exit code 1, FATAL: password=… is wrong. Check the parameters, else tell the platform's operators."
        )
    );
    let early = of_pod(
        &pod(300, "Running", &crashed(2, "CrashLoopBackOff", last.clone())),
        &[],
    )
    .unwrap();
    assert!(!early.terminal);
    let ran_long = json!({"exitCode": 1, "startedAt": at(5000), "finishedAt": at(10)});
    let found = of_pod(
        &pod(9000, "Running", &crashed(50, "CrashLoopBackOff", ran_long)),
        &[],
    )
    .unwrap();
    assert!(!found.terminal);
    let killed = json!({"exitCode": 137, "reason": "OOMKilled"});
    let found = of_pod(&pod(300, "Running", &crashed(6, "CrashLoopBackOff", killed)), &[]).unwrap();
    assert!(
        found.terminal
            && found
                .sentence
                .ends_with("it used more memory than it may. Choose a plan with more memory."),
        "{found:?}"
    );
}

#[test]
fn an_init_container_that_came_through_at_last_is_forgotten() {
    let mut pod = pod(
        60,
        "Running",
        &json!({"name": "server", "ready": true, "restartCount": 0}),
    );
    pod["status"]["initContainerStatuses"] = json!([{"name": "init", "ready": false, "restartCount": 2,
        "state": {"terminated": {"exitCode": 0}}, "lastState": {"terminated": {"exitCode": 1}}}]);
    assert_eq!(of_pod(&pod, &[]), None);
}

#[test]
fn a_container_that_cannot_be_started_is_given_a_moment() {
    let container = waiting("CreateContainerConfigError", "secret \"db-admin\" not found");
    let young = of_pod(&pod(30, "Pending", &container), &[]).unwrap();
    assert!(
        !young.terminal && young.sentence.contains(": secret \"db-admin\" not found."),
        "{young:?}"
    );
    assert!(of_pod(&pod(120, "Pending", &container), &[]).unwrap().terminal);
}

#[test]
fn a_pod_no_node_takes_waits_for_a_node_on_its_way() {
    let unplaced = |since: i64, message: &str| {
        let mut pod = pod(since, "Pending", &json!({}));
        pod["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": message, "lastTransitionTime": at(since)}]});
        pod
    };
    let full = "0/1 nodes are available: 1 Insufficient memory. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found.";
    let found = of_pod(&unplaced(120, full), &[]).unwrap();
    assert_eq!(
        found,
        lasting(
            "No node takes pod db-0: 0/1 nodes are available: 1 Insufficient memory. Choose a smaller plan, or ask the platform's operators for room."
        )
    );
    assert!(!of_pod(&unplaced(60, full), &[]).unwrap().terminal);
    let comes = event(
        "Pod",
        "db-0",
        "TriggeredScaleUp",
        "pod triggered scale-up",
        100,
        100,
    );
    assert_eq!(
        of_pod(&unplaced(300, full), std::slice::from_ref(&comes)),
        Some(passing("Pod db-0 waits for a new node."))
    );
    assert!(of_pod(&unplaced(600, full), &[comes]).unwrap().terminal);
    let unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
    assert_eq!(
        of_pod(&unplaced(600, unbound), &[]),
        Some(passing("Pod db-0 waits for its volumes."))
    );
}

#[test]
fn refusals_of_the_cluster_are_told_in_its_words() {
    let quota = "create Pod db-1 in StatefulSet db failed error: pods \"db-1\" is forbidden: exceeded quota: db, requested: limits.memory=2Gi, used: limits.memory=1Gi, limited: limits.memory=2Gi";
    let security = "Error creating: pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false";
    let webhook =
        "Error creating: admission webhook \"check.example.com\" denied the request: image not signed";
    let policy = "Error creating: pods \"x\" is forbidden: ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no such image";
    let away = "Error creating: Internal error occurred: failed calling webhook \"check.example.com\": connection refused";
    let other =
        "pods \"x\" is forbidden: error looking up service account ns/db: serviceaccount \"db\" not found";
    for (message, first, last, says, terminal) in [
        (
            quota,
            130,
            20,
            "The pods of StatefulSet db do not fit into the namespace's quota: requested: limits.memory=2Gi, used",
            true,
        ),
        (quota, 60, 20, "quota", false),
        (quota, 900, 300, "quota", false),
        (
            security,
            1,
            1,
            "Pod Security refuses the pods of StatefulSet db: \"restricted:latest\": allowPrivilegeEscalation != false",
            true,
        ),
        (security, 900, 300, "Pod Security", false),
        (
            webhook,
            1,
            1,
            "A policy of the cluster refuses what StatefulSet db makes: image not signed.",
            true,
        ),
        (policy, 1, 1, "makes: no such image.", true),
        (away, 900, 1, "A webhook of the cluster does not answer", false),
        (
            other,
            900,
            1,
            "StatefulSet db cannot be made complete: error looking up service account",
            false,
        ),
    ] {
        let found = of_events(&[event("StatefulSet", "db", "FailedCreate", message, first, last)]).unwrap();
        assert!(found.sentence.contains(says), "{found:?}");
        assert_eq!(found.terminal, terminal, "{found:?}");
    }
}

#[test]
fn a_refusal_that_passed_is_forgotten() {
    let told = event(
        "StatefulSet",
        "db",
        "FailedCreate",
        "violates PodSecurity",
        100,
        100,
    );
    let with_pod = |made_ago: i64| {
        let mut pod = pod(made_ago, "Running", &json!({"ready": true}));
        pod["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "name": "db"}]);
        of_pod(&pod, std::slice::from_ref(&told))
    };
    assert!(with_pod(200).is_some());
    assert_eq!(with_pod(50), None);
}

#[test]
fn events_about_an_earlier_pod_of_the_name_do_not_count() {
    let stale = event("Pod", "db-0", "FailedMount", "MountVolume.SetUp failed", 500, 400);
    let young = pod(60, "Pending", &waiting("ContainerCreating", ""));
    assert_eq!(of_pod(&young, &[stale]), None);
    let fresh = event("Pod", "db-0", "FailedMount", "MountVolume.SetUp failed", 50, 40);
    assert_eq!(
        of_pod(&young, &[fresh]),
        Some(passing("Pod db-0 waits for a volume: MountVolume.SetUp failed."))
    );
}

#[test]
fn a_job_that_was_given_up_is_told_with_its_last_words() {
    let given_up = event(
        "Job",
        "db-init",
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
        5,
        5,
    );
    let ended =
        json!({"name": "hook", "state": {"terminated": {"exitCode": 2, "message": "error: no such host\n"}}});
    let with_owner = |uid: &str| {
        let mut pod = pod(60, "Failed", &ended);
        pod["metadata"]["ownerReferences"] = json!([{"kind": "Job", "name": "db-init", "uid": uid}]);
        of_pod(&pod, std::slice::from_ref(&given_up)).unwrap()
    };
    assert_eq!(
        with_owner("u1"),
        lasting(
            "The job db-init failed every time it was tried: exit code 2, error: no such host. Tell the platform's operators."
        )
    );
    // The event is about an earlier job of the name.
    assert_eq!(
        with_owner("u2"),
        passing("A try of the job db-init failed: exit code 2, error: no such host.")
    );
}

#[test]
fn volumes_that_cannot_be_made_end_it() {
    let claim = |phase: &str, made_ago: i64| json!({"metadata": {"name": "data-db-0", "creationTimestamp": at(made_ago)}, "status": {"phase": phase}});
    let told = |reason: &str, message: &str, first: i64| {
        event("PersistentVolumeClaim", "data-db-0", reason, message, first, 1)
    };
    let of = |claim: &Value, events: &[Value]| trouble(&[], &[claim], events, NOW);
    let no_class = told(
        "ProvisioningFailed",
        "storageclass.storage.k8s.io \"fast\" not found",
        10,
    );
    let found = of(&claim("Pending", 20), &[no_class]).unwrap();
    assert!(
        found.terminal
            && found
                .sentence
                .contains("The volume data-db-0 cannot be made: storageclass"),
        "{found:?}"
    );
    let full = |first: i64| {
        told(
            "ProvisioningFailed",
            "failed to provision volume: out of space",
            first,
        )
    };
    assert!(!of(&claim("Pending", 600), &[full(60)]).unwrap().terminal);
    assert!(of(&claim("Pending", 600), &[full(121)]).unwrap().terminal);
    let waits = told("WaitForFirstConsumer", "waiting for first consumer", 300);
    assert_eq!(of(&claim("Pending", 600), &[waits]), None);
    assert!(of(&claim("Lost", 600), &[]).unwrap().terminal);
    assert_eq!(of(&claim("Bound", 600), &[full(300)]), None);
    let resize = told("VolumeResizeFailed", "resize not supported", 300);
    assert_eq!(
        of(&claim("Bound", 600), &[resize]),
        Some(passing(
            "The volume data-db-0 cannot be enlarged: resize not supported."
        ))
    );
}

#[test]
fn a_pod_that_runs_but_is_not_ready_says_why_after_a_while() {
    let unready = |since: i64| {
        let mut pod = pod(since, "Running", &json!({"ready": false}));
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": "False", "lastTransitionTime": at(since)}]);
        of_pod(
            &pod,
            &[event(
                "Pod",
                "db-0",
                "Unhealthy",
                "Readiness probe failed: no answer",
                5,
                5,
            )],
        )
    };
    assert_eq!(unready(30), None);
    assert_eq!(
        unready(90),
        Some(passing(
            "Pod db-0 runs but is not ready: Readiness probe failed: no answer."
        ))
    );
}

#[test]
fn what_waiting_cannot_mend_is_told_before_what_it_can() {
    let slow = pod(60, "Pending", &waiting("ErrImagePull", "timeout"));
    let mut broken = pod(60, "Pending", &waiting("InvalidImageName", ""));
    broken["metadata"]["name"] = json!("db-1");
    let found = trouble(&[&slow, &broken], &[], &[], NOW).unwrap();
    assert!(
        found.terminal && found.sentence.starts_with("Pod db-1"),
        "{found:?}"
    );
    let found = trouble(&[&slow], &[], &[], NOW).unwrap();
    assert!(
        !found.terminal && found.sentence.starts_with("Pod db-0"),
        "{found:?}"
    );
}

#[test]
fn events_of_the_newer_kind_are_read_alike() {
    let newer = json!({
        "regarding": {"kind": "StatefulSet", "name": "db"}, "reason": "FailedCreate", "note": "violates PodSecurity \"restricted:latest\"",
        "eventTime": at(200), "series": {"lastObservedTime": at(5)},
    });
    assert!(of_events(&[newer]).unwrap().terminal);
}
