//! Against servers that no Debian package brings: credential mechanisms on MinIO, Cassandra and a CouchDB-compatible one,
//! adapters on Vault and Keycloak, and both together.
//!
//! Not part of `make test`: `make test-real` runs it. Each test starts its server on loopback in a directory of its
//! own and kills it when its guard drops; for Keycloak and Vault it makes realms and mounts of its own on those of the
//! testbed. Where a server is missing the test fails and says how to get it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    clippy::disallowed_methods,
    missing_docs
)]

mod cassandra;
#[path = "../real/contract.rs"]
mod contract;
mod couchdb;
#[path = "../real/couchdb/client.rs"]
mod couchdb_client;
mod faulty;
mod fetch;
#[path = "../it/fetch/programs.rs"]
mod fetch_programs;
mod keycloak;
mod keycloak_cli;
mod keycloak_setup;
#[path = "../faults/support/leaks.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod leaks;
mod minio;
mod mission;
mod own_keycloak;
mod realm;
#[path = "../real/s3_client.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod s3_client;
mod secrets;
mod servers;
#[path = "../real/services.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod services;
mod stolen;
#[path = "../real/support.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod support;
mod together;
mod under_load;
mod vault;
mod whole;
