//! What a user may do: role and subjects of a binding as the `pub`/`sub` permissions of its JWT. Pure.
//!
//! An empty allow list means "everything" to the server, so every list here is written out and never empty.
//!
//! | role | publish | subscribe |
//! |---|---|---|
//! | `owner` | everything | everything |
//! | `readwrite` | everything except making, changing and deleting streams | everything |
//! | `readonly` | nothing (with `readonly_jetstream`: the reading JetStream API) | everything |
//! | `owner`, `readwrite` with `subjects` | these subjects, and answers to requests received | these and its own inbox |
//! | `readonly` with `subjects` | nothing | these and its own inbox |
//!
//! Clients ask for replies on `_INBOX.>` by default. That works for every binding without `subjects`, which hears
//! everything anyway. In the shared `_INBOX.>` one could read the replies meant for others, so a binding with
//! `subjects` has an inbox of its own ([`inbox_prefix`]) and its client must be told that prefix.
//!
//! **What this cannot do.** The server does not check a message's reply subject, and where JetStream answers, the answer goes
//! there, the JetStream API included. On nats-server 2.9.10 a `readwrite` user got a stream made by having a stored
//! message sent to `$JS.API.STREAM.CREATE.…`, and a user with `subjects` emptied a stream that captures them by
//! publishing with the reply subject `$JS.API.STREAM.PURGE.…`. So roles and scopes that publish keep applications from
//! mistakes, not from malice; applications that do not trust each other need an instance each. A `readonly` binding
//! publishes nothing at all, and that does hold, unless the catalog opens `readonly_jetstream`.

use crate::ports::{PortError, PortResult};
use serde_json::{Map, Value, json};

/// Most subjects one binding may list: they travel in the JWT with every login.
const MAX_SUBJECTS: usize = 64;
/// Longest subject, in bytes.
const MAX_SUBJECT: usize = 255;
/// How long after a request the user may still answer it, in nanoseconds.
const ANSWER_WITHIN: i64 = 120_000_000_000;

/// What nobody in the application account needs from the server's own subjects.
const SYSTEM: &str = "$SYS.>";

/// Changing the shape of storage is the owner's; `$JS.<domain>.API` is the same API by another name.
const STREAM_SHAPE: [&str; 7] = [
    "CREATE", "UPDATE", "DELETE", "RESTORE", "TEMPLATE", "PEER", "LEADER",
];

/// The part of the JetStream API that only reads.
const READING_API: [&str; 9] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.NAMES.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.INFO.*.*",
];

/// The inbox prefix only this user may subscribe to: from its public key, so it cannot clash or be chosen.
pub(super) fn inbox_prefix(public_key: &str) -> String {
    let tail: String = public_key.chars().skip(1).take(20).collect();
    format!("_INBOX_{tail}")
}

/// The scope a binding asks for in its parameters; `None` when it asks for none.
///
/// Errors (`Invalid`): anything that is not a list of 1 to 64 legal NATS subjects. The first token must be a plain word
/// that is neither the server's (`$…`) nor an inbox: a leading wildcard would reach both.
pub(super) fn subjects(params: &Map<String, Value>) -> PortResult<Option<Vec<String>>> {
    let Some(value) = params.get("subjects") else {
        return Ok(None);
    };
    let list = value
        .as_array()
        .filter(|list| (1..=MAX_SUBJECTS).contains(&list.len()))
        .ok_or_else(|| {
            PortError::invalid(format!(
                "subjects must be a list of 1 to {MAX_SUBJECTS} NATS subjects; leave it out for all subjects"
            ))
        })?;
    let subjects = list
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let subject = item.as_str().unwrap_or_default();
            match fault(subject) {
                None => Ok(subject.to_owned()),
                Some(fault) => Err(PortError::invalid(format!(
                    "subjects[{i}] {fault}; write subjects such as orders.new or orders.>"
                ))),
            }
        })
        .collect::<PortResult<Vec<_>>>()?;
    for (i, subject) in subjects.iter().enumerate() {
        let Some(below) = below(subject) else {
            continue;
        };
        if let Some(j) = subjects.iter().position(|other| overlap(&below, other)) {
            return Err(PortError::invalid(format!(
                "subjects[{j}] reaches below subjects[{i}], which ends in *: the server cannot keep the two apart; \
                 end subjects[{i}] in > or name its subjects one by one"
            )));
        }
    }
    Ok(Some(subjects))
}

