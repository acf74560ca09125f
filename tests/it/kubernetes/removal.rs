//! Taking instances away: order, what holds things up, what is kept, and by whose hand things went.

use super::{HOME, IID, Room, database, eventually, spec, with_hook};
use chandler::ports::{InstanceRef, Observation, PortErrorKind, Provisioner, Removal, Volumes};
use serde_json::json;

#[tokio::test]
async fn custom_resources_go_first_then_workloads_then_the_namespace() {
    let mut room = Room::new().await;
    room.fake.knows("example.org/v1", "Cloud", "clouds");
    let mut desired = with_hook(database("db", "1Gi", "a"), "db", "one");
    desired.objects.push(spec(
        30,
        json!({"apiVersion": "example.org/v1", "kind": "Cloud", "metadata": {"name": "db", "finalizers": ["example.org/rain"]}}),
    ));
    room.fake.automatic();
    room.apply(&desired).await.unwrap();
    room.watch_until(&desired, |_| room.fake.object("clouds", HOME, "db").is_some())
        .await;
    room.instance.established = true;
    room.fake.linger();
    room.fake.pods_stay(true);
    let told = async |room: &Room| match room
        .provisioner
        .remove(&room.instance, Volumes::Delete)
        .await
        .unwrap()
    {
        Removal::Gone => String::from("gone"),
        Removal::StillGoing(text) => text,
    };
    for _ in 0..3 {
        let text = told(&room).await;
        assert!(
            text.contains("Cloud db") && text.contains("example.org/rain"),
            "{text}"
        );
        assert!(
            room.fake.object("statefulsets", HOME, "db").unwrap()["metadata"]
                .get("deletionTimestamp")
                .is_none()
        );
    }
    room.fake.edit("clouds", HOME, "db", |cloud| {
        cloud["metadata"]["finalizers"] = json!([])
    });
    room.fake.delete("clouds", HOME, "db");
    eventually("the workloads", async || {
        told(&room).await.contains("StatefulSet db")
    })
    .await;
    let home = room.fake.object("namespaces", "", HOME).unwrap();
    assert!(home["metadata"].get("deletionTimestamp").is_none());
    room.fake.pods_stay(false);
    room.fake.settle();
    // Leads to deletion of the namespace, which the server is slow with.
    let mut home = json!({"metadata": {}});
    eventually("the namespace to go", async || {
        told(&room).await;
        room.fake
            .object("namespaces", "", HOME)
            .is_none_or(|home| home["metadata"].get("deletionTimestamp").is_some())
    })
    .await;
    if let Some(there) = room.fake.object("namespaces", "", HOME) {
        home = there;
    }
    if home["metadata"].get("deletionTimestamp").is_some() {
        room.fake.edit("namespaces", "", HOME, |home| {
            home["status"] = json!({"conditions": [{
                "type": "NamespaceFinalizersRemaining", "status": "True",
                "message": "Some content in the namespace has finalizers remaining: example.org/x in 1 resource instances",
            }]});
        });
        eventually("the reason", async || {
            told(&room)
                .await
                .contains("example.org/x in 1 resource instances")
        })
        .await;
        room.fake.settle();
    }
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.all(), Vec::<String>::new());
    assert_eq!(told(&room).await, "gone");
}

#[tokio::test]
async fn kept_volumes_stay_with_their_namespace_and_come_back() {
    let mut room = Room::new().await;
    let desired = with_hook(database("db", "1Gi", "a"), "db", "one");
    room.provisioned(&desired).await;
    let volume = |room: &Room| {
        room.fake
            .object("persistentvolumeclaims", HOME, "data-db-0")
            .unwrap()
    };
    let uid = volume(&room)["metadata"]["uid"].clone();
    room.removed(Volumes::Keep).await;
    let left = room.fake.all();
    let kinds: std::collections::BTreeSet<&str> = left.iter().filter_map(|n| n.split('/').next()).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [
            "limitranges",
            "namespaces",
            "persistentvolumeclaims",
            "resourcequotas"
        ]
    );
    let retained = "chandler.osb/retained";
    assert_eq!(volume(&room)["metadata"]["labels"][retained], "true");
    assert_eq!(
        room.fake.object("namespaces", "", HOME).unwrap()["metadata"]["labels"][retained],
        "true"
    );
    assert_eq!(room.provisioner.list().await.unwrap(), [IID]);
    // Keeping again changes nothing.
    room.removed(Volumes::Keep).await;
    assert_eq!(room.fake.all(), left);

    room.apply(&desired).await.unwrap();
    room.settled(&desired).await;
    assert_eq!(volume(&room)["metadata"]["uid"], uid);
    assert!(volume(&room)["metadata"]["labels"].get(retained).is_none());
    assert!(
        room.fake.object("namespaces", "", HOME).unwrap()["metadata"]["labels"]
            .get(retained)
            .is_none()
    );
    room.removed(Volumes::Keep).await;
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.all(), Vec::<String>::new());
}

