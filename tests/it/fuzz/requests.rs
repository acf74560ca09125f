//! Requests as bytes: methods, paths, query strings and headers nobody should send, and some that somebody would.

use super::bodies::{body, document};
use crate::support::broker::PASSWORD;
use crate::support::catalog::{ALPHA, BETA, BETA_SMALL, MEDIUM, SMALL};
use crate::support::chance::Chance;
use data_encoding::BASE64;

/// One request and what is known of it.
pub struct Case {
    pub bytes: Vec<u8>,
    pub method: String,
    pub path: String,
    /// So broken that it need not be HTTP: the server may hang up or refuse without a body.
    pub not_http: bool,
    /// What must come back (H-08).
    pub identity: Option<String>,
    /// The server should see the end of our sending.
    pub ends: bool,
}

/// Every second request is hostile in one place only: else hardly one would get past the first checks.
pub fn case(chance: &mut Chance) -> Case {
    if chance.one_in(2) {
        return nearly_right(chance);
    }
    let method = match chance.below(20) {
        0..=7 => "PUT",
        8..=10 => "PATCH",
        11..=13 => "DELETE",
        14..=16 => "GET",
        17 => "HEAD",
        _ => chance.pick(&[
            "POST",
            "OPTIONS",
            "TRACE",
            "get",
            "PROPFIND",
            "X",
            "PUTT",
            "CONNECT",
            "A-VERY-LONG-METHOD-THAT-NOBODY-HAS",
        ]),
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
    let method = chance
        .pick(&["PUT", "PUT", "PUT", "PATCH", "DELETE", "GET"])
        .to_owned();
    let (instance, bad) = if twist == 0 {
        id(chance, "two")
    } else {
        (chance.pick(&["one", "two", "three"]).to_owned(), false)
    };
    let is_binding = method != "PATCH" && chance.one_in(2);
    let path = if is_binding {
        format!(
            "/v2/service_instances/{instance}/service_bindings/{}",
            chance.pick(&["a", "b", "c"])
        )
    } else {
        format!("/v2/service_instances/{instance}")
    };
    let flag = chance.pick(&["true", "true", "true", "false"]);
    let query = format!("?accepts_incomplete={flag}&service_id={ALPHA}&plan_id={SMALL}");
    let query = if twist == 1 {
        self::query(chance)
    } else {
        query.into_bytes()
    };
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
        bytes.extend_from_slice(
            format!("Authorization: Basic {auth}\r\nX-Broker-API-Version: 2.17\r\n").as_bytes(),
        );
    }
    if twist == 3 {
        body(chance, &mut bytes, &mut case);
    } else {
        let body = if matches!(case.method.as_str(), "PUT" | "PATCH") {
            document(chance, is_binding, if twist == 4 { 4 } else { 0 })
        } else {
            Vec::new()
        };
        bytes.extend_from_slice(
            format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        );
        bytes.extend_from_slice(&body);
    }
    case.bytes = bytes;
    case
}

