//! Texts of a catalog with named holes, and what may be put into them: what `statements` and `http` share.
//!
//! What must stay true: a text is taken apart before anything is put into it, so no value can make a hole; which names
//! there are is decided by where the text stands, and known when the catalog is loaded; whoever fills a hole quotes
//! the value for its place. Nothing in here quotes.

use super::common::{not_this_bindings, own_handle};
use super::password;
use crate::domain::instance::Millis;
use crate::domain::secret::Secret;
use crate::ports::{Grant, NewUser, PortError, PortResult, Target};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Roles a part of a list may be limited to.
const ROLES: [&str; 3] = ["owner", "readwrite", "readonly"];

/// Longest text with holes, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// Most entries of one list.
const MAX_ENTRIES: usize = 50;

/// Names that `values` cannot take, because they mean something else.
const RESERVED: [&str; 8] = [
    "admin_password",
    "admin_username",
    "expires_at",
    "iid",
    "password",
    "role",
    "user",
    "verifier",
];

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// As it stands.
    Text(String),
    /// To be filled.
    Hole(Hole),
}

/// A place for a value: `{name}` or `{name:kind}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hole {
    /// Which value.
    pub name: String,
    /// How to put it, where the text has more than one way.
    pub kind: Option<String>,
}

/// Takes a text apart. `{{` and `}}` stand for the braces themselves.
pub(super) fn split(text: &str) -> Result<Vec<Part>, String> {
    const LONE: &str = "a brace stands alone; write `{{` or `}}` for the brace itself";
    if text.len() > MAX_TEXT {
        return Err(format!("is longer than {MAX_TEXT} bytes"));
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix(brace) {
            plain.push_str(brace);
            rest = after;
            continue;
        }
        let end = after.find('}').filter(|_| brace == "{").ok_or(LONE)?;
        let hole = hole(&after[..end]).ok_or(LONE)?;
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Hole(hole));
        rest = &after[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() || parts.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

fn hole(inside: &str) -> Option<Hole> {
    let (name, kind) = match inside.split_once(':') {
        Some((name, kind)) => (name, Some(kind)),
        None => (inside, None),
    };
    let right = match name.strip_prefix("params.") {
        Some(member) => {
            !member.is_empty()
                && member
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        }
        None => is_word(name),
    };
    (right && kind.is_none_or(is_word)).then(|| Hole {
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
    })
}

/// Whether a text can be the name of a hole: `[a-z][a-z0-9_]*`.
pub(super) fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// When a list is gone through, which decides what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Prepare,
    Issue,
    Verify,
    Revoke,
    List,
    /// The administrator gets new credentials: `user` and `password` are its own.
    RotateAdmin,
}

impl Stage {
    /// The member of the settings that holds the list.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Issue => "issue",
            Self::Verify => "verify",
            Self::Revoke => "revoke",
            Self::List => "list",
            Self::RotateAdmin => "rotate_admin",
        }
    }

    /// Whether the binding's user, its role and parameters are known.
    fn has_grant(self) -> bool {
        matches!(self, Self::Issue | Self::Verify)
    }
}

/// The names that texts of one list may use.
pub(super) struct Known<'a> {
    pub stage: Stage,
    /// Names of `values`.
    pub values: &'a Map<String, Value>,
    /// Names that only this mechanism has, or that earlier entries of the list give.
    pub more: &'a [&'a str],
}

impl Known<'_> {
    /// Whether a hole of this name can be filled, else why not.
    pub fn check(&self, name: &str) -> Result<(), String> {
        let stage = self.stage;
        let there = match name {
            "iid" => true,
            "user" => stage.has_grant() || matches!(stage, Stage::Revoke | Stage::RotateAdmin),
            "password" => stage.has_grant() || stage == Stage::RotateAdmin,
            "role" | "expires_at" => stage.has_grant(),
            name if name.starts_with("params.") => stage.has_grant(),
            name => self.values.contains_key(name) || self.more.contains(&name),
        };
        if there {
            return Ok(());
        }
        if RESERVED.contains(&name) || name.starts_with("params.") {
            return Err(format!("`{{{name}}}` is not known in `{}`", stage.word()));
        }
        Err(format!("`{{{name}}}` is neither in `values` nor known here"))
    }
}

/// Reads the setting `values`: names that texts may use, with one text, number or boolean each.
pub(super) fn values(settings: &Map<String, Value>, errors: &mut Vec<String>) -> Map<String, Value> {
    let mut values = Map::new();
    let given = match settings.get("values") {
        None => return values,
        Some(Value::Object(given)) => given,
        Some(_) => {
            errors.push("values: must be a map".to_owned());
            return values;
        }
    };
    for (name, value) in given {
        if !is_word(name) {
            errors.push(format!(
                "values.{name}: a name must be lower-case letters, digits and `_`, a letter first"
            ));
        } else if RESERVED.contains(&name.as_str()) {
            errors.push(format!("values.{name}: the name means something else already"));
        } else if !is_scalar(value) {
            errors.push(format!("values.{name}: must be a text, a number or a boolean"));
        }
        values.insert(name.clone(), value.clone());
    }
    values
}