#[tokio::test]
async fn an_instance_is_removed_by_its_iid_alone() {
    let mut room = Room::new().await;
    room.provisioned(&database("db", "1Gi", "a")).await;
    room.restart().await;
    let unknown = InstanceRef {
        iid: IID.into(),
        ..InstanceRef::default()
    };
    eventually("removal", async || {
        matches!(
            room.provisioner.remove(&unknown, Volumes::Delete).await.unwrap(),
            Removal::Gone
        )
    })
    .await;
    assert_eq!(room.fake.all(), Vec::<String>::new());
}

#[tokio::test]
async fn removal_survives_the_death_of_the_process_at_any_point() {
    let mut room = Room::new().await;
    room.provisioned(&with_hook(database("db", "1Gi", "a"), "db", "one"))
        .await;
    for _ in 0..20 {
        let gone = room
            .provisioner
            .remove(&room.instance, Volumes::Delete)
            .await
            .unwrap()
            == Removal::Gone;
        room.restart().await;
        if gone {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(room.fake.all(), Vec::<String>::new());
}

#[tokio::test]
async fn a_namespace_deleted_by_hand_is_told_and_never_made_anew_silently() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    room.fake.delete("namespaces", "", HOME);
    let seen = room
        .watch_until(&desired, |seen| matches!(seen, Observation::Failed(_)))
        .await;
    assert!(
        format!("{seen:?}").contains("was deleted outside the broker, and its data with it"),
        "{seen:?}"
    );
    let error = room.apply(&desired).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(
        error.message.contains("deleted outside the broker"),
        "{}",
        error.message
    );
    assert_eq!(room.fake.all(), Vec::<String>::new());
    room.removed(Volumes::Delete).await;
}

#[tokio::test]
async fn volumes_deleted_by_hand_are_told_and_never_made_anew_silently() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    room.fake.delete("statefulsets", HOME, "db");
    room.fake.delete("persistentvolumeclaims", HOME, "data-db-0");
    room.restart().await;
    let error = room.apply(&desired).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(
        error.message.contains("volumes of this instance were deleted"),
        "{}",
        error.message
    );
    assert!(room.fake.object("statefulsets", HOME, "db").is_none());
}

#[tokio::test]
async fn an_earlier_namespace_of_the_same_name_is_waited_for() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    room.fake.linger();
    eventually("the namespace to be on its way", async || {
        let left = room
            .provisioner
            .remove(&room.instance, Volumes::Delete)
            .await
            .unwrap();
        matches!(left, Removal::StillGoing(text) if text.contains("namespace"))
    })
    .await;
    // A new instance under the same name, as after a deletion that timed out.
    room.instance.established = false;
    let begun = std::time::Instant::now();
    let error = loop {
        match room.apply(&desired).await {
            Err(error) => break error,
            Ok(()) => assert!(
                begun.elapsed().as_secs() < 5,
                "applied into a namespace on its way out"
            ),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        if room.fake.object("namespaces", "", HOME).is_none() {
            return;
        }
    };
    assert_eq!(error.kind, PortErrorKind::Transient, "{}", error.message);
    assert!(error.message.contains("earlier namespace"), "{}", error.message);
    room.fake.settle();
    let begun = std::time::Instant::now();
    while room.apply(&desired).await.is_err() {
        assert!(begun.elapsed().as_secs() < 5);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    room.settled(&desired).await;
}

#[tokio::test]
async fn deleted_objects_come_back_while_their_namespace_is_there() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.automatic();
    room.apply(&desired).await.unwrap();
    room.watch_until(&desired, |seen| matches!(seen, Observation::Ready(_)))
        .await;
    room.fake.delete("services", HOME, "db");
    // The watch must show it missing for longer than the server's word counts.
    room.restart().await;
    room.settled(&desired).await;
    assert!(room.fake.object("services", HOME, "db").is_some());
}
