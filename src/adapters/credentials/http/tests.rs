#![allow(clippy::unwrap_used)]

use super::*;
use crate::domain::catalog::{admin_members, user_members};
use crate::domain::instance::Endpoint;
use crate::domain::names;
use serde_json::json;

fn endpoint(name: &str) -> Endpoint {
    Endpoint {
        name: name.to_owned(),
        host: "127.0.0.1".to_owned(),
        port: 1,
    }
}

fn target(issue: &Value) -> Target {
    let settings = json!({
        "values": {"database": "a/b", "dots": "..", "nothing": ""},
        "issue": [{"method": "PUT", "path": "/users/{user}", "body": {"password": "{password}"}}, issue],
        "verify": [{"method": "GET", "path": "/session"}],
        "revoke": [{"method": "DELETE", "path": "/users/{user}"}],
        "list": [{"method": "GET", "path": "/users", "users": "/*"}],
    });
    Target {
        iid: "i".repeat(26),
        endpoints: vec![endpoint("client"), endpoint("admin")],
        endpoint: endpoint("client"),
        settings: settings.as_object().unwrap().clone(),
        admin: administrator().unwrap(),
        revoked: Vec::new(),
    }
}

fn grant() -> Grant {
    let params = json!({"quota": 5, "tags": ["x"], "line": "a\nb", "path": "../x?y=1#z %2e"});
    Grant {
        bid: names::bid("p", "i", "b"),
        second: false,
        role: "readwrite".to_owned(),
        params: params.as_object().unwrap().clone(),
        expires_at: None,
    }
}

/// A step filled in: its path, headers and body.
type Filled = (String, Vec<(String, String)>, Option<Value>);

/// What the step `issue` becomes.
fn filled(issue: &Value) -> PortResult<Filled> {
    let target = target(issue);
    let settings = Settings::of(&target)?;
    let user = Http::new().generate_user(&target, &grant(), 0)?;
    let mut filling = filling(&target, &settings, &grant(), &user)?;
    filling.set("password", "secret".into());
    let step = &settings.issue.steps[1];
    Ok((
        step.path(&filling)?,
        step.headers(&filling)?,
        step.body(&filling)?,
    ))
}

#[test]
fn values_are_encoded_for_their_place() {
    let user = names::backend_user(&grant().bid);
    let (path, headers, body) = filled(&json!({
        "method": "PUT", "path": "/db/{database}/u-{user}?role={role}&p={params.path}",
        "headers": {"x-token": "t {admin_username}"},
        "body": {
            "quota": "{params.quota}", "tags": "{params.tags}", "text": "q{params.quota}", "line": "{params.line}",
            "absent": "{params.absent}", "also": "x{params.absent}", "expires": "{expires_at}",
            "list": ["{params.absent}", "{role}"], "fixed": {"n": 1, "brace": "{{x}}"}, "password": "{password}",
        },
    }))
    .unwrap();
    assert_eq!(
        path,
        format!("/db/a%2Fb/u-{user}?role=readwrite&p=..%2Fx%3Fy%3D1%23z%20%252e")
    );
    assert_eq!(headers, [("x-token".to_owned(), "t chandler".to_owned())]);
    assert_eq!(
        body.unwrap(),
        json!({
            "quota": 5, "tags": ["x"], "text": "q5", "line": "a\nb", "list": ["readwrite"],
            "fixed": {"n": 1, "brace": "{x}"}, "password": "secret",
        })
    );
}

#[test]
fn a_value_leads_to_no_other_place() {
    for (path, headers) in [
        ("/users/{nothing}", json!({})),
        ("/users/{params.absent}", json!({})),
        ("/users/{params.tags}", json!({})),
        ("/users/{params.line}", json!({})),
        ("/users/{dots}", json!({})),
        ("/users/{dots}/x", json!({})),
        ("/users/%2e{database}/%2E.", json!({})),
        ("/x", json!({"x-a": "{params.line}"})),
        ("/x", json!({"x-a": "{params.absent}"})),
    ] {
        let error = filled(&json!({"method": "GET", "path": path, "headers": headers})).unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{path}");
    }
    // Dots are no step upwards in a query, nor beside other letters.
    for path in ["/users?x={dots}", "/users/a{dots}"] {
        assert!(filled(&json!({"method": "GET", "path": path})).is_ok(), "{path}");
    }
}

#[test]
fn names_are_found_in_lists_and_maps() {
    for (at, answer, names) in [
        (
            "/rows/*/id",
            json!({"rows": [{"id": "a"}, {"id": 5}, {"no": "c"}, {"id": "b"}]}),
            vec!["a", "b"],
        ),
        ("/*", json!(["a", "b"]), vec!["a", "b"]),
        ("/users/*", json!({"users": {"a": {}, "b": {}}}), vec!["a", "b"]),
        (
            "/*/name",
            json!({"x": {"name": "a"}, "y": {"name": "b"}}),
            vec!["a", "b"],
        ),
        ("/0/a~1b", json!([{"a/b": "c"}]), vec!["c"]),
        ("/rows/*/id", json!("nothing"), vec![]),
    ] {
        let settings = json!({
            "issue": [{"method": "PUT", "path": "/{user}", "body": "{password}"}],
            "verify": [{"method": "GET", "path": "/"}],
            "revoke": [{"method": "DELETE", "path": "/{user}"}],
            "list": [{"method": "GET", "path": "/", "users": at}],
        });
        let settings = Settings::parse(settings.as_object().unwrap()).unwrap();
        assert_eq!(
            settings.list.steps[0].users.as_ref().unwrap().all(&answer),
            names,
            "{at}"
        );
    }
}

#[test]
fn an_endpoint_can_be_chosen_by_name() {
    for (name, there) in [("admin", true), ("other", false)] {
        let mut target = target(&json!({"method": "GET", "path": "/"}));
        target.settings.insert("endpoint".to_owned(), json!(name));
        let settings = Settings::of(&target).unwrap();
        assert_eq!(Work::new(&Web::new(), &target, &settings, None).is_ok(), there);
    }
}

#[test]
fn secrets_have_the_members_the_catalog_expects() {
    let target = target(&json!({"method": "GET", "path": "/"}));
    let user = Http::default().generate_user(&target, &grant(), 0).unwrap();
    for (secret, members) in [
        (&target.admin, admin_members("http")),
        (&user.secret, user_members("http")),
    ] {
        assert_eq!(secret.expose().len(), members.len());
        assert!(members.iter().all(|member| !secret.text(member).is_empty()));
    }
    let sly = Grant {
        role: "_admin".to_owned(),
        ..grant()
    };
    assert!(Http::new().generate_user(&target, &sly, 0).is_err());
}

#[tokio::test]
async fn only_users_of_bindings_are_touched() {
    let target = target(&json!({"method": "GET", "path": "/"}));
    for bad in ["chandler", "b_", "b_x/../y", "_design/x"] {
        let error = Http::new().revoke(&target, bad).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
    }
    let mut user = Http::new().generate_user(&target, &grant(), 0).unwrap();
    user.handle = names::backend_user(&names::bid("p", "i", "other"));
    let error = Http::new().issue(&target, &grant(), &user).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
}