/// Whether a name can be given to something new: it is a word, and means nothing else.
pub(super) fn is_free(name: &str, values: &Map<String, Value>) -> bool {
    is_word(name) && !RESERVED.contains(&name) && !values.contains_key(name)
}

fn is_scalar(value: &Value) -> bool {
    value.is_string() || value.is_number() || value.is_boolean()
}

/// The entries of a list of the settings, each with its path; none when it is absent.
pub(super) fn entries<'a>(
    settings: &'a Map<String, Value>,
    stage: Stage,
    errors: &mut Vec<String>,
) -> Vec<(String, &'a Value)> {
    let name = stage.word();
    let items = match settings.get(name) {
        None => return Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => {
            errors.push(format!("{name}: must be a list"));
            return Vec::new();
        }
    };
    if items.len() > MAX_ENTRIES {
        errors.push(format!("{name}: has more than {MAX_ENTRIES} entries"));
    }
    let path = |(i, item)| (format!("{name}[{i}]"), item);
    items.iter().take(MAX_ENTRIES).enumerate().map(path).collect()
}

/// Reads an entry's `roles`: those of a binding for which it is done; empty for all.
pub(super) fn roles(
    entry: &Map<String, Value>,
    stage: Stage,
    path: &str,
    errors: &mut Vec<String>,
) -> Vec<String> {
    let Some(given) = entry.get("roles") else {
        return Vec::new();
    };
    let names: Vec<String> = given
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let all = given.as_array().is_some_and(|list| list.len() == names.len());
    if !all || names.is_empty() || names.iter().any(|name| !ROLES.contains(&name.as_str())) {
        errors.push(format!("{path}.roles: must be a list of {}", ROLES.join(", ")));
    } else if !stage.has_grant() {
        errors.push(format!(
            "{path}.roles: the role is not known in `{}`",
            stage.word()
        ));
    }
    names
}

/// Tells which members are not among the known ones.
pub(super) fn unknown(members: &Map<String, Value>, known: &[&str], path: &str, errors: &mut Vec<String>) {
    for key in members.keys().filter(|key| !known.contains(&key.as_str())) {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        errors.push(format!("{path}: unknown; known are {}", known.join(", ")));
    }
}

/// What holes are filled with; wiped when dropped, as some of it is secret.
pub(super) struct Filling(Secret);

impl Filling {
    /// What is known of the instance alone.
    pub fn instance(target: &Target, values: &Map<String, Value>) -> Self {
        let mut all = Secret::new(values.clone());
        all.insert("iid", Value::String(target.iid.clone()));
        Self(all)
    }

    /// What is known of a user that is to go.
    pub fn handle(target: &Target, values: &Map<String, Value>, handle: &str) -> Self {
        let mut all = Self::instance(target, values);
        all.set("user", Value::String(handle.to_owned()));
        all
    }

    /// All that is known of a binding, without `expires_at`, which each mechanism writes its own way.
    pub fn grant(target: &Target, values: &Map<String, Value>, grant: &Grant, user: &NewUser) -> Self {
        let mut all = Self::handle(target, values, &user.handle);
        all.set("password", user.secret.text("password").into());
        all.set("role", grant.role.clone().into());
        for (name, value) in &grant.params {
            all.set(&format!("params.{name}"), value.clone());
        }
        all
    }

    /// Adds or replaces a value.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name, value);
    }

    /// Forgets values.
    pub fn forget(&mut self, names: &BTreeSet<String>) {
        if !names.is_empty() {
            let kept = self.0.expose().iter().filter(|(name, _)| !names.contains(*name));
            self.0 = Secret::new(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
        }
    }

    /// A value; none for what a binding does not have.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.expose().get(name).filter(|value| !value.is_null())
    }

    /// Whether a text for the log quotes something secret: a password, or one of the values named in `more`.
    pub fn is_quoted_in<'a>(&self, text: &str, more: impl Iterator<Item = &'a str>) -> bool {
        ["password", "verifier", "admin_password"]
            .into_iter()
            .chain(more)
            .filter_map(|name| self.get(name).and_then(as_text))
            .any(|secret| !secret.is_empty() && text.contains(&secret))
    }
}

/// A value as text; none for lists and maps.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}

