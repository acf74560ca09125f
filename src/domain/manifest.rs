//! From catalog text to what a provisioner makes: pure rendering of one instance.

use super::catalog::{Offering, Plan};
use super::expr::{ExprError, Scope};
use super::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Everything a provisioner needs to make an instance. Holds secrets: no readable `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct Desired {
    /// The local process, when the offering has `process.yaml`.
    pub process: Option<ProcessSpec>,
    /// Kubernetes objects in order, when the offering has `objects/`.
    pub objects: Vec<Value>,
    /// Hash of all the above: equal hashes mean nothing to change.
    pub hash: String,
}

impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desired").field("hash", &self.hash).finish_non_exhaustive()
    }
}

/// `process.yaml` filled in. Paths are relative to the instance's directory (`${dirs.root}`).
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Unprivileged users to run as when the broker is root.
    #[serde(default)]
    pub user: Vec<String>,
    /// Port names, each an endpoint on loopback.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Files written (mode 0600, owned by the user) before the process starts.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Run once, before the first start.
    #[serde(default)]
    pub init: Option<InitSpec>,
    /// Program and arguments. Never secrets: arguments are visible to every user of the machine.
    pub command: Vec<String>,
    /// Environment, on top of a bare `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How to stop it.
    #[serde(default)]
    pub stop: StopSpec,
    /// What a changed file or command needs.
    #[serde(default)]
    pub change: ChangeAction,
    /// When it counts as up (the mechanism then still has to log in).
    pub ready: ReadySpec,
}

/// A file of a process.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Relative path without `..`.
    pub path: String,
    /// Text.
    pub content: String,
    /// Only for `init`: written before it and removed after it (password files).
    #[serde(default)]
    pub init_only: bool,
    /// Written only when absent: the process changes it itself afterwards (an ACL file).
    #[serde(default)]
    pub keep: bool,
}

/// A command that makes a directory, run so that a crash half-way leaves nothing that looks finished.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitSpec {
    /// The directory it makes. The command gets `${dirs.init}` and what it made there is renamed to this.
    pub creates: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// How a process is stopped.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopSpec {
    /// `SIGTERM`, `SIGINT` or `SIGQUIT`.
    pub signal: String,
    /// Seconds before SIGKILL.
    pub grace: u32,
}

impl Default for StopSpec {
    fn default() -> Self {
        Self {
            signal: "SIGTERM".into(),
            grace: 10,
        }
    }
}

/// What to do with a running process when its files or command changed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// Stop and start.
    #[default]
    Restart,
    /// Send SIGHUP when only files changed; restart when the command or environment did.
    Reload,
}

/// When a process counts as up.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadySpec {
    /// This port (by name) accepts connections.
    pub tcp: String,
}

/// Renders an instance: fills `process.yaml` and `objects/` of the offering.
///
/// `scope` holds `instance`, `platform`, `params` and the provisioner's placement; `plan`, `admin` and `generated` are added here.
pub fn render(
    offering: &Offering,
    plan: &Plan,
    scope: &Scope,
    admin: &Secret,
    generated: &Secret,
) -> Result<Desired, ExprError> {
    let _ = (offering, plan, scope, admin, generated);
    unimplemented!()
}
