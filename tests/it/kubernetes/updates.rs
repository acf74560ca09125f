//! Changes of an instance: what is applied, made again, grown, refused, pruned, and what drifted.

use super::{HOME, Room, database, eventually, spec, with_hook};
use chandler::domain::manifest::Desired;
use chandler::ports::{Observation, PortErrorKind, Provisioner, Volumes};
use serde_json::{Value, json};

fn class(room: &Room, grows: bool) {
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "standard"}, "allowVolumeExpansion": grows});
    room.fake.put("storage.k8s.io/v1", "storageclasses", class);
}

fn uid(room: &Room, plural: &str, name: &str) -> Value {
    let object = room.fake.object(plural, HOME, name);
    object
        .map(|object| object["metadata"]["uid"].clone())
        .unwrap_or_default()
}

/// As the engine's update.
async fn updated(room: &mut Room, desired: &Desired) {
    room.apply(desired).await.unwrap();
    room.settled(desired).await;
}

#[tokio::test]
async fn a_changed_setting_changes_only_what_holds_it() {
    let mut room = Room::new().await;
    room.provisioned(&database("db", "1Gi", "a")).await;
    let before = uid(&room, "statefulsets", "db");
    updated(&mut room, &database("db", "1Gi", "b")).await;
    assert_eq!(
        room.fake.object("configmaps", HOME, "db").unwrap()["data"]["db.conf"],
        "b"
    );
    assert_eq!(uid(&room, "statefulsets", "db"), before);
    let generation = &room.fake.object("statefulsets", HOME, "db").unwrap()["metadata"]["generation"];
    assert_eq!(*generation, 1);
}

#[tokio::test]
async fn a_field_that_is_not_wanted_any_more_goes() {
    let mut room = Room::new().await;
    let mut desired = database("db", "1Gi", "a");
    desired.objects[1].object["data"]["old.conf"] = "x".into();
    room.provisioned(&desired).await;
    updated(&mut room, &database("db", "1Gi", "a")).await;
    let data = &room.fake.object("configmaps", HOME, "db").unwrap()["data"];
    assert_eq!(*data, json!({"db.conf": "a"}));
}

#[tokio::test]
async fn what_is_not_rendered_any_more_is_pruned_but_never_volumes() {
    let mut room = Room::new().await;
    let mut desired = database("db", "1Gi", "a");
    desired.objects.push(spec(
        10,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}),
    ));
    desired.objects.push(spec(
        10,
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "more"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }),
    ));
    room.provisioned(&desired).await;
    let fewer = database("db", "1Gi", "a");
    // The process that applies is another than the one that sees it through.
    room.apply(&fewer).await.unwrap();
    room.restart().await;
    room.settled(&fewer).await;
    assert!(room.fake.object("configmaps", HOME, "extra").is_none());
    assert!(room.fake.object("persistentvolumeclaims", HOME, "more").is_some());
    assert!(room.instance.inventory.iter().any(|object| object.name == "more"));
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.all(), Vec::<String>::new());
}

#[tokio::test]
async fn pruning_spares_what_lost_our_labels() {
    let mut room = Room::new().await;
    let mut desired = database("db", "1Gi", "a");
    desired.objects.push(spec(
        10,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}),
    ));
    room.provisioned(&desired).await;
    room.fake.edit("configmaps", HOME, "extra", |object| {
        object["metadata"]["labels"] = json!({});
    });
    updated(&mut room, &database("db", "1Gi", "a")).await;
    assert!(room.fake.object("configmaps", HOME, "extra").is_some());
}

#[tokio::test]
async fn a_changed_hook_runs_again() {
    let mut room = Room::new().await;
    room.provisioned(&with_hook(database("db", "1Gi", "a"), "db", "one"))
        .await;
    let before = uid(&room, "jobs", "db-setup");
    updated(&mut room, &with_hook(database("db", "1Gi", "a"), "db", "one")).await;
    assert_eq!(uid(&room, "jobs", "db-setup"), before);
    updated(&mut room, &with_hook(database("db", "1Gi", "a"), "db", "two")).await;
    assert_ne!(uid(&room, "jobs", "db-setup"), before);
}

