//! Keycloak and Vault together: an application comes from its client to its own secret, and nowhere else by any way that
//! was thought of.
//!
//! The vault is set up here by plain calls of its administrator, as docs/security.md has it, so that this says what the
//! two servers do and not what our own tools do.

use crate::realm::{Realm, claims, now, rsa, signed, spec, variable, web};
use chandler::adapters::keycloak::{Keycloak, KeycloakSettings};
use chandler::ports::{BindingIdentity, IdentitySpec};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// From this version on a wildcard in a name opens nothing.
const MENDED: (u32, u32, u32) = (2, 0, 4);

/// Seconds that the vault believes a token beyond its end.
const LEEWAY: i64 = 5;

/// Mounts, role and policy of one test on the testbed's vault; they go with it.
struct Vault {
    address: String,
    root: String,
    name: String,
}

impl Vault {
    async fn set_up(realm: &Realm) -> Self {
        let vault = Self {
            address: variable("VAULT_ADDR"),
            root: variable("VAULT_TOKEN"),
            name: realm.name.clone(),
        };
        let name = &vault.name;
        let issuer = realm.issuer();
        for mount in ["kv", "int"] {
            let body = json!({"type": "kv", "options": {"version": "2"}});
            vault
                .done("POST", &format!("sys/mounts/{name}-{mount}"), Some(body))
                .await;
        }
        vault
            .done(
                "POST",
                &format!("sys/auth/{name}-jwt"),
                Some(json!({"type": "jwt"})),
            )
            .await;
        let (_, mounts) = vault.root("GET", "sys/auth", None).await;
        let accessor = mounts["data"][format!("{name}-jwt/")]["accessor"]
            .as_str()
            .unwrap()
            .to_owned();
        let own = format!("{{{{identity.entity.aliases.{accessor}.name}}}}");
        let policy = format!(
            "path \"{name}-kv/data/+/+/{own}\" {{ capabilities = [\"read\"] }}\n\
             path \"{name}-kv/metadata/+/+/{own}\" {{ capabilities = [\"read\"] }}\n"
        );
        vault
            .done(
                "PUT",
                &format!("sys/policies/acl/{name}"),
                Some(json!({"policy": policy})),
            )
            .await;
        let config = json!({
            "oidc_discovery_url": issuer, "bound_issuer": issuer, "jwt_supported_algs": ["RS256"],
        });
        vault
            .done("POST", &format!("auth/{name}-jwt/config"), Some(config))
            .await;
        let role = json!({
            "role_type": "jwt", "bound_audiences": ["osb-vault"], "user_claim": "azp",
            "bound_claims_type": "glob", "bound_claims": {"azp": "osb-b-*", "osb_kind": "binding"},
            "claim_mappings": {"osb_tenant": "tenant", "osb_instance": "instance"},
            "token_policies": [name], "token_no_default_policy": true, "token_type": "batch", "token_ttl": "15m",
            "expiration_leeway": LEEWAY, "not_before_leeway": LEEWAY, "clock_skew_leeway": LEEWAY,
        });
        vault
            .done("POST", &format!("auth/{name}-jwt/role/binding"), Some(role))
            .await;
        vault
    }

