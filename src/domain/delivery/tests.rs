//! The choice of a way as tables.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use Delivery::{Inline, Reference, Secret};

fn ways(allowed: &[Delivery]) -> Ways {
    Ways {
        allowed: allowed.to_vec(),
        identity: true,
        vault: true,
        projection: true,
        service_accounts: true,
        namespaces: vec!["apps".into()],
    }
}

fn asked(parameters: Value) -> Map<String, Value> {
    serde_json::from_value(parameters).unwrap()
}

/// What a platform may, what a plan says, what the platform names, the parameters, and what comes of it.
type Row<'a> = (
    &'a Ways,
    &'a [Delivery],
    Option<Delivery>,
    Value,
    Option<Delivery>,
);

#[test]
fn the_parameter_wins_then_the_plan_then_the_platform() {
    let all = ways(&[Reference, Inline, Secret]);
    let strict = ways(&[Reference]);
    let without_vault = Ways {
        vault: false,
        identity: false,
        ..ways(&[Reference, Inline])
    };
    let without_namespaces = Ways {
        namespaces: Vec::new(),
        ..ways(&[Secret, Inline])
    };
    let table: [Row<'_>; 13] = [
        (&all, &[], None, json!({}), Some(Reference)),
        (&all, &[], None, json!({"delivery": "inline"}), Some(Inline)),
        (&all, &[Secret, Inline], None, json!({}), Some(Secret)),
        (
            &all,
            &[Secret, Inline],
            None,
            json!({"delivery": "inline"}),
            Some(Inline),
        ),
        (
            &all,
            &[Secret, Inline],
            None,
            json!({"delivery": "reference"}),
            None,
        ),
        (&all, &[], None, json!({"delivery": "carrier pigeon"}), None),
        (&all, &[], None, json!({"delivery": 1}), None),
        (&strict, &[Inline, Reference], None, json!({}), Some(Reference)),
        (&strict, &[Inline], None, json!({}), None),
        (&without_vault, &[], None, json!({}), Some(Inline)),
        (&without_namespaces, &[], None, json!({}), Some(Inline)),
        // A successor is handed over like the binding it follows, as long as that is allowed.
        (&all, &[], Some(Inline), json!({}), Some(Inline)),
        (&strict, &[], Some(Inline), json!({}), Some(Reference)),
    ];
    for (ways, plan, before, parameters, expected) in table {
        let decided = ways.decide(plan, before, &asked(parameters.clone()));
        match expected {
            Some(way) => assert_eq!(decided.unwrap().delivery, way, "{plan:?} {parameters}"),
            None => {
                let error = decided.unwrap_err();
                assert!(error.description.starts_with("parameters.delivery: "), "{error}");
            }
        }
    }
}

#[test]
fn nothing_is_known_where_nothing_is_configured() {
    let bare = Ways {
        allowed: vec![Inline],
        ..Ways::default()
    };
    for name in PARAMETERS {
        assert!(!bare.knows(name));
    }
    let parameters = asked(json!({"delivery": "reference", "role": "owner"}));
    assert_eq!(
        bare.of_the_plan(&parameters),
        parameters,
        "the plan's schema refuses it"
    );
    assert_eq!(
        bare.decide(&[], None, &asked(json!({}))).unwrap(),
        Handing::default()
    );
    assert!(bare.schema().is_empty());
    let full = ways(&[Reference]);
    assert_eq!(full.of_the_plan(&parameters), asked(json!({"role": "owner"})));
    assert_eq!(
        full.schema().keys().map(String::as_str).collect::<Vec<_>>().len(),
        3
    );
    assert_eq!(
        full.schema()["delivery"]["enum"],
        json!(["reference", "secret", "inline"])
    );
}

#[test]
fn a_secret_goes_where_the_platform_may_put_it() {
    let one = ways(&[Secret, Inline]);
    let two = Ways {
        namespaces: vec!["apps".into(), "shop".into()],
        ..one.clone()
    };
    let place = |ways: &Ways, parameters: Value| {
        ways.decide(&[], None, &asked(parameters))
            .map(|handing| handing.namespace.unwrap_or_default())
            .map_err(|e| e.description)
    };
    assert_eq!(place(&one, json!({})).unwrap(), "apps");
    assert_eq!(place(&two, json!({"secret_namespace": "shop"})).unwrap(), "shop");
    for (ways, parameters) in [
        (&two, json!({})),
        (&two, json!({"secret_namespace": "kube-system"})),
        (&two, json!({"secret_namespace": ["shop"]})),
        (&one, json!({"delivery": "inline", "secret_namespace": "apps"})),
    ] {
        let said = place(ways, parameters.clone()).unwrap_err();
        assert!(
            said.starts_with("parameters.secret_namespace: "),
            "{parameters}: {said}"
        );
    }
}

