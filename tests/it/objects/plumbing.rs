//! That the objects of a plan fit each other: what is mounted exists, what is selected carries the labels, what is named as a
//! port listens, and scripts are scripts.

use super::{containers, everything, list, name_of, plan, plans, template, text};
use chandler::adapters::kubernetes::names;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

#[test]
fn what_is_mounted_exists() {
    for (what, _, objects) in everything() {
        let there: BTreeSet<String> = objects.iter().map(name_of).collect();
        // cert-manager makes these Secrets.
        let made = objects.iter().filter(|o| text(o, "/kind") == "Certificate");
        let made: BTreeSet<String> = made
            .map(|o| format!("Secret {}", text(o, "/spec/secretName")))
            .collect();
        let exists = |kind: &str, name: &str| {
            let name = format!("{kind} {name}");
            assert!(
                there.contains(&name) || made.contains(&name),
                "{what}: there is no {name}"
            );
        };
        for (object, template) in objects.iter().filter_map(|o| Some((o, template(o)?))) {
            let what = format!("{what}: {}", name_of(object));
            let mut volumes: BTreeSet<&str> = list(template, "/spec/volumes")
                .iter()
                .map(|v| text(v, "/name"))
                .collect();
            volumes.extend(
                list(object, "/spec/volumeClaimTemplates")
                    .iter()
                    .map(|c| text(c, "/metadata/name")),
            );
            let mut used = BTreeSet::new();
            for container in containers(template) {
                for mount in list(container, "/volumeMounts") {
                    assert!(volumes.contains(text(mount, "/name")), "{what}: {mount}");
                    used.insert(text(mount, "/name"));
                }
                for variable in list(container, "/env") {
                    if let Some(reference) = variable.pointer("/valueFrom/secretKeyRef") {
                        exists("Secret", text(reference, "/name"));
                    }
                }
            }
            assert_eq!(used, volumes, "{what}: every volume is mounted");
            for volume in list(template, "/spec/volumes") {
                let sources = list(volume, "/projected/sources").iter().chain([volume]);
                for source in sources {
                    if source.get("configMap").is_some() {
                        exists("ConfigMap", text(source, "/configMap/name"));
                    }
                    if let Some(secret) = source.get("secret") {
                        exists("Secret", text(secret, "/secretName").max(text(secret, "/name")));
                    }
                }
            }
        }
    }
}

#[test]
fn services_select_pods_that_listen() {
    for (what, _, objects) in everything() {
        let operated = objects
            .iter()
            .any(|o| ["Cluster", "CassandraDatacenter"].contains(&text(o, "/kind")));
        for service in objects.iter().filter(|o| text(o, "/kind") == "Service") {
            let what = format!("{what}: {}", name_of(service));
            let mut selector = service["spec"]["selector"].as_object().unwrap().clone();
            // A pod of a StatefulSet carries its own name.
            let pod = selector.remove("statefulset.kubernetes.io/pod-name");
            let found: Vec<(&Value, &Value)> = objects
                .iter()
                .filter_map(|o| Some((o, template(o)?)))
                .filter(|(_, template)| {
                    let labels = template.pointer("/metadata/labels").unwrap();
                    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
                })
                .filter(|(o, _)| text(o, "/kind") == "StatefulSet")
                .collect();
            if found.is_empty() {
                assert!(operated, "{what} selects nothing");
                continue;
            }
            let [(set, template)] = found[..] else {
                panic!("{what} selects more than one kind of pods");
            };
            if let Some(pod) = pod {
                let (of, ordinal) = pod.as_str().unwrap().rsplit_once('-').unwrap();
                assert_eq!(of, text(set, "/metadata/name"), "{what}");
                assert!(
                    ordinal.parse::<u64>().unwrap() < set["spec"]["replicas"].as_u64().unwrap(),
                    "{what}"
                );
            }
            for port in list(service, "/spec/ports") {
                let target = &port["targetPort"];
                let listens = list(template, "/spec/containers")
                    .iter()
                    .flat_map(|c| list(c, "/ports"))
                    .any(|p| {
                        let headless = text(service, "/spec/clusterIP") == "None";
                        (p["name"] == *target || p["containerPort"] == *target)
                            && (!headless || p["containerPort"] == port["port"])
                    });
                assert!(listens, "{what}: {port}");
            }
        }
        for set in objects.iter().filter(|o| text(o, "/kind") == "StatefulSet") {
            let what = format!("{what}: {}", name_of(set));
            let labels = set.pointer("/spec/template/metadata/labels").unwrap();
            for (key, value) in set["spec"]["selector"]["matchLabels"].as_object().unwrap() {
                assert_eq!(labels.get(key), Some(value), "{what}");
            }
            let governing = format!("Service {}", text(set, "/spec/serviceName"));
            let governing = objects.iter().find(|o| name_of(o) == governing).expect(&what);
            assert_eq!(text(governing, "/spec/clusterIP"), "None", "{what}");
            assert_eq!(
                governing["spec"]["publishNotReadyAddresses"],
                Value::Bool(true),
                "{what}"
            );
        }
    }
}

