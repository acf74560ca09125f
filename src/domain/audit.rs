//! The audit trail: what is recorded of every bind, read, rotation, unbind and revocation, and of an administrator's
//! rotation, and the chain that ties the records to one another (ADR 0019).
//!
//! What must stay true: a record holds nothing secret and no parameters, only names, times and who asked. Its hash
//! covers every member and the hash of the record before it, so none can be changed, left out, put in or moved without
//! the chain breaking there. The canonical text never changes: chains of years ago must still verify. A new member
//! means a new word at its beginning.

mod chain;
#[cfg(test)]
mod tests;

pub use chain::{Broken, FileCheck, Head, HeadLine};

use super::binding::Binding;
use super::instance::{Instance, Millis};
use super::names;
use super::request::Caller;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// First word of the canonical text: tells its form.
const FORM: &str = "chandler-audit-1,";
/// Longest originating identity that is kept whole, in bytes of its JSON text.
const LONGEST_IDENTITY: usize = 2048;
/// Members of a longer identity that are kept, when they are text of at most [`LONGEST_NAME`] bytes.
const IDENTITY_NAMES: [&str; 4] = ["user_id", "user_name", "username", "uid"];
/// Longest platform word of an identity, and longest name kept of one that is too long, in bytes.
const LONGEST_NAME: usize = 256;

/// What was done to a binding, or to an instance's administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A platform asked for a binding.
    Bind,
    /// A successor of a binding was asked for, or new credentials for one in place.
    Rotate,
    /// The credentials were given out once more.
    Read,
    /// A platform asked for a binding's end.
    Unbind,
    /// The broker or its operator ended access.
    Revoke,
    /// An operator had access put back that was recorded and was not there.
    Repair,
    /// An operator had an instance's administrator, by whom the broker logs in, given new credentials.
    RotateAdmin,
}

impl Action {
    /// The recorded word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Rotate => "rotate",
            Self::Read => "read",
            Self::Unbind => "unbind",
            Self::Revoke => "revoke",
            Self::Repair => "repair",
            Self::RotateAdmin => "rotate_admin",
        }
    }
}

/// Who wanted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The platform's request for this very binding.
    Platform,
    /// The platform's request to delete the instance.
    Deprovision,
    /// The binding's time was over.
    Expiry,
    /// Something was left of a binding that had ended.
    Residue,
    /// The time was over that credentials go on working after they were rotated.
    Grace,
    /// An operator's command.
    Operator,
}

impl Cause {
    /// The recorded word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Deprovision => "deprovision",
            Self::Expiry => "expiry",
            Self::Residue => "residue",
            Self::Grace => "grace",
            Self::Operator => "operator",
        }
    }
}

/// Outcome of what goes on as an operation; its end is recorded with the operation's own word
/// (`succeeded`, `failed`, `superseded`).
pub const ACCEPTED: &str = "accepted";
/// Outcome of what is done at once.
pub const SUCCEEDED: &str = "succeeded";

/// What is recorded, before it has its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When, by the broker's clock.
    pub at: Millis,
    /// A word of [`Action`].
    pub action: String,
    /// [`ACCEPTED`], or how it ended.
    pub outcome: String,
    /// A word of [`Cause`].
    pub cause: String,
    /// Whose binding it is: the platform's name.
    pub platform: String,
    /// `X-Broker-API-Originating-Identity`, decoded: the platform word, a space, the JSON object.
    pub origin: Option<String>,
    /// `X-Broker-API-Request-Identity`.
    pub request_id: Option<String>,
    /// The broker's name of the instance.
    pub instance: String,
    /// The broker's name of the binding; empty: every binding of the instance, or with [`Action::RotateAdmin`] none.
    pub binding: String,
    /// The platform's id of the instance.
    pub instance_id: String,
    /// The platform's id of the binding.
    pub binding_id: String,
    /// The operation that does it: the same in the record of its beginning and of its end.
    pub operation: Option<String>,
    /// The binding this one takes over from.
    pub predecessor: Option<String>,
}

impl Event {
    /// A platform asks for `action` on one of its bindings.
    pub fn asked(caller: &Caller, action: Action, instance_id: &str, binding_id: &str, at: Millis) -> Self {
        let outcome = if action == Action::Read {
            SUCCEEDED
        } else {
            ACCEPTED
        };
        Self {
            at,
            action: action.as_str().to_owned(),
            outcome: outcome.to_owned(),
            cause: Cause::Platform.as_str().to_owned(),
            platform: storable(&caller.platform),
            origin: caller
                .originating
                .as_ref()
                .map(|(word, identity)| origin(word, identity)),
            request_id: caller.request_id.as_deref().map(storable),
            instance: names::iid(&caller.platform, instance_id),
            binding: names::bid(&caller.platform, instance_id, binding_id),
            instance_id: storable(instance_id),
            binding_id: storable(binding_id),
            operation: None,
            predecessor: None,
        }
    }

