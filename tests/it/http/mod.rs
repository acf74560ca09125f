//! The HTTP layer on a real listener, asked with raw bytes: the order of checks, odd ids, errors, headers, all ten calls.

pub mod wire;

use crate::support::catalog::{ALPHA, SHORT, SMALL};
use actix_web::{App, HttpServer};
use chandler::http::{MetricsText, MissingVersion, Settings, State, auth, configure_admin};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::{Reply, VERSION, Wire, basic, right, serve};

/// Whether the engine answered: nothing of this id is known.
fn passed(reply: &Reply) -> bool {
    reply.status == 404 && reply.body.contains("There is no service")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a01_a05_credentials_come_first_and_are_needed_below_v2() {
    let (broker, server) = serve(Settings::default()).await;
    let wrong = basic("cf", "wrong");
    let targets = [
        "/v2/catalog",
        "/v2",
        "/v2/nothing",
        "/v2/service_instances/",
        "/v2/service_instances/i",
        "/v2/service_instances/%00",
    ];
    for target in targets {
        for authorization in [None, Some(wrong.as_str()), Some("Basic !"), Some("Bearer x")] {
            let mut headers = vec![("X-Broker-API-Version", "garbage")];
            headers.extend(authorization.map(|value| ("Authorization", value)));
            let reply = server.ask("GET", target, &headers, "").await;
            assert_eq!(reply.status, 401, "{target} {authorization:?}");
            assert_eq!(reply.refusal()["error"], "Unauthorized");
            assert!(
                reply
                    .header("www-authenticate")
                    .unwrap()
                    .starts_with("Basic realm=")
            );
        }
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_wrong_passwords_are_429_with_retry_after() {
    let (broker, server) = serve(Settings {
        failed_logins_per_minute: 3,
        ..Settings::default()
    })
    .await;
    let mut statuses = Vec::new();
    for n in 0..5 {
        let guess = basic("cf", &n.to_string());
        let reply = server
            .ask("GET", "/v2/catalog", &[("Authorization", &guess), VERSION], "")
            .await;
        reply.refusal();
        if reply.status == 429 {
            assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_h02_versions_come_before_routes() {
    let (broker, server) = serve(Settings::default()).await;
    let authorization = right();
    let auth = ("Authorization", authorization.as_str());
    for (headers, word) in [
        (vec![auth], "VersionMissing"),
        (vec![auth, ("X-Broker-API-Version", "")], "VersionMissing"),
        (vec![auth, ("X-Broker-API-Version", "1.9")], "VersionNotSupported"),
        (vec![auth, ("X-Broker-API-Version", "two")], "VersionNotSupported"),
    ] {
        for (method, target) in [
            ("GET", "/v2/catalog"),
            ("POST", "/v2/catalog"),
            ("GET", "/v2/nothing"),
            ("PUT", "/v2/service_instances/i"),
        ] {
            let reply = server.ask(method, target, &headers, "").await;
            assert_eq!(reply.status, 412, "{target}");
            assert_eq!(reply.refusal()["error"], word);
        }
    }
    broker.end().await;
    let (broker, server) = serve(Settings {
        missing_version: MissingVersion::BadRequest,
        ..Settings::default()
    })
    .await;
    assert_eq!(server.ask("GET", "/v2/catalog", &[auth], "").await.status, 400);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_are_404_and_unknown_methods_405() {
    let (broker, server) = serve(Settings::default()).await;
    for target in [
        "/v2",
        "/v2/",
        "/v2/catalog/",
        "/v2/service_instances",
        "/v2/service_instances/a/b",
        "/v2/%FF",
    ] {
        let reply = server.api("GET", target, "").await;
        assert_eq!(
            (reply.status, reply.refusal()["error"].clone()),
            (404, json!("NotFound")),
            "{target}"
        );
    }
    for (method, target, allow) in [
        ("POST", "/v2/catalog", "GET, HEAD"),
        ("OPTIONS", "/v2/catalog", "GET, HEAD"),
        ("BREW", "/v2/catalog", "GET, HEAD"),
        ("POST", "/v2/service_instances/i", "GET, HEAD, PUT, PATCH, DELETE"),
        (
            "PATCH",
            "/v2/service_instances/i/service_bindings/b",
            "GET, HEAD, PUT, DELETE",
        ),
        ("DELETE", "/v2/service_instances/i/last_operation", "GET, HEAD"),
        (
            "PUT",
            "/v2/service_instances/i/service_bindings/b/last_operation",
            "GET, HEAD",
        ),
    ] {
        let reply = server.api(method, target, "").await;
        assert_eq!(
            (reply.status, reply.refusal()["error"].clone()),
            (405, json!("MethodNotAllowed")),
            "{method} {target}"
        );
        assert_eq!(reply.header("allow"), Some(allow));
    }
    for (method, target, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/v3/catalog", 404),
        ("POST", "/livez", 405),
        ("GET", "/docs/nothing.js", 404),
    ] {
        let reply = server.ask(method, target, &[], "").await;
        assert_eq!(reply.status, status, "{target}");
        reply.refusal();
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_odd_ids_reach_their_handler_and_impossible_ones_are_400() {
    let (broker, server) = serve(Settings::default()).await;
    let long = "x".repeat(8192);
    for id in [
        "a%2Fb",
        "..",
        "%2E%2E",
        ".",
        "%F0%9F%9A%A2",
        "%0d%0aX-Evil:%201",
        "a;b=c",
        "last_operation",
        "%25",
        &long,
    ] {
        for target in [
            format!("/v2/service_instances/{id}"),
            format!("/v2/service_instances/{id}/last_operation"),
            format!("/v2/service_instances/{id}/service_bindings/{id}"),
            format!("/v2/service_instances/{id}/service_bindings/{id}/last_operation"),
        ] {
            let reply = server.api("GET", &target, "").await;
            reply.refusal();
            assert!(passed(&reply), "{target}: {reply:?}");
        }
    }
    for id in ["", "%00", "a%00", "%FF%FE", "%", "%4"] {
        for target in [
            format!("/v2/service_instances/{id}"),
            format!("/v2/service_instances/{id}/last_operation"),
            format!("/v2/service_instances/i/service_bindings/{id}"),
        ] {
            let reply = server.api("PUT", &target, "{}").await;
            assert_eq!(
                (reply.status, reply.refusal()["error"].clone()),
                (400, json!("BadRequest")),
                "{target}"
            );
        }
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_request_are_400_and_name_the_field() {
    let (broker, server) = serve(Settings::default()).await;
    let deep = format!(
        "{{\"service_id\":\"s\",\"parameters\":{}{}}}",
        "[".repeat(300),
        "]".repeat(300)
    );
    for (method, target, body, part) in [
        ("PUT", "/v2/service_instances/i", "", "empty"),
        ("PATCH", "/v2/service_instances/i", "", "empty"),
        ("PUT", "/v2/service_instances/i", "{", "not JSON"),
        ("PUT", "/v2/service_instances/i", "[1]", "not an object"),
        ("PUT", "/v2/service_instances/i", "{}", "`plan_id`"),
        (
            "PUT",
            "/v2/service_instances/i",
            r#"{"service_id":"s","plan_id":"p"}"#,
            "`organization_guid`",
        ),
        (
            "PATCH",
            "/v2/service_instances/i",
            r#"{"plan_id":"p"}"#,
            "`service_id`",
        ),
        (
            "PATCH",
            "/v2/service_instances/i",
            r#"{"service_id":"s","parameters":7}"#,
            "`parameters`",
        ),
        ("PATCH", "/v2/service_instances/i", &deep, "not JSON"),
        (
            "PUT",
            "/v2/service_instances/i/service_bindings/b",
            r#"{"service_id":"s"}"#,
            "`plan_id`",
        ),
    ] {
        let reply = server.api(method, target, body).await;
        assert_eq!(reply.status, 400, "{method} {target} {body}: {reply:?}");
        let description = reply.refusal()["description"].as_str().unwrap().to_owned();
        assert!(description.contains(part), "{description}");
    }
    let authorization = right();
    let headers = [
        ("Authorization", authorization.as_str()),
        VERSION,
        ("Content-Type", "text/plain"),
    ];
    let reply = server.ask("PUT", "/v2/service_instances/i", &headers, "{}").await;
    assert_eq!(reply.status, 400);
    let identity = [
        ("Authorization", authorization.as_str()),
        VERSION,
        ("X-Broker-API-Originating-Identity", "cf nope!"),
    ];
    for (method, target, status) in [("GET", "/v2/catalog", 400), ("POST", "/v2/catalog", 405)] {
        assert_eq!(
            server.ask(method, target, &identity, "").await.status,
            status,
            "H-06 after the route"
        );
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e11_large_bodies_are_413_before_anything_else_however_framed() {
    let (broker, server) = serve(Settings {
        max_body: 1000,
        ..Settings::default()
    })
    .await;
    let reply = server
        .ask("PUT", "/v2/service_instances/i", &[], &"x".repeat(1001))
        .await;
    assert_eq!(
        (reply.status, reply.refusal()["error"].clone()),
        (413, json!("RequestTooLarge"))
    );
    let reply = server
        .ask("PUT", "/v2/service_instances/i", &[], &"x".repeat(1000))
        .await;
    assert_eq!(reply.status, 401);
    let head = "PUT /v2/service_instances/i HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let reply = server
        .raw(format!("{head}\r\n{chunk}{chunk}{chunk}0\r\n\r\n").as_bytes())
        .await;
    assert_eq!(reply.status, 413);
    let body = r#"{"service_id":"s"}"#;
    let chunked = format!(
        "{head}Authorization: {}\r\nX-Broker-API-Version: 2.17\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        right(),
        body.len()
    );
    let reply = server.raw(chunked.as_bytes()).await;
    assert!(
        reply.body.contains("`plan_id`"),
        "chunked bodies are read: {reply:?}"
    );
    let reply = server
        .ask(
            "PUT",
            "/v2/service_instances/i",
            &[("Content-Length", "99999999999999")],
            "",
        )
        .await;
    assert_eq!(reply.status, 413);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h08_request_identity_comes_back_on_every_answer() {
    let (broker, server) = serve(Settings {
        max_body: 100,
        ..Settings::default()
    })
    .await;
    let authorization = right();
    let auth = ("Authorization", authorization.as_str());
    let identity = ("X-Broker-API-Request-Identity", "id with blanks, \u{fc} and more");
    for (headers, target, body, status) in [
        (vec![], "/v2/catalog", "", 401),
        (vec![auth], "/v2/catalog", "", 412),
        (vec![auth, VERSION], "/v2/nothing", "", 404),
        (vec![auth, VERSION], "/v2/service_instances/%00", "", 400),
        (vec![], "/livez", "", 200),
        (vec![], "/nothing", "", 404),
    ] {
        let mut all = headers;
        all.push(identity);
        let reply = server.ask("GET", target, &all, body).await;
        assert_eq!(reply.status, status, "{target}");
        assert_eq!(
            reply.header("x-broker-api-request-identity"),
            Some(identity.1),
            "{target}"
        );
    }
    let reply = server
        .ask("PUT", "/v2/service_instances/i", &[identity], &"x".repeat(101))
        .await;
    assert_eq!(
        (reply.status, reply.header("x-broker-api-request-identity")),
        (413, Some(identity.1))
    );
    let reply = server.ask("GET", "/livez", &[], "").await;
    assert_eq!(
        reply.header("x-broker-api-request-identity"),
        None,
        "not invented"
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_answer_without_credentials_and_under_a_policy() {
    let (broker, server) = serve(Settings::default()).await;
    for (target, content_type, part) in [
        ("/", "text/html; charset=utf-8", "chandler"),
        ("/livez", "application/json", "alive"),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "metrics 1",
        ),
        ("/openapi.json", "application/json", "/v2/catalog"),
        ("/docs/", "text/html", "swagger-ui-bundle.js"),
        ("/docs/swagger-initializer.js", "text/javascript", "/openapi.json"),
        ("/docs/swagger-ui.css", "text/css", ".swagger-ui"),
    ] {
        let reply = server.ask("GET", target, &[], "").await;
        assert_eq!(reply.status, 200, "{target}");
        assert_eq!(reply.header("content-type"), Some(content_type), "{target}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert!(reply.body.contains(part), "{target}");
        if target != "/livez" {
            assert!(
                reply
                    .header("content-security-policy")
                    .unwrap()
                    .contains("default-src 'none'")
            );
        }
    }
    let docs = server.ask("GET", "/docs", &[], "").await;
    assert_eq!((docs.status, docs.header("location")), (308, Some("/docs/")));
    let head = server.ask("HEAD", "/livez", &[], "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.header("content-length").is_some_and(|length| length != "0"));
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_port_serves_probes_and_nothing_else() {
    let settings = Settings {
        metrics_on_main: false,
        ..Settings::default()
    };
    let (broker, main) = serve(settings.clone()).await;
    assert_eq!(main.ask("GET", "/metrics", &[], "").await.status, 404);
    let platforms = Arc::new(auth::Platforms::new(Vec::new()).unwrap());
    let metrics: MetricsText = Arc::new(|| "metrics 1\n".to_owned());
    let state = Arc::new(State::new(broker.engine.clone(), settings, platforms, metrics));
    let server =
        HttpServer::new(move || App::new().configure(|config| configure_admin(config, state.clone())))
            .workers(1)
            .disable_signals()
            .bind(("127.0.0.1", 0))
            .unwrap();
    let admin = Wire {
        address: server.addrs()[0],
    };
    let server = server.run();
    let handle = server.handle();
    tokio::spawn(server);
    assert_eq!(admin.ask("GET", "/livez", &[], "").await.status, 200);
    assert_eq!(admin.ask("GET", "/metrics", &[], "").await.body, "metrics 1\n");
    for target in ["/", "/docs/", "/openapi.json", "/v2/catalog"] {
        assert_eq!(admin.api("GET", target, "").await.status, 404, "{target}");
    }
    handle.stop(false).await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_wire_never_hangs_or_breaks_the_server() {
    let (broker, server) = serve(Settings::default()).await;
    for bytes in [
        &b"GET /v2/catalog\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"PUT /v2/service_instances/i HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v2/service_instances/i HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: -1\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://other/v2/catalog HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end");
        assert!(!answer.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(server.ask("GET", "/livez", &[], "").await.status, 200);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ten_calls_of_one_life() {
    let (broker, server) = serve(Settings::default()).await;
    let catalog = server.api("GET", "/v2/catalog", "").await;
    let offering = &catalog.json()["services"][0];
    assert_eq!((catalog.status, &offering["id"]), (200, &json!(ALPHA)));
    let etag = catalog.header("etag").unwrap().to_owned();
    let authorization = right();
    let known = [
        ("Authorization", authorization.as_str()),
        VERSION,
        ("If-None-Match", etag.as_str()),
    ];
    let again = server.ask("GET", "/v2/catalog", &known, "").await;
    assert_eq!(
        (again.status, again.body.as_str(), again.header("etag")),
        (304, "", Some(etag.as_str()))
    );
    let head = server.api("HEAD", "/v2/catalog", "").await;
    assert_eq!(
        (head.status, head.body.as_str(), head.header("etag")),
        (200, "", Some(etag.as_str()))
    );

    let instance = "/v2/service_instances/a%2Fb";
    let poll = |target: &str, operation: &Value| {
        format!(
            "{target}/last_operation?operation={}",
            operation.as_str().unwrap()
        )
    };
    let order = json!({"service_id": ALPHA, "plan_id": SMALL, "context": {"platform": "x"}, "parameters": {"size": 3}}).to_string();
    let refused = server.api("PUT", instance, &order).await;
    assert_eq!(
        (refused.status, refused.refusal()["error"].clone()),
        (422, json!("AsyncRequired"))
    );
    let accepted = server
        .api("PUT", &format!("{instance}?accepts_incomplete=true"), &order)
        .await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let operation = accepted.json()["operation"].clone();
    let open = server.api("GET", &poll(instance, &operation), "").await;
    assert_eq!((open.status, &open.json()["state"]), (200, &json!("in progress")));
    assert!(open.header("retry-after").unwrap().parse::<u32>().is_ok(), "L-04");
    assert_eq!(server.api("GET", instance, "").await.status, 404, "G-02");
    broker.run_until_idle().await;
    let done = server.api("GET", &poll(instance, &operation), "").await;
    assert_eq!(
        (&done.json()["state"], done.header("retry-after")),
        (&json!("succeeded"), None)
    );
    assert_eq!(
        server
            .api("PUT", &format!("{instance}?accepts_incomplete=true"), &order)
            .await
            .status,
        200,
        "P-04"
    );
    let fetched = server.api("GET", instance, "").await.json();
    assert_eq!(
        (
            &fetched["plan_id"],
            &fetched["parameters"],
            &fetched["maintenance_info"]
        ),
        (&json!(SMALL), &json!({"size": 3}), &json!({"version": "1.0.0"}))
    );

    let change = json!({"service_id": ALPHA, "plan_id": SHORT}).to_string();
    let changing = server
        .api("PATCH", &format!("{instance}?accepts_incomplete=TRUE"), &change)
        .await;
    assert_eq!(changing.status, 202, "{changing:?}");
    let busy = server.api("GET", instance, "").await;
    assert_eq!(
        (busy.status, busy.refusal()["error"].clone()),
        (422, json!("ConcurrencyError")),
        "G-03"
    );
    broker.run_until_idle().await;
    assert_eq!(
        server.api("GET", instance, "").await.json()["plan_id"],
        json!(SHORT)
    );

    let binding = format!("{instance}/service_bindings/..");
    let ask = json!({"service_id": ALPHA, "plan_id": SHORT, "parameters": {"role": "readonly"}}).to_string();
    let bound = server.api("PUT", &binding, &ask).await;
    assert_eq!(
        (bound.status, bound.header("cache-control")),
        (201, Some("no-store")),
        "{bound:?}"
    );
    let body = bound.json();
    assert!(body["credentials"]["password"].is_string());
    let ports = &body["endpoints"][0]["ports"];
    assert!(
        ports[0].as_str().is_some_and(|port| port.parse::<u16>().is_ok()),
        "B-16: {ports}"
    );
    let moment = |member: &str| {
        let text = body["metadata"][member].as_str().unwrap().to_owned();
        assert_eq!(
            (text.len(), &text[19..20], &text[21..]),
            (22, ".", "Z"),
            "B-17: {text}"
        );
        text
    };
    assert!(moment("renew_before") < moment("expires_at"));
    let same = server.api("PUT", &binding, &ask).await;
    assert_eq!((same.status, same.json()), (200, body.clone()), "B-03");
    let old = [
        ("Authorization", authorization.as_str()),
        ("X-Broker-API-Version", "2.14"),
    ];
    assert_eq!(
        server
            .ask("GET", &binding, &old, "")
            .await
            .json()
            .get("endpoints"),
        None,
        "Z-03(a)"
    );
    let fetched = server.api("GET", &binding, "").await;
    assert_eq!(
        (fetched.status, fetched.header("cache-control")),
        (200, Some("no-store"))
    );
    assert_eq!(
        (&fetched.json()["credentials"], &fetched.json()["parameters"]),
        (&body["credentials"], &json!({"role": "readonly"}))
    );
    assert_eq!(
        server
            .api("GET", &format!("{binding}/last_operation"), "")
            .await
            .json()["state"],
        json!("succeeded")
    );
    let successor = server
        .api(
            "PUT",
            &format!("{instance}/service_bindings/next"),
            r#"{"predecessor_binding_id": ".."}"#,
        )
        .await;
    assert_eq!(successor.status, 201, "R-02: {successor:?}");

    let ids = format!("service_id={ALPHA}&service_id=twice&plan_id={SHORT}");
    assert_eq!(server.api("DELETE", &binding, "").await.status, 400, "N-03");
    let unbound = server.api("DELETE", &format!("{binding}?{ids}"), "").await;
    assert_eq!(
        (unbound.status, unbound.body.as_str()),
        (200, "{}"),
        "{unbound:?}"
    );
    let gone = server.api("DELETE", &format!("{binding}?{ids}"), "").await;
    assert_eq!(
        (gone.status, gone.refusal()["error"].clone()),
        (410, json!("Gone"))
    );

    assert_eq!(server.api("DELETE", instance, "").await.status, 400, "D-03");
    let deleting = server
        .api("DELETE", &format!("{instance}?accepts_incomplete=true&{ids}"), "")
        .await;
    assert_eq!(deleting.status, 202, "{deleting:?}");
    let operation = deleting.json()["operation"].clone();
    broker.run_until_idle().await;
    let done = server.api("GET", &poll(instance, &operation), "").await;
    assert_eq!(
        (done.status, &done.json()["state"]),
        (200, &json!("succeeded")),
        "Z-01"
    );
    assert_eq!(
        server
            .api("DELETE", &format!("{instance}?accepts_incomplete=true&{ids}"), "")
            .await
            .status,
        410,
        "D-04"
    );
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_told_with_its_reason() {
    let (broker, server) = serve(Settings::default()).await;
    assert_eq!(server.ask("GET", "/readyz", &[], "").await.status, 200);
    broker.engine.drain();
    let reply = server.ask("GET", "/readyz", &[], "").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    assert!(
        reply.refusal()["description"]
            .as_str()
            .unwrap()
            .contains("shutting down")
    );
    broker.end().await;
}
