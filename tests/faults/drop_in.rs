//! An eighth service takes a folder and no Rust: dropped beside a running broker it is in the catalog without a
//! restart, and is provisioned, bound, used and deleted like the others. What is wrong with a changed folder is
//! logged, and the old catalog stays.

use crate::support::audit::State;
use crate::support::clients::{self, Access};
use crate::support::home::Home;
use crate::support::platform::{Answer, End, Platform, Service};
use crate::support::process::{Broker, repository};
use crate::support::until;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SERVICE: &str = "77b0f1de-53a1-4f0c-9c65-0d8f6a3a8e01";
const PLAN: &str = "77b0f1de-53a1-4f0c-9c65-0d8f6a3a8e02";
const I: &str = "/v2/service_instances/jar";
const B: &str = "/v2/service_instances/jar/service_bindings/lid";
const LONG: Duration = Duration::from_secs(30);

/// A directory beside the broker's own, and the new service's folders in it.
struct Folder(PathBuf);

impl Folder {
    /// Redis under another name, as somebody would make it who copies a folder and edits it.
    fn drop_into(root: &Path) -> Self {
        let folder = Self(root.to_owned());
        for file in [
            "binding.yaml",
            "process.yaml",
            "create.schema.json",
            "update.schema.json",
            "bind.schema.json",
            "icon.svg",
        ] {
            folder.write(
                &format!("catalog/larder/{file}"),
                &std::fs::read_to_string(repository().join("catalog/redis").join(file)).unwrap(),
            );
        }
        folder.write("catalog/larder/offering.yaml", &offering(SERVICE));
        folder.write("plans/larder/jar.yaml", &plan("One jar"));
        folder
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn take_away(&self) {
        std::fs::remove_dir_all(self.0.join("catalog/larder")).unwrap();
        std::fs::remove_dir_all(self.0.join("plans/larder")).unwrap();
    }
}

fn offering(id: &str) -> String {
    format!(
        "id: {id}
name: larder
description: Keys and values that keep
tags: [larder]
metadata:
  displayName: Larder
  longDescription: A store for keys and values.
  providerDisplayName: The kitchen team
  documentationUrl: https://example.test/larder
  supportUrl: https://example.test/larder/help
runs_on: [local]
binding_rotatable: true
maximum_polling_duration: 120
maintenance_info:
  version: 1.0.0
  description: First version.
values:
  maxmemory_percent: 50
"
    )
}

fn plan(description: &str) -> String {
    format!(
        "id: {PLAN}
name: jar
description: {description}
metadata:
  displayName: Jar
  bullets: [\"One server\"]
values:
  memory: 64Mi
  max_clients: 50
"
    )
}

/// What the catalog says of the service.
fn larder(catalog: &Answer) -> Option<Value> {
    let services = catalog.body["services"].as_array()?;
    services.iter().find(|s| s["name"] == "larder").cloned()
}

async fn served(platform: &Platform, what: &str, wanted: impl Fn(Option<&Value>) -> bool) {
    until(what, LONG, || async {
        let catalog = platform.get("/v2/catalog").await;
        wanted(larder(&catalog).as_ref()).then_some(())
    })
    .await;
}

/// Waits until the broker has logged a line with all these words, after the first `from` bytes of its log.
async fn logged(home: &Home, from: usize, words: &[&str]) -> String {
    until(&format!("a log line with {words:?}"), LONG, || async {
        let log = home.logged();
        log[from..]
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)))
            .map(str::to_owned)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eighth_service_takes_a_folder_and_no_rust() {
    let home = Home::new();
    let root = home.path().join("ours");
    for part in ["catalog", "plans"] {
        std::fs::create_dir_all(root.join(part)).unwrap();
    }
    let data = home.data();
    let arguments = [
        "dev",
        "--port",
        "0",
        "--json",
        "--data-dir",
        data.to_str().unwrap(),
        "--catalog-dir",
        root.to_str().unwrap(),
    ];
    let mut broker = Broker::start(&home, &arguments, &[]);
    let platform = Platform::dev(&broker, &home);
    let before = platform.get("/v2/catalog").await;
    assert!(
        larder(&before).is_none() && !before.body["services"].as_array().unwrap().is_empty(),
        "{}",
        before.text
    );

    let folder = Folder::drop_into(&root);
    served(&platform, "the new service is in the catalog", |l| {
        l.is_some_and(|l| l["plans"][0]["id"] == PLAN)
    })
    .await;
    let all = platform.get("/v2/catalog").await.body["services"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(
        all,
        before.body["services"].as_array().unwrap().len() + 1,
        "the others are there still"
    );

    // It works like any other.
    let body = json!({"service_id": SERVICE, "plan_id": PLAN, "organization_guid": "o", "space_guid": "s", "parameters": {"persistence": "none"}});
    let made = platform
        .sure("PUT", &format!("{I}?accepts_incomplete=true"), Some(&body))
        .await
        .expect(&[202]);
    assert_eq!(platform.ended(&made, I).await, End::Succeeded);
    let bind = json!({"service_id": SERVICE, "plan_id": PLAN});
    let credentials = platform.sure("PUT", B, Some(&bind)).await.expect(&[201]).body["credentials"].clone();
    clients::write(Service::Redis, &credentials, "salt", "enough").await;
    assert_eq!(
        clients::read(Service::Redis, &credentials, "salt")
            .await
            .as_deref(),
        Some("enough")
    );

    // A change that is right is served; one that is wrong is not, and the log says why, once.
    folder.write("plans/larder/jar.yaml", &plan("A bigger jar"));
    served(&platform, "the new text", |l| {
        l.is_some_and(|l| l["plans"][0]["description"] == "A bigger jar")
    })
    .await;
    let from = home.logged().len();
    folder.write(
        "plans/larder/jar.yaml",
        &plan("Worse").replace("memory: 64Mi", "memory: ${never.heard.of}\nnonsense: 1"),
    );
    let line = logged(
        &home,
        from,
        &["the old one stays", "plans/larder/jar.yaml", "nonsense"],
    )
    .await;
    assert!(line.contains("ERROR"), "{line}");
    folder.write(
        "catalog/larder/process.yaml",
        "command: [\"${bin.server}\", \"${params.unheard_of}\"]\n",
    );
    folder.write("plans/larder/jar.yaml", &plan("A bigger jar"));
    logged(&home, from, &["the old one stays", "catalog/larder/process.yaml"]).await;
    let kept = larder(&platform.get("/v2/catalog").await).expect("the old catalog");
    assert_eq!(kept["plans"][0]["description"], "A bigger jar");
    clients::comes_to(Service::Redis, &credentials, Access::In).await;

    // Ids never change (I-03).
    let process = std::fs::read_to_string(repository().join("catalog/redis/process.yaml")).unwrap();
    folder.write("catalog/larder/process.yaml", &process);
    let from = home.logged().len();
    folder.write(
        "catalog/larder/offering.yaml",
        &offering("77b0f1de-53a1-4f0c-9c65-0d8f6a3a8e99"),
    );
    logged(&home, from, &["larder", SERVICE, "Ids never change"]).await;
    assert_eq!(larder(&platform.get("/v2/catalog").await).unwrap()["id"], SERVICE);

    // C-17: it may leave the catalog; what exists of it can still be read, unbound and deleted.
    folder.take_away();
    served(&platform, "the service is gone from the catalog", |l| l.is_none()).await;
    let again = platform
        .sure(
            "PUT",
            "/v2/service_instances/other?accepts_incomplete=true",
            Some(&body),
        )
        .await;
    assert_eq!(again.status, 400, "{}", again.text);
    assert_eq!(platform.get(I).await.expect(&[200]).body["service_id"], SERVICE);
    assert_eq!(
        platform.get(B).await.expect(&[200]).body["credentials"],
        credentials
    );
    let ids = format!("service_id={SERVICE}&plan_id={PLAN}");
    platform
        .sure("DELETE", &format!("{B}?{ids}"), None)
        .await
        .expect(&[200]);
    clients::comes_to(Service::Redis, &credentials, Access::Refused).await;
    let gone = platform
        .sure("DELETE", &format!("{I}?accepts_incomplete=true&{ids}"), None)
        .await
        .expect(&[202]);
    assert_eq!(platform.ended(&gone, I).await, End::Succeeded);
    assert!(broker.stop().success());
    let wrong = State::dev(&home).await.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
