//! The `nats` mechanism against a real nats-server in operator mode.

mod faults;
mod revocation;
mod roles;

use crate::contract::{self, Bound, Kit, Session};
use crate::support::{Process, endpoint, free_port, start_listening};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions, Event, Subscriber};
use async_trait::async_trait;
use chandler::adapters::credentials::nats::Nats;
use chandler::domain::instance::Millis;
use chandler::domain::names;
use chandler::domain::secret::Secret;
use chandler::ports::{Clock, CredentialMechanism, Grant, NewUser, Target};
use futures::StreamExt;
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// The clock of the machine.
pub struct Wall;

impl Clock for Wall {
    fn now(&self) -> Millis {
        contract::now()
    }
}

/// A mechanism as another broker process would have it.
pub fn mechanism() -> Nats {
    Nats::new(Arc::new(Wall))
}

struct Running {
    process: Option<Process>,
    port: u16,
}

/// A nats-server with the configuration from the mechanism's documentation.
pub struct Server {
    pub mechanism: Nats,
    pub admin: Secret,
    pub settings: Map<String, Value>,
    running: Mutex<Running>,
    /// Further lines of the configuration.
    pub extra: Mutex<String>,
    pub dir: TempDir,
}

impl Server {
    /// Starts one whose account is not on the server yet.
    pub fn start(settings: Value) -> Self {
        let mechanism = mechanism();
        let Value::Object(settings) = settings else {
            panic!("settings are an object")
        };
        let server = Self {
            admin: mechanism.generate_admin(&settings).unwrap(),
            mechanism,
            settings,
            running: Mutex::new(Running {
                process: None,
                port: 0,
            }),
            extra: Mutex::new(String::new()),
            dir: tempfile::Builder::new()
                .prefix("chandler-nats-")
                .tempdir()
                .unwrap(),
        };
        server.restart(Signal::SIGKILL);
        server
    }

    /// Starts one that is ready for bindings, JetStream included.
    pub async fn prepared() -> Self {
        let server = Self::start(json!({"jetstream": true}));
        server
            .mechanism
            .prepare(&contract::Server::target(&server))
            .await
            .unwrap();
        server
    }

    /// Ends the server; `SIGKILL` is the power cord.
    pub fn stop(&self) {
        self.running.lock().unwrap().process = None;
    }

    /// Ends the server if it runs, and starts it on the same directory. `next_stop` is how the new one will be ended.
    pub fn restart(&self, next_stop: Signal) {
        self.stop();
        let (process, port) = start_listening(|port| {
            let file = self.dir.path().join("nats.conf");
            fs::write(&file, self.conf(port, free_port())).unwrap();
            Process::start(Command::new("nats-server").arg("-c").arg(file), next_stop)
        });
        let mut running = self.running.lock().unwrap();
        running.process = Some(process);
        running.port = port;
    }

    fn conf(&self, port: u16, monitor: u16) -> String {
        let admin = |member: &str| self.admin.text(member).to_owned();
        let root = self.dir.path().display();
        format!(
            r#"server_name: test
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
operator: {operator}
system_account: {system}
resolver {{
  type: full
  dir: "{root}/resolver"
  interval: "2m"
}}
resolver_preload {{
  {system}: {system_jwt}
}}
jetstream {{
  store_dir: "{root}/jetstream"
  max_memory_store: 64MB
  max_file_store: 1GB
}}
max_payload: 8MB
{extra}
"#,
            operator = admin("operator_jwt"),
            system = admin("system_account"),
            system_jwt = admin("system_account_jwt"),
            extra = self.extra.lock().unwrap(),
        )
    }

    /// The account's file in the resolver.
    pub fn account_file(&self) -> PathBuf {
        self.dir
            .path()
            .join("resolver")
            .join(format!("{}.jwt", self.admin.text("account")))
    }

    /// Sends any signal to the server.
    pub fn signal(&self, signal: Signal) {
        self.running
            .lock()
            .unwrap()
            .process
            .as_ref()
            .unwrap()
            .signal(signal);
    }

    pub fn port(&self) -> u16 {
        self.running.lock().unwrap().port
    }

    /// Connects with the text of a creds file; a binding's own inbox only when it is named.
    pub async fn connect(&self, creds: &str, inbox: Option<&str>) -> Result<App, String> {
        App::connect(self.port(), creds, inbox).await
    }

    /// Makes a binding with these parameters and connects as its application would.
    pub async fn app(&self, label: &str, role: &str, params: Value) -> (Bound, App) {
        let scoped = params.get("subjects").is_some();
        let Value::Object(params) = params else {
            panic!("parameters are an object")
        };
        let grant = Grant {
            params,
            ..contract::grant(label, role)
        };
        let bound = Kit::new(self).bind(grant).await;
        let inbox = bound.user.secret.text("inbox_prefix").to_owned();
        let app = self
            .connect(bound.user.secret.text("creds"), scoped.then_some(inbox.as_str()))
            .await
            .unwrap();
        (bound, app)
    }
}

#[async_trait]
impl contract::Server for Server {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.mechanism
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.port());
        Target {
            iid: names::iid("kit", "instance"),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: self.settings.clone(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let app = self.connect(user.secret.text("creds"), None).await?;
        Ok(Box::new(app))
    }

    fn lists_users(&self) -> bool {
        false
    }
}

