//! What an API server does to its clients: refusals, lost answers, breaks, delays, forgotten history.

use super::fake::Fault;
use super::{HOME, Room, database, eventually};
use chandler::ports::{Observation, PortErrorKind, Provisioner, Removal, Volumes};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn throttling_is_waited_out() {
    let mut room = Room::new().await;
    room.fake.plan("PATCH", "/configmaps/db", 2, Fault::Throttled(0));
    room.provisioned(&database("db", "1Gi", "a")).await;
    let log = room.fake.log();
    let sent = log
        .iter()
        .filter(|l| l.starts_with("PATCH") && l.contains("/configmaps/db"));
    assert_eq!(sent.count(), 3);
}

#[tokio::test]
async fn a_long_throttle_is_left_to_the_engine() {
    let mut room = Room::new().await;
    room.fake.plan("PATCH", "/namespaces/", 1, Fault::Throttled(60));
    let error = room.apply(&database("db", "1Gi", "a")).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
}

#[tokio::test]
async fn a_failing_server_is_tried_again_and_nothing_is_doubled() {
    let desired = database("db", "1Gi", "a");
    for fault in [
        Fault::Answer(500, "etcdserver: leader changed".into()),
        Fault::Answer(503, "starting".into()),
        Fault::Answer(409, "the object has been modified".into()),
        Fault::Lost,
        Fault::Broken,
    ] {
        for part in [
            &format!("/namespaces/{HOME}?"),
            "/secrets/db?",
            "/services/db?",
            "/statefulsets/db?",
        ] {
            let mut room = Room::new().await;
            room.fake.automatic();
            room.fake.plan("PATCH", part, 1, fault.clone());
            room.announce(&desired);
            let mut failures = 0;
            let mut ready = false;
            for _ in 0..2000 {
                let done = match room.provisioner.apply(&room.instance, &desired).await {
                    Ok(()) => room.observe(&desired).await,
                    Err(error) => {
                        assert!(
                            matches!(error.kind, PortErrorKind::Transient | PortErrorKind::Conflict),
                            "{part}: {}",
                            error.message
                        );
                        failures += 1;
                        continue;
                    }
                };
                if matches!(done, Observation::Ready(_)) {
                    ready = true;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(
                ready && failures == 1,
                "{part}: ready {ready}, {failures} failures"
            );
            let sets = room
                .fake
                .all()
                .iter()
                .filter(|n| n.starts_with("statefulsets/"))
                .count();
            assert_eq!(sets, 1);
            room.instance.established = true;
            room.removed(Volumes::Delete).await;
            assert_eq!(room.fake.all(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn refusals_end_with_a_sentence() {
    for (code, message, kind, sentence) in [
        (
            403,
            "services is forbidden: User \"u\" cannot patch resource \"services\" in API group \"\" in the namespace \"n\"",
            PortErrorKind::Denied,
            "no right to patch services",
        ),
        (
            403,
            "services \"db\" is forbidden: exceeded quota: chandler, requested: services=1, used: services=0, limited: services=0",
            PortErrorKind::Invalid,
            "quota of the namespace does not allow the Service db",
        ),
        (
            400,
            "admission webhook \"rules.example.com\" denied the request: every service must have an owner",
            PortErrorKind::Invalid,
            "every service must have an owner",
        ),
    ] {
        let mut room = Room::new().await;
        room.fake.automatic();
        let desired = database("db", "1Gi", "a");
        room.fake
            .plan("PATCH", "/services/db", 100, Fault::Answer(code, message.into()));
        room.announce(&desired);
        let begun = std::time::Instant::now();
        let error = loop {
            match room.provisioner.apply(&room.instance, &desired).await {
                Err(error) => break error,
                Ok(()) => {
                    room.observe(&desired).await;
                    assert!(begun.elapsed() < Duration::from_secs(10));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        assert_eq!(error.kind, kind, "{}", error.message);
        assert!(error.message.contains(sentence), "{}", error.message);
    }
}

#[tokio::test]
async fn a_server_that_has_just_started_and_knows_no_rights_is_waited_for() {
    let mut room = Room::new().await;
    let message = "namespaces is forbidden: User \"u\" cannot patch resource \"namespaces\" in API group \"\" at the cluster scope";
    room.fake
        .plan("PATCH", "/namespaces/", 2, Fault::Answer(403, message.into()));
    room.provisioned(&database("db", "1Gi", "a")).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_only_the_time_of_a_call() {
    let mut room = Room::with(|settings| settings.request_limit = Duration::from_millis(150)).await;
    room.fake
        .plan("GET", "/namespaces/", 1, Fault::Slow(Duration::from_secs(30)));
    let begun = std::time::Instant::now();
    let error = room.apply(&database("db", "1Gi", "a")).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    assert!(error.message.contains("cannot be reached"), "{}", error.message);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// A watch that was lost tells of no change: the last view of it must not be taken for how things are.
#[tokio::test]
async fn what_was_seen_before_a_silence_is_no_answer() {
    let mut room = Room::with(|settings| settings.request_limit = Duration::from_millis(200)).await;
    let desired = database("db", "1Gi", "a");
    room.apply(&desired).await.unwrap();
    // The controllers do nothing: it is waited for them.
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Progressing(text) if text.contains("quota")),
    )
    .await;
    room.fake.silent(true);
    let unheard = |error: chandler::ports::PortError| {
        assert_eq!(error.kind, PortErrorKind::Transient);
        assert!(error.message.contains("cannot be reached"), "{}", error.message);
    };
    eventually("the silence is noticed", async || {
        let seen = room.provisioner.observe(&room.instance, &desired).await;
        seen.map_err(unheard).is_err()
    })
    .await;
    // Many who ask at once share one request.
    let before = room.fake.requests();
    let looks = (0..50).map(|_| room.provisioner.observe(&room.instance, &desired));
    for seen in futures::future::join_all(looks).await {
        unheard(seen.unwrap_err());
    }
    assert!(room.fake.requests() <= before + 2);
    room.fake.silent(false);
    room.fake.automatic();
    room.fake.settle();
    eventually("it is heard again", async || {
        room.provisioner.observe(&room.instance, &desired).await.is_ok()
    })
    .await;
    room.settled(&desired).await;

    room.fake.linger();
    let told = async || room.provisioner.remove(&room.instance, Volumes::Delete).await;
    eventually(
        "the namespace goes",
        async || matches!(told().await, Ok(Removal::StillGoing(text)) if text.contains("namespace")),
    )
    .await;
    room.fake.silent(true);
    eventually("the silence is noticed", async || {
        told().await.map_err(unheard).is_err()
    })
    .await;
    room.fake.silent(false);
    room.fake.settle();
    eventually("it is gone", async || matches!(told().await, Ok(Removal::Gone))).await;
}

#[tokio::test]
async fn a_slow_list_is_waited_for_and_told() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.plan(
        "GET",
        "/statefulsets?",
        1,
        Fault::Slow(Duration::from_millis(300)),
    );
    room.apply(&desired).await.unwrap();
    room.fake.settle();
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Progressing(text) if text.contains("API server to tell")),
    )
    .await;
    room.fake.automatic();
    room.settled(&desired).await;
}

#[tokio::test]
async fn a_lost_watch_goes_on_from_where_it_was() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    let lists = |room: &Room| {
        let log = room.fake.log();
        log.iter()
            .filter(|l| l.contains("/apis/apps/v1/statefulsets?") && !l.contains("watch"))
            .count()
    };
    let before = lists(&room);
    room.fake.manual();
    room.fake.cut_watches();
    room.fake.edit("statefulsets", HOME, "db", |set| {
        set["status"]["readyReplicas"] = 0.into()
    });
    room.apply(&desired).await.unwrap();
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Progressing(text) if text.contains("0 of 1 pods ready")),
    )
    .await;
    assert_eq!(lists(&room), before);
}

#[tokio::test]
async fn forgotten_history_is_listed_again_and_what_went_meanwhile_is_gone() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    room.apply(&desired).await.unwrap();
    room.fake.delete("services", HOME, "db");
    room.fake.expire();
    room.fake.cut_watches();
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Absent(text) if text.contains("Service db")),
    )
    .await;
    room.settled(&desired).await;
    assert!(room.fake.object("services", HOME, "db").is_some());
}

#[tokio::test]
async fn a_watch_outlives_a_server_that_refuses_it_for_a_while() {
    let mut room = Room::new().await;
    room.fake
        .plan("GET", "watch=true", 8, Fault::Answer(500, "starting".into()));
    room.fake.plan("GET", "/pods?", 2, Fault::Broken);
    room.provisioned(&database("db", "1Gi", "a")).await;
}

#[tokio::test]
async fn pods_that_cannot_start_are_told_with_the_reason() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.automatic();
    room.fake.pods_fail(json!({
        "phase": "Pending",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "main", "ready": false, "restartCount": 0, "image": "db",
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"db\""}}}],
    }));
    room.apply(&desired).await.unwrap();
    let seen = room
        .watch_until(&desired, |seen| {
            matches!(seen, Observation::Failed(text) | Observation::Progressing(text) if text.contains("image"))
        })
        .await;
    assert!(format!("{seen:?}").contains("db"), "{seen:?}");
}

#[tokio::test]
async fn a_missing_right_to_watch_is_told() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    let message = "statefulsets.apps is forbidden: User \"u\" cannot list resource \"statefulsets\" in API group \"apps\" at the cluster scope";
    room.fake
        .plan("GET", "/statefulsets?", 1000, Fault::Answer(403, message.into()));
    room.fake.automatic();
    room.announce(&desired);
    let mut said = String::new();
    eventually("the refusal", async || {
        let applied = room.provisioner.apply(&room.instance, &desired).await;
        let seen = room.provisioner.observe(&room.instance, &desired).await;
        applied.is_err() || seen.is_err()
    })
    .await;
    if let Err(error) = room.provisioner.observe(&room.instance, &desired).await {
        said = error.message;
    }
    assert!(said.contains("no right to list statefulsets.apps"), "{said}");
}
