//! The broker's log-in with real tokens of a cluster's service accounts.

use super::{Realm, Server, apply, binding, settings, vault_of};
use chandler::adapters::vault::{BrokerLogIn, LogIn, Setup};
use chandler::ports::{BindingVault, PortErrorKind};
use serde_json::Value;
use std::process::Command;

/// A namespace with two service accounts, gone when this drops.
struct Accounts {
    namespace: String,
}

fn kubectl(arguments: &[&str]) -> String {
    let program = std::env::var("CHANDLER_TESTBED_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let done = Command::new(program).args(arguments).output().expect("a kubectl");
    assert!(
        done.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

impl Accounts {
    fn new() -> Self {
        let namespace = format!("vault-login-{}", &chandler::app::random_token()[..8]);
        kubectl(&["create", "namespace", &namespace]);
        let accounts = Self { namespace };
        for name in ["broker", "other"] {
            kubectl(&["-n", &accounts.namespace, "create", "serviceaccount", name]);
            // The vault asks the cluster about a token with that very token.
            let account = format!("--serviceaccount={}:{name}", accounts.namespace);
            let binding = format!("{}-{name}", accounts.namespace);
            kubectl(&[
                "create",
                "clusterrolebinding",
                &binding,
                "--clusterrole=system:auth-delegator",
                &account,
            ]);
        }
        accounts
    }

    /// A token for one audience beside the cluster's own, which it needs to ask about itself.
    fn token(&self, account: &str, audience: &str) -> String {
        let audience = format!("--audience={audience}");
        let own = "--audience=https://kubernetes.default.svc";
        kubectl(&["-n", &self.namespace, "create", "token", account, &audience, own])
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        for name in ["broker", "other"] {
            kubectl(&[
                "delete",
                "clusterrolebinding",
                &format!("{}-{name}", self.namespace),
                "--wait=false",
            ]);
        }
        kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

#[tokio::test]
#[ignore = "needs a Kubernetes node and Vault's plugin for it"]
async fn a_pods_token_logs_in() {
    assert!(
        std::env::var_os("VAULT_PLUGINS").is_some(),
        "set VAULT_PLUGINS: `tests/testbed/up vault` prints it"
    );
    let accounts = Accounts::new();
    let (server, realm) = (Server::dev(), Realm::new());
    let dir = tempfile::tempdir().unwrap();
    let cluster: Value = serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
    let cluster = &cluster["clusters"][0]["cluster"];
    let ca = cluster["certificate-authority-data"].as_str().map(|data| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(data).unwrap()
    });
    let ca = ca.unwrap_or_else(|| std::fs::read(cluster["certificate-authority"].as_str().unwrap()).unwrap());
    let file = dir.path().join("token");
    let login = LogIn::Kubernetes {
        mount: "kubernetes".to_owned(),
        role: "osb-broker".to_owned(),
        token_file: file.clone(),
    };
    let setup = Setup {
        settings: settings(&server, login.clone()),
        provider: realm.provider(),
        audience: "osb-vault".to_owned(),
        broker: BrokerLogIn::Kubernetes {
            mount: "kubernetes".to_owned(),
            role: "osb-broker".to_owned(),
            namespace: accounts.namespace.clone(),
            service_account: "broker".to_owned(),
            audience: Some("vault".to_owned()),
            host: cluster["server"].as_str().unwrap().to_owned(),
            ca: Some(String::from_utf8(ca).unwrap()),
        },
    };
    apply(&setup, &server).await;
    let changes = apply(&setup, &server).await;
    assert!(
        changes
            .iter()
            .all(|(_, change)| *change == chandler::adapters::vault::Change::Nothing),
        "{changes:?}"
    );

    let vault = vault_of(settings(&server, login.clone()));
    std::fs::write(&file, accounts.token("broker", "vault")).unwrap();
    assert_eq!(vault.generation(&binding(1)).await.unwrap(), None);
    // The cluster exchanges the file while the broker runs.
    std::fs::write(&file, accounts.token("broker", "vault")).unwrap();
    server
        .root("PUT", "sys/leases/revoke-prefix/auth/kubernetes/login", None)
        .await;
    assert_eq!(vault.generation(&binding(1)).await.unwrap(), None);

    for (what, token) in [
        ("another account", accounts.token("other", "vault")),
        ("another audience", accounts.token("broker", "somebody-else")),
        ("no token", "none".to_owned()),
    ] {
        std::fs::write(&file, token).unwrap();
        let error = vault_of(settings(&server, login.clone()))
            .generation(&binding(1))
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Transient, "{what}: {error:?}");
        assert!(
            error.message.contains("not let the broker in"),
            "{what}: {error:?}"
        );
    }
}
