//! Reaching an instance from outside the cluster: a port on loopback for each endpoint, carried through the API server.
//!
//! What must stay true: every connection gets a stream of its own to a pod that is ready at that moment, because streams
//! break with their pod; listeners are on loopback only, few, closed when idle and when their instance goes.

use super::client::{Ask, Cluster, causes};
use super::kinds::Kinds;
use super::refusal::Refusal;
use super::watch::Watches;
use super::{KubernetesProvisioner, Transport, apply, shape};
use crate::domain::instance::Endpoint;
use crate::ports::{InstanceRef, PortError, PortResult};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tracing::debug;

/// A listener nobody asked for and nobody used for so long is closed.
const IDLE: Duration = Duration::from_mins(10);
/// Most connections through one listener at once.
const CONNECTIONS: usize = 64;
/// Most listeners; beyond it the one that was not used for longest is closed.
const LISTENERS: usize = 256;

/// Instance, host, port.
type Key = (String, String, u16);

struct Forward {
    local: SocketAddr,
    used: Arc<Mutex<Instant>>,
    task: AbortHandle,
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The listeners of this process.
#[derive(Default)]
pub(super) struct Forwards(Mutex<HashMap<Key, Forward>>);

impl Forwards {
    /// Closes the listeners of an instance, and the connections through them.
    pub fn close(&self, iid: &str) {
        self.lock().retain(|key, _| key.0 != iid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Forward>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, key: &Key) -> Option<SocketAddr> {
        let open = self.lock();
        let forward = open.get(key).filter(|forward| !forward.task.is_finished())?;
        *forward.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(forward.local)
    }

    /// Keeps a listener; when another call was faster, its one.
    fn keep(&self, key: Key, forward: Forward) -> SocketAddr {
        if let Some(local) = self.known(&key) {
            return local;
        }
        let mut open = self.lock();
        open.retain(|_, forward| !forward.task.is_finished());
        if open.len() >= LISTENERS {
            let used = |forward: &Forward| *forward.used.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = open
                .iter()
                .min_by_key(|(_, forward)| used(forward))
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                open.remove(&oldest);
            }
        }
        let local = forward.local;
        open.insert(key, forward);
        local
    }
}

/// The way to a Service's port.
struct Way {
    cluster: Arc<Cluster>,
    watches: Arc<Watches>,
    iid: String,
    namespace: String,
    service: String,
    port: u16,
}

impl KubernetesProvisioner {
    pub(super) async fn way_to(&self, instance: &InstanceRef, endpoint: &Endpoint) -> PortResult<Endpoint> {
        let direct = match self.settings.transport {
            Transport::Auto => self.cluster.in_cluster(),
            Transport::Direct => true,
            Transport::PortForward => false,
        };
        let (false, Some((service, namespace))) =
            (direct, inside(&endpoint.host, &self.settings.cluster_domain))
        else {
            return Ok(endpoint.clone());
        };
        let key = (instance.iid.clone(), endpoint.host.clone(), endpoint.port);
        let local = match self.forwards.known(&key) {
            Some(local) => local,
            None => {
                let way = Way {
                    cluster: self.cluster.clone(),
                    watches: self.watches.clone(),
                    iid: instance.iid.clone(),
                    namespace: namespace.to_owned(),
                    service: service.to_owned(),
                    port: endpoint.port,
                };
                self.forwards.keep(key, listen(way).await?)
            }
        };
        Ok(Endpoint {
            name: endpoint.name.clone(),
            host: local.ip().to_string(),
            port: local.port(),
        })
    }
}

/// Service and namespace of a name in the cluster's DNS; `None` = an address of the outside world.
fn inside<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let rest = host
        .strip_suffix(domain.trim_matches('.'))?
        .strip_suffix(".svc.")?;
    rest.split_once('.')
        .filter(|(_, namespace)| !namespace.contains('.'))
}

async fn listen(way: Way) -> PortResult<Forward> {
    let cannot = |error: std::io::Error| {
        PortError::transient("The broker cannot open a port on loopback; trying again.").with_detail(error)
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(cannot)?;
    let local = listener.local_addr().map_err(cannot)?;
    let used = Arc::new(Mutex::new(Instant::now()));
    let task = tokio::spawn(accept(listener, Arc::new(way), used.clone())).abort_handle();
    Ok(Forward { local, used, task })
}

/// Takes connections until nobody used the listener for a while. Connections end with it.
async fn accept(listener: TcpListener, way: Arc<Way>, used: Arc<Mutex<Instant>>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let accepted = timeout(IDLE, listener.accept()).await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(Ok((stream, _))) => {
                *used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                let way = way.clone();
                connections.spawn(async move {
                    if let Err(error) = way.carry(stream).await {
                        debug!(iid = %way.iid, service = %way.service, detail = %error.detail, "a connection to an instance ended");
                    }
                    drop(permit);
                });
            }
            Ok(Err(error)) => debug!(%error, "a connection to an instance could not be accepted"),
            Err(_) => {
                let idle = used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= IDLE;
                if idle && connections.is_empty() {
                    return;
                }
            }
        }
    }
}

