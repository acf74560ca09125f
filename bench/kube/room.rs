//! A broker's place in the cluster: an account with exactly the rights it needs, and a way to count what it sends.
//!
//! What must stay true: nothing here is shared with anybody else on the node (names hold this process's id), and
//! everything is removed, also when the benchmark fails or is interrupted.

use crate::broker::{self, Broker};
use crate::cluster::{Cluster, Metrics};
use crate::rows::guid;
use anyhow::{Context, Result, bail};
use chandler::domain::names::iid;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for rights to be in force.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be removed: kind and name, in order.
static MADE: Mutex<Vec<(&str, String)>> = Mutex::new(Vec::new());

fn made() -> MutexGuard<'static, Vec<(&'static str, String)>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes everything rooms have made in the cluster. For the end, and for an interrupt, which waits for the other.
pub fn clean() {
    let mut all = made();
    while let Some((kind, name)) = all.pop() {
        let gone = match kind {
            "file" => kubectl(&["delete", "--ignore-not-found", "--wait=false", "-f", &name], ""),
            kind => kubectl(&["delete", kind, &name, "--ignore-not-found", "--wait=false"], ""),
        };
        if let Err(error) = gone {
            eprintln!("warning: {kind} {name} may be left in the cluster: {error:#}");
        }
    }
}

/// How instances are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenancy {
    /// A namespace for each.
    Own,
    /// One for all.
    Shared,
}

/// Requests so far.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// As the broker counts them.
    pub broker: f64,
    /// Those of them that the API server's figure leaves out: tunnels to pods.
    pub tunnels: f64,
    /// As the API server counts those of the broker's account.
    pub server: f64,
}

impl Counts {
    /// How far apart the two counts are since `before`.
    pub fn apart(&self, before: &Self) -> f64 {
        ((self.broker - self.tunnels - self.server) - (before.broker - before.tunnels - before.server)).abs()
    }
}

/// A place for a broker.
pub struct Room {
    /// As an administrator.
    pub admin: Cluster,
    /// As the broker's account.
    pub account: Cluster,
    /// The namespace of all instances, when they share one.
    pub shared: String,
    dir: PathBuf,
    config: Value,
    /// The flow of the account's requests, which the API server counts apart from all others.
    flow: String,
}

