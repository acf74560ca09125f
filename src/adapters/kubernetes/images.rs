//! Which image a container really gets: another one, the same behind a private registry, or what the catalog says.

use super::KubernetesSettings;
use super::shape;
use crate::domain::catalog::IMAGE_MEMBERS;
use serde_json::Value;

/// Rewrites every image an object names.
pub(super) fn rewrite(settings: &KubernetesSettings, object: &mut Value) {
    // Their members are data, whatever they are called.
    if matches!(shape::kind(object), "ConfigMap" | "Secret") {
        return;
    }
    walk(settings, object);
}

fn walk(settings: &KubernetesSettings, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| walk(settings, item)),
        Value::Object(members) => {
            for (key, member) in members {
                match member {
                    Value::String(image) if IMAGE_MEMBERS.contains(&key.as_str()) => {
                        *image = rewritten(settings, image);
                    }
                    // A volume that is an image.
                    Value::Object(volume) if key == "image" => {
                        if let Some(Value::String(image)) = volume.get_mut("reference") {
                            *image = rewritten(settings, image);
                        }
                    }
                    member => walk(settings, member),
                }
            }
        }
        _ => {}
    }
}

/// The reference to use instead of `image`.
fn rewritten(settings: &KubernetesSettings, image: &str) -> String {
    let (name, _) = split(image);
    if let Some(other) = settings.replace.get(name) {
        return other.clone();
    }
    let registry = settings.registry.trim_end_matches('/');
    let is_there = image
        .strip_prefix(registry)
        .is_some_and(|rest| rest.starts_with('/'));
    if registry.is_empty() || is_there {
        return image.to_owned();
    }
    let path = match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => image,
    };
    format!("{registry}/{path}")
}

/// The name of an image, and what follows it: tag and digest.
pub(super) fn split(image: &str) -> (&str, &str) {
    let end = image.find('@').unwrap_or(image.len());
    let end = match (image[..end].rfind(':'), image[..end].rfind('/')) {
        (Some(tag), Some(slash)) if tag < slash => end,
        (Some(tag), _) => tag,
        (None, _) => end,
    };
    image.split_at(end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn settings(registry: &str) -> KubernetesSettings {
        KubernetesSettings {
            registry: registry.into(),
            replace: BTreeMap::from([(
                "ghcr.io/acme/tool".to_owned(),
                "mine.example.com/tool@sha256:1".to_owned(),
            )]),
            ..KubernetesSettings::default()
        }
    }

    #[test]
    fn a_private_registry_takes_the_place_of_the_other() {
        for (image, behind) in [
            (
                "postgres:18@sha256:x",
                "nexus.example.com/mirror/postgres:18@sha256:x",
            ),
            (
                "library/postgres@sha256:x",
                "nexus.example.com/mirror/library/postgres@sha256:x",
            ),
            (
                "ghcr.io/cnpg/postgresql:17@sha256:x",
                "nexus.example.com/mirror/cnpg/postgresql:17@sha256:x",
            ),
            ("localhost/a:1", "nexus.example.com/mirror/a:1"),
            ("host:5000/a:1", "nexus.example.com/mirror/a:1"),
            ("nexus.example.com/mirror/a:1", "nexus.example.com/mirror/a:1"),
            ("ghcr.io/acme/tool:3@sha256:x", "mine.example.com/tool@sha256:1"),
        ] {
            for registry in ["nexus.example.com/mirror", "nexus.example.com/mirror/"] {
                assert_eq!(rewritten(&settings(registry), image), behind);
            }
        }
        assert_eq!(rewritten(&settings(""), "ghcr.io/a/b:1"), "ghcr.io/a/b:1");
        assert_eq!(
            rewritten(&settings(""), "ghcr.io/acme/tool@sha256:x"),
            "mine.example.com/tool@sha256:1"
        );
    }

    #[test]
    fn every_member_that_names_an_image_is_rewritten_and_no_data() {
        let mut object = json!({"kind": "Any", "spec": {
            "containers": [{"image": "a:1", "command": ["image"]}], "imageName": "b:1", "serverImage": "c/d:1",
            "volumes": [{"image": {"reference": "e:1"}}], "env": [{"name": "image", "value": "f:1"}],
        }});
        rewrite(&settings("r.io"), &mut object);
        assert_eq!(
            object,
            json!({"kind": "Any", "spec": {
                "containers": [{"image": "r.io/a:1", "command": ["image"]}], "imageName": "r.io/b:1",
                "serverImage": "r.io/c/d:1", "volumes": [{"image": {"reference": "r.io/e:1"}}],
                "env": [{"name": "image", "value": "f:1"}],
            }})
        );
        let data = json!({"kind": "ConfigMap", "data": {"image": "a:1"}});
        let mut same = data.clone();
        rewrite(&settings("r.io"), &mut same);
        assert_eq!(same, data);
    }
}
