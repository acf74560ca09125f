//! What a comparison can find, and what it makes of one thing and its row: pure, so that each rule is a line of a table.

use crate::domain::binding::BindingState;
use crate::domain::instance::Millis;
use crate::domain::names;
use crate::ports::{FoundIdentity, SecretState};
use crate::store::KnownBinding;
use std::collections::BTreeMap;
use std::fmt;

/// What does not agree. The word is also a label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A client whose name is like a binding's and which the broker never gives: it may open other bindings' secrets.
    ClientStrange,
    /// A client of a binding that no row knows.
    ClientUnknown,
    /// A client that gets tokens though its binding has ended.
    ClientEnabled,
    /// A client, shut out, of a binding that has ended.
    ClientEnded,
    /// A client that is shut out though its binding is valid.
    ClientDisabled,
    /// A valid binding without its client.
    ClientMissing,
    /// A secret of a binding that no row knows.
    SecretUnknown,
    /// A secret of a binding that has ended.
    SecretEnded,
    /// A secret in another place than the binding's own.
    SecretElsewhere,
    /// A valid binding without its secret.
    SecretMissing,
    /// A user on a server that no row knows.
    UserUnknown,
    /// A user on a server whose binding has ended, or which was rotated out.
    UserEnded,
    /// A valid binding without its user.
    UserMissing,
    /// A valid binding without its Secret in the application's namespace.
    CopyMissing,
    /// A Secret in an application's namespace into which somebody else has written.
    CopyEdited,
    /// A Secret of somebody else's where a valid binding's should be.
    CopyStrange,
    /// Something could not be looked at; what is there is not known.
    Unread,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ClientStrange,
        Self::ClientUnknown,
        Self::ClientEnabled,
        Self::ClientEnded,
        Self::ClientDisabled,
        Self::ClientMissing,
        Self::SecretUnknown,
        Self::SecretEnded,
        Self::SecretElsewhere,
        Self::SecretMissing,
        Self::UserUnknown,
        Self::UserEnded,
        Self::UserMissing,
        Self::CopyMissing,
        Self::CopyEdited,
        Self::CopyStrange,
        Self::Unread,
    ];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientStrange => "client_strange",
            Self::ClientUnknown => "client_unknown",
            Self::ClientEnabled => "client_enabled",
            Self::ClientEnded => "client_ended",
            Self::ClientDisabled => "client_disabled",
            Self::ClientMissing => "client_missing",
            Self::SecretUnknown => "secret_unknown",
            Self::SecretEnded => "secret_ended",
            Self::SecretElsewhere => "secret_elsewhere",
            Self::SecretMissing => "secret_missing",
            Self::UserUnknown => "user_unknown",
            Self::UserEnded => "user_ended",
            Self::UserMissing => "user_missing",
            Self::CopyMissing => "copy_missing",
            Self::CopyEdited => "copy_edited",
            Self::CopyStrange => "copy_strange",
            Self::Unread => "unread",
        }
    }

    /// What there is to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::ClientStrange => {
                "ALARM: not the broker's; find out who made it and delete it at the identity provider"
            }
            Self::ClientUnknown | Self::SecretUnknown | Self::SecretElsewhere | Self::UserUnknown => {
                "--remove takes it away"
            }
            Self::ClientEnabled | Self::ClientEnded | Self::SecretEnded | Self::UserEnded => {
                "--repair revokes it once more"
            }
            Self::ClientDisabled => "--repair lets it in again",
            Self::ClientMissing | Self::SecretMissing | Self::UserMissing => {
                "--repair puts it back, where the broker still has what it takes"
            }
            Self::CopyMissing | Self::CopyEdited => {
                "the broker does not keep these credentials: rotate the binding in place, which puts the Secret right"
            }
            Self::CopyStrange => {
                "it is not the broker's: have it removed or renamed, then rotate the binding in place"
            }
            Self::Unread => "run it again later",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was done about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Nothing; the text says what can be.
    Told(&'static str),
    /// Put right.
    Repaired,
    /// Taken away.
    Removed,
    /// An operation that puts it right is open.
    Begun,
    /// It was tried and did not work, for this reason.
    Failed(String),
}

