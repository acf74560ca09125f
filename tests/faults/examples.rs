//! The services of `examples/services` in a running broker, as they are written: what the documentation shows is what runs.

use crate::support::audit::State;
use crate::support::home::Home;
use crate::support::platform::{End, Platform};
use crate::support::process::{Broker, repository};
use serde_json::{Value, json};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions, Connection};
use std::str::FromStr;
use std::time::Duration;

const I: &str = "/v2/service_instances/shop";

/// The block of a page that stands below a line with the file's name.
fn shown(page: &str, file: &str) -> String {
    let (_, after) = page
        .split_once(&format!("`{file}`:\n\n```yaml\n"))
        .unwrap_or_else(|| panic!("the page does not show {file}"));
    after.split_once("```\n").unwrap().0.to_owned()
}

#[test]
fn the_page_shows_the_files_that_run() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let page = read("docs/adding-a-service.md");
    for service in ["mariadb", "documents"] {
        let file = format!("examples/services/catalog/{service}/binding.yaml");
        let text = read(&file);
        let (settings, _) = text.split_once("endpoint: client\n").unwrap();
        assert_eq!(shown(&page, &file), settings, "{file}");
    }
}

async fn log_in(credentials: &Value) -> Result<MySqlConnection, String> {
    let options = MySqlConnectOptions::from_str(credentials["uri"].as_str().unwrap()).unwrap();
    let options = options.disable_statement_logging();
    let opening = MySqlConnection::connect_with(&options);
    let opened = tokio::time::timeout(Duration::from_secs(10), opening).await;
    opened
        .map_err(|_| "no answer".to_owned())?
        .map_err(|e| e.to_string())
}

async fn one(connection: &mut MySqlConnection, sql: &'static str) -> Result<(), String> {
    let done = sqlx::raw_sql(sql).execute(connection).await;
    done.map(drop).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_by_statements_lives_its_whole_life() {
    let home = Home::new();
    let data = home.data();
    let examples = repository().join("examples/services");
    let arguments = [
        "dev",
        "--port",
        "0",
        "--json",
        "--data-dir",
        data.to_str().unwrap(),
        "--catalog-dir",
    ];
    let arguments = [&arguments[..], &[examples.to_str().unwrap()]].concat();
    let mut broker = Broker::start(&home, &arguments, &[]);
    let platform = Platform::dev(&broker, &home);
    let catalog = platform.get("/v2/catalog").await.body;
    let offered = catalog["services"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["name"] == "mariadb");
    let service = offered.expect("MariaDB is installed (mariadb-server-core, mariadb-client-core)");
    let ids = json!({"service_id": service["id"], "plan_id": service["plans"][0]["id"]});
    let with = |more: Value| {
        let mut body = ids.clone();
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let asked = |path: &str| format!("{path}?accepts_incomplete=true");

    let body = with(json!({"organization_guid": "o", "space_guid": "s", "parameters": {"database": "shop"}}));
    let made = platform.sure("PUT", &asked(I), Some(&body)).await.expect(&[202]);
    assert_eq!(platform.ended(&made, I).await, End::Succeeded);
    let mut bindings = Vec::new();
    for (name, role) in [("writer", "readwrite"), ("owner", "owner")] {
        let path = format!("{I}/service_bindings/{name}");
        let body = with(json!({"parameters": {"role": role}}));
        let answer = platform.sure("PUT", &path, Some(&body)).await.expect(&[201]);
        bindings.push((path, answer.body["credentials"].clone()));
    }
    let mut owner = log_in(&bindings[1].1).await.unwrap();
    one(&mut owner, "CREATE TABLE goods (name varchar(20))")
        .await
        .unwrap();
    let mut writer = log_in(&bindings[0].1).await.unwrap();
    one(&mut writer, "INSERT INTO goods VALUES ('tea')")
        .await
        .unwrap();
    assert!(one(&mut writer, "DROP TABLE goods").await.is_err());

    // Unbound: shut out, and its session ended; the other one goes on.
    let query = format!("service_id={}&plan_id={}", ids["service_id"], ids["plan_id"]).replace('"', "");
    let (path, credentials) = &bindings[0];
    platform
        .sure("DELETE", &format!("{path}?{query}"), None)
        .await
        .expect(&[200]);
    assert!(log_in(credentials).await.is_err());
    assert!(one(&mut writer, "SELECT 1").await.is_err());
    one(&mut owner, "SELECT 1").await.unwrap();

    let gone = platform
        .sure("DELETE", &format!("{I}?accepts_incomplete=true&{query}"), None)
        .await;
    assert_eq!(platform.ended(&gone.expect(&[202]), I).await, End::Succeeded);
    assert!(broker.stop().success());
    let wrong = State::dev(&home).await.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