/// An application's connection, which never comes back once it was cut.
pub struct App {
    pub client: Client,
    cut: Arc<AtomicBool>,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl App {
    pub async fn connect(port: u16, creds: &str, inbox: Option<&str>) -> Result<Self, String> {
        let cut = Arc::new(AtomicBool::new(false));
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let (cut_seen, refusals_seen) = (Arc::clone(&cut), Arc::clone(&refusals));
        let mut options = ConnectOptions::with_credentials(creds)
            .map_err(|e| e.to_string())?
            .connection_timeout(Duration::from_secs(10))
            .max_reconnects(1)
            .event_callback(move |event| {
                match event {
                    Event::ServerError(error) => refusals_seen.lock().unwrap().push(error.to_string()),
                    Event::Disconnected | Event::Closed => cut_seen.store(true, Ordering::SeqCst),
                    _ => {}
                }
                async {}
            });
        if let Some(inbox) = inbox {
            options = options.custom_inbox_prefix(inbox);
        }
        let client = options
            .connect(format!("nats://127.0.0.1:{port}"))
            .await
            .map_err(|e| e.to_string())?;
        Ok(Self {
            client,
            cut,
            refusals,
        })
    }

    /// Whether the server lets this message through: refusals come back before the answer to a later request.
    pub async fn may_publish(&self, subject: &str) -> bool {
        let before = self.refusals.lock().unwrap().len();
        self.client.publish(subject.to_owned(), "x".into()).await.unwrap();
        self.client.flush().await.unwrap();
        self.no_refusal_since(before).await
    }

    /// Whether the server accepts this subscription.
    pub async fn may_subscribe(&self, subject: &str) -> bool {
        let before = self.refusals.lock().unwrap().len();
        let _held = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.client.flush().await.unwrap();
        self.no_refusal_since(before).await
    }

    async fn no_refusal_since(&self, before: usize) -> bool {
        for _ in 0..15 {
            if self.refusals.lock().unwrap().len() > before {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Whether a message published by `from` arrives here on the same subject.
    pub async fn hears(&self, from: &Self, subject: &str) -> bool {
        self.hears_on(from, subject, subject).await
    }

    /// Whether a message published by `from` arrives here on a subscription to `pattern`.
    pub async fn hears_on(&self, from: &Self, pattern: &str, subject: &str) -> bool {
        let messages = self.client.subscribe(pattern.to_owned()).await.unwrap();
        self.receives(messages, from, subject).await
    }

    /// The same as a member of a queue group.
    pub async fn queue_hears_on(&self, from: &Self, pattern: &str, subject: &str) -> bool {
        let messages = self
            .client
            .queue_subscribe(pattern.to_owned(), "q".to_owned())
            .await
            .unwrap();
        self.receives(messages, from, subject).await
    }

    async fn receives(&self, mut messages: Subscriber, from: &Self, subject: &str) -> bool {
        self.client.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        from.client
            .publish(subject.to_owned(), "hello".into())
            .await
            .unwrap();
        from.client.flush().await.unwrap();
        // What the server has for this connection comes before the answer to this.
        self.client.flush().await.unwrap();
        matches!(
            timeout(Duration::from_millis(300), messages.next()).await,
            Ok(Some(_))
        )
    }

    /// The answer to a request, as JSON; an error when there is none.
    pub async fn ask(&self, subject: &str, payload: &str) -> Result<Value, String> {
        let request = self.client.request(subject.to_owned(), payload.to_owned().into());
        match self.unless_refused(request).await {
            Some(Ok(message)) => serde_json::from_slice(&message.payload).map_err(|e| e.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("no answer".to_owned()),
        }
    }

    /// What comes of `work`, for which a busy machine may need long; nothing once the server has refused something or ended
    /// the connection, and a moment is over.
    async fn unless_refused<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let before = self.refusals.lock().unwrap().len();
        let refused = async {
            while self.refusals.lock().unwrap().len() == before && !self.is_cut() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        tokio::select! {
            done = timeout(Duration::from_secs(10), work) => done.ok(),
            () = refused => None,
        }
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Waits until the server has cut this connection; panics after five seconds.
    pub async fn is_cut_soon(&self) {
        for _ in 0..250 {
            if self.is_cut() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the connection outlived its revocation");
    }
}

const STREAM: &str = "KIT";

#[async_trait]
impl Session for App {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        let js = jetstream::new(self.client.clone());
        let put = || async {
            let put = async {
                let sent = js.publish(format!("kit.{key}"), value.to_owned().into()).await;
                sent.map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())
            };
            let done = self.unless_refused(put).await;
            done.unwrap_or_else(|| Err("no acknowledgement".to_owned()))
                .map(drop)
        };
        if put().await.is_ok() {
            return Ok(());
        }
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["kit.>".to_owned()],
            ..Default::default()
        };
        self.unless_refused(js.create_stream(config))
            .await
            .ok_or("no answer")?
            .map_err(|e| e.to_string())?;
        put().await
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        let request = json!({"last_by_subj": format!("kit.{key}")}).to_string();
        let answer = self
            .ask(&format!("$JS.API.STREAM.MSG.GET.{STREAM}"), &request)
            .await?;
        if answer["error"]["code"] == 404 {
            return Ok(None);
        }
        let data = answer["message"]["data"].as_str().ok_or(answer.to_string())?;
        let bytes = data_encoding::BASE64
            .decode(data.as_bytes())
            .map_err(|e| e.to_string())?;
        String::from_utf8(bytes).map(Some).map_err(|e| e.to_string())
    }

    async fn alive(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(50)).await;
        !self.is_cut() && self.client.flush().await.is_ok()
    }
}

#[tokio::test]
async fn whole_life() {
    let server = Server::start(json!({
        "max_connections": 50,
        "readonly_jetstream": true,
        "jetstream": {"max_memory": 0, "max_file": 10_000_000, "max_streams": 5, "max_consumers": 50},
    }));
    contract::whole_life(&server).await;
}
