//! Where a binding's description comes from: a file, a directory, the environment, plain arguments, in that each later
//! one fills what the former lacks, and arguments win.
//!
//! What must stay true: secrets are sent only where the description says and over TLS, and nothing of it gets into an error but names.

use super::proof::Proof;
use super::{Failure, From};
use crate::config;
use serde_json::{Map, Value};
use std::fs;
use std::io::Read;
use std::path::Path;

/// Largest description in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// All that is needed to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Coordinates {
    /// Where Keycloak gives out tokens.
    pub token_uri: String,
    /// Keycloak's realm, where it is told.
    pub issuer: Option<String>,
    /// The binding's client there.
    pub client_id: String,
    /// How it proves that it is that client.
    pub proof: Proof,
    /// Vault's address, without a slash at its end.
    pub vault: String,
    /// Mount of its JWT log-in.
    pub auth_path: String,
    /// Role of that log-in.
    pub role: String,
    /// Path of the secret, from `v1/`.
    pub data_path: String,
    /// Namespace, where the server has them.
    pub namespace: Option<String>,
}

impl Coordinates {
    /// Reads what is described now.
    pub fn read(from: &From) -> Result<Self, Failure> {
        let found = found(from)?;
        let (keycloak, vault) = (&found["keycloak"], &found["vault"]);
        let get = |argument: Option<&String>, block: &Value, member: &str| -> Option<String> {
            let given = argument.cloned();
            given.or_else(|| {
                block[member]
                    .as_str()
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned)
            })
        };
        let must = |value: Option<String>, what: &str, flag: &str| {
            value.ok_or_else(|| {
                Failure::input(format!(
                    "The binding's description holds no `{what}`: give the credentials of a binding with delivery \
                     `reference`, or {flag}."
                ))
            })
        };
        let token_uri = must(
            get(from.token_uri.as_ref(), keycloak, "token_uri"),
            "keycloak.token_uri",
            "--token-uri",
        )?;
        let client_id = must(
            get(from.client_id.as_ref(), keycloak, "client_id"),
            "keycloak.client_id",
            "--client-id",
        )?;
        let address = must(
            get(from.vault.as_ref(), vault, "address"),
            "vault.address",
            "--vault",
        )?;
        let data_path = get(from.data_path.as_ref(), vault, "data_path").or_else(|| {
            let (mount, path) = (vault["kv_mount"].as_str()?, vault["kv_path"].as_str()?);
            Some(format!("v1/{mount}/data/{path}"))
        });
        let coordinates = Self {
            issuer: get(from.issuer.as_ref(), keycloak, "issuer"),
            proof: Proof::of(from, keycloak)?,
            auth_path: must(
                get(from.auth_path.as_ref(), vault, "auth_path"),
                "vault.auth_path",
                "--auth-path",
            )?,
            role: must(get(from.role.as_ref(), vault, "role"), "vault.role", "--role")?,
            data_path: must(data_path, "vault.data_path", "--data-path")?
                .trim_start_matches('/')
                .to_owned(),
            namespace: get(from.namespace.as_ref(), vault, "namespace"),
            vault: address.trim_end_matches('/').to_owned(),
            token_uri,
            client_id,
        };
        coordinates.check(from.allow_plaintext)?;
        Ok(coordinates)
    }

    /// Secrets go to these addresses: they must be what they seem.
    fn check(&self, allow_plaintext: bool) -> Result<(), Failure> {
        for (what, text) in [
            ("keycloak.token_uri", &self.token_uri),
            ("vault.address", &self.vault),
        ] {
            let url = reqwest::Url::parse(text)
                .ok()
                .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
                .filter(|url| url.username().is_empty() && url.password().is_none())
                .filter(|url| url.query().is_none() && url.fragment().is_none())
                .ok_or_else(|| {
                    Failure::input(format!(
                        "`{what}` is not an address such as https://host.example.com."
                    ))
                })?;
            let own = match url.host_str().unwrap_or_default().trim_matches(['[', ']']) {
                "localhost" => true,
                host => host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
            };
            if url.scheme() == "http" && !own && !allow_plaintext {
                return Err(Failure::input(format!(
                    "`{what}` is plain http, in which everybody on the way reads the credentials; use https, or say \
                     --allow-plaintext."
                )));
            }
        }
        for (what, text) in [
            ("vault.auth_path", &self.auth_path),
            ("vault.data_path", &self.data_path),
        ] {
            let segment = |segment: &str| {
                !["", ".", ".."].contains(&segment)
                    && segment
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
            };
            if !text.split('/').all(segment) || (what == "vault.data_path" && !text.starts_with("v1/")) {
                return Err(Failure::input(format!("`{what}` is not a path of Vault.")));
            }
        }
        Ok(())
    }
}

