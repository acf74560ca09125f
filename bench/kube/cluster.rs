//! The cluster seen from outside the broker: what is in it, and what its API server counted.
//!
//! One client with its own runtime, so that the measuring code around it stays in plain steps.

use anyhow::{Context, Result};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Who applies in the loop that the broker is compared with, and who opens gates.
const MANAGER: &str = "chandler-bench";
/// Seconds the API server keeps a watch open: longer than any single measurement.
const WATCHED: u32 = 290;

/// One thing to be done, for [`Cluster::each`].
#[derive(Debug, Clone)]
pub enum Act {
    /// Server-side apply of an object, as the broker does it.
    Apply(String, String, Arc<Value>),
    /// Change these members.
    Merge(String, String, Arc<Value>),
    /// Remove all objects with these labels.
    Clear(String, String),
}

/// A way to the API server under one name.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// Reads how to reach the cluster.
    pub fn open(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let read = Kubeconfig::read_from(kubeconfig)?;
        let mut config = runtime.block_on(Config::from_custom_kubeconfig(
            read,
            &KubeConfigOptions::default(),
        ))?;
        config.default_retry = false;
        let client = {
            // The client starts a task of its own.
            let _inside = runtime.enter();
            ClientBuilder::try_from(config)?.build()
        };
        Ok(Self { runtime, client })
    }

    /// What is served at `path`, as text.
    pub fn text(&self, path: &str) -> Result<String> {
        let request = Request::new(path).list(&ListParams::default())?;
        let text = self.runtime.block_on(self.client.request_text(request));
        text.with_context(|| format!("GET {path}"))
    }

    /// Objects with these labels below `path`.
    pub fn list(&self, path: &str, labels: &str) -> Result<Vec<Value>> {
        let request = Request::new(path).list(&ListParams::default().labels(labels))?;
        let mut list: Value = self.runtime.block_on(self.client.request(request))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    /// What the API server counts.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics(self.text("/metrics")?))
    }

    /// Does everything, `at_once` on their way at any time, and gives how long it took. Any refusal ends it.
    pub fn each(&self, acts: Vec<Act>, at_once: usize) -> Result<Duration> {
        let began = Instant::now();
        self.runtime.block_on(async {
            futures::stream::iter(acts)
                .map(|act| act.done(&self.client))
                .buffer_unordered(at_once)
                .try_for_each(|()| async { Ok(()) })
                .await
        })?;
        Ok(began.elapsed())
    }

    /// Notes from now on when pods of a namespace get ready.
    pub fn pods(&self, namespace: &str) -> Pods {
        let ready: Seen = Arc::default();
        let (client, noted) = (self.client.clone(), ready.clone());
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let task = self.runtime.spawn(async move {
            // Without an end: who measures fails when no pod was seen.
            let _ = follow(&client, &path, &noted).await;
        });
        Pods { task, ready }
    }
}

impl Act {
    async fn done(self, client: &Client) -> Result<()> {
        let (request, what) = match &self {
            Self::Apply(path, name, object) => {
                let params = PatchParams::apply(MANAGER).force();
                let request =
                    Request::new(path.clone()).patch_metadata(name, &params, &Patch::Apply(&**object));
                (request, name)
            }
            Self::Merge(path, name, change) => {
                let params = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let request =
                    Request::new(path.clone()).patch_metadata(name, &params, &Patch::Merge(&**change));
                (request, name)
            }
            Self::Clear(path, labels) => {
                let which = ListParams::default().labels(labels);
                let request =
                    Request::new(path.clone()).delete_collection(&DeleteParams::background(), &which);
                (request, path)
            }
        };
        let answer = client.request_text(request?).await;
        answer.map(drop).with_context(|| what.clone())
    }
}

/// When each pod was first seen ready.
type Seen = Arc<Mutex<BTreeMap<String, Instant>>>;

/// Pods that are watched.
pub struct Pods {
    task: JoinHandle<()>,
    ready: Seen,
}

impl Pods {
    /// When the last of them was seen ready for the first time; none when none ever was.
    pub fn last_ready(&self) -> Option<Instant> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.values().max().copied()
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(client: &Client, path: &str, noted: &Seen) -> Result<()> {
    let request = Request::new(path).watch(&WatchParams::default().timeout(WATCHED), "0")?;
    let stream = client.request_stream(request).await?;
    let mut lines = std::pin::pin!(stream.lines());
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_str(&line?)?;
        let pod = &event["object"];
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        if let (true, Some(name)) = (ready, pod["metadata"]["name"].as_str()) {
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.entry(name.to_owned()).or_insert_with(Instant::now);
        }
    }
    Ok(())
}

/// Metrics in the Prometheus text format.
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all samples of `name` that carry these labels.
    pub fn sum(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let samples = self.samples(name);
        samples
            .filter(|(labels, _)| with.iter().all(|(key, value)| has(labels, key, value)))
            .map(|(_, value)| value)
            .sum()
    }

    /// The samples of `name` that carry these labels, summed by what the label `by` says.
    pub fn by(&self, name: &str, with: &[(&str, &str)], by: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (labels, value) in self.samples(name) {
            if with.iter().all(|(key, value)| has(labels, key, value)) {
                let opening = format!("{by}=\"");
                let word = labels
                    .split_once(&opening)
                    .and_then(|(_, rest)| rest.split('"').next());
                *sums.entry(word.unwrap_or_default().to_owned()).or_insert(0.0) += value;
            }
        }
        sums
    }

    fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some((labels, value.trim().parse().ok()?))
        })
    }
}

fn has(labels: &str, key: &str, value: &str) -> bool {
    labels
        .split(',')
        .any(|label| label == format!("{key}=\"{value}\""))
}