impl Done {
    /// Whether the finding is dealt with.
    pub fn is_mended(&self) -> bool {
        matches!(self, Self::Repaired | Self::Removed | Self::Begun)
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told(advice) => f.write_str(advice),
            Self::Repaired => f.write_str("repaired"),
            Self::Removed => f.write_str("removed"),
            Self::Begun => f.write_str("being revoked; `chandler operations list` shows how far it is"),
            Self::Failed(why) => write!(f, "could not be put right: {why}"),
        }
    }
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// What it is about, by the name it has where it is.
    pub what: String,
    /// What was done.
    pub done: Done,
}

/// What one comparison came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Findings by kind; kinds that could not be looked at are not in it.
    pub found: BTreeMap<Kind, u64>,
    /// Findings that were not dealt with.
    pub left: u64,
    /// Clients, secrets, users and Secrets in applications' namespaces that were looked at.
    pub looked_at: [u64; 4],
    /// Pages that were read, of the world and of the rows.
    pub pages: u64,
    /// Times the rows were asked about a page of the world.
    pub lookups: u64,
    /// Most things that were in memory at once, for one page.
    pub most_held: usize,
}

/// What the rows say of something's binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Unknown,
    /// The broker is at it, was a moment ago, or will be: no finding.
    Moving,
    /// It has ended, and all of it should be gone.
    Ended,
    /// It is valid, and all of it should be there.
    Valid,
}

/// `began` = when the comparison began: what changed since may have been seen as it was before.
pub(super) fn standing(known: Option<&KnownBinding>, began: Millis) -> Standing {
    let Some(KnownBinding { binding, busy }) = known else {
        return Standing::Unknown;
    };
    if *busy || binding.residue || binding.updated_at >= began {
        return Standing::Moving;
    }
    match binding.state {
        BindingState::Gone | BindingState::Failed | BindingState::Expired => Standing::Ended,
        BindingState::Ready if !binding.is_expired(began) => Standing::Valid,
        _ => Standing::Moving,
    }
}

/// What is wrong with a client.
pub(super) fn of_client(client: &FoundIdentity, standing: Standing) -> Option<Kind> {
    match (&client.bid, standing) {
        (None, _) => Some(Kind::ClientStrange),
        (_, Standing::Unknown) => Some(Kind::ClientUnknown),
        (_, Standing::Ended) if client.enabled => Some(Kind::ClientEnabled),
        (_, Standing::Ended) => Some(Kind::ClientEnded),
        (_, Standing::Valid) if !client.enabled => Some(Kind::ClientDisabled),
        _ => None,
    }
}

/// What is wrong with a secret. `in_place` = it is where the row's binding has its secret.
pub(super) fn of_secret(in_place: bool, standing: Standing) -> Option<Kind> {
    match standing {
        Standing::Unknown => Some(Kind::SecretUnknown),
        Standing::Moving => None,
        _ if !in_place => Some(Kind::SecretElsewhere),
        Standing::Ended => Some(Kind::SecretEnded),
        Standing::Valid => None,
    }
}

/// What is wrong with the Secret of a valid binding in its application's namespace.
pub(super) fn of_copy(state: SecretState) -> Option<Kind> {
    match state {
        SecretState::Whole => None,
        SecretState::Edited => Some(Kind::CopyEdited),
        SecretState::Absent => Some(Kind::CopyMissing),
        SecretState::Anothers => Some(Kind::CopyStrange),
    }
}

/// What is wrong with a user on the server of `iid`. `welcome` = whether the binding has it now; none = it never had.
pub(super) fn of_user(
    user: &str,
    iid: &str,
    known: Option<&KnownBinding>,
    welcome: Option<bool>,
    standing: Standing,
) -> Option<Kind> {
    let known = known.filter(|known| {
        known.binding.iid == iid && names::bid_of_user(user) == Some(known.binding.bid.as_str())
    });
    match (known, standing) {
        (None, _) | (_, Standing::Unknown) => Some(Kind::UserUnknown),
        (_, Standing::Ended) => Some(Kind::UserEnded),
        (_, Standing::Valid) => match welcome {
            Some(true) => None,
            Some(false) => Some(Kind::UserEnded),
            None => Some(Kind::UserUnknown),
        },
        (_, Standing::Moving) => None,
    }
}
