//! Bindings whose credentials lie in a vault, in a namespace or in the answer: what is answered, what is where, and that
//! every step of the way in, the way out and a rotation may fail, lose its answer or kill its worker.

mod agreement;
mod answers;
mod choices;
mod matrix;
mod rotation;
mod sweep;

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ALPHA, SMALL};
use crate::support::flow::{LATER, binding, instance};
use crate::support::world::World;
use chandler::domain::delivery::Delivery;
use chandler::domain::names;
use chandler::engine::PlatformWays;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long former credentials go on working here.
const GRACE: Duration = Duration::from_mins(10);
/// When everything that may come late has come.
const SETTLED: Duration = Duration::from_mins(4);

/// What a broker with everything around it chooses.
fn choices() -> Choices {
    let mut choices = Choices {
        world: Arc::new(World::with_all_around()),
        ..Choices::default()
    };
    choices.engine.rotation_grace = GRACE;
    choices.engine.service_accounts = true;
    choices.engine.platforms = BTreeMap::from([(
        "cf".to_owned(),
        PlatformWays {
            delivery: vec![Delivery::Reference, Delivery::Secret, Delivery::Inline],
            namespaces: vec!["apps".into()],
        },
    )]);
    choices
}

/// A broker with everything around it.
async fn full() -> TestBroker {
    TestBroker::with(choices()).await
}

/// The same, whose operations only the test runs.
async fn held() -> TestBroker {
    let mut choices = choices();
    choices.engine.runs_work = false;
    choices.engine.sync_wait = Duration::from_millis(10);
    TestBroker::with(choices).await
}

/// A PUT binding body with this parameter `delivery`.
fn by(delivery: &str) -> Value {
    let mut body = catalog::bind_body();
    body["parameters"] = json!({"delivery": delivery});
    body
}

fn bid(id: &str) -> String {
    names::bid("cf", "one", id)
}

fn rotate_path(id: &str) -> String {
    format!("/api/v1/bindings/{id}/rotate")
}

impl TestBroker {
    /// Binds `one` like this to the end, and returns what GET answers.
    async fn handed(&self, id: &str, delivery: &str) -> Value {
        self.put(&format!("{}?{LATER}", binding(id)), &by(delivery)).await;
        self.run_until_idle().await;
        self.get(&binding(id)).await.expect(200).body["credentials"].clone()
    }

    /// What the binding's application reads now, wherever it reads.
    fn read(&self, id: &str) -> Option<Map<String, Value>> {
        let around = &self.world.around;
        let bid = bid(id);
        let mounted = {
            let projected = around.projected.lock().unwrap();
            let own = projected.values().find(|s| s.owner.as_ref() == Some(&bid));
            own.map(|s| s.entries.clone())
        };
        mounted.or_else(|| around.readable(&bid))
    }

    /// Unbinds to the end.
    async fn unbound(&self, id: &str) {
        let path = format!("{}?{LATER}&service_id={ALPHA}&plan_id={SMALL}", binding(id));
        let answer = self.delete(&path).await;
        assert!([200, 202].contains(&answer.status), "{}", answer.text);
        self.run_until_idle().await;
    }

    /// Deletes the instance, lets everything that may come late come, looks again, and ends.
    async fn settled_and_end(self) {
        let gone = self
            .delete(&format!(
                "{}?{LATER}&service_id={ALPHA}&plan_id={}",
                instance("one"),
                self.row("one").await.attributes.plan_id
            ))
            .await;
        assert!([202, 410].contains(&gone.status), "{}", gone.text);
        self.run_until_idle().await;
        self.settle().await;
        self.end().await;
    }

    /// Time passes and the sweep looks at what there is to look at, until there is nothing more to do.
    async fn settle(&self) {
        for _ in 0..3 {
            self.advance(SETTLED);
            self.sweeper().bindings().await.unwrap();
            self.run_until_idle().await;
        }
    }
}
