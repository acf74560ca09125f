//! Real Vault servers for these tests, and a person with their root token.

use crate::support::{Process, free_port, start_listening};
use chandler::app::install_tls_provider;
use nix::sys::signal::Signal;
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One server.
pub struct Server {
    pub address: String,
    /// Its certificate authority, when it speaks TLS.
    pub ca: Option<Vec<u8>>,
    pub root: String,
    unseal_key: String,
    process: Mutex<Option<Process>>,
    port: u16,
    dir: TempDir,
    client: Client,
}

fn program() -> PathBuf {
    let named = std::env::var_os("VAULT_BIN").map(PathBuf::from);
    named
        .filter(|path| path.exists())
        .expect("set VAULT_BIN: `tests/testbed/up vault` builds Vault and prints this")
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(program());
    command.env_clear().env("HOME", dir).current_dir(dir);
    command
}

fn client(ca: Option<&[u8]>) -> Client {
    install_tls_provider();
    let mut builder = Client::builder().timeout(Duration::from_secs(20)).no_proxy();
    if let Some(pem) = ca {
        builder = builder.add_root_certificate(Certificate::from_pem(pem).unwrap());
    }
    builder.build().unwrap()
}

impl Server {
    /// In memory, unsealed, without TLS; knows the plugins that `VAULT_PLUGINS` names.
    pub fn dev() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-vault-")
            .tempdir()
            .unwrap();
        let root = format!("root-{}", chandler::app::random_token());
        let (process, port) = start_listening(|port| {
            let mut command = command(dir.path());
            command
                .env("VAULT_DEV_ROOT_TOKEN_ID", &root)
                .args(["server", "-dev", "-dev-no-store-token", "-log-level=error"])
                .arg(format!("-dev-listen-address=127.0.0.1:{port}"));
            if let Some(plugins) = std::env::var_os("VAULT_PLUGINS") {
                let mut argument = std::ffi::OsString::from("-dev-plugin-dir=");
                argument.push(plugins);
                command.arg(argument);
            }
            Process::start(&mut command, Signal::SIGKILL)
        });
        Self {
            address: format!("http://127.0.0.1:{port}"),
            ca: None,
            root,
            unseal_key: String::new(),
            process: Mutex::new(Some(process)),
            port,
            dir,
            client: client(None),
        }
    }

    /// With storage that lasts and TLS by an authority of its own; unsealed.
    pub async fn lasting() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("chandler-vault-")
            .tempdir()
            .unwrap();
        let ca = certificates(dir.path());
        let port = free_port();
        let at = dir.path().display();
        let configuration = format!(
            "storage \"raft\" {{\n path = \"{at}/data\"\n node_id = \"one\"\n performance_multiplier = 1\n}}\n\
             listener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n cluster_address = \"127.0.0.1:{}\"\n \
             tls_cert_file = \"{at}/tls.crt\"\n tls_key_file = \"{at}/tls.key\"\n}}\n\
             api_addr = \"https://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{}\"\ndisable_mlock = true\n",
            free_port(),
            free_port()
        );
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("vault.hcl"), configuration).unwrap();
        let mut server = Self {
            address: format!("https://127.0.0.1:{port}"),
            client: client(Some(&ca)),
            ca: Some(ca),
            root: String::new(),
            unseal_key: String::new(),
            process: Mutex::default(),
            port,
            dir,
        };
        server.start().await;
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let (status, keys) = server.ask("PUT", "sys/init", "", Some(&shares)).await;
        assert_eq!(status, 200, "{keys}");
        server.root = keys["root_token"].as_str().unwrap().to_owned();
        server.unseal_key = keys["keys_base64"][0].as_str().unwrap().to_owned();
        server.unseal().await;
        server
    }

    /// Starts a lasting one, which is sealed then.
    pub async fn start(&self) {
        let mut command = command(self.dir.path());
        command
            .args(["server", "-log-level=error"])
            .arg("-config=vault.hcl");
        *self.process.lock().unwrap() = Some(Process::start(&mut command, Signal::SIGKILL));
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the vault does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    pub async fn seal(&self) {
        self.root("PUT", "sys/seal", None).await;
    }

    pub async fn unseal(&self) {
        let key = json!({"key": self.unseal_key});
        let (status, told) = self.ask("PUT", "sys/unseal", "", Some(&key)).await;
        assert_eq!(status, 200, "{told}");
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ask("GET", "sys/health", "", None).await.0 != 200 {
            assert!(Instant::now() < deadline, "the vault does not become active");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Any request, with any token.
    pub async fn ask(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> (u16, Value) {
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}/v1/{path}", self.address));
        if !token.is_empty() {
            request = request.header("x-vault-token", token);
        }
        if let Some(body) = body {
            request = request.header("content-type", kind).body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A request of root, which must succeed.
    pub async fn root(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.ask(method, path, &self.root, body.as_ref()).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The `vault` program with root's token, as an operator uses it.
    pub fn shell(&self, script: &str) -> String {
        let bin = self.dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        if !bin.join("vault").exists() {
            std::os::unix::fs::symlink(program(), bin.join("vault")).unwrap();
        }
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let done = Command::new("sh")
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("VAULT_TOKEN", &self.root)
            .args(["-c", script])
            .output()
            .unwrap();
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            done.status.success(),
            "{}\n{}",
            told(&done.stdout),
            told(&done.stderr)
        );
        told(&done.stdout)
    }
}

/// Makes an authority and a certificate for loopback; the authority is returned.
fn certificates(dir: &Path) -> Vec<u8> {
    let openssl = |arguments: &str| {
        let done = Command::new("openssl")
            .current_dir(dir)
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=ca -addext keyUsage=critical,keyCertSign"
    ));
    openssl(&format!("req {key} -keyout tls.key -out tls.csr -subj /CN=vault"));
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out tls.crt -extfile names",
    );
    std::fs::read(dir.join("ca.crt")).unwrap()
}
