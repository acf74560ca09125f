//! The operation engine: commands and queries of the broker, and the work behind them.

use crate::domain::catalog::Catalog;
use crate::domain::error::Error;
use crate::domain::request::{
    Bind, BindingView, Caller, Delete, InstanceView, LastOperation, Outcome, Provision, Update,
};
use serde_json::Value;
use std::sync::Arc;

/// The catalog in use, with the body of GET /v2/catalog. Replaced whole at a reload.
pub struct Served {
    /// Everything, also plans that are not offered any more or cannot run here.
    pub catalog: Catalog,
    /// `{"services": [...]}`.
    pub body: Value,
}

/// Commands and queries.
pub struct Engine {}

#[allow(clippy::unused_async, missing_docs)]
impl Engine {
    pub fn served(&self) -> Arc<Served> {
        unimplemented!()
    }
    pub async fn provision(&self, _: &Caller, _: Provision) -> Result<Outcome<InstanceView>, Error> {
        unimplemented!()
    }
    pub async fn update(&self, _: &Caller, _: Update) -> Result<Outcome<InstanceView>, Error> {
        unimplemented!()
    }
    pub async fn deprovision(&self, _: &Caller, _: Delete) -> Result<Outcome<()>, Error> {
        unimplemented!()
    }
    pub async fn fetch_instance(&self, _: &Caller, _instance_id: &str) -> Result<InstanceView, Error> {
        unimplemented!()
    }
    pub async fn bind(&self, _: &Caller, _: Bind) -> Result<Outcome<BindingView>, Error> {
        unimplemented!()
    }
    pub async fn unbind(&self, _: &Caller, _: Delete) -> Result<Outcome<()>, Error> {
        unimplemented!()
    }
    pub async fn fetch_binding(&self, _: &Caller, _instance_id: &str, _binding_id: &str) -> Result<BindingView, Error> {
        unimplemented!()
    }
    pub async fn last_instance_operation(&self, _: &Caller, _instance_id: &str, _operation: Option<&str>) -> Result<LastOperation, Error> {
        unimplemented!()
    }
    pub async fn last_binding_operation(&self, _: &Caller, _instance_id: &str, _binding_id: &str, _operation: Option<&str>) -> Result<LastOperation, Error> {
        unimplemented!()
    }
    /// Whether the broker can serve: store reachable, catalog loaded, not draining. Else one sentence.
    pub async fn ready(&self) -> Result<(), String> {
        unimplemented!()
    }
}
