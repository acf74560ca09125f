//! Credential mechanisms against the real servers they are for. One binary, because linking dominates.
//!
//! Every server is started here on loopback in a directory of its own and killed when its guard drops. For two that
//! cannot be had, CouchDB and RustFS, there are fakes; what needs more than Debian packages is in `tests/platform`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    clippy::disallowed_methods,
    missing_docs
)]

mod contract;
mod couchdb;
mod fake;
mod kubernetes;
mod nats;
mod postgres;
mod redis;
mod rustfs;
mod services;
mod statements;
mod steps;
mod support;
