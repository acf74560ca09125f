//! Whether an object is ready, and why not.
use super::dress::Dressed;
use serde_json::Value;

/// How an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// As wanted, and working.
    Ready,
    /// Not yet; the text is shown to people.
    Progressing(String),
    /// It will not get there by itself; the text is shown to people.
    Failed(String),
}

/// A live object against the wanted one.
pub(super) fn of(_object: &Value, _dressed: &Dressed) -> Health {
    Health::Progressing(String::new())
}

/// Why an instance is not getting ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One sentence a developer can act on.
    pub sentence: String,
    /// Whether waiting is of no use.
    pub terminal: bool,
}

/// What keeps an instance from getting ready, if the cluster says so.
pub(super) fn trouble(
    _pods: &[&Value],
    _claims: &[&Value],
    _events: &[Value],
    _now_ms: i64,
) -> Option<Trouble> {
    None
}