fn fault(subject: &str) -> Option<&'static str> {
    if subject.is_empty() {
        return Some("is not a text or is empty");
    }
    if subject.len() > MAX_SUBJECT {
        return Some("is longer than 255 bytes");
    }
    if subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Some("holds a space or a control character");
    }
    let tokens: Vec<&str> = subject.split('.').collect();
    for (i, token) in tokens.iter().enumerate() {
        let last = i + 1 == tokens.len();
        match *token {
            "" => return Some("has an empty part between dots"),
            "*" => {}
            ">" if last => {}
            ">" => return Some("has a > that is not its last part"),
            word if word.contains(['*', '>']) => return Some("has a * or > inside a word"),
            _ => {}
        }
    }
    let first = tokens[0];
    if first == "*" || first == ">" {
        return Some("begins with a wildcard");
    }
    if first.starts_with('$') {
        return Some("begins with $, which is the server's own");
    }
    if first.to_ascii_uppercase().starts_with("_INBOX") {
        return Some("names an inbox");
    }
    None
}

/// What lies deeper than a subject that ends in `*`.
///
/// The server lets a client allowed `a.*` subscribe to `a.>` (it takes the `>` for a word that `*` matches), so what
/// is below must be denied by name.
fn below(subject: &str) -> Option<String> {
    subject.ends_with(".*").then(|| format!("{subject}.>"))
}

/// Whether some subject is matched by both patterns.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == "*" || y == "*" || x == y => {}
            _ => return false,
        }
    }
}

