//! What tests share: throwaway databases, a fake clock, a fake world and the broker around them.

pub mod broker;
pub mod catalog;
pub mod chance;
pub mod flow;
pub mod outside;
pub mod postgres;
pub mod raw;
pub mod world;