impl Room {
    /// Makes a place called `word`. `catalog` is a directory of offerings; none = those of the repository.
    pub fn open(dir: &Path, word: &str, tenancy: Tenancy, catalog: Option<&Path>) -> Result<Self> {
        let kubeconfig =
            std::env::var_os("KUBECONFIG").context("KUBECONFIG is not set: run bench/kube.sh")?;
        let admin = Cluster::open(Path::new(&kubeconfig))?;
        let dir = dir.join(word);
        fs::create_dir(&dir)?;
        let home = format!("chandler-bench-{}-{word}", std::process::id());
        let shared = match tenancy {
            Tenancy::Own => String::new(),
            Tenancy::Shared => format!("{home}-all"),
        };
        let (password, key) = broker::secrets(&dir)?;
        let config = json!({
            "store": {"url": format!("sqlite://{}", broker::database(&dir).display())},
            "catalog": {
                "builtin": false,
                "dirs": [catalog.map_or_else(broker::catalog_dir, Path::to_owned)],
            },
            "secrets": {"keys": [{"label": "bench", "file": key}]},
            "platforms": [{"name": "bench", "credentials": [{"username": "bench", "password_file": password}]}],
            "provisioner": {
                "kind": "kubernetes",
                "kubernetes": {
                    "kubeconfig": dir.join("kubeconfig"),
                    "broker_namespace": home,
                    "tenancy": match tenancy {
                        Tenancy::Own => "instance",
                        Tenancy::Shared => "shared",
                    },
                    "namespace": shared,
                    "images": {"replace": images()?},
                },
            },
        });
        let account = rights(&dir, &config, &home, &shared)?;
        let room = Self {
            admin,
            account,
            shared,
            dir,
            config,
            flow: home.clone(),
        };
        let began = Instant::now();
        let whole = format!("--as=system:serviceaccount:{home}:broker");
        let place = if room.shared.is_empty() {
            "default"
        } else {
            &room.shared
        };
        // In force for the measured ones too: its flow is counted from here on.
        while kubectl(&["auth", "can-i", "create", "secrets", "-n", place, &whole], "").is_err()
            || room.of_server(&room.admin.metrics()?) == 0.0
        {
            if began.elapsed() > PATIENCE {
                bail!("the rights of the broker's account are not in force");
            }
            let _ = room.account.text("/version");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(room)
    }

    /// Starts the broker; again after it ended, on the same database.
    pub fn broker(&self) -> Result<Broker> {
        let address = broker::free_port()?;
        let mut config = self.config.clone();
        config["http"] = json!({"listen": address});
        let file = self.dir.join("chandler.yaml");
        fs::write(&file, config.to_string())?;
        let mut command = broker::program();
        command.args(["serve", "--config"]).arg(&file);
        Broker::start(command, &self.dir, address, "bench")
    }

    /// The broker's database.
    pub fn database(&self) -> PathBuf {
        broker::database(&self.dir)
    }

    /// The `n`th instance, no other process's: the platform's id, and the broker's own, with which its namespace goes
    /// at the end.
    pub fn instance(&self, n: u64) -> (String, String) {
        let id = guid((u64::from(std::process::id()) << 20) + n);
        let own = iid("bench", &id);
        if self.shared.is_empty() {
            made().push(("namespace", format!("osb-{own}")));
        }
        (id, own)
    }

    /// What a broker counts.
    pub fn of_broker(broker: &Broker) -> Result<Metrics> {
        let answer = broker.call("GET", "/metrics", "")?;
        Ok(Metrics(String::from_utf8(answer.body)?))
    }

    /// Requests so far, on both sides.
    pub fn counts(&self, broker: &Broker) -> Result<Counts> {
        let sent = Self::of_broker(broker)?;
        Ok(Counts {
            broker: sent.sum(SENT, &[]),
            tunnels: sent.sum(SENT, &[("verb", "portforward")]),
            server: self.of_server(&self.admin.metrics()?),
        })
    }

    fn of_server(&self, metrics: &Metrics) -> f64 {
        ["dispatched", "rejected"]
            .into_iter()
            .map(|word| {
                let name = format!("apiserver_flowcontrol_{word}_requests_total");
                metrics.sum(&name, &[("flow_schema", &self.flow)])
            })
            .sum()
    }
}

/// The broker's count of requests to the API server.
pub const SENT: &str = "chandler_kubernetes_requests_total";

/// Makes the account with exactly the rights `chandler rbac` prints, and its way to the API server.
fn rights(dir: &Path, config: &Value, home: &str, shared: &str) -> Result<Cluster> {
    made().push(("namespace", home.to_owned()));
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "broker", "namespace": home}}),
        // The same priority as every service account; only the counting is apart.
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": home},
            "spec": {
                "priorityLevelConfiguration": {"name": "workload-low"},
                "matchingPrecedence": 7000,
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [{
                    "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"namespace": home, "name": "broker"}}],
                    "resourceRules": [{
                        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                        "clusterScope": true, "namespaces": ["*"],
                    }],
                    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                }],
            },
        }),
    ];
    made().push(("flowschema", home.to_owned()));
    if !shared.is_empty() {
        made().push(("namespace", shared.to_owned()));
        let labels = json!({"app.kubernetes.io/managed-by": "chandler"});
        let metadata = json!({"name": shared, "labels": labels});
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl(&["apply", "-f", "-"], &list.to_string())?;
    let token = kubectl(&["-n", home, "create", "token", "broker", "--duration=2h"], "")?;
    let known: Value = serde_json::from_str(&kubectl(
        &["config", "view", "--raw", "--minify", "-o", "json"],
        "",
    )?)?;
    let kubeconfig = dir.join("kubeconfig");
    let access = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": known["clusters"][0]["cluster"]}],
        "users": [{"name": "bench", "user": {"token": token.trim()}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    });
    broker::secret_file(&kubeconfig, &access.to_string())?;
    let file = dir.join("chandler.yaml");
    fs::write(&file, config.to_string())?;
    let printed = broker::program()
        .args(["rbac", "--service-account", &format!("{home}/broker"), "--config"])
        .arg(&file)
        .output()?;
    if !printed.status.success() {
        bail!("chandler rbac: {}", String::from_utf8_lossy(&printed.stderr));
    }
    let rights = dir.join("rights.yaml");
    fs::write(&rights, printed.stdout)?;
    let path = rights.display().to_string();
    made().push(("file", path.clone()));
    kubectl(&["apply", "-f", &path], "")?;
    Cluster::open(&kubeconfig)
}

/// The testbed's images in the place of those the catalog names: no registry is to be had there.
fn images() -> Result<Value> {
    let file = std::env::var("CHANDLER_TESTBED_IMAGES").context("CHANDLER_TESTBED_IMAGES is not set")?;
    let mut replace = serde_json::Map::new();
    for line in fs::read_to_string(file)?.lines() {
        let Some((name, image)) = line.split_once(": ") else {
            continue;
        };
        if ["postgres", "nats"].contains(&name) {
            replace.insert(format!("docker.io/library/{name}"), image.into());
        } else if name == "redis" {
            replace.insert("docker.io/valkey/valkey".into(), image.into());
        }
    }
    Ok(replace.into())
}

/// Runs kubectl and gives what it printed.
pub fn kubectl(arguments: &[&str], input: &str) -> Result<String> {
    let program = std::env::var("CHANDLER_TESTBED_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let mut child = Command::new(program)
        .arg("--request-timeout=60s")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubectl cannot be started")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    if !ended.status.success() {
        bail!(
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&ended.stderr).trim()
        );
    }
    Ok(String::from_utf8(ended.stdout)?)
}