    /// A platform asks for the end of an instance, and so of every binding it has.
    pub fn asked_for_all(caller: &Caller, instance_id: &str, at: Millis) -> Self {
        Self {
            cause: Cause::Deprovision.as_str().to_owned(),
            binding: String::new(),
            ..Self::asked(caller, Action::Revoke, instance_id, "", at)
        }
    }

    /// The broker, or its operator, begins `action` on a binding.
    pub fn ordered(action: Action, cause: Cause, binding: &Binding, instance_id: &str, at: Millis) -> Self {
        let caller = Caller {
            platform: binding.platform.clone(),
            ..Caller::default()
        };
        Self {
            cause: cause.as_str().to_owned(),
            instance: binding.iid.clone(),
            binding: binding.bid.clone(),
            ..Self::asked(&caller, action, instance_id, &binding.binding_id, at)
        }
    }

    /// Somebody begins `action` on an instance itself, not on its bindings.
    pub fn on_instance(action: Action, cause: Cause, instance: &Instance, at: Millis) -> Self {
        let caller = Caller {
            platform: instance.platform.clone(),
            ..Caller::default()
        };
        Self {
            cause: cause.as_str().to_owned(),
            instance: instance.iid.clone(),
            binding: String::new(),
            ..Self::asked(&caller, action, &instance.instance_id, "", at)
        }
    }

    /// An operator has something put right that no operation does: `instance` and `binding` are the broker's names, and
    /// what the rows do not know is empty.
    pub fn mended(action: Action, platform: &str, instance: &str, binding: &str, at: Millis) -> Self {
        let caller = Caller {
            platform: platform.to_owned(),
            ..Caller::default()
        };
        Self {
            cause: Cause::Operator.as_str().to_owned(),
            instance: instance.to_owned(),
            binding: binding.to_owned(),
            ..Self::asked(&caller, action, "", "", at)
        }
    }

    /// The operation that does it.
    #[must_use]
    pub fn by(self, operation: &str) -> Self {
        Self {
            operation: Some(operation.to_owned()),
            ..self
        }
    }

    /// With a predecessor (its broker's name) a bind is a rotation.
    #[must_use]
    pub fn after(self, predecessor: Option<&str>) -> Self {
        match predecessor {
            None => self,
            Some(bid) => Self {
                action: Action::Rotate.as_str().to_owned(),
                predecessor: Some(bid.to_owned()),
                ..self
            },
        }
    }

    /// The record of how it ended.
    #[must_use]
    pub fn ended(self, outcome: &str, at: Millis) -> Self {
        Self {
            outcome: outcome.to_owned(),
            at,
            ..self
        }
    }
}

/// Text as every database can keep it.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The originating identity as text. Of one that is too long, the names in it and the hash of the whole.
fn origin(word: &str, identity: &Value) -> String {
    let word: String = word.chars().take(LONGEST_NAME).collect();
    let whole = identity.to_string();
    if whole.len() <= LONGEST_IDENTITY {
        return format!("{word} {whole}");
    }
    let mut short = Map::new();
    for name in IDENTITY_NAMES {
        if let Some(Value::String(text)) = identity.get(name)
            && text.len() <= LONGEST_NAME
        {
            short.insert(name.to_owned(), Value::String(text.clone()));
        }
    }
    short.insert("sha256".to_owned(), Value::String(sha256(&whole)));
    format!("{word} {}", Value::Object(short))
}

fn sha256(text: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()))
}

/// An event in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its number: one more than the record's before it; the first is 1.
    pub seq: i64,
    /// What happened.
    pub event: Event,
    /// Hash of the record before it.
    pub previous: String,
    /// SHA-256 of its canonical text, 64 hexadecimal digits.
    pub hash: String,
}

impl Record {
    /// What the hash is made of: after the name of the form every member in a fixed order as `<bytes>:<text>,`, an absent one as `~,`.
    pub fn canonical(&self) -> String {
        let event = &self.event;
        let (seq, at) = (self.seq.to_string(), event.at.to_string());
        let mut text = String::from(FORM);
        for member in [
            Some(&self.previous),
            Some(&seq),
            Some(&at),
            Some(&event.action),
            Some(&event.outcome),
            Some(&event.cause),
            Some(&event.platform),
            event.origin.as_ref(),
            event.request_id.as_ref(),
            Some(&event.instance),
            Some(&event.binding),
            Some(&event.instance_id),
            Some(&event.binding_id),
            event.operation.as_ref(),
            event.predecessor.as_ref(),
        ] {
            match member {
                Some(member) => {
                    // Writing to a text cannot fail.
                    let _ = write!(text, "{}:{member},", member.len());
                }
                None => text.push_str("~,"),
            }
        }
        text
    }
}
