//! What a platform may be answered, by the rules of the protocol alone: the state of an instance and its bindings as a
//! platform can know it, and the answer each call must get in it.

use crate::support::catalog::SMALL;
use std::collections::BTreeMap;

/// What makes two PUTs of an instance the same (P-06).
#[derive(Debug, Clone, PartialEq)]
pub struct Attributes {
    pub plan: &'static str,
    pub size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    Never,
    Gone,
    Provisioning,
    Ready,
    ProvisionFailed,
    Updating,
    Deprovisioning,
    DeprovisionFailed,
}

#[derive(Debug, Clone)]
pub struct Instance {
    pub state: State,
    pub attributes: Attributes,
    pub target: Option<Attributes>,
    pub usable: bool,
    /// Token of the open operation.
    pub open: Option<String>,
    pub bindings: BTreeMap<&'static str, Binding>,
}

/// What makes two PUTs of a binding the same (B-05).
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Role(&'static str, &'static str),
    After(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    Creating,
    Ready,
    Failed,
    Deleting,
    DeleteFailed,
    Gone,
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub state: Bound,
    pub asked: Asked,
    /// Token of the open operation, and whether the broker opened it by itself.
    pub open: Option<(String, bool)>,
}

/// The answer that must come: status and error word, empty for a success.
pub type Expected = (u16, &'static str);

pub const ASYNC_REQUIRED: Expected = (422, "AsyncRequired");
pub const CONCURRENCY: Expected = (422, "ConcurrencyError");
pub const CONFLICT: Expected = (409, "Conflict");
pub const BAD: Expected = (400, "BadRequest");
pub const NONE: Expected = (404, "NotFound");
pub const GONE: Expected = (410, "Gone");
pub const ACCEPTED: Expected = (202, "");

pub const INSTANCES: [&str; 2] = ["x", "y"];
pub const BINDINGS: [&str; 3] = ["1", "2", "3"];

impl Instance {
    pub fn new() -> Self {
        Self {
            state: State::Never,
            attributes: Attributes {
                plan: SMALL,
                size: None,
            },
            target: None,
            usable: true,
            open: None,
            bindings: BTreeMap::new(),
        }
    }

    pub fn exists(&self) -> bool {
        !matches!(self.state, State::Never | State::Gone)
    }

    pub fn binding_at_work(&self) -> bool {
        self.bindings.values().any(|b| b.open.is_some())
    }

    pub fn alive(&self, id: &str) -> Option<&Binding> {
        self.bindings.get(id).filter(|b| b.state != Bound::Gone)
    }

    /// PUT of the instance.
    pub fn put(&self, asked: &Attributes, flag: bool) -> Expected {
        let same = *asked == self.attributes;
        match self.state {
            State::Ready if same => return (200, ""),
            State::Provisioning | State::Ready | State::ProvisionFailed if !same => return CONFLICT,
            _ if !flag => return ASYNC_REQUIRED,
            _ => {}
        }
        match self.state {
            State::Updating | State::Deprovisioning | State::DeprovisionFailed => CONCURRENCY,
            _ => ACCEPTED,
        }
    }

    /// PATCH of the instance.
    pub fn patch(&self, target: &Attributes, flag: bool) -> Expected {
        if !self.exists() {
            return NONE;
        }
        if !flag {
            return ASYNC_REQUIRED;
        }
        match self.state {
            State::Updating if self.target.as_ref() == Some(target) => ACCEPTED,
            _ if self.open.is_some() || self.binding_at_work() => CONCURRENCY,
            State::ProvisionFailed | State::DeprovisionFailed => BAD,
            _ if self.usable && *target == self.attributes => (200, ""),
            _ => ACCEPTED,
        }
    }

    /// DELETE of the instance.
    pub fn delete(&self, flag: bool) -> Expected {
        match self.state {
            _ if !flag => ASYNC_REQUIRED,
            State::Never | State::Gone => GONE,
            State::Deprovisioning => ACCEPTED,
            _ if self.binding_at_work() => CONCURRENCY,
            _ => ACCEPTED,
        }
    }

    /// PUT of a binding; a success is 201 without the flag.
    pub fn bind(&self, id: &str, asked: &Asked, flag: bool) -> Expected {
        if !self.exists() {
            return NONE;
        }
        let success = if flag { ACCEPTED } else { (201, "") };
        // such a request is wrong whatever exists.
        if matches!(asked, Asked::After(before) if *before == id) {
            return BAD;
        }
        if let Some(there) = self.alive(id) {
            if there.asked != *asked {
                return CONFLICT;
            }
            match (there.state, &there.open) {
                (Bound::Ready, None) => return (200, ""),
                (Bound::Creating, Some(_)) if flag => return ACCEPTED,
                (Bound::Creating, Some(_)) => return ASYNC_REQUIRED,
                (Bound::Failed, None) => {}
                _ => return CONCURRENCY,
            }
        }
        if let Asked::After(before) = asked {
            match self.alive(before).map(|b| b.state) {
                Some(Bound::Creating) => return CONCURRENCY,
                Some(Bound::Ready) => {}
                _ => return BAD,
            }
        }
        match self.state {
            _ if self.open.is_some() => CONCURRENCY,
            State::Ready => success,
            _ => BAD,
        }
    }

    /// DELETE of a binding.
    pub fn unbind(&self, id: &str, flag: bool) -> Expected {
        let success = if flag { ACCEPTED } else { (200, "") };
        match self.alive(id) {
            None => GONE,
            Some(_) if !self.exists() => GONE,
            Some(Binding {
                state: Bound::Deleting,
                open: Some((_, false)),
                ..
            }) if !flag => ASYNC_REQUIRED,
            Some(Binding { open: Some(_), .. }) => success,
            Some(_) if self.open.is_some() => CONCURRENCY,
            Some(_) => success,
        }
    }

    /// GET of the instance.
    pub fn fetch(&self) -> Expected {
        match self.state {
            State::Ready | State::DeprovisionFailed => (200, ""),
            State::Updating | State::Deprovisioning => CONCURRENCY,
            _ => NONE,
        }
    }
}
