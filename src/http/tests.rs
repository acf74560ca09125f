//! The application on a real listener, asked with raw bytes: what must hold before the engine is reached.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use actix_web::test::TestRequest;
use actix_web::{App, HttpServer};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::json;
use std::fmt::Write as _;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn engine() -> Arc<Engine> {
    Arc::new(Engine {})
}

fn state(settings: Settings) -> Arc<State> {
    let hash = auth::hash_password("secret").unwrap();
    let credential = auth::Credential {
        username: "dev".into(),
        hash,
    };
    let platform = auth::Platform {
        name: "dev".into(),
        credentials: vec![credential],
    };
    let platforms = Arc::new(auth::Platforms::new(vec![platform]).unwrap());
    Arc::new(State::new(
        engine(),
        settings,
        platforms,
        Arc::new(|| "up 1\n".to_owned()),
    ))
}

/// A call as handlers get it.
pub(super) fn call(
    method: &Method,
    instance_id: &str,
    binding_id: &str,
    query: &str,
    body: &str,
    settings: Settings,
) -> Call {
    Call {
        request: TestRequest::default()
            .method(method.clone())
            .to_http_request(),
        state: web::Data::from(state(settings)),
        caller: Caller {
            platform: "dev".into(),
            ..Caller::default()
        },
        view: View::NEWEST,
        query: body::Query::parse(query),
        body: Bytes::from(body.to_owned()),
        instance_id: instance_id.into(),
        binding_id: binding_id.into(),
    }
}

/// The text of a header.
pub(super) fn header_of<'a>(response: &'a HttpResponse, name: &HeaderName) -> &'a str {
    response.headers().get(name).unwrap().to_str().unwrap()
}

/// A running application; ends with the test's runtime.
struct Server {
    address: SocketAddr,
    handle: actix_web::dev::ServerHandle,
}

impl Server {
    fn start(settings: Settings) -> Self {
        Self::with(state(settings), configure)
    }

