//! Who may import whom (docs/ARCHITECTURE.md): the `use crate::` lines of every file are held against it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The room of a path below `src`: `domain`, `http`, … and for adapters which one.
fn room(relative: &Path) -> String {
    let mut parts = relative.iter().map(|p| p.to_string_lossy().into_owned());
    let first = parts.next().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn source() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    all.into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&src).unwrap().to_owned(), text)
        })
        .collect()
}

#[test]
fn rooms_import_only_what_they_may() {
    let may: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("domain", &["domain"] as &[_]),
        ("ports", &["domain", "ports"]),
        ("store", &["domain", "store", "telemetry"]),
        ("engine", &["domain", "ports", "store", "engine", "telemetry"]),
        ("http", &["domain", "engine", "http"]),
        ("adapters", &["domain", "ports", "adapters"]),
        ("config", &["config", "telemetry"]),
        // Log lines and metrics are everybody's.
        ("telemetry", &["domain", "telemetry"]),
    ]);
    let mut wrong = Vec::new();
    for (path, text) in source() {
        let Some(allowed) = may.get(room(&path).as_str()) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for (at, _) in line.match_indices("crate::") {
                if line.trim_start().starts_with("//") {
                    continue;
                }
                let target: String = line[at + 7..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let internal = allowed.contains(&target.as_str());
                if !target.is_empty() && !internal {
                    wrong.push(format!(
                        "{}:{}: may not import {target}",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Adapters never import one another: a path below `adapters` names only its own folder or file.
#[test]
fn adapters_stand_alone() {
    let mut wrong = Vec::new();
    for (path, text) in source() {
        let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if parts[0] != "adapters" || parts.len() < 2 || parts[1] == "mod.rs" {
            continue;
        }
        let own = parts[1].trim_end_matches(".rs");
        for (number, line) in text.lines().enumerate() {
            if let Some(at) = line.find("crate::adapters::") {
                let target: String = line[at + 17..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if target != own {
                    wrong.push(format!(
                        "{}:{}: adapter {own} imports adapter {target}",
                        path.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each outside library has one home.
#[test]
fn libraries_stay_home() {
    let homes: &[(&str, &[&str])] = &[
        ("actix_web", &["http", "app"]),
        ("utoipa", &["http"]),
        (
            "sqlx",
            &[
                "store",
                "adapters/credentials/sql",
                "adapters/credentials/statements/session",
            ],
        ),
        ("redis", &["adapters/credentials/redis"]),
        ("async_nats", &["adapters/credentials/nats"]),
        ("scylla", &["adapters/credentials/cassandra"]),
        ("bcrypt", &["adapters/credentials/cassandra"]),
        // `chandler probe` asks a broker as a platform does.
        (
            "reqwest",
            &[
                "adapters/credentials/web",
                "adapters/vault/http",
                "adapters/keycloak/http",
                "cli/probe",
                "cli/fetch",
            ],
        ),
        ("jsonwebtoken", &["adapters/keycloak", "cli/fetch"]),
        ("clap", &["cli", "main"]),
        ("kube", &["adapters/kubernetes"]),
        ("k8s_openapi", &["adapters/kubernetes"]),
    ];
    let mut wrong = Vec::new();
    for (path, text) in source() {
        let shown = path.display().to_string();
        for (library, allowed) in homes {
            let used = text.lines().any(|line| {
                let line = line.trim_start();
                let ours = line.starts_with("//") || line.starts_with("use crate::");
                // A log target in quotes is no use of the library.
                let ours = ours || line.contains(&format!("\"{library}::"));
                !ours
                    && (line.contains(&format!("{library}::")) || line.starts_with(&format!("use {library}")))
            });
            if used && !allowed.iter().any(|home| shown.starts_with(home)) {
                wrong.push(format!(
                    "{shown} uses {library}, whose home is {}",
                    allowed.join(", ")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_a_house_of_its_own() {
    for (path, text) in source() {
        let lines = text.lines().count();
        assert!(
            lines <= 800,
            "{} has {lines} lines: two things live in one room",
            path.display()
        );
    }
}