fn is_no_uri(query: &[u8]) -> bool {
    query
        .iter()
        .any(|b| *b <= b' ' || b"<>\"\\^`{|}".contains(b) || *b >= 0x7f)
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
        20 => chance.pick(&[
            "",
            "%20",
            "%0A",
            "%0D%0AX-Injected:%201",
            "%09",
            "%7F",
            "%1B%5B31m",
        ]),
        21 => chance.pick(&[
            "';DROP%20TABLE%20instances;--",
            "1'%20OR%20'1'='1",
            "%27%22%60",
            "%25s%25n",
            "%24%7B7*7%7D",
            "%24(id)",
        ]),
        22 => chance.pick(&[
            "last_operation",
            "service_bindings",
            "catalog",
            "v2",
            "null",
            "NaN",
            "0",
            "-1",
            "a;b=c",
            "a=b&c=d",
            "@",
            ":",
        ]),
        _ => {
            return (
                chance
                    .pick(&[
                        "\u{1f6a2}",
                        "a b",
                        "a\tb",
                        "\u{e9}",
                        "<script>",
                        "{}",
                        "\\",
                        "|",
                        "^",
                        "`",
                        "a\u{0}b",
                        "a#b",
                    ])
                    .to_owned(),
                true,
            );
        }
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
        10 => (
            format!("/v2/service_instances/{instance}/last_operation"),
            bad_instance,
        ),
        11 => (
            format!("{of_binding}/last_operation"),
            bad_instance || bad_binding,
        ),
        12 => ("/v2/catalog".into(), false),
        13 => (format!("/v2/{instance}"), bad_instance),
        14 => (format!("/{instance}/{binding}"), bad_instance || bad_binding),
        _ => {
            let other = chance.pick(&[
                "/",
                "//",
                "/v2",
                "/v2/",
                "/v2//catalog",
                "/v2/catalog/",
                "/v1/catalog",
                "/livez",
                "/readyz",
                "/metrics",
                "/openapi.json",
                "/docs",
                "/docs/",
                "/docs/..%2F..%2FCargo.toml",
                "/docs/%00",
                "/docs/index.html",
                "/v2/service_instances",
                "/admin",
                "/.git/config",
                "/v2/service_instances/one/service_bindings",
                "/v2/service_instances/one/service_bindings/a/last_operation/x",
                "/favicon.ico",
                "/v2/service_instances/one/../two",
                "/%76%32/catalog",
                "/v2%2Fcatalog",
                "/V2/CATALOG",
                "*",
                "http://elsewhere/v2/catalog",
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
            _ => chance.pick(&[
                "",
                "=",
                "&",
                "accepts_incomplete[]",
                "force",
                "%FF",
                "%",
                "service_id%00",
                "a.b",
                "\u{e9}",
                "x y",
                &long,
            ]),
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
            _ => chance.pick(&[
                "",
                "1",
                "%00",
                "%FF",
                "%",
                "%zz",
                "true%00",
                "null",
                "a%26b",
                "'%20OR%201=1",
                "\u{1f6a2}",
                "a b",
                "[]",
                &long,
            ]),
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
                b"",
                b"Basic",
                b"Basic ",
                b"Basic !!!!",
                b"Bearer abc",
                b"Basic Y2Y=",
                b"Basic OjoK",
                b"Digest x",
                b"basic\xff",
                b"\xc3\xa9",
                b"Basic gICAgA==",
                &long,
            ];
            add("Authorization", bad[chance.below(bad.len())]);
        }
        2 if chance.one_in(6) => add(
            "Authorization",
            format!("Basic {}", BASE64.encode(b"cf:wrong")).as_bytes(),
        ),
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
                b"",
                b"2",
                b"2.",
                b".",
                b"3.0",
                b"1.17",
                b"2.12",
                b"v2.17",
                b"2.17 ",
                b"2.17.0",
                b"-2.17",
                b"2.+17",
                b"2.\xc2\xb2",
                b"\xff\xfe",
                b"2.1e1",
                b"99999999999999999999.1",
                &long,
            ];
            add("X-Broker-API-Version", bad[chance.below(bad.len())]);
        }
        2 => {
            add("X-Broker-API-Version", b"2.17");
            add("X-Broker-API-Version", b"garbage");
        }
        3 => add(
            "x-broker-api-version",
            chance
                .pick(&["2.13", "2.14", "2.18", "2.99", "2.4294967296"])
                .as_bytes(),
        ),
        _ => add("X-Broker-API-Version", b"2.17"),
    }
    if chance.one_in(5) {
        let nested = BASE64.encode(format!("{}1{}", "{\"a\":".repeat(300), "}".repeat(300)).as_bytes());
        let nested = format!("cf {nested}");
        let wide = format!("cf {}", "e30=".repeat(8000));
        let values: &[&[u8]] = &[
            b"cloudfoundry eyJ1c2VyX2lkIjoiYSJ9",
            b"cloudfoundry eyJ1c2VyX2lkIjoiYSJ9",
            b"cloudfoundry",
            b"",
            b" ",
            b"cf  ",
            b"cf !!",
            b"cf W10=",
            b"cf bnVsbA==",
            b"cf e30",
            b"cf \xff",
            b"kubernetes eyJhIjoiXHUwMDAwIn0=",
            b"cf eyJhIjoiXHVkODAwIn0=",
            b"cf gA==",
            nested.as_bytes(),
            wide.as_bytes(),
            &long,
        ];
        add(
            "X-Broker-API-Originating-Identity",
            values[chance.below(values.len())],
        );
        if chance.one_in(6) {
            add("X-Broker-API-Originating-Identity", b"cf bnVsbA==");
        }
    }
    if chance.one_in(4) {
        let long = "i".repeat(4096);
        let identity = chance.pick(&[
            "e26cee84-6b38-4456-b34e-d1a9f002c956",
            "a b  c",
            "\"quoted\\\"",
            "{\"a\":1}",
            "' OR 1=1",
            "%0d%0aX: y",
            &long,
        ]);
        add("X-Broker-API-Request-Identity", identity.as_bytes());
        case.identity = Some(identity.to_owned());
    }
    match chance.below(40) {
        0 => add(
            "If-None-Match",
            chance
                .pick(&["*", "\"x\"", "W/", "\"", ",,,", "W/\"a\", \"b\""])
                .as_bytes(),
        ),
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
            let bad: &[&[u8]] = &[
                b"X-Nul: a\x00b\r\n",
                b"X Space: 1\r\n",
                b": empty\r\n",
                b"X-\xff: 1\r\n",
                b"X-Bare: a\nb\r\n",
                b" folded: 1\r\n",
                b"no-colon\r\n",
                b"X-Esc: \x1b[0m\r\n",
            ];
            head.extend_from_slice(bad[chance.below(bad.len())]);
            case.not_http = true;
        }
        _ => {}
    }
}
