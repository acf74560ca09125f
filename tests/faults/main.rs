//! The real broker, real servers, real HTTP, and everything that can go wrong between them.
//!
//! Every test runs the built program as a process of its own on a data directory of its own and ends by looking
//! for what should not be there: processes, directories, ports, users, rows. Nothing leaves loopback, every wait
//! is bounded, and a guard removes processes and directories however a test ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    clippy::disallowed_methods,
    missing_docs
)]

mod administrators;
mod core_dump;
mod dev_cli;
mod drop_in;
mod examples;
mod kill9;
mod replicas;
mod secrets;
mod support;
mod trouble;
