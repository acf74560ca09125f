//! `chandler bootstrap keycloak` and Keycloak's half of `chandler doctor`, as an operator runs them.

use crate::realm::{Realm, variable};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use tempfile::TempDir;

struct Desk {
    dir: TempDir,
}

impl Desk {
    /// A configuration whose files with secrets are all there, except the broker's own for Keycloak.
    fn new(realm: &str, proof: &str) -> Self {
        let desk = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (name, content) in [
            ("password", "correct horse battery"),
            ("vault-token", "a-token-of-the-vault"),
        ] {
            let file = desk.dir.path().join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let key = desk.dir.path().join("key");
        let made = desk
            .command(&["secrets", "new-key", key.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(made.status.success());
        let url = variable("KEYCLOAK_URL");
        let config = format!(
            "store: {{url: 'sqlite://{dir}/db'}}\n\
             provisioner: {{kind: local, local: {{dir: '{dir}/instances'}}}}\n\
             secrets: {{keys: [{{label: one, file: key}}], primary: one}}\n\
             platforms: [{{name: cf, credentials: [{{username: cf, password_file: password}}]}}]\n\
             vault: {{address: 'http://127.0.0.1:1', login: {{kind: token, token_file: vault-token}}}}\n\
             keycloak: {{url: '{url}', realm: {realm}, {proof}: broker/proof}}\n",
            dir = desk.dir.path().display()
        );
        fs::write(desk.dir.path().join("chandler.yaml"), config).unwrap();
        desk
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str], password: &str) -> (Output, String) {
        let output = self
            .command(arguments)
            .args(["--config", "chandler.yaml"])
            .env("KEYCLOAK_ADMIN_PASSWORD", password)
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        // Whatever happens, no secret is told.
        for secret in [password, "correct horse battery", "a-token-of-the-vault"] {
            assert!(!text.contains(secret), "{text}");
        }
        if let Ok(proof) = fs::read_to_string(self.dir.path().join("broker/proof")) {
            let secret = |line: &&str| line.len() > 20 && !line.starts_with("-----");
            assert!(
                !proof.lines().filter(secret).any(|line| text.contains(line)),
                "{text}"
            );
        }
        (output, text)
    }
}

#[tokio::test]
async fn an_operator_sets_up_a_realm_and_looks_at_it() {
    let password = variable("KEYCLOAK_ADMIN_PASSWORD");
    for proof in ["client_secret_file", "private_key_file"] {
        // Only its name: the command makes it, the guard removes it.
        let realm = Realm {
            place: crate::realm::Place::testbed(),
            name: Realm::plan().realm,
        };
        let desk = Desk::new(&realm.name, proof);
        let (done, text) = desk.run(&["bootstrap", "keycloak"], &password);
        assert!(done.status.success(), "{text}");
        assert!(
            text.contains("as good as an administrator of the realm"),
            "{text}"
        );
        assert_eq!(
            realm.admin("GET", "", None).await.0,
            404,
            "printing changes nothing"
        );
        assert!(!desk.dir.path().join("broker/proof").exists());

        let (refused, text) = desk.run(&["bootstrap", "keycloak", "--apply"], "not-the-password");
        assert!(!refused.status.success(), "{text}");
        assert!(text.contains("does not accept"), "{text}");
        let (done, text) = desk.run(&["bootstrap", "keycloak", "--apply"], &password);
        assert!(done.status.success(), "{text}");
        assert!(text.contains("manage-clients and no other"), "{text}");
        let mode = fs::metadata(desk.dir.path().join("broker/proof"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let (done, text) = desk.run(&["bootstrap", "keycloak", "--apply"], &password);
        assert!(done.status.success() && !text.contains("  changed "), "{text}");

        // The vault is not there, which is told beside it.
        let (_, text) = desk.run(&["doctor"], &password);
        let keycloak = text.split("Keycloak:\n").nth(1).expect("a part about Keycloak");
        assert!(keycloak.contains("manage-clients and no other"), "{text}");
        assert!(!keycloak.contains("  error "), "{text}");
    }
}
