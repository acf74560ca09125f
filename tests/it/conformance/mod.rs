//! Every rule of the protocol digest that can be tested, by a test named after it (`p06_…` pins P-06).

mod catalog;
mod common;
mod errors;
mod headers;
mod identifiers;
mod bind;
mod deprovision;
mod quirks;
mod rotation;
mod unbind;
mod update;
