//! The process may die at any request it sends, before the server saw it or after it was done: the next one finishes the
//! work, and what is there in the end is what an undisturbed run leaves.

use super::fake::Fault;
use super::{Room, database, with_hook};
use chandler::domain::manifest::Desired;
use chandler::ports::{Observation, PortErrorKind, Provisioner, Removal, Volumes};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Provision,
    Update,
    Remove,
}

fn before() -> Desired {
    let mut desired = with_hook(database("db", "1Gi", "a"), "db", "one");
    desired.objects.push(super::spec(
        10,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "only-before"}}),
    ));
    desired
}

/// Another setting, a larger volume, another hook, an object less.
fn after() -> Desired {
    with_hook(database("db", "2Gi", "b"), "db", "two")
}

/// A room in which an operation of this kind can begin.
async fn room(kind: Kind) -> Room {
    let mut room = Room::new().await;
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "standard"}, "allowVolumeExpansion": true});
    room.fake.put("storage.k8s.io/v1", "storageclasses", class);
    room.fake.automatic();
    if kind != Kind::Provision {
        room.provisioned(&before()).await;
        room.restart().await;
    }
    room
}

/// Takes the operation to its end; whenever a call fails the process dies, and another one goes on. True = it died.
async fn run(room: &mut Room, kind: Kind) -> bool {
    let desired = if kind == Kind::Update { after() } else { before() };
    room.announce(&desired);
    let begun = Instant::now();
    let mut died = false;
    let mut opened = false;
    loop {
        let failed = match kind {
            Kind::Remove => match room.provisioner.remove(&room.instance, Volumes::Delete).await {
                Ok(Removal::Gone) => return died,
                Ok(Removal::StillGoing(_)) => None,
                Err(error) => Some(error),
            },
            _ => match room.provisioner.observe(&room.instance, &desired).await {
                Ok(Observation::Ready(_)) => match room.provisioner.open(&room.instance, &desired).await {
                    Ok(()) => {
                        opened = true;
                        None
                    }
                    Err(error) => Some(error),
                },
                Ok(Observation::Absent(_)) => room.provisioner.apply(&room.instance, &desired).await.err(),
                Ok(Observation::Progressing(_)) => None,
                Ok(Observation::Failed(why)) => panic!("{why}"),
                Err(error) => Some(error),
            },
        };
        if opened {
            return died;
        }
        if let Some(error) = failed {
            assert_eq!(
                error.kind,
                PortErrorKind::Transient,
                "{} ({})",
                error.message,
                error.detail
            );
            room.restart().await;
            died = true;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no end");
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
}

/// What is there, apart from names and numbers that each run makes anew.
fn left(room: &Room) -> Vec<(String, Value)> {
    let mut all = room.fake.objects();
    for (_, object) in &mut all {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|name, _| !matches!(name.as_str(), "uid" | "resourceVersion" | "generation"));
        }
        if let Some(status) = object["status"].as_object_mut() {
            status.remove("observedGeneration");
        }
    }
    all
}

async fn matrix(kind: Kind) {
    let mut undisturbed = room(kind).await;
    let before = undisturbed.fake.requests();
    run(&mut undisturbed, kind).await;
    let expected = left(&undisturbed);
    let requests = undisturbed.fake.requests() - before;
    assert!(kind == Kind::Remove || requests > 10, "{requests}");
    for n in 1..=requests {
        // Before it was seen, or after it was done: by turns, because each run costs time.
        let fault = if n % 2 == 0 { Fault::Lost } else { Fault::Broken };
        let mut room = room(kind).await;
        room.fake.plan_nth(n, fault);
        run(&mut room, kind).await;
        assert_eq!(left(&room), expected, "{kind:?}, request {n}");
    }
}

#[tokio::test]
async fn a_provision_survives_death_at_every_request() {
    matrix(Kind::Provision).await;
}

#[tokio::test]
async fn an_update_survives_death_at_every_request() {
    matrix(Kind::Update).await;
}

#[tokio::test]
async fn a_removal_survives_death_at_every_request() {
    matrix(Kind::Remove).await;
}
