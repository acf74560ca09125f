//! A durable operation: one row that says what is to be done, how far it is, and who is at it.

use super::instance::{InstanceAttributes, Millis};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What an operation does. Stored as the lower-case word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Create an instance.
    Provision,
    /// Change an instance.
    Update,
    /// Remove an instance.
    Deprovision,
    /// Create a binding.
    Bind,
    /// Remove a binding at the platform's request.
    Unbind,
    /// Revoke a binding because its time is over, or finish an undo that could not be finished.
    Revoke,
    /// Give a binding new credentials in place.
    Rotate,
    /// Take former credentials away because their grace is over.
    Retire,
    /// Look once more that nothing of a binding that has ended came back outside.
    Settle,
    /// Give an instance's administrator new credentials.
    Credentials,
}

impl OperationKind {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Update => "update",
            Self::Deprovision => "deprovision",
            Self::Bind => "bind",
            Self::Unbind => "unbind",
            Self::Revoke => "revoke",
            Self::Rotate => "rotate",
            Self::Retire => "retire",
            Self::Settle => "settle",
            Self::Credentials => "credentials",
        }
    }

    /// The kind a stored word means.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "provision" => Self::Provision,
            "update" => Self::Update,
            "deprovision" => Self::Deprovision,
            "bind" => Self::Bind,
            "unbind" => Self::Unbind,
            "revoke" => Self::Revoke,
            "rotate" => Self::Rotate,
            "retire" => Self::Retire,
            "settle" => Self::Settle,
            "credentials" => Self::Credentials,
            _ => return None,
        })
    }

    /// Whether its subject is a binding.
    pub fn is_binding(self) -> bool {
        !matches!(
            self,
            Self::Provision | Self::Update | Self::Deprovision | Self::Credentials
        )
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where an operation stands. Stored as the lower-case word; `open` is the only one that can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Accepted, waiting or running.
    Open,
    /// Ended well.
    Succeeded,
    /// Ended badly; the description says why.
    Failed,
    /// Closed by a DELETE that came while it ran (D-07, N-07).
    Superseded,
}

impl OperationState {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// The state a stored word means.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "open" => Self::Open,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "superseded" => Self::Superseded,
            _ => return None,
        })
    }
}

/// What an update is to reach; stored with the operation, applied to the instance when it succeeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateTarget {
    /// The instance's attributes after the update.
    pub attributes: InstanceAttributes,
    /// The maintenance version after the update.
    pub maintenance_version: Option<String>,
}

/// A row of `operations`.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Short URL-safe token, given to the platform as `operation` (I-04).
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// The instance it concerns.
    pub iid: String,
    /// The binding it concerns, for binding operations.
    pub bid: Option<String>,
    /// Name of the offering: bounds concurrency.
    pub offering: String,
    /// For an update: what it is to reach.
    pub target: Option<UpdateTarget>,
    /// Where it stands.
    pub state: OperationState,
    /// Name of the step to run next.
    pub step: String,
    /// Why it is being undone, once it is: then it can only end as failed.
    pub failing: Option<String>,
    /// Fencing number: one more at each claim; a worker whose number is old cannot record.
    pub attempt: i64,
    /// How often the present step ran without being done: a long wait is looked at less often.
    pub tries: i64,
    /// Its transient failures since it last worked, for the back-off.
    pub failures: i64,
    /// Not to be claimed before.
    pub due_at: Millis,
    /// Fails when not done by then.
    pub deadline_at: Millis,
    /// Text for people: progress while open, reason when failed.
    pub description: String,
    /// E-04: told with a failed update or deprovision.
    pub instance_usable: Option<bool>,
    /// E-04: told with a failed update.
    pub update_repeatable: Option<bool>,
    /// Request id of the platform, for the log.
    pub request_id: Option<String>,
    /// When it was accepted.
    pub created_at: Millis,
    /// When it ended.
    pub finished_at: Option<Millis>,
}

/// One line of an operation's history, shown to people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OperationEvent {
    /// Order within the operation.
    pub seq: i64,
    /// When.
    pub at: Millis,
    /// Which step.
    pub step: String,
    /// `done`, `waiting`, `retry`, `failed`, `superseded` or `finished`.
    pub outcome: String,
    /// What happened, without secrets.
    pub message: String,
}
