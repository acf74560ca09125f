//! A binding's credentials as the entries of a Secret that pods mount, by the rules of servicebinding.io.

use super::secret::Secret;
use serde_json::Value;

/// Names that the specification or its readers give another way than letter case tells.
const OTHER_NAMES: [(&str, &str); 2] = [("ca_certificate", "certificates"), ("jdbcUrl", "jdbc-url")];

/// The type of the Secret: `servicebinding.io/` and the credentials' own `type`.
pub fn secret_type(credentials: &Secret) -> String {
    let kind = match credentials.text("type") {
        "" => "service",
        kind => kind,
    };
    format!("servicebinding.io/{kind}")
}

/// One entry for each member: names in kebab case, texts as they are, all else as JSON; nothing for null.
///
/// Blocks that tell where to fetch something (`vault`, `keycloak`) become dotted names, such as `keycloak.client-id`.
pub fn entries(credentials: &Secret) -> Secret {
    let mut entries = Secret::default();
    for (name, value) in credentials.expose() {
        match value {
            Value::Null => {}
            Value::Object(block) if matches!(name.as_str(), "vault" | "keycloak") => {
                for (member, value) in block {
                    if !value.is_null() {
                        entries.insert(format!("{name}.{}", entry_name(member)), text(value));
                    }
                }
            }
            value => entries.insert(entry_name(name), text(value)),
        }
    }
    entries
}

fn text(value: &Value) -> Value {
    match value {
        Value::String(_) => value.clone(),
        other => Value::String(other.to_string()),
    }
}

/// `access_key_id` and `pathStyle` → `access-key-id` and `path-style`; what no entry's name may hold becomes a dash.
fn entry_name(name: &str) -> String {
    if let Some((_, other)) = OTHER_NAMES.iter().find(|(own, _)| *own == name) {
        return (*other).to_owned();
    }
    let mut entry = String::with_capacity(name.len() + 2);
    for c in name.chars() {
        match c {
            'A'..='Z' => {
                if !entry.is_empty() && !entry.ends_with('-') {
                    entry.push('-');
                }
                entry.push(c.to_ascii_lowercase());
            }
            'a'..='z' | '0'..='9' | '.' | '-' => entry.push(c),
            _ => entry.push('-'),
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    fn secret(value: Value) -> Secret {
        match value {
            Value::Object(members) => Secret::new(members),
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn members_become_entries() {
        let credentials = secret(json!({
            "type": "postgresql", "port": 5432, "tls": false, "read_uri": null, "jdbcUrl": "jdbc:x",
            "ca_certificate": "PEM", "access_key_id": "k", "servers": ["a", "b"], "pathStyle": true,
            "keycloak": {"client_id": "osb-b-x", "client_secret": "s"}, "vault": {"kv_path": "t/i/b"}, "strange name": 1,
        }));
        assert_eq!(secret_type(&credentials), "servicebinding.io/postgresql");
        assert_eq!(
            Value::Object(entries(&credentials).expose().clone()),
            json!({
                "type": "postgresql", "port": "5432", "tls": "false", "jdbc-url": "jdbc:x", "certificates": "PEM",
                "access-key-id": "k", "servers": "[\"a\",\"b\"]", "path-style": "true",
                "keycloak.client-id": "osb-b-x", "keycloak.client-secret": "s", "vault.kv-path": "t/i/b", "strange-name": "1",
            })
        );
        assert_eq!(secret_type(&Secret::default()), "servicebinding.io/service");
    }
}
