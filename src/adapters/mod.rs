//! The concrete ends behind the ports. Adapters never import one another; only `app` names them.

pub mod catalog_dir;
pub mod credentials;
pub mod keycloak;
pub mod kubernetes;
pub mod local;
pub mod sealed;
pub mod vault;