/// The description as one document with `keycloak` and `vault`; empty when arguments say everything.
fn found(from: &From) -> Result<Value, Failure> {
    if let Some(file) = &from.from {
        let text = if file.as_os_str() == "-" {
            standard_input()?
        } else {
            read(file)?
        };
        return document(&text, &file.display().to_string(), from.name.as_deref());
    }
    if let Some(dir) = &from.binding {
        return directory(dir);
    }
    let complete = [&from.token_uri, &from.client_id, &from.vault, &from.data_path];
    if complete.iter().all(|argument| argument.is_some()) {
        return Ok(Value::Null);
    }
    if let Some(text) = config::variable("VCAP_SERVICES") {
        return document(&text, "VCAP_SERVICES", from.name.as_deref());
    }
    if let Some(root) = config::variable("SERVICE_BINDING_ROOT") {
        return below(Path::new(&root), from.name.as_deref());
    }
    Err(Failure::input(
        "Nothing says which binding: give --from FILE or --binding DIR, or set VCAP_SERVICES or SERVICE_BINDING_ROOT.",
    ))
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_DESCRIPTION)
        .read_to_string(&mut text)
        .map_err(|error| Failure::input(format!("Standard input cannot be read ({error}).")))?;
    Ok(text)
}

/// Reads a small text file; who may read it is the platform's affair, which put it there.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let broken = |error: std::io::Error| Failure::input(format!("{shown} cannot be read ({error})."));
    let opened = fs::File::open(file).map_err(broken)?;
    let mut text = String::new();
    opened
        .take(MAX_DESCRIPTION)
        .read_to_string(&mut text)
        .map_err(broken)?;
    Ok(text)
}

/// The credentials in a JSON text. What the text holds is not quoted: it may be secret.
fn document(text: &str, shown: &str, name: Option<&str>) -> Result<Value, Failure> {
    let whole: Value =
        serde_json::from_str(text).map_err(|_| Failure::input(format!("{shown} is not JSON.")))?;
    if is_reference(&whole) {
        return Ok(whole);
    }
    if is_reference(&whole["credentials"]) {
        return Ok(whole["credentials"].clone());
    }
    // What an application of Cloud Foundry gets: label → list of bindings.
    let bindings = whole
        .as_object()
        .into_iter()
        .flat_map(Map::values)
        .filter_map(Value::as_array)
        .flatten();
    let named = |binding: &&Value| {
        let names = ["name", "binding_name", "instance_name", "label"];
        name.is_none_or(|name| names.iter().any(|member| binding[*member] == *name))
    };
    let found: Vec<_> = bindings
        .filter(named)
        .filter(|binding| is_reference(&binding["credentials"]))
        .collect();
    match found.as_slice() {
        [one] => Ok(one["credentials"].clone()),
        [] => Err(Failure::input(format!(
            "{shown} holds no binding with `keycloak` and `vault`{}; bind with delivery `reference`.",
            name.map(|name| format!(" and the name {name}"))
                .unwrap_or_default()
        ))),
        _ => Err(Failure::input(format!(
            "{shown} holds several bindings; say which with --name."
        ))),
    }
}

