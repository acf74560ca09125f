//! What a plan may use at most, computed from its own objects, so that the two cannot disagree.
//!
//! The quota is a backstop, not a squeeze: a fifth more than the plan needs, and always room for one more pod and one
//! more volume, because rolling updates, hooks and operators make them. Processors are bounded by what pods ask for,
//! not by limits: a limit there would slow databases that have the machine to themselves.

use super::{quantity, shape};
use serde_json::{Map, Value, json};

/// What a container that says nothing asks for.
const DEFAULT_CPU: i128 = 50;
const DEFAULT_MEMORY: i128 = 1_000 * (64 << 20);
/// The least memory limit a container gets that names none.
const LEAST_LIMIT: i128 = 1_000 * (256 << 20);

/// Thousandths of processors and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Room {
    cpu: i128,
    memory: i128,
    limit: i128,
}

impl Room {
    fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            memory: self.memory + other.memory,
            limit: self.limit + other.limit,
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            memory: self.memory.max(other.memory),
            limit: self.limit.max(other.limit),
        }
    }

    fn times(self, n: i128) -> Self {
        Self {
            cpu: self.cpu * n,
            memory: self.memory * n,
            limit: self.limit * n,
        }
    }
}

/// Everything a plan's objects ask for.
#[derive(Debug, Default)]
struct Demand {
    pods: i128,
    rooms: Room,
    largest: Room,
    claims: i128,
    storage: i128,
    largest_claim: i128,
    balancers: i128,
    node_ports: i128,
    /// Something makes pods that nobody here can count.
    open: bool,
}

/// `spec.hard` of the ResourceQuota.
pub(super) fn hard(objects: &[Value]) -> Map<String, Value> {
    let demand = demand(objects);
    let mut hard = Map::new();
    let mut set = |name: &str, amount: String| hard.insert(name.into(), amount.into());
    set("services.loadbalancers", demand.balancers.to_string());
    set("services.nodeports", demand.node_ports.to_string());
    if !demand.open {
        let (all, one) = (demand.rooms, demand.largest);
        set("pods", more(demand.pods, 1).to_string());
        set("requests.cpu", quantity::cpu(more(all.cpu, one.cpu)));
        set("requests.memory", quantity::bytes(more(all.memory, one.memory)));
        set("limits.memory", quantity::bytes(more(all.limit, one.limit)));
        let claims = if demand.claims == 0 {
            0
        } else {
            more(demand.claims, 1)
        };
        set("persistentvolumeclaims", claims.to_string());
        set(
            "requests.storage",
            quantity::bytes(more(demand.storage, demand.largest_claim)),
        );
    }
    hard
}

/// `spec.limits` of the LimitRange: what lets a container in that names no amounts, where the quota asks for them.
pub(super) fn limits(objects: &[Value]) -> Value {
    json!([{
        "type": "Container",
        "default": {"memory": quantity::bytes(default_limit(objects))},
        "defaultRequest": {"cpu": quantity::cpu(DEFAULT_CPU), "memory": quantity::bytes(DEFAULT_MEMORY)},
    }])
}

/// A wanted quota while an update is under way: in each amount no less than the one in the cluster.
///
/// Pods of the old size still run while those of a smaller plan come, and would use up a smaller quota. Apply this in
/// the surroundings' phase, and the wanted one with the opening.
pub(super) fn widened(wanted: &Value, live: &Value) -> Value {
    let mut widened = wanted.clone();
    let Some(Value::Object(hard)) = widened.pointer_mut("/spec/hard") else {
        return widened;
    };
    for (name, amount) in hard.iter_mut() {
        let there = live.pointer("/spec/hard").and_then(|hard| hard.get(name));
        if let Some(there) = there
            && quantity::milli(there) > quantity::milli(amount)
        {
            *amount = there.clone();
        }
    }
    widened
}

/// A fifth more, and at least `least` more.
fn more(amount: i128, least: i128) -> i128 {
    amount + ((amount + 4) / 5).max(least)
}

