//! From nothing to a ready instance, in how many requests, and what another process takes over.

use super::{HOME, IID, Room, database, eventually, spec, with_hook};
use chandler::domain::instance::Endpoint;
use chandler::ports::{Observation, PortErrorKind, Provisioner, Volumes};
use serde_json::json;

#[tokio::test]
async fn an_instance_comes_up_in_few_requests_and_leaves_nothing() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    let endpoints = room.provisioned(&desired).await;
    assert_eq!(
        endpoints,
        [Endpoint {
            name: "client".into(),
            host: format!("db.{HOME}.svc.cluster.local"),
            port: 5432,
        }]
    );
    let requests = room.fake.requests();
    assert!(
        requests <= 40,
        "{requests} requests:\n{}",
        room.fake.log().join("\n")
    );
    assert_eq!(room.provisioner.list().await.unwrap(), [IID]);
    let set = room.fake.object("statefulsets", HOME, "db").unwrap();
    assert_eq!(set["metadata"]["labels"]["chandler.osb/instance"], IID);
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.all(), Vec::<String>::new());
    assert_eq!(room.provisioner.list().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn looking_costs_no_request_and_secrets_are_never_listed() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.apply(&desired).await.unwrap();
    room.fake.settle();
    room.watch_until(&desired, |seen| {
        matches!(seen, Observation::Progressing(text) if text.contains("pods"))
            || matches!(seen, Observation::Ready(_))
    })
    .await;
    let before = room.fake.requests();
    for _ in 0..50 {
        room.observe(&desired).await;
    }
    assert_eq!(room.fake.requests(), before);
    let log = room.fake.log();
    let lists = log
        .iter()
        .filter(|line| line.contains("/secrets?") || line.contains("/configmaps?"));
    assert_eq!(lists.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test]
async fn watches_do_not_grow_with_instances() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.provisioned(&desired).await;
    let (watches, opened) = (room.provisioner.watched_kinds(), watch_requests(&room));
    for n in 0..5 {
        room.instance.iid = format!("{}{n}", "bbbbbbbbbbbbbbbbbbbbbbbbb").replace(['0', '1'], "c");
        room.instance.iid.truncate(26);
        room.instance.inventory.clear();
        room.instance.established = false;
        room.provisioned(&desired).await;
    }
    assert_eq!(room.provisioner.watched_kinds(), watches);
    assert_eq!(watch_requests(&room), opened);
}

fn watch_requests(room: &Room) -> usize {
    room.fake
        .log()
        .iter()
        .filter(|line| line.contains("watch=true"))
        .count()
}

#[tokio::test]
async fn a_phase_begins_when_the_one_before_is_ready() {
    let mut room = Room::new().await;
    let desired = with_hook(database("db", "1Gi", "a"), "db", "one");
    room.apply(&desired).await.unwrap();
    // The quota is not counted yet: nothing of the plan itself is made.
    assert!(room.fake.object("statefulsets", HOME, "db").is_none());
    room.fake.settle();
    room.watch_until(&desired, |_| {
        room.fake.object("statefulsets", HOME, "db").is_some()
    })
    .await;
    for _ in 0..20 {
        room.watch_until(&desired, |_| true).await;
        room.provisioner.apply(&room.instance, &desired).await.unwrap();
    }
    assert!(room.fake.object("jobs", HOME, "db-setup").is_none());
    room.fake.automatic();
    room.fake.settle();
    room.settled(&desired).await;
    assert!(room.fake.object("jobs", HOME, "db-setup").is_some());
}

#[tokio::test]
async fn applications_are_let_in_last() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.automatic();
    room.apply(&desired).await.unwrap();
    room.watch_until(&desired, |seen| matches!(seen, Observation::Ready(_)))
        .await;
    let policies = |room: &Room| {
        room.fake
            .all()
            .iter()
            .filter(|name| name.starts_with("networkpolicies/"))
            .count()
    };
    let before = policies(&room);
    assert!(before > 0, "{:?}", room.fake.all());
    room.provisioner.open(&room.instance, &desired).await.unwrap();
    assert_eq!(policies(&room), before + 1);
    room.provisioner.open(&room.instance, &desired).await.unwrap();
    assert_eq!(policies(&room), before + 1);
}

#[tokio::test]
async fn another_process_goes_on_where_the_first_was_killed() {
    let mut room = Room::new().await;
    let desired = with_hook(database("db", "1Gi", "a"), "db", "one");
    room.fake.automatic();
    room.apply(&desired).await.unwrap();
    let set = |room: &Room| room.fake.object("statefulsets", HOME, "db");
    room.watch_until(&desired, |_| set(&room).is_some()).await;
    let uid = set(&room).unwrap()["metadata"]["uid"].clone();
    room.restart().await;
    room.settled(&desired).await;
    assert_eq!(set(&room).unwrap()["metadata"]["uid"], uid);
    let applied = room.fake.log();
    let applied = applied
        .iter()
        .filter(|l| l.starts_with("PATCH") && l.contains("/statefulsets/db"));
    assert_eq!(applied.count(), 1);
}

