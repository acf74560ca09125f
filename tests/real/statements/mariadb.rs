//! `statements` on MariaDB, with the service that stands in `examples/services`, as it is written.

use crate::contract::{self, Kit, Server, Session, grant, settle};
use crate::services::{Service, examples};
use crate::support::{Process, start_listening_within};
use async_trait::async_trait;
use chandler::ports::{CredentialMechanism, NewUser, Target};
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use serde_json::json;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;
use tempfile::TempDir;

struct MariaDb {
    port: u16,
    service: Service,
    _process: Process,
    _dir: TempDir,
}

/// A command of `process.yaml`, as nobody when we are root: the server refuses to run as that.
fn command(line: &[String], dir: &Path) -> Command {
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .current_dir(dir)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    if geteuid().is_root() {
        let user = User::from_name("nobody").unwrap().unwrap();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn hand_over(path: &Path) {
    if geteuid().is_root() {
        let user = User::from_name("nobody").unwrap().unwrap();
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

impl MariaDb {
    /// Starts what `process.yaml` says.
    fn start() -> Self {
        let service = Service::load(&examples(), "mariadb", &json!({"database": "shop"}));
        let dir = tempfile::Builder::new()
            .prefix("chandler-mariadb-")
            .tempdir()
            .unwrap();
        let root = dir.path();
        hand_over(root);
        let binaries = json!({"server": "/usr/sbin/mariadbd", "install": "/usr/bin/mariadb-install-db"});
        let (process, port) = start_listening_within(Duration::from_secs(60), |port| {
            let spec = service.process(root, port, &binaries);
            for file in &spec.files {
                fs::write(root.join(&file.path), &file.content).unwrap();
                hand_over(&root.join(&file.path));
            }
            let init = spec.init.unwrap();
            if !root.join(&init.creates).exists() {
                fs::create_dir_all(root.join(".init")).unwrap();
                hand_over(&root.join(".init"));
                let done = command(&init.command, root)
                    .stdin(Stdio::null())
                    .output()
                    .expect("MariaDB is installed (mariadb-server-core, mariadb-client-core)");
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                fs::rename(root.join(".init"), root.join(&init.creates)).unwrap();
            }
            Process::start(&mut command(&spec.command, root), Signal::SIGTERM)
        });
        Self {
            port,
            service,
            _process: process,
            _dir: dir,
        }
    }

    async fn connect(&self, uri: &str) -> Result<MySqlConnection, String> {
        let options = MySqlConnectOptions::from_str(uri)
            .unwrap()
            .disable_statement_logging();
        let connecting =
            tokio::time::timeout(Duration::from_secs(10), MySqlConnection::connect_with(&options));
        connecting
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|e| e.to_string())
    }
}

async fn run(connection: &mut MySqlConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await;
    done.map(drop).map_err(|e| e.to_string())
}

struct MariaSession(MySqlConnection);

#[async_trait]
impl Session for MariaSession {
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String> {
        let upsert =
            format!("INSERT INTO kit VALUES ('{key}', '{value}') ON DUPLICATE KEY UPDATE v = '{value}'");
        match run(&mut self.0, &upsert).await {
            Err(e) if e.contains("doesn't exist") => {
                run(
                    &mut self.0,
                    "CREATE TABLE kit (k varchar(50) PRIMARY KEY, v text)",
                )
                .await?;
                run(&mut self.0, &upsert).await
            }
            result => result,
        }
    }

    async fn read(&mut self, key: &str) -> Result<Option<String>, String> {
        let row = sqlx::query_as("SELECT v FROM kit WHERE k = ?").bind(key);
        let row: Option<(String,)> = row.fetch_optional(&mut self.0).await.map_err(|e| e.to_string())?;
        Ok(row.map(|row| row.0))
    }

    async fn alive(&mut self) -> bool {
        run(&mut self.0, "SELECT 1").await.is_ok()
    }
}

#[async_trait]
impl Server for MariaDb {
    fn mechanism(&self) -> &dyn CredentialMechanism {
        &self.service.mechanism
    }

    fn target(&self) -> Target {
        self.service.target(self.port)
    }

    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String> {
        let credentials = self.service.credentials(&self.target(), user);
        let connection = self.connect(credentials["uri"].as_str().unwrap()).await?;
        Ok(Box::new(MariaSession(connection)))
    }
}

#[tokio::test]
async fn the_administrator_gets_new_credentials() {
    contract::administrator_rotates(&MariaDb::start(), true).await;
}

#[tokio::test]
async fn the_example_keeps_the_contract_on_mariadb() {
    let server = MariaDb::start();
    contract::whole_life(&server).await;

    // What the parameter says, and nothing beside the database.
    let kit = Kit::new(&server);
    let mut grant = grant("two", "owner");
    grant.params.insert("connections".to_owned(), json!(2));
    let bound = kit.bind(grant).await;
    let mut one = kit.login(&bound).await;
    let _two = kit.login(&bound).await;
    assert!(server.login(&bound.user).await.is_err(), "a third connection");
    assert!(one.alive().await);
    let credentials = server.service.credentials(&server.target(), &bound.user);
    drop((one, _two));
    let uri = credentials["uri"].as_str().unwrap();
    settle("log in", || async {
        server
            .connect(uri)
            .await
            .map(drop)
            .map_err(chandler::ports::PortError::transient)
    })
    .await;
    let mut session = server.connect(uri).await.unwrap();
    for sql in [
        "CREATE DATABASE other",
        "CREATE USER x",
        "SELECT * FROM mysql.global_priv",
        "GRANT SELECT ON shop.* TO chandler",
    ] {
        assert!(run(&mut session, sql).await.is_err(), "{sql}");
    }
}