    async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = web(None)
            .request(method.parse().unwrap(), format!("{}/v1/{path}", self.address))
            .header("x-vault-request", "true");
        if method == "PATCH" {
            request = request.header("content-type", "application/merge-patch+json");
        }
        if !token.is_empty() {
            request = request.header("x-vault-token", token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    async fn root(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call(&self.root, method, path, body).await
    }

    async fn done(&self, method: &str, path: &str, body: Option<Value>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (status, answer) = self.root(method, path, body.clone()).await;
            if (200..300).contains(&status) {
                return;
            }
            // A new store of version 2 is not ready for a moment.
            let upgrading = answer.to_string().contains("pgrading");
            assert!(
                upgrading && Instant::now() < deadline,
                "{method} {path}: {status} {answer}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Where a binding's secret lies; `kind` is `data` or `metadata`.
    fn path(&self, kind: &str, spec: &IdentitySpec) -> String {
        let binding = &spec.binding;
        format!(
            "{}-kv/{kind}/{}/{}/{}",
            self.name,
            binding.tenant,
            binding.iid,
            binding.client_id()
        )
    }

    async fn publish(&self, spec: &IdentitySpec, password: &str) {
        let body = json!({"options": {"cas": 0}, "data": {"password": password}});
        self.done("POST", &self.path("data", spec), Some(body)).await;
    }

    /// Logs in with a JWT: the status, and the vault's own token or what it says.
    async fn log_in(&self, jwt: &str) -> (u16, String) {
        let body = json!({"role": "binding", "jwt": jwt});
        let (status, answer) = self
            .call("", "POST", &format!("auth/{}-jwt/login", self.name), Some(body))
            .await;
        let token = answer["auth"]["client_token"].as_str().map(str::to_owned);
        (status, token.unwrap_or_else(|| answer["errors"].to_string()))
    }

    async fn token(&self, jwt: &str) -> String {
        let (status, token) = self.log_in(jwt).await;
        assert_eq!(status, 200, "{token}");
        token
    }

    async fn version(&self) -> (u32, u32, u32) {
        let (_, health) = self.root("GET", "sys/health", None).await;
        let version = health["version"].as_str().unwrap();
        let mut numbers = version
            .split(['.', '-', '+'])
            .map(|part| part.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        (next(), next(), next())
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let (address, root, name) = (self.address.clone(), self.root.clone(), self.name.clone());
        let removing = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                for path in [
                    format!("sys/auth/{name}-jwt"),
                    format!("sys/mounts/{name}-kv"),
                    format!("sys/mounts/{name}-int"),
                    format!("sys/policies/acl/{name}"),
                ] {
                    let url = format!("{address}/v1/{path}");
                    let removed = web(None).delete(url).header("x-vault-token", &root).send().await;
                    if !removed.is_ok_and(|answer| answer.status().is_success()) {
                        eprintln!("left behind in the vault: {path}");
                    }
                }
            });
        });
        drop(removing.join());
    }
}

/// Two bindings with their secrets, as after two binds.
struct Scene {
    // Before the realm: it needs nothing of it.
    vault: Vault,
    realm: Realm,
    keycloak: Keycloak,
    a: IdentitySpec,
    b: IdentitySpec,
}

impl Scene {
    async fn new() -> Self {
        let realm = Realm::make().await;
        let vault = Vault::set_up(&realm).await;
        let keycloak = realm.keycloak();
        let (a, b) = (spec(&keycloak, 1), spec(&keycloak, 2));
        for (bound, password) in [(&a, "password of a"), (&b, "password of b")] {
            vault.publish(bound, password).await;
            keycloak.ensure(bound).await.unwrap();
        }
        Self {
            vault,
            realm,
            keycloak,
            a,
            b,
        }
    }

    /// A binding whose tokens differ from the usual ones.
    async fn unusual(&self, number: usize, change: impl FnOnce(&mut KeycloakSettings)) -> IdentitySpec {
        let mut settings = self.realm.settings();
        change(&mut settings);
        let keycloak = Realm::keycloak_with(settings);
        let bound = spec(&keycloak, number);
        keycloak.ensure(&bound).await.unwrap();
        self.vault.publish(&bound, "unusual").await;
        bound
    }

