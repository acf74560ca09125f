//! Every rule of the protocol digest that can be tested, by a test named after it (`p06_…` pins P-06).

mod bind;
mod catalog;
mod common;
mod deprovision;
mod errors;
mod headers;
mod identifiers;
mod quirks;
mod rotation;
mod unbind;
mod update;
