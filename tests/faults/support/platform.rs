//! A platform as the broker meets it: it repeats what was not answered, and polls until it knows.

use super::process::Address;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest that one accepted request may take to its end, left-overs of other tests' load included.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The services whose servers Debian has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    Postgres,
    Redis,
    Nats,
}

impl Service {
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Nats];

    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Nats => "nats",
        }
    }

    /// Ids of the offering and of its plan `small`, as the catalog's files have them.
    pub fn ids(self) -> (String, String) {
        let id = |path: String| {
            let path = super::process::repository().join(path);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            text.lines()
                .find_map(|l| l.strip_prefix("id: "))
                .unwrap()
                .trim()
                .to_owned()
        };
        let name = self.name();
        (
            id(format!("catalog/{name}/offering.yaml")),
            id(format!("plans/{name}/small.yaml")),
        )
    }

    /// Whether its instances have generated secrets beside the administrator's.
    pub fn generates(self) -> bool {
        let path = super::process::repository().join(format!("catalog/{}/offering.yaml", self.name()));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines().any(|line| line == "generated:")
    }

    /// A parameter that an update can change, which restarts the server.
    pub fn change(self, n: u64) -> Value {
        match self {
            Self::Postgres => json!({"work_mem_mb": 5 + n % 50}),
            Self::Redis => json!({"idle_timeout_seconds": 3600 + n % 1000}),
            Self::Nats => json!({"ping_interval_seconds": 60 + n % 100}),
        }
    }
}

/// An answer of the broker.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub text: String,
}

impl Answer {
    pub fn operation(&self) -> Option<&str> {
        self.body["operation"].as_str()
    }

    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn expect(self, statuses: &[u16]) -> Self {
        assert!(statuses.contains(&self.status), "{} {}", self.status, self.text);
        self
    }
}

/// The broker died, or never lived, while a request was on its way.
#[derive(Debug)]
pub struct Lost(#[expect(dead_code, reason = "shown when an assertion fails")] pub String);

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Succeeded,
    Failed(String),
}

/// A client of one broker.
#[derive(Clone)]
pub struct Platform {
    client: reqwest::Client,
    address: Address,
    user: String,
    password: String,
}

impl Platform {
    pub fn new(address: &Address, user: &str, password: &str) -> Self {
        Self::with(reqwest::Client::builder(), address, user, password)
    }

    /// With a client of one's own making.
    pub fn with(client: reqwest::ClientBuilder, address: &Address, user: &str, password: &str) -> Self {
        let client = client
            .timeout(Duration::from_secs(60))
            .connect_timeout(Duration::from_secs(5))
            .no_proxy()
            .build()
            .unwrap();
        Self {
            client,
            address: address.clone(),
            user: user.into(),
            password: password.into(),
        }
    }

    /// The user of a `chandler dev`, with the password it wrote down.
    pub fn dev(broker: &super::process::Broker, home: &super::home::Home) -> Self {
        let password = std::fs::read_to_string(home.data().join("dev-password")).unwrap();
        Self::new(&broker.address, "dev", password.trim())
    }

