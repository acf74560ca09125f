//! `cassandra` on a Cassandra node: the contract, the take-over of a new server, and what roles allow.

use crate::contract::{self, Bound, Kit, Server, Session as Application, grant, settle};
use crate::servers::Cassandra as Running;
use crate::support::{endpoint, free_port};
use async_trait::async_trait;
use chandler::adapters::credentials::cassandra::Cassandra;
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, NewUser, PortErrorKind, Target};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

struct Node {
    running: Running,
    admin: Secret,
}

impl Node {
    fn start() -> Self {
        let admin = Cassandra.generate_admin(&Map::new()).unwrap();
        let running = Running::start();
        Self { running, admin }
    }

    async fn prepared() -> Self {
        let node = Self::start();
        let target = node.target();
        settle_slowly(|| Cassandra.prepare(&target)).await;
        node
    }

    async fn connect(&self, username: &str, password: &str) -> Result<Session, String> {
        SessionBuilder::new()
            .known_node(format!("127.0.0.1:{}", self.running.port))
            .user(username, password)
            .connection_timeout(Duration::from_secs(5))
            .fetch_schema_metadata(false)
            .build()
            .await
            .map_err(|e| e.to_string())
    }

    async fn connect_as(&self, secret: &Secret) -> Result<Session, String> {
        self.connect(secret.text("username"), secret.text("password"))
            .await
    }
}

/// The node makes its own superuser some moments after it listens: as patient as the engine.
async fn settle_slowly<T, F: Future<Output = chandler::ports::PortResult<T>>>(
    mut call: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Ok(value) => return value,
            Err(e) if e.kind == PortErrorKind::Transient && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(e) => panic!("{e} ({})", e.detail),
        }
    }
}

async fn run(session: &Session, statement: &str) -> Result<(), String> {
    let done = session.query_unpaged(statement, ()).await;
    done.map(drop).map_err(|e| e.to_string())
}

struct Rows(Session);

#[async_trait]
impl Application for Rows {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        let insert = format!("INSERT INTO app.kv (k, v) VALUES ('{key}', '{value}')");
        match run(&self.0, &insert).await {
            Err(e) if e.contains("does not exist") => {
                run(
                    &self.0,
                    "CREATE TABLE IF NOT EXISTS app.kv (k text PRIMARY KEY, v text)",
                )
                .await?;
                run(&self.0, &insert).await
            }
            done => done,
        }
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        let query = format!("SELECT v FROM app.kv WHERE k = '{key}'");
        let answer = self.0.query_unpaged(query, ()).await.map_err(|e| e.to_string())?;
        let rows = answer.into_rows_result().map_err(|e| e.to_string())?;
        let row = rows.maybe_first_row::<(String,)>().map_err(|e| e.to_string())?;
        Ok(row.map(|row| row.0))
    }

    async fn alive(&mut self) -> bool {
        run(&self.0, "SELECT k FROM app.kv LIMIT 1").await.is_ok()
    }
}

#[async_trait]
impl Server for Node {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &Cassandra
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.running.port);
        let settings = json!({"keyspace": "app", "datacenter": "dc1", "replication": 1});
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: settings.as_object().unwrap().clone(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Application>, String> {
        Ok(Box::new(Rows(self.connect_as(&user.secret).await?)))
    }
}

#[tokio::test]
async fn cassandra_keeps_the_contract() {
    let node = Node::prepared().await;
    contract::whole_life(&node).await;
}

#[tokio::test]
async fn the_administrator_gets_new_credentials() {
    let node = Node::prepared().await;
    contract::administrator_rotates(&node, false).await;
}

/// One node for all of these, because starting one takes ten seconds of both processors.
#[tokio::test]
async fn a_node_from_its_first_moment_on() {
    let node = Node::start();
    somebody_was_there_first(&node).await;
    a_new_server_is_taken_over(&node).await;
    roles_allow_what_they_say_and_no_more(&node).await;
    issuing_again_states_everything_anew(&node).await;
    revoking_ends_what_is_connected(&node).await;
    what_is_wrong_is_said_and_no_secret_with_it(&node).await;
}

async fn somebody_was_there_first(node: &Node) {
    let stranger = settle_slowly(|| async {
        let session = node.connect("cassandra", "cassandra").await;
        session.map_err(chandler::ports::PortError::transient)
    })
    .await;
    run(&stranger, "CREATE ROLE evil WITH PASSWORD = 'x' AND LOGIN = true")
        .await
        .unwrap();
    let error = Cassandra.prepare(&node.target()).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Denied);
    assert!(error.message.contains("delete the instance"), "{error}");
    run(&stranger, "DROP ROLE evil").await.unwrap();
}

