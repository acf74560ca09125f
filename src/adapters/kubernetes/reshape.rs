//! What a StatefulSet does not let anybody change, and what to do about it.
//!
//! What must stay true: no volume ever becomes smaller or is made anew. Where the set itself has to be made again its
//! pods and volumes stay (it is removed as an orphan's parent), so the service goes on running.

use super::{quantity, shape};
use serde_json::Value;

/// What a change of a StatefulSet needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reshape {
    /// Nothing beyond applying it.
    Apply,
    /// The set is made again around its pods, after these volumes have grown.
    Again(Vec<Growth>),
    /// Cannot be done; the text is for people.
    Refused(String),
}

/// Volumes of one template that have to grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Growth {
    /// Name of the template.
    pub template: String,
    /// Size wanted, as Kubernetes writes it.
    pub size: String,
}

/// Compares the set in the cluster with the wanted one.
pub(super) fn of(live: &Value, wanted: &Value) -> Reshape {
    let name = shape::name(wanted);
    if live.pointer("/spec/selector") != wanted.pointer("/spec/selector") {
        return Reshape::Refused(format!(
            "The pods of {name} are found by other labels now, which cannot be changed while it exists. The operator has to mend the catalog."
        ));
    }
    let differs = |pointer: &str, usual: &str| {
        let text = |object: &Value| match shape::text(object, pointer) {
            "" => usual.to_owned(),
            text => text.to_owned(),
        };
        text(live) != text(wanted)
    };
    let mut again = differs("/spec/serviceName", "") || differs("/spec/podManagementPolicy", "OrderedReady");
    let mut growths = Vec::new();
    let templates = "/spec/volumeClaimTemplates";
    let (there, want) = (shape::list(live, templates), shape::list(wanted, templates));
    again |= there.len() != want.len();
    for template in want {
        let name = shape::name(template);
        let Some(old) = there.iter().find(|old| shape::name(old) == name) else {
            again = true;
            continue;
        };
        let class = "/spec/storageClassName";
        if !shape::text(template, class).is_empty() && shape::text(template, class) != shape::text(old, class)
        {
            return Reshape::Refused(format!(
                "The volume {name} is of the StorageClass {}; it cannot move to {}. Create a new instance and move the data.",
                shape::text(old, class),
                shape::text(template, class)
            ));
        }
        let storage = "/spec/resources/requests/storage";
        let (size, before) = (shape::text(template, storage), shape::text(old, storage));
        let amount = |template: &Value| template.pointer(storage).and_then(quantity::milli);
        match (amount(template), amount(old)) {
            (Some(new), Some(old)) if new < old => {
                return Reshape::Refused(format!(
                    "The volume {name} has {before} and cannot be made smaller; {size} was asked for."
                ));
            }
            (Some(new), Some(old)) if new > old => growths.push(Growth {
                template: name.to_owned(),
                size: size.to_owned(),
            }),
            _ => {}
        }
        again |= !holds(
            old.pointer("/metadata/labels"),
            template.pointer("/metadata/labels"),
        );
    }
    if again || !growths.is_empty() {
        Reshape::Again(growths)
    } else {
        Reshape::Apply
    }
}

/// Whether every member of `part` is in `whole`.
fn holds(whole: Option<&Value>, part: Option<&Value>) -> bool {
    let part = part.and_then(Value::as_object);
    part.into_iter()
        .flatten()
        .all(|(name, value)| whole.and_then(|whole| whole.get(name)) == Some(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    fn set(size: &str, class: Option<&str>, policy: Option<&str>) -> Value {
        let mut set = json!({
            "metadata": {"name": "db"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}}, "serviceName": "db",
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data", "labels": {"l": "1"}},
                    "spec": {"resources": {"requests": {"storage": size}}},
                }],
            },
        });
        if let Some(class) = class {
            set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] = class.into();
        }
        if let Some(policy) = policy {
            set["spec"]["podManagementPolicy"] = policy.into();
        }
        set
    }

    #[test]
    fn sizes_written_otherwise_are_the_same_size() {
        let live = set("1Gi", Some("fast"), Some("OrderedReady"));
        assert_eq!(of(&live, &set("1024Mi", None, None)), Reshape::Apply);
    }

    #[test]
    fn more_storage_makes_the_set_again_and_less_is_refused() {
        let live = set("1Gi", Some("fast"), None);
        let grown = Growth {
            template: "data".into(),
            size: "2Gi".into(),
        };
        assert_eq!(of(&live, &set("2Gi", None, None)), Reshape::Again(vec![grown]));
        let Reshape::Refused(why) = of(&live, &set("512Mi", None, None)) else {
            panic!("made smaller");
        };
        assert!(why.contains("cannot be made smaller"), "{why}");
    }

    #[test]
    fn another_class_or_other_pods_are_refused() {
        let live = set("1Gi", Some("fast"), None);
        assert!(
            matches!(of(&live, &set("1Gi", Some("slow"), None)), Reshape::Refused(why) if why.contains("slow"))
        );
        let mut other = set("1Gi", None, None);
        other["spec"]["selector"] = json!({"matchLabels": {"a": "c"}});
        assert!(matches!(of(&live, &other), Reshape::Refused(_)));
    }

    #[test]
    fn what_only_a_new_set_can_have_makes_it_again() {
        let live = set("1Gi", Some("fast"), None);
        assert_eq!(
            of(&live, &set("1Gi", None, Some("Parallel"))),
            Reshape::Again(Vec::new())
        );
        let mut labelled = set("1Gi", None, None);
        labelled["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"]["m"] = "2".into();
        assert_eq!(of(&live, &labelled), Reshape::Again(Vec::new()));
        let mut more = set("1Gi", None, None);
        let second = json!({"metadata": {"name": "log"}, "spec": {}});
        more["spec"]["volumeClaimTemplates"]
            .as_array_mut()
            .unwrap()
            .push(second);
        assert_eq!(of(&live, &more), Reshape::Again(Vec::new()));
    }
}
