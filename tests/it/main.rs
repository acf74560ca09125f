//! The whole broker under test, in one binary because linking dominates: one file per behaviour.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::pedantic, missing_docs)]

mod architecture;
mod fuzz;
mod lifecycle;
mod store;
mod support;