    /// Whether a JWT is good for nothing at the vault.
    async fn refused(&self, what: &str, jwt: &str) {
        let (status, said) = self.vault.log_in(jwt).await;
        assert!((400..404).contains(&status), "{what} gets in: {status} {said}");
    }
}

#[tokio::test]
async fn an_application_comes_to_its_own_secret_and_to_nothing_else() {
    let scene = Scene::new().await;
    let vault = &scene.vault;
    let jwt = scene.realm.token(&scene.a).await;
    let token = vault.token(&jwt).await;
    let (status, read) = vault
        .call(&token, "GET", &vault.path("data", &scene.a), None)
        .await;
    assert_eq!(status, 200, "{read}");
    assert_eq!(read["data"]["data"]["password"], "password of a");
    let (status, _) = vault
        .call(&token, "GET", &vault.path("metadata", &scene.a), None)
        .await;
    assert_eq!(status, 200, "to see that there is a newer one");

    let name = &vault.name;
    vault
        .done(
            "POST",
            &format!("{name}-int/data/{}/admin", scene.a.binding.iid),
            Some(json!({"data": {"x": "y"}})),
        )
        .await;
    let written = || Some(json!({"data": {"password": "mine"}}));
    let a = &scene.a.binding;
    let upper = scene.a.binding.client_id().to_uppercase();
    let attacks: Vec<(&str, &str, String, Option<Value>)> = vec![
        ("b's secret", "GET", vault.path("data", &scene.b), None),
        ("b's versions", "GET", vault.path("metadata", &scene.b), None),
        (
            "a wildcard",
            "GET",
            format!("{name}-kv/data/{}/{}/*", a.tenant, a.iid),
            None,
        ),
        (
            "another case",
            "GET",
            format!("{name}-kv/data/{}/{}/{upper}", a.tenant, a.iid),
            None,
        ),
        (
            "one level up",
            "GET",
            format!("{name}-kv/data/{}/{}", a.tenant, a.iid),
            None,
        ),
        (
            "one level down",
            "GET",
            format!("{}/x", vault.path("data", &scene.a)),
            None,
        ),
        (
            "a list of all tenants",
            "LIST",
            format!("{name}-kv/metadata/"),
            None,
        ),
        (
            "a list of instances",
            "LIST",
            format!("{name}-kv/metadata/{}/", a.tenant),
            None,
        ),
        (
            "a list of bindings",
            "LIST",
            format!("{name}-kv/metadata/{}/{}/", a.tenant, a.iid),
            None,
        ),
        (
            "a list by query",
            "GET",
            format!("{name}-kv/metadata/{}/{}?list=true", a.tenant, a.iid),
            None,
        ),
        ("writing its own", "POST", vault.path("data", &scene.a), written()),
        (
            "patching its own",
            "PATCH",
            vault.path("data", &scene.a),
            written(),
        ),
        ("deleting its own", "DELETE", vault.path("data", &scene.a), None),
        (
            "deleting all its versions",
            "DELETE",
            vault.path("metadata", &scene.a),
            None,
        ),
        (
            "undeleting",
            "POST",
            format!("{name}-kv/undelete/{}/{}/{}", a.tenant, a.iid, a.client_id()),
            Some(json!({"versions": [1]})),
        ),
        ("writing b's", "POST", vault.path("data", &scene.b), written()),
        (
            "the administrator's credentials",
            "GET",
            format!("{name}-int/data/{}/admin", a.iid),
            None,
        ),
        ("a list of those", "LIST", format!("{name}-int/metadata/"), None),
        (
            "the log-in's role",
            "GET",
            format!("auth/{name}-jwt/role/binding"),
            None,
        ),
        (
            "a role of its own",
            "POST",
            format!("auth/{name}-jwt/role/mine"),
            Some(json!({})),
        ),
        ("its policy", "GET", format!("sys/policies/acl/{name}"), None),
        (
            "a policy of its own",
            "PUT",
            format!("sys/policies/acl/{name}-mine"),
            Some(json!({"policy": ""})),
        ),
        (
            "an entity",
            "POST",
            "identity/entity".into(),
            Some(json!({"name": "mine"})),
        ),
        (
            "a token of its own",
            "POST",
            "auth/token/create".into(),
            Some(json!({})),
        ),
        (
            "the configuration of the store",
            "GET",
            format!("{name}-kv/config"),
            None,
        ),
        (
            "another tenant's path with its own name",
            "POST",
            format!("{name}-kv/data/other/{}/{}", a.iid, a.client_id()),
            written(),
        ),
    ];
    for (what, method, path, body) in attacks {
        let (status, answer) = vault.call(&token, method, &path, body).await;
        assert_eq!(status, 403, "{what}: {method} {path}: {answer}");
    }
    let (status, read) = vault.root("GET", &vault.path("data", &scene.b), None).await;
    assert_eq!(
        (status, &read["data"]["data"]["password"]),
        (200, &json!("password of b")),
        "untouched"
    );
}

/// The token with one part replaced.
fn with_part(token: &str, part: usize, value: &Value) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[part] = BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    parts.join(".")
}

