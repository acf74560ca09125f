//! Credential mechanisms: how users are made and revoked on each kind of server.

pub mod cassandra;
mod common;
pub mod couchdb;
mod holes;
pub mod http;
pub mod nats;
pub mod password;
pub mod redis;
pub mod s3;
pub mod sql;
mod sql_cockroach;
mod sql_postgres;
mod sql_settings;
mod sql_text;
pub mod statements;
mod web;