    /// One request, once.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Lost> {
        let lost = |e: reqwest::Error| Lost(format!("{e:?}"));
        let url = format!("{}{path}", self.address.read().unwrap());
        let mut request = self
            .client
            .request(method.parse().unwrap(), url)
            .basic_auth(&self.user, Some(&self.password))
            .header("X-Broker-API-Version", "2.17");
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(lost)?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, body, text })
    }

    /// One request, repeated until it is answered by something else than "not now".
    pub async fn sure(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.send(method, path, body).await {
                Ok(answer) if answer.status != 503 => return answer,
                other => assert!(
                    Instant::now() < end,
                    "{method} {path}: no answer in {PATIENCE:?}: {other:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.sure("GET", path, None).await
    }

    /// Polls a last_operation until it has an end. 410 is the end of a delete.
    pub async fn end_of(&self, path: &str) -> End {
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(15);
        loop {
            let answer = self.get(path).await;
            if answer.status == 410 {
                return End::Succeeded;
            }
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
            match answer.body["state"].as_str() {
                Some("succeeded") => return End::Succeeded,
                Some("failed") => {
                    return End::Failed(answer.body["description"].as_str().unwrap_or_default().into());
                }
                _ => assert!(
                    Instant::now() < end,
                    "{path}: not done in {PATIENCE:?}: {}",
                    answer.text
                ),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(150));
        }
    }

    /// Where an answer that may be 202 ends.
    pub async fn ended(&self, answer: &Answer, path: &str) -> End {
        match (answer.status, answer.operation()) {
            (202, Some(operation)) => {
                self.end_of(&format!("{path}/last_operation?operation={operation}"))
                    .await
            }
            (202, None) => self.end_of(&format!("{path}/last_operation")).await,
            (200 | 201 | 410, _) => End::Succeeded,
            (status, _) => panic!("{path}: {status} {}", answer.text),
        }
    }

    /// Asks for an instance; the answer is 2xx.
    pub async fn ask_instance(&self, service: Service, id: &str, parameters: Value) -> Answer {
        let body = provision_body(service, parameters);
        self.sure(
            "PUT",
            &format!("{}?accepts_incomplete=true", instance(id)),
            Some(&body),
        )
        .await
        .expect(&[200, 201, 202])
    }

    /// Makes an instance to its end.
    pub async fn create(&self, service: Service, id: &str) {
        let answer = self.ask_instance(service, id, json!({})).await;
        assert_eq!(
            self.ended(&answer, &instance(id)).await,
            End::Succeeded,
            "create {id}"
        );
    }

    /// Asks for a binding; the answer is 2xx.
    pub async fn ask_binding(&self, service: Service, id: &str, binding_id: &str, more: Value) -> Answer {
        let body = bind_body(service, more);
        self.sure(
            "PUT",
            &format!("{}?accepts_incomplete=true", binding(id, binding_id)),
            Some(&body),
        )
        .await
        .expect(&[200, 201, 202])
    }

    /// Binds to the end and gives the credentials.
    pub async fn bind(&self, service: Service, id: &str, binding_id: &str) -> Value {
        let answer = self.ask_binding(service, id, binding_id, json!({})).await;
        assert_eq!(
            self.ended(&answer, &binding(id, binding_id)).await,
            End::Succeeded,
            "bind {binding_id}"
        );
        self.credentials(id, binding_id).await
    }

    /// The credentials of a binding, asked for anew.
    pub async fn credentials(&self, id: &str, binding_id: &str) -> Value {
        self.get(&binding(id, binding_id)).await.expect(&[200]).body["credentials"].clone()
    }

    /// Asks for the end of a binding; 2xx, or 410 when an unanswered try had done it.
    pub async fn ask_unbind(&self, service: Service, id: &str, binding_id: &str) -> Answer {
        let path = format!("{}?{}", binding(id, binding_id), ids(service));
        self.sure("DELETE", &path, None).await.expect(&[200, 202, 410])
    }

    /// Unbinds to the end.
    pub async fn unbind(&self, service: Service, id: &str, binding_id: &str) {
        let answer = self.ask_unbind(service, id, binding_id).await;
        assert_eq!(
            self.ended(&answer, &binding(id, binding_id)).await,
            End::Succeeded,
            "unbind {binding_id}"
        );
    }

    /// Asks for the end of an instance.
    pub async fn ask_delete(&self, service: Service, id: &str) -> Answer {
        let path = format!("{}?{}", instance(id), ids(service));
        self.sure("DELETE", &path, None).await.expect(&[200, 202, 410])
    }

    /// Deletes to the end.
    pub async fn delete(&self, service: Service, id: &str) {
        let answer = self.ask_delete(service, id).await;
        assert_eq!(
            self.ended(&answer, &instance(id)).await,
            End::Succeeded,
            "delete {id}"
        );
    }

    /// Changes parameters to the end.
    pub async fn update(&self, service: Service, id: &str, parameters: &Value) {
        let body = json!({"service_id": service.ids().0, "parameters": parameters});
        let answer = self
            .sure(
                "PATCH",
                &format!("{}?accepts_incomplete=true", instance(id)),
                Some(&body),
            )
            .await
            .expect(&[200, 202]);
        assert_eq!(
            self.ended(&answer, &instance(id)).await,
            End::Succeeded,
            "update {id}"
        );
    }
}

/// Path of an instance.
pub fn instance(id: &str) -> String {
    format!("/v2/service_instances/{id}")
}

/// Path of a binding.
pub fn binding(id: &str, binding_id: &str) -> String {
    format!("/v2/service_instances/{id}/service_bindings/{binding_id}")
}

/// Query of a DELETE.
pub fn ids(service: Service) -> String {
    let (service_id, plan_id) = service.ids();
    format!("service_id={service_id}&plan_id={plan_id}&accepts_incomplete=true")
}

/// Body of a PUT instance.
pub fn provision_body(service: Service, parameters: Value) -> Value {
    let (service_id, plan_id) = service.ids();
    json!({"service_id": service_id, "plan_id": plan_id, "organization_guid": "org", "space_guid": "space",
        "parameters": parameters})
}

/// Body of a PUT binding with further members.
pub fn bind_body(service: Service, more: Value) -> Value {
    let (service_id, plan_id) = service.ids();
    let mut body = json!({"service_id": service_id, "plan_id": plan_id});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}
