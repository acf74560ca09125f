//! Credential mechanisms: how users are made and revoked on each kind of server.

pub mod nats;