fn demand(objects: &[Value]) -> Demand {
    let limit = default_limit(objects);
    let mut demand = Demand::default();
    for object in objects {
        let kind = shape::kind(object);
        if kind == "Service" {
            demand.service(object);
        } else if kind == "PersistentVolumeClaim" {
            demand.claim(object.pointer("/spec"), 1);
        } else if let Some(operator) = shape::operator(object) {
            let members = i128::from(shape::number(object, operator.members).unwrap_or(1));
            // Beside the server operators put a small helper into each pod.
            let pod = amounts(object.pointer(operator.resources), limit)
                .plus(amounts(None, limit))
                .plus(shape::template(object).map_or(Room::default(), |template| pod(template, limit)));
            demand.pods(pod, members);
            for path in operator.volumes {
                demand.storage(object.pointer(path), members);
            }
        } else if let Some(template) = shape::template(object) {
            let pods = i128::from(shape::pods_at_once(object).max(scaled_to(objects, object)));
            demand.pods(pod(template, limit), pods);
            for claim in shape::list(object, "/spec/volumeClaimTemplates") {
                demand.claim(claim.pointer("/spec"), pods);
            }
            for volume in shape::list(template, "/spec/volumes") {
                demand.claim(volume.pointer("/ephemeral/volumeClaimTemplate/spec"), pods);
            }
        } else if !shape::is_usual(object) && !shape::only_tells(object) {
            demand.open = true;
        }
    }
    demand
}

impl Demand {
    fn pods(&mut self, pod: Room, count: i128) {
        self.pods += count;
        self.rooms = self.rooms.plus(pod.times(count));
        self.largest = self.largest.most(pod);
    }

    fn claim(&mut self, spec: Option<&Value>, count: i128) {
        let size = spec.and_then(|spec| spec.pointer("/resources/requests/storage"));
        self.storage(size, count);
    }

    fn storage(&mut self, size: Option<&Value>, count: i128) {
        let Some(size) = size.and_then(quantity::milli) else {
            return;
        };
        self.claims += count;
        self.storage += size * count;
        self.largest_claim = self.largest_claim.max(size);
    }

    fn service(&mut self, service: &Value) {
        let kind = shape::text(service, "/spec/type");
        if kind == "LoadBalancer" {
            self.balancers += 1;
        }
        if kind == "LoadBalancer" || kind == "NodePort" {
            let ports = shape::list(service, "/spec/ports").len();
            self.node_ports += i128::try_from(ports).unwrap_or(i128::MAX);
        }
    }
}

/// The most replicas a HorizontalPodAutoscaler may give an object.
fn scaled_to(objects: &[Value], object: &Value) -> i64 {
    objects
        .iter()
        .filter(|scaler| {
            shape::kind(scaler) == "HorizontalPodAutoscaler"
                && shape::text(scaler, "/spec/scaleTargetRef/kind") == shape::kind(object)
                && shape::text(scaler, "/spec/scaleTargetRef/name") == shape::name(object)
        })
        .filter_map(|scaler| shape::number(scaler, "/spec/maxReplicas"))
        .max()
        .unwrap_or_default()
}

/// What the scheduler counts for one pod: its containers together, or one that runs before them if that asks for more.
fn pod(template: &Value, limit: i128) -> Room {
    let (mut together, mut before) = (Room::default(), Room::default());
    for container in shape::list(template, "/spec/containers") {
        together = together.plus(amounts(container.get("resources"), limit));
    }
    for container in shape::list(template, "/spec/initContainers") {
        let room = amounts(container.get("resources"), limit);
        if shape::text(container, "/restartPolicy") == "Always" {
            together = together.plus(room);
        } else {
            before = before.most(room);
        }
    }
    together.most(before)
}

/// What one container counts for, after the LimitRange filled in what it does not say.
fn amounts(resources: Option<&Value>, limit: i128) -> Room {
    let amount = |path: &str| {
        resources
            .and_then(|resources| resources.pointer(path))
            .and_then(quantity::milli)
    };
    Room {
        cpu: amount("/requests/cpu")
            .or_else(|| amount("/limits/cpu"))
            .unwrap_or(DEFAULT_CPU),
        memory: amount("/requests/memory")
            .or_else(|| amount("/limits/memory"))
            .unwrap_or(DEFAULT_MEMORY),
        limit: amount("/limits/memory").unwrap_or(limit),
    }
}

