#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::domain::catalog::{Catalog, KnownMechanisms, Mechanisms};
use crate::domain::manifest;
use crate::domain::secret::Secret;
use serde_json::{Map, Value, json};

fn write(root: &Path, path: &str, text: &str) {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn loaded(sources: &Sources) -> Catalog {
    Catalog::load(sources, &KnownMechanisms).unwrap_or_else(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        panic!("{}", lines.join("\n"))
    })
}

#[test]
fn what_is_compiled_in_is_what_lies_in_the_folders() {
    let here = read(&[PathBuf::from(env!("CARGO_MANIFEST_DIR"))]).unwrap();
    let compiled = embedded();
    let missing: Vec<&String> = here.keys().filter(|path| !compiled.contains_key(*path)).collect();
    assert!(missing.is_empty(), "add to shipped.rs: {missing:?}");
    assert_eq!(here, compiled);
}

#[test]
fn the_shipped_catalog_is_right_and_has_seven_services() {
    let catalog = loaded(&embedded());
    let names: Vec<&str> = catalog.offerings.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "cassandra",
            "cockroachdb",
            "couchdb",
            "minio",
            "nats",
            "postgres",
            "redis"
        ]
    );
    for offering in &catalog.offerings {
        let plans: Vec<&str> = offering.plans.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(plans, ["small", "medium", "large"], "{}", offering.name);
        assert!(
            offering.metadata["imageUrl"].as_str().unwrap().len() < 2_800,
            "{}",
            offering.name
        );
        let small = offering.plans.iter().find(|p| p.name == "small").unwrap();
        assert_eq!(
            small.runs_on.contains(&"local".to_owned()),
            offering.name != "cockroachdb"
        );
        assert!(offering.plans.iter().all(|p| p.binding_rotatable && p.bindable));
    }
}

#[test]
fn every_shipped_small_plan_renders_to_a_process() {
    let catalog = loaded(&embedded());
    for offering in catalog.offerings.iter().filter(|o| o.process.is_some()) {
        let plan = offering.plans.iter().find(|p| p.name == "small").unwrap();
        let process = offering.process.as_ref().unwrap();
        let bin: Map<String, Value> = process
            .binaries
            .keys()
            .map(|n| (n.clone(), json!(format!("/b/{n}"))))
            .collect();
        let ports: Map<String, Value> = process
            .ports
            .iter()
            .zip(4000..)
            .map(|(n, p)| (n.clone(), json!(p)))
            .collect();
        let placement = json!({"bin": bin, "ports": ports, "dirs": {"root": "/i", "init": "/i/.init"}, "host": "127.0.0.1"});
        let params = crate::domain::params::with_defaults(&plan.schemas.create, &Map::new());
        let scope = manifest::instance_scope(
            "iid",
            "cf",
            offering,
            plan,
            &params,
            placement.as_object().unwrap(),
        );
        let mechanism = &offering.binding.as_ref().unwrap().mechanism;
        let admin = Secret::new(KnownMechanisms.sample_admin(mechanism));
        let generated = Secret::from_pairs(offering.generated.keys().map(|n| (n.clone(), "g".repeat(32))));
        let desired = manifest::render(offering, plan, manifest::LOCAL, &scope, &admin, &generated).unwrap();
        let spec = desired.process.as_ref().unwrap();
        assert!(spec.command[0].starts_with("/b/"), "{}", offering.name);
        // The same input gives the same hash, another parameter another one.
        let again = manifest::render(offering, plan, manifest::LOCAL, &scope, &admin, &generated).unwrap();
        assert_eq!(desired, again);
        let text = serde_json::to_string(spec).unwrap();
        assert!(!text.contains("${"), "{}: {text}", offering.name);
        for line in spec.files.iter().flat_map(|f| f.content.lines()) {
            assert!(
                !line.ends_with(' ') || line.starts_with("log_line"),
                "{}: {line:?}",
                offering.name
            );
        }
    }
}

