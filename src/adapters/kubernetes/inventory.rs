//! Every object an instance may have, so that each can be found and removed, whatever made it.

use super::dress::Dressed;
use super::shape;
use crate::ports::ObjectRef;

/// Every object that applying `dressed` may make, the volumes of its StatefulSets among them; each once.
///
/// Volumes that an operator makes for its custom resource are not here: they carry the instance's label.
pub(super) fn of(dressed: &[Dressed]) -> Vec<ObjectRef> {
    let mut all: Vec<ObjectRef> = Vec::new();
    for one in dressed {
        all.push(one.reference.clone());
        if shape::kind(&one.object) == "StatefulSet" {
            all.extend(volumes(one));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|reference| seen.insert(reference.clone()));
    all
}

fn volumes(set: &Dressed) -> impl Iterator<Item = ObjectRef> {
    let object = &set.object;
    let first = shape::number(object, "/spec/ordinals/start").unwrap_or_default();
    let count = shape::pods_at_once(object);
    shape::list(object, "/spec/volumeClaimTemplates")
        .iter()
        .flat_map(move |template| {
            let template = shape::name(template);
            (first..first.saturating_add(count)).map(move |n| ObjectRef {
                api_version: "v1".into(),
                kind: "PersistentVolumeClaim".into(),
                namespace: set.reference.namespace.clone(),
                name: format!("{template}-{}-{n}", set.reference.name),
            })
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::{Value, json};

    fn dressed(object: Value) -> Dressed {
        Dressed {
            reference: ObjectRef {
                api_version: shape::text(&object, "/apiVersion").into(),
                kind: shape::kind(&object).into(),
                namespace: "ns".into(),
                name: shape::name(&object).into(),
            },
            phase: 10,
            ready: None,
            failed: None,
            object,
        }
    }

    #[test]
    fn volumes_of_a_stateful_set_are_in_it_and_nothing_twice() {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "replicas": 2, "ordinals": {"start": 3},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}, {"metadata": {"name": "log"}}],
        }});
        let claim =
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data-db-3"}});
        let found = of(&[dressed(claim), dressed(set)]);
        let names: Vec<_> = found.iter().map(|r| (r.kind.as_str(), r.name.as_str())).collect();
        assert_eq!(
            names,
            [
                ("PersistentVolumeClaim", "data-db-3"),
                ("StatefulSet", "db"),
                ("PersistentVolumeClaim", "data-db-4"),
                ("PersistentVolumeClaim", "log-db-3"),
                ("PersistentVolumeClaim", "log-db-4"),
            ]
        );
        assert!(found.iter().all(|r| r.namespace == "ns"));
        assert_eq!(found.iter().filter(|r| r.holds_data()).count(), 4);
    }

    #[test]
    fn a_set_that_says_nothing_has_one_pod() {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {"volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
        assert_eq!(of(&[dressed(set)])[1].name, "data-db-0");
    }
}
