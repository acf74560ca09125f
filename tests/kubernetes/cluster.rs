//! The cluster as its administrator sees it, through kubectl.
//!
//! `CHANDLER_TEST_KUBECONFIG`, else `KUBECONFIG`, names the administrator's configuration. The testbed sets the latter,
//! and by `CHANDLER_TESTBED_*` where its kubectl and its images are; another cluster pulls the catalog's own images and
//! is told by `CHANDLER_TEST_TOOLS_IMAGE` of one with psql, redis-cli, curl and nc.

use crate::support::process::repository;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Longest that one kubectl may take.
const LIMIT: Duration = Duration::from_secs(150);

/// kubectl as somebody.
#[derive(Clone)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    /// As the administrator.
    pub fn admin() -> Self {
        let config = ["CHANDLER_TEST_KUBECONFIG", "KUBECONFIG"]
            .into_iter()
            .find_map(std::env::var_os)
            .expect("no cluster: run `make test-real`, or name a kubeconfig in CHANDLER_TEST_KUBECONFIG");
        let program = std::env::var_os("CHANDLER_TESTBED_KUBECTL").unwrap_or_else(|| "kubectl".into());
        Self {
            program: program.into(),
            config: config.into(),
        }
    }

    /// With another configuration.
    pub fn with(&self, config: &Path) -> Self {
        Self {
            program: self.program.clone(),
            config: config.to_owned(),
        }
    }

    /// A kubectl that was not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.config)
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs to the end where nothing can be awaited.
    pub fn now(&self, arguments: &[&str]) -> std::io::Result<Output> {
        std::process::Command::new("timeout")
            .arg(LIMIT.as_secs().to_string())
            .arg(&self.program)
            .arg("--kubeconfig")
            .arg(&self.config)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
    }

    /// Runs to the end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "").await
    }

    /// Runs to the end with this on standard input.
    pub async fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.program.display()));
        let mut stdin = child.stdin.take().unwrap();
        let work = async {
            // One that ends without reading is no error.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        tokio::time::timeout(LIMIT, work)
            .await
            .unwrap_or_else(|_| panic!("kubectl {arguments:?}: no end in {LIMIT:?}"))
    }

    /// Standard output, or what it complained about.
    pub async fn attempt(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(arguments).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr) + &text(&output.stdout))
        }
    }

    /// Standard output of what must succeed.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        self.attempt(arguments)
            .await
            .unwrap_or_else(|why| panic!("kubectl {arguments:?}: {why}"))
    }

    /// `kubectl get … -o json`.
    pub async fn get(&self, arguments: &[&str]) -> Value {
        let all = [&["get", "-o", "json"], arguments].concat();
        serde_json::from_str(&self.ok(&all).await).unwrap()
    }

    /// What `get` finds, by kind and name; those that are not there are fine.
    pub async fn names(&self, arguments: &[&str]) -> Vec<String> {
        let all = [&["get", "-o", "name", "--ignore-not-found"], arguments].concat();
        self.ok(&all).await.lines().map(str::to_owned).collect()
    }

    /// Applies manifests, by server-side apply.
    pub async fn apply(&self, manifests: &str) {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let output = self.run_with(&arguments, manifests).await;
        assert!(
            output.status.success(),
            "kubectl apply: {}\n{manifests}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The same for an object.
    pub async fn apply_object(&self, object: &Value) {
        self.apply(&object.to_string()).await;
    }
}

/// Reference of an image by the name the testbed knows it by, if it was made there.
pub fn image(name: &str) -> Option<String> {
    let images = testbed_images()?;
    images.get(name).cloned()
}

/// The image of applications in tests: psql, redis-cli, curl, nc.
pub fn tools_image() -> String {
    image("tools")
        .or_else(|| std::env::var("CHANDLER_TEST_TOOLS_IMAGE").ok())
        .expect("CHANDLER_TEST_TOOLS_IMAGE must name an image with psql, redis-cli, curl and nc")
}

/// The testbed's images by short name; none on a cluster that pulls images.
fn testbed_images() -> Option<BTreeMap<String, String>> {
    let file = std::env::var_os("CHANDLER_TESTBED_IMAGES")?;
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    Some(pairs.map(|(k, v)| (k.into(), v.trim().into())).collect())
}

/// For the setting `images.replace`: what the catalog names → what the testbed has.
pub fn replacements() -> BTreeMap<String, String> {
    let names = [
        ("docker.io/library/postgres", "postgres"),
        ("docker.io/valkey/valkey", "redis"),
        ("docker.io/library/nats", "nats"),
        ("docker.io/library/cassandra", "cassandra"),
        ("docker.io/pgsty/minio", "minio"),
    ];
    names
        .into_iter()
        .filter_map(|(catalog, here)| Some((catalog.to_owned(), image(here)?)))
        .collect()
}

/// Programs of the testbed's own node can be stopped; those of another cluster cannot.
pub struct Component(&'static str);

impl Component {
    /// A program of the node; `None` on a cluster that is not the testbed.
    pub fn of_testbed(name: &'static str) -> Option<Self> {
        std::env::var_os("CHANDLER_TESTBED_RUN").map(|_| Self(name))
    }

    fn act(&self, verb: &str) {
        let done = std::process::Command::new("timeout")
            .arg("180")
            .arg(repository().join("tests/testbed/kubernetes/component"))
            .args([verb, self.0])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{verb} {}: {}",
            self.0,
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// Ends it without warning.
    pub async fn kill(&self) {
        tokio::task::block_in_place(|| self.act("kill"));
    }

    /// Starts it, and waits until it answers.
    pub async fn start(&self) {
        tokio::task::block_in_place(|| self.act("start"));
    }
}

impl Drop for Component {
    /// However a test ends, the node is whole again.
    fn drop(&mut self) {
        self.act("start");
    }
}