fn is_reference(value: &Value) -> bool {
    value["keycloak"].is_object() && value["vault"].is_object()
}

/// The one binding below SERVICE_BINDING_ROOT that is a reference, or the one of this name.
fn below(root: &Path, name: Option<&str>) -> Result<Value, Failure> {
    let shown = root.display();
    if let Some(name) = name {
        return directory(&root.join(name));
    }
    let entries = fs::read_dir(root).map_err(|error| {
        Failure::input(format!(
            "{shown} (SERVICE_BINDING_ROOT) cannot be read ({error})."
        ))
    })?;
    let dirs = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    let mut found = dirs.filter_map(|dir| directory(&dir).ok());
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Failure::input(format!(
            "{shown} (SERVICE_BINDING_ROOT) holds no binding with `keycloak` and `vault`; bind with delivery `reference`."
        ))),
        _ => Err(Failure::input(format!(
            "{shown} (SERVICE_BINDING_ROOT) holds several bindings; say which with --name."
        ))),
    }
}

/// A servicebinding.io directory: one file for each entry, either `keycloak` with JSON or `keycloak.client-id` and so on.
fn directory(dir: &Path) -> Result<Value, Failure> {
    let shown = dir.display();
    let entries =
        fs::read_dir(dir).map_err(|error| Failure::input(format!("{shown} cannot be read ({error}).")))?;
    let mut blocks = Map::new();
    for entry in entries.flatten() {
        let file = entry.file_name();
        let Some(name) = file.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let (block, member) = name.split_once('.').unwrap_or((name, ""));
        if !["keycloak", "vault"].contains(&block) {
            continue;
        }
        let text = read(&entry.path())?;
        let block = blocks.entry(block).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(members) = block else { continue };
        if member.is_empty() {
            if let Ok(Value::Object(all)) = serde_json::from_str(&text) {
                members.extend(all);
            }
        } else {
            members.insert(
                member.replace('-', "_"),
                text.trim_end_matches(['\n', '\r']).into(),
            );
        }
    }
    let found = Value::Object(blocks);
    if is_reference(&found) {
        Ok(found)
    } else {
        Err(Failure::input(format!(
            "{shown} holds no entries `keycloak.…` and `vault.…`; bind with delivery `reference`."
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Code;
    use super::*;
    use serde_json::json;

    fn reference() -> Value {
        json!({
            "type": "postgresql",
            "keycloak": {"issuer": "https://kc/realms/r", "token_uri": "https://kc/realms/r/token",
                         "client_id": "osb-b-x", "client_secret": "hunter2hunter2"},
            "vault": {"address": "https://vault:8200/", "auth_path": "osb-jwt", "role": "binding",
                      "data_path": "v1/osb/data/t/i/osb-b-x", "namespace": "team"},
        })
    }

    fn with(document: &Value) -> (tempfile::TempDir, From) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("binding.json");
        fs::write(&file, document.to_string()).unwrap();
        let from = From {
            from: Some(file),
            ..From::default()
        };
        (dir, from)
    }

    #[test]
    fn every_shape_gives_the_same() {
        let (_dir, from) = with(&reference());
        let plain = Coordinates::read(&from).unwrap();
        assert_eq!(plain.vault, "https://vault:8200");
        assert_eq!(plain.namespace.as_deref(), Some("team"));
        let other = json!({"credentials": {"uri": "redis://x"}, "name": "cache"});
        let mine = json!({"credentials": reference(), "name": "db", "label": "postgres"});
        for document in [
            json!({"credentials": reference(), "metadata": {}}),
            json!({"postgres": [mine.clone()], "redis": [other]}),
        ] {
            let (_dir, from) = with(&document);
            assert_eq!(Coordinates::read(&from).unwrap(), plain);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..data")).unwrap();
        for (block, members) in reference()
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| *name != "type")
        {
            for (member, value) in members.as_object().unwrap() {
                let file = format!("{block}.{}", member.replace('_', "-"));
                fs::write(dir.path().join(file), format!("{}\n", value.as_str().unwrap())).unwrap();
            }
        }
        let from = From {
            binding: Some(dir.path().to_owned()),
            ..From::default()
        };
        assert_eq!(Coordinates::read(&from).unwrap(), plain);
        // A platform that writes each member of the credentials as JSON.
        let dir = tempfile::tempdir().unwrap();
        for block in ["keycloak", "vault"] {
            fs::write(dir.path().join(block), reference()[block].to_string()).unwrap();
        }
        assert_eq!(directory(dir.path()).unwrap()["vault"], reference()["vault"]);
        assert_eq!(
            below(
                dir.path().parent().unwrap(),
                dir.path().file_name().unwrap().to_str()
            )
            .unwrap()["keycloak"],
            reference()["keycloak"]
        );
        // The path can be put together; an argument wins.
        let mut parts = reference();
        parts["vault"].as_object_mut().unwrap().remove("data_path");
        parts["vault"]["kv_mount"] = json!("osb");
        parts["vault"]["kv_path"] = json!("t/i/osb-b-x");
        let (_dir, mut from) = with(&parts);
        from.role = Some("other".to_owned());
        let read = Coordinates::read(&from).unwrap();
        assert_eq!(
            (read.data_path.as_str(), read.role.as_str()),
            ("v1/osb/data/t/i/osb-b-x", "other")
        );
    }

    #[test]
    fn several_bindings_need_a_name() {
        let binding = |name: &str| json!({"credentials": reference(), "name": name});
        let (_dir, mut from) = with(&json!({"postgres": [binding("a"), binding("b")]}));
        for (name, fine) in [(None, false), (Some("a"), true), (Some("c"), false)] {
            from.name = name.map(str::to_owned);
            assert_eq!(Coordinates::read(&from).is_ok(), fine, "{name:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_not_quoted() {
        let changed = |block: &str, member: &str, value: Value| {
            let mut document = reference();
            document[block][member] = value;
            document
        };
        for (document, said) in [
            (
                json!({"uri": "postgresql://u:hunter2hunter2@h"}),
                "holds no binding",
            ),
            (json!("hunter2hunter2"), "holds no binding"),
            (changed("keycloak", "token_uri", json!("")), "keycloak.token_uri"),
            (changed("keycloak", "client_secret", Value::Null), "secret"),
            (
                changed("keycloak", "token_uri", json!("ftp://x")),
                "`keycloak.token_uri` is not",
            ),
            (
                changed("keycloak", "token_uri", json!("http://kc.example/token")),
                "plain http",
            ),
            (
                changed(
                    "keycloak",
                    "token_uri",
                    json!("https://u:hunter2hunter2@kc/token"),
                ),
                "`keycloak.token_uri` is not",
            ),
            (
                changed("vault", "address", json!("http://10.1.2.3:8200")),
                "plain http",
            ),
            (
                changed("vault", "data_path", json!("v1/osb/data/../../sys")),
                "vault.data_path",
            ),
            (changed("vault", "data_path", json!("sys/raw")), "vault.data_path"),
            (changed("vault", "auth_path", json!("a?b")), "vault.auth_path"),
        ] {
            let (_dir, from) = with(&document);
            let failure = Coordinates::read(&from).unwrap_err();
            assert_eq!(failure.code, Code::Input);
            assert!(failure.message.contains(said), "{said}: {}", failure.message);
            assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        }
        for address in [
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
            "http://localhost:8200",
        ] {
            let (_dir, from) = with(&changed("vault", "address", json!(address)));
            assert!(Coordinates::read(&from).is_ok(), "{address}");
        }
        let (_dir, mut from) = with(&changed("vault", "address", json!("http://vault:8200")));
        from.allow_plaintext = true;
        assert!(Coordinates::read(&from).is_ok());
    }
}
