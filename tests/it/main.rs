//! The whole broker under test, in one binary because linking dominates: one file per behaviour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::pedantic,
    missing_docs
)]

mod admin;
mod architecture;
mod audit;
mod conformance;
mod crash;
mod delivery;
mod fetch;
mod fuzz;
mod http;
mod injection;
mod kubernetes;
mod lifecycle;
mod model;
mod objects;
mod openapi;
mod racing;
mod reconcile;
mod replicas;
mod retained;
mod store;
mod support;
