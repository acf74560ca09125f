//! The real broker against a real API server with a real node: `make test-real`.
//!
//! What must stay true: the broker runs as a service account with exactly the rights `chandler rbac` prints, never as
//! an administrator; every wait is bounded; every test makes names of its own and ends by looking for what should not
//! be there. `make test` leaves this target out, because it needs a cluster: see `cluster::Kubectl::admin`.
//!
//! Tests run side by side; those of `alone`, which disturb the whole cluster, wait until they are alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    clippy::disallowed_methods,
    missing_docs
)]

mod administrators;
mod alone;
mod cluster;
mod delivery;
mod faults;
mod flows;
mod further;
mod groups;
mod hands;
mod isolation;
mod plans;
mod pods;
mod retention;
mod rights;
#[path = "../real/s3_client.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod s3_client;
mod scene;
#[path = "../faults/support/mod.rs"]
#[allow(dead_code, reason = "made for the fault tests, which use more of it")]
mod support;
mod trouble;
