//! `redis` on a Redis server: the contract, and clients who do not want to leave.

use crate::contract::{self, Bound, Kit, Server, Session, grant, settle};
use crate::support::{Redis as Running, endpoint, free_port};
use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, Value as Answer,
    cmd,
};
use async_trait::async_trait;
use chandler::adapters::credentials::redis::Redis;
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, Grant, NewUser, PortErrorKind, Target};
use futures::StreamExt;
use nix::sys::signal::Signal;
use serde_json::{Map, json};
use std::time::{Duration, Instant};

struct Server7 {
    running: Running,
    admin: Secret,
}

impl Server7 {
    fn start() -> Self {
        let admin = Redis.generate_admin(&Map::new()).unwrap();
        let running = Running::start(admin.text("password_sha256"));
        Self { running, admin }
    }

    fn client(&self, login: &Secret) -> Client {
        let login = RedisConnectionInfo::default()
            .set_username(login.text("username"))
            .set_password(login.text("password"));
        let address = ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.running.port);
        Client::open(address.into_connection_info().unwrap().set_redis_settings(login)).unwrap()
    }

    async fn connect(&self, login: &Secret) -> Result<MultiplexedConnection, String> {
        let client = self.client(login);
        let config = patient();
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        connecting.await.map_err(|e| e.to_string())
    }
}

/// No time limits: some of the tests block on purpose, and a busy machine is slow.
fn patient() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
}

/// Sends one command given as words.
async fn send(connection: &mut MultiplexedConnection, words: &str) -> Result<Answer, String> {
    let mut words = words.split(' ');
    let mut command = cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command.query_async(connection).await.map_err(|e| e.to_string())
}

struct RedisSession(MultiplexedConnection);

#[async_trait]
impl Session for RedisSession {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        send(&mut self.0, &format!("SET {key} {value}")).await.map(drop)
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        let value = cmd("GET").arg(key).query_async(&mut self.0).await;
        value.map_err(|e| e.to_string())
    }

    async fn alive(&mut self) -> bool {
        send(&mut self.0, "PING").await.is_ok()
    }
}

#[async_trait]
impl Server for Server7 {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &Redis
    }

    fn target(&self) -> Target {
        let endpoint = endpoint("client", self.running.port);
        Target {
            iid: "i".repeat(26),
            endpoints: vec![endpoint.clone()],
            endpoint,
            settings: Map::new(),
            admin: self.admin.clone(),
            revoked: Vec::new(),
        }
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let session = RedisSession(self.connect(&user.secret).await?);
        Ok(Box::new(session))
    }
}

async fn prepared(server: &Server7) -> Kit<'_> {
    let kit = Kit::new(server);
    let target = kit.target();
    settle("prepare", || Redis.prepare(&target)).await;
    kit
}

fn scoped(label: &str, role: &str, prefix: &str) -> Grant {
    let mut grant = grant(label, role);
    grant.params.insert("key_prefix".to_owned(), json!(prefix));
    grant
}