#[tokio::test]
async fn tokens_that_are_not_this_realms_for_the_vault_are_refused() {
    let scene = Scene::new().await;
    let jwt = scene.realm.token(&scene.a).await;
    assert_eq!(scene.vault.log_in(&jwt).await.0, 200, "the genuine one gets in");
    let genuine = claims(&jwt);
    let kid = {
        let header = jwt.split('.').next().unwrap();
        let header: Value =
            serde_json::from_slice(&BASE64URL_NOPAD.decode(header.as_bytes()).unwrap()).unwrap();
        header["kid"].as_str().unwrap().to_owned()
    };

    let mut bs = genuine.clone();
    bs["azp"] = json!(scene.b.binding.client_id());
    scene
        .refused(
            "a changed payload under the genuine signature",
            &with_part(&jwt, 1, &bs),
        )
        .await;

    let (key, _) = rsa(&kid);
    scene
        .refused(
            "another key under the genuine key's name",
            &signed(&key, Algorithm::RS256, &kid, &bs),
        )
        .await;

    let none = with_part(&with_part(&jwt, 1, &bs), 0, &json!({"alg": "none", "typ": "JWT"}));
    let unsigned = format!("{}.", none.rsplit_once('.').unwrap().0);
    scene.refused("alg none with a signature", &none).await;
    scene.refused("alg none without one", &unsigned).await;
    scene
        .refused("alg none and no last part", unsigned.trim_end_matches('.'))
        .await;

    // The realm's public key taken for a shared secret.
    let certs = format!("{}/protocol/openid-connect/certs", scene.realm.issuer());
    let public = scene
        .realm
        .web()
        .get(certs)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let confused = jsonwebtoken::EncodingKey::from_secret(public.as_bytes());
    scene
        .refused(
            "a shared-secret algorithm",
            &signed(&confused, Algorithm::HS256, &kid, &bs),
        )
        .await;

    let elsewhere = scene
        .unusual(3, |settings| settings.audience = "another-vault".into())
        .await;
    scene
        .refused("another audience", &scene.realm.token(&elsewhere).await)
        .await;

    let secret = scene.a.secret.text("client_secret");
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", &scene.a.binding.client_id()),
        ("client_secret", secret),
        ("scope", "openid"),
    ];
    let (status, answer) =
        crate::realm::post_form(&scene.realm.web(), &scene.realm.token_uri(), &fields).await;
    assert_eq!(status, 200, "{answer}");
    let id_token = answer["id_token"]
        .as_str()
        .expect("this Keycloak gives one when asked");
    scene.refused("an ID token", id_token).await;

    let (status, answer) = scene
        .realm
        .log_in("osb-broker", crate::realm::BROKER_SECRET)
        .await;
    assert_eq!(status, 200, "{answer}");
    scene
        .refused("the broker's own token", answer["access_token"].as_str().unwrap())
        .await;

    // Another realm of the same Keycloak, with the same client and claims.
    let other = Realm::make().await;
    let other_keycloak = other.keycloak();
    other_keycloak.ensure(&scene.a).await.unwrap();
    scene
        .refused("another realm's token", &other.token(&scene.a).await)
        .await;
}

