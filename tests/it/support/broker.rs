//! The whole broker on port 0 with a fake clock and a fake world, driven by hand.
//!
//! Nothing sleeps: `run_until_idle` runs what is due and moves the clock to what is due next. When the harness is
//! dropped, everything that should not be left is looked for.

use super::catalog;
use super::outside::{FakeIdentity, FakeProjection, FakeVault};
use super::world::{FakeMechanism, FakeProvisioner, World};
use actix_web::{App, HttpServer};
use chandler::adapters::sealed::{Keys, SealedStore};
use chandler::app::{SqlRows, random_token};
use chandler::domain::binding::{Binding, BindingState};
use chandler::domain::catalog::{Catalog, KnownMechanisms, Sources};
use chandler::domain::delivery::Delivery;
use chandler::domain::instance::{InstanceState, Millis};
use chandler::domain::names;
use chandler::engine::{Engine, Ports, Runner, Settings, Sweeper};
use chandler::http::{self, auth};
use chandler::ports::secret_name;
use chandler::ports::{BindingIdentity, BindingVault, Clock, CredentialMechanism, SecretProjection};
use chandler::store::{Store, StoreOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// A clock that moves only when told.
pub struct FakeClock(AtomicI64);

impl Clock for FakeClock {
    fn now(&self) -> Millis {
        self.0.load(Ordering::SeqCst)
    }
}

/// How often the queue is looked at without a signal.
const POLL: Duration = Duration::from_millis(1);

/// What a test may choose.
pub struct Choices {
    pub engine: Settings,
    pub http: http::Settings,
    pub catalog: Sources,
    /// Database URL; none = a SQLite file of its own.
    pub database: Option<String>,
    pub world: Arc<World>,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            engine: Settings {
                owner: "test".into(),
                async_grace: Duration::ZERO,
                // Nobody polls here, but a worker that cannot get through steps back for two of these.
                poll: POLL,
                sync_wait: Duration::from_secs(5),
                ..Settings::default()
            },
            http: http::Settings {
                failed_logins_per_minute: 0,
                ..http::Settings::default()
            },
            catalog: catalog::sources(),
            database: None,
            world: Arc::default(),
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// The `error` word.
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    /// The `operation` token.
    pub fn operation(&self) -> &str {
        self.body["operation"].as_str().unwrap_or_default()
    }

    /// Asserts the status, showing the body when it differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Asserts status and error word.
    #[track_caller]
    pub fn expect_error(self, status: u16, error: &str) -> Self {
        assert_eq!((self.status, self.error()), (status, error), "{}", self.text);
        assert!(
            !self.body["description"].as_str().unwrap_or_default().is_empty(),
            "{}",
            self.text
        );
        self
    }
}

/// A running broker.
pub struct TestBroker {
    pub engine: Arc<Engine>,
    pub world: Arc<World>,
    pub clock: Arc<FakeClock>,
    pub base: String,
    /// URL of its database.
    pub database: String,
    pub http: reqwest::Client,
    server: actix_web::dev::ServerHandle,
    _dir: tempfile::TempDir,
    /// Set by tests that leave something on purpose.
    pub may_leave: bool,
}

/// Passwords of the two platforms.
pub const PASSWORD: &str = "correct horse battery staple";

impl TestBroker {
    pub async fn start() -> Self {
        Self::with(Choices::default()).await
    }

    pub async fn with(choices: Choices) -> Self {
        chandler::app::install_tls_provider();
        let dir = tempfile::tempdir().unwrap();
        let url = choices
            .database
            .unwrap_or_else(|| format!("sqlite://{}/broker.db?mode=rwc", dir.path().display()));
        let store = Store::open(&StoreOptions::new(url.clone())).await.unwrap();
        store.migrate().await.unwrap();
        let clock = Arc::new(FakeClock(AtomicI64::new(1_800_000_000_000)));
        let engine = engine(store, &choices.world, clock.clone(), choices.engine, &dir);
        let loaded = Catalog::load(&choices.catalog, &KnownMechanisms).unwrap_or_else(|p| panic!("{p:?}"));
        engine.set_catalog(loaded).await.unwrap();
        let state = Arc::new(http::State::new(
            engine.clone(),
            choices.http,
            Arc::new(platforms()),
            Arc::new(|| "metrics 1\n".to_owned()),
        ));
        let server = HttpServer::new(move || App::new().configure(|c| http::configure(c, state.clone())))
            .workers(1)
            .disable_signals()
            .bind("127.0.0.1:0")
            .unwrap();
        let base = format!("http://{}", server.addrs()[0]);
        let running = server.run();
        let handle = running.handle();
        tokio::spawn(running);
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Self {
            engine,
            world: choices.world,
            clock,
            base,
            database: url,
            http: client,
            server: handle,
            _dir: dir,
            may_leave: false,
        }
    }

    /// A request with credentials and version; path below the base.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.http
            .request(method, format!("{}{path}", self.base))
            .basic_auth("cf", Some(PASSWORD))
            .header("X-Broker-API-Version", "2.17")
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status != 304 && path_is_osb(&headers) {
            assert!(body.is_object(), "Z-02: {status} {text}");
        }
        Answer {
            status,
            headers,
            body,
            text,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request("PUT", path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request("PATCH", path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request("DELETE", path)).await
    }

    /// Moves the clock.
    pub fn advance(&self, by: Duration) {
        self.clock
            .0
            .fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Runs what is due, moving the clock to what is due next, until nothing is open.
    pub async fn run_until_idle(&self) {
        let runner = Runner::new(self.engine.clone());
        for _ in 0..2000 {
            runner.run_due().await;
            match self.engine.store().open_operations().await.unwrap() {
                (0, _) => return,
                (_, Some(due)) => {
                    let now = self.clock.now();
                    if due > now {
                        self.clock.0.store(due, Ordering::SeqCst);
                    } else {
                        // Leased by a request that runs its own operation: it ends in a moment. Or stepped back
                        // from by the only worker there is: it takes it up a little later.
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        self.advance(2 * POLL);
                    }
                }
                (_, None) => {}
            }
        }
        panic!("operations do not come to an end");
    }

    /// Runs what is due now, without moving the clock.
    pub async fn run_due(&self) -> usize {
        Runner::new(self.engine.clone()).run_due().await
    }

    pub fn sweeper(&self) -> Sweeper {
        Sweeper::new(self.engine.clone())
    }

    /// Provisions an instance of `alpha/small` to its end.
    pub async fn provisioned(&self, id: &str) {
        self.put(
            &format!("/v2/service_instances/{id}?accepts_incomplete=true"),
            &catalog::provision_body(),
        )
        .await
        .expect(202);
        self.run_until_idle().await;
        let last = self
            .get(&format!("/v2/service_instances/{id}/last_operation"))
            .await
            .expect(200);
        assert_eq!(last.body["state"], "succeeded", "{}", last.text);
    }

    /// Binds at once and returns the credentials.
    pub async fn bound(&self, id: &str, binding: &str) -> Value {
        let path = format!("/v2/service_instances/{id}/service_bindings/{binding}");
        self.put(&path, &catalog::bind_body()).await.expect(201).body["credentials"].clone()
    }

    /// Deletes an instance to its end.
    pub async fn deleted(&self, id: &str) {
        let path = format!(
            "/v2/service_instances/{id}?accepts_incomplete=true&{}",
            catalog::ids()
        );
        self.delete(&path).await.expect(202);
        self.run_until_idle().await;
    }

    /// What is left that nobody should leave.
    pub async fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let store = self.engine.store();
        let (open, _) = store.open_operations().await.unwrap();
        if open > 0 {
            left.push(format!("{open} open operation(s)"));
        }
        let mut live = Vec::new();
        let mut lived = BTreeMap::new();
        for i in store.instances_page("", None, 10_000).await.unwrap() {
            if i.state != InstanceState::Gone {
                live.push(i.iid.clone());
            }
            for b in store.bindings_of(&i.iid).await.unwrap() {
                if b.residue {
                    left.push(format!("binding {} has residue in state {}", b.bid, b.state));
                }
                let users = self.world.users();
                let lets_in = users.iter().any(|u| names::bid_of_user(u) == Some(&b.bid));
                let over = b.state.is_over();
                lived.insert(b.bid.clone(), b.clone());
                if lets_in && over && !*self.world.whole_list.lock().unwrap() {
                    left.push(format!("user of binding {} in state {}", b.bid, b.state));
                }
                left.extend(self.kept_wrongly(&b).await);
                let others = store.other_users(&b.bid).await.unwrap();
                let known = |user: &String| {
                    *user == b.handle || others.iter().any(|o| o.handle == *user && !o.refused)
                };
                let strange = |user: &&String| names::bid_of_user(user) == Some(&b.bid) && !known(user);
                left.extend(
                    users
                        .iter()
                        .filter(strange)
                        .map(|user| format!("nobody knows the user {user}")),
                );
            }
        }
        for (bid, what) in self.world.around.bids() {
            match lived.get(&bid).map(|b| b.state) {
                Some(state) if !state.is_over() => {}
                state => left.push(format!("{what:?} of binding {bid} in state {state:?}")),
            }
        }
        left.extend(self.world.around.wrong.lock().unwrap().iter().cloned());
        for iid in self.world.instances.lock().unwrap().keys() {
            if !live.contains(iid) {
                left.push(format!("instance {iid} exists without a row"));
            }
        }
        for name in self.engine.ports().secrets.list("").await.unwrap() {
            if !live.iter().any(|iid| name.starts_with(iid.as_str())) {
                left.push(format!("secret {name} without a row"));
            }
        }
        left
    }

    /// What the broker's own secret store has of a binding that it should not have, or has not and should.
    async fn kept_wrongly(&self, b: &Binding) -> Vec<String> {
        let secrets = &self.engine.ports().secrets;
        let has = async |name: String| secrets.get(&name).await.unwrap().is_some();
        let material = has(secret_name::binding(&b.iid, &b.bid)).await;
        let view = has(secret_name::view(&b.iid, &b.bid)).await;
        let ready = b.state == BindingState::Ready;
        let inline = b.delivery == Delivery::Inline;
        let over = b.state.is_over();
        let mut wrong = Vec::new();
        for (bad, what) in [
            (over && (material || view), "something is kept"),
            (ready && inline && !material, "the credentials are not kept"),
            (ready && !inline && material, "the credentials are still kept"),
            (ready && !inline && !view, "what answers say is not kept"),
        ] {
            if bad {
                wrong.push(format!("{what} of binding {} in state {}", b.bid, b.state));
            }
        }
        for name in secrets.list(&secret_name::all(&b.iid)).await.unwrap() {
            if name.starts_with(&secret_name::nexts(&b.iid, &b.bid)) {
                wrong.push(format!("{name} is kept and nothing is being rotated"));
            }
        }
        wrong
    }

    /// No password, in clear, anywhere in the files of the database.
    fn shown_in_files(&self) -> Vec<String> {
        let mut shown = Vec::new();
        for entry in std::fs::read_dir(self._dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for word in ["UserSecretOf", "ClientSecretOf", "AdminSecretOf"] {
                if bytes.windows(word.len()).any(|w| w == word.as_bytes()) {
                    shown.push(format!("{word}… stands in {}", path.display()));
                }
            }
        }
        shown
    }

    /// Checks that nothing is left and stops the server. Every test ends with it.
    pub async fn end(mut self) {
        let mut left = self.left_over().await;
        left.extend(self.shown_in_files());
        self.may_leave = true;
        self.server.stop(false).await;
        self.engine.store().close().await;
        assert!(left.is_empty(), "left over: {left:?}");
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        if !self.may_leave && !std::thread::panicking() {
            panic!("a test must end with TestBroker::end, which looks for what is left");
        }
    }
}

fn path_is_osb(headers: &reqwest::header::HeaderMap) -> bool {
    headers
        .get("content-type")
        .is_some_and(|t| t.to_str().unwrap_or_default().starts_with("application/json"))
}

fn platforms() -> auth::Platforms {
    // Hashing costs more than a test; both platforms have the same password.
    static HASH: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let hash = HASH.get_or_init(|| auth::hash_password(PASSWORD).unwrap());
    let platform = |name: &str| auth::Platform {
        name: name.into(),
        credentials: vec![auth::Credential {
            username: name.into(),
            hash: hash.clone(),
        }],
    };
    auth::Platforms::new(vec![platform("cf"), platform("k8s")]).unwrap()
}

/// An engine over the fake world with the real sealed store.
pub fn engine(
    store: Store,
    world: &Arc<World>,
    clock: Arc<FakeClock>,
    settings: Settings,
    dir: &tempfile::TempDir,
) -> Arc<Engine> {
    let key = dir.path().join("seal.key");
    if !key.exists() {
        Keys::create_file(&key).unwrap();
    }
    let keys = Keys::load("test", &[("test".into(), key)]).unwrap();
    let mechanism: Arc<dyn CredentialMechanism> = Arc::new(FakeMechanism(world.clone()));
    let ports = Ports {
        provisioner: Arc::new(FakeProvisioner(world.clone())),
        mechanisms: BTreeMap::from([("sql".to_owned(), mechanism)]),
        identity: world
            .around
            .vault
            .then(|| Arc::new(FakeIdentity(world.clone())) as Arc<dyn BindingIdentity>),
        vault: world
            .around
            .vault
            .then(|| Arc::new(FakeVault(world.clone())) as Arc<dyn BindingVault>),
        projection: world
            .around
            .projection
            .then(|| Arc::new(FakeProjection(world.clone())) as Arc<dyn SecretProjection>),
        secrets: Arc::new(SealedStore::new(keys, SqlRows::new(store.clone(), clock.clone()))),
        clock,
        new_id: Arc::new(random_token),
    };
    Engine::new(store, ports, settings)
}

/// A second engine on the same database and world, as another replica is.
impl TestBroker {
    pub async fn replica(&self, url: &str, owner: &str) -> Arc<Engine> {
        let store = Store::open(&StoreOptions::new(url)).await.unwrap();
        let settings = Settings {
            owner: owner.into(),
            ..Settings::default()
        };
        let engine = engine(store, &self.world, self.clock.clone(), settings, &self._dir);
        let loaded = Catalog::load(&catalog::sources(), &KnownMechanisms).unwrap();
        engine.set_catalog(loaded).await.unwrap();
        engine
    }
}