async fn a_new_server_is_taken_over(node: &Node) {
    let target = node.target();
    tokio::join!(
        settle_slowly(|| Cassandra.prepare(&target)),
        settle_slowly(|| Cassandra.prepare(&target)),
    );
    assert!(node.connect("cassandra", "cassandra").await.is_err());
    let admin = node.connect_as(&node.admin).await.unwrap();
    let answer = admin
        .query_unpaged("SELECT role, is_superuser, can_login FROM system_auth.roles", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    let mut roles: Vec<(String, bool, bool)> = answer.rows().unwrap().map(Result::unwrap).collect();
    roles.sort();
    let role = |name: &str, is: bool| (name.to_owned(), is, is);
    assert_eq!(
        roles,
        [
            role("app_owner", false),
            role("app_readonly", false),
            role("app_readwrite", false),
            role("cassandra", false),
            role("chandler", true),
        ]
    );
    // The keyspace's replication is stated anew, too.
    run(
        &admin,
        "ALTER KEYSPACE app WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
    )
    .await
    .unwrap();
    settle("prepare", || Cassandra.prepare(&target)).await;
    let answer = admin
        .query_unpaged("DESCRIBE KEYSPACE app", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    let described: Vec<(String, String, String, String)> =
        answer.rows().unwrap().map(Result::unwrap).collect();
    assert!(
        described[0].3.contains("NetworkTopologyStrategy"),
        "{described:?}"
    );
}

async fn roles_allow_what_they_say_and_no_more(node: &Node) {
    let kit = Kit::new(node);
    let setup = kit.bind(grant("setup", "owner")).await;
    let other = node.connect_as(&setup.user.secret).await.unwrap();
    run(&other, "CREATE TABLE app.theirs (k text PRIMARY KEY, v text)")
        .await
        .unwrap();
    let all = &["owner", "readwrite", "readonly"][..];
    let writers = &["owner", "readwrite"][..];
    let owner = &["owner"][..];
    let calls: &[(&str, &[&str])] = &[
        ("SELECT * FROM app.theirs", all),
        ("INSERT INTO app.theirs (k) VALUES ('k')", writers),
        ("DELETE FROM app.theirs WHERE k = 'k'", writers),
        ("TRUNCATE app.theirs", writers),
        ("ALTER TABLE app.theirs ADD w text", owner),
        ("CREATE INDEX ON app.theirs (v)", owner),
        ("CREATE TABLE app.mine (k text PRIMARY KEY)", owner),
        ("CREATE TYPE app.kind (a text)", owner),
        ("DROP TABLE app.mine", owner),
        ("DROP KEYSPACE app", &[]),
        ("ALTER KEYSPACE app WITH durable_writes = false", &[]),
        (
            "CREATE KEYSPACE mine WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
            &[],
        ),
        ("SELECT * FROM system_auth.roles", &[]),
        ("SELECT * FROM system_auth.role_permissions", &[]),
        ("CREATE ROLE mine WITH PASSWORD = 'x' AND LOGIN = true", &[]),
        ("GRANT app_owner TO app_readonly", &[]),
        ("GRANT SELECT ON ALL KEYSPACES TO app_readonly", &[]),
        ("ALTER ROLE chandler WITH PASSWORD = 'x'", &[]),
        ("ALTER ROLE cassandra WITH LOGIN = true", &[]),
        ("DROP ROLE app_readonly", &[]),
    ];
    for role in all {
        let bound = kit.bind(grant(role, role)).await;
        let session = node.connect_as(&bound.user.secret).await.unwrap();
        for (statement, may) in calls {
            let done = run(&session, statement).await;
            if may.contains(role) {
                done.unwrap_or_else(|e| panic!("{role}: {statement}: {e}"));
            } else {
                let e = done.expect_err(statement);
                let lacks = ["permission", "cannot access", "not have sufficient", "authorized"];
                assert!(
                    lacks.iter().any(|word| e.contains(word)),
                    "{role}: {statement}: {e}"
                );
            }
        }
    }
    let mut kit = kit;
    for label in ["setup", "owner", "readwrite", "readonly"] {
        let bound = kit.generate(grant(label, "owner"));
        kit.revoke(&bound).await;
    }
    kit.exist(&[]).await;
}

async fn issuing_again_states_everything_anew(node: &Node) {
    let mut kit = Kit::new(node);
    let bound = kit.bind(grant("again", "owner")).await;
    let session = node.connect_as(&bound.user.secret).await.unwrap();
    run(
        &session,
        "CREATE TABLE IF NOT EXISTS app.again (k text PRIMARY KEY)",
    )
    .await
    .unwrap();
    // A user may change its own password; and an operator may have changed anything.
    let change = format!("ALTER ROLE {} WITH PASSWORD = 'other'", bound.user.handle);
    settle_slowly(|| async {
        // The server takes a change by the user itself only every five seconds.
        let changed = run(&session, &change).await;
        changed.map_err(chandler::ports::PortError::transient)
    })
    .await;
    let admin = node.connect_as(&node.admin).await.unwrap();
    for statement in [
        format!(
            "ALTER ROLE {} WITH LOGIN = false AND SUPERUSER = true",
            bound.user.handle
        ),
        format!("GRANT app_readwrite TO {}", bound.user.handle),
    ] {
        run(&admin, &statement).await.unwrap();
    }
    kit.issue(&bound).await;
    let less = Bound {
        grant: grant("again", "readonly"),
        user: bound.user.clone(),
    };
    kit.issue(&less).await;
    let admin_row = admin
        .query_unpaged(
            format!(
                "SELECT is_superuser, member_of FROM system_auth.roles WHERE role = '{}'",
                bound.user.handle
            ),
            (),
        )
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    let (superuser, groups) = admin_row.single_row::<(bool, Vec<String>)>().unwrap();
    assert!(!superuser);
    assert_eq!(groups, ["app_readonly"]);
    kit.revoke(&bound).await;
}

async fn revoking_ends_what_is_connected(node: &Node) {
    let mut kit = Kit::new(node);
    let first = kit.bind(grant("connected", "owner")).await;
    let second = kit.bind(grant("heir", "owner")).await;
    let mut session = kit.login(&first).await;
    session.write("k", "v").await.unwrap();
    kit.revoke(&first).await;
    // At once, without waiting for what the node remembers to become old.
    kit.refused(&first).await;
    assert!(!session.alive().await);
    // The table it made, and had rights of its own on, serves the others.
    let heir = node.connect_as(&second.user.secret).await.unwrap();
    run(&heir, "ALTER TABLE app.kv ADD more text").await.unwrap();
    run(&heir, "DROP TABLE app.kv").await.unwrap();
    kit.revoke(&second).await;
    let admin = node.connect_as(&node.admin).await.unwrap();
    let answer = admin
        .query_unpaged("SELECT role FROM system_auth.role_permissions", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    let left: Vec<(String,)> = answer.rows().unwrap().map(Result::unwrap).collect();
    assert!(!left.iter().any(|row| row.0.starts_with("b_")), "{left:?}");
}

async fn what_is_wrong_is_said_and_no_secret_with_it(node: &Node) {
    let target = node.target();
    let wrong = Target {
        admin: Cassandra.generate_admin(&Map::new()).unwrap(),
        ..target.clone()
    };
    let nobody = Target {
        endpoint: endpoint("client", free_port()),
        ..target.clone()
    };
    let kit = Kit::new(node);
    let never = kit.generate(grant("never", "owner"));
    for (what, result, kind) in [
        // A new server may still be making its superuser, so this is tried until the operation's time is over.
        (
            "wrong admin prepares",
            Cassandra.prepare(&wrong).await,
            PortErrorKind::Transient,
        ),
        (
            "wrong admin lists",
            Cassandra.list(&wrong).await.map(drop),
            PortErrorKind::Denied,
        ),
        (
            "nobody listens",
            Cassandra.list(&nobody).await.map(drop),
            PortErrorKind::Transient,
        ),
        (
            "unknown user",
            Cassandra.verify(&target, &never.grant, &never.user).await,
            PortErrorKind::Transient,
        ),
    ] {
        let error = result.expect_err(what);
        assert_eq!(error.kind, kind, "{what}: {error:?}");
        for secret in [&node.admin, &wrong.admin, &never.user.secret] {
            let password = secret.expose()["password"].as_str().map(str::to_owned);
            assert!(
                !format!("{error:?}").contains(&password.unwrap()),
                "{what}: {error:?}"
            );
        }
    }
    assert_eq!(Value::from(Cassandra.list(&target).await.unwrap()), json!([]));
}
