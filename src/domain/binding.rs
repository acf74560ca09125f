//! A service binding: one application's own credentials on one instance.

use super::delivery::{BindingRef, Delivery};
use super::instance::Millis;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Where a binding is in its life. Stored as the lower-case word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindingState {
    /// A bind operation is open.
    Creating,
    /// The last bind failed. What it made was undone, or the sweep is still undoing it (`residue`).
    Failed,
    /// Issued and valid until it expires or is unbound.
    Ready,
    /// An unbind operation is open, or an expiry is being enforced.
    Deleting,
    /// The last unbind failed; it may be deleted again, and the sweep keeps trying.
    DeleteFailed,
    /// Revoked because its time was over; the platform has not unbound it yet.
    Expired,
    /// Revoked and gone. The row stays as a tombstone for the retention time.
    Gone,
}

impl BindingState {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Failed => "failed",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::DeleteFailed => "delete_failed",
            Self::Expired => "expired",
            Self::Gone => "gone",
        }
    }

    /// Whether nothing of it lets anybody in any more (unless the row says `residue`).
    pub fn is_over(self) -> bool {
        matches!(self, Self::Gone | Self::Failed | Self::Expired)
    }

    /// The state a stored word means.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "creating" => Self::Creating,
            "failed" => Self::Failed,
            "ready" => Self::Ready,
            "deleting" => Self::Deleting,
            "delete_failed" => Self::DeleteFailed,
            "expired" => Self::Expired,
            "gone" => Self::Gone,
            _ => return None,
        })
    }
}

impl fmt::Display for BindingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The attributes that make two bind requests "identical" (B-05, R-04).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BindingAttributes {
    /// The offering's id.
    pub service_id: String,
    /// The plan's id.
    pub plan_id: String,
    /// As the platform sent them; absent = empty. A successor without any inherits its predecessor's.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// As the platform sent it.
    #[serde(default)]
    pub bind_resource: Option<Value>,
    /// The deprecated top-level member.
    #[serde(default)]
    pub app_guid: Option<String>,
    /// The binding this one takes over from (rotation), as the platform names it.
    #[serde(default)]
    pub predecessor_binding_id: Option<String>,
}

/// A row of `bindings`.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The broker's own name: `names::bid`.
    pub bid: String,
    /// The instance it belongs to.
    pub iid: String,
    /// The platform it belongs to.
    pub platform: String,
    /// The platform's id for it, an opaque string.
    pub binding_id: String,
    /// What was asked for, after inheritance from a predecessor.
    pub attributes: BindingAttributes,
    /// Exactly what the request carried, for telling a re-send from a different request.
    pub requested: BindingAttributes,
    /// Where it is in its life.
    pub state: BindingState,
    /// What the backend knows it by: a user name, or a public key. Not secret. Empty before one was made.
    pub handle: String,
    /// Something of it may still exist on the backend; the sweep revokes it again.
    pub residue: bool,
    /// What its answers carry.
    pub delivery: Delivery,
    /// Which generation of its credentials applications are to use; 0 until it is rotated in place.
    pub generation: u32,
    /// How often it was to get another user: rotations in place, and binds under an id that was used before. With 0,
    /// `handle` is the only user there can be.
    pub rotations: u32,
    /// The service account that is its identity, `<namespace>/<name>`.
    pub service_account: Option<String>,
    /// Where its Secret is (`Delivery::Secret`).
    pub secret_namespace: Option<String>,
    /// When it stops being valid.
    pub expires_at: Option<Millis>,
    /// When the platform should have rotated it.
    pub renew_before: Option<Millis>,
    /// When the row was made.
    pub created_at: Millis,
    /// When the row last changed.
    pub updated_at: Millis,
}

/// What a user of a binding is, beside the present one. Stored as the lower-case word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserState {
    /// Being rotated in.
    Next,
    /// Rotated out, and let in until its grace is over.
    Former,
    /// Not to be let in.
    Revoked,
}

impl UserState {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Former => "former",
            Self::Revoked => "revoked",
        }
    }

    /// The state a stored word means.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Next, Self::Former, Self::Revoked]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// A user of a binding beside its present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherUser {
    /// As [`Binding::handle`].
    pub handle: String,
    /// Of which generation its credentials are.
    pub generation: u32,
    /// What it is.
    pub state: UserState,
    /// Whether applications may have read it.
    pub shown: bool,
    /// Whether it is not to be let in (any more), whatever the server knows of that.
    pub refused: bool,
    /// When it is to be taken away ([`UserState::Former`]).
    pub due_at: Option<Millis>,
}

impl Binding {
    /// What servers around the instance know it by.
    pub fn reference(&self) -> BindingRef {
        BindingRef {
            tenant: self.platform.clone(),
            iid: self.iid.clone(),
            bid: self.bid.clone(),
        }
    }

    /// Whether its time is over at `now`, whatever its state says: the sweep may not have come by yet.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}