#[tokio::test]
async fn what_is_as_wanted_is_not_applied_again() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.automatic();
    room.apply(&desired).await.unwrap();
    room.watch_until(&desired, |seen| matches!(seen, Observation::Ready(_)))
        .await;
    let before = room.fake.requests();
    room.apply(&desired).await.unwrap();
    assert_eq!(room.fake.requests(), before);
}

#[tokio::test]
async fn a_namespace_that_is_not_ours_is_left_alone() {
    let mut room = Room::new().await;
    let theirs =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME, "labels": {"team": "x"}}});
    room.fake.put("v1", "namespaces", theirs);
    let before = room.fake.object("namespaces", "", HOME);
    let error = room.apply(&database("db", "1Gi", "a")).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied, "{}", error.message);
    assert!(
        error.message.contains("is not this instance's"),
        "{}",
        error.message
    );
    assert_eq!(room.fake.object("namespaces", "", HOME), before);
    // Nor is it removed.
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.object("namespaces", "", HOME), before);
}

#[tokio::test]
async fn in_a_shared_namespace_nothing_of_others_is_written_over_or_removed() {
    let mut room = Room::with(|settings| settings.shared_namespace = Some("data".into())).await;
    let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "data", "labels": {"app.kubernetes.io/managed-by": "chandler"}}});
    room.fake.put("v1", "namespaces", home);
    let name = format!("db-{IID}");
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "data"}, "data": {"a": "b"}});
    room.fake.put("v1", "configmaps", theirs);
    room.fake.automatic();
    let desired = database(&name, "1Gi", "a");
    room.announce(&desired);
    let mut refused = None;
    eventually("the refusal", async || {
        room.provisioner.apply(&room.instance, &desired).await.is_err()
    })
    .await;
    if let Err(error) = room.provisioner.apply(&room.instance, &desired).await {
        refused = Some(error);
    }
    assert_eq!(refused.unwrap().kind, PortErrorKind::Denied);
    assert_eq!(
        room.fake.object("configmaps", "data", &name).unwrap()["data"],
        json!({"a": "b"})
    );
    room.removed(Volumes::Delete).await;
    let mut left = room.fake.all();
    left.sort();
    assert_eq!(left, [format!("configmaps/{name}"), "namespaces/data".into()]);
}

#[tokio::test]
async fn a_shared_namespace_holds_several_and_loses_only_one() {
    let mut room = Room::with(|settings| settings.shared_namespace = Some("data".into())).await;
    let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "data", "labels": {"app.kubernetes.io/managed-by": "chandler"}}});
    room.fake.put("v1", "namespaces", home);
    let other = "cdefghijklmnopqrstuvwxyzab";
    let first = database(&format!("db-{IID}"), "1Gi", "a");
    let endpoints = room.provisioned(&first).await;
    assert_eq!(endpoints[0].host, format!("db-{IID}.data.svc.cluster.local"));
    let first_instance = room.instance.clone();
    let alone: Vec<String> = room.fake.all();
    room.instance.iid = other.into();
    room.instance.inventory.clear();
    room.instance.established = false;
    room.provisioned(&database(&format!("db-{other}"), "1Gi", "a"))
        .await;
    assert_eq!(room.provisioner.list().await.unwrap(), [IID, other]);
    room.removed(Volumes::Delete).await;
    assert_eq!(room.fake.all(), alone);
    // Found by label, without an inventory: all but the Secret, which nobody may list.
    room.instance = first_instance;
    room.instance.inventory.clear();
    room.removed(Volumes::Delete).await;
    assert_eq!(
        room.fake.all(),
        ["namespaces/data".to_owned(), format!("secrets/db-{IID}")]
    );
}

