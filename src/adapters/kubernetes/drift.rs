//! What differs from what is wanted though nobody asked for it.
//!
//! What must stay true: nothing is changed, the server only rehearses, and what differs is noted for whoever applies next;
//! lines name places, never values, because some values are secret.

use super::KubernetesProvisioner;
use super::apply::is_ours;
use super::client::Ask;
use super::dress;
use crate::domain::manifest::Desired;
use crate::ports::{InstanceRef, PortError, PortResult};
use serde_json::Value;

/// Most places told of one object.
const MOST: usize = 5;
/// What changes by itself, or by being applied at all.
const OWN: [&str; 5] = [
    "managedFields",
    "resourceVersion",
    "generation",
    "uid",
    "creationTimestamp",
];

impl KubernetesProvisioner {
    pub(super) async fn drifted(&self, instance: &InstanceRef, desired: &Desired) -> PortResult<Vec<String>> {
        let mut lines = Vec::new();
        for wanted in dress::dressed(&self.settings, instance, desired)? {
            let reference = &wanted.reference;
            let resource = self.resource(reference).await?;
            let (namespace, name) = (reference.namespace.as_str(), reference.name.as_str());
            let title = format!("{} {name}", reference.kind);
            let Some(live) = self.look(&resource, namespace, name, Ask::Get).await? else {
                lines.push(format!("{title} is missing"));
                continue;
            };
            if !is_ours(&live, &instance.iid) {
                lines.push(format!(
                    "{title} is not this instance's any more: its labels differ"
                ));
                continue;
            }
            let rehearsed = self
                .cluster
                .ask(&resource, namespace, name, Ask::Rehearse(&wanted.object))
                .await;
            match rehearsed {
                Ok(after) => {
                    let mut places = Vec::new();
                    differences(&live, &after, "", &mut places);
                    if !places.is_empty() {
                        self.notes.edited(&instance.iid, reference);
                        let more = places.len().saturating_sub(MOST);
                        places.truncate(MOST);
                        let more = if more > 0 {
                            format!(" and {more} more")
                        } else {
                            String::new()
                        };
                        lines.push(format!("{title} differs in {}{more}", places.join(", ")));
                    }
                }
                // Something that only making it anew can bring: a difference too.
                Err(refused) if refused.is_refused() => {
                    lines.push(format!(
                        "{title} cannot be put back: {}",
                        PortError::from(refused).message
                    ));
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        Ok(lines)
    }
}

/// Places where two objects differ, apart from what is the server's.
fn differences(live: &Value, after: &Value, path: &str, places: &mut Vec<String>) {
    if live == after || path == ".status" {
        return;
    }
    match (live, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in new {
                if path == ".metadata" && OWN.contains(&name.as_str()) {
                    continue;
                }
                differences(
                    old.get(name).unwrap_or(&Value::Null),
                    value,
                    &format!("{path}.{name}"),
                    places,
                );
            }
            for name in old.keys().filter(|name| !new.contains_key(*name)) {
                if path != ".metadata" || !OWN.contains(&name.as_str()) {
                    places.push(format!("{path}.{name}").trim_start_matches('.').to_owned());
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                differences(old, new, &format!("{path}[{i}]"), places);
            }
        }
        _ => places.push(path.trim_start_matches('.').to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn places_are_named_and_values_are_not() {
        let live = json!({
            "metadata": {"name": "a", "resourceVersion": "1", "labels": {"x": "1"}},
            "data": {"password": "hunter2", "gone": "z"},
            "spec": {"ports": [{"port": 1}, {"port": 2}]},
            "status": {"a": 1},
        });
        let after = json!({
            "metadata": {"name": "a", "resourceVersion": "2", "labels": {"x": "2"}},
            "data": {"password": "hunter3"},
            "spec": {"ports": [{"port": 1}, {"port": 3}]},
            "status": {"a": 2},
        });
        let mut places = Vec::new();
        differences(&live, &after, "", &mut places);
        places.sort();
        assert_eq!(
            places,
            [
                "data.gone",
                "data.password",
                "metadata.labels.x",
                "spec.ports[1].port"
            ]
        );
        let mut none = Vec::new();
        differences(&live, &live, "", &mut none);
        assert!(none.is_empty());
    }
}
