//! chandler: an Open Service Broker (v2.17) that provisions real data services.
//!
//! The map of the crate. Data flows one way: [`http`] → [`domain::decide`] → [`engine`] →
//! [`store`] and [`ports`] → [`adapters`]. `tests/it/architecture.rs` fails when a `use crate::`
//! line goes against this order.

pub mod adapters;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod http;
pub mod ports;
pub mod store;
pub mod telemetry;