#[test]
fn every_plan_has_the_endpoint_its_bindings_name() {
    for (what, _, objects) in everything() {
        let offering = what.split(' ').next().unwrap();
        let binding = plan(offering, "small").0.binding.as_ref().unwrap();
        let found = objects.iter().any(|object| {
            let marked = object
                .pointer("/metadata/annotations")
                .and_then(|a| a.get(names::ENDPOINTS));
            let marked = marked.and_then(Value::as_str).unwrap_or_default();
            marked.split(',').any(|name| name == binding.endpoint)
                && list(object, "/spec/ports")
                    .iter()
                    .any(|port| text(port, "/name") == binding.endpoint)
        });
        assert!(found, "{what}: no Service has the endpoint {}", binding.endpoint);
    }
}

#[test]
fn in_a_shared_namespace_every_name_is_the_instances_own() {
    for (what, _, objects) in everything()
        .into_iter()
        .filter(|(what, ..)| what.ends_with("shared"))
    {
        for object in &objects {
            assert!(
                text(object, "/metadata/name").contains(super::IID),
                "{what}: {}",
                name_of(object)
            );
            let selectors = [
                "/spec/selector",
                "/spec/selector/matchLabels",
                "/spec/podSelector/matchLabels",
            ];
            for selector in selectors.iter().filter_map(|s| object.pointer(s)?.as_object()) {
                if selector.keys().all(|key| key != "matchLabels") {
                    let own = selector
                        .values()
                        .any(|v| v.as_str().is_some_and(|v| v.contains(super::IID)));
                    assert!(own, "{what}: {} selects pods of other instances", name_of(object));
                }
            }
        }
    }
}

#[test]
fn scripts_are_scripts() {
    let mut checked = 0;
    for (what, _, objects) in everything() {
        for object in objects.iter().filter(|o| text(o, "/kind") == "ConfigMap") {
            for (file, script) in object["data"].as_object().unwrap() {
                if !file.ends_with(".sh") {
                    continue;
                }
                checked += 1;
                let script = script.as_str().unwrap();
                assert!(!script.contains("${"), "{what}: {file}");
                let mut shell = Command::new("sh")
                    .arg("-n")
                    .stdin(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                let said = shell.wait_with_output().unwrap();
                assert!(
                    said.status.success(),
                    "{what}: {file}: {}",
                    String::from_utf8_lossy(&said.stderr)
                );
            }
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn parameters_reach_no_script() {
    // Scripts are the same whatever a user asks for: values come to them as files and environment.
    for (offering, plan) in plans() {
        let of = |params| {
            let desired = super::rendered(offering, plan, &params, &[]);
            let maps = desired.objects.into_iter().map(|o| o.object);
            let maps = maps.filter(|o| text(o, "/kind") == "ConfigMap");
            maps.flat_map(|o| o["data"].as_object().unwrap().clone())
                .filter(|(file, _)| file.ends_with(".sh"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            of(super::defaults(plan)),
            of(super::extremes(plan)),
            "{}",
            offering.name
        );
    }
}

#[test]
fn who_may_connect_restarts_nobody() {
    for (offering, plan) in plans() {
        let of = |consumers: Value| {
            let mut params = super::defaults(plan);
            params.insert("consumers".into(), consumers);
            super::rendered(offering, plan, &params, &[])
        };
        let (none, one) = (of(serde_json::json!([])), of(serde_json::json!(["shop"])));
        assert_eq!(none.objects, one.objects, "{}", offering.name);
        assert_eq!(one.consumers, ["shop"]);
        assert_ne!(none.hash, one.hash);
    }
}
