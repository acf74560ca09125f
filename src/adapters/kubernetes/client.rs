//! The way to the API server: one client, a bound on requests in flight, a time-out on each, and a count.
//!
//! What must stay true: every request that is no watch and no port-forward goes through [`Cluster::ask`]. The library's
//! own retries are off (they would go on for minutes, for every method); here a request is sent again only when the
//! server said that it did not look at it, within the time of one call. Answers are never logged: they may be Secrets.

use super::KubernetesSettings;
use super::kinds::Resource;
use super::names;
use super::pulse::{self, Pulse};
use super::refusal::Refusal;
use crate::ports::{PortError, PortResult};
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, WatchParams};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::request::Request;
use kube::{Client, Config};
use serde_json::{Value, json};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// How often one call sends its request at most.
const TRIES: u32 = 4;
/// Pause before a request is sent again, where the server names none; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause that a call waits out itself; beyond it the engine comes back later.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Field manager of changes that are no desired state: volumes grown, labels of what is kept.
const HAND: &str = "chandler-hand";

/// What to ask the API server for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask<'a> {
    /// The object.
    Get,
    /// What identifies and labels the object, without its content.
    Meta,
    /// A page of objects.
    List(&'a ListParams),
    /// A page of objects without their content.
    ListMeta(&'a ListParams),
    /// Make the object like this; what others own in it is taken over. Answered without its content.
    Apply(&'a Value),
    /// Make the object like this under another field manager, unless somebody else owns what is named in it. Answered
    /// without its content.
    Claim {
        /// The object.
        object: &'a Value,
        /// The field manager.
        manager: &'a str,
        /// Take over what others own in it.
        force: bool,
    },
    /// What identifies and labels the object and who owns what of it, by a change that changes nothing: for where there
    /// is no right to read.
    Peek,
    /// What [`Ask::Apply`] would make, without making it.
    Rehearse(&'a Value),
    /// Change these members.
    Merge(&'a Value),
    /// Remove it.
    Delete(&'a DeleteParams),
}

impl Ask<'_> {
    fn verb(self) -> &'static str {
        match self {
            Self::Get | Self::Meta => "get",
            Self::List(_) | Self::ListMeta(_) => "list",
            Self::Apply(_) | Self::Claim { .. } => "apply",
            Self::Peek => "peek",
            Self::Rehearse(_) => "rehearse",
            Self::Merge(_) => "patch",
            Self::Delete(_) => "delete",
        }
    }
}

/// An answer: status, seconds of `Retry-After`, body.
type Answer = (u16, Option<u64>, Vec<u8>);

/// The API server.
pub(super) struct Cluster {
    client: Client,
    permits: Semaphore,
    limit: Duration,
    sent: AtomicU64,
    pulse: Pulse,
    in_cluster: bool,
}

impl Cluster {
    /// Reads how to reach the cluster; sends nothing.
    pub async fn open(settings: &KubernetesSettings) -> PortResult<Self> {
        let (mut config, in_cluster) = configuration(settings).await?;
        config.connect_timeout = Some(settings.request_limit);
        config.write_timeout = Some(settings.request_limit);
        config.default_retry = false;
        Ok(Self {
            client: ClientBuilder::try_from(config).map_err(unusable)?.build(),
            permits: Semaphore::new(settings.requests_at_once.max(1)),
            limit: settings.request_limit,
            sent: AtomicU64::new(0),
            pulse: Pulse::default(),
            in_cluster,
        })
    }

    /// Whether this process runs in the cluster it talks to.
    pub fn in_cluster(&self) -> bool {
        self.in_cluster
    }

    /// The client, for streams: watches and port-forwards neither hold a permit nor end in time.
    pub fn streams(&self) -> &Client {
        &self.client
    }

    /// How long one request may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How many requests were sent, watches among them.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Counts a request. `kind` is one of the catalog's or the adapter's own, so it may be a label.
    pub fn count(&self, verb: &'static str, kind: &str, outcome: &'static str) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let labels = [
            ("verb", verb.to_owned()),
            ("kind", kind.to_owned()),
            ("outcome", outcome.to_owned()),
        ];
        metrics::counter!("chandler_kubernetes_requests_total", &labels).increment(1);
    }

    /// Asks about the object `name` in `namespace`; both empty where they do not apply.
    pub async fn ask(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        ask: Ask<'_>,
    ) -> Result<Value, Refusal> {
        let refusal = |status: u16, text: &str| Refusal::new(status, text, ask.verb(), resource, name);
        let end = Instant::now() + self.limit;
        let Ok(Ok(_permit)) = timeout_at(end, self.permits.acquire()).await else {
            return Err(refusal(0, "too many requests are on their way"));
        };
        let mut pause = PAUSE;
        let mut tries = 1;
        loop {
            let answer = timeout_at(end, self.send(resource, namespace, name, ask)).await;
            let (status, after, body) = match answer {
                Ok(Ok(answer)) => answer,
                Ok(Err(why)) => {
                    self.count(ask.verb(), &resource.kind, "error");
                    return Err(refusal(0, &why));
                }
                Err(_) => {
                    self.count(ask.verb(), &resource.kind, "error");
                    return Err(refusal(0, "no answer in time"));
                }
            };
            self.count(ask.verb(), &resource.kind, class(status));
            if pulse::is_its_own(status) {
                self.heard();
            }
            if (200..300).contains(&status) {
                // What a parser says of a text may quote it, and this one may be a Secret.
                return serde_json::from_slice(&body).map_err(|_| refusal(0, "the answer is not JSON"));
            }
            let refused = Refusal::read(status, after, &body, ask.verb(), resource, name);
            match refused.again_after(pause) {
                Some(wait) if tries < TRIES && wait <= LONGEST_PAUSE && Instant::now() + wait < end => {
                    sleep(wait).await;
                    pause *= 2;
                    tries += 1;
                }
                _ => return Err(refused),
            }
        }
    }

    async fn send(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        ask: Ask<'_>,
    ) -> Result<Answer, String> {
        let request = Request::new(resource.path(namespace));
        let get = GetParams::default();
        let ours = PatchParams::apply(names::FIELD_MANAGER).force();
        let built = match ask {
            Ask::Get => request.get(name, &get),
            Ask::Meta => request.get_metadata(name, &get),
            Ask::List(params) => request.list(params),
            Ask::ListMeta(params) => request.list_metadata(params),
            Ask::Apply(object) => request.patch_metadata(name, &ours, &Patch::Apply(object)),
            Ask::Claim {
                object,
                manager,
                force,
            } => {
                let theirs = PatchParams {
                    force,
                    ..PatchParams::apply(manager)
                };
                request.patch_metadata(name, &theirs, &Patch::Apply(object))
            }
            Ask::Peek => {
                let rehearsal = PatchParams::default().dry_run();
                request.patch_metadata(name, &rehearsal, &Patch::Merge(json!({})))
            }
            Ask::Rehearse(object) => request.patch(name, &ours.dry_run(), &Patch::Apply(object)),
            Ask::Merge(change) => {
                let manager = PatchParams {
                    field_manager: Some(HAND.to_owned()),
                    ..PatchParams::default()
                };
                request.patch_metadata(name, &manager, &Patch::Merge(change))
            }
            Ask::Delete(params) => request.delete(name, params),
        };
        let request = built.map_err(|error| causes(&error))?;
        let answer = self
            .client
            .send(request.map(Body::from))
            .await
            .map_err(|error| causes(&error))?;
        let status = answer.status().as_u16();
        let after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let body = answer.into_body().collect_bytes().await;
        Ok((status, after, body.map_err(|error| causes(&error))?.to_vec()))
    }

    /// Every object of a kind in `namespace` (empty: in all), page by page; `meta` leaves their content out.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        params: &ListParams,
        meta: bool,
    ) -> Result<Vec<Value>, Refusal> {
        let mut params = params.clone().limit(PAGE);
        let mut all = Vec::new();
        loop {
            let ask = if meta {
                Ask::ListMeta(&params)
            } else {
                Ask::List(&params)
            };
            let mut page = self.ask(resource, namespace, "", ask).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                all.extend(items);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => params = params.continue_token(token),
                _ => return Ok(all),
            }
        }
    }

    /// Opens a watch from `version`: lines of JSON, until the server ends it after `seconds`.
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: &str,
        labels: &str,
        version: &str,
        seconds: u32,
    ) -> Result<impl futures::AsyncBufRead + Send + use<>, Refusal> {
        let refusal = |text: &str| Refusal::new(0, text, "watch", resource, "");
        let params = WatchParams::default().labels(labels).timeout(seconds);
        let request = Request::new(resource.path(namespace))
            .watch(&params, version)
            .map_err(|error| refusal(&causes(&error)))?;
        let end = Instant::now() + self.limit;
        let opened = match timeout_at(end, self.client.request_stream(request)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(kube::Error::Api(status))) => Err(Refusal::of(&status, "watch", resource, "")),
            Ok(Err(error)) => Err(refusal(&causes(&error))),
            Err(_) => Err(refusal("no answer in time")),
        };
        let outcome = opened
            .as_ref()
            .map_or_else(|refused| class(refused.status), |_| "2xx");
        self.count("watch", &resource.kind, outcome);
        if opened.is_ok() {
            self.heard();
        }
        opened
    }

    /// The server said something: an answer, or a line of a watch.
    pub fn heard(&self) {
        self.pulse.heard();
    }

    /// `Ok` when the server was heard within the time of one request, or answers now: only then what the watches show is
    /// how things are.
    pub async fn is_there(&self) -> PortResult<()> {
        self.pulse.check(self.limit, self.version()).await
    }

    /// The version of the API server, such as `v1.34.1`.
    pub async fn version(&self) -> Result<String, Refusal> {
        let (place, all) = (Resource::server("/version"), ListParams::default());
        let version = self.ask(&place, "", "", Ask::List(&all)).await?;
        let text = version.get("gitVersion").and_then(Value::as_str);
        Ok(text.unwrap_or_default().to_owned())
    }
}

