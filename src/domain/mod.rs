//! What the broker knows and decides, without I/O: no async, no clock, no randomness.
//!
//! Everything here is a plain function of its arguments, so each rule can be tested as a table.

pub mod access;
pub mod audit;
pub mod binding;
pub mod catalog;
pub mod decide;
pub mod delivery;
pub mod error;
pub mod expr;
pub mod instance;
pub mod manifest;
pub mod names;
pub mod operation;
pub mod params;
pub mod projection;
pub mod request;
pub mod secret;
