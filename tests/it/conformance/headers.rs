//! H and A: version, identities, caching, credentials.

use super::common::{delete, flagged, instance, k8s, last, request_of, told, with_http};
use crate::http::wire::{VERSION, basic, right, serve};
use crate::support::broker::{PASSWORD, TestBroker};
use crate::support::catalog::{self, sources};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use chandler::domain::catalog::{Catalog, KnownMechanisms};
use chandler::http::{MissingVersion, Settings};
use serde_json::json;

const IDENTITY: &str = "X-Broker-API-Originating-Identity";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h01_missing_version_is_412_or_400_by_setting() {
    let broker = TestBroker::start().await;
    for (method, path) in [
        ("GET", "/v2/catalog"),
        ("PUT", "/v2/service_instances/i"),
        ("DELETE", "/v2/service_instances/i"),
    ] {
        broker
            .send(request_of(&broker, "cf", method, path))
            .await
            .expect_error(412, "VersionMissing");
    }
    broker.end().await;
    let broker = with_http(|http| http.missing_version = MissingVersion::BadRequest).await;
    broker
        .send(request_of(&broker, "cf", "GET", "/v2/catalog"))
        .await
        .expect(400);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h02_unsupported_version_is_412_and_names_the_version_to_use() {
    let broker = with_http(|http| http.min_minor = 14).await;
    for version in [
        "1.17", "3.0", "2.13", "2", "2.x", "2.17.0", "v2.17", "latest", "-2.17",
    ] {
        let request = request_of(&broker, "cf", "GET", "/v2/catalog").header("X-Broker-API-Version", version);
        let answer = broker
            .send(request)
            .await
            .expect_error(412, "VersionNotSupported");
        assert!(
            answer.body["description"].as_str().unwrap().contains("2.17"),
            "{version}: {}",
            answer.text
        );
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_newer_minors_are_served_normally() {
    let broker = TestBroker::start().await;
    let now = broker.get("/v2/catalog").await.expect(200).text;
    for version in ["2.18", "2.99", "2.4294967296"] {
        let request = request_of(&broker, "cf", "GET", "/v2/catalog").header("X-Broker-API-Version", version);
        assert_eq!(broker.send(request).await.expect(200).text, now, "{version}");
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h04_originating_identity_is_accepted_on_every_call() {
    let broker = TestBroker::start().await;
    let value = format!(
        "cloudfoundry {}",
        BASE64_STANDARD.encode(r#"{"user_id":"683ea748"}"#)
    );
    let send = |method: &str, path: String| broker.request(method, &path).header(IDENTITY, &value);
    broker.send(send("GET", "/v2/catalog".into())).await.expect(200);
    let put = send("PUT", flagged(&instance("i"))).json(&catalog::provision_body());
    broker.send(put).await.expect(202);
    broker.send(send("GET", last(&instance("i")))).await.expect(200);
    broker.run_until_idle().await;
    broker.send(send("GET", instance("i"))).await.expect(200);
    broker
        .send(send("DELETE", delete(&instance("i"))))
        .await
        .expect(202);
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h05_no_originating_identity_is_needed() {
    let broker = TestBroker::start().await;
    // The harness sends none: a whole life passes without one.
    broker.get("/v2/catalog").await.expect(200);
    broker.provisioned("i").await;
    broker.bound("i", "b").await;
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h06_malformed_identity_is_400_naming_the_header_and_every_alphabet_is_read() {
    let broker = TestBroker::start().await;
    for bad in [
        "",
        "cloudfoundry",
        "cloudfoundry !!!",
        "cloudfoundry W10=",
        "cloudfoundry bm90IGpzb24=",
        " e30=",
    ] {
        let answer = broker
            .send(
                broker
                    .request("PUT", &flagged(&instance("i")))
                    .header(IDENTITY, bad)
                    .json(&catalog::provision_body()),
            )
            .await
            .expect_error(400, "BadRequest");
        assert!(
            answer.body["description"].as_str().unwrap().contains(IDENTITY),
            "{}",
            answer.text
        );
    }
    broker.get(&last(&instance("i"))).await.expect(404);
    // One to three characters of padding, and a text whose code differs between the two alphabets.
    for user in ["a", "ab", "abc", "\u{fb}\u{ff}?>~"] {
        let text = json!({"user_id": user, "more": {"a": [1]}}).to_string();
        for code in [
            BASE64_STANDARD.encode(&text),
            BASE64_STANDARD_NO_PAD.encode(&text),
            BASE64_URL_SAFE.encode(&text),
            BASE64_URL_SAFE_NO_PAD.encode(&text),
        ] {
            let request = broker
                .request("GET", "/v2/catalog")
                .header(IDENTITY, format!("any-platform {code}"));
            broker.send(request).await.expect(200);
        }
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h07_another_platform_word_in_the_identity_than_in_the_context_is_not_refused() {
    let broker = TestBroker::start().await;
    let identity = format!("kubernetes {}", BASE64_STANDARD.encode(r#"{"username":"x"}"#));
    let body = super::common::provision(json!({"context": {"platform": "cloudfoundry"}}));
    let put = broker
        .request("PUT", &flagged(&instance("i")))
        .header(IDENTITY, identity)
        .json(&body);
    broker.send(put).await.expect(202);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h08_request_identity_is_echoed_on_errors_too() {
    const NAME: &str = "x-broker-api-request-identity";
    let (broker, server) = serve(Settings {
        max_body: 1000,
        ..Settings::default()
    })
    .await;
    broker.provisioned("i").await;
    let authorization = right();
    let auth = ("Authorization", authorization.as_str());
    let identity = (NAME, "e26cee84 and \u{fc}");
    let body = catalog::provision_body().to_string();
    let large = "x".repeat(1001);
    for (headers, method, target, body, status) in [
        (vec![auth, VERSION], "GET", "/v2/catalog", "", 200),
        (
            vec![auth, VERSION],
            "PUT",
            "/v2/service_instances/n?accepts_incomplete=true",
            body.as_str(),
            202,
        ),
        (vec![], "GET", "/v2/catalog", "", 401),
        (vec![auth], "GET", "/v2/catalog", "", 412),
        (vec![auth, VERSION], "PUT", "/v2/service_instances/i", "{}", 400),
        (
            vec![auth, VERSION],
            "GET",
            "/v2/service_instances/unknown",
            "",
            404,
        ),
        (vec![auth, VERSION], "POST", "/v2/catalog", "", 405),
        (
            vec![auth, VERSION],
            "PUT",
            "/v2/service_instances/i",
            &body.replace("\"org\"", "\"other\""),
            409,
        ),
        (
            vec![auth, VERSION],
            "DELETE",
            "/v2/service_instances/u?accepts_incomplete=true&service_id=s&plan_id=p",
            "",
            410,
        ),
        (
            vec![auth, VERSION],
            "PUT",
            "/v2/service_instances/i",
            large.as_str(),
            413,
        ),
        (
            vec![auth, VERSION],
            "PUT",
            "/v2/service_instances/m",
            body.as_str(),
            422,
        ),
    ] {
        let mut with = headers.clone();
        with.push(identity);
        let reply = server.ask(method, target, &with, body).await;
        assert_eq!(
            (reply.status, reply.header(NAME)),
            (status, Some(identity.1)),
            "{method} {target}"
        );
        let reply = server.ask(method, target, &headers, body).await;
        assert_eq!(reply.header(NAME), None, "not invented: {method} {target}");
    }
    // 500: the backend fails a synchronous bind.
    use crate::support::world::{Effect, When};
    broker.world.plan(
        "issue",
        When::Before,
        Effect::Fail(chandler::ports::PortErrorKind::Invalid, "no"),
        1,
    );
    let reply = server
        .ask(
            "PUT",
            "/v2/service_instances/i/service_bindings/b",
            &[auth, VERSION, identity],
            &catalog::bind_body().to_string(),
        )
        .await;
    assert_eq!((reply.status, reply.header(NAME)), (500, Some(identity.1)));
    broker.run_until_idle().await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h09_etag_304_and_a_new_etag_for_a_new_catalog() {
    let broker = TestBroker::start().await;
    let first = broker.get("/v2/catalog").await.expect(200);
    let etag = first.headers["etag"].clone();
    let ask =
        |tag: reqwest::header::HeaderValue| broker.request("GET", "/v2/catalog").header("If-None-Match", tag);
    let again = broker.send(ask(etag.clone())).await.expect(304);
    assert_eq!((again.text.as_str(), &again.headers["etag"]), ("", &etag));
    broker.send(ask("\"other\"".parse().unwrap())).await.expect(200);
    let list = format!("\"other\", {}", etag.to_str().unwrap());
    broker.send(ask(list.parse().unwrap())).await.expect(304);

    let mut changed = sources();
    let text = changed["plans/alpha/small.yaml"].replace("The plan small", "The plan smalL");
    changed.insert("plans/alpha/small.yaml".into(), text);
    broker
        .engine
        .set_catalog(Catalog::load(&changed, &KnownMechanisms).unwrap())
        .await
        .unwrap();
    let second = broker.send(ask(etag.clone())).await.expect(200);
    assert_ne!(second.headers["etag"], etag, "one letter changed");
    assert!(second.text.contains("smalL"));
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h10_unknown_headers_and_query_parameters_are_ignored() {
    let broker = TestBroker::start().await;
    let path = format!("{}&force=true&x=%FF&&=&junk", flagged(&instance("i")));
    let put = broker
        .request("PUT", &path)
        .header("X-Api-Info-Location", "api.example.test/v2/info")
        .header("X-B3-TraceId", "not hex")
        .header("X-Broker-API-Nothing", "1")
        .json(&catalog::provision_body());
    broker.send(put).await.expect(202);
    broker.run_until_idle().await;
    broker
        .get(&format!("{}?a=b&service_id=nothing", instance("i")))
        .await
        .expect(200);
    broker.deleted("i").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a01_without_right_credentials_401_and_nothing_happens() {
    let (broker, server) = serve(Settings {
        failed_logins_per_minute: 0,
        ..Settings::default()
    })
    .await;
    broker.provisioned("i").await;
    let before = super::common::everything(&broker).await;
    let body = catalog::provision_body().to_string();
    let wrong = [
        None,
        Some(basic("cf", "wrong")),
        Some(basic("nobody", PASSWORD)),
        Some(basic("CF", PASSWORD)),
        Some(basic("cf", "")),
        Some(basic("", PASSWORD)),
        Some("Basic %%%".to_owned()),
        Some("Basic".to_owned()),
        Some(format!("Basic {}", BASE64_STANDARD.encode("no colon"))),
        Some(format!(
            "Bearer {}",
            BASE64_STANDARD.encode(format!("cf:{PASSWORD}"))
        )),
    ];
    for (method, target, body) in [
        ("GET", "/v2/catalog", ""),
        (
            "PUT",
            "/v2/service_instances/n?accepts_incomplete=true",
            body.as_str(),
        ),
        ("GET", "/v2/service_instances/i", ""),
        (
            "PATCH",
            "/v2/service_instances/i?accepts_incomplete=true",
            body.as_str(),
        ),
        ("DELETE", &delete("/v2/service_instances/i"), ""),
        ("GET", "/v2/service_instances/i/last_operation", ""),
        ("PUT", "/v2/service_instances/i/service_bindings/b", body.as_str()),
        ("GET", "/v2/service_instances/i/service_bindings/b", ""),
        (
            "DELETE",
            &delete("/v2/service_instances/i/service_bindings/b"),
            "",
        ),
        (
            "GET",
            "/v2/service_instances/i/service_bindings/b/last_operation",
            "",
        ),
    ] {
        for authorization in &wrong {
            let mut headers = vec![VERSION];
            headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
            let reply = server.ask(method, target, &headers, body).await;
            assert_eq!(
                (reply.status, reply.refusal()["error"].as_str()),
                (401, Some("Unauthorized")),
                "{method} {target}"
            );
            assert!(
                reply
                    .header("www-authenticate")
                    .unwrap()
                    .starts_with("Basic realm=")
            );
        }
    }
    assert_eq!(super::common::everything(&broker).await, before);
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a02_basic_authentication_on_every_request() {
    let (broker, server) = serve(Settings::default()).await;
    let scheme_in_small = right().replace("Basic", "basic");
    for authorization in [right(), scheme_in_small] {
        let reply = server
            .ask(
                "GET",
                "/v2/catalog",
                &[("Authorization", &authorization), VERSION],
                "",
            )
            .await;
        assert_eq!(reply.status, 200);
        // Being let in once opens nothing for the next request.
        assert_eq!(server.ask("GET", "/v2/catalog", &[VERSION], "").await.status, 401);
    }
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a04_two_platforms_with_the_same_ids_never_meet() {
    let broker = TestBroker::start().await;
    let body = catalog::provision_body();
    let (path, bind) = (instance("same"), super::common::binding("same", "same"));
    broker.provisioned("same").await;
    let mine = broker.bound("same", "same").await;

    // What cf has is invisible to k8s.
    for path in [path.clone(), bind.clone(), last(&path), last(&bind)] {
        k8s(&broker, "GET", &path, None)
            .await
            .expect_error(404, "NotFound");
    }
    k8s(&broker, "DELETE", &delete(&path), None)
        .await
        .expect_error(410, "Gone");
    k8s(&broker, "DELETE", &delete(&bind), None)
        .await
        .expect_error(410, "Gone");
    k8s(
        &broker,
        "PATCH",
        &flagged(&path),
        Some(&json!({"service_id": catalog::ALPHA})),
    )
    .await
    .expect_error(404, "NotFound");
    k8s(&broker, "PUT", &bind, Some(&catalog::bind_body()))
        .await
        .expect_error(404, "NotFound");

    // The same ids with other attributes are no conflict.
    let mut other = body.clone();
    other["parameters"] = json!({"size": 9});
    k8s(&broker, "PUT", &flagged(&path), Some(&other))
        .await
        .expect(202);
    broker.run_until_idle().await;
    let theirs = k8s(&broker, "PUT", &bind, Some(&catalog::bind_body()))
        .await
        .expect(201)
        .body["credentials"]
        .clone();
    assert_ne!(mine["username"], theirs["username"]);
    assert_ne!(mine["password"], theirs["password"]);
    assert_eq!(broker.world.instances.lock().unwrap().len(), 2);
    assert_eq!(
        broker.get(&path).await.expect(200).body["parameters"],
        json!(null)
    );

    // An operation token of one platform tells the other nothing.
    let deleting = k8s(&broker, "DELETE", &delete(&path), None).await.expect(202);
    let asked = broker
        .get(&format!("{}?operation={}", last(&path), deleting.operation()))
        .await
        .expect(200);
    assert_eq!(
        asked.body["state"], "succeeded",
        "cf's own provision, not the delete of k8s"
    );
    broker.run_until_idle().await;
    assert_eq!(told(&broker, &path).await["state"], "succeeded");
    broker.get(&path).await.expect(200);
    let lets_in = |c: &serde_json::Value| {
        broker
            .world
            .lets_in(c["username"].as_str().unwrap(), c["password"].as_str().unwrap())
    };
    assert!(lets_in(&mine) && !lets_in(&theirs));
    broker.deleted("same").await;
    broker.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a05_bad_credentials_win_over_bad_versions() {
    let broker = TestBroker::start().await;
    for version in [None, Some("garbage"), Some("9.9"), Some("2.17")] {
        let mut request = broker
            .http
            .get(format!("{}/v2/catalog", broker.base))
            .basic_auth("cf", Some("wrong"));
        if let Some(version) = version {
            request = request.header("X-Broker-API-Version", version);
        }
        broker.send(request).await.expect_error(401, "Unauthorized");
    }
    broker.end().await;
}