/// Objects in one page: small enough that a thousand instances need no memory to speak of.
pub(super) const PAGE: u32 = 250;

/// The class of a status, or `error` when there was none.
fn class(status: u16) -> &'static str {
    match status {
        200..300 => "2xx",
        404 => "404",
        409 => "409",
        429 => "429",
        400..500 => "4xx",
        500..600 => "5xx",
        _ => "error",
    }
}

/// An error with everything below it: a bare "client error (Connect)" helps nobody.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        below = cause.source();
    }
    text
}

/// The configuration that was named; else what kubectl would use; else the pod's own service account.
async fn configuration(settings: &KubernetesSettings) -> PortResult<(Config, bool)> {
    let options = KubeConfigOptions {
        context: settings.context.clone(),
        ..KubeConfigOptions::default()
    };
    if let Some(file) = &settings.kubeconfig {
        let read = Kubeconfig::read_from(file).map_err(unusable)?;
        let config = Config::from_custom_kubeconfig(read, &options).await;
        return Ok((config.map_err(unusable)?, false));
    }
    match Config::from_kubeconfig(&options).await {
        Ok(config) => Ok((config, false)),
        Err(_) if settings.context.is_none() => match Config::incluster() {
            Ok(config) => Ok((config, true)),
            Err(error) => Err(unusable(error)),
        },
        Err(error) => Err(unusable(error)),
    }
}

fn unusable(error: impl Display) -> PortError {
    PortError::invalid("The broker's access to the Kubernetes cluster is not set up right; the operator has to look at `provisioner.kubernetes`.")
        .with_detail(error)
}