    fn with(state: Arc<State>, configure: fn(&mut ServiceConfig, Arc<State>)) -> Self {
        let server = HttpServer::new(move || {
            let state = Arc::clone(&state);
            App::new().configure(move |config| configure(config, state))
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(1)
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Self { address, handle }
    }

    async fn stop(self) {
        self.handle.stop(false).await;
    }

    async fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .expect("an answer in time");
        Reply::parse(&answer)
    }

    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if !body.is_empty() {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.raw(format!("{head}\r\n{body}").as_bytes()).await
    }

    /// With credentials and version.
    async fn api(&self, method: &str, target: &str, body: &str) -> Reply {
        let authorization = dev();
        self.ask(
            method,
            target,
            &[("Authorization", &authorization), VERSION],
            body,
        )
        .await
    }
}

const VERSION: (&str, &str) = ("X-Broker-API-Version", "2.17");

fn dev() -> String {
    format!("Basic {}", BASE64_STANDARD.encode("dev:secret"))
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no answer in {text:?}"));
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.to_owned(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body of a refusal, checked for its form (E-02).
    fn refusal(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"));
        let body: Value =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        for member in ["error", "description"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
        body
    }

    /// Whether the request got past everything `http` decides, whatever the engine then said.
    fn passed(&self) -> bool {
        let ours = [401, 405, 412, 413].contains(&self.status);
        let lost = self.body.contains("Nothing is served at this path")
            || self.body.contains("in the path");
        !ours && !lost
    }
}

#[actix_web::test]
async fn a01_a05_credentials_come_first_and_are_needed_below_v2() {
    let server = Server::start(Settings::default());
    let wrong = format!("Basic {}", BASE64_STANDARD.encode("dev:wrong"));
    let targets = [
        "/v2/catalog",
        "/v2",
        "/v2/nothing",
        "/v2/service_instances/",
        "/v2/service_instances/i",
        "/v2/service_instances/%00",
    ];
    for target in targets {
        for authorization in [
            None,
            Some(wrong.as_str()),
            Some("Basic !"),
            Some("Bearer x"),
        ] {
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
    server.stop().await;
}

#[actix_web::test]
async fn too_many_wrong_passwords_are_429_with_retry_after() {
    let server = Server::start(Settings {
        failed_logins_per_minute: 3,
        ..Settings::default()
    });
    let mut statuses = Vec::new();
    for n in 0..5 {
        let guess = format!("Basic {}", BASE64_STANDARD.encode(format!("dev:{n}")));
        let reply = server
            .ask(
                "GET",
                "/v2/catalog",
                &[("Authorization", &guess), VERSION],
                "",
            )
            .await;
        reply.refusal();
        if reply.status == 429 {
            assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [401, 401, 401, 429, 429]);
    server.stop().await;
}

#[actix_web::test]
async fn h01_h02_versions_come_before_routes() {
    let server = Server::start(Settings::default());
    let authorization = dev();
    let auth = ("Authorization", authorization.as_str());
    for (headers, word) in [
        (vec![auth], "VersionMissing"),
        (vec![auth, ("X-Broker-API-Version", "")], "VersionMissing"),
        (
            vec![auth, ("X-Broker-API-Version", "1.9")],
            "VersionNotSupported",
        ),
        (
            vec![auth, ("X-Broker-API-Version", "two")],
            "VersionNotSupported",
        ),
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
    server.stop().await;
    let server = Server::start(Settings {
        missing_version: MissingVersion::BadRequest,
        ..Settings::default()
    });
    assert_eq!(
        server.ask("GET", "/v2/catalog", &[auth], "").await.status,
        400
    );
    server.stop().await;
}

#[actix_web::test]
async fn unknown_paths_are_404_and_unknown_methods_405() {
    let server = Server::start(Settings::default());
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
        (
            "POST",
            "/v2/service_instances/i",
            "GET, HEAD, PUT, PATCH, DELETE",
        ),
        (
            "PATCH",
            "/v2/service_instances/i/service_bindings/b",
            "GET, HEAD, PUT, DELETE",
        ),
        (
            "DELETE",
            "/v2/service_instances/i/last_operation",
            "GET, HEAD",
        ),
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
    server.stop().await;
}

#[actix_web::test]
async fn i01_odd_ids_reach_their_handler_and_impossible_ones_are_400() {
    let server = Server::start(Settings::default());
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
            assert!(reply.passed(), "{target}: {reply:?}");
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
    server.stop().await;
}

#[actix_web::test]
async fn bodies_that_are_no_request_are_400_and_name_the_field() {
    let server = Server::start(Settings::default());
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
    let authorization = dev();
    let headers = [
        ("Authorization", authorization.as_str()),
        VERSION,
        ("Content-Type", "text/plain"),
    ];
    let reply = server
        .ask("PUT", "/v2/service_instances/i", &headers, "{}")
        .await;
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
    server.stop().await;
}

#[actix_web::test]
async fn e11_large_bodies_are_413_before_anything_else_however_framed() {
    let server = Server::start(Settings {
        max_body: 1000,
        ..Settings::default()
    });
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
        dev(),
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
    server.stop().await;
}

#[actix_web::test]
async fn h08_request_identity_comes_back_on_every_answer() {
    let server = Server::start(Settings {
        max_body: 100,
        ..Settings::default()
    });
    let authorization = dev();
    let auth = ("Authorization", authorization.as_str());
    let identity = (
        "X-Broker-API-Request-Identity",
        "id with blanks, \u{fc} and more",
    );
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
        .ask(
            "PUT",
            "/v2/service_instances/i",
            &[identity],
            &"x".repeat(101),
        )
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
    server.stop().await;
}

#[actix_web::test]
async fn pages_answer_without_credentials_and_under_a_policy() {
    let server = Server::start(Settings::default());
    for (target, content_type, part) in [
        ("/", "text/html; charset=utf-8", "chandler"),
        ("/livez", "application/json", "alive"),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "up 1",
        ),
        ("/openapi.json", "application/json", "/v2/catalog"),
        ("/docs/", "text/html", "swagger-ui-bundle.js"),
        (
            "/docs/swagger-initializer.js",
            "text/javascript",
            "/openapi.json",
        ),
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
    assert_eq!(
        (docs.status, docs.header("location")),
        (308, Some("/docs/"))
    );
    let head = server.ask("HEAD", "/livez", &[], "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(
        head.header("content-length")
            .is_some_and(|length| length != "0")
    );
    server.stop().await;
}

#[actix_web::test]
async fn the_admin_port_serves_probes_and_nothing_else() {
    let settings = Settings {
        metrics_on_main: false,
        ..Settings::default()
    };
    let admin = Server::with(state(settings.clone()), configure_admin);
    assert_eq!(admin.ask("GET", "/livez", &[], "").await.status, 200);
    assert_eq!(admin.ask("GET", "/metrics", &[], "").await.body, "up 1\n");
    for target in ["/", "/docs/", "/openapi.json", "/v2/catalog"] {
        assert_eq!(admin.api("GET", target, "").await.status, 404, "{target}");
    }
    admin.stop().await;
    let main = Server::start(settings);
    assert_eq!(main.ask("GET", "/metrics", &[], "").await.status, 404);
    main.stop().await;
}

#[actix_web::test]
async fn garbage_on_the_wire_never_hangs_or_breaks_the_server() {
    let server = Server::start(Settings::default());
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
    server.stop().await;
}

#[actix_web::test]
async fn a_panic_becomes_an_answer_without_its_words() {
    let refusal = guarded(async { panic!("the insides") }).await.unwrap_err();
    assert_eq!(refusal.status().as_u16(), 500);
    assert!(!refusal.to_string().contains("insides"));
    let error = detached::<()>(async { panic!("the insides") })
        .await
        .unwrap_err();
    assert!(!error.description.contains("insides") && error.internal.is_some());
}

#[actix_web::test]
async fn detached_work_outlives_its_caller() {
    let (done, wait) = tokio::sync::oneshot::channel();
    let work = detached(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = done.send(());
        Ok(())
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(1), work)
            .await
            .is_err()
    );
    tokio::time::timeout(Duration::from_secs(5), wait)
        .await
        .unwrap()
        .unwrap();
}

/// The document as a schema by which bodies can be checked.
fn validator(name: &str) -> jsonschema::Validator {
    let document: Value = serde_json::from_str(&openapi::document_json()).unwrap();
    let schema = json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
    jsonschema::validator_for(&schema).unwrap()
}

fn body_of(response: HttpResponse) -> Value {
    use actix_web::body::MessageBody as _;
    serde_json::from_slice(&response.into_body().try_into_bytes().unwrap()).unwrap()
}

#[test]
fn answers_are_as_the_document_says() {
    use crate::domain::operation::OperationState;
    use crate::domain::request::{BindingView, EndpointView, InstanceView, LastOperation, Outcome};
    use crate::domain::secret::Secret;
    let labels = json!({"a": "b"}).as_object().unwrap().clone();
    let instance = InstanceView {
        service_id: "s".into(),
        plan_id: "p".into(),
        parameters: labels.clone(),
        dashboard_url: Some("https://d".into()),
        maintenance_version: Some("1.0.0".into()),
        labels,
    };
    let binding = BindingView {
        credentials: Secret::from_pairs([("password", "x")]),
        endpoints: vec![EndpointView {
            host: "h".into(),
            ports: vec!["1".into()],
            protocol: "tcp".into(),
        }],
        expires_at: Some(1),
        renew_before: Some(0),
        ..BindingView::default()
    };
    let operation = LastOperation {
        state: OperationState::Failed,
        description: "d".into(),
        instance_usable: Some(true),
        update_repeatable: Some(false),
        deleted: false,
        retry_after: 1,
    };
    let accepted = Outcome::Accepted {
        operation: "op".into(),
        body: (),
    };
    for (name, response) in [
        (
            "InstanceChangedBody",
            answers::instance_changed(&Outcome::Created(instance.clone()), View::NEWEST, true),
        ),
        (
            "InstanceChangedBody",
            answers::instance_changed(&Outcome::Done(InstanceView::default()), View::NEWEST, true),
        ),
        (
            "InstanceBody",
            answers::instance_fetched(&instance, View::NEWEST),
        ),
        (
            "BindingBody",
            answers::binding_fetched(&binding, View::NEWEST),
        ),
        (
            "BindingBody",
            answers::binding_fetched(&BindingView::default(), View::NEWEST),
        ),
        (
            "LastOperationBody",
            answers::last_operation(&operation, View::NEWEST, true, false),
        ),
        ("OperationBody", answers::deleted(accepted)),
        ("EmptyBody", answers::deleted(Outcome::Done(()))),
        ("ErrorBody", Refusal::unauthorized().response(View::NEWEST)),
    ] {
        let body = body_of(response);
        let errors: Vec<String> = validator(name)
            .iter_errors(&body)
            .map(|e| e.to_string())
            .collect();
        assert!(errors.is_empty(), "{name} {body}: {errors:?}");
    }
    assert!(
        !validator("ErrorBody").is_valid(&json!({"error": "X"})),
        "the check can fail"
    );
    assert!(
        !validator("InstanceChangedBody").is_valid(&json!({"dashboard_url": null})),
        "no null"
    );
}

#[test]
fn the_document_lists_the_ten_calls_and_what_they_share() {
    let text = openapi::document_json();
    assert_eq!(text, openapi::document_json(), "stable");
    assert!(text.ends_with("}\n"));
    let document: Value = serde_json::from_str(&text).unwrap();
    let mut calls = 0;
    for resource in [
        Resource::Catalog,
        Resource::Instance,
        Resource::InstanceOperation,
        Resource::Binding,
        Resource::BindingOperation,
    ] {
        let methods = document["paths"][resource.pattern()].as_object().unwrap();
        for method in resource
            .allow()
            .split(", ")
            .filter(|method| *method != "HEAD")
        {
            let operation = &methods[&method.to_ascii_lowercase()];
            calls += 1;
            assert_eq!(operation["security"], json!([{"basic": []}]));
            for status in [
                "200", "400", "401", "405", "412", "413", "429", "500", "503",
            ] {
                assert!(
                    operation["responses"].get(status).is_some(),
                    "{method} {} {status}",
                    resource.pattern()
                );
            }
            let names: Vec<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|p| p["name"].as_str())
                .collect();
            assert!(names.contains(&"X-Broker-API-Version"), "{names:?}");
            assert!(
                operation["responses"]["401"]["headers"]
                    .get("WWW-Authenticate")
                    .is_some()
            );
        }
        assert_eq!(
            methods.len() + 1,
            resource.allow().split(", ").count(),
            "no call beside the allowed ones"
        );
    }
    assert_eq!(calls, 10);
    let requests = &document["components"]["schemas"];
    assert_eq!(
        requests["ProvisionBody"]["required"],
        json!(["service_id", "plan_id"])
    );
    assert_eq!(requests["UpdateBody"]["required"], json!(["service_id"]));
    assert_eq!(requests["BindBody"].get("required"), None);
    assert_eq!(
        requests["ProvisionBody"].get("additionalProperties"),
        None,
        "extra members are fine (E-08)"
    );
}