#[tokio::test]
async fn custom_kinds_are_offered_only_where_the_cluster_has_them() {
    use chandler::adapters::catalog_dir;
    use chandler::domain::catalog::{Catalog, KnownMechanisms};
    let room = Room::new().await;
    let mut sources = catalog_dir::embedded();
    let offering = "name: cloud\nid: 0c0a3a1e-4f1b-4d5e-9a61-3f4be7f31a01\ndescription: A test.\nresources:\n  - {api_version: example.org/v1, kind: Cloud, plural: clouds}\n";
    sources.insert("catalog/cloud/offering.yaml".into(), offering.into());
    let objects = "apiVersion: example.org/v1\nkind: Cloud\nmetadata: {name: \"${name}\"}\nwhen: ${plan.big}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: \"${name}\"}\n";
    sources.insert("catalog/cloud/objects/cloud.yaml".into(), objects.into());
    for (plan, id, big) in [
        ("small", "7d1ffb2c-8f16-4d2c-a7f0-06a9d4ad6b11", false),
        ("big", "7d1ffb2c-8f16-4d2c-a7f0-06a9d4ad6b12", true),
    ] {
        let text = format!(
            "name: {plan}\nid: {id}\ndescription: A test.\nruns_on: [kubernetes]\nvalues: {{big: {big}}}\n"
        );
        sources.insert(format!("plans/cloud/{plan}.yaml"), text);
    }
    let catalog = Catalog::load(&sources, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
    let cloud = catalog.offerings.iter().find(|o| o.name == "cloud").unwrap();
    let offered = |name: &str| {
        let plan = cloud.plans.iter().find(|p| p.name == name).unwrap();
        room.provisioner.offers(cloud, plan)
    };
    room.provisioner.discover(&catalog.offerings).await.unwrap();
    assert_eq!(offered("small"), Ok(()));
    let why = offered("big").unwrap_err();
    assert!(
        why.contains("does not know the kind Cloud of example.org/v1"),
        "{why}"
    );
    let place = room.provisioner.place(&room.instance, cloud).await.unwrap();
    assert_eq!(place["cluster"]["kinds"], json!([]));

    room.fake.knows("example.org/v1", "Cloud", "clouds");
    assert!(room.provisioner.discover(&catalog.offerings).await.unwrap());
    assert!(!room.provisioner.discover(&catalog.offerings).await.unwrap());
    assert_eq!(offered("big"), Ok(()));
    let place = room.provisioner.place(&room.instance, cloud).await.unwrap();
    assert_eq!(place["cluster"]["kinds"], json!(["example.org/v1/Cloud"]));
    // What is there stays with what it was made of.
    let mut there = room.instance.clone();
    there.established = true;
    let place = room.provisioner.place(&there, cloud).await.unwrap();
    assert_eq!(place["cluster"]["kinds"], json!([]));
}

#[tokio::test]
async fn a_custom_resource_is_waited_for_by_its_own_rule() {
    let mut room = Room::new().await;
    room.fake.knows("example.org/v1", "Cloud", "clouds");
    room.fake.automatic();
    let mut desired = database("db", "1Gi", "a");
    let mut cloud = spec(
        20,
        json!({"apiVersion": "example.org/v1", "kind": "Cloud", "metadata": {"name": "db"}, "spec": {"size": 3}}),
    );
    cloud.ready = Some("object.status.phase == 'Rain'".into());
    cloud.failed = Some("object.status.phase == 'Dry' ? 'There is no water.' : ''".into());
    desired.objects.push(cloud);
    room.apply(&desired).await.unwrap();
    room.watch_until(&desired, |_| room.fake.object("clouds", HOME, "db").is_some())
        .await;
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Progressing(text) if text.contains("Cloud")),
    )
    .await;
    room.fake.edit("clouds", HOME, "db", |cloud| {
        cloud["status"] = json!({"phase": "Dry"})
    });
    let seen = room
        .watch_until(&desired, |seen| matches!(seen, Observation::Failed(_)))
        .await;
    assert!(format!("{seen:?}").contains("There is no water."), "{seen:?}");
    room.fake.edit("clouds", HOME, "db", |cloud| {
        cloud["status"] = json!({"phase": "Rain"})
    });
    room.watch_until(&desired, |seen| matches!(seen, Observation::Ready(_)))
        .await;
}

#[tokio::test]
async fn whoever_waits_is_told_at_once_that_something_happened() {
    let mut room = Room::new().await;
    let desired = database("db", "1Gi", "a");
    room.fake.automatic();
    room.fake.pods_fail(json!({"phase": "Pending"}));
    room.apply(&desired).await.unwrap();
    room.watch_until(
        &desired,
        |seen| matches!(seen, Observation::Progressing(text) if text.contains("0 of 1 pods")),
    )
    .await;
    // What happened before is told too; then nothing more until something happens.
    let soon = std::time::Duration::from_millis(500);
    while tokio::time::timeout(soon, room.provisioner.changed())
        .await
        .is_ok()
    {
        room.observe(&desired).await;
    }
    room.fake.edit("pods", HOME, "db-0", |pod| {
        pod["status"]["phase"] = "Running".into()
    });
    let told = tokio::time::timeout(soon * 10, room.provisioner.changed()).await;
    assert_eq!(told.unwrap(), IID);
}
