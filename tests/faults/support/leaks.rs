//! Looking for secrets where they do not belong: what they are, arguments and environments of processes, a database.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Column, Connection, Row, SqliteConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Members of secrets that are names and places, told to everybody who may know the instance.
pub const PUBLIC: [&str; 22] = [
    "username",
    "account",
    "system_account",
    "system_user",
    "operator_public",
    "account_signing_key",
    "inbox_prefix",
    "handle",
    "role",
    "type",
    "provider",
    "host",
    "hostname",
    "port",
    "database",
    "name",
    "sslmode",
    "servers",
    "protocol",
    "ports",
    "endpoints",
    "subjects",
];

/// Secrets by what they are, for a message that does not show them.
#[derive(Default)]
pub struct Known(pub BTreeMap<String, String>);

impl Known {
    /// Learns a secret.
    pub fn add(&mut self, what: &str, secret: &str) {
        // A file of credentials is told piece by piece: each line of it is enough to worry about.
        for line in secret
            .lines()
            .map(str::trim)
            .filter(|l| l.len() >= 12 && !l.starts_with("---") && !l.starts_with('*'))
        {
            // The address without the password is no secret.
            if !line.starts_with("NATS ") && !line.starts_with("nats://") {
                self.0.insert(line.to_owned(), what.to_owned());
            }
        }
    }

    /// Every text in a stored secret that is none of [`PUBLIC`].
    pub fn add_all(&mut self, what: &str, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members
                    .iter()
                    .filter(|(name, _)| !PUBLIC.contains(&name.as_str()))
                {
                    self.add_all(&format!("{what}.{name}"), value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add_all(what, item)),
            Value::String(secret) => self.add(what, secret),
            _ => {}
        }
    }

    /// Which of them are in `bytes`.
    pub fn found_in(&self, bytes: &[u8]) -> BTreeSet<String> {
        let text = String::from_utf8_lossy(bytes);
        self.0
            .iter()
            .filter(|(secret, _)| text.contains(secret.as_str()))
            .map(|(_, what)| what.clone())
            .collect()
    }

    /// None of them is in `bytes`.
    pub fn nowhere_in(&self, place: &str, bytes: &[u8]) {
        let found = self.found_in(bytes);
        assert!(found.is_empty(), "{place} holds {found:?}");
    }
}

/// Arguments and environments of processes, looked at every few milliseconds.
pub struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Looks at the processes that `which` names.
    pub fn start(which: impl Fn() -> Vec<i32> + Send + 'static) -> Self {
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(BTreeSet::new())),
        );
        let (until, into) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for pid in which() {
                    for what in ["cmdline", "environ"] {
                        if let Ok(bytes) = std::fs::read(format!("/proc/{pid}/{what}")) {
                            into.lock().unwrap().insert(bytes);
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(8));
            }
        });
        Self {
            stop,
            seen,
            thread: Some(thread),
        }
    }

    /// All that was seen.
    pub fn end(mut self) -> BTreeSet<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All rows of all tables of a SQLite database as text, and its files as they are.
pub async fn database(path: &Path) -> (String, Vec<u8>) {
    let mut db = SqliteConnection::connect(&format!("sqlite://{}", path.display()))
        .await
        .unwrap();
    let tables = sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(&mut db)
        .await
        .unwrap();
    let (mut rows, mut count) = (String::new(), 0);
    for table in tables {
        let table: String = table.get(0);
        for row in sqlx::query(AssertSqlSafe(format!("SELECT * FROM {table}")))
            .fetch_all(&mut db)
            .await
            .unwrap()
        {
            count += 1;
            for column in row.columns() {
                if let Ok(Some(text)) = row.try_get::<Option<String>, _>(column.ordinal()) {
                    rows.push_str(&format!("{table}.{}: {text}\n", column.name()));
                }
            }
        }
    }
    db.close().await.unwrap();
    assert!(count > 30, "there is something to look through");
    let mut raw = Vec::new();
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        raw.extend(std::fs::read(name).unwrap_or_default());
    }
    (rows, raw)
}

/// What a process leaves in `dir` that is killed by SIGABRT there and may write a core file; empty where cores go elsewhere.
pub fn usual_core(dir: &Path) -> Vec<String> {
    let script = "ulimit -c $(ulimit -H -c) && kill -ABRT $$";
    let ended = std::process::Command::new("sh")
        .current_dir(dir)
        .args(["-c", script])
        .status();
    assert!(!ended.unwrap().success());
    cores(dir)
}

/// Core files in `dir`.
pub fn cores(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.contains("core")).collect()
}