/// The permission members of a user JWT's `nats` part.
///
/// Errors (`Invalid`): an unknown role.
pub(super) fn permissions(
    role: &str,
    subjects: Option<&[String]>,
    inbox: &str,
    readonly_jetstream: bool,
) -> PortResult<Map<String, Value>> {
    let writes = match role {
        "owner" | "readwrite" => true,
        "readonly" => false,
        _ => {
            return Err(PortError::invalid(
                "This service has the roles owner, readwrite and readonly.",
            ));
        }
    };
    let nothing = json!({"deny": [">"]});
    let everything = json!({"allow": [">"], "deny": [SYSTEM]});
    let mut permissions = Map::new();
    if let Some(subjects) = subjects {
        let mut hear = subjects.to_vec();
        hear.push(format!("{inbox}.>"));
        let mut sub = json!({"allow": hear});
        let deny: Vec<_> = subjects.iter().filter_map(|s| below(s)).collect();
        if !deny.is_empty() {
            sub["deny"] = deny.into();
        }
        permissions.insert("sub".into(), sub);
        if writes {
            permissions.insert("pub".into(), json!({"allow": subjects}));
            permissions.insert("resp".into(), json!({"max": -1, "ttl": ANSWER_WITHIN}));
        } else {
            permissions.insert("pub".into(), nothing);
        }
        return Ok(permissions);
    }
    permissions.insert("sub".into(), everything.clone());
    let publish = match role {
        "owner" => everything,
        "readwrite" => {
            let mut deny = vec![SYSTEM.to_owned()];
            for verb in STREAM_SHAPE {
                deny.push(format!("$JS.API.STREAM.{verb}.>"));
                deny.push(format!("$JS.*.API.STREAM.{verb}.>"));
            }
            json!({"allow": [">"], "deny": deny})
        }
        _ if readonly_jetstream => json!({"allow": READING_API}),
        _ => nothing,
    };
    permissions.insert("pub".into(), publish);
    Ok(permissions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::ports::PortErrorKind;

    fn ask(value: Value) -> PortResult<Option<Vec<String>>> {
        let mut params = Map::new();
        params.insert("subjects".into(), value);
        subjects(&params)
    }

    #[test]
    fn legal_subjects() {
        assert_eq!(subjects(&Map::new()).unwrap(), None);
        for subject in [
            "orders",
            "orders.>",
            "orders.*.new",
            "a.b.c",
            "größe.x",
            "orders.$x",
            "x_INBOX.>",
            "a.*.>",
        ] {
            assert_eq!(ask(json!([subject])).unwrap(), Some(vec![subject.to_owned()]));
        }
    }

    #[test]
    fn illegal_subjects() {
        let long = "a".repeat(256);
        for subject in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a b",
            "a\tb",
            "a\r\nPUB x 0",
            "a\u{0}",
            "a.>.b",
            "a*",
            "a.b>",
            ">",
            "*",
            "*.a",
            "$SYS",
            "$SYS.>",
            "$JS.API.>",
            "$KV.b.>",
            "_INBOX.>",
            "_INBOX_X.>",
            "_inbox.a",
            "a\u{a0}b",
            &long,
        ] {
            let error = ask(json!([subject])).unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{subject:?}");
            assert!(error.message.starts_with("subjects[0] "), "{}", error.message);
        }
        for value in [
            json!("orders"),
            json!([]),
            json!(null),
            json!([1]),
            json!({}),
            json!(vec!["a"; 65]),
        ] {
            assert_eq!(ask(value).unwrap_err().kind, PortErrorKind::Invalid);
        }
        assert!(
            ask(json!(["a", "b", "*"]))
                .unwrap_err()
                .message
                .starts_with("subjects[2]")
        );
    }

    #[test]
    fn what_lies_below_a_star_is_denied_and_cannot_be_asked_for_beside_it() {
        let scope = ask(json!(["orders.*", "orders.new", "billing.>", "a.*.c.*"]))
            .unwrap()
            .unwrap();
        let p = permissions("readonly", Some(&scope), "_INBOX_X", false).unwrap();
        assert_eq!(p["sub"]["deny"], json!(["orders.*.>", "a.*.c.*.>"]));
        for other in [
            "orders.new.eu",
            "orders.>",
            "orders.*.*",
            "orders.*.eu",
            "orders.new.>",
        ] {
            let error = ask(json!(["orders.*", other])).unwrap_err();
            assert!(
                error.message.starts_with("subjects[1] reaches below subjects[0]"),
                "{other}: {error}"
            );
        }
        for other in ["orders", "orders.new", "order.new.eu", "a.*", "orders.*"] {
            ask(json!(["orders.*", other])).unwrap();
        }
    }

    #[test]
    fn no_allow_list_is_ever_empty() {
        let scope = ["orders.>".to_owned()];
        for role in ["owner", "readwrite", "readonly"] {
            for subjects in [None, Some(&scope[..])] {
                for opened in [false, true] {
                    let permissions = permissions(role, subjects, "_INBOX_X", opened).unwrap();
                    for side in ["pub", "sub"] {
                        let side = &permissions[side];
                        let allow = side.get("allow").and_then(Value::as_array);
                        match allow {
                            Some(list) => assert!(!list.is_empty(), "{role} {side}"),
                            None => assert_eq!(side["deny"], json!([">"]), "{role} {side}"),
                        }
                    }
                }
            }
        }
        assert_eq!(
            permissions("admin", None, "x", false).unwrap_err().kind,
            PortErrorKind::Invalid
        );
    }

    #[test]
    fn a_scope_opens_only_itself_and_its_own_inbox() {
        let scope = ["orders.>".to_owned()];
        for role in ["owner", "readwrite"] {
            let p = permissions(role, Some(&scope), "_INBOX_X", true).unwrap();
            assert_eq!(p["pub"], json!({"allow": ["orders.>"]}));
            assert_eq!(p["sub"], json!({"allow": ["orders.>", "_INBOX_X.>"]}));
        }
        let p = permissions("readonly", Some(&scope), "_INBOX_X", true).unwrap();
        assert_eq!(p["pub"], json!({"deny": [">"]}));
        assert!(p.get("resp").is_none());
    }

    #[test]
    fn inboxes_differ_by_key() {
        assert_eq!(
            inbox_prefix("UABCDEFGHIJKLMNOPQRSTUVWXYZ"),
            "_INBOX_ABCDEFGHIJKLMNOPQRST"
        );
        assert_eq!(inbox_prefix(""), "_INBOX_");
    }
}
