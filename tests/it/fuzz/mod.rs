//! Hostile input at every endpoint: whatever is sent, the broker answers soon, with a JSON object, never with
//! 5xx, and a refusal changes nothing (E-02, E-05).
//!
//! Requests are bytes, because no client library sends most of these. `CHANDLER_TEST_SEED` and
//! `CHANDLER_TEST_CASES` repeat or lengthen a run; a failure prints the request.

mod bodies;
mod requests;

use crate::support::broker::{Choices, PASSWORD, TestBroker};
use crate::support::chance::{Chance, setting};
use crate::support::postgres;
use crate::support::raw::{self, Reply};
use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use requests::{Case, case};
use sqlx::{Column, Row};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// How long one answer may take; far more than it needs, far less than a hang.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long one run may take whatever the number of cases.
const WHOLE_RUN: Duration = Duration::from_secs(20);

/// Panics of the broker's own code in this process, by whichever thread.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Tests may panic; `src/` and what it calls may not.
fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let at = info.location().map(ToString::to_string).unwrap_or_default();
            if !at.starts_with("tests/") {
                PANICS.lock().unwrap().push(at);
            }
            before(info);
        }));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/fuzz.db?mode=rwc", dir.path().display());
    storm(url, 0x5eed, setting("CHANDLER_TEST_CASES", 1800)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_on_postgresql() {
    storm(
        postgres::fresh_url().await,
        0xbad5eed,
        setting("CHANDLER_TEST_CASES", 1800) / 3,
    )
    .await;
}

async fn storm(url: String, default_seed: u64, cases: u64) {
    watch_for_panics();
    let mut chance = Chance::for_test("fuzz", default_seed);
    let broker = TestBroker::with(Choices {
        database: Some(url.clone()),
        ..Choices::default()
    })
    .await;
    broker.provisioned("one").await;
    broker.bound("one", "a").await;
    let database = Database::open(&url).await;
    let to = address(&broker);
    let mut before = database.dump().await;
    let (start, mut statuses) = (Instant::now(), std::collections::BTreeMap::<u16, u64>::new());
    let mut ran = 0;
    while ran < cases && start.elapsed() < WHOLE_RUN {
        ran += 1;
        let case = case(&mut chance);
        let reply = raw::send(to, &case.bytes, case.ends, PATIENCE).await;
        *statuses
            .entry(reply.as_ref().map_or(0, |r| r.status))
            .or_default() += 1;
        let shown = || {
            format!(
                "case {ran}:\n{}",
                String::from_utf8_lossy(&case.bytes[..case.bytes.len().min(1500)])
            )
        };
        check(&case, reply.as_ref(), &shown);
        let changes = matches!(case.method.as_str(), "PUT" | "PATCH" | "DELETE")
            && reply.as_ref().is_none_or(|r| r.status < 300);
        if changes {
            // Now and then an instance is left half-way, so that the next requests meet it so.
            if case.path.contains("service_bindings") || !chance.one_in(4) {
                broker.run_until_idle().await;
            }
            before = database.dump().await;
        } else if case.method.len() > 4 || case.method.starts_with('P') || chance.one_in(8) {
            let now = database.dump().await;
            assert!(
                now == before,
                "{} {:?}\nchanged something:\n{}",
                case.method,
                reply,
                differences(&before, &now, &shown())
            );
        }
    }
    println!("{ran} cases in {:?}: {statuses:?}", start.elapsed());
    assert!(ran >= cases.min(200), "only {ran} cases in {:?}", start.elapsed());
    for status in [200, 201, 202, 400, 401, 404, 405, 409, 410, 412, 413, 422] {
        assert!(
            ran < 1700 || statuses.contains_key(&status),
            "no request came to {status}: {statuses:?}"
        );
    }
    delete_everything(&broker).await;
    database.pool.close().await;
    let panics = PANICS.lock().unwrap().clone();
    assert!(panics.is_empty(), "{panics:?}");
    broker.end().await;
}

fn check(case: &Case, reply: Option<&Reply>, shown: &dyn Fn() -> String) {
    let Some(reply) = reply else {
        assert!(case.not_http || case.ends, "no answer to {}", shown());
        return;
    };
    assert!(
        reply.status < 500,
        "{} {}\n{}",
        reply.status,
        String::from_utf8_lossy(&reply.body),
        shown()
    );
    if case.not_http || case.method == "HEAD" || reply.status == 304 {
        return;
    }
    if let Some(identity) = &case.identity {
        assert_eq!(
            reply.header("x-broker-api-request-identity"),
            Some(identity.as_str()),
            "H-08: {}",
            shown()
        );
    }
    if !case.path.starts_with("/v2") && reply.status < 400 {
        return;
    }
    let body = reply.json();
    assert!(
        body.is_object(),
        "{} {}\n{}",
        reply.status,
        String::from_utf8_lossy(&reply.body),
        shown()
    );
    if reply.status >= 400 {
        for member in ["error", "description"] {
            let text = body[member].as_str().unwrap_or_default();
            assert!(
                !text.is_empty() && text.len() < 4000,
                "E-02 {member}: {body}\n{}",
                shown()
            );
        }
        assert!(
            body["error"]
                .as_str()
                .unwrap()
                .chars()
                .all(|c| c.is_ascii_alphanumeric()),
            "{body}"
        );
    }
}

/// Deletes every instance there is by the ids the platform used.
async fn delete_everything(broker: &TestBroker) {
    broker.run_until_idle().await;
    for instance in broker
        .engine
        .store()
        .instances_page("", None, 10_000)
        .await
        .unwrap()
    {
        let id = utf8_percent_encode(&instance.instance_id, NON_ALPHANUMERIC);
        let ids = format!(
            "service_id={}&plan_id={}",
            instance.attributes.service_id, instance.attributes.plan_id
        );
        let auth = BASE64.encode(format!("{}:{PASSWORD}", instance.platform).as_bytes());
        // As bytes, because a client library makes another path of an id like `..`.
        let request = format!(
            "DELETE /v2/service_instances/{id}?accepts_incomplete=true&{ids} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\
             Authorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n\r\n"
        );
        let reply = raw::send(address(broker), request.as_bytes(), false, PATIENCE)
            .await
            .expect("an answer");
        assert!(matches!(reply.status, 202 | 410), "{} {request}", reply.status);
    }
    broker.run_until_idle().await;
}

fn address(broker: &TestBroker) -> SocketAddr {
    broker.base.strip_prefix("http://").unwrap().parse().unwrap()
}

/// The broker's database, read past the broker.
struct Database {
    pool: sqlx::AnyPool,
}

impl Database {
    async fn open(url: &str) -> Self {
        sqlx::any::install_default_drivers();
        Self {
            pool: sqlx::AnyPool::connect(url).await.unwrap(),
        }
    }

    /// Every row of every table as a line.
    async fn dump(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in [
            "instances",
            "bindings",
            "operations",
            "operation_events",
            "secrets",
            "catalog_ids",
        ] {
            let rows = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * FROM {table}")))
                .fetch_all(&self.pool)
                .await
                .unwrap();
            for row in rows {
                let mut line = table.to_owned();
                for column in row.columns() {
                    let at = column.ordinal();
                    let text = match row.try_get::<Option<String>, _>(at) {
                        Ok(text) => text.unwrap_or_default(),
                        Err(_) => row
                            .get::<Option<i64>, _>(at)
                            .map(|n| n.to_string())
                            .unwrap_or_default(),
                    };
                    write!(line, " {}={text}", column.name()).unwrap();
                }
                lines.push(line);
            }
        }
        lines.sort();
        lines
    }
}

fn differences(before: &[String], now: &[String], shown: &str) -> String {
    let gone: Vec<_> = before.iter().filter(|l| !now.contains(l)).collect();
    let new: Vec<_> = now.iter().filter(|l| !before.contains(l)).collect();
    format!("- {gone:#?}\n+ {new:#?}\n{shown}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_stop_half_way_are_answered_or_cut_off() {
    let broker = TestBroker::start().await;
    let to = address(&broker);
    let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
    let head = format!(
        "PUT /v2/service_instances/x HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n"
    );
    let half: [(Vec<u8>, bool); 6] = [
        (b"PUT /v2/service_instances/x HT".to_vec(), false),
        (head.clone().into_bytes(), false),
        (head.clone().into_bytes(), true),
        (
            format!("{head}Content-Length: 100\r\n\r\n{{\"service_id\":").into_bytes(),
            false,
        ),
        (
            format!("{head}Content-Length: 100\r\n\r\n{{\"service_id\":").into_bytes(),
            true,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"s").into_bytes(),
            false,
        ),
    ];
    let limit = Duration::from_secs(25);
    let answers = half.iter().map(|(bytes, end)| raw::send(to, bytes, *end, limit));
    for (i, reply) in futures::future::join_all(answers).await.into_iter().enumerate() {
        if let Some(reply) = reply {
            assert!((400..500).contains(&reply.status), "{i}: {reply:?}");
        }
    }
    assert_eq!(
        broker.get("/v2/service_instances/x/last_operation").await.status,
        404,
        "nothing was made of half a request"
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_afterwards_is_answered_at_once() {
    let broker = TestBroker::start().await;
    let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
    for (method, more, status) in [
        ("CONNECT", "", 405),
        ("CONNECT", "Content-Length: 5\r\n", 405),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n", 200),
        (
            "GET",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
            200,
        ),
    ] {
        let request = format!(
            "{method} /v2/catalog HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n{more}\r\n"
        );
        let reply = raw::send(address(&broker), request.as_bytes(), false, PATIENCE)
            .await
            .expect("an answer");
        assert_eq!(reply.status, status, "{request}");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e11_a_body_too_large_is_answered_413_however_it_comes() {
    let broker = TestBroker::start().await;
    let to = address(&broker);
    let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
    let head = format!(
        "PUT /v2/service_instances/x HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\nContent-Type: application/json\r\n"
    );
    let big = format!("{{\"service_id\":\"{}\"}}", "x".repeat(1 << 20));
    let declared = format!("{head}Content-Length: {}\r\n\r\n{big}", big.len());
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    for chunk in big.as_bytes().chunks(8000) {
        write!(
            chunked,
            "{:x}\r\n{}\r\n",
            chunk.len(),
            std::str::from_utf8(chunk).unwrap()
        )
        .unwrap();
    }
    chunked.push_str("0\r\n\r\n");
    for request in [declared, chunked] {
        let reply = raw::send(to, request.as_bytes(), false, PATIENCE)
            .await
            .expect("an answer");
        assert_eq!(
            (reply.status, reply.json()["error"].as_str()),
            (413, Some("RequestTooLarge"))
        );
        assert!(reply.took < Duration::from_secs(3), "{:?}", reply.took);
    }
    broker.end().await;
}