#[tokio::test]
async fn volumes_grow_around_running_pods() {
    let mut room = Room::new().await;
    class(&room, true);
    room.provisioned(&database("db", "1Gi", "a")).await;
    let (set, pod) = (uid(&room, "statefulsets", "db"), uid(&room, "pods", "db-0"));
    let volume = uid(&room, "persistentvolumeclaims", "data-db-0");
    updated(&mut room, &database("db", "2Gi", "a")).await;
    let claim = room
        .fake
        .object("persistentvolumeclaims", HOME, "data-db-0")
        .unwrap();
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
    assert_eq!(claim["metadata"]["uid"], volume);
    assert_eq!(uid(&room, "pods", "db-0"), pod);
    assert_ne!(uid(&room, "statefulsets", "db"), set);
    let template = &room.fake.object("statefulsets", HOME, "db").unwrap()["spec"]["volumeClaimTemplates"][0];
    assert_eq!(template["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[tokio::test]
async fn a_killed_process_leaves_growing_to_the_next() {
    let mut room = Room::new().await;
    class(&room, true);
    room.provisioned(&database("db", "1Gi", "a")).await;
    let pod = uid(&room, "pods", "db-0");
    let more = database("db", "2Gi", "a");
    // Dies after each of its steps in turn, until there is nothing left to do.
    for _ in 0..12 {
        let _ = room.apply(&more).await;
        room.restart().await;
        eventually("the watches", async || {
            !matches!(room.observe(&more).await, Observation::Progressing(text) if text.contains("API server"))
        })
        .await;
    }
    room.settled(&more).await;
    assert_eq!(uid(&room, "pods", "db-0"), pod);
    let template = &room.fake.object("statefulsets", HOME, "db").unwrap()["spec"]["volumeClaimTemplates"][0];
    assert_eq!(template["spec"]["resources"]["requests"]["storage"], "2Gi");
}

#[tokio::test]
async fn volumes_that_cannot_grow_or_would_shrink_are_refused_before_anything_changed() {
    let mut room = Room::new().await;
    class(&room, false);
    room.provisioned(&database("db", "2Gi", "a")).await;
    let before = room.fake.object("statefulsets", HOME, "db");
    for (size, why) in [
        ("3Gi", "does not let volumes grow"),
        ("1Gi", "cannot be made smaller"),
    ] {
        let desired = database("db", size, "a");
        let error = loop {
            match room.apply(&desired).await {
                Err(error) => break error,
                Ok(()) => {
                    room.watch_until(&desired, |seen| matches!(seen, Observation::Absent(_)))
                        .await;
                }
            }
        };
        assert_eq!(error.kind, PortErrorKind::Invalid);
        assert!(error.message.contains(why), "{}", error.message);
        assert_eq!(room.fake.object("statefulsets", HOME, "db"), before);
        let claim = room
            .fake
            .object("persistentvolumeclaims", HOME, "data-db-0")
            .unwrap();
        assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "2Gi");
    }
    // Going back works: nothing had changed.
    let back = database("db", "2Gi", "a");
    room.apply(&back).await.unwrap();
    room.settled(&back).await;
}

#[tokio::test]
async fn what_somebody_edited_is_told_without_values_and_put_back_by_applying() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    assert_eq!(
        room.provisioner.drift(&room.instance, &desired).await.unwrap(),
        Vec::<String>::new()
    );
    room.fake.edit("configmaps", HOME, "db", |object| {
        object["data"]["db.conf"] = "hunter2".into()
    });
    room.fake.edit("statefulsets", HOME, "db", |object| {
        object["spec"]["replicas"] = 0.into()
    });
    room.fake.delete("services", HOME, "db");
    let before = room.fake.object("configmaps", HOME, "db");
    let mut lines = room.provisioner.drift(&room.instance, &desired).await.unwrap();
    lines.sort();
    assert_eq!(
        lines,
        [
            "ConfigMap db differs in data.db.conf",
            "Service db is missing",
            "StatefulSet db differs in spec.replicas",
        ]
    );
    assert_eq!(room.fake.object("configmaps", HOME, "db"), before);
}

#[tokio::test]
async fn a_smaller_plan_narrows_the_quota_only_when_it_is_done() {
    let mut room = Room::new().await;
    let mut large = database("db", "1Gi", "a");
    large.objects[3].object["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"] =
        "8Gi".into();
    large.objects[3].object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] =
        "8Gi".into();
    room.provisioned(&large).await;
    let quota = |room: &Room| {
        let name = room
            .fake
            .all()
            .into_iter()
            .find_map(|n| n.strip_prefix("resourcequotas/").map(str::to_owned))
            .unwrap();
        room.fake.object("resourcequotas", HOME, &name).unwrap()["spec"]["hard"]["requests.memory"].clone()
    };
    let wide = quota(&room);
    let small = database("db", "1Gi", "a");
    room.apply(&small).await.unwrap();
    assert_eq!(quota(&room), wide);
    room.settled(&small).await;
    assert_ne!(quota(&room), wide);
}