#[tokio::test]
async fn the_administrator_gets_new_credentials() {
    let server = Server7::start();
    let saved = |server: &Server7| {
        let hash = server.admin.text("password_sha256");
        server.running.saved_users().contains(hash)
    };
    assert!(saved(&server));
    contract::administrator_rotates(&server, true).await;
    assert!(!saved(&server), "a restarted server refuses the former ones, too");
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    let server = Server7::start();
    contract::whole_life(&server).await;

    // What a restarted server would know: the user while it is bound, by the password's hash alone, and not after.
    let mut kit = Kit::new(&server);
    let bound = kit.bind(grant("saved", "owner")).await;
    let saved = server.running.saved_users();
    assert!(saved.contains(&bound.user.handle), "{saved}");
    assert!(!saved.contains(bound.user.secret.text("password")), "{saved}");
    kit.revoke(&bound).await;
    assert!(!server.running.saved_users().contains("b_"));
    assert!(
        server
            .connect(&Secret::from_pairs([("username", "default")]))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn roles_allow_what_they_say_and_no_more() {
    let server = Server7::start();
    let kit = prepared(&server).await;
    let everywhere = [
        "ACL LIST",
        "ACL SETUSER evil on nopass ~* +@all",
        "ACL SAVE",
        "ACL DELUSER chandler",
        "CONFIG GET dir",
        "CONFIG SET dir /tmp",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "MODULE LIST",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "FLUSHALL",
        "SWAPDB 0 1",
        "MONITOR",
        "SAVE",
        "BGREWRITEAOF",
        "SLOWLOG GET",
        "MIGRATE 127.0.0.1 1 k 0 1",
    ];
    // Per role: what works, and what besides the above does not.
    let roles: [(&str, &[&str], &[&str]); 3] = [
        (
            "owner",
            &[
                "SET k v",
                "GET k",
                "KEYS *",
                "SCAN 0",
                "INFO",
                "DBSIZE",
                "PUBLISH c m",
                "EVAL return(1) 0",
                "FUNCTION LIST",
                "CLIENT SETNAME me",
                "SELECT 1",
                "MULTI",
                "DISCARD",
                "FLUSHDB",
            ],
            &[],
        ),
        (
            "readwrite",
            &[
                "SET k v",
                "GET k",
                "SCAN 0",
                "INFO",
                "PUBLISH c m",
                "EVAL return(1) 0",
                "DEL gone",
                "XADD s * a b",
            ],
            &["KEYS *", "FLUSHDB", "FUNCTION FLUSH", "SCRIPT FLUSH"],
        ),
        (
            "readonly",
            &[
                "GET k",
                "SCAN 0",
                "INFO",
                "EVAL_RO return(1) 0",
                "XRANGE s - +",
                "TTL k",
                "PFCOUNT none",
                "MULTI",
                "EXEC",
            ],
            &[
                "SET k v",
                "DEL k",
                "EXPIRE k 1",
                "GETDEL k",
                "KEYS *",
                "FLUSHDB",
                "PUBLISH c m",
                "EVAL return(1) 0",
                "GETEX k PERSIST",
                "XADD s * a b",
                "FUNCTION FLUSH",
                "RESTORE k 0 x",
                "COPY k l",
            ],
        ),
    ];
    for (role, works, refused) in roles {
        let bound = kit.bind(grant(role, role)).await;
        let mut connection = server.connect(&bound.user.secret).await.unwrap();
        for command in works {
            send(&mut connection, command)
                .await
                .unwrap_or_else(|e| panic!("{role} {command}: {e}"));
        }
        for command in everywhere.iter().chain(refused) {
            let e = send(&mut connection, command).await.expect_err(command);
            assert!(
                e.contains("NoPerm") || e.contains("DEBUG command not allowed"),
                "{role} {command}: {e}"
            );
        }
    }
}

#[tokio::test]
async fn a_scope_keeps_bindings_apart() {
    let server = Server7::start();
    let kit = prepared(&server).await;
    let all = kit.bind(grant("all", "owner")).await;
    let mut connection = server.connect(&all.user.secret).await.unwrap();
    send(&mut connection, "SET other:k secret").await.unwrap();

    let bound = kit.bind(scoped("scoped", "owner", "mine:")).await;
    let mut connection = server.connect(&bound.user.secret).await.unwrap();
    for command in [
        "SET mine:k v",
        "GET mine:k",
        "PUBLISH mine:c m",
        "DEL mine:k",
        "EVAL return(1) 0",
    ] {
        send(&mut connection, command)
            .await
            .unwrap_or_else(|e| panic!("{command}: {e}"));
    }
    for command in [
        "GET other:k",
        "SET other:k v",
        "DEL other:k",
        "COPY other:k mine:k",
        "EVAL return(redis.call('GET','other:k')) 0",
        "PUBLISH other:c m",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHDB",
        "FUNCTION FLUSH",
        "CLIENT TRACKING on BCAST",
    ] {
        assert!(
            send(&mut connection, command).await.is_err(),
            "a scoped owner may {command}"
        );
    }

    // Another role, and the scope gone: open sessions follow at once.
    let lesser = Bound {
        grant: grant("scoped", "readonly"),
        user: bound.user.clone(),
    };
    kit.issue(&lesser).await;
    assert!(send(&mut connection, "GET other:k").await.is_ok());
    assert!(send(&mut connection, "SET mine:k v").await.is_err());
}

/// The connection must end, by itself, soon.
async fn ends<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} outlived its revocation"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_are_cut() {
    let server = Server7::start();
    let mut kit = prepared(&server).await;
    let bound = kit.bind(grant("evil", "owner")).await;
    let secret = &bound.user.secret;

    let mut blocked = server.connect(secret).await.unwrap();
    let blocked = tokio::spawn(async move { send(&mut blocked, "BLPOP nothing 0").await });
    let mut pubsub = server.client(secret).get_async_pubsub().await.unwrap();
    pubsub.subscribe("news").await.unwrap();
    let mut transaction = server.connect(secret).await.unwrap();
    for command in ["WATCH k", "MULTI", "SET k late"] {
        send(&mut transaction, command).await.unwrap();
    }
    let mut stored = server.connect(secret).await.unwrap();
    send(&mut stored, "SET kept v").await.unwrap();
    kit.revoke(&bound).await;

    let answer = ends("BLPOP", blocked).await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    assert!(ends("SUBSCRIBE", pubsub.on_message().next()).await.is_none());
    assert!(ends("MULTI", send(&mut transaction, "EXEC")).await.is_err());
    let next = kit.bind(grant("next", "owner")).await;
    let mut session = RedisSession(server.connect(&next.user.secret).await.unwrap());
    assert_eq!(session.read("k").await, Ok(None));
    assert_eq!(session.read("kept").await, Ok(Some("v".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_script_does_not_keep_its_user() {
    let server = Server7::start();
    let mut kit = prepared(&server).await;
    let bound = kit.bind(grant("evil", "owner")).await;
    let loops: Vec<_> = (0..3)
        .map(|_| {
            let client = server.client(&bound.user.secret);
            tokio::spawn(async move {
                let config = patient();
                let connecting = client.get_multiplexed_async_connection_with_config(&config);
                let Ok(mut connection) = connecting.await else {
                    return;
                };
                // Again as soon as it is stopped, until the connection is gone.
                loop {
                    match send(&mut connection, "EVAL while(true)do(function()end)()end 0").await {
                        Err(e) if e.contains("BUSY") || e.contains("killed") => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        _ => return,
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    kit.revoke(&bound).await;
    for task in loops {
        ends("EVAL", task).await.unwrap();
    }
    kit.refused(&bound).await;
    kit.exist(&[]).await;
}

#[tokio::test]
async fn names_and_parameters_cannot_inject() {
    let server = Server7::start();
    let kit = prepared(&server).await;
    let bound = kit.bind(grant("good", "readonly")).await;
    let target = kit.target();
    for prefix in [
        "",
        "*",
        "a* ~",
        "a ~* +@all",
        "a\n",
        "a\r\nuser evil on nopass ~* +@all",
        "[a-z]",
        "?",
        "ä",
    ] {
        let grant = scoped("good", "readonly", prefix);
        let error = Redis.issue(&target, &grant, &bound.user).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{prefix:?}");
        assert!(Redis.generate_user(&target, &grant, 0).is_err());
    }
    for handle in ["chandler", "default", "b_", "b_* x", ""] {
        let error = Redis.revoke(&target, handle).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{handle:?}");
        let secret = bound.user.secret.clone();
        let user = NewUser {
            handle: handle.to_owned(),
            secret,
        };
        let error = Redis.issue(&target, &bound.grant, &user).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{handle:?}");
    }
    let mut connection = server.connect(&server.admin).await.unwrap();
    let users: Vec<String> = cmd("ACL")
        .arg("USERS")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(users, [bound.user.handle.as_str(), "chandler", "default"]);
}

#[tokio::test]
async fn failures_are_sorted_and_bounded() {
    let server = Server7::start();
    let kit = prepared(&server).await;
    let bound = kit.bind(grant("one", "owner")).await;

    let mut stranger = kit.target();
    stranger.admin.insert("password", json!("wrong"));
    assert_eq!(
        Redis.prepare(&stranger).await.unwrap_err().kind,
        PortErrorKind::Denied
    );

    let mut nowhere = kit.target();
    nowhere.endpoint.port = free_port();
    let refused = Redis.revoke(&nowhere, &bound.user.handle).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Transient);

    let target = kit.target();
    server.running.break_saving();
    let unsaved = Redis.issue(&target, &bound.grant, &bound.user).await.unwrap_err();
    assert_eq!(unsaved.kind, PortErrorKind::Transient, "{}", unsaved.detail);

    server.running.process.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let silent = Redis
        .verify(&target, &bound.grant, &bound.user)
        .await
        .unwrap_err();
    server.running.process.signal(Signal::SIGCONT);
    assert_eq!(silent.kind, PortErrorKind::Transient);
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());

    let admin = Redis.generate_admin(&Map::new()).unwrap();
    let running = Running::without_acl_file(admin.text("password_sha256"));
    let bare = Server7 { running, admin };
    let error = Redis.prepare(&bare.target()).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid, "{}", error.detail);
    assert!(error.message.contains("aclfile"), "{error}");
}

/// Three servers with one administrator, as the nodes of a group are: what is told one of them the others do not hear.
struct Group {
    nodes: Vec<Server7>,
}

impl Group {
    fn start() -> Self {
        let admin = Redis.generate_admin(&Map::new()).unwrap();
        let node = || Server7 {
            running: Running::start(admin.text("password_sha256")),
            admin: admin.clone(),
        };
        Self {
            nodes: (0..3).map(|_| node()).collect(),
        }
    }

    fn target(&self) -> Target {
        let mut target = self.nodes[0].target();
        let nodes = self.nodes.iter().enumerate();
        target
            .endpoints
            .extend(nodes.map(|(i, node)| endpoint(&format!("node-{i}"), node.running.port)));
        target
    }

    async fn who_lets_in(&self, user: &NewUser) -> Vec<bool> {
        let mut answers = Vec::new();
        for node in &self.nodes {
            answers.push(node.connect(&user.secret).await.is_ok());
        }
        answers
    }
}

#[tokio::test]
async fn in_a_group_every_node_knows_a_user_and_none_a_revoked_one() {
    let group = Group::start();
    let target = group.target();
    settle("prepare", || Redis.prepare(&target)).await;
    let grant = grant("everywhere", "owner");
    let user = Redis.generate_user(&target, &grant, 0).unwrap();
    Redis.issue(&target, &grant, &user).await.unwrap();
    Redis.verify(&target, &grant, &user).await.unwrap();
    assert_eq!(group.who_lets_in(&user).await, [true, true, true]);
    assert_eq!(
        Redis.list(&target).await.unwrap(),
        std::slice::from_ref(&user.handle)
    );

    // A node that lost its volume has forgotten everybody; preparing gives it what the others know.
    let mut admin = group.nodes[1].connect(&target.admin).await.unwrap();
    send(&mut admin, &format!("ACL DELUSER {}", user.handle))
        .await
        .unwrap();
    assert_eq!(group.who_lets_in(&user).await, [true, false, true]);
    assert!(Redis.verify(&target, &grant, &user).await.is_err());
    assert_eq!(
        Redis.list(&target).await.unwrap(),
        std::slice::from_ref(&user.handle)
    );
    Redis.prepare(&target).await.unwrap();
    assert_eq!(group.who_lets_in(&user).await, [true, true, true]);
    let saved = group.nodes[1].running.saved_users();
    assert!(saved.contains(&user.handle), "{saved}");

    // While a node is away nothing is promised, and the others let nobody in who is revoked.
    group.nodes[2].running.process.signal(Signal::SIGKILL);
    let refused = Redis.revoke(&target, &user.handle).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Transient, "{refused:?}");
    assert_eq!(group.who_lets_in(&user).await, [false, false, false]);
    let refused = Redis.issue(&target, &grant, &user).await.unwrap_err();
    assert_eq!(refused.kind, PortErrorKind::Transient, "{refused:?}");
}

/// Of a group that a rotation has reached in part, every node is brought to the new administrator in the end.
#[tokio::test]
async fn in_a_group_every_node_gets_the_new_administrator() {
    let group = Group::start();
    let target = group.target();
    settle("prepare", || Redis.prepare(&target)).await;
    let login = |secret: &Secret| NewUser {
        handle: secret.text("username").to_owned(),
        secret: secret.clone(),
    };
    let next = Redis.generate_admin(&target.settings).unwrap();
    let (former, now) = (login(&target.admin), login(&next));

    group.nodes[1].running.process.signal(Signal::SIGSTOP);
    let away = Redis.rotate_admin(&target, &next).await.unwrap_err();
    assert_eq!(away.kind, PortErrorKind::Transient, "{away:?}");
    group.nodes[1].running.process.signal(Signal::SIGCONT);
    assert_eq!(group.who_lets_in(&now).await, [true, false, false]);
    assert_eq!(group.who_lets_in(&former).await, [false, true, true]);

    settle("rotate", || Redis.rotate_admin(&target, &next)).await;
    assert_eq!(group.who_lets_in(&now).await, [true, true, true]);
    assert_eq!(group.who_lets_in(&former).await, [false, false, false]);
    let hash = next.text("password_sha256");
    assert!(
        group
            .nodes
            .iter()
            .all(|node| node.running.saved_users().contains(hash))
    );
    let after = Target {
        admin: next.clone(),
        ..target.clone()
    };
    settle("prepare", || Redis.prepare(&after)).await;
}