/// A binding's new user with a name and a password; talks to nobody.
pub(super) fn new_user(grant: &Grant) -> PortResult<NewUser> {
    if !ROLES.contains(&grant.role.as_str()) {
        return Err(PortError::invalid(format!(
            "There is no role {:?}: use owner, readwrite or readonly.",
            grant.role
        )));
    }
    let handle = grant.user();
    own_handle(&handle)?;
    let secret = Secret::from_pairs([("username", handle.clone()), ("password", password::generate()?)]);
    Ok(NewUser { handle, secret })
}

/// Makes sure that a stored user is the one that this binding must have.
pub(super) fn own_user(grant: &Grant, user: &NewUser) -> PortResult<()> {
    own_handle(&user.handle)?;
    let own = user.handle == grant.user() && user.secret.text("username") == user.handle;
    if own && !user.secret.text("password").is_empty() {
        Ok(())
    } else {
        Err(not_this_bindings())
    }
}

/// The settings were checked when the catalog was loaded; a broker of another version may see them differently.
pub(super) fn wrong_settings(errors: &[String]) -> PortError {
    PortError::invalid("The settings of this service's bindings are wrong; tell its operator.")
        .with_detail(errors.join("; "))
}

/// A point in time as RFC 3339; none when it is out of range.
pub(super) fn rfc3339(at: Millis) -> Option<String> {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000_000)
        .ok()?
        .format(&time::format_description::well_known::Rfc3339)
        .ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn hole(name: &str, kind: Option<&str>) -> Part {
        Part::Hole(Hole {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
        })
    }

    #[test]
    fn texts_are_taken_apart() {
        let text = |text: &str| Part::Text(text.to_owned());
        for (source, parts) in [
            ("", vec![text("")]),
            ("plain", vec![text("plain")]),
            ("{user}", vec![hole("user", None)]),
            (
                "a {user:literal} b{params.key-prefix}",
                vec![
                    text("a "),
                    hole("user", Some("literal")),
                    text(" b"),
                    hole("params.key-prefix", None),
                ],
            ),
            (
                "{{\"a\": {b}}}",
                vec![text("{\"a\": "), hole("b", None), text("}")],
            ),
            ("{{user}}", vec![text("{user}")]),
        ] {
            assert_eq!(split(source).unwrap(), parts, "{source}");
        }
        for bad in [
            "{",
            "}",
            "{}",
            "a{b",
            "a}b",
            "{ user }",
            "{User}",
            "{a.b}",
            "{params.}",
            "{a:}",
            "{a:b:c}",
            "{{{",
            "{a{b}}",
            "{1}",
            "{params.a.b}",
        ] {
            assert!(split(bad).is_err(), "{bad}");
        }
        assert!(split(&"x".repeat(MAX_TEXT + 1)).is_err());
    }

    #[test]
    fn which_names_there_are_depends_on_the_list() {
        let values = json!({"database": "app"});
        let known = |stage, name: &str| {
            let more = ["extra"];
            let values = values.as_object().unwrap();
            Known {
                stage,
                values,
                more: &more,
            }
            .check(name)
            .is_ok()
        };
        for stage in [
            Stage::Prepare,
            Stage::Issue,
            Stage::Verify,
            Stage::Revoke,
            Stage::List,
        ] {
            for (name, there) in [
                ("iid", true),
                ("database", true),
                ("extra", true),
                ("nope", false),
                ("user", !matches!(stage, Stage::Prepare | Stage::List)),
                ("password", matches!(stage, Stage::Issue | Stage::Verify)),
                ("params.x", matches!(stage, Stage::Issue | Stage::Verify)),
            ] {
                assert_eq!(known(stage, name), there, "{name} in {}", stage.word());
            }
        }
    }

    #[test]
    fn values_are_plain_and_take_no_reserved_name() {
        let read = |settings: Value| {
            let mut errors = Vec::new();
            values(settings.as_object().unwrap(), &mut errors);
            errors
        };
        assert!(read(json!({"values": {"a": "x", "b_1": 2, "c": true}})).is_empty());
        let errors = read(json!({"values": {"A": 1, "password": "x", "l": [], "n": null}}));
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert_eq!(read(json!({"values": 1})).len(), 1);
    }

    #[test]
    fn what_quotes_a_secret_is_noticed() {
        let mut filling = Filling(Secret::from_pairs([("password", "hunter2"), ("user", "b_x")]));
        assert!(!filling.is_quoted_in("no b_x", std::iter::empty()));
        assert!(filling.is_quoted_in("bad 'hunter2'", std::iter::empty()));
        assert!(filling.is_quoted_in("no b_x", ["user"].into_iter()));
        filling.forget(&BTreeSet::from(["user".to_owned()]));
        assert_eq!(
            (filling.get("user"), filling.get("password")),
            (None, Some(&json!("hunter2")))
        );
    }
}