impl Way {
    /// Carries one connection, until either side ends it.
    async fn carry(&self, mut near: TcpStream) -> PortResult<()> {
        let (pod, port) = self.pod().await?;
        let lost = |detail: String| {
            PortError::transient("The connection to the instance through the API server broke.")
                .with_detail(detail)
        };
        let pods: Api<Pod> = Api::namespaced(self.cluster.streams().clone(), &self.namespace);
        let opened = timeout(self.cluster.limit(), pods.portforward(&pod, &[port])).await;
        self.cluster.count(
            "portforward",
            "Pod",
            if matches!(opened, Ok(Ok(_))) {
                "2xx"
            } else {
                "error"
            },
        );
        let mut forwarder = opened
            .map_err(|_| lost("no answer in time".to_owned()))?
            .map_err(|error| match error {
                kube::Error::Api(status) => Refusal::of(&status, "portforward", &Kinds::pods(), &pod).into(),
                error => lost(causes(&error)),
            })?;
        let Some(mut far) = forwarder.take_stream(port) else {
            return Err(lost("no stream".to_owned()));
        };
        let carried = copy_bidirectional(&mut near, &mut far).await;
        drop(far);
        forwarder.abort();
        carried.map(drop).map_err(|error| lost(error.to_string()))
    }

    /// A ready pod behind the Service, and its port.
    async fn pod(&self) -> PortResult<(String, u16)> {
        let services = Kinds::services();
        let seen = self
            .watches
            .on(&services)
            .one(&self.iid, &self.namespace, &self.service);
        let service = match seen {
            Ok(Some(service)) => service,
            _ => {
                let asked = self
                    .cluster
                    .ask(&services, &self.namespace, &self.service, Ask::Get);
                asked.await.map_err(PortError::from)?
            }
        };
        let selector = service.pointer("/spec/selector");
        let fits = |pod: &&Value| {
            shape::text(pod, "/metadata/namespace") == self.namespace
                && shape::selects(selector, pod.pointer("/metadata/labels"))
                && is_ready(pod)
        };
        let kind = Kinds::pods();
        let mut pods = self.watches.on(&kind).of(&self.iid).unwrap_or_default();
        pods.sort_by(|a, b| shape::name(a).cmp(shape::name(b)));
        let mut found = pods.iter().find(fits).cloned();
        if found.is_none() {
            // Pods an operator made may not carry our labels.
            let labels = selector.and_then(Value::as_object).into_iter().flatten();
            let labels: Vec<String> = labels
                .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
                .collect();
            let params = ListParams::default().labels(&labels.join(","));
            let listed = self.cluster.list(&kind, &self.namespace, &params, false).await;
            found = listed.map_err(PortError::from)?.iter().find(fits).cloned();
        }
        let pod = found.ok_or_else(|| {
            PortError::transient(format!("No pod of the service {} is ready.", self.service))
        })?;
        let port = target(&service, &pod, self.port).ok_or_else(|| {
            PortError::invalid(format!(
                "The service {} has no port {}; the operator has to mend the catalog.",
                self.service, self.port
            ))
        })?;
        Ok((shape::name(&pod).to_owned(), port))
    }
}

fn is_ready(pod: &Value) -> bool {
    let ready = |c: &Value| shape::text(c, "/type") == "Ready" && shape::text(c, "/status") == "True";
    !apply::is_going(pod) && shape::list(pod, "/status/conditions").iter().any(ready)
}

/// The pod's port behind a Service's port.
fn target(service: &Value, pod: &Value, port: u16) -> Option<u16> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let ports = shape::list(service, "/spec/ports");
    let entry = ports
        .iter()
        .find(|entry| entry.get("port").and_then(number) == Some(port))?;
    match entry.get("targetPort") {
        None => Some(port),
        Some(Value::String(name)) => shape::list(pod, "/spec/containers")
            .iter()
            .flat_map(|container| shape::list(container, "/ports"))
            .find(|named| shape::text(named, "/name") == name)
            .and_then(|named| number(named.get("containerPort")?)),
        Some(value) => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_names_of_the_cluster_are_carried() {
        for (host, found) in [
            ("db.osb-x.svc.cluster.local", Some(("db", "osb-x"))),
            ("db.osb-x.svc.example.org", None),
            ("10.0.0.1", None),
            ("a.b.c.svc.cluster.local", None),
        ] {
            assert_eq!(inside(host, "cluster.local"), found, "{host}");
        }
    }

    #[test]
    fn target_ports_are_numbers_names_or_the_same() {
        let pod = json!({"spec": {"containers": [{"ports": [{"name": "pg", "containerPort": 5432}]}]}});
        let service = json!({"spec": {"ports": [
            {"port": 1, "targetPort": 11}, {"port": 2, "targetPort": "pg"}, {"port": 3}, {"port": 4, "targetPort": "no"},
        ]}});
        let found: Vec<_> = (1..6).map(|port| target(&service, &pod, port)).collect();
        assert_eq!(found, [Some(11), Some(5432), Some(3), None, None]);
    }
}
