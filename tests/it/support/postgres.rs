//! One throwaway PostgreSQL server for the whole test process, a database per test.
//!
//! A watcher script starts it and stops and erases it when this process ends, however it ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const WATCHER: &str = r#"
set -eu
parent=$1 port=$2
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
dir=$(mktemp -d /tmp/chandler-test-pg.XXXXXX)
if [ "$(id -u)" = 0 ]; then chown postgres "$dir"; as="setpriv --reuid postgres --regid postgres --clear-groups"; else as=""; fi
cd "$dir"
$as "$bin/initdb" -D "$dir/data" -U test --auth=trust -E UTF8 --locale=C --no-sync >/dev/null
$as "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c fsync=off -c max_connections=200 >"$dir/log" 2>&1 &
server=$!
trap 'kill -INT $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$dir"' EXIT
for _ in $(seq 100); do "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" && break; sleep 0.1; done
echo ready
while kill -0 "$parent" 2>/dev/null; do sleep 0.2; done
"#;

#[expect(
    clippy::zombie_processes,
    reason = "the watcher ends by itself after this process has"
)]
fn server() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut child = Command::new("sh")
            .args([
                "-c",
                WATCHER,
                "watcher",
                &std::process::id().to_string(),
                &port.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(
            line.trim(),
            "ready",
            "PostgreSQL did not start; is the Debian package postgresql installed?"
        );
        port
    })
}

/// URL of a fresh, empty database.
pub async fn fresh_url() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let port = tokio::task::spawn_blocking(server).await.unwrap();
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    sqlx::any::install_default_drivers();
    let admin = sqlx::AnyPool::connect(&format!("postgres://test@127.0.0.1:{port}/postgres"))
        .await
        .unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&admin)
        .await
        .unwrap();
    admin.close().await;
    format!("postgres://test@127.0.0.1:{port}/{name}")
}
