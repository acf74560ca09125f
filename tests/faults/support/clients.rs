//! Applications: they log in with the credentials of a binding, write and read.

use super::platform::Service;
use ::redis::AsyncConnectionConfig;
use ::redis::aio::MultiplexedConnection;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection, Row};
use std::future::Future;
use std::time::{Duration, Instant};

/// What a log-in came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    In,
    /// The server knows who asks and says no.
    Refused,
    /// Nobody answers there.
    Nobody(String),
}

/// For one question: a machine that is busy with all the others is slow.
const LIMIT: Duration = Duration::from_secs(30);

fn text<'a>(credentials: &'a Value, name: &str) -> &'a str {
    credentials[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in the credentials"))
}

async fn limited<T>(work: impl Future<Output = Result<T, String>> + Send) -> Result<T, String> {
    tokio::time::timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| Err("no answer in time".into()))
}

/// Logs in and asks something small.
pub async fn access(service: Service, credentials: &Value) -> Access {
    let tried = match service {
        Service::Postgres => {
            limited(async {
                let mut connection = postgres(text(credentials, "uri")).await?;
                connection.execute("SELECT 1").await.map_err(|e| e.to_string())?;
                Ok(())
            })
            .await
        }
        Service::Redis => {
            limited(async {
                let mut connection = redis(text(credentials, "uri")).await?;
                ::redis::cmd("PING")
                    .query_async::<()>(&mut connection)
                    .await
                    .map_err(|e| e.to_string())
            })
            .await
        }
        Service::Nats => {
            limited(async {
                let client = nats(credentials).await?;
                client.flush().await.map_err(|e| e.to_string())
            })
            .await
        }
    };
    match tried {
        Ok(()) => Access::In,
        Err(why) => {
            let no = [
                "password authentication failed",
                "is not permitted to log in",
                "WRONGPASS",
                "invalid username-password",
                "AuthenticationFailed",
                "authorization violation",
                "Authorization Violation",
            ];
            if no.iter().any(|word| why.contains(word)) {
                Access::Refused
            } else {
                Access::Nobody(why)
            }
        }
    }
}