#[tokio::test]
async fn a_token_ends_when_it_says_and_a_disabled_client_ends_with_it() {
    let scene = Scene::new().await;
    let short = scene.unusual(4, |settings| settings.token_seconds = 4).await;
    let jwt = scene.realm.token(&short).await;
    let until = claims(&jwt)["exp"].as_i64().unwrap();
    let token = scene.vault.token(&jwt).await;
    scene.keycloak.disable(&short.binding.bid).await.unwrap();
    let (status, _) = scene
        .realm
        .log_in(&short.binding.client_id(), short.secret.text("client_secret"))
        .await;
    assert_eq!(status, 401, "no new token from that moment on");
    // The stated window: a token given out before lives to its end, and not longer than the vault's leeway beyond.
    assert_eq!(
        scene.vault.log_in(&jwt).await.0,
        200,
        "the window is there, and docs/security.md names it"
    );
    while now() <= until + LEEWAY + 1 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    scene.refused("an expired token", &jwt).await;

    // The vault's own token is not Keycloak's affair: what ends it is the end of its entity.
    let path = scene.vault.path("data", &short);
    assert_eq!(scene.vault.call(&token, "GET", &path, None).await.0, 200);
    let (_, mounts) = scene.vault.root("GET", "sys/auth", None).await;
    let accessor = &mounts["data"][format!("{}-jwt/", scene.vault.name)]["accessor"];
    let asked = json!({"alias_name": short.binding.client_id(), "alias_mount_accessor": accessor});
    let (status, entity) = scene
        .vault
        .root("POST", "identity/lookup/entity", Some(asked))
        .await;
    assert_eq!(status, 200, "{entity}");
    let id = entity["data"]["id"].as_str().unwrap();
    scene
        .vault
        .done("DELETE", &format!("identity/entity/id/{id}"), None)
        .await;
    assert_eq!(scene.vault.call(&token, "GET", &path, None).await.0, 403);
}

/// Why the sweep raises an alarm for names, and why nobody but the broker may make clients in its realm.
#[tokio::test]
async fn a_client_named_by_a_wildcard_reads_others_secrets_and_is_what_the_alarm_is_for() {
    let scene = Scene::new().await;
    let mut client = scene.realm.client(&scene.a.binding.client_id()).await.unwrap();
    let evil = client.as_object_mut().unwrap();
    for own in ["id", "access", "attributes"] {
        evil.remove(own);
    }
    for mapper in evil["protocolMappers"].as_array_mut().unwrap() {
        mapper.as_object_mut().unwrap().remove("id");
    }
    evil.insert("clientId".into(), json!("osb-b-*"));
    evil.insert("secret".into(), json!("a-secret-of-the-realms-administrator"));
    let (status, answer) = scene.realm.admin("POST", "/clients", Some(client)).await;
    assert_eq!(status, 201, "Keycloak takes such a name: {answer}");
    let (status, answer) = scene
        .realm
        .log_in("osb-b-*", "a-secret-of-the-realms-administrator")
        .await;
    assert_eq!(status, 200, "{answer}");
    let jwt = answer["access_token"].as_str().unwrap();
    assert_eq!(claims(jwt)["azp"], "osb-b-*");

    let (status, token) = scene.vault.log_in(jwt).await;
    let reads = if status == 200 {
        scene
            .vault
            .call(&token, "GET", &scene.vault.path("data", &scene.b), None)
            .await
            .0
    } else {
        status
    };
    let version = scene.vault.version().await;
    if version < MENDED {
        assert_eq!(
            reads, 200,
            "Vault {version:?} fills the policy in with the name, wildcard and all"
        );
    } else {
        assert!(
            (400..404).contains(&reads),
            "Vault {version:?} is mended: {reads}"
        );
    }

    let page = scene.keycloak.page(None).await.unwrap();
    let alarms: Vec<_> = page.items.iter().filter(|found| found.bid.is_none()).collect();
    assert_eq!(alarms.len(), 1);
    assert_eq!(alarms[0].client_id, "osb-b-*");
    // And the broker itself can be brought to make no such client.
    let mut asked = scene.a.clone();
    asked.binding.bid = "*".into();
    assert!(scene.keycloak.ensure(&asked).await.is_err());
}
