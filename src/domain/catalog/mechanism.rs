//! The credential mechanisms a `binding.yaml` may name, and the names each adds to expressions.
//!
//! The catalog is checked without a server and without a mechanism's code: this table says which
//! `admin.*` and `user.*` members a mechanism makes, so that a mistyped one is found at load. A
//! mechanism's own test compares what it makes with [`admin_members`] and [`user_members`].

use serde_json::{Map, Value};

/// A member of a secret and whether it must stay out of arguments.
type Member = (&'static str, bool);

const SECRET: bool = true;
const PUBLIC: bool = false;

struct Words {
    name: &'static str,
    admin: &'static [Member],
    user: &'static [Member],
    /// Members of `settings` in which no `${…}` may stand.
    literal: &'static [&'static str],
}

const PASSWORD: &[Member] = &[("username", PUBLIC), ("password", SECRET)];

/// What is run on a server as it stands: values come in through holes, which the mechanism quotes.
const LISTS: &[&str] = &["prepare", "issue", "verify", "revoke", "list"];

const KNOWN: &[Words] = &[
    Words {
        name: "cassandra",
        admin: PASSWORD,
        user: PASSWORD,
        literal: &[],
    },
    Words {
        name: "couchdb",
        admin: PASSWORD,
        user: PASSWORD,
        literal: &[],
    },
    Words {
        name: "http",
        admin: PASSWORD,
        user: PASSWORD,
        literal: LISTS,
    },
    Words {
        name: "nats",
        admin: &[
            ("operator_seed", SECRET),
            ("operator_public", PUBLIC),
            ("operator_jwt", PUBLIC),
            ("system_account", PUBLIC),
            ("system_account_seed", SECRET),
            ("system_account_jwt", PUBLIC),
            ("system_user", PUBLIC),
            ("system_user_seed", SECRET),
            ("system_user_jwt", SECRET),
            ("account", PUBLIC),
            ("account_seed", SECRET),
            ("account_signing_key", PUBLIC),
            ("account_signing_seed", SECRET),
        ],
        user: &[
            ("username", PUBLIC),
            ("jwt", SECRET),
            ("seed", SECRET),
            ("creds", SECRET),
            ("account", PUBLIC),
            ("inbox_prefix", PUBLIC),
        ],
        literal: &[],
    },
    Words {
        name: "redis",
        admin: &[
            ("username", PUBLIC),
            ("password", SECRET),
            ("password_sha256", SECRET),
        ],
        user: PASSWORD,
        literal: &[],
    },
    Words {
        name: "s3",
        admin: PASSWORD,
        user: &[("access_key_id", PUBLIC), ("secret_access_key", SECRET)],
        literal: &[],
    },
    Words {
        name: "sql",
        admin: PASSWORD,
        user: PASSWORD,
        literal: &[],
    },
    Words {
        name: "statements",
        admin: PASSWORD,
        user: PASSWORD,
        literal: LISTS,
    },
];

/// What the checker must know about credential mechanisms.
pub trait Mechanisms: Sync {
    /// Whether this mechanism exists in this broker, so that bindings can be made with it.
    fn registered(&self, mechanism: &str) -> bool;

    /// Checks `settings` of a `binding.yaml`; asked only about registered mechanisms. Every error at once.
    fn check_settings(&self, mechanism: &str, settings: &Map<String, Value>) -> Vec<String>;

    /// Whether `binding.yaml` may name it: one of ours, whether it exists yet or not, or a registered one.
    fn known(&self, mechanism: &str) -> bool {
        KNOWN.iter().any(|words| words.name == mechanism) || self.registered(mechanism)
    }

    /// Admin secrets as the mechanism would make them, for rendering while checking.
    fn sample_admin(&self, mechanism: &str) -> Map<String, Value> {
        sample("admin", admin_members(mechanism))
    }

    /// A user's secret as the mechanism would make it, for rendering while checking.
    fn sample_user(&self, mechanism: &str) -> Map<String, Value> {
        sample("user", user_members(mechanism))
    }
}

/// Every known mechanism, taken as registered and content with any settings: for checks without a broker.
#[derive(Debug, Clone, Copy, Default)]
pub struct KnownMechanisms;

impl Mechanisms for KnownMechanisms {
    fn registered(&self, mechanism: &str) -> bool {
        KNOWN.iter().any(|words| words.name == mechanism)
    }

    fn check_settings(&self, _: &str, _: &Map<String, Value>) -> Vec<String> {
        Vec::new()
    }
}

fn words(mechanism: &str) -> Option<&'static Words> {
    KNOWN.iter().find(|words| words.name == mechanism)
}

/// Names of the `admin.*` members a mechanism makes; empty for an unknown one.
pub fn admin_members(mechanism: &str) -> Vec<&'static str> {
    words(mechanism).map(|w| names(w.admin)).unwrap_or_default()
}

/// Names of the `user.*` members a mechanism makes; empty for an unknown one.
pub fn user_members(mechanism: &str) -> Vec<&'static str> {
    words(mechanism).map(|w| names(w.user)).unwrap_or_default()
}

/// Members of `settings` in which no `${…}` may stand, because it would be filled in without being quoted.
pub(super) fn literal_settings(mechanism: &str) -> &'static [&'static str] {
    words(mechanism).map(|w| w.literal).unwrap_or_default()
}

/// Whether an `admin.*` member may be seen by every user of the machine, as arguments are.
pub(super) fn is_public(mechanism: &str, member: &str) -> bool {
    words(mechanism).is_some_and(|w| w.admin.contains(&(member, PUBLIC)))
}

fn names(members: &[Member]) -> Vec<&'static str> {
    members.iter().map(|(name, _)| *name).collect()
}

/// Long, distinct texts of the alphabet that made secrets have, so that they can be found again in what is rendered.
fn sample(of: &str, members: Vec<&str>) -> Map<String, Value> {
    members
        .into_iter()
        .map(|name| {
            (
                name.to_owned(),
                Value::String(format!("Sample{of}{}0123456789", name.replace('_', ""))),
            )
        })
        .collect()
}
