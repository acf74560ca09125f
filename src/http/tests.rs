//! What several files of the HTTP layer answer for together. The application on a real listener is in `tests/it/http.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use actix_web::test::TestRequest;
use serde_json::json;

/// A request on the instance `i/d` and the binding `..`, as its handler gets it.
pub(super) fn input(method: &Method, query: &str, body: &str) -> Input {
    Input {
        request: TestRequest::default().method(method.clone()).to_http_request(),
        query: body::Query::parse(query),
        body: Bytes::from(body.to_owned()),
        instance_id: "i/d".into(),
        binding_id: "..".into(),
    }
}

/// The text of a header.
pub(super) fn header_of<'a>(response: &'a HttpResponse, name: &HeaderName) -> &'a str {
    response.headers().get(name).unwrap().to_str().unwrap()
}

#[actix_web::test]
async fn a_panic_becomes_an_answer_without_its_words() {
    let refusal = guarded(async { panic!("the insides") }).await.unwrap_err();
    assert_eq!(refusal.status().as_u16(), 500);
    assert!(!refusal.to_string().contains("insides"));
    let error = detached::<()>(async { panic!("the insides") }).await.unwrap_err();
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
    let schema =
        json!({"$ref": format!("#/components/schemas/{name}"), "components": document["components"]});
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
        ("InstanceBody", answers::instance_fetched(&instance, View::NEWEST)),
        ("BindingBody", answers::binding_fetched(&binding, View::NEWEST)),
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
fn the_document_lists_every_call_and_what_they_share() {
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
        Resource::Rotation,
    ] {
        let methods = document["paths"][resource.pattern()].as_object().unwrap();
        for method in resource.allow().split(", ").filter(|method| *method != "HEAD") {
            let operation = &methods[&method.to_ascii_lowercase()];
            calls += 1;
            assert_eq!(operation["security"], json!([{"basic": []}]));
            for status in ["200", "400", "401", "405", "412", "413", "429", "500", "503"] {
                // The broker's own API has its version in the path, so it is never the wrong one.
                assert_eq!(
                    operation["responses"].get(status).is_some(),
                    status != "412" || resource.is_osb(),
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
            assert_eq!(
                names.contains(&"X-Broker-API-Version"),
                resource.is_osb(),
                "{names:?}"
            );
            assert!(
                operation["responses"]["401"]["headers"]
                    .get("WWW-Authenticate")
                    .is_some()
            );
        }
        assert_eq!(
            methods.len(),
            resource.allow().split(", ").filter(|m| *m != "HEAD").count(),
            "no call beside the allowed ones"
        );
    }
    assert_eq!(calls, 11);
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
