//! Hostile input at every endpoint: whatever is sent, the broker answers soon, with a JSON object, never with
//! 5xx, and a refusal changes nothing (E-02, E-05).
//!
//! Requests are bytes, because no client library sends most of these. `CHANDLER_TEST_SEED` and
//! `CHANDLER_TEST_CASES` repeat or lengthen a run; a failure prints the request.

use crate::support::broker::{Choices, PASSWORD, TestBroker};
use crate::support::catalog::{self, ALPHA, BARE, BETA, BETA_SMALL, ELSEWHERE, MEDIUM, SHORT, SMALL};
use crate::support::chance::{Chance, setting};
use crate::support::postgres;
use crate::support::raw::{self, Reply};
use data_encoding::BASE64;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use sqlx::{Column, Row};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// How long one answer may take; far more than it needs, far less than a hang.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long one run may take whatever the number of cases.
const WHOLE_RUN: Duration = Duration::from_secs(25);

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

/// One request and what is known of it.
struct Case {
    bytes: Vec<u8>,
    method: String,
    path: String,
    /// So broken that it need not be HTTP: the server may hang up or refuse without a body.
    not_http: bool,
    /// What must come back (H-08).
    identity: Option<String>,
    /// The server should see the end of our sending.
    ends: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/fuzz.db?mode=rwc", dir.path().display());
    storm(url, 0x5eed, setting("CHANDLER_TEST_CASES", 2400)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_on_postgresql() {
    storm(postgres::fresh_url().await, 0xbad5eed, setting("CHANDLER_TEST_CASES", 2400) / 3).await;
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
        *statuses.entry(reply.as_ref().map_or(0, |r| r.status)).or_default() += 1;
        let shown = || format!("case {ran}:\n{}", String::from_utf8_lossy(&case.bytes[..case.bytes.len().min(1500)]));
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
            assert!(now == before, "{} {:?}\nchanged something:\n{}", case.method, reply, differences(&before, &now, &shown()));
        }
    }
    println!("{ran} cases in {:?}: {statuses:?}", start.elapsed());
    assert!(ran >= cases.min(200), "only {ran} cases in {:?}", start.elapsed());
    for status in [200, 201, 202, 400, 401, 404, 405, 409, 410, 412, 413, 422] {
        assert!(ran < 1500 || statuses.contains_key(&status), "no request came to {status}: {statuses:?}");
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
    assert!(reply.status < 500, "{} {}\n{}", reply.status, String::from_utf8_lossy(&reply.body), shown());
    if case.not_http || case.method == "HEAD" || reply.status == 304 {
        return;
    }
    if let Some(identity) = &case.identity {
        assert_eq!(reply.header("x-broker-api-request-identity"), Some(identity.as_str()), "H-08: {}", shown());
    }
    if !case.path.starts_with("/v2") && reply.status < 400 {
        return;
    }
    let body = reply.json();
    assert!(body.is_object(), "{} {}\n{}", reply.status, String::from_utf8_lossy(&reply.body), shown());
    if reply.status >= 400 {
        for member in ["error", "description"] {
            let text = body[member].as_str().unwrap_or_default();
            assert!(!text.is_empty() && text.len() < 4000, "E-02 {member}: {body}\n{}", shown());
        }
        assert!(body["error"].as_str().unwrap().chars().all(|c| c.is_ascii_alphanumeric()), "{body}");
    }
}

/// Deletes every instance there is by the ids the platform used.
async fn delete_everything(broker: &TestBroker) {
    broker.run_until_idle().await;
    for instance in broker.engine.store().instances_page("", None, 10_000).await.unwrap() {
        let id = utf8_percent_encode(&instance.instance_id, NON_ALPHANUMERIC);
        let ids = format!("service_id={}&plan_id={}", instance.attributes.service_id, instance.attributes.plan_id);
        let auth = BASE64.encode(format!("{}:{PASSWORD}", instance.platform).as_bytes());
        // As bytes, because a client library makes another path of an id like `..`.
        let request = format!(
            "DELETE /v2/service_instances/{id}?accepts_incomplete=true&{ids} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\
             Authorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n\r\n"
        );
        let reply = raw::send(address(broker), request.as_bytes(), false, PATIENCE).await.expect("an answer");
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
        for table in ["instances", "bindings", "operations", "operation_events", "secrets", "catalog_ids"] {
            let rows = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * FROM {table}"))).fetch_all(&self.pool).await.unwrap();
            for row in rows {
                let mut line = table.to_owned();
                for column in row.columns() {
                    let at = column.ordinal();
                    let text = match row.try_get::<Option<String>, _>(at) {
                        Ok(text) => text.unwrap_or_default(),
                        Err(_) => row.get::<Option<i64>, _>(at).map(|n| n.to_string()).unwrap_or_default(),
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

// ---- requests ----

/// Every second request is hostile in one place only: else hardly one would get past the first checks.
fn case(chance: &mut Chance) -> Case {
    if chance.one_in(2) {
        return nearly_right(chance);
    }
    let method = match chance.below(20) {
        0..=7 => "PUT",
        8..=10 => "PATCH",
        11..=13 => "DELETE",
        14..=16 => "GET",
        17 => "HEAD",
        _ => chance.pick(&["POST", "OPTIONS", "TRACE", "get", "PROPFIND", "X", "PUTT", "CONNECT", "A-VERY-LONG-METHOD-THAT-NOBODY-HAS"]),
    }
    .to_owned();
    let (path, bad_path) = path(chance);
    let query = query(chance);
    let mut head = format!("{method} ").into_bytes();
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(&query);
    head.extend_from_slice(b" HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n");
    let mut case = Case {
        bytes: Vec::new(),
        not_http: bad_path || is_no_uri(&query),
        path,
        identity: None,
        ends: false,
        method,
    };
    headers(chance, &mut head, &mut case);
    body(chance, &mut head, &mut case);
    case.bytes = head;
    case
}

/// A request as a platform would send it, with at most one thing in it that no platform would send.
fn nearly_right(chance: &mut Chance) -> Case {
    let twist = chance.below(6);
    let method = chance.pick(&["PUT", "PUT", "PUT", "PATCH", "DELETE", "GET"]).to_owned();
    let (instance, bad) = if twist == 0 { id(chance, "two") } else { (chance.pick(&["one", "two", "three"]).to_owned(), false) };
    let is_binding = method != "PATCH" && chance.one_in(2);
    let path = if is_binding {
        format!("/v2/service_instances/{instance}/service_bindings/{}", chance.pick(&["a", "b", "c"]))
    } else {
        format!("/v2/service_instances/{instance}")
    };
    let flag = chance.pick(&["true", "true", "true", "false"]);
    let query = format!("?accepts_incomplete={flag}&service_id={ALPHA}&plan_id={SMALL}");
    let query = if twist == 1 { self::query(chance) } else { query.into_bytes() };
    let mut case = Case {
        bytes: Vec::new(),
        not_http: bad || is_no_uri(&query),
        path,
        identity: None,
        ends: false,
        method,
    };
    let mut bytes = format!("{} {}", case.method, case.path).into_bytes();
    bytes.extend_from_slice(&query);
    bytes.extend_from_slice(b" HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n");
    if twist == 2 {
        headers(chance, &mut bytes, &mut case);
    } else {
        let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
        bytes.extend_from_slice(format!("Authorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n").as_bytes());
    }
    if twist == 3 {
        body(chance, &mut bytes, &mut case);
    } else {
        let body = if matches!(case.method.as_str(), "PUT" | "PATCH") {
            document(chance, is_binding, if twist == 4 { 4 } else { 0 })
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(&body);
    }
    case.bytes = bytes;
    case
}

fn is_no_uri(query: &[u8]) -> bool {
    query.iter().any(|b| *b <= b' ' || b"<>\"\\^`{|}".contains(b) || *b >= 0x7f)
}

/// Ids that exist, ids that could, and ids that cannot. The flag: not even a URI.
fn id(chance: &mut Chance, known: &str) -> (String, bool) {
    let long = "x".repeat(8192);
    let encoded = "%F0%9F%9A%A2".repeat(700);
    let id = match chance.below(24) {
        0..=9 => known,
        10..=12 => "two",
        13 => "a%2Fb%2F..%2F..%2Fetc%2Fpasswd",
        14 => chance.pick(&["..", ".", "%2e%2e", "%2E", "...", "~", "*", "%2A"]),
        15 => chance.pick(&["%00", "a%00b", "%00%00"]),
        16 => chance.pick(&["%F0%9F%9A%A2", "%C3%A9", "%E2%80%AE", "%EF%BF%BD", "%F4%8F%BF%BF"]),
        17 => chance.pick(&["%", "%2", "%zz", "%-1", "a%", "%u0041", "%%", "%2%66"]),
        18 => chance.pick(&["%FF", "%C0%80", "%ED%A0%80", "%F8%80%80%80%80", "%80", "%C3"]),
        19 => chance.pick(&[&long, &encoded]),
        20 => chance.pick(&["", "%20", "%0A", "%0D%0AX-Injected:%201", "%09", "%7F", "%1B%5B31m"]),
        21 => chance.pick(&["';DROP%20TABLE%20instances;--", "1'%20OR%20'1'='1", "%27%22%60", "%25s%25n", "%24%7B7*7%7D", "%24(id)"]),
        22 => chance.pick(&["last_operation", "service_bindings", "catalog", "v2", "null", "NaN", "0", "-1", "a;b=c", "a=b&c=d", "@", ":"]),
        _ => return (chance.pick(&["\u{1f6a2}", "a b", "a\tb", "\u{e9}", "<script>", "{}", "\\", "|", "^", "`", "a\u{0}b", "a#b"]).to_owned(), true),
    };
    (id.to_owned(), false)
}

fn path(chance: &mut Chance) -> (String, bool) {
    let (instance, bad_instance) = id(chance, "one");
    let (binding, bad_binding) = id(chance, "a");
    let of_binding = format!("/v2/service_instances/{instance}/service_bindings/{binding}");
    match chance.below(16) {
        0..=5 => (format!("/v2/service_instances/{instance}"), bad_instance),
        6..=9 => (of_binding, bad_instance || bad_binding),
        10 => (format!("/v2/service_instances/{instance}/last_operation"), bad_instance),
        11 => (format!("{of_binding}/last_operation"), bad_instance || bad_binding),
        12 => ("/v2/catalog".into(), false),
        13 => (format!("/v2/{instance}"), bad_instance),
        14 => (format!("/{instance}/{binding}"), bad_instance || bad_binding),
        _ => {
            let other = chance.pick(&[
                "/", "//", "/v2", "/v2/", "/v2//catalog", "/v2/catalog/", "/v1/catalog", "/livez", "/readyz", "/metrics", "/openapi.json",
                "/docs", "/docs/", "/docs/..%2F..%2FCargo.toml", "/docs/%00", "/docs/index.html", "/v2/service_instances", "/admin", "/.git/config",
                "/v2/service_instances/one/service_bindings", "/v2/service_instances/one/service_bindings/a/last_operation/x", "/favicon.ico",
                "/v2/service_instances/one/../two", "/%76%32/catalog", "/v2%2Fcatalog", "/V2/CATALOG", "*", "http://elsewhere/v2/catalog",
            ]);
            (other.to_owned(), !other.starts_with('/'))
        }
    }
}

fn query(chance: &mut Chance) -> Vec<u8> {
    if chance.one_in(6) {
        return Vec::new();
    }
    let long = "y".repeat(8192);
    let mut query = vec![b'?'];
    for _ in 0..chance.below(5) + 1 {
        if query.len() > 1 {
            query.push(b'&');
        }
        let name = match chance.below(12) {
            0..=3 => "accepts_incomplete",
            4..=6 => "service_id",
            7..=8 => "plan_id",
            9 => "operation",
            _ => chance.pick(&["", "=", "&", "accepts_incomplete[]", "force", "%FF", "%", "service_id%00", "a.b", "\u{e9}", "x y", &long]),
        };
        query.extend_from_slice(name.as_bytes());
        if chance.one_in(12) {
            continue;
        }
        query.push(b'=');
        let value: &str = match (name, chance.below(8)) {
            ("accepts_incomplete", 0..=5) => chance.pick(&["true", "true", "TRUE", "false"]),
            ("service_id", 0..=5) => chance.pick(&[ALPHA, ALPHA, BETA]),
            ("plan_id", 0..=5) => chance.pick(&[SMALL, SMALL, MEDIUM, BETA_SMALL]),
            _ => chance.pick(&["", "1", "%00", "%FF", "%", "%zz", "true%00", "null", "a%26b", "'%20OR%201=1", "\u{1f6a2}", "a b", "[]", &long]),
        };
        query.extend_from_slice(value.as_bytes());
    }
    if chance.one_in(40) {
        query.extend_from_slice(b"&\xff\xfe=\xc3");
    }
    query
}

fn headers(chance: &mut Chance, head: &mut Vec<u8>, case: &mut Case) {
    let mut add = |name: &str, value: &[u8]| {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    };
    let long = vec![b'z'; 8192];
    let good = format!("Basic {}", BASE64.encode(format!("cf:{PASSWORD}").as_bytes()));
    match chance.below(24) {
        0 => {}
        1 => {
            let bad: &[&[u8]] = &[
                b"", b"Basic", b"Basic ", b"Basic !!!!", b"Bearer abc", b"Basic Y2Y=", b"Basic OjoK", b"Digest x", b"basic\xff", b"\xc3\xa9", b"Basic gICAgA==", &long,
            ];
            add("Authorization", bad[chance.below(bad.len())]);
        }
        2 if chance.one_in(6) => add("Authorization", format!("Basic {}", BASE64.encode(b"cf:wrong")).as_bytes()),
        3 => {
            add("Authorization", good.as_bytes());
            add("Authorization", b"Basic Y2Y6d3Jvbmc=");
        }
        4 => {
            let other = BASE64.encode(format!("k8s:{PASSWORD}").as_bytes());
            add("Authorization", format!("bAsIc  {other}").as_bytes());
        }
        _ => add("Authorization", good.as_bytes()),
    }
    match chance.below(16) {
        0 => {}
        1 => {
            let bad: &[&[u8]] = &[
                b"", b"2", b"2.", b".", b"3.0", b"1.17", b"2.12", b"v2.17", b"2.17 ", b"2.17.0", b"-2.17", b"2.+17", b"2.\xc2\xb2", b"\xff\xfe", b"2.1e1", b"99999999999999999999.1", &long,
            ];
            add("X-Broker-API-Version", bad[chance.below(bad.len())]);
        }
        2 => {
            add("X-Broker-API-Version", b"2.17");
            add("X-Broker-API-Version", b"garbage");
        }
        3 => add("x-broker-api-version", chance.pick(&["2.13", "2.14", "2.18", "2.99", "2.4294967296"]).as_bytes()),
        _ => add("X-Broker-API-Version", b"2.17"),
    }
    if chance.one_in(5) {
        let nested = BASE64.encode(format!("{}1{}", "{\"a\":".repeat(300), "}".repeat(300)).as_bytes());
        let nested = format!("cf {nested}");
        let wide = format!("cf {}", "e30=".repeat(8000));
        let values: &[&[u8]] = &[
            b"cloudfoundry eyJ1c2VyX2lkIjoiYSJ9", b"cloudfoundry eyJ1c2VyX2lkIjoiYSJ9", b"cloudfoundry", b"", b" ", b"cf  ", b"cf !!", b"cf W10=", b"cf bnVsbA==", b"cf e30",
            b"cf \xff", b"kubernetes eyJhIjoiXHUwMDAwIn0=", b"cf eyJhIjoiXHVkODAwIn0=", b"cf gA==", nested.as_bytes(), wide.as_bytes(), &long,
        ];
        add("X-Broker-API-Originating-Identity", values[chance.below(values.len())]);
        if chance.one_in(6) {
            add("X-Broker-API-Originating-Identity", b"cf bnVsbA==");
        }
    }
    if chance.one_in(4) {
        let long = "i".repeat(4096);
        let identity = chance.pick(&["e26cee84-6b38-4456-b34e-d1a9f002c956", "a b  c", "\"quoted\\\"", "{\"a\":1}", "' OR 1=1", "%0d%0aX: y", &long]);
        add("X-Broker-API-Request-Identity", identity.as_bytes());
        case.identity = Some(identity.to_owned());
    }
    match chance.below(40) {
        0 => add("If-None-Match", chance.pick(&["*", "\"x\"", "W/", "\"", ",,,", "W/\"a\", \"b\""]).as_bytes()),
        1 => add("X-Forwarded-For", b"127.0.0.1, ::1, \xff"),
        2 => add("Accept", b"application/xml;q=1.0, */*;q=0"),
        3 => add("Accept-Encoding", b"br;q=1.0, gzip;q=x, *;q=0"),
        4 => add("Range", b"bytes=0-1,5-99999999999999999999"),
        5 => add("Upgrade", b"h2c"),
        6 => add("Cookie", &long),
        7 => (0..60).for_each(|i| add(&format!("X-Many-{i}"), b"1")),
        8 => {
            (0..200).for_each(|i| add(&format!("X-Too-Many-{i}"), b"1"));
            case.not_http = true;
        }
        9 => {
            let bad: &[&[u8]] = &[b"X-Nul: a\x00b\r\n", b"X Space: 1\r\n", b": empty\r\n", b"X-\xff: 1\r\n", b"X-Bare: a\nb\r\n", b" folded: 1\r\n", b"no-colon\r\n", b"X-Esc: \x1b[0m\r\n"];
            head.extend_from_slice(bad[chance.below(bad.len())]);
            case.not_http = true;
        }
        _ => {}
    }
}

// ---- bodies ----

fn body(chance: &mut Chance, head: &mut Vec<u8>, case: &mut Case) {
    let is_binding = case.path.contains("service_bindings");
    let body = match chance.below(16) {
        0 => garbage(chance),
        1 => json_text(chance, 0),
        2 if case.method != "GET" => Vec::new(),
        _ if matches!(case.method.as_str(), "PUT" | "PATCH" | "POST") => document(chance, is_binding, 4),
        _ => Vec::new(),
    };
    let content_type = match chance.below(14) {
        0 => "",
        1 => chance.pick(&["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "/", ";;;", "application/json, text/plain"]),
        2 => chance.pick(&["application/json; charset=utf-16", "application/json;charset=\"utf-8\"", "APPLICATION/JSON", "application/merge-patch+json"]),
        _ => "application/json",
    };
    if !content_type.is_empty() {
        head.extend_from_slice(format!("Content-Type: {content_type}\r\n").as_bytes());
    }
    let content_length = |n: usize| format!("Content-Length: {n}\r\n\r\n").into_bytes();
    match chance.below(30) {
        // In chunks, whole.
        0..=3 => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let size = chance.pick(&[&1_usize, &7, &64, &4096]);
            let size = (*size).max(body.len() / 200 + 1);
            for chunk in body.chunks(size) {
                head.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                head.extend_from_slice(chunk);
                head.extend_from_slice(b"\r\n");
            }
            head.extend_from_slice(b"0\r\n\r\n");
        }
        // In chunks that are none.
        4 => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let broken: &[&[u8]] = &[b"zz\r\n{}\r\n0\r\n\r\n", b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n", b"\r\n\r\n", b"2\r\n{}\r\n"];
            head.extend_from_slice(broken[chance.below(broken.len())]);
            (case.not_http, case.ends) = (true, true);
        }
        // Both framings, contradicting or doubtful lengths.
        5 => {
            let framings = [
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}", "Content-Length: -1\r\n\r\n{}", "Content-Length: +2\r\n\r\n{}",
                "Content-Length: 99999999999999999999\r\n\r\n{}", "Content-Length: abc\r\n\r\n{}", "Transfer-Encoding: gzip\r\n\r\n{}", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            ];
            head.extend_from_slice(framings[chance.below(framings.len())].as_bytes());
            (case.not_http, case.ends) = (true, true);
        }
        // Ends too early.
        6 if !body.is_empty() => {
            head.extend_from_slice(&content_length(body.len() + chance.below(40) + 1));
            head.extend_from_slice(&body);
            (case.not_http, case.ends) = (true, true);
        }
        7 => {
            head.extend_from_slice(b"Expect: 100-continue\r\n");
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
        8 => {
            head.extend_from_slice(b"Content-Encoding: gzip\r\n");
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
        _ => {
            head.extend_from_slice(&content_length(body.len()));
            head.extend_from_slice(&body);
        }
    }
}

/// Bytes that are no JSON, or JSON no sane client sends.
fn garbage(chance: &mut Chance) -> Vec<u8> {
    match chance.below(16) {
        0 => vec![0xff, 0xfe, 0x00],
        1 => b"{\"service_id\":\"\xc3\x28\"}".to_vec(),
        2 => b"\xef\xbb\xbf{}".to_vec(),
        3 => "[".repeat(200_000).into_bytes(),
        4 => "{\"a\":".repeat(50_000).into_bytes(),
        5 => format!("{{\"service_id\":\"{}\"}}", "x".repeat(1 << 20)).into_bytes(),
        6 => format!("{{\"parameters\":{{\"size\":{}}}}}", "9".repeat(5000)).into_bytes(),
        7 => b"{\"service_id\":\"\\ud800\",\"plan_id\":\"\\udfff\\ud800\"}".to_vec(),
        8 => b"{\"service_id\":\"\\u0000\",\"plan_id\":\"a\\u0000b\"}".to_vec(),
        9 => b"{} {}".to_vec(),
        10 => b"// no\n{}".to_vec(),
        11 => b"service_id=1&plan_id=2".to_vec(),
        12 => b"{\"service_id\":NaN,\"plan_id\":Infinity}".to_vec(),
        13 => vec![b' '; 100_000],
        14 => (0..chance.below(300)).map(|_| u8::try_from(chance.next() & 0xff).unwrap()).collect(),
        _ => b"\"text\"".to_vec(),
    }
}

/// A body that is right, then bent fewer than `bends` times.
fn document(chance: &mut Chance, is_binding: bool, bends: usize) -> Vec<u8> {
    let (service, plan) = match chance.below(if bends == 0 { 30 } else { 10 }) {
        0 => (BETA, BETA_SMALL),
        1 => (ALPHA, BARE),
        2 => (ALPHA, ELSEWHERE),
        3 => (ALPHA, SHORT),
        4 => (ALPHA, MEDIUM),
        5 => (ALPHA, BETA_SMALL),
        _ => (ALPHA, SMALL),
    };
    let mut body = if is_binding {
        catalog::bind_body()
    } else {
        catalog::provision_body()
    };
    body["service_id"] = service.into();
    body["plan_id"] = plan.into();
    if bends == 0 {
        return body.to_string().into_bytes();
    }
    for _ in 0..chance.below(bends) {
        let names: &[&str] = &[
            "service_id", "plan_id", "organization_guid", "space_guid", "parameters", "context", "maintenance_info", "previous_values", "bind_resource", "app_guid",
            "predecessor_binding_id", "accepts_incomplete", "__proto__", "", "\u{0}", "parameters", "parameters",
        ];
        let name = chance.pick(names);
        let text = json_text(chance, 0);
        let value = match (name, chance.below(4)) {
            ("parameters", 0) => json!({"size": chance.below(12)}),
            ("parameters", 1) => json!({"role": chance.pick(&["owner", "readonly", "root"])}),
            ("maintenance_info", 0 | 1) => json!({"version": chance.pick(&["1.0.0", "1.1.0", "x", ""])}),
            ("predecessor_binding_id", 0 | 1) => json!(chance.pick(&["a", "b", "one"])),
            ("context", 0 | 1) => json!({"platform": chance.pick(&["cloudfoundry", "kubernetes", "\u{0}", ""]), "x": "\u{0}\u{1f6a2}"}),
            ("bind_resource", 0 | 1) => json!({"app_guid": chance.pick(&["app", "", "\u{0}"]), "route": "r"}),
            _ => serde_json::from_slice(&text).unwrap_or(Value::Null),
        };
        body[name] = value;
    }
    if chance.one_in(12) {
        body.as_object_mut().unwrap().remove(chance.pick(&["service_id", "plan_id", "organization_guid", "space_guid"]));
    }
    let mut text = body.to_string().into_bytes();
    match chance.below(24) {
        0 => text.truncate(chance.below(text.len())),
        1 => {
            let at = chance.below(text.len());
            text[at] = u8::try_from(chance.next() & 0xff).unwrap();
        }
        2 => text.splice(1..1, b"\"service_id\":1,".iter().copied()).for_each(drop),
        _ => {}
    }
    text
}

/// Any JSON, sometimes with what only a careless parser takes.
fn json_text(chance: &mut Chance, depth: usize) -> Vec<u8> {
    match chance.below(if depth > 3 { 9 } else { 12 }) {
        0 => b"null".to_vec(),
        1 => chance.pick(&["true", "false"]).as_bytes().to_vec(),
        2 => chance
            .pick(&["0", "-0", "1", "-1", "1e308", "1e-999", "1e999", "18446744073709551616", "-9223372036854775809", "0.1", "3.0", "1E2"])
            .as_bytes()
            .to_vec(),
        3 => b"\"\"".to_vec(),
        4 => format!("\"{}\"", chance.pick(&[ALPHA, SMALL, "org", "a", "readonly"])).into_bytes(),
        5 => chance
            .pick(&["\"\\u0000\"", "\"\\ud83d\\udea2\"", "\"\\ud800\"", "\"\\n\\r\\t\\b\\f\"", "\"${jndi:x}\"", "\"'; DROP TABLE instances; --\"", "\"\\u202e\"", "\"../../etc/passwd\""])
            .as_bytes()
            .to_vec(),
        6 => format!("\"{}\"", "w".repeat(chance.below(3000))).into_bytes(),
        7 => format!("{}1{}", "[".repeat(120), "]".repeat(120)).into_bytes(),
        8 => b"{}".to_vec(),
        9 => {
            let items: Vec<_> = (0..chance.below(4)).map(|_| String::from_utf8(json_text(chance, depth + 1)).unwrap()).collect();
            format!("[{}]", items.join(",")).into_bytes()
        }
        _ => {
            let members: Vec<_> = (0..chance.below(4))
                .map(|_| {
                    let name = chance.pick(&["size", "colour", "role", "version", "platform", "app_guid", "route", "plan_id", "", "\\u0000", "a"]);
                    format!("\"{name}\":{}", String::from_utf8(json_text(chance, depth + 1)).unwrap())
                })
                .collect();
            format!("{{{}}}", members.join(",")).into_bytes()
        }
    }
}

// ---- what takes time ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_stop_half_way_are_answered_or_cut_off() {
    let broker = TestBroker::start().await;
    let to = address(&broker);
    let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
    let head = format!("PUT /v2/service_instances/x HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n");
    let half: [(Vec<u8>, bool); 6] = [
        (b"PUT /v2/service_instances/x HT".to_vec(), false),
        (head.clone().into_bytes(), false),
        (head.clone().into_bytes(), true),
        (format!("{head}Content-Length: 100\r\n\r\n{{\"service_id\":").into_bytes(), false),
        (format!("{head}Content-Length: 100\r\n\r\n{{\"service_id\":").into_bytes(), true),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"s").into_bytes(), false),
    ];
    let limit = Duration::from_secs(25);
    let answers = half.iter().map(|(bytes, end)| raw::send(to, bytes, *end, limit));
    for (i, reply) in futures::future::join_all(answers).await.into_iter().enumerate() {
        if let Some(reply) = reply {
            assert!((400..500).contains(&reply.status), "{i}: {reply:?}");
        }
    }
    assert_eq!(broker.get("/v2/service_instances/x/last_operation").await.status, 404, "nothing was made of half a request");
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
        ("GET", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n", 200),
    ] {
        let request = format!(
            "{method} /v2/catalog HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n{more}\r\n"
        );
        let reply = raw::send(address(&broker), request.as_bytes(), false, PATIENCE).await.expect("an answer");
        assert_eq!(reply.status, status, "{request}");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e11_a_body_too_large_is_answered_413_however_it_comes() {
    let broker = TestBroker::start().await;
    let to = address(&broker);
    let auth = BASE64.encode(format!("cf:{PASSWORD}").as_bytes());
    let head = format!("PUT /v2/service_instances/x HTTP/1.1\r\nHost: b\r\nAuthorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\nContent-Type: application/json\r\n");
    let big = format!("{{\"service_id\":\"{}\"}}", "x".repeat(1 << 20));
    let declared = format!("{head}Content-Length: {}\r\n\r\n{big}", big.len());
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    for chunk in big.as_bytes().chunks(8000) {
        write!(chunked, "{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()).unwrap();
    }
    chunked.push_str("0\r\n\r\n");
    for request in [declared, chunked] {
        let reply = raw::send(to, request.as_bytes(), false, PATIENCE).await.expect("an answer");
        assert_eq!((reply.status, reply.json()["error"].as_str()), (413, Some("RequestTooLarge")));
        assert!(reply.took < Duration::from_secs(3), "{:?}", reply.took);
    }
    broker.end().await;
}
