//! Moves that many stories share: brokers that do nothing by themselves, ends of operations, rows.

use super::broker::{Answer, Choices, TestBroker};
use super::catalog;
use chandler::domain::binding::Binding;
use chandler::domain::instance::Instance;
use chandler::domain::names;
use serde_json::{Value, json};

/// Query members that allow a 202.
pub const LATER: &str = "accepts_incomplete=true";

/// Path of an instance.
pub fn instance(id: &str) -> String {
    format!("/v2/service_instances/{id}")
}

/// Path of a binding of the instance `one`.
pub fn binding(id: &str) -> String {
    format!("/v2/service_instances/one/service_bindings/{id}")
}

/// The query of a delete of what belongs to `alpha/small`; `+async`.
pub fn delete_later() -> String {
    format!("{LATER}&{}", catalog::ids())
}

impl TestBroker {
    /// A broker that accepts work and leaves it open until the test says `run_until_idle`.
    pub async fn held() -> Self {
        let mut choices = Choices::default();
        choices.engine.runs_work = false;
        Self::with(choices).await
    }

    /// last_operation of an instance or a binding.
    pub async fn last(&self, of: &str) -> Answer {
        self.get(&format!("{of}/last_operation")).await.expect(200)
    }

    /// last_operation of one operation.
    pub async fn last_of(&self, of: &str, operation: &str) -> Answer {
        self.get(&format!("{of}/last_operation?operation={operation}"))
            .await
            .expect(200)
    }

    /// Provisions the instance `one` of any plan to its end.
    pub async fn provisioned_as(&self, service: &str, plan: &str, parameters: Value) {
        let body = json!({"service_id": service, "plan_id": plan, "organization_guid": "org", "space_guid": "space",
            "parameters": parameters});
        self.put(&format!("{}?{LATER}", instance("one")), &body)
            .await
            .expect(202);
        self.run_until_idle().await;
        assert_eq!(self.last(&instance("one")).await.body["state"], "succeeded");
    }

    /// Binds the instance `one` asynchronously and returns the credentials.
    pub async fn bound_later(&self, id: &str, body: &Value) -> Value {
        self.put(&format!("{}?{LATER}", binding(id)), body)
            .await
            .expect(202);
        self.run_until_idle().await;
        self.get(&binding(id)).await.expect(200).body["credentials"].clone()
    }

    /// Deletes the instance `one`, whatever its service, and ends.
    pub async fn deleted_and_end(self) {
        let body = self.row("one").await.attributes;
        let query = format!("{LATER}&service_id={}&plan_id={}", body.service_id, body.plan_id);
        self.delete(&format!("{}?{query}", instance("one")))
            .await
            .expect(202);
        self.run_until_idle().await;
        assert!(self.world.instances.lock().unwrap().is_empty());
        self.end().await;
    }

    /// The row of an instance of the platform the tests are.
    pub async fn row(&self, id: &str) -> Instance {
        self.engine
            .store()
            .instance(&names::iid("cf", id))
            .await
            .unwrap()
            .unwrap()
            .instance
    }

    /// The row of a binding of the instance `one`.
    pub async fn binding_row(&self, id: &str) -> Binding {
        self.engine
            .store()
            .binding(&names::bid("cf", "one", id))
            .await
            .unwrap()
            .unwrap()
            .binding
    }

    /// Whether credentials as an application gets them open the door.
    pub fn opens(&self, credentials: &Value) -> bool {
        let text = |name: &str| {
            credentials[name]
                .as_str()
                .unwrap_or_else(|| panic!("{credentials}"))
        };
        self.world.lets_in(text("username"), text("password"))
    }
}