#[test]
fn client_auth_is_read_or_refused_by_name() {
    let key = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "BB", "kid": "1"});
    let good = [
        (json!({}), ClientAuth::ClientSecret),
        (
            json!({"client_auth": {"method": "client_secret"}}),
            ClientAuth::ClientSecret,
        ),
        (
            json!({"client_auth": {"method": "private_key_jwt", "jwks": {"keys": [key]}}}),
            ClientAuth::PrivateKeyJwt {
                jwks: json!({"keys": [key]}),
            },
        ),
        (
            json!({"client_auth": {"method": "kubernetes", "namespace": "apps", "service_account": "shop.web"}}),
            ClientAuth::Kubernetes {
                namespace: "apps".into(),
                service_account: "shop.web".into(),
            },
        ),
    ];
    for (parameters, expected) in good {
        assert_eq!(client_auth(&asked(parameters)).unwrap(), expected);
    }
    let jwks = |jwks: Value| json!({"method": "private_key_jwt", "jwks": jwks});
    let with = |member: &str| {
        let mut key = key.clone();
        key[member] = "secret-of-somebody".into();
        jwks(json!({"keys": [key]}))
    };
    let mut long = key.clone();
    long["x5c"] = json!(["A".repeat(5_000)]);
    let sa = |namespace: Value, name: Value| json!({"method": "kubernetes", "namespace": namespace, "service_account": name});
    let bad = [
        (json!("client_secret"), "client_auth:"),
        (json!({}), "client_auth.method:"),
        (json!({"method": "none"}), "client_auth.method:"),
        (json!({"method": "client_secret", "jwks": {}}), "client_auth:"),
        (jwks(Value::Null), "client_auth.jwks:"),
        (jwks(json!("https://example.test/jwks")), "client_auth.jwks:"),
        (jwks(json!({"keys": []})), "client_auth.jwks:"),
        (jwks(json!({"keys": [1]})), "client_auth.jwks:"),
        (jwks(json!({"keys": [{"kty": "oct"}]})), "client_auth.jwks:"),
        (jwks(json!({"keys": [key], "jwks_uri": "x"})), "client_auth.jwks:"),
        (jwks(json!({"keys": vec![key.clone(); 9]})), "client_auth.jwks:"),
        (jwks(json!({"keys": [long]})), "client_auth.jwks:"),
        (with("d"), "client_auth.jwks:"),
        (with("k"), "client_auth.jwks:"),
        (with("x5u"), "client_auth.jwks:"),
        (
            json!({"method": "private_key_jwt", "jwks_uri": "https://x"}),
            "client_auth:",
        ),
        (sa(json!("apps"), Value::Null), "client_auth.service_account:"),
        (sa(json!("Apps"), json!("web")), "client_auth.namespace:"),
        (sa(json!("a.b"), json!("web")), "client_auth.namespace:"),
        (sa(json!("apps"), json!("web:x")), "client_auth.service_account:"),
        (sa(json!("apps"), json!("-web")), "client_auth.service_account:"),
    ];
    for (auth, at) in bad {
        let error = client_auth(&asked(json!({"client_auth": auth}))).unwrap_err();
        let said = &error.description;
        assert!(said.starts_with(&format!("parameters.{at} ")), "{auth}: {said}");
        assert!(!said.contains("secret-of-somebody"), "{said}");
    }
}

#[test]
fn service_accounts_only_where_they_are_set_up() {
    let parameters = asked(
        json!({"client_auth": {"method": "kubernetes", "namespace": "apps", "service_account": "web"}}),
    );
    let on = ways(&[Reference]);
    let handing = on.decide(&[], None, &parameters).unwrap();
    assert_eq!(handing.service_account().as_deref(), Some("apps/web"));
    let off = Ways {
        service_accounts: false,
        ..on
    };
    let said = off.decide(&[], None, &parameters).unwrap_err();
    assert!(said.description.contains("client_auth.method"), "{said}");
    let secret = ways(&[Secret]).decide(&[], None, &parameters).unwrap_err();
    assert!(
        secret.description.contains("parameters.client_auth: "),
        "{secret}"
    );
}