/// The limit of a container that names none: one below what it asks for would be refused.
fn default_limit(objects: &[Value]) -> i128 {
    let mut most = LEAST_LIMIT;
    let mut look = |resources: Option<&Value>| {
        let amount = |path: &str| resources.and_then(|resources| resources.pointer(path));
        if amount("/limits/memory").is_none()
            && let Some(asked) = amount("/requests/memory").and_then(quantity::milli)
        {
            most = most.max(asked);
        }
    };
    for object in objects {
        if let Some(operator) = shape::operator(object) {
            look(object.pointer(operator.resources));
        }
        let Some(template) = shape::template(object) else {
            continue;
        };
        for containers in ["/spec/containers", "/spec/initContainers"] {
            for container in shape::list(template, containers) {
                look(container.get("resources"));
            }
        }
    }
    most
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn set(replicas: i64, resources: &Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {
                "replicas": replicas,
                "template": {"spec": {"containers": [{"name": "server", "resources": resources}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "10Gi"}}}}],
            },
        })
    }

    fn sized() -> Value {
        json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}})
    }

    #[test]
    fn one_pod_has_room_for_a_second() {
        assert_eq!(
            Value::Object(hard(&[set(1, &sized())])),
            json!({
                "pods": "2", "requests.cpu": "1", "requests.memory": "2Gi", "limits.memory": "2Gi",
                "persistentvolumeclaims": "2", "requests.storage": "20Gi", "services.loadbalancers": "0", "services.nodeports": "0",
            })
        );
    }

    #[test]
    fn many_pods_have_a_fifth_more() {
        let hard = hard(&[set(10, &sized())]);
        assert_eq!(
            (&hard["pods"], &hard["requests.cpu"], &hard["requests.storage"]),
            (&json!("12"), &json!("6"), &json!("120Gi"))
        );
    }

    #[test]
    fn everything_that_makes_pods_and_volumes_counts() {
        let template = json!({"spec": {
            "initContainers": [
                {"resources": {"requests": {"cpu": "3", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}},
            ],
            "containers": [{"resources": {"limits": {"cpu": "1", "memory": "512Mi"}}}],
            "volumes": [{"ephemeral": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}],
        }});
        let objects = [
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"parallelism": 2, "template": template}}),
            json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": template}}}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 1, "template": template}}),
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                "spec": {"maxReplicas": 4, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"resources": {"requests": {"storage": "5Gi"}}}}),
            json!({"apiVersion": "v1", "kind": "Service", "spec": {"type": "LoadBalancer", "ports": [{}, {}]}}),
            json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor"}),
        ];
        let demand = demand(&objects);
        // 2 of the job, 1 of the cron job, 4 that the autoscaler may make; each is led by its first init container.
        assert_eq!((demand.pods, demand.rooms.cpu), (7, 21_000));
        assert_eq!(demand.largest.memory, 1_000 * (576 << 20));
        assert_eq!((demand.claims, demand.storage), (8, 1_000 * (12 << 30)));
        assert_eq!((demand.balancers, demand.node_ports, demand.open), (1, 2, false));
    }

    #[test]
    fn custom_resources_count_by_their_members_or_leave_the_quota_open() {
        let cluster = json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster", "metadata": {"name": "pg"},
            "spec": {"instances": 3, "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
                "storage": {"size": "20Gi"}, "walStorage": {"size": "5Gi"}},
        });
        let hard = hard(&[cluster]);
        assert_eq!(
            (
                &hard["pods"],
                &hard["requests.cpu"],
                &hard["requests.storage"],
                &hard["persistentvolumeclaims"]
            ),
            (&json!("4"), &json!("4200m"), &json!("95Gi"), &json!("8"))
        );
        let other = json!({"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease"});
        assert_eq!(
            Value::Object(super::hard(&[other])),
            json!({"services.loadbalancers": "0", "services.nodeports": "0"})
        );
    }

    #[test]
    fn a_container_without_a_limit_gets_one_it_fits_into() {
        let asked = json!({"requests": {"memory": "3Gi"}});
        let objects = [set(1, &asked)];
        assert_eq!(limits(&objects)[0]["default"]["memory"], "3Gi");
        assert_eq!(hard(&objects)["limits.memory"], "6Gi");
        assert_eq!(limits(&[])[0]["default"]["memory"], "256Mi");
    }

    #[test]
    fn an_update_never_narrows_the_quota_while_old_pods_run() {
        let wanted = json!({"spec": {"hard": {"pods": "2", "requests.memory": "4Gi", "requests.cpu": "1"}}});
        let live = json!({"spec": {"hard": {"pods": "5", "requests.memory": "2Gi", "requests.cpu": "1000m", "old": "9"}}});
        assert_eq!(
            widened(&wanted, &live),
            json!({"spec": {"hard": {"pods": "5", "requests.memory": "4Gi", "requests.cpu": "1"}}})
        );
        assert_eq!(widened(&wanted, &json!({})), wanted);
    }
}
