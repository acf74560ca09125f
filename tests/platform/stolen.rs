//! What somebody can do who has the broker's token of the vault, or of Keycloak: what docs/security.md says, and no more;
//! that it ends as it says; and that hostile ids of a platform open nothing.

use crate::faulty::stage::{Stage, Work, client};
use crate::realm::{claims, web};
use crate::whole::{VaultPlace, connect, said};
use chandler::domain::names;
use serde_json::{Value, json};

/// The last log-in of this kind that the broker used.
async fn stolen(stage: &Stage, header: &str) -> String {
    let heard = stage.faults.listen_in();
    let found = heard.iter().rev().find_map(|part| part[header].as_str());
    let found = found.unwrap_or_else(|| panic!("no {header} passed"));
    found.trim_start_matches("Bearer ").to_owned()
}

async fn with_two(label: &str) -> Stage {
    let stage = Stage::begin(label, VaultPlace::testbed()).await;
    stage.faults.listen_in();
    for binding in ["a", "b"] {
        assert_eq!(stage.carry_out(Work::Bind, binding).await, "succeeded");
    }
    stage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_token_of_the_vault_does_what_is_written_and_no_more() {
    let stage = with_two("stolen-token").await;
    let (a, b) = (stage.enters("a").await, stage.enters("b").await);
    let token = stolen(&stage, "x-vault-token").await;
    let mission = &stage.mission;
    let iid = names::iid("cf", "db");
    let thief = async |method: &str, path: &str, body: Option<Value>| {
        mission.vault(Some(&token), method, path, body).await
    };
    let place = |what: &str, binding: &str| format!("{}/{what}/cf/{iid}/{}", mission.name, client(binding));

    // Not: bindings' secrets, policies, roles, other stores, more tokens.
    let name = &mission.name;
    for (method, path, body) in [
        ("GET", place("data", "a"), None),
        ("GET", place("subkeys", "a"), None),
        ("POST", place("undelete", "a"), Some(json!({"versions": [1]}))),
        ("GET", format!("sys/policies/acl/{name}-binding"), None),
        (
            "PUT",
            format!("sys/policies/acl/{name}-broker"),
            Some(json!({"policy": ""})),
        ),
        ("GET", format!("auth/{name}-jwt/role/binding"), None),
        (
            "POST",
            format!("auth/{name}-jwt/role/mine"),
            Some(json!({"user_claim": "azp"})),
        ),
        (
            "POST",
            format!("auth/{name}-jwt/config"),
            Some(json!({"bound_issuer": "x"})),
        ),
        ("POST", "auth/token/create".into(), Some(json!({}))),
        ("GET", "secret/data/of-others".into(), None),
        ("POST", "secret/data/of-others".into(), Some(json!({"data": {}}))),
        ("GET", "sys/mounts".into(), None),
        (
            "POST",
            "identity/entity-alias".into(),
            Some(json!({"name": client("a")})),
        ),
    ] {
        let (status, told) = thief(method, &path, body).await;
        assert!(matches!(status, 403 | 405), "{method} {path}: {status} {told}");
    }

    // Names of platforms, instances, bindings.
    let (status, told) = thief("LIST", &format!("{name}/metadata/cf/{iid}/"), None).await;
    assert_eq!((status, told["data"]["keys"].as_array().unwrap().len()), (200, 2));
    // False secrets: the application connects elsewhere, or not at all.
    let body = json!({"options": {"cas": 1}, "data": {"uri": "postgres://thief"}});
    assert_eq!(thief("POST", &place("data", "a"), Some(body)).await.0, 200);
    assert_eq!(stage.read_as(&a).await, json!({"uri": "postgres://thief"}));
    // Destroying them.
    assert_eq!(thief("DELETE", &place("metadata", "b"), None).await.0, 204);
    assert_eq!(mission.read(&b.token, &b.credentials).await, 404);
    // The administrators' credentials, so the data.
    let (status, told) = thief("GET", &format!("{name}-int/data/{iid}/admin"), None).await;
    assert_eq!(status, 200);
    let mut data = stage.database_as(&told["data"]["data"]).await;
    sqlx::query("SELECT rolpassword FROM pg_authid")
        .execute(&mut data)
        .await
        .unwrap();
    // Ending anybody's log-ins.
    let (_, told) = mission
        .vault(None, "POST", "identity/entity", Some(json!({"name": name})))
        .await;
    let entity = format!("identity/entity/id/{}", told["data"]["id"].as_str().unwrap());
    assert_eq!(thief("DELETE", &entity, None).await.0, 204);
    assert_eq!(mission.vault(None, "GET", &entity, None).await.0, 404);

    // One hour unless renewed; an operator ends it, and the broker goes on with one of its own.
    let lookup = Some(json!({"token": token}));
    let (_, told) = mission.vault(None, "POST", "auth/token/lookup", lookup).await;
    assert!(
        told["data"]["ttl"].as_u64().unwrap() <= 3600,
        "{}",
        told["data"]["ttl"]
    );
    let accessor = Some(json!({"accessor": told["data"]["accessor"]}));
    assert_eq!(
        mission
            .vault(None, "POST", "auth/token/revoke-accessor", accessor)
            .await
            .0,
        204
    );
    assert_eq!(thief("LIST", &format!("{name}/metadata/"), None).await.0, 403);
    // What was spoilt is whole again after binding anew.
    for binding in ["a", "b"] {
        for work in [Work::Unbind, Work::Bind] {
            assert_eq!(stage.carry_out(work, binding).await, "succeeded", "{work:?}");
        }
        // A binding's own token lives a quarter of an hour, and cannot be renewed.
        let held = stage.enters(binding).await;
        let (_, told) = mission
            .vault(
                None,
                "POST",
                "auth/token/lookup",
                Some(json!({"token": held.token})),
            )
            .await;
        assert!(told["data"]["ttl"].as_u64().unwrap() <= 900, "{told}");
        assert_eq!(told["data"]["renewable"], false);
        assert_eq!(stage.carry_out(Work::Unbind, binding).await, "succeeded");
        stage.is_out(&held).await;
    }
    for held in [&a, &b] {
        stage.is_out(held).await;
    }
    stage.comes_to("at the end", 0, &[]).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_token_of_keycloak_does_what_is_written_and_no_more() {
    let stage = with_two("stolen-client").await;
    let a = stage.enters("a").await;
    let token = stolen(&stage, "authorization").await;
    let mission = &stage.mission;
    let (name, place) = (&mission.name, &mission.keycloak.url);
    let thief = async |method: &str, path: &str, body: Option<Value>| {
        let mut request = web(None)
            .request(method.parse().unwrap(), format!("{place}{path}"))
            .bearer_auth(&token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.unwrap_or_default(),
        )
    };

    // Not: other realms, the vault.
    for (method, path, body) in [
        ("GET", "/admin/realms/master".to_owned(), None),
        ("GET", "/admin/realms/master/clients".to_owned(), None),
        (
            "POST",
            "/admin/realms/master/clients".to_owned(),
            Some(json!({"clientId": "thief"})),
        ),
        ("GET", "/admin/realms/master/users".to_owned(), None),
        (
            "POST",
            "/admin/realms".to_owned(),
            Some(json!({"realm": "thief"})),
        ),
        ("DELETE", format!("/admin/realms/{name}"), None),
    ] {
        let (status, told) = thief(method, &path, body).await;
        assert_eq!(status, 403, "{method} {path}: {told}");
    }
    assert!(
        matches!(mission.enter(&token).await.0, 400 | 403),
        "it is no binding's token"
    );

    // Any binding's secret at Keycloak, so its token, so its secret in the vault: reading, and not writing.
    let (status, found) = thief(
        "GET",
        &format!("/admin/realms/{name}/clients?clientId={}", client("a")),
        None,
    )
    .await;
    assert_eq!(status, 200);
    let id = found[0]["id"].as_str().unwrap();
    let path = format!("/admin/realms/{name}/clients/{id}");
    let (status, told) = thief("GET", &format!("{path}/client-secret"), None).await;
    assert_eq!(
        (status, &told["value"]),
        (200, &a.credentials["keycloak"]["client_secret"])
    );
    let mut taken = a.credentials.clone();
    taken["keycloak"]["client_secret"] = told["value"].clone();
    let (_, as_a) = mission.enter(&mission.token(&taken).await.unwrap()).await;
    assert_eq!(mission.read(&as_a, &taken).await, 200);
    let kept = a.credentials["vault"]["data_path"]
        .as_str()
        .unwrap()
        .trim_start_matches("v1/");
    let body = Some(json!({"options": {"cas": 1}, "data": {}}));
    assert_eq!(mission.vault(Some(&as_a), "POST", kept, body).await.0, 403);
    let admin = format!("{name}-int/data/{}/admin", names::iid("cf", "db"));
    assert_eq!(mission.vault(Some(&as_a), "GET", &admin, None).await.0, 403);
    // Making and disabling clients there, which the broker's own look finds.
    let made = json!({"clientId": "osb-b-of-a-thief", "serviceAccountsEnabled": true});
    assert_eq!(
        thief("POST", &format!("/admin/realms/{name}/clients"), Some(made))
            .await
            .0,
        201
    );
    mission.admit().await;
    let looked = mission.run(&["reconcile"]);
    assert!(
        !looked.status.success() && said(&looked).contains("osb-b-of-a-thief"),
        "{}",
        said(&looked)
    );
    let off = Some(json!({"clientId": client("b"), "enabled": false}));
    let (_, found) = thief(
        "GET",
        &format!("/admin/realms/{name}/clients?clientId={}", client("b")),
        None,
    )
    .await;
    let path = format!(
        "/admin/realms/{name}/clients/{}",
        found[0]["id"].as_str().unwrap()
    );
    assert_eq!(thief("PUT", &path, off).await.0, 204);
    let (_, told) = stage.ask("GET", &stage.path("b"), json!({})).await;
    assert!(
        mission.token(&told["credentials"]).await.is_none(),
        "b is shut out"
    );
    let (_, strange) = thief(
        "GET",
        &format!("/admin/realms/{name}/clients?clientId=osb-b-of-a-thief"),
        None,
    )
    .await;
    let path = format!(
        "/admin/realms/{name}/clients/{}",
        strange[0]["id"].as_str().unwrap()
    );
    assert_eq!(thief("DELETE", &path, None).await.0, 204);

    // The secret is exchanged: the former one gets no token, and the broker goes on.
    let file = mission.dir.path().join("keycloak-secret");
    let former = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "another-secret-of-the-broker-0123456789-0123456789").unwrap();
    let done = mission.run(&["bootstrap", "keycloak", "--apply"]);
    assert!(done.status.success(), "{}", said(&done));
    let asked = json!({"keycloak": {
        "client_id": "osb-broker", "client_secret": former.trim(), "token_uri": a.credentials["keycloak"]["token_uri"],
    }});
    assert!(mission.token(&asked).await.is_none(), "the former secret");
    for binding in ["a", "b"] {
        assert_eq!(stage.carry_out(Work::Unbind, binding).await, "succeeded");
    }
    stage.is_out(&a).await;
    stage.comes_to("at the end", 0, &[]).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_ids_of_a_platform_open_nothing() {
    let mut stage = Stage::begin("hostile", VaultPlace::testbed()).await;
    let template = "{{identity.entity.aliases.auth_jwt.name}}";
    let ids = [
        template,
        "*",
        "osb-b-*",
        "+/+",
        "../../osb-b-x",
        "${client_id}",
        "a\"}}, {\"b",
        "%2e%2e%2f*",
        "é\n*",
    ];
    // The rest of what a platform may say is told as a claim or a note nowhere else than in its own place.
    stage.ids["app_guid"] = json!(template);
    stage.ids["bind_resource"] = json!({"app_guid": "osb-b-*"});
    stage.ids["context"] = json!({"platform": "cloudfoundry", "organization_name": "osb_kind", "osb_tenant": "other", "azp": "*"});
    let mut held = Vec::new();
    for id in ids {
        let (status, told) = stage.order(Work::Bind, id).await;
        if status == 400 {
            println!("{id:?} is refused: {told}");
            continue;
        }
        assert!(matches!(status, 201 | 202), "{id:?}: {status} {told}");
        if status == 202 {
            assert_eq!(stage.ended(id, told["operation"].as_str()).await.0, "succeeded");
        }
        let now = stage.enters(id).await;
        let says = claims(&now.jwt);
        let expected = [client(id), "binding".into(), "cf".into(), names::iid("cf", "db")];
        for (claim, expected) in ["azp", "osb_kind", "osb_tenant", "osb_instance"]
            .iter()
            .zip(expected)
        {
            assert_eq!(says[claim], expected, "{id:?}: {claim}");
        }
        assert!(names::bid_of_client(&client(id)).is_some());
        held.push((id, now));
    }
    assert!(held.len() >= 6, "{} hostile ids were taken", held.len());
    for (id, one) in &held {
        for (other, another) in &held {
            let read = stage.mission.read(&one.token, &another.credentials).await;
            assert_eq!(
                read == 200,
                id == other,
                "{id:?} reads what is {other:?}'s: {read}"
            );
        }
    }
    for (id, _) in &held {
        assert_eq!(stage.carry_out(Work::Unbind, id).await, "succeeded", "{id:?}");
    }
    for (_, one) in &held {
        stage.is_out(one).await;
        assert!(connect(&one.secret).await.is_err());
    }
    stage.comes_to("at the end", 0, &[]).await;
    stage.end().await;
}