/// Waits until the log-in comes to this: a server that was just restarted needs a moment.
#[track_caller]
pub fn comes_to(service: Service, credentials: &Value, wanted: Access) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let credentials = credentials.clone();
    async move {
        let end = Instant::now() + Duration::from_secs(45);
        loop {
            let seen = access(service, &credentials).await;
            if seen == wanted {
                return;
            }
            // What is decided is decided; only a server that does not answer is worth waiting for.
            let hopeless = !matches!(seen, Access::Nobody(_));
            assert!(
                !hopeless && Instant::now() < end,
                "{caller}: {} {wanted:?} expected, {seen:?} seen",
                service.name()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Keeps a value under a key, so that it survives a restart of the server.
pub async fn write(service: Service, credentials: &Value, key: &str, value: &str) {
    let done = match service {
        Service::Postgres => {
            limited(async {
                let mut connection = postgres(text(credentials, "uri")).await?;
                connection
                    .execute("CREATE TABLE IF NOT EXISTS kept (key text PRIMARY KEY, value text)")
                    .await
                    .map_err(|e| e.to_string())?;
                sqlx::query(
                    "INSERT INTO kept VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                )
                .bind(key)
                .bind(value)
                .execute(&mut connection)
                .await
                .map_err(|e| e.to_string())?;
                Ok(())
            })
            .await
        }
        Service::Redis => {
            limited(async {
                let mut connection = redis(text(credentials, "uri")).await?;
                ::redis::cmd("SET")
                    .arg(key)
                    .arg(value)
                    .query_async::<()>(&mut connection)
                    .await
                    .map_err(|e| e.to_string())
            })
            .await
        }
        Service::Nats => {
            limited(async {
                let jetstream = async_nats::jetstream::new(nats(credentials).await?);
                jetstream
                    .get_or_create_stream(async_nats::jetstream::stream::Config {
                        name: "KEPT".into(),
                        subjects: vec!["kept.>".into()],
                        ..Default::default()
                    })
                    .await
                    .map_err(|e| e.to_string())?;
                let sent = jetstream
                    .publish(format!("kept.{key}"), value.to_owned().into())
                    .await;
                sent.map_err(|e| e.to_string())?
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(())
            })
            .await
        }
    };
    done.unwrap_or_else(|e| panic!("{} write: {e}", service.name()));
}

/// Reads what was kept under a key.
pub async fn read(service: Service, credentials: &Value, key: &str) -> Option<String> {
    let read = match service {
        Service::Postgres => {
            limited(async {
                let mut connection = postgres(text(credentials, "uri")).await?;
                let row = sqlx::query("SELECT value FROM kept WHERE key = $1")
                    .bind(key)
                    .fetch_optional(&mut connection)
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(row.map(|r| r.get::<String, _>(0)))
            })
            .await
        }
        Service::Redis => {
            limited(async {
                let mut connection = redis(text(credentials, "uri")).await?;
                ::redis::cmd("GET")
                    .arg(key)
                    .query_async(&mut connection)
                    .await
                    .map_err(|e| e.to_string())
            })
            .await
        }
        Service::Nats => {
            limited(async {
                let jetstream = async_nats::jetstream::new(nats(credentials).await?);
                let stream = jetstream.get_stream("KEPT").await.map_err(|e| e.to_string())?;
                let message = stream
                    .get_last_raw_message_by_subject(&format!("kept.{key}"))
                    .await;
                message
                    .map(|m| Some(String::from_utf8_lossy(&m.payload).into_owned()))
                    .map_err(|e| e.to_string())
            })
            .await
        }
    };
    read.unwrap_or_else(|e| panic!("{} read: {e}", service.name()))
}

/// Users of bindings that the server knows, by its administrator. NATS keeps no list: its users are signed tokens.
pub async fn users(service: Service, port: u16, admin: &Value) -> Vec<String> {
    let mut users = match service {
        Service::Postgres => {
            limited(async {
                let url = format!(
                    "postgres://{}:{}@127.0.0.1:{port}/postgres?sslmode=disable",
                    text(admin, "username"),
                    text(admin, "password")
                );
                let mut connection = postgres(&url).await?;
                let rows = sqlx::query(r"SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'b\_%'")
                    .fetch_all(&mut connection)
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(rows.iter().map(|r| r.get::<String, _>(0)).collect())
            })
            .await
        }
        Service::Redis => {
            limited(async {
                let url = format!(
                    "redis://{}:{}@127.0.0.1:{port}/0",
                    text(admin, "username"),
                    text(admin, "password")
                );
                let mut connection = redis(&url).await?;
                let all: Vec<String> = ::redis::cmd("ACL")
                    .arg("USERS")
                    .query_async(&mut connection)
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(all.into_iter().filter(|u| u.starts_with("b_")).collect())
            })
            .await
        }
        Service::Nats => Ok(Vec::new()),
    }
    .unwrap_or_else(|e| panic!("{} users: {e}", service.name()));
    users.sort();
    users
}

/// Makes a user as the administrator: what a broker does that was held up in the middle of it.
pub async fn make_user(service: Service, port: u16, admin: &Value, user: &str, password: &str) {
    let (name, own) = (text(admin, "username"), text(admin, "password"));
    let made = match service {
        Service::Postgres => {
            limited(async {
                let url = format!("postgres://{name}:{own}@127.0.0.1:{port}/postgres?sslmode=disable");
                let sql = format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'");
                let mut connection = postgres(&url).await?;
                connection
                    .execute(sqlx::AssertSqlSafe(sql))
                    .await
                    .map_err(|e| e.to_string())?;
                Ok(())
            })
            .await
        }
        Service::Redis => {
            limited(async {
                let mut connection = redis(&format!("redis://{name}:{own}@127.0.0.1:{port}/0")).await?;
                let mut command = ::redis::cmd("ACL");
                command
                    .arg("SETUSER")
                    .arg(user)
                    .arg("on")
                    .arg(format!(">{password}"))
                    .arg("~*")
                    .arg("+@all");
                command
                    .query_async::<()>(&mut connection)
                    .await
                    .map_err(|e| e.to_string())
            })
            .await
        }
        Service::Nats => Err("NATS keeps no users".into()),
    };
    made.unwrap_or_else(|e| panic!("{}: {e}", service.name()));
}

async fn postgres(url: &str) -> Result<PgConnection, String> {
    PgConnection::connect(url).await.map_err(|e| e.to_string())
}

async fn redis(url: &str) -> Result<MultiplexedConnection, String> {
    let client = ::redis::Client::open(url).map_err(|e| e.to_string())?;
    // Its own limits are of a second and half of one; `limited` has another.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .map_err(|e| format!("{:?}: {e}", e.kind()))
}

async fn nats(credentials: &Value) -> Result<async_nats::Client, String> {
    async_nats::ConnectOptions::with_credentials(text(credentials, "creds"))
        .map_err(|e| e.to_string())?
        .max_reconnects(1)
        .connect(text(credentials, "uri"))
        .await
        .map_err(|e| e.to_string())
}
