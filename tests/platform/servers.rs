//! Finding and starting the servers of this tier.

use crate::support::{Process, free_port, start_listening, start_listening_within};
use nix::sys::signal::Signal;
use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A server's program: what the variable names, else the first of `usual` that exists.
fn program(variable: &str, usual: &[PathBuf], advice: &str) -> PathBuf {
    if let Some(named) = env::var_os(variable).map(PathBuf::from) {
        assert!(
            named.exists(),
            "{variable} names {}, which does not exist",
            named.display()
        );
        return named;
    }
    let found = usual.iter().find(|path| path.exists());
    found
        .cloned()
        .unwrap_or_else(|| panic!("the server is missing: {advice}"))
}

fn in_path(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).collect()
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/chandler");
    env::var_os("CHANDLER_CACHE").map_or_else(home, PathBuf::from)
}

fn directory(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("chandler-{name}-"))
        .tempdir()
        .unwrap()
}

/// MinIO with one drive, whose root user is `chandler`.
pub struct Minio {
    /// Where it listens.
    pub port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Minio {
    /// Starts one in `region`.
    pub fn start(password: &str, region: &str) -> Self {
        let advice =
            "have minio in PATH, or set MINIO_BIN (`tests/testbed/up minio` builds it and prints this)";
        let program = program("MINIO_BIN", &in_path("minio"), advice);
        let dir = directory("minio");
        let (process, port) = start_listening(|port| {
            let mut command = Command::new(&program);
            command
                .env_clear()
                .env("HOME", dir.path())
                .env("MINIO_ROOT_USER", "chandler")
                .env("MINIO_ROOT_PASSWORD", password)
                .env("MINIO_SITE_REGION", region)
                .env("MINIO_BROWSER", "off")
                .env("MINIO_UPDATE", "off")
                .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
                .arg(dir.path().join("data"));
            Process::start(&mut command, Signal::SIGKILL)
        });
        Self {
            port,
            _process: process,
            _dir: dir,
        }
    }
}

/// One Cassandra node as the catalog configures it: passwords, rights, caches of two seconds.
pub struct Cassandra {
    /// Where it listens for CQL.
    pub port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Cassandra {
    /// Starts one; takes some ten seconds.
    pub fn start() -> Self {
        let advice = "unpack Cassandra 5 as /opt/cassandra, or set CASSANDRA_HOME \
                      (`tests/testbed/up cassandra` fetches it and prints this)";
        let home = program("CASSANDRA_HOME", &[PathBuf::from("/opt/cassandra")], advice);
        let dir = directory("cassandra");
        let (process, port) = start_listening_within(Duration::from_secs(90), |port| {
            cassandra_on(port, &home, dir.path())
        });
        Self {
            port,
            _process: process,
            _dir: dir,
        }
    }
}

fn cassandra_on(port: u16, home: &Path, dir: &Path) -> Process {
    let (storage, tls, jmx) = (free_port(), free_port(), free_port());
    let conf = dir.join("conf");
    fs::create_dir_all(&conf).unwrap();
    let data = dir.join("data").display().to_string();
    let yaml = format!(
        "cluster_name: test\nnum_tokens: 1\npartitioner: org.apache.cassandra.dht.Murmur3Partitioner\n\
         endpoint_snitch: GossipingPropertyFileSnitch\nlisten_address: 127.0.0.1\nrpc_address: 127.0.0.1\n\
         start_native_transport: true\nnative_transport_port: {port}\nstorage_port: {storage}\nssl_storage_port: {tls}\n\
         seed_provider:\n  - class_name: org.apache.cassandra.locator.SimpleSeedProvider\n    parameters:\n      \
         - seeds: \"127.0.0.1:{storage}\"\n\
         data_file_directories: [{data}/data]\ncommitlog_directory: {data}/commitlog\n\
         saved_caches_directory: {data}/saved_caches\nhints_directory: {data}/hints\ncdc_raw_directory: {data}/cdc\n\
         commitlog_sync: periodic\ncommitlog_sync_period: 10000ms\ncommitlog_segment_size: 4MiB\n\
         memtable_heap_space: 32MiB\nmemtable_offheap_space: 32MiB\nfile_cache_enabled: false\nauto_snapshot: false\n\
         authenticator: {{class_name: org.apache.cassandra.auth.PasswordAuthenticator}}\n\
         authorizer: {{class_name: org.apache.cassandra.auth.CassandraAuthorizer}}\n\
         role_manager: {{class_name: org.apache.cassandra.auth.CassandraRoleManager}}\n\
         roles_validity: 2s\npermissions_validity: 2s\ncredentials_validity: 2s\n"
    );
    fs::write(conf.join("cassandra.yaml"), yaml).unwrap();
    fs::write(conf.join("cassandra-rackdc.properties"), "dc=dc1\nrack=rack1\n").unwrap();
    let logback = "<configuration><root level=\"OFF\"/></configuration>";
    fs::write(conf.join("logback.xml"), logback).unwrap();
    let environment = format!(
        "JVM_OPTS=\"$JVM_OPTS -Xmx512m -XX:+UseSerialGC -Dcassandra.jmx.local.port={jmx}\"\n\
         JVM_OPTS=\"$JVM_OPTS -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.ring_delay_ms=1\"\n\
         JVM_OPTS=\"$JVM_OPTS -Dcassandra.skip_wait_for_gossip_to_settle=0\"\n"
    );
    fs::write(conf.join("cassandra-env.sh"), environment).unwrap();
    let mut command = Command::new(home.join("bin/cassandra"));
    command
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("CASSANDRA_CONF", &conf)
        .env("CASSANDRA_STORAGE", dir.join("data"))
        .env("JMX_PORT", jmx.to_string())
        .arg("-f");
    if let Some(java) = java_17() {
        command.env("JAVA_HOME", java);
    }
    Process::start(&mut command, Signal::SIGKILL)
}

/// Cassandra 5 and Keycloak run on Java 17 and not on what may come first in PATH.
pub fn java_17() -> Option<PathBuf> {
    let all = fs::read_dir("/usr/lib/jvm").ok()?;
    all.flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("/java-17-") && path.join("bin/java").exists())
}

/// pouchdb-server, which speaks CouchDB's protocol and runs its design documents, with data in memory.
pub struct Pouch {
    /// Where it listens.
    pub port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Pouch {
    /// Starts one whose administrator is `chandler`.
    pub fn start(password: &str) -> Self {
        let usual =
            cache().join("testbed/pouchdb-server-4.2.0/node_modules/pouchdb-server/bin/pouchdb-server");
        let advice =
            "run tests/testbed/servers/couchdb/distribution once, which fetches it, or set POUCHDB_SERVER";
        let program = program("POUCHDB_SERVER", &[usual], advice);
        let dir = directory("pouchdb");
        let config = serde_json::json!({
            "admins": {"chandler": password},
            "couch_httpd_auth": {"require_valid_user": true},
            "log": {"file": dir.path().join("log.txt")},
        });
        let file = dir.path().join("config.json");
        fs::write(&file, config.to_string()).unwrap();
        let (process, port) = start_listening(|port| {
            let mut command = Command::new("node");
            command
                .current_dir(dir.path())
                .env("HOME", dir.path())
                .arg(&program)
                .args(["--host", "127.0.0.1", "--in-memory", "--port", &port.to_string()])
                .arg("--config")
                .arg(&file);
            Process::start(&mut command, Signal::SIGKILL)
        });
        // It listens before its own databases are there.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            sleep(Duration::from_millis(50));
        }
        Self {
            port,
            _process: process,
            _dir: dir,
        }
    }
}