#[test]
fn an_eighth_service_of_a_known_mechanism_needs_no_rust() {
    let own = tempfile::tempdir().unwrap();
    write(
        own.path(),
        "catalog/warehouse/offering.yaml",
        "id: 5b0f4d53-2b9c-4df3-8f0a-0b7a3f9d2c11\nname: warehouse\ndescription: Our own PostgreSQL with another name\nruns_on: [local]\n",
    );
    write(
        own.path(),
        "plans/warehouse/tiny.yaml",
        "id: 0c0f8a64-7a35-4a0e-9f5e-55a1f2f7a9e2\nname: tiny\ndescription: Tiny\nvalues: {memory: 128Mi, max_connections: 30, default_connections: 25, connections_per_binding: 5}\n",
    );
    let shipped = embedded();
    for file in [
        "process.yaml",
        "binding.yaml",
        "create.schema.json",
        "update.schema.json",
        "bind.schema.json",
    ] {
        write(
            own.path(),
            &format!("catalog/warehouse/{file}"),
            &shipped[&format!("catalog/postgres/{file}")],
        );
    }
    let mut sources = shipped;
    sources.extend(read(&[own.path().to_owned()]).unwrap());
    let catalog = loaded(&sources);
    let (offering, plan) = catalog
        .plan(
            "5b0f4d53-2b9c-4df3-8f0a-0b7a3f9d2c11",
            "0c0f8a64-7a35-4a0e-9f5e-55a1f2f7a9e2",
        )
        .unwrap();
    assert_eq!(offering.binding.as_ref().unwrap().mechanism, "sql");
    assert_eq!(
        plan.schemas.create.json["properties"]["max_connections"]["maximum"],
        json!(30)
    );
    let served = catalog.served(
        &|offering, _| offering.name == "warehouse",
        &serde_json::Map::new(),
    );
    assert_eq!(served["services"].as_array().unwrap().len(), 1);
    assert_eq!(served["services"][0]["bindable"], json!(true));
}

#[test]
fn reading_takes_later_roots_over_earlier_and_passes_hidden_files() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), "catalog/a/offering.yaml", "1");
    write(one.path(), "catalog/a/objects/x.yaml", "x");
    write(one.path(), "catalog/a/.offering.yaml.swp", "s");
    write(one.path(), "catalog/a/offering.yaml~", "b");
    write(one.path(), "plans/a/p.yaml", "p");
    write(one.path(), "other/a.yaml", "o");
    write(two.path(), "catalog/a/offering.yaml", "2");
    let sources = read(&[one.path().to_owned(), two.path().to_owned()]).unwrap();
    let all: Vec<(&str, &str)> = sources.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        all,
        [
            ("catalog/a/objects/x.yaml", "x"),
            ("catalog/a/offering.yaml", "2"),
            ("plans/a/p.yaml", "p")
        ]
    );
}

#[test]
fn a_config_map_mount_is_read_through_its_links() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "catalog/a/..2026/offering.yaml", "1");
    std::os::unix::fs::symlink("..2026", root.path().join("catalog/a/..data")).unwrap();
    std::os::unix::fs::symlink(
        "..data/offering.yaml",
        root.path().join("catalog/a/offering.yaml"),
    )
    .unwrap();
    let sources = read(&[root.path().to_owned()]).unwrap();
    assert_eq!(
        sources.into_iter().collect::<Vec<_>>(),
        [("catalog/a/offering.yaml".to_owned(), "1".to_owned())]
    );
}

#[test]
fn errors_name_the_path() {
    let root = tempfile::tempdir().unwrap();
    let error = |root: &Path| read(&[root.to_owned()]).unwrap_err().to_string();
    assert!(error(&root.path().join("nowhere")).contains("nowhere has no folder"));
    write(root.path(), "catalog/a/offering.yaml", "1");
    fs::write(root.path().join("catalog/a/offering.yaml"), [0xff, 0xfe]).unwrap();
    assert!(error(root.path()).contains("offering.yaml is not UTF-8"));
    fs::write(root.path().join("catalog/a/offering.yaml"), vec![b'a'; 1_100_000]).unwrap();
    assert!(error(root.path()).contains("offering.yaml has 1100000 bytes"));
    // A loop of links ends.
    fs::write(root.path().join("catalog/a/offering.yaml"), "1").unwrap();
    std::os::unix::fs::symlink("..", root.path().join("catalog/a/loop")).unwrap();
    assert!(read(&[root.path().to_owned()]).is_ok());
}

#[test]
fn a_change_is_given_once_it_has_come_to_rest() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "catalog/a/offering.yaml", "1");
    let dirs = vec![root.path().to_owned()];
    let mut watch = Watch::new(dirs.clone(), &read(&dirs).unwrap());
    for _ in 0..3 {
        assert_eq!(watch.poll().unwrap(), None);
    }
    write(root.path(), "catalog/a/offering.yaml", "22");
    assert_eq!(watch.poll().unwrap(), None, "still moving");
    assert_eq!(watch.poll().unwrap().unwrap()["catalog/a/offering.yaml"], "22");
    assert_eq!(watch.poll().unwrap(), None, "given once");
    write(root.path(), "catalog/b/offering.yaml", "new");
    assert_eq!(watch.poll().unwrap(), None);
    assert_eq!(watch.poll().unwrap().unwrap().len(), 2);
    fs::remove_dir_all(root.path().join("catalog/b")).unwrap();
    assert_eq!(watch.poll().unwrap(), None);
    assert_eq!(watch.poll().unwrap().unwrap().len(), 1);
    // Touched without a change of content: read, and found the same.
    write(root.path(), "catalog/a/offering.yaml", "22");
    for _ in 0..3 {
        assert_eq!(watch.poll().unwrap(), None);
    }
}
